# SPDX-License-Identifier: Apache-2.0
"""image_decompression: gzip, zip, xz and zstd, unpacked as the data passes, in bounded memory and to a bounded length.

What is said to be ``compressed`` (container_format) stays so. An archive has exactly one file in it.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace

from storelib.api.errors import LimitExceeded, UnsupportedMediaType
from storelib.api.service.material import Material, Plugin
from storelib.extras import needing
from storelib.inspection.source import Ahead, Readable
from storelib.transfer.contract import KiB, MiB

#: Bytes that are read and, except for zstd, unpacked at once.
BLOCK = 256 * KiB
#: Bytes that a decoder may need: what ``xz -9`` (65 MiB) and ``zstd --ultra -22`` (128 MiB) do.
MEMORY = 130 * MiB
WINDOW = 128 * MiB
#: What may come out however little went in.
SLACK = 64 * MiB
#: zstd packs 128 KiB into 4 bytes and unpacks at once all it is given, so that it is given this much.
PIECE = 1 * KiB

_ZIP_ENTRY, _ZIP_DIRECTORY, _ZIP_DESCRIPTOR = b"PK\3\4", b"PK\1\2", b"PK\7\x08"
_ENCRYPTED, _DESCRIPTOR_FOLLOWS = 1, 8
_STORED, _DEFLATED = 0, 8
_IN_EXTRA_FIELD = 0xFFFFFFFF
_ZIP64 = 1


def plugin(options: SimpleNamespace) -> Plugin:
    """Unpack what is packed."""
    ratio = options.import_decompression_ratio

    def decompress(material: Material) -> None:
        if material.image.container_format == "compressed":
            return
        source = Ahead(material.stream)
        head = source.peek(max(map(len, _DECODERS)))
        decode = next((decode for magic, decode in _DECODERS.items() if head.startswith(magic)), None)
        if decode is None:
            # What was looked at is still to be read.
            material.stream = source
            return
        counted = _Counted(source, material.check)
        material.replace_data(_Chunks(_bounded(decode(counted), counted, ratio)))

    return decompress


class _Chunks:
    """What an iterator gives, to be read."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = memoryview(b"")

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most ``size``; empty at the end."""
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._left = memoryview(chunk)
        found, self._left = self._left[:size], self._left[size:]
        return bytes(found)


class _Counted:
    """A source that knows how many bytes it has given, and gives back what was read too early.

    ``check`` is called whenever it is read: of many packed parts with nothing in them nothing comes out for hours, so
    that nobody else would ask whether it is still wanted.
    """

    def __init__(self, source: Readable, check: Callable[[], object]) -> None:
        self._source = source
        self._check = check
        self._back = b""
        self.count = 0

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most ``size``; empty at the end. Raises why the import is not wanted any more."""
        self._check()
        if self._back:
            chunk, self._back = self._back[:size], self._back[size:]
        else:
            chunk = self._source.read(size)
        self.count += len(chunk)
        return chunk

    def put_back(self, data: bytes) -> None:
        """Give back bytes, to be read next."""
        self._back = data + self._back
        self.count -= len(data)

    def read_all(self, size: int) -> bytes:
        """Exactly so many bytes; raises UnsupportedMediaType."""
        found = b""
        while len(found) < size:
            chunk = self.read(size - len(found))
            if not chunk:
                raise _broken("it is cut short")
            found += chunk
        return found


def _bounded(chunks: Iterator[bytes], source: _Counted, ratio: int) -> Iterator[bytes]:
    """``chunks`` as long as they are not far more than went in; raises what is wrong with packed data as such."""
    total = 0
    try:
        for chunk in chunks:
            total += len(chunk)
            if total > SLACK + ratio * source.count:
                raise LimitExceeded(
                    f"the data unpacks to more than {ratio} times what it was (option import_decompression_ratio)"
                )
            yield chunk
    except (zlib.error, lzma.LZMAError, EOFError) as error:
        raise _broken(str(error)) from error


def _gzip(source: _Counted) -> Iterator[bytes]:
    """Members one after the other, and zeros behind the last, as tapes have them."""
    while True:
        yield from _inflate(source, zlib.decompressobj(31))
        if not _skip_zeros(source):
            return


def _skip_zeros(source: _Counted) -> bool:
    """Whether there is anything but zeros to come."""
    while chunk := source.read(BLOCK):
        if rest := chunk.lstrip(b"\0"):
            source.put_back(rest)
            return True
    return False


def _inflate(source: _Counted, decoder: zlib._Decompress) -> Iterator[bytes]:
    """One deflated stream; what is behind it is given back."""
    while not decoder.eof:
        data = decoder.unconsumed_tail or source.read(BLOCK)
        if not data:
            raise _broken("it is cut short")
        if chunk := decoder.decompress(data, BLOCK):
            yield chunk
    source.put_back(decoder.unused_data)


def _xz(source: _Counted) -> Iterator[bytes]:
    """Streams one after the other, with zeros between them."""
    while True:
        decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY)
        while not decoder.eof:
            data = source.read(BLOCK) if decoder.needs_input else b""
            if decoder.needs_input and not data:
                raise _broken("it is cut short")
            if chunk := decoder.decompress(data, BLOCK):
                yield chunk
        source.put_back(decoder.unused_data)
        if not _skip_zeros(source):
            return


def _zstd(source: _Counted) -> Iterator[bytes]:
    """Frames one after the other; raises MissingDependency."""
    with needing("unpacking zstd", "zstd"):
        import zstandard

    try:
        while first := source.read(PIECE):
            decoder = zstandard.ZstdDecompressor(max_window_size=WINDOW).decompressobj()
            data = first
            while True:
                if chunk := decoder.decompress(data):
                    yield chunk
                if decoder.eof:
                    break
                if not (data := source.read(PIECE)):
                    raise _broken("it is cut short")
            source.put_back(decoder.unused_data)
    except zstandard.ZstdError as error:
        raise _broken(str(error)) from error


def _zip(source: _Counted) -> Iterator[bytes]:
    """The one file of an archive, from its beginning: what the directory at its end says is not needed."""
    _, flags, method, _, _, crc, packed, size, name, extra = struct.unpack("<HHHHHIIIHH", source.read_all(30)[4:])
    source.read_all(name)
    fields = source.read_all(extra)
    if flags & _ENCRYPTED or method not in (_STORED, _DEFLATED):
        raise _broken("it is encrypted, or packed in another way than zip usually does")
    told = not flags & _DESCRIPTOR_FOLLOWS
    zip64 = _zip64(fields)
    if told and _IN_EXTRA_FIELD in (packed, size) and zip64 is not None:
        size, packed = zip64
    if method == _DEFLATED:
        chunks = _inflate(source, zlib.decompressobj(-15))
    elif told:
        chunks = _stored(source, packed)
    else:
        raise _broken("where its file ends is not said before it")
    found_crc = found = 0
    for chunk in chunks:
        found_crc, found = zlib.crc32(chunk, found_crc), found + len(chunk)
        yield chunk
    if not told:
        crc, size = _descriptor(source, wide=zip64 is not None or found > _IN_EXTRA_FIELD)
    if (found_crc, found) != (crc, size):
        raise _broken("its file is not what was packed")
    behind = source.read_all(4)
    if behind != _ZIP_DIRECTORY:
        raise _broken("it has more than one file in it" if behind == _ZIP_ENTRY else "its directory is missing")
    while source.read(BLOCK):
        pass


def _stored(source: _Counted, size: int) -> Iterator[bytes]:
    while size:
        chunk = source.read_all(min(size, BLOCK))
        size -= len(chunk)
        yield chunk


def _zip64(fields: bytes) -> tuple[int, int] | None:
    """Size and packed size in the extra fields of an entry."""
    while len(fields) >= 4:
        kind, length = struct.unpack_from("<HH", fields)
        if kind == _ZIP64 and length >= 16 and len(fields) >= 20:
            size, packed = struct.unpack_from("<QQ", fields, 4)
            return size, packed
        fields = fields[4 + length :]
    return None


def _descriptor(source: _Counted, *, wide: bool) -> tuple[int, int]:
    """CRC and size, which follow the data; with or without a signature before them."""
    head = source.read_all(4)
    if head == _ZIP_DESCRIPTOR:
        head = source.read_all(4)
    rest = source.read_all(16 if wide else 8)
    size = struct.unpack_from("<QQ" if wide else "<II", rest)[1]
    return struct.unpack("<I", head)[0], size


def _broken(why: str) -> UnsupportedMediaType:
    return UnsupportedMediaType(f"the packed data cannot be unpacked: {why}")


_DECODERS: dict[bytes, Callable[[_Counted], Iterator[bytes]]] = {
    b"\x1f\x8b\x08": _gzip,
    _ZIP_ENTRY: _zip,
    b"\xfd7zXZ\0": _xz,
    b"\x28\xb5\x2f\xfd": _zstd,
}
