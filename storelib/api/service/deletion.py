# SPDX-License-Identifier: Apache-2.0
"""Deleting data that is pending_delete: by the process that was asked to, or by one that finds it dead."""

from __future__ import annotations

import contextlib
import datetime
import math
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from storelib.api.context import Context, administrator
from storelib.api.db.images import STATUS_BEFORE
from storelib.api.db.records import Image, ImageLocation, NewLocation, Status, Ticket
from storelib.api.errors import ApiError, Conflict, DatabaseUnavailable, ImageNotFound, StatusConflict, UploadLost
from storelib.api.messages import told
from storelib.api.service.core import DELETING, LOG, Core, collect, own_spelling
from storelib.capabilities import Capability
from storelib.driver import Store
from storelib.exceptions import (
    Forbidden,
    HasSnapshot,
    InUseByStore,
    NotFound,
    OperationNotSupported,
    RemoteServiceUnavailable,
    StoreError,
    TransferTimeout,
)

#: Seconds that an add takes at most, by which what it may have left is told from what was there before.
LONGEST_ADD = 7 * 86400.0
#: Seconds that data may seem to be deleted in the future, before that is taken for a clock which was set back.
CLOCKS = 3600.0


def finish_deletion(core: Core, context: Context, image_id: str, restore: Status) -> Image:
    """Delete the data of an image that is pending_delete, and the image; harmless when two do it.

    Raises Conflict when a store says that the data is in use; then the image is ``restore`` again. Data in a store that
    does not answer is deleted later.
    """
    images = core.repository.images
    for _, error in _delete_pending(core, context, image_id):
        images.transition(image_id, from_=DELETING, to=restore)
        raise Conflict(f"image {image_id} is in use and cannot be deleted: {told(error)}") from error
    try:
        return images.transition(image_id, from_=DELETING, to="deleted")
    except ImageNotFound:
        return images.get(image_id, deleted=True)


def resume_deletion(core: Core, context: Context, image_id: str) -> Image:
    """``finish_deletion`` of an image whose status before is noted, by who began or in it, or else was active."""
    upload = core.repository.uploads.get(image_id)
    if upload is not None and upload.status == "pending_delete":
        return finish_deletion(core, context, image_id, upload.restore)
    noted = core.repository.images.get(image_id, deleted=True).properties.get(STATUS_BEFORE)
    return finish_deletion(core, context, image_id, "deactivated" if noted == "deactivated" else "active")


def delete_dropped(core: Core, context: Context, image_id: str) -> None:
    """Delete the data at locations that were taken from an image that stays; harmless when two do it.

    Raises Conflict when a store says that the data is in use; then the image has that location again. Data in a store
    that does not answer is deleted later. With the option delayed_delete it stays for its time.
    """
    if core.options.delayed_delete:
        return
    in_use: StoreError | None = None
    for location, error in _delete_pending(core, context, image_id):
        core.repository.locations.restore(image_id, location.id)
        in_use = error
    if in_use is not None:
        raise Conflict(f"the data is in use and cannot be deleted: {told(in_use)}") from in_use


def delete_leftovers(core: Core, context: Context, image_id: str, stores: Collection[str]) -> None:
    """Delete the data of failed uploads that these stores have, or may have; raises StoreError."""
    for location in core.repository.locations.pending_for(image_id):
        if location.status == "leftover" and not set(stores).isdisjoint(core.possible_stores(location)):
            delete_location(core, context, image_id, location)


def delete_abandoned(core: Core, abandoned: float) -> None:
    """End all deletions that began ``abandoned`` seconds ago, whose processes are dead by now, and delete the data.

    With the option delayed_delete only data whose time is over. What cannot be deleted now stays, and is logged.
    """
    apart = datetime.timedelta(seconds=abandoned)
    earliest, latest = core.repository.processes.clocks()
    for image_id in core.repository.images.in_statuses(DELETING):
        _end_abandoned(core, image_id, earliest - apart, latest + apart)
    core.repository.locations.bring_back(CLOCKS)
    scrub(core, max(abandoned, kept_for(core)))


def kept_for(core: Core) -> float:
    """Seconds for which data stays that is to be deleted."""
    return float(core.options.scrub_time) if core.options.delayed_delete else 0.0


def scrub(core: Core, age: float) -> None:
    """Delete the data that has been pending_delete for ``age`` seconds; what cannot be deleted stays, and is logged."""
    earliest, _ = core.repository.processes.clocks()
    _delete_each(core, core.repository.locations.pending(earliest - datetime.timedelta(seconds=age)))
    while core.repository.images.finish_soft_deletes():
        pass


def delete_claimed_by_dead(core: Core) -> None:
    """Delete the data that processes were deleting which died over it; what cannot be deleted stays, and is logged."""
    _delete_each(core, core.repository.locations.claimed_by_dead())


def _delete_each(core: Core, locations: Iterable[tuple[str, ImageLocation]]) -> None:
    """A store that does not answer is asked once, so that what is in the others needs not wait for it."""
    away = set()
    for image_id, location in locations:
        store = location.metadata.get("store")
        if store in away:
            continue
        try:
            # Another process may have deleted it since: then there is nothing to claim.
            delete_location(core, administrator(), image_id, location)
        except (ApiError, StoreError) as error:
            LOG.warning("image %s: its data at %r cannot be deleted yet: %s", image_id, location, error)
            if store is not None and _is_away(error):
                away.add(store)


def _is_away(error: Exception) -> bool:
    """Whether the store was waited for; what is said at once may be about one directory of several."""
    waited = isinstance(error, RemoteServiceUnavailable) and error.transient
    return waited or isinstance(error, TransferTimeout)


def _end_abandoned(core: Core, image_id: str, before: datetime.datetime, after: datetime.datetime) -> None:
    """The image is deleted at once; its data, of which there may be much, is deleted like that of others.

    None changed in the future: the clock was set back.
    """
    try:
        if not before <= core.repository.images.get(image_id).updated_at <= after:
            core.repository.images.transition(image_id, from_=DELETING, to="deleted")
    except (ImageNotFound, StatusConflict):
        pass


def _delete_pending(core: Core, context: Context, image_id: str) -> Iterator[tuple[ImageLocation, StoreError]]:
    """Delete the data at an image's pending_delete locations, one after the other; yields those that are in use.

    What cannot be deleted for another reason is logged, and deleted later.
    """
    for location in core.repository.locations.pending_for(image_id):
        try:
            delete_location(core, context, image_id, location)
        except StoreError as error:
            if isinstance(error, (InUseByStore, HasSnapshot)) and location.status != "leftover":
                yield location, error
            else:
                LOG.warning("image %s: its data at %r is deleted later: %s", image_id, location, error)


def delete_location(core: Core, context: Context, image_id: str, location: ImageLocation) -> None:
    """Delete the data at a pending_delete location and forget it, unless another request does; raises StoreError.

    A URI can be used again, so what is there is never deleted without a claim, which keeps new data away. What another
    image has, too, since services and administrators may name one place for several, stays with that.
    """
    repository, token = core.repository, str(uuid.uuid4())
    unsure = core.unsure_claims.pop(location.id, ())
    try:
        if not repository.locations.claim(image_id, location.id, core.process_id(), token, unsure):
            return
        try:
            if location.status == "leftover" and _is_written_again(core, image_id, location):
                repository.locations.release(image_id, location.id, token)
                return
            if not location.uri:
                # Where a store has what it may have is not known. No upload begins there meanwhile.
                _search_what_is_noted(core, image_id, location, token)
            elif not _is_shared(core, context, image_id, location):
                core.delete_data(image_id, location, context)
        except BaseException:
            repository.locations.release(image_id, location.id, token)
            raise
        repository.locations.forget(image_id, location.id, token)
    except (DatabaseUnavailable, KeyboardInterrupt, SystemExit):
        # It may be there or not, so the next attempt has to know it for its own.
        core.unsure_claims[location.id] = (*unsure, token)
        raise


def _is_shared(core: Core, context: Context, image_id: str, location: ImageLocation) -> bool:
    """Whether another image has the same data, by the URI or by that which the store writes; raises StoreError.

    An old location may have another spelling. The audit in the background mends those that others may be asked for.
    """
    locations = core.repository.locations
    if locations.is_shared(location.uri, image_id):
        return True
    uri = own_spelling(core.store_of(location, context), location.uri)
    return uri != location.uri and locations.is_shared(uri, image_id)


def _is_written_again(core: Core, image_id: str, location: ImageLocation) -> bool:
    """Whether new data of the image goes to where a leftover is: servers of the version before do not wait for it."""
    upload = core.repository.uploads.get(image_id)
    return upload is not None and not set(upload.stores).isdisjoint(core.possible_stores(location))


def finish_if_deleting(core: Core, image_id: str) -> None:
    """What has to be done at the end of a copy: a deletion that found it under way could leave no lease of its own.

    Never raises: the process that was asked to delete the image most likely does it, too, at the same time.
    """
    try:
        if core.repository.images.get(image_id).status == "pending_delete":
            resume_deletion(core, administrator(), image_id)
    except ApiError as error:
        LOG.info("image %s: its deletion is not finished here: %s", image_id, error)


def is_unanswered(error: BaseException) -> bool:
    """Whether a store that failed like this may have done what it was asked to."""
    return isinstance(error, (RemoteServiceUnavailable, TransferTimeout))


def somewhere_in(store: str) -> NewLocation:
    """What this store may have of an image, wherever it is: that is looked for later, and deleted."""
    return NewLocation("", {"store": store, "noted": time.time()})


def remove_leftovers(core: Core, store: Store[Any], image_id: str, ticket: Ticket | None) -> None:
    """Remove what a broken add left in ``store`` under ``image_id``, unless the image has a location there.

    ``ticket`` is the claim it is done under: a process that lost it meanwhile removes nothing and gets UploadLost.
    None: no upload can write there any more.
    """
    _search(core, store, image_id, lambda: _check_held(core, ticket))


def _search_what_is_noted(core: Core, image_id: str, location: ImageLocation, token: str) -> None:
    store = core.registry[str(location.metadata.get("store"))]
    noted = float(location.metadata.get("noted", math.inf))
    try:
        _search(
            core, store, image_id, lambda: _check_claim(core, store, image_id, location, token), noted - LONGEST_ADD
        )
    except (Forbidden, OperationNotSupported) as error:
        # Searched again it would be refused again, and until then every upload of this image to this store.
        LOG.warning("image %s: store %s may have data that cannot be looked for: %s", image_id, store.name, error)


def _search(core: Core, store: Store[Any], image_id: str, check: Callable[[], None], since: float = -math.inf) -> None:
    """``remove_leftovers`` under any claim: ``check`` raises where it is lost.

    What was there before ``since``, in POSIX seconds, stays: others that share the store have images of that id.
    """
    check()
    collect(store, image_id)
    if Capability.LIST not in store.capabilities:
        return
    try:
        locations = core.repository.images.get(image_id).locations
    except ImageNotFound:
        # What it had may have to stay for its time.
        pending = core.repository.locations.pending_for(image_id)
        locations = tuple(location for location in pending if location.status == "pending_delete")
    # Its URI may be spelled in another way than the store does.
    if any(store.name in core.possible_stores(location) for location in locations):
        return
    found = store.find_image(image_id)
    if found is None or any(location.uri == found.uri for location in locations):
        return
    if found.modified is not None and found.modified < since:
        return
    # What is named like this image may have become another's.
    if not core.repository.locations.is_shared(found.uri, image_id):
        # A large store is searched for long, and this process may have been taken for dead.
        check()
        # A deletion and the import that it ends remove the same, and the other one was faster.
        with contextlib.suppress(NotFound):
            store.delete(found.uri)


def _check_held(core: Core, ticket: Ticket | None) -> None:
    if ticket is None:
        return
    upload = core.repository.uploads.get(ticket.image_id)
    if upload is None or upload.ticket != ticket:
        raise UploadLost(f"image {ticket.image_id}: another process has taken over what was done to it")


def _check_claim(core: Core, store: Store[Any], image_id: str, location: ImageLocation, token: str) -> None:
    if not core.repository.locations.is_claimed(image_id, location.id, token):
        raise InUseByStore(f"image {image_id}: another process searches store {store.name} for what it may have of it")
    if _is_written_again(core, image_id, location):
        raise InUseByStore(f"image {image_id}: its data is being written to store {store.name}")
