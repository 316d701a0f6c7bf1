# SPDX-License-Identifier: Apache-2.0
"""Which options to look at when Ceph refuses something; what its errors mean stands in storelib/librbd/errors.py."""

from __future__ import annotations

import errno

from storelib.exceptions import StoreError
from storelib.librbd import errors
from storelib.librbd.errors import Advice

_USER = "; check rbd_store_user and its capabilities (profile rbd)"
_KEY = "; check rbd_store_user and rbd_store_keyring"

ADVICE = Advice(
    connecting={
        errno.ENOENT: "; check rbd_store_ceph_conf, rbd_store_user and rbd_store_keyring",
        errno.EPERM: _KEY,
        errno.EACCES: _KEY,
        errno.EINVAL: "; check rbd_store_ceph_conf and rbd_store_keyring",
    },
    pool="; check rbd_store_pool",
    calls={errno.EPERM: _USER, errno.EACCES: _USER, errno.ETIMEDOUT: " (option rados_osd_op_timeout)"},
)


def storelib_error(error: Exception, subject: str) -> StoreError | None:
    """The error of storelib for one of the bindings; None if it is none of theirs."""
    return errors.storelib_error(error, subject, ADVICE)
