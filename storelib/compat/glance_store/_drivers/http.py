# SPDX-License-Identifier: Apache-2.0
"""The http driver of storelib."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storelib.compat import options
from storelib.compat.glance_store import exceptions
from storelib.compat.glance_store._drivers.native import NativeLocation, NativeStore
from storelib.compat.glance_store.capabilities import BitMasks


class StoreLocation(NativeLocation):
    """A URI of it."""

    DRIVER = "http"

    def composed(self, specs: Mapping[str, Any]) -> str:
        """The URL, with credentials if there are any."""
        credentials = f"{specs['user']}:{specs.get('password')}@" if specs.get("user") else ""
        query = f"?{specs['query']}" if specs.get("query") else ""
        return f"{specs.get('scheme', 'http')}://{credentials}{specs['netloc']}{specs.get('path') or ''}{query}"

    def parse_uri(self, uri: str) -> None:
        """What requests encoded for glance_store on its way to the server is encoded here, too."""
        start, mark, rest = uri.partition("://")
        host, slash, target = rest.partition("/")
        super().parse_uri(start + mark + host + slash + target.replace(" ", "%20").replace("\\", "%5C"))
        self._uri = uri


class Store(NativeStore):
    """Images on web servers, for reading only."""

    DRIVER = "http"
    NAME = "http"
    OPTIONS = options.known_options("http")
    _CAPABILITIES = BitMasks.READ_RANDOM | BitMasks.DRIVER_REUSABLE

    def adjusted(self, given: dict[str, Any]) -> dict[str, Any]:
        """Which addresses may be read from is for the service to say, as Glance does by [import_filtering_opts]."""
        given.setdefault("http_allowed_networks", ["0.0.0.0/0", "::/0"])
        # Where clouds keep the secrets of their machines; no image is there.
        given.setdefault("http_disallowed_networks", ["169.254.0.0/16", "fe80::/10"])
        return given

    def prefix(self) -> str:
        """The beginning of both schemes."""
        return "http"

    def get_size(self, location: Any, context: Any = None) -> int:
        """Bytes in the image. One that may not be asked for, that no server gives or that none counts has a wrong URI.

        So says glance_store, or that its size is 0, and Glance then refuses the location; of anything else it says that
        it failed itself.
        """
        try:
            return super().get_size(location, context)
        except (exceptions.Forbidden, exceptions.RemoteServiceUnavailable, exceptions.BackendException) as error:
            raise exceptions.BadStoreUri(message=str(error)) from error
