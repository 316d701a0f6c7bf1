# SPDX-License-Identifier: Apache-2.0
"""What the repository promises on every database: subclasses say where the database is."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import itertools
import multiprocessing
import threading
import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor, wait

import db_model
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from preload_contract import PreloadContract

from storelib.api.db import Repository, choosing, holdings, metadefs, rows, task_lists
from storelib.api.db.cached import Hits, NewCached
from storelib.api.db.engine import Database
from storelib.api.db.imported.images import COLUMNS, ImageEntries, ImageEntry
from storelib.api.db.migrate import VERSION_TABLE, Version, check, sync, version
from storelib.api.db.records import (
    Caller,
    Changes,
    ImageLocation,
    NewImage,
    NewLocation,
    Query,
    Range,
    SortKey,
    Task,
    TaskEnd,
    TaskQuery,
    Ticket,
    TimeFilter,
)
from storelib.api.db.schema import image_locations, indexes_of, metadata, rounds, tasks
from storelib.api.db.statuses import ALLOWED, STATUSES
from storelib.api.db.tasks import NewTask
from storelib.api.errors import (
    AlreadyExists,
    BadRequest,
    Conflict,
    ImageNotFound,
    InvalidMarker,
    LimitExceeded,
    LocationNotFound,
    MemberNotFound,
    Protected,
    QuotaExceeded,
    ResourceNotFound,
    StaleImage,
    StatusConflict,
    TagNotFound,
    UploadLost,
)

ADMIN = Caller(None, is_admin=True)
ME, OTHER = Caller("me"), Caller("other")
FAST = NewLocation("file:///srv/images/1", {"store": "fast"})
COLD = NewLocation("s3://bucket/1", {"store": "cold"})
LOCATED = NewImage("", owner="me", status="active", size=1, locations=(FAST,))
#: Text that some database would take for something else: case, trailing spaces, other alphabets, beyond the BMP.
LOOK_ALIKES = ("a", "A", "a ", "ä", "a\u0308", "\uff41", "\U0001f600", "", "%", "_", "a'b\"c\\d")


def new_id() -> str:
    return str(uuid.uuid4())


def make(repository: Repository, **values):
    """A new image, owned by ``me``."""
    return repository.images.create(NewImage(**{"id": new_id(), "owner": "me", **values}))


def make_active(repository: Repository, *locations: NewLocation, **values):
    """An active image with these locations."""
    return make(repository, **{"status": "active", "size": 5, "locations": locations or (FAST,), **values})


def copy(repository: Repository, image_id: str, location: NewLocation):
    """The image with its data in one more place, as a copy to another store records it."""
    process = repository.processes.join("host", 1)
    repository.uploads.begin(image_id, process.id, from_={"active"}, to=None)
    try:
        return repository.uploads.finish(image_id, process.id, to=None, locations=[location])
    finally:
        repository.uploads.forget(image_id, process.id)
        repository.processes.leave(process.id)


SECOND, DAY = 1_000_000, 24 * 3600 * 1_000_000
TASK_KEYS = ("created_at", "expires_at", "id", "status", "type", "updated_at")


def make_task(repository: Repository, *, readable: bool = True, **values) -> Task | str:
    """A task of an image of its own, or only its id if it cannot be read; times are in days since 1970."""
    image, task_id = make(repository).id, new_id()
    repository.tasks.begin(NewTask(task_id, values.pop("type", "api_image_import"), {"some": ["input"]}, image), {})
    times = {name: values.pop(name) * DAY for name in TASK_KEYS if name.endswith("_at") and name in values}
    if values or times:
        change = tasks.update().where(tasks.c.id == task_id).values(**values, **times)
        repository.database.write(lambda connection: connection.execute(change))
    return repository.tasks.get(task_id) if readable else task_id


def ids(page) -> list[str]:
    return [image.id for image in page.images]


class RepositoryContract(PreloadContract):
    """Subclasses have a fixture ``database``: an empty one with all tables."""

    @pytest.fixture
    def repository(self, database: Database) -> Repository:
        return Repository(database)

    # -- creating and reading

    def test_everything_that_is_created_is_read_back(self, repository):
        image = NewImage(
            new_id(),
            owner="me",
            name="Ubuntu \u2013 \U0001f600",
            status="active",
            visibility="community",
            size=2**62,
            virtual_size=2**40,
            checksum="c" * 32,
            os_hash_algo="sha512",
            os_hash_value="f" * 128,
            disk_format="qcow2",
            container_format="bare",
            min_disk=10,
            min_ram=512,
            protected=True,
            os_hidden=True,
            properties={"os_distro": "ubuntu", "empty": "", "unset": None},
            tags=frozenset({"x", "y"}),
            locations=(FAST, COLD),
        )
        created = repository.images.create(image)
        read = repository.images.get(image.id)
        assert created == read
        for field in dataclasses.fields(image):
            if field.name not in ("tags", "locations"):
                assert getattr(read, field.name) == getattr(image, field.name), field.name
        assert read.tags == ("x", "y")
        assert [(each.uri, each.metadata, each.status) for each in read.locations] == [
            (FAST.uri, FAST.metadata, "active"),
            (COLD.uri, COLD.metadata, "active"),
        ]
        assert not read.deleted
        assert read.deleted_at is None

    def test_times_are_those_of_the_creation(self, repository):
        before = datetime.datetime.now(datetime.timezone.utc)
        image = repository.images.get(make(repository).id)
        after = datetime.datetime.now(datetime.timezone.utc)
        assert before.replace(microsecond=before.microsecond) <= image.created_at <= after
        assert image.updated_at == image.created_at

    @pytest.mark.parametrize("text", LOOK_ALIKES)
    def test_text_is_kept_as_it_is(self, repository, text):
        image = make(repository, name=text, properties={f"p{text}": text}, tags=frozenset({text}))
        read = repository.images.get(image.id)
        assert (read.name, read.properties, read.tags) == (text, {f"p{text}": text}, (text,))

    def test_text_that_looks_alike_is_not_the_same(self, repository):
        image = make(repository, tags=frozenset(LOOK_ALIKES), properties=dict.fromkeys(LOOK_ALIKES, "v"))
        read = repository.images.get(image.id)
        assert set(read.tags) == set(LOOK_ALIKES)
        assert set(read.properties) == set(LOOK_ALIKES)

    @pytest.mark.parametrize("text", LOOK_ALIKES)
    def test_filters_find_exactly_the_same_text(self, repository, text):
        made = {
            each: make(repository, name=each, tags=frozenset({each}), properties={"p": each}) for each in LOOK_ALIKES
        }
        wanted = [made[text].id]
        assert ids(repository.images.list(Query(ME, names=(text,)))) == wanted
        assert ids(repository.images.list(Query(ME, tags=frozenset({text})))) == wanted
        assert ids(repository.images.list(Query(ME, properties={"p": text}))) == wanted

    def test_long_property_values_are_kept_and_found(self, repository):
        one = make(repository, properties={"p": "x" * 60000 + "1"})
        make(repository, properties={"p": "x" * 60000 + "2"})
        assert ids(repository.images.list(Query(ME, properties=one.properties))) == [one.id]

    @pytest.mark.parametrize(
        "values",
        [
            {"name": "x" * 256},
            {"name": "a\0b"},
            {"name": "\ud800"},
            {"checksum": "c" * 65},
            {"size": 2**63},
            {"min_ram": 2**63},
            {"properties": {"p": "ä" * 40000}},
            {"properties": {"p" * 256: "v"}},
            {"properties": {"p": "\0"}},
            {"tags": frozenset({"t" * 256})},
            {"locations": (NewLocation("file:///a\0"),)},
            {"locations": (NewLocation("file:///a", {"x": object()}),)},
        ],
        ids="-".join,
    )
    def test_values_that_do_not_fit_are_refused_and_nothing_is_created(self, repository, values):
        image_id = new_id()
        with pytest.raises(BadRequest):
            make(repository, id=image_id, **values)
        with pytest.raises(ImageNotFound):
            repository.images.get(image_id)

    def test_an_id_is_used_once(self, repository):
        image = make(repository, name="first")
        with pytest.raises(AlreadyExists, match=image.id):
            make(repository, id=image.id, name="second")
        assert repository.images.get(image.id).name == "first"

    def test_the_id_of_a_deleted_image_is_not_used_again(self, repository):
        image = make(repository)
        repository.images.transition(image.id, from_={"queued"}, to="deleted")
        with pytest.raises(AlreadyExists):
            make(repository, id=image.id)

    def test_unknown_and_deleted_images_are_not_found(self, repository):
        with pytest.raises(ImageNotFound):
            repository.images.get(new_id())
        image = make(repository)
        repository.images.transition(image.id, from_={"queued"}, to="deleted")
        with pytest.raises(ImageNotFound):
            repository.images.get(image.id)
        assert repository.images.get(image.id, deleted=True).deleted

    # -- changing

    def test_update_changes_what_is_given_and_nothing_else(self, repository):
        image = make(repository, name="old", min_ram=5, properties={"a": "1", "b": "2", "c": "3"}, tags=frozenset("xy"))
        changed = repository.images.update(
            image,
            Changes(
                {"name": "new", "protected": True}, properties={"a": "1", "b": "9", "d": None}, tags=frozenset("yz")
            ),
        )
        assert changed == repository.images.get(image.id)
        assert (changed.name, changed.protected, changed.min_ram) == ("new", True, 5)
        assert changed.properties == {"a": "1", "b": "9", "d": None}
        assert changed.tags == ("y", "z")
        assert changed.updated_at > image.updated_at
        assert changed.created_at == image.created_at

    def test_a_property_goes_from_unset_to_set_and_back(self, repository):
        image = make(repository, properties={"p": None})
        image = repository.images.update(image, Changes(properties={"p": "v"}))
        assert image.properties == {"p": "v"}
        image = repository.images.update(image, Changes(properties={"p": None}))
        assert image.properties == {"p": None}

    def test_update_of_what_somebody_else_changed_is_refused(self, repository):
        image = make(repository)
        repository.images.update(image, Changes({"name": "theirs"}))
        with pytest.raises(StaleImage):
            repository.images.update(image, Changes({"name": "mine"}))
        assert repository.images.get(image.id).name == "theirs"

    @pytest.mark.parametrize("change", ["tag", "property", "status", "location"])
    def test_every_change_of_an_image_makes_what_was_read_stale(self, repository, change):
        image = make_active(repository)
        match change:
            case "tag":
                repository.images.add_tag(image.id, "t")
            case "property":
                repository.images.set_properties(image.id, {"p": "v"})
            case "status":
                repository.images.transition(image.id, from_={"active"}, to="deactivated")
            case "location":
                copy(repository, image.id, COLD)
        with pytest.raises(StaleImage):
            repository.images.update(image, Changes({"name": "mine"}))

    def test_update_of_a_deleted_image_is_not_found(self, repository):
        image = make(repository)
        repository.images.transition(image.id, from_={"queued"}, to="deleted")
        with pytest.raises(ImageNotFound):
            repository.images.update(image, Changes({"name": "x"}))

    def test_a_refused_update_changes_nothing(self, repository):
        image = make(repository, name="old", tags=frozenset("x"))
        with pytest.raises(BadRequest):
            repository.images.update(image, Changes({"name": "new"}, tags=frozenset({"y", "t" * 256})))
        assert repository.images.get(image.id) == image

    def test_what_must_not_be_changed_is_a_mistake_of_the_program(self, repository):
        image = make(repository)
        for name in ("id", "status", "version", "created_at", "deleted", "nonsense"):
            with pytest.raises(ValueError, match=name):
                repository.images.update(image, Changes({name: "x"}))

    def test_update_may_change_the_status_with_locations(self, repository):
        image = make(repository)
        active = repository.images.update(image, Changes({"size": 7}, locations=(FAST,), status="active"))
        assert (active.status, active.size, [each.uri for each in active.locations]) == ("active", 7, [FAST.uri])
        with pytest.raises(StatusConflict):
            repository.images.update(active, Changes(status="saving"))

    def test_concurrent_updates_lose_nothing(self, repository):
        image = make(repository)

        def add(number: int) -> None:
            while True:
                read = repository.images.get(image.id)
                try:
                    repository.images.update(read, Changes(properties={**read.properties, f"p{number}": "v"}))
                except StaleImage:
                    continue
                return

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(add, range(24)))
        assert set(repository.images.get(image.id).properties) == {f"p{number}" for number in range(24)}

    # -- statuses

    def test_a_transition_sets_status_and_values(self, repository):
        image = make(repository)
        saving = repository.images.transition(image.id, from_={"queued"}, to="saving", size=5)
        assert (saving.status, saving.size) == ("saving", 5)
        assert saving == repository.images.get(image.id)

    def test_a_transition_from_another_status_says_which(self, repository):
        image = make(repository)
        with pytest.raises(StatusConflict) as caught:
            repository.images.transition(image.id, from_={"saving", "importing"}, to="active")
        assert caught.value.status == "queued"

    def test_a_transition_of_an_unknown_image_is_not_found(self, repository):
        with pytest.raises(ImageNotFound):
            repository.images.transition(new_id(), from_={"queued"}, to="saving")

    @pytest.mark.parametrize("from_", STATUSES)
    def test_only_documented_transitions_are_possible(self, repository, from_):
        for to in STATUSES:
            image = make(repository, status=from_)
            if to in ALLOWED[from_]:
                assert repository.images.transition(image.id, from_={from_}, to=to).status == to
            else:
                with pytest.raises(ValueError, match="never goes"):
                    repository.images.transition(image.id, from_={from_}, to=to)
                assert repository.images.get(image.id, deleted=True).status == from_

    def test_going_back_to_queued_forgets_the_data(self, repository):
        data = {"size": 5, "virtual_size": 6, "checksum": "c", "os_hash_algo": "md5", "os_hash_value": "v"}
        image = make(repository, status="saving", **data)
        queued = repository.images.transition(image.id, from_={"saving"}, to="queued")
        assert [getattr(queued, name) for name in data] == [None] * 5

    def test_pending_delete_hides_the_locations_and_gives_them_back(self, repository):
        image = make_active(repository, FAST, COLD)
        hidden = repository.images.transition(image.id, from_={"active"}, to="pending_delete")
        assert hidden.locations == ()
        assert {each.uri for each in repository.locations.pending_for(image.id)} == {FAST.uri, COLD.uri}
        back = repository.images.transition(image.id, from_={"pending_delete"}, to="active")
        assert [each.uri for each in back.locations] == [FAST.uri, COLD.uri]

    def test_a_location_dropped_before_does_not_come_back(self, repository):
        image = make_active(repository, FAST, COLD)
        repository.locations.drop(image.id, image.locations[0].id)
        repository.images.transition(image.id, from_={"active"}, to="pending_delete")
        back = repository.images.transition(image.id, from_={"pending_delete"}, to="active")
        assert [each.uri for each in back.locations] == [COLD.uri]

    def test_deleting_leaves_the_locations_to_be_deleted(self, repository):
        image = make_active(repository, tags=frozenset("t"), properties={"p": "v"})
        deleted = repository.images.transition(image.id, from_={"active"}, to="deleted")
        assert (deleted.deleted, deleted.locations, deleted.tags) == (True, (), ("t",))
        assert deleted.deleted_at is not None
        assert [(image_id, each.uri) for image_id, each in repository.locations.pending()] == [(image.id, FAST.uri)]

    def test_of_racing_threads_one_makes_the_transition(self, repository):
        for _ in range(5):
            image = make(repository)
            start = threading.Barrier(8)

            def race(_, image_id=image.id, start=start) -> bool:
                start.wait()
                try:
                    repository.images.transition(image_id, from_={"queued"}, to="saving")
                except StatusConflict:
                    return False
                return True

            with ThreadPoolExecutor(8) as pool:
                assert sum(pool.map(race, range(8))) == 1

    def test_of_racing_processes_one_makes_the_transition(self, repository, database):
        images = [make(repository).id for _ in range(20)]
        won = in_processes(3, race_for, database, images)
        assert sorted(itertools.chain(*won)) == sorted(images)
        assert all(repository.images.get(image_id).status == "saving" for image_id in images)

    def test_processes_writing_the_same_images_lose_nothing(self, repository, database):
        images = [make(repository).id for _ in range(3)]
        in_processes(3, tag_all, database, images)
        for image_id in images:
            assert len(repository.images.get(image_id).tags) == 30

    # -- tags and properties

    def test_tags_are_added_once_and_removed(self, repository):
        image = make(repository)
        repository.images.add_tag(image.id, "b")
        repository.images.add_tag(image.id, "a")
        repository.images.add_tag(image.id, "a")
        assert repository.images.get(image.id).tags == ("a", "b")
        repository.images.remove_tag(image.id, "a")
        assert repository.images.get(image.id).tags == ("b",)
        with pytest.raises(TagNotFound):
            repository.images.remove_tag(image.id, "a")

    def test_tags_are_limited(self, repository):
        image = make(repository, tags=frozenset("xy"))
        with pytest.raises(LimitExceeded):
            repository.images.add_tag(image.id, "z", limit=2)
        repository.images.add_tag(image.id, "x", limit=2)
        assert repository.images.get(image.id).tags == ("x", "y")

    def test_the_limit_of_tags_holds_for_racers(self, repository):
        image = make(repository)

        def add(number: int) -> bool:
            try:
                repository.images.add_tag(image.id, f"t{number}", limit=5)
            except LimitExceeded:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(add, range(16))) == 5
        assert len(repository.images.get(image.id).tags) == 5

    def test_single_properties_are_set_and_removed(self, repository):
        image = make(repository, properties={"a": "1", "b": "2", "c": "3"})
        repository.images.set_properties(image.id, {"a": "9", "d": "4"}, remove=("b", "nonsense"))
        assert repository.images.get(image.id).properties == {"a": "9", "c": "3", "d": "4"}

    def test_nothing_is_tagged_that_is_not_there(self, repository):
        with pytest.raises(ImageNotFound):
            repository.images.add_tag(new_id(), "t")
        with pytest.raises(ImageNotFound):
            repository.images.set_properties(new_id(), {"p": "v"})

    # -- members

    def test_members_are_added_listed_and_removed(self, repository):
        image = make(repository)
        first = repository.members.add(image.id, "p1")
        second = repository.members.add(image.id, "p2", can_share=True)
        assert (first.status, first.can_share, second.can_share) == ("pending", False, True)
        assert repository.members.list_for(image.id) == [first, second]
        assert repository.members.get(image.id, "p2") == second
        repository.members.remove(image.id, "p1")
        assert repository.members.list_for(image.id) == [second]

    def test_a_member_is_added_once(self, repository):
        image = make(repository)
        repository.members.add(image.id, "p1")
        with pytest.raises(AlreadyExists):
            repository.members.add(image.id, "p1", can_share=True)
        assert not repository.members.get(image.id, "p1").can_share

    def test_members_are_limited(self, repository):
        image = make(repository)
        repository.members.add(image.id, "p1", limit=1)
        with pytest.raises(LimitExceeded):
            repository.members.add(image.id, "p2", limit=1)

    def test_members_accept_and_reject(self, repository):
        image = make(repository)
        repository.members.add(image.id, "p1", can_share=True)
        accepted = repository.members.update(image.id, "p1", status="accepted")
        assert (accepted.status, accepted.can_share) == ("accepted", True)
        assert repository.members.update(image.id, "p1", can_share=False).status == "accepted"

    def test_what_is_no_member_is_not_found(self, repository):
        image = make(repository)
        for call in (repository.members.get, repository.members.update, repository.members.remove):
            for image_id in (image.id, new_id()):
                with pytest.raises(MemberNotFound):
                    call(image_id, "p1")
        with pytest.raises(ImageNotFound):
            repository.members.add(new_id(), "p1")

    def test_members_are_replaced_as_in_v1(self, repository):
        image = make(repository)
        for member in ("stays", "goes", "changes"):
            repository.members.add(image.id, member, status="accepted")
        found = repository.members.replace(image.id, {"stays": None, "changes": True, "comes": True, "plain": None})
        assert {each.member: (each.can_share, each.status) for each in found} == {
            "stays": (False, "accepted"),
            "changes": (True, "accepted"),
            "comes": (True, "pending"),
            "plain": (False, "pending"),
        }

    def test_what_is_shared_with_a_project_is_known(self, repository):
        one, two, three = sorted((make(repository) for _ in range(3)), key=lambda image: image.id)
        for image in (one, two, three):
            repository.members.add(image.id, "p1")
        repository.members.add(one.id, "p2")
        repository.images.transition(two.id, from_={"queued"}, to="deleted")
        assert [each.id for each in repository.members.shared_with("p1", ADMIN)] == [one.id, three.id]
        assert repository.members.list_for(two.id) == []

    def test_members_are_listed_in_pages(self, repository, monkeypatch):
        image = make(repository)
        for member, moment in (("c", 1), ("b", 2), ("a", 2), ("d", 3)):
            monkeypatch.setattr("storelib.api.db.members.now", lambda moment=moment: moment)
            repository.members.add(image.id, member)
        known = repository.members.list_for(image.id)
        assert [each.member for each in known] == ["c", "a", "b", "d"]
        assert repository.members.list_for(image.id, limit=2) == known[:2]
        for number, each in enumerate(known):
            assert repository.members.list_for(image.id, after=each, limit=2) == known[number + 1 : number + 3]

    def test_shared_images_are_listed_in_pages(self, repository):
        made = sorted((make(repository) for _ in range(5)), key=lambda image: image.id)
        for image in made:
            repository.members.add(image.id, "p1", can_share=image is made[0])
        wanted = [image.id for image in made]
        first = repository.members.shared_with("p1", ADMIN, limit=2)
        assert [each.id for each in first] == wanted[:2]
        assert [each.membership.can_share for each in first] == [True, False]
        assert [(each.owner, each.visibility, each.status) for each in first] == [("me", "shared", "queued")] * 2
        assert [each.id for each in repository.members.shared_with("p1", ADMIN, after=wanted[1])] == wanted[2:]

    def test_shared_images_are_those_the_caller_may_know_of(self, repository):
        made = {
            (owner, visibility): make(repository, owner=owner, visibility=visibility).id
            for owner in ("me", "other", None)
            for visibility in ("public", "community", "shared", "private")
        }
        for image_id in made.values():
            repository.members.add(image_id, "p1")
        repository.members.add(made["other", "shared"], "guest")
        repository.members.add(made["other", "private"], "guest")
        for caller, known in (
            (ADMIN, made),
            (Caller(None), [key for key in made if key[1] in ("public", "community")]),
            (ME, [key for key in made if key[1] in ("public", "community") or key[0] == "me"]),
            (Caller("guest"), [key for key in made if key[1] in ("public", "community") or key == ("other", "shared")]),
            (Caller("p1"), [key for key in made if key[1] != "private"]),
        ):
            found = [each.id for each in repository.members.shared_with("p1", caller)]
            assert found == sorted(made[key] for key in known), caller

    # -- locations

    def test_locations_are_appended_in_order(self, repository):
        image = make_active(repository, FAST)
        added = copy(repository, image.id, COLD).locations[1]
        assert (added.uri, added.metadata) == (COLD.uri, COLD.metadata)
        assert repository.images.get(image.id).locations[1] == added
        with pytest.raises(AlreadyExists):
            copy(repository, image.id, COLD)

    def test_locations_are_replaced_moved_and_inserted(self, repository):
        image = make_active(repository, FAST, COLD)
        fast, cold = image.locations
        third = NewLocation("rbd://pool/1", {"store": "third"})
        moved = ImageLocation(cold.uri, {"store": "cold", "more": 1}, cold.id)
        changed = repository.images.update(image, Changes(locations=(moved, third, fast)))
        assert [(each.uri, each.metadata) for each in changed.locations] == [
            (cold.uri, moved.metadata),
            (third.uri, third.metadata),
            (fast.uri, fast.metadata),
        ]
        assert (changed.locations[0].id, changed.locations[2].id) == (cold.id, fast.id)

    def test_locations_left_out_are_to_be_deleted(self, repository):
        image = make_active(repository, FAST, COLD)
        changed = repository.images.update(image, Changes(locations=image.locations[1:]))
        assert [each.uri for each in changed.locations] == [COLD.uri]
        assert [each.uri for each in repository.locations.pending_for(image.id)] == [FAST.uri]

    def test_an_image_never_has_the_same_location_twice(self, repository):
        image = make_active(repository, FAST)
        with pytest.raises(AlreadyExists):
            repository.images.update(image, Changes(locations=(*image.locations, FAST)))

    def test_a_location_is_dropped_by_one_racer(self, repository):
        image = make_active(repository, FAST, COLD)
        dropped = repository.locations.drop(image.id, image.locations[0].id)
        assert (dropped.uri, dropped.status) == (FAST.uri, "pending_delete")
        with pytest.raises(LocationNotFound):
            repository.locations.drop(image.id, image.locations[0].id)

    def test_the_last_location_stays(self, repository):
        image = make_active(repository, FAST)
        with pytest.raises(Conflict, match="last"):
            repository.locations.drop(image.id, image.locations[0].id)
        assert repository.images.get(image.id) == image

    def test_racers_do_not_drop_the_last_two_locations(self, repository):
        image = make_active(repository, FAST, COLD)

        def drop(location) -> bool:
            try:
                repository.locations.drop(image.id, location.id)
            except Conflict:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            assert sum(pool.map(drop, image.locations)) == 1

    def test_a_location_that_could_not_be_deleted_comes_back(self, repository):
        image = make_active(repository, FAST, COLD)
        repository.locations.drop(image.id, image.locations[0].id)
        repository.locations.restore(image.id, image.locations[0].id)
        assert [each.uri for each in repository.images.get(image.id).locations] == [COLD.uri, FAST.uri]

    def test_a_location_whose_data_is_gone_is_forgotten(self, repository):
        image = make_active(repository, FAST, COLD)
        first, second = image.locations
        repository.locations.drop(image.id, first.id)
        repository.locations.forget(image.id, first.id)
        repository.locations.forget(image.id, second.id)  # it is active: nothing happens
        assert repository.locations.pending_for(image.id) == []
        assert repository.images.get(image.id).locations == (second,)

    def test_of_racers_one_may_delete_the_data_of_a_location(self, repository):
        image, process = make_active(repository, FAST, COLD), repository.processes.join("host", 1)
        dropped = repository.locations.drop(image.id, image.locations[0].id)
        with ThreadPoolExecutor(4) as pool:
            claim = functools.partial(repository.locations.claim, image.id, dropped.id, process.id)
            assert sum(pool.map(claim, "abcd")) == 1

    def test_a_claim_is_given_up_by_its_token_only(self, repository):
        image, process = make_active(repository, FAST, COLD), repository.processes.join("host", 1)
        dropped = repository.locations.drop(image.id, image.locations[0].id)
        claim = functools.partial(repository.locations.claim, image.id, dropped.id, process.id)
        assert claim("mine")
        repository.locations.release(image.id, dropped.id, "other")
        repository.locations.forget(image.id, dropped.id, "other")
        assert not claim("next")
        repository.locations.release(image.id, dropped.id, "mine")
        assert claim("next")
        assert claim("unsure", unsure=("next",))
        repository.locations.forget(image.id, dropped.id, "unsure")
        assert repository.locations.pending_for(image.id) == []
        assert not claim("late")

    def test_a_claim_of_a_dead_process_does_not_count(self, repository):
        image, dead, living = (
            make_active(repository, FAST, COLD),
            repository.processes.join("a", 1),
            repository.processes.join("b", 2),
        )
        dropped = repository.locations.drop(image.id, image.locations[0].id)
        assert repository.locations.claim(image.id, dropped.id, dead.id, "dead")
        assert not repository.locations.claim(image.id, dropped.id, living.id, "living")
        assert repository.locations.claimed_by_dead() == []
        repository.processes.leave(dead.id)
        assert repository.locations.claimed_by_dead() == [(image.id, dropped)]
        assert repository.locations.claim(image.id, dropped.id, living.id, "living")
        assert repository.locations.claimed_by_dead() == []

    def test_an_active_location_cannot_be_claimed(self, repository):
        image, process = make_active(repository, FAST, COLD), repository.processes.join("host", 1)
        assert not repository.locations.claim(image.id, image.locations[0].id, process.id, "token")

    def test_data_that_comes_back_to_a_place_is_not_deleted_any_more(self, repository):
        image, process = make_active(repository, FAST, COLD), repository.processes.join("host", 1)
        dropped = repository.locations.drop(image.id, image.locations[0].id)
        copy(repository, image.id, FAST)
        assert repository.locations.pending_for(image.id) == []
        assert not repository.locations.claim(image.id, dropped.id, process.id, "late")
        assert [each.uri for each in repository.images.get(image.id).locations] == [COLD.uri, FAST.uri]

    def test_no_data_comes_to_a_place_while_it_is_deleted_there(self, repository):
        image, process = make_active(repository, FAST, COLD), repository.processes.join("host", 1)
        dropped = repository.locations.drop(image.id, image.locations[0].id)
        assert repository.locations.claim(image.id, dropped.id, process.id, "token")
        with pytest.raises(Conflict, match="is being deleted"):
            copy(repository, image.id, FAST)
        repository.locations.forget(image.id, dropped.id, "token")
        assert [each.uri for each in copy(repository, image.id, FAST).locations] == [COLD.uri, FAST.uri]

    def test_a_location_that_comes_back_is_claimed_by_nobody(self, repository):
        image, process = make_active(repository, FAST, COLD), repository.processes.join("host", 1)
        dropped = repository.locations.drop(image.id, image.locations[0].id)
        assert repository.locations.claim(image.id, dropped.id, process.id, "token")
        repository.locations.restore(image.id, dropped.id)
        repository.locations.forget(image.id, dropped.id, "token")
        repository.locations.drop(image.id, dropped.id)
        assert repository.locations.claim(image.id, dropped.id, process.id, "second")

    def test_pending_locations_are_found_by_age(self, repository):
        image = make_active(repository, FAST, COLD)
        before = datetime.datetime.now(datetime.timezone.utc)
        repository.locations.drop(image.id, image.locations[0].id)
        assert list(repository.locations.pending(before)) == []
        assert [each.uri for _, each in repository.locations.pending()] == [FAST.uri]

    def test_what_became_pending_while_the_clock_was_ahead_did_so_by_now(self, repository):
        first, second = make_active(repository, FAST), make_active(repository, COLD)
        for image in (first, second):
            repository.images.transition(image.id, from_={"active"}, to="deleted")
        c, write = image_locations.c, repository.database.write
        for image, ahead in ((first, DAY), (second, DAY + 600 * SECOND)):
            change = image_locations.update().where(c.image_id == image.id)
            change = change.values(pending_since=c.pending_since + ahead)
            write(lambda connection, change=change: connection.execute(change))
        moment = datetime.datetime.now(datetime.timezone.utc)
        repository.locations.bring_back(3600)
        before = moment - datetime.timedelta(seconds=300)
        assert [image_id for image_id, _ in repository.locations.pending(before)] == [first.id]
        assert len(list(repository.locations.pending())) == 2

    def test_many_pending_locations_are_read_in_batches(self, repository):
        made = [make_active(repository).id for _ in range(7)]
        for image_id in made:
            repository.images.transition(image_id, from_={"active"}, to="deleted")
        assert [image_id for image_id, _ in repository.locations.pending(batch=3)] == made

    # -- uploads

    def test_an_upload_goes_from_queued_to_active(self, repository):
        image, process = make(repository), repository.processes.join("host", 1)
        saving = repository.uploads.begin(image.id, process.id, stores=("fast",), size=5)
        assert (saving.status, saving.size) == ("saving", 5)
        upload = repository.uploads.get(image.id)
        assert (upload.process_id, upload.status, upload.restore, upload.stores) == (
            process.id,
            "saving",
            "queued",
            ("fast",),
        )
        active = repository.uploads.finish(image.id, process.id, locations=(FAST,), size=7, checksum="c")
        assert (active.status, active.size, active.checksum) == ("active", 7, "c")
        assert [each.uri for each in active.locations] == [FAST.uri]
        assert repository.uploads.get(image.id) is None

    def test_an_upload_needs_a_lease(self, repository):
        image = make(repository)
        with pytest.raises(UploadLost):
            repository.uploads.begin(image.id, new_id())
        assert repository.images.get(image.id).status == "queued"

    @pytest.mark.parametrize("status", ["active", "killed", "pending_delete"])
    def test_only_an_image_that_waits_for_data_takes_an_upload(self, repository, status):
        image, process = make(repository, status=status), repository.processes.join("host", 1)
        with pytest.raises(StatusConflict) as caught:
            repository.uploads.begin(image.id, process.id)
        assert caught.value.status == status
        assert repository.images.get(image.id) == image

    def test_one_of_racing_uploads_begins(self, repository):
        image, process = make(repository), repository.processes.join("host", 1)

        def begin(_: int) -> bool:
            try:
                repository.uploads.begin(image.id, process.id)
            except StatusConflict:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(begin, range(8))) == 1

    def test_a_failed_upload_gives_the_image_back(self, repository):
        image, process = make(repository), repository.processes.join("host", 1)
        repository.uploads.begin(image.id, process.id, size=5)
        queued = repository.uploads.finish(image.id, process.id, to="queued")
        assert (queued.status, queued.size) == ("queued", None)
        repository.uploads.begin(image.id, process.id)

    def test_a_staged_image_is_imported_by_another_process(self, repository):
        image = make(repository)
        stager, importer = repository.processes.join("host", 1), repository.processes.join("host", 2)
        repository.uploads.begin(image.id, stager.id, to="uploading")
        staged = repository.uploads.finish(image.id, stager.id, to="uploading", size=5)
        assert (staged.status, staged.size) == ("uploading", 5)
        repository.uploads.begin(image.id, importer.id, from_={"uploading"}, to="importing", stores=("fast",))
        assert repository.uploads.get(image.id).restore == "queued"  # staged data goes with what failed
        assert repository.uploads.finish(image.id, importer.id, locations=(FAST,)).status == "active"

    def test_an_active_image_is_copied_without_leaving_its_status(self, repository):
        image, process = make_active(repository), repository.processes.join("host", 1)
        assert (
            repository.uploads.begin(image.id, process.id, from_={"active"}, to=None, stores=("cold",)).status
            == "active"
        )
        with pytest.raises(StatusConflict, match="already"):
            repository.uploads.begin(image.id, process.id, from_={"active"}, to=None)
        copied = repository.uploads.finish(image.id, process.id, to=None, locations=(COLD,))
        assert copied.status == "active"
        assert [each.uri for each in copied.locations] == [FAST.uri, COLD.uri]

    def test_an_upload_of_a_deleted_image_is_lost_and_remembered_until_its_data_is_gone(self, repository):
        image, process = make(repository), repository.processes.join("host", 1)
        repository.uploads.begin(image.id, process.id, stores=("fast",))
        repository.images.transition(image.id, from_={"saving"}, to="deleted")
        with pytest.raises(UploadLost):
            repository.uploads.finish(image.id, process.id, locations=(FAST,))
        assert repository.images.get(image.id, deleted=True).locations == ()
        assert [each.image_id for each in repository.uploads.list_for(process.id)] == [image.id]
        repository.uploads.forget(image.id, process.id)
        assert repository.uploads.list_for(process.id) == []

    def test_a_living_process_keeps_its_uploads(self, repository):
        image, process, other = (
            make(repository),
            repository.processes.join("host", 1),
            repository.processes.join("host", 2),
        )
        repository.uploads.begin(image.id, process.id)
        assert repository.processes.heartbeat(process.id)
        assert repository.uploads.take_over(other.id, ttl=60) == []
        assert repository.uploads.finish(image.id, process.id).status == "active"

    def test_the_uploads_of_a_dead_process_are_taken_over_once(self, repository):
        image, dead = make(repository), repository.processes.join("host", 1)
        repository.uploads.begin(image.id, dead.id, stores=("fast",))
        time.sleep(0.3)
        takers = [repository.processes.join("host", pid) for pid in (2, 3, 4)]
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda taker: repository.uploads.take_over(taker.id, ttl=0.2), takers))
        taken = list(itertools.chain(*found))
        assert [(each.image_id, each.status, each.restore, each.stores) for each in taken] == [
            (image.id, "saving", "queued", ("fast",))
        ]
        assert not repository.processes.heartbeat(dead.id)
        with pytest.raises(UploadLost):
            repository.uploads.finish(image.id, dead.id, locations=(FAST,))
        restored = repository.uploads.finish(image.id, taken[0].process_id, to=taken[0].restore)
        assert (restored.status, restored.locations) == ("queued", ())

    def test_of_those_that_have_not_left_only_the_dead_are_taken_over(self, repository):
        left, first, second = (make(repository) for _ in range(3))
        gone, silent, dead, taker = (repository.processes.join("host", pid) for pid in range(4))
        for image, process in ((left, gone), (first, silent), (second, dead)):
            repository.uploads.begin(image.id, process.id)
        repository.processes.leave(gone.id)
        repository.processes.heartbeat(dead.id)
        time.sleep(0.02)
        assert {silent.id, dead.id} <= repository.processes.silent(0.01).keys()
        assert [each.image_id for each in repository.uploads.take_over(taker.id, 0.01, dead=())] == [left.id]
        assert [each.image_id for each in repository.uploads.take_over(taker.id, 0.01, dead=[dead.id])] == [second.id]
        assert repository.processes.heartbeat(silent.id)
        assert not {silent.id, dead.id} & repository.processes.silent(60).keys()

    def test_the_uploads_of_a_process_that_left_are_taken_over_at_once(self, repository):
        image, gone, taker = (
            make(repository),
            repository.processes.join("host", 1),
            repository.processes.join("host", 2),
        )
        repository.uploads.begin(image.id, gone.id)
        repository.processes.leave(gone.id)
        assert [each.image_id for each in repository.uploads.take_over(taker.id, ttl=60)] == [image.id]

    def test_the_deletion_of_a_dead_process_is_taken_over(self, repository):
        image, gone, taker = (
            make_active(repository),
            repository.processes.join("host", 1),
            repository.processes.join("host", 2),
        )
        deleting = repository.uploads.begin_deletion(image.id, gone.id, from_={"active", "deactivated"})
        assert (deleting.status, deleting.locations) == ("pending_delete", ())
        repository.processes.leave(gone.id)
        [taken] = repository.uploads.take_over(taker.id, ttl=60)
        assert (taken.image_id, taken.status, taken.restore, taken.stores) == (image.id, "pending_delete", "active", ())

    @pytest.mark.parametrize("to", ["active", "deleted"])
    def test_a_deletion_is_over_with_the_next_status(self, repository, to):
        image, process = make_active(repository), repository.processes.join("host", 1)
        repository.uploads.begin_deletion(image.id, process.id, from_={"active"})
        with pytest.raises(StatusConflict):
            repository.uploads.begin_deletion(image.id, process.id, from_={"active"})
        repository.images.transition(image.id, from_={"pending_delete"}, to=to)
        assert repository.uploads.list_for(process.id) == []

    def test_a_copy_goes_on_while_the_image_is_deleted_and_is_lost(self, repository):
        image, process = make_active(repository), repository.processes.join("host", 1)
        repository.uploads.begin(image.id, process.id, from_={"active"}, to=None, stores=("cold",))
        repository.uploads.begin_deletion(image.id, process.id, from_={"active"})
        repository.images.transition(image.id, from_={"pending_delete"}, to="deleted")
        assert [each.stores for each in repository.uploads.list_for(process.id)] == [("cold",)]
        with pytest.raises(UploadLost):
            repository.uploads.finish(image.id, process.id, to=None, locations=(COLD,))

    def test_a_process_without_a_lease_deletes_as_well(self, repository):
        image = make_active(repository)
        repository.uploads.begin_deletion(image.id, "nobody", from_={"active"})
        assert repository.uploads.list_for("nobody") == []
        assert repository.images.get(image.id).status == "pending_delete"

    def test_an_upload_is_told_from_the_next_by_its_token(self, repository):
        image, process = make(repository), repository.processes.join("host", 1)
        repository.uploads.begin(image.id, process.id, token="first")
        old = repository.uploads.get(image.id).ticket
        assert old.token == "first"
        repository.uploads.finish(image.id, process.id, to="queued", token="first")
        repository.uploads.begin(image.id, process.id, token="second")
        with pytest.raises(UploadLost):
            repository.uploads.finish(image.id, process.id, to="queued", token="first")
        repository.uploads.forget(image.id, process.id, token="first")
        assert repository.uploads.claim(old, process.id) is None
        current = repository.uploads.get(image.id).ticket
        assert current.token == "second"
        claimed = repository.uploads.claim(current, process.id)
        assert claimed.token not in ("first", "second")
        assert repository.uploads.claim(current, process.id) is None
        with pytest.raises(UploadLost):
            repository.uploads.finish(image.id, process.id, token="second")
        assert repository.uploads.finish(image.id, process.id, token=claimed.token).status == "active"

    def test_an_older_version_beside_leaves_no_token_and_no_boot(self, repository, database):
        image, old, taker = make(repository), repository.processes.join("host", 1), repository.processes.join("host", 2)
        repository.uploads.begin(image.id, old.id)
        database.write(lambda c: c.execute(sa.text("UPDATE uploads SET token = ''")))
        database.write(lambda c: c.execute(sa.text("UPDATE processes SET boot = NULL, ticks = NULL")))
        assert repository.uploads.take_over(taker.id, ttl=60) == []
        repository.processes.leave(old.id)
        [taken] = repository.uploads.take_over(taker.id, ttl=60)
        assert taken.token
        assert repository.uploads.finish(image.id, taker.id, to="queued", token=taken.token).status == "queued"

    def test_a_dead_taker_is_followed_by_another(self, repository):
        image = make(repository)
        first, second, third = (repository.processes.join("host", pid) for pid in range(3))
        repository.uploads.begin(image.id, first.id)
        repository.processes.leave(first.id)
        assert repository.uploads.take_over(second.id, ttl=60)
        repository.processes.leave(second.id)
        assert repository.uploads.take_over(third.id, ttl=60)[0].process_id == third.id

    def test_a_lease_lasts_no_longer_because_the_clock_was_ahead(self, repository, database):
        image, join = make(repository), repository.processes.join
        dead, taker = join("host", 1), join("host", 2)
        repository.uploads.begin(image.id, dead.id)
        ahead = sa.text(f"UPDATE processes SET boot = NULL, ticks = NULL, seen_at = seen_at + {365 * DAY}")
        database.write(lambda connection: connection.execute(ahead))
        # It may live, and renew its lease.
        assert repository.uploads.take_over(taker.id, ttl=60) == []
        latest = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=5)
        assert [process.seen_at < latest for process in repository.processes.list()] == [True, True]

    def test_processes_are_known_by_the_clock_of_the_database(self, repository):
        process = repository.processes.join("host", 77)
        time.sleep(0.02)
        assert repository.processes.heartbeat(process.id)
        (seen,) = repository.processes.list()
        assert (seen.id, seen.host, seen.pid) == (process.id, "host", 77)
        assert seen.seen_at > seen.started_at
        assert abs(seen.seen_at - datetime.datetime.now(datetime.timezone.utc)) < datetime.timedelta(seconds=5)

    # -- lists

    @pytest.mark.parametrize("few", [0, 500])
    def test_everybody_sees_what_he_may(self, repository, few, monkeypatch):
        monkeypatch.setattr(choosing, "FEW", few)
        made = {
            (owner, visibility): make(repository, owner=owner, visibility=visibility).id
            for owner in ("me", "other", None)
            for visibility in ("public", "private", "shared", "community")
        }
        repository.members.add(made["other", "shared"], "me", status="accepted")
        repository.members.add(made["other", "private"], "me", status="accepted")
        members = [member for image_id in made.values() for member in repository.members.list_for(image_id)]
        images = [repository.images.get(image_id) for image_id in made.values()]
        for caller, visibility, status in itertools.product(
            (ME, OTHER, Caller(None), Caller("third"), ADMIN, Caller("me", is_admin=True)),
            (None, "all", "public", "private", "shared", "community"),
            ("accepted", "pending", "all"),
        ):
            query = Query(caller, visibility=visibility, member_status=status)
            assert ids(repository.images.list(query)) == db_model.expected(images, members, query), query

    @pytest.mark.parametrize("few", [0, 500])
    def test_every_filter_finds_what_a_plain_comparison_finds(self, repository, few, monkeypatch):
        monkeypatch.setattr(choosing, "FEW", few)
        images, members = fill(repository)
        second = images[3].created_at.replace(microsecond=0)
        half = second + datetime.timedelta(milliseconds=500)
        queries = [
            {"ids": (images[2].id, images[5].id, new_id())},
            {"names": ("b", "nobody")},
            {"statuses": ("active", "queued")},
            {"disk_formats": ("raw",)},
            {"container_formats": ("bare", "ovf")},
            {"owner": "other"},
            {"protected": True},
            {"protected": False},
            {"os_hidden": False},
            {"os_hidden": True},
            {"checksum": "c1"},
            {"os_hash_value": "h1"},
            {"tags": frozenset({"t0"})},
            {"tags": frozenset({"t0", "t1"})},
            {"properties": {"p": "v1"}},
            {"properties": {"p": "v1", "q": "x"}},
            {"is_public": True},
            {"is_public": False},
            {"ranges": (Range("size", 10, 30),)},
            {"ranges": (Range("size", None, 20), Range("min_ram", 1, None))},
            {"changes_since": images[5].updated_at},
            {"deleted": True},
            {"deleted": None},
            {"names": ()},
            *(
                {"times": (TimeFilter(field, operator, moment),)}
                for field in ("created_at", "updated_at")
                for operator in ("gt", "gte", "lt", "lte", "eq", "neq")
                for moment in (second, half)
            ),
        ]
        for caller, filters in itertools.product((ADMIN, ME), queries):
            query = Query(caller, **{"member_status": "all", **filters})
            assert ids(repository.images.list(query)) == db_model.expected(images, members, query), query

    @pytest.mark.parametrize("caller", [ADMIN, ME], ids=["admin", "me"])
    def test_pages_in_every_order_make_up_the_whole_list(self, repository, caller):
        images, members = fill(repository)
        fields = ("name", "status", "container_format", "disk_format", "size", "id", "created_at", "updated_at")
        orders = [(SortKey(field, direction),) for field in fields for direction in ("asc", "desc")]
        orders += [
            tuple(map(SortKey, keys, directions))
            for keys in (("name", "size"), ("disk_format", "created_at"), ("status", "name", "size"))
            for directions in itertools.product(("asc", "desc"), repeat=len(keys))
        ]
        for order in orders:
            query = Query(caller, sort=order, member_status="all", limit=7)
            wanted = db_model.expected(images, members, query)
            assert walk(repository, query) == wanted, order

    def test_a_page_knows_whether_more_follows(self, repository):
        made = [make(repository).id for _ in range(3)]
        assert repository.images.list(Query(ME, limit=3)).more is False
        assert repository.images.list(Query(ME, limit=2)).more is True
        assert repository.images.list(Query(ME, limit=2, marker=made[1])).more is False
        assert repository.images.list(Query(ME, limit=0)).images == ()
        assert len(repository.images.list(Query(ME)).images) == 3

    def test_racing_uploads_do_not_hold_more_than_their_owner_may_together(self, repository):
        process = repository.processes.join("host", 1)
        made = [make(repository).id for _ in range(8)]
        for image_id in made:
            repository.uploads.begin(image_id, process.id)
        start = threading.Barrier(len(made))

        def finish(image_id: str) -> bool:
            start.wait()
            place = NewLocation(f"file:///{image_id}", {"store": "fast"})
            try:
                repository.uploads.finish(image_id, process.id, locations=[place], size=300, most=1000)
            except QuotaExceeded:
                return False
            return True

        with ThreadPoolExecutor(len(made)) as pool:
            assert sum(pool.map(finish, made)) == 3
        assert repository.images.held("me") == 900
        # Those that were refused are as they were, to be given up.
        assert len(repository.uploads.list_for(process.id)) == 5

    def test_what_is_staged_is_held_until_it_is_in_a_store(self, repository):
        process = repository.processes.join("host", 1)
        image_id = make(repository, owner=None).id
        repository.uploads.begin(image_id, process.id, to="uploading")
        repository.uploads.finish(image_id, process.id, to="uploading", size=100, most=100)
        assert repository.images.held(None) == 100
        repository.uploads.begin(image_id, process.id, from_={"uploading"}, to="importing")
        assert repository.images.held(None) == 100
        repository.uploads.finish(image_id, process.id, locations=[FAST, COLD], most=200)
        assert (repository.images.held(None), repository.images.held("me")) == (200, 0)

    def test_places_that_are_too_much_for_the_owner_are_not_recorded(self, repository):
        located = NewImage(new_id(), owner="me", status="active", size=60, locations=(FAST,))
        with pytest.raises(QuotaExceeded):
            repository.images.create(located, most=59)
        image = repository.images.create(located, most=60)
        with pytest.raises(QuotaExceeded):
            repository.images.update(image, Changes(locations=(*image.locations, COLD)), most=100)
        assert repository.images.get(image.id) == image

    def put_jobs(self, repository, process, *owners):
        """A job for an image of each owner, oldest first; the ids of the images."""
        made = [make(repository, owner=owner).id for owner in owners]
        for number, image_id in enumerate(made):
            repository.uploads.begin(image_id, process.id, to="importing", token=f"put-{number}")
            ticket = Ticket(image_id, process.id, f"put-{number}")
            repository.jobs.put(ticket, "import", {"number": number}, owners[number])
        return made

    def test_jobs_are_taken_by_turns_of_their_owners(self, repository):
        process = repository.processes.join("host", 1)
        made = self.put_jobs(repository, process, "me", "me", "other", None)
        worker = repository.processes.join("host", 2, "worker")
        assert repository.jobs.count_waiting() == 4
        first = repository.jobs.take(worker.id, token="t-0")
        assert (first.ticket, first.kind, first.document, first.owner, first.attempts) == (
            Ticket(made[0], worker.id, "t-0"),
            "import",
            {"number": 0},
            "me",
            1,
        )
        taken = [repository.jobs.take(worker.id, token=f"t-{number}", owners_at_rest=True) for number in (1, 2, 3)]
        assert [job and job.ticket.image_id for job in taken] == [made[2], made[3], None]
        assert repository.jobs.take(worker.id, token="t-4").ticket.image_id == made[1]
        assert repository.jobs.take(worker.id, token="t-5") is None
        assert [upload.image_id for upload in repository.uploads.list_for(worker.id)] == sorted(made)

    def test_a_job_waits_again_a_few_times_and_goes_with_its_upload(self, repository):
        process = repository.processes.join("host", 1)
        [image_id] = self.put_jobs(repository, process, "me")
        for attempt in (1, 2):
            job = repository.jobs.take(process.id, token=f"t-{attempt}")
            assert job.attempts == attempt
            assert repository.jobs.put_back(job.ticket, 2) is (attempt < 2)
        with pytest.raises(UploadLost):
            repository.jobs.put_back(Ticket(image_id, process.id, "t-1"), 9)
        repository.uploads.finish(image_id, process.id, to="queued", token="t-2")
        repository.uploads.begin(image_id, process.id, token="again")
        assert repository.jobs.put_back(Ticket(image_id, process.id, "again"), 9) is False
        with pytest.raises(UploadLost):
            repository.jobs.put(Ticket(image_id, process.id, "t-2"), "import", {}, "me")

    def test_racing_workers_take_each_job_once(self, repository):
        process = repository.processes.join("host", 1)
        made = self.put_jobs(repository, process, *["me", "other"] * 6)
        workers = [repository.processes.join("host", number, "worker").id for number in range(4)]

        def take(worker: str) -> list[str]:
            taken = []
            while job := repository.jobs.take(worker, token=new_id()):
                taken.append(job.ticket.image_id)
            return taken

        with ThreadPoolExecutor(4) as pool:
            taken = list(itertools.chain(*pool.map(take, workers)))
        assert sorted(taken) == sorted(made)

    def test_workers_are_those_whose_lease_lasts(self, repository):
        repository.processes.join("host", 1)
        assert repository.processes.has_workers(60) is False
        worker = repository.processes.join("host", 2, "worker")
        assert repository.processes.has_workers(60) is True
        repository.processes.leave(worker.id)
        assert repository.processes.has_workers(60) is False
        with pytest.raises(UploadLost):
            repository.jobs.take(worker.id, token="t")

    def test_a_page_of_large_images_is_shorter(self, repository, monkeypatch):
        """A thousand images that are as large as they may be would be gigabytes."""
        monkeypatch.setattr(rows, "LARGEST_PAGE", 3000)
        large = {"properties": {"p": "x" * 900, "unset": None}, "tags": frozenset({"t" * 100})}
        made = [make(repository, **large).id for _ in range(8)][::-1]
        for marker, wanted in ((None, made[:2]), (made[1], made[2:4]), (made[4], made[5:7]), (made[5], made[6:])):
            page = repository.images.list(Query(ME, limit=100, marker=marker))
            assert (ids(page), page.more) == (wanted, wanted[-1] != made[-1])
            assert [(each.properties, set(each.tags)) for each in page.images] == [tuple(large.values())] * 2
        huge = make_active(repository, NewLocation("file:///" + "l" * 5000, {"m": "m" * 5000}))
        # What is known already, of which there is little, is not measured again.
        found = Repository(repository.database).images.list(Query(ME, limit=100))
        assert ([each.locations for each in found.images], found.more) == ([huge.locations], True)

    def test_paging_goes_on_behind_an_image_that_was_deleted(self, repository):
        made = [make(repository).id for _ in range(4)]
        repository.images.transition(made[2], from_={"queued"}, to="deleted")
        assert ids(repository.images.list(Query(ME, marker=made[2], limit=10))) == [made[1], made[0]]

    def test_an_unknown_or_invisible_marker_is_refused(self, repository):
        private = make(repository, owner="other", visibility="private")
        shared = make(repository, owner="other")
        for marker in (private.id, shared.id, new_id(), "x"):
            with pytest.raises(InvalidMarker):
                repository.images.list(Query(ME, marker=marker))
        repository.members.add(shared.id, "me")
        repository.images.list(Query(ME, marker=shared.id))

    @pytest.mark.parametrize(
        "query",
        [
            {"sort": (SortKey("owner"),)},
            {"sort": (SortKey("name", "up"),)},
            {"limit": -1},
            {"ranges": (Range("version", 1, 2),)},
            {"ranges": (Range("size", 1, 2**63),)},
            {"names": ("a\0",)},
            {"tags": frozenset({"\0"})},
            {"properties": {"p": "\0"}},
            {"marker": "\0"},
            {"times": (TimeFilter("created_at", "about", datetime.datetime.now()),)},
        ],
        ids="-".join,
    )
    def test_bad_queries_are_refused(self, repository, query):
        with pytest.raises(BadRequest):
            repository.images.list(Query(ADMIN, **query))

    def test_a_page_carries_everything_of_its_images_with_two_statements(self, repository, database):
        made = [
            make_active(repository, FAST, COLD, tags=frozenset("ab"), properties={"p": str(number), "q": None})
            for number in range(30)
        ]
        statements = []
        sa.event.listen(database.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
        page = repository.images.list(Query(ADMIN, limit=50))
        assert len(statements) == 2
        # Read one by one by a caller that remembers nothing.
        others = Repository(database)
        assert page.images == tuple(others.images.get(image.id) for image in reversed(made))
        assert len(statements) == 2 + 2 * len(made)

    # -- how much, and everything

    def test_what_did_not_change_is_not_read_again(self, repository, database):
        image = make_active(repository, tags={"x"}, properties={"a": "b"})
        before = repository.images.get(image.id)
        statements = []
        sa.event.listen(database.engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
        assert repository.images.get(image.id) == repository.images.list(Query(ADMIN)).images[0] == before
        assert [sum(name in each for each in statements) for name in ("images", "image_tags")] == [2, 0]

    def test_whoever_has_read_an_image_sees_every_change_of_others(self, repository, database):
        """Each change by another process, which remembers nothing of this one's."""
        image = make_active(repository, tags={"x"}, properties={"a": "b"})
        others = Repository(database)
        location = repository.images.get(image.id).locations[0]

        def change(values=None, **more):
            others.images.update(others.images.get(image.id), Changes(values or {}, **more))

        for work in (
            lambda: change({"name": "new"}),
            lambda: change(properties={"a": "c"}),
            lambda: change(tags=frozenset({"y"})),
            lambda: change(locations=(location, COLD)),
            lambda: others.images.set_properties(image.id, {"d": "e"}, remove=["a"]),
            lambda: others.images.add_tag(image.id, "z"),
            lambda: others.images.remove_tag(image.id, "y"),
            lambda: copy(others, image.id, NewLocation("file:///srv/images/2", {})),
            lambda: change(locations=(dataclasses.replace(location, metadata={"store": "slow"}), COLD)),
            lambda: others.locations.drop(image.id, location.id),
            lambda: others.locations.restore(image.id, location.id),
            lambda: copy(others, image.id, NewLocation("rbd://pool/1", {})),
            lambda: others.images.transition(image.id, from_={"active"}, to="deactivated"),
            lambda: others.images.transition(image.id, from_={"deactivated"}, to="pending_delete"),
            lambda: others.images.transition(image.id, from_={"pending_delete"}, to="active"),
        ):
            before = repository.images.get(image.id)
            work()
            after = repository.images.get(image.id)
            assert after != before
            assert after == repository.images.list(Query(ADMIN)).images[0] == Repository(database).images.get(image.id)

    def test_an_id_that_is_used_again_is_another_image(self, repository, database):
        image = make(repository, tags={"old"})
        repository.images.get(image.id)
        others = Repository(database)
        others.images.transition(image.id, from_={"queued"}, to="deleted")
        others.images.purge(datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=1))
        others.images.create(NewImage(image.id, owner="me", tags=frozenset({"new"})))
        assert repository.images.get(image.id).tags == ("new",)

    def test_what_an_owner_holds_is_summed(self, repository):
        make_active(repository, FAST, COLD, size=10)
        make_active(repository, FAST, size=5)
        make(repository, status="uploading", size=100)
        make(repository, status="importing", size=50)
        make(repository, status="saving", size=7)
        make(repository, status="killed", size=7)
        make_active(repository, owner="other", size=1000)
        gone = make_active(repository, size=3)
        repository.images.transition(gone.id, from_={"active"}, to="deleted")
        assert tuple(repository.images.usage("me")) == (25, 150, 5, 3)
        assert repository.images.count("me") == 5
        assert tuple(repository.images.usage("nobody")) == (0, 0, 0, 0)
        assert tuple(repository.images.usage(None)) == (0, 0, 0, 0)

    def test_tasks_are_listed_in_pages_in_every_order(self, repository):
        for number in range(7):
            make_task(
                repository,
                type=("api_image_import", "location_import")[number % 2],
                status=("processing", "success", "failure")[number % 3],
                created_at=1 + number // 2,
                updated_at=9 - number,
                expires_at=(0, 40_000, 50_000)[number % 3],
                owner=("me", "other", None)[number % 3],
            )
        forgotten = make_task(repository, expires_at=1, readable=False)
        known = repository.tasks.list(TaskQuery()).tasks
        assert len(known) == 7
        assert forgotten not in [task.id for task in known]
        for kind, status, owner, key, direction in itertools.product(
            (None, "location_import"), (None, "success", "succes"), (None, "other"), TASK_KEYS, ("asc", "desc")
        ):
            query = TaskQuery(kind, status, owner, key, direction, limit=2)
            attribute = "kind" if key == "type" else key
            wanted = sorted(
                (
                    task
                    for task in known
                    if kind in (None, task.kind) and status in (None, task.status) and owner in (None, task.owner)
                ),
                key=lambda task: ((value := getattr(task, attribute)) is not None, value or "", task.id),
                reverse=direction == "desc",
            )
            found: list[Task] = []
            page = repository.tasks.list(query)
            while page.more:
                found += page.tasks
                page = repository.tasks.list(query._replace(marker=page.tasks[-1].id))
            assert [*found, *page.tasks] == wanted, query

    @pytest.mark.parametrize("few", [0, 5000])
    def test_tasks_are_listed_by_all_that_is_known_of_them(self, repository, monkeypatch, few):
        monkeypatch.setattr(task_lists, "FEW", few)
        made = [
            make_task(
                repository,
                status=("processing", "failure")[number % 2],
                owner=("me", "other", "")[number % 3],
                user_id=("one", "another")[number // 3 % 2],
                request_id=f"request-{number // 2}",
                created_at=1 + number // 2,
            )
            for number in range(8)
        ]
        for names in itertools.combinations(("id", "image_id", "user_id", "request_id", "owner", "status"), 2):
            for key in TASK_KEYS:
                values = {name: getattr(made[5], name) for name in names}
                wanted = [task for task in made if all(getattr(task, name) == values[name] for name in names)]
                if "id" in values:
                    values["task_id"] = values.pop("id")
                found = repository.tasks.list(TaskQuery(sort_key=key, **values)).tasks
                assert sorted(task.id for task in found) == sorted(task.id for task in wanted), (names, key)
        assert repository.tasks.list(TaskQuery(request_id="nothing", sort_key="updated_at")).tasks == ()

    @pytest.mark.parametrize(
        ("values", "index"),
        [
            ({}, "ix_tasks_created_at"),
            ({"sort_key": "type"}, "ix_tasks_type"),
            ({"sort_key": "updated_at"}, "ix_tasks_updated_at"),
            ({"status": "failure"}, "ix_tasks_status_created_at"),
            ({"kind": "import"}, "ix_tasks_type_created_at"),
            ({"owner": "me"}, "ix_tasks_owner"),
            ({"user_id": "one"}, "ix_tasks_user"),
            ({"request_id": "one"}, "ix_tasks_request"),
            ({"status": "failure", "sort_key": "id"}, "ix_tasks_status"),
        ],
        ids=lambda value: "+".join(value.values()) if isinstance(value, dict) else "",
    )
    def test_lists_of_tasks_are_walked_along_an_index(self, repository, values, index):
        database = repository.database
        make_task(repository)
        sent: list[tuple[str, object]] = []

        def note(connection, cursor, statement, parameters, *more):
            sent.append((statement, parameters))

        sa.event.listen(database.engine, "before_cursor_execute", note)
        repository.tasks.list(TaskQuery(**values, limit=5))
        sa.event.remove(database.engine, "before_cursor_execute", note)
        [(statement, parameters)] = [each for each in sent if "FROM tasks" in each[0]]
        with database.engine.connect() as connection:
            if database.kind == "postgresql":
                # Of one row it reads all. What counts is whether it has to sort.
                for what in ("seqscan", "bitmapscan", "sort"):
                    connection.exec_driver_sql(f"SET enable_{what} = off")
            how = "EXPLAIN QUERY PLAN " if database.kind == "sqlite" else "EXPLAIN "
            rows = connection.exec_driver_sql(how + statement, parameters).all()
            connection.rollback()
            connection.invalidate()
        plan = "\n".join(" ".join(map(str, row)) for row in rows)
        assert index in plan
        assert not any(word in plan for word in ("TEMP B-TREE", "filesort", "Sort  ")), plan

    def test_a_task_is_found_by_its_id_and_its_image_even_when_that_is_gone(self, repository):
        task = make_task(repository)
        assert task == Task(
            id=task.id,
            kind="api_image_import",
            status="pending",
            owner=None,
            image_id=task.image_id,
            user_id=None,
            request_id=None,
            given={"some": ["input"]},
            result=None,
            message="",
            created_at=task.created_at,
            updated_at=task.created_at,
            expires_at=None,
        )
        repository.images.transition(task.image_id, from_={"queued"}, to="deleted")
        repository.images.purge(datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=1))
        assert repository.tasks.get(task.id) == task
        assert repository.tasks.of_image(task.image_id) == [task]
        with pytest.raises(ResourceNotFound):
            repository.tasks.get(new_id())

    def test_of_many_tasks_of_an_image_the_latest_are_told(self, repository, monkeypatch):
        monkeypatch.setattr("storelib.api.db.tasks.OF_IMAGE", 2)
        image = make(repository).id
        made = [repository.tasks.begin(NewTask(new_id(), "import", {}, image), {}) for _ in range(4)]
        assert repository.tasks.of_image(image) == sorted(made, key=lambda task: (task.created_at, task.id))[:1:-1]

    def test_a_task_says_what_it_does_in_the_properties_of_its_image(self, repository):
        image = make(repository, properties={"old": "1", "kept": "2"})
        task = repository.tasks.begin(NewTask(new_id(), "api_image_import", {}, image.id), {"at": "work"}, ["old"])
        assert repository.images.get(image.id).properties == {"at": "work", "kept": "2"}
        assert repository.tasks.unfinished(image.id) == task
        repository.tasks.progress(task.id, "half of it")
        seen = repository.tasks.get(task.id)
        assert (seen.status, seen.message) == ("processing", "half of it")
        ended = TaskEnd(task.id, "success", "all of it", {"image_id": image.id}, 3600)
        repository.tasks.end(ended, image.id, {"at": None, "done": ""})
        assert repository.images.get(image.id).properties == {"kept": "2", "done": ""}
        seen = repository.tasks.get(task.id)
        assert (seen.status, seen.message, seen.result) == ("success", "all of it", {"image_id": image.id})
        assert datetime.timedelta(0) <= seen.expires_at - seen.updated_at - datetime.timedelta(hours=1)
        assert repository.tasks.unfinished(image.id) is None

    def test_a_task_ends_once(self, repository):
        task = make_task(repository)
        repository.tasks.end(TaskEnd(task.id, "failure", "why", None, 60), task.image_id, {})
        repository.tasks.end(TaskEnd(task.id, "success", "", None, 60))
        repository.tasks.progress(task.id, "at it again")
        seen = repository.tasks.get(task.id)
        assert (seen.status, seen.message) == ("failure", "why")

    def test_a_task_ends_with_the_upload_or_not_at_all(self, repository):
        image, process = make(repository), repository.processes.join("host", 1)
        repository.uploads.begin(image.id, process.id, to="importing", token="mine")
        task = repository.tasks.begin(NewTask(new_id(), "api_image_import", {}, image.id), {})
        ended = TaskEnd(task.id, "success", "", None, 60)
        with pytest.raises(UploadLost):
            repository.uploads.finish(image.id, process.id, token="another", task=ended)
        assert repository.tasks.get(task.id).status == "pending"
        repository.uploads.finish(image.id, process.id, token="mine", task=ended)
        assert repository.tasks.get(task.id).status == "success"

    def test_the_end_of_a_task_is_noted_though_its_image_is_gone(self, repository):
        task = make_task(repository)
        repository.images.transition(task.image_id, from_={"queued"}, to="deleted")
        repository.tasks.end(TaskEnd(task.id, "failure", "gone", None, 60), task.image_id, {"failed": "yes"})
        assert repository.tasks.get(task.id).status == "failure"
        with pytest.raises(ImageNotFound):
            repository.tasks.begin(NewTask(new_id(), "api_image_import", {}, task.image_id), {})

    def test_a_task_is_forgotten_when_its_time_is_over(self, repository):
        task, ended = make_task(repository), make_task(repository)
        repository.tasks.end(TaskEnd(ended.id, "success", "", None, 0))
        with pytest.raises(ResourceNotFound):
            repository.tasks.get(ended.id)
        assert repository.tasks.of_image(ended.image_id) == []
        # It still tells where a page begins.
        assert repository.tasks.list(TaskQuery(sort_dir="asc", marker=ended.id)).tasks == ()
        assert repository.tasks.purge() == 1
        with pytest.raises(InvalidMarker):
            repository.tasks.list(TaskQuery(marker=ended.id))
        assert repository.tasks.list(TaskQuery()).tasks == (task,)

    def test_tasks_that_nobody_works_on_fail(self, repository):
        at_work, left, new = make_task(repository), make_task(repository), make_task(repository)
        repository.uploads.begin(at_work.image_id, repository.processes.join("host", 1).id)
        assert repository.tasks.fail_abandoned(3600, "left", 60) == 0
        change = tasks.update().where(tasks.c.id != new.id).values(updated_at=DAY)
        repository.database.write(lambda connection: connection.execute(change))
        assert repository.tasks.fail_abandoned(3600, "left", 60) == 1
        seen = [repository.tasks.get(task.id).status for task in (at_work, left, new)]
        assert seen == ["pending", "failure", "pending"]

    def test_tasks_that_nobody_works_on_fail_although_the_clock_was_set_back(self, repository):
        left = make_task(repository)
        change = tasks.update().where(tasks.c.id == left.id).values(updated_at=tasks.c.updated_at + DAY)
        repository.database.write(lambda connection: connection.execute(change))
        assert repository.tasks.fail_abandoned(3600, "left", 60) == 1

    @pytest.mark.parametrize("text", ["\ud800", "x" * 70_000])
    def test_what_does_not_fit_a_task_is_refused(self, repository, text):
        with pytest.raises(BadRequest):
            repository.tasks.begin(NewTask(new_id(), "import", {"import_from": text}), {})

    @pytest.mark.parametrize("query", [{"sort_key": "message"}, {"sort_dir": "up"}, {"kind": "\0"}, {"marker": "\0"}])
    def test_lists_of_tasks_that_cannot_be_are_refused(self, repository, query):
        with pytest.raises(BadRequest):
            repository.tasks.list(TaskQuery(**query))

    def test_a_page_behind_no_task_is_refused(self, repository):
        image = make_task(repository).image_id
        for marker in ("", image, new_id()):
            with pytest.raises(InvalidMarker):
                repository.tasks.list(TaskQuery(marker=marker))

    def test_images_in_a_status_are_found(self, repository):
        made = [make(repository, status="saving").id for _ in range(5)]
        make(repository)
        assert list(repository.images.in_statuses({"saving", "killed"}, batch=2)) == sorted(made)

    def test_an_audit_sees_every_image_and_every_location(self, repository):
        made = [make_active(repository, FAST, COLD) for _ in range(5)]
        queued = make(repository)
        dropped = repository.locations.drop(made[0].id, made[0].locations[0].id)
        repository.images.transition(made[1].id, from_={"active"}, to="deleted")
        for location in repository.locations.pending_for(made[1].id)[:1]:
            repository.locations.forget(made[1].id, location.id)
        repository.images.transition(made[2].id, from_={"active"}, to="deleted")
        for location in repository.locations.pending_for(made[2].id):
            repository.locations.forget(made[2].id, location.id)
        rows = list(repository.images.audit(batch=2))
        assert [row.id for row in rows] == sorted({*(image.id for image in made), queued.id} - {made[2].id})
        found = {row.id: row.locations for row in rows}
        assert found[made[0].id] == (dropped, made[0].locations[1])
        assert [(each.uri, each.status) for each in found[made[1].id]] == [(COLD.uri, "pending_delete")]
        assert found[queued.id] == ()

    def test_purge_removes_what_is_done_with(self, repository):
        done, with_data, alive = make(repository, tags=frozenset("t")), make_active(repository), make(repository)
        repository.images.transition(done.id, from_={"queued"}, to="deleted")
        repository.images.transition(with_data.id, from_={"active"}, to="deleted")
        for image in (done, alive):
            repository.cached.add("a host that is gone", "there", [NewCached(image.id, 1, 1.0, 1.0)])
            repository.cached.enqueue("a host that is gone", image.id)
        assert repository.images.purge(done.created_at) == 0
        assert repository.images.purge(datetime.datetime.now(datetime.timezone.utc)) == 1
        with pytest.raises(ImageNotFound):
            repository.images.get(done.id, deleted=True)
        assert repository.images.get(with_data.id, deleted=True).deleted
        assert repository.images.get(alive.id) == alive
        assert [each.image_id for each in repository.cached.list("a host that is gone")] == [alive.id]
        assert repository.cached.queued("a host that is gone") == [alive.id]
        repository.cached.remove("a host that is gone", [alive.id])
        assert repository.cached.dequeue("a host that is gone") == 1
        make(repository, id=done.id)

    def test_purge_takes_what_was_deleted_first(self, repository):
        made = [make(repository) for _ in range(4)]
        for image in made[::-1]:
            repository.images.transition(image.id, from_={"queued"}, to="deleted")
        soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=60)
        assert repository.images.purge(soon, limit=3) == 3
        assert repository.images.get(made[0].id, deleted=True).deleted
        assert repository.images.purge(soon, limit=3) == 1

    # -- sums of what owners hold

    @pytest.fixture
    def sums(self, repository, database):
        """Compare the sum that is kept with all that there is; and what a sum says that is no older than this."""

        def compare(*owners: str | None) -> list[int]:
            plain = [database.read(lambda connection, of=of: holdings.stored(connection, of)) for of in owners]
            assert [repository.images.stored(owner) for owner in owners] == plain
            assert [database.write(lambda connection, of=of: holdings.count(connection, of)) for of in owners] == plain
            return plain

        return compare

    @pytest.mark.parametrize("many", [0, 5000], ids=["counted anew", "brought up to now"])
    def test_a_sum_follows_every_change(self, repository, sums, many, monkeypatch):
        monkeypatch.setattr(holdings, "_MANY", many)
        image = make_active(repository, FAST, size=10)
        assert sums("me", "other", None) == [10, 0, 0]
        image = repository.images.update(image, Changes(locations=(*image.locations, COLD)))
        assert sums("me") == [20]
        repository.locations.drop(image.id, image.locations[0].id)
        assert sums("me") == [10]
        second = make_active(repository, FAST, size=3, owner=None)
        repository.images.update(repository.images.get(image.id), Changes({"owner": None}))
        assert sums("me", None) == [0, 13]
        repository.images.soft_delete(image.id, from_={"active"})
        assert sums(None) == [3]
        repository.images.restore(image.id)
        assert sums(None) == [13]
        repository.images.transition(second.id, from_={"active"}, to="deleted")
        assert sums("me", None) == [0, 10]
        process = repository.processes.join("host", 1)
        upload = make(repository)
        repository.uploads.begin(upload.id, process.id)
        repository.uploads.finish(upload.id, process.id, locations=[FAST, COLD], size=7, most=100)
        assert sums("me", None) == [14, 10]
        with pytest.raises(QuotaExceeded):
            repository.images.create(dataclasses.replace(LOCATED, id=new_id()), most=14)
        assert sums("me") == [14]
        repository.images.update(repository.images.get(upload.id), Changes({"size": 8}))
        assert sums("me") == [16]

    def test_a_purged_image_is_no_part_of_a_sum_that_was_made_before_it_was_deleted(self, repository, sums):
        image = make_active(repository, FAST, size=10)
        assert sums("me") == [10]
        repository.images.transition(image.id, from_={"active"}, to="deleted")
        [place] = repository.locations.pending_for(image.id)
        repository.locations.forget(image.id, place.id)
        soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=60)
        assert repository.images.purge(soon) == 1
        assert sums("me") == [0]

    def test_a_sum_looks_only_at_what_changed(self, repository, database, monkeypatch):
        images = metadata.tables["images"]
        image = make_active(repository, FAST, size=10)
        assert repository.images.stored("me") == 10
        monkeypatch.setattr(holdings, "LATE", -60_000_000)
        # By a caller that does not say when.
        spoil = images.update().where(images.c.id == image.id)
        database.write(lambda connection: connection.execute(spoil.values(size=11)))
        assert repository.images.stored("me") == 10
        assert repository.images.recount("me") == (10, 11)
        assert repository.images.recount("me") == (11, 11)
        assert repository.images.owners_with_sums() == ["me"]
        # An older version says when, and knows nothing of sums.
        monkeypatch.undo()
        database.write(lambda connection: connection.execute(spoil.values(size=12, updated_at=rows.now())))
        assert repository.images.stored("me") == 12

    def test_an_image_that_an_older_version_gave_to_another_owner_is_counted_once(self, repository, database, sums):
        images = metadata.tables["images"]
        image = make_active(repository, FAST, size=10)
        assert sums("me", "other") == [10, 0]
        given = images.update().where(images.c.id == image.id).values(owner="other", updated_at=rows.now())
        database.write(lambda connection: connection.execute(given))
        assert database.write(lambda connection: holdings.count(connection, "other")) == 10
        assert sums("me", "other") == [0, 10]

    def test_images_of_another_catalogue_are_in_the_sums_though_they_are_older(self, repository, database, sums):
        images = metadata.tables["images"]
        image = make_active(repository, FAST, size=10)
        assert sums("me", "other") == [10, 0]
        place = {"position": 0, "uri": FAST.uri, "metadata": "{}", "pending_since": None}

        def take(connection):
            found = connection.execute(sa.select(images).where(images.c.id == image.id)).one()._mapping
            row = {**{name: found[name] for name in COLUMNS}, "updated_at": 1}
            new = ImageEntry({**row, "id": new_id()}, {}, (), [place], ())
            ImageEntries().insert(connection, [new])
            ImageEntries().replace(connection, [ImageEntry({**row, "owner": "other", "size": 7}, {}, (), [place], ())])

        database.write(take)
        assert sums("me", "other") == [10, 7]

    def test_racing_changes_of_one_owner_are_all_in_the_sum(self, repository, sums):
        process = repository.processes.join("host", 1)
        made = [make(repository).id for _ in range(6)]
        moved = [make_active(repository, FAST, size=5) for _ in range(3)]
        for image_id in made:
            repository.uploads.begin(image_id, process.id)

        def finish(image_id: str) -> None:
            place = NewLocation(f"file:///{image_id}", {"store": "fast"})
            repository.uploads.finish(image_id, process.id, locations=[place], size=100, most=10_000)

        def give(image) -> None:
            repository.images.update(image, Changes({"owner": "other"}))

        with ThreadPoolExecutor(9) as pool:
            for done in [pool.submit(finish, each) for each in made] + [pool.submit(give, each) for each in moved]:
                done.result(60)
        assert sums("me", "other") == [600, 15]

    def test_an_image_given_away_while_its_owner_s_sum_is_made_is_no_part_of_it(self, repository, database, sums):
        image = make_active(repository, FAST, size=5)

        def make_sum(connection) -> Future[None]:
            assert holdings.count(connection, "me") == 5
            given = pool.submit(repository.images.update, image, Changes({"owner": "other"}))
            # It is not done before the sum is committed, or has to be seen by it.
            wait([given], timeout=0.5)
            return given

        with ThreadPoolExecutor(1) as pool:
            database.write(make_sum).result(60)
        assert sums("me", "other") == [0, 5]

    @pytest.mark.parametrize("kind", ["tag", "member"])
    def test_no_more_is_read_to_add_one_than_the_limit_asks_for(self, repository, database, kind):
        image = make(repository, tags=frozenset(f"t{number}" for number in range(20)))
        for number in range(20):
            repository.members.add(image.id, f"m{number}")
        fetched = []

        def count(connection, cursor, statement, *more):
            if statement.startswith("SELECT"):
                fetched.append(statement)

        sa.event.listen(database.engine, "before_cursor_execute", count)
        try:
            if kind == "tag":
                repository.images.add_tag(image.id, "new", limit=21)
                with pytest.raises(LimitExceeded, match="21"):
                    repository.images.add_tag(image.id, "another", limit=21)
                repository.images.add_tag(image.id, "new", limit=21)
            else:
                repository.members.add(image.id, "new", limit=21)
                with pytest.raises(LimitExceeded, match="21"):
                    repository.members.add(image.id, "another", limit=21)
        finally:
            sa.event.remove(database.engine, "before_cursor_execute", count)
        table = f"image_{kind}s"
        asked = [each for each in fetched if table in each]
        assert asked
        # By its key, or as a count that ends at the limit.
        assert all(f"{table}.{kind} = " in each or ("count(" in each and "LIMIT" in each) for each in asked), asked

    # -- image caches

    def test_what_caches_hold_is_told_by_their_hosts(self, repository):
        tables, node, other = repository.cached, str(uuid.uuid4()), str(uuid.uuid4())
        first, second = make(repository).id, make(repository).id
        tables.add(node, "here", [NewCached(first, 2**62, 10.5, 11.25), NewCached(second, 2, 12.0, 12.0)])
        tables.add(other, "there", [NewCached(first, 2**62, 1.0, 1.0)])
        tables.add(node, "here", [NewCached(first, 2**62, 99.0, 99.0)])  # what is known of it stays
        tables.note(node, {first: Hits(2, 50.0), second: Hits(1, 40.0), str(uuid.uuid4()): Hits(1, 1.0)})
        tables.note(node, {first: Hits(1, 60.5)})
        found = tables.list(node)
        assert [(each.image_id, each.size, each.hits) for each in found] == [(first, 2**62, 3), (second, 2, 1)]
        assert (found[0].cached_at.timestamp(), found[0].used_at.timestamp()) == (10.5, 60.5)
        assert tables.hosts_with(first) == ["here", "there"]
        tables.remove(node, [first])
        assert tables.hosts_with(first) == ["there"]
        assert [each.image_id for each in tables.list(node)] == [second]

    def test_the_queue_of_a_cache_is_in_order_and_holds_each_image_once(self, repository):
        tables, node, other = repository.cached, str(uuid.uuid4()), str(uuid.uuid4())
        ids = [str(uuid.uuid4()) for _ in range(4)]
        for image_id in (*ids, ids[0]):
            tables.enqueue(node, image_id)
            tables.enqueue(other, image_id)
        assert tables.queued(node) == ids
        assert tables.dequeue(node, [ids[1], str(uuid.uuid4())]) == 1
        tables.add(node, "here", [NewCached(ids[2], 1, 1.0, 1.0)])
        assert tables.queued(node) == [ids[0], ids[3]]
        assert tables.dequeue(node) == 2
        assert tables.queued(node) == []
        assert tables.queued(other) == ids
        with pytest.raises(BadRequest):
            tables.enqueue(node, "x" * 37)

    def test_only_active_images_belong_in_a_cache(self, repository):
        image, off, gone = (make(repository, status="active", size=5) for _ in range(3))
        repository.images.transition(off.id, from_=("active",), to="deactivated")
        repository.images.transition(gone.id, from_=("active",), to="deleted")
        found = repository.cached.active([image.id, off.id, gone.id, str(uuid.uuid4())])
        assert found == {image.id: (5, None, None, None, image.created_at)}

    # -- metadata definitions

    def test_definitions_are_kept_changed_and_listed(self, repository):
        tables = repository.metadefs
        text = {"description": "ä \u2028 '\\ \x00", "enum": [1, 2.5, None]}
        new = metadefs.NewNamespace(
            f"ns {uuid.uuid4()}",
            owner="me",
            associations=[metadefs.Association("OS::A", "a_"), metadefs.Association("OS::B")],
            definitions={"object": [metadefs.Definition("o", text)], "tag": [metadefs.Definition("Tag ")]},
        )
        made = tables.create(new)
        assert tables.get(new.namespace) == made
        assert tables.definition(made.id, "object", "o").document == text
        assert [each.name for each in tables.associations([made.id])[made.id]] == ["OS::B", "OS::A"]
        assert {"OS::A", "OS::B"} <= {each.name for each in tables.resource_types()}
        for name in ("tag ", "Tag"):
            with pytest.raises(ResourceNotFound):
                tables.definition(made.id, "tag", name)
        with pytest.raises(AlreadyExists):
            tables.define(made.id, "tag", [metadefs.Definition("new"), metadefs.Definition("Tag ")])
        with pytest.raises(AlreadyExists):
            tables.create(new)
        tables.define(made.id, "tag", [metadefs.Definition("new")])
        with pytest.raises(AlreadyExists):
            tables.redefine(made.id, "tag", "new", metadefs.Definition("Tag "))
        assert tables.redefine(made.id, "object", "o", metadefs.Definition("p")).document == {}
        replaced = tables.replace(dataclasses.replace(new, protected=True, owner=None))
        assert (replaced.id, replaced.owner, replaced.protected) == (made.id, "me", True)
        assert [each.name for each in tables.definitions(made.id, "tag")] == ["Tag "]
        for remove in (tables.delete, lambda number: tables.clear(number, "tag")):
            with pytest.raises(Protected):
                remove(made.id)
        tables.delete(made.id, protected=True)
        with pytest.raises(ResourceNotFound):
            tables.define(made.id, "tag", [metadefs.Definition("late")])
        assert tables.contents(made.id) == {"object": [], "property": [], "tag": []}

    @pytest.mark.parametrize("key", metadefs.SORT_KEYS)
    @pytest.mark.parametrize("descending", [False, True])
    def test_pages_of_namespaces_hold_each_once(self, repository, key, descending):
        tables, owner = repository.metadefs, str(uuid.uuid4())
        for number in range(5):
            name = f"{owner} {'aB'[number % 2]}{number}"
            shown = None if number == 2 else f"{'bA'[number % 2]}"
            tables.create(metadefs.NewNamespace(name, shown, protected=number == 1, owner=owner))
        query = metadefs.NamespaceQuery(owner=owner, sort_key=key, descending=descending, visibility="private", limit=2)
        found, marker = [], None
        for _ in range(3):
            page = tables.page(dataclasses.replace(query, marker=marker))
            found += page[:2]
            marker = page[1].namespace if len(page) > 2 else marker
        assert sorted(each.namespace for each in found) == sorted({each.namespace for each in found})
        assert len(found) == 5
        values = [value if (value := getattr(each, key)) is not None else "" for each in found]
        assert values == sorted(values, reverse=descending)

    # -- rounds over all images

    def test_a_round_belongs_to_one_process_at_a_time_and_goes_on_with_the_next(self, repository):
        tables, name = repository.rounds, str(uuid.uuid4())
        first, second = (repository.processes.join("here", number).id for number in (1, 2))
        assert tables.get(name) is None
        begun = tables.claim(name, first, 60, 3600)
        assert (begun.position, begun.counts, begun.last, begun.finished_at) == ("", {}, {}, None)
        assert tables.note(name, first, "half", {"images": 2})
        assert tables.claim(name, second, 60, 3600) is None
        assert not tables.note(name, second, "other", {})
        repository.processes.leave(first)
        gone_on = tables.claim(name, second, 60, 3600)
        assert (gone_on.position, gone_on.counts, gone_on.started_at) == ("half", {"images": 2}, begun.started_at)
        tables.finish(name, second, {"images": 4})
        ended = tables.get(name)
        assert (ended.position, ended.last, ended.finished_at >= ended.started_at) == ("", {"images": 4}, True)
        assert tables.claim(name, second, 60, 3600) is None
        again = tables.claim(name, second, 60, 0)
        assert (again.position, again.counts, again.last) == ("", {}, {"images": 4})

    def test_a_round_is_due_although_the_last_one_began_while_the_clock_was_ahead(self, repository, database):
        tables, name = repository.rounds, str(uuid.uuid4())
        first, second = (repository.processes.join("here", number).id for number in (1, 2))
        tables.claim(name, first, 60, 3600)
        tables.finish(name, first, {})
        change = rounds.update().where(rounds.c.name == name)
        ahead = change.values(started_at=rounds.c.started_at + DAY, finished_at=rounds.c.finished_at + DAY)
        database.write(lambda connection: connection.execute(ahead))
        assert tables.claim(name, first, 60, 3600) is not None
        assert tables.note(name, first, "half", {})
        repository.processes.leave(first)
        assert tables.claim(name, second, 60, 3600).position == "half"

    def test_a_round_has_ended_although_the_clock_was_set_back_meanwhile(self, repository, database):
        tables, name = repository.rounds, str(uuid.uuid4())
        process = repository.processes.join("here", 1).id
        tables.claim(name, process, 60, 3600)
        ahead = rounds.update().where(rounds.c.name == name).values(started_at=rounds.c.started_at + 600 * SECOND)
        database.write(lambda connection: connection.execute(ahead))
        tables.finish(name, process, {})
        assert tables.claim(name, process, 60, 3600) is None

    def test_of_processes_that_begin_a_round_together_one_does_it(self, repository):
        name = str(uuid.uuid4())
        ids = [repository.processes.join("here", number).id for number in range(8)]
        with ThreadPoolExecutor(8) as pool:
            claims = list(pool.map(lambda process: repository.rounds.claim(name, process, 60, 3600), ids))
        assert sum(claim is not None for claim in claims) == 1

    # -- shared locations

    def test_data_that_several_images_have_is_known(self, repository):
        uri = f"file:///shared/{uuid.uuid4()}"
        own = NewLocation(f"{uri}-own", {"store": "s"})
        first, second = (
            make(repository, status="active", locations=(NewLocation(uri, {"store": "s"}), own)) for _ in range(2)
        )
        assert uri in repository.locations.shared()
        assert repository.locations.is_shared(uri, first.id)
        repository.locations.detach(first.id, first.locations[0].id)
        assert [location.uri for location in repository.images.get(first.id).locations] == [own.uri]
        assert repository.locations.pending_for(first.id) == []
        assert not repository.locations.is_shared(uri, second.id)
        with pytest.raises(LocationNotFound):
            repository.locations.detach(first.id, first.locations[0].id)

    # -- images that are deleted, and whose data stays

    def test_a_soft_deleted_image_is_deleted_and_can_come_back(self, repository):
        image = make(
            repository, status="active", size=1, locations=(NewLocation("file:///a", {"store": "s"}),), tags={"t"}
        )
        gone = repository.images.soft_delete(image.id, from_=("active",))
        assert (gone.status, gone.deleted, gone.locations) == ("pending_delete", True, ())
        with pytest.raises(ImageNotFound):
            repository.images.get(image.id)
        assert image.id not in set(repository.images.in_statuses(("pending_delete",)))
        with pytest.raises(ImageNotFound):
            repository.images.soft_delete(image.id, from_=("active",))
        back = repository.images.restore(image.id)
        assert (back.status, back.deleted_at, back.tags, back.locations) == ("active", None, ("t",), image.locations)
        with pytest.raises(ImageNotFound):
            repository.images.restore(image.id)

    def test_a_soft_deleted_image_comes_back_as_it_was(self, repository):
        image = make_active(repository)
        repository.images.transition(image.id, from_={"active"}, to="deactivated")
        repository.images.soft_delete(image.id, from_=("active", "deactivated"))
        back = repository.images.restore(image.id)
        assert (back.status, back.properties) == ("deactivated", image.properties)

    def test_a_soft_deleted_image_without_data_is_deleted_for_good(self, repository):
        image = make(repository, status="active", size=1, locations=(NewLocation("file:///a", {"store": "s"}),))
        repository.images.soft_delete(image.id, from_=("active",))
        repository.images.finish_soft_deletes()
        assert repository.images.get(image.id, deleted=True).status == "pending_delete"
        [location] = repository.locations.pending_for(image.id)
        repository.locations.forget(image.id, location.id)
        repository.images.finish_soft_deletes()
        assert repository.images.get(image.id, deleted=True).status == "deleted"
        with pytest.raises(ImageNotFound):
            repository.images.restore(image.id)

    # -- the tables

    def test_the_migrations_lead_to_the_described_tables(self, database):
        options = {"version_table": VERSION_TABLE, "compare_type": True, "include_object": _is_no_index}
        difference = database.read(
            lambda connection: compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
        )
        assert difference == []

    def test_the_migrations_lead_to_the_described_indexes(self, database):
        inspector = sa.inspect(database.engine)
        for table in metadata.sorted_tables:
            found = {index["name"]: index["column_names"] for index in inspector.get_indexes(table.name)}
            indexes = indexes_of(table, database.kind)
            described = {index.name: [column.name for column in index.columns] for index in indexes}
            assert found == described, table.name

    def test_migrating_again_changes_nothing(self, database):
        check(database)
        head = version(database.url).head
        assert sync(database.url) == Version(head, head)
        check(database)


def _is_no_index(thing, name, kind, reflected, compared) -> bool:
    return kind != "index"


def fill(repository: Repository):
    """Images with many equal and unset values, some deleted; answers all images and all members."""
    made = []
    for number in range(24):
        image = make(
            repository,
            owner=("me", "other", None)[number % 3],
            name=(None, "a", "b", "A", "b ", "")[number % 6],
            status=("queued", "active", "killed")[number % 3],
            visibility=("private", "public", "shared", "community")[number % 4],
            size=(None, 10, 20, 30)[number // 6],
            disk_format=(None, "raw", "qcow2")[number % 3],
            container_format=("bare", None)[number % 2],
            min_ram=number % 2,
            protected=number % 5 == 0,
            os_hidden=number % 7 == 0,
            checksum=("c1", "c2", None)[number % 3],
            os_hash_value=("h1", None)[number % 2],
            tags=frozenset(f"t{tag}" for tag in range(number % 3)),
            properties={"p": f"v{number % 2}", "q": "x"} if number % 4 else {"p": "v1"},
        )
        if image.visibility == "shared":
            repository.members.add(image.id, "me", status=("accepted", "pending", "rejected")[number // 4 % 3])
        made.append(image.id)
    for image_id in made[::5]:
        repository.images.add_tag(image_id, "touched")
    members = [member for image_id in made for member in repository.members.list_for(image_id)]
    for image_id in made[4::9]:
        repository.images.transition(image_id, from_={repository.images.get(image_id).status}, to="deleted")
    return [repository.images.get(image_id, deleted=True) for image_id in made], members


def walk(repository: Repository, query: Query) -> list[str]:
    """All pages, one after the other."""
    found: list[str] = []
    while True:
        page = repository.images.list(query)
        found += ids(page)
        if not page.more:
            return found
        assert len(page.images) == query.limit
        query = dataclasses.replace(query, marker=page.images[-1].id)


def in_processes(count: int, work, database: Database, images: list[str]) -> list[list[str]]:
    """``work`` in several processes at once, each with a connection of its own."""
    url = database.url.render_as_string(hide_password=False)
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(count), context.SimpleQueue()
    processes = [
        context.Process(target=_run, args=(work, url, images, number, start, results)) for number in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    returned = dict(results.get() for _ in processes)
    results.close()
    return [returned[number] for number in range(count)]


def _run(work, url, images, number, start, results) -> None:
    database = Database(url)
    repository = Repository(database)
    start.wait(60)
    results.put((number, work(repository, images, number)))
    repository.close()


def race_for(repository: Repository, images: list[str], number: int) -> list[str]:
    """The images this process won."""
    won = []
    for image_id in images:
        try:
            repository.images.transition(image_id, from_={"queued"}, to="saving")
        except StatusConflict:
            continue
        won.append(image_id)
    return won


def tag_all(repository: Repository, images: list[str], number: int) -> list[str]:
    """Ten tags of its own for each image."""
    for tag in range(10):
        for image_id in images:
            repository.images.add_tag(image_id, f"{number}-{tag}")
    return images
