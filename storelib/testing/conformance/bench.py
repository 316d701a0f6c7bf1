# SPDX-License-Identifier: Apache-2.0
"""The bench a store is tested on: ids of its own, the back end seen from the side, tampering, cleaning up.

Knows nothing of single promises; those are in the modules beside it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import secrets
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn
from urllib.parse import quote, urlsplit

import pytest

from storelib.capabilities import Capability
from storelib.driver import STORE_OPTIONS, Garbage, ImageInfo, Part, Reader, Store, StoredImage, Writer
from storelib.exceptions import NotFound, StoreError
from storelib.location import Location
from storelib.testing.conformance.backend_access import BackendAccess
from storelib.testing.conformance.process import Child, Serve, child
from storelib.transfer.contract import KiB, MiB

#: Parts are lowered to this, or to the smallest the back end takes if that is more.
SMALL_PART = 64 * KiB
#: An image of several 1 MiB blocks, so that digests run in threads however small the parts are.
SEVERAL_BLOCKS = 3 * MiB + 12345
#: Images that ``clean`` deletes at once.
CLEANERS = 4
#: Images of earlier tests that may stay: whatever looks at all there is takes longer with each.
FEW = 6


class Bench:
    """One store under test. Every id it hands out holds ``prefix``; ``clean`` removes all of them."""

    def __init__(
        self,
        store: Store[Any],
        access: BackendAccess | None = None,
        *,
        keep_part_size: bool = False,
        prefix: str | None = None,
        shared: bool = False,
        settle_timeout: float = 10.0,
        reopen: Callable[[Store[Any]], Store[Any]] | None = None,
    ) -> None:
        self.store = store
        self.access = access or BackendAccess()
        #: The store holds images of other people: ids begin with the prefix, and only they are looked at.
        self.shared = shared
        self.prefix = prefix or f"storelib-conformance-{secrets.token_hex(6)}-"
        #: Seconds that what is promised "eventually" may take.
        self.settle_timeout = settle_timeout
        self._reopen = reopen or reopened
        self._lock = threading.Lock()
        self._count = 0
        self._added: set[str] = set()
        self._images: dict[str, tuple[str, bytes]] = {}
        self._restore = contextlib.ExitStack()
        self.part = SMALL_PART
        #: Whether a part, and an image of one part, may be sent again when the line breaks.
        self.retries_parts = self.retries_images = True
        self._lower: Callable[[Writer], None] | None = None
        if self.can(Capability.ADD):
            self._choose_part_size(keep_part_size)

    # -- What is under test ---------------------------------------------------------------------------------------

    def can(self, capability: Capability) -> bool:
        """Whether the store says so."""
        return capability in self.store.capabilities

    @functools.cached_property
    def secrets(self) -> list[str]:
        """The values of the store's options that must never be shown."""
        return self.secrets_of(self.store)

    @staticmethod
    def secrets_of(store: Store[Any]) -> list[str]:
        """The same of any store, in every form in which they may be written."""
        options = (*STORE_OPTIONS, *store.options)
        values = (getattr(store.conf, option.dest, None) for option in options if option.secret)
        found = {value for value in values if isinstance(value, str)}
        # A URI that is secret as a whole is so for the sake of its password.
        found |= {password for value in found if (password := urlsplit(value).password)}
        return sorted({form for value in found for form in _forms(value) if len(form) > 3})

    def new_id(self, tag: str = "image") -> str:
        """An id that was never used."""
        with self._lock:
            self._count += 1
            return f"{self.prefix}{self._count:05}-{tag}"

    def sizes(self) -> dict[str, int]:
        """The sizes around which mistakes gather, by name."""
        part = self.part
        return {"0": 0, "1": 1, "part-1": part - 1, "part": part, "part+1": part + 1, "3 parts+1": 3 * part + 1}

    def add(self, image_id: str, data: Any, size: int | None = None, **options: Any) -> StoredImage:
        """``Store.add``, remembered for cleaning up."""
        return self._note(self.store.add(image_id, data, size, **options))

    def copy(self, uri: str, image_id: str, **options: Any) -> StoredImage:
        """``Store.copy``, remembered for cleaning up."""
        return self._note(self.store.copy(uri, image_id, **options))

    def put(self, data: bytes, tag: str = "image") -> str:
        """The URI of a new image with these bytes, planted behind the driver's back if the store cannot add."""
        image_id = self.new_id(tag)
        if self.can(Capability.ADD):
            return self.add(image_id, data, len(data)).uri
        if not self.access.can("plant"):
            not_applicable("the store cannot add and there is no back-end access to plant images through")
        return self.access.plant(image_id, data)

    def image(self, size: int) -> tuple[str, bytes]:
        """URI and bytes of an image that tests only read; made at first use."""
        key = str(size)
        if key not in self._images:
            data = payload(size, "shared")
            self._images[key] = (self.put(data, "shared"), data)
        return self._images[key]

    def read(self, uri: str) -> bytes:
        """All bytes of an image."""
        with self.store.get(uri).data as stream:
            return stream.read()

    def plant(self, image_id: str, data: bytes) -> str:
        """The URI of an image that came by the back-end access, remembered for cleaning up."""
        uri = self.access.plant(image_id, data)
        with self._lock:
            self._added.add(uri)
        return uri

    def location(self, uri: str) -> Location:
        """A URI of this store, parsed."""
        return Location(uri, dict.fromkeys(self.store.schemes, self.store.location_class))

    def missing(self) -> str:
        """The URI of an image that is not there: of one that was removed, or of one like it."""
        if self.can(Capability.ADD | Capability.DELETE):
            uri = self.add(self.new_id("missing"), b"soon gone").uri
            self.remove(uri)
            return uri
        uri, _ = self.image(1)
        base, _, name = uri.rpartition("/")
        return f"{base}/{name}-is-not-there"

    def need(self, capability: Capability) -> None:
        """The rest of a test applies to stores with this capability only."""
        if not self.can(capability):
            not_applicable(f"the store lacks {', '.join((capability & ~self.store.capabilities).names)}")

    def find(self, image_id: str) -> list[ImageInfo]:
        """The entries of the store's list with this id."""
        return [info for info in self.store.list_images() if info.image_id == image_id]

    # -- What is in the back end ----------------------------------------------------------------------------------

    def residue(self, image_id: str) -> set[str]:
        """Names of all that the back end holds for this id, published or not.

        Without a back-end access: what the store itself lists and what it would collect. A store in use may have a very
        long list; it is not asked each time.
        """
        if self.access.can("residue"):
            return self.access.residue(image_id)
        names: set[str] = set()
        if self.can(Capability.LIST) and not self.shared:
            names.update(info.uri for info in self.find(image_id))
        if self.can(Capability.GC):
            names.update(garbage.name for garbage in self.store.find_garbage(0, image_id))
        return names

    def assert_nothing_left(self, image_id: str) -> None:
        """The back end holds nothing for this id, and the id can be used."""
        self.eventually(lambda: not self.residue(image_id), lambda: f"left behind: {sorted(self.residue(image_id))}")
        if self.access.can("read"):
            assert self.access.read(image_id) is None, "the back end holds an image that was never added"
        again = self.add(image_id, b"again", 5)
        assert_same_bytes(self.read(again.uri), b"again")
        self.remove(again.uri)

    def crash(self, image_id: str, data: bytes) -> None:
        """Leave what a process leaves that dies in the middle of an add: two parts, no commit, no abort."""
        if self.die(image_id, data):
            not_applicable("the back end itself frees what a dead add wrote (Writer.self_cleaning)")

    def die(self, image_id: str, data: bytes) -> bool:
        """The same; returns whether the driver says that nothing stays."""
        writer = self.begin(self.store, image_id, data)
        leaves_nothing = writer.self_cleaning
        del writer
        gc.collect()
        return leaves_nothing

    @staticmethod
    def begin(store: Store[Any], image_id: str, data: bytes) -> Writer:
        """A writer that has written its first parts: two, for what is left is to go whole."""
        writer = store.open_writer(image_id, None, None)
        sizes = [writer.part_size(number, None) for number in range(2)]
        writer.reserve(sum(sizes))
        for number, size in enumerate(sizes):
            memory = bytearray((data * (size // len(data) + 1))[:size])
            writer.write(Part(number, sum(sizes[:number]), memoryview(memory)))
        return writer

    def leftovers(self, older_than: float, prefix: str) -> list[Garbage]:
        """What ``gc`` would remove for these ids, once there is something that old."""
        found: list[Garbage] = []

        def look() -> bool:
            found[:] = self.store.find_garbage(older_than, prefix)
            return bool(found)

        self.eventually(look, lambda: f"no leftover of a dead add was found that is {older_than:g} s old")
        return found

    def collect(self, prefix: str, settle_timeout: float | None = None) -> list[Garbage]:
        """``gc`` for these ids, until it has found something: clocks are coarse, and back ends list with delay."""
        found: list[Garbage] = []
        deadline = time.monotonic() + (settle_timeout or self.settle_timeout)
        while not found and time.monotonic() < deadline:
            found = self.store.gc(0, prefix=prefix)
            time.sleep(0 if found else 0.05)
        return found

    # -- Others who use the same back end -------------------------------------------------------------------------

    def reopened(self) -> Store[Any]:
        """A second object of the same store, configured like it."""
        return self._reopen(self.store)

    @functools.cached_property
    def has_second_store(self) -> bool:
        """Whether a second object of the store sees the same images; those of MemoryStore are in the object itself."""
        uri, _ = self.image(1)
        with contextlib.suppress(StoreError):
            return self.reopened().get_size(uri) == 1
        return False

    def second_store(self) -> Store[Any]:
        """A second object that sees the same images."""
        if not self.has_second_store:
            not_applicable("the images are in the store object itself, no other object sees them")
        return self.reopened()

    @contextlib.contextmanager
    def process(self, serving: Callable[[Store[Any]], Serve]) -> Iterator[Child]:
        """A second process with a store object of its own, or with what the fork left it of one in memory."""
        alone = not self.has_second_store
        with child(lambda: serving(self.store if alone else self.reopened())) as process:
            yield process

    @functools.cached_property
    def seen_by_other_processes(self) -> bool:
        """Whether a second process sees images that are added now."""
        if not self.has_second_store:
            return False

        def serving(store: Store[Any]) -> Serve:
            def sees(words: Any) -> bool:
                try:
                    return store.get_size(words[0]) == 1
                except NotFound:
                    return False

            return sees

        with child(lambda: serving(self.reopened())) as process:
            return bool(process.ask(self.put(b"x", "seen")))

    def need_processes(self) -> None:
        """The rest of a test applies to stores whose images are not only in this process."""
        if not self.seen_by_other_processes:
            not_applicable("the images are in the memory of this process only")

    def remove(self, uri: str) -> None:
        """Delete an image where the store can."""
        if self.can(Capability.DELETE):
            self.store.delete(uri)
            with self._lock:
                self._added.discard(uri)

    def tidy(self) -> None:
        """Between two tests: remove what earlier ones added, if that is more than a few, but for what ``image`` made.

        What cannot be removed is left to ``clean``, which tells.
        """
        with self._lock:
            old = self._added - {uri for uri, _ in self._images.values()}
        if len(old) > FEW and self.can(Capability.DELETE):
            self._delete_all(old)

    def clean(self) -> list[str]:
        """Remove every image with the prefix and every leftover; returns what could not be removed, and why."""
        trouble = []
        uris = set(self._added)
        if self.can(Capability.LIST) and self.can(Capability.DELETE):
            try:
                uris.update(info.uri for info in self.store.list_images() if self.prefix in (info.image_id or info.uri))
            except Exception as error:  # noqa: BLE001
                trouble.append(f"listing: {error}")
        if self.can(Capability.DELETE):
            trouble += self._delete_all(uris)
        if self.can(Capability.GC):
            try:
                self.store.gc(0, prefix=self.prefix)
            except Exception as error:  # noqa: BLE001
                trouble.append(f"gc: {error}")
        self._added.clear()
        self._images.clear()
        self._restore.close()
        return trouble

    def _delete_all(self, uris: Iterable[str]) -> list[str]:
        """Delete these images; returns what went wrong, image by image."""
        # A thousand images one after the other are half a minute where each delete is a few round trips.
        with ThreadPoolExecutor(CLEANERS) as cleaners:
            return [trouble for trouble in cleaners.map(self._trouble_with_deleting, sorted(uris)) if trouble]

    def _trouble_with_deleting(self, uri: str) -> str | None:
        try:
            self.remove(uri)
        except NotFound:
            self._added.discard(uri)
        except Exception as error:  # noqa: BLE001  (the others must go all the same)
            return f"{uri}: {error}"
        return None

    # -- Waiting and threads --------------------------------------------------------------------------------------

    def eventually(self, true: Callable[[], Any], otherwise: Callable[[], str]) -> None:
        """Wait for ``true``: back ends list and forget with delay, and clocks are coarse."""
        deadline = time.monotonic() + self.settle_timeout
        while not true():
            if time.monotonic() > deadline:
                raise AssertionError(otherwise())
            time.sleep(0.05)

    @contextlib.contextmanager
    def no_thread_left(self) -> Iterator[None]:
        """Whatever happens inside has ended its threads soon after."""
        before = set(threading.enumerate())

        def new() -> list[str]:
            return sorted(thread.name for thread in set(threading.enumerate()) - before)

        yield
        self.eventually(lambda: not new(), lambda: f"threads left running: {new()}")

    # -- Tampering ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writers_changed(self, change: Callable[[Writer], None]) -> Iterator[list[Writer]]:
        """Every Writer opened meanwhile passes through ``change`` first; the list fills with them."""
        opened: list[Writer] = []

        def changed(writer: Writer) -> None:
            change(writer)
            opened.append(writer)

        with _returning_changed(self.store, "open_writer", changed):
            yield opened

    @contextlib.contextmanager
    def readers_changed(self, change: Callable[[Reader], None]) -> Iterator[list[Reader]]:
        """The same for Readers."""
        opened: list[Reader] = []

        def changed(reader: Reader) -> None:
            change(reader)
            opened.append(reader)

        with _returning_changed(self.store, "open_reader", changed):
            yield opened

    def _note(self, stored: StoredImage) -> StoredImage:
        shown = f"{stored} {stored.metadata}"
        assert not any(secret in shown for secret in self.secrets), "a credential is in what add or copy returns"
        with self._lock:
            self._added.add(stored.uri)
        return stored

    def _choose_part_size(self, keep: bool) -> None:
        writer = self.store.open_writer(self.new_id("size"), None, None)
        self.part = writer.part_size(0, None)
        smallest = getattr(writer, "smallest_part", None)
        self.retries_parts = writer.retryable
        self.retries_images = writer.retryable or writer.put is not None
        # That it is harmless here is a promise with a test of its own.
        with contextlib.suppress(Exception):
            writer.abort()
        writer.close()
        if keep or smallest is None or self.part <= max(smallest, SMALL_PART):
            return
        self.part = part = max(smallest, SMALL_PART)

        def lower(writer: Writer) -> None:
            vars(writer)["part_size"] = lambda number, size: part

        self._lower = lower
        self._restore.enter_context(_returning_changed(self.store, "open_writer", lower))

    @contextlib.contextmanager
    def with_small_parts(self, store: Store[Any]) -> Iterator[Store[Any]]:
        """Another object of the store, with parts as small as those of the one under test."""
        if self._lower is None:
            yield store
        else:
            with _returning_changed(store, "open_writer", self._lower):
                yield store


@contextlib.contextmanager
def replaced(owner: object, name: str, value: Any) -> Iterator[None]:
    """Give one object another attribute for a while."""
    had = vars(owner).get(name)
    vars(owner)[name] = value
    try:
        yield
    finally:
        if had is None:
            del vars(owner)[name]
        else:
            vars(owner)[name] = had


@contextlib.contextmanager
def _returning_changed(store: Store[Any], method: str, change: Callable[[Any], None]) -> Iterator[None]:
    """What a method of one store returns passes through ``change`` for a while."""
    plain = getattr(store, method)

    def changed(*arguments: Any) -> Any:
        returned = plain(*arguments)
        change(returned)
        return returned

    with replaced(store, method, changed):
        yield


def reopened(store: Store[Any]) -> Store[Any]:
    """Another object of the same class, name and options, as another process would make it."""
    other = type(store)(store.name, store.conf)
    other.configure()
    return other


def _forms(secret: str) -> Iterator[str]:
    """What a secret looks like: as it is, in a URL, in hexadecimal, and in base64 behind any number of other bytes."""
    data = secret.encode()
    yield from (secret, quote(secret, safe=""), data.hex(), b64encode(data).decode())
    for before in range(3):
        # Four characters are three bytes; those that hold bits of what is before or behind it are left out.
        start, end = -before % 3, (before + len(data)) // 3 * 3 - before
        yield b64encode(data[start:end]).decode()


def not_applicable(why: str) -> NoReturn:
    """This promise is not one the store makes."""
    pytest.skip(f"not applicable: {why}")


@functools.lru_cache(maxsize=8)
def payload(size: int, seed: str = "") -> bytes:
    """Bytes that never repeat, so that anything lost, moved or doubled shows."""
    return hashlib.shake_128(f"{size} {seed}".encode()).digest(size)


def assert_same_bytes(actual: bytes, expected: bytes) -> None:
    """Equal, or else where they first differ: nobody wants to see megabytes compared."""
    if actual == expected:
        return
    common = min(len(actual), len(expected))
    step = 4096
    start = next((at for at in range(0, common, step) if actual[at : at + step] != expected[at : at + step]), common)
    first = next((at for at in range(start, common) if actual[at] != expected[at]), common)
    raise AssertionError(
        f"wrong bytes: {len(actual)} instead of {len(expected)} bytes, the first difference is at byte {first}"
    )
