# SPDX-License-Identifier: Apache-2.0
"""Images at http and https URLs, read only. urllib3 is imported when a store is configured."""

from storelib.drivers.http.location import HttpLocation
from storelib.drivers.http.store import HttpStore

__all__ = ["HttpLocation", "HttpStore"]
