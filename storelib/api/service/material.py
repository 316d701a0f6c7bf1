# SPDX-License-Identifier: Apache-2.0
"""Material: the data of an import on its way from its source through plug-ins into stores, and what is known of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from storelib.api.context import Context
from storelib.api.db.records import Image
from storelib.api.errors import BadRequest, Unavailable
from storelib.api.service.inspection import Body
from storelib.driver import ImageData
from storelib.inspection.source import Readable
from storelib.transfer.contract import Digests, MiB


@dataclass
class Material:
    """What is imported, as far as it has come.

    ``image`` has the formats that the data has now. ``stream`` gives the data once, ``size`` bytes or, where that is
    None, up to its end; ``path`` is the file that it is in, to be read only, if it is in one. ``properties`` are set in
    the image (None: removed) when the import has succeeded. ``expected`` is what the source says of the data's digests,
    ``known`` are those that were computed when it was staged. ``cleanup`` is left when the import is over.

    ``room`` are the bytes that the image may have. ``check`` raises when the import is not wanted any more: long work
    calls it every second. ``workspace`` makes a directory that goes with the import.
    """

    context: Context
    image: Image
    stream: Readable
    size: int | None
    path: str | None = None
    properties: dict[str, str | None] = field(default_factory=dict)
    expected: Digests | None = None
    known: Digests | None = None
    room: int = 0
    check: Callable[[], object] = lambda: None
    workspace: Callable[[], str] = lambda: _no_workspace()
    task_id: str = ""
    request: Mapping[str, Any] = field(default_factory=dict)
    stores: Sequence[str] = ()
    cleanup: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def set_formats(self, disk_format: str, container_format: str) -> None:
        """Say of what formats the data is from here on."""
        self.image = replace(self.image, disk_format=disk_format, container_format=container_format)

    def replace_data(self, stream: Readable, size: int | None = None) -> None:
        """Go on with other data, of which nobody has told a digest."""
        self.stream, self.size, self.path, self.expected, self.known = stream, size, None, None, None

    @property
    def is_as_staged(self) -> bool:
        """Whether the data is that of a file of which the digests are known."""
        return self.path is not None and self.known is not None

    def replace_by_file(self, path: str) -> None:
        """Go on with the data in a file, which is closed and not removed when the import is over."""
        file = self.cleanup.enter_context(open(path, "rb"))  # noqa: SIM115
        self.replace_data(file, os.fstat(file.fileno()).st_size)

    def own_file(self) -> str:
        """The data in a file that may be changed; raises what reading it raises, LimitExceeded."""
        path = os.path.join(self.workspace(), "data")
        body = Body(self.stream, self.size, self.room)
        with open(path, "xb") as file:
            while chunk := body.read(MiB):
                self.check()
                file.write(chunk)
        return path

    def verify(self, digests: Digests) -> None:
        """Raise BadRequest unless the data is what its source says."""
        expected = self.expected
        if expected is None:
            return
        if expected.checksum and digests.checksum and expected.checksum != digests.checksum:
            raise BadRequest("the md5 of the data is not the one that its source tells")
        if expected.multihash and expected.algorithm == digests.algorithm and expected.multihash != digests.multihash:
            raise BadRequest(f"the {digests.algorithm} of the data is not the one that its source tells")

    @property
    def formats(self) -> Mapping[str, str]:
        """The formats to be recorded with the data."""
        return {"disk_format": self.image.disk_format or "", "container_format": self.image.container_format or ""}


def _no_workspace() -> str:
    raise Unavailable("there is no staging_dir to work in")


def material_of(context: Context, image: Image, found: ImageData) -> Material:
    """What a store has found, to be closed with the material."""
    material = Material(context, image, found.data, found.size)
    material.cleanup.callback(found.data.close)
    return material


#: Opens what is imported; raises ApiError, StoreError.
Opener = Callable[[Image], Material]
#: A step between the source and the stores: looks at the material and changes it. Raises ApiError, StoreError.
Plugin = Callable[[Material], Any]
