# SPDX-License-Identifier: Apache-2.0
"""``/v2/images/{id}/locations`` and ``/v2/stores/{store}/{id}``: where data is."""

from __future__ import annotations

from typing import Any

import falcon

from storelib.api.describing import described
from storelib.api.errors import BadRequest
from storelib.api.json_response import send
from storelib.api.service import Service
from storelib.api.v2.serializers import image_document, location_document, read_object, refuse_body

LONGEST_URL = 255


class LocationsResource:
    """The locations of an image."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({200: "locations"})
    def on_get(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """List the locations of an image, for services."""
        found = self._service.locations.list(req.context.caller, image_id)
        send(resp, [location_document(location) for location in found])

    @described({202: "image"}, body="new-location", errors=(409, 413, 415))
    def on_post(self, req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
        """Add a location to a queued image."""
        body = read_object(req)
        url, validation = body.get("url"), body.get("validation_data")
        if not isinstance(url, str) or not 0 < len(url) <= LONGEST_URL:
            raise BadRequest(f"the body must have a 'url' of at most {LONGEST_URL} characters")
        said = {} if validation is None else _checked(validation)
        image = self._service.locations.add(req.context.caller, image_id, url, said)
        send(resp, image_document(self._service.core, req.context.caller, image), falcon.HTTP_202)


class StoreImageResource:
    """An image's data in one store."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @described({204: None}, errors=(409,))
    def on_delete(self, req: falcon.Request, resp: falcon.Response, store_id: str, image_id: str) -> None:
        """Delete an image's data from one store."""
        refuse_body(req)
        self._service.locations.drop(req.context.caller, store_id, image_id)
        resp.status = falcon.HTTP_204


def _checked(validation: Any) -> dict[str, str]:
    if not isinstance(validation, dict) or not all(isinstance(value, str) for value in validation.values()):
        raise BadRequest("'validation_data' must be an object of strings")
    if validation and not {"os_hash_algo", "os_hash_value"} <= set(validation):
        raise BadRequest("'validation_data' needs os_hash_algo and os_hash_value")
    return validation
