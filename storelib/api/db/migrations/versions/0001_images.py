# SPDX-License-Identifier: Apache-2.0
"""Images with what belongs to them, processes and uploads."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from storelib.api.db.schema import Name, Serial, Text

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_OPTIONS: dict[str, Any] = {"mysql_engine": "InnoDB", "mariadb_engine": "InnoDB"}
_BY_KEY: dict[str, Any] = {**_OPTIONS, "sqlite_with_rowid": False}


def upgrade() -> None:
    """Make the tables and their indexes."""
    op.create_table(
        "images",
        sa.Column("id", Name(36), primary_key=True),
        sa.Column("name", Name(255)),
        sa.Column("status", Name(32), nullable=False),
        sa.Column("visibility", Name(32), nullable=False),
        sa.Column("owner", Name(255)),
        sa.Column("size", sa.BigInteger),
        sa.Column("virtual_size", sa.BigInteger),
        sa.Column("checksum", Name(64)),
        sa.Column("os_hash_algo", Name(64)),
        sa.Column("os_hash_value", Name(128)),
        sa.Column("disk_format", Name(64)),
        sa.Column("container_format", Name(64)),
        sa.Column("min_disk", sa.BigInteger, nullable=False),
        sa.Column("min_ram", sa.BigInteger, nullable=False),
        sa.Column("protected", sa.Boolean, nullable=False),
        sa.Column("os_hidden", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("deleted_at", sa.BigInteger),
        sa.Column("deleted", sa.Boolean, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        **_OPTIONS,
    )
    _index("ix_images_created_at", "images", "deleted", "created_at", "id")
    _index("ix_images_updated_at", "images", "deleted", "updated_at", "id")
    _index("ix_images_name", "images", "deleted", "name", "id")
    _index("ix_images_size", "images", "deleted", "size", "id")
    _index("ix_images_status", "images", "deleted", "status", "id")
    _index("ix_images_owner_created_at", "images", "owner", "deleted", "created_at", "id")
    _index("ix_images_owner_name", "images", "owner", "deleted", "name", "id")
    _index("ix_images_visibility_created_at", "images", "visibility", "deleted", "created_at", "id")
    _index("ix_images_visibility_name", "images", "visibility", "deleted", "name", "id")
    op.create_table(
        "image_properties",
        _image_id(primary_key=True),
        sa.Column("name", Name(255), primary_key=True),
        sa.Column("value", Text),
        sa.Column("head", Name(64)),
        **_BY_KEY,
    )
    _index("ix_image_properties_name", "image_properties", "name", "head", "image_id")
    op.create_table("image_tags", _image_id(primary_key=True), sa.Column("tag", Name(255), primary_key=True), **_BY_KEY)
    _index("ix_image_tags_tag", "image_tags", "tag", "image_id")
    op.create_table(
        "image_members",
        _image_id(primary_key=True),
        sa.Column("member", Name(255), primary_key=True),
        sa.Column("status", Name(32), nullable=False),
        sa.Column("can_share", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        **_BY_KEY,
    )
    _index("ix_image_members_member", "image_members", "member", "status", "image_id")
    op.create_table(
        "image_locations",
        sa.Column("id", Serial, primary_key=True, autoincrement=True),
        _image_id(),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("uri", Text, nullable=False),
        sa.Column("metadata", Text, nullable=False),
        sa.Column("pending_since", sa.BigInteger),
        sqlite_autoincrement=True,
        **_OPTIONS,
    )
    _index("ix_image_locations_image", "image_locations", "image_id", "pending_since", "position")
    _index("ix_image_locations_pending", "image_locations", "pending_since", "id")
    op.create_table(
        "processes",
        sa.Column("id", Name(36), primary_key=True),
        sa.Column("host", Name(255), nullable=False),
        sa.Column("pid", sa.BigInteger, nullable=False),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
        **_BY_KEY,
    )
    op.create_table(
        "uploads",
        _image_id(primary_key=True),
        sa.Column("process_id", Name(36), nullable=False),
        sa.Column("status", Name(32), nullable=False),
        sa.Column("restore", Name(32), nullable=False),
        sa.Column("stores", Text, nullable=False),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        **_BY_KEY,
    )
    _index("ix_uploads_process", "uploads", "process_id")
    if op.get_bind().dialect.name == "sqlite":
        _tell_sqlite_what_is_large()


#: Index of SQLite to how many rows there are, and how many of them agree in the first, the first two, ... columns.
_LARGE = {
    "images": {
        "sqlite_autoindex_images_1": "1000000 1",
        "ix_images_created_at": "1000000 500000 1 1",
        "ix_images_updated_at": "1000000 500000 1 1",
        "ix_images_name": "1000000 500000 2 1",
        "ix_images_size": "1000000 500000 2 1",
        "ix_images_status": "1000000 500000 100000 1",
        "ix_images_owner_created_at": "1000000 1000 500 1 1",
        "ix_images_owner_name": "1000000 1000 500 2 1",
        "ix_images_visibility_created_at": "1000000 250000 125000 1 1",
        "ix_images_visibility_name": "1000000 250000 125000 2 1",
    },
    "image_properties": {"image_properties": "5000000 5 1", "ix_image_properties_name": "5000000 50000 1000 1"},
    "image_tags": {"image_tags": "2000000 2 1", "ix_image_tags_tag": "2000000 10000 1"},
    "image_members": {"image_members": "100000 2 1", "ix_image_members_member": "100000 100 50 1"},
    "image_locations": {
        "ix_image_locations_image": "1000000 1 1 1",
        "ix_image_locations_pending": "1000000 500000 1",
    },
}


def _tell_sqlite_what_is_large() -> None:
    """Statistics of a large deployment, so that the right indexes are walked before ANALYZE was ever run.

    Without any, SQLite expects ten rows for any value: as many that are not deleted as of one owner. The format is in
    sqlite.org/fileformat2.html, 2.6.3; ANALYZE replaces them by what is true.
    """
    op.execute("ANALYZE sqlite_master")
    table = sa.table("sqlite_stat1", sa.column("tbl"), sa.column("idx"), sa.column("stat"))
    rows = [
        {"tbl": name, "idx": index, "stat": stat} for name, indexes in _LARGE.items() for index, stat in indexes.items()
    ]
    op.bulk_insert(table, rows)


def _image_id(**options: Any) -> sa.Column[str]:
    return sa.Column("image_id", Name(36), sa.ForeignKey("images.id", ondelete="CASCADE"), nullable=False, **options)


def _index(name: str, table: str, *columns: str) -> None:
    if op.get_bind().dialect.name != "postgresql":
        op.create_index(name, table, columns)
        return
    # Only PostgreSQL sorts what is not set behind everything else, and walks an index only in the order it has.
    nullable = {"images": ("name", "size")}.get(table, ())
    op.create_index(name, table, [sa.text(f"{c} NULLS FIRST") if c in nullable else c for c in columns])
