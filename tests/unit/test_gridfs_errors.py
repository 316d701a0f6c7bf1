# SPDX-License-Identifier: Apache-2.0
"""What errors of pymongo and codes of MongoDB become."""

import pytest
from bson.errors import InvalidBSON
from pymongo import errors as pymongo

from storelib.drivers.gridfs.errors import raise_for, storelib_error
from storelib.exceptions import (
    BadStoreConfiguration,
    Duplicate,
    Forbidden,
    RemoteServiceUnavailable,
    StorageFull,
    StorageWriteDenied,
    StoreError,
)

SECRET = "s3cr3t"


def answer(code, errmsg="", **details):
    return pymongo.OperationFailure(f"{errmsg} {SECRET}", code, {"errmsg": f"{errmsg} {SECRET}", **details})


ERRORS = [
    (answer(18), Forbidden, False),
    (answer(11), Forbidden, False),
    (answer(13, "not authorized on images to execute command { find: 'fs.files' }"), Forbidden, False),
    (answer(13, "not authorized on images to execute command { insert: 'fs.files' }"), StorageWriteDenied, False),
    (answer(13, "not authorized on images to execute command { createIndexes: 'x' }"), StorageWriteDenied, False),
    (answer(13), Forbidden, False),
    (answer(14031), StorageFull, False),
    (answer(8000, "you are over your space quota, using 513 MB of 512 MB"), StorageFull, False),
    (answer(8000, "user is not allowed to do action [insert] on [images.fs.files]"), StorageWriteDenied, False),
    (answer(8000, "something else"), StoreError, False),
    (answer(11000), Duplicate, False),
    (answer(85), BadStoreConfiguration, False),
    (answer(86), BadStoreConfiguration, False),
    (answer(100), BadStoreConfiguration, False),
    (answer(79), BadStoreConfiguration, False),
    (answer(91), RemoteServiceUnavailable, True),
    (answer(11600), RemoteServiceUnavailable, True),
    (answer(10107), RemoteServiceUnavailable, True),
    (answer(262), RemoteServiceUnavailable, True),
    (answer(64), RemoteServiceUnavailable, True),
    (answer(99999, errorLabels=["RetryableWriteError"]), RemoteServiceUnavailable, True),
    (answer(99999), StoreError, False),
    (pymongo.WTimeoutError(SECRET, 64, {}), RemoteServiceUnavailable, True),
    (pymongo.NotPrimaryError(SECRET), RemoteServiceUnavailable, True),
    (pymongo.AutoReconnect(SECRET), RemoteServiceUnavailable, True),
    (pymongo.NetworkTimeout(SECRET), RemoteServiceUnavailable, True),
    (pymongo.WaitQueueTimeoutError(SECRET), RemoteServiceUnavailable, True),
    (pymongo.ServerSelectionTimeoutError(SECRET), RemoteServiceUnavailable, True),
    (pymongo.ServerSelectionTimeoutError("[SSL: CERTIFICATE_VERIFY_FAILED]"), RemoteServiceUnavailable, False),
    (pymongo.ProtocolError(SECRET), RemoteServiceUnavailable, True),
    (pymongo.ConfigurationError(SECRET), BadStoreConfiguration, False),
    (pymongo.InvalidURI(SECRET), BadStoreConfiguration, False),
    (pymongo.InvalidOperation(SECRET), StoreError, False),
    (InvalidBSON(SECRET), StoreError, False),
]


@pytest.mark.parametrize(("error", "expected", "transient"), ERRORS, ids=[f"{kind[0]!r:.60}" for kind in ERRORS])
def test_every_error_has_its_meaning(error, expected, transient):
    known = storelib_error(error, "image 'x'")
    assert (type(known), known.transient) == (expected, transient)
    assert str(known).startswith("image 'x'")
    assert SECRET not in str(known)


@pytest.mark.parametrize(
    ("said", "option"),
    [
        ("cannot use 'w' > 1 when a host is not replicated", "mongodb_store_write_concern"),
        ("cannot use non-majority 'w' mode \"x\" when a host is not a member of a replica set", "mongodb_store_uri"),
        ("cannot use 'j' option when a host does not have journaling enabled", "mongodb_store_journal"),
    ],
)
def test_what_no_write_can_wait_for_is_a_configuration_error_that_names_the_option(said, option):
    known = storelib_error(answer(2, said), "image 'x'")
    assert (type(known), known.transient) == (BadStoreConfiguration, False)
    assert option in str(known)


def test_other_bad_values_are_no_matter_of_configuration():
    assert type(storelib_error(answer(2, "bad regular expression"), "image 'x'")) is StoreError


@pytest.mark.parametrize("error", [ValueError("x"), OSError("x"), KeyError("x")])
def test_errors_of_nobody_pass_unchanged(error):
    assert storelib_error(error, "image") is None


def test_chunks_that_are_there_already_are_no_error():
    raise_for({"ok": 1.0, "n": 0, "writeErrors": [{"index": 0, "code": 11000, "errmsg": "E11000"}]}, 1)


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ({"ok": 1.0, "writeErrors": [{"code": 11000}, {"code": 14031, "errmsg": "full"}]}, 14031),
        ({"ok": 1.0, "writeConcernError": {"code": 64, "errmsg": "waiting for replication timed out"}}, 64),
    ],
)
def test_what_went_wrong_with_a_write_is_raised(reply, code):
    with pytest.raises(pymongo.OperationFailure) as caught:
        raise_for(reply, 2)
    assert caught.value.code == code


@pytest.mark.parametrize("reply", [{}, {"ok": 1.0}, {"ok": 1.0, "n": 1}, {"ok": 1.0, "n": 3}])
def test_reply_that_does_not_account_for_all_documents_is_tried_again(reply):
    with pytest.raises(pymongo.ProtocolError):
        raise_for(reply, 2)
