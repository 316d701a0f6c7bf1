# SPDX-License-Identifier: Apache-2.0
"""ObjectStore: as much of Swift as one account needs, in memory, for tests of answers that are not Swift's."""

from __future__ import annotations

import contextlib
import hashlib
import json
import urllib.parse
from collections.abc import Callable, Iterator

from scripted_server import Request, ScriptedServer, reply

from storelib.drivers.swift import SwiftStore
from storelib.registry import open_store

MARK = {"X-Trans-Id": "tx1"}
DATE = {"Date": "Fri, 20 Nov 2026 17:11:38 GMT"}
KEPT = ("x-object-meta-", "x-container-meta-", "content-type", "x-object-manifest")


class ObjectStore:
    """``with ObjectStore().serve() as server``; ``instead(request)`` answers in its place where it returns anything."""

    def __init__(self, instead: Callable[[Request], bytes | None] = lambda request: None) -> None:
        self.instead = instead
        self.url = ""
        self.token_life = "86400"
        #: Listings tell when something was changed.
        self.dated = False
        #: Headers and bytes by container and name; containers have an empty name.
        self.kept: dict[tuple[str, str], tuple[dict[str, str], bytes]] = {}

    @contextlib.contextmanager
    def serve(self) -> Iterator[ScriptedServer]:
        """Until the end of the block."""
        with ScriptedServer(self.answer) as server:
            self.url = server.url
            yield server

    def open(self, **options: object) -> SwiftStore:
        """A store in it."""
        settings = {
            "swift_store_auth_version": "1",
            "swift_store_auth_address": f"{self.url}/auth/v1.0",
            "swift_store_user": "test:tester",
            "swift_store_key": "testing",
            "swift_store_create_container_on_put": True,
            "swift_store_read_timeout": 5.0,
            "transfer_retries": 0,
        }
        return open_store(SwiftStore, **settings | options)

    def names(self, container: str) -> list[str]:
        """Of the objects in a container."""
        return sorted(name for where, name in self.kept if where == container and name)

    def answer(self, request: Request) -> bytes:
        """What the server says."""
        wrong = self.instead(request)
        return self.right(request) if wrong is None else wrong

    def right(self, request: Request) -> bytes:
        """The same without interference."""
        path, _, query = request.target.partition("?")
        if path == "/auth/v1.0":
            token = {"X-Auth-Token": "secret", "X-Auth-Token-Expires": self.token_life}
            return reply(200, {"X-Storage-Url": f"{self.url}/v1/AUTH_test", **token, **MARK})
        if path == "/info":
            about = {"swift": {"max_object_name_length": 1024}, "slo": {"max_manifest_segments": 1000}}
            return reply(200, MARK, json.dumps(about).encode())
        container, _, name = urllib.parse.unquote(path.removeprefix("/v1/AUTH_test").lstrip("/")).partition("/")
        call = getattr(self, f"_{request.method.lower()}")
        return call(request, container, name, dict(urllib.parse.parse_qsl(query)))

    def _head(self, request: Request, container: str, name: str, query: dict[str, str]) -> bytes:
        if not container:
            return reply(204, {**MARK, **DATE, "X-Account-Bytes-Used": "7"})
        found = self.kept.get((container, name))
        if found is None:
            return reply(404, MARK)
        headers, data = found
        etag = {"ETag": hashlib.md5(data).hexdigest(), "Content-Length": str(len(data))} if name else {}
        return reply(200 if name else 204, {**headers, **MARK, **DATE, **etag})

    def _get(self, request: Request, container: str, name: str, query: dict[str, str]) -> bytes:
        if not name:
            return self._list(container, query)
        head = self._head(request, container, name, query)
        return head + self.kept[container, name][1] if (container, name) in self.kept else head

    def _list(self, container: str, query: dict[str, str]) -> bytes:
        if container and (container, "") not in self.kept:
            return reply(404, MARK)
        found = self.names(container) if container else sorted({where for where, _ in self.kept})
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        entries: list[dict[str, object]] = []
        for name in found:
            if not name.startswith(prefix) or name <= query.get("marker", ""):
                continue
            head, mark, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            subdir = f"{prefix}{head}{mark}"
            if not mark:
                size = len(self.kept[container, name][1]) if container else 0
                dates = {"last_modified": "2026-11-20T17:11:38.000"} if self.dated else {}
                entries.append({"name": name, "bytes": size, "hash": "h", **dates})
            elif {"subdir": subdir} not in entries and subdir > query.get("marker", ""):
                entries.append({"subdir": subdir})
        return reply(200, {**MARK, "Content-Type": "application/json"}, json.dumps(entries).encode())

    def _put(self, request: Request, container: str, name: str, query: dict[str, str]) -> bytes:
        kept = {key: value for key, value in request.headers.items() if key.startswith(KEPT)}
        if not name:
            made = (container, "") not in self.kept
            self.kept.setdefault((container, ""), ({}, b""))[0].update(kept)
            return reply(201 if made else 202, MARK)
        if (container, "") not in self.kept:
            return reply(404, MARK)
        if request.headers.get("if-none-match") == "*" and (container, name) in self.kept:
            return reply(412, MARK)
        data = request.body
        if query.get("multipart-manifest") == "put":
            segments = [tuple(entry["path"].lstrip("/").split("/", 1)) for entry in json.loads(data)]
            if not all(segment in self.kept for segment in segments):
                return reply(400, MARK)
            data = b"".join(self.kept[segment][1] for segment in segments)
            kept["X-Static-Large-Object"] = "True"
        self.kept[container, name] = kept, data
        return reply(201, {**MARK, "ETag": hashlib.md5(request.body).hexdigest()})

    def _post(self, request: Request, container: str, name: str, query: dict[str, str]) -> bytes:
        if (container, name) not in self.kept:
            return reply(404, MARK)
        self.kept[container, name][0].update({k: v for k, v in request.headers.items() if k.startswith(KEPT)})
        return reply(204, MARK)

    def _delete(self, request: Request, container: str, name: str, query: dict[str, str]) -> bytes:
        if (container, name) not in self.kept:
            return reply(404, MARK)
        if not name and self.names(container):
            return reply(409, MARK)
        del self.kept[container, name]
        return reply(204, MARK)
