# SPDX-License-Identifier: Apache-2.0
"""Hosts and databases whose clocks are wrong: what is old by one of them only is not deleted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from deployment import Deployment

from storelib.api.db import clocks, locations, rows
from storelib.api.db.schema import image_locations

YEAR = 365 * 86400 * 1_000_000


@pytest.fixture
def api(tmp_path):
    deployment = Deployment(tmp_path, delayed_delete="true", scrub_time="3600")
    yield deployment
    deployment.close()


@pytest.fixture
def read(monkeypatch):
    """Have the clocks differ from the right one by so much."""

    def differ(earliest, latest):
        monkeypatch.setattr(
            clocks, "read", lambda connection: clocks.Clocks(rows.now() + earliest, rows.now() + latest)
        )

    return differ


def pending(api):
    with api.repository.database.engine.connect() as connection:
        return connection.execute(image_locations.select()).one().pending_since


@pytest.mark.parametrize("apart", [-YEAR, YEAR])
def test_the_one_that_is_behind_and_the_one_that_is_ahead_are_known(apart):
    response = SimpleNamespace(scalar_one=lambda: rows.now() + apart)
    server = SimpleNamespace(dialect=SimpleNamespace(name="postgresql"), execute=lambda statement: response)
    found = clocks.read(server)
    assert abs(found.latest - found.earliest - YEAR) < 60_000_000


def test_a_clock_that_is_ahead_ends_no_time_early(api, read):
    image = api.alice.active()
    api.alice.delete(f"/v2/images/{image}")
    read(0, YEAR)
    api.service.lease.scrub()
    assert api.files() == [image]
    read(YEAR, YEAR)
    api.service.lease.scrub()
    assert api.files() == []


def test_to_a_clock_that_is_behind_nothing_is_in_the_future(api, read, monkeypatch):
    image = api.alice.active()
    api.alice.delete(f"/v2/images/{image}")
    before = pending(api)
    monkeypatch.setattr(locations, "now", lambda: rows.now() - YEAR)
    read(-YEAR, 0)
    api.service.lease.scrub()
    assert (pending(api), api.files()) == (before, [image])
