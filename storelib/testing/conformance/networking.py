# SPDX-License-Identifier: Apache-2.0
"""What a store owes that reaches its back end over a network: forks, credentials, certificates, lines that break.

A fork is tried with every store. The rest needs a server that only the author of a driver can start; each of these
class-scoped fixtures is optional, and without it its promises are deselected:

``denied_store``
    The same store with credentials the server refuses.
``unreachable_store``
    The same store at an address where nobody listens, or at a server that answers with errors of its own.
``untrusted_store``
    The same store over TLS, at a server whose certificate it has no reason to trust.
``faulty_line``
    A ``FaultyLine``: a proxy in front of the server, and how to make the same store behind it.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from storelib.capabilities import Capability
from storelib.driver import Digests, Store
from storelib.exceptions import Forbidden, NotFound, RemoteServiceUnavailable, StorageWriteDenied, StoreError
from storelib.testing.conformance.bench import Bench, assert_same_bytes, payload, replaced
from storelib.testing.conformance.holding import leaves_nothing_open
from storelib.testing.conformance.process import Serve, child
from storelib.testing.conformance.promises import Promises, assert_no_secret, needs, wants
from storelib.testing.faults import Cut, Fault, FaultyProxy, Reset, Stall
from storelib.transfer import retry
from storelib.transfer.download import ImageStream

#: Bytes that pass before the fault, besides those around the borders of parts: in handshakes and headers.
EARLY = (0, 300, 1000, 2500)
#: Of what a server says, no byte of an image: reading goes on where it was cut, and every byte is progress.
IN_HEADERS = 100
#: Of what a server says where it sends no image, from its first byte on.
CUT_ANSWERS = (0, IN_HEADERS, 300, 600, 1000, 2500)
#: Images that make a list longer than a few hundred bytes.
SOME = 6
#: Seconds that a server says nothing, many times as long as the store waits for it.
PATIENCE = 15.0
#: How often each of two processes reads an image.
TIMES = 5
FAULTS = {"cut": Cut, "reset": Reset}


@dataclass(frozen=True)
class FaultyLine:
    """A proxy between a store and its server."""

    proxy: FaultyProxy
    #: Makes the store under test behind the proxy, with no connection yet and with these options. Let it wait at most
    #: about a second for the server: tests stall the line, and wait for that.
    open: Callable[..., Store[Any]]
    #: Connections that suffer each fault. One, unless the client opens others besides, to watch the server say.
    connections: int = 1

    @contextlib.contextmanager
    def suffering(self, bench: Bench, *faults: Fault) -> Iterator[Store[Any]]:
        """A new store whose first connections suffer ``faults``, and later ones none."""
        self.proxy.plan(*faults, connections=self.connections)
        try:
            with self._opened(bench, transfer_retries=6) as store:
                yield store
        finally:
            self.proxy.forget()

    @contextlib.contextmanager
    def broken(self, bench: Bench, *faults: Fault) -> Iterator[Store[Any]]:
        """A new store every connection of which suffers ``faults``."""
        self.proxy.always(*faults)
        try:
            with self._opened(bench, transfer_retries=1) as store:
                yield store
        finally:
            self.proxy.always()

    @contextlib.contextmanager
    def _opened(self, bench: Bench, **options: Any) -> Iterator[Store[Any]]:
        # A server that is well again at once is not to be waited for.
        with replaced(retry, "FIRST_WAIT", 0.01), bench.with_small_parts(self.open(**options)) as store:
            yield store


@needs(Capability.READ)
class Networking(Promises):
    """Promises of reading over a network. Applies to read-only stores as well."""

    @pytest.mark.parametrize("used", [True, False], ids=["used before", "only configured"])
    def test_forked_child_reads(self, bench: Bench, used: bool) -> None:
        """A store is used in a forked child as in its parent, which goes on undisturbed."""
        uri, data = bench.image(3 * bench.part + 1)
        store = bench.reopened() if bench.has_second_store else bench.store
        if used:
            assert_same_bytes(_read(store, uri), data)

        def serving() -> Serve:
            return lambda words: _read(store, words[0]) == data

        with child(serving) as process:
            assert process.ask(uri), "the child read other bytes than were stored"
            assert_same_bytes(_read(store, uri), data)
            assert process.ask(uri)
        assert_same_bytes(_read(store, uri), data)

    @pytest.mark.parametrize("length", [1000, None], ids=["some", "all"])
    def test_forked_child_takes_nothing_of_a_stream(self, bench: Bench, length: int | None) -> None:
        """What a forked child reads of a stream of its parent's is right or a StoreError, and the parent reads on."""
        uri, data = bench.image(3 * bench.part + 1)
        store = bench.reopened() if bench.has_second_store else bench.store
        with store.get(uri).data as stream:
            begun = stream.read(bench.part // 2)

            def serving() -> Serve:
                return lambda words: _child_reads(stream, data[len(begun) :][:length])

            with child(serving) as process:
                assert process.ask(), "the child read other bytes than were stored"
                read = begun + stream.read(bench.part)
            assert_same_bytes(read + stream.read(), data)

    def test_forked_child_and_parent_read_at_the_same_time(self, bench: Bench) -> None:
        """Neither gets what the other asked for, as over a connection that they share."""
        size = 3 * bench.part + 1
        uri, data = bench.image(size)
        other = payload(size, "for the parent")
        its_uri = bench.put(other)
        store = bench.reopened() if bench.has_second_store else bench.store
        assert_same_bytes(_read(store, uri), data)

        def serving() -> Serve:
            return lambda words: all(_read(store, words[0]) == data for _ in range(TIMES))

        with ThreadPoolExecutor(1) as pool, child(serving) as process:
            asked = pool.submit(process.ask, uri)
            for _ in range(TIMES):
                assert_same_bytes(_read(store, its_uri), other)
            assert asked.result(), "the child read other bytes than were stored"

    @wants("denied_store")
    def test_wrong_credentials_are_forbidden_and_not_shown(self, bench: Bench, denied_store: Store[Any]) -> None:
        """Whatever is asked with credentials the server refuses is Forbidden, for good, and shows none of them."""
        uri, data = bench.image(1)
        secrets = [*bench.secrets, *Bench.secrets_of(denied_store)]
        for name, call in _everything(bench, denied_store):
            with pytest.raises((Forbidden, StorageWriteDenied)) as caught:
                call()
            assert not caught.value.transient, f"{name}: asked again, it would be refused again"
            assert_no_secret(secrets, "".join(traceback.format_exception(caught.value)), f"what {name} raises")
        assert_no_secret(secrets, repr(denied_store), "the store's repr")
        assert_same_bytes(bench.read(uri), data)

    @wants("denied_store")
    def test_being_refused_leaves_nothing_open(self, bench: Bench, denied_store: Store[Any]) -> None:
        """Being refused leaves no connection and no thread, however often it happens."""
        uri = _uri_in(bench.store, denied_store, bench.image(1)[0])
        leaves_nothing_open(bench, lambda: _failing(denied_store, uri))

    @wants("unreachable_store")
    def test_server_that_is_not_there_leaves_nothing_open(self, bench: Bench, unreachable_store: Store[Any]) -> None:
        """Nor does looking for a server that nobody runs, which goes on for as long as it is away."""
        uri = _uri_in(bench.store, unreachable_store, bench.image(1)[0])
        leaves_nothing_open(bench, lambda: _failing(unreachable_store, uri))

    @wants("unreachable_store")
    def test_server_that_is_not_there_is_unavailable(self, bench: Bench, unreachable_store: Store[Any]) -> None:
        """Whatever is asked of a server that nobody runs is RemoteServiceUnavailable, and worth another try."""
        for name, call in _everything(bench, unreachable_store):
            with self.refuses(bench, RemoteServiceUnavailable) as caught:
                call()
            assert isinstance(caught.value, RemoteServiceUnavailable)
            assert caught.value.transient, f"{name}: the server may come back"

    @wants("untrusted_store")
    def test_untrusted_certificate_is_refused(self, bench: Bench, untrusted_store: Store[Any]) -> None:
        """A server whose certificate nobody vouches for is not talked to; the error names the option that may help."""
        options = [option.name for option in untrusted_store.options]
        for name, call in _everything(bench, untrusted_store):
            with self.refuses(bench, RemoteServiceUnavailable) as caught:
                call()
            assert isinstance(caught.value, RemoteServiceUnavailable)
            assert not caught.value.transient, f"{name}: the certificate will be no other at the next try"
            assert any(option in str(caught.value) for option in options), f"{name} names no option: {caught.value}"

    @wants("faulty_line")
    @pytest.mark.parametrize("fault", FAULTS)
    def test_get_survives_a_fault_on_the_line(self, bench: Bench, faulty_line: FaultyLine, fault: str) -> None:
        """A connection that ends in the middle of a get, wherever that is, costs time and no byte."""
        uri, data = bench.image(3 * bench.part + 1)
        for after in (*EARLY[1:], *_inside(bench)):
            with faulty_line.suffering(bench, FAULTS[fault](after)) as store:
                assert_same_bytes(_read(store, _uri_in(bench.store, store, uri)), data)

    @wants("faulty_line")
    def test_get_survives_a_stall(self, bench: Bench, faulty_line: FaultyLine) -> None:
        """Nor does one on which nothing comes any more."""
        uri, data = bench.image(3 * bench.part + 1)
        for after in (EARLY[1], bench.part + 900):
            with faulty_line.suffering(bench, Stall(after)) as store:
                assert_same_bytes(_read(store, _uri_in(bench.store, store, uri)), data)

    @wants("faulty_line")
    @pytest.mark.parametrize("fault", FAULTS)
    def test_get_over_a_line_that_always_breaks_is_an_error(
        self, bench: Bench, faulty_line: FaultyLine, fault: str
    ) -> None:
        """An image that never comes whole is a StoreError, never a short image."""
        uri, _ = bench.image(3 * bench.part + 1)
        with faulty_line.broken(bench, FAULTS[fault](IN_HEADERS)) as store, self.refuses(bench, StoreError):
            _read(store, _uri_in(bench.store, store, uri))

    @wants("faulty_line")
    @pytest.mark.parametrize("fault", FAULTS)
    def test_answer_that_is_cut_is_no_answer(self, bench: Bench, faulty_line: FaultyLine, fault: str) -> None:
        """Sizes, what is known of an image and what is listed are asked again where the answer is cut, or an error:
        never others, and an image that is there is never NotFound."""
        uri, data = bench.image(3 * bench.part + 1)
        before = [bench.image(size)[0] for size in range(1, SOME)]
        for after in CUT_ANSWERS:
            with faulty_line.suffering(bench, FAULTS[fault](after)) as store:
                assert store.get_size(_uri_in(bench.store, store, uri)) == len(data)
            if bench.can(Capability.STAT):
                with faulty_line.suffering(bench, FAULTS[fault](after)) as store:
                    assert store.stat(_uri_in(bench.store, store, uri)).size == len(data)
            if bench.can(Capability.LIST):
                with faulty_line.suffering(bench, FAULTS[fault](after)) as store:
                    _listed_whole_or_not(bench, store, len(before))

    @wants("faulty_line")
    def test_answer_that_does_not_come_is_not_waited_for(self, bench: Bench, faulty_line: FaultyLine) -> None:
        """Each call to the server has a time after which it is made again, or is an error."""
        uri, data = bench.image(1)
        stall = Stall(IN_HEADERS, seconds=PATIENCE)
        with faulty_line.suffering(bench, stall) as store, _not_waiting():
            assert store.get_size(_uri_in(bench.store, store, uri)) == len(data)
        if bench.can(Capability.LIST):
            with faulty_line.suffering(bench, stall) as store, _not_waiting():
                _listed_whole_or_not(bench, store, 1)


@needs(Capability.ADD | Capability.READ)
class NetworkingWhenAdding(Promises):
    """Promises of adding over a network."""

    def test_forked_child_adds(self, bench: Bench) -> None:
        """An image that a forked child adds with its parent's store is there for the parent."""
        bench.need_processes()
        store, image_id, data = bench.reopened(), bench.new_id("child"), payload(3 * bench.part + 1)
        before = store.add(bench.new_id("parent"), b"so that there is a connection").uri

        def serving() -> Serve:
            return lambda words: store.add(words[0], data, len(data)).uri

        with bench.with_small_parts(store), child(serving) as process:
            uri = process.ask(image_id)
        assert_same_bytes(_read(store, uri), data)
        bench.remove(uri)
        bench.remove(before)

    @needs(Capability.DELETE)
    @wants("faulty_line")
    @pytest.mark.parametrize("direction", ["up", "down"])
    def test_delete_survives_a_fault_on_the_line(self, bench: Bench, faulty_line: FaultyLine, direction: Any) -> None:
        """A delete whose response is lost is made again; where it returns, the image is gone."""
        for after in CUT_ANSWERS:
            uri = bench.put(b"to be deleted")
            with faulty_line.suffering(bench, Reset(after, direction)) as store:
                store.delete(_uri_in(bench.store, store, uri))
            with self.refuses(bench, NotFound):
                bench.store.get_size(uri)

    @wants("faulty_line")
    @pytest.mark.parametrize("direction", ["up", "down"])
    @pytest.mark.parametrize("fault", FAULTS)
    def test_add_survives_a_fault_on_the_line(
        self, bench: Bench, faulty_line: FaultyLine, fault: str, direction: Any
    ) -> None:
        """A connection that ends in the middle of an add, wherever that is, costs time, and leaves one image.

        Only of one stream that cannot be sent again (``Writer.retryable``) it costs the add, and leaves nothing.
        """
        for size in (3000, 3 * bench.part + 1):
            places = (*EARLY, *_inside(bench)) if direction == "up" and size > bench.part else EARLY
            for after in places:
                with faulty_line.suffering(bench, FAULTS[fault](after, direction)) as store:
                    added = _added_whole(bench, store, payload(size))
                assert added or not _retries(bench, size), f"not added, cut after {after} bytes"

    @wants("faulty_line")
    @pytest.mark.parametrize("size", ["1", "3 parts+1"])
    def test_add_survives_a_stall(self, bench: Bench, faulty_line: FaultyLine, size: str) -> None:
        """Nor does one on which nothing moves any more."""
        data = payload(bench.sizes()[size])
        with faulty_line.suffering(bench, Stall(max(100, bench.part // 2) if size != "1" else 100, "up")) as store:
            added = _added_whole(bench, store, data)
        assert added or not _retries(bench, len(data)), "not added, stalled"

    @wants("faulty_line")
    @pytest.mark.parametrize("after", ["0", "early", "part", "2 parts"])
    @pytest.mark.parametrize("fault", FAULTS)
    def test_add_over_a_line_that_always_breaks_leaves_nothing(
        self, bench: Bench, faulty_line: FaultyLine, fault: str, after: str
    ) -> None:
        """An add that never comes through is a StoreError; what it could not remove is found by gc."""
        passed = {"0": 0, "early": 700, "part": bench.part, "2 parts": 2 * bench.part}[after]
        with faulty_line.broken(bench, FAULTS[fault](passed, "up")) as store:
            _added_whole(bench, store, payload(3 * bench.part + 1))


def everything(store: Store[Any], uri: str, image_id: str, large: bytes = b"") -> dict[str, Callable[[], object]]:
    """Each thing that one can ask of a store with its capabilities, as a call, by its name.

    ``uri`` is of an image, ``image_id`` an id of none; ``large`` is an image of several parts.
    """
    calls: dict[str, tuple[Capability, Callable[[], object]]] = {
        "get": (Capability.READ, lambda: _read(store, uri)),
        "get_size": (Capability.READ, lambda: store.get_size(uri)),
        "stat": (Capability.STAT, lambda: store.stat(uri)),
        "add": (Capability.ADD, lambda: store.add(image_id, b"data")),
        "add in parts": (Capability.ADD, lambda: store.add(image_id, iter([large]))),
        "delete": (Capability.DELETE, lambda: store.delete(uri)),
        "list_images": (Capability.LIST, lambda: list(store.list_images())),
        "check": (Capability.CHECK, store.check),
        "gc": (Capability.GC, lambda: store.gc(0, prefix=image_id)),
        "copy": (Capability.COPY, lambda: store.copy(uri, image_id, digests=Digests(None, "00"))),
    }
    return {name: call for name, (capability, call) in calls.items() if capability in store.capabilities}


def _everything(bench: Bench, store: Store[Any]) -> Iterator[tuple[str, Callable[[], object]]]:
    """The same, asked of another object of the store about an image that is there."""
    uri = _uri_in(bench.store, store, bench.image(1)[0])
    with bench.with_small_parts(store):
        yield from everything(store, uri, bench.new_id("other"), payload(3 * bench.part + 1)).items()


def _uri_in(known: Store[Any], other: Store[Any], uri: str) -> str:
    """The URI at which one object of a store knows an image, as another writes it: it may name the server's address."""
    if Capability.STAT not in known.capabilities:
        return uri
    return _uri_of(other, known.stat(uri).image_id) or uri


def _uri_of(store: Store[Any], image_id: str | None) -> str | None:
    places = store.candidate_locations(image_id) if image_id else None
    return places[0].uri if places else None


def _child_reads(stream: ImageStream, expected: bytes) -> bool:
    """Whether a stream that another process opened gives these bytes, or says that it cannot."""
    try:
        return stream.read(len(expected)) == expected
    except StoreError:
        return True
    finally:
        stream.close()


def _read(store: Store[Any], uri: str) -> bytes:
    with store.get(uri).data as stream:
        return stream.read()


def _inside(bench: Bench) -> list[int]:
    """Inside of parts, and about where each begins, what comes before it counted in."""
    return [bench.part * number + extra for number in (0, 1, 3) for extra in (900, bench.part // 2)]


def _retries(bench: Bench, size: int) -> bool:
    """Whether the driver says that an image of this size can be sent again from its beginning, or from a part on."""
    return bench.retries_images if size <= bench.part else bench.retries_parts


def _failing(store: Store[Any], uri: str) -> None:
    """What cannot work, tried once."""
    once = type(store.retry_policy)(retries=0, timeout=store.retry_policy.timeout)
    with replaced(store, "retry_policy", once), pytest.raises(StoreError):
        store.get_size(uri)


@contextlib.contextmanager
def _not_waiting() -> Iterator[None]:
    """Whatever is done ends before a server that says nothing goes on."""
    begun = time.monotonic()
    yield
    waited = time.monotonic() - begun
    assert waited < PATIENCE, f"{waited:.0f} s were waited for a server that says nothing: a call has no timeout"


def _listed_whole_or_not(bench: Bench, store: Store[Any], least: int) -> None:
    """What a store behind a broken line lists: all that there is, or an error in the end."""
    expected = {info.image_id for info in bench.store.list_images()}
    assert len(expected) >= least
    try:
        found = {info.image_id for info in store.list_images()}
    except RemoteServiceUnavailable:
        return
    missing = expected - found
    assert not missing, f"a list that was cut ends as if it were whole, without {len(missing)} images"


def _added_whole(bench: Bench, store: Store[Any], data: bytes) -> bool:
    """Whether ``store`` added it whole; otherwise nothing of it must be left. Removes the image."""
    image_id = bench.new_id("line")
    try:
        stored = store.add(image_id, data, len(data))
    except StoreError:
        if bench.can(Capability.GC):
            bench.store.gc(0, prefix=image_id)
        bench.assert_nothing_left(image_id)
        return False
    assert (stored.size, stored.multihash) == (len(data), hashlib.sha512(data).hexdigest())
    uri = _uri_of(bench.store, image_id) or stored.uri
    assert_same_bytes(bench.read(uri), data)
    if bench.can(Capability.DELETE):
        bench.remove(uri)
        bench.eventually(
            lambda: not bench.residue(image_id), lambda: f"left beside the image: {sorted(bench.residue(image_id))}"
        )
    return True
