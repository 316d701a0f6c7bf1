# SPDX-License-Identifier: Apache-2.0
"""The exit codes of ``storelib``: the one table that the command, its help and its docs go by."""

from __future__ import annotations

from storelib import exceptions as errors

FAILED = 1
USAGE = 2
IN_USE = 6
DIFFERENT = 9
INTERRUPTED = 130
TERMINATED = 143

#: The first line whose errors match decides.
TABLE: tuple[tuple[int, str, tuple[type[Exception], ...]], ...] = (
    (3, "there is no such image", (errors.NotFound,)),
    (4, "the image exists already", (errors.Duplicate, FileExistsError)),
    (5, "the store is full", (errors.StorageFull,)),
    (
        IN_USE,
        "not allowed, or in use",
        (errors.Forbidden, errors.StorageWriteDenied, errors.InUseByStore, errors.HasSnapshot),
    ),
    (7, "the store does not answer; try again later", (errors.RemoteServiceUnavailable, errors.TransferTimeout)),
    (8, "the store cannot do that", (errors.OperationNotSupported,)),
    (DIFFERENT, "the bytes are not those expected", (errors.IncompleteRead,)),
    (USAGE, "wrong usage, image id, URI or configuration", (errors.Invalid, errors.BadStoreConfiguration)),
    (FAILED, "anything else went wrong", (Exception,)),
)


def code_of(error: BaseException) -> int:
    """The exit code for an error."""
    return next((code for code, _, kinds in TABLE if isinstance(error, kinds)), FAILED)


def as_text() -> str:
    """The table for people, one line each."""
    lines = {0: "all went well", INTERRUPTED: "interrupted (Ctrl-C)", TERMINATED: "terminated"}
    lines |= {code: words for code, words, _ in TABLE}
    return "\n".join(f"{code:4}  {words}" for code, words in sorted(lines.items()))
