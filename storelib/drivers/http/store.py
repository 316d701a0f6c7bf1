# SPDX-License-Identifier: Apache-2.0
"""HttpStore: the methods of the driver. Requests are the session's, bytes the reader's, what to refuse the options'."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from oslo_config import cfg

from storelib.capabilities import Capability
from storelib.driver import Context, ImageInfo, Store
from storelib.drivers.http.errors import error_of_exception
from storelib.drivers.http.location import HttpLocation
from storelib.drivers.http.options import OPTIONS
from storelib.exceptions import StoreError

if TYPE_CHECKING:
    from storelib.drivers.http.reader import HttpReader
    from storelib.drivers.http.session import Session


class HttpStore(Store[HttpLocation]):
    """Read-only: any http or https URL whose host and port the lists allow.

    * Addresses that are not public are refused, also behind names and redirects, unless http_allowed_networks has them.
    * A cut read goes on where it stopped if the server names a version (ETag, or a Last-Modified older than its Date).
    * From a server that ignores ranges, a range is read from the start of the image, skipping what comes before.
    * An image whose length the server does not tell in any way is transferred twice by ``get``: once to count.
      ``get_size`` refuses it.
    """

    schemes = ("http", "https")
    location_class = HttpLocation
    options: ClassVar[Sequence[cfg.Opt]] = OPTIONS
    capabilities = Capability.READ | Capability.RANGE | Capability.STAT
    session: Session
    _longest: int | None = None

    def configure_get(self) -> None:
        """Check the lists, the proxies and the certificates."""
        from storelib.drivers.http.session import Session

        self.session = Session(self.conf, self.name)

    def always_send(self, uri: str, headers: Mapping[str, str]) -> None:
        """Send these headers with every request to the server of ``uri``, and to no other; raises BadStoreUri."""
        self.session.always_send(HttpLocation.parse(uri), headers)

    def count_at_most(self, size: int) -> None:
        """Refuse an image of more bytes where the server does not tell how long it is, which may be without an end."""
        self._longest = size

    def name_options(self, prefix: str) -> None:
        """Tell of options that begin like this when a list refuses a URL: it came from those, and not from ours."""
        self.session.rules = dataclasses.replace(self.session.rules, prefix=prefix)

    def owns(self, location: HttpLocation) -> bool:
        """Whether the lists of hosts and ports allow it; addresses are judged when connecting."""
        return self.session.rules.refuse_url(location) is None

    def open_reader(
        self, location: HttpLocation, offset: int, length: int | None, context: Context | None
    ) -> HttpReader:
        """Send the first request, whose response the reader goes on with."""
        from storelib.drivers.http.reader import HttpReader

        return HttpReader(self.session, location, offset, length, self._longest)

    def inspect(self, location: HttpLocation, context: Context | None) -> ImageInfo:
        """What the headers of the image tell, asked for without its body."""
        response = self.session.describe(location)
        if response.size is None:
            raise StoreError(f"the server does not tell the size of {location}")
        version = response.version
        return ImageInfo(location.uri, response.size, modified=version.posix_time, version=version.etag)

    def map_error(self, error: Exception, subject: str) -> StoreError | None:
        """The error of storelib for one of urllib3, http.client or the socket: see errors.py."""
        return error_of_exception(error, subject)
