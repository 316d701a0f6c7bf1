# SPDX-License-Identifier: Apache-2.0
"""The suite against a store in use: its report, its exit code, and that it leaves nothing and touches nothing."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import textwrap

import pytest

from storelib.capabilities import Capability
from storelib.driver import Part
from storelib.exceptions import OperationNotSupported
from storelib.registry import open_store
from storelib.testing import live
from storelib.testing.memory import MemoryStore, MemoryWriter

LAST_LINE = re.compile(r"(\d+) passed, (\d+) not applicable, (\d+) failed")


def run(store, **options):
    output = io.StringIO()
    status = live.run(store, output=output, **options)
    # Shown where a test fails.
    sys.stdout.write(output.getvalue())
    lines = output.getvalue().splitlines()
    passed, absent, failed = map(int, LAST_LINE.fullmatch(lines[-1]).groups())
    return status, passed, absent, failed, lines


@pytest.fixture
def store():
    return used_store()


def used_store():
    store = open_store(MemoryStore)
    store.add("somebody else's", b"image")
    dead = store.open_writer("somebody else's dead upload", None, None)
    dead.write(Part(0, 0, memoryview(b"part")))
    return store


def assert_untouched(store):
    assert {image_id: image.data for image_id, image in store.backend.images.items()} == {"somebody else's": b"image"}
    assert [upload.image_id for upload in store.backend.uploads.values()] == ["somebody else's dead upload"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A store that keeps all promises, what its run gave, and where: settings of pytest there would break all tests."""
    store, directory = used_store(), tmp_path_factory.mktemp("operator")
    (directory / "conftest.py").write_text("raise RuntimeError")
    (directory / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setenv("PYTEST_ADDOPTS", "--no-such-option")
        path = list(sys.path)
        outcome = run(store)
        assert os.environ["PYTEST_ADDOPTS"] == "--no-such-option"
        assert sys.path == path
    return store, outcome, directory


@pytest.fixture(scope="module")
def broken():
    """A store that breaks a promise and keeps some images whatever happens, and what its run gave."""
    store = used_store()
    store.measure = lambda location, context: 7
    plain = store.remove

    def remove(location, context, deletion):
        if "-kept" in location.image_id:
            raise OSError("the back end is read-only now")
        plain(location, context, deletion)

    store.remove = remove
    return store, run(store, keep_part_size=True)


def test_sound_store_passes(sound):
    store, (status, passed, absent, failed, lines), _ = sound
    assert (status, failed) == (0, 0), "\n".join(lines)
    assert passed > 200
    assert absent > 0
    assert_untouched(store)


def test_what_is_not_promised_is_not_counted_as_passed(store, sound):
    _, (_, passed, absent, *_), _ = sound
    store.capabilities &= ~Capability.GC
    _, passed_without_gc, absent_without_gc, *_ = run(store)
    assert passed_without_gc < passed
    assert absent_without_gc > absent


def test_broken_promise_is_reported(broken):
    _, (status, _, _, failed, lines) = broken
    assert status == 1
    assert failed > 0
    assert any("BROKEN  ``get_size`` returns the size in bytes" in line for line in lines)


def test_image_that_cannot_be_removed_is_a_failure_and_all_others_are_removed(broken):
    store, (_, _, _, failed, lines) = broken
    left = [line for line in lines if line.startswith("could not be removed: memory://")]
    assert left
    assert failed == len(left) + len([line for line in lines if line.startswith("  BROKEN  ")])
    for image_id in [image_id for image_id in store.backend.images if "-kept" in image_id]:
        del store.backend.images[image_id]
    assert_untouched(store)


def test_operator_settings_of_pytest_do_not_matter(sound):
    _, (status, *_), directory = sound
    assert status == 0
    assert sorted(os.listdir(directory)) == ["conftest.py", "pytest.ini"]


def test_interrupted_run_cleans_up(store, monkeypatch):
    plain, seen = MemoryWriter.commit, []

    def commit(self, size, digests):
        seen.append(size)
        if len(seen) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, size, digests)

    monkeypatch.setattr(MemoryWriter, "commit", commit)
    status, *_, lines = run(store)
    assert status == 130
    assert "interrupted; all that was added has been removed" in lines
    assert_untouched(store)


def test_interrupt_that_a_test_expects_is_not_lost(store):
    """Some promises are about KeyboardInterrupt itself."""
    plain = store.add

    def add(*arguments, **options):
        try:
            return plain(*arguments, **options)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGINT)
            raise

    store.add = add
    assert run(store)[0] == 130
    assert_untouched(store)


def test_store_that_cannot_delete_is_left_alone(store):
    store.capabilities &= ~Capability.DELETE
    with pytest.raises(OperationNotSupported, match="would stay"):
        live.run(store)
    assert_untouched(store)


def test_terminated_run_cleans_up(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal, threading
            from storelib.registry import open_store
            from storelib.testing import live
            from storelib.testing.memory import MemoryStore

            store = open_store(MemoryStore)
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
            status = live.run(store)
            print(status, len(store.backend.images), len(store.backend.uploads))
            """
        )
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "130 0 0", done.stdout + done.stderr
