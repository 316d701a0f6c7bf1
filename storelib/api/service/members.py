# SPDX-License-Identifier: Apache-2.0
"""Members: the projects an image is shared with."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from typing import Any, get_args

from storelib.api.context import Context
from storelib.api.db.records import Image, Member, MemberStatus
from storelib.api.errors import BadRequest, ImageNotFound, MemberNotFound, NotPermitted
from storelib.api.service.core import Core

LONGEST_ID = 255
STATUSES = get_args(MemberStatus)


class Members:
    """What the API can do with members."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def list(self, context: Context, image_id: str) -> list[Member]:
        """The members the caller may see: all for the owner and administrators, else only the caller."""
        image = self._shared(context, image_id, "get_members")
        members = self._core.repository.members.list_for(image_id)
        return [member for member in members if self._may_see(context, image, member.member)]

    def show(self, context: Context, image_id: str, member: str) -> Member:
        """One membership; raises MemberNotFound also for one that the caller may not see."""
        image = self._core.get_authorized(context, image_id, "get_members")
        if image.visibility != "shared" or not self._may_see(context, image, member):
            raise MemberNotFound(f"image {image_id} is not shared with {member!r}")
        return self._core.repository.members.get(image_id, member)

    def add(self, context: Context, image_id: str, member: str, *, can_share: bool = False) -> Member:
        """Share an image; raises NotPermitted unless its visibility is shared, AlreadyExists, LimitExceeded."""
        self._core.writable(context)
        image = self._shared(context, image_id, "add_member")
        self._check_id(member)
        limit = self._core.quota.members
        added = self._core.repository.members.add(image_id, member, can_share=can_share, limit=limit)
        self._core.refresh_acls(context, image)
        self._core.notify.member("create", added)
        return added

    def put(self, context: Context, image_id: str, member: str, can_share: bool | None) -> None:
        """v1: share an image, or change whether the member may share it; None: as it was, or not.

        Raises ImageNotFound, NotPermitted, LimitExceeded.
        """
        image = self._sharable(context, image_id, "add_member")
        if all(known.member != member for known in self._core.repository.members.list_for(image_id)):
            self._check_id(member)
            limit = self._core.quota.members
            put = self._core.repository.members.add(image_id, member, can_share=bool(can_share), limit=limit)
            self._core.notify.member("create", put)
        else:
            put = self._core.repository.members.update(image_id, member, can_share=can_share)
            self._core.notify.member("update", put)
        self._core.refresh_acls(context, image)

    def replace(self, context: Context, image_id: str, wanted: Mapping[str, bool | None]) -> None:
        """v1: share an image with exactly these, member to ``can_share`` as in ``put``; raises what ``put`` raises."""
        image = self._sharable(context, image_id, "add_member")
        self._sharable(context, image_id, "delete_member")
        for member in wanted:
            self._check_id(member)
        self._core.quota.check_members(wanted)
        before = {member.member: member for member in self._core.repository.members.list_for(image_id)}
        after = {member.member: member for member in self._core.repository.members.replace(image_id, wanted)}
        self._core.refresh_acls(context, image)
        for name in sorted(before.keys() | after.keys()):
            if name not in after:
                self._core.notify.member("delete", before[name])
            elif before.get(name) != after[name]:
                self._core.notify.member("update" if name in before else "create", after[name])

    def shared_with(self, context: Context, member: str) -> builtins.list[Member]:
        """v1: the memberships of one project that the caller may see.

        Those are all of the caller's own project, and else those of the caller's images.
        """
        found = []
        for membership in self._core.repository.members.shared_with(member):
            try:
                image = self._core.get_visible(context, membership.image_id)
            except ImageNotFound:
                continue
            if self._may_see(context, image, member):
                found.append(membership)
        return found

    def set_status(self, context: Context, image_id: str, member: str, status: Any) -> Member:
        """Accept or reject a shared image, which only the member can (and administrators)."""
        self._core.writable(context)
        image = self._core.get_visible(context, image_id)
        if status not in STATUSES:
            raise BadRequest(f"status must be one of {', '.join(STATUSES)}")
        if not self._may_see(context, image, member):
            raise MemberNotFound(f"image {image_id} is not shared with {member!r}")
        self._core.policy.require(context, "modify_member", self._target(context, image, member))
        updated = self._core.repository.members.update(image_id, member, status=status)
        self._core.notify.member("update", updated)
        return updated

    def remove(self, context: Context, image_id: str, member: str) -> None:
        """Stop sharing; raises MemberNotFound."""
        self._core.writable(context)
        image = self._sharable(context, image_id, "delete_member")
        removed = self._core.repository.members.get(image_id, member)
        self._core.repository.members.remove(image_id, member)
        self._core.refresh_acls(context, image)
        self._core.notify.member("delete", removed)

    def _shared(self, context: Context, image_id: str, action: str) -> Image:
        image = self._core.get_authorized(context, image_id, action)
        if image.visibility != "shared":
            raise NotPermitted(f"only shared images have members, image {image_id} is {image.visibility}")
        return image

    def _sharable(self, context: Context, image_id: str, action: str) -> Image:
        """A shared image that the caller may share: as ``action`` says, or as a member that ``can_share``."""
        core = self._core
        core.writable(context)
        try:
            return self._shared(context, image_id, action)
        except NotPermitted:
            image = core.get_visible(context, image_id)
            members = core.repository.members.list_for(image_id) if image.visibility == "shared" else ()
            if not any(member.can_share and member.member == context.project_id for member in members):
                raise
            return image

    def _check_id(self, member: Any) -> None:
        if not isinstance(member, str) or not 0 < len(member) <= LONGEST_ID:
            raise BadRequest(f"a member is the id of a project, 1 to {LONGEST_ID} characters")

    def _may_see(self, context: Context, image: Image, member: str) -> bool:
        return self._core.policy.allows(context, "get_member", self._target(context, image, member))

    def _target(self, context: Context, image: Image, member: str) -> dict[str, Any]:
        return self._core.target(context, image) | {"member_id": member}
