# SPDX-License-Identifier: Apache-2.0
"""What all groups of promises stand on: the fixtures, and how a test says what a store must have for it to apply."""

from __future__ import annotations

import contextlib
import inspect
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

import pytest

from storelib.capabilities import Capability
from storelib.driver import Store
from storelib.exceptions import causes
from storelib.testing.conformance.backend_access import BackendAccess
from storelib.testing.conformance.bench import Bench, not_applicable, reopened

T = TypeVar("T", bound=Callable[..., Any])

#: Where ``needs``, ``lacks``, ``wants`` and ``sampled`` leave what they say; ``storelib.testing.plugin`` reads it by
#: these names.
NEEDS = "storelib_needs"
LACKS = "storelib_lacks"
WANTS = "storelib_wants"
SAMPLED = "storelib_sampled"
#: India's time, five and a half hours ahead of UTC (POSIX writes that with a minus).
FAR_FROM_UTC = "IST-5:30"


def needs(capability: Capability) -> Callable[[T], T]:
    """The promise, or every promise of the class, is made by stores with all of these capabilities only."""
    return _mark(NEEDS, capability)


def lacks(capability: Capability) -> Callable[[T], T]:
    """The promise is made by stores without this capability only."""
    return _mark(LACKS, capability)


def wants(fixture: str) -> Callable[[T], T]:
    """The promise is tried by classes that define this fixture only."""

    def mark(target: T) -> T:
        target.__dict__[WANTS] = fixture
        return target

    return mark


def sampled(chosen: Callable[..., bool]) -> Callable[[T], T]:
    """Where a ``sample`` is enough the promise is tried with ``chosen`` parameters, which it gets by their names."""

    def mark(target: T) -> T:
        target.__dict__[SAMPLED] = chosen
        return target

    return mark


def _mark(name: str, capability: Capability) -> Callable[[T], T]:
    def mark(target: T) -> T:
        members = vars(target).values() if inspect.isclass(target) else (target,)
        for member in members:
            if inspect.isfunction(member) and (member is target or member.__name__.startswith("test_")):
                member.__dict__[name] = member.__dict__.get(name, Capability(0)) | capability
        return target

    return mark


class Promises:
    """Base of all groups. A subclass for one driver gives a ``store`` fixture and, better, a ``backend_access``."""

    #: By this the plugin knows the suite's classes without importing it.
    storelib_promises: ClassVar[bool] = True
    #: What the store is expected to be able to do. With it, a store that can do less or more fails, and promises it
    #: does not make are deselected; without it, they are skipped when their turn comes.
    capabilities: ClassVar[Capability | None] = None
    #: Names of further tests that do not apply to this store, for reasons no capability tells.
    not_applicable: ClassVar[frozenset[str]] = frozenset()
    #: Try each promise with some of the sizes, sources, ranges and ids that it is made for, instead of all: for a back
    #: end whose calls take a second each, and for another set-up of a driver that was tried with all of them.
    sample: ClassVar[bool] = False
    #: Leave parts as large as the driver makes them; otherwise they are lowered to ``Writer.smallest_part``.
    keep_part_size: ClassVar[bool] = False

    #: Seconds that the back end may take to list what it has, or to forget what is gone.
    settle_timeout: ClassVar[float] = 10.0

    #: Images among which a listing is looked at. A thousand and some, because many back ends list in pages of a
    #: thousand; fewer where pages are smaller, or the back end is slow and lists without any.
    many_images: ClassVar[int] = 1010

    #: Sequences of calls that are made up for ``test_store_behaves_like_a_dict``; fewer for a slow back end.
    sequences: ClassVar[int | None] = None

    @classmethod
    def reopened(cls, store: Store[Any]) -> Store[Any]:
        """A second object of the same store. Override it where class, name and options are not all that makes it."""
        return reopened(store)

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls) -> Store[Any]:
        """The configured store under test, with nobody else's images in it; scope "class" or wider."""
        raise NotImplementedError(f"{cls.__name__} needs a class-scoped fixture 'store'")

    @pytest.fixture(scope="class")
    @classmethod
    def backend_access(cls) -> BackendAccess | None:
        """The back end seen behind the driver's back, if there is a way."""
        return None

    @pytest.fixture(scope="class")
    @classmethod
    def bench(cls, store: Store[Any], backend_access: BackendAccess | None) -> Iterator[Bench]:
        """The store on its bench; cleaned at the end."""
        bench = Bench(
            store,
            backend_access,
            keep_part_size=cls.keep_part_size,
            settle_timeout=cls.settle_timeout,
            reopen=cls.reopened,
        )
        yield bench
        trouble = bench.clean()
        assert not trouble, f"could not be cleaned up: {trouble}"

    @pytest.fixture(autouse=True)
    def _applicable(self, request: pytest.FixtureRequest, bench: Bench) -> None:
        marks = request.function.__dict__
        bench.need(marks.get(NEEDS, Capability(0)))
        present = marks.get(LACKS, Capability(0)) & bench.store.capabilities
        if present:
            not_applicable("a promise of stores that cannot do what this one can")

    @pytest.fixture
    def far_from_utc(self) -> Iterator[None]:
        """The clock on the wall shows another time than that of UTC, as it does for most who run a driver."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TZ", FAR_FROM_UTC)
            time.tzset()
            yield
        time.tzset()

    @pytest.fixture(autouse=True)
    def _tidied(self, bench: Bench) -> Iterator[None]:
        yield
        bench.tidy()

    @pytest.fixture(autouse=True)
    def _no_credential_logged(self, bench: Bench) -> Iterator[None]:
        with logged(type(bench.store).__module__.partition(".")[0], "storelib") as lines:
            yield
        assert_no_secret(bench.secrets, "\n".join(lines), "the log")

    @contextlib.contextmanager
    def refuses(self, bench: Bench, *errors: type[BaseException]) -> Iterator[pytest.ExceptionInfo[BaseException]]:
        """``pytest.raises`` that also looks for credentials in what is raised."""
        with pytest.raises(errors) as caught:
            yield caught
        for error in causes(caught.value):
            notes = getattr(error, "__notes__", ())
            assert_no_secret(bench.secrets, f"{error} {error!r} {vars(error)} {notes}", "an exception")


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.NOTSET)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record))


@contextlib.contextmanager
def logged(*loggers: str) -> Iterator[list[str]]:
    """What is logged meanwhile: everything by these loggers, by all others what passes their own level."""
    lines: list[str] = []
    handler = _Lines(lines)
    levels = {name: logging.getLogger(name).level for name in loggers}
    logging.getLogger().addHandler(handler)
    for name in levels:
        logging.getLogger(name).setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        logging.getLogger().removeHandler(handler)


def assert_no_secret(secrets: list[str], text: str, where: str) -> None:
    """None of the secrets is in ``text``; the message must not show it either."""
    assert not any(secret in text for secret in secrets), f"a credential is in {where}"


def without_key_name(url: str) -> str:
    """A signed URL without the name of the key that signed it, which S3 puts there and which opens nothing."""
    return re.sub(r"(X-Amz-Credential|AWSAccessKeyId)=[^&]*", r"\1=", url)
