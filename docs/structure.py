# SPDX-License-Identifier: Apache-2.0
"""Draws docs/structure.svg, the house that storelib is: a box for each part, a line for each import.

``python docs/structure.py`` writes it, ``python docs/structure.py --check`` fails where it is not as the code is now.
Only the source is read; nothing of storelib is imported.
"""

from __future__ import annotations

import ast
import html
import pathlib
import sys
from collections import defaultdict

ROOT = pathlib.Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "structure.svg"

#: What stands beside the house.
OUTSIDE = {"__init__", "__main__", "_version"}

BOX, GAP, HEIGHT, FLOOR = 112, 14, 34, 70


def floors() -> list[list[str]]:
    """From the roof down, as the contract of import-linter in pyproject.toml has them; its list reads like Python's."""
    contract = (ROOT / "pyproject.toml").read_text().partition('name = "imports point down"')[2]
    layers = ast.literal_eval(contract.partition("layers = ")[2].partition("\n]")[0] + "\n]")
    return [[part.removeprefix("storelib.") for part in layer.split(" | ")] for layer in layers]


def modules() -> dict[str, pathlib.Path]:
    """Every module of storelib, by its dotted name."""
    found = {}
    for path in sorted((ROOT / "storelib").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: pathlib.Path) -> set[str]:
    """The names of storelib's modules, or of things in them, that a module imports, for types and lazily, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "storelib"}


def part_of(name: str) -> str:
    """The box that a module belongs to: its part, or its driver."""
    parts = name.split(".")[1:] or ["__init__"]
    return ".".join(parts[:2]) if parts[0] == "drivers" and len(parts) > 1 else parts[0]


def edges() -> tuple[set[str], set[tuple[str, str]]]:
    """All boxes, and who imports whom."""
    boxes, lines = set(), set()
    for name, path in modules().items():
        here = part_of(name)
        boxes.add(here)
        lines |= {(here, part_of(target)) for target in imports(path)}
    wanted = {(a, b) for a, b in lines if a != b and not {a, b} & {*OUTSIDE, "drivers"}}
    return boxes - OUTSIDE - {"drivers"}, wanted


def draw() -> str:
    """The picture as the text of an SVG."""
    boxes, lines = edges()
    drivers = sorted(box for box in boxes if box.startswith("drivers."))
    rows = [drivers if names == ["drivers"] else names for names in floors()]
    if strangers := boxes - {box for names in rows for box in names}:
        raise SystemExit(f"pyproject.toml knows no layer for {', '.join(sorted(strangers))}: add it to the contract")
    width = max(len(names) for names in rows) * (BOX + GAP) + GAP
    where = {}
    for number, names in enumerate(rows):
        left = (width - len(names) * (BOX + GAP) + GAP) / 2
        for place, name in enumerate(names):
            where[name] = (left + place * (BOX + GAP), GAP + number * FLOOR)
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {len(rows) * FLOOR}" '
        'font-family="sans-serif" font-size="13" text-anchor="middle">',
        "<title>The parts of storelib; every import points down</title>",
        f'<rect width="{width}" height="{len(rows) * FLOOR}" fill="#ffffff"/>',
    ]
    spread: dict[str, int] = defaultdict(int)
    for upper, lower in sorted(lines, key=lambda line: (where[line[0]][1], line)):
        (x1, y1), (x2, y2) = where[upper], where[lower]
        if y1 >= y2:
            raise SystemExit(f"{upper} imports {lower}, which is no floor below it")
        spread[upper] += 1
        start = x1 + 10 + spread[upper] * 9 % (BOX - 20)
        end = x2 + 10 + spread[upper] * 17 % (BOX - 20)
        bend = (y2 - y1) / 2
        svg.append(
            f'<path d="M{start:.0f} {y1 + HEIGHT:.0f}C{start:.0f} {y1 + HEIGHT + bend:.0f} {end:.0f} {y2 - bend:.0f} '
            f'{end:.0f} {y2:.0f}" fill="none" stroke="#6b7a90" stroke-opacity="0.45"/>'
        )
    for name, (x, y) in where.items():
        svg.append(
            f'<rect x="{x:.0f}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="5" fill="#e8eef7" stroke="#33507a"/>'
        )
        svg.append(f'<text x="{x + BOX / 2:.0f}" y="{y + 22}">{html.escape(name.removeprefix("drivers."))}</text>')
    return "\n".join([*svg, "</svg>", ""])


def main(arguments: list[str]) -> int:
    """Write the picture, or compare it."""
    picture = draw()
    if arguments == ["--check"]:
        current = PICTURE.exists() and PICTURE.read_text() == picture
        if not current:
            print("docs/structure.svg is not as the code is: run python docs/structure.py")  # noqa: T201
        return 0 if current else 1
    PICTURE.write_text(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
