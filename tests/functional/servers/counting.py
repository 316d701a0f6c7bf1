# SPDX-License-Identifier: Apache-2.0
"""What an operation costs, counted: no clock is asked, so a busy machine changes nothing."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable


def calls_of(function: Callable[[], object]) -> Counter[str]:
    """How often each function, of Python or of C, is called in this thread while ``function()`` runs."""
    counted: Counter[str] = Counter()

    def count(frame, event, argument):
        if event == "call":
            counted[f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}"] += 1
        elif event == "c_call":
            counted[f"{getattr(argument, '__module__', None)}.{argument.__name__}"] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(before)
    return counted
