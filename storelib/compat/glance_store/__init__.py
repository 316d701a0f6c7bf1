# SPDX-License-Identifier: Apache-2.0
"""glance_store's interface: what Glance and others find here when they import ``glance_store``."""

# ruff: noqa: I001  (the later ones are meant to win)

import importlib
from functools import wraps  # noqa: F401  (by chance, like those at the end)
from typing import Any

from storelib.compat.glance_store.multi_backend import *  # noqa: F403
from storelib.compat.glance_store.multi_backend import FS_CONF_CHUNKSIZE_HELP, FS_CONF_DATADIR_HELP  # noqa: F401
from storelib.compat.glance_store.backend import *  # noqa: F403
from storelib.compat.glance_store.driver import *  # noqa: F403
from storelib.compat.glance_store.exceptions import *  # noqa: F403
from storelib.compat.glance_store import (  # noqa: F401
    backend,
    capabilities,
    driver,
    exceptions,
    i18n,
    location,
    multi_backend,
)

#: Modules that are attributes of glance_store by chance; imported for code that relies on that.
_BY_CHANCE = {"extension": "stevedore.extension", "importutils": "oslo_utils.importutils", "units": "oslo_utils.units"}


def __getattr__(name: str) -> Any:
    """See above; raises AttributeError for all else."""
    if name in _BY_CHANCE:
        return importlib.import_module(_BY_CHANCE[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
