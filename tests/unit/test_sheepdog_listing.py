# SPDX-License-Identifier: Apache-2.0
"""What ``dog vdi list -r`` prints, understood; what an exit code and a complaint mean."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from storelib.driver import Digests
from storelib.drivers.sheepdog.cluster import Vdi, parse
from storelib.drivers.sheepdog.errors import CommandCut, CommandFailed, CommandHung, storelib_error
from storelib.drivers.sheepdog.publication import Claim
from storelib.exceptions import (
    Duplicate,
    ImageChanged,
    NotFound,
    RemoteServiceUnavailable,
    StorageFull,
    StoreError,
    TransferTimeout,
)

MiB = 1024 * 1024
LINES = {
    "= image 1 5000 4194304 0 1795203986 47e90b 3  22": Vdi(
        "image", False, 5000, 4 * MiB, 0, 1795203986, "47e90b", "", 22
    ),
    "c image 1 5000 0 4194304 1795203986 47e90b 3  22": Vdi(
        "image", False, 5000, 0, 4 * MiB, 1795203986, "47e90b", "", 22
    ),
    "s image 1 5000 0 0 1795203986 47E90B 3 nightly 22": Vdi(
        "image", True, 5000, 0, 0, 1795203986, "47E90B", "nightly", 22
    ),
    "= two\\ words 1 0 0 0 1 a 4:2  22": Vdi("two words", False, 0, 0, 0, 1, "a", "", 22),
    "= \\ \\ a\\  1 0 0 0 1 a 1  22": Vdi("  a ", False, 0, 0, 0, 1, "a", "", 22),
    "= back\\\\slash 1 0 0 0 1 a 1  22": Vdi("back\\slash", False, 0, 0, 0, 1, "a", "", 22),
    "= back\\\\\\ slash 1 0 0 0 1 a 1  22": Vdi("back\\ slash", False, 0, 0, 0, 1, "a", "", 22),
    "= new\\\nline 1 0 0 0 1 a 1  22": Vdi("new\nline", False, 0, 0, 0, 1, "a", "", 22),
    "s image 1 0 0 0 1 a 1 a tag with spaces 22": Vdi("image", True, 0, 0, 0, 1, "a", "a tag with spaces", 22),
    "= 1 1 1 1 1 1 1 1  26": Vdi("1", False, 1, 1, 1, 1, "1", "", 26),
    "= = 1 1 1 1 1 1 1  22": Vdi("=", False, 1, 1, 1, 1, "1", "", 22),
    "= a 1 4398046511104 0 0 1 a 1  20": Vdi("a", False, 4 * MiB * MiB, 0, 0, 1, "a", "", 20),
    # Before version 0.9 there was no bshift.
    "= image 1 5000 0 0 1 a 3 ": Vdi("image", False, 5000, 0, 0, 1, "a", "", 22),
    "s image 1 5000 0 0 1 a 3 nightly": Vdi("image", True, 5000, 0, 0, 1, "a", "nightly", 22),
}
GARBLED = [
    "image",
    "= image",
    "x image 1 5000 0 0 1 a 3  22",
    "= two words 1 5000 0 0 1 a 3  22",
    "= image 1 large 0 0 1 a 3  22",
    f"= image 1 {'9' * 5000} 0 0 1 a 3  22",
    "= image 1 -1 0 0 1 a 3  22",
    "  image 1 5.0 MB 0.0 MB 0.0 MB 2026-11-20 19:46 47e90b 3  22",
    "  Name        Id    Size    Used  Shared    Creation time   VDI id  Copies  Tag   Block Size Shift",
]


def parse_all(output):
    """What a listing says, which is the same in whatever pieces it comes."""
    whole = list(parse([output]))
    for size in (1, 7):
        assert list(parse(output[start : start + size] for start in range(0, len(output), size))) == whole
    return whole


def test_entries_are_known_before_the_listing_ends():
    lines = [f"{line}\n".encode() for line in LINES]

    def pieces():
        yield lines[0]
        yield lines[1][:9]
        raise EOFError

    found = parse(pieces())
    assert next(found) == next(iter(LINES.values()))
    with pytest.raises(EOFError):
        next(found)


def test_what_never_becomes_an_entry_is_not_kept_for_ever():
    read = []

    def pieces():
        while True:
            read.append(1)
            yield b"x" * 1024

    with pytest.raises(StoreError, match="cannot be understood"):
        list(parse(pieces()))
    assert len(read) < 100


@pytest.mark.parametrize("line", LINES)
def test_line_is_understood(line):
    assert list(parse_all(f"{line}\n".encode())) == [LINES[line]]


def test_lines_are_told_apart():
    assert list(parse_all("".join(f"{line}\n" for line in LINES).encode())) == list(LINES.values())


def test_nothing_is_listed_in_an_empty_listing():
    assert not list(parse_all(b""))


@pytest.mark.parametrize("line", GARBLED)
def test_line_that_is_not_understood_is_an_error(line):
    good = next(iter(LINES))
    with pytest.raises(StoreError, match="cannot be understood"):
        list(parse_all(f"{good}\n{line}\n".encode()))


def test_name_that_is_not_utf_8_is_listed_all_the_same():
    [vdi] = parse_all(b"= \xff\xfe 1 0 0 0 1 a 1  22\n")
    assert vdi.name.encode(errors="surrogateescape") == b"\xff\xfe"


NAMES = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1)
#: Dog takes no number for a tag.
TAGS = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=40).filter(
    lambda tag: not tag.strip().replace(" ", "").isdigit()
)


@given(NAMES, TAGS, st.integers(0, 2**42), st.integers(20, 31))
@example(" \\ ", " ", 0, 22)
@example("\\", "", 0, 22)
def test_every_name_and_tag_comes_back(name, tag, size, shift):
    shown = "".join(f"\\{letter}" if letter in " \t\n\v\f\r\\" else letter for letter in name)
    line = f"s {shown} 7 {size} 0 {size} 1795203986 abc123 3 {tag} {shift}\n"
    assert (
        list(parse_all((line * 2).encode())) == [Vdi(name, True, size, 0, size, 1795203986, "abc123", tag, shift)] * 2
    )


# -- Errors ---------------------------------------------------------------------------------------------------

REFUSED = "failed to connect to 127.0.0.1:7000: Connection refused\n"
MEANINGS = [
    (1, "Failed to open VDI image (snapshot id: 0 snapshot tag: ): No VDI found", NotFound),
    (1, "Failed to open VDI image (snapshot id: 0 snapshot tag: x): Failed to find requested tag", NotFound),
    (1, "Failed to create VDI image: VDI exists already", Duplicate),
    (1, "Failed to create VDI No VDI found: VDI exists already", Duplicate),
    (3, "The attribute 'storelib-token' already exists", Duplicate),
    (5, "Attribute 'storelib-token' not found", NotFound),
    (5, "VDI not found", NotFound),
    (1, "fail 8011111100000000, Server has no space for new objects\nFailed to write VDI", StorageFull),
    (1, "Failed to create VDI image: Maximum number of VDIs reached", StorageFull),
    (64, "VDI size is larger than 4398046511104 bytes, please use '-y'", StorageFull),
    (64, "New VDI size is too large", StorageFull),
    (1, "Read offset is beyond the end of the VDI", ImageChanged),
    (64, "Shrinking VDIs is not implemented", StoreError),
    (64, "Invalid port number '0'", StoreError),
    (2, REFUSED, RemoteServiceUnavailable),
    (1, REFUSED + "Failed to open VDI image (snapshot id: 0 snapshot tag: ): I/O error", RemoteServiceUnavailable),
    (5, REFUSED + "Failed to find attribute oid: I/O error", RemoteServiceUnavailable),
    (1, "Failed to write VDI", RemoteServiceUnavailable),
    (1, "", RemoteServiceUnavailable),
    (-9, "", RemoteServiceUnavailable),
]


@pytest.mark.parametrize(("code", "complaint", "meaning"), MEANINGS)
def test_what_a_failure_means(code, complaint, meaning):
    error = storelib_error(CommandFailed(("read", "image"), code, complaint), "the subject")
    assert type(error) is meaning
    assert error.transient == (meaning is RemoteServiceUnavailable)


def test_message_has_the_first_line_and_the_exit_code():
    error = storelib_error(CommandFailed(("read", "image"), 1, "first line\nsecond line\n"), "the subject")
    assert str(error) == "the subject: dog vdi read image: first line (exit code 1)"


def test_temporary_vdi_that_vanished_is_no_missing_image():
    arguments = ("write", "storelib/0123456789abcdef/image", "0", "1")
    error = storelib_error(CommandFailed(arguments, 1, "Failed to open VDI: No VDI found"), "the subject")
    assert type(error) is StoreError


def test_command_that_hangs_is_a_timeout_and_names_the_option():
    error = storelib_error(CommandHung(("list",), "nothing happened for 1 s"), "the subject")
    assert type(error) is TransferTimeout
    assert "sheepdog_store_timeout" in str(error)


def test_command_that_moves_fewer_bytes_may_do_better_next_time():
    assert type(storelib_error(CommandCut(("write",), "cut"), "the subject")) is RemoteServiceUnavailable


def test_program_that_cannot_be_started_is_not_the_end():
    assert type(storelib_error(PermissionError(13, "Permission denied"), "s")) is RemoteServiceUnavailable


def test_errors_of_others_pass():
    assert storelib_error(ValueError("not ours"), "the subject") is None


# -- Claims ---------------------------------------------------------------------------------------------------

VDI = Vdi("image", False, 5000, 4 * MiB, 0, 1795203986, "47e90b", "", 22)
MULTIHASH = "ab" * 64


def test_claim_comes_back_from_its_text():
    claim = Claim.of(VDI, "0123456789abcdef", Digests(None, MULTIHASH))
    assert Claim.parse(claim.text) == claim
    assert (claim.algorithm, claim.multihash) == ("sha512", MULTIHASH)
    assert claim.fits(VDI)
    assert not claim.misses_data(VDI)
    assert claim.misses_data(VDI._replace(used=0))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0123456789abcdef",
        "deleting",
        "a b c d e f g h",
        "a 1 b 2 3 4 sha512",
        f"a {9**5000:x} b 2 3 4 - -",
        "a 1 b 2 3 4 - no",
        " 1 b 2 3 4 - -",
    ],
)
def test_text_that_is_no_claim_of_ours_belongs_to_no_vdi(text):
    claim = Claim.parse(text)
    assert claim.text == text
    assert not claim.fits(VDI)
    assert not claim.misses_data(VDI._replace(used=0))


@pytest.mark.parametrize("change", [{"vid": "47e90c"}, {"created": 1795203987}, {"size": 5001}])
def test_claim_to_an_earlier_vdi_is_nobodys(change):
    claim = Claim.of(VDI, "0123456789abcdef")
    assert claim.rivals(VDI, 0, unbound=True)
    assert not claim.fits(VDI._replace(**change))
    assert not claim.rivals(VDI._replace(**change), 0, unbound=True)


def test_claim_from_before_the_name_was_free_is_nobodys():
    claim = Claim.of(VDI, "0123456789abcdef")
    assert claim.rivals(VDI, claim.made, unbound=False)
    assert not claim.rivals(VDI, claim.made + 1, unbound=False)


def test_mark_of_a_deletion_is_nobodys_claim():
    assert not Claim.of(VDI, "deleting").rivals(VDI, 0, unbound=True)


@pytest.mark.parametrize("unbound", [True, False])
def test_claim_of_an_earlier_version_counts_only_where_it_may_be_a_rivals(unbound):
    assert Claim.parse("0123456789abcdef").rivals(VDI, 0, unbound=unbound) == unbound
