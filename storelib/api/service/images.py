# SPDX-License-Identifier: Apache-2.0
"""Images: create, list, show, change, delete, activate and deactivate, tags. Each function says its steps in order:
what the caller may see and do, what the image allows, quota, the change itself, and who is told.
"""

from __future__ import annotations

import datetime
import random
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from storelib.api import schemas
from storelib.api.context import Context
from storelib.api.db.records import Caller, Image, NewImage, Query, Status
from storelib.api.db.statuses import UPLOADING, WITH_DATA
from storelib.api.errors import (
    BadRequest,
    Conflict,
    ImageNotFound,
    LimitExceeded,
    NotPermitted,
    Protected,
    StaleImage,
    StatusConflict,
)
from storelib.api.service.core import Core
from storelib.api.service.data import check_formats
from storelib.api.service.deletion import finish_deletion, resume_deletion
from storelib.api.service.draft import LONGEST_NAME, Draft, Operation, check_name
from storelib.api.service.foreign import inspect_data
from storelib.api.service.keys import delete_key
from storelib.api.service.lease import Lease
from storelib.api.service.locations import locate
from storelib.api.service.signatures import check_unsigned
from storelib.api.service.tasks import HIDDEN, TASK, UNSAFE, Tasks

#: How often a change is begun again because another request was faster.
ATTEMPTS = 12
#: Seconds at most before the third attempt, twice as many before the fourth, and so on.
PAUSE = 0.005
#: Changes in one request: many times what an image can have.
MOST_OPERATIONS = 5000
#: Base properties that a client may give when creating.
SETTABLE = (
    "id",
    "name",
    "visibility",
    "protected",
    "os_hidden",
    "owner",
    "container_format",
    "disk_format",
    "min_disk",
    "min_ram",
)
#: Statuses in which an image has no data yet or none any more.
WITHOUT_DATA: tuple[Status, ...] = ("queued", *UPLOADING, "killed")
#: Seconds after which a deletion that is not done is helped when a client asks for it again.
AT_WORK = 10.0


class Listing(NamedTuple):
    """One page as the caller may see it; ``last`` is the marker of the next one, None on the last page."""

    images: list[Image]
    last: str | None


class Images:
    """What the API can do with images themselves."""

    def __init__(
        self,
        core: Core,
        lease: Lease,
        tasks: Tasks,
        discard_stage: Callable[[Image], None],
        uncache: Callable[[str], None],
    ) -> None:
        self._core = core
        self._lease = lease
        self._tasks = tasks
        self._discard_stage = discard_stage
        self._uncache = uncache

    def create(
        self,
        context: Context,
        values: Mapping[str, Any],
        *,
        size: int | None = None,
        checksum: str | None = None,
        location: str | None = None,
    ) -> Image:
        """A queued image of base and custom properties in one mapping, as a v2 body has them.

        ``size`` (bytes), ``checksum`` (md5) and ``location`` are v1's: what the data will have to be, and where it is.
        An image is active if it has a location, or is said to have no bytes.

        Raises BadRequest, NotPermitted (read-only and reserved names, another owner, policy), AlreadyExists and
        LimitExceeded.
        """
        core = self._core
        core.writable(context)
        # Before all that takes longer the more there is of it.
        core.quota.check_properties(values.keys() - core.schema.base_names)
        core.quota.check_length("tags", values.get("tags"), core.quota.tags)
        for name in values:
            check_name(name)
        if "locations" in values:
            raise NotPermitted("locations are set by changing an image, not by creating it")
        core.schema.check_new(values)
        values = {name: core.schema.plain(name, value) for name, value in values.items()}
        fields: dict[str, Any] = {name: values[name] for name in SETTABLE if name in values}
        fields.setdefault("owner", context.owner)
        fields.setdefault("id", str(uuid.uuid4()))
        base = core.schema.base_names
        properties = {name: schemas.stored(value) for name, value in values.items() if name not in base}
        new = NewImage(
            **fields,
            tags=frozenset(values.get("tags", ())),
            properties=properties,
            status="active" if size == 0 else "queued",
            size=size,
            checksum=checksum,
        )
        self._check_new(context, new)
        if location is not None:
            new = self._located(context, new, location)
        image = core.repository.images.create(new, most=core.quota.total if new.locations else None)
        core.notify.image("create", image)
        return image

    def _located(self, context: Context, new: NewImage, uri: str) -> NewImage:
        self._core.policy.require(context, "set_image_location", {"project_id": new.owner or ""})
        check_formats(new)
        check_unsigned(new.properties)
        self._core.quota.room(new.owner)
        found = locate(self._core, context, uri, new.size)
        self._core.quota.room(new.owner, found.size)
        self._core.limits.check_data(new.owner, found.size)
        disk = inspect_data(self._core, context, found, new.disk_format, new.container_format)
        return replace(new, status="active", size=found.size, virtual_size=disk, locations=(found.location,))

    def _check_new(self, context: Context, new: NewImage) -> None:
        core = self._core
        target = core.target_of_new(new)
        if new.owner != context.owner and not context.is_admin:
            raise NotPermitted("only administrators may make images for others")
        core.policy.require(context, "add_image", target)
        for visibility, action in (("public", "publicize_image"), ("community", "communitize_image")):
            if new.visibility == visibility:
                core.policy.require(context, action, target)
        for name in new.properties:
            core.protection.require(context, "create", name)
        core.quota.check_tags(new.tags)
        if new.size is not None:
            core.quota.room(new.owner, new.size)
        core.limits.check_create(new.owner)

    def list(self, context: Context, query: Query, *, as_user: bool = False) -> Listing:
        """One page of images; the query's caller is replaced by who asks. Raises BadRequest, NotPermitted.

        ``as_user`` shows administrators what they would see if they were none.
        """
        core = self._core
        core.policy.require(context, "get_images", {"project_id": context.project_id or ""})
        # Whether a list is empty would tell what the caller may not read, or nobody may.
        if not HIDDEN.isdisjoint(query.properties) or not all(
            core.protection.allows(context, "read", name) for name in query.properties
        ):
            return Listing([], None)
        page = core.repository.images.list(
            replace(query, caller=Caller(context.project_id, context.is_admin and not as_user))
        )
        allows, target = core.policy.allows, core.target
        images = [image for image in page.images if allows(context, "get_image", target(context, image))]
        return Listing(images, page.images[-1].id if page.more and page.images else None)

    def show(self, context: Context, image_id: str, *, deleted: bool = False) -> Image:
        """One image; raises ImageNotFound also for one that the caller may not see.

        With ``deleted``, administrators are shown deleted images, too.
        """
        if deleted and context.is_admin:
            return self._core.repository.images.get(image_id, deleted=True)
        return self._core.get_visible(context, image_id)

    def update(self, context: Context, image_id: str, operations: Iterable[Operation]) -> Image:
        """Apply all operations or none; begun again when another request changes the image meanwhile.

        Raises ImageNotFound, NotPermitted, Conflict, BadRequest, LimitExceeded; see Draft for which and why.
        """
        core = self._core
        core.writable(context)
        operations = list(operations)
        if len(operations) > MOST_OPERATIONS:
            raise LimitExceeded(f"one request may have {MOST_OPERATIONS} operations, not {len(operations)}")
        for attempt in range(ATTEMPTS):
            image = core.get_visible(context, image_id)
            if not operations:
                core.require(context, "modify_image", image)
            draft = Draft(core, context, image)
            for operation in operations:
                draft.apply(operation)
            try:
                updated = draft.commit()
            except StaleImage:
                if attempt == ATTEMPTS - 1:
                    raise
                # Callers that change the same image at once do not all come back at once.
                time.sleep(random.uniform(0, PAUSE * attempt))  # noqa: S311  (no secret)
                continue
            draft.delete_dropped()
            if updated.visibility != image.visibility or updated.locations != image.locations:
                core.refresh_acls(context, updated)
            if updated is not image:
                core.notify.image("update", updated)
            return updated
        raise AssertionError("unreachable")

    def delete(self, context: Context, image_id: str) -> None:
        """Delete an image and its data.

        Raises ImageNotFound, NotPermitted, Protected, and Conflict when a store says that the data is in use; then the
        image is what it was. Data in a store that does not answer is deleted later; with delayed_delete all of it is.
        """
        core = self._core
        core.writable(context)
        image = core.get_authorized(context, image_id, "delete_image")
        if image.protected:
            raise Protected(f"image {image_id} is protected and cannot be deleted")
        if image.status == "pending_delete":
            deleted = self._go_on_deleting(context, image)
        elif image.status in WITHOUT_DATA:
            deleted = self._delete_without_data(image)
        elif core.options.delayed_delete and image.locations:
            deleted = core.repository.images.soft_delete(image_id, from_=WITH_DATA)
        else:
            deleted = self._delete_with_data(context, image)
        if TASK in deleted.properties:
            # A process at work on it finds no upload any more with which it could end.
            self._tasks.fail(image.id, "the image was deleted")
        self._uncache(image.id)
        # Last, since data that is in use keeps the image as it is, which needs its key.
        delete_key(core.keys, context, image)
        core.notify.image("delete", deleted)

    def _delete_without_data(self, image: Image) -> Image:
        try:
            deleted = self._core.repository.images.transition(image.id, from_=WITHOUT_DATA, to="deleted")
        except StatusConflict as error:
            raise Conflict(f"image {image.id} has just become {error.status}; try again") from error
        self._discard_stage(deleted)
        return deleted

    def _delete_with_data(self, context: Context, image: Image) -> Image:
        ticket = self._lease.ticket(image.id)
        try:
            self._core.repository.uploads.begin_deletion(
                image.id, ticket.process_id, from_=WITH_DATA, token=ticket.token
            )
            return finish_deletion(self._core, context, image.id, image.status)
        except (Conflict, ImageNotFound):
            raise
        except BaseException:
            # If it was begun, it is gone on with soon; if not, the image is not pending_delete.
            self._lease.delete_later(image.id)
            raise

    def _go_on_deleting(self, context: Context, image: Image) -> Image:
        """The client asks again: finish what was interrupted; raises NotPermitted while another request is at it."""
        age = datetime.datetime.now(datetime.timezone.utc) - image.updated_at
        if not self._lease.interrupted(image.id) and abs(age.total_seconds()) < AT_WORK:
            raise NotPermitted(f"image {image.id} is being deleted already")
        return resume_deletion(self._core, context, image.id)

    def deactivate(self, context: Context, image_id: str) -> None:
        """Stop all but administrators from downloading; raises NotPermitted in a wrong status."""
        self._switch(context, image_id, "deactivate", "active", "deactivated")

    def reactivate(self, context: Context, image_id: str) -> None:
        """The opposite of ``deactivate``."""
        self._switch(context, image_id, "reactivate", "deactivated", "active")

    def _switch(self, context: Context, image_id: str, action: str, before: Status, after: Status) -> None:
        core = self._core
        core.writable(context)
        image = core.get_authorized(context, image_id, action)
        if image.status == after:
            return
        if after == "active" and UNSAFE in image.properties and not context.is_admin:
            raise NotPermitted(
                f"the data of image {image_id} is not safe to use: only administrators may reactivate it"
            )
        try:
            updated = core.repository.images.transition(image_id, from_=(before,), to=after)
        except StatusConflict as error:
            raise NotPermitted(f"an image that is {error.status} cannot become {after}") from error
        if after != "active":
            self._uncache(image_id)
        core.notify.image("update", updated)

    def add_tag(self, context: Context, image_id: str, tag: str) -> None:
        """Tag an image; raises BadRequest, LimitExceeded."""
        self._core.writable(context)
        image = self._core.get_authorized(context, image_id, "modify_image")
        if not 0 < len(tag) <= LONGEST_NAME:
            raise BadRequest(f"a tag has 1 to {LONGEST_NAME} characters")
        self._core.repository.images.add_tag(image.id, tag, limit=self._core.quota.tags)

    def remove_tag(self, context: Context, image_id: str, tag: str) -> None:
        """Take a tag off; raises TagNotFound."""
        self._core.writable(context)
        image = self._core.get_authorized(context, image_id, "modify_image")
        self._core.repository.images.remove_tag(image.id, tag)
