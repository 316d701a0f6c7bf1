# SPDX-License-Identifier: Apache-2.0
"""A whole image API in one process for tests: SQLite in a directory, three stores, callers by name."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import falcon.testing
import pytest
from empty_database import make_empty_database

import storelib.config
from storelib.api import config
from storelib.api.app import build_wsgi
from storelib.api.db import Repository, open_repository
from storelib.api.db.records import Changes, NewLocation
from storelib.api.errors import OutcomeUnknown
from storelib.api.middleware.identity import FromHeaders
from storelib.api.service import Service
from storelib.api.service.notifications import Notifier
from storelib.registry import Registry

FILE = """
[storelib]
stores = fast:file, mem:memory, spare:memory
default_store = fast
[fast]
filesystem_store_datadir = {directory}/images
weight = 5
[spare]
weight = 10
description = The spare one
[database]
connection = sqlite:///{directory}/images.sqlite
sqlite_synchronous = false
[api]
staging_dir = {directory}/staging
"""

with warnings.catch_warnings():
    # WebOb, which oslo.middleware stands on, still imports cgi.
    warnings.simplefilter("ignore", DeprecationWarning)
    import webob  # noqa: F401

OCTETS = {"Content-Type": "application/octet-stream"}
PATCH = "application/openstack-images-v2.1-json-patch"
OLD_PATCH = "application/openstack-images-v2.0-json-patch"
READY = {"name": "ready", "disk_format": "raw", "container_format": "bare"}


def add_location(repository: Repository, image_id: str, location: NewLocation) -> None:
    """One more place of the image's data, whatever is there."""
    image = repository.images.get(image_id)
    repository.images.update(image, Changes(locations=(*image.locations, location)))


def lose_commit(repository: Repository, patch: pytest.MonkeyPatch, number: int, committed: bool) -> list[Any]:
    """Of the writing transactions from now on, the answer to this one is lost; returns all that there were."""
    write, done = repository.database._write, []

    def lose(work):
        done.append(work)
        if len(done) != number:
            return write(work)
        if committed:
            write(work)
        raise OutcomeUnknown("lost")

    patch.setattr(repository.database, "_write", lose)
    return done


class Caller:
    """A caller that sends requests; project None has no token."""

    def __init__(self, wsgi: Any, project: str | None, *roles: str) -> None:
        self.project = project
        # Falcon looks at the signature of what it is given, which WebOb's middleware does not have.
        self._client = falcon.testing.TestClient(lambda environ, start_response: wsgi(environ, start_response))
        self._identity = (
            {
                "X-Identity-Status": "Confirmed",
                "X-User-Id": f"user-of-{project}",
                "X-Project-Id": project,
                "X-Roles": ",".join(roles),
            }
            if project
            else {}
        )

    def request(self, method: str, path: str, headers: dict[str, str] | None = None, **more: Any) -> Any:
        path, _, query = path.partition("?")
        return self._client.simulate_request(
            method, path, query_string=query, headers={**self._identity, **(headers or {})}, **more
        )

    def get(self, path: str, **headers: str) -> Any:
        return self.request("GET", path, {name.replace("_", "-"): value for name, value in headers.items()})

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("POST", path, named, **({} if body is None else {"json": body}))

    def put(self, path: str, body: Any = None) -> Any:
        return self.request("PUT", path, **({} if body is None else {"json": body}))

    def delete(self, path: str) -> Any:
        return self.request("DELETE", path)

    def patch(self, image_id: str, *operations: dict[str, Any], kind: str = PATCH) -> Any:
        body = json.dumps(list(operations))
        return self.request("PATCH", f"/v2/images/{image_id}", {"Content-Type": kind}, body=body)

    def upload(self, image_id: str, data: bytes, **headers: str) -> Any:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("PUT", f"/v2/images/{image_id}/file", OCTETS | named, body=data)

    def download(self, image_id: str, **headers: str) -> Any:
        return self.get(f"/v2/images/{image_id}/file", **headers)

    def create(self, **values: Any) -> str:
        """The id of a new image, which has formats, so that it can get data."""
        response = self.post("/v2/images", READY | values)
        assert response.status_code == 201, response.text
        return response.json["id"]

    def active(self, data: bytes = b"the data", **values: Any) -> str:
        """The id of a new image with data."""
        image_id = self.create(**values)
        assert self.upload(image_id, data).status_code == 204
        return image_id

    def show(self, image_id: str) -> dict[str, Any]:
        response = self.get(f"/v2/images/{image_id}")
        assert response.status_code == 200, response.text
        return response.json


class Deployment:
    """One service and its callers. ``options`` are of ``[api]``, ``sections`` more text of the file."""

    def __init__(self, directory: Path, sections: str = "", **options: Any) -> None:
        self.directory = directory
        path = directory / "storelib.ini"
        lines = [f"{name} = {value}" for name, value in options.items()]
        path.write_text(FILE.format(directory=directory) + "\n".join([*lines, sections]))
        # A second one in the same directory goes on with what is there.
        if not (directory / "images.sqlite").exists():
            make_empty_database(directory / "images.sqlite")
        self.conf = storelib.config.load_file(path)
        config.register_opts(self.conf)
        self.events: list[tuple[str, str, Any]] = []
        self.registry = Registry.from_conf(self.conf)
        #: Of all processes of the tests, closed at their end.
        self.repositories: list[Repository] = []
        self.service = self.another_process()
        self.repository = self.service.core.repository
        policy = self.service.core.policy
        self.wsgi = build_wsgi(self.conf, self.service, identify=FromHeaders(policy, anonymous=True))
        self.admin = self.caller("admins", "admin", "member", "reader")
        self.alice = self.caller("alpha", "member", "reader")
        self.colleague = self.caller("alpha", "reader")
        self.bob = self.caller("beta", "member", "reader")
        self.nova = self.caller("services", "service", "member", "reader")
        self.nobody = self.caller(None)

    def another_process(self) -> Service:
        """A service over the same database and stores, as a second API process would have."""
        notifier = Notifier(lambda priority, event, payload: self.events.append((priority, event, payload)))
        repository = open_repository(self.conf)
        self.repositories.append(repository)
        try:
            return Service(self.conf, repository, self.registry, notifier=notifier, renew=0)
        except BaseException:
            repository.close()
            raise

    def caller(self, project: str | None, *roles: str) -> Caller:
        return Caller(self.wsgi, project, *roles)

    def files(self) -> list[str]:
        """Names of what is in the file store, finished or not."""
        directory = self.directory / "images"
        return sorted(path.name for path in directory.iterdir()) if directory.exists() else []

    def settle(self) -> None:
        """Wait for the work in the background."""
        assert self.service.workers.wait(20)

    def close(self) -> None:
        self.service.stop()
        for repository in self.repositories:
            repository.close()


class Deployed:
    """One API for the tests of a class; ``options`` are of ``[api]``, ``sections`` more text of its file."""

    options: dict[str, Any] = {}  # noqa: RUF012
    sections = ""
    api: Deployment

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _deployed(cls, tmp_path_factory):
        cls.api = Deployment(tmp_path_factory.mktemp("api"), cls.sections, **cls.options)
        yield
        cls.api.close()
        # Classes outlive their tests: each full collection of garbage would look at all applications so far.
        del cls.api
