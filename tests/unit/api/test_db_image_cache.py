# SPDX-License-Identifier: Apache-2.0
"""What the repository remembers of images is bounded. That it is never out of date is a promise of db_contract."""

from __future__ import annotations

import uuid

import pytest
from empty_database import make_empty_database

from storelib.api.db import Repository, image_cache
from storelib.api.db.engine import Database
from storelib.api.db.image_cache import ImageCache
from storelib.api.db.records import NewImage


@pytest.fixture
def image(tmp_path):
    make_empty_database(tmp_path / "images.sqlite")
    database = Database(f"sqlite:///{tmp_path}/images.sqlite")
    yield lambda **values: Repository(database).images.create(NewImage(str(uuid.uuid4()), **values))
    database.close()


def row_of(image, version=1):
    return (image.id, version)


def test_an_image_is_found_by_the_row_it_was_read_with(image):
    images, one = ImageCache(), image()
    images.add(row_of(one), one)
    assert images.find(row_of(one)) is one
    assert images.find(row_of(one, version=2)) is None


def test_no_more_than_so_many_are_remembered(image):
    images = ImageCache(memory=2)
    several = [image() for _ in range(3)]
    for each in several:
        images.add(row_of(each), each)
    assert [images.find(row_of(each)) is each for each in several] == [False, True, True]


@pytest.mark.parametrize(
    "values",
    [
        {"properties": {"x": "v" * image_cache.LARGEST}},
        {"properties": {f"{number:0200}": None for number in range(50)}},
        {"tags": frozenset(f"{number:0200}" for number in range(50))},
    ],
    ids=["one value", "names", "tags"],
)
def test_a_large_image_is_not(image, values):
    images, large = ImageCache(), image(**values)
    images.add(row_of(large), large)
    assert images.find(row_of(large)) is None
