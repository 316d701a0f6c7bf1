# SPDX-License-Identifier: Apache-2.0
"""A vCenter on a free loopback port: the simulator of govmomi, behind the gate of ``vcenter/main.go``.

Debian: golang-go, golang-github-vmware-govmomi-dev. ``python -m servers.vcenter`` in ``tests/functional`` builds it,
which takes half a minute; a second time does nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import ssl
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

from servers.environments import CHECKOUT
from servers.nginx import free_ports, make_certificate

_SOURCE = Path(__file__).with_name("vcenter") / "main.go"
#: Seconds that it may take to start.
_TIMEOUT = 120.0
#: The datacenters that it has: one in a folder, the other not.
NESTED, PLAIN = "F0/DC1", "DC0"
#: The datastores that each of them has.
FIRST, SECOND = "LocalDS_0", "LocalDS_1"


def install() -> Path:
    """The program; builds it unless it is there."""
    cache = CHECKOUT / ".cache"
    cache.mkdir(exist_ok=True)
    program = cache / f"vcenter-{hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]}"
    with open(cache / "vcenter.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            settings = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOFLAGS": "", "GOPROXY": "off"}
            # There need not be a compiler for C.
            settings["CGO_ENABLED"] = "0"
            building = program.with_suffix(".part")
            subprocess.run(
                ["go", "build", "-o", str(building), str(_SOURCE)],
                env={**os.environ, **settings, "GOCACHE": str(cache / "go")},
                check=True,
                stdin=subprocess.DEVNULL,
            )
            building.rename(program)
    return program


class Vcenter:
    """``with Vcenter(directory) as server``: HTTPS at localhost and ``server.port``, for ``server.user``."""

    def __init__(
        self,
        directory: Path,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        renamed: tuple[str, str] | None = None,
        routed: bool = True,
        wsdl: Path | None = None,
    ) -> None:
        self.directory = directory
        self.host = host
        #: Names of PLAIN and its FIRST, instead of these.
        self.renamed = renamed
        self.user, self.password = "storelib@vsphere.local", secrets.token_hex(20)
        self.port = port or 0
        #: Whether it wants a second cookie, as a proxy before several vCenters does.
        self.routed = routed
        self._port = port
        #: A directory with the description of the service, for clients that want one.
        self._wsdl = wsdl
        #: What clients must trust.
        self.certificate = directory / "certificate.pem"
        #: Where the files of each datastore are, by names of datacenter and datastore.
        self.datastores: dict[tuple[str, str], Path] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Vcenter:
        program = install()
        (self.directory / "datastores").mkdir(parents=True)
        make_certificate(self.certificate, self.directory / "key.pem")
        for _ in range(3):  # a port found free may be taken by the time it listens
            [self.port] = [self._port] if self._port else free_ports(1)
            if self._start(program):
                return self
        raise RuntimeError(f"the vCenter simulator does not start: {self._log.read_text()[-3000:]}")

    def __exit__(self, *exc_info: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(timeout=30)

    @property
    def address(self) -> tuple[str, int]:
        """What a proxy connects to."""
        return self.host, self.port

    def thumbprint(self, algorithm: str) -> str:
        """That of the certificate, as people write it."""
        der = ssl.PEM_cert_to_DER_cert(self.certificate.read_text())
        digest = hashlib.new(algorithm, der).hexdigest().upper()
        return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))

    def control(self, what: str, **query: object) -> str:
        """See main.go."""
        address = f"[{self.host}]" if ":" in self.host else self.host
        url = f"https://{address}:{self.port}/control/{what}?{urllib.parse.urlencode(query)}"
        context = ssl.create_default_context(cafile=str(self.certificate))
        context.check_hostname = False
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(url, timeout=10) as response:
            return str(response.read().decode())

    @contextlib.contextmanager
    def maintenance(self, datacenter: str, datastore: str) -> object:
        """A datastore that is in maintenance for a while."""
        place = {"datacenter": datacenter.rpartition("/")[2], "datastore": datastore}
        self.control("maintenance", **place, mode="inMaintenance")
        try:
            yield
        finally:
            self.control("maintenance", **place, mode="normal")

    @property
    def _log(self) -> Path:
        return self.directory / "vcenter.log"

    def _start(self, program: Path) -> bool:
        address = f"[{self.host}]" if ":" in self.host else self.host
        command = [str(program), "-listen", f"{address}:{self.port}", "-user", self.user, "-password", self.password]
        command += ["-certificate", str(self.certificate), "-key", str(self.directory / "key.pem")]
        inventory = self.directory / "inventory"
        command += [f"-routed={str(self.routed).lower()}"]
        command += ["-wsdl", str(self._wsdl)] if self._wsdl else []
        command += ["-rename", "\t".join(self.renamed)] if self.renamed else []
        with self._log.open("ab") as log, inventory.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env={"PATH": os.environ.get("PATH", ""), "TMPDIR": str(self.directory / "datastores")},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
            )
        deadline = time.monotonic() + _TIMEOUT
        while self._process.poll() is None and time.monotonic() < deadline:
            *lines, _ = inventory.read_text().split("\n")
            if lines and lines[-1] == "ready":
                for datacenter, datastore, path in (line.split("\t") for line in lines[:-1]):
                    self.datastores[datacenter, datastore] = Path(path)
                return True
            time.sleep(0.02)
        self.__exit__()
        return False


if __name__ == "__main__":
    install()
