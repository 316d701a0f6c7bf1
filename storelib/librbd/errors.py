# SPDX-License-Identifier: Apache-2.0
"""What an error of librados or librbd means: the only place that knows. Both say it with an errno."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field

from storelib.exceptions import (
    BadStoreConfiguration,
    Duplicate,
    Forbidden,
    HasSnapshot,
    InUseByStore,
    NotFound,
    OperationNotSupported,
    RemoteServiceUnavailable,
    StorageFull,
    StoreError,
    TransferTimeout,
)

#: The cluster does not talk to this client any more (it was blocklisted): only a new connection helps.
DISCONNECTED = (errno.ESHUTDOWN, errno.ENOTCONN)

_OF_CALLS: dict[int, tuple[type[StoreError], str]] = {
    errno.ENOENT: (NotFound, "there is no such image or snapshot"),
    errno.EEXIST: (Duplicate, "the image exists"),
    errno.EPERM: (Forbidden, "the user may not do that"),
    errno.EACCES: (Forbidden, "the user may not do that"),
    errno.ENOSPC: (StorageFull, "the pool is full"),
    errno.EDQUOT: (StorageFull, "the pool has reached its quota"),
    errno.EBUSY: (InUseByStore, "the image is in use"),
    errno.ENOTEMPTY: (HasSnapshot, "the image has snapshots"),
    errno.EOPNOTSUPP: (OperationNotSupported, "the cluster or the image cannot do that"),
    errno.ENOSYS: (OperationNotSupported, "the cluster or the image cannot do that"),
    errno.EROFS: (RemoteServiceUnavailable, "another client holds the lock of the image"),
    errno.EIO: (RemoteServiceUnavailable, "input/output error"),
    **dict.fromkeys(DISCONNECTED, (RemoteServiceUnavailable, "the cluster has shut this client out")),
}
_OF_CONNECTING: dict[int, tuple[type[StoreError], str]] = {
    errno.ENOENT: (BadStoreConfiguration, "Ceph's configuration or the user's key was not found"),
    errno.EPERM: (Forbidden, "the cluster does not accept the user or the key"),
    errno.EACCES: (Forbidden, "the cluster does not accept the user or the key"),
    errno.EINVAL: (BadStoreConfiguration, "Ceph's configuration makes no sense"),
}


@dataclass(frozen=True)
class Advice:
    """What a user can do about an error, by its errno: put behind its meaning, as it may name a driver's options."""

    connecting: Mapping[int, str] = field(default_factory=dict)
    #: For a pool that is not there.
    pool: str = ""
    calls: Mapping[int, str] = field(default_factory=dict)


def code_of(error: BaseException) -> int:
    """The errno of an error of librados or librbd, 0 for any other."""
    return abs(int(getattr(error, "errno", None) or 0)) if _is_of_ceph(error) else 0


def storelib_error(error: Exception, subject: str, advice: Advice) -> StoreError | None:
    """The error of storelib for one of the bindings; None if it is none of theirs."""
    if not _is_of_ceph(error):
        return None
    code = code_of(error)
    hint = advice.calls.get(code, "")
    if code == errno.ETIMEDOUT:
        return TransferTimeout(f"{subject}: the cluster did not answer in time{hint}", transient=True)
    kind, meaning = _OF_CALLS.get(code, (StoreError, type(error).__name__))
    return kind(f"{subject}: {meaning}{hint} ({errno.errorcode.get(code, 'no error number')})")


def connection_error(error: Exception, subject: str, advice: Advice) -> StoreError:
    """Why there is no connection."""
    code = code_of(error)
    if code in _OF_CONNECTING:
        kind, meaning = _OF_CONNECTING[code]
        return kind(f"{subject}: {meaning}{advice.connecting.get(code, '')}")
    name = errno.errorcode.get(code, type(error).__name__)
    return RemoteServiceUnavailable(f"{subject}: no connection to the cluster ({name})")


def _is_of_ceph(error: BaseException) -> bool:
    return type(error).__module__ in ("rados", "rbd")
