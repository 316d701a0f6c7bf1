# SPDX-License-Identifier: Apache-2.0
"""Data that is somewhere already: what clients say about where it is, and whether to believe it (URIs, sizes, digests).

An image gets such data by its URI, hashed in the background (v2), or a copy of it (v1); a draft takes locations, too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from storelib.api.context import Context
from storelib.api.db.records import Image, ImageLocation, NewLocation
from storelib.api.errors import (
    ApiError,
    BadRequest,
    Conflict,
    LocationNotFound,
    NotPermitted,
    ResourceNotFound,
)
from storelib.api.messages import told
from storelib.api.service.background import Background
from storelib.api.service.core import LOG, Core, own_spelling
from storelib.api.service.data import Data, Source, check_formats
from storelib.api.service.deletion import delete_dropped
from storelib.api.service.foreign import LOOK, PUBLIC_SCHEMES, Found
from storelib.api.service.hashing import Hashing
from storelib.api.service.tasks import Tasks
from storelib.api.service.workers import Workers
from storelib.driver import Store
from storelib.exceptions import (
    BadStoreUri,
    Forbidden,
    NotFound,
    RemoteServiceUnavailable,
    StoreError,
    TransferTimeout,
)
from storelib.transfer.deadlines import at_most
from storelib.transfer.download import ImageStream
from storelib.uris import redact, scheme_of

#: Characters of a URI at most: several times what a signed URL of an object store has.
LONGEST_URI = 8192
#: Schemes that would let a client name files of the server or the credentials of others.
RESTRICTED = frozenset({"file", "filesystem", "swift+config"})

#: What a client may say of data.
DIGESTS = frozenset({"checksum", "os_hash_algo", "os_hash_value"})

#: Of jobs.
KIND = "location"


class Locations:
    """List and add locations, drop those in one store, and copy data that is elsewhere."""

    def __init__(self, core: Core, data: Data, workers: Workers, background: Background, tasks: Tasks) -> None:
        self._core = core
        self._data = data
        self._workers = workers
        self._background = background
        self._tasks = tasks
        self._hashing = Hashing(core, data, tasks)
        background.handle(KIND, self._hashing.resume)

    def list(self, context: Context, image_id: str) -> list[ImageLocation]:
        """Where the data is, for services; nowhere, if they may not read it. Raises NotPermitted."""
        image = self._core.get_authorized(context, image_id, "fetch_image_location")
        return [] if self._core.hides_places(context, image) else self._core.by_weight(image.locations)

    def add(self, context: Context, image_id: str, url: str, validation: Mapping[str, str] | None = None) -> Image:
        """Take the data at ``url`` for a queued image, in the background, as ``Hashing`` says.

        Raises NotPermitted, Conflict (not queued), BadRequest (URL, formats, digests or a signature that cannot be).
        """
        core = self._core
        core.writable(context)
        image = core.get_authorized(context, image_id, "add_image_location")
        check_trusted(core, context, url)
        if validation:
            check_digests(validation)
        check_formats(image)
        core.quota.room(image.owner)
        signature = core.signatures.of(context, image.properties)
        found = find_data(core, context, url)
        url = found.location.uri
        core.quota.room(image.owner, found.size)
        core.limits.check_data(image.owner, found.size)
        begun, ticket = self._data.begin(image, from_=("queued",), to="importing", stores=())
        try:
            # They may have been changed before it was begun, and cannot be any more.
            check_formats(begun)
            given = {"image_id": image_id, "loc_url": redact(url), "validation_data": dict(validation or {})}
            task = self._tasks.begin(context, image_id, "location_import", given)
        except BaseException:
            # The task may have been noted, and ends when the upload is undone.
            self._data.undo_later(ticket)
            raise
        work = partial(self._hashing.take, context, begun, ticket, found, validation or {}, signature, task.id)
        noted = {"url": url, "size": found.size, "validation": dict(validation or {}), "task": task.id}
        self._background.start(KIND, context, image, ticket, noted, work)
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
        delete_dropped(core, context, image_id)

    def check_copy(self, context: Context, uri: str) -> int | None:
        """v1: the bytes at ``uri``, None if the store does not tell, for a caller who may copy it.

        Raises Forbidden, Invalid (not a URI that is taken) and what the store it belongs to raises.
        """
        self._core.writable(context)
        self._core.policy.require(context, "copy_from", {"project_id": context.project_id or ""})
        self._core.quota.room(context.owner)
        return measure(self._core, context, uri)[1]

    def copy(self, context: Context, image: Image, uri: str, store: str | None) -> None:
        """v1: begin to copy the data at ``uri``, which ``check_copy`` found good; the image is killed if that fails."""
        self._workers.start(image.owner, partial(self._copy, context, image, uri, store))

    def _copy(self, context: Context, image: Image, uri: str, store: str | None) -> None:
        remote = _Remote(self._core, context, uri)
        try:
            self._data.upload(context, image.id, Source(remote), store, failed="killed")
        except (ApiError, StoreError) as error:
            LOG.warning("image %s: its data is not copied: %s", image.id, error)
        finally:
            remote.close()


class _Remote:
    """The data at a URI; opened when it is read, so that a failure of that is one of the upload."""

    def __init__(self, core: Core, context: Context, uri: str) -> None:
        self._core = core
        self._context = context
        self._uri = uri
        self._stream: ImageStream | None = None

    def read(self, size: int, /) -> bytes:
        """The next bytes; raises StoreError."""
        if self._stream is None:
            store = self._core.registry.resolve(self._uri, self._context)
            self._stream = store.get(self._uri, context=self._context).data
        return self._stream.read(size)

    def close(self) -> None:
        """Free the connection, if one was opened."""
        if self._stream is not None:
            self._stream.close()


def check_length(uri: str) -> None:
    """Raise BadRequest for a URI that no client has a reason to send."""
    if len(uri) > LONGEST_URI:
        raise BadRequest(f"a URI may have {LONGEST_URI} characters")


def check_uri(core: Core, uri: str) -> str:
    """The scheme of a URI that a client may give for data; raises BadRequest."""
    check_length(uri)
    try:
        scheme = scheme_of(uri)
    except BadStoreUri as error:
        raise BadRequest(told(error, redact(uri))) from error
    if scheme in RESTRICTED or scheme not in core.registry.schemes:
        raise BadRequest(f"locations of the scheme {scheme!r} are not accepted: {redact(uri)}")
    return scheme


def check_trusted(core: Core, context: Context, uri: str) -> None:
    """``check_uri``, and raise NotPermitted where only services may name data, which might be another project's."""
    if check_uri(core, uri) not in PUBLIC_SCHEMES and not (context.is_admin or core.policy.is_service(context)):
        raise NotPermitted("only services may name data in this kind of store")


def find_data(core: Core, context: Context, uri: str) -> Found:
    """The data at a client's URI; raises BadRequest or StoreError."""
    check_uri(core, uri)
    try:
        store = core.registry.resolve(uri, context)
        with at_most(LOOK):
            size = store.get_size(uri, context)
            location = _location_in(store, uri)
    except (BadStoreUri, NotFound) as error:
        raise BadRequest(f"there is no data at {redact(uri)}: {told(error, redact(uri))}") from error
    except StoreError as error:
        raise BadRequest(f"the data at {redact(uri)} cannot be reached: {told(error, redact(uri))}") from error
    if size == 0:
        raise BadRequest(f"the data at {redact(uri)} is empty")
    return Found(location, store, size)


def _location_in(store: Store[Any], uri: str) -> NewLocation:
    return NewLocation(own_spelling(store, uri), {"store": store.name})


def locate(core: Core, context: Context, uri: str, expected: int | None) -> Found:
    """The data at ``uri``, which is not looked at; raises Conflict unless it has the ``expected`` bytes, if any.

    Raises Forbidden, Invalid, StoreError like ``measure``.
    """
    store, size = measure(core, context, uri)
    if size is None:
        raise BadRequest(f"the data at {redact(uri)} is empty, or its size is not known")
    if expected and size != expected:
        raise Conflict(f"the data at {redact(uri)} has {size} bytes, not {expected}")
    return Found(_location_in(store, uri), store, size)


def measure(core: Core, context: Context, uri: str) -> tuple[Store[Any], int | None]:
    """The store a URI belongs to and the bytes there, None if it does not tell.

    Raises Forbidden (not for this caller), Invalid (not a URI that is taken), and what the store raises.
    """
    check_trusted(core, context, uri)
    try:
        store = core.registry.resolve(uri, context)
    except BadStoreUri as error:
        raise BadRequest(told(error, redact(uri))) from error
    try:
        with at_most(LOOK):
            return store, store.get_size(uri, context) or None
    except (BadStoreUri, NotFound, Forbidden, RemoteServiceUnavailable, TransferTimeout):
        raise
    except StoreError:
        return store, None


def check_digests(validation: Mapping[str, str], algorithm: str | None = None) -> None:
    """Raise BadRequest unless these are well-formed digests, of ``algorithm`` if that is given, and nothing else."""
    # All of it is recorded where the options say that clients are believed.
    if unknown := validation.keys() - DIGESTS:
        raise BadRequest(f"'validation_data' has no member {min(unknown)!r}")
    checksum = validation.get("checksum")
    if checksum is not None and not re.fullmatch("[0-9a-f]{32}", checksum):
        raise BadRequest("checksum is not an md5 in lower-case hexadecimal digits")
    given = validation.get("os_hash_algo", "")
    if algorithm is not None and given != algorithm:
        raise BadRequest(f"os_hash_algo must be {algorithm}, not {given!r}")
    if algorithm is None and given not in ("sha1", "sha256", "sha512", "md5"):
        raise BadRequest(f"os_hash_algo must be sha1, sha256, sha512 or md5, not {given!r}")
    length = hashlib.new(given, usedforsecurity=False).digest_size * 2 if given != "blake3" else 64
    if not re.fullmatch(f"[0-9a-f]{{{length}}}", validation.get("os_hash_value", "")):
        raise BadRequest(f"os_hash_value is not a {given} in {length} lower-case hexadecimal digits")
