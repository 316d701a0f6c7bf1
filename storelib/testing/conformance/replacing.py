# SPDX-License-Identifier: Apache-2.0
"""Images that come and go, under readers, under adds and under listings: nobody sees a mixture, or what was before."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from storelib.capabilities import Capability
from storelib.driver import Deletion, StoredImage
from storelib.exceptions import Duplicate, NotFound, StoreError
from storelib.testing.conformance.bench import Bench, assert_same_bytes, payload
from storelib.testing.conformance.promises import Promises, needs
from storelib.testing.conformance.sources import chunks
from storelib.transfer.retry import mapped

#: Seconds in which a time in whole seconds moves on.
A_SECOND = 1.05
#: Images of a live store for a listing: its operator waits for each.
FEW = 25
PLANTERS = 8


@needs(Capability.ADD | Capability.READ | Capability.DELETE)
class Replacing(Promises):
    """Promises about an id whose image is deleted, and added again."""

    @pytest.mark.parametrize(("read", "other"), [(1, "same size"), (0, "same size"), (0, "longer"), (1, "shorter")])
    def test_image_replaced_while_it_is_read(self, bench: Bench, read: int, other: str) -> None:
        """A stream whose image is deleted and added again gives the old bytes or an error, never a mixture."""
        data = payload(3 * bench.part + 1, "old")
        new = {"same size": bytes(len(data)), "longer": payload(len(data) + 4096), "shorter": payload(100)}[other]
        image_id = bench.new_id("replaced")
        stored = bench.add(image_id, data)
        with bench.store.get(stored.uri).data as stream:
            first = stream.read(read)
            bench.remove(stored.uri)
            again = bench.add(image_id, new)
            try:
                extents = list(stream.extents())
                found = first + stream.read()
            except StoreError:
                found = data
                extents = []
        assert_same_bytes(found, data)
        for extent in extents:
            hole = b"" if extent.data else data[extent.offset : extent.offset + extent.length]
            assert not hole.strip(b"\0"), f"{extent} is a hole of the new image, in a stream of the old one"
        assert_same_bytes(bench.read(again.uri), new)
        bench.remove(again.uri)

    @needs(Capability.RANGE)
    def test_stream_of_a_replaced_image_does_not_change_over(self, bench: Bench) -> None:
        """Nor when it seeks back and forth, or reads a range."""
        data = payload(3 * bench.part + 1, "old")
        image_id = bench.new_id("replaced")
        stored = bench.add(image_id, data)
        with bench.store.get(stored.uri, 100, len(data) - 200).data as stream:
            assert_same_bytes(stream.read(1000), data[100:1100])
            bench.remove(stored.uri)
            again = bench.add(image_id, payload(len(data), "new"))
            for position in (len(data) - 1300, 0, 2 * bench.part):
                stream.seek(position)
                try:
                    found = stream.read(1000)
                except StoreError:
                    continue
                assert_same_bytes(found, data[100 + position : 1100 + position])
        bench.remove(again.uri)

    def test_readded_image_is_the_new_one(self, bench: Bench) -> None:
        """Everything that is asked of an id that was deleted and added again is answered of the new image."""
        image_id = bench.new_id("again")
        old = bench.add(image_id, b"of the old image")
        before = _known(bench, image_id, old)
        bench.remove(old.uri)
        calls: list[Callable[[str], object]] = [bench.read, bench.store.get_size]
        for call in (*calls, bench.store.stat) if bench.can(Capability.STAT) else calls:
            with self.refuses(bench, NotFound):
                call(old.uri)
        data = payload(2 * bench.part + 1)
        new = bench.add(image_id, data)
        after = _known(bench, image_id, new)
        assert after["size"] == len(data), "get_size remembers the image that was deleted"
        assert after.get("stat", len(data)) == len(data), "stat remembers the image that was deleted"
        assert after.get("list", len(data)) == len(data), "the list remembers the image that was deleted"
        assert after.get("find", len(data)) == len(data), "find_image remembers the image that was deleted"
        if before.get("version") is not None:
            assert after["version"] != before["version"], "the new image has the version of the one that was deleted"
        assert_same_bytes(bench.read(new.uri), data)

    @needs(Capability.STAT)
    def test_delete_that_is_tried_again_spares_a_newer_image(self, bench: Bench) -> None:
        """What removes an image, called again since its response was lost, leaves one that took its place meanwhile.

        Where ``version`` tells the two apart. See ``Store.remove``.
        """
        image_id = bench.new_id("deleted")
        old = bench.add(image_id, b"old")
        version = bench.store.stat(old.uri).version
        location = bench.store.locate(old.uri)
        deletion = Deletion()

        def remove() -> None:
            mapped(lambda: bench.store.remove(location, None, deletion), bench.store.map_error, old.uri)

        remove()
        new = bench.add(image_id, b"the newer one")
        if new.uri == old.uri and version not in (None, bench.store.stat(new.uri).version):
            with contextlib.suppress(StoreError):
                remove()
        assert_same_bytes(bench.read(new.uri), b"the newer one")

    @needs(Capability.STAT)
    def test_reading_changes_nothing(self, bench: Bench) -> None:
        """``modified`` and ``version`` of an image stay as they are, however often it is read, listed or refused."""
        image_id = bench.new_id()
        stored = bench.add(image_id, b"never changed")
        before = bench.store.stat(stored.uri)
        bench.read(stored.uri)
        bench.store.get_size(stored.uri)
        time.sleep(A_SECOND)
        bench.read(stored.uri)
        bench.copy(stored.uri, bench.new_id("copy"))
        with self.refuses(bench, Duplicate):
            bench.add(image_id, b"refused")
        if bench.can(Capability.LIST):
            next(bench.store.list_images(), None)
        if bench.can(Capability.GC):
            bench.store.gc(0, prefix=bench.prefix)
        if bench.can(Capability.CHECK):
            bench.store.check()
        after = bench.store.stat(stored.uri)
        assert after.modified == before.modified, "modified is not the time when the image was added"
        assert after.version == before.version
        assert after.metadata == before.metadata

    def test_other_objects_see_what_is_there_now(self, bench: Bench) -> None:
        """What one object of the store deletes or adds again, another that asked before does not remember."""
        other = bench.second_store()
        image_id = bench.new_id("elsewhere")
        old = bench.add(image_id, b"of the old image")
        calls: list[Callable[[str], object]] = [other.get_size, lambda uri: other.get(uri).data.close()]
        calls += [other.stat] if bench.can(Capability.STAT) else []
        for call in calls:
            call(old.uri)
        lists = bench.can(Capability.LIST) and not bench.shared

        def listed() -> list[int]:
            return [info.size for info in other.list_images() if info.image_id == image_id]

        def assert_listed(*sizes: int) -> None:
            if lists:
                bench.eventually(lambda: listed() == [*sizes], lambda: f"another object lists {listed()}, not {sizes}")

        assert_listed(16)
        bench.remove(old.uri)
        for call in calls:
            with self.refuses(bench, NotFound):
                call(old.uri)
        assert_listed()
        new = bench.add(image_id, b"new")
        assert other.get_size(new.uri) == 3
        with other.get(new.uri).data as stream:
            assert_same_bytes(stream.read(), b"new")
        assert_listed(3)

    # -- Adds under way ---------------------------------------------------------------------------------------------

    def test_delete_does_not_stop_an_add(self, bench: Bench) -> None:
        """While an image is being added there is nothing to delete, and the add goes on to a whole image."""
        image_id = bench.new_id("added")
        uri = bench.add(image_id, b"learn the URI").uri
        bench.remove(uri)
        data = payload(3 * bench.part + 1)
        found: list[str] = []

        def source() -> Iterator[bytes]:
            for chunk in chunks(data, bench.part):
                yield chunk
                time.sleep(0.02)
                try:
                    bench.store.delete(uri)
                    found.append("delete removed an image that was not there")
                except NotFound:
                    continue

        stored = bench.add(image_id, source())
        assert not found, found[0]
        assert_same_bytes(bench.read(stored.uri), data)

    def test_image_comes_and_goes_during_an_add(self, bench: Bench) -> None:
        """An add in whose middle another image took the id and was deleted again succeeds whole, or leaves nothing."""
        image_id = bench.new_id("between")
        data = payload(3 * bench.part + 1)

        def source() -> Iterator[bytes]:
            yield data[: 2 * bench.part]
            bench.remove(bench.add(image_id, payload(bench.part + 1, "between")).uri)
            yield data[2 * bench.part :]

        try:
            stored = bench.add(image_id, source())
        except StoreError:
            bench.assert_nothing_left(image_id)
            return
        assert_same_bytes(bench.read(stored.uri), data)

    # -- Listings ---------------------------------------------------------------------------------------------------

    @needs(Capability.LIST)
    def test_list_while_images_come_and_go(self, bench: Bench) -> None:
        """A listing has every image that stays, once, however many there are and whatever comes and goes meanwhile."""
        count = min(self.many_images, FEW) if bench.shared else self.many_images
        images = dict(_planted(bench, count))
        bench.eventually(
            lambda: images.keys() <= _listed(bench),
            lambda: f"of {count} images {_absent(bench, images)}",
        )
        listing = (info.image_id or "" for info in bench.store.list_images())
        seen = _until(listing, images.keys(), count // 2)
        # Some that were seen and some that are to come: a listing that counts entries misses others now.
        gone = [each for each in seen if each in images][:3] + [each for each in images if each not in seen][:2]
        for image_id in gone:
            bench.remove(images[image_id])
            bench.add(bench.new_id("many-more"), b"new")
        seen += listing
        stayed = images.keys() - set(gone)
        missing = sorted(stayed - set(seen))
        assert not missing, f"{len(missing)} of {len(stayed)} images are not listed, as {missing[0]}"
        twice = sorted(each for each in stayed if seen.count(each) > 1)
        assert not twice, f"{len(twice)} images are listed twice, as {twice[0]}"


def _planted(bench: Bench, count: int) -> list[tuple[str, str]]:
    """Ids and URIs of that many small images, behind the driver's back where that is possible."""
    ids = [bench.new_id("many") for _ in range(count)]

    def plant(image_id: str) -> tuple[str, str]:
        if bench.access.can("plant"):
            return image_id, bench.plant(image_id, b"one of many")
        return image_id, bench.add(image_id, b"one of many").uri

    with ThreadPoolExecutor(PLANTERS) as planters:
        return list(planters.map(plant, ids))


def _until(listing: Iterator[str], of: Collection[str], count: int) -> list[str]:
    """The listing until it has come to so many of these."""
    seen: list[str] = []
    for image_id in listing:
        seen.append(image_id)
        count -= image_id in of
        if not count:
            break
    return seen


def _listed(bench: Bench) -> set[str]:
    return {info.image_id or "" for info in bench.store.list_images()}


def _absent(bench: Bench, images: dict[str, str]) -> str:
    absent = sorted(images.keys() - _listed(bench))
    return f"{len(absent)} are missing, as {', '.join(itertools.islice(absent, 3))}"


def _known(bench: Bench, image_id: str, stored: StoredImage) -> dict[str, object]:
    """What the store knows of an image, by who was asked."""
    known: dict[str, object] = {"size": bench.store.get_size(stored.uri)}
    if bench.can(Capability.STAT):
        info = bench.store.stat(stored.uri)
        known.update(stat=info.size, version=info.version)
    if bench.can(Capability.LIST) and not bench.shared:
        bench.eventually(lambda: bench.find(image_id), lambda: f"{stored.uri} is not listed")
        found = bench.store.find_image(image_id)
        known.update(list=bench.find(image_id)[0].size, find=found.size if found else None)
    return known
