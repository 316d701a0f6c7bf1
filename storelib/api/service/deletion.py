# SPDX-License-Identifier: Apache-2.0
"""Deleting the data of images that are pending_delete: by whoever was asked to, or by whoever finds that one dead."""

from __future__ import annotations

from storelib.api.context import Context, administrator
from storelib.api.db.records import Image, Status
from storelib.api.errors import ApiError, Conflict, ImageNotFound
from storelib.api.service.core import DELETING, LOG, Core
from storelib.exceptions import HasSnapshot, InUseByStore, StoreError


def finish_deletion(core: Core, context: Context, image_id: str, restore: Status) -> Image:
    """Delete the data of an image that is pending_delete, and the image; harmless when two do it.

    Raises Conflict when a store says that the data is in use; then the image is ``restore`` again. Data in a store that
    does not answer is deleted later.
    """
    repository = core.repository
    for location in repository.pending_locations(image_id):
        try:
            core.delete_data(location, context)
        except (InUseByStore, HasSnapshot) as error:
            repository.transition(image_id, from_=DELETING, to=restore)
            raise Conflict(f"image {image_id} is in use and cannot be deleted: {error}") from error
        except StoreError as error:
            LOG.warning("image %s: its data at %r is deleted later: %s", image_id, location, error)
        else:
            repository.forget_location(image_id, location.id)
    try:
        return repository.transition(image_id, from_=DELETING, to="deleted")
    except ImageNotFound:
        return repository.get(image_id, deleted=True)


def finish_if_deleting(core: Core, image_id: str) -> None:
    """What whoever ends a copy has to do first: a deletion that found it under way could leave no lease of its own.

    Never raises: who was asked to delete the image most likely does it, too, at the same time.
    """
    try:
        if core.repository.get(image_id).status == "pending_delete":
            finish_deletion(core, administrator(), image_id, "active")
    except ApiError as error:
        LOG.info("image %s: its deletion is not finished here: %s", image_id, error)
