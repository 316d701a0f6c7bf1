# SPDX-License-Identifier: Apache-2.0
"""storelib.librbd without a cluster: what is told to Ceph, and what is told to people."""

import errno

from storelib.exceptions import Forbidden
from storelib.librbd.cluster import Settings
from storelib.librbd.errors import Advice, storelib_error


class FromCeph(Exception):
    """An error as the bindings raise them."""

    errno = errno.EPERM


FromCeph.__module__ = "rados"


def test_only_what_is_given_is_told_to_ceph():
    assert Settings("pool").of_ceph() == {"rbd_cache": "false"}


def test_addresses_and_key_are_told_to_ceph():
    settings = Settings("pool", conf_file=None, mon_hosts=("192.0.2.1:6789", "[2001:db8::1]:6789"), key="c2VjcmV0")
    assert settings.of_ceph()["mon_host"] == "192.0.2.1:6789,[2001:db8::1]:6789"
    assert settings.of_ceph()["key"] == "c2VjcmV0"
    assert "c2VjcmV0" not in repr(settings)


def test_no_question_takes_longer_than_all_may():
    settings = Settings("pool", connect_timeout=30, osd_op_timeout=2, mon_op_timeout=0, longest_timeout=2.5)
    told = settings.of_ceph()
    assert told["client_mount_timeout"] == "3"
    assert told["rados_osd_op_timeout"] == "2"
    assert told["rados_mon_op_timeout"] == "0"


def test_advice_is_put_behind_the_meaning():
    found = storelib_error(FromCeph(), "volume", Advice(calls={errno.EPERM: "; check its user"}))
    assert type(found) is Forbidden
    assert str(found) == "volume: the user may not do that; check its user (EPERM)"
    assert str(storelib_error(FromCeph(), "volume", Advice())) == "volume: the user may not do that (EPERM)"
