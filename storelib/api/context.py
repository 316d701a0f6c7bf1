# SPDX-License-Identifier: Apache-2.0
"""Context: who asks, as every function of the service takes it first."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any


class Context:
    """One request's user, project and roles. ``is_admin`` is set once, by the policy ``context_is_admin``.

    A token is of a project, or of a domain (``domain_id``) or the system (``system_scope``), which own no images.
    ``service_roles`` are those of the service that sends the request on behalf of the user, if one does.
    ``claims`` is what else the tokens say of both, as rules of policies name it: ``user_domain_id`` and so on.

    ``read_only`` contexts (anonymous requests) may change nothing. Drivers get the context handed through, so it has
    the names they look for (``auth_token``, ``service_catalog``).
    """

    __slots__ = (
        "_fingerprint",
        "auth_token",
        "catalog",
        "claims",
        "domain_id",
        "is_admin",
        "project_id",
        "read_only",
        "request_id",
        "roles",
        "service_roles",
        "system_scope",
        "user_id",
    )

    def __init__(
        self,
        user_id: str | None = None,
        project_id: str | None = None,
        roles: Iterable[str] = (),
        *,
        is_admin: bool = False,
        read_only: bool = False,
        request_id: str = "",
        auth_token: str | None = None,
        catalog: str | None = None,
        service_roles: Iterable[str] = (),
        domain_id: str | None = None,
        system_scope: str | None = None,
        claims: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.user_id = user_id
        self.project_id = project_id
        self.roles = [role.lower() for role in roles]
        self.is_admin = is_admin
        self.read_only = read_only
        self.request_id = request_id
        self.auth_token = auth_token
        self.catalog = catalog
        self.service_roles = [role.lower() for role in service_roles]
        self.domain_id = domain_id
        self.system_scope = system_scope
        self.claims = claims
        self._fingerprint: tuple[Any, ...] | None = None

    def __repr__(self) -> str:
        return f"<Context user={self.user_id} project={self.project_id} roles={self.roles}>"

    @property
    def service_catalog(self) -> Any:
        """The token's catalog of services, decoded when a driver asks for it; None without one."""
        return json.loads(self.catalog) if self.catalog else None

    @property
    def fingerprint(self) -> tuple[Any, ...]:
        """All that policy rules can see of this context; equal for equal credentials."""
        if self._fingerprint is None:
            self._fingerprint = (
                self.user_id,
                self.project_id,
                self.domain_id,
                self.system_scope,
                self.is_admin,
                self.read_only,
                *self.claims.items(),
                *self.roles,
                "service:",
                *self.service_roles,
            )
        return self._fingerprint

    def as_admin(self, is_admin: bool) -> Context:
        """This context, which from now on is an administrator's or not."""
        self.is_admin = is_admin
        self._fingerprint = None
        return self

    def of_request(self, request_id: str) -> Context:
        """The same caller in another request."""
        context = copy.copy(self)
        context.request_id = request_id
        return context

    @property
    def owner(self) -> str | None:
        """Who images made in this context belong to."""
        return self.project_id


def administrator(request_id: str = "") -> Context:
    """The context of ``auth_strategy = noauth`` and of the program's own work."""
    return Context(roles=("admin", "member", "reader"), is_admin=True, request_id=request_id)
