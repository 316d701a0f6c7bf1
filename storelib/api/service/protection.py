# SPDX-License-Identifier: Apache-2.0
"""Property protection: which roles may create, read, update and delete which custom properties.

The file is an INI file of sections that are regular expressions; the first that matches a name decides, and a name that
none matches may be used by no caller. What the file says is read once, and a mistake in it stops the start.

In v1 properties are headers: of names that differ in their case only, or in dashes and underscores, clients of v1 see
one. So such names have one rule, or else everybody could put another value in the place of a protected one.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from storelib.api.caching import BoundedCache
from storelib.api.context import Context
from storelib.api.errors import NotPermitted
from storelib.api.patterns import Pattern, TooSlow
from storelib.api.policy import Policy
from storelib.api.schemas import RESERVED_PREFIX
from storelib.exceptions import BadStoreConfiguration

Action = Literal["create", "read", "update", "delete"]
ACTIONS: tuple[Action, ...] = ("create", "read", "update", "delete")
EVERYBODY, NOBODY = "@", "!"
#: Names of which the rule is remembered.
MEMORY = 10_000


class Rule(NamedTuple):
    """One section: the pattern and, for each action, roles or the name of one policy."""

    pattern: Pattern
    allowed: Mapping[str, tuple[str, ...]]


#: The rule for names that none is for.
_NONE = Rule(Pattern(""), {})


class Protection:
    """Decides who may do what with a custom property; without a file all callers may do everything."""

    def __init__(self, policy: Policy, path: str | None = None, rule_format: str = "roles") -> None:
        self._policy = policy
        self._by_policies = rule_format == "policies"
        self._rules = _read(path) if path else None
        self._known: BoundedCache[str, Rule] = BoundedCache(MEMORY)
        if self._by_policies:
            for names in (names for rule in self._rules or () for names in rule.allowed.values()):
                if len(names) > 1:
                    several = ", ".join(names)
                    raise BadStoreConfiguration(
                        f"property_protection_file {path}: one policy says who may do something, not several "
                        f"({several}); combine them in the policy file"
                    )
                for name in names:
                    if name not in (EVERYBODY, NOBODY) and not policy.knows(name):
                        raise BadStoreConfiguration(f"property_protection_file {path}: there is no policy {name!r}")

    @property
    def active(self) -> bool:
        """Whether there are rules at all."""
        return self._rules is not None

    def allows(self, context: Context, action: Action, name: str) -> bool:
        """Whether ``context`` may do ``action`` to the custom property ``name``."""
        if self._rules is None or name.startswith(RESERVED_PREFIX):
            return True
        rule = self._rule_for(name)
        allowed = rule.allowed[action] if rule else ()
        if NOBODY in allowed:
            return False
        if EVERYBODY in allowed:
            return True
        if self._by_policies:
            return bool(allowed) and self._policy.allows_rule(context, allowed[0])
        return not set(allowed).isdisjoint(context.roles)

    def _rule_for(self, name: str) -> Rule | None:
        """The first rule for a name, None without any. Lists ask for the same names again and again."""
        found = self._known.get(name)
        if found is None:
            names = {name, name.replace("-", "_"), name.replace("_", "-")}
            found = next((rule for rule in self._rules or () if any(map(rule.pattern.search, names))), _NONE)
            self._known.put(name, found)
        return None if found is _NONE else found

    def require(self, context: Context, action: Action, name: str) -> None:
        """Raise NotPermitted unless ``allows``."""
        if not self.allows(context, action, name):
            raise NotPermitted(f"the property {name!r} is protected")

    def readable(self, context: Context, properties: Mapping[str, str | None]) -> Mapping[str, str | None]:
        """The properties that ``context`` may see."""
        if self._rules is None:
            return properties
        return {name: value for name, value in properties.items() if self.allows(context, "read", name)}


def _read(path: str) -> list[Rule]:
    parser = configparser.RawConfigParser(strict=True)
    parser.optionxform = str.lower  # type: ignore[method-assign,assignment]
    where = f"property_protection_file {path}"
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
    except OSError as error:
        raise BadStoreConfiguration(f"cannot read {where}: {error.strerror}") from error
    except (configparser.Error, UnicodeDecodeError) as error:
        raise BadStoreConfiguration(f"{where}: {error}") from error
    return [_rule(where, section, dict(parser.items(section))) for section in parser.sections()]


def _rule(where: str, section: str, values: Mapping[str, str]) -> Rule:
    try:
        pattern = Pattern(section, re.IGNORECASE)
    except re.error as error:
        raise BadStoreConfiguration(f"{where}: [{section}] is not a regular expression: {error}") from error
    except TooSlow as error:
        raise BadStoreConfiguration(f"{where}: [{section}]: {error}; write it in another way") from error
    missing = [action for action in ACTIONS if action not in values]
    if missing:
        raise BadStoreConfiguration(f"{where}: [{section}] does not say who may {' and '.join(missing)}")
    allowed: dict[str, tuple[str, ...]] = {
        # Nothing behind the sign is nobody.
        action: tuple(word.strip().lower() for word in values[action].split(",") if word.strip())
        for action in ACTIONS
    }
    for action, words in allowed.items():
        if EVERYBODY in words and NOBODY in words:
            raise BadStoreConfiguration(f"{where}: [{section}] {action} has both {EVERYBODY} and {NOBODY}")
    return Rule(pattern, allowed)
