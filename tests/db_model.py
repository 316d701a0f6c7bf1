# SPDX-License-Identifier: Apache-2.0
"""What a list must answer, worked out in plain Python from all images and members there are."""

from __future__ import annotations

import datetime
from collections.abc import Iterable

from storelib.api.db.records import Image, Member, Query


def expected(images: Iterable[Image], members: Iterable[Member], query: Query) -> list[str]:
    """The ids of the whole list, without marker and limit."""
    shared = {(member.image_id, member.member): member.status for member in members}
    found = [image for image in images if _visible(image, shared, query) and _matches(image, query)]
    return [image.id for image in _sorted(found, query)]


def _visible(image, shared, query):
    wanted = query.visibility
    if wanted not in (None, "all") and image.visibility != wanted:
        return False
    project, is_admin = query.caller
    if is_admin:
        return wanted is not None or image.visibility != "community" or image.owner == project
    if (project is not None and image.owner == project) or image.visibility == "public":
        return True
    if image.visibility == "community":
        return wanted in ("community", "all")
    status = shared.get((image.id, project))
    return image.visibility == "shared" and status is not None and query.member_status in ("all", status)


def _matches(image, query):
    in_lists = [
        (image.id, query.ids),
        (image.name, query.names),
        (image.status, query.statuses),
        (image.disk_format, query.disk_formats),
        (image.container_format, query.container_formats),
    ]
    equal = [
        (image.owner, query.owner),
        (image.checksum, query.checksum),
        (image.os_hash_algo, query.os_hash_algo),
        (image.os_hash_value, query.os_hash_value),
        (image.protected, query.protected),
        (image.os_hidden, query.os_hidden),
        (image.deleted, query.deleted),
        (image.visibility == "public", query.is_public),
    ]
    return (
        all(wanted is None or value in wanted for value, wanted in in_lists)
        and all(wanted is None or value == wanted for value, wanted in equal)
        and query.tags <= set(image.tags)
        and all(image.properties.get(name) == value for name, value in query.properties.items())
        and all(_within(getattr(image, each.field), each.minimum, each.maximum) for each in query.ranges)
        and all(_at(getattr(image, each.field), each.operator, each.value) for each in query.times)
        and (query.changes_since is None or image.updated_at >= query.changes_since)
    )


def _within(value, minimum, maximum):
    if minimum is None and maximum is None:
        return True
    return value is not None and (minimum is None or value >= minimum) and (maximum is None or value <= maximum)


def _at(moment: datetime.datetime, operator: str, wanted: datetime.datetime) -> bool:
    shown = moment.replace(microsecond=0)
    return {
        "gt": shown > wanted,
        "gte": shown >= wanted,
        "lt": shown < wanted,
        "lte": shown <= wanted,
        "eq": shown == wanted,
        "neq": shown != wanted,
    }[operator]


def _sorted(images, query):
    # A key that comes again decides nothing.
    directions: dict[str, str] = {}
    for key in query.sort:
        directions.setdefault(key.key, key.direction)
    keys = list(directions.items())
    if all(key != "id" for key, _ in keys):
        keys.append(("id", keys[-1][1] if keys else "desc"))
    # Sorting is stable, so the last key goes first. What is not set comes before everything.
    for key, direction in reversed(keys):
        images = sorted(images, key=lambda image: _place(getattr(image, key)), reverse=direction == "desc")
    return images


def _place(value):
    if value is None:
        return (0, b"")
    return (1, value.encode() if isinstance(value, str) else value)
