# SPDX-License-Identifier: Apache-2.0
"""The description of an image that nodes exchange it by: a torrent of version 2 (BEP 52) in the encoding of BEP 3.

It has no tracker, is private (BEP 27: nobody is looked for), and may have the certificate of the authority whose
certificates all who take part must show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from storelib.exceptions import Invalid
from storelib.preload.pieces import Pieces

Value: TypeAlias = "int | bytes | Sequence[Value] | Mapping[bytes, Value]"
#: A description has a handful of levels.
_DEEPEST = 16


def torrent(name: str, pieces: Pieces, authority: str | None = None) -> bytes:
    """The torrent of an image of one file, with the digests of its pieces; ``authority`` is a certificate in PEM.

    Raises Invalid for an empty image, of which there is nothing to exchange.
    """
    return _torrent(name, pieces, authority, pieces.root)


def _torrent(name: str, pieces: Pieces, authority: str | None, root: bytes) -> bytes:
    if not pieces.size:
        raise Invalid("an empty image has no pieces")
    file: Value = {b"": {b"length": pieces.size, b"pieces root": root}}
    info: dict[bytes, Value] = {
        b"file tree": {name.encode(): file},
        b"meta version": 2,
        b"name": name.encode(),
        b"piece length": pieces.piece_length,
        b"private": 1,
    }
    if authority is not None:
        info[b"ssl-cert"] = authority.encode()
    # Those of an image of one piece are in its info dictionary.
    layers: Value = {root: pieces.layer} if pieces.count > 1 else {}
    return encode({b"info": info, b"piece layers": layers})


@dataclass(frozen=True, slots=True)
class Description:
    """What a torrent of one file says. ``authority`` is None if peers need no certificate."""

    name: str
    pieces: Pieces
    authority: str | None


def read(data: bytes) -> Description:
    """What a torrent says, as ``torrent`` writes them; raises Invalid for any other, also if its digests differ."""
    try:
        found: Any = decode(data)
        info = found[b"info"]
        (name,) = info[b"file tree"]
        file = info[b"file tree"][name][b""]
        size, root = file[b"length"], file[b"pieces root"]
        layer = found[b"piece layers"].get(root, root)
        pieces = Pieces(size, layer, info[b"piece length"])
        authority = info.get(b"ssl-cert")
        description = Description(name.decode(), pieces, authority and authority.decode())
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Invalid("this is no torrent of one image") from error
    if pieces.root != root:
        raise Invalid("the digests of the torrent's pieces differ from their root")
    # Trackers, other sources and files: nothing else must be in it.
    if _torrent(description.name, pieces, description.authority, root) != data:
        raise Invalid("there is more in the torrent than one image")
    return description


def encode(value: Value) -> bytes:
    """The encoding of integers, bytes, lists and dictionaries that BEP 3 describes."""
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, bytes):
        return b"%d:%b" % (len(value), value)
    if isinstance(value, Mapping):
        return b"d%be" % b"".join(encode(key) + encode(value[key]) for key in sorted(value))
    return b"l%be" % b"".join(map(encode, value))


def decode(data: bytes) -> Value:
    """What ``encode`` encoded; raises Invalid for anything else."""
    try:
        value, end = _decode(data, 0, _DEEPEST)
    except (ValueError, IndexError) as error:
        raise Invalid("the torrent is malformed") from error
    if end != len(data):
        raise Invalid("the torrent has something behind its end")
    return value


def _decode(data: bytes, at: int, levels: int) -> tuple[Value, int]:
    """The value at an offset, and the offset behind it."""
    if not levels:
        raise ValueError("too many levels")
    kind = data[at : at + 1]
    if kind == b"i":
        end = data.index(b"e", at)
        return int(data[at + 1 : end]), end + 1
    if kind in (b"l", b"d"):
        values: list[Value] = []
        at += 1
        while data[at] != ord("e"):
            value, at = _decode(data, at, levels - 1)
            values.append(value)
        if kind == b"l":
            return values, at + 1
        return _dictionary(values), at + 1
    colon = data.index(b":", at)
    start, end = colon + 1, colon + 1 + int(data[at:colon])
    if not start <= end <= len(data):
        raise ValueError("a string is cut")
    return data[start:end], end


def _dictionary(values: Sequence[Value]) -> Mapping[bytes, Value]:
    names = values[::2]
    if len(values) % 2 or not all(isinstance(name, bytes) for name in names):
        raise ValueError("a dictionary has names that are no strings, or no value for one")
    return dict(zip(names, values[1::2], strict=True))  # type: ignore[arg-type]
