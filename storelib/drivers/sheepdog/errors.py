# SPDX-License-Identifier: Apache-2.0
"""What an exit code and a complaint of ``dog`` mean: the only place that knows.

Exit codes: 1 failure, 2 no daemon, 3 exists, 4 full, 5 missing, 64 usage. Most failures are 1, and a daemon that is not
there can be any of the first five, so the text counts first.
"""

from __future__ import annotations

from collections.abc import Sequence

from storelib.drivers.sheepdog.location import is_temporary
from storelib.exceptions import (
    Duplicate,
    ImageChanged,
    NotFound,
    RemoteServiceUnavailable,
    StorageFull,
    StoreError,
    TransferTimeout,
)

#: How a line begins or ends; between is the name of a vdi, which may be any text.
_TEXTS: Sequence[tuple[str, type[StoreError]]] = (
    ("failed to connect to", RemoteServiceUnavailable),
    ("No VDI found", NotFound),
    ("Failed to find requested tag", NotFound),
    ("VDI exists already", Duplicate),
    ("Server has no space for new objects", StorageFull),
    ("Maximum number of VDIs reached", StorageFull),
    ("VDI size is larger than", StorageFull),
    ("VDI size is too large", StorageFull),
    ("offset is beyond the end of the VDI", ImageChanged),
)
_CODES: dict[int, type[StoreError]] = {3: Duplicate, 4: StorageFull, 5: NotFound, 64: StoreError}


class CommandError(Exception):
    """A command that did not do what it was asked to."""

    def __init__(self, arguments: Sequence[str], what: str) -> None:
        super().__init__(f"dog vdi {' '.join(arguments)}: {what}")
        self.arguments = tuple(arguments)


class CommandFailed(CommandError):
    """It ended with another exit code than 0."""

    def __init__(self, arguments: Sequence[str], code: int, complaint: str) -> None:
        ended = f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
        said = first_line(complaint)
        super().__init__(arguments, f"{said} ({ended})" if said else ended)
        #: The class of the storelib error; what is not known passes, as do daemons that are not there.
        self.meaning = meaning_of(complaint) or _CODES.get(code, RemoteServiceUnavailable)


class CommandCut(CommandError):
    """It ended with exit code 0 and moved fewer bytes than it was asked to."""


class CommandHung(CommandError):
    """Nothing moved, so it was killed; as with a daemon that is stopped."""


def meaning_of(complaint: str) -> type[StoreError] | None:
    """What dog says that it was not able to do; None if it says nothing that is known."""
    lines = complaint.splitlines()
    for text, meaning in _TEXTS:
        if any(line.startswith(text) or line.endswith(text) for line in lines):
            return meaning
    return None


def first_line(complaint: str) -> str:
    """As much of a complaint as goes into a message."""
    return next(iter(complaint.strip().splitlines()), "")[:300]


def storelib_error(error: Exception, subject: str) -> StoreError | None:
    """The storelib error for what a command, or starting one, raised; None for anything else."""
    text = f"{subject}: {error}"
    if isinstance(error, CommandFailed):
        # What vanishes while it is written was no image yet.
        missing_part = error.meaning is NotFound and any(map(is_temporary, error.arguments))
        if missing_part:
            return StoreError(f"{text}; another client removed what was being written, perhaps gc of another process")
        return error.meaning(text)
    if isinstance(error, CommandHung):
        return TransferTimeout(f"{text} (option sheepdog_store_timeout)")
    if isinstance(error, CommandCut):
        return RemoteServiceUnavailable(text)
    if isinstance(error, OSError):
        return RemoteServiceUnavailable(f"{subject}: dog cannot be run: {error.strerror or error}")
    return None
