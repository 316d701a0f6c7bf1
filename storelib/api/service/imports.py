# SPDX-License-Identifier: Apache-2.0
"""Import: data that is staged, at a URL or in another store goes into one or several stores, in the background.

Each import is one read of its source, fanned out to the stores. tasks.py notes what it does in the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from storelib.api.context import Context
from storelib.api.db.records import Image, NewLocation, Status, Ticket
from storelib.api.errors import (
    ApiError,
    BadRequest,
    Conflict,
    ImageNotFound,
    OutcomeUnknown,
    ResourceNotFound,
    StatusConflict,
    UploadLost,
)
from storelib.api.service.core import LOG, Core
from storelib.api.service.data import Data, Source
from storelib.api.service.inspection import Body, Guarded
from storelib.api.service.lease import remove_leftovers
from storelib.api.service.locations import PUBLIC_SCHEMES, check_length
from storelib.api.service.tasks import STAGED, Tasks
from storelib.api.service.workers import Workers
from storelib.capabilities import Capability
from storelib.driver import ImageData, Store, StoredImage
from storelib.drivers.http.location import HttpLocation
from storelib.drivers.http.options import Rules
from storelib.exceptions import BadStoreConfiguration, BadStoreUri, StoreError, UnknownScheme
from storelib.registry import open_store
from storelib.transfer import fan_out
from storelib.transfer.contract import Digests
from storelib.uris import redact, scheme_of


class Request(NamedTuple):
    """What a client asks for. ``stores`` None: the default one."""

    method: str
    uri: str | None = None
    stores: Sequence[str] | None = None
    all_stores: bool = False
    all_must_succeed: bool = True


class Imports:
    """Stage, import, and what became of it."""

    def __init__(self, core: Core, data: Data, workers: Workers, tasks: Tasks) -> None:
        self._core = core
        self._data = data
        self._workers = workers
        self._tasks = tasks
        self._staging: Store[Any] | None = None
        directory = core.options.staging_dir
        if directory:
            self._staging = open_store("file", "os_glance_staging_store", filesystem_store_datadir=directory)

    @property
    def methods(self) -> list[str]:
        """The import methods that work here."""
        enabled: list[str] = self._core.options.enabled_import_methods
        return [method for method in enabled if method != "glance-direct" or self._staging is not None]

    # -- stage ------------------------------------------------------------------------------------------------------

    def stage(self, context: Context, image_id: str, source: Source) -> Image:
        """Keep an image's data until it is imported; raises ResourceNotFound where nothing can be staged, Conflict."""
        core, staging = self._core, self._staging
        core.writable(context)
        if staging is None or "glance-direct" not in self.methods:
            raise ResourceNotFound("data cannot be staged here")
        image = core.get_authorized(context, image_id, "modify_image")
        if image.status != "queued":
            raise StatusConflict(f"image {image_id} is {image.status}, data is staged for queued images")
        size = source.agreed_size()
        room = core.quota.room(image.owner, size)
        _, ticket = self._data.begin(image, from_=("queued",), to="uploading", stores=())
        try:
            self._unstage(ticket)
            stored = staging.add(
                image_id,
                Body(source.stream, source.length, room),
                size,
                context=context,
                progress=self._data.watch(ticket, "staged"),
            )
        except BaseException:
            self._data.give_up(ticket, "queued")
            raise
        try:
            return core.repository.uploads.finish(
                image_id,
                ticket.process_id,
                token=ticket.token,
                to="uploading",
                properties={STAGED: stored.uri},
                size=stored.size,
            )
        except (UploadLost, ImageNotFound, StatusConflict) as error:
            lost = self._data.lost(image_id, "staged")
            self._drop_staged(ticket)
            self._data.give_up(ticket, "queued")
            raise lost from error
        except BaseException:
            self._data.undo_later(ticket)
            raise

    def discard(self, image: Image) -> None:
        """Remove what was staged for an image."""
        if image.properties.get(STAGED) or image.status == "uploading":
            # Nothing is staged for an image that is deleted, whose id is not used again while its row is there.
            self._unstage(None, image.id)

    def abandoned(self, ticket: Ticket) -> None:
        """The process that staged or imported is dead: nothing of it is left, and nothing says it is still at it."""
        self._unstage(ticket)
        self._tasks.fail(ticket.image_id, (), "the process that worked on it ended")

    def scrub(self) -> None:
        """Remove what is staged for images that do not wait for it: a process died before it could. Raises StoreError.

        Files that are called like no image, which other programs may have put there, are left alone.
        """
        if self._staging is None:
            return
        for found in self._staging.list_images():
            if found.image_id is not None and self._is_over(found.image_id):
                self._unstage(None, found.image_id)

    def _is_over(self, image_id: str) -> bool:
        repository = self._core.repository
        # In this order: an upload ends as uploading, or with nothing staged.
        if repository.uploads.get(image_id) is not None:
            return False
        try:
            return repository.images.get(image_id, deleted=True).status not in ("uploading", "importing")
        except ImageNotFound:
            return False

    def _unstage(self, ticket: Ticket | None, image_id: str = "") -> None:
        """Under the claim ``ticket``, or for an image that cannot be written to any more."""
        if self._staging is not None:
            remove_leftovers(self._core, self._staging, ticket.image_id if ticket else image_id, ticket)

    # -- import -----------------------------------------------------------------------------------------------------

    def start(self, context: Context, image_id: str, request: Request) -> None:
        """Begin an import.

        Raises BadRequest (method, URI, stores), NotPermitted, and Conflict (status, formats, unknown store, another
        import).
        """
        core = self._core
        core.writable(context)
        copying = request.method == "copy-image"
        image = core.get_authorized(context, image_id, "copy_image" if copying else "modify_image")
        if request.method not in self.methods:
            raise BadRequest(f"the import method {request.method!r} is not one of {', '.join(self.methods)}")
        stores = self._stores(image, request)
        if image.disk_format is None or image.container_format is None:
            raise Conflict("disk_format and container_format must be set before an import")
        expected = {"glance-direct": "uploading", "web-download": "queued", "copy-image": "active"}[request.method]
        if image.status != expected:
            raise Conflict(f"{request.method} is for images that are {expected}, image {image_id} is {image.status}")
        if not stores:
            return  # it is everywhere already
        source = self._source(image, request, context)
        core.quota.room(image.owner, image.size, len(stores))
        names = [store.name for store in stores]
        # Its formats may have been changed before it was begun, and cannot be any more.
        image, ticket = self._data.begin(
            image, from_=(image.status,), to=None if copying else "importing", stores=names
        )
        try:
            if copying:
                image = self._with_room(image_id, names)
            given = {"method": request.method, "stores": names}
            self._tasks.begin(context, image_id, "api_image_import", given, ",".join(names))
        except BaseException as error:
            # A task that may have been noted ends with the upload.
            self._fail(ticket, None if copying else "queued", names, "", error)
            raise
        if copying:
            self._workers.start(lambda: self._copy(context, image, ticket, stores, request.all_must_succeed))
            return
        self._workers.start(lambda: self._import(context, image, ticket, source, stores, request.all_must_succeed))

    def _with_room(self, image_id: str, names: Sequence[str]) -> Image:
        """The image, of which no other request makes a copy now.

        Raises BadRequest and Conflict where there still is a copy.
        """
        repository = self._core.repository
        image = repository.images.get(image_id)
        for location in image.locations:
            if location.metadata.get("store") in names:
                raise BadRequest(f"image {image_id} is in store {location.metadata['store']} already")
        for location in repository.locations.pending_for(image_id):
            # That deletion would take the new copy with it, which is in the same place.
            if location.metadata.get("store") in names:
                raise Conflict(f"store {location.metadata['store']} still deletes its copy of image {image_id}")
        return image

    def _stores(self, image: Image, request: Request) -> list[Store[Any]]:
        registry = self._core.registry
        copying = request.method == "copy-image"
        has = {location.metadata.get("store") for location in image.locations}
        if request.all_stores:
            found = [store for store in registry if _takes_data(store) and not (copying and store.name in has)]
            if not found and not copying:
                raise Conflict("no store takes data")
            return found
        try:
            found = [registry[name] for name in dict.fromkeys(request.stores)] if request.stores else [registry.default]
        except (UnknownScheme, BadStoreConfiguration) as error:
            raise Conflict(str(error)) from error
        for store in found:
            if store.name in registry.reserved:
                raise Conflict(f"there is no store {store.name!r}")
            if not _takes_data(store):
                raise Conflict(f"store {store.name} takes no data")
            if copying and store.name in has:
                raise BadRequest(f"image {image.id} is in store {store.name} already")
        return found

    def _source(self, image: Image, request: Request, context: Context) -> Callable[[], ImageData]:
        if request.method == "web-download":
            uri = request.uri or ""
            web = self._web(uri)
            return lambda: web.get(uri, context=context)
        staging, staged = self._staging, image.properties.get(STAGED)
        if request.method == "glance-direct" and (staging is None or not staged):
            raise Conflict(f"there is no staged data of image {image.id}")
        return lambda: staging.get(staged, context=context)  # type: ignore[union-attr,arg-type]

    def _web(self, uri: str) -> Store[Any]:
        """A store that reads from the web as far as the options allow; raises BadRequest for what they do not."""
        options = self._core.options
        check_length(uri)
        try:
            scheme = scheme_of(uri)
            allowed = _lower(options.import_allowed_schemes) - _lower(options.import_disallowed_schemes)
            if scheme not in allowed & {"http", "https"}:
                raise BadRequest(f"URLs of the scheme {scheme!r} are not accepted")
            web = open_store(
                "http",
                "web-download",
                http_allowed_hosts=options.import_allowed_hosts,
                http_disallowed_hosts=options.import_disallowed_hosts,
                http_allowed_ports=options.import_allowed_ports,
                http_disallowed_ports=options.import_disallowed_ports,
                http_allowed_networks=options.import_allowed_networks,
                http_disallowed_networks=options.import_disallowed_networks,
                http_read_timeout=options.import_timeout,
            )
            found = HttpLocation.parse(uri)
        except BadStoreUri as error:
            raise BadRequest(f"this URL cannot be imported: {error}") from error
        rules = Rules.from_conf(web.conf, web.name)
        refused = rules.refuse_url(found) or rules.refuse_written_address(found)
        if refused:
            # The rules name the options of the http driver.
            raise BadRequest(f"{redact(uri)} cannot be imported: {refused.replace('http_', 'import_')}")
        return web

    def _import(
        self,
        context: Context,
        image: Image,
        ticket: Ticket,
        source: Callable[[], ImageData],
        stores: Sequence[Store[Any]],
        all_must_succeed: bool,
    ) -> None:
        """In the background: from a source into stores, then active, or back to queued with nothing left behind."""
        failed, message = [store.name for store in stores], ""
        try:
            found = source()
            with closing(found.data) as stream:
                room = self._core.quota.room(image.owner, found.size, len(stores))
                body = Body(stream, found.size, room)
                checked = self._data.inspected(image, body)
                good, failed, message = self._fan_out(
                    context, image, ticket, stores, checked, found.size, all_must_succeed
                )
                self._check_stored(context, image, ticket, good, checked)
            self._drop_staged(ticket)
            ended = self._tasks.ended(image.id, failed, message)
            self._data.record(context, image, ticket, good, checked.virtual_size, ended)
        except (ApiError, StoreError) as error:
            LOG.warning("image %s: the import failed: %s", image.id, error)
            self._drop_staged(ticket)
            self._fail(ticket, "queued", failed, message, error)
        except BaseException as error:
            self._drop_staged(ticket)
            self._fail(ticket, "queued", failed, message, error)
            raise

    def _check_stored(
        self,
        context: Context,
        image: Image,
        ticket: Ticket,
        good: Sequence[StoredImage],
        checked: Guarded | None = None,
    ) -> None:
        """Of what is stored nothing stays if it may not."""
        try:
            if checked is not None:
                checked.look()
            self._data.check_quota(image, good)
        except BaseException:
            self._data.discard(context, ticket, good)
            raise

    def _copy(
        self, context: Context, image: Image, ticket: Ticket, stores: Sequence[Store[Any]], all_must_succeed: bool
    ) -> None:
        """In the background: from the store that has an active image into others."""
        failed, message = [store.name for store in stores], ""
        try:
            for store in stores:
                # What a copy left that never was recorded belongs to no image, and is in the way.
                remove_leftovers(self._core, store, image.id, ticket)
            found = self._data.read(context, image)
            digests = None
            if image.os_hash_value and image.os_hash_algo == self._core.hashing_algorithm:
                digests = Digests(image.checksum, image.os_hash_value, image.os_hash_algo)
            with closing(found.data) as stream:
                # What is at another's place may have been replaced since it was inspected.
                checked = self._data.inspected(image, stream) if _is_elsewhere(image) else None
                good, failed, message = self._fan_out(
                    context, image, ticket, stores, checked or stream, found.size, all_must_succeed, digests
                )
                self._check_stored(context, image, ticket, good, checked)
            self._add_copies(context, ticket, good, self._tasks.ended(image.id, failed, message))
        except (ApiError, StoreError) as error:
            LOG.warning("image %s: it could not be copied: %s", image.id, error)
            self._fail(ticket, None, failed, message, error)
        except BaseException as error:
            self._fail(ticket, None, failed, message, error)
            raise

    def _fail(
        self, ticket: Ticket, to: Status | None, failed: Sequence[str], message: str, error: BaseException
    ) -> None:
        """End the task, then the upload: as long as that is recorded, another process cleans up after this one."""
        if isinstance(error, OutcomeUnknown) or not isinstance(error, (ApiError, StoreError)):
            # It may be recorded as done, or have left data, so only the lease, which can look later, may undo it.
            self._data.undo_later(ticket)
            return
        if self._data.holds(ticket):
            # Or else the task that is noted may be another's.
            self._tasks.fail(ticket.image_id, failed, message or str(error))
        self._data.give_up(ticket, to)

    def _drop_staged(self, ticket: Ticket) -> None:
        """While the upload is recorded, so that a crash leaves nothing."""
        try:
            self._unstage(ticket)
        except (ApiError, StoreError) as error:
            LOG.warning("image %s: what was staged cannot be removed: %s", ticket.image_id, error)

    def _add_copies(
        self, context: Context, ticket: Ticket, good: Sequence[StoredImage], properties: Mapping[str, str | None]
    ) -> None:
        locations = [NewLocation(item.uri, item.metadata) for item in good]
        try:
            self._core.repository.uploads.finish(
                ticket.image_id,
                ticket.process_id,
                token=ticket.token,
                to=None,
                locations=locations,
                properties=properties,
            )
        except OutcomeUnknown:
            raise
        except ApiError:
            self._data.discard(context, ticket, good)
            raise

    def _fan_out(
        self,
        context: Context,
        image: Image,
        ticket: Ticket,
        stores: Sequence[Store[Any]],
        source: Any,
        size: int,
        all_must_succeed: bool,
        digests: Digests | None = None,
    ) -> tuple[list[StoredImage], list[str], str]:
        """What was stored, which stores failed and why; raises StoreError when that is not good enough."""
        results = fan_out(
            stores,
            image.id,
            source,
            size,
            hashing_algo=self._core.hashing_algorithm,
            digests=digests,
            context=context,
            progress=self._data.watch(ticket),
        )
        good = [result for result in results if isinstance(result, StoredImage)]
        errors = {
            store.name: result for store, result in zip(stores, results, strict=True) if isinstance(result, StoreError)
        }
        message = "; ".join(f"store {name}: {error}" for name, error in errors.items())
        if errors and (all_must_succeed or not good):
            self._data.discard(context, ticket, good)
            raise next(iter(errors.values()))
        return good, list(errors), message


def _lower(schemes: Iterable[str]) -> set[str]:
    return {scheme.lower() for scheme in schemes}


def _is_elsewhere(image: Image) -> bool:
    """Whether some of its data may be at a place that a user named."""
    return any(scheme_of(location.uri) in PUBLIC_SCHEMES for location in image.locations)


def _takes_data(store: Store[Any]) -> bool:
    return Capability.ADD in store.capabilities
