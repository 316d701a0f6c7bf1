# SPDX-License-Identifier: Apache-2.0
"""What goes into the repository and comes out of it: plain frozen values, no SQL.

Times are aware datetimes in UTC with microseconds. Sizes are bytes, min_disk GiB and min_ram MiB. None is "not set".
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from storelib.uris import redact

Status = Literal[
    "queued",
    "saving",
    "uploading",
    "importing",
    "active",
    "deactivated",
    "killed",
    "pending_delete",
    "deleted",
]
Visibility = Literal["public", "private", "shared", "community"]
MemberStatus = Literal["pending", "accepted", "rejected"]
#: A leftover is to be deleted like what is pending_delete, and never was the image's.
LocationStatus = Literal["active", "pending_delete", "leftover"]
Direction = Literal["asc", "desc"]
SortField = Literal["name", "status", "container_format", "disk_format", "size", "id", "created_at", "updated_at"]
RangeField = Literal["size", "virtual_size", "min_disk", "min_ram"]
TimeField = Literal["created_at", "updated_at"]
TimeOperator = Literal["gt", "gte", "lt", "lte", "eq", "neq"]


@dataclass(frozen=True, slots=True)
class NewLocation:
    """A location to be recorded. ``metadata`` is JSON; ``metadata["store"]`` is the id of the store."""

    uri: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({redact(self.uri)!r}, {dict(self.metadata)!r})"


@dataclass(frozen=True, slots=True)
class ImageLocation(NewLocation):
    """A recorded location; the repr shows the URI without credentials."""

    id: int = 0
    status: LocationStatus = "active"

    def __repr__(self) -> str:
        return f"ImageLocation({self.id}, {redact(self.uri)!r}, {dict(self.metadata)!r}, {self.status!r})"


@dataclass(frozen=True, slots=True)
class NewImage:
    """An image to be created. ``id`` is checked by the caller, ``locations`` only make sense with status active."""

    id: str
    owner: str | None = None
    name: str | None = None
    status: Status = "queued"
    visibility: Visibility = "shared"
    size: int | None = None
    virtual_size: int | None = None
    checksum: str | None = None
    os_hash_algo: str | None = None
    os_hash_value: str | None = None
    disk_format: str | None = None
    container_format: str | None = None
    min_disk: int = 0
    min_ram: int = 0
    protected: bool = False
    os_hidden: bool = False
    properties: Mapping[str, str | None] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()
    locations: tuple[NewLocation, ...] = ()


@dataclass(frozen=True, slots=True)
class Image:
    """An image as it was read. ``version`` grows with every change of anything in here.

    ``locations`` are the active ones in their order. ``tags`` are sorted. ``deleted`` images keep everything but
    their locations.
    """

    id: str
    owner: str | None
    name: str | None
    status: Status
    visibility: Visibility
    size: int | None
    virtual_size: int | None
    checksum: str | None
    os_hash_algo: str | None
    os_hash_value: str | None
    disk_format: str | None
    container_format: str | None
    min_disk: int
    min_ram: int
    protected: bool
    os_hidden: bool
    created_at: datetime.datetime
    updated_at: datetime.datetime
    deleted_at: datetime.datetime | None
    deleted: bool
    version: int
    properties: Mapping[str, str | None]
    tags: tuple[str, ...]
    locations: tuple[ImageLocation, ...]


@dataclass(frozen=True, slots=True)
class Changes:
    """What ``Images.update`` shall change; what is None (or not in ``values``) stays.

    ``values`` may hold: name, owner, visibility, size, virtual_size, checksum, os_hash_algo, os_hash_value,
    disk_format, container_format, min_disk, min_ram, protected, os_hidden. ``properties``, ``tags`` and ``locations``
    are the whole new set. In ``locations`` an ImageLocation stays what it is (moved, or with other metadata), a
    NewLocation is added; an active one that is missing becomes pending_delete (``Locations.pending_for``).
    ``status`` is checked against the table of transitions.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    properties: Mapping[str, str | None] | None = None
    tags: frozenset[str] | None = None
    locations: tuple[NewLocation, ...] | None = None
    status: Status | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """An image is shared with ``member``, a project id. ``can_share`` is v1's."""

    image_id: str
    member: str
    status: MemberStatus
    can_share: bool
    created_at: datetime.datetime
    updated_at: datetime.datetime


class SharedImage(NamedTuple):
    """An image that is shared with a project, as far as it decides who may know of that, and the membership."""

    membership: Member
    id: str
    owner: str | None
    visibility: Visibility
    status: Status
    protected: bool
    os_hidden: bool


class Caller(NamedTuple):
    """Whose list it is: the project (None: of no project) and whether it has everything."""

    project: str | None
    is_admin: bool = False


class SortKey(NamedTuple):
    """One key of a list's order. Not set (None) sorts before everything else, on all databases."""

    key: SortField
    direction: Direction = "asc"


class Range(NamedTuple):
    """Both ends included; None is open. Images that have no such number are in no range."""

    field: RangeField
    minimum: int | None = None
    maximum: int | None = None


class TimeFilter(NamedTuple):
    """Compared by whole seconds, as the API shows times: eq matches every image that shows this second."""

    field: TimeField
    operator: TimeOperator
    value: datetime.datetime


@dataclass(frozen=True, slots=True)
class Query:
    """A list: who asks, what for, in which order, which page.

    An admin sees every image. Others see their own, public ones and those shared with them in ``member_status``.
    Everybody sees community ones of others only with ``visibility`` community or all. Tuples of values mean "one of";
    None is "any".
    ``is_public`` True is v1's public only, False all but public. ``deleted`` None is both. ``changes_since`` is
    updated_at at or after, and implies nothing about ``deleted``. The id is always the last sort key, in the direction
    of the key before it. ``marker`` is the id of the last image of the page before; it may have been deleted since.
    """

    caller: Caller
    limit: int | None = None
    marker: str | None = None
    sort: tuple[SortKey, ...] = (SortKey("created_at", "desc"),)
    ids: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None
    statuses: tuple[str, ...] | None = None
    disk_formats: tuple[str, ...] | None = None
    container_formats: tuple[str, ...] | None = None
    visibility: Visibility | Literal["all"] | None = None
    is_public: bool | None = None
    member_status: MemberStatus | Literal["all"] = "accepted"
    owner: str | None = None
    protected: bool | None = None
    os_hidden: bool | None = None
    checksum: str | None = None
    os_hash_algo: str | None = None
    os_hash_value: str | None = None
    tags: frozenset[str] = frozenset()
    properties: Mapping[str, str] = field(default_factory=dict)
    ranges: tuple[Range, ...] = ()
    times: tuple[TimeFilter, ...] = ()
    changes_since: datetime.datetime | None = None
    deleted: bool | None = False


class Page(NamedTuple):
    """Images of one page, fewer than the limit where they are large, and whether there are more behind the last."""

    images: tuple[Image, ...]
    more: bool


TaskStatus = Literal["pending", "processing", "success", "failure"]


@dataclass(frozen=True, slots=True)
class Task:
    """Something that is or was done in the background.

    ``given`` is what was asked for, ``result`` what came of it, both JSON; ``message`` how far it is or what went
    wrong. ``expires_at`` is when it is forgotten, None while it is at work. ``image_id`` may be gone.
    """

    id: str
    kind: str
    status: TaskStatus
    owner: str | None
    image_id: str | None
    user_id: str | None
    request_id: str | None
    given: Mapping[str, Any]
    result: Mapping[str, Any] | None
    message: str
    created_at: datetime.datetime
    updated_at: datetime.datetime
    expires_at: datetime.datetime | None


class TaskEnd(NamedTuple):
    """How a task ended; ``kept`` are the seconds until it is forgotten."""

    task_id: str
    status: TaskStatus
    message: str
    result: Mapping[str, Any] | None
    kept: float


class TaskQuery(NamedTuple):
    """Which tasks, in which order, how many, behind which. None is any, or the beginning."""

    kind: str | None = None
    status: str | None = None
    owner: str | None = None
    sort_key: str = "created_at"
    sort_dir: str = "desc"
    limit: int = 1000
    marker: str | None = None
    task_id: str | None = None
    image_id: str | None = None
    user_id: str | None = None
    request_id: str | None = None


class TaskPage(NamedTuple):
    """Tasks of one page, and whether there are more behind the last of them."""

    tasks: tuple[Task, ...]
    more: bool


class Usage(NamedTuple):
    """What one owner holds: bytes in stores (size times active locations), bytes staged, images, uploads under way."""

    total_size: int
    stage_size: int
    images: int
    uploading: int


@dataclass(frozen=True, slots=True)
class Upload:
    """Data being written by one API process. ``stores`` are the ids of the stores it may have reached.

    ``status`` is what the image is while it lasts (saving, uploading, importing; pending_delete: it is deleted),
    ``restore`` what it becomes when it is given up: what it was before, or queued.
    """

    image_id: str
    process_id: str
    status: Status
    restore: Status
    stores: tuple[str, ...]
    started_at: datetime.datetime
    token: str = ""

    @property
    def ticket(self) -> Ticket:
        """What tells this upload from all others."""
        return Ticket(self.image_id, self.process_id, self.token)


class Ticket(NamedTuple):
    """One upload, stage, import, copy or deletion, and no other of the same image: ``token`` is never used again."""

    image_id: str
    process_id: str
    token: str


@dataclass(frozen=True, slots=True)
class Job:
    """Work on an upload that a process has taken, for the ``attempts``-th time. ``document`` is what it has to know."""

    ticket: Ticket
    kind: str
    document: Mapping[str, Any]
    owner: str
    attempts: int

    def __repr__(self) -> str:
        # There may be credentials in the document.
        return f"Job({self.kind!r}, image {self.ticket.image_id})"


@dataclass(frozen=True, slots=True)
class Process:
    """A running API process that keeps its lease alive. ``seen_at`` is by the database's clock."""

    id: str
    host: str
    pid: int
    started_at: datetime.datetime
    seen_at: datetime.datetime
    #: The boot of its machine, and when it was seen, in microseconds since then; None from older versions.
    boot: str | None = None
    ticks: int | None = None


class Round(NamedTuple):
    """How far work over all images has come; ``position`` is the id of the last image that is done, "" before any.

    ``counts`` are of this round, ``last`` of the last one that came to its end.
    """

    name: str
    position: str
    started_at: datetime.datetime | None
    finished_at: datetime.datetime | None
    counts: dict[str, Any]
    last: dict[str, Any]


class AuditRow(NamedTuple):
    """What an audit compares with the stores. ``locations`` include those pending delete."""

    id: str
    status: Status
    size: int | None
    checksum: str | None
    os_hash_algo: str | None
    os_hash_value: str | None
    owner: str | None
    locations: tuple[ImageLocation, ...]
