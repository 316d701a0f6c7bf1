# SPDX-License-Identifier: Apache-2.0
"""Credentials: who a store is to the identity service, from its options or from a reference file of its own."""

from __future__ import annotations

import configparser
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from storelib.exceptions import BadStoreConfiguration

_KEYS = {
    "auth_address",
    "auth_version",
    "user",
    "key",
    "application_credential_id",
    "application_credential_secret",
    "project_name",
    "project_id",
    "user_domain_id",
    "user_domain_name",
    "project_domain_id",
    "project_domain_name",
}
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


def from_options(conf: Any) -> Credentials:
    """The account that the store's options name; raises BadStoreConfiguration."""
    if not conf.swift_store_auth_address:
        raise BadStoreConfiguration("swift_store_auth_address is needed, or swift_store_config_file")
    return Credentials(
        auth_address=conf.swift_store_auth_address,
        auth_version=conf.swift_store_auth_version,
        user=conf.swift_store_user,
        key=conf.swift_store_key,
        application_credential_id=conf.swift_store_application_credential_id,
        application_credential_secret=conf.swift_store_application_credential_secret,
        project_name=conf.swift_store_project_name,
        project_id=conf.swift_store_project_id,
        user_domain_id=conf.swift_store_user_domain_id,
        project_domain_id=conf.swift_store_project_domain_id,
    )


def from_file(path: str) -> dict[str, Credentials]:
    """The accounts in a reference file, by section; raises BadStoreConfiguration, which quotes no line of it."""
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise BadStoreConfiguration(f"swift_store_config_file {path} cannot be read: {reason}") from None
    except configparser.Error as error:
        line = getattr(error, "lineno", None)
        where = f", line {line}" if line else ""
        raise BadStoreConfiguration(f"swift_store_config_file {path}{where}: not an INI file") from None
    found = {name: _section(path, name, dict(parser[name])) for name in parser.sections()}
    if not found:
        raise BadStoreConfiguration(f"swift_store_config_file {path} has no section")
    return found


def _section(path: str, name: str, values: dict[str, str]) -> Credentials:
    known = {key: _unquoted(value) or None for key, value in values.items() if key in _KEYS}
    known["auth_address"] = known.get("auth_address") or ""
    known["auth_version"] = known.get("auth_version") or "3"
    try:
        return Credentials(**known)  # type: ignore[arg-type]
    except BadStoreConfiguration as error:
        raise BadStoreConfiguration(f"swift_store_config_file {path}, [{name}]: {error}") from None


def _unquoted(value: str) -> str:
    """Old files have values in quotation marks, which are not part of them."""
    value = value.strip()
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
