# SPDX-License-Identifier: Apache-2.0
"""The cinder driver: each image is a volume of OpenStack's block storage, raw, with its exact size in the metadata.

A volume becomes an image by what is in its metadata, of which the last step is a single request. How volumes come to
this host is storelib.volumes. cinderclient and keystoneauth are imported when a store is configured, os-brick when a
volume needs it.
"""

from storelib.drivers.cinder.location import CinderLocation
from storelib.drivers.cinder.store import CinderStore

__all__ = ["CinderLocation", "CinderStore"]
