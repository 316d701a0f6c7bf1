# SPDX-License-Identifier: Apache-2.0
"""The transfer engine: moves bytes between sources, stores and callers; drivers keep no such logic."""

from storelib.transfer.contract import Committed, Digest, Digests, Extent, KiB, MiB, Part, Reader, StoredImage, Writer
from storelib.transfer.download import ImageStream
from storelib.transfer.partfile import PartFile
from storelib.transfer.source import GivenFile
from storelib.transfer.upload import copy, fan_out

__all__ = [
    "Committed",
    "Digest",
    "Digests",
    "Extent",
    "GivenFile",
    "ImageStream",
    "KiB",
    "MiB",
    "Part",
    "PartFile",
    "Reader",
    "StoredImage",
    "Writer",
    "copy",
    "fan_out",
]
