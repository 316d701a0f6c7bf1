# SPDX-License-Identifier: Apache-2.0
"""What a project may hold by Keystone's unified limits, where ``use_keystone_limits`` is on.

The four resources, their units and the arithmetic are Glance's, so that limits mean the same: sizes in whole MiB, data
of unknown size counts once it is there, and a resource without any limit in Keystone has a limit of 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from oslo_config import cfg

from storelib.api.db.records import Usage
from storelib.api.db.repository import Repository
from storelib.api.errors import QuotaExceeded
from storelib.transfer.contract import MiB

SIZE, STAGED, COUNT, UPLOADING = "image_size_total", "image_stage_total", "image_count_total", "image_count_uploading"


class Limits(Protocol):
    """What the parts of the service ask before they give a project more. All raise QuotaExceeded and Unavailable."""

    def check_create(self, owner: str | None) -> None:
        """For one more image."""

    def check_data(self, owner: str | None, size: int | None) -> None:
        """For so many bytes more, None if that is not known."""

    def check_stage(self, owner: str | None, size: int | None) -> None:
        """For so many bytes more that are only staged."""

    def check_uploading(self, owner: str | None, more: int = 0) -> None:
        """For the images that get data now, and so many ``more``."""

    def usage(self, project_id: str | None) -> dict[str, dict[str, int]]:
        """What a project has of each resource and may have; nothing where there are no such limits."""


class LimitsOfProjects(Protocol):
    """Who knows the limits."""

    def of(self, project_id: str, resources: Iterable[str]) -> Mapping[str, int]:
        """The limit of each of these resources for a project, below 0 where there is none; raises Unavailable."""


class NoLimits:
    """Without Keystone: everything is allowed."""

    def check_create(self, owner: str | None) -> None: ...

    def check_data(self, owner: str | None, size: int | None) -> None: ...

    def check_stage(self, owner: str | None, size: int | None) -> None: ...

    def check_uploading(self, owner: str | None, more: int = 0) -> None: ...

    def usage(self, project_id: str | None) -> dict[str, dict[str, int]]:
        return {}


class UnifiedLimits:
    """Keystone's limits against what the database says is there. An image without an owner is limited by nobody."""

    def __init__(self, keystone: LimitsOfProjects, repository: Repository) -> None:
        self._keystone = keystone
        self._repository = repository

    def check_create(self, owner: str | None) -> None:
        self._check(owner, COUNT, 1)

    def check_data(self, owner: str | None, size: int | None) -> None:
        self._check(owner, SIZE, (size or 0) // MiB)

    def check_stage(self, owner: str | None, size: int | None) -> None:
        self._check(owner, STAGED, (size or 0) // MiB)

    def check_uploading(self, owner: str | None, more: int = 0) -> None:
        self._check(owner, UPLOADING, more)

    def usage(self, project_id: str | None) -> dict[str, dict[str, int]]:
        if project_id is None:
            return {}
        used = _in_units(self._repository.images.usage(project_id))
        limits = self._keystone.of(project_id, used)
        return {name: {"limit": limits[name], "usage": count} for name, count in used.items()}

    def _check(self, owner: str | None, resource: str, more: int) -> None:
        if owner is None:
            return
        limit = self._keystone.of(owner, [resource])[resource]
        if limit < 0:
            return
        used = self._used(owner, resource)
        if used + more > limit:
            raise QuotaExceeded(f"the limit of the project for {resource} is {limit}; it has {used}, and {more} more")

    def _used(self, owner: str, resource: str) -> int:
        """What the project has of one resource, and no other is asked for."""
        images = self._repository.images
        match resource:
            case "image_size_total":
                return images.stored(owner) // MiB
            case "image_stage_total":
                return images.staged(owner) // MiB
            case "image_count_uploading":
                return images.uploading(owner)
        return images.count(owner)


def limits_from(conf: cfg.ConfigOpts, repository: Repository) -> Limits:
    """As ``use_keystone_limits`` says; raises BadStoreConfiguration."""
    if not conf.api.use_keystone_limits:
        return NoLimits()
    from storelib.api.keystone_limits import KeystoneLimits

    return UnifiedLimits(KeystoneLimits(conf, conf.api.keystone_limits_cache_time), repository)


def _in_units(usage: Usage) -> dict[str, int]:
    return {
        SIZE: usage.total_size // MiB,
        STAGED: usage.stage_size // MiB,
        COUNT: usage.images,
        UPLOADING: usage.uploading,
    }
