# SPDX-License-Identifier: Apache-2.0
"""A pool of RBD images in memory, as far as the rbd driver asks one, any answer of which can be lost."""

from __future__ import annotations

import datetime
import errno
import itertools
import types
from collections.abc import Callable
from typing import Any

FSID = "11111111-2222-3333-4444-555555555555"


def _error(name: str, number: int) -> type[Exception]:
    return type(name, (Error,), {"errno": number, "__module__": "rbd"})


class Error(Exception):
    errno = errno.ETIMEDOUT


Error.__module__ = "rbd"
ImageNotFound = _error("ImageNotFound", errno.ENOENT)
ImageExists = _error("ImageExists", errno.EEXIST)
ImageBusy = _error("ImageBusy", errno.EBUSY)
ImageHasSnapshots = _error("ImageHasSnapshots", errno.ENOTEMPTY)
InvalidArgument = _error("InvalidArgument", errno.EINVAL)
ObjectNotFound = type("ObjectNotFound", (Exception,), {"errno": errno.ENOENT, "__module__": "rados"})


class Stored:
    """One image; ``snaps`` by name: whether it is protected, and how large the image was."""

    def __init__(self, image_id: str, size: int) -> None:
        self.image_id = image_id
        self.data = bytearray(size)
        self.metadata: dict[str, str] = {}
        self.snaps: dict[str, list[Any]] = {}
        self.watchers = 0
        self.parent: Stored | None = None


class Pool:
    """``lost(call)`` says of each call, before and after it is carried out, whether its answer is lost."""

    def __init__(self) -> None:
        self.images: dict[str, Stored] = {}
        self.trash: dict[str, tuple[str, Stored]] = {}
        self.calls: list[str] = []
        self.lost: Callable[[int, str, bool], bool] = lambda number, call, done: False
        self._ids = itertools.count(100)
        self.ioctx = types.SimpleNamespace(
            stat=self._stat, create_read_op=dict, get_omap_vals=self._omap, operate_read_op=lambda *_: None,
            release_read_op=lambda _: None,
        )  # fmt: skip
        #: Stands for the modules.
        self.rbd = types.ModuleType("rbd")
        for kind in (Error, ImageNotFound, ImageExists, ImageBusy, ImageHasSnapshots, InvalidArgument):
            setattr(self.rbd, kind.__name__, kind)
        self.rbd.ObjectNotFound = ObjectNotFound
        self.rbd.RBD = lambda: self
        self.rbd.RBD_FEATURE_FAST_DIFF = 0
        self.rados = types.ModuleType("rados")
        self.rados.ObjectNotFound = ObjectNotFound
        self.connection = types.SimpleNamespace(
            open=self.open, open_id=self._open_id, ioctx=self.ioctx, fsid=FSID, ask=lambda **_: None
        )
        self.connection.freeing = self.connection

    def ask(self, call: str, carry_out: Callable[[], Any]) -> Any:
        number = len(self.calls)
        self.calls.append(call)
        if self.lost(number, call, False):
            raise Error(call)
        result = carry_out()
        if self.lost(number, call, True):
            raise Error(call)
        return result

    # -- Names ------------------------------------------------------------------------------------------------

    def find(self, name: str) -> Stored:
        if name not in self.images:
            raise ImageNotFound(name)
        return self.images[name]

    def make(self, name: str, size: int = 0) -> Stored:
        if name in self.images:
            raise ImageExists(name)
        self.images[name] = Stored(f"{next(self._ids):x}", size)
        return self.images[name]

    def open(self, name: str, snapshot: str | None = None, read_only: bool = False) -> Image:
        return Image(self, self.ask(f"open {name}", lambda: self.find(name)), snapshot, read_only)

    def _open_id(self, image_id: str, snapshot: str | None = None, read_only: bool = False) -> Image:
        return Image(self, self.trash[image_id][1], snapshot, read_only)

    def _stat(self, name: str) -> tuple[int, Any]:
        if name.removeprefix("rbd_id.") not in self.images:
            raise ObjectNotFound(name)
        return 0, datetime.datetime.now().timetuple()

    def _omap(self, operation: Any, after: str, prefix: str, count: int) -> Any:
        found = sorted((f"name_{name}", b"\0\0\0\0" + image.image_id.encode()) for name, image in self.images.items())
        return iter([each for each in found if each[0].startswith(prefix) and each[0] > after][:count]), 0

    # -- rbd.RBD ----------------------------------------------------------------------------------------------

    def create(self, ioctx: Any, name: str, size: int, **options: Any) -> None:
        self.ask("create", lambda: self.make(name, size))

    def clone(self, ioctx: Any, parent: str, snapshot: str, target: Any, name: str, **options: Any) -> None:
        def carry_out() -> None:
            source = self.find(parent)
            made = self.make(name)
            made.data[:] = source.data[: source.snaps[snapshot][1]]
            made.metadata.update(source.metadata)
            made.parent = source

        self.ask("clone", carry_out)

    def rename(self, ioctx: Any, name: str, new: str) -> None:
        def carry_out() -> None:
            self.find(name)
            if new in self.images:
                raise ImageExists(new)
            self.images[new] = self.images.pop(name)

        self.ask("rename", carry_out)

    def remove(self, ioctx: Any, name: str) -> None:
        def carry_out() -> None:
            image = self.find(name)
            if image.snaps:
                raise ImageHasSnapshots(name)
            if image.watchers:
                raise ImageBusy(name)
            del self.images[name]

        self.ask("remove", carry_out)

    def list(self, ioctx: Any) -> list[str]:
        return list(self.images)

    def trash_list(self, ioctx: Any) -> list[dict[str, str]]:
        return [{"id": image_id, "name": name} for image_id, (name, _) in self.trash.items()]

    def trash_move(self, ioctx: Any, name: str) -> None:
        def carry_out() -> None:
            image = self.find(name)
            if image.watchers:
                raise ImageBusy(name)
            self.trash[image.image_id] = name, self.images.pop(name)

        self.ask("trash_move", carry_out)

    def trash_remove(self, ioctx: Any, image_id: str) -> None:
        self.ask("trash_remove", lambda: self.trash.pop(image_id))


class Image:
    """rbd.Image, open."""

    def __init__(self, pool: Pool, stored: Stored, snapshot: str | None, read_only: bool) -> None:
        self._pool = pool
        self._stored = stored
        self._watches = not read_only
        stored.watchers += self._watches

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._stored.watchers -= self._watches
        self._watches = False

    def id(self) -> str:
        return self._stored.image_id

    def parent_id(self) -> str:
        assert self._stored.parent is not None
        return self._stored.parent.image_id

    def size(self) -> int:
        return len(self._stored.data)

    def features(self) -> int:
        return 0

    def create_timestamp(self) -> datetime.datetime:
        return datetime.datetime(2020, 1, 1)

    def modify_timestamp(self) -> datetime.datetime:
        return datetime.datetime(2020, 1, 1)

    def get_snap_timestamp(self, number: int) -> datetime.datetime:
        return datetime.datetime(2020, 1, 1)

    def watchers_list(self) -> list[dict[str, str]]:
        return [{"addr": "somebody"}] * self._stored.watchers

    def list_snaps(self) -> list[dict[str, Any]]:
        return [
            {"id": number, "name": name, "size": size}
            for number, (name, (_, size)) in enumerate(self._stored.snaps.items())
        ]

    def list_children2(self) -> list[Stored]:
        everything = [*self._pool.images.values(), *(image for _, image in self._pool.trash.values())]
        return [image for image in everything if image.parent is self._stored]

    def is_protected_snap(self, name: str) -> bool:
        if name not in self._stored.snaps:
            raise ImageNotFound(name)
        return bool(self._stored.snaps[name][0])

    def metadata_get(self, key: str) -> str:
        return self._stored.metadata[key]

    def metadata_set(self, key: str, value: str) -> None:
        self._pool.ask(f"metadata_set {key}", lambda: self._stored.metadata.update({key: value}))

    def metadata_remove(self, key: str) -> None:
        self._pool.ask(f"metadata_remove {key}", lambda: self._stored.metadata.pop(key))

    def create_snap(self, name: str) -> None:
        def carry_out() -> None:
            if name in self._stored.snaps:
                raise ImageExists(name)
            self._stored.snaps[name] = [False, len(self._stored.data)]

        self._pool.ask("create_snap", carry_out)

    def protect_snap(self, name: str) -> None:
        def carry_out() -> None:
            if self.is_protected_snap(name):
                raise ImageBusy(name)
            self._stored.snaps[name][0] = True

        self._pool.ask("protect_snap", carry_out)

    def unprotect_snap(self, name: str) -> None:
        def carry_out() -> None:
            if not self.is_protected_snap(name):
                raise InvalidArgument(name)
            if self.list_children2():
                raise ImageBusy(name)
            self._stored.snaps[name][0] = False

        self._pool.ask("unprotect_snap", carry_out)

    def remove_snap(self, name: str) -> None:
        def carry_out() -> None:
            if self.is_protected_snap(name):
                raise ImageBusy(name)
            del self._stored.snaps[name]

        self._pool.ask("remove_snap", carry_out)

    def resize(self, size: int) -> None:
        def carry_out() -> None:
            data = self._stored.data
            data[:] = bytes(data[:size]) + bytes(max(size - len(data), 0))

        self._pool.ask("resize", carry_out)

    def flush(self) -> None:
        self._pool.ask("flush", lambda: None)

    def write(self, data: bytes, offset: int) -> None:
        def carry_out() -> None:
            self._stored.data[offset : offset + len(data)] = data

        self._pool.ask("write", carry_out)
