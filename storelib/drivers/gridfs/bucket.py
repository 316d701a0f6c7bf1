# SPDX-License-Identifier: Apache-2.0
"""Bucket: the two collections of a store, their indexes and what an image looks like in them; one MongoClient.

Nothing here decides what becomes visible: that is publication.py.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import os
import re
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from storelib.driver import Digest
from storelib.drivers.gridfs.errors import BAD_VALUE, UNAUTHORIZED
from storelib.drivers.gridfs.location import GridfsLocation
from storelib.exceptions import BadStoreConfiguration, MissingDependency, NotFound, StoreError, misconfigured
from storelib.extras import needs
from storelib.times import posix_seconds
from storelib.transfer.certificates import check_certificates
from storelib.transfer.contract import KiB, MiB, Options
from storelib.transfer.forking import forget_in_child
from storelib.transfer.live import LiveAdds

#: Bytes of one request, or one chunk if that is more. Larger ones only cost memory: the client copies each twice.
PART = 4 * MiB
#: Chunks that one request deletes, so that none takes long.
_SLICE = 2048
#: Documents that one response of a listing brings, so that its memory does not depend on the server's choice (16 MiB).
PAGE = 1000
#: Seconds that telling the server good-bye may take.
_FAREWELL = 1.0
#: Of mongodb_store_socket_timeout, what the server may wait for other members, so that its response still arrives.
_SHARE = 0.9

_OURS = "metadata.storelib"
#: The id of a published image; a unique index holds it. An add under way has the other field instead.
IMAGE = f"{_OURS}.image"
PENDING = f"{_OURS}.pending"


class Index(NamedTuple):
    """Its fields, all ascending, and its options; ``needed`` if adds are not safe without it."""

    fields: tuple[str, ...]
    options: dict[str, bool]
    needed: bool = True

    @property
    def key(self) -> list[tuple[str, int]]:
        """The fields in the form that MongoDB takes and returns."""
        return [(field, 1) for field in self.fields]


_BY_ID = Index((IMAGE,), {"unique": True, "sparse": True})
#: The second is for ``gc``, the third for other clients.
_OF_FILES = (_BY_ID, Index((PENDING,), {"sparse": True}, needed=False), Index(("filename", "uploadDate"), {}, False))
_OF_CHUNKS = (Index(("files_id", "n"), {"unique": True}),)


@dataclass(frozen=True)
class Stored:
    """A document of the files collection, understood; sizes are in bytes."""

    files_id: Any
    image_id: str | None
    size: int
    chunk_size: int
    modified: float | None
    #: The time as the document has it, whatever that is.
    uploaded: Any
    metadata: Mapping[str, Any]

    @property
    def chunks(self) -> int:
        """How many chunks there must be."""
        return count_chunks(self.size, self.chunk_size)


class Bucket:
    """Which server, database and bucket; raises BadStoreConfiguration for options that cannot be.

    Safe to use from many threads. Making one opens no connection.
    """

    def __init__(self, conf: Options, store_name: str) -> None:
        self.store_name = store_name
        #: Bytes of a chunk of new images.
        self.chunk_size: int = conf.mongodb_store_chunk_size * KiB
        #: Requests of one transfer in flight at most.
        self.concurrency: int = conf.mongodb_store_concurrency
        #: By the _id of their records, the adds still in use that this store began, which its gc spares; no add
        #: depends on it.
        self.live: LiveAdds[object] = LiveAdds()
        self._conf = conf
        if importlib.util.find_spec("pymongo") is None:
            raise MissingDependency(needs("the gridfs driver", "gridfs", "pymongo"))
        self._uri = self._checked_uri()
        self.database_name = self._checked_database()
        self._check_bucket()
        self._options = self._client_options()
        self._lock = threading.Lock()
        self._client: Any = None
        self._closing: weakref.finalize[Any, Any] | None = None
        self._inherited: list[Any] = []
        self._prepared = False
        # Whether the index of the ids is there was seen once.
        self._indexed = False
        forget_in_child(self)

    @property
    def hosts(self) -> list[str]:
        """The servers that the connection string names, as host:port."""
        authority = self._uri.partition("://")[2].partition("?")[0].partition("/")[0].rpartition("@")[2].lower()
        names = [name.strip() for name in authority.split(",")]
        return [name if re.search(r":[0-9]+$", name) else f"{name}:27017" for name in names]

    def get(self) -> Any:
        """The MongoClient, made at first use."""
        client = self._client
        if client is None:
            with self._lock:
                client = self._client = self._client or self._new()
        return client

    @property
    def files(self) -> Any:
        """The collection with one document for each image, for reading."""
        return self._collection("files")

    @property
    def chunks(self) -> Any:
        """The collection of their bytes, for reading."""
        return self._collection("chunks")

    @property
    def files_at_primary(self) -> Any:
        """The first for writing and for reading what was just written; every write is in the journal."""
        return self._at_primary(self.files, journal=True)

    @property
    def chunks_at_primary(self) -> Any:
        """The second for writing and for reading what was just written."""
        return self._at_primary(self.chunks, journal=self._conf.mongodb_store_journal)

    def prepare(self) -> None:
        """Before the first add: see that writes are confirmed as configured, and make the indexes that are not there.

        Raises BadStoreConfiguration, and then nothing was written.
        """
        if self._prepared:
            return
        from bson import ObjectId

        # What deletes nothing is confirmed like any write.
        self.files_at_primary.delete_one({"_id": ObjectId()})
        _make_indexes(self.files_at_primary, _OF_FILES, self.store_name)
        _make_indexes(self.chunks_at_primary, _OF_CHUNKS, self.store_name)
        self._prepared = self._indexed = True

    def find(self, location: GridfsLocation, files: Any = None) -> Stored:
        """What the files collection, or the given view of it, says of an image; raises NotFound."""
        found = self._documents(self.files if files is None else files, location.image_id)
        if not found:
            raise NotFound(f"there is no image {location} in store {self.store_name}")
        return understood(max(found, key=is_ours))

    def _documents(self, files: Any, image_id: str) -> list[Any]:
        """The documents of an image; by ``_id`` if possible where another client's bucket lacks our index."""
        from pymongo.errors import OperationFailure

        if not self._indexed:
            try:
                found = list(files.find({IMAGE: image_id}).hint(_BY_ID.key))
                # Where there is nothing at all, no index is missed either.
                self._indexed = bool(found)
            except OperationFailure as error:
                if error.code != BAD_VALUE:
                    raise
                found = list(files.find(image_of_others(image_id)))
            if found:
                return found
        return list(files.find(image_with_id(image_id)))

    def remove_chunks(self, files_id: Any) -> int:
        """All chunks of one file, some at a time; never twice in one place, where another client may add meanwhile.

        Returns how many there were.
        """
        chunks = self.chunks_at_primary
        rest = {"files_id": files_id}
        removed = 0
        while (first := chunks.find_one(rest, {"_id": 0, "n": 1}, sort=[("n", 1)])) is not None:
            end = first["n"] + _SLICE
            removed += chunks.delete_many({"files_id": files_id, "n": {"$gte": first["n"], "$lt": end}}).deleted_count
            rest = {"files_id": files_id, "n": {"$gte": end}}
        return removed

    def forget_parent(self) -> None:
        """In a forked child: neither use nor close the parent's connections, nor wait for a lock its threads held."""
        self._lock = threading.Lock()
        if self._closing is not None:
            self._closing.detach()
        self._inherited.append(self._client)
        self._client = None

    def _new(self) -> Any:
        from pymongo import MongoClient

        client: Any = MongoClient(self._uri, **self._options)
        if client.write_concern.document.get("w") == 0:
            raise misconfigured(self.store_name, "mongodb_store_uri", "w=0 loses images; leave it out")
        self._closing = weakref.finalize(self, _close, client)
        return client

    def _collection(self, name: str) -> Any:
        return self.get()[self.database_name][f"{self._conf.mongodb_store_bucket}.{name}"]

    def _at_primary(self, collection: Any, *, journal: bool) -> Any:
        from pymongo import ReadPreference, WriteConcern

        said = collection.write_concern.document
        concern = WriteConcern(
            w=said.get("w", "majority"),
            wtimeout=said.get("wtimeout", self._limit(self._conf.mongodb_store_socket_timeout * _SHARE)),
            j=True if journal else said.get("j"),
        )
        return collection.with_options(read_preference=ReadPreference.PRIMARY, write_concern=concern)

    # -- Options ----------------------------------------------------------------------------------------------

    def _checked_uri(self) -> str:
        value = (self._conf.mongodb_store_uri or "").strip()
        if not value:
            why = "host, host:port or a connection string is missing"
            raise misconfigured(self.store_name, "mongodb_store_uri", why)
        scheme, mark, rest = value.partition("://")
        uri = f"{scheme.lower()}://{rest}" if mark else f"mongodb://{value}"
        # For the other form, the name service would have to be asked.
        if not uri.startswith("mongodb+srv://"):
            from pymongo.uri_parser import parse_uri

            try:
                parse_uri(uri)
            except Exception:  # noqa: BLE001  (whose text may hold the password)
                raise misconfigured(
                    self.store_name,
                    "mongodb_store_uri",
                    "not a host, host:port or MongoDB connection string; user and password must be percent-encoded",
                ) from None
        return uri

    def _checked_database(self) -> str:
        path = self._uri.partition("://")[2].partition("?")[0].partition("/")[2]
        name: str = self._conf.mongodb_store_db or path.partition(".")[0]
        if not name:
            why = "a name is missing, and mongodb_store_uri has none"
            raise misconfigured(self.store_name, "mongodb_store_db", why)
        # https://www.mongodb.com/docs/manual/reference/limits/#naming-restrictions
        if re.search(r'[/\\. "$*<>:|?\0]', name) or len(name.encode()) > 63:
            raise misconfigured(self.store_name, "mongodb_store_db", f"{name!r} cannot be the name of a database")
        return name

    def _check_bucket(self) -> None:
        name = self._conf.mongodb_store_bucket
        if not re.fullmatch(r"[^$\0.\s]+(\.[^$\0.\s]+)*", name) or name.startswith("system") or len(name) > 100:
            raise misconfigured(self.store_name, "mongodb_store_bucket", f"{name!r} cannot be the name of a bucket")

    def _client_options(self) -> dict[str, Any]:
        conf = self._conf
        if not conf.mongodb_store_tls_insecure:
            check_certificates(conf.mongodb_store_tls_ca_file, self.store_name, "mongodb_store_tls_ca_file")
        path = conf.mongodb_store_tls_certificate_key_file
        if path and not os.access(path, os.R_OK):
            raise misconfigured(self.store_name, "mongodb_store_tls_certificate_key_file", f"{path} cannot be read")
        concern = conf.mongodb_store_write_concern or ""
        if concern.isdecimal() and not int(concern):
            raise misconfigured(self.store_name, "mongodb_store_write_concern", "0 loses images; at least 1")
        # The last one counts.
        said = dict(re.findall(r"(?:^|[?&;])(w)=([^&;]*)", self._uri.lower())).get("w", "")
        if not concern and said.isdecimal() and not int(said):
            raise misconfigured(self.store_name, "mongodb_store_uri", "w=0 loses images; leave it out")
        wanted = {
            "tls": conf.mongodb_store_tls,
            "tlsCAFile": conf.mongodb_store_tls_ca_file,
            "tlsCertificateKeyFile": conf.mongodb_store_tls_certificate_key_file,
            "tlsCertificateKeyFilePassword": conf.mongodb_store_tls_certificate_key_file_password,
            "tlsInsecure": conf.mongodb_store_tls_insecure or None,
            "readPreference": conf.mongodb_store_read_preference,
            "w": int(concern) if concern.isdecimal() else concern,
        }
        if conf.mongodb_store_tls is False and any(value for name, value in wanted.items() if name.startswith("tls")):
            raise misconfigured(self.store_name, "mongodb_store_tls", "false, but other options say how to use TLS")
        return {
            **{name: value for name, value in wanted.items() if value not in (None, "")},
            # Only the engine tries again.
            "retryWrites": False,
            "retryReads": False,
            # The other mode has one more thread and connection for each server, and sees one that has reported an error
            # only when the server changes again, or after ten seconds.
            "serverMonitoringMode": "poll",
            "connect": False,
            "tz_aware": True,
            "appname": "storelib",
            "connectTimeoutMS": self._limit(conf.mongodb_store_connect_timeout),
            "serverSelectionTimeoutMS": self._limit(conf.mongodb_store_server_selection_timeout),
            "socketTimeoutMS": self._limit(conf.mongodb_store_socket_timeout),
            "waitQueueTimeoutMS": self._limit(conf.mongodb_store_socket_timeout),
        }

    def _limit(self, seconds: float) -> int:
        """Milliseconds that a request may take, never longer than a whole transfer stands still."""
        longest: float = self._conf.transfer_timeout
        return max(1, round(min(seconds, longest) * 1000))


def _close(client: Any) -> None:
    import pymongo

    # It looks for a server to tell it of the end of its sessions, for ever so long if there is none.
    with pymongo.timeout(_FAREWELL):
        client.close()


# -- Indexes ---------------------------------------------------------------------------------------------------


def _make_indexes(collection: Any, wanted: Sequence[Index], store_name: str) -> None:
    """Make those that are not there; raises BadStoreConfiguration for one that is needed and may not be made."""
    from pymongo import IndexModel
    from pymongo.errors import OperationFailure

    there = _existing(collection)
    for index in wanted:
        if any(_serves(found, index) for found in there):
            continue
        try:
            collection.create_indexes([IndexModel(index.key, **index.options)])
        except OperationFailure as error:
            if error.code != UNAUTHORIZED:
                raise
            if index.needed:
                options = ", ".join(f"{name}: true" for name in index.options)
                raise BadStoreConfiguration(
                    f"store {store_name}: collection {collection.name} has no index on {', '.join(index.fields)} "
                    f"({options}) that the user in mongodb_store_uri can see, nor may that user make it (createIndex); "
                    "make it as administrator, or give the user the role readWrite"
                ) from error


def _existing(collection: Any) -> list[Any]:
    from pymongo.errors import OperationFailure

    try:
        with collection.list_indexes() as found:
            return list(found)
    except OperationFailure as error:
        if error.code != UNAUTHORIZED:
            raise
        return []


def _serves(found: Any, index: Index) -> bool:
    same = list(found["key"].items()) == index.key
    plain = not {"collation", "partialFilterExpression"} & set(found)
    return same and plain and all(found.get(option, False) == value for option, value in index.options.items())


# -- What an image looks like -----------------------------------------------------------------------------------
#
# Ours has an ``_id`` of its own, the token of the add that made it, and the image's id as ``filename`` and in
# ``metadata.storelib``. What glance_store or any other client wrote is found by its ``_id``.
# https://github.com/mongodb/specifications/blob/master/source/gridfs/gridfs-spec.md


def count_chunks(size: int, chunk_size: int) -> int:
    """Chunks of an image of ``size`` bytes; an empty one has none."""
    return -(-size // chunk_size)


def whole_chunks(length: int, chunk_size: int) -> int:
    """Bytes of as many chunks as fit in ``length``, of one at least."""
    return chunk_size * max(1, length // chunk_size)


def image_of_others(image_id: str) -> dict[str, Any]:
    """The query for an image of another client that made this its ``_id``."""
    from bson import ObjectId

    theirs: list[Any] = [image_id]
    if len(image_id) == 24 and ObjectId.is_valid(image_id):
        theirs.append(ObjectId(image_id))
    return {"_id": {"$in": theirs}, _OURS: {"$exists": False}}


def image_with_id(image_id: str) -> dict[str, Any]:
    """The query for an image: of ours, or of another client."""
    return {"$or": [{IMAGE: image_id}, image_of_others(image_id)]}


def any_image() -> dict[str, Any]:
    """The query for all images."""
    return {PENDING: {"$exists": False}}


def understood(document: Mapping[str, Any]) -> Stored:
    """A document of an image; raises StoreError for what is none."""
    files_id = document["_id"]
    size, chunk_size = _whole(document.get("length")), _whole(document.get("chunkSize"))
    if size < 0 or chunk_size <= 0:
        raise StoreError(f"the file {files_id!r} in GridFS has no valid length and chunkSize")
    uploaded = document.get("uploadDate")
    extra = document.get("metadata")
    extra = extra if isinstance(extra, Mapping) else {}
    md5 = {"md5": document["md5"]} if isinstance(document.get("md5"), str) else {}
    return Stored(
        files_id,
        image_id_of(document),
        size,
        chunk_size,
        posix_seconds(uploaded) if isinstance(uploaded, datetime.datetime) else None,
        uploaded,
        {**md5, **{str(name): value for name, value in extra.items() if name != "storelib"}},
    )


def image_id_of(document: Mapping[str, Any]) -> str | None:
    """The id under which an image is found; None if there is none, as for numbers."""
    from bson import ObjectId

    if is_ours(document):
        ours = document["metadata"]["storelib"].get("image")
        return ours if isinstance(ours, str) else None
    return str(document["_id"]) if isinstance(document["_id"], (str, ObjectId)) else None


def digest_of(stored: Stored) -> Digest | None:
    """What was recorded of the image: the multihash of ours, else the md5 that older clients wrote."""
    names = {*hashlib.algorithms_available, "blake3"}
    known = [Digest(name, value) for name, value in stored.metadata.items() if name in names]
    return min(known, key=lambda digest: digest.algorithm == "md5", default=None)


def is_ours(document: Mapping[str, Any]) -> bool:
    """Whether storelib wrote this document."""
    extra = document.get("metadata")
    return isinstance(extra, Mapping) and isinstance(extra.get("storelib"), Mapping)


def _whole(value: Any) -> int:
    """A number of bytes, -1 if it is none; other clients write doubles as well."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
        return -1
    return int(value)
