# SPDX-License-Identifier: Apache-2.0
"""Metadata definitions as files: one namespace in each, in the JSON form that the API takes, too."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from storelib.api.db.metadefs import Metadefs, Namespace, NamespaceQuery, NewNamespace
from storelib.api.errors import AlreadyExists, ApiError, BadRequest
from storelib.api.service.metadefs import PLURAL, new_namespace

#: What this package brings along.
OURS = Path(__file__).with_name("definitions")
#: Namespaces asked for at once.
_PAGE = 100
#: Bytes of one file at most: as much as a request may have.
_LARGEST = 4 * 1024 * 1024


def read(path: Path) -> list[NewNamespace]:
    """The namespaces of a file, or of all ``*.json`` files of a directory; raises BadRequest, which names the file."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise BadRequest(f"there is no .json file in {path}")
    return [_read(file) for file in files]


def load(tables: Metadefs, namespace: NewNamespace, *, replace: bool = False) -> str:
    """Put a namespace into the database; returns ``made``, ``replaced``, or ``kept`` for one that was there.

    One that is replaced has afterwards what the file says and nothing else, and the owner that it had.
    """
    try:
        tables.create(namespace)
    except AlreadyExists:
        if not replace:
            return "kept"
        tables.replace(namespace)
        return "replaced"
    return "made"


def stored(tables: Metadefs) -> Iterator[Namespace]:
    """Every namespace of the database, the oldest first."""
    marker = None
    while True:
        query = NamespaceQuery(everything=True, descending=False, limit=_PAGE, marker=marker)
        found = tables.page(query)
        yield from found[:_PAGE]
        if len(found) <= _PAGE:
            return
        marker = found[_PAGE - 1].namespace


def document(tables: Metadefs, namespace: Namespace) -> dict[str, Any]:
    """A namespace as a file has it: without times, and without its owner, who is of one cloud."""
    names = ("namespace", "display_name", "description", "visibility", "protected")
    whole: dict[str, Any] = {name: value for name in names if (value := getattr(namespace, name)) is not None}
    associations = [
        {name: value for name in ("name", "prefix", "properties_target") if (value := getattr(each, name)) is not None}
        for each in reversed(tables.associations([namespace.id])[namespace.id])
    ]
    contents = tables.contents(namespace.id)
    listed: Mapping[str, Any] = {
        "resource_type_associations": associations,
        "properties": {each.name: dict(each.document) for each in reversed(contents["property"])},
        **{
            PLURAL[kind]: [{"name": each.name, **each.document} for each in reversed(contents[kind])]
            for kind in ("object", "tag")
        },
    }
    return whole | {name: value for name, value in listed.items() if value}


def file_name(namespace: str) -> str:
    """The name of a namespace's file: letters, digits and hyphens, told apart by what cannot be written so."""
    safe = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in namespace)
    unlike = "".join(letter for letter in namespace if not (letter.isascii() and (letter.isalnum() or letter in "-:")))
    return f"{safe}.json" if not unlike else f"{safe}-{namespace.encode().hex()[:40]}.json"


def _read(file: Path) -> NewNamespace:
    try:
        with open(file, encoding="utf-8") as opened:
            text = opened.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise BadRequest(f"it has more than {_LARGEST} characters")
        body = json.loads(text)
        if not isinstance(body, dict):
            raise BadRequest("it is no JSON object")
        return new_namespace(body, None)
    except OSError as error:
        raise BadRequest(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{file} is not JSON: {error}") from error
    except ApiError as error:
        raise BadRequest(f"{file}: {error}") from error
