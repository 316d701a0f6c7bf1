# SPDX-License-Identifier: Apache-2.0
"""The side of the image API that agents on nodes see, small: for what the real one cannot be made to do.

It wants what ``jobs`` says, gives the first ``sources`` nodes that are not ready a web seed, and may lie.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import http.server
import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from storelib.preload import torrent
from storelib.preload.pieces import PieceHasher

_DAY = datetime.timedelta(days=1)


class Authority:
    """The one that signs the certificates of one job."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a job")])
        builder = self._builder(self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(True, 0), True)
        self.pem = self._signed(builder)

    def certificate(self, request: str) -> str:
        wanted = x509.load_pem_x509_csr(request.encode())
        names = wanted.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return self._signed(self._builder(wanted.subject, wanted.public_key()).add_extension(names, False))

    def _builder(self, subject: x509.Name, key: Any) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key)
        builder = builder.serial_number(x509.random_serial_number())
        return builder.not_valid_before(now - _DAY).not_valid_after(now + _DAY)

    def _signed(self, builder: x509.CertificateBuilder) -> str:
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


@dataclass
class Preload:
    """One job and what the server sends of its image: ``served`` is ``data``, unless it lies.

    With ``trouble`` the piece that is asked for first is always sent wrong, or lacks, and no other is sent before it.
    """

    id: str
    image: str
    data: bytes
    more: dict[str, Any] = field(default_factory=dict)
    trouble: Literal["", "wrong", "lacks"] = ""

    def __post_init__(self) -> None:
        self.served = self.data
        self.wrong: int | None = None
        self._turn = threading.Lock()
        self.authority = Authority()
        hasher = PieceHasher()
        hasher.update(self.data)
        self.pieces = hasher.finish()

    @property
    def torrent(self) -> bytes:
        return torrent.torrent(self.image, self.pieces, self.authority.pem)

    def part(self, first: int, last: int) -> bytes | None:
        """What is sent of this range; None: it cannot be read now."""
        if not self.trouble:
            return self.served[first : last + 1]
        number = first // self.pieces.piece_length
        with self._turn:
            is_first, self.wrong = self.wrong is None, number if self.wrong is None else self.wrong
        if not is_first:
            # The first is there, and was looked at, before another comes.
            time.sleep(0.5)
        data = self.served[first : last + 1]
        if number != self.wrong:
            return data
        return b"wrong"[: len(data)] + data[5:] if self.trouble == "wrong" else None

    def document(self) -> dict[str, Any]:
        return {
            "preload": self.id,
            "image": self.image,
            "size": len(self.data),
            "state_wanted": "ready",
            "disk_format": "raw",
            "os_hash_algo": "sha256",
            "os_hash_value": hashlib.sha256(self.data).hexdigest(),
            "virtual_size": len(self.data),
            "pinned": False,
            "torrent_url": f"/torrents/{self.id}" if self.data else None,
            "ca": self.authority.pem,
            "up_limit": 0,
            "down_limit": 0,
            **self.more,
        }


@dataclass
class Known:
    """What the server knows of a node."""

    id: str
    name: str
    secret: str
    said: dict[str, Any] = field(default_factory=dict)
    certificates: dict[str, str] = field(default_factory=dict)

    def state(self, preload: str) -> dict[str, Any]:
        return next((state for state in self.said.get("states", ()) if state["preload"] == preload), {})


class PreloadApi:
    """A server of its own thread; ``with PreloadApi() as api``."""

    def __init__(self) -> None:
        self.jobs: list[Preload] = []
        self.nodes: dict[str, Known] = {}
        self.drop: list[str] = []
        self.sources = 2
        self.off_by = 0.0  # of its clock
        self.draining = False
        self.refuses = False
        self.peers = True
        self.interval = 0.3
        self.heartbeats = 0
        self.bad_peers: list[dict[str, Any]] = []
        self.bytes_sent = 0
        self.tickets = 0
        self.largest_range = 0
        self.lock = threading.Lock()
        self.port = 0
        self.start()

    def start(self) -> None:
        """Listen, on the same port as before."""
        handler = type("Handler", (_Handler,), {"api": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> PreloadApi:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def node(self, name: str) -> Known:
        with self.lock:
            return next(node for node in self.nodes.values() if node.name == name)

    def state(self, name: str, preload: str) -> str | None:
        return self.node(name).state(preload).get("state")

    def reason(self, name: str, preload: str) -> str | None:
        return self.node(name).state(preload).get("reason")

    def register(self, document: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self.lock:
            if document.get("token") != "let me in":
                return 401, {"message": "no such token"}
            if any(node.name == document["name"] for node in self.nodes.values()):
                return 409, {"message": "there is a node of that name"}
            number = len(self.nodes) + 1
            node = Known(f"id-{number}", document["name"], f"secret-{number}")
            self.nodes[node.id] = node
            return 201, {"id": node.id, "name": node.name, "group": "g", "secret": node.secret, "interval": 1}

    def heartbeat(self, node: Known, said: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            node.said = said
            self.bad_peers += said["bad_peers"]
            for state in said["states"]:
                if state["wanted_csr"]:
                    job = next(job for job in self.jobs if job.id == state["preload"])
                    node.certificates[job.id] = job.authority.certificate(state["wanted_csr"])
            return {
                "interval": self.interval,
                "time": time.time() + self.off_by,
                "draining": self.draining,
                "drop": self.drop,
                "jobs": [self._job(job, node) for job in self.jobs],
            }

    def _job(self, job: Preload, node: Known) -> dict[str, Any]:
        others = [other for other in self.nodes.values() if other is not node and other.said.get("port")]
        peers = [{"address": other.said["address"], "port": other.said["port"]} for other in others]
        waiting = [each for each in self.nodes.values() if each.state(job.id).get("state") != "ready"]
        source = None
        if node in waiting[: self.sources]:
            self.tickets += 1
            source = {"url": f"/sources/{self.tickets}/{job.image}", "expires": time.time() + 3600}
        certificate = node.certificates.get(job.id)
        return job.document() | {"certificate": certificate, "peers": peers if self.peers else [], "source": source}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: PreloadApi

    def do_POST(self) -> None:
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v2/nodes":
            return self._send(*self.api.register(document))
        node = self.api.nodes[self.path.split("/")[3]]
        with self.api.lock:
            self.api.heartbeats += 1
        if self.api.refuses or self.headers["X-Node-Secret"] != node.secret:
            return self._send(404, {})
        return self._send(200, self.api.heartbeat(node, document))

    def do_GET(self) -> None:
        _, kind, name, *_ = self.path.split("/")
        if kind == "torrents":
            return self._send(200, next(job.torrent for job in self.api.jobs if job.id == name))
        # Nothing but the very path: libtorrent may add to it.
        job = next((job for job in self.api.jobs if self.path == f"/sources/{name}/{job.image}"), None)
        if job is None:
            return self._send(404, {})
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        data = job.part(int(first), int(last))
        if data is None:
            return self._send(503, {})
        with self.api.lock:
            self.api.bytes_sent += len(data)
            self.api.largest_range = max(self.api.largest_range, len(data))
        return self._send(206, data, f"bytes {first}-{int(first) + len(data) - 1}/{len(job.data)}")

    def _send(self, status: int, body: Any, content_range: str | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.write(data)

    def handle(self) -> None:
        # Killed agents say no good-bye.
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, *arguments: Any) -> None:
        pass
