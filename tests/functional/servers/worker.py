# SPDX-License-Identifier: Apache-2.0
"""``storelib worker`` as real processes beside those of ``api.py``, which may be told to die at a certain moment."""

from __future__ import annotations

import json
import os
import select
import signal

from servers import warm
from servers.api import TIMEOUT, Deployment

#: Where in the work of an import a worker dies, as (module, class, method, before or after it).
STAGES = {
    "taken": ("storelib.api.db.jobs", "Jobs", "take", "after"),
    "begun": ("storelib.api.service.imports", "Imports", "resume", "before"),
    "opened": ("storelib.api.service.data", "Data", "inspected", "before"),
    "stored": ("storelib.api.service.data", "Data", "check_quota", "before"),
    "not recorded": ("storelib.api.db.uploads", "Uploads", "finish", "before"),
    "recorded": ("storelib.api.db.uploads", "Uploads", "finish", "after"),
}
_DYING = """
import importlib, os, signal, sys
module, kind, name, when = {stage!r}
owner = getattr(importlib.import_module(module), kind)
original = getattr(owner, name)
def dying(*arguments, **more):
    if when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*arguments, **more)
    # Of a job that was not there nothing is taken.
    if result is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(owner, name, dying)
"""
_DEAF = """
from storelib.api import worker
from storelib.api.service.background import Background
worker.LOOK = 3600
Background.look = lambda self: None
"""


class WorkerProcess:
    """``with WorkerProcess(deployment) as worker``: one that waits for work.

    ``dies`` is one of STAGES. ``looks`` False: it looks for work only when it is told to.
    """

    def __init__(self, deployment: Deployment, *options: str, dies: str | None = None, looks: bool = True) -> None:
        before = _DYING.format(stage=STAGES[dies]) if dies else ""
        code = f"{before}{'' if looks else _DEAF}\nfrom storelib.cli.main import main\nmain()"
        arguments = ["--format", "json", "--config", str(deployment.config), "worker", *options]
        with (deployment.directory / "worker.log").open("a") as log:
            self.process = warm.Program(code, arguments, cwd=deployment.directory, stderr=log)

    def __enter__(self) -> WorkerProcess:
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], TIMEOUT)
        assert readable, "the worker says nothing"
        line = self.process.stdout.readline()
        # One that dies at once may do so before.
        assert line or self.process.wait(TIMEOUT) == -signal.SIGKILL
        assert not line or json.loads(line)["pid"] == self.process.pid
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT)

    def kill(self) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait(TIMEOUT)
        if self.process.stdout is not None:
            self.process.stdout.close()
