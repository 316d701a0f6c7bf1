# SPDX-License-Identifier: Apache-2.0
"""The life of an image: which status may follow which. The only place that says so."""

from __future__ import annotations

from collections.abc import Collection
from typing import get_args

from storelib.api.db.records import Status

#: The Image API's transitions. Beyond them, a deactivated image may be pending_delete and come back from it, so that
#: its data is deleted as safely as that of an active one.
ALLOWED: dict[Status, frozenset[Status]] = {
    "queued": frozenset({"saving", "uploading", "importing", "active", "deleted"}),
    "saving": frozenset({"active", "killed", "deleted", "queued"}),
    "uploading": frozenset({"importing", "queued", "deleted"}),
    "importing": frozenset({"active", "deleted", "queued"}),
    "active": frozenset({"pending_delete", "deleted", "deactivated"}),
    "deactivated": frozenset({"active", "deleted", "pending_delete"}),
    "killed": frozenset({"deleted"}),
    "pending_delete": frozenset({"deleted", "active", "deactivated"}),
    "deleted": frozenset(),
}

STATUSES: tuple[Status, ...] = get_args(Status)
#: Data is being written, staged or imported.
UPLOADING: tuple[Status, ...] = ("saving", "uploading", "importing")
#: There is data to be read, though a deactivated image is for administrators alone.
WITH_DATA: tuple[Status, ...] = ("active", "deactivated")
#: Does not count as an image of its owner any more.
GONE: tuple[Status, ...] = ("killed", "pending_delete", "deleted")


def check_transitions(from_: Collection[Status], to: Status) -> None:
    """Raise ValueError unless every status of ``from_`` may become ``to``: such a call is a mistake of the program."""
    if not from_:
        raise ValueError("from_ is empty")
    for status in from_:
        if to not in ALLOWED[status]:
            raise ValueError(f"an image never goes from {status} to {to}")
    if to != "deleted" and "pending_delete" in from_ and len(set(from_)) > 1:
        # What comes back with the image depends on it.
        raise ValueError("pending_delete is left by itself, not together with another status")
