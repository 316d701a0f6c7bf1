# SPDX-License-Identifier: Apache-2.0
"""Service: what all transfers of one store share: who asks Cinder, what is attached, which volumes are the store's."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from storelib.drivers.cinder.api import Api, Sessions, Volume, has_service_user
from storelib.drivers.cinder.attachments import Disks, Holds, SharedAttachments, default_directory
from storelib.drivers.cinder.location import CinderLocation
from storelib.drivers.cinder.publication import Shelf, is_image
from storelib.exceptions import NotFound
from storelib.transfer.contract import Context, Options
from storelib.transfer.forking import forget_in_child


@dataclass(frozen=True)
class User:
    """Requests to Cinder as one user, and what is attached by them."""

    api: Api
    holds: Holds
    attachments: SharedAttachments


class Service:
    """Safe to use from many threads; making one opens no connection. Raises BadStoreConfiguration."""

    def __init__(self, name: str, conf: Options) -> None:
        self.name = name
        self.conf = conf
        self.shelf = Shelf(name, conf.cinder_volume_type)
        self.disks = Disks(conf, name)
        #: There is a user of the store's own; without, each request must bring its token.
        self.has_user = has_service_user(name, conf)
        self._sessions = Sessions(name, conf)
        # The engine gives up a call a little later, so that who waits can say what for.
        self._timeout = min(conf.cinder_state_transition_timeout, 0.9 * conf.transfer_timeout)
        self._lock = threading.Lock()
        self._user: User | None = None
        forget_in_child(self)

    def user(self, context: Context | None) -> User:
        """The store's own user, or that of a request; raises Forbidden for a request without a token."""
        if not self.has_user:
            return self._new_user(lambda: self._sessions.of_request(context))
        with self._lock:
            if self._user is None:
                self._user = self._new_user(self._sessions.of_service)
            return self._user

    def _new_user(self, client: Callable[[], Any]) -> User:
        api = Api(client(), self._timeout)
        # The same token means nothing in another cloud.
        cloud = hashlib.sha256(api.endpoint.encode()).hexdigest()[:16]
        holds = Holds(os.path.join(self.conf.cinder_state_path or default_directory(), cloud))
        return User(api, holds, SharedAttachments(api, holds))

    def forget_parent(self) -> None:
        """In a forked child: connections are the parent's."""
        self._lock = threading.Lock()
        self._user = None

    def location(self, volume: str) -> CinderLocation:
        """The URI of a volume of this store."""
        return CinderLocation(volume, self.name)

    def image(self, api: Api, location: CinderLocation) -> Volume:
        """The volume at a location; raises NotFound unless it is an image of this store."""
        found = api.volume(location.volume)
        if not is_image(found) or not self.shelf.holds(found):
            raise NotFound(f"{location}: that volume is no image of store {self.name}")
        return found
