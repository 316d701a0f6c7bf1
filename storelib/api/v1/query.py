# SPDX-License-Identifier: Apache-2.0
"""The query string of v1's lists, read into a Query for the repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

from oslo_utils import strutils

from storelib.api.db.records import Caller, Direction, Query, Range, RangeField, SortField, SortKey
from storelib.api.describing import PAGE, Parameter, choice, number
from storelib.api.errors import BadRequest
from storelib.api.parsing import page_size, required_number
from storelib.api.service import Context
from storelib.api.v2.query import parse_time

SORT_FIELDS = get_args(SortField)
DIRECTIONS = get_args(Direction)
#: Filters for a value itself, and what the repository calls them.
EQUAL = {
    "name": "names",
    "status": "statuses",
    "disk_format": "disk_formats",
    "container_format": "container_formats",
}
PROPERTY = "property-"
PARAMETERS = (
    *PAGE,
    choice("sort_key", "What the list is sorted by", SORT_FIELDS),
    choice("sort_dir", "In which direction", DIRECTIONS),
    *(Parameter(name, f"Images with this {name}") for name in EQUAL),
    *(number(name, f"Images with this {name}, or this bound of it") for name in ("size_min", "size_max")),
    Parameter("protected", "Images that are protected, or not", {"type": "boolean"}),
    Parameter("is_public", "Images that everybody may see, or not; none is all"),
    Parameter("changes-since", "Images that changed since a time in ISO 8601, deleted ones too"),
)


class Asked(NamedTuple):
    """A list; ``as_user``: administrators see what they would see if they were none."""

    query: Query
    as_user: bool


def parse(pairs: Sequence[tuple[str, str]], context: Context, *, default_limit: int, largest_limit: int) -> Asked:
    """The list that a decoded query string asks for; raises BadRequest naming the parameter at fault.

    Parameters that do not exist are ignored, as they always were.
    """
    given = dict(pairs)
    values: dict[str, Any] = {field: (given[name],) for name, field in EQUAL.items() if name in given}
    if "protected" in given:
        values["protected"] = _boolean("protected", given["protected"])
    if "changes-since" in given:
        values["changes_since"] = parse_time("changes-since", given["changes-since"])
    values["deleted"] = _deleted(given, context)
    is_public, as_user = _is_public(given, context)
    query = Query(
        Caller(None),
        limit=page_size(given.get("limit"), default_limit, largest_limit),
        marker=given.get("marker"),
        sort=(_sort(given),),
        is_public=is_public,
        member_status="all",
        os_hidden=False,
        properties={name[len(PROPERTY) :]: value for name, value in pairs if name.startswith(PROPERTY)},
        ranges=tuple(_ranges(given)),
        **values,
    )
    return Asked(query, as_user)


def _is_public(given: Mapping[str, str], context: Context) -> tuple[bool | None, bool]:
    """The filter, and whether an administrator is shown what a normal user is, which is so unless asked otherwise."""
    if not context.is_admin:
        return None, True
    text = given.get("is_public")
    if text is None:
        # Callers without a project own no images, so that they would not find what they have made.
        return None, context.project_id is not None
    if text.lower() == "none":
        return None, False
    return (None, True) if _boolean("is_public", text) else (False, False)


def _deleted(given: Mapping[str, str], context: Context) -> bool | None:
    """Which of living and deleted images; None is both."""
    if context.is_admin and "deleted" in given:
        return _boolean("deleted", given["deleted"])
    return None if "changes-since" in given else False


def _ranges(given: Mapping[str, str]) -> list[Range]:
    exact: tuple[RangeField, ...] = ("min_ram", "min_disk")
    found = [Range(name, number, number) for name in exact if (number := _given_number(given, name)) is not None]
    smallest, largest = _given_number(given, "size_min"), _given_number(given, "size_max")
    if smallest is not None or largest is not None:
        found.append(Range("size", smallest, largest))
    return found


def _sort(given: Mapping[str, str]) -> SortKey:
    key = _choice("sort_key", given.get("sort_key", "created_at"), SORT_FIELDS)
    return SortKey(key, _choice("sort_dir", given.get("sort_dir", "desc"), DIRECTIONS))


def _choice(name: str, value: str, known: Sequence[Any]) -> Any:
    if value not in known:
        raise BadRequest(f"{name} must be one of {', '.join(known)}, not {value!r}")
    return value


def _given_number(given: Mapping[str, str], name: str) -> int | None:
    return required_number(name, given[name]) if name in given else None


def _boolean(name: str, value: str) -> bool:
    try:
        return strutils.bool_from_string(value, strict=True)
    except ValueError:
        raise BadRequest(f"{name} must be true or false, not {value!r}") from None
