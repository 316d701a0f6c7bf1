# SPDX-License-Identifier: Apache-2.0
"""Cache: what the rest of the service and its callers can do with the image cache, and who may."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

from storelib.api.context import Context
from storelib.api.db.cached import CachedImage
from storelib.api.db.records import Image
from storelib.api.errors import ApiError, BadRequest, ImageNotFound, ResourceNotFound, Unavailable
from storelib.api.service.cache.directory import Directory, Pruned
from storelib.api.service.cache.filling import FromStores
from storelib.api.service.cache.keeping import Keeper
from storelib.api.service.cache.reading import Outcome
from storelib.api.service.core import LOG, Core
from storelib.api.service.workers import Workers
from storelib.config import did_you_mean
from storelib.driver import ImageData
from storelib.exceptions import BadStoreConfiguration
from storelib.registry import Registry, open_store

#: What can be cleared.
TARGETS = ("cache", "queue")


class Cache:
    """The cache of this host; one that is not configured does nothing, and says so when asked."""

    def __init__(self, core: Core, workers: Workers, stores: FromStores) -> None:
        self._core = core
        self._stores = stores
        self._keeper: Keeper | None = None
        self._only = frozenset(core.options.image_cache_stores)
        if core.options.image_cache_dir:
            _check_stores(core.registry, self._only)
            _check_place(core.registry, core.options.image_cache_dir)
            self._directory = Directory(core.options.image_cache_dir, core.options.image_cache_max_size)
            self._keeper = Keeper(core, workers, self._directory, stores)
        #: Called for each download that the cache was asked for, with where the bytes come from and how many they are.
        self.on_download: Callable[[Outcome, int], None] = lambda outcome, size: None

    @property
    def is_configured(self) -> bool:
        """Whether there is one."""
        return self._keeper is not None

    def start(self) -> None:
        """Begin to look after it."""
        if self._keeper is not None:
            self._keeper.start()

    def stop(self) -> None:
        """Drop what is being filled."""
        if self._keeper is not None:
            self._keeper.stop()

    # -- for the service ----------------------------------------------------------------------------------------------

    def open(self, context: Context, image: Image, asked: tuple[int, int] | None) -> ImageData | None:
        """The bytes of an image for a caller who may have them; None: read them from the stores.

        A part of an image comes from the cache where all of it is there; only a whole one is filled. Raises what
        reading from the stores raises.
        """
        keeper = self._keeper
        if keeper is None or not keeper.takes(image) or not self._is_for(image):
            return None
        offset, length = asked or (0, None)
        found = keeper.reading.complete(image, offset, length)
        if found is not None:
            keeper.used(image.id)
            self.on_download("hit", found.size)
            return found
        # What is filled is filled for all, but read with the rights of the first caller.
        store, reading = functools.partial(self._stores, context, image), keeper.reading
        following = reading.follow(image, store) if asked is None else reading.part(image, *asked, store)
        if following is not None:
            self.on_download(following.outcome, following.data.size)
            return following.data
        self.on_download("miss", length or image.size or 0)
        return None

    def _is_for(self, image: Image) -> bool:
        return not self._only or any(location.metadata.get("store") in self._only for location in image.locations)

    def forget(self, image_id: str) -> None:
        """The image must not be in the cache any more; never raises: what stays for now is served to nobody."""
        if self._keeper is None:
            return
        try:
            self._keeper.forget(image_id)
        except ApiError as error:
            LOG.warning("image %s: that it left the cache is told to the database later: %s", image_id, error)
        except OSError as error:
            LOG.warning("image %s: it leaves the cache later: %s", image_id, error.strerror)

    # -- for callers --------------------------------------------------------------------------------------------------

    def list(self, context: Context, action: str = "cache_list") -> tuple[Sequence[CachedImage], Sequence[str]]:
        """The images in the cache of this host, and the ids of those that are to be fetched."""
        keeper = self._required(context, action)
        try:
            keeper.note_hits()
            # In this order: an image goes from the queue to the cache.
            queued = self._core.repository.cached.queued(keeper.node)
            cached = keeper.cached()
            there = {each.image_id for each in cached}
            return cached, [each for each in queued if each not in there]
        except OSError as error:
            raise _unusable(error) from error

    def hosts(self, context: Context, image_id: str) -> Sequence[str]:
        """The hosts that have an image in their caches; raises ImageNotFound."""
        self._required(context, "list_cached_nodes")
        self._core.get_visible(context, image_id)
        return self._core.repository.cached.hosts_with(image_id)

    def queue(self, context: Context, image_id: str) -> None:
        """Have an active image fetched in the background; raises ImageNotFound, BadRequest."""
        self.enqueue(context, image_id).fetch_soon()

    def enqueue(self, context: Context, image_id: str) -> Keeper:
        """``queue``, for the servers of this host, which look at the queue from time to time."""
        image = self._core.get_visible(context, image_id)
        keeper = self._required(context, "cache_image", image)
        if image.status != "active":
            raise BadRequest(f"only active images can be cached, image {image_id} is {image.status}")
        return _enqueue(keeper, image.id)

    def queue_id(self, context: Context, image_id: str) -> None:
        """The older way: an image that is not there is found missing when it is to be fetched."""
        _enqueue(self._required(context, "manage_image_cache"), image_id).fetch_soon()

    def delete(self, context: Context, image_id: str) -> None:
        """Remove an image from cache and queue; raises ImageNotFound for one that is in neither and nowhere else."""
        image: Image | None
        try:
            image = self._core.get_visible(context, image_id)
        except ImageNotFound:
            image = None
        keeper = self._required(context, "cache_delete", image)
        if not self._delete(keeper, image_id, TARGETS) and image is None:
            raise ImageNotFound(f"there is no image {image_id}")

    def delete_id(self, context: Context, image_id: str, target: str) -> None:
        """The older way: remove an image from ``target``, cache or queue, if it is there."""
        self._delete(self._required(context, "manage_image_cache"), image_id, (target,))

    def _delete(self, keeper: Keeper, image_id: str, targets: Sequence[str]) -> bool:
        removed = 0
        try:
            if "cache" in targets:
                removed += keeper.forget(image_id).files
            if "queue" in targets:
                removed += self._core.repository.cached.dequeue(keeper.node, [image_id])
        except OSError as error:
            raise _unusable(error) from error
        return bool(removed)

    def clear(self, context: Context, target: str = "", action: str = "cache_delete") -> int:
        """Remove all from the ``target``, cache or queue, both if it is empty; returns how many. Raises BadRequest."""
        keeper = self._required(context, action)
        if target not in ("", *TARGETS):
            raise BadRequest(f"{target!r} cannot be cleared, only cache or queue, or both if nothing is said")
        tables, removed = self._core.repository.cached, 0
        try:
            node = keeper.node
            if target in ("", "cache"):
                removed += self._directory.clear().files
                tables.remove(node, [each.image_id for each in tables.list(node)])
            if target in ("", "queue"):
                removed += tables.dequeue(node)
        except OSError as error:
            raise _unusable(error) from error
        return removed

    def prune(self, context: Context) -> Pruned:
        """Remove what was used least recently until the cache is within its limit."""
        keeper = self._required(context, "cache_prune")
        try:
            pruned = self._directory.prune()
            keeper.tend()
        except OSError as error:
            raise _unusable(error) from error
        return pruned

    def clean(self, context: Context) -> None:
        """Remove what dead processes left, and files to which nothing was added for too long."""
        keeper = self._required(context, "cache_clean")
        try:
            keeper.tend()
        except OSError as error:
            raise _unusable(error) from error

    def fetch(self, context: Context, image_ids: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Fetch queued images now, these or all; yields each with what became of it."""
        keeper = self._required(context, "cache_image")
        try:
            for image_id in image_ids or self._core.repository.cached.queued(keeper.node):
                yield image_id, keeper.fetch(image_id)
        except OSError as error:
            raise _unusable(error) from error

    def _required(self, context: Context, action: str, image: Image | None = None) -> Keeper:
        """Raises NotPermitted before it tells that there is no cache."""
        self._core.policy.require(context, action, {} if image is None else self._core.target(context, image))
        if self._keeper is None:
            raise ResourceNotFound("images are not cached here")
        return self._keeper


def _check_stores(registry: Registry, names: Iterable[str]) -> None:
    """Raise BadStoreConfiguration for a store that the configuration does not list."""
    known = {*(store.name for store in registry), *registry.disabled}
    for name in sorted(names):
        if name not in known:
            hint = did_you_mean(name, known)
            raise BadStoreConfiguration(f"[api] image_cache_stores = {name}: there is no such store{hint}")


def _check_place(registry: Registry, directory: str) -> None:
    """Raise BadStoreConfiguration where a store would take the files of the cache for its images."""
    cache = open_store("file", "image_cache_dir", filesystem_store_datadir=directory, read_only=True)
    for store in registry:
        if any(area.overlaps(own) for area in store.areas() for own in cache.areas()):
            raise BadStoreConfiguration(
                f"[api] image_cache_dir and store {store.name} would keep files in the same place; give the cache a "
                "directory of its own"
            )


def _enqueue(keeper: Keeper, image_id: str) -> Keeper:
    try:
        keeper.enqueue(image_id)
    except OSError as error:
        raise _unusable(error) from error
    return keeper


def _unusable(error: OSError) -> Unavailable:
    why = error.strerror or "no reason is known"
    return Unavailable(f"the image cache ([api] image_cache_dir) cannot be used now: {why}")
