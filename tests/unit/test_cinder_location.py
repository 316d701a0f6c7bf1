# SPDX-License-Identifier: Apache-2.0
"""The URIs of volumes: what is read, what is written, what is refused."""

import pytest

from storelib.drivers.cinder import CinderLocation
from storelib.exceptions import BadStoreUri

VOLUME = "33c6949d-91db-484c-8be2-5c3d62d05560"
READ = {
    f"cinder://{VOLUME}": (VOLUME, None),
    f"cinder://fast/{VOLUME}": (VOLUME, "fast"),
    f"CINDER://fast/{VOLUME}": (VOLUME, "fast"),
    f"cinder://fast/{VOLUME.upper()}": (VOLUME, "fast"),
    f"cinder://a%20store%3F/{VOLUME}": (VOLUME, "a store?"),
    f"cinder://b%C3%BCcher/{VOLUME}": (VOLUME, "bücher"),
}
REFUSED = [
    "cinder://",
    "cinder:///",
    "cinder://fast/",
    f"cinder:///{VOLUME}",
    f"cinder://fast/{VOLUME}/",
    f"cinder://fast/more/{VOLUME}",
    f"cinder://{VOLUME}?query",
    f"cinder://{VOLUME}#fragment",
    f"cinder://{VOLUME[:-1]}",
    f"cinder://{VOLUME}0",
    f"cinder://fast/{VOLUME}\n",
    f"cinder://user:secret@fast/{VOLUME}",
    f"cinder://user:secret@{VOLUME}",
    "cinder://fast/%ff%fe",
    f"cinder:{VOLUME}",
    f"rbd://fast/{VOLUME}",
]


@pytest.mark.parametrize("uri", READ)
def test_uri_is_read(uri):
    found = CinderLocation.parse(uri)
    assert (found.volume, found.store) == READ[uri]
    assert CinderLocation.parse(found.uri) == found


@pytest.mark.parametrize("uri", REFUSED)
def test_what_is_no_volume_is_refused(uri):
    with pytest.raises(BadStoreUri) as caught:
        CinderLocation.parse(uri)
    assert "secret" not in str(caught.value)
