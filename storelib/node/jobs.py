# SPDX-License-Identifier: Apache-2.0
"""What the API wants on this node: its jobs, checked as they come, and kept on disk, so that a node that starts while
the API is away goes on with the others.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storelib.exceptions import Invalid
from storelib.node import certificates
from storelib.node.disk import Record, is_sound, is_usable_id
from storelib.node.engine import Address
from storelib.node.files import write_private
from storelib.preload import torrent
from storelib.times import posix_seconds

LOG = logging.getLogger(__name__)
_FILE = "jobs.json"
#: What has a file of its own, and what would not be worth much at the next start.
_PASSING = ("torrent", "source", "expires", "met", "is_refused")


@dataclass
class Job:
    """One job: an image for the nodes of a group. ``key`` and ``certificate`` are this node's, in PEM."""

    preload: str
    image: str
    size: int
    os_hash_algo: str
    os_hash_value: str
    disk_format: str | None = None
    container_format: str | None = None
    virtual_size: int | None = None
    pinned: bool = False
    torrent_url: str | None = None
    ca: str | None = None
    certificate: str | None = None
    peers: list[Address] = field(default_factory=list)
    source: str | None = None
    expires: float | None = None
    down_limit: int = 0
    up_limit: int = 0
    key: str | None = None
    torrent: bytes | None = None
    #: Whether an engine that is at it was told of peers and source.
    met: bool = False
    #: Whether an engine would not have it, though the image is ready.
    is_refused: bool = False

    @property
    def certified(self) -> bool:
        """Whether other nodes would talk to this one."""
        return bool(self.ca and self.key and self.certificate)

    def record(self) -> Record:
        """What is to be known of the image on disk."""
        return Record(
            self.image,
            self.size,
            self.os_hash_algo,
            self.os_hash_value,
            self.disk_format,
            self.container_format,
            self.virtual_size,
            self.pinned,
        )

    def wanted_csr(self, node: str, now: float) -> str | None:
        """The request for a certificate, if there is none, or its time is nearly over; raises MissingDependency."""
        if not self.ca:
            return None
        if self.certificate and not _is_old(self.certificate, now):
            return None
        self.key = self.key or certificates.new_key()
        try:
            return certificates.request(self.key, node, self.image)
        except (ValueError, TypeError):
            # A disk made something else of it: without this no heartbeat would be sent any more.
            self.key, self.certificate = certificates.new_key(), None
            return certificates.request(self.key, node, self.image)


def _is_old(certificate: str, now: float) -> bool:
    try:
        begin, end = certificates.validity(certificate)
    except ValueError:
        return True
    # Of one that begins later the API's clock was ahead: nobody would take it.
    return not begin <= now <= begin + (end - begin) * 2 / 3


def read(document: Mapping[str, Any], old: Job | None) -> Job:
    """A job as the API describes it, with what this node has of it already; raises Invalid."""
    try:
        source = document.get("source") or {}
        job = Job(
            preload=str(document["preload"]),
            image=str(document["image"]),
            size=int(document["size"]),
            os_hash_algo=str(document["os_hash_algo"]),
            os_hash_value=str(document["os_hash_value"]),
            disk_format=document.get("disk_format"),
            container_format=document.get("container_format"),
            virtual_size=document.get("virtual_size"),
            pinned=bool(document.get("pinned")),
            torrent_url=document.get("torrent_url"),
            ca=document.get("ca"),
            certificate=document.get("certificate"),
            peers=[Address(str(peer["address"]), int(peer["port"])) for peer in document.get("peers") or ()],
            source=source.get("url"),
            expires=seconds(source.get("expires")),
            down_limit=int(document.get("down_limit") or 0),
            up_limit=int(document.get("up_limit") or 0),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise Invalid("the image API describes a job that is none") from error
    _check(job)
    if old is not None and (old.image, old.ca) == (job.image, job.ca):
        job.key, job.torrent, job.met, job.is_refused = old.key, old.torrent, old.met, old.is_refused
        job.certificate = job.certificate or old.certificate
    return job


def _check(job: Job) -> None:
    """Raise Invalid for a job whose names are no names of files, or whose image cannot be."""
    texts = (job.ca, job.certificate, job.key, job.torrent_url, job.source)
    if (
        not is_usable_id(job.preload)
        or not is_sound(job.record())
        or not all(isinstance(limit, int) and limit >= 0 for limit in (job.down_limit, job.up_limit))
        or not all(text is None or isinstance(text, str) for text in texts)
        or not all(0 <= peer.port < 65536 for peer in job.peers)
    ):
        raise Invalid("the image API describes a job that cannot be")


def check_torrent(job: Job, data: bytes) -> None:
    """Raise Invalid for a torrent that is not the job's."""
    found = torrent.read(data)
    if (found.name, found.pieces.size, found.authority) != (job.image, job.size, job.ca):
        raise Invalid("it is not that of the job")


def seconds(value: Any) -> float | None:
    """A time that is a number, or ISO 8601, as seconds since the epoch; None if it is neither."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    try:
        found = datetime.datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    except ValueError:
        return None
    return posix_seconds(found)


def save(directory: Path, jobs: Iterable[Job]) -> None:
    """Keep the jobs for the next start, the keys among them; raises OSError."""
    places, kept = directory / "torrents", []
    places.mkdir(mode=0o700, exist_ok=True)
    for job in jobs:
        kept.append({name: value for name, value in vars(job).items() if name not in _PASSING})
        if job.torrent and not (places / job.preload).exists():
            write_private(places / job.preload, job.torrent)
    write_private(directory / _FILE, json.dumps(kept).encode())
    names = {job["preload"] for job in kept}
    for place in places.iterdir():
        if place.name not in names:
            place.unlink()


def load(directory: Path) -> list[Job]:
    """The jobs that were kept; none if they cannot be read."""
    try:
        found = []
        for kept in json.loads((directory / _FILE).read_bytes()):
            job = Job(**kept)
            job.peers = [Address(*peer) for peer in kept["peers"]]
            _check(job)
            job.torrent = _torrent(job, directory / "torrents" / job.preload)
            found.append(job)
        return found
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, AttributeError, Invalid):
        LOG.warning("the jobs of the last start cannot be read; the image API tells them again")
        return []


def _torrent(job: Job, place: Path) -> bytes | None:
    try:
        data = place.read_bytes()
        check_torrent(job, data)
        return data
    except Invalid:
        # Or what comes in its stead would not be kept.
        with contextlib.suppress(OSError):
            place.unlink()
        return None
    except OSError:
        return None
