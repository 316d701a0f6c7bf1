# SPDX-License-Identifier: Apache-2.0
"""Images as objects in one bucket of Amazon S3 or of anything that speaks its protocol.

A small image is one conditional PUT, a larger one a multipart upload that becomes visible when it is completed. Every
object carries a random token of the add that made it, so that "exists already" can be told from "I did that".
"""

from storelib.drivers.s3.location import S3Location
from storelib.drivers.s3.store import S3Store

__all__ = ["S3Location", "S3Store"]
