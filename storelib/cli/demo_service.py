# SPDX-License-Identifier: Apache-2.0
"""The second half of ``storelib demo``: the same images through the image API, each command a process of its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

COMMAND = (sys.executable, "-c", "from storelib.cli.main import main; main()", "--format", "json")
#: Seconds that one command, and stopping, may take.
TIMEOUT = 600.0


class Broken(click.ClickException):
    """A promise that was not kept."""


def run(ini: Path, images: Sequence[Path], say: Callable[[str], None]) -> None:
    """Serve the stores of ``ini``, upload each image to both, list, download, compare, delete, audit."""
    directory = ini.parent
    with ini.open("a") as file:
        file.write(f"\n[database]\nconnection = sqlite:///{directory}/images.sqlite\n")
    with serving(ini) as server:
        say(f"\nstorelib serve listens on {server['url']}, the image API over the same stores.")
        stored = [
            Upload(server["url"], image, store, directory / f"from-{store}-{image.name}").run(say)
            for image in images
            for store in ("fast", "archive")
        ]
        listed = {image["id"] for image in call("image", "list", "--url", server["url"])}
        expect(set(stored) <= listed, "an image that was uploaded is not listed")
        say(f"  {len(listed)} images are listed")
        call("audit", "--config", ini, "--deep")
        say("  database and stores agree, digests included (storelib audit --deep)")
        call("image", "delete", *stored, "--url", server["url"])
    call("audit", "--config", ini)
    say("  all deleted, the server is stopped, and nothing is left behind")


class Upload:
    """One image to one store and back."""

    def __init__(self, url: str, image: Path, store: str, back: Path) -> None:
        self.url = url
        self.image = image
        self.store = store
        self.back = back

    def run(self, say: Callable[[str], None]) -> str:
        """The id of the image."""
        name = f"{self.image.name} in {self.store}"
        [created] = call("image", "create", name, "--file", self.image, "--store", self.store, "--url", self.url)
        digest = sha512(self.image)
        expect(created["os_hash_value"] == digest, f"the sha512 of {name} is wrong")
        say(f"  {self.image.name} is uploaded to {self.store} with the right sha512, as {created['id']}")
        try:
            call("image", "save", created["id"], "--output", self.back, "--url", self.url)
            expect(sha512(self.back) == digest, f"{name} is downloaded differently")
        finally:
            self.back.unlink(missing_ok=True)
        say("  downloaded, and the same")
        return str(created["id"])


@contextlib.contextmanager
def serving(ini: Path) -> Iterator[dict[str, Any]]:
    """What a server on a free port says of itself; it is told to stop at the end."""
    command = [*COMMAND, "serve", "--config", str(ini), "--bind", "127.0.0.1:0", "--workers", "1"]
    with subprocess.Popen(  # noqa: S603  (our own command)
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise Broken("storelib serve does not start")
            yield json.loads(line)
        finally:
            process.terminate()
            process.wait(TIMEOUT)


def call(*arguments: str | Path) -> list[dict[str, Any]]:
    """One command and the documents it prints."""
    done = subprocess.run(  # noqa: S603  (our own command)
        [*COMMAND, *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT
    )
    if done.returncode:
        raise Broken(
            f"storelib {arguments[0]} {arguments[1]} ended with {done.returncode}: {done.stderr or done.stdout}"
        )
    return [json.loads(line) for line in done.stdout.splitlines()]


def sha512(path: Path) -> str:
    """Of a whole file, in hexadecimal."""
    digest = hashlib.sha512()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def expect(kept: bool, otherwise: str) -> None:
    """Raise Broken unless it was kept."""
    if not kept:
        raise Broken(otherwise)
