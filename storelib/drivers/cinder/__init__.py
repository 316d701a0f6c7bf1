# SPDX-License-Identifier: Apache-2.0
"""The cinder driver: each image is a volume of OpenStack's block storage, raw, with its exact size in the metadata.

store.py what the store does, writer.py (copies too) and reader.py bytes, garbage.py leftovers, service.py what the
transfers of a store share, publication.py how an image becomes visible, attachments.py what is attached to this host
and the disks behind it, api.py requests and who asks, errors.py what responses mean, location.py URIs, options.py
options. cinderclient and keystoneauth are imported when a store is configured.
"""

from storelib.drivers.cinder.location import CinderLocation
from storelib.drivers.cinder.store import CinderStore

__all__ = ["CinderLocation", "CinderStore"]
