# SPDX-License-Identifier: Apache-2.0
"""Data that is somewhere already, as it is looked at: its beginning and its end, by ranges, however large it is."""

from __future__ import annotations

from contextlib import closing, suppress
from typing import Any, NamedTuple

from storelib.api.context import Context
from storelib.api.db.records import Image, ImageLocation, NewLocation
from storelib.api.service.core import Core
from storelib.api.service.inspection import inspected, virtual_size
from storelib.capabilities import Capability
from storelib.driver import Digest, Store
from storelib.exceptions import Invalid, UnknownHashingAlgo
from storelib.inspection.probing import FARTHEST
from storelib.transfer.deadlines import at_most
from storelib.transfer.download import ImageStream
from storelib.transfer.verifying import normal

#: Bytes at the start of an image that are looked at, and at the end.
HEAD = FARTHEST
TAIL = 4 * 512
#: Seconds for both, while the client waits: whose server it is may want to keep this thread for ever.
LOOK = 30.0
#: Schemes of which every caller may name data; the others are the services' own.
PUBLIC_SCHEMES = ("http", "https")


class Found(NamedTuple):
    """Data of ``size`` bytes that is somewhere already."""

    location: NewLocation
    store: Store[Any]
    size: int


def inspect_data(
    core: Core, context: Context, found: Found, disk_format: str | None, container_format: str | None
) -> int | None:
    """Bytes of the disk in data of an image with these formats, None where they are not known; reads its ends only.

    Raises UnsupportedMediaType unless it may be such data, StoreError.
    """
    with at_most(LOOK), closing(_Ends(found, context)) as ends:
        checked = inspected(core.options, disk_format or "raw", container_format, ends)
        checked.look()
        return virtual_size(checked, disk_format, container_format, found.size)


def is_foreign(store: Store[Any], location: ImageLocation, image: Image) -> bool:
    """Whether others than the store may have put the data there, and may replace it.

    What a store keeps for an image is called like that, nearly everywhere.
    """
    return Capability.ADD not in type(store).capabilities or image.id not in location.uri


def known_digest(image: Image) -> Digest | None:
    """A digest of the image's data that can be computed here; None where none is known."""
    for algorithm, value in ((image.os_hash_algo, image.os_hash_value), ("md5", image.checksum)):
        if algorithm and value:
            with suppress(UnknownHashingAlgo, Invalid):
                return normal(Digest(algorithm, value))
    return None


class _Ends:
    """The first and the last bytes of data, as if nothing were between; all of it if it is small."""

    def __init__(self, found: Found, context: Context) -> None:
        self._found = found
        self._context = context
        self._stream: ImageStream | None = None
        self._position = 0

    def read(self, size: int, /) -> bytes:
        """The next bytes; raises StoreError."""
        total = self._found.size
        if self._position == HEAD and total > HEAD + TAIL:
            self.close()
            self._position = total - TAIL
        if self._stream is None:
            uri = self._found.location.uri
            self._stream = self._found.store.get(uri, self._position, context=self._context).data
        end = HEAD if self._position < HEAD < total - TAIL else total
        chunk = self._stream.read(min(size, end - self._position))
        self._position += len(chunk)
        return chunk

    def close(self) -> None:
        """Free the connection."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
