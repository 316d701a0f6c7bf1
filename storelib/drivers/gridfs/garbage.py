# SPDX-License-Identifier: Apache-2.0
"""What failed adds and interrupted deletes left: records of adds that never ended, and chunks without a record.

No bytes of images are read for it: the index of the chunks tells which files there are, and of each only the first and
the last chunk are looked at.
"""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from storelib.driver import Garbage
from storelib.drivers.gridfs.bucket import PAGE, PENDING, Bucket
from storelib.times import posix_seconds

#: Whether a chunk holds bytes, unlike one that is damaged.
_IS_BINARY = {"$eq": [{"$type": "$data"}, "binData"]}


@dataclass
class Leftover:
    """What ``discard`` must know: whose chunks, and the time in the record of an add, None where there is none."""

    files_id: Any
    recorded: datetime.datetime | None
    #: Whether ``discard`` has begun to remove it, and not come to its end.
    tried: bool = False


def find(bucket: Bucket, older_than: float, prefix: str | None) -> Iterator[Garbage]:
    """All in which nothing happened for ``older_than`` seconds, but nothing of this process's own adds."""
    latest = _now(bucket) - older_than
    for leftover, image_id in itertools.chain(_records(bucket, prefix), _without_record(bucket, prefix)):
        item = _described(bucket, leftover, image_id)
        if item is not None and item.modified <= latest:
            yield item


def discard(bucket: Bucket, item: Garbage) -> bool:
    """Remove it unless something has happened since; False where another ``gc`` was quicker.

    The record goes first, and with it the right to publish. An add that is publishing has just set the time of its
    record, and is not met any more.
    """
    leftover: Leftover = item.handle
    now = _described(bucket, leftover, item.image_id)
    if now is None:
        return leftover.tried
    if now.modified > item.modified:
        return False
    files = bucket.files_at_primary
    # Of an attempt that failed, the response may have been lost.
    may_be_done, leftover.tried = leftover.tried, True
    removed = 0
    if leftover.recorded is not None:
        dead = {"_id": leftover.files_id, PENDING: {"$exists": True}, "uploadDate": leftover.recorded}
        removed = files.delete_one(dead).deleted_count
    if files.find_one({"_id": leftover.files_id}, {"_id": 1}) is not None:
        # It has become an image, or is becoming one.
        return False
    removed += bucket.remove_chunks(leftover.files_id)
    leftover.tried = False
    return removed > 0 or may_be_done


def _now(bucket: Bucket) -> float:
    """The server's time, which is also that of records and chunks."""
    now: datetime.datetime = bucket.files_at_primary.database.command("hello")["localTime"]
    return posix_seconds(now)


def _records(bucket: Bucket, prefix: str | None) -> Iterator[tuple[Leftover, str | None]]:
    """The records of adds under way, each with the id that its image was to have."""
    wanted = {"$regex": f"^{re.escape(prefix)}"} if prefix else {"$exists": True}
    with bucket.files_at_primary.find({PENDING: wanted}, batch_size=PAGE) as found:
        for record in found:
            begun = record.get("uploadDate")
            if isinstance(begun, datetime.datetime):
                yield Leftover(record["_id"], begun), record["metadata"]["storelib"]["pending"]


def _without_record(bucket: Bucket, prefix: str | None) -> Iterator[tuple[Leftover, str | None]]:
    """The chunks without a document, by their files_id; with a prefix, those that are the id of an image themselves."""
    chunks, files = bucket.chunks_at_primary, bucket.files_at_primary
    named = [{"$match": {"files_id": {"$regex": f"^{re.escape(prefix)}"}}}] if prefix else []
    pipeline = [
        *named,
        # The server jumps from one file to the next in the index (DISTINCT_SCAN).
        {"$sort": {"files_id": 1, "n": 1}},
        {"$group": {"_id": "$files_id", "n": {"$first": "$n"}}},
        {"$lookup": {"from": files.name, "localField": "_id", "foreignField": "_id", "as": "file"}},
        {"$match": {"file": []}},
    ]
    with chunks.aggregate(pipeline, allowDiskUse=True, batchSize=PAGE) as found:
        for orphan in found:
            files_id = orphan["_id"]
            yield Leftover(files_id, None), files_id if isinstance(files_id, str) else None


def _described(bucket: Bucket, leftover: Leftover, image_id: str | None) -> Garbage | None:
    """A leftover with its size and the time of its last chunk; None if it is in use, or of unknown age."""
    from bson import ObjectId

    if leftover.files_id in bucket.live:
        return None
    first, last = (_chunk_at(bucket, leftover.files_id, end) for end in (1, -1))
    begun = None if leftover.recorded is None else posix_seconds(leftover.recorded)
    size, modified = 0, begun
    if first is not None and last is not None:
        # All but the last are of one size; those of parts that never arrived are counted as if they had.
        size = first["size"] * (last["n"] - first["n"]) + last["size"]
        if isinstance(last["_id"], ObjectId):
            modified = max(posix_seconds(last["_id"].generation_time), begun or 0.0)
    if modified is None:
        return None
    recorded = leftover.recorded is not None
    name = f"{image_id} (add {leftover.files_id})" if recorded else f"chunks of {leftover.files_id}"
    return Garbage(name, image_id, size, modified, leftover)


def _chunk_at(bucket: Bucket, files_id: Any, end: int) -> dict[str, Any] | None:
    """What is known of the first (1) or the last (-1) chunk."""
    pipeline = [
        {"$match": {"files_id": files_id}},
        {"$sort": {"n": end}},
        {"$limit": 1},
        {"$project": {"n": 1, "size": {"$cond": [_IS_BINARY, {"$binarySize": "$data"}, 0]}}},
    ]
    with bucket.chunks_at_primary.aggregate(pipeline) as found:
        return next(found, None)
