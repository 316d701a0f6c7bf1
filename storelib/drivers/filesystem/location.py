# SPDX-License-Identifier: Apache-2.0
"""The URI of an image file, and which names below a data directory are images, this driver's own or other programs'."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from storelib.driver import StoreLocation, check_image_id
from storelib.exceptions import BadStoreUri, Invalid
from storelib.uris import quote_path, redact, scheme_of, unquote

SCHEMES = ("file", "filesystem")

#: The directory in a data directory for files of our own: see datadirs.py.
ASIDE = ".storelib-aside"

SHARD = re.compile(r"[0-9a-f]{2}")
DEEPEST_SHARD = 2

#: An image id has no control character, so no image can ever have such a name.
_OWN = re.compile(r"\.(part|claim|gone)\x01([0-9a-f]{16})\x01(.*)", re.DOTALL)
#: For file systems that take no control characters (FAT, exFAT, SMB); ``add`` refuses ids that look like it.
_PLAIN = re.compile(r"\.storelib-(part|claim|gone)-([0-9a-f]{16})-(.*)", re.DOTALL)
#: As much of the id, in bytes, as a file name of at most 255 bytes has room for beside the rest.
_SHOWN = 200

#: Temporary names of other programs and of file systems themselves. A listing cannot tell them from images, so they
#: are none, and ``add`` refuses them.
_FOREIGN = re.compile(
    r"""
    \.nfs[0-9a-f]{8,}             # NFS clients: deleted while open
    | \.fuse_hidden[0-9a-f]{8,}   # libfuse: the same
    | \.__(?:afs|smb)[0-9A-Fa-f]+ # AFS and SMB clients: the same
    | \.DS_Store | \._.+          # macOS: settings of a folder, attributes of a file
    | \.~lock\..*\#               # LibreOffice
    | \.\#.+                      # Emacs
    | \..+\.sw[a-p]               # Vim
    | \.goutputstream-\w{6}       # GLib
    | \.syncthing\..+\.tmp        # Syncthing
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, repr=False)
class FileLocation(StoreLocation):
    """``file:///absolute/path``, percent-encoded; ``filesystem:`` and paths that are not encoded are read too."""

    path: str

    @classmethod
    def parse(cls, uri: str) -> FileLocation:
        """The absolute path in ``uri``; raises BadStoreUri for ``..``, hosts, queries and relative paths."""
        scheme = scheme_of(uri)
        rest = uri[len(scheme) + len("://") :]
        host, slash, path = rest.partition("/")
        if scheme not in SCHEMES or host not in ("", "localhost") or not slash:
            raise BadStoreUri(f"expected file:///absolute/path, not {redact(uri)}")
        if "?" in path or "#" in path:
            raise BadStoreUri(f"a query or fragment in {redact(uri)}; write '?' as %3F and '#' as %23")
        parts = [unquote(part, uri) for part in path.split("/") if part not in ("", ".")]
        bad = [part for part in parts if part in ("", ".", "..") or "/" in part or "\0" in part]
        if bad or not parts or path.endswith("/"):
            raise BadStoreUri(f"not the path of a file: {redact(uri)!r}")
        return cls("/" + "/".join(parts))

    @property
    def image_id(self) -> str:
        """The id of the image that is there, if one is."""
        return self.path.rpartition("/")[2]

    @property
    def uri(self) -> str:
        """The URI of this path."""
        return "file://" + quote_path(self.path)


# -- Names ----------------------------------------------------------------------------------------------------------


class OwnName(NamedTuple):
    """What the name of one of this driver's own files says; ``image_id`` is cut where it is long."""

    kind: str
    token: str
    image_id: str


def own_names(kind: str, token: str, image_id: str) -> tuple[str, str]:
    """The name of a file of our own, and the one for file systems that refuse control characters."""
    shown = image_id.encode()[:_SHOWN].decode(errors="ignore")
    return f".{kind}\x01{token}\x01{shown}", f".storelib-{kind}-{token}-{shown}"


def parse_own(name: str) -> OwnName | None:
    """Take such a name apart; None for all others."""
    match = _OWN.fullmatch(name) or _PLAIN.fullmatch(name)
    return None if match is None else OwnName(*match.groups())


def is_whole(image_id: str) -> bool:
    """Whether an id out of one of our own names is not cut."""
    # Up to three bytes of a character that did not fit are left out, too.
    return len(image_id.encode()) <= _SHOWN - 4


def new_token() -> str:
    """16 random hexadecimal digits."""
    return secrets.token_hex(8)


def id_token(image_id: str) -> str:
    """16 hexadecimal digits that are the same for the same id."""
    return hashlib.sha256(image_id.encode()).hexdigest()[:16]


def is_image(name: str) -> bool:
    """Whether a file of this name is an image, as opposed to one of ours or some other program's."""
    if name.startswith(".") and (name == ASIDE or parse_own(name) is not None or _FOREIGN.fullmatch(name) is not None):
        return False
    return _is_id(name)


def _is_id(name: str) -> bool:
    """Whether a location may have it: names of other programs' files may have control characters, or be no UTF-8."""
    if name.isascii() and name.isprintable():
        return True
    try:
        check_image_id(name)
    except Invalid:
        return False
    return True


def image_location(datadir: str, below: Sequence[str], image_id: str) -> FileLocation:
    """Where an image is that lies in these subdirectories of a data directory."""
    return FileLocation("/".join((datadir.rstrip("/"), *below, image_id)))


def shards(image_id: str, levels: int) -> list[str]:
    """The subdirectories for an id: the first bytes of its SHA-256 in hexadecimal."""
    digest = id_token(image_id) if levels else ""
    return [digest[2 * level : 2 * level + 2] for level in range(levels)]
