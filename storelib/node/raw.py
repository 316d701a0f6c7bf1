# SPDX-License-Identifier: Apache-2.0
"""Disks as raw ones, made by ``qemu-img`` of files that were inspected."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from storelib import qemu_img
from storelib.exceptions import Invalid, StorageFull
from storelib.qemu_img import FORMATS, MiB

#: Seconds that it takes at most for an image of any size.
_CONVERT = 4 * 3600.0


def virtual_size(path: Path, disk_format: str, check: Callable[[], None]) -> int:
    """Bytes of the disk; raises Invalid for what stands on other files."""
    said = _run(["info", "-f", FORMATS[disk_format], "--output=json", str(path)], check, qemu_img.LOOK, 0)
    try:
        found = json.loads(said)
        size = int(found["virtual-size"])
    except (ValueError, KeyError, TypeError) as error:
        raise Invalid(f"the data cannot be read as {disk_format}") from error
    if qemu_img.has_parts_elsewhere(found):
        raise Invalid("the data is not safe to use: it has parts in another file")
    return size


def convert(source: Path, disk_format: str, target: Path, check: Callable[[], None]) -> None:
    """Write the disk as a raw one; raises Invalid, StorageFull."""
    size = virtual_size(source, disk_format, check)
    command = ["convert", "-q", "-f", FORMATS[disk_format], "-O", "raw", str(source), str(target)]
    _run(command, check, _CONVERT, size + 64 * MiB)


def _run(arguments: Sequence[str], check: Callable[[], None], seconds: float, longest: int) -> bytes:
    if program := qemu_img.missing_program():
        raise Invalid(f"convert_to_raw needs the program {program}")
    try:
        return qemu_img.run(arguments, check, seconds, longest)
    except qemu_img.QemuTooSlow as error:
        raise Invalid(f"qemu-img took longer than {seconds:g} s") from error
    except qemu_img.QemuFailed as error:
        raise (StorageFull if error.no_room else Invalid)(str(error)) from error
