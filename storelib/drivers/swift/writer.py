# SPDX-License-Identifier: Apache-2.0
"""SwiftWriter and SwiftCopy: the bytes of one object, or of segments, sent or copied within an account."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from storelib.driver import Committed, Context, Digests, Part, Writer, WriterCopy
from storelib.drivers.swift.errors import etag_in, length_of, segment_place
from storelib.drivers.swift.location import SwiftLocation
from storelib.drivers.swift.publication import SLOWEST, Publication, Segment
from storelib.drivers.swift.service import Account, Body, Service
from storelib.exceptions import Duplicate, Forbidden, RemoteServiceUnavailable
from storelib.transfer.contract import KiB, MiB

# Requests side by side that copy segments.
_SIDE_BY_SIDE = 8


class SwiftWriter(Publication, Writer):
    """Sends a small image as one object, any other in segments."""

    #: Swift takes segments of one byte; the tests use this much.
    smallest_part = 64 * KiB

    def __init__(self, service: Service, account: Account, location: SwiftLocation) -> None:
        super().__init__(service, account, location)
        conf = service.conf
        self.concurrency = conf.swift_store_upload_concurrency
        self.put = self.put_whole
        self._chunk: int = conf.swift_store_large_object_chunk_size * MiB
        self._single: int = min(conf.swift_store_large_object_size * MiB, self._chunk)
        self._segments: dict[int, Segment] = {}

    def part_size(self, number: int, size: int | None) -> int:
        """The largest image that is one object, then segments."""
        return self._single if number == 0 and (size is None or size <= self._single) else self._chunk

    def reserve(self, end: int) -> int | None:
        """Make the image's own container."""
        self.account = self.service.with_trust(self.account)
        self.claim()
        return None

    def write(self, part: Part) -> None:
        """Store one segment; Swift answers with its md5."""
        name = f"{self.prefix}{part.number:08}"
        self._segments[part.number] = self._store_segment(name, Body(part.data))

    def put_whole(self, data: memoryview, digests: Digests) -> Committed:
        """Store a small image; where its md5 is known it is checked on arrival."""
        self._record(digests)
        self.claim()
        self._publish(Body(data, digests.checksum), {"Etag": digests.checksum} if digests.checksum else {})
        self._check_survival()
        return Committed(self.location)

    def commit(self, size: int, digests: Digests) -> Committed:
        """Publish the manifest of all segments."""
        self._record(digests)
        segments = [self._segments[number] for number in sorted(self._segments)]
        self.publish_segments(segments, size)
        return Committed(self.location)

    def abort(self) -> None:
        """Remove the image if it is this writer's, the segments and the container."""
        try:
            if self._published:
                self._unpublish()
            self.remove_segments(sorted(self._tried))
        finally:
            if self._claimed:
                self._unclaim()

    def close(self) -> None:
        """Revoke the trust, if there is one."""
        self.account.identity.close()

    def _store_segment(self, name: str, body: Body) -> Segment:
        self._tried.add(name)

        def put() -> Any:
            body.rewind()
            return self.account.put(self.segment_container, name, body=body, headers=self._object_headers())

        response = self._with_container(self.segment_container, put)
        self._check_etag({"Etag": self._etag_of(response, name)}, body)
        return Segment(self.segment_container, name, body.md5, len(body))

    def copy_segment(self, number: int, source: Segment) -> None:
        """The server copies one object into a segment of this image."""
        name = f"{self.prefix}{number:08}"
        self._tried.add(name)

        def put() -> Any:
            return self.account.put(
                self.segment_container, name, headers=self._copied(source), extra_timeout=source.size / SLOWEST
            )

        response = self._with_container(self.segment_container, put)
        self._segments[number] = Segment(self.segment_container, name, self._etag_of(response, name), source.size)

    def copy_whole(self, source: Segment, digests: Digests) -> Committed:
        """The server copies one object into this image."""
        self._record(digests)
        self.claim()
        self._publish(
            Body(memoryview(b"")), {**self._copied(source), "Content-Length": "0"}, extra_timeout=source.size / SLOWEST
        )
        found = self._published_by_me()
        if length_of(found) != source.size or etag_in(found) != source.etag:
            raise RemoteServiceUnavailable(f"Swift copied something else to {self.location}")
        self._check_survival()
        return Committed(self.location)


def open_writer(service: Service, image_id: str, context: Context | None) -> SwiftWriter:
    """Look whether there is such an image."""
    if service.multi_tenant and context is None:
        raise Forbidden(f"store {service.name} is multi-tenant: adding needs the context of a request")
    account = service.own_account(context)
    location = service.location_of(account, service.layout.container_for(image_id), image_id)
    if _exists(service, account, location):
        raise Duplicate(f"image {image_id!r} exists in store {service.name}")
    writer = SwiftWriter(service, account, location)
    service.live.begin(writer.token, writer)
    return writer


def _exists(service: Service, account: Account, location: SwiftLocation) -> bool:
    try:
        return account.find(location.container, location.obj) is not None
    except Forbidden:
        # Of a container that is not there, Swift says so too; making it will tell.
        if not service.layout.own:
            raise
        return False


class SwiftCopy(WriterCopy[SwiftWriter]):
    """One object copied to another, or segments to segments that get a manifest of their own."""

    def __init__(self, writer: SwiftWriter, size: int, segments: Sequence[Segment]) -> None:
        self._segments = segments
        self._whole = segments[0] if len(segments) == 1 else None
        super().__init__(writer, size, () if self._whole else [segment.size for segment in segments])
        self.concurrency = _SIDE_BY_SIDE
        self.moved_at_once = size if self._whole else 0

    def begin(self) -> None:
        """Make room for the segments."""
        if self._whole is None:
            super().begin()

    def copy_part(self, number: int, offset: int, length: int) -> None:
        """Copy one segment into this image's."""
        self.writer.copy_segment(number, self._segments[number])

    def commit(self, digests: Digests) -> Committed:
        """Copy the one object, or publish the manifest."""
        if self._whole is None:
            return super().commit(digests)
        return self.writer.copy_whole(self._whole, digests)


def open_copy(service: Service, source: SwiftLocation, image_id: str, context: Context | None) -> SwiftCopy | None:
    """None where the objects are of another account, or the server would not copy them as they are."""
    account = service.account_of(source, context)
    if account.url != service.own_account(context).url:
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
        segments = [Segment(source.container, source.obj, etag_in(headers), size)]
    return SwiftCopy(open_writer(service, image_id, context), size, segments)
