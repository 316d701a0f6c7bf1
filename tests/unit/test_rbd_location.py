# SPDX-License-Identifier: Apache-2.0
"""The URIs of RBD images: what is read, what is written, what is refused."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from storelib.drivers.rbd import RbdLocation
from storelib.exceptions import BadStoreUri

READ = {
    "rbd://image": ("image", "snap", None, None, ""),
    "rbd://fsid/pool/image/snap": ("image", "snap", "fsid", "pool", ""),
    "rbd://fsid/pool/image/backup": ("image", "backup", "fsid", "pool", ""),
    "rbd://fsid/pool/space/image/snap": ("image", "snap", "fsid", "pool", "space"),
    "RBD://fsid/pool/image/snap": ("image", "snap", "fsid", "pool", ""),
    "rbd://an%20image%40home": ("an image@home", "snap", None, None, ""),
    "rbd://fsid/my%20pool/a%3Fb%23c%25/snap": ("a?b#c%", "snap", "fsid", "my pool", ""),
    "rbd://fsid/pool/b%C3%BCcher/snap": ("bücher", "snap", "fsid", "pool", ""),
    "rbd://fsid/pool/bücher/snap": ("bücher", "snap", "fsid", "pool", ""),
    "rbd://fsid/pool/user:pass@host/snap": ("user:pass@host", "snap", "fsid", "pool", ""),
}
REFUSED = [
    "rbd://",
    "rbd:///",
    "rbd://image/",
    "rbd://pool/image",
    "rbd://fsid/pool/image",
    "rbd://fsid/pool/space/image/snap/more",
    "rbd://fsid//image/snap",
    "rbd:///pool/image/snap",
    "rbd://fsid/pool/image/",
    "rbd://fsid/pool/../snap",
    "rbd://fsid/pool/%2e%2e/snap",
    "rbd://fsid/pool/..%2fother/snap",
    "rbd://fsid/pool/a%2Fb/snap",
    "rbd://fsid/pool/image%00/snap",
    "rbd://fsid/pool/im\nage/snap",
    "rbd://fsid/pool/%ff%fe/snap",
    "rbd://fsid/pool/\udcff/snap",
    "rbd://user:secret@fsid/pool/image/snap",
    "rbd:image",
    "s3://fsid/pool/image/snap",
]


@pytest.mark.parametrize("uri", READ)
def test_uri_is_read(uri):
    found = RbdLocation.parse(uri)
    assert (found.image, found.snapshot, found.fsid, found.pool, found.namespace) == READ[uri]
    assert RbdLocation.parse(found.uri) == found


@pytest.mark.parametrize("uri", REFUSED)
def test_what_is_no_image_is_refused(uri):
    with pytest.raises(BadStoreUri) as caught:
        RbdLocation.parse(uri)
    assert "secret" not in str(caught.value)


_parts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1).filter(
    lambda part: part not in (".", "..")
)


@given(image=_parts, snapshot=_parts, fsid=_parts, pool=_parts, namespace=st.just("") | _parts)
@example(image="a%2Fb", snapshot="snap", fsid="f", pool="p", namespace="")
def test_every_location_comes_back_from_its_uri(image, snapshot, fsid, pool, namespace):
    location = RbdLocation(image, snapshot, fsid, pool, namespace)
    assert RbdLocation.parse(location.uri) == location
    assert location.uri.isascii()
    assert not re.search(r"[ @?#]", location.uri)


@given(image=_parts)
def test_every_short_location_comes_back_from_its_uri(image):
    location = RbdLocation(image)
    assert RbdLocation.parse(location.uri) == location


@given(st.text())
def test_any_text_is_a_location_or_refused(text):
    try:
        found = RbdLocation.parse(f"rbd://{text}")
    except BadStoreUri:
        return
    assert RbdLocation.parse(found.uri) == found
