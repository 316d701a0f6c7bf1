# SPDX-License-Identifier: Apache-2.0
"""The swift driver of storelib."""

from storelib.compat.glance_store._drivers.swift.store import Store, StoreLocation

__all__ = ["Store", "StoreLocation"]
