# SPDX-License-Identifier: Apache-2.0
"""The answer to a commit is lost, of version 1, tasks, recovery and what else works in the background, too: the client
tries again through the same process, and in the end all that was promised is there, nothing else is, no task runs.
"""

from __future__ import annotations

import io
import uuid

import pytest
from deployment import OCTETS, READY, Deployment, lose_commit

from storelib.api.auditing import Audit
from storelib.api.errors import ApiError, OutcomeUnknown
from storelib.api.service import Source, administrator
from storelib.exceptions import StoreError

DATA = b"some data " * 100
#: More transactions than any operation has.
MANY = 30


class Breaks:
    def read(self, size):
        raise OSError("the client is gone")


@pytest.fixture
def api(tmp_path, monkeypatch):
    # Whatever was interrupted is old enough to be cleaned up.
    monkeypatch.setattr("storelib.api.service.lease.ABANDONED", -1.0)
    deployment = Deployment(tmp_path, show_multiple_locations="true")
    deployment.service.core.options.wakeup_time = -1
    yield deployment
    deployment.close()


class Scene:
    """One image and what its client does; ``act`` is done again until it ``is_done``."""

    def __init__(self, api):
        self.api = api
        self.path = "/v2/images/" + self.prepare()

    @property
    def id(self):
        return self.path.rpartition("/")[2]

    def prepare(self):
        return self.api.alice.active(DATA)

    def act(self):
        raise NotImplementedError

    def is_done(self):
        raise NotImplementedError

    @property
    def shown(self):
        return self.api.alice.show(self.id)

    def is_active(self):
        return self.shown["status"] == "active" and self.api.alice.download(self.id).content == DATA


class Empty(Scene):
    def prepare(self):
        return self.api.alice.create()


class Create(Scene):
    def prepare(self):
        return str(uuid.uuid4())

    def act(self):
        return self.api.alice.post("/v2/images", READY | {"id": self.id, "tags": ["a"], "colour": "red"}).status_code

    def is_done(self):
        return self.api.alice.get(self.path).status_code == 200 and self.shown["colour"] == "red"


class CreateV1(Create):
    def act(self):
        headers = {
            "x-image-meta-id": self.id,
            "x-image-meta-name": "ready",
            "x-image-meta-disk_format": "raw",
            "x-image-meta-container_format": "bare",
        }
        status = self.api.alice.request("POST", "/v1/images", headers | OCTETS, body=DATA).status_code
        if status != 409:
            return status
        return self.api.alice.request("PUT", f"/v1/images/{self.id}", OCTETS, body=DATA).status_code

    def is_done(self):
        return self.api.alice.get(self.path).status_code == 200 and self.is_active()


class Update(Scene):
    def act(self):
        return self.api.alice.patch(self.id, {"op": "add", "path": "/colour", "value": "red"}).status_code

    def is_done(self):
        return self.shown.get("colour") == "red" and self.is_active()


class Uploading(Empty):
    def act(self):
        return self.api.alice.upload(self.id, DATA).status_code

    def is_done(self):
        return self.is_active()


class FailingUpload(Empty):
    """The client is cut off, then it sends all."""

    tried = False

    def act(self):
        if self.tried:
            return self.api.alice.upload(self.id, DATA).status_code
        self.tried = True
        try:
            self.api.service.data.upload(administrator(), self.id, Source(Breaks(), None))
        except (ApiError, StoreError):
            pass
        return 400

    def is_done(self):
        return self.is_active()


class Stage(Empty):
    def act(self):
        return self.api.alice.request("PUT", self.path + "/stage", OCTETS, body=DATA).status_code

    def is_done(self):
        return self.shown["status"] == "uploading" and self.shown["size"] == len(DATA)


class Import(Empty):
    def act(self):
        if self.shown["status"] == "queued":
            status = self.api.alice.request("PUT", self.path + "/stage", OCTETS, body=DATA).status_code
            if status != 204:
                return status
        document = {"method": {"name": "glance-direct"}, "stores": ["fast", "mem"]}
        return self.api.alice.post(self.path + "/import", document).status_code

    def is_done(self):
        tasks = self.api.alice.get(self.path + "/tasks").json["tasks"]
        assert all(task["status"] in ("success", "failure") for task in tasks)
        return self.is_active() and sorted(self.shown["stores"].split(",")) == ["fast", "mem"]


class Copy(Scene):
    def act(self):
        document = {"method": {"name": "copy-image"}, "stores": ["mem"]}
        return self.api.admin.post(self.path + "/import", document).status_code

    def is_done(self):
        assert not self.shown.get("os_glance_importing_to_stores")
        return self.is_active() and "mem" in self.shown["stores"].split(",")


class AddLocation(Empty):
    def __init__(self, api):
        super().__init__(api)
        self.url = api.registry["mem"].add(self.id, DATA).uri

    def act(self):
        return self.api.nova.post(self.path + "/locations", {"url": self.url}).status_code

    def prepare(self):
        return self.api.nova.create()

    @property
    def shown(self):
        return self.api.admin.show(self.id)

    def is_done(self):
        return self.shown["status"] == "active" and self.api.nova.download(self.id).content == DATA


class DropLocation(Copy):
    def __init__(self, api):
        super().__init__(api)
        assert super().act() == 202
        api.settle()

    def act(self):
        return self.api.admin.delete(f"/v2/stores/mem/{self.id}").status_code

    def is_done(self):
        return self.is_active() and self.shown["stores"] == "fast"


class PatchLocations(Copy):
    def __init__(self, api):
        super().__init__(api)
        assert super().act() == 202
        api.settle()

    def act(self):
        stores = [place["metadata"]["store"] for place in self.shown["locations"]]
        if "mem" not in stores:
            return 200
        return self.api.admin.patch(self.id, {"op": "remove", "path": f"/locations/{stores.index('mem')}"}).status_code

    def is_done(self):
        return self.is_active() and self.shown["stores"] == "fast"


class Members(Scene):
    def act(self):
        self.api.alice.patch(self.id, {"op": "replace", "path": "/visibility", "value": "shared"})
        statuses = [
            self.api.alice.post(self.path + "/members", {"member": "beta"}).status_code,
            self.api.bob.put(self.path + "/members/beta", {"status": "accepted"}).status_code,
        ]
        return max(statuses)

    def is_done(self):
        members = self.api.alice.get(self.path + "/members").json["members"]
        return [member["status"] for member in members] == ["accepted"] and self.is_active()


class Unshare(Members):
    def __init__(self, api):
        super().__init__(api)
        assert super().act() == 200

    def act(self):
        return self.api.alice.delete(self.path + "/members/beta").status_code

    def is_done(self):
        return self.api.alice.get(self.path + "/members").json["members"] == [] and self.is_active()


class Tag(Scene):
    def act(self):
        return self.api.alice.put(self.path + "/tags/a").status_code

    def is_done(self):
        return self.shown["tags"] == ["a"] and self.is_active()


class Untag(Tag):
    def __init__(self, api):
        super().__init__(api)
        assert super().act() == 204

    def act(self):
        return self.api.alice.delete(self.path + "/tags/a").status_code

    def is_done(self):
        return self.shown["tags"] == [] and self.is_active()


class Deactivate(Scene):
    def act(self):
        return self.api.admin.post(self.path + "/actions/deactivate").status_code

    def is_done(self):
        return self.shown["status"] == "deactivated"


class Delete(Scene):
    def act(self):
        return self.api.alice.delete(self.path).status_code

    def is_done(self):
        return self.api.alice.get(self.path).status_code == 404


class DeleteWithoutData(Delete):
    def prepare(self):
        return self.api.alice.create()


class DeleteStaged(Delete):
    def prepare(self):
        image = self.api.alice.create()
        assert self.api.alice.request("PUT", f"/v2/images/{image}/stage", OCTETS, body=DATA).status_code == 204
        return image


class DelayedDelete(Delete):
    """The data could not be deleted with the image; what loses commits is the scrub."""

    def __init__(self, api):
        super().__init__(api)
        api.repository.images.transition(self.id, from_=("active",), to="pending_delete")
        api.repository.images.transition(self.id, from_=("pending_delete",), to="deleted")

    def act(self):
        self.api.service.lease.beat()
        return 204

    def is_done(self):
        return not self.api.repository.locations.pending_for(self.id)


class Recovery(Empty):
    """Another process died in the middle of an upload; what loses commits is what undoes it."""

    def __init__(self, api):
        super().__init__(api)
        other = api.another_process()
        api.registry["fast"].add(self.id, io.BytesIO(DATA))
        other.core.repository.uploads.begin(self.id, other.lease.id, stores=["fast"])
        other.core.repository.processes.leave(other.lease.id)
        other.core.repository.close()

    def act(self):
        self.api.service.start()
        return self.api.alice.upload(self.id, DATA).status_code

    def is_done(self):
        return self.is_active()


SCENES = (
    Create,
    CreateV1,
    Update,
    Uploading,
    FailingUpload,
    Stage,
    Import,
    Copy,
    AddLocation,
    DropLocation,
    PatchLocations,
    Members,
    Unshare,
    Tag,
    Untag,
    Deactivate,
    Delete,
    DeleteWithoutData,
    DeleteStaged,
    DelayedDelete,
    Recovery,
)


def tolerant(act):
    """Background work has no client to tell."""
    try:
        act()
    except OutcomeUnknown:
        pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("scene", SCENES)
def test_whichever_answer_is_lost_all_that_was_promised_is_there_and_nothing_else(api, monkeypatch, scene, committed):
    for number in range(1, MANY):
        before = api.repository.images.usage("alpha")
        tried = scene(api)
        with monkeypatch.context() as patch:
            done = lose_commit(api.repository, patch, number, committed)
            tolerant(tried.act)
            api.settle()
        api.service.lease.beat()
        for _ in range(3):
            if tried.is_done():
                break
            tried.act()
            api.settle()
            api.service.lease.beat()
        where = f"{scene.__name__}, transaction {number}"
        assert tried.is_done(), where
        api.service.lease.beat()
        assert tried.is_done(), where
        assert api.repository.uploads.get(tried.id) is None, where
        staging = api.service.imports.staging._store
        found = list(Audit(api.repository, api.registry, staging=staging, deep=True, older_than=0).run())
        assert found == [], where
        if api.admin.get(tried.path).status_code == 200:
            api.admin.delete(tried.path)
        elif not isinstance(tried, Delete):
            raise AssertionError(where)
        api.service.lease.beat()
        assert api.repository.images.usage("alpha") == before, where
        assert tried.id not in api.files(), where
        if len(done) < number:
            return
    raise AssertionError("it has no end")
