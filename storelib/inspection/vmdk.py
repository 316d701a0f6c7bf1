# SPDX-License-Identifier: Apache-2.0
"""What makes a VMDK name other files, for qemu and for programs that read its descriptor more thoroughly.

Modelled on qemu's block/vmdk.c: vmdk_probe, vmdk_open_vmdk4, vmdk_open_desc_file, vmdk_parent_open. Only one kind of
VMDK has its data in itself: a header with a capacity, then a descriptor with one extent, the file itself.
"""

from __future__ import annotations

import re
import struct

MAGIC = b"KDMV"
#: Virtual machines on ESX: qemu looks for the name of a parent in them, and for nothing else that could be checked.
ESX_MAGIC = b"COWD"
SECTOR = 512
#: Bytes behind the header in which qemu looks for a parent, whatever the header says of the descriptor.
PARENT = 20 * SECTOR
#: Bytes of the longest descriptor that qemu reads.
LONGEST = (1 << 20) - 1

_VERSIONS = (b"version=1", b"version=2", b"version=3")
#: Settings that name files.
_NAMES = (b"parentfilenamehint", b"changetrackpath")
_ACCESS = (b"rw", b"rdonly", b"noaccess")
#: A name with a colon may be any protocol of qemu's, json: for example.
_EXTENT = re.compile(rb'(?:rw|rdonly|noaccess)[ \t]+[0-9]{1,20}[ \t]+sparse[ \t]+"[^"/\\:]*"')
_HEADER = struct.Struct("<4sIIQQQQ")


def is_descriptor(head: bytes) -> bool:
    """Whether data that begins like this is, to qemu, a text that describes a disk in other files."""
    lines = head[:SECTOR].split(b"\n")
    for line in lines[:-1]:
        # At least as many of these are passed over as qemu passes over.
        line = line.lstrip(b"\r")
        if line.startswith(b"#") or not line.strip(b" \r"):
            continue
        return line.removesuffix(b"\r") in _VERSIONS
    return False


def needed(head: bytes) -> int:
    """Bytes of a VMDK that ``danger`` has to see, at most 1 MiB and a header."""
    if len(head) < _HEADER.size:
        return SECTOR
    sectors: int = _HEADER.unpack_from(head)[6]
    return SECTOR + max(PARENT, min(sectors * SECTOR, LONGEST))


def danger(head: bytes) -> str | None:
    """Why a VMDK is not safe to use, None if it is; ``head`` are its first ``needed`` bytes."""
    if not head.startswith(MAGIC):
        return "it is only a description of other files, or of a kind that may have a parent"
    if len(head) < _HEADER.size:
        return "its header is cut short"
    _, _, _, capacity, _, first, sectors = _HEADER.unpack_from(head)
    # Without a capacity qemu takes the descriptor for one that names other files.
    if not capacity:
        return "its header has no capacity"
    if first != 1 or not 0 < sectors * SECTOR <= LONGEST:
        return "its descriptor is not behind its header, or is too long"
    behind = head[SECTOR:].lower()
    if any(name in behind for name in _NAMES):
        return "it names a parent or a file of changes"
    return _danger_in(behind[: sectors * SECTOR].partition(b"\0")[0])


def _danger_in(descriptor: bytes) -> str | None:
    """Why this descriptor, in lower case, may name other files."""
    if descriptor.count(b"createtype") != 1:
        return "its descriptor does not say once of what type it is"
    extents = 0
    for line in descriptor.replace(b"\r", b"\n").split(b"\n"):
        line = line.strip()
        if not line or line.startswith((b"#", b"ddb.")):
            continue
        if line.split(None, 1)[0] in _ACCESS:
            extents += 1
            if not _EXTENT.fullmatch(line):
                return "its descriptor has an extent that is not in the image itself"
            continue
        name, equals, _ = line.partition(b"=")
        if not equals or not name.strip().isalnum():
            return "its descriptor has a line that is no setting"
    return None if extents == 1 else f"its descriptor has {extents} extents"
