# SPDX-License-Identifier: Apache-2.0
"""What clients write in headers, paths and query strings: whole numbers and media types.

Falcon's own helpers read numbers as ``int`` does: signs, spaces, underscores, digits of every script, any length.
"""

from __future__ import annotations

from storelib.api.errors import BadRequest

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
