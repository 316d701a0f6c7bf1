# SPDX-License-Identifier: Apache-2.0
"""Service: a Swift service as the options of one store name it; whose account an image is in, and what is called how.

Segments are named ``<image id>/<token>/<number>``. No image id has a ``/``, so a listing with that delimiter tells
images and segments apart, even in one container; the token is new for each add.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import secrets
import threading
import urllib.parse
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from storelib.drivers.swift import errors
from storelib.drivers.swift.errors import Headers
from storelib.drivers.swift.identity import (
    OPTIONS_REFERENCE,
    Credentials,
    ForeignAccount,
    Identity,
    RequestIdentity,
    V1Identity,
    V3Identity,
)
from storelib.drivers.swift.location import CONFIG, SwiftLocation, place_of, scheme_for, without_version
from storelib.exceptions import Forbidden, NotFound, RemoteServiceUnavailable, StoreError
from storelib.transfer.contract import Digest, Digests, ImageInfo
from storelib.transfer.forking import forget_in_child
from storelib.transfer.http.headers import posix_time, whole_number
from storelib.transfer.http.reading import discard
from storelib.uris import quote

if TYPE_CHECKING:
    from requests import Response

    from storelib.drivers.swift.transport import Body, Connections

# Tokens tried for one request: a second one may have ended while it was on its way.
_NEW_TOKENS = 2
# From the version on, the URL of an account is its own; before it is the service's.
_VERSION = re.compile(r"/v[0-9][0-9.]*(/.*)?\Z", re.DOTALL)
# Swift's default, and radosgw's.
_MOST_SEGMENTS = 1000
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?")

TOKEN = re.compile(r"[0-9a-f]{16}")
#: Metadata of an object: the token of the add that made it, and where its segments are.
TOKEN_HEADER = "X-Object-Meta-Storelib-Token"  # noqa: S105
SEGMENTS_HEADER = "X-Object-Meta-Storelib-Segments"
#: And the digest of the whole image, as ``algorithm:hexadecimal``; the ETag of a manifest is one of ETags.
DIGEST_HEADER = "X-Object-Meta-Storelib-Digest"
_RECORDED = re.compile(r"([a-z0-9_-]+):((?:[0-9a-f]{2})+)")
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
#: Listings tell the content type. They tell the size of a manifest's image not always, so it is in there.
_SIZED = re.compile(r"; *x-storelib-size=([0-9]+)")
#: Metadata of an image's own container: that storelib made it, and the token of the add that did.
MADE_HEADER = "X-Container-Meta-Storelib"
CLAIM_HEADER = "X-Container-Meta-Storelib-Token"

#: On it, and beside the segments in a shared one: gc is about to remove what is there, for it belongs to no image.
DEAD_HEADER = "X-Container-Meta-Storelib-Dead"
DEAD = "dead"

_DIGEST = re.compile(r"[0-9a-f]{64}")
# Bytes in the name of a container: 256 in OpenStack, 255 in radosgw.
_LONGEST = 255


class Adding(Protocol):
    """An add under way."""

    container: str


class Service:
    """The options of one store, and what it keeps: its connections, an identity for each of its accounts.

    Safe to use from many threads; connections are made at first use, and anew in a forked child.
    """

    def __init__(self, name: str, conf: Any, for_each: Callable[..., None]) -> None:
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
        self.writers: weakref.WeakValueDictionary[str, Adding] = weakref.WeakValueDictionary()
        self.reference: str = conf.default_swift_reference if conf.swift_store_config_file else OPTIONS_REFERENCE
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
        from storelib.drivers.swift.transport import Connections

        with self._lock:
            if self._connections is None:
                self._connections = Connections(self.conf)
            return self._connections

    def identity(self, reference: str) -> Identity:
        """The identity for one of the accounts that the store is configured with."""
        with self._lock:
            if reference not in self._identities:
                credentials = self.credentials[reference]
                kind = V1Identity if credentials.auth_version == "1" else V3Identity
                self._identities[reference] = kind(self.connections, credentials, self.conf)
            return self._identities[reference]

    def trusted(self, reference: str, trust: str) -> V3Identity:
        """The same, on behalf of the user who made a trust."""
        return V3Identity(self.connections, self.credentials[reference], self.conf, trust)

    def features(self, account: Account) -> Features:
        """What the service of ``account`` can do; asked once."""
        origin = account.url.partition("/v")[0]
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

    def account_of(self, location: SwiftLocation, context: Any) -> Account:
        """The account an image is in."""
        if not self.multi_tenant:
            return Account(self.connections, self.identity(self._reference_of(location) or OPTIONS_REFERENCE))
        identity = self._identity(context)
        if identity.access().url != location.url:
            identity = ForeignAccount(identity, location.url)
        return Account(self.connections, identity)

    def own_account(self, context: Any = None) -> Account:
        """The account that new images go to."""
        if self.multi_tenant and context is not None:
            return Account(self.connections, self._identity(context))
        return Account(self.connections, self.identity(self.reference))

    def _identity(self, context: Any) -> Identity:
        if context is not None:
            return RequestIdentity(context, self.conf)
        if self.reference not in self.credentials:
            raise Forbidden(f"store {self.name} is multi-tenant: it needs the context of a request, or its own user")
        # Whoever calls without a request, to clean up for example, acts as the service.
        return self.identity(self.reference)

    def with_trust(self, account: Account) -> Account:
        """The same account for a transfer that may outlive the token of its request; close its identity."""
        if not self.multi_tenant or not self.conf.swift_store_use_trusts or self.reference not in self.credentials:
            return account
        own = self.identity(self.reference)
        if not isinstance(own, V3Identity):
            return account
        identity = account.identity.with_trust(own, lambda trust: self.trusted(self.reference, trust))
        return Account(self.connections, identity)

    def location_of(self, account: Account, container: str, image_id: str) -> SwiftLocation:
        """Where an image is, or would be."""
        if self.multi_tenant:
            url = account.url
        elif self.conf.swift_store_config_file:
            return SwiftLocation(CONFIG, self.reference, container, image_id)
        else:
            url = self.credentials[OPTIONS_REFERENCE].auth_address
        return SwiftLocation(scheme_for(url), place_of(url), container, image_id)

    def containers(self, account: Account) -> Iterator[str]:
        """The containers that may hold images."""
        layout = self.layout
        if not layout.own:
            yield layout.container
        if layout.own or layout.seed:
            try:
                for entry in account.listing(prefix=f"{layout.container}_"):
                    if entry["name"] != layout.segments:
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
    #: Whoever sends a manifest is told which of its segments are missing.
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


@dataclass(frozen=True)
class Layout:
    """The options that say so."""

    container: str
    seed: int = 0
    #: Each image has a container of its own.
    own: bool = False
    segments: str | None = None

    @property
    def containers(self) -> list[str]:
        """How the names of all containers of images begin; a ``/``, which is in no name, ends a whole one."""
        whole, several = f"{self.container}/", f"{self.container}_"
        if self.own:
            return [several]
        return [whole, several] if self.seed else [whole]

    def container_for(self, image_id: str) -> str:
        """The container of a new image."""
        if self.own:
            name = f"{self.container}_{image_id}"
            if len(name.encode()) <= _LONGEST:
                return name
            return f"{self.container}_{hashlib.sha256(image_id.encode()).hexdigest()}"
        if not self.seed:
            return self.container
        # As glance_store counts: dashes are taken along but not counted.
        start = image_id.lower()
        return f"{self.container}_{start[: self.seed + start[: self.seed].count('-')]}"

    def may_be_for(self, container: str, prefix: str) -> bool:
        """Whether an image's own container may be that of an id with this prefix."""
        rest = container.removeprefix(f"{self.container}_")
        return rest.startswith(prefix) or _DIGEST.fullmatch(rest) is not None

    def segment_container_for(self, container: str) -> str:
        """The container of the segments of an image in ``container``."""
        return container if self.own or not self.segments else self.segments

    def holds(self, container: str, image_id: str) -> bool:
        """Whether an image of that id may be in that container, with this seed or another."""
        if container == self.container:
            return not self.own
        base, mark, rest = container.partition(f"{self.container}_")
        if base or not mark or not rest:
            return False
        if self.own:
            return container == self.container_for(image_id)
        return image_id.lower().startswith(rest)


def manifest_type(size: int) -> str:
    """The content type of a manifest of an image of ``size`` bytes."""
    return f"application/octet-stream; x-storelib-size={size}"


def size_in(content_type: str) -> int | None:
    """The size in such a content type."""
    match = _SIZED.search(content_type)
    return whole_number(match[1]) if match else None


def length_of(headers: Mapping[str, str]) -> int | None:
    """The size of an image; of a dynamic one with many segments Swift itself does not tell it."""
    if "Content-Length" in headers:
        return whole_number(headers["Content-Length"])
    return size_in(headers.get("Content-Type", ""))


def digest_headers(digests: Digests) -> dict[str, str]:
    """What records the digest of an image."""
    if digests.multihash:
        return {DIGEST_HEADER: f"{digests.algorithm}:{digests.multihash}"}
    return {DIGEST_HEADER: f"md5:{digests.checksum}"} if digests.checksum else {}


def digest_in(headers: Mapping[str, str]) -> Digest | None:
    """The digest of an image: what was recorded, or the ETag of one that is no manifest."""
    recorded = _RECORDED.fullmatch(headers.get(DIGEST_HEADER, ""))
    if recorded is not None and TOKEN_HEADER in headers:
        return Digest(recorded[1], recorded[2])
    manifest = "X-Object-Manifest" in headers or headers.get("X-Static-Large-Object", "").lower() == "true"
    etag = _MD5.fullmatch(headers.get("Etag", ""))
    return Digest("md5", etag[1]) if etag is not None and not manifest else None


def new_token() -> str:
    """Tells what one add made from what any other made."""
    return secrets.token_hex(8)


def segment_place(image_id: str, headers: Mapping[str, str]) -> tuple[str, str] | None:
    """Container and prefix of the segments of an image; None if it has none or they have no prefix in common."""
    value = headers.get("X-Object-Manifest")
    if TOKEN_HEADER in headers and SEGMENTS_HEADER in headers:
        value = headers[SEGMENTS_HEADER]
    container, slash, prefix = urllib.parse.unquote(value or "").partition("/")
    # A prefix that is none would mean the whole container.
    return (container, prefix) if slash and prefix.startswith(image_id) else None


def info_of(location: SwiftLocation, headers: Mapping[str, str]) -> ImageInfo:
    """What the headers of an image tell; raises StoreError if not even its size."""
    size = length_of(headers)
    if size is None:
        raise StoreError(f"Swift does not tell the size of {location}")
    modified = errors.number(headers.get("X-Timestamp"))
    if modified is None:
        modified = posix_time(headers.get("Last-Modified"))
    return ImageInfo(location.uri, size, location.obj, modified, etag_in(headers) or None)


def etag_in(headers: Headers) -> str:
    """The ETag without its quotes; empty where there is none."""
    return headers.get("Etag", "").strip('"')


def changed_at(entry: dict[str, Any]) -> float | None:
    """When an entry of a listing was changed, if it tells."""
    match = _TIME.match(entry.get("last_modified", ""))
    try:
        whole = datetime.datetime.fromisoformat(match[1] if match else "").replace(tzinfo=datetime.timezone.utc)
    except ValueError:
        return None
    return whole.timestamp() + float(match[2] or 0) if match else None


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
        """Seconds that its server needed for its quickest answer."""
        return self._connections.latency(self.url)

    def head(self, *names: str) -> Headers:
        """The headers of the account, a container or an object; raises NotFound."""
        return self.ask("HEAD", names).headers

    def find(self, *names: str) -> Headers | None:
        """The same; None if it is not there."""
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
        """The same where something is removed because it is not there: also that has to be proven."""
        answer = self.ask("HEAD", names, accept=(404,))
        if answer.status_code != 404:
            return answer.headers
        if not errors.is_swifts(answer.headers):
            raise errors.unproven("HEAD", 404, _shown(names))
        return None

    def delete(self, *names: str, query: str = "") -> Response:
        """Remove a container or an object; raises NotFound."""
        answer = self.ask("DELETE", names, query, {"Accept": "application/json"}, accept=(200, 202, 204))
        proven = errors.is_proven("DELETE", answer.status_code, answer.headers, len(names))
        if not proven and self.find(*names) is not None:
            raise errors.unproven("DELETE", answer.status_code, _shown(names))
        return answer

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
            page = errors.entries(self.load(*names, query=urllib.parse.urlencode(query)), _shown(names))
            yield from page
            if not page:
                return
            marker = page[-1].get("name") or page[-1]["subdir"]
            if marker == query.get("marker"):
                raise RemoteServiceUnavailable(f"Swift sends the same page of {_shown(names)} again", transient=False)
            query["marker"] = marker

    def about(self) -> dict[str, Any] | None:
        """What the service says it can do; empty if it does not tell, None if something else answered."""
        response = self._connections.send("GET", f"{_VERSION.sub('', self.url)}/info", {})
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
        """One request and its whole answer; raises what it means unless it is in ``accept`` or a proven success."""
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


def _shown(names: tuple[str, ...]) -> str:
    return "/".join(quote(name) for name in names) or "the account"


def present(entries: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A listing; nothing if the container is not there."""
    try:
        yield from entries
    except NotFound:
        return
