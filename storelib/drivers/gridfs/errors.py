# SPDX-License-Identifier: Apache-2.0
"""What an error of pymongo or an error code of MongoDB means: the only place that knows.

Of what a server sent only the code and the name of the command are repeated in a message.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from storelib.exceptions import (
    BadStoreConfiguration,
    Duplicate,
    Forbidden,
    RemoteServiceUnavailable,
    StorageFull,
    StorageWriteDenied,
    StoreError,
)

# https://github.com/mongodb/mongo/blob/master/src/mongo/base/error_codes.yml
DUPLICATE_KEY = 11000
_ATLAS = 8000
BAD_VALUE = 2
UNAUTHORIZED = 13
_WRITES = {"insert", "update", "delete", "createIndexes", "aggregate", "findAndModify", "create"}
_TRANSIENT = {
    6,  # HostUnreachable
    7,  # HostNotFound
    24,  # LockTimeout
    43,  # CursorNotFound
    50,  # MaxTimeMSExpired
    63,  # StaleShardVersion
    64,  # WriteConcernTimeout
    89,  # NetworkTimeout
    91,  # ShutdownInProgress
    112,  # WriteConflict
    133,  # FailedToSatisfyReadPreference
    150,  # StaleEpoch
    175,  # QueryPlanKilled: an index was made or dropped
    189,  # PrimarySteppedDown
    202,  # NetworkInterfaceExceededTimeLimit
    262,  # ExceededTimeLimit
    276,  # IndexBuildAborted
    317,  # ConnectionPoolExpired
    358,  # InternalTransactionNotSupported
    364,  # IngressRequestRateLimitExceeded
    402,  # ResourceExhausted
    9001,  # SocketException
    10058,  # LegacyNotPrimary
    10107,  # NotWritablePrimary
    11600,  # InterruptedAtShutdown
    11602,  # InterruptedDueToReplStateChange
    13388,  # StaleConfig
    13435,  # NotPrimaryNoSecondaryOk
    13436,  # NotPrimaryOrSecondary
}


def storelib_error(error: Exception, subject: str) -> StoreError | None:
    """The error of storelib for one of pymongo; None if it is not known."""
    from bson.errors import BSONError
    from pymongo import errors as pymongo

    if isinstance(error, pymongo.OperationFailure):
        return _of_response(error, subject)
    if "CERTIFICATE_VERIFY_FAILED" in str(error) and isinstance(error, pymongo.PyMongoError):
        return RemoteServiceUnavailable(
            f"{subject}: the certificate of the server is not trusted; if it should be, set mongodb_store_tls_ca_file",
            transient=False,
        )
    for kinds, known in (
        ((pymongo.NetworkTimeout, pymongo.ExecutionTimeout), "the server did not answer in time"),
        ((pymongo.WaitQueueTimeoutError,), "too many requests wait for a connection"),
        ((pymongo.NotPrimaryError,), "the server is no longer the primary of its replica set"),
        ((pymongo.ServerSelectionTimeoutError,), "no server that fits is to be found; see mongodb_store_uri"),
        ((pymongo.ConnectionFailure, pymongo.ProtocolError), "the connection was refused or cut"),
    ):
        if isinstance(error, kinds):
            return RemoteServiceUnavailable(f"{subject}: {known}")
    if isinstance(error, (pymongo.ConfigurationError, pymongo.InvalidURI)):
        return BadStoreConfiguration(f"{subject}: the client refuses the options; check mongodb_store_uri")
    if isinstance(error, (pymongo.PyMongoError, BSONError)):
        return StoreError(f"{subject}: {type(error).__name__}")
    return None


def raise_for(reply: Any, sent: int) -> None:
    """Raise what a reply to ``insert`` says went wrong; that a document with the same key is there is no error.

    A reply that does not account for all ``sent`` documents says nothing.
    """
    from pymongo.errors import OperationFailure, ProtocolError, WriteConcernError

    there = reply.get("n", 0)
    for failed in reply.get("writeErrors", ()):
        there += 1
        if failed.get("code") != DUPLICATE_KEY:
            raise OperationFailure(str(failed.get("errmsg")), failed.get("code"), failed)
    concern = reply.get("writeConcernError")
    if concern:
        raise WriteConcernError(str(concern.get("errmsg")), concern.get("code"), concern)
    if there != sent:
        raise ProtocolError(f"{there} of {sent} documents were accounted for")


def _of_response(error: Any, subject: str) -> StoreError:
    code = error.code
    message = str((error.details or {}).get("errmsg") or error)
    found = re.search(r"execute command \{ (\w+):|not allowed to do action \[(\w+)\]", message)
    command = next(filter(None, found.groups()), "") if found else ""
    text = f"{subject}: the server answered with error {code}" + (f" to {command}" if command else "")
    known = _BY_CODE.get(code)
    if code == BAD_VALUE:
        known = next((known for words, known in _OF_CONCERN if words in message), None)
    if code == _ATLAS:
        # A hosted server's one code for what its proxy refuses.
        known = _full if "space quota" in message else _denied if "not allowed" in message else None
    if known is not None:
        return known(text, command)
    # A server's own word for "may succeed when tried again", also for codes to come.
    transient = code in _TRANSIENT or any(
        map(error.has_error_label, ("RetryableWriteError", "TransientTransactionError"))
    )
    return RemoteServiceUnavailable(text) if transient else StoreError(text)


def _denied(text: str, command: str) -> StoreError:
    if command in _WRITES:
        return StorageWriteDenied(f"{text}: it needs a user with the role readWrite, or read_only")
    return Forbidden(f"{text}: the user may not do that")


def _full(text: str, command: str) -> StoreError:
    return StorageFull(f"{text}: there is no room left")


def _hinting(kind: type[StoreError], hint: str) -> Callable[[str, str], StoreError]:
    return lambda text, command: kind(f"{text}; {hint}")


_concern_refused = _hinting(BadStoreConfiguration, "check mongodb_store_write_concern, and w in mongodb_store_uri")
#: What a server says with BAD_VALUE that is no member of a replica set, or has no journal.
_OF_CONCERN = (
    ("cannot use 'w'", _concern_refused),
    ("cannot use non-majority 'w'", _concern_refused),
    (
        "cannot use 'j'",
        _hinting(
            BadStoreConfiguration,
            "it keeps no journal, without which images may be lost, whatever mongodb_store_journal says: "
            "set storage.journal.enabled",
        ),
    ),
)
_BY_CODE: dict[int | None, Callable[[str, str], StoreError]] = {
    11: _hinting(Forbidden, "check the user in mongodb_store_uri"),  # UserNotFound
    13: _denied,  # Unauthorized
    18: _hinting(Forbidden, "check user, password and authSource in mongodb_store_uri"),  # AuthenticationFailed
    67: _hinting(BadStoreConfiguration, "an index that ids need cannot be made"),  # CannotCreateIndex
    73: _hinting(BadStoreConfiguration, "check mongodb_store_db and mongodb_store_bucket"),  # InvalidNamespace
    79: _concern_refused,  # UnknownReplWriteConcern
    85: _hinting(BadStoreConfiguration, "an index of the bucket has other options"),  # IndexOptionsConflict
    86: _hinting(BadStoreConfiguration, "an index of the bucket has other options"),  # IndexKeySpecsConflict
    100: _concern_refused,  # UnsatisfiableWriteConcern
    DUPLICATE_KEY: _hinting(Duplicate, "it exists"),
    12501: _full,  # over the space quota, as older servers say it
    14031: _full,  # OutOfDiskSpace
}
