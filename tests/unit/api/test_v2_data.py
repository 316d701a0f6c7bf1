# SPDX-License-Identifier: Apache-2.0
"""The data of images in v2: upload, download, ranges, formats, failures, and what is left after them."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from wsgiref.util import FileWrapper

import pytest
from deployment import OCTETS, Deployed
from disk_images import ISO, ISO_WITH_PARTITIONS, OTHER_FILES, gpt, luks, qcow2

from storelib.api.service import Source, administrator
from storelib.exceptions import RemoteServiceUnavailable, StorageFull, StorageWriteDenied, StoreAddDisabled

DATA = bytes(range(256)) * 8


class Chunked(io.RawIOBase):
    """A body whose end nobody knows before."""

    def __init__(self, data: bytes, error: Exception | None = None) -> None:
        self._data = io.BytesIO(data)
        self._error = error

    def read(self, size: int = -1) -> bytes:
        chunk = self._data.read(min(size, 1000))
        if not chunk and self._error:
            raise self._error
        return chunk


class TestUpload(Deployed):
    def test_an_image_with_data_is_active_and_knows_its_size_and_digests(self):
        image = self.api.alice.show(self.api.alice.active(DATA))
        assert (image["status"], image["size"], image["virtual_size"]) == ("active", len(DATA), len(DATA))
        assert image["checksum"] == hashlib.md5(DATA).hexdigest()
        assert (image["os_hash_algo"], image["os_hash_value"]) == ("sha512", hashlib.sha512(DATA).hexdigest())
        assert image["stores"] == "fast"

    def test_data_of_no_bytes_is_data(self):
        image = self.api.alice.active(b"")
        assert self.api.alice.show(image)["size"] == 0
        assert self.api.alice.download(image).content == b""

    @pytest.mark.parametrize("store", ["fast", "mem", "spare"])
    def test_the_client_chooses_the_store(self, store):
        image = self.api.alice.create()
        assert self.api.alice.upload(image, DATA, x_image_meta_store=store).status_code == 204
        assert self.api.alice.show(image)["stores"] == store
        assert self.api.alice.download(image).content == DATA

    def test_a_body_in_chunks_needs_no_length(self):
        image = self.api.alice.create()
        self.api.service.data.upload(administrator(), image, Source(Chunked(DATA)))
        assert self.api.alice.download(image).content == DATA

    def test_the_image_size_header_tells_the_size_of_chunks(self):
        image = self.api.alice.create()
        self.api.service.data.upload(administrator(), image, Source(Chunked(DATA), None, len(DATA)))
        assert self.api.alice.show(image)["size"] == len(DATA)

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"Content_Type": "application/json"}, 415),
            ({"Content_Type": "text/plain"}, 415),
            ({"x_image_meta_store": "nowhere"}, 400),
            ({"x_openstack_image_size": "many"}, 400),
            ({"x_openstack_image_size": "-1"}, 400),
            ({"x_openstack_image_size": "7"}, 400),
            ({"x_openstack_image_size": "9" * 5000}, 400),
        ],
    )
    def test_headers_that_are_wrong_are_refused_and_the_image_stays_queued(self, headers, status):
        image = self.api.alice.create()
        assert self.api.alice.upload(image, DATA, **headers).status_code == status
        assert self.api.alice.show(image)["status"] == "queued"

    def test_chunks_that_are_packed_are_refused_since_nothing_unpacks_them(self):
        image, sent = self.api.alice.create(), OCTETS | {"Transfer-Encoding": "gzip, chunked"}
        for path in (f"/v2/images/{image}/file", f"/v2/images/{image}/stage", f"/v1/images/{image}"):
            response = self.api.alice.request("PUT", path, sent, extras={"wsgi.input": io.BytesIO(DATA)})
            assert (response.status_code, "gzip" in response.json["error"]["message"]) == (501, True)
        assert self.api.alice.show(image)["status"] == "queued"

    def test_an_image_has_its_formats_before_its_data(self):
        image = self.api.alice.post("/v2/images", {"disk_format": "raw"}).json["id"]
        assert self.api.alice.upload(image, DATA).status_code == 400

    def test_data_is_uploaded_once(self):
        image = self.api.alice.active(DATA)
        assert self.api.alice.upload(image, b"other").status_code == 409
        assert self.api.alice.download(image).content == DATA

    @pytest.mark.parametrize(("caller", "status"), [("colleague", 403), ("bob", 404), ("nobody", 403)])
    def test_others_upload_nothing(self, caller, status):
        image = self.api.alice.create()
        assert getattr(self.api, caller).upload(image, DATA).status_code == status

    def test_of_racing_uploads_one_wins(self):
        image = self.api.alice.create()
        responses = []
        start = threading.Barrier(6)

        def race(number):
            start.wait()
            responses.append((self.api.alice.upload(image, bytes([number]) * 5000).status_code, number))

        threads = [threading.Thread(target=race, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        [winner] = [number for status, number in responses if status == 204]
        assert sorted(status for status, _ in responses) == [204, 409, 409, 409, 409, 409]
        assert self.api.alice.download(image).content == bytes([winner]) * 5000


class TestFailedUpload(Deployed):
    """After each of these the image is queued, no bytes are left, and a second attempt succeeds."""

    options = {"image_size_cap": 5000}  # noqa: RUF012

    @pytest.fixture
    def image(self):
        image = self.api.alice.create()
        yield image
        assert self.api.alice.show(image)["status"] == "queued"
        assert self.api.alice.show(image)["size"] is None
        assert self.api.files() == []
        assert self.api.alice.upload(image, DATA).status_code == 204
        assert self.api.alice.download(image).content == DATA
        self.api.alice.delete(f"/v2/images/{image}")

    def test_more_than_an_image_may_have(self, image):
        assert self.api.alice.upload(image, b"x" * 5001).status_code == 413

    def test_more_than_an_image_may_have_in_chunks(self, image):
        headers = OCTETS | {"Transfer-Encoding": "chunked"}
        path = f"/v2/images/{image}/file"
        response = self.api.alice.request("PUT", path, headers, body=b"x" * 5001, extras={"CONTENT_LENGTH": ""})
        assert response.status_code == 413

    def test_a_client_that_goes_away(self, image):
        path = f"/v2/images/{image}/file"
        headers = OCTETS | {"Content-Length": "2000"}
        response = self.api.alice.request("PUT", path, headers, extras={"wsgi.input": io.BytesIO(b"x" * 1000)})
        assert response.status_code == 400

    def test_a_connection_that_breaks(self, image):
        path = f"/v2/images/{image}/file"
        headers = OCTETS | {"Transfer-Encoding": "chunked"}
        broken = Chunked(b"x" * 3000, ConnectionResetError("peer"))
        response = self.api.alice.request("PUT", path, headers, extras={"wsgi.input": broken})
        assert response.status_code == 400

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (StorageFull("no room"), 413),
            (StorageWriteDenied("read-only media"), 503),
            (StoreAddDisabled("read-only"), 410),
            (RemoteServiceUnavailable("down", transient=False), 503),
            (OSError("a driver's mistake"), 500),
        ],
    )
    def test_a_store_that_fails(self, image, error, status, monkeypatch):
        def fail(*arguments):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(self.api.registry["fast"], "open_writer", fail)
            assert self.api.alice.upload(image, DATA).status_code == status


class TestDeletedMeanwhile(Deployed):
    def test_data_of_an_image_that_was_deleted_meanwhile_is_removed(self):
        image = self.api.alice.create()

        class Deletes(Chunked):
            def read(inner, size=-1):  # noqa: N805
                chunk = super().read(size)
                if not chunk:
                    assert self.api.alice.delete(f"/v2/images/{image}").status_code == 204
                return chunk

        headers = OCTETS | {"Transfer-Encoding": "chunked"}
        path = f"/v2/images/{image}/file"
        response = self.api.alice.request("PUT", path, headers, extras={"wsgi.input": Deletes(DATA)})
        assert response.status_code == 410
        assert self.api.files() == []


class TestFormats(Deployed):
    def test_the_virtual_size_of_a_qcow2_is_filled_in(self):
        image = self.api.alice.active(qcow2(5 << 30), disk_format="qcow2")
        assert self.api.alice.show(image)["virtual_size"] == 5 << 30

    def test_the_virtual_size_of_an_encrypted_disk_is_what_its_header_leaves(self):
        image = self.api.alice.active(luks(5 << 20), disk_format="luks")
        assert self.api.alice.show(image)["virtual_size"] == 3 << 20

    def test_a_header_that_leaves_nothing_tells_no_virtual_size(self):
        image = self.api.alice.active(luks(1 << 20), disk_format="luks")
        assert self.api.alice.show(image)["virtual_size"] is None

    def test_the_virtual_size_of_a_disk_with_partitions_is_its_size(self):
        image = self.api.alice.active(gpt().ljust(3 << 20, b"\0"), disk_format="gpt")
        assert self.api.alice.show(image)["virtual_size"] == 3 << 20

    @pytest.mark.parametrize(
        ("declared", "data"),
        [
            ("qcow2", DATA),
            ("qcow2", b""),
            ("vmdk", qcow2()),
            ("iso", gpt()),
            ("ploop", qcow2()),
            ("ami", luks(1 << 20)),
        ],
    )
    def test_data_of_another_format_is_refused(self, declared, data):
        image = self.api.alice.create(disk_format=declared)
        assert self.api.alice.upload(image, data).status_code == 415
        assert self.api.alice.show(image)["status"] == "queued"
        assert image not in self.api.files()

    def test_an_image_that_opens_other_files_is_refused(self):
        image = self.api.alice.create(disk_format="qcow2")
        assert self.api.alice.upload(image, qcow2(backing_file=b"/etc/passwd")).status_code == 415
        assert image not in self.api.files()

    def test_a_disk_with_partitions_is_a_raw_disk(self):
        assert self.api.alice.show(self.api.alice.active(gpt()))["status"] == "active"

    @pytest.mark.parametrize("data", [luks(3 << 20), luks(3 << 20, version=2), qcow2(), ISO, ISO_WITH_PARTITIONS])
    def test_what_guests_write_to_raw_disks_is_raw(self, data):
        image = self.api.alice.show(self.api.alice.active(data))
        assert (image["status"], image["virtual_size"]) == ("active", len(data))

    @pytest.mark.parametrize("declared", ["raw", "vmdk", "qcow2", "iso", "ami", "ploop"])
    @pytest.mark.parametrize("data", OTHER_FILES.values(), ids=OTHER_FILES.keys())
    def test_what_would_open_other_files_is_refused_whatever_it_is_said_to_be(self, declared, data):
        image = self.api.alice.create(disk_format=declared)
        assert self.api.alice.upload(image, data).status_code == 415
        assert self.api.alice.show(image)["status"] == "queued"
        assert image not in self.api.files()

    def test_text_that_describes_no_disk_is_raw_data(self):
        text = b"# version=1 of the notes\n" * 40 + "caf\xe9 version=1\n".encode("latin-1")
        assert self.api.alice.show(self.api.alice.active(text))["status"] == "active"

    def test_a_disk_larger_than_there_can_be_is_refused(self):
        image = self.api.alice.create(disk_format="qcow2")
        assert self.api.alice.upload(image, qcow2(2**64 - 1)).status_code == 415
        assert self.api.alice.show(image)["status"] == "queued"

    def test_what_is_in_a_container_is_not_looked_at(self):
        image = self.api.alice.active(DATA, disk_format="qcow2", container_format="ova")
        assert self.api.alice.show(image)["virtual_size"] is None


class TestFormatsNotEnforced(Deployed):
    options = {"require_image_format_match": "false"}  # noqa: RUF012

    def test_another_format_is_taken(self):
        assert self.api.alice.show(self.api.alice.active(DATA, disk_format="qcow2"))["status"] == "active"

    def test_an_unsafe_image_is_refused_all_the_same(self):
        image = self.api.alice.create(disk_format="raw")
        assert self.api.alice.upload(image, qcow2(backing_file=b"/etc/passwd")).status_code == 415


class TestDownload(Deployed):
    @pytest.fixture(scope="class", params=["fast", "mem"])
    @classmethod
    def image(cls, _deployed, request):
        image = cls.api.alice.create()
        assert cls.api.alice.upload(image, DATA, x_image_meta_store=request.param).status_code == 204
        return image

    def test_all_of_it(self, image):
        response = self.api.alice.download(image)
        assert (response.status_code, response.content) == (200, DATA)
        assert response.headers["content-length"] == str(len(DATA))
        assert response.headers["content-type"] == "application/octet-stream"
        assert response.headers["content-md5"] == hashlib.md5(DATA).hexdigest()

    @pytest.mark.parametrize(
        ("header", "first", "last"),
        [
            ("bytes=0-0", 0, 0),
            ("bytes=5-9", 5, 9),
            ("bytes=2000-", 2000, 2047),
            ("bytes=2000-9999", 2000, 2047),
            ("bytes=-10", 2038, 2047),
            ("bytes=-99999", 0, 2047),
            ("bytes=0-", 0, 2047),
            ("bytes=0-" + "9" * 5000, 0, 2047),
            ("bytes=-" + "9" * 5000, 0, 2047),
        ],
    )
    def test_a_range_of_it(self, image, header, first, last):
        response = self.api.alice.download(image, Range=header)
        assert (response.status_code, response.content) == (206, DATA[first : last + 1])
        assert response.headers["content-range"] == f"bytes {first}-{last}/2048"
        assert response.headers["content-length"] == str(last - first + 1)
        assert "content-md5" not in response.headers

    def test_a_range_of_the_same_data(self, image):
        tag = self.api.alice.download(image).headers["etag"]
        sha512 = hashlib.sha512(DATA).hexdigest()
        for same in (tag, f'"{hashlib.md5(DATA).hexdigest()}"', f' "{sha512}" '):
            response = self.api.alice.download(image, Range="bytes=5-9", If_Range=same)
            assert (response.status_code, response.content, response.headers["etag"]) == (206, DATA[5:10], tag)

    @pytest.mark.parametrize("wanted", ['"0"', 'W/"{tag}"', "{tag}", "Wed, 21 Oct 2015 07:28:00 GMT", "", "nonsense"])
    @pytest.mark.parametrize("asked", ["bytes=5-9", "bytes=2048-", "nonsense"])
    def test_a_range_of_other_data_is_everything(self, image, wanted, asked):
        wanted = wanted.format(tag=hashlib.md5(DATA).hexdigest())
        response = self.api.alice.download(image, Range=asked, If_Range=wanted)
        assert (response.status_code, response.content) == (200, DATA)
        assert "content-range" not in response.headers

    def test_a_condition_without_a_range_says_nothing(self, image):
        response = self.api.alice.download(image, If_Range='"0"')
        assert (response.status_code, response.content) == (200, DATA)

    @pytest.mark.parametrize("header", ["bytes 5-9/2048", "bytes 5-9/*"])
    def test_a_range_in_the_header_of_answers(self, image, header):
        response = self.api.alice.download(image, Content_Range=header)
        assert (response.status_code, response.content) == (206, DATA[5:10])

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"Range": "bytes=0-1,5-6"}, 400),
            ({"Range": "bytes=2048-"}, 416),
            ({"Range": "bytes=9-5"}, 416),
            ({"Range": "bytes=-0"}, 416),
            ({"Range": f"bytes={'9' * 5000}-"}, 416),
            ({"Range": "bytes=-"}, 416),
            ({"Range": "lines=1-2"}, 416),
            ({"Range": "nonsense"}, 416),
            ({"Content_Range": "bytes 3000-3001/*"}, 416),
            ({"Content_Range": "nonsense"}, 416),
        ],
    )
    def test_ranges_that_are_not_there(self, image, headers, status):
        assert self.api.alice.download(image, **headers).status_code == status

    def test_a_range_that_is_not_there_is_answered_with_the_size_there_is(self, image):
        assert self.api.alice.download(image, Range="bytes=2048-").headers["content-range"] == "bytes */2048"

    @pytest.mark.parametrize("header", ["bytes=0-", "bytes=0-0", "bytes=-5", "bytes=-0"])
    def test_there_is_no_range_of_no_bytes(self, header):
        assert self.api.alice.download(self.api.alice.active(b""), Range=header).status_code == 416

    def test_an_image_without_data_has_no_content(self):
        assert self.api.alice.download(self.api.alice.create()).status_code == 204

    def test_an_image_that_is_being_deleted_is_not_an_empty_one(self):
        image = self.api.alice.active(DATA)
        self.api.repository.uploads.begin_deletion(image, self.api.service.lease.id, from_=("active",))
        responses = [self.api.alice.download(image), self.api.alice.download(image, Range="bytes=0-1")]
        assert [response.status_code for response in responses] == [404, 404]

    @pytest.mark.parametrize(("caller", "status"), [("bob", 404), ("colleague", 403), ("admin", 200)])
    def test_who_may_download(self, image, caller, status):
        assert getattr(self.api, caller).download(image).status_code == status

    def test_members_download_shared_images(self, image):
        self.api.alice.post(f"/v2/images/{image}/members", {"member": "gamma"})
        assert self.api.caller("gamma", "member", "reader").download(image).content == DATA

    def test_what_was_sent_is_told(self, image):
        self.api.events.clear()
        self.api.alice.download(image, Range="bytes=0-9")
        [(_, event, payload)] = self.api.events
        assert (event, payload["bytes_sent"]) == ("image.send", 10)


class TestLocalFiles(Deployed):
    def wrapped(self, image, **headers):
        """What the server's file wrapper is given, and the descriptor's position then."""
        seen = {}

        class Wrapper(FileWrapper):
            def __init__(self, file, block):
                seen["block"] = block
                seen["position"] = os.lseek(file.fileno(), 0, os.SEEK_CUR)
                super().__init__(file, block)

        path = f"/v2/images/{image}/file"
        seen["answer"] = self.api.alice.request("GET", path, headers, file_wrapper=Wrapper)
        return seen

    def test_a_local_file_is_left_to_the_server(self):
        seen = self.wrapped(self.api.alice.active(DATA))
        assert (seen["position"], seen["answer"].content) == (0, DATA)

    def test_a_range_of_a_local_file_begins_at_its_first_byte(self):
        seen = self.wrapped(self.api.alice.active(DATA), Range="bytes=100-199")
        assert seen["position"] == 100
        assert seen["answer"].headers["content-length"] == "100"

    def test_other_stores_send_large_blocks_themselves(self):
        image = self.api.alice.create()
        self.api.alice.upload(image, DATA, x_image_meta_store="mem")
        seen = self.wrapped(image)
        assert (seen.keys(), seen["answer"].content) == ({"answer"}, DATA)


class TestSeveralStores(Deployed):
    """An image in all three: spare has the highest weight, then fast, then mem."""

    @pytest.fixture
    def image(self):
        image = self.api.alice.active(DATA)
        body = {"method": {"name": "copy-image"}, "all_stores": True}
        assert self.api.admin.post(f"/v2/images/{image}/import", body).status_code == 202
        self.api.settle()
        return image

    def break_store(self, patch, name, error):
        def fail(*arguments, **more):
            raise error

        patch.setattr(self.api.registry[name], "get", fail)

    def test_stores_are_told_by_weight(self, image):
        assert self.api.alice.show(image)["stores"] == "spare,fast,mem"

    def test_the_next_store_is_asked_when_one_does_not_answer(self, image, monkeypatch):
        self.break_store(monkeypatch, "spare", RemoteServiceUnavailable("down"))
        assert self.api.alice.download(image).content == DATA

    def test_no_store_that_answers_is_unavailable(self, image, monkeypatch):
        for name in ("spare", "fast", "mem"):
            self.break_store(monkeypatch, name, RemoteServiceUnavailable("down"))
        assert self.api.alice.download(image).status_code == 503

    def test_data_that_is_nowhere_is_not_found(self):
        image = self.api.alice.active(DATA)
        (self.api.directory / "images" / image).unlink()
        assert self.api.alice.download(image).status_code == 404

    @pytest.mark.parametrize("headers", [{}, {"Range": "bytes=2000-"}])
    def test_data_that_is_cut_short_is_never_sent_as_if_it_were_all(self, headers):
        image = self.api.alice.active(DATA)
        (self.api.directory / "images" / image).write_bytes(DATA[:2010])
        assert self.api.alice.download(image, **headers).status_code == 503

    def test_the_next_store_is_asked_when_one_has_too_little(self, image):
        (self.api.directory / "images" / image).write_bytes(DATA[:1000])
        response = self.api.admin.get(f"/v2/images/{image}/file?prefer=fast")
        assert (response.status_code, response.content) == (200, DATA)

    def test_an_administrator_prefers_a_store(self, image, monkeypatch):
        asked = []
        for name in ("spare", "fast", "mem"):
            store = self.api.registry[name]
            get = store.get
            monkeypatch.setattr(store, "get", lambda *a, name=name, get=get, **k: asked.append(name) or get(*a, **k))
        assert self.api.admin.get(f"/v2/images/{image}/file?prefer=mem,%20fast").content == DATA
        assert asked == ["mem"]
        assert self.api.admin.get(f"/v2/images/{image}/file?prefer=mem,nowhere").status_code == 400

    def test_who_may_only_read_does_not_prefer(self, image):
        statuses = [
            who.get(f"/v2/images/{image}/file?prefer=fast").status_code for who in (self.api.alice, self.api.colleague)
        ]
        assert statuses == [200, 403]


class TestStorageQuota(Deployed):
    options = {"user_storage_quota": "3KB"}  # noqa: RUF012

    def test_a_project_stores_no_more_than_its_quota(self):
        self.api.alice.active(DATA)
        image = self.api.alice.create()
        assert self.api.alice.upload(image, DATA).status_code == 413
        assert self.api.alice.upload(image, DATA[:1000]).status_code == 204

    def test_of_uploads_that_fit_one_by_one_only_as_many_are_kept_as_fit_together(self):
        carol = self.api.caller("carol", "member", "reader")
        first, second = carol.create(), carol.create()

        class Between(io.BytesIO):
            """A body in the middle of which another image is uploaded."""

            def read(self, size=-1):
                if not self.tell():
                    assert carol.upload(second, DATA).status_code == 204
                return super().read(size)

        headers = OCTETS | {"Content-Length": str(len(DATA))}
        response = carol.request("PUT", f"/v2/images/{first}/file", headers, extras={"wsgi.input": Between(DATA)})
        assert (response.status_code, carol.show(first)["status"]) == (413, "queued")
        assert first not in self.api.files()

    def stage(self, caller, image, body):
        headers = OCTETS | {"Content-Length": str(len(DATA))}
        return caller.request("PUT", f"/v2/images/{image}/stage", headers, extras={"wsgi.input": body}).status_code

    def test_staged_data_counts(self):
        dave = self.api.caller("dave", "member", "reader")
        first, second = dave.create(), dave.create()
        assert self.stage(dave, first, io.BytesIO(DATA)) == 204
        assert self.stage(dave, second, io.BytesIO(DATA)) == 413
        assert dave.upload(second, DATA).status_code == 413
        assert dave.delete(f"/v2/images/{first}").status_code == 204
        assert dave.upload(second, DATA).status_code == 204

    def test_the_import_of_staged_data_needs_room_for_its_copies_only(self):
        erin = self.api.caller("erin", "member", "reader")
        image = erin.create()
        assert self.stage(erin, image, io.BytesIO(DATA)) == 204
        asked = {"method": {"name": "glance-direct"}}
        assert erin.post(f"/v2/images/{image}/import", asked | {"stores": ["fast", "mem"]}).status_code == 413
        assert erin.post(f"/v2/images/{image}/import", asked).status_code == 202
        self.api.settle()
        assert erin.show(image)["status"] == "active"

    def test_of_stages_that_fit_one_by_one_only_as_many_are_kept_as_fit_together(self):
        frank = self.api.caller("frank", "member", "reader")
        first, second = frank.create(), frank.create()
        stage = self.stage

        class Between(io.BytesIO):
            """A body in the middle of which the data of another image is staged."""

            def read(self, size=-1):
                if not self.tell():
                    assert stage(frank, second, io.BytesIO(DATA)) == 204
                return super().read(size)

        assert self.stage(frank, first, Between(DATA)) == 413
        assert [frank.show(image)["status"] for image in (first, second)] == ["queued", "uploading"]
        assert [path.name for path in (self.api.directory / "staging").iterdir()] == [second]
        assert frank.delete(f"/v2/images/{second}").status_code == 204

    def test_another_project_has_a_quota_of_its_own(self):
        assert self.api.bob.upload(self.api.bob.create(), DATA).status_code == 204
