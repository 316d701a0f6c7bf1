# SPDX-License-Identifier: Apache-2.0
"""``storelib demo``: the main job on real disk images, from nothing but this package.

Two file stores are named in an ini file; images are added to one, read back, copied to the other, verified there and
deleted from both. Then the image API is served over both, where it is installed, and each image goes through it.
Whatever is not as promised ends it with an error.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import secrets
import shutil
import subprocess
import sysconfig
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from storelib.cli import demo_service
from storelib.cli.demo_service import Broken, expect
from storelib.cli.files import Readable, chunks
from storelib.cli.output import size_text
from storelib.cli.session import Session, command
from storelib.exceptions import Duplicate, NotFound
from storelib.extras import needs

if TYPE_CHECKING:
    from storelib.driver import Store, StoredImage
    from storelib.registry import Registry

INI = """\
[storelib]
stores = fast:file, archive:file
default_store = fast

[fast]
filesystem_store_datadir = {directory}/fast
filesystem_thin_provisioning = true
weight = 10
description = where images are added

[archive]
filesystem_store_datadir = {directory}/archive
filesystem_thin_provisioning = true
description = where they are copied to
"""
DISK_SIZE = 1024**3
# Of users, PATH often lacks the directories with mke2fs.
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
# Not part of Python's library proper, or large and dull.
SKIPPED = shutil.ignore_patterns(
    "site-packages", "dist-packages", "test", "tests", "__pycache__", "config-*", "*.a", "*.so"
)


@command("demo")
@click.argument("given", metavar="[IMAGE]...", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--directory",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Work here and leave the configuration behind; else in a temporary directory.",
)
def demo(session: Session, given: tuple[Path, ...], directory: Path | None) -> None:
    """Add, read, copy, verify and delete disk images in two file stores, by the image API too, and tell about it.

    Without IMAGE it makes them: a sparse raw disk with a file system full of real files (mke2fs), and the same disk as
    qcow2 (qemu-img). With neither of these programs, give it the path of an image.
    """
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        return _run(directory.resolve(), given, session)
    with tempfile.TemporaryDirectory(prefix="storelib-demo-") as temporary:
        return _run(Path(temporary), given, session)


def _run(directory: Path, given: tuple[Path, ...], session: Session) -> None:
    from storelib.registry import Registry

    say = session.output.say
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="made-", dir=directory) as made:
        images = list(given) or list(_make_images(Path(made), say))
        ini = directory / "storelib.ini"
        ini.write_text(INI.format(directory=directory))
        registry = Registry.from_file(ini)
        say(f"{ini} names two file stores, fast and archive.")
        for image in images:
            Journey(registry, image, say).run()
        if _serves():
            demo_service.run(ini, images, say)
        else:
            say(f"\nThe image API is not shown: {needs('it', 'api')}.")
        size = sum(image.stat().st_size for image in images)
    seconds = time.monotonic() - begun
    if session.output.json:
        session.output.one({"images": len(images), "bytes": size, "seconds": seconds})
    say(
        f"\n{len(images)} disk images ({size_text(size)}) were added, read back, copied between two stores, "
        f"verified and deleted in {seconds:.1f} seconds, and every byte was right."
    )


def _serves() -> bool:
    """Whether the image API can be served here."""
    return all(importlib.util.find_spec(name) for name in ("falcon", "sqlalchemy", "gunicorn"))


class Journey:
    """What happens to one image, each step checked from outside."""

    def __init__(self, registry: Registry, image: Path, say: Callable[[str], None]) -> None:
        self.fast, self.archive = registry["fast"], registry["archive"]
        self.image = image
        self.image_id = f"{secrets.token_hex(4)}-{image.name}"
        self.size = image.stat().st_size
        self.say = say
        with image.open("rb") as file:
            self.digest = _digest(file)

    def run(self) -> None:
        """All steps, in order."""
        self.say(f"\n{self.image.name}: {size_text(self.size)}, of which {size_text(_on_disk(self.image))} on disk")
        added = self.add()
        self.read(self.fast, added)
        self.read_range(added)
        self.add_again()
        copied = self.copy(added)
        self.read(self.archive, copied)
        self.compare(copied)
        self.delete(self.fast, added)
        self.delete(self.archive, copied)

    def add(self) -> StoredImage:
        """Add the image to the fast store, from a path."""
        begun = time.monotonic()
        added = self.fast.add(self.image_id, self.image)
        self.tell(f"added to fast as {added.uri}", begun)
        expect(added.size == self.size, "the size it was stored with is wrong")
        expect(added.multihash == self.digest, "the sha512 it was stored with is wrong")
        self.say(f"  sha512 {added.multihash[:32]}..., md5 {added.checksum}")
        return added

    def read(self, store: Store[Any], stored: StoredImage) -> None:
        """Read the whole image back and compare its digest."""
        begun = time.monotonic()
        with store.get(stored.uri).data as stream:
            expect(_digest(stream) == self.digest, f"{stored.uri} reads back differently")
        self.tell(f"read back from {store.name} with the same sha512", begun)

    def read_range(self, stored: StoredImage) -> None:
        """Read some bytes in the middle of the image."""
        offset, length = self.size // 2, 100_000
        with self.image.open("rb") as file, self.fast.get(stored.uri, offset, length).data as stream:
            file.seek(offset)
            expect(stream.read() == file.read(length), "a range reads back differently")
        self.say(f"  {length} bytes from byte {offset} on are the same too")

    def add_again(self) -> None:
        """Which must be refused."""
        try:
            self.fast.add(self.image_id, b"another image")
        except Duplicate as error:
            self.say(f"  a second add of this id is refused: {error}")
        else:
            raise Broken("a second add of the same id was not refused")

    def copy(self, added: StoredImage) -> StoredImage:
        """To the other store; the digests are known, so nothing is hashed."""
        from storelib.transfer import Digests, copy

        begun = time.monotonic()
        digests = Digests(added.checksum, added.multihash)
        copied = copy(self.fast, added.uri, self.archive, self.image_id, digests=digests)
        self.tell(f"copied to archive as {copied.uri}", begun)
        return copied

    def compare(self, copied: StoredImage) -> None:
        """The stored file with the source, by a program that knows disk images."""
        program = _program("qemu-img")
        if program is None:
            return
        stored = urllib.parse.unquote(urllib.parse.urlsplit(copied.uri).path)
        # qemu-img goes by the content, whatever the file is called.
        _call(program, "compare", "-q", self.image, stored)
        self.say(f"  qemu-img finds the same disk in archive, {size_text(_on_disk(Path(stored)))} on disk")

    def delete(self, store: Store[Any], stored: StoredImage) -> None:
        """And it must be gone."""
        store.delete(stored.uri)
        try:
            store.get_size(stored.uri)
        except NotFound:
            self.say(f"  deleted from {store.name}")
        else:
            raise Broken(f"{stored.uri} is still there after it was deleted")

    def tell(self, what: str, begun: float) -> None:
        """A step and how fast it was."""
        seconds = max(time.monotonic() - begun, 1e-6)
        self.say(f"  {what} ({size_text(int(self.size / seconds))}/s)")


def _make_images(directory: Path, say: Callable[[str], None]) -> Iterator[Path]:
    """A bootless but otherwise real disk, sparse; and as qcow2 if possible."""
    mke2fs, qemu_img = _program("mke2fs"), _program("qemu-img")
    if mke2fs is None:
        raise click.UsageError("mke2fs (package e2fsprogs) is missing: give the path of a disk image")
    say("Making a disk with a file system that holds Python's standard library ...")
    files, raw = directory / "files", directory / "disk.raw"
    shutil.copytree(sysconfig.get_path("stdlib"), files, ignore=SKIPPED, symlinks=True)
    with raw.open("wb") as file:
        file.truncate(DISK_SIZE)
    _call(mke2fs, "-q", "-F", "-t", "ext4", "-L", "storelib", "-d", files, raw)
    yield raw
    if qemu_img is None:
        say("qemu-img (package qemu-utils) is missing, so there is no qcow2 image.")
        return
    qcow2 = directory / "disk.qcow2"
    _call(qemu_img, "convert", "-O", "qcow2", raw, qcow2)
    yield qcow2


def _program(name: str) -> str | None:
    return shutil.which(name, path=PATH)


def _call(*command_line: str | Path) -> None:
    try:
        subprocess.run(command_line, check=True, stdin=subprocess.DEVNULL)  # noqa: S603  (no shell, our own arguments)
    except subprocess.CalledProcessError as error:
        raise Broken(f"{Path(command_line[0]).name} failed with exit code {error.returncode}") from None


def _digest(file: Readable) -> str:
    digest = hashlib.sha512()
    for chunk in chunks(file, None):
        digest.update(chunk)
    return digest.hexdigest()


def _on_disk(path: Path) -> int:
    return path.stat().st_blocks * 512  # stat(2): always units of 512 bytes
