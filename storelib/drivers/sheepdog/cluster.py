# SPDX-License-Identifier: Apache-2.0
"""SheepdogCluster: the vdis of a cluster, as dog shows, makes and deletes them, and a store's options, read once.

Dog runs the commands, each with a time limit and all of its output looked at. Arguments are passed as they are, never
through a shell. Data goes from and into the caller's memory. Nothing here decides what becomes visible, or whose a vdi
is: that is publication.py.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, NamedTuple, NoReturn

from storelib.drivers.sheepdog.errors import CommandCut, CommandFailed, CommandHung, first_line
from storelib.drivers.sheepdog.location import SheepdogLocation, name_of, normalised
from storelib.exceptions import Duplicate, NotFound, RemoteServiceUnavailable, StoreError, misconfigured
from storelib.transfer.contract import MiB, Options
from storelib.transfer.live import LiveAdds

_COMMANDS = ("dog", "collie")
#: Deletions of the parts of one leftover, as a limit to what may go wrong in them.
_MOST_PASSES = 5
#: FLAG name id size used shared ctime vid copies tag bshift, each after one space. A tag may be empty or have spaces,
#: but is no number; versions before 0.9 print no bshift.
_LINE = re.compile(
    r"([=sc]) ((?:\\[\s\S]|[^\\ \n])*) [0-9]+ ([0-9]{1,20}) ([0-9]{1,20}) ([0-9]{1,20}) ([0-9]{1,20}) ([0-9a-fA-F]+)"
    r" \S+ ([^\n]*?)(?: ([0-9]{1,2}))?(?:\n|\Z)"
)
#: Characters of one entry at most: a name and a tag of 256 bytes, escaped, and numbers.
_LONGEST_ENTRY = 64 * 1024
_ESCAPED = re.compile(r"\\([\s\S])")
#: Of clusters that do not tell: objects of 4 MiB.
_USUAL_SHIFT = "22"
#: Bytes of the largest vdi.
LARGEST = 4 << 40
#: The attribute of a temporary vdi that says when something was last written into it, in POSIX seconds.
TOUCHED = "storelib-touched"
#: fcntl.F_SETPIPE_SZ; a pipe of 64 KiB needs a change of processes for every 64 KiB.
_SET_PIPE_SIZE = 1031
_PIPE = 1 << 20
#: More than this of what a command complains about is thrown away.
_MOST_COMPLAINTS = 64 * 1024
#: Seconds that a command gets to go once it was killed.
_GRACE = 5.0


class Vdi(NamedTuple):
    """A vdi, or one snapshot of it; sizes are in bytes, ``created`` in POSIX seconds."""

    name: str
    snapshot: bool
    size: int
    #: Bytes of objects of its own, and of those it has in common with others.
    used: int
    shared: int
    created: int
    vid: str
    tag: str
    #: Bytes of one object are two to the power of this.
    block_shift: int

    @property
    def stored(self) -> int:
        """Bytes of all its objects."""
        return self.used + self.shared

    @property
    def content(self) -> tuple[int, int]:
        """What is another once the vdi is being deleted: dog takes away the objects before the name."""
        return self.size, self.stored

    def has_all_of(self, other: Vdi) -> bool:
        """Whether it is as large as the other, and no object of that is missing."""
        return self.size == other.size and self.stored >= other.stored

    @property
    def identity(self) -> tuple[str, int, int, int]:
        """What is another for another vdi of the same name, and after a snapshot."""
        return self.vid, self.created, *self.content


class SheepdogCluster:
    """The cluster that one daemon leads to; raises BadStoreConfiguration where there is no command.

    ``clean_up`` is the engine's: what it is given to call is tried again, and gc finds what stays. Safe to use from
    many threads.
    """

    def __init__(
        self, conf: Options, store_name: str, clean_up: Callable[[Callable[[], object], object], None]
    ) -> None:
        self.store_name = store_name
        self.clean_up = clean_up
        #: Bytes that one command reads or writes.
        self.chunk_size = int(conf.sheepdog_store_chunk_size) * MiB
        #: Commands of one transfer side by side, at most.
        self.concurrency = int(conf.sheepdog_store_concurrency)
        #: Redundancy of new images as dog takes it; empty: the cluster's.
        self.copies: str = conf.sheepdog_store_copies
        #: Bytes of one object, as far as is known.
        self.block_size = 4 * MiB
        #: Held while a copy has taken away the claim to its source.
        self.taking_snapshots = threading.Lock()
        #: Adds that are under way, by token, so that gc leaves them alone.
        self.live: LiveAdds[object] = LiveAdds()
        wanted = (conf.sheepdog_store_command,) if conf.sheepdog_store_command else _COMMANDS
        path = next(filter(None, map(shutil.which, wanted)), None)
        if path is None:
            why = f"there is no program {' or '.join(wanted)}; it comes with the package sheepdog"
            raise misconfigured(store_name, "sheepdog_store_command", why)
        timeout = min(conf.sheepdog_store_timeout, conf.transfer_timeout)
        self.dog = Dog(path, conf.sheepdog_store_address, conf.sheepdog_store_port, timeout)
        self._address = normalised(conf.sheepdog_store_address)
        self._port = int(conf.sheepdog_store_port)

    def location(self, vdi: str) -> SheepdogLocation:
        """Where the vdi with this name is."""
        return SheepdogLocation(self._address, self._port, vdi)

    # -- What there is ----------------------------------------------------------------------------------------

    def vdis(self, name: str | None = None) -> Iterator[Vdi]:
        """All vdis and snapshots, or those with this name; dog ends with 0 where there are none."""
        output, _ = self.dog.call("list", "-r", *(() if name is None else (name,)))
        # Some versions take the name for part of a longer one.
        return (vdi for vdi in parse([output]) if name is None or vdi.name == name)

    def each_vdi(self) -> Iterator[Vdi]:
        """All vdis and snapshots, while dog is yet to find the others."""
        with self.dog.start("list", "-r") as running:
            yield from parse(running.pieces())
            running.finish()

    def find(self, name: str) -> Vdi | None:
        """The vdi with this name, not its snapshots."""
        return next((vdi for vdi in self.vdis(name) if not vdi.snapshot), None)

    def find_any(self, name: str) -> bool:
        """Whether there is a vdi with this name, or a snapshot of it."""
        return next(self.vdis(name), None) is not None

    def find_snapshot(self, name: str, tag: str) -> Vdi | None:
        """The snapshot of a vdi with this tag."""
        return next((vdi for vdi in self.vdis(name) if vdi.snapshot and vdi.tag == tag), None)

    def existing(self, location: SheepdogLocation) -> Vdi:
        """The vdi of an image; raises NotFound."""
        found = self.find(location.vdi)
        if found is None:
            raise NotFound(f"no image at {location}")
        return found

    def check_id_is_free(self, image_id: str) -> None:
        """Raise Duplicate if there is such an image."""
        if self.find(name_of(image_id)) is not None:
            raise Duplicate(f"image {image_id!r} exists in store {self.store_name}")

    def attribute(self, name: str, key: str) -> str | None:
        """What the vdi with this name, or an earlier one, has there; None if nothing."""
        try:
            output, _ = self.dog.call("getattr", name, key)
        except CommandFailed as error:
            if error.meaning is NotFound:
                return None
            raise
        return output.decode(errors="replace").strip()

    # -- Deleting ---------------------------------------------------------------------------------------------

    def delete_all(self, name: str, known: Sequence[Vdi] = ()) -> None:
        """Delete a temporary vdi and its snapshots, as far as there are any, and see that they are gone.

        With ``known`` these are deleted first, without a look.
        """
        complaint = ""
        found = list(known)
        # A snapshot may be there twice when the response to the first one was lost.
        for _ in range(_MOST_PASSES):
            found = found or list(self.vdis(name))
            if not found:
                return
            for vdi in found:
                complaint += self.dog.call("delete", *(("-s", vdi.tag) if vdi.snapshot else ()), name)[1]
            found = []
        if self.find_any(name):
            raise not_deleted(name, complaint)

    def delete_snapshot(self, name: str, tag: str) -> None:
        """Delete a snapshot, and see that it is gone; clones of it keep what they have in common with it."""
        _, complaint = self.dog.call("delete", "-s", tag, name)
        if self.find_snapshot(name, tag) is not None:
            raise not_deleted(f"{name}, snapshot {tag}", complaint)


def not_deleted(name: str, complaint: str) -> RemoteServiceUnavailable:
    """The error for a vdi that dog did not delete, whatever its exit code."""
    said = first_line(complaint) or "nothing"
    return RemoteServiceUnavailable(f"vdi {name!r} is still there after dog deleted it; dog said: {said}")


# -- What dog lists -----------------------------------------------------------------------------------------------


def parse(output: Iterable[bytes]) -> Iterator[Vdi]:
    """The entries of a listing that comes in pieces; raises StoreError for what does not look like one."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    text = ""
    for piece in output:
        text += decoder.decode(piece)
        position = 0
        # Only what ends with the end of a line is known to be all of an entry.
        while (match := _LINE.match(text, position)) is not None and match.group().endswith("\n"):
            position = match.end()
            yield _entry(match)
        text = text[position:]
        if len(text) > _LONGEST_ENTRY:
            raise _not_understood(text)
    text += decoder.decode(b"", final=True)
    position = 0
    while position < len(text):
        match = _LINE.match(text, position)
        if match is None:
            raise _not_understood(text[position:])
        position = match.end()
        yield _entry(match)


def _entry(match: re.Match[str]) -> Vdi:
    flag, name, size, used, shared, created, vid, tag, shift = match.groups()
    return Vdi(
        _ESCAPED.sub(r"\1", name),
        flag == "s",
        int(size),
        int(used),
        int(shared),
        int(created),
        vid,
        tag,
        int(shift or _USUAL_SHIFT),
    )


def _not_understood(text: str) -> StoreError:
    line = text.partition("\n")[0]
    return StoreError(f"dog vdi list printed a line that cannot be understood: {line[:300]!r}")


# -- Commands -----------------------------------------------------------------------------------------------------


class Dog:
    """The command, and the daemon it is to talk to."""

    def __init__(self, path: str, address: str, port: int, timeout: float) -> None:
        self.path = path
        self.address = address
        self.port = port
        self._timeout = timeout

    def call(self, verb: str, *arguments: str, data: memoryview | None = None) -> tuple[bytes, str]:
        """Run ``dog vdi verb``; returns what it printed and what it complained about.

        With ``data`` exactly that goes in. Raises CommandFailed, CommandHung, CommandCut, OSError.
        """
        with self.start(verb, *arguments, takes_data=data is not None) as running:
            if data is not None:
                running.send(data)
            output = running.read_all()
            return output, running.finish()

    def start(self, verb: str, *arguments: str, takes_data: bool = False) -> Running:
        """A running ``dog vdi verb``."""
        command = (self.path, "vdi", verb, "-a", self.address, "-p", str(self.port), *arguments)
        return Running(command, takes_data, self._timeout)


class Running:
    """One command under way, of a process group of its own; ends with ``finish`` or is killed by ``close``."""

    def __init__(self, command: tuple[str, ...], takes_data: bool, timeout: float) -> None:
        self._arguments = (command[2], *command[7:])
        self._timeout = timeout
        self._complaints = bytearray()
        self._process = subprocess.Popen(  # noqa: S603  (a list of arguments; no shell)
            command,
            bufsize=0,
            stdin=subprocess.PIPE if takes_data else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A signal to the caller's terminal is the caller's to handle.
            start_new_session=True,
            # What counts as a space in a name depends on the locale.
            env={**os.environ, "LC_ALL": "C"},
        )
        assert self._process.stdout is not None  # noqa: S101
        assert self._process.stderr is not None  # noqa: S101
        self._stdin = self._process.stdin
        self._stdout: IO[bytes] = self._process.stdout
        self._stderr: IO[bytes] = self._process.stderr
        for pipe in (self._stdin, self._stdout):
            if pipe is not None:
                # Refused to users who have very many pipes; then it is slower.
                with contextlib.suppress(OSError):
                    fcntl.fcntl(pipe, _SET_PIPE_SIZE, _PIPE)
        self._moved = time.monotonic()
        self._complaining = True

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def send(self, data: memoryview) -> None:
        """Hand over all of ``data``.

        The pipe stays open after it: what a command would do at the end of too little data is to write zeros.
        """
        assert self._stdin is not None  # noqa: S101
        descriptor = self._stdin.fileno()
        os.set_blocking(descriptor, False)
        sent = 0
        self._moved = time.monotonic()
        while sent < len(data) and self._wait(descriptor, select.POLLOUT):
            try:
                sent += os.write(descriptor, data[sent:])
            except BrokenPipeError:
                break
        if sent < len(data):
            self._raise_failure()
            raise CommandCut(self._arguments, f"it took {sent} of {len(data)} bytes")

    def read_into(self, view: memoryview) -> int:
        """Fill ``view`` from the output; returns fewer bytes at its end only."""
        filled = 0
        self._moved = time.monotonic()
        while filled < len(view):
            self._wait(self._stdout.fileno(), select.POLLIN)
            count = os.readv(self._stdout.fileno(), [view[filled:]])
            if not count:
                break
            filled += count
        return filled

    def read_all(self) -> bytes:
        """All of the output."""
        pieces = bytearray()
        buffer = memoryview(bytearray(64 * 1024))
        while count := self.read_into(buffer):
            pieces += buffer[:count]
        return bytes(pieces)

    def pieces(self) -> Iterator[bytes]:
        """All of the output, as it comes; what is yet to come waits while the caller works on a piece."""
        view = memoryview(bytearray(64 * 1024))
        while True:
            self._moved = time.monotonic()
            self._wait(self._stdout.fileno(), select.POLLIN)
            count = os.readv(self._stdout.fileno(), [view])
            if not count:
                return
            yield bytes(view[:count])

    def finish(self) -> str:
        """Wait for its end; returns what it complained about. Raises CommandFailed, CommandCut, CommandHung."""
        self._moved = time.monotonic()
        extra = self.read_into(memoryview(bytearray(1)))
        self._raise_failure()
        unread = self._unread()
        if extra:
            raise CommandCut(self._arguments, "it sent more bytes than it was asked for")
        if unread:
            raise CommandCut(self._arguments, f"it left {unread} bytes unread; was the vdi too small?")
        return self._complaint

    def close(self) -> None:
        """Kill it if it still runs, and let nothing of it remain."""
        if self._process.poll() is None:
            # Killed before its input ends, so that it takes nothing for the end of the data.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE)
        for pipe in (self._stdin, self._stdout, self._stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    # -- Waiting for a command --------------------------------------------------------------------------------

    @property
    def _complaint(self) -> str:
        return self._complaints.decode(errors="replace")

    def _wait(self, descriptor: int, event: int) -> bool:
        """Until the pipe is ready; False if its other end is closed and nothing can be written any more."""
        poll = select.poll()
        poll.register(descriptor, event)
        if self._complaining:
            poll.register(self._stderr.fileno(), select.POLLIN)
        while True:
            ready = dict(poll.poll(max(self._left(), 0.0) * 1000))
            if not ready and self._left() <= 0:
                self._give_up()
            if self._stderr.fileno() in ready and not self._listen():
                poll.unregister(self._stderr.fileno())
            if descriptor in ready:
                self._moved = time.monotonic()
                return event == select.POLLIN or not ready[descriptor] & select.POLLERR

    def _listen(self) -> bool:
        """Take what is on stderr; False at its end."""
        heard = os.read(self._stderr.fileno(), 16 * 1024)
        room = _MOST_COMPLAINTS - len(self._complaints)
        self._complaints += heard[: max(room, 0)]
        self._complaining = bool(heard)
        return self._complaining

    def _raise_failure(self) -> None:
        """Wait for its end, and raise CommandFailed if it is not a good one."""
        poll = select.poll()
        poll.register(self._stderr.fileno(), select.POLLIN)
        while self._complaining:
            if not poll.poll(max(self._left(), 0.0) * 1000) and self._left() <= 0:
                self._give_up()
            self._listen()
        try:
            code = self._process.wait(max(self._left(), 0.01))
        except subprocess.TimeoutExpired:
            self._give_up()
        if code:
            raise CommandFailed(self._arguments, code, self._complaint)

    def _unread(self) -> int:
        """Bytes that went in and never came out: with exit code 0, ``write`` leaves what lies beyond the end."""
        if self._stdin is None:
            return 0
        count = fcntl.ioctl(self._stdin.fileno(), termios.FIONREAD, bytes(struct.calcsize("i")))
        return int(struct.unpack("i", count)[0])

    def _left(self) -> float:
        return self._moved + self._timeout - time.monotonic()

    def _give_up(self) -> NoReturn:
        self.close()
        raise CommandHung(self._arguments, f"nothing happened for {self._timeout:g} s")
