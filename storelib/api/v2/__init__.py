# SPDX-License-Identifier: Apache-2.0
"""The v2 API: HTTP translated to calls of the service and back. No rules in here."""

from __future__ import annotations

import falcon

from storelib.api import metadef_schemas
from storelib.api.service import Service
from storelib.api.v2 import cache, data, discovery, images, locations, members, metadefs, nodes, preloads, tasks
from storelib.api.v2.documents import ImageDocuments


def add_routes(app: falcon.App, service: Service) -> None:  # type: ignore[type-arg]
    """Every path of the v2 API."""
    one = "/v2/images/{image_id}"
    documents = ImageDocuments(service.core)
    app.add_route("/v2/images", images.ImagesResource(service, documents))
    app.add_route(one, images.ImageResource(service, documents))
    app.add_route(f"{one}/file", data.FileResource(service))
    app.add_route(f"{one}/stage", data.StageResource(service))
    app.add_route(f"{one}/import", data.ImportResource(service))
    app.add_route(f"{one}/tasks", tasks.ImageTasksResource(service))
    app.add_route(f"{one}/locations", locations.LocationsResource(service))
    app.add_route(f"{one}/actions/deactivate", images.DeactivateResource(service))
    app.add_route(f"{one}/actions/reactivate", images.ReactivateResource(service))
    # A tag may have slashes in it, and the id of a member.
    app.add_route(f"{one}/tags/{{tag:path}}", images.TagResource(service))
    app.add_route(f"{one}/members", members.MembersResource(service))
    app.add_route(f"{one}/members/{{member_id:path}}", members.MemberResource(service))
    app.add_route("/v2/stores/{store_id}/{image_id}", locations.StoreImageResource(service))
    app.add_route("/v2/tasks", tasks.TasksResource(service))
    app.add_route("/v2/tasks/{task_id}", tasks.TaskResource(service))
    for name, resource in discovery.info_resources(service).items():
        app.add_route(f"/v2/info/{name}", resource)
    app.add_route("/v2/schemas/{name}", discovery.SchemaResource(discovery.schema_documents(service)))
    app.add_route("/v2/schemas/metadefs/{name}", discovery.SchemaResource(metadef_schemas.documents()))
    metadefs.add_routes(app, service)
    cache.add_routes(app, service)
    nodes.add_routes(app, service)
    preloads.add_routes(app, service)
