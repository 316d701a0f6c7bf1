# SPDX-License-Identifier: Apache-2.0
"""A cache of image data on the host of the API, in front of slow stores: ``directory`` are its files, ``filling`` and
``reading`` what passes through them, ``keeping`` looks after it in the background, ``rules`` is what callers may do.
"""

from storelib.api.service.cache.rules import Cache

__all__ = ["Cache"]
