# SPDX-License-Identifier: Apache-2.0
"""Metadata definitions in v2: namespaces and what is in them, who sees and changes them, pages, schemas."""

from __future__ import annotations

import json
import re
from urllib.parse import quote

import pytest
from deployment import Deployed
from jsonschema import Draft4Validator

from storelib.api.db import metadefs
from storelib.api.schemas import FORMATS

ROOT = "/v2/metadefs/namespaces"
WATCHDOG = {"title": "Watchdog", "description": "What it does", "type": "string", "enum": ["reset", "none"]}
FULL = {
    "namespace": "OS::Compute::Watchdog",
    "display_name": "Watchdog",
    "description": "How watchdogs behave",
    "visibility": "public",
    "protected": False,
    "resource_type_associations": [
        {"name": "OS::Glance::Image", "prefix": "hw_"},
        {"name": "OS::Cinder::Volume", "prefix": "hw_", "properties_target": "image"},
    ],
    "properties": {"action": WATCHDOG},
    "objects": [
        {
            "name": "Timer",
            "description": "A timer",
            "required": ["seconds"],
            "properties": {"seconds": {"title": "Seconds", "type": "integer", "minimum": 1}},
        }
    ],
    "tags": [{"name": "safety"}, {"name": "hardware"}],
}


class Metadefs(Deployed):
    @pytest.fixture(autouse=True)
    def _empty(self):
        """The tests of a class share one database."""
        tables = self.api.repository.metadefs
        for namespace in tables.page(metadefs.NamespaceQuery(everything=True, limit=1000)):
            tables.update(namespace.id, metadefs.NewNamespace(namespace.namespace))
            tables.delete(namespace.id)
        self.api.events.clear()

    @pytest.fixture
    def namespace(self):
        """The path of a public namespace with something of everything in it."""
        return self.make(**FULL)

    def make(self, namespace="private", by=None, **values):
        response = (by or self.api.admin).post(ROOT, {"namespace": namespace, **values})
        assert response.status_code == 201, response.text
        assert response.headers["Location"] == f"{ROOT}/{quote(namespace)}"
        return f"{ROOT}/{namespace}"


class TestNamespaces(Metadefs):
    def test_namespace_is_made_with_all_that_is_in_it(self, namespace):
        response = self.api.alice.get(namespace)
        assert response.status_code == 200
        document = response.json
        for name in ("namespace", "display_name", "description", "visibility", "protected", "properties"):
            assert document[name] == FULL[name]
        assert document["owner"] == "admins"
        assert document["schema"] == "/v2/schemas/metadefs/namespace"
        assert {each["name"] for each in document["tags"]} == {"safety", "hardware"}
        [made] = document["objects"]
        assert made.items() >= FULL["objects"][0].items()
        assert made["self"] == f"{ROOT}/OS%3A%3ACompute%3A%3AWatchdog/objects/Timer"
        associations = {each["name"]: each for each in document["resource_type_associations"]}
        assert associations["OS::Cinder::Volume"]["properties_target"] == "image"
        assert associations["OS::Glance::Image"]["prefix"] == "hw_"

    def test_what_is_made_is_what_is_shown(self):
        made = self.api.admin.post(ROOT, FULL).json
        assert self.api.admin.get(f"{ROOT}/{FULL['namespace']}").json == made

    def test_namespace_is_private_and_of_its_maker_unless_said_otherwise(self):
        self.make("mine")
        document = self.api.admin.get(f"{ROOT}/mine").json
        assert (document["visibility"], document["protected"], document["owner"]) == ("private", False, "admins")
        assert "display_name" not in document
        assert "objects" not in document

    def test_name_is_taken_once(self, namespace):
        response = self.api.admin.post(ROOT, {"namespace": FULL["namespace"]})
        assert response.status_code == 409

    def test_names_differ_in_case(self):
        self.make("one")
        self.make("ONE")

    def test_namespace_is_made_wholly_or_not_at_all(self):
        twice = {"namespace": "torn", "tags": [{"name": "twice"}, {"name": "twice"}]}
        assert self.api.admin.post(ROOT, twice).status_code == 409
        assert self.api.admin.get(f"{ROOT}/torn").status_code == 404

    def test_namespace_is_changed_and_renamed_and_keeps_what_is_in_it(self, namespace):
        response = self.api.admin.put(namespace, {"namespace": "Renamed", "visibility": "public"})
        assert response.status_code == 200
        assert (response.json["namespace"], response.json["visibility"]) == ("Renamed", "public")
        assert self.api.admin.get(namespace).status_code == 404
        renamed = self.api.alice.get(f"{ROOT}/Renamed").json
        assert renamed["properties"] == FULL["properties"]
        assert "display_name" not in renamed

    def test_namespace_does_not_get_the_name_of_another(self, namespace):
        self.make("other")
        assert self.api.admin.put(namespace, {"namespace": "other"}).status_code == 409

    def test_namespace_is_deleted_with_all_that_is_in_it(self, namespace):
        assert self.api.admin.delete(namespace).status_code == 204
        assert self.api.admin.get(namespace).status_code == 404
        assert self.api.admin.get(f"{namespace}/objects").status_code == 404
        self.make(FULL["namespace"])
        assert "objects" not in self.api.admin.get(namespace).json

    @pytest.mark.parametrize(
        "part", ["", "/objects", "/objects/Timer", "/properties", "/properties/action", "/tags", "/tags/safety",
                 "/resource_types/OS::Glance::Image"],
    )  # fmt: skip
    def test_nothing_in_a_protected_namespace_is_removed(self, part):
        namespace = self.make(**FULL | {"protected": True})
        assert self.api.admin.delete(namespace + part).status_code == 403
        shown = self.api.admin.get(namespace).json
        assert all(shown[name] for name in ("objects", "properties", "tags", "resource_type_associations"))

    def test_properties_have_the_names_that_they_have_on_a_resource(self, namespace):
        shown = self.api.alice.get(f"{namespace}?resource_type=OS::Glance::Image").json
        assert list(shown["properties"]) == ["hw_action"]
        [made] = shown["objects"]
        assert (list(made["properties"]), made["required"]) == (["hw_seconds"], ["hw_seconds"])
        plain = self.api.alice.get(f"{namespace}?resource_type=OS::Nova::Flavor").json
        assert list(plain["properties"]) == ["action"]


class TestWhoMayDoWhat(Metadefs):
    def test_private_namespace_is_seen_by_its_owner_and_administrators(self):
        self.make("alphas", owner="alpha")
        for caller, status in ((self.api.alice, 200), (self.api.admin, 200), (self.api.bob, 404)):
            for part in ("", "/objects", "/properties", "/tags", "/resource_types"):
                assert caller.get(f"{ROOT}/alphas{part}").status_code == status, part
        assert [each["namespace"] for each in self.api.alice.get(ROOT).json["namespaces"]] == ["alphas"]
        assert self.api.bob.get(ROOT).json["namespaces"] == []

    @pytest.mark.parametrize("method", ["PUT", "DELETE"])
    def test_only_administrators_change(self, namespace, method):
        for part in ("", "/objects/Timer", "/properties/action", "/tags/safety"):
            body = {"namespace": "x", "name": "x", "title": "x", "type": "string"}
            response = self.api.alice.request(method, namespace + part, **({"json": body} if method == "PUT" else {}))
            assert response.status_code == 403, part
        self.make("hidden")
        assert self.api.alice.delete(f"{ROOT}/hidden").status_code == 404
        assert self.api.alice.put(f"{ROOT}/hidden", {"namespace": "x"}).status_code == 404

    @pytest.mark.parametrize("part", ["", "/objects", "/properties", "/tags", "/tags/new", "/resource_types"])
    def test_only_administrators_add(self, namespace, part):
        path = namespace + part if part else ROOT
        body = {"namespace": "new", "name": "new", "title": "new", "type": "string", "tags": []}
        response = self.api.alice.post(path, None if part == "/tags/new" else body)
        assert response.status_code == 403

    def test_requests_without_a_token_may_only_read_what_the_policy_lets_them(self, namespace):
        assert self.api.nobody.post(ROOT, {"namespace": "x"}).status_code == 403
        assert self.api.nobody.delete(namespace).status_code in (403, 404)


class TestList(Metadefs):
    def names(self, query="", by=None):
        response = (by or self.api.admin).get(f"{ROOT}{query}")
        assert response.status_code == 200, response.text
        return [each["namespace"] for each in response.json["namespaces"]]

    def test_latest_comes_first(self):
        for name in ("one", "two", "three"):
            self.make(name)
        assert self.names() == ["three", "two", "one"]
        assert self.names("?sort_dir=asc") == ["one", "two", "three"]

    @pytest.mark.parametrize("key", sorted(metadefs.SORT_KEYS))
    @pytest.mark.parametrize("direction", ["asc", "desc"])
    def test_pages_hold_every_namespace_once(self, key, direction):
        for number in range(7):
            self.make(f"n{number}", display_name="same" if number % 2 else f"d{number}", protected=number == 3)
        self.make("no display name")
        path, found = f"{ROOT}?sort_key={key}&sort_dir={direction}&limit=3", []
        while path:
            page = self.api.admin.get(path).json
            found += [each["namespace"] for each in page["namespaces"]]
            assert len(page["namespaces"]) <= 3
            path = page.get("next")
        assert sorted(found) == sorted([*(f"n{number}" for number in range(7)), "no display name"])
        assert found == self.names(f"?sort_key={key}&sort_dir={direction}")

    def test_filters(self, namespace):
        self.make("flavors", visibility="public", resource_type_associations=[{"name": "OS::Nova::Flavor"}])
        self.make("mine")
        assert self.names("?visibility=private") == ["mine"]
        assert self.names("?resource_types=OS::Nova::Flavor") == ["flavors"]
        assert set(self.names("?resource_types=OS::Nova::Flavor,OS::Glance::Image")) == {"flavors", FULL["namespace"]}
        assert self.names("?resource_types=OS::Unknown") == []

    @pytest.mark.parametrize(
        "query",
        ["limit=-1", "limit=x", "sort_key=id", "sort_key=nothing", "sort_dir=up", "visibility=shared", "marker=gone"],
    )
    def test_bad_questions_are_refused(self, query):
        assert self.api.admin.get(f"{ROOT}?{query}").status_code == 400

    def test_marker_that_the_caller_may_not_see_is_unknown(self):
        self.make("hidden")
        assert self.api.alice.get(f"{ROOT}?marker=hidden").status_code == 400

    def test_associations_are_listed(self, namespace):
        [listed] = self.api.alice.get(ROOT).json["namespaces"]
        assert len(listed["resource_type_associations"]) == 2
        assert "objects" not in listed


class TestContents(Metadefs):
    @pytest.mark.parametrize(
        ("part", "body"),
        [
            ("objects", {"name": "new", "description": "words", "properties": {"p": {"title": "P", "type": "string"}}}),
            ("properties", {"name": "new", "title": "New", "type": "integer", "minimum": 1, "default": 7}),
        ],
    )
    def test_object_and_property_are_added_changed_renamed_and_removed(self, namespace, part, body):
        made = self.api.admin.post(f"{namespace}/{part}", body)
        assert made.status_code == 201
        assert made.json.items() >= body.items()
        assert self.api.admin.post(f"{namespace}/{part}", body).status_code == 409
        changed = self.api.admin.put(f"{namespace}/{part}/new", body | {"name": "newer"})
        assert (changed.status_code, changed.json["name"]) == (200, "newer")
        assert self.api.alice.get(f"{namespace}/{part}/new").status_code == 404
        assert self.api.alice.get(f"{namespace}/{part}/newer").json == changed.json
        assert self.api.admin.delete(f"{namespace}/{part}/newer").status_code == 204
        assert self.api.admin.delete(f"{namespace}/{part}/newer").status_code == 404

    @pytest.mark.parametrize(("limit", "status"), [(5.0, 201), (5.5, 400), (-1.0, 400), ("5", 400)])
    def test_limits_of_a_property_are_whole_numbers(self, namespace, limit, status):
        body = {"name": "new", "title": "New", "type": "string", "maxLength": limit}
        assert self.api.admin.post(f"{namespace}/properties", body).status_code == status

    def test_properties_are_listed_by_name(self, namespace):
        listed = self.api.alice.get(f"{namespace}/properties").json
        assert listed == {"properties": {"action": {"name": "action", **WATCHDOG}}}

    def test_property_is_found_by_its_name_on_a_resource(self, namespace):
        path = f"{namespace}/properties"
        found = self.api.alice.get(f"{path}/hw_action?resource_type=OS::Glance::Image")
        assert (found.status_code, found.json["name"]) == (200, "action")
        assert self.api.alice.get(f"{path}/action?resource_type=OS::Glance::Image").status_code == 404
        assert self.api.alice.get(f"{path}/hw_action?resource_type=OS::Nova::Flavor").status_code == 404

    def test_objects_are_listed_in_pages(self, namespace):
        for number in range(4):
            self.api.admin.post(f"{namespace}/objects", {"name": f"o{number}"})
        first = self.api.alice.get(f"{namespace}/objects?limit=2&sort_key=name&sort_dir=asc").json
        second = self.api.alice.get(first["next"]).json
        assert [each["name"] for each in first["objects"] + second["objects"]] == ["Timer", "o0", "o1", "o2"]
        assert first["schema"] == "/v2/schemas/metadefs/objects"

    def test_tag_is_added_by_its_path(self, namespace):
        made = self.api.admin.post(f"{namespace}/tags/with/slash")
        assert (made.status_code, made.json["name"]) == (201, "with/slash")
        assert self.api.admin.post(f"{namespace}/tags/with/slash").status_code == 409
        changed = self.api.admin.put(f"{namespace}/tags/safety", {"name": "security"})
        assert (changed.status_code, changed.json["name"]) == (200, "security")
        assert self.api.admin.delete(f"{namespace}/tags/security").status_code == 204
        assert self.api.alice.get(f"{namespace}/tags/security").status_code == 404

    def test_tags_are_replaced_or_added(self, namespace):
        def names():
            return {each["name"] for each in self.api.alice.get(f"{namespace}/tags").json["tags"]}

        more = {"tags": [{"name": "more"}]}
        assert self.api.admin.post(f"{namespace}/tags", more, X_Openstack_Append="True").status_code == 201
        assert names() == {"safety", "hardware", "more"}
        assert self.api.admin.post(f"{namespace}/tags", more, X_Openstack_Append="True").status_code == 409
        response = self.api.admin.post(f"{namespace}/tags", more)
        assert (response.status_code, response.json) == (201, more)
        assert names() == {"more"}

    @pytest.mark.parametrize("part", ["objects", "properties", "tags"])
    def test_all_of_a_kind_are_removed(self, namespace, part):
        assert self.api.admin.delete(f"{namespace}/{part}").status_code == 204
        assert not self.api.alice.get(f"{namespace}/{part}").json[part]

    def test_namespace_is_associated_with_resource_types(self, namespace):
        path = f"{namespace}/resource_types"
        body = {"name": "OS::Nova::Flavor", "prefix": "hw:"}
        made = self.api.admin.post(path, body)
        assert (made.status_code, made.json["prefix"]) == (201, "hw:")
        assert self.api.admin.post(path, body).status_code == 409
        listed = self.api.alice.get(path).json["resource_type_associations"]
        assert {each["name"] for each in listed} == {"OS::Nova::Flavor", "OS::Glance::Image", "OS::Cinder::Volume"}
        assert self.api.admin.delete(f"{path}/OS::Nova::Flavor").status_code == 204
        assert self.api.admin.delete(f"{path}/OS::Nova::Flavor").status_code == 404
        types = self.api.alice.get("/v2/metadefs/resource_types").json["resource_types"]
        assert [each["name"] for each in types] == ["OS::Cinder::Volume", "OS::Glance::Image", "OS::Nova::Flavor"]


class TestWhatEnters(Metadefs):
    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"namespace": ""},
            {"namespace": "n" * 81},
            {"namespace": "a/b"},
            {"namespace": 7},
            {"namespace": "x", "visibility": "shared"},
            {"namespace": "x", "display_name": "d" * 81},
            {"namespace": "x", "description": "d" * 501},
            {"namespace": "x", "unknown": 1},
            {"namespace": "x", "properties": {"p": {"title": "P"}}},
            {"namespace": "x", "properties": {"p": {"title": "P", "type": "text"}}},
            {"namespace": "x", "properties": {"p": {"title": "P", "type": "string", "pattern": "("}}},
            {
                "namespace": "x",
                "properties": {"p": {"title": "P", "type": "string", "pattern": "(?:" * 900 + ")" * 900}},
            },
            {"namespace": "x", "properties": {"p": {"title": "P", "type": "string", "pattern": "x" * 4001}}},
            {"namespace": "x", "properties": {"p": {"title": "P", "type": "string", "pattern": "(?a)(?u)x"}}},
            {"namespace": "x", "properties": {"p" * 81: {"title": "P", "type": "string"}}},
            {"namespace": "x", "objects": [{"description": "no name"}]},
            {"namespace": "x", "tags": [{"name": "t" * 81}]},
            {"namespace": "x", "resource_type_associations": [{"prefix": "p"}]},
            {"namespace": "\ud800"},
            {"namespace": "x\0"},
            {"namespace": "x", "objects": [{"name": "o", "description": "\ud800"}]},
        ],
    )
    def test_wrong_namespaces_are_refused_and_nothing_is_made(self, body):
        response = self.api.admin.request("POST", ROOT, {"Content-Type": "application/json"}, body=json.dumps(body))
        assert response.status_code == 400, response.text
        assert self.api.admin.get(ROOT).json["namespaces"] == []

    def test_patterns_are_not_compiled(self, monkeypatch):
        def compiled(*arguments):
            raise AssertionError("compiling this one takes seconds")

        monkeypatch.setattr(re, "compile", compiled)
        pattern = "(?i)" + "[!-\uffff]" * 799
        assert FORMATS.conforms(pattern, "regex")
        assert not FORMATS.conforms(pattern + "(", "regex")

    def test_number_without_a_form_in_json_is_refused(self, namespace):
        body = '{"name": "n", "title": "N", "type": "number", "maximum": 1e999}'
        response = self.api.admin.request(
            "POST", f"{namespace}/properties", {"Content-Type": "application/json"}, body=body
        )
        assert response.status_code == 400
        assert self.api.admin.get(f"{namespace}/properties").status_code == 200

    @pytest.mark.parametrize("name", ["self", "schema", "created_at", "updated_at"])
    def test_what_the_service_sets_cannot_be_given(self, namespace, name):
        body = {"namespace": "x", name: "2026-01-01T00:00:00Z"}
        assert self.api.admin.post(ROOT, body).status_code == 403
        body = {"name": "x", name: "2026-01-01T00:00:00Z"}
        assert self.api.admin.post(f"{namespace}/objects", body).status_code == 403

    def test_a_namespace_holds_so_many_and_so_much(self, namespace):
        tags = {"tags": [{"name": f"t{number}"} for number in range(metadefs.MOST + 1)]}
        assert self.api.admin.post(f"{namespace}/tags", tags).status_code == 413
        for number in range(80):
            body = {"name": f"large {number}", "description": "d" * 60_000}
            status = self.api.admin.post(f"{namespace}/objects", body).status_code
            if status != 201:
                break
        assert status == 413
        assert number > metadefs.LARGEST / 60_100 - 2
        assert self.api.admin.get(f"{namespace}/tags").json["tags"]


class TestSchemas(Metadefs):
    def test_every_document_is_as_its_schema_says(self, namespace):
        self.api.admin.post(f"{namespace}/resource_types", {"name": "OS::Nova::Flavor", "prefix": "hw:"})
        documents = {
            "namespace": self.api.alice.get(namespace).json,
            "namespaces": self.api.alice.get(f"{ROOT}?limit=1").json,
            "object": self.api.alice.get(f"{namespace}/objects/Timer").json,
            "objects": self.api.alice.get(f"{namespace}/objects").json,
            "property": self.api.alice.get(f"{namespace}/properties/action").json,
            "properties": self.api.alice.get(f"{namespace}/properties").json,
            "tag": self.api.alice.get(f"{namespace}/tags/safety").json,
            "tags": self.api.alice.get(f"{namespace}/tags").json,
            "resource_type": self.api.alice.get(f"{namespace}/resource_types").json["resource_type_associations"][0],
            "resource_types": self.api.alice.get(f"{namespace}/resource_types").json,
        }
        for name, document in documents.items():
            schema = self.api.alice.get(f"/v2/schemas/metadefs/{name}").json
            Draft4Validator.check_schema(schema)
            Draft4Validator({**schema, "type": "object"}).validate(document)
            assert document.keys() <= schema["properties"].keys(), name

    def test_unknown_schema_is_not_found(self):
        assert self.api.alice.get("/v2/schemas/metadefs/nothing").status_code == 404


class TestNotifications(Metadefs):
    def test_what_changes_is_told(self, namespace):
        self.api.admin.put(namespace, {"namespace": "Renamed", "visibility": "public"})
        self.api.admin.post(f"{ROOT}/Renamed/objects", {"name": "o"})
        self.api.admin.put(f"{ROOT}/Renamed/objects/o", {"name": "p"})
        self.api.admin.delete(f"{ROOT}/Renamed/tags")
        self.api.admin.delete(f"{ROOT}/Renamed/resource_types/OS::Glance::Image")
        self.api.admin.delete(f"{ROOT}/Renamed")
        told = [(event, payload["namespace"]) for _, event, payload in self.api.events]
        assert told == [
            ("metadef_namespace.create", FULL["namespace"]),
            ("metadef_namespace.update", "Renamed"),
            ("metadef_object.create", "Renamed"),
            ("metadef_object.update", "Renamed"),
            ("metadef_namespace.delete_tags", "Renamed"),
            ("metadef_resource_type.delete", "Renamed"),
            ("metadef_namespace.delete", "Renamed"),
        ]
        renamed = self.api.events[1][2]
        assert (renamed["namespace_old"], renamed["owner"]) == (FULL["namespace"], "admins")
        assert self.api.events[3][2]["name_old"] == "o"
