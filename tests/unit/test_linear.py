# SPDX-License-Identifier: Apache-2.0
"""Text from users, servers and configuration is looked at in time that grows with its length, not with its square.

All regular expressions of the package are found by reading its source, so that new ones are looked at, too.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import pathlib
import re
import subprocess
import sys
import time

import pytest

import storelib
from storelib.config import did_you_mean
from storelib.driver import check_image_id
from storelib.exceptions import BadStoreUri, Invalid
from storelib.location import Location
from storelib.registry import open_store
from storelib.testing.memory import MemoryStore
from storelib.transfer.verifying import asked_for
from storelib.uris import redact, scheme_of

METHODS = {"search", "match", "fullmatch", "sub", "findall", "finditer", "split"}
LENGTH = 60_000
#: Seconds of the processor's time for one text, however busy the machine is. What is linear takes milliseconds, what is
#: quadratic a second or more.
LIMIT = 0.5
#: Seconds after which the whole has hung.
TIMEOUT = 300.0


def expressions():
    """Module, line, pattern and method of every use of a regular expression."""
    root = pathlib.Path(storelib.__file__).parent
    for path in sorted(root.rglob("*.py")):
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS
        ]
        if not calls or path.name == "__main__.py":
            continue
        module = importlib.import_module(".".join(path.relative_to(root.parent).with_suffix("").parts))
        for call in calls:
            found = pattern_of(call, module)
            if found is not None:
                yield f"{module.__name__}:{call.lineno}", found, call.func.attr


def pattern_of(call, module):
    owner = call.func.value
    if not isinstance(owner, ast.Name):
        return None
    if owner.id == "re":
        flags = [keyword.value for keyword in call.keywords if keyword.arg == "flags"] + call.args[2:3]
        value = eval(ast.unparse(flags[0]), {"re": re}) if flags and call.func.attr != "sub" else 0
        return re.compile(call.args[0].value, value) if isinstance(call.args[0], ast.Constant) else None
    known = getattr(module, owner.id, None)
    return known if isinstance(known, re.Pattern) else None


def hostile(pattern):
    """Texts that repeat what the pattern speaks of, and end in what it does not expect."""
    source = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    words = re.findall(r"[A-Za-z0-9]{2,}", source)
    pumps = {*source, *words, *(f"{word}/" for word in words), "a", "0", " ", "\n", "/v1", "a_", "<<"}
    for pump in sorted(pumps):
        for end in ("\n\n", "!"):
            text = (source[:1] + pump * (LENGTH // len(pump)) + end)[: LENGTH + 3]
            yield text if isinstance(pattern.pattern, str) else text.encode("latin-1")


@contextlib.contextmanager
def looking(where, text):
    """Tell where it is, in case it hangs, and end the process if it took long."""
    sys.stdout.write(f"{where} {text[:30]!r}\n")
    sys.stdout.flush()
    begun = time.process_time()
    yield
    if time.process_time() - begun > LIMIT:
        sys.exit("the last line's text took long")


def uses():
    """Where each pattern is used with each method, once; reads the whole package, which takes seconds."""
    return {(pattern, method): where for where, pattern, method in expressions()}


def test_the_expressions_are_found():
    assert len(uses()) > 60


def look_at_expressions():
    for (pattern, method), where in uses().items():
        look = getattr(pattern, method)
        for text in hostile(pattern):
            with looking(where, text):
                found = look(text[:0], text) if method == "sub" else look(text)
                if method == "finditer":
                    list(found)


PUMPS = [
    "?",
    "&",
    "=",
    "?sig",
    "&token=",
    ";key",
    "#",
    "@",
    ":",
    "://",
    "://a:b@",
    "/",
    "%",
    "%3f",
    "a",
    "0",
    " ",
    "\n",
    "é",
]
TEXTS = [
    start + pump * (LENGTH // len(pump)) + end for pump in PUMPS for start in ("", "http://x/") for end in ("", "=@")
]


def look_at_functions():
    store = open_store(MemoryStore)
    functions = {
        redact: (),
        Location: BadStoreUri,
        check_image_id: Invalid,
        asked_for: Invalid,
        store.locate: BadStoreUri,
        scheme_of: BadStoreUri,
        lambda text: did_you_mean(text, ["file", "s3"]): (),
    }
    for function, errors in functions.items():
        for text in TEXTS:
            with looking(function, text), contextlib.suppress(*[errors] if errors else []):
                function(text)


@pytest.mark.parametrize("look", [look_at_expressions, look_at_functions], ids=["expressions", "functions"])
def test_no_text_takes_long(look):
    # Expressions hold the interpreter and cannot be interrupted, hence a process of its own.
    command = [sys.executable, "-c", f"import test_linear; test_linear.{look.__name__}()"]
    here = str(pathlib.Path(__file__).parent)
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired as hung:
        pytest.fail(f"hung at {hung.stdout.splitlines()[-1]}")
    assert done.returncode == 0, (done.stdout.splitlines()[-1:], done.stderr)
