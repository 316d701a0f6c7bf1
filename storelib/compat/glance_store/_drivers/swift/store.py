# SPDX-License-Identifier: Apache-2.0
"""The swift driver of storelib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from storelib.compat import options
from storelib.compat.errors import translating
from storelib.compat.glance_store._drivers.native import NativeLocation, NativeStore
from storelib.drivers.swift.options import OPTIONS_REFERENCE
from storelib.transfer.contract import MiB
from storelib.uris import quote


class StoreLocation(NativeLocation):
    """A URI of it."""

    DRIVER = "swift"

    def composed(self, specs: Mapping[str, Any]) -> str:
        """The account by its service, with credentials if there are any, container and object."""
        user, key = specs.get("user"), specs.get("key")
        credentials = f"{quote(user)}:{quote(key)}@" if user and key else ""
        place = str(specs["auth_or_store_url"]).rpartition("://")[2].strip("/")
        names = "/".join(str(specs[name]).strip("/") for name in ("container", "obj"))
        return f"{specs.get('scheme', 'swift+https')}://{credentials}{place}/{names}"


class Store(NativeStore):
    """Images in OpenStack Swift."""

    DRIVER = "swift"
    NAME = "swift"
    OPTIONS = options.known_options("swift")

    def adjusted(self, given: dict[str, Any]) -> dict[str, Any]:
        """A file of accounts may be named as oslo.config finds it, beside the files of the configuration."""
        path = given.get("swift_store_config_file")
        if path:
            given["swift_store_config_file"] = self.conf.find_file(path) or path
        return given

    def prefix(self) -> str | None:
        """Account and container; in a multi-tenant store only the catalog of a request knows."""
        service = self._store().service
        if service.multi_tenant:
            return None
        layout = service.layout
        uri: str = service.location_of(None, layout.container, "image").uri
        return self.shown_uri(uri).rpartition("/")[0] + ("_" if layout.seed else "/")

    def shown_uri(self, uri: str) -> str:
        """The container as it is, and with credentials where no file holds them: glance_store reads no other ones."""
        uri = self.plain(uri)
        service = self._store().service
        account = service.credentials.get(OPTIONS_REFERENCE)
        if service.multi_tenant or service.conf.swift_store_config_file or not (account.user and account.key):
            return uri
        scheme, _, rest = uri.partition("://")
        return f"{scheme}://{quote(account.user)}:{quote(account.key)}@{rest}"

    @property
    def container(self) -> str:
        """The container of the images, or the first part of the names of several."""
        return str(self.options.swift_store_container)

    @property
    def large_object_size(self) -> int:
        """Bytes from which on images are stored in segments."""
        return int(self.options.swift_store_large_object_size) * MiB

    @property
    def large_object_chunk_size(self) -> int:
        """Bytes in one segment."""
        return int(self.options.swift_store_large_object_chunk_size) * MiB

    def set_acls(
        self,
        location: Any,
        public: bool = False,
        read_tenants: Sequence[str] | None = None,
        write_tenants: Sequence[str] | None = None,
        context: Any = None,
    ) -> None:
        """Say who may read and write the container of an image; raises NotImplementedError unless it has its own."""
        # Also of a store that cannot be used as it is configured: Glance sets them whenever it saves an image.
        if not self.options.swift_store_multi_tenant:
            raise NotImplementedError
        with translating(location):
            self._store().set_acls(location.store_location, public, read_tenants or (), write_tenants or (), context)
