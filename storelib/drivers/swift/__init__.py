# SPDX-License-Identifier: Apache-2.0
"""The swift driver: images in OpenStack Swift and what speaks its protocol, such as radosgw.

store.py what the store does, location.py URIs, options.py options, credentials.py and identity.py who we are,
clients.py, connection.py and account.py requests, layout.py names, writer.py and reader.py bytes, garbage.py leftovers,
errors.py every error. swiftclient and keystoneauth are imported when a store is configured.
"""

from storelib.drivers.swift.location import SwiftLocation
from storelib.drivers.swift.store import SwiftStore

__all__ = ["SwiftLocation", "SwiftStore"]
