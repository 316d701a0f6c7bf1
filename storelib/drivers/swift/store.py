# SPDX-License-Identifier: Apache-2.0
"""SwiftStore: configuration, whose account an image is in, and everything but moving bytes."""

from __future__ import annotations

import importlib
import logging
import math
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from oslo_config import cfg

from storelib.capabilities import READ_WRITE, Capability
from storelib.driver import (
    Area,
    Context,
    Deletion,
    Digests,
    Garbage,
    Health,
    ImageInfo,
    Part,
    Store,
    check_expires,
    tenants_of,
    web_server,
)
from storelib.drivers.swift import garbage
from storelib.drivers.swift.errors import (
    CLAIM_HEADER,
    TOKEN_HEADER,
    changed_at,
    error_of_exception,
    info_of,
    length_of,
    nothing_failed,
    segment_place,
    size_in,
)
from storelib.drivers.swift.location import SCHEMES, SwiftLocation, is_reference, possible_roots, without_version
from storelib.drivers.swift.options import OPTIONS, read_credentials
from storelib.drivers.swift.service import Account, Service, new_token, present
from storelib.exceptions import (
    AclsNotSupported,
    Forbidden,
    Invalid,
    NotFound,
    OperationNotSupported,
    RemoteServiceUnavailable,
    StoreError,
)
from storelib.extras import needing
from storelib.option_types import LONGEST
from storelib.rehearsal import PREFIX, rehearse
from storelib.transfer.certificates import check_certificates
from storelib.transfer.contract import Options
from storelib.transfer.http.headers import whole_number

if TYPE_CHECKING:
    from storelib.drivers.swift.reader import SwiftReader
    from storelib.drivers.swift.writer import SwiftCopy, SwiftWriter

LOG = logging.getLogger(__name__)

_TENANT = re.compile(r"[^,:\s]+")


class SwiftStore(Store[SwiftLocation]):
    """Images as objects in Swift; large ones in segments with a manifest."""

    schemes = SCHEMES
    location_class = SwiftLocation
    options: ClassVar[Sequence[cfg.Opt]] = OPTIONS
    capabilities = READ_WRITE | Capability.COPY

    def __init__(self, name: str, conf: Options) -> None:
        super().__init__(name, conf)
        self.service = Service(name, conf, self.for_each)
        if self.service.layout.own:
            self.capabilities |= Capability.ATOMIC_ADD | Capability.ACLS
        if not self.service.multi_tenant:
            self.capabilities |= Capability.LIST | Capability.GC
            if conf.swift_store_temp_url_key:
                self.capabilities |= Capability.PRESIGN

    # -- Configuration ------------------------------------------------------------------------------------------------

    def configure_get(self) -> None:
        """Find out who we are, in the options or in a reference file."""
        _import_clients()
        self.service.use(read_credentials(self.conf, self.name))
        if not self.service.credentials:
            # Without a user of its own a multi-tenant store can do nothing on its own account.
            self.capabilities &= ~Capability.CHECK
        if not self.conf.swift_store_auth_insecure:
            check_certificates(self.conf.swift_store_cacert, self.name, "swift_store_cacert")

    def configure_add(self) -> None:
        """Check the names of containers."""
        for option in ("swift_store_container", "swift_store_segment_container"):
            name = getattr(self.conf, option)
            if name is None and option == "swift_store_segment_container":
                continue
            if not name or "/" in name or name in (".", "..") or len(name.encode()) > 256:
                raise self.misconfigured(option, "the name of a container, 1 to 256 bytes without '/'")
        service, file = self.service, self.conf.swift_store_config_file
        if file and not service.multi_tenant and service.reference not in service.credentials:
            raise self.misconfigured("default_swift_reference", f"{service.reference} is no section of {file}")
        if file and not service.multi_tenant and not is_reference(service.reference):
            why = "no blanks, '/', '@', ':', '?' or '#': URIs of images name it"
            raise self.misconfigured("default_swift_reference", why)

    # -- Whose account ------------------------------------------------------------------------------------------------

    def areas(self) -> list[Area]:
        """The containers of the account; which account a request of many means, nobody knows beforehand."""
        service = self.service
        user = service.credentials.get(service.reference)
        if service.multi_tenant:
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
        catalog = (self.conf.swift_store_service_type, self.conf.swift_store_region, self.conf.swift_store_endpoint)
        try:
            parts = urllib.parse.urlsplit(without_version(address.rstrip("/")))
            server = (web_server(parts.hostname or "", parts.port), parts.path.rstrip("/"))
        except ValueError:
            # It was refused, and there are no images.
            return []
        container = ("swift", *server, *catalog, *account)
        found = [Area(container, prefix, "swift_store_container") for prefix in service.layout.containers]
        if not service.layout.own and service.layout.segments:
            found.append(Area(container, f"{service.layout.segments}/", "swift_store_segment_container"))
        return found

    def owns(self, location: SwiftLocation) -> bool:
        """Whether it names an account and a container of this store."""
        return self.service.owns(location)

    def roots(self) -> list[tuple[str | None, str]]:
        """Each account and the container, or what the names of all its containers begin with."""
        return self.service.roots()

    @classmethod
    def possible_roots(cls, location: SwiftLocation) -> Iterator[tuple[str | None, str]]:
        """The same for all containers that one may belong to."""
        return possible_roots(location)

    def canonical(self, location: SwiftLocation) -> SwiftLocation:
        """With the account as new images of it have it."""
        return self.service.canonical(location)

    # -- The driver contract ------------------------------------------------------------------------------------------

    def open_writer(self, image_id: str, size: int | None, context: Context | None) -> SwiftWriter:
        """Look whether there is such an image."""
        from storelib.drivers.swift.writer import open_writer

        return open_writer(self.service, image_id, context)

    def open_reader(
        self, location: SwiftLocation, offset: int, length: int | None, context: Context | None
    ) -> SwiftReader:
        """Send the first request."""
        from storelib.drivers.swift.reader import SwiftReader

        return SwiftReader(self.service, self.service.account_of(location, context), location, offset, length)

    def inspect(self, location: SwiftLocation, context: Context | None) -> ImageInfo:
        """What the headers tell."""
        return info_of(location, self.service.account_of(location, context).head(location.container, location.obj))

    def remove(self, location: SwiftLocation, context: Context | None, deletion: Deletion) -> None:
        """The image first, so that nobody reads half of it; then its segments, which gc finds if this is cut short."""
        account = self.service.account_of(location, context)
        found = account.find(location.container, location.obj)
        again = deletion.image is not None
        headers: Mapping[str, str] | None = deletion.image if again else found
        removed = again and (found is None or _which(found) != _which(deletion.image))
        # What an earlier attempt has left of it is this one's to remove only if no other image can have that name.
        if headers is None or (removed and TOKEN_HEADER not in headers):
            raise NotFound(f"there is nothing at {location}")
        deletion.image = headers
        place = segment_place(location.obj, headers)
        if place is None and not removed:
            # Segments of a static manifest from elsewhere may lie anywhere: its server knows.
            static = headers.get("X-Static-Large-Object", "").lower() == "true"
            response = account.delete(
                location.container, location.obj, query="multipart-manifest=delete" if static else ""
            )
            if static and not nothing_failed(response.content):
                raise RemoteServiceUnavailable(f"not all segments of {location} could be removed")
        elif place is not None:
            names = [entry["name"] for entry in account.listing(place[0], prefix=place[1])]
            if not removed:
                account.delete(location.container, location.obj)
            self._remove_rest(lambda name: account.remove(place[0], name), names, location)
        if self.service.layout.own:
            token = headers.get(TOKEN_HEADER)
            tried = [location.container] if removed else []

            def remove_own(name: str) -> None:
                # Once the response to a first attempt is lost, the container of another add may have that name.
                if tried and (account.find(name) or {}).get(CLAIM_HEADER) != token:
                    return
                tried.append(name)
                account.remove(name)

            self._remove_rest(remove_own, [location.container], location)

    def _remove_rest(self, remove: Callable[[str], None], names: Sequence[str], location: SwiftLocation) -> None:
        """What must not be taken for the image itself any more when it fails."""
        try:
            self.for_each(remove, names, location)
        except StoreError as error:
            raise StoreError(f"{location} is removed, but something of it is left for gc to find: {error}") from error

    def map_error(self, error: Exception, subject: str) -> StoreError | None:
        """The error for what an HTTP or identity client raised."""
        return error_of_exception(error, subject)

    def candidate_locations(self, image_id: str) -> list[SwiftLocation]:
        """The only one; but with a seed, which may have been another before, in any that there is for it."""
        service, layout = self.service, self.service.layout
        account = service.own_account()
        containers = [layout.container_for(image_id)]
        if layout.seed and not layout.own:
            found = service.containers(account, image_id)
            containers += [name for name in found if name not in containers and layout.holds(name, image_id)]
        return [service.location_of(account, container, image_id) for container in containers]

    def images(self) -> Iterator[ImageInfo]:
        """Images of the account that new ones go to."""
        account = self.service.own_account()
        for container in self.service.containers(account):
            known = self._image_in_its_own(account, container) if self.service.layout.own else None
            if known is not None:
                yield known
            else:
                yield from self._images_in(account, container, present(account.listing(container, delimiter="/")))

    def _image_in_its_own(self, account: Account, container: str) -> ImageInfo | None:
        """The image that a container is named after: one request instead of a listing."""
        image_id = container.removeprefix(f"{self.service.layout.container}_")
        headers = account.find(container, image_id)
        return None if headers is None else info_of(self.service.location_of(account, container, image_id), headers)

    def _images_in(self, account: Account, container: str, entries: Iterator[dict[str, Any]]) -> Iterator[ImageInfo]:
        parts: list[str] = []
        for entry in entries:
            name = entry.get("name", "")
            # Old segments are called like their image, which comes before them, and a number.
            if not name or not self.service.layout.holds(container, name) or any(map(name.startswith, parts)):
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
            location = self.service.location_of(account, container, name)
            yield ImageInfo(location.uri, size, name, changed_at(entry), (version or "").strip('"') or None)

    def garbage(self, older_than: float, prefix: str | None) -> Iterator[Garbage]:
        """Segments without a manifest, containers without an image."""
        return garbage.find(self.service, self.service.own_account(), older_than, prefix or "")

    def discard(self, item: Garbage) -> bool:
        """Remove them, several at a time."""
        return garbage.discard(self.service, self.service.own_account(), item.handle, item.image_id or "")

    def probe(self) -> Health:
        """How full the account is, if we may know; then a small image and one of segments go in and out."""
        account = self.service.own_account()
        try:
            headers = account.head()
        except Forbidden:
            # Who may use one container need not be allowed to ask for the account.
            headers = {}
        self._check_container(account)
        if not self.service.multi_tenant:
            rehearse(self)
            if Capability.ADD in self.capabilities and Capability.DELETE in self.capabilities:
                self._rehearse_segments()
        return _health(headers)

    def _check_container(self, account: Account) -> None:
        container = self.service.layout.container
        missing = not self.service.layout.own and not self.service.layout.seed and account.find(container) is None
        if missing and not self.conf.swift_store_create_container_on_put:
            why = f"container {container} does not exist; make it, or set swift_store_create_container_on_put"
            raise self.misconfigured("swift_store_container", why)

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
        context: Context | None = None,
    ) -> None:
        """Set who may use the container of an image; what the lists do not name is taken away."""
        self.require(Capability.ACLS, AclsNotSupported)
        readers, writers = tenants_of(public, read_tenants, write_tenants)
        found = self.locate(location)
        writers += self.conf.swift_store_admin_tenants
        readers += self.conf.swift_store_admin_tenants if not public else ()
        for tenant in (*readers, *writers):
            if not _TENANT.fullmatch(tenant):
                raise Invalid(f"{tenant!r:.80} is no name of a project")
        old = not self.service.multi_tenant and self.service.credentials[self.service.reference].auth_version == "1"
        everybody = ".r:*" if old else "*:*"
        form = "{}" if old else "{}:*"
        headers = {
            "X-Container-Read": everybody if public else ",".join(map(form.format, readers)),
            "X-Container-Write": ",".join(map(form.format, writers)),
        }
        self._call(lambda: self.service.account_of(found, context).post(found.container, headers=headers), found)

    def presign(self, location: Any, expires: float) -> str:
        """A temporary URL, signed with the key of the account or container."""
        self.require(Capability.PRESIGN, OperationNotSupported)
        check_expires(expires, LONGEST)
        found = self.locate(location)
        return self._call(lambda: self._temporary_url(found, expires), found)

    def _temporary_url(self, location: SwiftLocation, expires: float) -> str:
        from swiftclient.utils import generate_temp_url

        account = self.service.account_of(location, None)
        parts = urllib.parse.urlsplit(account.url)
        digest = "sha256" if "sha256" in self.service.features(account).digests else "sha1"
        path = f"{urllib.parse.unquote(parts.path)}/{location.container}/{location.obj}"
        signed = generate_temp_url(path, math.ceil(expires), self.conf.swift_store_temp_url_key, "GET", digest=digest)
        return f"{parts.scheme}://{parts.netloc}{urllib.parse.quote(path)}{signed[len(path) :]}"

    # -- Copies -------------------------------------------------------------------------------------------------------

    def server_side_copy(self, source: SwiftLocation, image_id: str, context: Context | None) -> SwiftCopy | None:
        """Copies object by object, within one account."""
        from storelib.drivers.swift.writer import open_copy

        return open_copy(self.service, source, image_id, context)


def _health(headers: Mapping[str, str]) -> Health:
    used = whole_number(headers.get("X-Account-Bytes-Used"))
    total = whole_number(headers.get("X-Account-Quota-Bytes") or headers.get("X-Account-Meta-Quota-Bytes"))
    if used is None:
        return Health("this user may not ask how full the account is")
    if total is None:
        return Health(f"{used} bytes used in the account")
    return Health(f"{used} bytes used of {total}", max(0, total - used), total)


def _which(headers: Mapping[str, str]) -> tuple[str | None, ...]:
    """What tells one image of a name from another."""
    return tuple(headers.get(name) for name in (TOKEN_HEADER, "Etag", "X-Timestamp", "Last-Modified"))


def _import_clients() -> None:
    with needing("the swift driver", "swift"):
        importlib.import_module("swiftclient.client")
        importlib.import_module("keystoneauth1.session")
