# SPDX-License-Identifier: Apache-2.0
"""``storelib cache``: the image cache of this host, without a server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from storelib.cli import exits
from storelib.cli.service import configuration, image_api, repository
from storelib.cli.session import Session, command
from storelib.exceptions import BadStoreConfiguration, Forbidden, Invalid, NotFound

if TYPE_CHECKING:
    from storelib.api.service.cache import Cache

COLUMNS = ("image", "state", "size", "hits", "used", "cached")


@click.group("cache")
def cache() -> None:
    """List, fill and empty the image cache of this host ([api] image_cache_dir). Servers may run beside it."""


@command("list")
def list_(session: Session) -> None:
    """List the images in the cache, and those that are queued to be fetched into it."""
    with _cache(session) as found:
        from storelib.api.context import administrator

        cached, queued = found.list(administrator())
        records: list[dict[str, object]] = [
            {
                "image": each.image_id,
                "state": "cached",
                "size": each.size,
                "hits": each.hits,
                "used": each.used_at.isoformat(timespec="seconds"),
                "cached": each.cached_at.isoformat(timespec="seconds"),
            }
            for each in cached
        ]
        records += [dict.fromkeys(COLUMNS) | {"image": each, "state": "queued"} for each in queued]
        session.output.many(COLUMNS, records)


@command("queue")
@click.argument("images", nargs=-1, required=True)
def queue(session: Session, images: tuple[str, ...]) -> None:
    """Have servers of this host fetch IMAGES into the cache, within some seconds."""
    with _cache(session) as found:
        from storelib.api.context import administrator

        for image_id in images:
            found.enqueue(administrator(), image_id)


@command("prefetch")
@click.argument("images", nargs=-1)
def prefetch(session: Session, images: tuple[str, ...]) -> None:
    """Fetch IMAGES into the cache now, or all that are queued; exits with 1 if one is not there afterwards."""
    with _cache(session) as found:
        from storelib.api.context import administrator

        outcomes: set[str] = set()

        def records() -> Iterator[dict[str, object]]:
            for image_id, outcome in found.fetch(administrator(), images):
                outcomes.add(outcome)
                yield {"image": image_id, "outcome": outcome}

        session.output.many(("image", "outcome"), records())
    if outcomes - {"cached", "cached already"}:
        raise click.exceptions.Exit(exits.FAILED)


@command("delete")
@click.argument("images", nargs=-1, required=True)
def delete(session: Session, images: tuple[str, ...]) -> None:
    """Remove IMAGES from cache and queue."""
    with _cache(session) as found:
        from storelib.api.context import administrator

        for image_id in images:
            found.delete(administrator(), image_id)


@command("clear")
@click.option("--cache", "target", flag_value="cache", help="Only the images in the cache.")
@click.option("--queue", "target", flag_value="queue", help="Only those that are queued.")
def clear(session: Session, target: str | None) -> None:
    """Remove all images from the cache, and all that are queued."""
    with _cache(session) as found:
        from storelib.api.context import administrator

        session.output.one({"removed": found.clear(administrator(), target or "")})


@command("prune")
def prune(session: Session) -> None:
    """Bring the cache within [api] image_cache_max_size, and remove what nobody fills or has any more.

    Servers do both by themselves; this is for a limit that was lowered, and for hosts without one.
    """
    with _cache(session) as found:
        from storelib.api.context import administrator

        pruned = found.prune(administrator())
        session.output.one({"files": pruned.files, "bytes": pruned.bytes})


for _each in (list_, queue, prefetch, delete, clear, prune):
    cache.add_command(_each)


@contextlib.contextmanager
def _cache(session: Session) -> Iterator[Cache]:
    """The configured cache; raises BadStoreConfiguration where there is none."""
    with image_api("cache"):
        from storelib.api import config, errors
        from storelib.api.service import Service

        conf = configuration(session)
        if not config.read_options(conf).image_cache_dir:
            raise BadStoreConfiguration("[api] image_cache_dir is not set, so images are not cached here")
        with repository(session) as tables:
            service = Service(conf, tables, session.registry, renew=0)
            try:
                yield service.cache
            except errors.Unavailable:
                raise
            except errors.ResourceNotFound as error:
                raise NotFound(str(error)) from error
            except errors.NotPermitted as error:
                raise Forbidden(str(error)) from error
            except errors.ApiError as error:
                raise Invalid(str(error)) from error
            finally:
                service.stop()
