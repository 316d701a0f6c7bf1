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
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from storelib._version import __version__
from storelib.drivers.s3 import answers
from storelib.drivers.s3.answers import BadAnswer
from storelib.drivers.s3.errors import error_code
from storelib.drivers.s3.location import split_endpoint
from storelib.exceptions import BadStoreConfiguration, BadStoreUri, MissingDependency
from storelib.extras import needs
from storelib.transfer.partfile import PartFile

if TYPE_CHECKING:
    from storelib.drivers.s3.connections import Distance

#: Idle connections kept: several transfers at once. They are made as they are needed.
_KEPT_CONNECTIONS = 32
_AMAZON_REGION = re.compile(r"s3[.-](?:dualstack\.|fips\.)?([a-z]{2}(?:-[a-z]+)+-\d+)\.amazonaws\.com(?:\.cn)?")


#: The path of a server: no dots for names, which clients and proxies resolve.
_BASE = re.compile(r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)*")
#: Servers that refuse a bucket in the path, and what others answer that do.
_VIRTUAL_ONLY = (".aliyuncs.com", ".myqcloud.com")
_PATH_REFUSED = {"SecondLevelDomainForbidden", "PathStyleDomainForbidden", "PathStyleNotSupported"}
#: Answers to a request that is signed for another region than the bucket's; to a HEAD it is the bare status.
_OTHER_REGION = {"AuthorizationHeaderMalformed", "PermanentRedirect", "301", "400"}
_REGION = re.compile(r"[a-z0-9-]{2,40}")
#: What is one service, whatever the region.
AMAZON_SERVICE = re.compile(r"(?:^|\.)(amazonaws\.com(?:\.cn)?)$")
_AMAZON = re.compile(r"s3[.-](?:.+\.)?amazonaws\.com(?:\.cn)?")
#: Names of buckets that can be part of a host name under one certificate.
_DNS_NAME = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")


class Client:
    """Where the server is and the way there; raises BadStoreConfiguration for options that cannot be.

    Safe to use from many threads. Making one opens no connection and imports nothing.
    """

    def __init__(self, conf: Any, store_name: str) -> None:
        self._conf = conf
        self._store_name = store_name
        if importlib.util.find_spec("botocore") is None:
            raise MissingDependency(needs("the s3 driver", "s3", "botocore"))
        self.scheme, self.host, self.port, self.base = self._endpoint()
        self._check_credentials()
        self._verify = self._verification()
        # The server has refused a bucket in the path.
        self._virtual_only = False
        # Where it says that the bucket is.
        self._region = ""
        self._distance: Distance | None = None
        self._lock = threading.Lock()
        #: The body of the answer that this thread is looking at, where it is read later.
        self._parsing = threading.local()
        self._client: Any = None
        self._inherited: list[Any] = []
        _clients.add(self)

    @property
    def region(self) -> str:
        """The region that requests are signed for."""
        amazon = _AMAZON_REGION.fullmatch(self.host)
        return str(self._conf.s3_store_region_name or self._region or (amazon[1] if amazon else "us-east-1"))

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
        from botocore.exceptions import ClientError
        from botocore.parsers import ResponseParserError

        def ask() -> Any:
            client = self.get()
            try:
                return client, getattr(client, operation)(**parameters), None
            except ResponseParserError as error:
                raise BadAnswer(operation, "no document") from error
            except ClientError as error:
                return client, None, error
            except (ValueError, OverflowError, RecursionError) as error:
                # What botocore makes of numbers and dates that are none; it forgets to close what is still to be read.
                unread = getattr(self._parsing, "body", None)
                if unread is not None:
                    unread.close()
                raise BadAnswer(operation, "something with a number or date that is none") from error
            finally:
                self._parsing.body = None

        client, answer, refusal = ask()
        if refusal is not None and self._learns(refusal):
            with self._lock:
                if self._client is client:
                    self._client = None
            if isinstance(parameters.get("Body"), PartFile):
                parameters["Body"].seek(0)
            _, answer, refusal = ask()
        if refusal is not None:
            raise refusal
        return answer

    def _note_body(self, response_dict: dict[str, Any], **_: object) -> None:
        body = response_dict.get("body")
        self._parsing.body = body if hasattr(body, "close") else None

    @property
    def addressing(self) -> str:
        """Where the bucket goes: "virtual", into the name of the host, or "path"."""
        chosen, bucket = str(self._conf.s3_store_bucket_url_format), self._conf.s3_store_bucket or ""
        if chosen != "auto":
            return chosen
        wanted = self._virtual_only or _AMAZON.fullmatch(self.host) or self.host.endswith(_VIRTUAL_ONLY)
        return "virtual" if wanted and _DNS_NAME.fullmatch(bucket) else "path"

    def _learns(self, error: Exception) -> bool:
        """Whether the server says where the bucket is or how it is to be asked for, and the options leave that open."""
        response = getattr(error, "response", {})
        details, code = response.get("Error", {}), error_code(error)
        elsewhere = str(details.get("Endpoint", "")).lower() == f"{self._conf.s3_store_bucket}.{self.host}"
        if (elsewhere or code in _PATH_REFUSED) and self._conf.s3_store_bucket_url_format == "auto":
            learns, self._virtual_only = not self._virtual_only, True
            return learns
        headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        region = str(details.get("Region") or headers.get("x-amz-bucket-region") or "")
        if code not in _OTHER_REGION or self._conf.s3_store_region_name or not _REGION.fullmatch(region):
            return False
        learns, self._region = region != self.region, region
        return learns

    def _new(self) -> Any:
        from botocore.config import Config

        from storelib.drivers.s3 import connections

        conf = self._conf
        read_timeout = min(conf.s3_store_read_timeout, conf.transfer_timeout)
        proxies = dict.fromkeys(("http", "https"), conf.s3_store_proxy) if conf.s3_store_proxy else {}
        config = Config(
            signature_version="s3v4",
            # Only the engine tries again.
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=min(conf.s3_store_connect_timeout, conf.transfer_timeout),
            read_timeout=read_timeout,
            max_pool_connections=max(conf.s3_store_thread_pools, _KEPT_CONNECTIONS),
            # An empty dict keeps botocore from asking the environment.
            proxies=proxies,
            tcp_keepalive=True,
            use_dualstack_endpoint=False,
            use_fips_endpoint=False,
            defaults_mode="legacy",
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": self.addressing, "payload_signing_enabled": False},
            user_agent_extra=f"storelib/{__version__}",
        )
        port = "" if self.port is None else f":{self.port}"
        base = f"/{self.base}" if self.base else ""
        session = _session_of_its_own() if conf.s3_store_access_key else _session(conf.s3_store_profile)
        client = session.create_client(
            "s3",
            region_name=self.region,
            endpoint_url=f"{self.scheme.removeprefix('s3+')}://{self.host}{port}{base}",
            verify=self._verify,
            aws_access_key_id=conf.s3_store_access_key or None,
            aws_secret_access_key=conf.s3_store_secret_key or None,
            aws_session_token=conf.s3_store_session_token or None,
            config=config,
        )
        self._distance = connections.Distance()
        connections.use(client, read_timeout, self._distance)
        # By the time a part is sent, the server has agreed to take it: asking again costs a round trip.
        client.meta.events.register_last("before-call.s3.UploadPart", _expect_nothing)
        client.meta.events.register_last("before-call.s3.PutObject", _expect_nothing_for_one_piece)
        client.meta.events.register("before-parse.s3.GetObject", self._note_body)
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

    def _endpoint(self) -> tuple[str, str, int | None, str]:
        value = (self._conf.s3_store_host or "").strip().rstrip("/")
        url = value if "://" in value else f"https://{value}"
        scheme, _, rest = url.partition("://")
        scheme = scheme.lower()
        # A path without a scheme before it may as well be a bucket that does not belong here.
        authority, _, base = rest.partition("/") if "://" in value else (rest, "", "")
        try:
            if scheme not in ("http", "https"):
                raise BadStoreUri(f"neither http nor https: {scheme}")
            if base and not _BASE.fullmatch(base):
                raise BadStoreUri("not the path of a server")
            scheme = f"s3+{scheme}"
            return scheme, *split_endpoint(authority, scheme), base
        except BadStoreUri as error:
            # The value may hold a password that does not belong there.
            raise self._misconfigured(
                "s3_store_host", f"host, host:port, or a URL that begins with https:// or http://: {error}"
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
        """What botocore takes; None leaves it to the environment, which must not override an option.

        Nor does it say anything of a store with keys of its own.
        """
        if self._conf.s3_store_insecure:
            return False
        path = self._conf.s3_store_cacert
        if path and not os.access(path, os.R_OK):
            raise self._misconfigured("s3_store_cacert", f"{path} cannot be read")
        return path or (True if self._conf.s3_store_access_key else None)

    def _misconfigured(self, option: str, what: str) -> BadStoreConfiguration:
        return BadStoreConfiguration(f"store {self._store_name}, option {option}: {what}")


def _session(profile: str | None) -> Any:
    """One that finds credentials where the AWS tools do."""
    from botocore.loaders import create_loader
    from botocore.session import Session

    session = Session(profile=profile or None)
    # What the files say of S3 is for servers elsewhere.
    session.get_component("config_store").set_config_variable("s3", {})
    session.register_component("data_loader", _shared(create_loader, session.get_config_variable("data_path")))
    return session


def _session_of_its_own() -> Any:
    """One that takes nothing from the environment and from the files of the AWS tools."""
    from botocore.loaders import Loader
    from botocore.session import Session

    variables = {name: (None, None, *rest) for name, (_, _, *rest) in Session.SESSION_VARIABLES.items()}
    for name in ("config_file", "credentials_file"):
        variables[name] = (None, None, os.devnull, None)
    session = Session(session_vars=variables)
    session.register_component("data_loader", _shared(_built_in, Loader.BUILTIN_DATA_PATH))
    return session


def _built_in(path: str) -> Any:
    from botocore.loaders import Loader

    return Loader(extra_search_paths=[path], include_default_search_paths=False)


@functools.cache
def _shared(make: Callable[[Any], Any], path: str | None) -> Any:
    """What S3 is, as botocore reads it from files: some megabytes that all stores share."""
    return make(path)


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
