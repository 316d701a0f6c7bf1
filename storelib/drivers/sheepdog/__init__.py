# SPDX-License-Identifier: Apache-2.0
"""Images as virtual disk images (vdis) of a Sheepdog cluster, by way of its ``dog`` command.

An image is written into a vdi under a temporary name; a snapshot of that is cloned to the final name, which Sheepdog
does atomically and never over a vdi that exists.
"""

from storelib.drivers.sheepdog.location import SheepdogLocation
from storelib.drivers.sheepdog.store import SheepdogStore

__all__ = ["SheepdogLocation", "SheepdogStore"]
