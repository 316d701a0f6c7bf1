# SPDX-License-Identifier: Apache-2.0
"""Gunicorn's logs without the tickets with which nodes read images: they are in paths."""

from __future__ import annotations

from typing import Any

from gunicorn.glogging import Logger

from storelib.api.service.preload.secrets import without_tickets


class AccessLog(Logger):  # type: ignore[misc]
    """Writes what gunicorn's own does, with ``***`` for each ticket."""

    def atoms(self, resp: Any, req: Any, environ: Any, request_time: Any) -> dict[str, Any]:
        """What a line may be made of."""
        found = super().atoms(resp, req, environ, request_time)
        return {name: _struck(value) for name, value in found.items() if name != "{x-node-secret}i"}

    def exception(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        """A request that failed, with its URI among what is told of it."""
        super().exception(_struck(msg), *map(_struck, args), **kwargs)

    def warning(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        """Log without the secrets of URIs, as ``exception`` does."""
        super().warning(_struck(msg), *map(_struck, args), **kwargs)


def _struck(value: Any) -> Any:
    return without_tickets(value) if isinstance(value, str) else value
