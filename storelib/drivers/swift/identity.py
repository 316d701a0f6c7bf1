# SPDX-License-Identifier: Apache-2.0
"""Who a store is: its credentials, and with them a token and the URL of an account.

Tokens are renewed before they expire and when Swift refuses them. One class for each way to get them;
everything else asks for ``access()`` and knows no difference.
"""

from __future__ import annotations

import abc
import configparser
import contextlib
import datetime
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from storelib.drivers.swift.errors import error_of_status, number
from storelib.exceptions import BadStoreConfiguration, BadStoreUri, Forbidden, RemoteServiceUnavailable

if TYPE_CHECKING:
    from storelib.drivers.swift.transport import Connections

LOG = logging.getLogger(__name__)

# Seconds. A server may go on giving out the same token until it expires, so it is not asked all the time.
_LEAST_INTERVAL = 5.0
# Days after which Keystone ends a trust that nobody revoked, because its process died.
_LONGEST_TRUST = 7
#: The reference of the account that the options themselves name.
OPTIONS_REFERENCE = ""
# https://host:5000 and https://host:5000/identity need a version, https://host:5000/v3 has one.
_VERSION = re.compile(r"/v[0-9.]+/*$")
_URL = re.compile(r"https?://[^/\s@?#]+(/[^\s@?#]*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Credentials:
    """One account at one identity service; ``str`` and ``repr`` show no secret."""

    auth_address: str
    auth_version: str = "3"
    user: str | None = field(default=None, repr=False)
    key: str | None = field(default=None, repr=False)
    application_credential_id: str | None = None
    application_credential_secret: str | None = field(default=None, repr=False)
    project_name: str | None = None
    project_id: str | None = None
    user_domain_id: str | None = None
    user_domain_name: str | None = None
    project_domain_id: str | None = None
    project_domain_name: str | None = None

    def __post_init__(self) -> None:
        for kind in ("user", "project"):
            if not getattr(self, f"{kind}_domain_name") and not getattr(self, f"{kind}_domain_id"):
                object.__setattr__(self, f"{kind}_domain_id", "default")
        why = self._missing()
        if why:
            raise BadStoreConfiguration(why)

    @property
    def identity_url(self) -> str:
        """The URL of the identity service, with its version."""
        url = self.auth_address.rstrip("/")
        return url if self.auth_version == "1" or _VERSION.search(url) else f"{url}/v3"

    @property
    def user_name(self) -> str | None:
        """The user without the project before it."""
        return self.user.rpartition(":")[2] if self.user and self.auth_version != "1" else self.user

    @property
    def scope(self) -> Mapping[str, str | None]:
        """The project, by name or id."""
        if self.project_id or self.project_name:
            return {"project_id": self.project_id, "project_name": self.project_name}
        return {"project_name": (self.user or "").rpartition(":")[0] or None}

    def _missing(self) -> str | None:
        if not _URL.fullmatch(self.auth_address):
            return "the address of the identity service (swift_store_auth_address) is no http or https URL"
        if self.auth_version not in ("1", "3"):
            return f"version {self.auth_version} of the identity service is not supported; use 3, or 1 for tempauth"
        if self.application_credential_id and self.auth_version == "3":
            if not self.application_credential_secret:
                return "an application credential needs its secret (swift_store_application_credential_secret)"
            return None
        if not self.user or not self.key:
            return "user and key are needed (swift_store_user, swift_store_key), or an application credential"
        if self.auth_version == "3" and not any(self.scope.values()):
            return "the project is needed: swift_store_project_name, or swift_store_user as project:user"
        return None


# What the file of references may tell, and the options but for the two names of domains.
_KEYS = frozenset(known.name for known in fields(Credentials))
_OPTIONS = _KEYS - {"user_domain_name", "project_domain_name"}


def read_credentials(conf: Any) -> Mapping[str, Credentials]:
    """Every account that the options name, by reference; raises BadStoreConfiguration."""
    if conf.swift_store_config_file:
        return from_file(conf.swift_store_config_file)
    if conf.swift_store_multi_tenant and not conf.swift_store_auth_address:
        return {}
    return {OPTIONS_REFERENCE: from_options(conf)}


def from_options(conf: Any) -> Credentials:
    """The account that the store's options name; raises BadStoreConfiguration."""
    if not conf.swift_store_auth_address:
        raise BadStoreConfiguration("swift_store_auth_address is needed, or swift_store_config_file")
    return Credentials(**{key: getattr(conf, f"swift_store_{key}") for key in _OPTIONS})


def from_file(path: str) -> dict[str, Credentials]:
    """The accounts in a reference file, by section; raises BadStoreConfiguration, which quotes no line of it."""
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise BadStoreConfiguration(f"swift_store_config_file {path} cannot be read: {reason}") from None
    except configparser.Error as error:
        line = getattr(error, "lineno", None)
        where = f", line {line}" if line else ""
        raise BadStoreConfiguration(f"swift_store_config_file {path}{where}: not an INI file") from None
    found = {name: _section(path, name, dict(parser[name])) for name in parser.sections()}
    if not found:
        raise BadStoreConfiguration(f"swift_store_config_file {path} has no section")
    return found


def _section(path: str, name: str, values: dict[str, str]) -> Credentials:
    known = {key: _unquoted(value) or None for key, value in values.items() if key in _KEYS}
    known["auth_address"] = known.get("auth_address") or ""
    known["auth_version"] = known.get("auth_version") or "3"
    try:
        return Credentials(**known)  # type: ignore[arg-type]
    except BadStoreConfiguration as error:
        raise BadStoreConfiguration(f"swift_store_config_file {path}, [{name}]: {error}") from None


def _unquoted(value: str) -> str:
    """Old files have values in quotation marks, which are not part of them."""
    value = value.strip()
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


@dataclass(frozen=True)
class Access:
    """What a request needs."""

    url: str
    token: str = field(repr=False)


class Lease:
    """How long a token is used: until it is about to expire, but at least for half of its life and some seconds."""

    def __init__(self, life: float | None, soon: float) -> None:
        """``life``: seconds, None if the service does not tell; ``soon``: seconds before its end."""
        self._renewed = math.inf
        if life is not None:
            # One that lives no longer than ``soon`` would be asked for anew for each request.
            used = max(life - min(soon, life / 2), min(life, _LEAST_INTERVAL))
            self._renewed = time.monotonic() + used

    @property
    def is_over(self) -> bool:
        """Whether it is time for another token."""
        return time.monotonic() >= self._renewed


class Identity(abc.ABC):
    """Safe to use from many threads."""

    @abc.abstractmethod
    def access(self) -> Access:
        """The account's URL and a token that is good for a while."""

    @abc.abstractmethod
    def renew(self, refused: Access) -> bool:
        """Forget a token that Swift does not take; returns whether there may be another one."""

    def with_trust(self, service: V3Identity, make: Callable[[str], V3Identity]) -> Identity:
        """One for a transfer that may outlive the token; it must be closed."""
        return self

    def close(self) -> None:  # noqa: B027  (most have nothing to close)
        """The transfer is over."""


class V1Identity(Identity):
    """Version 1: one request with user and key, as tempauth and radosgw take it."""

    def __init__(self, connections: Connections, credentials: Credentials, conf: Any) -> None:
        self._connections = connections
        self._credentials = credentials
        self._soon = conf.swift_store_expire_soon_interval
        self._endpoint = conf.swift_store_endpoint
        self._lock = threading.Lock()
        self._access: Access | None = None
        self._lease = Lease(None, self._soon)

    def access(self) -> Access:
        """The token at hand unless it expires soon."""
        with self._lock:
            if self._access is None or self._lease.is_over:
                self._access = self._ask()
            return self._access

    def renew(self, refused: Access) -> bool:
        """Have the service asked again."""
        with self._lock:
            if self._access == refused:
                self._access = None
        return True

    def _ask(self) -> Access:
        credentials = self._credentials
        headers = {"X-Auth-User": credentials.user or "", "X-Auth-Key": credentials.key or ""}
        response = self._connections.send("GET", credentials.identity_url, headers)
        _ = response.content
        status, found = response.status_code, response.headers
        url, token = found.get("X-Storage-Url"), found.get("X-Auth-Token")
        if status in (401, 403):
            raise Forbidden("the identity service does not accept swift_store_user and swift_store_key")
        if status == 404 or (200 <= status < 300 and not (url and token)):
            raise BadStoreConfiguration("at swift_store_auth_address there is no identity service of version 1")
        if not 200 <= status < 300:
            raise error_of_status("GET", status, found, "a token")
        self._lease = Lease(number(found.get("X-Auth-Token-Expires")), self._soon)
        return Access(_url(self._endpoint or url).rstrip("/"), token or "")


class V3Identity(Identity):
    """Version 3: Keystone, with a password or an application credential."""

    def __init__(self, connections: Connections, credentials: Credentials, conf: Any, trust: str | None = None) -> None:
        from keystoneauth1 import session

        self._conf = conf
        self.credentials = credentials
        self.plugin = _plugin(credentials, trust)
        # A password goes to the address it is for, not to where a captive portal redirects.
        self.session = session.Session(
            self.plugin,
            verify=connections.verify,
            timeout=connections.timeout,
            session=connections.session(),
            redirect=False,
        )
        self._lock = threading.Lock()
        self._known: Any = None
        self._lease = Lease(None, 0)

    def access(self) -> Access:
        """keystoneauth keeps the token, and gets a new one when we say so."""
        found = self._reference()
        return Access(self._endpoint(found), found.auth_token)

    def renew(self, refused: Access) -> bool:
        """Have Keystone asked for a new one."""
        with self._lock:
            found = self.plugin.auth_ref
            if found is not None and found.auth_token == refused.token:
                self.plugin.invalidate()
        return True

    @property
    def user_id(self) -> str:
        """Who we are."""
        return str(self._reference().user_id)

    def _reference(self) -> Any:
        with self._lock:
            if self._lease.is_over:
                self.plugin.invalidate()
            with _sensible():
                found = self.plugin.get_access(self.session)
                # What a token must have; the rest is looked for where it is needed.
                _ = found.auth_token, found.user_id, found.project_id
            if found is not self._known:
                self._known = found
                self._lease = Lease(_life(found), self._conf.swift_store_expire_soon_interval)
            return found

    def _endpoint(self, found: Any) -> str:
        conf = self._conf
        if conf.swift_store_endpoint:
            return filled_in(conf.swift_store_endpoint, found.project_id)
        with _sensible():
            url = found.service_catalog.url_for(
                service_type=conf.swift_store_service_type,
                interface=conf.swift_store_endpoint_type.removesuffix("URL"),
                region_name=conf.swift_store_region,
            )
        return _url(url).rstrip("/")


class RequestIdentity(Identity):
    """The user of one request: the token and catalog of its context. There is no other token."""

    def __init__(self, context: Any, conf: Any) -> None:
        token = getattr(context, "auth_token", None)
        if not token:
            raise Forbidden("a multi-tenant store needs the context of a request with its token")
        self.context = context
        self._access = Access(_url_in_catalog(context, conf), str(token))

    def access(self) -> Access:
        """The same one for the whole request."""
        return self._access

    def renew(self, refused: Access) -> bool:
        """False: a request brings no other token."""
        return False

    def with_trust(self, service: V3Identity, make: Callable[[str], V3Identity]) -> Identity:
        """The user of the request, then one whom the user trusts."""
        return TrustIdentity(self, service, make)


class TrustIdentity(Identity):
    """The user of one request, and when its token is refused, the store's own user whom the user trusts.

    The trust is made while the token is good, at the start, and revoked by ``close``.
    """

    def __init__(self, user: RequestIdentity, service: V3Identity, make: Callable[[str], V3Identity]) -> None:
        self._user = user
        self._service = service
        self._lock = threading.Lock()
        self._trusted: V3Identity | None = None
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
            self._trusted.session.delete(f"{self._url}/OS-TRUST/trusts/{trust}")
        except Exception as error:  # noqa: BLE001  (it ends by itself some day)
            LOG.warning("a trust could not be revoked: %s", type(error).__name__)

    @property
    def _url(self) -> str:
        return self._service.credentials.identity_url

    def _make_trust(self) -> str:
        from keystoneauth1 import session
        from keystoneauth1.identity import v3

        context, service = self._user.context, self._service
        plugin = v3.Token(self._url, self._user.access().token, project_id=project_of(context))
        trustor = session.Session(
            plugin, verify=service.session.verify, timeout=service.session.timeout, session=service.session.session
        )
        known = plugin.get_access(trustor)
        ends = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=_LONGEST_TRUST)
        trust = {
            "trustor_user_id": known.user_id,
            "trustee_user_id": service.user_id,
            "project_id": known.project_id,
            "impersonation": True,
            "roles": [{"name": role} for role in known.role_names or ()],
            "expires_at": ends.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        answer = trustor.post(f"{self._url}/OS-TRUST/trusts", json={"trust": trust})
        return str(answer.json()["trust"]["id"])


class ForeignAccount(Identity):
    """The same token for another account of the same service: an image that was shared, or is being cleaned up."""

    def __init__(self, identity: Identity, url: str) -> None:
        self._identity = identity
        self._url = url
        self._check(identity.access().url)

    def access(self) -> Access:
        """The token with that URL."""
        return Access(self._url, self._identity.access().token)

    def renew(self, refused: Access) -> bool:
        """As the other does."""
        return self._identity.renew(Access(self._identity.access().url, refused.token))

    def with_trust(self, service: V3Identity, make: Callable[[str], V3Identity]) -> Identity:
        """As the other does."""
        return ForeignAccount(self._identity.with_trust(service, make), self._url)

    def close(self) -> None:
        """As the other does."""
        self._identity.close()

    def _check(self, own: str) -> None:
        # A token goes to the service it is for and to nobody a URI may name.
        if own.split("/")[:3] != self._url.split("/")[:3]:
            raise BadStoreUri(f"{self._url} is not at the object store of this request")


@contextlib.contextmanager
def _sensible() -> Iterator[None]:
    """Raise for what the identity service sent, and keystoneauth did not check; its text is not repeated."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError):
        raise RemoteServiceUnavailable("the identity service sent a token or a catalog that makes no sense") from None


def _life(found: Any) -> float | None:
    """Seconds from the issue of a token to its end, whatever our own clock says; None if it tells none."""
    try:
        expires = found.expires
        life = (expires - (found.issued or datetime.datetime.now(datetime.timezone.utc))).total_seconds()
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return float(life) if life > 0 else None


def _url(url: Any) -> str:
    if not isinstance(url, str) or not url.lower().startswith(("http://", "https://")):
        raise RemoteServiceUnavailable("the URL of the object store that the identity service tells is none")
    return url


def filled_in(endpoint: str, project_id: str | None) -> str:
    """An endpoint with the project in it."""
    for name in ("project_id", "tenant_id"):
        endpoint = endpoint.replace(f"%({name})s", project_id or "")
    return endpoint.rstrip("/")


def project_of(context: Any) -> str | None:
    """The project of a request; contexts of different age call it differently."""
    return getattr(context, "project_id", None) or getattr(context, "tenant", None)


def _mappings(found: Any) -> Iterable[Mapping[str, Any]]:
    """What is a mapping in a list; the rest of what a request brings along makes no sense here."""
    return [item for item in found if isinstance(item, Mapping)] if isinstance(found, list | tuple) else []


def _plugin(credentials: Credentials, trust: str | None) -> Any:
    from keystoneauth1.identity import v3

    if credentials.application_credential_id and trust is None:
        return v3.ApplicationCredential(
            credentials.identity_url,
            application_credential_id=credentials.application_credential_id,
            application_credential_secret=credentials.application_credential_secret or "",
            reauthenticate=False,
        )
    # That it has always two minutes to live is no use where tokens live no longer; see Lease.
    user: dict[str, Any] = {
        "reauthenticate": False,
        "username": credentials.user_name,
        "password": credentials.key,
        "user_domain_id": credentials.user_domain_id,
        "user_domain_name": credentials.user_domain_name,
    }
    if trust is not None:
        return v3.Password(credentials.identity_url, trust_id=trust, **user)
    scope: dict[str, Any] = dict(credentials.scope)
    if not credentials.project_id:
        scope["project_domain_id"] = credentials.project_domain_id
        scope["project_domain_name"] = credentials.project_domain_name
    return v3.Password(credentials.identity_url, **user, **scope)


def _url_in_catalog(context: Any, conf: Any) -> str:
    """The object store in a request's catalog, in the form of version 2 or 3."""
    if conf.swift_store_endpoint:
        return filled_in(conf.swift_store_endpoint, project_of(context))
    wanted, region = conf.swift_store_endpoint_type, conf.swift_store_region
    for service in _mappings(getattr(context, "service_catalog", None)):
        if service.get("type") != conf.swift_store_service_type:
            continue
        for endpoint in _mappings(service.get("endpoints")):
            place = endpoint.get("region_id") or endpoint.get("region")
            matches = endpoint.get("interface") in (wanted, wanted.removesuffix("URL"))
            url = endpoint.get("url") if matches else endpoint.get(wanted)
            if url and region in (None, place):
                return _url(url).rstrip("/")
    raise RemoteServiceUnavailable(
        "the catalog of the request has no such object store; see swift_store_region, _endpoint_type and _service_type",
        transient=False,
    )
