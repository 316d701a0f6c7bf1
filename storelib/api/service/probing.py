# SPDX-License-Identifier: Apache-2.0
"""How qemu recognises the formats that name other files, and what in a VMDK makes it open them.

Modelled on what qemu's block drivers do (block/vmdk.c: vmdk_probe, vmdk_open_vmdk4, vmdk_parent_open; block/qcow.c,
qcow2.c, qed.c: the magic numbers). oslo.utils wants a whole header before it recognises a format, and the descriptor of
a VMDK to be pure ASCII; qemu wants neither.
"""

from __future__ import annotations

import struct

#: Bytes at the start of an image that qemu looks at to recognise a format (block/block-backend: BLOCK_PROBE_BUF_SIZE).
LENGTH = 512

_MAGIC = {b"QFI\xfb": "qcow2", b"QED\0": "qed", b"KDMV": "vmdk", b"COWD": "vmdk"}
_SPARSE = b"KDMV"
_VERSIONS = (b"version=1", b"version=2", b"version=3")


def format_of(head: bytes) -> str | None:
    """The format that may name other files as which qemu recognises data with this beginning; None for others."""
    magic = _MAGIC.get(head[:4])
    return magic or ("vmdk" if _is_descriptor(head) else None)


def _is_descriptor(head: bytes) -> bool:
    """A text that describes a disk in other files: comments and blank lines, then its version."""
    lines = head[:LENGTH].split(b"\n")
    for line in lines[:-1]:
        # qemu passes over any number of carriage returns before a line.
        line = line.lstrip(b"\r")
        if line.startswith(b"#") or not line.strip(b" \r"):
            continue
        return line.removesuffix(b"\r") in _VERSIONS
    return False


def is_sparse_vmdk(head: bytes) -> bool:
    """A VMDK with a header of its own, the only kind that may have its data in itself."""
    return head.startswith(_SPARSE)


def vmdk_danger(head: bytes, descriptor: str) -> str | None:
    """Why a sparse VMDK with this lower-case descriptor would make qemu open other files; None if it would not."""
    # Without a capacity in the header qemu takes the descriptor for one that names other files.
    if len(head) < 20 or not struct.unpack_from("<Q", head, 12)[0]:
        return "its header has no capacity"
    if "parentfilenamehint" in descriptor:
        return "it names a parent"
    return None
