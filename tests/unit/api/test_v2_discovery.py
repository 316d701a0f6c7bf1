# SPDX-License-Identifier: Apache-2.0
"""What v2 tells of itself: versions, schemas, stores, import methods, health, metrics. And how it can be configured."""

from __future__ import annotations

import contextlib
import io
import json
import time
from types import SimpleNamespace
from urllib.parse import urlencode

import disk_images
import falcon.testing
import jsonschema
import pytest
from deployment import Deployed, Deployment

from storelib.api.service.stores import Stores
from storelib.exceptions import BadStoreConfiguration
from storelib.registry import Registry


class TestVersions(Deployed):
    @pytest.mark.parametrize(
        ("path", "status"),
        [("/", 300), ("/versions", 200), ("/versions/", 200), ("/v3/images", 300), ("/v2", 300), ("/v2//", 300)],
    )
    def test_versions_are_listed_without_a_token(self, path, status):
        response = self.api.nobody.get(path)
        assert response.status_code == status
        versions = response.json["versions"]
        assert versions[0]["id"] == "v2.17"
        assert [version["status"] for version in versions].count("CURRENT") == 1
        assert [version["id"] for version in versions[-3:]] == ["v2.0", "v1.1", "v1.0"]
        assert versions[0]["links"] == [{"rel": "self", "href": "http://falconframework.org/v2/"}]

    def test_the_head_of_the_list_has_no_body(self):
        response = self.api.nobody.request("HEAD", "/versions")
        assert (response.status_code, response.content) == (200, b"")

    @pytest.mark.parametrize("prefix", ["v2", *(f"v2.{minor}" for minor in range(19))])
    def test_every_minor_version_is_the_same(self, prefix):
        assert self.api.alice.get(f"/{prefix}/images").status_code == 200
        accepted = f"application/vnd.openstack.images-{prefix}"
        assert self.api.alice.get("/images", Accept=accepted).status_code == 200

    @pytest.mark.parametrize("prefix", ["v2.19", "v2.01", "v2.", "v2.x", "v1.2", "v0"])
    def test_a_version_that_never_was_gets_the_list(self, prefix):
        response = self.api.alice.get(f"/{prefix}/images")
        assert (response.status_code, response.json["versions"][0]["id"]) == (300, "v2.17")

    def test_the_accept_header_may_name_the_version(self):
        response = self.api.alice.get("/images", Accept="application/vnd.openstack.images-v2.1")
        assert response.status_code == 200

    @pytest.mark.parametrize("path", ["//v2/images", "/v2//images", "/v2.5//images", "/v1//images"])
    def test_slashes_around_the_version_say_nothing(self, path):
        """Catalogues have endpoints with a slash at the end, and some clients begin with another."""
        assert "images" in self.api.alice.get(path).json

    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
    @pytest.mark.parametrize("path", ["/v2/images/", "/v2.5/images/", "/v2/tasks/", "/v2/images/{image}/members/"])
    def test_nothing_has_an_empty_id(self, path, method):
        """Clients build paths of ids: an empty one must not name the whole collection."""
        image = self.api.alice.active(visibility="shared")
        response = self.api.admin.request(method, path.format(image=image), {"Content-Type": "application/json"})
        assert response.status_code == 404
        assert self.api.alice.show(image)["status"] == "active"

    @pytest.mark.parametrize("name", ["image", "images", "member", "members", "task", "tasks"])
    def test_schemas_have_patterns_that_clients_in_any_language_know(self, name):
        text = self.api.alice.get(f"/v2/schemas/{name}").text
        assert '{12}$"' in text
        assert "\\Z" not in text

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

    def test_new_images_are_where_it_says(self):
        place = self.api.alice.post("/v2/images", {}, Host="elsewhere").headers["Location"]
        assert place.startswith("https://images.example.org/api/v2/images/")


class TestErrors(Deployed):
    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", "/v2/images/nothing", "404 Not Found"),
            ("GET", "/v2/images?limit=x", "400 Bad Request"),
            ("GET", "/v2/info/stores/detail", "403 Forbidden"),
            ("PUT", "/v2/images", "405 Method Not Allowed"),
            ("GET", "/v2/no/such/path", "404 Not Found"),
        ],
    )
    def test_glanceclient_which_shows_no_status_gets_it_in_the_message(self, method, path, status):
        """It prints ``HTTP`` and the message."""
        plain = self.api.alice.request(method, path).json["error"]
        told = self.api.alice.request(method, path, {"User-Agent": "python-glanceclient"}).json["error"]
        assert told["message"] == f"{status}: {plain['message']}"
        assert f"{plain['code']} {plain['title']}" == status


MOUNTS = [
    ({"root_path": "/image"}, "/image"),
    ({"root_path": "/im\xc3\xa4ge service/"}, "/im%C3%A4ge%20service"),
    ({"root_path": "//other.example"}, "/other.example"),
    ({}, ""),
]


class TestMountPoint(Deployed):
    """A server in front may give the API a path of its own."""

    @pytest.mark.parametrize(("mounted", "prefix"), MOUNTS)
    def test_links_of_versions_have_it(self, mounted, prefix):
        [link] = self.api.nobody.request("GET", "/", **mounted).json["versions"][0]["links"]
        assert link["href"] == f"http://falconframework.org{prefix}/v2/"

    @pytest.mark.parametrize(("mounted", "prefix"), MOUNTS)
    @pytest.mark.parametrize(
        ("path", "body"),
        [("/v2/images", {}), ("/v1/images", None), ("/v2/metadefs/namespaces", {"namespace": "A b"})],
    )
    def test_the_place_of_something_new_has_it(self, mounted, prefix, path, body):
        body = {} if body is None else {"json": body}
        response = self.api.admin.request("POST", path, **mounted, **body)
        assert response.status_code == 201
        place = response.headers["Location"]
        assert place.startswith(f"{prefix}{path}/")
        assert self.api.admin.request("HEAD" if "v1" in path else "GET", place.removeprefix(prefix)).status_code == 200
        self.api.admin.delete(place.removeprefix(prefix))

    def test_links_in_documents_do_not_have_it(self):
        """Clients put them behind the endpoint, which has the mount point already."""
        for _ in range(2):
            self.api.alice.create()
        listed = self.api.alice.request("GET", "/v2/images?limit=1", root_path="/image").json
        image = listed["images"][0]
        assert all(link.startswith("/v2/") for link in (listed["next"], listed["first"], image["self"], image["file"]))


class TestBehindProxy(Deployed):
    options = {"[oslo_middleware]\nenable_proxy_headers_parsing": "true"}  # noqa: RUF012
    forwarded = {  # noqa: RUF012
        "X_Forwarded_Proto": "https",
        "X_Forwarded_Host": "cloud.example.org",
        "X_Forwarded_Prefix": "/image",
    }

    def test_links_are_as_the_proxys_clients_see_them(self):
        [link] = self.api.nobody.get("/versions", **self.forwarded).json["versions"][0]["links"]
        assert link["href"] == "https://cloud.example.org/image/v2/"

    def test_the_place_of_a_new_image_has_the_proxys_prefix(self):
        place = self.api.alice.post("/v2/images", {}, **self.forwarded).headers["Location"]
        assert place.startswith("https://cloud.example.org/image/v2/images/")


class TestProxyThatIsNotBelieved(Deployed):
    def test_headers_of_anybody_change_no_link(self):
        response = self.api.alice.post("/v2/images", {}, **TestBehindProxy.forwarded)
        assert response.headers["Location"].startswith("/v2/images/")


PAGE = "https://horizon.example.org"


class TestCrossOrigin(Deployed):
    options = {"[cors]\nallowed_origin": f"{PAGE},https://other.example.org"}  # noqa: RUF012

    def test_scripts_of_a_page_may_ask(self):
        response = self.api.nobody.request(
            "OPTIONS",
            "/v2/images",
            {
                "Origin": PAGE,
                "Access-Control-Request-Method": "PATCH",
                "Access-Control-Request-Headers": "X-Auth-Token, Content-Type, x-openstack-image-size",
            },
        )
        assert (response.status_code, response.headers["Access-Control-Allow-Origin"]) == (200, PAGE)
        assert response.headers["Access-Control-Allow-Methods"] == "PATCH"
        assert "X-Auth-Token" in response.headers["Access-Control-Allow-Headers"]

    @pytest.mark.parametrize(
        ("path", "status"),
        [
            ("/v2/images", 200),
            ("/v2/images/nothing", 404),
            ("/v2/no/such/thing", 404),
            ("/v2/images?limit=x", 400),
            ("/v2/info/stores/detail", 403),
            ("/", 300),
            ("/healthcheck", 200),
            ("/metrics", 200),
        ],
    )
    def test_scripts_of_a_page_may_read_what_comes_back(self, path, status):
        response = self.api.alice.get(path, Origin=PAGE)
        assert (response.status_code, response.headers["Access-Control-Allow-Origin"]) == (status, PAGE)
        assert "X-OpenStack-Request-ID" in response.headers["Access-Control-Expose-Headers"]

    def test_scripts_of_other_pages_may_not(self):
        response = self.api.alice.get("/v2/images", Origin="https://evil.example.org")
        assert not [name for name in response.headers if name.lower().startswith("access-control")]

    def test_data_is_sent_and_taken_as_ever(self):
        image = self.api.alice.active(b"0123456789")
        assert self.api.alice.download(image, Origin=PAGE, Range="bytes=2-4").content == b"234"


class TestNoCrossOrigin(Deployed):
    def test_no_page_may_unless_the_operator_says_so(self):
        response = self.api.alice.get("/v2/images", Origin=PAGE)
        assert not [name for name in response.headers if name.lower().startswith("access-control")]


class TestAround(Deployed):
    @pytest.mark.parametrize("path", ["/healthcheck", "/healthcheck/"])
    def test_health_is_told_without_a_token(self, path):
        assert self.api.nobody.get(path).status_code == 200

    def test_a_file_takes_the_server_out_of_a_load_balancer(self, tmp_path):
        """Some of which take any answer below 400 for health."""
        (tmp_path / "out").touch()
        health = f"[healthcheck]\nbackends = disable_by_file\ndisable_by_file_path = {tmp_path / 'out'}\n"
        api = Deployment(tmp_path, health)
        statuses = [api.nobody.get(path).status_code for path in ("/healthcheck", "/healthcheck/")]
        api.close()
        assert statuses == [503, 503]

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

    def gauge(self, which):
        lines = self.api.nobody.get("/metrics").text.splitlines()
        [number] = [line.split()[1] for line in lines if line.startswith(f"storelib_api_{which} ")]
        return float(number)

    def test_requests_are_in_flight_until_their_response_is_sent(self):
        image = self.api.alice.active(b"12345")
        before = self.gauge("requests_in_flight")
        environ = falcon.testing.create_environ(f"/v2/images/{image}/file", headers=self.api.alice._identity)
        response = self.api.wsgi(environ, lambda *arguments: None)
        assert self.gauge("requests_in_flight") == before + 1
        assert b"".join(response) == b"12345"
        response.close()
        assert self.gauge("requests_in_flight") == before

    def test_imports_under_way_are_told(self, monkeypatch):
        image, seen, store = self.api.alice.active(b"12345"), [], self.api.registry["mem"]
        start = store.start_writer

        def look_and_start(*arguments):
            seen.append(self.gauge("imports_in_flight"))
            return start(*arguments)

        monkeypatch.setattr(store, "start_writer", look_and_start)
        copy = {"method": {"name": "copy-image"}, "stores": ["mem"]}
        assert self.api.admin.post(f"/v2/images/{image}/import", copy).status_code == 202
        self.api.settle()
        assert (seen, self.gauge("imports_in_flight")) == ([1], 0)

    def test_uploads_and_staged_bytes_under_way_are_told(self):
        seen = []

        class Body(io.BytesIO):
            def read(inner, *size):  # noqa: N805
                seen.append((self.gauge("uploads_in_flight"), self.gauge("staging_bytes")))
                return super().read(*size)

        chunked = {"Content-Type": "application/octet-stream", "Transfer-Encoding": "chunked"}
        for path in ("file", "stage"):
            image = self.api.alice.create()
            body = {"wsgi.input": Body(bytes(100_000))}
            assert self.api.alice.request("PUT", f"/v2/images/{image}/{path}", chunked, extras=body).status_code == 204
        assert max(uploads for uploads, _ in seen) == 1
        assert (self.gauge("uploads_in_flight"), self.gauge("staging_bytes")) == (0, 0)

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
CINDER = {
    "cinder_volume_type": "fast",
    "cinder_store_auth_address": "https://keys.example",
    "cinder_store_user_name": "u",
    "cinder_store_password": "secret",
    "cinder_store_project_name": "p",
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
        responses = [getattr(self.api, name).get("/v2/info/stores/detail") for name in ("alice", "admin", "nova")]
        assert [response.status_code for response in responses] == [403, 200, 200]
        fast, _, spare = responses[1].json["stores"]
        assert (fast["type"], fast["weight"]) == ("file", 5)
        assert fast["properties"]["datadir"] == f"{self.api.directory}/images"
        assert fast["properties"]["data_dir"] == f"{self.api.directory}/images"
        assert fast["properties"]["thin_provisioning"] is False
        assert fast["properties"]["chunk_size"] == self.api.registry["fast"].conf.filesystem_store_chunk_size
        assert spare["weight"] == 10

    @pytest.mark.parametrize(
        ("driver", "options", "properties"),
        [
            ("s3", S3, {"host": "s3.example", "bucket": "b", "bucket_url_format": "auto"}),
            ("s3", S3, {"s3_store_large_object_size": 8 * 2**20, "s3_store_large_object_chunk_size": 8 * 2**20}),
            ("s3", S3, {"s3_store_thread_pools": 10}),
            ("swift", SWIFT, {"container": "glance", "multi_tenant": False}),
            ("swift", SWIFT, {"large_object_size": 16 * 2**20, "large_object_chunk_size": 16 * 2**20}),
            ("cinder", CINDER, {"volume_type": "fast", "use_multipath": False}),
            ("cinder", CINDER | {"cinder_use_multipath": "true"}, {"use_multipath": True}),
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

    @pytest.mark.parametrize("name", ["min_ram", "min_disk"])
    def test_bounds_of_numbers_are_left_to_the_service(self, name):
        """Clients check by the schema, and would refuse by errors of their own."""
        assert not {"minimum", "maximum"} & self.api.alice.get("/v2/schemas/image").json["properties"][name].keys()
        assert [self.api.alice.post("/v2/images", {name: value}).status_code for value in (-1, 2**31)] == [400, 400]
        image = self.api.alice.create()
        change = {"op": "replace", "path": f"/{name}", "value": -1}
        assert self.api.alice.patch(image, change).status_code == 400

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
        responses = [self.api.alice.patch(image, operation).status_code for operation in operations]
        assert responses == [400, 200]

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
        responses = [api.alice.post("/v2/images", body) for body in bodies]
        assert [response.status_code for response in responses] == [400, 400, 201]
        image = responses[2].json["id"]
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

    @pytest.mark.parametrize("text", ["^(a+)+$", "a*a*a*b", "(a|aa)+!", "^a*b"])
    def test_values_of_users_meet_slow_patterns(self, deploy, text):
        api = deploy({"shelf": {"type": "string", "pattern": text}})
        image = api.alice.create()
        begun = time.process_time()
        for value in ("a" * 255, "a" * 60_000):
            value += "" if text.startswith("^a") else "!"
            assert api.alice.post("/v2/images", {"shelf": value + "?"}).status_code == 400
            change = {"op": "add", "path": "/shelf", "value": value + "?"}
            assert api.alice.patch(image, change).status_code == 400
        assert time.process_time() - begun < 5

    def test_a_pattern_of_the_beginning_is_for_long_values_too(self, deploy):
        api = deploy({"shelf": {"type": "string", "pattern": "^[a-z]+$"}})
        assert api.alice.post("/v2/images", {"shelf": "a" * 60_000}).status_code == 201
        assert api.alice.post("/v2/images", {"shelf": "a" * 60_000 + "!"}).status_code == 400

    @pytest.mark.parametrize(
        "definition",
        [
            {"type": "string", "pattern": r"(a+)\1+"},
            {"type": "array", "items": {"type": "string", "pattern": "(?=(a+)+)b"}},
            {"type": "object", "patternProperties": {"^(a+)+$": {"type": "string"}}},
            {"type": "object", "patternProperties": {"a*b": {"type": "string"}}},
        ],
    )
    def test_a_pattern_that_may_take_for_ever_stops_the_start(self, deploy, definition):
        with pytest.raises(BadStoreConfiguration, match="the pattern"):
            deploy({"shelf": definition})

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


class TestListsOfOptions(Deployed):
    """Written as Glance wants them, and in any other usual way."""

    options = {  # noqa: RUF012
        "disk_formats": "[raw, 'qcow2']",
        "container_formats": '"bare"',
        "enabled_import_methods": "['web-download', copy-image]",
        "import_allowed_ports": "[80,8080]",
    }

    def test_brackets_and_quotes_are_no_part_of_the_items(self):
        schema = self.api.alice.get("/v2/schemas/image").json["properties"]
        assert schema["disk_format"]["enum"] == [None, "raw", "qcow2"]
        assert schema["container_format"]["enum"] == [None, "bare"]
        methods = self.api.alice.get("/v2/info/import").json["import-methods"]["value"]
        assert methods == ["web-download", "copy-image"]
        assert self.api.service.core.options.import_allowed_ports == [80, 8080]


@pytest.mark.parametrize(
    ("option", "value", "known"),
    [
        ("disk_formats", "raw; qcow2", "raw; qcow2"),
        ("disk_formats", "[raw,.qcow2]", ".qcow2"),
        ("container_formats", "x" * 65, "container_formats"),
        ("enabled_import_methods", "[carrier-pigeon]", "web-download"),
        ("import_allowed_ports", "[80,http]", "list"),
    ],
)
def test_values_that_mean_nothing_stop_the_start(tmp_path, option, value, known):
    with pytest.raises(BadStoreConfiguration, match=option) as raised:
        Deployment(tmp_path, **{option: value})
    assert known in str(raised.value).lower()


class TestFormatsOfAnOperator(Deployed):
    options = {"disk_formats": "raw, qcow2, root-tar", "container_formats": "bare, bundle"}  # noqa: RUF012

    def test_they_are_accepted_and_told(self):
        schema = self.api.alice.get("/v2/schemas/image").json["properties"]
        assert schema["disk_format"]["enum"] == [None, "raw", "qcow2", "root-tar"]
        image = self.api.alice.create(disk_format="root-tar", container_format="bundle")
        assert self.api.alice.show(image)["disk_format"] == "root-tar"
        refused = {"name": "x", "disk_format": "qcow3", "container_format": "bare"}
        assert self.api.alice.post("/v2/images", refused).status_code == 400

    def test_their_data_is_not_that_of_another_format(self):
        image = self.api.alice.create(disk_format="root-tar", container_format="bare")
        assert self.api.alice.upload(image, disk_images.qcow2()).status_code == 415
        assert self.api.alice.upload(image, b"any data" * 1000).status_code == 204

    def test_names_that_nothing_knows_are_told_at_the_start(self, tmp_path, caplog):
        with contextlib.closing(Deployment(tmp_path, **self.options)):
            assert "disk_formats: storelib does not know root-tar" in caplog.text
            assert "container_formats: storelib does not know bundle" in caplog.text


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

    @pytest.mark.parametrize("op", ["add", "replace", "remove"])
    def test_a_refused_change_does_not_tell_whether_it_is_there(self, api, op):
        image = api.admin.create(owner="alpha", secret_key="x")
        changes = [{"op": op, "path": f"/{name}", "value": "y"} for name in ("secret_key", "secret_other")]
        assert [api.alice.patch(image, change).status_code for change in changes] == [403, 403]

    def test_lists_do_not_tell_what_one_may_not_read(self, api):
        api.admin.create(owner="alpha", secret_key="x")
        found = [caller.get("/v2/images?secret_key=x").json["images"] for caller in (api.alice, api.admin)]
        assert [len(images) for images in found] == [0, 1]

    @pytest.mark.parametrize("name", ["SECRET_key", "secret-key", "Secret-Key", "\u017fecret_key"])
    def test_names_that_are_one_in_v1_have_one_rule(self, api, name):
        """Or else an image with such a property would have it, for clients of v1, in the place of what is protected."""
        image = api.alice.create()
        change = {"op": "add", "path": f"/{name}", "value": "mine"}
        assert api.alice.patch(image, change).status_code == 403
        assert api.alice.post("/v2/images", {name: "mine"}).status_code == 403
        assert api.admin.patch(image, change).status_code == 200
        assert name not in api.alice.show(image)
        assert api.alice.get(f"/v2/images?{urlencode({name: 'mine'})}").json["images"] == []

    def test_a_rule_is_for_names_however_it_writes_them(self, tmp_path):
        path = tmp_path / "rules.conf"
        others = "read=@\nupdate=@\ndelete=@\n"
        path.write_text(f"[^X-Team$]\ncreate=admin\n{others}[.*]\ncreate=@\n{others}")
        api = Deployment(tmp_path, property_protection_file=path)
        try:
            for name in ("x-team", "X_TEAM", "X-Team"):
                assert api.alice.post("/v2/images", {name: "mine"}).status_code == 403
            headers = {"x-image-meta-name": "x", "x-image-meta-property-x-team": "mine"}
            assert api.alice.request("POST", "/v1/images", headers).status_code == 403
            assert api.alice.post("/v2/images", {"x_teams": "mine"}).status_code == 201
        finally:
            api.close()

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

    def test_several_policies_stop_the_start(self, tmp_path):
        path = tmp_path / "rules.conf"
        path.write_text("[a]\ncreate=add_image, get_image\nread=@\nupdate=@\ndelete=@")
        with pytest.raises(BadStoreConfiguration, match="add_image, get_image"):
            Deployment(tmp_path, property_protection_file=path, property_protection_rule_format="policies")

    @pytest.mark.parametrize("form", ["roles", "policies"])
    def test_nothing_is_nobody(self, tmp_path, form):
        path = tmp_path / "rules.conf"
        path.write_text("[a]\ncreate=@\nread=@\nupdate=\ndelete = ")
        api = Deployment(tmp_path, property_protection_file=path, property_protection_rule_format=form)
        image = api.admin.create(a="x")
        changes = [{"op": "replace", "path": "/a", "value": "y"}, {"op": "remove", "path": "/a"}]
        statuses = [api.admin.patch(image, change).status_code for change in changes]
        api.close()
        assert statuses == [403, 403]

    def test_policies_may_decide(self, tmp_path):
        path = tmp_path / "rules.conf"
        path.write_text("[a]\ncreate=context_is_admin\nread=@\nupdate=@\ndelete=@")
        api = Deployment(tmp_path, property_protection_file=path, property_protection_rule_format="policies")
        responses = [caller.post("/v2/images", {"a": "x"}).status_code for caller in (api.alice, api.admin)]
        api.close()
        assert responses == [403, 201]
