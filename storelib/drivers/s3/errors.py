# SPDX-License-Identifier: Apache-2.0
"""What a response of a server has to have to be believed, and which error of storelib a refusal or a failure is.

A proxy, a captive portal or a login page answers 200 to anything. What S3 promises with a success (the id of an upload,
the ETag of what was stored, a document of the right name) such a response does not have. Of what a server sent only the
error code is repeated in a message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from storelib.exceptions import (
    AclsNotSupported,
    BadStoreConfiguration,
    Duplicate,
    Forbidden,
    ImageChanged,
    Invalid,
    NotFound,
    OperationNotSupported,
    RemoteServiceUnavailable,
    StorageFull,
    StorageWriteDenied,
    StoreError,
)
from storelib.transfer.http import errors as http_errors
from storelib.transfer.http.headers import retry_after


class BadAnswer(Exception):
    """A success that lacks its proof. Whether what was asked for was done has to be asked again."""

    def __init__(self, operation: str, what: str) -> None:
        super().__init__(f"{operation}: {what}")
        self.operation = operation
        self.what = what


#: The document that a response is.
_DOCUMENTS = {
    "CreateMultipartUpload": "InitiateMultipartUploadResult",
    "UploadPartCopy": "CopyPartResult",
    "CompleteMultipartUpload": "CompleteMultipartUploadResult",
    "CopyObject": "CopyObjectResult",
    "ListObjectsV2": "ListBucketResult",
    "ListMultipartUploads": "ListMultipartUploadsResult",
    "ListParts": "ListPartsResult",
    "GetObjectAcl": "AccessControlPolicy",
}
#: Where such a proof is in it: paths of names, of which one has to lead to a text.
_PROOFS = {
    "PutObject": ["ETag"],
    "CreateMultipartUpload": ["UploadId"],
    "UploadPart": ["ETag"],
    "UploadPartCopy": ["CopyPartResult ETag"],
    # radosgw says where the object is, but not its ETag.
    "CompleteMultipartUpload": ["ETag", "Key", "Location"],
    "CopyObject": ["CopyObjectResult ETag"],
    "GetObjectAcl": ["Owner ID"],
}
_SILENT = {"PutObject", "UploadPart", "PutObjectAcl", "DeleteObject", "AbortMultipartUpload"}
_STATUSES = {"GetObject": (200, 206), "DeleteObject": (204, 200), "AbortMultipartUpload": (204, 200)}
_PAGES = ("text/html", "application/xhtml+xml", "application/json")
#: Bytes; no file and no program has room for so many.
_BEYOND_ALL = 1 << 63
#: Headers that only a server of this protocol sends.
_OWN = ("x-amz-", "x-goog-")


class Damaged(BadAnswer):
    """What is stored is not what was sent."""


class WantsTls(Exception):
    """The server redirects to itself, over https."""


def check_response(http_response: Any, parsed: Mapping[str, Any], model: Any) -> None:
    """Check a response before botocore hands it out; raises BadAnswer, WantsTls."""
    if 300 <= http_response.status_code < 400:
        asked, told = urlsplit(http_response.url), urlsplit(str(http_response.headers.get("Location", "")))
        if (asked.scheme, told.scheme) == ("http", "https") and asked.hostname == told.hostname:
            raise WantsTls
    # What botocore makes of a text that is not XML.
    if parsed.get("Error", {}).get("Code") == "500" and getattr(http_response.raw, "status", 500) < 300:
        raise BadAnswer(model.name, "no document")
    if http_response.status_code >= 300 or "Error" in parsed:
        return
    try:
        _check(http_response, parsed, model.name)
    except BadAnswer:
        if "Body" in parsed:
            parsed["Body"].close()
        raise


def _check(http_response: Any, parsed: Mapping[str, Any], operation: str) -> None:
    if http_response.status_code not in _STATUSES.get(operation, (200,)):
        raise BadAnswer(operation, f"a status of {int(http_response.status_code)}")
    headers = {str(name).lower(): str(value) for name, value in http_response.headers.items()}
    if operation in _DOCUMENTS:
        _check_document(operation, http_response.content)
    elif not any(name.startswith(_OWN) for name in headers):
        if headers.get("content-type", "").lower().startswith(_PAGES):
            raise BadAnswer(operation, "a page for people")
        if operation in ("GetObject", "HeadObject") and "etag" not in headers:
            raise BadAnswer(operation, "nothing that tells of an object")
    if operation in _SILENT and http_response.content.strip():
        raise BadAnswer(operation, "a text where S3 sends none")
    if operation == "HeadObject":
        size_of(operation, parsed)
    if operation in _PROOFS and not any(_find(parsed, path) for path in _PROOFS[operation]):
        raise BadAnswer(operation, f"no {_PROOFS[operation][0]}")


def names_itself(response: Mapping[str, Any]) -> bool:
    """Whether a response without content surely comes from an S3 server: any other can say "204 No Content", too."""
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return any(str(name).lower().startswith(_OWN) for name in headers)


def size_of(operation: str, response: Mapping[str, Any], field: str = "ContentLength") -> int:
    """A number of bytes in a response; raises BadAnswer where it has none."""
    size = response.get(field)
    if not isinstance(size, int) or not 0 <= size < _BEYOND_ALL:
        raise BadAnswer(operation, f"no {field}")
    return size


def _check_document(operation: str, content: bytes) -> None:
    # What comes before the root: a byte order mark, the XML declaration, comments.
    root = re.match(rb"\s*(?:\xef\xbb\xbf\s*)?(?:<[?!][^>]*>\s*)*<(?:[\w.-]+:)?([\w.-]+)", content[:4096])
    if root is None or root[1] != _DOCUMENTS[operation].encode():
        raise BadAnswer(operation, f"no {_DOCUMENTS[operation]}")


def _find(response: Mapping[str, Any], path: str) -> str:
    found: Any = response
    for name in path.split():
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, str) else ""


# -- Refusals and failures ----------------------------------------------------------------------------------------

_WRITES = {"CreateBucket", "PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "CopyObject"}
_CREDENTIALS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "ExpiredToken",
    "ExpiredTokenException",
    "TokenRefreshRequired",
    "InvalidSecurity",
    "NotSignedUp",
}
_REGION = {
    "PermanentRedirect",
    "TemporaryRedirect",
    "Redirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "InvalidLocationConstraint",
    "301",
    "307",
}
_FULL = {"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"}
_NOT_FOUND = {"NoSuchKey", "NoSuchVersion", "404", "NotFound"}
_BAD_REQUEST = {"EntityTooLarge", "KeyTooLongError", "InvalidRange", "416", "MaxMessageLengthExceeded"}
_DAMAGED = {"BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch", "IncompleteBody"}
_TRANSIENT = {
    "SlowDown",
    "ServiceUnavailable",
    "InternalError",
    "RequestTimeout",
    "RequestTimeoutException",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "TooManyRequests",
    "BandwidthLimitExceeded",
    "OperationAborted",
    "ConditionalRequestConflict",
}


#: Codes for an upload that is no more; radosgw calls it by its key.
GONE = {"NoSuchUpload", "NoSuchKey", "404"}


def error_code(error: Exception) -> str:
    """The code in a ClientError of botocore; empty for any other error."""
    response = getattr(error, "response", None)
    details = response.get("Error", {}) if isinstance(response, dict) else {}
    return re.sub(r"[^A-Za-z0-9._-]", "", str(details.get("Code", "")))[:80]


def is_missing(error: Exception) -> bool:
    """The response was that there is no such object."""
    return error_code(error) in _NOT_FOUND


def status_of(error: Exception) -> int | None:
    """The HTTP status of a refusal; None for other errors."""
    status: int | None = getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status


def is_kept(error: Exception) -> bool:
    """The response was that this version may not be deleted: Amazon says AccessDenied, others that it is locked."""
    return status_of(error) in (400, 403) and error_code(error) not in _CREDENTIALS


def storelib_error(error: Exception, subject: str) -> StoreError | None:
    """The error of storelib for one of botocore or below; None if it is not known."""
    from botocore import exceptions as botocore

    if isinstance(error, WantsTls):
        return BadStoreConfiguration(f"{subject}: the server wants https; begin s3_store_host with https://")
    if isinstance(error, Damaged):
        return RemoteServiceUnavailable(f"{subject}: the bytes were damaged on their way, by {error.what}")
    if isinstance(error, BadAnswer):
        return RemoteServiceUnavailable(
            f"{subject}: what came is not the response of an S3 server to {error.operation} but {error.what}; "
            "if that stays so, check s3_store_host and s3_store_proxy"
        )
    if isinstance(error, botocore.ClientError):
        return _of_response(error, subject)
    if isinstance(error, (botocore.NoCredentialsError, botocore.PartialCredentialsError)):
        return BadStoreConfiguration(
            f"{subject}: no credentials; set s3_store_access_key and s3_store_secret_key, or s3_store_profile"
        )
    if isinstance(error, botocore.ProfileNotFound):
        return BadStoreConfiguration(f"{subject}: there is no profile of the name in s3_store_profile")
    if isinstance(error, (botocore.CredentialRetrievalError, botocore.MetadataRetrievalError)):
        return RemoteServiceUnavailable(f"{subject}: the source of the credentials does not give any")
    return _of_connection(error, subject, botocore)


def _of_response(error: Any, subject: str) -> StoreError:
    """By the code that the server gave, or by the HTTP status where it gave none it should."""
    code, operation = error_code(error), error.operation_name
    metadata = error.response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode") or 0)
    text = f"{subject}: the server answered {code or status} to {operation}"
    if refuses_extras(error):
        text += _option_at_fault(error, status)
    elif (operation, code) == ("HeadObject", "400"):
        # There is no body to say more: expired tokens come so, and objects with a key of their own asked for without.
        text += ", which may be about credentials, the clock or s3_store_customer_key"
    if status in (301, 400) and code in ("301", "400") and "x-amz-bucket-region" in metadata.get("HTTPHeaders", {}):
        code = "PermanentRedirect"
    known = _BY_CODE.get(code)
    if known is not None:
        return known(text, operation)
    if code in _TRANSIENT or (status not in _BY_STATUS and http_errors.is_transient(status)):
        again = retry_after(metadata.get("HTTPHeaders", {}).get("retry-after"))
        return RemoteServiceUnavailable(text, retry_after=again)
    if 300 <= status < 400:
        return RemoteServiceUnavailable(f"{text} and leads elsewhere; check s3_store_host", transient=False)
    by_status = _BY_STATUS.get(status)
    return by_status(text, operation) if by_status else StoreError(text)


#: Requests without such parts, on the way to one that has some.
_PLAIN = {"HeadObject", "CreateBucket"}


def refuses_extras(error: Exception) -> bool:
    """The server may have refused a part of the request that it could do without, or may miss one that it demands."""
    return refuses_plainly(error) and getattr(error, "operation_name", "") not in _PLAIN


def refuses_plainly(error: Exception) -> bool:
    """The server says of the request, whatever is in it, that it cannot be or be done."""
    code = error_code(error)
    status = status_of(error) if code else 0
    return (
        status == 501 or code == "NotImplemented" or (status == 400 and code not in _BY_CODE and code not in _TRANSIENT)
    )


def speaks_of(error: Exception) -> str:
    """Which option the refusal is about, as far as it says that; nothing of it is shown."""
    details = getattr(error, "response", {}).get("Error", {})
    said = " ".join(str(value) for value in details.values()).lower() if isinstance(details, dict) else ""
    return next((option for words, option in _SPEAKS_OF if any(word in said for word in words)), "")


_SPEAKS_OF = (
    (("if-none-match", "if-match", "conditional"), "s3_store_conditional_writes"),
    (("storage-class", "storage class", "storageclass"), "s3_store_storage_class"),
    (("encryption", "kms"), "s3_store_encryption"),
    (("checksum", "content-md5", "contentmd5", "digest", "crc32"), "s3_store_checksum_algorithm"),
)


def _option_at_fault(error: Exception, status: int) -> str:
    option = speaks_of(error)
    if option:
        return f"; check {option}"
    if status != 501:
        return ""
    return "; if it is about If-None-Match or checksums, set s3_store_conditional_writes or s3_store_checksum_algorithm"


#: What the policy of bucket or user must allow.
_PERMISSIONS = {
    "CreateBucket": "s3:CreateBucket, or the bucket be made beforehand",
    "ListObjectsV2": "s3:ListBucket",
    "HeadObject": "s3:GetObject, and s3:ListBucket, without which also what is not there is forbidden",
    "GetObject": "s3:GetObject, and s3:ListBucket, without which also what is not there is forbidden",
    "PutObject": "s3:PutObject; or set read_only",
    "CreateMultipartUpload": "s3:PutObject; or set read_only",
    "UploadPart": "s3:PutObject; or set read_only",
    "CompleteMultipartUpload": "s3:PutObject; or set read_only",
    "CopyObject": "s3:PutObject and s3:GetObject",
    "UploadPartCopy": "s3:PutObject and s3:GetObject",
    "DeleteObject": "s3:DeleteObject; or set read_only",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads, for gc",
    "ListParts": "s3:ListMultipartUploadParts, for gc",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "GetObjectAcl": "s3:GetObjectAcl",
    "PutObjectAcl": "s3:PutObjectAcl",
}


def _denied(text: str, operation: str) -> StoreError:
    needed = _PERMISSIONS.get(operation)
    hint = f"; the policy must allow {needed}" if needed else ""
    return (StorageWriteDenied if operation in _WRITES else Forbidden)(text + hint)


def _exists(text: str, operation: str) -> StoreError:
    """A precondition did not hold: writes ask for nothing to be there, reads for the version they began with."""
    if operation in ("PutObject", "CompleteMultipartUpload", "CopyObject"):
        return Duplicate(f"{text}: the image exists")
    return ImageChanged(f"{text}: it was replaced while it was read")


def _full(text: str, operation: str) -> StoreError:
    needs_room = operation in _WRITES or operation == "UploadPartCopy"
    return StorageFull(text) if needs_room else RemoteServiceUnavailable(text)


def _hinting(kind: type[StoreError], hint: str) -> Callable[[str, str], StoreError]:
    return lambda text, operation: kind(f"{text}; {hint}")


def _plain(kind: type[StoreError]) -> Callable[[str, str], StoreError]:
    return lambda text, operation: kind(text)


_BY_CODE: dict[str, Callable[[str, str], StoreError]] = {
    **dict.fromkeys(_NOT_FOUND, _plain(NotFound)),
    **dict.fromkeys(_FULL, _plain(StorageFull)),
    **dict.fromkeys(_BAD_REQUEST, _plain(Invalid)),
    **dict.fromkeys(_DAMAGED, _hinting(RemoteServiceUnavailable, "the bytes were damaged on their way")),
    **dict.fromkeys(_CREDENTIALS, _hinting(Forbidden, "check s3_store_access_key, s3_store_secret_key or the role")),
    **dict.fromkeys(_REGION, _hinting(BadStoreConfiguration, "check s3_store_region_name and s3_store_host")),
    "NoSuchBucket": _hinting(
        BadStoreConfiguration, "check s3_store_bucket, or set s3_store_create_bucket_on_put to have it made"
    ),
    "InvalidBucketName": _hinting(BadStoreConfiguration, "check s3_store_bucket"),
    "InvalidStorageClass": _hinting(BadStoreConfiguration, "check s3_store_storage_class"),
    "NoSuchUpload": _hinting(StoreError, "the upload was removed while it was under way"),
    "RequestTimeTooSkewed": _hinting(Forbidden, "check the clock of this machine"),
    "AccessControlListNotSupported": _plain(AclsNotSupported),
    "NotImplemented": _plain(OperationNotSupported),
    "MethodNotAllowed": _plain(OperationNotSupported),
    "PreconditionFailed": _exists,
    "412": _exists,
}
_BY_STATUS: dict[int, Callable[[str, str], StoreError]] = {
    401: _denied,
    403: _denied,
    404: _plain(NotFound),
    405: _plain(OperationNotSupported),
    412: _exists,
    501: _plain(OperationNotSupported),
    507: _full,
}


def _of_connection(error: Exception, subject: str, botocore: Any) -> StoreError | None:
    """What went wrong on the way to a response or in the middle of one."""
    from botocore.parsers import ResponseParserError

    if http_errors.caused_by(error, ResponseParserError):
        return RemoteServiceUnavailable(f"{subject}: what came is not the response of an S3 server, or not all of it")
    known = http_errors.error_of_failure(error, subject, "s3_store_cacert")
    reached = http_errors.proxy_refusal(error) is not None
    if isinstance(error, botocore.ProxyConnectionError) and not reached and (known is None or known.transient):
        return RemoteServiceUnavailable(f"{subject}: the proxy cannot be reached (s3_store_proxy)")
    if known is None and isinstance(error, (botocore.HTTPClientError, botocore.IncompleteReadError)):
        return RemoteServiceUnavailable(f"{subject}: the connection was refused or cut")
    if known is None and isinstance(error, botocore.BotoCoreError):
        return StoreError(f"{subject}: {type(error).__name__}")
    return known
