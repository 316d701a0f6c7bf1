# SPDX-License-Identifier: Apache-2.0
"""What a store knows of the images it keeps, and what it lets go: list, stat, delete, copy."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator

import pytest

from storelib.capabilities import Capability
from storelib.driver import Digests, Part, Writer
from storelib.exceptions import Duplicate, NotFound
from storelib.testing.conformance.bench import Bench, assert_same_bytes, not_applicable, payload
from storelib.testing.conformance.promises import Promises, needs, sampled
from storelib.testing.conformance.sources import chunks

HOUR = 3600.0
A_SECOND_OR_TWO = 2.0


@needs(Capability.ADD | Capability.READ)
class Keeping(Promises):
    """Promises about images that are there, and that no longer are."""

    @needs(Capability.DELETE)
    @pytest.mark.parametrize("size", ["0", "1", "3 parts+1"])
    @sampled(lambda size: size == "3 parts+1")
    def test_deleted_image_is_gone(self, bench: Bench, size: str) -> None:
        """A deleted image is NotFound for everything, a second delete too; its id can be used again."""
        image_id = bench.new_id()
        uri = bench.add(image_id, payload(bench.sizes()[size])).uri
        bench.remove(uri)
        for call in (bench.read, bench.store.get_size, bench.store.delete):
            with self.refuses(bench, NotFound):
                call(uri)
        bench.assert_nothing_left(image_id)

    @needs(Capability.DELETE)
    def test_delete_removes_one_image(self, bench: Bench) -> None:
        """Deleting an image leaves all others, those with ids that begin alike too."""
        base = bench.new_id("")
        uris = {tail: bench.add(base + tail, tail.encode()).uri for tail in ("a", "ab", "a.b", "a b", "A")}
        gone = uris.pop("a")
        bench.remove(gone)
        for call in (bench.read, bench.store.get_size):
            with self.refuses(bench, NotFound):
                call(gone)
        for tail, uri in uris.items():
            assert_same_bytes(bench.read(uri), tail.encode())

    @needs(Capability.LIST)
    def test_list_is_complete(self, bench: Bench) -> None:
        """The list has every image once, with its URI and size; those that were deleted it has not."""
        sizes = [0, 1, bench.part + 1, 17, 18, 19]
        ids = [bench.new_id("listed") for _ in sizes]
        added = {image_id: bench.add(image_id, payload(size)) for image_id, size in zip(ids, sizes, strict=True)}
        if bench.can(Capability.DELETE):
            bench.remove(added.pop(ids[-1]).uri)

        def differences() -> list[str]:
            listed = [info for info in bench.store.list_images() if info.image_id in ids]
            expected = sorted((image_id, stored.uri, stored.size) for image_id, stored in added.items())
            found = sorted((str(info.image_id), info.uri, info.size) for info in listed)
            return [f"{entry} is listed wrongly or is missing" for entry in sorted({*expected} ^ {*found})] + [
                f"{entry} is listed twice" for entry in found if found.count(entry) > 1
            ]

        bench.eventually(lambda: not differences(), lambda: "; ".join(differences()))

    @needs(Capability.LIST | Capability.STAT)
    def test_list_and_stat_agree(self, bench: Bench) -> None:
        """What the list says of an image, ``stat`` says too; times may be rounded to whole seconds."""
        image_id = bench.new_id("agreed")
        stored = bench.add(image_id, payload(bench.part + 1))
        if bench.shared:
            not_applicable("the list of a live store may be very long")
        bench.eventually(lambda: bench.find(image_id), lambda: f"{stored.uri} is not listed")
        (listed,), stat = bench.find(image_id), bench.store.stat(stored.uri)
        assert (listed.uri, listed.size) == (stat.uri, stat.size)
        assert type(listed.size) is type(stat.size) is int, "a size is a whole number"
        if listed.modified is not None and stat.modified is not None:
            assert abs(listed.modified - stat.modified) < A_SECOND_OR_TWO, f"{listed.modified} is not {stat.modified}"
        if listed.version is not None and stat.version is not None:
            assert listed.version == stat.version

    @needs(Capability.LIST)
    def test_an_image_is_found_by_its_id(self, bench: Bench) -> None:
        """``find_image`` returns what the list has, and None for ids that begin alike and for what was deleted."""
        image_id = bench.new_id("found")
        assert bench.store.find_image(image_id) is None
        stored = bench.add(image_id, payload(17))
        other = bench.add(f"{image_id} -", payload(5))

        def found() -> list[tuple[str | None, str, int]]:
            infos = [bench.store.find_image(each) for each in (image_id, f"{image_id} -", image_id[:-1])]
            return [(info.image_id, info.uri, info.size) for info in infos if info is not None]

        expected = [(image_id, stored.uri, 17), (f"{image_id} -", other.uri, 5)]
        bench.eventually(lambda: found() == expected, lambda: f"found {found()} instead of {expected}")
        if bench.can(Capability.DELETE):
            bench.remove(stored.uri)
            bench.eventually(lambda: bench.store.find_image(image_id) is None, lambda: "a deleted image is found")

    @needs(Capability.STAT)
    @pytest.mark.parametrize("size", ["0", "part+1"])
    @pytest.mark.usefixtures("far_from_utc")
    def test_stat_is_right(self, bench: Bench, size: str) -> None:
        """``stat`` returns size, URI and id, and a time that is about now where it knows one."""
        image_id = bench.new_id()
        stored = bench.add(image_id, payload(bench.sizes()[size]))
        info = bench.store.stat(stored.uri)
        assert (info.uri, info.size) == (stored.uri, stored.size)
        assert info.image_id in (image_id, None)
        if info.modified is not None:
            off = info.modified - time.time()
            assert abs(off) < HOUR, f"the image was changed {off:+.0f} s from now; is that of another time zone?"

    @needs(Capability.STAT | Capability.DELETE)
    def test_stat_of_missing_image(self, bench: Bench) -> None:
        """An image that is not there is NotFound for ``stat``."""
        uri = bench.missing()
        with self.refuses(bench, NotFound):
            bench.store.stat(uri)

    def test_nothing_is_visible_before_commit(self, bench: Bench) -> None:
        """While bytes of an image are under way, nothing shows it: not get, get_size, stat nor the list."""
        image_id = bench.new_id()
        uri = bench.add(image_id, b"learn the URI").uri
        bench.remove(uri)
        if not bench.can(Capability.DELETE):
            image_id = bench.new_id()
        data = payload(3 * bench.part + 1)
        written: list[Part] = []
        probed: list[str] = []

        def change(writer: Writer) -> None:
            plain = writer.write

            def write(part: Part) -> None:
                plain(part)
                written.append(part)

            vars(writer)["write"] = write

        def probe() -> None:
            if bench.can(Capability.LIST) and bench.find(image_id):
                probed.append("the list shows it")
            if bench.access.can("read") and bench.access.read(image_id) is not None:
                probed.append("the back end shows it")
            if not bench.can(Capability.DELETE):
                return
            calls: list[Callable[[str], object]] = [bench.read, bench.store.get_size]
            calls += [bench.store.stat] if bench.can(Capability.STAT) else []
            for call in calls:
                try:
                    call(uri)
                except NotFound:
                    continue
                probed.append(f"{call} shows it")

        def source() -> Iterator[bytes]:
            yield from chunks(data[: 2 * bench.part + 10], 65_536)
            deadline = time.monotonic() + min(2.0, bench.settle_timeout)
            while not written and time.monotonic() < deadline:
                time.sleep(0.01)
            probe()
            yield data[2 * bench.part + 10 :]
            probe()

        with bench.writers_changed(change):
            stored = bench.add(image_id, source())
        assert not probed
        assert_same_bytes(bench.read(stored.uri), data)

    # -- Copies -----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("size", ["0", "1", "3 parts+1"])
    @sampled(lambda size: size != "1")
    def test_copy_is_the_same(self, bench: Bench, size: str) -> None:
        """A copy has the bytes and digests of its original, and a life of its own."""
        data = payload(bench.sizes()[size])
        original = bench.add(bench.new_id(), data)
        copy = bench.copy(original.uri, bench.new_id("copy"))
        assert (copy.size, copy.checksum, copy.multihash) == original[1:4]
        assert copy.uri != original.uri
        bench.remove(original.uri)
        assert_same_bytes(bench.read(copy.uri), data)

    def test_copy_with_known_digests(self, bench: Bench) -> None:
        """A copy whose digests are known carries them and has the same bytes, holes included."""
        data = payload(100_000) + bytes(3 * bench.part) + payload(50_000)
        original = bench.add(bench.new_id(), data, hashing_algo="sha256")
        digests = Digests(original.checksum, hashlib.sha256(data).hexdigest(), "sha256")
        copy = bench.copy(original.uri, bench.new_id("copy"), digests=digests)
        assert (copy.size, copy.checksum, copy.multihash) == original[1:4]
        assert_same_bytes(bench.read(copy.uri), data)

    @needs(Capability.DELETE)
    def test_copy_of_missing_image(self, bench: Bench) -> None:
        """Copying what is not there is NotFound and leaves nothing."""
        image_id = bench.new_id("copy")
        uri = bench.missing()
        with self.refuses(bench, NotFound):
            bench.copy(uri, image_id)
        bench.assert_nothing_left(image_id)

    def test_copy_to_an_id_that_exists(self, bench: Bench) -> None:
        """Copying over an image is Duplicate and leaves it untouched."""
        image_id = bench.new_id()
        uri = bench.add(image_id, b"was here first").uri
        other = bench.add(bench.new_id(), b"the other")
        with self.refuses(bench, Duplicate):
            bench.copy(other.uri, image_id)
        assert_same_bytes(bench.read(uri), b"was here first")
