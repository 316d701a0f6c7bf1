# SPDX-License-Identifier: Apache-2.0
"""A slash at the end of a path: behind the path of a collection it is the path of an item whose id is empty."""

from __future__ import annotations

from typing import Any

import falcon
import falcon.inspect

from storelib.api.errors import ResourceNotFound


class NoEmptyIds:
    """Falcon middleware for an ``app`` that has all its routes: a collection is a path with ids below it.

    Falcon strips the slash, which is right for all other paths.
    """

    def __init__(self, app: falcon.App) -> None:  # type: ignore[type-arg]
        paths = [route.path.rpartition("/") for route in falcon.inspect.inspect_routes(app)]
        self._collections = frozenset(above for above, _, name in paths if name.startswith("{"))

    def process_resource(self, req: falcon.Request, resp: falcon.Response, resource: object, params: Any) -> None:
        """Raise ResourceNotFound where the id is empty."""
        if req.env["PATH_INFO"].endswith("/") and req.uri_template in self._collections:
            raise ResourceNotFound(f"there is no id at the end of {req.path}/")
