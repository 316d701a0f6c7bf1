# SPDX-License-Identifier: Apache-2.0
"""FileWriter: an unnamed file, or a part file, that becomes an image when it gets its name."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from typing import TYPE_CHECKING

from storelib.capabilities import Capability
from storelib.driver import Committed, Digests, Part, Writer
from storelib.drivers.filesystem import kernel, publishing
from storelib.drivers.filesystem.directories import flush_directory, make_directory
from storelib.drivers.filesystem.kernel import FULL, PAGE, has_reflinks, let_go
from storelib.drivers.filesystem.paths import shards
from storelib.exceptions import Duplicate, Invalid, StorageFull, StoreError
from storelib.transfer.contract import Extent, MiB
from storelib.transfer.source import GRAIN, file_extents

if TYPE_CHECKING:
    from storelib.drivers.filesystem.store import FilesystemStore

__all__ = ["PAGE", "FileWriter", "has_reflinks"]

LOG = logging.getLogger(__name__)

#: Room for images of unknown size grows at least, and at most, by this many bytes at a time.
LEAST_GROWTH, MOST_GROWTH = 64 * MiB, 1024 * MiB


class FileWriter(Writer):
    """An unnamed file, or a part file, that becomes the image."""

    smallest_part = GRAIN

    def __init__(self, store: FilesystemStore, datadir: str, image_id: str) -> None:
        self.file = self.directory = -1
        self.part: str | None = None
        conf = store.conf
        self.store = store
        self.image_id = image_id
        self.datadir = datadir
        self.place(conf.filesystem_store_shard_levels)
        self.sparse = conf.filesystem_thin_provisioning
        self.fsync = conf.filesystem_store_fsync
        self.direct = self.fsync and conf.filesystem_store_direct_io
        self.unnamed = conf.filesystem_store_staging == "auto"
        self.mode = store.mode
        self.chunk = -(-conf.filesystem_store_chunk_size // GRAIN) * GRAIN
        self.room = 0
        #: Names the file has of its own before it is published.
        self.links = 0
        #: What tells the finished file from others.
        self.met = publishing.Identity(0, 0)
        self.tried = self.published = False
        #: Why what was written cannot be believed any more.
        self.lost: StoreError | None = None
        self.share = self.share_file
        if not self.sparse:
            self.put = self.put_whole
        if not self.direct:
            # Copying in the kernel goes through the page cache, at half the speed of direct writes (measured).
            self.clone = self.clone_range

    def place(self, levels: int) -> None:
        """Let the image lie that many subdirectories deep."""
        self.below = shards(self.image_id, levels)
        self.location = self.store.location(self.datadir, self.image_id, levels)
        self.name = self.image_id

    def part_size(self, number: int, size: int | None) -> int:
        """The same for every part."""
        return int(self.chunk)

    def reserve(self, end: int) -> int | None:
        """Allocate disk blocks ahead; a full disk shows before anything is written."""
        self.create()
        if self.direct:
            # Not every file system has it, some only from some kernel on.
            with contextlib.suppress(OSError):
                kernel.set_flag(self.file, os.O_DIRECT, on=True)
        if self.sparse:
            return None
        growth = min(max(self.room, LEAST_GROWTH), MOST_GROWTH) if self.room else 0
        for wanted in (end + growth, end):
            try:
                kernel.allocate(self.file, wanted)
            except OSError as error:
                if error.errno in kernel.NO_ALLOCATION:
                    return None
                if wanted == end:
                    raise
            else:
                self.room = wanted
                break
        return self.room

    def write(self, part: Part) -> None:
        """Write at the part's offset; only the last part may be no multiple of a page."""
        whole = len(part.data) // PAGE * PAGE
        kernel.write_all(self.file, part.data[:whole], part.offset)
        if whole < len(part.data):
            kernel.set_flag(self.file, os.O_DIRECT, on=False)
            kernel.write_all(self.file, part.data[whole:], part.offset + whole)

    def put_whole(self, data: memoryview, digests: Digests) -> Committed:
        """All of a small image in one call, which spares two changes of thread."""
        if not self.tried:  # else it may be visible already, and only that answer was lost
            self.reserve(len(data))
            self.write(Part(0, 0, data))
        return self.commit(len(data), digests)

    def clone_range(self, source: int, offset: int, length: int) -> None:
        """Copy within the kernel, which shares the blocks on file systems that can; read where it cannot."""
        kernel.set_flag(self.file, os.O_DIRECT, on=False)
        done = kernel.copy_range(source, self.file, offset, length)
        if done < length:
            done += kernel.copy_by_reading(source, self.file, offset + done, length - done)
        if done < length:
            raise Invalid(f"image {self.image_id!r}: the source file shrank while it was copied")

    def share_file(self, source: int, length: int) -> int | None:
        """Share the blocks of the whole source, on btrfs, xfs and the like."""
        if not kernel.has_proc():  # the engine reads the copy by way of it
            return None
        self.create()
        return self.file if kernel.reflink(source, self.file) else None

    def commit(self, size: int, digests: Digests) -> Committed:
        """Give the file its name."""
        if self.lost is not None:
            raise self.lost
        if not self.published:
            if not self.tried:
                self.finish(size)
            with self.store.one_at_a_time(self.image_id):
                if not (self.tried and self.is_published()):
                    self.store.refuse_existing(self.image_id)
                    self.publish()
            self.published = True
        try:
            self.unlink_part()
        except OSError as error:
            # A second name of an image that is there; gc removes it.
            LOG.warning("image %r: removing the name of its part file: %s", self.image_id, error)
        if self.fsync:
            try:
                flush_directory(self.directory)
            except OSError as error:
                raise self.give_up(error) from error
        return Committed(self.location, self.store.metadata_for(self.location.path))

    def finish(self, size: int) -> None:
        """Have all bytes where they belong; what fails here is never tried again (fsync(2): the pages are gone)."""
        os.ftruncate(self.file, size)
        copy = os.dup(self.file)
        try:
            try:
                if self.fsync:
                    os.fsync(self.file)
            finally:
                # close(2) of any descriptor of the file tells what was held back: quotas and full disks of servers.
                os.close(copy)
        except OSError as error:
            raise self.give_up(error) from error
        self.met = publishing.Identity.of(os.fstat(self.file))

    def give_up(self, error: OSError) -> StoreError:
        """The error, from now on, of this add."""
        text = f"image {self.image_id!r}: flushing it to stable storage failed, so nothing was stored: {error.strerror}"
        self.lost = (StorageFull if error.errno in FULL else StoreError)(text)
        return self.lost

    def abort(self) -> None:
        """Take the name away again if it is this file's."""
        if self.file >= 0 and self.tried and (self.published or self.is_published()):
            with contextlib.suppress(FileNotFoundError, publishing.Replaced):
                publishing.take_away(self.directory, self.name, self.image_id, self.met)
            self.published = self.tried = False
        self.unlink_part()

    # -- Making and naming the file ---------------------------------------------------------------------------

    def create(self) -> None:
        """Make the file, without a name if possible."""
        if self.file >= 0:
            return
        try:
            self.store.make_datadir(self.datadir, flush=self.fsync)
            self.directory = make_directory(self.datadir, self.below, self.store.flushed if self.fsync else None)
            if not self.open_unnamed():
                self.open_part()
            if self.mode is not None:
                os.fchmod(self.file, self.mode)
        except BaseException:
            # Tried again it begins anew, with a fresh handle of the directory.
            with contextlib.suppress(OSError):
                self.unlink_part()
            self.free()
            raise

    def open_unnamed(self) -> bool:
        """An unnamed file, which the kernel frees by itself; answers whether there are such files here."""
        if not self.unnamed or self.datadir in self.store.named_only or not kernel.has_proc():
            return False
        flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
        try:
            self.file = os.open(".", flags, 0o666, dir_fd=self.directory)
        except OSError as error:
            if error.errno not in kernel.NO_TMPFILE:
                raise
            return False
        self.self_cleaning = True
        self.links = 0
        return True

    def open_part(self) -> None:
        """A part file: named, locked while its writer lives, found by gc when it is dead."""
        self.part, self.file = publishing.open_part(self.directory, self.image_id)
        self.links = 1

    def publish(self) -> None:
        """Name the file, in the way the file system has; nothing is ever overwritten."""
        self.tried = True
        if self.part is None and not self.link_unnamed():
            self.become_part()
        if self.part is None:
            return
        try:
            self.link(self.part)
        except FileNotFoundError:
            raise publishing.part_is_gone(self.image_id) from None
        except OSError as error:
            if error.errno not in publishing.NO_LINKS:
                raise
            self.rename(self.part)

    def link_unnamed(self) -> bool:
        """Link an unnamed file; answers whether that can be done here."""
        try:
            # Both directory arguments are needed for CPython to call linkat(2) with AT_SYMLINK_FOLLOW.
            self.link(f"/proc/self/fd/{self.file}", follow=True)
        except OSError as error:
            if error.errno in publishing.NO_LINKS or error.errno == errno.ENOENT:
                return False
            raise
        return True

    def link(self, own: str, follow: bool = False) -> None:
        """link(2) never overwrites. An answer may be lost: what counts is how many names the file has."""
        try:
            os.link(own, self.name, src_dir_fd=self.directory, dst_dir_fd=self.directory, follow_symlinks=follow)
        except OSError as error:
            if self.is_published():
                return
            if error.errno == errno.EEXIST:
                raise self.taken() from None
            raise

    def rename(self, part: str) -> None:
        """Publish on a file system without hard links."""
        try:
            alone = publishing.rename_part(self.directory, part, self.name, self.met, self.image_id)
        except FileNotFoundError:
            raise publishing.part_is_gone(self.image_id) from None
        except Duplicate:
            raise self.taken() from None
        self.part = None
        self.links = 0
        if not alone:
            self.store.capabilities &= ~Capability.ATOMIC_ADD

    def taken(self) -> StoreError:
        """The error when something has the image's name."""
        try:
            mode = os.stat(self.name, dir_fd=self.directory, follow_symlinks=False).st_mode
        except FileNotFoundError:
            mode = 0
        if stat.S_ISDIR(mode):
            return Invalid(f"image {self.image_id!r}: store {self.store.name} has a directory of that name")
        return Duplicate(f"image {self.image_id!r} exists in store {self.store.name}")

    def is_published(self) -> bool:
        """Whether the image's name is this very file, by its count of names: inode numbers may change."""
        try:
            named = os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if named.st_size != self.met.size:
            return False
        if publishing.link_count(self.directory, self.part, self.file) > self.links:
            return True
        return self.part is not None and publishing.was_renamed(self.directory, self.part, self.name, self.met)

    def become_part(self) -> None:
        """Copy an unnamed file, which turned out to get no name here, into a part file; the next one is one at once."""
        unnamed, size = self.file, self.met.size
        self.part, self.file = publishing.open_part(self.directory, self.image_id)
        self.self_cleaning = False
        self.links = 1
        self.store.named_only.add(self.datadir)
        # Until it is whole, no further try may publish it.
        self.lost = StoreError(f"image {self.image_id!r}: it could not be copied into a file with a name")
        try:
            if self.mode is not None:
                os.fchmod(self.file, self.mode)
            kernel.set_flag(unnamed, os.O_DIRECT, on=False)
            if not kernel.reflink(unnamed, self.file):
                extents = file_extents(unnamed, 0, size) if self.sparse else [Extent(0, size, data=True)]
                for extent in extents:
                    if extent.data:
                        kernel.copy_by_reading(unnamed, self.file, extent.offset, extent.length)
        finally:
            let_go(unnamed)
        self.finish(size)
        self.lost = None

    def unlink_part(self) -> None:
        """Remove the part file's own name."""
        if self.part is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.part, dir_fd=self.directory)
            self.part = None
            self.links = 0

    # -- The end ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close file and directory; the kernel frees a file that got no name."""
        # Bound methods of its own: without this, only the garbage collector could free the writer.
        self.put = self.clone = self.share = None
        if self.file >= 0 or self.directory >= 0:
            self.store.guard.free(self.free, f"closing image {self.image_id!r}")

    def free(self) -> None:
        """Close what is open, once: close(2) frees the number also when it fails."""
        file, directory = self.file, self.directory
        self.file = self.directory = -1
        for descriptor in (file, directory):
            if descriptor >= 0:
                let_go(descriptor)

    __del__ = free
