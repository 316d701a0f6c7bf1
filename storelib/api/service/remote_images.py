# SPDX-License-Identifier: Apache-2.0
"""glance-download: an image of another region's image service, found in the catalogue of the caller's token.

The token goes to that service and to no other server, whatever redirects say; what the service says is not trusted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from storelib.api.context import Context
from storelib.api.db.records import Image
from storelib.api.errors import BadRequest
from storelib.api.schemas import RESERVED_PREFIX
from storelib.api.service.core import Core
from storelib.api.service.draft import LONGEST_NAME
from storelib.api.service.material import Material
from storelib.api.service.sources import web_store
from storelib.drivers.http import HttpStore
from storelib.exceptions import Invalid, UnknownHashingAlgo
from storelib.transfer.contract import Digest, Digests

#: Bytes of an image's document at most.
LONGEST = 4 * 1024 * 1024
#: Of the names with these beginnings none is a property.
_NOT_CUSTOM = (RESERVED_PREFIX,)


class RemoteImage(NamedTuple):
    """Where an image is: ``interface`` is public, internal or admin."""

    region: str
    image_id: str
    interface: str = "public"

    def __str__(self) -> str:
        """What those are told who need not know where it is."""
        return f"image {self.image_id} in region {self.region}"

    def url(self, context: Context) -> str:
        """Where it is described; raises BadRequest where the catalogue does not tell."""
        return f"{endpoint(context, self.region, self.interface)}/v2/images/{self.image_id}"

    def open(self, core: Core, context: Context, image: Image) -> Material:
        """What that image has: formats, chosen properties and data.

        Raises BadRequest for what is not there or not usable, NotPermitted for a protected property, StoreError.
        """
        url = self.url(context)
        web = web_store(core.options, url)
        if context.auth_token:
            web.always_send(url, {"X-Auth-Token": context.auth_token})
        document = _document(web, url)
        if document.get("status") != "active":
            raise BadRequest(f"the remote image is not active, but {document.get('status')!r}")
        image = replace(image, **_formats(core, document))
        properties = _chosen(document, core.options.glance_download_properties.extra_properties)
        _check_properties(core, context, image, properties)
        found = web.get(f"{url}/file", context=context)
        size = document.get("size")
        if size != found.size:
            found.data.close()
            raise BadRequest(f"the remote image has {size!r} bytes, but its data has {found.size}")
        digests = _digests(document)
        if core.options.image_import_opts.image_import_plugins or digests.algorithm != core.hashing_algorithm:
            # What is stored may be other data by then, or has another digest, so what is read is compared.
            with suppress(UnknownHashingAlgo, Invalid):
                found.data.verify(Digest(digests.algorithm, digests.multihash))
        material = Material(context, image, found.data, found.size, properties=properties, expected=digests)
        material.cleanup.callback(found.data.close)
        return material


def endpoint(context: Context, region: str, interface: str) -> str:
    """The URL of a region's image service, without a version; raises BadRequest where the catalogue has none."""
    for service in context.service_catalog or ():
        if service.get("type") != "image":
            continue
        for found in service.get("endpoints", ()):
            if str(found.get("region", "")).lower() == region.lower() and (url := found.get(f"{interface}URL")):
                return str(url).rstrip("/").removesuffix("/v2")
    raise BadRequest(f"there is no image service in region {region!r} with the interface {interface!r}")


def _document(web: HttpStore, url: str) -> Mapping[str, Any]:
    with web.get(url).data as stream:
        text = stream.read(LONGEST + 1)
    try:
        found = json.loads(text) if len(text) <= LONGEST else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadRequest("the remote service does not describe the image")
    return found


def _formats(core: Core, document: Mapping[str, Any]) -> dict[str, Any]:
    names = ("disk_format", "container_format")
    found = {name: document.get(name) for name in names}
    for name in names:
        if found[name] is None:
            raise BadRequest(f"the remote image has no {name}")
    core.schema.check(found)
    return found


def _chosen(document: Mapping[str, Any], prefixes: Sequence[str]) -> dict[str, str | None]:
    """The properties of a document whose names begin as the option says."""
    return {
        name: value
        for name, value in document.items()
        if name.startswith(tuple(prefixes)) and not name.startswith(_NOT_CUSTOM) and isinstance(value, str)
    }


def _check_properties(core: Core, context: Context, image: Image, properties: dict[str, str | None]) -> None:
    """Raise BadRequest, LimitExceeded or NotPermitted for what the caller could not set, either."""
    for name in [name for name in properties if name in core.schema.base_names]:
        del properties[name]
    for name in properties:
        if len(name) > LONGEST_NAME:
            raise BadRequest(f"the name of a property has at most {LONGEST_NAME} characters")
        core.protection.require(context, "update" if name in image.properties else "create", name)
    # Other services tell numbers as texts, as which they are kept here, too.
    core.schema.check(core.schema.shown(dict(properties)))
    core.quota.check_properties({**image.properties, **properties})


def _digests(document: Mapping[str, Any]) -> Digests:
    checksum, value, algorithm = (
        str(document.get(name) or "").lower() for name in ("checksum", "os_hash_value", "os_hash_algo")
    )
    return Digests(checksum or None, value, algorithm)
