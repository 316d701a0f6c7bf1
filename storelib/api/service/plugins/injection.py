# SPDX-License-Identifier: Apache-2.0
"""inject_image_metadata: properties that the operator sets in what users import."""

from __future__ import annotations

from types import SimpleNamespace

from storelib.api.schemas import RESERVED_PREFIX, base_properties
from storelib.api.service.draft import LONGEST_NAME
from storelib.api.service.material import Material, Plugin
from storelib.exceptions import BadStoreConfiguration


def plugin(options: SimpleNamespace) -> Plugin:
    """Set the configured properties, unless the caller has a role that is exempt.

    Raises BadStoreConfiguration for names that no property can have.
    """
    found = options.inject_metadata_properties
    exempt = {role.lower() for role in found.ignore_user_roles}
    properties: dict[str, str] = found.inject
    base = base_properties((), ())
    for name in properties:
        if not 0 < len(name) <= LONGEST_NAME or name.startswith(RESERVED_PREFIX) or name in base:
            raise BadStoreConfiguration(f"[inject_metadata_properties] inject: {name!r} is the name of no property")

    def inject(material: Material) -> None:
        if exempt.isdisjoint(material.context.roles):
            material.properties.update(properties)

    return inject
