# SPDX-License-Identifier: Apache-2.0
"""A real Glance with glance_store beside storelib, in an environment of its own: it runs on either of them.

``python -m servers.glance`` in ``tests/functional`` installs it; a second time does nothing. Its wheels bring the tests
of both, which run here, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from servers import environments
from servers.keystone import Keystone
from servers.nginx import free_ports
from servers.openstack import Processes

#: os-brick, oslo.vmware, swiftclient and boto3 are what the tests of glance_store import; the rest what Glance's do.
REQUIREMENTS = (
    *("glance==33.*", "glance_store==5.7.*", "os-brick", "oslo.vmware", "python-swiftclient", "boto3", "gunicorn"),
    "python-cinderclient",
    *("ddt", "fixtures", "oslotest", "requests-mock", "testtools", "WebTest", "setuptools>=77"),
    *("PyMySQL", "psycopg[binary]"),
)
PACKAGE = environments.CHECKOUT / "packaging" / "storelib-glance-store"
#: What switches a process from glance_store to storelib.
SWITCHED = {"STORELIB_GLANCE_STORE": "1"}

# Runs unit tests by name and tells as JSON what failed; glance's read files below the working directory.
_RUNNER = """
import json, sys, unittest, warnings
warnings.simplefilter("ignore")
wanted = json.loads(sys.argv[1])
if any(name.startswith("glance.") for name in wanted):
    import oslo_config.cfg, oslo_db.options
    oslo_db.options.set_defaults(oslo_config.cfg.CONF)
import glance_store
if glance_store.__name__ != "glance_store":
    # storelib has no tests of glance_store: those of the real one, under that name.
    glance_store.__path__.append(sys.argv[2])
suite = unittest.defaultTestLoader.loadTestsFromNames(wanted)
with open(sys.argv[3] + ".log", "w") as log:
    found = unittest.TextTestRunner(stream=log).run(suite)
failed = {case.id().removeprefix("storelib.compat."): text.strip().splitlines()[-1]
          for case, text in found.failures + found.errors}
with open(sys.argv[3], "w") as out:
    json.dump({"on": glance_store.__name__, "run": found.testsRun, "failed": failed}, out)
"""

# oslo.db begins transactions without saying that they will write: of two that read first, one then fails at once.
_PATIENT_SQLITE = """
from sqlalchemy import event
from sqlalchemy.engine import Engine

@event.listens_for(Engine, "before_cursor_execute", retval=True)
def begin(connection, cursor, statement, parameters, context, executemany):
    return "BEGIN IMMEDIATE" if statement == "BEGIN" else statement, parameters
"""


def install() -> Path:
    """The directory of the environment's programs; makes the environment at the first call, in about a minute."""
    programs = environments.install("glance", (*REQUIREMENTS, "-e", f"{environments.CHECKOUT}[s3,swift,vmware]"))
    # Which print what is missing where Debian's are for another version of Python.
    bindings = [environments.CHECKOUT / ".ci" / "ceph-bindings", programs / "python"]
    subprocess.run(bindings, check=True, stdout=subprocess.DEVNULL)
    _install_package(programs)
    return programs


def _install_package(programs: Path) -> None:
    """The small package as it is now; not again where it is there, since another process may be using it."""
    stamp = programs.parent / "package-stamp"
    files = sorted(path for path in PACKAGE.iterdir() if path.is_file())
    wanted = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    pip = [str(programs / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps"]
    with environments.locked("glance"):
        if not stamp.exists() or stamp.read_text() != wanted:
            subprocess.run([*pip, "--no-build-isolation", "--force-reinstall", str(PACKAGE)], check=True)
            stamp.write_text(wanted)


def run_tests(directory: Path, names: Sequence[str], environment: Mapping[str, str], timeout: float) -> dict[str, Any]:
    """Run unit tests that are in the wheels: ``run``, how many, and ``failed``, the last line of each one's error."""
    programs = install()
    directory.mkdir(parents=True, exist_ok=True)
    [site] = (programs.parent / "lib").glob("python3.*/site-packages")
    for name, target in (("glance", site / "glance"), ("etc", programs.parent / "etc")):
        (directory / name).symlink_to(target)
    (directory / "glance_store").mkdir()
    (directory / "glance_store" / "tests").symlink_to(site / "glance_store" / "tests")
    out = directory / "found.json"
    command = [
        str(programs / "python"),
        "-c",
        _RUNNER,
        json.dumps(list(names)),
        str(directory / "glance_store"),
        str(out),
    ]
    with (directory / "output.log").open("wb") as log:
        subprocess.run(
            command,
            cwd=directory,
            env={**_inherited(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            timeout=timeout,
            check=False,
        )
    if not out.exists():
        raise RuntimeError((directory / "output.log").read_text()[-3000:])
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def functional_tests() -> list[str]:
    """The modules of all functional tests that are in Glance's wheel."""
    [site] = (install().parent / "lib").glob("python3.*/site-packages")
    files = (site / "glance/tests/functional").rglob("test_*.py")
    return sorted(".".join(file.relative_to(site).with_suffix("").parts) for file in files)


class Glance:
    """``with Glance(directory, stores) as glance``: ``glance.start(switched)`` at ``glance.url``, and ``stop``.

    ``stores`` are names, each with its driver and options; ``options`` of other groups go before those written here.
    Who asks is what the headers say, or what ``keystone`` knows of their token. ``packages`` is a directory of Python
    packages that it finds besides; ``importable`` hosts and ports are those that web-download may read from. ``first``
    is code that its processes run before anything else.
    """

    def __init__(
        self,
        directory: Path,
        stores: Mapping[str, tuple[str, Mapping[str, object]]],
        *,
        keystone: Keystone | None = None,
        packages: Path | None = None,
        importable: tuple[str, int] | None = None,
        options: Mapping[str, Mapping[str, object]] | None = None,
        first: str = "",
    ) -> None:
        self.directory = directory
        self._first = first
        self._options = options or {}
        self._programs = install()
        self._stores = stores
        self._keystone = keystone
        self._packages = packages
        self._importable = importable
        self._processes = Processes(directory)
        [self.port] = free_ports(1)

    @property
    def url(self) -> str:
        """Version 2 of the API."""
        return f"http://127.0.0.1:{self.port}/v2"

    def __enter__(self) -> Glance:
        self._configure()
        self.manage("db", "sync")
        if "database" not in self._options:
            with contextlib.closing(sqlite3.connect(self.directory / "glance.db")) as database:
                database.execute("PRAGMA journal_mode=WAL")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._processes.stop()

    def manage(self, *words: str) -> None:
        """``glance-manage`` with its configuration."""
        command = [self._programs / "glance-manage", "--config-file", self.config, *words]
        with (self.directory / "manage.log").open("ab") as log:
            subprocess.run(command, env=_inherited(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True)

    @property
    def config(self) -> Path:
        """Its configuration file."""
        return self._conf / "glance-api.conf"

    @property
    def metadefs(self) -> Path:
        """The definitions that it brings."""
        return self._programs.parent / "etc/glance/metadefs"

    @property
    def _conf(self) -> Path:
        return self.directory / "conf"

    def start(self, *, on_storelib: bool, by_module: bool = False) -> None:
        """Run it on storelib or on glance_store, until ``stop``; ``by_module`` switches without the variable."""
        environment = dict(SWITCHED) if on_storelib and not by_module else {}
        module = "storelib.compat.wsgi" if on_storelib and by_module else "glance.wsgi.api"
        environment |= {"OS_GLANCE_CONFIG_DIR": str(self._conf)}
        environment["PYTHONPATH"] = os.pathsep.join(str(path) for path in (self._conf, self._packages) if path)
        command = [
            *(self._programs / "gunicorn", "--bind", f"127.0.0.1:{self.port}", "--workers", "1", "--threads", "8"),
            *("--timeout", "300", "--no-control-socket", f"{module}:application"),
        ]
        self._processes.start("glance-api", [str(word) for word in command], **environment)
        self._processes.wait_for(f"http://127.0.0.1:{self.port}/")

    @property
    def pid(self) -> int:
        """The process id of the one that started it; a child of that one works."""
        return self._processes.pid("glance-api")

    def stop(self) -> None:
        """End it; its database and stores stay."""
        self._processes.stop()
        self._processes = Processes(self.directory)

    def _configure(self) -> None:
        self._conf.mkdir(parents=True)
        (self._conf / "sitecustomize.py").write_text(_PATIENT_SQLITE + self._first)
        paste = (self._programs.parent / "etc/glance/glance-api-paste.ini").read_text()
        # The context is what the headers say, as behind Keystone's middleware; there is no Keystone here.
        (self._conf / "paste.ini").write_text(paste.replace(" unauthenticated-context ", " context "))
        directories = {name: self.directory / name for name in ("staging", "tasks", "work", "lock")}
        for path in directories.values():
            path.mkdir()
        groups: dict[str, Mapping[str, object]] = {
            "DEFAULT": {
                "enabled_backends": ",".join(f"{name}:{driver}" for name, (driver, _) in self._stores.items()),
                "enabled_import_methods": "[glance-direct,web-download,copy-image]",
                "show_multiple_locations": "true",
            },
            "glance_store": {"default_backend": next(iter(self._stores))},
            **{name: options for name, (_, options) in self._stores.items()},
            "os_glance_staging_store": {"filesystem_store_datadir": directories["staging"]},
            "os_glance_tasks_store": {"filesystem_store_datadir": directories["tasks"]},
            "database": {
                "connection": f"sqlite:///{self.directory}/glance.db?timeout=60",
                "sqlite_synchronous": "false",
            },
            "paste_deploy": {"flavor": "keystone" if self._keystone else "", "config_file": self._conf / "paste.ini"},
            "task": {"work_dir": directories["work"]},
            "oslo_concurrency": {"lock_path": directories["lock"]},
            "wsgi": {"task_pool_threads": 4, "python_interpreter": self._programs / "python"},
        }
        if self._importable is not None:
            host, port = self._importable
            groups["import_filtering_opts"] = {"allowed_hosts": f"[{host}]", "allowed_ports": f"[{port}]"}
        for group, more in self._options.items():
            groups[group] = {**groups.get(group, {}), **more}
        lines = []
        for group, options in groups.items():
            lines += [f"[{group}]", *(f"{name} = {value}" for name, value in options.items())]
        lines += [self._keystone.authtoken] if self._keystone else []
        self.config.write_text("\n".join(lines) + "\n")


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", *SWITCHED)}


if __name__ == "__main__":
    install()
