# SPDX-License-Identifier: Apache-2.0
"""Images as RADOS block devices in one pool of a Ceph cluster, ready to be cloned copy-on-write.

An image is written under a temporary name, gets its snapshot there, and becomes visible by being renamed, which only
one of several racers can do. Needs the distribution's Python bindings of librados and librbd.
"""

from storelib.drivers.rbd.location import RbdLocation
from storelib.drivers.rbd.store import RbdStore

__all__ = ["RbdLocation", "RbdStore"]
