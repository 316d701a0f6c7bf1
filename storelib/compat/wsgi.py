# SPDX-License-Identifier: Apache-2.0
"""Glance's WSGI application on storelib: ``gunicorn storelib.compat.wsgi:application``."""

from __future__ import annotations

import importlib

from storelib.compat import finder

finder.install()

#: Glance's own application; its configuration files are where Glance looks for them.
application = importlib.import_module("glance.wsgi.api").application
