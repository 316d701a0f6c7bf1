# SPDX-License-Identifier: Apache-2.0
"""How many statements each operation of the API sends to its database: each is a round trip."""

from __future__ import annotations

import pytest
from deployment import Deployment
from sqlalchemy import event


@pytest.fixture
def api(tmp_path):
    deployment = Deployment(tmp_path)
    # The first upload makes this process known to the others.
    deployment.alice.active()
    yield deployment
    deployment.close()


@pytest.fixture
def counted(api):
    """``counted(function)`` returns how many statements and how many transactions that write it takes."""
    statements, commits = [], []
    engine = api.repository.database.engine
    event.listen(engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    event.listen(engine, "commit", commits.append)

    def counted(function):
        del statements[:], commits[:]
        response = function()
        assert response is None or response.status_code < 300, response.text
        return len(statements), len(commits)

    return counted


def test_a_server_that_has_nothing_to_do_asks_little(api, counted):
    lease = api.service.lease
    lease.beat()
    statements, commits = counted(lease.beat)
    # One of them looks for what dead processes were deleting.
    assert (statements <= 6, commits) == (True, 2)


def test_what_clients_do_all_day(api, counted):
    image = api.alice.active()
    assert counted(lambda: api.alice.get(f"/v2/images/{image}")) <= (2, 0)
    assert counted(lambda: api.alice.download(image)) <= (1, 0)
    assert counted(lambda: api.alice.get("/v2/images?limit=100")) <= (3, 0)
    assert counted(lambda: api.alice.get(f"/v2/images/{image}/members")) <= (2, 0)


def test_a_list_costs_the_same_with_ten_images_as_with_two(api, counted):
    api.alice.active(), api.alice.active()
    few = counted(lambda: api.alice.get("/v2/images"))
    for _ in range(8):
        api.alice.active()
    assert counted(lambda: api.alice.get("/v2/images")) == few


def test_what_changes_an_image_is_one_transaction(api, counted):
    image = api.alice.active()
    rename = {"op": "replace", "path": "/name", "value": "new"}
    statements, commits = counted(lambda: api.alice.post("/v2/images", {"name": "new"}))
    assert (statements <= 1, commits) == (True, 1)
    changes = [
        lambda: api.alice.patch(image, rename),
        lambda: api.alice.put(f"/v2/images/{image}/tags/new"),
        lambda: api.alice.post(f"/v2/images/{image}/members", {"member": "beta"}),
        lambda: api.bob.put(f"/v2/images/{image}/members/beta", {"status": "accepted"}),
    ]
    for change in changes:
        statements, commits = counted(change)
        # One of them counts tags or members up to the limit instead of reading them all.
        assert (statements <= 6, commits) == (True, 1)


def test_data_comes_with_two_transactions_and_goes_with_four(api, counted):
    image = api.alice.create()
    statements, commits = counted(lambda: api.alice.upload(image, b"data"))
    assert (statements <= 20, commits) == (True, 2)
    statements, commits = counted(lambda: api.alice.delete(f"/v2/images/{image}"))
    # One of them looks whether another image has the same data, which stays then.
    assert (statements <= 19, commits) == (True, 4)
