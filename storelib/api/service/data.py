# SPDX-License-Identifier: Apache-2.0
"""The data of images: into stores and out of them.

The image's status says who may write: the change from queued to saving is won by one request, which also leaves a lease
in the database, so that another process cleans up after it whatever becomes of this process.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar

from storelib.api.context import Context, administrator
from storelib.api.db.records import Image, ImageLocation, NewImage, NewLocation, Status, TaskEnd, Ticket
from storelib.api.db.uploads import NOTHING
from storelib.api.errors import (
    ApiError,
    BadRequest,
    Gone,
    ImageNotFound,
    NotPermitted,
    OutcomeUnknown,
    ResourceNotFound,
    StatusConflict,
    StillDeleting,
    Unavailable,
    UploadLost,
)
from storelib.api.messages import told
from storelib.api.service.cache import Cache
from storelib.api.service.core import LOG, Core
from storelib.api.service.deletion import delete_leftovers, finish_if_deleting, is_unanswered, somewhere_in
from storelib.api.service.foreign import is_foreign, known_digest
from storelib.api.service.inspection import Body, inspected
from storelib.api.service.lease import Lease
from storelib.api.service.signatures import Signature
from storelib.api.service.tasks import staged_bytes
from storelib.api.service.workers import check_time
from storelib.driver import ImageData, Store, StoredImage
from storelib.exceptions import Duplicate as AlreadyThere
from storelib.exceptions import Forbidden as StoreForbidden
from storelib.exceptions import (
    IncompleteRead,
    OperationNotSupported,
    StoreError,
)
from storelib.exceptions import NotFound as NoData
from storelib.inspection.source import Guarded, Readable
from storelib.preload.pieces import PieceHasher
from storelib.transfer.contract import Digests, Progress
from storelib.transfer.deadlines import while_wanted
from storelib.transfer.upload import add

T = TypeVar("T")

#: Seconds between two looks at whether an image that data is written for is still there.
LOOK = 2.0


class Source(NamedTuple):
    """What is uploaded: ``length`` is the stream's, ``size`` what the client says; in bytes, None is unknown."""

    stream: Readable
    length: int | None = None
    size: int | None = None

    def agreed_size(self, reserved: int | None = None) -> int | None:
        """The size the image must have in the end, which may be ``reserved``; raises BadRequest when they differ."""
        said = reserved if self.size is None else self.size
        if said is not None and self.length is not None and said != self.length:
            raise BadRequest(f"the image is said to have {said} bytes, but the body has {self.length}")
        return self.length if said is None else said


class Download(NamedTuple):
    """An image and its bytes, None where it has none; ``offset`` is the first byte of a part, None for the whole."""

    image: Image
    data: ImageData | None
    offset: int | None


class Pieces(Protocol):
    """Keeps the digests of an image's pieces, which its nodes exchange."""

    def keep(self, image: Image, hasher: PieceHasher) -> None:
        """Keep those of an image that has become active; never raises."""


class _Both:
    """What an upload tells of its bytes: the signature's and the pieces' digests."""

    def __init__(self, first: Signature, second: PieceHasher) -> None:
        self._first, self._second = first, second

    def update(self, data: bytes, /) -> None:
        self._first.update(data)
        self._second.update(data)


class Data:
    """Upload and download the data of images."""

    def __init__(self, core: Core, lease: Lease) -> None:
        self._core = core
        self._lease = lease
        # What an upload could not remove where it failed, until its end is recorded, and this with it.
        self._left: dict[Ticket, list[NewLocation]] = {}
        #: Asked for downloads before the stores are.
        self.cache: Cache | None = None
        #: What keeps the digests of the pieces of what is uploaded; None: they are not wanted.
        self.pieces: Pieces | None = None

    # -- in -------------------------------------------------------------------------------------------------------

    def upload(
        self,
        context: Context,
        image_id: str,
        source: Source,
        store: str | None = None,
        *,
        failed: Status = "queued",
    ) -> Image:
        """Store an image's data and make the image active; after a failure it is ``failed`` (v1: killed).

        Raises Conflict (not queued, or another request is uploading), BadRequest (formats not set, wrong length, client
        gone), LimitExceeded, QuotaExceeded, UnsupportedMediaType, Gone (deleted meanwhile), StoreError.
        """
        core = self._core
        core.writable(context)
        image = core.get_authorized(context, image_id, "upload_image")
        target = core.store(store)
        if image.status != "queued":
            raise StatusConflict(
                f"image {image_id} is {image.status}, data is taken by queued images", status=image.status
            )
        try:
            check_formats(image)
            size = source.agreed_size(image.size)
            room = core.quota.room(image.owner, size, staged=staged_bytes(image))
            core.limits.check_data(image.owner, size)
            signature = core.signatures.of(context, image.properties)
        except ApiError:
            if failed != "queued":
                _, ticket = self.begin(image, from_=("queued",), to="saving", stores=())
                self.give_up(ticket, failed)
            raise
        hasher = None if self.pieces is None else PieceHasher()
        verifier = _Both(signature, hasher) if signature and hasher else signature or hasher
        begun, ticket = self.begin(image, from_=("queued",), to="saving", stores=[target.name])
        stored: StoredImage | None = None
        try:
            # They may have been changed before it was begun, and cannot be any more.
            check_formats(begun)
            # This one counts already, so that of uploads that begin at once none slips through.
            core.limits.check_uploading(image.owner)
            core.notify.image("prepare", image)
            body = Body(source.stream, source.length, room)
            checked = self.inspected(begun, body)
            with self.watching(ticket) as progress, core.under_way.one_of("uploads"):
                stored = add(
                    target,
                    image_id,
                    checked,
                    size,
                    hashing_algo=core.hashing_algorithm,
                    context=context,
                    verifier=verifier,
                    progress=progress,
                    check=lambda digests: self._check(image, checked, signature, digests),
                )
            self.check_quota(image, [stored])
            virtual_size = checked.virtual_size
        except BaseException as error:
            if stored is not None:
                self.discard(context, ticket, [stored])
            elif is_unanswered(error):
                self.may_have(ticket, [target.name])
            # What the store has under this id is not this upload's fault.
            self.give_up(ticket, "queued" if isinstance(error, AlreadyThere) else failed)
            core.notify.error("upload", f"image {image_id}: {error}")
            raise
        try:
            recorded = self.record(context, image, ticket, [stored], virtual_size)
        except (Gone, Unavailable):
            # It is over already, or is not known to be.
            raise
        except ApiError as error:
            self.give_up(ticket, failed)
            core.notify.error("upload", f"image {image_id}: {error}")
            raise
        if self.pieces is not None and hasher is not None:
            self.pieces.keep(recorded, hasher)
        return recorded

    def _check(self, image: Image, checked: Guarded, signature: Signature | None, digests: Digests) -> None:
        """Raise BadRequest or UnsupportedMediaType for data that may not be the image's, before it can be seen."""
        checked.look()
        if image.checksum is not None and image.checksum.lower() != digests.checksum:
            raise BadRequest(f"the md5 of the data is {digests.checksum}, not {image.checksum}")
        if signature is not None:
            signature.check()

    def check_quota(self, image: Image, stored: Sequence[StoredImage]) -> None:
        """Raise QuotaExceeded if other data of the owner has taken the room meanwhile; ``record`` is sure of it."""
        staged = staged_bytes(image) if image.status == "importing" else 0
        self._core.quota.room(image.owner, stored[0].size, len(stored), staged)

    def begin(
        self, image: Image, *, from_: Sequence[Status], to: Status | None, stores: Sequence[str]
    ) -> tuple[Image, Ticket]:
        """Win the right to write the image's data.

        Raises Conflict if another request did, or one of the ``stores`` still has to delete some.
        """
        try:
            return self._begin(image.id, from_, to, stores)
        except UploadLost:  # the lease ran out meanwhile; a new one begins with the next beat
            self._lease.beat()
        except StillDeleting:
            delete_leftovers(self._core, administrator(), image.id, stores)
        return self._begin(image.id, from_, to, stores)

    def _begin(
        self, image_id: str, from_: Sequence[Status], to: Status | None, stores: Sequence[str]
    ) -> tuple[Image, Ticket]:
        ticket = self._lease.ticket(image_id)
        try:
            begun = self._core.repository.uploads.begin(
                image_id,
                ticket.process_id,
                from_=from_,
                to=to,
                stores=stores,
                token=ticket.token,
                stores_of=self._core.possible_stores,
            )
        except ApiError as error:
            if isinstance(error, OutcomeUnknown):
                self._lease.undo_later(ticket)
            raise
        except BaseException:
            # It may have been recorded; if not, there is nothing of this token to undo.
            self._lease.undo_later(ticket)
            raise
        return begun, ticket

    def inspected(self, image: Image, body: Readable) -> Guarded:
        """``body`` with its format checked."""
        return inspected(self._core.options, image.disk_format or "raw", image.container_format, body)

    def record(
        self,
        context: Context,
        image: Image,
        ticket: Ticket,
        stored: Sequence[StoredImage],
        virtual_size: int | None,
        properties: Mapping[str, str | None] = NOTHING,
        task: TaskEnd | None = None,
        formats: Mapping[str, Any] = MappingProxyType({}),
    ) -> Image:
        """Make the image active with this data, which is of other formats than it was if ``formats`` says so.

        Raises QuotaExceeded if other data of the owner has taken the room meanwhile, BadRequest for a value that the
        database refuses: without the data, and the caller has to give the upload up.
        If it is no longer ours, remove the data and raise Gone where the image was deleted, Unavailable where not.
        """
        first = stored[0]
        if virtual_size is None and image.disk_format == "raw" and image.container_format == "bare":
            virtual_size = first.size
        try:
            updated = self._core.repository.uploads.finish(
                image.id,
                ticket.process_id,
                token=ticket.token,
                to="active",
                locations=[NewLocation(item.uri, item.metadata) for item in stored],
                left=self.left_by(ticket),
                properties=properties,
                task=task,
                size=first.size,
                virtual_size=virtual_size,
                checksum=first.checksum,
                os_hash_algo=self._core.hashing_algorithm,
                os_hash_value=first.multihash,
                most=self._core.quota.total,
                **formats,
            )
        except (UploadLost, ImageNotFound, StatusConflict) as error:
            self.discard(context, ticket, stored)
            self.forget(ticket)
            raise self.lost(image.id, "stored") from error
        except Unavailable as error:
            # After OutcomeUnknown the image may be active with this data: only the lease, which looks later, undoes it.
            if not isinstance(error, OutcomeUnknown):
                self.discard(context, ticket, stored)
            self.undo_later(ticket)
            raise
        except ApiError:
            # The database does not take it, so nothing was changed.
            self.discard(context, ticket, stored)
            raise
        except BaseException:
            self.undo_later(ticket)
            raise
        self.noted(ticket)
        self._core.refresh_acls(context, updated)
        self._core.notify.image("upload", updated)
        self._core.notify.image("activate", updated)
        self._core.tell_end(task)
        return updated

    def _remove(self, context: Context, ticket: Ticket, stored: Sequence[StoredImage]) -> None:
        for item in stored:
            name = item.metadata["store"]
            try:
                self._core.registry[name].delete(item.uri, context)
            except NoData:
                pass
            except StoreError as error:
                LOG.warning(
                    "image %s: data it will not have is deleted from store %s later: %s", ticket.image_id, name, error
                )
                self._left.setdefault(ticket, []).append(NewLocation(item.uri, item.metadata))

    def may_have(self, ticket: Ticket, stores: Iterable[str]) -> None:
        """These stores may have the data although they failed: that is looked for later, and deleted."""
        left = self._left.setdefault(ticket, [])
        known = {location.metadata.get("store") for location in left if not location.uri}
        left += (somewhere_in(name) for name in stores if name not in known)

    def left_by(self, ticket: Ticket) -> Sequence[NewLocation]:
        """What is to be noted with the end of an upload."""
        return self._left.get(ticket, ())

    def noted(self, ticket: Ticket) -> None:
        """It is noted, with the end of the upload."""
        self._left.pop(ticket, None)

    def lost(self, image_id: str, doing: str) -> ApiError:
        """Why an upload is not the image's any more: Gone where the image was deleted, or else Unavailable."""
        try:
            deleted = self._core.repository.images.get(image_id).status in ("pending_delete", "killed")
        except ImageNotFound:
            deleted = True
        except ApiError as error:
            return error
        if deleted:
            return Gone(f"image {image_id} was deleted while its data was being {doing}")
        return Unavailable(
            f"this server did not answer for too long while the data of image {image_id} was being {doing}, and "
            "another one gave the upload up; send it again if the image has no data"
        )

    @contextlib.contextmanager
    def watching(self, ticket: Ticket, doing: str = "stored") -> Iterator[Progress]:
        """Within, what waits for a back end ends like a transfer that has the ``watch`` which is yielded."""
        progress = self.watch(ticket, doing)
        with while_wanted(lambda: progress(0, None)):
            yield progress

    def watch(self, ticket: Ticket, doing: str = "stored") -> Progress:
        """A transfer's progress callback that ends it soon when it is not wanted any more.

        Others gave the upload up: a process that was frozen would otherwise come back and win the store's id from an
        upload that began since. Or the image was deleted: both raise what ``lost`` says. Or the work took too long.
        """
        looked = time.monotonic()

        def check(done: int, total: int | None) -> None:
            nonlocal looked
            check_time()
            now = time.monotonic()
            due = now - looked > LOOK
            looked = now if due else looked
            if not self._lease.keeps(ticket) or (due and self._is_over(ticket)):
                raise self.lost(ticket.image_id, doing)

        return check

    def _is_over(self, ticket: Ticket) -> bool:
        try:
            return not self._core.repository.uploads.is_wanted(ticket)
        except ApiError as error:
            LOG.info("image %s: whether its data is still wanted is not known now: %s", ticket.image_id, error)
            return False

    def discard(self, context: Context, ticket: Ticket, stored: Sequence[StoredImage]) -> None:
        """Remove what an upload stored that failed; never raises.

        As long as it is noted, no other upload writes to this place. If it is not, the process that took this one for
        dead has removed the data, and another upload may have used the same place since: only a claim tells.
        """
        if self.holds(ticket):
            self._remove(context, ticket, stored)
        else:
            # Also when that is not known: then this is tried again, until it is.
            self._lease.remove_lost(ticket.image_id, stored)

    def holds(self, ticket: Ticket) -> bool:
        """Whether this upload surely is the one that is noted for its image."""
        try:
            upload = self._core.repository.uploads.get(ticket.image_id)
        except ApiError:
            return False
        return upload is not None and upload.ticket == ticket

    def give_up(self, ticket: Ticket, to: Status | None, **ended: Any) -> None:
        """End an upload that failed, and its task with it; never raises, since something else is being raised."""
        image_id = ticket.image_id
        try:
            self._core.repository.uploads.finish(
                image_id, ticket.process_id, to=to, token=ticket.token, left=self.left_by(ticket), **ended
            )
            self.noted(ticket)
            self._core.tell_end(ended.get("task"))
        except (UploadLost, ImageNotFound, StatusConflict):
            finish_if_deleting(self._core, image_id)
            self.forget(ticket)
        except ApiError as error:
            LOG.warning("image %s: that its upload failed cannot be recorded yet: %s", image_id, error)
            self.undo_later(ticket)
        except BaseException:
            self.undo_later(ticket)
            raise

    def undo_later(self, ticket: Ticket) -> None:
        """Whether this upload is recorded is not known: the lease looks later, and undoes it if not."""
        self._left.pop(ticket, None)
        self._lease.undo_later(ticket)

    def forget(self, ticket: Ticket) -> None:
        """The image is gone and so is the data of this upload; never raises, others would clean up after us."""
        if ticket in self._left:
            # Not all of the data is.
            self.undo_later(ticket)
            return
        try:
            self._core.repository.uploads.forget(ticket.image_id, ticket.process_id, token=ticket.token)
        except ApiError as error:
            LOG.warning("image %s: that its upload is over cannot be recorded: %s", ticket.image_id, error)

    # -- out ------------------------------------------------------------------------------------------------------

    def download(
        self,
        context: Context,
        image_id: str,
        part: Callable[[Image], tuple[int, int] | None] = lambda image: None,
        preferred: Sequence[str] = (),
    ) -> Download:
        """The bytes of an image for a client.

        ``part`` returns the offset and length that the client asks for, in bytes, None for everything; it is called
        for images that have data only. ``preferred`` are the stores to ask first.

        Raises NotPermitted (policy, a deactivated image), ResourceNotFound for an image that is being deleted, and
        what ``part`` and ``read`` raise.
        """
        core = self._core
        image = core.get_authorized(context, image_id, "download_image")
        if image.status == "pending_delete":
            # It had data: clients would take none for all there is, and make an empty file of it.
            raise ResourceNotFound(f"image {image_id} is being deleted")
        if image.status == "deactivated" and not context.is_admin:
            raise NotPermitted(f"image {image_id} is deactivated and cannot be downloaded")
        if preferred:
            core.require(context, "download_from_store", image)
            for name in preferred:
                core.store(name)
        if not image.locations or image.size is None:
            return Download(image, None, None)
        asked = part(image)
        offset, length = asked or (0, None)
        # Who chooses the store wants to know what is there.
        cached = self.cache.open(context, image, asked) if self.cache and not preferred else None
        data = cached or self.read(context, image, offset, length, preferred)
        core.notify.image("send", image, bytes_sent=data.size, destination_ip=None)
        return Download(image, data, None if asked is None else offset)

    def for_node(self, context: Context, image_id: str, part: Callable[[Image], tuple[int, int] | None]) -> Download:
        """The bytes of an active image for a node that may have them, which reads it in a thousand parts; as
        ``download``, told to nobody. Raises ImageNotFound for an image that is not active.
        """
        image = self._core.repository.images.get(image_id)
        if image.status != "active" or not image.locations or image.size is None:
            raise ImageNotFound(f"there is no image {image_id}")
        asked = part(image)
        offset, length = asked or (0, None)
        cached = self.cache.open(context, image, asked) if self.cache else None
        return Download(image, cached or self.read(context, image, offset, length), None if asked is None else offset)

    def read(
        self,
        context: Context,
        image: Image,
        offset: int = 0,
        length: int | None = None,
        preferred: Sequence[str] = (),
    ) -> ImageData:
        """The bytes of an image from ``offset`` on. The stores are asked by weight until one has them all.

        All of what others than the store may have replaced is compared with the digest that is known, which ends the
        stream with DigestMismatch.

        Raises ResourceNotFound if none has the data, Unavailable if one that may have it does not answer or has too
        little, BadRequest if the store reads whole images only.
        """
        wanted = (image.size or 0) - offset if length is None else length
        whole = not offset and length is None

        def ask(store: Store[Any], location: ImageLocation) -> ImageData:
            digest = known_digest(image) if whole and is_foreign(store, location, image) else None
            found = store.get(location.uri, offset, length, context, verify=digest)
            if found.size != wanted:
                found.data.close()
                raise IncompleteRead(f"store {store.name} has {found.size} of the {wanted} bytes that were asked for")
            return found

        while True:
            try:
                return self._first_of(context, image, ask, preferred)
            except ResourceNotFound:
                # It may have gone from one store to another since the image was read.
                found = self._core.repository.images.get(image.id)
                if not found.locations or found.locations == image.locations:
                    raise
                image = found

    def _first_of(
        self,
        context: Context,
        image: Image,
        ask: Callable[[Store[Any], ImageLocation], T],
        preferred: Sequence[str] = (),
    ) -> T:
        """What ``ask`` returns for the first store that has the data."""
        core = self._core
        trouble: Exception | None = None
        locations = core.by_weight(image.locations)
        if preferred:
            rank = {name: number for number, name in enumerate(preferred)}
            locations.sort(key=lambda location: rank.get(str(location.metadata.get("store")), len(rank)))
        for location in locations:
            try:
                return ask(core.store_of(location, context), location)
            except NoData as error:
                trouble = trouble or error
            except StoreError as error:
                LOG.warning("image %s: its data at %r cannot be read: %s", image.id, location, error)
                if trouble is None or isinstance(trouble, NoData):
                    trouble = error
        if trouble is None or isinstance(trouble, NoData):
            raise ResourceNotFound(f"the data of image {image.id} is not there") from trouble
        if isinstance(trouble, OperationNotSupported):
            raise BadRequest(f"the data of image {image.id} cannot be read like this: {told(trouble)}") from trouble
        if isinstance(trouble, StoreForbidden):
            raise NotPermitted(f"the store does not let the data of image {image.id} be read") from trouble
        raise Unavailable(f"the data of image {image.id} cannot be read now") from trouble


def check_formats(image: Image | NewImage) -> None:
    """Raise BadRequest unless both formats are set, which data needs."""
    if image.disk_format is None or image.container_format is None:
        raise BadRequest("disk_format and container_format must be set before the image gets data")
