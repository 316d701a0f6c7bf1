# SPDX-License-Identifier: Apache-2.0
"""BackendAccess: the back end seen behind the driver's back, so that a driver cannot vouch for itself."""

from __future__ import annotations


class BackendAccess:
    """Override what the back end makes possible; what is missing the suite asks the store itself."""

    def read(self, image_id: str) -> bytes | None:
        """The bytes published under ``image_id``; None if there are none."""
        raise NotImplementedError

    def plant(self, image_id: str, data: bytes) -> str:
        """Publish an image without the driver; returns the URI at which the store finds it."""
        raise NotImplementedError

    def residue(self, prefix: str) -> set[str]:
        """Names of everything in the back end for ids with this prefix: images, parts, uploads, locks."""
        raise NotImplementedError

    def can(self, what: str) -> bool:
        """Whether it can ``read``, ``plant`` or ``residue``."""
        return getattr(type(self), what) is not getattr(BackendAccess, what)
