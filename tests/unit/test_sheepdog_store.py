# SPDX-License-Identifier: Apache-2.0
"""Configuring a Sheepdog store: no command is run."""

import pytest

from storelib.drivers.sheepdog import SheepdogStore
from storelib.exceptions import BadStoreConfiguration, BadStoreUri
from storelib.registry import open_store


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A PATH with only these programs on it, none of which may be run."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(*names):
        for name in names:
            (tmp_path / name).write_text("#!/bin/sh\nkill -9 $PPID\n")
            (tmp_path / name).chmod(0o755)
        return tmp_path

    return make


def open_sheepdog(**options):
    return open_store(SheepdogStore, "sheep", **options)


def test_dog_is_found(programs):
    directory = programs("dog")
    assert open_sheepdog().cluster.dog.path == str(directory / "dog")


def test_collie_serves_where_there_is_no_dog(programs):
    directory = programs("collie")
    assert open_sheepdog().cluster.dog.path == str(directory / "collie")


def test_dog_is_preferred(programs):
    directory = programs("dog", "collie")
    assert open_sheepdog().cluster.dog.path == str(directory / "dog")


@pytest.mark.parametrize("form", ["woof", "{}/woof"])
def test_command_may_be_called_otherwise(programs, form):
    directory = programs("woof", "dog")
    assert open_sheepdog(sheepdog_store_command=form.format(directory)).cluster.dog.path == str(directory / "woof")


@pytest.mark.parametrize("command", [None, "woof", "/nowhere/dog"])
def test_missing_command_is_named_with_its_option(programs, command):
    options = {"sheepdog_store_command": command} if command else {}
    if command:
        programs("dog", "collie")
    with pytest.raises(BadStoreConfiguration, match="sheepdog_store_command") as caught:
        open_sheepdog(**options)
    assert (command or "dog or collie") in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("sheepdog_store_address", "-r"),
        ("sheepdog_store_address", "two words"),
        ("sheepdog_store_address", "[::1]"),
        ("sheepdog_store_port", 0),
        ("sheepdog_store_port", 65536),
        ("sheepdog_store_chunk_size", 0),
        ("sheepdog_store_timeout", 0),
        ("sheepdog_store_copies", "-1"),
        ("sheepdog_store_copies", "many"),
        ("sheepdog_store_copies", "4:"),
        ("sheepdog_store_concurrency", 0),
    ],
)
def test_option_that_cannot_be_is_named(programs, option, value):
    programs("dog")
    with pytest.raises(BadStoreConfiguration, match=option):
        open_sheepdog(**{option: value})


@pytest.mark.parametrize(
    ("address", "port", "uri"),
    [
        ("127.0.0.1", 7000, "sheepdog://127.0.0.1:7000:image"),
        ("Sheep.Example.ORG", 7001, "sheepdog://sheep.example.org:7001:image"),
        ("::1", 7000, "sheepdog://[::1]:7000:image"),
        ("2001:DB8:0::1", 7000, "sheepdog://[2001:db8::1]:7000:image"),
    ],
)
def test_uri_names_the_daemon(programs, address, port, uri):
    programs("dog")
    store = open_sheepdog(sheepdog_store_address=address, sheepdog_store_port=port)
    assert store.cluster.location("image").uri == uri
    assert store.locate(uri) == store.cluster.location("image")
    assert store.uri_of(uri) == store.uri_of("sheepdog://image") == store.cluster.location("image").uri


@pytest.mark.parametrize("uri", ["sheepdog://127.0.0.1:7000:image", "sheepdog://image"])
def test_uri_of_this_daemon_or_of_any_is_taken(programs, uri):
    programs("dog")
    assert open_sheepdog().locate(uri).vdi == "image"


@pytest.mark.parametrize("uri", ["sheepdog://127.0.0.1:7001:image", "sheepdog://127.0.0.2:7000:image", "sheepdog://-r"])
def test_uri_of_another_daemon_is_refused(programs, uri):
    programs("dog")
    with pytest.raises(BadStoreUri):
        open_sheepdog().locate(uri)
