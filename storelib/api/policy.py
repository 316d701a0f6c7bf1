# SPDX-License-Identifier: Apache-2.0
"""Who may do what: the documented defaults, and Policy, which evaluates them (and the operator's file) cheaply.

oslo.policy reads and reloads the rules and evaluates them. One decision costs it 40 to 100 microseconds and a stat of
each file; here files are looked at once a second, and the same question by the same credentials, about images that do
not differ in anything the rules mention, is evaluated once.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from oslo_config import cfg
from oslo_policy import opts, policy

from storelib.api.caching import BoundedCache
from storelib.api.context import Context
from storelib.api.errors import NotPermitted
from storelib.exceptions import BadStoreConfiguration

LOG = logging.getLogger(__name__)

#: Seconds between two looks at the policy files.
RELOAD = 1.0
#: Decisions remembered at most.
MEMORY = 20_000
#: Classes of oslo.policy's checks that look at nothing but credentials and what of the target they name.
_REMEMBERED = frozenset({"TrueCheck", "FalseCheck", "RuleCheck", "RoleCheck", "GenericCheck"})

ADMIN = "role:admin"
_READER = "role:reader and project_id:%(project_id)s"
_MEMBER = "role:member and project_id:%(project_id)s"
_SHARED_WITH = (
    "project_id:%(member_id)s or 'community':%(visibility)s or 'public':%(visibility)s or 'shared':%(visibility)s"
)
_ADMIN_OR_MEMBER = f"rule:context_is_admin or ({_MEMBER})"
_ADMIN_OR_READER = f"rule:context_is_admin or ({_READER})"
_VISIBLE = f"rule:context_is_admin or (role:reader and (project_id:%(project_id)s or {_SHARED_WITH}))"
_USABLE = f"rule:context_is_admin or (role:member and (project_id:%(project_id)s or {_SHARED_WITH}))"
_OWN_MEMBERSHIP = "role:member and project_id:%(member_id)s"

_DEFINITION = "rule:context_is_admin or (role:reader and (project_id:%(project_id)s or 'public':%(visibility)s))"
_METADEF_ADMIN = "rule:metadef_admin"

_IMAGE = "/v2/images/{image_id}"
_MEMBERS = f"{_IMAGE}/members"
_ONE_MEMBER = f"{_MEMBERS}/{{member_id}}"
_NAMESPACES = "/v2/metadefs/namespaces"
_NAMESPACE = f"{_NAMESPACES}/{{namespace}}"


#: Images belong to projects: an administrator of a domain, or of the system, is none of any project's images.
_SCOPES = ["project"]


def _rule(name: str, check: str, description: str, *operations: str) -> policy.RuleDefault:
    if not operations:
        return policy.RuleDefault(name, check, description=description, scope_types=_SCOPES)
    split = [operation.split(" ", 1) for operation in operations]
    return policy.DocumentedRuleDefault(
        name, check, description, [{"method": method, "path": path} for method, path in split], scope_types=_SCOPES
    )


def _definition_rules(kind: str, plural: str, removing: str) -> list[policy.RuleDefault]:
    """The rules for one kind of what a namespace has in it."""
    several = f"{_NAMESPACE}/{plural}"
    one = f"{several}/{{name}}"
    adding = f"POST {one}" if kind == "tag" else f"POST {several}"
    return [
        _rule(f"get_metadef_{plural}", _DEFINITION, f"List the {plural} of a namespace.", f"GET {several}"),
        _rule(f"get_metadef_{kind}", _DEFINITION, f"Show a {kind}.", f"GET {one}"),
        _rule(f"add_metadef_{kind}", _METADEF_ADMIN, f"Add a {kind}.", adding),
        _rule(f"modify_metadef_{kind}", _METADEF_ADMIN, f"Change a {kind}.", f"PUT {one}"),
        _rule(f"{removing}_metadef_{kind}", _METADEF_ADMIN, f"Remove a {kind}.", f"DELETE {one}"),
    ]


RULES = [
    _rule("default", "!", "Rules that are not defined."),
    _rule("context_is_admin", ADMIN, "Who is an administrator."),
    _rule(
        "service_api",
        "role:service or service_roles:service",
        "Which requests are another service's: by its own token, or by the service token beside a user's.",
    ),
    _rule(
        "add_image",
        "rule:context_is_admin or (role:member and project_id:%(project_id)s and project_id:%(owner)s)",
        "Create an image.",
        "POST /v2/images",
    ),
    _rule("get_images", "rule:context_is_admin or role:reader", "List images.", "GET /v2/images"),
    _rule("get_image", _VISIBLE, "Show an image.", f"GET {_IMAGE}"),
    _rule("modify_image", _ADMIN_OR_MEMBER, "Change an image, its tags included.", f"PATCH {_IMAGE}"),
    _rule("delete_image", _ADMIN_OR_MEMBER, "Delete an image.", f"DELETE {_IMAGE}"),
    _rule("publicize_image", "rule:context_is_admin", "Make an image public.", "POST /v2/images", f"PATCH {_IMAGE}"),
    _rule("communitize_image", _ADMIN_OR_MEMBER, "Make an image community.", "POST /v2/images", f"PATCH {_IMAGE}"),
    _rule("download_image", _USABLE, "Download an image.", f"GET {_IMAGE}/file"),
    _rule(
        "download_from_store",
        _USABLE,
        "Choose the store to download from.",
        f"GET {_IMAGE}/file?prefer={{stores}}",
    ),
    _rule("upload_image", _ADMIN_OR_MEMBER, "Upload data.", f"PUT {_IMAGE}/file"),
    _rule("deactivate", _ADMIN_OR_MEMBER, "Deactivate an image.", f"POST {_IMAGE}/actions/deactivate"),
    _rule("reactivate", _ADMIN_OR_MEMBER, "Reactivate an image.", f"POST {_IMAGE}/actions/reactivate"),
    _rule("copy_image", "rule:context_is_admin", "Copy an image to other stores.", f"POST {_IMAGE}/import"),
    _rule("get_image_location", _ADMIN_OR_READER, "See where an image's data is.", f"GET {_IMAGE}"),
    _rule("set_image_location", _ADMIN_OR_MEMBER, "Add and replace locations by patch.", f"PATCH {_IMAGE}"),
    _rule(
        "delete_image_location",
        "rule:context_is_admin",
        "Remove a location.",
        f"PATCH {_IMAGE}",
        "DELETE /v2/stores/{store_id}/{image_id}",
    ),
    _rule(
        "add_image_location",
        f"rule:context_is_admin or rule:service_api or ({_MEMBER})",
        "Add a location to a queued image.",
        f"POST {_IMAGE}/locations",
    ),
    _rule(
        "fetch_image_location",
        "rule:context_is_admin or rule:service_api",
        "List an image's locations.",
        f"GET {_IMAGE}/locations",
    ),
    _rule("add_member", _ADMIN_OR_MEMBER, "Share an image with a project.", f"POST {_MEMBERS}"),
    _rule("delete_member", _ADMIN_OR_MEMBER, "Stop sharing.", f"DELETE {_ONE_MEMBER}"),
    _rule(
        "modify_member",
        f"rule:context_is_admin or ({_OWN_MEMBERSHIP})",
        "Accept or reject a shared image.",
        f"PUT {_ONE_MEMBER}",
    ),
    _rule(
        "get_members",
        f"rule:context_is_admin or (role:reader and (project_id:%(project_id)s or {_SHARED_WITH}))",
        "List the projects an image is shared with.",
        f"GET {_MEMBERS}",
    ),
    _rule(
        "get_member",
        "rule:context_is_admin or (role:reader and (project_id:%(project_id)s or project_id:%(member_id)s))",
        "Show a membership.",
        f"GET {_ONE_MEMBER}",
    ),
    _rule(
        "stores_info_detail",
        "rule:context_is_admin or rule:service_api",
        "See the details of stores.",
        "GET /v2/info/stores/detail",
    ),
    _rule(
        "tasks_api_access",
        "rule:context_is_admin",
        "See tasks, and begin them.",
        "GET /v2/tasks",
        "GET /v2/tasks/{task_id}",
        "POST /v2/tasks",
    ),
    # The image cache
    _rule("manage_image_cache", "rule:context_is_admin", "Use the older paths of the image cache."),
    _rule("cache_image", "rule:context_is_admin", "Have an image cached.", "PUT /v2/cache/{image_id}"),
    _rule("cache_list", "rule:context_is_admin", "See what is cached and queued.", "GET /v2/cache"),
    _rule(
        "cache_delete",
        "rule:context_is_admin",
        "Remove images from cache and queue.",
        "DELETE /v2/cache",
        "DELETE /v2/cache/{image_id}",
    ),
    _rule("cache_clean", "rule:context_is_admin", "Remove unfinished files.", "POST /v2/cache/clean"),
    _rule("cache_prune", "rule:context_is_admin", "Bring the cache within its limit.", "POST /v2/cache/prune"),
    _rule(
        "list_cached_nodes",
        "rule:context_is_admin",
        "See which hosts have an image in their caches.",
        "GET /v2/cache/nodes/{image_id}",
    ),
    # Metadata definitions
    _rule("metadef_default", "", "What older policy files refer to for reading metadata definitions."),
    _rule("metadef_admin", "rule:context_is_admin", "Who may change metadata definitions."),
    _rule("get_metadef_namespaces", _ADMIN_OR_READER, "List namespaces.", f"GET {_NAMESPACES}"),
    _rule("get_metadef_namespace", _DEFINITION, "Show a namespace.", f"GET {_NAMESPACE}"),
    _rule("add_metadef_namespace", _METADEF_ADMIN, "Make a namespace.", f"POST {_NAMESPACES}"),
    _rule("modify_metadef_namespace", _METADEF_ADMIN, "Change a namespace.", f"PUT {_NAMESPACE}"),
    _rule(
        "delete_metadef_namespace",
        _METADEF_ADMIN,
        "Delete a namespace, or all objects, properties or tags of one.",
        f"DELETE {_NAMESPACE}",
        f"DELETE {_NAMESPACE}/objects",
        f"DELETE {_NAMESPACE}/properties",
        f"DELETE {_NAMESPACE}/tags",
    ),
    _rule(
        "list_metadef_resource_types",
        _DEFINITION,
        "List resource types.",
        "GET /v2/metadefs/resource_types",
        f"GET {_NAMESPACE}/resource_types",
    ),
    _rule(
        "get_metadef_resource_type",
        _DEFINITION,
        "See which resource types a namespace is for.",
        f"GET {_NAMESPACE}/resource_types",
    ),
    _rule(
        "add_metadef_resource_type_association",
        _METADEF_ADMIN,
        "Say that a namespace is for a resource type.",
        f"POST {_NAMESPACE}/resource_types",
    ),
    _rule(
        "remove_metadef_resource_type_association",
        _METADEF_ADMIN,
        "Take that back.",
        f"DELETE {_NAMESPACE}/resource_types/{{name}}",
    ),
    *_definition_rules("object", "objects", "delete"),
    *_definition_rules("property", "properties", "remove"),
    *_definition_rules("tag", "tags", "delete"),
    _rule("add_metadef_tags", _METADEF_ADMIN, "Give a namespace several tags.", f"POST {_NAMESPACE}/tags"),
    _rule("delete_metadef_tags", _METADEF_ADMIN, "Remove all tags of a namespace.", f"DELETE {_NAMESPACE}/tags"),
    # Nodes, and images that are distributed to them
    _rule(
        "preload_enrol",
        "rule:context_is_admin",
        "Make a token with which nodes enrol.",
        "POST /v2/nodes/enrolments",
    ),
    _rule(
        "node_register",
        "rule:context_is_admin or rule:service_api",
        "Register a node without such a token.",
        "POST /v2/nodes",
    ),
    _rule(
        "get_nodes",
        "rule:context_is_admin or rule:service_api",
        "See nodes.",
        "GET /v2/nodes",
        "GET /v2/nodes/{node_id}",
    ),
    _rule(
        "modify_node",
        "rule:context_is_admin",
        "Drain a node, and remove it.",
        "POST /v2/nodes/{node_id}/drain",
        "DELETE /v2/nodes/{node_id}/drain",
        "DELETE /v2/nodes/{node_id}",
    ),
    _rule(
        "preload_image",
        "role:node",
        "Have an image on a node, whose role is node, name %(node)s and group %(node_group)s.",
    ),
    _rule(
        "add_preload",
        "rule:context_is_admin or rule:service_api",
        "Have images on nodes.",
        "POST /v2/preloads",
    ),
    _rule(
        "get_preloads",
        "rule:context_is_admin or rule:service_api",
        "See how far nodes are.",
        "GET /v2/preloads",
        "GET /v2/preloads/{preload_id}",
    ),
    _rule(
        "delete_preload",
        "rule:context_is_admin or rule:service_api",
        "Cancel a preload.",
        "DELETE /v2/preloads/{preload_id}",
    ),
    _rule(
        "preload_groups",
        "rule:context_is_admin",
        "See and say which images the nodes of a group keep and may have.",
        "GET /v2/preloads/groups",
        "GET /v2/preloads/groups/{name}",
        "PUT /v2/preloads/groups/{name}",
        "DELETE /v2/preloads/groups/{name}",
    ),
    # v1 only
    _rule(
        "copy_from",
        "rule:context_is_admin",
        "Make an image of the data at a URL.",
        "POST /v1/images",
        "PUT /v1/images/{image_id}",
    ),
]


def list_rules() -> list[policy.RuleDefault]:
    """The defaults, for oslopolicy-sample-generator (entry point ``oslo.policy.policies``)."""
    return RULES


def get_enforcer() -> policy.Enforcer:
    """An Enforcer for oslopolicy-checker and its like (entry point ``oslo.policy.enforcer``)."""
    conf = cfg.ConfigOpts()
    conf([], project="storelib")
    return Policy(conf).enforcer


class _Loaded:
    """The rules of one moment and what was decided by them. Checks get it in place of the enforcer, whose own rules are
    incomplete while it reads a file again.
    """

    def __init__(self, enforcer: policy.Enforcer, text: str) -> None:
        self.conf = enforcer.conf
        self.rules = policy.Rules(dict(enforcer.rules), "default")
        # As oslo.policy does: rules that are not registered (the operator's own) are of every scope. Older releases had
        # an option not to look at scopes.
        self._scopes = {rule.name: rule.scope_types for rule in enforcer.registered_rules.values()}
        self.text = text
        self.decisions: BoundedCache[tuple[Any, ...], bool] = BoundedCache(MEMORY)
        # Any other check, of a remote server or from a package of the operator's, sees the whole target and may look at
        # more than that, so that nothing is known to be the same question.
        others = {type(leaf).__name__ for check in self.rules.values() for leaf in _leaves(check)} - _REMEMBERED
        #: What of a target the rules mention; None where no decision may be remembered.
        self.keys = None if others else tuple(sorted(set(re.findall(r"%\(([^)]*)\)", text))))
        self.named = None if self.keys is None else frozenset(self.keys)

    def decide(self, context: Context, action: str, target: Mapping[str, Any]) -> bool:
        """What the rules say."""
        scopes = self._scopes.get(action)
        if scopes and _scope(context) not in scopes:
            return False
        check: Any = self.rules.get(action) or self.rules["default"]
        return bool(check(target, _credentials(context), self, action))


class Policy:
    """Decides whether a context may do something to a target; made once per application.

    Raises BadStoreConfiguration for files that cannot be read, and for rules that refer to themselves.
    """

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        opts._register(conf)
        self.enforcer = policy.Enforcer(conf, default_rule="default")
        self.enforcer.register_defaults(RULES)
        self._lock = threading.Lock()
        #: Why the files could not be read when they were last looked at.
        self._broken = ""
        self._load()
        place = conf.get_location("policy_file", "oslo_policy")
        if not self.enforcer.policy_path and place and place.location.is_user_controlled:
            # oslo.policy says so to nobody, and reads the file as soon as it is there.
            name = conf.oslo_policy.policy_file
            LOG.warning("[oslo_policy] policy_file = %s is not to be found: the defaults hold", name)
        self._loaded = _Loaded(self.enforcer, self._text())
        self._looked = time.monotonic()

    def is_admin(self, context: Context) -> bool:
        """Whether the roles of ``context`` make it an administrator's."""
        return self.allows(context, "context_is_admin", {})

    def names_more_than(self, keys: frozenset[str]) -> bool:
        """Whether a rule may look at something else of its target than these."""
        named = self._loaded.named
        return named is None or not named <= keys

    def allows(self, context: Context, action: str, target: Mapping[str, Any]) -> bool:
        """Whether ``context`` may do ``action`` to ``target``, a mapping as ``%(name)s`` in rules names its values."""
        if time.monotonic() - self._looked > RELOAD:
            self._look()
        loaded = self._loaded
        if loaded.keys is None:
            return loaded.decide(context, action, target)
        question = (context.fingerprint, action, *[target.get(key) for key in loaded.keys])
        decision = loaded.decisions.get(question)
        if decision is None:
            decision = loaded.decide(context, action, target)
            loaded.decisions.put(question, decision)
        return decision

    def require(self, context: Context, action: str, target: Mapping[str, Any]) -> None:
        """Raise NotPermitted unless ``context`` may do ``action`` to ``target``."""
        if not self.allows(context, action, target):
            raise NotPermitted(f"you are not allowed to do this ({action})")

    def is_service(self, context: Context) -> bool:
        """Whether the request is another service's, on behalf of a user or of its own."""
        return self.allows(context, "service_api", {})

    def allows_rule(self, context: Context, rule: str) -> bool:
        """Whether ``rule``, one of the operator's own or an action, holds; a rule that does not exist never does."""
        return self.knows(rule) and self.allows(context, rule, {})

    def knows(self, rule: str) -> bool:
        """Whether there is a rule of this name."""
        return rule in self._loaded.rules

    def _look(self) -> None:
        """Read files that have changed. One thread does; the others go on with the rules there are."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._load()
            text = self._text()
            if text != self._loaded.text:
                self._loaded = _Loaded(self.enforcer, text)
            self._broken = ""
        except BadStoreConfiguration as error:
            # The file is being edited. Refusing everything until that is done would help no caller.
            if str(error) != self._broken:
                LOG.exception("%s; the rules stay as they were", error)
            self._broken = str(error)
        finally:
            self._looked = time.monotonic()
            self._lock.release()

    def _load(self) -> None:
        """Have oslo.policy read what has changed; raises BadStoreConfiguration.

        What it could not read it takes for read, and has forgotten the rules of the other files by then, so that it has
        to begin anew.
        """
        try:
            self.enforcer.load_rules(force_reload=bool(self._broken))
        except Exception as error:  # of the file's form, oslo.policy tells by whatever Python raises
            is_told = isinstance(error, (ValueError, OSError, cfg.Error))
            why = " ".join(str(error).split()) if is_told else "a file is no mapping of names to rules"
            path = self.enforcer.policy_path or self.enforcer.policy_file
            raise BadStoreConfiguration(
                f"[oslo_policy] policy_file = {path}, or a file in policy_dirs, cannot be read: {why}"
            ) from error
        if cycle := _cycle(self.enforcer.rules):
            path = self.enforcer.policy_path or self.enforcer.policy_file
            names = " -> ".join(repr(name) for name in cycle)
            raise BadStoreConfiguration(
                f"[oslo_policy] policy_file = {path}, or a file in policy_dirs, has rules that refer to themselves: "
                f"{names}"
            )

    def _text(self) -> str:
        return " ".join(f"{name}={rule}" for name, rule in self.enforcer.rules.items())


def _leaves(check: Any) -> Iterator[Any]:
    """The checks that ``check`` combines, itself if it is none of that kind."""
    if isinstance(check, policy.NotCheck):
        yield from _leaves(check.rule)
    elif isinstance(check, (policy.AndCheck, policy.OrCheck)):
        for each in check.rules:
            yield from _leaves(each)
    else:
        yield check


def _cycle(rules: Mapping[str, Any]) -> Sequence[str]:
    """Names of rules of which each refers to the next, the last one to the first, which is named again; or none.

    A reference to a rule that does not exist is one to the default.
    """
    refers = {
        name: sorted(
            {
                leaf.match if leaf.match in rules else "default"
                for leaf in _leaves(check)
                if isinstance(leaf, policy.RuleCheck)
            }
            & rules.keys()
        )
        for name, check in rules.items()
    }
    done: set[str] = set()
    for first in sorted(refers):
        # Without recursion: an operator's chain of rules may be longer than Python's stack.
        path, left = [first], [iter(refers[first])]
        while path and first not in done:
            following = next(left[-1], None)
            if following is None:
                done.add(path.pop())
                left.pop()
            elif following in path:
                return [*path[path.index(following) :], following]
            elif following not in done:
                path.append(following)
                left.append(iter(refers[following]))
    return []


def _scope(context: Context) -> str:
    """What the caller's token is of, as ``scope_types`` of rules name it."""
    if context.system_scope:
        return "system"
    return "domain" if context.domain_id else "project"


def _credentials(context: Context) -> dict[str, Any]:
    return {
        "is_admin_project": True,
        **context.claims,
        "user_id": context.user_id,
        "project_id": context.project_id,
        "tenant": context.project_id,
        "tenant_id": context.project_id,
        "roles": context.roles,
        "service_roles": context.service_roles,
        "is_admin": context.is_admin,
        "domain_id": context.domain_id,
        "system": context.system_scope,
        "system_scope": context.system_scope,
        "read_only": context.read_only,
    }
