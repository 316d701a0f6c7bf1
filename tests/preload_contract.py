# SPDX-License-Identifier: Apache-2.0
"""What the tables of nodes and preloads promise, on every kind of database; part of ``db_contract``."""

from __future__ import annotations

import dataclasses
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from storelib.api.db import rows
from storelib.api.db.preload_records import Beat, Change, Claim, Group, NewPreload, Node
from storelib.api.db.preload_schema import nodes, piece_layers, preload_nodes
from storelib.api.db.records import NewImage
from storelib.api.errors import AlreadyExists, ImageNotFound, NotAuthenticated, ResourceNotFound, TooManyRequests

BEAT = Beat("192.0.2.1", 7000, 10**12, 0, 10**12, -5)
SECOND = 1_000_000


def new_node(repository, name, group="racks", port=7000):
    blank = (None, None, None, None, False, rows.now(), 0)
    node = Node(str(uuid.uuid4()), name, group, "192.0.2.1", port, "1", *blank)
    return repository.nodes.add(node, "digest of " + name, None)


def new_preload(repository, image_id, group="racks", **more):
    values = {"everyone": False, "nodes": (), "pinned": False, "origin": "request", "project_id": None}
    new = NewPreload(str(uuid.uuid4()), image_id, group, **{**values, **more}, authority="pem", authority_key="key")
    return repository.preloads.add([new], 4)[0]


def new_active(repository, **values):
    image = NewImage(
        id=str(uuid.uuid4()), **{"name": "i", "owner": "me", "visibility": "shared", "status": "queued"} | values
    )
    made = repository.images.create(image)
    return repository.images.transition(
        made.id, from_={"queued"}, to="active", size=9, os_hash_algo="sha512", os_hash_value="ab"
    ).id


class PreloadContract:
    """``repository`` is a fixture of the class that inherits these."""

    def test_a_name_is_one_nodes_until_it_is_removed(self, repository):
        node = new_node(repository, "n1")
        with pytest.raises(AlreadyExists):
            new_node(repository, "n1")
        assert [each.name for each in repository.nodes.list(10)] == ["n1"]
        repository.nodes.remove(node.id)
        assert new_node(repository, "n1").id != node.id
        with pytest.raises(ResourceNotFound):
            repository.nodes.remove(node.id)

    def test_a_token_is_used_as_often_as_it_is_for_by_racers_too(self, repository):
        repository.nodes.enrol("token", "racks", 3, rows.now() + 60 * SECOND)

        def enrol(number):
            node = Node(str(uuid.uuid4()), f"n{number}", "", "a", 1, "", None, None, None, None, False, 0, 0)
            try:
                return repository.nodes.add(node, "secret", "token").group
            except NotAuthenticated:
                return None

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(enrol, range(8)))
        assert sorted(found, key=str) == [None] * 5 + ["racks"] * 3

    def test_preloads_are_of_the_nodes_that_are_and_come(self, repository):
        first, other = new_node(repository, "n1"), new_node(repository, "n2", "others")
        image = new_active(repository)
        of_group = new_preload(repository, image)
        named = new_preload(repository, image, None, nodes=[other.id])
        everywhere = new_preload(repository, image, None, everyone=True)
        late = new_node(repository, "n3")

        def work(node):
            return {each.preload_id for each in repository.nodes.known(node.id).work}

        assert work(first) == work(late) == {of_group.id, everywhere.id}
        assert work(other) == {named.id, everywhere.id}
        assert not repository.preloads.uncovered(0)
        # As if two requests had not seen each other's.
        with repository.database.engine.begin() as connection:
            connection.execute(preload_nodes.delete().where(preload_nodes.c.node_id == late.id))
        tomorrow = rows.now() + 86400 * SECOND
        assert (repository.preloads.uncovered(0), repository.preloads.uncovered(tomorrow)) == (True, False)
        repository.preloads.cover_all(tomorrow)
        assert work(late) == set()
        for _ in range(2):
            repository.preloads.cover_all(1)
        assert work(late) == {of_group.id, everywhere.id}
        assert repository.preloads.end([everywhere.id], "cancelled") == 1
        assert repository.preloads.end([everywhere.id], "cancelled") == 0
        assert work(first) == {of_group.id}

    def test_a_heartbeat_is_noted_and_none_comes_too_fast(self, repository):
        node, image = new_node(repository, "n1"), new_active(repository)
        one = new_preload(repository, image)
        change = Change(one.id, "fetching", 4, 3, 1, "slow", 77)
        assert repository.preloads.beat(node.id, BEAT, 60 * SECOND, [change], []) == []
        with pytest.raises(TooManyRequests):
            repository.preloads.beat(node.id, BEAT, 60 * SECOND, [change], [])
        with pytest.raises(ResourceNotFound):
            repository.preloads.beat(str(uuid.uuid4()), BEAT, 0, [], [])
        known = repository.nodes.known(node.id)
        assert (known.node.free, known.node.skew, known.node.seen_at > 0) == (10**12, -5, True)
        [work] = known.work
        assert (work.state, work.done, work.from_source, work.from_peers, work.reason) == ("fetching", 4, 3, 1, "slow")
        assert (work.image.id, work.image.size, work.has_pieces, len(known.places)) == (image, 9, False, 4)
        [progress] = repository.preloads.progress(one.id, 10)
        assert (progress.node, progress.state, progress.moved_at) == ("n1", "fetching", 77)
        assert repository.preloads.totals([one.id])[one.id] == ({"fetching": 1}, 4, 3, 1)
        assert repository.preloads.total() == ({"fetching": 1}, 4, 3, 1)
        assert repository.nodes.count() == repository.nodes.count(1) == 1

    def test_the_sums_of_nodes_that_lie_are_no_numbers_of_64_bits(self, repository):
        image = new_active(repository)
        one = new_preload(repository, image)
        change = Change(one.id, "fetching", 4, 0, 2**62, None, 77)
        for number in range(3):
            node = new_node(repository, f"n{number}")
            repository.preloads.beat(node.id, BEAT, 0, [change], [])
        assert repository.preloads.totals([one.id])[one.id] == ({"fetching": 3}, 12, 0, 3 * 2**62)
        assert repository.preloads.total().from_peers == 3 * 2**62

    def test_a_heartbeat_is_heard_when_the_clock_was_set_back(self, repository):
        node = new_node(repository, "n1")
        with repository.database.engine.begin() as connection:
            connection.execute(nodes.update().values(seen_at=rows.now() + 3600 * SECOND))
        repository.preloads.beat(node.id, BEAT, SECOND, [], [])
        assert repository.nodes.get(node.id).seen_at < rows.now() + SECOND

    def test_a_place_is_one_nodes_among_racers(self, repository):
        nodes = [new_node(repository, f"n{number}") for number in range(6)]
        one = new_preload(repository, new_active(repository))
        place = repository.nodes.known(nodes[0].id).places[0]
        until = rows.now() + 60 * SECOND

        def claim(node):
            wanted = Claim(place, 5, until, "ticket of " + node.name)
            return repository.preloads.beat(node.id, BEAT, 0, [], [wanted])

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(claim, nodes))
        [held] = [node for node, places in zip(nodes, found, strict=True) if places]
        assert repository.preloads.ticket("ticket of " + held.name) == (held.id, one.image_id)
        assert sum(repository.preloads.ticket("ticket of " + node.name) is not None for node in nodes) == 1
        repository.preloads.release(held.id, [one.id])
        assert repository.preloads.ticket("ticket of " + held.name) is None

    def test_peers_are_those_that_were_seen_and_exchange(self, repository):
        first, second, silent, gone = (
            new_node(repository, f"n{number}", port=port) for number, port in enumerate((1, 2, 0, 4))
        )
        one = new_preload(repository, new_active(repository))
        for node, state in ((first, "fetching"), (second, "ready"), (silent, "ready")):
            change = Change(one.id, state, 1, 0, 0, None, 1)
            repository.preloads.beat(node.id, BEAT._replace(port=node.port), 0, [change], [])
        bad = {("192.0.2.1", 2), ("192.0.2.1", 9)}
        assert repository.preloads.report(one.id, first.id, bad) == ["n1"]
        assert repository.preloads.report(one.id, first.id, bad) == []
        found = repository.preloads.peers(one.id, 1)
        assert [(peer.node_id, peer.state, peer.reports) for peer in found] == [
            (second.id, "ready", 1),
            (first.id, "fetching", 0),
        ]
        assert gone.id not in {peer.node_id for peer in found}

    def test_a_group_keeps_images_by_id_and_by_properties(self, repository):
        by_id = new_active(repository)
        both = new_active(repository, properties={"preload": "yes", "os": "x" * 200}, visibility="public")
        new_active(repository, properties={"preload": "yes"})
        new_active(repository, properties={"preload": "Yes", "os": "x" * 200})
        group = Group("racks", [by_id], {"preload": "yes", "os": "x" * 200})
        assert {image.id for image in repository.preloads.kept(group, 10)} == {by_id, both}
        public = group._replace(visibility=["public"])
        assert [image.id for image in repository.preloads.kept(public, 10)] == [both]
        assert repository.preloads.kept(group._replace(projects=["other"]), 10) == []
        for said in (group, public):
            repository.nodes.put_group(said)
            [found] = repository.nodes.groups()
            assert (list(found.images), found.properties) == ([by_id], group.properties)
        rule = new_preload(repository, both, origin="rule")
        assert repository.preloads.of_rules("racks") == {both: rule.id}
        repository.preloads.end_orphans(["racks"])
        assert repository.preloads.get(rule.id).status == "active"
        repository.preloads.end_orphans([])
        assert repository.preloads.get(rule.id).status == "ended"
        repository.preloads.forget(rows.now() + SECOND, 10)
        with pytest.raises(ResourceNotFound):
            repository.preloads.get(rule.id)

    def test_digests_of_pieces_are_kept_whole(self, repository):
        image = new_active(repository)
        new_preload(repository, image)
        assert repository.pieces.missing(5, 0) == [image]
        repository.pieces.fail(image, "no" * 500)
        assert repository.pieces.missing(5, 0) == []
        assert repository.pieces.missing(5, rows.now() + SECOND) == [image]
        # The clock was set back by a day since.
        ahead = piece_layers.update().values(updated_at=piece_layers.c.updated_at + 86400 * SECOND)
        repository.database.write(lambda connection: connection.execute(ahead))
        assert repository.pieces.missing(5, rows.now() - 600 * SECOND) == [image]
        layer = bytes(range(256)) * 700
        for _ in range(2):
            repository.pieces.put(image, 9, layer)
        assert (repository.pieces.get(image), repository.pieces.missing(5, rows.now())) == ((9, layer), [])
        assert dataclasses.astuple(repository.nodes.known(new_node(repository, "n1").id))[3][0][9] is True

    def test_racers_note_the_same_pieces_and_say_the_same_of_a_group(self, repository):
        image = new_active(repository)
        layer = bytes(range(256)) * 700

        def note(number):
            repository.nodes.put_group(Group(f"racks{number % 2}", [image]))
            repository.pieces.put(image, 9, layer)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(note, range(16), timeout=60))
        assert repository.pieces.get(image) == (9, layer)
        assert [group.name for group in repository.nodes.groups()] == ["racks0", "racks1"]

    def test_nothing_is_noted_of_the_pieces_of_an_image_that_is_gone(self, repository):
        image = new_active(repository)
        repository.images.transition(image, from_={"active"}, to="deleted")
        with pytest.raises(ImageNotFound):
            repository.pieces.put(image, 9, b"x" * 32)
        with pytest.raises(ImageNotFound):
            repository.pieces.fail(image, "gone")
        assert repository.pieces.get_state(image) is None
