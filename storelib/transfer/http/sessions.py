# SPDX-License-Identifier: Apache-2.0
"""Sessions of requests on the connections of this package, for the clients that are built on requests."""

from __future__ import annotations

import http.cookiejar
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from storelib.transfer.contract import KiB
from storelib.transfer.http.connections import pool_classes

# Bytes handed to the socket at a time, for which urllib3 takes 16 KiB. What a body hashes on its way falls out of the
# cache where it is more.
_BLOCK = 256 * KiB
# Idle connections kept for each server: several transfers at once.
_KEPT_CONNECTIONS = 32
_KEPT_SERVERS = 8


class _Session(requests.Session):
    """Never looks where a redirect leads, which requests does, and fails, also where it is not to be followed."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *arguments: Any, **settings: Any) -> None:
        super().init_poolmanager(*arguments, blocksize=_BLOCK, **settings)
        self.poolmanager.pool_classes_by_scheme = pool_classes()


def new_session(verify: bool | str) -> requests.Session:
    """A session without retries, redirects, cookies and anything from the environment.

    It asks for bytes as they are: requests itself asks for gzip, and what is read of images is not decoded.
    ``verify`` is a file of certificates to trust, True for those of the system, False for all.
    """
    session = _Session()
    session.trust_env = False
    session.headers["Accept-Encoding"] = "identity"
    session.verify = verify
    session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    use_connections(session)
    return session


def use_connections(session: Any) -> None:
    """Have a session of requests, or one of keystoneauth, use these connections, which keep to a thread's limits.

    Those through a proxy are not among them.
    """
    for scheme in ("https://", "http://"):
        session.mount(scheme, _Adapter(pool_connections=_KEPT_SERVERS, pool_maxsize=_KEPT_CONNECTIONS))
