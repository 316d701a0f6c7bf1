# SPDX-License-Identifier: Apache-2.0
"""What names of images, which are other people's text, can do to a terminal: nothing."""

from __future__ import annotations

import gc
import io
import logging
import sys
import weakref

import pytest

from storelib.cli.main import _Visible
from storelib.cli.output import Output, visible, warn

HOSTILE = "\x1b[2Jcle\u202egpj.\u2066ar\x9b31m\x07\r\u2028\x7f"


class Terminal(io.StringIO):
    """Where people read."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("text", ["plain", "größer", "名前", "tab\tbed", "emoji 🐧"])
def test_what_is_harmless_stays(text):
    assert visible(text) == text


def test_what_a_terminal_would_obey_is_written_as_escapes():
    assert visible(HOSTILE) == r"\x1b[2Jcle\u202egpj.\u2066ar\x9b31m\x07\r\u2028\x7f"


@pytest.mark.parametrize("write", ["one", "many"])
def test_a_terminal_is_shown_no_commands(monkeypatch, write):
    monkeypatch.setattr(sys, "stdout", Terminal())
    output = Output("auto")
    output.one({"name": HOSTILE}) if write == "one" else output.many(("name",), [{"name": HOSTILE}])
    shown = sys.stdout.getvalue()
    assert "\x1b[2J" not in shown
    assert not {"\u202e", "\u2066", "\x9b", "\x07"} & set(shown)


@pytest.mark.parametrize("between", ["\t", "\n", "\r\n", "\x0b", "\x1c", "\x85", "\u2028"])
def test_what_others_call_their_objects_makes_no_columns_and_records(monkeypatch, between):
    """Of a list that a script takes apart."""
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    name = f"id{between}file:///srv/another"
    Output("plain").many(("id", "tags", "uri"), [{"id": name, "tags": [name], "uri": "file:///srv/id"}])
    (line,) = sys.stdout.getvalue().splitlines()
    assert line.split("\t") == ["id file:///srv/another", "id file:///srv/another", "file:///srv/id"]


def test_messages_and_the_log_are_shown_no_commands(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    warn(f"no image {HOSTILE}")
    assert r"\x1b[2Jcle\u202egpj" in sys.stderr.getvalue()
    record = logging.LogRecord("storelib", logging.ERROR, "", 0, "image %s\nsecond line", (HOSTILE,), None)
    assert _Visible("%(message)s").format(record).endswith("\nsecond line")
    assert "\x1b" not in _Visible("%(message)s").format(record)


class TestTable:
    @pytest.fixture(autouse=True)
    def _wide(self, monkeypatch):
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setenv("TERM", "dumb")

    @staticmethod
    def terminal(monkeypatch):
        monkeypatch.setattr(sys, "stdout", Terminal())
        return sys.stdout

    def test_rows_are_shown_as_they_come(self, monkeypatch):
        terminal = self.terminal(monkeypatch)
        monkeypatch.setattr("storelib.cli.output.ROWS", 3)
        seen = []

        def records():
            for number in range(8):
                seen.append(terminal.getvalue().count("row-"))
                yield {"name": f"row-{number}", "size": number}

        Output("auto").many(("name", "size"), records())
        assert seen == [0, 0, 0, 3, 3, 3, 6, 6]
        shown = terminal.getvalue()
        assert shown.count("row-") == 8
        assert shown.count("name") == 1

    def test_slow_rows_are_not_waited_for(self, monkeypatch):
        terminal = self.terminal(monkeypatch)
        monkeypatch.setattr("storelib.cli.output.SOON", 0.0)
        Output("auto").many(("name",), iter([{"name": "one"}, {"name": "two"}]))
        assert terminal.getvalue().split() == ["name", "─" * 6, "one", "two"]

    def test_rows_stand_below_each_other(self, monkeypatch):
        terminal = self.terminal(monkeypatch)
        monkeypatch.setattr("storelib.cli.output.ROWS", 2)
        names = ["a", "a longer name", "b", "c", "d"]
        rows = [{"store": "fast", "name": name, "size": "12"} for name in names]
        Output("auto").many(("store", "name", "size"), rows)
        rows = [line for line in terminal.getvalue().split("\n") if "12" in line]
        assert len({row.index("12") for row in rows}) == 1
        assert len(rows) == 5

    def test_memory_does_not_grow_with_the_list(self, monkeypatch):
        self.terminal(monkeypatch)
        made = []

        class Row(dict):
            pass

        def records():
            for number in range(2000):
                row = Row(name=str(number))
                made.append(weakref.ref(row))
                yield row

        Output("auto").many(("name",), records())
        gc.collect()
        assert sum(reference() is not None for reference in made) <= 1

    @pytest.mark.parametrize("width", [1, 10, 39, 40, 41, 60, 80])
    def test_a_narrow_terminal_is_shown_all_of_each_row(self, monkeypatch, width):
        monkeypatch.setenv("COLUMNS", str(width))
        # Of a dumb terminal rich takes the width for 80.
        monkeypatch.setenv("TERM", "xterm")
        terminal = self.terminal(monkeypatch)
        uri = "".join(map(chr, range(0x3A9, 0x3E0)))
        row = {"store": "a", "size": 1000, "modified": "2026-11-29T19:54:54+00:00", "id": "x" * 31, "uri": uri}
        Output("auto").many(tuple(row), [row])
        shown = terminal.getvalue()
        assert [letter for letter in uri if letter not in shown] == []
        assert shown.count("x") == 31

    def test_an_empty_list_has_its_heading(self, monkeypatch):
        terminal = self.terminal(monkeypatch)
        Output("auto").many(("name", "size"), [])
        assert terminal.getvalue().split()[:2] == ["name", "size"]


def test_counts_are_shown_on_a_terminal_now_and_then_elsewhere_and_never_with_json(monkeypatch):
    monkeypatch.setattr("storelib.cli.output.INTERVAL", 0)
    for stderr, form, expected in ((Terminal(), "auto", "3/7"), (io.StringIO(), "auto", "images: 3 of 7\n")):
        monkeypatch.setattr(sys, "stderr", stderr)
        with Output(form).counting("images") as counting:
            counting(3, 7)
        assert expected in stderr.getvalue()
    with Output("json").counting("images") as counting:
        assert counting is None
