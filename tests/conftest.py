# SPDX-License-Identifier: Apache-2.0
"""What holds for every test. In CI (``CI=true`` or ``--no-skips``) nothing may be skipped: a skip is a failure."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Generator

import hypothesis
import pytest

# Garbage is looked for less often: a tenth of the unit tests' time on Python 3.12 was that, and a sixth of the time in
# which tests are found.
gc.set_threshold(10_000)

# Loaded after libtorrent, librados ends the process at its first connection; the other way round both work.
with contextlib.suppress(ImportError):
    import rados  # noqa: F401
    import rbd  # noqa: F401

# No example is wrong for being slow: machines are shared.
hypothesis.settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy machine")

# The promises of the API's repository, kept on every database.
pytest.register_assert_rewrite("db_contract", "db_model", "preload_contract")


#: Files that take long, the longest first. Whole files go to the processes of `make test`, which end at the same time
#: only if what comes last is short.
LONGEST = (
    "test_swift.py",
    "test_cinder.py",
    "test_sheepdog.py",
    "test_s3.py",
    "test_api_clients.py",
    "test_rbd.py",
    "test_gridfs.py",
    "test_api_serve.py",
    "test_conformance_rejects.py",
    "test_preload.py",
    "test_cinder_connectors.py",
    "test_api_suites.py",
    "test_api_database.py",
    "test_api_concurrency.py",
    "test_vmware.py",
    "test_glance_backends.py",
    "test_example_driver.py",
    "test_glance.py",
    "test_node.py",
    "test_glance_catalogue.py",
    "test_api_workers.py",
    "test_api_systemd.py",
    "test_api_openapi.py",
    "test_conformance_live.py",
    "test_api_limits.py",
    "test_filesystem_conformance.py",
    "test_api_operating.py",
    "test_conformance_memory.py",
    "test_node_disk.py",
    "test_many_at_once.py",
    "test_service_recovery.py",
    "test_api_cache.py",
    "test_api_services.py",
    "test_filesystem_faults.py",
    "test_filesystem.py",
    "test_http.py",
    "test_conformance_plugin.py",
    "test_no_skips.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-skips",
        action="store_true",
        default=os.environ.get("CI", "").lower() in ("1", "true", "yes"),
        help="a test that skips fails, and so does a file; the default where CI=true",
    )
    parser.addoption(
        "--whole-suites",
        action="store_true",
        help="run the test suites of clients and of tempest whole and not in part; see test_api_suites.py",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))
    whole = [item for item in items if item.get_closest_marker("whole_suites")]
    if whole and not config.getoption("whole_suites"):
        items[:] = [item for item in items if item not in whole]
        config.hook.pytest_deselected(items=whole)


@pytest.fixture(scope="module", autouse=True)
def _forget_what_there_is() -> None:
    """Have collections of garbage look at what a file of tests makes only, and not at all that was imported, collected
    or kept before: hundreds of tests collect, and each would take half a second for it.
    """
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests have to tell of the suites that they ran."""
    for report in [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]:
        for name, value in report.user_properties:
            if name == "table":
                terminalreporter.write_line(str(value))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = _refuse_skip(item.config, (yield))
    # One process tells another in UTF-8 what a test printed and logged: all would end with one lone surrogate in that.
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _refuse_skip(collector.config, (yield))


def _refuse_skip(config, report):
    expected_to_fail = hasattr(report, "wasxfail")
    if report.skipped and not expected_to_fail and config.getoption("no_skips"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {reason}"
    return report
