# SPDX-License-Identifier: Apache-2.0
"""Where an image is in Swift: its URI, in all the forms that were ever written, and the layout of containers."""

from __future__ import annotations

import hashlib
import re
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field

from storelib.exceptions import BadStoreUri
from storelib.uris import StoreLocation, quote, redact, scheme_of, unquote

SCHEMES = ("swift+https", "swift+http", "swift", "swift+config")
#: The scheme of URIs that name a section of the reference file.
CONFIG = "swift+config"

_PLACE = re.compile(r"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)
_VERSION = re.compile(r"/v[0-9.]+$")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# Bytes in the name of a container: 256 in OpenStack, 255 in radosgw.
_LONGEST = 255
_REFERENCE = re.compile(r"[^/@:?#\s]+")


@dataclass(frozen=True, repr=False)
class SwiftLocation(StoreLocation):
    """``swift+https://host[:port][/path]/container/object``, or ``swift+config://reference/container/object``.

    Host and path are those of the identity service, in multi-tenant stores those of the account. Old URIs may have
    ``user:key@``, the user being ``account:user``, percent-encoded or not: that is read, never written, never used.
    """

    scheme: str
    #: Host, port and path without slashes at the ends, or the name of a reference.
    place: str
    container: str
    obj: str
    user: str = field(default="", repr=False, compare=False)
    key: str = field(default="", repr=False, compare=False)

    @classmethod
    def parse(cls, uri: str) -> SwiftLocation:
        """Split a URI; raises BadStoreUri."""
        scheme = scheme_of(uri)
        rest = uri.partition("://")[2]
        if scheme not in SCHEMES or "://" in rest or "?" in rest or "#" in rest:
            raise BadStoreUri(
                f"expected swift+https://host/container/object, not {redact(uri)}; write '?' as %3F and '#' as %23"
            )
        head, *names = rest.split("/")
        credentials, at, host = head.rpartition("@")
        user, _, key = credentials.rpartition(":")
        if len(names) < 2 or (at and not (user and key and scheme != CONFIG)):
            raise BadStoreUri(f"expected {scheme}://[user:key@]place/container/object, not {redact(uri)}")
        *path, container, obj = names
        try:
            return cls(
                "swift+https" if scheme == "swift" else scheme,
                _place(scheme, host, path),
                _name(unquote(container, uri), in_container=False),
                _name(unquote(obj, uri), in_container=True),
                unquote(user, uri),
                unquote(key, uri),
            )
        except ValueError as error:
            raise BadStoreUri(f"{error} in {redact(uri)}") from None

    @property
    def uri(self) -> str:
        """The URI without credentials."""
        return f"{self.scheme}://{self.place}/{quote(self.container)}/{quote(self.obj)}"

    @property
    def url(self) -> str:
        """The place as an HTTP URL."""
        return f"{self.scheme.removeprefix('swift+')}://{self.place}"


def place_of(url: str) -> str:
    """What stands for the HTTP URL of a service in image URIs; raises ValueError for a URL that cannot be in one."""
    parts = urllib.parse.urlsplit(url)
    _ = parts.port  # raises ValueError where there is no such port
    return _place(parts.scheme, parts.netloc, parts.path.split("/"))


def is_reference(name: str) -> bool:
    """Whether image URIs can name a section of the reference file that is called so."""
    return _REFERENCE.fullmatch(name) is not None


def without_version(place: str) -> str:
    """The place of an identity service, whichever version of it the URL names."""
    return _VERSION.sub("", place)


def scheme_for(url: str) -> str:
    """The scheme that goes with it."""
    return "swift+http" if url.lower().startswith("http://") else "swift+https"


def _place(scheme: str, host: str, path: list[str]) -> str:
    if scheme == CONFIG:
        if path or not is_reference(host):
            raise ValueError("the reference is not a plain name")
        return host
    match = _PLACE.fullmatch(host)
    if match is None:
        raise ValueError("no host and port")
    names = [name for name in path if name]
    if any(name in (".", "..") or re.search(r"[\s@]", name) for name in names):
        raise ValueError("no plain path")
    return "/".join([host.lower(), *names])


def _name(name: str, *, in_container: bool) -> str:
    """A container's or an object's name; Swift itself allows a little more, but no image has it."""
    pieces = name.split("/")
    if "\0" in name or any(piece in ("", ".", "..") for piece in pieces):
        raise ValueError("no name of a container and an object")
    if len(pieces) > 1 and not in_container:
        raise ValueError("a '/' in the name of the container")
    return name


@dataclass(frozen=True)
class Layout:
    """Which containers images and their segments are in, as the options of one store say it."""

    container: str
    seed: int = 0
    #: Each image has a container of its own.
    own: bool = False
    segments: str | None = None

    @property
    def containers(self) -> list[str]:
        """How the names of all containers of images begin; a ``/``, which is in no name, ends a whole one."""
        whole, several = f"{self.container}/", f"{self.container}_"
        if self.own:
            return [several]
        return [whole, several] if self.seed else [whole]

    def container_for(self, image_id: str) -> str:
        """The container of a new image."""
        if self.own:
            name = f"{self.container}_{image_id}"
            if len(name.encode()) <= _LONGEST:
                return name
            return f"{self.container}_{hashlib.sha256(image_id.encode()).hexdigest()}"
        if not self.seed:
            return self.container
        # As glance_store counts: dashes are taken along but not counted.
        start = image_id.lower()
        return f"{self.container}_{start[: self.seed + start[: self.seed].count('-')]}"

    def may_be_for(self, container: str, prefix: str) -> bool:
        """Whether an image whose id has this prefix may be in a container of this store."""
        rest = container.removeprefix(f"{self.container}_")
        if self.own:
            return rest.startswith(prefix) or _DIGEST.fullmatch(rest) is not None
        # With whatever seed it was.
        start = prefix.lower()
        return container == self.container or rest.startswith(start) or start.startswith(rest)

    def common_start(self, prefix: str) -> str:
        """How the names of all containers begin that may be for ids with this prefix, but the one without a seed.

        Long ids have containers that are called after their digest; there is none beside a UUID that begins so.
        """
        return f"{self.container}_{prefix if self.own and _UUID.fullmatch(prefix) else ''}"

    def segment_container_for(self, container: str) -> str:
        """The container of the segments of an image in ``container``."""
        return container if self.own or not self.segments else self.segments

    def holds(self, container: str, image_id: str) -> bool:
        """Whether an image of that id may be in that container, with this seed or another."""
        if container == self.container:
            return not self.own
        base, mark, rest = container.partition(f"{self.container}_")
        if base or not mark or not rest:
            return False
        if self.own:
            return container == self.container_for(image_id)
        return image_id.lower().startswith(rest)


def possible_roots(location: SwiftLocation) -> Iterator[tuple[str | None, str]]:
    """All that ``Service.roots`` could say of a store that has this location."""
    name = location.container
    containers = [name, *(name[:position] for position, character in enumerate(name) if character == "_")]
    place = f"{CONFIG}:{location.place}" if location.scheme == CONFIG else without_version(location.place)
    for container in containers:
        yield place, container
        yield None, container
