# SPDX-License-Identifier: Apache-2.0
"""Capability flags tell the truth both ways: what is flagged works, what is not is refused with the right error."""

from __future__ import annotations

import time
import urllib.error
import urllib.request

from storelib.capabilities import Capability
from storelib.driver import Digests, Health, Part, Writer
from storelib.exceptions import (
    AclsNotSupported,
    OperationNotSupported,
    StoreAddDisabled,
    StoreDeleteNotSupported,
    StoreGetNotSupported,
    StoreRandomGetNotSupported,
)
from storelib.testing.conformance.bench import Bench, assert_same_bytes, not_applicable, payload
from storelib.testing.conformance.promises import Promises, assert_no_secret, lacks, needs, without_key_name
from storelib.transfer.contract import MiB, is_whole


class Capable(Promises):
    """What ``Store.capabilities`` says is what the store does."""

    def test_capabilities_are_those_expected(self, bench: Bench) -> None:
        """The store can do what the author of its test says, no less and no more."""
        if self.capabilities is None:
            assert Capability.READ in bench.store.capabilities
            return
        assert bench.store.capabilities == self.capabilities

    @needs(Capability.CHECK)
    def test_check(self, bench: Bench) -> None:
        """``check`` returns one line about the health of the back end, and room that makes sense."""
        health = bench.store.check()
        assert isinstance(health, Health)
        assert health.detail
        assert "\n" not in health.detail
        for room in (health.free, health.total):
            assert room is None or (is_whole(room) and room >= 0), f"{room} is no number of bytes"
        if health.free is not None and health.total is not None:
            assert health.free <= health.total

    @needs(Capability.CHECK | Capability.LIST)
    def test_check_leaves_nothing(self, bench: Bench) -> None:
        """What ``check`` tries, it takes away again: images and leftovers are the same before and after."""
        if bench.shared:
            not_applicable("in a live store images come and go while it is checked")

        def all_there_is() -> set[str]:
            names = {info.uri for info in bench.store.list_images()}
            return names | ({item.name for item in bench.store.find_garbage(0)} if bench.can(Capability.GC) else set())

        # Nobody else has images here, so what an earlier check left is known too.
        foreign = [info.uri for info in bench.store.list_images() if bench.prefix not in (info.image_id or info.uri)]
        assert not foreign, f"check left images behind: {foreign}"
        before = all_there_is()
        bench.store.check()
        bench.eventually(
            lambda: not all_there_is() - before, lambda: f"check left behind: {sorted(all_there_is() - before)}"
        )

    @needs(Capability.PRESIGN | Capability.READ)
    def test_presigned_url_expires(self, bench: Bench) -> None:
        """A presigned URL ends to work when it was said, and shows no secret."""
        uri, _ = bench.image(1000)
        url = bench.store.presign(uri, 1)
        assert_no_secret(bench.secrets, without_key_name(url), "a presigned URL")
        time.sleep(1.5)
        bench.eventually(lambda: not _opens(url), lambda: "the URL works long after it expired")

    @needs(Capability.PRESIGN | Capability.READ)
    def test_presign(self, bench: Bench) -> None:
        """A presigned URL gives the bytes to any client."""
        uri, data = bench.image(1000)
        url = bench.store.presign(uri, 60)
        assert url.startswith(("http://", "https://"))
        with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310  (looked at in the line before)
            assert_same_bytes(response.read(), data)

    @needs(Capability.ACLS | Capability.READ)
    def test_acls(self, bench: Bench) -> None:
        """``set_acls`` takes every form, and the image stays readable for its owner."""
        uri, data = bench.image(1000)
        bench.store.set_acls(uri, public=True)
        bench.store.set_acls(uri, read_tenants=["one", "two"], write_tenants=["two"])
        bench.store.set_acls(uri)
        assert_same_bytes(bench.read(uri), data)

    @needs(Capability.SPARSE | Capability.ADD | Capability.READ)
    def test_sparse(self, bench: Bench) -> None:
        """Long runs of zeros are stored as holes, and reads tell where they are."""
        data = payload(MiB) + bytes(8 * MiB) + payload(MiB)
        stored = bench.add(bench.new_id(), data)
        with bench.store.get(stored.uri).data as stream:
            holes = sum(extent.length for extent in stream.extents() if not extent.data)
        assert holes >= 4 * MiB, "8 MiB of zeros came back as data"

    @needs(Capability.COPY | Capability.ADD | Capability.READ)
    def test_copy_moves_no_bytes(self, bench: Bench) -> None:
        """With known digests a copy passes no byte through this process."""
        data = payload(3 * bench.part + 1)
        original = bench.add(bench.new_id(), data, hashing_algo="sha256")
        moved: list[int] = []

        def change(writer: Writer) -> None:
            plain = writer.write

            def write(part: Part) -> None:
                moved.append(len(part.data))
                plain(part)

            vars(writer)["write"] = write

        digests = Digests(original.checksum, original.multihash, "sha256")
        with bench.writers_changed(change):
            copy = bench.copy(original.uri, bench.new_id("copy"), digests=digests)
        assert not moved
        assert_same_bytes(bench.read(copy.uri), data)

    # -- What is not flagged ----------------------------------------------------------------------------------------

    @lacks(Capability.READ)
    def test_no_reading(self, bench: Bench) -> None:
        """Without READ, ``get`` is StoreGetNotSupported."""
        with self.refuses(bench, StoreGetNotSupported):
            bench.store.get(bench.put(b"data"))

    @needs(Capability.READ)
    @lacks(Capability.RANGE)
    def test_no_ranges(self, bench: Bench) -> None:
        """Without RANGE, an offset or a length is StoreRandomGetNotSupported."""
        uri, _ = bench.image(1000)
        for offset, length in ((1, None), (0, 10), (5, 5)):
            with self.refuses(bench, StoreRandomGetNotSupported):
                bench.store.get(uri, offset, length)

    @lacks(Capability.ADD)
    def test_no_adding(self, bench: Bench) -> None:
        """Without ADD, ``add`` is StoreAddDisabled, and reads nothing."""
        source = iter([b"data"])
        with self.refuses(bench, StoreAddDisabled):
            bench.add(bench.new_id(), source)
        assert next(source) == b"data"

    @needs(Capability.READ)
    @lacks(Capability.DELETE)
    def test_no_deleting(self, bench: Bench) -> None:
        """Without DELETE, ``delete`` is StoreDeleteNotSupported, and the image stays."""
        uri, data = bench.image(1000)
        with self.refuses(bench, StoreDeleteNotSupported):
            bench.store.delete(uri)
        assert_same_bytes(bench.read(uri), data)

    @needs(Capability.READ)
    @lacks(Capability.ACLS)
    def test_no_acls(self, bench: Bench) -> None:
        """Without ACLS, ``set_acls`` is AclsNotSupported."""
        uri, _ = bench.image(1000)
        with self.refuses(bench, AclsNotSupported):
            bench.store.set_acls(uri, public=True)

    @lacks(Capability.LIST)
    def test_no_listing(self, bench: Bench) -> None:
        """Without LIST, ``list_images`` is OperationNotSupported."""
        with self.refuses(bench, OperationNotSupported):
            list(bench.store.list_images())

    @needs(Capability.READ)
    @lacks(Capability.STAT)
    def test_no_stat(self, bench: Bench) -> None:
        """Without STAT, ``stat`` is OperationNotSupported."""
        uri, _ = bench.image(1000)
        with self.refuses(bench, OperationNotSupported):
            bench.store.stat(uri)

    @lacks(Capability.GC)
    def test_no_gc(self, bench: Bench) -> None:
        """Without GC, ``gc`` is OperationNotSupported."""
        with self.refuses(bench, OperationNotSupported):
            bench.store.gc(1e9, prefix=bench.prefix)

    @lacks(Capability.CHECK)
    def test_no_check(self, bench: Bench) -> None:
        """Without CHECK, ``check`` is OperationNotSupported."""
        with self.refuses(bench, OperationNotSupported):
            bench.store.check()

    @needs(Capability.READ)
    @lacks(Capability.PRESIGN)
    def test_no_presigning(self, bench: Bench) -> None:
        """Without PRESIGN, ``presign`` is OperationNotSupported."""
        uri, _ = bench.image(1000)
        with self.refuses(bench, OperationNotSupported):
            bench.store.presign(uri, 60)


def _opens(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=30):  # noqa: S310  (the store's own)
            return True
    except urllib.error.HTTPError:
        return False
