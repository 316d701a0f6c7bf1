# SPDX-License-Identifier: Apache-2.0
"""The bytes of images between files and an image API: sent with progress, received with resuming and a proof."""

from __future__ import annotations

import http.client
import os
import re
import stat
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import click
import urllib3

from storelib.cli.image.client import BLOCK, Api, Document, path_of
from storelib.cli.output import Progress
from storelib.exceptions import DigestMismatch, IncompleteRead, RemoteServiceUnavailable, StoreError

#: How often a download goes on without having moved since, and the seconds of waiting before that, doubled each time.
ATTEMPTS, PAUSE = 5, 0.5

_MAGIC = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vhd"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
    (0x8001, b"CD001", "iso"),
)
_SUFFIXES = {".raw": "raw", ".img": "raw", ".ploop": "ploop", ".vhd": "vhd"}


class Outgoing:
    """A file or stdin on its way out. ``size`` is in bytes, None where it cannot be known before."""

    def __init__(self, source: str) -> None:
        self._file: IO[bytes] = sys.stdin.buffer if source == "-" else open(source, "rb")  # noqa: SIM115  (closed below)
        self.size: int | None = None
        if source != "-":
            status = os.fstat(self._file.fileno())
            self.size = status.st_size if stat.S_ISREG(status.st_mode) else None
        self._done = 0
        self.progress: Progress | None = None

    def __enter__(self) -> Outgoing:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._file is not sys.stdin.buffer:
            self._file.close()

    def read(self, size: int = BLOCK) -> bytes:
        """The next bytes; a file that became shorter or longer is an error, not another image."""
        chunk = self._file.read(size)
        self._done += len(chunk)
        if self.size is not None and (self._done > self.size or (not chunk and self._done < self.size)):
            raise IncompleteRead(f"the file changed while it was sent: it had {self.size} bytes")
        if self.progress and chunk:
            self.progress(self._done, self.size)
        return chunk


def guess_format(source: str) -> str:
    """The disk format of a file, by its first bytes, then by its name; raises click.UsageError."""
    if source != "-":
        with open(source, "rb") as file:
            for offset, magic, name in _MAGIC:
                file.seek(offset)
                if file.read(len(magic)) == magic:
                    return name
        if (suffix := Path(source).suffix.lower()) in _SUFFIXES:
            return _SUFFIXES[suffix]
    shown = "stdin" if source == "-" else source
    raise click.UsageError(f"what {shown} is cannot be told: say so with --disk-format (raw, qcow2, iso, ...)")


class Incoming:
    """An image's data as a stream. A connection that breaks or stalls is made again, and reading goes on from there.

    At the end the bytes are compared with the digest that the API has on record; ``readinto`` raises DigestMismatch
    when they are others. ``begun`` are the first bytes, which were received before, as the server's ``etag`` of then.
    """

    def __init__(self, api: Api, image: Document, begun: Iterable[memoryview] = (), etag: str | None = None) -> None:
        from storelib.transfer.digests import new_hasher

        self._api = api
        self.image_id: str = image["id"]
        #: In bytes; an image without data has none.
        self.size: int = image["size"] or 0
        self.proof = proof_of(image)
        #: What the server calls this data, if it says so in a way that can be compared.
        self.etag = etag
        self._hasher: Any = new_hasher(self.proof[0]) if self.proof else None
        self._done = 0
        self._failures = 0
        self._trouble: Exception | None = None
        self._response: urllib3.BaseHTTPResponse | None = None
        self._skip = 0
        for piece in begun:
            self._take(piece)
        if self._done < self.size:
            self._open()

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, *exc: object) -> None:
        self._drop()

    def readinto(self, buffer: Any) -> int:
        """The next bytes; 0 at the end, once they are proven."""
        view = memoryview(buffer).cast("B")
        while self._done < self.size:
            if self._trouble is not None:
                trouble, self._trouble = self._trouble, None
                self._failed(trouble)
            count = self._receive(view[: self.size - self._done])
            if count:
                self._failures = 0
                self._take(view[:count])
                return count
        self._prove()
        return 0

    def _take(self, piece: memoryview) -> None:
        self._done += len(piece)
        if self._hasher is not None:
            self._hasher.update(piece)

    def _receive(self, view: memoryview) -> int:
        """Fill ``view`` as far as the connection goes, whose failure is noted: what came before it counts."""
        count = 0
        try:
            if self._response is None:
                self._open()
            file: Any = getattr(self._response, "_fp", None) or self._response
            while count < len(view):
                # Whatever is there: a read of all would lose what came before a line that stalls.
                chunk = file.read1(len(view) - count)
                if not chunk:
                    raise IncompleteRead(f"the connection ended after {self._done + count} of {self.size} bytes")
                dropped = min(self._skip, len(chunk))
                self._skip -= dropped
                view[count : count + len(chunk) - dropped] = chunk[dropped:]
                count += len(chunk) - dropped
        except (RemoteServiceUnavailable, IncompleteRead, http.client.HTTPException, OSError) as error:
            self._trouble = error
        except urllib3.exceptions.HTTPError as error:
            self._trouble = error
        return count

    def _open(self) -> None:
        headers = {}
        if self._done:
            headers["Range"] = f"bytes={self._done}-"
            if self.etag is not None:
                headers["If-Range"] = self.etag
        response = self._api.send("GET", path_of(self.image_id, "file"), headers=headers, stream=True)
        self._response, self._skip = response, 0
        etag = response.headers.get("ETag", "")
        # Weak ones say nothing about single bytes (RFC 9110, 13.1.5).
        self.etag = etag if etag.startswith('"') else None
        if not self._done:
            return
        if response.status == 200:
            # A server without ranges begins again.
            self._skip = self._done
            return
        begin = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if begin is None or int(begin[1]) != self._done:
            self._drop()
            raise StoreError(f"the image API sends another range than from byte {self._done} on")

    def _failed(self, error: Exception) -> None:
        self._drop()
        self._failures += 1
        if self._failures > ATTEMPTS:
            raise RemoteServiceUnavailable(
                f"the download broke off after {self._done} of {self.size} bytes, and so did every other try: {error}"
            ) from error
        time.sleep(PAUSE * 2 ** (self._failures - 1))

    def _prove(self) -> None:
        if self.proof is None:
            return
        algorithm, expected = self.proof
        found = self._hasher.hexdigest()
        if found != expected.lower():
            raise DigestMismatch(
                f"image {self.image_id}: the data has {algorithm} {found}, on record is {expected}; nothing was saved",
                algorithm=algorithm,
                expected=expected,
                found=found,
            )

    def _drop(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None


def proof_of(image: Document) -> tuple[str, str] | None:
    """The digest by which the data of an image can be proven, as (algorithm, hexadecimal); None if there is none."""
    known = ((image.get("os_hash_algo"), image.get("os_hash_value")), ("md5", image.get("checksum")))
    return next(((algorithm, digest) for algorithm, digest in known if algorithm and digest), None)
