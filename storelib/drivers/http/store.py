# SPDX-License-Identifier: Apache-2.0
"""HttpStore: reads images at http and https URLs. Options and the driver's methods; the work is in the modules beside.

location.py URLs, rules.py who may be asked, session.py requests and redirects, answer.py what headers mean,
reader.py the bytes, errors.py every error. urllib3 is imported when a store is configured.
"""

from __future__ import annotations

import email.utils
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from oslo_config import cfg, types

from storelib.capabilities import Capability
from storelib.driver import ImageInfo, Store
from storelib.drivers.http.errors import error_of_exception
from storelib.drivers.http.location import HttpLocation
from storelib.drivers.http.rules import Rules
from storelib.exceptions import StoreError
from storelib.option_types import LocalPath
from storelib.transfer.contract import KiB, MiB

if TYPE_CHECKING:
    from storelib.drivers.http.reader import HttpReader
    from storelib.drivers.http.session import Session

__all__ = ["HttpLocation", "HttpStore"]

_PORTS = types.Integer(min=1, max=65535)

OPTIONS: Sequence[cfg.Opt] = (
    cfg.Opt(
        "https_ca_certificates_file",
        type=LocalPath(),
        help="File of CA certificates (PEM) that servers are verified against, instead of the system's.",
    ),
    cfg.BoolOpt(
        "https_insecure",
        default=False,
        help="Do not verify the certificates of servers. Whoever sits between can then replace every image.",
    ),
    cfg.DictOpt(
        "http_proxy_information",
        default={},
        secret=True,
        help="Proxies by scheme, as http:proxy.example.org:3128,https:proxy.example.org:3128. A proxy may also be a "
        "URL with credentials. It resolves names and connects by itself, so http_allowed_networks and "
        "http_disallowed_networks then hold only for addresses written in URLs; the address of the proxy is not "
        "checked. Proxies named by the environment are never used.",
    ),
    cfg.FloatOpt("http_connect_timeout", default=10.0, min=0.01, help="Seconds to wait for a connection."),
    cfg.FloatOpt("http_read_timeout", default=60.0, min=0.01, help="Seconds to wait for the next bytes."),
    cfg.IntOpt("http_max_redirects", default=5, min=0, max=50, help="Redirects followed for one request."),
    cfg.ListOpt(
        "http_allowed_hosts",
        default=[],
        help="Hosts that images may be read from, as in the URL; ``*.example.org`` is every host below example.org. "
        "Empty: all. Holds for redirects too, as do the lists below.",
    ),
    cfg.ListOpt("http_disallowed_hosts", default=[], help="Hosts never to be asked, even if they are also allowed."),
    cfg.ListOpt(
        "http_allowed_ports",
        default=[],
        item_type=_PORTS,
        help="Ports that images may be read from. Empty: all.",
    ),
    cfg.ListOpt(
        "http_disallowed_ports",
        default=[],
        item_type=_PORTS,
        help="Ports never to be asked, even if they are also allowed.",
    ),
    cfg.ListOpt(
        "http_allowed_networks",
        default=[],
        help="Networks, as 10.1.0.0/16, that may be connected to although their addresses are loopback, link-local, "
        "private or otherwise not public. Public addresses need no entry. Checked on the address that is connected "
        "to, so no name and no way to write an address gets around it.",
    ),
    cfg.ListOpt(
        "http_disallowed_networks",
        default=[],
        help="Networks never to be connected to, even if they are public or also allowed.",
    ),
    cfg.IntOpt(
        "http_download_concurrency",
        default=4,
        min=1,
        max=64,
        help="Ranges of one image in flight at most, from servers that are far away; near ones send one stream.",
    ),
    cfg.IntOpt(
        "http_download_part_size",
        default=8 * MiB,
        min=64 * KiB,
        max=64 * MiB,
        help="Bytes in one such range.",
    ),
)


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

    def configure_get(self) -> None:
        """Check the lists, the proxies and the certificates."""
        from storelib.drivers.http.session import Session, tls_context

        self.session = Session(self.conf, Rules.from_conf(self.conf))
        if self.conf.https_ca_certificates_file is not None:
            tls_context(self.conf)

    def owns(self, location: HttpLocation) -> bool:
        """Whether the lists of hosts and ports allow it; addresses are judged when connecting."""
        return self.session.rules.refuse_url(location) is None

    def open_reader(self, location: HttpLocation, offset: int, length: int | None, context: Any) -> HttpReader:
        """Send the request."""
        from storelib.drivers.http.reader import HttpReader

        return HttpReader(
            self.session,
            location,
            offset,
            length,
            self.conf.http_download_concurrency,
            self.conf.http_download_part_size,
        )

    def measure(self, location: HttpLocation, context: Any) -> int:
        """Ask with HEAD, or for one byte."""
        return self.inspect(location, context).size

    def inspect(self, location: HttpLocation, context: Any) -> ImageInfo:
        """What the headers tell."""
        answer = self.session.describe(location)
        if answer.size is None:
            raise StoreError(f"the server does not tell the size of {location}")
        version = answer.version
        return ImageInfo(location.uri, answer.size, modified=_posix_time(version.modified), version=version.etag)

    def map_error(self, error: Exception, subject: str) -> StoreError | None:
        """See errors.py."""
        return error_of_exception(error, subject)


def _posix_time(date: str | None) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(date or "").timestamp()
    except (ValueError, OverflowError, TypeError):
        return None
