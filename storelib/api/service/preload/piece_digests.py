# SPDX-License-Identifier: Apache-2.0
"""PieceDigests: the digests of an image's pieces, as its data comes in or by reading it once later, in the background.

Reading is done under an upload of the image that changes nothing, so that one process of all is at it, another begins
again what a dead one was at, and a deletion ends it.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from storelib.api.context import Context, administrator
from storelib.api.db.records import Image, Ticket
from storelib.api.errors import ApiError, ImageNotFound, OutcomeUnknown, StatusConflict, UploadLost
from storelib.api.messages import told
from storelib.api.service.background import Background
from storelib.api.service.core import LOG, Core
from storelib.api.service.data import Data
from storelib.exceptions import DigestMismatch, StoreError
from storelib.preload.pieces import PieceHasher, Pieces
from storelib.transfer.contract import MiB
from storelib.transfer.digests import new_hasher

KIND = "preload-pieces"


class PieceDigests:
    """Has the pieces of images known."""

    def __init__(self, core: Core, data: Data, background: Background) -> None:
        self._core = core
        self._data = data
        self._background = background
        #: Called when nodes should ask at once: they were told of an image before its pieces were known.
        self.wake: Callable[[], None] = lambda: None
        background.handle(KIND, self._resume)

    def keep(self, image: Image, hasher: PieceHasher) -> None:
        """Keep what was computed of the data of an image that has just become active; never raises."""
        try:
            pieces = hasher.finish()
            # A server-side copy, or data that was linked, did not pass.
            if pieces.size == image.size:
                self._core.repository.pieces.put(image.id, pieces.size, pieces.layer)
        except ApiError as error:
            LOG.info("image %s: the digests of its pieces are computed when they are needed: %s", image.id, error)

    def begin(self, image_ids: Sequence[str]) -> None:
        """Have those of these images read whose pieces are not known, after this; raises ApiError.

        An image that is being copied at the moment is read when it is looked for again.
        """
        for image_id in image_ids:
            if self._core.repository.pieces.get_state(image_id) != "ready":
                self._begin(image_id)

    def _begin(self, image_id: str) -> None:
        try:
            image = self._core.repository.images.get(image_id)
            if not image.size:
                return
            begun, ticket = self._data.begin(image, from_=("active",), to=None, stores=())
        except (StatusConflict, ImageNotFound):
            return
        context = administrator()
        self._background.start(KIND, context, begun, ticket, {}, partial(self._resume, context, ticket, {}))

    def _resume(self, context: Context, ticket: Ticket, given: Mapping[str, Any]) -> None:
        """Read an image, keep the digests of its pieces and end the upload."""
        image_id, repository = ticket.image_id, self._core.repository
        try:
            try:
                image = repository.images.get(image_id)
                with self._data.watching(ticket, "read"):
                    pieces = self._read(context, image)
            except StoreError as error:
                LOG.warning("image %s: the digests of its pieces are not computed: %s", image_id, error)
                repository.pieces.fail(image_id, told(error))
            else:
                repository.pieces.put(image_id, pieces.size, pieces.layer)
                self.wake()
            repository.uploads.finish(image_id, ticket.process_id, to=None, token=ticket.token)
        except BaseException as error:
            if isinstance(error, OutcomeUnknown) or not isinstance(error, Exception):
                self._data.undo_later(ticket)
            else:
                LOG.warning("image %s: the digests of its pieces are not computed: %s", image_id, error)
                self._data.give_up(ticket, None)
            if not isinstance(error, (ApiError, UploadLost)):
                raise

    def _read(self, context: Context, image: Image) -> Pieces:
        """The digests of the pieces of an image that is what it should be; raises StoreError."""
        hasher = PieceHasher()
        whole = new_hasher(image.os_hash_algo) if image.os_hash_algo and image.os_hash_value else None
        with self._data.read(context, image).data as stream:
            while chunk := stream.read(MiB):
                hasher.update(chunk)
                if whole is not None:
                    whole.update(chunk)
        pieces = hasher.finish()
        right = whole is None or hmac.compare_digest(whole.hexdigest(), str(image.os_hash_value).lower())
        if pieces.size != image.size or not right:
            raise DigestMismatch(f"the data of image {image.id} is not what its digest says")
        return pieces
