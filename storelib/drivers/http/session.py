# SPDX-License-Identifier: Apache-2.0
"""Session: the pooled connections of one store, and the way from a URL over its redirects to an ImageResponse.

An ImageResponse is what the headers of one response say about the image, checked; a Version, which state of it.
urllib3 does the HTTP; it retries nothing, follows nothing and takes nothing from the environment.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import ConnectTimeoutError, LocationParseError, NameResolutionError, NewConnectionError
from urllib3.util import connection as urllib3_connection

from storelib._version import __version__
from storelib.drivers.http.errors import error_of_status
from storelib.drivers.http.location import HttpLocation
from storelib.drivers.http.options import Rules
from storelib.exceptions import BadStoreUri, Forbidden, NotFound, RemoteServiceUnavailable, StoreError, misconfigured
from storelib.transfer.certificates import check_certificates, tls_context
from storelib.transfer.contract import Options
from storelib.transfer.forking import forget_in_child
from storelib.transfer.http.connections import Connection, pool_classes
from storelib.transfer.http.headers import content_range, is_coded, names_in, posix_time, whole_number
from storelib.transfer.http.reading import discard, discarding_on_error

LOG = logging.getLogger(__name__)

# How the URI of a request comes to its connection: a header, which the connection takes out.
_URI = "Storelib-Uri"
_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = {"User-Agent": f"storelib/{__version__}", "Accept-Encoding": "identity"}
_CA_OPTION = "https_ca_certificates_file"
# Servers whose idle connections are kept. One transfer mostly talks to one, or two with a redirect.
_KEPT_SERVERS = 16
# Idle connections kept for each of them: several transfers at once, however few ranges each has in flight.
_KEPT_CONNECTIONS = 16

_FRAMING = frozenset({"", "identity", "chunked"})
_PAGES = ("text/html", "application/xhtml+xml")
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|head|body|script|title|meta|\?xml|!--)", re.IGNORECASE)

# Bytes of the beginning of an image, to tell it from a page.
_LOOKED_AT = 64


class Session:
    """Safe to use from many threads; connections are made at first use, and anew in a forked child.

    Raises BadStoreConfiguration for lists, proxies or a file of certificates that cannot be used.
    """

    def __init__(self, conf: Options, store_name: str) -> None:
        self.rules = Rules.from_conf(conf, store_name)
        #: Ranges of one image in flight at most, and bytes in each.
        self.concurrency: int = conf.http_download_concurrency
        self.part_size: int = conf.http_download_part_size
        self._conf = conf
        self._store_name = store_name
        self._proxies = _proxy_urls(conf, store_name)
        if not conf.https_insecure:
            check_certificates(conf.https_ca_certificates_file, store_name, _CA_OPTION)
        self._lock = threading.Lock()
        self._managers: dict[str, urllib3.PoolManager] = {}
        self._inherited: list[dict[str, urllib3.PoolManager]] = []
        self._own: dict[tuple[str, str, int], Mapping[str, str]] = {}
        forget_in_child(self)

    def always_send(self, location: HttpLocation, headers: Mapping[str, str]) -> None:
        """Send these headers, which may be credentials, to the server of this URL, and to no other after a redirect."""
        self._own[location.origin] = headers

    def fetch(self, method: str, location: HttpLocation, headers: dict[str, str] | None = None) -> ImageResponse:
        """Ask for an image, or a range of it; follows redirects as far as the rules allow."""
        wanted = location
        for _ in range(self._conf.http_max_redirects + 1):
            self._check(location)
            response = self._send(method, location, headers or {})
            if response.status not in _REDIRECTS:
                return ImageResponse(response, location, (headers or {}).get("Range"))
            target = response.headers.get("Location")
            discard(response)
            location = _follow(location, target)
        raise RemoteServiceUnavailable(
            f"{wanted} redirects more than {self._conf.http_max_redirects} times (http_max_redirects)", transient=False
        )

    def describe(self, location: HttpLocation) -> ImageResponse:
        """The headers of an image without its body: a HEAD, or where that does not tell, a GET of one byte."""
        try:
            response = self.fetch("HEAD", location)
            response.close()
            # Some frameworks answer HEAD with the length of the body they did not make; and a page shows in its body.
            if response.size and not response.may_be_page:
                return response
        except StoreError as error:
            # URLs signed for GET answer 403 to a HEAD, others 400, 405 or 501.
            if error.transient or isinstance(error, NotFound):
                raise
        response = self.fetch("GET", location, {"Range": "bytes=0-63"})
        try:
            response.refuse_page()
        finally:
            response.close()
        return response

    def _send(self, method: str, location: HttpLocation, headers: dict[str, str]) -> urllib3.HTTPResponse:
        """Send one request; returns the response with its body unread."""
        sent = {**_HEADERS, **headers, **self._own.get(location.origin, {})}
        if location.authorization is not None:
            sent["Authorization"] = location.authorization
        # urllib3 would write the path in another way: what is signed, or names an object, would be another one.
        sent[_URI] = location.uri
        response = self._manager(location.scheme).urlopen(
            method,
            location.uri.removesuffix(location.target) + "/",
            headers=sent,
            retries=False,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )
        return cast("urllib3.HTTPResponse", response)

    def _check(self, location: HttpLocation) -> None:
        why = self.rules.refuse_url(location)
        if why is None and location.scheme in self._proxies:
            # The address is the proxy's affair, unless the URL itself says it.
            why = self.rules.refuse_written_address(location)
        if why is not None:
            raise Forbidden(f"{location} does not pass filtering: {why}")

    def _manager(self, scheme: str) -> urllib3.PoolManager:
        with self._lock:
            if scheme not in self._managers:
                self._managers[scheme] = self._new_manager(scheme)
            return self._managers[scheme]

    def _new_manager(self, scheme: str) -> urllib3.PoolManager:
        longest = self._conf.transfer_timeout
        timeout = urllib3.Timeout(
            connect=min(self._conf.http_connect_timeout, longest), read=min(self._conf.http_read_timeout, longest)
        )
        settings: dict[str, Any] = {
            "num_pools": _KEPT_SERVERS,
            "maxsize": max(_KEPT_CONNECTIONS, self.concurrency),
            "timeout": timeout,
        }
        proxy = urllib3.util.parse_url(self._proxies[scheme]) if scheme in self._proxies else None
        if "https" in (scheme, proxy and proxy.scheme):
            # To read the certificates of the system takes 30 ms, which plain http needs not pay.
            settings["ssl_context"] = tls_context(
                self._conf.https_ca_certificates_file, self._store_name, _CA_OPTION, insecure=self._conf.https_insecure
            )
        if proxy is not None:
            credentials = proxy.auth and urllib.parse.unquote(proxy.auth)
            headers = urllib3.util.make_headers(proxy_basic_auth=credentials)
            proxied = urllib3.ProxyManager(proxy._replace(auth=None).url, proxy_headers=headers, **settings)
            proxied.pool_classes_by_scheme = pool_classes(_Connection)
            return proxied
        manager = urllib3.PoolManager(**settings)
        manager.pool_classes_by_scheme = pool_classes(_CheckedConnection, rules=self.rules)
        return manager

    def forget_parent(self) -> None:
        """In a forked child: neither use nor close the parent's connections, nor wait for a lock its threads held."""
        self._lock = threading.Lock()
        self._inherited.append(self._managers)
        self._managers = {}


@dataclass(frozen=True)
class Version:
    """The validators of one state of an image (RFC 9110, 8.8)."""

    etag: str | None
    modified: str | None
    size: int | None
    #: Whether ``modified`` tells states apart: two changes within its one second would share it.
    settled: bool

    @classmethod
    def of(cls, headers: Mapping[str, str], size: int | None) -> Version:
        """The validators that the headers of a response name."""
        modified, date = headers.get("Last-Modified"), headers.get("Date")
        answered, changed = posix_time(date), posix_time(modified)
        settled = answered is not None and changed is not None and answered - changed >= 1
        return cls(headers.get("ETag"), modified, size, settled)

    @property
    def is_pinned(self) -> bool:
        """Whether a later response can be told to mean the same bytes."""
        return self.etag is not None or self.settled

    @property
    def posix_time(self) -> float | None:
        """When the image was last modified, in POSIX seconds; None where the server does not tell."""
        return posix_time(self.modified)

    @property
    def if_range(self) -> str | None:
        """What If-Range may hold: it must be strong, and a date only where there is no ETag (RFC 9110, 13.1.5)."""
        if self.etag is not None:
            return None if self.etag.startswith("W/") else self.etag
        return self.modified if self.settled else None

    def same_as(self, later: Version) -> bool:
        """Whether ``later`` surely means the same bytes."""
        if None not in (self.size, later.size) and self.size != later.size:
            return False
        if self.etag is not None and later.etag is not None:
            # A weak ETag may outlive small changes, so the date has to agree as well.
            weak = self.etag.startswith("W/")
            return self.etag == later.etag and (not weak or self.modified == later.modified)
        return self.settled and self.modified == later.modified


class ImageResponse:
    """One response to a request for an image or a range of it: 200, 206 or 416, everything else is raised.

    ``start`` and ``stop`` say which bytes its body holds, ``size`` how long the whole image is; None is unknown.
    """

    def __init__(self, response: urllib3.HTTPResponse, location: HttpLocation, asked: str | None) -> None:
        self.raw = response
        #: Where the last redirect led.
        self.location = location
        #: Seconds that it took to begin.
        self.latency: float = getattr(response, "seconds", 0.0)
        self.status = response.status
        self.start = 0
        self.stop: int | None = None
        self.size: int | None = None
        with discarding_on_error(response):
            self._read_headers(response.headers, asked)
        self.version = Version.of(response.headers, self.size)

    @property
    def serves_ranges(self) -> bool:
        """Whether the server says that it can answer with a range."""
        return self.status == 206 or "bytes" in names_in(self.raw.headers.get("Accept-Ranges"))

    @property
    def may_be_page(self) -> bool:
        """Whether it is said to be a web page; but some servers say so of everything they do not know."""
        return self.raw.headers.get("Content-Type", "").partition(";")[0].strip().lower() in _PAGES

    def refuse_page(self) -> None:
        """Raise where the image is a page: of a proxy, a captive portal or for logging in. No image begins like one."""
        if self.start or self.status == 416 or not self.may_be_page:
            return
        file: Any = getattr(self.raw, "_fp", None)
        # Of an empty body the end has come already, and to look for more would mean to wait.
        if getattr(file, "length", 0) != 0 and _PAGE.match(file.peek(_LOOKED_AT)):
            raise self._garbage("sent a web page")

    def close(self) -> None:
        """Drop the response; its connection is kept when little of the body is left."""
        discard(self.raw)

    def _read_headers(self, headers: Mapping[str, str], asked: str | None) -> None:
        if self.status not in (200, 206, 416) or (self.status != 200 and not asked):
            raise error_of_status(self.status, headers, str(self.location))
        if self.status == 416:
            self.size = content_range(headers.get("Content-Range")).size
            return
        framed = names_in(headers.get("Transfer-Encoding")) <= _FRAMING
        if is_coded(headers.get("Content-Encoding")) or not framed:
            raise self._garbage("sent the image in an encoding although none was asked for")
        if self.status == 200:
            self.size = self.stop = self._content_length(headers)
            return
        start, stop, self.size = content_range(headers.get("Content-Range"))
        if start is None or stop is None:
            raise self._garbage("sent a range without saying which")
        first, _, last = (asked or "").removeprefix("bytes=").partition("-")
        if start != int(first) or (last and stop > int(last) + 1):
            raise self._garbage("sent another range than was asked for")
        self.start, self.stop = start, stop

    def _content_length(self, headers: Mapping[str, str]) -> int | None:
        value = headers.get("Content-Length")
        if value is None or "chunked" in names_in(headers.get("Transfer-Encoding")):
            return None
        # RFC 9110, 8.6: some servers repeat the header; only equal values make sense.
        values = {item.strip() for item in value.split(",")}
        length = whole_number(values.pop())
        if values or length is None:
            raise self._garbage("sent a Content-Length that is no number")
        return length

    def _garbage(self, what: str) -> RemoteServiceUnavailable:
        return RemoteServiceUnavailable(f"the server of {self.location} {what}", transient=False)


class _Connection(Connection, HTTPConnection):  # type: ignore[misc]
    """Asks for exactly the path and query of the URI."""

    def request(self, method: str, url: str, body: Any = None, headers: Any = None, **options: Any) -> None:
        sent = dict(headers or {})
        uri: str = sent.pop(_URI)
        # To a proxy the whole of it.
        target = uri[uri.index("/", len("https://")) :] if url.startswith("/") else uri
        super().request(method, target, body, sent, **options)


class _CheckedConnection(_Connection):
    """Connects only to addresses the rules allow: the name is resolved once, and what was judged is connected to."""

    rules: ClassVar[Rules]

    def _new_conn(self) -> socket.socket:
        refused: Exception | None = None
        limit = self.timeout if isinstance(self.timeout, int | float) else None
        deadline = None if limit is None else time.monotonic() + limit
        for address in self._allowed_addresses():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            try:
                return urllib3_connection.create_connection(
                    (address, self.port), left, source_address=self.source_address, socket_options=self.socket_options
                )
            except OSError as error:
                refused = error
        if isinstance(refused, TimeoutError):
            raise ConnectTimeoutError(self, "connecting took too long") from refused
        raise NewConnectionError(self, "connecting failed") from refused

    def _allowed_addresses(self) -> list[str]:
        try:
            found = socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except UnicodeError:
            raise LocationParseError(self.host) from None
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        refusals = {address: self.rules.refuse_address(address) for address in addresses}
        allowed = [address for address in addresses if refusals[address] is None]
        if not allowed:
            LOG.warning("refused to connect to %s: %s", self.host, refusals)
            # Which address it was is in the log: the user who sent the URL need not learn the operator's network.
            raise Forbidden(f"{self.host} does not pass filtering: {refusals[addresses[0]]}")
        return allowed


def _follow(location: HttpLocation, target: str | None) -> HttpLocation:
    """Where a redirect leads, if that is allowed."""
    if target is None:
        raise RemoteServiceUnavailable(f"{location} redirects without saying where to", transient=False)
    try:
        found = location.join(target)
    except BadStoreUri:
        raise Forbidden(f"{location} redirects to what is no http or https URL") from None
    if location.scheme == "https" and found.scheme != "https":
        raise Forbidden(f"{location} redirects from https to http")
    return found


def _proxy_urls(conf: Options, store_name: str) -> dict[str, str]:
    """The proxy for each scheme; raises BadStoreConfiguration."""
    proxies = {}
    for key, proxy in conf.http_proxy_information.items():
        scheme = key.lower()
        url = proxy if "://" in proxy else f"http://{proxy}"
        try:
            parsed = urllib3.util.parse_url(url)
            valid = parsed.scheme in ("http", "https") and parsed.host is not None
        except LocationParseError:
            valid = False
        if scheme not in ("http", "https") or not valid:
            # The value may hold a password, so it is not repeated.
            raise misconfigured(
                store_name,
                "http_proxy_information",
                f"the entry for {scheme!r} is not http:<proxy> or https:<proxy>, where a proxy is host:port or an http "
                "or https URL",
            )
        proxies[scheme] = url
    return proxies
