# SPDX-License-Identifier: Apache-2.0
"""What callers and the engine hand to a driver arrives there, and the driver takes it as the contract allows."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from storelib.capabilities import Capability
from storelib.driver import Digests, Store, Writer
from storelib.exceptions import RemoteServiceUnavailable
from storelib.testing.conformance.bench import Bench, assert_same_bytes, not_applicable, payload, replaced
from storelib.testing.conformance.promises import Promises, needs
from storelib.testing.conformance.sources import chunks, raising

#: Methods that get a context, and where it stands among their arguments.
WITH_CONTEXT = {"open_writer": 2, "open_reader": 3, "measure": 1, "remove": 1, "inspect": 1, "server_side_copy": 2}


@needs(Capability.ADD | Capability.READ)
class Calling(Promises):
    """Promises of the driver to the engine."""

    # -- Context ----------------------------------------------------------------------------------------------------

    def test_context_is_handed_through(self, bench: Bench) -> None:
        """The context of every call reaches the driver's method, as it was given."""
        context, store = _Context(), bench.store
        got: dict[str, list[object]] = {}
        with _contexts_noted(store, got):
            stored = bench.add(bench.new_id(), payload(2 * bench.part + 1), context=context)
            store.get(stored.uri, context=context).data.close()
            if bench.can(Capability.RANGE):
                store.get(stored.uri, 1, 2, context=context).data.close()
            store.get_size(stored.uri, context=context)
            if bench.can(Capability.STAT):
                store.stat(stored.uri, context=context)
            bench.copy(stored.uri, bench.new_id("copy"), context=context)
            digests = Digests(stored.checksum, stored.multihash)
            bench.copy(stored.uri, bench.new_id("copy"), digests=digests, context=context)
            if bench.can(Capability.DELETE):
                store.delete(stored.uri, context=context)
        for method, contexts in got.items():
            assert all(each is context for each in contexts), f"{method} was called without the caller's context"
        overridden = {name for name in ("add", "get", "get_size", "stat", "delete") if _overrides(store, name)}
        expected = {"add": "open_writer", "get": "open_reader", "get_size": "measure"}
        for public, method in expected.items():
            if public not in overridden:
                assert method in got, f"{public} does not call {method}"

    # -- Room -------------------------------------------------------------------------------------------------------

    def test_room_may_be_asked_for_often(self, bench: Bench) -> None:
        """``reserve`` is called for every part where there is never more room than was asked for; all bytes stay."""
        data = payload(5 * bench.part + 17)
        image_id = bench.new_id()
        with bench.writers_changed(_without_slack) as opened:
            stored = bench.add(image_id, chunks(data, 65_536))
        _must_have_opened(bench, opened)
        assert_same_bytes(bench.read(stored.uri), data)
        if bench.access.can("read"):
            assert_same_bytes(bench.access.read(image_id) or b"", data)

    def test_room_asked_for_often_is_given_back(self, bench: Bench) -> None:
        """An add that fails after it asked for room several times leaves nothing."""
        image_id = bench.new_id()
        with bench.writers_changed(_without_slack), self.refuses(bench, ZeroDivisionError):
            bench.add(image_id, raising(payload(4 * bench.part), ZeroDivisionError()))
        bench.assert_nothing_left(image_id)

    # -- Calls made again -------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("step", ["reserve", "abort"])
    def test_step_whose_response_was_lost_is_made_again(self, bench: Bench, step: str) -> None:
        """``reserve`` and ``abort`` may be called again after a transient error, though they were done."""
        if not bench.store.conf.transfer_retries:
            not_applicable("the store is configured not to retry")
        data = payload(3 * bench.part + 1)
        image_id = bench.new_id()
        with bench.writers_changed(_losing_first_response(step)) as opened:
            if step == "abort":
                with self.refuses(bench, ZeroDivisionError):
                    bench.add(image_id, raising(data, ZeroDivisionError()))
            else:
                stored = bench.add(image_id, data)
        _must_have_opened(bench, opened)
        if step == "reserve":
            assert_same_bytes(bench.read(stored.uri), data)
            bench.remove(stored.uri)
        if step == "abort" or bench.can(Capability.DELETE):
            bench.assert_nothing_left(image_id)


class _Context:
    """A context as ``storelib.driver.Context`` describes it, of nobody."""

    auth_token = user_id = project_id = None
    service_catalog = ()


@contextlib.contextmanager
def _contexts_noted(store: Store[Any], got: dict[str, list[object]]) -> Iterator[None]:
    """Note what the driver's methods get for a context; they are called with None, as by the rest of the suite."""
    inside = threading.local()

    def noting(name: str, place: int, plain: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            if getattr(inside, "a_call", False):
                return plain(*arguments)  # one method of the driver uses another
            got.setdefault(name, []).append(arguments[place])
            inside.a_call = True
            try:
                return plain(*arguments[:place], None, *arguments[place + 1 :])
            finally:
                inside.a_call = False

        return noted

    with contextlib.ExitStack() as stack:
        for name, place in WITH_CONTEXT.items():
            if hasattr(store, name):
                stack.enter_context(replaced(store, name, noting(name, place, getattr(store, name))))
        yield


def _without_slack(writer: Writer) -> None:
    """Never more room than was asked for, so that it is asked for again and again; where there is a limit at all."""
    plain = writer.reserve

    def reserve(end: int) -> int | None:
        room = plain(end)
        assert room is None or room >= end, f"asked for room for {end} bytes, reserve returned {room}"
        return None if room is None else end

    vars(writer)["reserve"] = reserve


def _overrides(store: Store[Any], method: str) -> bool:
    return getattr(type(store), method) is not getattr(Store, method)


def _losing_first_response(step: str) -> Callable[[Writer], None]:
    def change(writer: Writer) -> None:
        plain = getattr(writer, step)
        lost: list[str] = []

        def losing(*arguments: Any) -> Any:
            response = plain(*arguments)
            if not lost:
                lost.append(step)
                raise RemoteServiceUnavailable("on purpose")
            return response

        vars(writer)[step] = losing

    return change


def _must_have_opened(bench: Bench, opened: list[Writer]) -> None:
    if not opened:
        assert _overrides(bench.store, "add"), "Store.add did not call open_writer"
        not_applicable("the driver does not write through open_writer")
