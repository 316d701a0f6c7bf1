# SPDX-License-Identifier: Apache-2.0
"""Lists in v1: who sees what, filters, order and pages."""

from __future__ import annotations

import datetime

import pytest
from deployment import Deployed
from v1_client import created

from storelib.api import json_response

PUBLIC = {"is_public": "True"}


class Listed(Deployed):
    def names(self, query="", caller=None, path="/v1/images/detail"):
        response = (caller or self.api.alice).get(f"{path}?{query}")
        assert response.status_code == 200, response.text
        return [image["name"] for image in response.json["images"]]


class TestFilters(Listed):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def images(cls, _deployed):
        alice, admin = cls.api.alice, cls.api.admin
        created(alice, b"1", {"colour": "red"}, name="one", min_ram=512)
        created(alice, b"22", {"colour": "blue"}, name="two", protected="true")
        created(alice, None, {"colour": "red", "os_type": "linux"}, name="a:b", min_disk=5, disk_format="qcow2")
        created(admin, b"333", None, name="admin's")
        created(admin, b"4444", None, name="everybody's", **PUBLIC)
        for_alice = created(cls.api.bob, name="bob's for alpha")
        cls.api.bob.put(f"/v1/images/{for_alice}/members/alpha")
        created(cls.api.bob, name="bob's")
        cls.gone = created(alice, name="gone")
        alice.delete(f"/v1/images/{cls.gone}")
        alice.create(name="hidden", os_hidden=True)

    @pytest.mark.parametrize(
        ("query", "names"),
        [
            ("", {"one", "two", "a:b", "everybody's", "bob's for alpha"}),
            ("name=one", {"one"}),
            ("name=a%3Ab", {"a:b"}),
            ("name=none", set()),
            ("status=queued", {"a:b", "bob's for alpha"}),
            ("disk_format=qcow2", {"a:b"}),
            ("container_format=ovf", set()),
            ("min_ram=512", {"one"}),
            ("min_disk=5", {"a:b"}),
            ("size_min=2", {"two", "everybody's"}),
            ("size_min=2&size_max=3", {"two"}),
            ("protected=true", {"two"}),
            ("protected=0", {"one", "a:b", "everybody's", "bob's for alpha"}),
            ("property-colour=red", {"one", "a:b"}),
            ("property-colour=red&property-os_type=linux", {"a:b"}),
            ("is_public=false", {"one", "two", "a:b", "everybody's", "bob's for alpha"}),
            ("is_public=none", {"one", "two", "a:b", "everybody's", "bob's for alpha"}),
            ("deleted=true", {"one", "two", "a:b", "everybody's", "bob's for alpha"}),
            ("unknown=1&owner=beta", {"one", "two", "a:b", "everybody's", "bob's for alpha"}),
        ],
    )
    @pytest.mark.parametrize("path", ["/v1/images", "/v1/images/detail"])
    def test_a_user_finds(self, query, names, path):
        found = self.names(query, path=path)
        assert set(found) == names
        assert len(found) == len(names)

    @pytest.mark.parametrize(
        ("query", "names"),
        [
            ("", {"admin's", "everybody's"}),
            ("is_public=true", {"admin's", "everybody's"}),
            ("is_public=1", {"admin's", "everybody's"}),
            ("is_public=false", {"one", "two", "a:b", "admin's", "bob's", "bob's for alpha"}),
            ("is_public=None", {"one", "two", "a:b", "admin's", "bob's", "bob's for alpha", "everybody's"}),
            ("is_public=None&deleted=true", {"gone"}),
        ],
    )
    def test_an_administrator_is_a_normal_user_unless_he_says_otherwise(self, query, names):
        assert set(self.names(query, self.api.admin)) == names

    def test_changes_since_tells_of_deleted_images(self):
        past = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=1)
        future = past + datetime.timedelta(hours=2)
        assert "gone" in self.names(f"changes-since={past.strftime('%Y-%m-%dT%H:%M:%SZ')}")
        assert self.names(f"changes-since={future.strftime('%Y-%m-%dT%H:%M:%S')}") == []
        assert "gone" not in self.names(f"changes-since={past.strftime('%Y-%m-%dT%H:%M:%SZ')}&status=queued")

    def test_the_brief_list_has_few_fields(self):
        [image] = self.api.alice.get("/v1/images?name=one").json["images"]
        assert set(image) == {"id", "name", "size", "disk_format", "container_format", "checksum"}

    def test_requests_without_a_token_find_what_is_public(self):
        assert self.names(caller=self.api.nobody) == ["everybody's"]

    @pytest.mark.parametrize(
        "query",
        [
            "limit=-1",
            "limit=ten",
            f"limit={5000 * '9'}",
            f"size_min={20 * '9'}",
            "marker=6c9a6ae1-63c9-4c5c-9a14-6a3c35e3f6a5",
            "sort_key=owner",
            "sort_dir=up",
            "size_min=small",
            "size_max=-5",
            "min_ram=x",
            "protected=perhaps",
            "changes-since=yesterday",
            "is_public=perhaps",
            "deleted=perhaps",
        ],
    )
    @pytest.mark.parametrize("path", ["/v1/images", "/v1/images/detail"])
    def test_values_that_make_no_sense_are_refused_by_name(self, query, path):
        response = self.api.admin.get(f"{path}?{query}")
        assert response.status_code == 400
        assert query.partition("=")[0] in response.json["error"]["message"]


class TestPages(Listed):
    options = {"limit_param_default": 4, "api_limit_max": 5}  # noqa: RUF012

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def images(cls, _deployed):
        cls.ids = {name: created(cls.api.alice, b"x" * (9 - n), name=name) for n, name in enumerate("fbdace")}

    @pytest.mark.parametrize(
        ("query", "names"),
        [
            ("", "ecad"),
            ("limit=2", "ec"),
            ("limit=0", ""),
            ("limit=9", "ecadb"),
            ("sort_dir=asc", "fbda"),
            ("sort_key=name&sort_dir=asc", "abcd"),
            ("sort_key=name", "fedc"),
            ("sort_key=size&sort_dir=asc&limit=3", "eca"),
            ("sort_key=status&sort_dir=asc&limit=1", None),
        ],
    )
    def test_order_and_length(self, query, names):
        found = self.names(query)
        assert len(found) == 1 if names is None else "".join(found) == names

    @pytest.mark.parametrize("path", ["/v1/images", "/v1/images/detail"])
    @pytest.mark.parametrize("query", ["limit=2", "limit=4&sort_key=name", "limit=3&sort_key=size&sort_dir=asc"])
    def test_pages_follow_their_marker_to_the_end(self, query, path):
        found, marker = [], ""
        while page := self.api.alice.get(f"{path}?{query}{marker}").json["images"]:
            found += [image["name"] for image in page]
            marker = f"&marker={page[-1]['id']}"
        assert sorted(found) == list("abcdef")

    def test_pages_of_large_images_are_shorter(self, monkeypatch):
        monkeypatch.setattr(json_response, "LARGEST_PAGE", 1)
        self.test_pages_follow_their_marker_to_the_end("limit=4&sort_key=name", "/v1/images/detail")
        assert len(self.api.alice.get("/v1/images/detail").json["images"]) == 1

    def test_an_image_the_caller_cannot_see_is_no_marker(self):
        assert self.api.bob.get(f"/v1/images?marker={self.ids['a']}").status_code == 400
