# SPDX-License-Identifier: Apache-2.0
"""storelib image against a real server, and through a proxy that breaks off."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from storelib.cli import files
from storelib.cli.image import client, data
from storelib.cli.image.connection import DEFAULT_URL, Options, find
from storelib.exceptions import MissingDependency

pytestmark = pytest.mark.usefixtures("no_variables")

DATA = b"a disk image, for all we know " * 100_000
SHA512 = hashlib.sha512(DATA).hexdigest()
QCOW2 = b"QFI\xfb" + bytes(508)

INI = """
[storelib]
stores = fast:file, slow:file
default_store = fast
[fast]
filesystem_store_datadir = {directory}/fast
[slow]
filesystem_store_datadir = {directory}/slow
[database]
connection = sqlite:///{directory}/images.sqlite
sqlite_synchronous = false
[api]
show_multiple_locations = true
"""


@pytest.fixture(scope="module")
def api(tmp_path_factory, serving):
    """The URL of an image API."""
    directory = tmp_path_factory.mktemp("api")
    (directory / "my.ini").write_text(INI.format(directory=directory))
    with serving(directory) as url:
        yield url


@pytest.fixture
def image(storelib, api, monkeypatch):
    """``image("list")`` runs ``storelib image list`` with JSON for an answer."""
    monkeypatch.setenv("OS_IMAGE_URL", api)
    return lambda *arguments, **more: storelib("--format", "json", "image", *arguments, **more)


@pytest.fixture
def disk(places):
    path = places / "disk.raw"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def name(request):
    """Of an image that no other test has."""
    return request.node.name


@pytest.fixture
def made(image, disk, name):
    """An active image."""
    return image("create", name, "--file", disk).document


# -- create -----------------------------------------------------------------------------------------------------------


def test_create_sends_the_data(made):
    assert (made["status"], made["size"], made["os_hash_value"]) == ("active", len(DATA), SHA512)
    assert (made["disk_format"], made["container_format"], made["stores"]) == ("raw", "bare", ["fast"])


def test_create_takes_all_there_is_to_say(image, name):
    said = ["--disk-format", "qcow2", "--container-format", "ovf", "--visibility", "private", "--min-disk", 1]
    said += ["--min-ram", 2, "--protected", "--hidden", "--property", "os=debian=12", "--tag", "b", "--tag", "a"]
    found = image("create", name, *said).document
    assert (found["status"], found["disk_format"], found["container_format"]) == ("queued", "qcow2", "ovf")
    assert (found["visibility"], found["min_disk"], found["min_ram"]) == ("private", 1, 2)
    assert (found["protected"], found["os_hidden"], found["os"], found["tags"]) == (True, True, "debian=12", ["a", "b"])


def test_create_into_another_store(image, disk, name):
    assert image("create", name, "--file", disk, "--store", "slow").document["stores"] == ["slow"]


def test_create_from_stdin(image, name):
    found = image("create", name, "--file", "-", "--disk-format", "raw", stdin=DATA).document
    assert (found["size"], found["os_hash_value"]) == (len(DATA), SHA512)


def test_create_with_an_id(image, name):
    image_id = "0b0ae5a6-8be3-4a5e-9f4f-c0aee0d2c2b3"
    assert image("create", name, "--id", image_id).document["id"] == image_id
    assert image("create", name, "--id", image_id).code == 4


def test_an_image_whose_data_does_not_arrive_is_deleted(image, disk, name):
    response = image("create", name, "--file", disk, "--store", "nowhere")
    assert (response.code, "nowhere" in response.err) == (2, True)
    assert image("list", "--name", name).documents == []


def test_data_of_another_format_is_refused(image, disk, name):
    response = image("create", name, "--file", disk, "--disk-format", "qcow2")
    assert (response.code, response.err.count("\n")) == (2, 1), response.err


@pytest.mark.parametrize(
    ("file_name", "begin", "found"),
    [("a", QCOW2, "qcow2"), ("a.img", QCOW2, "qcow2"), ("a.raw", b"x", "raw"), ("a.IMG", b"x", "raw")],
)
def test_the_format_is_told_from_the_file(tmp_path, file_name, begin, found):
    (tmp_path / file_name).write_bytes(begin)
    assert data.guess_format(str(tmp_path / file_name)) == found


def test_iso_images_are_known_by_their_descriptor(tmp_path):
    (tmp_path / "a.img").write_bytes(bytes(0x8001) + b"CD001")
    assert data.guess_format(str(tmp_path / "a.img")) == "iso"


@pytest.mark.parametrize("source", ["-", "unknown"])
def test_a_format_that_cannot_be_told_is_asked_for(image, places, name, source):
    (places / "unknown").write_bytes(b"who knows")
    response = image("create", name, "--file", source)
    assert (response.code, "--disk-format" in response.err) == (2, True)
    assert image("list", "--name", name).documents == []


@pytest.mark.parametrize(
    "wrong", [["--property", "x"], ["--visibility", "secret"], ["--store", "fast"], ["--min-ram", "-1"]]
)
def test_wrong_usage_touches_nothing(image, name, wrong):
    assert image("create", name, *wrong).code == 2
    assert image("list", "--name", name).documents == []


def test_upload_fills_an_image_that_waits(image, disk, name):
    image("create", name, "--disk-format", "raw", "--container-format", "bare")
    assert image("upload", name, disk).document["os_hash_value"] == SHA512
    assert image("upload", name, disk).code == 6


# -- list and show ----------------------------------------------------------------------------------------------------


def test_list_goes_on_over_all_pages(image, name):
    for _ in range(30):
        image("create", name, "--tag", "page")
    assert len(image("list", "--tag", "page").documents) == 30
    assert len(image("list", "--tag", "page", "--limit", 27).documents) == 27


def test_list_filters(image, made, name):
    image("create", name, "--property", "k=v")
    assert [found["status"] for found in image("list", "--name", name, "--property", "k=v").documents] == ["queued"]
    assert [found["id"] for found in image("list", "--name", name, "--status", "active").documents] == [made["id"]]
    assert image("list", "--name", name, "--disk-format", "iso", "--visibility", "public").documents == []


def test_list_sorts(image, name):
    for number in (2, 1, 3):
        image("create", f"{name} {number}", "--tag", "sorted")
    found = image("list", "--tag", "sorted", "--sort", "name:desc").documents
    assert [each["name"][-1] for each in found] == ["3", "2", "1"]


def test_list_is_a_line_for_each_image(storelib, image, made, name):
    response = storelib("image", "list", "--name", name)
    assert response.out.decode().split("\t")[:4] == [made["id"], name, "active", str(len(DATA))]


def test_lists_of_stores_are_lists(image, storelib, monkeypatch):
    joined = {"stores": "fast,slow", "os_glance_importing_to_stores": "slow", "os_glance_failed_import": ""}
    found = {"id": "i", "name": "n", "size": None, "a": "b,c", **joined}
    monkeypatch.setattr(client.Api, "images", lambda self, filters, most: [found])
    lists = {"stores": ["fast", "slow"], "os_glance_importing_to_stores": ["slow"], "os_glance_failed_import": []}
    assert image("list").document == {"id": "i", "name": "n", "size": None, "a": "b,c", **lists}
    assert storelib("image", "list").out.endswith(b"\tfast, slow\n")


def test_show_takes_ids_and_names(image, made, name):
    assert image("show", made["id"]).document == image("show", name).document
    assert image("show", made["id"].upper()).document["name"] == name


def test_hidden_images_have_names_too(image, name):
    image("create", name, "--hidden")
    assert image("show", name).document["os_hidden"] is True


@pytest.mark.parametrize("strange", ["in:a", 'with "quotes"', "a,b", "50%", "ü"])
def test_any_name_is_found(image, strange):
    image("create", strange)
    assert image("show", strange).document["name"] == strange


def test_a_name_of_two_images_is_refused_with_their_ids(image, name):
    ids = [image("create", name).document["id"] for _ in range(2)]
    response = image("delete", name)
    assert response.code == 2
    assert all(image_id in response.err for image_id in ids)


@pytest.mark.parametrize("missing", ["nobody", "0b0ae5a6-0000-4a5e-9f4f-c0aee0d2c2b3"])
def test_what_is_not_there_is_code_3(image, missing):
    assert image("show", missing).code == 3


# -- set, unset, delete -----------------------------------------------------------------------------------------------


def test_set_changes_what_is_named_and_nothing_else(image, made, name):
    changed = image(
        "set", name, "--name", f"{name} 2", "--property", "a/b~c=1", "--tag", "t", "--min-ram", 5, "--protected"
    ).document
    assert (changed["name"], changed["a/b~c"], changed["tags"]) == (f"{name} 2", "1", ["t"])
    assert (changed["min_ram"], changed["protected"]) == (5, True)
    assert changed["os_hash_value"] == made["os_hash_value"]
    assert image("set", f"{name} 2", "--unprotected").document["protected"] is False


def test_set_deactivates_and_activates(image, made, name):
    assert image("set", name, "--deactivate").document["status"] == "deactivated"
    assert image("set", name, "--activate").document["status"] == "active"


def test_set_needs_something_to_set(image, made, name):
    assert image("set", name).code == 2


@pytest.mark.parametrize("name_of_part", ["", ".", ".."])
@pytest.mark.parametrize("command", ["tag remove", "member remove", "unset --tag"])
def test_a_part_whose_name_is_the_path_of_the_image_removes_nothing(image, name, command, name_of_part):
    image("create", name, "--tag", "t")
    words = command.split()
    arguments = [*words[:1], name, *words[1:]] if words[0] == "unset" else [*words, name]
    assert image(*arguments, name_of_part).code == 2
    assert image("show", name).document["tags"] == ["t"]


def test_unset_removes_properties_and_tags(image, name):
    image("create", name, "--property", "a=1", "--property", "b=2", "--tag", "x", "--tag", "y")
    found = image("unset", name, "--property", "a", "--tag", "x").document
    assert ("a" in found, found["b"], found["tags"]) == (False, "2", ["y"])
    assert image("unset", name, "--property", "a").code == 6
    assert image("unset", name).code == 2


def test_delete_takes_several_and_goes_on_after_a_failure(image, name):
    for number in (1, 2):
        image("create", f"{name} {number}")
    assert image("delete", f"{name} 1", "nobody", f"{name} 2").code == 3
    assert image("show", f"{name} 1").code == image("show", f"{name} 2").code == 3


def test_a_protected_image_is_not_deleted(image, name):
    image("create", name, "--protected")
    assert image("delete", name).code == 6


def test_delete_from_one_store_leaves_no_image_without_data(image, made, name):
    assert image("delete", name, "--store", "fast").code == 6
    assert image("show", name).document["status"] == "active"


# -- members, tags, locations, stores ---------------------------------------------------------------------------------


def test_members(image, name):
    image("create", name)
    assert image("member", "add", name, "them").document["status"] == "pending"
    assert image("member", "add", name, "them").code == 4
    assert [found["member_id"] for found in image("member", "list", name).documents] == ["them"]
    assert image("member", "set", name, "them", "accepted").document["status"] == "accepted"
    assert image("member", "show", name, "them").document["status"] == "accepted"
    assert image("member", "remove", name, "them").code == 0
    assert image("member", "show", name, "them").code == 3


def test_tags(image, name):
    image("create", name)
    assert image("tag", "add", name, "a b", "ü/x").code == 0
    assert [found["tag"] for found in image("tag", "list", name).documents] == ["a b", "ü/x"]
    assert image("tag", "remove", name, "a b").code == 0
    assert image("tag", "remove", name, "a b").code == 3


def test_locations(image, made, name):
    [found] = image("location", "list", name).documents
    assert found["metadata"] == {"store": "fast"}
    assert image("location", "remove", name, "file:///elsewhere").code == 3
    assert image("location", "remove", name, found["url"]).code == 6


@pytest.mark.parametrize("digest", ["sha512", ":", "sha512:", "sha512:ab", "md5:zz", "crc7:ab", ""])
def test_a_digest_of_a_location_is_checked_first(image, name, digest):
    image("create", name)
    assert image("location", "add", name, "http://127.0.0.1:1/x", "--digest", digest).code == 2


def test_stores(image):
    found = {store["id"]: store.get("default") for store in image("stores").documents}
    assert found == {"fast": "true", "slow": None}


# -- save -------------------------------------------------------------------------------------------------------------


def test_save_writes_a_file_and_says_that_it_is_right(image, made, name, places):
    response = image("save", name, "-o", "out")
    assert response.document == {"id": made["id"], "file": "out", "size": len(DATA), "sha512": SHA512}
    assert (places / "out").read_bytes() == DATA


def test_save_writes_to_stdout(image, made, name):
    assert image("save", name).out == DATA


def test_save_leaves_an_existing_file_alone(image, made, name, places):
    (places / "out").write_bytes(b"dear to me")
    assert image("save", name, "-o", "out").code == 4
    assert (places / "out").read_bytes() == b"dear to me"
    assert image("save", name, "-o", "out", "--force").code == 0
    assert (places / "out").read_bytes() == DATA


def test_save_names_a_directory_that_is_missing(image, made, name, places):
    response = image("save", name, "-o", "missing/out")
    assert response.err == f"storelib: {places.resolve() / 'missing'}: No such file or directory\n"


def test_save_of_an_image_without_data(image, name, places):
    image("create", name)
    assert image("save", name, "-o", "out").code == 3
    assert not (places / "out").exists()


def test_save_of_an_empty_image(image, name, places):
    (places / "empty.raw").write_bytes(b"")
    image("create", name, "--file", "empty.raw")
    assert image("save", name, "-o", "out").code == 0
    assert (places / "out").read_bytes() == b""


class Proxy:
    """Between client and API: cuts each answer to a download after so many bytes, or changes one byte of it.

    With ``stall`` nothing more comes, and the connection stays.
    """

    def __init__(
        self, upstream: str, cut: int | None = None, spoil: bool = False, ranges: bool = True, *, stall: bool = False
    ) -> None:
        host, port = upstream.removeprefix("http://").split(":")
        self.upstream, self.cut, self.spoil, self.ranges = (host, int(port)), cut, spoil, ranges
        self.stall = stall
        self.release = threading.Event()
        self.on_download = lambda count: None
        self.downloads: list[bytes | None] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            # A client may go away at any moment: some of these tests kill it.
            with client, contextlib.suppress(ConnectionError):
                self.serve(client)

    def serve(self, client: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            got = client.recv(65536)
            if not got:
                return
            request += got
        download = b"/file " in request.partition(b"\r\n")[0]
        if download:
            found = re.search(rb"\r\n[Rr]ange: (\S+)", request)
            self.downloads.append(found and found[1])
            self.on_download(len(self.downloads))
            if not self.ranges:
                request = re.sub(rb"\r\n[Rr]ange: \S+", b"", request)
        with socket.create_connection(self.upstream) as server:
            server.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
            response = b"".join(iter(lambda: server.recv(65536), b""))
        if download:
            head, body = response.split(b"\r\n\r\n", 1)
            if self.spoil:
                body = body[:-1] + b"?"
            response = head + b"\r\n\r\n" + (body if self.cut is None else body[: self.cut])
        client.sendall(response)
        if download and self.stall and self.cut is not None:
            client.settimeout(0.1)
            while not self.release.is_set():
                try:
                    if not client.recv(1):
                        return
                except TimeoutError:
                    pass

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(data, "PAUSE", 0.001)


def test_a_download_that_breaks_off_goes_on_where_it_stopped(image, made, api, places):
    with Proxy(api, cut=1_100_000) as proxy:
        assert image("--url", proxy.url, "save", made["id"], "-o", "out").code == 0
    assert proxy.downloads == [None, b"bytes=1100000-", b"bytes=2200000-"]
    assert (places / "out").read_bytes() == DATA


def test_a_server_without_ranges_is_read_again_from_the_beginning(image, made, api, places):
    with Proxy(api, cut=2_000_000, ranges=False) as proxy:
        proxy_answer = image("--url", proxy.url, "save", made["id"], "-o", "out")
        assert proxy_answer.code == 7
        proxy.cut = None
        proxy.downloads.clear()
    assert not (places / "out").exists()


def test_a_download_that_gets_nowhere_leaves_nothing(image, made, api, places):
    with Proxy(api, cut=0) as proxy:
        assert image("--url", proxy.url, "save", made["id"], "-o", "out").code == 7
    assert len(proxy.downloads) == data.ATTEMPTS + 1
    assert [path.name for path in places.iterdir() if "out" in path.name] == []


@pytest.fixture
def gives_up(monkeypatch):
    """A download is tried once."""
    monkeypatch.setattr(data, "ATTEMPTS", 0)


def parts(places):
    return [path for path in places.iterdir() if path.name.endswith(".part")]


def test_what_arrived_is_kept_and_the_same_command_goes_on_with_it(image, made, api, places, gives_up):
    with Proxy(api, cut=2_000_001) as proxy:
        response = image("--url", proxy.url, "save", made["id"], "-o", "out")
        assert (response.code, "the same command goes on with them" in response.err) == (7, True)
        [part] = parts(places)
        assert (part.stat().st_size, part.stat().st_mode & 0o777) == (2_000_001, 0o600)
        assert image("--url", proxy.url, "save", made["id"], "-o", "out").code == 0
    assert proxy.downloads == [None, b"bytes=2000001-"]
    assert ((places / "out").read_bytes(), parts(places)) == (DATA, [])


def test_a_range_is_asked_for_of_the_same_data_only(image, made, api, places, gives_up):
    with Proxy(api, cut=2_000_001) as proxy:
        image("--url", proxy.url, "save", made["id"], "-o", "out")
        [part] = parts(places)
        assert os.getxattr(part, files._TAG).decode() in (f'"{made["checksum"]}"', f'"{SHA512}"')
        os.setxattr(part, files._TAG, b'"of-other-data"')
        proxy.cut = None
        # The server then sends everything, and what is here already is left out.
        assert image("--url", proxy.url, "save", made["id"], "-o", "out").code == 0
    assert proxy.downloads == [None, b"bytes=2000001-"]
    assert (places / "out").read_bytes() == DATA


def test_bytes_before_a_stall_count(image, made, api, places):
    """Few enough that they would fit in one block, and no more come before the time is over."""
    with Proxy(api, cut=70_001, stall=True) as proxy:
        proxy.on_download = lambda count: count == 3 and setattr(proxy, "cut", None)
        assert image("--url", proxy.url, "--timeout", "0.5", "save", made["id"], "-o", "out").code == 0
    assert proxy.downloads == [None, b"bytes=70001-", b"bytes=140002-"]
    assert (places / "out").read_bytes() == DATA


def test_a_command_that_is_killed_is_gone_on_with(image, made, api, places):
    arguments = ["--format", "json", "image", "save", made["id"], "-o", "out", "--timeout", "60"]
    with Proxy(api, cut=1_500_000, stall=True) as proxy:
        command = [sys.executable, "-c", "from storelib.cli.main import main; main()", *arguments, "--url", proxy.url]
        with subprocess.Popen(command, cwd=places) as process:
            deadline = time.monotonic() + 60
            while not any(part.stat().st_size for part in parts(places)):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.kill()
        [part] = parts(places)
        proxy.cut = None
        proxy.release.set()
        kept = part.stat().st_size
        assert image("--url", proxy.url, "save", made["id"], "-o", "out").code == 0
    assert proxy.downloads[-1] == b"bytes=%d-" % kept
    assert ((places / "out").read_bytes(), parts(places)) == (DATA, [])


def test_a_part_that_is_not_of_this_image_is_dropped(image, made, api, places, gives_up):
    with Proxy(api, cut=2_000_000) as proxy:
        image("--url", proxy.url, "save", made["id"], "-o", "out")
    [part] = parts(places)
    part.write_bytes(b"x" * 2_000_000)
    assert image("save", made["id"], "-o", "out").code == 9
    assert ((places / "out").exists(), parts(places)) == (False, [])
    assert image("save", made["id"], "-o", "out").code == 0


def test_two_at_once_do_not_write_the_same_part(image, made, places):
    with files.Part("out", made["id"]):
        response = image("save", made["id"], "-o", "out")
    assert (response.code, "another process" in response.err) == (4, True)
    assert image("save", made["id"], "-o", "out").code == 0


def test_a_saved_file_has_the_usual_mode_and_holes(image, name, places):
    (places / "disk.raw").write_bytes(b"x" * 65536 + bytes(8 << 20) + b"y")
    made = image("create", name, "--file", "disk.raw").document
    assert image("save", made["id"], "-o", "out").code == 0
    status = (places / "out").stat()
    assert status.st_mode & 0o777 == 0o666 & ~files._umask()
    assert status.st_blocks * 512 < 1 << 20
    assert (places / "out").read_bytes() == (places / "disk.raw").read_bytes()
    assert os.listxattr(places / "out") == []


def test_other_bytes_than_the_image_has_are_not_saved(image, made, api, places):
    with Proxy(api, spoil=True) as proxy:
        response = image("--url", proxy.url, "save", made["id"], "-o", "out")
    assert (response.code, "sha512" in response.err) == (9, True)
    assert [path.name for path in places.iterdir() if "out" in path.name] == []


# -- where the API is -------------------------------------------------------------------------------------------------


def test_without_anything_it_is_what_serve_serves():
    assert find(Options(), {}).url == DEFAULT_URL


@pytest.mark.parametrize("variable", ["OS_IMAGE_URL", "OS_IMAGE_ENDPOINT_OVERRIDE"])
@pytest.mark.parametrize(
    "url", ["http://images:9292", "http://images:9292/", "http://images:9292/v2", "http://images:9292/v2.17/"]
)
def test_the_url_is_taken_from_the_environment_whatever_its_version(variable, url):
    assert find(Options(), {variable: url}).url == "http://images:9292"


def test_options_go_before_the_environment():
    endpoint = find(Options(url="http://a:1", token="mine"), {"OS_IMAGE_URL": "http://b:2", "OS_TOKEN": "theirs"})
    assert (endpoint.url, endpoint.identity(False)) == ("http://a:1", {"X-Auth-Token": "mine"})


def test_user_and_password_without_keystone_are_basic():
    endpoint = find(Options(url="http://a:1"), {"OS_USERNAME": "me", "OS_PASSWORD": "pass:word"})
    assert endpoint.identity(False) == {"Authorization": "Basic bWU6cGFzczp3b3Jk"}


def test_user_and_password_in_the_url_are_basic_and_never_shown():
    endpoint = find(Options(url="http://me:pass%3Aword@a:1/"), {})
    assert endpoint.identity(False) == {"Authorization": "Basic bWU6cGFzczp3b3Jk"}
    assert repr(endpoint) == "Endpoint('http://a:1')"


def test_an_endpoint_without_authentication():
    environment = {"OS_AUTH_TYPE": "none", "OS_ENDPOINT": "http://a:1/v2", "OS_USERNAME": "me", "OS_PASSWORD": "x"}
    endpoint = find(Options(), environment)
    assert (endpoint.url, endpoint.identity(False)) == ("http://a:1", {})


@pytest.mark.parametrize("url", ["images:9292", "ftp://images", "http://:secret@", "file:///etc/passwd"])
def test_what_is_no_url_is_refused_without_being_quoted(storelib, url):
    response = storelib("image", "--url", url, "list")
    assert (response.code, url in response.err) == (2, False)


def test_nothing_that_answers_is_code_7_with_what_to_do(storelib):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    response = storelib("image", "--url", f"http://127.0.0.1:{port}", "list")
    assert (response.code, "storelib serve" in response.err, response.err.count("\n")) == (7, True, 1)


def test_a_server_that_is_silent_is_given_up(storelib):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        response = storelib("image", "--url", url, "--timeout", "0.2", "list")
    assert response.code == 7


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"{}", b"", b"[" * 60_000], ids=len)
@pytest.mark.parametrize("command", [["image", "list"], ["image", "stores"], ["preload", "list"]])
def test_what_is_no_image_api_is_told(storelib, monkeypatch, answer, command):
    monkeypatch.setattr(client.Api, "send", lambda *arguments, **options: SimpleNamespace(data=answer))
    found = storelib(*command)
    assert (found.code, "is no image API" in found.err, found.err.count("\n")) == (1, True, 1)


def test_keystone_that_does_not_answer_is_code_7_without_the_password(storelib, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for name, value in {"AUTH_URL": f"http://127.0.0.1:{port}/v3", "USERNAME": "me", "PASSWORD": "secret"}.items():
        monkeypatch.setenv(f"OS_{name}", value)
    response = storelib("image", "list")
    assert (response.code, "secret" in response.err) == (7, False)


def test_variables_of_keystone_that_are_not_complete_are_wrong_usage(storelib, monkeypatch):
    monkeypatch.setenv("OS_AUTH_URL", "http://127.0.0.1:1/v3")
    monkeypatch.setenv("OS_AUTH_TYPE", "nonsense")
    assert storelib("image", "list").code == 2


def test_keystone_needs_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "keystoneauth1", None)
    with pytest.raises(MissingDependency, match="pip install"):
        find(Options(), {"OS_AUTH_URL": "http://keystone/v3"})
