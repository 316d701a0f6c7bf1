# SPDX-License-Identifier: Apache-2.0
"""An import as a client asks for it, and as it is once it has begun."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from storelib.api.context import Context
from storelib.api.db.records import Image, Ticket
from storelib.api.service.locations import LONGEST_URI
from storelib.api.service.remote_images import RemoteImage
from storelib.api.service.signatures import Signature
from storelib.driver import Store
from storelib.uris import redact


class Request(NamedTuple):
    """What a client asks for. ``stores`` None: the default one."""

    method: str
    uri: str | None = None
    stores: Sequence[str] | None = None
    all_stores: bool = False
    all_must_succeed: bool = True
    #: For glance-download.
    remote: RemoteImage | None = None
    #: Type and input of the task; an ``import`` made the image, which is deleted if it fails.
    kind: str = "api_image_import"
    given: Mapping[str, Any] | None = None

    def plain(self) -> dict[str, Any]:
        """The request in JSON, as far as the work needs it, with all that is in it."""
        return self._replace(given=None)._asdict()

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Request:
        """The request that ``plain`` was made of."""
        remote = plain["remote"]
        return cls(**{**plain, "remote": None if remote is None else RemoteImage(*remote)})

    def shown(self) -> dict[str, Any]:
        """The request as a task shows it, in the words of the API, without credentials."""
        method = {"name": self.method} | ({"uri": redact(self.uri)[:LONGEST_URI]} if self.uri else {})
        if self.remote is not None:
            region, image_id, interface = self.remote
            method |= {"glance_region": region, "glance_image_id": image_id, "glance_service_interface": interface}
        shown: dict[str, Any] = {"method": method, "all_stores_must_succeed": self.all_must_succeed}
        if self.stores:
            shown["stores"] = list(self.stores)
        return shown | ({"all_stores": True} if self.all_stores else {})


@dataclass(frozen=True)
class Job:
    """One import that was begun; ``left_out`` are stores that were asked for and are not tried."""

    context: Context
    image: Image
    ticket: Ticket
    task_id: str
    stores: Sequence[Store[Any]]
    all_must_succeed: bool
    signature: Signature | None
    request: Request
    left_out: Sequence[str] = ()

    @property
    def names(self) -> list[str]:
        """All stores that were asked for."""
        return [*(store.name for store in self.stores), *self.left_out]
