# SPDX-License-Identifier: Apache-2.0
"""Tasks that clients begin by POST /v2/tasks, and how long tasks are kept."""

from __future__ import annotations

import json
import threading

import pytest
from deployment import OCTETS, Deployed, Deployment
from test_service_imports import DATA, Handler
from web_servers import web_server

from storelib.api.db.schema import tasks as task_rows
from storelib.exceptions import StorageFull

FORMATS = {"disk_format": "raw", "container_format": "bare"}


@pytest.fixture(scope="module")
def web():
    with web_server(Handler) as url:
        yield url


class Asking(Deployed):
    options = {"import_allowed_ports": "", "import_allowed_networks": "127.0.0.0/8"}  # noqa: RUF012

    def ask(self, kind, given, caller=None):
        response = (caller or self.api.admin).post("/v2/tasks", {"type": kind, "input": given})
        self.api.settle()
        return response

    def task(self, answer):
        """The task that was begun, as it is now."""
        assert answer.status_code == 201, answer.text
        assert answer.headers["location"] == f"/v2/tasks/{answer.json['id']}" == answer.json["self"]
        return self.api.admin.get(answer.headers["location"]).json

    def images(self):
        return {image["id"] for image in self.api.admin.get("/v2/images?visibility=all").json["images"]}


class TestImport(Asking):
    def given(self, url, **properties):
        return {"import_from": url, "import_from_format": "raw", "image_properties": {**FORMATS, **properties}}

    def test_an_image_is_made_of_what_is_at_a_url(self, web):
        given = self.given(f"{web}/image", name="made", visibility="public", tags=["x"], own="1")
        response = self.ask("import", given)
        assert (response.json["status"], response.json["type"], response.json["owner"]) == (
            "pending",
            "import",
            "admins",
        )
        task = self.task(response)
        assert (task["status"], task["message"], task["input"]) == ("success", "", given)
        assert (task["user_id"], task["request_id"]) == ("user-of-admins", response.headers["x-openstack-request-id"])
        image = self.api.admin.show(task["result"]["image_id"])
        assert (image["status"], image["name"], image["visibility"], image["own"]) == ("active", "made", "public", "1")
        assert self.api.admin.download(image["id"]).content == DATA

    def test_properties_may_be_left_out(self, web):
        """A qcow2 is meant then, which this is not."""
        task = self.task(self.ask("import", self.given(f"{web}/image") | {"image_properties": {}}))
        assert task["status"] == "failure"
        assert "qcow2" in task["message"]

    @pytest.mark.parametrize("path", ["missing", "cut"])
    def test_of_an_import_that_fails_no_image_is_left(self, web, path):
        before = self.images()
        task = self.task(self.ask("import", self.given(f"{web}/{path}")))
        assert (task["status"], task["result"]) == ("failure", None)
        assert task["message"]
        assert self.images() == before
        assert [task] == [each for each in self.api.admin.get("/v2/tasks").json["tasks"] if each["id"] == task["id"]]

    def test_credentials_are_not_told(self, web):
        task = self.task(self.ask("import", self.given(f"{web}/image?signature=SECRET".replace("//", "//me:SECRET@"))))
        assert task["status"] == "success"
        assert "SECRET" not in str(task)

    @pytest.mark.parametrize(
        ("wrong", "status"),
        [
            ({"import_from": None}, 400),
            ({"import_from": ""}, 400),
            ({"import_from": "file:///etc/passwd"}, 400),
            ({"import_from": "swift://container/object"}, 400),
            ({"import_from": "http://10.0.0.1/"}, 400),
            ({"import_from": "http://x/" + "y" * 9000}, 400),
            ({"import_from_format": None}, 400),
            ({"image_properties": None}, 400),
            ({"image_properties": {"disk_format": "nothing"}}, 400),
            ({"image_properties": {"status": "active"}}, 403),
            ({"image_properties": {"name": "no formats"}}, 409),
            ({"more": "x" * 70_000}, 400),
        ],
    )
    def test_what_cannot_be_is_refused_and_makes_no_image(self, web, wrong, status):
        before = self.images()
        given = {name: value for name, value in (self.given(f"{web}/image") | wrong).items() if value is not None}
        assert self.ask("import", given).status_code == status
        assert self.images() == before

    @pytest.mark.parametrize(
        "body", [{}, {"type": "import"}, {"type": "import", "input": None}, {"type": "x", "input": {}}, {"input": {}}]
    )
    def test_a_task_has_a_type_and_an_input(self, body):
        assert self.api.admin.post("/v2/tasks", body).status_code == 400
        assert self.api.admin.post("/v2/tasks", {"type": [], "input": {}}).status_code == 400

    def test_text_that_is_none_is_refused(self, web):
        before = self.images()
        body = json.dumps({"type": "import", "input": self.given(f"{web}/image") | {"more": "\ud800"}})
        assert self.api.admin.request("POST", "/v2/tasks", body=body).status_code == 400
        assert self.images() == before

    @pytest.mark.parametrize(("caller", "status"), [("alice", 403), ("nobody", 403), ("nova", 403)])
    def test_the_policy_says_who_may(self, web, caller, status):
        assert self.ask("import", {}, getattr(self.api, caller)).status_code == status


class TestOthers(Asking):
    def test_data_is_imported_as_by_the_newer_way(self, web):
        image = self.api.admin.create()
        method = {"method": {"name": "web-download", "uri": f"{web}/image"}, "stores": ["mem"]}
        task = self.task(self.ask("api_image_import", {"image_id": image, "import_req": method}))
        assert (task["status"], task["type"], task["image_id"]) == ("success", "api_image_import", image)
        assert task["input"]["import_req"]["method"] == method["method"]
        assert self.api.admin.show(image)["stores"] == "mem"

    def test_a_location_is_added_as_by_the_newer_way(self, tmp_path):
        image = self.api.admin.create()
        self.api.registry["mem"].add("there", DATA)
        task = self.task(self.ask("location_import", {"image_id": image, "loc_url": "memory://mem/there"}))
        assert (task["status"], task["type"], task["image_id"]) == ("success", "location_import", image)

    @pytest.mark.parametrize(
        ("kind", "given", "status"),
        [
            ("api_image_import", {}, 400),
            ("api_image_import", {"import_req": {"method": {"name": "glance-direct"}}}, 400),
            ("api_image_import", {"import_req": {"method": "x"}, "image_id": "x"}, 400),
            ("api_image_import", {"import_req": {"method": {"name": "glance-direct"}}, "image_id": "x"}, 404),
            ("location_import", {}, 400),
            ("location_import", {"image_id": "x", "loc_url": "http://example.org/"}, 404),
            ("location_import", {"image_id": "x", "loc_url": "http://example.org/", "validation_data": 5}, 400),
            ("location_import", {"image_id": "x", "loc_url": "x", "validation_data": {"os_hash_algo": 5}}, 400),
        ],
    )
    def test_what_cannot_be_is_refused(self, kind, given, status):
        assert self.ask(kind, given).status_code == status

    def test_a_copy_to_where_it_is_already_is_no_task(self):
        image = self.api.admin.active()
        method = {"method": {"name": "copy-image"}, "all_stores": True}
        assert self.task(self.ask("api_image_import", {"image_id": image, "import_req": method}))["status"] == "success"
        assert self.ask("api_image_import", {"image_id": image, "import_req": method}).status_code == 409

    @pytest.mark.parametrize("secure", [True, False])
    def test_nothing_but_digests_is_said_of_a_location(self, secure, monkeypatch):
        """Where clients are believed, all that they say is recorded."""
        monkeypatch.setattr(self.api.service.core.options, "do_secure_hash", secure)
        image = self.api.admin.create()
        uri = self.api.registry["mem"].add(image, DATA).uri
        said = {"os_hash_algo": "md5", "os_hash_value": "0" * 32, "owner": "gamma", "visibility": "public"}
        given = {"image_id": image, "loc_url": uri, "validation_data": said}
        assert self.ask("location_import", given).status_code == 400
        assert (
            self.api.admin.post(f"/v2/images/{image}/locations", {"url": uri, "validation_data": said}).status_code
            == 400
        )
        shown = self.api.admin.show(image)
        assert (shown["owner"], shown["visibility"], shown["status"]) == ("admins", "shared", "queued")


class TestOfImages(Asking):
    def test_who_imported_an_image_from_where_is_not_for_all_who_see_it(self, web):
        image = self.api.alice.create(visibility="community")
        method = {"method": {"name": "web-download", "uri": f"{web}/image"}, "stores": ["mem"]}
        assert self.api.alice.post(f"/v2/images/{image}/import", method).status_code == 202
        self.api.settle()
        copying = {"method": {"name": "copy-image"}, "stores": ["fast"]}
        assert self.api.admin.post(f"/v2/images/{image}/import", copying).status_code == 202
        self.api.settle()
        callers = (self.api.alice, self.api.colleague, self.api.admin, self.api.bob, self.api.nobody)
        responses = [caller.get(f"/v2/images/{image}/tasks") for caller in callers]
        assert [response.status_code for response in responses] == [200] * 5
        assert [len(response.json["tasks"]) for response in responses] == [2, 2, 2, 0, 0]

    @pytest.mark.parametrize("method", ["glance-direct", "copy-image"])
    def test_the_task_of_an_image_that_is_deleted_ends(self, method, monkeypatch):
        reached, go_on = threading.Event(), threading.Event()
        open_writer = self.api.registry["mem"].open_writer

        def wait(*arguments, **options):
            reached.set()
            assert go_on.wait(20)
            return open_writer(*arguments, **options)

        monkeypatch.setattr(self.api.registry["mem"], "open_writer", wait)
        if method == "copy-image":
            image = self.api.admin.active()
        else:
            image = self.api.admin.create()
            self.api.admin.request("PUT", f"/v2/images/{image}/stage", OCTETS, body=DATA)
        asked = {"method": {"name": method}, "stores": ["mem"]}
        assert self.api.admin.post(f"/v2/images/{image}/import", asked).status_code == 202
        assert reached.wait(20)
        assert self.api.admin.delete(f"/v2/images/{image}").status_code == 204
        go_on.set()
        self.api.settle()
        [task] = self.api.admin.get(f"/v2/tasks?image_id={image}").json["tasks"]
        assert (task["status"], "deleted" in task["message"]) == ("failure", True)
        assert "expires_at" in task
        assert image not in self.api.registry["mem"].backend.images


class TestKept(Asking):
    def imported(self):
        image = self.api.alice.create()
        self.api.alice.request("PUT", f"/v2/images/{image}/stage", OCTETS, body=DATA)
        self.api.alice.post(f"/v2/images/{image}/import", {"method": {"name": "glance-direct"}})
        self.api.settle()
        return image

    def test_tasks_are_kept_when_their_image_is_gone(self):
        image = self.imported()
        [task] = self.api.alice.get(f"/v2/images/{image}/tasks").json["tasks"]
        assert self.api.alice.delete(f"/v2/images/{image}").status_code == 204
        assert self.api.alice.get(f"/v2/images/{image}/tasks").status_code == 404
        assert self.api.admin.get(f"/v2/tasks/{task['id']}").json == task
        assert task["updated_at"] < task["expires_at"]

    def test_a_task_tells_how_far_it_is(self, monkeypatch):
        seen = []
        image = self.api.alice.active(bytes(3 * 1024 * 1024))
        monkeypatch.setattr("storelib.api.service.tasks.TELL", 0)
        progress = self.api.repository.tasks.progress

        def look(task_id, *told):
            progress(task_id, *told)
            task = self.api.admin.get(f"/v2/tasks/{task_id}").json
            seen.append((task["status"], task["message"]))

        monkeypatch.setattr(self.api.repository.tasks, "progress", look)
        copy = {"method": {"name": "copy-image"}, "stores": ["mem"]}
        assert self.api.admin.post(f"/v2/images/{image}/import", copy).status_code == 202
        self.api.settle()
        assert seen[0] == ("processing", "")
        assert {status for status, _ in seen} == {"processing"}
        assert seen[-1][1] == "Copied 3 MiB"
        assert self.api.alice.get(f"/v2/images/{image}/tasks").json["tasks"][0]["message"] == ""

    def test_there_is_a_task_for_each_import(self):
        image = self.imported()
        for store in ("mem", "spare"):
            copy = {"method": {"name": "copy-image"}, "stores": [store]}
            assert self.api.admin.post(f"/v2/images/{image}/import", copy).status_code == 202
            self.api.settle()
        tasks = self.api.alice.get(f"/v2/images/{image}/tasks").json["tasks"]
        done = [task["input"]["import_req"] for task in tasks]
        assert [request["method"]["name"] for request in done] == ["copy-image", "copy-image", "glance-direct"]
        assert [request.get("stores") for request in done] == [["spare"], ["mem"], None]
        assert tasks[0]["input"]["backend"] == ["spare"]

    def test_stores_that_failed_are_named_until_they_succeed(self, monkeypatch):
        image = self.imported()

        def copy(*stores):
            body = {"method": {"name": "copy-image"}, "stores": [*stores], "all_stores_must_succeed": False}
            assert self.api.admin.post(f"/v2/images/{image}/import", body).status_code == 202
            self.api.settle()
            return self.api.alice.show(image)["os_glance_failed_import"]

        def fail(*arguments):
            raise StorageFull("no room")

        with monkeypatch.context() as patch:
            for name in ("mem", "spare"):
                patch.setattr(self.api.registry[name], "open_writer", fail)
            assert copy("spare") == "spare"
            assert copy("mem") == "mem,spare"
        assert copy("mem") == "spare"
        assert copy("spare") == ""

    def test_a_task_is_forgotten_when_its_time_is_over(self, tmp_path):
        image = self.imported()
        [task] = self.api.alice.get(f"/v2/images/{image}/tasks").json["tasks"]
        past = task_rows.update().where(task_rows.c.id == task["id"]).values(expires_at=1)
        self.api.repository.database.write(lambda connection: connection.execute(past))
        assert self.api.admin.get(f"/v2/tasks/{task['id']}").status_code == 404
        assert self.api.alice.get(f"/v2/images/{image}/tasks").json == {"tasks": []}
        self.api.service.imports.scrub()
        assert self.api.admin.get(f"/v2/tasks?marker={task['id']}").status_code == 400

    def test_the_time_is_an_option(self, tmp_path):
        deployment = Deployment(tmp_path, **{"[task]\ntask_time_to_live": 5})
        image = deployment.alice.active()
        copy = {"method": {"name": "copy-image"}, "stores": ["mem"]}
        assert deployment.admin.post(f"/v2/images/{image}/import", copy).status_code == 202
        deployment.settle()
        [task] = deployment.repository.tasks.of_image(image)
        assert (task.expires_at - task.updated_at).total_seconds() == pytest.approx(5 * 3600, abs=1)
        deployment.close()

    @pytest.mark.parametrize("query", ["type=nothing", "status=nothing", "marker=36d4b546-64a2-4bb9-bdd0-ba676aa48f2c"])
    def test_lists_that_cannot_be_are_refused(self, query):
        assert self.api.admin.get(f"/v2/tasks?{query}").status_code == 400

    @pytest.mark.parametrize("name", ["id", "image_id", "user_id", "request_id", "owner", "status", "type"])
    def test_a_list_may_be_of_what_a_task_tells(self, name):
        self.imported(), self.imported()
        tasks = self.api.admin.get("/v2/tasks?limit=1000").json["tasks"]
        value = tasks[0][name]
        wanted = {task["id"] for task in tasks if task[name] == value}
        for order in ("created_at", "updated_at"):
            found = self.api.admin.get(f"/v2/tasks?{name}={value}&limit=1000&sort_key={order}").json["tasks"]
            assert {task["id"] for task in found} == wanted
        narrower = self.api.admin.get(f"/v2/tasks?{name}={value}&id={tasks[0]['id']}").json["tasks"]
        assert [task["id"] for task in narrower] == [tasks[0]["id"]]
        if name not in ("status", "type"):
            assert self.api.admin.get(f"/v2/tasks?{name}=nothing").json["tasks"] == []

    def test_a_list_may_be_of_one_owner(self):
        self.imported()
        owners = {task["owner"] for task in self.api.admin.get("/v2/tasks?owner=alpha").json["tasks"]}
        assert owners == {"alpha"}
        assert self.api.admin.get("/v2/tasks?owner=nobody").json["tasks"] == []
