# SPDX-License-Identifier: Apache-2.0
"""What errors of the server, of botocore and below mean to a caller."""

import socket
import ssl
import traceback

import pytest
import urllib3.exceptions
from botocore import exceptions as botocore

from storelib import exceptions as storelib
from storelib.drivers.s3.errors import storelib_error

BY_CODE = {
    ("NoSuchKey", 404, "GetObject"): storelib.NotFound,
    ("404", 404, "HeadObject"): storelib.NotFound,
    ("NoSuchVersion", 404, "GetObject"): storelib.NotFound,
    ("NoSuchBucket", 404, "PutObject"): storelib.BadStoreConfiguration,
    ("NoSuchUpload", 404, "UploadPart"): storelib.StoreError,
    ("AccessDenied", 403, "GetObject"): storelib.Forbidden,
    ("AccessDenied", 403, "DeleteObject"): storelib.Forbidden,
    ("403", 403, "HeadObject"): storelib.Forbidden,
    ("AccessDenied", 403, "PutObject"): storelib.StorageWriteDenied,
    ("AccessDenied", 403, "CreateMultipartUpload"): storelib.StorageWriteDenied,
    ("AccessDenied", 403, "CompleteMultipartUpload"): storelib.StorageWriteDenied,
    ("KMS.DisabledException", 403, "UploadPart"): storelib.StorageWriteDenied,
    ("InvalidAccessKeyId", 403, "PutObject"): storelib.Forbidden,
    ("SignatureDoesNotMatch", 403, "GetObject"): storelib.Forbidden,
    ("ExpiredToken", 400, "GetObject"): storelib.Forbidden,
    ("RequestTimeTooSkewed", 403, "GetObject"): storelib.Forbidden,
    ("QuotaExceeded", 403, "PutObject"): storelib.StorageFull,
    ("XMinioStorageFull", 507, "UploadPart"): storelib.StorageFull,
    ("Whatever", 507, "UploadPart"): storelib.StorageFull,
    ("EntityTooLarge", 400, "PutObject"): storelib.Invalid,
    ("KeyTooLongError", 400, "PutObject"): storelib.Invalid,
    ("PreconditionFailed", 412, "PutObject"): storelib.Duplicate,
    ("PreconditionFailed", 412, "CompleteMultipartUpload"): storelib.Duplicate,
    ("PreconditionFailed", 412, "GetObject"): storelib.ImageChanged,
    ("PreconditionFailed", 412, "UploadPartCopy"): storelib.ImageChanged,
    ("412", 412, "HeadObject"): storelib.ImageChanged,
    ("PermanentRedirect", 301, "GetObject"): storelib.BadStoreConfiguration,
    ("AuthorizationHeaderMalformed", 400, "GetObject"): storelib.BadStoreConfiguration,
    ("NotImplemented", 501, "PutObject"): storelib.OperationNotSupported,
    ("MethodNotAllowed", 405, "PutObjectAcl"): storelib.OperationNotSupported,
    ("AccessControlListNotSupported", 400, "PutObjectAcl"): storelib.AclsNotSupported,
    ("InvalidStorageClass", 400, "PutObject"): storelib.BadStoreConfiguration,
    ("507", 507, "PutObject"): storelib.StorageFull,
    ("507", 507, "UploadPartCopy"): storelib.StorageFull,
    ("SomethingNew", 400, "PutObject"): storelib.StoreError,
}
PASSING = [
    ("SlowDown", 503),
    ("ServiceUnavailable", 503),
    ("InternalError", 500),
    ("InternalError", 200),
    ("RequestTimeout", 400),
    ("ConditionalRequestConflict", 409),
    ("OperationAborted", 409),
    ("BadDigest", 400),
    ("TooManyRequests", 429),
    ("429", 429),
    ("507", 507),
    ("502", 502),
    ("504", 504),
    ("SomethingNew", 500),
]


def client_error(code, status, operation="GetObject", headers=None, message="MESSAGE of the server"):
    metadata = {"HTTPStatusCode": status, "HTTPHeaders": headers or {}}
    return botocore.ClientError({"Error": {"Code": code, "Message": message}, "ResponseMetadata": metadata}, operation)


@pytest.mark.parametrize(("code", "status", "operation"), BY_CODE)
def test_error_of_the_server(code, status, operation):
    found = storelib_error(client_error(code, status, operation), "the image")
    assert type(found) is BY_CODE[code, status, operation]
    assert not found.transient
    assert "the image" in str(found)
    assert "MESSAGE" not in str(found)


@pytest.mark.parametrize(("code", "status"), PASSING)
def test_transient_error_of_the_server(code, status):
    found = storelib_error(client_error(code, status), "the image")
    assert type(found) is storelib.RemoteServiceUnavailable
    assert found.transient


def test_status_is_told_where_there_is_no_code():
    assert "answered 502 to" in str(storelib_error(client_error("", 502), "the image"))


def test_server_says_when_to_try_again():
    found = storelib_error(client_error("SlowDown", 503, headers={"retry-after": "7"}), "the image")
    assert found.retry_after == 7.0


@pytest.mark.parametrize("value", ["", "soon", "-1", "²", "9" * 20])
def test_nonsense_about_when_to_try_again_is_ignored(value):
    found = storelib_error(client_error("SlowDown", 503, headers={"retry-after": value}), "the image")
    assert found.retry_after is None


def test_code_of_the_server_is_made_harmless():
    found = storelib_error(client_error("Evil\n\x1b[2J" + "x" * 500, 400), "the image")
    assert "\n" not in str(found)
    assert "\x1b" not in str(found)
    assert len(str(found)) < 200


ENDPOINT = "https://host/bucket/key"
CONNECTION = {
    "refused": (botocore.EndpointConnectionError(endpoint_url=ENDPOINT, error=ConnectionRefusedError()), True),
    "closed": (botocore.ConnectionClosedError(endpoint_url=ENDPOINT, error=BrokenPipeError()), True),
    "connect timeout": (botocore.ConnectTimeoutError(endpoint_url=ENDPOINT), True),
    "read timeout": (botocore.ReadTimeoutError(endpoint_url=ENDPOINT), True),
    "in the middle": (botocore.ResponseStreamingError(error=OSError()), True),
    "incomplete": (botocore.IncompleteReadError(actual_bytes=1, expected_bytes=2), True),
    "reset": (ConnectionResetError(), True),
    "socket timeout": (TimeoutError(), True),
    "urllib3": (urllib3.exceptions.ProtocolError("cut"), True),
    "proxy": (botocore.ProxyConnectionError(proxy_url="http://user:PASSWORD@proxy", error=OSError()), True),
    "certificate": (botocore.SSLError(endpoint_url=ENDPOINT, error=ssl.SSLCertVerificationError("bad")), False),
    "name": (botocore.EndpointConnectionError(endpoint_url=ENDPOINT, error=socket.gaierror(-2, "unknown")), False),
    "name server": (
        botocore.EndpointConnectionError(endpoint_url=ENDPOINT, error=socket.gaierror(socket.EAI_AGAIN, "later")),
        True,
    ),
    "metadata": (botocore.CredentialRetrievalError(provider="iam-role", error_msg="no"), True),
}


@pytest.mark.parametrize("name", CONNECTION)
def test_error_of_the_connection(name):
    error, transient = CONNECTION[name]
    found = storelib_error(error, "the image")
    assert type(found) is storelib.RemoteServiceUnavailable
    assert found.transient is transient
    assert "PASSWORD" not in str(found)


@pytest.mark.parametrize("error", [botocore.NoCredentialsError(), botocore.ProfileNotFound(profile="x")])
def test_missing_credentials_name_the_options(error):
    found = storelib_error(error, "the image")
    assert type(found) is storelib.BadStoreConfiguration
    assert "s3_store_" in str(found)


def test_error_of_the_program_stays_what_it_is():
    assert storelib_error(ValueError("a mistake"), "the image") is None


def test_nothing_secret_is_in_a_traceback():
    error = client_error("SignatureDoesNotMatch", 403)
    error.response["Error"]["StringToSign"] = "SECRET"
    with pytest.raises(storelib.StoreError) as caught:
        raise storelib_error(error, "the image") from error
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))
