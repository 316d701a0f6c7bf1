# SPDX-License-Identifier: Apache-2.0
"""glance_store's exceptions: names, hierarchy, ``msg`` and the arguments of their messages."""

from __future__ import annotations

import contextlib
import urllib.parse
from typing import Any

__all__ = [
    "AuthBadRequest",
    "AuthUrlNotFound",
    "AuthorizationFailure",
    "AuthorizationRedirect",
    "BackendException",
    "BadAuthStrategy",
    "BadStoreConfiguration",
    "BadStoreUri",
    "DriverLoadFailure",
    "Duplicate",
    "Forbidden",
    "GlanceStoreException",
    "HasSnapshot",
    "HostNotInitialized",
    "InUseByStore",
    "Invalid",
    "MaxRedirectsExceeded",
    "MissingCredentialError",
    "NoServiceEndpoint",
    "NotAuthenticated",
    "NotFound",
    "RedirectException",
    "RegionAmbiguity",
    "RemoteServiceUnavailable",
    "StorageFull",
    "StorageWriteDenied",
    "StoreAddDisabled",
    "StoreDeleteNotSupported",
    "StoreGetNotSupported",
    "StoreRandomGetNotSupported",
    "TimeoutError",
    "UnknownHashingAlgo",
    "UnknownScheme",
    "UnsupportedBackend",
    "urllib",
]


class BackendException(Exception):
    """What a back end failed with that has no name of its own."""


class UnsupportedBackend(BackendException):
    """There is no such store."""


class RedirectException(Exception):
    """A request is to be made elsewhere: ``url``, taken apart."""

    def __init__(self, url: str) -> None:
        self.url = urllib.parse.urlparse(url)


class GlanceStoreException(Exception):
    """The root of the others. ``message`` of the class is filled with the arguments; ``msg`` is the result."""

    message = "An unknown exception occurred"

    def __init__(self, message: str | None = None, **kwargs: Any) -> None:
        text = message or self.message
        if kwargs:
            # Whatever an argument does when it is shown: the error that is raised here matters more.
            with contextlib.suppress(Exception):
                text = text % kwargs
        self.msg = text
        super().__init__(text)


class MissingCredentialError(GlanceStoreException):
    """A credential that is needed was not given."""

    message = "Missing required credential: %(required)s"


class BadAuthStrategy(GlanceStoreException):
    """Credentials of another kind than expected."""

    message = 'Incorrect auth strategy, expected "%(expected)s" but received "%(received)s"'


class AuthorizationRedirect(GlanceStoreException):
    """Credentials are to be had elsewhere."""

    message = "Redirecting to %(uri)s for authorization."


class NotFound(GlanceStoreException):
    """There is no such image."""

    message = "Image %(image)s not found"


class UnknownHashingAlgo(GlanceStoreException):
    """An algorithm that cannot be used."""

    message = "Unknown hashing algorithm identifier: %(algo)s"


class UnknownScheme(GlanceStoreException):
    """No store serves this scheme, or none has this name."""

    message = "Unknown scheme '%(scheme)s' found in URI"


class BadStoreUri(GlanceStoreException):
    """A URI that cannot be."""

    message = "The Store URI was malformed: %(uri)s"


class Duplicate(GlanceStoreException):
    """There is such an image already."""

    message = "Image %(image)s already exists"


class StorageFull(GlanceStoreException):
    """The back end has no room."""

    message = "There is not enough disk space on the image storage media."


class StorageWriteDenied(GlanceStoreException):
    """The back end does not let the store write."""

    message = "Permission to write image storage media denied."


class AuthBadRequest(GlanceStoreException):
    """The identity service does not understand."""

    message = "Connect error/bad request to Auth service at URL %(url)s."


class AuthUrlNotFound(GlanceStoreException):
    """There is no identity service at that URL."""

    message = "Auth service at URL %(url)s not found."


class AuthorizationFailure(GlanceStoreException):
    """Credentials were refused."""

    message = "Authorization failed."


class NotAuthenticated(GlanceStoreException):
    """There are no credentials where some are needed."""

    message = "You are not authenticated."


class Forbidden(GlanceStoreException):
    """The back end does not allow this."""

    message = "You are not authorized to complete this action."


class Invalid(GlanceStoreException):
    """The caller's data is wrong."""

    message = "Data supplied was not valid."


class BadStoreConfiguration(GlanceStoreException):
    """A store cannot be configured so."""

    message = "Store %(store_name)s could not be configured correctly. Reason: %(reason)s"


class DriverLoadFailure(GlanceStoreException):
    """A driver cannot be imported."""

    message = "Driver %(driver_name)s could not be loaded."


class StoreDeleteNotSupported(GlanceStoreException):
    """The store cannot delete."""

    message = "Deleting images from this store is not supported."


class StoreGetNotSupported(GlanceStoreException):
    """The store cannot read."""

    message = "Getting images from this store is not supported."


class StoreRandomGetNotSupported(StoreGetNotSupported):
    """The store reads whole images only."""

    message = "Getting images randomly from this store is not supported. Offset: %(offset)s, length: %(chunk_size)s"


class StoreAddDisabled(GlanceStoreException):
    """The store cannot add."""

    message = "Configuration for store failed. Adding images to this store is disabled."


class MaxRedirectsExceeded(GlanceStoreException):
    """A server redirects for ever."""

    message = "Maximum redirects (%(redirects)s) was exceeded."


class NoServiceEndpoint(GlanceStoreException):
    """The catalog has no image service."""

    message = "Response from Keystone does not contain a Glance endpoint."


class RegionAmbiguity(GlanceStoreException):
    """The catalog has several of a region."""

    message = (
        "Multiple 'image' service matches for region %(region)s. This generally means that a region is required and "
        "you have not supplied one."
    )


class RemoteServiceUnavailable(GlanceStoreException):
    """The back end does not answer."""

    message = "Remote server where the image is present is unavailable."


class HasSnapshot(GlanceStoreException):
    """The image has snapshots in the back end."""

    message = "The image cannot be deleted because it has snapshot(s)."


class InUseByStore(GlanceStoreException):
    """The image is in use in the back end."""

    message = "The image cannot be deleted because it is in use through the backend store outside of Glance."


class HostNotInitialized(GlanceStoreException):
    """Mounts of this host are not known yet."""

    message = (
        "The glance cinder store host %(host)s which will used to perform nfs mount/umount operations isn't "
        "initialized."
    )


class TimeoutError(GlanceStoreException):  # noqa: A001  (glance_store's name)
    """The back end takes too long."""

    message = "Operation timed out after %(timeout)ds. Check storage health and connectivity."
