# SPDX-License-Identifier: Apache-2.0
"""Finding out what a server makes of If-None-Match: some refuse, some ignore it, some honour it only in a PUT."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from storelib.drivers.s3.errors import error_code

if TYPE_CHECKING:
    from storelib.drivers.s3.store import S3Store


def honours_conditions(store: S3Store) -> tuple[bool, bool]:
    """Whether a PUT, and whether completing an upload, fail over an object that exists; tried on one of its own."""
    client = store.client.get()
    # Deeper than images lie, so that no list shows it.
    target = store.location(".storelib-check")
    own = {"Bucket": target.bucket, "Key": f"{target.key}/{secrets.token_hex(16)}"}
    settings = store.object_settings
    client.put_object(**own, **settings, Body=b"1")
    try:
        put = _refused(lambda: client.put_object(**own, **settings, Body=b"2", IfNoneMatch="*"))
        return put, _refused(lambda: _upload(store, client, own))
    finally:
        client.delete_object(**own)


def _upload(store: S3Store, client: Any, own: dict[str, str]) -> None:
    upload = {**own, "UploadId": client.create_multipart_upload(**own, **store.object_settings)["UploadId"]}
    try:
        part = client.upload_part(**upload, PartNumber=1, Body=b"3", **store.client.customer_key)
        parts = [{"PartNumber": 1, "ETag": part["ETag"]}]
        client.complete_multipart_upload(
            **upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*", **store.client.customer_key
        )
    except Exception:
        with contextlib.suppress(Exception):
            client.abort_multipart_upload(**upload)
        raise


def _refused(write: Callable[[], object]) -> bool:
    """Whether the answer was that there is an object already."""
    try:
        write()
    except Exception as error:
        if error_code(error) in ("PreconditionFailed", "412"):
            return True
        if error_code(error) == "NotImplemented":
            return False
        raise
    return False
