# SPDX-License-Identifier: Apache-2.0
"""A second process for the suite: a fork of this one that does what it is told and responds in JSON.

A fork, because a test's store class need not be importable; what it uses there are store objects of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import IO, Any

#: Seconds one response may take; a call that hangs must not take the whole run with it.
TIMEOUT = 120.0

#: What the child does with what it is told; the response must be of what JSON knows.
Serve = Callable[[Any], Any]


class Child:
    """The parent's end of a second process."""

    def __init__(self, pid: int, told: IO[bytes], responses: IO[bytes]) -> None:
        self.pid = pid
        self._told = told
        self._responses = responses
        self._gone = False

    def ask(self, *words: Any) -> Any:
        """Tell the child something and wait for its response; raises AssertionError for what went wrong there."""
        self._told.write(json.dumps(words).encode() + b"\n")
        waiting = select.poll()  # select() knows no descriptor above 1023, and tests may hold many
        waiting.register(self._responses, select.POLLIN)
        assert waiting.poll(TIMEOUT * 1000), f"the second process did not answer within {TIMEOUT:g} s"
        line = self._responses.readline()
        assert line, "the second process died"
        response = json.loads(line)
        assert "error" not in response, f"in the second process: {response['error']}"
        return response["result"]

    def kill(self) -> None:
        """End it as a power cut would."""
        if not self._gone:
            self._gone = True
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


@contextlib.contextmanager
def child(make: Callable[[], Serve]) -> Iterator[Child]:
    """A second process that calls ``make()`` and then serves; it is gone at the end."""
    there, told = os.pipe()
    responses, here = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of threads; no transfer is under way now
        pid = os.fork()
    if not pid:
        os.close(told)
        os.close(responses)
        _serve(make, there, here)
    os.close(there)
    os.close(here)
    with os.fdopen(told, "wb", buffering=0) as to_child, os.fdopen(responses, "rb", buffering=0) as from_child:
        process = Child(pid, to_child, from_child)
        try:
            yield process
        finally:
            process.kill()


def _serve(make: Callable[[], Serve], told: int, responses: int) -> None:
    """The child's life; it never returns to what the fork was made in."""
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
        # Not in the forked thread: a library's random numbers, kept for each thread, would be those of the next child
        # too. Ceph's clients then have the address of one that was killed, and shut out.
        life = threading.Thread(target=_respond, args=(make, told, responses))
        life.start()
        life.join()
    finally:
        os._exit(0)


def _respond(make: Callable[[], Serve], told: int, responses: int) -> None:
    serve: Serve | None = None
    with os.fdopen(told, "rb", buffering=0) as commands:
        while line := commands.readline():
            try:
                serve = serve or make()
                response = {"result": serve(json.loads(line))}
            except BaseException as error:  # noqa: BLE001  (told to the parent)
                response = {"error": f"{type(error).__name__}: {error}"}
            os.write(responses, json.dumps(response).encode() + b"\n")
