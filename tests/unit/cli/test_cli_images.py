# SPDX-License-Identifier: Apache-2.0
"""add, get, stat, ls, rm, cp, verify and acl."""

from __future__ import annotations

import errno
import hashlib
import os
import stat

import pytest

from storelib.driver import Digest
from storelib.drivers.filesystem.reader import FileReader
from storelib.transfer import digests

DATA = b"a disk image, for all we know " * 1000
SHA512 = hashlib.sha512(DATA).hexdigest()


@pytest.fixture
def disk(places):
    path = places / "disk.raw"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def uri(storelib, disk):
    """An image in fast whose id is ``one``."""
    return storelib("--format", "json", "add", disk, "--id", "one").document["uri"]


# -- add --------------------------------------------------------------------------------------------------------------


def test_add_tells_uri_size_and_digests(storelib, disk, places):
    assert storelib("add", disk, "--id", "one", "--format", "json").document == {
        "uri": f"file://{places}/fast/one",
        "store": "fast",
        "size": len(DATA),
        "md5": hashlib.md5(DATA).hexdigest(),
        "sha512": SHA512,
    }


def test_add_without_json_is_for_people(storelib, disk, places):
    response = storelib("add", disk, "--id", "one")
    assert f"uri:    file://{places}/fast/one\n".encode() in response.out


def test_add_invents_an_id(storelib, disk):
    first, second = (storelib("add", disk, "--format", "json").document["uri"] for _ in range(2))
    assert first != second


def test_add_reads_stdin(storelib, places):
    storelib("add", "-", "--id", "one", stdin=DATA)
    assert (places / "fast" / "one").read_bytes() == DATA


def test_add_to_several_stores_feeds_all(storelib, disk, places):
    response = storelib("add", disk, "--id", "one", "--store", "archive", "--store", "fast", "--format", "json")
    assert [document["store"] for document in response.documents] == ["archive", "fast"]
    assert (places / "archive" / "one").read_bytes() == (places / "fast" / "one").read_bytes() == DATA


def test_one_of_several_stores_that_fails_does_not_stop_the_others(storelib, uri, disk, places):
    response = storelib("add", disk, "--id", "one", "--store", "fast", "--store", "archive", "--format", "json")
    assert response.code == 4
    assert response.document["store"] == "archive"


def test_when_all_stores_fail_each_says_why(storelib, uri, disk):
    storelib("add", disk, "--id", "one", "--store", "archive")
    response = storelib("add", disk, "--id", "one", "--store", "fast", "--store", "archive")
    assert (response.code, response.out, response.err.count("\n")) == (4, b"", 2)
    assert "exists in store fast" in response.err
    assert "exists in store archive" in response.err


def test_adding_an_id_twice_is_code_4(storelib, uri, disk):
    response = storelib("add", disk, "--id", "one")
    assert (response.code, response.err.count("\n")) == (4, 1)
    assert response.err.startswith("storelib: ")


def test_a_wrong_size_is_code_2_and_stores_nothing(storelib, disk, places):
    assert storelib("add", disk, "--id", "one", "--size", len(DATA) + 1).code == 2
    assert not (places / "fast" / "one").exists()


def test_an_unusable_algorithm_is_code_2(storelib, disk):
    response = storelib("add", disk, "--hash", "shake_128")
    assert response.code == 2
    assert "shake_128" in response.err


def test_a_source_that_is_not_there_is_code_2(storelib):
    assert storelib("add", "nowhere.raw").code == 2


def test_a_store_that_is_not_there_is_code_2(storelib, disk):
    response = storelib("add", disk, "--store", "fsat")
    assert (response.code, response.err) == (2, "storelib: there is no store 'fsat'; did you mean fast?\n")


def test_a_hostile_id_is_code_2(storelib, disk):
    assert storelib("add", disk, "--id", "../one").code == 2


# -- get --------------------------------------------------------------------------------------------------------------


def test_get_writes_to_stdout(storelib, uri):
    assert storelib("get", uri).out == DATA


def test_get_writes_to_a_file(storelib, uri, places):
    assert storelib("get", uri, "-o", places / "copy.raw").code == 0
    assert (places / "copy.raw").read_bytes() == DATA


def test_a_file_got_has_the_usual_permissions(storelib, uri, places):
    storelib("get", uri, "-o", places / "copy.raw")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((places / "copy.raw").stat().st_mode) == 0o666 & ~mask


def test_get_reads_a_range(storelib, uri):
    assert storelib("get", uri, "--offset", 7, "--length", 9).out == DATA[7:16]


def test_get_leaves_holes_for_zeros(storelib, places):
    (places / "sparse.raw").write_bytes(bytes(8 << 20) + b"end")
    uri = storelib("add", places / "sparse.raw", "--format", "json").document["uri"]
    storelib("get", uri, "-o", places / "copy.raw")
    copy = places / "copy.raw"
    assert copy.read_bytes() == bytes(8 << 20) + b"end"
    assert copy.stat().st_blocks * 512 < 1 << 20


def test_get_of_an_image_that_ends_in_zeros_has_its_size(storelib, places):
    uri = storelib("add", "-", "--format", "json", stdin=b"begin" + bytes(4 << 20)).document["uri"]
    storelib("get", uri, "-o", places / "copy.raw")
    assert (places / "copy.raw").stat().st_size == (4 << 20) + 5


def test_get_does_not_replace_a_file(storelib, uri, places):
    (places / "copy.raw").write_text("precious")
    response = storelib("get", uri, "-o", places / "copy.raw")
    assert (response.code, (places / "copy.raw").read_text()) == (4, "precious")


def test_get_replaces_a_file_with_force(storelib, uri, places):
    (places / "copy.raw").write_text("old")
    storelib("get", uri, "-o", places / "copy.raw", "--force")
    assert (places / "copy.raw").read_bytes() == DATA


def test_a_get_that_fails_half_way_leaves_no_file(storelib, uri, places, monkeypatch):
    from storelib.cli import files

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    before = set(os.listdir(places))
    response = storelib("get", uri, "-o", places / "copy.raw")
    assert (response.code, response.err) == (1, "storelib: No space left on device\n")
    assert set(os.listdir(places)) == before


def test_get_to_a_device_writes_to_it(storelib, uri):
    assert storelib("get", uri, "-o", "/dev/null").code == 4
    assert storelib("get", uri, "-o", "/dev/null", "--force").code == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_get_of_an_image_that_is_not_there_is_code_3(storelib, places):
    response = storelib("get", f"file://{places}/fast/none", "-o", places / "copy.raw")
    assert response.code == 3
    assert not (places / "copy.raw").exists()


def test_a_file_outside_the_stores_is_code_2(storelib):
    response = storelib("get", "file:///etc/hostname")
    assert (response.code, response.out) == (2, b"")


# -- stat, ls, rm -----------------------------------------------------------------------------------------------------


def test_stat_tells_what_is_known(storelib, uri):
    known = storelib("stat", uri, "--format", "json").document
    assert (known["store"], known["id"], known["size"], known["uri"]) == ("fast", "one", len(DATA), uri)


def test_ls_lists_the_images_of_all_stores(storelib, disk):
    for store in ("fast", "archive"):
        storelib("add", disk, "--id", f"in {store}", "--store", store)
    assert [image["id"] for image in storelib("ls", "--format", "json").documents] == ["in fast", "in archive"]


def test_ls_of_one_store_leaves_the_others_out(storelib, uri):
    assert storelib("ls", "archive").out == b""


def test_plain_ls_has_a_line_with_tabs_for_each_image(storelib, uri):
    [line] = storelib("ls", "--format", "plain").out.decode().splitlines()
    store, size, _modified, image_id, where = line.split("\t")
    assert (store, size, image_id, where) == ("fast", str(len(DATA)), "one", uri)


def test_rm_deletes(storelib, uri):
    assert storelib("rm", uri).code == 0
    assert storelib("stat", uri).code == 3


def test_rm_goes_on_after_an_image_that_is_not_there(storelib, uri, places):
    assert storelib("rm", f"file://{places}/fast/none", uri).code == 3
    assert storelib("stat", uri).code == 3


# -- cp, verify, acl --------------------------------------------------------------------------------------------------


def test_cp_copies_under_the_same_id(storelib, uri, places):
    copied = storelib("cp", uri, "archive", "--format", "json").document
    assert (copied["uri"], copied["sha512"]) == (f"file://{places}/archive/one", SHA512)
    assert (places / "archive" / "one").read_bytes() == DATA


def test_cp_copies_under_another_id(storelib, uri, places):
    storelib("cp", uri, "fast", "--id", "two")
    assert (places / "fast" / "two").read_bytes() == DATA


def test_cp_onto_an_image_is_code_4(storelib, uri):
    assert storelib("cp", uri, "fast").code == 4


@pytest.mark.parametrize("digest", [f"sha512:{SHA512}", f"SHA256:{hashlib.sha256(DATA).hexdigest().upper()}"])
def test_verify_finds_the_image_as_expected(storelib, uri, digest):
    response = storelib("verify", uri, "--digest", digest, "--format", "json")
    assert (response.code, response.document["match"]) == (0, True)


def test_verify_of_other_bytes_is_code_9(storelib, uri, places):
    (places / "fast" / "one").write_bytes(DATA.swapcase())
    response = storelib("verify", uri, "--digest", f"sha512:{SHA512}", "--format", "json")
    assert (response.code, response.document["match"]) == (9, False)


@pytest.mark.parametrize(
    "digest", ["sha512", "sha512:", ":ab", "crc7:ab", "", "md5:zz", f"sha512:{SHA512}0", "sha256:" + SHA512]
)
def test_a_malformed_digest_is_code_2(storelib, uri, digest):
    assert storelib("verify", uri, "--digest", digest).code == 2


def test_verify_without_a_digest_wants_one_that_was_recorded(storelib, uri, recorded):
    assert storelib("verify", uri).code == 8
    recorded.append(Digest("sha512", SHA512))
    response = storelib("verify", uri, "--format", "json")
    assert (response.code, response.document["found"]) == (0, SHA512)
    recorded[0] = Digest("md5", "0" * 32)
    response = storelib("verify", uri, "--format", "json")
    assert (response.code, response.document["found"]) == (9, hashlib.md5(DATA).hexdigest())


def test_cp_copies_nothing_that_is_not_what_was_recorded(storelib, uri, places, recorded):
    (places / "archive").mkdir(exist_ok=True)
    for algorithm in ("sha256", "sha512", "md5"):
        recorded[:] = [Digest(algorithm, "0" * 2 * hashlib.new(algorithm).digest_size)]
        response = storelib("cp", uri, "archive")
        assert (response.code, uri in response.err) == (9, True)
        assert not list((places / "archive").iterdir())
    recorded[0] = Digest("sha256", hashlib.sha256(DATA).hexdigest())
    assert storelib("cp", uri, "archive").code == 0


def test_cp_hashes_once_what_was_recorded_with_the_algorithm_of_the_copy(storelib, uri, recorded, monkeypatch):
    made = []
    plain = digests.new_hasher
    monkeypatch.setattr(digests, "new_hasher", lambda name: (made.append(name), plain(name))[1])
    recorded.append(Digest("sha512", SHA512))
    assert storelib("cp", uri, "archive").code == 0
    assert made.count("sha512") == 1
    recorded[0] = Digest("sha256", hashlib.sha256(DATA).hexdigest())
    assert storelib("cp", uri, "archive", "--id", "two").code == 0
    assert (made.count("sha512"), made.count("sha256")) == (2, 1)


def test_cp_says_so_where_what_was_recorded_cannot_be_computed_here(storelib, uri, recorded):
    recorded.append(Digest("whirlpool9", "0" * 64))
    response = storelib("cp", uri, "archive")
    assert response.code == 0
    assert "not compared" in response.err


@pytest.fixture
def recorded(monkeypatch):
    """Digests that the file driver tells of as if it had recorded them."""
    known = []
    monkeypatch.setattr(FileReader, "digest", property(lambda self: known[0] if known else None), raising=False)
    return known


def test_acl_of_a_store_without_lists_is_code_8(storelib, uri):
    response = storelib("acl", uri, "--public")
    assert response.code == 8
    assert "no access control lists" in response.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("add", "disk.raw", "--id", ""),
        ("add", "disk.raw", "--store", ""),
        ("cp", "file:///x", "archive", "--id", ""),
        ("image", "create", "name", "--id", ""),
        ("image", "upload", "name", "disk.raw", "--store", ""),
        ("image", "--timeout", "nan", "list"),
        ("image", "--timeout", "1e300", "list"),
        ("serve", "--grace", "inf"),
        ("gc", "--older-than", "nan"),
    ],
)
def test_what_is_empty_or_no_number_is_a_mistake(storelib, places, arguments):
    """As an unset variable of a script leaves it; a new id, or another store, would be a surprise."""
    (places / "disk.raw").write_bytes(b"data")
    assert storelib(*arguments).code == 2
    assert not list(places.glob("*/*"))


def test_one_store_named_twice_is_a_mistake(storelib, places):
    (places / "disk.raw").write_bytes(b"data")
    response = storelib("add", "disk.raw", "--id", "disk", "--store", "fast", "--store", "fast")
    assert (response.code, "store fast is named twice" in response.err) == (2, True)
    assert not list(places.glob("*/*"))


@pytest.mark.parametrize("command", [["ls"], ["stores"], ["gc"], ["stat", "file:///nowhere/x"], ["config", "show"]])
def test_a_mere_look_makes_no_directory(storelib, places, command):
    storelib(*command)
    assert [path.name for path in places.iterdir()] == ["storelib.ini"]
