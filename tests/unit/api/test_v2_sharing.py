# SPDX-License-Identifier: Apache-2.0
"""Members and locations in v2."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import uuid
from urllib.parse import quote

import pytest
from deployment import Deployed, add_location

from storelib.api.db.records import NewLocation
from storelib.capabilities import Capability
from storelib.exceptions import InUseByStore, RemoteServiceUnavailable

DATA = b"some data of an image"


class TestMembers(Deployed):
    @pytest.fixture
    def image(self):
        return self.api.alice.active(DATA)

    def test_a_member_is_added_as_pending(self, image):
        response = self.api.alice.post(f"/v2/images/{image}/members", {"member": "beta"})
        assert response.status_code == 200
        member = response.json
        assert (member["image_id"], member["member_id"], member["status"]) == (image, "beta", "pending")
        assert member["schema"] == "/v2/schemas/member"
        assert self.api.alice.get(f"/v2/images/{image}/members/beta").json == member

    def test_members_are_listed(self, image):
        for member in ("beta", "gamma"):
            self.api.alice.post(f"/v2/images/{image}/members", {"member": member})
        listed = self.api.alice.get(f"/v2/images/{image}/members").json
        assert [member["member_id"] for member in listed["members"]] == ["beta", "gamma"]
        assert listed["schema"] == "/v2/schemas/members"

    def test_members_are_listed_in_pages(self, image):
        for member in ("a/b", "b", "c d"):
            self.api.alice.post(f"/v2/images/{image}/members", {"member": member})
        path, seen = f"/v2/images/{image}/members?limit=1", []
        while path:
            page = self.api.alice.get(path).json
            seen.append([member["member_id"] for member in page["members"]])
            path = page.get("next")
        assert seen == [["a/b"], ["b"], ["c d"]]
        # Behind one who may not be told of others.
        self.api.alice.post(f"/v2/images/{image}/members", {"member": "beta"})
        listed = self.api.bob.get(f"/v2/images/{image}/members?limit=1").json
        assert ([member["member_id"] for member in listed["members"]], "next" in listed) == (["beta"], False)
        assert self.api.bob.get(f"/v2/images/{image}/members?marker=b").status_code == 400

    @pytest.mark.parametrize("query", ["limit=x", "limit=-1", "marker=nobody"])
    def test_lists_of_members_that_cannot_be_are_refused(self, image, query):
        assert self.api.alice.get(f"/v2/images/{image}/members?{query}").status_code == 400

    def test_a_member_sees_himself_only(self, image):
        for member in ("beta", "gamma"):
            self.api.alice.post(f"/v2/images/{image}/members", {"member": member})
        listed = self.api.bob.get(f"/v2/images/{image}/members").json
        assert [member["member_id"] for member in listed["members"]] == ["beta"]
        assert self.api.bob.get(f"/v2/images/{image}/members/gamma").status_code == 404

    @pytest.mark.parametrize("status", ["accepted", "rejected", "pending"])
    def test_the_member_decides(self, image, status):
        self.api.alice.post(f"/v2/images/{image}/members", {"member": "beta"})
        response = self.api.bob.put(f"/v2/images/{image}/members/beta", {"status": status})
        assert (response.status_code, response.json["status"]) == (200, status)

    def test_the_owner_does_not_decide(self, image):
        self.api.alice.post(f"/v2/images/{image}/members", {"member": "beta"})
        assert self.api.alice.put(f"/v2/images/{image}/members/beta", {"status": "accepted"}).status_code == 403

    def test_an_accepted_image_is_in_the_members_list(self, image):
        self.api.alice.post(f"/v2/images/{image}/members", {"member": "beta"})
        path = f"/v2/images?id={image}"
        assert self.api.bob.get(path).json["images"] == []
        assert len(self.api.bob.get(f"{path}&member_status=pending").json["images"]) == 1
        self.api.bob.put(f"/v2/images/{image}/members/beta", {"status": "accepted"})
        assert len(self.api.bob.get(path).json["images"]) == 1

    @pytest.mark.parametrize("member", ["domain/project", "ünïcode", "with space"])
    def test_whoever_was_added_can_be_removed(self, image, member):
        assert self.api.alice.post(f"/v2/images/{image}/members", {"member": member}).status_code == 200
        path = f"/v2/images/{image}/members/{quote(member, safe='')}"
        assert self.api.alice.get(path).json["member_id"] == member
        assert self.api.alice.delete(path).status_code == 204

    def test_a_removed_member_sees_nothing_any_more(self, image):
        self.api.alice.post(f"/v2/images/{image}/members", {"member": "beta"})
        assert self.api.bob.get(f"/v2/images/{image}").status_code == 200
        assert self.api.alice.delete(f"/v2/images/{image}/members/beta").status_code == 204
        assert self.api.bob.get(f"/v2/images/{image}").status_code == 404
        assert self.api.alice.delete(f"/v2/images/{image}/members/beta").status_code == 404

    @pytest.mark.parametrize(
        ("method", "path", "body", "status"),
        [
            ("POST", "", {}, 400),
            ("POST", "", {"member": ""}, 400),
            ("POST", "", {"member": 7}, 400),
            ("POST", "", {"member": "x" * 256}, 400),
            ("POST", "", ["beta"], 400),
            ("PUT", "/beta", {}, 400),
            ("PUT", "/beta", {"status": "perhaps"}, 400),
            ("PUT", "/nobody", {"status": "accepted"}, 404),
            ("GET", "/nobody", None, 404),
            ("DELETE", "/nobody", None, 404),
        ],
    )
    def test_wrong_requests_are_refused(self, image, method, path, body, status):
        self.api.alice.post(f"/v2/images/{image}/members", {"member": "beta"})
        more = {} if body is None else {"json": body}
        caller = self.api.admin if method == "PUT" else self.api.alice
        assert caller.request(method, f"/v2/images/{image}/members{path}", **more).status_code == status

    def test_a_member_is_added_once(self, image):
        self.api.alice.post(f"/v2/images/{image}/members", {"member": "beta"})
        assert self.api.alice.post(f"/v2/images/{image}/members", {"member": "beta"}).status_code == 409

    @pytest.mark.parametrize("visibility", ["private", "community"])
    def test_only_shared_images_have_members(self, visibility):
        image = self.api.alice.create(visibility=visibility)
        assert self.api.alice.post(f"/v2/images/{image}/members", {"member": "beta"}).status_code == 403
        assert self.api.alice.get(f"/v2/images/{image}/members").status_code == 403
        assert self.api.alice.get(f"/v2/images/{image}/members/beta").status_code == 404

    @pytest.mark.parametrize(("caller", "status"), [("bob", 404), ("colleague", 403)])
    def test_others_add_nobody(self, image, caller, status):
        response = getattr(self.api, caller).post(f"/v2/images/{image}/members", {"member": "beta"})
        assert response.status_code == status

    def test_a_member_adds_nobody(self, image):
        self.api.alice.post(f"/v2/images/{image}/members", {"member": "beta"})
        assert self.api.bob.post(f"/v2/images/{image}/members", {"member": "gamma"}).status_code == 403
        assert self.api.bob.delete(f"/v2/images/{image}/members/beta").status_code == 403


class TestAccessLists(Deployed):
    """In stores that have them, those may read the data who may see the image."""

    @pytest.fixture
    def lists(self, monkeypatch):
        set_to = []
        store = self.api.registry["fast"]
        monkeypatch.setattr(store, "capabilities", store.capabilities | Capability.ACLS)
        monkeypatch.setattr(store, "set_acls", lambda uri, public, read, write, context: set_to.append((public, read)))
        return set_to

    def test_they_follow_members_and_visibility(self, lists):
        image = self.api.alice.active(DATA)
        self.api.alice.post(f"/v2/images/{image}/members", {"member": "beta"})
        self.api.alice.delete(f"/v2/images/{image}/members/beta")
        self.api.admin.patch(image, {"op": "replace", "path": "/visibility", "value": "public"})
        assert lists == [(False, []), (False, ["beta"]), (False, []), (True, [])]

    def test_they_are_not_set_for_changes_of_other_things(self, lists):
        image = self.api.alice.active(DATA)
        lists.clear()
        self.api.alice.patch(image, {"op": "replace", "path": "/name", "value": "x"})
        assert lists == []

    def test_an_image_in_a_store_that_is_no_longer_there_is_changed_and_shared(self):
        image = self.api.alice.active(DATA)
        gone = NewLocation("rbd://fsid/pool/image/snap", {"store": "gone"})
        add_location(self.api.repository, image, gone)
        visibility = {"op": "replace", "path": "/visibility", "value": "community"}
        assert self.api.alice.post(f"/v2/images/{image}/members", {"member": "beta"}).status_code == 200
        assert self.api.alice.patch(image, visibility).status_code == 200
        assert self.api.bob.download(image).content == DATA
        assert self.api.alice.delete(f"/v2/images/{image}").status_code == 204


class TestMemberQuota(Deployed):
    options = {"image_member_quota": 1}  # noqa: RUF012

    def test_more_members_than_the_quota_are_refused(self):
        image = self.api.alice.create()
        assert self.api.alice.post(f"/v2/images/{image}/members", {"member": "beta"}).status_code == 200
        assert self.api.alice.post(f"/v2/images/{image}/members", {"member": "gamma"}).status_code == 413


class WithPlaces(Deployed):
    def data_in(self, store: str, data: bytes = DATA) -> str:
        """The URI of data that some other program put into a store."""
        return self.api.registry[store].add(str(uuid.uuid4()), data).uri

    def add(self, image, url, caller=None, **more):
        value = {"url": url, "metadata": {}, **more}
        return (caller or self.api.admin).patch(image, {"op": "add", "path": "/locations/-", "value": value})


class TestLocationsByPatch(WithPlaces):
    options = {"show_multiple_locations": "true", "image_location_quota": 3}  # noqa: RUF012

    def test_only_services_name_data_in_stores_that_are_not_public(self):
        """It might be another project's; the other two ways of naming data ask the same."""
        image, url = self.api.alice.create(), self.data_in("mem")
        for operation in (
            {"op": "add", "path": "/locations/-", "value": {"url": url, "metadata": {}}},
            {"op": "replace", "path": "/locations", "value": [{"url": url, "metadata": {}}]},
        ):
            assert self.api.alice.patch(image, operation).status_code == 403
        assert self.api.alice.show(image)["status"] == "queued"

    def test_a_location_is_not_added_again_in_another_spelling(self):
        """One of the two could be removed then, and the data of both with it."""
        image, url = self.api.nova.create(), self.data_in("mem")
        assert self.add(image, url).status_code == 200
        response = self.add(image, f"{url[:-1]}%{ord(url[-1]):02x}")
        assert response.status_code == 400
        assert "has this location already" in response.text

    def test_a_queued_image_gets_active_with_its_first_location(self):
        image, url = self.api.alice.create(), self.data_in("mem")
        response = self.add(image, url)
        assert response.status_code == 200, response.text
        assert (response.json["status"], response.json["size"]) == ("active", len(DATA))
        assert response.json["locations"] == [{"url": url, "metadata": {"store": "mem"}}]
        assert self.api.alice.download(image).content == DATA

    def test_what_the_client_says_of_the_data_is_recorded(self):
        image = self.api.alice.create()
        said = {
            "checksum": hashlib.md5(DATA).hexdigest(),
            "os_hash_algo": "sha512",
            "os_hash_value": hashlib.sha512(DATA).hexdigest(),
        }
        shown = self.add(image, self.data_in("mem"), validation_data=said).json
        assert {name: shown[name] for name in said} == said

    def test_an_active_image_says_what_its_data_is_already(self):
        image = self.api.alice.active(DATA)
        other = {"checksum": "0" * 32, "os_hash_algo": "sha512", "os_hash_value": "0" * 128}
        same = {name: self.api.alice.show(image)[name] for name in other}
        assert self.add(image, self.data_in("mem"), validation_data=other).status_code == 409
        assert self.add(image, self.data_in("mem"), validation_data=same).status_code == 200

    @pytest.mark.parametrize(
        "said",
        [
            {"checksum": "0" * 32},
            {"os_hash_algo": "sha512"},
            {"os_hash_algo": "sha256", "os_hash_value": "0" * 64},
            {"os_hash_algo": "sha512", "os_hash_value": "short"},
            {"os_hash_algo": "sha512", "os_hash_value": "g" * 128},
            {"checksum": "0" * 31, "os_hash_algo": "sha512", "os_hash_value": "0" * 128},
            {"os_hash_algo": "sha512", "os_hash_value": "0" * 128, "other": "x"},
        ],
    )
    def test_digests_that_cannot_be_are_refused(self, said):
        image = self.api.alice.create()
        assert self.add(image, self.data_in("mem"), validation_data=said).status_code == 400
        assert self.api.alice.show(image)["status"] == "queued"

    @pytest.mark.parametrize(
        "url",
        [
            "file:///etc/passwd",
            "filesystem:///etc/passwd",
            "File:///etc/passwd",
            "FILESYSTEM:///etc/passwd",
            "Swift+Config://ref/container/object",
            "swift+config://ref/container/object",
            "unknown://somewhere",
            "memory://mem/not-there",
            "memory://elsewhere/x",
            "no uri",
            "",
            "memory://mem/" + "x" * 255,
        ],
    )
    def test_places_that_cannot_be_are_refused(self, url):
        image = self.api.alice.create()
        assert self.add(image, url).status_code == 400
        assert self.api.alice.show(image)["status"] == "queued"

    def test_a_place_without_bytes_is_refused(self):
        assert self.add(self.api.alice.create(), self.data_in("mem", b"")).status_code == 400

    def test_a_place_with_other_bytes_is_refused(self):
        image = self.api.alice.active(DATA)
        assert self.add(image, self.data_in("mem", DATA + b"!")).status_code == 409

    def test_the_same_place_is_taken_once(self):
        image, url = self.api.alice.create(), self.data_in("mem")
        self.add(image, url)
        assert self.add(image, url).status_code == 400

    def test_places_are_inserted_where_they_are_wanted(self):
        image = self.api.alice.create()
        first, second = self.data_in("mem"), self.data_in("mem")
        self.add(image, first)
        value = {"url": second, "metadata": {"colour": "red"}}
        shown = self.api.admin.patch(image, {"op": "add", "path": "/locations/0", "value": value}).json
        assert [place["url"] for place in shown["locations"]] == [second, first]
        assert shown["locations"][0]["metadata"] == {"colour": "red", "store": "mem"}

    def test_more_places_than_the_quota_are_refused(self):
        image = self.api.alice.create()
        responses = [self.add(image, self.data_in("mem")).status_code for _ in range(4)]
        assert responses == [200, 200, 200, 413]

    @pytest.mark.parametrize(
        ("operation", "status"),
        [
            ({"op": "replace", "path": "/locations", "value": []}, 403),
            ({"op": "replace", "path": "/locations", "value": "x"}, 400),
            ({"op": "replace", "path": "/locations/0", "value": {"url": "memory://mem/x", "metadata": {}}}, 400),
            ({"op": "add", "path": "/locations", "value": []}, 400),
            ({"op": "add", "path": "/locations/x", "value": {"url": "memory://mem/x", "metadata": {}}}, 400),
            ({"op": "add", "path": "/locations/-", "value": {"url": "memory://mem/x"}}, 400),
            ({"op": "add", "path": "/locations/-", "value": {"metadata": {}}}, 400),
            ({"op": "add", "path": "/locations/-", "value": "memory://mem/x"}, 400),
            ({"op": "add", "path": "/locations/0/url", "value": "x"}, 400),
        ],
    )
    def test_wrong_operations_are_refused(self, operation, status):
        image = self.api.alice.active(DATA)
        before = self.api.alice.show(image)
        assert self.api.alice.patch(image, operation).status_code == status
        assert self.api.alice.show(image) == before

    def test_the_places_of_an_image_are_not_replaced_by_others(self):
        image = self.api.alice.active(DATA)
        value = [{"url": self.data_in("mem"), "metadata": {}}]
        assert self.api.alice.patch(image, {"op": "replace", "path": "/locations", "value": value}).status_code == 400

    def test_the_metadata_of_places_is_replaced_but_not_the_store_they_are_in(self):
        image, url = self.api.alice.create(), self.data_in("mem")
        self.add(image, url)
        value = [{"url": url, "metadata": {"store": "fast", "shelf": "7"}}]
        response = self.api.alice.patch(image, {"op": "replace", "path": "/locations", "value": value})
        assert response.json["locations"] == [{"url": url, "metadata": {"store": "mem", "shelf": "7"}}]

    def test_nor_is_it_given_where_none_was_known(self):
        image, url = self.api.alice.create(), self.data_in("mem")
        self.add(image, url)
        with contextlib.closing(sqlite3.connect(self.api.directory / "images.sqlite")) as connection, connection:
            connection.execute("UPDATE image_locations SET metadata = '{}' WHERE image_id = ?", (image,))
            connection.execute("UPDATE images SET version = version + 1 WHERE id = ?", (image,))
        value = [{"url": url, "metadata": {"store": "fast", "shelf": "7"}}]
        response = self.api.alice.patch(image, {"op": "replace", "path": "/locations", "value": value})
        assert response.json["locations"] == [{"url": url, "metadata": {"shelf": "7"}}]

    def test_places_of_a_queued_image_are_set_as_a_whole(self):
        image = self.api.alice.create()
        value = [{"url": self.data_in("mem"), "metadata": {}} for _ in range(2)]
        response = self.api.admin.patch(image, {"op": "replace", "path": "/locations", "value": value})
        assert [place["url"] for place in response.json["locations"]] == [place["url"] for place in value]

    def test_a_removed_place_loses_its_data(self):
        image = self.api.alice.create()
        first, second = self.data_in("mem"), self.data_in("mem")
        self.add(image, first)
        self.add(image, second)
        response = self.api.admin.patch(image, {"op": "remove", "path": "/locations/0"})
        assert [place["url"] for place in response.json["locations"]] == [second]
        uris = [found.uri for found in self.api.registry["mem"].list_images()]
        assert (first in uris, second in uris) == (False, True)

    def test_places_are_counted_as_they_are_shown(self):
        image = self.api.alice.active(DATA)
        heavier = self.data_in("spare")
        self.add(image, heavier)
        shown = self.api.alice.show(image)["locations"]
        assert [place["metadata"]["store"] for place in shown] == ["spare", "fast"]
        response = self.api.admin.patch(image, {"op": "remove", "path": "/locations/0"})
        assert response.json["locations"] == shown[1:]
        assert self.api.alice.download(image).content == DATA

    def test_the_last_place_is_not_removed(self):
        image = self.api.alice.active(DATA)
        assert self.api.admin.patch(image, {"op": "remove", "path": "/locations/0"}).status_code == 403

    def test_a_place_that_is_not_there_is_not_removed(self):
        image = self.api.alice.active(DATA)
        self.add(image, self.data_in("mem"))
        assert self.api.admin.patch(image, {"op": "remove", "path": "/locations/7"}).status_code == 404

    def test_only_administrators_remove_places(self):
        image = self.api.alice.active(DATA)
        self.add(image, self.data_in("mem"))
        assert self.api.alice.patch(image, {"op": "remove", "path": "/locations/0"}).status_code == 403

    def test_places_without_formats_are_refused(self):
        image = self.api.alice.post("/v2/images", {}).json["id"]
        assert self.add(image, self.data_in("mem")).status_code == 400

    def test_data_in_use_stays(self, monkeypatch):
        image = self.api.alice.active(DATA)
        self.add(image, self.data_in("mem"))

        def fail(*arguments):
            raise InUseByStore("mapped by a host")

        with monkeypatch.context() as patch:
            patch.setattr(self.api.registry["mem"], "delete", fail)
            assert self.api.admin.patch(image, {"op": "remove", "path": "/locations/1"}).status_code == 409
        assert len(self.api.alice.show(image)["locations"]) == 2


class TestStorageQuota(WithPlaces):
    options = {"show_multiple_locations": "true", "user_storage_quota": len(DATA)}  # noqa: RUF012

    def test_data_that_is_named_counts(self):
        image = self.api.alice.create()
        assert self.add(image, self.data_in("mem")).status_code == 200
        assert self.add(image, self.data_in("mem")).status_code == 413
        assert self.add(self.api.alice.create(), self.data_in("mem")).status_code == 413

    def test_nobody_is_asked_for_data_that_there_is_no_room_for(self, monkeypatch):
        carol = self.api.caller("carol", "admin", "member", "reader")
        carol.active(DATA)
        place = self.data_in("mem")
        monkeypatch.setattr(self.api.registry["mem"], "get_size", None)
        image = carol.create()
        assert self.add(image, place, carol).status_code == 413
        assert carol.post(f"/v2/images/{image}/locations", {"url": place}).status_code == 413


class TestLocationSecrecy(WithPlaces):
    def test_nothing_tells_where_the_data_is(self):
        image = self.api.alice.active(DATA)
        shown = self.api.admin.get(f"/v2/images/{image}")
        assert "locations" not in shown.json
        assert "direct_url" not in shown.json
        assert "file://" not in shown.text

    def test_what_is_not_shown_is_not_changed(self):
        assert self.add(self.api.alice.create(), self.data_in("mem")).status_code == 403


class TestCredentialsInLocations(WithPlaces):
    """Old databases have URIs with the credentials of stores in them; nobody is ever told those."""

    options = {"show_multiple_locations": "true", "show_image_direct_url": "true"}  # noqa: RUF012

    @pytest.fixture
    def image(self):
        image = self.api.alice.active(DATA)
        old = NewLocation("s3://KEY:SECRET@s3.example.org/bucket/image", {"store": "spare"})
        add_location(self.api.repository, image, old)
        return image

    def test_no_answer_has_them(self, image):
        paths = [f"/v2/images/{image}", "/v2/images", f"/v2/images/{image}/locations"]
        responses = [self.api.admin.get(path).text for path in paths]
        assert all("s3://***@s3.example.org/bucket/image" in text for text in responses)
        assert not any("SECRET" in text for text in responses)

    def test_a_location_is_known_by_what_is_shown_of_it(self, image):
        value = [{**place, "metadata": {"shelf": "7"}} for place in self.api.alice.show(image)["locations"]]
        response = self.api.alice.patch(image, {"op": "replace", "path": "/locations", "value": value})
        assert [place["metadata"]["shelf"] for place in response.json["locations"]] == ["7", "7"]
        kept = [location.uri for location in self.api.repository.images.get(image).locations]
        assert "s3://KEY:SECRET@s3.example.org/bucket/image" in kept

    def test_no_error_has_them(self, image):
        response = self.add(image, "s3://KEY:SECRET@s3.example.org/bucket/image")
        assert response.status_code == 400
        assert "SECRET" not in response.text


class TestPlacesOfDeactivatedImages(WithPlaces):
    """Nova and Cinder read from the store itself what they know the place of, without asking for the data."""

    options = {"show_multiple_locations": "true", "show_image_direct_url": "true"}  # noqa: RUF012

    def places(self, caller, image):
        listed = next(each for each in caller.get("/v2/images").json["images"] if each["id"] == image)
        known = [(bool(each["locations"]), "direct_url" in each) for each in (caller.show(image), listed)]
        asked = caller.get(f"/v2/images/{image}/locations")
        return [*known, asked.json != [] if asked.status_code == 200 else None]

    def test_only_administrators_are_told_until_it_is_reactivated(self):
        image = self.api.alice.active(DATA)
        service = self.api.caller("alpha", "service", "member", "reader")
        everything, nothing = [(True, True), (True, True)], [(False, False), (False, False)]
        found = []
        for action in ("deactivate", "reactivate"):
            assert self.api.admin.post(f"/v2/images/{image}/actions/{action}").status_code == 204
            found.append([self.places(who, image) for who in (self.api.alice, service, self.api.admin)])
        assert found[0] == [[*nothing, None], [*nothing, False], [*everything, True]]
        assert found[1] == [[*everything, None], [*everything, True], [*everything, True]]


class TestLocationsNotHashed(WithPlaces):
    options = {"do_secure_hash": "false"}  # noqa: RUF012

    def test_what_the_client_says_is_believed(self):
        said = {"os_hash_algo": "sha256", "os_hash_value": "0" * 64}
        image = self.api.nova.create()
        self.api.nova.post(f"/v2/images/{image}/locations", {"url": self.data_in("mem"), "validation_data": said})
        self.api.settle()
        shown = self.api.nova.show(image)
        assert (shown["status"], shown["size"]) == ("active", len(DATA))
        assert {name: shown[name] for name in said} == said


class TestLocationsHashedAgain(WithPlaces):
    options = {"http_retries": 1}  # noqa: RUF012

    @pytest.mark.parametrize(("failures", "status"), [(1, "active"), (2, "queued")])
    def test_hashing_is_tried_again(self, monkeypatch, failures, status):
        store, url = self.api.registry["mem"], self.data_in("mem")
        errors = [RemoteServiceUnavailable("down") for _ in range(failures)]
        get = store.get

        def fail_first(*arguments, **named):
            if errors:
                raise errors.pop()
            return get(*arguments, **named)

        monkeypatch.setattr(store, "get", fail_first)
        image = self.api.nova.create()
        self.api.nova.post(f"/v2/images/{image}/locations", {"url": url})
        self.api.settle()
        assert self.api.nova.show(image)["status"] == status


class TestDirectUrl(Deployed):
    options = {"show_image_direct_url": "true"}  # noqa: RUF012

    def test_the_owner_sees_where_the_data_is(self):
        image = self.api.alice.active(DATA)
        assert self.api.alice.show(image)["direct_url"] == f"file://{self.api.directory}/images/{image}"

    def test_it_is_that_of_the_store_with_the_highest_weight(self):
        image = self.api.alice.active(DATA)
        method = {"method": {"name": "copy-image"}, "stores": ["mem", "spare"]}
        self.api.admin.post(f"/v2/images/{image}/import", method)
        self.api.settle()
        assert self.api.alice.show(image)["direct_url"].startswith("memory://spare/")

    def test_others_do_not(self):
        image = self.api.alice.active(DATA, visibility="community")
        assert "direct_url" not in self.api.bob.show(image)


class TestLocationsResource(WithPlaces):
    def post(self, image, caller=None, **body):
        return (caller or self.api.nova).post(f"/v2/images/{image}/locations", body)

    def create(self):
        return self.api.nova.create()

    @pytest.mark.parametrize("roles", ["service", "Service,member"])
    def test_a_service_acts_for_a_user_with_its_token_beside_the_users(self, roles):
        """As Nova does for snapshots on RBD, and Cinder for volumes: the user alone may not say where data is."""
        image, url = self.api.alice.create(), self.data_in("mem")
        path = f"/v2/images/{image}/locations"
        assert self.api.alice.post(path, {"url": url}).status_code == 403
        assert self.api.alice.post(path, {"url": url}, X_Service_Roles="member").status_code == 403
        assert self.api.alice.get(path, X_Service_Roles="member").status_code == 403
        assert self.api.alice.post(path, {"url": url}, X_Service_Roles=roles).status_code == 202
        self.api.settle()
        assert [place["url"] for place in self.api.alice.get(path, X_Service_Roles=roles).json] == [url]
        assert self.api.alice.get("/v2/info/stores/detail", X_Service_Roles=roles).status_code == 200

    def test_data_at_a_place_is_hashed_in_the_background(self):
        image, url = self.create(), self.data_in("mem")
        assert self.post(image, url=url).status_code == 202
        self.api.settle()
        shown = self.api.nova.show(image)
        assert (shown["status"], shown["size"], shown["stores"]) == ("active", len(DATA), "mem")
        assert shown["checksum"] == hashlib.md5(DATA).hexdigest()
        assert shown["os_hash_value"] == hashlib.sha512(DATA).hexdigest()

    def test_the_data_is_what_the_client_says_or_not_taken(self):
        right = {"os_hash_algo": "sha256", "os_hash_value": hashlib.sha256(DATA).hexdigest()}
        wrong = {"os_hash_algo": "sha256", "os_hash_value": "0" * 64}
        good, bad = self.create(), self.create()
        assert self.post(good, url=self.data_in("mem"), validation_data=right).status_code == 202
        assert self.post(bad, url=self.data_in("mem"), validation_data=wrong).status_code == 202
        self.api.settle()
        assert (self.api.nova.show(good)["status"], self.api.nova.show(good)["os_hash_algo"]) == ("active", "sha256")
        assert (self.api.nova.show(bad)["status"], "stores" in self.api.nova.show(bad)) == ("queued", False)

    def test_every_digest_is_compared(self):
        said = {"os_hash_algo": "sha256", "os_hash_value": hashlib.sha256(DATA).hexdigest(), "checksum": "0" * 32}
        image = self.create()
        assert self.post(image, url=self.data_in("mem"), validation_data=said).status_code == 202
        self.api.settle()
        assert self.api.nova.show(image)["status"] == "queued"

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ({}, 400),
            ({"url": ""}, 400),
            ({"url": "x" * 256}, 400),
            ({"url": "file:///etc/passwd"}, 400),
            ({"url": "memory://mem/not-there"}, 400),
            ({"url": "memory://mem/x", "validation_data": {"os_hash_algo": "sha256"}}, 400),
            ({"url": "memory://mem/x", "validation_data": {"os_hash_algo": "crc", "os_hash_value": "0"}}, 400),
            ({"url": "memory://mem/x", "validation_data": {"other": "x"}}, 400),
            ({"url": "memory://mem/x", "validation_data": "x"}, 400),
            ({"url": "memory://mem/x", "validation_data": []}, 400),
        ],
    )
    def test_wrong_requests_are_refused(self, body, status):
        assert self.post(self.create(), **body).status_code == status

    def test_an_image_that_has_data_takes_no_place(self):
        image = self.api.nova.active(DATA)
        assert self.post(image, url=self.data_in("mem")).status_code == 409

    def test_users_name_no_data_in_the_operators_stores(self):
        image = self.api.alice.create()
        assert self.post(image, self.api.alice, url=self.data_in("mem")).status_code == 403

    @pytest.mark.parametrize(("caller", "status"), [("nova", 404), ("admin", 200), ("alice", 403), ("bob", 404)])
    def test_services_list_the_places(self, caller, status):
        image = self.api.alice.active(DATA)
        response = getattr(self.api, caller).get(f"/v2/images/{image}/locations")
        assert response.status_code == status
        if status == 200:
            url = f"file://{self.api.directory}/images/{image}"
            assert response.json == [{"url": url, "metadata": {"store": "fast"}}]


class TestDeleteFromStore(WithPlaces):
    @pytest.fixture
    def image(self):
        image = self.api.alice.active(DATA)
        body = {"method": {"name": "copy-image"}, "stores": ["mem"]}
        assert self.api.admin.post(f"/v2/images/{image}/import", body).status_code == 202
        self.api.settle()
        return image

    def test_the_data_in_one_store_is_deleted(self, image):
        assert self.api.admin.delete(f"/v2/stores/fast/{image}").status_code == 204
        assert self.api.alice.show(image)["stores"] == "mem"
        assert image not in self.api.files()
        assert self.api.alice.download(image).content == DATA

    @pytest.mark.parametrize(("store", "status"), [("nowhere", 404), ("spare", 404)])
    def test_what_is_not_there_is_not_found(self, image, store, status):
        assert self.api.admin.delete(f"/v2/stores/{store}/{image}").status_code == status

    def test_the_last_data_stays(self, image):
        self.api.admin.delete(f"/v2/stores/fast/{image}")
        assert self.api.admin.delete(f"/v2/stores/mem/{image}").status_code == 403

    def test_an_image_that_is_not_there(self):
        assert self.api.admin.delete(f"/v2/stores/fast/{uuid.uuid4()}").status_code == 404

    def test_an_image_that_is_not_active(self):
        assert self.api.admin.delete(f"/v2/stores/fast/{self.api.alice.create()}").status_code == 409

    def test_only_administrators_do(self, image):
        assert self.api.alice.delete(f"/v2/stores/fast/{image}").status_code == 403

    def test_data_in_use_stays(self, image, monkeypatch):
        def fail(*arguments):
            raise InUseByStore("mapped by a host")

        with monkeypatch.context() as patch:
            patch.setattr(self.api.registry["fast"], "delete", fail)
            assert self.api.admin.delete(f"/v2/stores/fast/{image}").status_code == 409
        assert sorted(self.api.alice.show(image)["stores"].split(",")) == ["fast", "mem"]


class TestDeleteInUse(Deployed):
    @pytest.mark.parametrize("status", ["active", "deactivated"])
    def test_an_image_in_use_stays_what_it_was(self, status, monkeypatch):
        image = self.api.alice.active(DATA)
        if status == "deactivated":
            self.api.alice.post(f"/v2/images/{image}/actions/deactivate")

        def fail(*arguments):
            raise InUseByStore("mapped by a host")

        with monkeypatch.context() as patch:
            patch.setattr(self.api.registry["fast"], "delete", fail)
            assert self.api.alice.delete(f"/v2/images/{image}").status_code == 409
        assert self.api.alice.show(image)["status"] == status
        assert self.api.admin.download(image).content == DATA

    def test_data_in_a_store_that_does_not_answer_is_deleted_later(self, monkeypatch):
        image = self.api.alice.active(DATA)

        def fail(*arguments):
            raise RemoteServiceUnavailable("down")

        with monkeypatch.context() as patch:
            patch.setattr(self.api.registry["fast"], "delete", fail)
            assert self.api.alice.delete(f"/v2/images/{image}").status_code == 204
        assert image in self.api.files()
        monkeypatch.setattr("storelib.api.service.lease.ABANDONED", -1.0)
        self.api.service.lease.scrub()
        assert image not in self.api.files()
