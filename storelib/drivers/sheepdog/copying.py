# SPDX-License-Identifier: Apache-2.0
"""Copying within a cluster: a snapshot of the image, and a clone of that; no bytes move."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from storelib.driver import Digests
from storelib.drivers.sheepdog.errors import CommandFailed
from storelib.drivers.sheepdog.location import SheepdogLocation
from storelib.drivers.sheepdog.publication import TOKEN, Publication
from storelib.exceptions import Duplicate, StoreError

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

    size = call(lambda: store.existing(source)).size
    token = call(lambda: store.undeleted(source))
    call(lambda: store.refuse_existing(image_id))
    if progress is not None:
        progress(0, size)
    publication = Publication(store, image_id)
    tag = publication.temporary
    try:
        call(lambda: _snapshot(store, source.vdi, tag, token))
        call(lambda: publication.publish(source.vdi, tag, digests))
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


def _snapshot(store: SheepdogStore, name: str, tag: str, token: str | None) -> None:
    """Take the snapshot unless an attempt before this one did; attributes do not stay with the vdi by themselves."""
    if store.find_snapshot(name, tag) is None:
        store.dog.call("snapshot", "-s", tag, name)
    if token is None:
        return
    try:
        store.dog.call("setattr", "-x", name, TOKEN, token)
    except CommandFailed as error:
        if error.meaning is not Duplicate:
            raise
