# SPDX-License-Identifier: Apache-2.0
"""What a request brings goes from the socket into the memory that is written to the store, and is copied nowhere."""

from __future__ import annotations

import os
import socket
import threading
import types

import pytest
from gunicorn.http.body import Body as GunicornBody
from gunicorn.http.body import ChunkedReader, LengthReader
from gunicorn.http.unreader import SocketUnreader

from storelib.api.errors import LimitExceeded
from storelib.api.request_body import direct
from storelib.api.service.inspection import Body, ClientDisconnected, inspected
from storelib.registry import open_store

MiB = 1024 * 1024
OPTIONS = types.SimpleNamespace(require_image_format_match=True, gpt_safety_checks_nonfatal=())


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def body_of(sock, length, begun=b""):
    """The body of a request whose headers came with the bytes ``begun`` behind them."""
    unreader = SocketUnreader(sock)
    unreader.unread(begun)
    return direct(GunicornBody(LengthReader(unreader, length)))


def test_what_came_with_the_headers_is_first_and_the_next_request_is_left(ends):
    ours, theirs = ends
    theirs.sendall(b"end|GET /next")
    body = body_of(ours, 9, b"begun|")
    memory, got = bytearray(100), b""
    while count := body.readinto(memoryview(memory)):
        got += memory[:count]
    assert got == b"begun|end"
    assert body.reader.length == 0
    assert ours.recv(100) == b"|GET /next"


def test_reading_and_filling_memory_take_turns(ends):
    ours, theirs = ends
    theirs.sendall(b"0123456789")
    body = body_of(ours, 12, b"ab")
    memory = bytearray(3)
    assert body.read(1) == b"a"
    got = b"a"
    while len(got) < 12:
        got += memory[: body.readinto(memoryview(memory))]
        got += body.read(2)
    assert got == b"ab0123456789"
    assert body.readinto(memoryview(memory)) == 0


def test_a_client_that_goes_away_is_the_end_of_it(ends):
    ours, theirs = ends
    theirs.sendall(b"012")
    theirs.close()
    body = Body(body_of(ours, 10), 10, MiB)
    memory = memoryview(bytearray(10))
    assert body.readinto(memory) == 3
    with pytest.raises(ClientDisconnected):
        body.readinto(memory)


def test_a_connection_that_was_cut_is_told_of_and_used_no_more(ends):
    ours, _ = ends
    ours.settimeout(0.01)
    raw = body_of(ours, 10)
    with pytest.raises(ClientDisconnected):
        Body(raw, 10, MiB).readinto(memoryview(bytearray(10)))
    assert raw.failed


def test_the_limit_counts_what_was_filled(ends):
    ours, theirs = ends
    theirs.sendall(b"x" * 10)
    with pytest.raises(LimitExceeded):
        Body(body_of(ours, 10), 10, 9).readinto(memoryview(bytearray(10)))


def test_a_body_in_chunks_stays_gunicorns(ends):
    body = GunicornBody(ChunkedReader(types.SimpleNamespace(cfg=None), SocketUnreader(ends[0])))
    assert direct(body) is body


@pytest.mark.parametrize("container", ["bare", "ovf"])
def test_an_upload_is_read_into_the_memory_that_is_written(ends, tmp_path, monkeypatch, container):
    ours, theirs = ends
    data = os.urandom(8 * MiB)
    client = threading.Thread(target=theirs.sendall, args=(data,))
    client.start()
    raw = body_of(ours, len(data))
    readinto, filled = type(raw).readinto, 0

    def counted(body, buffer):
        nonlocal filled
        count = readinto(body, buffer)
        filled += count
        return count

    monkeypatch.setattr(type(raw), "readinto", counted)
    store = open_store("file", filesystem_store_datadir=str(tmp_path))
    stored = store.add("id", inspected(OPTIONS, "raw", container, Body(raw, len(data), len(data))), len(data))
    client.join()
    assert store.get(stored.uri).data.read() == data
    # All but what is looked at.
    assert filled >= len(data) - MiB
