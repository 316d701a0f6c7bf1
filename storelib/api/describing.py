# SPDX-License-Identifier: Apache-2.0
"""What an operation of the API takes and returns, said where the operation is: beside its responder.

``openapi.py`` makes one document of it. Nothing is checked here: a test compares the document with the server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

Schema = Mapping[str, Any]
#: A schema, the name of one in the document's components, or what makes one of both for the resource.
Described = Schema | str | Callable[[Any], "Schema | str"]

F = TypeVar("F", bound=Callable[..., None])

JSON = "application/json"
OCTETS = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a query string, or a header; none of them is required."""

    name: str
    description: str
    schema: Schema = field(default_factory=lambda: {"type": "string"})


@dataclass(frozen=True, slots=True)
class Content:
    """A body of one of these media types."""

    schema: Described
    media_types: Sequence[str] = (JSON,)
    required: bool = True


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of a resource."""

    returns: Mapping[int, Content | None]
    body: Sequence[Content]
    query: Sequence[Parameter]
    headers: Sequence[Parameter]
    errors: Sequence[int]
    response_headers: Mapping[str, str]


def described(
    returns: Mapping[int, Described | Content | None],
    *,
    body: Described | Content | Sequence[Content] = (),
    query: Sequence[Parameter] = (),
    headers: Sequence[Parameter] = (),
    errors: Sequence[int] = (),
    response_headers: Mapping[str, str] | None = None,
) -> Callable[[F], F]:
    """Decorator for a responder. None in ``returns`` is a response without a body; ``errors`` are statuses beside those
    of every operation. What is only a schema is JSON.
    """
    bodies = body if isinstance(body, (list, tuple)) else (_content(body),)
    said = Operation(
        {status: None if content is None else _content(content) for status, content in returns.items()},
        bodies,
        query,
        headers,
        errors,
        response_headers or {},
    )

    def keep(responder: F) -> F:
        responder.__dict__["operation"] = said
        return responder

    return keep


def operation_of(responder: Any) -> Operation | None:
    """What was said of a responder, None if nothing was."""
    found: Operation | None = getattr(responder, "operation", None)
    return found


LARGEST = 2**63 - 1
#: Any bytes.
BINARY = Content({}, (OCTETS,))


def number(name: str, description: str) -> Parameter:
    """A whole number, 0 or more, that a database can keep."""
    return Parameter(name, description, {"type": "integer", "minimum": 0, "maximum": LARGEST})


def choice(name: str, description: str, values: Sequence[str]) -> Parameter:
    """One of several words."""
    return Parameter(name, description, {"type": "string", "enum": [*values]})


#: One page of a list.
PAGE = (
    number("limit", "Entries in the response at most"),
    Parameter("marker", "Id of the last entry seen", {"type": "string", "minLength": 1}),
)


def _content(said: Any) -> Content:
    return said if isinstance(said, Content) else Content(said)
