# SPDX-License-Identifier: Apache-2.0
"""Locations: parsing, formatting, redacting, and the rule for image ids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storelib.driver import check_image_id
from storelib.drivers.filesystem import FileLocation
from storelib.exceptions import BadStoreUri, Invalid, UnknownScheme
from storelib.location import Location, get_location_from_uri, redact, scheme_of
from storelib.testing.memory import MemoryLocation

image_ids = st.text(
    st.characters(exclude_characters="/", exclude_categories=("Cc", "Cs")), min_size=1, max_size=60
).filter(lambda text: text not in (".", ".."))


@given(image_ids)
def test_every_allowed_id_round_trips_through_a_memory_uri(image_id):
    location = MemoryLocation("store", image_id)
    assert MemoryLocation.parse(location.uri) == location


@given(st.lists(image_ids, min_size=1, max_size=4))
def test_every_path_round_trips_through_a_file_uri(parts):
    location = FileLocation("/" + "/".join(parts))
    assert FileLocation.parse(location.uri) == location


@given(image_ids)
def test_a_uri_is_plain_ascii_without_anything_to_misread(image_id):
    rest = FileLocation(f"/srv/{image_id}").uri.removeprefix("file:///srv/")
    assert not set(rest) & set(" /?#\"'\\<>")
    assert rest.isascii()


@given(image_ids)
def test_the_allowed_ids_are_allowed(image_id):
    if len(image_id.encode()) <= 255:
        check_image_id(image_id)


@pytest.mark.parametrize(
    "image_id",
    ["", ".", "..", "a/b", "/", "a\0b", "a\nb", "a\x7fb", "a\x85b", "x" * 256, "é" * 128, "\ud800", 7, None, b"x"],
)
def test_ids_that_are_not_allowed_are_invalid(image_id):
    with pytest.raises(Invalid, match="image id"):
        check_image_id(image_id)


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///srv/images/x", "/srv/images/x"),
        ("filesystem:///srv/images/x", "/srv/images/x"),
        ("FILE:///srv/images/x", "/srv/images/x"),
        ("file://localhost/srv/x", "/srv/x"),
        ("file:///srv//images/./x", "/srv/images/x"),
        ("file:///srv/my images/x", "/srv/my images/x"),
        ("file:///srv/my%20images/x", "/srv/my images/x"),
    ],
)
def test_all_forms_of_a_file_uri_are_read(uri, path):
    assert FileLocation.parse(uri) == FileLocation(path)


@pytest.mark.parametrize(
    "uri",
    [
        "file://",
        "file:///",
        "file://host/srv/x",
        "file:///srv/../etc/passwd",
        "file:///srv/%2e%2e/etc/passwd",
        "file:///srv/a%2Fb",
        "file:///srv/a%00b",
        "file:///srv/x?query",
        "file:///srv/x#fragment",
        "file:///srv/images/",
        "file:///srv/%ff",
        "file:relative",
        "/srv/x",
        "",
        "x" * 100,
        7,
        None,
    ],
)
def test_malformed_file_uris_are_bad_store_uris(uri):
    with pytest.raises(BadStoreUri):
        FileLocation.parse(uri)


def test_location_finds_the_class_by_scheme():
    assert Location("file:///srv/x").store_location == FileLocation("/srv/x")
    assert get_location_from_uri("FileSystem:///srv/x") == Location("file:///srv/x")


def test_an_unknown_scheme_names_the_known_ones():
    with pytest.raises(UnknownScheme, match=r"'nope'.*file"):
        Location("nope://x")


def test_scheme_of_wants_the_double_slash():
    with pytest.raises(BadStoreUri):
        scheme_of("file:/srv/x")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://ACCESS:SE/CR+ET@host/bucket/key", "s3://***@host/bucket/key"),
        ("swift://tenant:user:p@ss@auth/v1/c/o", "swift://***@auth/v1/c/o"),
        ("https://user:pass@host/x", "https://***@host/x"),
        ("https://token@host/x@y", "https://***@host/x@y"),
        ("https://host/x?a=1&X-Amz-Signature=abc&b=2", "https://host/x?a=1&X-Amz-Signature=***&b=2"),
        ("https://u:p?w#d@host/x", "https://***@host/x"),
        ("file:///srv/a@b:c", "file:///srv/a@b:c"),
        ("file://user:secret@host/srv/x", "file://***@host/srv/x"),
        ("user:pass@host", "***@host"),
    ],
)
def test_redact_blots_out_credentials(uri, shown):
    assert redact(uri) == shown


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=8, max_size=20), st.sampled_from(["s3", "swift"]))
def test_no_secret_survives_redaction(secret, scheme):
    assert f"key:{secret}@" not in redact(f"{scheme}://key:{secret}@host/bucket/object")


def test_repr_and_str_of_a_location_are_redacted():
    location = Location("file:///srv/x")
    assert repr(location) == "Location('file:///srv/x')"
    assert str(location) == "file:///srv/x"
