# SPDX-License-Identifier: Apache-2.0
"""Test suites that others wrote for the image API, as PyPI has them, in the environment of ``servers.clients``.

Tempest's image tests with its plugin for them, and the functional tests that openstacksdk, openstackclient and
glanceclient bring with them. They are run unchanged; what is here tells them where the services are.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from servers import clients
from servers.keystone import Keystone

#: Packages of tests by the name of their suite.
PACKAGES = {
    "tempest": ("tempest.api.image",),
    "formats": ("tempest.api.image.v2.test_images_formats",),
    "plugin": ("glance_tempest_plugin.tests",),
    "sdk": ("openstack.tests.functional.image", "openstack.tests.functional.cloud.test_image"),
    "openstack": ("openstackclient.tests.functional.image",),
    "glance": ("glanceclient.tests.functional",),
}
#: Those of one service alone, which want it configured as nothing else does.
LIMITS = {"limits": ("tempest.scenario.test_unified_limits",)}
#: Seconds that a suite may take.
_TIMEOUT = 1500.0

# Tests of one class stay together, for what the class sets up; every ``count``-th class is this process's.
_RUNNER = """
import importlib, json, os, sys, time, traceback, unittest
path, index, count, wanted, *names = sys.argv[1:]
results = open(path, "w", buffering=1)
loader = unittest.TestLoader()

def single(suite):
    for each in suite:
        yield from single(each) if isinstance(each, unittest.TestSuite) else [each]

def load(name):
    module = importlib.import_module(name)
    if not hasattr(module, "__path__"):
        return loader.loadTestsFromName(name)
    root = os.path.abspath(os.path.join(module.__path__[0], *[".."] * (name.count(".") + 1)))
    return loader.discover(module.__path__[0], "test_*.py", root)

class Result(unittest.TestResult):
    def startTest(self, test):
        super().startTest(test)
        self.began = time.monotonic()
    def say(self, test, outcome, detail=""):
        seconds = round(time.monotonic() - getattr(self, "began", time.monotonic()), 2)
        print(json.dumps([test.id(), outcome, seconds, str(detail)]), file=results)
    def addSuccess(self, test, details=None): self.say(test, "passed")
    def addSkip(self, test, reason=None, details=None): self.say(test, "skipped", reason or details["reason"].as_text())
    def failed(self, test, err, details):
        self.say(test, "failed", "\\n".join(each.as_text() for each in details.values()) if details
                 else "".join(traceback.format_exception(*err)))
    def addError(self, test, err=None, details=None): self.failed(test, err, details)
    def addFailure(self, test, err=None, details=None): self.failed(test, err, details)
    def addExpectedFailure(self, test, err=None, details=None): self.say(test, "passed")
    def addUnexpectedSuccess(self, test, details=None): self.say(test, "failed", "unexpected success")

wanted = json.loads(wanted)
tests = [test for name in names for test in single(load(name))]
classes = {}
for test in tests:
    if not wanted or any(each in test.id() for each in wanted):
        classes.setdefault(type(test), []).append(test)
suite = unittest.TestSuite(sum(list(classes.values())[int(index)::int(count)], []))
suite.run(Result())
"""

_TEMPEST = """
[DEFAULT]
log_dir = {directory}
log_file = tempest.log
debug = true
[oslo_concurrency]
lock_path = {directory}/locks
[auth]
use_dynamic_credentials = true
admin_username = admin
admin_password = adminpass
admin_project_name = admin
admin_domain_name = Default
admin_system = all
create_isolated_networks = false
[identity]
auth_version = v3
uri_v3 = {keystone.url}
region = {region}
admin_role = admin
default_domain_id = default
[service_available]
glance = true
cinder = false
neutron = false
nova = {nova}
swift = false
horizon = false
[enforce_scope]
glance = true
[image]
alternate_image_endpoint = image_remote
# The format that many tests declare comes first.
disk_formats = raw,qcow2,ami,ari,aki,vhd,vmdk,vdi,iso,vhdx
build_timeout = 60
build_interval = 1
http_image = {image}
http_qcow2_image = {image}
images_manifest_file = {directory}/manifest.yml
image_caching_enabled = true
[image-feature-enabled]
{features}
"""

_CLOUD = """
  {cloud}:
    region_name: {region}
    identity_api_version: '3'
    auth:
      auth_url: {keystone.url}
      username: {user}
      password: {user}pass
      user_domain_id: default
      {scope}
"""
_PROJECT = "project_name: {project}\n      project_domain_id: default"
#: Clouds that the suites of the clients ask for: user and project.
_CLOUDS = {
    "devstack": ("demo", "demo"),
    "devstack-alt": ("alt_demo", "alt_demo"),
    "devstack-admin": ("admin", "admin"),
}


class Outcome(NamedTuple):
    """What became of one test: ``passed``, ``failed`` or ``skipped``, and the reason or traceback."""

    test: str
    outcome: str
    seconds: float
    detail: str


class Suites:
    """Suites that run against the image service of ``region`` in the catalog of ``keystone``."""

    def __init__(
        self, directory: Path, keystone: Keystone, region: str, *, image: str, features: Mapping[str, bool]
    ) -> None:
        """``image`` is the URL of a qcow2 image, ``features`` are options of tempest about what the service can do."""
        self.directory = directory
        self._programs = clients.install()
        names = {"directory": directory, "keystone": keystone, "region": region}
        (directory / "locks").mkdir()
        lines = "\n".join(f"{name} = {value}" for name, value in features.items())
        (directory / "formats").mkdir()
        # Tests of the formats of images do not begin without Nova, and do not ask it for anything.
        for place, nova in ((directory, "false"), (directory / "formats", "true")):
            text = _TEMPEST.format(**names, image=image, features=lines, nova=nova)
            (place / "tempest.conf").write_text(text)
        clouds = {cloud: (user, _PROJECT.format(project=project)) for cloud, (user, project) in _CLOUDS.items()}
        clouds["devstack-system-admin"] = ("admin", "system_scope: all")
        sections = [
            _CLOUD.format(**names, cloud=cloud, user=user, scope=scope) for cloud, (user, scope) in clouds.items()
        ]
        (directory / "clouds.yaml").write_text("clouds:" + "".join(sections))
        _make_images(directory)
        # A file that the suite of openstacksdk uploads.
        (directory / "CONTRIBUTING.rst").write_text("This is not an image.\n")

    def run(self, suite: str, *wanted: str, processes: int = 1) -> list[Outcome]:
        """Run the tests of a suite whose names contain one of ``wanted``; all without."""
        paths = [self.directory / f"{suite}.{time.monotonic_ns()}.{index}" for index in range(processes)]
        running = [self._start(suite, path, index, processes, wanted) for index, path in enumerate(paths)]
        deadline = time.monotonic() + _TIMEOUT
        try:
            for process in running:
                process.wait(max(0.0, deadline - time.monotonic()))
        finally:
            for process in running:
                process.kill()
                process.wait()
        log = (self.directory / f"{suite}.log").read_text(errors="replace")
        assert all(process.returncode == 0 for process in running), log
        return [Outcome(*json.loads(line)) for path in paths for line in path.read_text().splitlines()]

    def _start(self, suite: str, path: Path, index: int, count: int, wanted: Sequence[str]) -> subprocess.Popen[bytes]:
        environment = {
            "PATH": f"{self._programs}:{os.environ.get('PATH', '')}",
            "HOME": str(self.directory),
            "LANG": "C.UTF-8",
            "TMPDIR": str(self.directory),
            "TEMPEST_CONFIG_DIR": str(self.directory / "formats" if suite == "formats" else self.directory),
            "OS_CLIENT_CONFIG_FILE": str(self.directory / "clouds.yaml"),
            "OS_GLANCECLIENT_EXEC_DIR": str(self._programs),
        }
        arguments = [path, index, count, json.dumps(wanted), *{**PACKAGES, **LIMITS}[suite]]
        with (self.directory / f"{suite}.log").open("ab") as log:
            return subprocess.Popen(
                [self._programs / "python", "-c", _RUNNER, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.directory,
                start_new_session=True,
            )


#: Images for the tests of formats: name, disk_format, and how ``qemu-img`` makes it; then those that open other files.
_IMAGES = (
    ("raw", "raw", "-f raw {} 1M"),
    ("qcow2", "qcow2", "-f qcow2 {} 1M"),
    ("vmdk-sparse", "vmdk", "-f vmdk -o subformat=monolithicSparse {} 1M"),
    ("vmdk-stream", "vmdk", "-f vmdk -o subformat=streamOptimized {} 1M"),
    ("vhd", "vhd", "-f vpc -o subformat=dynamic {} 1M"),
    ("vhdx", "vhdx", "-f vhdx {} 1M"),
    ("vdi", "vdi", "-f vdi {} 1M"),
)
_UNUSABLE = (
    ("qcow2-backing", "qcow2", "-u -f qcow2 -b /etc/passwd -F raw {} 1M"),
    ("qcow2-data-file", "qcow2", "-f qcow2 -o data_file={}.data {} 1M"),
    ("vmdk-flat", "vmdk", "-f vmdk -o subformat=monolithicFlat {} 1M"),
)


def _make_images(directory: Path) -> None:
    images = []
    for name, disk_format, words in (*_IMAGES, *_UNUSABLE):
        arguments = [word.replace("{}", name) for word in words.split()]
        subprocess.run(["qemu-img", "create", "-q", *arguments], check=True, cwd=directory, timeout=60)
        usable = (name, disk_format, words) in _IMAGES
        images.append({"name": name, "format": disk_format, "filename": name, "usable": usable})
    # JSON is YAML.
    (directory / "manifest.yml").write_text(json.dumps({"images": images}))
