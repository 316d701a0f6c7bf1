# SPDX-License-Identifier: Apache-2.0
"""A suite that a wrong driver passes is worthless: every broken store is rejected, and for the right reason."""

from __future__ import annotations

import pathlib

import pytest
from broken_stores import BROKEN, Copier, InAFile, Networked, OneStream, Small

from storelib.registry import open_store
from storelib.testing.conformance import model, networking

SUITE = pathlib.Path(__file__).with_name("broken_stores.py")


class Run:
    """A pytest plugin: runs some promises on one store and remembers those that were broken."""

    def __init__(self, store, promises):
        self._store = store
        self._promises = promises
        self.not_kept = set()
        self.kept = set()

    @pytest.fixture(scope="class")
    def broken(self):
        return self._store

    def pytest_configure(self, config):
        # Nobody reads the tracebacks; without a terminal there is no option for it.
        config.option.tbstyle = "native"

    @pytest.hookimpl(tryfirst=True)
    def pytest_ignore_collect(self, collection_path):
        # pytest asks for each file of the directory, of which there are hundreds.
        return collection_path not in (SUITE, SUITE.parent)

    def pytest_pycollect_makeitem(self, name):
        return [] if name.startswith("test_") and name not in self._promises else None

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.rpartition("::")[2].partition("[")[0]
        if report.failed:
            self.not_kept.add(f"set-up of {name}" if report.when == "setup" else name)
        elif report.passed and report.when == "call":
            self.kept.add(name)


def run(store_class, promises, **settings):
    run = Run(open_store(store_class, **settings), promises)
    quiet = ["--capture=no", "-pno:terminal", "-pno:cacheprovider", "-Wignore", "--exitfirst"]
    options = ["--noconftest", "--rootdir", str(SUITE.parent), "-c", "/dev/null", "-pstorelib.testing.plugin", *quiet]
    with pytest.MonkeyPatch.context() as patch:
        # Looking for the plugins of all packages takes longer than most tests.
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        pytest.main([str(SUITE), *options], plugins=[run])
    return run


@pytest.mark.parametrize(("store", "promise"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_broken_store_is_rejected(store, promise, monkeypatch, tmp_path):
    # Sequences are made up anew each time: one run in twenty did not happen upon the fault.
    monkeypatch.setattr(model, "SEQUENCES", 400)
    # Still longer than those stores wait for their server.
    monkeypatch.setattr(networking, "PATIENCE", 1.5)
    options = {"sqlite_store_file": tmp_path / "images.db"} if "sqlite" in store.schemes else {}
    assert run(store, {promise}, **options).not_kept == {promise}


def test_sound_store_is_not_rejected():
    promises = {promise for store, promise in BROKEN if "memory" in store.schemes and not issubclass(store, Networked)}
    result = run(Small, promises)
    assert not result.not_kept
    # The others are about capabilities that a MemoryStore has not, or has.
    assert promises - result.kept <= {
        "test_acls", "test_presign", "test_presigned_url_expires", "test_copy_moves_no_bytes", "test_sparse",
        "test_no_listing", "test_no_adding", "test_no_deleting", "test_step_of_a_copy_is_harmless_again",
        "test_copying_leaves_nothing_open", "test_gc_finds_what_a_dead_copy_left",
    }  # fmt: skip


def test_sound_store_that_copies_is_not_rejected():
    promises = {promise for store, promise in BROKEN if issubclass(store, Copier)}
    result = run(Copier, promises)
    assert not result.not_kept
    assert result.kept == promises


def test_sound_store_behind_a_network_is_not_rejected():
    promises = {promise for store, promise in BROKEN if issubclass(store, Networked)}
    result = run(Networked, promises)
    assert not result.not_kept
    assert result.kept == promises


def test_store_of_one_stream_that_breaks_with_its_line_is_not_rejected():
    promises = {"test_add_survives_a_fault_on_the_line", "test_add_survives_a_stall"}
    result = run(OneStream, promises)
    assert not result.not_kept
    assert result.kept == promises


def test_sound_store_in_a_file_is_not_rejected(tmp_path):
    promises = {promise for store, promise in BROKEN if "sqlite" in store.schemes}
    result = run(InAFile, promises, sqlite_store_file=tmp_path / "images.db")
    assert not result.not_kept
    assert result.kept == promises


def test_there_are_broken_stores_of_every_kind():
    assert len(BROKEN) >= 205
    assert len({store for store, _ in BROKEN}) == len(BROKEN)
