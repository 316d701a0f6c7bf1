# SPDX-License-Identifier: Apache-2.0
"""Data that is somewhere already, from ``POST /locations`` to its download: inspected, active, hashed, compared."""

from __future__ import annotations

import hashlib
import http.server
import threading
import uuid
from typing import ClassVar

import disk_images as disks
import pytest
from deployment import READY, Deployed
from key_manager import Memory, Signer
from web_servers import web_server

from storelib.api.service import administrator
from storelib.exceptions import DigestMismatch, RemoteServiceUnavailable

DATA = b"data that is somewhere already" * 10_000
SECTIONS = """
[storelib]
stores = fast:file, mem:memory, spare:memory, web:http
[web]
http_allowed_networks = 127.0.0.0/8
[key_manager]
backend = key_manager.Memory
"""
RIGHT = {"os_hash_algo": "sha256", "os_hash_value": hashlib.sha256(DATA).hexdigest()}
WRONG = {"os_hash_algo": "sha256", "os_hash_value": "0" * 64}


class Web(http.server.BaseHTTPRequestHandler):
    data: ClassVar[bytes] = DATA

    def do_HEAD(self):
        self.begin(200, len(self.data))

    def do_GET(self):
        first, _, last = (self.headers["Range"] or "bytes=0-").removeprefix("bytes=").partition("-")
        part = self.data[int(first) : int(last) + 1 if last else None]
        ranged = self.headers["Range"] is not None
        total = {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(self.data)}"} if ranged else {}
        self.begin(206 if ranged else 200, len(part), total)
        self.wfile.write(part)

    def begin(self, code, length, headers=()):
        self.send_response(code)
        for name, value in {"Content-Length": str(length), "Accept-Ranges": "bytes", **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *arguments):
        pass


class Located(Deployed):
    sections = SECTIONS
    url: str

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _web(cls, _deployed):
        with web_server(Web) as url:
            cls.url = f"{url}/image"
            yield

    @pytest.fixture(autouse=True)
    def _same_data(self):
        yield
        Web.data = DATA

    def data_in(self, store: str, data: bytes = DATA) -> str:
        return self.api.registry[store].add(str(uuid.uuid4()), data).uri

    def post(self, image, url, validation=None, caller=None):
        body = {"url": url} if validation is None else {"url": url, "validation_data": validation}
        response = (caller or self.api.nova).post(f"/v2/images/{image}/locations", body)
        assert response.status_code == 202, response.text
        return response

    def task(self, image):
        """The latest one."""
        return self.api.admin.get(f"/v2/images/{image}/tasks").json["tasks"][0]

    def digests(self, image):
        shown = self.api.nova.show(image)
        return shown["checksum"], shown["os_hash_algo"], shown["os_hash_value"]

    @pytest.fixture
    def held(self, monkeypatch):
        """Reads of the store mem after the first one, which inspects, wait until ``held.release`` is set."""
        store = self.api.registry["mem"]
        get = store.get

        class Held:
            reached, release = threading.Event(), threading.Event()
            count = 0

        def wait(*given, **more):
            Held.count += 1
            if Held.count > 1:
                Held.reached.set()
                assert Held.release.wait(20)
            return get(*given, **more)

        monkeypatch.setattr(store, "get", wait)
        yield Held
        Held.release.set()
        self.api.settle()


class TestWithoutValidation(Located):
    def test_an_image_is_active_before_it_is_hashed(self, held):
        image = self.api.nova.create()
        self.post(image, self.data_in("mem"))
        assert held.reached.wait(20)
        shown = self.api.nova.show(image)
        assert (shown["status"], shown["size"], shown["stores"]) == ("active", len(DATA), "mem")
        assert (self.digests(image), self.task(image)["status"]) == ((None, "sha512", None), "processing")
        held.release.set()
        self.api.settle()
        assert self.task(image)["status"] == "success"
        assert self.digests(image) == (hashlib.md5(DATA).hexdigest(), "sha512", hashlib.sha512(DATA).hexdigest())

    def test_an_image_is_active_also_where_its_data_cannot_be_hashed(self, monkeypatch):
        store = self.api.registry["mem"]
        get, count = store.get, [0]

        def fail_later(*given, **more):
            count[0] += 1
            if count[0] > 1:
                raise RemoteServiceUnavailable("https://10.1.2.3/x does not answer")
            return get(*given, **more)

        monkeypatch.setattr(store, "get", fail_later)
        monkeypatch.setattr(self.api.service.core.options, "http_retries", 0)
        image = self.api.nova.create()
        self.post(image, self.data_in("mem"))
        self.api.settle()
        task = self.task(image)
        assert (self.api.nova.show(image)["status"], task["status"]) == ("active", "success")
        assert ("could not be hashed" in task["message"], "10.1.2.3" in task["message"]) == (True, False)
        assert self.digests(image) == (None, None, None)

    def test_data_that_is_something_else_when_it_is_hashed_is_not_handed_out(self, held, monkeypatch):
        url = self.data_in("mem", b"\0" * len(disks.qcow1(disks.CANARY)))
        image = self.api.alice.create()
        headers = {"X-Service-Roles": "service"}
        body = {"url": url}
        assert self.api.alice.request("POST", f"/v2/images/{image}/locations", headers, json=body).status_code == 202
        assert held.reached.wait(20)
        store = self.api.registry["mem"]
        held.release.set()
        store.backend.images[url.rpartition("/")[2]].data = disks.qcow1(disks.CANARY)
        self.api.settle()
        shown = self.api.alice.show(image)
        if shown["checksum"] is None:
            assert (shown["status"], self.task(image)["status"]) == ("deactivated", "failure")
            assert self.api.alice.download(image).status_code == 403

    def test_its_owner_does_not_reactivate_it(self, monkeypatch):
        good, hostile = self.data_in("mem", b"\0" * len(disks.qcow1(disks.CANARY))), disks.qcow1(disks.CANARY)
        bad = self.data_in("mem", hostile)
        store = self.api.registry["mem"]
        get, count = store.get, [0]

        def another_one(uri, *given, **more):
            count[0] += 1
            return get(bad if count[0] > 1 else uri, *given, **more)

        monkeypatch.setattr(store, "get", another_one)
        image = self.api.alice.create()
        sent = {"X-Service-Roles": "service"}
        assert (
            self.api.alice.request("POST", f"/v2/images/{image}/locations", sent, json={"url": good}).status_code == 202
        )
        self.api.settle()
        shown = self.api.alice.show(image)
        assert (shown["status"], self.task(image)["status"]) == ("deactivated", "failure")
        assert "os_glance_unsafe_data" not in shown
        path = f"/v2/images/{image}/actions/reactivate"
        assert self.api.alice.post(path).status_code == 403
        assert self.api.admin.post(path).status_code == 204

    def test_an_image_that_is_deleted_meanwhile_is_gone(self, held):
        image = self.api.nova.create()
        url = self.data_in("mem")
        self.post(image, url)
        assert held.reached.wait(20)
        assert self.api.nova.delete(f"/v2/images/{image}").status_code in (204, 404)
        held.release.set()
        self.api.settle()
        assert self.api.nova.get(f"/v2/images/{image}").status_code == 404
        assert self.api.repository.uploads.get(image) is None
        assert self.api.registry["mem"].find_image(url.rpartition("/")[2]) is None

    def test_a_process_that_dies_over_the_hashing_leaves_an_active_image(self, monkeypatch):
        monkeypatch.setattr(self.api.service.locations._hashing, "_hash", lambda *given: None)
        image = self.api.nova.create()
        self.post(image, self.data_in("mem"))
        self.api.settle()
        assert (self.api.nova.show(image)["status"], self.task(image)["status"]) == ("active", "processing")
        [upload] = [self.api.repository.uploads.get(image)]
        self.api.repository.uploads.claim(upload.ticket, self.api.service.lease.id)
        self.api.service.lease._unfinished.add(self.api.repository.uploads.get(image).ticket)
        self.api.service.lease.recover()
        assert (self.api.nova.show(image)["status"], self.task(image)["status"]) == ("active", "failure")
        assert self.api.repository.uploads.get(image) is None
        assert self.api.nova.download(image).content == DATA

    def test_who_names_an_address_that_is_filtered_is_told_so(self):
        image = self.api.nova.create()
        body = {"url": "http://192.0.2.1/image"}
        refused = self.api.nova.request("POST", f"/v2/images/{image}/locations", json=body)
        # The words of Glance, by which tempest knows that another URL may do.
        assert (refused.status_code, "does not pass filtering" in refused.text) == (400, True)

    def test_a_format_that_is_another_is_found_before_the_image_is_active(self):
        image = self.api.nova.create(disk_format="qcow2")
        self.post(image, self.data_in("mem"))
        self.api.settle()
        assert (self.api.nova.show(image)["status"], self.task(image)["status"]) == ("queued", "failure")


class TestSharedData(Located):
    def test_the_last_of_several_images_takes_its_data_along(self):
        url, several = self.data_in("mem"), [self.api.nova.create() for _ in range(2)]
        for image in several:
            self.post(image, url)
            self.api.settle()
        assert self.api.nova.delete(f"/v2/images/{several[0]}").status_code == 204
        assert self.api.nova.download(several[1]).content == DATA
        assert self.api.nova.delete(f"/v2/images/{several[1]}").status_code == 204
        assert url not in [found.uri for found in self.api.registry["mem"].list_images()]
        assert list(self.api.repository.locations.pending()) == []

    @pytest.mark.parametrize("goes", [0, 1])
    @pytest.mark.parametrize("spelled", [str, lambda url: f"{url[:-1]}%{ord(url[-1]):02x}"], ids=["same", "otherwise"])
    def test_data_that_was_uploaded_for_one_image_and_named_for_another_stays_with_the_other(self, goes, spelled):
        images = [self.api.nova.create() for _ in range(2)]
        assert self.api.nova.upload(images[0], DATA, X_Image_Meta_Store="mem").status_code == 204
        url = self.api.nova.get(f"/v2/images/{images[0]}/locations").json[0]["url"]
        self.post(images[1], spelled(url))
        self.api.settle()
        assert self.api.nova.get(f"/v2/images/{images[1]}/locations").json[0]["url"] == url
        assert self.api.nova.delete(f"/v2/images/{images[goes]}").status_code == 204
        assert self.api.nova.download(images[1 - goes]).content == DATA
        assert self.api.nova.delete(f"/v2/images/{images[1 - goes]}").status_code == 204
        assert url not in [found.uri for found in self.api.registry["mem"].list_images()]


class TestTasks(Located):
    def task_of(self, url):
        """As the image's project sees it, of whose user a service has named the URL."""
        image = self.api.alice.create()
        response = self.api.alice.post(f"/v2/images/{image}/locations", {"url": url}, X_Service_Roles="service")
        assert response.status_code == 202, response.text
        self.api.settle()
        assert self.task(image)["input"]["loc_url"] == url
        return self.api.colleague.get(f"/v2/images/{image}/tasks").json["tasks"][0]["input"]

    def test_users_are_not_told_where_in_a_store_the_data_is(self, monkeypatch):
        assert "loc_url" not in self.task_of(self.data_in("mem"))
        monkeypatch.setattr(self.api.service.core, "show_direct_url", True)
        assert "loc_url" in self.task_of(self.data_in("mem"))

    def test_users_are_told_what_they_may_have_named(self):
        assert self.task_of(self.url)["loc_url"] == self.url


class TestWithValidation(Located):
    def test_an_image_is_importing_until_its_data_is_hashed(self, held):
        image = self.api.nova.create()
        self.post(image, self.data_in("mem"), RIGHT)
        assert held.reached.wait(20)
        shown = self.api.nova.show(image)
        assert (shown["status"], shown["checksum"], "stores" in shown) == ("importing", None, False)
        held.release.set()
        self.api.settle()
        assert self.api.nova.show(image)["status"] == "active"
        assert self.digests(image) == (hashlib.md5(DATA).hexdigest(), "sha256", RIGHT["os_hash_value"])

    @pytest.mark.parametrize(("store", "stores"), [("mem", None), ("web", "web")])
    def test_wrong_data_leaves_a_queued_image(self, store, stores):
        """Which tells the store of data that is not deleted there, since its clients look for that."""
        image = self.api.nova.create()
        self.post(image, self.url if store == "web" else self.data_in(store), WRONG)
        self.api.settle()
        shown = self.api.nova.show(image)
        assert (shown["status"], shown.get("stores"), shown["size"]) == ("queued", stores, None)
        assert (self.digests(image), self.task(image)["status"]) == ((None, None, None), "failure")
        assert self.api.nova.download(image).status_code == 204
        assert not [name for name in shown if name.startswith("os_glance")]
        assert self.api.nova.upload(image, b"other data").status_code == 204
        assert self.api.nova.show(image)["stores"] == "fast"
        assert self.api.nova.download(image).content == b"other data"


class TestNotHashed(Located):
    options = {"do_secure_hash": "false"}  # noqa: RUF012

    @pytest.mark.parametrize("validation", [None, WRONG, {**WRONG, "checksum": "1" * 32}])
    def test_what_the_client_says_is_taken_as_it_is(self, validation):
        image = self.api.nova.create()
        self.post(image, self.url, validation)
        self.api.settle()
        assert (self.api.nova.show(image)["status"], self.task(image)["status"]) == ("active", "success")
        said = validation or {}
        assert self.digests(image) == tuple(said.get(name) for name in ("checksum", "os_hash_algo", "os_hash_value"))

    @pytest.mark.parametrize(("signed", "status"), [(DATA, "active"), (DATA[1:], "queued")])
    def test_a_signature_is_verified_all_the_same(self, signed, status):
        image = self.api.nova.create(**Signer("ECC_SECP384R1").keep("services").sign(signed))
        self.post(image, self.url)
        self.api.settle()
        assert self.api.nova.show(image)["status"] == status
        Memory.secrets.clear()


class TestSignatures(Located):
    options = {"show_multiple_locations": "true"}  # noqa: RUF012

    @pytest.fixture
    def signer(self):
        yield Signer("ECC_SECP384R1").keep("services")
        Memory.secrets.clear()

    @pytest.mark.parametrize("validation", [None, RIGHT])
    def test_the_image_is_importing_until_its_signature_is_right(self, validation, signer, held):
        image = self.api.nova.create(**signer.sign(DATA))
        self.post(image, self.data_in("mem"), validation)
        assert held.reached.wait(20)
        assert self.api.nova.show(image)["status"] == "importing"
        held.release.set()
        self.api.settle()
        assert self.api.nova.show(image)["status"] == "active"
        assert None not in self.digests(image)

    @pytest.mark.parametrize("validation", [None, RIGHT])
    def test_a_wrong_signature_leaves_a_queued_image(self, validation, signer):
        image = self.api.nova.create(**signer.sign(DATA[1:]))
        self.post(image, self.data_in("mem"), validation)
        self.api.settle()
        assert (self.api.nova.show(image)["status"], self.digests(image)) == ("queued", (None, None, None))
        assert "signature" in self.task(image)["message"]

    def test_reading_again_begins_the_digest_anew(self, signer, monkeypatch):
        monkeypatch.setattr("storelib.api.service.hashing.pause", lambda seconds: None)
        cut = [0]
        store = self.api.registry["mem"]
        get = store.get

        def cut_once(*given, **more):
            found = get(*given, **more)
            cut[0] += 1
            if cut[0] == 2:
                read = found.data.read

                def fail(size):
                    if found.data.tell():
                        raise RemoteServiceUnavailable("cut")
                    return read(1000)

                monkeypatch.setattr(found.data, "read", fail)
            return found

        monkeypatch.setattr(store, "get", cut_once)
        image = self.api.nova.create(**signer.sign(DATA))
        self.post(image, self.data_in("mem"))
        self.api.settle()
        assert (self.api.nova.show(image)["status"], cut[0]) == ("active", 3)

    def test_a_part_of_a_signature_is_refused(self):
        image = self.api.nova.create(img_signature="AAAA")
        assert self.api.nova.post(f"/v2/images/{image}/locations", {"url": self.url}).status_code == 400

    def test_ways_on_which_the_data_is_not_read_as_a_whole_are_no_ways(self, signer):
        properties = signer.sign(DATA)
        image = self.api.nova.create(**properties)
        value = {"url": self.url, "metadata": {}}
        for operation in (
            {"op": "add", "path": "/locations/-", "value": value},
            {"op": "replace", "path": "/locations", "value": [value]},
        ):
            response = self.api.nova.patch(image, operation)
            assert (response.status_code, "signature" in response.text) == (400, True)
        headers = {f"x-image-meta-{name}": text for name, text in READY.items()} | {"x-image-meta-location": self.url}
        keeping = headers | {"x-glance-registry-purge-props": "false"}
        assert self.api.nova.request("PUT", f"/v1/images/{image}", keeping).status_code == 400
        headers |= {f"x-image-meta-property-{name}": text for name, text in properties.items()}
        assert self.api.nova.request("POST", "/v1/images", headers).status_code == 400
        assert self.api.nova.show(image)["status"] == "queued"


class TestDisks(Located):
    options = {"show_multiple_locations": "true"}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("kind", "data", "size"),
        [("qcow2", disks.qcow2(5 << 30), 5 << 30), ("raw", DATA, len(DATA)), ("raw", disks.luks(3 << 20), None)],
    )
    def test_the_virtual_size_is_known(self, kind, data, size):
        size = len(data) if size is None else size
        posted, patched = (self.api.nova.create(disk_format=kind) for _ in range(2))
        self.post(posted, self.data_in("mem", data))
        operation = {"op": "add", "path": "/locations/-", "value": {"url": self.data_in("mem", data), "metadata": {}}}
        assert self.api.nova.patch(patched, operation).json["virtual_size"] == size
        self.api.settle()
        assert self.api.nova.show(posted)["virtual_size"] == size
        Web.data = data
        formats = {"x-image-meta-disk_format": kind, "x-image-meta-container_format": "bare"}
        old = self.api.nova.request("POST", "/v1/images", formats | {"x-image-meta-location": self.url}).json["image"]
        assert old["virtual_size"] == size

    @pytest.mark.parametrize("kind", ["luks", "gpt"])
    def test_the_virtual_size_of_what_is_as_long_as_its_data(self, kind, monkeypatch):
        """Found from the ends of the data alone, it is what an upload of all of it finds."""
        monkeypatch.setattr("storelib.api.service.foreign.HEAD", 1 << 20)
        data = disks.luks(9 << 20) if kind == "luks" else disks.gpt().ljust(9 << 20, b"\0")
        uploaded, posted = (self.api.nova.create(disk_format=kind) for _ in range(2))
        assert self.api.nova.upload(uploaded, data).status_code == 204
        self.post(posted, self.data_in("mem", data))
        self.api.settle()
        sizes = {self.api.nova.show(image)["virtual_size"] for image in (uploaded, posted)}
        assert len(sizes) == 1
        assert sizes.pop() > 6 << 20


class TestDownloads(Located):
    def image(self, validation=None):
        image = self.api.alice.create()
        self.post(image, self.url, validation, self.api.alice)
        self.api.settle()
        assert self.api.alice.download(image).content == DATA
        return image

    @pytest.mark.parametrize("changed", [DATA[:-1] + b"!", b"!" + DATA[1:]])
    @pytest.mark.parametrize("validation", [None, RIGHT])
    def test_data_that_changed_is_an_error_to_its_reader(self, changed, validation):
        image = self.image(validation)
        Web.data = changed
        with self.api.service.data.download(administrator(), image).data.data as stream:
            got = stream.read(100_000)
            assert (len(got), len(stream.read(len(DATA) - 100_001))) == (100_000, len(DATA) - 100_001)
            with pytest.raises(DigestMismatch):
                stream.read(1)

    @pytest.mark.parametrize("changed", [DATA[:-1], DATA + b"!", b""])
    def test_data_of_another_size_is_an_error(self, changed):
        image = self.image()
        Web.data = changed
        assert self.api.alice.download(image).status_code == 503

    def test_nothing_of_it_is_copied(self):
        image = self.image()
        Web.data = b"!" + DATA[1:]
        body = {"method": {"name": "copy-image"}, "stores": ["mem"]}
        assert self.api.admin.post(f"/v2/images/{image}/import", body).status_code == 202
        self.api.settle()
        assert (self.api.alice.show(image)["stores"], self.task(image)["status"]) == ("web", "failure")
        assert self.api.registry["mem"].find_image(image) is None
        Web.data = DATA
        assert self.api.admin.post(f"/v2/images/{image}/import", body).status_code == 202
        self.api.settle()
        assert self.api.alice.show(image)["stores"] == "web,mem"

    def test_a_range_cannot_be_compared(self):
        image = self.image()
        response = self.api.alice.download(image, Range="bytes=5-9")
        assert (response.status_code, response.content) == (206, DATA[5:10])

    def test_what_a_store_was_given_is_not_hashed_again(self):
        """It leaves by sendfile."""
        image = self.api.alice.active(DATA)
        stream = self.api.service.data.download(administrator(), image).data.data
        with stream:
            assert stream.verified_with is None
            assert stream.fileno() > 0
