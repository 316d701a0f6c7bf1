# SPDX-License-Identifier: Apache-2.0
"""The services that are built on an image service: what Nova, Cinder and Ironic do with images, by their own code.

Stores are a directory, RBD and Swift, behind ``storelib serve`` with Keystone and PostgreSQL; the disks of servers and
the volumes are in a pool of the same Ceph.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import struct
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from servers.api import Deployment
from servers.ceph import Cluster
from servers.consumers import Consumer, Refused
from servers.keystone import Keystone
from servers.postgresql import PostgreSQL
from servers.swift import Swift

DATA = b"\xeb\x3c" + bytes(range(251)) * 8400
TEMP_URL_KEY = "secret of temporary addresses"
POOL = "disks"

INI = """
[storelib]
stores = files:file, ceph:rbd, swift:swift
default_store = files
[files]
filesystem_store_datadir = {directory}/files
[ceph]
rbd_store_ceph_conf = {ceph.conf_file}
rbd_store_keyring = {ceph.keyring}
rbd_store_pool = images
[swift]
swift_store_auth_version = 3
swift_store_auth_address = {keystone.url}
swift_store_user = service:swift
swift_store_key = swiftpass
swift_store_container = images
swift_store_create_container_on_put = true
swift_store_region = {region}
[api]
auth_strategy = keystone
staging_dir = {directory}/staging
show_multiple_locations = true
[database]
connection = {connection}
{keystone.authtoken}
service_token_roles = service
service_token_roles_required = true
"""


class World:
    """All services of one region."""

    region = "services"

    def __init__(self, directory: Path, keystone: Keystone, ceph: Cluster, swift: Swift, connection: str) -> None:
        self.directory, self.keystone, self.ceph = directory, keystone, ceph
        keystone.add_endpoints("object-store", **{self.region: f"{swift.url}/v1/AUTH_%(tenant_id)s"})
        names = {"ceph": ceph, "keystone": keystone, "region": self.region}
        ini = INI.format(directory=directory, connection=connection, **names)
        self.api = Deployment(directory, ini=ini)
        response = self.api.run("db", "sync")
        assert response.code == 0, response.err
        self.url = self.api.serve("--workers", "2").url
        keystone.add_endpoints("image", **{self.region: self.url})
        keystone.add_endpoints("identity", **{self.region: keystone.url})
        account = f"{swift.url}/v1/AUTH_{keystone.projects['service']}"
        token = keystone.token("swift", "service")[0]
        keystone.call_service("POST", account, X_Auth_Token=token, X_Account_Meta_Temp_URL_Key=TEMP_URL_KEY)
        self.member = self.caller("demo", "demo")

    def caller(self, user: str, project: str) -> dict[str, str]:
        """What a service knows of a caller."""
        token, described = self.keystone.token(user, project)
        return {
            "token": token,
            "user": described["user"]["id"],
            "project": described["project"]["id"],
            "url": self.url,
            "region": self.region,
        }

    def consumer(self, name: str, directory: Path) -> Consumer:
        return Consumer(
            name,
            directory,
            keystone=self.keystone.url,
            url=self.url,
            region=self.region,
            pool=POOL,
            ceph_conf=self.ceph.conf_file,
            temp_url_key=TEMP_URL_KEY,
        )

    def image(self, image_id: str) -> Mapping[str, object]:
        return self.keystone.call_service("GET", f"{self.url}/v2/images/{image_id}")

    def make(self, store: str, data: bytes = DATA, **fields: object) -> str:
        """An image of the member's project with data in one store."""
        body = {"name": f"in {store}", "disk_format": "raw", "container_format": "bare", **fields}
        body["owner"] = self.member["project"]
        image_id = self.keystone.call_service("POST", f"{self.url}/v2/images", body)["id"]
        self.keystone.upload(f"{self.url}/v2/images/{image_id}/file", data, X_Image_Meta_Store=store)
        return image_id

    def wait_until_active(self, image_id: str) -> Mapping[str, object]:
        deadline = time.monotonic() + 30
        while (image := self.image(image_id))["status"] != "active":
            assert time.monotonic() < deadline, image
            time.sleep(0.1)
        return image

    def rbd(self, *words: str) -> str:
        return self.ceph.run("rbd", *words)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        keystone = stack.enter_context(Keystone(tmp_path_factory.mktemp("keystone")))
        swift = stack.enter_context(Swift(tmp_path_factory.mktemp("swift"), keystone.url))
        ceph = stack.enter_context(Cluster(tmp_path_factory.mktemp("ceph")))
        for pool in ("images", POOL):
            ceph.add_pool(pool)
        postgresql = stack.enter_context(PostgreSQL())
        made = World(tmp_path_factory.mktemp("api"), keystone, ceph, swift, postgresql.new_database())
        stack.callback(made.api.close)
        yield made


@pytest.fixture(scope="module")
def nova(world, tmp_path_factory) -> Iterator[Consumer]:
    with world.consumer("nova", tmp_path_factory.mktemp("consumers") / "nova") as consumer:
        yield consumer


@pytest.fixture(scope="module")
def cinder(world, tmp_path_factory) -> Iterator[Consumer]:
    with world.consumer("cinder", tmp_path_factory.mktemp("consumers") / "cinder") as consumer:
        yield consumer


@pytest.fixture(scope="module")
def ironic(world, tmp_path_factory) -> Iterator[Consumer]:
    with world.consumer("ironic", tmp_path_factory.mktemp("consumers") / "ironic") as consumer:
        yield consumer


class TestNova:
    FIELDS: Mapping[str, object] = {
        "name": "made by nova",
        "disk_format": "raw",
        "container_format": "bare",
        "properties": {"os_type": "linux", "hw_disk_bus": "virtio"},
    }

    def test_makes_shows_downloads_and_deletes(self, world, nova, tmp_path):
        (tmp_path / "data").write_bytes(DATA)
        image = nova.call("create", world.member, self.FIELDS, str(tmp_path / "data"))
        assert image["properties"].items() >= self.FIELDS["properties"].items()
        assert image["checksum"] == hashlib.md5(DATA).hexdigest()
        shown = nova.call("show", world.member, image["id"])
        assert (shown["status"], shown["size"]) == ("active", len(DATA))
        assert "made by nova" in nova.call("names", world.member)
        nova.call("download", world.member, image["id"], str(tmp_path / "copy"))
        assert (tmp_path / "copy").read_bytes() == DATA
        nova.call("delete", world.member, image["id"])
        with pytest.raises(Refused, match="ImageNotFound"):
            nova.call("show", world.member, image["id"])

    @pytest.mark.parametrize("store", ["files", "ceph"])
    def test_update_that_purges_takes_away_properties_and_nothing_else(self, world, nova, store):
        image_id = world.make(store, old="1", kept="2")
        before = world.image(image_id)
        changed = nova.call("update", world.member, image_id, {"name": "new", "properties": {"kept": "2"}}, True)
        assert changed["name"] == "new"
        assert differences(before, world.image(image_id)) == {"old", "name"}

    def test_boots_from_a_clone_of_an_image_in_ceph(self, world, nova):
        image_id = world.make("ceph")
        size = nova.call("boot", world.member, image_id, "booted_disk")
        assert size == len(DATA)
        assert f"parent: images/{image_id}@" in world.rbd("info", f"{POOL}/booted_disk")

    def test_copies_an_image_into_ceph_to_boot_from_it(self, world, nova):
        admin = world.caller("admin", "admin")
        image_id = world.make("files", visibility="public")
        nova.call("boot", admin, image_id, "copied_disk")
        assert set(str(world.image(image_id)["stores"]).split(",")) == {"files", "ceph"}
        assert f"parent: images/{image_id}@" in world.rbd("info", f"{POOL}/copied_disk")

    def test_snapshot_in_ceph_becomes_an_image_without_its_data_being_sent(self, world, nova, tmp_path):
        base = world.make("ceph")
        nova.call("boot", world.member, base, "server_disk")
        nova.call("write", "server_disk", "written by the server")
        snapshot = nova.call("create", world.member, {"name": "snapshot", "properties": {"image_type": "snapshot"}})[
            "id"
        ]
        url = nova.call("snapshot", world.member, "server_disk", snapshot, base)
        image = world.wait_until_active(snapshot)
        assert image["size"] == len(DATA)
        assert (image["os_type"], image["image_type"]) == ("linux", "snapshot")
        locations = world.keystone.call_service(
            "GET",
            f"{world.url}/v2/images/{snapshot}/locations",
            X_Auth_Token=world.keystone.token("images", "service")[0],
        )
        assert [each["url"] for each in locations] == [url]
        nova.call("download", world.member, snapshot, str(tmp_path / "copy"))
        data = (tmp_path / "copy").read_bytes()
        assert data == b"written by the server" + DATA[21:]
        nova.call("boot", world.member, snapshot, "second_disk")


class TestCinder:
    FIELDS: Mapping[str, object] = {"name": "made by cinder", "disk_format": "raw", "container_format": "bare"}

    def test_uploads_a_volume_and_downloads_the_image(self, world, cinder, tmp_path):
        (tmp_path / "volume").write_bytes(DATA)
        image_id = cinder.call("upload_volume", world.member, self.FIELDS, str(tmp_path / "volume"))
        shown = cinder.call("show", world.member, image_id)
        assert (shown["status"], shown["size"]) == ("active", len(DATA))
        cinder.call("download", world.member, image_id, str(tmp_path / "copy"))
        assert (tmp_path / "copy").read_bytes() == DATA

    @pytest.mark.parametrize("version", [1, 2])
    def test_uploads_an_encrypted_volume(self, world, cinder, tmp_path, version):
        (tmp_path / "volume").write_bytes(encrypted(version))
        keys = {"cinder_encryption_key_id": "11111111-2222-3333-4444-555555555555"}
        keys["cinder_encryption_key_deletion_policy"] = "do_not_delete"
        image_id = cinder.call(
            "upload_volume", world.member, {**self.FIELDS, "properties": keys}, str(tmp_path / "volume")
        )
        shown = cinder.call("show", world.member, image_id)
        assert (shown["status"], shown["properties"]) == ("active", keys)
        cinder.call("download", world.member, image_id, str(tmp_path / "copy"))
        assert (tmp_path / "copy").read_bytes() == encrypted(version)

    def test_update_that_purges_takes_away_properties_and_nothing_else(self, world, cinder):
        image_id = world.make("files", old="1")
        before = world.image(image_id)
        cinder.call("update", world.member, image_id, {"name": "new", "properties": {"fresh": "3"}}, True)
        assert differences(before, world.image(image_id)) == {"old", "fresh", "name"}

    def test_makes_a_volume_of_an_image_by_a_clone_of_its_place(self, world, cinder):
        image_id = world.make("ceph")
        volume = cinder.call("volume_of_image", world.member, image_id)
        assert f"parent: images/{image_id}@" in world.rbd("info", f"{POOL}/{volume}")

    def test_makes_no_clone_of_an_image_elsewhere(self, world, cinder):
        assert cinder.call("volume_of_image", world.member, world.make("files")) is None

    def test_makes_an_image_of_a_place_in_ceph(self, world, cinder):
        world.rbd("create", "images/volume-of-cinder", "--size", "1M")
        world.rbd("snap", "create", "images/volume-of-cinder@snap")
        world.rbd("snap", "protect", "images/volume-of-cinder@snap")
        url = f"rbd://{world.ceph.fsid}/images/volume-of-cinder/snap"
        image_id = cinder.call("add_location", world.member, self.FIELDS, url)
        assert world.wait_until_active(image_id)["size"] == 1024 * 1024


class TestIronic:
    def test_downloads_and_verifies_what_it_downloads(self, world, ironic, tmp_path):
        image_id = world.make("files", visibility="public")
        image = ironic.call("show", image_id)
        wanted = hashlib.sha512(DATA).hexdigest()
        assert (image["properties"]["hash_algo"], image["properties"]["hash_value"]) == ("sha512", wanted)
        verified = ironic.call("download", image_id, str(tmp_path / "copy"), "sha512", wanted)
        assert verified == f"sha512:{wanted}"
        assert (tmp_path / "copy").read_bytes() == DATA

    def test_hands_out_a_temporary_url_that_needs_no_token(self, world, ironic):
        image_id = world.make("swift", visibility="public")
        url = ironic.call("temporary_url", image_id)
        with urllib.request.urlopen(url, timeout=60) as response:
            assert response.read() == DATA


def differences(before: Mapping[str, object], after: Mapping[str, object]) -> set[str]:
    """The fields of an image that are not as they were, the time of the change aside."""
    return {key for key in {*before, *after} - {"updated_at"} if before.get(key) != after.get(key)}


def encrypted(version: int) -> bytes:
    """A volume as Cinder encrypts it: a header of LUKS, and what nobody reads without the key behind it."""
    header = struct.pack(">6sH32s32s32sII", b"LUKS\xba\xbe", version, b"aes", b"xts-plain64", b"sha256", 4096, 64)
    return header.ljust(4096 * 512, b"\0") + random.Random(13).randbytes(1024 * 1024)
