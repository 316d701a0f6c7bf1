# SPDX-License-Identifier: Apache-2.0
"""glance_store and storelib in its place on the same files, S3, Swift and RBD: what one wrote is the other's.

First a real Glance behind Keystone, asked by the commands that people have, which runs on them in turn. Then the
functions that Glance calls, with every form of URI: each row of the table in docs/from-glance-store.rst is one case.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
from servers.clients import Clients
from servers.glance import Glance
from servers.glance_backends import BUCKET, CONTAINER, OWN, POOL, SEGMENT, Backends
from servers.glance_library import Library, LibraryError
from servers.nginx import Nginx

rados, rbd = (pytest.importorskip(name, reason=f"needs Debian's python3-{name}") for name in ("rados", "rbd"))

#: Six segments in Swift: whole ones, since glance_store cannot send any other of a known size; two parts in S3, several
#: objects in RBD.
LARGE = hashlib.shake_128(b"large").digest(6 * SEGMENT)
SMALL = hashlib.shake_128(b"small").digest(100_001)
#: glance_store neither encodes a path nor decodes one.
STRANGE = "my %41 im+ages"
#: Of the Glance; ``own`` has the images in the accounts of their owners.
STORES = ("files", "objects", "swift", "own", "ceph")
#: Seconds that anything may take.
TIMEOUT = 120.0


class Servers(Backends):
    """The servers, and what is left in them."""

    def stores(self) -> dict[str, tuple[str, dict[str, object]]]:
        """Those of a Glance."""
        return {
            "files": ("file", {"filesystem_store_datadir": self.directory / "glance" / "files"}),
            "objects": ("s3", self.s3_options()),
            "swift": ("swift", self.swift_options(**self.accounts())),
            "own": ("swift", self.swift_options(**OWN)),
            "ceph": ("rbd", self.rbd_options()),
            "web": ("http", {}),
        }

    def forms(self) -> dict[str, tuple[str, dict[str, object]]]:
        """One for each form of URIs."""
        # The one directory has a default, which glance_store takes for a second way of saying it.
        several: dict[str, object] = {"filesystem_store_datadir": ""}
        several["filesystem_store_datadirs"] = [f"{self.directory}/{place}" for place in ("first:2", "second:1")]
        tls = {"s3_store_host": self.gateway.https_endpoint, "s3_store_cacert": self.gateway.certificate}
        return {
            "files": ("file", {"filesystem_store_datadir": self.directory / "files"}),
            "strange": ("file", {"filesystem_store_datadir": self.directory / STRANGE}),
            "several": ("file", several),
            "s3": ("s3", self.s3_options()),
            "s3tls": ("s3", self.s3_options(**tls)),
            "swift": ("swift", self.swift_options()),
            "spaced": ("swift", self.swift_options(swift_store_container="my images")),
            "seeded": ("swift", self.swift_options(swift_store_multiple_containers_seed=2)),
            "byref": ("swift", self.swift_options(**self.accounts())),
            "own": ("swift", self.swift_options(**OWN)),
            "rbd": ("rbd", self.rbd_options()),
        }

    def leftovers(self) -> list[str]:
        """The names of everything that is in any of the stores."""
        glance = self.directory / "glance"
        found = [path.name for name in ("files", "staging") for path in (glance / name).iterdir()]
        found += [each["Key"] for each in self.s3.list_objects_v2(Bucket=BUCKET).get("Contents", ())]
        found += [each["Key"] for each in self.s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", ())]
        with (
            rados.Rados(conffile=str(self.ceph.conf_file), rados_id="admin") as cluster,
            contextlib.closing(cluster.open_ioctx(POOL)) as ioctx,
        ):
            found += rbd.RBD().list(ioctx)
            found += [each["name"] for each in rbd.RBD().trash_list(ioctx)]
        for user, project in (("swift", "service"), ("demo", "demo")):
            headers = {"X-Auth-Token": self.keystone.token(user, project)[0], "Accept": "application/json"}
            account = f"{self.swift.url}/v1/AUTH_{self.keystone.projects[project]}"
            for container in requests.get(account, headers=headers, timeout=TIMEOUT).json():
                listed = requests.get(f"{account}/{container['name']}", headers=headers, timeout=TIMEOUT).json()
                found += [each["name"] for each in listed]
        return found

    def readers(self, image_id: str) -> str:
        """Who may read the container of an image in the account of ``demo``."""
        token = self.keystone.token("demo", "demo")[0]
        account = f"{self.swift.url}/v1/AUTH_{self.keystone.projects['demo']}"
        url = f"{account}/{CONTAINER}_{image_id}"
        response = requests.head(url, headers={"X-Auth-Token": token}, timeout=TIMEOUT)
        assert response.status_code == 204
        return response.headers.get("X-Container-Read", "")


class Cloud:
    """What ``demo`` does with the commands, and by HTTP where they cannot."""

    def __init__(self, servers: Servers, glance: Glance, clients: Clients, web: str) -> None:
        self.glance, self.clients = glance, clients
        #: A URL from which images may be taken.
        self.web = web
        self.session = requests.Session()
        self.session.trust_env = False
        # Copies and deletes in single stores are for administrators; theirs are images of this project like all others.
        servers.keystone.grant("demo", "demo", "admin")
        token = servers.keystone.token("demo", "demo")[0]
        self.session.headers["X-Auth-Token"] = token
        self._environments = {
            "openstack": {"OS_AUTH_TYPE": "admin_token", "OS_TOKEN": token, "OS_ENDPOINT": glance.url},
            "glance": {"OS_IMAGE_URL": glance.url.removesuffix("/v2"), "OS_AUTH_TOKEN": token},
        }

    def run(self, *command: str, data: Path | None = None) -> Any:
        """One command, which must succeed."""
        response = self.clients.run(*command, environment=self._environments[command[0]], data=data)
        assert response.code == 0, (response, self.log())
        return response

    def ask(self, method: str, path: str, *expected: int, **arguments: Any) -> Any:
        """One request; returns the response, or what its JSON says."""
        response = self.session.request(method, f"{self.glance.url}{path}", timeout=TIMEOUT, **arguments)
        assert response.status_code in (expected or (200,)), (response.status_code, response.text, self.log())
        is_json = response.headers.get("Content-Type", "").startswith("application/json")
        return response.json() if is_json and response.text else response

    def log(self) -> str:
        return (self.glance.directory / "glance-api.log").read_text()[-4000:]

    def image(self, image_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("GET", f"/images/{image_id}")
        return found

    def create(self) -> str:
        body = {"name": "image", "disk_format": "raw", "container_format": "bare", "visibility": "shared"}
        return str(self.ask("POST", "/images", 201, json=body)["id"])

    def upload(self, store: str, data: bytes = LARGE) -> str:
        image_id = self.create()
        headers = {"Content-Type": "application/octet-stream", "X-Image-Meta-Store": store}
        self.ask("PUT", f"/images/{image_id}/file", 204, data=data, headers=headers)
        self.check(image_id, data, store)
        return image_id

    def check(self, image_id: str, data: bytes, *stores: str) -> None:
        """That Glance knows the digests, and where the image is."""
        found = self.image(image_id)
        assert (found["status"], found["size"]) == ("active", len(data))
        assert found["os_hash_value"] == hashlib.sha512(data).hexdigest()
        assert found["checksum"] == hashlib.md5(data).hexdigest()
        assert set(found["stores"].split(",")) == set(stores)

    def bring_in(self, image_id: str, stores: tuple[str, ...], **method: Any) -> None:
        body: dict[str, Any] = {"method": method, "stores": list(stores)}
        # Glance gives an image free for the next task a moment after it says that the one before has ended.
        end = time.monotonic() + TIMEOUT
        while self.ask("POST", f"/images/{image_id}/import", 202, 409, json=body).status_code == 409:
            assert time.monotonic() < end, self.log()
            time.sleep(0.1)
        self.wait(image_id, stores)

    def wait(self, image_id: str, stores: tuple[str, ...]) -> None:
        """Until the image is in these stores at least, and its tasks have ended."""
        end = time.monotonic() + TIMEOUT
        while True:
            there = set(self.image(image_id).get("stores", "").split(","))
            tasks = self.ask("GET", f"/images/{image_id}/tasks")["tasks"]
            if set(stores) <= there and all(task["status"] == "success" for task in tasks):
                return
            assert all(task["status"] != "failure" for task in tasks), (tasks, self.log())
            assert time.monotonic() < end, (there, tasks, self.log())
            time.sleep(0.1)

    def read(self, image_id: str) -> bytes:
        return bytes(self.ask("GET", f"/images/{image_id}/file").content)

    def part(self, image_id: str, start: int, stop: int) -> bytes:
        response = self.ask("GET", f"/images/{image_id}/file", 206, headers={"Range": f"bytes={start}-{stop - 1}"})
        return bytes(response.content)

    def delete(self, image_id: str) -> None:
        self.ask("DELETE", f"/images/{image_id}", 204)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with contextlib.ExitStack() as stack:
        yield Servers(tmp_path_factory.mktemp("backends"), stack)


# -- A Glance, on one and the other in turn ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cloud(servers: Servers) -> Iterator[Cloud]:
    directories = {name: servers.directory / name for name in ("nginx", "clients", "glance")}
    for path in directories.values():
        path.mkdir()
    with contextlib.ExitStack() as stack:
        nginx = stack.enter_context(Nginx(directories["nginx"]))
        clients = stack.enter_context(Clients(directories["clients"]))
        place = urllib.parse.urlsplit(nginx.put("image", SMALL))
        importable = (str(place.hostname), int(place.port or 0))
        glance = Glance(directories["glance"], servers.stores(), keystone=servers.keystone, importable=importable)
        yield Cloud(servers, stack.enter_context(glance), clients, nginx.url("/image"))


def use_everything(cloud: Cloud, directory: Path, *, on_storelib: bool) -> list[str]:
    """What the commands do, and Glance's own ways of getting an image; returns the images, which stay."""
    source, out = directory / "source", directory / "out"
    source.write_bytes(LARGE)
    made = cloud.run(
        *("openstack", "image", "create", "--disk-format", "raw", "--container-format", "bare", "--file", str(source)),
        *("--format", "json", "by-command"),
    ).document
    cloud.check(made["id"], LARGE, "files")
    cloud.run("openstack", "image", "save", "--file", str(out), made["id"])
    assert out.read_bytes() == LARGE
    other = cloud.run(
        *("glance", "image-create", "--disk-format", "raw", "--container-format", "bare", "--name", "piped"),
        *("--store", "ceph"),
        data=source,
    ).fields
    cloud.run("glance", "image-download", "--file", str(out), other["id"])
    assert out.read_bytes() == LARGE
    cloud.check(other["id"], LARGE, "ceph")
    staged = cloud.create()
    octets = {"Content-Type": "application/octet-stream"}
    # Of unknown size.
    cloud.ask("PUT", f"/images/{staged}/stage", 204, data=iter([LARGE[:70_001], LARGE[70_001:]]), headers=octets)
    cloud.bring_in(staged, ("objects", "swift"), name="glance-direct")
    cloud.check(staged, LARGE, "objects", "swift")
    cloud.ask("DELETE", f"/stores/objects/{staged}", 204)
    assert cloud.image(staged)["stores"] == "swift"
    fetched = cloud.create()
    cloud.bring_in(fetched, ("ceph", "files"), name="web-download", uri=cloud.web)
    cloud.check(fetched, SMALL, "ceph", "files")
    linked = cloud.create()
    digests = {"os_hash_algo": "sha512", "os_hash_value": hashlib.sha512(SMALL).hexdigest()}
    location = {"url": cloud.web, "validation_data": digests}
    cloud.ask("POST", f"/images/{linked}/locations", 202, json=location)
    end = time.monotonic() + TIMEOUT
    while cloud.image(linked)["status"] != "active":
        assert time.monotonic() < end, cloud.log()
        time.sleep(0.1)
    assert cloud.read(linked) == SMALL
    if on_storelib:
        # glance_store has no ranges for these.
        assert cloud.part(other["id"], 1_000_001, 3_000_000) == LARGE[1_000_001:3_000_000]
        assert cloud.part(linked, 5, 50_000) == SMALL[5:50_000]
    return [made["id"], other["id"], staged, fetched, linked]


def test_images_of_one_are_the_other_s_and_nothing_stays(servers: Servers, cloud: Cloud, tmp_path: Path) -> None:
    """glance_store writes, storelib reads, copies, deletes and writes, and glance_store does the same with that."""
    cloud.glance.start(on_storelib=False)
    old = {store: cloud.upload(store) for store in STORES}
    small = {store: cloud.upload(store, SMALL) for store in ("swift", "objects")}
    used = use_everything(cloud, tmp_path, on_storelib=False)
    cloud.glance.stop()

    cloud.glance.start(on_storelib=True, by_module=True)
    for image_id in (*used[:3], *old.values()):
        assert cloud.read(image_id) == LARGE
    for image_id in old.values():
        assert cloud.part(image_id, 2 * SEGMENT - 1, 4 * SEGMENT + 1) == LARGE[2 * SEGMENT - 1 : 4 * SEGMENT + 1]
    for image_id in small.values():
        assert cloud.read(image_id) == SMALL
        cloud.delete(image_id)
    for store, image_id in old.items():
        target = "objects" if store != "objects" else "ceph"
        cloud.bring_in(image_id, (target,), name="copy-image")
    # Sharing says who may read the container; the other one has to see that, too.
    alt = servers.keystone.projects["alt_demo"]
    cloud.run("glance", "member-create", old["own"], alt)
    assert servers.readers(old["own"]) == f"{alt}:*"
    new = {store: cloud.upload(store) for store in STORES}
    used += use_everything(cloud, tmp_path, on_storelib=True)
    # Of each store one with a copy, and those that commands made.
    for image_id in (old.pop("files"), old.pop("swift"), old.pop("objects"), used.pop(0), used.pop(0)):
        cloud.delete(image_id)
    cloud.glance.stop()

    cloud.glance.start(on_storelib=False)
    for image_id in (*new.values(), *old.values(), *used[3:6]):
        assert cloud.read(image_id) == LARGE
    assert cloud.part(new["files"], 5, 1_000_000) == LARGE[5:1_000_000]
    # glance_store copies nothing out of its own accounts: Glance tells it of no user then.
    for store in ("files", "objects", "swift", "ceph"):
        target = "objects" if store != "objects" else "ceph"
        cloud.bring_in(new[store], (target,), name="copy-image")
    cloud.run("glance", "member-delete", old["own"], alt)
    assert servers.readers(old["own"]) == ""
    for image_id in (*new.values(), *old.values(), *used):
        cloud.delete(image_id)
    assert servers.leftovers() == []


# -- URIs of every form ------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """The same stores for both; ``files`` has what is added."""

    theirs: Library
    ours: Library
    directory: Path

    def file(self, data: bytes) -> Path:
        path = self.directory / f"{len(data)}.source"
        if not path.exists():
            path.write_bytes(data)
        return path


@pytest.fixture(scope="module")
def pair(servers: Servers) -> Iterator[Pair]:
    stores = servers.forms()
    with (
        Library(servers.directory, stores, on_storelib=False) as theirs,
        Library(servers.directory, stores, on_storelib=True) as ours,
    ):
        yield Pair(theirs, ours, servers.directory)


@pytest.fixture(scope="module")
def single(servers: Servers) -> Iterator[Pair]:
    """Stores without names."""
    found = servers.forms()
    stores = {name: found[name] for name in ("files", "s3", "swift", "rbd")}
    with (
        Library(servers.directory, stores, on_storelib=False, named=False) as theirs,
        Library(servers.directory, stores, on_storelib=True, named=False) as ours,
    ):
        yield Pair(theirs, ours, servers.directory)


@pytest.fixture(scope="module")
def user(servers: Servers) -> dict[str, Any]:
    return servers.user()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check(library: Library, store: str | None, uri: str, data: bytes, context: Any) -> None:
    """Read all of it, its size, and where the library can, parts."""
    digest, count, size = library.get(store, uri, context=context)
    assert (digest, count, size) == (sha256(data), len(data), len(data))
    assert library.size(store, uri, context=context) == len(data)
    if library.on_storelib:
        start, length = len(data) // 3, len(data) // 2
        part = data[start : start + length]
        assert library.get(store, uri, start, length, context=context) == [sha256(part), length, length]
        rest = data[start:]
        assert library.get(store, uri, start, context=context)[:2] == [sha256(rest), len(rest)]


def is_gone(library: Library, store: str | None, uri: str, context: Any) -> None:
    with pytest.raises(LibraryError) as caught:
        library.get(store, uri, context=context)
    assert caught.value.kind == "NotFound"


CASES = [
    *((store, LARGE, True) for store in ("files", "strange", "several", "s3", "s3tls", "swift", "byref", "own", "rbd")),
    # Small ones in the other stores: see those without names, and the older forms.
    *((store, SMALL, True) for store in ("seeded", "spaced")),
    *((store, LARGE, False) for store in ("s3", "swift", "rbd")),
]


@pytest.mark.parametrize(
    ("store", "data", "known"),
    CASES,
    ids=[
        f"{store}-{'large' if data is LARGE else 'small'}{'' if known else '-unknown'}" for store, data, known in CASES
    ],
)
@pytest.mark.parametrize("written_by", ["glance_store", "storelib"])
def test_what_one_writes_the_other_reads_and_deletes(
    pair: Pair, user: dict[str, Any], written_by: str, store: str, data: bytes, known: bool
) -> None:
    writer, reader = (pair.theirs, pair.ours) if written_by == "glance_store" else (pair.ours, pair.theirs)
    context = user if store == "own" else None
    image_id = str(uuid.uuid4())
    added = writer.add(store, image_id, pair.file(data), len(data) if known else 0, context)
    uri, size, md5, multihash, metadata = added
    assert (size, md5) == (len(data), hashlib.md5(data).hexdigest())
    assert (multihash, metadata) == (sha256(data), {"store": store})
    for library in (writer, reader):
        check(library, store, uri, data, context)
    # Glance finds by this which store an older URI is of; glance_store's own of accounts of users is none.
    for library in (writer, reader) if store not in ("own", "several") else ():
        prefix = library.prefix(store)
        assert prefix is not None
        assert uri.startswith(prefix) or (store == "seeded" and library is pair.theirs)
    reader.delete(store, uri, context=context)
    for library in (writer, reader):
        is_gone(library, store, uri, context)
    # Nothing of it is left either: the id is free.
    again = reader.add(store, image_id, pair.file(SMALL), len(SMALL), context)[0]
    writer.delete(store, again, context=context)


@pytest.mark.parametrize("driver", ["file", "s3", "swift", "rbd"])
@pytest.mark.parametrize("written_by", ["glance_store", "storelib"])
def test_the_same_of_stores_without_names(single: Pair, driver: str, written_by: str) -> None:
    writer, reader = (single.theirs, single.ours) if written_by == "glance_store" else (single.ours, single.theirs)
    scheme = {"swift": "swift+http"}.get(driver, driver)
    uri, size, _, _, metadata = writer.add(scheme, str(uuid.uuid4()), single.file(SMALL), len(SMALL))
    assert (size, metadata) == (len(SMALL), {})
    check(reader, None, uri, SMALL, None)
    reader.delete(None, uri)
    is_gone(writer, None, uri, None)


def _moved(pair: Pair, uri: str) -> str:
    """The same image in the directory that is not written to first."""
    path = Path(uri.removeprefix("file://"))
    target = pair.directory / "second" / path.name
    shutil.move(path, target)
    return f"file://{target}"


def _with_credentials(user: str, key: str) -> Callable[[Pair, str], str]:
    def change(pair: Pair, uri: str) -> str:
        scheme, _, rest = uri.partition("://")
        return f"{scheme}://{user}:{key}@{rest.rpartition('@')[2]}"

    return change


def _plain_rbd(pair: Pair, uri: str) -> str:
    return f"rbd://{uri.split('/')[4]}"


#: URIs that older versions wrote, or that mean the same.
OLDER: dict[str, tuple[str, Callable[[Pair, str], str]]] = {
    "another scheme of files": ("files", lambda pair, uri: uri.replace("file://", "filesystem://")),
    "in another directory": ("several", _moved),
    "S3 with credentials": ("s3", _with_credentials("ACCESS", "SEC/RET+%2F")),
    "another scheme of S3": ("s3", lambda pair, uri: uri.replace("s3://", "s3+http://")),
    "Swift with quoted credentials": ("swift", _with_credentials("service%3Aswift", "swiftpass")),
    "Swift with plain credentials": ("swift", _with_credentials("service:swift", "swiftpass")),
    "RBD by name": ("rbd", _plain_rbd),
}


@pytest.mark.parametrize("form", OLDER)
@pytest.mark.parametrize("written_by", ["glance_store", "storelib"])
def test_older_forms_are_read_by_both(pair: Pair, form: str, written_by: str) -> None:
    store, change = OLDER[form]
    writer = pair.theirs if written_by == "glance_store" else pair.ours
    uri = writer.add(store, str(uuid.uuid4()), pair.file(SMALL), len(SMALL))[0]
    older = change(pair, uri)
    for library in pair[:2]:
        check(library, store, older, SMALL, None)
    pair.ours.delete(store, older)
    is_gone(pair.ours, store, older, None)


def test_an_rbd_image_without_a_snapshot(servers: Servers, pair: Pair) -> None:
    """As Glance wrote them to clusters that could not make any; the URI is the name."""
    names = [str(uuid.uuid4()) for _ in range(2)]
    with (
        rados.Rados(conffile=str(servers.ceph.conf_file), rados_id="admin") as cluster,
        contextlib.closing(cluster.open_ioctx(POOL)) as ioctx,
    ):
        for name in names:
            rbd.RBD().create(ioctx, name, len(SMALL))
            with rbd.Image(ioctx, name) as image:
                image.write(SMALL, 0)
    for name, deleting in zip(names, pair[:2], strict=True):
        for library in pair[:2]:
            check(library, "rbd", f"rbd://{name}", SMALL, None)
        deleting.delete("rbd", f"rbd://{name}")
        is_gone(pair.ours, "rbd", f"rbd://{name}", None)


def test_names_of_another_place_are_not_found(servers: Servers, pair: Pair) -> None:
    """Where glance_store reads what the URI says, whatever it says, in the bucket or cluster that it has."""
    foreign = {
        "files": f"file://{servers.directory}/elsewhere",
        "s3": "s3://another.example.com/images/7",
        "swift": "swift+http://service%3Aswift:swiftpass@another.example.com/v3/glance/7",
        "byref": "swift+config://unknown/glance/7",
        "rbd": f"rbd://{uuid.uuid4()}/images/7/snap",
    }
    (servers.directory / "elsewhere").write_bytes(SMALL)
    for store, uri in foreign.items():
        for ask in (pair.ours.get, pair.ours.size, pair.ours.delete):
            with pytest.raises(LibraryError) as caught:
                ask(store, uri)
            assert caught.value.kind == "NotFound", (store, caught.value)
            assert "swiftpass" not in str(caught.value)
    assert (servers.directory / "elsewhere").exists()
    assert urllib.parse.urlsplit(foreign["s3"]).scheme == "s3"
