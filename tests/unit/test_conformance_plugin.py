# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin leaves other people's tests alone, and the suite is as easy to use as it says."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

DRIVER_TEST = """
    import pytest
    from storelib import open_store
    from storelib.capabilities import Capability
    from storelib.testing.conformance import StoreConformance
    from storelib.testing.memory import MemoryStore

    class TestMine(StoreConformance):
        {settings}

        @pytest.fixture(scope="class")
        @classmethod
        def store(cls):
            return open_store(MemoryStore)
"""


def run_pytest(directory, source, *arguments):
    (directory / "test_it.py").write_text(textwrap.dedent(source))
    command = [sys.executable, "-m", "pytest", "-q", "-pno:cacheprovider", "-c", "/dev/null", *arguments, "test_it.py"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


def test_plugin_loads_nothing_of_storelib_but_itself(tmp_path):
    source = """
        import sys

        def test_what_is_loaded():
            loaded = {name for name in sys.modules if name.startswith("storelib")}
            assert loaded <= {"storelib", "storelib._version", "storelib.testing", "storelib.testing.plugin"}, loaded
            assert "storelib.testing.plugin" in loaded
            assert "oslo_config" not in sys.modules
            assert "hypothesis.strategies" not in sys.modules
    """
    # Plugins of others that load much.
    assert "1 passed" in run_pytest(tmp_path, source, "-pno:hypothesispytest", "-pno:schemathesis")


def test_importing_memory_store_needs_no_pytest():
    code = "import sys, storelib.testing.memory, storelib.testing.live; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert not {"pytest", "hypothesis"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("settings", "outcome"),
    [
        ("", "skipped"),
        ("capabilities = MemoryStore.capabilities", "deselected"),
        ("not_applicable = frozenset({'test_no_acls'})", "deselected"),
    ],
)
def test_what_is_not_promised_is_skipped_or_deselected(tmp_path, settings, outcome):
    said = run_pytest(tmp_path, DRIVER_TEST.format(settings=settings), "-k", "test_acls or test_no_acls")
    assert outcome in said.splitlines()[-1]


def test_a_sample_has_every_promise(tmp_path):
    names = {}
    for settings in ("sample = False", "sample = True"):
        said = run_pytest(tmp_path, DRIVER_TEST.format(settings=settings), "--collect-only")
        names[settings] = [line.partition("::test_")[2] for line in said.splitlines() if "::test_" in line]
    everything, sample = names.values()
    assert {name.partition("[")[0] for name in sample} == {name.partition("[")[0] for name in everything}
    assert set(sample) < set(everything)
    assert len(sample) < 0.7 * len(everything)


def test_store_that_can_do_less_than_expected_is_rejected(tmp_path):
    settings = "capabilities = MemoryStore.capabilities | Capability.COPY"
    said = run_pytest(tmp_path, DRIVER_TEST.format(settings=settings), "-k", "test_capabilities_are_those_expected")
    assert "1 failed" in said


def test_failures_show_both_sides(tmp_path):
    source = DRIVER_TEST.format(settings="") + "        pass\n\n    MemoryStore.measure = lambda *arguments: 7\n"
    said = run_pytest(tmp_path, source, "-k", "test_get_size")
    assert "assert 7 == 0" in said


def test_class_without_a_store_says_what_is_missing(tmp_path):
    source = """
        from storelib.testing.conformance import StoreConformance

        class TestMine(StoreConformance):
            pass
    """
    assert "TestMine needs a class-scoped fixture 'store'" in run_pytest(tmp_path, source, "-k", "test_check")
