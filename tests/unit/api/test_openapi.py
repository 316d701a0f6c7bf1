# SPDX-License-Identifier: Apache-2.0
"""``/openapi.json``: complete, made of the same data as the API itself, and open to everybody without telling much."""

from __future__ import annotations

import json
import re

import falcon
import jsonschema
import pytest
from deployment import Deployed, Deployment

from storelib.api import openapi, v1, v2
from storelib.api.describing import operation_of
from storelib.api.v2 import query


class TestDescription(Deployed):
    @pytest.fixture
    def found(self):
        response = self.api.nobody.get("/openapi.json")
        assert (response.status_code, response.headers["Content-Type"]) == (200, "application/json")
        return response.json

    @pytest.fixture
    def routes(self):
        app = openapi.Routes()
        v2.add_routes(app, self.api.service)
        v1.add_routes(app, self.api.service)
        return app.routes

    def test_every_operation_is_described(self, routes):
        """With ``storelib.api.describing.described``, beside its responder."""
        said = {
            f"{method} {path}": operation_of(responder) for path, method, _, responder in openapi.operations(routes)
        }
        assert [name for name, operation in said.items() if operation is None] == []
        assert len(said) > 60

    def test_every_operation_of_every_route_is_in_it(self, found, routes):
        there = {(path, method.upper()) for path, methods in found["paths"].items() for method in methods}
        plain = {(re.sub(r":\w+}", "}", path), method) for path, method, _, _ in openapi.operations(routes)}
        assert there == plain

    def test_ids_of_operations_are_their_own(self, found):
        ids = [operation["operationId"] for methods in found["paths"].values() for operation in methods.values()]
        assert len(set(ids)) == len(ids)

    def test_every_reference_leads_to_a_schema(self, found):
        names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(found)))
        assert names <= found["components"]["schemas"].keys()
        assert "#/definitions" not in json.dumps(found)

    def test_filters_of_lists_are_those_that_are_read(self, found):
        names = {each["name"] for each in found["paths"]["/v2/images"]["get"]["parameters"]}
        assert {"limit", "marker", "sort", "tag", "size_min", "protected", "member_status", "updated_at"} <= names
        for name in names - {"sort_key", "sort_dir", "sort", "limit", "marker", "tag"}:
            wrong = self.api.alice.get(f"/v2/images?{name}=in:%22x")
            text = query.TEXTS
            assert wrong.status_code == (200 if name in text else 400), name

    def test_summaries_name_what_they_are_about(self, found):
        """They stand alone: nothing before them says what "it" would be."""
        summaries = [operation["summary"] for path in found["paths"].values() for operation in path.values()]
        assert [each for each in summaries if {"it", "them", "those", "one"} & set(each.split()[:2])] == []
        assert min(len(each.split()) for each in summaries) > 2

    def test_schemas_have_this_deployments_formats(self, found):
        formats = self.api.alice.get("/v2/schemas/image").json["properties"]["disk_format"]["enum"]
        assert found["components"]["schemas"]["new-image"]["properties"]["disk_format"]["enum"] == formats

    def test_read_only_properties_are_not_taken(self, found):
        schemas = found["components"]["schemas"]
        assert {"status", "size", "stores"} <= schemas["image"]["properties"].keys()
        assert not {"status", "size", "stores", "locations"} & schemas["new-image"]["properties"].keys()

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ({"method": {"name": "glance-direct"}}, 409),
            ({"method": {"name": "glance-direct", "uri": "http://x/"}}, 400),
            ({"method": {"name": "web-download"}}, 400),
            ({"method": {"name": "carrier-pigeon"}}, 400),
            ({"method": {"name": "glance-download", "glance_region": "x"}}, 400),
            ({"method": {"name": "copy-image"}, "stores": ["mem"], "all_stores": True}, 400),
            ({"method": {"name": "copy-image"}, "stores": []}, 400),
            ({"method": {"name": "copy-image"}, "stores": ["mem"], "all_stores": False}, 202),
        ],
    )
    def test_bodies_of_imports_are_those_that_are_taken(self, found, body, status):
        image = self.api.alice.active()
        response = self.api.admin.post(f"/v2/images/{image}/import", body)
        assert response.status_code == status
        validator = jsonschema.Draft202012Validator(found["components"]["schemas"]["import"])
        assert validator.is_valid(body) is (status != 400)

    @pytest.mark.parametrize(("name", "status"), [("", 400), ("x", 201), ("x" * 255, 201), ("x" * 256, 400)])
    def test_names_of_properties_are_those_that_are_taken(self, found, name, status):
        assert self.api.alice.post("/v2/images", {name: "x"}).status_code == status
        validator = jsonschema.Draft202012Validator(found["components"]["schemas"]["new-image"])
        assert validator.is_valid({name: "x"}) is (status == 201)

    def test_servers_are_where_the_client_found_it(self, found):
        assert found["servers"] == [{"url": "http://falconframework.org"}]
        mounted = self.api.nobody.request("GET", "/openapi.json", root_path="/image").json
        assert mounted["servers"] == [{"url": "http://falconframework.org/image"}]

    @pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("POST", 405), ("DELETE", 405)])
    def test_it_can_only_be_read(self, method, status):
        response = self.api.nobody.request(method, "/openapi.json")
        assert (response.status_code, bool(response.content)) == (status, status == 405)


def test_what_an_operator_has_for_users_is_not_told_to_everybody(tmp_path):
    path = tmp_path / "image.json"
    path.write_text(json.dumps({"rack_of_project_x": {"type": "integer"}}))
    api = Deployment(tmp_path, property_schema_file=path)
    assert "rack_of_project_x" not in api.nobody.get("/openapi.json").text
    assert "rack_of_project_x" in api.alice.get("/v2/schemas/image").text
    api.close()


def test_routes_of_falcon_are_kept_with_their_resources():
    class Thing:
        def on_get(self, req, resp): ...

    app, thing = openapi.Routes(), Thing()
    app.add_route("/thing", thing)
    assert app.routes == [("/thing", thing)]
    assert isinstance(app, falcon.App)
