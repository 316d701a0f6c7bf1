# SPDX-License-Identifier: Apache-2.0
"""The faulty proxy does to a connection what was planned, at the planned byte, and nothing else."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from storelib.testing.faults import Cut, Far, FaultyProxy, Reset, Slow, Stall

DATA = bytes(range(256)) * 4000


class EchoServer:
    """Sends back what it gets, connection by connection, and remembers it."""

    def __init__(self):
        self.received = []
        self.finished = threading.Semaphore(0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection):
        seen = bytearray()
        self.received.append(seen)
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                seen += data
                connection.sendall(data)
        self.finished.release()

    def close(self):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def server():
    with contextlib.closing(EchoServer()) as server:
        yield server


@pytest.fixture
def proxy(server):
    with FaultyProxy(server.address) as proxy:
        yield proxy


def talk(proxy, data=DATA, timeout=10.0):
    """Send ``data`` and collect what comes back until the end; a reset shows to the sender or the receiver."""
    response, resets = bytearray(), []

    def send(connection):
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        except ConnectionResetError as error:
            resets.append(error)
        except OSError:
            pass

    try:
        connection = socket.create_connection(proxy.address, timeout=timeout)
    except ConnectionResetError:
        return b"", "reset"
    with connection:
        sender = threading.Thread(target=send, args=(connection,))
        sender.start()
        try:
            while piece := connection.recv(65536):
                response += piece
        except ConnectionResetError as error:
            resets.append(error)
        except TimeoutError:
            return bytes(response), "timeout"
        finally:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            sender.join()
    return bytes(response), "reset" if resets else "end"


def test_everything_passes_without_a_plan(proxy):
    assert talk(proxy) == (DATA, "end")


@pytest.mark.parametrize("after", [0, 1, 100_001])
def test_cut_ends_the_answer_at_the_byte(proxy, after):
    proxy.plan(Cut(after))
    assert talk(proxy) == (DATA[:after], "end")


@pytest.mark.parametrize("after", [0, 100_001])
def test_cut_ends_the_request_at_the_byte(proxy, server, after):
    proxy.plan(Cut(after, "up"))
    talk(proxy)
    assert server.finished.acquire(timeout=10)
    assert bytes(server.received[0]) == DATA[:after]


@pytest.mark.parametrize("direction", ["up", "down"])
def test_reset_is_seen_as_a_reset(proxy, direction):
    proxy.plan(Reset(1000, direction))
    _, how = talk(proxy)
    assert how == "reset"


def test_stall_stops_at_the_byte(proxy):
    proxy.plan(Stall(5000))
    assert talk(proxy, timeout=1.0) == (DATA[:5000], "timeout")


def test_stall_goes_on_after_its_time(proxy):
    proxy.plan(Stall(5000, seconds=0.2))
    started = time.monotonic()
    assert talk(proxy) == (DATA, "end")
    assert time.monotonic() - started >= 0.2


def test_slow_takes_its_time_for_each_chunk(proxy):
    proxy.plan(Slow(0, seconds=0.1, chunk=1000))
    started = time.monotonic()
    assert talk(proxy, DATA[:3000]) == (DATA[:3000], "end")
    assert time.monotonic() - started >= 0.3


def test_far_is_late_but_not_thin(proxy):
    proxy.plan(Far(0, seconds=0.5, window=len(DATA)))
    begun = time.monotonic()
    assert talk(proxy) == (DATA, "end")
    # If each of its sixteen pieces waited for the one before, it would be eight seconds.
    assert 0.5 <= time.monotonic() - begun < 7.0


def test_far_has_no_more_than_its_window_on_the_way(proxy):
    proxy.plan(Far(0, seconds=0.1, window=len(DATA) // 4))
    begun = time.monotonic()
    assert talk(proxy) == (DATA, "end")
    assert time.monotonic() - begun >= 0.3


def test_faults_follow_each_other(proxy):
    proxy.plan(Stall(1000, seconds=0.1), Cut(2000))
    assert talk(proxy) == (DATA[:2000], "end")


def test_plan_is_for_the_next_connections_only(proxy):
    proxy.plan(Cut(10), connections=2)
    assert [len(talk(proxy)[0]) for _ in range(3)] == [10, 10, len(DATA)]
    assert proxy.connections == 3


def test_always_is_for_all_others(proxy):
    proxy.always(Cut(20))
    proxy.plan(Cut(10))
    assert [len(talk(proxy)[0]) for _ in range(3)] == [10, 20, 20]


def test_absent_server_is_a_reset():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = gone.getsockname()
    with FaultyProxy(address) as proxy:
        assert talk(proxy)[1] == "reset"


def test_closing_ends_stalled_connections_and_all_threads(server):
    before = threading.active_count()
    proxy = FaultyProxy(server.address)
    proxy.plan(Stall(0))
    with socket.create_connection(proxy.address, timeout=10) as connection:
        connection.sendall(b"hello")
        time.sleep(0.1)
        proxy.close()
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(10) == b""
    deadline = time.monotonic() + 60
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [thread for thread in threading.enumerate() if thread.name == "faulty-proxy"]
