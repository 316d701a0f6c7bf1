# SPDX-License-Identifier: Apache-2.0
"""What failed adds left behind: multipart uploads in which nothing happens any more."""

from __future__ import annotations

import time
from collections.abc import Iterator

from storelib.driver import Garbage
from storelib.drivers.s3.bucket import Bucket
from storelib.drivers.s3.errors import GONE, BadAnswer, error_code, names_itself


def find(bucket: Bucket, older_than: float, prefix: str | None) -> Iterator[Garbage]:
    """Uploads of images whose ids begin with ``prefix`` in which nothing happened for ``older_than`` seconds."""
    latest = time.time() - older_than
    start = f"{bucket.prefix}{prefix or ''}"
    for upload in bucket.listed("list_multipart_uploads", Prefix=start):
        initiated = upload["Initiated"].timestamp()
        # Not every server restricts the list to the prefix.
        if not upload["Key"].startswith(start) or bucket.image_id(upload["Key"]) is None or initiated > latest:
            continue
        item = _dead(bucket, upload["Key"], upload["UploadId"], initiated)
        if item is not None and item.modified <= latest:
            yield item


def discard(bucket: Bucket, item: Garbage) -> bool:
    """Abort the upload; False if something has happened in it since, or it is gone."""
    key, upload_id, initiated = item.handle
    now = _dead(bucket, key, upload_id, initiated)
    if now is None or now.modified > item.modified:
        return False
    try:
        response = bucket.call("abort_multipart_upload", Bucket=bucket.name, Key=key, UploadId=upload_id)
    except Exception as error:
        if error_code(error) in GONE:
            return False
        raise
    if not names_itself(response) and _dead(bucket, key, upload_id, initiated) is not None:
        raise BadAnswer("AbortMultipartUpload", "no content")
    return True


def _dead(bucket: Bucket, key: str, upload_id: str, initiated: float) -> Garbage | None:
    """An upload with its size and the time of its last part; None if it is gone, or this process's own."""
    if upload_id in bucket.live:
        return None
    size, modified = 0, initiated
    try:
        for part in bucket.listed("list_parts", Key=key, UploadId=upload_id):
            size += part["Size"]
            modified = max(modified, part["LastModified"].timestamp())
    except Exception as error:
        if error_code(error) in GONE:
            return None
        raise
    return Garbage(f"{key} (upload {upload_id})", bucket.image_id(key), size, modified, (key, upload_id, initiated))
