# SPDX-License-Identifier: Apache-2.0
"""The v1 API: its headers translated to calls of the service and back. No rules in here."""

from __future__ import annotations

import falcon

from storelib.api.service import Service
from storelib.api.v1 import images, members


def add_routes(app: falcon.App, service: Service) -> None:  # type: ignore[type-arg]
    """Every path of the v1 API."""
    one = "/v1/images/{image_id}"
    app.add_route("/v1", images.ListResource(service, images.brief_document))
    app.add_route("/v1/images", images.ImagesResource(service, images.brief_document))
    app.add_route("/v1/images/detail", images.ListResource(service, images.detailed_document))
    app.add_route(one, images.ImageResource(service))
    app.add_route(f"{one}/members", members.MembersResource(service))
    # The id of a member may have slashes in it.
    app.add_route(f"{one}/members/{{member_id:path}}", members.MemberResource(service))
    app.add_route("/v1/shared-images/{member_id:path}", members.SharedImagesResource(service))
