# SPDX-License-Identifier: Apache-2.0
"""The demonstration does what it says, and notices what is wrong."""

from __future__ import annotations

import os

import pytest

from storelib.drivers.filesystem import FilesystemStore


@pytest.fixture
def image(places):
    path = places / "disk.raw"
    path.write_bytes(b"boot" + bytes(1 << 20) + b"files" * 50_000)
    return path


@pytest.fixture
def with_api():
    """Asks for the second half."""


@pytest.fixture(autouse=True)
def no_api(monkeypatch, request):
    """The second half starts servers: one test is enough."""
    if "with_api" not in request.fixturenames:
        monkeypatch.setattr("storelib.cli.demo._serves", lambda: False)


@pytest.mark.usefixtures("with_api")
def test_images_go_through_the_image_api_as_well(storelib, image):
    response = storelib("demo", image, "--directory", "work")
    assert response.code == 0
    assert "uploaded to archive with the right sha512" in response.out.decode()
    assert "all deleted, the server is stopped, and nothing is left behind" in response.out.decode()
    assert os.listdir("work/fast") == os.listdir("work/archive") == []


def test_the_last_line_is_one_sentence_of_result(storelib, image):
    response = storelib("demo", image)
    assert response.code == 0
    last = response.out.decode().splitlines()[-1]
    assert last.startswith("1 disk images (1.2 MiB) were added, read back, copied")
    assert last.endswith("and every byte was right.")


def test_a_directory_is_left_with_its_configuration_and_no_images(storelib, image, places):
    storelib("demo", image, "--directory", "work")
    assert sorted(os.listdir("work")) == ["archive", "fast", "storelib.ini"]
    assert os.listdir("work/fast") == os.listdir("work/archive") == []


def test_it_can_be_repeated_in_the_same_directory(storelib, image):
    assert [storelib("demo", image, "--directory", "work").code for _ in range(2)] == [0, 0]


def test_json_is_one_document(storelib, image):
    assert storelib("demo", image, "--format", "json").document["images"] == 1


def test_a_store_that_does_not_delete_is_found_out(storelib, image, monkeypatch):
    monkeypatch.setattr(FilesystemStore, "delete", lambda self, uri: None)
    response = storelib("demo", image)
    assert response.code == 1
    assert "is still there after it was deleted" in response.err
