# SPDX-License-Identifier: Apache-2.0
"""A file system of the tests' own, with faults that are switched while it is mounted (PyPI: fusepy, Debian: libfuse2).

It passes everything through to a directory. ``mount.fault("link", "EPERM")`` makes that call fail from then on,
``fault("fsync", "EIO", times=1)`` once, ``fault("link", "EEXIST", after=True)`` after it was carried out all the same,
and ``hang("unlink")`` holds it up until the context ends. ``quirk("inodes")`` changes inode numbers all the time,
``"names"`` refuses control characters and ``"statfs"`` has no block and none free. There are no unnamed files.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator

TIMES = ("st_atime", "st_ctime", "st_mtime")
NUMBERS = ("st_gid", "st_ino", "st_mode", "st_nlink", "st_size", "st_uid", "st_blocks")
FREE = ("f_bavail", "f_bfree", "f_blocks")
ROOM = (*FREE, "f_bsize", "f_favail", "f_ffree", "f_files", "f_flag", "f_frsize", "f_namemax")


class FaultyMount:
    """A mounted file system and the switches of its faults."""

    def __init__(self, parent: pathlib.Path) -> None:
        self.below = parent / "below"
        self.path = parent / "mount"
        self.faults = parent / "faults"
        for directory in (self.below, self.path, self.faults):
            directory.mkdir()

    def fault(self, call: str, error: str, *, times: int | None = None, after: bool = False) -> None:
        """Let ``call`` fail with ``error``."""
        name = f"{call}.after" if after else f"{call}.before"
        (self.faults / name).write_text(f"{error} {-1 if times is None else times}")

    def quirk(self, name: str) -> None:
        """Let it be odd in that way."""
        (self.faults / name).touch()

    @contextlib.contextmanager
    def hang(self, call: str) -> Iterator[None]:
        """Hold ``call`` up until the end of the context."""
        self.fault(call, "hang")
        try:
            yield
        finally:
            (self.faults / f"{call}.before").unlink()

    def clear(self) -> None:
        """Work again."""
        for path in self.faults.iterdir():
            path.unlink()


@contextlib.contextmanager
def faulty_mount(parent: pathlib.Path) -> Iterator[FaultyMount]:
    """Mount it below ``parent``; needs root."""
    mount = FaultyMount(parent)
    arguments = [str(path) for path in (mount.below, mount.path, mount.faults)]
    server = subprocess.Popen([sys.executable, __file__, *arguments], stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + 30
        while not os.path.ismount(mount.path):
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"FUSE does not start: {server.communicate(timeout=5)[1].decode()}")
            time.sleep(0.02)
        yield mount
    finally:
        mount.clear()
        # Lazily, so that what a failed test holds open does not keep it.
        subprocess.run(["umount", "--lazy", str(mount.path)], check=False)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        server.stderr.close()


def serve(root: str, mount: str, faults: str) -> None:
    """Be the file system until it is unmounted."""
    from fuse import FUSE, FuseOSError, Operations

    class Through(Operations):
        use_ns = True

        def __call__(self, call, *args):
            if call == "unlink" and os.path.basename(args[0]).startswith(".fuse_hidden"):
                # libfuse's own, some time after an unlinked file is closed: no fault was meant for it.
                return super().__call__(call, *args)
            self.strike(call, "before")
            response = super().__call__(call, *args)
            self.strike(call, "after")
            return response

        def strike(self, call, when):
            path = os.path.join(faults, f"{call}.{when}")
            try:
                with open(path) as file:
                    error, _, times = file.read().partition(" ")
            except FileNotFoundError:
                return
            if error == "hang":
                while os.path.exists(path):
                    time.sleep(0.01)
                return
            if int(times or -1) == 0:
                return
            if int(times) > 0:
                with open(path, "w") as file:
                    file.write(f"{error} {int(times) - 1}")
            raise FuseOSError(getattr(errno, error))

        def on(self, quirk):
            return os.path.exists(os.path.join(faults, quirk))

        def real(self, path):
            if self.on("names") and any(ord(character) < 32 for character in path):
                raise FuseOSError(errno.EINVAL)
            return os.path.join(root, path.lstrip("/"))

        def getattr(self, path, fh=None):
            status = os.lstat(self.real(path)) if fh is None else os.fstat(fh)
            found = {name: getattr(status, name) for name in NUMBERS}
            found.update({name: getattr(status, f"{name}_ns") for name in TIMES})
            if self.on("inodes"):
                found["st_ino"] = time.monotonic_ns()
            return found

        def statfs(self, path):
            status = os.statvfs(root)
            empty = self.on("statfs")
            return {name: 0 if empty and name in FREE else getattr(status, name) for name in ROOM}

        def readdir(self, path, fh):
            return [".", "..", *os.listdir(self.real(path))]

        def readlink(self, path):
            return os.readlink(self.real(path))

        def mkdir(self, path, mode):
            os.mkdir(self.real(path), mode)

        def rmdir(self, path):
            os.rmdir(self.real(path))

        def unlink(self, path):
            os.unlink(self.real(path))

        def link(self, target, source):
            os.link(self.real(source), self.real(target))

        def rename(self, old, new):
            os.rename(self.real(old), self.real(new))

        def open(self, path, flags):
            # Direct I/O is between the kernel and this process.
            return os.open(self.real(path), flags & ~os.O_DIRECT)

        def create(self, path, mode, fi=None):
            return os.open(self.real(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

        def read(self, path, length, offset, fh):
            return os.pread(fh, length, offset)

        def write(self, path, data, offset, fh):
            return os.pwrite(fh, data, offset)

        def truncate(self, path, length, fh=None):
            os.truncate(self.real(path) if fh is None else fh, length)

        def flush(self, path, fh):
            return 0

        def fsync(self, path, datasync, fh):
            return 0

        def fsyncdir(self, path, datasync, fh):
            return 0

        def release(self, path, fh):
            os.close(fh)

        def chmod(self, path, mode):
            os.chmod(self.real(path), mode)

        def chown(self, path, uid, gid):
            os.chown(self.real(path), uid, gid)

        def utimens(self, path, times=None):
            os.utime(self.real(path), ns=times)

    uncached = {"attr_timeout": 0, "entry_timeout": 0, "negative_timeout": 0}
    FUSE(Through(), mount, foreground=True, use_ino=True, allow_other=True, **uncached)


if __name__ == "__main__":
    serve(*sys.argv[1:])
