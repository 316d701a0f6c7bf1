# SPDX-License-Identifier: Apache-2.0
"""Tasks: what is or was done to an image in the background. The latest one of each image is kept in its properties,
which clients cannot set, and goes with the image.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from storelib.api.context import Context
from storelib.api.db.records import Task, TaskPage, TaskQuery
from storelib.api.db.tasks import TASK_PROPERTIES, from_properties, to_properties
from storelib.api.errors import ApiError
from storelib.api.service.core import LOG, Core

#: Properties of an import that clients see: the stores still to be filled, those that failed, and the task at work.
IMPORTING, FAILED, TASK = "os_glance_importing_to_stores", "os_glance_failed_import", "os_glance_import_task"
#: Where staged data is.
STAGED = "os_glance_stage_uri"
HIDDEN = TASK_PROPERTIES | {STAGED}
#: Characters of a message at most.
LONGEST = 2000


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
        values = {**to_properties(task), TASK: task_id}
        if stores:
            values[IMPORTING] = stores
        self._core.repository.images.set_properties(image_id, values, remove=[FAILED])

    def ended(
        self, image_id: str, failed: Sequence[str], message: str, *, success: bool = True
    ) -> dict[str, str | None]:
        """How the image's properties say that its task ended, None for those that go; nothing if none is at work.

        For ``Uploads.finish``, so that both end at once; which tells if the image is gone.
        """
        try:
            task = from_properties(self._core.repository.images.get(image_id).properties)
        except ApiError as error:
            LOG.warning("image %s: the end of its task is not noted: %s", image_id, error)
            return {}
        if task is None or task["status"] != "processing":
            return {}
        # Messages quote what clients sent, and a record has to fit into a property.
        task |= {"status": "success" if success else "failure", "message": message[:LONGEST], "updated_at": _now()}
        values: dict[str, str | None] = {IMPORTING: None, TASK: None, STAGED: None, **to_properties(task)}
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

    def of_image(self, context: Context, image_id: str) -> Sequence[Task]:
        """The latest task of an image, as a list of none or one."""
        task = from_properties(self._core.get_visible(context, image_id).properties)
        return [] if task is None else [task]

    def list(self, context: Context, query: TaskQuery) -> TaskPage:
        """One page of the tasks of all images; raises NotPermitted, and what the table's ``list`` raises."""
        self._core.policy.require(context, "tasks_api_access", {})
        return self._core.repository.tasks.list(query)

    def show(self, context: Context, task_id: str) -> Task:
        """One task; raises NotPermitted and ResourceNotFound."""
        self._core.policy.require(context, "tasks_api_access", {})
        return self._core.repository.tasks.get(task_id)


def shown_properties(properties: Mapping[str, str | None]) -> dict[str, str | None]:
    """The properties without those that only the service reads."""
    if HIDDEN.isdisjoint(properties):
        return dict(properties)
    return {name: value for name, value in properties.items() if name not in HIDDEN}


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
