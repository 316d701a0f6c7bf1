# SPDX-License-Identifier: Apache-2.0
"""URIs of the swift driver: every form that was ever written is read, none with credentials is written."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storelib.drivers.swift.location import CONFIG, SCHEMES, SwiftLocation
from storelib.exceptions import BadStoreUri
from storelib.location import Location

OLD = [
    # URI, and what it is read as: scheme, place, container, object, user, key.
    ("swift://host/images/id", "swift+https", "host", "images", "id", "", ""),
    ("swift+https://host:5000/v3/images/id", "swift+https", "host:5000/v3", "images", "id", "", ""),
    ("swift+http://host/auth/v1.0/images/id", "swift+http", "host/auth/v1.0", "images", "id", "", ""),
    ("swift://user:pass@host/images/id", "swift+https", "host", "images", "id", "user", "pass"),
    ("swift://user:account:pass@host/images/id", "swift+https", "host", "images", "id", "user:account", "pass"),
    ("swift://account%3Auser:pass@host/v1/images/id", "swift+https", "host/v1", "images", "id", "account:user", "pass"),
    ("swift+http://a%3Au:p%40s%3As%2Fw@host:80/v2.0/c/o", "swift+http", "host:80/v2.0", "c", "o", "a:u", "p@s:s/w"),
    ("swift://a:u:p@ss@host/c/o", "swift+https", "host", "c", "o", "a:u", "p@ss"),
    ("swift+https://host/v1/AUTH_x/c_id/id", "swift+https", "host/v1/AUTH_x", "c_id", "id", "", ""),
    ("swift+config://ref1/images/id", "swift+config", "ref1", "images", "id", "", ""),
    ("swift://HOST.example//v1//images/id", "swift+https", "host.example/v1", "images", "id", "", ""),
    ("swift://[2001:db8::1]:5000/v3/images/id", "swift+https", "[2001:db8::1]:5000/v3", "images", "id", "", ""),
    ("swift://host/im%20ages/a%2Fb", "swift+https", "host", "im ages", "a/b", "", ""),
    ("swift://host/images/100%", "swift+https", "host", "images", "100%", "", ""),
    ("SWIFT+HTTP://host/images/ID", "swift+http", "host", "images", "ID", "", ""),
]

REFUSED = [
    "swift:host/c/o",
    "swift://",
    "swift://host",
    "swift://host/container",
    "swift://host//object",
    "swift://host/container/",
    "swift:///container/object",
    "swift://user@host/c/o",
    "swift://:key@host/c/o",
    "swift://user:@host/c/o",
    "swift://user:pass@http://host/c/o",
    "swift://user:pass@swift://host/c/o",
    "swift://user:pa/ss@host/c/o",
    "swift://host:port/c/o",
    "swift://host:123456/c/o",
    "swift://ho st/c/o",
    "swift://hö.example/c/o",
    "swift://host/../c/o",
    "swift://host/v1/./c/o",
    "swift://host/c/..",
    "swift://host/../o",
    "swift://host/c/%2e%2e",
    "swift://host/c/a%2F..%2Fb",
    "swift://host/c/%2Fo",
    "swift://host/c%2Fd/o",
    "swift://host/c/o%00",
    "swift://host/c/%ff",
    "swift://host/c/o?x=y",
    "swift://host/c/o#f",
    "swift+config://ref/extra/c/o",
    "swift+config://user:key@ref/c/o",
    "swift+config://re:f/c/o",
    "swift+config:///c/o",
    "s3://host/c/o",
]

text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)
plain = text.filter(lambda name: "/" not in name and name not in (".", ".."))
hosts = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,9}\.){0,3}[a-z0-9]{1,9}(:[1-9][0-9]{0,4})?", fullmatch=True)
paths = st.lists(st.from_regex(r"[A-Za-z0-9_%-]{1,9}", fullmatch=True), max_size=3)
places = st.builds(lambda host, path: "/".join([host, *path]), hosts, paths)
locations = st.builds(SwiftLocation, st.sampled_from(["swift+http", "swift+https"]), places, plain, plain)
references = st.builds(
    SwiftLocation, st.just(CONFIG), st.from_regex(r"[A-Za-z0-9._ -]{1,9}", fullmatch=True).map(str.strip), plain, plain
).filter(lambda location: location.place and " " not in location.place)


@pytest.mark.parametrize(("uri", "scheme", "place", "container", "obj", "user", "key"), OLD)
def test_every_form_is_read(uri, scheme, place, container, obj, user, key):
    location = SwiftLocation.parse(uri)
    assert (location.scheme, location.place, location.container, location.obj) == (scheme, place, container, obj)
    assert (location.user, location.key) == (user, key)


@pytest.mark.parametrize("uri", REFUSED)
def test_what_is_no_uri_of_an_image_is_refused(uri):
    with pytest.raises(BadStoreUri):
        SwiftLocation.parse(uri)


@pytest.mark.parametrize("case", OLD, ids=lambda case: case[0])
def test_credentials_are_never_written(case):
    *_, user, key = case
    location = SwiftLocation.parse(case[0])
    for shown in (
        location.uri,
        str(location),
        repr(location),
        str(Location(location.uri, {location.scheme: type(location)})),
    ):
        assert "@" not in shown
        assert not key or f":{key}" not in shown
        assert not user or f"{user}:" not in shown


@pytest.mark.parametrize("uri", [uri for uri in REFUSED if "@" in uri])
def test_refusal_shows_no_credentials(uri):
    with pytest.raises(BadStoreUri) as caught:
        SwiftLocation.parse(uri.replace("pass", "hunter2").replace("key", "hunter2"))
    assert "hunter2" not in str(caught.value)


def test_credentials_do_not_make_another_location():
    assert SwiftLocation.parse("swift://a:b:c@host/c/o") == SwiftLocation.parse("swift+https://host/c/o")


@given(locations | references)
def test_what_is_written_is_read_back(location):
    assert SwiftLocation.parse(location.uri) == location
    assert SwiftLocation.parse(location.uri).uri == location.uri


@given(locations)
def test_what_is_written_is_plain_ascii(location):
    assert location.uri.isascii()
    assert " " not in location.uri


@given(text, text, text)
def test_any_credentials_in_percent_encoding_are_read(account, user, key):
    userinfo = f"{quote(account + ':' + user, safe='')}:{quote(key, safe='')}"
    location = SwiftLocation.parse(f"swift://{userinfo}@host/c/o")
    assert (location.user, location.key) == (f"{account}:{user}", key)


@given(st.sampled_from(SCHEMES), st.text(max_size=60))
def test_any_text_is_read_or_refused(scheme, rest):
    try:
        SwiftLocation.parse(f"{scheme}://{rest}")
    except BadStoreUri:
        pass
