# SPDX-License-Identifier: Apache-2.0
"""The key manager: certificates of signed images, and keys of encrypted volumes. It is Castellan's, with the backend
that ``[key_manager]`` names, and is asked with the token of the caller, who has to be allowed there what is asked for.
"""

from __future__ import annotations

import logging
from typing import Any

from oslo_config import cfg

from storelib.api.context import Context
from storelib.api.db.records import Image
from storelib.config import OptionReader
from storelib.exceptions import BadStoreConfiguration
from storelib.extras import needing

LOG = logging.getLogger(__name__)

#: The section that configures it, and that of the backend which Castellan takes where none is named; without them there
#: is no key manager.
SECTION, BARBICAN = "key_manager", "barbican"


class KeyManagerFailed(Exception):
    """The key manager does not have it, does not give it to this caller, or does not answer; the message says which."""


class KeyManager:
    """What is kept in Castellan; raises MissingDependency without it, BadStoreConfiguration for no such backend."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        with needing(f"[{SECTION}]", "castellan"):
            from castellan import key_manager
            from castellan.common import exception
            from castellan.common.objects import x_509
            from oslo_context.context import RequestContext
        self._failures = (exception.CastellanException, exception.KeyManagerError, KeyError)
        self._missing = (exception.ManagedObjectNotFoundError, KeyError)
        self._x509: type[Any] = x_509.X509
        self._request = RequestContext
        try:
            self._manager: Any = key_manager.API(conf)
        except Exception as error:  # backends are the operator's own classes, too
            raise BadStoreConfiguration(f"[{SECTION}] backend cannot be used: {str(error)[:200]}") from error

    def certificate(self, context: Context, name: str) -> bytes:
        """The X.509 certificate (DER) that is kept under the id ``name``; raises KeyManagerFailed."""
        found = self._ask(lambda: self._manager.get(self._as(context), name), f"certificate {name}")
        if not isinstance(found, self._x509):
            raise KeyManagerFailed(f"{name} in the key manager is no X.509 certificate")
        encoded: bytes = found.get_encoded()
        return encoded

    def delete(self, context: Context, name: str) -> None:
        """Delete the key with this id; raises KeyManagerFailed."""
        self._ask(lambda: self._manager.delete(self._as(context), name), f"key {name}")

    def _ask(self, question: Any, what: str) -> Any:
        try:
            return question()
        except self._missing as error:
            raise KeyManagerFailed(f"the key manager has no {what} for this caller") from error
        except Exception as error:
            # What it says may have the addresses of servers in it.
            LOG.warning("the key manager: %s: %s", what, error)
            raise KeyManagerFailed(f"the key manager does not give {what}") from error

    def _as(self, context: Context) -> Any:
        """The caller in the form that Castellan's backends know."""
        return self._request(
            auth_token=context.auth_token,
            user_id=context.user_id,
            project_id=context.project_id,
            domain_id=context.domain_id,
            system_scope=context.system_scope,
            roles=list(context.roles),
            is_admin=context.is_admin,
            request_id=context.request_id or None,
            overwrite=False,
        )


def delete_key(keys: KeyManager | None, context: Context, image: Image) -> None:
    """Delete the key of a deleted image's encrypted volume, where its properties say so; what fails is logged.

    By the token of a user of the image's project only.
    """
    name = image.properties.get("cinder_encryption_key_id")
    if name is None or image.properties.get("cinder_encryption_key_deletion_policy") != "on_image_deletion":
        return
    try:
        if keys is None:
            raise KeyManagerFailed("no key manager is configured")
        if context.project_id != image.owner:
            # The id is its owner's to choose, and may be that of a key that only the caller may delete.
            raise KeyManagerFailed("the image is deleted by another project's user")
        keys.delete(context, name)
    except KeyManagerFailed as error:
        LOG.warning("image %s: its encryption key %s is not deleted: %s", image.id, name, error)


def key_manager_from(conf: cfg.ConfigOpts) -> KeyManager | None:
    """The key manager that the configuration names; None where it names none."""
    sections = {setting.group.lower() for setting in OptionReader(conf).settings}
    return KeyManager(conf) if sections & {SECTION, BARBICAN} else None
