# SPDX-License-Identifier: Apache-2.0
"""What images make a hypervisor do, by all ways in which data gets into an image. qemu-img is the judge."""

from __future__ import annotations

import io
import random
import subprocess
import threading
import time
from types import SimpleNamespace

import disk_images as disks
import pytest
from deployment import OCTETS
from disk_images import CANARY, OTHER_FILES, OTHER_FILES_TO_OTHERS
from v1_client import Web, WithWeb, create, created, shown

from storelib.api.db.records import Changes
from storelib.api.errors import UnsupportedMediaType
from storelib.api.service import foreign
from storelib.api.service.inspection import inspected
from storelib.exceptions import Invalid, RemoteServiceUnavailable
from storelib.inspection import probing
from storelib.inspection.source import BLOCK
from storelib.node import checking
from storelib.transfer.download import ImageStream

#: What qemu calls the format; those that it does not know are raw disks to it.
QEMU = {"vhd": "vpc", "ploop": "parallels", **{name: name for name in ("qcow2", "vmdk", "vhdx", "vdi", "luks")}}
DECLARED = ["raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi", "ploop", "iso", "ami", "gpt", "luks"]
ENFORCED = SimpleNamespace(require_image_format_match=True, gpt_safety_checks_nonfatal=[])
NOT_ENFORCED = SimpleNamespace(require_image_format_match=False, gpt_safety_checks_nonfatal=[])
#: What qemu-img makes of a raw disk, by the name of the format here.
MADE = {
    "qcow2": ["qcow2", "-o", "lazy_refcounts=on"],
    "qcow2, version 2": ["qcow2", "-o", "compat=0.10"],
    "qcow2, with subclusters": ["qcow2", "-o", "extended_l2=on"],
    "qcow2, encrypted": [
        *("qcow2", "--object", "secret,id=key,data=secret"),
        *("-o", "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10"),
    ],
    "vmdk": ["vmdk"],
    "vmdk, compressed": ["vmdk", "-o", "subformat=streamOptimized"],
    "vdi": ["vdi"],
    "vdi, static": ["vdi", "-o", "static=on"],
    "vhd": ["vpc"],
    "vhd, fixed": ["vpc", "-o", "subformat=fixed"],
    "vhdx": ["vhdx"],
    "ploop": ["parallels"],
}


def refused(data, declared, options=NOT_ENFORCED, container="bare"):
    """Why an upload of this would fail, None if it would not."""
    source = inspected(options, declared, container, io.BytesIO(data))
    try:
        while source.read(1 << 20):
            pass
    except UnsupportedMediaType as error:
        return str(error)
    return None


@pytest.fixture(scope="module", params=MADE)
def made(request, tmp_path_factory):
    """What qemu-img makes of a raw disk: the name of the format, and the path."""
    directory = tmp_path_factory.mktemp("made")
    (directory / "disk").write_bytes(random.Random(1).randbytes(200 << 10))
    convert = ["qemu-img", "convert", "-f", "raw", "-O", *MADE[request.param], directory / "disk", directory / "image"]
    for _ in range(50):
        done = subprocess.run(convert, capture_output=True, text=True, check=False)
        # It measures how fast it derives keys, and gives up where the kernel counted too little: every second time on
        # some machines.
        if "Unable to get accurate CPU usage" not in done.stderr:
            break
    assert not done.returncode, done.stderr
    return request.param.partition(",")[0], directory / "image"


def opens(path, *arguments):
    """Whether qemu-img opens, or means to open, the other file."""
    found = subprocess.run(["qemu-img", "info", *arguments, path], capture_output=True, check=False)
    return CANARY in found.stdout + found.stderr


def descriptors(count):
    """Texts that qemu may take for descriptors, or not: each the same in every run."""
    chance = random.Random(13)
    lines = [
        b"\n",
        b"\r\n",
        b" \n",
        b"\r",
        b" ",
        b"\t\n",
        b"# c\n",
        b"#\xff\n",
        b"\0",
        b"#".ljust(300) + b"\n",
        b"\f\n",
    ]
    versions = [b"version=1\n", b"version=2\r\n", b"version=3\n", b"version=4\n", b"VERSION=1\n", b"version = 1\n"]
    for number in range(count):
        head = b"".join(chance.choices(lines, k=chance.randrange(3))) + chance.choice(versions)
        yield number, head + disks.FLAT[disks.FLAT.index(b"CID") :]


class TestJudgedByQemu:
    @pytest.mark.parametrize("name", OTHER_FILES)
    def test_what_qemu_opens_other_files_for_is_refused(self, name, tmp_path):
        """The corpus is what it says it is, or else nothing would be tested."""
        data = OTHER_FILES[name]
        (tmp_path / "image").write_bytes(data)
        assert opens(tmp_path / "image")
        for declared in DECLARED:
            for container in ("bare", "ova", "docker"):
                assert refused(data, declared, container=container), (declared, container)

    @pytest.mark.parametrize("name", OTHER_FILES_TO_OTHERS)
    def test_what_others_open_other_files_for_is_refused(self, name):
        for declared in DECLARED:
            assert refused(OTHER_FILES_TO_OTHERS[name], declared), declared

    def test_text_that_is_a_descriptor_only_to_who_is_told_so(self, tmp_path):
        text = b"\x01\n" * 20_000 + disks.FLAT[disks.FLAT.index(b"CID") :]
        (tmp_path / "image").write_bytes(text)
        assert (opens(tmp_path / "image"), opens(tmp_path / "image", "-f", "vmdk")) == (False, True)
        assert refused(text, "vmdk")
        assert refused(text, "raw") is None

    def test_texts_that_qemu_may_take_for_descriptors(self, tmp_path):
        opened = 0
        for number, text in descriptors(40):
            path = tmp_path / str(number)
            path.write_bytes(text)
            if opens(path):
                opened += 1
                assert refused(text, "raw"), text
        assert opened > 5

    def test_what_qemu_makes_is_accepted_as_what_it_is_and_as_a_raw_disk(self, made):
        name, path = made
        data = path.read_bytes()
        assert refused(data, name, ENFORCED) is None
        assert refused(data, "raw", ENFORCED) is None

    @pytest.mark.parametrize("kind", [0, 4])
    def test_a_vhd_that_has_nothing_but_a_footer_must_be_fixed(self, kind):
        disk = random.Random(3).randbytes(1 << 20)
        for options in (ENFORCED, NOT_ENFORCED):
            assert refused(disk + disks.vhd(2)[:512], "vhd", options) is None
            assert refused(disk + disks.vhd(kind)[:512], "vhd", options)
        assert refused(disks.qcow2() + disks.vhd(2)[:512], "vhd", ENFORCED)

    def test_how_large_the_disk_in_a_fixed_vhd_is(self):
        source = inspected(ENFORCED, "vhd", "bare", io.BytesIO(bytes(1 << 20) + disks.vhd(2)[:512]))
        source.look()
        assert source.virtual_size == 1 << 20

    def test_a_vhdx_whose_log_was_replayed_is_accepted(self):
        assert refused(disks.logged_vhdx(newest=2), "vhdx", ENFORCED) is None

    def test_features_of_qcow2_that_nobody_knows(self):
        assert refused(disks.qcow2(features=1 << 4), "qcow2", ENFORCED) is None
        assert refused(disks.qcow2(features=1 << 5), "qcow2", ENFORCED)
        assert refused(disks.qcow2(features=1 << 63), "raw", ENFORCED)

    @pytest.mark.parametrize("declared", DECLARED)
    def test_a_raw_disk_opens_nothing_whatever_it_is_said_to_be(self, declared, tmp_path):
        data = random.Random(2).randbytes(1 << 20)
        (tmp_path / "image").write_bytes(data)
        told = ["-f", QEMU[declared]] if declared in QEMU else []
        assert not opens(tmp_path / "image", *told)
        assert refused(data, declared) is None
        recognised = declared not in ("raw", "ami", "ploop")
        assert (refused(data, declared, ENFORCED) is not None) == recognised


class TestOnNodes:
    """What a node publishes is looked at as an upload is, whatever the API did with it."""

    @pytest.mark.parametrize("name", [*OTHER_FILES, *OTHER_FILES_TO_OTHERS])
    def test_what_opens_other_files_is_not_published(self, name, tmp_path):
        path = tmp_path / "data"
        path.write_bytes((OTHER_FILES | OTHER_FILES_TO_OTHERS)[name])
        for declared in [*DECLARED, None]:
            for container in ("bare", "ova", None):
                if container != "ova" or name in OTHER_FILES:
                    with pytest.raises(Invalid):
                        checking.inspect(path, declared, container)

    def test_what_qemu_makes_is_published(self, made):
        name, path = made
        for declared in (name, "raw", None):
            checking.inspect(path, declared, "bare")

    def test_another_format_than_was_said_is_not_published_whatever_a_parser_makes_of_it(self, tmp_path, monkeypatch):
        path = tmp_path / "data"
        path.write_bytes(random.Random(2).randbytes(1 << 20))
        for declared in DECLARED:
            if declared in ("raw", "ami", "ploop"):
                checking.inspect(path, declared, "bare")
            else:
                with pytest.raises(Invalid, match=declared):
                    checking.inspect(path, declared, "bare")
        # A parser may fail by any error.
        monkeypatch.setattr(probing, "formats_of", lambda head: 1 / 0)
        with pytest.raises(Invalid, match="cannot be read as raw"):
            checking.inspect(path, "raw", "bare")


class TestWork:
    """Hostile bytes cost no more than their number."""

    class Trickle(io.BytesIO):
        """A source that never gives more than one byte."""

        def read(self, size=-1):
            return super().read(min(size, 1))

    @pytest.mark.parametrize("image", [disks.vhdx(), disks.vmdk(disks.DESCRIPTOR), disks.ISO])
    def test_single_bytes_are_looked_at_in_blocks(self, image):
        image = image[: 1 << 19]
        source = inspected(NOT_ENFORCED, "raw", "bare", self.Trickle(image))
        sizes = []
        try:
            while (chunk := source.read(1 << 20)) and len(chunk) > 1:
                sizes.append(len(chunk))
        except UnsupportedMediaType:
            assert image.startswith(b"vhdx")
        assert set(sizes) == {BLOCK}

    @pytest.mark.parametrize("declared", ["raw", "vmdk"])
    def test_of_a_descriptor_no_more_is_kept_than_qemu_reads(self, declared):
        asked = []

        class Endless:
            def read(self, size):
                asked.append(size)
                return (b"KDMV" + b"\xff" * size)[:size]

        with pytest.raises(UnsupportedMediaType):
            inspected(NOT_ENFORCED, declared, "bare", Endless()).read(1 << 30)
        assert sum(asked) <= (1 << 20) + 512


class TestEveryWayIn(WithWeb):
    options = {  # noqa: RUF012
        "show_multiple_locations": "true",
        "import_allowed_networks": "127.0.0.1/32",
        "import_allowed_ports": "",
    }

    @pytest.fixture(params=["descriptor, one odd byte", "qcow2, short", "no capacity, two types", "vhd with a parent"])
    def hostile(self, request, monkeypatch):
        data = (OTHER_FILES | OTHER_FILES_TO_OTHERS)[request.param]
        monkeypatch.setattr(Web, "data", data)
        return data

    @pytest.fixture(params=["raw", "iso", "ami"])
    def image(self, request):
        """Of this nothing may be left, and it may be tried again."""
        image = self.api.nova.create(disk_format=request.param)
        before = self.api.files()
        yield image
        self.api.settle()
        after = self.api.nova.show(image)
        assert (after["status"], after.get("stores"), self.api.files()) == ("queued", None, before)
        assert list((self.api.directory / "staging").glob("*")) == []

    def put_into(self, store, data):
        return self.api.registry[store].add(f"{random.getrandbits(64):x}", data).uri

    def test_upload(self, hostile, image):
        assert self.api.nova.upload(image, hostile).status_code == 415

    def test_import_of_what_is_staged(self, hostile, image):
        assert self.api.nova.request("PUT", f"/v2/images/{image}/stage", OCTETS, body=hostile).status_code == 204
        body = {"method": {"name": "glance-direct"}, "all_stores": True}
        assert self.api.nova.post(f"/v2/images/{image}/import", body).status_code == 202

    def test_import_from_the_web(self, hostile, image):
        body = {"method": {"name": "web-download", "uri": f"{self.web}/image"}}
        response = self.api.nova.post(f"/v2/images/{image}/import", body)
        assert response.status_code == 202, response.text

    def test_location(self, hostile, image):
        url = self.put_into("mem", hostile)
        assert self.api.nova.post(f"/v2/images/{image}/locations", {"url": url}).status_code == 202

    def test_location_by_patch(self, hostile, image):
        value = {"url": self.put_into("mem", hostile), "metadata": {}}
        response = self.api.nova.patch(image, {"op": "add", "path": "/locations/-", "value": value})
        assert response.status_code == 415, response.text
        response = self.api.nova.patch(image, {"op": "replace", "path": "/locations", "value": [value]})
        assert response.status_code == 415, response.text

    def test_location_in_version_1(self, hostile, image):
        fields = {"disk_format": "raw", "container_format": "bare"}
        assert create(self.api.admin, location=f"{self.web}/image", **fields).status_code == 415
        response = self.api.nova.request("PUT", f"/v1/images/{image}", {"x-image-meta-location": f"{self.web}/image"})
        assert response.status_code == 415, response.text

    def test_copy_in_version_1(self, hostile):
        more = {"x-glance-api-copy-from": f"{self.web}/image"}
        response = create(self.api.admin, more=more, disk_format="raw", container_format="bare")
        self.api.settle()
        assert shown(self.api.admin, response.json["image"]["id"])["status"] == "killed"

    def test_another_place_of_an_image_that_has_data(self, hostile):
        image = self.api.nova.active(b"\0" * len(hostile))
        value = {"url": self.put_into("mem", hostile), "metadata": {}}
        response = self.api.nova.patch(image, {"op": "add", "path": "/locations/-", "value": value})
        assert response.status_code == 415, response.text
        assert len(self.api.nova.show(image)["locations"]) == 1

    def test_a_server_that_sends_byte_after_byte_keeps_nobody_waiting(self, monkeypatch):
        left = threading.Event()

        def trickle(server):
            server.send_response(200)
            server.send_header("Content-Length", str(1 << 20))
            server.end_headers()
            try:
                for _ in range(400):
                    server.wfile.write(b"x")
                    time.sleep(0.02)
            except OSError:
                left.set()

        monkeypatch.setattr(foreign, "LOOK", 0.2)
        monkeypatch.setattr(Web, "do_GET", trickle)
        response = create(self.api.nova, location=f"{self.web}/image", disk_format="raw", container_format="bare")
        assert response.status_code == 503, response.text
        assert left.wait(20)

    def test_copy_of_what_is_no_longer_what_was_inspected(self, monkeypatch):
        monkeypatch.setattr(Web, "data", b"\0" * len(OTHER_FILES["qcow"]))
        image = created(self.api.nova, location=f"{self.web}/image")
        before = self.api.files()
        monkeypatch.setattr(Web, "data", OTHER_FILES["qcow"])
        body = {"method": {"name": "copy-image"}, "stores": ["fast"]}
        assert self.api.admin.post(f"/v2/images/{image}/import", body).status_code == 202
        self.api.settle()
        assert (len(self.api.nova.show(image)["locations"]), self.api.files()) == (1, before)
        monkeypatch.setattr(Web, "data", b"\0" * len(OTHER_FILES["qcow"]))
        self.api.admin.post(f"/v2/images/{image}/import", body)
        self.api.settle()
        assert image in self.api.files()

    def test_formats_that_are_changed_after_the_place_was_named(self):
        url = self.put_into("mem", b"no qcow2 at all")
        image = self.api.nova.create(container_format="ova", disk_format="qcow2")
        place = {"op": "add", "path": "/locations/-", "value": {"url": url, "metadata": {}}}
        bare = {"op": "replace", "path": "/container_format", "value": "bare"}
        assert self.api.nova.patch(image, place, bare).status_code == 415
        assert self.api.nova.patch(image, bare, place).status_code == 415
        assert self.api.nova.patch(image, place).status_code == 200

    def test_formats_that_are_changed_while_the_data_is_imported(self):
        image = self.api.nova.create(container_format="ova", disk_format="qcow2")
        record = self.api.repository.images.get(image)
        self.api.repository.images.update(record, Changes(status="importing"))
        for name, value in (("container_format", "bare"), ("disk_format", "raw")):
            change = {"op": "replace", "path": f"/{name}", "value": value}
            assert self.api.nova.patch(image, change).status_code == 403

    def test_formats_that_are_changed_when_the_upload_has_begun(self, monkeypatch):
        image = self.api.nova.create(container_format="ova", disk_format="qcow2")
        begin = self.api.repository.uploads.begin

        def change_first(*given, **more):
            monkeypatch.undo()
            change = {"op": "replace", "path": "/container_format", "value": "bare"}
            assert self.api.nova.patch(image, change).status_code == 200
            return begin(*given, **more)

        monkeypatch.setattr(self.api.repository.uploads, "begin", change_first)
        assert self.api.nova.upload(image, b"no qcow2 at all").status_code == 415

    @pytest.mark.parametrize("name", ["disk_format", "container_format"])
    def test_a_place_for_an_image_whose_format_is_taken_away_at_once(self, name):
        image = self.api.nova.create()
        place = {"op": "add", "path": "/locations/-", "value": {"url": f"{self.web}/image", "metadata": {}}}
        away = {"op": "replace", "path": f"/{name}", "value": None}
        assert self.api.nova.patch(image, place, away).status_code == 400
        assert self.api.nova.patch(image, away, place).status_code == 400
        old = {"x-image-meta-location": f"{self.web}/image", f"x-image-meta-{name}": ""}
        assert self.api.nova.request("PUT", f"/v1/images/{image}", old).status_code == 400
        assert self.api.nova.show(image)["status"] == "queued"

    @pytest.mark.parametrize("way", ["upload", "import", "location"])
    def test_formats_that_are_taken_away_when_it_has_begun(self, way, monkeypatch):
        image, begin = self.api.nova.create(), self.api.repository.uploads.begin

        def change_first(*given, **more):
            monkeypatch.undo()
            away = {"op": "replace", "path": "/disk_format", "value": None}
            assert self.api.nova.patch(image, away).status_code == 200
            return begin(*given, **more)

        monkeypatch.setattr(self.api.repository.uploads, "begin", change_first)
        path, url = f"/v2/images/{image}", f"{self.web}/image"
        if way == "upload":
            response = self.api.nova.upload(image, b"data")
        elif way == "import":
            response = self.api.nova.post(f"{path}/import", {"method": {"name": "web-download", "uri": url}})
        else:
            response = self.api.nova.post(f"{path}/locations", {"url": url})
        assert response.status_code in (400, 409), response.text
        self.api.settle()
        self.api.service.lease.beat()
        assert self.api.nova.show(image)["status"] == "queued"

    @pytest.mark.parametrize("data", [disks.luks(3 << 20), disks.qcow2(), disks.ISO, disks.vmdk(disks.DESCRIPTOR)])
    def test_what_guests_write_to_raw_disks_is_raw_at_a_location_too(self, data, monkeypatch):
        monkeypatch.setattr(Web, "data", data)
        image, patched = self.api.nova.create(), self.api.nova.create()
        url = self.put_into("mem", data)
        assert self.api.nova.post(f"/v2/images/{image}/locations", {"url": url}).status_code == 202
        value = {"url": self.put_into("mem", data), "metadata": {}}
        assert self.api.nova.patch(patched, {"op": "add", "path": "/locations/-", "value": value}).status_code == 200
        old = created(self.api.nova, location=f"{self.web}/image")
        self.api.settle()
        assert {self.api.nova.show(each)["status"] for each in (image, patched, old)} == {"active"}

    def test_what_is_between_the_ends_of_a_large_image_is_not_taken_for_its_end(self):
        image = self.api.nova.create(disk_format="vhdx")
        data = disks.far_vhdx(foreign.HEAD, foreign.TAIL)
        value = {"url": self.put_into("mem", data), "metadata": {}}
        response = self.api.nova.patch(image, {"op": "add", "path": "/locations/-", "value": value})
        assert response.status_code == 415, response.text

    @pytest.mark.parametrize(("end", "status"), [(1, 200), (2, 415)])
    def test_of_a_large_image_the_ends_are_looked_at(self, end, status, monkeypatch):
        monkeypatch.setattr(foreign, "HEAD", 1 << 20)
        image = self.api.nova.create(disk_format="vmdk")
        value = {"url": self.put_into("mem", disks.compressed_vmdk(end)), "metadata": {}}
        response = self.api.nova.patch(image, {"op": "add", "path": "/locations/-", "value": value})
        assert response.status_code == status, response.text


class TestNotHashed(WithWeb):
    options = {"do_secure_hash": "false"}  # noqa: RUF012

    @pytest.mark.parametrize(("data", "status"), [(OTHER_FILES["qcow"], "queued"), (b"a raw disk", "active")])
    def test_data_that_is_not_hashed_is_inspected_too(self, data, status):
        image = self.api.nova.create()
        url = self.api.registry["mem"].add(f"{random.getrandbits(64):x}", data).uri
        self.api.nova.post(f"/v2/images/{image}/locations", {"url": url})
        self.api.settle()
        assert self.api.nova.show(image)["status"] == status


class TestRaisedAfterTheData(WithWeb):
    """Whatever is raised between the store's add and the record: the data is gone."""

    @pytest.mark.parametrize("error", [RuntimeError("a mistake"), UnsupportedMediaType("found late")])
    @pytest.mark.parametrize("way", ["upload", "import"])
    def test_nothing_of_it_is_left(self, way, error, monkeypatch):
        image = self.api.nova.create()

        def fail(*arguments):
            assert image in self.api.files()
            raise error

        if way == "import":
            self.api.nova.request("PUT", f"/v2/images/{image}/stage", OCTETS, body=b"data")
        monkeypatch.setattr(self.api.repository.uploads, "finish", fail)
        if way == "upload":
            assert self.api.nova.upload(image, b"data").status_code in (415, 500)
        else:
            response = self.api.nova.post(f"/v2/images/{image}/import", {"method": {"name": "glance-direct"}})
            assert response.status_code == 202
            self.api.settle()
        monkeypatch.undo()
        self.api.service.lease.recover()
        assert self.api.nova.show(image)["status"] == "queued"
        assert image not in self.api.files()

    @pytest.mark.parametrize("way", ["import", "copy"])
    def test_a_source_that_fails_only_when_it_is_closed(self, way, monkeypatch):
        image = self.api.nova.active(b"data") if way == "copy" else self.api.nova.create()
        if way == "import":
            self.api.nova.request("PUT", f"/v2/images/{image}/stage", OCTETS, body=b"data")
        close = ImageStream.close

        def fail(stream):
            if not stream.closed:
                close(stream)
                raise RemoteServiceUnavailable("the connection was cut")

        body = {"method": {"name": "glance-direct" if way == "import" else "copy-image"}, "stores": ["mem"]}
        with monkeypatch.context() as patch:
            patch.setattr(ImageStream, "close", fail)
            assert self.api.admin.post(f"/v2/images/{image}/import", body).status_code == 202
            self.api.settle()
        shown = self.api.nova.show(image)
        assert (shown["status"], shown.get("stores")) == (("active", "fast") if way == "copy" else ("queued", None))
        assert self.api.registry["mem"].find_image(image) is None
        assert self.api.repository.uploads.get(image) is None
