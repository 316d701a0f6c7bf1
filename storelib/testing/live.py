# SPDX-License-Identifier: Apache-2.0
"""The conformance suite against a store in use, for ``storelib conformance``.

It touches only ids that begin with a random prefix of its own, and removes them even when it is interrupted.
Needs pytest and hypothesis; neither is imported before ``run``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from storelib.capabilities import Capability
from storelib.driver import Store
from storelib.exceptions import MissingDependency, OperationNotSupported
from storelib.extras import needs

if TYPE_CHECKING:
    import pytest

    from storelib.testing.conformance import Bench

#: What each group of promises is about, by the module they are in.
_GROUPS = {
    "adding": "adding images",
    "reading": "reading images",
    "failing": "adds that fail",
    "holes": "holes",
    "calling": "what a driver is called with",
    "keeping": "list, stat, delete and copy",
    "copying": "copies that the back end makes",
    "collecting": "gc",
    "replacing": "images that come and go",
    "holding": "memory, descriptors and threads",
    "racing": "many threads at once",
    "naming": "ids, URIs and credentials",
    "capable": "capability flags",
    "model": "the store as a dict",
    "networking": "forked processes",
}
_INTERRUPTED = 2  # pytest.ExitCode


def run(store: Store[Any], *, keep_part_size: bool = False, output: TextIO | None = None) -> int:
    """Check every promise on ``store``; returns 0 if all that apply are kept, 1 if not, 130 when interrupted.

    The report goes to ``output``, by default standard output; it ends with ``N passed, M not applicable, K failed``.
    Parts are lowered to the smallest the back end takes unless ``keep_part_size``. Raises OperationNotSupported for a
    store from which images that were added could not be removed.
    """
    if Capability.ADD in store.capabilities and Capability.DELETE not in store.capabilities:
        raise OperationNotSupported(
            f"store {store.name} can add images but not delete them: what the suite adds would stay"
        )
    for package in ("pytest", "hypothesis"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(needs("the conformance suite", "test", package))
    report = LiveRun(store, keep_part_size, output or sys.stdout)
    with _signals(report.interrupt):
        try:
            status = _run_pytest(report)
        except KeyboardInterrupt:
            status = _INTERRUPTED
        finally:
            report.clean()
    return report.finish(status)


class LiveRun:
    """A pytest plugin that gives the suite its bench and tells an operator what became of each promise."""

    def __init__(self, store: Store[Any], keep_part_size: bool, out: TextIO) -> None:
        self._store = store
        self._keep_part_size = keep_part_size
        self._out = out
        self._prefix = f"storelib-conformance-{secrets.token_hex(6)}-"
        self._bench: Bench | None = None
        self._trouble: list[str] = []
        self._promises: dict[str, str] = {}
        self._group = ""
        self._passed: set[str] = set()
        self._broken: set[str] = set()
        self._not_applicable: dict[str, int] = {}
        self._interrupted = False
        self._say(f"store {store.name} ({type(store).__name__}); all ids begin with {self._prefix}")

    @property
    def bench(self) -> Bench:
        """Made when the first test asks: the suite must be imported by pytest, for readable assertions."""
        from storelib.testing.conformance import Bench

        if self._bench is None:
            self._bench = Bench(
                self._store, keep_part_size=self._keep_part_size, prefix=self._prefix, shared=True, settle_timeout=30.0
            )
        return self._bench

    def interrupt(self, number: int, frame: Any) -> None:
        """What SIGINT, SIGTERM and SIGHUP do: stop and clean up, also when a test takes this for what it expects."""
        self._interrupted = True
        raise KeyboardInterrupt

    def clean(self) -> None:
        """Remove everything; a second Ctrl-C must not leave half of it."""
        with _signals(signal.SIG_IGN):
            if self._bench is not None:
                self._trouble = self._bench.clean()

    def finish(self, status: int) -> int:
        """The last lines, and the exit code."""
        for why, count in sorted(self._not_applicable.items()):
            self._say(f"not applicable, {why}: {count}")
        for line in self._trouble:
            self._say(f"could not be removed: {line}")
        if status == _INTERRUPTED:
            self._say("interrupted" if self._trouble else "interrupted; all that was added has been removed")
        # A run that ended for any other reason than broken promises is none that passed.
        failed = len(self._broken) + len(self._trouble) or int(status not in (0, 1) or not self._passed)
        absent = sum(self._not_applicable.values())
        self._say(f"{len(self._passed)} passed, {absent} not applicable, {failed} failed")
        if status == _INTERRUPTED:
            return 130
        return 1 if failed else 0

    # -- What pytest calls ----------------------------------------------------------------------------------------

    def pytest_collection_modifyitems(self, items: list[pytest.Function]) -> None:
        """Remember what each test promises."""
        for item in items:
            self._promises[item.nodeid] = " ".join((item.function.__doc__ or item.name).split())

    def pytest_runtest_logstart(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        """Say which test comes next."""
        if self._interrupted:
            raise KeyboardInterrupt
        group = os.path.basename(location[0]).removesuffix(".py")
        if group != self._group:
            self._group = group
            self._say(_GROUPS.get(group, group) + " ...")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count, and tell of a broken promise at once."""
        if report.failed:
            self._passed.discard(report.nodeid)
            self._broken.add(report.nodeid)
            self._tell(report)
        elif report.skipped:
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            why = why.partition("not applicable: ")[2] or why
            self._not_applicable[why] = self._not_applicable.get(why, 0) + 1
        elif report.when == "call":
            self._passed.add(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """The suite itself cannot be loaded."""
        if report.failed:
            self._broken.add(report.nodeid)
            self._say(f"  {report.longrepr}")

    def _tell(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("::")[2]
        crash = getattr(report.longrepr, "reprcrash", None)
        what = str(crash.message if crash else report.longrepr)
        where = f" at {os.path.basename(crash.path)}:{crash.lineno}" if crash else ""
        self._say(f"  BROKEN  {self._promises.get(report.nodeid, name)}")
        self._say(f"          {name}{where}")
        for line in [line for line in what.splitlines() if line.strip()][:6]:
            self._say(f"          | {line[:200]}")

    def _say(self, line: str) -> None:
        self._out.write(line + "\n")
        self._out.flush()


def _run_pytest(report: LiveRun) -> int:
    """A pytest that minds no configuration, plugin or conftest of the place where the operator happens to be."""
    import pytest
    from hypothesis import configuration

    changes = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "", "PYTEST_PLUGINS": ""}
    with tempfile.TemporaryDirectory(prefix="storelib-conformance-") as scratch, _environment(changes):
        settings = os.path.join(scratch, "pytest.ini")
        with open(settings, "w", encoding="ascii") as file:
            file.write("[pytest]\n")
        configuration.set_hypothesis_home_dir(scratch)
        try:
            return int(
                pytest.main(
                    [
                        "--pyargs",
                        "storelib.testing.live_suite",
                        f"--config-file={settings}",
                        f"--rootdir={os.path.dirname(__file__)}",
                        f"--basetemp={os.path.join(scratch, 'tmp')}",
                        "--noconftest",
                        "--capture=no",
                        "-pstorelib.testing.plugin",
                        "-pno:terminal",
                        "-pno:cacheprovider",
                        "-Wignore::pytest.PytestAssertRewriteWarning",
                    ],
                    plugins=[report],
                )
            )
        finally:
            configuration.set_hypothesis_home_dir(None)


@contextlib.contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Environment variables for a while; sys.path, which pytest extends, is put back with them."""
    before, path = {name: os.environ.get(name) for name in changes}, list(sys.path)
    os.environ.update(changes)
    try:
        yield
    finally:
        sys.path[:] = path
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _signals(handler: signal.Handlers | Callable[[int, Any], None]) -> Iterator[None]:
    """Handle so, for a while, what asks a program to stop; only the main thread can."""
    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                stack.callback(signal.signal, number, signal.signal(number, handler))
        yield
