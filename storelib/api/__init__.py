# SPDX-License-Identifier: Apache-2.0
"""The embedded image API: image metadata in a database, image data in the stores.

``create_app(conf)`` is the WSGI application. It is imported when it is first used (PEP 562): the command line knows
this package without the libraries of the extra ``api``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storelib.api.app import Application, create_app

__all__ = ["Application", "create_app"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from storelib.extras import needing

    with needing("storelib.api", "api"):
        from storelib.api import app

    value = globals()[name] = getattr(app, name)
    return value
