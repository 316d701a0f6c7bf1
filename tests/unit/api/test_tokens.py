# SPDX-License-Identifier: Apache-2.0
"""Whose token was confirmed a moment ago need not be confirmed again; under which conditions, and for how long."""

from __future__ import annotations

import datetime
import time
import types

import pytest

from storelib.api.context import Context
from storelib.api.errors import NotAuthenticated
from storelib.api.middleware import tokens
from storelib.api.middleware.identity import FromHeaders
from storelib.api.middleware.tokens import BELIEVED, Callers


class Everybody:
    """A policy under which who has the role is an administrator."""

    def is_admin(self, context: Context) -> bool:
        return "admin" in context.roles


class Keystone:
    """What auth_token does with a request, and how often it was asked. Tokens are names of users."""

    def __init__(self, app) -> None:
        self.app = app
        self.asked = 0
        self.token = {"expires_at": in_seconds(3600)}
        self.revoked = False

    def __call__(self, environ, start_response):
        self.asked += 1
        for name in [name for name in environ if name.startswith(("HTTP_X_ROLES", "HTTP_X_IDENTITY"))]:
            del environ[name]
        if "HTTP_X_AUTH_TOKEN" in environ and not self.revoked:
            confirmed = {"HTTP_X_IDENTITY_STATUS": "Confirmed", "HTTP_X_ROLES": "reader"}
            environ.update({**confirmed, "HTTP_X_USER_ID": environ["HTTP_X_AUTH_TOKEN"]})
            environ["keystone.token_info"] = {"token": self.token}
        return self.app(environ, start_response)


def in_seconds(seconds: float) -> str:
    moment = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Deployed:
    """The middleware in front of an application that answers who asked."""

    def __init__(self, seconds: float = 300) -> None:
        self.identify = FromHeaders(Everybody())  # type: ignore[arg-type]
        self.identify.callers = Callers(seconds)
        self.requests = 0
        self.keystone = Keystone(self.answer)
        self.wsgi = self.identify.callers.before(self.answer, self.keystone)

    def answer(self, environ, start_response):
        self.requests += 1
        return [self.identify(environ, f"req-{self.requests}")]

    def ask(self, token: str | None = "jane", **headers: str) -> Context:
        environ = {f"HTTP_{name}": value for name, value in headers.items()}
        if token is not None:
            environ["HTTP_X_AUTH_TOKEN"] = token
        return self.wsgi(environ, None)[0]


@pytest.fixture
def clock(monkeypatch):
    """Moves as it is told."""
    now = [time.monotonic()]
    monkeypatch.setattr(tokens, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_known_caller_is_not_asked_about_again():
    api = Deployed()
    first, second = api.ask(), api.ask()
    assert api.keystone.asked == 1
    assert (first.user_id, first.roles, first.is_admin) == (second.user_id, second.roles, second.is_admin)
    assert second.user_id == "jane"


def test_each_request_has_its_own_id():
    api = Deployed()
    assert [api.ask().request_id for _ in range(3)] == ["req-1", "req-2", "req-3"]


def test_another_token_is_another_caller():
    api = Deployed()
    assert [api.ask("jane").user_id, api.ask("john").user_id] == ["jane", "john"]
    assert api.keystone.asked == 2


def test_he_is_asked_about_after_a_few_seconds(clock):
    api = Deployed()
    api.ask()
    api.keystone.revoked = True
    clock[0] += BELIEVED - 0.1
    api.ask()
    clock[0] += 0.2
    with pytest.raises(NotAuthenticated):
        api.ask()


def test_not_after_his_token_has_expired(clock):
    api = Deployed()
    api.keystone.token = {"expires_at": in_seconds(2)}
    api.ask()
    clock[0] += 2.1
    api.ask()
    assert api.keystone.asked == 2


@pytest.mark.parametrize("seconds", [0, -1])
def test_nobody_is_known_where_tokens_are_not_to_be_cached(seconds):
    api = Deployed(seconds)
    api.ask(), api.ask()
    assert api.keystone.asked == 2


@pytest.mark.parametrize("name", ["application_credential", "bind", "oauth2_credential"])
def test_a_token_that_is_not_valid_for_every_request_is_checked_for_each(name):
    api = Deployed()
    api.keystone.token[name] = {"x": "y"}
    api.ask(), api.ask()
    assert api.keystone.asked == 2


def test_a_service_token_is_always_checked():
    api = Deployed()
    api.ask(X_SERVICE_TOKEN="nova"), api.ask(), api.ask(X_SERVICE_TOKEN="nova")
    assert api.keystone.asked == 3


def test_who_is_refused_is_not_known():
    api = Deployed()
    api.keystone.revoked = True
    for _ in range(2):
        with pytest.raises(NotAuthenticated):
            api.ask()
    assert api.keystone.asked == 2


@pytest.mark.parametrize("token", ["jane", None])
def test_what_a_client_says_of_itself_does_not_count(token):
    api = Deployed()
    api.ask()
    forged = {"X_ROLES": "admin", "X_IDENTITY_STATUS": "Confirmed", "X_USER_ID": "root"}
    if token is None:
        with pytest.raises(NotAuthenticated):
            api.ask(token, **forged)
        return
    context = api.ask(token, **forged)
    assert (context.user_id, context.roles, context.is_admin) == ("jane", ["reader"], False)


def test_no_more_than_so_many_are_known(monkeypatch):
    monkeypatch.setattr(tokens, "MEMORY", 2)
    api = Deployed()
    for name in ("a", "b", "c", "c", "b"):
        api.ask(name)
    assert api.keystone.asked == 3
    assert len(api.identify.callers._callers) == 2
    api.ask("a")
    assert api.keystone.asked == 4


@pytest.mark.parametrize(
    ("token", "header", "scope"),
    [
        ({"system": {"all": True}}, None, "all"),
        # The middleware overwrites the header with what it is for the service's token.
        ({"system": {"all": True}}, "", "all"),
        ({"project": {"id": "p"}}, "all", None),
        ({"project": {"id": "p"}}, None, None),
    ],
)
def test_the_scope_is_that_of_the_users_own_token(token, header, scope):
    environ = {"HTTP_X_IDENTITY_STATUS": "Confirmed", "keystone.token_info": {"token": token}}
    if header is not None:
        environ["HTTP_OPENSTACK_SYSTEM_SCOPE"] = header
    assert FromHeaders(Everybody())(environ, "req").system_scope == scope  # type: ignore[arg-type]
