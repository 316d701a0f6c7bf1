# SPDX-License-Identifier: Apache-2.0
"""Data that is somewhere already: what clients say about where it is, and whether to believe it (URIs, sizes, digests).

An image gets such data by its URI, hashed in the background (v2), or a copy of it (v1); a draft takes locations, too.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any, NamedTuple

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
from storelib.api.service.core import LOG, Core
from storelib.api.service.data import Data, Source, check_formats
from storelib.api.service.deletion import delete_dropped
from storelib.api.service.inspection import inspected
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
from storelib.transfer.contract import MiB
from storelib.transfer.deadlines import at_most
from storelib.transfer.digests import new_hasher
from storelib.transfer.download import ImageStream
from storelib.uris import redact, scheme_of

#: Characters of a URI at most: several times what a signed URL of an object store has.
LONGEST_URI = 8192
#: Schemes that would let a client name files of the server or the credentials of others.
RESTRICTED = frozenset({"file", "filesystem", "swift+config"})
#: Schemes of which every caller may name data; the others are the services' own.
PUBLIC_SCHEMES = ("http", "https")


#: Bytes at the start of an image of which every format says, within these, what there is to know, and at the end.
HEAD = 32 * MiB
TAIL = 4 * 512
#: Seconds for both, while the client waits: whose server it is may want to keep this thread for ever.
LOOK = 30.0


class Found(NamedTuple):
    """Data of ``size`` bytes that is somewhere already."""

    location: NewLocation
    store: Store[Any]
    size: int


class Locations:
    """List and add locations, drop those in one store, and copy data that is elsewhere."""

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
        check_trusted(core, context, url)
        if validation:
            check_digests(validation)
        check_formats(image)
        store, size = find_data(core, context, url)
        core.quota.room(image.owner, size)
        begun, ticket = self._data.begin(image, from_=("queued",), to="importing", stores=())
        try:
            self._tasks.begin(context, image_id, "location_import", {"loc_url": redact(url)})
        except BaseException:
            # The task may have been noted, and ends when the upload is undone.
            self._data.undo_later(ticket)
            raise
        found = Found(NewLocation(url, {"store": store.name}), store, size)
        self._workers.start(lambda: self._take(context, begun, ticket, found, validation or {}))
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
        return measure(self._core, context, uri)[1]

    def copy(self, context: Context, image: Image, uri: str, store: str | None) -> None:
        """v1: begin to copy the data at ``uri``, which ``check_copy`` found good; the image is killed if that fails."""
        self._workers.start(lambda: self._copy(context, image, uri, store))

    def _copy(self, context: Context, image: Image, uri: str, store: str | None) -> None:
        remote = _Remote(self._core, context, uri)
        try:
            self._data.upload(context, image.id, Source(remote), store, failed="killed")
        except (ApiError, StoreError) as error:
            LOG.warning("image %s: its data is not copied: %s", image.id, error)
        finally:
            remote.close()

    def _take(
        self, context: Context, image: Image, ticket: Ticket, found: Found, validation: Mapping[str, str]
    ) -> None:
        image_id = ticket.image_id
        try:
            values = self._verified(context, image, found, validation)
            self._core.repository.uploads.finish(
                image_id,
                ticket.process_id,
                token=ticket.token,
                to="active",
                locations=[found.location],
                properties=self._tasks.ended(image_id, (), ""),
                size=found.size,
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
        self, context: Context, image: Image, found: Found, validation: Mapping[str, str]
    ) -> dict[str, str | None]:
        """Checksum and hash to record.

        Raises BadRequest when the data is not what the client said, UnsupportedMediaType when not what the image says.
        """
        algorithm = validation.get("os_hash_algo")
        if not self._core.options.do_secure_hash:
            inspect_data(self._core, context, found, image.disk_format, image.container_format)
            return dict(validation) if algorithm else {}
        names = {"md5", self._core.hashing_algorithm} | ({algorithm} if algorithm else set())
        digests = self._hashed(context, image, found, names)
        if algorithm and digests[algorithm] != validation["os_hash_value"]:
            raise BadRequest(f"the {algorithm} of the data is {digests[algorithm]}, not {validation['os_hash_value']}")
        if validation.get("checksum", digests["md5"]) != digests["md5"]:
            raise BadRequest(f"the md5 of the data is {digests['md5']}, not {validation['checksum']}")
        main = algorithm or self._core.hashing_algorithm
        return {"checksum": digests["md5"], "os_hash_algo": main, "os_hash_value": digests[main]}

    def _hashed(self, context: Context, image: Image, found: Found, names: set[str]) -> dict[str, str]:
        tries = self._core.options.http_retries + 1
        for attempt in range(tries):
            try:
                hashers = {name: new_hasher(name) for name in names}
                with found.store.get(found.location.uri, context=context).data as stream:
                    checked = self._data.inspected(image, stream)
                    while chunk := checked.read(MiB):
                        for hasher in hashers.values():
                            hasher.update(chunk)
                return {name: hasher.hexdigest() for name, hasher in hashers.items()}
            except StoreError:
                if attempt == tries - 1:
                    raise
                time.sleep(min(2**attempt, 10))
        raise AssertionError("unreachable")


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


class _Ends:
    """The first and the last bytes of data, as if nothing were between; all of it if it is small."""

    def __init__(self, found: Found, context: Context) -> None:
        self._found = found
        self._context = context
        self._stream: ImageStream | None = None
        self._position = 0

    def read(self, size: int, /) -> bytes:
        """The next bytes; raises StoreError."""
        total = self._found.size
        if self._position == HEAD and total > HEAD + TAIL:
            self.close()
            self._position = total - TAIL
        if self._stream is None:
            uri = self._found.location.uri
            self._stream = self._found.store.get(uri, self._position, context=self._context).data
        end = HEAD if self._position < HEAD < total - TAIL else total
        chunk = self._stream.read(min(size, end - self._position))
        self._position += len(chunk)
        return chunk

    def close(self) -> None:
        """Free the connection."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


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
        raise BadRequest(str(error)) from error
    if scheme in RESTRICTED or scheme not in core.registry.schemes:
        raise BadRequest(f"locations of the scheme {scheme!r} are not accepted: {redact(uri)}")
    return scheme


def check_trusted(core: Core, context: Context, uri: str) -> None:
    """``check_uri``, and raise NotPermitted where only services may name data, which might be another project's."""
    if check_uri(core, uri) not in PUBLIC_SCHEMES and not (context.is_admin or core.policy.is_service(context)):
        raise NotPermitted("only services may name data in this kind of store")


def find_data(core: Core, context: Context, uri: str) -> tuple[Store[Any], int]:
    """The store a client's URI belongs to and the size of the data there, in bytes; raises BadRequest or StoreError."""
    check_uri(core, uri)
    try:
        store = core.registry.resolve(uri, context)
        size = store.get_size(uri, context)
    except (BadStoreUri, NotFound) as error:
        raise BadRequest(f"there is no data at {redact(uri)}: {error}") from error
    except StoreError as error:
        raise BadRequest(f"the data at {redact(uri)} cannot be reached: {error}") from error
    if size == 0:
        raise BadRequest(f"the data at {redact(uri)} is empty")
    return store, size


def locate(core: Core, context: Context, uri: str, expected: int | None) -> Found:
    """The data at ``uri``, which is not looked at; raises Conflict unless it has the ``expected`` bytes, if any.

    Raises Forbidden, Invalid, StoreError like ``measure``.
    """
    store, size = measure(core, context, uri)
    if size is None:
        raise BadRequest(f"the data at {redact(uri)} is empty, or its size is not known")
    if expected and size != expected:
        raise Conflict(f"the data at {redact(uri)} has {size} bytes, not {expected}")
    return Found(NewLocation(uri, {"store": store.name}), store, size)


def inspect_data(
    core: Core, context: Context, found: Found, disk_format: str | None, container_format: str | None
) -> None:
    """Raise UnsupportedMediaType unless data may be that of an image with these formats; reads its ends only.

    Raises StoreError.
    """
    with at_most(LOOK), closing(_Ends(found, context)) as ends:
        inspected(core.options, disk_format or "raw", container_format, ends).look()


def measure(core: Core, context: Context, uri: str) -> tuple[Store[Any], int | None]:
    """The store a URI belongs to and the bytes there, None if it does not tell.

    Raises Forbidden (not for this caller), Invalid (not a URI that is taken), and what the store raises.
    """
    check_trusted(core, context, uri)
    try:
        store = core.registry.resolve(uri, context)
    except BadStoreUri as error:
        raise BadRequest(str(error)) from error
    try:
        return store, store.get_size(uri, context) or None
    except (BadStoreUri, NotFound, Forbidden, RemoteServiceUnavailable, TransferTimeout):
        raise
    except StoreError:
        return store, None


def check_digests(validation: Mapping[str, str], algorithm: str | None = None) -> None:
    """Raise BadRequest unless these are well-formed digests, of ``algorithm`` if that is given."""
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
