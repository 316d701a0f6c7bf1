# SPDX-License-Identifier: Apache-2.0
"""Tasks: what is or was done in the background, and what the one at work says in its image's properties."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from storelib.api.context import Context
from storelib.api.db.holdings import KEPT
from storelib.api.db.images import STATUS_BEFORE
from storelib.api.db.records import Image, Task, TaskEnd, TaskPage, TaskQuery
from storelib.api.db.tasks import OLD_PROPERTIES, NewTask
from storelib.api.errors import ApiError
from storelib.api.service.core import LOG, Core
from storelib.api.service.foreign import PUBLIC_SCHEMES
from storelib.api.service.remote_staging import HOST, TOKEN
from storelib.transfer.contract import MiB, Progress

#: Properties of an import that clients see: the stores still to be filled, those that failed, and the task at work.
IMPORTING, FAILED, TASK = "os_glance_importing_to_stores", "os_glance_failed_import", "os_glance_import_task"
#: Where staged data is, and its digests.
STAGED, STAGED_DIGESTS = "os_glance_stage_uri", "os_glance_stage_digests"
#: The store of data that an image was to have and did not get.
REFUSED = "os_glance_refused_store"
#: What goes with the staged data.
OF_STAGE = (STAGED, STAGED_DIGESTS, KEPT, HOST, TOKEN)
#: Set in an image whose data was found not to be safe when it was active already.
UNSAFE = "os_glance_unsafe_data"
HIDDEN = OLD_PROPERTIES | {*OF_STAGE, REFUSED, UNSAFE, STATUS_BEFORE}
#: What in the input of a task says where data is.
PLACE = "loc_url"
#: Seconds between two notes of how far a task is.
TELL = 5.0
#: Seconds after which a task without an upload is one of a process that died or was of an older version.
ABANDONED = 300.0
#: Characters of a message at most.
LONGEST = 2000


class Tasks:
    """Begin, end and look at tasks."""

    def __init__(self, core: Core) -> None:
        self._core = core
        #: Seconds that a task is kept after its end.
        self._kept = core.options.task.task_time_to_live * 3600.0

    def begin(
        self, context: Context, image_id: str | None, kind: str, given: Mapping[str, Any], stores: Sequence[str] = ()
    ) -> Task:
        """Note a task, and in its image which one is at work and which stores it fills."""
        repository = self._core.repository
        task_id = str(uuid.uuid4())
        values = {}
        if image_id is not None:
            values[TASK] = task_id
            if stores:
                before = repository.images.get(image_id).properties.get(FAILED) or ""
                values[IMPORTING] = _joined(stores)
                values[FAILED] = _joined(set(before.split(",")) - set(stores))
        caller = (context.project_id, context.user_id, context.request_id[:255])
        task = repository.tasks.begin(NewTask(task_id, kind, given, image_id, *caller), values)
        self._core.notify.task("create", task)
        return task

    def processing(self, task_id: str) -> None:
        """Say that a task is at work now."""
        self.progress(task_id, "")
        self._core.tell_task(task_id, "processing")

    def progress(self, task_id: str, message: str, image_id: str | None = None) -> None:
        """Say that a task is at work and how far; that the database does not answer is only logged."""
        try:
            self._core.repository.tasks.progress(task_id, message[:LONGEST], image_id)
        except ApiError as error:
            LOG.warning("task %s: its progress is not noted: %s", task_id, error)

    def telling(self, task_id: str, check: Progress) -> Progress:
        """``check``, a transfer's progress callback, which also says now and then how much was copied."""
        told = time.monotonic()

        def tell(done: int, total: int | None) -> None:
            nonlocal told
            check(done, total)
            if time.monotonic() - told > TELL:
                self.progress(task_id, f"Copied {done // MiB} MiB")
                told = time.monotonic()

        return tell

    def ended(
        self, image_id: str, failed: Sequence[str], message: str, *, success: bool = True, keep_stage: bool = False
    ) -> dict[str, Any]:
        """How the image's task ends, and what its properties say then, as arguments for ``Uploads.finish``.

        So both end at once with the upload. ``finish`` tells if the image is gone. Where no ``failed`` stores are told
        of a failure, those are meant that were to be filled. ``keep_stage``: what is staged is to be imported again.
        """
        try:
            task = self._core.repository.tasks.unfinished(image_id)
            image = self._core.repository.images.get(image_id, deleted=True)
        except ApiError as error:
            LOG.warning("image %s: the end of its task is not noted: %s", image_id, error)
            return {}
        properties = image.properties
        values: dict[str, str | None] = {}
        if keep_stage and STAGED in properties and image.size is not None:
            # Queued again, it has no size, and its owner still holds the data.
            values[KEPT] = str(image.size)
        for name in (TASK,) if keep_stage else (TASK, *OF_STAGE):
            if name in properties:
                values[name] = None
        if left := properties.get(IMPORTING):
            values[IMPORTING] = ""
            if not success:
                failed = failed or left.split(",")
        if failed:
            values[FAILED] = _joined({*failed, *(properties.get(FAILED) or "").split(",")})
        ended = None
        if task is not None:
            result = {"image_id": image_id} if success else None
            ended = TaskEnd(task.id, "success" if success else "failure", message[:LONGEST], result, self._kept)
        return {"properties": values, "task": ended}

    def fail(self, image_id: str, message: str) -> None:
        """Note that the image's task failed, if one is at work; that the database does not answer is only logged."""
        ended = self.ended(image_id, (), message, success=False)
        try:
            if ended:
                self._core.repository.tasks.end(ended["task"], image_id, ended["properties"])
                self._core.tell_end(ended["task"])
        except ApiError as error:
            LOG.warning("image %s: the end of its task is not noted: %s", image_id, error)

    def of_image(self, context: Context, image_id: str) -> Sequence[Task]:
        """The tasks of an image, the latest first: all for the image's project and for callers who may see any task.

        To others, who may see the image, they would tell who imported it from where. Where in a store its data is,
        which a service has said, is shown only to callers who may know it.
        """
        image, project = self._core.get_visible(context, image_id), context.project_id
        found = self._core.repository.tasks.of_image(image_id)
        if self._core.policy.allows(context, "tasks_api_access", {}):
            return found
        if not self._core.may_see_places(context, image):
            found = [_without_place(task) for task in found]
        return [task for task in found if project and project in (task.owner, image.owner)]

    def list(self, context: Context, query: TaskQuery) -> TaskPage:
        """One page of all tasks; raises NotPermitted, and what the table's ``list`` raises."""
        self._core.policy.require(context, "tasks_api_access", {})
        return self._core.repository.tasks.list(query)

    def show(self, context: Context, task_id: str) -> Task:
        """One task; raises NotPermitted and ResourceNotFound."""
        self._core.policy.require(context, "tasks_api_access", {})
        return self._core.repository.tasks.get(task_id)

    def purge(self) -> None:
        """Forget the tasks that ended long ago, and end those that nobody works on any more; raises ApiError."""
        self._core.repository.tasks.purge()
        self._core.repository.tasks.fail_abandoned(ABANDONED, "the process that worked on it ended", self._kept)


def awaits_stage(image: Image) -> bool:
    """Whether what is staged for an image is to be imported: after an import that failed, by another one."""
    again = image.status == "queued" and STAGED in image.properties
    return again or image.status in ("uploading", "importing")


def staged_bytes(image: Image) -> int:
    """Bytes of the image that count as staged by its owner."""
    if image.status not in ("queued", "uploading", "importing"):
        return 0
    if image.status != "queued" and image.size:
        return image.size
    return int(image.properties.get(KEPT) or 0)


def shown_properties(properties: Mapping[str, str | None]) -> dict[str, str | None]:
    """The properties without those that only the service reads."""
    if HIDDEN.isdisjoint(properties):
        return dict(properties)
    return {name: value for name, value in properties.items() if name not in HIDDEN}


def _without_place(task: Task) -> Task:
    """The task without a URI that none but services may name."""
    scheme = str(task.given.get(PLACE, "")).partition(":")[0].lower()
    if scheme in ("", *PUBLIC_SCHEMES):
        return task
    return replace(task, given={name: value for name, value in task.given.items() if name != PLACE})


def _joined(stores: Iterable[str]) -> str:
    return ",".join(sorted(name for name in stores if name))
