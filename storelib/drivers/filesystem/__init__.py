# SPDX-License-Identifier: Apache-2.0
"""Images as regular files in one or more data directories.

A file gets its name only when it is whole, and never overwrites; until then it is an unnamed file, or a part file where
the file system has no O_TMPFILE (``publication``). Every path is opened component by component below the data directory
and never through a symbolic link (``datadirs``).
"""

from storelib.drivers.filesystem.location import FileLocation
from storelib.drivers.filesystem.store import FilesystemStore

__all__ = ["FileLocation", "FilesystemStore"]
