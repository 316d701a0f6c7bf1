# SPDX-License-Identifier: Apache-2.0
"""stores, check and gc."""

from __future__ import annotations

import gc

import pytest

from storelib.cli.stores import Age
from storelib.exceptions import BadStoreConfiguration, RemoteServiceUnavailable
from storelib.registry import Registry
from storelib.testing.memory import MemoryStore
from storelib.transfer import Part


@pytest.fixture
def memory(places):
    """A configuration of one store in memory besides a file store."""
    (places / "storelib.ini").write_text(
        f"[storelib]\nstores = fast:file, quick:memory\nfilesystem_store_datadir = {places}/fast\n"
        "[quick]\ntransfer_retries = 0\n"
    )


def refuse(error):
    def method(self):
        raise error

    return method


def test_stores_are_listed_with_what_they_can_do(storelib):
    fast, archive = storelib("stores", "--format", "json").documents
    assert (fast["store"], fast["default"], fast["state"]) == ("fast", True, "ready")
    assert (archive["weight"], archive["description"]) == (4, "slow but safe")
    assert "atomic_add" in archive["capabilities"]


def test_plain_stores_has_a_line_for_each(storelib):
    lines = storelib("stores", "--format", "plain").out.decode().splitlines()
    assert lines[1].split("\t") == ["archive", "no", "file, filesystem", "4", "ready", "slow but safe"]


def test_a_disabled_store_is_listed_with_the_reason(storelib, memory, monkeypatch):
    monkeypatch.setattr(MemoryStore, "configure_get", refuse(BadStoreConfiguration("no memory left")))
    fast, quick = storelib("stores", "--format", "json").documents
    assert (fast["state"], quick["state"]) == ("ready", "disabled: no memory left")


def test_a_read_only_store_says_so(storelib, memory, monkeypatch):
    monkeypatch.setattr(MemoryStore, "configure_add", refuse(BadStoreConfiguration("no room")))
    assert storelib("stores", "--format", "json").documents[1]["state"] == "read-only: no room"


def test_check_asks_every_store(storelib):
    response = storelib("check", "--format", "json")
    assert response.code == 0
    assert [(health["store"], health["healthy"]) for health in response.documents] == [
        ("fast", True),
        ("archive", True),
    ]


def test_check_of_a_store_that_does_not_answer_is_code_7(storelib, memory, monkeypatch):
    monkeypatch.setattr(MemoryStore, "probe", refuse(RemoteServiceUnavailable("no answer")))
    response = storelib("check", "--format", "json")
    assert response.code == 7
    assert [health["healthy"] for health in response.documents] == [True, False]
    assert response.documents[1]["detail"] == "no answer"


def test_check_of_a_disabled_store_is_code_2(storelib, memory, monkeypatch):
    monkeypatch.setattr(MemoryStore, "configure_get", refuse(BadStoreConfiguration("no memory left")))
    assert storelib("check").code == 2


@pytest.fixture
def leftover(memory, monkeypatch):
    """The registry the command uses, whose store in memory has an upload that nobody will finish."""
    registry = Registry.from_file("storelib.ini")
    writer = registry["quick"].open_writer("img-1", None, None)
    writer.write(Part(0, 0, memoryview(b"12345")))
    registry["quick"].backend.uploads[writer.token].modified = 0.0
    # As in a crash: neither commit nor abort.
    del writer
    gc.collect()
    monkeypatch.setattr(Registry, "from_file", lambda path: registry)
    return registry["quick"].backend


def test_gc_removes_what_failed_adds_left(storelib, leftover):
    [removed] = storelib("gc", "--format", "json").documents
    assert (removed["store"], removed["id"], removed["size"], removed["removed"]) == ("quick", "img-1", 5, True)
    assert not leftover.uploads


@pytest.mark.parametrize("form", ["json", "plain"])
def test_gc_tells_what_it_removed_before_it_goes_on(storelib, leftover, monkeypatch, form):
    for name in ("img-2", "img-3"):
        writer = Registry.from_file("")["quick"].open_writer(name, None, None)
        writer.write(Part(0, 0, memoryview(b"1")))
        leftover.uploads[writer.token].modified = 0.0
        del writer
    gc.collect()
    flushed: list[int] = []
    monkeypatch.setattr(
        "storelib.cli.output.print_line", lambda text: flushed.append(len(leftover.uploads)), raising=True
    )
    assert storelib("gc", "--format", form).code == 0
    # One is gone when the first line comes, and so on.
    assert flushed == [2, 1, 0]


def test_a_dry_run_of_gc_only_tells(storelib, leftover):
    [found] = storelib("gc", "--dry-run", "--format", "json").documents
    assert (found["id"], found["removed"]) == ("img-1", False)
    assert leftover.uploads


def test_gc_leaves_what_has_another_prefix(storelib, leftover):
    assert storelib("gc", "--prefix", "other", "--format", "json").documents == []
    assert leftover.uploads


def test_gc_leaves_what_is_young(storelib, leftover):
    assert storelib("gc", "--older-than", "5200w", "--format", "json").documents == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("90", 90), ("1.5m", 90), ("12h", 43200), ("1d", 86400), ("2W", 1209600), ("30s", 30)),
        # Before that there was nothing, and no year 1.
        ("999999999w", 100 * 365 * 86400),
    ],
)
def test_ages_have_units(text, seconds):
    assert Age().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "d", "-1d", "1y", "soon"])
def test_what_is_not_an_age_is_code_2(storelib, text):
    assert storelib("gc", "--older-than", text).code == 2


@pytest.mark.parametrize(("command", "method"), [("ls", "images"), ("gc", "garbage")])
def test_a_store_that_is_away_keeps_none_of_the_others(storelib, leftover, monkeypatch, command, method):
    registry = Registry.from_file("")
    registry["fast"].add("a", b"data")
    registry["quick"].add("b", b"data")

    def away(*arguments):
        raise RemoteServiceUnavailable("no answer")

    monkeypatch.setattr(registry["fast"], method, away)
    response = storelib(command, "--format", "json")
    assert [found["store"] for found in response.documents] == ["quick"]
    assert (response.code, response.err.count("no answer")) == (7, 1)
