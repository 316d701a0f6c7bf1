# SPDX-License-Identifier: Apache-2.0
"""Suites that nobody here wrote (tempest, its image plugin, those of the clients) against ``storelib serve``.

A run of all tests takes a part of each; ``--whole-suites``, as in ``make test-clients``, takes them whole, on
PostgreSQL and on what an installation begins with, and tells what was skipped and why.
"""

from __future__ import annotations

import collections
import contextlib
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from servers.api import Deployment
from servers.keystone import Keystone
from servers.nginx import Nginx
from servers.postgresql import PostgreSQL
from servers.suites import PACKAGES, Outcome, Suites

#: The configuration of one of two hosts, which share the stores and the staged data.
INI = """
[storelib]
stores = files:file, more:file, web:http
default_store = files
[files]
filesystem_store_datadir = {shared}/files
weight = 200
[more]
filesystem_store_datadir = {shared}/more
weight = 100
[web]
http_allowed_networks = 0.0.0.0/0
http_allowed_ports =
weight = 50
[api]
auth_strategy = keystone
staging_dir = {shared}/staging
image_cache_dir = {directory}/cache
show_multiple_locations = true
enabled_import_methods = glance-direct, web-download, copy-image, glance-download
import_allowed_networks = 0.0.0.0/0
import_allowed_ports =
{options}
[database]
connection = {connection}
sqlite_synchronous = false
{authtoken}
"""
#: What tempest is told of that.
FEATURES = {"manage_locations": True, "http_store_enabled": True, "store_weight_enabled": True}


class Variant(NamedTuple):
    """Options of the API, and what tempest has to know of them."""

    options: str
    features: Mapping[str, bool]


#: Names of databases, and how the API on each is configured: tempest has tests for both ways of both options.
VARIANTS = {
    "postgresql": Variant(
        "[image_import_opts]\nimage_import_plugins = image_conversion\n[image_conversion]\noutput_format = raw",
        {**FEATURES, "image_conversion": True},
    ),
    "sqlite": Variant(
        "do_secure_hash = false\nrequire_image_format_match = false",
        {**FEATURES, "do_secure_hash": False, "image_format_enforcement": False},
    ),
}
#: The part of each suite for a run of all tests, by parts of the tests' names: quick, and something of everything.
PARTS = {
    "tempest": (
        *("BasicOperationsImages", "ListSharedImagesTest", "ImagesTags", "ImagesNegativeTest", "ImageLocationsTest"),
        # Of one store and of several.
        "LocationImportTest",
        *("ImportImagesTest", "ImageCachingTest", "MetadataSchemaTest", "VersionsTest"),
    ),
    "formats": ("import",),
    "plugin": ("ImagesProjectReaderTests", "metadefs.test_objects.ProjectMemberTests"),
    "sdk": (),
    "openstack": ("InfoTests", "CacheTests"),
    "glance": ("v2.test_readonly_glance.SimpleReadOnlyGlanceClientTest.test_list_v2", "test_member_list_v2"),
}
#: Why a test may be skipped, in words of its suite.
SKIPPED = (
    # A defect of Glance that tempest knows.
    "Skipped until bug: https://launchpad.net/bugs/2030527 is resolved.",
    # Tests of other services, which only get images that this one refuses.
    *("Nova is not available", "Unable to test compute image formats"),
    # So it does: there is nothing more to the test.
    "Glance does not currently reject unusable images on upload",
    # Tests of two services at once.
    "No image_remote service to test against",
    # One that serves data itself, on a machine without a network.
    "Could not bind HTTP location server",
    # Tests for the other value of an option.
    *("do_secure_hash is enabled", "do_secure_hash is disabled"),
    "Image format enforcement prevents testing with bogus image data",
)


class Service:
    """The API on two hosts, in a region of Keystone's catalog, with an image that all see."""

    def __init__(self, directory: Path, connection: str, variant: Variant, keystone: Keystone, nginx: Nginx) -> None:
        ini = INI.replace("{shared}", str(directory))
        ini = ini.replace("{options}", variant.options).replace("{authtoken}", keystone.authtoken)
        region = directory.name
        self.hosts = []
        for kind in ("image", "image_remote"):
            (directory / kind).mkdir()
            host = Deployment(directory / kind, connection, ini)
            if not self.hosts:
                manage(host, "db", "sync")
                manage(host, "metadefs", "load")
            self.hosts.append(host)
            keystone.add_endpoints(kind, **{region: host.serve().url})
        keystone.add_endpoints("identity", **{region: keystone.url})
        # The suite of openstacksdk looks for an image by its name.
        url = f"{self.hosts[0].servers[0].url}/v2/images"
        fields = {"name": "cirros-disk", "disk_format": "qcow2", "container_format": "bare", "visibility": "public"}
        image = keystone.call_service("POST", url, fields)
        keystone.upload(f"{url}/{image['id']}/file", (nginx.www / "disk.qcow2").read_bytes())
        (directory / "suites").mkdir()
        self.suites = Suites(
            directory / "suites", keystone, region, image=nginx.url("/disk.qcow2"), features=variant.features
        )

    def close(self) -> None:
        for host in self.hosts:
            host.close()


def manage(host: Deployment, *arguments: str) -> None:
    response = host.run(*arguments)
    assert response.code == 0, response.err


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Iterator[Callable[[str], Service]]:
    """Services by their database, each started when it is first asked for."""
    running: dict[str, Service] = {}
    with contextlib.ExitStack() as stack:
        keystone = stack.enter_context(Keystone(tmp_path_factory.mktemp("keystone")))
        postgresql = stack.enter_context(PostgreSQL())
        nginx = stack.enter_context(Nginx(tmp_path_factory.mktemp("nginx") / "nginx"))
        disk = nginx.www / "disk.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "16M"], check=True)

        def start(database: str) -> Service:
            if database not in running:
                directory = tmp_path_factory.mktemp(database)
                sqlite = f"sqlite:///{directory}/images.sqlite"
                connection = sqlite if database == "sqlite" else postgresql.new_database()
                running[database] = Service(directory, connection, VARIANTS[database], keystone, nginx)
                stack.callback(running[database].close)
            return running[database]

        yield start


class TestSuites:
    """Each test of others passes, or is skipped for a reason that is known."""

    @pytest.mark.parametrize("suite", PARTS)
    def test_pass_in_part(self, service, suite):
        outcomes = service("postgresql").suites.run(suite, *PARTS[suite])
        check(outcomes)
        for part in PARTS[suite]:
            assert any(part in each.test and each.outcome == "passed" for each in outcomes), part

    @pytest.mark.whole_suites
    @pytest.mark.timeout(1800)
    @pytest.mark.parametrize(
        ("database", "suite"),
        # Without the check of formats, their tests are Nova's.
        [
            (database, suite)
            for database in VARIANTS
            for suite in PACKAGES
            if (database, suite) != ("sqlite", "formats")
        ],
    )
    def test_pass_whole(self, service, suite, database, record_property):
        outcomes = service(database).suites.run(suite, processes=2)
        record_property("table", table(f"{suite} on {database}", outcomes))
        check(outcomes)


def check(outcomes: list[Outcome]) -> None:
    assert any(each.outcome == "passed" for each in outcomes)
    failed = [each for each in outcomes if each.outcome == "failed"]
    assert not failed, "\n\n".join(f"{each.test}\n{each.detail}" for each in failed)
    skipped = {each.detail.strip() for each in outcomes if each.outcome == "skipped"}
    assert {reason for reason in skipped if not any(known in reason for known in SKIPPED)} == set()


def table(title: str, outcomes: list[Outcome]) -> str:
    """How many passed, and the name of each of the others."""
    counts = collections.Counter(each.outcome for each in outcomes)
    others = [f"  {each.outcome}: {each.test}" for each in outcomes if each.outcome != "passed"]
    return "\n".join([f"{title}: {dict(counts)}", *others])
