# SPDX-License-Identifier: Apache-2.0
"""Pieces that a node reads from the API itself, one after another."""

from __future__ import annotations

import random
import threading

import pytest

from storelib.exceptions import Forbidden, Invalid, NotFound, RemoteServiceUnavailable
from storelib.node import reading as module
from storelib.node.engine import Broken, SourceLost
from storelib.node.reading import Reader, Reading, Stopped
from storelib.preload.pieces import PieceHasher

MiB = 1024 * 1024
DATA = random.Random(1).randbytes(3 * MiB + 5)
SOURCE = "https://images.example/source"


class Source:
    """Sends what it is told to, or raises it, and then the right bytes."""

    def __init__(self, *first):
        self.first = list(first)
        self.asked = []

    def __call__(self, url, offset, length):
        self.asked.append((url, offset // MiB))
        response = self.first.pop(0) if self.first else None
        if isinstance(response, Exception):
            raise response
        return DATA[offset : offset + length] if response is None else response


class Image:
    """The pieces that are there, and what was told."""

    def __init__(self, *there):
        hasher = PieceHasher()
        hasher.update(DATA)
        self.there = dict.fromkeys(there, b"")
        self.told = []
        lacks = self.there.__contains__
        self.reading = Reading(
            "p", hasher.finish(), lambda number: not lacks(number), self.there.__setitem__, self.told.append
        )
        self.reading.read_from(SOURCE)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.0)


@pytest.fixture
def read():
    made = []

    def run(source, image, down_limit=0):
        made.append(Reader(source, down_limit, 1))
        return made[-1].read_all(image.reading, range(4))

    yield run
    for reader in made:
        reader.close()


def test_a_source_that_was_refused_is_good_when_it_is_named_again(read):
    source, image = Source(NotFound("the node drains")), Image()

    def tell(event):
        image.told.append(event)
        image.reading.read_from(SOURCE)

    image.reading.tell = tell
    late = threading.Timer(60, image.reading.stop)
    late.start()
    try:
        assert read(source, image) == (0, 0)
    finally:
        late.cancel()
        late.join()
    assert image.told == [SourceLost("p")]
    assert source.asked == [(SOURCE, number) for number in (0, 0, 1, 2, 3)]


def test_only_what_lacks_is_read(read):
    source, image = Source(), Image(1, 3)
    assert read(source, image) == (0, 0)
    assert source.asked == [(SOURCE, 0), (SOURCE, 2)]
    assert image.there == {0: DATA[:MiB], 1: b"", 2: DATA[2 * MiB : 3 * MiB], 3: b""}
    assert image.reading.fetched == 2 * MiB


@pytest.mark.parametrize(
    ("first", "outcome"),
    [
        (bytes(MiB), (1, 0)),
        (b"", (1, 0)),
        (Invalid("the source sent 3 bytes instead of 5"), (1, 0)),
        (RemoteServiceUnavailable("it is away"), (0, 1)),
    ],
)
def test_a_piece_that_comes_wrong_or_not_keeps_no_other_away(read, first, outcome):
    source, image = Source(first), Image()
    assert read(source, image) == outcome
    assert sorted(image.there) == [1, 2, 3]

    assert read(source, image) == (0, 0)
    assert b"".join(image.there[number] for number in range(4)) == DATA
    assert image.reading.fetched == len(DATA)


def test_one_that_refuses_is_not_asked_again_and_another_one_is_awaited(read):
    image = Image(1, 2, 3)

    def tell(event):
        image.told.append(event)
        threading.Timer(0.01, image.reading.read_from, (SOURCE + "/2",)).start()

    image.reading.tell = tell
    source = Source(Forbidden("its time is over"))
    assert read(source, image) == (0, 0)
    assert source.asked == [(SOURCE, 0), (SOURCE + "/2", 0)]
    assert image.told == [SourceLost("p")]


def test_one_that_is_stopped_waits_for_nothing(read):
    image = Image()
    image.reading.read_from(None)
    threading.Timer(0.01, image.reading.stop).start()
    with pytest.raises(Stopped):
        read(Source(), image)
    assert image.there == {}


def test_no_more_than_the_limit_is_read_in_a_second(read):
    image = Image(3)
    waited = []
    image.reading.pause = waited.append
    image.reading.limit = 2 * MiB
    read(Source(), image, down_limit=8 * MiB)
    assert waited == [pytest.approx(0.5, abs=0.4)] * 3


def test_what_nobody_thought_of_is_told():
    image, told = Image(), threading.Event()
    image.reading.tell = lambda event: (image.told.append(event), told.set())
    reader = Reader(Source(ValueError("of a library")), 0, 1)

    reader.begin(image.reading, lambda: reader.read_all(image.reading, range(4)))

    assert told.wait(10)
    reader.close()
    assert image.told == [Broken("p", "the agent failed: ValueError")]


def test_all_that_is_read_is_stopped_at_the_end():
    image, waits = Image(), threading.Event()

    class Waiting(Source):
        def __call__(self, url, offset, length):
            image.reading.read_from(None)
            waits.set()
            raise Forbidden("its time is over")

    ended = []

    def work():
        try:
            reader.read_all(image.reading, range(4))
        except Stopped:
            ended.append("stopped")
            raise

    reader = Reader(Waiting(), 0, 1)
    reader.begin(image.reading, work)
    assert waits.wait(30)
    reader.close()
    assert ended == ["stopped"]
