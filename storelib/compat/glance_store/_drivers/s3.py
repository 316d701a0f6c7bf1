# SPDX-License-Identifier: Apache-2.0
"""The s3 driver of storelib."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storelib.compat import options
from storelib.compat.glance_store._drivers.native import NativeLocation, NativeStore
from storelib.transfer.contract import MiB


class StoreLocation(NativeLocation):
    """A URI of it."""

    DRIVER = "s3"

    def composed(self, specs: Mapping[str, Any]) -> str:
        """Server, bucket and key."""
        scheme, _, host = str(specs["s3serviceurl"]).rpartition("://")
        known = "s3+https" if scheme == "https" else specs.get("scheme", "s3")
        return f"{known}://{host.strip('/')}/{specs['bucket']}/{specs['key']}"


class Store(NativeStore):
    """Images in S3, as glance_store names and configures them."""

    DRIVER = "s3"
    NAME = "s3"
    PREFIX_IS_OPEN = True
    OPTIONS = options.known_options("s3")

    def adjusted(self, given: dict[str, Any]) -> dict[str, Any]:
        """A server without a scheme speaks http, which it may be the only thing to do."""
        host = str(given.get("s3_store_host") or "").strip()
        if host and "://" not in host:
            given["s3_store_host"] = f"http://{host}"
        return given

    def prefix(self) -> str:
        """Server and bucket as configured: glance_store says ``s3`` where storelib does ``s3+http``."""
        scheme, _, host = ("s3://" + self._given("s3_store_host")).rpartition("://")
        return (
            f"{'s3+https' if scheme.endswith('https') else 's3'}://{host.strip('/')}/{self._given('s3_store_bucket')}"
        )

    def shown_uri(self, uri: str) -> str:
        """The same for an image."""
        return f"{self.url_prefix}/{self._store().bucket.prefix}{uri.rpartition('/')[2]}"

    def _given(self, name: str) -> str:
        return str(getattr(self._store().conf, name)).strip()

    @property
    def s3_store_large_object_size(self) -> int:
        """Bytes from which on images are stored in parts."""
        return int(self.options.s3_store_large_object_size) * MiB

    @property
    def s3_store_large_object_chunk_size(self) -> int:
        """Bytes in one part."""
        return int(self.options.s3_store_large_object_chunk_size) * MiB

    @property
    def s3_store_thread_pools(self) -> int:
        """Parts of one image in flight."""
        return int(self.options.s3_store_thread_pools)
