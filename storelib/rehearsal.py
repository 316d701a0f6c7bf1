# SPDX-License-Identifier: Apache-2.0
"""What ``check`` ends with: one small image that goes the way of all images, in and out again."""

from __future__ import annotations

import logging
import secrets
from typing import Any

from storelib.capabilities import Capability
from storelib.driver import Store
from storelib.exceptions import NotFound, StoreError

LOG = logging.getLogger(__name__)

#: How the ids of these images begin.
PREFIX = "storelib-check-"
#: Bytes of one.
SIZE = 5000
#: Seconds after which what a check left that was killed is garbage.
STALE = 3600.0


def rehearse(store: Store[Any]) -> None:
    """Add, find, read, collect garbage and delete by the very methods that callers use; raises what stands in the way.

    Of a store that cannot be written to one image is listed, as far as the store lists. Nothing is left in it.
    """
    can = store.capabilities
    if Capability.LIST in can:
        next(iter(store.list_images()), None)
    if Capability.ADD not in can or Capability.DELETE not in can:
        return
    image_id, data = PREFIX + secrets.token_hex(8), secrets.token_bytes(SIZE)
    uri = store.add(image_id, data).uri
    try:
        _compare(store, image_id, uri, data)
    except BaseException:
        _try_to_delete(store, uri)
        raise
    store.delete(uri)
    if Capability.GC in can:
        store.gc(STALE, PREFIX)


def _compare(store: Store[Any], image_id: str, uri: str, data: bytes) -> None:
    if Capability.READ in store.capabilities:
        with store.get(uri).data as stream:
            if stream.read() != data:
                raise StoreError(f"store {store.name}: an image that was just added reads back as other bytes")
    if store.get_size(uri) != len(data):
        raise StoreError(f"store {store.name}: an image that was just added has another size")
    if Capability.LIST in store.capabilities and Capability.STAT in store.capabilities:
        found = store.find_image(image_id)
        if found is None:
            raise StoreError(f"store {store.name}: an image that was just added is not found by its id")


def _try_to_delete(store: Store[Any], uri: str) -> None:
    try:
        store.delete(uri)
    except NotFound:
        pass
    except StoreError as error:
        LOG.warning("store %s: the image of a failed check is still there: %s", store.name, error)
