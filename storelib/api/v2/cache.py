# SPDX-License-Identifier: Apache-2.0
"""``/v2/cache``: what the image cache of this host holds and is to fetch; and the older paths for the same."""

from __future__ import annotations

from typing import Any

import falcon

from storelib.api.db.cached import CachedImage
from storelib.api.describing import choice, described
from storelib.api.json_response import send
from storelib.api.service import Service

#: Which of the two is cleared; both without it.
TARGET = "x-image-cache-clear-target"
#: The older paths; v1 has them, too.
PREFIXES = ("/v1", "/v2")
_MANAGE = "manage_image_cache"
_TARGET = choice(TARGET, "Which of cache and queue is emptied", ["cache", "queue"])


def add_routes(app: falcon.App, service: Service) -> None:  # type: ignore[type-arg]
    """Every path of the cache."""
    app.add_route("/v2/cache", CacheResource(service))
    app.add_route("/v2/cache/clean", CleanResource(service))
    app.add_route("/v2/cache/prune", PruneResource(service))
    app.add_route("/v2/cache/nodes/{image_id}", NodesResource(service))
    app.add_route("/v2/cache/{image_id}", CachedImageResource(service))
    if service.core.options.image_cache_management:
        for prefix in PREFIXES:
            app.add_route(f"{prefix}/cached_images", OlderListResource(service, "cache"))
            app.add_route(f"{prefix}/cached_images/{{image_id}}", OlderCachedResource(service))
            app.add_route(f"{prefix}/queued_images", OlderListResource(service, "queue"))
            app.add_route(f"{prefix}/queued_images/{{image_id}}", OlderQueuedResource(service))


class CacheResource:
    """Cache and queue as a whole."""

    def __init__(self, service: Service) -> None:
        self._cache = service.cache

    @described({200: "cache"})
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """List the images in the cache and in the queue."""
        cached, queued = self._cache.list(req.context.caller)
        send(resp, {"cached_images": [document(each) for each in cached], "queued_images": queued})

    @described({204: None}, headers=[_TARGET])
    def on_delete(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Empty cache and queue, or the one that a header names."""
        self._cache.clear(req.context.caller, (req.get_header(TARGET) or "").lower())
        resp.status = falcon.HTTP_204


class CachedImageResource:
    """One image in cache and queue."""

    def __init__(self, service: Service) -> None:
        self._cache = service.cache

    @described({202: None}, errors=(409,))
    def on_put(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """Queue an image for the cache, which is filled after the response."""
        self._cache.queue(req.context.caller, image_id)
        _empty(resp, falcon.HTTP_202)

    @described({204: None})
    def on_delete(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """Remove an image from cache and queue."""
        self._cache.delete(req.context.caller, image_id)
        resp.status = falcon.HTTP_204


class NodesResource:
    """Where an image is cached."""

    def __init__(self, service: Service) -> None:
        self._cache = service.cache

    @described({200: {"type": "array", "items": {"type": "string"}}})
    def on_get(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """List the hosts that have an image in their cache."""
        send(resp, list(self._cache.hosts(req.context.caller, image_id)))


class CleanResource:
    """Incomplete files that nobody fills any more."""

    def __init__(self, service: Service) -> None:
        self._cache = service.cache

    @described({200: None})
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Remove files that were left incomplete from the cache."""
        self._cache.clean(req.context.caller)
        _empty(resp, falcon.HTTP_200)


class PruneResource:
    """What the cache holds above its limit."""

    def __init__(self, service: Service) -> None:
        self._cache = service.cache

    @described({200: "cache-pruned"})
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Shrink the cache to its limit, and say how much was removed."""
        files, size = self._cache.prune(req.context.caller)
        send(resp, {"total_files_pruned": files, "total_bytes_pruned": size})


class OlderListResource:
    """The cache or the queue, as older clients ask for them."""

    def __init__(self, service: Service, target: str) -> None:
        self._cache = service.cache
        self._target = target

    @described({200: "cache"})
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """List the images in the cache, or in the queue."""
        cached, queued = self._cache.list(req.context.caller, _MANAGE)
        if self._target == "cache":
            send(resp, {"cached_images": [document(each) for each in cached]})
        else:
            send(resp, {"queued_images": queued})

    @described({200: "cache-deleted"})
    def on_delete(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Empty the cache, or the queue, and say how many images were in it."""
        send(resp, {"num_deleted": self._cache.clear(req.context.caller, self._target, _MANAGE)})


class OlderCachedResource:
    """One image in the cache."""

    def __init__(self, service: Service) -> None:
        self._cache = service.cache

    @described({200: None})
    def on_delete(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """Remove an image from the cache."""
        self._cache.delete_id(req.context.caller, image_id, "cache")
        _empty(resp, falcon.HTTP_200)


class OlderQueuedResource:
    """One image in the queue."""

    def __init__(self, service: Service) -> None:
        self._cache = service.cache

    @described({200: None}, errors=(409,))
    def on_put(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """Queue an image for the cache."""
        self._cache.queue_id(req.context.caller, image_id)
        _empty(resp, falcon.HTTP_200)

    @described({200: None})
    def on_delete(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """Remove an image from the queue."""
        self._cache.delete_id(req.context.caller, image_id, "queue")
        _empty(resp, falcon.HTTP_200)


def document(cached: CachedImage) -> dict[str, Any]:
    """An image in the cache; times are POSIX seconds."""
    return {
        "image_id": cached.image_id,
        "size": cached.size,
        "hits": cached.hits,
        "last_accessed": cached.used_at.timestamp(),
        "last_modified": cached.cached_at.timestamp(),
    }


def _empty(resp: falcon.Response, status: str) -> None:
    resp.status = status
    # Clients decode what calls itself JSON.
    resp.content_type = "text/plain"
