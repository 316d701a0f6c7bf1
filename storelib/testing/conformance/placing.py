# SPDX-License-Identifier: Apache-2.0
"""What a store owes at its first day and at its last: where nothing has been yet, and where nothing fits any more.

Both need a place that only the author of a driver can make; each of these class-scoped fixtures is optional, and
without it its promises are deselected:

``new_place``
    A function that opens such a store, with the options that it is given, at a place where no store has been: another
    one each time.
``full_store``
    The same store where no image of several parts fits.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest

from storelib.capabilities import Capability
from storelib.driver import Store
from storelib.exceptions import NotFound, StorageFull, StoreAddDisabled
from storelib.testing.conformance.bench import Bench, assert_same_bytes, payload
from storelib.testing.conformance.promises import Promises, needs, wants
from storelib.testing.conformance.sources import chunks

NewPlace = Callable[..., Store[Any]]


@needs(Capability.ADD | Capability.READ)
class Placing(Promises):
    """Promises of a store where none was before, and of one that is full."""

    @wants("new_place")
    def test_new_place_is_empty(self, bench: Bench, new_place: NewPlace) -> None:
        """Before its first add a store has no image and no leftover, and whatever is asked of it is no error."""
        store = _only_configured(bench, new_place)
        image_id = bench.new_id("first")
        if bench.can(Capability.LIST):
            assert list(store.list_images()) == []
            assert store.find_image(image_id) is None
        if bench.can(Capability.GC):
            assert store.gc(0) == []
        if bench.can(Capability.CHECK):
            assert store.check().detail
        calls: list[Callable[[str], object]] = [store.get_size, store.get]
        calls += [store.stat] if bench.can(Capability.STAT) else []
        calls += [store.delete] if bench.can(Capability.DELETE) else []
        for place in store.candidate_locations(image_id) or ():
            for call in calls:
                with self.refuses(bench, NotFound):
                    call(place.uri)

    @wants("new_place")
    @pytest.mark.parametrize("size", ["0", "1", "3 parts+1"])
    def test_first_add_makes_what_it_needs(self, bench: Bench, new_place: NewPlace, size: str) -> None:
        """The first add to a store that is only configured works; another object of the store sees the image."""
        store, data = _only_configured(bench, new_place), payload(bench.sizes()[size])
        with bench.with_small_parts(store):
            uri = store.add(bench.new_id("first"), data).uri
        other = self.reopened(store)
        with other.get(uri).data as stream:
            assert_same_bytes(stream.read(), data)
        if bench.can(Capability.DELETE):
            other.delete(uri)

    @wants("new_place")
    def test_read_only_is_read_only(self, bench: Bench, new_place: NewPlace) -> None:
        """A store that is read-only by the option of that name refuses to add."""
        with self.refuses(bench, StoreAddDisabled):
            new_place(read_only=True).add(bench.new_id("refused"), b"data")

    @wants("full_store")
    @pytest.mark.parametrize("declared", [True, False], ids=["size known", "size unknown"])
    def test_no_room_is_storage_full(self, bench: Bench, full_store: Store[Any], declared: bool) -> None:
        """What does not fit is StorageFull, for good, and nothing of it stays."""
        image_id, data = bench.new_id("large"), payload(8 * bench.part + 1)
        with bench.with_small_parts(full_store):
            with self.refuses(bench, StorageFull) as caught:
                full_store.add(image_id, chunks(data, 65_536), len(data) if declared else None)
            assert isinstance(caught.value, StorageFull)
            assert not caught.value.transient, "it would not fit at the next try"
        # It holds the writer, and what a writer holds is no leftover yet.
        del caught
        gc.collect()
        bench.eventually(
            lambda: not _all_of(full_store, image_id), lambda: f"left behind: {sorted(_all_of(full_store, image_id))}"
        )


def _only_configured(bench: Bench, new_place: NewPlace) -> Store[Any]:
    """A store as a registry has it: nobody prepared it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(bench.store), "prepare", lambda store: None)
        return new_place()


def _all_of(store: Store[Any], image_id: str) -> set[str]:
    """What a store lists and would collect for an id."""
    found: set[str] = set()
    if Capability.LIST in store.capabilities:
        found.update(info.uri for info in store.list_images() if info.image_id == image_id)
    if Capability.GC in store.capabilities:
        found.update(item.name for item in store.find_garbage(0, image_id))
    return found
