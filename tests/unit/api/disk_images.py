# SPDX-License-Identifier: Apache-2.0
"""Disk images for tests, good ones and such that make a hypervisor open other files. All of those name ``CANARY``."""

from __future__ import annotations

import struct
import uuid

#: What hostile images want to be read. There is no such file; qemu-img names it in what it says about the failure.
CANARY = b"/nonexistent/canary"


def qcow2(
    virtual_size: int = 1 << 30, backing_file: bytes = b"", version: int = 3, features: int = 0, extension: bytes = b""
) -> bytes:
    """The header of a qcow2 image as docs/interop/qcow2.txt of QEMU says, its extensions, and a little after it."""
    length = 104 if version == 3 else 72
    extension += b"\0" * 8
    offset = length + len(extension) if backing_file else 0
    tables = min(-(-virtual_size // (512 << 20)), 8192)
    header = struct.pack(
        ">4sIQIIQIIQQIIQ",
        b"QFI\xfb",
        version,
        offset,
        len(backing_file),
        16,
        virtual_size,
        0,
        tables,
        3 << 16,
        1 << 16,
        1,
        0,
        0,
    )
    header += struct.pack(">QQQII", features, 0, 0, 4, length) if version == 3 else b""
    # What counts references to clusters, and the table of tables, all empty.
    image = bytearray((header + extension + backing_file).ljust(256 * 1024, b"\0"))
    image[1 << 16 : (1 << 16) + 8] = struct.pack(">Q", 2 << 16)
    image[2 << 16 : (2 << 16) + 8] = struct.pack(">4H", 1, 1, 1, 1)
    return bytes(image)


def qcow1(backing_file: bytes) -> bytes:
    """The first version of qcow, as block/qcow.c of QEMU reads it."""
    header = struct.pack(">4sIQIIQBBHIQ", b"QFI\xfb", 1, 48, len(backing_file), 0, 1 << 20, 12, 9, 0, 0, 512)
    return (header + backing_file).ljust(1 << 16, b"\0")


def qed(backing_file: bytes) -> bytes:
    """A QED image with a backing file (docs/interop/qed_spec.txt of QEMU)."""
    header = struct.pack("<4sIIIQQQQQII", b"QED\0", 65536, 4, 1, 1, 0, 0, 65536, 1 << 20, 72, len(backing_file))
    return (header.ljust(72, b"\0") + backing_file).ljust(1 << 19, b"\0")


def vhd(kind: int = 3) -> bytes:
    """The copy of a VHD's footer at its beginning: 2 is fixed, 3 dynamic, 4 has a parent (VHD 1.0, "Disk Type")."""
    footer = struct.pack(">8sIIQI4sI4sQQIIIIQ", b"conectix", 2, 65536, 512, 0, b"win ", 0, b"Wi2k", 0, 0, 0, 0, 0, 0, 0)
    footer = footer[:40] + struct.pack(">QQII", 1 << 20, 1 << 20, 0, kind)
    return footer.ljust(1 << 16, b"\0")


def vdi(kind: int = 1, parent: bytes = b"") -> bytes:
    """The header of a VDI: 1 is dynamic, 2 static, 4 has a parent, whose UUID is given too."""
    image = bytearray(1 << 16)
    image[0x40:0x50] = struct.pack("<IIII", 0xBEDA107F, 0x00010001, 0x180, kind)
    image[0x154:0x15C] = struct.pack("<II", 512, 1024)
    image[0x168:0x188] = struct.pack("<IIQIIII", 512, 0, 1 << 20, 1 << 20, 0, 1, 0)
    image[0x1A8 : 0x1A8 + len(parent)] = parent
    return bytes(image)


def vhdx(parent: bool = False, copies_differ: bool = False) -> bytes:
    """A VHDX as far as its metadata go ([MS-VHDX] 2.2.3, 2.6.1)."""
    image = bytearray(2 << 20)
    image[:8] = b"vhdxfile"
    metadata = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
    table = struct.pack("<4sIII", b"regi", 0, 1, 0) + metadata + struct.pack("<QII", 1 << 20, 1 << 20, 1)
    for offset in (192 << 10, 256 << 10):
        image[offset : offset + len(table)] = table
    if copies_differ:
        image[(256 << 10) + 32] ^= 0xFF
    items = [uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")]
    if parent:
        items.append(uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c"))
    image[1 << 20 : (1 << 20) + 12] = struct.pack("<8sHH", b"metadata", 0, len(items))
    for number, item in enumerate(items):
        entry = item.bytes_le + struct.pack("<IIII", 65536, 8, 4, 0)
        image[(1 << 20) + 32 * (number + 1) : (1 << 20) + 32 * (number + 2)] = entry
    image[(1 << 20) + 65536 : (1 << 20) + 65544] = struct.pack("<Q", 1 << 30)
    return bytes(image)


def logged_vhdx(newest: int = 1, broken: bool = False) -> bytes:
    """A VHDX whose header of this number says that there is a log, the other one that there is none; ``broken`` is
    whether the header without a log is newer, but is not whole ([MS-VHDX] 2.2.2)."""
    image = bytearray(vhdx())
    for number, (offset, log) in enumerate(((64 << 10, b"\1" * 16), (128 << 10, b"")), 1):
        order = number + 2 if broken and not log else number + 2 * (number == newest)
        header = struct.pack("<4sIQ32s16s", b"head", 0, order, b"", log).ljust(4096, b"\0")
        checksum = _crc32c(header) ^ (broken and not log)
        image[offset : offset + 4096] = header[:4] + struct.pack("<I", checksum) + header[8:]
    return bytes(image)


def _crc32c(data: bytes) -> int:
    found = 0xFFFFFFFF
    for byte in data:
        found ^= byte
        for _ in range(8):
            found = (found >> 1) ^ (0x82F63B78 if found & 1 else 0)
    return found ^ 0xFFFFFFFF


def far_vhdx(end: int, tail: int) -> bytes:
    """A VHDX with a parent, whose metadata begin at ``end``; the last ``tail`` bytes look like metadata without one."""
    image = bytearray(vhdx(parent=True))
    metadata = image[1 << 20 :]
    for offset in (192 << 10, 256 << 10):
        image[offset + 32 : offset + 40] = struct.pack("<Q", end)
    image = bytearray(image.ljust(end, b"\0") + metadata).ljust(end + (4 << 20), b"\0")
    item = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le + struct.pack("<IIII", 1024, 8, 4, 0)
    shown = struct.pack("<8sHH", b"metadata", 0, 1).ljust(32, b"\0") + item
    return bytes(image + (shown.ljust(1024, b"\0") + struct.pack("<Q", 1 << 30)).ljust(tail, b"\0"))


def gpt() -> bytes:
    """A protective master boot record and what else makes a disk with a GUID partition table (UEFI 2.10, 5.2.3)."""
    entry = struct.pack("<B3sB3sII", 0, b"\x00\x02\x00", 0xEE, b"\xff\xff\xff", 1, 0xFFFFFFFF)
    return b"\0" * 446 + entry + b"\0" * 48 + b"\x55\xaa" + b"\0" * 65536


def luks(length: int, version: int = 1) -> bytes:
    """A LUKS header whose data begins at sector 4096 (LUKS1 On-Disk Format, 4.1), and zeros behind it."""
    header = struct.pack(">6sH32s32s32sII", b"LUKS\xba\xbe", version, b"aes", b"xts-plain64", b"sha256", 4096, 64)
    return header.ljust(length, b"\0")


def compressed_vmdk(end: int = 1) -> bytes:
    """A VMDK with another header at its end, as programs that write a stream do; ``end`` is where that says that the
    descriptor is."""
    image = bytearray(vmdk(DESCRIPTOR.replace(b"monolithicSparse", b"streamOptimized")))
    header = image[:512]
    header[28] = end
    image[56:64] = b"\xff" * 8
    marker = struct.pack("<QII", 1, 0, 3).ljust(512, b"\0")
    return bytes(image.ljust(4 << 20, b"\1") + marker + header + b"\0" * 512)


def vmdk(descriptor: bytes, capacity: int = 2048, first: int = 1, sectors: int = 20, magic: bytes = b"KDMV") -> bytes:
    """A sparse VMDK with this descriptor behind its header (Virtual Disk Format 5.0, "Hosted Sparse Extents")."""
    header = struct.pack("<4sIIQQQQIQQ", magic, 1, 3, capacity, 128, first, sectors, 512, 21, 30)
    return (header.ljust(512 * first, b"\0") + descriptor).ljust(1 << 20, b"\0")


DESCRIPTOR = b"""# Disk DescriptorFile
version=1
CID=0a0a0a0a
parentCID=ffffffff
createType="monolithicSparse"
RW 2048 SPARSE "disk.vmdk"
"""
EXTENT = b'RW 1 FLAT "%s" 0\n' % CANARY
FLAT = DESCRIPTOR.replace(b"monolithicSparse", b"monolithicFlat").replace(b'RW 2048 SPARSE "disk.vmdk"\n', EXTENT)
TABS = EXTENT.replace(b" ", b"\t")
#: To oslo.utils a setting, to qemu an extent.
EQUALS = TABS.replace(CANARY, b"/a=/.." + CANARY)
PARENT = b'parentFileNameHint="%s"\n' % CANARY
#: An ISO 9660 image: a primary volume descriptor in sector 16 (ECMA-119, 8.4).
ISO = (b"\0" * 32768 + b"\1CD001\1").ljust(1 << 20, b"\0")
ISO_WITH_PARTITIONS = gpt()[:512] + ISO[512:]

#: Images that make qemu open other files.
OTHER_FILES = {
    "descriptor": FLAT,
    "descriptor, padded": FLAT.ljust(1 << 20, b"\0"),
    "descriptor, windows": FLAT.replace(b"\n", b"\r\n"),
    "descriptor, version 3": FLAT.replace(b"version=1", b"version=3"),
    "descriptor, VMFS": FLAT.replace(b"monolithicFlat", b"vmfs").replace(b"FLAT", b"VMFS").replace(b'" 0', b'"'),
    "descriptor, sparse elsewhere": FLAT.replace(b"FLAT", b"SPARSE").replace(b'" 0', b'"'),
    "descriptor, one odd byte": FLAT + b"#\xff\n",
    "descriptor, odd byte first": b"#\xff\n" + FLAT,
    "descriptor, blank lines": b" \n \r\n" + FLAT[FLAT.index(b"version") :],
    "descriptor, tabs": FLAT.replace(EXTENT, TABS),
    "descriptor, lines in lines": FLAT.replace(EXTENT, EXTENT.replace(b" ", b"\n")),
    "descriptor, json": FLAT.replace(CANARY, b"json:{'driver':'file','filename':'%s'}" % CANARY),
    "descriptor in an ISO": FLAT.ljust(32768, b"\0") + ISO[32768:],
    "descriptor in an ISO, one odd byte": (FLAT + b"#\xff\n").ljust(32768, b"\0") + ISO[32768:],
    "no capacity": vmdk(FLAT, capacity=0),
    "no capacity, two types": vmdk(FLAT + b'createType="monolithicSparse"\n', capacity=0),
    "no capacity, hidden extent": vmdk(FLAT.replace(EXTENT, EQUALS), capacity=0),
    "no capacity, descriptor elsewhere": vmdk(FLAT, capacity=0, first=5),
    "parent": vmdk(DESCRIPTOR + PARENT),
    "parent behind the descriptor": vmdk(DESCRIPTOR.ljust(512, b"#") + PARENT, sectors=1),
    "parent by json": vmdk(DESCRIPTOR + PARENT.replace(CANARY, b"json:{'driver':'raw','file':'%s'}" % CANARY)),
    "ESX sparse": vmdk(DESCRIPTOR + PARENT, magic=b"COWD"),
    "qcow2 with a backing file": qcow2(backing_file=CANARY),
    "qcow2 with a backing file, version 2": qcow2(backing_file=CANARY, version=2),
    "qcow2 with a backing file by json": qcow2(backing_file=b"json:{'driver':'raw','file':'%s'}" % CANARY),
    "qcow2 with a data file": qcow2(features=4, extension=struct.pack(">II", 0x44415441, 24) + CANARY.ljust(24, b"\0")),
    "qcow": qcow1(CANARY),
    "qed": qed(CANARY),
}
#: Images of which qemu-img does not open the other file: it refuses the format, or what it wants first is missing.
OTHER_FILES_TO_OTHERS = {
    "descriptor, no type": b"version=1\n" + FLAT[-28:],
    "descriptor in a VDI": (b"#".ljust(0x40) + vdi()[0x40:0x50] + b"\n" + FLAT).ljust(1 << 16, b"\0"),
    "sparse, two types": vmdk(DESCRIPTOR + b'createType="monolithicFlat"\n' + TABS),
    "sparse, hidden extent": vmdk(DESCRIPTOR + EQUALS),
    "sparse, file of changes": vmdk(DESCRIPTOR + b'changeTrackPath="%s"\n' % CANARY),
    "sparse, extent by json": vmdk(DESCRIPTOR.replace(b"disk.vmdk", b"json:{}")),
    "sparse, no extent": vmdk(DESCRIPTOR[: DESCRIPTOR.index(b"RW")]),
    "sparse, descriptor too long": vmdk(DESCRIPTOR, sectors=1 << 40),
    "sparse, short": vmdk(DESCRIPTOR)[:40],
    "ESX sparse, short": b"COWD",
    "qcow2, short": qcow2(backing_file=CANARY)[:117],
    "qcow2, very short": qcow2(backing_file=CANARY)[:16],
    "qed, short": b"QED\0" + b"\1" * 60,
    "vhd with a parent": vhd(4),
    "vhd with a parent in its footer": vhd() + vhd(4)[:512],
    "vhd of no type": vhd(0),
    "vhd, short": vhd()[:100],
    "vhdx with a parent": vhdx(parent=True),
    "vhdx whose copies differ": vhdx(copies_differ=True),
    "vhdx, short": vhdx()[:1000],
    "vhdx whose metadata are within what is before": vhdx().replace(struct.pack("<QI", 1 << 20, 1 << 20), bytes(12)),
    "vhdx with a log": logged_vhdx(),
    "vhdx with a log, the other header broken": logged_vhdx(broken=True),
    "vdi with a parent": vdi(parent=b"\1" * 16),
    "vdi with a parent of its type": vdi(kind=4),
    "vdi, short": vdi()[:200],
}
