# SPDX-License-Identifier: Apache-2.0
"""Service: a Swift service as the options of one store name it: whose account an image is in, tokens and requests.

Segments are named ``<image id>/<token>/<number>``. No image id has a ``/``, so a listing with that delimiter tells
images and segments apart, even in one container; the token is new for each add.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import secrets
import threading
import urllib.parse
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from storelib._version import __version__
from storelib.driver import Context
from storelib.drivers.swift import errors
from storelib.drivers.swift.errors import Headers
from storelib.drivers.swift.location import CONFIG, Layout, SwiftLocation, place_of, scheme_for, without_version
from storelib.drivers.swift.options import OPTIONS_REFERENCE, Credentials
from storelib.exceptions import (
    BadStoreConfiguration,
    BadStoreUri,
    Forbidden,
    NotFound,
    RemoteServiceUnavailable,
    StoreError,
)
from storelib.transfer.contract import Options
from storelib.transfer.forking import forget_in_child
from storelib.transfer.http.keystone import (
    Access,
    Endpoint,
    Identity,
    KeystoneIdentity,
    RequestIdentity,
    TokenIdentity,
    checked_url,
)
from storelib.transfer.http.reading import discard
from storelib.transfer.live import LiveAdds
from storelib.transfer.partfile import PartFile
from storelib.uris import quote

if TYPE_CHECKING:
    from requests import Response, Session

# Tokens tried for one request: a second one may have ended while it was on its way.
_NEW_TOKENS = 2
# From the version on, the URL of an account is its own; before it is the service's.
_VERSION = re.compile(r"/v[0-9][0-9.]*(/.*)?\Z", re.DOTALL)
# Swift's default, and radosgw's.
_MOST_SEGMENTS = 1000


class Adding(Protocol):
    """An add under way."""

    container: str


class Service:
    """The options of one store, and what it keeps: its connections, an identity for each of its accounts.

    Safe to use from many threads; connections are made at first use, and anew in a forked child.
    """

    def __init__(self, name: str, conf: Options, for_each: Callable[..., None]) -> None:
        self.name = name
        self.conf = conf
        #: The engine's: the same call for many things, several at a time.
        self.for_each = for_each
        self.multi_tenant: bool = conf.swift_store_multi_tenant
        self.layout = Layout(
            conf.swift_store_container,
            conf.swift_store_multiple_containers_seed,
            self.multi_tenant or conf.swift_store_container_per_image,
            conf.swift_store_segment_container,
        )
        #: Adds under way in this process, by token, for gc to leave alone.
        self.live: LiveAdds[Adding] = LiveAdds()
        self.reference: str = conf.default_swift_reference if conf.swift_store_config_file else OPTIONS_REFERENCE
        self._endpoint = Endpoint(
            conf.swift_store_service_type,
            conf.swift_store_endpoint_type,
            conf.swift_store_region,
            conf.swift_store_endpoint,
            "swift_store_region, _endpoint_type and _service_type",
        )
        # What a child inherits is kept, unused: closing it would end the parent's connections too.
        self._inherited: list[object] = []
        self.use({})
        forget_in_child(self)

    def use(self, credentials: Mapping[str, Credentials]) -> None:
        """Act as these users from now on."""
        self.credentials = credentials
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._connections: Connections | None = None
        self._identities: dict[str, Identity] = {}
        self._features: dict[str, Features] = {}

    @property
    def connections(self) -> Connections:
        """All connections of the store."""
        with self._lock:
            if self._connections is None:
                self._connections = Connections(self.conf)
            return self._connections

    def identity(self, reference: str) -> Identity:
        """The identity for one of the accounts that the store is configured with."""
        with self._lock:
            if reference not in self._identities:
                first = self.credentials[reference].auth_version == "1"
                self._identities[reference] = self._v1(reference) if first else self._v3(reference)
            return self._identities[reference]

    def _v1(self, reference: str) -> Identity:
        return V1Identity(self.connections, self.credentials[reference], self.conf)

    def _v3(self, reference: str, trust: str | None = None) -> KeystoneIdentity:
        """An identity at Keystone, on behalf of the user who made a trust if there is one."""
        user, http = self.credentials[reference], self.connections
        soon = self.conf.swift_store_expire_soon_interval
        return KeystoneIdentity(
            user.identity_url, _plugin(user, trust), http.session(), http.timeout, self._endpoint, soon
        )

    def features(self, account: Account) -> Features:
        """What the service of ``account`` can do; asked once."""
        origin = account.origin
        known = self._features.get(origin)
        if known is None:
            try:
                about = account.about()
            except StoreError as error:
                if error.transient:
                    raise
                about = {}
            known = Features.of(about or {})
            # What something else answered in its place holds for now only.
            if about is not None:
                self._features[origin] = known
        return known

    def forget_parent(self) -> None:
        """In a forked child: neither use nor close the parent's connections, nor wait for a lock its threads held."""
        self._inherited += [self._connections, self._identities]
        self._begin()

    # -- Whose account ------------------------------------------------------------------------------------------------

    def owns(self, location: SwiftLocation) -> bool:
        """Whether a location names an account and a container of this store."""
        if not self.layout.holds(location.container, location.obj):
            return False
        if self.multi_tenant:
            # Which hosts there are, only the catalog of a request tells; see ForeignAccount.
            return location.scheme != CONFIG and "/" in location.place
        return self._reference_of(location) is not None

    def roots(self) -> list[tuple[str | None, str]]:
        """Accounts and container; None stands for the accounts that only a request tells."""
        container = self.layout.container
        if self.multi_tenant:
            return [(None, container)]
        named = [(f"{CONFIG}:{name}", container) for name in self.credentials if name != OPTIONS_REFERENCE]
        at = {without_version(place_of(user.auth_address)) for user in self.credentials.values()}
        return [*named, *((place, container) for place in at)]

    def _reference_of(self, location: SwiftLocation) -> str | None:
        """Which account a URI means. Credentials in it mean nothing: they may be years old."""
        if location.scheme == CONFIG:
            known = location.place in self.credentials and location.place != OPTIONS_REFERENCE
            return location.place if known else None
        place = without_version(location.place)
        for reference, user in self.credentials.items():
            if without_version(place_of(user.auth_address)) == place:
                return reference
        return None

    def account_of(self, location: SwiftLocation, context: Context | None) -> Account:
        """The account an image is in."""
        if not self.multi_tenant:
            return Account(self.connections, self.identity(self._reference_of(location) or OPTIONS_REFERENCE))
        identity = self._identity(context)
        if identity.access().url != location.url:
            identity = ForeignAccount(identity, location.url)
        return Account(self.connections, identity)

    def own_account(self, context: Context | None = None) -> Account:
        """The account that new images go to."""
        if self.multi_tenant and context is not None:
            return Account(self.connections, self._identity(context))
        return Account(self.connections, self.identity(self.reference))

    def _identity(self, context: Context | None) -> Identity:
        if context is not None:
            return RequestIdentity(context, self._endpoint)
        if self.reference not in self.credentials:
            raise Forbidden(f"store {self.name} is multi-tenant: it needs the context of a request, or its own user")
        # A call without a request, to clean up for example, is made by the service.
        return self.identity(self.reference)

    def with_trust(self, account: Account) -> Account:
        """The account for a transfer that may outlive the token of its request; close its identity."""
        if not self.multi_tenant or not self.conf.swift_store_use_trusts or self.reference not in self.credentials:
            return account
        own = self.identity(self.reference)
        if not isinstance(own, KeystoneIdentity):
            return account
        identity = account.identity.with_trust(own, lambda trust: self._v3(self.reference, trust))
        return Account(self.connections, identity)

    def location_of(self, account: Account, container: str, image_id: str) -> SwiftLocation:
        """Where an image is, or would be."""
        if self.multi_tenant:
            return SwiftLocation(scheme_for(account.url), place_of(account.url), container, image_id)
        return self._location_in(self.reference, container, image_id)

    def canonical(self, location: SwiftLocation) -> SwiftLocation:
        """The same object as ``location_of`` writes it; in a multi-tenant store the host may be another service's."""
        reference = None if self.multi_tenant else self._reference_of(location)
        return location if reference is None else self._location_in(reference, location.container, location.obj)

    def _location_in(self, reference: str, container: str, obj: str) -> SwiftLocation:
        """An object of the account that a section of the reference file is about, or the options."""
        if reference != OPTIONS_REFERENCE:
            return SwiftLocation(CONFIG, reference, container, obj)
        url = self.credentials[OPTIONS_REFERENCE].auth_address
        return SwiftLocation(scheme_for(url), place_of(url), container, obj)

    def containers(self, account: Account, prefix: str = "") -> Iterator[str]:
        """The containers that may hold images whose ids begin with ``prefix``."""
        layout = self.layout
        if not layout.own:
            yield layout.container
        if layout.own or layout.seed:
            try:
                for entry in account.listing(prefix=layout.common_start(prefix)):
                    if entry["name"] != layout.segments and layout.may_be_for(entry["name"], prefix):
                        yield entry["name"]
            except Forbidden:
                needing = "swift_store_container_per_image" if layout.own else "swift_store_multiple_containers_seed"
                raise Forbidden(f"this user may not list the containers of the account: {needing} needs that") from None


@dataclass(frozen=True)
class Features:
    """What one service can do."""

    #: Manifests that list their segments.
    static: bool = True
    #: Lines in one of them.
    most_segments: int = _MOST_SEGMENTS
    #: Such manifests may list others.
    nested: bool = False
    #: If-None-Match is honoured.
    conditional: bool = False
    #: The sender of a manifest is told which of its segments are missing.
    checks_segments: bool = False
    #: Algorithms of temporary URLs.
    digests: tuple[str, ...] = ("sha1",)

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> Features:
        """From what it tells; nothing is expected of one that tells nothing."""
        if not about:
            return cls()
        sections = {name: about[name] for name in ("swift", "slo", "tempurl") if isinstance(about.get(name), dict)}
        # radosgw has such a section too, but calls this max_object_name_size.
        genuine = "max_object_name_length" in sections.get("swift", {})
        most = sections.get("slo", {}).get("max_manifest_segments")
        digests = sections.get("tempurl", {}).get("allowed_digests")
        return cls(
            static="slo" in sections,
            most_segments=most if isinstance(most, int) and most > 0 else _MOST_SEGMENTS,
            nested=genuine,
            conditional=genuine,
            checks_segments=genuine,
            digests=tuple(digests) if isinstance(digests, list) else ("sha1",),
        )

    def fits_static(self, count: int) -> bool:
        """Whether so many segments can be a static large object."""
        return self.static and count <= self.most_segments * (self.most_segments if self.nested else 1)


# -- Who asks ----------------------------------------------------------------------------------------------------------


class V1Identity(TokenIdentity):
    """Version 1: one request with user and key, as tempauth and radosgw take it."""

    def __init__(self, connections: Connections, credentials: Credentials, conf: Options) -> None:
        super().__init__(conf.swift_store_expire_soon_interval)
        self._connections = connections
        self._credentials = credentials
        self._endpoint = conf.swift_store_endpoint

    def _ask(self) -> tuple[Access, float | None]:
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
            raise errors.error_of_status("GET", status, found, "a token")
        life = errors.number(found.get("X-Auth-Token-Expires"))
        return Access(checked_url(self._endpoint or url), token or ""), life


class ForeignAccount(Identity):
    """The same token for another account of the same service: an image that was shared, or is being cleaned up."""

    def __init__(self, identity: Identity, url: str) -> None:
        self._identity = identity
        self._url = url
        self._check(identity.access().url)

    def access(self) -> Access:
        """That URL with the token of the other."""
        return Access(self._url, self._identity.access().token)

    def renew(self, refused: Access) -> bool:
        """Have the other renew its token."""
        return self._identity.renew(Access(self._identity.access().url, refused.token))

    def with_trust(self, service: KeystoneIdentity, make: Callable[[str], KeystoneIdentity]) -> Identity:
        """That account with the identity that the other makes for the transfer."""
        return ForeignAccount(self._identity.with_trust(service, make), self._url)

    def close(self) -> None:
        """Close the identity whose token it is."""
        self._identity.close()

    def _check(self, own: str) -> None:
        # A token goes to the service it is for and to nobody a URI may name.
        if own.split("/")[:3] != self._url.split("/")[:3]:
            raise BadStoreUri(f"{self._url} is not at the object store of this request")


def _plugin(credentials: Credentials, trust: str | None) -> Any:
    from keystoneauth1.identity import v3

    if credentials.application_credential_id and trust is None:
        return v3.ApplicationCredential(
            credentials.identity_url,
            application_credential_id=credentials.application_credential_id,
            application_credential_secret=credentials.application_credential_secret or "",
            reauthenticate=False,
        )
    # That it has always two minutes to live is no use where tokens live no longer; see TokenIdentity.
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


# -- Requests ----------------------------------------------------------------------------------------------------------


class Connections:
    """swiftclient on the connections of the engine; safe to use from many threads.

    Its HTTPConnection does the work, not its Connection, which is for one thread and logs the start of tokens.
    """

    def __init__(self, conf: Options) -> None:
        from swiftclient.client import HTTPConnection

        insecure = conf.swift_store_auth_insecure
        self._verify: bool | str = not insecure and (conf.swift_store_cacert or True)
        # No longer than the whole transfer may stand still.
        self._longest: float = conf.transfer_timeout
        #: Seconds to wait for a connection, and for a response.
        self._connect_timeout = min(conf.swift_store_connect_timeout, self._longest)
        self.timeout: float = min(conf.swift_store_read_timeout, self._longest)
        self._latency: dict[str, float] = {}
        # One for all servers: its session keeps the connections of each.
        agent = f"storelib/{__version__}"
        self._client = HTTPConnection(
            "https://", cacert=conf.swift_store_cacert, insecure=insecure, default_user_agent=agent
        )
        self._client.requests_args["allow_redirects"] = False
        self._client.request_session = self.session()

    def session(self) -> Session:
        """A session of requests with these settings, for keystoneauth."""
        from storelib.transfer.http.sessions import new_session

        return new_session(self._verify)

    def send(
        self, method: str, url: str, headers: Headers, body: Body | bytes = b"", extra_timeout: float = 0.0
    ) -> Response:
        """Send one request; returns any response, its body not read yet. ``extra_timeout``: more seconds to wait."""
        # What is known to work for longer than that is waited for.
        read_timeout = min(self.timeout + extra_timeout, max(self._longest, extra_timeout))
        sent = {"User-Agent": self._client.default_user_agent, **headers}
        # Not HTTPConnection.request(), which keeps the response in the one object that all threads share.
        response: Response = self._client.request_session.request(
            method,
            url,
            headers={name: value.encode() for name, value in sent.items()},
            data=body,
            timeout=(self._connect_timeout, read_timeout),
            **self._client.requests_args,
        )
        self._latency[_origin(url)] = min(self.latency(url), response.raw.seconds)
        return response

    def latency(self, url: str) -> float:
        """Seconds that the quickest response of that server took so far: how far away it is, however busy."""
        return self._latency.get(_origin(url), math.inf)


def _origin(url: str) -> str:
    return "/".join(url.split("/", 3)[:3])


class Body(PartFile):
    """A part on its way out, hashed as it goes unless its ``md5`` is known already."""

    def __init__(self, data: memoryview, md5: str | None = None) -> None:
        super().__init__(data)
        self._known = md5
        self.rewind()

    def rewind(self) -> None:
        """Begin again, with the first byte."""
        self.seek(0)
        self._hash = hashlib.md5(usedforsecurity=False)

    def read(self, size: int | None = -1) -> memoryview:
        """A view of what comes next."""
        piece = super().read(size)
        if self._known is None:
            self._hash.update(piece)
        return piece

    @property
    def md5(self) -> str:
        """In hexadecimal, as ETags are."""
        return self._known or self._hash.hexdigest()


class Account:
    """Names are given as they are and percent-encoded here, each ``/`` in them included."""

    def __init__(self, connections: Connections, identity: Identity) -> None:
        self.identity = identity
        self._connections = connections

    @property
    def url(self) -> str:
        """Where the account is."""
        return self.identity.access().url

    @property
    def latency(self) -> float:
        """Seconds that its server needed for its quickest response."""
        return self._connections.latency(self.url)

    def head(self, *names: str) -> Headers:
        """The headers of the account, a container or an object; raises NotFound."""
        return self.ask("HEAD", names).headers

    def find(self, *names: str) -> Headers | None:
        """The headers of the account, a container or an object; None if it is not there."""
        try:
            return self.head(*names)
        except NotFound:
            return None

    def put(
        self,
        *names: str,
        body: Body | bytes = b"",
        headers: Headers | None = None,
        query: str = "",
        extra_timeout: float = 0.0,
        accept: Collection[int] = (),
    ) -> Response:
        """Make a container or an object."""
        return self.ask("PUT", names, query, headers, body, extra_timeout=extra_timeout, accept=accept)

    def post(self, *names: str, headers: Headers) -> None:
        """Change the metadata of a container."""
        self.ask("POST", names, headers=headers)

    def find_surely(self, *names: str) -> Headers | None:
        """``find`` where something is removed because another is not there: also that has to be proven."""
        response = self.ask("HEAD", names, accept=(404,))
        if response.status_code != 404:
            return response.headers
        if not errors.is_swifts(response.headers):
            raise errors.unproven("HEAD", 404, _shown(names))
        return None

    def delete(self, *names: str, query: str = "") -> Response:
        """Remove a container or an object; raises NotFound."""
        response = self.ask("DELETE", names, query, {"Accept": "application/json"}, accept=(200, 202, 204))
        proven = errors.is_proven("DELETE", response.status_code, response.headers, len(names))
        if not proven and self.find(*names) is not None:
            raise errors.unproven("DELETE", response.status_code, _shown(names))
        return response

    def remove(self, *names: str) -> None:
        """Remove a container or an object that may not be there."""
        try:
            self.delete(*names)
        except NotFound:
            return

    def get(self, *names: str, headers: Headers | None = None, query: str = "") -> Response:
        """Read; the body is still to be read when it is not one of an error, and nothing is proven."""
        return self.send("GET", names, query, headers)

    def load(self, *names: str, query: str) -> Any:
        """A JSON document; None if there is nothing at all in it."""
        response = self.ask("GET", names, query)
        try:
            return json.loads(response.content) if response.content else None
        except (ValueError, RecursionError):
            raise RemoteServiceUnavailable(f"Swift sent no JSON for {_shown(names)}") from None

    def listing(self, *names: str, prefix: str = "", delimiter: str = "") -> Iterator[dict[str, Any]]:
        """The entries of a container, or of the account, page after page; raises NotFound."""
        query = {"format": "json", "prefix": prefix, "delimiter": delimiter}
        query = {name: value for name, value in query.items() if value}
        while True:
            loaded = self.load(*names, query=urllib.parse.urlencode(query))
            page = errors.entries(loaded, _shown(names), of_objects=bool(names), delimited=bool(delimiter))
            yield from page
            if not page:
                return
            marker = page[-1].get("name") or page[-1]["subdir"]
            if marker == query.get("marker"):
                raise RemoteServiceUnavailable(f"Swift sends the same page of {_shown(names)} again", transient=False)
            query["marker"] = marker

    @property
    def origin(self) -> str:
        """The URL of the service that it is an account of."""
        return _VERSION.sub("", self.url)

    def about(self) -> dict[str, Any] | None:
        """What the service says it can do; empty if it does not tell, None if something else answered."""
        response = self._connections.send("GET", f"{self.origin}/info", {})
        if response.status_code != 200:
            return {} if 400 <= response.status_code < 500 else None
        try:
            found = json.loads(response.content)
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def ask(
        self,
        method: str,
        names: tuple[str, ...],
        query: str = "",
        headers: Headers | None = None,
        body: Body | bytes = b"",
        *,
        extra_timeout: float = 0.0,
        accept: Collection[int] = (),
    ) -> Response:
        """One request and its whole response; raises what it means unless it is in ``accept`` or a proven success."""
        response = self.send(method, names, query, headers, body, extra_timeout)
        _ = response.content
        status = response.status_code
        if status in accept:
            return response
        if not 200 <= status < 300:
            raise errors.error_of_status(method, status, response.headers, _shown(names))
        errors.check_proof(method, status, response.headers, len(names), _shown(names))
        return response

    def send(
        self,
        method: str,
        names: tuple[str, ...],
        query: str = "",
        headers: Headers | None = None,
        body: Body | bytes = b"",
        extra_timeout: float = 0.0,
    ) -> Response:
        """One request, made again with a new token if the one it had is no longer good."""
        path = "".join(f"/{quote(name)}" for name in names) + (f"?{query}" if query else "")

        def attempt() -> tuple[Any, Response]:
            access = self.identity.access()
            sent = {**(headers or {}), "X-Auth-Token": access.token}
            return access, self._connections.send(method, access.url + path, sent, body, extra_timeout)

        access, response = attempt()
        for _ in range(_NEW_TOKENS):
            if response.status_code != 401 or not self.identity.renew(access):
                break
            discard(response.raw)
            if not isinstance(body, bytes):
                body.rewind()
            access, response = attempt()
        return response


def new_token() -> str:
    """Tells what one add made from what any other made."""
    return secrets.token_hex(8)


def _shown(names: tuple[str, ...]) -> str:
    return "/".join(quote(name) for name in names) or "the account"


def present(entries: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A listing; nothing if the container is not there."""
    try:
        yield from entries
    except NotFound:
        return
