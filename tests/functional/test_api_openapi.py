# SPDX-License-Identifier: Apache-2.0
"""``/openapi.json`` of a server that runs, and schemathesis against it: requests that are as the description says and
requests that are not, the same ones each time, half of them for images and namespaces that are there."""

from __future__ import annotations

import itertools
import json
import random
import urllib.request
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from servers.api import Deployment, Server

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import schemathesis
    from schemathesis.core.failures import Failure, FailureGroup
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_headers_conformance,
        response_schema_conformance,
        status_code_conformance,
        unsupported_method,
    )

for version in ("v2.1", "v2.0"):
    schemathesis.serializer.alias(f"application/openstack-images-{version}-json-patch", "application/json")

NUMBERS = itertools.count()
#: Requests of each operation and each kind.
EXAMPLES = 6
CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]
IMAGE = {"name": "x", "disk_format": "raw", "container_format": "bare", "visibility": "shared", "tags": ["red"]}
PROPERTY = {"name": "size", "title": "Size", "type": "integer"}


class World:
    """What is there for requests to meet, made anew for each: they delete and change it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._random = random.Random(5)

    def fill(self, case: Any) -> None:
        """Let the path of ``case`` lead to something, three times of four."""
        if not case.path_parameters or not self._random.randrange(4):
            return
        if "image_id" in case.path_parameters:
            case.path_parameters |= self._image()
        if "namespace" in case.path_parameters:
            case.path_parameters |= self._namespace(case.path)
        if {"node_id", "preload_id", "ticket"} & case.path_parameters.keys():
            self._preload(case)
        if "task_id" in case.path_parameters:
            case.path_parameters["task_id"] = self._task()

    def _image(self) -> dict[str, str]:
        image = self.send("POST", "/v2/images", IMAGE)["id"]
        self.send("POST", f"/v2/images/{image}/members", {"member": "beta"})
        state = self._random.choice(["queued", "uploading", "active", "copied", "deactivated"])
        if state == "uploading":
            self.send("PUT", f"/v2/images/{image}/stage", b"data")
        elif state != "queued":
            self.send("PUT", f"/v2/images/{image}/file", b"some data")
        if state == "copied":
            self.send("POST", f"/v2/images/{image}/import", {"method": {"name": "copy-image"}, "stores": ["archive"]})
        if state == "deactivated":
            self.send("POST", f"/v2/images/{image}/actions/deactivate")
        return {"image_id": image, "member_id": "beta", "tag": "red", "store_id": "archive"}

    def _preload(self, case: Any) -> None:
        """A node that has an image to get, and its secret."""
        image = self.send("POST", "/v2/images", IMAGE)["id"]
        self.send("PUT", f"/v2/images/{image}/file", b"some data")
        place = {"name": f"node-{next(NUMBERS)}", "group": "racks", "address": "192.0.2.1", "port": 7000}
        node = self.send("POST", "/v2/nodes", place)
        made = self.send("POST", "/v2/preloads", {"images": [image], "nodes": [place["name"]]})["preloads"]
        secret = {"X-Node-Secret": node["secret"]}
        known = {"node_id": node["id"], "preload_id": made[0]["id"]}
        if "ticket" in case.path_parameters:
            [job] = self.send("POST", f"/v2/nodes/{node['id']}/heartbeat", place, secret)["jobs"]
            known = dict(zip(("ticket", "image_id"), job["source"]["url"].split("/")[-2:], strict=True))
        case.path_parameters |= {name: known[name] for name in known.keys() & case.path_parameters.keys()}
        case.headers = {**(case.headers or {}), **secret}

    def _namespace(self, path: str) -> dict[str, str]:
        name = f"space-{next(NUMBERS)}"
        whole = {
            "namespace": name,
            "objects": [{"name": "disk", "properties": {"size": {"title": "Size", "type": "integer"}}}],
            "properties": {"size": {"title": "Size", "type": "integer"}},
            "tags": [{"name": "red"}],
            "resource_type_associations": [{"name": "OS::Glance::Image", "prefix": "hw_"}],
        }
        self.send("POST", "/v2/metadefs/namespaces", whole)
        inner = {"objects": "disk", "properties": "size", "tags": "red", "resource_types": "OS::Glance::Image"}
        return {"namespace": name, "name": inner.get(path.split("/")[5] if path.count("/") > 4 else "", "x")}

    def _task(self) -> str:
        self._image_with_task()
        return self.send("GET", "/v2/tasks?limit=1")["tasks"][0]["id"]

    def _image_with_task(self) -> None:
        image = self.send("POST", "/v2/images", IMAGE)["id"]
        self.send("PUT", f"/v2/images/{image}/stage", b"data")
        self.send("POST", f"/v2/images/{image}/import", {"method": {"name": "glance-direct"}})

    def send(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        raw = isinstance(body, bytes)
        data = body if raw or body is None else json.dumps(body).encode()
        kind = "application/octet-stream" if raw else "application/json"
        request = urllib.request.Request(
            self._server.url + path, data, {"Content-Type": kind} | (headers or {}), method=method
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            text = response.read()
            return json.loads(text) if text else None


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("openapi")
    deployment = Deployment(directory)
    with deployment.config.open("a") as config:
        config.write(f"[api]\nstaging_dir = {directory}/staging\nimage_cache_dir = {directory}/cache\n")
        config.write("[preload]\nenabled = true\n")
    yield deployment.serve("--workers", "1")
    deployment.close()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
def test_the_server_is_as_it_describes_itself(server, mode):
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    world, failures = World(server), []
    for found in schema.get_all_operations():
        operation = found.ok()
        try:
            _check(world, operation.as_strategy(generation_mode=mode))
        except Unsatisfiable:
            # Nothing that such an operation takes can be wrong.
            assert mode is GenerationMode.NEGATIVE
        except (Failure, FailureGroup) as failure:
            reasons = getattr(failure, "exceptions", [failure])
            failures.append(f"{operation.label}: {'; '.join(str(reason) for reason in reasons)}\n{failure}")
    assert not failures, "\n".join(failures)


def _check(world: World, strategy: Any) -> None:
    @given(case=strategy)
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Any) -> None:
        world.fill(case)
        case.validate_response(case.call(timeout=60), checks=CHECKS)

    check()


def test_it_needs_no_token_and_tells_no_secret(server):
    with urllib.request.urlopen(f"{server.url}/openapi.json") as response:
        text = response.read().decode()
    assert json.loads(text)["servers"] == [{"url": server.url}]
    assert "sqlite" not in text
    assert "staging" not in json.dumps(list(json.loads(text)["components"]["schemas"]))
