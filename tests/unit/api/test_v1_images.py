# SPDX-License-Identifier: Apache-2.0
"""Images in v1: create, show, change and delete, without and with data."""

from __future__ import annotations

import hashlib
import uuid

import pytest
from deployment import Deployed
from v1_client import create, created, meta_of, shown, update

DATA = bytes(range(256)) * 8
MD5 = hashlib.md5(DATA).hexdigest()
FORMATS = {"disk_format": "raw", "container_format": "bare"}
DOCUMENT = {
    "id",
    "name",
    "size",
    "virtual_size",
    "disk_format",
    "container_format",
    "checksum",
    "min_disk",
    "min_ram",
    "is_public",
    "owner",
    "protected",
    "status",
    "created_at",
    "updated_at",
    "deleted_at",
    "deleted",
    "properties",
}


class TestCreate(Deployed):
    def test_an_image_without_data_is_reserved(self):
        response = create(self.api.alice, name="reserved", size=5, **FORMATS)
        image = response.json["image"]
        assert (response.status_code, image["status"], image["size"]) == (201, "queued", 5)
        assert set(image) == DOCUMENT
        assert response.headers["Location"] == f"/v1/images/{image['id']}"
        assert "ETag" not in response.headers

    def test_an_image_with_data_is_active(self):
        response = create(self.api.alice, DATA, name="with data", size=len(DATA), checksum=MD5, **FORMATS)
        image = response.json["image"]
        assert (response.status_code, image["status"], image["size"], image["checksum"]) == (
            201,
            "active",
            len(DATA),
            MD5,
        )
        assert response.headers["ETag"] == MD5

    def test_an_image_that_is_said_to_be_empty_is_active_at_once(self):
        image = created(self.api.alice, size=0)
        assert shown(self.api.alice, image)["status"] == "active"
        response = self.api.alice.get(f"/v1/images/{image}")
        assert (response.status_code, response.content, response.headers["Content-Length"]) == (200, b"", "0")

    @pytest.mark.parametrize("store", ["fast", "mem", "spare"])
    def test_the_client_chooses_the_store(self, store):
        image = created(self.api.alice, DATA, store=store)
        assert self.api.alice.show(image)["stores"] == store

    def test_the_client_chooses_the_id_once(self):
        image = str(uuid.uuid4())
        assert created(self.api.alice, id=image) == image
        assert create(self.api.alice, id=image, **FORMATS).status_code == 409

    @pytest.mark.parametrize(
        ("fields", "status"),
        [
            ({"id": "one"}, 400),
            ({"disk_format": "floppy"}, 400),
            ({"container_format": "box"}, 400),
            ({"disk_format": "ami", "container_format": "bare"}, 400),
            ({"disk_format": "raw", "container_format": "aki"}, 400),
            ({"size": "-1"}, 400),
            ({"size": "many"}, 400),
            ({"min_ram": "1.5"}, 400),
            ({"size": 5000 * "9"}, 400),
            ({"min_disk": ""}, 400),
            ({"virtual_size": "some"}, 400),
            ({"store": "nowhere"}, 400),
            ({"colour": "red"}, 400),
            ({"name": "n" * 256}, 400),
            ({"size": 2**50}, 413),
            ({"is_public": "true"}, 403),
        ],
    )
    def test_what_is_wrong_is_refused_and_nothing_is_made(self, fields, status):
        before = self.api.admin.get("/v1/images?is_public=none&limit=1000").json["images"]
        response = create(self.api.alice, **fields)
        assert response.status_code == status, response.text
        assert self.api.admin.get("/v1/images?is_public=none&limit=1000").json["images"] == before

    def test_a_header_that_is_no_field_is_named(self):
        assert "Bad header: x-image-meta-colour" in create(self.api.alice, colour="red").json["error"]["message"]

    @pytest.mark.parametrize("given", ["disk_format", "container_format"])
    @pytest.mark.parametrize("kind", ["ami", "ari", "aki"])
    def test_of_amazon_formats_one_is_enough(self, given, kind):
        image = create(self.api.alice, **{given: kind}).json["image"]
        assert (image["disk_format"], image["container_format"]) == (kind, kind)

    def test_only_administrators_name_the_owner(self):
        assert shown(self.api.admin, created(self.api.alice, owner="beta"))["owner"] == "alpha"
        assert shown(self.api.admin, created(self.api.admin, owner="beta"))["owner"] == "beta"

    def test_administrators_publish(self):
        image = created(self.api.admin, is_public="True")
        assert shown(self.api.bob, image)["is_public"] == "True"
        assert self.api.bob.show(image)["visibility"] == "public"

    def test_requests_without_a_token_make_nothing(self):
        assert create(self.api.nobody, **FORMATS).status_code == 403

    @pytest.mark.parametrize("name", ["visibility", "tags", "status", "os_glance_import_task", "location"])
    def test_a_property_cannot_have_the_name_of_something_else(self, name):
        assert create(self.api.alice, properties={name: "public"}, **FORMATS).status_code == 403


class TestProperties(Deployed):
    options = {"image_property_quota": 3}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("colour", "red"),
            ("empty", ""),
            ("quoted", 'a "b" c'),
            ("percent", "100% sure"),
            ("path", "/a:b=c+d"),
            ("umlaut", "Größe äöü €"),
            ("spaced name", "x"),
            ("größe", "y"),
            ("with.dot", "z"),
            ("two\nlines", "one\ntwo"),
        ],
    )
    def test_values_go_in_and_out_as_they_are(self, name, value):
        image = created(self.api.alice, properties={name: value})
        assert self.api.alice.get("/v1/images/detail").json["images"][0]["properties"] == {name: value}
        assert self.api.alice.show(image)[name] == value

    def test_headers_are_utf8(self):
        image = created(self.api.alice, properties={"size_name": "Größe"}, name="Prüfung €")
        found = shown(self.api.alice, image)
        assert found["property-size_name"].encode("latin-1").decode() == "Größe"
        assert found["name"].encode("latin-1").decode() == "Prüfung €"

    def test_raw_utf8_is_understood_too(self):
        raw = "Größe".encode().decode("latin-1")
        response = create(self.api.alice, more={"x-image-meta-name": raw, "x-image-meta-property-a": raw}, **FORMATS)
        assert (response.json["image"]["name"], response.json["image"]["properties"]) == ("Größe", {"a": "Größe"})

    def test_a_value_cannot_end_its_header(self):
        image = created(self.api.alice, properties={"a": "x\r\nx-evil: 1"})
        response = self.api.alice.request("HEAD", f"/v1/images/{image}")
        assert response.headers["x-image-meta-property-a"] == "x%0D%0Ax-evil: 1"
        assert "x-evil" not in response.headers

    def test_names_are_lower_case_and_dashes_are_underscores(self):
        response = create(self.api.alice, more={"X-Image-Meta-Property-Os-Type": "Linux"}, **FORMATS)
        assert response.json["image"]["properties"] == {"os_type": "Linux"}

    def test_a_property_that_may_have_no_value_has_none_when_it_is_empty(self):
        response = create(self.api.alice, properties={"kernel_id": ""}, **FORMATS)
        assert response.json["image"]["properties"] == {"kernel_id": None}
        assert "property-kernel_id" not in shown(self.api.alice, response.json["image"]["id"])

    def test_there_is_a_limit(self):
        assert create(self.api.alice, properties=dict.fromkeys("abcd", "x"), **FORMATS).status_code == 413


class TestShow(Deployed):
    def test_the_metadata_is_in_the_headers(self):
        image = created(self.api.alice, DATA, {"colour": "red"}, name="one", min_ram=3, protected="yes")
        response = self.api.alice.request("HEAD", f"/v1/images/{image}")
        found = meta_of(response)
        times = {found.pop("created_at"), found.pop("updated_at")}
        assert all(time.endswith("Z") for time in times)
        assert found == {
            "id": image,
            "name": "one",
            "size": str(len(DATA)),
            "virtual_size": str(len(DATA)),
            "disk_format": "raw",
            "container_format": "bare",
            "checksum": MD5,
            "min_disk": "0",
            "min_ram": "3",
            "is_public": "False",
            "owner": "alpha",
            "protected": "True",
            "status": "active",
            "deleted": "False",
            "property-colour": "red",
        }
        assert response.headers["ETag"] == MD5
        assert response.content == b""

    def test_the_data_comes_with_the_metadata(self):
        image = created(self.api.alice, DATA, name="one")
        response = self.api.alice.get(f"/v1/images/{image}")
        assert response.content == DATA
        assert meta_of(response) == shown(self.api.alice, image)
        assert response.headers["Content-Type"] == "application/octet-stream"
        assert response.headers["Content-Length"] == str(len(DATA))
        assert response.headers["ETag"] == MD5

    def test_where_the_data_is_is_not_told(self):
        image = created(self.api.admin, DATA)
        response = self.api.admin.get(f"/v1/images/{image}")
        assert "file://" not in str(response.headers)
        assert "file://" not in self.api.admin.get("/v1/images/detail?is_public=none").text

    def test_data_that_is_not_there_yet_is_not_found(self):
        image = created(self.api.alice)
        response = self.api.alice.get(f"/v1/images/{image}")
        assert (response.status_code, response.json["error"]["message"]) == (404, f"Image {image} is not active")

    def test_data_that_is_gone_from_the_store_is_not_found(self):
        image = created(self.api.alice, DATA)
        (self.api.directory / "images" / image).unlink()
        assert self.api.alice.get(f"/v1/images/{image}").status_code == 404

    def test_a_deactivated_image_is_administrators_only(self):
        image = created(self.api.alice, DATA)
        self.api.alice.post(f"/v2/images/{image}/actions/deactivate")
        assert self.api.alice.get(f"/v1/images/{image}").status_code == 403
        assert self.api.admin.get(f"/v1/images/{image}").content == DATA
        assert shown(self.api.alice, image)["status"] == "deactivated"

    @pytest.mark.parametrize("method", ["HEAD", "GET", "PUT", "DELETE"])
    def test_what_the_caller_may_not_see_is_not_found(self, method):
        image = created(self.api.alice, DATA)
        assert self.api.bob.request(method, f"/v1/images/{image}").status_code == 404
        assert self.api.alice.request(method, f"/v1/images/{uuid.uuid4()}").status_code == 404
        assert self.api.alice.request(method, "/v1/images/one").status_code == 404

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("HEAD", "/v1/images/detail", "GET"),
            ("POST", "/v1/images/detail", "GET"),
            ("PUT", "/v1/images", "GET, POST"),
            ("DELETE", "/v1/images", "GET, POST"),
            ("POST", "/v1/images/x", "DELETE, GET, HEAD, PUT"),
            ("GET", "/v1/images/x/members/y", "DELETE, PUT"),
            ("POST", "/v1/images/x/members", "GET, PUT"),
            ("PUT", "/v1/shared-images/x", "GET"),
        ],
    )
    def test_other_methods_are_not_allowed(self, method, path, allowed):
        response = self.api.alice.request(method, path)
        assert response.status_code == 405
        assert set(response.headers["Allow"].split(", ")) - {"OPTIONS"} == set(allowed.split(", "))


class TestUpdate(Deployed):
    def test_what_is_named_changes_and_nothing_else(self):
        image = created(self.api.alice, DATA, {"a": "1"}, name="old", min_ram=1)
        before = shown(self.api.alice, image)
        response = update(self.api.alice, image, name="new", min_disk=7, properties={"b": "2"})
        assert response.status_code == 200, response.text
        after = shown(self.api.alice, image)
        changed = {"name": "new", "min_disk": "7", "property-b": "2", "updated_at": after["updated_at"]}
        assert after == before | changed
        assert response.json["image"]["properties"] == {"a": "1", "b": "2"}
        assert response.headers["ETag"] == MD5

    @pytest.mark.parametrize(
        "more", [{"x-glance-registry-purge-props": "true"}, {"x-glance-registry-purge-props": "1"}]
    )
    def test_other_properties_are_purged_when_asked_for(self, more):
        image = created(self.api.alice, properties={"a": "1", "b": "2"})
        assert update(self.api.alice, image, properties={"b": "3"}, more=more).status_code == 200
        assert self.api.alice.get("/v1/images/detail").json["images"][0]["properties"] == {"b": "3"}

    def test_they_are_purged_when_nothing_is_said(self):
        image = created(self.api.alice, properties={"a": "1"})
        self.api.alice.request("PUT", f"/v1/images/{image}", {"x-image-meta-property-b": "2"})
        assert self.api.alice.get("/v1/images/detail").json["images"][0]["properties"] == {"b": "2"}

    def test_data_purges_nothing(self):
        image = created(self.api.alice, properties={"a": "1"})
        purge = {"x-glance-registry-purge-props": "true"}
        assert update(self.api.alice, image, DATA, more=purge).json["image"]["properties"] == {"a": "1"}

    def test_what_the_service_notes_in_an_image_is_not_purged(self):
        image = created(self.api.alice)
        self.api.repository.images.set_properties(image, {"os_glance_import_task": "x"})
        assert update(self.api.alice, image, more={"x-glance-registry-purge-props": "true"}).status_code == 200
        assert self.api.repository.images.get(image).properties == {"os_glance_import_task": "x"}

    @pytest.mark.parametrize(
        ("fields", "status"),
        [
            ({"status": "killed"}, 403),
            ({"id": str(uuid.uuid4())}, 403),
            ({"size": 3}, 403),
            ({"checksum": "0" * 32}, 403),
            ({"status": "active", "size": len(DATA), "checksum": MD5, "disk_format": "raw"}, 200),
            ({"disk_format": "qcow2"}, 403),
            ({"container_format": "aki"}, 400),
            ({"min_disk": -1}, 400),
            ({"location": "http://example.org/x"}, 400),
            ({"is_public": "true"}, 403),
            ({"is_public": "false"}, 200),
            ({"owner": "beta"}, 200),
            ({"deleted": "True", "uri": "x", "created_at": "now"}, 200),
        ],
    )
    def test_an_active_image_keeps_what_belongs_to_its_data(self, fields, status):
        image = created(self.api.alice, DATA, name="active")
        before = shown(self.api.alice, image)
        response = update(self.api.alice, image, **fields)
        assert response.status_code == status, response.text
        assert shown(self.api.alice, image) == before

    def test_a_public_image_can_be_shared_again(self):
        image = created(self.api.admin, is_public="True")
        update(self.api.admin, image, is_public="False")
        assert self.api.admin.show(image)["visibility"] == "shared"

    def test_not_to_be_public_does_not_share_a_private_image(self):
        image = self.api.alice.create(visibility="private")
        assert update(self.api.alice, image, is_public="False").status_code == 200
        assert self.api.alice.show(image)["visibility"] == "private"

    def test_others_change_nothing(self):
        image = created(self.api.admin, DATA, is_public="True")
        assert update(self.api.bob, image, name="mine").status_code == 403
        assert update(self.api.bob, image).status_code == 403
        assert update(self.api.colleague, created(self.api.alice), name="mine").status_code == 403

    def test_a_deleted_image_is_not_changed(self):
        image = created(self.api.alice)
        self.api.alice.delete(f"/v1/images/{image}")
        assert update(self.api.admin, image, name="back").status_code == 403
        assert update(self.api.alice, image, name="back").status_code == 404


class TestUpload(Deployed):
    def test_a_reserved_image_gets_its_data(self):
        image = created(self.api.alice, size=len(DATA), checksum=MD5)
        response = update(self.api.alice, image, DATA)
        assert (response.status_code, response.json["image"]["status"]) == (200, "active")
        assert self.api.alice.get(f"/v1/images/{image}").content == DATA

    def test_formats_may_come_with_the_data(self):
        image = create(self.api.alice, name="formless").json["image"]["id"]
        response = update(self.api.alice, image, DATA, disk_format="raw", container_format="bare")
        assert response.json["image"]["status"] == "active"

    def test_a_body_in_chunks_may_have_no_bytes(self):
        sent = {"x-image-meta-size": "0", "Transfer-Encoding": "chunked"}
        response = create(self.api.alice, b"", more=sent, **FORMATS)
        assert (response.status_code, response.json["image"]["status"]) == (201, "active")
        assert response.json["image"]["checksum"] == hashlib.md5(b"").hexdigest()

    @pytest.mark.parametrize(
        "checksum", ["x", "0" * 31, "0" * 33, "g" * 32, "0" * 30 + "%0D%0A", "%C4%80" * 32, "\xb2" * 32]
    )
    def test_a_checksum_is_an_md5_in_hexadecimal_digits(self, checksum):
        """It becomes the ETag of answers, which must not be the client's to write."""
        assert create(self.api.alice, checksum=checksum, **FORMATS).status_code == 400
        assert create(self.api.alice, DATA, checksum=checksum, **FORMATS).status_code == 400
        image = created(self.api.alice)
        assert update(self.api.alice, image, checksum=checksum).status_code == 400
        assert self.api.alice.request("HEAD", f"/v1/images/{image}").status_code == 200

    def test_a_checksum_in_capital_letters_is_the_same(self):
        image = create(self.api.alice, DATA, checksum=MD5.upper(), **FORMATS).json["image"]
        assert (image["status"], image["checksum"]) == ("active", MD5)

    @pytest.mark.parametrize(
        ("reserved", "uploaded"),
        [
            ({"size": 5}, {}),
            ({"checksum": "0" * 32}, {}),
            ({}, {"size": 5}),
            ({}, {"checksum": "0" * 32}),
        ],
    )
    def test_data_that_is_not_what_was_said_kills_the_image_and_is_removed(self, reserved, uploaded):
        image = created(self.api.alice, **reserved)
        assert update(self.api.alice, image, DATA, **uploaded).status_code == 400
        assert shown(self.api.alice, image)["status"] == "killed"
        assert image not in self.api.files()

    @pytest.mark.parametrize("fields", [{"size": 5}, {"checksum": "0" * 32}])
    def test_so_it_does_when_it_comes_with_the_image(self, fields):
        image = str(uuid.uuid4())
        assert create(self.api.alice, DATA, id=image, **FORMATS, **fields).status_code == 400
        assert shown(self.api.alice, image)["status"] == "killed"
        assert image not in self.api.files()

    def test_an_upper_case_checksum_is_the_same(self):
        assert created(self.api.alice, DATA, checksum=MD5.upper())

    def test_data_needs_formats(self):
        image = str(uuid.uuid4())
        assert create(self.api.alice, DATA, id=image, disk_format="raw").status_code == 400
        assert shown(self.api.alice, image)["status"] == "killed"

    def test_data_that_is_of_another_format_kills_the_image(self):
        image = created(self.api.alice, disk_format="qcow2")
        assert update(self.api.alice, image, DATA).status_code == 415
        assert shown(self.api.alice, image)["status"] == "killed"

    def test_a_body_says_that_it_is_data(self):
        image = created(self.api.alice)
        response = self.api.alice.request("PUT", f"/v1/images/{image}", {"Content-Type": "text/plain"}, body=DATA)
        assert response.status_code == 400
        assert shown(self.api.alice, image)["status"] == "queued"

    def test_data_is_uploaded_once_and_a_second_time_changes_nothing(self):
        image = created(self.api.alice, DATA, name="first")
        assert update(self.api.alice, image, b"other", name="second").status_code == 409
        assert self.api.alice.get(f"/v1/images/{image}").content == DATA
        assert shown(self.api.alice, image)["name"] == "first"

    def test_what_the_store_has_already_is_left_and_the_image_stays_queued(self):
        image = created(self.api.alice)
        self.api.registry["fast"].add(image, b"somebody else's")
        assert update(self.api.alice, image, DATA).status_code == 409
        assert shown(self.api.alice, image)["status"] == "queued"
        assert (self.api.directory / "images" / image).read_bytes() == b"somebody else's"

    def test_others_upload_nothing_and_kill_nothing(self):
        image = created(self.api.admin, is_public="True")
        assert update(self.api.bob, image, DATA, checksum="0" * 32).status_code == 403
        assert update(self.api.bob, image, DATA).status_code == 403
        assert shown(self.api.admin, image)["status"] == "queued"

    def test_v2_takes_the_reservation_seriously_too(self):
        image = created(self.api.alice, size=5)
        assert self.api.alice.upload(image, DATA).status_code == 400
        assert self.api.alice.show(image)["status"] == "queued"


class TestTooMuch(Deployed):
    options = {"image_size_cap": 1000}  # noqa: RUF012

    def test_an_image_that_is_too_large_is_killed(self):
        image = str(uuid.uuid4())
        assert create(self.api.alice, DATA, id=image, **FORMATS).status_code == 413
        assert shown(self.api.alice, image)["status"] == "killed"

    def test_it_is_not_even_reserved_with_its_size(self):
        assert create(self.api.alice, size=1001, **FORMATS).status_code == 413


class TestDelete(Deployed):
    def test_the_image_and_its_data_are_gone(self):
        image = created(self.api.alice, DATA)
        response = self.api.alice.delete(f"/v1/images/{image}")
        assert (response.status_code, response.content) == (200, b"")
        assert self.api.alice.request("HEAD", f"/v1/images/{image}").status_code == 404
        assert self.api.alice.delete(f"/v1/images/{image}").status_code == 404
        assert self.api.admin.get(f"/v1/images/{image}").status_code == 404
        assert image not in self.api.files()

    def test_administrators_still_see_that_there_was_one(self):
        image = created(self.api.alice, DATA)
        self.api.alice.delete(f"/v1/images/{image}")
        found = shown(self.api.admin, image)
        assert (found["status"], found["deleted"], "deleted_at" in found) == ("deleted", "True", True)
        assert self.api.admin.delete(f"/v1/images/{image}").status_code == 404

    def test_a_protected_image_is_not_deleted(self):
        image = created(self.api.alice, DATA, protected="True")
        assert self.api.alice.delete(f"/v1/images/{image}").status_code == 403
        update(self.api.alice, image, protected="False")
        assert self.api.alice.delete(f"/v1/images/{image}").status_code == 200

    def test_a_killed_image_is_deleted(self):
        image = created(self.api.alice, checksum="0" * 32)
        update(self.api.alice, image, DATA)
        assert self.api.alice.delete(f"/v1/images/{image}").status_code == 200

    def test_others_delete_nothing(self):
        image = created(self.api.admin, DATA, is_public="True")
        assert self.api.bob.delete(f"/v1/images/{image}").status_code == 403


class TestVersions(Deployed):
    @pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1.0/images", "/v1.1/images", "/v1/images"])
    def test_all_of_them_are_v1(self, path):
        image = created(self.api.alice)
        assert image in [found["id"] for found in self.api.alice.get(path).json["images"]]

    def test_it_can_be_asked_for_in_a_header(self):
        response = self.api.alice.get("/images", Accept="application/vnd.openstack.images-v1")
        assert set(response.json) == {"images"}

    @pytest.mark.parametrize(("path", "status"), [("/", 300), ("/versions", 200)])
    def test_it_is_listed_as_deprecated(self, path, status):
        response = self.api.nobody.get(path)
        assert response.status_code == status
        found = {item["id"]: (item["status"], item["links"][0]["href"]) for item in response.json["versions"][-2:]}
        url = "http://falconframework.org/v1/"
        assert found == {"v1.1": ("DEPRECATED", url), "v1.0": ("DEPRECATED", url)}
