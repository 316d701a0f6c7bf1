# SPDX-License-Identifier: Apache-2.0
"""The catalogue of a real Glance taken into the database of storelib's own API, which then serves the same."""

from __future__ import annotations

import json
import os
import shutil
import time
from urllib.parse import quote, unquote

import pytest
import requests
from servers.api import Deployment
from servers.glance import Glance
from servers.mariadb import MariaDB
from servers.postgresql import PostgreSQL

DATA = os.urandom(100_000)
ADMIN = {
    "X-Roles": "admin,member,reader",
    "X-Tenant-Id": "project",
    "X-User-Id": "user",
    "X-Identity-Status": "Confirmed",
}
KEY = "0123456789abcdef0123456789abcdef"
INI = """
[storelib]
stores = fast:file, slow:file
default_store = fast
[fast]
filesystem_store_datadir = {directory}/fast
[slow]
filesystem_store_datadir = {directory}/slow
[database]
connection = {connection}
sqlite_synchronous = false
[api]
show_multiple_locations = true
"""


class Client:
    """Asks one of the two."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers.update(ADMIN)

    def ask(self, method, path, expected, **arguments):
        response = self.session.request(method, f"{self.url}{path}", timeout=60, **arguments)
        assert response.status_code == expected, (path, response.status_code, response.text)
        return response

    def get(self, path):
        return self.ask("GET", path, 200).json()

    def create(self, **values):
        body = {"name": "image", "disk_format": "raw", "container_format": "bare", **values}
        return self.ask("POST", "/v2/images", 201, json=body).json()["id"]

    def send(self, image_id, data=DATA, to="file"):
        headers = {"Content-Type": "application/octet-stream"}
        self.ask("PUT", f"/v2/images/{image_id}/{to}", 204, data=data, headers=headers)

    def patch(self, image_id, *operations):
        headers = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
        self.ask("PATCH", f"/v2/images/{image_id}", 200, data=json.dumps(operations), headers=headers)

    def finish(self, image_id):
        end = time.monotonic() + 60
        while any(
            task["status"] in ("pending", "processing") for task in self.get(f"/v2/images/{image_id}/tasks")["tasks"]
        ):
            assert time.monotonic() < end
            time.sleep(0.1)


def fill(glance: Client) -> dict[str, str]:
    """Images of all kinds; returns the ids of those that are told apart."""
    made = {"plain": glance.create(name="plain", min_disk=3, min_ram=512)}
    glance.send(made["plain"])
    made["many"] = glance.create(
        name="Ümläut \u2603",
        visibility="community",
        tags=["b", "a", "ü"],
        os_hidden=True,
        protected=True,
        hw_machine_type="q35",
        description="two\nlines",
        owner="another",
    )
    glance.send(made["many"], DATA[:1])
    made["public"] = glance.create(visibility="public", name="public")
    glance.send(made["public"], DATA[:70_000])
    glance.ask("POST", f"/v2/images/{made['public']}/actions/deactivate", 204)
    made["shared"] = glance.create(visibility="shared", name="shared")
    glance.send(made["shared"])
    for member, status in (("one", "accepted"), ("two", "rejected"), ("three", "pending"), ("gone", "pending")):
        glance.ask("POST", f"/v2/images/{made['shared']}/members", 200, json={"member": member})
        headers = {"X-Tenant-Id": member, "X-Roles": "member,reader"}
        if status != "pending":
            path = f"/v2/images/{made['shared']}/members/{member}"
            glance.ask("PUT", path, 200, json={"status": status}, headers=headers)
    glance.ask("DELETE", f"/v2/images/{made['shared']}/members/gone", 204)
    made["private"] = glance.create(visibility="private", name=None)
    glance.send(made["private"], to="stage")
    body = {"method": {"name": "glance-direct"}, "stores": ["slow", "fast"]}
    glance.ask("POST", f"/v2/images/{made['private']}/import", 202, json=body)
    glance.finish(made["private"])
    made["empty"] = glance.create(name="empty")
    glance.send(made["empty"], b"")
    made["queued"] = glance.create(name="queued", disk_format=None, container_format=None)
    made["deleted"] = glance.create(name="deleted")
    glance.send(made["deleted"])
    glance.ask("DELETE", f"/v2/images/{made['deleted']}", 204)
    made["staged"] = glance.create(name="staged")
    glance.send(made["staged"], to="stage")
    return made


class Pair:
    """A Glance with a catalogue, and a storelib on the same stores with an empty database."""

    def __init__(self, glance: Glance, deployment: Deployment, made: dict[str, str], whole: bool) -> None:
        self.glance, self.deployment, self.made = glance, deployment, made
        #: Whether it has all the definitions that Glance brings.
        self.whole = whole
        self.theirs = Client(glance.url.removesuffix("/v2"))
        #: What the first run told, and a dry one before it.
        self.planned: list[dict[str, object]] = []
        self.taken: list[dict[str, object]] = []

    def take(self, *options: str, code: int = 9):
        response = self.deployment.run(
            "db", "import-glance", "--glance-config", self.glance.config, *options, timeout=120
        )
        assert response.code == code, (response.out, response.err)
        return response.documents


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "mariadb"])
def pair(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "sqlite":
        yield from _pair(directory, None, None, {})
    elif request.param == "postgresql":
        with PostgreSQL() as server:
            url = server.new_database().replace("postgresql:", "postgresql+psycopg:")
            # A Glance encrypts all locations, or none.
            yield from _pair(directory, url, server.new_database(), {"metadata_encryption_key": KEY})
    else:
        with MariaDB() as server:
            url = server.new_database().replace("mysql:", "mysql+pymysql:") + "?charset=utf8mb4"
            yield from _pair(directory, url, server.new_database(), {})


def _pair(directory, url, ours, options):
    stores = {name: ("file", {"filesystem_store_datadir": directory / name}) for name in ("fast", "slow")}
    database = {"database": {"connection": url}} if url else {}
    with Glance(directory, stores, options={"DEFAULT": options, **database}) as glance:
        # Once all of them, else some.
        whole = ours is None
        chosen = sorted(glance.metadefs.glob("*.json" if whole else "compute-[h-q]*.json"))
        (directory / "metadefs").mkdir()
        for file in chosen:
            shutil.copy(file, directory / "metadefs")
        glance.manage("db_load_metadefs", str(directory / "metadefs"))
        glance.start(on_storelib=True)
        made = fill(Client(glance.url.removesuffix("/v2")))
        deployment = Deployment(directory, ours, INI)
        try:
            assert deployment.run("db", "sync").code == 0
            pair = Pair(glance, deployment, made, whole)
            pair.planned, pair.taken = pair.take("--dry-run"), pair.take()
            yield pair
        finally:
            deployment.close()


#: What storelib tells besides: times that Glance has not set, links, names, and whole tasks in their list.
MORE = {"updated_at", "first", "schema", "name"} | {"image_id", "input", "message", "request_id", "result", "user_id"}


def differences(theirs, ours, place=""):
    """Every value of Glance's that storelib does not give, and every one that only storelib gives."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in theirs:
            yield from differences(theirs[name], ours.get(name), f"{place}/{name}")
        if more := ours.keys() - theirs.keys() - MORE:
            yield place, "only here", sorted(more)
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        for one, other in zip(by_name(theirs), by_name(ours), strict=True):
            yield from differences(one, other, f"{place}[]")
    elif theirs != ours and not (place.rpartition("/")[2] in ("self", "schema") and same_path(theirs, ours)):
        yield place, theirs, ours


def same_path(theirs, ours):
    """Glance writes colons as they are, and one path without the slash before it."""
    return theirs.removeprefix("/") == unquote(ours).removeprefix("/")


def by_name(documents):
    """In one order, which Glance leaves to its database."""
    keys = ("name", "id", "member_id", "namespace")
    return sorted(
        documents,
        key=lambda each: next((each[key] for key in keys if key in each), "") if isinstance(each, dict) else each,
    )


def paths(client, made):
    """Of all that there is, as Glance tells it."""
    yield from ("/v2/metadefs/resource_types", "/v2/metadefs/namespaces?limit=100", "/v2/tasks")
    for task in client.get("/v2/tasks")["tasks"]:
        yield f"/v2/tasks/{task['id']}"
    for name, image_id in made.items():
        if name not in ("deleted", "staged"):
            yield f"/v2/images/{image_id}"
    yield f"/v2/images/{made['shared']}/members"
    for member in client.get(f"/v2/images/{made['shared']}/members")["members"]:
        yield f"/v2/images/{made['shared']}/members/{member['member_id']}"
    for namespace in client.get("/v2/metadefs/namespaces?limit=100")["namespaces"]:
        path = f"/v2/metadefs/namespaces/{namespace['namespace']}"
        yield path
        for kind in ("objects", "properties", "tags", "resource_types"):
            found = client.get(f"{path}/{kind}")
            yield f"{path}/{kind}"
            for each in found.get(kind, ()):
                yield f"{path}/{kind}/{quote(each if kind == 'properties' else each['name'], safe='')}"
        for association in namespace.get("resource_type_associations", ()):
            yield f"{path}?resource_type={association['name']}"


def test_what_cannot_be_taken_is_named_and_a_dry_run_tells_the_same(pair):
    [refused] = [each for each in pair.taken if "id" in each]
    assert (refused["id"], refused["state"]) == (pair.made["staged"], "refused")
    assert [{**each, "dry_run": True} if "new" in each else each for each in pair.taken] == pair.planned
    counts = {each["kind"]: (each["new"], each["refused"]) for each in pair.taken if "new" in each}
    assert counts["image"] == (len(pair.made) - 2, 1)


def test_what_is_served_is_equal(pair):
    ours, theirs = Client(pair.deployment.serve().url), pair.theirs
    asked = list(paths(theirs, pair.made))
    assert len(asked) > (350 if pair.whole else 80)
    wrong = [(path, *each) for path in asked for each in differences(theirs.get(path), ours.get(path))]
    assert not wrong
    for name in ("plain", "many", "shared", "private", "empty"):
        path = f"/v2/images/{pair.made[name]}/file"
        data, other = (client.session.get(client.url + path, timeout=60) for client in (theirs, ours))
        assert data.status_code in (200, 204)
        assert other.status_code in (200, 204)
        assert data.content == other.content
        assert data.headers.get("Content-MD5") == other.headers.get("Content-MD5")
    for client in (theirs, ours):
        client.ask("GET", f"/v2/images/{pair.made['deleted']}", 404)


def test_database_and_stores_agree(pair):
    for server in pair.deployment.servers:
        server.stop()
    # What is staged is Glance's, in a place of its own.
    assert pair.deployment.disagreements(timeout=120) == []


def test_a_later_run_takes_what_happened_there_meanwhile(pair):
    made, theirs = pair.made, pair.theirs
    new = theirs.create(name="new")
    theirs.send(new)
    theirs.ask("DELETE", f"/v2/images/{made['plain']}", 204)
    theirs.patch(made["shared"], {"op": "replace", "path": "/name", "value": "renamed"})
    theirs.ask("DELETE", f"/v2/images/{made['shared']}/members/two", 204)
    theirs.ask("POST", f"/v2/images/{made['public']}/actions/reactivate", 204)
    tags = "/v2/metadefs/namespaces/OS::Compute::Quota/tags"
    theirs.ask("POST", f"{tags}/new", 201)
    found = pair.take()
    counts = {each["kind"]: each for each in found if "new" in each}
    states = ("new", "changed", "deleted", "kept", "refused")
    assert [counts["image"][state] for state in states] == [1, 2, 1, 0, 1]
    assert [counts["namespace"][state] for state in states] == [0, 1, 0, 0, 0]
    assert {each["id"]: each["state"] for each in found if "id" in each} == {
        made["plain"]: "deleted",
        made["staged"]: "refused",
    }
    ours = Client(pair.deployment.serve().url)
    for name in ("shared", "public"):
        path = f"/v2/images/{made[name]}"
        assert list(differences(theirs.get(path), ours.get(path))) == []
    path = f"/v2/images/{made['shared']}/members"
    assert list(differences(theirs.get(path), ours.get(path))) == []
    assert ours.get(tags)["tags"] == [{"name": "new"}]
    assert ours.ask("GET", f"/v2/images/{new}/file", 200).content == DATA
    ours.ask("GET", f"/v2/images/{made['plain']}", 404)
    assert pair.deployment.disagreements(timeout=120) == []
