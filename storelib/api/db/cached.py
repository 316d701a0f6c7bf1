# SPDX-License-Identifier: Apache-2.0
"""The tables of the image caches: what the cache of each host holds, how often it was used, what it is to fetch.

They tell of files and are no authority over them: a row too many or too few is put right by the host it speaks of.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db.rows import check_text, now, to_time
from storelib.api.db.schema import cache_queue, cached_images, images
from storelib.api.db.table import Table, reads, writes

_c, _q = cached_images.c, cache_queue.c


class CachedImage(NamedTuple):
    """An image in one cache."""

    image_id: str
    size: int
    hits: int
    cached_at: datetime.datetime
    used_at: datetime.datetime


class NewCached(NamedTuple):
    """An image whose file is there. Times are POSIX seconds."""

    image_id: str
    size: int
    cached_at: float
    used_at: float


class Hits(NamedTuple):
    """So many uses of an image, the last one at this POSIX time."""

    times: int
    last: float


class DataIdentity(NamedTuple):
    """What tells the data of an image from other data of the same id."""

    size: int | None
    checksum: str | None
    os_hash_algo: str | None
    os_hash_value: str | None
    created_at: datetime.datetime


_DATA = sa.select(images.c.id, *(images.c[name] for name in DataIdentity._fields)).where(images.c.status == "active")


class CachedImages(Table):
    """What the caches hold and are to fetch; ``node`` names one of them."""

    @reads
    def list(self, connection: Connection, node: str) -> Sequence[CachedImage]:
        """The images in one cache, the one used last first."""
        columns = (_c.image_id, _c.size, _c.hits, _c.cached_at, _c.used_at)
        rows = connection.execute(sa.select(*columns).where(_c.node == node).order_by(_c.used_at.desc(), _c.image_id))
        return [CachedImage(row[0], row[1], row[2], to_time(row[3]), to_time(row[4])) for row in rows]

    @reads
    def hosts_with(self, connection: Connection, image_id: str) -> Sequence[str]:
        """The names of the hosts in whose caches an image is."""
        rows = connection.execute(sa.select(_c.host).where(_c.image_id == image_id).order_by(_c.host).distinct())
        return [row[0] for row in rows]

    @writes
    def add(self, connection: Connection, node: str, host: str, found: Sequence[NewCached]) -> None:
        """These images are in a cache now, and need not be fetched. What is said of them already stays."""
        check_text("the host", host, 255)
        for each in found:
            times = {"cached_at": int(each.cached_at * 1_000_000), "used_at": int(each.used_at * 1_000_000)}
            row = {"node": node, "image_id": each.image_id, "host": host, "size": each.size, "hits": 0, **times}
            _insert(connection, cached_images, row)
            connection.execute(cache_queue.delete().where(_q.node == node, _q.image_id == each.image_id))

    @writes
    def remove(self, connection: Connection, node: str, image_ids: Collection[str]) -> None:
        """These images are not in a cache any more."""
        connection.execute(cached_images.delete().where(_c.node == node, _c.image_id.in_(image_ids)))

    @writes
    def note(self, connection: Connection, node: str, hits: Mapping[str, Hits]) -> None:
        """Count the hits of images in the cache of one node."""
        for image_id, each in sorted(hits.items()):
            used = {"hits": _c.hits + each.times, "used_at": int(each.last * 1_000_000)}
            connection.execute(cached_images.update().where(_c.node == node, _c.image_id == image_id).values(**used))

    @reads
    def active(self, connection: Connection, image_ids: Collection[str]) -> Mapping[str, DataIdentity]:
        """Those of the images that are active, with what tells their data from others'."""
        rows = connection.execute(_DATA.where(images.c.id.in_(image_ids)))
        return {row[0]: DataIdentity(row[1], row[2], row[3], row[4], to_time(row[5])) for row in rows}

    # -- the queue --------------------------------------------------------------------------------------------------

    @writes
    def enqueue(self, connection: Connection, node: str, image_id: str) -> None:
        """Have an image fetched; harmless when it is to be already."""
        check_text("the id of an image", image_id, 36)
        _insert(connection, cache_queue, {"node": node, "image_id": image_id, "queued_at": now()})

    @reads
    def queued(self, connection: Connection, node: str) -> Sequence[str]:
        """The ids of the images that are to be fetched, in the order in which they were asked for."""
        rows = connection.execute(sa.select(_q.image_id).where(_q.node == node).order_by(_q.queued_at, _q.image_id))
        return [row[0] for row in rows]

    @writes
    def dequeue(self, connection: Connection, node: str, image_ids: Iterable[str] | None = None) -> int:
        """Take images from the queue, all of them for None; returns how many were there."""
        found = cache_queue.delete().where(_q.node == node)
        if image_ids is not None:
            found = found.where(_q.image_id.in_(list(image_ids)))
        return connection.execute(found).rowcount


def _insert(connection: Connection, table: sa.Table, row: Mapping[str, Any]) -> None:
    """Insert a row unless there is one of its node and image."""
    try:
        with connection.begin_nested():
            connection.execute(table.insert(), row)
    except sa.exc.IntegrityError:
        pass
