# SPDX-License-Identifier: Apache-2.0
"""What an answer must have to be believed: the one place where every answer of a server is looked at.

A proxy, a captive portal or a login page answers 200 to anything. What S3 promises with a success (the id of an upload,
the ETag of what was stored, a document of the right name) such an answer does not have.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from storelib.drivers.s3.client import Client


class BadAnswer(Exception):
    """A success that lacks its proof. Whether what was asked for was done has to be asked again."""

    def __init__(self, operation: str, what: str) -> None:
        super().__init__(f"{operation}: {what}")
        self.operation = operation
        self.what = what


#: The document that an answer is.
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


def check(http_response: Any, parsed: Mapping[str, Any], model: Any, **_: object) -> None:
    """What botocore calls with each answer before it hands it out; raises BadAnswer."""
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


def names_itself(answer: Mapping[str, Any]) -> bool:
    """Whether an answer without content surely comes from an S3 server; anything else can say "204 No Content", too."""
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return any(str(name).lower().startswith(_OWN) for name in headers)


def size_of(operation: str, answer: Mapping[str, Any], field: str = "ContentLength") -> int:
    """A number of bytes in an answer; raises BadAnswer where it has none."""
    size = answer.get(field)
    if not isinstance(size, int) or not 0 <= size < _BEYOND_ALL:
        raise BadAnswer(operation, f"no {field}")
    return size


def _check_document(operation: str, content: bytes) -> None:
    # What comes before the root: a byte order mark, the XML declaration, comments.
    root = re.match(rb"\s*(?:\xef\xbb\xbf\s*)?(?:<[?!][^>]*>\s*)*<(?:[\w.-]+:)?([\w.-]+)", content[:4096])
    if root is None or root[1] != _DOCUMENTS[operation].encode():
        raise BadAnswer(operation, f"no {_DOCUMENTS[operation]}")


def _find(answer: Mapping[str, Any], path: str) -> str:
    found: Any = answer
    for name in path.split():
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, str) else ""


# -- Listings -------------------------------------------------------------------------------------------------

#: Of each listing: its entries, what they must have, and where to go on, as the answer says it and as it is asked for.
_LISTINGS: dict[str, tuple[str, dict[str, type], dict[str, str]]] = {
    "list_objects_v2": (
        "Contents",
        {"Key": str, "Size": int, "LastModified": datetime.datetime},
        {"NextContinuationToken": "ContinuationToken"},
    ),
    "list_multipart_uploads": (
        "Uploads",
        {"Key": str, "UploadId": str, "Initiated": datetime.datetime},
        {"NextKeyMarker": "KeyMarker", "NextUploadIdMarker": "UploadIdMarker"},
    ),
    "list_parts": (
        "Parts",
        {"Size": int, "LastModified": datetime.datetime},
        {"NextPartNumberMarker": "PartNumberMarker"},
    ),
}
#: Pages in a row without an entry: Amazon sends some where much was deleted.
_MOST_EMPTY = 1000


def listed(client: Client, operation: str, **parameters: Any) -> Iterator[dict[str, Any]]:
    """The entries of all pages of a listing, a thousand with each request; raises BadAnswer where it does not end."""
    field, needed, markers = _LISTINGS[operation]
    places, firsts, empty = _Circle(operation), _Circle(operation), 0
    where: dict[str, Any] = {}
    while True:
        page = client.call(operation, **parameters, **where)
        entries = page.get(field) or ()
        for entry in entries:
            if not all(isinstance(entry.get(name), kind) for name, kind in needed.items()):
                raise BadAnswer(operation, f"an entry without {', '.join(needed)}")
            if "Size" in needed:
                size_of(operation, entry, "Size")
            yield entry
        if not page.get("IsTruncated"):
            return
        where = {asked: page[told] for told, asked in markers.items() if page.get(told)}
        empty = 0 if entries else empty + 1
        if not where or empty > _MOST_EMPTY:
            raise BadAnswer(operation, "there is more, and not where")
        places.pass_by(where)
        if entries:
            firsts.pass_by(entries[0])


class _Circle:
    """Notices that a listing goes round in circles, however long, and remembers one place only (after R. Brent)."""

    def __init__(self, operation: str) -> None:
        self._operation = operation
        self._place: object = None
        self._steps = 0
        self._next = 1

    def pass_by(self, place: object) -> None:
        """The listing has come here; raises BadAnswer if it was here before."""
        if place == self._place:
            raise BadAnswer(self._operation, "the same again and again")
        self._steps += 1
        if self._steps == self._next:
            self._place, self._next = place, 2 * self._next
