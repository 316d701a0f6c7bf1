# SPDX-License-Identifier: Apache-2.0
"""What an error of librados or librbd means: the only place that knows. Both say it with an errno."""

from __future__ import annotations

import errno

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

_NAMES = {
    errno.ENOENT: (NotFound, "there is no such image or snapshot"),
    errno.EEXIST: (Duplicate, "the image exists"),
    errno.EPERM: (Forbidden, "the user may not do that; check rbd_store_user and its capabilities (profile rbd)"),
    errno.EACCES: (Forbidden, "the user may not do that; check rbd_store_user and its capabilities (profile rbd)"),
    errno.ENOSPC: (StorageFull, "the pool is full"),
    errno.EDQUOT: (StorageFull, "the pool has reached its quota"),
    errno.EBUSY: (InUseByStore, "the image is in use"),
    errno.ENOTEMPTY: (HasSnapshot, "the image has snapshots"),
    errno.EOPNOTSUPP: (OperationNotSupported, "the cluster or the image cannot do that"),
    errno.ENOSYS: (OperationNotSupported, "the cluster or the image cannot do that"),
    errno.EROFS: (RemoteServiceUnavailable, "somebody else holds the lock of the image"),
    errno.EIO: (RemoteServiceUnavailable, "input/output error"),
    **dict.fromkeys(DISCONNECTED, (RemoteServiceUnavailable, "the cluster has shut this client out")),
}


def code_of(error: BaseException) -> int:
    """The errno of an error of librados or librbd, 0 for any other."""
    if type(error).__module__ not in ("rados", "rbd"):
        return 0
    return abs(int(getattr(error, "errno", None) or 0))


def storelib_error(error: Exception, subject: str) -> StoreError | None:
    """The error of storelib for one of the bindings; None if it is none of theirs."""
    if type(error).__module__ not in ("rados", "rbd"):
        return None
    code = code_of(error)
    if code == errno.ETIMEDOUT:
        return TransferTimeout(
            f"{subject}: the cluster did not answer in time (option rados_osd_op_timeout)", transient=True
        )
    kind, meaning = _NAMES.get(code, (StoreError, type(error).__name__))
    return kind(f"{subject}: {meaning} ({errno.errorcode.get(code, 'no error number')})")


def connection_error(error: Exception, store_name: str) -> StoreError:
    """Why there is no connection, in terms of the options that are to be looked at."""
    code = code_of(error)
    if code == errno.ENOENT:
        return BadStoreConfiguration(
            f"store {store_name}: Ceph's configuration or the user's key was not found; "
            "check rbd_store_ceph_conf, rbd_store_user and rbd_store_keyring"
        )
    if code in (errno.EPERM, errno.EACCES):
        return Forbidden(
            f"store {store_name}: the cluster does not accept the user or the key; "
            "check rbd_store_user and rbd_store_keyring"
        )
    if code == errno.EINVAL:
        return BadStoreConfiguration(
            f"store {store_name}: Ceph's configuration makes no sense; check rbd_store_ceph_conf and rbd_store_keyring"
        )
    return RemoteServiceUnavailable(
        f"store {store_name}: no connection to the cluster ({errno.errorcode.get(code, type(error).__name__)})"
    )
