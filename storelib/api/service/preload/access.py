# SPDX-License-Identifier: Apache-2.0
"""Which images a node may have: what the policy ``preload_image`` says, and what its group is for."""

from __future__ import annotations

from storelib.api.context import Context
from storelib.api.db.preload_records import Group, ImageFacts, Node
from storelib.api.service.core import Core

#: The role that nodes have in policies.
ROLE = "node"


def context_of(node: Node) -> Context:
    """A node as policies see it."""
    return Context(node.id, None, (ROLE,), read_only=True)


def may_have(core: Core, context: Context, node: Node, group: Group, image: ImageFacts) -> bool:
    """Whether the node of this context may have an image."""
    return why_not(core, context, node, group, image) is None


def why_not(core: Core, context: Context, node: Node, group: Group, image: ImageFacts) -> str | None:
    """Why the node of this context may not have an image, as administrators are told; None: it may."""
    if image.status != "active":
        return f"the image is {image.status}"
    if group.visibility and image.visibility not in group.visibility:
        return f"the group {group.name} is not for images that are {image.visibility}"
    if group.projects and image.owner not in group.projects:
        return f"the group {group.name} is not for images of this project"
    target = core.target(context, image)
    if core.policy.allows(context, "preload_image", {**target, "node": node.name, "node_group": node.group}):
        return None
    return "the policy preload_image does not let the node have the image"
