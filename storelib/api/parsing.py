# SPDX-License-Identifier: Apache-2.0
"""Whole numbers as clients write them in headers, paths and query strings."""

from __future__ import annotations

#: Digits of the largest number that a database keeps. Python refuses to read numbers of thousands of digits.
LONGEST = 19


def whole_number(text: str) -> int | None:
    """The number of up to 19 digits that ``text`` is; None for anything else.

    >>> whole_number("42"), whole_number("-1"), whole_number("9" * 20)
    (42, None, None)
    """
    digits = text.isascii() and text.isdigit() and len(text) <= LONGEST
    return int(text) if digits else None
