# SPDX-License-Identifier: Apache-2.0
"""Notifications: what happened to images, sent to the message bus. Off unless configured."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from oslo_config import cfg

from storelib.api.db.records import Image, Member, Task
from storelib.api.schemas import RESERVED_PREFIX
from storelib.messaging import oslo_messaging

LOG = logging.getLogger(__name__)

#: ``send(priority, event, payload)``.
Send = Callable[[str, str, Mapping[str, Any]], object]


class Notifier:
    """Sends events by ``send``, None sends nothing. A bus that does not answer never fails a request."""

    def __init__(self, send: Send | None = None, disabled: Collection[str] = ()) -> None:
        self._send = send
        self._disabled = frozenset(disabled)

    @property
    def active(self) -> bool:
        """Whether anything is sent at all."""
        return self._send is not None

    def image(self, event: str, image: Image, **more: Any) -> None:
        """Tell of an image; ``event`` is ``create``, ``upload`` and so on."""
        if self._send is not None:
            self._tell(f"image.{event}", image_payload(image) | more)

    def member(self, event: str, member: Member) -> None:
        """Tell of a membership."""
        if self._send is not None:
            self._tell(f"image.member.{event}", member_payload(member))

    def task(self, event: str, task: Task) -> None:
        """Tell of a task; ``event`` is ``create``, ``processing``, ``success``, ``failure`` or ``run``."""
        if self._send is not None:
            self._tell(f"task.{event}", task_payload(task))

    def metadef(self, kind: str, event: str, payload: Mapping[str, Any]) -> None:
        """Tell of a metadata definition; ``kind`` is ``namespace``, ``object`` and so on."""
        if self._send is not None:
            self._tell(f"metadef_{kind}.{event}", payload)

    def preload(self, event: str, payload: Mapping[str, Any]) -> None:
        """Tell of an image that is distributed to nodes; ``event`` is ``create``, ``ready`` and so on."""
        if self._send is not None:
            self._tell(f"preload.{event}", payload)

    def error(self, event: str, message: str) -> None:
        """Tell what went wrong."""
        if self._send is not None:
            self._tell(f"image.{event}", message, "error")

    def _tell(self, event: str, payload: Any, priority: str = "info") -> None:
        words = event.split(".")
        if not self._disabled.isdisjoint(".".join(words[:count]) for count in range(1, len(words) + 1)):
            return
        try:
            assert self._send is not None  # noqa: S101
            self._send(priority, event, payload)
        except Exception:
            LOG.exception("notification %s was not sent", event)


def notifier_from(conf: cfg.ConfigOpts) -> Notifier:
    """What ``[api] notifications`` asks for; raises MissingDependency."""
    if not conf.api.notifications:
        return Notifier()
    library = oslo_messaging("[api] notifications")
    transport = library.get_notification_transport(conf)
    target = library.Notifier(transport, publisher_id=conf.api.notification_publisher_id)

    def send(priority: str, event: str, payload: Mapping[str, Any]) -> None:
        getattr(target, priority)({}, event, payload)

    return Notifier(send, conf.api.disabled_notifications)


def image_payload(image: Image) -> dict[str, Any]:
    """An image as notifications tell it; never where its data is."""
    names = (
        "id name status min_disk min_ram protected checksum owner disk_format container_format size virtual_size "
        "visibility os_hidden os_hash_algo os_hash_value deleted"
    )
    payload = {name: getattr(image, name) for name in names.split()}
    for name in ("created_at", "updated_at", "deleted_at"):
        value = getattr(image, name)
        payload[name] = value.isoformat() if value else None
    properties = {name: value for name, value in image.properties.items() if not name.startswith(RESERVED_PREFIX)}
    return payload | {"properties": properties, "tags": list(image.tags)}


def task_payload(task: Task) -> dict[str, Any]:
    """A task as notifications tell it, without what was asked for and what came of it: there may be secrets in it."""
    payload: dict[str, Any] = {"id": task.id, "type": task.kind, "status": task.status, "owner": task.owner}
    for name in ("expires_at", "created_at", "updated_at"):
        value = getattr(task, name)
        payload[name] = value.isoformat() if value else None
    return payload | {"result": None, "message": None, "deleted": False, "deleted_at": None}


def member_payload(member: Member) -> dict[str, Any]:
    """A membership as notifications tell it."""
    return {
        "image_id": member.image_id,
        "member_id": member.member,
        "status": member.status,
        "created_at": member.created_at.isoformat(),
        "updated_at": member.updated_at.isoformat(),
    }
