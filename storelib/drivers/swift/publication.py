# SPDX-License-Identifier: Apache-2.0
"""How an image becomes visible: the claim on its id, and the one object, or the manifest of segments, that is it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from storelib.driver import Digests
from storelib.drivers.swift.errors import (
    CLAIM_HEADER,
    DEAD,
    DEAD_HEADER,
    MADE_HEADER,
    SEGMENTS_HEADER,
    TOKEN_HEADER,
    ContainerMissing,
    Headers,
    digest_headers,
    etag_in,
    length_of,
    manifest_type,
)
from storelib.drivers.swift.location import SwiftLocation
from storelib.drivers.swift.service import Account, Body, Service, new_token
from storelib.exceptions import Duplicate, RemoteServiceUnavailable, StorageWriteDenied, StoreError
from storelib.transfer.contract import MiB
from storelib.uris import quote

T = TypeVar("T")

# How often, and how many seconds apart, to look whether another client made a container.
_LOOKS, _BETWEEN_LOOKS = 4, 0.25
_COPY = "X-Copy-From"
_DYNAMIC = "X-Object-Manifest"
# Bytes that a server copies or checks in a second at least; longer requests are waited for accordingly.
SLOWEST = 4 * MiB


@dataclass(frozen=True)
class Segment:
    """An object that is a piece of an image."""

    container: str
    name: str
    etag: str
    size: int

    @property
    def entry(self) -> Mapping[str, object]:
        """The line of a manifest for it."""
        return {"path": f"/{self.container}/{self.name}", "etag": self.etag, "size_bytes": self.size}


class Publication:
    """One image and what it is made of. All of it carries a token, so that no more than that is taken away again."""

    def __init__(self, service: Service, account: Account, location: SwiftLocation) -> None:
        self.service = service
        self.account = account
        self.location = location
        self.token = new_token()
        self.container = location.container
        self.segment_container = service.layout.segment_container_for(self.container)
        self.prefix = f"{location.obj}/{self.token}/"
        delete_after = service.conf.swift_store_delete_after
        self._delete_at = int(time.time()) + delete_after if delete_after else None
        # Names that a request may have made, whatever its response.
        self._tried: set[str] = set()
        # The container: asked for before, made by this writer, and that written on it.
        self._unsure = self._claimed = self._marked = False
        self._published = False
        self._digest: Headers = {}

    def _record(self, digests: Digests) -> None:
        """What is published from now on tells its digest."""
        self._digest = digest_headers(digests)

    def _unpublish(self) -> None:
        if self.is_mine():
            self.account.remove(self.container, self.location.obj)

    def _unclaim(self) -> None:
        # Without a token it is this writer's that has not come to writing it on.
        found = self.account.find(self.container)
        if found is not None and found.get(CLAIM_HEADER, self.token) == self.token:
            self.account.remove(self.container)

    def claim(self) -> None:
        """Make the image's own container, which only one of several adds can."""
        if self._marked or not self.service.layout.own:
            return
        unsure, self._unsure = self._unsure, True
        headers = {**self._policy(), MADE_HEADER: "yes"}
        response = self._make(self.container, headers, "swift_store_container_per_image needs that")
        self._claimed = self._claimed or response.status_code == 201 or (unsure and self._is_left_alone())
        if not self._claimed:
            raise self._duplicate()
        self.account.post(self.container, headers={CLAIM_HEADER: self.token})
        self._marked = True

    def publish_segments(self, segments: Sequence[Segment], size: int) -> None:
        """Make an image of segments: static where the server can, else dynamic."""
        self.refuse_existing()
        features = self.service.features(self.account)
        headers = {
            SEGMENTS_HEADER: quote(f"{self.segment_container}/{self.prefix}"),
            "Content-Type": manifest_type(size),
        }
        if features.fits_static(len(segments)):
            self._publish_static(self._grouped(segments, features.most_segments), headers)
        else:
            self._publish_dynamic(segments, headers)
        if length_of(self._published_by_me()) != size:
            # A server without static large objects takes the manifest for an image.
            raise StoreError(f"Swift made an image of another size of the segments of {self.location}")
        if not features.checks_segments:
            self._check_segments(segments)
        self._check_survival()

    def _check_segments(self, segments: Sequence[Segment]) -> None:
        """Raise if one is not there as it was sent. radosgw does not look when it takes a manifest."""
        found = {(entry["name"], entry["hash"]) for entry in self._listed()}
        for segment in segments:
            if (segment.name, segment.etag) in found:
                continue
            # Listings may lag behind.
            headers = self.account.find(segment.container, segment.name) or {}
            if etag_in(headers) != segment.etag:
                raise self._lost_segments()

    def _check_survival(self) -> None:
        """Raise if gc began to remove this add, which it says before it looks whether there is an image (garbage.py).

        So of an add and a gc at the same time at least one sees the other.
        """
        if self.service.layout.own:
            container = self.account.find(self.container) or {}
            if container.get(CLAIM_HEADER) == self.token and not container.get(DEAD_HEADER):
                return
        elif not self._tried or self.account.find(self.segment_container, f"{self.prefix}{DEAD}") is None:
            return
        raise StoreError(f"{self.location} was taken for a failed add and removed while it was added, by gc perhaps")

    def _listed(self) -> Iterator[dict[str, Any]]:
        return self.account.listing(self.segment_container, prefix=self.prefix)

    def _lost_segments(self) -> StoreError:
        return StoreError(f"segments of {self.location} were removed or replaced while it was added, by gc perhaps")

    def refuse_existing(self) -> None:
        """Raise Duplicate if there is an image of this name that is not this writer's."""
        found = self.account.find(self.container, self.location.obj)
        if found is not None and found.get(TOKEN_HEADER) != self.token:
            raise self._duplicate()

    def is_mine(self) -> bool:
        """Whether the image that is there is this writer's."""
        found = self.account.find(self.container, self.location.obj)
        return found is not None and found.get(TOKEN_HEADER) == self.token

    def _published_by_me(self) -> Headers:
        """The headers of the image, which Swift says it has; raises Duplicate if another add came in between."""
        found = self.account.find(self.container, self.location.obj)
        if found is None:
            raise RemoteServiceUnavailable(f"Swift took {self.location}, but does not have it")
        if found.get(TOKEN_HEADER) != self.token:
            raise self._duplicate()
        return found

    def remove_segments(self, names: Sequence[str]) -> None:
        """Remove segments of this image, several at a time."""
        self.service.for_each(lambda name: self.account.remove(self.segment_container, name), names, self.location)

    def _publish_static(self, segments: Sequence[Segment], headers: dict[str, str]) -> None:
        manifest = json.dumps([segment.entry for segment in segments]).encode()
        # The server looks at every segment before it answers.
        self._publish(Body(memoryview(manifest)), headers, "multipart-manifest=put", extra_timeout=len(segments) / 10)

    def _publish_dynamic(self, segments: Sequence[Segment], headers: dict[str, str]) -> None:
        found = {(entry["name"], entry["bytes"]) for entry in self._listed()}
        if not {(segment.name, segment.size) for segment in segments} <= found:
            # Such an image is what the listing says, and listings may lag behind.
            raise RemoteServiceUnavailable(f"Swift does not list all segments of {self.location} yet")
        headers[_DYNAMIC] = f"{quote(self.segment_container)}/{quote(self.prefix)}"
        self._publish(Body(memoryview(b"")), headers)

    def _publish(self, body: Body, headers: dict[str, str], query: str = "", extra_timeout: float = 0.0) -> None:
        """One object that is the image or its manifest, unless there is one already, before or after."""
        headers = {**self._object_headers(), TOKEN_HEADER: self.token, **self._digest, **headers}
        # With a copy the condition would be one on its source.
        if _COPY not in headers and self.service.features(self.account).conditional:
            headers["If-None-Match"] = "*"
        else:
            self.refuse_existing()
        self._published = True
        data = body if len(body) else b""

        def put() -> Any:
            body.rewind()
            return self.account.put(
                self.container,
                self.location.obj,
                body=data,
                headers=headers,
                query=query,
                extra_timeout=extra_timeout,
                accept=(400, 412) if query else (412,),
            )

        response = self._with_container(self.container, put)
        if response.status_code == 400:
            raise self._lost_segments()
        plain = not query and _COPY not in headers and _DYNAMIC not in headers
        found: Headers = response.headers
        # 412 is also what a second attempt gets. And only the md5 of bytes, where nobody else can have come later and
        # won, is as good a proof as the image with this writer's token.
        if response.status_code != 201 or not plain or not self.service.layout.own:
            found = self._published_by_me()
        if plain and response.status_code == 412:
            if length_of(found) != len(body):
                raise RemoteServiceUnavailable(f"Swift has another part of {self.location} than was sent")
        elif plain:
            self._check_etag(response.headers if etag_in(response.headers) else found, body)

    def _grouped(self, segments: Sequence[Segment], limit: int) -> Sequence[Segment]:
        """More segments than fit in one manifest: manifests of manifests."""
        if len(segments) <= limit:
            return segments
        groups = [segments[start : start + limit] for start in range(0, len(segments), limit)]
        return [self._store_group(number, group) for number, group in enumerate(groups)]

    def _store_group(self, number: int, segments: Sequence[Segment]) -> Segment:
        name = f"{self.prefix}group-{number:08}"
        self._tried.add(name)
        manifest = json.dumps([segment.entry for segment in segments]).encode()
        response = self.account.put(
            self.segment_container,
            name,
            body=manifest,
            headers=self._object_headers(),
            query="multipart-manifest=put",
            extra_timeout=len(segments) / 10,
        )
        etag = self._etag_of(response, name)
        return Segment(self.segment_container, name, etag, sum(segment.size for segment in segments))

    # -- Parts --------------------------------------------------------------------------------------------------------

    def _copied(self, source: Segment) -> dict[str, str]:
        origin = f"{quote(source.container)}/{quote(source.name)}"
        return {**self._object_headers(), _COPY: origin, "X-Fresh-Metadata": "true", "Content-Length": "0"}

    def _etag_of(self, response: Any, name: str) -> str:
        """The ETag of a segment that was just made; with 202 Swift says that it has a later one, whosever it is."""
        etag = etag_in(response.headers)
        return (
            etag if etag and response.status_code == 201 else etag_in(self.account.head(self.segment_container, name))
        )

    @staticmethod
    def _check_etag(headers: Headers, body: Body) -> None:
        if etag_in(headers) != body.md5:
            raise RemoteServiceUnavailable("Swift stored other bytes than were sent")

    # -- Containers ---------------------------------------------------------------------------------------------------

    def _with_container(self, container: str, call: Callable[[], T]) -> T:
        """``call()``, and if the container is missing and may be made, once more after that."""
        try:
            return call()
        except ContainerMissing:
            if self.service.layout.own:
                # It was there, and the add that makes it anew need not be the one that claimed it.
                raise StoreError(f"the container of {self.location} was removed while it was added") from None
            if not self.service.conf.swift_store_create_container_on_put:
                raise
        self._make(container, self._policy_for(container), "have it made for it")
        return call()

    def _make(self, container: str, headers: Headers, why: str) -> Any:
        """Make a container; with 409 there is one of another storage policy."""
        try:
            return self.account.put(container, headers=headers, accept=(409,))
        except StorageWriteDenied:
            raise StorageWriteDenied(f"this user may not make the container {quote(container)}: {why}") from None

    def _policy_for(self, container: str) -> dict[str, str]:
        """Segments are kept as safe, and as cheap, as the images they belong to."""
        found = self.account.find(self.container) if container != self.container else None
        policy = (found or {}).get("X-Storage-Policy")
        return {"X-Storage-Policy": policy} if policy else self._policy()

    def _is_left_alone(self) -> bool:
        """Whether it was an earlier attempt of this writer, whose response was lost, that made the container.

        Another writer that made it would have said so by now.
        """
        for _ in range(_LOOKS):
            token = (self.account.find(self.container) or {}).get(CLAIM_HEADER)
            if token:
                return token == self.token
            time.sleep(_BETWEEN_LOOKS)
        return True

    def _policy(self) -> dict[str, str]:
        policy = self.service.conf.swift_store_storage_policy
        return {"X-Storage-Policy": policy} if policy else {}

    def _object_headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/octet-stream"}
        if self._delete_at:
            headers["X-Delete-At"] = str(self._delete_at)
        return headers

    def _duplicate(self) -> Duplicate:
        return Duplicate(f"image {self.location.obj!r} exists in store {self.service.name}")
