# SPDX-License-Identifier: Apache-2.0
"""v1's image metadata: ``x-image-meta-*`` headers both ways, and the JSON document with the same names.

Values in headers are UTF-8. Clients also percent-encode names and values, so requests are decoded once. In responses
only what a header cannot carry is percent-encoded: clients do not decode them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from oslo_utils import strutils

from storelib.api.db.records import Image
from storelib.api.errors import BadRequest, NotPermitted
from storelib.api.parsing import required_number
from storelib.api.schemas import RESERVED_PREFIX
from storelib.api.service import Context
from storelib.api.service.core import Core
from storelib.api.service.tasks import shown_properties
from storelib.api.v2.serializers import time_text

PREFIX = "x-image-meta-"
PROPERTY = "property_"
FIELDS = frozenset(
    {
        "location",
        "size",
        "is_public",
        "disk_format",
        "container_format",
        "name",
        "status",
        "copy_from",
        "uri",
        "checksum",
        "created_at",
        "updated_at",
        "deleted_at",
        "min_ram",
        "min_disk",
        "owner",
        "store",
        "id",
        "protected",
        "deleted",
        "virtual_size",
    }
)
NUMBERS = ("size", "min_disk", "min_ram", "virtual_size")
BOOLEANS = ("is_public", "protected", "deleted")
#: Fields that are base properties of the same name in the service.
SAME = ("name", "disk_format", "container_format", "min_disk", "min_ram", "protected")
#: Formats of which disk and container always are of one kind.
AMAZON = frozenset({"ami", "ari", "aki"})

_WSGI_PREFIX = "HTTP_X_IMAGE_META_"
# RFC 9110, 5.6.2, without the percent sign, which begins an encoded character.
_TOKEN = "!#$&'*+-.^_`|~"  # noqa: S105  (not a secret)
_CONTROL = re.compile("[\x00-\x1f\x7f]")
_MD5 = re.compile("[0-9a-fA-F]{32}")
_URI = re.compile("[!-~]*")


class Meta(NamedTuple):
    """What the headers of a request say; an empty header is None."""

    fields: dict[str, Any]
    properties: dict[str, str | None]


def read(environ: Mapping[str, Any]) -> Meta:
    """The metadata in a request; raises BadRequest naming the header at fault."""
    found = Meta({}, {})
    for key, raw in environ.items():
        if not key.startswith(_WSGI_PREFIX):
            continue
        # WSGI has made one character of dashes and underscores, which are one in v1.
        name = decoded(key[len(_WSGI_PREFIX) :]).lower()
        value = (decoded_uri(raw) if name == "location" else decoded(raw)) or None
        if name.startswith(PROPERTY):
            found.properties[name[len(PROPERTY) :]] = value
        elif name in FIELDS:
            found.fields[name] = _typed(name, value)
        else:
            raise BadRequest(f"Bad header: {PREFIX}{name}")
    return found


def decoded(text: str) -> str:
    """Text as WSGI hands it over (bytes as Latin-1), decoded from UTF-8 and percent-encoding as far as it is that."""
    try:
        text = text.encode("latin-1").decode()
    except UnicodeError:
        pass
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        return text


def decoded_uri(text: str) -> str:
    """A URI; one that was not percent-encoded for the header stays as it is, with percent-encoding of its own."""
    found = decoded(text)
    return found if _URI.fullmatch(found) else text


def _typed(name: str, value: str | None) -> Any:
    if name in BOOLEANS:
        return strutils.bool_from_string(value or "")
    if name == "checksum" and value is not None:
        if not _MD5.fullmatch(value):
            raise BadRequest(f"{PREFIX}checksum must be an md5 in 32 hexadecimal digits")
        return value.lower()
    if name not in NUMBERS:
        return value
    if name == "virtual_size" and value in (None, "None"):
        return None
    return required_number(PREFIX + name, value)


def base_values(meta: Meta, context: Context, image: Image | None = None) -> dict[str, Any]:
    """The base properties that ``meta`` sets, by the service's names; ``image`` is the one being changed.

    Raises BadRequest for an Amazon format together with one of another kind. Only administrators name the owner: others
    are not refused, what they say is ignored.
    """
    fields = meta.fields
    values = {name: fields[name] for name in SAME if name in fields}
    if "is_public" in fields and (fields["is_public"] or image is None or image.visibility == "public"):
        # In v1 every image that is not public may have members.
        values["visibility"] = "public" if fields["is_public"] else "shared"
    if "owner" in fields and context.is_admin:
        values["owner"] = fields["owner"]
    if "disk_format" in values or "container_format" in values:
        values |= _of_one_kind(values, image)
    return values


def _of_one_kind(values: Mapping[str, Any], image: Image | None) -> dict[str, str]:
    disk = values.get("disk_format", image and image.disk_format)
    container = values.get("container_format", image and image.container_format)
    if disk == container or AMAZON.isdisjoint({disk, container}):
        return {}
    if disk and container:
        raise BadRequest(f"disk_format and container_format must be the same if one is {', '.join(sorted(AMAZON))}")
    return {"disk_format": disk or container, "container_format": disk or container}


def custom_properties(meta: Meta, core: Core) -> dict[str, str | None]:
    """The custom properties that ``meta`` sets; raises NotPermitted for names that are no custom property's."""
    for name in meta.properties:
        if name in core.schema.base_names:
            raise NotPermitted(f"the property {name!r} is reserved")
    known = core.schema.document["properties"]
    # None is for the properties that may have no value; other properties have text, if only an empty one.
    return {
        name: value if value is not None or "null" in known.get(name, {}).get("type", ()) else ""
        for name, value in meta.properties.items()
    }


def own_properties(image: Image, core: Core, context: Context) -> dict[str, str | None]:
    """The custom properties that clients have set and the caller may see."""
    found = core.protection.readable(context, image.properties)
    return {name: value for name, value in found.items() if not name.startswith(RESERVED_PREFIX)}


def document(image: Image, core: Core, context: Context) -> dict[str, Any]:
    """An image as the caller may see it; where its data is, is never told."""
    return {
        "id": image.id,
        "name": image.name,
        "size": image.size,
        "virtual_size": image.virtual_size,
        "disk_format": image.disk_format,
        "container_format": image.container_format,
        "checksum": image.checksum,
        "min_disk": image.min_disk,
        "min_ram": image.min_ram,
        "is_public": image.visibility == "public",
        "owner": image.owner,
        "protected": image.protected,
        "status": image.status,
        "created_at": time_text(image.created_at),
        "updated_at": time_text(image.updated_at),
        "deleted_at": image.deleted_at and time_text(image.deleted_at),
        "deleted": image.deleted,
        "properties": shown_properties(core.protection.readable(context, image.properties)),
    }


def headers(shown: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A document as headers, in the characters WSGI wants (bytes as Latin-1)."""
    for name, value in shown.items():
        if name != "properties" and value is not None:
            yield PREFIX + name, _header_value(str(value))
    for name, value in shown["properties"].items():
        if value is not None:
            yield f"{PREFIX}property-{quote(name, safe=_TOKEN)}", _header_value(value)


def _header_value(text: str) -> str:
    return _CONTROL.sub(lambda found: quote(found[0]), text).encode().decode("latin-1")
