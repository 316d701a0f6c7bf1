# SPDX-License-Identifier: Apache-2.0
"""What a fault of vCenter, an HTTP status, or an error of http.client and the socket means: the only place that knows.

Faults are told by the names of their classes, so that this needs no pyVmomi. Nothing a server sent is repeated.
"""

from __future__ import annotations

import http.client
import xml.parsers.expat

from storelib.exceptions import (
    BadStoreConfiguration,
    Duplicate,
    Forbidden,
    InUseByStore,
    NotFound,
    RemoteServiceUnavailable,
    StorageFull,
    StorageWriteDenied,
    StoreError,
)
from storelib.transfer.http import errors
from storelib.transfer.http.server import HttpError


class NothingTold(Exception):
    """vCenter left out a property that was asked for: the user may not see it, or the session has ended."""


class NotSoap(Exception):
    """What answers a call is no vCenter, but perhaps something that stands in for it."""


def fault_names(error: BaseException) -> set[str]:
    """The names of the fault and of all that it is one of, as FileNotFound and FileFault; nothing for other errors."""
    return {kind.__name__.rpartition(".")[2] for kind in type(error).__mro__ if kind.__module__.startswith("pyVmomi")}


def is_fault(error: BaseException, *names: str) -> bool:
    """Whether it is one of these faults."""
    return not fault_names(error).isdisjoint(names)


def is_session_lost(error: BaseException) -> bool:
    """The session has ended, or may have."""
    if isinstance(error, HttpError):
        return error.status == http.HTTPStatus.UNAUTHORIZED
    return isinstance(error, NothingTold) or is_fault(error, "NotAuthenticated")


def storelib_error(error: Exception, subject: str) -> StoreError | None:
    """The error for one of the client's; None if it is not known."""
    if isinstance(error, HttpError):
        return _of_status(error.method, error.status, subject)
    if isinstance(error, NothingTold):
        return RemoteServiceUnavailable(f"{subject}: vCenter does not tell {error}; may the user see it?")
    names = fault_names(error)
    if names:
        return _of_fault(names, subject)
    if isinstance(error, NotSoap | xml.parsers.expat.ExpatError):
        return RemoteServiceUnavailable(f"{subject}: what answers is no vCenter, or its response was cut")
    return errors.error_of_failure(error, subject, "vmware_ca_file or vmware_thumbprint")


def _of_status(method: str, status: int, subject: str) -> StoreError:
    text = f"{subject}: vCenter answered {status}"
    if method == "POST" and status in (http.HTTPStatus.NOT_FOUND, http.HTTPStatus.GONE):
        # That is no image's fault: nobody takes calls there.
        return RemoteServiceUnavailable(text, transient=False)
    if status in (http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE, http.HTTPStatus.INSUFFICIENT_STORAGE):
        return StorageFull(text)
    return errors.error_of_status(status, {}, text)


def _of_fault(names: set[str], subject: str) -> StoreError:
    if "FileAlreadyExists" in names:
        return Duplicate(f"{subject} exists")
    if "FileNotFound" in names:
        return NotFound(f"{subject}: vCenter has no such file")
    if names & {"NoDiskSpace", "InsufficientStorageSpace", "InsufficientDisks"}:
        return StorageFull(f"{subject}: the datastore has no room")
    if "FileLocked" in names:
        return InUseByStore(f"{subject}: the file is in use")
    if "InvalidLogin" in names:
        return Forbidden(f"{subject}: vCenter refuses the user (vmware_server_username, vmware_server_password)")
    if "NotAuthenticated" in names:
        return RemoteServiceUnavailable(f"{subject}: vCenter has ended the session")
    if names & {"NoPermission", "RestrictedByAdministrator"}:
        return Forbidden(f"{subject}: vCenter does not allow the user to do this")
    # To vCenter, a datastore that is away or read-only for its host is an InvalidDatastore, too.
    if "InaccessibleDatastore" in names:
        return RemoteServiceUnavailable(f"{subject}: vCenter cannot reach the datastore now")
    if names & {"CannotCreateFile", "CannotDeleteFile", "FileNotWritable", "DatastoreNotWritableOnHost"}:
        return StorageWriteDenied(f"{subject}: vCenter cannot write to the datastore")
    if names & {"InvalidDatastore", "InvalidDatastorePath"}:
        return BadStoreConfiguration(f"{subject}: vCenter knows no such datastore (vmware_datastores)")
    what = sorted(names, key=len)[-1]
    transient = bool(
        names & {"HostCommunication", "TaskInProgress", "SystemError", "Timedout", "ManagedObjectNotFound"}
    )
    return RemoteServiceUnavailable(f"{subject}: vCenter reports {what}", transient=transient)
