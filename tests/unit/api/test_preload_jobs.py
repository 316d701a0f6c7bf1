# SPDX-License-Identifier: Apache-2.0
"""What administrators and services say of nodes: preloads, groups and their rules, and what is told of them."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa
from deployment import Deployment
from preload_nodes import SECTIONS, FakeNode, forget_nodes, preload

from storelib.api.db.preload_schema import image_pieces, piece_layers, preload_nodes, preloads
from storelib.api.errors import ImageNotFound
from storelib.api.service.preload import maintenance
from storelib.preload.pieces import PieceHasher


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


def images_of(node):
    return sorted(job["image"] for job in node.heartbeat()["jobs"])


def tend(api):
    assert api.service.preload.maintenance.look(0.0)


class TestPreloads:
    def test_several_images_are_as_many_preloads(self, api):
        images = [api.alice.active(), api.alice.active()]
        node = FakeNode(api, "n1")
        assert len(preload(api, *images)) == 2
        assert images_of(node) == sorted(images)

    def test_an_image_that_is_deleted_at_that_moment_keeps_no_other_from_it(self, api, monkeypatch):
        image = api.alice.active()

        def gone(context, image_ids):
            raise ImageNotFound("it is gone")

        woken = []
        monkeypatch.setattr(api.service.preload.jobs, "on_new", gone)
        monkeypatch.setattr(api.service.preload.jobs, "wake", lambda: woken.append(True))
        [one] = preload(api, image)
        assert (api.admin.get(f"/v2/preloads/{one}").json["status"], woken) == ("active", [True])

    def test_they_are_told_in_the_order_of_the_images(self, api):
        images = [api.alice.active() for _ in range(6)]
        response = api.admin.post("/v2/preloads", {"images": images, "all": True})
        assert [each["image"] for each in response.json["preloads"]] == images

    def test_novas_body_is_of_all_nodes(self, api):
        image = api.alice.active()
        nodes = [FakeNode(api, "n1", "racks"), FakeNode(api, "n2", "others")]
        response = api.nova.post("/v2/preloads", {"cache": [{"id": api.admin.active(visibility="public")}]})
        assert response.status_code == 201
        assert [len(images_of(node)) for node in nodes] == [1, 1]
        assert api.admin.post("/v2/preloads", {"cache": [{"id": image}], "group": "racks"}).status_code == 201
        assert [len(images_of(node)) for node in nodes] == [2, 1]

    def test_nodes_are_named_by_names_or_ids(self, api):
        image = api.alice.active()
        first, second, third = (FakeNode(api, f"n{number}") for number in range(3))
        preload(api, image, nodes=[first.name, second.id])
        assert [images_of(node) for node in (first, second, third)] == [[image], [image], []]

    def test_an_id_is_no_others_name(self, api):
        image = api.alice.active()
        first = FakeNode(api, "n1")
        other = FakeNode(api, first.id)
        preload(api, image, nodes=[first.id])
        assert [images_of(node) for node in (first, other)] == [[image], []]

    def test_who_joins_later_gets_what_its_group_has(self, api):
        image, everywhere = api.alice.active(), api.alice.active()
        preload(api, image)
        preload(api, everywhere, all=True)
        assert images_of(FakeNode(api, "n1")) == sorted([image, everywhere])
        assert images_of(FakeNode(api, "n2", "others")) == [everywhere]

    def test_a_preload_is_of_nodes_by_their_states(self, api):
        image = api.alice.active(b"x" * 10)
        nodes = [FakeNode(api, f"n{number}") for number in range(3)]
        [one] = preload(api, image)
        nodes[0].says(one, "ready", done=10)
        nodes[1].says(one, "failed", reason="the disk is full")
        shown = api.admin.get(f"/v2/preloads/{one}").json
        assert shown["nodes"] == {"ready": 1, "failed": 1, "queued": 1}
        assert [(each["node"], each["reason"]) for each in shown["states"]] == [
            *(("n0", None), ("n1", "the disk is full"), ("n2", None))
        ]

    def test_pages_of_nodes_of_a_preload_and_of_preloads(self, api):
        images = [api.alice.active() for _ in range(3)]
        nodes = [FakeNode(api, f"n{number}") for number in range(5)]
        ids = preload(api, *images)
        for path, key, name in ((f"/v2/preloads/{ids[0]}", "states", "node"), ("/v2/nodes", "nodes", "name")):
            found, url = [], f"{path}?limit=2"
            while url:
                page = api.admin.get(url).json
                assert len(page[key]) <= 2
                found += [each[name] for each in page[key]]
                url = page.get("next")
            assert found == [node.name for node in nodes]
        found, url = [], "/v2/preloads?limit=2"
        while url:
            page = api.admin.get(url).json
            found += [each["id"] for each in page["preloads"]]
            url = page.get("next")
        assert sorted(found) == sorted(ids)

    def test_a_page_after_a_node_that_was_removed_is_not_the_last(self, api):
        image = api.alice.active()
        first = FakeNode(api, "n1")
        FakeNode(api, "n2")
        [one] = preload(api, image)
        pages = [api.admin.get(f"{path}?limit=1").json["next"] for path in ("/v2/nodes", f"/v2/preloads/{one}")]
        assert api.admin.delete(f"/v2/nodes/{first.id}").status_code == 204
        assert [api.admin.get(page).status_code for page in pages] == [404, 404]

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"images": []},
            {"images": ["x"]},
            {"images": "x", "group": "racks"},
            {"images": [7], "group": "racks"},
            {"cache": ["x"]},
            {"cache": [{}]},
            {"images": ["x"], "cache": []},
            {"images": ["x"], "group": "racks", "all": True},
            {"images": ["x"], "group": "a b"},
            {"images": ["x"], "group": 7},
            {"images": ["x"], "nodes": "n1"},
            {"images": ["x"], "group": "racks", "pinned": "yes"},
            {"images": ["x"] * 101, "group": "racks"},
        ],
    )
    def test_what_cannot_be_is_refused(self, api, body):
        image = api.alice.active()
        if body.get("images") == ["x"]:
            body = {**body, "images": [image]}
        assert api.admin.post("/v2/preloads", body).status_code == 400

    def test_images_and_nodes_have_to_be_there(self, api):
        nothing = "00000000-0000-0000-0000-000000000000"
        assert api.admin.post("/v2/preloads", {"images": [nothing], "group": "racks"}).status_code == 404
        assert api.admin.post("/v2/preloads", {"images": [api.alice.create()], "group": "racks"}).status_code == 400
        assert api.admin.post("/v2/preloads", {"images": [api.alice.active()], "nodes": ["n9"]}).status_code == 404
        assert api.admin.get(f"/v2/preloads/{nothing}").status_code == 404
        assert api.admin.delete(f"/v2/preloads/{nothing}").status_code == 404

    @pytest.mark.parametrize("caller", ["alice", "nobody"])
    def test_users_have_nothing_to_do_with_it(self, api, caller):
        image, user = api.alice.active(), getattr(api, caller)
        node = FakeNode(api, "n1")
        [one] = preload(api, image)
        responses = [
            user.get("/v2/nodes"),
            user.get(f"/v2/nodes/{node.id}"),
            user.delete(f"/v2/nodes/{node.id}"),
            user.post(f"/v2/nodes/{node.id}/drain"),
            user.get("/v2/preloads"),
            user.get(f"/v2/preloads/{one}"),
            user.delete(f"/v2/preloads/{one}"),
            user.post("/v2/preloads", {"images": [image], "group": "racks"}),
            user.get("/v2/preloads/groups"),
            user.put("/v2/preloads/groups/racks", {}),
            user.delete("/v2/preloads/groups/racks"),
        ]
        assert {response.status_code for response in responses} == {403}

    def test_what_is_over_is_forgotten_some_time(self, api):
        [one, other] = preload(api, api.alice.active(), api.alice.active())
        api.admin.delete(f"/v2/preloads/{one}")
        tend(api)
        assert api.admin.get(f"/v2/preloads/{one}").json["status"] == "cancelled"
        with api.repository.database.engine.begin() as connection:
            connection.execute(preloads.update().where(preloads.c.id == one).values(ended_at=1))
        tend(api)
        assert api.admin.get(f"/v2/preloads/{one}").status_code == 404
        assert api.admin.get(f"/v2/preloads/{other}").json["status"] == "active"

    def test_not_all_that_is_over_is_forgotten_at_once(self, api, monkeypatch):
        monkeypatch.setattr(maintenance, "MOST_AT_ONCE", 2)
        images = [api.alice.active() for _ in range(3)]
        for each in preload(api, *images):
            api.admin.delete(f"/v2/preloads/{each}")
        with api.repository.database.engine.begin() as connection:
            connection.execute(preloads.update().values(ended_at=1))
        left = []
        for _ in range(2):
            tend(api)
            left.append(len(api.admin.get("/v2/preloads").json["preloads"]))
        assert left == [1, 0]

    def test_a_preload_of_a_deleted_image_ends(self, api):
        image = api.alice.active()
        [one] = preload(api, image)
        api.alice.delete(f"/v2/images/{image}")
        tend(api)
        assert api.admin.get(f"/v2/preloads/{one}").json["status"] == "ended"


class TestGroups:
    def put(self, api, **said):
        response = api.admin.put("/v2/preloads/groups/racks", said)
        assert response.status_code == 200, response.text

    def test_a_group_keeps_images_on_its_nodes(self, api):
        first, second = api.alice.active(), api.alice.active()
        node, other = FakeNode(api, "n1"), FakeNode(api, "n2", "others")
        self.put(api, images=[first, second])
        [job, _] = node.heartbeat()["jobs"]
        assert job["pinned"] is True
        assert images_of(node) == sorted([first, second])
        assert images_of(other) == []
        assert images_of(FakeNode(api, "n3")) == sorted([first, second])
        self.put(api, images=[second])
        assert images_of(node) == [second]

    def test_many_images_come_round_by_round_the_groups_after_one_another(self, api, monkeypatch):
        monkeypatch.setattr(maintenance, "MOST_AT_ONCE", 2)
        nodes = [FakeNode(api, "n1"), FakeNode(api, "n2", "others")]
        first, second, third = (api.alice.active() for _ in range(3))
        # Only rounds make them.
        monkeypatch.setattr(api.service.preload.jobs, "tend", lambda: None)
        self.put(api, images=[first])
        assert api.admin.put("/v2/preloads/groups/others", {"images": [first, second, third]}).status_code == 200
        kept = []
        for _ in range(3):
            tend(api)
            kept.append(sum(len(images_of(node)) for node in nodes))
        assert kept == [2, 4, 4]

    def test_rules_are_applied_once(self, api):
        self.put(api, images=[api.alice.active()])
        for _ in range(3):
            tend(api)
        assert len(api.admin.get("/v2/preloads").json["preloads"]) == 1

    def test_a_group_that_keeps_too_many_images_is_told_of_once(self, api, monkeypatch, caplog):
        monkeypatch.setattr(maintenance, "MOST_KEPT", 1)
        self.put(api, images=[api.alice.active(), api.alice.active()])
        for _ in range(3):
            tend(api)
        assert [each.message for each in caplog.records if "more are not" in each.message] == [
            "group racks: it keeps 1 images, more are not distributed"
        ]

    def test_images_with_a_property_come_as_soon_as_they_are_active(self, api):
        node = FakeNode(api, "n1")
        self.put(api, properties={"preload": "yes", "os_distro": "debian"})
        waits = api.alice.create(preload="yes", os_distro="debian")
        api.alice.active(preload="yes")
        api.alice.active(preload="yes", os_distro="plan9")
        tend(api)
        assert images_of(node) == []
        api.alice.upload(waits, b"data")
        # What the lease of each process does now and then.
        api.service.preload.maintenance.look(0.0)
        assert images_of(node) == [waits]

    def test_the_lease_looks_after_it(self, api):
        assert api.service.lease.on_beat == api.service.preload.maintenance.look

    def test_only_images_that_its_nodes_may_have_are_kept(self, api):
        node = FakeNode(api, "n1")
        api.alice.active(preload="mine")
        public = api.admin.active(preload="mine", visibility="public")
        self.put(api, properties={"preload": "mine"}, visibility=["public"])
        assert images_of(node) == [public]

    def test_a_deactivated_image_keeps_its_place(self, api):
        image = api.alice.active()
        self.put(api, images=[image])
        [before] = api.admin.get("/v2/preloads").json["preloads"]
        api.admin.post(f"/v2/images/{image}/actions/deactivate")
        tend(api)
        api.admin.post(f"/v2/images/{image}/actions/reactivate")
        tend(api)
        [after] = api.admin.get("/v2/preloads").json["preloads"]
        assert (after["id"], after["status"]) == (before["id"], "active")

    def test_what_a_group_keeps_is_not_cancelled(self, api):
        self.put(api, images=[api.alice.active()])
        [one] = api.admin.get("/v2/preloads").json["preloads"]
        assert api.admin.delete(f"/v2/preloads/{one['id']}").status_code == 409

    def test_a_group_of_which_nothing_is_said_any_more_keeps_nothing(self, api):
        node = FakeNode(api, "n1")
        self.put(api, images=[api.alice.active()])
        assert api.admin.delete("/v2/preloads/groups/racks").status_code == 204
        assert images_of(node) == []
        assert api.admin.get("/v2/preloads/groups/racks").status_code == 404

    def test_what_is_said_is_shown(self, api):
        said = {"images": ["x"], "properties": {"a": "b"}, "visibility": ["public"], "projects": ["p"]}
        self.put(api, **said)
        assert api.admin.get("/v2/preloads/groups/racks").json == {"name": "racks", **said}
        assert api.admin.get("/v2/preloads/groups").json == {"groups": [{"name": "racks", **said}]}

    @pytest.mark.parametrize(
        "wrong",
        [
            {"images": "x"},
            {"images": [7]},
            {"images": ["x"] * 501},
            {"images": ["x\0"]},
            {"properties": []},
            {"properties": {"a": 7}},
            {"properties": {"": "x"}},
            {"properties": {"a": "x" * 256}},
            {"properties": {str(number): "x" for number in range(17)}},
            {"visibility": ["secret"]},
            {"projects": {}},
            {"nodes": []},
        ],
    )
    def test_what_cannot_be_is_refused(self, api, wrong):
        assert api.admin.put("/v2/preloads/groups/racks", wrong).status_code == 400

    @pytest.mark.parametrize("name", ["a%20b", "a%00", "x" * 256])
    def test_what_is_no_name_is_refused(self, api, name):
        assert api.admin.put(f"/v2/preloads/groups/{name}", {}).status_code == 400

    def test_one_of_several_threads_and_processes_tends(self, api):
        image = api.alice.active()
        other = api.another_process()
        services = [api.service, other] * 3
        with api.repository.database.engine.connect() as connection:
            assert connection.execute(sa.select(sa.func.count()).select_from(preloads)).scalar_one() == 0
        self.put(api, images=[image])
        threads = [threading.Thread(target=each.preload.maintenance.look, args=(0.0,)) for each in services]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(api.admin.get("/v2/preloads").json["preloads"]) == 1
        other.stop()

    def test_all_nodes_with_all_preloads_are_looked_at_now_and_then_only(self, api, monkeypatch):
        asked = []
        monkeypatch.setattr(api.repository.preloads, "uncovered", lambda since: asked.append(since))
        monkeypatch.setattr(api.service.preload.maintenance, "_covered", None)
        for _ in range(2):
            tend(api)
        monkeypatch.setattr(api.service.preload.maintenance, "_covered", -1e6)
        tend(api)
        assert [since > 0 for since in asked] == [False, True, False]


class TestPieces:
    def layer(self, api, image):
        found = api.repository.pieces.get(image)
        return None if found is None else found[1]

    def expected(self, data):
        hasher = PieceHasher()
        hasher.update(data)
        return hasher.finish().layer

    def forget(self, api, image):
        with api.repository.database.engine.begin() as connection:
            for table in (image_pieces, piece_layers):
                connection.execute(table.delete().where(table.c.image_id == image))

    def test_they_are_known_when_an_image_was_uploaded(self, api):
        data = bytes(range(256)) * 9000
        assert self.layer(api, api.alice.active(data)) == self.expected(data)

    def test_they_are_computed_later_of_an_image_that_was_there_and_wake_the_nodes(self, api, monkeypatch):
        data = bytes(range(256)) * 9000
        image = api.alice.active(data)
        self.forget(api, image)
        node = FakeNode(api, "n1")
        known = []
        # A node that was woken before they were known would wait until it asks by itself.
        monkeypatch.setattr(api.service.preload.piece_digests, "wake", lambda: known.append(self.layer(api, image)))
        [one] = preload(api, image)
        api.settle()
        assert known == [self.expected(data)]
        assert node.job(one)["torrent_url"]
        assert api.alice.show(image)["status"] == "active"

    def test_a_node_that_exchanges_waits_for_them(self, api, monkeypatch):
        image = api.alice.active()
        self.forget(api, image)
        monkeypatch.setattr(api.service.preload.piece_digests, "begin", lambda image_ids: None)
        node, alone = FakeNode(api, "n1"), FakeNode(api, "n2", port=0)
        [one] = preload(api, image)
        assert (node.job(one)["torrent_url"], node.job(one)["source"]) == (None, None)
        assert alone.job(one)["source"] is not None

    def test_data_that_was_changed_is_not_distributed(self, api):
        image = api.alice.active(b"the data")
        self.forget(api, image)
        [path] = [each for each in (api.directory / "images").rglob("*") if each.name == image]
        path.write_bytes(b"THE DATA")
        node = FakeNode(api, "n1")
        [one] = preload(api, image)
        api.settle()
        assert api.repository.pieces.get_state(image) == "failed"
        assert node.job(one)["torrent_url"] is None
        [state] = api.admin.get(f"/v2/preloads/{one}").json["states"]
        assert state["state"] == "queued"
        assert state["reason"].startswith("the digests of its parts cannot be computed: ")
        # It is not tried again at once.
        assert api.repository.pieces.missing(10, 0) == []

    def test_many_pieces_are_kept_in_several_rows(self, api):
        image = api.alice.active()
        layer = bytes(range(256)) * 1000
        api.repository.pieces.put(image, 8000 * 1024**2, layer)
        assert api.repository.pieces.get(image) == (8000 * 1024**2, layer)
        with api.repository.database.engine.connect() as connection:
            count = sa.select(sa.func.count()).where(image_pieces.c.image_id == image)
            assert connection.execute(count).scalar_one() == 4

    def test_an_empty_image_has_none_and_no_source(self, api):
        image = api.alice.active(b"")
        node = FakeNode(api, "n1")
        [one] = preload(api, image)
        job = node.job(one)
        assert (job["size"], job["torrent_url"], job["source"]) == (0, None, None)


class TestTold:
    def test_metrics_tell_of_nodes_and_bytes(self, api):
        image = api.alice.active(b"x" * 100)
        nodes = [FakeNode(api, f"n{number}") for number in range(2)]
        [one] = preload(api, image)
        nodes[0].says(one, "ready", done=100, from_source=60, from_peers=40)
        response = api.caller(None)._client.simulate_get("/metrics").text
        for line in (
            'storelib_preload_nodes{state="ready"} 1.0',
            'storelib_preload_nodes{state="queued"} 1.0',
            'storelib_preload_bytes{origin="source"} 60.0',
            'storelib_preload_bytes{origin="peers"} 40.0',
            'storelib_nodes{which="registered"} 2.0',
        ):
            assert line in response
        assert nodes[0].secret not in response

    def test_nodes_that_lie_together_keep_nobody_from_the_sums(self, api):
        image = api.alice.active(b"x" * 100)
        for number in range(3):
            FakeNode(api, f"n{number}")
        [one] = preload(api, image)
        with api.repository.database.engine.begin() as connection:
            # As thousands that say the most they may.
            connection.execute(preload_nodes.update().values(from_peers=2**62))
        assert api.admin.get("/v2/preloads").json["preloads"][0]["from_peers"] == 3 * 2**62
        assert api.admin.get(f"/v2/preloads/{one}").status_code == 200
        response = api.caller(None)._client.simulate_get("/metrics")
        assert (response.status_code, 'storelib_preload_bytes{origin="peers"}' in response.text) == (200, True)

    def test_what_happens_is_notified(self, api):
        image = api.alice.active()
        node = FakeNode(api, "n1")
        [one] = preload(api, image)
        node.says(one, "failed", reason="the disk is full")
        api.admin.delete(f"/v2/preloads/{one}")
        api.admin.delete(f"/v2/nodes/{node.id}")
        names = [name for _, name, _ in api.events if name.startswith("preload.")]
        assert [name.removeprefix("preload.") for name in names] == [
            *("node.create", "create", "failed", "delete", "node.delete")
        ]
        [failed] = [payload for _, name, payload in api.events if name == "preload.failed"]
        assert failed == {"preload": one, "image": image, "node": "n1", "reason": "the disk is full"}

    def test_nodes_are_woken_when_there_is_something_new(self, api, monkeypatch):
        woken = []
        monkeypatch.setattr(api.service.preload.jobs, "wake", lambda: woken.append(1))
        [one] = preload(api, api.alice.active())
        assert woken == [1]
        api.admin.delete(f"/v2/preloads/{one}")
        assert woken == [1, 1]

    def test_with_a_bus_they_are_told_by_it(self, tmp_path, monkeypatch):
        from storelib.api.service import preload as package

        topics = []

        class Bus:
            def wake(self):
                topics.append("woken")

        monkeypatch.setattr(package, "bus_from", lambda conf, topic: topics.append(topic) or Bus())
        api = Deployment(tmp_path, SECTIONS)
        preload(api, api.alice.active())
        assert topics == ["storelib-nodes", "woken"]
        api.close()
