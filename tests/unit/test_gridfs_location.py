# SPDX-License-Identifier: Apache-2.0
"""GridfsLocation: every URI form, read and written, and what is none."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from storelib.drivers.gridfs import GridfsLocation
from storelib.exceptions import BadStoreUri
from storelib.location import Location

SCHEMES = {"gridfs": GridfsLocation}

URIS = {
    "gridfs://1b6b3a0e-6f6c-4f7e-8c25-6a3d1f0c9b2a": "1b6b3a0e-6f6c-4f7e-8c25-6a3d1f0c9b2a",
    "gridfs://6b00a1fad43b53c9f1757cf4": "6b00a1fad43b53c9f1757cf4",
    "gridfs://Debian%2012": "Debian 12",
    "gridfs://a%2Fb": "a/b",
    "gridfs://100%25": "100%",
    "gridfs://a%3Fb%23c": "a?b#c",
    "gridfs://%C3%BC": "ü",
    "gridfs://a%40b%3Ac": "a@b:c",
    "gridfs://ID": "ID",
    "gridfs://.": ".",
}


@pytest.mark.parametrize(("uri", "image_id"), URIS.items())
def test_uri_names_an_image_and_comes_back(uri, image_id):
    location = Location(uri, SCHEMES)
    assert location.store_location == GridfsLocation(image_id)
    assert location.uri == uri


@pytest.mark.parametrize(
    ("uri", "written"),
    [("GridFS://id", "gridfs://id"), ("gridfs://a:b", "gridfs://a%3Ab"), ("gridfs://ü", "gridfs://%C3%BC")],
)
def test_loose_forms_are_written_strictly(uri, written):
    assert Location(uri, SCHEMES).uri == written


@pytest.mark.parametrize(
    "uri",
    [
        "gridfs://",
        "gridfs:///id",
        "gridfs://id/",
        "gridfs://host/id",
        "gridfs://id?x=1",
        "gridfs://id#x",
        "gridfs://user:secret@id",
        "gridfs://a b",
        "gridfs://a\nb",
        "gridfs://%ff",
        "gridfs://\ud800",
        "s3://id",
        "gridfs:id",
    ],
)
def test_what_is_no_image_is_refused(uri):
    with pytest.raises(BadStoreUri) as caught:
        GridfsLocation.parse(uri)
    assert "secret" not in str(caught.value)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
@example("a@b:c/d")
def test_every_location_comes_back_from_its_uri(image_id):
    location = GridfsLocation(image_id)
    assert GridfsLocation.parse(location.uri) == location
    assert location.uri.isascii()
    assert not re.search(r"[\s@?#]", location.uri)


@given(st.text())
def test_any_text_is_a_location_or_refused(text):
    try:
        found = GridfsLocation.parse(f"gridfs://{text}")
    except BadStoreUri:
        return
    assert GridfsLocation.parse(found.uri) == found
