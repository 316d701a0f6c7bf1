# SPDX-License-Identifier: Apache-2.0
"""Lists in v2: filters, sorting, paging, and who sees what."""

from __future__ import annotations

import datetime
import json
from urllib.parse import quote

import pytest
from deployment import Deployed

from storelib.api import json_response
from storelib.api.errors import BadRequest
from storelib.api.v2.query import parse, parse_time


class Listed(Deployed):
    def names(self, query="", caller=None):
        response = (caller or self.api.alice).get(f"/v2/images?{query}")
        assert response.status_code == 200, response.text
        return [image["name"] for image in response.json["images"]]


class TestFilters(Listed):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def images(cls, _deployed):
        alice = cls.api.alice
        cls.one = alice.active(b"1", name="one", tags=["a", "b"], colour="red", min_ram=512)
        cls.two = alice.active(b"22", name="two", tags=["a"], colour="blue", protected=True)
        cls.three = alice.create(name="three, 3", disk_format="qcow2", min_disk=5, colour="red")
        cls.hidden = alice.create(name="hidden", os_hidden=True)
        cls.private = alice.create(name="private", visibility="private")
        cls.api.bob.create(name="bob's", visibility="community")
        cls.api.admin.create(name="everybody's", visibility="public")

    @pytest.mark.parametrize(
        ("query", "names"),
        [
            ("name=one", {"one"}),
            ("name=in:one,two", {"one", "two"}),
            ('name=in:"three, 3",one', {"one", "three, 3"}),
            ("name=in:one,,two", {"one", "two"}),
            ('name=in:"one","two"', {"one", "two"}),
            ('name=in:"one ""1""",two', {"two"}),
            ("name=eq:one", {"one"}),
            ('name=eq:"three, 3"', {"three, 3"}),
            ("name=nothing", set()),
            ("status=active", {"one", "two"}),
            ("status=in:queued", {"three, 3", "private", "everybody's"}),
            ("disk_format=qcow2", {"three, 3"}),
            ("disk_format=in:raw,qcow2&colour=red", {"one", "three, 3"}),
            ("container_format=bare&colour=blue", {"two"}),
            ("colour=red", {"one", "three, 3"}),
            ("colour=red&tag=b", {"one"}),
            ("tag=a", {"one", "two"}),
            ("tag=a&tag=b", {"one"}),
            ("protected=true", {"two"}),
            ("protected=False&colour=red", {"one", "three, 3"}),
            ("size_min=1&size_max=1", {"one"}),
            ("size_min=2", {"two"}),
            ("size=2", {"two"}),
            ("min_ram=512", {"one"}),
            ("min_disk_min=1", {"three, 3"}),
            ("os_hidden=true", {"hidden"}),
            ("visibility=private", {"private"}),
            ("visibility=public", {"everybody's"}),
            ("visibility=community", {"bob's"}),
            ("visibility=shared", {"one", "two", "three, 3"}),
            ("visibility=all", {"one", "two", "three, 3", "private", "everybody's", "bob's"}),
            ("owner=alpha", {"one", "two", "three, 3", "private"}),
            ("checksum=c4ca4238a0b923820dcc509a6f75849b", {"one"}),
            ("os_hash_algo=sha512&colour=red", {"one"}),
            ("created_at=gt:2100-01-01T00:00:00Z", set()),
            ("created_at=lt:2100-01-01T00:00:00Z&colour=blue", {"two"}),
            ("updated_at=gte:2020-01-01&colour=blue", {"two"}),
            ("limit=0", set()),
        ],
    )
    def test_a_list_is_what_was_asked_for(self, query, names):
        assert set(self.names(quote(query, safe="=&:,-"))) == names

    def test_without_filters_hidden_images_and_other_projects_community_images_are_left_out(self):
        assert set(self.names()) == {"one", "two", "three, 3", "private", "everybody's"}

    def test_images_are_found_by_id(self):
        assert set(self.names(f"id=in:{self.one},{self.two}")) == {"one", "two"}

    def test_images_are_found_by_hash(self):
        digest = self.api.alice.show(self.two)["os_hash_value"]
        assert self.names(f"os_hash_value={digest}") == ["two"]

    @pytest.mark.parametrize(
        ("caller", "names"),
        [("bob", {"bob's", "everybody's"}), ("nobody", {"everybody's"}), ("colleague", None), ("admin", None)],
    )
    def test_everybody_sees_what_he_may(self, caller, names):
        seen = set(self.names(caller=getattr(self.api, caller)))
        assert seen == (names or {"one", "two", "three, 3", "private", "everybody's"})

    def test_administrators_see_everything_when_they_ask_for_it(self):
        seen = set(self.names("visibility=all", caller=self.api.admin))
        assert seen == {"one", "two", "three, 3", "private", "everybody's", "bob's"}

    @pytest.mark.parametrize("value", ["true", "False", "1", "perhaps", ""])
    def test_deleted_images_cannot_be_asked_for(self, value):
        """Clients do; it is no name of a property, and changes nothing."""
        assert set(self.names(f"deleted={value}")) == set(self.names())

    @pytest.mark.parametrize(
        "query",
        [
            "limit=-1",
            "limit=x",
            "marker=nothing",
            "sort=colour",
            "sort=name:up",
            "sort=name&sort=id",
            "sort=name&sort_key=id",
            "sort=name&sort_dir=asc",
            "sort_key=colour",
            "sort_dir=up",
            "sort_key=name&sort_dir=asc&sort_dir=desc",
            "visibility=secret",
            "member_status=perhaps",
            "os_hidden=perhaps",
            "protected=1",
            "size_min=x",
            "size_max=-1",
            "min_ram=1.5",
            "name=like:x",
            "name=in:",
            'name=in:"x',
            'name=eq:"x',
            "created_at=gt:yesterday",
            "created_at=about:2026-01-01",
            "updated_at=",
            "changes-since=2026-01-01",
        ],
    )
    def test_wrong_parameters_are_refused(self, query):
        assert self.api.alice.get(f"/v2/images?{query}").status_code == 400


class TestSorting(Listed):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def images(cls, _deployed):
        for name, data in (("b", b"22"), ("a", b"22"), ("c", b"1")):
            cls.api.alice.active(data, name=name)

    @pytest.mark.parametrize(
        ("query", "names"),
        [
            ("", ["c", "a", "b"]),
            ("sort=name:asc", ["a", "b", "c"]),
            ("sort=name:desc", ["c", "b", "a"]),
            ("sort=name:", ["c", "b", "a"]),
            ("sort=name:asc,%20name:desc", ["a", "b", "c"]),
            ("sort=name", ["c", "b", "a"]),
            ("sort=size:asc,name:desc", ["c", "b", "a"]),
            ("sort_key=name", ["c", "b", "a"]),
            ("sort_key=name&sort_dir=asc", ["a", "b", "c"]),
            ("sort_dir=asc", ["b", "a", "c"]),
            ("sort_key=size&sort_key=name&sort_dir=desc", ["b", "a", "c"]),
            ("sort_key=size&sort_key=name&sort_dir=asc&sort_dir=desc", ["c", "b", "a"]),
            ("sort_key=created_at&sort_dir=asc", ["b", "a", "c"]),
        ],
    )
    def test_a_list_is_in_the_order_that_was_asked_for(self, query, names):
        assert self.names(query) == names


class TestPaging(Listed):
    options = {"limit_param_default": 4, "api_limit_max": 6}  # noqa: RUF012

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def images(cls, _deployed):
        for number in range(10):
            cls.api.alice.create(name=f"n{number}", colour="red & blue")

    def pages(self, path):
        while path:
            response = self.api.alice.get(path).json
            yield [image["name"] for image in response["images"]]
            path = response.get("next")

    @pytest.mark.parametrize(
        ("query", "sizes"),
        [("", [4, 4, 2]), ("?limit=3", [3, 3, 3, 1]), ("?limit=5", [5, 5]), ("?limit=1000", [6, 4])],
    )
    def test_pages_follow_each_other_and_the_last_has_no_next(self, query, sizes):
        pages = list(self.pages(f"/v2/images{query}"))
        assert [len(page) for page in pages] == sizes
        assert sorted(name for page in pages for name in page) == [f"n{number}" for number in range(10)]

    def test_pages_of_large_images_are_shorter(self, monkeypatch):
        [one] = self.api.alice.get("/v2/images?limit=1").json["images"]
        monkeypatch.setattr(json_response, "LARGEST_PAGE", 3 * len(json.dumps(one)))
        pages = list(self.pages("/v2/images?limit=4&sort=name:asc"))
        assert max(map(len, pages)) == 3
        assert [name for page in pages for name in page] == [f"n{number}" for number in range(10)]

    def test_next_keeps_filters_and_order(self):
        pages = list(self.pages("/v2/images?limit=4&sort=name:asc&colour=red%20%26%20blue&name=in:n1,n3,n5,n7,n9"))
        assert pages == [["n1", "n3", "n5", "n7"], ["n9"]]

    def test_first_is_the_same_list_from_its_beginning(self):
        second = self.api.alice.get(self.api.alice.get("/v2/images?limit=4&sort=name:asc").json["next"]).json
        assert second["first"] == "/v2/images?limit=4&sort=name%3Aasc"
        assert second["schema"] == "/v2/schemas/images"

    def test_a_marker_the_caller_cannot_see_is_refused(self):
        theirs = self.api.bob.create(visibility="private")
        assert self.api.alice.get(f"/v2/images?marker={theirs}").status_code == 400


class TestTimes:
    @pytest.mark.parametrize(
        "text",
        [
            "2026-11-20T19:00:00Z",
            "2026-11-20T19:00:00",
            "2026-11-20T21:00:00+02:00",
            "2026-11-20T21:00:00+0200",
            "2026-11-20T21:00:00 02:00",
            "2026-11-20T19:00:00.000000",
            "2026-11-20T19:00:00.0Z",
            "2026-11-20T19:00:00,000000000+00",
            "20261120T190000z",
            "2026-11-20 19:00",
            "2026-11-20 21:00 02:00",
        ],
    )
    def test_all_ways_to_write_a_time_are_read(self, text):
        expected = datetime.datetime(2026, 11, 20, 19, tzinfo=datetime.timezone.utc)
        assert parse_time("created_at", text) == expected

    def test_a_day_a_month_and_a_year_begin_as_their_first_second(self):
        beginnings = [parse_time("created_at", text) for text in ("2026-01-01", "2026-01", "2026")]
        assert beginnings == [datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)] * 3

    @pytest.mark.parametrize("text", ["", "now", "2026-13-01", "0001-01-01T00:00:00+23:00"])
    def test_what_is_no_time_is_refused(self, text):
        with pytest.raises(BadRequest, match="created_at"):
            parse_time("created_at", text)

    def test_unknown_parameters_are_custom_properties(self):
        query = parse([("os_distro", "debian")], default_limit=5, largest_limit=9)
        assert query.properties == {"os_distro": "debian"}
