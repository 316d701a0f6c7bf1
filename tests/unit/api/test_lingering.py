# SPDX-License-Identifier: Apache-2.0
"""Connections whose clients still send: read away beside everything else, for a while."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest

from storelib.api import lingering

#: Seconds that nothing here takes.
TIMEOUT = 60


@pytest.fixture
def linger():
    """Call it for the client's end of a connection that lingers."""
    with contextlib.ExitStack() as stack:

        def begin(taker):
            ours, theirs = socket.socketpair()
            stack.enter_context(theirs)
            theirs.settimeout(TIMEOUT)
            taker.take(ours)
            assert theirs.recv(1) == b""
            return theirs

        yield begin


def is_closed(client):
    try:
        client.send(b"x")
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


def wait_until_closed(client):
    deadline = time.monotonic() + TIMEOUT
    while not is_closed(client):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_a_client_still_sends_is_read_away(linger):
    client = linger(lingering.Lingering())
    client.sendall(bytes(5_000_000))
    assert not is_closed(client)


@pytest.mark.parametrize("constant", ["LONGEST", "SILENCE"])
def test_neither_silent_nor_endless_clients_are_waited_for(linger, monkeypatch, constant):
    monkeypatch.setattr(lingering, constant, 0.05)
    client = linger(lingering.Lingering())
    time.sleep(0.2 if constant == "SILENCE" else 0)
    wait_until_closed(client)


def test_of_too_many_the_oldest_are_closed(linger, monkeypatch):
    monkeypatch.setattr(lingering, "MOST", 2)
    taker = lingering.Lingering()
    clients = [linger(taker) for _ in range(3)]
    wait_until_closed(clients[0])
    assert [is_closed(client) for client in clients[1:]] == [False, False]


def test_a_connection_that_is_gone_already_is_no_error():
    ours, theirs = socket.socketpair()
    theirs.close()
    ours.close()
    lingering.Lingering().take(ours)
