# SPDX-License-Identifier: Apache-2.0
"""What a v1 client does, for tests: metadata into headers as python-glanceclient sends it, and out of them again."""

from __future__ import annotations

import http.server
from typing import Any, ClassVar
from unittest import mock
from urllib.parse import quote

import deployment
import pytest
from deployment import OCTETS, Caller, Deployed
from web_servers import web_server

RAW = {"disk_format": "raw", "container_format": "bare"}


def headers(properties: dict[str, Any] | None = None, **fields: Any) -> dict[str, str]:
    """Fields and custom properties as headers, names and values percent-encoded."""
    found = {f"x-image-meta-{name}": quote(str(value), safe="/:") for name, value in fields.items()}
    for name, value in (properties or {}).items():
        found[f"x-image-meta-property-{quote(name)}"] = quote(value, safe="/:")
    return found


def create(
    caller: Caller,
    data: bytes | None = None,
    properties: dict[str, Any] | None = None,
    more: dict[str, str] | None = None,
    **fields: Any,
) -> Any:
    """The answer to a request for a new image; ``more`` are headers as they are."""
    sent = headers(properties, **fields) | (more or {})
    if data is None:
        return caller.request("POST", "/v1/images", sent)
    return caller.request("POST", "/v1/images", OCTETS | sent, body=data)


def created(caller: Caller, data: bytes | None = None, properties: dict[str, Any] | None = None, **fields: Any) -> str:
    """The id of a new image, which has formats."""
    response = create(caller, data, properties, **RAW | fields)
    assert response.status_code == 201, response.text
    return response.json["image"]["id"]


def update(
    caller: Caller,
    image: str,
    data: bytes | None = None,
    properties: dict[str, Any] | None = None,
    more: dict[str, str] | None = None,
    **fields: Any,
) -> Any:
    """The answer to a change, which purges nothing if ``more`` does not say so."""
    sent = {"x-glance-registry-purge-props": "false"} | headers(properties, **fields) | (more or {})
    if data is None:
        return caller.request("PUT", f"/v1/images/{image}", sent)
    return caller.request("PUT", f"/v1/images/{image}", OCTETS | sent, body=data)


def shown(caller: Caller, image: str) -> dict[str, str]:
    """The metadata that HEAD tells, names without their prefix."""
    response = caller.request("HEAD", f"/v1/images/{image}")
    assert response.status_code == 200, response.status
    return meta_of(response)


def meta_of(answer: Any) -> dict[str, str]:
    """The metadata in the headers of an answer."""
    prefix = "x-image-meta-"
    return {name[len(prefix) :]: value for name, value in answer.headers.items() if name.startswith(prefix)}


class Web(http.server.BaseHTTPRequestHandler):
    """A web server with a few images."""

    data = b"from the web" * 1000
    #: The paths of all requests.
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        # Less than it says, and gone.
        cut = self.path == "/cut"
        self.send_header("Content-Length", str(len(self.data) * (2 if cut else 1)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.data)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args: Any) -> None:
        pass


class WithWeb(Deployed):
    """A deployment that may read from ``self.web``, and from nowhere else that is not public."""

    web: str

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _deployed(cls, tmp_path_factory):
        stores = deployment.FILE.replace("spare:memory\n", "spare:memory, http\n", 1)
        stores = stores.replace("[fast]", "http_allowed_networks = 127.0.0.1/32\n[fast]", 1)
        with web_server(Web) as cls.web, mock.patch.object(deployment, "FILE", stores):
            cls.api = deployment.Deployment(tmp_path_factory.mktemp("api"), **cls.options)
            yield
            cls.api.close()
            del cls.api
