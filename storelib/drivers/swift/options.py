# SPDX-License-Identifier: Apache-2.0
"""The options of Swift stores; names are glance_store's where the meaning is the same. And the credentials in them."""

from __future__ import annotations

import configparser
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from oslo_config import cfg

from storelib.drivers.swift.location import place_of
from storelib.exceptions import BadStoreConfiguration, misconfigured
from storelib.option_types import LocalPath
from storelib.transfer.contract import Options

OPTIONS: Sequence[cfg.Opt] = (
    # -- Who we are ---------------------------------------------------------------------------------------------------
    cfg.StrOpt(
        "swift_store_auth_version",
        default="3",
        choices=["1", "3"],
        help="3: Keystone. 1: tokens from Swift itself, as tempauth and radosgw give them.",
    ),
    cfg.StrOpt("swift_store_auth_address", help="URL of the identity service, for example https://keystone:5000/v3."),
    cfg.StrOpt("swift_store_user", secret=True, help="The user as project:user; with version 1 as account:user."),
    cfg.StrOpt("swift_store_key", secret=True, help="The user's password."),
    cfg.StrOpt("swift_store_project_name", help="The project, if it is not part of swift_store_user."),
    cfg.StrOpt("swift_store_project_id", help="The same by its id."),
    cfg.StrOpt("swift_store_user_domain_id", default="default", help="Domain of the user."),
    cfg.StrOpt("swift_store_project_domain_id", default="default", help="Domain of the project."),
    cfg.StrOpt(
        "swift_store_application_credential_id",
        secret=True,
        help="An application credential, used instead of user and key.",
    ),
    cfg.StrOpt("swift_store_application_credential_secret", secret=True, help="Its secret."),
    cfg.Opt(
        "swift_store_config_file",
        type=LocalPath(),
        help="File with one section per account: auth_address, user, key or application_credential_id and _secret, "
        "project_name or project_id, auth_version, and the domains of user and project by id or name. With it, URIs "
        "name the section and survive a change of anything in it.",
    ),
    cfg.StrOpt("default_swift_reference", default="ref1", help="The section that new images go to."),
    cfg.IntOpt(
        "swift_store_expire_soon_interval",
        default=60,
        min=0,
        help="Tokens that expire within so many seconds are renewed before they are used.",
    ),
    # -- Where the service is -----------------------------------------------------------------------------------------
    cfg.StrOpt(
        "swift_store_endpoint",
        help="URL of the account instead of the one in the catalog, as https://swift/v1/AUTH_%(project_id)s.",
    ),
    cfg.StrOpt("swift_store_service_type", default="object-store", help="Type of the service in the catalog."),
    cfg.StrOpt(
        "swift_store_endpoint_type",
        default="publicURL",
        choices=["publicURL", "adminURL", "internalURL"],
        help="Which of its URLs to use.",
    ),
    cfg.StrOpt("swift_store_region", help="Region of the service, where the catalog has several."),
    cfg.Opt(
        "swift_store_cacert", type=LocalPath(), help="File of CA certificates (PEM) for Swift and the identity service."
    ),
    cfg.BoolOpt(
        "swift_store_auth_insecure",
        default=False,
        help="Do not verify certificates. A server in between can then read the password and replace every image.",
    ),
    cfg.FloatOpt("swift_store_connect_timeout", default=30.0, min=0.1, help="Seconds to wait for a connection."),
    cfg.FloatOpt("swift_store_read_timeout", default=60.0, min=0.1, help="Seconds to wait for the next bytes."),
    # -- What goes where ----------------------------------------------------------------------------------------------
    cfg.StrOpt(
        "swift_store_container",
        default="glance",
        help="Container of the images, or the first part of the names of several.",
    ),
    cfg.IntOpt(
        "swift_store_multiple_containers_seed",
        default=0,
        min=0,
        max=32,
        help="Spread images over containers named after so many first characters of their ids; 0: one container.",
    ),
    cfg.BoolOpt(
        "swift_store_container_per_image",
        default=False,
        help="A container for each image, as multi-tenant stores have: racing adds then have exactly one winner, and "
        "images can be shared by access control lists.",
    ),
    cfg.StrOpt(
        "swift_store_segment_container",
        help="Container for the segments of large images, instead of the image's own. Not with a container per image.",
    ),
    cfg.BoolOpt("swift_store_create_container_on_put", default=False, help="Make containers that are missing."),
    cfg.StrOpt("swift_store_storage_policy", help="Storage policy of the containers that are made."),
    cfg.IntOpt("swift_store_delete_after", min=1, help="Seconds after which Swift removes an added image by itself."),
    cfg.BoolOpt(
        "swift_store_multi_tenant",
        default=False,
        help="Store each image in the account of the user who adds it, with the token of the request.",
    ),
    cfg.ListOpt(
        "swift_store_admin_tenants",
        default=[],
        help="Projects that may read and write every image of a multi-tenant store.",
    ),
    cfg.BoolOpt(
        "swift_store_use_trusts",
        default=True,
        help="In a multi-tenant store with a user of its own, go on with a trust when the token of the request "
        "expires in the middle of a transfer. The trust is revoked at its end.",
    ),
    cfg.StrOpt(
        "swift_store_temp_url_key",
        secret=True,
        help="The account's or the container's key for temporary URLs; without it there are none.",
    ),
    # -- How bytes move -----------------------------------------------------------------------------------------------
    cfg.IntOpt(
        "swift_store_large_object_size",
        default=16,
        min=1,
        help="Images of more MiB than this are stored in segments; those that do not fit in one segment always are.",
    ),
    cfg.IntOpt(
        "swift_store_large_object_chunk_size",
        default=16,
        min=1,
        max=5120,
        help="MiB in one segment. Two segments, or transfer_window if that is more, are held in memory.",
    ),
    cfg.IntOpt("swift_store_upload_concurrency", default=4, min=1, max=64, help="Segments in flight at most."),
    cfg.IntOpt(
        "swift_store_download_concurrency",
        default=10,
        min=1,
        max=64,
        help="Ranges of one image in flight at most, from servers that are far away; near ones send one stream.",
    ),
    cfg.IntOpt("swift_store_download_part_size", default=4, min=1, max=64, help="MiB in one such range."),
)


# -- Credentials ------------------------------------------------------------------------------------------------------

#: The reference of the account that the options themselves name.
OPTIONS_REFERENCE = ""
# https://host:5000 and https://host:5000/identity need a version, https://host:5000/v3 has one.
_VERSION = re.compile(r"/v[0-9.]+/*$")
_URL = re.compile(r"https?://[^/\s@?#]+(/[^\s@?#]*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Credentials:
    """One account at one identity service; ``str`` and ``repr`` show no secret."""

    auth_address: str
    auth_version: str = "3"
    user: str | None = field(default=None, repr=False)
    key: str | None = field(default=None, repr=False)
    application_credential_id: str | None = None
    application_credential_secret: str | None = field(default=None, repr=False)
    project_name: str | None = None
    project_id: str | None = None
    user_domain_id: str | None = None
    user_domain_name: str | None = None
    project_domain_id: str | None = None
    project_domain_name: str | None = None

    def __post_init__(self) -> None:
        if self.auth_address and "://" not in self.auth_address:
            # As glance_store takes it.
            object.__setattr__(self, "auth_address", f"https://{self.auth_address}")
        for kind in ("user", "project"):
            if not getattr(self, f"{kind}_domain_name") and not getattr(self, f"{kind}_domain_id"):
                object.__setattr__(self, f"{kind}_domain_id", "default")
        why = self._missing()
        if why:
            raise BadStoreConfiguration(why)

    @property
    def identity_url(self) -> str:
        """The URL of the identity service, with its version."""
        url = self.auth_address.rstrip("/")
        return url if self.auth_version == "1" or _VERSION.search(url) else f"{url}/v3"

    @property
    def user_name(self) -> str | None:
        """The user without the project before it."""
        return self.user.rpartition(":")[2] if self.user and self.auth_version != "1" else self.user

    @property
    def scope(self) -> Mapping[str, str | None]:
        """The project, by name or id."""
        if self.project_id or self.project_name:
            return {"project_id": self.project_id, "project_name": self.project_name}
        return {"project_name": (self.user or "").rpartition(":")[0] or None}

    def _missing(self) -> str | None:
        if not _URL.fullmatch(self.auth_address):
            return "the address of the identity service (swift_store_auth_address) is no http or https URL"
        try:
            place_of(self.auth_address)
        except ValueError as error:
            return f"the address of the identity service (swift_store_auth_address) can be in no URI: {error}"
        if self.auth_version not in ("1", "3"):
            return f"version {self.auth_version} of the identity service is not supported; use 3, or 1 for tempauth"
        if self.application_credential_id and self.auth_version == "3":
            if not self.application_credential_secret:
                return "an application credential needs its secret (swift_store_application_credential_secret)"
            return None
        if not self.user or not self.key:
            return "user and key are needed (swift_store_user, swift_store_key), or an application credential"
        if self.auth_version == "3" and not any(self.scope.values()):
            return "the project is needed: swift_store_project_name, or swift_store_user as project:user"
        return None


# What the file of references may tell, and the options but for the two names of domains.
_KEYS = frozenset(known.name for known in fields(Credentials))
_OPTIONS = _KEYS - {"user_domain_name", "project_domain_name"}


def read_credentials(conf: Options, store_name: str) -> Mapping[str, Credentials]:
    """Every account that the options name, by reference; raises BadStoreConfiguration."""
    if conf.swift_store_config_file:
        return from_file(conf.swift_store_config_file, store_name)
    if conf.swift_store_multi_tenant and not conf.swift_store_auth_address:
        return {}
    return {OPTIONS_REFERENCE: from_options(conf, store_name)}


def from_options(conf: Options, store_name: str) -> Credentials:
    """The account that the store's options name; raises BadStoreConfiguration."""
    if not conf.swift_store_auth_address:
        raise misconfigured(store_name, "swift_store_auth_address", "needed unless there is swift_store_config_file")
    return Credentials(**{key: getattr(conf, f"swift_store_{key}") for key in _OPTIONS})


def from_file(path: str, store_name: str) -> dict[str, Credentials]:
    """The accounts in a reference file, by section; raises BadStoreConfiguration, which quotes no line of it."""
    parser, option = configparser.ConfigParser(strict=True), "swift_store_config_file"
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise misconfigured(store_name, option, f"{path} cannot be read: {reason}") from None
    except configparser.Error as error:
        line = getattr(error, "lineno", None)
        where = f", line {line}" if line else ""
        raise misconfigured(store_name, option, f"{path}{where}: not an INI file") from None
    found: dict[str, Credentials] = {}
    for name in parser.sections():
        try:
            found[name] = _section({key: _value(parser, name, key) for key in parser[name]})
        except BadStoreConfiguration as error:
            raise misconfigured(store_name, option, f"{path}, [{name}]: {error}") from None
    if not found:
        raise misconfigured(store_name, option, f"{path} has no section")
    return found


def _value(parser: configparser.ConfigParser, section: str, key: str) -> str:
    """As glance_store reads it: ``%%`` is a ``%``, ``%(name)s`` another value. What makes no sense so is as it is."""
    try:
        return parser.get(section, key)
    except configparser.InterpolationError:
        return parser.get(section, key, raw=True)


def _section(values: dict[str, str]) -> Credentials:
    known = {key: _unquoted(value) or None for key, value in values.items() if key in _KEYS}
    known["auth_address"] = known.get("auth_address") or ""
    known["auth_version"] = known.get("auth_version") or "3"
    return Credentials(**known)  # type: ignore[arg-type]


def _unquoted(value: str) -> str:
    """Old files have values in quotation marks, which are not part of them."""
    value = value.strip()
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
