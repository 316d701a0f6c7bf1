# SPDX-License-Identifier: Apache-2.0
"""storelib bench."""

from __future__ import annotations

import os

import pytest

from storelib.testing import benchmark


def test_a_store_is_measured_and_left_as_it_was(storelib, places):
    response = storelib("bench", "--format", "json", "--size", "64K", "--size", "2M", "--at-once", "1", "--rounds", "1")
    assert response.code == 0
    limits, rows = response.documents[:2], response.documents[2:]
    assert [limit["operation"] for limit in limits] == ["md5 on one core", "sha512 on one core"]
    adds = [row for row in rows if row["operation"] == "add"]
    assert [(row["size"], row["known_size"], row["digests"], row["sparse"]) for row in adds] == [
        (65536, True, True, False),
        (2097152, True, True, False),
        (2097152, False, True, False),
        (2097152, True, False, False),
        (2097152, True, True, True),
    ]
    assert all(row["rate"] > 0 and row["images"] > 0 for row in rows)
    assert os.listdir(places / "fast") == []


def test_plain_rows_are_for_people(storelib):
    response = storelib("bench", "--store", "archive", "--size", "1M", "--at-once", "2", "--rounds", "1")
    rows = [line.split("\t") for line in response.out.decode().splitlines()]
    assert rows[2][:4] == ["add", "1.0 MiB", "2", ""]
    assert rows[2][4] == rows[2][5].split("-")[0]


def test_each_row_is_written_when_it_is_there_also_into_a_pipe(storelib, places, monkeypatch, capfdbinary):
    written: list[int] = []
    images = benchmark._Images
    sources = images.sources

    def begins(self, case):
        written.append(len(capfdbinary.readouterr().out.splitlines()))
        return sources(self, case)

    monkeypatch.setattr(images, "sources", begins)
    storelib("bench", "--size", "64K", "--size", "1M", "--at-once", "1", "--rounds", "1")
    # How fast this machine hashes; then what each case found, before the first round of the next.
    assert written == [2, 0, 5, 0, 5, 0, 5, 0, 5, 0]


def test_a_store_that_nobody_adds_to_is_refused_at_once(storelib, places):
    (places / "storelib.ini").write_text("[storelib]\nstores = web:http\n")
    response = storelib("bench", "--store", "web")
    assert (response.code, response.out) == (8, b"")
    assert "store web does not support add, delete" in response.err


def test_what_would_be_written_is_bounded_before_anything_is(storelib, places):
    response = storelib("bench", "--size", "1G", "--limit", "1G")
    assert response.code == 2
    assert "which is more than --limit 1.0 GiB" in response.err
    assert not os.path.exists(places / "fast") or os.listdir(places / "fast") == []


def test_what_there_was_no_time_for_is_told(storelib):
    response = storelib("bench", "--size", "4K", "--size", "4M", "--rounds", "100", "--seconds", "1")
    assert response.code == 0
    assert "kinds of work were left out after 1 seconds; see --seconds" in response.err


@pytest.mark.parametrize("size", ["0", "-1", "4X", "", "1e3", "nan"])
def test_a_size_that_is_none_is_refused(storelib, size):
    response = storelib("bench", "--size", size)
    assert response.code == 2
    assert f"{size!r} is not a size in bytes" in response.err
