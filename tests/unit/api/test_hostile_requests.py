# SPDX-License-Identifier: Apache-2.0
"""What a stranger may send: long, odd and many values are refused at the door; answers tell no place of a server."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import sqlite3
import time
import uuid
from urllib.parse import quote

import bcrypt
import pytest
from deployment import OCTETS, PATCH, READY, Deployed

from storelib.api.db.listing import MOST_VALUES
from storelib.api.errors import DatabaseUnavailable, OutcomeUnknown
from storelib.api.messages import told
from storelib.exceptions import InUseByStore, Invalid, NotFound, RemoteServiceUnavailable, StorageFull
from storelib.registry import open_store
from storelib.testing.memory import MemoryStore


class TestValues(Deployed):
    @pytest.mark.parametrize("name", ["id", "kernel_id", "ramdisk_id"])
    @pytest.mark.parametrize("end", ["\n", " ", "0", "\r"])
    def test_an_id_with_something_behind_it_is_none(self, name, end):
        response = self.api.alice.post("/v2/images", {name: f"{uuid.uuid4()}{end}"})
        assert response.status_code == 400

    @pytest.mark.parametrize("scheme", ["http", "https", "memory"])
    def test_a_uri_has_an_end(self, scheme):
        uri = f"{scheme}://x/" + "?" * 2_000_000
        image = self.api.alice.create()
        body = {"method": {"name": "web-download", "uri": uri}}
        assert self.api.alice.post(f"/v2/images/{image}/import", body).status_code == 400
        assert self.api.nova.post(f"/v2/images/{image}/locations", {"url": uri}).status_code in (400, 403)
        headers = {f"x-image-meta-{name}": value for name, value in READY.items()}
        copying = headers | {"x-glance-api-copy-from": uri}
        assert self.api.admin.request("POST", "/v1/images", copying).status_code == 400
        located = headers | {"x-image-meta-location": uri}
        assert self.api.admin.request("POST", "/v1/images", located).status_code == 400
        assert self.api.alice.show(image)["status"] == "queued"

    @pytest.mark.parametrize(
        "uri", ["http://127.0.0.1[", "http://[::1", "http://[]/", "http://x:99999/", "http://\ud800/"]
    )
    def test_a_uri_that_is_none_is_refused(self, uri):
        image = self.api.alice.create()
        body = json.dumps({"method": {"name": "web-download", "uri": uri}})
        sent = {"Content-Type": "application/json"}
        assert self.api.alice.request("POST", f"/v2/images/{image}/import", sent, body=body).status_code == 400


class TestLists(Deployed):
    @pytest.mark.parametrize("path", ["/v2/images", "/v1/images", "/v1/images/detail"])
    def test_there_are_so_many_filters(self, path):
        name = "property-p" if path.startswith("/v1") else "p"
        for count, status in ((100, 200), (101, 400), (1250, 400)):
            query = "&".join(f"{name}{number}=x" for number in range(count))
            assert self.api.alice.get(f"{path}?{query}").status_code == status

    def test_tags_are_filters_too(self):
        query = "&".join(f"tag=t{number}" for number in range(60)) + "&"
        query += "&".join(f"p{number}=x" for number in range(41))
        assert self.api.alice.get(f"/v2/images?{query}").status_code == 400

    @pytest.mark.parametrize("name", ["id", "name", "status", "disk_format", "container_format"])
    def test_a_filter_names_so_many_values(self, name):
        query = ",".join(f"{name}{number}" for number in range(MOST_VALUES + 1))
        response = self.api.alice.get(f"/v2/images?{name}=in:{query}")
        assert (response.status_code, str(MOST_VALUES) in response.text) == (400, True)
        if name in ("id", "name"):
            assert self.api.alice.get(f"/v2/images?{name}=in:{query.rpartition(',')[0]}").status_code == 200


class TestWhatIsTold(Deployed):
    @pytest.mark.parametrize(
        "error",
        [
            DatabaseUnavailable("postgresql://storelib@10.1.2.3/images: no route to host"),
            OutcomeUnknown("postgresql://storelib@10.1.2.3/images was lost at the commit"),
            RemoteServiceUnavailable("https://10.1.2.3:9000/images/x: the connection was refused"),
            StorageFull("no room in '/srv/images/10.1.2.3'; see filesystem_store_datadirs"),
            NotFound("no image at file:///srv/images/10.1.2.3"),
            Invalid("(/srv/images/10.1.2.3): not a directory"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_no_message_tells_where_a_server_or_a_directory_is(self, error, monkeypatch):
        image = self.api.alice.active()

        def fail(*arguments, **options):
            raise error

        monkeypatch.setattr(self.api.service.core.repository.images, "get", fail)
        response = self.api.alice.get(f"/v2/images/{image}")
        assert response.status_code >= 400
        assert "10.1.2.3" not in response.text
        assert "srv" not in response.text
        assert len(response.json["error"]["message"]) > 10

    @pytest.mark.parametrize(
        "place",
        [
            *("/srv/x", "datadir=/srv/x", "[/srv/x]", "`/srv/x`", "file:/srv/x", "10.1.2.3", "10.1.2.3:9000/x"),
            *("host='10.1.2.3'", "HTTPConnectionPool(host='10.1.2.3',", "[fe80::1]:80", "rbd://fsid/x", "<x|/srv/x>"),
        ],
    )
    def test_places_are_known_in_whatever_they_are_wrapped(self, place):
        message = told(StorageFull(f"no room for 5 GiB/s at {place} and/or 1.5 MiB in 1.2.3 parts"))
        assert ("srv" in message, "10.1.2.3" in message, "fe80" in message, "fsid" in message) == (False,) * 4
        assert message.startswith("no room for 5 GiB/s at ")
        assert message.endswith(" and/or 1.5 MiB in 1.2.3 parts")

    def test_a_list_does_not_tell_whether_a_guess_of_what_is_hidden_was_right(self):
        image = self.api.alice.create()
        staged = self.api.alice.request("PUT", f"/v2/images/{image}/stage", OCTETS, body=b"data")
        assert staged.status_code == 204
        for name, value in self.api.repository.images.get(image).properties.items():
            for path in (f"/v2/images?{name}=", f"/v1/images?property-{name}="):
                assert self.api.alice.get(path + quote(value)).json["images"] == []

    def test_what_the_caller_did_wrong_is_told_in_full(self):
        assert told(Invalid("the source ended after 3 of 5 bytes")) == "the source ended after 3 of 5 bytes"

    def test_a_long_message_is_looked_at_in_linear_time(self):
        for pump in ("a", "a/", "://", " ", "'", "a:/", "1.", "111.", ":", "="):
            begun = time.process_time()
            told(Invalid(pump * 200_000))
            assert time.process_time() - begun < 2

    def test_a_store_that_is_away_is_told_without_its_address(self, monkeypatch):
        image = self.api.alice.active()

        def fail(*arguments):
            raise RemoteServiceUnavailable("memory://10.1.2.3/x does not answer")

        monkeypatch.setattr(MemoryStore, "open_reader", fail)
        monkeypatch.setattr("storelib.drivers.filesystem.FilesystemStore.open_reader", fail)
        response = self.api.alice.download(image)
        assert response.status_code == 503
        assert "10.1.2.3" not in response.text


class TestBasicAuth:
    @pytest.fixture
    def wsgi(self, tmp_path):
        from oslo_config import cfg

        from storelib.api.middleware.identity import BasicAuth
        from storelib.api.policy import Policy

        users = tmp_path / "users"
        hashed = bcrypt.hashpw(b"right" + b"x" * 67, bcrypt.gensalt(4)).decode()
        users.write_text(f"known:{hashed}\n")
        conf = cfg.ConfigOpts()
        conf([], project="storelib")
        return BasicAuth(Policy(conf), str(users), [])

    @staticmethod
    def header(name, password):
        return {"HTTP_AUTHORIZATION": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}

    @pytest.mark.parametrize("name", ["known", "unknown"])
    @pytest.mark.parametrize("password", ["", "wrong", "right" + "x" * 68, "x" * 100_000, "ä" * 37])
    def test_known_and_unknown_users_are_refused_alike(self, wsgi, name, password):
        from storelib.api.errors import NotAuthenticated

        with pytest.raises(NotAuthenticated) as caught:
            wsgi(self.header(name, password), "request")
        assert str(caught.value) == "this request needs a user name and a password"

    def test_the_password_is_the_password(self, wsgi):
        assert wsgi(self.header("known", "right" + "x" * 67), "request").project_id == "known"

    def test_an_unknown_user_costs_as_much_as_a_known_one(self, wsgi, monkeypatch):
        from storelib.api.errors import NotAuthenticated

        compared = []
        plain = bcrypt.checkpw
        monkeypatch.setattr("bcrypt.checkpw", lambda *each: compared.append(each[1][:7]) or plain(*each))
        for name in ("known", "unknown"):
            with pytest.raises(NotAuthenticated):
                wsgi(self.header(name, "wrong"), "request")
        assert len(compared) == 2
        assert compared[0] == compared[1]


class TestWhatTasksTell(Deployed):
    def test_a_task_tells_no_place_of_a_store(self, monkeypatch):
        def fail(*arguments):
            raise StorageFull("no room in '/srv/images' of https://10.1.2.3:9000/bucket")

        for name in ("fast", "mem"):
            monkeypatch.setattr(self.api.registry[name], "open_writer", fail)
        for stores, must in ((["fast"], True), (["fast", "mem"], False), (["fast", "spare"], False)):
            image = self.api.alice.create()
            sent = {"Content-Type": "application/octet-stream"}
            self.api.alice.request("PUT", f"/v2/images/{image}/stage", sent, body=b"data")
            body = {"method": {"name": "glance-direct"}, "stores": stores, "all_stores_must_succeed": must}
            assert self.api.alice.post(f"/v2/images/{image}/import", body).status_code == 202
            self.api.settle()
            [task] = self.api.alice.get(f"/v2/images/{image}/tasks").json["tasks"]
            assert ("no room" in task["message"], "srv" in str(task), "10.1.2.3" in str(task)) == (True, False, False)

    def test_data_in_use_is_told_without_its_place(self, monkeypatch):
        def fail(*arguments):
            raise InUseByStore("rbd://fsid/pool/x/snap: mapped at 10.1.2.3")

        image = self.api.alice.active()
        monkeypatch.setattr(self.api.registry["fast"], "delete", fail)
        response = self.api.alice.delete(f"/v2/images/{image}")
        assert (response.status_code, "in use" in response.text, "rbd:" in response.text) == (409, True, False)

    def test_the_url_of_the_client_itself_is_told(self):
        own = "http://example.org/a(1)?x=***"
        error = Invalid(f"reading {own} failed: moved to http://10.1.2.3/")
        assert told(error, own) == f"reading {own} failed: moved to ..."


HALF = "\ud800"


class TestBodies(Deployed):
    options = {"show_multiple_locations": "true"}  # noqa: RUF012

    def send(self, method, path, text, kind="application/json"):
        begun = time.process_time()
        response = self.api.admin.request(method, path, {"Content-Type": kind}, body=text)
        # Checked one by one, as many values would take a minute.
        assert time.process_time() - begun < 5
        return response

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("POST", "/v2/images", {"tags": ["a"] * 500_000}),
            ("POST", "/v2/images", {"tags": [1] * 500_000}),
            ("POST", "/v2/images", {f"p{number}": "x" for number in range(100_000)}),
            ("POST", "/v2/images", {"name": [[]] * 500_000}),
            ("PATCH", "/v2/images/{image}", [{"op": "add", "path": "/p", "value": "x"}] * 50_000),
            ("PATCH", "/v2/images/{image}", [{"op": "add", "path": "/tags", "value": ["x"] * 500_000}]),
            ("POST", "/v2/images/{image}/members", {"member": "x", "more": [1] * 500_000}),
            ("POST", "/v2/images/{image}/import", {"method": {"name": "copy-image"}, "stores": ["x"] * 500_000}),
            ("POST", "/v2/images/{image}/locations", {"url": "x", "validation_data": {"x": [1] * 500_000}}),
            ("PUT", "/v1/images/{image}/members", {"memberships": [{"member_id": "x"}] * 100_000}),
            ("POST", "/v2/metadefs/namespaces", {"namespace": "n", "tags": [{"name": "x"}] * 150_000}),
            ("POST", "/v2/metadefs/namespaces", {"namespace": "n", "tags": [{"name": "x"}] * 90_000}),
            ("PUT", "/v2/metadefs/namespaces/n", {"namespace": "n", "objects": [{"name": "x"}] * 90_000}),
            ("POST", "/v2/metadefs/namespaces/n/tags", {"tags": [{"name": "x"}] * 90_000}),
            ("POST", "/v2/metadefs/namespaces/n/objects", {"name": "o", "required": ["x"] * 500_000}),
        ],
    )
    def test_a_body_has_so_many_values(self, method, path, body):
        self.api.admin.post("/v2/metadefs/namespaces", {"namespace": "n"})
        kind = PATCH if method == "PATCH" else "application/json"
        path = path.format(image=self.api.admin.create())
        assert self.send(method, path, json.dumps(body, separators=(",", ":")), kind).status_code == 413

    def test_lists_of_what_has_to_differ_are_compared_in_linear_time(self):
        required = [{"a": number} for number in range(40_000)]
        body = {"namespace": "m", "objects": [{"name": "o", "required": required}]}
        assert self.send("POST", "/v2/metadefs/namespaces", json.dumps(body)).status_code == 400
        body["objects"][0]["required"] = ["x", "y", "x"]
        assert self.send("POST", "/v2/metadefs/namespaces", json.dumps(body)).status_code == 400

    @pytest.mark.parametrize("depth", [70, 500, 900, 1000, 100_000])
    @pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a":', "}")])
    def test_a_body_is_so_deep(self, depth, begin, end):
        deep = begin * depth + "1" + end * depth
        image = self.api.admin.create()
        for method, path, text in (
            ("POST", "/v2/images", f'{{"p": {deep}}}'),
            ("PATCH", f"/v2/images/{image}", f'[{{"op": "add", "path": "/p", "value": {deep}}}]'),
            ("POST", f"/v2/images/{image}/import", f'{{"method": {deep}}}'),
            ("POST", "/v2/metadefs/namespaces", f'{{"namespace": "d", "description": {deep}}}'),
        ):
            response = self.send(method, path, text, PATCH if method == "PATCH" else "application/json")
            assert response.status_code == 400, response.text

    @pytest.mark.parametrize("number", ["9" * 1_000_000, "9" * 4000, "9" * 1_000_000 + ".0", "1e999", "-1e999", "NaN"])
    def test_a_number_that_is_none_is_refused(self, number):
        for name in ("min_ram", "p"):
            assert self.send("POST", "/v2/images", f'{{"{name}": {number}}}').status_code == 400
        body = f'{{"namespace": "x", "properties": {{"p": {{"title": "t", "type": "number", "default": {number}}}}}}}'
        assert self.send("POST", "/v2/metadefs/namespaces", body).status_code in (400, 413)

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v2/images", {"name": HALF}),
            ("/v2/images", {"p": HALF}),
            ("/v2/images", {HALF: "x"}),
            ("/v2/images", {"tags": [HALF]}),
            ("/v2/metadefs/namespaces", {"namespace": "h", "properties": {"p": {"title": HALF, "type": "string"}}}),
            ("/v2/metadefs/namespaces", {"namespace": "h", "objects": [{"name": "o", "description": HALF}]}),
            ("/v2/images/{image}/members", {"member": HALF}),
            ("/v2/images/{image}/import", {"method": {"name": "web-download", "uri": "http://x", "more": HALF}}),
            ("/v2/images/{image}/locations", {"url": "http://x", "validation_data": {"checksum": HALF}}),
        ],
    )
    def test_halves_of_characters_are_refused_everywhere(self, path, body):
        response = self.send("POST", path.format(image=self.api.admin.create()), json.dumps(body))
        assert (response.status_code, "Unicode" in response.text) == (400, True)

    @pytest.mark.parametrize("metadata", [{"a": HALF}, {HALF: 1}, {"a": [{"b": [HALF]}]}])
    def test_so_are_those_in_the_metadata_of_locations(self, metadata):
        image, uri = self.api.admin.create(), self.api.registry["mem"].add(str(uuid.uuid4()), b"data").uri
        value = {"url": uri, "metadata": metadata}
        for operation in (
            {"op": "add", "path": "/locations/-", "value": value},
            {"op": "replace", "path": "/locations", "value": [value]},
        ):
            assert self.api.admin.patch(image, operation).status_code == 400
        assert self.api.admin.get("/v2/images").status_code == 200

    def test_what_an_older_version_or_another_program_left_breaks_no_list(self):
        image, spoiled = self.api.admin.active(name="with half a character"), self.api.admin.active(name="spoiled")
        for each, metadata in ((image, json.dumps({"store": "fast", "a": HALF})), (spoiled, "no JSON")):
            with contextlib.closing(sqlite3.connect(self.api.directory / "images.sqlite")) as connection, connection:
                connection.execute("UPDATE image_locations SET metadata = ? WHERE image_id = ?", (metadata, each))
                connection.execute("UPDATE images SET version = version + 1 WHERE id = ?", (each,))
        for path in ("/v2/images?limit=1000", "/v1/images/detail", f"/v2/images/{image}", f"/v2/images/{spoiled}"):
            response = self.api.admin.get(path)
            assert response.status_code == 200, path
            assert response.json
        shown = {each["id"]: each for each in self.api.admin.get("/v2/images?limit=1000").json["images"]}
        assert shown[image]["locations"][0]["metadata"]["a"] == HALF
        assert shown[spoiled]["locations"][0]["metadata"] == {}
        assert self.api.admin.download(spoiled).content == b"the data"

    def test_no_server_is_asked_for_more_locations_than_an_image_may_have(self, monkeypatch):
        monkeypatch.setattr(self.api.service.core.quota, "locations", 2)
        store, asked = self.api.registry["mem"], []
        monkeypatch.setattr(store, "get_size", lambda uri, context: asked.append(uri) or 4)
        image = self.api.admin.create()
        values = [{"url": f"memory://mem/{number}", "metadata": {}} for number in range(50)]
        adding = [{"op": "add", "path": "/locations/-", "value": value} for value in values]
        assert self.api.admin.patch(image, *adding).status_code == 413
        assert self.api.admin.patch(image, {"op": "replace", "path": "/locations", "value": values}).status_code == 413
        assert len(asked) == 2

    def test_a_place_that_does_not_answer_keeps_no_thread(self, monkeypatch):
        """How long a server may be silent for each byte is an option; all of it has a limit, too."""
        silent = socket.create_server(("127.0.0.1", 0))
        try:
            monkeypatch.setattr("storelib.api.service.locations.LOOK", 0.2)
            web = open_store("http", "mem", http_allowed_networks="127.0.0.0/8", transfer_retries=0)
            monkeypatch.setattr(self.api.registry, "resolve", lambda uri, context=None: web)
            monkeypatch.setattr(type(self.api.registry), "schemes", {"http": web}, raising=False)
            uri = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
            image = self.api.admin.create()
            value = {"url": uri, "metadata": {}}
            begun = time.monotonic()
            assert self.api.admin.patch(image, {"op": "add", "path": "/locations/-", "value": value}).status_code == 400
            assert self.api.admin.post(f"/v2/images/{image}/locations", {"url": uri}).status_code == 400
            assert time.monotonic() - begun < 20
        finally:
            silent.close()


class TestMethods(Deployed):
    @pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
    def test_a_method_of_which_nothing_is_known_costs_little(self):
        """Which ones there are is looked up once for each route, not for each request."""
        begun = time.process_time()
        for number in range(100):
            response = self.api.alice.request(f"METHOD{number}", f"/v2/images/{uuid.uuid4()}")
            assert (response.status_code, "PATCH" in response.headers["allow"]) == (405, True)
        assert time.process_time() - begun < 5
        assert self.api.alice.get("/v2/images").status_code == 200


class TestDisabledStores(Deployed):
    sections = """
[storelib]
stores = fast:file, mem:memory, gone:file, broken:swift
[gone]
filesystem_store_datadir = /dev/null/srv:9000
[broken]
swift_store_config_file = /srv/there/is/none
"""

    def test_why_a_store_is_disabled_is_for_operators(self):
        image = self.api.admin.create()
        responses = [
            self.api.admin.upload(image, b"data", x_image_meta_store="gone"),
            self.api.admin.request(
                "POST", "/v1/images", {"x-image-meta-name": "x", "x-image-meta-store": "broken"}, body=b""
            ),
            self.api.admin.post(
                f"/v2/images/{image}/import",
                {"method": {"name": "web-download", "uri": "http://example.org/"}, "stores": ["broken"]},
            ),
            self.api.admin.upload(image, b"data", x_image_meta_store="broken"),
            self.api.admin.post(f"/v2/images/{image}/locations", {"url": "swift://10.1.2.3/bucket/x"}),
        ]
        for response in responses:
            assert 400 <= response.status_code < 500, response.text
            assert ("srv" in response.text, ":9000" in response.text) == (False, False), response.text
