# SPDX-License-Identifier: Apache-2.0
"""storelib preload against a real server, and nodes that say what a test has them say."""

from __future__ import annotations

import json
import socket
import threading
import time
import types
import urllib.error
import urllib.parse
import urllib.request

import pytest

from storelib.cli import preload
from storelib.cli.image import client
from storelib.cli.output import Output, percentage
from storelib.exceptions import Forbidden, NotFound, RemoteServiceUnavailable, StoreError

INI = """
[storelib]
stores = fast:file
[fast]
filesystem_store_datadir = {directory}/fast
[database]
connection = sqlite:///{directory}/images.sqlite
sqlite_synchronous = false
[api]
limit_param_default = 2
[preload]
enabled = true
interval = 0.1
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def api(directory, serving):
    """The URL of an image API."""
    (directory / "my.ini").write_text(INI.format(directory=directory))
    with serving(directory, "--access-log", "access.log") as url:
        yield url


@pytest.fixture
def run(storelib, api, no_variables, monkeypatch):
    """``run("list")`` is ``storelib preload list`` with JSON for an answer."""
    monkeypatch.setenv("OS_IMAGE_URL", api)
    return lambda *arguments: storelib("--format", "json", "preload", *arguments)


@pytest.fixture
def plain(storelib, run):
    return lambda *arguments: storelib("--format", "plain", "preload", *arguments)


@pytest.fixture
def image(storelib, run, tmp_path, request):
    """The name of an image of this test."""
    path = tmp_path / "disk.raw"
    path.write_bytes(b"x" * 1000)
    name = request.node.name[:200]
    formats = ("--disk-format", "raw", "--container-format", "bare")
    made = storelib("--format", "json", "image", "create", name, *formats, "--file", path)
    assert made.code == 0, made.err
    return name


@pytest.fixture
def node(run, api, request):
    """``node("n1")`` registers a node; what it returns sends a heartbeat and returns what is told."""

    def post(path, document, secret=None):
        headers = {"Content-Type": "application/json"} | ({"X-Node-Secret": secret} if secret else {})
        asked = urllib.request.Request(api + path, json.dumps(document).encode(), headers)
        with urllib.request.urlopen(asked, timeout=60) as response:
            return json.load(response)

    def make(name, group="racks"):
        place = {"address": "192.0.2.1", "port": 7000}
        token = run("enrol", "--group", group).document["token"]
        made = post("/v2/nodes", {"name": name, "token": token, **place})

        def says(preload=None, state="queued", **more):
            time.sleep(0.02)
            states = [] if preload is None else [{"preload": preload, "state": state, **more}]
            return post(f"/v2/nodes/{made['id']}/heartbeat", {**place, "states": states}, made["secret"])

        return says

    yield make
    for found in run("nodes").documents:
        run("remove", found["id"])
    for found in run("list", "--status", "active").documents:
        run("cancel", found["id"])


def test_a_token_is_printed_alone(plain):
    response = plain("enrol", "--group", "racks", "--uses", 3, "--expires-in", "2h")
    assert response.code == 0
    assert len(response.out.decode().split()) == 1


def test_an_image_is_started_and_shown(run, plain, node, image):
    says = node("n1")
    [started] = run("start", image, "--group", "racks").documents
    says(started["id"], "fetching", done=435, from_source=435)
    [line] = plain("status").out.decode().splitlines()
    assert line.split("\t")[0::2][:1] == ["n1"]
    assert "fetching 43 %" in line
    [state] = run("status", started["id"]).documents
    assert (state["state"], state["done"], state["image"]) == ("fetching", 435, started["image"])


def test_a_watch_ends_when_all_are_ready(run, plain, node, image, directory):
    says = node("n1")
    [started] = run("start", image, "--node", "n1").documents
    says(started["id"], "fetching", done=10)

    def finish():
        # Only when the watch has looked once.
        deadline = time.monotonic() + 60
        while f"GET /v2/preloads/{started['id']}" not in (directory / "access.log").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        says(started["id"], "ready", done=1000)

    waits = threading.Thread(target=finish)
    waits.start()
    response = plain("status", "--watch", "--every", "0.2")
    waits.join()
    assert response.code == 0
    assert [line.split("\t")[2] for line in response.out.decode().splitlines()] == ["fetching 1 %", "ready"]


def test_a_watch_of_one_that_failed_is_code_1(run, node, image):
    says = node("n1")
    [started] = run("start", image, "--all", "--pin").documents
    assert started["pinned"] is True
    says(started["id"], "failed", reason="the disk is full")
    response = run("status", started["id"], "--watch")
    assert response.code == 1
    assert [line["reason"] for line in response.documents] == ["the disk is full"]


def test_a_watch_of_one_that_was_cancelled_ends_too(run, plain, node, image):
    says = node("n1")
    [started] = run("start", image, "--all").documents
    says(started["id"], "fetching", done=10)
    assert run("cancel", started["id"]).code == 0
    response = plain("status", started["id"], "--watch")
    assert response.code == 1
    [line] = response.out.decode().splitlines()
    assert line.split("\t")[2] == "cancelled"


def test_a_watch_of_what_no_node_is_to_have_is_code_1(run, node, image):
    says = node("n1")
    [right], [mistyped] = (run("start", image, "--group", group).documents for group in ("racks", "rakcs"))
    says(right["id"], "ready")
    response = run("status", "--watch")
    assert response.code == 1
    assert f"preload {mistyped['id']}: there is no node" in response.err
    assert run("status", right["id"], "--watch").code == 0


def test_a_watch_does_not_mind_that_a_group_keeps_images_and_has_no_nodes(run, node, image):
    run("group", "set", "racks", "--image", image)
    assert [each["origin"] for each in run("list", "--status", "active").documents] == ["rule"]
    assert run("status", "--watch").code == 0
    run("group", "unset", "racks")


class Flaky:
    """An image API of one preload, whose answers are these states or refusals, in order."""

    def __init__(self, monkeypatch, *responses):
        self.answers = list(responses)
        monkeypatch.setattr(client.Api, "ask", self.ask)

    def ask(self, method, path):
        if path.startswith("/v2/images/"):
            return {"size": 1000}
        if path.endswith("status=active"):
            # One that is over is in no list of active ones.
            return {"preloads": [{"id": "p"}] if self.answers[0] == "fetching" else []}
        response = self.answers.pop(0)
        if isinstance(response, StoreError):
            raise response
        states = [{"node_id": "n", "node": "n1", "state": response, "done": 1, "from_source": 1, "from_peers": 0}]
        return {"id": "p", "status": "active", "image": "i", "states": states}


AWAY = RemoteServiceUnavailable("nothing responds")


def test_a_watch_waits_for_an_api_that_is_away(storelib, no_variables, monkeypatch):
    Flaky(monkeypatch, "fetching", AWAY, AWAY, "fetching", AWAY, "ready")
    pauses = []
    # Not time.sleep itself, which threads of other tests may call.
    monkeypatch.setattr(preload, "time", types.SimpleNamespace(sleep=pauses.append))
    response = storelib("preload", "status", "--watch", "--format", "plain")
    assert (response.code, [line.split(b"\t")[2] for line in response.out.splitlines()]) == (
        0,
        [b"fetching 0 %", b"ready"],
    )
    assert [line.partition(": ")[2] for line in response.err.splitlines()] == [
        "waiting for the image API: nothing responds",
        "the image API answers again",
    ] * 2
    assert pauses == [2, 4, 8, 2, 4]


@pytest.mark.parametrize(("refusal", "code"), [(Forbidden("no"), 6), (NotFound("gone"), 3), (StoreError("?"), 1)])
def test_a_watch_ends_where_waiting_changes_nothing(storelib, no_variables, monkeypatch, refusal, code):
    Flaky(monkeypatch, "fetching", refusal)
    assert storelib("preload", "status", "p", "--watch", "--every", "0.1").code == code


def test_a_watch_does_not_wait_for_an_api_that_was_never_there(storelib, no_variables, monkeypatch):
    Flaky(monkeypatch, AWAY)
    assert storelib("preload", "status", "p", "--watch").code == 7


@pytest.mark.parametrize("arguments", [(), ("--group", "racks", "--all"), ("--node", "n1", "--group", "racks")])
def test_nodes_are_named_in_one_way(run, image, arguments):
    assert run("start", image, *arguments).code == 2


def test_a_preload_is_listed_and_cancelled(run, node, image):
    [started] = run("start", image, "--group", "racks").documents
    assert run("cancel", started["id"]).code == 0
    found = {each["id"]: each["status"] for each in run("list", "--group", "racks").documents}
    assert found[started["id"]] == "cancelled"
    assert run("cancel", started["id"]).code != 0


def test_one_that_is_over_keeps_no_other_from_being_cancelled(run, node, image):
    over, active = (run("start", image, "--group", "racks").document["id"] for _ in range(2))
    assert run("cancel", over).code == 0
    response = run("cancel", over, active)
    assert (response.code, f"preload {over} is over" in response.err) == (6, True)
    assert run("list", "--status", "active").documents == []


@pytest.mark.parametrize("name", ["", ".", ".."])
@pytest.mark.parametrize("command", ["status", "cancel", "group show", "group unset"])
def test_what_would_be_another_path_is_no_name(run, command, name):
    response = run(*command.split(), name)
    assert (response.code, response.err) == (2, f"storelib: {name!r} is no id or name that can be asked for\n")


def test_nodes_are_listed_drained_and_removed(run, node):
    says = node("n1")
    assert [each["name"] for each in run("nodes", "--group", "racks").documents] == ["n1"]
    assert run("drain", "n1").code == 0
    assert says()["draining"] is True
    assert run("drain", "n1", "--undo").code == 0
    assert says()["draining"] is False
    assert run("remove", "n1").code == 0
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        says()
    refused.value.close()
    assert run("drain", "n1").code == 3


def test_an_id_is_no_others_name(run, node):
    node("n2")
    [other] = run("nodes").documents
    node(other["id"])
    assert run("remove", other["id"]).code == 0
    assert [each["name"] for each in run("nodes").documents] == [other["id"]]


def test_a_watch_tells_preloads_of_one_image_apart(run, plain, node, image):
    says = node("n1")
    first, second = (run("start", image, "--all").documents[0]["id"] for _ in range(2))
    says(first, "ready")
    run("cancel", second)
    third = run("start", image, "--all").documents[0]["id"]
    later = threading.Timer(0.5, says, [third, "ready"])
    later.start()
    response = plain("status", first, second, third, "--watch", "--every", "0.1")
    later.join()
    states = [line.split("\t")[2] for line in response.out.decode().splitlines()]
    assert states == ["ready", "cancelled", "queued", "ready"]


def test_a_group_keeps_an_image(run, node, image):
    says = node("n1")
    said = run("group", "set", "racks", "--image", image, "--property", "a=b", "--visibility", "shared")
    assert said.code == 0, said.err
    assert said.document["properties"] == {"a": "b"}
    assert run("group", "show", "racks").document == said.document
    assert [each["name"] for each in run("group", "list").documents] == ["racks"]
    assert len(says()["jobs"]) == 1
    assert run("group", "unset", "racks").code == 0
    assert says()["jobs"] == []
    assert run("group", "set", "racks", "--property", "=b").code == 2


def test_tickets_and_secrets_are_not_in_the_logs_of_the_server(run, node, image, api, directory):
    says = node("n1")
    run("start", image, "--group", "racks")
    url = says()["jobs"][0]["source"]["url"]
    with urllib.request.urlopen(api + url, timeout=60) as response:
        assert response.read() == b"x" * 1000
    # What is no request of HTTP is logged as it is.
    with socket.create_connection(("127.0.0.1", urllib.parse.urlsplit(api).port), 20) as connection:
        connection.sendall(f"GET {url}\r\n\r\n".encode())
        assert b"400" in connection.recv(1000)
    deadline = time.monotonic() + 20
    while "/v2/preloads/sources/***/" not in (directory / "access.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    logs = (directory / "access.log").read_text() + (directory / "log").read_text()
    assert url.split("/")[-2] not in logs
    assert "Invalid HTTP request line: 'GET /v2/preloads/sources/***/" in logs


def test_what_changes_is_told_once(capsys):
    first, second = {"node": "n1", "state": "queued"}, {"node": "n1", "state": "ready"}
    Output("plain").watch(("node", "state"), [[first], [first], [second]], key=("node",), told="state")
    assert capsys.readouterr().out == "n1\tqueued\nn1\tready\n"


def test_a_terminal_has_a_live_table(capsys):
    output = Output("plain")
    output.fancy = True
    looks = [[{"node": "n1\x1b[2J", "state": "queued"}], [{"node": "n1\x1b[2J", "state": "ready"}]]
    output.watch(("node", "state"), looks, key=("node",), told="state")
    out = capsys.readouterr().out
    assert "ready" in out
    assert "\x1b[2J" not in out


def test_a_live_table_cuts_nothing_off(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    output = Output("plain")
    output.fancy = True
    names = [f"compute-node-in-rack-{number}" for number in (1, 2)]
    looks = [[{"node": name, "state": "waits for the others"} for name in names]]
    output.watch(("node", "state"), looks, key=("node",), told="state")
    assert "…" not in capsys.readouterr().out


def test_a_terminal_too_narrow_for_a_table_has_lines(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    output = Output("plain")
    output.fancy = True
    first = {"node": "n1", "state": "queued", "from_source": "1 B", "reason": None}
    output.watch(tuple(first), [[first], [{**first, "state": "ready"}]], key=("node",), told="state")
    assert capsys.readouterr().out == "n1\tqueued\t1 B\t\nn1\tready\t1 B\t\n"


@pytest.mark.parametrize(("done", "whole", "text"), [(0, 3, "0 %"), (999, 1000, "99 %"), (7, 7, "100 %")])
def test_a_part_is_told_for_people(done, whole, text):
    assert percentage(done, whole) == text


def test_lists_are_asked_for_in_large_pages(run, node, directory):
    for number in range(3):
        node(f"page{number}", "pages")
    assert [each["name"] for each in run("nodes", "--group", "pages").documents] == ["page0", "page1", "page2"]
    run("nodes", "--group", "the last one in the log")
    log = directory / "access.log"
    deadline = time.monotonic() + 60
    while "group=the+last+one" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    asked = [line for line in log.read_text().splitlines() if "GET /v2/nodes?" in line and "group=pages" in line]
    assert len(asked) == 1
