# SPDX-License-Identifier: Apache-2.0
"""Draft: an image being changed. Operations are applied to it one by one under all rules of changing, then committed at
once. Both versions of the API speak to it in the same three words: add, replace and remove a path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from storelib.api import schemas
from storelib.api.context import Context
from storelib.api.db.records import Changes, Image, NewLocation
from storelib.api.errors import BadRequest, Conflict, LocationNotFound, NotPermitted
from storelib.api.parsing import whole_number
from storelib.api.schemas import READ_ONLY, RESERVED, RESERVED_PREFIX
from storelib.api.service.core import Core
from storelib.api.service.deletion import delete_dropped
from storelib.api.service.foreign import Found, inspect_data
from storelib.api.service.locations import check_digests, check_trusted, find_data, locate
from storelib.api.service.signatures import check_unsigned
from storelib.uris import redact

LONGEST_NAME = 255


class Operation(NamedTuple):
    """One change. ``insert`` is an ``add`` that never overwrites. ``path`` is one name, or locations and a place.

    Two are v1's only: ``expect`` says what the size or checksum of the data will be, ``locate`` where the data is.
    """

    op: Literal["add", "insert", "replace", "remove", "expect", "locate"]
    path: tuple[str, ...]
    value: Any = None


class Draft:
    """The image as it would be, and what of it changed."""

    def __init__(self, core: Core, context: Context, image: Image) -> None:
        self._core = core
        self._context = context
        self._image = image
        self._values: dict[str, Any] = {}
        self._properties = dict(image.properties)
        self._tags = frozenset(image.tags)
        # In the order in which they are shown, which is what clients count in.
        self._shown: list[NewLocation] = [*core.by_weight(image.locations)]
        self._locations = list(self._shown)
        self._found: list[Found] = []
        self._activates = False

    def apply(self, operation: Operation) -> None:
        """Take one operation.

        Raises NotPermitted (read-only, reserved, protected, not the caller's), Conflict (nothing there to replace or
        remove, or something where ``insert`` would put it), BadRequest (not as the schema says).
        """
        op, path, value = operation
        name = path[0]
        if op == "expect":
            self._expect(name, value)
            return
        if op == "locate":
            self._locate(value)
            return
        if name == "locations":
            self._apply_to_locations(op, path[1:], value)
            return
        check_name(name)
        if name == "id":
            raise NotPermitted("the property 'id' is read-only")
        if len(path) != 1:
            raise BadRequest(f"there is nothing below the property {name!r} that could be changed")
        self._core.require(self._context, "modify_image", self._image)
        if name in self._core.schema.base_names:
            self._set_base(op, name, value)
        elif op == "remove":
            self._remove_property(name)
        else:
            self._set_property(op, name, value)

    def commit(self) -> Image:
        """Write what changed; raises LimitExceeded, StaleImage."""
        image, core = self._image, self._core
        properties = self._properties if self._properties != image.properties else None
        tags = self._tags if self._tags != frozenset(image.tags) else None
        locations = tuple(self._locations) if self._locations != self._shown else None
        values = self._changed()
        if properties is None and tags is None and locations is None and not values:
            return image
        if self._activates:
            # Operations after that of the location may have taken them away.
            self._require_formats()
            check_unsigned(self._properties)
        # What only becomes less may still be more than a quota that was lowered.
        if properties is not None and properties.keys() - image.properties.keys():
            core.quota.check_properties(properties)
        if tags is not None and tags - set(image.tags):
            core.quota.check_tags(tags)
        if added := {location.uri for location in self._locations} - {location.uri for location in image.locations}:
            core.quota.check_locations(self._locations)
            core.quota.room(image.owner, self._values.get("size", image.size), len(added))
            core.limits.check_data(image.owner, self._values.get("size", image.size))
            # Now, since an operation after that of the location may have changed the formats.
            for found in self._found:
                if found.location.uri in added:
                    self._inspect(found)
            values = self._changed()
        changes = Changes(values, properties, tags, locations, "active" if self._activates else None)
        if added and core.quota.total is not None:
            return core.repository.images.update(image, changes, most=core.quota.total)
        return core.repository.images.update(image, changes)

    def _changed(self) -> dict[str, Any]:
        return {name: value for name, value in self._values.items() if getattr(self._image, name) != value}

    def delete_dropped(self) -> None:
        """After ``commit``: delete the data at locations that were removed; raises Conflict if it is in use."""
        kept = {location.uri for location in self._locations}
        if all(location.uri in kept for location in self._image.locations):
            return
        delete_dropped(self._core, self._context, self._image.id)

    def _inspect(self, found: Found) -> None:
        formats = [self._values.get(name, getattr(self._image, name)) for name in ("disk_format", "container_format")]
        size = inspect_data(self._core, self._context, found, *formats)
        if self._activates and size is not None:
            self._values["virtual_size"] = size

    # -- what v1 says of data -------------------------------------------------------------------------------------

    def _expect(self, name: str, value: Any) -> None:
        core, image = self._core, self._image
        core.require(self._context, "modify_image", image)
        if image.status != "queued":
            raise NotPermitted(f"the {name} of an image that is {image.status} is that of its data")
        if name == "size":
            core.quota.room(image.owner, value)
        self._values[name] = value

    def _locate(self, uri: str) -> None:
        self._core.require(self._context, "set_image_location", self._image)
        if self._image.status != "queued":
            raise BadRequest(f"the image is {self._image.status}, a location is taken by queued images")
        self._require_formats()
        self._core.quota.room(self._image.owner)
        expected = self._values.get("size", self._image.size)
        found = locate(self._core, self._context, uri, expected)
        self._values["size"] = found.size
        self._found.append(found)
        self._locations.append(found.location)
        self._activates = True

    # -- properties -----------------------------------------------------------------------------------------------

    def _set_base(self, op: str, name: str, value: Any) -> None:
        core, context, image = self._core, self._context, self._image
        if op == "remove":
            raise NotPermitted(f"the property {name!r} may not be removed")
        if op == "insert":
            raise Conflict(f"the property {name!r} exists already")
        if name == "owner" and not context.is_admin:
            raise NotPermitted("only administrators may give images to others")
        if name in ("disk_format", "container_format") and image.status != "queued":
            raise NotPermitted(f"{name} can be changed while the image is queued only")
        if name == "tags":
            core.quota.check_length("tags", value, core.quota.tags, len(image.tags))
        core.schema.check({name: value})
        value = core.schema.plain(name, value)
        if name == "tags":
            self._tags = frozenset(value)
            return
        if name == "visibility" and value != image.visibility:
            for visibility, action in (("public", "publicize_image"), ("community", "communitize_image")):
                if value == visibility:
                    core.require(context, action, image)
        self._values[name] = value

    def _set_property(self, op: str, name: str, value: Any) -> None:
        exists = name in self._properties
        self._core.protection.require(self._context, "update" if exists else "create", name)
        if op == "replace" and not exists:
            raise Conflict(f"the image has no property {name!r} that could be replaced")
        if op == "insert" and exists:
            raise Conflict(f"the property {name!r} exists already")
        self._core.schema.check({name: value})
        self._properties[name] = schemas.stored(self._core.schema.plain(name, value))

    def _remove_property(self, name: str) -> None:
        # Before anything is said of whether the image has it: the caller may not be allowed to know.
        self._core.protection.require(self._context, "delete", name)
        if name not in self._properties:
            raise Conflict(f"the image has no property {name!r} that could be removed")
        if name in self._core.schema.required:
            raise NotPermitted(f"the property {name!r} may not be removed: every image has to have it here")
        del self._properties[name]

    # -- locations ------------------------------------------------------------------------------------------------

    def _apply_to_locations(self, op: str, place: Sequence[str], value: Any) -> None:
        if not self._core.show_locations:
            raise NotPermitted("locations are not shown here, so they cannot be changed (show_multiple_locations)")
        if self._image.status not in ("active", "queued"):
            raise Conflict(f"locations of an image that is {self._image.status} cannot be changed")
        if op == "remove":
            self._remove_location(place)
            return
        self._core.require(self._context, "set_image_location", self._image)
        if op == "replace" and not place:
            self._replace_locations(value)
        elif op in ("add", "insert") and len(place) == 1:
            self._add_location(place[0], value)
        else:
            raise BadRequest("locations are added at /locations/<number> or /locations/-, replaced as a whole")

    def _add_location(self, place: str, value: Any) -> None:
        self._core.schema.check({"locations": [value]})
        index = _index(place, len(self._locations))
        self._take_over([value])
        self._locations.insert(index, self._new(value))

    def _replace_locations(self, values: Any) -> None:
        self._core.quota.check_length("locations", values, self._core.quota.locations, len(self._locations))
        self._core.schema.check({"locations": values})
        if not values:
            raise NotPermitted("the locations of an image cannot be replaced by none")
        present = {location.uri: location for location in self._locations}
        # Clients know locations as they are shown.
        shown = {redact(uri): uri for uri in present}
        values = [{**value, "url": shown.get(value["url"], value["url"])} for value in values]
        urls = [value["url"] for value in values]
        if len(set(urls)) != len(urls):
            raise BadRequest("the same location is given twice")
        if present and set(urls) != set(present):
            raise BadRequest("the image has locations already; remove them, or replace their metadata only")
        if not present:
            self._core.quota.check_locations(values)
        self._take_over(values)
        self._locations = [
            _with_metadata(present[value["url"]], value["metadata"]) if value["url"] in present else self._new(value)
            for value in values
        ]

    def _remove_location(self, place: Sequence[str]) -> None:
        self._core.require(self._context, "delete_image_location", self._image)
        if len(place) != 1:
            raise BadRequest("locations are removed one by one, at /locations/<number>")
        if self._image.status != "active":
            raise Conflict(f"locations of an image that is {self._image.status} cannot be removed")
        last = len(self._locations) - 1
        index = last if place[0] == "-" else _index(place[0], last)
        if last == 0:
            raise NotPermitted("the last location of an image cannot be removed")
        del self._locations[index]

    def _new(self, value: Mapping[str, Any]) -> NewLocation:
        """A location that was not there; the first one of a queued image makes it active."""
        self._check_is_new(value["url"])
        # Before other servers are asked.
        self._core.quota.check_locations([*self._locations, value])
        check_trusted(self._core, self._context, value["url"])
        # Each is asked for in turn, whose server may take its time.
        self._core.quota.check_locations([*self._found, value])
        self._core.quota.room(self._image.owner)
        location, store, size = find_data(self._core, self._context, value["url"])
        # The client may have spelled it in another way.
        self._check_is_new(location.uri)
        found = Found(NewLocation(location.uri, {**value["metadata"], **location.metadata}), store, size)
        self._found.append(found)
        image = self._image
        size_so_far = self._values.get("size", image.size)
        if image.status == "queued":
            self._require_formats()
            self._activates = True
        if size_so_far is None:
            self._values["size"] = size
        elif size != size_so_far:
            raise Conflict(f"the data there has {size} bytes, the image has {size_so_far}")
        return found.location

    def _check_is_new(self, uri: str) -> None:
        if any(location.uri == uri for location in self._locations):
            raise BadRequest("the image has this location already")

    def _require_formats(self) -> None:
        for name in ("disk_format", "container_format"):
            if self._values.get(name, getattr(self._image, name)) is None:
                raise BadRequest("disk_format and container_format must be set before the image gets a location")

    def _take_over(self, values: Sequence[Mapping[str, Any]]) -> None:
        """Record what the client says the data is; only of a queued image, which has no data yet."""
        found: dict[str, str] = {}
        for value in values:
            for name, given in value.get("validation_data", {}).items():
                if found.setdefault(name, given) != given:
                    raise Conflict(f"two locations give different values of {name}")
        new = {}
        for name, given in found.items():
            present = self._values.get(name, getattr(self._image, name))
            if present is not None and present != given:
                raise Conflict(f"{name} is set already, to another value")
            if present is None:
                new[name] = given
        if not new:
            return
        if self._image.status != "queued":
            raise Conflict(f"{', '.join(sorted(new))} can be given while the image is queued only")
        check_digests(found, self._core.hashing_algorithm)
        self._values |= new


def check_name(name: str) -> None:
    """Raise NotPermitted or BadRequest for a property name that clients cannot set."""
    if name in READ_ONLY:
        raise NotPermitted(f"the property {name!r} is read-only")
    if name in RESERVED or name.startswith(RESERVED_PREFIX):
        raise NotPermitted(f"the property {name!r} is reserved")
    if not 0 < len(name) <= LONGEST_NAME:
        raise BadRequest(f"the name of a property has 1 to {LONGEST_NAME} characters")


def _with_metadata(location: NewLocation, metadata: Mapping[str, Any]) -> NewLocation:
    """The location with a client's metadata; which store it is in is not the client's to say."""
    given = {name: value for name, value in metadata.items() if name != "store"}
    known = {name: value for name, value in location.metadata.items() if name == "store"}
    return replace(location, metadata={**given, **known})


def _index(place: str, last: int) -> int:
    if place == "-":
        return last
    if not place.isascii() or not place.isdigit():
        raise BadRequest(f"{place!r} is not a place in the list of locations")
    index = whole_number(place)
    if index is None or index > last:
        raise LocationNotFound(f"the image has no location {place}")
    return index
