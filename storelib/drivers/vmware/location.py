# SPDX-License-Identifier: Apache-2.0
"""VmwareLocation: the URI of a file in a datastore. And where a vCenter is, as configured or as a URI says it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from storelib.exceptions import BadStoreUri
from storelib.uris import StoreLocation, quote, redact, split_endpoint, unquote

SCHEME = "vsphere"
DEFAULT_PORT = 443

_URI = re.compile(r"vsphere://([^/?#]*)/folder/([^?#]*)\?([^#]*)")
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, repr=False)
class VmwareLocation(StoreLocation):
    """``vsphere://host[:port]/folder/directory/id?dcPath=..&dsName=..``, every part percent-encoded.

    In the query of old URIs ``+`` is a space; storelib writes ``%20``.
    """

    #: In lower case, an IPv6 address in brackets.
    host: str
    port: int
    #: Names with ``/`` between them; empty for the top of the datastore.
    directory: str
    image_id: str
    #: Path of the datacenter in the inventory, without ``/`` around it.
    datacenter: str
    datastore: str

    @classmethod
    def parse(cls, uri: str) -> VmwareLocation:
        """Take a URI apart; raises BadStoreUri."""
        match = _URI.fullmatch(uri)
        if match is None or _FORBIDDEN.search(uri):
            raise BadStoreUri(f"expected vsphere://host/folder/directory/id?dcPath=..&dsName=.., not {redact(uri)!r}")
        authority, path, query = match.groups()
        host, port = split_endpoint(authority, uri)
        *directory, image_id = (unquote(name, uri) for name in path.split("/"))
        # As glance_store writes it where vmware_store_image_dir has two slashes, which vCenter takes for one.
        directory = [*directory[:1], *filter(None, directory[1:])]
        # Clients and servers resolve dots in paths: such a file would be looked for in another place.
        if {"", ".", ".."}.intersection((*directory, image_id)) or any("/" in name for name in (*directory, image_id)):
            raise BadStoreUri(f"not the path of a file: {redact(uri)!r}")
        datacenter, datastore = _split_query(query, uri)
        return cls(host, port or DEFAULT_PORT, "/".join(directory), image_id, datacenter, datastore)

    @property
    def uri(self) -> str:
        """The URI."""
        port = "" if self.port == DEFAULT_PORT else f":{self.port}"
        names = [*self.directory.split("/"), self.image_id] if self.directory else [self.image_id]
        path = "/".join(map(quote, names))
        query = f"dcPath={quote(self.datacenter)}&dsName={quote(self.datastore)}"
        return f"{SCHEME}://{self.host}{port}/folder/{path}?{query}"


def inventory_path(text: str) -> str:
    """The path of a datacenter in one spelling: vCenter takes more slashes than one for one."""
    return "/".join(filter(None, text.split("/")))


def _split_query(query: str, uri: str) -> tuple[str, str]:
    """The datacenter and the datastore that a query names; raises BadStoreUri."""
    values: dict[str, str] = {}
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if name in values:
            raise BadStoreUri(f"{name} is twice in {redact(uri)!r}")
        values[name] = unquote(value.replace("+", " "), uri)
    datacenter, datastore = inventory_path(values.pop("dcPath", "")), values.pop("dsName", "")
    if values or not datacenter or not datastore:
        raise BadStoreUri(f"expected ?dcPath=..&dsName=.. and nothing else at the end of {redact(uri)!r}")
    return datacenter, datastore
