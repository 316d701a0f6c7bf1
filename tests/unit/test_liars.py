# SPDX-License-Identifier: Apache-2.0
"""Sources that lie are the caller's fault (Invalid), drivers that lie the driver's; neither gets wrong bytes stored."""

from __future__ import annotations

import array
import contextlib
import ctypes
import dataclasses
import datetime
import io
import math

import pytest
from recording import image_of, recording_store

from storelib.capabilities import Capability
from storelib.driver import Committed, Digest, Digests, Garbage, ImageInfo, Reader, ServerSideCopy
from storelib.exceptions import Invalid, NotFound, RemoteServiceUnavailable, StoreError, TransferTimeout
from storelib.testing.memory import MemoryWriter
from storelib.transfer import Extent, KiB, MiB, copy, fan_out

DATA = bytes(range(256)) * 4096
URI = "memory://recording/x"


def shown(value):
    """A name for a test that is the same in every process: what objects show of themselves has their address in it."""
    return repr(value).partition(" at 0x")[0]


# -- Sources ------------------------------------------------------------------------------------------------------


class Liar(io.RawIOBase):
    """A file whose ``readinto`` fills the buffer, and answers truly ``honest`` times before it does not."""

    def __init__(self, answer, honest):
        self.answer = answer
        self.honest = honest

    def readinto(self, view):
        self.honest -= 1
        view[:] = bytes(len(view))
        return len(view) if self.honest >= 0 else self.answer(len(view))


LIES = {
    "more": lambda length: length + 1,
    "much more": lambda length: 1 << 80,
    "less than nothing": lambda length: -5,
    "minus one": lambda length: -1,
    "a float": lambda length: float(length),
    "half a byte": lambda length: 0.5,
    "true": lambda length: True,
    "false": lambda length: False,
    "none": lambda length: None,
    "text": lambda length: "1",
    "bytes": lambda length: b"1",
    "nan": lambda length: math.nan,
}


@pytest.mark.parametrize("size", [None, 3 * MiB, 1])
@pytest.mark.parametrize("honest", [0, 2])
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_source_that_lies_about_what_it_read_is_invalid_and_nothing_is_stored(lie, honest, size):
    stores = [recording_store(name="a"), recording_store(name="b")]
    with pytest.raises(Invalid, match="source"):
        fan_out(stores, "x", Liar(lie, 0 if size == 1 else honest), size)
    assert [image_of(store, "x") for store in stores] == [None, None]
    assert not any(store.backend.uploads for store in stores)


class Reads:
    def __init__(self, *responses):
        self.answers = list(responses)

    def read(self, size):
        return self.answers.pop(0) if self.answers else b""


ODD = {
    "str": lambda: "text",
    "empty str": lambda: "",
    "int": lambda: 7,
    "zero": lambda: 0,
    "list": lambda: [1, 2],
    "empty list": list,
    "every other byte": lambda: memoryview(bytes(10))[::2],
    "backwards": lambda: memoryview(bytes(10))[::-1],
    "released": lambda: _released(),
}


def _released():
    view = memoryview(b"gone")
    view.release()
    return view


@pytest.mark.parametrize("make", [Reads, lambda *items: iter(items), lambda *items: list(items)])
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_a_source_that_gives_no_bytes_is_invalid(make, odd):
    store = recording_store()
    with pytest.raises(Invalid, match="source"):
        store.add("x", make(DATA, odd()))
    assert image_of(store, "x") is None


@pytest.mark.parametrize("odd", [memoryview(DATA)[::3], memoryview(DATA)[::-1]])
def test_memory_that_is_no_run_of_bytes_is_invalid(odd):
    with pytest.raises(Invalid, match="source"):
        recording_store().add("x", odd)


def test_a_source_that_is_iterable_by_its_own_words_only_is_invalid():
    class Fraud:
        def __iter__(self):
            return 7

    with pytest.raises(Invalid, match="source"):
        recording_store().add("x", Fraud())


class Names:
    """Attributes called as methods are, which are none."""

    read = readinto = b"bytes"


def test_a_source_whose_read_is_no_method_is_invalid():
    with pytest.raises(Invalid, match="data must be"):
        recording_store().add("x", Names())


class Pair(ctypes.Structure):
    """What C calls a structure."""

    _fields_ = (("one", ctypes.c_int), ("two", ctypes.c_char))


FORMATS = {
    "a structure": memoryview(Pair()),
    "shorts": memoryview(array.array("H", range(7000))),
    "doubles": memoryview(array.array("d", range(7000))),
    "signed bytes": memoryview(bytes(7000)).cast("b"),
    "a square": memoryview(bytes(range(100))).cast("B", (10, 10)),
    "a single number": memoryview(bytes(8)).cast("Q", ()),
    "nothing": memoryview(array.array("d")),
}
KINDS = {
    "memory": lambda view: view,
    "read": lambda view: Reads(view),
    "iterator": lambda view: iter([view]),
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("view", FORMATS.values(), ids=FORMATS)
def test_memory_of_another_format_is_taken_for_its_bytes(make, view):
    store = recording_store()
    stored = store.add("x", make(view), None if make is not KINDS["memory"] else view.nbytes)
    assert image_of(store, "x") == view.tobytes()
    assert stored.size == view.nbytes


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_memory_that_was_released_is_invalid(make):
    store = recording_store()
    with pytest.raises(Invalid, match="source"):
        store.add("x", make(_released()))
    assert image_of(store, "x") is None
    assert not store.backend.uploads


def test_a_source_may_release_the_memory_it_was_given():
    class Tidy(io.BytesIO):
        def readinto(self, view):
            with view:
                return super().readinto(view)

    store = recording_store()
    store.add("x", Tidy(DATA * 3))
    assert image_of(store, "x") == DATA * 3


def test_what_a_source_gave_may_be_released_when_it_is_asked_for_more():
    def pieces():
        for _ in range(3):
            with memoryview(bytearray(DATA)) as view:
                yield view

    store = recording_store()
    store.add("x", pieces())
    assert image_of(store, "x") == DATA * 3


OWN_ERRORS = [
    LookupError("of its own"),
    TimeoutError("of its own"),
    OSError(28, "no room, where it reads from"),
    RuntimeError("of its own"),
    NotFound("in another store"),
    TransferTimeout("of another store"),
    RemoteServiceUnavailable("another store", retry_after=3600),
    KeyboardInterrupt(),
    SystemExit(3),
]


def _fails(error):
    def read(self, *arguments):
        self.turn += 1
        if self.turn > 3:
            raise error
        if not isinstance(arguments[0], int):
            count = min(len(arguments[0]), 1000)
            arguments[0][:count] = DATA[:count]
            return count
        return DATA

    names = {"read": {"read": read}, "readinto": {"readinto": read}}
    for name, members in names.items():
        yield name, type("Failing", (), {"turn": 0, **members})()

    def pieces():
        yield DATA
        yield DATA
        raise error

    yield "iterator", pieces()


@pytest.mark.parametrize("size", [None, 3, 10 * len(DATA)])
@pytest.mark.parametrize("error", OWN_ERRORS, ids=lambda error: type(error).__name__)
def test_the_error_of_a_source_is_its_own_and_no_stores(error, size):
    for name, source in _fails(error):
        stores = [recording_store(name="a"), recording_store(name="b")]
        for store in stores:
            store.map_error = lambda native, subject: StoreError("of the store")
        with pytest.raises((type(error), Invalid)) as caught:
            fan_out(stores, "x", source, size)
        # Of a source that is longer than it should be, not all is read.
        assert caught.value is error or (size == 3 and type(caught.value) is Invalid), name
        assert [image_of(store, "x") for store in stores] == [None, None]
        assert not any(store.backend.uploads for store in stores)


def _sources(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(DATA)
    yield "bytes", DATA
    yield "memory", memoryview(DATA)
    yield "path", path
    yield "file", path.open("rb")
    yield "raw file", path.open("rb", buffering=0)
    yield "readinto", io.BytesIO(DATA)
    yield "read", Reads(DATA[:10], DATA[10:])
    yield "iterator", iter([DATA[:10], b"", DATA[10:]])
    yield "list", [DATA]
    yield "stream", store_of(FakeReader()).get(URI).data


@pytest.mark.parametrize("size", [0, 1, len(DATA) - 1, len(DATA) + 1, 1 << 40, -1, True, 1.0, "1", math.nan])
def test_a_size_that_is_not_the_sources_is_invalid(tmp_path, size):
    for name, source in _sources(tmp_path):
        store = recording_store()
        with pytest.raises(Invalid):
            store.add("x", source, size)
        if hasattr(source, "close"):
            source.close()
        assert image_of(store, "x") is None, name
        assert not store.backend.uploads, name


# -- Readers ------------------------------------------------------------------------------------------------------


class FakeReader(Reader):
    def __init__(self, data=DATA, extents=None, answer=None, **attributes):
        self.data = data
        self.size = len(data)
        self.known = extents
        self.answer = answer
        self.closed = 0
        vars(self).update(attributes)

    def read_into(self, offset, view):
        piece = self.data[offset : offset + len(view)]
        view[: len(piece)] = piece
        return self.answer(len(view)) if self.answer and offset else len(piece)

    def extents(self, offset, length):
        return self.known

    def close(self):
        self.closed += 1


def store_of(reader):
    store = recording_store()
    store.open_reader = lambda *args: reader
    return store


@pytest.mark.parametrize("kind", [{}, {"concurrency": 3, "part_size": 64 * KiB}], ids=["one stream", "ranges"])
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_reader_that_lies_about_what_it_read_is_at_fault(lie, kind):
    with store_of(FakeReader(answer=lie, **kind)).get(URI).data as stream, pytest.raises(StoreError) as caught:
        list(iter(lambda: stream.read(100 * KiB), b""))
    assert not isinstance(caught.value, Invalid)
    assert not caught.value.transient


@pytest.mark.parametrize("name", ["size", "part_size", "concurrency"])
@pytest.mark.parametrize("lie", [-1, True, None, 1.5, "1", math.nan], ids=shown)
def test_a_reader_with_impossible_numbers_is_refused_and_closed(name, lie):
    reader = FakeReader(**{name: lie})
    with pytest.raises(StoreError):
        store_of(reader).get(URI)
    assert reader.closed == 1


def test_a_reader_with_gigantic_parts_is_read_in_smaller_ones():
    data = bytes(3 * MiB)
    reader = FakeReader(data, concurrency=2, part_size=2 * MiB)
    reader.size = 1 << 60
    reader.part_size = 1 << 50
    with store_of(reader).get(URI, 0, None).data as stream:
        assert stream.read(MiB) == data[:MiB]


END = len(DATA)
LYING_EXTENTS = {
    "none": [],
    "a gap": [Extent(0, 64 * KiB, data=True), Extent(128 * KiB, END - 128 * KiB, data=False)],
    "an overlap": [Extent(0, 128 * KiB, data=True), Extent(64 * KiB, END - 64 * KiB, data=False)],
    "backwards": [Extent(END // 2, END // 2, data=False), Extent(0, END // 2, data=True)],
    "twice": [Extent(0, END, data=False)] * 2,
    "too long": [Extent(0, END + 1, data=False)],
    "too short": [Extent(0, END - 1, data=False)],
    "before the range": [Extent(-1, END + 1, data=False)],
    "behind the range": [Extent(0, END, data=True), Extent(END, KiB, data=False)],
    "less than nothing": [Extent(0, -5, data=False)],
    "fractions": [Extent(0, END / 2, data=False), Extent(END / 2, END / 2, data=True)],
    "truth": [Extent(False, END, data=False)],
    "no number": [Extent(0, None, data=False)],
}


@pytest.mark.parametrize("known", LYING_EXTENTS.values(), ids=LYING_EXTENTS)
def test_extents_that_lie_are_an_error_and_nothing_is_copied(known):
    source, target = store_of(FakeReader(extents=known)), recording_store()
    with source.get(URI).data as stream, pytest.raises(StoreError, match="at fault"):
        list(stream.extents())
    with pytest.raises(StoreError, match="at fault"):
        copy(source, URI, target, "copy")
    assert image_of(target, "copy") is None


def test_extents_of_nothing_without_end_are_an_error():
    def endless():
        while True:
            yield Extent(0, 0, data=True)

    with store_of(FakeReader(extents=endless())).get(URI).data as stream, pytest.raises(StoreError, match="at fault"):
        list(stream.extents())


@pytest.mark.parametrize(
    "act", [lambda s: list(s.extents()), lambda s: s.fileno(), lambda s: s.close(), lambda s: s.read()]
)
def test_native_errors_are_mapped_wherever_a_reader_raises_them(act):
    class Broken(FakeReader):
        def fail(self, *arguments):
            raise OSError("native")

        def lazily(self, offset, length):
            yield Extent(0, KiB, data=True)
            raise OSError("native")

        read_into = fileno = close = fail
        extents = lazily

    store = store_of(Broken())
    store.map_error = lambda error, subject: StoreError("mapped") if isinstance(error, OSError) else None
    stream = store.get(URI).data
    with pytest.raises(StoreError, match="mapped"):
        act(stream)
    with contextlib.suppress(StoreError):
        # Not left to the collector of garbage, which tells of what it is refused.
        stream.close()


# -- Writers ------------------------------------------------------------------------------------------------------


def lying_store(name, answer):
    store = recording_store(sparse=True)
    make = store.open_writer

    def open_writer(*arguments):
        writer = make(*arguments)
        setattr(writer, name, answer if name == "concurrency" else lambda *arguments: answer)
        return writer

    store.open_writer = open_writer
    return store


@pytest.mark.parametrize("size", [None, len(DATA)])
@pytest.mark.parametrize(
    ("name", "answer"),
    [
        *(("part_size", lie) for lie in (0, -1, True, None, 4096.0, "4096", 1 << 62, 1 << 80)),
        *(("concurrency", lie) for lie in (0, -1, True, None, 2.0, "2")),
        *(("reserve", lie) for lie in (0, -1, 5, False, 1e9, "1", math.inf)),
        *(("commit", lie) for lie in (None, True, "memory://recording/x", Committed(None), Committed("x"))),
    ],
    ids=shown,
)
def test_a_writer_that_lies_is_at_fault_and_nothing_is_stored(name, answer, size):
    store = lying_store(name, answer)
    with pytest.raises(StoreError) as caught:
        store.add("x", DATA, size)
    assert not isinstance(caught.value, Invalid)
    assert image_of(store, "x") is None
    assert not store.backend.uploads


def test_a_commit_that_was_made_and_answers_nonsense_is_taken_back():
    store = recording_store()

    class Forgetful(MemoryWriter):
        def commit(self, size, digests):
            super().commit(size, digests)

    store.open_writer = lambda image_id, size, context: Forgetful(store, image_id)
    with pytest.raises(StoreError, match="at fault"):
        store.add("x", DATA)
    assert image_of(store, "x") is None


@pytest.mark.parametrize("lie", [-1, True, None, 1.5, "5"], ids=shown)
def test_a_size_that_cannot_be_is_not_told(lie):
    store = recording_store()
    uri = store.add("x", DATA).uri
    store.measure = lambda *arguments: lie
    with pytest.raises(StoreError, match="size"):
        store.get_size(uri)


# -- What stores are asked --------------------------------------------------------------------------------------------

INFO = ImageInfo(URI, len(DATA), "x")
NO_INFO = [
    None,
    True,
    "x",
    5,
    (URI, 5),
    object(),
    *(dataclasses.replace(INFO, size=size) for size in (None, -1, True, 1.5, "5", math.nan)),
    *(dataclasses.replace(INFO, uri=uri) for uri in (None, b"memory://x", 5)),
    *(dataclasses.replace(INFO, image_id=image_id) for image_id in (b"x", 5)),
    *(dataclasses.replace(INFO, version=version) for version in (b"x", 5)),
    *(dataclasses.replace(INFO, modified=modified) for modified in ("2024-01-01", True, datetime.datetime(2024, 1, 1))),
]
LEFT = Garbage("upload", "x", 5, 1e9)
NOTHING_LEFT = [
    None,
    "x",
    INFO,
    *(dataclasses.replace(LEFT, name=name) for name in (None, 5)),
    *(dataclasses.replace(LEFT, size=size) for size in (None, -1, 1.5, True)),
    *(dataclasses.replace(LEFT, modified=modified) for modified in (None, "2024-01-01", datetime.datetime(2024, 1, 1))),
]
NO_LIST = [None, 5, True, "text", b"bytes", object()]


def asking_store(**methods):
    """A store whose driver gives these values."""
    store = recording_store()
    store.add("x", DATA)
    for name, value in methods.items():
        setattr(store, name, lambda *arguments, value=value: value)
    return store


def is_at_fault(question):
    with pytest.raises(StoreError, match="recording.*driver is at fault") as caught:
        question()
    assert not caught.value.transient
    assert not isinstance(caught.value, Invalid)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("lie", NO_INFO, ids=shown)
def test_what_is_known_of_an_image_has_to_be_that(lie):
    is_at_fault(lambda: asking_store(inspect=lie).stat(URI))
    is_at_fault(lambda: asking_store(inspect=lie, candidate_locations=[location("x")]).find_image("x"))
    is_at_fault(lambda: list(asking_store(images=[INFO, lie]).list_images()))
    is_at_fault(lambda: asking_store(images=iter([lie, INFO]), candidate_locations=None).find_image("x"))


@pytest.mark.parametrize("lie", NOTHING_LEFT, ids=shown)
def test_what_is_left_of_an_add_has_to_be_that(lie):
    is_at_fault(lambda: asking_store(garbage=[LEFT, lie], discard=True).gc(0))


@pytest.mark.parametrize("lie", NO_LIST, ids=shown)
def test_a_list_has_to_be_one(lie):
    is_at_fault(lambda: list(asking_store(images=lie).list_images()))
    is_at_fault(lambda: asking_store(garbage=lie).gc(0))
    if lie is not None:
        is_at_fault(lambda: asking_store(candidate_locations=lie).find_image("x"))


@pytest.mark.parametrize("lie", [None, 5, "dead", {"password": "secret"}, Garbage(None, "x", 5, 0.0)], ids=shown)
def test_leftovers_have_to_be_some_and_nothing_else_is_discarded(lie):
    discarded = []
    store = asking_store(garbage=[lie])
    store.discard = discarded.append
    is_at_fault(lambda: store.gc(0))
    is_at_fault(lambda: asking_store(candidate_locations=[lie]).find_image("x"))
    assert not discarded


def test_another_image_is_never_found():
    store = asking_store(inspect=dataclasses.replace(INFO, image_id="y"), candidate_locations=[location("x")])
    is_at_fault(lambda: store.find_image("x"))


@pytest.mark.parametrize("lie", [None, True, "healthy", {"free": 5}], ids=shown)
def test_health_has_to_be_that(lie):
    is_at_fault(lambda: asking_store(probe=lie).check())


@pytest.mark.parametrize("lie", [None, True, 5, "x", io.BytesIO(b"data")], ids=shown)
def test_readers_and_writers_have_to_be_some(lie):
    with pytest.raises(StoreError, match="driver is at fault"):
        asking_store(open_reader=lie).get(URI)
    is_at_fault(lambda: asking_store(open_writer=lie).add("y", DATA))


@pytest.mark.parametrize(
    "lie",
    [5, "md5", True, Digest("md5", None), Digest(None, "0" * 32), ("md5",), ["md5", "0" * 32], Digest(5, 5)],
    ids=shown,
)
def test_a_digest_that_is_none_is_the_drivers_fault(lie):
    reader = FakeReader(digest=lie)
    with store_of(reader).get(URI).data as stream, pytest.raises(StoreError, match="driver is at fault"):
        _ = stream.digest
    with pytest.raises(StoreError, match="driver is at fault"):
        store_of(reader).get(URI, verify=True)
    assert reader.closed == 2


@pytest.mark.parametrize("lie", [Digest("md5", ""), Digest("md5", "0" * 31), Digest("sha512", "x" * 128)], ids=shown)
def test_nothing_is_compared_with_a_digest_that_cannot_be(lie):
    reader = FakeReader(digest=lie)
    with pytest.raises(StoreError, match="nothing can be compared"):
        store_of(reader).get(URI, verify=True)
    assert reader.closed == 1


class FakeCopy(ServerSideCopy):
    size = 100
    aborted = 0

    def copy_part(self, number, offset, length):
        """Done."""

    def commit(self, digests):
        return Committed(location("y"))

    def abort(self):
        self.aborted += 1


@pytest.mark.parametrize(
    ("name", "lie"),
    [
        *(("size", lie) for lie in (-1, None, True, "5", 1.5)),
        *(("concurrency", lie) for lie in (0, -1, None, True, "5")),
        *(("parts", lie) for lie in (None, 5, [100, 0], [99], [101], [50, 50.0], [-1, 101], ["x"], [True, 99])),
        *(("commit", lie) for lie in (None, True, "memory://recording/y", Committed(None))),
    ],
    ids=shown,
)
def test_a_copy_that_lies_is_taken_back(name, lie):
    made = FakeCopy()
    setattr(made, name, (lambda *arguments: lie) if name == "commit" else lie)
    store = asking_store(server_side_copy=made)
    store.capabilities |= Capability.COPY
    is_at_fault(lambda: store.copy(URI, "y", digests=Digests("0" * 32, "0" * 128)))
    assert made.aborted == 1


@pytest.mark.parametrize("lie", [5, True, "x", object()], ids=shown)
def test_what_copies_has_to_be_a_copy(lie):
    store = asking_store(server_side_copy=lie)
    store.capabilities |= Capability.COPY
    is_at_fault(lambda: store.copy(URI, "y", digests=Digests("0" * 32, "0" * 128)))


def location(image_id):
    return recording_store().location(image_id)
