# SPDX-License-Identifier: Apache-2.0
"""Imports by real servers: from another region that Keystone's catalogue names, and killed in the middle."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import os
import subprocess
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from servers.api import Deployment, wait_until
from servers.keystone import Keystone
from servers.mounts import tmpfs
from web_servers import serving

INI = """
[storelib]
stores = fast:file
[fast]
filesystem_store_datadir = {directory}/fast
[database]
connection = {connection}
sqlite_synchronous = false
[api]
auth_strategy = OPTION_auth
staging_dir = {directory}/staging
enabled_import_methods = [glance-direct,web-download,copy-image,glance-download]
import_allowed_networks = 127.0.0.0/8
import_allowed_ports =
lease_timeout = 2
[image_import_opts]
image_import_plugins = [OPTION_plugins]
"""
DATA = bytes(range(256)) * 8192


def deployment(directory: Path, auth: str, plugins: str = "", more: str = "") -> Deployment:
    directory.mkdir(exist_ok=True)
    ini = INI.replace("OPTION_auth", auth).replace("OPTION_plugins", plugins)
    return Deployment(directory, ini=ini + more)


class Caller:
    """A caller with a token, at one server."""

    def __init__(self, url: str, token: str) -> None:
        self._url, self._headers = url, {"X-Auth-Token": token}

    def call(self, method: str, path: str, body: object = None, kind: str = "application/json") -> tuple[int, object]:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {**self._headers, "Content-Type": kind}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                found = response.read()
                return response.status, json.loads(found) if found[:1] in (b"{", b"[") else found
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def create(self, **values: object) -> str:
        code, image = self.call("POST", "/v2/images", {"disk_format": "raw", "container_format": "bare"} | values)
        assert code == 201, image
        return image["id"]

    def show(self, image: str) -> dict[str, object]:
        return self.call("GET", f"/v2/images/{image}")[1]

    def task(self, image: str) -> dict[str, object]:
        """The only task of an image, once it has ended."""
        tasks: list[dict[str, object]] = []

        def is_over() -> bool:
            tasks[:] = self.call("GET", f"/v2/images/{image}/tasks")[1]["tasks"]
            return bool(tasks) and all(task["status"] in ("success", "failure") for task in tasks)

        wait_until(is_over)
        [task] = tasks
        return task


class TestRegions:
    @pytest.fixture(scope="class")
    @staticmethod
    def cloud(tmp_path_factory):
        with contextlib.ExitStack() as stack:
            keystone = stack.enter_context(Keystone(tmp_path_factory.mktemp("keystone")))
            servers = {}
            for region in ("north", "south"):
                made = deployment(tmp_path_factory.mktemp(region), "keystone", more=keystone.authtoken)
                stack.callback(made.close)
                servers[region] = made.serve("--workers", "1").url
            keystone.add_endpoints("image", **servers)
            yield lambda user, region: Caller(servers[region], keystone.token(user, user)[0])

    def test_an_image_of_one_region_is_imported_into_another(self, cloud):
        there, here = cloud("demo", "north"), cloud("demo", "south")
        source = there.create(hw_cpu_cores="5", os_distro="rhel", speed="88mph", visibility="private")
        octets = "application/octet-stream"
        assert there.call("PUT", f"/v2/images/{source}/file", DATA, octets)[0] == 204
        image = here.create(disk_format="iso", container_format="ovf", os_distro="windows")
        method = {"name": "glance-download", "glance_region": "north", "glance_image_id": source}
        assert here.call("POST", f"/v2/images/{image}/import", {"method": method})[0] == 202
        task = here.task(image)
        assert (task["status"], task["message"]) == ("success", "")
        shown, original = here.show(image), there.show(source)
        same = ("checksum", "os_hash_value", "size", "disk_format", "container_format", "hw_cpu_cores", "os_distro")
        assert [shown[name] for name in same] == [original[name] for name in same]
        assert (shown["status"], "speed" in shown) == ("active", False)
        assert here.call("GET", f"/v2/images/{image}/file")[1] == DATA

    def test_images_that_the_caller_may_not_see_are_not_imported(self, cloud):
        source = cloud("demo", "north").create(visibility="private")
        here = cloud("alt_demo", "south")
        image = here.create()
        for region, wanted in (("north", source), ("nowhere", source)):
            method = {"name": "glance-download", "glance_region": region, "glance_image_id": wanted}
            assert here.call("POST", f"/v2/images/{image}/import", {"method": method})[0] == 202
            wait_until(lambda: here.show(image)["status"] == "queued")
        tasks = here.call("GET", f"/v2/images/{image}/tasks")[1]["tasks"]
        assert [task["status"] for task in tasks] == ["failure", "failure"]
        assert "nowhere" in tasks[0]["message"]


class TestFullDisk:
    """What there is no room for leaves no trace, and what was staged can be imported when there is."""

    def test_staging_and_converting(self, tmp_path):
        made = deployment(tmp_path / "api", "noauth", "image_conversion")
        octets = "application/octet-stream"
        raw, disk = tmp_path / "raw", tmp_path / "disk.qcow2"
        raw.write_bytes(DATA * 4)
        subprocess.run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, disk], check=True)
        with tmpfs(made.directory / "staging", 4 * 1024 * 1024):
            caller = Caller(made.serve("--workers", "1").url, "")
            image = caller.create(disk_format="qcow2")
            code, _ = caller.call("PUT", f"/v2/images/{image}/stage", bytes(6 * 1024 * 1024), octets)
            assert code in (413, 503, 507)
            assert caller.show(image)["status"] == "queued"
            assert everything_in(made.directory / "staging") == []
            assert caller.call("PUT", f"/v2/images/{image}/stage", disk.read_bytes(), octets)[0] == 204
            body = {"method": {"name": "glance-direct"}}
            assert caller.call("POST", f"/v2/images/{image}/import", body)[0] == 202
            task = caller.task(image)
            assert (task["status"], "No space left" in task["message"]) == ("failure", True)
            assert everything_in(made.directory / "staging") == [image]
            assert everything_in(made.directory / "fast") == []
            subprocess.run(["mount", "-o", "remount,size=64M", made.directory / "staging"], check=True)
            assert caller.call("POST", f"/v2/images/{image}/import", body)[0] == 202
            wait_until(lambda: caller.show(image)["status"] == "active")
            assert caller.call("GET", f"/v2/images/{image}/file")[1] == DATA * 4
            assert everything_in(made.directory / "staging") == []
            made.close()


def everything_in(directory: Path) -> list[str]:
    return [name for _, _, names in os.walk(directory) for name in names]


class Stalling(http.server.BaseHTTPRequestHandler):
    """Sends half of what it promises and waits."""

    def do_GET(self):
        data = gzip.compress(os.urandom(1024 * 1024)) if self.path.endswith(".gz") else DATA
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.server.asked += 1
        self.server.over.wait(60)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def stalling():
    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stalling)) as server:
        server.asked, server.over = 0, threading.Event()
        yield server
        server.over.set()


class TestKilled:
    """A server that loses power in the middle of imports: the next one puts everything back."""

    def test_nothing_is_left_and_the_images_can_be_imported_again(self, tmp_path, stalling, monkeypatch):
        programs = tmp_path / "bin"
        programs.mkdir()
        (programs / "qemu-img").write_text(f"#!/bin/sh\ntouch {tmp_path}/converting\nexec sleep 20\n")
        (programs / "qemu-img").chmod(0o755)
        made = deployment(tmp_path / "api", "noauth", "image_decompression,image_conversion")
        disk = tmp_path / "disk.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "8M"], check=True)
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        caller = Caller(made.serve("--workers", "1").url, "")
        # One waits for its source, one unpacks what has come so far, one is being converted.
        url = f"http://127.0.0.1:{stalling.server_address[1]}"
        images = [caller.create() for _ in range(2)]
        for image, name in zip(images, ("image", "image.gz"), strict=True):
            method = {"name": "web-download", "uri": f"{url}/{name}"}
            assert caller.call("POST", f"/v2/images/{image}/import", {"method": method})[0] == 202
        images.append(caller.create(disk_format="qcow2"))
        octets = "application/octet-stream"
        assert caller.call("PUT", f"/v2/images/{images[-1]}/stage", disk.read_bytes(), octets)[0] == 204
        method = {"name": "glance-direct"}
        assert caller.call("POST", f"/v2/images/{images[-1]}/import", {"method": method})[0] == 202
        wait_until((tmp_path / "converting").exists)
        wait_until(lambda: stalling.asked == 2)
        assert {caller.show(image)["status"] for image in images} == {"importing"}
        made.close()

        caller = Caller(made.serve("--workers", "1").url, "")
        for image in images:
            wait_until(lambda image=image: caller.show(image)["status"] == "queued")
            shown = caller.show(image)
            assert (shown["os_glance_failed_import"], shown["os_glance_importing_to_stores"]) == ("fast", "")
            assert "os_glance_import_task" not in shown
            assert caller.task(image)["status"] == "failure"
        assert [everything_in(made.directory / name) for name in ("fast", "staging")] == [[], []]
        assert made.disagreements() == []
        assert caller.call("PUT", f"/v2/images/{images[0]}/stage", b"x", octets)[0] == 204
        made.close()
