# SPDX-License-Identifier: Apache-2.0
"""Small helpers that drivers written for glance_store use."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def synchronized(*args: Any, **kwargs: Any) -> Callable[..., Any]:
    """A lock among the threads, or with ``external=True`` the processes, that use its name (oslo.concurrency)."""
    from oslo_concurrency import lockutils

    decorator: Callable[..., Any] = lockutils.synchronized_with_prefix("glance_store-")(*args, **kwargs)
    return decorator


def is_uuid_like(val: Any) -> bool:
    """Whether it is a UUID in the canonical form."""
    try:
        return bool(str(uuid.UUID(val)) == val)
    except (TypeError, ValueError, AttributeError):
        return False


def chunkreadable(iter: Any, chunk_size: int = 65536) -> Iterable[bytes]:  # noqa: A002  (glance_store's name)
    """A file in chunks; what has no ``read`` is an iterator already."""
    return chunkiter(iter, chunk_size) if hasattr(iter, "read") else iter


def chunkiter(fp: Any, chunk_size: int = 65536) -> Iterator[bytes]:
    """A file in chunks, to its end."""
    while chunk := fp.read(chunk_size):
        yield chunk


def get_hasher(hash_algo: str, usedforsecurity: bool = True) -> Any:
    """A hash object of hashlib; without ``usedforsecurity`` also where a policy forbids md5."""
    return hashlib.new(str(hash_algo), usedforsecurity=usedforsecurity)
