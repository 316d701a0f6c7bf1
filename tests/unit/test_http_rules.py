# SPDX-License-Identifier: Apache-2.0
"""Which hosts, ports and addresses the http driver talks to."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storelib.drivers.http import HttpStore
from storelib.drivers.http.location import HttpLocation
from storelib.drivers.http.options import Rules
from storelib.exceptions import BadStoreConfiguration, BadStoreUri
from storelib.registry import open_store


def networks(*texts):
    return [ipaddress.ip_network(text) for text in texts]


NOT_PUBLIC = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "192.168.1.1",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:a00:1::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]
PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_address_that_is_not_public_is_refused(address):
    assert Rules().refuse_address(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_address_is_allowed(address):
    assert Rules().refuse_address(address) is None


@given(st.ip_addresses(v=4))
def test_ipv4_inside_ipv6_is_judged_as_ipv4(address):
    judged = bool(Rules().refuse_address(str(address)))
    assert bool(Rules().refuse_address(f"::ffff:{address}")) == judged
    assert bool(Rules().refuse_address(str(ipaddress.IPv6Address((0x64FF9B << 96) + int(address))))) == judged


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203"])
def test_address_inside_an_allowed_network_is_allowed(address):
    assert Rules(allowed_networks=networks("10.1.0.0/16")).refuse_address(address) is None


def test_address_outside_the_allowed_networks_stays_refused():
    assert Rules(allowed_networks=networks("10.1.0.0/16")).refuse_address("10.2.0.1")


def test_public_addresses_need_no_allowed_network():
    assert Rules(allowed_networks=networks("10.1.0.0/16")).refuse_address("8.8.8.8") is None


@pytest.mark.parametrize("address", ["8.8.8.8", "::ffff:8.8.8.8", "10.1.0.1"])
def test_disallowed_network_wins(address):
    rules = Rules(
        allowed_networks=networks("10.0.0.0/8", "8.0.0.0/8"), disallowed_networks=networks("8.8.0.0/16", "10.1.0.0/16")
    )
    assert rules.refuse_address(address)


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        ("http://images.example/x", False),
        ("http://IMAGES.example./x", False),
        ("http://a.mirror.example/x", False),
        ("http://b.a.mirror.example/x", False),
        ("http://mirror.example/x", True),
        ("http://evilmirror.example/x", True),
        ("http://images.example.evil/x", True),
        ("http://bad.mirror.example/x", True),
    ],
)
def test_host_lists_hold(url, refused):
    rules = Rules(allowed_hosts=["Images.example", "*.mirror.example"], disallowed_hosts=["bad.mirror.example"])
    assert bool(rules.refuse_url(HttpLocation.parse(url))) == refused


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        ("http://h/", False),
        ("https://h/", False),
        ("http://h:443/", False),
        ("http://h:22/", True),
        ("http://h:81/", True),
    ],
)
def test_port_lists_hold(url, refused):
    rules = Rules(allowed_ports=[80, 443, 81], disallowed_ports=[81])
    assert bool(rules.refuse_url(HttpLocation.parse(url))) == refused


def test_url_of_a_host_that_is_not_allowed_does_not_belong_to_the_store():
    store = open_store(HttpStore, http_allowed_hosts=["images.example"])
    with pytest.raises(BadStoreUri):
        store.get("http://other.example/x")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("http_allowed_networks", ["10.0.0.0/33"]),
        ("http_disallowed_networks", ["loopback"]),
        ("http_allowed_ports", [70000]),
        ("http_disallowed_ports", ["ssh"]),
        ("http_proxy_information", {"ftp": "proxy:3128"}),
        ("http_proxy_information", {"http": "socks5://jane:hunter2@proxy:1080"}),
        ("http_connect_timeout", 0),
        ("http_max_redirects", -1),
        ("https_ca_certificates_file", "/nowhere/ca.pem"),
    ],
)
def test_option_that_cannot_be_is_named(option, value):
    with pytest.raises(BadStoreConfiguration, match=option) as caught:
        open_store(HttpStore, **{option: value})
    assert "hunter2" not in str(caught.value)


def test_file_without_certificates_is_named(tmp_path):
    empty = tmp_path / "ca.pem"
    empty.write_text("no certificate")
    with pytest.raises(BadStoreConfiguration, match="https_ca_certificates_file"):
        open_store(HttpStore, https_ca_certificates_file=str(empty))
