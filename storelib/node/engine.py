# SPDX-License-Identifier: Apache-2.0
"""What fetches the bytes of images: the interface that libtorrent and the way without it have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias


class Address(NamedTuple):
    """Where a node is reached by others."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Part:
    """One job's share: what takes part in the exchange, for which file, and as whom.

    ``have`` says which pieces are on disk already. ``key`` and ``certificate`` are PEM, None where the job needs none.
    """

    preload: str
    torrent: bytes
    data: Path
    have: Sequence[bool]
    key: str | None = None
    certificate: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes that are there, and those that came from the API and from other nodes."""

    done: int = 0
    from_source: int = 0
    from_peers: int = 0


@dataclass(frozen=True, slots=True)
class Complete:
    """All bytes are on disk."""

    preload: str


@dataclass(frozen=True, slots=True)
class Broken:
    """It does not go on."""

    preload: str
    reason: str


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that people should know of, although it goes on."""

    preload: str
    reason: str


@dataclass(frozen=True, slots=True)
class BadPeer:
    """A node sent wrong bytes and is not listened to any more."""

    preload: str
    address: Address


@dataclass(frozen=True, slots=True)
class SourceLost:
    """The URL of the source does not work any more."""

    preload: str


Event: TypeAlias = Complete | Broken | Remark | BadPeer | SourceLost


class Engine(Protocol):
    """Fetches and passes on pieces in threads of its own; all methods are called by one thread and return at once.

    ``has_peers`` says whether others take part, who want to see a certificate.
    """

    has_peers: bool

    def add(self, part: Part) -> None:
        """Begin; the file has its whole length already."""

    def remove(self, preload: str) -> None:
        """Stop; unknown ones are none."""

    def holds(self, preload: str) -> bool:
        """Whether it was begun and not stopped."""

    def certify(self, part: Part) -> None:
        """Go on with a newer certificate."""

    def meet(self, preload: str, peers: Sequence[Address]) -> None:
        """Know of other nodes."""

    def source(self, preload: str, url: str | None) -> None:
        """Where the API has the image for this node; None: it is another one's turn."""

    def limit(self, preload: str, down: int, up: int) -> None:
        """Bytes per second for this job; 0 for no limit."""

    def progress(self, preload: str) -> Progress:
        """How far it is."""

    def poll(self) -> Sequence[Event]:
        """What happened since the last call."""

    def close(self) -> None:
        """Stop exchanging all preloads."""
