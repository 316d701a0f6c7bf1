# SPDX-License-Identifier: Apache-2.0
"""The command as a function, and two file stores for it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from storelib.cli.main import run


class Answer(NamedTuple):
    """What one run of the command gave."""

    code: int
    out: bytes
    err: str

    @property
    def documents(self):
        """The JSON documents on stdout, one in each line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def document(self):
        """The one JSON document on stdout."""
        [document] = self.documents
        return document


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A directory with storelib.ini, which names the stores fast and archive below it."""
    (tmp_path / "storelib.ini").write_text(
        f"""
[storelib]
stores = fast:file, archive:file
[fast]
filesystem_store_datadir = {tmp_path}/fast
[archive]
filesystem_store_datadir = {tmp_path}/archive
description = slow but safe
weight = 4
"""
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STORELIB_CONFIG", raising=False)
    return tmp_path


@pytest.fixture
def storelib(places: Path, capfdbinary, monkeypatch):
    """``storelib("add", "disk.raw")`` runs the command and answers what it gave."""

    def call(*arguments: object, stdin: bytes = b"") -> Answer:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfdbinary.readouterr()
        code = run([str(argument) for argument in arguments])
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        return Answer(code, out, err.decode())

    return call


@pytest.fixture(scope="module")
def serving():
    """``with serving(directory) as url`` is an image API of the ``my.ini`` there, in a process of its own."""

    @contextlib.contextmanager
    def serving(directory: Path, *options: str):
        arguments = ["--format", "json", "--config", "my.ini", "serve", "--bind", "127.0.0.1:0", "--workers", "1"]
        command = [sys.executable, "-c", "from storelib.cli.main import main; main()", *arguments, *options]
        with (
            open(directory / "log", "wb") as log,
            subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=log) as server,
        ):
            try:
                yield json.loads(server.stdout.readline())["url"]
            finally:
                server.terminate()
                server.wait(30)

    return serving


@pytest.fixture
def no_variables(monkeypatch):
    """Nothing in the environment says which image API is meant."""
    for name in list(os.environ):
        if name.startswith("OS_"):
            monkeypatch.delenv(name)
