# SPDX-License-Identifier: Apache-2.0
"""Results on stdout as tables, tab-separated lines or JSON, and progress on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
Progress = Callable[[int, "int | None"], None]
Counting = Callable[[int, int], None]
#: How many were found, and of how many bytes.
Finding = Callable[[int, int], None]

#: Where there is no terminal, seconds between two lines of progress.
INTERVAL = 10.0
#: Rows of a table, and seconds, after which those that have come are shown.
ROWS = 200
SOON = 0.5


class Output:
    """``auto`` is for people on a terminal and plain elsewhere."""

    def __init__(self, form: str) -> None:
        self.json = form == "json"
        self.fancy = form == "auto" and sys.stdout.isatty()

    def one(self, record: Record) -> None:
        """One result: a JSON document, or lines of ``name: value``."""
        if self.json:
            print_line(json.dumps(record, default=str))
            return
        width = max(map(len, record), default=0) + 2
        for name, value in record.items():
            print_line(f"{name + ':':{width}}{_plain(value)}")

    def many(self, columns: tuple[str, ...], records: Iterable[Record], *, at_once: bool = False) -> None:
        """A list: a JSON document in each line, a table, or tab-separated ``columns`` without a heading.

        With ``at_once`` a line that goes into a pipe does not wait for others.
        """
        if self.fancy:
            _table(columns, records)
            return
        for record in records:
            self._line(columns, record)
            if at_once:
                sys.stdout.flush()

    def watch(
        self, columns: tuple[str, ...], looks: Iterable[Sequence[Record]], *, key: tuple[str, ...], told: str
    ) -> None:
        """A list that changes: a live table on a terminal, elsewhere a line for each record whose ``told`` is new.

        ``key`` are the columns that tell one record from others. A terminal too narrow for the headings has lines, too.
        """
        if self.fancy and _terminal_width() >= _least_width(columns):
            _live(columns, looks)
            return
        known: dict[tuple[Any, ...], Any] = {}
        for records in looks:
            changed = [record for record in records if known.get(_key(record, key)) != record[told]]
            known.update({_key(record, key): record[told] for record in changed})
            for record in changed:
                self._line(columns, record)
            sys.stdout.flush()

    def _line(self, columns: tuple[str, ...], record: Record) -> None:
        if self.json:
            print_line(json.dumps(record, default=str))
        else:
            print_line("\t".join(_plain(record.get(column)) for column in columns))

    def say(self, sentence: str) -> None:
        """Something only people want to read."""
        if not self.json:
            print_line(sentence)

    @contextlib.contextmanager
    def progress(self, what: str) -> Iterator[Progress | None]:
        """A function to give to a transfer: a bar on a terminal, else a line now and then, none with json."""
        if self.json:
            yield None
        elif sys.stderr.isatty():
            with _bar(what) as progress:
                yield progress
        else:
            yield _Lines(what)

    @contextlib.contextmanager
    def counting(self, what: str) -> Iterator[Counting | None]:
        """A function that is told how many of how many are done: shown as ``progress`` shows bytes."""
        if self.json:
            yield None
        elif sys.stderr.isatty():
            with _count_bar(what) as counting:
                yield counting
        else:
            yield _CountLines(what)

    @contextlib.contextmanager
    def finding(self, what: str) -> Iterator[Finding | None]:
        """A function that is told how much was found: shown on a terminal where no rows are shown, until the end."""
        if self.json or self.fancy or not sys.stderr.isatty():
            yield None
        else:
            with _found_so_far(what) as finding:
                yield finding


def print_line(text: str) -> None:
    """To stdout, whatever its encoding can show; on a terminal nothing that would move, colour or reorder it."""
    encoding = sys.stdout.encoding or "utf-8"
    if sys.stdout.isatty():
        text = visible(text)
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def warn(sentence: str) -> None:
    """One line on stderr, under the command's name; none where that takes none, as a file on a full disk."""
    with contextlib.suppress(OSError):
        print(f"storelib: {visible(' '.join(sentence.split()))}", file=sys.stderr)  # noqa: T201


def visible(text: str) -> str:
    """``text`` with what a terminal would obey, or not show, written as escapes.

    Names of images are other people's: control characters move the cursor or more, the bidirectional ones (UAX #9) let
    a line read other than it is. Tabs stay, they part columns.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(each if each == "\t" or not _is_hidden(each) else _escaped(each) for each in text)


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def size_text(size: int | None) -> str:
    """Bytes for people: ``1.5 GiB``."""
    if size is None:
        return "?"
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def percentage(done: int, whole: int) -> str:
    """A part of a whole for people: ``43 %``; 100 only where it is all of it."""
    return f"{100 * min(done, whole) // whole} %"


def _key(record: Record, key: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(record[name] for name in key)


def _terminal_width() -> int:
    from rich.console import Console

    return Console().width


def _least_width(columns: tuple[str, ...]) -> int:
    """Characters that a table of these columns has at least: in less, columns would be left out."""
    return sum(map(len, columns)) + 3 * len(columns) + 1


def _live(columns: tuple[str, ...], looks: Iterable[Sequence[Record]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.live import Live
    from rich.table import Table

    with Live(auto_refresh=False, vertical_overflow="ellipsis") as live:
        for records in looks:
            table = Table(box=SIMPLE_HEAD)
            for name in columns:
                # What is cut off of names and ids may be all in which they differ.
                table.add_column(name, overflow="fold", min_width=len(name))
            for record in records:
                table.add_row(*(_markup_free(record.get(column)) for column in columns))
            live.update(table, refresh=True)


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        value = ", ".join(map(str, value))
    # Ids have no line breaks and tabs, but reasons, descriptions and what others call their objects might: what follows
    # would be taken for other columns and records.
    text = json.dumps(value) if isinstance(value, Mapping) else str(value)
    return " ".join(text.replace("\t", " ").splitlines())


def _table(columns: tuple[str, ...], records: Iterable[Record]) -> None:
    """A table that is shown as its rows come: people and long lists do not wait for the end."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    widths = [len(name) for name in columns]
    # Lines that the terminal breaks can still be read.
    console.width = max(console.width, _least_width(columns))
    for number, rows in enumerate(_batches(records)):
        table = Table(box=SIMPLE_HEAD, show_header=not number)
        for name, width in zip(columns, widths, strict=True):
            table.add_column(name, overflow="fold", min_width=width)
        for record in rows:
            cells = [_markup_free(record.get(column)) for column in columns]
            table.add_row(*cells)
            # Later rows stand below those before them.
            widths = [max(width, cell.cell_len) for width, cell in zip(widths, cells, strict=True)]
        if sum(widths) > console.width:
            widths = [0] * len(columns)
        with console.capture() as captured:
            # The table may still come out too wide by a character, of a URI for one.
            console.print(table, crop=False)
        # One blank line before the whole, and one behind it.
        lines = [line for line in captured.get().split("\n") if line.strip()]
        sys.stdout.write("\n".join(["", *lines, ""] if not number else [*lines, ""]))
        sys.stdout.flush()
    sys.stdout.write("\n")


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Rows to be shown together; at least one batch, which may be empty."""
    rows: list[Record] = []
    shown = False
    begun = time.monotonic()
    for record in records:
        rows.append(record)
        if len(rows) == ROWS or time.monotonic() - begun > SOON:
            yield rows
            rows, shown, begun = [], True, time.monotonic()
    if rows or not shown:
        yield rows


def _markup_free(value: Any) -> Any:
    from rich.text import Text

    return Text(visible(_plain(value)))


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Progress]:
    from rich import progress
    from rich.console import Console
    from rich.markup import escape

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    what = visible(what)
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(what), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def _count_bar(what: str) -> Iterator[Counting]:
    from rich import progress
    from rich.console import Console
    from rich.markup import escape

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(what), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def _found_so_far(what: str) -> Iterator[Finding]:
    from rich import progress
    from rich.console import Console

    columns = (progress.SpinnerColumn(), progress.TextColumn("{task.description}"), progress.TimeElapsedColumn())
    # What is printed meanwhile goes where it belongs.
    with progress.Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda count, size: bar.update(task, description=f"{what}: {count}, {size_text(size)}")


class _CountLines:
    """Counts without a terminal, now and then."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.told = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.told >= INTERVAL:
            self.told = now
            warn(f"{self.what}: {done} of {total}")


class _Lines:
    """Progress without a terminal; short transfers say nothing."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.begun = self.told = time.monotonic()

    def __call__(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now - self.told < INTERVAL:
            return
        self.told = now
        share = f" of {size_text(total)} ({100 * done // total} %)" if total else ""
        rate = size_text(int(done / (now - self.begun)))
        warn(f"{self.what}: {size_text(done)}{share}, {rate}/s")
