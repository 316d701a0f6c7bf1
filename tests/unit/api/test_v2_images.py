# SPDX-License-Identifier: Apache-2.0
"""Images in v2: create, show, list, change, delete, tags, actions; who may and what is answered when not."""

from __future__ import annotations

import io
import uuid

import pytest
from deployment import OLD_PATCH, READY, Deployed

MISSING = str(uuid.UUID(int=7))
READ_ONLY = [
    "id",
    "created_at",
    "updated_at",
    "status",
    "checksum",
    "size",
    "virtual_size",
    "direct_url",
    "self",
    "file",
    "schema",
    "os_hash_algo",
    "os_hash_value",
    "location",
    "deleted",
    "deleted_at",
    "os_glance_x",
    "owner",
]


class TestTooMuch(Deployed):
    """More than there may be is refused before all of it is looked at, which would take seconds."""

    @pytest.fixture
    def unchecked(self, monkeypatch):
        for name in ("check", "check_new"):
            monkeypatch.setattr(self.api.service.core.schema, name, None)

    @pytest.mark.parametrize("body", [{f"p{number}": "x" for number in range(129)}, {"tags": ["t"] * 129}])
    def test_of_a_new_image(self, body, unchecked):
        assert self.api.alice.post("/v2/images", body).status_code == 413

    @pytest.fixture
    def image(self):
        return self.api.alice.create()

    def test_of_tags(self, image, unchecked):
        tags = {"op": "replace", "path": "/tags", "value": ["t"] * 129}
        assert self.api.alice.patch(image, tags).status_code == 413

    def test_of_operations(self, image, unchecked):
        many = [{"op": "add", "path": "/p", "value": "x"}] * 5001
        assert self.api.alice.patch(image, *many).status_code == 413


class TestCreate(Deployed):
    def test_a_new_image_is_queued_and_belongs_to_the_callers_project(self):
        image = self.api.alice.post("/v2/images", {}).json
        assert (image["status"], image["owner"], image["visibility"]) == ("queued", "alpha", "shared")

    def test_the_answer_has_every_base_property_and_the_links(self):
        response = self.api.alice.post("/v2/images", READY | {"os_distro": "debian", "tags": ["a", "b", "a"]})
        image = response.json
        path = f"/v2/images/{image['id']}"
        assert response.status_code == 201
        assert response.headers["location"] == path
        assert (image["self"], image["file"], image["schema"]) == (path, f"{path}/file", "/v2/schemas/image")
        assert image["tags"] == ["a", "b"]
        assert image["os_distro"] == "debian"
        assert {image[name] for name in ("size", "checksum", "os_hash_algo", "os_hash_value", "virtual_size")} == {None}
        assert (image["min_disk"], image["min_ram"], image["protected"], image["os_hidden"]) == (0, 0, False, False)

    def test_the_answer_tells_import_methods_and_stores(self):
        headers = self.api.alice.post("/v2/images", {}).headers
        assert headers["openstack-image-import-methods"] == "glance-direct,web-download,copy-image"
        assert headers["openstack-image-store-ids"] == "fast,mem,spare"

    def test_the_client_may_choose_the_id(self):
        wanted = str(uuid.uuid4())
        assert self.api.alice.post("/v2/images", {"id": wanted}).json["id"] == wanted

    def test_an_id_stays_as_the_client_wrote_it(self):
        """It asks for the image by that, and need not look at the answer."""
        image = str(uuid.uuid4()).upper()
        created = self.api.alice.post("/v2/images", READY | {"id": image})
        assert (created.json["id"], created.json["self"]) == (image, f"/v2/images/{image}")
        assert self.api.alice.upload(image, b"data").status_code == 204
        assert self.api.alice.download(image).content == b"data"

    def test_an_id_is_used_once(self):
        used = self.api.alice.create()
        assert self.api.alice.post("/v2/images", {"id": used}).status_code == 409

    def test_the_id_of_a_deleted_image_stays_used(self):
        used = self.api.alice.create()
        self.api.alice.delete(f"/v2/images/{used}")
        assert self.api.alice.post("/v2/images", {"id": used}).status_code == 409

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ({"id": "no-uuid"}, 400),
            ({"name": "x" * 256}, 400),
            ({"name": 7}, 400),
            ({"min_disk": -1}, 400),
            ({"min_ram": "2"}, 400),
            ({"min_ram": 2.5}, 400),
            ({"min_disk": 2e300}, 400),
            ({"min_disk": -1.0}, 400),
            ({"min_ram": float(2**31)}, 400),
            ({"min_ram": 2**31}, 400),
            ({"visibility": "secret"}, 400),
            ({"disk_format": "floppy"}, 400),
            ({"container_format": "bag"}, 400),
            ({"protected": "yes"}, 400),
            ({"tags": "one"}, 400),
            ({"tags": ["x" * 256]}, 400),
            ({"os_distro": 7}, 400),
            ({"anything": {"nested": 1}}, 400),
            ({"x" * 256: "too long a name"}, 400),
            ([], 400),
            ("text", 400),
            ({"status": "active"}, 403),
            ({"size": 7}, 403),
            ({"checksum": "0" * 32}, 403),
            ({"created_at": "2026-01-01T00:00:00Z"}, 403),
            ({"self": "/here"}, 403),
            ({"direct_url": "file:///etc/passwd"}, 403),
            ({"locations": []}, 403),
            ({"location": "file:///etc/passwd"}, 403),
            ({"deleted": "True"}, 403),
            ({"os_glance_import_task": "x"}, 403),
            ({"owner": "beta"}, 403),
            ({"visibility": "public"}, 403),
            ({f"p{number}": "x" for number in range(129)}, 413),
            ({"tags": [f"t{number}" for number in range(129)]}, 413),
        ],
    )
    def test_what_may_not_be_is_refused(self, body, status):
        response = self.api.alice.post("/v2/images", body)
        assert response.status_code == status
        assert response.json["error"]["code"] == status

    @pytest.mark.parametrize(
        ("headers", "body", "status"),
        [
            ({"Content-Type": "application/json"}, "{", 400),
            ({"Content-Type": "application/json"}, "", 400),
            ({"Content-Type": "text/plain"}, "{}", 415),
        ],
    )
    def test_a_body_that_is_not_json_is_refused(self, headers, body, status):
        assert self.api.alice.request("POST", "/v2/images", headers, body=body).status_code == status

    @pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "application/octet-stream"])
    def test_a_caller_with_a_token_need_not_say_that_it_is_json(self, kind):
        """As curl does not; without a token a page of any other site could make a browser send it."""
        headers = {"Content-Type": kind}
        responses = [
            self.api.alice.request("POST", "/v2/images", headers | token, body='{"name": "n"}')
            for token in ({"X-Auth-Token": "t"}, {})
        ]
        assert [response.status_code for response in responses] == [201, 415]

    def test_whole_numbers_may_be_written_with_a_point(self):
        """Since draft 6 of JSON schema 512.0 is an integer, which some languages write; it is kept as one."""
        created = self.api.alice.post("/v2/images", {"min_ram": 512.0, "min_disk": 0.0})
        operation = {"op": "replace", "path": "/min_disk", "value": 3e1}
        changed = self.api.alice.patch(created.json["id"], operation)
        shown = self.api.alice.get(f"/v2/images/{created.json['id']}")
        assert [response.status_code for response in (created, changed)] == [201, 200]
        assert '"min_ram":512,"min_disk":0,' in created.text
        assert all('"min_ram":512,"min_disk":30,' in response.text for response in (changed, shown))

    def test_an_administrator_may_create_public_images_for_others(self):
        image = self.api.admin.post("/v2/images", {"owner": "beta", "visibility": "public"}).json
        assert (image["owner"], image["visibility"]) == ("beta", "public")

    @pytest.mark.parametrize("caller", ["colleague", "nobody"])
    def test_who_may_only_read_creates_nothing(self, caller):
        assert getattr(self.api, caller).post("/v2/images", {}).status_code == 403

    def test_text_of_all_languages_is_kept(self):
        image_id = self.api.alice.create(name="Bücher 📚", beschreibung="日本語 \\ \" ' %")
        shown = self.api.alice.show(image_id)
        assert (shown["name"], shown["beschreibung"]) == ("Bücher 📚", "日本語 \\ \" ' %")


class TestShow(Deployed):
    @pytest.fixture(scope="class")
    @classmethod
    def images(cls, _deployed):
        alice, admin = cls.api.alice, cls.api.admin
        return {
            "private": alice.create(visibility="private"),
            "shared": alice.create(visibility="shared"),
            "community": alice.create(visibility="community"),
            "public": admin.create(visibility="public", owner="alpha"),
        }

    @pytest.mark.parametrize(
        ("caller", "seen"),
        [
            ("admin", {"private", "shared", "community", "public"}),
            ("alice", {"private", "shared", "community", "public"}),
            ("colleague", {"private", "shared", "community", "public"}),
            ("bob", {"community", "public"}),
            ("nobody", {"community", "public"}),
        ],
    )
    def test_what_one_may_not_know_of_is_not_found(self, images, caller, seen):
        responses = {name: getattr(self.api, caller).get(f"/v2/images/{image}") for name, image in images.items()}
        assert {name for name, response in responses.items() if response.status_code == 200} == seen
        assert {response.status_code for response in responses.values()} <= {200, 404}

    @pytest.mark.parametrize("image_id", [MISSING, "no-uuid", "%00", "x" * 300])
    def test_there_is_no_such_image(self, image_id):
        assert self.api.admin.get(f"/v2/images/{image_id}").status_code == 404

    def test_a_member_sees_a_shared_image(self, images):
        self.api.alice.post(f"/v2/images/{images['shared']}/members", {"member": "gamma"})
        gamma = self.api.caller("gamma", "reader")
        assert gamma.get(f"/v2/images/{images['shared']}").status_code == 200

    def test_a_method_that_is_not_there_is_told_with_those_that_are(self, images):
        response = self.api.alice.request("PUT", f"/v2/images/{images['shared']}")
        assert response.status_code == 405
        assert {"GET", "PATCH", "DELETE"} <= set(response.headers["allow"].split(", "))

    def test_every_answer_has_a_request_id(self):
        assert self.api.alice.get(f"/v2/images/{MISSING}").headers["x-openstack-request-id"].startswith("req-")

    def test_a_request_id_that_is_too_long_is_refused(self):
        assert self.api.alice.get("/v2/images", X_Openstack_Request_ID="r" * 65).status_code == 431

    def test_a_token_that_is_not_valid_is_refused(self):
        response = self.api.nobody.request("GET", "/v2/images", {"X-Auth-Token": "x", "X-Identity-Status": "Invalid"})
        assert response.status_code == 401


class TestPatch(Deployed):
    @pytest.fixture
    def image(self):
        return self.api.alice.create(colour="red", tags=["old"])

    @pytest.mark.parametrize(
        ("operation", "name", "value"),
        [
            ({"op": "replace", "path": "/name", "value": "new"}, "name", "new"),
            ({"op": "replace", "path": "/name", "value": None}, "name", None),
            ({"op": "add", "path": "/name", "value": "new"}, "name", "new"),
            ({"op": "replace", "path": "/min_ram", "value": 512}, "min_ram", 512),
            ({"op": "replace", "path": "/protected", "value": True}, "protected", True),
            ({"op": "replace", "path": "/os_hidden", "value": True}, "os_hidden", True),
            ({"op": "replace", "path": "/visibility", "value": "private"}, "visibility", "private"),
            ({"op": "replace", "path": "/visibility", "value": "community"}, "visibility", "community"),
            ({"op": "replace", "path": "/disk_format", "value": "qcow2"}, "disk_format", "qcow2"),
            ({"op": "replace", "path": "/tags", "value": ["b", "a", "b"]}, "tags", ["a", "b"]),
            ({"op": "add", "path": "/size_of_shoe", "value": "44"}, "size_of_shoe", "44"),
            ({"op": "add", "path": "/colour", "value": "blue"}, "colour", "blue"),
            ({"op": "replace", "path": "/colour", "value": "blue"}, "colour", "blue"),
            ({"op": "add", "path": "/a~1b~0c", "value": "x"}, "a/b~c", "x"),
        ],
    )
    def test_a_property_is_changed(self, image, operation, name, value):
        response = self.api.alice.patch(image, operation)
        assert response.status_code == 200, response.text
        assert response.json[name] == value
        assert self.api.alice.show(image)[name] == value

    def test_a_custom_property_is_removed(self, image):
        assert "colour" not in self.api.alice.patch(image, {"op": "remove", "path": "/colour"}).json

    @pytest.mark.parametrize(
        ("operation", "status"),
        [
            ({"op": "replace", "path": "/colours", "value": "x"}, 409),
            ({"op": "remove", "path": "/colours"}, 409),
            ({"op": "remove", "path": "/name"}, 403),
            ({"op": "remove", "path": "/visibility"}, 403),
            *(({"op": "replace", "path": f"/{name}", "value": "x"}, 403) for name in READ_ONLY),
            ({"op": "replace", "path": "/visibility", "value": "public"}, 403),
            ({"op": "add", "path": "/locations/-", "value": {"url": "memory://mem/x", "metadata": {}}}, 403),
            ({"op": "replace", "path": "/min_ram", "value": "many"}, 400),
            ({"op": "replace", "path": "/name", "value": "x" * 256}, 400),
            ({"op": "add", "path": "/new", "value": 7}, 400),
            ({"op": "add", "path": "/" + "x" * 256, "value": "x"}, 400),
            ({"op": "add", "path": "/new"}, 400),
            ({"op": "add", "value": "x"}, 400),
            ({"op": "move", "path": "/name", "value": "x"}, 400),
            ({"path": "/name", "value": "x"}, 400),
            ({"op": "add", "path": "name", "value": "x"}, 400),
            ({"op": "add", "path": "/", "value": "x"}, 400),
            ({"op": "add", "path": "/a/b", "value": "x"}, 400),
            ({"op": "add", "path": "/tags/-", "value": "x"}, 400),
            ({"op": "add", "path": "/a~2", "value": "x"}, 400),
            ({"op": "add", "path": ["a"], "value": "x"}, 400),
            ("add", 400),
        ],
    )
    def test_what_may_not_be_changed_is_refused(self, image, operation, status):
        before = self.api.alice.show(image)
        response = self.api.alice.patch(image, operation)
        assert response.status_code == status, response.text
        assert self.api.alice.show(image) == before

    @pytest.mark.parametrize(
        ("operation", "status"),
        [
            ({"add": "/new", "value": "x"}, 200),
            ({"add": "/colour", "value": "x"}, 409),
            ({"add": "/name", "value": "x"}, 409),
            ({"replace": "/name", "value": "x"}, 200),
            ({"remove": "/colour"}, 200),
            ({"add": "/a", "remove": "/b", "value": "x"}, 400),
            ({"op": "add", "path": "/new", "value": "x"}, 400),
        ],
    )
    def test_the_older_media_type_has_its_own_form(self, image, operation, status):
        assert self.api.alice.patch(image, operation, kind=OLD_PATCH).status_code == status

    @pytest.mark.parametrize("kind", ["application/json", "application/json-patch+json", "text/plain"])
    def test_other_media_types_are_refused_with_those_that_are_taken(self, image, kind):
        response = self.api.alice.patch(image, {"op": "remove", "path": "/colour"}, kind=kind)
        assert response.status_code == 415
        assert "openstack-images-v2.1-json-patch" in response.headers["accept-patch"]

    def test_a_body_that_is_no_list_is_refused(self, image):
        kind = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
        assert self.api.alice.request("PATCH", f"/v2/images/{image}", kind, body="{}").status_code == 400

    def test_all_operations_are_done_or_none(self, image):
        self.api.alice.patch(image, {"op": "add", "path": "/new", "value": "x"}, {"op": "remove", "path": "/not_there"})
        assert "new" not in self.api.alice.show(image)

    def test_operations_see_what_those_before_them_did(self, image):
        response = self.api.alice.patch(
            image,
            {"op": "add", "path": "/new", "value": "x"},
            {"op": "replace", "path": "/new", "value": "y"},
            {"op": "remove", "path": "/colour"},
        )
        assert (response.json["new"], "colour" in response.json) == ("y", False)

    def test_formats_of_an_image_with_data_are_final(self):
        image = self.api.alice.active()
        operation = {"op": "replace", "path": "/disk_format", "value": "qcow2"}
        assert self.api.alice.patch(image, operation).status_code == 403

    def test_more_properties_than_the_quota_are_refused(self, image):
        operations = [{"op": "add", "path": f"/p{number}", "value": "x"} for number in range(128)]
        assert self.api.alice.patch(image, *operations).status_code == 413

    def test_an_administrator_gives_an_image_to_another_project(self, image):
        response = self.api.admin.patch(image, {"op": "replace", "path": "/owner", "value": "beta"})
        assert response.json["owner"] == "beta"

    @pytest.mark.parametrize(("caller", "status"), [("colleague", 403), ("bob", 404), ("nobody", 403)])
    def test_others_change_nothing(self, image, caller, status):
        operation = {"op": "replace", "path": "/name", "value": "mine"}
        assert getattr(self.api, caller).patch(image, operation).status_code == status

    def test_who_sees_a_public_image_may_not_change_it(self):
        image = self.api.admin.create(visibility="public")
        assert self.api.bob.patch(image, {"op": "replace", "path": "/name", "value": "mine"}).status_code == 403

    def test_nothing_changed_is_no_update(self, image):
        before = self.api.alice.show(image)["updated_at"]
        self.api.events.clear()
        self.api.alice.patch(image, {"op": "replace", "path": "/colour", "value": "red"})
        assert (self.api.alice.show(image)["updated_at"], self.api.events) == (before, [])


class TestDelete(Deployed):
    def test_a_deleted_image_and_its_data_are_gone(self):
        image = self.api.alice.active()
        assert image in self.api.files()
        assert self.api.alice.delete(f"/v2/images/{image}").status_code == 204
        assert self.api.alice.get(f"/v2/images/{image}").status_code == 404
        assert image not in self.api.files()

    def test_a_queued_image_is_deleted(self):
        image = self.api.alice.create()
        assert self.api.alice.delete(f"/v2/images/{image}").status_code == 204
        assert self.api.alice.delete(f"/v2/images/{image}").status_code == 404

    def test_a_deactivated_image_is_deleted(self):
        image = self.api.alice.active()
        self.api.alice.post(f"/v2/images/{image}/actions/deactivate")
        assert self.api.alice.delete(f"/v2/images/{image}").status_code == 204
        assert image not in self.api.files()

    def test_a_protected_image_is_not_deleted(self):
        image = self.api.alice.active(protected=True)
        assert self.api.alice.delete(f"/v2/images/{image}").status_code == 403
        assert self.api.alice.download(image).content == b"the data"

    @pytest.mark.parametrize(("caller", "status"), [("colleague", 403), ("bob", 404), ("nobody", 404)])
    def test_others_delete_nothing(self, caller, status):
        image = self.api.alice.create()
        expected = 403 if caller == "nobody" else status
        assert getattr(self.api, caller).delete(f"/v2/images/{image}").status_code == expected

    def test_a_body_is_not_expected(self):
        image = self.api.alice.create()
        assert self.api.alice.request("DELETE", f"/v2/images/{image}", body="x").status_code == 400

    def test_data_that_is_gone_already_is_no_hindrance(self):
        image = self.api.alice.active()
        (self.api.directory / "images" / image).unlink()
        assert self.api.alice.delete(f"/v2/images/{image}").status_code == 204


class TestTags(Deployed):
    @pytest.mark.parametrize("tag", ["simple", "with space", "with/slash", "slash/", "ünïcode", "a" * 255])
    def test_a_tag_comes_and_goes(self, tag):
        image = self.api.alice.create()
        assert self.api.alice.put(f"/v2/images/{image}/tags/{tag}").status_code == 204
        assert self.api.alice.put(f"/v2/images/{image}/tags/{tag}").status_code == 204
        assert self.api.alice.show(image)["tags"] == [tag]
        assert self.api.alice.delete(f"/v2/images/{image}/tags/{tag}").status_code == 204
        assert self.api.alice.delete(f"/v2/images/{image}/tags/{tag}").status_code == 404

    def test_a_tag_that_is_too_long_is_refused(self):
        image = self.api.alice.create()
        assert self.api.alice.put(f"/v2/images/{image}/tags/{'a' * 256}").status_code == 400

    def test_a_tag_that_is_not_utf_8_is_refused(self):
        path = {"PATH_INFO": f"/v2/images/{self.api.alice.create()}/tags/\xff"}
        assert self.api.alice.request("PUT", "/", extras=path).status_code == 400

    def test_more_tags_than_the_quota_are_refused(self):
        image = self.api.alice.create(tags=[f"t{number}" for number in range(128)])
        assert self.api.alice.put(f"/v2/images/{image}/tags/one-more").status_code == 413

    @pytest.mark.parametrize(("caller", "status"), [("colleague", 403), ("bob", 404)])
    def test_others_tag_nothing(self, caller, status):
        image = self.api.alice.create(tags=["a"])
        assert getattr(self.api, caller).put(f"/v2/images/{image}/tags/x").status_code == status
        assert getattr(self.api, caller).delete(f"/v2/images/{image}/tags/a").status_code == status

    def test_a_body_is_not_expected(self):
        image = self.api.alice.create()
        assert self.api.alice.put(f"/v2/images/{image}/tags/x", {"a": 1}).status_code == 400


class TestActions(Deployed):
    def test_a_deactivated_image_is_downloaded_by_administrators_only(self):
        image = self.api.alice.active()
        assert self.api.alice.post(f"/v2/images/{image}/actions/deactivate").status_code == 204
        assert self.api.alice.show(image)["status"] == "deactivated"
        assert self.api.alice.download(image).status_code == 403
        assert self.api.admin.download(image).content == b"the data"

    def test_a_reactivated_image_is_downloaded_again(self):
        image = self.api.alice.active()
        self.api.alice.post(f"/v2/images/{image}/actions/deactivate")
        assert self.api.alice.post(f"/v2/images/{image}/actions/reactivate").status_code == 204
        assert self.api.alice.download(image).content == b"the data"

    def test_doing_it_twice_is_the_same_as_once(self):
        image = self.api.alice.active()
        for _ in range(2):
            assert self.api.alice.post(f"/v2/images/{image}/actions/deactivate").status_code == 204

    @pytest.mark.parametrize("action", ["deactivate", "reactivate"])
    def test_an_image_without_data_is_neither(self, action):
        image = self.api.alice.create()
        assert self.api.alice.post(f"/v2/images/{image}/actions/{action}").status_code == 403

    @pytest.mark.parametrize(("caller", "status"), [("colleague", 403), ("bob", 404)])
    def test_others_may_not(self, caller, status):
        image = self.api.alice.active()
        assert getattr(self.api, caller).post(f"/v2/images/{image}/actions/deactivate").status_code == status

    def test_a_body_is_not_expected(self):
        image = self.api.alice.active()
        assert self.api.alice.post(f"/v2/images/{image}/actions/deactivate", {"a": 1}).status_code == 400


class TestNotifications(Deployed):
    def test_what_happens_is_told(self):
        image = self.api.alice.active()
        self.api.alice.download(image)
        self.api.alice.patch(image, {"op": "add", "path": "/a", "value": "b"})
        self.api.alice.post(f"/v2/images/{image}/members", {"member": "beta"})
        self.api.alice.delete(f"/v2/images/{image}")
        assert [event for _, event, _ in self.api.events] == [
            "image.create",
            "image.prepare",
            "image.upload",
            "image.activate",
            "image.send",
            "image.update",
            "image.member.create",
            "image.delete",
        ]

    def test_no_notification_tells_where_the_data_is(self):
        self.api.events.clear()
        self.api.alice.active()
        assert "file://" not in repr(self.api.events)


class TestLoweredQuotas(Deployed):
    @pytest.fixture
    def image(self):
        image = self.api.alice.create(a="1", b="2", c="3", tags=["a", "b", "c"])
        quota = self.api.service.core.quota
        quota.properties, quota.tags = 1, 1
        yield image
        quota.properties, quota.tags = 128, 128

    @pytest.mark.parametrize(
        ("operation", "status"),
        [
            ({"op": "remove", "path": "/a"}, 200),
            ({"op": "replace", "path": "/a", "value": "x"}, 200),
            ({"op": "replace", "path": "/tags", "value": ["a", "b"]}, 200),
            ({"op": "add", "path": "/d", "value": "x"}, 413),
            ({"op": "replace", "path": "/tags", "value": ["a", "d"]}, 413),
        ],
    )
    def test_what_is_too_much_already_may_become_less(self, image, operation, status):
        assert self.api.alice.patch(image, operation).status_code == status


class BrokenChunks(io.RawIOBase):
    """A body as gunicorn hands it over when a client's chunks are wrong."""

    class Error(Exception):
        pass

    def read(self, size=-1):
        raise self.Error("Invalid chunk size")


class TestStrangeInput(Deployed):
    """Whatever a client sends, the answer is never that the server made a mistake."""

    @pytest.mark.parametrize(
        "body",
        [
            '{"name":"\\ud800"}',
            '{"name":"a\\u0000b"}',
            '{"\\ud800":"x"}',
            '{"a\\u0000":"x"}',
            '{"tags":["\\ud800"]}',
            '{"":"x"}',
            "[" * 100_000,
            '{"min_ram":NaN}',
            '{"min_ram":1e400}',
            '{"\\ud800":1}',
            '{"min_ram":' + "9" * 5000 + "}",
            '{"a":"' + "x" * 70_000 + '"}',
            '{"id":null}',
            '{"protected":null}',
        ],
        ids=str.__len__,
    )
    def test_bodies(self, body):
        response = self.api.alice.request("POST", "/v2/images", {"Content-Type": "application/json"}, body=body)
        assert response.status_code == 400

    def test_a_body_that_is_too_large_is_not_read(self):
        headers = {"Content-Type": "application/json", "Content-Length": str(5 << 20)}
        assert self.api.alice.request("POST", "/v2/images", headers).status_code == 413

    @pytest.mark.parametrize(
        ("path", "status"),
        [
            ("/v2/images?name=%00", 400),
            ("/v2/images?colour=%00", 400),
            ("/v2/images?tag=%00", 400),
            ("/v2/images?marker=%00", 400),
            ("/v2/images?name=%ff", 200),
            ("/v2/images?=", 200),
            ("/v2/images?&&", 200),
            ("/v2/images?limit=99999999999999999999", 400),
            ("/v2/images?limit=" + "9" * 5000, 400),
            ("/v2/images?size_min=" + "9" * 5000, 400),
            ("/v2/images?name=in:%0Aa", 200),
            ("/v2/images?created_at=gt:9999-12-31T23:59:59Z", 200),
            ("/v2/images?id=in:" + ",".join(["x"] * 3000), 200),
            ("/v2/images/%ff", 404),
            (f"/v2/images/{MISSING}/members/%00", 404),
        ],
        ids=lambda value: str(value)[:50],
    )
    def test_paths(self, path, status):
        assert self.api.alice.get(path).status_code == status

    @pytest.mark.parametrize(
        ("path", "value"), [("/a\0", "x"), ("/a", "\udc00"), ("/a", "\0"), ("/\ud800", 1), ("/\ud800", "x")]
    )
    def test_changes(self, path, value):
        image = self.api.alice.create()
        assert self.api.alice.patch(image, {"op": "add", "path": path, "value": value}).status_code == 400

    def test_what_is_quoted_in_a_message_is_cut(self):
        response = self.api.alice.post("/v2/images", {"name": "x" * 1_000_000})
        assert response.status_code == 400
        assert len(response.content) < 5000

    @pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
    @pytest.mark.parametrize("method", ["FOO", "PROPFIND", "HEAD"])
    def test_methods_nobody_knows_are_told_with_those_that_are(self, method):
        response = self.api.alice.request(method, "/v2/info/stores")
        assert (response.status_code, response.headers["Allow"]) == (405, "GET, OPTIONS")

    def test_a_body_whose_chunks_are_none_is_the_clients_mistake(self):
        image = self.api.alice.create(name="x")
        chunked = {"Transfer-Encoding": "chunked"}
        broken = {"wsgi.input": BrokenChunks()}
        paths = {"POST": "/v2/images", "PUT": f"/v2/images/{image}/file"}
        kinds = {"POST": "application/json", "PUT": "application/octet-stream"}
        responses = [
            self.api.alice.request(method, path, chunked | {"Content-Type": kinds[method]}, extras=broken).status_code
            for method, path in paths.items()
        ]
        assert responses == [400, 400]
