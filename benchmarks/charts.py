# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks found as pictures: one for each program's pairs, one for each question of how cost grows."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
# The same picture has the same bytes, and its words stay words.
matplotlib.rcParams.update({"svg.hashsalt": "storelib", "svg.fonttype": "none", "font.size": 9})
from matplotlib import pyplot  # noqa: E402  (after the back end is chosen)

_OURS, _THEIRS = "#1f6fb4", "#b8bec6"
Record = Mapping[str, Any]


def pairs(path: Path, title: str, records: Sequence[Record], caption: str) -> None:
    """Two bars for each comparison, and the ratio of its pairs."""
    figure, axes = pyplot.subplots(figsize=(9, 1.4 + 0.62 * len(records)))
    for row, record in enumerate(records):
        best = max(record["ours"], record["theirs"])
        for offset, key, colour in ((-0.19, "ours", _OURS), (0.19, "theirs", _THEIRS)):
            axes.barh(row + offset, record[key] / best, height=0.34, color=colour)
            axes.text(record[key] / best + 0.01, row + offset, f"{record[key]:.4g} {record['unit']}", va="center")
        ratios = record["ratios"] or [record["ratio"]]
        axes.text(1.24, row, f"{record['ratio']:.2f}  ({min(ratios):.2f}-{max(ratios):.2f})", va="center")
    names = [f"{record['name']}\nagainst {record['peer']}" for record in records]
    axes.set_yticks(range(len(records)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.55)
    axes.set_xticks([])
    axes.text(1.24, -0.75, "ratio")
    _finish(figure, axes, path, title, caption)


def curves(path: Path, title: str, records: Sequence[Record], caption: str) -> None:
    """One line for each series, on logarithmic axes: what grows as it should is flat."""
    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    for series in dict.fromkeys(record["series"] for record in records):
        points = [(record["x"], record["y"]) for record in records if record["series"] == series and "x" in record]
        unit = next(record["unit"] for record in records if record["series"] == series and "unit" in record)
        axes.plot(*zip(*points, strict=True), marker="o", label=f"{series} ({unit})")
    axes.set_xscale("symlog" if any(record.get("x") == 0 for record in records) else "log", base=10)
    axes.set_yscale("log")
    # At least two powers of ten, so that noise does not look like growth.
    values = [record["y"] for record in records if "y" in record]
    axes.set_ylim(min(values) / 3, max(max(values) * 3, min(values) * 100))
    axes.set_xlabel(title)
    axes.grid(visible=True, which="major", color="#e4e7eb")
    axes.legend(frameon=False)
    _finish(figure, axes, path, f"By {title}", caption)


def _finish(figure: Any, axes: Any, path: Path, title: str, caption: str) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title(title, loc="left", fontweight="bold")
    figure.text(0.01, 0.005, "\n".join(textwrap.wrap(caption, 130)), fontsize=6.5, color="#5c6570", va="bottom")
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, metadata={"Date": None, "Creator": "storelib"})
    pyplot.close(figure)
