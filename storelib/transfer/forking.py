# SPDX-License-Identifier: Apache-2.0
"""What a forked child must forget: connections are its parent's, and locks may be held by threads it does not have."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class ForgetsParent(Protocol):
    """An object with connections or locks."""

    def forget_parent(self) -> None:
        """In a forked child: neither use nor close the parent's connections, nor wait for a lock its threads held."""


_known: weakref.WeakSet[ForgetsParent] = weakref.WeakSet()


def forget_in_child(owner: ForgetsParent) -> None:
    """Have ``owner.forget_parent()`` called in each child that is forked as long as ``owner`` lives."""
    _known.add(owner)


def _forget_parents() -> None:
    for owner in list(_known):
        owner.forget_parent()


os.register_at_fork(after_in_child=_forget_parents)
