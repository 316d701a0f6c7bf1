# SPDX-License-Identifier: Apache-2.0
"""Root: how the few commands are run that only root may. Volumes in Ceph need none of them."""

from __future__ import annotations

import os
import shlex
import subprocess

from storelib.exceptions import BadStoreConfiguration, TransferTimeout, misconfigured
from storelib.transfer.deadlines import within
from storelib.volumes.settings import Settings


class CommandFailed(Exception):
    """A command said no; ``said`` is what it wrote, which may hold addresses."""

    def __init__(self, said: str) -> None:
        super().__init__("a command failed")
        self.said = said


class Root:
    """The operator's way to be root: none where the process is root already."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @property
    def helper(self) -> str:
        """What is put before a command; raises BadStoreConfiguration where there is nothing to put there."""
        if os.geteuid() == 0:
            return ""
        if self._settings.root_helper is not None:
            return self._settings.root_helper
        path = self._settings.rootwrap_config
        if not os.path.exists(path):
            raise self.unusable(f"{path} does not exist; only root can connect these volumes")
        return f"sudo glance-rootwrap {shlex.quote(path)}"

    def run(self, *command: str) -> None:
        """Run a command as root, within the time that this thread has left; raises CommandFailed."""
        helper = shlex.split(self.helper)
        limit = within(self._settings.transfer_timeout)
        try:
            done = subprocess.run(  # noqa: S603  (no shell; the program is named by us or by the operator)
                [*helper, *command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise TransferTimeout(f"{command[0]} takes longer than {limit:g} s") from None
        except OSError as error:
            raise self.unusable(f"{(helper or command)[0]} cannot be run: {error.strerror}") from None
        if done.returncode:
            raise CommandFailed(done.stderr.strip())

    def unusable(self, why: str) -> BadStoreConfiguration:
        """The error of the operator's way to be root."""
        option = "rootwrap_config" if self._settings.root_helper is None else "cinder_root_helper"
        return misconfigured(self._settings.store_name, option, why)
