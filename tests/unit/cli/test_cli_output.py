# SPDX-License-Identifier: Apache-2.0
"""What names of images, which are other people's text, can do to a terminal: nothing."""

from __future__ import annotations

import io
import logging
import sys

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


def test_messages_and_the_log_are_shown_no_commands(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    warn(f"no image {HOSTILE}")
    assert r"\x1b[2Jcle\u202egpj" in sys.stderr.getvalue()
    record = logging.LogRecord("storelib", logging.ERROR, "", 0, "image %s\nsecond line", (HOSTILE,), None)
    assert _Visible("%(message)s").format(record).endswith("\nsecond line")
    assert "\x1b" not in _Visible("%(message)s").format(record)
