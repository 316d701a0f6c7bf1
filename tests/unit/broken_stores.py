# SPDX-License-Identifier: Apache-2.0
"""Stores that are wrong in one way each, with the name of the promise that must reject them.

Not tests themselves: test_conformance_rejects.py runs ``TestBroken`` on each of them.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import fnmatch
import functools
import hashlib
import http.server
import io
import logging
import os
import pathlib
import re
import socket
import sqlite3
import struct
import sys
import tempfile
import threading
import time
import unicodedata
import urllib.parse
import weakref
import zlib
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "docs" / "examples"))

from memory_access import MemoryAccess
from oslo_config import cfg
from sqlite_store import SqliteReader, SqliteStore, SqliteWriter

from storelib.capabilities import Capability
from storelib.driver import (
    Area,
    Committed,
    Deletion,
    Digest,
    Extent,
    Garbage,
    Health,
    ImageData,
    ImageInfo,
    Part,
    ServerSideCopy,
    Store,
)
from storelib.exceptions import (
    BadStoreUri,
    Duplicate,
    Forbidden,
    Invalid,
    NotFound,
    RemoteServiceUnavailable,
    StorageFull,
    StoreError,
    UnknownHashingAlgo,
)
from storelib.registry import open_store
from storelib.testing.conformance import FaultyLine, StoreConformance
from storelib.testing.faults import FaultyProxy
from storelib.testing.memory import Image, MemoryLocation, MemoryReader, MemoryStore, MemoryWriter
from storelib.uris import quote, unquote

#: Seconds that a thread is left running: longer than any test looks for it.
STAYS = 60
#: Every broken store and the test that must fail on it.
BROKEN: list[tuple[type[Store[Any]], str]] = []


def rejected_by(test):
    def remember(store):
        BROKEN.append((store, test))
        return store

    return remember


class TestBroken(StoreConformance):
    """The whole suite; the fixture ``broken`` comes from the plugin of the run."""

    settle_timeout = 0.5

    #: Two pages of ``ListsOnePage``.
    many_images = 210

    @classmethod
    def reopened(cls, store):
        other = super().reopened(store)
        if isinstance(store, MemoryStore):
            other.backend = store.backend
        return other

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, broken):
        return broken

    @pytest.fixture(scope="class")
    @classmethod
    def backend_access(cls, store):
        return MemoryAccess(store) if isinstance(store, MemoryStore) else None

    @pytest.fixture(scope="class")
    @classmethod
    def new_place(cls, store, tmp_path_factory):
        new = tmp_path_factory.mktemp
        return lambda **options: open_store(type(store), sqlite_store_file=new("new") / "images.db", **options)

    @pytest.fixture(scope="class")
    @classmethod
    def full_store(cls, store):
        other = open_store(type(store), store.name, memory_store_part_size=64 * 1024)
        other.room = 100_000
        return other

    @pytest.fixture(scope="class")
    @classmethod
    def denied_store(cls, store):
        return store.another(trouble=type(store).denied, memory_store_key="wrong and secret")

    @pytest.fixture(scope="class")
    @classmethod
    def unreachable_store(cls, store):
        return store.another(trouble=type(store).unreachable)

    @pytest.fixture(scope="class")
    @classmethod
    def untrusted_store(cls, store):
        return store.another(trouble=type(store).untrusted)

    @pytest.fixture(scope="class")
    @classmethod
    def faulty_line(cls, store):
        with Echo() as server, FaultyProxy(server.address) as proxy:
            yield FaultyLine(proxy, functools.partial(store.another, line=proxy.address))


class Faulty(MemoryStore):
    """Base of all: a MemoryStore whose writer and reader can be replaced. It is not broken itself."""

    Writer: ClassVar[type[MemoryWriter]] = MemoryWriter
    Reader: ClassVar[type[MemoryReader]] = MemoryReader

    def open_writer(self, image_id, size, context):
        if image_id in self.backend.images:
            raise Duplicate(f"image {image_id!r} exists in store {self.name}")
        return self.Writer(self, image_id)

    def open_reader(self, location, offset, length, context):
        return self.Reader(self.image(location).data)


class Echo:
    """A server that sends back what it is sent, each message behind its length."""

    def __init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()[:2]

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    @staticmethod
    def _serve(connection):
        with connection, connection.makefile("rb") as sent, contextlib.suppress(OSError, struct.error):
            while True:
                length = sent.read(8)
                connection.sendall(length + sent.read(*struct.unpack("!Q", length)))


class OverTheLine(MemoryWriter):
    """Every part, and word of every step, goes to the server and back."""

    def write(self, part):
        data = self.store.exchange(bytes(part.data))
        super().write(Part(part.number, part.offset, memoryview(data)))

    def publish(self, data):
        committed = super().publish(self.store.exchange(data))
        self.store.exchange(b"is published")
        return committed

    def abort(self):
        super().abort()
        self.store.exchange(b"is removed")


class FromTheLine(MemoryReader):
    def __init__(self, store, data):
        super().__init__(data)
        self.store = store

    def read_into(self, offset, view):
        data = self.store.exchange(self.data[offset : offset + len(view)])
        view[: len(data)] = data
        return len(data)


def _close(*opened):
    for each in opened:
        each.close()


class Networked(Faulty):
    """Base of stores behind a network: all data goes over a line where there is one. It is not broken itself."""

    options = (
        *MemoryStore.options,
        cfg.StrOpt("memory_store_key", default="right and secret", secret=True, help="Shown to the server."),
    )
    capabilities = MemoryStore.capabilities & ~Capability.ATOMIC_ADD
    Writer = OverTheLine
    Reader = FromTheLine
    line = None

    # What is raised whatever is asked; none for the store under test.
    trouble = None
    denied = Forbidden("the server does not know the key", transient=False)
    unreachable = RemoteServiceUnavailable("nobody is there")
    untrusted = RemoteServiceUnavailable("the certificate is unknown; see memory_store_key", transient=False)

    def another(self, trouble=None, line=None, **options):
        other = open_store(type(self), self.name, **options)
        other.backend, other.trouble, other.line = self.backend, trouble, line
        return other

    def configure(self):
        super().configure()
        self.one_at_a_time = threading.Lock()

    def ask(self):
        if self.trouble:
            raise self.trouble

    @functools.cached_property
    def connection(self):
        connection = socket.create_connection(self.line, timeout=0.3)
        answers = connection.makefile("rb")
        self.hang_up = weakref.finalize(self, _close, answers, connection)
        return connection, answers

    def exchange(self, data):
        if not self.line:
            return data
        with self.one_at_a_time:
            try:
                return self.exchanged(data)
            except OSError as error:
                if self.__dict__.pop("connection", None):
                    self.hang_up()
                raise self.lost(error) from error

    def lost(self, error):
        return RemoteServiceUnavailable(f"the line broke: {error}")

    def exchanged(self, data):
        connection, answers = self.connection
        connection.sendall(struct.pack("!Q", len(data)) + data)
        response = answers.read(8 + len(data))
        if len(response) < 8 + len(data):
            raise OSError("cut")
        return response[8:]

    def open_writer(self, image_id, size, context):
        self.ask()
        return super().open_writer(image_id, size, context)

    def open_reader(self, location, offset, length, context):
        self.ask()
        return self.Reader(self, self.image(location).data)

    def image(self, location):
        self.ask()
        return super().image(location)

    def remove(self, location, context, deletion):
        self.ask()
        super().remove(location, context, deletion)

    def images(self):
        self.ask()
        return super().images()

    def garbage(self, older_than, prefix):
        self.ask()
        return super().garbage(older_than, prefix)

    def probe(self):
        self.ask()
        return super().probe()


# -- Adding ---------------------------------------------------------------------------------------------------------


@rejected_by("test_image_of_any_size_comes_back")
class SwapsBytes(Faulty):
    class Writer(MemoryWriter):
        def write(self, part):
            data = bytearray(part.data)
            data[:2] = data[1::-1]
            super().write(part._replace(data=memoryview(data)))


@rejected_by("test_image_of_any_size_comes_back")
class DropsTheLastPart(Faulty):
    class Writer(MemoryWriter):
        def commit(self, size, digests):
            parts = self.backend.uploads[self.token].parts
            if len(parts) > 1:
                del parts[max(parts)]
            return super().commit(size, digests)


@rejected_by("test_image_of_any_size_comes_back")
class HasNoEmptyImages(Faulty):
    class Writer(MemoryWriter):
        def publish(self, data):
            if not data:
                return Committed(self.store.location(self.image_id))
            return super().publish(data)


@rejected_by("test_image_of_any_size_comes_back")
class PutsShort(Faulty):
    class Writer(MemoryWriter):
        def put_whole(self, data, digests):
            return self.publish(bytes(data[:-1]))


@rejected_by("test_part_is_not_kept")
class KeepsViews(Faulty):
    class Writer(MemoryWriter):
        def write(self, part):
            super().write(part)
            self.backend.uploads[self.token].parts[part.offset] = part.data


@rejected_by("test_checksum_of_a_part_goes_on")
class ChecksumsTheLastPiece(Faulty):
    class Writer(MemoryWriter):
        def checksum(self, data, value):
            return zlib.crc32(data)


@rejected_by("test_file_that_is_read_as_it_is_sent_comes_back")
class KeepsPiecesOfAFile(Faulty):
    class Writer(MemoryWriter):
        def write_range(self, number, file):
            offset = number * self.part_size(number, None)
            self.write(Part(number, offset, b"".join(list(file.pieces()))))


@rejected_by("test_file_that_is_read_as_it_is_sent_comes_back")
class SendsOnePieceOfAFile(Faulty):
    class Writer(MemoryWriter):
        def write_range(self, number, file):
            self.write(Part(number, number * self.part_size(number, None), file.read(1)))


@rejected_by("test_parts_may_arrive_in_any_order")
class IgnoresOffsets(Faulty):
    class Writer(MemoryWriter):
        def write(self, part):
            with self.backend.lock:
                upload = self.backend.uploads.get(self.token)
                arrived = sum(map(len, upload.parts.values())) if upload else 0
            super().write(part._replace(offset=arrived))


@rejected_by("test_long_runs_of_zeros")
class IgnoresTheSizeOfSparseImages(Faulty):
    class Writer(MemoryWriter):
        def commit(self, size, digests):
            upload = self.backend.uploads.get(self.token)
            end = max((offset + len(data) for offset, data in upload.parts.items()), default=0) if upload else 0
            return super().commit(end, digests)


@rejected_by("test_long_runs_of_zeros")
class ClosesUpHoles(Faulty):
    class Writer(MemoryWriter):
        def commit(self, size, digests):
            upload = self.backend.uploads.get(self.token)
            data = b"".join(data for _, data in sorted(upload.parts.items())) if upload else b""
            return self.publish(data.ljust(size, b"\0"))


@rejected_by("test_digests_are_those_of_the_bytes")
class WrongDigests(Faulty):
    def add(self, *arguments, **options):
        return super().add(*arguments, **options)._replace(multihash="0" * 128)


@rejected_by("test_digests_are_those_of_the_bytes")
class OneAlgorithmFitsAll(Faulty):
    def add(self, *arguments, hashing_algo="sha512", **options):
        return super().add(*arguments, **options)


@rejected_by("test_digests_are_those_of_the_bytes")
class NoChecksum(Faulty):
    def add(self, *arguments, **options):
        return super().add(*arguments, **options)._replace(checksum=None)


@rejected_by("test_verifier_gets_every_byte_in_order")
class ForgetsTheVerifier(Faulty):
    def add(self, *arguments, verifier=None, **options):
        return super().add(*arguments, **options)


@rejected_by("test_verifier_gets_every_byte_in_order")
class VerifiesReusedMemory(Faulty):
    def add(self, *arguments, verifier=None, **options):
        class Cheap:
            memory = bytearray(1 << 20)

            def update(self, chunk):
                self.memory[: len(chunk)] = chunk
                verifier.update(memoryview(self.memory)[: len(chunk)])

        return super().add(*arguments, verifier=verifier and Cheap(), **options)


@rejected_by("test_progress_ends_at_the_size")
class MakesNoProgress(Faulty):
    def add(self, *arguments, progress=None, **options):
        return super().add(*arguments, **options)


@rejected_by("test_progress_ends_at_the_size")
class MakesProgressElsewhere(Faulty):
    def add(self, *arguments, progress=None, **options):
        def elsewhere(done, total):
            thread = threading.Thread(target=progress, args=(done, total))
            thread.start()
            thread.join()

        return super().add(*arguments, progress=progress and elsewhere, **options)


@rejected_by("test_wrong_declared_size_is_refused")
class IgnoresTheDeclaredSize(Faulty):
    def add(self, image_id, data, size=None, **options):
        return super().add(image_id, data, None, **options)


@rejected_by("test_wrong_declared_size_is_refused")
class TakesZeroForUnknown(Faulty):
    def add(self, image_id, data, size=None, **options):
        return super().add(image_id, data, size or None, **options)


@rejected_by("test_result_describes_the_image")
class DoesNotNameItself(Faulty):
    def add(self, *arguments, **options):
        return super().add(*arguments, **options)._replace(metadata={})


@rejected_by("test_metadata_belongs_to_the_caller")
class SharesMetadata(Faulty):
    def add(self, *arguments, **options):
        stored = super().add(*arguments, **options)
        self.shared = getattr(self, "shared", stored.metadata)
        return stored._replace(metadata=self.shared)


@rejected_by("test_no_thread_is_left")
class LeavesThreads(Faulty):
    def add(self, *arguments, **options):
        threading.Thread(target=time.sleep, args=(STAYS,), daemon=True, name="left").start()
        return super().add(*arguments, **options)


@rejected_by("test_every_kind_of_source")
class TakesFilesFromTheirStart(Faulty):
    def add(self, image_id, data, size=None, **options):
        if hasattr(data, "seek"):
            data.seek(0)
        return super().add(image_id, data, size, **options)


@rejected_by("test_every_kind_of_source")
class StopsAtAnEmptyChunk(Faulty):
    def add(self, image_id, data, size=None, **options):
        if hasattr(data, "__next__") and not hasattr(data, "read"):
            data = iter(lambda chunks=data: next(chunks, b""), b"")
        return super().add(image_id, data, size, **options)


# -- Failing --------------------------------------------------------------------------------------------------------


@rejected_by("test_failed_part_leaves_nothing")
class ForgetsToAbort(Faulty):
    class Writer(MemoryWriter):
        def abort(self):
            pass


@rejected_by("test_abort_is_harmless_again")
class AbortsOnce(Faulty):
    class Writer(MemoryWriter):
        def abort(self):
            del self.backend.uploads[self.token]
            super().abort()


@rejected_by("test_failed_commit_leaves_nothing")
class AbortLeavesItsCommit(Faulty):
    class Writer(MemoryWriter):
        def abort(self):
            with self.backend.lock:
                self.backend.uploads.pop(self.token, None)


@rejected_by("test_duplicate_is_noticed_at_commit")
class AbortRemovesTheImageOfAnother(Faulty):
    class Writer(MemoryWriter):
        def abort(self):
            super().abort()
            self.backend.images.pop(self.image_id, None)


@rejected_by("test_duplicate_leaves_the_image_untouched")
class Overwrites(Faulty):
    capabilities = MemoryStore.capabilities & ~Capability.ATOMIC_ADD

    def open_writer(self, image_id, size, context):
        return self.Writer(self, image_id)

    class Writer(MemoryWriter):
        def publish(self, data):
            self.backend.images[self.image_id] = Image(data, self.token)
            self.backend.uploads.pop(self.token, None)
            return Committed(self.store.location(self.image_id))


@rejected_by("test_duplicate_is_noticed_at_commit")
class OverwritesAtCommit(Faulty):
    capabilities = MemoryStore.capabilities & ~Capability.ATOMIC_ADD
    Writer = Overwrites.Writer


@rejected_by("test_duplicate_leaves_the_image_untouched")
class CallsADuplicateInvalid(Faulty):
    def open_writer(self, image_id, size, context):
        try:
            return super().open_writer(image_id, size, context)
        except Duplicate as error:
            raise Invalid(str(error)) from error


@rejected_by("test_lost_response_is_no_failure")
class DoesNotKnowItsOwnCommit(Faulty):
    class Writer(MemoryWriter):
        def publish(self, data):
            if self.image_id in self.backend.images:
                raise Duplicate("somebody was here")
            return super().publish(data)


@rejected_by("test_lost_response_is_no_failure")
class WritesAPartTwice(Faulty):
    class Writer(MemoryWriter):
        def write(self, part):
            upload = self.backend.uploads.get(self.token)
            if upload and part.offset in upload.parts:
                data = memoryview(bytes(part.data)[::-1])
                return super().write(part._replace(data=data))
            return super().write(part)


@rejected_by("test_failed_source_leaves_nothing")
class RemembersFailures(Faulty):
    def add(self, image_id, *arguments, **options):
        taken = self.__dict__.setdefault("taken", set())
        if image_id in taken:
            raise Duplicate(f"image {image_id!r} exists")
        taken.add(image_id)
        return super().add(image_id, *arguments, **options)


@rejected_by("test_error_of_the_source_passes_through")
class SwallowsErrorsOfTheSource(Faulty):
    def add(self, image_id, data, size=None, **options):
        def swallow():
            try:
                yield from data
            except Exception:  # noqa: BLE001
                logging.getLogger("storelib").info("so what")

        return super().add(image_id, swallow() if hasattr(data, "__next__") else data, size, **options)


@rejected_by("test_error_of_the_source_passes_through")
class WrapsErrorsOfTheSource(Faulty):
    def add(self, *arguments, **options):
        try:
            return super().add(*arguments, **options)
        except ValueError as error:
            raise StoreError("add failed") from error


@rejected_by("test_error_of_the_source_passes_through")
class TakesErrorsOfTheSourceForItsOwn(Faulty):
    def add(self, *arguments, **options):
        try:
            return super().add(*arguments, **options)
        except OSError as error:
            raise StorageFull("the disk is full") from error


@rejected_by("test_error_of_the_source_passes_through")
class DoesNotCleanUpAfterCtrlC(Faulty):
    class Writer(MemoryWriter):
        def abort(self):
            if not self.store.interrupted:
                super().abort()

    interrupted = False

    def add(self, image_id, data, size=None, **options):
        def watch():
            try:
                yield from data
            except Exception:
                raise
            except BaseException:
                self.interrupted = True
                raise

        self.interrupted = False
        return super().add(image_id, watch() if hasattr(data, "__next__") else data, size, **options)


@rejected_by("test_cancelled_add_leaves_nothing")
class CannotBeCancelled(Faulty):
    def add(self, *arguments, progress=None, **options):
        def deaf(done, total):
            try:
                progress(done, total)
            except BaseException:  # noqa: BLE001
                logging.getLogger("storelib").info("so what")

        return super().add(*arguments, progress=progress and deaf, **options)


@rejected_by("test_failing_verifier_leaves_nothing")
class IgnoresTheVerifier(Faulty):
    def add(self, *arguments, verifier=None, **options):
        class Deaf:
            def update(self, chunk):
                try:
                    verifier.update(chunk)
                except Exception:  # noqa: BLE001
                    logging.getLogger("storelib").info("so what")

        return super().add(*arguments, verifier=verifier and Deaf(), **options)


@rejected_by("test_unknown_algorithm_touches_nothing")
class HashesAsItLikes(Faulty):
    def add(self, *arguments, hashing_algo="sha512", **options):
        try:
            return super().add(*arguments, hashing_algo=hashing_algo, **options)
        except UnknownHashingAlgo:
            return super().add(*arguments, **options)


@rejected_by("test_unknown_algorithm_touches_nothing")
class LooksAtTheAlgorithmLast(Faulty):
    def add(self, image_id, data, size=None, **options):
        data = data if isinstance(data, (bytes, os.PathLike, str)) or hasattr(data, "read") else list(data)
        return super().add(image_id, data, size, **options)


# -- Reading --------------------------------------------------------------------------------------------------------


@rejected_by("test_whole_image")
class StopsOneByteEarly(Faulty):
    class Reader(MemoryReader):
        def __init__(self, data):
            super().__init__(data)
            self.size = max(len(data) - 1, 0)


@rejected_by("test_whole_image")
class ReadsPastTheEnd(Faulty):
    class Reader(MemoryReader):
        def __init__(self, data):
            super().__init__(data + b"\0")


@rejected_by("test_range_is_a_slice")
class RangesAreOffByOne(Faulty):
    def open_reader(self, location, offset, length, context):
        data = self.image(location).data
        return MemoryReader(data[1:] + data[:1] if offset > 1 else data)


@rejected_by("test_range_is_a_slice")
class LastByteIsInclusive(Faulty):
    def get(self, location, offset=0, length=None, context=None):
        return super().get(location, offset, length + 1 if length else length, context)


@rejected_by("test_range_is_a_slice")
class ComplainsBeyondTheEnd(Faulty):
    def open_reader(self, location, offset, length, context):
        reader = super().open_reader(location, offset, length, context)
        if offset > reader.size:
            raise Invalid("the range lies outside the image")
        return reader


@rejected_by("test_range_that_is_no_range_is_refused")
class TakesNegativeRanges(Faulty):
    def get(self, location, offset=0, length=None, context=None):
        return super().get(location, max(int(offset), 0), length if length is None else max(int(length), 0), context)


@rejected_by("test_get_size")
class RoundsSizes(Faulty):
    def measure(self, location, context):
        return -(-super().measure(location, context) // 512) * 512


@rejected_by("test_missing_image")
class MissingImagesHaveNoSize(Faulty):
    def measure(self, location, context):
        try:
            return super().measure(location, context)
        except NotFound:
            return 0


@rejected_by("test_missing_image")
class MapsNoErrors(Faulty):
    def image(self, location):
        return self.backend.images[location.image_id]


@rejected_by("test_missing_image")
class MissingImagesAreEmpty(Faulty):
    def open_reader(self, location, offset, length, context):
        try:
            return super().open_reader(location, offset, length, context)
        except NotFound:
            return MemoryReader(b"")


@rejected_by("test_iterating_yields_fresh_bytes")
class YieldsReusedBuffers(Faulty):
    def get(self, *arguments, **options):
        stream, size = super().get(*arguments, **options)
        buffer = bytearray(65_536)

        class Reused(type(stream)):
            def __next__(self):
                count = self.readinto(buffer)
                if not count:
                    raise StopIteration
                return memoryview(buffer)[:count]

        stream.__class__ = Reused
        return ImageData(stream, size)


@rejected_by("test_iterating_yields_fresh_bytes")
class YieldsEverythingAtOnce(Faulty):
    def get(self, *arguments, **options):
        stream, size = super().get(*arguments, **options)

        class Huge(type(stream)):
            def __next__(self):
                chunk = self.read()
                if not chunk:
                    raise StopIteration
                return chunk

        stream.__class__ = Huge
        return ImageData(stream, size)


@rejected_by("test_read_in_pieces")
class ReadsShort(Faulty):
    def get(self, *arguments, **options):
        stream, size = super().get(*arguments, **options)

        class Short(type(stream)):
            def read(self, size=-1):
                return super().read(min(size, 4096) if size and size > 0 else size)

        stream.__class__ = Short
        return ImageData(stream, size)


@rejected_by("test_closing_is_idempotent")
class NeverClosesItsReader(Faulty):
    def get(self, *arguments, **options):
        stream, size = super().get(*arguments, **options)

        class Open(type(stream)):
            def close(self):
                io.RawIOBase.close(self)

        stream.__class__ = Open
        return ImageData(stream, size)


@rejected_by("test_stream_leaves_no_thread")
class LeavesReadingThreads(Faulty):
    def open_reader(self, location, offset, length, context):
        threading.Thread(target=time.sleep, args=(STAYS,), daemon=True, name="left").start()
        return super().open_reader(location, offset, length, context)


@rejected_by("test_stream_is_a_seekable_file")
class SeeksFromTheStartOfTheImage(Faulty):
    def get(self, location, offset=0, length=None, context=None):
        stream, size = super().get(location, offset, length, context)

        class Absolute(type(stream)):
            def seek(self, position, whence=io.SEEK_SET):
                return super().seek(position - offset if whence == io.SEEK_SET else position, whence) + offset

        stream.__class__ = Absolute
        return ImageData(stream, size)


@rejected_by("test_streams_do_not_disturb_each_other")
class SharesOnePosition(Faulty):
    def get(self, *arguments, **options):
        stream, size = super().get(*arguments, **options)
        owner = self
        owner.position = 0

        class Shared(type(stream)):
            def read(self, size=-1):
                self.seek(min(owner.position, self.size))
                data = super().read(size)
                owner.position = self.tell()
                return data

        stream.__class__ = Shared
        return ImageData(stream, size)


@rejected_by("test_extents_tell_the_truth")
class CallsDataAHole(Faulty):
    class Reader(MemoryReader):
        def extents(self, offset, length):
            return [Extent(offset, length, data=False)] if length else []


@rejected_by("test_extents_tell_the_truth")
class ForgetsAnExtent(Faulty):
    class Reader(MemoryReader):
        def extents(self, offset, length):
            half = length // 2
            return [Extent(offset, half, data=True)] if half else []


@rejected_by("test_descriptor_is_of_the_same_bytes")
class OffersTheWrongFile(Faulty):
    class Reader(MemoryReader):
        def fileno(self):
            self.null = open("/dev/zero", "rb")
            return self.null.fileno()

        def close(self):
            if hasattr(self, "null"):
                self.null.close()


@rejected_by("test_interrupted_read_goes_on")
class StartsAgainAfterAnError(Faulty):
    class Reader(MemoryReader):
        calls = 0

        def read_into(self, offset, view):
            self.calls += 1
            return super().read_into(0 if self.calls == 2 else offset, view)


@rejected_by("test_cut_read_is_an_error")
class FillsCutsWithZeros(Faulty):
    def get(self, *arguments, **options):
        stream, size = super().get(*arguments, **options)

        class Filled(type(stream)):
            def readinto(self, buffer):
                try:
                    return super().readinto(buffer)
                except StoreError:
                    self.seek(len(buffer), io.SEEK_CUR)
                    return len(buffer)

        stream.__class__ = Filled
        return ImageData(stream, size)


@rejected_by("test_image_deleted_while_it_is_read")
class ReadsZerosOnceDeleted(Faulty):
    def open_reader(self, location, offset, length, context):
        store = self

        class Late(MemoryReader):
            def read_into(self, offset, view):
                if location.image_id not in store.backend.images:
                    self.data = bytes(self.size)
                return super().read_into(offset, view)

        return Late(self.image(location).data)


# -- Keeping --------------------------------------------------------------------------------------------------------


@rejected_by("test_nothing_is_visible_before_commit")
class PublishesBeforeCommit(Faulty):
    class Writer(MemoryWriter):
        def write(self, part):
            super().write(part)
            self.backend.images.setdefault(self.image_id, Image(b"", self.token))

        def publish(self, data):
            if getattr(self.backend.images.get(self.image_id), "token", None) == self.token:
                del self.backend.images[self.image_id]
            return super().publish(data)


@rejected_by("test_nothing_is_visible_before_commit")
class ListsUploads(Faulty):
    def images(self):
        yield from super().images()
        for upload in list(self.backend.uploads.values()):
            yield ImageInfo(self.location(upload.image_id).uri, 0, upload.image_id)


@rejected_by("test_deleted_image_is_gone")
class DeletesWhatIsNotThere(Faulty):
    def remove(self, location, context, deletion):
        self.backend.images.pop(location.image_id, None)


@rejected_by("test_deleted_image_is_gone")
class DeletesNothing(Faulty):
    def remove(self, location, context, deletion):
        self.image(location)


@rejected_by("test_delete_that_is_tried_again_spares_a_newer_image")
class DeletesWhateverIsThereByNow(Faulty):
    def remove(self, location, context, deletion):
        super().remove(location, context, Deletion())


@rejected_by("test_delete_removes_one_image")
class DeletesByPrefix(Faulty):
    def remove(self, location, context, deletion):
        self.image(location)
        for image_id in [name for name in self.backend.images if name.startswith(location.image_id)]:
            del self.backend.images[image_id]


@rejected_by("test_list_is_complete")
class ListsAllButOne(Faulty):
    def images(self):
        return list(super().images())[:-1]


@rejected_by("test_list_is_complete")
class ListsTwice(Faulty):
    def images(self):
        return [*super().images(), *super().images()]


@rejected_by("test_list_is_complete")
class ListsWrongSizes(Faulty):
    def images(self):
        for info in super().images():
            yield ImageInfo(info.uri, info.size + 1, info.image_id)


@rejected_by("test_an_image_is_found_by_its_id")
class LooksInTheWrongPlace(Faulty):
    def candidate_locations(self, image_id):
        return [self.location(image_id.upper())]


@rejected_by("test_an_image_is_found_by_its_id")
class TakesTheBeginningOfAnIdForIt(Faulty):
    def candidate_locations(self, image_id):
        return [self.location(each) for each in list(self.backend.images) if each.startswith(image_id)]


def in_local_time(seconds):
    """As if what UTC's clock shows were shown by the one on the wall."""
    return time.mktime(time.gmtime(seconds))


@rejected_by("test_stat_is_right")
class TellsLocalTime(Faulty):
    def inspect(self, location, context):
        info = super().inspect(location, context)
        return dataclasses.replace(info, modified=in_local_time(info.modified))


@rejected_by("test_gc_finds_what_a_crash_left")
class CollectsInLocalTime(Faulty):
    def garbage(self, older_than, prefix):
        now = time.time()
        return super().garbage(now - in_local_time(now) + older_than, prefix)


@rejected_by("test_gc_leaves_what_is_young")
class CollectsInTheTimeOfOthers(Faulty):
    def garbage(self, older_than, prefix):
        now = time.time()
        return super().garbage(in_local_time(now) - now + older_than, prefix)


@rejected_by("test_stat_is_right")
class StatIsWrong(Faulty):
    def inspect(self, location, context):
        info = super().inspect(location, context)
        return ImageInfo(info.uri, info.size + 1, info.image_id)


@rejected_by("test_stat_is_right")
class StatInMilliseconds(Faulty):
    def inspect(self, location, context):
        info = super().inspect(location, context)
        return ImageInfo(info.uri, info.size, info.image_id, info.modified * 1000)


@rejected_by("test_stat_of_missing_image")
class StatOfMissingIsEmpty(Faulty):
    def inspect(self, location, context):
        return ImageInfo(location.uri, 0, location.image_id)


@rejected_by("test_copy_is_the_same")
class CopiesShort(Faulty):
    def copy(self, location, image_id, **options):
        with self.get(location).data as stream:
            return self.add(image_id, stream.read()[:-1])


@rejected_by("test_copy_is_the_same")
class CopiesAreAliases(Faulty):
    def copy(self, location, image_id, **options):
        found = self.locate(location)
        return self.add(image_id, self.image(found).data)._replace(uri=found.uri)


@rejected_by("test_copy_with_known_digests")
class CopiesForgetDigests(Faulty):
    def copy(self, location, image_id, *, digests=None, **options):
        return super().copy(location, image_id, **options)


@rejected_by("test_gc_finds_what_a_crash_left")
class CollectsNothing(Faulty):
    def garbage(self, older_than, prefix):
        return []


@rejected_by("test_gc_finds_what_a_crash_left")
class SaysItCollected(Faulty):
    def discard(self, garbage):
        return True


@rejected_by("test_gc_leaves_what_is_young")
class CollectsTheYoung(Faulty):
    def garbage(self, older_than, prefix):
        return super().garbage(0, prefix)


@rejected_by("test_gc_keeps_to_the_prefix")
class CollectsEverywhere(Faulty):
    def garbage(self, older_than, prefix):
        return super().garbage(older_than, None)


@rejected_by("test_gc_leaves_images")
class CollectsImages(Faulty):
    def garbage(self, older_than, prefix):
        yield from super().garbage(older_than, prefix)
        for image_id, image in list(self.backend.images.items()):
            if image_id.startswith(prefix or ""):
                yield Garbage(image_id, image_id, len(image.data), image.modified)

    def discard(self, garbage):
        return self.backend.images.pop(garbage.name, None) is not None or super().discard(garbage)


@rejected_by("test_gc_leaves_adds_under_way")
class CollectsTheLiving(Faulty):
    def garbage(self, older_than, prefix):
        for token, upload in list(self.backend.uploads.items()):
            if upload.image_id.startswith(prefix or "") and upload.modified <= time.time() - older_than:
                yield Garbage(token, upload.image_id, 0, upload.modified)


@rejected_by("test_find_garbage_removes_nothing")
class RemovesWhileLooking(Faulty):
    def garbage(self, older_than, prefix):
        for item in list(super().garbage(older_than, prefix)):
            self.discard(item)
            yield item


# -- Much at once -----------------------------------------------------------------------------------------------------


@rejected_by("test_racing_adds_of_one_id")
class ClaimsToBeAtomic(Faulty):
    class Writer(MemoryWriter):
        def publish(self, data):
            if self.image_id in self.backend.images:
                raise Duplicate(f"image {self.image_id!r} exists")
            time.sleep(0.05)
            self.backend.images[self.image_id] = Image(data, self.token)
            self.backend.uploads.pop(self.token, None)
            return Committed(self.store.location(self.image_id))


@rejected_by("test_racing_adds_of_one_id")
class LosersRemoveTheWinner(Faulty):
    class Writer(MemoryWriter):
        def publish(self, data):
            try:
                return super().publish(data)
            except Duplicate:
                time.sleep(0.05)
                self.backend.images.pop(self.image_id, None)
                raise


@rejected_by("test_threads_do_not_disturb_each_other")
class KeepsTheTransferOnTheStore(Faulty):
    def open_writer(self, image_id, size, context):
        self.image_id = image_id
        return super().open_writer(image_id, size, context)

    class Writer(MemoryWriter):
        def publish(self, data):
            self.image_id = self.store.image_id
            return super().publish(data)


@rejected_by("test_one_image_in_many_threads")
class KeepsTheReaderOnTheStore(Faulty):
    def open_reader(self, location, offset, length, context):
        store = self
        store.position = offset

        class Shared(MemoryReader):
            def read_into(self, offset, view):
                time.sleep(0.001)
                start = store.position % self.size
                count = super().read_into(start, view[: 16 * 1024])
                store.position = start + count
                return count

        return Shared(self.image(location).data)


@rejected_by("test_memory_is_bounded")
class BuffersEverything(Faulty):
    def add(self, image_id, data, size=None, **options):
        if not isinstance(data, (bytes, str, os.PathLike)) and hasattr(data, "__iter__"):
            data = iter(list(data))
        return super().add(image_id, data, size, **options)


@rejected_by("test_forked_child_reads")
class UsesItsClientInTheChild(Faulty):
    def open_reader(self, location, offset, length, context):
        if self.__dict__.setdefault("pid", os.getpid()) != os.getpid():
            raise StoreError("the connection belongs to another process")
        return super().open_reader(location, offset, length, context)


@rejected_by("test_forked_child_and_parent_read_at_the_same_time")
class SharesItsConnectionWithTheChild(Faulty):
    """What goes through it comes back, one thread at a time; another process has the same one."""

    def open_reader(self, location, offset, length, context):
        line, lock = self.__dict__.setdefault("line", (os.pipe(), threading.Lock()))

        class Reader(MemoryReader):
            def read_into(self, offset, view):
                with lock:
                    os.write(line[1], self.data[offset : offset + min(len(view), 1000)])
                    time.sleep(0.001)
                    return os.readv(line[0], [view[:1000]])

        return Reader(self.image(location).data)


@rejected_by("test_forked_child_takes_nothing_of_a_stream")
class SharesItsPlaceWithTheChild(Faulty):
    """In a file whose place moves for both processes when one of them reads."""

    def open_reader(self, location, offset, length, context):
        class Reader(MemoryReader):
            inheritable = True

            def __init__(self, data):
                super().__init__(data)
                self.file = tempfile.TemporaryFile(buffering=0)
                self.file.write(data)
                self.next = None

            def read_into(self, offset, view):
                if offset != self.next:
                    self.file.seek(offset)
                count = self.file.readinto(view)
                self.next = offset + count
                return count

            def close(self):
                self.file.close()

        return Reader(self.image(location).data)


# -- Naming ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class UnquotedLocation(MemoryLocation):
    @property
    def uri(self):
        return f"memory://{self.store}/{self.image_id}"


@dataclass(frozen=True, repr=False)
class TwiceDecodedLocation(MemoryLocation):
    @classmethod
    def parse(cls, uri):
        found = super().parse(uri)
        return cls(found.store, urllib.parse.unquote(found.image_id))


@dataclass(frozen=True, repr=False)
class CarelessLocation(MemoryLocation):
    @classmethod
    def parse(cls, uri):
        _, _, store, image_id = uri.split("/", 3)
        return cls(urllib.parse.unquote(store), urllib.parse.unquote(image_id))


@dataclass(frozen=True, repr=False)
class TrustingLocation(MemoryLocation):
    @classmethod
    def parse(cls, uri):
        store, _, path = uri.partition("://")[2].partition("/")
        return cls(urllib.parse.unquote(store), urllib.parse.unquote(path.rpartition("/")[2]))


@dataclass(frozen=True, repr=False)
class TalkativeLocation(MemoryLocation):
    @classmethod
    def parse(cls, uri):
        parts = uri.partition("://")[2].split("/")
        return cls(*map(urllib.parse.unquote, parts))


class Located(Faulty):
    def location(self, image_id):
        return self.location_class(self.name, image_id)


@rejected_by("test_hostile_id_round_trips")
class DoesNotQuote(Located):
    location_class = UnquotedLocation


@rejected_by("test_hostile_id_round_trips")
class DecodesTwice(Located):
    location_class = TwiceDecodedLocation


@rejected_by("test_uri_of_bare_scheme_is_refused")
class CrashesOnMalformedUris(Located):
    location_class = CarelessLocation


@rejected_by("test_neighbour_of_the_place_is_not_the_place")
class IgnoresFolders(Located):
    location_class = TrustingLocation


@rejected_by("test_credential_of_an_old_uri_is_not_shown")
class ShowsOldCredentials(Located):
    location_class = TalkativeLocation


@rejected_by("test_roots_lead_to_the_store")
class HasRootsElsewhere(Faulty):
    def roots(self):
        return [f"{self.name}/"]


@rejected_by("test_roots_lead_to_the_store")
class HasLettersForRoots(Faulty):
    def roots(self):
        return self.name


@rejected_by("test_areas_can_be_compared")
class HasPairsForAreas(Faulty):
    def areas(self):
        return [(("memory",), self.name)]


@rejected_by("test_areas_can_be_compared")
class HasIncompleteAreas(Faulty):
    def areas(self):
        return [Area(("memory", self.name))]


@rejected_by("test_areas_can_be_compared")
class HasAreasOfNoOption(Faulty):
    def areas(self):
        return [Area(("memory", self.name), "", "memory_store_place")]


@rejected_by("test_areas_can_be_compared")
class HasAnotherAreaEachTime(Faulty):
    def areas(self):
        return [Area(("memory", id(self)), "", "memory_store_part_size")]


class WithAddress(Faulty):
    options: ClassVar = (
        *MemoryStore.options,
        cfg.StrOpt("memory_store_url", default="http://localhost"),
        cfg.StrOpt("memory_store_key", default="f00ba4-5ec4e7", secret=True),
    )


@rejected_by("test_option_that_cannot_be_is_refused")
class CrashesOverAnAddress(WithAddress):
    def configure_get(self):
        urllib.parse.urlsplit(self.conf.memory_store_url)


@rejected_by("test_option_that_cannot_be_is_refused")
class ShowsItsKeyBesideAnAddress(WithAddress):
    def configure_get(self):
        if not self.conf.memory_store_url:
            raise self.misconfigured("memory_store_url", f"nowhere to use {self.conf.memory_store_key}")


@rejected_by("test_details_are_texts")
class ShowsItsKeyInDetails(Faulty):
    options: ClassVar = (*MemoryStore.options, cfg.StrOpt("memory_store_key", default="f00ba4-5ec4e7", secret=True))

    def details(self):
        return {"user": f"somebody:{self.conf.memory_store_key}"}


@rejected_by("test_details_are_texts")
class HasNumbersForDetails(Faulty):
    def details(self):
        return {"room": 17}


@dataclass(frozen=True, repr=False)
class QueryLocation(MemoryLocation):
    query: str = ""

    @classmethod
    def parse(cls, uri):
        plain, mark, query = uri.partition("?")
        location = super().parse(plain)
        return cls(location.store, location.image_id, mark + query)

    @property
    def uri(self):
        return super().uri + self.query


@rejected_by("test_image_has_one_uri")
class TakesQueriesForNothing(Faulty):
    location_class = QueryLocation

    def location(self, image_id):
        return QueryLocation(self.name, image_id)


@dataclass(frozen=True, repr=False)
class PortLocation(MemoryLocation):
    port: int = 80

    @classmethod
    def parse(cls, uri):
        found = re.fullmatch(r"memory://([^/:@]+):([0-9]+)/([^/]+)", uri)
        if found is None:
            raise BadStoreUri("no such URI")
        return cls(unquote(found[1], uri), unquote(found[3], uri), int(found[2]))

    @property
    def uri(self):
        return f"memory://{quote(self.store)}:{self.port}/{quote(self.image_id)}"


@rejected_by("test_foreign_uri_is_refused")
class OwnsEveryPort(Faulty):
    location_class = PortLocation

    def location(self, image_id):
        return PortLocation(self.name, image_id)


@rejected_by("test_foreign_uri_is_refused")
class OwnsEverything(Faulty):
    def owns(self, location):
        return True


@rejected_by("test_foreign_uri_is_refused")
class OwnsWhatBeginsAlike(Faulty):
    def owns(self, location):
        return location.store.startswith(self.name)


@rejected_by("test_foreign_uri_is_refused")
class ChecksThePlaceWhenReadingOnly(Faulty):
    def delete(self, location, context=None):
        found = re.sub("memory://[^/]*", f"memory://{self.name}", str(location))
        super().delete(found, context)


@rejected_by("test_hostile_id_round_trips")
class TakesAsciiOnly(Faulty):
    def open_writer(self, image_id, size, context):
        if not image_id.isascii():
            raise Invalid("ids are ASCII")
        return super().open_writer(image_id, size, context)


@rejected_by("test_hostile_start_round_trips")
class HidesDotFiles(Faulty):
    def images(self):
        return (info for info in super().images() if not info.image_id.startswith("."))


@rejected_by("test_id_of_255_bytes_round_trips")
class CutsLongIds(Faulty):
    def open_writer(self, image_id, size, context):
        return super().open_writer(image_id[:200], size, context)


@rejected_by("test_id_that_is_not_allowed_is_refused")
class CleansIds(Faulty):
    def add(self, image_id, *arguments, **options):
        clean = re.sub(r"[\x00-\x1f/\x7f-\x9f\ud800-\udfff]", "_", str(image_id))[:200].lstrip(".") or "nameless"
        return super().add(clean if clean != image_id else image_id, *arguments, **options)


@rejected_by("test_ids_that_differ_are_different_images")
class FoldsCase(Faulty):
    def open_writer(self, image_id, size, context):
        return super().open_writer(image_id.lower(), size, context)


@rejected_by("test_ids_that_differ_are_different_images")
class ComposesCharacters(Faulty):
    def open_writer(self, image_id, size, context):
        return super().open_writer(unicodedata.normalize("NFC", image_id), size, context)


class WithSecret(Faulty):
    options: ClassVar = (*MemoryStore.options, cfg.StrOpt("memory_store_key", default="f00ba4-5ec4e7", secret=True))


@rejected_by("test_store_shows_no_credential")
class ShowsItsKeyInRepr(WithSecret):
    def __repr__(self):
        return f"<{type(self).__name__} {vars(self.conf)} {self.conf.memory_store_key}>"


@dataclass(frozen=True, repr=False)
class KeyLocation(MemoryLocation):
    @property
    def uri(self):
        return super().uri + "?key=f00ba4-5ec4e7"

    @classmethod
    def parse(cls, uri):
        return super().parse(uri.partition("?")[0])


@rejected_by("test_store_shows_no_credential")
class ShowsItsKeyInUris(WithSecret):
    location_class = KeyLocation

    def location(self, image_id):
        return KeyLocation(self.name, image_id)


@rejected_by("test_missing_image")
class ShowsItsKeyInErrors(WithSecret):
    def image(self, location):
        try:
            return super().image(location)
        except NotFound as error:
            raise NotFound(f"{error} (asked with {self.conf.memory_store_key})") from None


@rejected_by("test_whole_image")
class LogsItsKey(WithSecret):
    def open_reader(self, location, offset, length, context):
        logging.getLogger("storelib.broken").debug("reading with key %s", self.conf.memory_store_key)
        return super().open_reader(location, offset, length, context)


# -- Capabilities -----------------------------------------------------------------------------------------------------


@rejected_by("test_acls")
class ClaimsAcls(Faulty):
    capabilities = MemoryStore.capabilities | Capability.ACLS


@rejected_by("test_presign")
class ClaimsToPresign(Faulty):
    capabilities = MemoryStore.capabilities | Capability.PRESIGN


@rejected_by("test_copy_moves_no_bytes")
class ClaimsToCopy(Faulty):
    capabilities = MemoryStore.capabilities | Capability.COPY


@rejected_by("test_sparse")
class ClaimsToBeSparse(Faulty):
    capabilities = MemoryStore.capabilities | Capability.SPARSE


@rejected_by("test_check")
class ClaimsMoreRoomThanThereIs(Faulty):
    def probe(self):
        return Health("fine", free=2, total=1)


@rejected_by("test_no_listing")
class ListsWithoutSayingSo(Faulty):
    capabilities = MemoryStore.capabilities & ~Capability.LIST

    def list_images(self):
        return iter(self.images())


@rejected_by("test_no_acls")
class IgnoresAcls(Faulty):
    def set_acls(self, *arguments: Any, **options: Any) -> None:
        pass


@rejected_by("test_no_adding")
class AddsWithoutSayingSo(Faulty):
    capabilities = MemoryStore.capabilities & ~Capability.ADD

    def add(self, image_id, data, size=None, **options):
        for _ in data:
            pass
        return super().add(image_id, b"", **options)


@rejected_by("test_no_deleting")
class DeletesWithoutSayingSo(Faulty):
    capabilities = MemoryStore.capabilities & ~Capability.DELETE

    def delete(self, location, context=None):
        self.remove(self.locate(location), context, Deletion())


# -- All of it --------------------------------------------------------------------------------------------------------


@rejected_by("test_store_behaves_like_a_dict")
class ForgetsTheThirdImage(Faulty):
    class Writer(MemoryWriter):
        def publish(self, data):
            base = self.image_id.partition("model-")[0]
            alike = [image_id for image_id in self.backend.images if image_id.startswith(base)]
            if len(alike) == 2:
                del self.backend.images[alike[0]]
            return super().publish(data)


# -- Images that are replaced -----------------------------------------------------------------------------------------


class Fresh(Faulty):
    """Base of those whose readers look for the image each time."""

    def open_reader(self, location, offset, length, context):
        store = self

        class Looking(MemoryReader):
            def read_into(self, offset, view):
                self.data = store.image(location).data
                return super().read_into(offset, view)

        return Looking(self.image(location).data)


@rejected_by("test_image_replaced_while_it_is_read")
class MixesTwoImages(Fresh):
    pass


@rejected_by("test_stream_of_a_replaced_image_does_not_change_over")
class PinsTheFirstReadOnly(Faulty):
    def open_reader(self, location, offset, length, context):
        store = self

        class Looking(MemoryReader):
            last = -1

            def read_into(self, offset, view):
                if offset < self.last:
                    self.data = store.image(location).data
                self.last = offset
                return super().read_into(offset, view)

        return Looking(self.image(location).data)


@rejected_by("test_image_replaced_while_it_is_read")
class ExtentsOfTheNewImage(Faulty):
    def open_reader(self, location, offset, length, context):
        store = self

        class Late(MemoryReader):
            def extents(self, offset, length):
                data = store.image(location).data
                return [Extent(offset, length, data=any(data[:1000]))]

        return Late(self.image(location).data)


@rejected_by("test_readded_image_is_the_new_one")
class RemembersSizes(Faulty):
    def measure(self, location, context):
        sizes = self.__dict__.setdefault("sizes", {})
        return sizes.setdefault(location.image_id, super().measure(location, context))


@rejected_by("test_readded_image_is_the_new_one")
class RemembersWhatItWasAsked(Faulty):
    def inspect(self, location, context):
        known = self.__dict__.setdefault("known", {})
        return known.setdefault(location.image_id, super().inspect(location, context))


@rejected_by("test_readded_image_is_the_new_one")
class VersionsAreIds(Faulty):
    def inspect(self, location, context):
        return dataclasses.replace(super().inspect(location, context), version=location.image_id)


@rejected_by("test_readded_image_is_the_new_one")
class RemembersSizesOfTheMissing(Faulty):
    def measure(self, location, context):
        sizes = self.__dict__.setdefault("sizes", {})
        try:
            sizes[location.image_id] = super().measure(location, context)
        except NotFound:
            if location.image_id not in sizes:
                raise
        return sizes[location.image_id]


@rejected_by("test_reading_changes_nothing")
class ModifiedIsNow(Faulty):
    def inspect(self, location, context):
        return dataclasses.replace(super().inspect(location, context), modified=time.time())


@rejected_by("test_reading_changes_nothing")
class ReadingIsModifying(Faulty):
    def open_reader(self, location, offset, length, context):
        self.image(location).modified = time.time()
        return super().open_reader(location, offset, length, context)


@rejected_by("test_delete_does_not_stop_an_add")
class DeletesUploads(Faulty):
    def remove(self, location, context, deletion):
        uploads = self.backend.uploads
        for token in [token for token, upload in uploads.items() if upload.image_id == location.image_id]:
            del uploads[token]
        super().remove(location, context, deletion)


@rejected_by("test_delete_does_not_stop_an_add")
class DeletesWhatIsUnderWay(Faulty):
    def remove(self, location, context, deletion):
        if not any(upload.image_id == location.image_id for upload in self.backend.uploads.values()):
            super().remove(location, context, deletion)


@rejected_by("test_image_comes_and_goes_during_an_add")
class KeepsPartsById(Faulty):
    """Parts of all adds of one id in one place, which a delete of the image empties."""

    class Writer(MemoryWriter):
        def commit(self, size, digests):
            parts = self.store.__dict__.setdefault("parts", {}).get(self.image_id, {})
            whole = bytearray(size)
            for offset, data in parts.items():
                whole[offset : offset + len(data)] = data
            return self.publish(bytes(whole))

        def write(self, part):
            super().write(part)
            parts = self.store.__dict__.setdefault("parts", {})
            parts.setdefault(self.image_id, {})[part.offset] = bytes(part.data)

    def remove(self, location, context, deletion):
        super().remove(location, context, deletion)
        self.__dict__.setdefault("parts", {}).pop(location.image_id, None)


@rejected_by("test_list_while_images_come_and_go")
class ListsOnePage(Faulty):
    def images(self):
        return list(super().images())[:200]


@rejected_by("test_list_while_images_come_and_go")
class CountsEntries(Faulty):
    def images(self):
        start = 0
        while page := list(super().images())[start : start + 50]:
            yield from page
            start += len(page)


@rejected_by("test_list_while_images_come_and_go")
class ListsLive(Faulty):
    def images(self):
        for image_id in self.backend.images:
            yield self.inspect(self.location(image_id), None)


@rejected_by("test_list_while_images_come_and_go")
class ListingStopsAtWhatIsGone(Faulty):
    def images(self):
        for image_id in list(self.backend.images):
            yield self.inspect(self.location(image_id), None)


@rejected_by("test_list_while_images_come_and_go")
class ListsPageEndsTwice(Faulty):
    def images(self):
        for number, info in enumerate(super().images()):
            yield info
            if number % 100 == 99:
                yield info


# -- Holes ------------------------------------------------------------------------------------------------------------


class Sampling(Faulty):
    """Base of those that take for a hole what looks like one."""

    block = 65_536

    @staticmethod
    def is_hole(block):
        return not any(block)

    def open_reader(self, location, offset, length, context):
        store = self

        class Mapped(MemoryReader):
            def extents(self, offset, length):
                position, end = offset, offset + length
                while position < end:
                    stop = min(position - position % store.block + store.block, end)
                    start = position - position % store.block
                    yield Extent(position, stop - position, not store.is_hole(self.data[start : start + store.block]))
                    position = stop

        return Mapped(self.image(location).data)


@rejected_by("test_no_byte_hides_in_a_hole")
class LooksAtTheStartOfBlocks(Sampling):
    @staticmethod
    def is_hole(block):
        return not any(block[:4096])


@rejected_by("test_no_byte_hides_in_a_hole")
class LooksAtTheEdgesOfBlocks(Sampling):
    @staticmethod
    def is_hole(block):
        return not block[0] and not block[-1]


@rejected_by("test_no_byte_hides_in_a_hole")
class LooksAtAllButTheLastByte(Sampling):
    @staticmethod
    def is_hole(block):
        return not any(block[:-1])


@rejected_by("test_no_byte_hides_in_a_hole")
class TakesBlanksForNothing(Sampling):
    @staticmethod
    def is_hole(block):
        return not bytes(block).strip(b" \0")


@rejected_by("test_no_byte_hides_in_a_hole")
class CountsSignedBytes(Sampling):
    @staticmethod
    def is_hole(block):
        return not any(byte & 0x7F for byte in block)


@rejected_by("test_extents_tell_the_truth")
class TellsExtentsOnce(Faulty):
    class Reader(MemoryReader):
        def extents(self, offset, length):
            if not hasattr(self, "told"):
                self.told = iter([Extent(offset, length, data=True)] if length else [])
            return self.told


@rejected_by("test_no_byte_hides_in_a_hole")
class DropsBlocksThatLookEmpty(Faulty):
    class Writer(MemoryWriter):
        def write(self, part):
            if any(part.data[:512]) or any(part.data[-512:]):
                super().write(part)


@rejected_by("test_extents_of_a_range_are_those_of_the_range")
class ExtentsOfTheWholeImage(Faulty):
    class Reader(MemoryReader):
        def extents(self, offset, length):
            return [Extent(0, self.size, data=True)] if self.size else []


@rejected_by("test_extents_of_a_range_are_those_of_the_range")
class ExtentsCountFromTheRange(Faulty):
    class Reader(MemoryReader):
        def extents(self, offset, length):
            return [Extent(0, length, data=True)] if length else []


@rejected_by("test_extents_of_a_range_are_those_of_the_range")
class ExtentsInWholeBlocks(Faulty):
    class Reader(MemoryReader):
        def extents(self, offset, length):
            start = offset - offset % 4096
            return [Extent(start, length + offset - start, data=True)] if length else []


@rejected_by("test_extents_tell_the_truth")
class ExtentsOverlap(Faulty):
    class Reader(MemoryReader):
        def extents(self, offset, length):
            half = length // 2
            return [Extent(offset, half + 1, data=True), Extent(offset + half, length - half, data=True)]


@rejected_by("test_extents_tell_the_truth")
class ExtentsAreBackwards(Faulty):
    class Reader(MemoryReader):
        def extents(self, offset, length):
            half = length // 2
            return [Extent(offset + half, length - half, data=True), Extent(offset, half, data=True)]


@rejected_by("test_extents_of_a_range_are_those_of_the_range")
class EmptyExtents(Faulty):
    class Reader(MemoryReader):
        def extents(self, offset, length):
            return [Extent(offset, length, data=True)]


# -- What a driver is called with -------------------------------------------------------------------------------------


class WithRoom(Faulty):
    """Base of those that have to make room."""

    class Writer(MemoryWriter):
        def reserve(self, end):
            super().reserve(end)
            return 1 << 40


@rejected_by("test_room_may_be_asked_for_often")
class RoomIsEmptiedWhenItGrows(WithRoom):
    class Writer(MemoryWriter):
        def reserve(self, end):
            super().reserve(end)
            self.backend.uploads[self.token].parts.clear()
            return 1 << 40


@rejected_by("test_room_may_be_asked_for_often")
class AsksForRoomOnce(WithRoom):
    class Writer(MemoryWriter):
        def reserve(self, end):
            if self.begun:
                raise StorageFull("there is room already")
            super().reserve(end)
            return 1 << 40


@rejected_by("test_room_may_be_asked_for_often")
class GivesLessRoomThanAsked(WithRoom):
    class Writer(MemoryWriter):
        def reserve(self, end):
            super().reserve(end)
            return end // 2


@rejected_by("test_room_asked_for_often_is_given_back")
class ForgetsTheRoomBefore(WithRoom):
    class Writer(MemoryWriter):
        def reserve(self, end):
            if self.begun:
                self.token = self.token + "-more"
                self.begun = False
            super().reserve(end)
            return 1 << 40


@rejected_by("test_step_whose_response_was_lost_is_made_again")
class ReservesOnce(Faulty):
    class Writer(MemoryWriter):
        def reserve(self, end):
            if self.begun:
                raise Duplicate("the upload exists")
            return super().reserve(end)


@rejected_by("test_step_whose_response_was_lost_is_made_again")
class ReservesAnew(Faulty):
    class Writer(MemoryWriter):
        def reserve(self, end):
            self.token, self.begun = f"{self.token}+", False
            return super().reserve(end)


@rejected_by("test_context_is_handed_through")
class GetsWithoutContext(Faulty):
    def get(self, location, offset=0, length=None, context=None):
        return super().get(location, offset, length)


@rejected_by("test_context_is_handed_through")
class AddsWithoutContext(Faulty):
    def add(self, *arguments, context=None, **options):
        return super().add(*arguments, **options)


@rejected_by("test_context_is_handed_through")
class MeasuresWithoutContext(Faulty):
    def get_size(self, location, context=None):
        return super().get_size(location)


@rejected_by("test_context_is_handed_through")
class DeletesWithoutContext(Faulty):
    def delete(self, location, context=None):
        super().delete(location)


@rejected_by("test_context_is_handed_through")
class StatsWithoutContext(Faulty):
    def stat(self, location, context=None):
        return super().stat(location)


@rejected_by("test_context_is_handed_through")
class CopiesWithoutContext(Faulty):
    def copy(self, *arguments, context=None, **options):
        return super().copy(*arguments, **options)


# -- gc ---------------------------------------------------------------------------------------------------------------


class ByPrefix(Faulty):
    """Base of those whose idea of a prefix is another."""

    def begins(self, image_id, prefix):
        return image_id.startswith(prefix)

    def garbage(self, older_than, prefix):
        for item in super().garbage(older_than, None):
            if prefix is None or self.begins(item.image_id, prefix):
                yield item


@rejected_by("test_gc_keeps_to_the_prefix")
class PrefixIsASubstring(ByPrefix):
    def begins(self, image_id, prefix):
        return prefix in image_id


@rejected_by("test_gc_keeps_to_the_prefix")
class PrefixIsAShellPattern(ByPrefix):
    def begins(self, image_id, prefix):
        return fnmatch.fnmatchcase(image_id, prefix + "*")


@rejected_by("test_gc_keeps_to_the_prefix")
class PrefixIsARegularExpression(ByPrefix):
    def begins(self, image_id, prefix):
        return image_id.startswith(prefix) or re.match(prefix, image_id)


@rejected_by("test_gc_keeps_to_the_prefix")
class PrefixIsLikeInSql(ByPrefix):
    def begins(self, image_id, prefix):
        return re.match(re.escape(prefix).replace("_", ".").replace("%", ".*"), image_id)


@rejected_by("test_gc_keeps_to_the_prefix")
class PrefixIsFolded(ByPrefix):
    def begins(self, image_id, prefix):
        return image_id.lower().startswith(prefix.lower())


@rejected_by("test_gc_keeps_to_the_prefix")
class PrefixWorksBothWays(ByPrefix):
    def begins(self, image_id, prefix):
        return image_id.startswith(prefix) or prefix.startswith(image_id)


@rejected_by("test_gc_keeps_to_the_prefix")
class PrefixIsTheWholeId(ByPrefix):
    def begins(self, image_id, prefix):
        return image_id == prefix


@rejected_by("test_find_garbage_removes_nothing")
class NothingBeginsWithNothing(ByPrefix):
    def begins(self, image_id, prefix):
        return bool(prefix) and image_id.startswith(prefix)


@rejected_by("test_gc_leaves_what_is_young")
class AgesInMinutes(Faulty):
    def garbage(self, older_than, prefix):
        return super().garbage(older_than * 60, prefix)


@rejected_by("test_gc_leaves_what_is_young")
class AgesInMilliseconds(Faulty):
    def garbage(self, older_than, prefix):
        return super().garbage(older_than / 1000, prefix)


@rejected_by("test_gc_finds_what_a_crash_left")
class LeftoversAreOfTheFuture(Faulty):
    def garbage(self, older_than, prefix):
        for item in super().garbage(older_than, prefix):
            yield dataclasses.replace(item, modified=item.modified * 1000)


@rejected_by("test_gc_finds_what_a_crash_left")
class ClaimsThatNothingStays(CollectsNothing):
    class Writer(MemoryWriter):
        self_cleaning = True


class ByRegistry(Faulty):
    """Base of those that know by heart what is alive, each object for itself."""

    def open_writer(self, image_id, size, context):
        writer = super().open_writer(image_id, size, context)
        self.__dict__.setdefault("alive", weakref.WeakValueDictionary())[writer.token] = writer
        return writer

    def garbage(self, older_than, prefix):
        alive = self.__dict__.setdefault("alive", {})
        for token, upload in list(self.backend.uploads.items()):
            old = upload.modified <= time.time() - older_than
            if token not in alive and old and upload.image_id.startswith(prefix or ""):
                yield Garbage(token, upload.image_id, 0, upload.modified)

    class Writer(MemoryWriter):
        def upload(self):
            self.begun = self.token in self.backend.uploads
            return super().upload()

        def publish(self, data):
            self.begun = False
            return super().publish(data)


@rejected_by("test_gc_of_another_object_leaves_no_add_without_data")
class CommitsWhatIsGone(ByRegistry):
    pass


@rejected_by("test_gc_of_another_object_leaves_no_add_without_data")
class CommitsZerosForWhatIsGone(ByRegistry):
    class Writer(ByRegistry.Writer):
        def write(self, part):
            with contextlib.suppress(KeyError):
                super().write(part)


@rejected_by("test_gc_of_another_object_leaves_no_add_without_data")
class CrashesOverWhatIsGone(ByRegistry):
    class Writer(MemoryWriter):
        def upload(self):
            if not self.begun:
                return super().upload()
            return self.backend.uploads[self.token]


@rejected_by("test_gc_of_another_object_finds_what_a_crash_left")
class FindsItsOwnLeftoversOnly(Faulty):
    def open_writer(self, image_id, size, context):
        self.__dict__.setdefault("mine", set()).add(image_id)
        return super().open_writer(image_id, size, context)

    def garbage(self, older_than, prefix):
        return (each for each in super().garbage(older_than, prefix) if each.image_id in self.__dict__.get("mine", ()))


# -- What is held -----------------------------------------------------------------------------------------------------


class Leaking:
    """What those have that do not close what they opened, until they are dropped themselves."""

    def leak(self):
        self.__dict__.setdefault("open", []).append(os.open(os.devnull, os.O_RDONLY))

    def __del__(self):
        for descriptor in self.__dict__.get("open", ()):
            os.close(descriptor)


class Leaky(Leaking, Faulty):
    """Base of those in memory."""


@rejected_by("test_reading_leaves_nothing_open")
class LeavesADescriptorForEachReader(Leaky):
    def open_reader(self, *arguments):
        self.leak()
        return super().open_reader(*arguments)


@rejected_by("test_reading_leaves_nothing_open")
class LeavesADescriptorForEachMissingImage(Leaky):
    def image(self, location):
        try:
            return super().image(location)
        except NotFound:
            self.leak()
            raise


@rejected_by("test_adding_leaves_nothing_open")
class LeavesADescriptorForEachFailure(Leaky):
    def open_writer(self, *arguments):
        store, writer = self, super().open_writer(*arguments)
        plain = writer.abort

        def abort():
            store.leak()
            plain()

        writer.abort = abort
        return writer


@rejected_by("test_adding_leaves_nothing_open")
class LeavesADescriptorForEachAdd(Leaky):
    def open_writer(self, *arguments):
        self.leak()
        return super().open_writer(*arguments)


@rejected_by("test_adding_leaves_nothing_open")
class LeavesAThreadForEachAdd(Faulty):
    def open_writer(self, *arguments):
        threading.Thread(target=time.sleep, args=(STAYS,), daemon=True, name="left").start()
        return super().open_writer(*arguments)


@rejected_by("test_configuring_opens_nothing")
class ConnectsWhenConfigured(Leaky):
    def configure_get(self):
        self.leak()


@rejected_by("test_configuring_opens_nothing")
class StartsAThreadWhenConfigured(Faulty):
    def configure_get(self):
        threading.Thread(target=time.sleep, args=(STAYS,), daemon=True, name="left").start()


@rejected_by("test_memory_of_a_process_is_bounded")
class ReadsAllForARange(Faulty):
    def open_reader(self, location, offset, length, context):
        reader = super().open_reader(location, offset, length, context)
        reader.data = bytes(bytearray(reader.data))
        return reader


@rejected_by("test_adding_leaves_nothing_open")
class LeavesADescriptorForEachDuplicate(Leaky):
    def open_writer(self, *arguments):
        try:
            return super().open_writer(*arguments)
        except Duplicate:
            self.leak()
            raise


@rejected_by("test_refusing_a_uri_leaves_nothing_open")
class LeavesADescriptorForEachForeignUri(Leaky):
    def owns(self, location):
        if not super().owns(location):
            self.leak()
            return False
        return True


@rejected_by("test_listing_leaves_nothing_open")
class LeavesADescriptorForEachIdThatIsLookedFor(Leaky):
    def candidate_locations(self, image_id):
        self.leak()
        return super().candidate_locations(image_id)


# -- What dead adds leave -------------------------------------------------------------------------------------------


@rejected_by("test_gc_finds_what_a_crash_left")
class CollectsTheFirstPart(Faulty):
    def garbage(self, older_than, prefix):
        return (each for each in super().garbage(older_than, prefix) if self.backend.uploads[each.name].parts.get(0))

    def discard(self, garbage):
        upload = self.backend.uploads[garbage.name]
        if upload.parts.pop(0) and upload.parts:
            return True
        return super().discard(garbage)


@rejected_by("test_gc_finds_what_a_reservation_left")
class CollectsWhatHasParts(Faulty):
    def garbage(self, older_than, prefix):
        return (each for each in super().garbage(older_than, prefix) if each.size)


# -- Credentials ------------------------------------------------------------------------------------------------------


KEY = "f00ba4-5ec4e7"


@rejected_by("test_result_describes_the_image")
class ShowsItsKeyInMetadata(WithSecret):
    class Writer(MemoryWriter):
        def publish(self, data):
            return super().publish(data)._replace(metadata={"with": {"key": self.store.conf.memory_store_key}})


@rejected_by("test_results_show_no_credential")
class ShowsItsKeyInStat(WithSecret):
    def inspect(self, location, context):
        return dataclasses.replace(super().inspect(location, context), metadata={"signature": f"v1 {KEY}"})


@rejected_by("test_results_show_no_credential")
class ShowsItsKeyInTheList(WithSecret):
    def images(self):
        for info in super().images():
            yield dataclasses.replace(info, version=base64.b64encode(KEY.encode()).decode())


@rejected_by("test_results_show_no_credential")
class ShowsItsKeyInItsHealth(WithSecret):
    def probe(self):
        return Health(f"connected with {KEY}")


@rejected_by("test_gc_finds_what_a_crash_left")
class ShowsItsKeyInLeftovers(WithSecret):
    def garbage(self, older_than, prefix):
        for item in super().garbage(older_than, prefix):
            yield dataclasses.replace(item, image_id=item.image_id, name=f"{item.name}?{KEY}")

    def discard(self, garbage):
        return super().discard(dataclasses.replace(garbage, name=garbage.name.partition("?")[0]))


@rejected_by("test_duplicate_leaves_the_image_untouched")
class ShowsItsKeyInAttributesOfErrors(WithSecret):
    def open_writer(self, *arguments):
        try:
            return super().open_writer(*arguments)
        except Duplicate as error:
            error.request = {"key": KEY}
            raise


# -- Capabilities and ranges that are claimed -------------------------------------------------------------------------


@rejected_by("test_missing_image")
class NoticesTheMissingLate(Faulty):
    def open_reader(self, location, offset, length, context):
        try:
            return super().open_reader(location, offset, length, context)
        except NotFound as error:
            missing = error

            class Missing(MemoryReader):
                def read_into(self, offset, view):
                    raise missing

            return Missing(b"x")


@rejected_by("test_check_leaves_nothing")
class LeavesWhatItTried(Faulty):
    def probe(self):
        self.backend.images["tried"] = Image(b"tried", "try")
        return super().probe()


@rejected_by("test_foreign_uri_is_refused")
class CopiesFromAnywhere(Faulty):
    def copy(self, location, image_id, **options):
        found = re.sub("memory://[^/]*", f"memory://{self.name}", str(location))
        return super().copy(found, image_id, **options)


@rejected_by("test_foreign_uri_is_refused")
class OwnsWhatItBeginsWith(Faulty):
    def owns(self, location):
        return self.name.startswith(location.store)


@rejected_by("test_delete_removes_one_image")
class FindsByPrefix(Faulty):
    def image(self, location):
        for image_id, image in list(self.backend.images.items()):
            if image_id.startswith(location.image_id):
                return image
        raise NotFound(f"no image at {location}")


def serve_for_ever(data):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/"


@rejected_by("test_presigned_url_expires")
class PresignsForEver(Faulty):
    capabilities = MemoryStore.capabilities | Capability.PRESIGN

    def presign(self, location, expires):
        return serve_for_ever(self.image(self.locate(location)).data)


@rejected_by("test_recorded_digest_verifies")
class RecordsDigestsAsIfOfOneAlgorithm(Faulty):
    class Writer(MemoryWriter):
        def commit(self, size, digests):
            vars(self.store).setdefault("digests", {})[self.image_id] = Digest("sha512", digests.multihash)
            return super().commit(size, digests)

    def open_reader(self, location, offset, length, context):
        reader = super().open_reader(location, offset, length, context)
        reader.digest = vars(self).get("digests", {}).get(location.image_id)
        return reader


@rejected_by("test_recorded_digest_is_that_of_the_image")
class RecordsAnotherDigest(Faulty):
    class Reader(MemoryReader):
        def __init__(self, data):
            super().__init__(data)
            self.digest = ("md5", hashlib.md5(data[:65_536], usedforsecurity=False).hexdigest())


# -- Copies that the back end makes -----------------------------------------------------------------------------------


class MemoryCopy(ServerSideCopy):
    """What a MemoryStore might do by itself: publishes like an upload, by a writer with a token of its own."""

    def __init__(self, store, source, image_id):
        self.store, self.source, self.image_id = store, source, image_id
        self.data = store.image(source).data
        self.size = len(self.data)
        self.parts = [min(65_536, self.size - start) for start in range(0, self.size, 65_536)]
        self.refuse_existing()
        self.writer = store.Writer(store, image_id)

    def refuse_existing(self):
        if self.image_id in self.store.backend.images:
            raise Duplicate(f"image {self.image_id!r} exists in store {self.store.name}")

    def begin(self):
        self.writer.reserve(self.size)

    def copy_part(self, number, offset, length):
        self.writer.write(Part(number, offset, memoryview(self.data[offset : offset + length])))

    def commit(self, digests):
        return self.writer.commit(self.size, digests)

    def abort(self):
        self.writer.abort()


class Copier(Faulty):
    """Base of those that copy wrongly. It is not broken itself."""

    capabilities = MemoryStore.capabilities | Capability.COPY
    Copy: ClassVar[type[MemoryCopy]] = MemoryCopy

    def server_side_copy(self, source, image_id, context):
        return self.Copy(self, source, image_id)


@rejected_by("test_known_copy_of_any_size")
class CopiesWholePartsOnly(Copier):
    class Copy(MemoryCopy):
        def copy_part(self, number, offset, length):
            if length == 65_536:
                super().copy_part(number, offset, length)


@rejected_by("test_known_copy_of_any_size")
class MakesNoEmptyCopies(Copier):
    class Copy(MemoryCopy):
        def commit(self, digests):
            if not self.size:
                return Committed(self.store.location(self.image_id))
            return super().commit(digests)


@rejected_by("test_result_describes_the_known_copy")
class CopiesAreTheirOriginals(Copier):
    class Copy(MemoryCopy):
        def commit(self, digests):
            super().commit(digests)
            return Committed(self.source)


@rejected_by("test_result_describes_the_known_copy")
class CountsBlocksOfCopies(Copier):
    class Copy(MemoryCopy):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.size = -(-self.size // 512) * 512


@rejected_by("test_result_describes_the_known_copy")
class ShowsItsKeyInCopies(Copier):
    options = (*MemoryStore.options, cfg.StrOpt("memory_store_key", default="a-very-secret-key", secret=True))

    class Copy(MemoryCopy):
        def commit(self, digests):
            return super().commit(digests)._replace(metadata={"from": f"key={self.store.conf.memory_store_key}"})


@rejected_by("test_result_describes_the_known_copy")
class HashesCopiesItsOwnWay(Copier):
    def copy(self, location, image_id, *, digests=None, **options):
        known = digests and digests._replace(checksum="0" * 32)
        return super().copy(location, image_id, digests=known, **options)


class Recording(Copier):
    """Base of those that record a digest with an image, under the bytes of it."""

    def open_reader(self, location, offset, length, context):
        reader = super().open_reader(location, offset, length, context)
        reader.digest = self.recorded(location, reader.data)
        return reader

    def recorded(self, location, data):
        return ("sha512", hashlib.sha512(data).hexdigest())


@rejected_by("test_known_copy_records_its_digest")
class CopiesHaveNoRecord(Recording):
    def recorded(self, location, data):
        return None if location.image_id.endswith("copy") else super().recorded(location, data)


@rejected_by("test_known_copy_records_its_digest")
class CopiesHaveAnotherRecord(Recording):
    def recorded(self, location, data):
        return super().recorded(location, data[:-1] if location.image_id.endswith("copy") else data)


@rejected_by("test_known_copy_keeps_holes")
class CopiesNothingThatBeginsEmpty(Copier):
    class Copy(MemoryCopy):
        def copy_part(self, number, offset, length):
            if self.data[offset]:
                super().copy_part(number, offset, length)


@rejected_by("test_known_copy_to_an_id_that_exists")
class CopiesOverwrite(Copier):
    class Copy(MemoryCopy):
        def refuse_existing(self):
            pass

        def commit(self, digests):
            if self.image_id != self.source.image_id:
                self.store.backend.images.pop(self.image_id, None)
            return super().commit(digests)


@rejected_by("test_known_copy_to_an_id_that_exists")
class RefusedCopiesTouchTheImage(Copier):
    class Copy(MemoryCopy):
        def refuse_existing(self):
            image = self.store.backend.images.get(self.image_id)
            if image is not None:
                image.modified += 1
            super().refuse_existing()


@rejected_by("test_known_copy_to_an_id_that_exists")
class RefusedCopiesRemoveTheImage(Copier):
    class Copy(MemoryCopy):
        def refuse_existing(self):
            pass

        def abort(self):
            super().abort()
            self.store.backend.images.pop(self.image_id, None)


@rejected_by("test_known_copy_to_an_id_that_exists")
class RefusedCopiesLeaveTheirParts(Copier):
    class Copy(MemoryCopy):
        def refuse_existing(self):
            pass

        def abort(self):
            pass


@rejected_by("test_known_copy_onto_itself")
class IsItsOwnCopy(Copier):
    class Copy(MemoryCopy):
        def refuse_existing(self):
            if self.source.image_id != self.image_id:
                super().refuse_existing()

        def commit(self, digests):
            return Committed(self.source) if self.source.image_id == self.image_id else super().commit(digests)


@rejected_by("test_known_copy_onto_itself")
class NoticesItselfAtLast(Copier):
    class Copy(MemoryCopy):
        def refuse_existing(self):
            pass


@rejected_by("test_known_copy_outlives_its_original")
class CopiesAreLinks(Copier):
    def image(self, location):
        found = super().image(location)
        return super().image(self.location(found.token[4:])) if found.token.startswith("link") else found

    class Copy(MemoryCopy):
        def commit(self, digests):
            committed = super().commit(digests)
            self.store.backend.images[self.image_id].token = f"link{self.source.image_id}"
            return committed


@rejected_by("test_known_copy_outlives_its_original")
class CopiesDieTogether(Copier):
    def remove(self, location, context, deletion):
        data = self.image(location).data
        super().remove(location, context, deletion)
        for image_id, image in list(self.backend.images.items()):
            if image.data == data:
                del self.backend.images[image_id]


@rejected_by("test_known_copy_outlives_its_original")
class CopiesKeepAHoldOnTheOriginal(Copier):
    class Copy(MemoryCopy):
        def commit(self, digests):
            held = Image(self.data, "held")
            self.store.backend.images.setdefault(f"{self.source.image_id}-held-for-copies", held)
            return super().commit(digests)


@rejected_by("test_known_copy_of_missing_image")
class CopyOfNothingIsEmpty(Copier):
    def image(self, location):
        return self.backend.images.get(location.image_id) or Image(b"", "none")


@rejected_by("test_cancelled_known_copy_leaves_nothing")
class CopiesAreSeenTooEarly(Copier):
    class Copy(MemoryCopy):
        def begin(self):
            super().begin()
            self.store.backend.images[self.image_id] = Image(b"", self.writer.token)

        def copy_part(self, number, offset, length):
            super().copy_part(number, offset, length)
            self.store.backend.images[self.image_id].data = self.data[: offset + length]


@rejected_by("test_cancelled_known_copy_leaves_nothing")
class CancelledCopiesStay(Copier):
    class Copy(MemoryCopy):
        def begin(self):
            super().begin()
            # As good as alive for ever.
            self.store.__dict__.setdefault("kept", []).append(self.writer)

        def abort(self):
            pass


@rejected_by("test_cancelled_known_copy_leaves_nothing")
class CopiesInSpiteOfProgress(Copier):
    def copy(self, location, image_id, *, progress=None, **options):
        stored = super().copy(location, image_id, **options)
        if progress is not None:
            progress(stored.size, stored.size)
        return stored


@rejected_by("test_failed_known_copy_leaves_nothing")
class PublishedCopiesStay(Copier):
    class Copy(MemoryCopy):
        def abort(self):
            if self.image_id not in self.store.backend.images:
                super().abort()


@rejected_by("test_known_copy_whose_response_was_lost")
class PublishesCopiesOnce(Copier):
    class Copy(MemoryCopy):
        def commit(self, digests):
            self.refuse_existing()
            return super().commit(digests)


@rejected_by("test_step_of_a_copy_is_harmless_again")
class BeginsCopiesOnce(Copier):
    class Copy(MemoryCopy):
        def begin(self):
            if self.writer.token in self.store.backend.uploads:
                raise StoreError("it was begun before")
            super().begin()


@rejected_by("test_step_of_a_copy_is_harmless_again")
class AppendsPartsOfCopies(Copier):
    class Copy(MemoryCopy):
        copied = 0

        def copy_part(self, number, offset, length):
            data = memoryview(self.data[offset : offset + length])
            self.writer.write(Part(number, self.copied, data))
            self.copied += length


@rejected_by("test_copying_leaves_nothing_open")
class LeavesADescriptorForEachCopy(Copier):
    class Copy(MemoryCopy):
        def __init__(self, store, source, image_id):
            super().__init__(store, source, image_id)
            store.__dict__.setdefault("opened", []).append(open(os.devnull))


@rejected_by("test_known_copy_with_wrong_digests")
class KnowsDigestsBetter(Copier):
    def copy(self, location, image_id, *, digests=None, **options):
        stored = super().copy(location, image_id, digests=digests, **options)
        return stored._replace(multihash=hashlib.sha512(self.image(self.locate(location)).data).hexdigest())


@rejected_by("test_known_copy_with_wrong_digests")
class ComparesDigestsTooLate(Copier):
    def copy(self, location, image_id, *, digests=None, **options):
        stored = super().copy(location, image_id, digests=digests, **options)
        if digests is not None and digests.multihash == "0" * 128:
            raise StoreError("these are not the digests of the image")
        return stored


@rejected_by("test_original_replaced_during_a_known_copy")
class CopiesWhatHasTheName(Copier):
    class Copy(MemoryCopy):
        def begin(self):
            self.data = self.store.image(self.source).data
            super().begin()


@rejected_by("test_original_replaced_during_a_known_copy")
class CopiesPartsOfAnyImage(Copier):
    class Copy(MemoryCopy):
        def copy_part(self, number, offset, length):
            self.data = self.store.image(self.source).data.ljust(self.size, b"\0")
            super().copy_part(number, offset, length)


@rejected_by("test_racing_known_copies_of_one_id")
class CopiesAreNotAtomic(Copier):
    class Copy(MemoryCopy):
        def commit(self, digests):
            self.refuse_existing()
            time.sleep(0.05)
            self.store.backend.images[self.image_id] = Image(self.data, self.writer.token)
            self.writer.abort = lambda: None
            self.store.backend.uploads.pop(self.writer.token, None)
            return Committed(self.store.location(self.image_id))


@rejected_by("test_racing_known_copies_of_one_id")
class LosingCopiesRemoveTheWinner(Copier):
    class Copy(MemoryCopy):
        def abort(self):
            super().abort()
            time.sleep(0.05)
            self.store.backend.images.pop(self.image_id, None)


@rejected_by("test_racing_known_copies_of_one_id")
class LosingCopiesAreInUse(Copier):
    class Copy(MemoryCopy):
        def commit(self, digests):
            try:
                return super().commit(digests)
            except Duplicate as error:
                raise StoreError("the id is in use") from error


@rejected_by("test_gc_finds_what_a_dead_copy_left")
class CollectsNoCopies(Copier):
    class Copy(MemoryCopy):
        def begin(self):
            super().begin()
            self.store.__dict__.setdefault("copies", set()).add(self.writer.token)

    def garbage(self, older_than, prefix):
        return (
            each for each in super().garbage(older_than, prefix) if each.name not in self.__dict__.get("copies", ())
        )


@rejected_by("test_gc_of_another_object_leaves_no_copy_without_data")
class CopiesWhatIsGone(ByRegistry):
    capabilities = Copier.capabilities
    server_side_copy = Copier.server_side_copy

    class Copy(MemoryCopy):
        pass


@rejected_by("test_gc_of_another_object_leaves_no_copy_without_data")
class CollectsTheOriginalsOfCopies(Copier):
    def garbage(self, older_than, prefix):
        yield from super().garbage(older_than, prefix)
        for _ in list(self.backend.uploads):
            # Of what is being copied it takes the original for a part.
            for image_id in [each for each in self.backend.images if each.startswith(prefix or "")]:
                yield Garbage(image_id, image_id, 0, 0.0)

    def discard(self, garbage):
        return self.backend.images.pop(garbage.name, None) is not None or super().discard(garbage)


# -- Seen by other processes ------------------------------------------------------------------------------------------


class InAFile(SqliteStore):
    """Base of those that must be seen by other processes: the example driver, which is not broken itself."""

    Writer = SqliteWriter
    Reader = SqliteReader

    def open_writer(self, image_id, size, context):
        return self.Writer(self, image_id)

    def open_reader(self, location, offset, length, context):
        return self.Reader(self, self.inspect(location, context))


class BelievingWriter(SqliteWriter):
    def publish(self, db, size):
        known = (self.token, self.image_id, time.time())
        db.execute("INSERT OR IGNORE INTO uploads VALUES (?, ?, ?)", known)
        return super().publish(db, size)


@rejected_by("test_gc_of_another_process_leaves_no_add_without_data")
class TakesOthersForDead(InAFile):
    Writer = BelievingWriter

    def is_alive(self, token):
        return False


@rejected_by("test_gc_of_another_process_leaves_no_add_without_data")
class TakesTheYoungOfOthersForDead(InAFile):
    def garbage(self, older_than, prefix):
        return super().garbage(0, prefix)

    def is_alive(self, token):
        return False


@rejected_by("test_gc_finds_what_a_killed_process_left")
class FindsWhatThisObjectLeft(InAFile):
    def open_writer(self, image_id, size, context):
        self.__dict__.setdefault("mine", set()).add(image_id)
        return super().open_writer(image_id, size, context)

    def garbage(self, older_than, prefix):
        return (each for each in super().garbage(older_than, prefix) if each.image_id in self.__dict__.get("mine", ()))


@rejected_by("test_memory_of_a_process_is_bounded")
class WritesAtTheEnd(InAFile):
    class Writer(SqliteWriter):
        def write(self, part):
            self.__dict__.setdefault("parts", []).append(part._replace(data=memoryview(bytes(part.data))))

        def commit(self, size, digests):
            for part in self.parts:
                super().write(part)
            return super().commit(size, digests)


@rejected_by("test_memory_of_a_process_is_bounded")
class ReadsAllAtOnce(InAFile):
    class Reader(SqliteReader):
        def read_into(self, offset, view):
            if "data" not in vars(self):
                with self.store.transaction() as db:
                    rows = db.execute("SELECT data FROM parts WHERE token = ? ORDER BY start", (self.token,)).fetchall()
                self.data = b"".join(data for (data,) in rows)
            view[:] = self.data[offset : offset + len(view)]
            return len(view)


_OPEN = []


@rejected_by("test_store_that_is_dropped_leaves_nothing_open")
class LeavesADescriptorForEachStore(InAFile):
    @functools.cached_property
    def connection(self):
        _OPEN.append(os.open(os.devnull, os.O_RDONLY))
        return _OPEN[-1]

    def inspect(self, location, context):
        assert self.connection
        return super().inspect(location, context)


# -- What each call leaves open -------------------------------------------------------------------------------------


class LeakyFile(Leaking, InAFile):
    """Base of those whose images are in a file."""


@rejected_by("test_asking_for_the_size_leaves_nothing_open")
class LeaksPerSize(LeakyFile):
    def measure(self, location, context):
        self.leak()
        return super().measure(location, context)


@rejected_by("test_stat_leaves_nothing_open")
class LeaksPerStat(LeakyFile):
    def inspect(self, location, context):
        self.leak()
        return super().inspect(location, context)


@rejected_by("test_listing_leaves_nothing_open")
class LeaksPerList(LeakyFile):
    def images(self):
        self.leak()
        return super().images()


@rejected_by("test_listing_leaves_nothing_open")
class LeaksPerListThatIsDropped(InAFile):
    def images(self):
        descriptor = os.open(os.devnull, os.O_RDONLY)
        yield from super().images()
        os.close(descriptor)


@rejected_by("test_listing_leaves_nothing_open")
class StartsAThreadPerList(InAFile):
    def images(self):
        threading.Thread(target=time.sleep, args=(STAYS,), daemon=True).start()
        return super().images()


@rejected_by("test_check_leaves_nothing_open")
class LeaksPerCheck(LeakyFile):
    def probe(self):
        self.leak()
        return super().probe()


@rejected_by("test_looking_for_leftovers_leaves_nothing_open")
class LeaksPerLookForLeftovers(LeakyFile):
    def garbage(self, older_than, prefix):
        self.leak()
        return super().garbage(older_than, prefix)


@rejected_by("test_collecting_leaves_nothing_open")
class LeaksPerLeftover(LeakyFile):
    def discard(self, garbage):
        self.leak()
        return super().discard(garbage)


@rejected_by("test_deleting_leaves_nothing_open")
class LeaksPerMissingImage(LeakyFile):
    def remove(self, location, context, deletion):
        try:
            super().remove(location, context, deletion)
        except NotFound:
            self.leak()
            raise


# -- What others see ------------------------------------------------------------------------------------------------


@rejected_by("test_other_objects_see_what_is_there_now")
class RemembersWhatOthersDeleted(InAFile):
    def inspect(self, location, context):
        known = self.__dict__.setdefault("known", {})
        known.setdefault(location, super().inspect(location, context) if location not in known else None)
        return known[location]

    def remove(self, location, context, deletion):
        super().remove(location, context, deletion)
        self.__dict__.get("known", {}).pop(location, None)


@rejected_by("test_other_objects_see_what_is_there_now")
class ListsFromMemory(InAFile):
    class Writer(SqliteWriter):
        def publish(self, db, size):
            vars(self.store).pop("listed", None)
            return super().publish(db, size)

    def images(self):
        if "listed" not in vars(self):
            self.listed = list(super().images())
        return iter(self.listed)

    def remove(self, location, context, deletion):
        vars(self).pop("listed", None)
        super().remove(location, context, deletion)


# -- What changes, and what differs ---------------------------------------------------------------------------------


class Touching(Faulty):
    """Base of those that change the times of images which were not changed."""

    def touch(self, image_ids):
        for image_id in image_ids:
            if image_id in self.backend.images:
                self.backend.images[image_id].modified = time.time()


@rejected_by("test_reading_changes_nothing")
class ListingIsModifying(Touching):
    def images(self):
        self.touch(list(self.backend.images))
        return super().images()


@rejected_by("test_reading_changes_nothing")
class RefusingIsModifying(Touching):
    def open_writer(self, image_id, size, context):
        self.touch([image_id])
        return super().open_writer(image_id, size, context)


@rejected_by("test_reading_changes_nothing")
class CollectingIsModifying(Touching):
    def garbage(self, older_than, prefix):
        self.touch(list(self.backend.images))
        return super().garbage(older_than, prefix)


@rejected_by("test_list_and_stat_agree")
class ListsOtherTimes(Faulty):
    def images(self):
        return (dataclasses.replace(info, modified=info.modified - 600) for info in super().images())


@rejected_by("test_list_and_stat_agree")
class ListsOtherVersions(Faulty):
    def images(self):
        return (dataclasses.replace(info, version="1") for info in super().images())


@rejected_by("test_list_and_stat_agree")
class ListsSizesAsFloats(Faulty):
    def images(self):
        return (dataclasses.replace(info, size=float(info.size)) for info in super().images())


@rejected_by("test_gc_keeps_to_the_prefix")
class ComposesPrefixes(InAFile):
    def garbage(self, older_than, prefix):
        wanted = unicodedata.normalize("NFC", prefix or "")
        found = super().garbage(older_than, None)
        return (each for each in found if unicodedata.normalize("NFC", each.image_id).startswith(wanted))


@rejected_by("test_gc_keeps_to_the_prefix")
class StripsPrefixes(InAFile):
    def garbage(self, older_than, prefix):
        return super().garbage(older_than, (prefix or "").strip())


@rejected_by("test_gc_keeps_to_the_prefix")
class ComparesPrefixesInAscii(InAFile):
    def garbage(self, older_than, prefix):
        wanted = (prefix or "").encode("ascii", "replace")
        found = super().garbage(older_than, None)
        return (each for each in found if each.image_id.encode("ascii", "replace").startswith(wanted))


# -- Leftovers beside others of the same id -------------------------------------------------------------------------


@rejected_by("test_gc_of_one_add_leaves_others_of_that_id")
class DiscardsAllUploadsOfTheId(InAFile):
    def discard(self, garbage):
        with self.transaction() as db:
            return db.execute("DELETE FROM uploads WHERE id = ?", (garbage.image_id,)).rowcount > 0


@rejected_by("test_gc_of_one_add_leaves_others_of_that_id")
class DiscardsTheImageToo(InAFile):
    def discard(self, garbage):
        with self.transaction() as db:
            db.execute("DELETE FROM images WHERE id = ?", (garbage.image_id,))
        return super().discard(garbage)


@rejected_by("test_two_gcs_do_not_disturb_each_other")
class MissesWhatIsGone(InAFile):
    def discard(self, garbage):
        if not super().discard(garbage):
            raise NotFound(f"{garbage.name} is gone")
        return True


@rejected_by("test_check")
class HasLessThanNoRoom(Faulty):
    def probe(self):
        return Health("full", free=-1)


@rejected_by("test_check")
class CountsRoomInFractions(Faulty):
    def probe(self):
        return Health("half full", free=0.5, total=1.0)


@rejected_by("test_check_leaves_nothing")
class CheckLeavesAnUpload(InAFile):
    def probe(self):
        with self.transaction() as db:
            db.execute("INSERT INTO uploads VALUES (hex(randomblob(16)), 'check', 0)")
        return super().probe()


@rejected_by("test_results_show_no_credential")
class ShowsItsKeyInHexadecimal(WithSecret):
    def probe(self):
        return Health(f"the key is {self.conf.memory_store_key.encode().hex()}")


@rejected_by("test_results_show_no_credential")
class ShowsItsKeyBehindTheUser(WithSecret):
    def probe(self):
        return Health(f"Basic {base64.b64encode(f'user:{self.conf.memory_store_key}'.encode()).decode()}")


@rejected_by("test_check_leaves_nothing")
class CheckLeavesTheSameImage(Faulty):
    def probe(self):
        self.backend.images.setdefault("check", Image(b"", "check"))
        return super().probe()


@rejected_by("test_hostile_id_round_trips")
class KeepsEndingsForItself(Faulty):
    def open_writer(self, image_id, size, context):
        if image_id.endswith((".part", ".tmp", ".lock", "~")):
            raise Invalid(f"image id {image_id!r} is one of ours")
        return super().open_writer(image_id, size, context)


@rejected_by("test_hostile_id_round_trips")
class TakesCompatibleLettersForTheSame(Faulty):
    def open_writer(self, image_id, size, context):
        plain = unicodedata.normalize("NFKC", image_id)
        alike = unicodedata.normalize("NFC", image_id)
        return super().open_writer(plain if plain != alike else image_id, size, context)


@rejected_by("test_hostile_id_round_trips")
class DropsWhatCannotBeSeen(Faulty):
    def open_writer(self, image_id, size, context):
        return super().open_writer(re.sub("[\u200b\u2060]", "", image_id), size, context)


# -- Behind a network -----------------------------------------------------------------------------------------------


@rejected_by("test_forked_child_adds")
class ForgetsWhatAChildAdds(InAFile):
    def open_writer(self, image_id, size, context):
        if self.__dict__.setdefault("pid", os.getpid()) != os.getpid():
            raise StoreError("the connection belongs to another process")
        return super().open_writer(image_id, size, context)


@rejected_by("test_wrong_credentials_are_forbidden_and_not_shown")
class ServesWhoeverAsks(Networked):
    denied = None


@rejected_by("test_wrong_credentials_are_forbidden_and_not_shown")
class FindsNothingWithoutCredentials(Networked):
    denied = NotFound("no image")


@rejected_by("test_wrong_credentials_are_forbidden_and_not_shown")
class ShowsTheWrongKey(Networked):
    denied = Forbidden("the key 'wrong and secret' is wrong", transient=False)


@rejected_by("test_wrong_credentials_are_forbidden_and_not_shown")
class TriesTheWrongKeyAgain(Networked):
    denied = Forbidden("the key is wrong", transient=True)


@rejected_by("test_wrong_credentials_are_forbidden_and_not_shown")
class ListsForAnybody(Networked):
    def images(self):
        return MemoryStore.images(self)


@rejected_by("test_server_that_is_not_there_is_unavailable")
class FindsNothingWithoutAServer(Networked):
    unreachable = NotFound("no image")


@rejected_by("test_server_that_is_not_there_is_unavailable")
class GivesUpOnAServer(Networked):
    unreachable = RemoteServiceUnavailable("nobody is there", transient=False)


@rejected_by("test_untrusted_certificate_is_refused")
class TrustsAnybody(Networked):
    untrusted = None


@rejected_by("test_untrusted_certificate_is_refused")
class DoesNotSayWhatToDoAboutCertificates(Networked):
    untrusted = RemoteServiceUnavailable("the certificate is unknown", transient=False)


@rejected_by("test_untrusted_certificate_is_refused")
class TriesTheCertificateAgain(Networked):
    untrusted = RemoteServiceUnavailable("the certificate is unknown; see memory_store_key", transient=True)


@rejected_by("test_add_survives_a_fault_on_the_line")
class GivesUpWhenTheLineBreaks(Networked):
    class Writer(OverTheLine):
        def write(self, part):
            try:
                super().write(part)
            except RemoteServiceUnavailable as error:
                raise StoreError("the line broke") from error


@rejected_by("test_add_survives_a_fault_on_the_line")
class LeavesATraceOfEachFault(Networked):
    class Writer(OverTheLine):
        def write(self, part):
            try:
                super().write(part)
            except StoreError:
                self.backend.images.setdefault(f"{self.image_id}.trace", Image(b"", "trace"))
                raise


@rejected_by("test_add_survives_a_stall")
class TakesAStallForTheEnd(Networked):
    def lost(self, error):
        return StoreError("too slow") if isinstance(error, TimeoutError) else super().lost(error)


@rejected_by("test_get_survives_a_stall")
class ReadsNothingAfterAStall(Networked):
    class Reader(FromTheLine):
        def read_into(self, offset, view):
            try:
                return super().read_into(offset, view)
            except RemoteServiceUnavailable as error:
                if isinstance(error.__cause__, TimeoutError):
                    return len(view)
                raise


@rejected_by("test_get_survives_a_fault_on_the_line")
class GivesUpReadingWhenTheLineBreaks(Networked):
    class Reader(FromTheLine):
        def read_into(self, offset, view):
            try:
                return super().read_into(offset, view)
            except RemoteServiceUnavailable as error:
                raise StoreError("the line broke") from error


@rejected_by("test_get_over_a_line_that_always_breaks_is_an_error")
class FillsUpWithZeros(Networked):
    class Reader(FromTheLine):
        def read_into(self, offset, view):
            try:
                return super().read_into(offset, view)
            except RemoteServiceUnavailable:
                return len(view)


@rejected_by("test_add_over_a_line_that_always_breaks_leaves_nothing")
class PublishesBeforeTheDataIsThere(Networked):
    class Writer(OverTheLine):
        def write(self, part):
            self.backend.images.setdefault(self.image_id, Image(b"", self.token))
            super().write(part)

        def abort(self):
            self.store.exchange(b"may be removed")
            super().abort()


class OneStream(Networked):
    """One whose parts cannot be sent again, which it says. It is not broken itself."""

    class Writer(OverTheLine):
        retryable = False


class Leaving(Leaking, Networked):
    """Base of those that leave something open when a call fails."""

    leaves_when: type[StoreError]

    def ask(self):
        if isinstance(self.trouble, self.leaves_when):
            self.leak()
        super().ask()


@rejected_by("test_being_refused_leaves_nothing_open")
class LeavesADescriptorForEachRefusal(Leaving):
    leaves_when = Forbidden


@rejected_by("test_server_that_is_not_there_leaves_nothing_open")
class LeavesADescriptorForEachServerThatIsNotThere(Leaving):
    leaves_when = RemoteServiceUnavailable


class Asking(Networked):
    """Base of those that ask over the line for more than data."""

    def exchange_or(self, otherwise, data):
        try:
            return self.exchange(data)
        except RemoteServiceUnavailable as error:
            return otherwise(error)

    def raise_not_found(self, error):
        raise NotFound("no image") from error


@rejected_by("test_answer_that_is_cut_is_no_answer")
class TakesACutForAMissingImage(Asking):
    def measure(self, location, context):
        self.exchange_or(self.raise_not_found, b"how large is it")
        return super().measure(location, context)


@rejected_by("test_answer_that_is_cut_is_no_answer")
class ListsWhatCame(Asking):
    def images(self):
        for info in super().images():
            if self.exchange_or(lambda error: None, info.uri.encode()) is None:
                return
            yield info


@rejected_by("test_answer_that_does_not_come_is_not_waited_for")
class WaitsForTheServer(Asking):
    def measure(self, location, context):
        if self.line:
            self.connection[0].settimeout(None)
            self.exchange(b"how large is it".ljust(200))
        return super().measure(location, context)


@rejected_by("test_delete_survives_a_fault_on_the_line")
class TakesALostRequestForDone(Asking):
    def remove(self, location, context, deletion):
        if self.exchange_or(lambda error: None, b"delete it") is not None:
            super().remove(location, context, deletion)


# -- New places and full ones -----------------------------------------------------------------------------------------


class Tableless(InAFile):
    """Base of those that make their tables when they are prepared, which a registry does not do."""

    @contextlib.contextmanager
    def transaction(self):
        with contextlib.closing(sqlite3.connect(self.file, timeout=60)) as connection, connection:
            yield connection

    def prepare(self):
        with super().transaction():
            pass


@rejected_by("test_new_place_is_empty")
class FindsNothingAtANewPlace(Tableless):
    pass


@rejected_by("test_first_add_makes_what_it_needs")
class WantsToBePrepared(Tableless):
    pass


@rejected_by("test_read_only_is_read_only")
class ForgetsThatItIsReadOnly(InAFile):
    def configure(self):
        self.configure_get()
        self.configure_add()


class Small(Faulty):
    """Base of those that have no room for all. It is not broken itself."""

    room = None

    def full(self):
        return StorageFull("there is no room")

    class Writer(MemoryWriter):
        def write(self, part):
            if self.store.room is not None and part.offset + len(part.data) > self.store.room:
                raise self.store.full()
            super().write(part)


@rejected_by("test_no_room_is_storage_full")
class RunsOutOfLuck(Small):
    def full(self):
        return StoreError("error 28")


@rejected_by("test_no_room_is_storage_full")
class WaitsForRoom(Small):
    def full(self):
        return StorageFull("there is no room", transient=True)


@rejected_by("test_no_room_is_storage_full")
class KeepsWhatDidNotFit(Small):
    class Writer(Small.Writer):
        def abort(self):
            pass
