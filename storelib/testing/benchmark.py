# SPDX-License-Identifier: Apache-2.0
"""How fast a store is: images go in, are read, looked up and deleted, and every byte that comes back is compared.

``storelib bench`` shows what ``run`` yields. All images have ids that begin with ``PREFIX`` and a random part of the
run's own, and none is left, also when the run is interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import resource
import secrets
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from storelib.capabilities import Capability
from storelib.driver import Digests, Store
from storelib.exceptions import Invalid, NotFound, StorageFull, StoreError
from storelib.transfer import upload
from storelib.transfer.contract import Progress

LOG = logging.getLogger(__name__)

MiB = 1024 * 1024
#: How the ids of these images begin.
PREFIX = "storelib-bench-"
#: Seconds after which an image of a run that was killed is removed by the next one.
STALE = 6 * 3600.0
#: Of a sparse image, one block of a MiB in so many has data.
SPARSE = 10
#: Small images are handled by so many at a time, or as many as these bytes hold.
_MANY, _BYTES = 64, 16 * MiB
_STAMP = 16
_CAPABILITIES = Capability.READ | Capability.ADD | Capability.DELETE


@dataclass(frozen=True)
class Case:
    """One kind of work: images of ``size`` bytes, ``at_once`` of them in as many threads.

    ``digests``: md5, where the store's options ask for it, and sha512 are computed, as for every add; else they are
    known beforehand, as in copies. ``sparse``: nine tenths of the image are holes.
    """

    size: int
    at_once: int = 1
    known_size: bool = True
    digests: bool = True
    sparse: bool = False

    def __post_init__(self) -> None:
        if self.size < 1 or not 1 <= self.at_once <= 256:
            raise Invalid(f"a case needs 1 byte or more and 1 to 256 images at once, not {self}")

    @property
    def images(self) -> int:
        """How many images one round handles."""
        return max(self.at_once, min(_MANY, _BYTES // self.size))

    @property
    def variant(self) -> str:
        """What is not as usual, in a few words."""
        unusual = {
            "unknown size": not self.known_size,
            "known digests": not self.digests,
            "nine tenths holes": self.sparse,
        }
        return ", ".join(name for name, applies in unusual.items() if applies)


@dataclass(frozen=True)
class Measurement:
    """What one operation reached in one case; all bytes that were read were the right ones.

    ``images`` and ``rate`` are the medians of the rounds, in images and in MiB per second; ``slowest`` and ``fastest``
    are of the same unit as ``rate``. ``cpu`` is the seconds of processor time that this process spent per GiB, and
    ``memory`` the bytes by which its resident set grew at most, None where that cannot be told.
    """

    operation: str
    case: Case
    images: float
    rate: float
    slowest: float
    fastest: float
    cpu: float
    memory: int | None


def cases(sizes: Sequence[int], at_once: Sequence[int]) -> list[Case]:
    """Every size with every number at once, and for the largest size what is not as usual, one image at a time."""
    largest = max(sizes)
    unusual = [Case(largest, known_size=False), Case(largest, digests=False), Case(largest, sparse=True)]
    return [*(Case(size, number) for size in sizes for number in at_once), *unusual]


def written(plan: Iterable[Case], rounds: int) -> int:
    """Bytes that a run writes into the store in all, holes included."""
    return sum(case.size * case.images * (rounds + 1) for case in plan)


def needed(plan: Iterable[Case]) -> int:
    """Bytes that a run has in the store at most."""
    return max(case.size * case.images for case in plan)


def hashing_rates() -> dict[str, float]:
    """MiB per second that one core of this machine hashes, the limit of most adds."""
    block = secrets.token_bytes(MiB)
    rates = {}
    for name in ("md5", "sha512"):
        digest, begun, done = hashlib.new(name, usedforsecurity=False), time.perf_counter(), 0
        while time.perf_counter() - begun < 0.2:
            digest.update(block)
            done += 1
        rates[name] = done / (time.perf_counter() - begun)
    return rates


def run(
    store: Store[Any],
    plan: Sequence[Case],
    *,
    rounds: int = 3,
    seconds: float = 600.0,
    progress: Progress | None = None,
) -> Iterator[Measurement]:
    """Measure ``plan`` case by case: ``rounds`` times after a warm-up, no new round after ``seconds``.

    Raises Invalid for a store that cannot add, read and delete, StorageFull where ``check`` tells of too little room,
    StoreError where other bytes come back than were stored, and whatever the store raises.
    """
    if rounds < 1 or not plan:
        raise Invalid("a run needs a case and a round")
    if _CAPABILITIES not in store.capabilities:
        reason = f": {store.add_disabled}" if store.add_disabled else ""
        raise Invalid(f"store {store.name} cannot be measured, images cannot be added, read and deleted{reason}")
    _check_room(store, needed(plan))
    remove_stale(store)
    meter = _Meter(written(plan, rounds) * 3, progress)
    deadline = time.monotonic() + seconds
    with _Images(store) as images:
        for case in plan:
            if time.monotonic() > deadline:
                return
            yield from _measure(images, case, rounds, deadline, meter)


def remove_stale(store: Store[Any]) -> int:
    """Remove what runs left that were killed at least ``STALE`` seconds ago; returns how many images."""
    if Capability.GC in store.capabilities:
        store.gc(STALE, PREFIX)
    if Capability.LIST not in store.capabilities:
        return 0
    before = time.time() - STALE
    stale = [
        info.uri
        for info in store.list_images()
        if (info.image_id or "").startswith(PREFIX) and info.modified is not None and info.modified < before
    ]
    for uri in stale:
        with contextlib.suppress(NotFound):
            store.delete(uri)
    return len(stale)


def _check_room(store: Store[Any], size: int) -> None:
    if Capability.CHECK not in store.capabilities:
        return
    free = store.check().free
    if free is not None and free < size:
        raise StorageFull(f"store {store.name}: {free} bytes are free, and {size} are needed; choose smaller sizes")


class _Pattern:
    """The bytes of one image, of which no block of a MiB equals another one, or one of another image."""

    _noise = secrets.token_bytes(MiB - _STAMP)

    def __init__(self, number: int, size: int, sparse: bool) -> None:
        self._number = number
        self._size = size
        self._step = SPARSE if sparse else 1

    def __iter__(self) -> Iterator[bytes]:
        for index in range(-(-self._size // MiB)):
            block = bytes(MiB) if index % self._step else self._stamp(index) + self._noise
            rest = self._size - index * MiB
            yield block if rest >= MiB else block[:rest]

    def _stamp(self, index: int) -> bytes:
        return self._number.to_bytes(_STAMP // 2, "big") + index.to_bytes(_STAMP // 2, "big")

    def digests(self) -> Digests:
        """Of these bytes, to be known beforehand."""
        multihash, md5 = hashlib.sha512(), hashlib.md5(usedforsecurity=False)
        for block in self:
            multihash.update(block)
            md5.update(block)
        return Digests(md5.hexdigest(), multihash.hexdigest())

    def write(self, path: str) -> None:
        """As a file with holes."""
        with open(path, "wb") as file:
            for index, block in enumerate(self):
                if not index % self._step:
                    file.seek(index * MiB)
                    file.write(block)
            file.truncate(self._size)


class _Images:
    """The images of one run: none is left when the context ends, however it ends."""

    def __init__(self, store: Store[Any]) -> None:
        self.store = store
        #: Of each image that there is or, where an add has not told yet, may be.
        self.uris: dict[int, str | None] = {}
        self._prefix = f"{PREFIX}{secrets.token_hex(6)}-"
        self._ended = threading.Event()
        self._numbers = 0
        self._directory = tempfile.TemporaryDirectory(prefix=PREFIX)

    def __enter__(self) -> _Images:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            for number in list(self.uris):
                try:
                    # Ctrl-C may have come between what the store did and the note of it.
                    with contextlib.suppress(NotFound):
                        self.delete(number)
                except StoreError as failure:
                    left = "is left" if self.uris[number] else "may be left"
                    LOG.warning("store %s: image %s %s: %s", self.store.name, self.name(number), left, failure)
            if Capability.GC in self.store.capabilities:
                # An add that was interrupted has ended, whether its rollback could remove all or not.
                with contextlib.suppress(StoreError):
                    self.store.gc(0, self._prefix)
        finally:
            self._directory.cleanup()

    def name(self, number: int) -> str:
        return f"{self._prefix}{number}"

    def sources(self, case: Case) -> list[tuple[int, Any, Digests | None]]:
        """New images for one round: number, data, and digests if they are to be known."""
        numbers = range(self._numbers, self._numbers + case.images)
        self._numbers += case.images
        found: list[tuple[int, Any, Digests | None]] = []
        for number in numbers:
            pattern = _Pattern(number, case.size, case.sparse)
            data: Any = self._interruptible(pattern)
            if case.sparse:
                data = os.path.join(self._directory.name, str(number))
                pattern.write(data)
            found.append((number, data, None if case.digests else pattern.digests()))
        return found

    def forget(self, sources: Iterable[tuple[int, Any, object]]) -> None:
        for _, data, _ in sources:
            if isinstance(data, str):
                os.unlink(data)

    def add(self, case: Case, source: tuple[int, Any, Digests | None]) -> None:
        number, data, digests = source
        size = case.size if case.known_size else None
        self.uris[number] = None
        self.uris[number] = upload.add(self.store, self.name(number), data, size, digests=digests).uri

    def get(self, case: Case, number: int) -> None:
        buffer = bytearray(min(MiB, case.size))
        view = memoryview(buffer)
        with self.store.get(self._uri(number)).data as stream:
            for block in self._interruptible(_Pattern(number, case.size, case.sparse)):
                filled = 0
                while filled < len(block):
                    count = stream.readinto(view[filled : len(block)])
                    if not count:
                        break
                    filled += count
                if view[:filled] != block if filled != len(buffer) else buffer != block:
                    raise StoreError(f"store {self.store.name}: image {self.name(number)} reads back as other bytes")

    def look(self, number: int) -> None:
        self.store.get_size(self._uri(number))

    def delete(self, number: int) -> None:
        self.store.delete(self._uri(number))
        del self.uris[number]

    def _uri(self, number: int) -> str:
        """Raises NotFound for an image that there is not, or whose add was interrupted where images cannot be found."""
        uri = self.uris[number]
        if uri is None:
            found = self.store.find_image(self.name(number)) if Capability.LIST in self.store.capabilities else None
            if found is None:
                raise NotFound(f"store {self.store.name}: there is no image {self.name(number)}")
            uri = found.uri
        return uri

    def _interruptible(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        for block in blocks:
            if self._ended.is_set():
                raise InterruptedError("the run was interrupted")
            yield block

    def each(self, function: Callable[[Any], None], items: Sequence[Any], at_once: int) -> None:
        """``function`` of all, as so many callers; the first error is raised when all of them have ended."""
        if at_once == 1:
            for item in items:
                function(item)
            return
        with ThreadPoolExecutor(at_once, thread_name_prefix="storelib-bench") as pool:
            try:
                for done in [pool.submit(function, item) for item in items]:
                    done.result()
            except BaseException:
                self._ended.set()
                pool.shutdown(cancel_futures=True)
                raise


class _Meter:
    """Tells the caller how much of the whole is done."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._done = 0
        self._progress = progress

    def count(self, size: int) -> None:
        self._done += size
        if self._progress is not None:
            self._progress(self._done, self._total)


@dataclass
class _Round:
    seconds: float
    cpu: float
    memory: int | None


def _measure(images: _Images, case: Case, rounds: int, deadline: float, meter: _Meter) -> Iterator[Measurement]:
    """One case: what is added in a round is read twice, looked up and deleted before the next one begins."""
    found: dict[str, list[_Round]] = {}
    for index in range(rounds + 1):
        if index > 1 and time.monotonic() > deadline:
            break
        sources = images.sources(case)
        try:
            numbers = [number for number, _, _ in sources]
            steps: dict[str, tuple[Callable[[Any], None], Sequence[Any]]] = {
                "add": (functools.partial(images.add, case), sources),
                "get": (functools.partial(images.get, case), numbers),
                "get again": (functools.partial(images.get, case), numbers),
                "get_size": (images.look, numbers),
                "delete": (images.delete, numbers),
            }
            for operation, (function, items) in steps.items():
                timed = _timed(functools.partial(images.each, function, items, case.at_once))
                # The first round opens connections and fills caches.
                if index:
                    found.setdefault(operation, []).append(timed)
                if operation in ("add", "get", "get again"):
                    meter.count(case.size * case.images)
        finally:
            images.forget(sources)
    for operation, taken in found.items():
        yield _summed_up(operation, case, taken)


def _timed(function: Callable[[], None]) -> _Round:
    before = _reset_peak()
    cpu, begun = _cpu_seconds(), time.perf_counter()
    function()
    return _Round(time.perf_counter() - begun, _cpu_seconds() - cpu, _peak_growth(before))


def _summed_up(operation: str, case: Case, rounds: Sequence[_Round]) -> Measurement:
    size = case.size * case.images
    rates = [size / MiB / each.seconds for each in rounds]
    memory = [each.memory for each in rounds if each.memory is not None]
    return Measurement(
        operation,
        case,
        images=statistics.median(case.images / each.seconds for each in rounds),
        rate=statistics.median(rates),
        slowest=min(rates),
        fastest=max(rates),
        cpu=statistics.median(each.cpu for each in rounds) * 1024 * MiB / size,
        memory=max(memory, default=None),
    )


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _reset_peak() -> int | None:
    """The bytes that are resident now, the mark of the peak set to them (proc(5), clear_refs); None where neither."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
        return _status("VmRSS")
    except OSError:
        return None


def _peak_growth(before: int | None) -> int | None:
    return None if before is None else max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        line = next(line for line in file if line.startswith(field))
    return int(line.split()[1]) * 1024
