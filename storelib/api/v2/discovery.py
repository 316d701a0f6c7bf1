# SPDX-License-Identifier: Apache-2.0
"""``/v2/info``, ``/v2/schemas`` and ``/v2/tasks``: what there is here and what is going on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

import falcon

from storelib.api import schemas
from storelib.api.db.records import TaskQuery
from storelib.api.errors import ResourceNotFound
from storelib.api.json_response import send
from storelib.api.parsing import page_size
from storelib.api.service import Context, Service
from storelib.api.v2.serializers import query_pairs


class Document:
    """A resource whose GET returns what ``document`` makes of the caller."""

    def __init__(self, document: Callable[[Context], Any]) -> None:
        self._document = document

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Send the document as this caller may see it."""
        send(resp, self._document(req.context.caller))


class SchemaResource:
    """The schemas, encoded anew for each request: clients ask once."""

    def __init__(self, documents: Mapping[str, schemas.Schema]) -> None:
        self._documents = documents

    def on_get(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        """Send the schema ``name``; raises ResourceNotFound."""
        if name not in self._documents:
            raise ResourceNotFound(f"there is no schema {name!r}")
        send(resp, self._documents[name])


class TasksResource:
    """The tasks of all images, in pages."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Send one page, with a link to the next."""
        options = self._service.core.options
        asked = dict(query_pairs(req))
        query = TaskQuery(
            asked.get("type"),
            asked.get("status"),
            asked.get("sort_key", "created_at"),
            asked.get("sort_dir", "desc"),
            page_size(asked.get("limit"), options.limit_param_default, options.api_limit_max),
            asked.pop("marker", None),
        )
        tasks, more = self._service.tasks.list(req.context.caller, query)
        others = f"?{urlencode(asked)}" if asked else ""
        document = {"tasks": tasks, "first": f"/v2/tasks{others}", "schema": "/v2/schemas/tasks"}
        if more:
            document["next"] = f"/v2/tasks?{urlencode({**asked, 'marker': tasks[-1]['id']})}"
        send(resp, document)


class TaskResource:
    """One task of any image."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_get(self, req: falcon.Request, resp: falcon.Response, task_id: str) -> None:
        """Show what it does and how it ended."""
        send(resp, self._service.tasks.show(req.context.caller, task_id))


class ImageTasksResource:
    """The tasks of one image."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_get(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """Send the latest one, which is all that is kept."""
        send(resp, {"tasks": self._service.tasks.of_image(req.context.caller, image_id)})


def info_resources(service: Service) -> dict[str, Document]:
    """What is below ``/v2/info``."""
    methods = {
        "description": "Import methods available.",
        "type": "array",
        "value": service.imports.methods,
    }
    stores = service.stores
    return {
        "import": Document(lambda context: {"import-methods": methods}),
        "stores": Document(lambda context: {"stores": stores.list(context)}),
        "stores/detail": Document(lambda context: {"stores": stores.detail(context)}),
        # There are no limits of the whole cloud here, which is what an empty document says.
        "usage": Document(lambda context: {"usage": {}}),
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
