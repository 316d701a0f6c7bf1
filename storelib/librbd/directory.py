# SPDX-License-Identifier: Apache-2.0
"""The directory of a pool: which names its images have, asked for where it lies, in the omap of one object.

librbd lists all of it, image by image. Its keys are ``name_`` and the name (cls_rbd.cc), with RBD's id as the value; so
names that begin alike lie together, and are found among a hundred thousand as fast as among ten.
"""

from __future__ import annotations

from collections.abc import Iterator

from storelib.librbd.cluster import Connection

_OBJECT = "rbd_directory"
_KEY = "name_"
#: Names in one response.
_PAGE = 1000


def names(connection: Connection, prefix: str) -> Iterator[str]:
    """The names that begin with ``prefix``, in order."""
    after = ""
    while True:
        page = list(_page(connection, after, f"{_KEY}{prefix}", _PAGE))
        yield from (name.removeprefix(_KEY) for name, _ in page)
        if len(page) < _PAGE:
            return
        after = page[-1][0]


def id_at(connection: Connection, name: str) -> str | None:
    """RBD's id of the image that the directory has under this name; None where it has none."""
    key = f"{_KEY}{name}"
    # The first with this prefix is the name itself, if it is there.
    for found, value in _page(connection, "", key, 1):
        if found == key:
            # A string as Ceph encodes it: four bytes of its length, then itself.
            return value[4:].decode()
    return None


def _page(connection: Connection, after: str, prefix: str, count: int) -> list[tuple[str, bytes]]:
    import rados

    ioctx = connection.ioctx
    operation = ioctx.create_read_op()
    try:
        found, _ = ioctx.get_omap_vals(operation, after, prefix, count)
        try:
            ioctx.operate_read_op(operation, _OBJECT)
        except rados.ObjectNotFound:
            # Nothing was ever stored here.
            return []
        return list(found)
    finally:
        ioctx.release_read_op(operation)
