# SPDX-License-Identifier: Apache-2.0
"""Staged data that is on another host: how it says where it is, and how it is fetched from there."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from storelib.api.db.records import Image
from storelib.api.errors import Unavailable
from storelib.driver import ImageData
from storelib.drivers.http import HttpStore
from storelib.exceptions import NotFound, StoreError
from storelib.registry import open_store

#: Properties of an image, which nobody is shown: the host that has its staged data, and what opens it there.
HOST, TOKEN = "os_glance_stage_host", "os_glance_stage_token"
#: Where a host serves what is staged there, and the header with the token.
PATH, HEADER = "/staged", "X-Storelib-Staged"


def place(url: str | None) -> dict[str, str | None]:
    """The properties of data that is staged here, on the host that others reach by ``url``; none where they do not."""
    return {HOST: url.rstrip("/"), TOKEN: secrets.token_urlsafe(32)} if url else {}


def is_elsewhere(image: Image) -> bool:
    """Whether another host may have the staged data, which told where."""
    return bool(image.properties.get(HOST) and image.properties.get(TOKEN))


def opens(image: Image, token: str) -> bool:
    """Whether this is the token of the image's staged data; takes as long for any other."""
    known = image.properties.get(TOKEN)
    return bool(known) and secrets.compare_digest(str(known).encode(), token.encode("utf-8", "replace"))


def fetch(image: Image, options: Any) -> ImageData:
    """The staged data from the host that has it; raises Unavailable where it is not to be had, whatever the reason."""
    url = f"{image.properties[HOST]}{PATH}?{urlencode({'image': image.id})}"
    # The operator's own host, in whichever network.
    settings: Mapping[str, Any] = {
        "http_allowed_networks": ["0.0.0.0/0", "::/0"],
        "http_read_timeout": options.import_timeout,
    }
    store = open_store("http", "os_glance_staged_elsewhere", **settings)
    try:
        assert isinstance(store, HttpStore)  # noqa: S101  (what open_store was asked for)
        store.always_send(url, {HEADER: str(image.properties[TOKEN])})
        return store.get(url)
    except NotFound as error:
        raise Unavailable(f"the staged data of image {image.id} is not on the host that has staged it") from error
    except StoreError as error:
        raise Unavailable(f"the staged data of image {image.id} cannot be fetched from another host") from error
