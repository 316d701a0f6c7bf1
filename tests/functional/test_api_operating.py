# SPDX-License-Identifier: Apache-2.0
"""What operators do with database and stores together: back both up and restore them, run two hosts side by side."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers.api import COMMAND, DATA, INI, TIMEOUT, Deployment, Server, Upload, wait_until
from servers.postgresql import PostgreSQL

#: The order that docs/operators.rst gives: whatever the database of the backup names is in the stores of the backup.
DELAYED = "[api]\ndelayed_delete = true\nscrub_time = 86400\nlease_timeout = 2\n"


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgreSQL]:
    with PostgreSQL() as server:
        yield server


def add(server: Server, data: bytes) -> str:
    """The id of a new image with this data."""
    upload = Upload(server, data=data)
    assert upload.finish() == 204
    return upload.image_id


class Backup:
    """Of the database, then of the stores; ``between`` is what happens in the meantime."""

    def __init__(self, deployment: Deployment, directory: Path, connection: str | None) -> None:
        self.deployment, self.directory, self.connection = deployment, directory, connection
        directory.mkdir()

    def take(self, between) -> None:
        self.take_database()
        between()
        for store in ("fast", "archive"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copytree(self.deployment.directory / store, self.directory / store)

    def take_database(self) -> None:
        if self.connection is None:
            with (
                contextlib.closing(sqlite3.connect(self.deployment.directory / "images.sqlite")) as here,
                contextlib.closing(sqlite3.connect(self.directory / "images.sqlite")) as there,
            ):
                here.backup(there)
            return
        dump = ["pg_dump", "--format", "custom", "--file", self.directory / "dump", self.connection]
        subprocess.run(dump, check=True, timeout=TIMEOUT)

    def restore(self, directory: Path, connection: str | None) -> Deployment:
        """On a machine that has nothing; the stores first."""
        directory.mkdir()
        restored = Deployment(directory, connection, INI + DELAYED)
        for store in ("fast", "archive"):
            if (self.directory / store).exists():
                shutil.copytree(self.directory / store, directory / store)
        if connection is None:
            shutil.copy(self.directory / "images.sqlite", directory / "images.sqlite")
        else:
            load = ["pg_restore", "--dbname", connection, "--no-owner", self.directory / "dump"]
            subprocess.run(load, check=True, timeout=TIMEOUT)
        return restored


class TestBackup:
    @pytest.fixture(params=["sqlite", "postgresql"])
    def connections(self, request) -> tuple[str | None, str | None]:
        if request.param == "sqlite":
            return None, None
        server = request.getfixturevalue("postgresql")
        return server.new_database(), server.new_database()

    def test_a_backup_beside_servers_is_whole(self, tmp_path, connections):
        home = tmp_path / "home"
        home.mkdir()
        deployment = Deployment(home, connections[0], INI + DELAYED)
        if connections[0] is not None:
            assert deployment.run("db", "sync").code == 0
        server = deployment.serve("--workers", "2")
        images = [add(server, bytes([number]) * 100_000) for number in range(3)]
        under_way = Upload(server)
        later = {}

        def between() -> None:
            assert server.delete(images[0]) == 204
            later["id"] = add(server, DATA)

        backup = Backup(deployment, tmp_path / "backup", connections[0])
        backup.take(between)
        assert under_way.finish() == 204
        # All is lost.
        server.kill()
        for path in ("fast", "archive"):
            shutil.rmtree(home / path, ignore_errors=True)
        shutil.rmtree(home)
        restored = backup.restore(home, connections[1])
        try:
            again = restored.serve("--workers", "1")
            # What was deleted meanwhile is there as it was; what was being sent is to be sent again.
            for number, image in enumerate(images):
                assert again.download(image) == bytes([number]) * 100_000
            wait_until(lambda: again.status(under_way.image_id) == "queued")
            # Only what came later is in the stores alone.
            findings = restored.disagreements()
            assert [(found["kind"], found["image"]) for found in findings] == [("orphan", later["id"])]
            assert restored.run("rm", findings[0]["uri"]).code == 0
            assert restored.disagreements() == []
        finally:
            restored.close()

    def test_in_the_other_order_images_lose_their_data(self, tmp_path):
        """Why the order matters: what comes between is in the database without its data."""
        home = tmp_path / "home"
        home.mkdir()
        deployment = Deployment(home, None, INI + DELAYED)
        server = deployment.serve("--workers", "1")
        add(server, DATA)
        backup = Backup(deployment, tmp_path / "backup", None)
        shutil.copytree(home / "fast", tmp_path / "backup" / "fast")
        late = add(server, DATA)
        backup.take_database()
        server.kill()
        shutil.rmtree(home)
        restored = backup.restore(home, None)
        assert [(found["kind"], found["image"]) for found in restored.disagreements()] == [("missing", late)]


class TestTwoHosts:
    """Each has a configuration file of its own; database and stores are the same."""

    @pytest.fixture
    def hosts(self, tmp_path, postgresql) -> Iterator[list[Deployment]]:
        connection = postgresql.new_database()
        ini = INI.replace("{directory}/fast", f"{tmp_path}/fast").replace("{directory}/archive", f"{tmp_path}/archive")
        made = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            made.append(Deployment(tmp_path / name, connection, ini + "[api]\nlease_timeout = 2\n"))
        assert made[0].run("db", "sync").code == 0
        yield made
        for each in made:
            each.close()

    def test_what_one_does_the_other_shows_and_ends(self, hosts):
        one, two = hosts
        first, second = one.serve("--workers", "2"), two.serve("--workers", "2")
        image = add(first, DATA)
        assert second.download(image) == DATA
        # Of uploads to the same image at both, one gets it.
        both = Upload(first)
        assert second.status(both.image_id) == "saving"
        assert both.finish() == 204
        assert second.download(both.image_id) == DATA
        # One host dies in the middle of an upload; the other one cleans up after it.
        half = Upload(first)
        first.kill()
        wait_until(lambda: second.status(half.image_id) == "queued")
        half.connection.close()
        assert second.delete(image) == 204
        assert one.disagreements() == two.disagreements() == []
        # It comes back, and finds what the other did.
        again = one.serve("--workers", "1")
        assert again.request("GET", f"/v2/images/{image}").get("status") is None
        assert Upload(again, half.image_id).finish() == 204
        assert second.download(half.image_id) == DATA
        assert two.disagreements() == []

    def test_a_store_is_emptied_while_both_serve(self, hosts):
        one, two = hosts
        first, second = one.serve("--workers", "1"), two.serve("--workers", "1")
        images = [add(first, bytes([number]) * 200_000) for number in range(4)]
        moving = subprocess.Popen(
            [
                *COMMAND,
                "--config",
                str(two.config),
                "image",
                "move",
                "--from",
                "fast",
                "--to",
                "archive",
                "--rate",
                "1M",
                "--linger",
                "1",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        while moving.poll() is None:
            for number, image in enumerate(images):
                for server in (first, second):
                    assert server.download(image) == bytes([number]) * 200_000
        assert moving.returncode == 0, moving.stderr.read() if moving.stderr else ""
        moving.communicate()
        assert os.listdir(one.directory.parent / "fast") == []
        assert one.disagreements() == []


def test_the_commands_for_postgresql_in_the_docs_are_those_tried_here():
    text = (Path(__file__).parents[2] / "docs" / "operators.rst").read_text()
    assert "pg_dump --format custom --file" in text
    assert "pg_restore --dbname" in text
