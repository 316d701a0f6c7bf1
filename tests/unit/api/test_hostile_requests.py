# SPDX-License-Identifier: Apache-2.0
"""What a stranger may send: long, odd and many values are refused at the door; answers tell no place of a server."""

from __future__ import annotations

import base64
import json
import time
import uuid

import bcrypt
import pytest
from deployment import READY, Deployed

from storelib.api.db.listing import MOST_VALUES
from storelib.api.errors import DatabaseUnavailable, OutcomeUnknown
from storelib.api.middleware.error_handlers import told
from storelib.exceptions import Invalid, NotFound, RemoteServiceUnavailable, StorageFull
from storelib.testing.memory import MemoryStore


class TestValues(Deployed):
    @pytest.mark.parametrize("name", ["id", "kernel_id", "ramdisk_id"])
    @pytest.mark.parametrize("end", ["\n", " ", "0", "\r"])
    def test_an_id_with_something_behind_it_is_none(self, name, end):
        answer = self.api.alice.post("/v2/images", {name: f"{uuid.uuid4()}{end}"})
        assert answer.status_code == 400

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
        answer = self.api.alice.get(f"/v2/images?{name}=in:{query}")
        assert (answer.status_code, str(MOST_VALUES) in answer.text) == (400, True)
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
        answer = self.api.alice.get(f"/v2/images/{image}")
        assert answer.status_code >= 400
        assert "10.1.2.3" not in answer.text
        assert "srv" not in answer.text
        assert len(answer.json["error"]["message"]) > 10

    def test_what_the_caller_did_wrong_is_told_in_full(self):
        assert told(Invalid("the source ended after 3 of 5 bytes")) == "the source ended after 3 of 5 bytes"

    def test_a_long_message_is_looked_at_in_linear_time(self):
        for pump in ("a", "a/", "://", " ", "'", "a:/"):
            begun = time.process_time()
            told(Invalid(pump * 200_000))
            assert time.process_time() - begun < 2

    def test_a_store_that_is_away_is_told_without_its_address(self, monkeypatch):
        image = self.api.alice.active()

        def fail(*arguments):
            raise RemoteServiceUnavailable("memory://10.1.2.3/x does not answer")

        monkeypatch.setattr(MemoryStore, "open_reader", fail)
        monkeypatch.setattr("storelib.drivers.filesystem.FilesystemStore.open_reader", fail)
        answer = self.api.alice.download(image)
        assert answer.status_code == 503
        assert "10.1.2.3" not in answer.text


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
