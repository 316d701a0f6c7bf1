# SPDX-License-Identifier: Apache-2.0
"""glance_store and storelib in its place on the same datastores of a vCenter: what one wrote is the other's.

glance_store cannot use a VMware store that has a name (``enabled_backends``): it looks for it by a scheme "vmware",
which its URIs do not have. So its store is the one without a name; storelib's is either.
"""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from servers.glance import Glance, install
from servers.glance_library import Library, LibraryError
from servers.vcenter import FIRST, NESTED, PLAIN, SECOND, Vcenter
from servers.vcenter_wsdl import write_wsdl

LARGE = hashlib.shake_128(b"large").digest(9_000_001)
SMALL = hashlib.shake_128(b"small").digest(100_001)
NAME = "vc"
#: glance_store knows the port 443 only, and trusts what the environment says before what its configuration says.
FIRST_CODE = """
import os, socket

os.environ["REQUESTS_CA_BUNDLE"] = {certificate!r}
find = socket.getaddrinfo

def getaddrinfo(host, port, *args, **kwargs):
    place = ("127.0.0.1", {port}) if (host, port) == ("localhost", 443) else (host, port)
    return find(*place, *args, **kwargs)

socket.getaddrinfo = getaddrinfo
"""


class Place:
    """The vCenter, and what both are told of it."""

    def __init__(self, directory: Path, vcenter: Vcenter) -> None:
        self.directory, self.vcenter = directory, vcenter
        self.first = FIRST_CODE.format(certificate=str(vcenter.certificate), port=vcenter.port)
        #: One option may be there several times.
        self.options: dict[str, object] = {
            "vmware_server_host": "localhost",
            "vmware_server_username": vcenter.user,
            "vmware_server_password": vcenter.password,
            "vmware_ca_file": vcenter.certificate,
            "vmware_store_image_dir": "/images of/all",
            "vmware_datastores": [f"{NESTED}:{FIRST}:9", f"{PLAIN}:{SECOND}"],
        }

    def library(self, *, on_storelib: bool, named: bool) -> Library:
        stores = {NAME: ("vmware", self.options)}
        return Library(self.directory, stores, on_storelib=on_storelib, named=named, first=self.first)

    def files(self) -> list[str]:
        """What is in the datastores."""
        return [path.name for each in self.vcenter.datastores.values() for path in each.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("vmware")
    [site] = (install().parent / "lib").glob("python3.*/site-packages")
    write_wsdl(directory / "wsdl", site / "oslo_vmware" / "wsdl" / "7.0")
    # Of several cookies glance_store sends back one.
    with Vcenter(directory / "vcenter", routed=False, wsdl=directory / "wsdl") as vcenter:
        yield Place(directory, vcenter)


@pytest.fixture(scope="module")
def theirs(place: Place) -> Iterator[Library]:
    with place.library(on_storelib=False, named=False) as library:
        yield library


@pytest.fixture(scope="module", params=[False, True], ids=["single", "named"])
def ours(place: Place, request: pytest.FixtureRequest) -> Iterator[Library]:
    with place.library(on_storelib=True, named=request.param) as library:
        yield library


class Side:
    """One of them; its store has a name or none."""

    def __init__(self, library: Library, name: str | None) -> None:
        self.library, self.name = library, name

    def add(self, image_id: str, path: Path, size: int) -> Any:
        return self.library.add(self.name or "vsphere", image_id, path, size)

    def check(self, uri: str, data: bytes) -> None:
        found = self.library.get(self.name, uri)
        assert found == [hashlib.sha256(data).hexdigest(), len(data), len(data)]
        assert self.library.size(self.name, uri) == len(data)
        if self.library.on_storelib:
            part = data[1_001:50_000]
            assert self.library.get(self.name, uri, 1_001, len(part))[:2] == [
                hashlib.sha256(part).hexdigest(),
                len(part),
            ]

    def is_gone(self, uri: str) -> None:
        with pytest.raises(LibraryError) as caught:
            self.library.get(self.name, uri)
        assert caught.value.kind == "NotFound"


@pytest.fixture
def sides(theirs: Library, ours: Library, request: pytest.FixtureRequest) -> tuple[Side, Side]:
    named = "named" in request.node.callspec.id.split("-")
    return Side(theirs, None), Side(ours, NAME if named else None)


@pytest.mark.parametrize("data", [LARGE, SMALL], ids=["large", "small"])
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("written_by", ["glance_store", "storelib"])
def test_what_one_writes_the_other_reads_and_deletes(
    place: Place, sides: tuple[Side, Side], tmp_path: Path, written_by: str, known: bool, data: bytes
) -> None:
    writer, reader = sides if written_by == "glance_store" else sides[::-1]
    source = tmp_path / "source"
    source.write_bytes(data)
    image_id = str(uuid.uuid4())
    uri, size, md5, multihash, metadata = writer.add(image_id, source, len(data) if known else 0)
    assert (size, md5) == (len(data), hashlib.md5(data).hexdigest())
    assert (multihash, metadata) == (hashlib.sha256(data).hexdigest(), {"store": NAME} if writer.name else {})
    path, _, query = uri.partition("?")
    assert path == f"vsphere://localhost/folder/images of/all/{image_id}"
    if reader.name or writer.name:
        # By this Glance finds the store of a URI that names none.
        assert path.startswith(f"{sides[1].library.prefix(NAME)}/")
    for side in sides:
        side.check(uri, data)
        # Either writes its query in an order of its own.
        side.check(f"{path}?{'&'.join(reversed(query.split('&')))}", data)
    reader.library.delete(reader.name, uri)
    for side in sides:
        side.is_gone(uri)
    assert place.files() == []


@pytest.fixture
def glance(place: Place, tmp_path: Path) -> Iterator[Glance]:
    lines = {name: value for name, value in place.options.items() if name != "vmware_datastores"}
    # One line is enough for a Glance; its configuration here has each option once.
    single = {**lines, "vmware_datastores": f"{PLAIN}:{SECOND}", "stores": "vmware", "default_store": "vsphere"}
    options = {"DEFAULT": {"enabled_backends": ""}, "glance_store": single}
    with Glance(tmp_path / "glance", {"unused": ("file", {})}, options=options, first=place.first) as server:
        yield server


def test_a_glance_on_one_and_the_other_in_turn(place: Place, glance: Glance) -> None:
    with requests.Session() as session:
        session.trust_env = False
        session.headers.update({"X-Roles": "admin", "X-Tenant-Id": "project", "X-User-Id": "user"})
        session.headers["X-Identity-Status"] = "Confirmed"

        def ask(method: str, path: str, expected: int, **arguments: Any) -> requests.Response:
            response = session.request(method, f"{glance.url}{path}", timeout=60, **arguments)
            assert response.status_code == expected, response.text
            return response

        def upload() -> str:
            body = {"name": "image", "disk_format": "raw", "container_format": "bare"}
            image_id = str(ask("POST", "/images", 201, json=body).json()["id"])
            headers = {"Content-Type": "application/octet-stream"}
            ask("PUT", f"/images/{image_id}/file", 204, data=LARGE, headers=headers)
            return image_id

        images: list[str] = []
        for on_storelib, count in ((False, 1), (True, 1), (False, 0)):
            with running(glance, on_storelib):
                for image_id in images:
                    assert ask("GET", f"/images/{image_id}/file", 200).content == LARGE
                    ask("DELETE", f"/images/{image_id}", 204)
                assert place.files() == []
                images = [upload() for _ in range(count)]


@contextlib.contextmanager
def running(glance: Glance, on_storelib: bool) -> Iterator[None]:
    glance.start(on_storelib=on_storelib)
    try:
        yield
    finally:
        glance.stop()
