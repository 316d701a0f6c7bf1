# SPDX-License-Identifier: Apache-2.0
"""Stage and import: from staged data, from the web, from one store to others; what is left when it fails."""

from __future__ import annotations

import http.server
import io
import threading
import uuid

import pytest
from deployment import OCTETS, Deployed

from storelib.api.db.rows import property_rows
from storelib.api.db.schema import image_properties, images
from storelib.api.db.tasks import to_properties
from storelib.api.errors import OutcomeUnknown
from storelib.api.service import administrator
from storelib.capabilities import Capability
from storelib.exceptions import StorageFull

DATA = b"imported data " * 1000


class Importing(Deployed):
    def stage(self, image, data=DATA, caller=None):
        return (caller or self.api.alice).request("PUT", f"/v2/images/{image}/stage", OCTETS, body=data)

    def start(self, image, name, caller=None, header=None, **more):
        method = {"name": name, **({"uri": more.pop("uri")} if "uri" in more else {})}
        headers = {"x_image_meta_store": header} if header else {}
        answer = (caller or self.api.alice).post(f"/v2/images/{image}/import", {"method": method, **more}, **headers)
        self.api.settle()
        return answer

    def staged(self):
        staging = self.api.directory / "staging"
        return sorted(path.name for path in staging.iterdir()) if staging.exists() else []

    def break_store(self, monkeypatch, name):
        def fail(*arguments):
            raise StorageFull("no room")

        monkeypatch.setattr(self.api.registry[name], "open_writer", fail)

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
    def test_staged_data_is_imported_and_the_stage_is_empty_again(self):
        image = self.api.alice.create()
        assert self.stage(image).status_code == 204
        shown = self.api.alice.show(image)
        assert (shown["status"], shown["size"]) == ("uploading", len(DATA))
        answer = self.start(image, "glance-direct")
        assert (answer.status_code, answer.content) == (202, b"")
        assert not answer.headers["content-type"].startswith("application/json")
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
        assert self.failed(image) == ("queued", "fast,mem", None)
        assert image not in self.api.files()
        assert self.staged() == []

    def test_an_import_that_may_fail_in_one_store_is_active_in_the_others(self, monkeypatch):
        image = self.api.alice.create()
        self.stage(image)
        self.break_store(monkeypatch, "mem")
        self.start(image, "glance-direct", stores=["fast", "mem"], all_stores_must_succeed=False)
        assert self.failed(image) == ("active", "mem", None)
        assert self.api.alice.show(image)["stores"] == "fast"

    def test_an_import_of_another_format_fails(self):
        image = self.api.alice.create(disk_format="qcow2")
        self.stage(image)
        self.start(image, "glance-direct")
        assert self.failed(image) == ("queued", "fast", None)
        assert image not in self.api.files()

    def test_an_import_is_told_as_an_upload_is_and_never_where_the_data_is(self):
        self.api.events.clear()
        image = self.api.alice.create()
        self.stage(image)
        self.api.alice.patch(image, {"op": "replace", "path": "/name", "value": "staged"})
        self.start(image, "glance-direct")
        told = [event for _, event, _ in self.api.events]
        assert told == ["image.create", "image.update", "image.upload", "image.activate"]
        assert str(self.api.directory) not in repr(self.api.events)

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
        assert self.api.admin.post("/v2/tasks", {}).status_code == 405

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
        columns = dict.fromkeys(["min_disk", "min_ram", "created_at", "updated_at", "version"], 1)
        columns |= {
            "status": "queued",
            "visibility": "private",
            "protected": False,
            "os_hidden": False,
            "deleted": False,
        }
        made = [{"id": str(uuid.uuid4()), "type": "old", "status": "success"} for _ in range(1100)]
        rows = []
        for task in made:
            task |= dict.fromkeys(["created_at", "updated_at"], "2020-01-01T00:00:00Z")
            rows += property_rows(task["id"], to_properties(task))

        def insert(connection):
            connection.execute(images.insert(), [{"id": task["id"], **columns} for task in made])
            connection.execute(image_properties.insert(), rows)

        self.api.repository.database.write(insert)
        path, seen = "/v2/tasks?limit=600", []
        while path:
            page = self.api.admin.get(path).json
            seen += [task["id"] for task in page["tasks"]]
            path = page.get("next")
        assert len(seen) == len(set(seen))
        assert {task["id"] for task in made} <= set(seen)

    @pytest.mark.parametrize("query", ["limit=x", "marker=x", "sort_key=x", "sort_dir=x", "limit=" + "9" * 5000])
    def test_lists_of_tasks_that_cannot_be_are_refused(self, query):
        assert self.api.admin.get(f"/v2/tasks?{query}").status_code == 400

    def test_what_only_the_service_needs_is_not_shown(self):
        image = self.api.alice.create()
        self.stage(image)
        self.start(image, "glance-direct")
        text = self.api.alice.get(f"/v2/images/{image}").text
        assert "staging" not in text
        assert "os_glance" not in text

    @pytest.mark.parametrize(("caller", "status"), [("bob", 404), ("colleague", 403)])
    def test_others_neither_stage_nor_import(self, caller, status):
        image = self.api.alice.create()
        other = getattr(self.api, caller)
        assert self.stage(image, caller=other).status_code == status
        self.stage(image)
        assert self.start(image, "glance-direct", caller=other).status_code == status


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
        answers = [self.send(image, io.BytesIO(b"x" * 5001), length) for length in (5001, None)]
        assert answers == [413, 413]
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
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


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
        assert self.failed(image) == ("queued", "fast", None)
        [task] = self.api.alice.get(f"/v2/images/{image}/tasks").json["tasks"]
        assert task["status"] == "failure"

    def test_the_task_tells_what_went_wrong_with_the_source(self, web):
        image = self.api.alice.create()
        self.start(image, "web-download", uri=f"{web}/cut?signature=SECRET")
        [task] = self.api.alice.get(f"/v2/images/{image}/tasks").json["tasks"]
        assert task["message"].startswith(f"reading {web}/cut?signature=***")

    def test_a_task_ends_however_long_what_is_to_be_told_of_it_is(self, monkeypatch):
        monkeypatch.setattr("storelib.api.service.locations.LONGEST_URI", 100_000)
        image = self.api.alice.create()
        self.start(image, "web-download", uri=f"http://{'a' * 70_000}/image")
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
        answer = self.start(self.api.alice.create(), "web-download", uri=url)
        assert answer.status_code == 400
        assert option in answer.text


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
        assert self.failed(image) == ("queued", "fast", None)


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
        assert "os_glance_importing_to_stores" not in recorded.properties
        assert '"status": "success"' in recorded.properties["os_glance_task_record"]

    @pytest.mark.parametrize("committed", [True, False])
    def test_a_copy_of_which_the_commit_is_lost_is_there_or_not(self, image, monkeypatch, committed):
        self.lose_commit(monkeypatch, committed)
        self.start(image, "copy-image", self.api.admin, stores=["mem"])
        self.api.service.lease.beat()
        assert self.api.alice.show(image)["stores"] == ("fast,mem" if committed else "fast")
        assert (image in self.api.registry["mem"].backend.images) == committed
        assert "os_glance_importing_to_stores" not in self.api.alice.show(image)

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
        assert self.failed(image) == ("active", "mem,spare", None)
        assert self.api.alice.show(image)["stores"] == "fast"
        assert image not in self.api.registry["spare"].backend.images

    def test_a_copy_may_fail_in_one_store(self, image, monkeypatch):
        self.break_store(monkeypatch, "mem")
        more = {"stores": ["mem", "spare"], "all_stores_must_succeed": False}
        self.start(image, "copy-image", self.api.admin, **more)
        assert self.failed(image) == ("active", "mem", None)
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
