# SPDX-License-Identifier: Apache-2.0
"""What the image API refuses, one class for each thing a client can do about it; no HTTP in here.

The number in each docstring is the status of v2's and v1's response, unless a handler knows better. Errors of the
stores themselves stay ``storelib.exceptions``. Messages are whole sentences, name what is at fault, hold no secret.
"""

from __future__ import annotations


class ApiError(Exception):
    """The image API could not do what was asked. 500."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").partition("\n")[0])


class BadRequest(ApiError):
    """A value, filter or argument of the request is wrong. 400."""


class InvalidMarker(BadRequest):
    """The marker of a list is not the id of an image the caller can see. 400."""


class NotAuthenticated(ApiError):
    """The caller has to authenticate. 401."""


class NotPermitted(ApiError):
    """The caller may see this but not do that. 403."""


class Protected(NotPermitted):
    """The image is protected and cannot be deleted. 403."""


class ResourceNotFound(ApiError):
    """There is no such thing, or the caller must not know of it. 404."""


class ImageNotFound(ResourceNotFound):
    """There is no image with this id. 404."""


class MemberNotFound(ResourceNotFound):
    """The image is not shared with this member. 404."""


class TagNotFound(ResourceNotFound):
    """The image has no such tag. 404."""


class LocationNotFound(ResourceNotFound):
    """The image has no such location. 404."""


class Conflict(ApiError):
    """The request does not fit the present state of the image. 409."""


class AlreadyExists(Conflict):
    """Something with this id, name or URI exists already; it was left untouched. 409."""


class StatusConflict(Conflict):
    """The image is in a status that does not allow this; ``status`` is the one it has. 409."""

    def __init__(self, message: str = "", *, status: str = "") -> None:
        super().__init__(message)
        self.status = status


class StaleImage(Conflict):
    """Another request changed the image since it was read: read it again and repeat. 409."""


class StillDeleting(Conflict):
    """A store still deletes what it had of the image, in the place where its new data would be. 409."""


class UploadLost(Conflict):
    """This upload is no longer the image's: it was deleted meanwhile, or another process took over. 409.

    What was written to the stores has to be removed by the caller.
    """


class Gone(ApiError):
    """What was asked for has been switched off. 410."""


class PreconditionFailed(ApiError):
    """The image went away while its data was being sent. 412."""


class LimitExceeded(ApiError):
    """More than this image or this service may hold. 413."""


class QuotaExceeded(LimitExceeded):
    """More than the owner may hold. 413."""


class TooManyRequests(ApiError):
    """The caller asks more often than it may; ``retry_after`` is how many seconds it has to wait. 429."""

    def __init__(self, message: str = "", *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnsupportedMediaType(ApiError):
    """The type or the format of the body is not one that is taken here. 415."""


class RangeNotSatisfiable(ApiError):
    """The range starts behind the end of the image, which has ``size`` bytes. 416."""

    def __init__(self, message: str = "", *, size: int | None = None) -> None:
        super().__init__(message)
        self.size = size


class Unavailable(ApiError):
    """A store or the database does not answer now; the same request may succeed later. 503."""


class DatabaseUnavailable(Unavailable):
    """The database does not answer, or was lost while it answered. 503."""


class OutcomeUnknown(DatabaseUnavailable):
    """The database was lost at the commit: the change was made wholly or not at all; look before repeating. 503."""


class BadDatabase(ApiError):
    """The database cannot be used as it is or as it is configured; the message says what to do. Stops the start."""


class SchemaOutOfDate(BadDatabase):
    """The tables are older or newer than this storelib; the message says what to do. Stops the start."""
