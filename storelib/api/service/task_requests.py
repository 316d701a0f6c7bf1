# SPDX-License-Identifier: Apache-2.0
"""Tasks that clients ask for by ``POST /v2/tasks``, the older way to import: a new image of what is at a URL, or what
the newer ways do to an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storelib.api.context import Context
from storelib.api.db.records import Task
from storelib.api.errors import BadRequest, Conflict
from storelib.api.service.core import Core
from storelib.api.service.images import Images
from storelib.api.service.import_jobs import Request
from storelib.api.service.imports import Imports
from storelib.api.service.locations import Locations
from storelib.api.service.sources import web_store
from storelib.uris import redact

#: What a client may leave out of the properties of a new image.
_DEFAULTS = {"disk_format": "qcow2", "container_format": "bare"}


class TaskRequests:
    """Begins such tasks. All need the policy ``tasks_api_access``, and then what the same thing needs otherwise."""

    def __init__(self, core: Core, images: Images, imports: Imports, locations: Locations) -> None:
        self._core = core
        self._images = images
        self._imports = imports
        self._locations = locations

    def check(self, context: Context) -> None:
        """Raise NotPermitted unless the caller may begin tasks at all."""
        self._core.policy.require(context, "tasks_api_access", {})

    def make_image(self, context: Context, given: Mapping[str, Any]) -> Task:
        """``import``: make an image with ``image_properties`` of what is at ``import_from``, a URL.

        The image is deleted again if that fails. Raises BadRequest for what is missing, wrong or may not be read, and
        what making an image and importing into it raise.
        """
        self.check(context)
        url = _text(given, "import_from")
        _text(given, "import_from_format")
        properties = given.get("image_properties")
        if not isinstance(properties, dict):
            raise BadRequest("the input needs 'image_properties', an object")
        # Before there is an image.
        web_store(self._core.options, url)
        image = self._images.create(context, properties or _DEFAULTS)
        shown = {**given, "import_from": redact(url)}
        request = Request("web-download", url, kind="import", given=shown)
        try:
            return self._begun(self._imports.start(context, image.id, request))
        except BaseException:
            self._imports.unmake(image.id)
            raise

    def import_data(self, context: Context, given: Mapping[str, Any], request: Request) -> Task:
        """``api_image_import``: what ``Imports.start`` does; raises what that raises."""
        self.check(context)
        return self._begun(self._imports.start(context, _text(given, "image_id"), request))

    def add_location(self, context: Context, given: Mapping[str, Any]) -> Task:
        """``location_import``: what ``Locations.add`` does; raises what that raises."""
        self.check(context)
        validation = given.get("validation_data")
        if validation is not None and not isinstance(validation, dict):
            raise BadRequest("'validation_data' must be an object")
        if any(not isinstance(value, str) for value in (validation or {}).values()):
            raise BadRequest("the values of 'validation_data' must be strings")
        image_id = _text(given, "image_id")
        self._locations.add(context, image_id, _text(given, "loc_url"), validation)
        return self._core.repository.tasks.of_image(image_id)[0]

    def _begun(self, task: Task | None) -> Task:
        if task is None:
            raise Conflict("the image is in all stores already")
        return task


def _text(given: Mapping[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str) or not value:
        raise BadRequest(f"the input needs {name!r}, a string")
    return value
