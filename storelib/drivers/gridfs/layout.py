# SPDX-License-Identifier: Apache-2.0
"""What an image looks like in GridFS, and how it is found: documents and queries, no network.

Ours has an ``_id`` of its own, the token of the add that made it, and the image's id as ``filename`` and in
``metadata.storelib``. What glance_store or any other client wrote is found by its ``_id``.
https://github.com/mongodb/specifications/blob/master/source/gridfs/gridfs-spec.md
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from storelib.driver import Digest, Digests
from storelib.exceptions import StoreError

_OURS = "metadata.storelib"
#: The id of a published image; a unique index holds it. An add under way has the other field instead.
IMAGE = f"{_OURS}.image"
PENDING = f"{_OURS}.pending"


@dataclass(frozen=True)
class Stored:
    """A document of the files collection, understood; sizes are in bytes."""

    files_id: Any
    image_id: str | None
    size: int
    chunk_size: int
    modified: float | None
    #: The time as the document has it, whatever that is.
    uploaded: Any
    metadata: Mapping[str, Any]

    @property
    def chunks(self) -> int:
        """How many there must be."""
        return count_chunks(self.size, self.chunk_size)


def count_chunks(size: int, chunk_size: int) -> int:
    """Chunks of an image of ``size`` bytes; an empty one has none."""
    return -(-size // chunk_size)


#: What sets the time of a record to the server's, whatever the client's clock says.
NOW = {"$currentDate": {"uploadDate": True}}


def under_way(image_id: str, chunk_size: int) -> dict[str, Any]:
    """What makes the record of an add under way: without a filename, and to other clients an empty file."""
    record = {"length": 0, "chunkSize": chunk_size, "metadata": {"storelib": {"pending": image_id}}}
    return {"$setOnInsert": record, **NOW}


def published(
    files_id: Any, image_id: str, size: int, chunk_size: int, digests: Digests, now: datetime.datetime
) -> dict[str, Any]:
    """What takes its place once all chunks are there."""
    md5 = {} if digests.checksum is None else {"md5": digests.checksum}
    return {
        "_id": files_id,
        "length": size,
        "chunkSize": chunk_size,
        "uploadDate": now,
        "filename": image_id,
        # Deprecated in the specification; older clients look for it.
        **md5,
        "metadata": {"storelib": {"image": image_id}, **md5, digests.algorithm: digests.multihash},
    }


def image_with_id(image_id: str) -> dict[str, Any]:
    """The query for an image: of ours, or of another client that made this its ``_id``."""
    from bson import ObjectId

    theirs: list[Any] = [image_id]
    if len(image_id) == 24 and ObjectId.is_valid(image_id):
        theirs.append(ObjectId(image_id))
    return {"$or": [{IMAGE: image_id}, {"_id": {"$in": theirs}, _OURS: {"$exists": False}}]}


def any_image() -> dict[str, Any]:
    """The query for all images."""
    return {PENDING: {"$exists": False}}


def understood(document: Mapping[str, Any]) -> Stored:
    """A document of an image; raises StoreError for what is none."""
    files_id = document["_id"]
    size, chunk_size = _whole(document.get("length")), _whole(document.get("chunkSize"))
    if size < 0 or chunk_size <= 0:
        raise StoreError(f"the file {files_id!r} in GridFS has no valid length and chunkSize")
    uploaded = document.get("uploadDate")
    extra = document.get("metadata")
    extra = extra if isinstance(extra, Mapping) else {}
    md5 = {"md5": document["md5"]} if isinstance(document.get("md5"), str) else {}
    return Stored(
        files_id,
        image_id_of(document),
        size,
        chunk_size,
        uploaded.timestamp() if isinstance(uploaded, datetime.datetime) else None,
        uploaded,
        {**md5, **{str(name): value for name, value in extra.items() if name != "storelib"}},
    )


def image_id_of(document: Mapping[str, Any]) -> str | None:
    """The id under which an image is found; None if there is none, as for numbers."""
    from bson import ObjectId

    if is_ours(document):
        ours = document["metadata"]["storelib"].get("image")
        return ours if isinstance(ours, str) else None
    return str(document["_id"]) if isinstance(document["_id"], (str, ObjectId)) else None


def digest_of(stored: Stored) -> Digest | None:
    """What was recorded of the image: the multihash of ours, else the md5 that older clients wrote."""
    names = {*hashlib.algorithms_available, "blake3"}
    known = [Digest(name, value) for name, value in stored.metadata.items() if name in names]
    return min(known, key=lambda digest: digest.algorithm == "md5", default=None)


def is_ours(document: Mapping[str, Any]) -> bool:
    """Whether storelib wrote it."""
    extra = document.get("metadata")
    return isinstance(extra, Mapping) and isinstance(extra.get("storelib"), Mapping)


def _whole(value: Any) -> int:
    """A number of bytes, -1 if it is none; other clients write doubles as well."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
        return -1
    return int(value)
