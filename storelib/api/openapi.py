# SPDX-License-Identifier: Apache-2.0
"""``/openapi.json``: the API in the terms of OpenAPI 3.1, made of its routes and of what is said at each responder."""

from __future__ import annotations

import http
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import falcon

from storelib._version import __version__
from storelib.api.describing import JSON, Content, Described, Operation, Parameter, operation_of
from storelib.api.links import base_url
from storelib.api.middleware.versions import WsgiApp
from storelib.api.schemas import portable

PATH = "/openapi.json"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
#: Errors of every operation: a value that cannot be, permission, nothing there, a server behind this one is away.
EVERYWHERE = (400, 401, 403, 404, 503)

Document = dict[str, Any]

ERROR: Document = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "title", "message"],
            "properties": {
                "code": {"type": "integer", "description": "The status code"},
                "title": {"type": "string", "description": "The name of the status"},
                "message": {"type": "string", "description": "What is wrong, for people to read"},
            },
        }
    },
}
#: Who asks, by ``auth_strategy``.
SECURITY: Mapping[str, tuple[str, Document]] = {
    "keystone": ("token", {"type": "apiKey", "in": "header", "name": "X-Auth-Token"}),
    "http_basic": ("password", {"type": "http", "scheme": "basic"}),
}

_FIELD = re.compile(r"\{(\w+)(?::\w+)?\}")
_UUID: Document = {"type": "string", "format": "uuid"}
_WORD: Document = {"type": "string", "minLength": 1}
#: Path parameters; what is not here is any word.
_FIELDS = {"image_id": _UUID, "task_id": _UUID}
#: What Glance's schemas say that is no part of JSON schema.
_FOREIGN = ("name", "links")


class Routes(falcon.App):  # type: ignore[type-arg]
    """A falcon.App that remembers its routes and their resources."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.routes: list[tuple[str, object]] = []

    def add_route(self, uri_template: str, resource: object, **named: Any) -> None:
        """As falcon does, and remember the route."""
        super().add_route(uri_template, resource, **named)
        self.routes.append((uri_template, resource))


def operations(routes: Iterable[tuple[str, object]]) -> Iterator[tuple[str, str, object, Any]]:
    """Path, method, resource and responder of every operation."""
    for path, resource in routes:
        for method in METHODS:
            responder = getattr(resource, f"on_{method.lower()}", None)
            if responder is not None:
                yield path, method, resource, responder


def document(
    routes: Iterable[tuple[str, object]], schemas: Mapping[str, Mapping[str, Any]], auth_strategy: str
) -> Document:
    """The whole description, without its servers. ``schemas`` are those that operations name."""
    paths: dict[str, Document] = {}
    for path, method, resource, responder in operations(routes):
        said = operation_of(responder)
        if said is not None:
            shown = _FIELD.sub(r"{\1}", path)
            paths.setdefault(shown, {})[method.lower()] = _operation(path, method, resource, responder, said)
    found: Document = {
        "openapi": "3.1.0",
        "info": {
            "title": "Image API",
            "version": __version__,
            "description": "Metadata of disk images, and their data in stores.",
        },
        "paths": paths,
        "components": {"schemas": {"error": ERROR, **_components(schemas)}},
    }
    if auth_strategy in SECURITY:
        name, scheme = SECURITY[auth_strategy]
        found["components"]["securitySchemes"] = {name: scheme}
        found["security"] = [{name: []}]
    return found


def page(found: Document, public_endpoint: str | None) -> WsgiApp:
    """The WSGI application that serves ``found``."""
    rest = json.dumps(found, separators=(",", ":"))[1:]

    def serve(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        status, more = "200 OK", []
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            servers = json.dumps([{"url": base_url(environ, public_endpoint)}])
            body = f'{{"servers":{servers},{rest}'.encode()
        else:
            status, more = "405 Method Not Allowed", [("Allow", "GET, HEAD")]
            error = {"code": 405, "title": "Method Not Allowed", "message": "this can be read only"}
            body = json.dumps({"error": error}).encode()
        start_response(status, [("Content-Type", JSON), ("Content-Length", str(len(body))), *more])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    return serve


def _operation(path: str, method: str, resource: object, responder: Any, said: Operation) -> Document:
    summary, _, more = (inspect.getdoc(responder) or "").partition("\n")
    responses = {
        str(status): _response(status, content, resource, said.response_headers)
        for status, content in said.returns.items()
    }
    for status in sorted({*EVERYWHERE, *said.errors} - said.returns.keys()):
        responses[str(status)] = _response(status, None if method == "HEAD" else Content("error"), resource, {})
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _field(resource, name)}
        for name in _FIELD.findall(path)
    ]
    parameters += _parameters("query", said.query) + _parameters("header", said.headers)
    found: Document = {
        "operationId": f"{method.lower()}{_FIELD.sub(lambda match: match[1], path).replace('/', '_')}",
        "summary": summary.partition(";")[0].removesuffix("."),
        "tags": [path.split("/")[2] if path.count("/") > 1 else path.strip("/")],
        "parameters": parameters,
        "responses": responses,
    }
    if more.strip():
        found["description"] = more.strip()
    if said.body:
        content = [_content(each, resource) for each in said.body]
        found["requestBody"] = {
            "required": said.body[0].required,
            "content": {name: each[name] for each in content for name in each},
        }
    return found


def _field(resource: object, name: str) -> Document:
    own: Mapping[str, Document] = getattr(resource, "path_fields", {})
    return own.get(name) or _FIELDS.get(name) or _WORD


def _parameters(place: str, said: Sequence[Parameter]) -> list[Document]:
    return [
        {"name": each.name, "in": place, "description": each.description, "schema": dict(each.schema)} for each in said
    ]


def _response(status: int, content: Content | None, resource: object, headers: Mapping[str, str]) -> Document:
    found: Document = {"description": http.HTTPStatus(status).phrase}
    if content is not None:
        found["content"] = _content(content, resource)
    if headers and status < 300:
        found["headers"] = {
            name: {"description": description, "schema": {"type": "string"}} for name, description in headers.items()
        }
    return found


def _content(content: Content, resource: object) -> Document:
    return {media_type: {"schema": _schema(content.schema, resource)} for media_type in content.media_types}


def _schema(said: Described, resource: object) -> Document:
    if callable(said):
        said = said(resource)
    return {"$ref": f"#/components/schemas/{said}"} if isinstance(said, str) else _plain(said, "")


def _components(schemas: Mapping[str, Mapping[str, Any]]) -> Document:
    """The schemas with what they define put beside them, where references of the whole document find it."""
    found: Document = {}
    for name, schema in schemas.items():
        for inner, definition in schema.get("definitions", {}).items():
            found[f"{name}.{inner}"] = _plain(definition, name)
        outer = {key: value for key, value in schema.items() if key != "definitions" and key not in _FOREIGN}
        found[name] = _plain({"type": "object", **outer}, name)
    return found


def _plain(schema: Any, owner: str) -> Any:
    """A schema of draft 4 as one of OpenAPI: references lead to the components, patterns are portable."""
    if isinstance(schema, Mapping):
        return {key: _value(key, value, owner) for key, value in schema.items() if key != "is_base"}
    if isinstance(schema, (list, tuple)):
        return [_plain(each, owner) for each in schema]
    return schema


def _value(key: str, value: Any, owner: str) -> Any:
    if key == "$ref" and isinstance(value, str) and value.startswith("#/definitions/"):
        return f"#/components/schemas/{owner}.{value.removeprefix('#/definitions/')}"
    if key == "pattern" and isinstance(value, str):
        return portable(value)
    return _plain(value, owner)
