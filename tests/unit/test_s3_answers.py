# SPDX-License-Identifier: Apache-2.0
"""Answers that are not what S3 promises: no success is believed without its proof."""

import base64
import datetime
import gzip
import hashlib
import threading
from email.utils import parsedate_to_datetime
from urllib.parse import unquote

import botocore
import pytest
import s3_server
from botocore.useragent import UserAgentString
from botocore.utils import parse_timestamp
from hypothesis import example, given
from hypothesis import strategies as st
from s3_server import DATE, ISO, PAGE, S3Server, document, entry, error, etag
from scripted_server import reply

import storelib
from storelib.driver import Digests
from storelib.drivers.s3.bucket import time_of
from storelib.exceptions import Duplicate, ImageChanged, IncompleteRead, NotFound, RemoteServiceUnavailable, StoreError

MiB = 1024 * 1024
#: Two parts.
LARGE = hashlib.shake_128(b"large").digest(9 * MiB)
NOT_S3 = {
    "a page": reply(200, {"Content-Type": "text/html"}, PAGE),
    "a page of no type": reply(200, {}, PAGE),
    "a page with an ETag": reply(200, {"Content-Type": "text/html", "ETag": '"5f3c-1a2b"'}, PAGE),
    "no content": reply(204),
    "nothing at all": reply(200),
    "JSON": reply(200, {"Content-Type": "application/json"}, b'{"login": "required"}'),
    "a text of a proxy": reply(200, {"Content-Type": "text/plain"}, b"upstream connect error"),
    "accepted": reply(202),
    "another document": document("Whatever", "<ETag>&quot;e&quot;</ETag><UploadId>u</UploadId>"),
    "an error that is called a success": reply(200, {}, b"<Error><Code>InternalError</Code></Error>"),
    "a login page elsewhere": reply(302, {"Location": "https://login.example.org/"}),
}


#: And what may be one, where no ETag is expected or any is.
DOUBTFUL = NOT_S3 | {"nothing but an ETag": reply(200, {"ETag": '"5f3c-1a2b"'})}


def open_at(server, **options):
    return s3_server.open_at(server, **{"s3_store_bucket_url_format": "path"} | options)


def only(operation, answer):
    return lambda asked, request: answer if asked == operation else None


def read(store, uri, *span):
    with store.get(uri, *span).data as stream:
        return stream.read()


def copy(store, source, image_id):
    return store.copy(source.uri, image_id, digests=Digests(source.checksum, source.multihash))


# -- Copies ---------------------------------------------------------------------------------------------------


def test_source_without_an_etag_is_copied_by_reading_it():
    """Without one nothing would hold the server to the version whose size and digests are known."""
    nameless = reply(200, {"Content-Length": "4", "Last-Modified": DATE, "x-amz-request-id": "1"})
    with S3Server() as server:
        store = open_at(server)
        source = store.add("source", b"data")
        server.instead = lambda asked, request: nameless if asked == "head" and "source" in request.target else None
        made = copy(store, source, "id")
        assert "copy" not in server.operations
        assert made.size == 4
        assert server.objects["id"][0] == b"data"


@pytest.mark.parametrize("operation", ["copy", "copy_part"])
def test_source_replaced_where_the_server_looks_at_no_condition(operation, monkeypatch):
    """radosgw copies whatever is there."""
    with S3Server() as server:
        store = open_at(server)
        store.bucket.conditional_complete = operation == "copy_part"
        source = store.add("source", b"data")

        def replace(asked, request):
            if asked == operation:
                server.objects["source"] = (b"more", {})

        server.instead = replace
        monkeypatch.setattr(
            S3Server,
            "_copy_part",
            lambda self, request, key, query: document("CopyPartResult", "<ETag>&quot;e&quot;</ETag>"),
            raising=False,
        )
        with pytest.raises(ImageChanged):
            copy(store, source, "id")
        assert set(server.objects) == {"source"}
        assert not server.uploads


def test_copy_in_parts_finds_out_early_that_the_id_is_taken():
    with S3Server() as server:
        store = open_at(server)
        store.bucket.conditional_complete = True
        source = store.add("source", b"data")
        store.add("id", b"other")
        with pytest.raises(Duplicate):
            copy(store, source, "id")
        assert "create" not in server.operations


def test_copy_in_parts_keeps_the_record_of_its_source():
    with S3Server() as server:
        store = open_at(server)
        store.bucket.conditional_complete = True
        source = store.add("source", b"data")
        server.instead = only("copy_part", document("CopyPartResult", "<ETag>&quot;e&quot;</ETag>"))
        copy(store, source, "id")
        recorded = server.objects["id"][1]["x-amz-meta-storelib-digest"]
        assert recorded == server.objects["source"][1]["x-amz-meta-storelib-digest"]


# -- Adds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", NOT_S3)
@pytest.mark.parametrize(("operation", "data"), [("put", b"data"), ("complete", LARGE)])
def test_publication_that_never_was_is_no_success(wrong, operation, data):
    with S3Server(instead=only(operation, NOT_S3[wrong])) as server:
        with pytest.raises(StoreError) as caught:
            open_at(server).add("id", data)
        assert not isinstance(caught.value, Duplicate)
        assert (server.objects, server.uploads) == ({}, {})


@pytest.mark.parametrize("wrong", [name for name in NOT_S3 if not name.startswith(("an error", "a login"))])
@pytest.mark.parametrize(("operation", "data"), [("put", b"data"), ("complete", LARGE)])
def test_publication_whose_answer_was_replaced_is_asked_for_again(wrong, operation, data):
    with S3Server(after=only(operation, NOT_S3[wrong])) as server:
        store = open_at(server)
        assert read(store, store.add("id", data).uri) == data


@pytest.mark.parametrize("wrong", NOT_S3)
def test_copy_that_never_was_is_no_success(wrong):
    with S3Server() as server:
        store = open_at(server)
        source = store.add("source", b"data")
        server.instead = only("copy", NOT_S3[wrong])
        with pytest.raises(StoreError):
            copy(store, source, "id")
        assert set(server.objects) == {"source"}


def test_copy_whose_answer_was_replaced_is_asked_for_again():
    with S3Server(after=only("copy", NOT_S3["a page"])) as server:
        store = open_at(server)
        assert read(store, copy(store, store.add("source", b"data"), "id").uri) == b"data"


@pytest.mark.parametrize("wrong", NOT_S3)
@pytest.mark.parametrize("operation", ["create", "part"])
def test_upload_is_not_gone_on_with_after_a_wrong_answer(wrong, operation):
    with S3Server(instead=only(operation, NOT_S3[wrong])) as server:
        with pytest.raises(StoreError):
            open_at(server).add("id", LARGE)
        assert (server.objects, server.uploads) == ({}, {})
        assert "complete" not in server.operations


def test_answer_without_the_id_of_the_upload_is_told_plainly():
    server = S3Server(instead=only("create", document("InitiateMultipartUploadResult", "")))
    with server, pytest.raises(RemoteServiceUnavailable, match="no UploadId"):
        open_at(server).add("id", LARGE)


@pytest.mark.parametrize("wrong", NOT_S3)
def test_page_is_not_taken_for_an_image_of_this_id(wrong):
    """A server that responds to the HEAD of an add that has to look first."""
    with S3Server(instead=lambda operation, request: NOT_S3[wrong]) as server:
        for options in ({}, {"s3_store_conditional_writes": "off"}):
            with pytest.raises(StoreError) as caught:
                open_at(server, **options).add("id", b"data")
            assert not isinstance(caught.value, (Duplicate, NotFound))


def test_image_of_another_is_a_duplicate_also_where_the_answer_is_replaced():
    with S3Server() as server:
        store = open_at(server)
        store.add("id", b"first")
        server.after = only("put", NOT_S3["a page"])
        with pytest.raises(Duplicate):
            store.add("id", b"second")
        assert server.objects["id"][0] == b"first"


@pytest.mark.parametrize("remover", ["a store", "while completing"])
def test_upload_that_gc_of_another_store_removed_is_no_image(remover):
    with S3Server() as server:
        others = open_at(server)

        def remove(operation, request):
            if operation == "complete":
                server.uploads.clear()

        def source():
            yield LARGE
            if remover == "a store":
                while not server.uploads:
                    threading.Event().wait(0.01)
                assert others.gc(0)
            else:
                server.instead = remove

        with pytest.raises(StoreError, match="removed while it was under way"):
            open_at(server, transfer_retries=1).add("id", source())
        assert (server.objects, server.uploads) == ({}, {})


def test_abort_that_does_nothing_is_told(caplog):
    with S3Server() as server:
        server.instead = lambda operation, request: {"part": error(403, "AccessDenied"), "abort": reply(204)}.get(
            operation
        )
        with pytest.raises(StoreError):
            open_at(server).add("id", LARGE)
        assert "still there" in caplog.text


# -- What an add takes back -----------------------------------------------------------------------------------


def test_add_takes_back_that_very_object_only():
    """The server says which If-Match belongs to it, so that what was put in its place meanwhile stays."""
    with S3Server() as server:
        store = open_at(server)

        def lose(operation, request):
            if operation == "put":
                return error(500, "InternalError")
            if operation == "delete":
                assert request.headers["if-match"] == etag(b"data")
            return None

        server.after = lose
        with pytest.raises(RemoteServiceUnavailable):
            store.add("id", b"data")
        assert not server.objects


@pytest.mark.parametrize("refusal", [error(501, "NotImplemented"), error(400, "InvalidRequest")])
def test_add_takes_back_its_object_where_the_server_knows_no_conditions(refusal):
    def instead(operation, request):
        return refusal if operation == "delete" and "if-match" in request.headers else None

    with S3Server(instead, after=only("put", error(500, "InternalError"))) as server:
        with pytest.raises(RemoteServiceUnavailable):
            open_at(server).add("id", b"data")
        assert not server.objects


def test_object_put_in_its_place_is_not_taken_back():
    def instead(operation, request):
        if operation == "delete":
            server.objects["id"] = (b"of another", {})
            return error(412, "PreconditionFailed")
        return None

    with S3Server(instead, after=only("put", error(500, "InternalError"))) as server:
        with pytest.raises(RemoteServiceUnavailable):
            open_at(server).add("id", b"data")
        assert server.objects["id"][0] == b"of another"


@pytest.mark.parametrize("refusal", [error(403, "AccessDenied"), error(400, "InvalidRequest", "WORM protected")])
def test_version_that_a_lock_keeps_is_hidden(refusal):
    def instead(operation, request):
        if operation == "delete" and "versionId" in request.target:
            return refusal
        if operation == "head" and "id" in server.objects:
            kept = server.objects["id"][1]
            return reply(200, {"ETag": etag(b"data"), "x-amz-version-id": "v1", "Content-Length": "4", **kept})
        return None

    with S3Server(instead, after=only("put", error(500, "InternalError"))) as server:
        with pytest.raises(RemoteServiceUnavailable):
            open_at(server).add("id", b"data")
        assert not server.objects


# -- Bytes that are flipped -----------------------------------------------------------------------------------


class Flips(S3Server):
    """On the way to it the first ``times`` bodies are spoilt; of all checksums it knows Content-MD5 alone."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    def _answer_one(self, request):
        if request.method == "PUT" and self.times:
            self.times -= 1
            request = request._replace(body=bytes([request.body[0] ^ 1]) + request.body[1:])
        right = base64.b64encode(hashlib.md5(request.body, usedforsecurity=False).digest()).decode()
        if request.headers.get("content-md5", right) != right:
            return error(400, "BadDigest")
        return super()._answer_one(request)


@pytest.mark.parametrize("data", [b"data", LARGE], ids=["one piece", "parts"])
@pytest.mark.parametrize("algorithm", ["auto", "crc32", "md5", "sha256"])
def test_flipped_byte_is_noticed(data, algorithm):
    with Flips(100) as server:
        with pytest.raises(RemoteServiceUnavailable, match="damaged"):
            open_at(server, s3_store_checksum_algorithm=algorithm).add("id", data)
        assert (server.objects, server.uploads) == ({}, {})


@pytest.mark.parametrize("data", [b"data", LARGE], ids=["one piece", "parts"])
def test_flipped_byte_is_sent_again(data):
    with Flips(1) as server:
        store = open_at(server, transfer_retries=1)
        assert read(store, store.add("id", data).uri) == data


@pytest.mark.parametrize("data", [b"data", LARGE], ids=["one piece", "parts"])
def test_server_whose_etags_are_no_md5s_is_written_to(data):
    other = reply(200, {"ETag": '"0123456789abcdef0123456789abcdef"'})
    with S3Server(after=lambda operation, request: other if operation in ("put", "part") else None) as server:
        store = open_at(server, transfer_retries=1)
        assert read(store, store.add("id", data).uri) == data
        before = len(server.requests)
        store.add("next", b"data")
        assert len(server.requests) == before + 1


# -- Reading --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [name for name in NOT_S3 if name != "a text of a proxy"])
@pytest.mark.parametrize("operation", ["get", "head"])
def test_page_is_not_taken_for_an_image(wrong, operation):
    with S3Server() as server:
        store = open_at(server)
        uri = store.add("id", b"data").uri
        response = NOT_S3[wrong]
        server.instead = only(
            operation, response if operation == "get" else response.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        )
        with pytest.raises(StoreError) as caught:
            _ = store.get(uri) if operation == "get" else store.get_size(uri)
        assert not isinstance(caught.value, NotFound)


HEADERS = {"ETag": etag(b"some data"), "Last-Modified": DATE}
LIES = {
    "another start": reply(206, HEADERS | {"Content-Range": "bytes 0-3/9"}, b"some"),
    "past the end": reply(206, HEADERS | {"Content-Range": "bytes 5-20/9"}, b"data"),
    "backwards": reply(206, HEADERS | {"Content-Range": "bytes 5-2/9"}, b"data"),
    "another length": reply(206, HEADERS | {"Content-Range": "bytes 5-8/9"}, b"dat"),
    "no number": reply(206, HEADERS | {"Content-Range": "bytes some/9"}, b"data"),
    "of unknown size": reply(206, HEADERS | {"Content-Range": "bytes 5-8/*"}, b"data"),
    "missing": reply(206, HEADERS, b"data"),
    "of the whole": reply(200, HEADERS, b"some data"),
}


@pytest.mark.parametrize("lie", LIES)
def test_range_that_was_not_asked_for_is_refused(lie):
    with S3Server() as server:
        store = open_at(server)
        uri = store.add("id", b"some data").uri
        server.instead = only("get", LIES[lie])
        with pytest.raises(RemoteServiceUnavailable):
            read(store, uri, 5)


def test_part_that_comes_for_the_whole_is_refused():
    with S3Server() as server:
        store = open_at(server)
        uri = store.add("id", b"some data").uri
        server.instead = only("get", reply(206, HEADERS | {"Content-Range": "bytes 0-3/9"}, b"some"))
        with pytest.raises(RemoteServiceUnavailable):
            read(store, uri)


@pytest.mark.parametrize("cut", [False, True])
def test_image_that_comes_in_chunks_has_its_size_from_a_head(cut):
    head = f"HTTP/1.1 200 OK\r\nETag: {HEADERS['ETag']}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    responses = [head + (b"4\r\nsome\r\n0\r\n\r\n" if cut else b"9\r\nsome data\r\n0\r\n\r\n")]
    with S3Server() as server:
        store = open_at(server, transfer_retries=1)
        uri = store.add("id", b"some data").uri
        server.instead = lambda operation, request: responses.pop() if operation == "get" and responses else None
        assert read(store, uri) == b"some data"
        assert store.get(uri).size == 9


def test_head_without_a_size_is_no_size():
    with S3Server(instead=only("head", f"HTTP/1.1 200 OK\r\nETag: {etag(b'')}\r\n\r\n".encode())) as server:
        store = open_at(server)
        with pytest.raises(RemoteServiceUnavailable, match="ContentLength"):
            store.get_size(store.bucket.location("id").uri)


def test_weak_etag_of_a_proxy_pins_the_same_version():
    with S3Server() as server:
        store = open_at(server)
        uri = store.add("id", b"some data").uri
        weak = HEADERS | {"ETag": f"W/{HEADERS['ETag']}"}
        server.instead = only("get", reply(200, weak, b"some data"))
        with store.get(uri).data as stream:
            server.instead = lambda operation, request: None
            stream.seek(5)
            assert stream.read() == b"data"
        assert server.requests[-1].headers["if-match"] == HEADERS["ETag"]


def test_encoding_that_a_proxy_made_is_no_image():
    """Neither whole nor from where it was cut, and nothing of it is copied; what others keep encoded is read so."""
    data = bytes(100_000)

    def squeeze(operation, request):
        if operation != "get":
            return None
        made = gzip.compress(data)
        told = {"ETag": etag(data), "Content-Encoding": "gzip", **server.objects["id"][1]}
        if "range" in request.headers:
            return reply(206, told | {"Content-Range": f"bytes 5-{len(made) + 4}/{len(data)}"}, made)
        return reply(200, told, made)

    with S3Server() as server:
        store = open_at(server)
        uri = store.add("id", data).uri
        stream = store.get(uri).data
        server.instead = squeeze
        for call in (lambda: read(store, uri), lambda: read(store, uri, 5), lambda: store.copy(uri, "copy")):
            with pytest.raises(RemoteServiceUnavailable, match="encoding"):
                call()
        stream.seek(5)
        with stream, pytest.raises(RemoteServiceUnavailable, match="encoding"):
            stream.read()
        assert set(server.objects) == {"id"}
        server.objects["id"] = (data, {"x-amz-meta-of": "others"})
        assert gzip.decompress(read(store, uri)) == data


@pytest.mark.parametrize("refusal", [error(501, "NotImplemented"), error(400, "InvalidArgument")])
def test_server_that_knows_no_checksums_is_read_without(refusal):
    def instead(operation, request):
        return refusal if "x-amz-checksum-mode" in request.headers else None

    with S3Server(instead) as server:
        store = open_at(server)
        uri = store.add("id", b"data").uri
        assert read(store, uri) == read(store, uri) == b"data"
        assert server.operations == ["put", "get", "get", "get"]


# -- Digests --------------------------------------------------------------------------------------------------


def digest(store, uri, *span):
    reader = store.open_reader(store.locate(uri), *(span or (0, None)), None)
    reader.close()
    return reader.digest


@pytest.mark.parametrize("algorithm", ["sha512", "sha256", "md5"])
@pytest.mark.parametrize("span", [(0, None), (1, 2), (100, None)])
def test_digest_of_an_image_in_one_piece_is_recorded(algorithm, span):
    with S3Server() as server:
        store = open_at(server)
        stored = store.add("id", b"data", hashing_algo=algorithm)
        assert digest(store, stored.uri, *span) == (algorithm, stored.multihash)


def test_etag_is_the_digest_of_an_object_of_others_in_one_piece():
    with S3Server() as server:
        store = open_at(server)
        uri = store.bucket.location("id").uri
        server.objects["id"] = (b"data", {})
        assert digest(store, uri) == ("md5", hashlib.md5(b"data", usedforsecurity=False).hexdigest())


@pytest.mark.parametrize(
    "kept",
    [
        {"ETag": '"0123456789abcdef0123456789abcdef-2"'},
        {"x-amz-server-side-encryption": "aws:kms"},
        {"x-amz-server-side-encryption-customer-algorithm": "AES256"},
        {"x-amz-storage-class": "EXPRESS_ONEZONE"},
    ],
)
def test_etag_that_is_no_md5_is_no_digest(kept):
    with S3Server() as server:
        server.objects["id"] = (b"data", kept)
        store = open_at(server)
        assert digest(store, store.bucket.location("id").uri) is None


def test_metadata_that_are_no_digest_are_none():
    with S3Server() as server:
        server.objects["id"] = (b"data", {"x-amz-meta-storelib-digest": "sha512:xyz", "ETag": '"other"'})
        store = open_at(server)
        assert digest(store, store.bucket.location("id").uri) is None


# -- Deleting, access -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", DOUBTFUL)
def test_deletion_that_never_was_is_no_success(wrong):
    with S3Server() as server:
        store = open_at(server)
        uri = store.add("id", b"data").uri
        server.instead = only("delete", DOUBTFUL[wrong])
        with pytest.raises(StoreError):
            store.delete(uri)
        server.instead = lambda operation, request: None
        assert read(store, uri) == b"data"


def test_deletion_by_a_server_that_does_not_name_itself_is_looked_at():
    with S3Server() as server:
        store = open_at(server)
        store.delete(store.add("id", b"data").uri)
        assert server.operations == ["put", "head", "delete"]
        server.after = only("delete", reply(204))
        store.delete(store.add("id", b"data").uri)
        assert server.operations[-2:] == ["delete", "head"]


@pytest.mark.parametrize("wrong", DOUBTFUL)
def test_upload_that_was_not_removed_is_not_told_as_removed(wrong):
    with S3Server() as server:
        server.uploads["dead"] = ("id", {}, {})
        server.instead = only("abort", DOUBTFUL[wrong])
        with pytest.raises(StoreError):
            open_at(server).gc(0)
        assert set(server.uploads) == {"dead"}


def test_upload_that_ends_just_before_it_is_removed_ends_no_gc():
    """By its own add, or by another gc."""

    def instead(operation, request):
        if operation == "abort" and server.operations.count("abort") == 1:
            del server.uploads["first"]

    with S3Server(instead) as server:
        server.uploads.update({"first": ("a", {}, {}), "second": ("b", {}, {})})
        assert [item.image_id for item in open_at(server).gc(0)] == ["b"]
        assert not server.uploads


NONSENSE = {
    "a length in words": b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: many\r\n\r\n',
    "a length beyond all": b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: ' + b"9" * 30 + b"\r\n\r\n",
    "a length below none": b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: -1\r\n\r\n',
    "a date in words": reply(200, {"ETag": '"e"', "Last-Modified": "yesterday"}),
    "no such date": reply(200, {"ETag": '"e"', "Last-Modified": "Fri, 31 Feb 2026 25:61:00 GMT"}),
}


ENTRY = "<Contents><Key>id</Key><Size>{}</Size><LastModified>{}</LastModified></Contents>{}"


@pytest.mark.parametrize(
    "inside",
    [
        ENTRY.format("some", s3_server.ISO, ""),
        ENTRY.format("-7", s3_server.ISO, ""),
        ENTRY.format("9" * 30, s3_server.ISO, ""),
        ENTRY.format("7", "yesterday", ""),
        ENTRY.format("7", s3_server.ISO, "<MaxKeys>some</MaxKeys>"),
    ],
)
def test_list_of_numbers_and_dates_that_are_none_is_an_error_of_the_store(inside):
    server = S3Server(instead=only("list", document("ListBucketResult", inside)))
    with server, pytest.raises(RemoteServiceUnavailable):
        list(open_at(server).list_images())


@pytest.mark.parametrize("wrong", NONSENSE)
@pytest.mark.parametrize("call", ["get", "get_size", "stat", "delete"])
def test_numbers_and_dates_that_are_none_are_an_error_of_the_store(call, wrong):
    with S3Server() as server:
        store = open_at(server)
        uri = store.add("id", b"data").uri
        server.instead = lambda operation, request: NONSENSE[wrong] if operation in ("get", "head") else None
        with pytest.raises(RemoteServiceUnavailable):
            getattr(store, call)(uri)
        assert set(server.objects) == {"id"}


FORMS = ["%Y-%m-%dT%H:%M:%S.000Z", "%Y-%m-%dT%H:%M:%SZ", "%a, %d %b %Y %H:%M:%S GMT", "%Y%m%dT%H%M%SZ"]


@given(moment=st.datetimes(datetime.datetime(1970, 1, 1), datetime.datetime(2200, 1, 1)), form=st.sampled_from(FORMS))
@example(moment=datetime.datetime(2026, 1, 2), form="%Y-%m-%dT%H:%M:%S+02:00")
@example(moment=datetime.datetime(2026, 1, 2), form="1767312000")
def test_times_are_those_that_botocore_reads(moment, form):
    text = moment.strftime(form)
    assert time_of(text) == parse_timestamp(text)


def test_times_of_a_listing_and_of_headers_are_read_without_a_search_for_their_form(monkeypatch):
    # botocore's way is half of what a listing costs.
    monkeypatch.setattr("dateutil.parser.parse", lambda *arguments, **options: pytest.fail("was searched"))
    with S3Server() as server:
        store = open_at(server)
        uri = store.add("id", b"data").uri
        [image] = store.list_images()
        assert image.modified == datetime.datetime.fromisoformat(ISO[:-1] + "+00:00").timestamp()
        assert store.stat(uri).modified == parsedate_to_datetime(DATE).timestamp()


def test_requests_say_who_sends_them_in_a_text_that_is_made_once(monkeypatch):
    # botocore would make one twice for each request, a tenth of what that costs.
    told = []
    monkeypatch.setattr(UserAgentString, "_build_sdk_metadata", lambda agent: pytest.fail("was made again"))
    with S3Server(instead=lambda operation, request: told.append(request.headers["user-agent"])) as server:
        open_at(server).add("id", b"data")
    assert set(told) == {f"storelib/{storelib.__version__} Botocore/{botocore.__version__}"}


def test_deletion_whose_answer_was_replaced_is_asked_for_again():
    with S3Server(after=only("delete", NOT_S3["a page"])) as server:
        store = open_at(server)
        store.delete(store.add("id", b"data").uri)
        assert server.operations == ["put", "head", "delete", "head"]


def test_deletion_that_is_tried_again_leaves_what_was_added_meanwhile():
    def lose(operation, request):
        if operation != "delete":
            return None
        server.after = lambda operation, request: None
        server.objects["id"] = (b"of another", {"x-amz-meta-storelib-token": "another"})
        return error(500, "InternalError")

    with S3Server(after=lose) as server:
        store = open_at(server, transfer_retries=1)
        store.delete(store.add("id", b"data").uri)
        assert server.objects["id"][0] == b"of another"
        store.delete(store.bucket.location("id").uri)
        assert not server.objects


@pytest.mark.parametrize("wrong", [name for name in NOT_S3 if name != "nothing at all"])
@pytest.mark.parametrize("operation", ["get_acl", "put_acl"])
def test_access_that_was_not_given_is_no_success(wrong, operation):
    with S3Server() as server:
        store = open_at(server)
        uri = store.add("id", b"data").uri
        server.instead = only(operation, NOT_S3[wrong])
        with pytest.raises(StoreError):
            store.set_acls(uri, public=True)


# -- Listings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", NOT_S3)
def test_page_is_not_an_empty_store(wrong):
    with S3Server(instead=lambda operation, request: NOT_S3[wrong]) as server:
        store = open_at(server)
        for call in (lambda: list(store.list_images()), lambda: store.gc(0), store.check):
            with pytest.raises(StoreError):
                call()


MORE = "<IsTruncated>true</IsTruncated>"
LISTS = {
    "more, and not where": lambda number: MORE + entry("a"),
    "the same place again": lambda number: (
        f"{MORE}<NextContinuationToken>x</NextContinuationToken>{entry(f'k{number}')}"
    ),
    "in circles": lambda number: (
        f"{MORE}<NextContinuationToken>{number % 5}</NextContinuationToken>{entry(f'k{number}')}"
    ),
    "the same images again and again": lambda number: (
        f"{MORE}<NextContinuationToken>{number}</NextContinuationToken>{entry(f'k{number % 3}')}"
    ),
    "nothing, for ever": lambda number: f"{MORE}<NextContinuationToken>{number}</NextContinuationToken>",
    "an entry without a key": lambda number: "<Contents><Size>1</Size></Contents>",
    "an entry without a size": lambda number: entry("a").replace("<Size>1</Size>", ""),
    "an entry without a time": lambda number: entry("a").partition("<LastModified>")[0] + "</Contents>",
}


@pytest.mark.parametrize("kind", LISTS)
def test_list_that_cannot_be_is_an_error(kind, monkeypatch):
    monkeypatch.setattr("storelib.drivers.s3.bucket._MOST_EMPTY", 20)
    pages = iter(range(1000))
    with S3Server(lambda operation, request: document("ListBucketResult", LISTS[kind](next(pages)))) as server:
        with pytest.raises(RemoteServiceUnavailable):
            list(open_at(server).list_images())
        assert len(server.requests) < 50


def test_long_list_is_read_to_its_end():
    def pages(operation, request):
        number = int(request.target.partition("continuation-token=")[2].partition("&")[0] or 0)
        more = f"{MORE}<NextContinuationToken>{number + 1}</NextContinuationToken>" if number < 20 else ""
        return document("ListBucketResult", more + entry(f"k{number}"))

    with S3Server(pages) as server:
        assert [info.image_id for info in open_at(server).list_images()] == [f"k{number}" for number in range(21)]


def test_name_of_others_that_no_uri_can_hold_hides_no_image():
    told = "<EncodingType>url</EncodingType>" + entry("a%00b") + entry("id")
    with S3Server(lambda operation, request: document("ListBucketResult", told)) as server:
        assert [info.image_id for info in open_at(server).list_images()] == ["id"]


def test_server_that_knows_neither_prefix_nor_delimiter_lists_and_loses_nothing_of_others():
    with S3Server(instead=lambda operation, request: None) as server:
        for key in ("pre/a", "pre/deeper/b", "of others", "prefix"):
            server.objects[key] = (b"data", {})
            server.uploads[f"u {key}"] = (key, {}, {})
        server._list = lambda request, key, query: S3Server._list(server, request, key, {})
        server._list_uploads = lambda request, key, query: S3Server._list_uploads(server, request, key, {})
        store = open_at(server, s3_store_key_prefix="pre/")
        assert [info.image_id for info in store.list_images()] == ["a"]
        assert [item.image_id for item in store.gc(0)] == ["a"]
        assert set(server.uploads) == {"u pre/deeper/b", "u of others", "u prefix"}


@pytest.mark.parametrize("image_id", ["not\ufffe", "nor\uffff", "but\U000ffffe"])
def test_id_that_xml_cannot_write_is_one_like_any_other(image_id):
    with S3Server() as server:
        store = open_at(server)
        for data in (b"data", LARGE):
            uri = store.add(image_id, data).uri
            assert [info.image_id for info in store.list_images()] == [image_id]
            assert read(store, uri) == data
            store.delete(uri)
            with pytest.raises(NotFound):
                read(store, uri)
        assert not server.uploads


@pytest.mark.parametrize("written", ["{}", "&#{:d};", "&#x{:X};"], ids=["plain", "decimal", "hexadecimal"])
@pytest.mark.parametrize("code", [0x1, 0x1F, 0xFFFE])
def test_leftovers_whose_names_xml_cannot_write_are_removed_with_all_others(code, written):
    uploads = [f"a{chr(code)}", "b\t&\U0001f600"]
    with S3Server() as server:
        for key in uploads:
            server.uploads[f"u {key[0]}"] = (key, {}, {})
        told = written.format(chr(code)) if written == "{}" else written.format(code)
        server._list_uploads = lambda *_: document(
            "ListMultipartUploadsResult",
            "".join(
                f"<Upload><Key>{key}</Key><UploadId>u {key[0]}</UploadId><Initiated>{ISO}</Initiated></Upload>"
                for key in (f"a{told}", "b&#9;&amp;&#x1F600;")
            ),
        )
        assert [item.image_id for item in open_at(server).gc(0)] == uploads
        assert not server.uploads
        assert {unquote(request.target).partition("?")[0] for request in server.requests[1:]} == {
            f"/images/{key}" for key in uploads
        }


def test_incomplete_image_is_an_error():
    with S3Server() as server:
        store = open_at(server, s3_store_read_timeout=0.3)
        uri = store.add("id", b"some data").uri
        cut = reply(200, HEADERS | {"Content-Length": "9"}, b"some")
        server.instead = only("get", cut)
        with pytest.raises((IncompleteRead, RemoteServiceUnavailable)):
            read(store, uri)
