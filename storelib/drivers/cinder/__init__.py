# SPDX-License-Identifier: Apache-2.0
"""The cinder driver: each image is a volume of OpenStack's block storage, raw, with its exact size in the metadata.

store.py what the store does, writer.py, reader.py and copying.py bytes, garbage.py leftovers, publication.py how an
image becomes visible, attaching.py attachments, disks.py what is behind them, holds.py who is alive on this host,
api.py requests, identity.py who we are, errors.py what answers mean, location.py URIs, options.py options. Each knows
only what comes after it. cinderclient and keystoneauth are imported when a store is configured.
"""

from storelib.drivers.cinder.location import CinderLocation
from storelib.drivers.cinder.store import CinderStore

__all__ = ["CinderLocation", "CinderStore"]
