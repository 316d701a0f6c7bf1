# SPDX-License-Identifier: Apache-2.0
"""image_conversion: disks in one format for all, made by ``qemu-img``, whose time, memory and output are limited.

It never opens a file that was not inspected, is always told the format, and says itself what it found there before it
converts. What it wrote is inspected again: a disk may have another image in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import IO, Any

from oslo_utils.imageutils import format_inspector

from storelib import qemu_img
from storelib.api.errors import BadRequest, LimitExceeded, Unavailable, UnsupportedMediaType
from storelib.api.service.inspection import Body, inspected
from storelib.api.service.material import Material, Plugin
from storelib.exceptions import BadStoreConfiguration
from storelib.transfer.contract import MiB

#: What qemu calls the formats; others it cannot convert.
FORMATS = {"raw": "raw", **qemu_img.FORMATS}
#: Kinds of VMDK in a file of their own.
_VMDK_KINDS = ("monolithicSparse", "streamOptimized")
#: What a raw disk may look like and be one still.
_RAW = ("raw", "gpt")


def plugin(options: SimpleNamespace) -> Plugin:
    """Convert disks to ``output_format``; raises BadStoreConfiguration where that cannot be done."""
    where = "[image_import_opts] image_import_plugins = image_conversion"
    if program := qemu_img.missing_program():
        raise BadStoreConfiguration(f"{where} needs the program {program}")
    if not options.staging_dir:
        raise BadStoreConfiguration(f"{where} needs [api] staging_dir, where the disks are kept meanwhile")
    wanted: str = options.image_conversion.output_format
    if wanted not in options.disk_formats:
        raise BadStoreConfiguration(f"[image_conversion] output_format: disk_formats has no {wanted}")
    return _Conversion(options, wanted)


class _Conversion:
    """Converts data to a wanted format with qemu-img."""

    def __init__(self, options: SimpleNamespace, wanted: str) -> None:
        self._options = options
        self._wanted = wanted

    def __call__(self, material: Material) -> None:
        """Convert the data, unless it is an ISO, has the format, or is no disk by itself."""
        image = material.image
        if image.container_format != "bare" or image.disk_format in ("iso", self._wanted):
            return
        given = FORMATS.get(image.disk_format or "")
        if given is None:
            raise BadRequest(f"{image.disk_format} cannot be converted to {self._wanted}")
        source = self._inspected_file(material)
        found = self._describe(material, source, given)
        if (size := found.get("virtual-size", 0)) > material.room:
            raise LimitExceeded(f"the disk has {size} bytes, and {material.room} are allowed")
        target = os.path.join(material.workspace(), "converted")
        # A process may not write more, sparse or not; qcow2 and VMDK have a little beside the data.
        longest = size + size // 64 + 64 * MiB
        command = ["convert", "-q", "-f", given, "-O", FORMATS[self._wanted], source, target]
        _run(command, material, self._options.import_conversion_time, longest)
        if source != material.path:
            os.unlink(source)
        self._check_raw(target)
        material.replace_by_file(target)
        material.set_formats(self._wanted, "bare")

    def _inspected_file(self, material: Material) -> str:
        """The data as a file that was inspected; raises what reading and inspecting raise."""
        if material.path is not None:
            with open(material.path, "rb") as file:
                self._look(material, file, None)
            return material.path
        source = os.path.join(material.workspace(), "source")
        with open(source, "xb") as file:
            self._look(material, Body(material.stream, material.size, material.room), file)
        return source

    def _look(self, material: Material, source: Any, copy: IO[bytes] | None) -> None:
        image = material.image
        checked = inspected(self._options, image.disk_format or "", image.container_format, source)
        while copy is not None and (chunk := checked.read(MiB)):
            material.check()
            copy.write(chunk)
        checked.look()

    def _describe(self, material: Material, path: str, given: str) -> Mapping[str, Any]:
        """What qemu-img says of the file; raises UnsupportedMediaType for what would open another one."""
        said = _run(["info", "-f", given, "--output=json", path], material, qemu_img.LOOK, 0)
        try:
            found: dict[str, Any] = json.loads(said)
        except ValueError as error:
            raise UnsupportedMediaType(f"the data cannot be read as {given}") from error
        data = (found.get("format-specific") or {}).get("data") or {}
        if found.get("format") != given:
            raise UnsupportedMediaType(f"the data is {found.get('format')}, not {given}")
        if qemu_img.has_parts_elsewhere(found):
            raise UnsupportedMediaType("the data is not safe to use: it has parts in another file")
        if found.get("encrypted"):
            raise UnsupportedMediaType("an encrypted disk cannot be converted")
        if given == "vmdk" and data.get("create-type") not in _VMDK_KINDS:
            raise UnsupportedMediaType(f"a VMDK of the kind {data.get('create-type')!r} cannot be converted")
        return found

    def _check_raw(self, path: str) -> None:
        """Raise UnsupportedMediaType for a disk that would be taken for an image of another format."""
        if self._wanted != "raw":
            return
        try:
            found = str(format_inspector.detect_file_format(path))
        except format_inspector.ImageFormatError as error:
            raise UnsupportedMediaType(f"the converted disk is not safe to use: {error}") from error
        if found not in _RAW:
            raise UnsupportedMediaType(f"the converted disk looks like {found}, which would be taken for its format")


def _run(arguments: Sequence[str], material: Material, seconds: float, longest: int) -> bytes:
    """What ``qemu-img`` writes to its standard output; raises UnsupportedMediaType if it fails, Unavailable if it takes
    too long, and what ``material.check`` raises. It writes no file of more than ``longest`` bytes.
    """
    try:
        return qemu_img.run(arguments, material.check, seconds, longest)
    except qemu_img.QemuTooSlow:
        raise Unavailable(f"converting took longer than {seconds:g} s") from None
    except qemu_img.QemuFailed as error:
        # The data may be as good as any.
        raise (Unavailable if error.no_room else UnsupportedMediaType)(str(error)) from error
