# SPDX-License-Identifier: Apache-2.0
"""Images in v1 whose data is somewhere else: ``x-glance-api-copy-from`` and ``location``."""

from __future__ import annotations

import contextlib
import hashlib
import uuid

import pytest
from deployment import Deployed
from v1_client import Web, WithWeb, create, created, shown, update

MD5 = hashlib.md5(Web.data).hexdigest()
FORMATS = {"disk_format": "raw", "container_format": "bare"}


def copying(uri: str) -> dict[str, str]:
    return {"x-glance-api-copy-from": uri}


class TestCopyFrom(WithWeb):
    def create(self, path="/image", **fields):
        return create(self.api.admin, more=copying(self.web + path), **FORMATS, **fields)

    def after(self, answer):
        """The image once the background is done."""
        assert answer.status_code in (200, 201), answer.text
        self.api.settle()
        return shown(self.api.admin, answer.json["image"]["id"])

    def test_the_data_is_copied_in_the_background(self):
        response = self.create(store="mem")
        image = response.json["image"]
        assert (image["status"], image["size"], image["checksum"]) == ("queued", len(Web.data), None)
        found = self.after(response)
        assert (found["status"], found["checksum"]) == ("active", MD5)
        assert self.api.admin.get(f"/v1/images/{image['id']}").content == Web.data
        assert self.api.admin.show(image["id"])["stores"] == "mem"

    @pytest.mark.parametrize("path", ["/a%20b", "/a%2520b"])
    def test_the_uri_may_be_percent_encoded_for_the_header_or_not(self, path):
        Web.asked.clear()
        assert self.after(self.create(path))["status"] == "active"
        assert set(Web.asked) == {"/a%20b"}

    def test_a_reserved_image_is_filled_too(self):
        image = created(self.api.admin)
        response = update(self.api.admin, image, more=copying(f"{self.web}/image"))
        assert (response.json["image"]["status"], response.json["image"]["size"]) == ("queued", len(Web.data))
        assert self.after(response)["status"] == "active"

    @pytest.mark.parametrize("fields", [{"size": 5}, {"checksum": "0" * 32}])
    def test_a_copy_that_is_not_what_was_said_is_killed(self, fields):
        response = self.create(**fields)
        assert self.after(response)["status"] == "killed"
        assert response.json["image"]["id"] not in self.api.files()

    def test_a_copy_that_breaks_off_is_killed(self):
        response = self.create("/cut")
        assert self.after(response)["status"] == "killed"
        assert response.json["image"]["id"] not in self.api.files()

    def test_a_copy_without_formats_is_killed(self):
        response = create(self.api.admin, more=copying(f"{self.web}/image"))
        assert self.after(response)["status"] == "killed"

    @pytest.mark.parametrize(
        ("uri", "status"),
        [
            ("", 400),
            ("/etc/passwd", 400),
            ("file:///etc/passwd", 400),
            ("filesystem:///etc/passwd", 400),
            ("File:///etc/passwd", 400),
            ("swift+config://ref/container/object", 400),
            ("gopher://example.org/x", 400),
            ("http://", 400),
            ("http://10.0.0.1/x", 403),
            ("{web}/missing", 404),
            ("http://127.0.0.1:9/x", 503),
        ],
    )
    def test_what_cannot_be_copied_is_refused_and_nothing_is_made(self, uri, status):
        image = str(uuid.uuid4())
        response = create(self.api.admin, more=copying(uri.format(web=self.web)), id=image, **FORMATS)
        assert response.status_code == status, response.text
        assert self.api.admin.request("HEAD", f"/v1/images/{image}").status_code == 404

    def test_only_administrators_copy_by_default(self):
        assert create(self.api.alice, more=copying(f"{self.web}/image"), **FORMATS).status_code == 403

    def test_an_image_with_data_takes_no_other(self):
        image = created(self.api.admin, b"data")
        assert update(self.api.admin, image, more=copying(f"{self.web}/image")).status_code == 400

    def test_an_image_that_is_deleted_meanwhile_leaves_nothing(self):
        response = self.create()
        image = response.json["image"]["id"]
        self.api.admin.delete(f"/v1/images/{image}")
        self.api.settle()
        assert image not in self.api.files()


class TestWithoutEnd(WithWeb):
    """A server that tells no size is asked for all of the image once, to count it."""

    options = {  # noqa: RUF012
        "image_size_cap": "100000",
        "import_allowed_networks": "127.0.0.1/32",
        "import_allowed_ports": "",
    }

    @pytest.fixture
    def sent(self, monkeypatch):
        sent = []

        def endless(server):
            server.send_response(200)
            server.end_headers()
            if server.command == "GET":
                with contextlib.suppress(OSError):
                    while sum(sent) < 1 << 30:
                        sent.append(server.wfile.write(bytes(1 << 16)))

        monkeypatch.setattr(Web, "do_GET", endless)
        monkeypatch.setattr(Web, "do_HEAD", endless)
        return sent

    def test_an_import_counts_no_more_than_an_image_may_have(self, sent):
        image = self.api.nova.create()
        body = {"method": {"name": "web-download", "uri": f"{self.web}/image"}}
        assert self.api.nova.post(f"/v2/images/{image}/import", body).status_code == 202
        self.api.settle()
        [task] = self.api.nova.get(f"/v2/images/{image}/tasks").json["tasks"]
        assert "100000 bytes" in task["message"]
        assert sum(sent) < 64 << 20

    def test_a_copy_counts_no_more_than_an_image_may_have(self, sent):
        response = create(self.api.admin, more=copying(f"{self.web}/image"), **FORMATS)
        self.api.settle()
        assert shown(self.api.admin, response.json["image"]["id"])["status"] == "killed"
        assert sum(sent) < 64 << 20


class TestLocation(WithWeb):
    def test_the_image_is_active_at_once_and_nothing_is_copied(self):
        response = create(self.api.alice, location=f"{self.web}/image", **FORMATS)
        image = response.json["image"]
        assert (response.status_code, image["status"], image["size"]) == (201, "active", len(Web.data))
        assert self.api.alice.get(f"/v1/images/{image['id']}").content == Web.data
        assert image["id"] not in self.api.files()

    def test_a_reserved_image_can_be_told_where_its_data_is(self):
        image = created(self.api.alice, size=len(Web.data))
        response = update(self.api.alice, image, location=f"{self.web}/image")
        assert (response.status_code, response.json["image"]["status"]) == (200, "active")
        assert self.api.alice.get(f"/v1/images/{image}").content == Web.data

    @pytest.mark.parametrize(
        ("fields", "status"),
        [
            ({"location": "{web}/image", "size": 5}, 409),
            ({"location": "{web}/missing"}, 404),
            ({"location": "http://10.0.0.1/x"}, 403),
            ({"location": "file:///etc/passwd"}, 400),
            ({"location": "memory://mem/x"}, 403),
            ({"location": "{web}/image", "disk_format": ""}, 400),
        ],
    )
    def test_what_cannot_be_taken_is_refused_and_changes_nothing(self, fields, status):
        fields = FORMATS | {name: str(value).format(web=self.web) for name, value in fields.items()}
        image = str(uuid.uuid4())
        response = create(self.api.alice, id=image, **fields)
        assert response.status_code == status, response.text
        assert self.api.alice.request("HEAD", f"/v1/images/{image}").status_code == 404
        reserved = create(self.api.alice, name="before").json["image"]["id"]
        assert update(self.api.alice, reserved, name="after", **fields).status_code == status
        found = shown(self.api.alice, reserved)
        assert (found["status"], found["name"]) == ("queued", "before")

    def test_services_may_name_data_in_any_store(self):
        uri = self.api.registry["mem"].add(str(uuid.uuid4()), b"put there").uri
        response = create(self.api.nova, location=uri, **FORMATS)
        assert response.status_code == 201, response.text
        assert self.api.nova.get(f"/v1/images/{response.json['image']['id']}").content == b"put there"

    def test_deleting_the_image_leaves_other_peoples_web_servers_alone(self):
        image = create(self.api.alice, location=f"{self.web}/image", **FORMATS).json["image"]["id"]
        assert self.api.alice.delete(f"/v1/images/{image}").status_code == 200


class TestOneSource(Deployed):
    @pytest.mark.parametrize(
        ("data", "copy", "location"),
        [
            (b"data", "http://example.org/x", None),
            (b"data", None, "http://example.org/x"),
            (None, "http://example.org/x", "http://example.org/x"),
            (b"data", "http://example.org/x", "http://example.org/x"),
        ],
    )
    def test_more_than_one_is_refused(self, data, copy, location):
        fields = FORMATS | ({"location": location} if location else {})
        more = copying(copy) if copy else {}
        image = created(self.api.admin)
        responses = [
            create(self.api.admin, data, more=more, **fields),
            update(self.api.admin, image, data, more=more, **fields),
        ]
        for response in responses:
            assert response.status_code == 400
            assert response.json["error"]["message"] == "It's invalid to provide multiple image sources."
        assert shown(self.api.admin, image)["status"] == "queued"
