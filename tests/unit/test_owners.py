# SPDX-License-Identifier: Apache-2.0
"""Which of many stores a URI belongs to: few are asked, and the same are found as if all were."""

from __future__ import annotations

import pytest

from storelib import config
from storelib.driver import STORE_OPTIONS
from storelib.location import Location
from storelib.owners import Owners
from storelib.plugins import driver_class
from storelib.registry import open_store
from storelib.testing.memory import MemoryStore

MANY = 40
#: How the stores of a test differ, what locations of theirs look like, and whether one owner is asked for a URI.
SORTS = {
    "file": (
        lambda n: ("file", {"filesystem_store_datadir": f"/srv/{n}"}),
        lambda n: [f"file:///srv/{n}/image", f"file:///srv/{n}/a1/deep/image"],
    ),
    "file, nested": (
        lambda n: ("file", {"filesystem_store_datadir": "/" + "/".join(map(str, range(n + 1)))}),
        lambda n: ["file:///" + "/".join(map(str, range(n + 1))) + "/image"],
    ),
    "buckets": (
        lambda n: ("s3", {"s3_store_host": "https://s3.test", "s3_store_bucket": f"bucket-{n}"}),
        lambda n: [f"s3+https://s3.test/bucket-{n}/image", f"s3+http://s3.test:443/bucket-{n}/image"],
    ),
    "prefixes": (
        lambda n: (
            "s3",
            {"s3_store_host": "https://s3.test", "s3_store_bucket": "images", "s3_store_key_prefix": f"{n}/deep/"},
        ),
        lambda n: [f"s3+https://s3.test/images/{n}/deep/image"],
    ),
    "servers with a path": (
        lambda n: ("s3", {"s3_store_host": f"https://s3.test/{n}/base", "s3_store_bucket": f"images-{n}"}),
        lambda n: [f"s3+https://s3.test/{n}/base/images-{n}/image"],
    ),
    "containers": (
        lambda n: ("swift", SWIFT | {"swift_store_container": f"c-{n}", "swift_store_multiple_containers_seed": n % 3}),
        lambda n: [f"swift+https://keystone:5000/v3/c-{n}/image", f"swift+https://keystone:5000/v3/c-{n}_im/image"],
    ),
    "accounts": (
        lambda n: ("swift", SWIFT | {"swift_store_auth_address": f"https://keystone-{n}:5000/v3"}),
        lambda n: [f"swift+https://keystone-{n}:5000/v3/glance/image", f"swift://u:k@keystone-{n}:5000/glance/image"],
    ),
    "vmware": (
        lambda n: ("vmware", VMWARE | {"vmware_store_image_dir": f"/images-{n}"}),
        lambda n: [f"vsphere://vcenter/folder/images-{n}/image?dcPath=DC0&dsName=one"],
    ),
    "cinder": (
        lambda n: ("cinder", {}),
        lambda n: [f"cinder://s{n}/33c6949d-91db-484c-8be2-5c3d62d05560"],
    ),
    "memory": (lambda n: ("memory", {}), lambda n: [f"memory://s{n}/image"]),
}
SWIFT = {
    "swift_store_auth_address": "https://keystone:5000/v3",
    "swift_store_user": "project:user",
    "swift_store_key": "key",
}
VMWARE = {
    "vmware_server_host": "vcenter",
    "vmware_server_username": "user",
    "vmware_server_password": "password",
    "vmware_datastores": ["DC0:one"],
}


def opened(sort):
    """Many stores of one sort, configured and no more."""
    made = []
    for number in range(MANY):
        name, options = SORTS[sort][0](number)
        driver = driver_class(name)
        values = config.given_options(f"s{number}", name, [*STORE_OPTIONS, *driver.options], options)
        made.append(driver(f"s{number}", values))
        made[-1].configure_get()
    return made


@pytest.mark.parametrize("sort", SORTS)
def test_among_many_stores_few_are_asked_whether_a_uri_is_theirs(sort, monkeypatch):
    stores = opened(sort)
    driver, asked = type(stores[0]), []
    plain = driver.owns
    monkeypatch.setattr(driver, "owns", lambda self, location: asked.append(self) or plain(self, location))
    owners = Owners(stores)
    for number in (0, 1, 17, MANY - 1):
        for uri in SORTS[sort][1](number):
            asked.clear()
            nested = stores[: number + 1] if sort == "file, nested" else [stores[number]]
            scheme = uri.partition(":")[0]
            assert owners.of(uri, scheme) == nested
            assert {store.name for store in asked} == {store.name for store in nested}
            assert owners.of(Location(uri), scheme) == nested


def test_a_location_that_names_no_place_is_asked_of_all(monkeypatch):
    stores = opened("cinder")
    assert Owners(stores).of("cinder://33c6949d-91db-484c-8be2-5c3d62d05560", "cinder") == stores


def test_a_driver_with_an_owns_of_its_own_is_asked_for_every_location():
    class Everywhere(MemoryStore):
        def owns(self, location):
            return True

    class Rooted(Everywhere):
        def roots(self):
            return ["here"]

        @classmethod
        def possible_roots(cls, location):
            return [location.image_id]

    class WithoutPossible(Everywhere):
        def roots(self):
            return ["here"]

    def made(kind, name):
        return open_store(kind, name)

    plain, other = made(MemoryStore, "plain"), made(MemoryStore, "other")
    everywhere, rooted, without = made(Everywhere, "e"), made(Rooted, "r"), made(WithoutPossible, "w")
    owners = Owners([other, everywhere, plain, rooted, without])
    assert owners.of("memory://plain/image", "memory") == [everywhere, plain, without]
    assert owners.of("memory://plain/here", "memory") == [everywhere, plain, rooted, without]
    # So is a single store that was changed.
    other.owns = lambda location: True
    assert Owners([other, plain]).of("memory://plain/image", "memory") == [other, plain]
