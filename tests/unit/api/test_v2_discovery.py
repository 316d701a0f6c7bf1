# SPDX-License-Identifier: Apache-2.0
"""What v2 tells of itself: versions, schemas, stores, import methods, health, metrics. And how it can be configured."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import jsonschema
import pytest
from deployment import Deployed, Deployment

from storelib.api.service.stores import Stores
from storelib.exceptions import BadStoreConfiguration
from storelib.registry import Registry


class TestVersions(Deployed):
    @pytest.mark.parametrize(("path", "status"), [("/", 300), ("/versions", 200), ("/v3/images", 300), ("/v2", 300)])
    def test_versions_are_listed_without_a_token(self, path, status):
        answer = self.api.nobody.get(path)
        assert answer.status_code == status
        versions = answer.json["versions"]
        assert versions[0]["id"] == "v2.17"
        assert [version["status"] for version in versions].count("CURRENT") == 1
        assert [version["id"] for version in versions[-3:]] == ["v2.0", "v1.1", "v1.0"]
        assert versions[0]["links"] == [{"rel": "self", "href": "http://falconframework.org/v2/"}]

    def test_the_head_of_the_list_has_no_body(self):
        answer = self.api.nobody.request("HEAD", "/versions")
        assert (answer.status_code, answer.content) == (200, b"")

    @pytest.mark.parametrize("prefix", ["v2", *(f"v2.{minor}" for minor in range(19))])
    def test_every_minor_version_is_the_same(self, prefix):
        assert self.api.alice.get(f"/{prefix}/images").status_code == 200
        accepted = f"application/vnd.openstack.images-{prefix}"
        assert self.api.alice.get("/images", Accept=accepted).status_code == 200

    @pytest.mark.parametrize("prefix", ["v2.19", "v2.01", "v2.", "v2.x", "v1.2", "v0"])
    def test_a_version_that_never_was_gets_the_list(self, prefix):
        answer = self.api.alice.get(f"/{prefix}/images")
        assert (answer.status_code, answer.json["versions"][0]["id"]) == (300, "v2.17")

    def test_the_accept_header_may_name_the_version(self):
        answer = self.api.alice.get("/images", Accept="application/vnd.openstack.images-v2.1")
        assert answer.status_code == 200

    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
    @pytest.mark.parametrize("path", ["/v2/images/", "/v2.5/images/", "/v2/tasks/", "/v2/images/{image}/members/"])
    def test_nothing_has_an_empty_id(self, path, method):
        """Clients build paths of ids: an empty one must not name the whole collection."""
        image = self.api.alice.active(visibility="shared")
        answer = self.api.admin.request(method, path.format(image=image), {"Content-Type": "application/json"})
        assert answer.status_code == 404
        assert self.api.alice.show(image)["status"] == "active"

    @pytest.mark.parametrize("path", ["/v2/images/{image}/", "/v2/info/stores/", "/v2/schemas/image/"])
    def test_a_slash_behind_the_name_of_one_thing_says_nothing(self, path):
        image = self.api.alice.create()
        assert self.api.alice.get(path.format(image=image)).status_code == 200

    @pytest.mark.parametrize("path", ["/v2/", "/v2/nothing", "/v2/images/a/b/c"])
    def test_what_is_not_there_is_not_found(self, path):
        assert self.api.alice.get(path).status_code in (300, 404)


class TestPublicEndpoint(Deployed):
    options = {"public_endpoint": "https://images.example.org/api/"}  # noqa: RUF012

    def test_links_of_versions_use_it(self):
        [link] = self.api.nobody.get("/").json["versions"][0]["links"]
        assert link["href"] == "https://images.example.org/api/v2/"


class TestAround(Deployed):
    def test_health_is_told_without_a_token(self):
        assert self.api.nobody.get("/healthcheck").status_code == 200

    def test_metrics_count_requests_and_bytes(self):
        image = self.api.alice.active(b"12345")
        self.api.alice.download(image)
        text = self.api.nobody.get("/metrics").text
        route = 'method="GET",route="/v2/images/{image_id}/file",status="200"'
        assert f"storelib_api_request_seconds_count{{{route}}} 1.0" in text
        assert "storelib_api_image_bytes_sent_total 5.0" in text
        assert "storelib_api_image_bytes_received_total 5.0" in text

    @pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
    def test_methods_that_clients_make_up_are_counted_as_one(self):
        """Each value of a label takes memory for ever, and needs no token."""
        for number in range(20):
            self.api.nobody.request(f"MADEUP{number}", "/v2/images")
            self.api.nobody.request("get", f"/no/such/route/{number}")
        text = self.api.nobody.get("/metrics").text
        assert "MADEUP" not in text
        assert "such" not in text
        assert 'method="other"' in text

    def test_bytes_are_counted_that_come_in_chunks(self):
        image, before = self.api.alice.create(), self.received()
        chunked = {"Content-Type": "application/octet-stream", "Transfer-Encoding": "chunked"}
        body = {"wsgi.input": io.BytesIO(b"12345678")}
        assert self.api.alice.request("PUT", f"/v2/images/{image}/file", chunked, extras=body).status_code == 204
        assert self.received() == before + 8

    def test_bytes_of_version_1_are_counted(self):
        received, sent = self.received(), self.counted("sent")
        formats = {"X-Image-Meta-Disk-Format": "raw", "X-Image-Meta-Container-Format": "bare"}
        headers = {"Content-Type": "application/octet-stream", **formats}
        image = self.api.alice.request("POST", "/v1/images", headers, body=b"1234567").json["image"]["id"]
        assert self.api.alice.get(f"/v1/images/{image}").content == b"1234567"
        assert (self.received(), self.counted("sent")) == (received + 7, sent + 7)

    def received(self):
        return self.counted("received")

    def counted(self, which):
        lines = self.api.nobody.get("/metrics").text.splitlines()
        [number] = [line.split()[1] for line in lines if line.startswith(f"storelib_api_image_bytes_{which}_total")]
        return float(number)


S3 = {"s3_store_host": "s3.example", "s3_store_bucket": "b", "s3_store_bucket_url_format": "auto"}
SWIFT = {
    "swift_store_auth_address": "https://keys.example",
    "swift_store_user": "p:u",
    "swift_store_key": "secret",
}
VMWARE = {
    "vmware_server_host": "vc.example",
    "vmware_server_username": "u",
    "vmware_server_password": "secret",
    "vmware_datastores": "dc:ds",
}


class TestInfo(Deployed):
    def test_import_methods(self):
        methods = self.api.alice.get("/v2/info/import").json["import-methods"]
        assert methods["type"] == "array"
        assert methods["value"] == ["glance-direct", "web-download", "copy-image"]

    def test_stores(self):
        assert self.api.alice.get("/v2/info/stores").json == {
            "stores": [
                {"id": "fast", "default": "true"},
                {"id": "mem"},
                {"id": "spare", "description": "The spare one"},
            ]
        }

    def test_details_of_stores_are_for_administrators_and_services(self):
        answers = [getattr(self.api, name).get("/v2/info/stores/detail") for name in ("alice", "admin", "nova")]
        assert [answer.status_code for answer in answers] == [403, 200, 200]
        fast, _, spare = answers[1].json["stores"]
        assert (fast["type"], fast["weight"]) == ("file", 5)
        assert fast["properties"]["datadir"] == f"{self.api.directory}/images"
        assert spare["weight"] == 10

    @pytest.mark.parametrize(
        ("driver", "options", "properties"),
        [
            ("s3", S3, {"host": "s3.example", "bucket": "b", "bucket_url_format": "auto"}),
            ("swift", SWIFT, {"container": "glance", "multi_tenant": False}),
            ("vmware", VMWARE, {"vmware_datastores": ["dc:ds"], "image_dir": "/openstack_glance"}),
            ("vsphere", VMWARE, {"vmware_datastores": ["dc:ds"], "image_dir": "/openstack_glance"}),
        ],
    )
    def test_type_of_a_store_is_its_driver(self, tmp_path, driver, options, properties):
        lines = "\n".join(f"{key} = {value}" for key, value in options.items())
        (tmp_path / "stores.ini").write_text(f"[storelib]\nstores = {driver}\n{lines}\n")
        anybody = SimpleNamespace(require=lambda *arguments: None)
        core = SimpleNamespace(registry=Registry.from_file(tmp_path / "stores.ini"), policy=anybody)
        [detail] = Stores(core).detail(None)
        assert detail["type"] == {"vsphere": "vmware"}.get(driver, driver)
        assert {name: detail["properties"][name] for name in properties} == properties
        assert "secret" not in str(detail)

    def test_usage_is_not_limited(self):
        assert self.api.alice.get("/v2/info/usage").json == {"usage": {}}


class TestSchemas(Deployed):
    @pytest.mark.parametrize("name", ["image", "images", "member", "members", "task", "tasks"])
    def test_there_is_a_valid_schema(self, name):
        document = self.api.alice.get(f"/v2/schemas/{name}").json
        jsonschema.Draft4Validator.check_schema(document)
        assert document["name"] == name

    def test_other_schemas_are_not_there(self):
        assert self.api.alice.get("/v2/schemas/nothing").status_code == 404

    @pytest.mark.parametrize("kind", ["image", "member", "task"])
    def test_every_key_of_a_document_is_in_its_schema(self, kind):
        """Clients take what is not there for a custom property, and write it back."""
        image = self.api.alice.active(visibility="shared")
        self.api.alice.post(f"/v2/images/{image}/members", {"member": "beta"})
        url = f"/v2/images/{image}/import"
        copy = {"method": {"name": "copy-image"}, "stores": ["mem"], "all_stores_must_succeed": False}
        assert self.api.admin.post(url, copy).status_code == 202
        self.api.settle()
        documents = {
            "image": self.api.admin.show(image),
            "member": self.api.admin.get(f"/v2/images/{image}/members").json["members"][0],
            "task": self.api.admin.get(f"/v2/images/{image}/tasks").json["tasks"][0],
        }
        schema = self.api.alice.get(f"/v2/schemas/{kind}").json["properties"]
        document = {name for name in documents[kind] if not name.startswith("os_glance")}
        assert document <= schema.keys()
        if kind == "image":
            assert documents["image"]["stores"] == "fast,mem"
            assert schema["stores"]["readOnly"]
            names = ("stores", "status", "size")
            assert all(
                self.api.alice.patch(image, {"op": "replace", "path": f"/{name}", "value": "x"}).status_code == 403
                for name in names
            )

    def test_the_image_schema_is_permissive(self):
        document = self.api.alice.get("/v2/schemas/image").json
        assert document["additionalProperties"] == {"type": "string"}
        assert {link["rel"] for link in document["links"]} == {"self", "enclosure", "describedby"}
        assert document["properties"]["os_distro"]["is_base"] is False

    def test_images_are_as_their_schema_says(self):
        image = self.api.alice.show(self.api.alice.active(b"x", colour="red", tags=["a"]))
        jsonschema.validate(image, self.api.alice.get("/v2/schemas/image").json, jsonschema.Draft4Validator)

    def test_lists_are_as_their_schema_says(self):
        self.api.alice.create()
        listed = self.api.alice.get("/v2/images?limit=1").json
        jsonschema.validate(listed, self.api.alice.get("/v2/schemas/images").json, jsonschema.Draft4Validator)


class TestKeysOfDocuments(Deployed):
    """Everything that can be shown is: clients take a key that the schema lacks for a property of the user's own."""

    options = {"show_image_direct_url": "true", "show_multiple_locations": "true"}  # noqa: RUF012

    @pytest.mark.parametrize("kind", ["image", "images", "member", "members", "task", "tasks"])
    def test_every_key_is_in_the_schema(self, kind):
        for image in (self.api.alice.active(visibility="shared"), self.api.alice.active(visibility="shared")):
            self.api.alice.post(f"/v2/images/{image}/members", {"member": "beta"})
            copy = {"method": {"name": "copy-image"}, "stores": ["mem"]}
            assert self.api.admin.post(f"/v2/images/{image}/import", copy).status_code == 202
        self.api.settle()
        documents = {
            "images": self.api.alice.get("/v2/images?limit=1").json,
            "members": self.api.alice.get(f"/v2/images/{image}/members").json,
            "tasks": self.api.admin.get("/v2/tasks?limit=1").json,
        }
        documents |= {name.removesuffix("s"): listed[name][0] for name, listed in documents.items()}
        shown = documents[kind]
        expected = {"image": {"stores", "locations", "direct_url"}, "images": {"next"}, "tasks": {"next"}}
        assert expected.get(kind, set()) <= shown.keys()
        assert shown.keys() <= self.api.alice.get(f"/v2/schemas/{kind}").json["properties"].keys()


class TestStrictSchema(Deployed):
    options = {"allow_additional_image_properties": "false"}  # noqa: RUF012

    def test_the_image_schema_is_strict(self):
        document = self.api.alice.get("/v2/schemas/image").json
        assert document["additionalProperties"] is False
        assert "links" not in document

    def test_unknown_properties_are_refused(self):
        image = self.api.alice.create(os_distro="debian")
        assert self.api.alice.post("/v2/images", {"colour": "red"}).status_code == 400
        assert "'colour'" in self.api.alice.post("/v2/images", {"colour": "red"}).text
        operations = [{"op": "add", "path": f"/{name}", "value": "x"} for name in ("colour", "os_version")]
        answers = [self.api.alice.patch(image, operation).status_code for operation in operations]
        assert answers == [400, 200]

    def test_images_with_data_are_as_their_schema_says(self):
        image = self.api.alice.show(self.api.alice.active(b"x"))
        jsonschema.validate(image, self.api.alice.get("/v2/schemas/image").json, jsonschema.Draft4Validator)


class TestOwnProperties:
    @pytest.fixture
    def deploy(self, tmp_path):
        made = []

        def start(document, **options):
            path = tmp_path / "schema-image.json"
            path.write_text(document if isinstance(document, str) else json.dumps(document))
            made.append(Deployment(tmp_path, property_schema_file=path, **options))
            return made[-1]

        yield start
        for deployment in made:
            deployment.close()

    @pytest.mark.parametrize("wrapped", [False, True])
    def test_the_operators_properties_are_in_the_schema_and_checked(self, deploy, wrapped):
        own = {"shelf": {"type": "string", "enum": ["left", "right"], "description": "Where it is"}}
        api = deploy({"properties": own} if wrapped else own)
        assert api.alice.get("/v2/schemas/image").json["properties"]["shelf"]["enum"] == ["left", "right"]
        assert api.alice.post("/v2/images", {"shelf": "left"}).status_code == 201
        assert api.alice.post("/v2/images", {"shelf": "middle"}).status_code == 400

    def test_a_property_may_be_digits(self, deploy):
        api = deploy({"shelf": {"type": "string", "pattern": "^[0-9]+$"}}, allow_additional_image_properties="false")
        assert api.alice.post("/v2/images", {"shelf": "7"}).status_code == 201

    @pytest.mark.parametrize(
        ("definition", "first", "second"),
        [
            ({"type": "integer"}, 7, 8),
            ({"type": "number"}, 0.5, 3),
            ({"type": ["integer", "number"]}, 7.0, 8),
            ({"type": "boolean"}, True, False),
            ({"type": ["integer", "null"]}, None, 7),
            ({"type": "array", "items": {"type": "string"}}, ["ä"], []),
            ({"type": ["string", "null"]}, "7", None),
        ],
    )
    def test_a_property_keeps_its_type(self, deploy, definition, first, second):
        api = deploy({"shelf": definition})
        image = api.alice.create(shelf=first)
        shown = [api.alice.show(image)["shelf"]]
        shown.append(api.alice.patch(image, {"op": "replace", "path": "/shelf", "value": second}).json["shelf"])
        assert shown == [first, second]
        jsonschema.validate(api.alice.show(image), api.alice.get("/v2/schemas/image").json, jsonschema.Draft4Validator)

    @pytest.mark.parametrize("kind", ["integer", ["integer", "null"]])
    def test_an_integer_may_be_written_with_a_point(self, deploy, kind):
        api = deploy({"shelf": {"type": kind}})
        image = api.alice.create(shelf=7.0)
        texts = [api.alice.get(f"/v2/images/{image}").text]
        texts.append(api.alice.patch(image, {"op": "replace", "path": "/shelf", "value": -8.0}).text)
        assert ['"shelf":7,' in texts[0], '"shelf":-8,' in texts[1]] == [True, True]

    def test_what_is_required_is_there_from_the_beginning_to_the_end(self, deploy):
        api = deploy({"properties": {"shelf": {"type": "string"}}, "required": ["shelf", "name"]})
        bodies = [{"name": "x"}, {"shelf": "x"}, {"name": "x", "shelf": "y"}]
        answers = [api.alice.post("/v2/images", body) for body in bodies]
        assert [answer.status_code for answer in answers] == [400, 400, 201]
        image = answers[2].json["id"]
        operations = [
            {"op": "remove", "path": "/shelf"},
            {"op": "replace", "path": "/shelf", "value": "z"},
            {"op": "add", "path": "/colour", "value": "red"},
        ]
        assert [api.alice.patch(image, operation).status_code for operation in operations] == [403, 200, 200]

    def test_images_are_found_by_properties_that_are_no_strings(self, deploy):
        api = deploy({"shelf": {"type": "integer"}})
        image = api.alice.create(shelf=7)
        api.alice.create(shelf=8)
        assert [found["id"] for found in api.alice.get("/v2/images?shelf=7").json["images"]] == [image]

    @pytest.mark.parametrize("value", ["7", 7.5, True])
    def test_a_value_of_another_type_is_refused(self, deploy, value):
        assert deploy({"shelf": {"type": "integer"}}).alice.post("/v2/images", {"shelf": value}).status_code == 400

    def test_a_base_property_that_is_defined_differently_stops_the_start(self, deploy):
        with pytest.raises(BadStoreConfiguration, match="'min_ram'"):
            deploy({"min_ram": {"type": "string"}})

    @pytest.mark.parametrize(
        "document",
        [
            "{",
            "[]",
            '"x"',
            {"shelf": "string"},
            {"shelf": {"type": "thing"}},
            {"properties": []},
            {"properties": "x"},
            {"properties": {}, "required": "shelf"},
            {"shelf": {"$ref": "#/nowhere"}},
        ],
    )
    def test_a_file_that_is_no_schema_stops_the_start(self, deploy, document):
        with pytest.raises(BadStoreConfiguration, match="property_schema_file"):
            deploy(document)

    def test_a_file_that_is_not_there_stops_the_start(self, tmp_path):
        with pytest.raises(BadStoreConfiguration, match="nowhere.json"):
            Deployment(tmp_path, property_schema_file=tmp_path / "nowhere.json")


class TestWithoutStaging(Deployed):
    options = {"enabled_import_methods": "web-download"}  # noqa: RUF012

    def test_what_is_not_enabled_is_not_told(self):
        assert self.api.alice.get("/v2/info/import").json["import-methods"]["value"] == ["web-download"]

    def test_nothing_can_be_staged(self):
        image = self.api.alice.create()
        headers = {"Content-Type": "application/octet-stream"}
        assert self.api.alice.request("PUT", f"/v2/images/{image}/stage", headers, body="x").status_code == 404


class TestProtectedProperties:
    RULES = """
[^team_]
create = member
read = @
update = admin
delete = !
[^secret_]
create = admin
read = admin
update = admin
delete = admin
[.*]
create = @
read = @
update = @
delete = @
"""

    @pytest.fixture
    def api(self, tmp_path):
        path = tmp_path / "property-protections.conf"
        path.write_text(self.RULES)
        api = Deployment(tmp_path, property_protection_file=path)
        yield api
        api.close()

    def test_rules_say_who_may_do_what(self, api):
        image = api.alice.create(team_name="red", free="x")
        assert api.alice.show(image)["team_name"] == "red"
        changes = [
            {"op": "replace", "path": "/team_name", "value": "blue"},
            {"op": "remove", "path": "/team_name"},
            {"op": "add", "path": "/secret_key", "value": "x"},
            {"op": "replace", "path": "/free", "value": "y"},
        ]
        assert [api.alice.patch(image, change).status_code for change in changes] == [403, 403, 403, 200]
        assert [api.admin.patch(image, change).status_code for change in changes] == [200, 403, 200, 200]

    def test_what_one_may_not_read_is_not_there(self, api):
        image = api.admin.create(owner="alpha", secret_key="x")
        assert "secret_key" not in api.alice.show(image)
        assert api.admin.show(image)["secret_key"] == "x"
        [listed] = api.alice.get("/v2/images").json["images"]
        assert "secret_key" not in listed

    def test_lists_do_not_tell_what_one_may_not_read(self, api):
        api.admin.create(owner="alpha", secret_key="x")
        found = [caller.get("/v2/images?secret_key=x").json["images"] for caller in (api.alice, api.admin)]
        assert [len(images) for images in found] == [0, 1]

    def test_what_one_may_not_create_is_refused_when_creating(self, api):
        assert api.alice.post("/v2/images", {"secret_key": "x"}).status_code == 403

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ("[(]\ncreate=@\nread=@\nupdate=@\ndelete=@", "regular expression"),
            ("[a]\ncreate=@\nread=@\nupdate=@", "delete"),
            ("[a]\ncreate=@,!\nread=@\nupdate=@\ndelete=@", "create"),
            ("create=@", "property_protection_file"),
        ],
    )
    def test_a_mistake_stops_the_start(self, tmp_path, text, named):
        path = tmp_path / "rules.conf"
        path.write_text(text)
        with pytest.raises(BadStoreConfiguration, match=named):
            Deployment(tmp_path, property_protection_file=path)

    def test_a_policy_that_does_not_exist_stops_the_start(self, tmp_path):
        path = tmp_path / "rules.conf"
        path.write_text("[a]\ncreate=nothing\nread=@\nupdate=@\ndelete=@")
        with pytest.raises(BadStoreConfiguration, match="'nothing'"):
            Deployment(tmp_path, property_protection_file=path, property_protection_rule_format="policies")

    def test_policies_may_decide(self, tmp_path):
        path = tmp_path / "rules.conf"
        path.write_text("[a]\ncreate=context_is_admin\nread=@\nupdate=@\ndelete=@")
        api = Deployment(tmp_path, property_protection_file=path, property_protection_rule_format="policies")
        answers = [caller.post("/v2/images", {"a": "x"}).status_code for caller in (api.alice, api.admin)]
        api.close()
        assert answers == [403, 201]
