# SPDX-License-Identifier: Apache-2.0
"""What an agent finds on its disk: pieces, whole images, formats."""

from __future__ import annotations

import errno
import hashlib
import random
import subprocess
import sys

import pytest

from storelib.exceptions import DigestMismatch, Invalid, MissingDependency
from storelib.inspection import source
from storelib.node import checking
from storelib.preload.pieces import PieceHasher

MiB = 1024 * 1024
DATA = random.Random(3).randbytes(2 * MiB) + bytes(2 * MiB) + b"end"


def nothing():
    pass


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def pieces():
    hasher = PieceHasher()
    hasher.update(DATA)
    return hasher.finish()


def test_a_new_file_has_the_pieces_that_are_zeros(path, pieces):
    checking.reserve(path, len(DATA))

    assert checking.present(path, pieces, nothing) == [False, False, True, True, False]
    assert path.stat().st_blocks == 0


def test_pieces_that_were_written_are_found(path, pieces):
    checking.reserve(path, len(DATA))
    with open(path, "r+b") as file:
        file.seek(MiB)
        file.write(DATA[MiB : 2 * MiB])
        file.seek(4 * MiB)
        file.write(b"end")

    assert checking.present(path, pieces, nothing) == [False, True, True, True, True]


def test_half_a_piece_is_none(path, pieces):
    checking.reserve(path, len(DATA))
    with open(path, "r+b") as file:
        file.write(DATA[: MiB - 1])

    assert checking.present(path, pieces, nothing) == [False, False, True, True, False]


def test_zeros_that_were_overwritten_are_missed(path, pieces):
    path.write_bytes(DATA[: 3 * MiB] + b"x" + DATA[3 * MiB + 1 :])

    assert checking.present(path, pieces, nothing) == [True, True, True, False, True]


def test_a_file_that_is_cut_lacks_what_is_behind(path, pieces):
    path.write_bytes(DATA[: 3 * MiB])

    assert checking.present(path, pieces, nothing) == [True, True, True, False, False]


def test_a_longer_file_is_cut(path):
    path.write_bytes(DATA + b"more")

    checking.reserve(path, len(DATA))

    assert path.read_bytes() == DATA


@pytest.mark.parametrize("algorithm", ["sha512", "sha256", "md5"])
def test_the_digest_is_that_of_the_whole_file(path, algorithm):
    path.write_bytes(DATA)

    checking.verify(path, algorithm, hashlib.new(algorithm, DATA).hexdigest().upper(), nothing)

    with pytest.raises(DigestMismatch):
        checking.verify(path, algorithm, hashlib.new(algorithm, DATA + b"x").hexdigest(), nothing)


@pytest.mark.parametrize("size", [0, 1, MiB, 5 * MiB + 7])
def test_holes_count_as_zeros(path, size):
    checking.reserve(path, size)
    with open(path, "r+b") as file:
        file.seek(size // 2)
        file.write(b"x" if size > 1 else b"")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    checking.verify(path, "sha256", digest, nothing)


def test_what_takes_long_can_be_stopped(path, pieces):
    path.write_bytes(DATA)

    def stop():
        raise KeyboardInterrupt

    for call in (
        lambda: checking.present(path, pieces, stop),
        lambda: checking.verify(path, "sha256", "", stop),
    ):
        with pytest.raises(KeyboardInterrupt):
            call()


@pytest.fixture
def qcow2(tmp_path):
    def make(*options):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, "disk", "1M"], cwd=tmp_path, check=True)
        return tmp_path / "disk"

    return make


def test_a_disk_passes_as_what_it_is(qcow2):
    checking.inspect(qcow2(), "qcow2", "bare")
    checking.inspect(qcow2(), "qcow2", None)


def test_a_disk_does_not_pass_as_another_one(qcow2, path):
    path.write_bytes(DATA)
    with pytest.raises(Invalid, match="disk_format is vhdx"):
        checking.inspect(qcow2(), "vhdx", "bare")
    with pytest.raises(Invalid, match="cannot be read as qcow2: .* does not match"):
        checking.inspect(path, "qcow2", "bare")


def test_a_disk_in_another_file_does_not_pass(qcow2, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(MiB))
    disk = qcow2("-b", "secret", "-F", "raw")

    for disk_format in ("qcow2", "raw"):
        with pytest.raises(Invalid, match="not safe"):
            checking.inspect(disk, disk_format, "bare")


@pytest.mark.parametrize("container_format", ["ova", "docker"])
def test_what_is_no_disk_may_be_anything_that_opens_no_other_file(qcow2, path, tmp_path, container_format):
    path.write_bytes(DATA)
    checking.inspect(path, "qcow2", container_format)

    (tmp_path / "secret").write_bytes(bytes(MiB))
    with pytest.raises(Invalid, match="not safe"):
        checking.inspect(qcow2("-b", "secret", "-F", "raw"), "raw", container_format)


def test_a_disk_that_cannot_be_read_is_not_a_bad_one(qcow2, monkeypatch):
    def fail(self, size):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(source.Ahead, "read", fail)
    with pytest.raises(OSError, match="Input/output"):
        checking.inspect(qcow2(), "qcow2", "bare")


@pytest.mark.parametrize("disk_format", ["raw", "ami", None])
def test_raw_data_passes_as_such(path, disk_format):
    path.write_bytes(DATA)

    checking.inspect(path, disk_format, "bare")


def test_an_agent_that_can_inspect_nothing_says_so_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "oslo_utils.imageutils", None)
    monkeypatch.delitem(sys.modules, "storelib.inspection.source", raising=False)

    with pytest.raises(MissingDependency, match=r"storelib\[node\]"):
        checking.prepare()
