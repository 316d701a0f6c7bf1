# SPDX-License-Identifier: Apache-2.0
"""Reading: whole images, ranges and what is promised of the stream. Applies to read-only stores as well."""

from __future__ import annotations

import gc
import hashlib
import io
import os
from collections.abc import Callable
from typing import Any

import pytest

from storelib.capabilities import Capability
from storelib.driver import Reader, Store
from storelib.exceptions import IncompleteRead, Invalid, NotFound, RemoteServiceUnavailable, StoreError
from storelib.testing.conformance.bench import (
    SEVERAL_BLOCKS,
    Bench,
    assert_same_bytes,
    not_applicable,
    payload,
    replaced,
)
from storelib.testing.conformance.promises import Promises, needs, sampled
from storelib.transfer.contract import MiB

OFFSETS = ("0", "1", "part", "middle", "last byte", "size", "size+1", "far beyond")
LENGTHS = ("to the end", "0", "1", "part+1", "exact", "too long")


@needs(Capability.READ)
class Reading(Promises):
    """Promises of ``get`` and ``get_size``, and of the stream."""

    # -- Whole images ---------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("size", ["0", "1", "part+1", "3 parts+1"])
    @sampled(lambda size: size in ("0", "3 parts+1"))
    def test_whole_image(self, bench: Bench, size: str) -> None:
        """``get`` returns all bytes and how many they are."""
        uri, data = bench.image(bench.sizes()[size])
        stream, announced = bench.store.get(uri)
        with stream:
            assert announced == len(data)
            assert stream.size == len(data)
            assert_same_bytes(stream.read(), data)
            assert stream.read() == b""

    @pytest.mark.parametrize("size", ["0", "1", "3 parts+1"])
    def test_get_size(self, bench: Bench, size: str) -> None:
        """``get_size`` returns the size in bytes, 0 only for an empty image."""
        uri, data = bench.image(bench.sizes()[size])
        assert bench.store.get_size(uri) == len(data)

    def test_missing_image(self, bench: Bench) -> None:
        """An image that is not there is NotFound, for ``get`` and for ``get_size``."""
        uri = bench.missing()
        with self.refuses(bench, NotFound):
            # At once, not when the first byte is read: callers have sent a status by then.
            bench.store.get(uri).data.close()
        with self.refuses(bench, NotFound):
            bench.store.get_size(uri)

    def test_location_may_be_parsed_already(self, bench: Bench) -> None:
        """A Location does as well as its URI."""
        uri, data = bench.image(1)
        with bench.store.get(bench.location(uri)).data as stream:
            assert_same_bytes(stream.read(), data)
        assert bench.store.get_size(bench.location(uri)) == 1

    # -- Ranges ---------------------------------------------------------------------------------------------------

    @needs(Capability.RANGE)
    @pytest.mark.parametrize("offset", OFFSETS)
    @pytest.mark.parametrize("length", LENGTHS)
    @sampled(lambda offset, length: offset == "1" or length == "part+1")
    def test_range_is_a_slice(self, bench: Bench, offset: str, length: str) -> None:
        """``get(offset, length)`` returns what a slice of the bytes would be, clipped like one."""
        uri, data = bench.image(3 * bench.part + 1)
        size, part = len(data), bench.part
        start = dict(zip(OFFSETS, (0, 1, part, size // 2, size - 1, size, size + 1, size + 10 * MiB), strict=True))[
            offset
        ]
        left = max(size - start, 0)
        count = dict(zip(LENGTHS, (None, 0, 1, part + 1, left, left + MiB), strict=True))[length]
        expected = data[start:] if count is None else data[start : start + count]
        stream, announced = bench.store.get(uri, start, count)
        with stream:
            assert announced == len(expected)
            assert_same_bytes(stream.read(), expected)

    @needs(Capability.RANGE)
    @pytest.mark.parametrize(("offset", "length"), [(0, None), (0, 0), (0, 1), (1, None)])
    def test_range_of_an_empty_image_is_empty(self, bench: Bench, offset: int, length: int | None) -> None:
        """Every range of an image without bytes is empty."""
        uri, _ = bench.image(0)
        with bench.store.get(uri, offset, length).data as stream:
            assert stream.size == 0
            assert stream.read() == b""

    @pytest.mark.parametrize(("offset", "length"), [(-1, None), (0, -1), (1.5, None), (0, "1"), (True, None)])
    def test_range_that_is_no_range_is_refused(self, bench: Bench, offset: Any, length: Any) -> None:
        """A negative offset or length, or none at all, is Invalid."""
        uri, _ = bench.image(1)
        with self.refuses(bench, Invalid):
            bench.store.get(uri, offset, length)

    # -- The stream -----------------------------------------------------------------------------------------------

    def test_read_in_pieces(self, bench: Bench) -> None:
        """``read(n)`` returns n bytes until the end, then fewer, then none."""
        uri, data = bench.image(3 * bench.part + 1)
        step = bench.part // 2 + 7
        with bench.store.get(uri).data as stream:
            pieces = _pieces(lambda: stream.read(step), len(data))
            assert stream.read(0) == b""
        assert {len(piece) for piece in pieces[:-1]} == {step}
        assert_same_bytes(b"".join(pieces), data)

    def test_readinto(self, bench: Bench) -> None:
        """``readinto`` fills what it is given from the front, and returns 0 at the end only."""
        uri, data = bench.image(3 * bench.part + 1)
        buffer = bytearray(bench.part // 2 + 7)
        with bench.store.get(uri).data as stream:
            pieces = _pieces(lambda: bytes(buffer[: stream.readinto(buffer)]), len(data))
        assert_same_bytes(b"".join(pieces), data)

    def test_iterating_yields_fresh_bytes(self, bench: Bench) -> None:
        """Iterating gives bytes of 1 MiB at most, each the caller's own, which joined are the image."""
        uri, data = bench.image(max(SEVERAL_BLOCKS, 3 * bench.part + 1))
        with bench.store.get(uri).data as stream:
            pieces = _pieces(lambda: next(stream, b""), len(data))
        assert {type(piece) for piece in pieces} == {bytes}
        assert max(map(len, pieces)) <= MiB
        assert_same_bytes(b"".join(pieces), data)

    def test_stream_is_a_seekable_file(self, bench: Bench) -> None:
        """``seek`` and ``tell`` count from the start of the range, and reading goes on from there."""
        uri, data = bench.image(3 * bench.part + 1)
        size, part = len(data), bench.part
        ranged = Capability.RANGE in bench.store.capabilities
        start = 5 if ranged else 0
        expected = data[start:]
        with bench.store.get(uri, start).data as stream:
            assert stream.readable()
            assert stream.seekable(), "streams can seek; with RANGE or without, reading begins anew"
            for position in (part + 3, 0, size - start - 1, 2 * part, 2 * part - 1):
                assert stream.seek(position) == position
                assert stream.tell() == position
                assert_same_bytes(stream.read(100), expected[position : position + 100])
            assert stream.seek(-10, io.SEEK_END) == len(expected) - 10
            assert_same_bytes(stream.read(), expected[-10:])
            assert stream.seek(0) == 0
            assert_same_bytes(stream.read(), expected)

    def test_closing_is_idempotent(self, bench: Bench) -> None:
        """A stream may be closed twice; it frees the reader once and cannot be read afterwards."""
        uri, _ = bench.image(3 * bench.part + 1)
        closed = []

        def change(reader: Reader) -> None:
            plain = reader.close

            def close() -> None:
                closed.append(reader)
                plain()

            vars(reader)["close"] = close

        with bench.readers_changed(change) as opened:
            stream = bench.store.get(uri).data
            stream.read(1)
            stream.close()
            stream.close()
        assert stream.closed
        with pytest.raises(ValueError, match="closed"):
            stream.read(1)
        assert len(closed) == len(opened)

    @pytest.mark.parametrize("how", ["closed", "dropped"])
    @pytest.mark.parametrize("read", [0, 1, "all"])
    @sampled(lambda how, read: how == "dropped" or read == 1)
    def test_stream_leaves_no_thread(self, bench: Bench, how: str, read: int | str) -> None:
        """Threads that read ahead end when the stream is closed, and when it is dropped without that."""
        uri, data = bench.image(max(SEVERAL_BLOCKS, 3 * bench.part + 1))
        bench.read(uri)
        with bench.no_thread_left():
            stream: Any = bench.store.get(uri).data
            stream.read(len(data) if read == "all" else read)
            if how == "closed":
                stream.close()
            del stream
            gc.collect()

    def test_streams_do_not_disturb_each_other(self, bench: Bench) -> None:
        """Two streams of one image, read by turns, each give all of it."""
        uri, data = bench.image(3 * bench.part + 1)
        with bench.store.get(uri).data as one, bench.store.get(uri).data as two:
            pieces = _pieces(lambda: one.read(50_000) + two.read(50_000), 2 * len(data))
        by_turns = b"".join(data[at : at + 50_000] * 2 for at in range(0, len(data), 50_000))
        assert_same_bytes(b"".join(pieces), by_turns)

    @needs(Capability.ADD)
    @pytest.mark.parametrize("size", ["1", "3 parts+1"])
    def test_recorded_digest_is_that_of_the_image(self, bench: Bench, size: str) -> None:
        """A digest that the reader knows is that of the whole image, also when a range is read."""
        uri, data = bench.image(bench.sizes()[size])
        ranges = [(0, None), (1, 100)] if bench.can(Capability.RANGE) else [(0, None)]
        for offset, length in ranges:
            with bench.readers_changed(lambda reader: None) as opened, bench.store.get(uri, offset, length).data:
                known = [digest for reader in opened if (digest := getattr(reader, "digest", None)) is not None]
            for algorithm, value in known:
                assert value == hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()

    @needs(Capability.ADD)
    @pytest.mark.parametrize("algorithm", ["sha512", "sha256", "md5"])
    def test_recorded_digest_verifies(self, bench: Bench, algorithm: str) -> None:
        """An image added with any algorithm can be read with ``verify=True``, unless nothing was recorded."""
        data = payload(bench.part + 1)
        stored = bench.add(bench.new_id("recorded"), data, hashing_algo=algorithm)
        with bench.store.get(stored.uri).data as stream:
            if stream.digest is None:
                return
            stream.verify_recorded()
            assert_same_bytes(stream.read(), data)

    def test_descriptor_is_of_the_same_bytes(self, bench: Bench) -> None:
        """Where ``fileno`` is offered, the file holds the image, and reads from the stream's position on."""
        uri, data = bench.image(3 * bench.part + 1)
        ranged = Capability.RANGE in bench.store.capabilities
        start = 1000 if ranged else 0
        with bench.store.get(uri, start).data as stream:
            try:
                descriptor = stream.fileno()
            except io.UnsupportedOperation:
                assert_same_bytes(stream.read(), data[start:])
                return
            assert_same_bytes(os.read(descriptor, 1000), data[start : start + 1000])
            assert_same_bytes(os.pread(descriptor, 1000, start), data[start : start + 1000])

    # -- What goes wrong in the middle ------------------------------------------------------------------------------

    def test_cut_read_is_an_error(self, bench: Bench) -> None:
        """A back end that stops early for good is IncompleteRead, never a short image."""
        uri, data = bench.image(3 * bench.part + 1)
        limit = 2 * bench.part

        def change(reader: Reader) -> None:
            plain = reader.read_into
            vars(reader)["read_into"] = lambda at, view: plain(at, view[: limit - at]) if at < limit else 0

        impatient = type(bench.store.retry_policy)(retries=1, timeout=5.0)
        with (
            replaced(bench.store, "retry_policy", impatient),
            bench.readers_changed(change) as opened,
            bench.store.get(uri).data as stream,
        ):
            _must_have_opened(bench, opened)
            assert_same_bytes(stream.read(bench.part), data[: bench.part])
            with self.refuses(bench, IncompleteRead):
                stream.read()

    def test_interrupted_read_goes_on(self, bench: Bench) -> None:
        """After a transient error reading goes on at the byte where it stopped."""
        if not bench.store.conf.transfer_retries:
            not_applicable("the store is configured not to retry")
        uri, data = bench.image(3 * bench.part + 1)
        failures = [RemoteServiceUnavailable("on purpose"), RemoteServiceUnavailable("again")]

        def change(reader: Reader) -> None:
            plain = reader.read_into

            def read_into(offset: int, view: memoryview) -> int:
                if offset and failures:
                    raise failures.pop()
                return plain(offset, view[: max(1, len(view) // 2)])

            vars(reader)["read_into"] = read_into

        with bench.readers_changed(change) as opened, bench.store.get(uri).data as stream:
            _must_have_opened(bench, opened)
            assert_same_bytes(stream.read(), data)

    @needs(Capability.DELETE | Capability.ADD)
    def test_image_deleted_while_it_is_read(self, bench: Bench) -> None:
        """The reader of an image that is deleted gets the right bytes or an error, never a short image."""
        data = payload(max(SEVERAL_BLOCKS, 3 * bench.part + 1))
        uri = bench.put(data)
        with bench.store.get(uri).data as stream:
            first = stream.read(1)
            try:
                bench.remove(uri)
                rest = stream.read()
            except StoreError:
                return
        assert_same_bytes(first + rest, data)


def _pieces(read: Callable[[], bytes], limit: int) -> list[bytes]:
    """What ``read`` returns until that is empty; a stream that never ends is cut off."""
    pieces: list[bytes] = []
    total = 0
    while piece := read():
        # Kept, not copied: that it stays as it is, is part of what is tested.
        pieces.append(piece)
        total += len(piece)
        assert total <= limit, "the stream goes on beyond its end"
    return pieces


def _must_have_opened(bench: Bench, opened: list[Reader]) -> None:
    if not opened:
        assert type(bench.store).get is not Store.get, "Store.get did not call open_reader"
        not_applicable("the driver does not read through open_reader")
