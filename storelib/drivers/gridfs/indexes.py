# SPDX-License-Identifier: Apache-2.0
"""The indexes of a bucket: GridFS' own, and the one that keeps ids unique. Those that are there are not made again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from storelib.drivers.gridfs.errors import UNAUTHORIZED
from storelib.drivers.gridfs.layout import IMAGE
from storelib.exceptions import BadStoreConfiguration


class Index(NamedTuple):
    """Its fields, all ascending, and its options; ``needed`` if adds are not safe without it."""

    fields: tuple[str, ...]
    options: dict[str, bool]
    needed: bool = True

    @property
    def key(self) -> list[tuple[str, int]]:
        """As MongoDB has it."""
        return [(field, 1) for field in self.fields]


OF_FILES = (
    Index((IMAGE,), {"unique": True, "sparse": True}),
    Index(("filename", "uploadDate"), {}, needed=False),
)
OF_CHUNKS = (Index(("files_id", "n"), {"unique": True}),)


def ensure(collection: Any, wanted: Sequence[Index], store_name: str) -> None:
    """Make those that are not there; raises BadStoreConfiguration for one that is needed and may not be made."""
    from pymongo import IndexModel
    from pymongo.errors import OperationFailure

    there = _existing(collection)
    for index in wanted:
        if any(_serves(found, index) for found in there):
            continue
        try:
            collection.create_indexes([IndexModel(index.key, **index.options)])
        except OperationFailure as error:
            if error.code != UNAUTHORIZED:
                raise
            if index.needed:
                options = ", ".join(f"{name}: true" for name in index.options)
                raise BadStoreConfiguration(
                    f"store {store_name}: collection {collection.name} has no index on {', '.join(index.fields)} "
                    f"({options}) that the user in mongodb_store_uri can see, nor may that user make it (createIndex); "
                    "make it as administrator, or give the user the role readWrite"
                ) from error


def _existing(collection: Any) -> list[Any]:
    from pymongo.errors import OperationFailure

    try:
        with collection.list_indexes() as found:
            return list(found)
    except OperationFailure as error:
        if error.code != UNAUTHORIZED:
            raise
        return []


def _serves(found: Any, index: Index) -> bool:
    same = list(found["key"].items()) == index.key
    plain = not {"collation", "partialFilterExpression"} & set(found)
    return same and plain and all(found.get(option, False) == value for option, value in index.options.items())
