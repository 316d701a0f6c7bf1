# SPDX-License-Identifier: Apache-2.0
"""What clients write in bodies, headers, paths and query strings: JSON, whole numbers and media types.

Falcon's own helpers read numbers as ``int`` does: signs, spaces, underscores, digits of every script, any length.
"""

from __future__ import annotations

import json
from typing import Any

from storelib.api.errors import BadRequest, LimitExceeded

#: Values in one body at most. Checking one by its schema costs some 40 microseconds of the interpreter that all share.
MOST_VALUES = 10_000
#: Levels of arrays and objects in one body at most. What was read at a smaller depth of calls cannot be written at a
#: greater one.
DEEPEST = 64
#: Digits of the largest number that a database keeps. Python refuses to read numbers of thousands of digits.
LONGEST = 19


def whole_number(text: str) -> int | None:
    """The number of up to 19 digits that ``text`` is; None for anything else.

    >>> whole_number("42"), whole_number("-1"), whole_number("9" * 20)
    (42, None, None)
    """
    digits = text.isascii() and text.isdigit() and len(text) <= LONGEST
    return int(text) if digits else None


def required_number(name: str, text: str | None, largest: int | None = None) -> int:
    """The number of up to 19 digits, and at most ``largest``, that ``text`` is; raises BadRequest naming ``name``."""
    number = None if text is None else whole_number(text)
    if number is None or (largest is not None and number > largest):
        raise BadRequest(f"{name} must be a whole number, 0 or more, not {text!r}")
    return number


def page_size(text: str | None, default: int, largest: int) -> int:
    """How many items a list returns to a client that asks for ``text``, None where it does not; raises BadRequest."""
    return default if text is None else min(required_number("limit", text), largest)


def media_type(content_type: str | None) -> str:
    """The media type in a Content-Type header, in lower case and without parameters; empty where there is none.

    >>> media_type("Application/JSON; charset=UTF-8")
    'application/json'
    """
    return (content_type or "").partition(";")[0].strip().lower()


def from_json(body: bytes, most: int = MOST_VALUES) -> Any:
    """What a body in JSON says, which can be kept and written again.

    Raises BadRequest for what is no JSON, too deep, no Unicode or no number, LimitExceeded for over ``most`` values.
    """
    try:
        found = json.loads(body, parse_constant=_no_number, parse_float=_finite, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    _check_values(found, most)
    return found


def _check_values(found: Any, most: int) -> None:
    level, left = [found], most
    for _ in range(DEEPEST + 1):
        below: list[Any] = []
        for value in level:
            if isinstance(value, str):
                _check_text(value)
            elif isinstance(value, dict):
                left -= len(value)
                for name in value:
                    _check_text(name)
                below += value.values()
            elif isinstance(value, list):
                left -= len(value)
                below += value
            if left < 0:
                raise LimitExceeded(f"the body may have {most} values")
        if not below:
            return
        level = below
    raise BadRequest(f"the body may have {DEEPEST} levels of arrays and objects")


def _check_text(text: str) -> None:
    # JSON can say halves of characters, which nothing else can.
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadRequest(f"{text[:80]!r} is no valid Unicode text") from None


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a number in JSON")


def _whole(text: str) -> int:
    # As long as the largest that others can read.
    if len(text) > 309:
        raise ValueError(f"{text[:20]}... is too large a number")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:80]} is too large a number")
    return number
