# SPDX-License-Identifier: Apache-2.0
"""storelib cache: the image cache of this host is listed, filled and emptied without a server."""

from __future__ import annotations

import io
import json
import uuid

import pytest
from empty_database import make_empty_database

from storelib.registry import Registry

DATA = b"some bytes" * 100


@pytest.fixture
def service(places):
    """The service on the same configuration, to have images."""
    from storelib.api import config
    from storelib.api.db import open_repository
    from storelib.api.service import Service
    from storelib.config import load_file

    with (places / "storelib.ini").open("a") as file:
        file.write(f"[api]\nimage_cache_dir = {places}/cache\nimage_cache_max_size = 3000\n")
        file.write(f"[database]\nconnection = sqlite:///{places}/images.sqlite\nsqlite_synchronous = false\n")
    make_empty_database(places / "images.sqlite")
    conf = load_file(places / "storelib.ini")
    config.register_opts(conf)
    repository = open_repository(conf)
    found = Service(conf, repository, Registry.from_conf(conf), renew=0)
    yield found
    found.stop()
    repository.close()


@pytest.fixture
def image(service):
    """Makes images with data."""
    from storelib.api.context import administrator
    from storelib.api.service import Source

    def make():
        made = service.images.create(administrator(), {"disk_format": "raw", "container_format": "bare"})
        service.data.upload(administrator(), made.id, Source(io.BytesIO(DATA)))
        return made.id

    return make


def run(storelib, *arguments, code=0):
    response = storelib("cache", *arguments, "--format", "json")
    assert response.code == code, response.err
    return [json.loads(line) for line in response.out.splitlines()]


def states(storelib):
    return {each["image"]: each["state"] for each in run(storelib, "list")}


def test_queued_images_are_fetched_and_listed(storelib, image):
    queued, waiting = image(), image()
    run(storelib, "queue", queued, waiting)
    assert states(storelib) == {queued: "queued", waiting: "queued"}
    assert run(storelib, "prefetch", queued) == [{"image": queued, "outcome": "cached"}]
    assert states(storelib) == {queued: "cached", waiting: "queued"}
    assert run(storelib, "prefetch") == [{"image": waiting, "outcome": "cached"}]
    [one, _] = run(storelib, "list")
    assert (one["size"], one["hits"]) == (len(DATA), 0)
    assert run(storelib, "prefetch", queued) == [{"image": queued, "outcome": "cached already"}]


def test_what_cannot_be_fetched_is_said(storelib, service, image):
    missing, lost = str(uuid.uuid4()), image()
    [location] = service.core.repository.images.get(lost).locations
    service.core.registry.resolve(location.uri).delete(location.uri)
    found = run(storelib, "prefetch", missing, lost, code=1)
    assert found == [{"image": missing, "outcome": "no such image"}, {"image": lost, "outcome": "failed"}]


def test_images_are_removed(storelib, image):
    ids = [image() for _ in range(3)]
    run(storelib, "prefetch", *ids)
    run(storelib, "delete", ids[0])
    assert set(states(storelib)) == set(ids[1:])
    assert storelib("cache", "delete", str(uuid.uuid4())).code == 3
    run(storelib, "queue", ids[0])
    assert run(storelib, "clear", "--queue") == [{"removed": 1}]
    assert run(storelib, "clear") == [{"removed": 2}]
    assert states(storelib) == {}


def test_a_lower_limit_is_kept(storelib, image, places):
    first, second = image(), image()
    run(storelib, "prefetch", first, second)
    ini = places / "storelib.ini"
    ini.write_text(ini.read_text().replace("max_size = 3000", "max_size = 1000"))
    assert run(storelib, "prune") == [{"files": 1, "bytes": len(DATA)}]
    assert states(storelib) == {second: "cached"}


def test_a_host_without_a_cache_says_so(storelib, places):
    with (places / "storelib.ini").open("a") as file:
        file.write(f"[database]\nconnection = sqlite:///{places}/images.sqlite\n")
    response = storelib("cache", "list")
    assert response.code == 2
    assert "image_cache_dir is not set" in response.err
