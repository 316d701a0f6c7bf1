# SPDX-License-Identifier: Apache-2.0
"""Taking data that is somewhere already for an image, in the background: inspected, compared, active, hashed.

Where the client, or the signature of the image, says what the data has to be, the image is active once that was found
true. Otherwise it is active as soon as its format is known, and hashed from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from storelib.api.context import Context
from storelib.api.db.records import Image, NewLocation, Status, Ticket
from storelib.api.errors import ApiError, BadRequest, OutcomeUnknown, UnsupportedMediaType, UploadLost
from storelib.api.messages import told
from storelib.api.service.core import LOG, Core
from storelib.api.service.data import Data
from storelib.api.service.foreign import Found, inspect_data
from storelib.api.service.signatures import Signature
from storelib.api.service.tasks import REFUSED, UNSAFE, Tasks
from storelib.api.service.workers import TookTooLong
from storelib.capabilities import Capability
from storelib.exceptions import Forbidden, Invalid, NotFound, OperationNotSupported, StoreError
from storelib.transfer.contract import MiB
from storelib.transfer.deadlines import pause
from storelib.transfer.digests import new_hasher

T = TypeVar("T")

#: Failures that are the same in a second attempt.
_DEFINITE = (NotFound, Forbidden, Invalid, OperationNotSupported)


class Hashing:
    """The work that ``Locations.add`` begins."""

    def __init__(self, core: Core, data: Data, tasks: Tasks) -> None:
        self._core = core
        self._data = data
        self._tasks = tasks

    def take(
        self,
        context: Context,
        image: Image,
        ticket: Ticket,
        found: Found,
        validation: Mapping[str, str],
        signature: Signature | None,
        task_id: str,
    ) -> None:
        """Make the importing image active with the data that was found, or queued again; ends the task of that."""
        secure: bool = self._core.options.do_secure_hash
        try:
            self._tasks.processing(task_id)
            with self._data.watching(ticket, "hashed"):
                size = self._again(lambda: self._inspect(context, image, found))
                if signature is not None or (secure and validation):
                    values = self._verified(context, image, found, validation if secure else {}, signature)
                else:
                    values = {}
            if not secure:
                values = dict(validation)
            hashed = bool(values) or not secure
            if not hashed:
                # Clients wait for the hash where they see what it will be.
                values = {"os_hash_algo": self._core.hashing_algorithm}
            self._activate(ticket, found, {"virtual_size": size, **values}, hashed=hashed)
        except BaseException as error:
            self._fail(ticket, "queued", error, found)
            if not isinstance(error, (ApiError, StoreError)):
                raise
            return
        if not hashed:
            self._hash(context, image, ticket, found)

    def resume(self, context: Context, ticket: Ticket, noted: Mapping[str, Any]) -> None:
        """``take`` for what was begun in another process, or a dead one was at."""
        core, url = self._core, noted["url"]
        image: Image | None = None
        try:
            image = core.repository.images.get(ticket.image_id)
            signature = core.signatures.of(context, image.properties)
            store = core.registry.resolve(url, context)
            found = Found(NewLocation(url, {"store": store.name}), store, noted["size"])
        except BaseException as error:
            self._fail(ticket, None if image is not None and image.status == "active" else "queued", error)
            if not isinstance(error, (ApiError, StoreError)):
                raise
            return
        if image.status == "active":
            self._hash(context, image, ticket, found)
        else:
            self.take(context, image, ticket, found, noted["validation"], signature, noted["task"])

    def _activate(self, ticket: Ticket, found: Found, values: Mapping[str, Any], *, hashed: bool) -> None:
        ended = self._tasks.ended(ticket.image_id, (), "") if hashed else {}
        updated = self._core.repository.uploads.finish(
            ticket.image_id,
            ticket.process_id,
            token=ticket.token,
            to="active",
            locations=[found.location],
            go_on=not hashed,
            size=found.size,
            most=self._core.quota.total,
            **values,
            **ended,
        )
        self._core.notify.image("activate", updated)
        self._core.tell_end(ended.get("task"))

    def _inspect(self, context: Context, image: Image, found: Found) -> int | None:
        return inspect_data(self._core, context, found, image.disk_format, image.container_format)

    def _hash(self, context: Context, image: Image, ticket: Ticket, found: Found) -> None:
        """The image is active: note the digests of its data, or that there are none because it cannot be read."""
        values: Mapping[str, Any] = {"os_hash_algo": None}
        message = ""
        try:
            try:
                with self._data.watching(ticket, "hashed"):
                    values = self._verified(context, image, found, {}, None)
            except (StoreError, TookTooLong) as error:
                LOG.warning("image %s: its data is not hashed: %s", image.id, error)
                message = f"the data could not be hashed: {told(error)}"
            ended = self._tasks.ended(image.id, (), message)
            self._core.repository.uploads.finish(
                image.id, ticket.process_id, token=ticket.token, to=None, **values, **ended
            )
            self._core.tell_end(ended.get("task"))
        except UnsupportedMediaType as error:
            # It is not what its beginning and its end promised: nobody but administrators gets it.
            self._fail(ticket, "deactivated", error)
        except BaseException as error:
            self._fail(ticket, None, error)
            if not isinstance(error, (ApiError, StoreError)):
                raise

    def _fail(self, ticket: Ticket, to: Status | None, error: BaseException, refused: Found | None = None) -> None:
        """End the task, then the work; ``refused`` is what the image does not get."""
        LOG.warning("image %s: its location is not taken or not hashed: %s", ticket.image_id, error)
        if isinstance(error, OutcomeUnknown) or not isinstance(error, Exception):
            self._data.undo_later(ticket)
            return
        if not isinstance(error, UploadLost):
            known = isinstance(error, (ApiError, StoreError))
            message = told(error) if known else "the server made a mistake"
            self._tasks.fail(ticket.image_id, message)
            if refused is not None and Capability.DELETE not in refused.store.capabilities:
                self._note_refused(ticket.image_id, refused.store.name)
        # Its owner may reactivate an image that an administrator has deactivated, but not this one.
        self._data.give_up(ticket, to, properties={UNSAFE: "true"} if to == "deactivated" else {})

    def _note_refused(self, image_id: str, store: str) -> None:
        """Clients expect a queued image to tell the store of data that it did not get and that nobody here deletes."""
        try:
            self._core.repository.images.set_properties(image_id, {REFUSED: store})
        except ApiError as error:
            LOG.info("image %s: which store has the data that it does not get is not noted: %s", image_id, error)

    def _verified(
        self,
        context: Context,
        image: Image,
        found: Found,
        validation: Mapping[str, str],
        signature: Signature | None,
    ) -> dict[str, str]:
        """Checksum and hash to record, none where the options say so.

        Raises BadRequest when the data is not what the client said, UnsupportedMediaType when not what the image says.
        """
        algorithm = validation.get("os_hash_algo", self._core.hashing_algorithm)
        names = {"md5", algorithm} if self._core.options.do_secure_hash else set[str]()
        digests = self._again(lambda: self._digests(context, image, found, names, signature))
        if signature is not None:
            signature.check()
        if not digests:
            return {}
        if validation and digests[algorithm] != validation["os_hash_value"]:
            raise BadRequest(f"the {algorithm} of the data is {digests[algorithm]}, not {validation['os_hash_value']}")
        if validation.get("checksum", digests["md5"]) != digests["md5"]:
            raise BadRequest(f"the md5 of the data is {digests['md5']}, not {validation['checksum']}")
        return {"checksum": digests["md5"], "os_hash_algo": algorithm, "os_hash_value": digests[algorithm]}

    def _digests(
        self, context: Context, image: Image, found: Found, names: set[str], signature: Signature | None
    ) -> dict[str, str]:
        hashers = {name: new_hasher(name) for name in names}
        updates: list[Callable[[bytes], object]] = [hasher.update for hasher in hashers.values()]
        if signature is not None:
            signature.begin()
            updates.append(signature.update)
        with found.store.get(found.location.uri, context=context).data as stream:
            if stream.size != found.size:
                raise BadRequest(f"the data has {stream.size} bytes, it had {found.size}")
            checked = self._data.inspected(image, stream)
            while chunk := checked.read(MiB):
                for update in updates:
                    update(chunk)
        return {name: hasher.hexdigest() for name, hasher in hashers.items()}

    def _again(self, function: Callable[[], T]) -> T:
        """What ``function`` returns, tried again as often as the options say."""
        tries = self._core.options.http_retries + 1
        for attempt in range(tries):
            try:
                return function()
            except _DEFINITE:
                raise
            except StoreError:
                if attempt == tries - 1:
                    raise
                pause(min(2**attempt, 10))
        raise AssertionError("unreachable")
