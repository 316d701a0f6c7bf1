# SPDX-License-Identifier: Apache-2.0
"""Where imports read from the web, as far as the options let them."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import cast

from storelib.api.errors import BadRequest
from storelib.api.service.locations import check_length
from storelib.drivers.http import HttpStore
from storelib.drivers.http.location import HttpLocation
from storelib.exceptions import BadStoreUri
from storelib.registry import open_store
from storelib.uris import redact, scheme_of


def web_store(options: SimpleNamespace, uri: str) -> HttpStore:
    """A store that reads from the web as far as the options allow; raises BadRequest for what they do not."""
    check_length(uri)
    try:
        scheme = scheme_of(uri)
        allowed = _lower(options.import_allowed_schemes) - _lower(options.import_disallowed_schemes)
        if scheme not in allowed & {"http", "https"}:
            raise BadRequest(f"URLs of the scheme {scheme!r} are not accepted")
        web = open_store(
            "http",
            "web-download",
            http_allowed_hosts=options.import_allowed_hosts,
            http_disallowed_hosts=options.import_disallowed_hosts,
            http_allowed_ports=options.import_allowed_ports,
            http_disallowed_ports=options.import_disallowed_ports,
            http_allowed_networks=options.import_allowed_networks,
            http_disallowed_networks=options.import_disallowed_networks,
            http_read_timeout=options.import_timeout,
        )
        found = HttpLocation.parse(uri)
    except BadStoreUri as error:
        raise BadRequest(f"this URL cannot be imported: {error}") from error
    store = cast(HttpStore, web)
    store.name_options("import_")
    rules = store.session.rules
    if refused := rules.refuse_url(found) or rules.refuse_written_address(found):
        raise BadRequest(f"{redact(uri)} cannot be imported: {refused}")
    store.count_at_most(options.image_size_cap)
    return store


def _lower(schemes: Iterable[str]) -> set[str]:
    return {scheme.lower() for scheme in schemes}
