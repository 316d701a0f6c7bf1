# SPDX-License-Identifier: Apache-2.0
"""Keystone, for the drivers of OpenStack's services: tokens that are renewed in time, and the URLs of services.

keystoneauth does the talking and is imported when needed. Nothing that Keystone sent is repeated in a message.
"""

from __future__ import annotations

import abc
import contextlib
import datetime
import importlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from storelib.exceptions import BadStoreConfiguration, Forbidden, RemoteServiceUnavailable, StoreError
from storelib.transfer.contract import Context
from storelib.transfer.http.errors import caused_by, error_of_status

if TYPE_CHECKING:
    from requests import Session

LOG = logging.getLogger(__name__)

# Seconds. A server may go on giving out the same token until it expires, so it is not asked all the time.
_LEAST_INTERVAL = 5.0
# Days after which Keystone ends a trust that nobody revoked, because its process died.
_LONGEST_TRUST = 7


@dataclass(frozen=True)
class Access:
    """The URL of a service and a token for it."""

    url: str
    token: str = field(repr=False)


@dataclass(frozen=True)
class Endpoint:
    """Which URL of a service is asked: a fixed one, or one from the catalog that comes with a token."""

    service_type: str
    #: As ``public`` or, in the words of version 2, ``publicURL``.
    interface: str
    region: str | None = None
    #: Instead of the catalog's; ``%(project_id)s`` and ``%(tenant_id)s`` in it stand for the project.
    fixed: str | None = None
    #: The options that say all this, for messages.
    options: str = ""
    #: What the service is called, where the catalog has several of its type; one without a name is taken, too.
    service_name: str | None = None
    #: Other types under which a catalog may have it.
    aliases: tuple[str, ...] = ()

    def of_token(self, found: Any) -> str:
        """The URL in the catalog of a token, as keystoneauth has read it."""
        if self.fixed:
            return _filled_in(self.fixed, found.project_id)
        url = found.service_catalog.url_for(
            service_type=self.service_type, interface=self.interface.removesuffix("URL"), region_name=self.region
        )
        return checked_url(url)

    def of_request(self, context: Context | None) -> str:
        """The URL in the catalog of a request's context, in the form of version 2 or 3."""
        if self.fixed:
            return _filled_in(self.fixed, project_of(context))
        for service in self._services(context):
            for endpoint in _mappings(service.get("endpoints")):
                place = endpoint.get("region_id") or endpoint.get("region")
                matches = endpoint.get("interface") in (self.interface, self.interface.removesuffix("URL"))
                url = endpoint.get("url") if matches else endpoint.get(self.interface)
                if url and self.region in (None, place):
                    return checked_url(url)
        raise RemoteServiceUnavailable(
            f"the catalog of the request has no such service; see {self.options}", transient=False
        )

    def _services(self, context: Context | None) -> Iterator[Mapping[str, Any]]:
        """What may be it, first all of its own type."""
        found = _mappings(getattr(context, "service_catalog", None))
        for wanted in dict.fromkeys((self.service_type, *self.aliases)):
            for service in found:
                named = self.service_name is None or service.get("name") in (None, "", self.service_name)
                if service.get("type") == wanted and named:
                    yield service


class Identity(abc.ABC):
    """Who asks a service; safe to use from many threads."""

    @abc.abstractmethod
    def access(self) -> Access:
        """The service's URL and a token that is good for a while."""

    @abc.abstractmethod
    def renew(self, refused: Access) -> bool:
        """Forget a token that the service does not take; returns whether there may be another one."""

    def with_trust(self, service: KeystoneIdentity, make: Callable[[str], KeystoneIdentity]) -> Identity:
        """An identity for a transfer that may outlive the token; it must be closed."""
        return self

    def close(self) -> None:  # noqa: B027  (most have nothing to close)
        """Free what was made for the transfer, which is over."""


class TokenIdentity(Identity):
    """A user whose token is kept until it is about to expire, or is refused."""

    def __init__(self, soon: float) -> None:
        """``soon``: seconds before its end in which a token is renewed."""
        self._soon = soon
        self._lock = threading.Lock()
        self._access: Access | None = None
        self._renewed = 0.0

    def access(self) -> Access:
        """The URL with the token at hand, or a new one."""
        with self._lock:
            if self._access is None or time.monotonic() >= self._renewed:
                self._access, life = self._ask()
                self._renewed = time.monotonic() + _used(life, self._soon)
            return self._access

    def renew(self, refused: Access) -> bool:
        """Have another token asked for; returns True."""
        with self._lock:
            if self._access is not None and self._access.token == refused.token:
                self._access = None
        return True

    @abc.abstractmethod
    def _ask(self) -> tuple[Access, float | None]:
        """Ask for a token; returns with it how many seconds it is good for, None if that is not told."""


class KeystoneIdentity(TokenIdentity):
    """A user of Keystone with credentials of its own."""

    def __init__(self, url: str, plugin: Any, http: Session, timeout: float, endpoint: Endpoint, soon: float) -> None:
        """``plugin``, of keystoneauth, gets tokens from Keystone at ``url``, which has its version.

        ``timeout``: seconds to wait for Keystone.
        """
        super().__init__(soon)
        self.url = url
        self.plugin = plugin
        self.session = _session(plugin, http, timeout)
        self._endpoint = endpoint
        self._user_id = ""

    @property
    def user_id(self) -> str:
        """The id that Keystone has for this user."""
        self.access()
        return self._user_id

    def _ask(self) -> tuple[Access, float | None]:
        # It keeps the one that it has, whatever becomes of that.
        self.plugin.invalidate()
        with sensible():
            found = self.plugin.get_access(self.session)
            self._user_id = str(found.user_id)
            return Access(self._endpoint.of_token(found), found.auth_token), _life(found)


class RequestIdentity(Identity):
    """The user of one request: the token and catalog of its context. There is no other token."""

    def __init__(self, context: Context | None, endpoint: Endpoint) -> None:
        token = getattr(context, "auth_token", None)
        if not token:
            raise Forbidden("a multi-tenant store needs the context of a request with its token")
        self.context = context
        self._access = Access(endpoint.of_request(context), str(token))

    def access(self) -> Access:
        """The token and the URL of the request, as long as it lasts."""
        return self._access

    def renew(self, refused: Access) -> bool:
        """False: a request brings no other token."""
        return False

    def with_trust(self, service: KeystoneIdentity, make: Callable[[str], KeystoneIdentity]) -> Identity:
        """The user of the request, then one whom the user trusts."""
        return TrustIdentity(self, service, make)


class TrustIdentity(Identity):
    """The user of one request, and when its token is refused, the store's own user whom the user trusts.

    The trust is made while the token is good, at the start, and revoked by ``close``.
    """

    def __init__(
        self, user: RequestIdentity, service: KeystoneIdentity, make: Callable[[str], KeystoneIdentity]
    ) -> None:
        self._user = user
        self._service = service
        self._trusts = f"{service.url}/OS-TRUST/trusts"
        self._lock = threading.Lock()
        self._trusted: KeystoneIdentity | None = None
        self._trust: str | None = None
        try:
            self._trust = self._make_trust()
            self._trusted = make(self._trust)
        except Exception as error:  # noqa: BLE001  (the token may well last)
            LOG.warning("no trust could be made, so the transfer ends with its token: %s", type(error).__name__)
        self._renewed = False

    def access(self) -> Access:
        """The request's own, or the trust's."""
        own = self._user.access()
        if not self._renewed or self._trusted is None:
            return own
        return Access(own.url, self._trusted.access().token)

    def renew(self, refused: Access) -> bool:
        """Go over to the trust."""
        if self._trusted is None:
            return False
        with self._lock:
            if self._renewed:
                return self._trusted.renew(refused)
            self._renewed = True
            return True

    def close(self) -> None:
        """Revoke the trust, if one was made."""
        with self._lock:
            trust, self._trust = self._trust, None
        if trust is None or self._trusted is None:
            return
        try:
            self._trusted.session.delete(f"{self._trusts}/{trust}")
        except Exception as error:  # noqa: BLE001  (it ends by itself some day)
            LOG.warning("a trust could not be revoked: %s", type(error).__name__)

    def _make_trust(self) -> str:
        from keystoneauth1.identity import v3

        session = self._service.session
        plugin = v3.Token(self._service.url, self._user.access().token, project_id=project_of(self._user.context))
        trustor = _session(plugin, session.session, session.timeout)
        known = plugin.get_access(trustor)
        ends = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=_LONGEST_TRUST)
        trust = {
            "trustor_user_id": known.user_id,
            "trustee_user_id": self._service.user_id,
            "project_id": known.project_id,
            "impersonation": True,
            "roles": [{"name": role} for role in known.role_names or ()],
            "expires_at": ends.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        response = trustor.post(self._trusts, json={"trust": trust})
        return str(response.json()["trust"]["id"])


def error_of_keystone(error: Exception, subject: str, prefix: str) -> StoreError | None:
    """The error for one of keystoneauth, None for any other; options that are named begin with ``prefix``."""
    if not type(error).__module__.startswith("keystoneauth1"):
        return None
    exceptions: Any = importlib.import_module("keystoneauth1.exceptions")

    if is_untrusted(error):
        trust = f"the certificate of the identity service is not trusted; set {prefix}_cacert"
        return RemoteServiceUnavailable(f"{subject}: {trust}", transient=False)
    if isinstance(error, exceptions.ConnectionError):
        return RemoteServiceUnavailable(f"{subject}: the identity service does not answer")
    if isinstance(error, (exceptions.EndpointNotFound, exceptions.EmptyCatalog)):
        options = f"{prefix}_region, _endpoint_type, _service_type and _endpoint"
        return BadStoreConfiguration(f"{subject}: the catalog has no such service; see {options}")
    if isinstance(error, exceptions.InvalidResponse):
        return RemoteServiceUnavailable(
            f"{subject}: what answers at {prefix}_auth_address is no identity service: a page, a redirect, a portal"
        )
    status = getattr(error, "http_status", None)
    if status in (401, 403):
        return Forbidden(f"{subject}: the identity service does not accept the credentials")
    if isinstance(status, int) and (status in (408, 429) or status >= 500):
        headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", None) or {}
        return error_of_status(status, headers, f"{subject}: the identity service answered {status}", transient=True)
    return BadStoreConfiguration(f"{subject}: the identity service cannot be used: {type(error).__name__}")


def is_untrusted(error: Exception) -> bool:
    """Whether one of keystoneauth is about a certificate; its SSLError is also a connection that was cut early."""
    import ssl

    return caused_by(error.__cause__ or error.__context__ or error, ssl.SSLCertVerificationError)


@contextlib.contextmanager
def sensible() -> Iterator[None]:
    """Raise for what the identity service sent, and keystoneauth did not check."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError):
        raise RemoteServiceUnavailable("the identity service sent a token or a catalog that makes no sense") from None


def checked_url(url: Any) -> str:
    """The URL of a service that an identity service tells, without a slash at its end."""
    if not isinstance(url, str) or not url.lower().startswith(("http://", "https://")):
        raise RemoteServiceUnavailable("the URL that the identity service tells is none")
    return url.rstrip("/")


def _session(plugin: Any, http: Session, timeout: float) -> Any:
    from keystoneauth1 import session

    # A password goes to the address it is for, not to where a captive portal redirects.
    return session.Session(plugin, verify=http.verify, timeout=timeout, session=http, redirect=False)


def _used(life: float | None, soon: float) -> float:
    """Seconds that a token is used: until it is about to expire, but at least for half of its life and some seconds."""
    if life is None:
        return math.inf
    # One that lives no longer than ``soon`` would be asked for anew for each request.
    return max(life - min(soon, life / 2), min(life, _LEAST_INTERVAL))


def _life(found: Any) -> float | None:
    """Seconds from the issue of a token to its end, whatever our own clock says; None if it tells none."""
    try:
        expires = found.expires
        life = (expires - (found.issued or datetime.datetime.now(datetime.timezone.utc))).total_seconds()
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return float(life) if life > 0 else None


def _filled_in(endpoint: str, project_id: str | None) -> str:
    for name in ("project_id", "tenant_id"):
        endpoint = endpoint.replace(f"%({name})s", project_id or "")
    return endpoint.rstrip("/")


def project_of(context: Context | None) -> str | None:
    """The project of a request; contexts of different age call it differently."""
    return getattr(context, "project_id", None) or getattr(context, "tenant", None)


def _mappings(found: Any) -> Iterable[Mapping[str, Any]]:
    """What is a mapping in a list; the rest of what a request brings along makes no sense here."""
    return [item for item in found if isinstance(item, Mapping)] if isinstance(found, list | tuple) else []
