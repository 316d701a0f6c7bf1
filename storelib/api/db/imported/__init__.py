# SPDX-License-Identifier: Apache-2.0
"""What is taken from the catalogue of another service: entries, how each kind is kept, and what may be overwritten."""

from storelib.api.db.imported.entry import Entry
from storelib.api.db.imported.images import ImageEntry
from storelib.api.db.imported.namespaces import NamespaceEntry
from storelib.api.db.imported.table import Imported, Kind, Outcome

__all__ = ["Entry", "ImageEntry", "Imported", "Kind", "NamespaceEntry", "Outcome"]
