# SPDX-License-Identifier: Apache-2.0
"""RbdStore without a cluster: options, errors by number, names under way, and what is said where Ceph is missing."""

import datetime
import errno
import importlib.util
import itertools
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storelib.capabilities import Capability
from storelib.drivers.rbd import RbdStore, errors, publication, reader
from storelib.drivers.rbd.cluster import modified
from storelib.exceptions import (
    BadStoreConfiguration,
    BadStoreUri,
    Duplicate,
    Forbidden,
    HasSnapshot,
    InUseByStore,
    MissingDependency,
    NotFound,
    RemoteServiceUnavailable,
    StorageFull,
    StoreError,
    TransferTimeout,
)
from storelib.librbd import cluster
from storelib.librbd.errors import connection_error
from storelib.registry import open_store

FSID = "11111111-2222-3333-4444-555555555555"


@pytest.fixture(autouse=True)
def bindings(monkeypatch):
    """The bindings can be found, here as where they are not; nothing in these tests calls them."""
    plain = importlib.util.find_spec
    present = object()
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: present if name in ("rados", "rbd") else plain(name, *rest)
    )


class FromCeph(Exception):
    """An error as the bindings raise them."""

    def __init__(self, number):
        super().__init__("from Ceph")
        self.errno = number


FromCeph.__module__ = "rbd"


@pytest.mark.parametrize("missing", ["rados", "rbd"])
def test_missing_bindings_are_named_with_their_packages(monkeypatch, missing):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == missing else object())
    with pytest.raises(MissingDependency, match="python3-rados and python3-rbd"):
        open_store(RbdStore, "rbd")


def test_a_process_that_has_loaded_libtorrent_is_refused_instead_of_ended(monkeypatch):
    monkeypatch.delitem(sys.modules, "rados", raising=False)
    for name in ("libtorrent", "rados"):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(Error=OSError))
    with pytest.raises(BadStoreConfiguration, match="this process loaded libtorrent before librados"):
        open_store(RbdStore, "rbd").cluster.get()


@pytest.mark.parametrize("option", ["rbd_store_ceph_conf", "rbd_store_keyring"])
def test_file_that_cannot_be_read_is_named(option):
    with pytest.raises(BadStoreConfiguration, match=f"option {option}: /nowhere"):
        open_store(RbdStore, "rbd", **{option: "/nowhere"})


def test_store_needs_a_pool():
    with pytest.raises(BadStoreConfiguration, match="rbd_store_pool"):
        open_store(RbdStore, "rbd", rbd_store_pool="")


def test_clones_of_format_1_need_protection():
    store = open_store(RbdStore, "rbd", rbd_store_clone_format="1", rbd_store_protect_snapshot=False)
    assert "rbd_store_protect_snapshot" in store.add_disabled
    assert Capability.ADD not in store.capabilities


@pytest.mark.parametrize(("chunk", "order"), [(1, 20), (4, 22), (7, 22), (8, 23), (32, 25)])
def test_chunk_size_is_rounded_down_to_a_power_of_two(chunk, order):
    assert open_store(RbdStore, "rbd", rbd_store_chunk_size=chunk).cluster.order == order


def test_capabilities_follow_the_options():
    store = open_store(RbdStore, "rbd", rbd_thin_provisioning=False, rbd_store_copy_mode="deep")
    assert not store.capabilities & (Capability.SPARSE | Capability.COPY)


@pytest.mark.parametrize(
    ("uri", "ours"),
    [
        (f"rbd://{FSID}/images/image/snap", True),
        (f"rbd://{FSID.upper()}/images/image/snap", True),
        ("rbd://image", True),
        ("rbd://22222222-2222-3333-4444-555555555555/images/image/snap", False),
        (f"rbd://{FSID}/volumes/image/snap", False),
        (f"rbd://{FSID}/images/space/image/snap", False),
    ],
)
def test_uri_belongs_to_one_place(uri, ours):
    store = open_store(RbdStore, "rbd")
    store.cluster = types.SimpleNamespace(fsid=FSID, pool="images", namespace="")
    if ours:
        assert store.locate(uri).image == "image"
    else:
        with pytest.raises(BadStoreUri):
            store.locate(uri)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, NotFound),
        (errno.EEXIST, Duplicate),
        (errno.EPERM, Forbidden),
        (errno.EACCES, Forbidden),
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EBUSY, InUseByStore),
        (errno.ENOTEMPTY, HasSnapshot),
        (errno.ETIMEDOUT, TransferTimeout),
        (errno.ESHUTDOWN, RemoteServiceUnavailable),
        (errno.EIO, RemoteServiceUnavailable),
        (errno.EINVAL, StoreError),
        (None, StoreError),
    ],
)
def test_every_error_number_has_its_meaning(number, kind):
    found = errors.storelib_error(FromCeph(number), "image 'x'")
    assert type(found) is kind
    assert "image 'x'" in str(found)


@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.ESHUTDOWN, errno.EIO, errno.EROFS])
def test_what_may_pass_is_tried_again(number):
    assert errors.storelib_error(FromCeph(number), "image").transient


def test_errors_of_others_pass():
    assert errors.storelib_error(OSError(errno.ENOENT, "the source"), "image") is None


@pytest.mark.parametrize(
    ("number", "kind", "option"),
    [
        (errno.ENOENT, BadStoreConfiguration, "rbd_store_keyring"),
        (errno.EACCES, Forbidden, "rbd_store_user"),
        (errno.EINVAL, BadStoreConfiguration, "rbd_store_ceph_conf"),
        (errno.ETIMEDOUT, RemoteServiceUnavailable, "ETIMEDOUT"),
    ],
)
def test_failed_connection_names_the_option(number, kind, option):
    found = connection_error(FromCeph(number), "store fast", errors.ADVICE)
    assert type(found) is kind
    assert option in str(found)


@given(st.text(min_size=1))
def test_temporary_name_tells_the_id(image_id):
    name, token = publication.new_name(image_id)
    assert publication.split(name) == (image_id, token)


@pytest.mark.parametrize("name", ["image", "image.storelib-", ".storelib-" + "a" * 24, "x.storelib-" + "g" * 24])
def test_other_names_are_not_temporary(name):
    assert publication.split(name) is None


@pytest.mark.parametrize("size", [1, 4095, 4096, 3 * 1024 * 1024 + 1])
def test_zeros_are_told_from_data(size):
    zeros = bytearray(size)
    assert reader._is_zero(memoryview(zeros))
    for place in {0, size // 2, size - 1}:
        zeros[place] = 1
        assert not reader._is_zero(memoryview(zeros))
        zeros[place] = 0


class MarkedImage:
    """What an image has of its own, and what it inherited."""

    def __init__(self, image_id, **metadata):
        self.metadata = {f"storelib.{key}": value for key, value in metadata.items()}
        self.id = lambda: image_id

    def metadata_get(self, key):
        return self.metadata[key]

    def metadata_set(self, key, value):
        self.metadata[key] = value

    def metadata_remove(self, key):
        del self.metadata[key]


@pytest.mark.parametrize(
    ("metadata", "being_deleted"),
    [
        ({}, False),
        ({"token": "a" * 24}, False),
        ({"deleting": "one"}, True),
        ({"deleting": "other"}, False),
        ({"deleting": "other", "token": f"{'a' * 24} other"}, False),
        # As earlier versions had it.
        ({"deleting": "1"}, False),
        ({"deleting": "1", "token": "a" * 24}, False),
        ({"deleting": "1", "token": f"{'a' * 24} one"}, True),
        ({"deleting": "1", "token": f"{'a' * 24} other"}, False),
    ],
)
def test_mark_of_a_deletion_counts_on_its_own_image_only(metadata, being_deleted):
    assert publication.is_being_deleted(MarkedImage("one", **metadata)) == being_deleted


def test_marks_are_set_and_taken_away():
    image = MarkedImage("one")
    publication.set_token(image, "a" * 24)
    assert publication.is_temporary(f"image.storelib-{'a' * 24}", image)
    assert not publication.is_temporary(f"image.storelib-{'b' * 24}", image)
    publication.set_deleting(image)
    assert publication.is_being_deleted(image)
    publication.unset_deleting(image)
    publication.unset_deleting(image)
    assert not publication.is_being_deleted(image)


def test_who_waits_for_a_connection_that_fails_does_not_try_again_in_turn(monkeypatch):
    connection = open_store(RbdStore, "rbd").cluster
    attempts, asked, all_asked = [], itertools.count(1), threading.Event()

    def monotonic():
        if next(asked) == 4:
            all_asked.set()
        return time.monotonic()

    def connect():
        attempts.append(1)
        assert all_asked.wait(10)
        raise RemoteServiceUnavailable("no connection")

    monkeypatch.setattr(cluster, "time", types.SimpleNamespace(monotonic=monotonic))
    monkeypatch.setattr(connection, "_connect", connect)
    with ThreadPoolExecutor(4) as pool:
        errors = [future.exception(10) for future in [pool.submit(connection.get) for _ in range(4)]]
    assert all(type(error) is RemoteServiceUnavailable and error.transient for error in errors)
    assert len({id(error) for error in errors}) == 4
    assert len(attempts) == 1
    with pytest.raises(RemoteServiceUnavailable):
        connection.get()
    assert len(attempts) == 2


@pytest.mark.parametrize("zone", ["UTC", "IST-5:30", "EST5"])
def test_an_image_is_as_old_in_every_time_zone(monkeypatch, zone):
    monkeypatch.setenv("TZ", zone)
    time.tzset()

    class Image:
        def create_timestamp(self):
            return datetime.datetime.fromtimestamp(1_000_000, datetime.timezone.utc).replace(tzinfo=None)

        def modify_timestamp(self):
            return datetime.datetime.fromtimestamp(1_000_060)

    try:
        assert modified(Image()) == 1_000_060
    finally:
        monkeypatch.undo()
        time.tzset()
