# SPDX-License-Identifier: Apache-2.0
"""The tables as they are now; the migrations bring a database here, and a test compares the two.

Times are microseconds since 1970 in BIGINT: the same order, precision and speed everywhere, and no time zones. Text
compares and sorts by code point everywhere, case and trailing spaces included.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import TypeDecorator, TypeEngine

#: Bytes of UTF-8 that TEXT holds in MySQL; the limit everywhere.
TEXT_BYTES = 65535
#: Characters of a property's value that its index knows.
HEAD = 64


class Name(TypeDecorator[str]):
    """Text of at most so many characters, ``Name(255)``, compared and sorted by code point."""

    impl = sa.String
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        length = length_of(self)
        if dialect.name == "postgresql":
            return dialect.type_descriptor(sa.String(length, collation="C"))
        if dialect.name in ("mysql", "mariadb"):
            return dialect.type_descriptor(mysql.VARCHAR(length, charset="utf8mb4", collation=_collation(dialect)))
        return dialect.type_descriptor(sa.String(length))


def length_of(name: Name) -> int:
    """The most characters that a column of this type holds."""
    length: int = name.impl_instance.length  # type: ignore[attr-defined]
    return length


class Text(TypeDecorator[str]):
    """Text of up to TEXT_BYTES in UTF-8, compared and sorted by code point."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(sa.Text(collation="C"))
        if dialect.name in ("mysql", "mariadb"):
            return dialect.type_descriptor(mysql.TEXT(charset="utf8mb4", collation=_collation(dialect)))
        return dialect.type_descriptor(sa.Text())


def _collation(dialect: Dialect) -> str:
    # The other binary collations ignore trailing spaces, and neither server has the other's name for one that does not.
    return "utf8mb4_nopad_bin" if getattr(dialect, "is_mariadb", False) else "utf8mb4_0900_bin"


class Now(sa.sql.functions.FunctionElement[int]):
    """The database's own clock, in microseconds: leases of several hosts must not depend on their clocks."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(Now, "sqlite")
def _now_sqlite(element: Now, compiler: Any, **options: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000"


@compiles(Now, "postgresql")
def _now_postgresql(element: Now, compiler: Any, **options: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)"


@compiles(Now, "mysql", "mariadb")
def _now_mysql(element: Now, compiler: Any, **options: Any) -> str:
    return "CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED)"


#: A serial number; SQLite counts only INTEGER.
Serial = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

metadata = sa.MetaData()
# InnoDB whatever the server's default; SQLite keeps rows of tables with a key of their own in that key's order.
_OPTIONS: dict[str, Any] = {"mysql_engine": "InnoDB", "mariadb_engine": "InnoDB"}
BY_KEY: dict[str, Any] = {**_OPTIONS, "sqlite_with_rowid": False}


def _image_id(**options: Any) -> sa.Column[str]:
    return sa.Column("image_id", Name(36), sa.ForeignKey("images.id", ondelete="CASCADE"), nullable=False, **options)


images = sa.Table(
    "images",
    metadata,
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

#: What lists of images can be sorted by.
SORTED_BY = ("created_at", "updated_at", "name", "size", "status", "disk_format", "container_format", "id")
#: What else a filter of a list can name.
FILTERED_BY = (
    *("checksum", "os_hash_value", "os_hash_algo", "virtual_size", "min_disk", "min_ram", "protected", "os_hidden"),
)
#: Filters that tell much of where in an order their images are, so that few of them may come by on a walk along it:
#: what is queued has no size, what is hidden is old.
ORDERED_WITHIN = (("status", "size"), ("status", "created_at"), ("os_hidden", "created_at"))
#: What a list walks along or begins with: every image (for admins), the owner's, and all of one visibility. Each ends
#: with the id, so that the page after a marker is one range of the index.
ORDERS: dict[str, tuple[str, ...]] = {
    **{f"ix_images_{column}": ("deleted", column, "id") for column in (*SORTED_BY[:-1], *FILTERED_BY)},
    **{
        f"ix_images_{prefix}_{column}": tuple(dict.fromkeys((prefix, "deleted", column, "id")))
        for prefix in ("owner", "visibility")
        for column in SORTED_BY
    },
    **{f"ix_images_{column}_{key}": ("deleted", column, key, "id") for column, key in ORDERED_WITHIN},
}
#: Nearly all that lists look at in images that they have the ids of. SQLite looks for an id in one tree and for its row
#: in another, where what has neighbouring ids is far apart; the other databases have no use for this.
LOOKED_AT = (
    *("id", "deleted", "visibility", "owner", "os_hidden", "protected", "status", "created_at", "updated_at", "size"),
    *("virtual_size", "min_disk", "min_ram", "disk_format", "container_format", "name"),
)
# Without the flag, lest SQLite takes it for a short way to all that is not deleted.
sa.Index("ix_images_deleted_at", images.c.deleted_at)
for _name, _columns in ORDERS.items():
    sa.Index(_name, *(images.c[column] for column in _columns))
sa.Index("ix_images_looked_at", *(images.c[column] for column in LOOKED_AT), info={"only": "sqlite"})


def indexes_of(table: sa.Table, kind: str) -> list[sa.Index]:
    """The indexes of a table that one kind of database has."""
    return [index for index in table.indexes if index.info.get("only", kind) == kind]


image_properties = sa.Table(
    "image_properties",
    metadata,
    _image_id(primary_key=True),
    sa.Column("name", Name(255), primary_key=True),
    sa.Column("value", Text),
    # The first HEAD characters of the value: no database indexes long text in the same way.
    sa.Column("head", Name(HEAD)),
    sa.Index("ix_image_properties_name", "name", "head", "image_id"),
    **BY_KEY,
)

image_tags = sa.Table(
    "image_tags",
    metadata,
    _image_id(primary_key=True),
    sa.Column("tag", Name(255), primary_key=True),
    sa.Index("ix_image_tags_tag", "tag", "image_id"),
    **BY_KEY,
)

image_members = sa.Table(
    "image_members",
    metadata,
    _image_id(primary_key=True),
    sa.Column("member", Name(255), primary_key=True),
    sa.Column("status", Name(32), nullable=False),
    sa.Column("can_share", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.Index("ix_image_members_member", "member", "status", "image_id"),
    sa.Index("ix_image_members_member_image", "member", "image_id"),
    sa.Index("ix_image_members_image", "image_id", "created_at", "member"),
    **BY_KEY,
)

image_locations = sa.Table(
    "image_locations",
    metadata,
    sa.Column("id", Serial, primary_key=True, autoincrement=True),
    _image_id(),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("uri", Text, nullable=False),
    sa.Column("metadata", Text, nullable=False),
    # When it became pending_delete; not set: active.
    sa.Column("pending_since", sa.BigInteger),
    # The process that deletes the data, and a token of this one attempt; not set: nobody does.
    sa.Column("claimed_by", Name(36)),
    sa.Column("claim", Name(36)),
    sa.Index("ix_image_locations_image", "image_id", "pending_since", "position"),
    sa.Index("ix_image_locations_pending", "pending_since", "id"),
    sa.Index("ix_image_locations_claimed", "claimed_by"),
    # A URI may be longer than what the usual index of a server takes.
    sa.Index("ix_image_locations_uri", "uri", postgresql_using="hash", mysql_length=255, mariadb_length=255),
    sqlite_autoincrement=True,
    **_OPTIONS,
)

processes = sa.Table(
    "processes",
    metadata,
    sa.Column("id", Name(36), primary_key=True),
    sa.Column("host", Name(255), nullable=False),
    sa.Column("pid", sa.BigInteger, nullable=False),
    sa.Column("started_at", sa.BigInteger, nullable=False),
    sa.Column("seen_at", sa.BigInteger, nullable=False),
    # When it was seen by the clock of one boot of one machine, which nobody sets; not set by older versions.
    sa.Column("boot", Name(128)),
    sa.Column("ticks", sa.BigInteger),
    # What it does besides serving requests: "worker" takes jobs.
    sa.Column("role", Name(16), nullable=False, server_default=""),
    **BY_KEY,
)

uploads = sa.Table(
    "uploads",
    metadata,
    _image_id(primary_key=True),
    # No foreign key: an upload outlives the process it belongs to, that is how it is found.
    sa.Column("process_id", Name(36), nullable=False),
    sa.Column("status", Name(32), nullable=False),
    sa.Column("restore", Name(32), nullable=False),
    sa.Column("stores", Text, nullable=False),
    sa.Column("started_at", sa.BigInteger, nullable=False),
    # One of a kind, so that an upload is never taken for a later one of the same image; empty from older versions.
    sa.Column("token", Name(36), nullable=False, server_default=""),
    sa.Index("ix_uploads_process", "process_id"),
    **BY_KEY,
)

# Work in the background that another process may do than the one that was asked. It goes with its upload.
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column(
        "image_id", Name(36), sa.ForeignKey("uploads.image_id", ondelete="CASCADE"), primary_key=True, nullable=False
    ),
    sa.Column("kind", Name(32), nullable=False),
    # In JSON.
    sa.Column("document", Text, nullable=False),
    # Of the image; none is empty.
    sa.Column("owner", Name(255), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    # Not set: it waits.
    sa.Column("started_at", sa.BigInteger),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Index("ix_jobs_started_at", "started_at", "created_at"),
    **BY_KEY,
)

#: Owners whose total is limited: of each, one transaction that adds to it holds the row. None is empty.
holders = sa.Table(
    "holders",
    metadata,
    sa.Column("owner", Name(255), primary_key=True),
    # Bytes in stores, and when they were counted; not set: never.
    sa.Column("stored", sa.BigInteger),
    sa.Column("counted_at", sa.BigInteger),
    **BY_KEY,
)

#: What of these sums each image is.
stored_bytes = sa.Table(
    "stored_bytes",
    metadata,
    # No foreign key: what goes has to be taken from the sum.
    sa.Column("image_id", Name(36), primary_key=True),
    sa.Column("owner", Name(255), nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Index("ix_stored_bytes_owner", "owner"),
    **BY_KEY,
)

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("id", Name(36), primary_key=True),
    sa.Column("type", Name(32), nullable=False),
    sa.Column("status", Name(32), nullable=False),
    sa.Column("owner", Name(255)),
    # No foreign key: a task outlives its image.
    sa.Column("image_id", Name(36)),
    sa.Column("user_id", Name(255)),
    sa.Column("request_id", Name(255)),
    # JSON.
    sa.Column("input", Text, nullable=False),
    sa.Column("result", Text),
    sa.Column("message", Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    # When it is forgotten; 0: not yet known. Databases sort what is not set in different ways.
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Index("ix_tasks_image", "image_id", "created_at"),
    sa.Index("ix_tasks_created_at", "created_at", "id"),
    sa.Index("ix_tasks_updated_at", "updated_at", "id"),
    sa.Index("ix_tasks_status", "status", "id"),
    sa.Index("ix_tasks_type", "type", "id"),
    sa.Index("ix_tasks_status_created_at", "status", "created_at", "id"),
    sa.Index("ix_tasks_type_created_at", "type", "created_at", "id"),
    sa.Index("ix_tasks_owner", "owner", "created_at", "id"),
    sa.Index("ix_tasks_user", "user_id", "created_at", "id"),
    sa.Index("ix_tasks_request", "request_id", "created_at", "id"),
    sa.Index("ix_tasks_expires_at", "expires_at", "id"),
    **BY_KEY,
)

metadef_namespaces = sa.Table(
    "metadef_namespaces",
    metadata,
    # Never used again: what is done to a namespace that was read is not done to a later one of the same name.
    sa.Column("id", Serial, primary_key=True, autoincrement=True),
    sa.Column("namespace", Name(80), nullable=False),
    sa.Column("display_name", Name(80)),
    sa.Column("description", Text),
    sa.Column("visibility", Name(32), nullable=False),
    sa.Column("protected", sa.Boolean, nullable=False),
    sa.Column("owner", Name(255)),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.Index("ix_metadef_namespaces_namespace", "namespace", unique=True),
    sqlite_autoincrement=True,
    **_OPTIONS,
)

metadef_resource_types = sa.Table(
    "metadef_resource_types",
    metadata,
    sa.Column("name", Name(80), primary_key=True),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    **BY_KEY,
)


def _namespace_id() -> sa.Column[int]:
    key = sa.ForeignKey("metadef_namespaces.id", ondelete="CASCADE")
    return sa.Column("namespace_id", Serial, key, primary_key=True)


metadef_associations = sa.Table(
    "metadef_associations",
    metadata,
    _namespace_id(),
    sa.Column("resource_type", Name(80), primary_key=True),
    sa.Column("prefix", Name(80)),
    sa.Column("properties_target", Name(80)),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.Index("ix_metadef_associations_type", "resource_type", "namespace_id"),
    **BY_KEY,
)

#: Objects, properties and tags of namespaces, told apart by ``kind``.
metadef_definitions = sa.Table(
    "metadef_definitions",
    metadata,
    _namespace_id(),
    sa.Column("kind", Name(16), primary_key=True),
    sa.Column("name", Name(80), primary_key=True),
    # All of it but its name, in JSON.
    sa.Column("document", Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    **BY_KEY,
)

#: What the caches of hosts hold; ``node`` is what tells a cache from others, whose files are what counts.
cached_images = sa.Table(
    "cached_images",
    metadata,
    sa.Column("node", Name(36), primary_key=True),
    # No foreign key: the files of a deleted image are to be found and removed.
    sa.Column("image_id", Name(36), primary_key=True),
    sa.Column("host", Name(255), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("hits", sa.BigInteger, nullable=False),
    sa.Column("cached_at", sa.BigInteger, nullable=False),
    sa.Column("used_at", sa.BigInteger, nullable=False),
    sa.Index("ix_cached_images_image", "image_id"),
    **BY_KEY,
)

#: Images that are to be cached.
cache_queue = sa.Table(
    "cache_queue",
    metadata,
    sa.Column("node", Name(36), primary_key=True),
    sa.Column("image_id", Name(36), primary_key=True),
    sa.Column("queued_at", sa.BigInteger, nullable=False),
    **BY_KEY,
)

#: How far work over all images has come that is done again and again.
rounds = sa.Table(
    "rounds",
    metadata,
    sa.Column("name", Name(64), primary_key=True),
    # The process that is at it.
    sa.Column("process_id", Name(36)),
    # The id of the last image that is done.
    sa.Column("position", Name(36), nullable=False),
    sa.Column("started_at", sa.BigInteger),
    sa.Column("finished_at", sa.BigInteger),
    # Of this round and of the last whole one, in JSON.
    sa.Column("counts", Text, nullable=False),
    sa.Column("last", Text, nullable=False),
    **BY_KEY,
)

#: What was taken from the catalogue of another service, and how it was then: images by their ids, namespaces of
#: metadata definitions by their names. No foreign key: what was deleted here is not taken again.
imported = sa.Table(
    "imported",
    metadata,
    sa.Column("kind", Name(16), primary_key=True),
    sa.Column("key", Name(80), primary_key=True),
    # The catalogue that it came from.
    sa.Column("source", Name(255), nullable=False),
    # Of all that belongs to it, as it was here and there.
    sa.Column("digest", Name(64), nullable=False),
    sa.Index("ix_imported_source", "source", "kind", "key"),
    **BY_KEY,
)
