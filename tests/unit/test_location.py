# SPDX-License-Identifier: Apache-2.0
"""Locations: parsing, formatting, redacting, and the rule for image ids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storelib.driver import check_image_id
from storelib.drivers.filesystem import FileLocation
from storelib.exceptions import BadStoreUri, Invalid, UnknownScheme
from storelib.location import Location, get_location_from_uri, installed_schemes
from storelib.registry import Registry, open_store
from storelib.testing.memory import MemoryLocation, MemoryStore
from storelib.uris import redact, scheme_of

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


@pytest.mark.parametrize("scheme", sorted(installed_schemes()))
def test_half_a_character_is_in_no_uri(scheme):
    with pytest.raises(BadStoreUri) as caught:
        Location(f"{scheme}://\udcff/folder/a\ud800b?dcPath=a&dsName=\ud800")
    str(caught.value).encode()


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
        ("https://host/x?X%2DAmz%2DSignature=abc&b=2", "https://host/x?X%2DAmz%2DSignature=***&b=2"),
        ("https://host/x?a=1?token=abc", "https://host/x?a=1?token=***"),
        ("https://host/x?token=a?b#c", "https://host/x?token=***#c"),
        ("https://host/x#access_token=abc", "https://host/x#access_token=***"),
        ("https://user%3Apass@host/x", "https://***@host/x"),
        ("not http://a/x but http://u:p@b/y?key=1", "not http://a/x but http://***@b/y?key=***"),
        ("s3://k:s@a/x nor s3://l:t@b/y", "s3://***@b/y"),
        ("https://t@a/x nor https://u@b/y", "https://***@a/x nor https://***@b/y"),
    ],
)
def test_redact_blots_out_credentials(uri, shown):
    assert redact(uri) == shown


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=8, max_size=20), st.sampled_from(["s3", "swift"]))
def test_no_secret_survives_redaction(secret, scheme):
    assert f"key:{secret}@" not in redact(f"{scheme}://key:{secret}@host/bucket/object")


@pytest.mark.parametrize("scheme", ["FILE", "File", "fileSystem"])
def test_a_scheme_is_read_in_any_case_and_written_in_lower_case(tmp_path, scheme):
    store = open_store("file", filesystem_store_datadir=tmp_path)
    uri = store.add("x", b"image").uri
    shouted = scheme + "://" + uri.partition("://")[2]
    assert store.get(shouted).data.read() == b"image"
    assert Location(shouted).uri == uri
    registry = Registry([store])
    assert registry.resolve(shouted) is store
    assert registry.store_for_scheme(scheme) is store


class ShoutingStore(MemoryStore):
    """A driver that writes its scheme in capitals, and reads it only so."""

    schemes = ("Memory",)


def test_a_driver_may_write_its_scheme_in_any_case():
    store = open_store(ShoutingStore, "shouting")
    uri = store.add("x", b"image").uri
    registry = Registry([store])
    assert registry.resolve(uri).get(uri.upper().replace("X", "x").replace("SHOUTING", "shouting")).size == 5
    assert registry.schemes == ["memory"]


@pytest.mark.parametrize("image_id", ["%01", "a%0Ab", "%2E%2E", ".", "a%2Fb", "x" * 256, "%C3%A9" * 128])
def test_a_uri_whose_image_id_is_none_is_refused_before_the_back_end_is_asked(image_id):
    store = open_store(MemoryStore, "m")
    for method in ("open_reader", "measure", "remove", "inspect", "image"):
        setattr(store, method, lambda *arguments: pytest.fail("was asked"))
    for act in (store.get, store.get_size, store.delete, store.stat, lambda uri: Registry([store]).resolve(uri)):
        with pytest.raises(BadStoreUri):
            act(f"memory://m/{image_id}")


def test_a_file_that_no_image_can_be_in_is_refused(tmp_path):
    store = open_store("file", filesystem_store_datadir=tmp_path)
    (tmp_path / "a\nb").write_bytes(b"no image")
    with pytest.raises(BadStoreUri):
        store.get(f"file://{tmp_path}/a%0Ab")


def test_repr_and_str_of_a_location_are_redacted():
    location = Location("file:///srv/x")
    assert repr(location) == "Location('file:///srv/x')"
    assert str(location) == "file:///srv/x"
