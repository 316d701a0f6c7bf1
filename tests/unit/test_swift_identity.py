# SPDX-License-Identifier: Apache-2.0
"""Tokens and catalogs of the swift driver: how long one is used, and what is made of answers that are none."""

import datetime
import json
import socket
import types

import pytest
from object_store import ObjectStore
from scripted_server import reply

from storelib.drivers.swift import SwiftStore
from storelib.drivers.swift.writer import SwiftWriter
from storelib.exceptions import BadStoreConfiguration, Forbidden, RemoteServiceUnavailable, StoreError
from storelib.registry import open_store
from storelib.transfer.http import keystone as keystones

KiB = 1024


@pytest.fixture
def clock(monkeypatch):
    """Time passes where a test says so."""
    now = [1000.0]
    monkeypatch.setattr(keystones, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    return now


class Keystone(ObjectStore):
    """Version 3 in front of the object store; ``change`` makes something else of each token."""

    def __init__(self):
        super().__init__(self.identity)
        self.life = 3600.0
        self.given = 0
        self.change = lambda token: token
        self.headers = {"X-Subject-Token": "secret"}

    def identity(self, request):
        if not request.target.startswith("/v3/auth/tokens"):
            return None
        self.given += 1
        now = datetime.datetime.now(datetime.timezone.utc)
        endpoints = [{"interface": "public", "region": "one", "region_id": "one", "url": f"{self.url}/v1/AUTH_test"}]
        token = {
            "expires_at": (now + datetime.timedelta(seconds=self.life)).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "issued_at": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "user": {"id": "u", "name": "n", "domain": {"id": "default", "name": "Default"}},
            "project": {"id": "p", "name": "p", "domain": {"id": "default", "name": "Default"}},
            "catalog": [{"type": "object-store", "id": "s", "name": "swift", "endpoints": endpoints}],
        }
        return reply(201, self.headers, json.dumps({"token": self.change(token)}).encode())

    def open(self, **options):
        settings = {
            "swift_store_auth_address": f"{self.url}/v3",
            "swift_store_user": "project:user",
            "swift_store_key": "password",
            "swift_store_create_container_on_put": True,
            "swift_store_read_timeout": 5.0,
            "transfer_retries": 0,
        }
        return open_store(SwiftStore, **settings | options)


@pytest.fixture
def keystone():
    remote = Keystone()
    with remote.serve() as server:
        remote.server = server
        yield remote


@pytest.fixture
def swift():
    remote = ObjectStore()
    with remote.serve() as server:
        remote.server = server
        yield remote


# -- How long a token is used -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("life", [3, 10, 50, 59, 60, 61, 90, 119, 121, 3600])
@pytest.mark.parametrize("version", ["1", "3"])
def test_short_lived_token_is_not_renewed_for_every_segment(keystone, swift, clock, monkeypatch, version, life):
    monkeypatch.setattr(SwiftWriter, "part_size", lambda self, number, size: 4 * KiB)
    keystone.life, swift.token_life = life, str(life)
    (swift if version == "1" else keystone).open().add("id", bytes(100 * KiB))
    given = keystone.given or [request.target for request in swift.server.requests].count("/auth/v1.0")
    assert given == 1


@pytest.mark.parametrize(("life", "used"), [(3600, 3540), (121, 61), (90, 45), (20, 10)])
@pytest.mark.parametrize("version", ["1", "3"])
def test_token_is_renewed_before_its_end(keystone, swift, clock, version, life, used):
    keystone.life, swift.token_life = life, str(life)
    account = (swift if version == "1" else keystone).open().service.own_account()

    def given():
        list(account.listing())
        return keystone.given or [request.target for request in swift.server.requests].count("/auth/v1.0")

    assert given() == 1
    clock[0] += used - 1
    assert given() == 1
    clock[0] += 2
    assert given() == 2
    assert given() == 2


@pytest.mark.parametrize("minutes", [-90, 90])
def test_clock_that_is_wrong_renews_no_token(keystone, minutes):
    """The token says when it was issued, by the same clock."""
    off = datetime.timedelta(minutes=minutes)

    def change(token):
        dates = {name: datetime.datetime.fromisoformat(token[name][:-1]) + off for name in ("issued_at", "expires_at")}
        return token | {name: f"{date.isoformat()}Z" for name, date in dates.items()}

    keystone.change = change
    store = keystone.open()
    for name in "abc":
        store.add(name, b"data")
    assert keystone.given == 1


@pytest.mark.parametrize(
    "dates",
    [
        {"expires_at": "2036-11-28T06:00:00Z"},
        {"expires_at": "2036-11-28T06:00:00.000000Z", "issued_at": "2026-11-28T06:00:00"},
        {"expires_at": "2036-11-28T06:00:00+02:00"},
        {"expires_at": "2036-11-28 06:00:00"},
        {"expires_at": None},
        {"expires_at": ""},
        {"expires_at": "never"},
        {"expires_at": 2111111111},
        {"expires_at": "2000-01-01T00:00:00Z"},
        {"issued_at": None},
        {"issued_at": "just now"},
        {"issued_at": "2996-01-01T00:00:00Z"},
    ],
    ids=repr,
)
def test_dates_of_a_token_in_any_form_are_no_error(keystone, dates):
    keystone.change = lambda token: token | dates
    store = keystone.open()
    store.add("a", b"data")
    store.add("b", b"data")
    assert keystone.given == 1


def test_token_without_dates_is_used(keystone):
    keystone.change = lambda token: {name: token[name] for name in ("user", "project", "catalog")}
    keystone.open().add("id", b"data")
    assert keystone.given == 1


@pytest.mark.parametrize("life", ["", "soon", "-5", "3600.5", "\xb2", "NaN", "1e999", "9" * 400])
def test_life_of_a_version_1_token_in_any_form_is_no_error(swift, life):
    swift.token_life = life
    store = swift.open()
    store.add("a", b"data")
    store.add("b", b"data")
    assert [request.target for request in swift.server.requests].count("/auth/v1.0") == 1


# -- Answers that are none --------------------------------------------------------------------------------------------


def without(name):
    return lambda token: {key: value for key, value in token.items() if key != name}


def endpoint(**changes):
    def change(token):
        [service] = token["catalog"]
        [only] = service["endpoints"]
        return token | {"catalog": [service | {"endpoints": [only | changes]}]}

    return change


WRONG = {
    "no token": lambda token: None,
    "text": lambda token: "token",
    "list": lambda token: [token],
    "no user": without("user"),
    "no catalog": without("catalog"),
    "catalog of nothing": lambda token: token | {"catalog": None},
    "catalog of texts": lambda token: token | {"catalog": ["object-store"]},
    "service without endpoints": lambda token: token | {"catalog": [{"type": "object-store"}]},
    "endpoints of nothing": lambda token: token | {"catalog": [{"type": "object-store", "endpoints": None}]},
    "service without a type": lambda token: token | {"catalog": [{"endpoints": []}]},
    "no URL": endpoint(url=None),
    "no HTTP": endpoint(url="ftp://swift/v1"),
    "a path": endpoint(url="/v1/AUTH_test"),
    "a number": endpoint(url=5),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_token_that_makes_no_sense_is_one_error(keystone, wrong):
    keystone.change = WRONG[wrong]
    with pytest.raises((RemoteServiceUnavailable, BadStoreConfiguration)) as caught:
        keystone.open().add("id", b"data")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"region": None, "region_id": None}, {"region": "two", "region_id": "two"}])
def test_catalog_without_the_region_names_the_option(keystone, changes):
    keystone.change = endpoint(**changes)
    keystone.open().add("id", b"data")
    with pytest.raises(BadStoreConfiguration, match="swift_store_region"):
        keystone.open(swift_store_region="one").add("other", b"data")


def test_catalog_that_was_mended_is_seen_at_once(keystone):
    keystone.change = endpoint(region="two", region_id="two")
    store = keystone.open(swift_store_region="one")
    with pytest.raises(BadStoreConfiguration):
        store.add("id", b"data")
    keystone.change = lambda token: token
    store.add("id", b"data")
    assert keystone.given == 2


def test_endpoint_with_the_old_name_of_its_region_is_found(keystone):
    def change(token):
        [service] = token["catalog"]
        [only] = service["endpoints"]
        return token | {"catalog": [service | {"endpoints": [{k: v for k, v in only.items() if k != "region_id"}]}]}

    keystone.change = change
    keystone.open(swift_store_region="one").add("id", b"data")


@pytest.mark.parametrize(
    "answer",
    [
        reply(200, {"Content-Type": "text/html", "X-Subject-Token": "secret"}, b"<html>Please log in</html>"),
        reply(200, {}, b"<html>Please log in</html>"),
        reply(201, {"X-Subject-Token": "secret"}, b"{}"),
        reply(201, {"X-Subject-Token": "secret"}, b"[]"),
        reply(201, {"X-Subject-Token": "secret"}, b"null"),
        reply(201, {}, json.dumps({"token": {"user": {"id": "u"}}}).encode()),
        reply(200),
        reply(204),
    ],
)
def test_answer_that_is_no_token_is_a_transient_error(keystone, answer):
    keystone.instead = lambda request: answer if request.target.startswith("/v3/") else None
    with pytest.raises(RemoteServiceUnavailable) as caught:
        keystone.open().add("id", b"data")
    assert caught.value.transient
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_password_is_not_sent_to_where_a_portal_redirects(keystone, code):
    with socket.create_server(("127.0.0.1", 0)) as portal:
        portal.settimeout(0.05)
        location = f"http://127.0.0.1:{portal.getsockname()[1]}/login"
        keystone.instead = lambda request: reply(code, {"Location": location})
        with pytest.raises(RemoteServiceUnavailable):
            keystone.open().add("id", b"data")
        with pytest.raises(TimeoutError):
            portal.accept()


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize(("told", "seconds"), [("7", 7.0), ("soon", None), ("-1", None), (None, None)])
def test_retry_after_of_the_identity_service_is_passed_on(keystone, status, told, seconds):
    headers = {} if told is None else {"Retry-After": told}
    keystone.instead = lambda request: reply(status, headers)
    with pytest.raises(RemoteServiceUnavailable) as caught:
        keystone.open().add("id", b"data")
    assert caught.value.transient
    assert caught.value.retry_after == seconds


@pytest.mark.parametrize(
    "url",
    ["", "/v1/AUTH_test", "AUTH_test", "ftp://swift/v1", "None"],
)
def test_storage_url_that_is_none_is_one_error(swift, url):
    swift.instead = lambda request: (
        reply(200, {"X-Storage-Url": url, "X-Auth-Token": "secret"}) if "/auth/" in request.target else None
    )
    with pytest.raises((RemoteServiceUnavailable, BadStoreConfiguration)):
        swift.open().add("id", b"data")


@pytest.mark.parametrize(
    "catalog",
    [
        None,
        5,
        "text",
        {"type": "object-store"},
        [None, 5, "text"],
        [{}],
        [{"type": "object-store"}],
        [{"type": "object-store", "endpoints": None}],
        [{"type": "object-store", "endpoints": [None, "text", {}]}],
        [{"type": "object-store", "endpoints": [{"interface": "public", "url": 5}]}],
        [{"type": "object-store", "endpoints": [{"publicURL": "ftp://swift/v1"}]}],
    ],
    ids=repr,
)
def test_catalog_of_a_request_that_makes_no_sense_is_one_error(keystone, catalog):
    request = types.SimpleNamespace(auth_token="token", project_id="1", service_catalog=catalog)
    with pytest.raises(StoreError) as caught:
        keystone.open(swift_store_multi_tenant=True).add("id", b"data", context=request)
    assert not isinstance(caught.value, Forbidden)


# -- Time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["get", "get_size", "delete", "add"])
@pytest.mark.parametrize("deaf", ["/v1/", "/v3/"], ids=["swift", "keystone"])
def test_transfer_timeout_bounds_what_the_clients_wait(keystone, call, deaf):
    keystone.open().add("id", b"data")
    store = keystone.open(transfer_timeout=0.2, swift_store_read_timeout=600.0, swift_store_connect_timeout=600.0)
    uri = store.service.location_of(keystone.open().service.own_account(), "glance", "id").uri
    plain = keystone.identity

    def silent():
        yield b""
        released.wait(30)

    import threading

    released = threading.Event()
    keystone.instead = lambda request: silent() if request.target.startswith(deaf) else plain(request)
    try:
        with pytest.raises(StoreError):
            store.add("other", b"data") if call == "add" else getattr(store, call)(uri)
    finally:
        released.set()
