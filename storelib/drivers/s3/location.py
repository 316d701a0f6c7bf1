# SPDX-License-Identifier: Apache-2.0
"""S3Location: the URI of an object. And where a server is, as configured or as a URI says it. No network."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from storelib.exceptions import BadStoreUri
from storelib.uris import StoreLocation, quote, quote_path, redact, scheme_of, split_endpoint, unquote

#: The first is what storelib writes; ``s3`` leaves open how the server is reached and means https.
SCHEMES = ("s3+https", "s3+http", "s3")
DEFAULT_PORTS = {"s3+https": 443, "s3+http": 80}

_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff?#]")

#: The path of a server: no dots for names, which clients and proxies resolve.
_BASE = re.compile(r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)*")


@dataclass(frozen=True, repr=False)
class S3Location(StoreLocation):
    """``s3+https://host[:port]/[base/]bucket/key``, bucket and every part of the key percent-encoded.

    Credentials of old URIs (``s3://access:secret@host/bucket/key``) are read, never used and never written back.
    """

    scheme: str
    host: str
    #: None is the scheme's own port.
    port: int | None
    bucket: str
    key: str
    access_key: str | None = field(default=None, repr=False, compare=False)
    secret_key: str | None = field(default=None, repr=False, compare=False)
    #: The path of the server, without slashes around it. A URI does not tell it from a bucket: see ``below``.
    base: str = ""

    @classmethod
    def parse(cls, uri: str) -> S3Location:
        """Take a URI apart; raises BadStoreUri."""
        scheme = scheme_of(uri)
        rest = uri[len(scheme) + len("://") :]
        access_key, secret_key, rest = _split_credentials(rest, uri)
        if scheme not in SCHEMES or rest.count("/") < 2:
            raise BadStoreUri(f"expected s3+https://host[:port]/bucket/key, not {redact(uri)}")
        if _FORBIDDEN.search(rest):
            raise BadStoreUri(f"'?', '#' and control characters must be percent-encoded in {redact(uri)!r}")
        authority, bucket, key = rest.split("/", 2)
        host, port = _split_endpoint(authority, scheme, uri)
        bucket, key = unquote(bucket, uri), unquote(key, uri)
        # Clients and proxies resolve dots in paths: such a key would be looked for in another bucket.
        dots = {"", ".", ".."} & {bucket, key, *(part for part in key.split("/") if part)}
        if dots or "/" in bucket or "\0" in bucket + key:
            raise BadStoreUri(f"not a bucket and a key: {redact(uri)!r}")
        return cls(scheme, host, port, bucket, key, access_key, secret_key)

    @property
    def uri(self) -> str:
        """The URI without credentials."""
        port = "" if self.port is None else f":{self.port}"
        base = f"{self.base}/" if self.base else ""
        return f"{self.scheme}://{self.host}{port}/{base}{quote(self.bucket)}/{quote_path(self.key)}"

    def below(self, base: str) -> S3Location | None:
        """This location for a server whose path is ``base``; None where it does not begin so."""
        if self.base == base:
            return self
        names, path = base.split("/"), [self.bucket, *self.key.split("/")]
        if self.base or path[: len(names)] != names or len(path) < len(names) + 2:
            return None
        bucket, *key = path[len(names) :]
        return replace(self, base=base, bucket=bucket, key="/".join(key)) if bucket and any(key) else None


def configured_endpoint(value: str) -> tuple[str, str, int | None, str]:
    """Scheme, host, port and path of the server that s3_store_host names; raises BadStoreUri."""
    value = value.strip().rstrip("/")
    scheme, _, rest = (value if "://" in value else f"https://{value}").partition("://")
    # A path without a scheme before it may as well be a bucket that does not belong here.
    authority, _, base = rest.partition("/") if "://" in value else (rest, "", "")
    scheme = f"s3+{scheme.lower()}"
    if scheme not in DEFAULT_PORTS:
        raise BadStoreUri(f"neither http nor https: {scheme.removeprefix('s3+')}")
    if base and not _BASE.fullmatch(base):
        raise BadStoreUri("not the path of a server")
    return scheme, *_split_endpoint(authority, scheme, value), base


def _split_endpoint(authority: str, scheme: str, uri: str) -> tuple[str, int | None]:
    """Host in lower case and port, None where it is the scheme's own; raises BadStoreUri."""
    host, port = split_endpoint(authority, uri)
    return host, None if port == DEFAULT_PORTS.get(scheme) else port


def _split_credentials(rest: str, uri: str) -> tuple[str | None, str | None, str]:
    """Access key and secret key, if there are any, and what follows them.

    Secrets may hold an unquoted "/" or "@", so with a ":" before the first "/" they end at the last "@" only; what
    storelib writes has no "@" at all.
    """
    authority = rest.partition("/")[0]
    if "@" not in (rest if ":" in authority else authority):
        return None, None, rest
    userinfo, _, rest = rest.rpartition("@")
    access_key, _, secret_key = userinfo.partition(":")
    return unquote(access_key, uri), unquote(secret_key, uri), rest
