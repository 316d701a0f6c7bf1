# SPDX-License-Identifier: Apache-2.0
"""Tasks: what is or was done to an image in the background. The latest one of each image is kept in its properties,
which clients cannot set, and goes with the image.
"""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from storelib.api.context import Context
from storelib.api.db.records import Caller, Query
from storelib.api.errors import ApiError, BadRequest, InvalidMarker, ResourceNotFound
from storelib.api.service.core import LOG, Core

Task = dict[str, Any]
Found = list[Task]

#: Properties of an import that clients see: the stores still to be filled, those that failed, and the task at work.
IMPORTING, FAILED, TASK = "os_glance_importing_to_stores", "os_glance_failed_import", "os_glance_import_task"
#: Where staged data is, and the task as JSON with what it is found by.
STAGED, RECORD, TASK_ID, KIND = (
    "os_glance_stage_uri",
    "os_glance_task_record",
    "os_glance_task_id",
    "os_glance_task_kind",
)
HIDDEN = frozenset({STAGED, RECORD, TASK_ID, KIND})
#: Every task has this kind, so that all are found by it.
ANY = "any"
LISTED = 1000
#: Characters of a message at most.
LONGEST = 2000


SORT_KEYS = ("created_at", "expires_at", "id", "status", "type", "updated_at")
DIRECTIONS = ("asc", "desc")


class TaskQuery(NamedTuple):
    """Which tasks, in which order, how many, behind which. None is any, or the beginning."""

    kind: str | None = None
    status: str | None = None
    sort_key: str = "created_at"
    sort_dir: str = "desc"
    limit: int = LISTED
    marker: str | None = None


class Tasks:
    """Begin, end and look at tasks."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def begin(self, context: Context, image_id: str, kind: str, given: Mapping[str, Any], stores: str = "") -> None:
        """Note a task in its image; ``stores`` are those it fills."""
        now = _now()
        task_id = str(uuid.uuid4())
        task = {
            "id": task_id,
            "type": kind,
            "status": "processing",
            "image_id": image_id,
            "owner": context.project_id,
            "user_id": context.user_id,
            "request_id": context.request_id,
            "input": dict(given),
            "result": None,
            "message": "",
            "expires_at": None,
            "created_at": now,
            "updated_at": now,
            "self": f"/v2/tasks/{task_id}",
            "schema": "/v2/schemas/task",
        }
        values = {RECORD: json.dumps(task), TASK_ID: task_id, KIND: ANY, TASK: task_id}
        if stores:
            values[IMPORTING] = stores
        self._core.repository.images.set_properties(image_id, values, remove=[FAILED])

    def ended(
        self, image_id: str, failed: Sequence[str], message: str, *, success: bool = True
    ) -> dict[str, str | None]:
        """How the image's properties say that its task ended, None for those that go; nothing if none is at work.

        For ``finish_upload``, so that both end at once; which tells if the image is gone.
        """
        try:
            task = self._of(self._core.repository.images.get(image_id).properties)
        except ApiError as error:
            LOG.warning("image %s: the end of its task is not noted: %s", image_id, error)
            return {}
        if task.get("status") != "processing":
            return {}
        # Messages quote what clients sent, and a record has to fit into a property.
        task |= {"status": "success" if success else "failure", "message": message[:LONGEST], "updated_at": _now()}
        values: dict[str, str | None] = {IMPORTING: None, TASK: None, STAGED: None, RECORD: json.dumps(task)}
        if failed:
            values[FAILED] = ",".join(failed)
        return values

    def fail(self, image_id: str, failed: Sequence[str], message: str) -> None:
        """Note that the image's task failed, if one is at work; that the database does not answer is only logged."""
        try:
            if values := self.ended(image_id, failed, message, success=False):
                kept = {name: value for name, value in values.items() if value is not None}
                self._core.repository.images.set_properties(image_id, kept, remove=values.keys() - kept.keys())
        except ApiError as error:
            LOG.warning("image %s: the end of its task is not noted: %s", image_id, error)

    def of_image(self, context: Context, image_id: str) -> Found:
        """The latest task of an image, as a list of none or one."""
        properties = self._core.get_visible(context, image_id).properties
        return [self._of(properties)] if properties.get(RECORD) else []

    def list(self, context: Context, query: TaskQuery | None = None) -> tuple[Found, bool]:
        """One page of the tasks of all images, and whether more follow; raises NotPermitted, BadRequest."""
        self._core.policy.require(context, "tasks_api_access", {})
        query = query or TaskQuery()
        for what, given, known in (("key", query.sort_key, SORT_KEYS), ("direction", query.sort_dir, DIRECTIONS)):
            if given not in known:
                raise BadRequest(f"a sort {what} must be one of {', '.join(known)}, not {given!r}")
        found = [
            task
            for task in self._found({KIND: ANY})
            if query.kind in (None, task["type"]) and query.status in (None, task["status"])
        ]
        found.sort(key=lambda task: (task[query.sort_key] or "", task["id"]), reverse=query.sort_dir == "desc")
        first = 0
        if query.marker is not None:
            places = [place for place, task in enumerate(found) if task["id"] == query.marker]
            if not places:
                raise InvalidMarker(f"marker {query.marker} is no task")
            first = places[0] + 1
        end = first + query.limit
        return found[first:end], 0 < query.limit < len(found) - first

    def show(self, context: Context, task_id: str) -> Task:
        """One task; raises NotPermitted and ResourceNotFound."""
        self._core.policy.require(context, "tasks_api_access", {})
        found = self._found({TASK_ID: task_id})
        if not found:
            raise ResourceNotFound(f"there is no task {task_id}")
        return found[0]

    def _found(self, properties: Mapping[str, str]) -> Found:
        query = Query(Caller(None, is_admin=True), limit=LISTED, properties=properties, visibility="all")
        return [self._of(image.properties) for image in self._core.repository.images.list(query).images]

    def _of(self, properties: Mapping[str, str | None]) -> Task:
        task: Task = json.loads(properties.get(RECORD) or "{}")
        return task


def shown_properties(properties: Mapping[str, str | None]) -> dict[str, str | None]:
    """The properties without those that only the service reads."""
    if HIDDEN.isdisjoint(properties):
        return dict(properties)
    return {name: value for name, value in properties.items() if name not in HIDDEN}


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
