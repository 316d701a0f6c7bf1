# SPDX-License-Identifier: Apache-2.0
"""The filesystem driver keeps every promise, in each way it can be configured."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from storelib.capabilities import Capability
from storelib.driver import Store
from storelib.drivers.filesystem import FileLocation, FilesystemStore
from storelib.registry import open_store
from storelib.system_calls import has_reflinks
from storelib.testing.conformance import BackendAccess, ReadOnlyConformance, StoreConformance


class Directories(BackendAccess):
    """Looks at all files below some directories."""

    def __init__(self, *paths: pathlib.Path) -> None:
        self.paths = paths

    def files(self) -> dict[str, str]:
        return {
            name: os.path.join(where, name)
            for path in self.paths
            for where, _, names in os.walk(path)
            for name in names
        }

    def read(self, image_id: str) -> bytes | None:
        path = self.files().get(image_id)
        return None if path is None else pathlib.Path(path).read_bytes()

    def plant(self, image_id: str, data: bytes) -> str:
        path = self.paths[0] / image_id
        path.write_bytes(data)
        return FileLocation(str(path)).uri

    def residue(self, prefix: str) -> set[str]:
        return {name for name in self.files() if prefix in name}


#: The kernel frees a file without a name when its writer dies, so there is nothing for gc to find.
NOTHING_LEFT = frozenset(
    {
        "test_gc_finds_what_a_crash_left",
        "test_gc_leaves_what_is_young",
        "test_gc_keeps_to_the_prefix",
        "test_find_garbage_removes_nothing",
    }
)


class FilesystemConformance(StoreConformance):
    capabilities = FilesystemStore.capabilities
    directories: ClassVar[tuple[str, ...]] = ("images",)
    settings: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(scope="class")
    @classmethod
    def root(cls, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
        return tmp_path_factory.mktemp("conformance")

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, root: pathlib.Path) -> Store[Any]:
        paths = [str(root / name) for name in cls.directories]
        several = {"filesystem_store_datadirs": paths} if len(paths) > 1 else {"filesystem_store_datadir": paths[0]}
        return open_store("file", **several, **cls.settings)

    @pytest.fixture(scope="class")
    @classmethod
    def new_place(cls, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Store[Any]]:
        def opened(**options: Any) -> Store[Any]:
            path = tmp_path_factory.mktemp("new") / "images"
            return open_store("file", filesystem_store_datadir=path, **cls.settings, **options)

        return opened

    @pytest.fixture(scope="class")
    @classmethod
    def backend_access(cls, root: pathlib.Path, store: Store[Any]) -> BackendAccess:
        return Directories(*(root / name for name in cls.directories))


class TestDefaults(FilesystemConformance):
    not_applicable = NOTHING_LEFT

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def where_blocks_can_be_shared(cls, root: pathlib.Path) -> None:
        if has_reflinks(str(root)):
            cls.capabilities |= Capability.COPY


# Of the sizes, sources and ranges that TestDefaults has, a sample.
class TestPartFilesBuffered(FilesystemConformance):
    sample = True
    capabilities = FilesystemStore.capabilities | Capability.COPY
    settings: ClassVar[dict[str, Any]] = {
        "filesystem_store_staging": "part",
        "filesystem_store_direct_io": False,
        "filesystem_store_file_perm": 600,
    }


class TestThinAndSharded(FilesystemConformance):
    sample = True
    not_applicable = NOTHING_LEFT
    capabilities = FilesystemStore.capabilities | Capability.SPARSE | Capability.COPY
    settings: ClassVar[dict[str, Any]] = {
        "filesystem_thin_provisioning": True,
        "filesystem_store_shard_levels": 2,
        "filesystem_store_fsync": False,
    }


class TestSeveralDirectoriesWithTimeouts(TestDefaults):
    sample = True
    directories: ClassVar[tuple[str, ...]] = ("one", "two")
    settings: ClassVar[dict[str, Any]] = {"filesystem_store_timeout": 20.0}


class TestReadOnly(ReadOnlyConformance):
    capabilities = Capability.READ | Capability.RANGE | Capability.LIST | Capability.STAT | Capability.CHECK

    @pytest.fixture(scope="class")
    @classmethod
    def root(cls, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
        return tmp_path_factory.mktemp("conformance")

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, root: pathlib.Path) -> Store[Any]:
        return open_store("file", filesystem_store_datadir=str(root), read_only=True)

    @pytest.fixture(scope="class")
    @classmethod
    def backend_access(cls, root: pathlib.Path, store: Store[Any]) -> BackendAccess:
        return Directories(root)
