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
    response = storelib(*command)
    assert response.code == 7
    assert f"store fast, {places}/fast: {BUSY}" in response.err


@pytest.mark.parametrize("command", ["stat", "get", "rm", "verify", "acl", "cp"])
def test_the_image_is_named(storelib, uri, busy, command):
    options = {"get": ["-o", "copy"], "cp": ["archive"]}.get(command, [])
    response = storelib(command, uri, *options)
    assert response.code
    assert f"storelib: {uri}: " in response.err or f"{uri}: {BUSY}" in response.err


def test_each_image_that_cannot_be_removed_is_named(storelib, uri, busy):
    response = storelib("rm", uri, f"{uri}2")
    assert all(f"storelib: {each}: {BUSY}" in response.err for each in (uri, f"{uri}2"))


def test_a_credential_in_a_uri_is_not_shown(storelib, places):
    response = storelib("stat", "s3://key:secret-word@s3.example/bucket/x")
    assert response.code
    assert "secret-word" not in response.err


def test_what_names_itself_is_not_named_twice(storelib, uri, places):
    assert storelib("stat", f"{uri}2").err.count(f"{uri}2") == 1
    storelib("ls")
    shutil.rmtree(places / "fast")
    (places / "storelib.ini").write_text((places / "storelib.ini").read_text() + "read_only = true\n")
    (places / "archive").mkdir(exist_ok=True)
    shutil.rmtree(places / "archive")
    response = storelib("ls", "archive")
    assert response.code == 7
    assert response.err.count("store archive") == 1
    assert f"{places}/archive" in response.err


def test_what_nobody_thought_of_is_told_with_its_type(storelib, monkeypatch):
    def fail(self):
        raise KeyError("images")

    monkeypatch.setattr(FilesystemStore, "images", fail)
    response = storelib("ls")
    assert (response.code, response.err) == (1, "storelib: unexpected KeyError: 'images'; --verbose tells more\n")


def test_a_directory_that_cannot_be_made_is_named(storelib, places):
    (places / "storelib.ini").write_text("[storelib]\nstores = file\nfilesystem_store_datadir = /proc/images\n")
    assert "No such file or directory: /proc/images" in storelib("add", "storelib.ini").err


@pytest.mark.parametrize("command", ["audit", "serve"])
def test_a_staging_dir_that_cannot_be_made_is_named(storelib, places, command):
    with (places / "storelib.ini").open("a") as file:
        file.write(f"[database]\nconnection = sqlite:///{places}/db\n[api]\nstaging_dir = /proc/staging\n")
    storelib("db", "sync")
    response = storelib(command)
    assert (response.code, "[api] staging_dir = /proc/staging: " in response.err) == (2, True)
