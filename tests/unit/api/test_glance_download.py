# SPDX-License-Identifier: Apache-2.0
"""glance-download: what comes from the image service of another region, and what may not."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import uuid

import pytest
from deployment import Deployed
from web_servers import serving

from storelib.api.schemas import SIGNATURE, ImageSchema

DATA = b"remote data " * 1000
DOCUMENT = {
    "status": "active",
    "size": len(DATA),
    "disk_format": "raw",
    "container_format": "bare",
    "checksum": hashlib.md5(DATA).hexdigest(),
    "os_hash_algo": "sha512",
    "os_hash_value": hashlib.sha512(DATA).hexdigest(),
    "min_disk": 3,
    "hw_cpu_cores": "5",
    "trait:STORAGE_DISK_SSD": "required",
    "os_distro": "rhel",
    "os_glance_failed_import": "fast",
    "speed": "88mph",
    "hw_number": 5,
}
SOURCE = "36d4b546-64a2-4bb9-bdd0-ba676aa48f2c"
TOKEN = "the-token"


class Remote(http.server.ThreadingHTTPServer):
    """An image service with one image. ``redirect`` is where its data is instead."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.document, self.data, self.redirect = dict(DOCUMENT), DATA, None
        self.tokens: list[str | None] = []


class Handler(http.server.BaseHTTPRequestHandler):
    lacks = None

    def do_GET(self):
        remote = self.server
        remote.tokens.append(self.headers.get("X-Auth-Token"))
        if self.path == self.lacks:
            self.send_error(404)
        elif self.path == f"/v2/images/{SOURCE}":
            document = remote.document
            self.reply(document if isinstance(document, bytes) else json.dumps(document).encode())
        elif self.path == f"/v2/images/{SOURCE}/file" and remote.redirect:
            self.send_response(302)
            self.send_header("Location", remote.redirect)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path in (f"/v2/images/{SOURCE}/file", "/data"):
            self.reply(remote.data)
        else:
            self.send_error(404)

    def reply(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def remote():
    with serving(Remote()) as server:
        yield server


class Downloading(Deployed):
    options = {  # noqa: RUF012
        "enabled_import_methods": "glance-direct,web-download,copy-image,glance-download",
        "import_allowed_ports": "",
        "import_allowed_networks": "127.0.0.0/8",
    }

    def start(self, image, remote, **method):
        catalog = [
            {"type": "volume", "endpoints": [{"region": "North", "publicURL": "http://127.0.0.1:1"}]},
            {"type": "image", "endpoints": [{"region": "South", "publicURL": "http://127.0.0.1:1"}]},
            {
                "type": "image",
                "endpoints": [{"region": "North", "publicURL": remote.url, "internalURL": f"{remote.url}/"}],
            },
        ]
        body = {"method": {"name": "glance-download", "glance_region": "north", "glance_image_id": SOURCE} | method}
        headers = {"X-Service-Catalog": json.dumps(catalog), "X-Auth-Token": TOKEN}
        response = self.api.alice.request("POST", f"/v2/images/{image}/import", headers, json=body)
        self.api.settle()
        return response

    def task(self, image):
        [task] = self.api.alice.get(f"/v2/images/{image}/tasks").json["tasks"]
        return task


class TestGlanceDownload(Downloading):
    def test_data_formats_and_chosen_properties_are_taken_over(self, remote):
        image = self.api.alice.create(disk_format="iso", container_format="ovf", hw_cpu_cores="1", os_distro="windows")
        assert self.start(image, remote).status_code == 202
        shown = self.api.alice.show(image)
        assert shown["status"] == "active"
        assert (shown["disk_format"], shown["container_format"]) == ("raw", "bare")
        assert (shown["checksum"], shown["os_hash_value"]) == (DOCUMENT["checksum"], DOCUMENT["os_hash_value"])
        assert (shown["hw_cpu_cores"], shown["os_distro"], shown["trait:STORAGE_DISK_SSD"]) == ("5", "rhel", "required")
        assert (shown["min_disk"], shown["os_glance_failed_import"]) == (0, "")
        assert not {"speed", "hw_number"} & shown.keys()
        assert self.api.alice.download(image).content == DATA
        assert remote.tokens == [TOKEN, TOKEN]
        assert TOKEN not in str(self.task(image))

    def test_the_task_tells_what_was_asked_for(self, remote):
        image = self.api.alice.create()
        self.start(image, remote, glance_service_interface="internal")
        task = self.task(image)
        assert task["status"] == "success"
        assert task["input"]["import_req"]["method"] == {
            "name": "glance-download",
            "glance_region": "north",
            "glance_image_id": SOURCE,
            "glance_service_interface": "internal",
        }

    def test_the_token_is_sent_to_no_other_server(self, remote):
        with serving(Remote()) as other:
            remote.redirect = f"{other.url}/data"
            image = self.api.alice.create()
            self.start(image, remote)
            assert self.api.alice.show(image)["status"] == "active"
            assert remote.tokens == [TOKEN, TOKEN]
            assert other.tokens == [None]

    @pytest.mark.parametrize(
        "wrong",
        [
            {"status": "queued"},
            {"status": None},
            {"size": len(DATA) + 1},
            {"size": None},
            {"size": "x"},
            {"checksum": "0" * 32},
            {"os_hash_value": "0" * 128},
            {"disk_format": None},
            {"disk_format": "qcow2"},
            {"disk_format": "unknown"},
            {"container_format": 5},
            {"hw_" + "x" * 255: "y"},
            {"hw_x": "y" * 70_000},
            {"hw_x": "\ud800"},
            {"hw_\ud800": "x"},
            {"hw_x": "\0"},
        ],
    )
    def test_what_is_not_as_it_is_described_leaves_the_image_as_it_was(self, remote, wrong):
        image = self.api.alice.create(disk_format="iso", hw_cpu_cores="1")
        before = self.api.alice.show(image)
        remote.document |= wrong
        assert self.start(image, remote).status_code == 202
        shown = self.api.alice.show(image)
        told = {"updated_at", "os_glance_failed_import", "os_glance_importing_to_stores"}
        assert {name: shown[name] for name in shown if name not in told} == {
            name: before[name] for name in before if name not in told
        }
        assert shown["os_glance_failed_import"] == "fast"
        assert self.task(image)["status"] == "failure"
        assert image not in self.api.files()

    @pytest.mark.parametrize(("name", "value", "status"), [("hw_x", "a", "active"), ("hw_x", "c", "queued")])
    def test_properties_are_as_the_schema_says(self, remote, name, value, status, monkeypatch):
        core = self.api.service.core
        custom = {"hw_x": {"type": "string", "enum": ["a", "b"]}, "hw_cpu_cores": {"type": "integer"}}
        formats = core.options.container_formats, core.options.disk_formats
        monkeypatch.setattr(core, "schema", ImageSchema(*formats, custom, additional=True))
        remote.document |= {name: value}
        image = self.api.alice.create()
        self.start(image, remote)
        shown = self.api.alice.show(image)
        assert (shown["status"], shown.get(name)) == (status, value if status == "active" else None)
        assert shown.get("hw_cpu_cores") == (5 if status == "active" else None)

    @pytest.mark.parametrize("text", [b"", b"[]", b"{", b"[" * 100_000])
    def test_a_service_that_answers_nonsense(self, remote, text):
        remote.document = text
        image = self.api.alice.create()
        assert self.start(image, remote).status_code == 202
        assert (self.api.alice.show(image)["status"], self.task(image)["status"]) == ("queued", "failure")

    @pytest.mark.parametrize(
        "method",
        [
            {"glance_region": "not a region"},
            {"glance_service_interface": "not an interface"},
            {"glance_service_interface": "admin"},
            {"glance_image_id": str(uuid.uuid4())},
        ],
    )
    def test_what_is_not_there_leaves_the_image_queued(self, remote, method):
        image = self.api.alice.create()
        assert self.start(image, remote, **method).status_code == 202
        assert (self.api.alice.show(image)["status"], self.task(image)["status"]) == ("queued", "failure")

    @pytest.mark.parametrize(
        ("method", "why"),
        [
            ({"glance_image_id": "foo"}, "image id does not look like a UUID"),
            ({"glance_image_id": None}, "glance_image_id"),
            ({"glance_region": None}, "glance_region"),
            ({"glance_region": "x" * 256}, "255"),
            ({"glance_service_interface": 5}, "glance_service_interface"),
            ({"uri": "http://example.org/"}, "uri"),
        ],
    )
    def test_wrong_requests_are_refused(self, remote, method, why):
        image = self.api.alice.create()
        response = self.start(image, remote, **method)
        assert (response.status_code, why in response.text) == (400, True)
        assert remote.tokens == []

    def test_an_image_with_data_is_not_imported_again(self, remote):
        assert self.start(self.api.alice.active(), remote).status_code == 409

    @pytest.mark.parametrize("good", [True, False])
    def test_a_digest_of_another_algorithm_is_compared(self, remote, good):
        told = hashlib.sha256(DATA if good else b"other").hexdigest()
        remote.document |= {"checksum": None, "os_hash_algo": "sha256", "os_hash_value": told}
        image = self.api.alice.create()
        self.start(image, remote)
        assert self.api.alice.show(image)["status"] == ("active" if good else "queued")

    @pytest.mark.parametrize("lacks", ["", "/file"])
    def test_what_fails_is_told_without_where_it_is(self, remote, lacks, monkeypatch):
        monkeypatch.setattr(Handler, "lacks", f"/v2/images/{SOURCE}{lacks}")
        image = self.api.alice.create()
        self.start(image, remote)
        assert self.task(image)["message"] == f"image {SOURCE} in region north: the server answered 404"

    def test_what_a_redirect_may_not_lead_to_is_told_with_the_option_that_says_so(self, remote):
        remote.redirect = "http://169.254.169.254/data"
        image = self.api.alice.create()
        self.start(image, remote)
        assert self.task(image)["message"].endswith("not inside import_allowed_networks")


class TestWithPlugins(Downloading):
    options = Downloading.options | {"[image_import_opts]\nimage_import_plugins": "image_decompression"}

    @pytest.mark.parametrize("good", [True, False])
    def test_what_is_read_is_compared_whatever_becomes_of_it(self, remote, good):
        remote.data = gzip.compress(DATA)
        told = remote.data if good else b"other"
        remote.document |= {"size": len(remote.data), "checksum": hashlib.md5(told).hexdigest()}
        remote.document |= {"os_hash_value": hashlib.sha512(told).hexdigest()}
        image = self.api.alice.create()
        self.start(image, remote)
        shown = self.api.alice.show(image)
        assert shown["status"] == ("active" if good else "queued")
        assert shown["checksum"] == (hashlib.md5(DATA).hexdigest() if good else None)

    @pytest.mark.parametrize("algorithm", [None, "nothing", 5])
    def test_a_digest_that_cannot_be_computed_is_none(self, remote, algorithm):
        remote.document |= {"os_hash_algo": algorithm, "os_hash_value": "0" * 128}
        image = self.api.alice.create()
        self.start(image, remote)
        assert self.api.alice.show(image)["status"] == "active"


class TestSignatures(Downloading):
    options = Downloading.options | {"[glance_download_properties]\nextra_properties": "img_"}

    @pytest.mark.parametrize("names", [SIGNATURE, SIGNATURE[:1]])
    def test_a_signature_that_is_taken_over_is_checked(self, remote, names):
        values = dict(zip(SIGNATURE, ("c2lnbmVk", "SHA-256", "RSA-PSS", str(uuid.uuid4())), strict=True))
        remote.document |= {name: values[name] for name in names}
        image = self.api.alice.create()
        self.start(image, remote)
        assert (self.api.alice.show(image)["status"], self.task(image)["status"]) == ("queued", "failure")
        assert image not in self.api.files()


class TestRules(Downloading):
    options = {"enabled_import_methods": "glance-download", "import_allowed_ports": ""}  # noqa: RUF012

    def test_the_addresses_are_those_that_web_download_may_read(self, remote):
        image = self.api.alice.create()
        self.start(image, remote)
        assert self.api.alice.show(image)["status"] == "queued"
        assert "import_allowed_networks" in self.task(image)["message"]
        assert remote.tokens == []
