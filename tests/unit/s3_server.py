# SPDX-License-Identifier: Apache-2.0
"""An S3 server in memory that keeps objects and uploads, and answers rightly but where a test says otherwise."""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
from collections.abc import Callable
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from scripted_server import Request, ScriptedServer, reply

from storelib.drivers.s3 import S3Store
from storelib.registry import open_store

DATE = "Fri, 20 Nov 2026 17:11:38 GMT"
ISO = "2026-11-20T17:11:38.000Z"
PAGE = b"<html><head><title>Sign in</title></head><body><form/></body></html>"


def error(status: int, code: str, message: str = "") -> bytes:
    """A refusal as S3 words it."""
    return reply(
        status,
        {"Content-Type": "application/xml"},
        f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode(),
    )


#: What S3 servers have in all their answers.
OWN = {"x-amz-request-id": "1"}


def document(name: str, inside: str) -> bytes:
    """An answer that is a document."""
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<{name} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inside}</{name}>'
    return reply(200, {"Content-Type": "application/xml"}, text.encode())


def open_at(server: ScriptedServer, **options: object) -> S3Store:
    """A store there that gives up at once."""
    settings = {
        "s3_store_host": server.url,
        "s3_store_bucket": "images",
        "s3_store_access_key": "access",
        "s3_store_secret_key": "secret",
        "s3_store_read_timeout": 5.0,
        "transfer_retries": 0,
    }
    return open_store(S3Store, "cold", **settings | options)


class S3Server(ScriptedServer):
    """``instead(operation, request)``, if it answers anything, is all that happens; ``after`` comes when it is done."""

    def __init__(
        self,
        instead: Callable[[str, Request], bytes | None] = lambda operation, request: None,
        after: Callable[[str, Request], bytes | None] = lambda operation, request: None,
        base: str = "",
        honours: bool = True,
    ) -> None:
        super().__init__(self._answer_one)
        self.objects: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.uploads: dict[str, tuple[str, dict[str, str], dict[int, bytes]]] = {}
        self.operations: list[str] = []
        self.instead = instead
        self.after = after
        self._base = base
        self._honours = honours
        self._lock = threading.Lock()
        self._numbers = itertools.count()

    def _answer_one(self, request: Request) -> bytes:
        url = urlsplit(request.target)
        path, query = unquote(url.path).removeprefix(self._base), parse_qs(url.query, keep_blank_values=True)
        key = path.split("/", 2)[2] if path.count("/") > 1 else ""
        operation = self._operation(request, key, query)
        with self._lock:
            self.operations.append(operation)
            early = self.instead(operation, request)
            if early is not None:
                return early
            response = getattr(self, f"_{operation}")(request, key, {name: value[0] for name, value in query.items()})
            late = self.after(operation, request)
            return response if late is None else late

    @staticmethod
    def _operation(request: Request, key: str, query: dict[str, list[str]]) -> str:
        if "acl" in query:
            return f"{request.method.lower()}_acl"
        copied = "x-amz-copy-source" in request.headers
        kind = "start" if "uploads" in query else "upload" if "uploadId" in query else "object" if key else "bucket"
        return {
            ("POST", "start"): "create",
            ("GET", "start"): "list_uploads",
            ("GET", "upload"): "list_parts",
            ("PUT", "upload"): "copy_part" if copied else "part",
            ("POST", "upload"): "complete",
            ("DELETE", "upload"): "abort",
            ("PUT", "object"): "copy" if copied else "put",
            ("GET", "object"): "get",
            ("HEAD", "object"): "head",
            ("DELETE", "object"): "delete",
            ("GET", "bucket"): "list",
            ("PUT", "bucket"): "create_bucket",
        }[request.method, kind]

    def _store(self, request: Request, key: str, body: bytes, kept: dict[str, str]) -> bytes | None:
        if self._honours and request.headers.get("if-none-match") == "*" and key in self.objects:
            return error(412, "PreconditionFailed")
        self.objects[key] = (body, kept)
        return None

    def _put(self, request, key, query):
        kept = {name: value for name, value in request.headers.items() if name.startswith("x-amz-meta-")}
        return self._store(request, key, request.body, kept) or reply(200, {"ETag": etag(request.body)})

    def _copy(self, request, key, query):
        source = unquote(request.headers["x-amz-copy-source"]).split("/", 1)[1]
        kept = {name: value for name, value in request.headers.items() if name.startswith("x-amz-meta-")}
        self.objects[key] = (self.objects[source][0], kept)
        return document("CopyObjectResult", f"<ETag>{escape(etag(self.objects[key][0]))}</ETag>")

    def _create(self, request, key, query):
        upload = f"upload{next(self._numbers)}"
        kept = {name: value for name, value in request.headers.items() if name.startswith("x-amz-meta-")}
        self.uploads[upload] = (key, kept, {})
        return document("InitiateMultipartUploadResult", f"<Key>{escape(key)}</Key><UploadId>{upload}</UploadId>")

    def _part(self, request, key, query):
        if query["uploadId"] not in self.uploads:
            return error(404, "NoSuchUpload")
        self.uploads[query["uploadId"]][2][int(query["partNumber"])] = request.body
        return reply(200, {"ETag": etag(request.body)})

    def _complete(self, request, key, query):
        if query["uploadId"] not in self.uploads:
            return error(404, "NoSuchUpload")
        _, kept, parts = self.uploads[query["uploadId"]]
        body = b"".join(parts[number] for number in sorted(parts))
        refused = self._store(request, key, body, kept)
        if refused is None:
            del self.uploads[query["uploadId"]]
        told = f"<Key>{escape(key)}</Key><ETag>&quot;abc-2&quot;</ETag>"
        return refused or document("CompleteMultipartUploadResult", told)

    def _abort(self, request, key, query):
        return reply(204, OWN) if self.uploads.pop(query["uploadId"], None) else error(404, "NoSuchUpload")

    def _get(self, request, key, query):
        if key not in self.objects:
            return reply(404) if request.method == "HEAD" else error(404, "NoSuchKey", escape(key))
        body, kept = self.objects[key]
        headers = {"ETag": etag(body), "Last-Modified": DATE, **kept}
        if request.method == "HEAD":
            return reply(200, headers | {"Content-Length": str(len(body))})
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if asked is None:
            return reply(200, headers, body)
        start, end = int(asked[1]), min(int(asked[2] or len(body)) + 1, len(body))
        if start >= len(body):
            return error(416, "InvalidRange")
        return reply(206, headers | {"Content-Range": f"bytes {start}-{end - 1}/{len(body)}"}, body[start:end])

    _head = _get

    def _delete(self, request, key, query):
        self.objects.pop(key, None)
        return reply(204, OWN)

    def _list(self, request, key, query):
        found = [name for name in sorted(self.objects) if name.startswith(query.get("prefix", ""))]
        return document("ListBucketResult", "".join(entry(name, len(self.objects[name][0])) for name in found))

    def _list_uploads(self, request, key, query):
        return document(
            "ListMultipartUploadsResult",
            "".join(
                f"<Upload><Key>{escape(key)}</Key><UploadId>{upload}</UploadId><Initiated>{ISO}</Initiated></Upload>"
                for upload, (key, _, _) in self.uploads.items()
                if key.startswith(query.get("prefix", ""))
            ),
        )

    def _list_parts(self, request, key, query):
        if query["uploadId"] not in self.uploads:
            return error(404, "NoSuchUpload")
        parts = self.uploads[query["uploadId"]][2]
        return document(
            "ListPartsResult",
            f"<Key>{escape(key)}</Key>"
            + "".join(
                f"<Part><PartNumber>{number}</PartNumber><Size>{len(body)}</Size><LastModified>{ISO}</LastModified></Part>"
                for number, body in parts.items()
            ),
        )

    def _get_acl(self, request, key, query):
        return document("AccessControlPolicy", "<Owner><ID>owner</ID></Owner><AccessControlList/>")

    def _put_acl(self, request, key, query):
        return reply(200)

    def _create_bucket(self, request, key, query):
        return reply(200, {"Location": "/images"})


def etag(body: bytes) -> str:
    """As S3 makes it of one piece."""
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'


def entry(key: str, size: int = 1) -> str:
    """Of a list of objects."""
    return (
        f"<Contents><Key>{escape(key)}</Key><Size>{size}</Size><LastModified>{ISO}</LastModified>"
        f"<ETag>&quot;e&quot;</ETag></Contents>"
    )
