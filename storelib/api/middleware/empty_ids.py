# SPDX-License-Identifier: Apache-2.0
"""A slash at the end of a path: behind the path of a collection it is the path of an item whose id is empty."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import falcon

from storelib.api.errors import ResourceNotFound
from storelib.api.service.preload.secrets import without_tickets


class NoEmptyIds:
    """Falcon middleware for an application with routes of these ``paths``: a collection is one with ids below it.

    Falcon strips the slash, which is right for all other paths.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        split = [path.rpartition("/") for path in paths]
        self._collections = frozenset(above for above, _, name in split if name.startswith("{"))

    def process_resource(self, req: falcon.Request, resp: falcon.Response, resource: object, params: Any) -> None:
        """Raise ResourceNotFound where the id is empty."""
        if req.env["PATH_INFO"].endswith("/") and req.uri_template in self._collections:
            raise ResourceNotFound(f"there is no id at the end of {without_tickets(req.path)}/")
