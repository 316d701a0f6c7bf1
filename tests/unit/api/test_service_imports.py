# SPDX-License-Identifier: Apache-2.0
"""Stage and import: from staged data, from the web, from one store to others; what is left when it fails."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import uuid

import pytest
from deployment import OCTETS, Deployed, Deployment
from web_servers import web_server

from storelib.api.auditing import Audit
from storelib.api.db.records import Changes, NewLocation
from storelib.api.db.schema import images
from storelib.api.db.tasks import NewTask
from storelib.api.errors import OutcomeUnknown
from storelib.api.service import administrator
from storelib.api.service.notifications import Notifier
from storelib.capabilities import Capability
from storelib.drivers.filesystem import FilesystemStore
from storelib.exceptions import BadStoreConfiguration, InUseByStore, RemoteServiceUnavailable, StorageFull
from storelib.transfer.digests import new_hasher

DATA = b"imported data " * 1000


class Importing(Deployed):
    def stage(self, image, data=DATA, caller=None):
        return (caller or self.api.alice).request("PUT", f"/v2/images/{image}/stage", OCTETS, body=data)

    def start(self, image, name, caller=None, header=None, **more):
        method = {"name": name, **({"uri": more.pop("uri")} if "uri" in more else {})}
        headers = {"x_image_meta_store": header} if header else {}
        response = (caller or self.api.alice).post(f"/v2/images/{image}/import", {"method": method, **more}, **headers)
        self.api.settle()
        return response

    def staged(self):
        staging = self.api.directory / "staging"
        return sorted(path.name for path in staging.iterdir()) if staging.exists() else []

    def fail(self, *arguments):
        raise StorageFull("no room")

    def break_store(self, monkeypatch, name):
        monkeypatch.setattr(self.api.registry[name], "open_writer", self.fail)

    def delete_while_it_is_stored(self, monkeypatch, image, name):
        """Delete the image when its data is about to be written into the store."""
        store = self.api.registry[name]
        open_writer = store.open_writer

        def delete_first(*arguments):
            assert self.api.alice.delete(f"/v2/images/{image}").status_code == 204
            return open_writer(*arguments)

        monkeypatch.setattr(store, "open_writer", delete_first)

    @pytest.fixture
    def read_only(self, monkeypatch):
        """The store mem takes no data."""
        store = self.api.registry["mem"]
        monkeypatch.setattr(store, "capabilities", store.capabilities & ~Capability.ADD)

    def failed(self, image):
        shown = self.api.alice.show(image)
        return shown["status"], shown.get("os_glance_failed_import"), shown.get("os_glance_importing_to_stores")

    def lose_commit(self, monkeypatch, committed):
        """The connection is lost at the end of the next upload, before or after the database has it."""
        finish = self.api.repository.uploads.finish

        def lose(*given, **more):
            monkeypatch.undo()
            if committed:
                finish(*given, **more)
            raise OutcomeUnknown("lost")

        monkeypatch.setattr(self.api.repository.uploads, "finish", lose)


class TestGlanceDirect(Importing):
    def test_a_deletion_and_the_import_that_it_ends_may_both_remove_the_stage(self, monkeypatch):
        image = self.api.alice.create()
        self.stage(image)
        delete = FilesystemStore.delete

        def faster(store, uri):
            delete(store, uri)
            delete(store, uri)

        monkeypatch.setattr(FilesystemStore, "delete", faster)
        assert self.api.alice.delete(f"/v2/images/{image}").status_code == 204
        assert self.staged() == []
        assert self.api.alice.get(f"/v2/images/{image}").status_code == 404

    def test_staged_data_is_imported_and_the_stage_is_empty_again(self):
        image = self.api.alice.create()
        assert self.stage(image).status_code == 204
        shown = self.api.alice.show(image)
        assert (shown["status"], shown["size"]) == ("uploading", len(DATA))
        response = self.start(image, "glance-direct")
        assert (response.status_code, response.content) == (202, b"")
        assert not response.headers["content-type"].startswith("application/json")
        assert self.api.alice.show(image)["status"] == "active"
        assert self.api.alice.download(image).content == DATA
        assert self.staged() == []

    def test_one_read_fills_several_stores(self):
        image = self.api.alice.create()
        self.stage(image)
        self.start(image, "glance-direct", stores=["mem", "fast"])
        assert sorted(self.api.alice.show(image)["stores"].split(",")) == ["fast", "mem"]

    def test_all_stores(self):
        image = self.api.alice.create()
        self.stage(image)
        self.start(image, "glance-direct", all_stores=True)
        assert self.api.alice.show(image)["stores"] == "spare,fast,mem"

    def test_all_stores_are_those_that_take_data(self, read_only):
        image = self.api.alice.create()
        self.stage(image)
        self.start(image, "glance-direct", all_stores=True)
        assert self.api.alice.show(image)["stores"] == "spare,fast"

    def test_a_store_that_takes_no_data_is_refused(self, read_only):
        image = self.api.alice.create()
        self.stage(image)
        assert self.start(image, "glance-direct", stores=["fast", "mem"]).status_code == 409
        assert self.api.alice.delete(f"/v2/images/{image}").status_code == 204

    def test_the_header_names_the_store(self):
        image = self.api.alice.create()
        self.stage(image)
        self.start(image, "glance-direct", header="mem")
        assert self.api.alice.show(image)["stores"] == "mem"

    def test_an_import_that_must_fill_all_stores_leaves_nothing_when_one_fails(self, monkeypatch):
        image = self.api.alice.create()
        self.stage(image)
        self.break_store(monkeypatch, "mem")
        self.start(image, "glance-direct", stores=["fast", "mem"])
        assert self.failed(image) == ("queued", "fast,mem", "")
        assert image not in self.api.files()
        assert self.api.alice.delete(f"/v2/images/{image}").status_code == 204
        assert self.staged() == []

    def test_what_was_staged_and_cannot_be_read_is_a_reason_and_stays(self, monkeypatch):
        image = self.api.alice.create()
        self.stage(image)
        opened = self.api.service.imports.staging.open

        def open_without_file(*given):
            material = opened(*given)
            material.path += ".gone"
            return material

        with monkeypatch.context() as broken:
            broken.setattr(self.api.service.imports.staging, "open", open_without_file)
            self.start(image, "glance-direct")
        [task] = self.api.alice.get(f"/v2/images/{image}/tasks").json["tasks"]
        assert (task["status"], task["message"]) == (
            "failure",
            "the data to be imported cannot be read: No such file or directory",
        )
        assert self.failed(image)[0] == "queued"
        assert self.staged() == [image]
        self.start(image, "glance-direct")
        assert self.api.alice.show(image)["status"] == "active"

    def test_what_was_staged_is_imported_again_when_a_store_had_failed(self, monkeypatch):
        image = self.api.alice.create()
        self.stage(image)
        with monkeypatch.context() as patch:
            self.break_store(patch, "mem")
            self.start(image, "glance-direct", stores=["fast", "mem"])
        assert self.failed(image) == ("queued", "fast,mem", "")
        self.api.service.imports.scrub()
        assert self.staged() == [image]
        assert self.start(image, "glance-direct", stores=["mem"]).status_code == 202
        assert self.failed(image) == ("active", "fast", "")
        assert self.api.alice.download(image).content == DATA
        assert self.staged() == []
        tasks = self.api.alice.get(f"/v2/images/{image}/tasks").json["tasks"]
        assert [task["status"] for task in tasks] == ["success", "failure"]

    @pytest.mark.parametrize("way", ["stage", "upload", "delete", "refused"])
    def test_it_stays_no_longer_than_it_can_be_imported(self, way, monkeypatch):
        image = self.api.alice.create(disk_format="raw")
        self.stage(image)
        with monkeypatch.context() as patch:
            self.break_store(patch, "fast")
            self.start(image, "glance-direct")
        assert self.staged() == [image]
        if way == "stage":
            assert self.stage(image, b"newer").status_code == 204
            assert self.start(image, "glance-direct").status_code == 202
            assert self.api.alice.download(image).content == b"newer"
        elif way == "upload":
            assert self.api.alice.upload(image, b"uploaded").status_code == 204
            self.api.service.imports.scrub()
        elif way == "delete":
            assert self.api.alice.delete(f"/v2/images/{image}").status_code == 204
        else:
            assert self.api.alice.patch(image, {"op": "replace", "path": "/disk_format", "value": "qcow2"})
            self.start(image, "glance-direct")
            assert self.failed(image)[0] == "queued"
            assert self.start(image, "glance-direct").status_code == 409
        assert self.staged() == []

    def test_an_import_that_may_fail_in_one_store_is_active_in_the_others(self, monkeypatch):
        image = self.api.alice.create()
        self.stage(image)
        self.break_store(monkeypatch, "mem")
        self.start(image, "glance-direct", stores=["fast", "mem"], all_stores_must_succeed=False)
        assert self.failed(image) == ("active", "mem", "")
        assert self.api.alice.show(image)["stores"] == "fast"

    def test_an_import_of_another_format_fails(self):
        image = self.api.alice.create(disk_format="qcow2")
        self.stage(image)
        self.start(image, "glance-direct")
        assert self.failed(image) == ("queued", "fast", "")
        assert image not in self.api.files()

    def test_who_sees_that_the_task_has_failed_finds_the_image_as_it_is_then(self, monkeypatch):
        """Both are one statement: clients wait for the task and then look at the image."""
        image = self.api.alice.create(disk_format="qcow2")
        self.stage(image)
        uploads, seen = self.api.service.core.repository.uploads, []
        finish = type(uploads).finish

        def finish_and_note(self, image_id, process_id, **how):
            seen.append((how["to"], how["task"] and how["task"].status))
            return finish(self, image_id, process_id, **how)

        monkeypatch.setattr(type(uploads), "finish", finish_and_note)
        monkeypatch.setattr(type(self.api.service.core.repository.tasks), "end", None)
        self.start(image, "glance-direct")
        assert self.failed(image) == ("queued", "fast", "")
        assert seen == [("queued", "failure")]

    def test_an_import_is_told_as_an_upload_is_and_never_where_the_data_is(self):
        self.api.events.clear()
        image = self.api.alice.create()
        self.stage(image)
        self.api.alice.patch(image, {"op": "replace", "path": "/name", "value": "staged"})
        self.start(image, "glance-direct")
        told = [event for _, event, _ in self.api.events]
        of_image = [event for event in told if event.startswith("image.")]
        assert of_image == ["image.create", "image.update", "image.upload", "image.activate"]
        of_task = ["task.create", "task.processing", "task.success", "task.run"]
        assert told == [*of_image[:2], *of_task[:2], *of_image[2:], *of_task[2:]]
        assert str(self.api.directory) not in repr(self.api.events)

    def tasks_told(self):
        return [(event, payload["status"]) for _, event, payload in self.api.events if event.startswith("task.")]

    def test_each_step_of_a_task_is_told_but_not_what_was_asked_for(self):
        image = self.api.alice.create()
        self.stage(image)
        self.api.events.clear()
        self.start(image, "glance-direct", stores=["mem"])
        [task] = self.api.alice.get(f"/v2/images/{image}/tasks").json["tasks"]
        ended = [("task.success", "success"), ("task.run", "success")]
        assert self.tasks_told() == [("task.create", "pending"), ("task.processing", "processing"), *ended]
        payload = self.api.events[-1][2]
        assert (payload["id"], payload["type"], payload["owner"]) == (task["id"], "api_image_import", "alpha")
        assert payload["expires_at"] is not None
        assert not {"input", "given"}.intersection(payload)
        self.api.events.clear()
        assert self.start(image, "copy-image", self.api.admin, stores=["fast"]).status_code == 202
        assert [event for event, _ in self.tasks_told()] == [
            *("task.create", "task.processing", "task.success", "task.run")
        ]

    def test_that_a_task_fails_is_told_without_the_reason(self, monkeypatch):
        image = self.api.alice.create()
        self.stage(image)
        self.break_store(monkeypatch, "mem")
        self.api.events.clear()
        self.start(image, "glance-direct", stores=["mem"])
        ended = [("task.failure", "failure"), ("task.run", "failure")]
        assert self.tasks_told() == [("task.create", "pending"), ("task.processing", "processing"), *ended]
        assert "no room" not in repr([payload for _, event, payload in self.api.events if event.startswith("task.")])
        self.api.alice.delete(f"/v2/images/{image}")

    def test_tasks_may_be_left_out_of_what_is_told(self):
        told = []
        notifier = Notifier(lambda *given: told.append(given[1]), {"task.run", "image"})
        task = self.api.repository.tasks.begin(NewTask(str(uuid.uuid4()), "import", {}), {})
        for event in ("create", "run"):
            notifier.task(event, task)
        assert told == ["task.create"]

    def test_an_image_that_is_deleted_meanwhile_leaves_nothing(self, monkeypatch):
        image = self.api.alice.create()
        self.stage(image)
        self.delete_while_it_is_stored(monkeypatch, image, "mem")
        assert self.start(image, "glance-direct", stores=["mem", "fast"]).status_code == 202
        assert self.api.alice.get(f"/v2/images/{image}").status_code == 404
        assert (image in self.api.registry["mem"].backend.images, image in self.api.files()) == (False, False)
        assert self.staged() == []

    def test_what_is_staged_goes_with_the_image(self):
        image = self.api.alice.create()
        self.stage(image)
        assert self.api.alice.delete(f"/v2/images/{image}").status_code == 204
        assert self.staged() == []

    def test_data_is_staged_once(self):
        image = self.api.alice.create()
        self.stage(image)
        assert self.stage(image).status_code == 409

    def test_the_task_of_an_import_is_told(self):
        image = self.api.alice.create()
        assert self.api.alice.get(f"/v2/images/{image}/tasks").json == {"tasks": []}
        self.stage(image)
        self.start(image, "glance-direct")
        [task] = self.api.alice.get(f"/v2/images/{image}/tasks").json["tasks"]
        assert (task["status"], task["image_id"], task["type"]) == ("success", image, "api_image_import")
        assert self.api.bob.get(f"/v2/images/{image}/tasks").status_code == 404

    def test_administrators_see_all_tasks(self):
        image = self.api.alice.create()
        self.stage(image)
        self.start(image, "glance-direct")
        [task] = self.api.alice.get(f"/v2/images/{image}/tasks").json["tasks"]
        assert task in self.api.admin.get("/v2/tasks").json["tasks"]
        assert self.api.admin.get(f"/v2/tasks/{task['id']}").json == task
        assert self.api.admin.get("/v2/tasks/nothing").status_code == 404
        assert self.api.alice.get("/v2/tasks").status_code == 403
        assert self.api.alice.get(f"/v2/tasks/{task['id']}").status_code == 403
        assert self.api.admin.delete(f"/v2/tasks/{task['id']}").status_code == 405

    def test_tasks_are_found_by_type_and_status_and_listed_in_pages(self):
        good, wrong = [self.api.alice.create() for _ in range(2)], self.api.alice.create(disk_format="qcow2")
        for image in (*good, wrong):
            self.stage(image)
            self.start(image, "glance-direct")
        path, seen = "/v2/tasks?type=api_image_import&status=success&limit=1&sort_key=id&sort_dir=asc", []
        while path:
            page = self.api.admin.get(path).json
            seen += page["tasks"]
            path = page.get("next")
        ids = [task["id"] for task in seen]
        assert ids == sorted(ids)
        assert {*good, wrong} & {task["image_id"] for task in seen} == set(good)
        assert {task["status"] for task in seen} == {"success"}
        assert self.api.admin.get("/v2/tasks?type=location_import").json["tasks"] == []

    def test_all_tasks_are_listed_however_many_there_are(self):
        made = [NewTask(str(uuid.uuid4()), "import", {}) for _ in range(1100)]
        for task in made:
            self.api.repository.tasks.begin(task, {})
        path, seen = "/v2/tasks?limit=600", []
        while path:
            page = self.api.admin.get(path).json
            seen += [task["id"] for task in page["tasks"]]
            path = page.get("next")
        assert len(seen) == len(set(seen))
        assert {task.id for task in made} <= set(seen)

    @pytest.mark.parametrize("query", ["limit=x", "marker=x", "sort_key=x", "sort_dir=x", "limit=" + "9" * 5000])
    def test_lists_of_tasks_that_cannot_be_are_refused(self, query):
        assert self.api.admin.get(f"/v2/tasks?{query}").status_code == 400

    def test_what_only_the_service_needs_is_not_shown(self):
        image = self.api.alice.create()
        self.stage(image)
        self.start(image, "glance-direct")
        shown = self.api.alice.show(image)
        assert "staging" not in str(shown)
        # The documented ones stay, empty.
        reserved = {name: shown[name] for name in shown if name.startswith("os_glance")}
        assert reserved == {"os_glance_importing_to_stores": "", "os_glance_failed_import": ""}

    @pytest.mark.parametrize(("caller", "status"), [("bob", 404), ("colleague", 403)])
    def test_others_neither_stage_nor_import(self, caller, status):
        image = self.api.alice.create()
        other = getattr(self.api, caller)
        assert self.stage(image, caller=other).status_code == status
        self.stage(image)
        assert self.start(image, "glance-direct", caller=other).status_code == status


class TestAdoption(Importing):
    """Staged data on the file system of a file store is not copied again, nor read and hashed."""

    @pytest.fixture
    def image(self):
        image = self.api.alice.create()
        assert self.stage(image).status_code == 204
        return image

    @pytest.fixture
    def kept(self, image):
        """The staged file, by a name of its own, to be compared with what is in the store."""
        path = self.api.directory / f"kept-{image}"
        os.link(self.api.directory / "staging" / image, path)
        return path

    @pytest.fixture
    def hashed(self, monkeypatch):
        made = []
        monkeypatch.setattr("storelib.transfer.digests.new_hasher", lambda name: made.append(name) or new_hasher(name))
        return made

    def test_a_file_store_keeps_the_staged_file_itself(self, image, kept, hashed):
        self.start(image, "glance-direct")
        shown = self.api.alice.show(image)
        assert (shown["status"], shown["size"], shown["virtual_size"]) == ("active", len(DATA), len(DATA))
        assert shown["checksum"] == hashlib.md5(DATA).hexdigest()
        assert shown["os_hash_value"] == hashlib.sha512(DATA).hexdigest()
        assert os.path.samefile(self.api.directory / "images" / image, kept)
        assert (self.staged(), hashed) == ([], [])

    def test_other_stores_are_filled_by_one_read_before(self, image, kept, hashed):
        self.start(image, "glance-direct", stores=["fast", "mem", "spare"])
        assert self.api.alice.show(image)["stores"] == "spare,fast,mem"
        assert os.path.samefile(self.api.directory / "images" / image, kept)
        assert {self.api.registry[name].backend.images[image].data for name in ("mem", "spare")} == {DATA}
        assert hashed == []

    def test_while_a_store_can_still_fail_what_is_staged_is_there(self, image, monkeypatch):
        def fail(*arguments):
            assert (self.staged(), image in self.api.files()) == ([image], False)
            raise StorageFull("no room")

        monkeypatch.setattr(self.api.registry["mem"], "open_writer", fail)
        self.start(image, "glance-direct", stores=["fast", "mem"])
        assert self.failed(image) == ("queued", "fast,mem", "")
        assert image not in self.api.files()

    def test_a_store_that_may_fail_does_not_keep_the_others_from_it(self, image, kept, monkeypatch):
        for name in ("mem", "spare"):
            self.break_store(monkeypatch, name)
        self.start(image, "glance-direct", stores=["mem", "fast", "spare"], all_stores_must_succeed=False)
        assert self.failed(image) == ("active", "mem,spare", "")
        assert os.path.samefile(self.api.directory / "images" / image, kept)

    def test_the_only_one_that_does_not_fail_may_be_another(self, image, monkeypatch):
        self.break_store(monkeypatch, "fast")
        self.start(image, "glance-direct", stores=["mem", "fast"], all_stores_must_succeed=False)
        assert self.failed(image) == ("active", "fast", "")
        assert self.api.registry["mem"].backend.images[image].data == DATA

    def test_data_that_was_staged_by_an_older_version_is_read(self, image, kept):
        self.api.repository.images.set_properties(image, {}, remove=["os_glance_stage_digests"])
        self.start(image, "glance-direct")
        assert self.api.alice.show(image)["os_hash_value"] == hashlib.sha512(DATA).hexdigest()
        assert not os.path.samefile(self.api.directory / "images" / image, kept)

    def test_data_that_was_staged_with_another_algorithm_is_read_and_compared(self, image):
        digests = json.dumps([hashlib.md5(b"other").hexdigest(), "x", "sha256"])
        self.api.repository.images.set_properties(image, {"os_glance_stage_digests": digests})
        self.start(image, "glance-direct")
        assert self.failed(image) == ("queued", "fast", "")

    @pytest.mark.parametrize("name", ["os_glance_stage_digests", "os_glance_stage_uri"])
    def test_what_is_known_of_it_is_not_shown(self, image, name):
        assert name in self.api.repository.images.get(image).properties
        assert name not in self.api.alice.show(image)
        self.start(image, "glance-direct")
        assert name not in self.api.repository.images.get(image).properties


class TestRefused(Importing):
    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ({}, 400),
            ({"method": "glance-direct"}, 400),
            ({"method": {}}, 400),
            ({"method": {"name": "glance-download"}}, 400),
            ({"method": {"name": "nothing"}}, 400),
            ({"method": {"name": "web-download"}}, 400),
            ({"method": {"name": "web-download", "uri": "ftp://example.org/x"}}, 400),
            ({"method": {"name": "web-download", "uri": "http://127.0.0.1/x"}}, 400),
            ({"method": {"name": "web-download", "uri": "http://example.org:22/x"}}, 400),
            ({"method": {"name": "web-download", "uri": "file:///etc/passwd"}}, 400),
            ({"method": {"name": "glance-direct", "uri": "http://example.org/"}}, 400),
            ({"method": {"name": "glance-direct"}}, 409),
            ({"method": {"name": "glance-direct"}, "stores": "fast"}, 400),
            ({"method": {"name": "glance-direct"}, "stores": []}, 400),
            ({"method": {"name": "glance-direct"}, "stores": ["nowhere"]}, 409),
            ({"method": {"name": "glance-direct"}, "all_stores": "yes"}, 400),
            ({"method": {"name": "glance-direct"}, "all_stores_must_succeed": 1}, 400),
            ({"method": {"name": "glance-direct"}, "all_stores": True, "stores": ["fast"]}, 400),
            ({"method": {"name": "copy-image"}, "stores": ["mem"]}, 403),
        ],
    )
    def test_wrong_requests_are_refused_and_the_image_stays_queued(self, body, status):
        image = self.api.alice.create()
        assert self.api.alice.post(f"/v2/images/{image}/import", body).status_code == status
        assert self.failed(image) == ("queued", None, None)

    def test_header_and_body_do_not_both_name_stores(self):
        image = self.api.alice.create()
        self.stage(image)
        assert self.start(image, "glance-direct", header="mem", stores=["fast"]).status_code == 400
        assert self.start(image, "glance-direct", header="mem", stores=["mem", "fast"]).status_code == 400
        assert self.start(image, "glance-direct", header="mem", all_stores=True).status_code == 400
        assert self.start(image, "glance-direct", header="mem", stores=["mem"]).status_code == 202

    def test_an_image_has_its_formats_before_it_is_imported(self):
        image = self.api.alice.post("/v2/images", {}).json["id"]
        self.stage(image)
        assert self.start(image, "glance-direct").status_code == 409


class TestPlace:
    def test_what_is_staged_has_another_place_than_the_images_of_a_store(self, tmp_path):
        (tmp_path / "link").symlink_to(tmp_path / "images")
        for place in ("images", "images/", "link"):
            with pytest.raises(BadStoreConfiguration, match=r"\[api\] staging_dir and store fast"):
                Deployment(tmp_path, staging_dir=f"{tmp_path}/{place}")

    def test_it_may_be_below_them(self, tmp_path):
        Deployment(tmp_path, staging_dir=f"{tmp_path}/images/staging").close()


class TestFailedStage(Importing):
    """After each of these nothing is staged, and where the image still is, it can be staged again."""

    options = {"image_size_cap": 5000}  # noqa: RUF012

    def send(self, image, body, length=None):
        told = {"Content-Length": str(length)} if length else {"Transfer-Encoding": "chunked"}
        path = f"/v2/images/{image}/stage"
        return self.api.alice.request("PUT", path, OCTETS | told, extras={"wsgi.input": body}).status_code

    def test_a_client_that_goes_away(self):
        image = self.api.alice.create()
        assert self.send(image, io.BytesIO(b"x" * 1000), 2000) == 400
        assert (self.api.alice.show(image)["status"], self.staged()) == ("queued", [])
        assert self.stage(image, b"x").status_code == 204
        self.api.alice.delete(f"/v2/images/{image}")

    def test_more_than_an_image_may_have(self):
        image = self.api.alice.create()
        responses = [self.send(image, io.BytesIO(b"x" * 5001), length) for length in (5001, None)]
        assert responses == [413, 413]
        assert (self.api.alice.show(image)["status"], self.staged()) == ("queued", [])

    def test_an_image_that_is_deleted_meanwhile(self):
        image, alice = self.api.alice.create(), self.api.alice

        class Deletes(io.BytesIO):
            def read(self, size=-1):
                if not self.tell():
                    assert alice.delete(f"/v2/images/{image}").status_code == 204
                return super().read(size)

        assert self.send(image, Deletes(b"x" * 1000), 1000) == 410
        assert self.staged() == []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.path.startswith("/cut"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(DATA)))
            self.end_headers()
            self.wfile.write(DATA[:100])
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()
        self.wfile.write(DATA)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def web():
    with web_server(Handler) as url:
        yield url


class TestWebDownload(Importing):
    options = {"import_allowed_ports": "", "import_allowed_networks": "127.0.0.0/8"}  # noqa: RUF012

    def test_data_at_a_url_is_imported(self, web):
        image = self.api.alice.create()
        assert self.start(image, "web-download", uri=f"{web}/image", stores=["mem"]).status_code == 202
        shown = self.api.alice.show(image)
        assert (shown["status"], shown["size"], shown["stores"]) == ("active", len(DATA), "mem")
        assert self.api.alice.download(image).content == DATA

    def test_a_url_without_data_leaves_the_image_queued(self, web):
        image = self.api.alice.create()
        assert self.start(image, "web-download", uri=f"{web}/missing").status_code == 202
        assert self.failed(image) == ("queued", "fast", "")
        [task] = self.api.alice.get(f"/v2/images/{image}/tasks").json["tasks"]
        assert task["status"] == "failure"

    def test_the_task_tells_what_went_wrong_with_the_source(self, web):
        image = self.api.alice.create()
        self.start(image, "web-download", uri=f"{web}/cut?signature=SECRET")
        [task] = self.api.alice.get(f"/v2/images/{image}/tasks").json["tasks"]
        assert task["message"].startswith(f"reading {web}/cut?signature=***")

    def test_a_task_ends_however_long_what_is_to_be_told_of_it_is(self, monkeypatch, web):
        monkeypatch.setattr("storelib.api.service.locations.LONGEST_URI", 100_000)
        image = self.api.alice.create()
        self.start(image, "web-download", uri=f"{web}/missing{'a' * 70_000}")
        [task] = self.api.alice.get(f"/v2/images/{image}/tasks").json["tasks"]
        assert task["status"] == "failure"
        assert "os_glance_import_task" not in self.api.alice.show(image)


class TestWebDownloadRules(Importing):
    options = {  # noqa: RUF012
        "import_disallowed_schemes": "https",
        "import_allowed_hosts": "*.example.org",
        "import_disallowed_hosts": "x.example.org",
        "import_allowed_ports": "80,81",
        "import_disallowed_ports": "81",
    }

    @pytest.mark.parametrize(
        ("url", "option"),
        [
            ("http://a.example.org:8080/image", "import_allowed_ports"),
            ("http://example.com/image", "import_allowed_hosts"),
            ("http://x.example.org/image", "import_disallowed_hosts"),
            ("http://a.example.org:81/image", "import_disallowed_ports"),
            ("https://a.example.org:80/image", "scheme"),
        ],
    )
    def test_what_is_refused_is_told_with_the_option_that_says_so(self, url, option):
        response = self.start(self.api.alice.create(), "web-download", uri=url)
        assert response.status_code == 400
        assert option in response.text


class TestLostCommit(Importing):
    @pytest.mark.parametrize("committed", [True, False])
    def test_an_import_of_which_the_commit_is_lost_is_there_or_not(self, monkeypatch, committed):
        image = self.api.alice.create()
        assert self.stage(image, DATA).status_code == 204
        self.lose_commit(monkeypatch, committed)
        self.start(image, "glance-direct")
        self.api.service.lease.beat()
        assert self.api.alice.show(image)["status"] == ("active" if committed else "queued")
        assert (image in self.api.files()) == committed
        assert self.staged() == []


class TestWebDownloadCapped(Importing):
    options = {  # noqa: RUF012
        "import_allowed_ports": "",
        "import_allowed_networks": "127.0.0.0/8",
        "image_size_cap": 5000,
    }

    def test_more_than_an_image_may_have_is_not_downloaded(self, web):
        image = self.api.alice.create()
        self.start(image, "web-download", uri=f"{web}/image")
        assert self.failed(image) == ("queued", "fast", "")


class TestNotRemovedAtOnce(Importing):
    """An import of which the store "spare" keeps what no image gets, for as long as it deletes nothing."""

    @pytest.fixture
    def spare(self):
        return self.api.registry["spare"]

    @pytest.fixture
    def image(self):
        image = self.api.alice.create()
        self.stage(image)
        return image

    def leave(self, monkeypatch, image, error=StorageFull):
        with monkeypatch.context() as broken:
            self.break_store(broken, "mem")
            broken.setattr(self.api.registry["spare"], "remove", lambda *_: self.fail_with(error))
            self.start(image, "glance-direct", stores=["spare", "mem"])

    def fail_with(self, error):
        raise error("not now")

    def test_it_is_removed_later_by_whichever_process(self, monkeypatch, image, spare):
        self.leave(monkeypatch, image)
        assert image in spare.backend.images
        other = self.api.another_process()
        other.lease.scrub()
        other.stop()
        assert image not in spare.backend.images
        assert (self.api.alice.show(image)["status"], self.staged()) == ("queued", [image])

    def test_its_process_dies_before_the_import_has_ended(self, monkeypatch, image, spare):
        with monkeypatch.context() as dying:
            dying.setattr(self.api.service.data, "give_up", lambda *_, **__: None)
            self.leave(dying, image)
        assert image in spare.backend.images
        self.api.repository.processes.leave(self.api.service.lease.id)
        other = self.api.another_process()
        other.lease.beat()
        other.stop()
        assert image not in spare.backend.images
        assert self.api.repository.locations.pending_for(image) == []
        self.api.service.lease.beat()

    def test_it_is_in_the_way_of_no_other_import(self, monkeypatch, image, spare):
        self.leave(monkeypatch, image)
        self.start(image, "glance-direct", stores=["spare", "mem"])
        self.api.service.lease.scrub()
        assert self.api.alice.show(image)["status"] == "active"
        assert image in spare.backend.images

    def test_another_import_waits_for_it(self, monkeypatch, image, spare):
        self.leave(monkeypatch, image)
        monkeypatch.setattr(spare, "remove", self.fail)
        assert self.start(image, "glance-direct", stores=["spare"]).status_code == 413
        assert self.start(image, "glance-direct", stores=["mem"]).status_code == 202
        assert self.api.alice.show(image)["status"] == "active"

    @pytest.mark.parametrize("stores", [["spare", "mem"], ["mem", "spare"]])
    def test_where_others_are_enough_another_import_goes_into_them(self, monkeypatch, image, spare, stores):
        self.leave(monkeypatch, image)
        monkeypatch.setattr(spare, "remove", self.fail)
        alone = self.start(image, "glance-direct", stores=["spare"], all_stores_must_succeed=False)
        assert alone.status_code == 413
        assert self.start(image, "glance-direct", stores=stores, all_stores_must_succeed=False).status_code == 202
        assert self.failed(image) == ("active", "spare", "")
        assert [each.metadata["store"] for each in self.api.repository.images.get(image).locations] == ["mem"]
        task = self.api.alice.get(f"/v2/images/{image}/tasks").json["tasks"][0]
        assert task["status"] == "success"
        assert task["message"].startswith("store spare: it still has to delete")

    def test_it_never_is_the_images(self, monkeypatch, image, spare):
        self.leave(monkeypatch, image)
        self.start(image, "glance-direct", stores=["fast", "mem"])
        monkeypatch.setattr(spare, "remove", lambda *_: self.fail_with(InUseByStore))
        assert self.api.admin.delete(f"/v2/stores/mem/{image}").status_code == 204
        assert [each.metadata["store"] for each in self.api.repository.images.get(image).locations] == ["fast"]
        assert self.api.alice.delete(f"/v2/images/{image}").status_code == 204
        monkeypatch.undo()
        self.api.service.lease.scrub()
        assert image not in spare.backend.images

    def test_the_image_is_deleted_meanwhile(self, monkeypatch, image, spare):
        failed = self.fail

        def delete_first(*_):
            assert self.api.alice.delete(f"/v2/images/{image}").status_code == 204
            failed()

        with monkeypatch.context() as broken:
            broken.setattr(self.api.registry["mem"], "open_writer", delete_first)
            broken.setattr(spare, "remove", failed)
            self.start(image, "glance-direct", stores=["spare", "mem"])
            assert image in spare.backend.images
        self.api.service.lease.beat()
        assert image not in spare.backend.images


class TestAnswerLost(Importing):
    """The store "spare" publishes data, and then is away before it has said so."""

    @pytest.fixture
    def spare(self, monkeypatch):
        store = self.api.registry["spare"]
        open_writer = store.open_writer

        def add_and_leave(image_id, *more):
            with monkeypatch.context() as there:
                there.setattr(store, "open_writer", open_writer)
                if image_id not in store.backend.images:
                    store.add(image_id, DATA)
            raise RemoteServiceUnavailable("not now", transient=False)

        monkeypatch.setattr(store, "open_writer", add_and_leave)
        return store

    def test_an_upload_leaves_nothing(self, spare):
        image = self.api.alice.create()
        assert self.api.alice.upload(image, DATA, x_image_meta_store="spare").status_code == 503
        assert image in spare.backend.images
        self.api.service.lease.scrub()
        assert image not in spare.backend.images

    def test_another_upload_is_taken_at_once(self, spare, monkeypatch):
        image = self.api.alice.create()
        self.api.alice.upload(image, DATA, x_image_meta_store="spare")
        monkeypatch.undo()
        assert self.api.alice.upload(image, DATA, x_image_meta_store="spare").status_code == 204
        self.api.service.lease.scrub()
        assert image in spare.backend.images

    def test_an_import_into_others_leaves_nothing_there(self, spare):
        image = self.api.alice.create()
        self.stage(image)
        self.start(image, "glance-direct", stores=["spare", "mem"], all_stores_must_succeed=False)
        assert image in spare.backend.images
        self.api.service.lease.scrub()
        assert image not in spare.backend.images
        assert self.api.alice.download(image).status_code == 200

    def test_a_copy_leaves_nothing(self, spare):
        image = self.api.alice.active(DATA)
        self.start(image, "copy-image", self.api.admin, stores=["spare", "mem"], all_stores_must_succeed=False)
        assert image in spare.backend.images
        self.api.service.lease.scrub()
        assert image not in spare.backend.images
        assert len(self.api.repository.images.get(image).locations) == 2
        assert self.api.service.data._left == {}

    @pytest.mark.parametrize("stores", [["spare", "mem"], ["mem", "spare"]])
    def test_what_was_there_before_stays(self, spare, monkeypatch, stores):
        """As of another deployment that has the store, too, and an image of that id."""

        def be_away(*_):
            raise RemoteServiceUnavailable("not now", transient=False)

        monkeypatch.undo()
        monkeypatch.setattr(self.api.registry["mem"], "open_writer", be_away)
        image = self.api.alice.create()
        spare.add(image, b"of another deployment")
        self.stage(image)
        self.start(image, "glance-direct", stores=stores)
        left = self.api.repository.locations.pending_for(image)
        assert [(location.uri, location.metadata["store"]) for location in left] == [("", "mem")]
        self.api.service.lease.scrub()
        assert image in spare.backend.images

    def test_a_process_that_was_taken_for_dead_while_it_searched_deletes_nothing(self, spare, monkeypatch):
        image = self.api.alice.create()
        self.api.alice.upload(image, DATA, x_image_meta_store="spare")
        monkeypatch.undo()
        find_image, lease = spare.find_image, self.api.service.lease

        def slowly(image_id):
            monkeypatch.undo()
            self.api.repository.processes.leave(lease.id)
            other = self.api.another_process()
            other.lease.scrub()
            other.stop()
            assert image not in spare.backend.images
            assert self.api.alice.upload(image, DATA, x_image_meta_store="spare").status_code == 204
            return find_image(image_id)

        monkeypatch.setattr(spare, "find_image", slowly)
        lease.scrub()
        assert self.api.alice.download(image).content == DATA

    def test_an_upload_of_an_older_release_which_does_not_look_is_left_alone(self, spare):
        image, lease = self.api.alice.create(), self.api.service.lease
        self.api.alice.upload(image, DATA, x_image_meta_store="spare")
        self.api.repository.uploads.begin(image, lease.id, from_=("queued",), stores=["spare"])
        lease.scrub()
        assert image in spare.backend.images
        self.api.repository.uploads.finish(image, lease.id, to="queued")
        lease.scrub()
        assert image not in spare.backend.images

    def test_what_has_become_anothers_stays(self, spare):
        image, other = self.api.alice.create(), self.api.alice.active(DATA)
        self.api.alice.upload(image, DATA, x_image_meta_store="spare")
        found = self.api.repository.images.get(other)
        place = NewLocation(spare.find_image(image).uri, {"store": "spare"})
        self.api.repository.images.update(found, Changes(locations=(*found.locations, place)))
        self.api.service.lease.scrub()
        assert image in spare.backend.images
        assert self.api.repository.locations.pending_for(image) == []

    def test_an_audit_knows_what_it_is(self, spare):
        image = self.api.alice.create()
        self.api.alice.upload(image, DATA, x_image_meta_store="spare")
        findings = Audit(self.api.repository, self.api.registry, older_than=0).run()
        assert [finding for finding in findings if finding.image_id == image] == []

    def test_a_store_that_is_not_there_any_more_is_named(self, spare, monkeypatch, caplog):
        self.api.alice.upload(self.api.alice.create(), DATA, x_image_meta_store="spare")
        monkeypatch.delitem(self.api.registry._stores, "spare")
        self.api.service.lease.scrub()
        assert "there is no store 'spare'" in caplog.text


class TestKeptAfterAFailure(Importing):
    options = {"user_storage_quota": str(2 * len(DATA) + 100)}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def nothing_held(self):
        yield
        for image in self.api.alice.get("/v2/images").json["images"]:
            self.api.alice.delete(f"/v2/images/{image['id']}")

    def kept(self, monkeypatch):
        image = self.api.alice.create()
        self.stage(image)
        with monkeypatch.context() as broken:
            self.break_store(broken, "mem")
            self.start(image, "glance-direct", stores=["mem"])
        assert self.api.alice.show(image)["status"] == "queued"
        return image

    def held(self):
        return self.api.repository.images.held("alpha")

    def test_what_stays_staged_counts_in_the_quota(self, monkeypatch):
        images = [self.kept(monkeypatch) for _ in range(2)]
        assert self.held() == 2 * len(DATA)
        path = f"/v2/images/{self.api.alice.create()}/stage"
        assert self.api.alice.request("PUT", path, OCTETS, body=DATA).status_code == 413
        assert self.api.alice.delete(f"/v2/images/{images[0]}").status_code == 204
        assert self.held() == len(DATA)

    def test_it_does_not_count_twice(self, monkeypatch):
        image, other = self.kept(monkeypatch), self.api.alice.active(DATA)
        assert self.held() == 2 * len(DATA)
        self.stage(image)
        assert self.held() == 2 * len(DATA)
        assert self.api.alice.delete(f"/v2/images/{other}").status_code == 204
        with monkeypatch.context() as broken:
            self.break_store(broken, "mem")
            self.start(image, "glance-direct", stores=["mem"])
        self.start(image, "glance-direct", stores=["fast", "mem"])
        assert (self.api.alice.show(image)["status"], self.held()) == ("active", 2 * len(DATA))

    def test_new_data_that_fails_leaves_none_of_it(self, monkeypatch):
        image = self.kept(monkeypatch)
        with monkeypatch.context() as broken:
            broken.setattr(self.api.service.imports.staging.store, "open_writer", self.fail)
            response = self.api.alice.request("PUT", f"/v2/images/{image}/stage", OCTETS, body=b"other")
        assert (response.status_code, self.held()) == (413, 0)
        assert self.start(image, "glance-direct", stores=["mem"]).status_code == 409


class TestCopyImage(Importing):
    @pytest.fixture
    def image(self):
        return self.api.alice.active(DATA)

    def test_an_image_is_copied_to_other_stores(self, image):
        assert self.start(image, "copy-image", self.api.admin, stores=["mem"]).status_code == 202
        assert sorted(self.api.alice.show(image)["stores"].split(",")) == ["fast", "mem"]
        assert self.api.registry["mem"].backend.images[image].data == DATA

    def test_all_stores_are_those_that_do_not_have_it(self, image):
        self.start(image, "copy-image", self.api.admin, all_stores=True)
        assert self.api.alice.show(image)["stores"] == "spare,fast,mem"

    def test_an_image_that_is_in_all_stores_is_done_already(self, image):
        self.start(image, "copy-image", self.api.admin, all_stores=True)
        before = self.api.alice.show(image)
        assert self.start(image, "copy-image", self.api.admin, all_stores=True).status_code == 202
        assert self.api.alice.show(image) == before

    def test_a_store_that_has_it_is_refused(self, image):
        assert self.start(image, "copy-image", self.api.admin, stores=["fast"]).status_code == 400

    def spell_otherwise(self, image, metadata):
        """As an image from elsewhere: its store does not write URIs like that, and was called otherwise, if at all."""
        found = self.api.repository.images.get(image)
        new = NewLocation(found.locations[0].uri.replace("file:", "filesystem:"), metadata)
        self.api.repository.images.update(found, Changes(locations=(new,)))
        for location in self.api.repository.locations.pending_for(image):
            self.api.repository.locations.forget(image, location.id)

    def is_whole(self, image):
        content = self.api.alice.get(f"/v2/images/{image}/file").content
        return hashlib.sha256(content).digest() == hashlib.sha256(DATA).digest()

    @pytest.mark.parametrize("metadata", [{}, {"store": "former"}])
    @pytest.mark.parametrize("stores", [{"all_stores": True}, {"stores": ["fast"]}])
    def test_a_store_that_has_it_by_another_name_keeps_it(self, image, metadata, stores):
        self.spell_otherwise(image, metadata)
        accepted = self.start(image, "copy-image", self.api.admin, **stores).status_code
        assert accepted == (202 if "all_stores" in stores else 400)
        assert self.is_whole(image)
        assert len(self.api.repository.images.get(image).locations) == (3 if "all_stores" in stores else 1)

    def test_a_store_that_may_have_it_keeps_it(self, image, monkeypatch):
        """Its URI fits several stores, so that nobody says which of them has it."""
        self.spell_otherwise(image, {})
        registry = self.api.registry
        monkeypatch.setattr(registry, "owners", lambda uri: [registry["mem"], registry["fast"]])
        assert self.start(image, "copy-image", self.api.admin, stores=["fast"]).status_code == 202
        assert self.is_whole(image)
        assert self.start(image, "copy-image", self.api.admin, stores=["mem"]).status_code == 202
        assert len(self.api.repository.images.get(image).locations) == 2

    @pytest.mark.parametrize("known", ["sha512", "sha256", "md5"])
    def test_data_that_has_changed_in_its_store_is_not_copied(self, image, known):
        digests = {"sha256": ("sha256", hashlib.sha256(DATA).hexdigest()), "md5": (None, None)}
        if known in digests:
            algorithm, value = digests[known]
            changed = images.update().where(images.c.id == image).values(os_hash_algo=algorithm, os_hash_value=value)
            self.api.repository.database.write(lambda connection: connection.execute(changed))
            self.api.repository.images.set_properties(image, {"changed": "yes"})
        path = self.api.directory / "images" / image
        path.write_bytes(b"X" + DATA[1:])
        self.start(image, "copy-image", self.api.admin, stores=["mem", "spare"])
        assert self.failed(image) == ("active", "mem,spare", "")
        assert image not in self.api.registry["mem"].backend.images
        [task] = self.api.alice.get(f"/v2/images/{image}/tasks").json["tasks"]
        assert (task["status"], f"its {known} digest is" in task["message"]) == ("failure", True)
        path.write_bytes(DATA)
        self.start(image, "copy-image", self.api.admin, stores=["mem", "spare"])
        assert self.failed(image) == ("active", "", "")
        assert self.api.registry["mem"].backend.images[image].data == DATA

    def test_what_a_dead_copy_left_is_no_hindrance(self, image):
        self.api.registry["mem"].add(image, b"half of it")
        self.start(image, "copy-image", self.api.admin, stores=["mem"])
        assert self.api.registry["mem"].backend.images[image].data == DATA

    def test_the_task_ends_with_the_copy(self, image, monkeypatch):
        """A process that dies right after it leaves nothing that says it is still at work."""
        finish, seen = self.api.repository.uploads.finish, []
        monkeypatch.setattr(
            self.api.repository.uploads, "finish", lambda *given, **more: seen.append(finish(*given, **more))
        )
        self.start(image, "copy-image", self.api.admin, stores=["mem"])
        [recorded] = seen
        assert recorded.properties["os_glance_importing_to_stores"] == ""
        [task] = self.api.repository.tasks.of_image(image)
        assert task.status == "success"

    @pytest.mark.parametrize("committed", [True, False])
    def test_a_copy_of_which_the_commit_is_lost_is_there_or_not(self, image, monkeypatch, committed):
        self.lose_commit(monkeypatch, committed)
        self.start(image, "copy-image", self.api.admin, stores=["mem"])
        self.api.service.lease.beat()
        assert self.api.alice.show(image)["stores"] == ("fast,mem" if committed else "fast")
        assert (image in self.api.registry["mem"].backend.images) == committed
        assert self.api.alice.show(image)["os_glance_importing_to_stores"] == ""

    def test_a_store_that_still_deletes_its_copy_is_refused(self, image):
        """What is deleted late would be the new copy."""
        self.start(image, "copy-image", self.api.admin, stores=["mem"])
        [copy] = [each for each in self.api.repository.images.get(image).locations if each.metadata["store"] == "mem"]
        self.api.repository.locations.drop(image, copy.id)
        assert self.start(image, "copy-image", self.api.admin, stores=["mem"]).status_code == 409
        self.api.repository.locations.forget(image, copy.id)
        assert self.start(image, "copy-image", self.api.admin, stores=["mem"]).status_code == 202
        assert self.api.alice.show(image)["stores"] == "fast,mem"

    def test_a_store_that_has_got_it_from_another_copy_is_refused(self, image, monkeypatch):
        begin = self.api.service.data.begin

        def copied_before(*arguments, **more):
            monkeypatch.undo()
            self.start(image, "copy-image", self.api.admin, stores=["mem"])
            return begin(*arguments, **more)

        monkeypatch.setattr(self.api.service.data, "begin", copied_before)
        assert self.start(image, "copy-image", self.api.admin, stores=["mem"]).status_code == 400
        assert self.api.alice.show(image)["stores"] == "fast,mem"
        assert self.api.repository.uploads.get(image) is None

    def test_a_download_follows_an_image_from_store_to_store(self, image):
        seen = self.api.repository.images.get(image)
        self.start(image, "copy-image", self.api.admin, stores=["mem"])
        assert self.api.admin.delete(f"/v2/stores/fast/{image}").status_code == 204
        with self.api.service.data.read(administrator(), seen).data as stream:
            assert stream.read() == DATA

    def test_a_copy_that_fails_leaves_the_image_as_it_was(self, image, monkeypatch):
        self.break_store(monkeypatch, "mem")
        self.start(image, "copy-image", self.api.admin, stores=["mem", "spare"])
        assert self.failed(image) == ("active", "mem,spare", "")
        assert self.api.alice.show(image)["stores"] == "fast"
        assert image not in self.api.registry["spare"].backend.images

    def test_a_copy_may_fail_in_one_store(self, image, monkeypatch):
        self.break_store(monkeypatch, "mem")
        more = {"stores": ["mem", "spare"], "all_stores_must_succeed": False}
        self.start(image, "copy-image", self.api.admin, **more)
        assert self.failed(image) == ("active", "mem", "")
        assert self.api.alice.show(image)["stores"] == "spare,fast"

    def test_an_image_that_is_deleted_meanwhile_leaves_nothing(self, image, monkeypatch):
        self.delete_while_it_is_stored(monkeypatch, image, "mem")
        assert self.start(image, "copy-image", self.api.admin, stores=["mem"]).status_code == 202
        assert self.api.alice.get(f"/v2/images/{image}").status_code == 404
        assert (image in self.api.registry["mem"].backend.images, image in self.api.files()) == (False, False)

    def test_one_copy_at_a_time(self, image):
        service = self.api.service
        service.core.repository.uploads.begin(image, service.lease.id, from_=("active",), to=None, stores=["mem"])
        assert self.start(image, "copy-image", self.api.admin, stores=["mem"]).status_code == 409

    def test_an_image_without_data_is_not_copied(self):
        image = self.api.alice.create()
        assert self.start(image, "copy-image", self.api.admin, stores=["mem"]).status_code == 409


class TestHostileFormats(Importing):
    """What is refused when its data is looked at leaves neither data nor a status, whichever way it came."""

    HOSTILE = {  # noqa: RUF012
        "a text VMDK": (
            "vmdk",
            b'# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\nRW 1 FLAT "/etc/passwd" 0\n',
        ),
        "a text VMDK as raw": ("raw", b'# Disk DescriptorFile\nversion=1\nRW 1 FLAT "/etc/passwd" 0\n'),
        "half a VMDK header": ("vmdk", b"KDMV\1\0\0\0"),
        "a VMDK of nonsense": ("vmdk", b"KDMV".ljust(100_000, b"\xff")),
        "half a qcow2 header": ("qcow2", b"QFI\xfb\0\0\0\3"),
        "a qcow2 of nonsense": ("qcow2", b"QFI\xfb".ljust(100_000, b"\xff")),
        "half a vhdx header": ("vhdx", b"vhdxfile"),
        "a vhdx of nonsense": ("vhdx", b"vhdxfile".ljust(400_000, b"\xff")),
        "half an ISO": ("iso", bytes(32768) + b"\1CD0"),
        "half a LUKS header as raw": ("raw", b"LUKS\xba\xbe"),
        "a partition table of nonsense": ("raw", b"\xff" * 510 + b"\x55\xaa" + bytes(100)),
    }

    @pytest.mark.parametrize("name", HOSTILE)
    def test_nothing_is_left_of_it(self, name):
        disk_format, data = self.HOSTILE[name]
        uploaded, imported = (self.api.alice.create(disk_format=disk_format) for _ in range(2))
        assert self.api.alice.upload(uploaded, data).status_code == 415
        assert self.stage(imported, data).status_code == 204
        assert self.start(imported, "glance-direct", stores=["fast", "mem"]).status_code == 202
        assert [self.api.alice.show(image)["status"] for image in (uploaded, imported)] == ["queued", "queued"]
        headers = {"x-image-meta-name": "v1", "x-image-meta-disk_format": disk_format}
        headers |= {"x-image-meta-container_format": "bare", **OCTETS}
        assert self.api.alice.request("POST", "/v1/images", headers, body=data).status_code == 415
        assert (self.api.files(), self.staged()) == ([], [])
        assert list(self.api.registry["mem"].backend.images) == []
