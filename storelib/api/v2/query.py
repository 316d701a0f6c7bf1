# SPDX-License-Identifier: Apache-2.0
"""The query string of ``GET /v2/images``, read into a Query for the repository."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from oslo_utils import timeutils

from storelib.api.db.records import (
    Caller,
    Direction,
    MemberStatus,
    Query,
    Range,
    RangeField,
    SortField,
    SortKey,
    TimeField,
    TimeFilter,
    TimeOperator,
    Visibility,
)
from storelib.api.describing import LARGEST, PAGE, Parameter, choice, number
from storelib.api.errors import BadRequest
from storelib.api.parsing import required_number

Pairs = Sequence[tuple[str, str]]

SORT_FIELDS = get_args(SortField)
DIRECTIONS = get_args(Direction)
VISIBILITIES = (*get_args(Visibility), "all")
MEMBER_STATUSES = (*get_args(MemberStatus), "all")
RANGES = {f"{field}_{end}": (field, end) for field in get_args(RangeField) for end in ("min", "max")}
#: Filters that take ``in:a,"b,c"``, and what the repository calls them.
SETS = {
    "id": "ids",
    "name": "names",
    "status": "statuses",
    "disk_format": "disk_formats",
    "container_format": "container_formats",
}
SIZES = get_args(RangeField)
BOOLEANS = ("protected", "os_hidden")
TEXTS = ("owner", "checksum", "os_hash_algo", "os_hash_value")
TIMES = get_args(TimeField)
OPERATORS = get_args(TimeOperator)
PARAMETERS = (
    *PAGE,
    Parameter("sort", "KEY:DIRECTION, several with commas between them; not together with the next two"),
    Parameter(
        "sort_key", "What the list is sorted by", {"type": "array", "items": {"type": "string", "enum": [*SORT_FIELDS]}}
    ),
    Parameter("sort_dir", "In which direction", {"type": "array", "items": {"type": "string", "enum": [*DIRECTIONS]}}),
    Parameter("tag", "Images that have all of these tags", {"type": "array", "items": {"type": "string"}}),
    *(Parameter(name, f"Images with this {name}, or in:A,B for one of several") for name in SETS),
    *(number(name, f"Images with this {name}") for name in SIZES),
    *(number(name, f"The {end}imum of {field}") for name, (field, end) in RANGES.items()),
    *(
        Parameter(name, f"Images with this {name}: a time, or one of {', '.join(OPERATORS)}, a colon and a time")
        for name in TIMES
    ),
    *(Parameter(name, f"Images with this {name}", {"type": "boolean"}) for name in BOOLEANS),
    *(Parameter(name, f"Images with this {name}") for name in TEXTS),
    choice("visibility", "Images with this visibility", VISIBILITIES),
    choice("member_status", "Of images that are shared with the caller, those with this status", MEMBER_STATUSES),
)
_NO_CALLER = Caller(None)
_ITEM = re.compile(r',(?:"((?:[^"]|"")*)"(?=,|\Z)|([^,]*))')


def parse(pairs: Pairs, *, default_limit: int, largest_limit: int) -> Query:
    """The query of a decoded query string; raises BadRequest naming the parameter at fault."""
    values: dict[str, Any] = {"limit": default_limit, "os_hidden": False}
    tags: set[str] = set()
    properties: dict[str, str] = {}
    ranges: dict[RangeField, dict[str, int]] = {}
    times: list[TimeFilter] = []
    for name, value in pairs:
        # Deleted images are in no list of this version, whatever clients ask for.
        if name in ("sort", "sort_key", "sort_dir", "deleted"):
            continue
        if name == "limit":
            values["limit"] = min(_number(name, value), largest_limit)
        elif name == "marker":
            values["marker"] = value
        elif name == "tag":
            tags.add(value)
        elif name in SETS:
            values[SETS[name]] = _one_of(name, value)
        elif name in RANGES:
            field, end = RANGES[name]
            ranges.setdefault(field, {})[end] = _number(name, value)
        elif name in SIZES:
            number = _number(name, value)
            ranges[name] = {"min": number, "max": number}  # type: ignore[index]
        elif name in TIMES:
            times.append(_time(name, value))
        elif name in BOOLEANS:
            values[name] = _boolean(name, value)
        elif name in TEXTS:
            values[name] = value
        elif name == "visibility":
            values[name] = _choice(name, value, VISIBILITIES)
        elif name == "member_status":
            values[name] = _choice(name, value, MEMBER_STATUSES)
        elif name == "changes-since":
            raise BadRequest("changes-since is not a filter of this version; use updated_at=gte:...")
        else:
            properties[name] = value
    return Query(
        _NO_CALLER,
        sort=_sort(pairs),
        tags=frozenset(tags),
        properties=properties,
        ranges=tuple(Range(field, ends.get("min"), ends.get("max")) for field, ends in ranges.items()),
        times=tuple(times),
        **values,
    )


def _sort(pairs: Pairs) -> tuple[SortKey, ...]:
    new = [value for name, value in pairs if name == "sort"]
    keys = [value for name, value in pairs if name == "sort_key"]
    directions = [value for name, value in pairs if name == "sort_dir"]
    if new and (keys or directions):
        raise BadRequest("sort cannot be used together with sort_key and sort_dir")
    if len(new) > 1:
        raise BadRequest("sort is given more than once; write sort=key:dir,key:dir")
    if new:
        entries = [entry.partition(":") for entry in new[0].split(",")]
        found = [(key.strip(), direction.strip() or "desc") for key, _, direction in entries]
    else:
        if len(directions) > 1 and len(directions) != len(keys):
            raise BadRequest("give one sort_dir, or as many as there are sort_keys")
        keys = keys or ["created_at"]
        directions = directions or ["desc"]
        found = [(key, directions[number if len(directions) > 1 else 0]) for number, key in enumerate(keys)]
    for key, direction in found:
        _choice("a sort key", key, SORT_FIELDS)
        _choice("a sort direction", direction, DIRECTIONS)
    return tuple(SortKey(key, direction) for key, direction in found)  # type: ignore[arg-type]


def _number(name: str, value: str) -> int:
    return required_number(name, value, LARGEST)


def _boolean(name: str, value: str) -> bool:
    known = {"true": True, "false": False}
    if value.lower() not in known:
        raise BadRequest(f"{name} must be true or false, not {value!r}")
    return known[value.lower()]


def _choice(name: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise BadRequest(f"{name} must be one of {', '.join(known)}, not {value!r}")
    return value


def _one_of(name: str, value: str) -> tuple[str, ...]:
    """``in:a,"b,c"``, ``eq:a`` or the value itself."""
    operator, colon, rest = value.partition(":")
    if not colon:
        return (value,)
    if operator == "eq":
        return (_unquoted(name, rest),)
    if operator == "in":
        if rest.count('"') % 2:
            raise BadRequest(f"{name}: the quotes in {value!r} do not match")
        if not rest:
            raise BadRequest(f"{name}: there is nothing after 'in:'")
        return tuple(_items(rest))
    raise BadRequest(f"{name}: the operator must be in or eq, not {operator!r}")


def _items(text: str) -> Iterator[str]:
    """The items of a list with commas in between; one in quotes may have commas in it, and quotes doubled."""
    for match in _ITEM.finditer(f",{text}"):
        yield match[2] if match[1] is None else match[1].replace('""', '"')


def _unquoted(name: str, value: str) -> str:
    if value.count('"') % 2:
        raise BadRequest(f"{name}: the quotes in {value!r} do not match")
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value


def _time(name: Any, value: str) -> TimeFilter:
    operator, colon, rest = value.partition(":")
    if operator not in OPERATORS or not colon:
        # A time has colons itself, so that it may stand without an operator.
        operator, rest = "eq", value
    return TimeFilter(name, operator, parse_time(name, rest))  # type: ignore[arg-type]


def parse_time(name: str, value: str) -> datetime.datetime:
    """An ISO 8601 time, UTC where it does not say; raises BadRequest."""
    # A plus sign that was not escaped arrives as a space.
    text = re.sub(r"(\d[T ]\d\d\S{0,30}) (?=\d\d:?\d\d$)", r"\1+", value.strip().upper())
    try:
        # Python's own reads less of ISO 8601 before 3.11.
        found: datetime.datetime = timeutils.parse_isotime(text)
        return found.astimezone(datetime.timezone.utc)
    except (ValueError, OverflowError):
        raise BadRequest(f"{name}: {value!r} is not a time in ISO 8601") from None
