# SPDX-License-Identifier: Apache-2.0
"""What nodes may do and are told: names, secrets, tokens, tickets, certificates, and what hostile ones get."""

from __future__ import annotations

import datetime
import logging

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from deployment import Deployed, Deployment
from preload_nodes import SECTIONS, FakeNode, forget_nodes, preload, request_for
from sqlalchemy import event

from storelib.api.db import preloads as db_preloads
from storelib.api.db.preload_schema import node_enrolments, nodes, preload_nodes, preload_sources, preloads
from storelib.api.service.preload import agents
from storelib.api.service.preload.authority import Authorities
from storelib.api.service.preload.secrets import without_tickets
from storelib.preload import torrent

NODE = {"name": "n1", "group": "racks", "address": "192.0.2.1", "port": 6881, "version": "1"}


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    deployment = Deployment(tmp_path_factory.mktemp("api"), SECTIONS)
    yield deployment
    deployment.close()


@pytest.fixture
def api(deployed):
    """One API for all tests, without what the last one left."""
    forget_nodes(deployed)
    return deployed


def rows(api, table):
    with api.repository.database.engine.connect() as connection:
        return [str(tuple(row)) for row in connection.execute(table.select())]


class TestOff(Deployed):
    @pytest.mark.parametrize("path", ["/v2/nodes", "/v2/preloads", "/v2/preloads/groups"])
    def test_there_is_nothing_where_it_is_not_enabled(self, path):
        assert self.api.admin.get(path).status_code == 404

    def test_no_node_registers_either(self):
        assert self.api.admin.post("/v2/nodes", NODE).status_code == 404


class TestEnrolment:
    def enrol(self, api, **body):
        response = api.admin.post("/v2/nodes/enrolments", {"group": "racks", **body})
        assert response.status_code == 201, response.text
        return response.json["token"]

    def test_a_token_is_for_one_node_and_its_group(self, api):
        token = self.enrol(api)
        first = api.nobody.post("/v2/nodes", {**NODE, "token": token})
        assert (first.status_code, first.json["group"]) == (201, "racks")
        assert api.nobody.post("/v2/nodes", {**NODE, "name": "n2", "token": token}).status_code == 401

    def test_a_token_may_be_for_several(self, api):
        token = self.enrol(api, uses=2)
        names = ["n1", "n2", "n3"]
        found = [api.nobody.post("/v2/nodes", {**NODE, "name": name, "token": token}).status_code for name in names]
        assert found == [201, 201, 401]

    def test_a_name_that_is_taken_does_not_use_a_token_up(self, api):
        FakeNode(api, "n1")
        token = self.enrol(api)
        assert api.nobody.post("/v2/nodes", {**NODE, "token": token}).status_code == 409
        assert api.nobody.post("/v2/nodes", {**NODE, "name": "n2", "token": token}).status_code == 201

    def test_a_token_ends(self, api):
        token = self.enrol(api)
        with api.repository.database.engine.begin() as connection:
            connection.execute(node_enrolments.update().values(expires_at=1))
        assert api.nobody.post("/v2/nodes", {**NODE, "token": token}).status_code == 401

    def test_a_token_of_another_group_is_none(self, api):
        token = self.enrol(api)
        assert api.nobody.post("/v2/nodes", {**NODE, "group": "others", "token": token}).status_code == 400

    @pytest.mark.parametrize("caller", ["alice", "nova", "nobody"])
    def test_only_administrators_make_tokens(self, api, caller):
        assert getattr(api, caller).post("/v2/nodes/enrolments", {"group": "racks"}).status_code == 403

    @pytest.mark.parametrize(("caller", "status"), [("admin", 201), ("nova", 201), ("alice", 403), ("nobody", 403)])
    def test_without_a_token_a_node_is_a_service(self, api, caller, status):
        assert getattr(api, caller).post("/v2/nodes", NODE).status_code == status

    @pytest.mark.parametrize(
        "wrong", [{"uses": 0}, {"uses": True}, {"uses": 10**9}, {"expires_in": 0}, {"expires_in": "x"}, {"group": ""}]
    )
    def test_what_cannot_be_is_refused(self, api, wrong):
        assert api.admin.post("/v2/nodes/enrolments", {"group": "racks", **wrong}).status_code == 400

    def test_no_name_is_taken_over(self, api):
        node = FakeNode(api, "n1")
        assert api.admin.post("/v2/nodes", {**NODE, "address": "192.0.2.9"}).status_code == 409
        stranger = api.nobody.post("/v2/nodes", {**NODE, "address": "192.0.2.9"}, X_Node_Secret="guessed")
        assert stranger.status_code == 409
        assert api.admin.get(f"/v2/nodes/{node.id}").json["address"] == "192.0.2.7"

    def test_a_node_changes_itself_by_its_secret(self, api):
        node = FakeNode(api, "n1")
        again = api.nobody.post("/v2/nodes", {**NODE, "port": 7000}, X_Node_Secret=node.secret)
        assert (again.status_code, again.json["id"]) == (200, node.id)
        assert api.admin.get(f"/v2/nodes/{node.id}").json["port"] == 7000

    def test_a_node_whose_answer_was_lost_registers_again(self, api):
        token, secret = self.enrol(api), "s" * 43
        first = api.nobody.post("/v2/nodes", {**NODE, "token": token}, X_Node_Secret=secret)
        assert (first.status_code, first.json["secret"]) == (201, secret)
        again = api.nobody.post("/v2/nodes", {**NODE, "token": token}, X_Node_Secret=secret)
        assert (again.status_code, again.json["id"]) == (200, first.json["id"])
        # Also while the first request is still on its way.
        other, named, late = self.enrol(api), api.repository.nodes.named, []
        api.repository.nodes.named = lambda name: named(name) if late else late.append(name)
        try:
            found = api.nobody.post("/v2/nodes", {**NODE, "token": other}, X_Node_Secret=secret)
        finally:
            del api.repository.nodes.named
        assert (found.status_code, found.json["id"]) == (200, first.json["id"])

    @pytest.mark.parametrize("secret", ["guessed", "s" * 31, "s" * 257, f"s {'s' * 40}"])
    def test_a_node_chooses_no_secret_that_may_be_guessed(self, api, secret):
        token = self.enrol(api)
        found = api.nobody.post("/v2/nodes", {**NODE, "token": token}, X_Node_Secret=secret)
        assert (found.status_code, "X-Node-Secret" in found.text) == (400, True)

    def test_a_secret_alone_makes_nobody_a_node(self, api):
        assert api.nobody.post("/v2/nodes", NODE, X_Node_Secret="s" * 43).status_code in (401, 403)

    def test_a_node_stays_in_its_group(self, api):
        node = FakeNode(api, "n1")
        moved = api.nobody.post("/v2/nodes", {**NODE, "group": "others"}, X_Node_Secret=node.secret)
        assert moved.status_code == 400

    @pytest.mark.parametrize(
        "wrong",
        [
            *({"name": name} for name in ("", "a b", "a\0", "x" * 256, "a/b", 7, None)),
            *({"group": group} for group in ("a b", 7)),
            *({"address": address} for address in ("", "no host", "192.0.2.1:80", "x" * 300, None, ["192.0.2.1"])),
            # Nodes look no names up; behind a % may be any text; and one node has one address.
            *(
                {"address": address}
                for address in ("node.example", "fe80::1%eth0", "::1%a\0\n", "0.0.0.0", "224.0.0.1")
            ),
            *({"port": port} for port in (-1, 65536, True, "1", None)),
            {"version": 7},
            {"token": 7},
        ],
    )
    def test_what_is_no_node_is_refused(self, api, wrong):
        assert api.admin.post("/v2/nodes", {**NODE, **wrong}).status_code == 400

    def test_secrets_and_tokens_are_kept_as_digests(self, api, caplog):
        caplog.set_level(logging.DEBUG)
        token = self.enrol(api)
        secret = api.nobody.post("/v2/nodes", {**NODE, "token": token}).json["secret"]
        kept = rows(api, nodes) + rows(api, node_enrolments) + [caplog.text]
        assert not any(secret in text or token in text for text in kept)
        assert secret not in api.admin.get("/v2/nodes").text + str(api.events)


class TestStrangers:
    @pytest.mark.parametrize("secret", [None, "", "guessed", "x" * 100_000, "ä"])
    def test_a_wrong_secret_is_as_no_node(self, api, secret):
        node = FakeNode(api, "n1")
        found = []
        for node_id in (node.id, "n1", "00000000-0000-0000-0000-000000000000", "%00", "x" * 200):
            headers = {} if secret is None else {"X_Node_Secret": secret}
            response = api.nobody.post(f"/v2/nodes/{node_id}/heartbeat", {}, **headers)
            found.append((response.status_code, response.json["error"]["message"]))
        assert len(set(found)) == 1
        assert found[0][0] == 401

    def test_an_administrator_is_no_node(self, api):
        node = FakeNode(api, "n1")
        assert api.admin.post(f"/v2/nodes/{node.id}/heartbeat", {}).status_code == 401

    def test_nobody_believes_what_a_client_says_of_itself_beside_a_secret(self, api):
        """Those paths pass by what asks Keystone."""
        node = FakeNode(api, "n1")
        response = api.admin.get(f"/v2/nodes/{node.id}/preloads/x/torrent")
        assert response.status_code == 401

    def test_a_node_that_was_removed_is_a_stranger(self, api):
        node = FakeNode(api, "n1")
        assert api.admin.delete(f"/v2/nodes/{node.id}").status_code == 204
        assert node.send().status_code == 401
        assert FakeNode(api, "n1").id != node.id

    @pytest.mark.parametrize("auth", ["http_basic", "noauth"])
    def test_nodes_need_no_other_credentials(self, tmp_path, auth):
        (tmp_path / "htpasswd").write_text("ann:$2y$05$wJzhBNcVKSuQdWVSeSXA7OJEqWRT9VmRQQMRPfAyzTb9fqyoqLxTW\n")
        section = f"[oslo_middleware]\nhttp_basic_auth_user_file = {tmp_path}/htpasswd\n" + SECTIONS
        api = Deployment(tmp_path, section, auth_strategy=auth)
        from storelib.api.app import build_wsgi

        node = FakeNode(api, "n1")
        token = TestEnrolment().enrol(api)
        api.wsgi = build_wsgi(api.conf, api.service)
        api.nobody = api.caller(None)
        assert node.send().status_code == 200
        assert api.nobody.post("/v2/nodes", {**NODE, "name": "n2", "token": token}).status_code == 201
        forged = api.caller("admins", "admin")
        assert forged.post("/v2/nodes", {**NODE, "name": "n3"}).status_code == (201 if auth == "noauth" else 401)
        assert api.nobody.get("/v2/preloads/sources/x/y").status_code == 404
        assert api.nobody.get("/v2/nodes").status_code == (200 if auth == "noauth" else 401)
        api.close()


def with_one_too_many(api, image):
    """An image that three of four nodes have a place for, and the nodes; the last one gets nothing."""
    found = [FakeNode(api, f"n{number}") for number in range(4)]
    [one] = preload(api, image)
    assert [node.job(one)["source"] is not None for node in found] == [True, True, True, False]
    return one, found


def node_seen_in(seconds):
    """The time of so many seconds from now, as the API writes it."""
    moment = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


class TestHeartbeat:
    def test_a_node_is_told_what_it_needs(self, api):
        image = api.alice.active(b"x" * 3_000_000, visibility="private")
        node = FakeNode(api, "n1")
        [one] = preload(api, image)
        told = node.heartbeat()
        [job] = told["jobs"]
        facts = api.alice.show(image)
        assert (job["preload"], job["image"], job["size"]) == (one, image, 3_000_000)
        assert (job["os_hash_algo"], job["os_hash_value"]) == (facts["os_hash_algo"], facts["os_hash_value"])
        assert job["torrent_url"] == f"/v2/nodes/{node.id}/preloads/{one}/torrent"
        assert (job["certificate"], job["peers"], told["drop"], told["draining"]) == (None, [], [], False)
        found = api.nobody.get(job["torrent_url"], X_Node_Secret=node.secret)
        described = torrent.read(found.content)
        assert (described.name, described.pieces.size, described.authority) == (image, 3_000_000, job["ca"])

    def test_only_its_own_secret_gets_a_node_a_torrent(self, api):
        image = api.alice.active()
        node, other = FakeNode(api, "n1"), FakeNode(api, "n2", "others")
        [one] = preload(api, image)
        path = f"/v2/nodes/{node.id}/preloads/{one}/torrent"
        assert api.nobody.get(path, X_Node_Secret=other.secret).status_code == 401
        mine = f"/v2/nodes/{other.id}/preloads/{one}/torrent"
        assert api.nobody.get(mine, X_Node_Secret=other.secret).status_code == 404

    def test_nodes_are_told_of_each_other(self, api):
        image = api.alice.active()
        first, second, silent = (FakeNode(api, f"n{number}", port=7000 + number) for number in range(3))
        silent.port = 0
        [one] = preload(api, image)
        for node in (first, second, silent):
            node.says(one, "fetching", done=1)
        api.service.preload.agents._swarms._peers.put(one, (0.0, ()))
        assert first.job(one)["peers"] == [{"address": second.address, "port": second.port}]
        assert silent.job(one)["peers"] == []

    def test_progress_is_seen(self, api):
        image = api.alice.active(b"x" * 100)
        node = FakeNode(api, "n1")
        [one] = preload(api, image)
        node.heartbeat(
            states=[{"preload": one, "state": "fetching", "done": 40, "from_source": 30, "from_peers": 10}],
            free=10**9,
            used=5,
            budget=10**10,
        )
        [state] = api.admin.get(f"/v2/preloads/{one}").json["states"]
        assert (state["node"], state["state"], state["done"]) == ("n1", "fetching", 40)
        assert (state["from_source"], state["from_peers"]) == (30, 10)
        shown = api.admin.get(f"/v2/nodes/{node.id}").json
        assert (shown["free"], shown["used"], shown["budget"]) == (10**9, 5, 10**10)
        node.says(one, "ready", done=100)
        found = api.admin.get("/v2/preloads").json["preloads"]
        assert [(each["nodes"], each["done"], each["from_source"]) for each in found] == [({"ready": 1}, 100, 30)]
        assert ("info", "preload.ready") in [event[:2] for event in api.events]

    def test_a_node_that_lies_in_numbers_gets_no_further_than_the_image(self, api):
        image = api.alice.active(b"x" * 100)
        node = FakeNode(api, "n1")
        [one] = preload(api, image)
        node.says(one, "fetching", done=2**53, from_source=50)
        node.says(one, "fetching", done=100, from_source=1)
        [state] = api.admin.get(f"/v2/preloads/{one}").json["states"]
        assert (state["done"], state["from_source"]) == (100, 50)

    def test_what_a_node_says_of_preloads_that_are_not_its_own_is_nothing(self, api):
        image = api.alice.active()
        FakeNode(api, "n1")
        other = FakeNode(api, "n2", "others")
        [one] = preload(api, image)
        other.says(one, "ready", done=8)
        bad = [{"preload": one, "address": "192.0.2.7", "port": 6881}]
        other.heartbeat(bad_peers=bad)
        [state] = api.admin.get(f"/v2/preloads/{one}").json["states"]
        assert (state["node"], state["state"]) == ("n1", "queued")

    @pytest.mark.parametrize(
        "said",
        [
            {"states": {}},
            {"states": [7]},
            {"states": [{"preload": "x", "state": "flying"}]},
            {"states": [{"preload": 7, "state": "ready"}]},
            {"states": [{"preload": "x\0", "state": "ready"}]},
            *({"states": [{"preload": "x", "state": "ready", "done": done}]} for done in (-1, 2**63, 1.5, True, "1")),
            {"states": [{"preload": "x", "state": "ready", "reason": 7}]},
            {"states": [{"preload": "x", "state": "ready"}] * 1001},
            {"holds": ["x"] * 4001},
            {"holds": [7]},
            {"holds": ["x" * 37]},
            {"bad_peers": [{"preload": "x", "address": "x y", "port": 1}]},
            {"bad_peers": [{"preload": "x", "address": "192.0.2.1", "port": -1}]},
            *({"time": moment} for moment in (-1, 2**70, "now", True)),
            *({"free": size} for size in (-1, 2**60, 0.5)),
            {"port": 70000},
            {"address": "http://x/"},
            {"address": "fe80::1%\x1b[2J"},
            {"bad_peers": [{"preload": "x", "address": "::1%\0", "port": 1}]},
        ],
    )
    def test_what_cannot_be_is_refused(self, api, said):
        assert FakeNode(api, "n1").send(**said).status_code == 400

    def test_reasons_are_one_line_that_is_not_long(self, api):
        image = api.alice.active()
        node = FakeNode(api, "n1")
        [one] = preload(api, image)
        node.says(one, "failed", reason="disk full\n\x1b[31m" + "x" * 5000)
        [state] = api.admin.get(f"/v2/preloads/{one}").json["states"]
        assert state["reason"].startswith("disk full [31mxxx")
        assert len(state["reason"]) == 255

    def test_who_asks_too_fast_is_told_so(self, api, monkeypatch):
        node = FakeNode(api, "n1")
        node.heartbeat()
        seen = api.repository.nodes.named("n1").node.seen_at
        # As on a machine that is fast enough for it.
        monkeypatch.setattr(agents, "now", lambda: seen + 1)
        told = node.send()
        assert told.status_code == 429
        assert int(told.headers["retry-after"]) >= 1

    def test_a_node_is_heard_although_the_clock_was_set_back(self, api):
        node = FakeNode(api, "n1")
        node.heartbeat()
        with api.repository.database.engine.begin() as connection:
            connection.execute(nodes.update().values(seen_at=nodes.c.seen_at + 3600 * 1_000_000))
        assert node.send().status_code == 200
        assert api.admin.get(f"/v2/nodes/{node.id}").json["seen_at"] < node_seen_in(1800)

    def test_what_it_has_is_not_in_the_way_of_what_it_is_to_get(self, api, monkeypatch):
        monkeypatch.setattr(db_preloads, "MOST_WORK", 2)
        images = [api.alice.active() for _ in range(3)]
        node = FakeNode(api, "n1")
        first, second, third = (preload(api, image)[0] for image in images)
        assert node.job(third) is None
        node.heartbeat(states=[{"preload": each, "state": "ready"} for each in (first, second)])
        assert node.job(third) is not None

    def test_a_heartbeat_is_few_statements(self, api):
        images = [api.alice.active() for _ in range(5)]
        node = FakeNode(api, "n1")
        preloads = preload(api, *images)
        node.heartbeat()
        statements, commits = [], []
        engine = api.repository.database.engine
        event.listen(engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
        event.listen(engine, "commit", commits.append)
        states = [{"preload": each, "state": "ready", "done": 8} for each in preloads]
        node.heartbeat(states=states, holds=images)
        # The node, its work, places; then what it says of itself and of its work, and the places it gives back.
        assert (len(statements) <= 6, len(commits)) == (True, 2)
        del statements[:], commits[:]
        node.heartbeat(states=states, holds=images)
        assert (len(statements) <= 3, len(commits)) == (True, 1)


class TestImagesThatGo:
    @pytest.fixture
    def image(self, api):
        return api.alice.active()

    def test_a_deleted_image_is_dropped(self, api, image):
        node = FakeNode(api, "n1")
        [one] = preload(api, image)
        node.says(one, "ready", done=8)
        assert api.alice.delete(f"/v2/images/{image}").status_code == 204
        told = node.heartbeat(holds=[image])
        assert (told["jobs"], told["drop"]) == ([], [image])

    def test_a_deactivated_image_is_dropped_and_comes_back(self, api, image):
        node = FakeNode(api, "n1")
        preload(api, image)
        api.admin.post(f"/v2/images/{image}/actions/deactivate")
        told = node.heartbeat(holds=[image])
        assert (told["jobs"], told["drop"]) == ([], [image])
        api.admin.post(f"/v2/images/{image}/actions/reactivate")
        told = node.heartbeat(holds=[image])
        assert (len(told["jobs"]), told["drop"]) == (1, [])

    def test_who_may_not_have_an_image_is_not_told_of_as_having_it(self, api, image):
        node = FakeNode(api, "n1")
        [one] = preload(api, image)
        node.says(one, "ready", done=8, from_source=8)
        api.admin.post(f"/v2/images/{image}/actions/deactivate")
        node.says(one, "ready", done=8)
        found = api.admin.get(f"/v2/preloads/{one}").json
        [state] = found["states"]
        assert (state["state"], state["reason"], state["done"]) == ("failed", "the image is deactivated", 0)
        assert (found["nodes"], found["from_source"]) == ({"failed": 1}, 8)
        api.admin.post(f"/v2/images/{image}/actions/reactivate")
        node.says(one, "queued")
        [state] = api.admin.get(f"/v2/preloads/{one}").json["states"]
        assert (state["state"], state["reason"]) == ("queued", None)

    def test_why_a_node_may_not_have_an_image_is_told(self, api, image):
        node = FakeNode(api, "n1")
        [one] = preload(api, image)
        assert api.admin.put("/v2/preloads/groups/racks", {"visibility": ["public"]}).status_code == 200
        node.heartbeat()
        [state] = api.admin.get(f"/v2/preloads/{one}").json["states"]
        assert state["state"] == "failed"
        assert state["reason"] == "the group racks is not for images that are shared"
        assert "preload.failed" in [event[1] for event in api.events]

    def test_a_cancelled_one_stays_for_the_disk_to_decide(self, api, image):
        node = FakeNode(api, "n1")
        [one] = preload(api, image)
        assert api.admin.delete(f"/v2/preloads/{one}").status_code == 204
        told = node.heartbeat(holds=[image])
        assert (told["jobs"], told["drop"]) == ([], [])
        assert api.admin.delete(f"/v2/preloads/{one}").status_code == 409

    def test_what_nobody_knows_is_dropped(self, api):
        node = FakeNode(api, "n1")
        assert node.heartbeat(holds=["nothing"])["drop"] == ["nothing"]

    def test_what_the_policy_no_longer_allows_goes(self, api, image, monkeypatch):
        node = FakeNode(api, "n1")
        preload(api, image)
        allows = api.service.core.policy.allows
        monkeypatch.setattr(
            api.service.core.policy,
            "allows",
            lambda context, action, target: action != "preload_image" and allows(context, action, target),
        )
        told = node.heartbeat(holds=[image])
        assert (told["jobs"], told["drop"]) == ([], [image])

    @pytest.mark.parametrize(
        ("group", "has"),
        [
            ({"visibility": ["public"]}, False),
            ({"visibility": ["shared"]}, True),
            ({"projects": ["beta"]}, False),
            ({"projects": ["beta", "alpha"]}, True),
        ],
    )
    def test_a_group_may_be_for_some_images(self, api, image, group, has):
        node = FakeNode(api, "n1")
        preload(api, image)
        assert api.admin.put("/v2/preloads/groups/racks", group).status_code == 200
        told = node.heartbeat(holds=[image])
        assert (len(told["jobs"]), told["drop"]) == ((1, []) if has else (0, [image]))


class TestSources:
    @pytest.fixture
    def image(self, api):
        return api.alice.active(bytes(range(250)))

    def test_a_ticket_is_for_a_few_nodes_and_one_image(self, api, image):
        found = [FakeNode(api, f"n{number}") for number in range(6)]
        [one] = preload(api, image)
        sources = [node.job(one)["source"] for node in found]
        assert [source is not None for source in sources] == [True] * 3 + [False] * 3
        path = sources[0]["url"]
        response = api.nobody.get(path, Range="bytes=10-19")
        assert (response.status_code, response.content) == (206, bytes(range(10, 20)))
        assert api.nobody.get(path).content == bytes(range(250))
        other = api.alice.active()
        assert api.nobody.get(path.replace(image, other)).status_code == 404
        assert api.nobody.get(path, Range="bytes=250-").status_code == 416

    def test_a_ticket_stays_the_same_and_is_kept_as_a_digest(self, api, image):
        node = FakeNode(api, "n1")
        [one] = preload(api, image)
        first, second = node.job(one)["source"], node.job(one)["source"]
        assert first["url"] == second["url"]
        assert second["expires"] > first["expires"]
        ticket = first["url"].split("/")[-2]
        assert not any(ticket in row for row in rows(api, preload_sources))

    def test_it_goes_on_to_others_when_one_is_ready(self, api, image):
        found = [FakeNode(api, f"n{number}") for number in range(4)]
        [one] = preload(api, image)
        sources = [node.job(one)["source"] for node in found]
        assert sources[3] is None
        found[0].says(one, "ready", done=250)
        api.service.preload.agents._swarms._peers.put(one, (0.0, ()))
        assert api.nobody.get(sources[0]["url"]).status_code == 404
        # Others have all of it: a node that began goes on, no other begins.
        assert found[1].job(one)["source"] is not None
        assert found[3].job(one)["source"] is None

    def test_who_exchanges_nothing_reads_in_turn(self, api, image):
        alone = [FakeNode(api, f"a{number}", port=0) for number in range(2)]
        [one] = preload(api, image)
        assert [node.job(one)["source"] is not None for node in alone] == [True, False]
        alone[0].says(one, "ready", done=250)
        assert alone[1].job(one)["source"] is not None
        others = [FakeNode(api, f"n{number}") for number in range(3)]
        assert all(node.job(one)["peers"] == [] for node in alone)
        assert all(node.job(one) is not None for node in others)

    @pytest.mark.parametrize("port", [0, 6881], ids=["alone", "exchanging"])
    def test_who_has_lost_an_image_reads_it_again(self, api, image, port):
        node = FakeNode(api, "n1", port=port)
        [one] = preload(api, image)
        node.says(one, "ready", done=1000)
        node.says(one, "queued")
        assert node.job(one)["source"]

    def test_a_place_is_free_when_its_node_is_gone(self, api, image):
        found = [FakeNode(api, f"n{number}") for number in range(4)]
        [one] = preload(api, image)
        [first, *_] = [node.job(one)["source"] for node in found]
        with api.repository.database.engine.begin() as connection:
            connection.execute(
                preload_sources.update().where(preload_sources.c.node_id == found[0].id).values(expires_at=1)
            )
        assert api.nobody.get(first["url"]).status_code == 404
        assert found[3].job(one)["source"] is not None

    def test_a_place_is_not_kept_for_a_time_before_the_clock_was_set_back(self, api, image):
        one, found = with_one_too_many(api, image)
        with api.repository.database.engine.begin() as connection:
            later = preload_sources.c.expires_at + 86400 * 1_000_000
            connection.execute(preload_sources.update().where(preload_sources.c.node_id != "").values(expires_at=later))
        # Two that are there have theirs corrected, the first is gone.
        assert all(node.job(one)["source"] is not None for node in found[1:3])
        assert found[3].job(one)["source"] is not None
        assert found[0].job(one)["source"] is None

    def test_a_node_that_gets_nothing_makes_room_for_others_although_the_clock_was_set_back(self, api, image):
        one, found = with_one_too_many(api, image)
        with api.repository.database.engine.begin() as connection:
            granted, moved = preload_sources.c.granted_at, preload_nodes.c.moved_at
            connection.execute(preload_sources.update().values(granted_at=granted + 86400 * 1_000_000))
            connection.execute(preload_nodes.update().values(moved_at=moved + 86400 * 1_000_000))
        assert found[0].job(one)["source"] is None
        assert found[3].job(one)["source"] is not None

    def test_a_node_that_gets_nothing_makes_room_for_others(self, api, image):
        one, found = with_one_too_many(api, image)
        with api.repository.database.engine.begin() as connection:
            granted, moved = preload_sources.c.granted_at, preload_nodes.c.moved_at
            connection.execute(preload_sources.update().values(granted_at=granted - 61 * 1_000_000))
            connection.execute(preload_nodes.update().values(moved_at=moved - 61 * 1_000_000))
        # One goes on, one does not.
        assert found[0].says(one, "fetching", done=20)["jobs"][0]["source"] is not None
        assert found[1].job(one)["source"] is None
        assert found[3].job(one)["source"] is not None
        # It may again when there is room.
        found[0].says(one, "ready", done=250)
        api.service.preload.agents._swarms._peers.put(one, (0.0, ()))
        assert found[1].job(one)["source"] is not None

    @pytest.mark.parametrize("end", ["cancel", "delete", "deactivate", "remove"])
    def test_a_ticket_ends_with_what_it_is_for(self, api, image, end):
        node = FakeNode(api, "n1")
        [one] = preload(api, image)
        url = node.job(one)["source"]["url"]
        ends = {
            "cancel": lambda: api.admin.delete(f"/v2/preloads/{one}"),
            "delete": lambda: api.alice.delete(f"/v2/images/{image}"),
            "deactivate": lambda: api.admin.post(f"/v2/images/{image}/actions/deactivate"),
            "remove": lambda: api.admin.delete(f"/v2/nodes/{node.id}"),
        }
        assert ends[end]().status_code == 204
        assert api.nobody.get(url).status_code == 404

    def test_a_draining_node_gets_none(self, api, image):
        node = FakeNode(api, "n1")
        [one] = preload(api, image)
        assert api.admin.post(f"/v2/nodes/{node.id}/drain").status_code == 204
        told = node.heartbeat()
        assert (told["draining"], told["jobs"][0]["source"]) == (True, None)
        assert api.admin.delete(f"/v2/nodes/{node.id}/drain").status_code == 204
        assert node.job(one)["source"] is not None

    def test_tickets_are_in_no_log(self, api, image, caplog, monkeypatch):
        node = FakeNode(api, "n1")
        [one] = preload(api, image)
        url = node.job(one)["source"]["url"]
        monkeypatch.setattr(api.service.data, "for_node", lambda *given: 1 / 0)
        response = api.nobody.get(url)
        assert response.status_code == 500
        ticket = url.split("/")[-2]
        assert "/v2/preloads/sources/***/" in caplog.text
        assert ticket not in caplog.text + response.text + str(api.events)

    @pytest.mark.parametrize(
        "line",
        [
            "GET /v2/preloads/sources/SECRET/1 HTTP/1.1",
            "/image/v2.7/preloads/sources/SECRET",
            "/v2/preloads//sources//SECRET/",
            "/v2/preloads%2Fsources%2fSECRET%2F1",
        ],
    )
    def test_a_ticket_is_struck_wherever_it_is(self, line):
        assert "SECRET" not in without_tickets(line)


class TestCertificates:
    @pytest.fixture
    def node(self, api):
        return FakeNode(api, "n1")

    @pytest.fixture
    def one(self, api, node):
        return preload(api, api.alice.active())[0]

    def ask(self, node, one, request):
        return node.send(states=[{"preload": one, "state": "queued", "wanted_csr": request}])

    def test_a_node_gets_one_of_the_preloads_authority_for_its_key(self, node, one):
        key = ec.generate_private_key(ec.SECP256R1())
        [job] = self.ask(node, one, request_for("somebody else", key)).json["jobs"]
        found = x509.load_pem_x509_certificate(job["certificate"].encode())
        authority = x509.load_pem_x509_certificate(job["ca"].encode())
        found.verify_directly_issued_by(authority)
        assert found.public_key() == key.public_key()
        assert node.id in found.subject.rfc4514_string()
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [job["image"]]
        assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        moment = datetime.datetime.now(datetime.timezone.utc)
        assert moment + datetime.timedelta(hours=20) < found.not_valid_after_utc
        assert found.not_valid_after_utc < moment + datetime.timedelta(hours=25)

    def test_each_preload_has_an_authority_of_its_own(self, api, node, one):
        [other] = preload(api, api.alice.active())
        assert node.job(one)["ca"] != node.job(other)["ca"]

    @pytest.mark.parametrize("request_", ["", "nothing", "-----BEGIN CERTIFICATE REQUEST-----", "x" * 9000])
    def test_what_is_no_request_is_refused(self, node, one, request_):
        assert self.ask(node, one, request_).status_code == 400

    def test_a_weak_key_gets_none(self, node, one):
        weak = rsa.generate_private_key(65537, 1024)
        assert self.ask(node, one, request_for("n1", weak)).status_code == 400

    def test_a_request_that_was_changed_gets_none(self, node, one):
        lines = request_for("n1").splitlines()
        lines[-2] = ("A" if lines[-2][0] != "A" else "B") + lines[-2][1:]
        assert self.ask(node, one, "\n".join(lines)).status_code == 400

    def test_a_node_of_another_group_gets_none(self, api, one):
        assert self.ask(FakeNode(api, "n2", "others"), one, request_for("n2")).json["jobs"] == []

    def test_keys_of_authorities_are_sealed_where_there_is_a_key(self, tmp_path):
        api = Deployment(tmp_path, SECTIONS + "encryption_key = open sesame\n")
        node = FakeNode(api, "n1")
        [one] = preload(api, api.alice.active())
        assert "PRIVATE KEY" not in str(rows(api, preloads))
        [job] = self.ask(node, one, request_for("n1")).json["jobs"]
        assert job["certificate"]
        api.close()

    def test_an_authority_is_good_although_the_clock_was_ahead_when_it_was_made(self):
        made = x509.load_pem_x509_certificate(Authorities(None).make("p1").certificate.encode())
        apart = datetime.timedelta(days=3 * 365)
        assert made.not_valid_before_utc + apart < datetime.datetime.now(datetime.timezone.utc)
        assert made.not_valid_after_utc - apart > datetime.datetime.now(datetime.timezone.utc)

    def test_another_key_than_the_one_they_are_sealed_with_stops_nothing_else(self, tmp_path, caplog):
        api = Deployment(tmp_path, SECTIONS + "encryption_key = open sesame\n")
        node = FakeNode(api, "n1")
        [one] = preload(api, api.alice.active())
        api.service.preload.agents._authorities = Authorities("another one")
        [job] = self.ask(node, one, request_for("n1")).json["jobs"]
        assert (job["certificate"], job["source"] is not None) == (None, True)
        assert "encryption_key" in caplog.text
        api.close()

    def test_keys_of_authorities_never_leave(self, api, node, one, caplog):
        caplog.set_level(logging.DEBUG)
        [row] = rows(api, preloads)
        assert "PRIVATE KEY" in row
        told = [node.send().text, api.admin.get(f"/v2/preloads/{one}").text, api.admin.get("/v2/preloads").text]
        assert "PRIVATE KEY" not in "".join([*told, caplog.text, str(api.events)])


class TestBadPeers:
    def test_a_peer_that_connected_itself_is_known_by_its_address(self, api):
        image = api.alice.active()
        bad, *others = (FakeNode(api, f"n{number}", port=7000 + number) for number in range(3))
        bad.address = "192.0.2.66"
        [one] = preload(api, image)
        for node in (bad, *others):
            node.says(one, "fetching", done=1)
        # From a port that its system chose; two nodes of one address cannot be told apart.
        for address in ("192.0.2.66", "192.0.2.7"):
            others[0].heartbeat(bad_peers=[{"preload": one, "address": address, "port": 40000}])
        reported = [payload["node"] for _, name, payload in api.events if name == "preload.bad_peer"]
        assert reported == ["n0"]

    def test_a_peer_that_two_found_wrong_is_told_of_no_more(self, api):
        image = api.alice.active()
        bad, *others = (FakeNode(api, f"n{number}", port=7000 + number) for number in range(4))
        [one] = preload(api, image)
        for node in (bad, *others):
            node.says(one, "fetching", done=1)
        place = {"address": bad.address, "port": bad.port}

        def told(node):
            api.service.preload.agents._swarms._peers.put(one, (-1e9, ()))
            return place in node.job(one)["peers"]

        assert told(others[0])
        for _ in range(3):
            others[0].heartbeat(bad_peers=[{"preload": one, **place}])
        # One alone may be wrong, or lie.
        assert told(others[1])
        others[1].heartbeat(bad_peers=[{"preload": one, **place}])
        assert not told(others[2])
        reported = [payload["reporter"] for _, name, payload in api.events if name == "preload.bad_peer"]
        assert reported == ["n1", "n2"]
