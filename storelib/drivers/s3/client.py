# SPDX-License-Identifier: Apache-2.0
"""Client: the one botocore client of a store, made at first use and anew in a forked child."""

from __future__ import annotations

import base64
import binascii
import functools
import importlib.util
import io
import math
import os
import re
import threading
import urllib.parse
import weakref
from typing import TYPE_CHECKING, Any

from storelib._version import __version__
from storelib.drivers.s3.location import split_endpoint
from storelib.exceptions import BadStoreConfiguration, BadStoreUri, MissingDependency

if TYPE_CHECKING:
    from storelib.drivers.s3.connections import Distance

#: Idle connections kept: several transfers at once. They are made as they are needed.
_KEPT_CONNECTIONS = 32
_AMAZON_REGION = re.compile(r"s3[.-](?:dualstack\.|fips\.)?([a-z]{2}(?:-[a-z]+)+-\d+)\.amazonaws\.com(?:\.cn)?")


class Client:
    """Where the server is and the way there; raises BadStoreConfiguration for options that cannot be.

    Safe to use from many threads. Making one opens no connection and imports nothing.
    """

    def __init__(self, conf: Any, store_name: str) -> None:
        self._conf = conf
        self._store_name = store_name
        if importlib.util.find_spec("botocore") is None:
            raise MissingDependency("the s3 driver needs an extra package: pip install storelib[s3]")
        self.scheme, self.host, self.port = self._endpoint()
        self._check_credentials()
        self._verify = self._verification()
        self._distance: Distance | None = None
        self._lock = threading.Lock()
        self._client: Any = None
        self._inherited: list[Any] = []
        _clients.add(self)

    @property
    def region(self) -> str:
        """The region that requests are signed for."""
        amazon = _AMAZON_REGION.fullmatch(self.host)
        return str(self._conf.s3_store_region_name or (amazon[1] if amazon else "us-east-1"))

    @property
    def customer_key(self) -> dict[str, Any]:
        """What every request needs that touches the bytes of an image stored with SSE-C."""
        if not self._conf.s3_store_customer_key:
            return {}
        key = base64.b64decode(self._conf.s3_store_customer_key)
        return {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": key}

    def get(self) -> Any:
        """The botocore client."""
        client = self._client
        if client is None:
            with self._lock:
                client = self._client = self._client or self._new()
        return client

    def call(self, operation: str, **parameters: Any) -> Any:
        """One request and its answer, which has all that belongs to a success; raises what botocore does, BadAnswer."""
        from botocore.parsers import ResponseParserError

        from storelib.drivers.s3.answers import BadAnswer

        try:
            return getattr(self.get(), operation)(**parameters)
        except ResponseParserError as error:
            raise BadAnswer(operation, "no document") from error

    def _new(self) -> Any:
        import botocore.session
        from botocore.config import Config

        from storelib.drivers.s3 import answers, connections

        conf = self._conf
        proxies = dict.fromkeys(("http", "https"), conf.s3_store_proxy) if conf.s3_store_proxy else {}
        config = Config(
            signature_version="s3v4",
            # Only the engine tries again.
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=conf.s3_store_connect_timeout,
            read_timeout=conf.s3_store_read_timeout,
            max_pool_connections=max(conf.s3_store_thread_pools, _KEPT_CONNECTIONS),
            # An empty dict keeps botocore from asking the environment.
            proxies=proxies,
            tcp_keepalive=True,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": conf.s3_store_bucket_url_format, "payload_signing_enabled": False},
            user_agent_extra=f"storelib/{__version__}",
        )
        port = "" if self.port is None else f":{self.port}"
        session = botocore.session.Session(profile=conf.s3_store_profile or None)
        session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
        client = session.create_client(
            "s3",
            region_name=self.region,
            endpoint_url=f"{self.scheme.removeprefix('s3+')}://{self.host}{port}",
            verify=self._verify,
            aws_access_key_id=conf.s3_store_access_key or None,
            aws_secret_access_key=conf.s3_store_secret_key or None,
            aws_session_token=conf.s3_store_session_token or None,
            config=config,
        )
        self._distance = connections.Distance()
        connections.use(client, conf.s3_store_read_timeout, self._distance)
        # By the time a part is sent, the server has agreed to take it: asking again costs a round trip.
        client.meta.events.register_last("before-call.s3.UploadPart", _expect_nothing)
        client.meta.events.register_last("before-call.s3.PutObject", _expect_nothing_for_one_piece)
        client.meta.events.register("after-call.s3", answers.check)
        client.meta.events.register_last("before-call.s3", _follow_nothing)
        return client

    @property
    def latency(self) -> float:
        """Seconds that the server's quickest answer took."""
        return self._distance.seconds if self._distance else math.inf

    def forget_parent(self) -> None:
        """In a forked child: neither use nor close the parent's connections, nor wait for a lock its threads held."""
        self._lock = threading.Lock()
        self._inherited.append(self._client)
        self._client = None

    # -- Options ----------------------------------------------------------------------------------------------

    def _endpoint(self) -> tuple[str, str, int | None]:
        value = (self._conf.s3_store_host or "").strip().rstrip("/")
        url = value if "://" in value else f"https://{value}"
        scheme, _, authority = url.partition("://")
        try:
            if scheme not in ("http", "https"):
                raise BadStoreUri(f"neither http nor https: {scheme}")
            scheme = f"s3+{scheme}"
            return scheme, *split_endpoint(authority, scheme)
        except BadStoreUri as error:
            # The value may hold a password that does not belong there.
            raise self._misconfigured(
                "s3_store_host", f"host, host:port, https://host or http://host: {error}"
            ) from None

    def _check_credentials(self) -> None:
        conf = self._conf
        if bool(conf.s3_store_access_key) != bool(conf.s3_store_secret_key):
            raise self._misconfigured("s3_store_secret_key", "goes together with s3_store_access_key")
        if conf.s3_store_session_token and not conf.s3_store_access_key:
            raise self._misconfigured("s3_store_session_token", "needs s3_store_access_key")
        try:
            key = base64.b64decode(conf.s3_store_customer_key or "", validate=True)
        except (binascii.Error, ValueError):
            key = b"?"
        if len(key) not in (0, 32):
            raise self._misconfigured("s3_store_customer_key", "32 bytes in base64")
        if conf.s3_store_proxy:
            proxy = urllib.parse.urlsplit(conf.s3_store_proxy)
            if proxy.scheme not in ("http", "https") or not proxy.hostname:
                raise self._misconfigured("s3_store_proxy", "a URL that begins with http:// or https://")

    def _verification(self) -> bool | str | None:
        """What botocore takes; None leaves it to the environment, which must not override an option."""
        if self._conf.s3_store_insecure:
            return False
        path = self._conf.s3_store_cacert
        if path and not os.access(path, os.R_OK):
            raise self._misconfigured("s3_store_cacert", f"{path} cannot be read")
        return path or None

    def _misconfigured(self, option: str, what: str) -> BadStoreConfiguration:
        return BadStoreConfiguration(f"store {self._store_name}, option {option}: {what}")


@functools.cache
def _loader(data_path: str | None) -> Any:
    """What S3 is, as botocore reads it from files: some megabytes that all stores share."""
    from botocore.loaders import create_loader

    return create_loader(data_path)


def _follow_nothing(params: dict[str, Any], **kwargs: object) -> None:
    """Botocore would ask again elsewhere after a redirect or a 400, by asking for the region again and again."""
    params["context"].setdefault("s3_redirect", {})["redirected"] = True


def _expect_nothing(params: dict[str, Any], **kwargs: object) -> None:
    params["headers"].pop("Expect", None)


def _expect_nothing_for_one_piece(params: dict[str, Any], **kwargs: object) -> None:
    """Many servers never say that a body is welcome, and all take a small one sooner than they could."""
    if isinstance(params["body"], io.BytesIO):
        params["headers"].pop("Expect", None)


_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def _forget_parents() -> None:
    for client in list(_clients):
        client.forget_parent()


os.register_at_fork(after_in_child=_forget_parents)
