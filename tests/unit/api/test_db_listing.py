# SPDX-License-Identifier: Apache-2.0
"""Lists against a plain model of them, on SQLite, whatever is created, changed, shared and deleted before."""

import dataclasses
import datetime
import shutil
import tempfile

import db_model
from db_contract import ids, new_id, walk
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule

from storelib.api.db import Repository, listing
from storelib.api.db.engine import Database
from storelib.api.db.migrate import prepare
from storelib.api.db.records import Caller, Changes, NewImage, Query, Range, SortKey, TimeFilter
from storelib.api.db.statuses import ALLOWED

PROJECTS = ("me", "other", None)
VISIBILITIES = ("public", "private", "shared", "community")
TEXT = st.sampled_from(["", "a", "A", "a ", "b", "ä", "\U0001f600", "\uffff", "aa"])
NUMBER = st.sampled_from([0, 1, 2, 2**40])
TAG = st.sampled_from(["x", "y", "X"])
PROPERTIES = st.dictionaries(st.sampled_from(["p", "q"]), st.none() | TEXT, max_size=2)
SORT_FIELDS = ("name", "status", "container_format", "disk_format", "size", "id", "created_at", "updated_at")

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
SORTS = st.lists(st.builds(SortKey, st.sampled_from(SORT_FIELDS), st.sampled_from(["asc", "desc"])), max_size=3).map(
    tuple
)


def one_of(*values):
    return st.none() | st.lists(st.sampled_from(values), max_size=2).map(tuple)


def times(moments):
    """Filters around the times of images, whole seconds and parts of them."""
    near = st.sampled_from(moments or [datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)])
    value = st.builds(lambda moment, whole: moment.replace(microsecond=0) if whole else moment, near, st.booleans())
    operators = st.sampled_from(["gt", "gte", "lt", "lte", "eq", "neq"])
    return st.builds(TimeFilter, st.sampled_from(["created_at", "updated_at"]), operators, value)


def queries(images):
    usually_none = st.none() | st.none()
    moments = [image.updated_at for image in images]
    ranges = st.builds(Range, st.sampled_from(["size", "min_ram"]), st.none() | NUMBER, st.none() | NUMBER)
    return st.builds(
        Query,
        caller=st.builds(Caller, st.sampled_from([*PROJECTS, "third"]), st.booleans()),
        sort=SORTS,
        ids=usually_none | st.lists(st.sampled_from([image.id for image in images] or ["x"]), max_size=3).map(tuple),
        names=usually_none | st.lists(TEXT, max_size=2).map(tuple),
        statuses=one_of("queued", "active", "saving", "deleted"),
        disk_formats=one_of("raw", "qcow2"),
        container_formats=one_of("bare", "ovf"),
        visibility=st.sampled_from([None, "all", *VISIBILITIES]),
        is_public=usually_none | st.booleans(),
        member_status=st.sampled_from(["pending", "accepted", "rejected", "all"]),
        owner=usually_none | st.sampled_from(["me", "other"]),
        protected=usually_none | st.booleans(),
        os_hidden=usually_none | st.booleans(),
        checksum=usually_none | st.sampled_from(["c1", "c3"]),
        tags=st.frozensets(TAG, max_size=2),
        properties=st.just({}) | st.dictionaries(st.sampled_from(["p", "q"]), TEXT, max_size=2),
        ranges=st.just(()) | st.tuples(ranges),
        times=st.just(()) | st.tuples(times(moments)),
        changes_since=usually_none | st.sampled_from(moments or [None]),
        deleted=st.sampled_from([False, None, True]),
    )


class Lists(RuleBasedStateMachine):
    """Any sequence of changes, then any list: the database and the model agree, in one page and in many."""

    images = Bundle("images")

    def __init__(self):
        super().__init__()
        self.directory = tempfile.mkdtemp(prefix="storelib-test-")
        self.repository = Repository(Database(f"sqlite:///{self.directory}/images.sqlite", sqlite_synchronous=False))
        prepare(self.repository.database)
        self.all = []
        self.members = []

    def teardown(self):
        listing._FEW = 500
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

    @rule(data=st.data(), limit=st.integers(1, 4), few=st.sampled_from([0, 2, 500]))
    def lists(self, data, limit, few):
        listing._FEW = few
        images = [self.repository.images.get(image_id, deleted=True) for image_id in self.all]
        query = data.draw(queries(images))
        wanted = db_model.expected(images, self.members, query)
        assert ids(self.repository.images.list(query)) == wanted
        assert walk(self.repository, dataclasses.replace(query, limit=limit)) == wanted


TestLists = Lists.TestCase
TestLists.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
