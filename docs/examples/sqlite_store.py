# SPDX-License-Identifier: Apache-2.0
"""A complete driver: images in one SQLite file. The guide "Writing a driver" walks through it.

Parts of an image are rows, written under a random token; one row in ``images`` makes them an image.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import sqlite3
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from oslo_config import cfg

from storelib.capabilities import COMPLETE
from storelib.driver import (
    Committed,
    Context,
    Deletion,
    Digests,
    Garbage,
    Health,
    ImageInfo,
    Part,
    Reader,
    Store,
    StoreLocation,
    Writer,
)
from storelib.exceptions import (
    BadStoreUri,
    Duplicate,
    NotFound,
    RemoteServiceUnavailable,
    StorageFull,
    StorageWriteDenied,
    StoreError,
)
from storelib.uris import quote, redact, unquote

TABLES = """
CREATE TABLE IF NOT EXISTS images (id TEXT PRIMARY KEY, token TEXT, size INTEGER, modified REAL);
CREATE TABLE IF NOT EXISTS uploads (token TEXT PRIMARY KEY, id TEXT, modified REAL);
CREATE TABLE IF NOT EXISTS parts (token TEXT, start INTEGER, data BLOB, PRIMARY KEY (token, start));
"""


# [location]
@dataclass(frozen=True, repr=False)
class SqliteLocation(StoreLocation):
    """``sqlite://<file>/<image id>``, both percent-encoded."""

    file: str
    image_id: str

    @classmethod
    def parse(cls, uri: str) -> SqliteLocation:
        """Split a URI into file and image id."""
        parts = uri.partition("://")[2].split("/")
        # There are no credentials in these URIs; what looks like one must not come back in a message.
        if len(parts) != 2 or not all(parts) or "@" in uri:
            raise BadStoreUri(f"expected sqlite://<file>/<image id>, not {redact(uri)}")
        return cls(unquote(parts[0], uri), unquote(parts[1], uri))

    @property
    def uri(self) -> str:
        """The URI of this location."""
        return f"sqlite://{quote(self.file)}/{quote(self.image_id)}"


# [options]
class SqliteStore(Store[SqliteLocation]):
    """Keeps images in one SQLite file."""

    schemes = ("sqlite",)
    location_class = SqliteLocation
    options = (
        cfg.StrOpt("sqlite_store_file", help="The database file, in a directory that exists."),
        cfg.FloatOpt("sqlite_store_timeout", default=60.0, min=0, help="Seconds to wait for another writer."),
    )
    capabilities = COMPLETE

    def configure_get(self) -> None:
        """Reading needs the name of the file."""
        if not self.conf.sqlite_store_file:
            raise self.misconfigured("sqlite_store_file", "the name of a file is needed")
        self.file: str = os.path.abspath(self.conf.sqlite_store_file)

    def configure_add(self) -> None:
        """Adding needs to write beside the file too (SQLite's log)."""
        if not os.access(os.path.dirname(self.file), os.W_OK):
            raise self.misconfigured("sqlite_store_file", f"cannot write in the directory of {self.file}")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A connection for this call only, so that threads and forks need no thought; all or nothing."""
        connection = sqlite3.connect(self.file, timeout=self.conf.sqlite_store_timeout)
        with contextlib.closing(connection), connection:
            connection.executescript("PRAGMA journal_mode = WAL;" + TABLES)
            yield connection

    # [errors]
    def map_error(self, error: Exception, subject: str) -> StoreError | None:
        """SQLite's errors as storelib's, here and nowhere else."""
        if not isinstance(error, sqlite3.Error):
            return None
        message = f"{subject}: {error}"
        if "disk is full" in str(error):
            return StorageFull(message)
        if "readonly" in str(error):
            return StorageWriteDenied(message)
        return RemoteServiceUnavailable(message, transient="locked" in str(error))

    # [reading]
    def owns(self, location: SqliteLocation) -> bool:
        """Whether the location names this store's file."""
        return location.file == self.file

    def inspect(self, location: SqliteLocation, context: Context | None) -> ImageInfo:
        """What is known of one image; raises NotFound."""
        with self.transaction() as db:
            row = db.execute("SELECT * FROM images WHERE id = ?", (location.image_id,)).fetchone()
        if row is None:
            raise NotFound(f"no image at {location}")
        return self.image_info(*row)

    def image_info(self, image_id: str, token: str, size: int, modified: float) -> ImageInfo:
        """A row of ``images`` in the terms of the contract."""
        return ImageInfo(SqliteLocation(self.file, image_id).uri, size, image_id, modified, version=token)

    def measure(self, location: SqliteLocation, context: Context | None) -> int:
        """The size in bytes."""
        return self.inspect(location, context).size

    def open_reader(
        self, location: SqliteLocation, offset: int, length: int | None, context: Context | None
    ) -> SqliteReader:
        """A reader of the image that is there now."""
        return SqliteReader(self, self.inspect(location, context))

    def candidate_locations(self, image_id: str) -> list[SqliteLocation]:
        """The only place where an image of this id can be."""
        return [SqliteLocation(self.file, image_id)]

    def images(self) -> Iterator[ImageInfo]:
        """All images."""
        with self.transaction() as db:
            for row in db.execute("SELECT * FROM images"):
                yield self.image_info(*row)

    def probe(self) -> Health:
        """Whether the file can be opened, and what is in it."""
        with self.transaction() as db:
            (count,) = db.execute("SELECT count(*) FROM images").fetchone()
        return Health(f"{count} images in {self.file}")

    # [writing]
    def open_writer(self, image_id: str, size: int | None, context: Context | None) -> SqliteWriter:
        """A writer; raises Duplicate early if the id is taken."""
        with self.transaction() as db:
            if db.execute("SELECT 1 FROM images WHERE id = ?", (image_id,)).fetchone():
                raise Duplicate(f"image {image_id!r} exists in store {self.name}")
        return SqliteWriter(self, image_id)

    def remove(self, location: SqliteLocation, context: Context | None, deletion: Deletion) -> None:
        """The image and its parts go together; tried again, not those of an image that took the place of the first."""
        with self.transaction() as db:
            db.execute("BEGIN IMMEDIATE")
            found = db.execute("SELECT token FROM images WHERE id = ?", (location.image_id,)).fetchone()
            if found is None:
                raise NotFound(f"no image at {location}")
            deletion.meet(*found, location)
            db.execute("DELETE FROM images WHERE token = ?", found)
            db.execute("DELETE FROM parts WHERE token = ?", found)

    # [gc]
    def garbage(self, older_than: float, prefix: str | None) -> Iterable[Garbage]:
        """Uploads whose writer is gone."""
        with self.transaction() as db:
            uploads = db.execute(
                "SELECT token, id, modified, (SELECT total(length(data)) FROM parts WHERE token = u.token)"
                " FROM uploads u WHERE modified <= ?",
                (time.time() - older_than,),
            ).fetchall()
        for token, image_id, modified, size in uploads:
            if image_id.startswith(prefix or "") and not self.is_alive(token):
                yield Garbage(token, image_id, int(size), modified)

    def is_alive(self, token: str) -> bool:
        """Whether a writer, of any store object in any process of this machine, holds the lock of this upload."""
        with contextlib.suppress(FileNotFoundError), open(f"{self.file}-locks", "rb") as file:
            return lock(file.fileno(), fcntl.F_OFD_GETLK, token) != fcntl.F_UNLCK
        return False

    def discard(self, garbage: Garbage) -> bool:
        """Forget one upload. The dead stay dead: a token is never used again."""
        with self.transaction() as db:
            db.execute("DELETE FROM parts WHERE token = (SELECT token FROM uploads WHERE token = ?)", (garbage.name,))
            return db.execute("DELETE FROM uploads WHERE token = ?", (garbage.name,)).rowcount == 1


def lock(file: int, command: int, token: str) -> int:
    """Lock the byte that stands for this token, or ask who has; returns the type of the lock that is there.

    Such a lock is one of the open file, not of the process, and the kernel frees it with the file, whatever becomes of
    us (fcntl(2), "open file description locks").
    """
    form = "hhqqi"
    wanted = struct.pack(form, fcntl.F_WRLCK, os.SEEK_SET, int(token[:15], 16), 1, 0)
    kind: int = struct.unpack(form, fcntl.fcntl(file, command, wanted))[0]
    return kind


# [writer]
class SqliteWriter(Writer):
    """Parts first, each in a transaction of its own; the row in ``images`` last."""

    def __init__(self, store: SqliteStore, image_id: str) -> None:
        self.store = store
        self.image_id = image_id
        self.token = secrets.token_hex(16)
        self.locks = -1
        self.announced = False
        self.put = self.put_whole

    def reserve(self, end: int) -> None:
        """Announce the upload before its first part, for ``garbage`` to find it if we die: locked first, then seen."""
        if self.announced:
            return
        if self.locks < 0:
            self.locks = os.open(f"{self.store.file}-locks", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            lock(self.locks, fcntl.F_OFD_SETLK, self.token)
        with self.store.transaction() as db:
            db.execute("INSERT OR IGNORE INTO uploads VALUES (?, ?, ?)", (self.token, self.image_id, time.time()))
        self.announced = True

    def write(self, part: Part) -> None:
        """Store one part; the second time replaces the first."""
        with self.store.transaction() as db:
            if not db.execute("UPDATE uploads SET modified = ? WHERE token = ?", (time.time(), self.token)).rowcount:
                raise self.gone()
            db.execute("INSERT OR REPLACE INTO parts VALUES (?, ?, ?)", (self.token, part.offset, part.data))

    def put_whole(self, data: memoryview, digests: Digests) -> Committed:
        """An image of one part: upload, part and image in one transaction, so nobody ever sees the upload."""
        with self.store.transaction() as db:
            db.execute("INSERT OR REPLACE INTO uploads VALUES (?, ?, ?)", (self.token, self.image_id, time.time()))
            db.execute("INSERT OR REPLACE INTO parts VALUES (?, 0, ?)", (self.token, data))
            return self.publish(db, len(data))

    def commit(self, size: int, digests: Digests) -> Committed:
        """Turn the upload into an image."""
        with self.store.transaction() as db:
            return self.publish(db, size)

    def publish(self, db: sqlite3.Connection, size: int) -> Committed:
        """One row, unless the id is taken or the upload is gone, which the same statement looks at.

        Our own token in the row that is there means that an earlier attempt went through.
        """
        row = "INSERT OR IGNORE INTO images SELECT id, token, ?, ? FROM uploads WHERE token = ?"
        db.execute(row, (size, time.time(), self.token))
        found = db.execute("SELECT token FROM images WHERE id = ?", (self.image_id,)).fetchone()
        if found is None:
            raise self.gone()
        if found[0] != self.token:
            raise Duplicate(f"image {self.image_id!r} exists in store {self.store.name}")
        db.execute("DELETE FROM uploads WHERE token = ?", (self.token,))
        return Committed(SqliteLocation(self.store.file, self.image_id))

    def gone(self) -> StoreError:
        """What we wrote was removed, by ``gc`` on another machine or by hand: nothing may be published without it."""
        return StoreError(f"what was written of image {self.image_id!r} is gone from store {self.store.name}")

    def abort(self) -> None:
        """Remove what carries our token. What this raises is logged, and the rest left to ``gc``."""
        with self.store.transaction() as db:
            for table in ("uploads", "parts", "images"):
                db.execute(f"DELETE FROM {table} WHERE token = ?", (self.token,))  # noqa: S608  (the names above)

    def close(self) -> None:
        """Give up the lock; also when we are dropped in the middle."""
        if self.locks >= 0:
            os.close(self.locks)
        self.locks = -1

    __del__ = close


# [reader]
class SqliteReader(Reader):
    """Reads the parts of one token: never those of another image that took the id meanwhile."""

    def __init__(self, store: SqliteStore, image: ImageInfo) -> None:
        self.store = store
        self.size = image.size
        self.uri = image.uri
        self.token = image.version

    def read_into(self, offset: int, view: memoryview) -> int:
        """Copy from the part that holds ``offset``; the engine asks again for the rest."""
        with self.store.transaction() as db:
            row = db.execute(
                "SELECT start, data FROM parts WHERE token = ? AND start <= ? ORDER BY start DESC LIMIT 1",
                (self.token, offset),
            ).fetchone()
        if row is None:
            raise NotFound(f"{redact(self.uri)} was deleted while it was read")
        start, data = row
        piece = memoryview(data)[offset - start :][: len(view)]
        view[: len(piece)] = piece
        return len(piece)
