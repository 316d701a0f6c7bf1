# SPDX-License-Identifier: Apache-2.0
"""The catalogue of a Glance taken into the database of this API: images, definitions and tasks, but no data.

source reads Glance's tables, values makes plain values of what they hold; images, locations, namespaces and tasks make
entries of them, and work compares these with what is here.
"""

from storelib.api.glance_import.source import Source
from storelib.api.glance_import.work import Finding, Import

__all__ = ["Finding", "Import", "Source"]
