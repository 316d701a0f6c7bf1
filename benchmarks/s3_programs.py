# SPDX-License-Identifier: Apache-2.0
"""Programs that s3.py compares with: rclone and restic, each run as a process for each image."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

from pairs import MiB, Stored, received

#: Neither takes settings from the user of a benchmark.
_NOTHING = {"RCLONE_CONFIG": "/dev/null", "RESTIC_PASSWORD": "benchmark", "HOME": "/nonexistent"}


class _Program:
    """``server`` is that of s3.py: an endpoint, keys, names, and what removes an object."""

    def __init__(self, server: Any, bucket: str, size: int) -> None:
        self.server = server
        self.bucket = bucket
        self.size = size
        self.environment = {
            "PATH": os.environ["PATH"],
            **_NOTHING,
            "AWS_ACCESS_KEY_ID": server.keys["aws_access_key_id"],
            "AWS_SECRET_ACCESS_KEY": server.keys["aws_secret_access_key"],
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def run(self, *command: str) -> None:
        subprocess.run(command, env=self.environment, check=True, stdout=subprocess.DEVNULL)

    def output(self, *command: str) -> Iterator[bytes]:
        with subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            yield from iter(lambda: process.stdout.read(MiB), b"")  # type: ignore[union-attr]
        if process.returncode:
            raise RuntimeError(f"{command[0]} failed with {process.returncode}")


class Rclone(_Program):
    """With its defaults: it computes the md5 of the file before, and sends four parts of 5 MiB at a time."""

    def __init__(self, server: Any, bucket: str, size: int) -> None:
        super().__init__(server, bucket, size)
        self.remote = f":s3,provider=Ceph,env_auth=true,endpoint='{server.endpoint}':{bucket}"

    def add(self, path: str) -> Callable[[], None]:
        name = next(self.server.names)
        # The bucket is there, and free servers keep nothing that could be looked at afterwards.
        quietly = ("--s3-no-check-bucket", "--s3-no-head", "--ignore-checksum")
        self.run("rclone", "copyto", *quietly, path, f"{self.remote}/{name}")
        stored: Callable[[], None] = self.server.stored(name)
        return stored

    def get(self, name: str) -> None:
        received(self.output("rclone", "cat", f"{self.remote}/{name}"), self.size)


class Restic(_Program):
    """A repository for each image, since it keeps equal pieces once."""

    numbers = itertools.count()

    def add(self, path: str) -> Stored:
        repository = f"s3:{self.server.endpoint}/{self.bucket}/restic-{next(self.numbers)}"
        options = ("restic", "--quiet", "--no-cache", "--repo", repository)
        self.run(*options, "init")
        self.run(*options, "backup", path)
        return Stored(
            self.size, lambda: self.output(*options, "dump", "latest", path), lambda: self._remove(repository)
        )

    def _remove(self, repository: str) -> None:
        prefix = repository.rpartition("/")[2] + "/"
        pages = self.server.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        for item in [item for page in pages for item in page.get("Contents", ())]:
            self.server.client.delete_object(Bucket=self.bucket, Key=item["Key"])
