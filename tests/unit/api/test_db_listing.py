# SPDX-License-Identifier: Apache-2.0
"""Lists against a plain model of them, on SQLite, whatever is created, changed, shared and deleted before."""

import dataclasses
import shutil
import tempfile
from pathlib import Path

import db_model
import pytest
from db_contract import ids, new_id, walk
from db_lists import NUMBER, PROJECTS, TAG, TEXT, VISIBILITIES, PlanContract, RandomListContract, queries
from empty_database import make_empty_database
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule

from storelib.api.db import Repository, choosing
from storelib.api.db.engine import Database
from storelib.api.db.records import Changes, NewImage
from storelib.api.db.statuses import ALLOWED

LIMITS = choosing.FEW, choosing.WALK, choosing.SHORTEST_WALK
PROPERTIES = st.dictionaries(st.sampled_from(["p", "q"]), st.none() | TEXT, max_size=2)

IMAGES = st.fixed_dictionaries(
    {
        "owner": st.sampled_from(PROJECTS),
        "name": st.none() | TEXT,
        "status": st.sampled_from(["queued", "active", "killed"]),
        "visibility": st.sampled_from(VISIBILITIES),
        "size": st.none() | NUMBER,
        "disk_format": st.sampled_from([None, "raw", "qcow2"]),
        "container_format": st.sampled_from([None, "bare", "ovf"]),
        "min_ram": NUMBER,
        "protected": st.booleans(),
        "os_hidden": st.booleans(),
        "checksum": st.sampled_from([None, "c1", "c2"]),
        "properties": PROPERTIES,
        "tags": st.frozensets(TAG),
    }
)


class Lists(RuleBasedStateMachine):
    """Any sequence of changes, then any list: the database and the model agree, in one page and in many."""

    images = Bundle("images")

    def __init__(self):
        super().__init__()
        self.directory = tempfile.mkdtemp(prefix="storelib-test-")
        make_empty_database(Path(self.directory, "images.sqlite"))
        self.repository = Repository(Database(f"sqlite:///{self.directory}/images.sqlite", sqlite_synchronous=False))
        self.all = []
        self.members = []

    def teardown(self):
        choosing.FEW, choosing.WALK, choosing.SHORTEST_WALK = LIMITS
        self.repository.close()
        shutil.rmtree(self.directory)

    @initialize(values=st.lists(IMAGES, min_size=4, max_size=10))
    def start(self, values):
        for each in values:
            self.create(each)

    @rule(target=images, values=IMAGES)
    def create(self, values):
        image = self.repository.images.create(NewImage(new_id(), **values))
        self.all.append(image.id)
        return image.id

    @rule(image_id=images, name=st.none() | TEXT, owner=st.sampled_from(PROJECTS), properties=PROPERTIES)
    def change(self, image_id, name, owner, properties):
        image = self.repository.images.get(image_id, deleted=True)
        if not image.deleted:
            self.repository.images.update(image, Changes({"name": name, "owner": owner}, properties=properties))

    @rule(image_id=images, data=st.data())
    def next_status(self, image_id, data):
        image = self.repository.images.get(image_id, deleted=True)
        if ALLOWED[image.status]:
            to = data.draw(st.sampled_from(sorted(ALLOWED[image.status])))
            self.repository.images.transition(image_id, from_={image.status}, to=to)

    @rule(image_id=images, status=st.sampled_from(["pending", "accepted", "rejected"]))
    def share(self, image_id, status):
        if not self.repository.images.get(image_id, deleted=True).deleted and not self.repository.members.list_for(
            image_id
        ):
            # Deleted images keep their members for lists, though nobody is told of them.
            self.members.append(self.repository.members.add(image_id, "me", status=status))

    @rule(data=st.data(), limit=st.integers(1, 4), few=st.sampled_from([0, 2, 500]), steps=st.sampled_from([1, 3, 500]))
    def lists(self, data, limit, few, steps):
        choosing.FEW, choosing.WALK, choosing.SHORTEST_WALK = few, 1, steps
        images = [self.repository.images.get(image_id, deleted=True) for image_id in self.all]
        query = data.draw(queries(images))
        wanted = db_model.expected(images, self.members, query)
        assert ids(self.repository.images.list(query)) == wanted
        assert walk(self.repository, dataclasses.replace(query, limit=limit)) == wanted


TestLists = Lists.TestCase
TestLists.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.fixture(scope="class")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("lists") / "images.sqlite"
    make_empty_database(path)
    found = Database(f"sqlite:///{path}", sqlite_synchronous=False)
    yield found
    found.close()


class TestRandomLists(RandomListContract):
    pass


class TestPlans(PlanContract):
    pass
