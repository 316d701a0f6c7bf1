# SPDX-License-Identifier: Apache-2.0
"""URLs of the http driver: what is read, what is refused, what is written back."""

import base64
import ipaddress
from urllib.parse import quote

import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from storelib.drivers.http.location import HttpLocation
from storelib.exceptions import BadStoreUri

PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in "\\#")

names = st.from_regex(r"([A-Za-z0-9][A-Za-z0-9_-]{0,20}\.){0,3}[A-Za-z0-9]{1,10}", fullmatch=True)
hosts = names | st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(lambda address: f"[{address}]")
ports = st.just("") | st.just(":") | st.integers(1, 65535).map(lambda port: f":{port}")
targets = st.just("") | st.text(PRINTABLE + "é€😀", max_size=40).map(lambda text: "/" + text)
queries = st.just("") | st.text(PRINTABLE + "ü", max_size=40).map(lambda text: "?" + text)
schemes = st.sampled_from(["http", "https", "HTTP", "hTTps"])
urls = st.builds("{}://{}{}{}{}".format, schemes, hosts, ports, targets, queries)


def ipaddress_or_name(host):
    """Equal for the ways to write one IPv6 address."""
    return ipaddress.ip_address(host.strip("[]")) if host.startswith("[") else host


@given(urls)
def test_what_is_written_is_read_back(url):
    location = HttpLocation.parse(url)
    assert HttpLocation.parse(location.uri) == location


@given(urls)
def test_what_is_written_is_plain_ascii(url):
    assert HttpLocation.parse(url).uri.isascii()


@given(urls)
def test_urllib3_reads_the_same_host_and_port(url):
    """What the lists judge is what is asked."""
    location = HttpLocation.parse(url)
    asked = urllib3.util.parse_url(location.uri)
    found = (asked.scheme, ipaddress_or_name(asked.host), asked.port, asked.auth)
    assert found == (location.scheme, ipaddress_or_name(location.host), location.port, None)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text):
    try:
        HttpLocation.parse("http://" + text)
    except BadStoreUri:
        pass


@given(st.text(min_size=1, max_size=20), st.text(max_size=20))
def test_any_credentials_in_percent_encoding_are_read(user, password):
    try:
        url = f"http://{quote(user, safe='')}:{quote(password, safe='')}@host/"
    except UnicodeEncodeError:
        return
    location = HttpLocation.parse(url)
    assert (location.user, location.password) == (user, password)


@pytest.mark.parametrize(
    "url",
    [
        "http://host/a%2fb%2Fc/../d//e?x=%61&y=a+b&&z",
        "https://host:8443/?",
        "http://host/p;v=1?a=b/c?d",
        "http://[2001:db8::1]:8080/x",
    ],
)
def test_path_and_query_are_kept_as_they_are(url):
    assert HttpLocation.parse(url).uri == url


def test_fragment_is_dropped():
    assert HttpLocation.parse("http://host/x?y#z?w").uri == "http://host/x?y"


def test_host_without_path_is_its_root():
    assert HttpLocation.parse("http://host?x=1").uri == "http://host/?x=1"


def test_scheme_and_host_have_no_case():
    assert HttpLocation.parse("HTTPS://Host.Example/A") == HttpLocation.parse("https://host.example/A")


@pytest.mark.parametrize(
    ("userinfo", "user", "password"),
    [
        ("user:pa%40ss", "user", "pa@ss"),
        ("user:pa@ss:w", "user", "pa@ss:w"),
        ("us%3Aer:", "us:er", ""),
        ("user", "user", ""),
        (":secret", "", "secret"),
    ],
)
def test_credentials_end_at_the_last_at_sign(userinfo, user, password):
    location = HttpLocation.parse(f"http://{userinfo}@host:80/x")
    assert (location.user, location.password, location.host) == (user, password, "host")


def test_credentials_become_basic_authorization():
    header = HttpLocation.parse("http://us%C3%A9r:pa%40ss@host/").authorization
    assert base64.b64decode(header.removeprefix("Basic ")) == "usér:pa@ss".encode()


@pytest.mark.parametrize("show", [str, repr, lambda location: location.uri])
def test_credentials_are_never_shown(show):
    location = HttpLocation.parse("http://jane:hunter2@host/x")
    assert "jane" not in show(location)
    assert "hunter2" not in show(location)


def test_credentials_do_not_make_another_location():
    assert HttpLocation.parse("http://a:b@host/x") == HttpLocation.parse("http://host/x")


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///path",
        "http://:80/",
        "http://host:port/",
        "http://host:0/",
        "http://host:65536/",
        "http://host:-1/",
        "http://host:8 0/",
        "http://host:٨٠/",
        "http://ho st/",
        "http://hö.example/",
        "http://ho%73t/",
        "http://a,b/",
        "http://[::1/",
        "http://[::1%25eth0]/",
        "http://[1.2.3.4]/",
        "http://[v1.x]/",
        "http://::1/",
        "http://user:pa/ss@host/",
        "http://host/a b",
        "http://host/a\nb",
        "http://host/a\r\nX-Header: 1",
        "http://host/a\tb",
        "http://host/a\x00b",
        "http://host/a\x7fb",
        "http://host/a\x85b",
        "http://host/a\u2028b",
        "http://host/\ud800",
        "http://host\\@evil/",
        "http://evil/\\..\\x",
        "http://%ff@host/",
        "ftp://host/x",
        "http:/host/x",
        "//host/x",
    ],
)
def test_hostile_url_is_refused(url):
    with pytest.raises(BadStoreUri):
        HttpLocation.parse(url)


def test_refusal_does_not_show_credentials():
    with pytest.raises(BadStoreUri) as caught:
        HttpLocation.parse("http://jane:hunter2@host:port/")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "leads_to"),
    [
        ("other", "http://host/a/other"),
        ("/other?q", "http://host/other?q"),
        ("?q=2", "http://host/a/b?q=2"),
        ("../c", "http://host/c"),
        ("//else/x", "http://else/x"),
        ("https://else:1/x#y", "https://else:1/x"),
        ("  /trimmed\t", "http://host/trimmed"),
        ("/with space", "http://host/with%20space"),
        ("/caf\xe9", "http://host/caf%C3%A9"),
    ],
)
def test_redirects_are_resolved_like_links(reference, leads_to):
    assert HttpLocation.parse("http://host/a/b?q=1").join(reference).uri == leads_to


@pytest.mark.parametrize("reference", ["file:///etc/passwd", "ftp://host/x", "https://host:x/", "data:,x"])
def test_redirect_to_anything_else_is_refused(reference):
    with pytest.raises(BadStoreUri):
        HttpLocation.parse("http://host/a").join(reference)


@pytest.mark.parametrize("reference", ["/b", "http://host/b", "http://host:80/b", "HTTP://HOST/b"])
def test_credentials_follow_within_their_origin(reference):
    assert HttpLocation.parse("http://u:p@host/a").join(reference).user == "u"


@pytest.mark.parametrize(
    "reference", ["https://host/b", "http://host:8080/b", "http://host.example/b", "//other/b", "http://x:y@other/b"]
)
def test_credentials_do_not_follow_to_another_origin(reference):
    assert HttpLocation.parse("http://u:p@host/a").join(reference).authorization is None
