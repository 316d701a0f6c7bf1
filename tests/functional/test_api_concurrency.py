# SPDX-License-Identifier: Apache-2.0
"""A crowd of clients at two API processes, of which one loses its power in the middle. Each client knows what was
promised to it: every answer is one that the operation documents, no byte is ever wrong, and what was answered stays
true. In the end database and stores agree exactly.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import re
import threading
import time
import traceback
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from servers.api import Deployment, Server, Upload, wait_until
from servers.postgresql import PostgreSQL

from storelib.api.db import Repository
from storelib.api.db.engine import Database

CLIENTS = 32
#: Seconds that the clients work at most, if not all that is wanted succeeds before.
WORK = 300.0
#: Seconds for which the power is gone.
DARK = 3.0
#: Seconds that one request may take, on a machine that does other things, too.
TIMEOUT = 120.0
#: Seconds in which everything that was interrupted must have been undone.
RECOVERY = 45.0
#: How often each thing must succeed before the power fails, and again once it is back.
ENOUGH = 3
MIB = 1024 * 1024
#: All data is a piece of this. Without the highest bits no piece of it looks like an image of any format.
BYTES = random.Random(5).randbytes(8 * MIB).translate(bytes(byte & 127 for byte in range(256)))
SIZES = (0, 1, 1000, 65536, 100_000, MIB, MIB + 1, 5 * MIB)
SETTLED = {"queued", "active", "deactivated", "killed"}
OCTETS = {"Content-Type": "application/octet-stream"}
PATCH = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
JSON = {"Content-Type": "application/json"}

#: How often each thing is done, and what v2 or v1 may answer to it.
WORKLOAD: dict[str, int] = {
    "create": 4,
    "upload_new": 10,
    "upload_any": 8,
    "upload_cut": 4,
    "show": 4,
    "list": 4,
    "list_v1": 2,
    "patch": 8,
    "tag": 4,
    "untag": 4,
    "share": 4,
    "accept": 4,
    "unshare": 4,
    "deactivate": 3,
    "reactivate": 4,
    "download": 14,
    "download_range": 8,
    "download_v1": 4,
    "delete": 9,
    "copy": 8,
    "drop_copy": 6,
    "create_v1": 4,
    "upload_v1": 3,
    "delete_v1": 2,
}
#: What is tried mostly with images for which the other thing was done: few others have what it takes away.
AFTER = {"untag": "tag", "accept": "share", "unshare": "share", "drop_copy": "copy"}
#: What must have been among these.
AMONG = ("upload in chunks", "upload to the other store", "seen in two stores")


class Piece(NamedTuple):
    """Some data: where it is in BYTES."""

    offset: int
    size: int

    @classmethod
    def any(cls, chance: random.Random) -> Piece:
        size = chance.choice(SIZES)
        return cls(chance.randrange(len(BYTES) - size), size)

    @property
    def data(self) -> memoryview:
        return memoryview(BYTES)[self.offset : self.offset + self.size]


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


class Cut(Exception):
    """The server's power failed: what became of the request is not known."""


class Picture:
    """An image, what its clients tried with it, and what was promised to them."""

    def __init__(self) -> None:
        self.id = str(uuid.uuid4())
        self.history: list[str] = []
        #: The names of what was done with it.
        self.done: set[str] = set()
        #: All data that a caller tried to upload, by its sha512.
        self.tried: dict[str, Piece] = {}
        #: The data of which an upload was answered with success, and what was read.
        self.stored: list[str] = []
        #: Property to value as promised; None where a change was cut.
        self.properties: dict[str, str | None] = {}
        self.created = False
        self.deleting = False
        self.deleted = False

    def pieces(self, size: int) -> list[Piece]:
        return [piece for piece in self.tried.values() if piece.size == size]


class Crowd:
    """What all clients know. ``servers`` are addresses; the first is the one whose power fails."""

    def __init__(self, deployment: Deployment, servers: list[str]) -> None:
        self.deployment = deployment
        self.servers = servers
        self.pictures: list[Picture] = []
        self.by_id: dict[str, Picture] = {}
        self.done: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.over = threading.Event()
        self.failure: str | None = None
        self.killed = self.revived = float("inf")
        self._lock = threading.Lock()
        self.begun = time.monotonic()

    def add(self, picture: Picture) -> Picture:
        with self._lock:
            self.pictures.append(picture)
            self.by_id[picture.id] = picture
        return picture

    def count(self, counter: Counter[str], what: str) -> None:
        with self._lock:
            counter[what] += 1

    def excuses(self, server: int, connected: float) -> bool:
        """Whether a connection may have been lost that was made at this time."""
        return server == 0 and self.killed < time.monotonic() and connected < self.revived

    def fail(self, picture: Picture | None, what: str) -> None:
        """The first failure ends it all."""
        with self._lock:
            if self.failure is None:
                history = "\n".join(picture.history) if picture else ""
                about = f"\n\nhistory of image {picture.id}:\n{history}" if picture else ""
                self.failure = f"{what}{about}"
        self.over.set()

    def report(self) -> str:
        log = "\n".join(self.deployment.log().splitlines()[-60:])
        return f"{self.failure}\n\nthe servers' log ends with:\n{log}\n\ndone: {self.done}\nanswers: {self.answers}"


class Client(threading.Thread):
    """Does this and that until it is over."""

    def __init__(self, crowd: Crowd, number: int) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self.crowd = crowd
        self.number = number
        self.chance = random.Random(number)
        self.server = number % 2
        self.connection: http.client.HTTPConnection | None = None
        self.connected = 0.0
        self.counter = 0
        self.recent: deque[str] = deque(maxlen=8)

    def run(self) -> None:
        names, weights = list(WORKLOAD), list(WORKLOAD.values())
        while not self.crowd.over.is_set():
            [name] = self.chance.choices(names, weights)
            if self.chance.random() < 0.1:
                self.go_to(1 - self.server)
            picture = None
            try:
                picture = self.pick(name)
                if picture is not None and getattr(self, name)(picture):
                    picture.done.add(name)
                    self.crowd.count(self.crowd.done, name)
            except Cut:
                self.crowd.count(self.crowd.done, "cut")
                self.go_to(1)
            except Exception:  # noqa: BLE001  (whatever it is, the crowd stops and tells)
                self.crowd.fail(picture, f"{self.name}, {name}:\n{traceback.format_exc()}\n{self.said()}")
        self.close()

    def said(self) -> str:
        return "the client's last requests:\n" + "\n".join(self.recent)

    def note(self, picture: Picture | None, what: str) -> None:
        line = f"{time.monotonic() - self.crowd.begun:8.3f} {self.name}: {what}"
        self.recent.append(line)
        if picture is not None:
            picture.history.append(line)

    def pick(self, name: str) -> Picture | None:
        """What to do it to: mostly young images, whatever others do to them."""
        if name in ("create", "upload_new", "create_v1"):
            return Picture()
        young = [picture for picture in self.crowd.pictures[-40:] if not picture.deleted]
        if name.startswith("upload"):
            young = [picture for picture in young if not picture.stored][-20:]
        if self.chance.random() < 0.7:
            young = [picture for picture in young if AFTER.get(name) in picture.done] or young
        return self.chance.choice(young) if young else None

    # -- requests -------------------------------------------------------------------------------------------------

    def go_to(self, server: int) -> None:
        self.close()
        self.server = server

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def connect(self) -> http.client.HTTPConnection:
        if self.connection is None:
            self.connection = http.client.HTTPConnection(self.crowd.servers[self.server], timeout=TIMEOUT)
        if self.connection.sock is None:
            # Also where the server said that it would close it.
            self.connected = time.monotonic()
        return self.connection

    def ask(
        self,
        picture: Picture | None,
        method: str,
        path: str,
        expected: set[int],
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """The answer; raises Cut where the server's power failed."""
        gone = picture is not None and picture.deleted
        there = picture is not None and picture.created
        what = f"{method} {path} at server {self.server}"
        connection = self.connect()
        try:
            connection.request(method, path, body, headers or {}, encode_chunked=isinstance(body, Iterator))
            response = connection.getresponse()
            answer = Answer(response.status, response.headers, response.read())
        except (OSError, http.client.HTTPException) as error:
            self.note(picture, f"{what}: {error!r}")
            excused = self.crowd.excuses(self.server, self.connected)
            self.close()
            if not excused:
                raise
            raise Cut from error
        self.note(picture, f"{what}: {answer.status}")
        self.crowd.count(
            self.crowd.answers, f"{method} {re.sub('[0-9a-f-]{36}', 'ID', urlsplit(path).path)} {answer.status}"
        )
        assert answer.status in expected, (what, answer.status, answer.body[:1000])
        if picture is not None and path in (self.path(picture), self.path(picture, "/file")):
            assert answer.status == 404 or not gone, (what, "the image had been deleted", answer.status)
            assert answer.status != 404 or picture.deleting or not there, (what, "the image is lost", answer.body)
        return answer

    def path(self, picture: Picture, rest: str = "") -> str:
        return f"/v2/images/{picture.id}{rest}"

    # -- images ---------------------------------------------------------------------------------------------------

    def create(self, picture: Picture) -> bool:
        image = {"id": picture.id, "name": "one", "disk_format": "raw", "container_format": "bare"}
        self.ask(picture, "POST", "/v2/images", {201}, json.dumps(image), JSON)
        picture.created = True
        self.crowd.add(picture)
        return True

    def show(self, picture: Picture) -> bool:
        stored = list(picture.stored)
        response = self.ask(picture, "GET", self.path(picture), {200, 404})
        if response.status == 404:
            return False
        found = response.document
        if stored:
            assert found["status"] in ("active", "deactivated", "pending_delete"), found
            assert found["os_hash_value"] == stored[0], found
        self.note_stores(found)
        return True

    def note_stores(self, found: dict[str, Any]) -> None:
        if "," in found.get("stores", ""):
            self.crowd.count(self.crowd.done, "seen in two stores")

    def list(self, _: Picture) -> bool:
        path, seen = "/v2/images?limit=15&sort=created_at:desc", []
        for _ in range(4):
            response = self.ask(None, "GET", path, {200, 400})
            if response.status == 400:
                assert "marker" in path, response.body
                assert self.crowd.by_id[seen[-1]].deleting, response.body
                return False
            document = response.document
            seen += [image["id"] for image in document["images"]]
            # On a slow machine few copies are there before their image is deleted.
            for image in document["images"]:
                self.note_stores(image)
            if "next" not in document:
                break
            path = document["next"]
        assert len(set(seen)) == len(seen)
        return len(seen) > 15

    def list_v1(self, _: Picture) -> bool:
        return bool(self.ask(None, "GET", "/v1/images/detail?limit=10", {200}).document["images"])

    def patch(self, picture: Picture) -> bool:
        name, value = f"of_{self.number}", str(self.counter)
        self.counter += 1
        changes = [
            {"op": "add", "path": f"/{name}", "value": value},
            {"op": "replace", "path": "/name", "value": value},
        ]
        before = picture.properties.get(name)
        picture.properties[name] = None
        response = self.ask(picture, "PATCH", self.path(picture), {200, 404, 409}, json.dumps(changes), PATCH)
        if response.status == 200:
            assert response.document[name] == value
        picture.properties[name] = value if response.status == 200 else before
        return response.status == 200

    def tag(self, picture: Picture) -> bool:
        return self.ask(picture, "PUT", self.path(picture, f"/tags/t{self.number % 2}"), {204, 404}).status == 204

    def untag(self, picture: Picture) -> bool:
        return self.ask(picture, "DELETE", self.path(picture, f"/tags/t{self.number % 2}"), {204, 404}).status == 204

    def share(self, picture: Picture) -> bool:
        member = json.dumps({"member": f"m{self.number % 2}"})
        return self.ask(picture, "POST", self.path(picture, "/members"), {200, 404, 409}, member, JSON).status == 200

    def accept(self, picture: Picture) -> bool:
        path, accepted = self.path(picture, f"/members/m{self.number % 2}"), json.dumps({"status": "accepted"})
        return self.ask(picture, "PUT", path, {200, 404}, accepted, JSON).status == 200

    def unshare(self, picture: Picture) -> bool:
        path = self.path(picture, f"/members/m{self.number % 2}")
        return self.ask(picture, "DELETE", path, {204, 404}).status == 204

    def deactivate(self, picture: Picture) -> bool:
        # 403: it is in a status that cannot be switched.
        return self.ask(picture, "POST", self.path(picture, "/actions/deactivate"), {204, 403, 404}).status == 204

    def reactivate(self, picture: Picture) -> bool:
        return self.ask(picture, "POST", self.path(picture, "/actions/reactivate"), {204, 403, 404}).status == 204

    def delete(self, picture: Picture) -> bool:
        picture.deleting = True
        # 403: another caller is deleting it. 409: it has got its data in this moment.
        response = self.ask(picture, "DELETE", self.path(picture), {204, 403, 404, 409})
        picture.deleted |= response.status == 204
        return response.status == 204

    # -- data -----------------------------------------------------------------------------------------------------

    def upload_new(self, picture: Picture) -> bool:
        self.create(picture)
        return self.upload_any(picture)

    def upload_any(self, picture: Picture) -> bool:
        piece, digest = self.tries(picture)
        headers = dict(OCTETS)
        body: Any = piece.data
        if self.chance.random() < 0.4:
            headers["x-image-meta-store"] = "archive"
        if chunked := self.chance.random() < 0.4:
            body = blocks(piece.data)
        # 409: it is not queued. 410: it was deleted meanwhile.
        response = self.ask(picture, "PUT", self.path(picture, "/file"), {204, 404, 409, 410}, body, headers)
        if response.status != 204:
            assert response.status != 410 or picture.deleting, "nobody deleted it"
            return False
        self.remember(picture, digest)
        if chunked:
            self.crowd.count(self.crowd.done, "upload in chunks")
        if "x-image-meta-store" in headers:
            self.crowd.count(self.crowd.done, "upload to the other store")
        return True

    def upload_cut(self, picture: Picture) -> bool:
        """Go away in the middle; not what was promised, so that it can never be stored."""
        piece, chunked = Piece.any(self.chance), self.chance.random() < 0.5
        sent = piece.data[: piece.size // 2]
        self.note(picture, f"cuts an upload at server {self.server}")
        connection = self.connect()
        try:
            connection.putrequest("PUT", self.path(picture, "/file"))
            connection.putheader("Content-Type", OCTETS["Content-Type"])
            if chunked:
                connection.putheader("Transfer-Encoding", "chunked")
            else:
                connection.putheader("Content-Length", str(piece.size + 1))
            connection.endheaders()
            connection.send(b"%x\r\n" % (piece.size + 1) if chunked else b"")
            connection.send(sent)
        except OSError:
            if not self.crowd.excuses(self.server, self.connected):
                raise
        self.close()
        return True

    def download(self, picture: Picture) -> bool:
        # 204: it has no data yet.
        stored = bool(picture.stored)
        response = self.ask(picture, "GET", self.path(picture, "/file"), {200, 204, 404})
        if response.status != 200:
            assert picture.deleting or not stored, "its data is lost"
            return False
        self.check(picture, response.body, response.headers["Content-MD5"])
        return True

    def download_v1(self, picture: Picture) -> bool:
        response = self.ask(picture, "GET", f"/v1/images/{picture.id}", {200, 404})
        if response.status != 200:
            return False
        assert response.headers["x-image-meta-status"] in ("active", "deactivated")
        self.check(picture, response.body, response.headers["x-image-meta-checksum"])
        return True

    def check(self, picture: Picture, data: bytes, checksum: str) -> None:
        digest = hashlib.sha512(data).hexdigest()
        assert digest in picture.tried, f"nobody uploaded these {len(data)} bytes"
        assert hashlib.md5(data).hexdigest() == checksum
        self.remember(picture, digest, read=True)

    def download_range(self, picture: Picture) -> bool:
        first = self.chance.choice((0, 1, 500, 65536, MIB))
        wanted = self.chance.choice((1, 100, 65536))
        headers = {"Range": f"bytes={first}-{first + wanted - 1}"}
        # 416: it is shorter than that.
        response = self.ask(picture, "GET", self.path(picture, "/file"), {206, 204, 404, 416}, None, headers)
        if response.status != 206:
            return False
        size = int(response.headers["Content-Range"].rpartition("/")[2])
        assert len(response.body) == min(wanted, size - first)
        fits = [piece for piece in picture.pieces(size) if piece.data[first : first + wanted] == response.body]
        assert fits, f"nobody uploaded these bytes at {first}"
        return True

    def copy(self, picture: Picture) -> bool:
        """To both stores, whichever it is in."""
        asked = json.dumps({"method": {"name": "copy-image"}, "all_stores": True})
        # 400: it is in all stores. 409: it is not active, or is being copied already.
        response = self.ask(picture, "POST", self.path(picture, "/import"), {202, 400, 404, 409}, asked, JSON)
        return response.status == 202

    def drop_copy(self, picture: Picture) -> bool:
        store = self.chance.choice(("fast", "archive"))
        # 403: it is the only one. 409: the image is not active.
        response = self.ask(picture, "DELETE", f"/v2/stores/{store}/{picture.id}", {204, 403, 404, 409})
        return response.status == 204

    def tries(self, picture: Picture) -> tuple[Piece, str]:
        piece = Piece.any(self.chance)
        digest = hashlib.sha512(piece.data).hexdigest()
        picture.tried[digest] = piece
        return piece, digest

    def remember(self, picture: Picture, digest: str, *, read: bool = False) -> None:
        """An image gets data once, and keeps it."""
        if not (read and digest in picture.stored):
            picture.stored.append(digest)
        assert set(picture.stored) == {digest}, f"the image has two contents: {picture.stored}"

    # -- version 1 ------------------------------------------------------------------------------------------------

    def create_v1(self, picture: Picture) -> bool:
        piece, digest = self.tries(picture)
        headers = {"x-image-meta-id": picture.id, "x-image-meta-name": "old"}
        headers |= {"x-image-meta-disk_format": "raw", "x-image-meta-container_format": "bare", **OCTETS}
        # In front, so that others get at it while it is being written.
        self.crowd.add(picture)
        body = blocks(piece.data) if self.chance.random() < 0.4 or not piece.size else piece.data
        # 409: another caller was faster with the data. 412: it was deleted meanwhile.
        response = self.ask(picture, "POST", "/v1/images", {201, 404, 409, 412}, body, headers)
        if response.status == 201:
            picture.created = True
            self.remember(picture, digest)
        return response.status == 201

    def upload_v1(self, picture: Picture) -> bool:
        piece, digest = self.tries(picture)
        headers = {"x-glance-registry-purge-props": "false", **OCTETS}
        body = blocks(piece.data) if not piece.size else piece.data
        # 403: it is deleted.
        response = self.ask(picture, "PUT", f"/v1/images/{picture.id}", {200, 403, 404, 409, 412}, body, headers)
        if response.status == 200:
            self.remember(picture, digest)
        return response.status == 200

    def delete_v1(self, picture: Picture) -> bool:
        picture.deleting = True
        response = self.ask(picture, "DELETE", f"/v1/images/{picture.id}", {200, 403, 404, 409})
        picture.deleted |= response.status == 200
        return response.status == 200


def blocks(data: memoryview) -> Iterator[bytes]:
    for start in range(0, len(data), 300_000):
        yield bytes(data[start : start + 300_000])


# -- what happens -----------------------------------------------------------------------------------------------------


def power_failure(crowd: Crowd, victim: Server) -> list[Upload]:
    """Kill a server that is in the middle of uploads, at the latest of these."""
    half = [Upload(victim) for _ in range(3)]
    crowd.killed = time.monotonic()
    victim.kill()
    for upload in half:
        upload.connection.close()
    return half


def work(crowd: Crowd, deployment: Deployment, victim: Server) -> list[Upload]:
    """Let everybody work, and the victim fail; returns the uploads that it certainly had under way."""
    clients = [Client(crowd, number) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    half: list[Upload] = []
    try:
        wait_for_success(crowd, *WORKLOAD)
        if not crowd.over.is_set():
            half = power_failure(crowd, victim)
            delete(crowd, half[0].image_id)
            crowd.over.wait(DARK)
            deployment.serve("--workers", "2", "--bind", victim.address)
            crowd.revived = time.monotonic()
            wait_for_success(crowd, *WORKLOAD)
            wait_for_success(crowd, *AMONG, since=Counter())
    finally:
        crowd.over.set()
        for client in clients:
            client.join(TIMEOUT)
    assert not any(client.is_alive() for client in clients)
    return half


def wait_for_success(crowd: Crowd, *names: str, since: Counter[str] | None = None) -> None:
    """Until each of these was done ``ENOUGH`` times from now on or ``since``, or the crowd stops, or time is over."""
    before = Counter(crowd.done) if since is None else since
    while any(crowd.done[name] - before[name] < ENOUGH for name in names):
        if crowd.over.wait(0.1) or time.monotonic() - crowd.begun > WORK:
            return


def delete(crowd: Crowd, image_id: str) -> None:
    client = Client(crowd, 1)
    client.ask(None, "DELETE", f"/v2/images/{image_id}", {204})
    client.close()


def images(server: Server) -> list[dict[str, Any]]:
    found, path = [], "/v2/images?limit=200&os_hidden=false"
    while path:
        document: Any = server.request("GET", path)
        found += document["images"]
        path = document.get("next", "")
    return found


def is_settled(image: dict[str, Any]) -> bool:
    return image["status"] in SETTLED and not image.get("os_glance_importing_to_stores")


def files(deployment: Deployment) -> set[str]:
    return {f"{store}/{path.name}" for store in ("fast", "archive") for path in walk(deployment.directory / store)}


def walk(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()] if directory.exists() else []


def reported(server: Server) -> set[str]:
    """The files that the API says there are."""
    found = set()
    for image in images(server):
        locations: Any = server.request("GET", f"/v2/images/{image['id']}/locations")
        found |= {name_of(location["url"]) for location in locations}
    return found


def kept(deployment: Deployment) -> set[str]:
    """All files but those that are to be deleted, asked for first, since they may go any time."""
    going = waiting(deployment)
    return files(deployment) - going


def waiting(deployment: Deployment) -> set[str]:
    """The files that the database says are to be deleted.

    The claim of a process that is dead may come to be when others have looked for such claims, since PostgreSQL goes on
    with what it was sent: then its file stays until they look again.
    """
    database = Database(deployment.connection)
    try:
        return {name_of(location.uri) for _, location in Repository(database).locations.pending()}
    finally:
        database.close()


def name_of(url: str) -> str:
    """Store and file."""
    return "/".join(urlsplit(url).path.rsplit("/", 2)[1:])


def explain(crowd: Crowd, ids: set[str]) -> str:
    """What happened to these images."""
    known = [crowd.by_id[image_id] for image_id in sorted(ids)[:5] if image_id in crowd.by_id]
    return "\n\n".join(f"{picture.id}:\n" + "\n".join(picture.history) for picture in known)


def settle(crowd: Crowd, server: Server) -> None:
    """Wait until nothing is under way any more."""
    deadline = time.monotonic() + RECOVERY
    while waiting := [image["id"] for image in images(server) if not is_settled(image)]:
        if time.monotonic() > deadline:
            crowd.fail(None, f"these stay as they are for ever: {waiting}\n{explain(crowd, set(waiting))}")
            pytest.fail(crowd.report())
        time.sleep(0.2)


def check_promises(crowd: Crowd, server: Server) -> None:
    """What was promised to the clients is true now."""
    found = {image["id"]: image for image in images(server)}
    reader = Client(crowd, 1)
    for picture in crowd.pictures:
        image = found.get(picture.id)
        try:
            if image is None:
                assert picture.deleting or not picture.created, "the image is lost"
                continue
            assert not picture.deleted, "a deleted image is back"
            wrong = {
                name: (value, image.get(name))
                for name, value in picture.properties.items()
                if value is not None and image.get(name) != value
            }
            assert not wrong, f"changes are lost: {wrong}"
            if image["status"] in ("active", "deactivated"):
                assert image["os_hash_value"] in picture.tried, "it has what nobody uploaded"
                assert reader.download(picture)
                assert picture.stored[-1] == image["os_hash_value"]
            else:
                assert not picture.stored, f"its data is lost, it is {image['status']}"
        except AssertionError:
            crowd.fail(picture, traceback.format_exc())
            pytest.fail(crowd.report())
    reader.close()


def check_agreement(crowd: Crowd, deployment: Deployment, server: Server) -> None:
    """Database and stores agree, by the audit and by looking."""
    expect(crowd, lambda: deployment.disagreements(timeout=120.0), [])
    expect(crowd, lambda: kept(deployment) ^ reported(server), set())


def expect(crowd: Crowd, ask: Callable[[], Any], expected: object) -> None:
    found = ask()
    if found == expected:
        return
    named = set(re.findall("[0-9a-f-]{36}", repr(found)))
    crowd.fail(None, f"{found!r} instead of {expected!r}\n{explain(crowd, named)}")
    pytest.fail(crowd.report())


@pytest.fixture(params=["sqlite", "postgresql"])
def deployment(request, tmp_path) -> Iterator[Deployment]:
    if request.param == "sqlite":
        made = Deployment(tmp_path)
        yield made
        made.close()
        return
    with PostgreSQL() as postgresql:
        made = Deployment(tmp_path, postgresql.new_database())
        assert made.run("db", "sync").code == 0
        yield made
        made.close()


def test_a_crowd_of_clients_and_a_power_failure_leave_exactly_what_was_promised(deployment):
    victim, other = deployment.serve("--workers", "2"), deployment.serve("--workers", "2")
    crowd = Crowd(deployment, [victim.address, other.address])
    half = work(crowd, deployment, victim)
    if crowd.failure:
        pytest.fail(crowd.report())

    settle(crowd, other)
    check_promises(crowd, other)
    check_agreement(crowd, deployment, other)
    found = [other.request("GET", f"/v2/images/{upload.image_id}").get("status") for upload in half]
    assert found == [None, "queued", "queued"]
    assert "Traceback" not in deployment.log(), deployment.log()

    wanted = dict.fromkeys(WORKLOAD, 2 * ENOUGH) | dict.fromkeys(["cut", *AMONG], ENOUGH)
    assert not {name: crowd.done[name] for name in wanted if crowd.done[name] < wanted[name]}, crowd.done

    for image in images(other):
        delete(crowd, image["id"])
    expect(crowd, lambda: kept(deployment), set())
    wait_until(lambda: images(other) == [])
