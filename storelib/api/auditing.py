# SPDX-License-Identifier: Apache-2.0
"""Audit: whether the database and the stores agree exactly, and if not, each place where they do not.

The stores' listings go to a temporary table on disk, then the database is read in the order of ids beside it, so that
memory stays bounded. Servers may be at work meanwhile: whatever seems wrong is looked at once more before it is told.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, NamedTuple

from storelib.api.db import Repository
from storelib.api.db.records import AuditRow, Image, ImageLocation
from storelib.api.db.statuses import UPLOADING, WITH_DATA
from storelib.api.errors import ImageNotFound
from storelib.api.service.core import store_of
from storelib.api.service.rate_limit import RateLimit
from storelib.api.service.tasks import awaits_stage
from storelib.capabilities import Capability
from storelib.driver import ImageInfo, Store
from storelib.exceptions import BadStoreConfiguration, BadStoreUri, NotFound, StoreError
from storelib.registry import Registry
from storelib.transfer.digests import Hasher, new_hasher
from storelib.uris import redact

Kind = Literal[
    "missing", "orphan", "size", "digest", "unreadable", "unchecked", "nowhere", "stuck", "shared", "staged", "leftover"
]
#: What each kind of finding means.
KINDS: dict[Kind, str] = {
    "missing": "an image has a location where there is no data",
    "orphan": "there is data that no image has",
    "size": "the data has another size than the image",
    "digest": "the data has another digest than the image",
    "unreadable": "the data cannot be read to its end",
    "unchecked": "a store did not answer, so nothing is known",
    "nowhere": "an image has no location, or one in none of the configured stores",
    "stuck": "an image waits for data that nobody sends",
    "shared": "two images have the same data, so that deleting one breaks the other",
    "staged": "there is staged data that no image waits for, or it is missing",
    "leftover": "a failed add left something behind; see: storelib gc",
}

#: The kinds that only a list of everything shows.
LISTED: frozenset[Kind] = frozenset({"orphan", "shared", "staged", "leftover", "stuck", "nowhere"})

#: What the staging directory is called in findings.
STAGING = "(staging)"
_BATCH = 1000
_BUFFER = 1024 * 1024

_TABLE = """
CREATE TABLE found (
    store TEXT NOT NULL, uri TEXT NOT NULL, size INTEGER NOT NULL, image_id TEXT, owner TEXT,
    PRIMARY KEY (store, uri)
) WITHOUT ROWID
"""


class Finding(NamedTuple):
    """One disagreement. ``uri`` is redacted; what does not apply is None."""

    kind: Kind
    image_id: str | None
    store: str | None
    uri: str | None
    detail: str


@dataclass
class Counts:
    """What was looked at. ``pending`` locations are to be deleted by the servers and count as agreed."""

    images: int = 0
    locations: int = 0
    pending: int = 0
    stored: int = 0
    read: int = 0
    findings: dict[Kind, int] = field(default_factory=dict)


class Audit:
    """One comparison. ``deep`` reads all data and computes its digests; ``older_than`` is in seconds.

    ``stores`` are the names of those to look at, by default all; then images without any data are nobody's. ``staging``
    is the store of staged data. ``rate_limit`` is for reading, ``progress(bytes)`` is told how much was read.
    """

    def __init__(
        self,
        repository: Repository,
        registry: Registry,
        *,
        stores: Collection[str] | None = None,
        staging: Store[Any] | None = None,
        deep: bool = False,
        older_than: float = 86400.0,
        rate_limit: RateLimit | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.counts = Counts()
        self._stores = [store for store in registry if stores is None or store.name in stores]
        self._only = stores
        self._rate_limit = rate_limit or RateLimit(None)
        self._repository = repository
        self._registry = registry
        self._staging = staging
        self._deep = deep
        self._older_than = older_than
        self._progress = progress
        self._listed: set[str] = set()
        self._buffer = memoryview(bytearray(_BUFFER if deep else 0))

    def run(self) -> Iterator[Finding]:
        """Every disagreement; what cannot be asked is one, too. Raises DatabaseUnavailable."""
        # An empty name: a database of SQLite's own on disk, gone when it is closed.
        found = sqlite3.connect("", isolation_level=None)
        try:
            found.execute("PRAGMA journal_mode = OFF")
            found.execute(_TABLE)
            for finding in self._all(found):
                self.counts.findings[finding.kind] = self.counts.findings.get(finding.kind, 0) + 1
                yield finding
        finally:
            found.close()

    def check(self, row: AuditRow) -> Iterator[Finding]:
        """What is wrong with one image, by itself: nothing is listed. Raises DatabaseUnavailable."""
        with closing(sqlite3.connect("", isolation_level=None)) as nothing:
            nothing.execute(_TABLE)
            yield from self._check_row(nothing, row)

    def _all(self, found: sqlite3.Connection) -> Iterator[Finding]:
        for name, disabled in self._registry.disabled.items():
            if self._only is not None and name not in self._only:
                continue
            yield Finding("unchecked", None, name, None, f"the store is disabled: {disabled.reason}")
        for store in self._stores:
            if Capability.LIST in store.capabilities:
                yield from self._list(found, store, store.name)
        if self._staging is not None:
            yield from self._list(found, self._staging, STAGING)
        for row in self._repository.images.audit(_BATCH):
            yield from self._check_row(found, row)
        yield from self._unknown(found)
        for store in self._stores:
            if Capability.GC in store.capabilities:
                yield from self._leftovers(store)

    # -- listings -----------------------------------------------------------------------------------------------------

    def _list(self, found: sqlite3.Connection, store: Store[Any], name: str) -> Iterator[Finding]:
        failures: list[StoreError] = []
        images = _until_failure(store, failures)
        while batch := list(islice(images, _BATCH)):
            rows = [(name, uri, info.size, info.image_id) for uri, info in batch]
            found.execute("BEGIN")
            found.executemany("INSERT OR REPLACE INTO found (store, uri, size, image_id) VALUES (?, ?, ?, ?)", rows)
            found.execute("COMMIT")
            self.counts.stored += len(batch) if name != STAGING else 0
        for error in failures:
            yield Finding("unchecked", None, name, None, f"its images cannot be listed: {error}")
        if not failures:
            self._listed.add(name)

    # -- images -------------------------------------------------------------------------------------------------------

    def _check_row(self, found: sqlite3.Connection, row: AuditRow) -> Iterator[Finding]:
        self.counts.images += 1
        if self._only is None:
            yield from self._check_status(found, row)
        for location in row.locations:
            if not self._concerns(location):
                continue
            if location.status != "active":
                self.counts.pending += 1
                self._claim(found, row, location)
            else:
                self.counts.locations += 1
                yield from self._check_location(found, row, location)

    def _check_status(self, found: sqlite3.Connection, row: AuditRow) -> Iterator[Finding]:
        # An image of version 1 that is said to have no bytes is active without data.
        expected = row.status in WITH_DATA and row.size != 0
        if expected and not any(location.status == "active" for location in row.locations):
            image = self._again(row.id)
            if image is not None and image.status in WITH_DATA and not image.locations:
                yield Finding("nowhere", row.id, None, None, f"the image is {image.status} and has no location")
        if row.status not in UPLOADING:
            return
        staged = found.execute(
            "UPDATE found SET owner = ? WHERE store = ? AND image_id = ?", (row.id, STAGING, row.id)
        ).rowcount
        if self._repository.uploads.get(row.id) is not None:
            return
        image = self._again(row.id)
        if image is None or image.status != row.status or self._repository.uploads.get(row.id) is not None:
            return
        if row.status != "uploading":
            yield Finding("stuck", row.id, None, None, f"the image is {row.status} and no process works on it")
        elif STAGING in self._listed and not staged and not self._is_staged(row.id):
            yield Finding("staged", row.id, STAGING, None, "the image is uploading, and its staged data is missing")

    def _is_staged(self, image_id: str) -> bool:
        return self._staging is not None and any(info.image_id == image_id for info in self._staging.list_images())

    def _check_location(self, found: sqlite3.Connection, row: AuditRow, location: ImageLocation) -> Iterator[Finding]:
        try:
            store = store_of(self._registry, location)
            uri = store.uri_of(location.uri)
        except NotFound:
            # Several stores might have it, and all were asked.
            yield from self._missing(row, location, None)
            return
        except (BadStoreUri, BadStoreConfiguration) as error:
            yield from self._if_still_there(
                row, location, Finding("nowhere", row.id, None, _shown(location), str(error))
            )
            return
        except StoreError as error:
            yield Finding("unchecked", row.id, None, _shown(location), str(error))
            return
        size, owner = self._claim(found, row, location, store, uri)
        if size is None or size != row.size:
            # Not listed, or not as expected: it may be newer than the listing.
            try:
                size = store.get_size(location.uri)
            except NotFound:
                yield from self._missing(row, location, store.name)
                return
            except StoreError as error:
                yield Finding("unchecked", row.id, store.name, _shown(location), str(error))
                return
        if size != row.size:
            detail = f"the image has {row.size} bytes, the data {size}"
            yield from self._if_still_there(
                row, location, Finding("size", row.id, store.name, _shown(location), detail), row.size
            )
            return
        if owner is not None and Capability.DELETE in store.capabilities:
            yield from self._if_still_there(
                row, location, Finding("shared", row.id, store.name, _shown(location), f"image {owner} has it, too")
            )
        if self._deep:
            yield from self._read(row, location, store)

    def _claim(
        self,
        found: sqlite3.Connection,
        row: AuditRow,
        location: ImageLocation,
        store: Store[Any] | None = None,
        uri: str | None = None,
    ) -> tuple[int | None, str | None]:
        """Note that an image has this data; returns its size if it is listed, and which other image has it already."""
        try:
            store = store or store_of(self._registry, location)
            key = (store.name, uri or store.uri_of(location.uri))
        except StoreError:
            return None, None
        listed = found.execute("SELECT size, owner FROM found WHERE store = ? AND uri = ?", key).fetchone()
        if listed is None:
            return None, None
        if listed[1] is None:
            found.execute("UPDATE found SET owner = ? WHERE store = ? AND uri = ?", (row.id, *key))
        return listed[0], listed[1] if listed[1] != row.id else None

    def _missing(self, row: AuditRow, location: ImageLocation, store: str | None) -> Iterator[Finding]:
        yield from self._if_still_there(
            row, location, Finding("missing", row.id, store, _shown(location), "there is no data at this location")
        )

    def _if_still_there(
        self, row: AuditRow, location: ImageLocation, finding: Finding, size: int | None = None
    ) -> Iterator[Finding]:
        """The finding, unless the image was changed or deleted since it was read."""
        image = self._again(row.id)
        if image is None or (size is not None and image.size != size):
            return
        if any(current.id == location.id for current in image.locations):
            yield finding

    def _concerns(self, location: ImageLocation) -> bool:
        """Whether it may be in one of the stores that are looked at."""
        if self._only is None:
            return True
        try:
            return store_of(self._registry, location).name in self._only
        except StoreError:
            return False

    def _again(self, image_id: str) -> Image | None:
        try:
            return self._repository.images.get(image_id)
        except ImageNotFound:
            return None

    # -- data ---------------------------------------------------------------------------------------------------------

    def _read(self, row: AuditRow, location: ImageLocation, store: Store[Any]) -> Iterator[Finding]:
        expected = [
            (algorithm, digest)
            for algorithm, digest in (("md5", row.checksum), (row.os_hash_algo, row.os_hash_value))
            if algorithm and digest
        ]
        try:
            hashers = [_hasher(algorithm) for algorithm, _ in expected]
            with store.get(location.uri).data as stream:
                while count := stream.readinto(self._buffer):
                    for hasher in hashers:
                        hasher.update(self._buffer[:count])
                    self.counts.read += count
                    self._rate_limit.spend(count)
                    if self._progress is not None:
                        self._progress(self.counts.read)
        except NotFound:
            yield from self._missing(row, location, store.name)
            return
        except StoreError as error:
            yield from self._if_still_there(
                row, location, Finding("unreadable", row.id, store.name, _shown(location), str(error))
            )
            return
        for (algorithm, digest), hasher in zip(expected, hashers, strict=True):
            if (value := hasher.hexdigest()) != digest.lower():
                detail = f"the image has {algorithm} {digest}, the data {value}"
                yield from self._if_still_there(
                    row, location, Finding("digest", row.id, store.name, _shown(location), detail)
                )

    # -- what no image has --------------------------------------------------------------------------------------------

    def _unknown(self, found: sqlite3.Connection) -> Iterator[Finding]:
        for name, uri, size, image_id in _rows(found):
            if image_id is not None and self._explains(image_id, name, uri):
                continue
            if name == STAGING:
                detail = f"{size} bytes are staged, and no image waits for them"
                yield Finding("staged", image_id, name, redact(uri), detail)
                continue
            try:
                size = self._registry[name].get_size(uri)
            except NotFound:
                continue
            except StoreError as error:
                yield Finding("unchecked", image_id, name, redact(uri), str(error))
                continue
            yield Finding("orphan", image_id, name, redact(uri), f"there are {size} bytes that no image has")

    def _explains(self, image_id: str, store: str, uri: str) -> bool:
        """Whether the image of this id has come to have this data since, or a process is writing it."""
        # In this order: what is written becomes a location before the upload ends.
        upload = self._repository.uploads.get(image_id)
        if upload is not None and (store == STAGING or store in upload.stores):
            return True
        image = self._again(image_id)
        if store == STAGING:
            return image is not None and awaits_stage(image)
        locations = [*(image.locations if image else ()), *self._repository.locations.pending_for(image_id)]
        return any(
            # What a store may have of a failed upload is looked for in it, and deleted then.
            _is_at(self._registry[store], location, uri) if location.uri else location.metadata.get("store") == store
            for location in locations
        )

    def _leftovers(self, store: Store[Any]) -> Iterator[Finding]:
        try:
            for item in store.find_garbage(self._older_than):
                if item.image_id is None or self._repository.uploads.get(item.image_id) is None:
                    yield Finding("leftover", item.image_id, store.name, None, f"{item.name}, {item.size} bytes")
        except StoreError as error:
            yield Finding("unchecked", None, store.name, None, f"its leftovers cannot be listed: {error}")


def _until_failure(store: Store[Any], failures: list[StoreError]) -> Iterator[tuple[str, ImageInfo]]:
    """The images of a store with their URIs; an error ends them, behind all that were listed before."""
    try:
        for info in store.list_images():
            yield info.uri, info
    except StoreError as error:
        failures.append(error)


def _rows(found: sqlite3.Connection) -> Iterable[tuple[str, str, int, str | None]]:
    return found.execute("SELECT store, uri, size, image_id FROM found WHERE owner IS NULL ORDER BY store, uri")


def _hasher(algorithm: str) -> Hasher:
    return hashlib.md5(usedforsecurity=False) if algorithm == "md5" else new_hasher(algorithm)


def _is_at(store: Store[Any], location: ImageLocation, uri: str) -> bool:
    try:
        return store.uri_of(location.uri) == uri
    except BadStoreUri:
        return False


def _shown(location: ImageLocation) -> str:
    return redact(location.uri)
