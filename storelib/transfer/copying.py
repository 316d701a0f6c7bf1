# SPDX-License-Identifier: Apache-2.0
"""Copies that the back end makes by itself: the one template for all drivers that can (``ServerSideCopy``)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from storelib.transfer.calls import DriverCalls
from storelib.transfer.contract import (
    Backend,
    Committed,
    Context,
    Digests,
    MiB,
    Progress,
    ServerSideCopy,
    StoredImage,
    at_fault,
    check_given,
    check_numbers,
    is_whole,
)
from storelib.transfer.monitor import Monitor
from storelib.uris import StoreLocation

#: Bytes that a back end copies in a second at least, while it tells nothing of how far it has come.
SLOWEST = 4 * MiB


def copy_within(
    store: Backend, source: Any, image_id: str, digests: Digests, context: Context | None, progress: Progress | None
) -> StoredImage | None:
    """Have the back end of ``store`` copy the image at ``source``; None where it cannot, before anything is done.

    ``progress`` runs in the caller's thread. Whatever it or the back end raises ends the copy and passes through, after
    what was made of it is removed.
    """
    check_given(progress, digests)
    monitor = Monitor(store.retry_policy.timeout)
    subject = f"image {image_id!r} in store {store.name}, a copy of {source}"
    calls = DriverCalls(store, subject, monitor)
    opened: list[ServerSideCopy] = []

    def open_copy() -> ServerSideCopy | None:
        copying = store.server_side_copy(source, image_id, context)
        if copying is None:
            return None
        if not isinstance(copying, ServerSideCopy):
            raise at_fault(subject, "what server_side_copy gave", copying)
        opened.append(copying)
        return copying

    try:
        copying: ServerSideCopy | None = calls.call(open_copy)
        if copying is None:
            return None
        _check(copying, subject)
        monitor.allow(max((copying.moved_at_once, *copying.parts)) / SLOWEST)
        committed = _run(calls, copying, digests, progress)
        if not isinstance(getattr(committed, "location", None), StoreLocation):
            raise at_fault(subject, f"what commit of {type(copying).__name__} gave", committed)
    except BaseException:
        monitor.cancel()
        calls.abort(lambda: _abort(opened))
        raise
    finally:
        calls.close(lambda: _close(opened))
        calls.forget()
    metadata = {**committed.metadata, "store": store.name}
    return StoredImage(committed.location.uri, copying.size, digests.checksum, digests.multihash, metadata)


def _check(copying: ServerSideCopy, subject: str) -> None:
    """Raise StoreError for numbers that cannot be."""
    check_numbers(copying, subject, size=0, concurrency=1, moved_at_once=0)
    parts = copying.parts
    whole = isinstance(parts, Sequence) and all(is_whole(length) and length > 0 for length in parts)
    if not whole or (parts and sum(parts) != copying.size):
        raise at_fault(subject, f"parts of {type(copying).__name__}", parts)


def _abort(opened: list[ServerSideCopy]) -> None:
    for copying in opened:
        copying.abort()


def _run(calls: DriverCalls, copying: ServerSideCopy, digests: Digests, progress: Progress | None) -> Committed:
    """Everything between opening the copy and its result; ``progress`` has the last word before it is published."""
    report = progress or (lambda done, total: None)
    report(0, copying.size)
    calls.call(copying.begin)
    done = 0
    tasks = []
    for number, length in enumerate(copying.parts):
        call = functools.partial(copying.copy_part, number, done, length)
        tasks.append((calls.start(call, at_once=copying.concurrency), length))
        done += length
    done = 0
    for task, length in tasks:
        calls.wait(task)
        done += length
        report(done, copying.size)
    if not tasks:
        report(copying.size, copying.size)
    committed: Committed = calls.call(lambda: copying.commit(digests))
    return committed


def _close(opened: list[ServerSideCopy]) -> None:
    for copying in opened:
        copying.close()
