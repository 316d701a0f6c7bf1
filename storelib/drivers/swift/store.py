# SPDX-License-Identifier: Apache-2.0
"""SwiftStore: configuration, whose account an image is in, and everything but moving bytes."""

from __future__ import annotations

import importlib
import logging
import math
import re
import urllib.parse
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from oslo_config import cfg

from storelib.capabilities import Capability
from storelib.driver import Area, Garbage, Health, ImageInfo, Store, web_server
from storelib.drivers.swift import credentials as accounts
from storelib.drivers.swift.clients import Clients, Features
from storelib.drivers.swift.errors import error_of_exception
from storelib.drivers.swift.layout import (
    CLAIM_HEADER,
    TOKEN_HEADER,
    Layout,
    length_of,
    new_token,
    segment_place,
    size_in,
)
from storelib.drivers.swift.location import CONFIG, SCHEMES, SwiftLocation, place_of, scheme_for
from storelib.drivers.swift.options import OPTIONS
from storelib.drivers.swift.proof import count, date_in, nothing_failed, number
from storelib.exceptions import (
    AclsNotSupported,
    BadStoreConfiguration,
    Duplicate,
    Forbidden,
    Invalid,
    NotFound,
    OperationNotSupported,
    RemoteServiceUnavailable,
    StoreError,
)
from storelib.extras import needing
from storelib.rehearsal import PREFIX, rehearse
from storelib.transfer.contract import Digests, Part

if TYPE_CHECKING:
    from storelib.drivers.swift.account import Account
    from storelib.drivers.swift.copying import SwiftCopy
    from storelib.drivers.swift.credentials import Credentials
    from storelib.drivers.swift.identity import Identity
    from storelib.drivers.swift.reader import SwiftReader
    from storelib.drivers.swift.writer import SwiftWriter

LOG = logging.getLogger(__name__)

#: The reference of the account that the options themselves name.
_OPTIONS = ""
_VERSION = re.compile(r"/v[0-9.]+$")
_TENANT = re.compile(r"[^,:\s]+")


class SwiftStore(Store[SwiftLocation]):
    """Images as objects in Swift; large ones in segments with a manifest."""

    schemes = SCHEMES
    location_class = SwiftLocation
    options: ClassVar[Sequence[cfg.Opt]] = OPTIONS
    capabilities = (
        Capability.READ
        | Capability.RANGE
        | Capability.ADD
        | Capability.DELETE
        | Capability.STAT
        | Capability.CHECK
        | Capability.COPY
    )

    def __init__(self, name: str, conf: Any) -> None:
        super().__init__(name, conf)
        self.multi_tenant: bool = conf.swift_store_multi_tenant
        self.layout = Layout(
            conf.swift_store_container,
            conf.swift_store_multiple_containers_seed,
            self.multi_tenant or conf.swift_store_container_per_image,
            conf.swift_store_segment_container,
        )
        #: Adds under way in this process, by token, for gc to leave alone.
        self.writers: weakref.WeakValueDictionary[str, SwiftWriter] = weakref.WeakValueDictionary()
        self._credentials: Mapping[str, Credentials] = {}
        self._reference = _OPTIONS
        self.clients = Clients(conf, {})
        if self.layout.own:
            self.capabilities |= Capability.ATOMIC_ADD | Capability.ACLS
        if not self.multi_tenant:
            self.capabilities |= Capability.LIST | Capability.GC
            if conf.swift_store_temp_url_key:
                self.capabilities |= Capability.PRESIGN

    # -- Configuration ------------------------------------------------------------------------------------------------

    def configure_get(self) -> None:
        """Find out who we are, in the options or in a reference file."""
        _import_clients()
        self._credentials = self._read_credentials()
        self.clients = Clients(self.conf, self._credentials)
        if not self._credentials:
            # Without a user of its own a multi-tenant store can do nothing on its own account.
            self.capabilities &= ~Capability.CHECK
        cacert = self.conf.swift_store_cacert
        if cacert and not self.conf.swift_store_auth_insecure:
            _check_certificates(cacert)

    def configure_add(self) -> None:
        """Check the names of containers."""
        for option in ("swift_store_container", "swift_store_segment_container"):
            name = getattr(self.conf, option)
            if name is None and option == "swift_store_segment_container":
                continue
            if not name or "/" in name or name in (".", "..") or len(name.encode()) > 256:
                raise BadStoreConfiguration(f"{option} is no name of a container: 1 to 256 bytes without '/'")
        if self.conf.swift_store_config_file and not self.multi_tenant and self._reference not in self._credentials:
            raise BadStoreConfiguration(
                f"default_swift_reference {self._reference} is no section of {self.conf.swift_store_config_file}"
            )

    def _read_credentials(self) -> Mapping[str, Credentials]:
        if self.conf.swift_store_config_file:
            self._reference = self.conf.default_swift_reference
            return accounts.from_file(self.conf.swift_store_config_file)
        if self.multi_tenant and not self.conf.swift_store_auth_address:
            return {}
        self._reference = _OPTIONS
        return {_OPTIONS: accounts.from_options(self.conf)}

    # -- Whose account ------------------------------------------------------------------------------------------------

    def areas(self) -> list[Area]:
        """The containers of the account; which account a request of many means, nobody knows beforehand."""
        user = self._credentials.get(self._reference)
        if self.multi_tenant:
            account: tuple[str | None, ...] = ("every request's",)
        elif user is None:
            return []
        elif user.auth_version == "1":
            # account:user
            account = ((user.user or "").partition(":")[0],)
        elif not any(user.scope.values()):
            account = (user.user or user.application_credential_id,)
        else:
            scope = user.scope
            account = (scope.get("project_id"), scope["project_name"], user.project_domain_id, user.project_domain_name)
        address = (user.auth_address if user else self.conf.swift_store_auth_address) or ""
        # One project has an account in each region, and in each service of the catalog.
        service = (self.conf.swift_store_service_type, self.conf.swift_store_region, self.conf.swift_store_endpoint)
        parts = urllib.parse.urlsplit(_VERSION.sub("", address.rstrip("/")))
        server = (web_server(parts.hostname or "", parts.port), parts.path.rstrip("/"))
        container = ("swift", *server, *service, *account)
        found = [Area(container, prefix, "swift_store_container") for prefix in self.layout.containers]
        if not self.layout.own and self.layout.segments:
            found.append(Area(container, f"{self.layout.segments}/", "swift_store_segment_container"))
        return found

    def owns(self, location: SwiftLocation) -> bool:
        """Whether it names an account and a container of this store."""
        if not self.layout.holds(location.container, location.obj):
            return False
        if self.multi_tenant:
            # Which hosts there are, only the catalog of a request tells; see ForeignAccount.
            return location.scheme != CONFIG and "/" in location.place
        return self._reference_of(location) is not None

    def _reference_of(self, location: SwiftLocation) -> str | None:
        """Which account a URI means. Credentials in it mean nothing: they may be years old."""
        if location.scheme == CONFIG:
            return location.place if location.place in self._credentials and location.place != _OPTIONS else None
        place = _VERSION.sub("", location.place)
        for reference, known in self._credentials.items():
            if _VERSION.sub("", place_of(known.auth_address)) == place:
                return reference
        return None

    def account_of(self, location: SwiftLocation, context: Any) -> Account:
        """The account an image is in."""
        from storelib.drivers.swift.account import Account
        from storelib.drivers.swift.identity import ForeignAccount

        if not self.multi_tenant:
            return Account(self.clients.connections, self.clients.identity(self._reference_of(location) or _OPTIONS))
        identity = self._identity(context)
        if identity.access().url != location.url:
            identity = ForeignAccount(identity, location.url)
        return Account(self.clients.connections, identity)

    def own_account(self, context: Any = None) -> Account:
        """The account that new images go to."""
        from storelib.drivers.swift.account import Account

        if self.multi_tenant and context is not None:
            return Account(self.clients.connections, self._identity(context))
        return Account(self.clients.connections, self.clients.identity(self._reference))

    def _identity(self, context: Any) -> Identity:
        from storelib.drivers.swift.identity import RequestIdentity

        if context is not None:
            return RequestIdentity(context, self.conf)
        if self._reference not in self._credentials:
            raise Forbidden(f"store {self.name} is multi-tenant: it needs the context of a request, or its own user")
        # Whoever calls without a request, to clean up for example, acts as the service.
        return self.clients.identity(self._reference)

    def with_trust(self, account: Account) -> Account:
        """The same account for a transfer that may outlive the token of its request; close its identity."""
        from storelib.drivers.swift.account import Account
        from storelib.drivers.swift.identity import V3Identity

        if not self.multi_tenant or not self.conf.swift_store_use_trusts or self._reference not in self._credentials:
            return account
        service = self.clients.identity(self._reference)
        if not isinstance(service, V3Identity):
            return account
        identity = account.identity.with_trust(service, lambda trust: self.clients.trusted(self._reference, trust))
        return Account(self.clients.connections, identity)

    def location_of(self, account: Account, container: str, image_id: str) -> SwiftLocation:
        """Where an image is, or would be."""
        if self.multi_tenant:
            url = account.url
        elif self.conf.swift_store_config_file:
            return SwiftLocation(CONFIG, self._reference, container, image_id)
        else:
            url = self._credentials[_OPTIONS].auth_address
        return SwiftLocation(scheme_for(url), place_of(url), container, image_id)

    def features(self, account: Account) -> Features:
        """What the service can do."""
        return self.clients.features(account)

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

    # -- The driver contract ------------------------------------------------------------------------------------------

    def open_writer(self, image_id: str, size: int | None, context: Any) -> SwiftWriter:
        """Look whether there is such an image."""
        from storelib.drivers.swift.writer import SwiftWriter

        if self.multi_tenant and context is None:
            raise Forbidden(f"store {self.name} is multi-tenant: adding needs the context of a request")
        account = self.own_account(context)
        location = self.location_of(account, self.layout.container_for(image_id), image_id)
        if self._exists(account, location):
            raise Duplicate(f"image {image_id!r} exists in store {self.name}")
        writer = SwiftWriter(self, account, location)
        self.writers[writer.token] = writer
        return writer

    def _exists(self, account: Account, location: SwiftLocation) -> bool:
        try:
            return account.find(location.container, location.obj) is not None
        except Forbidden:
            # Of a container that is not there, Swift says so too; making it will tell.
            if not self.layout.own:
                raise
            return False

    def open_reader(self, location: SwiftLocation, offset: int, length: int | None, context: Any) -> SwiftReader:
        """Send the first request."""
        from storelib.drivers.swift.reader import SwiftReader

        return SwiftReader(self, self.account_of(location, context), location, offset, length)

    def measure(self, location: SwiftLocation, context: Any) -> int:
        """Ask with HEAD."""
        return self.inspect(location, context).size

    def inspect(self, location: SwiftLocation, context: Any) -> ImageInfo:
        """What the headers tell."""
        return info_of(location, self.account_of(location, context).head(location.container, location.obj))

    def remove(self, location: SwiftLocation, context: Any) -> None:
        """The image first, so that nobody reads half of it; then its segments, which gc finds if this is cut short."""
        self._remove(location, context, [])

    def removal(self, location: SwiftLocation, context: Any) -> Callable[[], None]:
        """The same for the image that is met first, not for one that takes its place when an answer is lost."""
        met: list[Mapping[str, str]] = []
        return lambda: self._remove(location, context, met)

    def _remove(self, location: SwiftLocation, context: Any, met: list[Mapping[str, str]]) -> None:
        from storelib.drivers.swift.garbage import gone

        account = self.account_of(location, context)
        found = account.find(location.container, location.obj)
        again = bool(met)
        met += [] if again or found is None else [found]
        removed = again and (found is None or _which(found) != _which(met[0]))
        # What an earlier attempt has left of it is this one's to remove only if no other image can have that name.
        if not met or (removed and TOKEN_HEADER not in met[0]):
            raise NotFound(f"there is nothing at {location}")
        headers = met[0]
        place = segment_place(location.obj, headers)
        if place is None and not removed:
            # Segments of a static manifest from elsewhere may lie anywhere: its server knows.
            static = headers.get("X-Static-Large-Object", "").lower() == "true"
            answer = account.delete(
                location.container, location.obj, query="multipart-manifest=delete" if static else ""
            )
            if static and not nothing_failed(answer.content):
                raise RemoteServiceUnavailable(f"not all segments of {location} could be removed")
        elif place is not None:
            names = [entry["name"] for entry in account.listing(place[0], prefix=place[1])]
            if not removed:
                account.delete(location.container, location.obj)
            self._remove_rest(lambda name: gone(account, place[0], name), names, location)
        if self.layout.own:
            token = headers.get(TOKEN_HEADER)
            tried = [location.container] if removed else []

            def remove_own(name: str) -> None:
                # Once the answer to a first attempt is lost, somebody else's container may have that name.
                if tried and (account.find(name) or {}).get(CLAIM_HEADER) != token:
                    return
                tried.append(name)
                gone(account, name)

            self._remove_rest(remove_own, [location.container], location)

    def _remove_rest(self, remove: Callable[[str], None], names: Sequence[str], location: SwiftLocation) -> None:
        """What must not be taken for the image itself any more when it fails."""
        try:
            self.for_each(remove, names, location)
        except StoreError as error:
            raise StoreError(f"{location} is removed, but something of it is left for gc to find: {error}") from error

    def map_error(self, error: Exception, subject: str) -> StoreError | None:
        """See errors.py."""
        return error_of_exception(error, subject)

    def candidate_locations(self, image_id: str) -> list[SwiftLocation] | None:
        """The only one; but with a seed, which may have been another before, in any container."""
        if self.layout.seed:
            return None
        return [self.location_of(self.own_account(), self.layout.container_for(image_id), image_id)]

    def images(self) -> Iterator[ImageInfo]:
        """Images of the account that new ones go to."""
        from storelib.drivers.swift.account import present

        account = self.own_account()
        for container in self.containers(account):
            known = self._image_in_its_own(account, container) if self.layout.own else None
            if known is not None:
                yield known
            else:
                yield from self._images_in(account, container, present(account.listing(container, delimiter="/")))

    def _image_in_its_own(self, account: Account, container: str) -> ImageInfo | None:
        """The image that a container is named after: one request instead of a listing."""
        image_id = container.removeprefix(f"{self.layout.container}_")
        headers = account.find(container, image_id)
        return None if headers is None else info_of(self.location_of(account, container, image_id), headers)

    def _images_in(self, account: Account, container: str, entries: Iterator[dict[str, Any]]) -> Iterator[ImageInfo]:
        from storelib.drivers.swift.garbage import posix_time

        parts: list[str] = []
        for entry in entries:
            name = entry.get("name", "")
            # Old segments are called like their image, which comes before them, and a number.
            if not name or not self.layout.holds(container, name) or any(map(name.startswith, parts)):
                continue
            size = size_in(entry.get("content_type", ""))
            # The hash of a manifest is that of its own few bytes, not the ETag of the image; radosgw has no other.
            version = entry.get("slo_etag") or (entry.get("hash") if size is None else None)
            size = entry["bytes"] if size is None else size
            if not size:
                # It may be an old dynamic manifest.
                headers = account.find(container, name)
                if headers is None:
                    continue
                size = length_of(headers) or 0
                version = headers.get("Etag")
                place = segment_place(name, headers)
                if place is not None and place[0] == container:
                    parts.append(place[1])
            location = self.location_of(account, container, name)
            yield ImageInfo(location.uri, size, name, posix_time(entry), bare_etag(version))

    def garbage(self, older_than: float, prefix: str | None) -> Iterator[Garbage]:
        """Segments without a manifest, containers without an image."""
        from storelib.drivers.swift import garbage

        return garbage.find(self, self.own_account(), older_than, prefix or "")

    def discard(self, garbage: Garbage) -> bool:
        """Remove them, several at a time."""
        from storelib.drivers.swift.garbage import discard

        return discard(self, self.own_account(), garbage.handle, garbage.image_id or "")

    def probe(self) -> Health:
        """How full the account is, if we may know; then a small image and one of segments go in and out."""
        account = self.own_account()
        try:
            headers = account.head()
        except Forbidden:
            # Who may use one container need not be allowed to ask for the account.
            headers = {}
        self._check_container(account)
        if not self.multi_tenant:
            rehearse(self)
            if Capability.ADD in self.capabilities and Capability.DELETE in self.capabilities:
                self._rehearse_segments()
        return _health(headers)

    def _check_container(self, account: Account) -> None:
        container = self.layout.container
        missing = not self.layout.own and not self.layout.seed and account.find(container) is None
        if missing and not self.conf.swift_store_create_container_on_put:
            raise BadStoreConfiguration(
                f"container {container} does not exist; make it, or set swift_store_create_container_on_put"
            )

    def _rehearse_segments(self) -> None:
        """Two segments of one byte and their manifest, as large images have."""
        writer = self.open_writer(f"{PREFIX}{new_token()}", 2, None)
        try:
            writer.reserve(2)
            for number in range(2):
                writer.write(Part(number, number, memoryview(b"x")))
            stored = writer.commit(2, Digests(None, ""))
            reader = self.open_reader(writer.location, 0, None, None)
            try:
                reader.read_into(0, memoryview(bytearray(2)))
            finally:
                reader.close()
        except BaseException:
            writer.abort()
            raise
        finally:
            writer.close()
        self.delete(stored.location.uri)

    # -- Sharing ------------------------------------------------------------------------------------------------------

    def set_acls(
        self,
        location: Any,
        public: bool = False,
        read_tenants: Sequence[str] = (),
        write_tenants: Sequence[str] = (),
        context: Any = None,
    ) -> None:
        """Set who may use the container of an image; what the lists do not name is taken away."""
        self.require(Capability.ACLS, AclsNotSupported)
        found = self.locate(location)
        writers = [*write_tenants, *self.conf.swift_store_admin_tenants]
        readers = [*read_tenants, *(self.conf.swift_store_admin_tenants if not public else ())]
        for tenant in (*readers, *writers):
            if not isinstance(tenant, str) or not _TENANT.fullmatch(tenant):
                raise Invalid(f"{tenant!r} is no name of a project")
        old = not self.multi_tenant and self._credentials[self._reference].auth_version == "1"
        everybody = ".r:*" if old else "*:*"
        form = "{}" if old else "{}:*"
        headers = {
            "X-Container-Read": everybody if public else ",".join(map(form.format, readers)),
            "X-Container-Write": ",".join(map(form.format, writers)),
        }
        self._call(lambda: self.account_of(found, context).post(found.container, headers=headers), found)

    def presign(self, location: Any, expires: float) -> str:
        """A temporary URL."""
        self.require(Capability.PRESIGN, OperationNotSupported)
        if not expires > 0:
            raise Invalid(f"expires must be a number of seconds above 0, not {expires!r}")
        found = self.locate(location)
        return self._call(lambda: self._temporary_url(found, expires), found)

    def _temporary_url(self, location: SwiftLocation, expires: float) -> str:
        from swiftclient.utils import generate_temp_url

        account = self.account_of(location, None)
        parts = urllib.parse.urlsplit(account.url)
        digest = "sha256" if "sha256" in self.features(account).digests else "sha1"
        path = f"{urllib.parse.unquote(parts.path)}/{location.container}/{location.obj}"
        signed = generate_temp_url(path, math.ceil(expires), self.conf.swift_store_temp_url_key, "GET", digest=digest)
        return f"{parts.scheme}://{parts.netloc}{urllib.parse.quote(path)}{signed[len(path) :]}"

    # -- Copies -------------------------------------------------------------------------------------------------------

    def server_side_copy(self, source: SwiftLocation, image_id: str, context: Any) -> SwiftCopy | None:
        """See copying.py."""
        from storelib.drivers.swift.copying import open_copy

        return open_copy(self, source, image_id, context)


def info_of(location: SwiftLocation, headers: Mapping[str, str]) -> ImageInfo:
    """What the headers of an image tell; raises StoreError if not even its size."""
    size = length_of(headers)
    if size is None:
        raise StoreError(f"Swift does not tell the size of {location}")
    modified = number(headers.get("X-Timestamp"))
    if modified is None:
        modified = date_in(headers, "Last-Modified")
    return ImageInfo(location.uri, size, location.obj, modified, bare_etag(headers.get("Etag")))


def bare_etag(value: str | None) -> str | None:
    """An ETag without its quotes; None where there is none."""
    return (value or "").strip('"') or None


def _health(headers: Mapping[str, str]) -> Health:
    used = count(headers.get("X-Account-Bytes-Used"))
    total = count(headers.get("X-Account-Quota-Bytes") or headers.get("X-Account-Meta-Quota-Bytes"))
    if used is None:
        return Health("this user may not ask how full the account is")
    if total is None:
        return Health(f"{used} bytes used in the account")
    return Health(f"{used} bytes used of {total}", max(0, total - used), total)


def _which(headers: Mapping[str, str]) -> tuple[str | None, ...]:
    """What tells one image of a name from another."""
    return tuple(headers.get(name) for name in (TOKEN_HEADER, "Etag", "X-Timestamp", "Last-Modified"))


def _check_certificates(path: str) -> None:
    import ssl

    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:
        raise BadStoreConfiguration(f"swift_store_cacert {path}: {error.strerror or 'no certificates'}") from error


def _import_clients() -> None:
    with needing("the swift driver", "swift"):
        importlib.import_module("swiftclient.client")
        importlib.import_module("keystoneauth1.session")
