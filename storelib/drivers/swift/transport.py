# SPDX-License-Identifier: Apache-2.0
"""Connections: the HTTP of one store, pooled, without retries, redirects, cookies or anything from the environment.

swiftclient's HTTPConnection does the work, not its Connection, which is for one thread and logs the start of tokens.
"""

from __future__ import annotations

import hashlib
import http.cookiejar
import math
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from swiftclient.client import HTTPConnection

from storelib._version import __version__
from storelib.transfer.contract import KiB
from storelib.transfer.http.connections import pool_classes
from storelib.transfer.partfile import PartFile

#: Bytes handed to the socket, and hashed, at a time. Larger blocks fall out of the cache between the two.
BLOCK = 256 * KiB
# Idle connections kept for each server: several transfers at once.
_KEPT_CONNECTIONS = 32
_KEPT_SERVERS = 8


class Connections:
    """Safe to use from many threads."""

    def __init__(self, conf: Any) -> None:
        self._verify: bool | str = conf.swift_store_cacert or not conf.swift_store_auth_insecure
        if conf.swift_store_auth_insecure:
            self._verify = False
        # No longer than the whole transfer may stand still.
        self._longest: float = conf.transfer_timeout
        self._timeout = (
            min(conf.swift_store_connect_timeout, self._longest),
            min(conf.swift_store_read_timeout, self._longest),
        )
        self._latency: dict[str, float] = {}
        # One for all servers: its session keeps the connections of each.
        self._client = HTTPConnection(
            "https://",
            cacert=self._verify if isinstance(self._verify, str) else None,
            insecure=self._verify is False,
            default_user_agent=f"storelib/{__version__}",
        )
        self._client.requests_args["allow_redirects"] = False
        self._client.request_session = self.session()
        self._client.request_session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))

    def send(
        self, method: str, url: str, headers: dict[str, str], body: Body | bytes = b"", extra_timeout: float = 0.0
    ) -> requests.Response:
        """One request; the response is any, its body not read yet. ``extra_timeout``: more seconds to wait for it."""
        connect, read = self._timeout
        # What is known to work for longer than that is waited for.
        timeout = (connect, min(read + extra_timeout, max(self._longest, extra_timeout)))
        sent = {"User-Agent": self._client.default_user_agent, **headers}
        # Not HTTPConnection.request(), which keeps the response in the one object that all threads share.
        response: requests.Response = self._client.request_session.request(
            method,
            url,
            headers={name: value.encode() for name, value in sent.items()},
            data=body,
            timeout=timeout,
            **self._client.requests_args,
        )
        self._latency[_origin(url)] = min(self.latency(url), response.raw.seconds)
        return response

    def latency(self, url: str) -> float:
        """Seconds that the quickest answer of that server took so far: how far away it is, however busy."""
        return self._latency.get(_origin(url), math.inf)

    def session(self) -> requests.Session:
        """For keystoneauth: the same settings."""
        session = _Session()
        session.trust_env = False
        session.verify = self._verify
        for scheme in ("https://", "http://"):
            session.mount(scheme, _Adapter(pool_connections=_KEPT_SERVERS, pool_maxsize=_KEPT_CONNECTIONS))
        return session

    @property
    def verify(self) -> bool | str:
        """A file of certificates, or whether to verify them at all."""
        return self._verify

    @property
    def timeout(self) -> float:
        """Seconds to wait for an answer."""
        return float(self._timeout[1])


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


class _Session(requests.Session):
    """Never looks where a redirect leads, which requests does, and fails, also where it is not to be followed."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: the answer itself is what is looked at."""
        return


class _Adapter(HTTPAdapter):
    """Sends bodies in larger blocks than urllib3 does by itself (16 KiB)."""

    def init_poolmanager(self, *arguments: Any, **settings: Any) -> None:
        """What requests calls to make its pools."""
        super().init_poolmanager(*arguments, blocksize=BLOCK, **settings)
        self.poolmanager.pool_classes_by_scheme = pool_classes()


def _origin(url: str) -> str:
    return "/".join(url.split("/", 3)[:3])
