# SPDX-License-Identifier: Apache-2.0
"""Quotas: how much one image and one owner may have."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from types import SimpleNamespace
from typing import Any

from storelib.api.config import size_in_bytes
from storelib.api.db.repository import Repository
from storelib.api.errors import LimitExceeded, QuotaExceeded
from storelib.api.schemas import RESERVED_PREFIX


class Quota:
    """The limits as configured. A limit of None is none."""

    def __init__(self, options: SimpleNamespace, repository: Repository) -> None:
        self._repository = repository
        self.members = _limit(options.image_member_quota)
        self.properties = _limit(options.image_property_quota)
        self.tags = _limit(options.image_tag_quota)
        self.locations = _limit(options.image_location_quota)
        self.image_size: int = options.image_size_cap
        self._storage = size_in_bytes(options.user_storage_quota)

    def check_properties(self, properties: Mapping[str, Any]) -> None:
        """Raise LimitExceeded for too many custom properties."""
        count = sum(not name.startswith(RESERVED_PREFIX) for name in properties)
        _check("properties", count, self.properties)

    def check_tags(self, tags: Sized) -> None:
        """Raise LimitExceeded for too many tags."""
        _check("tags", len(tags), self.tags)

    def check_members(self, members: Sized) -> None:
        """Raise LimitExceeded for too many members."""
        _check("members", len(members), self.members)

    def check_locations(self, locations: Sized) -> None:
        """Raise LimitExceeded for too many locations."""
        _check("locations", len(locations), self.locations)

    def room(self, owner: str | None, size: int | None = None, copies: int = 1) -> int:
        """Bytes that one more image of this owner may have; raises if ``size`` bytes in ``copies`` stores are too many.

        LimitExceeded is for an image that is too large by itself, QuotaExceeded for the owner's total.
        """
        if size is not None and size > self.image_size:
            raise LimitExceeded(f"an image may have {self.image_size} bytes, not {size}")
        if not self._storage:
            return self.image_size
        left = (self._storage - self._repository.images.usage(owner).total_size) // max(copies, 1)
        if left < (size or 0) or left <= 0:
            raise QuotaExceeded(f"the project may store {self._storage} bytes, and this is more than is left of them")
        return min(left, self.image_size)


def _limit(value: int) -> int | None:
    return None if value < 0 else value


def _check(what: str, count: int, limit: int | None) -> None:
    if limit is not None and count > limit:
        raise LimitExceeded(f"an image may have {limit} {what}, not {count}")
