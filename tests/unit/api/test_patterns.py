# SPDX-License-Identifier: Apache-2.0
"""Expressions of property protection: they match as Python's do, in time that grows with the name."""

from __future__ import annotations

import re
import time

import pytest
from deployment import Deployment
from hypothesis import given
from hypothesis import strategies as st

from storelib.api.patterns import Pattern, TooSlow
from storelib.exceptions import BadStoreConfiguration

SLOW = [
    r"^(a+)+$",
    r"(a*)*b",
    r"^(a|a)*$",
    r"^(a|aa)+$",
    r"(x+x+)+y",
    r"^(.*a){12}$",
    r".*.*.*.*=",
    r"([a-z]+)*!",
    r"^(\w+\s?)*$",
    r"(?i)(a+)+$",
    r"^(([a-z])+.)+[A-Z]([a-z])+$",
    r"(a?){30}a{30}b",
    "a?" * 40 + "a{40}",
    "(?:a|aa)" * 30 + "b",
]
NAMES = ["a" * 255, "a" * 254 + "!", "x" * 255, "ab" * 127, "a b " * 60, "A" * 255, "", "=", "\n", "aaab\n"]


@pytest.mark.parametrize("text", SLOW)
def test_a_hostile_name_takes_no_time(text):
    pattern = Pattern(text)
    begun = time.process_time()
    for name in NAMES:
        pattern.search(name)
    assert time.process_time() - begun < 10


PARTS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\d", r"\W", "^", "$", r"\b", r"\Z", r"\A", "[a-c0-9]", "x"])
EXPRESSIONS = st.recursive(
    PARTS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "{2}", "{1,3}", "{2,}"])).map(
            lambda pair: f"({pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=8,
)


@given(EXPRESSIONS, st.text("abx1 -\n", max_size=8))
def test_it_matches_as_python_does(text, name):
    # Whatever it is, here it is looked for by the paths.
    expected = re.search(text, name) is not None
    assert Pattern(f"(?:z*z*z*q)?(?:{text})").search(name) == expected
    assert Pattern(text).search(name) == expected


@pytest.mark.parametrize("name", ["AbX", "abx", "ABx1", "", "É", "é"])
@pytest.mark.parametrize("text", [r"(?i)z*z*ab[x-y]", r"(?i)z*z*[^a]b", r"(?is)z*z*a.x", r"(?a)z*z*\w$", r"(?i)z*z*é"])
def test_flags_are_pythons(text, name):
    assert Pattern(text).search(name) == (re.search(text, name) is not None)


@pytest.mark.parametrize("text", [r"(?=(a+)+)b", r"(a+)\1+", r"(?i:a+)+(b*)*"])
def test_what_neither_way_can_do_is_refused_at_the_start(text, tmp_path):
    with pytest.raises(TooSlow):
        Pattern(text)
    (tmp_path / "rules").write_text(f"[{text}]\ncreate = @\nread = @\nupdate = @\ndelete = @\n")
    with pytest.raises(BadStoreConfiguration, match="may take for ever"):
        Deployment(tmp_path, property_protection_file=tmp_path / "rules")


@pytest.mark.parametrize("text", [r"^x_(?!secret).*", r"^(a|b)$", r"^x_.*", r"(?<=x)y+", "[.*]", ".*"])
def test_usual_expressions_are_left_to_python(text):
    assert Pattern(text)._paths is None


def test_names_of_users_meet_slow_rules(tmp_path):
    others = "read = @\nupdate = @\ndelete = @\n"
    (tmp_path / "rules").write_text(f"[^(a+)+$]\ncreate = admin\n{others}[.*]\ncreate = @\n{others}")
    api = Deployment(tmp_path, property_protection_file=tmp_path / "rules")
    try:
        begun = time.process_time()
        assert api.alice.post("/v2/images", {"a" * 254 + "!": "x"}).status_code == 201
        assert api.alice.post("/v2/images", {"a" * 255: "x"}).status_code == 403
        assert api.alice.get("/v2/images").status_code == 200
        assert time.process_time() - begun < 5
    finally:
        api.close()
