# SPDX-License-Identifier: Apache-2.0
"""Client: the one MongoClient of a store, made at first use and anew in a forked child, and its two collections."""

from __future__ import annotations

import importlib.util
import os
import re
import threading
import weakref
from typing import Any

from storelib.drivers.gridfs import indexes
from storelib.exceptions import BadStoreConfiguration, MissingDependency
from storelib.extras import needs

#: Seconds that telling the server good-bye may take.
_FAREWELL = 1.0
#: Of mongodb_store_socket_timeout, what the server may wait for other members, so that its answer still arrives.
_SHARE = 0.9


class Client:
    """Which server, database and bucket; raises BadStoreConfiguration for options that cannot be.

    Safe to use from many threads. Making one opens no connection.
    """

    def __init__(self, conf: Any, store_name: str) -> None:
        self._conf = conf
        self._store_name = store_name
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
        _clients.add(self)

    @property
    def hosts(self) -> list[str]:
        """The servers that the connection string names, as host:port."""
        authority = self._uri.partition("://")[2].partition("?")[0].partition("/")[0].rpartition("@")[2].lower()
        names = [name.strip() for name in authority.split(",")]
        return [name if re.search(r":[0-9]+$", name) else f"{name}:27017" for name in names]

    def get(self) -> Any:
        """The MongoClient."""
        client = self._client
        if client is None:
            with self._lock:
                client = self._client = self._client or self._new()
        return client

    @property
    def database(self) -> Any:
        """The database, read with the configured preference."""
        return self.get()[self.database_name]

    @property
    def files(self) -> Any:
        """The collection with one document for each image, for reading."""
        return self.database[f"{self._conf.mongodb_store_bucket}.files"]

    @property
    def chunks(self) -> Any:
        """The collection of their bytes, for reading."""
        return self.database[f"{self._conf.mongodb_store_bucket}.chunks"]

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
        indexes.ensure(self.files_at_primary, indexes.OF_FILES, self._store_name)
        indexes.ensure(self.chunks_at_primary, indexes.OF_CHUNKS, self._store_name)
        self._prepared = True

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
            raise self._misconfigured("mongodb_store_uri", "w=0 loses images; leave it out")
        self._closing = weakref.finalize(self, _close, client)
        return client

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
            raise self._misconfigured("mongodb_store_uri", "host, host:port or a connection string is missing")
        scheme, mark, rest = value.partition("://")
        uri = f"{scheme.lower()}://{rest}" if mark else f"mongodb://{value}"
        # For the other form, the name service would have to be asked.
        if not uri.startswith("mongodb+srv://"):
            from pymongo.uri_parser import parse_uri

            try:
                parse_uri(uri)
            except Exception:  # noqa: BLE001  (whose text may hold the password)
                raise self._misconfigured(
                    "mongodb_store_uri",
                    "not a host, host:port or MongoDB connection string; user and password must be percent-encoded",
                ) from None
        return uri

    def _checked_database(self) -> str:
        path = self._uri.partition("://")[2].partition("?")[0].partition("/")[2]
        name: str = self._conf.mongodb_store_db or path.partition(".")[0]
        if not name:
            raise self._misconfigured("mongodb_store_db", "a name is missing, and mongodb_store_uri has none")
        # https://www.mongodb.com/docs/manual/reference/limits/#naming-restrictions
        if re.search(r'[/\\. "$*<>:|?\0]', name) or len(name.encode()) > 63:
            raise self._misconfigured("mongodb_store_db", f"{name!r} cannot be the name of a database")
        return name

    def _check_bucket(self) -> None:
        name = self._conf.mongodb_store_bucket
        if not re.fullmatch(r"[^$\0.\s]+(\.[^$\0.\s]+)*", name) or name.startswith("system") or len(name) > 100:
            raise self._misconfigured("mongodb_store_bucket", f"{name!r} cannot be the name of a bucket")

    def _client_options(self) -> dict[str, Any]:
        conf = self._conf
        for option in ("mongodb_store_tls_ca_file", "mongodb_store_tls_certificate_key_file"):
            path = getattr(conf, option)
            if path and not os.access(path, os.R_OK):
                raise self._misconfigured(option, f"{path} cannot be read")
        concern = conf.mongodb_store_write_concern or ""
        if concern.isdecimal() and not int(concern):
            raise self._misconfigured("mongodb_store_write_concern", "0 loses images; at least 1")
        # The last one counts.
        said = dict(re.findall(r"(?:^|[?&;])(w)=([^&;]*)", self._uri.lower())).get("w", "")
        if not concern and said.isdecimal() and not int(said):
            raise self._misconfigured("mongodb_store_uri", "w=0 loses images; leave it out")
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
            raise self._misconfigured("mongodb_store_tls", "false, but other options say how to use TLS")
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

    def _misconfigured(self, option: str, what: str) -> BadStoreConfiguration:
        return BadStoreConfiguration(f"store {self._store_name}, option {option}: {what}")


def _close(client: Any) -> None:
    import pymongo

    # It looks for a server to tell it of the end of its sessions, for ever so long if there is none.
    with pymongo.timeout(_FAREWELL):
        client.close()


_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def _forget_parents() -> None:
    for client in list(_clients):
        client.forget_parent()


os.register_at_fork(after_in_child=_forget_parents)
