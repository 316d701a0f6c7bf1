# SPDX-License-Identifier: Apache-2.0
"""Delayed delete: the data of deleted images stays for a time, in which they can be given back, and goes then."""

from __future__ import annotations

import time

import pytest
from deployment import Deployment

from storelib.api.auditing import Audit
from storelib.api.db.records import NewLocation
from storelib.api.service import deletion
from storelib.cli.main import run
from storelib.exceptions import Forbidden

DATA = b"dear to somebody"


@pytest.fixture
def api(tmp_path):
    deployment = Deployment(tmp_path, delayed_delete="true", scrub_time="3600", show_multiple_locations="true")
    yield deployment
    deployment.close()


@pytest.fixture
def command(api, tmp_path, capfd):
    """``storelib scrub ...`` on the same file; returns its exit code."""

    def call(*arguments: str) -> int:
        return run(["--config", str(tmp_path / "storelib.ini"), "scrub", *arguments])

    return call


def deleted(api):
    image = api.alice.active(DATA)
    assert api.alice.delete(f"/v2/images/{image}").status_code == 204
    return image


def test_a_deleted_image_is_gone_for_clients_and_its_data_stays(api):
    image = deleted(api)
    assert api.alice.get(f"/v2/images/{image}").status_code == 404
    assert api.alice.get("/v2/images").json["images"] == []
    assert api.files() == [image]
    row = api.repository.images.get(image, deleted=True)
    assert (row.status, row.deleted, row.deleted_at is not None) == ("pending_delete", True, True)
    api.service.lease.scrub()
    assert api.files() == [image]
    assert list(Audit(api.repository, api.registry, older_than=0).run()) == []


def test_its_id_is_not_used_again(api):
    image = deleted(api)
    assert api.alice.post("/v2/images", {"id": image}).status_code == 409


def test_it_counts_in_no_quota(api):
    image = api.alice.active(DATA)
    owner = api.repository.images.get(image).owner
    assert api.repository.images.usage(owner).total_size == len(DATA)
    api.alice.delete(f"/v2/images/{image}")
    assert api.repository.images.usage(owner).total_size == 0


def test_the_data_goes_when_its_time_is_over(api):
    image = deleted(api)
    api.service.core.options.scrub_time = 0
    deletion.scrub(api.service.core, 0)
    assert api.files() == []
    assert api.repository.images.get(image, deleted=True).status == "deleted"
    assert api.repository.locations.pending_for(image) == []


def test_what_a_store_may_have_of_a_failed_upload_is_not_what_it_keeps(api):
    image = api.alice.active(DATA)
    lease, uploads = api.service.lease, api.repository.uploads
    uploads.begin(image, lease.id, from_=("active",), to=None, stores=["mem"])
    uploads.finish(image, lease.id, to=None, left=[NewLocation("", {"store": "fast"})])
    api.alice.delete(f"/v2/images/{image}")
    lease.scrub()
    assert api.files() == [image]
    assert [each.status for each in api.repository.locations.pending_for(image)] == ["pending_delete"]
    assert api.repository.images.restore(image).status == "active"


def may_be_left(api, noted):
    """An image of which an upload to "mem" failed then, and an image of that id in that store."""
    image = api.alice.create()
    api.registry["mem"].add(image, DATA)
    lease, uploads = api.service.lease, api.repository.uploads
    uploads.begin(image, lease.id, from_=("queued",), to=None, stores=["mem"])
    uploads.finish(image, lease.id, to=None, left=[NewLocation("", {"store": "mem", "noted": noted})])
    return image


@pytest.mark.parametrize("days", [0, 8])
def test_what_was_there_long_before_an_upload_failed_is_of_others_that_share_the_store(api, days):
    image = may_be_left(api, noted=time.time() + days * 86400)
    api.service.lease.scrub()
    assert api.repository.locations.pending_for(image) == []
    assert (api.registry["mem"].find_image(image) is None) == (days == 0)


def test_what_cannot_be_looked_for_hinders_no_upload_for_ever(api, monkeypatch, caplog):
    def forbidden(*arguments):
        raise Forbidden("this user may not list the bucket")

    image = may_be_left(api, noted=time.time())
    api.registry["mem"].delete(api.registry["mem"].find_image(image).uri)
    monkeypatch.setattr(api.registry["mem"], "find_image", forbidden)
    api.service.lease.scrub()
    assert api.repository.locations.pending_for(image) == []
    assert "store mem may have data that cannot be looked for: this user may not list the bucket" in caplog.text
    assert api.alice.upload(image, DATA).status_code == 204


def test_a_server_scrubs_as_often_as_wakeup_time_says(api, monkeypatch):
    monkeypatch.setattr("storelib.api.service.lease.ABANDONED", -1.0)
    image = deleted(api)
    lease, options = api.service.lease, api.service.core.options
    lease.beat()
    options.scrub_time = 0
    lease.beat()
    assert api.files() == [image]
    options.wakeup_time = -1
    lease.beat()
    assert api.files() == []


def test_locations_that_are_taken_away_stay_for_the_time_too(api):
    image = api.alice.active(DATA)
    copy = {"method": {"name": "copy-image"}, "stores": ["mem"]}
    assert api.admin.post(f"/v2/images/{image}/import", copy).status_code == 202
    assert api.service.workers.wait(30)
    assert api.admin.delete(f"/v2/stores/fast/{image}").status_code == 204
    assert api.files() == [image]
    deletion.scrub(api.service.core, 0)
    assert api.files() == []
    assert api.alice.download(image).content == DATA


def test_images_without_data_are_deleted_at_once(api):
    image = api.alice.create()
    assert api.alice.delete(f"/v2/images/{image}").status_code == 204
    assert api.repository.images.get(image, deleted=True).status == "deleted"


def test_a_deleted_image_is_given_back(api, command):
    image = api.alice.active(DATA)
    api.alice.patch(image, {"op": "add", "path": "/colour", "value": "red"})
    before = api.alice.show(image)
    api.alice.delete(f"/v2/images/{image}")
    assert command("--restore", image) == 0
    after = api.alice.show(image)
    assert {name: after[name] for name in before if name != "updated_at"} == {
        name: before[name] for name in before if name != "updated_at"
    }
    assert api.alice.download(image).content == DATA
    api.service.lease.scrub()
    assert api.alice.download(image).content == DATA


def test_a_deactivated_image_comes_back_deactivated(api, command):
    image = api.alice.active(DATA)
    assert api.admin.post(f"/v2/images/{image}/actions/deactivate").status_code == 204
    before = api.alice.show(image)
    for _ in range(2):
        api.alice.delete(f"/v2/images/{image}")
        assert command("--restore", image) == 0
        after = api.alice.show(image)
        assert (after["status"], after.keys()) == ("deactivated", before.keys())
        assert api.alice.download(image).status_code == 403
    assert api.admin.post(f"/v2/images/{image}/actions/reactivate").status_code == 204
    api.alice.delete(f"/v2/images/{image}")
    assert command("--restore", image) == 0
    assert api.alice.download(image).content == DATA


def test_what_is_gone_is_not_given_back(api, command):
    image = deleted(api)
    deletion.scrub(api.service.core, 0)
    assert command("--restore", image) == 3
    assert command("--restore", api.alice.create()) == 3
    assert command("--restore", "no-such-image") == 3


def test_what_is_being_deleted_is_not_given_back(api, command):
    image = deleted(api)
    [location] = api.repository.locations.pending_for(image)
    assert api.repository.locations.claim(image, location.id, api.service.lease.id, "token")
    assert command("--restore", image) == 6
    assert api.repository.images.get(image, deleted=True).deleted


def test_the_command_scrubs_what_is_old_enough(api, command, capfd):
    deleted(api)
    assert command() == 0
    assert api.files() != []
    capfd.readouterr()
    assert command("--older-than", "0") == 0
    assert api.files() == []
    assert capfd.readouterr().out.split() == ["deleted:", "1", "left:", "0"]


def test_purging_leaves_what_still_has_data(api):
    import datetime

    image = deleted(api)
    later = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=1)
    assert api.repository.images.purge(later) == 0
    deletion.scrub(api.service.core, 0)
    assert api.repository.images.purge(later) == 1
    assert image not in api.files()
