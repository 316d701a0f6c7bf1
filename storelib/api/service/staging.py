# SPDX-License-Identifier: Apache-2.0
"""Staged data: kept on the file system from the request that sends it until it is imported."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

from storelib.api.context import Context
from storelib.api.db.records import Image, Ticket
from storelib.api.errors import (
    ApiError,
    BadRequest,
    Conflict,
    ImageNotFound,
    ResourceNotFound,
    StatusConflict,
    Unavailable,
    UploadLost,
)
from storelib.api.service import remote_staging
from storelib.api.service.core import LOG, Core
from storelib.api.service.data import Data, Source
from storelib.api.service.deletion import remove_leftovers
from storelib.api.service.inspection import Body
from storelib.api.service.material import Material, material_of
from storelib.api.service.tasks import OF_STAGE, STAGED, STAGED_DIGESTS, awaits_stage, staged_bytes
from storelib.driver import ImageData, Store
from storelib.drivers.filesystem.location import FileLocation
from storelib.exceptions import BadStoreConfiguration, Invalid, NotFound, StoreError
from storelib.registry import Registry, open_store
from storelib.system_calls import has_reflinks
from storelib.transfer.contract import Digests

#: Directory for work on images, within that of staged data.
WORK = ".work"


def open_staging(directory: str) -> Store[Any]:
    """The store in ``staging_dir``; raises BadStoreConfiguration where there cannot be one."""
    try:
        return open_store("file", "os_glance_staging_store", filesystem_store_datadir=directory)
    except StoreError as error:
        raise BadStoreConfiguration(f"[api] staging_dir = {directory}: {error}") from error


def _check_place(registry: Registry, staging: Store[Any]) -> None:
    """Raise BadStoreConfiguration where what is staged is in the way of the image that is to be made of it."""
    places = {(area.container, area.prefix) for area in staging.areas()}
    for store in registry:
        if any((area.container, area.prefix) in places for area in store.areas()):
            raise BadStoreConfiguration(
                f"[api] staging_dir and store {store.name} would keep files of the same names in the same place; give "
                "what is staged a directory of its own"
            )


class Staging:
    """The directory that ``staging_dir`` names, as a store of which no client knows."""

    def __init__(self, core: Core, data: Data) -> None:
        self._core = core
        self._data = data
        self._store: Store[Any] | None = None
        self._work: str | None = None
        directory = core.options.staging_dir
        if directory:
            self._store = open_staging(directory)
            _check_place(core.registry, self._store)
            # No image is called like this, and none is looked for in there.
            self._work = os.path.join(directory, WORK)

    @property
    def store(self) -> Store[Any] | None:
        """Where it is kept."""
        return self._store

    @property
    def available(self) -> bool:
        """Whether data can be staged here."""
        return self._store is not None

    def stage(self, context: Context, image_id: str, source: Source) -> Image:
        """Keep an image's data until it is imported; raises ResourceNotFound where nothing can be staged, Conflict."""
        core, staging = self._core, self._store
        core.writable(context)
        if staging is None:
            raise ResourceNotFound("data cannot be staged here")
        image = core.get_authorized(context, image_id, "modify_image")
        if image.status != "queued":
            raise StatusConflict(f"image {image_id} is {image.status}, data is staged for queued images")
        size = source.agreed_size()
        room = core.quota.room(image.owner, size, staged=staged_bytes(image))
        core.limits.check_stage(image.owner, size)
        _, ticket = self._data.begin(image, from_=("queued",), to="uploading", stores=())
        forgotten: dict[str, None] = {}
        try:
            core.limits.check_uploading(image.owner)
            self._remove(ticket)
            forgotten = dict.fromkeys(OF_STAGE)
            with (
                self._data.watching(ticket, "staged") as watch,
                core.under_way.bytes_of("staging_bytes", watch) as progress,
            ):
                body = Body(source.stream, source.length, room)
                stored = staging.add(
                    image_id,
                    body,
                    size,
                    hashing_algo=core.hashing_algorithm,
                    context=context,
                    progress=progress,
                )
        except BaseException:
            self._data.give_up(ticket, "queued", properties=forgotten)
            raise
        try:
            return core.repository.uploads.finish(
                image_id,
                ticket.process_id,
                token=ticket.token,
                to="uploading",
                properties={
                    **forgotten,
                    STAGED: stored.uri,
                    STAGED_DIGESTS: json.dumps([stored.checksum, stored.multihash, core.hashing_algorithm]),
                    **remote_staging.place(core.options.worker_self_reference_url),
                },
                size=stored.size,
                most=core.quota.total,
            )
        except (UploadLost, ImageNotFound, StatusConflict) as error:
            lost = self._data.lost(image_id, "staged")
            self.drop(ticket)
            self._data.give_up(ticket, "queued")
            raise lost from error
        except BaseException as error:
            if isinstance(error, ApiError) and not isinstance(error, Unavailable):
                # The database does not take it, so nothing was changed.
                self.drop(ticket)
                self._data.give_up(ticket, "queued", properties=forgotten)
            else:
                self._data.undo_later(ticket)
            raise

    def workspace(self, image_id: str) -> str:
        """A new directory, beside what is staged, for work on an image; it goes with what is staged for the image."""
        if self._work is None:
            raise ResourceNotFound("there is no staging_dir to work in")
        mine = os.path.join(self._work, image_id)
        os.makedirs(mine, mode=0o700, exist_ok=True)
        return tempfile.mkdtemp(dir=mine)

    def leave(self, path: str) -> None:
        """Remove what ``workspace`` made."""
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(path))

    def discard(self, image: Image) -> None:
        """Remove what was staged for an image."""
        if image.properties.get(STAGED) or image.status == "uploading":
            # Nothing is staged for an image that is deleted, whose id is not used again while its row is there.
            self._remove(None, image.id)

    def forget(self, image: Image) -> None:
        """``discard``, but what cannot be removed now is only logged: ``scrub`` finds it."""
        try:
            self.discard(image)
        except (ApiError, StoreError) as error:
            LOG.warning("image %s: what was staged cannot be removed yet: %s", image.id, error)

    def scrub(self) -> None:
        """Remove what is staged for images that do not wait for it: a process died before it could. Raises StoreError.

        Files that are called like no image, which other programs may have put there, are left alone.
        """
        if self._store is None:
            return
        for found in self._store.list_images():
            if found.image_id is not None and self._is_over(found.image_id):
                self._remove(None, found.image_id)
        for image_id in self._worked_on():
            if self._is_over(image_id):
                self._remove(None, image_id)

    def _worked_on(self) -> Sequence[str]:
        try:
            return [] if self._work is None else sorted(os.listdir(self._work))
        except FileNotFoundError:
            return []

    def _is_over(self, image_id: str) -> bool:
        repository = self._core.repository
        # In this order: an upload ends as uploading, or with nothing staged.
        if repository.uploads.get(image_id) is not None:
            return False
        try:
            image = repository.images.get(image_id, deleted=True)
        except ImageNotFound:
            return False
        return not awaits_stage(image)

    def open(self, context: Context, image: Image) -> Material:
        """The staged data of an image, on whichever host it is.

        Raises what ``check`` raises, Unavailable, and StoreError.
        """
        uri, digests = self.check(image), _digests(image.properties.get(STAGED_DIGESTS))
        try:
            if self._store is None:
                raise NotFound("nothing is staged here")
            material = material_of(context, image, self._store.get(uri, context=context))
            material.path = FileLocation.parse(uri).path
            if digests is not None and digests.algorithm == self._core.hashing_algorithm:
                material.known = digests
        except (NotFound, Invalid):
            # Its directory may be called otherwise there.
            if not remote_staging.is_elsewhere(image):
                raise
            material = material_of(context, image, remote_staging.fetch(image, self._core.options))
        material.expected = digests
        return material

    @functools.cached_property
    def shares_blocks(self) -> bool:
        """Whether files on the file system of staged data can be copied without their bytes (reflink)."""
        directory = self._core.options.staging_dir
        return bool(directory) and has_reflinks(directory)

    def check(self, image: Image) -> str:
        """The URI of the staged data of an image; raises Conflict without any."""
        staged = image.properties.get(STAGED)
        if not staged or (self._store is None and not remote_staging.is_elsewhere(image)):
            raise Conflict(f"there is no staged data of image {image.id}")
        return staged

    def serve(self, image_id: str, token: str) -> ImageData:
        """What is staged here for an image, for another host that knows the token of it.

        Raises ResourceNotFound for anything else, whatever the reason; StoreError, DatabaseUnavailable.
        """
        try:
            image = self._core.repository.images.get(image_id)
        except (ImageNotFound, BadRequest):
            raise ResourceNotFound("nothing like that is staged here") from None
        if self._store is None or not remote_staging.opens(image, token):
            raise ResourceNotFound("nothing like that is staged here")
        return self._store.get(self.check(image))

    def remove(self, ticket: Ticket) -> None:
        """Remove what is staged for an image under the claim ``ticket``; raises ApiError, StoreError."""
        self._remove(ticket)

    def drop(self, ticket: Ticket) -> None:
        """``remove``, but what cannot be removed now is only logged.

        While the upload is recorded, so that a crash leaves nothing.
        """
        try:
            self._remove(ticket)
        except (ApiError, StoreError) as error:
            LOG.warning("image %s: what was staged cannot be removed: %s", ticket.image_id, error)

    def _remove(self, ticket: Ticket | None, image_id: str = "") -> None:
        """Under the claim ``ticket``, or for an image that cannot be written to any more."""
        if self._store is not None:
            image_id = ticket.image_id if ticket else image_id
            remove_leftovers(self._core, self._store, image_id, ticket)
            if self._work is not None:
                shutil.rmtree(os.path.join(self._work, image_id), ignore_errors=True)


def _digests(text: str | None) -> Digests | None:
    """The digests of staged data; older versions recorded none."""
    return Digests(*json.loads(text)) if text else None
