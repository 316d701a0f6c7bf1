# SPDX-License-Identifier: Apache-2.0
"""What the cinder driver removes, and what it leaves alone, in a Cinder that is some dictionaries."""

import re
import types

import pytest
from cinder_user import OTHER, USER, VOLUME

from storelib.drivers.cinder import CinderStore, publication
from storelib.exceptions import InUseByStore, NotFound, RemoteServiceUnavailable, StoreError
from storelib.registry import open_store
from storelib.volumes.holds import Note

ATTACHMENT = "a3d0b2c1-33c6-4f0f-a2be-a5ffb8c38e7a"
COMPLETE = {
    **publication.id_entries("image"),
    "image_size": "5",
    "storelib_store": "fast",
    "storelib_state": "complete",
}
PENDING = {**COMPLETE, "storelib_state": "pending"}


class Cinder:
    """The volumes and attachments of one project, asked as cinderclient asks."""

    session = types.SimpleNamespace(timeout=5.0)

    def __init__(self, project="ours"):
        self.project = project
        self.volumes = {}
        self.attachments = []
        self.asked = []
        #: Called before each request is answered.
        self.before = lambda method, path: None

    def get_endpoint(self):
        return "https://cinder:8776/v3"

    def get_project_id(self):
        return self.project

    def has(self, volume_id, metadata, status="available", **more):
        self.volumes[volume_id] = {
            "id": volume_id,
            "status": status,
            "size": 1,
            "metadata": metadata,
            "created_at": "2020-11-28T14:43:29.713558",
            "updated_at": None,
            "volume_type": "shared",
            **more,
        }

    def attach(self, attachment_id, volume_id, status="reserved", instance=None):
        self.attachments.append({"id": attachment_id, "volume_id": volume_id, "status": status, "instance": instance})

    def request(self, path, method, **options):
        self.asked.append((method, path))
        self.before(method, path)
        status, body = self.answer(method, path)
        return types.SimpleNamespace(status_code=status, headers={}, reason="", text=""), body

    def answer(self, method, path):
        path, _, query = path.partition("?")
        _, kind, which, *_ = [*path.split("/"), ""]
        if kind == "volumes" and which == "detail":
            return 200, {"volumes": list(self.volumes.values())}
        if kind == "snapshots":
            # It takes no filter.
            return 200, {"snapshots": [{"id": "s", "volume_id": OTHER}]}
        if kind == "attachments" and method == "GET":
            return 200, {"attachments": [each for each in self.attachments if each["volume_id"] in query]}
        if kind == "attachments":
            self.attachments = [each for each in self.attachments if each["id"] != which]
            return 200, {"attachments": []}
        if which not in self.volumes:
            return 404, {"itemNotFound": {"message": "no"}}
        if method == "GET":
            return 200, {"volume": self.volumes[which]}
        is_attached = any(each["volume_id"] == which for each in self.attachments)
        if self.volumes[which]["status"] not in ("available", "error") or is_attached:
            return 400, {"badRequest": {"message": "in use"}}
        del self.volumes[which]
        return 202, None


@pytest.fixture
def open_project(tmp_path, monkeypatch):
    """Opens a store with a user of its own, and the Cinder that it sees; all are on one host."""
    monkeypatch.setattr("storelib.volumes.attachments._CONNECTING", 0.01)

    def opened(project="ours", **options):
        options = {**USER, "cinder_state_path": str(tmp_path), "transfer_timeout": 20.0, **options}
        store, cinder = open_store(CinderStore, "fast", **options), Cinder(project)
        store.service._user = store.service._new_user(cinder)
        return store, cinder

    return opened


def killed(store, *notes):
    """A transfer of a process that was killed, which has noted this."""
    hold = store.service.user(None).holds.take()
    for note in notes:
        hold.note(note)
    token = hold.token
    hold.drop()
    return token


def test_attachment_of_another_project_is_left_to_its_store(open_project):
    """They note what they hold in one place, and neither sees what Cinder tells the other."""
    (ours, _), (theirs, cinder) = open_project("ours"), open_project("theirs")
    cinder.has(VOLUME, COMPLETE, "in-use")
    cinder.attach(ATTACHMENT, VOLUME, "attached")
    killed(theirs, Note(VOLUME, ATTACHMENT, "image"))
    assert ours.gc(0) == []
    assert [each.image_id for each in theirs.gc(0)] == ["image"]
    assert cinder.attachments == []
    assert list(theirs.service.user(None).holds.dead()) == []


def test_reservation_whose_answer_came_too_late_is_ended(open_project):
    """Its process was killed before it knew the id, and the volume could never be deleted."""
    store, cinder = open_project()
    cinder.has(VOLUME, COMPLETE, "reserved")
    cinder.attach(ATTACHMENT, VOLUME)
    killed(store, Note(VOLUME, "", "image"))
    assert [each.image_id for each in store.gc(0)] == ["image"]
    assert cinder.attachments == []
    assert list(store.service.user(None).holds.dead()) == []


def test_such_a_reservation_keeps_nobody_from_deleting(open_project):
    store, cinder = open_project()
    cinder.has(VOLUME, COMPLETE, "available")
    cinder.attach(ATTACHMENT, VOLUME)
    killed(store, Note(VOLUME, "", "image"))
    store.delete(f"cinder://fast/{VOLUME}")
    assert cinder.volumes == {}


@pytest.mark.parametrize("status", ["reserved", "attached"])
def test_what_others_have_is_no_reservation_without_an_answer(open_project, status):
    store, cinder = open_project()
    cinder.has(VOLUME, COMPLETE, "in-use")
    # An instance of Nova is going to have it, or another reader has it.
    cinder.attach(ATTACHMENT, VOLUME, status, instance="an instance" if status == "reserved" else None)
    killed(store, Note(VOLUME, "", "image"))
    assert store.gc(0) == []
    assert len(cinder.attachments) == 1


def test_image_that_is_published_while_gc_looks_at_its_volume_stays(open_project):
    """Of an add of another host: it is pending and attached, then an image without an attachment."""
    store, cinder = open_project()
    cinder.has(VOLUME, PENDING, "in-use")
    cinder.attach(ATTACHMENT, VOLUME, "attached")
    [] = store.find_garbage(0)
    cinder.attachments.clear()
    found = list(store.find_garbage(0))
    cinder.attach(ATTACHMENT, VOLUME, "attached")

    def publish(method, path):
        if path.startswith("/attachments?"):
            cinder.has(VOLUME, COMPLETE)
            cinder.attachments.clear()

    cinder.before = publish
    assert [store.discard(each) for each in found] == [False]
    assert cinder.volumes


def test_volume_that_cinder_could_not_delete_is_not_gone(open_project):
    """An image API would forget it, and nobody would look for it any more."""
    store, cinder = open_project()
    cinder.has(VOLUME, COMPLETE, "error_deleting")
    with pytest.raises(StoreError, match="administrator") as raised:
        store.delete(f"cinder://fast/{VOLUME}")
    assert not isinstance(raised.value, NotFound)
    with pytest.raises(NotFound):
        store.get_size(f"cinder://fast/{VOLUME}")


@pytest.mark.parametrize("metadata", [COMPLETE, {"glance_image_id": "image", "image_size": "5"}])
def test_image_whose_volume_is_in_error_is_deleted(open_project, metadata):
    """Told that there is none, an image API would forget it, and the volume would stay."""
    store, cinder = open_project()
    cinder.has(VOLUME, metadata, "error")
    store.delete(f"cinder://{VOLUME}")
    assert cinder.volumes == {}


@pytest.mark.parametrize("metadata", [PENDING, {"glance_image_id": "image"}, {}])
def test_volume_in_error_that_is_no_image_is_not_deleted(open_project, metadata):
    store, cinder = open_project()
    cinder.has(VOLUME, metadata, "error")
    with pytest.raises(NotFound):
        store.delete(f"cinder://{VOLUME}")
    assert cinder.volumes


def test_volume_of_others_that_could_not_be_deleted_is_none_of_ours(open_project):
    store, cinder = open_project()
    cinder.has(VOLUME, {**COMPLETE, "storelib_store": "slow"}, "error_deleting")
    with pytest.raises(NotFound):
        store.delete(f"cinder://fast/{VOLUME}")


def test_deletion_whose_answer_was_lost_is_waited_for(open_project):
    store, cinder = open_project()
    cinder.has(VOLUME, COMPLETE)
    looks = []

    def lose(method, path):
        if method == "DELETE":
            cinder.volumes[VOLUME]["status"] = "deleting"
            raise RemoteServiceUnavailable("no answer")
        if cinder.volumes[VOLUME]["status"] == "deleting":
            looks.append(path)
            if len(looks) == 4:
                del cinder.volumes[VOLUME]

    cinder.before = lose
    store.delete(f"cinder://fast/{VOLUME}")
    assert cinder.volumes == {}


@pytest.mark.parametrize(("attached", "told"), [(True, "gc on its host"), (False, "which is maintenance")])
def test_what_keeps_a_volume_from_being_deleted_is_told(open_project, attached, told):
    """And snapshots of other volumes do not."""
    store, cinder = open_project()
    cinder.has(VOLUME, COMPLETE, "in-use" if attached else "maintenance")
    if attached:
        cinder.attach(ATTACHMENT, VOLUME, "attached")
    with pytest.raises(InUseByStore, match=re.escape(told)):
        store.delete(f"cinder://fast/{VOLUME}")


@pytest.mark.parametrize("size", ["many", "", "9999999999999", None])
def test_volume_that_does_not_tell_its_size_keeps_no_other_from_being_listed(open_project, size, caplog):
    store, cinder = open_project()
    told = {key: value for key, value in COMPLETE.items() if key != "image_size"}
    cinder.has(VOLUME, told if size is None else {**told, "image_size": size})
    cinder.has(OTHER, COMPLETE)
    assert [each.uri for each in store.list_images()] == [f"cinder://fast/{OTHER}"]
    assert VOLUME in caplog.text
