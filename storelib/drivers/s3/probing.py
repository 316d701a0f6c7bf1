# SPDX-License-Identifier: Apache-2.0
"""Finding out what a server makes of If-None-Match: some refuse, some ignore it, some honour it only in a PUT."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from typing import TYPE_CHECKING

from storelib.driver import Digests, Part
from storelib.drivers.s3.writer import S3Writer
from storelib.exceptions import Duplicate

if TYPE_CHECKING:
    from storelib.drivers.s3.store import S3Store

#: Deeper than images lie, so that no list shows it.
PREFIX = ".storelib-check/"


def honours_conditions(store: S3Store) -> tuple[bool, bool]:
    """Whether a PUT, and whether completing an upload, fail over an object that exists; tried as images are added."""
    image_id = f"{PREFIX}{secrets.token_hex(16)}"
    with contextlib.ExitStack() as taken_back:
        _put(store, image_id, b"1", taken_back)
        put = complete = False
        try:
            _put(store, image_id, b"2", taken_back)
        except Duplicate:
            put = True
        try:
            _upload(store, image_id, b"3", taken_back)
        except Duplicate:
            complete = True
        # Where the server refuses the condition itself, it was a look that found the object.
        return put and store.conditional_put, complete and store.asks_at_completion


def _put(store: S3Store, image_id: str, data: bytes, taken_back: contextlib.ExitStack) -> None:
    writer = S3Writer(store, image_id)
    taken_back.callback(writer.abort)
    writer.put_whole(memoryview(data), _digests(data))


def _upload(store: S3Store, image_id: str, data: bytes, taken_back: contextlib.ExitStack) -> None:
    writer = S3Writer(store, image_id)
    taken_back.callback(writer.abort)
    writer.reserve(len(data))
    writer.write(Part(0, 0, memoryview(data)))
    writer.complete(look=False)


def _digests(data: bytes) -> Digests:
    return Digests(None, hashlib.sha512(data).hexdigest())
