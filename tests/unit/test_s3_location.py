# SPDX-License-Identifier: Apache-2.0
"""The URIs of S3 images: what is read, what is written, what is never shown."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from storelib.drivers.s3 import S3Location
from storelib.exceptions import BadStoreUri

READ = {
    "s3://host/bucket/key": ("s3", "host", None, "bucket", "key"),
    "s3+https://host/bucket/key": ("s3+https", "host", None, "bucket", "key"),
    "s3+http://host:8080/bucket/key": ("s3+http", "host", 8080, "bucket", "key"),
    "S3+HTTPS://Host.Example.ORG/Bucket/Key": ("s3+https", "host.example.org", None, "Bucket", "Key"),
    "s3+https://host:443/bucket/key": ("s3+https", "host", None, "bucket", "key"),
    "s3+http://host:443/bucket/key": ("s3+http", "host", 443, "bucket", "key"),
    "s3+http://host:80/bucket/key": ("s3+http", "host", None, "bucket", "key"),
    "s3://[::1]:9000/bucket/key": ("s3", "[::1]", 9000, "bucket", "key"),
    "s3://127.0.0.1:9000/bucket/key": ("s3", "127.0.0.1", 9000, "bucket", "key"),
    "s3://host/bucket/a/key/with/slashes": ("s3", "host", None, "bucket", "a/key/with/slashes"),
    "s3://host/bucket/a%2Fb": ("s3", "host", None, "bucket", "a/b"),
    "s3://host/bucket//a//b/": ("s3", "host", None, "bucket", "/a//b/"),
    "s3://host/bucket/100%25%20%C3%BC+": ("s3", "host", None, "bucket", "100% ü+"),
    "s3://host/bucket/ü": ("s3", "host", None, "bucket", "ü"),
    "s3://host/bucket/a..b/.c": ("s3", "host", None, "bucket", "a..b/.c"),
    "s3://host/tenant%3Abucket/key": ("s3", "host", None, "tenant:bucket", "key"),
}
CREDENTIALS = {
    "s3://ACCESS:SECRET@host/bucket/key": ("ACCESS", "SECRET"),
    "s3+https://ACCESS:SEC/RET+/==@host:8080/bucket/key": ("ACCESS", "SEC/RET+/=="),
    "s3+http://ACCESS:SEC%2FRET%40@host/bucket/key": ("ACCESS", "SEC/RET@"),
    "s3://ACCESS:SEC@RET@host/bucket/key": ("ACCESS", "SEC@RET"),
    "s3://ACCESS:1234/SECRET@host/bucket/key": ("ACCESS", "1234/SECRET"),
    "s3://ACCESS:SEC?RET#x@host/bucket/key": ("ACCESS", "SEC?RET#x"),
    "s3://ACCESS@host/bucket/key": ("ACCESS", ""),
}
REFUSED = [
    "s3://",
    "s3:///",
    "s3://host",
    "s3://host/",
    "s3://host/bucket",
    "s3://host/bucket/",
    "s3:///bucket/key",
    "s3://host//key",
    "s3://host/bucket/.",
    "s3://host/bucket/..",
    "s3://host/bucket/../other/key",
    "s3://host/bucket/a/../../key",
    "s3://host/bucket/%2e%2e/key",
    "s3://host/bucket/..%2fkey",
    "s3://host/../key",
    "s3://host/a%2Fb/key",
    "s3://host/bucket/key?versionId=1",
    "s3://host/bucket/key#part",
    "s3://host/bucket/a\nb",
    "s3://host/bucket/a\0b",
    "s3://host/bucket/key%00",
    "s3://host/bucket/%ff%fe",
    "s3://host/bucket/\udcff",
    "s3://host:0/bucket/key",
    "s3://host:65536/bucket/key",
    "s3://host:x/bucket/key",
    "s3://host:/bucket/key",
    "s3://ho st/bucket/key",
    "s3://[::g]/bucket/key",
    "s3://A:B@/bucket/key",
    "s3:bucket/key",
    "http://host/bucket/key",
]


@pytest.mark.parametrize("uri", READ)
def test_uri_is_read(uri):
    found = S3Location.parse(uri)
    assert (found.scheme, found.host, found.port, found.bucket, found.key) == READ[uri]
    assert (found.access_key, found.secret_key) == (None, None)
    assert S3Location.parse(found.uri) == found


@pytest.mark.parametrize("uri", CREDENTIALS)
def test_credentials_are_read_and_never_written(uri):
    found = S3Location.parse(uri)
    assert (found.access_key, found.secret_key) == CREDENTIALS[uri]
    assert (found.host, found.bucket, found.key) == ("host", "bucket", "key")
    shown = found.uri + str(found) + repr(found)
    assert "ACCESS" not in shown
    assert "SEC" not in shown
    assert found == S3Location.parse(re.sub(r"//.*@", "//", uri))
    assert hash(found) == hash(S3Location.parse(found.uri))


@pytest.mark.parametrize("uri", REFUSED)
def test_what_is_no_image_is_refused(uri):
    with pytest.raises(BadStoreUri):
        S3Location.parse(uri)


@pytest.mark.parametrize("uri", [uri + "?" for uri in CREDENTIALS] + ["s3://ACCESS:SECRET@host", "s3://ACCESS:SECRET@"])
def test_refusal_shows_no_credential(uri):
    with pytest.raises(BadStoreUri) as caught:
        S3Location.parse(uri)
    assert "SEC" not in str(caught.value)


_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
_keys = _texts.filter(lambda key: not {".", ".."} & set(key.split("/")))
_buckets = _texts.filter(lambda bucket: "/" not in bucket and bucket not in (".", ".."))


@given(
    scheme=st.sampled_from(["s3", "s3+http", "s3+https"]),
    host=st.sampled_from(["host", "s3.eu-west-1.amazonaws.com", "10.0.0.1", "[2001:db8::1]"]),
    port=st.none() | st.integers(1, 65535).filter(lambda port: port not in (80, 443)),
    bucket=_buckets,
    key=_keys,
)
@example(scheme="s3", host="host", port=None, bucket="b", key="a:b@c/d")
def test_every_location_comes_back_from_its_uri(scheme, host, port, bucket, key):
    location = S3Location(scheme, host, port, bucket, key)
    assert S3Location.parse(location.uri) == location
    assert location.uri.isascii()
    assert location.uri.isprintable()
    assert not re.search(r"[ @?#]", location.uri)


@given(st.text())
def test_any_text_is_a_location_or_refused(text):
    try:
        found = S3Location.parse(f"s3://{text}")
    except BadStoreUri:
        return
    assert S3Location.parse(found.uri) == found
