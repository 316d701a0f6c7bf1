# SPDX-License-Identifier: Apache-2.0
"""The smallest driver that keeps its promises: adds, reads and deletes images in one SQLite file.

What it leaves out, listings, ``stat``, ``check`` and ``gc``, is in ``sqlite_store.py`` beside it.
"""

from __future__ import annotations

import secrets
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from oslo_config import cfg

from storelib.capabilities import Capability
from storelib.driver import Committed, Context, Deletion, Digests, Part, Reader, Store, StoreLocation, Writer
from storelib.exceptions import BadStoreUri, Duplicate, NotFound, RemoteServiceUnavailable
from storelib.uris import quote, redact, unquote

TABLES = """
CREATE TABLE IF NOT EXISTS images (id TEXT PRIMARY KEY, token TEXT, size INTEGER);
CREATE TABLE IF NOT EXISTS parts (token TEXT, start INTEGER, data BLOB, PRIMARY KEY (token, start));
"""


@dataclass(frozen=True, repr=False)
class MinimalLocation(StoreLocation):
    """``minimal://<name of the store>/<image id>``, percent-encoded."""

    store: str
    image_id: str

    @classmethod
    def parse(cls, uri: str) -> MinimalLocation:
        """Two parts, neither of them empty."""
        parts = uri.partition("://")[2].split("/")
        if len(parts) != 2 or not all(parts) or "@" in uri:
            raise BadStoreUri(f"expected minimal://<store>/<image id>, not {redact(uri)}")
        return cls(unquote(parts[0], uri), unquote(parts[1], uri))

    @property
    def uri(self) -> str:
        """The URI, which ``parse`` reads."""
        return f"minimal://{quote(self.store)}/{quote(self.image_id)}"


class MinimalStore(Store[MinimalLocation]):
    """Without GC: what an add leaves whose process dies stays until it is removed by hand."""

    schemes = ("minimal",)
    location_class = MinimalLocation
    options = (cfg.StrOpt("minimal_store_file", help="The database file, in a directory that exists."),)
    capabilities = Capability.READ | Capability.RANGE | Capability.ADD | Capability.DELETE | Capability.ATOMIC_ADD

    def configure_get(self) -> None:
        """Nothing is opened here."""
        if not self.conf.minimal_store_file:
            raise self.misconfigured("minimal_store_file", "the name of a file is needed")

    def run(self, *statements: tuple[str, tuple[Any, ...]]) -> list[Any]:
        """Statements in one transaction of a connection of their own; returns the rows of the last one."""
        with closing(sqlite3.connect(self.conf.minimal_store_file, timeout=60)) as db, db:
            db.executescript(TABLES)
            rows: list[Any] = []
            for statement, values in statements:
                rows = db.execute(statement, values).fetchall()
            return rows

    def map_error(self, error: Exception, subject: str) -> RemoteServiceUnavailable | None:
        """SQLite's errors; a locked file is worth another try."""
        if not isinstance(error, sqlite3.Error):
            return None
        return RemoteServiceUnavailable(f"{subject}: {error}", transient="locked" in str(error))

    def owns(self, location: MinimalLocation) -> bool:
        """Whether the URI names this store."""
        return location.store == self.name

    def image(self, location: MinimalLocation) -> tuple[str, int]:
        """The token of an image and its size in bytes; raises NotFound."""
        rows = self.run(("SELECT token, size FROM images WHERE id = ?", (location.image_id,)))
        if not rows:
            raise NotFound(f"no image at {location}")
        token, size = rows[0]
        return token, size

    def measure(self, location: MinimalLocation, context: Context | None) -> int:
        """The size of an image in bytes."""
        return self.image(location)[1]

    def open_reader(
        self, location: MinimalLocation, offset: int, length: int | None, context: Context | None
    ) -> MinimalReader:
        """Of the image that is there now."""
        return MinimalReader(self, location, *self.image(location))

    def open_writer(self, image_id: str, size: int | None, context: Context | None) -> MinimalWriter:
        """A writer, which makes nothing yet."""
        return MinimalWriter(self, MinimalLocation(self.name, image_id))

    def remove(self, location: MinimalLocation, context: Context | None, deletion: Deletion) -> None:
        """The image first, so that nobody finds it without its parts."""
        token, _ = self.image(location)
        gone = self.run(("DELETE FROM images WHERE token = ? RETURNING id", (token,)))
        self.run(("DELETE FROM parts WHERE token = ?", (token,)))
        if not gone:
            raise NotFound(f"no image at {location}")


class MinimalWriter(Writer):
    """Parts under a random token; the row in ``images`` makes them an image."""

    def __init__(self, store: MinimalStore, location: MinimalLocation) -> None:
        self.store = store
        self.location = location
        self.token = secrets.token_hex(16)

    def write(self, part: Part) -> None:
        """Written again it is the same part."""
        self.store.run(("INSERT OR REPLACE INTO parts VALUES (?, ?, ?)", (self.token, part.offset, part.data)))

    def commit(self, size: int, digests: Digests) -> Committed:
        """Our own token in the row says that an earlier attempt went through."""
        image_id = self.location.image_id
        rows = self.store.run(
            ("INSERT OR IGNORE INTO images VALUES (?, ?, ?)", (image_id, self.token, size)),
            ("SELECT token FROM images WHERE id = ?", (image_id,)),
        )
        if rows != [(self.token,)]:
            raise Duplicate(f"image {image_id!r} exists in store {self.store.name}")
        return Committed(self.location)

    def abort(self) -> None:
        """What carries our token, and nothing else."""
        self.store.run(
            ("DELETE FROM images WHERE token = ?", (self.token,)), ("DELETE FROM parts WHERE token = ?", (self.token,))
        )


class MinimalReader(Reader):
    """Reads the parts of one token, whatever becomes of the id."""

    def __init__(self, store: MinimalStore, location: MinimalLocation, token: str, size: int) -> None:
        self.store = store
        self.location = location
        self.token = token
        self.size = size

    def read_into(self, offset: int, view: memoryview) -> int:
        """From the part that holds ``offset``; the engine asks again for the rest."""
        part = "SELECT start, data FROM parts WHERE token = ? AND start <= ? ORDER BY start DESC LIMIT 1"
        rows = self.store.run((part, (self.token, offset)))
        if not rows:
            raise NotFound(f"{self.location} was deleted while it was read")
        start, data = rows[0]
        piece = memoryview(data)[offset - start :][: len(view)]
        view[: len(piece)] = piece
        return len(piece)
