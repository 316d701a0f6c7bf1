# SPDX-License-Identifier: Apache-2.0
"""What goes in comes out: sizes, sources, digests, verifier, progress, and the result of an add."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storelib.capabilities import Capability
from storelib.driver import Digests, Part, Writer
from storelib.exceptions import Invalid
from storelib.testing.conformance.bench import SEVERAL_BLOCKS, Bench, assert_same_bytes, payload
from storelib.testing.conformance.promises import Promises, needs, sampled
from storelib.testing.conformance.sources import KINDS, chunks
from storelib.transfer import cutting, partfile, store_upload, upload

SIZES = ("0", "1", "part-1", "part", "part+1", "3 parts+1")
ALGORITHMS = ("md5", "sha1", "sha256", "sha512", "blake2b", "sha3_256")


class Recorder:
    """A verifier that remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def update(self, chunk: bytes) -> None:
        """Remember the chunk."""
        self.seen.append(chunk)


@needs(Capability.ADD | Capability.READ)
class Adding(Promises):
    """Promises of an add that succeeds."""

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("declared", ["known", "unknown"])
    @sampled(lambda size, declared: size in (("0", "part+1") if declared == "known" else ("1", "3 parts+1")))
    def test_image_of_any_size_comes_back(self, bench: Bench, size: str, declared: str) -> None:
        """An image of any size comes back byte for byte, whether its size was declared or not."""
        data = payload(bench.sizes()[size])
        image_id = bench.new_id()
        stored = bench.add(image_id, chunks(data, 65_536), len(data) if declared == "known" else None)
        assert stored.size == len(data)
        assert_same_bytes(bench.read(stored.uri), data)
        if bench.access.can("read"):
            assert_same_bytes(bench.access.read(image_id) or b"", data)

    def test_image_of_several_blocks_comes_back(self, bench: Bench) -> None:
        """An image that is hashed in threads comes back, with the right digests."""
        data = payload(max(SEVERAL_BLOCKS, 2 * bench.part + 12345))
        stored = bench.add(bench.new_id(), data)
        assert stored.multihash == hashlib.sha512(data).hexdigest()
        assert_same_bytes(bench.read(stored.uri), data)

    @pytest.mark.parametrize("size", ["1", "3 parts+1"])
    def test_part_is_not_kept(self, bench: Bench, size: str) -> None:
        """The memory of a part belongs to the engine again once the driver's call has returned."""
        data = payload(bench.sizes()[size])

        def lent(call: Callable[..., Any], view: memoryview, *arguments: Any) -> Any:
            memory = bytearray(view)
            try:
                return call(memoryview(memory), *arguments)
            finally:
                memory[:] = b"\xee" * len(memory)

        def change(writer: Writer) -> None:
            write, put = writer.write, writer.put
            vars(writer)["write"] = lambda part: lent(lambda view: write(part._replace(data=view)), part.data)
            if put is not None:
                vars(writer)["put"] = lambda view, digests: lent(put, view, digests)

        with bench.writers_changed(change):
            stored = bench.add(bench.new_id(), data)
        assert_same_bytes(bench.read(stored.uri), data)

    def test_checksum_of_a_part_goes_on(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """``Writer.checksum`` makes of the pieces of a part, one after the other, what it makes of the whole part."""
        monkeypatch.setattr(cutting, "BLOCK", max(bench.part // 3, 1))
        data = payload(3 * bench.part + 1)

        def change(writer: Writer) -> None:
            write, checksum = writer.write, writer.checksum

            def compared(part: Part) -> None:
                if checksum is not None and part.checksum is not None:
                    assert part.checksum == checksum(part.data, 0)
                write(part)

            vars(writer)["write"] = compared

        with bench.writers_changed(change):
            stored = bench.add(bench.new_id(), chunks(data, 65_536), len(data))
        assert_same_bytes(bench.read(stored.uri), data)

    @pytest.mark.parametrize("hashed", [True, False])
    def test_file_that_is_read_as_it_is_sent_comes_back(
        self, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: bool
    ) -> None:
        """So does a file whose parts are not held: ``write_range`` gets a piece at a time, in the same memory."""
        monkeypatch.setattr(store_upload, "LARGE", 0)
        monkeypatch.setattr(partfile, "PIECE", max(bench.part // 3, 1))
        data = payload(3 * bench.part + 1)
        path = tmp_path / "file"
        path.write_bytes(data)
        image_id = bench.new_id()
        if hashed:
            stored = bench.add(image_id, path)
        else:
            stored = upload.add(bench.store, image_id, path, digests=Digests(None, hashlib.sha512(data).hexdigest()))
        assert_same_bytes(bench.read(stored.uri), data)
        bench.remove(stored.uri)

    def test_parts_may_arrive_in_any_order(self, bench: Bench) -> None:
        """Where several parts are in flight, it does not matter which arrives first."""
        data = payload(4 * bench.part + 1)

        def change(writer: Writer) -> None:
            plain = writer.write

            def write(part: Part) -> None:
                if part.number % 2 == 0 and writer.concurrency > 1:
                    time.sleep(0.1)
                plain(part)

            vars(writer)["write"] = write

        with bench.writers_changed(change):
            stored = bench.add(bench.new_id(), chunks(data, 65_536))
        assert_same_bytes(bench.read(stored.uri), data)

    @pytest.mark.parametrize("kind", KINDS)
    @sampled(lambda kind: kind in ("path", "bytes", "object with only read()", "generator with odd chunks"))
    def test_every_kind_of_source(self, bench: Bench, tmp_path: Path, kind: str) -> None:
        """A path, bytes, a file object or an iterator of bytes in chunks of any size: all are taken."""
        data = payload(bench.part + 54_321)
        source = KINDS[kind](data, tmp_path)
        with contextlib.closing(source) if hasattr(source, "close") else contextlib.nullcontext():
            stored = bench.add(bench.new_id(), source)
        assert stored.size == len(data)
        assert_same_bytes(bench.read(stored.uri), data)

    def test_source_in_chunks_of_one_byte(self, bench: Bench) -> None:
        """Chunks may be as small as one byte."""
        data = payload(3000)
        assert_same_bytes(bench.read(bench.add(bench.new_id(), chunks(data, 1)).uri), data)

    @pytest.mark.parametrize("form", ["data, zeros", "zeros, data", "data, zeros, data", "zeros"])
    @pytest.mark.parametrize("kind", ["bytes", "path"])
    @sampled(lambda form, kind: (kind == "path") == form.startswith("zeros"))
    def test_long_runs_of_zeros(self, bench: Bench, tmp_path: Path, form: str, kind: str) -> None:
        """Zeros that may not be written at all are there when read, at the end too, and are hashed."""
        zeros = bytes(2 * bench.part + 4096)
        pieces = [zeros if word == "zeros" else payload(70_000, str(at)) for at, word in enumerate(form.split(", "))]
        data = b"".join(pieces)
        stored = bench.add(bench.new_id(), data if kind == "bytes" else _sparse_file(tmp_path, pieces), len(data))
        assert stored.size == len(data)
        assert stored.multihash == hashlib.sha512(data).hexdigest()
        assert bench.store.get_size(stored.uri) == len(data)
        assert_same_bytes(bench.read(stored.uri), data)

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    @sampled(lambda algorithm: algorithm in ("sha1", "blake2b"))
    def test_digests_are_those_of_the_bytes(self, bench: Bench, algorithm: str) -> None:
        """Checksum and multihash are what hashlib says of the bytes."""
        data = payload(bench.part + 100)
        stored = bench.add(bench.new_id(), data, hashing_algo=algorithm)
        assert stored.multihash == hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        assert stored.checksum == (md5 if bench.store.conf.md5_checksum else None)

    @pytest.mark.parametrize("size", ["1", "3 parts+1"])
    def test_verifier_gets_every_byte_in_order(self, bench: Bench, size: str) -> None:
        """A verifier is fed every byte, in order, and may keep what it was given."""
        data = payload(bench.sizes()[size])
        verifier = Recorder()
        bench.add(bench.new_id(), chunks(data, 65_536), verifier=verifier)
        assert_same_bytes(b"".join(verifier.seen), data)

    @pytest.mark.parametrize("declared", ["known", "unknown"])
    def test_progress_ends_at_the_size(self, bench: Bench, declared: str) -> None:
        """Progress never goes back, ends at the size, knows a total that was declared, runs in the caller's thread."""
        data = payload(3 * bench.part + 1)
        size = len(data) if declared == "known" else None
        seen: list[tuple[int, int | None]] = []
        threads = set()

        def progress(done: int, total: int | None) -> None:
            seen.append((done, total))
            threads.add(threading.current_thread())

        bench.add(bench.new_id(), chunks(data, 65_536), size, progress=progress)
        done = [at for at, _ in seen]
        assert done == sorted(done)
        assert done[-1] == len(data)
        assert {total for _, total in seen} == {size}
        assert threads == {threading.current_thread()}

    @pytest.mark.parametrize("size", ["1", "part", "3 parts+1"])
    @pytest.mark.parametrize("wrong_by", [-1, 1])
    @pytest.mark.parametrize("kind", ["bytes", "generator"])
    @sampled(
        lambda size, wrong_by, kind: (
            size == ("1" if wrong_by < 0 else "3 parts+1") and (wrong_by < 0) == (kind == "bytes")
        )
    )
    def test_wrong_declared_size_is_refused(
        self, bench: Bench, tmp_path: Path, size: str, wrong_by: int, kind: str
    ) -> None:
        """A source with one byte more or fewer than declared is Invalid, and nothing is left."""
        data = payload(bench.sizes()[size])
        image_id = bench.new_id()
        with self.refuses(bench, Invalid):
            bench.add(image_id, KINDS[kind](data, tmp_path), len(data) + wrong_by)
        bench.assert_nothing_left(image_id)

    @pytest.mark.parametrize("size", [-1, 1.5, "3", True])
    @sampled(lambda size: size is True)
    def test_size_that_is_no_size_is_refused(self, bench: Bench, size: Any) -> None:
        """A declared size is a whole number of bytes, or None."""
        image_id = bench.new_id()
        with self.refuses(bench, Invalid):
            bench.add(image_id, b"abc", size)
        bench.assert_nothing_left(image_id)

    def test_result_describes_the_image(self, bench: Bench) -> None:
        """The result names the store in its metadata, and its URI is one that Location takes."""
        stored = bench.add(bench.new_id(), b"described")
        assert stored.metadata["store"] == bench.store.name
        assert bench.location(stored.uri).uri == stored.uri
        assert stored.uri.partition("://")[0] in bench.store.schemes

    def test_metadata_belongs_to_the_caller(self, bench: Bench) -> None:
        """Whatever a caller does to the metadata of one add is not seen by the next."""
        first = bench.add(bench.new_id(), b"first")
        first.metadata["mine"] = True
        first.metadata["store"] = "changed"
        second = bench.add(bench.new_id(), b"second")
        assert "mine" not in second.metadata
        assert second.metadata["store"] == bench.store.name

    def test_no_thread_is_left(self, bench: Bench) -> None:
        """An add ends all the threads it started, or they are those of the client, started once."""
        data = payload(max(SEVERAL_BLOCKS, 2 * bench.part))
        bench.add(bench.new_id(), data)
        with bench.no_thread_left():
            bench.add(bench.new_id(), data)


def _sparse_file(directory: Path, pieces: list[bytes]) -> Path:
    path = directory / "sparse"
    with path.open("wb") as file:
        for piece in pieces:
            if any(piece[:4096]):
                file.write(piece)
            else:
                file.seek(len(piece), os.SEEK_CUR)
        file.truncate(sum(map(len, pieces)))
    return path
