# SPDX-License-Identifier: Apache-2.0
"""``qemu-img``, whose time, memory and output are limited: for the image API and for the agent on a node.

It must only be given files that were inspected, and always the format.
"""

from __future__ import annotations

import errno
import functools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MiB = 1024 * 1024
#: What qemu calls the formats; others it cannot convert.
FORMATS = {"qcow2": "qcow2", "vmdk": "vmdk", "vdi": "vdi", "vhd": "vpc", "vhdx": "vhdx"}
#: Bytes of address space: most of it is what its threads and the allocator reserve and never use.
MEMORY = 2048 * MiB
#: Seconds that ``info`` takes at most, which reads headers; much, for a machine that is busy.
LOOK = 60.0
#: Seconds between two looks whether the result still is wanted.
PAUSE = 0.2
#: Characters of what it says at most.
_SAID = 500
# util-linux sets the limits before it begins: set from here they could come when it has ended.
_PROGRAMS = ("qemu-img", "prlimit")


class QemuFailed(Exception):
    """What it says, without the paths of files; ``no_room`` where the disk it writes to is full."""

    def __init__(self, said: str, no_room: bool) -> None:
        super().__init__(said)
        self.no_room = no_room


class QemuTooSlow(Exception):
    """It took longer than it may."""


def missing_program() -> str | None:
    """A program that this needs and that is not there."""
    return next((program for program in _PROGRAMS if shutil.which(program) is None), None)


def has_parts_elsewhere(found: Mapping[str, Any]) -> bool:
    """Whether a disk, as ``info`` describes it, stands on another file."""
    data = (found.get("format-specific") or {}).get("data") or {}
    return "backing-filename" in found or "full-backing-filename" in found or "data-file" in data


def run(arguments: Sequence[str], check: Callable[[], object], seconds: float, longest: int) -> bytes:
    """What ``qemu-img`` writes to its standard output, a MiB at most.

    It writes no file of more than ``longest`` bytes. ``check`` is called all the time; what it raises ends it. Raises
    QemuFailed, and QemuTooSlow after ``seconds``.
    """
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "MALLOC_ARENA_MAX": "2"}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # noqa: S603  (no shell, and paths that are absolute)
            [*_ending_with_this_process(), *_limited(seconds, longest), "qemu-img", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=errors,
            env=environment,
            start_new_session=True,
        )
        try:
            _wait(process, check, seconds)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode:
            errors.seek(0)
            said = errors.read(_SAID).decode(errors="replace").strip()
            for word in filter(os.path.isabs, arguments):
                said = said.replace(word, "the image")
            raise QemuFailed(
                f"qemu-img {arguments[0]} failed: {said or 'it was ended'}", os.strerror(errno.ENOSPC) in said
            )
        out.seek(0)
        return out.read(MiB)


@functools.cache
def _ending_with_this_process() -> Sequence[str]:
    """What has it killed with this process: it would go on for hours, and fill the disk, for nobody."""
    killed = ("setpriv", "--pdeathsig", "KILL", "--")
    try:
        # Before util-linux 2.33 it has no such option; what this tries is there in any case.
        subprocess.run([*killed, "prlimit", "--version"], capture_output=True, check=True, timeout=LOOK)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ()
    return killed


def _limited(seconds: float, longest: int) -> list[str]:
    limits = {"as": MEMORY, "cpu": int(seconds) + 1, "core": 0, "fsize": longest or MiB}
    return ["prlimit", *(f"--{name}={value}" for name, value in limits.items()), "--"]


def _wait(process: subprocess.Popen[bytes], check: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            process.wait(PAUSE)
            return
        except subprocess.TimeoutExpired:
            check()
            if time.monotonic() > end:
                raise QemuTooSlow from None
