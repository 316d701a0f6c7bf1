# SPDX-License-Identifier: Apache-2.0
"""Data that is somewhere else: where v1's clients say that an image's data is, or is to be copied from."""

from __future__ import annotations

from typing import Any

from storelib.api.context import Context
from storelib.api.db.records import Image, NewLocation
from storelib.api.errors import ApiError, BadRequest, Conflict
from storelib.api.service import locating
from storelib.api.service.core import LOG, Core
from storelib.api.service.data import Data, Source
from storelib.api.service.workers import Workers
from storelib.driver import Store
from storelib.exceptions import (
    BadStoreUri,
    Forbidden,
    NotFound,
    RemoteServiceUnavailable,
    StoreError,
    TransferTimeout,
)
from storelib.transfer.download import ImageStream
from storelib.uris import redact


class External:
    """Copying data into a store, in the background."""

    def __init__(self, core: Core, data: Data, workers: Workers) -> None:
        self._core = core
        self._data = data
        self._workers = workers

    def check(self, context: Context, uri: str) -> int | None:
        """The bytes at ``uri``, None if nobody can tell, for a caller who may copy it.

        Raises Forbidden, Invalid (not a URI that is taken) and what the store it belongs to raises.
        """
        self._core.writable(context)
        self._core.policy.require(context, "copy_from", {"project_id": context.project_id or ""})
        return measure(self._core, context, uri)[1]

    def copy(self, context: Context, image: Image, uri: str, store: str | None) -> None:
        """Begin to copy the data at ``uri``, which ``check`` found good; the image is killed if that fails."""
        self._workers.start(lambda: self._copy(context, image, uri, store))

    def _copy(self, context: Context, image: Image, uri: str, store: str | None) -> None:
        remote = _Remote(self._core, context, uri)
        try:
            self._data.upload(context, image.id, Source(remote), store, failed="killed")
        except (ApiError, StoreError) as error:
            LOG.warning("image %s: its data is not copied: %s", image.id, error)
        finally:
            remote.close()


class _Remote:
    """The data at a URI; opened when it is read, so that a failure of that is one of the upload."""

    def __init__(self, core: Core, context: Context, uri: str) -> None:
        self._core = core
        self._context = context
        self._uri = uri
        self._stream: ImageStream | None = None

    def read(self, size: int, /) -> bytes:
        """The next bytes; raises StoreError."""
        if self._stream is None:
            store = self._core.registry.resolve(self._uri, self._context)
            self._stream = store.get(self._uri, context=self._context).data
        return self._stream.read(size)

    def close(self) -> None:
        """Free the connection."""
        if self._stream is not None:
            self._stream.close()


def locate(core: Core, context: Context, uri: str, expected: int | None) -> tuple[NewLocation, int]:
    """The location and size of the data at ``uri``; raises Conflict unless it has the ``expected`` bytes, if any.

    Raises Forbidden, Invalid, StoreError like ``measure``.
    """
    store, size = measure(core, context, uri)
    if size is None:
        raise BadRequest(f"the data at {redact(uri)} is empty, or its size is not known")
    if expected and size != expected:
        raise Conflict(f"the data at {redact(uri)} has {size} bytes, not {expected}")
    return NewLocation(uri, {"store": store.name}), size


def measure(core: Core, context: Context, uri: str) -> tuple[Store[Any], int | None]:
    """The store a URI belongs to and the bytes there, None if it does not tell.

    Raises Forbidden (not for this caller), Invalid (not a URI that is taken), and what the store raises.
    """
    locating.check_trusted(core, context, uri)
    try:
        store = core.registry.resolve(uri, context)
    except BadStoreUri as error:
        raise BadRequest(str(error)) from error
    try:
        return store, store.get_size(uri, context) or None
    except (BadStoreUri, NotFound, Forbidden, RemoteServiceUnavailable, TransferTimeout):
        raise
    except StoreError:
        return store, None
