# SPDX-License-Identifier: Apache-2.0
"""The cinder driver of storelib."""

from storelib.compat.glance_store._drivers.cinder.store import Store, StoreLocation

__all__ = ["Store", "StoreLocation"]
