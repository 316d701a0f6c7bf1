# SPDX-License-Identifier: Apache-2.0
"""The commands people have, ``openstack image`` and ``glance`` with versions 1 and 2, against ``storelib serve``.

Stores are files, radosgw's S3, Swift and RBD; databases SQLite and PostgreSQL; callers are anybody (noauth), a member
with a password (http_basic), or Keystone's admin, member and reader of a project, and a stranger from another one.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import re
import select
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import bcrypt
import pytest
from servers.ceph import Cluster, RadosGateway
from servers.clients import Answer, Clients
from servers.keystone import Keystone
from servers.nginx import Nginx
from servers.postgresql import PostgreSQL
from servers.swift import KEY, USER, Swift

from storelib.cli.main import run

COMMAND = [sys.executable, "-c", "from storelib.cli.main import main; main()", "--format", "json"]
#: Seconds that anything may take.
TIMEOUT = 120.0
#: More than a block of any store or client, and not a multiple of one.
DATA = bytes(range(251)) * 2100

STORES = """
[storelib]
stores = files:file, objects:s3, swift:swift, ceph:rbd, web:http
default_store = files
[files]
filesystem_store_datadir = {directory}/files
description = A directory
[objects]
s3_store_host = {gateway.s3_endpoint}
s3_store_access_key = {gateway.access_key}
s3_store_secret_key = {gateway.secret_key}
s3_store_bucket = images
s3_store_create_bucket_on_put = true
s3_store_bucket_url_format = path
[swift]
swift_store_auth_version = 1
swift_store_auth_address = {swift.auth_url}
swift_store_user = {user}
swift_store_key = {key}
swift_store_create_container_on_put = true
[ceph]
rbd_store_ceph_conf = {cluster.conf_file}
rbd_store_keyring = {cluster.keyring}
rbd_store_pool = images
[web]
http_allowed_networks = 127.0.0.0/8
http_allowed_ports = {nginx.port}
"""

API = """
[api]
auth_strategy = {auth}
http_basic_admins = admin
staging_dir = {directory}/staging
image_cache_dir = {directory}/cache
show_multiple_locations = true
import_allowed_networks = 127.0.0.0/8
import_allowed_ports = {nginx.port}
[database]
connection = {connection}
sqlite_synchronous = false
[oslo_middleware]
http_basic_auth_user_file = {directory}/users
"""


class Backends(NamedTuple):
    """The servers behind the stores, and a web server to import from."""

    gateway: RadosGateway
    swift: Swift
    nginx: Nginx

    def configuration(self, directory: Path) -> str:
        """The stores, in ``directory`` where they are files."""
        servers = {"gateway": self.gateway, "cluster": self.gateway.cluster, "swift": self.swift, "nginx": self.nginx}
        return STORES.format(directory=directory, user=USER, key=KEY, **servers)


class Caller:
    """A caller with both clients and a token, or with a password, for which the clients ask Keystone themselves."""

    def __init__(
        self,
        clients: Clients,
        *,
        openstack: Mapping[str, str],
        glance: Mapping[str, str],
        password: Mapping[str, str] | None = None,
    ) -> None:
        self.clients = clients
        self._password = password or {}
        self._environments = {"openstack": openstack, "glance": glance}

    def run(self, *command: str, data: Path | None = None) -> Answer:
        """One command, whatever comes of it."""
        return self.clients.run(*command, environment=self._environments[command[0]], data=data)

    def log_in_and_run(self, *command: str, data: Path | None = None) -> Answer:
        """The same with the password, and the API from the catalog."""
        return self.clients.run(*command, environment=self._password, data=data)

    def do(self, *command: str, data: Path | None = None) -> Answer:
        """One command that must succeed."""
        response = self.run(*command, data=data)
        assert response.code == 0, response
        return response

    def do_process(self, *command: str, data: Path | None = None) -> Answer:
        """The same as a process that starts from nothing."""
        environment = self._password or self._environments[command[0]]
        response = self.clients.run_process(*command, environment=environment, data=data)
        assert response.code == 0, response
        return response


class Deployment:
    """A running API; ``request`` goes round the clients, as an administrator."""

    def __init__(
        self, directory: Path, backends: Backends, connection: str, auth: str, keystone: Keystone | None = None
    ) -> None:
        self.directory, self.backends, self.keystone = directory, backends, keystone
        self.owner = keystone.projects["demo"] if keystone else None
        self.stranger = keystone.projects["alt_demo"] if keystone else "stranger"
        self.callers: dict[str, Caller] = {}
        self._headers: dict[str, str] = {}
        config = directory / "my.ini"
        text = API.format(directory=directory, connection=connection, nginx=backends.nginx, auth=auth)
        text += keystone.authtoken if keystone else ""
        config.write_text(backends.configuration(directory) + text)
        users = {user: bcrypt.hashpw(f"{user}pass".encode(), bcrypt.gensalt(4)).decode() for user in BASIC}
        (directory / "users").write_text("".join(f"{user}:{hashed}\n" for user, hashed in users.items()))
        if not connection.startswith("sqlite"):
            assert run(["--config", str(config), "db", "sync"]) == 0
        self._serve(config)

    def _serve(self, config: Path) -> None:
        with (self.directory / "serve.log").open("w") as log:
            self._process = subprocess.Popen(
                [*COMMAND, "--config", config, "serve", "--bind", "127.0.0.1:0", "--workers", "2"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], TIMEOUT)
        said = self._process.stdout.readline() if readable else ""
        assert said, (self.directory / "serve.log").read_text()
        self.url = str(json.loads(said)["url"])

    def stop(self) -> None:
        """Ask it to stop; ``close`` waits for that."""
        self._process.terminate()

    def close(self) -> None:
        self._process.wait(TIMEOUT)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def meet_anybody(self, clients: Clients) -> None:
        """The caller of a server without authentication; only here does openstack find out the version."""
        openstack = {"OS_AUTH_TYPE": "none", "OS_ENDPOINT": self.url}
        glance = {"OS_IMAGE_URL": self.url, "OS_AUTH_TOKEN": "none"}
        self.callers["anybody"] = Caller(clients, openstack=openstack, glance=glance)

    def meet_basic(self, clients: Clients) -> None:
        """A user with a password; glance has no option for one and takes it from the URL."""
        self._headers = {"Authorization": f"Basic {base64.b64encode(b'admin:adminpass').decode()}"}
        openstack = {"OS_AUTH_TYPE": "http_basic", "OS_ENDPOINT": f"{self.url}/v2"}
        openstack |= {"OS_USERNAME": "member", "OS_PASSWORD": "memberpass"}
        url = self.url.replace("://", "://member:memberpass@")
        glance = {"OS_IMAGE_URL": url, "OS_AUTH_TOKEN": "none"}
        self.callers["member"] = Caller(clients, openstack=openstack, glance=glance)

    def meet_people(self, clients: Clients, keystone: Keystone) -> None:
        """Keystone's users, each with a token."""
        self._headers = {"X-Auth-Token": keystone.token("admin", "admin")[0]}
        for name, (user, project) in PEOPLE.items():
            password = {
                "OS_AUTH_URL": keystone.url,
                "OS_USERNAME": user,
                "OS_PASSWORD": f"{user}pass",
                "OS_PROJECT_NAME": project,
                "OS_USER_DOMAIN_ID": "default",
                "OS_PROJECT_DOMAIN_ID": "default",
                "OS_REGION_NAME": self.region,
            }
            token = keystone.token(user, project)[0]
            openstack = {"OS_AUTH_TYPE": "admin_token", "OS_TOKEN": token, "OS_ENDPOINT": f"{self.url}/v2"}
            glance = {"OS_IMAGE_URL": self.url, "OS_AUTH_TOKEN": token}
            self.callers[name] = Caller(clients, openstack=openstack, glance=glance, password=password)

    @property
    def region(self) -> str:
        """Each deployment is a region of the same Keystone."""
        return self.directory.name

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """One call, decoded."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data, {"Content-Type": kind, **self._headers, **named})
        request.method = method
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            text = response.read()
            return json.loads(text) if text else None

    def image(self, image_id: str) -> dict[str, Any]:
        return self.request("GET", f"/v2/images/{image_id}")

    def task(self, image_id: str) -> dict[str, Any]:
        [task] = self.request("GET", f"/v2/images/{image_id}/tasks")["tasks"]
        return task

    def members(self, image_id: str) -> dict[str, str]:
        found = self.request("GET", f"/v2/images/{image_id}/members")["members"]
        return {member["member_id"]: member["status"] for member in found}

    def everything(self, image_id: str) -> Any:
        """All that a refused command must not have changed."""
        image = self.image(image_id)
        return image, self.members(image_id) if image["visibility"] == "shared" else {}

    def named(self, name: str) -> list[dict[str, Any]]:
        return self.request("GET", f"/v2/images?name={name}")["images"]


#: Users and projects of the callers; the first three share one.
PEOPLE = {
    "admin": ("admin", "admin"),
    "member": ("demo", "demo"),
    "reader": ("reader", "demo"),
    "stranger": ("alt_demo", "alt_demo"),
}
#: Users of http_basic; each one's password is the name and "pass".
BASIC = ("admin", "member")


# -- what images are before a command


def queued(deployment: Deployment, name: str) -> str:
    fields = {"name": name, "disk_format": "raw", "container_format": "bare", "colour": "red", "tags": ["old"]}
    owner = {"owner": deployment.owner} if deployment.owner else {}
    return deployment.request("POST", "/v2/images", {**fields, **owner})["id"]


def active(deployment: Deployment, name: str) -> str:
    image_id = queued(deployment, name)
    deployment.request("PUT", f"/v2/images/{image_id}/file", DATA)
    return image_id


def staged(deployment: Deployment, name: str) -> str:
    image_id = queued(deployment, name)
    deployment.request("PUT", f"/v2/images/{image_id}/stage", DATA)
    return image_id


def deactivated(deployment: Deployment, name: str) -> str:
    image_id = active(deployment, name)
    deployment.request("POST", f"/v2/images/{image_id}/actions/deactivate")
    return image_id


def public(deployment: Deployment, name: str) -> str:
    return changed(deployment, active(deployment, name), "replace", "/visibility", "public")


def shared(deployment: Deployment, name: str) -> str:
    image_id = active(deployment, name)
    deployment.request("POST", f"/v2/images/{image_id}/members", {"member": deployment.stranger})
    return image_id


def located(deployment: Deployment, name: str) -> str:
    location = {"url": deployment.backends.nginx.url("/other"), "metadata": {}}
    return changed(deployment, active(deployment, name), "add", "/locations/-", location)


def copied(deployment: Deployment, name: str) -> str:
    image_id = active(deployment, name)
    method = {"method": {"name": "copy-image"}, "stores": ["objects"]}
    deployment.request("POST", f"/v2/images/{image_id}/import", method)
    wait_until(lambda: deployment.task(image_id)["status"] == "success")
    return image_id


def nothing(deployment: Deployment, name: str) -> None:
    return None


def changed(deployment: Deployment, image_id: str, operation: str, path: str, value: Any) -> str:
    patch = json.dumps([{"op": operation, "path": path, "value": value}]).encode()
    kind = "application/openstack-images-v2.1-json-patch"
    deployment.request("PATCH", f"/v2/images/{image_id}", patch, Content_Type=kind)
    return image_id


# -- what must be true afterwards


class Case(NamedTuple):
    """One run of a command."""

    deployment: Deployment
    name: str
    image_id: str | None
    target: Path
    names: Mapping[str, str]
    answer: Answer


Check = Callable[[Case], None]


def has(**fields: Any) -> Check:
    """The image has these, at once or when a task is done."""

    def check(case: Case) -> None:
        assert case.image_id is not None
        wait_until(lambda: differences(case.deployment.image(case.image_id), fields) == {})

    return check


def made(**fields: Any) -> Check:
    """There is an image of that name with these."""

    def check(case: Case) -> None:
        [image] = case.deployment.named(case.name)
        wait_until(lambda: differences(case.deployment.image(image["id"]), fields) == {})

    return check


def has_member(status: str | None) -> Check:
    """The other project has this membership, and nobody else has one."""

    def check(case: Case) -> None:
        wanted = {case.deployment.stranger: status} if status else {}
        assert case.deployment.members(case.image_id) == wanted

    return check


def lacks(*names: str) -> Check:
    def check(case: Case) -> None:
        assert not set(names) & set(case.deployment.image(case.image_id))

    return check


def has_locations(*names: str) -> Check:
    """The last parts of the URLs."""

    def check(case: Case) -> None:
        urls = [each["url"].rpartition("/")[2] for each in case.deployment.image(case.image_id)["locations"]]
        assert urls == [case.image_id if name == "IMAGE" else name for name in names]

    return check


def says(*words: str) -> Check:
    def check(case: Case) -> None:
        wanted = [substitute(word, case.names) for word in words]
        missing = [word for word in wanted if word not in case.answer.out]
        assert not missing, case.answer

    return check


def gone(case: Case) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        case.deployment.image(case.image_id)


def saved(case: Case) -> None:
    assert digest(case.target.read_bytes()) == digest(DATA)


def printed(case: Case) -> None:
    assert digest(case.answer.data) == digest(DATA)


def unset(case: Case) -> None:
    image = case.deployment.image(str(case.image_id))
    assert "colour" not in image
    assert image["tags"] == []


def relabelled(case: Case) -> None:
    [_, location] = case.deployment.image(str(case.image_id))["locations"]
    assert location["metadata"]["a"] == "b"


def hidden(case: Case) -> None:
    """What lists do with images that are not for the caller: they do not say so."""
    assert case.answer.code == 0, case.answer
    assert case.image_id not in case.answer.out, case.answer


def unnoticed(case: Case) -> None:
    """openstacksdk ignores the status of some answers: that nothing changes is all there is to see, once it has found
    the image.
    """
    assert case.answer.code == 0 or "No Image found" in case.answer.err, case.answer


#: openstack image save shows only that the data is not the image's.
REFUSALS = re.compile(
    r"40[34]\b|not allowed|not permitted|[Ff]orbidden|there is no|No \w+ found|No image with|not shared|[Nn]ot found"
    r"|[Ff]ailed to delete|[Uu]nable to delete|support not enabled|[Cc]hecksum"
)


def warned(case: Case) -> None:
    """glance says that it could not delete, and ends with 0, unless it did not find the image."""
    assert REFUSALS.search(case.answer.err + case.answer.out), case.answer


def refused(case: Case) -> None:
    """An error that says so in words of the API, not a traceback of the client."""
    assert case.answer.code == 1, case.answer
    assert REFUSALS.search(case.answer.err), case.answer
    # glance adds nothing to what the API says but this word.
    assert not re.search(r"^HTTP (?!\d{3} )", case.answer.err, re.MULTILINE), case.answer


def differences(image: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: image.get(name) for name, value in fields.items() if image.get(name) != value}


def digest(data: bytes) -> str:
    return hashlib.sha512(data).hexdigest()


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


def names_of(deployment: Deployment, name: str, image_id: str | None, target: Path) -> dict[str, str]:
    """What stands for what in a command."""
    return {
        "NAME": name,
        "IMAGE": str(image_id),
        "STRANGER": deployment.stranger,
        "FILE": str(deployment.directory / "data"),
        "TARGET": str(target),
        "URL": deployment.backends.nginx.url("/data"),
        "OTHER": deployment.backends.nginx.url("/other"),
    }


def substitute(word: str, names: Mapping[str, str]) -> str:
    """The word with what its capitals stand for."""
    return re.sub(r"\b[A-Z]{3,}\b", lambda found: names.get(found[0], found[0]), word)


# -- who may do what, and what it does


class Row(NamedTuple):
    """A command, the image it is given, who may run it, and what is true then. Others get ``otherwise``."""

    words: str
    before: Callable[[Deployment, str], str | None]
    who: frozenset[str]
    then: Check
    otherwise: Check = refused
    #: A file for its standard input.
    data: str | None = None
    #: Whether it asks Keystone about projects, so that it does not work without one.
    needs_keystone: bool = False


ALL = frozenset(PEOPLE)
READERS = ALL - {"stranger"}
MEMBERS = READERS - {"reader"}
ADMIN = frozenset({"admin"})
#: Callers who may download what is public or shared with them.
USERS = ALL - {"reader"}

UPLOADED = {"status": "active", "os_hash_value": digest(DATA), "size": len(DATA)}
COLUMNS = "--disk-format raw --container-format bare"

TASK = (
    '{"import_from":"URL","import_from_format":"raw",'
    '"image_properties":{"name":"NAME","disk_format":"raw","container_format":"bare"}}'
)

ROWS = {
    "openstack": [
        Row(
            "image create --file FILE --property a=b --tag t NAME", nothing, USERS, made(**UPLOADED, a="b", tags=["t"])
        ),
        Row("image create --private --min-disk 3 NAME", nothing, USERS, made(visibility="private", min_disk=3)),
        Row("image create NAME", nothing, USERS, made(**UPLOADED), data="FILE"),
        Row("image create --import --file FILE NAME", nothing, USERS, made(**UPLOADED)),
        Row("image create --public NAME", nothing, ADMIN, made(visibility="public")),
        Row("image list --name NAME", active, READERS, says("IMAGE", "active"), hidden),
        Row("image list --name NAME --long --tag old --property colour=red", active, READERS, says("IMAGE"), hidden),
        Row("image list --name NAME", public, ALL, says("IMAGE")),
        Row("image show IMAGE", active, READERS, says("NAME", digest(DATA))),
        Row("image show NAME", active, READERS, says("IMAGE")),
        Row("image show IMAGE", public, ALL, says("NAME")),
        Row("image save --file TARGET IMAGE", active, MEMBERS, saved),
        Row("image save --file TARGET IMAGE", shared, USERS, saved),
        Row("image save IMAGE", public, USERS, printed),
        Row("image set --name new --min-ram 5 IMAGE", active, MEMBERS, has(name="new", min_ram=5)),
        Row(
            "image set --property colour=blue --tag new IMAGE", active, MEMBERS, has(colour="blue", tags=["new", "old"])
        ),
        Row("image set --protected --hidden IMAGE", active, MEMBERS, has(protected=True, os_hidden=True)),
        Row("image set --community IMAGE", active, MEMBERS, has(visibility="community")),
        Row("image set --public IMAGE", active, ADMIN, has(visibility="public")),
        Row("image set --deactivate IMAGE", active, MEMBERS, has(status="deactivated"), unnoticed),
        Row("image set --activate IMAGE", deactivated, MEMBERS, has(status="active"), unnoticed),
        Row("image unset --property colour --tag old IMAGE", active, MEMBERS, unset),
        Row("image delete IMAGE", active, MEMBERS, gone),
        Row("image delete --store objects IMAGE", copied, ADMIN, has(stores="files")),
        Row("image add project IMAGE STRANGER", active, MEMBERS, has_member("pending"), needs_keystone=True),
        Row("image remove project IMAGE STRANGER", shared, MEMBERS, has_member(None), needs_keystone=True),
        Row("image member list IMAGE", shared, ALL, says("STRANGER", "pending")),
        Row("image member get IMAGE STRANGER", shared, ALL, says("STRANGER", "pending"), needs_keystone=True),
        Row(
            "image set --accept --project STRANGER IMAGE",
            shared,
            frozenset({"admin", "stranger"}),
            has_member("accepted"),
            needs_keystone=True,
        ),
        Row(
            "image set --reject --project STRANGER IMAGE",
            shared,
            frozenset({"admin", "stranger"}),
            has_member("rejected"),
            needs_keystone=True,
        ),
        Row("image stage --file FILE IMAGE", queued, MEMBERS, has(status="uploading")),
        Row("image import --method glance-direct IMAGE", staged, MEMBERS, has(**UPLOADED), unnoticed),
        Row(
            "image import --store objects --method glance-direct IMAGE",
            staged,
            MEMBERS,
            has(**UPLOADED, stores="objects"),
            unnoticed,
        ),
        Row("image import --method web-download --uri URL IMAGE", queued, MEMBERS, has(**UPLOADED), unnoticed),
        Row(
            "image import --store swift --method copy-image IMAGE", active, ADMIN, has(stores="files,swift"), unnoticed
        ),
        Row("image import info", nothing, ALL, says("copy-image, glance-direct, web-download")),
        Row("image stores list", nothing, ALL, says("files", "objects", "swift", "ceph", "A directory")),
        Row("image stores list --detail", nothing, ADMIN, says("data_dir", "thin_provisioning", "fsid")),
        Row("image task list", copied, ADMIN, says("success")),
        Row("image task show TASK", copied, ADMIN, says("TASK", "success", "objects")),
    ],
    "glance": [
        Row(f"image-create --name NAME {COLUMNS} --file FILE --property a=b", nothing, USERS, made(**UPLOADED, a="b")),
        Row(f"image-create --name NAME {COLUMNS} --file FILE --store swift", nothing, USERS, made(stores="swift")),
        Row(f"image-create --name NAME {COLUMNS}", nothing, USERS, made(**UPLOADED), data="FILE"),
        Row("image-create --name NAME --visibility public", nothing, ADMIN, made(visibility="public")),
        Row(
            f"image-create-via-import --name NAME {COLUMNS} --file FILE --import-method glance-direct",
            nothing,
            USERS,
            made(**UPLOADED),
        ),
        Row(
            f"image-create-via-import --name NAME {COLUMNS} --uri URL --import-method web-download --store ceph",
            nothing,
            USERS,
            made(**UPLOADED, stores="ceph"),
        ),
        Row("image-list --property-filter name=NAME", active, READERS, says("IMAGE"), hidden),
        Row(
            "-v image-list --tag old --include-stores --property-filter name=NAME",
            active,
            READERS,
            says("files"),
            hidden,
        ),
        Row("image-show IMAGE", active, READERS, says("NAME", "active")),
        Row("image-download --file TARGET IMAGE", active, MEMBERS, saved),
        Row("image-download --file TARGET IMAGE", shared, USERS, saved),
        Row("image-download IMAGE", public, USERS, printed),
        Row("image-upload --file FILE IMAGE", queued, MEMBERS, has(**UPLOADED)),
        Row("image-upload --file FILE --store ceph IMAGE", queued, MEMBERS, has(**UPLOADED, stores="ceph")),
        Row("image-update --name new --property colour=blue IMAGE", active, MEMBERS, has(name="new", colour="blue")),
        Row("image-update --remove-property colour IMAGE", active, MEMBERS, lacks("colour")),
        Row("image-update --visibility public IMAGE", active, ADMIN, has(visibility="public")),
        Row("image-update --hidden True --protected True IMAGE", active, MEMBERS, has(os_hidden=True, protected=True)),
        Row("image-deactivate IMAGE", active, MEMBERS, has(status="deactivated")),
        Row("image-reactivate IMAGE", deactivated, MEMBERS, has(status="active")),
        Row("image-delete IMAGE", active, MEMBERS, gone),
        Row("image-tag-update IMAGE new", active, MEMBERS, has(tags=["new", "old"])),
        Row("image-tag-delete IMAGE old", active, MEMBERS, has(tags=[])),
        Row("image-stage --file FILE IMAGE", queued, MEMBERS, has(status="uploading")),
        Row("image-import --import-method glance-direct IMAGE", staged, MEMBERS, has(**UPLOADED)),
        Row("image-import --import-method web-download --uri URL IMAGE", queued, MEMBERS, has(**UPLOADED)),
        Row(
            "image-import --import-method copy-image --stores ceph,swift IMAGE",
            active,
            ADMIN,
            has(stores="files,ceph,swift"),
        ),
        Row("image-tasks IMAGE", copied, READERS, says("success")),
        Row("import-info", nothing, ALL, says("copy-image")),
        Row("stores-info", nothing, ALL, says("files", "objects", "swift", "ceph")),
        Row("stores-info --detail", nothing, ADMIN, says("data_dir", "thin_provisioning", "fsid")),
        Row("stores-delete --store files IMAGE", copied, ADMIN, has(stores="objects", status="active")),
        Row("location-add --url OTHER IMAGE", active, MEMBERS, has_locations("IMAGE", "other")),
        Row('location-update --url OTHER --metadata {"a":"b"} IMAGE', located, MEMBERS, relabelled),
        Row("location-delete --url OTHER IMAGE", located, ADMIN, has_locations("IMAGE")),
        Row("add-location --url URL IMAGE", queued, MEMBERS, has(**UPLOADED)),
        Row("member-create IMAGE STRANGER", active, MEMBERS, has_member("pending")),
        Row("member-list --image-id IMAGE", shared, ALL, says("STRANGER", "pending")),
        Row("member-get IMAGE STRANGER", shared, ALL, says("STRANGER", "pending")),
        Row("member-update IMAGE STRANGER accepted", shared, frozenset({"admin", "stranger"}), has_member("accepted")),
        Row("member-update IMAGE STRANGER rejected", shared, frozenset({"admin", "stranger"}), has_member("rejected")),
        Row("member-delete IMAGE STRANGER", shared, MEMBERS, has_member(None)),
        Row(f"task-create --type import --input {TASK}", nothing, ADMIN, made(**UPLOADED)),
        Row("task-list", copied, ADMIN, says("success")),
        Row("task-show TASK", copied, ADMIN, says("TASK", "success")),
        Row("usage", nothing, ALL, says("Quota")),
        Row("explain image", nothing, ALL, says("os_hash_value")),
    ],
    "glance --os-image-api-version 1": [
        Row(f"image-create --name NAME {COLUMNS} --file FILE --property a=b", nothing, USERS, made(**UPLOADED, a="b")),
        Row(f"image-create --name NAME {COLUMNS} --file FILE --store ceph", nothing, USERS, made(stores="ceph")),
        Row(f"image-create --name NAME {COLUMNS}", nothing, USERS, made(**UPLOADED), data="FILE"),
        Row(f"image-create --name NAME {COLUMNS} --copy-from URL", nothing, ADMIN, made(**UPLOADED)),
        Row(
            f"image-create --name NAME {COLUMNS} --location URL", nothing, USERS, made(status="active", size=len(DATA))
        ),
        Row(f"image-create --name NAME {COLUMNS} --is-public True", nothing, ADMIN, made(visibility="public")),
        # Version 1 lists what is public or the project's own, also to administrators.
        Row("image-list --name NAME", active, READERS - {"admin"}, says("IMAGE"), hidden),
        Row("image-list --name NAME --property-filter colour=red", public, ALL, says("IMAGE")),
        Row("image-show IMAGE", active, READERS, says("NAME", "colour")),
        Row("image-show IMAGE", public, ALL, says("NAME")),
        Row("image-download --file TARGET IMAGE", active, MEMBERS, saved),
        Row("image-download IMAGE", public, USERS, printed),
        Row("image-update --file FILE IMAGE", queued, MEMBERS, has(**UPLOADED)),
        Row("image-update --name new --property a=b IMAGE", active, MEMBERS, has(name="new", a="b", colour="red")),
        Row("image-update --purge-props --property a=b IMAGE", active, MEMBERS, lacks("colour")),
        Row("image-update --is-public True IMAGE", active, ADMIN, has(visibility="public")),
        Row("image-delete IMAGE", active, MEMBERS, gone, warned),
        Row("member-create IMAGE STRANGER", active, MEMBERS, has_member("pending")),
        Row("member-list --image-id IMAGE", shared, ALL, says("STRANGER")),
        Row("member-list --tenant-id STRANGER", shared, ALL, says("IMAGE")),
        Row("member-delete IMAGE STRANGER", shared, MEMBERS, has_member(None)),
    ],
}

#: What is not about images: options, help, and metadata definitions and the cache, which have tests of their own.
ELSEWHERE = re.compile(r"-|(md|cache)-|(image metadef|cached image) |help$")


def runs() -> list[Any]:
    """Every command as every caller: anybody of a server without authentication, and each role of Keystone."""
    found = []
    for program, rows in ROWS.items():
        for number, row in enumerate(rows):
            kind = f"{program.replace(' --os-image-api-version ', '')} {row.words}".replace(" ", "_")
            for who in ("anybody", *PEOPLE):
                if who != "anybody" or not row.needs_keystone:
                    found.append(pytest.param(program, row, who, id=f"{who}:{number}:{kind}"))
    return found


@pytest.fixture(scope="module")
def clients(tmp_path_factory) -> Iterator[Clients]:
    with Clients(tmp_path_factory.mktemp("clients")) as made_clients:
        yield made_clients


@pytest.fixture(scope="module")
def keystone(tmp_path_factory) -> Iterator[Keystone]:
    with Keystone(tmp_path_factory.mktemp("keystone")) as server:
        reader = {"name": "reader", "domain_id": "default", "password": "readerpass"}
        server.users["reader"] = server.call("POST", "/users", {"user": reader})["user"]["id"]
        server.grant("reader", "demo", "reader")
        yield server


@pytest.fixture(scope="module")
def backends(tmp_path_factory) -> Iterator[Backends]:
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(Cluster(tmp_path_factory.mktemp("ceph")))
        cluster.add_pool("images")
        gateway = stack.enter_context(RadosGateway(cluster))
        swift = stack.enter_context(Swift(tmp_path_factory.mktemp("swift")))
        nginx = stack.enter_context(Nginx(tmp_path_factory.mktemp("nginx")))
        for name in ("data", "other"):
            nginx.put(name, DATA)
        yield Backends(gateway, swift, nginx)


@pytest.fixture(scope="module")
def deploy(tmp_path_factory, backends, clients, keystone) -> Iterator[Callable[[str, str], Deployment]]:
    """Deployments by database and authentication, each started when it is first asked for."""
    running: dict[tuple[str, str], Deployment] = {}
    with contextlib.ExitStack() as stack:
        postgresql = stack.enter_context(PostgreSQL())

        def start(database: str, auth: str) -> Deployment:
            directory = tmp_path_factory.mktemp(f"{database}-{auth}")
            (directory / "data").write_bytes(DATA)
            sqlite = f"sqlite:///{directory}/images.sqlite"
            connection = sqlite if database == "sqlite" else postgresql.new_database()
            if auth == "keystone":
                deployment = Deployment(directory, backends, connection, auth, keystone)
                add_to_catalog(keystone, deployment)
                deployment.meet_people(clients, keystone)
                return deployment
            deployment = Deployment(directory, backends, connection, auth)
            meet = deployment.meet_basic if auth == "http_basic" else deployment.meet_anybody
            meet(clients)
            return deployment

        def deployment(database: str, auth: str) -> Deployment:
            if (database, auth) not in running:
                running[database, auth] = start(database, auth)
                stack.callback(running[database, auth].close)
            return running[database, auth]

        yield deployment
        for each in running.values():
            each.stop()


def add_to_catalog(keystone: Keystone, deployment: Deployment) -> None:
    """The image service in a region of its own, where identity is the same everywhere."""
    keystone.add_endpoints("image", **{deployment.region: deployment.url})
    keystone.add_endpoints("identity", **{deployment.region: keystone.url})


class TestEveryCommand:
    """What each command does for whom, and that it changes nothing for the others."""

    @pytest.mark.parametrize(("program", "row", "who"), runs())
    def test_does_what_it_says_for_those_who_may(self, deploy, tmp_path, program, row, who):
        deployment = deploy("sqlite", "noauth") if who == "anybody" else deploy("postgresql", "keystone")
        name = f"image-{uuid.uuid4().hex}"
        image_id = row.before(deployment, name)
        target = tmp_path / "target"
        names = names_of(deployment, name, image_id, target)
        if image_id and "TASK" in row.words:
            names["TASK"] = deployment.task(image_id)["id"]
        words = [substitute(word, names) for word in f"{program} {row.words}".split(" ")]
        allowed = who in row.who or who == "anybody"
        before = deployment.everything(image_id) if image_id and not allowed else []
        caller = deployment.callers[who]
        call = caller.log_in_and_run if row.needs_keystone else caller.run
        response = call(*words, data=Path(names[row.data]) if row.data else None)
        case = Case(deployment, name, image_id, target, names, response)
        if allowed:
            assert response.code == 0, response
            row.then(case)
        else:
            row.otherwise(case)
            assert (deployment.everything(image_id) if image_id else deployment.named(name)) == before

    def test_of_all_that_openstack_offers(self, deploy):
        caller = deploy("sqlite", "noauth").callers["anybody"]
        [group] = caller.do("openstack", "command", "list", "--group", "openstack.image", "-f", "json").document
        assert about_images(group["Commands"]) == commands_of("openstack", group["Commands"])

    @pytest.mark.parametrize("version", ["1", "2"])
    def test_of_all_that_glance_offers(self, deploy, version):
        caller = deploy("sqlite", "noauth").callers["anybody"]
        program = "glance" if version == "2" else "glance --os-image-api-version 1"
        offered = caller.do("glance", "--os-image-api-version", version, "bash-completion").out.split()
        assert about_images(offered) == commands_of(program, offered)


def about_images(offered: Sequence[str]) -> set[str]:
    return {each for each in offered if not ELSEWHERE.match(each)}


def commands_of(program: str, offered: Sequence[str]) -> set[str]:
    """What the rows run: of all that is offered, the longest with which the words begin."""
    words = [row.words.removeprefix("-v ") + " " for row in ROWS[program]]
    return {max((each for each in offered if row.startswith(f"{each} ")), key=len) for row in words}


#: Ways to get data out of a store again.
GET = {
    "openstack": "openstack image save --file TARGET IMAGE",
    "glance": "glance image-download --file TARGET IMAGE",
    "v1": "glance --os-image-api-version 1 image-download --file TARGET IMAGE",
}
#: Ways to put data into a store.
PUT = {
    "image-create": [f"glance image-create --name NAME {COLUMNS} --file FILE --store STORE"],
    "v1": [f"glance --os-image-api-version 1 image-create --name NAME {COLUMNS} --file FILE --store STORE"],
    "import": [
        "openstack image create NAME",
        "openstack image stage --file FILE NAME",
        "openstack image import --store STORE --method glance-direct NAME",
    ],
}


#: Store, database, authentication, way in, way out: a covering array, the smallest in which any two values of different
#: columns occur together.
PAIRWISE = [
    ("files", "postgresql", "noauth", "image-create", "glance"),
    ("files", "sqlite", "http_basic", "v1", "v1"),
    ("files", "sqlite", "keystone", "import", "openstack"),
    ("objects", "postgresql", "noauth", "v1", "openstack"),
    ("objects", "postgresql", "http_basic", "import", "glance"),
    ("objects", "sqlite", "keystone", "image-create", "v1"),
    ("swift", "sqlite", "noauth", "v1", "glance"),
    ("swift", "postgresql", "http_basic", "image-create", "v1"),
    ("swift", "postgresql", "keystone", "import", "openstack"),
    ("ceph", "postgresql", "noauth", "import", "v1"),
    ("ceph", "sqlite", "http_basic", "image-create", "openstack"),
    ("ceph", "sqlite", "keystone", "v1", "glance"),
]


class TestEveryStore:
    """What goes in by one command comes out by another, with every database, authentication and version."""

    @pytest.mark.parametrize(("store", "database", "auth", "put", "get"), PAIRWISE)
    def test_gives_back_what_it_was_given(self, deploy, tmp_path, store, database, auth, put, get):
        deployment = deploy(database, auth)
        caller = deployment.callers["anybody" if auth == "noauth" else "member"]
        name, target = f"image-{uuid.uuid4().hex}", tmp_path / "target"
        names = {"NAME": name, "STORE": store, "FILE": str(deployment.directory / "data"), "TARGET": str(target)}
        for command in PUT[put]:
            caller.do(*[substitute(word, names) for word in command.split(" ")])
        [image] = deployment.named(name)
        wait_until(lambda: differences(deployment.image(image["id"]), {**UPLOADED, "stores": store}) == {})
        names["IMAGE"] = image["id"]
        caller.do(*[substitute(word, names) for word in GET[get].split(" ")])
        assert digest(target.read_bytes()) == digest(DATA)

    def test_meets_every_other_choice(self):
        choices = [
            ("files", "objects", "swift", "ceph"),
            ("sqlite", "postgresql"),
            ("noauth", "http_basic", "keystone"),
        ]
        choices += [tuple(PUT), tuple(GET)]
        for (left, some), (right, others) in itertools.combinations(enumerate(choices), 2):
            assert {(row[left], row[right]) for row in PAIRWISE} == set(itertools.product(some, others))


PROPERTY = '{"title":"P","type":"string","enum":["a","b"]}'
PROPERTY_SHOW = "image metadef object property show"
#: All that can be done with a namespace NAME, and words that each command must print.
METADEFS = {
    "openstack": [
        ("image metadef namespace create NAME --public", "public"),
        ("image metadef namespace set NAME --display-name Shown --public", ""),
        ("image metadef namespace unset NAME --all-tags", ""),
        ("image metadef namespace list", "NAME"),
        ("image metadef namespace show NAME", "Shown"),
        ("image metadef object create --namespace NAME thing", "thing"),
        ("image metadef object update NAME thing --name other", ""),
        ("image metadef object list NAME", "other"),
        ("image metadef object show NAME other", "other"),
        ("image metadef property create NAME --name p --title P --type string --schema {}", "P"),
        ("image metadef property set NAME p --title Q --schema {}", ""),
        ("image metadef property list NAME", "Q"),
        ("image metadef property show NAME p", "Q"),
        ("image metadef property delete NAME p", ""),
        ("image metadef resource type association create NAME OS::Glance::Image", "OS::Glance::Image"),
        ("image metadef resource type association list NAME", "OS::Glance::Image"),
        ("image metadef resource type list", "OS::Glance::Image"),
        ("image metadef resource type association delete NAME OS::Glance::Image", ""),
        ("image metadef object delete NAME other", ""),
        ("image metadef namespace delete NAME", ""),
    ],
    "glance": [
        ("md-namespace-create NAME --visibility public", "public"),
        ("md-namespace-update NAME --namespace NAME --display-name Shown --visibility public", "Shown"),
        ("md-namespace-list", "NAME"),
        ("md-object-create NAME --name thing --schema OBJECT", "thing"),
        ("md-object-update NAME thing --name other --schema RENAMED", "other"),
        ("md-object-list NAME", "other"),
        ("md-object-show NAME other", "other"),
        ("md-object-property-show NAME other p", "P"),
        ("md-property-create NAME --name p --title P --type string --schema PROPERTY", "P"),
        ("md-property-update NAME p --name q --title Q --schema RETITLED", "Q"),
        ("md-property-list NAME", "Q"),
        ("md-property-show NAME q", "Q"),
        ("md-tag-create NAME --name one", "one"),
        ("md-tag-create-multiple NAME --names two,three", "three"),
        ("md-tag-update NAME two --name four", "four"),
        ("md-tag-list NAME", "four"),
        ("md-tag-show NAME four", "four"),
        ("md-resource-type-associate NAME --name OS::Glance::Image --prefix hw_", "hw_"),
        ("md-resource-type-list", "OS::Glance::Image"),
        ("md-namespace-resource-type-list NAME", "hw_"),
        ("md-namespace-show NAME --resource-type OS::Glance::Image", "hw_q"),
        ("md-resource-type-deassociate NAME OS::Glance::Image", ""),
        ("md-tag-delete NAME four", ""),
        ("md-object-delete NAME other", ""),
        ("md-property-delete NAME q", ""),
        ("md-namespace-tags-delete NAME", ""),
        ("md-namespace-objects-delete NAME", ""),
        ("md-namespace-properties-delete NAME", ""),
        ("md-namespace-delete NAME", ""),
        ("md-namespace-import --file DEFINITIONS", "NAME"),
        ("md-namespace-delete NAME", ""),
    ],
}


@pytest.mark.parametrize("program", METADEFS)
def test_metadata_definitions_by_every_command(deploy, tmp_path, program):
    caller = deploy("sqlite", "keystone").callers["admin"]
    name = f"OS::{uuid.uuid4().hex}"
    (tmp_path / "definitions").write_text(json.dumps({"namespace": name, "tags": [{"name": "one"}]}))
    names = {
        "NAME": name,
        "DEFINITIONS": str(tmp_path / "definitions"),
        "PROPERTY": PROPERTY,
        "RETITLED": PROPERTY.replace("P", "Q"),
        "OBJECT": f'{{"name":"thing","properties":{{"p":{PROPERTY}}}}}',
        "RENAMED": f'{{"name":"other","properties":{{"p":{PROPERTY}}}}}',
    }
    for words, printed in METADEFS[program]:
        response = caller.do(program, *[substitute(word, names) for word in words.split(" ")])
        assert substitute(printed, names) in response.out, words
    assert name not in caller.do(program, *METADEFS[program][2 if program == "glance" else 3][0].split(" ")).out


def test_a_property_of_an_object_is_shown_by_openstack(deploy):
    # In no row above: openstack has no command that gives an object properties.
    deployment = deploy("sqlite", "keystone")
    name = f"OS::{uuid.uuid4().hex}"
    deployment.request("POST", "/v2/metadefs/namespaces", {"namespace": name})
    body = {"name": "thing", "properties": {"p": json.loads(PROPERTY)}, "required": ["p"]}
    deployment.request("POST", f"/v2/metadefs/namespaces/{name}/objects", body)
    response = deployment.callers["admin"].do("openstack", *PROPERTY_SHOW.split(" "), name, "thing", "p", "-f", "json")
    assert response.document.items() >= {"name": "p", **json.loads(PROPERTY)}.items()
    missing = deployment.callers["admin"].run("openstack", *PROPERTY_SHOW.split(" "), name, "thing", "q")
    assert (missing.code, "q not found" in missing.err) == (1, True)


def test_metadata_definitions_meet_every_command(deploy):
    caller = deploy("sqlite", "noauth").callers["anybody"]
    [group] = caller.do("openstack", "command", "list", "--group", "openstack.image", "-f", "json").document
    offered = {
        "openstack": {each for each in group["Commands"] if each.startswith("image metadef")},
        "glance": {each for each in caller.do("glance", "bash-completion").out.split() if each.startswith("md-")},
    }
    for program, commands in offered.items():
        run = {words for words, _ in METADEFS[program]}
        missing = {each for each in commands if not any(words.startswith(each) for words in run)}
        assert not missing - {PROPERTY_SHOW}


#: All that can be done with the cache and an image, and words that each command must print.
CACHE = {
    "openstack": [
        ("cached image queue IMAGE", ""),
        ("cached image list", "IMAGE"),
        ("cached image delete IMAGE", ""),
        ("cached image queue IMAGE", ""),
        ("cached image clear --queue", ""),
        ("cached image clear", ""),
    ],
    "glance": [
        ("cache-queue IMAGE", ""),
        ("cache-list", "IMAGE"),
        ("cache-nodes-list IMAGE", "HOST"),
        ("cache-prune", "Pruned 0 file(s)"),
        ("cache-clean", ""),
        ("cache-delete IMAGE", ""),
        ("cache-queue IMAGE", ""),
        ("cache-clear --target queue", ""),
        ("cache-clear", ""),
    ],
}


@pytest.mark.parametrize("program", CACHE)
def test_the_cache_by_every_command(deploy, program):
    deployment = deploy("postgresql", "keystone")
    image_id = active(deployment, f"image-{uuid.uuid4().hex}")
    names = {"IMAGE": image_id, "HOST": socket.gethostname()}

    def is_cached() -> bool:
        return image_id in {each["image_id"] for each in deployment.request("GET", "/v2/cache")["cached_images"]}

    for words, printed in CACHE[program]:
        response = deployment.callers["admin"].do(program, *[substitute(word, names) for word in words.split(" ")])
        assert substitute(printed, names) in response.out, words
        assert not REFUSALS.search(response.err), words
        if "queue IMAGE" in words:
            wait_until(is_cached)
        if "delete" in words or words.endswith("clear"):
            assert not is_cached(), words


@pytest.mark.parametrize(("program", "words"), [("openstack", "cached image queue IMAGE"), ("glance", "cache-list")])
def test_the_cache_is_for_administrators(deploy, program, words):
    deployment = deploy("postgresql", "keystone")
    image_id = active(deployment, f"image-{uuid.uuid4().hex}")
    response = deployment.callers["member"].run(
        program, *[word.replace("IMAGE", image_id) for word in words.split(" ")]
    )
    assert response.code == 1, response
    assert REFUSALS.search(response.err), response


def test_the_cache_meets_every_command(deploy):
    caller = deploy("sqlite", "noauth").callers["anybody"]
    [group] = caller.do("openstack", "command", "list", "--group", "openstack.image", "-f", "json").document
    offered = {
        "openstack": {each for each in group["Commands"] if each.startswith("cached image")},
        "glance": {each for each in caller.do("glance", "bash-completion").out.split() if each.startswith("cache-")},
    }
    for program, commands in offered.items():
        run = {words for words, _ in CACHE[program]}
        assert {each for each in commands if not any(words.startswith(each) for words in run)} == set()


def test_commands_start_as_people_start_them(deploy, tmp_path):
    """The console scripts, a password for Keystone and the API from its catalog."""
    deployment = deploy("postgresql", "keystone")
    member, stranger = deployment.callers["member"], deployment.callers["stranger"]
    file, name, old = str(deployment.directory / "data"), f"image-{uuid.uuid4().hex}", "--os-image-api-version"
    created = member.do_process("openstack", "image", "create", "--file", file, name, "-f", "json").document
    image_id = created["id"]
    member.do_process("glance", "image-tag-update", image_id, "tag")
    member.do_process("glance", old, "1", "image-update", image_id, "--property", "a=b")
    member.do_process("openstack", "image", "add", "project", image_id, deployment.stranger)
    stranger.do_process("openstack", "image", "set", "--accept", image_id)
    assert image_id in stranger.do_process("openstack", "image", "list").out
    assert image_id in stranger.do_process("glance", "image-list").out
    stranger.do_process("openstack", "image", "save", "--file", str(tmp_path / "saved"), image_id)
    assert digest((tmp_path / "saved").read_bytes()) == digest(DATA)
    assert digest(member.do_process("glance", "image-download", image_id).data) == digest(DATA)
    assert digest(member.do_process("glance", old, "1", "image-download", image_id).data) == digest(DATA)
    shown = member.do_process("openstack", "image", "show", image_id, "-f", "json").document
    assert (shown["status"], shown["tags"], shown["properties"]["a"]) == ("active", ["tag"], "b")
    member.do_process("openstack", "image", "delete", image_id)
    assert deployment.named(name) == []
