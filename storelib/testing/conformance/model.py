# SPDX-License-Identifier: Apache-2.0
"""A store compared with a dict: hypothesis makes up sequences of calls, and every response must be the dict's."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from storelib.capabilities import Capability
from storelib.exceptions import Duplicate, NotFound
from storelib.testing.conformance.bench import Bench, assert_same_bytes, payload
from storelib.testing.conformance.promises import Promises, needs
from storelib.testing.conformance.sources import chunks, raising

#: How many sequences are made up, and how long they are: the same on every machine, under whatever load.
SEQUENCES = 8
STEPS = 20
NAMES = st.sampled_from(["a", "b", "a b%2F"])
SIZES = st.sampled_from(["0", "1", "part-1", "part", "part+1", "3 parts+1"])
FRACTION = st.integers(0, 110)


class StoreLikeDict(RuleBasedStateMachine):
    """Images by id, in a store and in a dict."""

    bench: Bench

    def __init__(self) -> None:
        super().__init__()
        self.base = self.bench.new_id("model-")
        self.images: dict[str, tuple[str, bytes]] = {}
        self.gone: set[str] = set()

    @rule(name=NAMES, size=SIZES, seed=st.integers(0, 9), chunk=st.sampled_from([1000, 65_536]), declare=st.booleans())
    def add(self, name: str, size: str, seed: int, chunk: int, declare: bool) -> None:
        """Add an image, or find that its id is taken."""
        data = payload(self.bench.sizes()[size], str(seed))
        size_or_none = len(data) if declare else None
        if name in self.images:
            with pytest.raises(Duplicate):
                self.bench.add(self.base + name, chunks(data, chunk), size_or_none)
            return
        stored = self.bench.add(self.base + name, chunks(data, chunk), size_or_none)
        assert stored.size == len(data)
        self.images[name] = (stored.uri, data)
        self.gone.discard(stored.uri)

    @rule(name=NAMES, size=SIZES)
    def fail_to_add(self, name: str, size: str) -> None:
        """An add that fails changes nothing."""
        with pytest.raises((ZeroDivisionError, Duplicate)):
            self.bench.add(self.base + name, raising(payload(self.bench.sizes()[size]), ZeroDivisionError()))

    @precondition(lambda self: self.images)
    @rule(data=st.data())
    def get(self, data: st.DataObject) -> None:
        """Read an image, whole."""
        uri, expected = self._any(data)
        assert_same_bytes(self.bench.read(uri), expected)

    @precondition(lambda self: self.images and self.bench.can(Capability.RANGE))
    @rule(data=st.data(), start=FRACTION, count=FRACTION)
    def get_range(self, data: st.DataObject, start: int, count: int) -> None:
        """Read a slice of an image."""
        uri, expected = self._any(data)
        offset, length = len(expected) * start // 100, len(expected) * count // 100
        with self.bench.store.get(uri, offset, length).data as stream:
            assert_same_bytes(stream.read(), expected[offset : offset + length])

    @precondition(lambda self: self.images)
    @rule(data=st.data())
    def get_size(self, data: st.DataObject) -> None:
        """Ask for a size."""
        uri, expected = self._any(data)
        assert self.bench.store.get_size(uri) == len(expected)

    @precondition(lambda self: self.images and self.bench.can(Capability.DELETE))
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """Delete an image from the store and from the model."""
        name = data.draw(st.sampled_from(sorted(self.images)))
        uri, _ = self.images.pop(name)
        self.bench.remove(uri)
        self.gone.add(uri)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def miss(self, data: st.DataObject) -> None:
        """Look for an image that was deleted."""
        uri = data.draw(st.sampled_from(sorted(self.gone)))
        for call in (self.bench.read, self.bench.store.get_size, self.bench.store.delete):
            with pytest.raises(NotFound):
                call(uri)

    @precondition(lambda self: self.bench.can(Capability.LIST) and not self.bench.shared)
    @rule()
    def list_all(self) -> None:
        """Look at the list."""

        def listed() -> set[tuple[str, int]]:
            images = self.bench.store.list_images()
            return {(info.uri, info.size) for info in images if (info.image_id or "").startswith(self.base)}

        expected = {(uri, len(data)) for uri, data in self.images.values()}
        self.bench.eventually(lambda: listed() == expected, lambda: f"listed {listed()}, not {expected}")

    def teardown(self) -> None:
        """Remove what is left."""
        for uri, _ in self.images.values():
            self.bench.remove(uri)

    def _any(self, data: st.DataObject) -> tuple[str, bytes]:
        return self.images[data.draw(st.sampled_from(sorted(self.images)))]


@needs(Capability.ADD | Capability.READ)
class Modelled(Promises):
    """The promise that sums up the others."""

    def test_store_behaves_like_a_dict(self, bench: Bench) -> None:
        """Whatever the order of calls, the store holds what a dict would hold."""
        machine = type("Machine", (StoreLikeDict,), {"bench": bench})
        quiet = settings(
            max_examples=SEQUENCES if self.sequences is None else self.sequences,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            # Shrinking a failure takes hundreds of runs, each of which waits for what never comes true.
            phases=[Phase.generate],
            print_blob=False,
            report_multiple_bugs=False,
        )
        run_state_machine_as_test(machine, settings=quiet)
