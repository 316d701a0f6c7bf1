# SPDX-License-Identifier: Apache-2.0
"""The health check: what adds, reads, listings, deletes and gc do, done with a small image, and which option helps."""

from __future__ import annotations

import contextlib
import mmap
from typing import TYPE_CHECKING, Any

from storelib.capabilities import Capability
from storelib.driver import Digests, Health, Part
from storelib.drivers.filesystem.kernel import PAGE
from storelib.drivers.filesystem.location import FileLocation
from storelib.drivers.filesystem.paths import is_image, new_token
from storelib.drivers.filesystem.writer import FileWriter
from storelib.exceptions import NotFound, StorageFull, StoreError, TransferTimeout
from storelib.rehearsal import PREFIX
from storelib.transfer.guard import bounded

if TYPE_CHECKING:
    from storelib.drivers.filesystem.store import FilesystemStore

#: A page that can go out by direct I/O, and a byte that cannot.
LENGTH = PAGE + 1
#: Clocks of file servers go ahead of ours: nothing is too young for the gc of a check.
ANY_AGE = -86400.0
NO_DIGESTS = Digests(None, "")

#: Option, value, and what it changes in a writer.
ALTERNATIVES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("filesystem_store_direct_io", "false", {"direct": False}),
    ("filesystem_store_staging", "part", {"unnamed": False}),
    ("filesystem_store_file_perm", "0", {"mode": None}),
    ("filesystem_store_fsync", "false", {"direct": False, "fsync": False}),
)


def check(store: FilesystemStore) -> Health:
    """Exercise every data directory; raises the StoreError or OSError that stands in the way."""
    free: int | None = 0
    total: int | None = 0
    for datadir in store.datadirs:
        room = store.guard.call(datadir.room, datadir.path)
        if room is None or free is None or total is None:
            free = total = None
        else:
            free, total = free + room[0], total + room[1]
        if Capability.ADD in store.capabilities:
            exercise(store, datadir.path)
        else:
            look(store, datadir.path)
    paths = ", ".join(datadir.path for datadir in store.datadirs)
    room_left = "free space unknown" if free is None else f"{free} bytes free of {total}"
    racing = Capability.ADD in store.capabilities and Capability.ATOMIC_ADD not in store.capabilities
    atomic = "; of adds racing for one id several may succeed, the last one is kept" if racing else ""
    return Health(f"{paths}: {room_left}{atomic}", free, total)


def exercise(store: FilesystemStore, path: str) -> None:
    """An add, a read, a listing, a delete and a gc in one data directory; nothing of them stays."""
    image_id = PREFIX + new_token()
    try:
        location = add(store, path, image_id, {})
    except (StoreError, OSError) as error:
        raise advised(store, path, image_id, error) from error
    try:
        read(store, location)
        see(store, path, image_id)
    finally:
        store.remove(location, None)
    collect(store, path, image_id)


def add(store: FilesystemStore, path: str, image_id: str, changes: dict[str, Any]) -> FileLocation:
    """Add a small image there, with some options other than configured."""

    def work() -> FileLocation:
        # Aligned, as direct I/O wants it.
        view = memoryview(mmap.mmap(-1, 2 * PAGE))[:LENGTH]
        try:
            writer.reserve(LENGTH)
            writer.write(Part(0, 0, view))
            writer.commit(LENGTH, NO_DIGESTS)
        except BaseException:
            # What stands in the way of the add is what matters; gc finds the rest.
            with contextlib.suppress(OSError):
                writer.abort()
            raise
        finally:
            writer.free()
        return writer.location

    writer = FileWriter(store, path, image_id)
    # Not in a subdirectory, which would stay.
    writer.place(0)
    for name, value in changes.items():
        setattr(writer, name, value)
    return bounded(store.guard, work, path, late=store.remove_now)


def advised(store: FilesystemStore, path: str, image_id: str, error: Exception) -> Exception:
    """The error of an add, with the option that makes adds work if there is one."""
    known = error if isinstance(error, StoreError) else store.map_error(error, f"{path}: adding an image")
    if known is None or isinstance(known, (StorageFull, NotFound, TransferTimeout)):
        return known or error
    for option, value, changes in ALTERNATIVES:
        try:
            store.remove(add(store, path, image_id, changes), None)
        except (StoreError, OSError):
            continue
        return type(known)(f"{known}; with option {option} = {value} it works")
    return type(known)(f"{known}; check that this process may write to what option {store.datadir_option} names")


def read(store: FilesystemStore, location: FileLocation) -> None:
    """Read the small image, all of it."""
    reader = store.open_reader(location, 0, None, None)
    try:
        memory = memoryview(bytearray(LENGTH))
        done = 0
        while done < min(reader.size, LENGTH):
            done += reader.read_into(done, memory[done:])
        if reader.size != LENGTH or any(memory):
            raise StoreError(f"{location} does not read back as it was written; check the storage behind it")
    finally:
        reader.close()


def see(store: FilesystemStore, path: str, image_id: str) -> None:
    """Find the small image in a listing."""
    found = store.look_below(path, lambda _, entry: True if entry.name == image_id else None)
    if not next(found, False):
        raise StoreError(f"{path}: an image that was added is missing in the listing; check the storage behind it")
    found.close()


def collect(store: FilesystemStore, path: str, image_id: str) -> None:
    """Leave what an add that dies leaves, and have gc remove it."""
    writer = FileWriter(store, path, image_id)
    writer.place(0)
    writer.unnamed = False

    def die() -> None:
        try:
            writer.reserve(PAGE)
        finally:
            writer.free()

    store.guard.call(die, path)
    for item in store.garbage(ANY_AGE, image_id):
        if store.discard(item):
            return
    raise StoreError(f"{path}: gc does not find and remove what an add that died left; check the storage behind it")


def look(store: FilesystemStore, path: str) -> None:
    """List a data directory that is only read, and read the first image in it."""

    def image(where: str, entry: Any) -> FileLocation | None:
        return FileLocation(f"{where.rstrip('/')}/{entry.name}") if is_image(entry.name) else None

    found = store.look_below(path, image)
    first = next(found, None)
    found.close()
    if first is not None:
        with contextlib.suppress(NotFound):
            reader = store.open_reader(first, 0, None, None)
            try:
                if reader.size:
                    reader.read_into(0, memoryview(bytearray(1)))
            finally:
                reader.close()
