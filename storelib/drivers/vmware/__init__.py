# SPDX-License-Identifier: Apache-2.0
"""Images as files in datastores of a VMware vCenter. pyVmomi is imported when a store is configured.

An image is sent into a file of a temporary name, whose size is compared, and moved to its own name, which vCenter does
at once and never over a file that exists.
"""

from storelib.drivers.vmware.location import VmwareLocation
from storelib.drivers.vmware.store import VmwareStore

__all__ = ["VmwareLocation", "VmwareStore"]
