# SPDX-License-Identifier: Apache-2.0
"""Locations beside the patch form: add one to a queued image and have its data hashed, list them, drop one store's."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from storelib.api.context import Context
from storelib.api.db.records import Image, ImageLocation, NewLocation, Ticket
from storelib.api.errors import (
    ApiError,
    BadRequest,
    Conflict,
    LocationNotFound,
    NotPermitted,
    OutcomeUnknown,
    ResourceNotFound,
    UploadLost,
)
from storelib.api.service import locating
from storelib.api.service.core import LOG, Core
from storelib.api.service.data import Data, check_formats
from storelib.api.service.draft import delete_pending
from storelib.api.service.tasks import Tasks
from storelib.api.service.workers import Workers
from storelib.driver import Store
from storelib.exceptions import StoreError
from storelib.transfer.contract import MiB
from storelib.transfer.digests import new_hasher
from storelib.uris import redact


class Locations:
    """What the API can do with locations as such."""

    def __init__(self, core: Core, data: Data, workers: Workers, tasks: Tasks) -> None:
        self._core = core
        self._data = data
        self._workers = workers
        self._tasks = tasks

    def list(self, context: Context, image_id: str) -> list[ImageLocation]:
        """Where the data is, for services; raises NotPermitted."""
        return self._core.by_weight(self._core.get_authorized(context, image_id, "fetch_image_location").locations)

    def add(self, context: Context, image_id: str, url: str, validation: Mapping[str, str] | None = None) -> Image:
        """Take the data at ``url`` for a queued image; it is active once the data was hashed, in the background.

        Raises NotPermitted, Conflict (not queued), BadRequest (URL, formats, digests that cannot be).
        """
        core = self._core
        core.writable(context)
        image = core.get_authorized(context, image_id, "add_image_location")
        locating.check_trusted(core, context, url)
        if validation:
            locating.check_digests(validation)
        check_formats(image)
        store, size = locating.measure(core, url, context)
        core.quota.room(image.owner, size)
        begun, ticket = self._data.begin(image, from_=("queued",), to="importing", stores=())
        try:
            self._tasks.begin(context, image_id, "location_import", {"loc_url": redact(url)})
        except BaseException:
            # The task may have been noted, and ends when the upload is undone.
            self._data.undo_later(ticket)
            raise
        self._workers.start(lambda: self._take(context, ticket, store, url, size, validation or {}))
        return begun

    def drop(self, context: Context, store_id: str, image_id: str) -> None:
        """Delete an image's data from one of several stores.

        Raises ResourceNotFound (store, image, or no data there), NotPermitted (the last one), and Conflict (not active,
        in use).
        """
        core = self._core
        core.writable(context)
        core.find_store(store_id)
        image = core.get_authorized(context, image_id, "delete_image_location")
        if image.status != "active":
            raise Conflict(f"image {image_id} is {image.status}, data can be deleted from active images")
        there = [location for location in image.locations if location.metadata.get("store") == store_id]
        if not there:
            raise ResourceNotFound(f"image {image_id} has no data in store {store_id}")
        try:
            core.repository.locations.drop(image_id, there[0].id)
        except LocationNotFound:
            raise
        except Conflict as error:
            raise NotPermitted(f"store {store_id} has the only data of image {image_id}") from error
        delete_pending(core, context, image_id)

    def _take(
        self, context: Context, ticket: Ticket, store: Store[Any], url: str, size: int, validation: Mapping[str, str]
    ) -> None:
        image_id = ticket.image_id
        try:
            values = self._verified(context, store, url, validation)
            self._core.repository.uploads.finish(
                image_id,
                ticket.process_id,
                token=ticket.token,
                to="active",
                locations=[NewLocation(url, {"store": store.name})],
                properties=self._tasks.ended(image_id, (), ""),
                size=size,
                **values,
            )
        except OutcomeUnknown as error:
            LOG.warning("image %s: whether its location is taken is not known yet: %s", image_id, error)
            self._data.undo_later(ticket)
        except UploadLost as error:
            LOG.warning("image %s: its location is not taken: %s", image_id, error)
            self._data.give_up(ticket, "queued")
        except (ApiError, StoreError) as error:
            LOG.warning("image %s: its location is not taken: %s", image_id, error)
            self._tasks.fail(image_id, (), str(error))
            self._data.give_up(ticket, "queued")
        except BaseException:
            self._tasks.fail(image_id, (), "the server made a mistake")
            self._data.give_up(ticket, "queued")
            raise

    def _verified(
        self, context: Context, store: Store[Any], url: str, validation: Mapping[str, str]
    ) -> dict[str, str | None]:
        """Checksum and hash to record; raises BadRequest when the data is not what the client said."""
        algorithm = validation.get("os_hash_algo")
        if not self._core.options.do_secure_hash:
            return dict(validation) if algorithm else {}
        names = {"md5", self._core.hashing_algorithm} | ({algorithm} if algorithm else set())
        found = self._hashed(context, store, url, names)
        if algorithm and found[algorithm] != validation["os_hash_value"]:
            raise BadRequest(f"the {algorithm} of the data is {found[algorithm]}, not {validation['os_hash_value']}")
        if validation.get("checksum", found["md5"]) != found["md5"]:
            raise BadRequest(f"the md5 of the data is {found['md5']}, not {validation['checksum']}")
        main = algorithm or self._core.hashing_algorithm
        return {"checksum": found["md5"], "os_hash_algo": main, "os_hash_value": found[main]}

    def _hashed(self, context: Context, store: Store[Any], url: str, names: set[str]) -> dict[str, str]:
        tries = self._core.options.http_retries + 1
        for attempt in range(tries):
            try:
                hashers = {name: new_hasher(name) for name in names}
                with store.get(url, context=context).data as stream:
                    while chunk := stream.read(MiB):
                        for hasher in hashers.values():
                            hasher.update(chunk)
                return {name: hasher.hexdigest() for name, hasher in hashers.items()}
            except StoreError:
                if attempt == tries - 1:
                    raise
                time.sleep(min(2**attempt, 10))
        raise AssertionError("unreachable")
