# SPDX-License-Identifier: Apache-2.0
"""What errors of Cinder, Keystone and Ceph mean: the only place that knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storelib.exceptions import (
    BadStoreConfiguration,
    Forbidden,
    NotFound,
    RemoteServiceUnavailable,
    StorageFull,
    StoreError,
)
from storelib.transfer.http.keystone import is_untrusted

#: Attachments are completed (3.44), volumes grown while they are attached (3.42), attachments read-only (3.54).
MICROVERSION = "3.54"
#: Responses that say no more than that a service is busy, restarting, or gone from behind a proxy.
_TRANSIENT = {408, 409, 425, 429, 500, 502, 503, 504}


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an error of cinderclient; None for any other."""
    if not type(error).__module__.startswith("cinderclient."):
        return None
    code = getattr(error, "code", None)
    return code if isinstance(code, int) else None


def is_proven(status: int, document: Any) -> bool:
    """Whether a response that is no success comes from Cinder or Keystone's middleware, or may come from anything.

    Only Cinder's own word is taken for that something is not there, or was refused.
    """
    if status < 400:
        return False
    return status in (401, 403) or status in _TRANSIENT or is_explained(document)


def is_explained(document: Any) -> bool:
    """Whether a response has the form in which Cinder says what is wrong; cinderclient fails at some others."""
    inner = list(document.values()) if isinstance(document, Mapping) else []
    return bool(inner) and all(isinstance(each, Mapping) for each in inner)


def storelib_error(error: Exception, subject: str) -> StoreError | None:
    """The error of storelib for one of the clients; None if it is none of theirs. Their texts may hold URLs."""
    status = status_of(error)
    if status is not None:
        return _of_status(status, _retry_after(error), subject)
    module = type(error).__module__
    if module.startswith("keystoneauth1."):
        return _of_keystone(error, subject)
    if isinstance(error, OSError) and module == "builtins" and not isinstance(error, ConnectionError | TimeoutError):
        return StoreError(
            f"{subject}: something on this host, not in Cinder: {error.strerror or type(error).__name__}; check "
            "cinder_state_path and cinder_mount_point_base"
        )
    if module.startswith(("requests.", "urllib3.")) or (module == "builtins" and isinstance(error, OSError)):
        return RemoteServiceUnavailable(f"{subject}: no response from Cinder or Keystone ({type(error).__name__})")
    if module.startswith("cinderclient."):
        return RemoteServiceUnavailable(f"{subject}: Cinder's response makes no sense ({type(error).__name__})")
    return None


def _of_status(status: int, retry_after: float | None, subject: str) -> StoreError:
    if status in (401, 403):
        return Forbidden(f"{subject}: Cinder does not allow that, or not any more ({status}); check user and project")
    if status == 404:
        return NotFound(f"{subject}: there is no such volume")
    if status == 406:
        return BadStoreConfiguration(
            f"{subject}: this Cinder is too old, or offers less: the cinder driver needs version {MICROVERSION} of its "
            "API, which came with Rocky"
        )
    if status == 413 and not retry_after:
        return StorageFull(f"{subject}: the project's quota in Cinder is used up")
    if status in _TRANSIENT or status == 413:
        return RemoteServiceUnavailable(f"{subject}: Cinder answered {status}", retry_after=retry_after)
    return StoreError(f"{subject}: Cinder refused that ({status})")


def _of_keystone(error: Exception, subject: str) -> StoreError:
    from keystoneauth1 import exceptions

    if isinstance(error, exceptions.Unauthorized):
        return Forbidden(
            f"{subject}: Keystone does not accept the user or the password; check cinder_store_user_name, _password "
            "and _project_name"
        )
    if is_untrusted(error):
        return RemoteServiceUnavailable(
            f"{subject}: the certificate of Cinder or Keystone is not trusted; check cinder_ca_certificates_file",
            transient=False,
        )
    if isinstance(error, exceptions.CatalogException | exceptions.EndpointNotFound):
        return BadStoreConfiguration(
            f"{subject}: the catalog has no such service; check cinder_catalog_info and cinder_os_region_name"
        )
    if isinstance(error, exceptions.InvalidResponse):
        return RemoteServiceUnavailable(
            f"{subject}: what answers at cinder_store_auth_address is no identity service: a page, a redirect, a portal"
        )
    if isinstance(error, exceptions.HttpError) and error.http_status not in _TRANSIENT:
        return Forbidden(f"{subject}: Keystone refused ({error.http_status}); check cinder_store_auth_address")
    return RemoteServiceUnavailable(f"{subject}: no response from Cinder or Keystone ({type(error).__name__})")


def _retry_after(error: Any) -> float | None:
    try:
        seconds = float(getattr(error, "retry_after", None) or 0)
    except (TypeError, ValueError):
        return None
    return seconds if 0 < seconds < 3600 else None
