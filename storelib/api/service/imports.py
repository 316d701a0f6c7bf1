# SPDX-License-Identifier: Apache-2.0
"""Import: data that is staged, at a URL or in another store goes into one or several stores, in the background.

Each import is one read of its source, fanned out to the stores. tasks.py notes what it does in the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from storelib.api.context import Context, administrator
from storelib.api.db.records import Image, NewLocation, Status, Task, Ticket
from storelib.api.errors import ApiError, BadRequest, Conflict, OutcomeUnknown, Unavailable
from storelib.api.messages import told
from storelib.api.schemas import SIGNATURE
from storelib.api.service import plugins
from storelib.api.service.background import Background
from storelib.api.service.core import LOG, Core
from storelib.api.service.data import Data
from storelib.api.service.deletion import delete_leftovers, remove_leftovers
from storelib.api.service.filling import Filling
from storelib.api.service.foreign import PUBLIC_SCHEMES
from storelib.api.service.import_jobs import Job, Request
from storelib.api.service.inspection import Body
from storelib.api.service.material import Material, Opener, material_of
from storelib.api.service.sources import web_store
from storelib.api.service.staging import Staging
from storelib.api.service.tasks import STAGED, Tasks, staged_bytes
from storelib.capabilities import Capability
from storelib.driver import Store, StoredImage
from storelib.exceptions import BadStoreConfiguration, StoreError, UnknownScheme
from storelib.inspection.source import Guarded
from storelib.uris import redact, scheme_of

#: Of jobs.
KIND = "import"
#: The status that an image has before it is imported.
_EXPECTED = {
    "glance-direct": "uploading",
    "web-download": "queued",
    "glance-download": "queued",
    "copy-image": "active",
}


#: The status of an image that was made for an import, once that has failed.
_MADE: tuple[Status, ...] = ("queued",)


class Imports:
    """Import, and what became of it."""

    def __init__(self, core: Core, data: Data, background: Background, tasks: Tasks) -> None:
        self._core = core
        self._data = data
        self._background = background
        self._tasks = tasks
        background.handle(KIND, self.resume)
        self.staging = Staging(core, data)
        self._filling = Filling(core, data, tasks)
        self._plugins = plugins.load(core.options)

    @property
    def methods(self) -> list[str]:
        """The import methods that work here."""
        enabled: list[str] = self._core.options.enabled_import_methods
        return [method for method in enabled if method != "glance-direct" or self.staging.available]

    def scrub(self) -> None:
        """Remove what is not needed any more: tasks of long ago and what is staged for nothing.

        Raises ApiError, StoreError.
        """
        self._tasks.purge()
        self.staging.scrub()

    def abandoned(self, ticket: Ticket) -> None:
        """The process that staged or imported is dead: nothing of it is left, and nothing says it is still at it."""
        self.staging.remove(ticket)
        self._tasks.fail(ticket.image_id, "the process that worked on it ended")

    def start(self, context: Context, image_id: str, request: Request) -> Task | None:
        """Begin an import; returns its task, None where there is nothing to do.

        Raises BadRequest (method, URI, stores), NotPermitted, and Conflict (status, formats, unknown store, another
        import).
        """
        core = self._core
        core.writable(context)
        copying = request.method == "copy-image"
        image = core.get_authorized(context, image_id, "copy_image" if copying else "modify_image")
        if request.kind == "api_image_import" and request.method not in self.methods:
            raise BadRequest(f"the import method {request.method!r} is not one of {', '.join(self.methods)}")
        stores = self._stores(image, request)
        _check_formats(image)
        expected = _EXPECTED[request.method]
        again = request.method == "glance-direct" and image.status == "queued" and STAGED in image.properties
        if image.status != expected and not again:
            raise Conflict(f"{request.method} is for images that are {expected}, image {image_id} is {image.status}")
        if not stores:
            return None  # it is everywhere already
        opener = None if copying else self._opener(context, image, request)
        staged = staged_bytes(image)
        core.quota.room(image.owner, image.size, len(stores), staged)
        core.limits.check_data(image.owner, image.size)
        # Staged data is counted already, and a copy leaves the image active.
        core.limits.check_uploading(image.owner, 1 if image.status == "queued" else 0)
        signature = core.signatures.of(context, image.properties)
        asked = [store.name for store in stores]
        left_out = () if request.all_must_succeed else self._still_deleting(image_id, asked)
        if len(left_out) < len(stores):
            stores = [store for store in stores if store.name not in left_out]
        names = [store.name for store in stores]
        image, ticket = self._data.begin(
            image, from_=(image.status,), to=None if copying else "importing", stores=names
        )
        try:
            # They may have been changed before it was begun, and cannot be any more.
            _check_formats(image)
            if copying:
                image = self._with_room(image_id, names)
            given = request.given or {"image_id": image_id, "import_req": request.shown(), "backend": asked}
            task = self._tasks.begin(context, image_id, request.kind, given, names)
        except BaseException as error:
            # A task that may have been noted ends with the upload.
            self._fail(ticket, None if copying else "queued", names, error)
            raise
        job = Job(context, image, ticket, task.id, stores, request.all_must_succeed, signature, request, left_out)
        noted = {"request": request.plain(), "stores": names, "task": task.id, "left_out": left_out}
        self._background.start(KIND, context, image, ticket, noted, partial(self._run, job, opener))
        return task

    def resume(self, context: Context, ticket: Ticket, noted: Mapping[str, Any]) -> None:
        """Do what ``start`` has begun in another process, or a dead process was at."""
        core, names = self._core, list(noted["stores"])
        request = Request.of(noted["request"])
        copying = request.method == "copy-image"
        try:
            image = core.repository.images.get(ticket.image_id)
            stores = [core.registry[name] for name in names]
            opener = None if copying else self._opener(context, image, request)
            signature = core.signatures.of(context, image.properties)
        except BaseException as error:
            self._fail(ticket, None if copying else "queued", names, error)
            if not isinstance(error, (ApiError, StoreError)):
                raise
            if request.kind == "import":
                self.unmake(ticket.image_id)
            return
        task, left_out = noted["task"], list(noted.get("left_out", ()))
        self._run(
            Job(context, image, ticket, task, stores, request.all_must_succeed, signature, request, left_out), opener
        )

    def _run(self, job: Job, opener: Opener | None) -> None:
        if opener is None:
            self._copy(job)
        else:
            self._import(job, opener)

    def unmake(self, image_id: str) -> None:
        """Delete an image that was made for an import which failed; what it is by then it stays otherwise."""
        repository = self._core.repository
        try:
            image = repository.images.transition(image_id, from_=_MADE, to="deleted")
        except ApiError as error:
            LOG.warning("image %s: it was made for nothing and is not deleted: %s", image_id, error)
        else:
            self._core.notify.image("delete", image)

    def _with_room(self, image_id: str, names: Sequence[str]) -> Image:
        """The image, of which no other request makes a copy now; raises BadRequest where there still is a copy."""
        image = self._core.repository.images.get(image_id)
        if there := self._having(image).intersection(names):
            raise BadRequest(f"image {image_id} is in store {min(there)} already")
        return image

    def _still_deleting(self, image_id: str, names: Sequence[str]) -> Sequence[str]:
        """Those of the stores that cannot delete now what they had of the image: new data would go to the same place.

        As every other that fails, they keep none of the others from having it.
        """
        core = self._core

        def busy() -> set[str]:
            pending = core.repository.locations.pending_for(image_id)
            return {name for location in pending for name in core.possible_stores(location)}

        for name in sorted(busy().intersection(names)):
            with suppress(StoreError):
                delete_leftovers(core, administrator(), image_id, [name])
        return sorted(busy().intersection(names))

    def _having(self, image: Image) -> set[str]:
        """The stores that surely have the data of an image."""
        found = map(self._core.possible_stores, image.locations)
        return {stores[0] for stores in found if len(stores) == 1}

    def _stores(self, image: Image, request: Request) -> list[Store[Any]]:
        registry = self._core.registry
        copying = request.method == "copy-image"
        has = self._having(image)
        if request.all_stores:
            found = [store for store in registry if _takes_data(store) and not (copying and store.name in has)]
            if not found and not copying:
                raise Conflict("no store takes data")
            return found
        try:
            found = [registry[name] for name in dict.fromkeys(request.stores)] if request.stores else [registry.default]
        except (UnknownScheme, BadStoreConfiguration) as error:
            raise Conflict(told(error)) from error
        for store in found:
            if store.name in registry.reserved:
                raise Conflict(f"there is no store {store.name!r}")
            if not _takes_data(store):
                raise Conflict(f"store {store.name} takes no data")
            if copying and store.name in has:
                raise BadRequest(f"image {image.id} is in store {store.name} already")
        return found

    def _opener(self, context: Context, image: Image, request: Request) -> Opener:
        """What opens the data, in the background; raises BadRequest and Conflict for what surely cannot be."""
        core = self._core
        if request.method == "glance-direct":
            self.staging.check(image)
            return partial(self.staging.open, context)
        if request.remote is not None:
            return partial(request.remote.open, core, context)
        uri = request.uri or ""
        web = web_store(core.options, uri)
        return lambda image: material_of(context, image, web.get(uri, context=context))

    def _prepare(self, job: Job, material: Material, room: int) -> None:
        """Let the plug-ins work; raises ApiError, StoreError."""
        material.room, material.task_id, material.request = room, job.task_id, job.request.shown()
        material.stores = [store.name for store in job.stores]
        material.workspace = partial(self._workspace, job, material)
        with self._data.watching(job.ticket) as progress:
            material.check = lambda: progress(0, None)
            for plugin in self._plugins:
                try:
                    plugin(material)
                except (ApiError, StoreError):
                    raise
                except OSError as error:
                    raise Unavailable(f"a plug-in of the import failed: {error.strerror}") from error
                except Exception as error:  # those of others raise anything
                    LOG.exception("image %s: a plug-in of the import failed", job.image.id)
                    raise BadRequest("a plug-in of the import failed") from error

    def _workspace(self, job: Job, material: Material) -> str:
        path = self.staging.workspace(job.image.id)
        material.cleanup.callback(self.staging.leave, path)
        return path

    def _import(self, job: Job, opener: Opener) -> None:
        """In the background: from a source into stores, then active, or back to queued with nothing left behind."""
        image, ticket, names = job.image, job.ticket, job.names
        try:
            self._tasks.processing(job.task_id)
            with self._data.watching(ticket):
                material = opener(image)
            with self._until_recorded(job) as good, material.cleanup:
                room = self._core.quota.room(image.owner, material.size, len(job.stores), staged_bytes(image))
                self._prepare(job, material, room)
                if not material.properties.keys().isdisjoint(SIGNATURE):
                    # A source, or a plug-in, says what the data has to be.
                    said = {**image.properties, **material.properties}
                    job = replace(job, signature=self._core.signatures.of(job.context, said))
                if material.is_as_staged and job.signature is None:
                    checked = self._looked_at(material)
                    filled = self._filling.take(job, material, shared=self.staging.shares_blocks)
                else:
                    checked = self._data.inspected(material.image, Body(material.stream, material.size, room))
                    filled = self._filling.fill(job, checked, material.size, check=material.verify)
                good += filled.good
                checked.look()
                self._data.check_quota(image, good)
            ended = self._tasks.ended(image.id, filled.failed, filled.message)
            ended["properties"] = {**material.properties, **ended.get("properties", {})}
            virtual_size = checked.virtual_size_of(good[0].size)
            self._data.record(
                job.context, material.image, ticket, good, virtual_size, formats=material.formats, **ended
            )
        except (ApiError, StoreError) as error:
            LOG.warning("image %s: the import failed: %s", image.id, error)
            self._fail(ticket, "queued", names, error, _told_of(job, error))
            if job.request.kind == "import":
                self.unmake(image.id)
            return
        except BaseException as error:
            self._fail(ticket, "queued", names, error)
            raise
        # No earlier: a process that dies before the end of the import must not have lost the data.
        self.staging.forget(image)

    def _looked_at(self, material: Material) -> Guarded:
        """Staged data of which the format is known to be good, without more reading than that needs."""
        assert material.path is not None  # noqa: S101  (the caller asked)
        with open(material.path, "rb") as file:
            checked = self._data.inspected(material.image, Body(file, material.size, material.room))
            checked.look()
        return checked

    @contextmanager
    def _until_recorded(self, job: Job) -> Iterator[list[StoredImage]]:
        """Yields a list for what is stored, of which nothing stays if anything is raised within.

        What the system says of a file that is read comes as Unavailable: the file may be gone with its image.
        """
        good: list[StoredImage] = []
        try:
            yield good
        except BaseException as error:
            if good:
                self._data.discard(job.context, job.ticket, good)
            if isinstance(error, OSError):
                raise Unavailable(f"the data to be imported cannot be read: {error.strerror}") from error
            raise

    def _copy(self, job: Job) -> None:
        """In the background: from the store that has an active image into others."""
        image, ticket, names = job.image, job.ticket, job.names
        try:
            self._tasks.processing(job.task_id)
            for store in job.stores:
                # What a copy left that never was recorded belongs to no image, and is in the way.
                remove_leftovers(self._core, store, image.id, ticket)
            with self._data.watching(ticket):
                found = self._data.read(job.context, image)
            with self._until_recorded(job) as good, closing(found.data) as stream:
                # What is at another's place may have been replaced since it was inspected.
                checked = self._data.inspected(image, stream) if _is_elsewhere(image) else None
                filled = self._filling.copy(job, checked or stream, stream)
                good += filled.good
                if checked is not None:
                    checked.look()
                self._data.check_quota(image, good)
            self._add_copies(job.context, ticket, good, self._tasks.ended(image.id, filled.failed, filled.message))
        except (ApiError, StoreError) as error:
            LOG.warning("image %s: it could not be copied: %s", image.id, error)
            self._fail(ticket, None, names, error)
        except BaseException as error:
            self._fail(ticket, None, names, error)
            raise

    def _fail(
        self, ticket: Ticket, to: Status | None, failed: Sequence[str], error: BaseException, message: str = ""
    ) -> None:
        """End the upload and its task at once; as long as that is not done, another process cleans up after this one.

        What is staged stays for another import where only a store failed. ``message`` is what clients are told.
        """
        if isinstance(error, OutcomeUnknown) or not isinstance(error, (ApiError, StoreError)):
            # It may be recorded as done, or have left data, so only the lease, which can look later, may undo it.
            self._data.undo_later(ticket)
            return
        may_be_repeated = isinstance(error, (StoreError, Unavailable))
        ended: Mapping[str, Any] = {}
        if self._data.holds(ticket):
            # Or else the task that is noted may be another's.
            ended = self._tasks.ended(
                ticket.image_id, failed, message or told(error), success=False, keep_stage=may_be_repeated
            )
        if to == "queued" and not may_be_repeated:
            self.staging.drop(ticket)
        self._data.give_up(ticket, to, **ended)

    def _add_copies(
        self, context: Context, ticket: Ticket, good: Sequence[StoredImage], ended: Mapping[str, Any]
    ) -> None:
        locations = [NewLocation(item.uri, item.metadata) for item in good]
        try:
            self._core.repository.uploads.finish(
                ticket.image_id,
                ticket.process_id,
                token=ticket.token,
                to=None,
                locations=locations,
                left=self._data.left_by(ticket),
                most=self._core.quota.total,
                **ended,
            )
        except OutcomeUnknown:
            raise
        except ApiError:
            self._data.discard(context, ticket, good)
            raise
        self._data.noted(ticket)
        self._core.tell_end(ended.get("task"))


def _check_formats(image: Image) -> None:
    if image.disk_format is None or image.container_format is None:
        raise Conflict("disk_format and container_format must be set before an import")


def _told_of(job: Job, error: Exception) -> str:
    """What clients are told of a failure, with the source as they have named it."""
    remote = job.request.remote
    if remote is None:
        return told(error, redact(job.request.uri or ""))
    try:
        url = remote.url(job.context)
    except BadRequest:
        return told(error)
    # Of the data by the longer URL.
    return told(error, f"{url}/file" if f"{url}/file" in str(error) else url, str(remote))


def _is_elsewhere(image: Image) -> bool:
    """Whether some of its data may be at a place that a user named."""
    return any(scheme_of(location.uri) in PUBLIC_SCHEMES for location in image.locations)


def _takes_data(store: Store[Any]) -> bool:
    return Capability.ADD in store.capabilities
