# SPDX-License-Identifier: Apache-2.0
"""Takes the catalogue of a Glance into the database of this API: what is new, changed and gone there since last time.

What was changed or deleted here since it was taken stays as it is here. No data is read, moved or deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from storelib.api.db import Repository
from storelib.api.db.imported import Entry, Kind, Outcome
from storelib.api.glance_import import images, namespaces, tasks
from storelib.api.glance_import.locations import Places
from storelib.api.glance_import.source import Source
from storelib.api.glance_import.values import Refused
from storelib.registry import Registry

Subject = Literal["image", "namespace", "resource type", "task"]
State = Literal["new", "changed", "deleted", "same", "kept", "refused"]
STATES: tuple[State, ...] = ("new", "changed", "deleted", "same", "kept", "refused")

_BATCH = 500
_TAKEN: dict[Outcome, State] = {"new": "new", "changed": "changed", "same": "same"}
_KEPT: dict[Outcome, str] = {
    "kept": "it was changed here since it was taken from there, and stays as it is here",
    "absent": "it was deleted here since it was taken from there, and stays deleted",
}
_FOREIGN = "there is one here already that did not come from there"
_GONE_AND_CHANGED = "it is deleted there, but was changed here since it was taken, and stays"


class Finding(NamedTuple):
    """What has to be told of one entry: it was refused, kept as it is here, or deleted."""

    kind: Subject
    key: str
    state: State
    detail: str


@dataclass
class Counts:
    """How many of each kind came to each state."""

    of: dict[Subject, dict[State, int]] = field(default_factory=dict)

    def add(self, kind: Subject, state: State, count: int = 1) -> None:
        """Count ``count`` more of a kind in a state."""
        states = self.of.setdefault(kind, dict.fromkeys(STATES, 0))
        states[state] += count

    @property
    def refused(self) -> int:
        """How many could not be taken."""
        return sum(states["refused"] for states in self.of.values())


class Import:
    """One run. ``name`` is what the catalogue is called here, ``key`` Glance's ``metadata_encryption_key``.

    ``progress`` is told how many images were looked at, and of how many. With ``dry_run`` nothing is changed.
    """

    def __init__(
        self,
        source: Source,
        repository: Repository,
        registry: Registry,
        *,
        name: str,
        key: str | None = None,
        dry_run: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        self._source = source
        self._tables = repository.imported
        self._places = Places(registry, key)
        self._name = name
        self._dry_run = dry_run
        self._progress = progress
        self.counts = Counts()

    def run(self) -> Iterator[Finding]:
        """Do it, and yield what people should know of. Raises DatabaseUnavailable, Conflict; may then be run again."""
        if namespaces.has_namespaces(self._source):
            yield from self._namespaces()
        yield from self._images()
        yield from self._tasks()

    def _images(self) -> Iterator[Finding]:
        total = self._source.count("images", images.is_here())
        done = 0
        self.counts.add("image", "new", 0)
        for batch in images.images(self._source, self._places):
            yield from self._put("image", batch)
            done += len(batch)
            if self._progress is not None:
                self._progress(done, total)
        yield from self._remove("image", images.missing)

    def _namespaces(self) -> Iterator[Finding]:
        self.counts.add("namespace", "new", 0)
        for entry in namespaces.namespaces(self._source):
            yield from self._put("namespace", [entry])
        yield from self._remove("namespace", namespaces.missing)
        if not self._dry_run and (types := namespaces.resource_types(self._source)):
            self._tables.put_resource_types(types)

    def _tasks(self) -> Iterator[Finding]:
        for batch in tasks.tasks(self._source):
            for each in batch:
                if isinstance(each, tuple):
                    yield self._refused("task", *each)
            rows = [each for each in batch if isinstance(each, dict)]
            new = self._tables.new_tasks([row["id"] for row in rows])
            if not self._dry_run:
                self._tables.put_tasks([row for row in rows if row["id"] in new])
            self.counts.add("task", "new", len(new))
            self.counts.add("task", "same", len(rows) - len(new))

    def _put(self, kind: Kind, batch: Sequence[Entry | tuple[str, Refused]]) -> Iterator[Finding]:
        entries: list[Entry] = []
        for each in batch:
            if isinstance(each, tuple):
                yield self._refused(kind, *each)
            else:
                entries.append(each)
        put = self._tables.compare if self._dry_run else self._tables.put
        for entry, outcome in zip(entries, put(kind, self._name, entries), strict=True):
            if outcome == "foreign":
                yield self._refused(kind, entry.key, Refused(_FOREIGN))
            elif outcome in ("kept", "absent"):
                yield self._found(kind, entry.key, "kept", _KEPT[outcome])
            else:
                self.counts.add(kind, _TAKEN[outcome])

    def _remove(self, kind: Kind, missing: Callable[[Source, Collection[str]], list[str]]) -> Iterator[Finding]:
        """What came from there and is there no longer."""
        after = ""
        while keys := self._tables.keys(kind, self._name, after, _BATCH):
            after = keys[-1]
            gone = missing(self._source, keys)
            if not gone:
                continue
            outcomes = (self._tables.compare_gone if self._dry_run else self._tables.remove)(kind, gone)
            for key, outcome in outcomes.items():
                if outcome == "deleted":
                    yield self._found(kind, key, "deleted", "it is deleted there")
                elif outcome == "kept":
                    yield self._found(kind, key, "kept", _GONE_AND_CHANGED)

    def _refused(self, kind: Subject, key: str, why: Refused) -> Finding:
        return self._found(kind, key, "refused", str(why))

    def _found(self, kind: Subject, key: str, state: State, detail: str) -> Finding:
        self.counts.add(kind, state)
        return Finding(kind, key, state, detail)
