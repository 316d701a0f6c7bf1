# SPDX-License-Identifier: Apache-2.0
"""``/v2/tasks`` and the tasks of images: what goes on in the background, and the older way to begin it."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import falcon

from storelib.api import schemas
from storelib.api.db.records import Task, TaskQuery
from storelib.api.describing import PAGE, Parameter, choice, described
from storelib.api.errors import BadRequest
from storelib.api.json_response import send
from storelib.api.links import location
from storelib.api.parsing import page_size
from storelib.api.service import Service
from storelib.api.v2.data import import_request
from storelib.api.v2.serializers import query_pairs, read_object, task_document

#: What else a list can name, each the value of a task's property.
_KNOWN_BY = ("id", "image_id", "user_id", "request_id")
_TASKS = [
    choice("type", "Tasks of this type", schemas.TASK["properties"]["type"]["enum"]),
    choice("status", "Tasks with this status", schemas.TASK["properties"]["status"]["enum"]),
    Parameter("owner", "Tasks of this project"),
    *(Parameter(name, f"Tasks with this {name}") for name in _KNOWN_BY),
    choice("sort_key", "What the list is sorted by", ["created_at", "id", "status", "type", "updated_at"]),
    choice("sort_dir", "In which direction", ["asc", "desc"]),
]


class TasksResource:
    """The tasks of all images, in pages."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({200: "tasks"}, query=[*PAGE, *_TASKS])
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """List a page of the tasks, with a link to the next."""
        options = self._service.core.options
        asked = dict(query_pairs(req))
        query = TaskQuery(
            _one_of("type", asked.get("type")),
            _one_of("status", asked.get("status")),
            asked.get("owner"),
            asked.get("sort_key", "created_at"),
            asked.get("sort_dir", "desc"),
            page_size(asked.get("limit"), options.limit_param_default, options.api_limit_max),
            asked.pop("marker", None),
            *(asked.get(name) for name in _KNOWN_BY),
        )
        tasks, more = self._service.tasks.list(req.context.caller, query)
        others = f"?{urlencode(asked)}" if asked else ""
        found = [task_document(task) for task in tasks]
        document = {"tasks": found, "first": f"/v2/tasks{others}", "schema": "/v2/schemas/tasks"}
        if more:
            document["next"] = f"/v2/tasks?{urlencode({**asked, 'marker': tasks[-1].id})}"
        send(resp, document)

    @described({201: "task"}, body="new-task", errors=(409, 413, 415), response_headers={"Location": "The task"})
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Begin a task, which goes on after the response."""
        self._service.task_requests.check(req.context.caller)
        task = self._begin(req, read_object(req))
        endpoint = self._service.core.options.public_endpoint
        resp.set_header("Location", location(req.env, endpoint, f"/v2/tasks/{task.id}"))
        send(resp, task_document(task), falcon.HTTP_201)

    def _begin(self, req: falcon.Request, body: dict[str, Any]) -> Task:
        for name in ("type", "input"):
            if name not in body:
                raise BadRequest(f"a task needs {name!r}")
        kind, given, requests = body["type"], body["input"], self._service.task_requests
        if not isinstance(given, dict):
            raise BadRequest("'input' must be an object")
        if kind == "import":
            return requests.make_image(req.context.caller, given)
        if kind == "location_import":
            return requests.add_location(req.context.caller, given)
        if _one_of("type", kind) != "api_image_import":
            raise BadRequest("'type' must be a string")
        asked = given.get("import_req")
        if not isinstance(asked, dict):
            raise BadRequest("the input needs 'import_req', an object")
        return requests.import_data(req.context.caller, given, import_request(asked, None))


class TaskResource:
    """One task of any image."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({200: "task"})
    def on_get(self, req: falcon.Request, resp: falcon.Response, task_id: str) -> None:
        """Show what a task does and how it ended."""
        send(resp, task_document(self._service.tasks.show(req.context.caller, task_id)))


class ImageTasksResource:
    """The tasks of one image."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({200: "image-tasks"})
    def on_get(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """List the tasks of an image that are kept, the latest first."""
        tasks = self._service.tasks.of_image(req.context.caller, image_id)
        send(resp, {"tasks": [task_document(task) for task in tasks]})


def _one_of(name: str, value: Any) -> Any:
    """``value`` of a task's property; raises BadRequest for one that no task ever has."""
    known = schemas.TASK["properties"][name]["enum"]
    if value is not None and value not in known:
        raise BadRequest(f"{name} must be one of {', '.join(known)}, not {value!r}")
    return value
