# SPDX-License-Identifier: Apache-2.0
"""What holds for every test. In CI (``CI=true`` or ``--no-skips``) nothing may be skipped: a skip is a failure."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator

import pytest

# The promises of the API's repository, kept on every database.
pytest.register_assert_rewrite("db_contract", "db_model")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-skips",
        action="store_true",
        default=os.environ.get("CI", "").lower() in ("1", "true", "yes"),
        help="a test that skips fails, and so does a file; the default where CI=true",
    )


def pytest_collection_finish() -> None:
    """Thousands of collected tests outlive the run: a collection of garbage takes half a second if it looks at them."""
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _refuse_skip(item.config, (yield))


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
