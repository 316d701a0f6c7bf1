# SPDX-License-Identifier: Apache-2.0
"""Regular expressions of the operator's that are looked for in names and values of the users' choice, in bounded time.

Python's own go back and try again, for an hour if an expression like ``(a+)+b`` meets a name like ``aaaa...``. Those
that have little to choose from are left to it. Of the others all ways to match are followed at once, character by
character (Thompson, 1968).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any

with warnings.catch_warnings():
    # The parser of ``re`` has no public name; until Python 3.11 it was a module of its own.
    warnings.simplefilter("ignore", DeprecationWarning)
    try:
        from re import _parser as parser  # type: ignore[attr-defined]
    except ImportError:
        import sre_parse as parser

#: What Python's own way may have to choose from, and what a repetition without an end counts.
SOME, ENDLESS = 7, 4
#: Places in an expression at most, with each repetition counted as often as it has to be there.
LARGEST = 2000
#: Characters of what expressions that take more than linear time are looked for in.
LONGEST = 255

_CATEGORIES: dict[str, tuple[str, bool]] = {
    "CATEGORY_DIGIT": (r"\d", True),
    "CATEGORY_NOT_DIGIT": (r"\d", False),
    "CATEGORY_SPACE": (r"\s", True),
    "CATEGORY_NOT_SPACE": (r"\s", False),
    "CATEGORY_WORD": (r"\w", True),
    "CATEGORY_NOT_WORD": (r"\w", False),
}
_REPEATS = ("MAX_REPEAT", "MIN_REPEAT")

Fits = Callable[[str], bool]
#: Whether the text may be here, between its characters.
At = Callable[[str, int], bool]


class TooSlow(ValueError):
    """An expression that neither way can look for in bounded time."""


def is_expression(text: str) -> bool:
    """Whether ``text`` is a regular expression.

    It is read and not compiled: that looks at each character of each range, of which a short text can have millions.

    >>> is_expression("a+"), is_expression("(")
    (True, False)
    """
    try:
        parser.parse(text)
    # ValueError is for flags that exclude each other.
    except (re.error, ValueError, RecursionError, OverflowError):
        return False
    return True


class Pattern:
    """An expression to be looked for, in any case with ``re.IGNORECASE``. Raises re.error for what is none, TooSlow."""

    def __init__(self, text: str, flags: int = 0) -> None:
        self._plain = re.compile(text, flags)
        tree = parser.parse(text, flags)
        self._paths: _Paths | None = None
        if _choices(tree) > SOME:
            try:
                self._paths = _Paths(tree, self._plain.flags)
            except _NotKnown as error:
                raise TooSlow(f"{error} together with repetitions may take for ever") from error
        first = str(tree[0][0]) + str(tree[0][1]) if len(tree) else ""
        begins = first.startswith("ATAT_BEGINNING") and not self._plain.flags & re.MULTILINE
        #: Whether it takes as much longer as the text is longer: what is looked for at the beginning only.
        self.is_linear = self._paths is None and begins

    def takes(self, text: str) -> bool:
        """Whether ``text`` is of a length at which looking for this takes bounded time."""
        return self.is_linear or len(text) <= LONGEST

    def search(self, text: str) -> bool:
        """Whether some part of ``text`` matches."""
        return self._plain.search(text) is not None if self._paths is None else self._paths.search(text)


class _NotKnown(Exception):
    """A part of an expression that is left to ``re``."""


def _choices(tree: Iterable[Any], repeated: bool = False) -> int:
    """How much there is to choose: with SOME at most Python's time grows no faster than the square of the name."""
    # Each choice in a repetition is made again and again.
    once = SOME + 1 if repeated else 1
    count = 0
    for kind, value in tree:
        name = str(kind)
        if name.endswith("_REPEAT"):
            low, high, inner = value
            if high != low:
                count += once if high - low == 1 else max(once, ENDLESS)
            count += _choices(inner, repeated or high > 1)
        elif name == "BRANCH":
            count += once * len(value[1]) + sum(_choices(branch, repeated) for branch in value[1])
        elif name == "SUBPATTERN":
            count += _choices(value[3], repeated)
        elif name in ("ASSERT", "ASSERT_NOT"):
            count += _choices(value[1], repeated)
        elif name == "ATOMIC_GROUP":
            count += _choices(value, repeated)
        elif name == "GROUPREF_EXISTS":
            count += once + sum(_choices(branch, repeated) for branch in value[1:] if branch)
    return count


class _Paths:
    """All places of an expression. Each has what leads on: a character that fits, a condition, or nothing."""

    def __init__(self, tree: Iterable[Any], flags: int) -> None:
        self._flags = flags
        # (fits, at, where it goes on); both None: at once.
        self._places: list[tuple[Fits | None, At | None, list[int]]] = []
        self._begin = self._sequence(tree, self._place(None, None, []))

    def search(self, text: str) -> bool:
        """Whether some part of ``text`` matches."""
        current: set[int] = set()
        for position in range(len(text) + 1):
            current |= {self._begin}
            reached = self._reached(current, text, position)
            # The first place that was made is the end.
            if 0 in reached:
                return True
            if position < len(text):
                character = text[position]
                current = set()
                for place in reached:
                    fits, _, following = self._places[place]
                    if fits is not None and fits(character):
                        current.update(following)
        return False

    def _reached(self, places: set[int], text: str, position: int) -> set[int]:
        """These places and those that are reached from them without a character."""
        found, left = set(places), list(places)
        while left:
            fits, at, following = self._places[left.pop()]
            if fits is None and (at is None or at(text, position)):
                new = [place for place in following if place not in found]
                found.update(new)
                left += new
        return found

    def _place(self, fits: Fits | None, at: At | None, following: list[int]) -> int:
        if len(self._places) >= LARGEST:
            raise _NotKnown("so large an expression")
        self._places.append((fits, at, following))
        return len(self._places) - 1

    def _sequence(self, tree: Iterable[Any], following: int) -> int:
        for kind, value in reversed(list(tree)):
            following = self._part(str(kind), value, following)
        return following

    def _part(self, kind: str, value: Any, following: int) -> int:
        if kind in _REPEATS:
            low, high, inner = value
            return self._repeat(low, high, inner, following)
        if kind == "BRANCH":
            return self._place(None, None, [self._sequence(branch, following) for branch in value[1]])
        if kind == "SUBPATTERN":
            _, added, removed, inner = value
            if added or removed:
                raise _NotKnown("a change of flags")
            return self._sequence(inner, following)
        if kind == "AT":
            return self._place(None, self._at(str(value)), [following])
        return self._place(self._fits(kind, value), None, [following])

    def _repeat(self, low: int, high: Any, inner: Any, following: int) -> int:
        if high == parser.MAXREPEAT:
            loop = self._place(None, None, [following])
            self._places[loop][2].append(self._sequence(inner, loop))
            following = loop
        else:
            end = following
            for _ in range(high - low):
                following = self._place(None, None, [end, self._sequence(inner, following)])
        for _ in range(low):
            following = self._sequence(inner, following)
        return following

    def _at(self, kind: str) -> At:
        several = bool(self._flags & re.MULTILINE)
        if kind == "AT_BEGINNING":
            return lambda text, at: at == 0 or (several and text[at - 1] == "\n")
        if kind == "AT_BEGINNING_STRING":
            return lambda text, at: at == 0
        if kind == "AT_END":
            return lambda text, at: text[at:] in ("", "\n") or (several and text[at] == "\n")
        if kind == "AT_END_STRING":
            return lambda text, at: at == len(text)
        if kind in ("AT_BOUNDARY", "AT_NON_BOUNDARY"):
            boundary = re.compile(r"\b")
            return lambda text, at: (boundary.match(text, at) is not None) == (kind == "AT_BOUNDARY")
        raise _NotKnown(kind)

    def _fits(self, kind: str, value: Any) -> Fits:
        ignored = bool(self._flags & re.IGNORECASE)

        def in_all_cases(fits: Fits) -> Fits:
            if not ignored:
                return fits
            return lambda character: fits(character) or fits(character.lower()) or fits(character.upper())

        if kind == "LITERAL":
            return in_all_cases(lambda character: character == chr(value))
        if kind == "NOT_LITERAL":
            same = in_all_cases(lambda character: character == chr(value))
            return lambda character: not same(character)
        if kind == "ANY":
            return lambda character: character != "\n" or bool(self._flags & re.DOTALL)
        if kind == "IN":
            return self._one_of(value, in_all_cases)
        if kind == "RANGE":
            low, high = value
            return lambda character: len(character) == 1 and low <= ord(character) <= high
        if kind == "CATEGORY" and str(value) in _CATEGORIES:
            text, wanted = _CATEGORIES[str(value)]
            category = re.compile(text, self._flags & re.ASCII)
            return lambda character: (category.match(character) is not None) == wanted
        raise _NotKnown(kind)

    def _one_of(self, members: Iterable[Any], in_all_cases: Callable[[Fits], Fits]) -> Fits:
        members = [(str(kind), value) for kind, value in members]
        negated = members[0][0] == "NEGATE"
        several = [self._fits(kind, value) for kind, value in (members[1:] if negated else members)]
        some = in_all_cases(lambda character: any(fits(character) for fits in several))
        return lambda character: some(character) != negated
