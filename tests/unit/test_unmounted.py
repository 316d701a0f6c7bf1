# SPDX-License-Identifier: Apache-2.0
"""Data directories on file systems that are to be mounted, and are not: what is there instead is not the store."""

from __future__ import annotations

import pytest

from storelib import system_calls
from storelib.drivers.filesystem import datadirs
from storelib.exceptions import NotFound, RemoteServiceUnavailable
from storelib.registry import open_store

LINE = "36 35 98:0 / {} rw,noatime master:1 - ext4 /dev/root rw\n"


class Host:
    """A host with one file system that is to be mounted, ``disk``, and is at first."""

    def __init__(self, directory, monkeypatch):
        self.disk, self._elsewhere = directory / "a disk", directory / "elsewhere"
        self._mounts = directory / "mountinfo"
        table = directory / "fstab"
        table.write_text(f"# <what> <mount point>\n/dev/sdb {self._written}/ ext4 defaults 0 2\nproc /proc proc\n")
        monkeypatch.setattr(system_calls, "FSTAB", str(table))
        monkeypatch.setattr(system_calls, "MOUNTS", str(self._mounts))
        self.disk.mkdir()
        self._mounts.write_text(LINE.format("/") + LINE.format(self._written))

    @property
    def _written(self):
        return str(self.disk).replace(" ", "\\040")

    def unmount(self):
        self.disk.rename(self._elsewhere)
        self.disk.mkdir()
        self._mounts.write_text(LINE.format("/"))

    def mount(self):
        self.disk.rmdir()
        self._elsewhere.rename(self.disk)
        self._mounts.write_text(LINE.format("/") + LINE.format(self._written))


@pytest.fixture
def host(tmp_path, monkeypatch):
    return Host(tmp_path, monkeypatch)


@pytest.mark.parametrize("below", ["", "images"])
@pytest.mark.parametrize("again", [False, True], ids=["running", "started again"])
def test_nothing_is_taken_for_gone_and_nothing_is_written(host, below, again):
    path = str(host.disk / below)
    store = open_store("file", transfer_retries=0, filesystem_store_datadir=path)
    uri = store.add("one", b"data").uri
    host.unmount()
    if again:
        store = open_store("file", transfer_retries=0, filesystem_store_datadir=path)
        store.prepare()
    for ask in (
        lambda: store.get(uri),
        lambda: store.delete(uri),
        lambda: store.add("two", b"data"),
        lambda: store.find_image("one"),
        lambda: list(store.list_images()),
        lambda: store.gc(0, prefix="one"),
        store.check,
    ):
        with pytest.raises(RemoteServiceUnavailable, match="a disk, where .* is not mounted"):
            ask()
    host.mount()
    assert store.get(uri).data.read() == b"data"
    store.add("two", b"data")
    assert {found.image_id for found in store.list_images()} == {"one", "two"}
    store.delete(uri)
    with pytest.raises(NotFound):
        store.get(uri)


def test_another_data_directory_takes_what_is_new(host, tmp_path):
    other = tmp_path / "other"
    store = open_store("file", transfer_retries=0, filesystem_store_datadirs=[f"{host.disk}:2", f"{other}:1"])
    first = store.add("one", b"data")
    host.unmount()
    second = store.add("two", b"data")
    assert (str(host.disk).replace(" ", "%20") in first.uri, str(other) in second.uri) == (True, True)
    assert list(host.disk.iterdir()) == []
    assert store.get(second.uri).data.read() == b"data"


@pytest.mark.parametrize("where", ["a disk", "a disk/images"])
def test_what_is_mounted_at_a_data_directory_or_above_it_is_enough(host, tmp_path, where):
    host.unmount()
    (tmp_path / "fstab").write_text(f"/dev/sdb {tmp_path} ext4 defaults 0 2\n")
    written = str(tmp_path / where).replace(" ", "\\040")
    (tmp_path / "mountinfo").write_text(LINE.format("/") + LINE.format(written))
    system_calls._wanted.cache_clear()
    open_store("file", filesystem_store_datadir=str(host.disk / "images")).add("one", b"data")


def test_a_file_system_that_is_mounted_meanwhile_takes_what_is_new(host, monkeypatch):
    looks = iter([str(host.disk)])
    monkeypatch.setattr(datadirs, "unmounted", lambda path: next(looks, None))
    open_store("file", filesystem_store_datadir=str(host.disk)).add("one", b"data")
    assert next(looks, None) is None


def test_in_another_root_the_file_says_nothing(host, tmp_path):
    host.unmount()
    (tmp_path / "mountinfo").write_text(LINE.format("/proc"))
    open_store("file", filesystem_store_datadir=str(host.disk)).add("one", b"data")
