# SPDX-License-Identifier: Apache-2.0
"""The swift driver: images in OpenStack Swift and what speaks its protocol, such as radosgw.

store.py what the store does, writer.py and reader.py bytes, garbage.py leftovers, publication.py how an image becomes
visible, service.py accounts, tokens and requests, errors.py what responses mean, location.py URIs and containers,
options.py options and credentials. Each knows only what comes after it. swiftclient and keystoneauth are imported when
a store is configured.
"""

from storelib.drivers.swift.location import SwiftLocation
from storelib.drivers.swift.store import SwiftStore

__all__ = ["SwiftLocation", "SwiftStore"]
