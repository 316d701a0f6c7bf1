# SPDX-License-Identifier: Apache-2.0
"""Bucket: the bucket of one store, its server and the way there: what writing, reading and collecting garbage share.

Its botocore client is made at first use and anew in a forked child. Below it: listings, and the checksums of parts.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import functools
import hashlib
import importlib.util
import io
import math
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from storelib._version import __version__
from storelib.driver import Digests, Writer
from storelib.drivers.s3 import options
from storelib.drivers.s3.errors import BadAnswer, Damaged, check_response, error_code, size_of, storelib_error
from storelib.drivers.s3.location import S3Location, configured_endpoint
from storelib.exceptions import BadStoreUri, MissingDependency, NotFound, StoreError, misconfigured
from storelib.extras import needs
from storelib.transfer.contract import Options
from storelib.transfer.forking import forget_in_child
from storelib.transfer.http.connections import ListeningConnection, pool_classes
from storelib.transfer.live import LiveAdds
from storelib.transfer.partfile import RangeFile

T = TypeVar("T")

#: Seconds that a server has to say whether the body is welcome; many never say it (RFC 9110, 10.1.1).
_WAIT_FOR_WELCOME = 1.0
#: Idle connections kept: several transfers at once. They are made as they are needed.
_KEPT_CONNECTIONS = 32
_AMAZON_REGION = re.compile(r"s3[.-](?:dualstack\.|fips\.)?([a-z]{2}(?:-[a-z]+)+-\d+)\.amazonaws\.com(?:\.cn)?")

#: Servers that refuse a bucket in the path, and what others answer that do.
_VIRTUAL_ONLY = (".aliyuncs.com", ".myqcloud.com")
_PATH_REFUSED = {"SecondLevelDomainForbidden", "PathStyleDomainForbidden", "PathStyleNotSupported"}
#: Responses to a request that is signed for another region than the bucket's; to a HEAD it is the bare status.
_OTHER_REGION = {"AuthorizationHeaderMalformed", "PermanentRedirect", "301", "400"}
_REGION = re.compile(r"[a-z0-9-]{2,40}")
#: What is one service, whatever the region.
AMAZON_SERVICE = re.compile(r"(?:^|\.)(amazonaws\.com(?:\.cn)?)$")
_AMAZON = re.compile(r"s3[.-](?:.+\.)?amazonaws\.com(?:\.cn)?")
#: Names of buckets that can be part of a host name under one certificate.
_DNS_NAME = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")


class Bucket:
    """Where the images are and the way there; raises BadStoreConfiguration for options that cannot be.

    Safe to use from many threads. Making one opens no connection and imports nothing.
    """

    #: The checksums that go with the bytes of an image. Like ``object_settings`` set where images can be added.
    checksums: PartChecksums
    #: What requests that make an object say of it.
    object_settings: dict[str, Any]

    def __init__(self, conf: Options, store_name: str) -> None:
        self.conf = conf
        self.store_name = store_name
        if importlib.util.find_spec("botocore") is None:
            raise MissingDependency(needs("the s3 driver", "s3", "botocore"))
        try:
            self.scheme, self.host, self.port, self.base = configured_endpoint(conf.s3_store_host or "")
        except BadStoreUri as error:
            # The value may hold a password that does not belong there.
            what = f"host, host:port, or a URL that begins with https:// or http://: {error}"
            raise misconfigured(store_name, "s3_store_host", what) from None
        options.check_access(conf, store_name)
        self._verify = options.verification(conf, store_name)
        self.name = conf.s3_store_bucket or ""
        #: What the keys of all images begin with.
        self.prefix: str = conf.s3_store_key_prefix
        self.customer_key = options.customer_key(conf)
        #: Whether PUT carries If-None-Match, and whether the server is known to honour it when an upload is completed.
        self.conditional_put = conf.s3_store_conditional_writes != "off"
        self.conditional_complete = False
        #: Whether completing an upload carries it, known to be honoured or not.
        self.asks_at_completion = self.conditional_put
        #: Whether reading asks for the checksum that the server keeps of an image.
        self.asks_for_checksums = True
        # Cloudflare's R2 refuses parts of several sizes once all is sent.
        wanted = ("on", "auto") if self.host.endswith(".r2.cloudflarestorage.com") else ("on",)
        #: Whether all parts of an image must be of one size, but the last.
        self.equal_parts = conf.s3_store_equal_parts in wanted
        #: Uploads of writers that are still in use, so that gc leaves them alone.
        self.live: LiveAdds[Writer] = LiveAdds()
        # The server has refused a bucket in the path.
        self._virtual_only = False
        # Where it says that the bucket is.
        self._region = ""
        #: Seconds that the server's quickest response took to begin, whatever it had to do for others.
        self.latency = math.inf
        self._lock = threading.Lock()
        #: The body of the response that this thread is looking at, where it is read later.
        self._parsing = threading.local()
        self._client: Any = None
        self._inherited: list[Any] = []
        forget_in_child(self)

    # -- Locations --------------------------------------------------------------------------------------------

    def location(self, image_id: str) -> S3Location:
        """Where the image with this id is, or would be; raises BadStoreUri for a prefix that makes no URI."""
        made = S3Location(self.scheme, self.host, self.port, self.name, f"{self.prefix}{image_id}", base=self.base)
        # Parsed again, so that such a prefix is found out.
        found = S3Location.parse(made.uri).below(self.base)
        if found is None:
            raise BadStoreUri(f"not a bucket and a key: {made}")
        return found

    def image_id(self, key: str) -> str | None:
        """The id of the image with this key; None for what lies elsewhere or deeper, where storelib puts none."""
        image_id = key[len(self.prefix) :]
        return image_id if key.startswith(self.prefix) and "/" not in image_id else None

    # -- Requests ---------------------------------------------------------------------------------------------

    def call(self, operation: str, **parameters: Any) -> Any:
        """One request and its response, with all that belongs to a success; raises what botocore does, BadAnswer."""
        from botocore.exceptions import ClientError
        from botocore.parsers import ResponseParserError

        def ask() -> Any:
            client = self.client()
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

        client, response, refusal = ask()
        if refusal is not None and self._learns(refusal):
            with self._lock:
                if self._client is client:
                    self._client = None
            if isinstance(parameters.get("Body"), io.RawIOBase):
                parameters["Body"].seek(0)
            _, response, refusal = ask()
        if refusal is not None:
            raise refusal
        return response

    def head(self, location: S3Location) -> dict[str, Any]:
        """What the server knows of one object."""
        response: dict[str, Any] = self.call(
            "head_object", Bucket=location.bucket, Key=location.key, **self.customer_key
        )
        return response

    def map_error(self, error: Exception, subject: str) -> StoreError | None:
        """The error of storelib for one of botocore or below; None if it is not known."""
        if self._is_awaited(error):
            return NotFound(f"{subject}: nothing was added yet, so there is no bucket")
        return storelib_error(error, subject)

    def create_if_missing(self, send: Callable[[], T]) -> T:
        """``send()``, and once more with the bucket created before if it is missing and that is allowed."""
        try:
            return send()
        except Exception as error:
            if not self._is_awaited(error):
                raise
        self._create()
        return send()

    def _create(self) -> None:
        region = self.region
        place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        try:
            self.call("create_bucket", Bucket=self.name, **place)
        except Exception as error:
            if error_code(error) not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise

    def _is_awaited(self, error: Exception) -> bool:
        """There is no bucket, and none is needed before something is added."""
        return bool(error_code(error) == "NoSuchBucket" and self.conf.s3_store_create_bucket_on_put)

    def listed(self, operation: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        """The entries of a listing; none of a bucket that is yet to be created."""
        try:
            yield from _listed(functools.partial(self.call, operation, Bucket=self.name, **parameters), operation)
        except Exception as error:
            if not self._is_awaited(error):
                raise

    # -- The client -------------------------------------------------------------------------------------------

    @property
    def region(self) -> str:
        """The region that requests are signed for."""
        amazon = _AMAZON_REGION.fullmatch(self.host)
        return str(self.conf.s3_store_region_name or self._region or (amazon[1] if amazon else "us-east-1"))

    def client(self) -> Any:
        """The botocore client, made at first use."""
        client = self._client
        if client is None:
            with self._lock:
                client = self._client = self._client or self._new()
        return client

    def _note_body(self, response_dict: dict[str, Any], **_: object) -> None:
        body = response_dict.get("body")
        self._parsing.body = body if hasattr(body, "close") else None

    @property
    def addressing(self) -> str:
        """Where the bucket goes: "virtual", into the name of the host, or "path"."""
        chosen, bucket = str(self.conf.s3_store_bucket_url_format), self.name
        if chosen != "auto":
            return chosen
        wanted = self._virtual_only or _AMAZON.fullmatch(self.host) or self.host.endswith(_VIRTUAL_ONLY)
        return "virtual" if wanted and _DNS_NAME.fullmatch(bucket) else "path"

    def _learns(self, error: Exception) -> bool:
        """Whether the server says where the bucket is or how it is to be asked for, and the options leave that open."""
        response = getattr(error, "response", {})
        details, code = response.get("Error", {}), error_code(error)
        elsewhere = str(details.get("Endpoint", "")).lower() == f"{self.name}.{self.host}"
        if (elsewhere or code in _PATH_REFUSED) and self.conf.s3_store_bucket_url_format == "auto":
            learns, self._virtual_only = not self._virtual_only, True
            return learns
        headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        region = str(details.get("Region") or headers.get("x-amz-bucket-region") or "")
        if code not in _OTHER_REGION or self.conf.s3_store_region_name or not _REGION.fullmatch(region):
            return False
        learns, self._region = region != self.region, region
        return learns

    def _new(self) -> Any:
        import botocore
        from botocore.config import Config

        conf = self.conf
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
            # botocore would compose one of its own twice for each request, a tenth of what that costs.
            user_agent=f"storelib/{__version__} Botocore/{botocore.__version__}",
        )
        port = "" if self.port is None else f":{self.port}"
        base = f"/{self.base}" if self.base else ""
        session = _session_of_its_own() if conf.s3_store_access_key else _session(conf.s3_store_profile)
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=time_of)
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
        self.latency = math.inf
        _use_own_connections(client, read_timeout)
        # Behind botocore's own, which asks the server to say that a body is welcome: those of one operation come first.
        client.meta.events.register_last("before-call.s3", _expect_nothing)
        client.meta.events.register("before-parse.s3.GetObject", self._note_body)
        # What is for all services comes before botocore's own, which parses as well.
        client.meta.events.register("before-parse.*.*", _let_parse)
        client.meta.events.register("after-call.s3", self._check_response)
        client.meta.events.register_last("before-call.s3", _follow_nothing)
        return client

    def _check_response(self, http_response: Any, parsed: Mapping[str, Any], model: Any, **_: object) -> None:
        self.latency = min(self.latency, http_response.raw.seconds)
        check_response(http_response, parsed, model)

    def forget_parent(self) -> None:
        """In a forked child: neither use nor close the parent's connections, nor wait for a lock its threads held."""
        self._lock = threading.Lock()
        self._inherited.append(self._client)
        self._client = None


class _Connection(ListeningConnection):
    """For botocore, which takes any interim response but "100 Continue" for the final one."""

    def _handle_expect_response(self, message_body: Any) -> None:
        """Send the body once it is welcome: botocore calls this when something came after headers that ask whether."""
        self.await_welcome(_WAIT_FOR_WELCOME)
        if message_body is not None:
            self.send(message_body)


def _use_own_connections(client: Any, stall_timeout: float) -> None:
    """Have ``client`` make such connections. Botocore has no public way to say so; tests see to it that this works."""
    from botocore.awsrequest import AWSHTTPConnection, AWSHTTPSConnection

    session = client._endpoint.http_session
    pools = pool_classes(_Connection, AWSHTTPConnection, AWSHTTPSConnection, stall_timeout=stall_timeout)
    session._pool_classes_by_scheme = session._manager.pool_classes_by_scheme = pools


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


def _expect_nothing(model: Any, params: dict[str, Any], **kwargs: object) -> None:
    """By the time a part is sent, the server has agreed to take it: asking again costs a round trip.

    Many servers never say that a body is welcome, and all take one of one piece sooner than they could.
    """
    if model.name == "UploadPart" or isinstance(params["body"], io.BytesIO):
        params["headers"].pop("Expect", None)


# -- Names that XML has no way to write -----------------------------------------------------------------------

#: Characters that may be in keys and not in XML (XML 1.0, 2.2): servers write them all the same, plain or by number.
_NOT_XML = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]|\xef\xbf[\xbe\xbf]|&#(?:x[0-9a-fA-F]{1,6}|[0-9]{1,7});")
_NO_CHARACTERS = (*(set(range(0x20)) - set(b"\t\n\r")), 0xFFFE, 0xFFFF)
#: What stands for them while a response is parsed: characters for private use, 15 planes further up.
_STAND_INS = {code: chr(0xF0000 + code) for code in _NO_CHARACTERS}
_STOOD_FOR = {ord(stand_in): code for code, stand_in in _STAND_INS.items()}
#: Says of a parsed response that it has some.
_HAS_STAND_INS = "StorelibStandIns"


def _let_parse(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: object) -> None:
    """Keep one such name from making a response unreadable, with all others that are in it."""
    body = response_dict.get("body")
    if isinstance(body, bytes) and (legal := _NOT_XML.sub(_stand_in, body)) != body:
        response_dict["body"] = legal
        customized_response_dict[_HAS_STAND_INS] = True


def _stand_in(match: re.Match[bytes]) -> bytes:
    found = match[0]
    if found.startswith(b"&#x"):
        code = int(found[3:-1], 16)
    else:
        code = int(found[2:-1]) if found.startswith(b"&#") else ord(found.decode())
    stand_in = _STAND_INS.get(code)
    return found if stand_in is None else stand_in.encode()


def time_of(text: str) -> datetime.datetime:
    """What botocore makes of a time; sooner for the two forms of S3's API reference, which listings are full of."""
    from botocore.utils import parse_timestamp

    with contextlib.suppress(ValueError):
        if text.endswith("Z"):
            return datetime.datetime.fromisoformat(f"{text[:-1]}+00:00")
        if text.endswith("GMT"):
            return parsedate_to_datetime(text)
    found: datetime.datetime = parse_timestamp(text)
    return found


# -- Listings -------------------------------------------------------------------------------------------------

#: Of each listing: its entries, what they must have, and where to go on, in the response and in the request.
_LISTINGS: dict[str, tuple[str, dict[str, type], dict[str, str]]] = {
    "list_objects_v2": (
        "Contents",
        {"Key": str, "Size": int, "LastModified": datetime.datetime},
        {"NextContinuationToken": "ContinuationToken"},
    ),
    "list_multipart_uploads": (
        "Uploads",
        {"Key": str, "UploadId": str, "Initiated": datetime.datetime},
        {"NextKeyMarker": "KeyMarker", "NextUploadIdMarker": "UploadIdMarker"},
    ),
    "list_parts": (
        "Parts",
        {"Size": int, "LastModified": datetime.datetime},
        {"NextPartNumberMarker": "PartNumberMarker"},
    ),
}
#: Pages in a row without an entry: Amazon sends some where much was deleted.
_MOST_EMPTY = 1000


def _listed(send: Callable[..., Any], operation: str) -> Iterator[dict[str, Any]]:
    """The entries of all pages, a thousand with each request; raises BadAnswer where a listing does not end."""
    field, needed, markers = _LISTINGS[operation]
    places, firsts, empty = _Circle(operation), _Circle(operation), 0
    where: dict[str, Any] = {}
    while True:
        page = send(**where)
        entries = page.get(field) or ()
        if page.get(_HAS_STAND_INS):
            page, entries = _restored(page), [_restored(entry) for entry in entries]
        for entry in entries:
            if not all(isinstance(entry.get(name), kind) for name, kind in needed.items()):
                raise BadAnswer(operation, f"an entry without {', '.join(needed)}")
            if "Size" in needed:
                size_of(operation, entry, "Size")
            yield entry
        if not page.get("IsTruncated"):
            return
        where = {asked: page[told] for told, asked in markers.items() if page.get(told)}
        empty = 0 if entries else empty + 1
        if not where or empty > _MOST_EMPTY:
            raise BadAnswer(operation, "there is more, and not where")
        places.pass_by(where)
        if entries:
            firsts.pass_by(entries[0])


def _restored(told: Mapping[str, Any]) -> dict[str, Any]:
    """With the characters that were in its texts."""
    return {name: value.translate(_STOOD_FOR) if isinstance(value, str) else value for name, value in told.items()}


class _Circle:
    """Notices that a listing goes round in circles, however long, and remembers one place only (after R. Brent)."""

    def __init__(self, operation: str) -> None:
        self._operation = operation
        self._place: object = None
        self._steps = 0
        self._next = 1

    def pass_by(self, place: object) -> None:
        """The listing has come here; raises BadAnswer if it was here before."""
        if place == self._place:
            raise BadAnswer(self._operation, "the same again and again")
        self._steps += 1
        if self._steps == self._next:
            self._place, self._next = place, 2 * self._next


# -- Checksums ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crc:
    """A cyclic redundancy check that can be computed in pieces: ``update(data, value)`` goes on from ``value``."""

    #: The parameter and field of requests and responses that hold it.
    name: str
    update: Callable[[Any, int], int]
    #: The polynomial, lowest power last.
    polynomial: int
    size: int

    def encode(self, value: int) -> str:
        """As headers have it."""
        return base64.b64encode(value.to_bytes(self.size, "big")).decode("ascii")

    def combine(self, first: int, second: int, length: int) -> int:
        """The value of two runs of bytes, the second of ``length`` bytes, from the values of each.

        Appending a zero bit is linear, so appending many is a power of that matrix, and what the second run adds is
        added by exclusive or (as zlib's crc32_combine).
        """
        matrix = [self.polynomial] + [1 << bit for bit in range(8 * self.size - 1)]
        zeros = 8 * length
        while zeros:
            if zeros & 1:
                first = _apply(matrix, first)
            matrix = [_apply(matrix, column) for column in matrix]
            zeros >>= 1
        return first ^ second


def _apply(matrix: list[int], vector: int) -> int:
    result = 0
    for column in matrix:
        if not vector:
            break
        if vector & 1:
            result ^= column
        vector >>= 1
    return result


def find_crc(algorithm: str) -> Crc | None:
    """The CRC of that name; None where it is none, or what computes it is not installed."""
    if algorithm == "crc32":
        return Crc("ChecksumCRC32", zlib.crc32, 0xEDB88320, 4)
    if algorithm not in ("crc32c", "crc64nvme"):
        return None
    try:
        from awscrt import checksums
    except ImportError:
        return None
    if algorithm == "crc32c":
        return Crc("ChecksumCRC32C", checksums.crc32c, 0x82F63B78, 4)
    return Crc("ChecksumCRC64NVME", checksums.crc64nvme, 0x9A6C9329AC4BC9B5, 8)


class PartChecksums:
    """The checksum that goes with each part: parameters of the requests that store an image, and what came of them."""

    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm
        # What is known of the server's ETags: whether one was ever the md5 of what was sent, and whether none is.
        self._md5_seen = False
        self._never_md5 = False
        self._crc = find_crc(algorithm)
        if algorithm in ("crc32c", "crc64nvme") and self._crc is None:
            raise MissingDependency(
                f"option s3_store_checksum_algorithm = {algorithm} needs an extra package: pip install botocore[crt]"
            )
        #: Where responses have the checksum of a part, for the request that completes an upload.
        self.field = self._crc.name if self._crc else _field(algorithm)

    @property
    def of_upload(self) -> dict[str, str]:
        """What the request that starts a multipart upload says of the checksums to come."""
        if self.algorithm in ("none", "md5"):
            return {}
        # Only CRCs can be put together to one of the whole object.
        kind = "FULL_OBJECT" if self._crc else "COMPOSITE"
        return {"ChecksumAlgorithm": self.algorithm.upper(), "ChecksumType": kind}

    @property
    def update(self) -> Callable[[Any, int], int] | None:
        """What computes the checksum of a part in pieces; None if nothing does."""
        return self._crc.update if self._crc else None

    def of_part(
        self, data: memoryview | RangeFile, known: Digests | None = None, value: int | None = None
    ) -> dict[str, str]:
        """The checksum of ``data``; taken from ``known`` digests of the same bytes where they have it.

        ``value`` is what ``update`` made of them, if it was asked.
        """
        # In the other order than ``compare`` sets them: another part may find meanwhile that the CRC is ignored.
        crc, algorithm = self._crc, self.algorithm
        if algorithm == "none":
            return {}
        if crc is not None:
            if value is None:
                value = 0
                for piece in _pieces(data):
                    value = crc.update(piece, value)
            return {crc.name: crc.encode(value)}
        digest = _known(algorithm, known) or _hash(algorithm, data).digest()
        name = "ContentMD5" if algorithm == "md5" else _field(algorithm)
        return {name: base64.b64encode(digest).decode("ascii")}

    def compare(
        self,
        response: Mapping[str, Any],
        sent: Mapping[str, str],
        data: memoryview | RangeFile,
        md5: str | None,
        *,
        in_clear: bool,
    ) -> None:
        """Raise Damaged if the server stored other bytes than ``data``, which went out with ``sent``.

        A server that does not repeat the checksum has ignored it; then the ETag tells, which mostly is the md5.
        ``md5`` is that of the bytes where it is known; without it, it is computed where nothing else protects them.
        """
        checksums = {name: value for name, value in sent.items() if name != "ContentMD5" and response.get(name)}
        if checksums:
            if any(response[name] != value for name, value in checksums.items()):
                raise Damaged("the upload", "its checksum")
            return
        etag = str(response.get("ETag", "")).strip('"').lower()
        if self._never_md5 or not is_md5(etag, response):
            return
        if "ContentMD5" in sent:
            md5 = base64.b64decode(sent["ContentMD5"]).hex()
        elif md5 is None and in_clear and self.algorithm != "none":
            md5 = _hash("md5", data).hexdigest()
        if md5 is None or etag == md5:
            self._md5_seen |= md5 is not None
            return
        if "ContentMD5" in sent and not self._md5_seen:
            # It has verified the bytes: its ETags are something else.
            self._never_md5 = True
            return
        self.algorithm, self._crc, self.field = "md5", None, "ChecksumMD5"
        raise Damaged("the upload", "its ETag")


def _field(algorithm: str) -> str:
    return f"Checksum{algorithm.upper()}"


def _pieces(data: memoryview | RangeFile) -> Iterable[memoryview]:
    return data.pieces() if isinstance(data, RangeFile) else [data]


def _hash(algorithm: str, data: memoryview | RangeFile) -> Any:
    hasher = hashlib.new(algorithm, usedforsecurity=False)
    for piece in _pieces(data):
        hasher.update(piece)
    return hasher


def is_md5(etag: str, response: Mapping[str, Any]) -> bool:
    """Whether an ETag without its quotes may be the md5 of an object: not of one encrypted with other keys."""
    other_keys = response.get("SSECustomerAlgorithm") or str(response.get("ServerSideEncryption", "")).startswith(
        "aws:kms"
    )
    return not other_keys and re.fullmatch("[0-9a-f]{32}", etag) is not None


def _known(algorithm: str, digests: Digests | None) -> bytes | None:
    if digests is None:
        return None
    if algorithm == "md5" and digests.checksum is not None:
        return bytes.fromhex(digests.checksum)
    return bytes.fromhex(digests.multihash) if digests.algorithm == algorithm else None
