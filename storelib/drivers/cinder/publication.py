# SPDX-License-Identifier: Apache-2.0
"""How a volume becomes an image: what is in its metadata, and the steps by which one of several racers publishes.

A volume is *writing*, then *pending*, then *complete*, and only then an image. Who is pending looks for others with the
same id: one that is complete wins; of several that are pending the one with the highest volume id withdraws, and the
lowest waits for the others. Each is marked before it looks, so of two at least one sees the other.
"""

from __future__ import annotations

import contextlib
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import replace

from storelib.driver import Digest, Digests
from storelib.drivers.cinder.location import CinderLocation, is_volume_id
from storelib.drivers.cinder.service import LEAVING, Api, Volume
from storelib.exceptions import Duplicate, NotFound, StoreError
from storelib.transfer.http.headers import whole_number

#: Known to glance_store, too: the image's id, percent-encoded, and its size in bytes.
IMAGE_ID, SIZE = "glance_image_id", "image_size"
STORE, STATE, TOKEN, DIGEST = "storelib_store", "storelib_state", "storelib_token", "storelib_digest"
_OWNER = "image_owner"
#: States of a volume that is not there yet, or never came to be. In all others, as while it is attached or backed up,
#: what is in it is in it.
_UNMADE = ("creating", "downloading", "error", *LEAVING)
WRITING, PENDING, COMPLETE = "writing", "pending", "complete"
#: What a value in the metadata may be long; longer ids go on under further keys.
_LONGEST = 255
#: Seconds between two looks at another add that is pending, and for how long: its next step is a single request.
_LOOK, _WITHDRAWAL = 0.1, 20.0


def id_entries(image_id: str) -> dict[str, str]:
    """How an image's id is written down: in ASCII, because not every database of a Cinder can do more."""
    quoted = urllib.parse.quote(image_id, safe="")
    pieces = [quoted[start : start + _LONGEST] for start in range(0, len(quoted), _LONGEST)]
    return {IMAGE_ID if not number else f"{IMAGE_ID}_{number}": piece for number, piece in enumerate(pieces)}


def image_id_of(volume: Volume) -> str | None:
    """The image that the volume is, or is to become; None if it is none."""
    quoted = volume.metadata.get(IMAGE_ID)
    if quoted is None:
        return None
    number = 1
    while (piece := volume.metadata.get(f"{IMAGE_ID}_{number}")) is not None:
        quoted += piece
        number += 1
    return urllib.parse.unquote(quoted)


def size_of(volume: Volume) -> int:
    """The exact size in bytes; raises StoreError where the volume does not tell."""
    text = volume.metadata.get(SIZE, "")
    size = whole_number(text)
    if size is None or size > volume.size << 30:
        raise StoreError(f"volume {volume.id} does not tell the size of its image (metadata {SIZE})")
    return size


def digest_of(volume: Volume) -> Digest | None:
    """The digest that was recorded."""
    algorithm, colon, value = volume.metadata.get(DIGEST, "").partition(":")
    return Digest(algorithm, value) if colon else None


def is_image(volume: Volume) -> bool:
    """Whether it is an image that can be read. glance_store's have no state and get their size last or first."""
    if volume.status in LEAVING or IMAGE_ID not in volume.metadata:
        return False
    state = volume.metadata.get(STATE)
    return state == COMPLETE or (state is None and SIZE in volume.metadata and volume.status not in _UNMADE)


def _is_cinders(volume: Volume) -> bool:
    """Whether Cinder itself made a volume an image of Glance (``image_upload_use_cinder_backend``), as a whole.

    It notes the owner, as glance_store does, but neither a size nor, before Glance has the location, the image's id.
    """
    told = volume.metadata
    return _OWNER in told and SIZE not in told and STATE not in told and volume.status not in _UNMADE


class Shelf:
    """The volumes of one store in a project: those with its name, and those that glance_store made of its type."""

    def __init__(self, store_name: str, volume_type: str | None) -> None:
        self._name = store_name
        self._type = volume_type
        #: What volumes call it, where that was asked for.
        self._type_name: str | None = None

    def entries(self, image_id: str, token: str, size: int | None) -> dict[str, str]:
        """The metadata of a new volume."""
        known = {} if size is None else {SIZE: str(size)}
        return {**id_entries(image_id), STORE: self._name, STATE: WRITING, TOKEN: token, **known}

    def holds(self, api: Api, volume: Volume) -> bool:
        """Whether it is of this store."""
        name = volume.metadata.get(STORE)
        return name == self._name if name is not None else self._is_of_type(api, volume)

    def _is_of_type(self, api: Api, volume: Volume) -> bool:
        if self._type in (None, volume.type):
            return True
        # The option may be the id of a type, of which volumes tell the name.
        if not is_volume_id(self._type):
            return False
        if self._type_name is None:
            self._type_name = api.type_name(str(self._type))
        return volume.type is not None and volume.type == self._type_name

    def image(self, api: Api, location: CinderLocation) -> Volume:
        """The volume at a location; raises NotFound unless it is an image of this store."""
        return self._image_in(api, api.volume(location.volume), location)

    def removable(self, api: Api, location: CinderLocation) -> Volume:
        """The same, or an image that nobody can read any more, since Cinder has its volume in error."""
        found = api.volume(location.volume)
        is_broken = found.status == "error" and is_image(replace(found, status="available"))
        return found if is_broken and self.holds(api, found) else self._image_in(api, found, location)

    def _image_in(self, api: Api, found: Volume, location: CinderLocation) -> Volume:
        if self.holds(api, found):
            if is_image(found):
                return found
            if _is_cinders(found):
                return replace(found, metadata={**found.metadata, SIZE: str(found.size << 30)})
        raise NotFound(f"{location}: that volume is no image of store {self._name}")

    def is_own(self, volume: Volume) -> bool:
        """Whether this store made it."""
        return volume.metadata.get(STORE) == self._name

    def of_image(self, api: Api, image_id: str) -> Iterator[Volume]:
        """All volumes that are, or are to become, the image with this id."""
        for volume in api.volumes({IMAGE_ID: id_entries(image_id)[IMAGE_ID]}):
            if self.holds(api, volume) and image_id_of(volume) == image_id:
                yield volume

    def unfinished(self, api: Api) -> Iterator[Volume]:
        """The volumes that this store made and that are no images, without a look at those that are.

        One that becomes pending in between may come twice.
        """
        for state in (WRITING, PENDING):
            yield from filter(self.is_own, api.volumes({STORE: self._name, STATE: state}))

    def refuse_duplicate(self, api: Api, image_id: str) -> None:
        """Raise Duplicate if there is such an image."""
        for volume in self.of_image(api, image_id):
            if is_image(volume):
                raise Duplicate(f"image {image_id!r} exists in store {self._name}")

    def publish(self, api: Api, volume: str, image_id: str, size: int, digests: Digests, *, again: bool) -> None:
        """Make the volume the image; raises Duplicate if another one is, or will be. May be repeated."""
        if again and api.volume(volume).metadata.get(STATE) == COMPLETE:
            return
        digest = f"{digests.algorithm}:{digests.multihash}"
        api.set_metadata(volume, {SIZE: str(size), STATE: PENDING, DIGEST: digest})
        try:
            self._await_others(api, volume, image_id)
        except Duplicate:
            # Who waits for this one would otherwise wait until it is detached and deleted, which may take minutes.
            with contextlib.suppress(Exception):
                api.set_metadata(volume, {STATE: WRITING})
            raise
        api.set_metadata(volume, {STATE: COMPLETE})

    def _await_others(self, api: Api, volume: str, image_id: str) -> None:
        end = time.monotonic() + _WITHDRAWAL
        while True:
            others = [each for each in self.of_image(api, image_id) if each.id != volume]
            pending = [each.id for each in others if _is_pending(each)]
            if any(map(is_image, others)) or any(each < volume for each in pending):
                raise Duplicate(f"image {image_id!r} exists in store {self._name}, or is being added by another client")
            if not pending:
                return
            if time.monotonic() > end:
                raise StoreError(
                    f"image {image_id!r}: another add of it stands still just before its end (volume {pending[0]}); gc "
                    "removes it if its process is dead"
                )
            time.sleep(_LOOK)


def _is_pending(volume: Volume) -> bool:
    return volume.metadata.get(STATE) == PENDING and volume.status not in LEAVING


def tags(volume: Volume) -> Mapping[str, str]:
    """What callers may see of the metadata: what others than storelib wrote."""
    ours = (IMAGE_ID, SIZE, STORE, STATE, TOKEN, DIGEST)
    return {key: value for key, value in volume.metadata.items() if not key.startswith(ours)}
