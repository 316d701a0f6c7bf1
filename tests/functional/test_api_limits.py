# SPDX-License-Identifier: Apache-2.0
"""``use_keystone_limits`` with a real Keystone that has registered limits: the image API in this process, callers with
tokens."""

from __future__ import annotations

import io
import os
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import falcon.testing
import pytest
from servers.api import Deployment
from servers.keystone import Keystone
from servers.suites import Suites

import storelib.config
from storelib.exceptions import BadStoreConfiguration
from storelib.transfer.contract import MiB

with warnings.catch_warnings():
    # WebOb, which oslo.middleware stands on, still imports cgi.
    warnings.simplefilter("ignore", DeprecationWarning)
    import webob  # noqa: F401

from storelib.api import create_app

CONFIGURATION = """
[storelib]
stores = fast:file, spare:memory
[fast]
filesystem_store_datadir = {directory}/fast
[database]
connection = sqlite:///{directory}/images.sqlite
sqlite_synchronous = false
[api]
auth_strategy = keystone
staging_dir = {directory}/staging
use_keystone_limits = true
{api}
{authtoken}
[oslo_limit]
auth_url = {keystone.url}
auth_type = password
username = images
password = imagespass
user_domain_id = default
system_scope = all
{limits}
"""
IMAGE = {"name": "x", "disk_format": "raw", "container_format": "bare"}
OCTETS = {"Content-Type": "application/octet-stream"}
NAMES = ("image_size_total", "image_stage_total", "image_count_total", "image_count_uploading")


class Cloud:
    """Keystone, with an image service in its catalog."""

    def __init__(self, keystone: Keystone) -> None:
        self.keystone = keystone
        service = {"type": "image", "name": "glance"}
        self.service_id = keystone.call("POST", "/services", {"service": service})["service"]["id"]
        endpoint = {"service_id": self.service_id, "region_id": "RegionOne", "url": "http://127.0.0.1:9292"}
        made = [
            keystone.call("POST", "/endpoints", {"endpoint": {**endpoint, "interface": interface}})["endpoint"]["id"]
            for interface in ("public", "internal")
        ]
        self.endpoint_id = made[0]
        role = keystone.call("GET", "/roles?name=reader")["roles"][0]["id"]
        keystone.call("PUT", f"/system/users/{keystone.users['images']}/roles/{role}")
        self._system = self._system_token()
        self._now: dict[str, int] = {}
        self._limits = {
            name: self._make("limits", {"project_id": keystone.projects["demo"], "resource_limit": 10}, name)
            for name in NAMES
            if self._make("registered_limits", {"default_limit": 3}, name)
        }

    def limit(self, **limits: int) -> None:
        """What project demo may have from now on; 10 of what is not named. Keystone changes no limit to 0."""
        for name, value in (dict.fromkeys(NAMES, 10) | limits).items():
            if self._now.get(name, 10) != value:
                body = {"limit": {"resource_limit": value}}
                self.keystone.call("PATCH", f"/limits/{self._limits[name]}", body, X_Auth_Token=self._system)
                self._now[name] = value

    def _make(self, kind: str, values: dict[str, object], name: str) -> str:
        values = {**values, "service_id": self.service_id, "region_id": "RegionOne", "resource_name": name}
        return self.keystone.call("POST", f"/{kind}", {kind: [values]}, X_Auth_Token=self._system)[kind][0]["id"]

    def _system_token(self) -> str:
        password = {"user": {"name": "admin", "domain": {"id": "default"}, "password": "adminpass"}}
        identity = {"methods": ["password"], "password": password}
        body = {"auth": {"identity": identity, "scope": {"system": {"all": True}}}}
        return self.keystone._send("POST", "/auth/tokens", body)[0]["X-Subject-Token"]


def configuration(cloud: Cloud, directory: Path, limits: str, api: str = "") -> str:
    """With ``limits`` in [oslo_limit], ``api`` in [api]."""
    return CONFIGURATION.format(
        directory=directory, keystone=cloud.keystone, authtoken=cloud.keystone.authtoken, limits=limits, api=api
    )


class Service:
    """The image API, with limits as ``limits`` in [oslo_limit] say."""

    def __init__(self, cloud: Cloud, directory, limits: str, api: str = "") -> None:
        directory.mkdir(exist_ok=True)
        file = directory / "storelib.ini"
        file.write_text(configuration(cloud, directory, limits, api))
        self.app = create_app(storelib.config.load_file(file))
        self.client = falcon.testing.TestClient(lambda environ, start_response: self.app(environ, start_response))
        self.tokens = {user: cloud.keystone.token(user, user)[0] for user in ("demo", "alt_demo")}
        self.limits = self.app.service.core.limits

    def ask(self, method: str, path: str, user: str = "demo", **more):
        headers = {"X-Auth-Token": self.tokens[user], **more.pop("headers", {})}
        return self.client.simulate_request(method, path, headers=headers, **more)

    def create(self, user: str = "demo", **values):
        return self.ask("POST", "/v2/images", user, json=IMAGE | values)

    def send(self, what: str, image: str, size: int, *, declared: bool = True, user: str = "demo") -> int:
        path = f"/v2/images/{image}/{what}"
        if declared:
            return self.ask("PUT", path, user, headers=OCTETS, body=b"\1" * size).status_code
        body = {"wsgi.input": io.BytesIO(b"\1" * size)}
        headers = {**OCTETS, "Transfer-Encoding": "chunked"}
        return self.ask("PUT", path, user, headers=headers, extras=body).status_code

    def new(self, user: str = "demo") -> str:
        response = self.create(user)
        assert response.status_code == 201, response.text
        return response.json["id"]

    def usage(self, user: str = "demo"):
        return self.ask("GET", "/v2/info/usage", user).json["usage"]

    def start_import(self, image: str, method: str, **more):
        return self.ask("POST", f"/v2/images/{image}/import", json={"method": {"name": method, **more}})

    def clean(self) -> None:
        assert self.app.service.workers.wait(20)
        for user in ("demo", "alt_demo"):
            for image in self.ask("GET", "/v2/images", user).json["images"]:
                assert self.ask("DELETE", f"/v2/images/{image['id']}", user).status_code == 204


@pytest.fixture(scope="module")
def cloud(tmp_path_factory) -> Iterator[Cloud]:
    with Keystone(tmp_path_factory.mktemp("keystone")) as keystone:
        yield Cloud(keystone)


@pytest.fixture(scope="module")
def served(cloud, tmp_path_factory) -> Iterator[Service]:
    service = Service(cloud, tmp_path_factory.mktemp("served"), f"endpoint_id = {cloud.endpoint_id}")
    yield service
    service.app.close()


@pytest.fixture
def api(cloud, served) -> Iterator[Service]:
    cloud.limit()
    yield served
    served.clean()


def test_usage_has_all_four_with_their_limits(cloud, api):
    cloud.limit(image_size_total=7)
    api.send("file", api.new(), 2 * MiB + 5)
    api.send("stage", api.new(), MiB)
    assert api.usage() == {
        "image_size_total": {"limit": 7, "usage": 2},
        "image_stage_total": {"limit": 10, "usage": 1},
        "image_count_total": {"limit": 10, "usage": 2},
        "image_count_uploading": {"limit": 10, "usage": 1},
    }


def test_projects_without_limits_of_their_own_have_the_registered_ones(api):
    assert api.usage("alt_demo")["image_count_total"] == {"limit": 3, "usage": 0}
    assert [api.create("alt_demo").status_code for _ in range(4)] == [201, 201, 201, 413]


def test_number_of_images(cloud, api):
    cloud.limit(image_count_total=1)
    image = api.new()
    refused = api.create()
    assert (refused.status_code, refused.json["error"]["code"]) == (413, 413)
    assert "image_count_total" in refused.json["error"]["message"]
    cloud.limit(image_count_total=2)
    api.new()
    assert api.create().status_code == 413
    api.ask("DELETE", f"/v2/images/{image}")
    assert api.create().status_code == 201


def test_number_of_images_in_version_1(cloud, api):
    cloud.limit(image_count_total=1)
    assert [api.ask("POST", "/v1/images").status_code for _ in range(2)] == [201, 413]


def test_bytes_of_images(cloud, api):
    """As in Glance: what is declared is refused before, what is not may exceed the limit once."""
    cloud.limit(image_size_total=2)
    first, second, third = api.new(), api.new(), api.new()
    assert api.send("file", first, 3 * MiB) == 413
    assert api.send("file", first, MiB) == 204
    assert api.send("file", second, 2 * MiB, declared=False) == 204
    assert api.send("file", third, 1, declared=False) == 413
    assert api.ask("GET", f"/v2/images/{third}").json["status"] == "queued"
    api.ask("DELETE", f"/v2/images/{second}")
    assert api.send("file", third, MiB) == 204


def test_bytes_of_images_in_version_1(cloud, api):
    cloud.limit(image_size_total=1)
    formats = {"X-Image-Meta-Disk-Format": "raw", "X-Image-Meta-Container-Format": "bare"}
    assert api.ask("POST", "/v1/images", headers=OCTETS | formats, body=b"\1" * 2 * MiB).status_code == 413


def test_uploads_under_way(cloud, api):
    cloud.limit(image_count_uploading=1)
    first, second, third = api.new(), api.new(), api.new()
    assert api.send("stage", first, 10) == 204
    assert api.send("stage", second, 10) == 413
    assert api.send("file", third, 10) == 413
    assert api.start_import(third, "web-download", uri="http://127.0.0.1/x").status_code in (400, 413)
    assert {api.ask("GET", f"/v2/images/{image}").json["status"] for image in (second, third)} == {"queued"}
    assert api.start_import(first, "glance-direct").status_code == 202
    assert api.app.service.workers.wait(20)
    assert api.send("file", third, 10) == 204


def test_bytes_that_are_staged(cloud, api):
    cloud.limit(image_stage_total=1)
    first, second, third, uploaded = (api.new() for _ in range(4))
    assert api.send("stage", first, 2 * MiB) == 413
    assert api.send("stage", first, MiB) == 204
    assert api.send("stage", second, MiB, declared=False) == 204
    assert api.send("stage", third, MiB, declared=False) == 413
    assert api.send("file", uploaded, MiB) == 204


def test_import_of_more_than_the_limit(cloud, api):
    image = api.new()
    assert api.send("stage", image, 2 * MiB) == 204
    cloud.limit(image_size_total=1)
    assert api.start_import(image, "glance-direct").status_code == 413
    assert api.ask("GET", f"/v2/images/{image}").json["status"] == "uploading"
    cloud.limit()
    assert api.start_import(image, "glance-direct").status_code == 202


def test_no_limit_at_all(cloud, api):
    cloud.limit(**dict.fromkeys(NAMES, -1))
    assert [api.create().status_code for _ in range(4)] == [201] * 4
    assert api.usage()["image_count_total"] == {"limit": -1, "usage": 4}


def test_reading_asks_nothing_of_keystone(api, monkeypatch):
    image = api.new()
    api.send("file", image, 10)
    asked = []
    monkeypatch.setattr(type(api.limits._keystone), "_get", lambda *arguments: asked.append(arguments))
    assert api.ask("GET", f"/v2/images/{image}").status_code == 200
    assert api.ask("GET", f"/v2/images/{image}/file").status_code == 200
    assert api.ask("GET", "/v2/images").status_code == 200
    assert not asked


@pytest.mark.parametrize(
    "limits",
    [
        "endpoint_service_type = image\nendpoint_region_name = RegionOne",
        "endpoint_service_name = glance\nendpoint_interface = internalURL",
    ],
)
def test_the_endpoint_may_be_found_by_its_service(cloud, tmp_path, limits):
    cloud.limit(image_count_total=4)
    service = Service(cloud, tmp_path / "other", limits)
    assert service.usage()["image_count_total"]["limit"] == 4
    service.app.close()


def test_limits_may_be_believed_for_a_time(cloud, tmp_path):
    service = Service(
        cloud, tmp_path / "other", f"endpoint_id = {cloud.endpoint_id}", "keystone_limits_cache_time = 300"
    )
    cloud.limit(image_count_total=4)
    assert service.usage()["image_count_total"]["limit"] == 4
    cloud.limit(image_count_total=5)
    assert service.usage()["image_count_total"]["limit"] == 4
    service.app.close()


@pytest.mark.parametrize(
    "limits",
    ["endpoint_id = 00000000000000000000000000000000", "endpoint_service_type = nothing"],
)
def test_an_endpoint_that_is_not_there_is_the_services_trouble(cloud, tmp_path, limits):
    service = Service(cloud, tmp_path / "other", limits)
    response = service.create()
    assert response.status_code == 503
    assert cloud.keystone.url not in response.text
    assert service.ask("GET", "/v2/images").status_code == 200
    service.app.close()


@pytest.mark.parametrize("missing", ["", "endpoint_id = x\nauth_type = nothing", "endpoint_id = x\nauth_type ="])
def test_what_cannot_work_is_refused_at_the_start(cloud, tmp_path, missing):
    with pytest.raises(BadStoreConfiguration, match="oslo_limit"):
        Service(cloud, tmp_path / "other", missing)


def test_keystone_that_does_not_answer(cloud, tmp_path, caplog):
    """Writing waits no longer than said, and is told so; reading goes on. Nobody is let through meanwhile."""
    cloud.limit()
    service = Service(cloud, tmp_path / "other", f"endpoint_id = {cloud.endpoint_id}\ntimeout = 3")
    image = service.new()
    pid = cloud.keystone._processes.pid("keystone")
    workers = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    for each in workers:
        os.kill(each, signal.SIGSTOP)
    try:
        response = service.create()
        assert (response.status_code, response.json["error"]["code"]) == (503, 503)
        assert service.send("file", image, 10) == 503
        assert service.ask("GET", f"/v2/images/{image}").json["status"] == "queued"
        assert cloud.keystone.url not in response.text + caplog.text
    finally:
        for each in workers:
            os.kill(each, signal.SIGCONT)
    deadline = time.monotonic() + 60
    while (status := service.send("file", image, 10)) == 503:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert status == 204
    service.clean()
    service.app.close()


def test_tempest(cloud, tmp_path):
    """Its tests of unified limits, unchanged, against a server in the catalog."""
    ini = configuration(cloud, tmp_path, f"endpoint_id = {cloud.endpoint_id}")
    deployment = Deployment(tmp_path, ini=ini)
    try:
        url = deployment.serve("--workers", "1").url
        cloud.keystone.call("PATCH", f"/endpoints/{cloud.endpoint_id}", {"endpoint": {"url": url}})
        (tmp_path / "suites").mkdir()
        suites = Suites(tmp_path / "suites", cloud.keystone, "RegionOne", image=url, features={})
        outcomes = suites.run("limits")
    finally:
        deployment.close()
    assert [each for each in outcomes if each.outcome != "passed"] == []
    assert len(outcomes) == 4
