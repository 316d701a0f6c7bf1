# SPDX-License-Identifier: Apache-2.0
"""Quotas: how much one image and one owner may have."""

from __future__ import annotations

from collections.abc import Iterable, Sized
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
        #: Bytes that one owner may hold in all; None is no limit.
        self.total = size_in_bytes(options.user_storage_quota) or None

    def check_length(self, what: str, given: Any, limit: int | None, present: int = 0) -> None:
        """Raise LimitExceeded for a list that is too long whatever is in it, and longer than what is ``present``.

        What a client gave may be anything, and looking at all of it may take long.
        """
        if isinstance(given, list) and len(given) > present:
            _check(what, len(given), limit)

    def check_properties(self, properties: Iterable[str]) -> None:
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

    def check_size(self, size: int) -> None:
        """Raise LimitExceeded for an image that is too large by itself."""
        if size > self.image_size:
            raise LimitExceeded(f"an image may have {self.image_size} bytes, not {size}")

    def room(self, owner: str | None, size: int | None = None, copies: int = 1, staged: int = 0) -> int:
        """Bytes that one more image of this owner may have; raises if ``size`` bytes in ``copies`` stores are too many.

        ``staged`` bytes of what the owner holds are those of this image, and go. LimitExceeded is for an image that is
        too large by itself, QuotaExceeded for the owner's total, as far as can be told before anything begins: the
        repository is given ``total`` with everything that adds to it.
        """
        if size is not None:
            self.check_size(size)
        if self.total is None:
            return self.image_size
        left = (self.total - self._repository.images.held(owner) + staged) // max(copies, 1)
        if left < (size or 0) or left <= 0:
            raise QuotaExceeded(f"the project may store {self.total} bytes, and this is more than is left of them")
        return min(left, self.image_size)


def _limit(value: int) -> int | None:
    return None if value < 0 else value


def _check(what: str, count: int, limit: int | None) -> None:
    if limit is not None and count > limit:
        raise LimitExceeded(f"an image may have {limit} {what}, not {count}")
