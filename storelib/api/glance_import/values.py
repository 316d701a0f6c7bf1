# SPDX-License-Identifier: Apache-2.0
"""Plain values of what the columns of a Glance database hold, whatever the database's own types are.

SQLite keeps anything in any column, so nothing is believed.
"""

from __future__ import annotations

import datetime
import json
from typing import Any

from storelib.api.db.rows import from_time


class Refused(Exception):
    """This entry cannot be taken; the message says why."""


def text(what: str, value: Any) -> str | None:
    """A text that may be not set."""
    if value is None or isinstance(value, str):
        return value
    raise Refused(f"{what} is no text")


def some_text(what: str, value: Any) -> str:
    """A text that is set; it may be empty."""
    found = text(what, value)
    if found is None:
        raise Refused(f"{what} is not set")
    return found


def needed_text(what: str, value: Any) -> str:
    """A text that is not empty."""
    found = text(what, value)
    if not found:
        raise Refused(f"{what} is empty")
    return found


def number(what: str, value: Any) -> int | None:
    """A whole number from 0 on, that may be not set."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise Refused(f"{what} is no number from 0 on")
    return value


def flag(what: str, value: Any) -> bool:
    """Yes or no; not set is no."""
    if value in (None, 0, 1, False, True):
        return bool(value)
    raise Refused(f"{what} is neither true nor false")


def moment(what: str, value: Any) -> int | None:
    """A time, which Glance keeps in UTC, in microseconds since 1970; may be not set."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError:
            raise Refused(f"{what} is no time") from None
    if not isinstance(value, datetime.datetime):
        raise Refused(f"{what} is no time")
    return from_time(value)


def needed_moment(what: str, value: Any) -> int:
    """A time that is set."""
    found = moment(what, value)
    if found is None:
        raise Refused(f"{what} is not set")
    return found


def one_of(what: str, value: Any, known: tuple[str, ...]) -> str:
    """One of these texts."""
    if value not in known:
        raise Refused(f"{what} is {value!r}, none of {', '.join(known)}")
    return str(value)


def json_object(what: str, value: Any) -> dict[str, Any]:
    """An object in JSON; not set is an empty one."""
    if value is None:
        return {}
    try:
        found = json.loads(value)
    except (TypeError, ValueError, RecursionError):
        raise Refused(f"{what} is not JSON") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise Refused(f"{what} is no object in JSON")
    return found


def dumped(what: str, value: Any) -> str:
    """A value as JSON."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        raise Refused(f"{what} has a number that JSON has no form for") from None
