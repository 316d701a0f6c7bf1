# SPDX-License-Identifier: Apache-2.0
"""Looking through all places of one store, such as its data directories, where some may be away."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from storelib.transfer import deadlines

T = TypeVar("T")


def everywhere(looks: Iterable[Callable[[], Iterable[T]]]) -> Iterator[T]:
    """What all of these find, one after the other; the first error is raised when the last has had its turn.

    So what can be reached is found, and nobody takes it for all there is. What a look raises is to be about its own
    place: what keeps the others from succeeding, too, would be tried as often.
    """
    errors: list[Exception] = []
    for look in looks:
        # What hung in another place has used up none of the time of this one.
        deadlines.progress()
        try:
            yield from look()
        except Exception as error:  # noqa: BLE001  (raised below)
            if not errors:
                errors.append(error)
    if errors:
        # Taken out: it refers to frames that refer to the list.
        raise errors.pop()
