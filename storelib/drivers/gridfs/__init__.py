# SPDX-License-Identifier: Apache-2.0
"""Images as files of MongoDB's GridFS, which every GridFS client can read.

The record of an image in the files collection is made when its first bytes go out, and becomes the image by one atomic
update once all chunks are there. A unique index lets one of several adds of an id succeed.
"""

from storelib.drivers.gridfs.location import GridfsLocation
from storelib.drivers.gridfs.store import GridfsStore

__all__ = ["GridfsLocation", "GridfsStore"]
