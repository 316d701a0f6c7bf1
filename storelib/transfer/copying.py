# SPDX-License-Identifier: Apache-2.0
"""Copies that the back end makes by itself: the one template for all drivers that can (``ServerSideCopy``)."""

from __future__ import annotations

import functools
from typing import Any

from storelib.transfer.contract import Backend, Committed, Digests, MiB, Progress, ServerSideCopy, StoredImage
from storelib.transfer.monitor import Monitor
from storelib.transfer.tasks import TaskQueue

#: Bytes that a back end copies in a second at least, while it tells nothing of how far it has come.
SLOWEST = 4 * MiB


def copy_within(
    store: Backend, source: Any, image_id: str, digests: Digests, context: Any, progress: Progress | None
) -> StoredImage | None:
    """Have the back end of ``store`` copy the image at ``source``; None where it cannot, before anything is done.

    ``progress`` runs in the caller's thread. Whatever it or the back end raises ends the copy and passes through, after
    what was made of it is removed.
    """
    monitor = Monitor(store.retry_policy.timeout)
    queue = TaskQueue(store, f"image {image_id!r} in store {store.name}, a copy of {source}", monitor)
    opened: list[ServerSideCopy] = []

    def open_copy() -> ServerSideCopy | None:
        copying = store.server_side_copy(source, image_id, context)
        opened.extend([copying] if copying is not None else [])
        return copying

    try:
        copying: ServerSideCopy | None = queue.call(open_copy)
        if copying is None:
            return None
        monitor.allow(copying.moved_at_once / SLOWEST)
        committed = _run(queue, copying, digests, progress)
    except BaseException:
        monitor.cancel()
        queue.abort(lambda: _abort(opened))
        raise
    finally:
        queue.join()
        for copying in opened:
            queue.close(copying.close)
    metadata = {**committed.metadata, "store": store.name}
    return StoredImage(committed.location.uri, copying.size, digests.checksum, digests.multihash, metadata)


def _abort(opened: list[ServerSideCopy]) -> None:
    for copying in opened:
        copying.abort()


def _run(queue: TaskQueue, copying: ServerSideCopy, digests: Digests, progress: Progress | None) -> Committed:
    """Everything between opening the copy and its result; ``progress`` has the last word before it is published."""
    report = progress or (lambda done, total: None)
    report(0, copying.size)
    queue.call(copying.begin)
    done = 0
    tasks = []
    for number, length in enumerate(copying.parts):
        call = functools.partial(copying.copy_part, number, done, length)
        tasks.append((queue.start(call, at_once=copying.concurrency), length))
        done += length
    done = 0
    for task, length in tasks:
        queue.wait(task)
        done += length
        report(done, copying.size)
    if not tasks:
        report(copying.size, copying.size)
    committed: Committed = queue.call(lambda: copying.commit(digests))
    return committed
