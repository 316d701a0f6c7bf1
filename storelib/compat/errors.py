# SPDX-License-Identifier: Apache-2.0
"""storelib's errors as those of glance_store, which Glance catches by name."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from storelib import exceptions as ours
from storelib.compat.glance_store import exceptions as theirs

#: The most special first: an error becomes what the first class that it is of says.
_BY_CLASS: tuple[tuple[type[ours.StoreError], type[Exception]], ...] = (
    (ours.NotFound, theirs.NotFound),
    (ours.Duplicate, theirs.Duplicate),
    (ours.StorageFull, theirs.StorageFull),
    (ours.StorageWriteDenied, theirs.StorageWriteDenied),
    (ours.Forbidden, theirs.Forbidden),
    (ours.UnknownScheme, theirs.UnknownScheme),
    (ours.BadStoreUri, theirs.BadStoreUri),
    (ours.UnknownHashingAlgo, theirs.UnknownHashingAlgo),
    (ours.Invalid, theirs.Invalid),
    (ours.BadStoreConfiguration, theirs.BadStoreConfiguration),
    (ours.StoreRandomGetNotSupported, theirs.StoreRandomGetNotSupported),
    (ours.StoreGetNotSupported, theirs.StoreGetNotSupported),
    (ours.StoreAddDisabled, theirs.StoreAddDisabled),
    (ours.StoreDeleteNotSupported, theirs.StoreDeleteNotSupported),
    (ours.AclsNotSupported, NotImplementedError),
    (ours.OperationNotSupported, NotImplementedError),
    (ours.RemoteServiceUnavailable, theirs.RemoteServiceUnavailable),
    (ours.InUseByStore, theirs.InUseByStore),
    (ours.HasSnapshot, theirs.HasSnapshot),
    (ours.TransferTimeout, theirs.TimeoutError),
)


#: What operators look for in logs, in the words that they know.
_WRONG_SIZE = re.compile(r"the declared size is (\d+) bytes, but the source (?:has|ended after) (\d+|more)")


def _message(error: ours.StoreError) -> str:
    found = _WRONG_SIZE.match(str(error))
    if found is None:
        return str(error)
    expected, actual = found.groups()
    what = "exceeds" if actual == "more" or int(actual) > int(expected) else "mismatch"
    return f"Size {what}: expected {expected} bytes, got {actual} bytes; nothing was stored"


def translated(error: ours.StoreError) -> Exception:
    """The exception of glance_store that means the same; BackendException where none does."""
    kind = next((kind for ours_, kind in _BY_CLASS if isinstance(error, ours_)), theirs.BackendException)
    return kind(_message(error))


@contextlib.contextmanager
def translating(location: object = None) -> Iterator[None]:
    """Raise what storelib raises within as what glance_store would have raised; others pass.

    A ``location`` that was parsed before and lies elsewhere is an image that is not in this store.
    """
    try:
        yield
    except ours.BadStoreUri as error:
        if location is None or isinstance(error, ours.UnknownScheme):
            raise translated(error) from error
        raise theirs.NotFound(str(error)) from error
    except ours.StoreError as error:
        raise translated(error) from error


def misconfigured(store_name: str, error: ours.BadStoreConfiguration) -> theirs.BadStoreConfiguration:
    """The same for options, in glance_store's words around the reason."""
    return theirs.BadStoreConfiguration(store_name=store_name, reason=re.sub(r"^store [^,]+, ", "", str(error)))
