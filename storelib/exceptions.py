# SPDX-License-Identifier: Apache-2.0
"""Every error storelib raises on purpose: one class for each thing a caller can do about it.

Messages are whole sentences that name the option, URI or id at fault and never carry a credential.
"""

from __future__ import annotations

import collections.abc


class StoreError(Exception):
    """Root of all storelib errors.

    ``transient`` says whether the same call may succeed later; ``retry_after`` is how many seconds the
    back end asked to wait, if it did. Only the transfer engine retries.
    """

    transient: bool = False
    retry_after: float | None = None

    def __init__(self, message: str = "", *, transient: bool | None = None, retry_after: float | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").partition("\n")[0])
        if transient is not None:
            self.transient = transient
        self.retry_after = retry_after

    @property
    def msg(self) -> str:
        """The message, under the name callers of glance_store know."""
        return str(self)


class NotFound(StoreError):
    """There is no such image."""


class Duplicate(StoreError):
    """An image with this id exists already; it was left untouched."""


class StorageFull(StoreError):
    """The back end has no room for the image."""


class StorageWriteDenied(StoreError):
    """The back end does not let this store write (permissions, read-only media)."""


class Forbidden(StoreError):
    """The back end, or storelib's own rules, do not allow this."""


class Invalid(StoreError):
    """The caller's data or argument is wrong: an id, a range, a size, a source."""


class BadStoreUri(Invalid):
    """The URI is malformed, or does not belong to the store it was used with."""


class UnknownScheme(BadStoreUri):
    """No store serves the scheme of this URI, or no store has this name."""


class UnknownHashingAlgo(Invalid):
    """The algorithm does not exist here, or has no fixed digest length."""


class BadStoreConfiguration(StoreError):
    """The configuration is wrong; the message names file, group, option and value."""


def misconfigured(store_name: str, option: str, why: str) -> BadStoreConfiguration:
    """The error of one option of a store; ``why`` says what it has to be."""
    return BadStoreConfiguration(f"store {store_name}, option {option}: {why}")


class MissingDependency(BadStoreConfiguration):
    """A driver's client library is not installed; the message says which extra to install."""


class OperationNotSupported(StoreError):
    """This store cannot do that; its capabilities say so."""


class StoreGetNotSupported(OperationNotSupported):
    """This store cannot read images."""


class StoreRandomGetNotSupported(StoreGetNotSupported):
    """This store reads whole images only, no ranges."""


class StoreAddDisabled(OperationNotSupported):
    """This store cannot add images; the message says why."""


class StoreDeleteNotSupported(OperationNotSupported):
    """This store cannot delete images."""


class AclsNotSupported(OperationNotSupported):
    """This store has no access control lists."""


class RemoteServiceUnavailable(StoreError):
    """The back end does not respond, or responds with an error of its own."""

    transient = True


class InUseByStore(StoreError):
    """The image is in use in the back end and cannot be deleted now."""


class HasSnapshot(StoreError):
    """The image has snapshots or clones in the back end and cannot be deleted."""


class IncompleteRead(StoreError):
    """The back end delivered fewer, more or other bytes than the image has."""


class ImageChanged(IncompleteRead):
    """The image was replaced while it was being read; start again from the beginning."""


class DigestMismatch(IncompleteRead):
    """What was read has another digest than expected: it was changed on the way, or where it lies.

    ``algorithm`` is that of both digests, ``expected`` and ``found`` are hexadecimal.
    """

    def __init__(self, message: str = "", *, algorithm: str = "", expected: str = "", found: str = "") -> None:
        super().__init__(message)
        self.algorithm = algorithm
        self.expected = expected
        self.found = found


class TransferTimeout(StoreError):
    """Nothing moved for longer than the store's transfer_timeout."""


def causes(error: BaseException) -> collections.abc.Iterator[BaseException]:
    """The error, what it was raised from or beside, and so on, each of them once: one may be its own cause."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__
