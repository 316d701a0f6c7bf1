# SPDX-License-Identifier: Apache-2.0
"""File systems of the tests' own: a small tmpfs, xfs in a file, a read-only bind mount. All need root."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator

import pytest


def _need(command: str = "mount") -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    if shutil.which(command) is None:
        pytest.skip(f"{command} is not installed")


@contextlib.contextmanager
def _mounted(path: pathlib.Path, *arguments: str) -> Iterator[pathlib.Path]:
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", *arguments, str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@contextlib.contextmanager
def tmpfs(path: pathlib.Path, size: int) -> Iterator[pathlib.Path]:
    """A tmpfs of ``size`` bytes."""
    _need()
    with _mounted(path, "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        yield path


@contextlib.contextmanager
def xfs(parent: pathlib.Path, size: int) -> Iterator[pathlib.Path]:
    """An xfs with reflinks in a file of ``size`` bytes below ``parent``."""
    _need("mkfs.xfs")
    image = parent / "xfs.img"
    with open(image, "wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
    with _mounted(parent / "xfs", "-o", "loop", str(image)) as path:
        yield path
    image.unlink()


@contextlib.contextmanager
def mounted_read_only(path: pathlib.Path) -> Iterator[None]:
    """``path`` itself, read-only for a while; root may write anywhere else."""
    _need()
    subprocess.run(["mount", "--bind", str(path), str(path)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(path)], check=True)
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)
