# SPDX-License-Identifier: Apache-2.0
"""Plug-ins of imports: what comes out of them, what they refuse, and that nothing is left of what failed."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import subprocess
import time
import zipfile

import pytest
import zstandard
from deployment import OCTETS, Deployed, Deployment

from storelib.api.errors import Unavailable
from storelib.api.service import administrator, plugins
from storelib.api.service.material import Material
from storelib.api.service.plugins import decompression
from storelib.exceptions import BadStoreConfiguration

MiB = 1024 * 1024
DATA = os.urandom(100_000) + bytes(MiB) + b"the end"


class Importing(Deployed):
    def bring(self, data, caller=None, **values):
        """Stage and import data; returns the image as it is then."""
        caller = caller or self.api.alice
        image = caller.create(**values)
        assert caller.request("PUT", f"/v2/images/{image}/stage", OCTETS, body=data).status_code == 204
        response = caller.post(f"/v2/images/{image}/import", {"method": {"name": "glance-direct"}, "stores": ["mem"]})
        assert response.status_code == 202, response.text
        self.api.settle()
        return caller.show(image)

    def content(self, shown):
        return self.api.alice.download(shown["id"]).content

    def why(self, shown):
        """Why an import failed of which nothing is left."""
        assert (shown["status"], shown["os_glance_failed_import"]) == ("queued", "mem")
        assert (shown["disk_format"], shown["size"]) == (shown["disk_format"], None)
        assert shown["id"] not in self.api.registry["mem"].backend.images
        assert self.left() == []
        [task] = self.api.alice.get(f"/v2/images/{shown['id']}/tasks").json["tasks"]
        assert task["status"] == "failure"
        assert str(self.api.directory) not in task["message"]
        return task["message"]

    def left(self):
        """Files below the directory of staged data."""
        return [name for _, _, names in os.walk(self.api.directory / "staging") for name in names]


def zipped(data, *names, method=zipfile.ZIP_DEFLATED, stream=False):
    file = io.BytesIO()
    target = Unseekable(file) if stream else file
    with zipfile.ZipFile(target, "w", method) as archive:
        for name in names:
            archive.writestr(name, data)
    return file.getvalue()


class Unseekable(io.RawIOBase):
    """What makes zipfile write the length of an entry behind it."""

    def __init__(self, file):
        self._file = file

    def writable(self):
        return True

    def write(self, data):
        return self._file.write(data)


PACKED = {
    "gzip": gzip.compress(DATA),
    "gzip in two members": gzip.compress(DATA[:1000]) + gzip.compress(DATA[1000:]),
    "gzip and zeros": gzip.compress(DATA) + bytes(600_000),
    "gzip in two members and zeros": gzip.compress(DATA[:1000]) + bytes(700) + gzip.compress(DATA[1000:]) + bytes(700),
    "xz": lzma.compress(DATA),
    "xz -9": lzma.compress(DATA, preset=9),
    "xz in two streams": lzma.compress(DATA[:1000]) + bytes(8) + lzma.compress(DATA[1000:]) + bytes(8),
    "zstd": zstandard.compress(DATA),
    "zstd of unknown length": zstandard.ZstdCompressor(write_content_size=False).compress(DATA),
    "zstd --ultra -22 --long": zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(19, window_log=27)
    ).compress(DATA),
    "zstd in two frames": zstandard.compress(DATA[:1000]) + zstandard.compress(DATA[1000:]),
    "zstd with a frame to skip": zstandard.compress(DATA) + b"\x50\x2a\x4d\x18\4\0\0\0skip",
    "zip": zipped(DATA, "disk.img"),
    "zip that is stored": zipped(DATA, "disk.img", method=zipfile.ZIP_STORED),
    "zip from a pipe": zipped(DATA, "disk.img", stream=True),
}


class TestDecompression(Importing):
    options = {"[image_import_opts]\nimage_import_plugins": "[image_decompression]"}  # noqa: RUF012

    @pytest.mark.parametrize("kind", PACKED)
    def test_packed_data_is_unpacked(self, kind):
        shown = self.bring(PACKED[kind])
        assert (shown["status"], shown["size"], shown["virtual_size"]) == ("active", len(DATA), len(DATA))
        assert self.content(shown) == DATA
        assert self.left() == []

    @pytest.mark.parametrize("kind", PACKED)
    def test_packed_data_that_is_cut_short_is_refused(self, kind):
        data = PACKED[kind].rstrip(b"\0")
        if kind == "zstd with a frame to skip":
            data = data[: -len("skip")]
        assert "cannot be unpacked" in self.why(self.bring(data[: len(data) * 2 // 3]))

    @pytest.mark.parametrize("kind", ["gzip", "xz", "zip", "zip that is stored", "zip from a pipe"])
    def test_packed_data_that_is_damaged_is_refused(self, kind):
        data = bytearray(PACKED[kind])
        data[50_000] ^= 1
        assert "cannot be unpacked" in self.why(self.bring(bytes(data)))

    @pytest.mark.parametrize("kind", ["gzip", "xz", "zstd"])
    def test_what_follows_packed_data_is_refused(self, kind):
        assert "cannot be unpacked" in self.why(self.bring(PACKED[kind] + b"more"))

    @pytest.mark.parametrize(
        "archive", [zipped(b"x", "one", "two"), zipped(b"", "directory/", "directory/one"), zipped(b"x")]
    )
    def test_an_archive_has_one_file(self, archive):
        shown = self.bring(archive)
        if archive[:4] == b"PK\5\6":
            # An empty archive is not known for one.
            assert shown["status"] == "active"
        else:
            assert "more than one file" in self.why(shown)

    def test_an_encrypted_archive_is_refused(self):
        data = bytearray(PACKED["zip"])
        data[6] |= 1
        assert "encrypted" in self.why(self.bring(bytes(data)))

    def test_what_is_said_to_be_packed_stays_so(self):
        assert self.content(self.bring(PACKED["gzip"], container_format="compressed")) == PACKED["gzip"]

    def test_what_is_not_packed_stays_as_it_is(self):
        assert self.content(self.bring(DATA)) == DATA
        assert self.content(self.bring(b"\x1f")) == b"\x1f"

    def test_what_comes_out_is_inspected(self):
        assert "qcow2" in self.why(self.bring(gzip.compress(b"QFI\xfb" + bytes(1000))))

    @pytest.mark.parametrize(
        "bomb",
        [
            zstandard.compress(bytes(20 * MiB)),
            lzma.compress(bytes(20 * MiB), preset=0),
            gzip.compress(bytes(20 * MiB), 6),
            zipped(bytes(20 * MiB), "bomb"),
        ],
        ids=["zstd", "xz", "gzip", "zip"],
    )
    def test_a_bomb_is_refused(self, bomb, monkeypatch):
        monkeypatch.setattr("storelib.api.service.plugins.decompression.SLACK", MiB)
        assert "import_decompression_ratio" in self.why(self.bring(bomb))

    def test_a_decoder_gets_no_more_memory_than_usual_data_needs(self):
        filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 512 * MiB}]
        assert "cannot be unpacked" in self.why(self.bring(lzma.compress(b"x", filters=filters)))

    @pytest.mark.parametrize(
        "part",
        [gzip.compress(b""), lzma.compress(b""), zstandard.compress(b"")],
        ids=["gzip", "xz", "zstd"],
    )
    def test_parts_with_nothing_in_them_keep_no_thread(self, part):
        """A gigabyte of them is hours of work, of which nothing comes out."""
        image = self.api.repository.images.get(self.api.alice.create())
        material = Material(administrator(), image, io.BytesIO(part * 40_000), None)
        asked = []

        def check():
            asked.append(material)
            if len(asked) > 20:
                raise Unavailable("it took too long")

        material.check = check
        decompression.plugin(self.api.service.core.options)(material)
        with pytest.raises(Unavailable, match="too long"):
            material.stream.read(MiB)

    def test_copies_are_not_unpacked(self):
        image = self.api.alice.active(PACKED["gzip"])
        copy = {"method": {"name": "copy-image"}, "stores": ["mem"]}
        assert self.api.admin.post(f"/v2/images/{image}/import", copy).status_code == 202
        self.api.settle()
        assert self.api.registry["mem"].backend.images[image].data == PACKED["gzip"]


class TestLimits(Importing):
    options = {"image_size_cap": 50_000, "[image_import_opts]\nimage_import_plugins": "image_decompression"}  # noqa: RUF012

    def test_what_comes_out_is_no_larger_than_an_image_may_be(self):
        assert "50000 bytes" in self.why(self.bring(gzip.compress(bytes(50_001))))
        assert self.bring(gzip.compress(bytes(50_000)))["size"] == 50_000


class TestInjection(Importing):
    options = {  # noqa: RUF012
        "[image_import_opts]\nimage_import_plugins": "['no_op', 'inject_image_metadata']",
        "[inject_metadata_properties]\nignore_user_roles": "admin, Chief",
        "inject": "from:import,os_distro:unknown",
    }

    def test_properties_are_set_in_what_users_import(self):
        shown = self.bring(DATA, os_distro="debian", mine="1")
        assert (shown["from"], shown["os_distro"], shown["mine"]) == ("import", "unknown", "1")

    def test_some_roles_are_exempt(self):
        assert "from" not in self.bring(DATA, self.api.admin)
        assert "from" not in self.bring(DATA, self.api.caller("alpha", "chief", "member", "reader"))

    def test_a_failed_import_sets_nothing(self):
        shown = self.bring(DATA, disk_format="qcow2")
        assert (shown["status"], "from" in shown) == ("queued", False)

    def test_an_upload_is_no_import(self):
        assert "from" not in self.api.alice.show(self.api.alice.active())


def made_disk(directory, kind, size="8M", *options):
    path = directory / f"disk.{kind}"
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, *options, path, size], check=True)
    subprocess.run(["qemu-io", "-f", kind, "-c", "write -q -P 7 64k 128k", path], check=True, stdout=subprocess.DEVNULL)
    return path.read_bytes()


RAW = bytes(64 * 1024) + b"\7" * 128 * 1024 + bytes(8 * MiB - 192 * 1024)


class TestConversion(Importing):
    options = {"[image_import_opts]\nimage_import_plugins": "image_decompression,image_conversion"}  # noqa: RUF012

    @pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vdi", "vpc", "vhdx"])
    def test_disks_are_converted(self, kind, tmp_path):
        data = made_disk(tmp_path, kind)
        shown = self.bring(data, disk_format={"vpc": "vhd"}.get(kind, kind))
        assert (shown["status"], shown["disk_format"], shown["container_format"]) == ("active", "raw", "bare")
        assert (shown["size"], shown["virtual_size"]) == (shown["size"], shown["size"])
        assert self.content(shown)[: len(RAW)] == RAW
        assert self.left() == []

    def test_packed_disks_are_unpacked_first(self, tmp_path):
        shown = self.bring(gzip.compress(made_disk(tmp_path, "qcow2")), disk_format="qcow2")
        assert (shown["status"], shown["disk_format"], shown["size"]) == ("active", "raw", len(RAW))
        assert self.content(shown) == RAW

    def test_disks_of_the_format_and_isos_stay_as_they_are(self):
        assert self.content(self.bring(RAW)) == RAW
        iso = bytes(32768) + b"\1CD001" + bytes(100_000)
        shown = self.bring(iso, disk_format="iso")
        assert (shown["disk_format"], self.content(shown)) == ("iso", iso)

    def test_what_is_no_disk_by_itself_stays_as_it_is(self, tmp_path):
        data = made_disk(tmp_path, "vmdk")
        shown = self.bring(data, disk_format="vmdk", container_format="ova")
        assert (shown["disk_format"], self.content(shown)) == ("vmdk", data)

    def test_what_qemu_does_not_know_is_refused(self):
        assert "cannot be converted" in self.why(self.bring(b"data", disk_format="ploop"))

    @pytest.mark.parametrize("status", ["importing", "active"])
    def test_what_a_dead_process_was_working_on_is_removed(self, status):
        """By those that undo the import, or later where another process had undone it."""
        image = self.api.alice.create()
        other = self.api.another_process()
        directory = other.imports.staging.workspace(image)
        with open(f"{directory}/source", "w"):
            pass
        if status == "importing":
            other.data.begin(self.api.repository.images.get(image), from_=("queued",), to=status, stores=["mem"])
            self.api.repository.processes.leave(other.lease.id)
            self.api.service.lease.beat()
        else:
            assert self.api.alice.upload(image, b"x").status_code == 204
            self.api.service.imports.scrub()
        other.core.repository.close()
        assert self.left() == []

    def test_data_of_another_format_is_refused(self, tmp_path):
        assert "expected format 'qcow2'" in self.why(self.bring(made_disk(tmp_path, "vdi"), disk_format="qcow2"))

    def test_a_backing_file_is_refused(self, tmp_path):
        (tmp_path / "base").write_bytes(RAW)
        data = made_disk(tmp_path, "qcow2", "8M", "-b", str(tmp_path / "base"), "-F", "raw")
        assert "backing file" in self.why(self.bring(data, disk_format="qcow2"))

    def test_an_encrypted_disk_is_refused(self, tmp_path):
        data = bytearray(made_disk(tmp_path, "qcow2"))
        data[32:36] = b"\0\0\0\1"
        assert "encrypted" in self.why(self.bring(bytes(data), disk_format="qcow2"))

    def test_an_image_in_the_disk_is_refused(self, tmp_path):
        """It would be taken for the format of what is stored."""
        inner = made_disk(tmp_path, "qcow2")
        (tmp_path / "raw").write_bytes(inner)
        subprocess.run(
            ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", tmp_path / "raw", tmp_path / "outer"], check=True
        )
        assert "looks like qcow2" in self.why(self.bring((tmp_path / "outer").read_bytes(), disk_format="qcow2"))

    def test_a_disk_of_the_size_of_a_country_is_refused(self, tmp_path):
        data = made_disk(tmp_path, "qcow2", "2000T")
        assert "2199023255552000 bytes" in self.why(self.bring(data, disk_format="qcow2"))

    def test_a_damaged_disk_is_refused(self, tmp_path):
        data = bytearray(made_disk(tmp_path, "qcow2"))
        data[65536 * 2 : 65536 * 4] = b"\xff" * 65536 * 2
        self.why(self.bring(bytes(data), disk_format="qcow2"))

    def test_what_qemu_writes_and_how_long_it_takes_is_limited(self, tmp_path, monkeypatch):
        data = made_disk(tmp_path, "qcow2", "200M")
        monkeypatch.setattr("storelib.qemu_img.MiB", 0)
        monkeypatch.setattr("storelib.qemu_img.MEMORY", MiB)
        assert "qemu-img" in self.why(self.bring(data, disk_format="qcow2"))

    def test_an_image_that_is_deleted_meanwhile_leaves_nothing(self, tmp_path, monkeypatch):
        data = made_disk(tmp_path, "qcow2")
        slow = tmp_path / "bin"
        slow.mkdir()
        (slow / "qemu-img").write_text(f"#!/bin/sh\ntouch {tmp_path}/began\nexec sleep 60\n")
        (slow / "qemu-img").chmod(0o755)
        monkeypatch.setenv("PATH", str(slow), prepend=":")
        monkeypatch.setattr("storelib.qemu_img.PAUSE", 0.01)
        monkeypatch.setattr("storelib.api.service.data.LOOK", 0)
        image = self.api.alice.create(disk_format="qcow2")
        self.api.alice.request("PUT", f"/v2/images/{image}/stage", OCTETS, body=data)
        self.api.alice.post(f"/v2/images/{image}/import", {"method": {"name": "glance-direct"}})
        deadline = time.monotonic() + 60
        while not (tmp_path / "began").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert self.api.alice.delete(f"/v2/images/{image}").status_code == 204
        self.api.settle()
        assert self.left() == []


class TestConversionToQcow2(Importing):
    options = {  # noqa: RUF012
        "[image_import_opts]\nimage_import_plugins": "image_conversion",
        "[image_conversion]\noutput_format": "qcow2",
    }

    def test_raw_disks_become_qcow2(self, tmp_path):
        shown = self.bring(RAW)
        assert (shown["status"], shown["disk_format"], shown["virtual_size"]) == ("active", "qcow2", len(RAW))
        (tmp_path / "disk").write_bytes(self.content(shown))
        told = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", tmp_path / "disk"]))
        assert (told["format"], told["virtual-size"]) == ("qcow2", len(RAW))


class TestNames:
    def test_a_plug_in_that_is_not_there_stops_the_start(self, tmp_path):
        with pytest.raises(BadStoreConfiguration, match="no plug-in 'image_decompresion'"):
            Deployment(tmp_path, **{"[image_import_opts]\nimage_import_plugins": "[image_decompresion]"})

    def test_conversion_needs_qemu_img(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(BadStoreConfiguration, match="needs the program qemu-img"):
            Deployment(tmp_path, **{"[image_import_opts]\nimage_import_plugins": "[image_conversion]"})

    @pytest.mark.parametrize("name", ["os_glance_x", "size", "x" * 256])
    def test_properties_that_cannot_be_injected_stop_the_start(self, tmp_path, name):
        options = {
            "[image_import_opts]\nimage_import_plugins": "inject_image_metadata",
            "[inject_metadata_properties]\ninject": f"{name}:x",
        }
        with pytest.raises(BadStoreConfiguration, match="the name of no property"):
            Deployment(tmp_path, **options)


class Found:
    """Entry points as stevedore finds them."""

    plugins: dict = {}  # noqa: RUF012

    def __init__(self, group, name):
        if (group, name) not in self.plugins:
            raise plugins.NoMatches(name)
        self.driver = self.plugins[group, name]


class TestPluginsOfOthers(Importing):
    @pytest.fixture(autouse=True)
    def _find(self, monkeypatch):
        monkeypatch.setattr(plugins, "DriverManager", Found)
        monkeypatch.setattr(plugins.flows, "DriverManager", Found)

    def use(self, monkeypatch, group, plugin):
        monkeypatch.setitem(Found.plugins, (group, "theirs"), plugin)
        options = self.api.service.core.options
        monkeypatch.setattr(options.image_import_opts, "image_import_plugins", ["theirs"])
        monkeypatch.setattr(self.api.service.imports, "_plugins", plugins.load(options))

    def test_a_function_is_given_the_material(self, monkeypatch):
        def plugin(material):
            material.properties["seen"] = f"{material.size} bytes of {material.image.disk_format}"
            material.replace_data(io.BytesIO(material.stream.read(10)), 10)

        self.use(monkeypatch, plugins.GROUP, plugin)
        shown = self.bring(DATA)
        assert (shown["seen"], self.content(shown)) == (f"{len(DATA)} bytes of raw", DATA[:10])

    def test_one_that_fails_fails_the_import(self, monkeypatch):
        def plugin(material):
            raise ZeroDivisionError(self.api.directory)

        self.use(monkeypatch, plugins.GROUP, plugin)
        assert self.why(self.bring(DATA)) == "a plug-in of the import failed"

    def test_one_that_was_written_for_glance_runs_its_flow(self, monkeypatch):
        from taskflow import task
        from taskflow.patterns import linear_flow

        seen = {}

        class Reverse(task.Task):
            default_provides = "file_path"

            def __init__(self, wrapper, repository, context):
                super().__init__()
                self.wrapper, self.repository, self.context = wrapper, repository, context

            def execute(self, file_path):
                path = file_path.removeprefix("file://")
                with open(path, "rb") as file, open(f"{path}.new", "wb") as new:
                    new.write(file.read()[::-1])
                with self.wrapper as action:
                    seen.update(size=action.image_size, format=action.image_disk_format, roles=self.context.roles)
                    action.set_image_extra_properties({"by": "theirs", "os_glance_x": "1"})
                    action.pop_extra_property("old")
                    action.set_image_attribute(container_format="ovf", size=5)
                image = self.repository.get("id")
                image.extra_properties["saved"] = "yes"
                self.repository.save(image)
                return f"file://{path}.new"

        def get_flow(**given):
            seen.update(task=given["task_id"], request=given["import_req"], stores=given["backend"])
            return linear_flow.Flow(given["task_type"]).add(
                Reverse(given["action_wrapper"], given["image_repo"], given["context"])
            )

        self.use(monkeypatch, plugins.flows.GROUP, get_flow)
        shown = self.bring(DATA, old="1", kept="2")
        assert shown["status"] == "active"
        assert (shown["by"], shown["saved"], shown["kept"], "old" in shown) == ("theirs", "yes", "2", False)
        assert (shown["container_format"], shown["size"]) == ("ovf", len(DATA))
        assert self.content(shown) == DATA[::-1]
        [task] = self.api.alice.get(f"/v2/images/{shown['id']}/tasks").json["tasks"]
        assert seen == {
            "task": task["id"],
            "request": task["input"]["import_req"],
            "stores": ["mem"],
            "size": len(DATA),
            "format": "raw",
            "roles": ["member", "reader"],
        }
        assert self.left() == []

    def test_a_flow_that_fails_fails_the_import_and_changes_nothing(self, monkeypatch):
        from taskflow import task
        from taskflow.patterns import linear_flow

        reverted = []

        class Works(task.Task):
            default_provides = ("first", "second")

            def execute(self):
                return 1, 2

            def revert(self, result, **more):
                reverted.append(("works", result))

        class Fails(task.Task):
            def __init__(self, wrapper):
                super().__init__()
                self.wrapper = wrapper

            def execute(self, second):
                with self.wrapper as action:
                    action.set_image_extra_properties({"by": "theirs"})
                raise ValueError(second)

            def revert(self, result, **more):
                reverted.append(("fails", result))

        def get_flow(**given):
            inner = linear_flow.Flow("inner").add(Fails(given["action_wrapper"]))
            return linear_flow.Flow("outer").add(Works(), inner)

        self.use(monkeypatch, plugins.flows.GROUP, get_flow)
        shown = self.bring(DATA)
        assert "by" not in shown
        assert self.why(shown) == "the plug-in theirs failed: ValueError"
        assert reverted == [("fails", None), ("works", (1, 2))]
