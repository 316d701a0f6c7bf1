# SPDX-License-Identifier: Apache-2.0
"""Who asks: from a request to the Context that the service takes, for each auth_strategy."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import falcon
from oslo_config import cfg

from storelib.api.context import Context, administrator
from storelib.api.errors import NotAuthenticated
from storelib.api.middleware.own_credentials import OWN
from storelib.api.middleware.tokens import TOKEN_INFO, Callers, known
from storelib.api.policy import Policy
from storelib.exceptions import BadStoreConfiguration

Environ = dict[str, Any]
#: From a WSGI environ and a request id to the caller.
Identify = Callable[[Environ, str], Context]

#: Seconds a password that was right is believed: bcrypt is slow on purpose.
BELIEVED = 60.0
#: Bytes of a password that bcrypt looks at.
_LONGEST_PASSWORD = 72
ANONYMOUS_ROLES = ("reader",)
#: What else Keystone's middleware says of tokens, and what rules of policies call it.
_CLAIMS = tuple(
    (name, f"HTTP_X_{name.upper()}")
    for name in (
        *("user_domain_id", "project_domain_id", "service_user_id", "service_user_domain_id"),
        *("service_project_id", "service_project_domain_id"),
    )
)

#: Seconds that Keystone may take to say whose a token is, all its answers to that together.
KEYSTONE = 60.0


class Identity:
    """Falcon middleware: gives each request its id and ``req.context.caller``."""

    def __init__(self, identify: Identify, longest_request_id: int) -> None:
        self._identify = identify
        self._longest = longest_request_id

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Find out who asks; raises NotAuthenticated."""
        environ = req.env
        request_id = f"req-{uuid.uuid4()}"
        resp.set_header("x-openstack-request-id", request_id)
        given = environ.get("HTTP_X_OPENSTACK_REQUEST_ID", "")
        if len(given) > self._longest:
            raise falcon.HTTPRequestHeaderFieldsTooLarge(
                title="X-Openstack-Request-ID", description=f"a request id has at most {self._longest} characters"
            )
        if environ.get(OWN):
            req.context.caller = Context(read_only=True, request_id=request_id)
        else:
            req.context.caller = self._identify(environ, request_id)


def everybody_is_admin(environ: Environ, request_id: str) -> Context:
    """``auth_strategy = noauth``: every caller is an administrator."""
    return administrator(request_id)


class FromHeaders:
    """``auth_strategy = keystone``: what keystonemiddleware's auth_token put into the request."""

    def __init__(self, policy: Policy, *, anonymous: bool = False) -> None:
        self._policy = policy
        self._anonymous = anonymous
        #: Set where auth_token is in front.
        self.callers: Callers | None = None

    def __call__(self, environ: Environ, request_id: str) -> Context:
        if self.callers is None:
            return self._read(environ, request_id)
        context = known(environ)
        if context is None:
            context = self._read(environ, request_id)
            self.callers.remember(environ, context)
        return context.of_request(request_id)

    def _read(self, environ: Environ, request_id: str) -> Context:
        if environ.get("HTTP_X_IDENTITY_STATUS") != "Confirmed":
            if self._anonymous and "HTTP_X_AUTH_TOKEN" not in environ:
                return Context(roles=ANONYMOUS_ROLES, read_only=True, request_id=request_id)
            raise NotAuthenticated("this request needs a valid token")
        get = environ.get
        context = Context(
            get("HTTP_X_USER_ID"),
            get("HTTP_X_PROJECT_ID") or None,
            _words(get("HTTP_X_ROLES", "")),
            request_id=request_id,
            auth_token=get("HTTP_X_AUTH_TOKEN"),
            catalog=get("HTTP_X_SERVICE_CATALOG"),
            service_roles=_words(get("HTTP_X_SERVICE_ROLES", "")),
            domain_id=get("HTTP_X_DOMAIN_ID") or None,
            system_scope=_system_scope(environ),
            claims={name: get(header) for name, header in _CLAIMS}
            # Keystone says nothing of it where it has no such project.
            | {"is_admin_project": get("HTTP_X_IS_ADMIN_PROJECT", "True").lower() == "true"},
        )
        return context.as_admin(self._policy.is_admin(context))


class BasicAuth:
    """``auth_strategy = http_basic``: users of an htpasswd file, each in a project of the same name."""

    def __init__(self, policy: Policy, user_file: str, admins: Iterable[str]) -> None:
        from oslo_middleware import basic_auth, exceptions

        self._policy = policy
        self._file = user_file
        self._admins = frozenset(admins)
        self._check = basic_auth
        self._believed: dict[bytes, float] = {}
        self._lock = threading.Lock()
        # The passwords that were right are remembered as digests under a key of this process.
        self._key = secrets.token_bytes(32)
        try:
            basic_auth.validate_auth_file(user_file)
        except exceptions.ConfigInvalid as error:
            raise BadStoreConfiguration(
                f"[oslo_middleware] http_basic_auth_user_file = {user_file}: {error}"
            ) from error

    def __call__(self, environ: Environ, request_id: str) -> Context:
        import webob.exc

        try:
            name, password = self._check.parse_token(self._check.parse_header(dict(environ)))
            self._verify(name, password)
        except (webob.exc.HTTPError, KeyError) as error:
            raise NotAuthenticated("this request needs a user name and a password") from error
        roles = ["admin", "member", "reader"] if name in self._admins else ["member", "reader"]
        context = Context(name, name, roles, request_id=request_id)
        return context.as_admin(self._policy.is_admin(context))

    def _verify(self, name: str, password: bytes) -> None:
        changed = str(os.stat(self._file).st_mtime_ns).encode()
        digest = hashlib.blake2b(name.encode() + b"\0" + password + b"\0" + changed, key=self._key).digest()
        now = time.monotonic()
        if self._believed.get(digest, 0) > now:
            return
        self._compare(name, password)
        with self._lock:
            self._believed = {key: until for key, until in self._believed.items() if until > now}
            self._believed[digest] = now + BELIEVED

    def _compare(self, name: str, password: bytes) -> None:
        """Raise HTTPUnauthorized unless the password is the user's; in the same time for users that do not exist."""
        import webob.exc

        with open(self._file, encoding="utf-8") as file:
            entries = [line.strip() for line in file if line.strip()]
        if not entries:
            raise webob.exc.HTTPUnauthorized
        mine = next((entry for entry in entries if entry.startswith(f"{name}:")), None)
        short = password[:_LONGEST_PASSWORD]
        self._check.auth_entry(mine or f"nobody:{entries[0].partition(':')[2]}", short)
        if mine is None or short != password:
            raise webob.exc.HTTPUnauthorized


def strategy(conf: cfg.ConfigOpts, policy: Policy) -> tuple[Identify, Callable[[Any], Any], str]:
    """For ``[api] auth_strategy``: how callers are found, what is put around the application, the 401's challenge."""
    name = conf.api.auth_strategy
    if name == "noauth":
        return everybody_is_admin, lambda app: app, ""
    if name == "http_basic":
        from oslo_middleware import basic_auth

        conf.register_opts(basic_auth.OPTS, group="oslo_middleware")
        user_file = conf.oslo_middleware.http_basic_auth_user_file
        return BasicAuth(policy, user_file, conf.api.http_basic_admins), lambda app: app, 'Basic realm="images"'
    anonymous = conf.api.allow_anonymous_access
    identify = FromHeaders(policy, anonymous=anonymous)
    return identify, lambda app: _behind_keystone(conf, identify, app, anonymous), ""


def _behind_keystone(conf: cfg.ConfigOpts, identify: FromHeaders, app: Any, anonymous: bool) -> Any:
    from keystonemiddleware import auth_token

    from storelib.transfer.deadlines import at_most
    from storelib.transfer.http.sessions import use_connections

    class Limited(auth_token.AuthProtocol):  # type: ignore[misc]
        """Waits for Keystone no longer than that in all, also where a byte comes now and then."""

        def _create_session(self, **options: Any) -> Any:
            session = super()._create_session(**options)
            use_connections(session)
            return session

        def fetch_token(self, token: str, **options: Any) -> Any:
            with at_most(max(KEYSTONE, conf.keystone_authtoken.http_connect_timeout or 0)):
                return super().fetch_token(token, **options)

    # Without the delay the middleware responds 401 itself, with the challenge that clients know.
    checked = Limited(app, {"oslo_config_config": conf, "delay_auth_decision": anonymous})
    identify.callers = Callers(conf.keystone_authtoken.token_cache_time)
    return identify.callers.before(app, checked)


def _system_scope(environ: Environ) -> str | None:
    """``all`` for a token of the whole system.

    Of a request with a service token the header tells the scope of that one; the user's token itself tells its own.
    """
    token = environ.get(TOKEN_INFO, {}).get("token")
    if token is None:
        return environ.get("HTTP_OPENSTACK_SYSTEM_SCOPE") or None
    return "all" if (token.get("system") or {}).get("all") else None


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
