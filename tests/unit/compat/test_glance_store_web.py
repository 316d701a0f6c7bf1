# SPDX-License-Identifier: Apache-2.0
"""Images on web servers, as importers of glance_store see them."""

from __future__ import annotations

import base64
import http.server
import os

import pytest
from web_servers import web_server

from storelib.compat.glance_store import backend, exceptions, location

DATA = os.urandom(200_000)


class Handler(http.server.BaseHTTPRequestHandler):
    """/uncounted is of no known size, /secret for one user only, and /%... there only in one spelling."""

    def do_GET(self):
        known = self.headers.get("Authorization") == "Basic " + base64.b64encode(b"me:s:ecret@").decode()
        missing = "%" in self.path and self.path != "/%5Cmy%20image?of%20mine"
        self.send_response(401 if self.path == "/secret" and not known else 404 if missing else 200)
        if self.path != "/uncounted":
            self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(DATA)

    do_HEAD = do_GET  # noqa: N815  (the name is http.server's)

    def log_message(self, *arguments):
        """Says nothing."""


@pytest.fixture
def server():
    """``host:port`` of it."""
    with web_server(Handler) as url:
        yield url.removeprefix("http://")


@pytest.fixture(autouse=True)
def web(conf):
    """A store without a name."""
    backend.register_opts(conf)
    conf.set_override("stores", ["http"], "glance_store")
    assert backend.create_stores(conf) == 1


def test_what_the_server_does_not_count_has_a_wrong_uri(server):
    """Its size is 0 to glance_store, and Glance refuses such a location as a wrong one."""
    with pytest.raises(exceptions.BadStoreUri, match="size"):
        backend.get_size_from_backend(f"http://{server}/uncounted")
    assert b"".join(backend.get_from_backend(f"http://{server}/uncounted")[0]) == DATA


@pytest.mark.parametrize("path", [r"\my image?of mine", "%5Cmy%20image?of%20mine"])
def test_what_nobody_encoded_is_encoded_for_the_server(server, path):
    """Glance keeps such a location as a user gave it, and glance_store reads it."""
    uri = f"http://{server}/{path}"
    assert backend.get_size_from_backend(uri) == len(DATA)
    assert b"".join(backend.get_from_backend(uri)[0]) == DATA
    assert location.get_location_from_uri(uri, conf=backend.CONF).get_store_uri() == uri


@pytest.mark.parametrize("scheme", ["http", "HTTP"])
def test_credentials_in_a_uri_are_those_that_the_server_gets(server, scheme):
    uri = f"{scheme}://me:s%3Aecret%40@{server}/secret"
    assert backend.get_size_from_backend(uri) == len(DATA)
    chunks, size = backend.get_from_backend(uri)
    assert (b"".join(chunks), size) == (DATA, len(DATA))
    with pytest.raises(exceptions.Forbidden):
        backend.get_from_backend(f"http://{server}/secret")
