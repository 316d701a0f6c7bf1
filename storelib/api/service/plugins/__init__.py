# SPDX-License-Identifier: Apache-2.0
"""Plug-ins of imports: what happens to an image between its source and the stores, in the order of the option.

A plug-in is a function that is given the ``Material`` and changes it; it is found by its name in the entry points
``storelib.image_import.plugins``, or in Glance's (see ``flows``). Our own have Glance's names.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

from stevedore import DriverManager
from stevedore.exception import NoMatches

from storelib.api.service.material import Plugin
from storelib.api.service.plugins import conversion, decompression, flows, injection
from storelib.exceptions import BadStoreConfiguration

#: Where the plug-ins of others are.
GROUP = "storelib.image_import.plugins"
_OWN = {
    "no_op": lambda options: lambda material: None,
    "inject_image_metadata": injection.plugin,
    "image_conversion": conversion.plugin,
    "image_decompression": decompression.plugin,
}


def load(options: SimpleNamespace) -> Sequence[Plugin]:
    """The plug-ins that the options name; raises BadStoreConfiguration for one that is not there or cannot work."""
    return [_load(name, options) for name in options.image_import_opts.image_import_plugins]


def _load(name: str, options: SimpleNamespace) -> Plugin:
    if name in _OWN:
        return _OWN[name](options)
    try:
        plugin: Plugin = DriverManager(GROUP, name).driver
        return plugin
    except NoMatches:
        pass
    try:
        return flows.plugin(name, options)
    except NoMatches as error:
        raise BadStoreConfiguration(
            f"[image_import_opts] image_import_plugins: there is no plug-in {name!r} besides {', '.join(_OWN)}"
        ) from error
