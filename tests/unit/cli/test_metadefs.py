# SPDX-License-Identifier: Apache-2.0
"""storelib metadefs: definitions come from files, go back to files and are removed again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from empty_database import make_empty_database

ONE = {"namespace": "One", "visibility": "public", "protected": True, "tags": [{"name": "first"}, {"name": "second"}]}


@pytest.fixture(autouse=True)
def database(places):
    make_empty_database(places / "images.sqlite")
    with (places / "storelib.ini").open("a") as file:
        file.write(f"[database]\nconnection = sqlite:///{places}/images.sqlite\nsqlite_synchronous = false\n")


@pytest.fixture
def files(tmp_path):
    """A directory with one file in it, and a function that writes more."""
    directory = tmp_path / "definitions"
    directory.mkdir()

    def write(name, body):
        (directory / name).write_text(body if isinstance(body, str) else json.dumps(body))
        return str(directory)

    write("one.json", ONE)
    return write


def run(storelib, *arguments):
    response = storelib("metadefs", *arguments, "--format", "json")
    assert response.code == 0, response.err
    return [json.loads(line) for line in response.out.splitlines()]


def test_our_own_definitions_are_loaded(storelib, tmp_path):
    made = run(storelib, "load")
    assert {each["outcome"] for each in made} == {"made"}
    assert "OS::Compute::Watchdog" in {each["namespace"] for each in made}
    assert {each["outcome"] for each in run(storelib, "load")} == {"kept"}


def test_what_is_exported_is_what_was_loaded(storelib, tmp_path):
    from storelib.api.definition_files import OURS

    run(storelib, "load")
    written = run(storelib, "export", str(tmp_path / "there"))
    exported = {each["namespace"]: json.loads(Path(each["file"]).read_text()) for each in written}
    ours = [json.loads(file.read_text()) for file in OURS.glob("*.json")]
    assert exported == {each["namespace"]: each for each in ours}
    run(storelib, "unload", "--all")
    assert {each["outcome"] for each in run(storelib, "load", str(tmp_path / "there"))} == {"made"}


def test_namespaces_that_are_there_are_kept_or_replaced(storelib, files, tmp_path):
    directory = files("two.json", {"namespace": "Two"})
    run(storelib, "load", directory)
    files("one.json", ONE | {"tags": [{"name": "third"}], "display_name": "New"})
    assert [each["outcome"] for each in run(storelib, "load", directory)] == ["kept", "kept"]
    assert [each["outcome"] for each in run(storelib, "load", directory, "--replace")] == ["replaced", "replaced"]
    run(storelib, "export", str(tmp_path / "out"), "One")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["One.json"]
    document = json.loads((tmp_path / "out" / "One.json").read_text())
    assert document == ONE | {"tags": [{"name": "third"}], "display_name": "New"}


def test_namespaces_are_removed_protected_ones_too(storelib, files):
    run(storelib, "load", files("two.json", {"namespace": "Two"}))
    assert run(storelib, "unload", "One") == [{"namespace": "One", "outcome": "removed"}]
    response = storelib("metadefs", "unload", "One")
    assert (response.code, "'One'" in response.err) == (3, True)
    assert [each["namespace"] for each in run(storelib, "unload", "--all")] == ["Two"]


@pytest.mark.parametrize(
    "body",
    ["{", "[]", '{"namespace": ""}', '{"namespace": "x", "visibility": "shared"}', '{"namespace": 1e400}', "\ud800"],
)
def test_wrong_file_is_named_and_nothing_is_loaded(storelib, files, body, tmp_path):
    directory = files("wrong.json", {})
    (tmp_path / "definitions" / "wrong.json").write_bytes(body.encode("utf-8", "surrogatepass"))
    response = storelib("metadefs", "load", directory)
    assert response.code not in (0, 70)
    assert "wrong.json" in response.err
    assert run(storelib, "unload", "--all") == []


@pytest.mark.parametrize("path", ["nothing", "."])
def test_missing_files_are_named(storelib, path, tmp_path):
    (tmp_path / "empty").mkdir()
    place = str(tmp_path / "empty" / path)
    response = storelib("metadefs", "load", place)
    assert response.code not in (0, 70)
    assert "empty" in response.err


@pytest.mark.parametrize("arguments", [["unload"], ["unload", "One", "--all"], ["export"]])
def test_usage(storelib, arguments):
    assert storelib("metadefs", *arguments).code == 2


def test_names_that_no_file_can_have_are_exported(storelib, files, tmp_path):
    names = ["..", "a b", "ä", "A", "a-b"]
    for number, name in enumerate(names):
        directory = files(f"{number}.json", {"namespace": name})
    run(storelib, "load", directory)
    written = run(storelib, "export", str(tmp_path / "out"))
    assert len({each["file"] for each in written}) == len(names) + 1
    assert all(json.loads(Path(each["file"]).read_text())["namespace"] == each["namespace"] for each in written)


@pytest.mark.parametrize("words", [["export", "there"], ["unload", "--all"]])
def test_a_database_that_is_not_there_is_neither_read_nor_made(storelib, places, words):
    (places / "images.sqlite").unlink()
    response = storelib("metadefs", *words)
    assert (response.code, response.out) == (2, b"")
    assert "does not exist; run: storelib db sync" in response.err
    assert not (places / "images.sqlite").exists()


def test_load_makes_the_database_as_a_server_does(storelib, places):
    (places / "images.sqlite").unlink()
    assert {each["outcome"] for each in run(storelib, "load")} == {"made"}
