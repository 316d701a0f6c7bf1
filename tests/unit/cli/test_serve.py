# SPDX-License-Identifier: Apache-2.0
"""storelib serve without serving: what it refuses, and what it tells gunicorn. The rest is in tests/functional."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import types
import warnings

import pytest

with warnings.catch_warnings():
    # WebOb, which oslo.middleware stands on, still imports cgi.
    warnings.simplefilter("ignore", DeprecationWarning)
    import webob  # noqa: F401

from storelib.api import serving
from storelib.exceptions import BadStoreConfiguration


@pytest.fixture
def deployment(places):
    with (places / "storelib.ini").open("a") as file:
        file.write(f"[database]\nconnection = sqlite:///{places}/images.sqlite\n")
    return places


def configure(deployment, group: str, **options: str) -> None:
    with (deployment / "storelib.ini").open("a") as file:
        file.write(f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in options.items()))


# -- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["127.0.0.1:0", "localhost:0", "[::1]:0", "127.1.2.3:80", "unix:/run/images"])
def test_addresses_of_this_machine_only(text):
    assert serving.Address(text).is_local()


@pytest.mark.parametrize("text", ["0.0.0.0:0", "[::]:0", "192.0.2.1:80", "[::ffff:192.0.2.1]:80"])
def test_addresses_that_others_reach(text):
    assert not serving.Address(text).is_local()


@pytest.mark.parametrize("text", ["9292", ":9292", "host", "host:", "host:65536", "host:-1", "host:٣", "unix:"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(BadStoreConfiguration, match="--bind"):
        serving.Address(text)


def test_a_socket_file_of_a_dead_server_is_replaced(tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    serving.Address(f"unix:{path}").bind().close()


def test_a_socket_file_of_a_living_server_is_left_alone(tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(path)
        living.listen()
        with pytest.raises(BadStoreConfiguration, match="in use"):
            serving.Address(f"unix:{path}").bind()


# -- refusing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--bind", "0.0.0.0:0"], "auth_strategy"),
        (["--bind", "nowhere.invalid:1"], "--bind nowhere.invalid:1: there is no such host: "),
        (["--bind", "127.0.0.1:0", "--certfile", "nowhere"], "--certfile nowhere"),
        (["--bind", "127.0.0.1:0", "--keyfile", "nowhere"], "--certfile"),
        (["--bind", "127.0.0.1:0", "--access-log", "/nowhere/log"], "--access-log /nowhere/log"),
    ],
)
def test_options_that_cannot_be_are_named(storelib, deployment, options, named):
    response = storelib("serve", *options)
    assert (response.code, response.out, response.err.count("\n")) == (2, b"", 1)
    assert named in response.err
    assert "[Errno" not in response.err


@pytest.mark.parametrize("option", ["--workers=0", "--threads=0", "--grace=-1", "--grace=long"])
def test_numbers_out_of_range_are_refused(storelib, deployment, option):
    assert storelib("serve", "--bind", "127.0.0.1:0", option).code == 2


def test_a_certificate_without_its_key_is_refused(storelib, deployment):
    (deployment / "certificate").write_text("no certificate")
    response = storelib("serve", "--bind", "127.0.0.1:0", "--certfile", "certificate")
    assert (response.code, "--certfile certificate cannot be used" in response.err) == (2, True)


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("property_protection_file", "/nowhere", "property_protection_file"),
        ("property_schema_file", "/nowhere", "property_schema_file"),
        ("hashing_algorithm", "rot13", "rot13"),
        ("auth_strategy", "trust", "auth_strategy"),
        ("image_size_cap", "many", "image_size_cap"),
    ],
)
def test_a_mistake_in_the_configuration_is_named_before_anything_listens(storelib, deployment, name, value, named):
    configure(deployment, "api", **{name: value})
    response = storelib("serve", "--bind", "127.0.0.1:0")
    assert (response.code, response.out, response.err.count("\n")) == (2, b"", 1)
    assert named in response.err
    assert "[Errno" not in response.err


def test_a_database_that_cannot_be_made_is_named(storelib, places):
    configure(places, "database", connection="sqlite:////proc/nowhere/images.sqlite")
    response = storelib("serve", "--bind", "127.0.0.1:0")
    assert (response.code, "/proc/nowhere" in response.err) == (2, True)


@pytest.mark.parametrize("command", [["db", "version", "--config", "/nowhere"], ["config", "migrate", "glance.conf"]])
def test_without_the_extra_it_is_named(tmp_path, command):
    (tmp_path / "glance.conf").write_text("[glance_store]\nstores = file\n")
    code = (
        f"import sys\nsys.modules['sqlalchemy'] = None\nfrom storelib.cli.main import run\nsys.exit(run({command!r}))"
    )
    program = [sys.executable, "-c", code]
    response = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert response.returncode == 2
    assert "pip install 'storelib[api]'" in response.stderr


# -- gunicorn ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def gunicorn(monkeypatch):
    """Its configuration as serve makes it, whatever the environment and the command line say."""
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--workers 77 --bind 0.0.0.0:1")
    monkeypatch.setattr(sys, "argv", ["storelib", "serve", "--config", "my.ini"])
    settings = serving.Settings(serving.Address("127.0.0.1:0"), workers=3, threads=5, grace=7)
    with socket.socket() as listener:
        return serving._Gunicorn(None, settings, os.dup(listener.fileno()), lambda: None).cfg


def test_options_become_settings(gunicorn):
    assert (gunicorn.workers, gunicorn.threads, gunicorn.worker_class) == (3, 5, serving.Worker)
    assert gunicorn.graceful_timeout == 7 + serving.CLEANUP


def test_sendfile_is_used(gunicorn):
    """Which setting it to anything would switch off."""
    assert gunicorn.sendfile


def test_workers_are_forked_from_a_process_whose_objects_no_collection_of_garbage_touches(monkeypatch):
    kept = []
    arbiter = types.SimpleNamespace(run=lambda: kept.append(gc.get_freeze_count()))
    monkeypatch.setattr(serving, "Arbiter", lambda application, url, read: arbiter)
    gc.unfreeze()
    serving.run(None, serving.Settings(serving.Address("127.0.0.1:0")), lambda url: None)
    assert kept[0] > 10_000


def test_only_the_bound_socket_is_served(gunicorn):
    [descriptor] = gunicorn.address
    os.close(descriptor)
    assert isinstance(descriptor, int)


def test_nobody_may_steer_it_from_the_file_system(gunicorn):
    if "control_socket_disable" in gunicorn.settings:
        assert gunicorn.control_socket_disable


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("X-IMAGE-META-DISK_FORMAT", True),
        ("X-AUTH-TOKEN", True),
        ("X_IDENTITY_STATUS", False),
        ("X-IDENTITY_STATUS", False),
        ("SCRIPT_NAME", False),
    ],
)
def test_headers_that_look_like_others_to_cgi_are_dropped_except_those_of_v1(name, kept):
    assert serving._is_plain(name) is kept


def test_starting_loads_none_of_the_servers_libraries():
    code = (
        "import sys\nfrom storelib.cli.main import run\nsys.argv[0] = 'storelib'\nrun(['--help'])\n"
        "print(*(name.partition('.')[0] for name in sys.modules), file=sys.stderr)"
    )
    response = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(response.stderr.split())
    assert not loaded & {
        "falcon",
        "sqlalchemy",
        "gunicorn",
        "alembic",
        "urllib3",
        "keystoneauth1",
        "oslo_config",
        "rich",
    }


def test_the_address_in_the_announcement_is_one_to_connect_to():
    listener = types.SimpleNamespace(getsockname=lambda: ("::1", 9292, 0, 0))
    settings = serving.Settings(serving.Address("[::1]:0"), certfile="some")
    assert serving._url(settings, listener) == "https://[::1]:9292"


@pytest.mark.parametrize(
    ("method", "path", "quick"),
    [
        ("GET", "/v2/images", True),
        ("GET", "/v2/images/1", True),
        ("GET", "/v2/images/1/file", False),
        ("PUT", "/v2/images/1/file", False),
        ("DELETE", "/v2/images/1", False),
        ("GET", "/v1/images/1", False),
    ],
)
def test_only_what_asks_for_metadata_waits_for_its_turn(method, path, quick):
    assert serving._is_quick(types.SimpleNamespace(method=method, path=path)) is quick
