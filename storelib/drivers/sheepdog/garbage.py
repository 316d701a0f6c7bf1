# SPDX-License-Identifier: Apache-2.0
"""What failed adds and copies left: temporary vdis with their snapshots, and snapshots that copies left at sources."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

from storelib.driver import Garbage
from storelib.drivers.sheepdog.cluster import LARGEST, TOUCHED, SheepdogCluster, Vdi
from storelib.drivers.sheepdog.errors import CommandFailed
from storelib.drivers.sheepdog.location import Temporary
from storelib.exceptions import NotFound, StorageFull, StoreError


class Leftover(NamedTuple):
    """What ``discard`` must know: a vdi, or the snapshot of it with this tag, and the token of the add."""

    name: str
    tag: str | None
    token: str


def find(cluster: SheepdogCluster, older_than: float, prefix: str) -> Iterator[Garbage]:
    """All that no add of this store uses, and in which nothing happened for ``older_than`` seconds."""
    latest = time.time() - older_than
    leftovers: dict[tuple[str, str | None], list[Vdi]] = {}
    for vdi in cluster.each_vdi():
        if Temporary.parse(vdi.name) is not None:
            leftovers.setdefault((vdi.name, None), []).append(vdi)
        elif vdi.snapshot and Temporary.parse(vdi.tag) is not None:
            leftovers.setdefault((vdi.name, vdi.tag), []).append(vdi)
    for (name, tag), vdis in leftovers.items():
        temporary = Temporary.parse(tag or name)
        if temporary is None or temporary.token in cluster.live or not temporary.image_id.startswith(prefix):
            continue
        modified = max(vdi.created for vdi in vdis)
        if modified <= latest:
            modified = max(modified, _touched(cluster, name, tag))
        if modified <= latest:
            image_id = None if temporary.cut else temporary.image_id
            what = name if tag is None else f"{name} (snapshot {tag})"
            size = sum(vdi.used for vdi in vdis)
            yield Garbage(what, image_id, size, float(modified), Leftover(name, tag, temporary.token))


def discard(cluster: SheepdogCluster, item: Garbage) -> bool:
    """Delete it unless something was written since; False where another ``gc`` was quicker."""
    leftover: Leftover = item.handle
    name, tag, token = leftover
    if token in cluster.live or _touched(cluster, name, tag) > item.modified:
        return False
    if tag is not None:
        left = cluster.find_snapshot(name, tag) is not None
        if left:
            cluster.delete_snapshot(name, tag)
        return left
    left = cluster.find_any(name)
    if left:
        _spoil(cluster, name)
        cluster.delete_all(name)
    return left


def _touched(cluster: SheepdogCluster, name: str, tag: str | None) -> int:
    note = None if tag else cluster.attribute(name, TOUCHED)
    return int(note) if note is not None and note.isdigit() else 0


def _spoil(cluster: SheepdogCluster, name: str) -> None:
    """Make a vdi too large for any image, so that an add that is alive after all notices, whatever it does next.

    Without that it might take what is deleted by half for what it wrote.
    """
    try:
        cluster.dog.call("resize", name, str(LARGEST))
    except CommandFailed as error:
        # Only its snapshot is there; or it is as large as that.
        if error.meaning not in (NotFound, StorageFull, StoreError):
            raise
