# SPDX-License-Identifier: Apache-2.0
"""The one sentence for what an extra would install, whatever part misses it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from storelib.exceptions import MissingDependency


def needs(what: str, extra: str, package: str | None = None) -> str:
    """Say that ``what`` needs ``package``, or a package, and how the extra that has it is installed."""
    return f"{what} needs {package or 'an extra package'}; install it with: pip install 'storelib[{extra}]'"


@contextlib.contextmanager
def needing(what: str, extra: str) -> Iterator[None]:
    """Around imports of an extra's packages; raises MissingDependency for one that is not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "storelib").partition(".")[0]
        if package == "storelib":
            raise
        raise MissingDependency(needs(what, extra, package)) from error
