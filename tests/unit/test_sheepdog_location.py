# SPDX-License-Identifier: Apache-2.0
"""The URIs of Sheepdog images and the names of vdis: what is read, what is written, what is no image."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from storelib.driver import check_image_id
from storelib.drivers.sheepdog import SheepdogLocation
from storelib.drivers.sheepdog.location import LONGEST, Temporary, id_of, is_image_name, name_of
from storelib.exceptions import BadStoreUri, Invalid

READ = {
    "sheepdog://127.0.0.1:7000:image": ("127.0.0.1", 7000, "image"),
    "sheepdog://Sheep.Example.ORG:7001:Image": ("sheep.example.org", 7001, "Image"),
    "sheepdog://[::1]:7000:image": ("::1", 7000, "image"),
    "sheepdog://[2001:DB8:0::0001]:7000:image": ("2001:db8::1", 7000, "image"),
    "SHEEPDOG://image": (None, None, "image"),
    "sheepdog://71c675ab-d94f-49cd-a114-e12490b328d9": (None, None, "71c675ab-d94f-49cd-a114-e12490b328d9"),
    "sheepdog://127.0.0.1:7000:a%3Ab%2Fc%20d%25": ("127.0.0.1", 7000, "a:b/c d%"),
    "sheepdog://127.0.0.1:7000:two words": ("127.0.0.1", 7000, "two words"),
    "sheepdog://127.0.0.1:7000:%C3%BC": ("127.0.0.1", 7000, "ü"),
    "sheepdog://127.0.0.1:7000:%2Fdash": ("127.0.0.1", 7000, "/dash"),
}
REFUSED = [
    "sheepdog:",
    "sheepdog://",
    "sheepdog://:",
    "sheepdog://127.0.0.1:7000:",
    "sheepdog://127.0.0.1:7000",
    "sheepdog://:7000:image",
    "sheepdog://127.0.0.1::image",
    "sheepdog://127.0.0.1:0:image",
    "sheepdog://127.0.0.1:65536:image",
    "sheepdog://127.0.0.1:seven:image",
    "sheepdog://127.0.0.1:7000:a:b",
    "sheepdog://::1:7000:image",
    "sheepdog://[::1:7000:image",
    "sheepdog://[1::2::3]:7000:image",
    "sheepdog://[127.0.0.1]:7000:a/b",
    "sheepdog://127.0.0.1:7000:a/b",
    "sheepdog://127.0.0.1:7000:a?b",
    "sheepdog://127.0.0.1:7000:a#b",
    "sheepdog://127.0.0.1:7000:a\nb",
    "sheepdog://127.0.0.1:7000:a%00b",
    "sheepdog://127.0.0.1:7000:%FF%FE",
    "sheepdog://127.0.0.1:7000:-r",
    "sheepdog://127.0.0.1:7000:%2Dr",
    "sheepdog://-p",
    "sheepdog://..",
    "sheepdog://%2e",
    "sheepdog://127.0.0.1:7000:" + "a" * 256,
    "sheepdog://127.0.0.1:7000:storelib%2F0123456789abcdef%2Fimage",
    "sheepdog://user:word@127.0.0.1:7000:image",
    "rbd://127.0.0.1:7000:image",
]
IDS = st.text(st.characters(blacklist_categories=("Cc", "Cs"), blacklist_characters="/"), min_size=1).filter(
    lambda text: text not in (".", "..") and len(text.encode()) <= 255
)


@pytest.mark.parametrize("uri", READ)
def test_uri_is_read(uri):
    location = SheepdogLocation.parse(uri)
    assert (location.address, location.port, location.vdi) == READ[uri]


@pytest.mark.parametrize("uri", REFUSED)
def test_uri_is_refused(uri):
    with pytest.raises(BadStoreUri):
        SheepdogLocation.parse(uri)


def test_what_may_be_a_password_is_not_repeated():
    with pytest.raises(BadStoreUri) as caught:
        SheepdogLocation.parse("sheepdog://user:word@127.0.0.1:7000:image")
    assert "word" not in str(caught.value)


@given(
    st.one_of(st.none(), st.sampled_from(["127.0.0.1", "::1", "fe80::1", "sheep-1.example.org"])),
    st.integers(1, 65535),
    IDS,
)
@example(None, 1, "-r")
@example("::1", 7000, "a:b@c%2F")
def test_every_location_comes_back_from_its_uri(address, port, image_id):
    location = SheepdogLocation(address, None if address is None else port, name_of(image_id))
    assert location.uri.isascii()
    assert SheepdogLocation.parse(location.uri) == location


# -- Names ----------------------------------------------------------------------------------------------------


@given(IDS)
@example("-r")
@example("--")
@example("é" * 127)
@example("-" + "a" * 254)
def test_every_id_comes_back_from_its_name(image_id):
    check_image_id(image_id)
    name = name_of(image_id)
    assert id_of(name) == image_id
    assert is_image_name(name)
    assert len(name.encode()) == len(image_id.encode())


@given(IDS, IDS)
@example("-a", "a")
def test_different_ids_have_different_names(one, other):
    assert (name_of(one) == name_of(other)) == (one == other)


@pytest.mark.parametrize("image_id", ["71c675ab-d94f-49cd-a114-e12490b328d9", "two words", "100%", "ü", "a-b", "~"])
def test_name_is_the_id_where_dog_takes_it(image_id):
    assert name_of(image_id) == image_id


@pytest.mark.parametrize("name", ["storelib/0123456789abcdef/image", "account/container", "/a/b", ".", ".."])
def test_name_no_id_leads_to(name):
    assert id_of(name) is None


@given(IDS)
@example("a" * 255)
@example("é" * 127)
@example("日" * 85)
def test_temporary_name_is_no_name_of_an_image_and_tells_whose_it_is(image_id):
    name = str(Temporary("0123456789abcdef", image_id))
    found = Temporary.parse(name)
    assert len(name.encode()) <= LONGEST
    assert not is_image_name(name)
    assert id_of(name) is None
    assert found.token == "0123456789abcdef"
    assert image_id.startswith(found.image_id) if found.cut else found.image_id == image_id
    assert str(found) == name


@pytest.mark.parametrize(
    "name", ["image", "storelib", "storelib/check", "storelib/0123/a", "storelib/0123456789abcdef/"]
)
def test_what_is_no_temporary_name(name):
    assert Temporary.parse(name) is None


@pytest.mark.parametrize("image_id", ["a/b", "", ".."])
def test_what_would_not_come_back_is_no_id(image_id):
    with pytest.raises(Invalid):
        check_image_id(image_id)
