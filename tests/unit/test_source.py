# SPDX-License-Identifier: Apache-2.0
"""Everything add takes as a source."""

from __future__ import annotations

import contextlib
import errno
import gc
import gzip
import http.client
import io
import os
import pathlib
import threading
import weakref

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


class Chunk(bytearray):
    """Memory that can be watched."""


def freed_before_the_next(count):
    """Chunks of which each is made when nobody has the one before any more."""
    before = None
    for _ in range(count):
        assert before is None or before() is None
        chunk = Chunk(DATA[:GRAIN])
        before = weakref.ref(chunk)
        yield chunk
        del chunk


class Reading:
    """A file object with memory of its own for each read."""

    def __init__(self, chunks):
        self.chunks = chunks
        self.asked = []

    def read(self, size):
        self.asked.append(size)
        return next(self.chunks, b"")


def test_the_memory_of_a_chunk_is_free_before_the_next_is_asked_for():
    """The next one may then be made in it, while it is in the processor's cache."""
    reading = Reading(freed_before_the_next(40))
    for data in (freed_before_the_next(40), reading):
        store = recording_store()
        store.add("x", data)
        assert image_of(store, "x") == DATA[:GRAIN] * 40
    assert max(reading.asked) <= MiB


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


class Shouting(io.BytesIO):
    """Changes what it reads, and leaves readinto to the class above."""

    def read(self, size=-1):
        return super().read(size).upper()


class Wrapper:
    """Passes on to the file what it does not have itself."""

    def __init__(self, file):
        self._file = file

    def __getattr__(self, name):
        return getattr(self._file, name)

    def read(self, size=-1):
        return self._file.read(size).upper()


def shouting_file(path):
    """An ordinary file whose read was replaced."""
    file = open(path, "rb")
    read = file.read
    file.read = lambda size=-1: read(size).upper()
    return file


@pytest.mark.parametrize("kind", ["subclass", "wrapper", "instance", "file"])
def test_a_read_that_was_replaced_is_not_passed_by(tmp_path, kind):
    path = tmp_path / "image"
    path.write_bytes(b"quiet" * 1000)
    plain = io.BytesIO(b"quiet" * 1000)
    if kind == "subclass":
        data = Shouting(plain.getvalue())
    elif kind == "wrapper":
        data = Wrapper(plain)
    elif kind == "file":
        data = shouting_file(path)
    else:
        data, read = plain, plain.read
        data.read = lambda size=-1: read(size).upper()
    store = recording_store()
    store.add("x", data)
    assert image_of(store, "x")[:5000] == b"QUIET" * 1000
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


def test_what_was_written_to_a_file_object_and_is_in_its_buffer_is_stored(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(b"old" * 1000)
    store = recording_store()
    with open(path, "r+b") as file:
        file.read(3)
        file.write(b"new")
        # Within the buffer, which is why it is not written by this.
        file.seek(0)
        store.add("x", file)
    assert image_of(store, "x") == b"oldnew" + b"old" * 998


def reversing(path):
    """The descriptor of a file, with other bytes."""
    raw = open(path, "rb", buffering=0)
    readinto = raw.readinto

    def reversed_into(view):
        count = readinto(view)
        view[:count] = bytes(view[:count])[::-1]
        return count

    raw.readinto = reversed_into
    return raw


@pytest.mark.parametrize("kind", ["gzip", "instance"])
def test_what_a_buffer_is_around_is_not_passed_by(tmp_path, kind):
    path = tmp_path / "image"
    path.write_bytes(gzip.compress(b"4321") if kind == "gzip" else b"1234")
    store = recording_store()
    with io.BufferedReader(gzip.GzipFile(path) if kind == "gzip" else reversing(path)) as file:
        store.add("x", file)
    assert image_of(store, "x") == b"4321"


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


def test_a_stream_that_stands_behind_its_end_has_no_bytes_left():
    store = recording_store()
    stream = store.get(store.add("x", DATA).uri).data
    stream.seek(len(DATA) + 7)
    assert store.add("rest", stream).size == 0


@pytest.mark.parametrize("bad", [7, None, object(), 1.5])
def test_what_is_no_source_is_invalid(bad):
    with pytest.raises(Invalid, match="data must be"):
        recording_store().add("x", bad)


@pytest.mark.parametrize("chunk", ["text", 7, None])
def test_a_source_that_yields_no_bytes_is_invalid(chunk):
    with pytest.raises(Invalid, match="not bytes"):
        recording_store().add("x", iter([b"ok", chunk]))


@pytest.mark.parametrize("bad", [io.BytesIO, {b"data": 1}, {b"data"}, frozenset([b"data"])])
def test_what_has_no_bytes_in_order_is_invalid(bad):
    with pytest.raises(Invalid, match="data must be a path, bytes, a file object or an iterator of bytes, not"):
        recording_store().add("x", bad)


class Awaited:
    async def read(self, size):
        return DATA


async def awaited():
    yield DATA


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [Awaited, awaited], ids=["file", "generator"])
def test_what_has_to_be_awaited_is_named_as_such(bad):
    with pytest.raises(Invalid, match="the source is asynchronous, .* has to be awaited"):
        recording_store().add("x", bad())
    gc.collect()


class WithoutSize:
    def read(self):
        return DATA


class WithABug:
    def read(self, size):
        raise TypeError("a bug")


def test_a_read_that_takes_no_number_is_named_as_such():
    with pytest.raises(Invalid, match="WithoutSize.read cannot be told how much to read; give an iterator"):
        recording_store().add("x", WithoutSize())
    with pytest.raises(TypeError, match="a bug"):
        recording_store().add("x", WithABug())


class Connection:
    """What http.client takes for a socket."""

    def __init__(self, answer):
        self.answer = answer

    def makefile(self, mode):
        return io.BytesIO(self.answer)


def answered(announced, data=DATA):
    response = http.client.HTTPResponse(Connection(b"HTTP/1.1 200 OK\r\n%s\r\n\r\n%s" % (announced, data)))
    response.begin()
    return response


def test_an_answer_of_http_that_was_cut_is_no_image():
    store = recording_store()
    store.add("whole", answered(b"Content-Length: %d" % len(DATA)))
    store.add("closed at its end", answered(b"Connection: close"))
    with pytest.raises(Invalid, match=f"ended after {len(DATA)}"):
        store.add("cut", answered(b"Content-Length: %d" % (len(DATA) + 10)))
    assert [image_of(store, image_id) for image_id in ("whole", "closed at its end")] == [DATA] * 2
    assert [info.image_id for info in store.list_images()] == ["whole", "closed at its end"]


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


def descriptors_of(path):
    """Those of this process that are of one file."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/fd/{name}") == str(path):
                found.append(int(name))
    return found


def test_what_closing_a_source_says_is_of_no_matter_to_the_image(tmp_path, monkeypatch):
    path = tmp_path / "image"
    path.write_bytes(DATA)
    close = os.close

    def close_badly(descriptor):
        bad = descriptor in descriptors_of(path)
        close(descriptor)
        if bad:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "close", close_badly)
    store = recording_store()
    assert store.add("x", path).size == len(DATA)
    assert descriptors_of(path) == []


def test_a_path_of_which_nothing_can_be_learned_is_not_left_open(tmp_path, monkeypatch):
    path = tmp_path / "image"
    path.write_bytes(DATA)

    def stale(descriptor):
        raise OSError(errno.ESTALE, "Stale file handle")

    store = recording_store()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", stale)
        with pytest.raises(OSError, match="Stale"):
            store.add("x", path)
    assert descriptors_of(path) == []


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
