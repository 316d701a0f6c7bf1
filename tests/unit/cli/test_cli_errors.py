# SPDX-License-Identifier: Apache-2.0
"""Every line about an error says which store, or which image, it is about."""

from __future__ import annotations

import shutil

import pytest

from storelib.drivers.filesystem import FilesystemStore
from storelib.exceptions import RemoteServiceUnavailable

BUSY = "the back end does not answer"


@pytest.fixture
def uri(storelib, places):
    disk = places / "disk.raw"
    disk.write_bytes(b"bytes" * 1000)
    return storelib("add", disk, "--id", "one", "--format", "json").document["uri"]


@pytest.fixture
def busy(monkeypatch):
    """Stores whose errors say nothing of themselves."""

    def refuse(self, *arguments):
        raise RemoteServiceUnavailable(BUSY, transient=False)

    for name in ("images", "garbage", "inspect", "measure", "open_reader", "remove"):
        monkeypatch.setattr(FilesystemStore, name, refuse)


@pytest.mark.parametrize("command", [("ls",), ("ls", "fast"), ("gc",), ("gc", "--dry-run"), ("gc", "fast")])
def test_store_and_directory_are_named(storelib, uri, busy, places, command):
    answer = storelib(*command)
    assert answer.code == 7
    assert f"store fast, {places}/fast: {BUSY}" in answer.err


@pytest.mark.parametrize("command", ["stat", "get", "rm", "verify", "acl", "cp"])
def test_the_image_is_named(storelib, uri, busy, command):
    options = {"get": ["-o", "copy"], "cp": ["archive"]}.get(command, [])
    answer = storelib(command, uri, *options)
    assert answer.code
    assert f"storelib: {uri}: " in answer.err or f"{uri}: {BUSY}" in answer.err


def test_each_image_that_cannot_be_removed_is_named(storelib, uri, busy):
    answer = storelib("rm", uri, f"{uri}2")
    assert all(f"storelib: {each}: {BUSY}" in answer.err for each in (uri, f"{uri}2"))


def test_a_credential_in_a_uri_is_not_shown(storelib, places):
    answer = storelib("stat", "s3://key:secret-word@s3.example/bucket/x")
    assert answer.code
    assert "secret-word" not in answer.err


def test_what_names_itself_is_not_named_twice(storelib, uri, places):
    assert storelib("stat", f"{uri}2").err.count(f"{uri}2") == 1
    storelib("ls")
    shutil.rmtree(places / "fast")
    (places / "storelib.ini").write_text((places / "storelib.ini").read_text() + "read_only = true\n")
    (places / "archive").mkdir(exist_ok=True)
    shutil.rmtree(places / "archive")
    answer = storelib("ls", "archive")
    assert answer.code == 7
    assert answer.err.count("store archive") == 1
    assert f"{places}/archive" in answer.err


def test_what_nobody_thought_of_is_told_with_its_type(storelib, monkeypatch):
    def fail(self):
        raise KeyError("images")

    monkeypatch.setattr(FilesystemStore, "images", fail)
    answer = storelib("ls")
    assert (answer.code, answer.err) == (1, "storelib: unexpected KeyError: 'images'; --verbose tells more\n")


def test_a_directory_that_cannot_be_made_is_named(storelib, places):
    (places / "storelib.ini").write_text("[storelib]\nstores = file\nfilesystem_store_datadir = /proc/images\n")
    assert "No such file or directory: /proc/images" in storelib("add", "storelib.ini").err


@pytest.mark.parametrize("command", ["audit", "serve"])
def test_a_staging_dir_that_cannot_be_made_is_named(storelib, places, command):
    with (places / "storelib.ini").open("a") as file:
        file.write(f"[database]\nconnection = sqlite:///{places}/db\n[api]\nstaging_dir = /proc/staging\n")
    storelib("db", "sync")
    answer = storelib(command)
    assert (answer.code, "[api] staging_dir = /proc/staging: " in answer.err) == (2, True)
