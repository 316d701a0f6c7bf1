# SPDX-License-Identifier: Apache-2.0
"""Deleted images are forgotten in the background: those of a certain age, by one process at a time, a few at once."""

from __future__ import annotations

import threading
import time

import pytest
from deployment import FILE, Deployment

from storelib.api import create_app, purging
from storelib.api.db.records import Caller, NewImage, Query
from storelib.api.errors import ImageNotFound
from storelib.api.purging import NAME, Purging
from storelib.config import load_file
from storelib.exceptions import BadStoreConfiguration


@pytest.fixture
def api(tmp_path):
    deployment = Deployment(tmp_path)
    yield deployment
    deployment.close()


@pytest.fixture
def deleted(api):
    """Three images that were deleted, with all that belongs to them."""
    made = [api.alice.create(tags=["t"], a="b") for _ in range(3)]
    for image in made:
        assert api.alice.delete(f"/v2/images/{image}").status_code == 204
    return made


def is_there(api, image):
    try:
        return api.repository.images.get(image, deleted=True).deleted
    except ImageNotFound:
        return False


def test_what_was_deleted_long_ago_is_forgotten(api, deleted, monkeypatch):
    monkeypatch.setattr(purging, "BATCH", 2)
    living = api.alice.create()
    assert Purging(api.service, 3600, 0).look() == 0
    assert all(is_there(api, image) for image in deleted)
    # Begun once an hour.
    assert Purging(api.service, 0, 0).look() is None
    monkeypatch.setattr(purging, "INTERVAL", 0)
    assert Purging(api.service, 0, 0).look() == 3
    assert not any(is_there(api, image) for image in deleted)
    assert api.repository.images.get(living).status == "queued"
    assert api.repository.rounds.get(NAME).last == {"images": 3}


def test_one_process_is_at_it_and_another_goes_on_when_it_stops(api, deleted, monkeypatch):
    monkeypatch.setattr(purging, "BATCH", 1)
    other = api.repository.processes.join("elsewhere", 1)
    assert api.repository.rounds.claim(NAME, other.id, 60, 0) is not None
    assert Purging(api.service, 0, 0).look() is None
    api.repository.rounds.leave(NAME, other.id)
    stopped = Purging(api.service, 0, 0)
    stopped.stop()
    assert stopped.look() == 1
    assert sum(is_there(api, image) for image in deleted) == 2
    assert Purging(api.service, 0, 0).look() == 2


def test_it_goes_as_slowly_as_it_is_asked_to(api, deleted, monkeypatch):
    monkeypatch.setattr(purging, "BATCH", 1)
    slow, waited = Purging(api.service, 0, 0.001), []

    def wait(seconds):
        waited.append(seconds)
        slow.stop()

    monkeypatch.setattr(slow._rate_limit, "_pause", wait)
    monkeypatch.setattr(slow._rate_limit, "spend", lambda count: wait(count / 0.001))
    assert slow.look() == 1
    assert waited == [1000]


def test_stopping_ends_a_wait_of_its_own_rate_limit_at_once(api, deleted, monkeypatch):
    monkeypatch.setattr(purging, "BATCH", 1)
    slow, waits = Purging(api.service, 0, 0.001), []

    def wait(seconds):
        waits.append(seconds)
        slow.stop()
        return slow._stop.is_set()

    monkeypatch.setattr(slow._rate_limit, "_pause", wait)
    # 1000 seconds for an image.
    assert slow.look() == 1
    assert len(waits) == 1


@pytest.mark.parametrize("option", ["purge_after", "audit_interval", "lease_timeout", "scrub_time", "wakeup_time"])
def test_times_that_no_calendar_has_are_refused_at_the_start(tmp_path, option):
    path = tmp_path / "storelib.ini"
    path.write_text(FILE.format(directory=tmp_path) + f"[api]\n{option} = 1000000000000\n")
    with pytest.raises(BadStoreConfiguration, match=option):
        create_app(load_file(path))


def test_servers_do_it_by_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr(purging, "LOOK", 0.01)
    monkeypatch.setattr(purging, "INTERVAL", 0)
    path = tmp_path / "storelib.ini"
    path.write_text(FILE.format(directory=tmp_path) + "[api]\npurge_after = 0.001\npurge_rate = 0\n")
    app = create_app(load_file(path))
    try:
        images = app.service.core.repository.images
        image = images.create(NewImage("0" * 36, owner="me"))
        images.transition(image.id, from_={"queued"}, to="deleted")
        deadline = time.monotonic() + 60
        while image.id in {each.id for each in images.list(Query(Caller("me"), deleted=True)).images}:
            assert time.monotonic() < deadline, "it is not purged"
            time.sleep(0.01)
    finally:
        app.close()
    assert not any(thread.name == "storelib-purge" for thread in threading.enumerate())
