# SPDX-License-Identifier: Apache-2.0
"""Members: the projects an image is shared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, get_args

from storelib.api.context import Context
from storelib.api.db.records import Caller, Image, Member, MemberStatus, SharedImage
from storelib.api.errors import BadRequest, InvalidMarker, MemberNotFound, NotPermitted
from storelib.api.service.core import Core, Judged

LONGEST_ID = 255
STATUSES = get_args(MemberStatus)


_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Found(Generic[_T]):
    """One page, and whether more follow."""

    items: Sequence[_T]
    more: bool


class Members:
    """What the API can do with members."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def list(self, context: Context, image_id: str, limit: int, marker: str | None = None) -> Found[Member]:
        """One page of the members the caller may see, oldest first: all for the owner and administrators.

        ``marker`` is the last member of the page before; raises InvalidMarker if the caller sees no such member.
        """
        image, table = self._shared(context, image_id, "get_members"), self._core.repository.members
        try:
            first = None if marker is None else self.show(context, image_id, marker)
        except MemberNotFound as error:
            raise InvalidMarker(f"marker {marker} is no member of image {image_id}") from error
        return _page(
            lambda last: table.list_for(image_id, after=last or first, limit=limit + 1),
            lambda member: self._may_see(context, image, member.member),
            limit,
        )

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
        if not self._has(image_id, member):
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

    def shared_with(self, context: Context, member: str, limit: int, marker: str = "") -> Found[SharedImage]:
        """v1: one page of the images shared with a project, by id, of which the caller may know: all for the project
        itself, else those of the caller. ``marker`` is the id of the last image of the page before.
        """
        core, caller = self._core, Caller(context.project_id, context.is_admin)
        shared_with = core.repository.members.shared_with
        return _page(
            lambda last: shared_with(member, caller, after=last.id if last else marker, limit=limit + 1),
            lambda image: core.may_see(context, image, is_member=True) and self._may_see(context, image, member),
            limit,
        )

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
            if image.visibility != "shared" or context.project_id is None:
                raise
            if not self._has(image_id, context.project_id, can_share=True):
                raise
            return image

    def _has(self, image_id: str, member: str, *, can_share: bool = False) -> bool:
        try:
            found = self._core.repository.members.get(image_id, member)
        except MemberNotFound:
            return False
        return found.can_share or not can_share

    def _check_id(self, member: Any) -> None:
        if not isinstance(member, str) or not 0 < len(member) <= LONGEST_ID:
            raise BadRequest(f"a member is the id of a project, 1 to {LONGEST_ID} characters")

    def _may_see(self, context: Context, image: Judged, member: str) -> bool:
        return self._core.policy.allows(context, "get_member", self._target(context, image, member))

    def _target(self, context: Context, image: Judged, member: str) -> dict[str, Any]:
        return self._core.target(context, image) | {"member_id": member}


def _page(read: Callable[[_T | None], Sequence[_T]], may_see: Callable[[_T], bool], limit: int) -> Found[_T]:
    """The first ``limit`` that the caller may see. ``read`` returns the ``limit + 1`` behind its argument."""
    found: list[_T] = []
    last: _T | None = None
    while limit:
        page = read(last)
        found += [each for each in page if may_see(each)]
        if len(found) > limit or len(page) <= limit:
            break
        last = page[-1]
    return Found(found[:limit], len(found) > limit)
