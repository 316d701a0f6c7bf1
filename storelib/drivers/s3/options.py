# SPDX-License-Identifier: Apache-2.0
"""The options of S3 stores, and which of them go together; names are glance_store's where the meaning is the same."""

from __future__ import annotations

import base64
import binascii
import urllib.parse
from collections.abc import Sequence
from typing import Any

from oslo_config import cfg

from storelib.exceptions import misconfigured
from storelib.option_types import LocalPath
from storelib.transfer.certificates import check_certificates
from storelib.transfer.contract import Options

#: MiB in one part, where nobody says.
PART = 8

OPTIONS: Sequence[cfg.Opt] = (
    # -- Where ------------------------------------------------------------------------------------------------
    cfg.StrOpt(
        "s3_store_host",
        help="The server: host, host:port, or a URL that begins with https:// or http:// and may have a path; https "
        "where it does not say. For Amazon: s3.<region>.amazonaws.com.",
    ),
    cfg.StrOpt("s3_store_bucket", help="The bucket that holds the images."),
    cfg.StrOpt(
        "s3_store_key_prefix",
        default="",
        help="What the keys of all images begin with, for example images/. Several stores may share a bucket so.",
    ),
    cfg.BoolOpt(
        "s3_store_create_bucket_on_put",
        default=False,
        help="Make the bucket when an image is added and it is not there.",
    ),
    cfg.StrOpt(
        "s3_store_region_name",
        default="",
        help="Region that requests are signed for, and that a bucket is made in. Empty: the one in the name of an "
        "Amazon host, else us-east-1.",
    ),
    cfg.StrOpt(
        "s3_store_bucket_url_format",
        default="auto",
        choices=[
            (
                "auto",
                "virtual for Amazon and others that are known to demand it or refuse a path, if the bucket's name "
                "has no dots; else path",
            ),
            ("virtual", "the bucket is part of the host name"),
            ("path", "the bucket is the first part of the path"),
        ],
        help="How requests address the bucket.",
    ),
    # -- As whom ----------------------------------------------------------------------------------------------
    cfg.StrOpt(
        "s3_store_access_key",
        secret=True,
        help="Access key. With one, the environment and the files of the AWS tools are not looked at. Without one, "
        "credentials come from where those tools find them: environment, profile, web identity, container or "
        "instance role.",
    ),
    cfg.StrOpt("s3_store_secret_key", secret=True, help="Secret key that belongs to s3_store_access_key."),
    cfg.StrOpt("s3_store_session_token", secret=True, help="Session token of temporary keys."),
    cfg.StrOpt("s3_store_profile", help="Profile in the shared AWS configuration and credentials files."),
    # -- How to get there -------------------------------------------------------------------------------------
    cfg.Opt(
        "s3_store_cacert",
        type=LocalPath(),
        default="",
        help="File of CA certificates (PEM) that the server is verified against, whatever the environment says.",
    ),
    cfg.BoolOpt(
        "s3_store_insecure",
        default=False,
        help="Do not verify the server's certificate. A server in between can then replace every image.",
    ),
    cfg.StrOpt(
        "s3_store_proxy",
        secret=True,
        help="URL of a proxy, with credentials if it wants some. Proxies named by the environment are never used.",
    ),
    cfg.FloatOpt(
        "s3_store_connect_timeout",
        default=10.0,
        min=0.01,
        help="Seconds to wait for a connection, transfer_timeout at most.",
    ),
    cfg.FloatOpt(
        "s3_store_read_timeout",
        default=60.0,
        min=0.01,
        help="Seconds to wait for a response or the next bytes, transfer_timeout at most. transfer_retries says how "
        "often it is tried again.",
    ),
    # -- How images are stored --------------------------------------------------------------------------------
    cfg.IntOpt(
        "s3_store_large_object_chunk_size",
        default=PART,
        min=5,
        max=5 * 1024,
        help="MiB in one part. An image that fits in one part is one PUT, a larger one a multipart upload. Parts "
        "grow beyond this where 10000 of them would not hold the image; if its size is not known, after every "
        "thousandth part. With the default, up to 32 MiB go out at once where nothing looks at the bytes of a local "
        "file.",
    ),
    cfg.StrOpt(
        "s3_store_equal_parts",
        default="auto",
        choices=[
            ("auto", "for Cloudflare R2, and once a server has refused others"),
            ("on", "always; an image of unknown size then has 10000 parts of the configured size at most"),
            ("off", "never"),
        ],
        help="Whether all parts but the last have one size, if the size of the image is not known.",
    ),
    cfg.IntOpt(
        "s3_store_thread_pools",
        default=10,
        min=1,
        max=64,
        help="Parts of one image in flight at most, when adding, reading and copying. What one transfer may hold in "
        "memory, transfer_window, limits it too.",
    ),
    cfg.StrOpt(
        "s3_store_conditional_writes",
        default="auto",
        choices=[
            (
                "auto",
                "single PUTs carry If-None-Match; a multipart upload looks for the id with a HEAD before it is "
                "completed, until check() has seen that the server honours If-None-Match there too",
            ),
            ("on", "both carry If-None-Match, which the server is known to honour"),
            ("off", "neither does: a HEAD looks for the id before"),
        ],
        help="How an image that exists is protected from being overwritten. Only If-None-Match makes sure that of "
        "adds racing for one id exactly one succeeds.",
    ),
    cfg.StrOpt("s3_store_storage_class", help="Storage class of new images, for example STANDARD_IA."),
    cfg.StrOpt(
        "s3_store_encryption",
        default="none",
        choices=[
            ("none", "as the bucket is set up"),
            ("AES256", "with the server's key (SSE-S3)"),
            ("aws:kms", "with a key of the key management service (SSE-KMS)"),
            ("aws:kms:dsse", "the same in two layers"),
            ("customer", "with s3_store_customer_key, which the server does not keep (SSE-C)"),
        ],
        help="Encryption of new images on the server.",
    ),
    cfg.StrOpt("s3_store_kms_key_id", help="Key for aws:kms; the account's default key if not given."),
    cfg.StrOpt(
        "s3_store_customer_key",
        secret=True,
        help="Key for SSE-C: 32 bytes in base64. Without it, images stored with it cannot be read.",
    ),
    # -- Integrity --------------------------------------------------------------------------------------------
    cfg.StrOpt(
        "s3_store_checksum_algorithm",
        default="auto",
        choices=[
            (
                "auto",
                "crc32; where the server refuses it or wants another, Content-MD5, and none where it refuses both",
            ),
            ("none", "no part carries a checksum"),
            ("md5", "Content-MD5, which every server verifies and none keeps"),
            ("crc32", "needs the least time"),
            ("crc32c", "needs botocore[crt]"),
            ("crc64nvme", "needs botocore[crt]"),
            ("sha1", ""),
            ("sha256", ""),
        ],
        help="The one checksum that is computed of each part, beside the digests of the image. The server verifies "
        "it when the part arrives; crc32, crc32c and crc64nvme are kept as the checksum of the whole image and "
        "verified when it is read. Servers that know no checksums ignore all but md5: what they store is "
        "compared with the md5 that their ETag is, that of single PUTs always, that of parts over plain http. Payloads "
        "are not signed: over https TLS protects them on their way.",
    ),
    cfg.BoolOpt(
        "s3_store_verify_checksum",
        default=True,
        help="Verify the checksum the server keeps of an image, if there is one, when the image is read from "
        "beginning to end.",
    ),
)


def check_access(conf: Options, store_name: str) -> None:
    """Raise BadStoreConfiguration unless keys are whole and the proxy is one."""
    if bool(conf.s3_store_access_key) != bool(conf.s3_store_secret_key):
        raise misconfigured(store_name, "s3_store_secret_key", "goes together with s3_store_access_key")
    if conf.s3_store_session_token and not conf.s3_store_access_key:
        raise misconfigured(store_name, "s3_store_session_token", "needs s3_store_access_key")
    try:
        key = base64.b64decode(conf.s3_store_customer_key or "", validate=True)
    except (binascii.Error, ValueError):
        key = b"?"
    if len(key) not in (0, 32):
        raise misconfigured(store_name, "s3_store_customer_key", "32 bytes in base64")
    if conf.s3_store_proxy:
        try:
            proxy = urllib.parse.urlsplit(conf.s3_store_proxy)
            usable = proxy.scheme in ("http", "https") and proxy.hostname and proxy.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise misconfigured(store_name, "s3_store_proxy", "a URL that begins with http:// or https://")


def verification(conf: Options, store_name: str) -> bool | str | None:
    """How botocore verifies the server; None leaves it to the environment, which must not override an option.

    Nor does it say anything of a store with keys of its own.
    """
    if conf.s3_store_insecure:
        return False
    check_certificates(conf.s3_store_cacert, store_name, "s3_store_cacert")
    return conf.s3_store_cacert or (True if conf.s3_store_access_key else None)


def customer_key(conf: Options) -> dict[str, Any]:
    """What every request needs that touches the bytes of an image stored with SSE-C."""
    if not conf.s3_store_customer_key:
        return {}
    return {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": base64.b64decode(conf.s3_store_customer_key)}


def object_settings(conf: Options, store_name: str) -> dict[str, Any]:
    """What requests that make an object say of it; raises BadStoreConfiguration for options that do not go together."""
    encryption = conf.s3_store_encryption
    if (encryption == "customer") != bool(conf.s3_store_customer_key):
        raise misconfigured(store_name, "s3_store_encryption", "customer goes together with s3_store_customer_key")
    if conf.s3_store_kms_key_id and not encryption.startswith("aws:kms"):
        why = "needs s3_store_encryption = aws:kms or aws:kms:dsse"
        raise misconfigured(store_name, "s3_store_kms_key_id", why)
    settings = {
        "StorageClass": conf.s3_store_storage_class,
        "ServerSideEncryption": None if encryption in ("none", "customer") else encryption,
        "SSEKMSKeyId": conf.s3_store_kms_key_id,
    }
    return {key: value for key, value in settings.items() if value} | customer_key(conf)
