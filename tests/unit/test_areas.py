# SPDX-License-Identifier: Apache-2.0
"""Two stores that would keep images in one place are a mistake of the file; a mere look makes nothing."""

from __future__ import annotations

import os
import sys

import pytest

from storelib.driver import Area
from storelib.exceptions import BadStoreConfiguration, NotFound, RemoteServiceUnavailable
from storelib.registry import Registry, open_store

S3 = {
    "s3_store_host": "https://s3.example.org",
    "s3_store_bucket": "images",
    "s3_store_access_key": "a",
    "s3_store_secret_key": "b",
}
SWIFT = {
    "swift_store_auth_address": "https://keystone.example.org:5000/v3",
    "swift_store_user": "images:glance",
    "swift_store_key": "secret",
}
PARTS = {**SWIFT, "swift_store_segment_container": "parts"}
GRIDFS = {"mongodb_store_uri": "mongodb://reader:secret@one.example.org,two.example.org:27018/images"}
VMWARE = {
    "vmware_server_host": "vc.example.org",
    "vmware_server_username": "glance",
    "vmware_server_password": "secret",
    "vmware_datastores": "F0/dc1:ds1:5",
}
DOG = {"sheepdog_store_command": "/bin/true"}


def registry(tmp_path, driver, first, second):
    groups = [
        f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in options.items())
        for name, options in (("one", first), ("two", second))
    ]
    path = tmp_path / "storelib.ini"
    path.write_text(f"[storelib]\nstores = one:{driver}, two:{driver}\n" + "\n".join(groups))
    return Registry.from_file(path)


@pytest.mark.parametrize(
    ("driver", "first", "second"),
    [
        ("s3", S3, S3),
        ("s3", S3, {**S3, "s3_store_host": "https://S3.example.org:443"}),
        ("s3", S3, {**S3, "s3_store_key_prefix": "archive/"}),
        ("s3", {**S3, "s3_store_key_prefix": "a/b/"}, {**S3, "s3_store_key_prefix": "a/"}),
        ("s3", {**S3, "s3_store_key_prefix": "image"}, {**S3, "s3_store_key_prefix": "images/"}),
        ("s3", {**S3, "s3_store_host": "http://s3.example.org"}, S3),
        *[("s3", {**S3, "s3_store_host": f"s3.{region}.amazonaws.com"}, {**S3, "s3_store_host": "s3.amazonaws.com"})
          for region in ("us-west-2", "eu-central-1")],
        ("swift", SWIFT, SWIFT),
        ("swift", *[{**SWIFT, "swift_store_auth_version": 1, "swift_store_user": f"images:{user}"} for user in "ab"]),
        ("swift", *[{**SWIFT, "swift_store_auth_address": f"https://example.org{port}/v3"} for port in ("", ":443")]),
        ("swift", SWIFT, {**SWIFT, "swift_store_user": "images:somebody", "swift_store_key": "other"}),
        ("swift", SWIFT, {**SWIFT, "swift_store_user": "glance", "swift_store_project_name": "images"}),
        ("swift", SWIFT, {**SWIFT, "swift_store_auth_address": "https://Keystone.example.org:5000/"}),
        ("swift", {**SWIFT, "swift_store_container": "c_a"}, {**SWIFT, "swift_store_container": "c"} | {
            "swift_store_multiple_containers_seed": 3
        }),
        ("swift", SWIFT, {**SWIFT, "swift_store_container": "x", "swift_store_segment_container": "glance"}),
        ("swift", {**PARTS, "swift_store_container": "a"}, {**PARTS, "swift_store_container": "b"}),
        ("gridfs", GRIDFS, GRIDFS),
        ("gridfs", GRIDFS, {"mongodb_store_uri": "ONE.example.org:27017", "mongodb_store_db": "images"}),
        ("rbd", {"rbd_store_pool": "images"}, {"rbd_store_user": "other"}),
        ("sheepdog", DOG, {**DOG, "sheepdog_store_address": "127.0.0.1"}),
        ("sheepdog", *[{"sheepdog_store_command": "/nowhere/dog"}] * 2),
        ("vmware", VMWARE, {**VMWARE, "vmware_server_host": "VC.example.org:443"}),
        ("vmware", VMWARE, {**VMWARE, "vmware_datastores": "/F0/dc1/:ds1", "vmware_server_username": "other"}),
        ("vmware", VMWARE, {**VMWARE, "vmware_store_image_dir": "openstack_glance/inner/"}),
        ("vmware", VMWARE, {**VMWARE, "vmware_store_image_dir": "/"}),
        ("vmware", VMWARE, {**VMWARE, "vmware_server_password": ""}),
        ("vmware", VMWARE, {**VMWARE, "vmware_ca_file": "/nowhere/ca.pem"}),
    ],
)  # fmt: skip
def test_two_stores_in_one_place_are_a_mistake_of_the_file(tmp_path, driver, first, second):
    with pytest.raises(BadStoreConfiguration) as caught:
        registry(tmp_path, driver, first, second)
    text = str(caught.value)
    assert "stores one and two would keep images in the same place" in text
    assert "secret" not in text
    assert "[one]" in text
    assert "[two]" in text


@pytest.mark.parametrize(
    ("driver", "options", "libraries"),
    [
        ("rbd", {}, ("rados", "rbd")),
        ("vmware", VMWARE, ("pyVmomi", "pyVim")),
    ],
)
def test_two_stores_in_one_place_are_a_mistake_without_their_library_too(
    tmp_path, monkeypatch, driver, options, libraries
):
    for name in list(sys.modules):
        if name.partition(".")[0] in libraries:
            monkeypatch.delitem(sys.modules, name)
    for name in libraries:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BadStoreConfiguration, match="in the same place"):
        registry(tmp_path, driver, options, options)


@pytest.mark.parametrize(
    ("driver", "first", "second"),
    [
        ("s3", S3, {**S3, "s3_store_bucket": "images2"}),
        ("s3", S3, {**S3, "s3_store_host": "https://s3.example.org:8443"}),
        ("s3", {**S3, "s3_store_key_prefix": "a/"}, {**S3, "s3_store_key_prefix": "b/"}),
        ("swift", SWIFT, {**SWIFT, "swift_store_container": "glance2"}),
        ("swift", SWIFT, {**SWIFT, "swift_store_user": "others:glance"}),
        ("swift", {**SWIFT, "swift_store_region": "one"}, {**SWIFT, "swift_store_region": "two"}),
        ("gridfs", GRIDFS, {**GRIDFS, "mongodb_store_bucket": "second"}),
        ("gridfs", GRIDFS, {**GRIDFS, "mongodb_store_db": "second"}),
        ("rbd", {}, {"rbd_store_namespace": "second"}),
        ("rbd", {}, {"rbd_store_ceph_conf": "/etc/hosts"}),
        ("sheepdog", DOG, {**DOG, "sheepdog_store_port": 7001}),
        ("vmware", VMWARE, {**VMWARE, "vmware_datastores": "F0/dc1:ds2"}),
        ("vmware", VMWARE, {**VMWARE, "vmware_datastores": "dc1:ds1"}),
        ("vmware", VMWARE, {**VMWARE, "vmware_store_image_dir": "/openstack_glance2"}),
        ("vmware", VMWARE, {**VMWARE, "vmware_server_host": "vc2.example.org"}),
        ("vmware", VMWARE, {**VMWARE, "vmware_server_port": 8443}),
        ("http", {}, {}),
    ],
)
def test_two_stores_beside_each_other_are_none(tmp_path, driver, first, second):
    found = registry(tmp_path, driver, first, second)
    # Without Ceph's bindings, which belong to one Python, these stores are disabled, and compared as well.
    assert {*(store.name for store in found), *found.disabled} == {"one", "two"}


def test_two_files_of_one_cluster_are_one_place(tmp_path):
    for name in ("a.conf", "b.conf"):
        (tmp_path / name).write_text("[global]\n fsid = 7A11BE0C-4D37-4C3A-9D7C-6B3E0A5B8B7D\n")
    with pytest.raises(BadStoreConfiguration, match="in the same place"):
        registry(tmp_path, "rbd", {"rbd_store_ceph_conf": "a.conf"}, {"rbd_store_ceph_conf": "b.conf"})


@pytest.mark.parametrize("other", ["images", "images/", "./images", "up/../images", "link", "images/inner", "."])
def test_a_directory_is_one_place_however_it_is_called(tmp_path, other):
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to("images")
    with pytest.raises(BadStoreConfiguration, match="stores one and two would keep images in the same place"):
        registry(
            tmp_path,
            "file",
            {"filesystem_store_datadir": tmp_path / "images"},
            {"filesystem_store_datadirs": f"{tmp_path}/more:2\nfilesystem_store_datadirs = {other}:1"},
        )


def test_directories_whose_names_begin_alike_are_two_places(tmp_path):
    stores = registry(
        tmp_path,
        "file",
        {"filesystem_store_datadir": tmp_path / "images"},
        {"filesystem_store_datadir": tmp_path / "images2"},
    )
    assert [store.name for store in stores] == ["one", "two"]


def test_a_store_of_the_program_in_a_users_directory_is_a_mistake_too(tmp_path):
    path = tmp_path / "storelib.ini"
    path.write_text(
        f"[storelib]\nstores = one:file\n[one]\nfilesystem_store_datadir = {tmp_path}\n"
        f"[os_glance_staging]\nfilesystem_store_datadir = {tmp_path}/staging\n"
    )
    from storelib.config import load_file

    with pytest.raises(BadStoreConfiguration, match="one and os_glance_staging"):
        Registry.from_conf(load_file(path), {"os_glance_staging": "file"})


def test_an_area_is_within_another_by_its_prefix():
    assert Area(("a",), "x/", "option").overlaps(Area(("a",), "x/y/", "option"))
    assert Area(("a",), "", "option").overlaps(Area(("a",), "x", "option"))
    assert not Area(("a",), "x/", "option").overlaps(Area(("a",), "y/", "option"))
    assert not Area(("a",), "", "option").overlaps(Area(("b",), "", "option"))


# -- A look makes nothing ---------------------------------------------------------------------------------------------


def looked_at(tmp_path):
    path = tmp_path / "storelib.ini"
    path.write_text(f"[storelib]\nstores = one:file\n[one]\nfilesystem_store_datadir = {tmp_path}/new/images\n")
    return Registry.from_file(path)["one"]


def test_a_look_makes_no_directory_and_finds_nothing(tmp_path):
    store = looked_at(tmp_path)
    assert list(store.list_images()) == []
    assert store.find_image("image") is None
    assert store.gc(0) == []
    for look in (store.get, store.get_size, store.stat, store.delete):
        with pytest.raises(NotFound):
            look(f"file://{tmp_path}/new/images/image")
    assert os.listdir(tmp_path) == ["storelib.ini"]


def test_the_first_image_makes_the_directory(tmp_path):
    store = looked_at(tmp_path)
    uri = store.add("image", b"bits").uri
    assert (tmp_path / "new" / "images" / "image").read_bytes() == b"bits"
    assert [info.uri for info in store.list_images()] == [uri]


def test_the_check_makes_the_directory(tmp_path):
    assert looked_at(tmp_path).check().free
    assert (tmp_path / "new" / "images").is_dir()


def test_a_directory_that_goes_away_later_is_not_made_again(tmp_path):
    store = looked_at(tmp_path)
    store.delete(store.add("image", b"bits").uri)
    (tmp_path / "new" / "images").rmdir()
    with pytest.raises(RemoteServiceUnavailable, match="is the data directory there"):
        store.add("image", b"bits")
    with pytest.raises(RemoteServiceUnavailable, match="is the data directory there"):
        list(store.list_images())


def test_an_image_is_not_taken_for_gone_with_its_directory(tmp_path):
    store = looked_at(tmp_path)
    uri = store.add("image", b"bits").uri
    (tmp_path / "new").rename(tmp_path / "away")
    for question in (store.delete, store.get, store.get_size):
        with pytest.raises(RemoteServiceUnavailable, match="is not there"):
            question(uri)
    (tmp_path / "away").rename(tmp_path / "new")
    store.delete(uri)
    with pytest.raises(NotFound):
        store.delete(uri)


def test_an_image_is_found_beside_a_directory_that_is_away(tmp_path):
    directories = [tmp_path / "first", tmp_path / "second"]
    store = open_store("file", filesystem_store_datadirs=[f"{path}:1" for path in directories])
    only_second = open_store("file", filesystem_store_datadir=directories[1])
    uri = only_second.add("image", b"bits").uri
    (tmp_path / "first").rmdir()
    assert store.find_image("image").uri == uri
    with pytest.raises(RemoteServiceUnavailable, match="is not there"):
        store.find_image("other")


def test_what_opens_one_store_makes_its_directory(tmp_path):
    open_store("file", filesystem_store_datadir=str(tmp_path / "images"))
    assert (tmp_path / "images").is_dir()
    open_store("file", filesystem_store_datadir=str(tmp_path / "others"), read_only=True)
    assert not (tmp_path / "others").exists()


def test_a_directory_that_cannot_be_made_is_known_at_the_start(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    store = open_store("file", filesystem_store_datadir=str(tmp_path / "file" / "images"))
    assert "is no directory" in store.add_disabled
