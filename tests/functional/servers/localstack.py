# SPDX-License-Identifier: Apache-2.0
"""An S3 server with every feature on a free loopback port: localstack, from a virtual environment of its own.

``python -m servers.localstack`` in ``tests/functional`` installs it; a second time does nothing. It knows conditional
writes, all checksums, SSE-C, ACLs and versions, but takes any credentials.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from servers import environments
from servers.nginx import free_ports

#: 4.14 needs a newer Python than Debian 12 has; the others are what 4.12 works with.
REQUIREMENTS = (
    "localstack-core[base-runtime]==4.12.0",
    "cbor2<6",
    "pyopenssl<26",
    "psutil<7.2",
    "plux<1.14",
    "setuptools==75.8.0",
)
#: Seconds that it may take to start.
_TIMEOUT = 120.0


def install() -> Path:
    """Make the environment unless it is there; returns its Python."""
    return environments.install("localstack", REQUIREMENTS) / "python"


class Localstack:
    """``with Localstack(directory) as server``: S3 at ``server.endpoint``, path-style, region us-east-1."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.access_key = "STORELIBTESTKEY00002"
        self.secret_key = secrets.token_hex(20)
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Where S3 is."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Localstack:
        python = install()
        for name in ("home", "state"):
            (self.directory / name).mkdir(parents=True)
        for _ in range(3):  # a port found free may be taken by the time it listens
            [self.port] = free_ports(1)
            if self._start(python):
                return self
        raise RuntimeError(f"localstack does not start: {self._log.read_text()[-3000:]}")

    def __exit__(self, *exc_info: object) -> None:
        if self._process is None:
            return
        # It takes over ten seconds to end by itself, and forks; the group is its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=30)

    @property
    def _log(self) -> Path:
        return self.directory / "localstack.log"

    def _start(self, python: Path) -> bool:
        address = f"127.0.0.1:{self.port}"
        settings = {
            "HOME": str(self.directory / "home"),
            "XDG_CACHE_HOME": str(self.directory / "home"),
            "FILESYSTEM_ROOT": str(self.directory / "state"),
            "TMPDIR": str(self.directory / "state"),
            "SERVICES": "s3",
            "STRICT_SERVICE_LOADING": "1",
            "EAGER_SERVICE_LOADING": "1",
            "GATEWAY_LISTEN": address,
            "GATEWAY_SERVER": "hypercorn",
            "LOCALSTACK_HOST": address,
            "S3_SKIP_SIGNATURE_VALIDATION": "0",
            "DISABLE_EVENTS": "1",
            "SKIP_SSL_CERT_DOWNLOAD": "1",
            "DNS_ADDRESS": "0",
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(python), "-m", "localstack.runtime.main"],
                env={"PATH": os.environ.get("PATH", ""), **settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + _TIMEOUT
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(f"{self.endpoint}/_localstack/health", timeout=5).close()
                return True
            time.sleep(0.1)
        self.__exit__()
        return False


if __name__ == "__main__":
    install()
