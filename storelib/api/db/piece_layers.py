# SPDX-License-Identifier: Apache-2.0
"""The tables of the digests of images' pieces, by which nodes know that a part is right."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storelib.api.db.image_row import lock
from storelib.api.db.preload_schema import image_pieces, piece_layers, preloads
from storelib.api.db.rows import now
from storelib.api.db.schema import images
from storelib.api.db.table import Table, reads, writes

p, i = piece_layers.c, image_pieces.c
#: Bytes of digests in one row: what a BLOB of MySQL holds, in whole digests.
ROW = 32 * 2000


class PieceLayers(Table):
    """Of each image whether its pieces are known, and their digests."""

    @writes
    def put(self, connection: Connection, image_id: str, size: int, layer: bytes) -> None:
        """Keep the digests of the pieces of an image of so many bytes, in place of those that were there.

        Raises ImageNotFound.
        """
        _note(connection, image_id, "ready", size, "")
        rows = [
            {"image_id": image_id, "number": number, "layer": layer[start : start + ROW]}
            for number, start in enumerate(range(0, len(layer), ROW))
        ]
        if rows:
            connection.execute(image_pieces.insert(), rows)

    @writes
    def fail(self, connection: Connection, image_id: str, message: str) -> None:
        """Note why they cannot be known; raises ImageNotFound."""
        _note(connection, image_id, "failed", 0, message[:255])

    @reads
    def get(self, connection: Connection, image_id: str) -> tuple[int, bytes] | None:
        """The size of an image and the digests of its pieces; None where they are not known."""
        size = connection.execute(
            sa.select(p.size).where(p.image_id == image_id, p.state == "ready")
        ).scalar_one_or_none()
        if size is None:
            return None
        rows = connection.execute(sa.select(i.layer).where(i.image_id == image_id).order_by(i.number))
        return size, b"".join(bytes(row[0]) for row in rows)

    @reads
    def get_state(self, connection: Connection, image_id: str) -> str | None:
        """``ready`` or ``failed``, None where it was not tried."""
        found: str | None = connection.execute(sa.select(p.state).where(p.image_id == image_id)).scalar_one_or_none()
        return found

    @reads
    def failure(self, connection: Connection, image_id: str) -> str | None:
        """Why they are not known; None where they are, or that was not tried."""
        failed = sa.select(p.message).where(p.image_id == image_id, p.state == "failed")
        found: str | None = connection.execute(failed).scalar_one_or_none()
        return found

    @reads
    def missing(self, connection: Connection, limit: int, retry_before: int) -> Sequence[str]:
        """Active images of active preloads whose pieces are not known, and were not tried since ``retry_before``."""
        joined = preloads.join(images, images.c.id == preloads.c.image_id).outerjoin(
            piece_layers, p.image_id == images.c.id
        )
        moment = now()
        # None was tried in the future: the clock was set back.
        again = sa.or_(p.updated_at < retry_before, p.updated_at > moment + (moment - retry_before))
        due = sa.or_(p.image_id.is_(None), sa.and_(p.state == "failed", again))
        query = sa.select(images.c.id).select_from(joined).where(preloads.c.status == "active", due)
        rows = connection.execute(query.where(images.c.status == "active", images.c.size > 0).distinct().limit(limit))
        return [row[0] for row in rows]


def _note(connection: Connection, image_id: str, state: str, size: int, message: str) -> None:
    # An upload that ends may note what a preload that begins notes, too.
    lock(connection, image_id)
    connection.execute(image_pieces.delete().where(i.image_id == image_id))
    connection.execute(piece_layers.delete().where(p.image_id == image_id))
    row = {"state": state, "size": size, "message": message, "updated_at": now()}
    connection.execute(piece_layers.insert(), {"image_id": image_id, **row})
