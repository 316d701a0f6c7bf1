# SPDX-License-Identifier: Apache-2.0
"""Every example in README.md and docs/ is run, as a reader would: page by page, from top to bottom.

``console`` blocks go to a shell; each command must succeed and print what is shown (``...`` stands for anything).
``python`` blocks are run, as doctests if they have ``>>>``. A block that starts with ``# NAME.ini`` or ``# NAME.conf``
becomes that file. ``/srv`` is a directory of the test's own; ``debian-12.qcow2`` lies in the working directory.
"""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.rst"))]
RST = re.compile(r"^( *)\.\. code-block:: (\w+)\n((?:\1 +:.*\n)*)\n((?:\1 +.*\n|\n)+)", re.MULTILINE)
MARKDOWN = re.compile(r"^( *)```(\w+)()\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(page):
    """Language and text of each code block of a page."""
    pattern = RST if page.suffix == ".rst" else MARKDOWN
    for match in pattern.finditer(page.read_text()):
        yield match[2], textwrap.dedent(match[4]).strip() + "\n"


def commands(block):
    """Each ``$`` line with its continuation lines, and the output shown for it."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        lines = part.splitlines(keepends=True)
        length = next(i for i, line in enumerate(lines, 1) if not line.endswith("\\\n"))
        yield "".join(lines[:length]), "".join(lines[length:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_do_what_the_page_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "srv").mkdir()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "debian-12.qcow2", "1G"], check=True)
    names: dict[str, object] = {}
    for language, text in blocks(page):
        text = text.replace("/srv/", f"{tmp_path}/srv/")
        file = re.match(r"# ([\w.-]+\.(?:ini|conf))\n", text)
        if file:
            Path(file[1]).write_text(text)
        elif language == "console":
            for command, expected in commands(text):
                run(command, expected, page)
        elif language == "python" and ">>>" in text:
            check(text, names, page)
        elif language == "python":
            exec(compile(text, str(page), "exec"), names)


def run(command, expected, page):
    done = subprocess.run(
        ["bash", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    where = f"{page.name}: $ {command}printed (exit status {done.returncode})\n{done.stdout}"
    assert done.returncode == 0, where
    if expected.strip():
        assert doctest.OutputChecker().check_output(expected, done.stdout, SAME), f"{where}instead of\n{expected}"


def check(text, names, page):
    example = doctest.DocTestParser().get_doctest(text, names, page.name, str(page), 0)
    output: list[str] = []
    failed = doctest.DocTestRunner(optionflags=SAME).run(example, out=output.append, clear_globs=False).failed
    names.update(example.globs)
    assert not failed, "".join(output)
