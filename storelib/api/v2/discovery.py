# SPDX-License-Identifier: Apache-2.0
"""``/v2/info`` and ``/v2/schemas``: what there is here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import falcon

from storelib.api import schemas
from storelib.api.describing import described
from storelib.api.errors import ResourceNotFound
from storelib.api.json_response import send
from storelib.api.service import Context, Service


class Document:
    """A resource whose GET returns what ``document`` makes of the caller."""

    def __init__(self, document: Callable[[Context], Any], schema: str) -> None:
        self._document = document
        #: The name of the document's schema among the components of the API's description.
        self.schema = schema

    @described({200: lambda self: self.schema})
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Send the document as this caller may see it."""
        send(resp, self._document(req.context.caller))


class SchemaResource:
    """The schemas, encoded anew for each request: clients ask once."""

    def __init__(self, documents: Mapping[str, schemas.Schema]) -> None:
        self._documents = {name: schemas.published(document) for name, document in documents.items()}
        self.path_fields = {"name": {"type": "string", "enum": [*documents]}}

    @described({200: {"type": "object"}})
    def on_get(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        """Send the schema ``name``; raises ResourceNotFound."""
        if name not in self._documents:
            raise ResourceNotFound(f"there is no schema {name!r}")
        send(resp, self._documents[name])


def info_resources(service: Service) -> dict[str, Document]:
    """What is below ``/v2/info``."""
    methods = {
        "description": "Import methods available.",
        "type": "array",
        "value": service.imports.methods,
    }
    stores = service.stores
    return {
        "import": Document(lambda context: {"import-methods": methods}, "info-import"),
        "stores": Document(lambda context: {"stores": stores.list(context)}, "info-stores"),
        "stores/detail": Document(lambda context: {"stores": stores.detail(context)}, "info-stores-detail"),
        "usage": Document(lambda context: {"usage": service.core.limits.usage(context.project_id)}, "info-usage"),
    }


def schema_documents(service: Service) -> dict[str, schemas.Schema]:
    """What is below ``/v2/schemas``."""
    image = service.core.schema.document
    return {
        "image": image,
        "images": schemas.collection("images", image, paged=True),
        "member": schemas.MEMBER,
        "members": schemas.collection("members", schemas.MEMBER, paged=True),
        "task": schemas.TASK,
        "tasks": schemas.collection("tasks", schemas.TASK, paged=True),
    }
