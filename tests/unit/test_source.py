# SPDX-License-Identifier: Apache-2.0
"""Everything add takes as a source."""

from __future__ import annotations

import io
import os
import pathlib
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recording import image_of, recording_store

from storelib.exceptions import Invalid
from storelib.transfer import Extent, KiB, MiB
from storelib.transfer.source import GRAIN, _SourceWithHoles, file_extents, open_source

DATA = os.urandom(2 * MiB + 3)


class OnlyRead:
    """Ignores the size it is asked for, as some wrappers do."""

    def __init__(self, data):
        self.chunks = [data[:100], data[100:]]

    def read(self, size):
        return self.chunks.pop(0) if self.chunks else b""


def sources(path):
    yield "path", lambda: path
    yield "str path", lambda: str(path)
    yield "bytes", lambda: DATA
    yield "bytearray", lambda: bytearray(DATA)
    yield "memoryview of words", lambda: memoryview(DATA + b"\0").cast("I") if len(DATA) % 4 == 3 else DATA
    yield "file object", lambda: open(path, "rb")
    yield "unbuffered file", lambda: open(path, "rb", buffering=0)
    yield "BytesIO", lambda: io.BytesIO(DATA)
    yield "only read", lambda: OnlyRead(DATA)
    yield "generator", lambda: (DATA[i : i + 1000] for i in range(0, len(DATA), 1000))
    yield "list with empty chunks", lambda: [b"", DATA[:1], b"", b"", DATA[1:], b""]


@pytest.mark.parametrize("index", range(11))
def test_every_kind_of_source_is_stored_as_it_is(tmp_path, index):
    path = tmp_path / "image"
    path.write_bytes(DATA)
    name, source = list(sources(path))[index]
    store = recording_store()
    data = source()
    store.add("x", data)
    assert image_of(store, "x")[: len(DATA)] == DATA, name
    if isinstance(data, io.IOBase):
        data.close()


def test_a_file_object_is_read_from_where_it_stands_and_left_at_its_end(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(DATA)
    store = recording_store()
    with open(path, "rb") as file:
        file.read(10)
        store.add("x", file)
        assert file.tell() == len(DATA)
    assert image_of(store, "x") == DATA[10:]


def test_a_pipe_given_by_path_is_read_to_its_end(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writing = threading.Thread(target=lambda: path.write_bytes(DATA))
    writing.start()
    store = recording_store()
    store.add("x", path)
    writing.join()
    assert image_of(store, "x") == DATA


def test_a_file_of_proc_that_says_it_is_empty_is_read():
    store = recording_store()
    store.add("x", "/proc/self/status")
    assert image_of(store, "x").startswith(b"Name:")


def test_the_stream_of_another_store_is_a_source_and_so_is_what_get_answers():
    origin, target = recording_store(), recording_store()
    uri = origin.add("x", DATA).uri
    target.add("stream", origin.get(uri).data)
    target.add("pair", origin.get(uri))
    assert image_of(target, "stream") == image_of(target, "pair") == DATA


@pytest.mark.parametrize("bad", [7, None, object(), 1.5])
def test_what_is_no_source_is_invalid(bad):
    with pytest.raises(Invalid, match="data must be"):
        recording_store().add("x", bad)


@pytest.mark.parametrize("chunk", ["text", 7, None])
def test_a_source_that_yields_no_bytes_is_invalid(chunk):
    with pytest.raises(Invalid, match="not bytes"):
        recording_store().add("x", iter([b"ok", chunk]))


def test_a_text_file_is_invalid(tmp_path):
    path = tmp_path / "text"
    path.write_text("text")
    with open(path) as file, pytest.raises(Invalid, match="binary"):
        recording_store().add("x", file)


@pytest.mark.parametrize("error", [FileNotFoundError, IsADirectoryError])
def test_a_path_that_cannot_be_opened_raises_its_own_error(tmp_path, error):
    path = tmp_path / "missing" if error is FileNotFoundError else tmp_path
    store = recording_store()
    with pytest.raises(error):
        store.add("x", pathlib.Path(path))
    assert store.calls == []


def test_a_file_that_shrinks_while_it_is_read_is_invalid(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(DATA)
    store = recording_store()
    with pytest.raises(Invalid, match="declared size"):
        store.add("x", path, progress=lambda done, total: os.truncate(path, MiB))
    assert image_of(store, "x") is None


def test_extents_of_a_file_are_its_holes_and_data(tmp_path):
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.seek(MiB)
        file.write(b"x" * 4096)
        file.truncate(3 * MiB)
    with open(path, "rb") as file:
        extents = list(file_extents(file.fileno(), 0, 3 * MiB))
    assert [(e.offset, e.length, e.data) for e in extents] == [
        (0, MiB, False),
        (MiB, 4096, True),
        (MiB + 4096, 2 * MiB - 4096, False),
    ]


class Scripted(_SourceWithHoles):
    """A source over bytes in memory whose extents are given."""

    def __init__(self, data, extents):
        self.data = data
        self.size = len(data)
        super().__init__(iter(extents), 0)

    def _read(self, position, view):
        piece = self.data[position : position + len(view)]
        view[: len(piece)] = piece
        return len(piece)


@given(
    st.lists(st.tuples(st.integers(1, 5 * GRAIN), st.booleans()), max_size=8),
    st.sampled_from([100, GRAIN, GRAIN + 1, MiB]),
)
def test_stepping_over_holes_gives_the_same_bytes_as_reading_them(runs, block):
    data, extents = b"", []
    for length, is_data in runs:
        extents.append(Extent(len(data), length, is_data))
        data += (b"\x07" if is_data else b"\0") * length
    source = Scripted(data, extents)
    rebuilt = bytearray()
    view = memoryview(bytearray(block))
    while True:
        hole = source.hole()
        if hole:
            assert len(rebuilt) % GRAIN == 0
            assert hole % GRAIN == 0 or len(rebuilt) + hole == len(data)
            rebuilt += bytes(hole)
            continue
        count = source.read_into(view)
        if not count:
            break
        rebuilt += view[:count]
    assert rebuilt == data


def test_a_declared_size_that_differs_from_the_sources_own_is_refused_before_the_store_is_asked():
    store = recording_store()
    with pytest.raises(Invalid, match="declared size is 5 bytes, but the source has 4"):
        store.add("x", b"four", 5)
    assert store.calls == []


def test_bytes_are_not_a_path():
    assert open_source(b"/etc/passwd").size == len(b"/etc/passwd")


assert GRAIN == 64 * KiB
