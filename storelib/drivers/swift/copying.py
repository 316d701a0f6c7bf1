# SPDX-License-Identifier: Apache-2.0
"""Copying within an account: the server copies the objects an image is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from storelib.driver import Committed, Digests, ServerSideCopy
from storelib.drivers.swift.layout import length_of, segment_place
from storelib.drivers.swift.location import SwiftLocation
from storelib.drivers.swift.writer import Segment, SwiftWriter

if TYPE_CHECKING:
    from storelib.drivers.swift.store import SwiftStore

# Requests side by side that copy segments.
_SIDE_BY_SIDE = 8


class SwiftCopy(ServerSideCopy):
    """One object copied to another, or segments to segments that get a manifest of their own."""

    concurrency = _SIDE_BY_SIDE

    def __init__(self, writer: SwiftWriter, size: int, segments: Sequence[Segment]) -> None:
        self.size = size
        self._writer = writer
        self._segments = segments
        self._whole = segments[0] if len(segments) == 1 else None
        sizes = [segment.size for segment in segments]
        self.parts = () if self._whole else sizes
        self.moved_at_once = max(sizes, default=0)

    def begin(self) -> None:
        """Make room for the segments."""
        if self._whole is None:
            self._writer.reserve(self.size)

    def copy_part(self, number: int, offset: int, length: int) -> None:
        """One segment."""
        self._writer.copy_segment(number, self._segments[number])

    def commit(self, digests: Digests) -> Committed:
        """Copy the one object, or publish the manifest."""
        if self._whole is None:
            return self._writer.commit(self.size, digests)
        return self._writer.copy_whole(self._whole, digests)

    def abort(self) -> None:
        """Remove what this copy made."""
        self._writer.abort()

    def close(self) -> None:
        """The writer's."""
        self._writer.close()


def open_copy(store: SwiftStore, source: SwiftLocation, image_id: str, context: Any) -> SwiftCopy | None:
    """None where the objects are of another account, or the server would not copy them as they are."""
    account = store.account_of(source, context)
    if account.url != store.own_account(context).url:
        return None
    headers = account.head(source.container, source.obj)
    size = length_of(headers) or 0
    place = segment_place(source.obj, headers)
    if place is not None:
        segments = [
            Segment(place[0], entry["name"], entry["hash"], entry["bytes"])
            for entry in account.listing(place[0], prefix=place[1])
            if not entry["name"].startswith(f"{place[1]}group-")
        ]
        if sum(segment.size for segment in segments) != size:
            return None
    elif headers.get("X-Static-Large-Object", "").lower() == "true":
        return None
    else:
        segments = [Segment(source.container, source.obj, headers.get("Etag", "").strip('"'), size)]
    return SwiftCopy(store.open_writer(image_id, size, context), size, segments)
