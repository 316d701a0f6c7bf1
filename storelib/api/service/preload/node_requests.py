# SPDX-License-Identifier: Apache-2.0
"""What nodes say in requests: read with limits on everything, because a node is no more than half trusted."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from storelib.api.db.preload_records import STATES, Beat, Change, State, Work
from storelib.api.errors import BadRequest
from storelib.api.service.preload.plan import SECOND

#: Entries of one list, and images that a node holds.
MOST_ENTRIES, MOST_HELD = 1000, 4000
#: Bytes that a node may say it has or has got: more than any has.
MOST_BYTES = 2**53
#: Characters of a reason.
LONGEST_REASON = 255
_NAME = re.compile(r"[\w.@:-]{1,255}", re.ASCII)
_SECRET = re.compile(r"[A-Za-z0-9_-]{32,256}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


class Said(NamedTuple):
    """What a node says of one preload."""

    state: State
    done: int
    from_source: int
    from_peers: int
    reason: str | None
    request: str | None


class Heartbeat(NamedTuple):
    """A heartbeat as it is understood."""

    beat: Beat
    states: Mapping[str, Said]
    bad_peers: Mapping[str, set[tuple[str, int]]]
    holds: Sequence[str]


def name(what: str, value: Any) -> str:
    """A name of a node or a group: letters, digits and ``. - _ @ :``; raises BadRequest."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise BadRequest(f"{what} must have 1 to 255 letters, digits and characters of .-_@:")
    return value


def secret(value: str) -> str:
    """What a node is to be known by, as it chose it; raises BadRequest."""
    if not _SECRET.fullmatch(value):
        raise BadRequest("a node's X-Node-Secret must have 32 to 256 letters, digits and characters of -_")
    return value


def address(value: Any) -> str:
    """An IP address at which one node may be, in its usual form; raises BadRequest.

    Nodes are told of each other, and would look up no name. What stands behind a % means something on one machine
    only, and may be any text.
    """
    if isinstance(value, str) and "%" not in value:
        try:
            found = ipaddress.ip_address(value)
        except ValueError:
            pass
        else:
            if not found.is_multicast and not found.is_unspecified:
                return str(found)
    raise BadRequest("'address' must be the IP address of one node")


def port(value: Any) -> int:
    """A port, 0 for none; raises BadRequest."""
    return _whole("port", value, 65535)


def version(value: Any) -> str:
    """The version of an agent; raises BadRequest."""
    if not isinstance(value, str):
        raise BadRequest("'version' must be a string")
    return _CONTROL.sub(" ", value)[:64]


def heartbeat(document: Mapping[str, Any], now: int) -> Heartbeat:
    """What a heartbeat says; raises BadRequest."""
    time = document.get("time")
    skew = None if time is None else _seconds(time) - now
    limited = {
        key: None if document.get(key) is None else _whole(key, document[key], MOST_BYTES)
        for key in ("free", "used", "budget")
    }
    beat = Beat(
        address(document.get("address")),
        port(document.get("port")),
        **limited,
        skew=skew,
    )
    states = {}
    for entry in _entries(document, "states", MOST_ENTRIES):
        states[_text(entry, "preload", 36)] = _said(entry)
    bad: dict[str, set[tuple[str, int]]] = {}
    for entry in _entries(document, "bad_peers", MOST_ENTRIES):
        where = address(entry.get("address")), port(entry.get("port"))
        bad.setdefault(_text(entry, "preload", 36), set()).add(where)
    holds = _list(document, "holds", MOST_HELD)
    for image_id in holds:
        if not isinstance(image_id, str) or not 0 < len(image_id) <= 36 or "\0" in image_id:
            raise BadRequest("'holds' must be a list of ids of images")
    return Heartbeat(beat, states, bad, sorted(set(holds)))


def changed(work: Work, said: Said, now: int) -> Change | None:
    """What has to be noted of what a node says of its work, None if that is known.

    It has no more than the image has, and what it got does not become less.
    """
    done = min(said.done, work.image.size or 0)
    source, peers = max(said.from_source, work.from_source), max(said.from_peers, work.from_peers)
    moved = done != work.done or said.state != work.state
    if not moved and (source, peers, said.reason) == (work.from_source, work.from_peers, work.reason):
        return None
    return Change(work.preload_id, said.state, done, source, peers, said.reason, now if moved else work.moved_at)


def refused(why: str) -> Said:
    """What is noted of a node with an image that it may not have, whatever it says."""
    return Said("failed", 0, 0, 0, why[:LONGEST_REASON], None)


def _said(entry: Mapping[str, Any]) -> Said:
    state = entry.get("state")
    if state not in STATES:
        raise BadRequest(f"a state must be one of {', '.join(STATES)}")
    done, source, peers = (_whole(key, entry.get(key, 0), MOST_BYTES) for key in ("done", "from_source", "from_peers"))
    reason = entry.get("reason")
    request = entry.get("wanted_csr")
    if not (reason is None or isinstance(reason, str)) or not (request is None or isinstance(request, str)):
        raise BadRequest("'reason' and 'wanted_csr' must be strings or null")
    shown = None if reason is None else _CONTROL.sub(" ", reason)[:LONGEST_REASON]
    return Said(state, done, source, peers, shown, request)


def _entries(document: Mapping[str, Any], key: str, most: int) -> Sequence[Mapping[str, Any]]:
    found = _list(document, key, most)
    if not all(isinstance(entry, dict) for entry in found):
        raise BadRequest(f"{key!r} must be a list of objects")
    return found


def _list(document: Mapping[str, Any], key: str, most: int) -> list[Any]:
    found = document.get(key)
    if found is None:
        return []
    if not isinstance(found, list) or len(found) > most:
        raise BadRequest(f"{key!r} must be a list of at most {most}")
    return found


def _text(entry: Mapping[str, Any], key: str, longest: int) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= longest or "\0" in value:
        raise BadRequest(f"{key!r} must be a string of at most {longest} characters")
    return value


def _whole(key: str, value: Any, largest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= largest:
        raise BadRequest(f"{key!r} must be a whole number from 0 to {largest}")
    return value


def _seconds(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 2**40:
        raise BadRequest("'time' must be seconds since 1970")
    return int(value * SECOND)
