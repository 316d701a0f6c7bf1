# SPDX-License-Identifier: Apache-2.0
"""The exchange of pieces by libtorrent: one session, a torrent for each job. Only here is libtorrent used.

Nobody is looked for: peers and the web seed are those that the API names. Between peers there is only TLS, by the
authority in the torrent.
"""

from __future__ import annotations

import logging
import os
import random
import ssl
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from storelib.exceptions import BadStoreConfiguration
from storelib.extras import needing
from storelib.node.api import USER_AGENT
from storelib.node.engine import Address, BadPeer, Broken, Complete, Event, Part, Progress, Remark, SourceLost
from storelib.node.options import Settings
from storelib.node.reading import PAUSE, Reader, Reading, Stopped
from storelib.preload import torrent
from storelib.preload.pieces import Pieces

LOG = logging.getLogger(__name__)
MiB = 1024 * 1024
#: Seconds of fetching that a kill may cost.
_FLUSH = 2.0
#: Seconds at most until pieces that did not come from the source, or came wrong, are read again.
_AWAY, _WRONG = 8.0, 600.0
#: Numbers of errors of libtorrent: a web seed is banned, or its address is.
_BANNED = (91, 89)
#: Bytes per second: libtorrent counts them in 32 bits.
_HIGHEST = 2**31 - 1
#: Connections that others made and that are remembered.
_MOST_INCOMING = 1000

#: Measured with 16 nodes at the same rate limit: with libtorrent's own values for web seeds all needed 2.98 times what
#: one needs, with these 1.29 times.
_WEB_SEED = {"urlseed_max_request_bytes": MiB, "urlseed_pipeline_size": 1, "urlseed_wait_retry": 3}
#: No tracker, no discovery, no UDP.
_ALONE = {
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "enable_outgoing_utp": False,
    "enable_incoming_utp": False,
}
_REST = {
    "user_agent": USER_AGENT,
    # The API says where web seeds are, which may be this very machine, or a URL that is signed in its query.
    "ssrf_mitigation": False,
    # A node has one address; in tests, and with several agents on a host, several nodes have the same.
    "allow_multiple_connections_per_ip": True,
    # Nodes that are frozen or gone are given up after this many seconds.
    "peer_timeout": 20,
    "inactivity_timeout": 60,
    "request_timeout": 10,
    "peer_connect_timeout": 5,
    "handshake_timeout": 10,
    # The API names a node that is back again at each heartbeat.
    "min_reconnect_time": 5,
    "max_failcount": 10,
    "connections_limit": 60,
    # Whom a node sends to is thought over more often than every 15 seconds: an image may not take longer.
    "unchoke_slots_limit": 8,
    "unchoke_interval": 5,
    "optimistic_unchoke_interval": 10,
    "aio_threads": 2,
    "hashing_threads": 1,
    "max_queued_disk_bytes": 8 * MiB,
    "active_limit": -1,
    "active_downloads": -1,
    "active_seeds": -1,
    "alert_queue_size": 4000,
}

#: libtorrent wants parameters for Diffie-Hellman, though TLS with elliptic curves needs none: ffdhe2048 of RFC 7919.
_DH = """\
-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""


@dataclass
class _Torrent:
    """One torrent in the session, and what was counted of it."""

    handle: Any
    name: str
    pieces: Pieces
    complete: bool = False
    flushing: bool = False
    flushed: float = 0.0
    url: str | None = None
    reading: Reading | None = None
    peers: set[Address] = field(default_factory=set)
    from_source: int = 0
    from_peers: int = 0
    counted: dict[tuple[bool, Any], int] = field(default_factory=dict)


class Swarm:
    """An Engine. Raises MissingDependency where libtorrent is not installed, BadStoreConfiguration where it cannot
    listen.

    Of a web seed that sent one wrong piece libtorrent wants no other, and of one that lacks one it asks for that again
    and again: all else that it has ``reader`` reads.
    """

    has_peers = True

    def __init__(self, settings: Settings, reader: Reader | None = None) -> None:
        with needing("exchanging images between nodes", "node"):
            import libtorrent
        lt: Any = libtorrent
        self._lt = lt
        _trust(settings.ca_file)
        category = lt.alert.category_t
        bind = f"[{settings.bind}]" if ":" in settings.bind else settings.bind
        self._session = lt.session(
            {
                **_ALONE,
                **_WEB_SEED,
                **_REST,
                "listen_interfaces": f"{bind}:{settings.port}s",
                # Where it listens on all addresses, the system chooses the one to connect from.
                "outgoing_interfaces": "" if settings.bind in ("0.0.0.0", "::") else settings.bind,  # noqa: S104
                "download_rate_limit": min(settings.down_limit, _HIGHEST),
                "upload_rate_limit": min(settings.up_limit, _HIGHEST),
                "alert_mask": category.error_notification
                | category.status_notification
                | category.peer_notification
                | category.storage_notification,
            }
        )
        self._limit_local_addresses()
        self._banned = lt.ip_filter()
        self._torrents: dict[str, _Torrent] = {}
        self._names: dict[str, str] = {}  # of jobs, by info-hash
        self._events: deque[Event] = deque()
        self._reader = reader
        # Each by its address and port, the oldest first.
        self._incoming: dict[tuple[str, int], None] = {}
        self._await_socket(settings.port)

    def _await_socket(self, port: int) -> None:
        for _ in range(50):
            self._session.wait_for_alert(200)
            for alert in self._session.pop_alerts():
                if alert.what() == "listen_succeeded":
                    return
                if alert.what() == "listen_failed":
                    raise BadStoreConfiguration(f"[node] bind, port = {port}: {alert.message()}")
        raise BadStoreConfiguration(f"[node] bind, port = {port}: libtorrent does not listen")

    def _limit_local_addresses(self) -> None:
        """Without this libtorrent takes rate limits for the internet's."""
        addresses = self._lt.ip_filter()
        everybody = 1 << self._lt.session.global_peer_class_id
        addresses.add_rule("0.0.0.0", "255.255.255.255", everybody)  # noqa: S104
        addresses.add_rule("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", everybody)
        self._session.set_peer_class_filter(addresses)

    def add(self, part: Part) -> None:
        """Begin; raises Invalid for what is no torrent."""
        described = torrent.read(part.torrent)
        parameters = self._lt.load_torrent_buffer(part.torrent)
        parameters.save_path = str(part.data.parent)
        parameters.renamed_files = {0: part.data.name}
        parameters.storage_mode = self._lt.storage_mode_t.storage_mode_sparse
        parameters.have_pieces = list(part.have)
        flags = self._lt.torrent_flags
        parameters.flags = flags.duplicate_is_error | flags.default_flags & ~flags.auto_managed & ~flags.paused
        added = _Torrent(self._session.add_torrent(parameters), described.name, described.pieces, all(part.have))
        self._torrents[part.preload] = added
        self._names[str(added.handle.info_hashes().v2)] = part.preload
        self.certify(part)

    def remove(self, preload: str) -> None:
        """Stop; the file stays."""
        found = self._torrents.pop(preload, None)
        if found is not None:
            if found.reading is not None:
                found.reading.stop()
            self._names.pop(str(found.handle.info_hashes().v2), None)
            self._session.remove_torrent(found.handle)

    def holds(self, preload: str) -> bool:
        """Whether there is such a torrent."""
        return preload in self._torrents

    def certify(self, part: Part) -> None:
        """Show this certificate to those that connect from now on."""
        if part.key and part.certificate:
            self._torrents[part.preload].handle.set_ssl_certificate_buffer(part.certificate, part.key, _DH)

    def meet(self, preload: str, peers: Sequence[Address]) -> None:
        """Connect to nodes, unless that was done."""
        if (found := self._torrents.get(preload)) is not None:
            known = set(found.peers)
            found.peers.update(peers)
            for peer in peers:
                try:
                    found.handle.connect_peer((peer.host, peer.port))
                except (RuntimeError, ValueError, TypeError, OverflowError):
                    # It names it at each heartbeat.
                    if peer not in known:
                        LOG.warning("the API names a node at %s, which is no address", peer.host)

    def source(self, preload: str, url: str | None) -> None:
        """Have this web seed and no other one; its last segment is the torrent's name."""
        found = self._torrents.get(preload)
        if found is None or (url and found.complete):
            return
        if found.reading is not None:
            found.url = url
            # The same one again, too: it may have been refused only for a while.
            found.reading.read_from(url)
            return
        if found.url == url:
            return
        found.url = url
        for other in found.handle.url_seeds():
            found.handle.remove_url_seed(other)
        if url:
            # To a URL that ends in a slash libtorrent adds the name always, to others only sometimes.
            found.handle.add_url_seed(url.removesuffix(found.name))

    def limit(self, preload: str, down: int, up: int) -> None:
        """Bytes per second of one torrent."""
        if (found := self._torrents.get(preload)) is not None:
            found.handle.set_download_limit(min(down, _HIGHEST))
            found.handle.set_upload_limit(min(up, _HIGHEST))
            if found.reading is not None:
                found.reading.limit = down

    def progress(self, preload: str) -> Progress:
        """How far it is, and from whom it came as far as that is known."""
        found = self._torrents.get(preload)
        if found is None:
            return Progress()
        if not found.complete:
            self._count(found)
            self._keep_up(found)
        done = found.pieces.size if found.complete else min(found.handle.status().total_done, found.pieces.size)
        more = 0 if found.reading is None else found.reading.fetched
        return Progress(done, found.from_source + more, found.from_peers)

    def _keep_up(self, found: _Torrent) -> None:
        """Have on disk what came: libtorrent keeps some MiB in memory, which a kill would lose."""
        if time.monotonic() - found.flushed > _FLUSH:
            found.flushed = time.monotonic()
            found.handle.flush_cache()

    def _count(self, found: _Torrent) -> None:
        counted = {}
        for peer in found.handle.get_peer_info():
            from_source = peer.connection_type != self._lt.peer_info.standard_bittorrent
            key = (from_source, peer.ip)
            before = found.counted.get(key, 0)
            counted[key] = peer.total_download
            # A connection that was made anew begins at zero.
            more = peer.total_download - (before if peer.total_download >= before else 0)
            if from_source:
                found.from_source += more
            else:
                found.from_peers += more
        found.counted = counted

    def _count_rest(self, found: _Torrent) -> None:
        """What came since it was last looked, from connections that are closed by now: all of it for an image that
        is fetched between two looks. A node that may read from the API does while no other node has all of it."""
        self._count(found)
        rest = max(found.handle.status().total_payload_download - found.from_source - found.from_peers, 0)
        if found.peers and not found.url:
            found.from_peers += rest
        else:
            found.from_source += rest

    def poll(self) -> Sequence[Event]:
        """What libtorrent tells, as far as it concerns jobs."""
        for alert in self._session.pop_alerts():
            if alert.what() == "incoming_connection":
                self._note_incoming(alert.endpoint)
                continue
            preload = self._job_of(alert)
            found = self._torrents.get(preload or "")
            if preload is None or found is None:
                continue
            self._note(alert, preload, found)
        events = []
        while self._events:
            events.append(self._events.popleft())
        return events

    def _note_incoming(self, endpoint: tuple[str, int]) -> None:
        self._incoming[endpoint] = None
        while len(self._incoming) > _MOST_INCOMING:
            del self._incoming[next(iter(self._incoming))]

    def _note(self, alert: Any, preload: str, found: _Torrent) -> None:
        kind = alert.what()
        if kind in ("torrent_finished", "cache_flushed") and not found.complete:
            self._finish(kind, preload, found)
        elif kind in ("file_error", "torrent_error", "fastresume_rejected"):
            self._events.append(Broken(preload, f"libtorrent: {alert.error.message()}"))
        elif kind == "peer_ban":
            place = Address(*alert.endpoint)
            # Whatever else it is connected to is a web seed. Its address is not banned: it has other images.
            if place in found.peers or place in self._incoming:
                self._ban(place.host)
                self._events.append(BadPeer(preload, place))
        elif kind == "hash_failed":
            self._events.append(Remark(preload, "a part came with wrong bytes, and is fetched again"))
        elif kind == "url_seed":
            self._lose_source(alert, preload, found)
        elif kind == "torrent_need_cert":
            LOG.debug("a torrent waits for its certificate")

    def _lose_source(self, alert: Any, preload: str, found: _Torrent) -> None:
        """It may be forbidden, or gone; the next heartbeat brings another one."""
        if self._reader is not None and found.reading is None and _is_partial(alert):
            self._read(self._reader, preload, found)
        else:
            found.url = None
            self._events.append(SourceLost(preload))

    def _read(self, reader: Reader, preload: str, found: _Torrent) -> None:
        """From now on read what is lacking without libtorrent, which checks it again."""
        handle = found.handle

        def lacks(number: int) -> bool:
            return not handle.have_piece(number)

        def put(number: int, piece: bytes) -> None:
            handle.add_piece(number, piece, 0)

        reading = found.reading = Reading(preload, found.pieces, lacks, put, self._events.append)
        reading.limit = max(handle.download_limit(), 0)
        reading.read_from(found.url)
        reader.begin(reading, lambda: self._read_on(reader, reading))

    def _read_on(self, reader: Reader, reading: Reading) -> None:
        """Until all is there, wherever it comes from."""
        numbers = list(range(reading.pieces.count))
        # Nodes that read the same image at a time have different pieces for each other.
        random.shuffle(numbers)
        pause = PAUSE
        try:
            while any(map(reading.lacks, numbers)):
                wrong, missing = reader.read_all(reading, numbers)
                if wrong:
                    reading.tell(Remark(reading.preload, "the source sends wrong bytes"))
                if wrong or missing:
                    pause = min(2 * pause, _WRONG if wrong else _AWAY)
                reading.pause(pause)
        except RuntimeError:
            # The torrent is not in the session any more.
            raise Stopped from None

    def _finish(self, kind: str, preload: str, found: _Torrent) -> None:
        """A torrent is finished before its last bytes are on disk."""
        if kind == "torrent_finished":
            self._count_rest(found)
            found.flushing = True
            found.handle.flush_cache()
        elif found.flushing:
            found.complete = True
            self._events.append(Complete(preload))

    def _ban(self, host: str) -> None:
        """Have nothing to do with an address any more: libtorrent bans a port, and the peer would come from another."""
        self._banned.add_rule(host, host, 1)
        self._session.set_ip_filter(self._banned)

    def _job_of(self, alert: Any) -> str | None:
        try:
            return self._names.get(str(alert.handle.info_hashes().v2))
        except (AttributeError, RuntimeError):
            return None

    def close(self) -> None:
        """Stop all torrents; returns when libtorrent's threads have ended."""
        for preload in list(self._torrents):
            self.remove(preload)
        del self._session


def _is_partial(alert: Any) -> bool:
    """Whether a web seed that failed may have other pieces: it is banned for one, or its server failed with one."""
    if alert.error.category().name() == "libtorrent":
        return alert.error.value() in _BANNED
    # Of what a server said there is only the text.
    return bool(alert.error_message().startswith("5"))


def _trust(ca_file: str | None) -> None:
    """Have web seeds checked against the same certificates as the API: libtorrent brings an OpenSSL of its own, which
    knows no paths of this system."""
    places = ssl.get_default_verify_paths()
    file, directory = (ca_file, None) if ca_file else (places.cafile, places.capath)
    if file:
        os.environ["SSL_CERT_FILE"] = file
    if directory:
        os.environ["SSL_CERT_DIR"] = directory
