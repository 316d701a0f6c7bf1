# SPDX-License-Identifier: Apache-2.0
"""The answer to a commit is lost at every transaction of every operation, made or not, and the client asks again.

Whatever was lost, nothing acknowledged is, nothing is left behind, and the audit finds database and stores of one mind.
"""

from __future__ import annotations

import itertools
import uuid

import pytest
from deployment import OCTETS, READY, Deployed, lose_commit

from storelib.api.auditing import Audit
from storelib.api.errors import OutcomeUnknown

DATA = b"the data of an image" * 100
#: More transactions than any of these operations has.
MANY = 40


class TestLostCommits(Deployed):
    options = {  # noqa: RUF012
        "enabled_import_methods": "glance-direct, copy-image",
        "show_multiple_locations": True,
        "show_image_direct_url": True,
    }

    # -- Operations: each gets an image ready for it, and says what has to hold at the end ---------------------

    def create(self, image):
        made = str(uuid.uuid4())
        assert self.ask(lambda: self.api.alice.post("/v2/images", {**READY, "id": made})) in (201, 409)
        assert self.api.alice.show(made)["status"] == "queued"

    def update(self, image):
        change = {"op": "replace", "path": "/name", "value": "new"}
        assert self.ask(lambda: self.api.alice.patch(image, change)) == 200
        assert self.api.alice.show(image)["name"] == "new"

    def upload(self, image):
        assert self.ask(lambda: self.api.alice.upload(image, DATA)) in (204, 409)
        self.must_be(image, DATA)

    def failing_upload(self, image):
        assert self.ask(lambda: self.api.alice.upload(image, DATA, x_openstack_image_size="7")) in (400, 409)
        self.recover()
        if self.api.alice.show(image)["status"] != "active":
            self.upload(image)

    def stage_and_import(self, image):
        status = self.ask(lambda: self.api.alice.request("PUT", f"/v2/images/{image}/stage", OCTETS, body=DATA))
        assert status in (204, 409)
        method = {"method": {"name": "glance-direct"}}
        assert self.ask(lambda: self.api.alice.post(f"/v2/images/{image}/import", method)) in (202, 409)
        self.recover()
        if self.api.alice.show(image)["status"] == "queued":
            # The import failed as a whole: the data has to come again.
            return self.stage_and_import(image)
        if self.api.alice.show(image)["status"] == "uploading":
            assert self.ask(lambda: self.api.alice.post(f"/v2/images/{image}/import", method)) in (202, 409)
            self.recover()
        return self.must_be(image, DATA)

    def copy(self, image):
        method = {"method": {"name": "copy-image"}, "stores": ["mem"]}
        assert self.ask(lambda: self.api.alice.upload(image, DATA)) in (204, 409)
        self.recover()
        for _ in range(3):
            assert self.ask(lambda: self.api.admin.post(f"/v2/images/{image}/import", method)) in (202, 400, 409)
            self.recover()
        assert sorted(self.api.alice.show(image)["stores"].split(",")) == ["fast", "mem"]
        self.must_be(image, DATA)

    def drop_a_location(self, image):
        self.copy(image)
        remove = {"op": "remove", "path": "/locations/0"}
        locations = len(self.api.alice.show(image)["locations"])
        while len(self.api.alice.show(image)["locations"]) == locations:
            assert self.ask(lambda: self.api.admin.patch(image, remove)) in (200, 403, 409)
        self.must_be(image, DATA)

    def share(self, image):
        self.ask(lambda: self.api.alice.post(f"/v2/images/{image}/members", {"member": "beta"}))
        assert self.api.alice.get(f"/v2/images/{image}/members/beta").status_code == 200
        assert self.ask(lambda: self.api.alice.delete(f"/v2/images/{image}/members/beta")) in (204, 404)
        assert self.api.alice.get(f"/v2/images/{image}/members/beta").status_code == 404

    def tag(self, image):
        assert self.ask(lambda: self.api.alice.put(f"/v2/images/{image}/tags/red")) == 204
        assert self.api.alice.show(image)["tags"] == ["red"]
        assert self.ask(lambda: self.api.alice.delete(f"/v2/images/{image}/tags/red")) in (204, 404)
        assert self.api.alice.show(image)["tags"] == []

    def delete(self, image):
        assert self.ask(lambda: self.api.alice.upload(image, DATA)) in (204, 409)
        self.recover()
        assert self.ask(lambda: self.api.alice.delete(f"/v2/images/{image}")) in (204, 403, 404)
        self.recover()
        assert self.api.alice.get(f"/v2/images/{image}").status_code == 404
        assert image not in self.api.files()

    def delete_without_data(self, image):
        assert self.ask(lambda: self.api.alice.delete(f"/v2/images/{image}")) in (204, 404)
        assert self.api.alice.get(f"/v2/images/{image}").status_code == 404

    # -- Helpers -------------------------------------------------------------------------------------------------

    def ask(self, request):
        """As a client does: again after 503. What is left to do by the process itself is done in between."""
        for _ in range(4):
            status = request().status_code
            self.api.settle()
            if status != 503:
                return status
            self.recover()
        return status

    def recover(self):
        self.api.settle()
        for _ in range(2):
            try:
                self.api.service.lease.beat()
            except OutcomeUnknown:
                continue
        self.api.settle()

    def must_be(self, image, data):
        self.recover()
        shown = self.api.alice.show(image)
        assert (shown["status"], shown["size"]) == ("active", len(data))
        assert self.api.alice.download(image).content == data

    @pytest.mark.parametrize("made", [True, False], ids=["made", "not made"])
    @pytest.mark.parametrize(
        "operation",
        [
            "create",
            "update",
            "upload",
            "failing_upload",
            "stage_and_import",
            "copy",
            "drop_a_location",
            "share",
            "tag",
            "delete",
            "delete_without_data",
        ],
    )
    def test_it_is_as_if_nothing_was_lost(self, monkeypatch, operation, made):
        monkeypatch.setattr("storelib.api.service.lease.ABANDONED", -1.0)
        for number in itertools.count(1):
            assert number < MANY
            image = self.api.alice.create()
            with monkeypatch.context() as patch:
                done = lose_commit(self.api.repository, patch, number, made)
                getattr(self, operation)(image)
            self.recover()
            self.api.service.lease.scrub()
            where = f"{operation}, transaction {number}"
            assert self.api.repository.uploads.get(image) is None, where
            assert [
                tuple(found) for found in Audit(self.api.repository, self.api.registry, older_than=0.0, deep=True).run()
            ] == [], where
            staging = self.api.directory / "staging"
            assert not staging.exists() or not list(staging.iterdir()), where
            # Or each audit would read the images of all transactions before.
            self.api.admin.delete(f"/v2/images/{image}")
            if len(done) < number:
                assert number > 1
                return
