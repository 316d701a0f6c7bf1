# SPDX-License-Identifier: Apache-2.0
"""How qemu recognises the formats that can name other files, and what in an image makes a hypervisor open them.

Modelled on qemu's block drivers: the probes, which see the first 512 bytes, and what each looks at when it opens an
image (block/qcow2.c, qcow.c, qed.c, vdi.c, vpc.c, vhdx.c; VMDK is in ``vmdk``). Where qemu refuses a parent, others
open it: Hyper-V and Xen those of VHD and VHDX, VirtualBox those of VDI.

oslo.utils wants a whole header before it recognises a format, and takes what it cannot read for raw data; qemu wants
neither. Work and memory are bounded: nothing looks at more than ``needed`` says.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable, Mapping

from storelib.inspection import vmdk

#: Bytes at the start of an image that qemu looks at to recognise a format (BLOCK_PROBE_BUF_SIZE).
FIRST = 512
#: Bytes of a VHD's footer.
FOOTER = 512

KiB = 1024
MiB = 1024 * KiB
#: Bytes at the start of an image within which every format says all there is to know, but for footers.
FARTHEST = 32 * MiB
_MAGIC = {b"QFI\xfb": "qcow2", b"QED\0": "qed", vmdk.MAGIC: "vmdk", vmdk.ESX_MAGIC: "vmdk"}
_LONG_MAGIC = {b"conectix": "vhd", b"vhdxfile": "vhdx"}
_VDI_MAGIC = (0x40, struct.pack("<I", 0xBEDA107F))
_QCOW2_DATA_FILE = 1 << 2
#: Its incompatible features with a meaning: dirty, corrupt, data file, compression, extended entries of L2 tables.
_QCOW2_KNOWN = (1 << 5) - 1
#: Of VHD: fixed and dynamic. Of VDI: dynamic and static.
_VHD_FIXED, _VHD_DYNAMIC = 2, 3
_VHD_WHOLE = (_VHD_FIXED, _VHD_DYNAMIC)
_VDI_WHOLE = (1, 2)
#: Where the two copies of VHDX's region table are, and what ends behind them.
_VHDX_REGIONS = (192 * KiB, 256 * KiB, 320 * KiB)
#: Bytes of the table of its metadata.
_VHDX_TABLE = 64 * KiB
#: Where its two headers are, their length, and what a header's checksum is made with: CRC-32C ([MS-VHDX] 2.2.2).
_VHDX_HEADERS, _VHDX_HEADER = (64 * KiB, 128 * KiB), 4 * KiB
_CASTAGNOLI = 0x82F63B78
_VHDX_METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_VHDX_PARENT = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le
_CUT = "its header is cut short"


def formats_of(head: bytes) -> set[str]:
    """The formats that can name other files as which qemu may recognise data that begins like this."""
    names = {_MAGIC.get(head[:4]), _LONG_MAGIC.get(head[:8])}
    offset, magic = _VDI_MAGIC
    if head[offset : offset + len(magic)] == magic:
        names.add("vdi")
    if vmdk.is_descriptor(head):
        names.add("vmdk")
    return {name for name in names if name is not None}


def needed(head: bytes, declared: str) -> int:
    """Bytes of an image with these ``FIRST`` bytes that ``danger`` has to see."""
    if head.startswith(vmdk.MAGIC):
        return vmdk.needed(head)
    if head.startswith(b"vhdxfile"):
        return _VHDX_REGIONS[-1]
    return vmdk.LONGEST if declared == "vmdk" else FIRST


def danger(head: bytes, declared: str) -> str | None:
    """Why the image would make a hypervisor open other files, None if it would not.

    ``head`` are its first ``needed`` bytes, fewer only where it has no more; ``declared`` is what its user says it is,
    which qemu may be told instead of being left to recognise it.
    """
    names = formats_of(head)
    # Told that it is a VMDK, qemu takes any text for a descriptor.
    if declared == "vmdk" and not head.startswith(vmdk.MAGIC) and b"createtype" in head.lower():
        names.add("vmdk")
    for name in sorted(names):
        if why := _CHECKS[name](head):
            return f"the data is not safe to use as {name}: {why}"
    return None


def danger_in_footer(last: bytes) -> str | None:
    """The same for the last ``FOOTER`` bytes of a VHD, which others read instead of their copy at the beginning."""
    if last.startswith(b"conectix") and (why := _vhd(last)):
        return f"the data is not safe to use as vhd: {why}"
    return None


def size_in_footer(last: bytes) -> int | None:
    """Bytes of the disk in a VHD with nothing but this footer behind it; None if the last bytes are no such footer."""
    if len(last) < FOOTER or not last.startswith(b"conectix"):
        return None
    size, kind = struct.unpack_from(">Q4xI", last, 48)
    return int(size) if kind == _VHD_FIXED else None


def danger_in_vhdx(metadata: bytes, offset: int, size: int) -> str | None:
    """The same for the table of a VHDX's metadata, which is far behind its head, at ``offset``.

    ``size`` is the offset of the size of the disk, which is behind that table.
    """
    # Elsewhere they must not be ([MS-VHDX] 2.2.3.2, 2.6.1.2): what is before could not be told from what is looked at.
    if offset % MiB or not 0 < offset < FARTHEST - MiB or not offset + _VHDX_TABLE <= size < FARTHEST - 8:
        return "the data is not safe to use as vhdx: its metadata is where none may be"
    if _VHDX_PARENT in metadata:
        return "the data is not safe to use as vhdx: it names a parent"
    return None


def _qcow2(head: bytes) -> str | None:
    if len(head) < 72:
        return _CUT
    version, backing = struct.unpack_from(">IQ", head, 4)
    if version not in (2, 3):
        return f"its version is {version}, not 2 or 3"
    if backing:
        return "it has a backing file"
    if version == 2:
        return None
    if len(head) < 80:
        return _CUT
    (features,) = struct.unpack_from(">Q", head, 72)
    if features & _QCOW2_DATA_FILE:
        return "it has a data file"
    return "it has features that are not known" if features & ~_QCOW2_KNOWN else None


def _qed(head: bytes) -> str | None:
    return "this format is not accepted"


def _vhd(head: bytes) -> str | None:
    if len(head) < FIRST:
        return _CUT
    (kind,) = struct.unpack_from(">I", head, 60)
    return None if kind in _VHD_WHOLE else "it has a parent, or is of no known type"


def _vdi(head: bytes) -> str | None:
    if len(head) < FIRST:
        return _CUT
    (kind,) = struct.unpack_from("<I", head, 0x4C)
    # The UUIDs of its parent and of the parent's last change.
    if kind not in _VDI_WHOLE or any(head[0x1A8:0x1C8]):
        return "it has a parent, or is of no known type"
    return None


def _vhdx(head: bytes) -> str | None:
    first, second, end = _VHDX_REGIONS
    table, copy = head[first:second], head[second:end]
    if len(table) + len(copy) < end - first:
        return _CUT
    if copy.startswith(b"regi") and copy != table:
        return "the two copies of its region table differ"
    if table.count(_VHDX_METADATA) != 1:
        return "it does not say once where its metadata is"
    if _has_log(head):
        return "it has a log, which may change all that was looked at"
    return None


def _has_log(head: bytes) -> bool:
    """Whether the header of a VHDX that counts, the whole one with the highest number, says that it has a log."""
    found = []
    for offset in _VHDX_HEADERS:
        header = head[offset : offset + _VHDX_HEADER]
        checksum, number, log = struct.unpack_from("<4xIQ32x16s", header)
        if header.startswith(b"head") and _crc32c(header[:4] + bytes(4) + header[8:]) == checksum:
            found.append((number, any(log)))
    return max(found, default=(0, False))[1]


def _crc32c(data: bytes) -> int:
    found = 0xFFFFFFFF
    for byte in data:
        found = _CRC[(found ^ byte) & 0xFF] ^ (found >> 8)
    return found ^ 0xFFFFFFFF


def _crc_of(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (_CASTAGNOLI if byte & 1 else 0)
    return byte


_CRC = [_crc_of(byte) for byte in range(256)]


_CHECKS: Mapping[str, Callable[[bytes], str | None]] = {
    "qcow2": _qcow2,
    "qed": _qed,
    "vdi": _vdi,
    "vhd": _vhd,
    "vhdx": _vhdx,
    "vmdk": vmdk.danger,
}
