# SPDX-License-Identifier: Apache-2.0
"""Kinds of values that options take, checked before anything is read, opened or asked."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from storelib.driver import Digest

#: Seconds; longer ago than anything was. Of more, Python may have no time.
_LONG_AGO = 100 * 365 * 86400.0
#: Seconds that a command may be told to wait: Python waits for no more than about nine times as many.
_LONGEST = 1_000_000_000
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


# ParamType is generic from click 8.2 on.
class Age(click.ParamType):  # type: ignore[type-arg]
    """Seconds, written as 90, 15m, 12h, 1d or 2w."""

    name = "age"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        """The seconds that an age stands for."""
        if isinstance(value, (int, float)):
            return float(value)
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhdw]?)", value.strip().lower())
        if match is None:
            self.fail(f"{value!r} is not an age; write 90, 15m, 12h, 1d or 2w", parameter, context)
        return min(float(match[1]) * _UNITS[match[2]], _LONG_AGO)


class Seconds(click.FloatRange):
    """A number of seconds; neither nan, which no comparison refuses, nor more than can be waited."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        """The number, if it is one that can be waited."""
        number: float = super().convert(value, parameter, context)
        if not math.isfinite(number) or number > _LONGEST:
            self.fail(f"{value!r} is not a number of seconds", parameter, context)
        return number


class Rate(click.ParamType):  # type: ignore[type-arg]
    """Bytes per second, written as 500K, 80M or 1.5G, with an optional iB or B behind it; powers of 1024."""

    name = "rate"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        """The bytes that a rate stands for."""
        if isinstance(value, (int, float)):
            return float(value)
        found = _bytes_of(value.strip().upper().removesuffix("/S"))
        if not found:
            self.fail(f"{value!r} is not a number of bytes per second; write 500K, 80M or 1.5G", parameter, context)
        return found


class Bytes(click.ParamType):  # type: ignore[type-arg]
    """A number of bytes, at least one, written as 4096, 500K, 80M or 1.5G; powers of 1024."""

    name = "size"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int:
        """The bytes that a size stands for."""
        if isinstance(value, int):
            return value
        found = _bytes_of(value.strip().upper())
        if not found or found < 1:
            self.fail(f"{value!r} is not a size in bytes; write 4096, 500K, 80M or 1.5G", parameter, context)
        return int(found)


def _bytes_of(text: str) -> float | None:
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s?([KMGT]?)(?:I?B)?", text)
    return match and float(match[1]) * float(1024 ** " KMGT".index(match[2] or " "))


class DigestText(click.ParamType):  # type: ignore[type-arg]
    """A digest as NAME:HEX, which has to be one that can be computed here."""

    name = "digest"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Digest:
        """The digest, if it can be computed here."""
        from storelib.exceptions import Invalid
        from storelib.transfer.verifying import parse

        try:
            return parse(value)
        except Invalid as error:
            self.fail(str(error), parameter, context)


class Name(click.ParamType):  # type: ignore[type-arg]
    """A text that is not empty: what a script's unset variable leaves must not mean "choose one yourself"."""

    name = "text"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        """The text as it is, if there is any."""
        if not value:
            self.fail("it is empty; leave the option out, or say which", parameter, context)
        return str(value)
