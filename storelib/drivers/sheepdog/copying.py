# SPDX-License-Identifier: Apache-2.0
"""Copying within a cluster: a snapshot of the image, and a clone of that; no bytes move."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from storelib.driver import Digests
from storelib.drivers.sheepdog.claims import DELETING, Claim
from storelib.drivers.sheepdog.listing import Vdi
from storelib.drivers.sheepdog.location import SheepdogLocation
from storelib.drivers.sheepdog.publication import Publication
from storelib.exceptions import ImageChanged, StoreError

if TYPE_CHECKING:
    from storelib.drivers.sheepdog.store import SheepdogStore
    from storelib.transfer.upload import Progress

T = TypeVar("T")
LOG = logging.getLogger(__name__)


def copy_image(
    store: SheepdogStore, source: SheepdogLocation, image_id: str, digests: Digests, progress: Progress | None
) -> tuple[SheepdogLocation, int]:
    """Where the copy is, and its size in bytes; whatever goes wrong, nothing of it is left."""
    subject = f"image {image_id!r} in store {store.name}"

    def call(function: Callable[[], T]) -> T:
        return store.retry_policy.call(function, store.map_error, subject)

    whole = call(lambda: store.existing(source))
    claim = call(lambda: store.whole_claim(whole))
    size = whole.size
    publication = Publication(store, image_id)
    call(lambda: store.refuse_existing(image_id))
    if progress is not None:
        progress(0, size)
    tag = publication.temporary
    try:
        call(lambda: _snapshot(store, whole, tag, claim))
        call(lambda: publication.publish(source.vdi, tag, whole, digests))
        if progress is not None:
            progress(size, size)
    except BaseException:
        _tidy(lambda: call(publication.withdraw), f"{publication.location} could not be taken back")
        raise
    finally:
        _tidy(
            lambda: call(lambda: store.delete_snapshot(source.vdi, tag)), f"gc will remove snapshot {tag} of {source}"
        )
        publication.close()
    return publication.location, size


def _tidy(function: Callable[[], None], otherwise: str) -> None:
    """What happened before matters more than what goes wrong in clearing up."""
    try:
        function()
    except StoreError as error:
        LOG.warning("%s: %s", otherwise, error)


def _snapshot(store: SheepdogStore, whole: Vdi, tag: str, claim: Claim | None) -> None:
    """Take the snapshot unless an attempt before this one did; attributes do not stay with the vdi by themselves."""
    name = whole.name
    if store.find_snapshot(name, tag) is None:
        store.dog.call("snapshot", "-s", tag, name)
    found = list(store.vdis(name))
    if not any(vdi.snapshot and vdi.tag == tag and vdi.vid == whole.vid for vdi in found):
        raise ImageChanged(f"{store.location(name)} was deleted and made anew while it was copied")
    now = next((vdi for vdi in found if not vdi.snapshot), None)
    if claim is not None and now is not None:
        vdi = now
        store.set_claim(name, claim.moved_to(vdi), lambda other: other.fits(vdi) and other.token != DELETING)
