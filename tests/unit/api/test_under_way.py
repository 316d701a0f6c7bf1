# SPDX-License-Identifier: Apache-2.0
"""What is under way is told as it changes, and taken back at the end however that comes."""

from __future__ import annotations

import pytest

from storelib.api.service.under_way import UnderWay


@pytest.fixture
def told():
    changes = []
    under_way = UnderWay()
    under_way.on_change = lambda what, by: changes.append((what, by))
    return under_way, changes


def test_bytes_are_told_step_by_step_and_taken_back(told):
    under_way, changes = told
    passed = []
    with under_way.bytes_of("staging_bytes", lambda done, total: passed.append((done, total))) as progress:
        for done in (0, 10, 25):
            progress(done, 100)
    assert passed == [(0, 100), (10, 100), (25, 100)]
    assert changes == [("staging_bytes", by) for by in (0, 10, 15, -25)]


def test_what_fails_is_over_too(told):
    under_way, changes = told
    with pytest.raises(KeyError), under_way.one_of("uploads"):
        raise KeyError
    assert changes == [("uploads", 1), ("uploads", -1)]
