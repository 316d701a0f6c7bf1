# SPDX-License-Identifier: Apache-2.0
"""What failed adds left: segments that no manifest names, and containers of images that never came to be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from storelib.driver import Garbage
from storelib.drivers.swift.errors import (
    CLAIM_HEADER,
    DEAD,
    DEAD_HEADER,
    MADE_HEADER,
    TOKEN,
    TOKEN_HEADER,
    changed_at,
    number,
)
from storelib.drivers.swift.service import Account, Service, present
from storelib.exceptions import RemoteServiceUnavailable
from storelib.transfer.http.headers import posix_time


@dataclass(frozen=True)
class Dead:
    """Where garbage lies: the objects with a prefix, or a whole container."""

    container: str
    prefix: str
    image_container: str
    token: str


def find(service: Service, account: Account, older_than: float, prefix: str) -> Iterator[Garbage]:
    """Everything dead for ``older_than`` seconds by the server's clock."""
    layout = service.layout
    # Who may use one container need not be allowed to ask for the account.
    asked = account.head() if layout.own or layout.seed else account.find(layout.segments or layout.container)
    if asked is None:
        return
    # The date is cut to whole seconds.
    before = server_time(asked) + 1.0 - older_than
    if layout.own:
        for container in list(service.containers(account, prefix)):
            yield from _in_own(service, account, container, before, prefix)
        return
    containers = [layout.segments] if layout.segments else list(service.containers(account, prefix))
    for container in containers:
        entries = present(account.listing(container, prefix=prefix, delimiter="/"))
        # All at once: what is removed between two pages must not disturb the next.
        for image_id in [entry["subdir"][:-1] for entry in entries if "subdir" in entry]:
            yield from _in_shared(service, account, container, image_id, before)


def discard(service: Service, account: Account, dead: Dead, image_id: str) -> bool:
    """Remove it unless it has come to life.

    First it is marked, then looked at: an add that publishes its image meanwhile looks for the mark after that.
    """
    if _is_alive(service, account, dead, image_id) or not _mark(service, account, dead):
        return False
    if _is_alive(service, account, dead, image_id):
        _unmark(service, account, dead)
        return False
    mark = f"{dead.prefix}{DEAD}"
    names = {entry["name"] for entry in present(account.listing(dead.container, prefix=dead.prefix))} - {mark}
    service.for_each(lambda name: account.remove(dead.container, name), sorted(names), dead.container)
    account.remove(dead.container, *(() if service.layout.own else (mark,)))
    # A container of its own was still there; of others only the segments tell whether another gc was faster.
    return service.layout.own or bool(names)


def _mark(service: Service, account: Account, dead: Dead) -> bool:
    """Whether it was still there to be marked."""
    if not service.layout.own:
        account.put(dead.container, f"{dead.prefix}{DEAD}", headers={"Content-Type": "application/octet-stream"})
        return True
    headers = account.find(dead.container)
    # The id may have been added again, which makes a container of the same name.
    if headers is None or headers.get(CLAIM_HEADER, "") != dead.token:
        return False
    account.post(dead.container, headers={DEAD_HEADER: "yes"})
    return True


def _unmark(service: Service, account: Account, dead: Dead) -> None:
    if service.layout.own:
        account.post(dead.container, headers={DEAD_HEADER: ""})
    else:
        account.remove(dead.container, f"{dead.prefix}{DEAD}")


def server_time(headers: Any) -> float:
    """The server's clock when it answered, in POSIX seconds."""
    date = posix_time(headers.get("Date"))
    if date is None:
        raise RemoteServiceUnavailable("Swift does not tell the time: nothing is surely old", transient=False)
    return date


def _changed(entry: dict[str, Any]) -> float:
    """When something was changed, in POSIX seconds; what does not tell is never old."""
    modified = changed_at(entry)
    return math.inf if modified is None else modified


def _in_shared(service: Service, account: Account, container: str, image_id: str, before: float) -> Iterator[Garbage]:
    """Segments of adds of one id whose token is not that of the image."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in account.listing(container, prefix=f"{image_id}/"):
        token, slash, _ = entry["name"][len(image_id) + 1 :].partition("/")
        if slash and TOKEN.fullmatch(token):
            groups.setdefault(token, []).append(entry)
    for token, entries in groups.items():
        modified = max(map(_changed, entries))
        image_container = service.layout.container_for(image_id) if service.layout.segments else container
        dead = Dead(container, f"{image_id}/{token}/", image_container, token)
        if modified <= before and not _is_alive(service, account, dead, image_id):
            size = sum(entry["bytes"] for entry in entries)
            yield Garbage(f"{container}/{dead.prefix}", image_id, size, modified, dead)


def _in_own(service: Service, account: Account, container: str, before: float, prefix: str) -> Iterator[Garbage]:
    """A container without its image."""
    entries = list(present(account.listing(container)))
    names = {entry["name"].partition("/")[0] for entry in entries}
    # A container with a long name is called after a digest of the id; what is in it may tell.
    image_id = next(iter(names), container.removeprefix(f"{service.layout.container}_"))
    if not image_id.startswith(prefix) or any(entry["name"] == image_id for entry in entries):
        return
    headers = account.find(container)
    if headers is None or MADE_HEADER not in headers:
        return
    modified = max([_changed(entry) for entry in entries] or [_made(headers)])
    dead = Dead(container, "", container, headers.get(CLAIM_HEADER, ""))
    if modified <= before and not _is_alive(service, account, dead, image_id):
        yield Garbage(container, image_id, sum(entry["bytes"] for entry in entries), modified, dead)


def _made(headers: Any) -> float:
    made = number(headers.get("X-Timestamp"))
    return server_time(headers) if made is None else made


def _is_alive(service: Service, account: Account, dead: Dead, image_id: str) -> bool:
    """Whether an image is made of it, or an add in this process still makes one."""
    own = service.layout.own
    if dead.token in service.live or (own and any(add.container == dead.container for add in service.live)):
        return True
    found = account.find_surely(dead.image_container, image_id)
    return found is not None and (service.layout.own or found.get(TOKEN_HEADER) == dead.token)
