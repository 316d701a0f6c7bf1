# SPDX-License-Identifier: Apache-2.0
"""Calls of python-cinderclient that are made again where Cinder says so; for drivers written for glance_store.

storelib's own cinder driver has no use for it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import tenacity
from cinderclient import exceptions as cinder_exception
from cinderclient.apiclient import exceptions as apiclient_exception
from keystoneauth1 import exceptions as keystone_exc

from storelib.compat.glance_store import exceptions

LOG = logging.getLogger(__name__)

#: What Cinder says of a volume that is on its way to a state in which it can be attached.
_NOT_YET = ("status must be available or downloading to reserve", "or in-use or downloading to reserve")
#: Attempts to attach where nothing is configured, and to detach.
_ATTEMPTS = 5
_LONGEST_WAIT = 10.0


def handle_exceptions(method: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a method: that there is no such volume, or no more may be had, becomes BackendException."""

    @functools.wraps(method)
    def wrapper(self: Any, ctx: Any, volume_id: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, ctx, volume_id, *args, **kwargs)
        except (keystone_exc.NotFound, cinder_exception.NotFound, cinder_exception.OverLimit) as error:
            raise exceptions.BackendException(str(error)) from error

    return wrapper


def _is_not_yet(error: BaseException) -> bool:
    said = str(error).lower()
    return isinstance(error, cinder_exception.BadRequest) and any(words in said for words in _NOT_YET)


def _is_internal(error: BaseException) -> bool:
    return isinstance(error, apiclient_exception.InternalServerError)


def _again(when: Callable[[BaseException], bool], attempts: int, wait: float) -> tenacity.Retrying:
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(when),
        stop=tenacity.stop_after_attempt(attempts),
        wait=tenacity.wait_exponential(multiplier=wait, max=_LONGEST_WAIT) if wait else tenacity.wait_none(),
        reraise=True,
    )


@contextlib.contextmanager
def _telling(what: str, subject: str) -> Iterator[None]:
    """Log what fails; a volume that cannot be attached yet is no failure."""
    try:
        yield
    except cinder_exception.ClientException as error:
        if not _is_not_yet(error):
            LOG.error("%s of %s failed: %s", what, subject, error)
        raise


class API:
    """Volumes and attachments. ``client`` is cinderclient's, of microversion 3.54 for attachments."""

    def __init__(self, config: Any = None) -> None:
        self.config = config
        self.attachment_create_retry_attempts = getattr(config, "cinder_attachment_retry_attempts", _ATTEMPTS)

    @handle_exceptions
    def create(self, client: Any, size: int, name: str, volume_type: Any = None, metadata: Any = None) -> Any:
        """A new volume of ``size`` GiB."""
        return client.volumes.create(size, name=name, volume_type=volume_type, metadata=metadata)

    @handle_exceptions
    def get(self, client: Any, volume_id: str) -> Any:
        """What Cinder knows of a volume."""
        return client.volumes.get(volume_id)

    def delete(self, client: Any, volume_id: str) -> None:
        """Remove a volume."""
        client.volumes.delete(volume_id)

    @handle_exceptions
    def attachment_create(
        self, client: Any, volume_id: str, connector: Any = None, mountpoint: str | None = None, mode: Any = None
    ) -> Any:
        """Attach a volume, to what ``connector`` describes; waits for one that is still on its way to be available."""
        if connector and mountpoint:
            connector.setdefault("mountpoint", mountpoint)
        with _telling("attaching", volume_id):
            attempts = _again(_is_not_yet, self.attachment_create_retry_attempts, 1.0)
            return attempts(client.attachments.create, volume_id, connector, mode=mode)

    @handle_exceptions
    def attachment_get(self, client: Any, attachment_id: str) -> Any:
        """What Cinder knows of an attachment."""
        with _telling("looking at attachment", attachment_id):
            return client.attachments.show(attachment_id)

    @handle_exceptions
    def attachment_update(self, client: Any, attachment_id: str, connector: Any, mountpoint: str | None = None) -> Any:
        """Say which host it is that attaches."""
        if mountpoint:
            connector.setdefault("mountpoint", mountpoint)
        with _telling("changing attachment", attachment_id):
            return client.attachments.update(attachment_id, connector)

    @handle_exceptions
    def attachment_complete(self, client: Any, attachment_id: str) -> Any:
        """Say that the volume is attached."""
        with _telling("completing attachment", attachment_id):
            client.attachments.complete(attachment_id)

    @handle_exceptions
    def attachment_delete(self, client: Any, attachment_id: str) -> None:
        """Detach; asked again where Cinder itself failed."""
        with _telling("ending attachment", attachment_id):
            _again(_is_internal, _ATTEMPTS, 0.0)(client.attachments.delete, attachment_id)

    @handle_exceptions
    def extend_volume(self, client: Any, volume: Any, new_size: int) -> None:
        """Grow a volume to ``new_size`` GiB."""
        with _telling("growing", str(getattr(volume, "id", volume))):
            client.volumes.extend(volume, new_size)
