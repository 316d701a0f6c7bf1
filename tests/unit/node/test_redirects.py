# SPDX-License-Identifier: Apache-2.0
"""Where an agent reads an image when the API sends it elsewhere, and what it says there."""

from __future__ import annotations

import http.server

import pytest
from web_servers import serving

from storelib.exceptions import Forbidden, Invalid, RemoteServiceUnavailable
from storelib.node.api import MOST_REDIRECTS, Api

DATA = bytes(range(256))
TICKET = "/v2/preloads/sources/ticket/image"


class Server(http.server.ThreadingHTTPServer):
    """Returns what it is told to for each path, and remembers what it was asked: paths and headers."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.asked = {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        status, headers, body = self.server.answers.get(self.path, (404, {}, b""))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *arguments):
        pass


@pytest.fixture
def servers():
    with serving(Server()) as first, serving(Server()) as second:
        yield first, second


@pytest.fixture
def api(servers):
    client = Api(servers[0].url)
    yield client
    client.close()


def sends_to(place, status=302):
    return status, {"Location": place}, b""


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_bytes_are_read_where_the_api_sends_to(servers, api, status):
    first, second = servers
    place = "/bucket/key?X-Signature=a%2Fb&Expires=60"
    first.answers[TICKET] = sends_to(second.url + place, status)
    second.answers[place] = 206, {}, DATA[10:20]

    assert api.read(TICKET, 10, 10) == DATA[10:20]

    [(asked, headers)] = second.asked
    assert asked == place
    assert headers["range"] == "bytes=10-19"
    # Nothing that says who the node is.
    assert not headers.keys() & {"x-node-secret", "authorization", "cookie", "referer", "x-auth-token"}
    assert "ticket" not in str(headers)


def test_a_place_may_be_on_the_same_server(servers, api):
    first = servers[0]
    first.answers[TICKET] = sends_to("/elsewhere")
    first.answers["/elsewhere"] = 206, {}, DATA[:5]
    assert api.read(TICKET, 0, 5) == DATA[:5]


def test_it_is_sent_on_a_few_times_only(servers, api):
    first = servers[0]
    for number in range(MOST_REDIRECTS):
        first.answers[f"{TICKET}{number}"] = sends_to(f"{TICKET}{number + 1}")
    first.answers[f"{TICKET}{MOST_REDIRECTS}"] = 206, {}, DATA
    assert api.read(f"{TICKET}0", 0, len(DATA)) == DATA

    first.answers[TICKET] = sends_to(TICKET)
    del first.asked[:]
    with pytest.raises(RemoteServiceUnavailable):
        api.read(TICKET, 0, 1)
    assert len(first.asked) == MOST_REDIRECTS + 1


@pytest.mark.parametrize(
    "place", ["file:///etc/passwd", "ftp://127.0.0.1/key", "gopher://127.0.0.1:1/x", "data:,x", "http://["]
)
def test_only_web_servers_are_asked(servers, api, place):
    servers[0].answers[TICKET] = sends_to(place)
    with pytest.raises(RemoteServiceUnavailable):
        api.read(TICKET, 0, 1)


@pytest.mark.parametrize("headers", [{}, {"Location": ""}])
def test_one_that_sends_nowhere_is_refused(servers, api, headers):
    servers[0].answers[TICKET] = 302, headers, b""
    with pytest.raises(Invalid):
        api.read(TICKET, 0, 1)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_another_server_refuses_is_not_said_of_the_ticket(servers, api, status):
    first, second = servers
    first.answers[TICKET] = sends_to(second.url + "/key?Signature=secret")
    second.answers["/key?Signature=secret"] = status, {}, b""
    with pytest.raises(RemoteServiceUnavailable) as caught:
        api.read(TICKET, 0, 1)
    assert "secret" not in str(caught.value)

    first.answers[TICKET] = 403, {}, b""
    with pytest.raises(Forbidden):
        api.read(TICKET, 0, 1)


def test_too_little_is_not_the_range(servers, api):
    first, second = servers
    first.answers[TICKET] = sends_to(second.url + "/key")
    second.answers["/key"] = 206, {}, DATA[:4]
    with pytest.raises(Invalid):
        api.read(TICKET, 0, 5)


def test_heartbeats_with_the_secret_are_sent_nowhere_else(servers, api):
    first, second = servers
    first.answers["/v2/nodes/id/heartbeat"] = sends_to(second.url + "/v2/nodes/id/heartbeat", 307)
    with pytest.raises(Invalid):
        api.heartbeat("id", "the node's secret", {})
    first.answers["/torrent"] = sends_to(second.url + "/torrent")
    with pytest.raises(Invalid):
        api.torrent("/torrent", "the node's secret")
    assert second.asked == []


def test_how_long_the_api_asks_to_wait_is_known(servers, api):
    servers[0].answers["/v2/nodes/1/heartbeat"] = 429, {"Retry-After": "7"}, b'{"message": "too fast"}'
    with pytest.raises(RemoteServiceUnavailable, match="429 too fast") as caught:
        api.heartbeat("1", "secret", {})
    assert caught.value.retry_after == 7
