# SPDX-License-Identifier: Apache-2.0
"""Keystone on a free loopback port, on SQLite, under gunicorn; see ``openstack.install``.

Project ``demo`` with users ``demo`` and ``alt_demo`` (password: the name and "pass"), project ``alt_demo`` for the
second, and in project ``service`` the users ``swift`` and ``images``, who may do everything.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import sqlite3
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

from servers.environments import CHECKOUT
from servers.nginx import free_ports
from servers.openstack import Processes, install

# A schema takes ten seconds to make: it is made once and copied.
_TEMPLATE = CHECKOUT / ".venv-openstack/keystone"

_KEYSTONE = """
[DEFAULT]
use_stderr = true
[database]
connection = sqlite:///{directory}/keystone.db
sqlite_synchronous = false
[token]
provider = fernet
expiration = 86400
[fernet_tokens]
key_repository = {directory}/fernet-keys
[fernet_receipts]
key_repository = {directory}/fernet-keys
[credential]
key_repository = {directory}/credential-keys
[identity]
password_hash_rounds = 4
# A request is some 300 statements otherwise, half a second; one worker shares its memory with nobody.
[cache]
enabled = true
backend = dogpile.cache.memory_pickle
"""

#: How servers that check tokens are told to ask it.
_AUTHTOKEN = """
[keystone_authtoken]
www_authenticate_uri = {url}
auth_url = {url}
auth_type = password
username = images
password = imagespass
project_name = service
user_domain_id = default
project_domain_id = default
"""

# One request at a time: SQLite has one writer. In a file because Keystone parses the arguments of its process.
_GUNICORN = """
bind = "127.0.0.1:{port}"
wsgi_app = "keystone.wsgi.api:application"
workers = 1
timeout = 120
"""


class Keystone:
    """``with Keystone(directory) as server``: version 3 at ``server.url``, administered by admin, adminpass."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}/v3"
        self.projects: dict[str, str] = {}
        self.users: dict[str, str] = {}
        self._roles: dict[str, str] = {}
        self._processes = Processes(directory)
        self._programs = install()

    def __enter__(self) -> Keystone:
        self._prepare()
        gunicorn = self.directory / "gunicorn.py"
        gunicorn.write_text(_GUNICORN.format(port=self.port))
        self._processes.start(
            "keystone",
            [self._programs / "gunicorn"],
            OS_KEYSTONE_CONFIG_FILES=str(self.directory / "keystone.conf"),
            GUNICORN_CMD_ARGS=f"--config {gunicorn}",
        )
        try:
            self._processes.wait_for(self.url)
            self._populate()
        except BaseException:
            self._processes.stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._processes.stop()

    @property
    def authtoken(self) -> str:
        """The section of a server's configuration file with which it checks tokens here."""
        return _AUTHTOKEN.format(url=self.url)

    def token(self, user: str, project: str) -> tuple[str, dict[str, Any]]:
        """A token of that user for that project, and what Keystone says about it."""
        password = {"user": {"name": user, "domain": {"id": "default"}, "password": f"{user}pass"}}
        scope = {"project": {"name": project, "domain": {"id": "default"}}}
        body = {"auth": {"identity": {"methods": ["password"], "password": password}, "scope": scope}}
        headers, answer = self._send("POST", "/auth/tokens", body)
        return headers["X-Subject-Token"], answer["token"]

    def revoke(self, token: str) -> None:
        """From now on ``token`` is worth nothing."""
        self.call("DELETE", "/auth/tokens", None, X_Subject_Token=token)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """One call as admin."""
        return self._send(method, path, body, **{"X_Auth_Token": self._admin, **headers})[1]

    def call_service(self, method: str, url: str, body: Any = None, **headers: str) -> Any:
        """One call as admin to a service that asks for Keystone's tokens."""
        return self._send(method, url, body, **{"X_Auth_Token": self._admin, **headers})[1]

    def upload(self, url: str, data: bytes, **headers: str) -> None:
        """Data for an image, as admin."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        headers = {"X-Auth-Token": self._admin, "Content-Type": "application/octet-stream", **named}
        request = urllib.request.Request(url, data, headers, method="PUT")
        urllib.request.urlopen(request, timeout=60).close()

    def add_endpoints(self, service: str, **urls: str) -> None:
        """Put a service of that type into the catalog, with a URL for each ``region`` or ``region_interface``."""
        # Clients look at the first service of a type only, whatever regions the others have.
        present = [each["id"] for each in self.call("GET", "/services")["services"] if each["type"] == service]
        new = {"service": {"type": service, "name": service}}
        service_id = present[0] if present else self.call("POST", "/services", new)["service"]["id"]
        for place, url in urls.items():
            region, _, interface = place.partition("_")
            for each in [interface] if interface else ["public", "internal", "admin"]:
                if not any(found["id"] == region for found in self.call("GET", "/regions")["regions"]):
                    self.call("POST", "/regions", {"region": {"id": region}})
                endpoint = {"service_id": service_id, "interface": each, "region_id": region, "url": url}
                self.call("POST", "/endpoints", {"endpoint": endpoint})

    def _prepare(self) -> None:
        """A database with an admin in it, and keys."""
        with (CHECKOUT / ".cache/keystone.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (_TEMPLATE / "ready").exists():
                shutil.rmtree(_TEMPLATE, ignore_errors=True)
                _TEMPLATE.mkdir()
                self._configure(_TEMPLATE)
                self._manage("db_sync")
                self._manage("fernet_setup", *_owner())
                self._manage("credential_setup", *_owner())
                self._manage("bootstrap", "--bootstrap-password", "adminpass")
                (_TEMPLATE / "ready").touch()
        shutil.copytree(_TEMPLATE, self.directory, dirs_exist_ok=True)
        with contextlib.closing(sqlite3.connect(self.directory / "keystone.db")) as database:
            # Some versions write while another connection of the same request still reads.
            database.execute("PRAGMA journal_mode=WAL")
        self._configure(self.directory)

    def _configure(self, directory: Path) -> None:
        (directory / "keystone.conf").write_text(_KEYSTONE.format(directory=directory))

    def _manage(self, *arguments: str) -> None:
        for name in ("fernet-keys", "credential-keys"):
            (_TEMPLATE / name).mkdir(mode=0o700, exist_ok=True)
        command = [self._programs / "keystone-manage", "--config-file", _TEMPLATE / "keystone.conf", *arguments]
        subprocess.run(command, check=True, capture_output=True)

    def _populate(self) -> None:
        self._admin, token = self.token("admin", "admin")
        self.projects["admin"] = token["project"]["id"]
        for role in self.call("GET", "/roles")["roles"]:
            self._roles[role["name"]] = role["id"]
        self._roles["ResellerAdmin"] = self.call("POST", "/roles", {"role": {"name": "ResellerAdmin"}})["role"]["id"]
        self.add_endpoints("identity", RegionOne=self.url)
        for name in ("service", "demo", "alt_demo"):
            response = self.call("POST", "/projects", {"project": {"name": name, "domain_id": "default"}})
            self.projects[name] = response["project"]["id"]
        for name in ("swift", "images", "demo", "alt_demo"):
            user = {"name": name, "domain_id": "default", "password": f"{name}pass"}
            self.users[name] = self.call("POST", "/users", {"user": user})["user"]["id"]
        for name in ("swift", "images"):
            for role in ("admin", "service", "member", "ResellerAdmin"):
                self.grant(name, "service", role)
        self.grant("demo", "demo", "member")
        self.grant("alt_demo", "alt_demo", "member")

    def grant(self, user: str, project: str, role: str) -> None:
        """Give a role."""
        self.call("PUT", f"/projects/{self.projects[project]}/users/{self.users[user]}/roles/{self._roles[role]}")

    def _send(self, method: str, path: str, body: Any, **headers: str) -> tuple[Any, Any]:
        data = None if body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        url = path if path.startswith("http") else self.url + path
        request = urllib.request.Request(url, data, {"Content-Type": "application/json", **named})
        request.method = method
        with urllib.request.urlopen(request, timeout=60) as response:
            text = response.read()
            return response.headers, json.loads(text) if text else None


def _owner() -> list[str]:
    def who(option: str) -> str:
        return subprocess.run(["id", option], check=True, capture_output=True, text=True).stdout.strip()

    return ["--keystone-user", who("-un"), "--keystone-group", who("-gn")]
