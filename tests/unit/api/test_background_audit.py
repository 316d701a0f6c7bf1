# SPDX-License-Identifier: Apache-2.0
"""The audit in the background: one process at a time, slowly, and from where it was; what it finds is told."""

from __future__ import annotations

import logging
import os
import time
import types

import pytest
from deployment import Deployment, add_location

from storelib.api.background_audit import NAME, AuditMetrics, BackgroundAudit, _Stopped
from storelib.api.db.records import NewImage, NewLocation
from storelib.api.service import rate_limit
from storelib.api.service.lease import this_host

DATA = b"some data " * 100


@pytest.fixture
def api(tmp_path):
    deployment = Deployment(tmp_path, audit_interval="3600")
    yield deployment
    deployment.close()


@pytest.fixture
def background_audit(api):
    return BackgroundAudit(api.service, 3600, 0)


def spoil(api, image):
    (api.directory / "images" / image).write_bytes(DATA[::-1])


def metrics(service):
    """Samples by name and labels."""
    samples = (sample for family in AuditMetrics(service).collect() for sample in family.samples)
    return {(sample.name.removeprefix("storelib_audit_"), *sample.labels.values()): sample.value for sample in samples}


def test_what_agrees_is_counted(api, background_audit):
    for _ in range(3):
        api.alice.active(DATA)
    before = time.time()
    assert metrics(api.service) == {}
    assert background_audit.look()
    found = metrics(api.service)
    assert (found["images", "last"], found["bytes", "last"]) == (3, 3 * len(DATA))
    assert before <= found["started_seconds",] <= found["finished_seconds",] <= time.time()
    assert not any(name[0] == "findings" for name in found)


def test_what_disagrees_is_logged_notified_and_counted(api, background_audit, caplog):
    good, rotten = api.alice.active(DATA), api.alice.active(DATA)
    spoil(api, rotten)
    api.registry["fast"].add("orphan", DATA)
    api.events.clear()
    with caplog.at_level(logging.INFO):
        assert background_audit.look()
    found = metrics(api.service)
    # The md5 and the sha512 are both others.
    assert (found["findings", "last", "digest"], found["findings", "last", "orphan"]) == (2, 1)
    told = [payload for priority, event, payload in api.events if (priority, event) == ("error", "image.audit")]
    assert sorted(told) == [
        *[f"digest: image {rotten} in store fast"] * 2,
        "orphan: image orphan in store fast",
    ]
    assert rotten in caplog.text
    assert good not in caplog.text
    assert str(api.directory) not in "".join(map(str, api.events))


def shared_in_two_spellings(api):
    """Two images with the same data; the second was recorded before URIs were taken in the spelling of the store."""
    first = api.alice.active(DATA)
    uri = api.repository.images.get(first).locations[0].uri
    other = uri.replace("file://", "file://localhost")
    image = NewImage(
        "other", status="active", size=len(DATA), owner="alpha", locations=(NewLocation(other, {"store": "fast"}),)
    )
    return first, api.repository.images.create(image).id


def test_data_that_another_image_has_in_another_spelling_stays(api, background_audit):
    first, second = shared_in_two_spellings(api)
    assert background_audit.look()
    assert api.alice.delete(f"/v2/images/{first}").status_code == 204
    assert api.alice.download(second).content == DATA
    assert api.alice.delete(f"/v2/images/{second}").status_code == 204
    assert api.files() == []


def test_data_is_not_deleted_by_another_spelling_than_that_of_the_image_that_stays(api):
    first, second = shared_in_two_spellings(api)
    assert api.alice.delete(f"/v2/images/{second}").status_code == 204
    assert api.alice.download(first).content == DATA


def test_an_image_keeps_a_place_once_that_it_has_in_two_spellings(api, background_audit):
    image = api.alice.active(DATA)
    location = api.repository.images.get(image).locations[0]
    again = NewLocation(location.uri.replace("file://", "file://localhost"), {"store": "fast"})
    add_location(api.repository, image, again)
    assert background_audit.look()
    assert [each.uri for each in api.repository.images.get(image).locations] == [location.uri]
    assert api.alice.download(image).content == DATA


def test_a_round_is_due_after_the_interval(api, background_audit):
    assert background_audit.look()
    assert not background_audit.look()
    assert BackgroundAudit(api.service, 0.001, 0).look()


def test_what_was_repaired_is_not_counted_in_the_next_round(api):
    image = api.alice.active(DATA)
    spoil(api, image)
    assert BackgroundAudit(api.service, 0.001, 0).look()
    (api.directory / "images" / image).write_bytes(DATA)
    time.sleep(0.002)
    assert BackgroundAudit(api.service, 0.001, 0).look()
    assert not any(name[0] == "findings" for name in metrics(api.service))


def test_it_goes_on_where_it_was_stopped(api, monkeypatch):
    images = sorted(api.alice.active(DATA) for _ in range(4))
    spoil(api, images[0])
    first = BackgroundAudit(api.service, 3600, 0)
    note, noted = api.repository.rounds.note, []

    def stop_after_two(name, process_id, position, counts):
        noted.append(position)
        if len(noted) == 2:
            first._stop.set()
        return note(name, process_id, position, counts)

    monkeypatch.setattr(api.repository.rounds, "note", stop_after_two)
    assert not first.look()
    monkeypatch.undo()
    assert noted == images[:2]
    other = api.another_process()
    reads = []
    read = api.registry["fast"].open_reader
    monkeypatch.setattr(api.registry["fast"], "open_reader", lambda *arguments: reads.append(1) or read(*arguments))
    assert BackgroundAudit(other, 3600, 0).look()
    assert len(reads) == 2
    found = metrics(api.service)
    assert (found["images", "last"], found["findings", "last", "digest"]) == (4, 2)
    other.stop()
    other.core.repository.close()


def test_one_process_at_a_time(api):
    other = api.repository.processes.join("elsewhere", 1)
    assert api.repository.rounds.claim(NAME, other.id, 30, 3600) is not None
    assert not BackgroundAudit(api.service, 3600, 0).look()
    api.repository.processes.leave(other.id)
    assert BackgroundAudit(api.service, 3600, 0).look()


def test_a_process_that_was_taken_for_dead_stops(api, monkeypatch):
    api.alice.active(DATA)
    background_audit = BackgroundAudit(api.service, 3600, 0)
    other = api.repository.processes.join(this_host(), os.getpid())
    note = api.repository.rounds.note

    def lose_first(*arguments):
        api.repository.rounds.leave(NAME, api.service.lease.id)
        assert api.repository.rounds.claim(NAME, other.id, 30, 3600) is not None
        return note(*arguments)

    monkeypatch.setattr(api.repository.rounds, "note", lose_first)
    assert not background_audit.look()
    assert api.repository.rounds.get(NAME).finished_at is None


def test_it_reads_no_faster_than_it_may(api, monkeypatch):
    api.alice.active(DATA)
    background_audit = BackgroundAudit(api.service, 3600, 500)
    slept = []
    start = time.monotonic()
    background_audit._rate_limit._pause = slept.append
    monkeypatch.setattr(rate_limit, "time", types.SimpleNamespace(monotonic=lambda: start + sum(slept)))
    background_audit._rate_limit._due = start
    assert background_audit.look()
    assert sum(slept) == pytest.approx(len(DATA) / 500)


def test_stopping_ends_a_long_read(api):
    api.alice.active(DATA)
    background_audit = BackgroundAudit(api.service, 3600, 1)
    background_audit._stop.set()
    with pytest.raises(_Stopped):
        background_audit._check(0)
    assert not background_audit.look()
    background_audit.stop()


def test_a_round_of_another_version_without_counts_goes_on(api, background_audit):
    assert api.repository.rounds.claim(NAME, "p", 30, 3600).counts == {}
    assert background_audit.look()


def test_metrics_work_without_a_database(api, monkeypatch):
    from storelib.api.errors import DatabaseUnavailable

    def fail(name):
        raise DatabaseUnavailable

    monkeypatch.setattr(api.repository.rounds, "get", fail)
    assert api.nobody.get("/metrics").status_code == 200
