# SPDX-License-Identifier: Apache-2.0
"""Types of options beyond those of oslo.config, for drivers and programs alike."""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from typing import Any

from oslo_config import types

#: Seconds that a time limit may be at most: Python waits for no more than about nine times as many.
LONGEST = 1_000_000_000
#: An item in one of both quotes, or without.
_ITEM = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([^,"']*))\s*(?:,|\Z)""")


class LocalPath(types.String):
    """The path of a local file or directory. A relative one is of the directory of the file that sets the option.

    ``config.py`` sees to that: a service that is started elsewhere must not find other images, or none.
    """


class _Text(types.ConfigType):
    """A type without settings, whose values are shown as they are."""

    def __eq__(self, other: object) -> bool:
        """Whether it parses alike, as all of this type do: oslo.config asks when an option is registered again."""
        return type(other) is type(self)

    def __hash__(self) -> int:
        """The same for all."""
        return hash(type(self))

    def __repr__(self) -> str:
        """What people are told that the option may be."""
        return str(self.type_name)

    def _formatter(self, value: Any) -> str:
        return str(value)


class Bytes(_Text):
    """A number of bytes, written with a unit or without; units are powers of 1024.

    >>> Bytes()("80M"), Bytes()("1.5 GiB"), Bytes()("512")
    (83886080, 1610612736, 512)
    """

    def __init__(self, type_name: str = "bytes, such as 512, 80M or 1.5G") -> None:
        super().__init__(type_name=type_name)

    def __call__(self, value: Any) -> int:
        """The bytes; raises ValueError."""
        match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s?([KMGT]?)(?:I?B)?", str(value).strip().upper())
        if match is None:
            raise ValueError(f"{value!r} is no number of bytes")
        return int(float(match[1]) * 1024 ** " KMGT".index(match[2] or " "))


class Network(_Text):
    """A network of IP addresses, or one address; it stays as it is written.

    >>> Network()("10.1.0.0/16"), Network()("::1")
    ('10.1.0.0/16', '::1')
    """

    def __init__(self, type_name: str = "networks, such as 10.1.0.0/16, fd00::/8 or one address") -> None:
        super().__init__(type_name=type_name)

    def __call__(self, value: Any) -> str:
        """The network; raises ValueError."""
        text = str(value).strip()
        ipaddress.ip_network(text, strict=False)
        return text


class Url(_Text):
    """A URL of a service on the web; it stays as it is written. An empty one is as if the option were not set.

    >>> Url()("https://images.example:9292/image"), Url()("")
    ('https://images.example:9292/image', '')
    """

    def __init__(self, type_name: str = "URL, such as https://images.example:9292") -> None:
        super().__init__(type_name=type_name)

    def __call__(self, value: Any) -> str:
        """The URL; raises ValueError, which has nothing of it, since there may be a password."""
        text = str(value).strip()
        if text and not _is_url(text):
            raise ValueError("not a URL with http:// or https://, a host, and a port from 1 to 65535 if any")
        return text


def _is_url(text: str) -> bool:
    # Python takes some of these out, others away.
    if not text.isprintable() or " " in text:
        return False
    try:
        parts = urllib.parse.urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


class Names(types.List):
    """Items with commas between them, all of them in brackets or not, each in quotes or not.

    >>> Names()("[a,b]"), Names()('"a, b", c'), Names()("")
    (['a', 'b'], ['a, b', 'c'], [])
    """

    def __call__(self, value: Any) -> list[Any]:
        """The items; raises ValueError."""
        if not isinstance(value, str):
            return [self.item_type(item) for item in value]
        text = value.strip()
        if text.startswith("[") and text.find("]") == len(text) - 1:
            text = text[1:-1].strip()
        return [self.item_type(item) for item in _split(text.rstrip(","))]


def _split(text: str) -> list[str]:
    found, at = [], 0
    while at < len(text):
        match = _ITEM.match(text, at)
        if match is None:
            raise ValueError(f"the quotes in {text!r} do not match")
        double, single, plain = match.groups()
        found.append(next(item for item in (double, single, (plain or "").strip()) if item is not None))
        at = match.end()
    return found
