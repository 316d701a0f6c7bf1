# SPDX-License-Identifier: Apache-2.0
"""Holes: where a stream says that there are only zeros, there are, of whole images and of ranges."""

from __future__ import annotations

import functools
import itertools

import pytest

from storelib.capabilities import Capability
from storelib.testing.conformance.bench import Bench, assert_same_bytes, payload
from storelib.testing.conformance.promises import Promises, needs
from storelib.transfer.contract import KiB, MiB


@needs(Capability.READ)
class Holes(Promises):
    """Promises of ``extents``. Applies to read-only stores as well."""

    @pytest.mark.parametrize("form", ["dense", "with holes"])
    def test_extents_tell_the_truth(self, bench: Bench, form: str) -> None:
        """Extents cover the image in order without gaps; what they call a hole reads as zeros."""
        if form == "with holes":
            data = payload(70_000) + bytes(2 * MiB) + payload(70_001) + bytes(MiB)
            uri = bench.put(data)
        else:
            uri, data = bench.image(3 * bench.part + 1)
        assert_extents(bench, uri, data, 0, None)

    def test_no_byte_hides_in_a_hole(self, bench: Bench) -> None:
        """A single byte among zeros is data, be it the first or last of a block, of a part, of the image or between."""
        data = _lonely_bytes(bench.part)
        uri = bench.put(data)
        assert_extents(bench, uri, data, 0, None)

    @needs(Capability.RANGE)
    def test_extents_of_a_range_are_those_of_the_range(self, bench: Bench) -> None:
        """Extents of a range begin and end with it, and are counted from its start, wherever it was cut."""
        data = _lonely_bytes(bench.part)
        uri = bench.put(data)
        size, part = len(data), bench.part
        ranges = [(1, None), (4095, 2), (64 * KiB - 1, 64 * KiB + 2), (part - 1, 2), (part + 7, part), (size - 1, 1)]
        ranges += [(1000, size - 2000), (size // 2, 10 * size), (size, None), (5, 0)]
        for offset, length in ranges:
            assert_extents(bench, uri, data, offset, length)
        uri, data = bench.image(3 * part + 1)
        assert_extents(bench, uri, data, 1000, len(data) - 2000)


def assert_extents(bench: Bench, uri: str, data: bytes, offset: int, length: int | None) -> None:
    """The stream of that range has the right bytes and tells nothing but the truth about them."""
    expected = data[offset:] if length is None else data[offset : offset + length]
    where = f"of {len(expected)} bytes from {offset} on"
    with bench.store.get(uri, offset, length).data as stream:
        first = stream.read(10)
        extents = list(stream.extents())
        assert list(stream.extents()) == extents, f"asked again, the extents {where} are others"
        position = 0
        for extent in extents:
            assert extent.offset == position, f"extents {where} overlap or have a gap at byte {position}: {extents[:9]}"
            assert extent.length > 0, f"an empty extent {where}: {extent}"
            position += extent.length
            if not extent.data:
                hole = expected[extent.offset : extent.offset + extent.length]
                assert not hole.strip(b"\0"), f"there is data in the hole {extent} {where}"
        assert position == len(expected), f"extents {where} end at {position}"
        # Asking for extents must not move the stream, though it may move a file's position.
        assert_same_bytes(first + stream.read(), expected)


@functools.lru_cache(maxsize=4)
def _lonely_bytes(part: int) -> bytes:
    """Zeros with a single byte at every place where a block, a part or the image begins or ends, and inside of some.

    The bytes are those that are taken for nothing most easily, by what counts signs, blanks or characters.
    """
    size = max(3 * MiB, 3 * part) + 12_345
    data = bytearray(size)
    block = 64 * KiB
    places = [4096, 5 * block, MiB + block, part, 2 * part, MiB]
    lonely = (0, *(at + step for at in places for step in (-1, 0)), 3 * block + 777, MiB + 3 * block + 5, size - 1)
    for place, value in zip(lonely, itertools.cycle((1, 0x80, 0xFF, 0x20, 0x7F))):
        data[place] = value
    return bytes(data)
