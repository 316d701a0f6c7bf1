# SPDX-License-Identifier: Apache-2.0
"""RbdStore in a pool that carries out what it is asked for, or does not, and does not answer."""

import contextlib
import importlib.util
import sys

import pytest
from ceph_pool import Pool

from storelib.driver import Digests
from storelib.drivers.rbd import RbdStore, publication, writer
from storelib.exceptions import NotFound, StoreError
from storelib.registry import open_store
from storelib.transfer import retry

DATA = b"the image"
OTHER = b"the image of another client"


@pytest.fixture
def pool(monkeypatch):
    made = Pool()
    plain = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: object() if name in ("rados", "rbd") else plain(name, *rest)
    )
    monkeypatch.setitem(sys.modules, "rbd", made.rbd)
    monkeypatch.setitem(sys.modules, "rados", made.rados)
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.0)
    monkeypatch.setattr(writer, "FIRST_ROOM", 64)
    return made


def open_at(pool, **options):
    store = open_store(RbdStore, "rbd", **options)
    store.cluster._connection = pool.connection
    return store


def content(pool, image_id):
    image = pool.images.get(image_id)
    assert image is None or image.snaps == {"snap": [True, len(image.data)]}
    return None if image is None else bytes(image.data)


def losing(pool, number, carried_out):
    """The answer to that call from now on is lost, whether it was carried out or not."""
    begin = len(pool.calls)

    def lost(index, call, done):
        if index - begin != number or done != carried_out:
            return False
        pool.lost = lambda *_: False
        return True

    pool.lost = lost


def everything(pool):
    return sorted(pool.images), sorted(pool.trash)


def steps(pool, operation):
    """How many calls it makes."""
    before = len(pool.calls)
    operation()
    return len(pool.calls) - before


@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize("size", [None, len(DATA), 0])
def test_an_add_puts_up_with_any_answer_that_is_lost(pool, carried_out, size):
    store = open_at(pool)
    data = DATA if size is None or size else b""
    whole = lambda: store.add("image", iter([data]), size)  # noqa: E731
    calls = steps(pool, whole)
    store.delete("rbd://image")
    for number in range(calls):
        losing(pool, number, carried_out)
        try:
            whole()
        except StoreError:
            assert content(pool, "image") is None, number
        else:
            assert content(pool, "image") == data, number
            assert everything(pool) == (["image"], []), number
            store.delete("rbd://image")
        open_at(pool).gc(0)
        assert everything(pool) == ([], []), (number, pool.calls)


@pytest.mark.parametrize("carried_out", [False, True])
def test_a_delete_puts_up_with_any_answer_that_is_lost(pool, carried_out):
    store = open_at(pool)
    store.add("image", DATA)
    calls = steps(pool, lambda: store.delete("rbd://image"))
    for number in range(calls):
        store.add("image", DATA)
        losing(pool, number, carried_out)
        store.delete("rbd://image")
        assert everything(pool) == ([], []), number


@pytest.mark.parametrize("carried_out", [False, True])
def test_a_delete_whose_answer_is_lost_leaves_the_image_that_came_since(pool, carried_out, monkeypatch):
    store, another = open_at(pool), open_at(pool)
    store.add("image", DATA)
    calls = steps(pool, lambda: store.delete("rbd://image"))

    def replace(*_):
        with contextlib.suppress(NotFound):
            another.delete("rbd://image")
        another.add("image", OTHER)

    monkeypatch.setattr(retry, "pause", replace)
    for number in range(calls):
        store.add("image", DATA)
        losing(pool, number, carried_out)
        with contextlib.suppress(StoreError):
            store.delete("rbd://image")
        found = content(pool, "image")
        assert found == OTHER or (found is None and number == 0), (number, pool.calls[-30:])
        pool.images.clear()


@pytest.mark.parametrize("carried_out", [False, True])
def test_a_copy_puts_up_with_any_answer_that_is_lost(pool, carried_out):
    store = open_at(pool)
    known = store.add("source", DATA)
    digests = Digests(known.checksum, known.multihash)
    calls = steps(pool, lambda: store.copy("rbd://source", "image", digests=digests))
    store.delete("rbd://image")
    for number in range(calls):
        losing(pool, number, carried_out)
        try:
            store.copy("rbd://source", "image", digests=digests)
        except StoreError:
            assert content(pool, "image") is None, number
        else:
            assert content(pool, "image") == DATA, number
            store.delete("rbd://image")
        open_at(pool).gc(0)
        assert everything(pool) == (["source"], []), number
    assert content(pool, "source") == DATA


@pytest.mark.parametrize("carried_out", [False, True])
def test_gc_puts_up_with_any_answer_that_is_lost(pool, carried_out):
    def leave_something():
        for step in ("create", "metadata_set", "create_snap", "protect_snap", "rename"):
            broken = open_at(pool, transfer_retries=0)
            dying = broken.open_writer("dead", len(DATA), None)
            pool.lost = lambda number, call, done, step=step: call.startswith(step) and done
            with contextlib.suppress(pool.rbd.Error):
                dying.reserve(len(DATA))
                dying.commit(len(DATA), Digests(None, "0" * 128))
            pool.lost = lambda *_: False
            dying.close()
            if step == "rename":
                with open_at(pool).cluster.get().open("dead") as image:
                    publication.set_deleting(image)
                    publication.unseal(image)

    store = open_at(pool)
    store.add("alive", DATA)
    leave_something()
    calls = steps(pool, lambda: open_at(pool).gc(0))
    assert everything(pool) == (["alive"], [])
    for number in range(calls):
        leave_something()
        losing(pool, number, carried_out)
        try:
            open_at(pool).gc(0)
        except StoreError:
            open_at(pool).gc(0)
        assert everything(pool) == (["alive"], []), number
    assert content(pool, "alive") == DATA
