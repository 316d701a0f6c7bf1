# SPDX-License-Identifier: Apache-2.0
"""The vmware driver of storelib."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from typing import Any

from storelib.compat import options
from storelib.compat.glance_store._drivers.native import NativeLocation, NativeStore


class StoreLocation(NativeLocation):
    """A URI of it."""

    DRIVER = "vmware"

    def composed(self, specs: Mapping[str, Any]) -> str:
        """Server, directory and datastore."""
        path = "/".join(filter(None, (specs["image_dir"].strip("/"), specs["image_id"])))
        query = urllib.parse.urlencode({"dsName": specs["datastore_name"], "dcPath": specs["datacenter_path"]})
        return f"vsphere://{specs['server_host']}/folder/{path}?{query}"


class Store(NativeStore):
    """Images in datastores of a vCenter."""

    DRIVER = "vmware"
    NAME = "vmware_datastore"
    PREFIX_IS_OPEN = True
    OPTIONS = options.known_options("vmware")

    def prefix(self) -> str:
        """Server and directory; datacenter and datastore come at the end."""
        datastores = self._store().datastores
        uri = self.shown_uri(datastores.location(datastores.targets[0], "image").uri)
        return uri.partition("?")[0].rpartition("/")[0]

    def shown_uri(self, uri: str) -> str:
        """The directory as it is: glance_store reads another spelling of it, but deletes nothing there."""
        return self.plain(uri)
