# SPDX-License-Identifier: Apache-2.0
"""The URIs of VMware images, and what the options say of server, datastores and directory."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from storelib.drivers.vmware import VmwareLocation, VmwareStore
from storelib.drivers.vmware.options import Target
from storelib.exceptions import BadStoreConfiguration, BadStoreUri
from storelib.registry import open_store

QUERY = "?dcPath=dc&dsName=ds"
READ = {
    f"vsphere://host/folder/openstack_glance/id{QUERY}": ("host", 443, "openstack_glance", "id", "dc", "ds"),
    f"vsphere://Host.Example.ORG:443/folder/d/id{QUERY}": ("host.example.org", 443, "d", "id", "dc", "ds"),
    f"vsphere://host:8443/folder/a/b%2520/id{QUERY}": ("host", 8443, "a/b%20", "id", "dc", "ds"),
    f"vsphere://[2001:DB8:0::1]:8443/folder/d/id{QUERY}": ("[2001:db8::1]", 8443, "d", "id", "dc", "ds"),
    f"VSPHERE://host/folder/id{QUERY}": ("host", 443, "", "id", "dc", "ds"),
    f"vsphere://host/folder/d/100%25%20+%C3%BC%23{QUERY}": ("host", 443, "d", "100% +ü#", "dc", "ds"),
    f"vsphere://host/folder/d/an old ü{QUERY}": ("host", 443, "d", "an old ü", "dc", "ds"),
    "vsphere://host/folder/d/id?dsName=my+ds%2B&dcPath=%2FF0%2Fdc+1": ("host", 443, "d", "id", "F0/dc 1", "my ds+"),
    "vsphere://host/folder/d/id?dcPath=F0%2F%2Fdc&dsName=ds": ("host", 443, "d", "id", "F0/dc", "ds"),
    f"vsphere://host/folder/a//b/id{QUERY}": ("host", 443, "a/b", "id", "dc", "ds"),
    "vsphere://host/folder/d/id?dcPath=F0/dc&dsName=ds": ("host", 443, "d", "id", "F0/dc", "ds"),
}
REFUSED = [
    "vsphere://",
    "vsphere://host",
    f"vsphere://host/{QUERY}",
    f"vsphere://host/folder/{QUERY}",
    f"vsphere:///folder/d/id{QUERY}",
    f"vsphere://host/other/d/id{QUERY}",
    f"vsphere://host/folder//id{QUERY}",
    f"vsphere://host/folder/d/{QUERY}",
    f"vsphere://host/folder/d/..{QUERY}",
    f"vsphere://host/folder/../d/id{QUERY}",
    f"vsphere://host/folder/%2e%2e/id{QUERY}",
    f"vsphere://host/folder/a%2Fb/id{QUERY}",
    f"vsphere://host/folder/d/a%2Fb{QUERY}",
    f"vsphere://host/folder/d/a\nb{QUERY}",
    f"vsphere://host/folder/d/%ff%fe{QUERY}",
    f"vsphere://host/folder/d/\udcff{QUERY}",
    f"vsphere://host/folder/d/id{QUERY}#part",
    f"vsphere://host/folder/d/id#part{QUERY}",
    f"vsphere://host/folder/d/id{QUERY}&dsName=other",
    f"vsphere://host/folder/d/id{QUERY}&x=y",
    "vsphere://host/folder/d/id",
    "vsphere://host/folder/d/id?",
    "vsphere://host/folder/d/id?dcPath=dc",
    "vsphere://host/folder/d/id?dcPath=%2F&dsName=ds",
    "vsphere://host/folder/d/id?dcPath=dc&dsName=",
    f"vsphere://user:SECRET@host/folder/d/id{QUERY}",
    f"vsphere://host:0/folder/d/id{QUERY}",
    f"vsphere://host:65536/folder/d/id{QUERY}",
    f"vsphere://host:/folder/d/id{QUERY}",
    f"vsphere://ho st/folder/d/id{QUERY}",
    f"vsphere://a..b/folder/d/id{QUERY}",
    f"vsphere://{'a' * 64}/folder/d/id{QUERY}",
    f"vsphere://[::g]/folder/d/id{QUERY}",
    f"http://host/folder/d/id{QUERY}",
]
OPTIONS = {
    "vmware_server_host": "vc.example.org",
    "vmware_server_username": "glance",
    "vmware_server_password": "SECRET",
    "vmware_datastores": ["dc1:ds1"],
}


@pytest.mark.parametrize("uri", READ)
def test_uri_is_read(uri):
    found = VmwareLocation.parse(re.sub("^VSPHERE", "vsphere", uri))
    assert (
        found.host,
        found.port,
        found.directory,
        found.image_id,
        found.datacenter,
        found.datastore,
    ) == READ[uri]
    assert VmwareLocation.parse(found.uri) == found


@pytest.mark.parametrize("uri", REFUSED)
def test_what_is_no_image_is_refused(uri):
    with pytest.raises(BadStoreUri) as caught:
        VmwareLocation.parse(uri)
    assert "SECRET" not in str(caught.value)


_names = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1)
_names = _names.filter(lambda name: name not in (".", ".."))
_paths = st.lists(_names, max_size=3).map("/".join)


@given(
    host=st.sampled_from(["host", "vc.example.org", "10.0.0.1", "[2001:db8::1]"]),
    port=st.integers(1, 65535),
    directory=_paths,
    image_id=_names,
    datacenter=_paths.filter(bool),
    datastore=_names,
)
@example("host", 443, "a b", "a+b&c=d?e#f;g%20", "F0/dc+1", "ds&x")
def test_every_location_comes_back_from_its_uri(host, port, directory, image_id, datacenter, datastore):
    location = VmwareLocation(host, port, directory, image_id, datacenter, datastore)
    assert VmwareLocation.parse(location.uri) == location
    assert location.uri.isascii()
    assert location.uri.isprintable()
    assert not re.search(r"[ @#+]", location.uri)


@given(st.text())
def test_any_text_is_a_location_or_refused(text):
    try:
        found = VmwareLocation.parse(f"vsphere://host/folder/{text}")
    except BadStoreUri:
        return
    assert VmwareLocation.parse(found.uri) == found


@pytest.mark.parametrize(
    ("value", "targets"),
    [
        (["dc1:ds1"], [Target("dc1", "ds1", 0)]),
        ([" /Europe/dc 1/ : ds 1 : 7 "], [Target("Europe/dc 1", "ds 1", 7)]),
        (["dc1:ds1:", "dc2:ds1:9"], [Target("dc1", "ds1", 0), Target("dc2", "ds1", 9)]),
        (["Europe//dc1:ds1"], [Target("Europe/dc1", "ds1", 0)]),
        (["a:b:c:5"], [Target("a:b", "c", 5)]),
    ],
)
def test_datastores_are_given_as_to_glance_store(value, targets):
    assert list(open_store(VmwareStore, **OPTIONS | {"vmware_datastores": value}).datastores.targets) == targets


@pytest.mark.parametrize(
    ("host", "port", "found"),
    [
        ("VC.example.org", 443, ("vc.example.org", 443)),
        ("vc.example.org", 8443, ("vc.example.org", 8443)),
        ("vc.example.org:8443", 443, ("vc.example.org", 8443)),
        ("2001:DB8::1", 443, ("[2001:db8::1]", 443)),
        ("[2001:db8::1]:8443", 443, ("[2001:db8::1]", 8443)),
    ],
)
def test_server_is_a_host_with_a_port(host, port, found):
    options = OPTIONS | {"vmware_server_host": host, "vmware_server_port": port}
    settings = open_store(VmwareStore, **options).datastores.settings
    assert (settings.host, settings.port) == found


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("vmware_server_host", None),
        ("vmware_server_host", "https://vc.example.org"),
        ("vmware_server_host", "vc.example.org/sdk"),
        ("vmware_server_host", "[::g]"),
        ("vmware_server_username", None),
        ("vmware_server_password", ""),
        ("vmware_server_username", "glance\x01"),
        ("vmware_server_password", "SECRET\udc80"),
        ("vmware_server_password", "SECRET\x00"),
        ("vmware_datastores", []),
        ("vmware_datastores", ["ds1"]),
        ("vmware_datastores", [":ds1"]),
        ("vmware_datastores", ["dc1:"]),
        ("vmware_datastores", ["dc1:ds1:heavy"]),
        ("vmware_datastores", ["dc1:ds1:-1"]),
        ("vmware_datastores", ["dc1:ds1:" + "9" * 5000]),
        ("vmware_datastores", ["dc1:ds\x01"]),
        ("vmware_datastores", ["dc\ufffe:ds1"]),
        ("vmware_datastores", ["dc1:ds1", "/dc1:ds1:3"]),
        ("vmware_datastores", ["f/dc1:ds1", "f//dc1:ds1:3"]),
        ("vmware_datastores", ["/:ds1"]),
        ("vmware_store_image_dir", "/images/../vms"),
        ("vmware_store_image_dir", "/images\x07"),
        ("vmware_thumbprint", "AB:CD"),
        ("vmware_thumbprint", "xy" * 20),
        ("vmware_ca_file", "/nowhere/ca.pem"),
        ("vmware_ca_file", __file__),
    ],
)
def test_what_cannot_be_names_its_option(option, value):
    with pytest.raises(BadStoreConfiguration, match=option) as caught:
        open_store(VmwareStore, **OPTIONS | {option: value})
    assert "SECRET" not in str(caught.value)


def test_old_name_of_insecure_is_read(tmp_path):
    from storelib.registry import Registry

    lines = "\n".join(f"{key} = {value if isinstance(value, str) else value[0]}" for key, value in OPTIONS.items())
    (tmp_path / "storelib.ini").write_text(f"[storelib]\nstores = vsphere\n{lines}\nvmware_api_insecure = true\n")
    assert Registry.from_file(tmp_path / "storelib.ini")["vsphere"].conf.vmware_insecure is True
