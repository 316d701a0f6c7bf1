# SPDX-License-Identifier: Apache-2.0
"""Stores by id, by scheme and by URI; stores that do not work; stores of the calling program itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from oslo_config import cfg

from storelib.capabilities import Capability
from storelib.config import load_file
from storelib.drivers.filesystem import FilesystemStore
from storelib.drivers.filesystem.location import FileLocation
from storelib.exceptions import (
    BadStoreConfiguration,
    BadStoreUri,
    MissingDependency,
    NotFound,
    RemoteServiceUnavailable,
    UnknownScheme,
)
from storelib.location import Location
from storelib.registry import Registry, open_store
from storelib.testing.memory import MemoryStore
from storelib.testing.threads import started_threads

THREE = """
[storelib]
stores = fast:memory, slow:memory, spare:memory
default_store = slow
[fast]
weight = 5
[spare]
weight = 10
"""


class PlacelessStore(MemoryStore):
    """Its URIs do not say in which store an image is, as with RBD or GridFS."""

    def owns(self, location):
        return True


class SilentStore(PlacelessStore):
    """Its back end never answers."""

    capabilities = MemoryStore.capabilities

    def measure(self, location, context):
        raise RemoteServiceUnavailable("no answer")


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "storelib.ini"
    path.write_text(text)
    return path


@pytest.fixture
def three(tmp_path):
    return Registry.from_file(written(tmp_path, THREE))


# -- By id ------------------------------------------------------------------------------------------------------------


def test_a_store_is_found_by_its_id(three):
    assert three["fast"].name == "fast"


def test_iterating_gives_the_stores_as_listed(three):
    assert [store.name for store in three] == ["fast", "slow", "spare"]
    assert len(three) == 3


def test_an_unknown_id_is_named_with_the_closest_one(three):
    with pytest.raises(UnknownScheme, match="there is no store 'fsat'; did you mean fast\\?"):
        three["fsat"]


def test_ids_are_tested_with_in(three):
    assert "fast" in three
    assert "nowhere" not in three


def test_the_stores_that_it_gives_are_in_it(three):
    assert all(store in three for store in three)
    assert open_store("memory", name="fast") not in three


def test_the_default_store_is_the_configured_one(three):
    assert three.default.name == "slow"


def test_without_default_store_it_is_the_first_one(tmp_path):
    assert Registry.from_file(written(tmp_path, "[storelib]\nstores = b:memory, a:memory\n")).default.name == "b"


def test_stores_are_ordered_by_weight_then_as_listed(three):
    assert [store.name for store in three.by_weight] == ["spare", "fast", "slow"]


def test_weights_are_answered_by_id(three):
    assert [three.get_store_weight(name) for name in ("fast", "slow", "spare")] == [5, 0, 10]


def test_a_registry_can_be_made_of_stores_in_hand():
    stores = Registry([open_store("memory", "a"), open_store("memory", "b")], default="b")
    assert (stores["a"].name, stores.default.name) == ("a", "b")


def test_both_forms_of_the_ini_file_work(tmp_path):
    stores = Registry.from_file(
        written(tmp_path, "[storelib]\nstores = memory\ndefault_store = memory\nmemory_store_part_size = 8192\n")
    )
    assert stores.default.conf.memory_store_part_size == 8192


def test_making_a_registry_starts_no_thread(tmp_path):
    with started_threads() as started:
        Registry.from_file(written(tmp_path, THREE))
    assert not started


def test_two_registries_of_one_configuration_have_stores_of_their_own(tmp_path):
    conf = load_file(written(tmp_path, THREE))
    one, other = Registry.from_conf(conf), Registry.from_conf(conf)
    assert one["fast"] is not other["fast"]


# -- By scheme and URI ------------------------------------------------------------------------------------------------


def test_schemes_are_those_of_the_stores(three):
    assert three.schemes == ["memory"]


def test_the_default_store_goes_first_for_its_scheme(three):
    assert three.store_for_scheme("memory").name == "slow"


def test_without_the_default_store_the_weight_decides_for_a_scheme():
    stores = Registry([open_store("memory", "light"), open_store("memory", "heavy", weight=1)], default="other")
    assert stores.store_for_scheme("memory").name == "heavy"


def test_a_scheme_is_the_same_in_upper_and_lower_case(three):
    uri = three["fast"].add("x", b"bits").uri
    shouted = uri.replace("memory://", "MEMORY://")
    assert uri.startswith("memory://")
    assert three.store_for_scheme("Memory").name == "slow"
    assert three.resolve(shouted).name == "fast"
    assert b"".join(three["fast"].get(shouted).data) == b"bits"
    assert Location(shouted, {"memory": MemoryStore.location_class}).uri == uri


def test_a_scheme_nobody_serves_is_unknown(three):
    with pytest.raises(UnknownScheme, match="no store serves the scheme 'ftp'; known are: memory"):
        three.store_for_scheme("ftp")


@pytest.mark.parametrize("form", [str, Location])
def test_a_uri_leads_to_the_store_it_belongs_to(three, form):
    added = three["fast"].add("one", b"bytes")
    assert three.resolve(form(added.uri)).name == "fast"


def test_a_uri_of_none_of_the_stores_is_refused(three):
    with pytest.raises(BadStoreUri, match="memory://elsewhere/one does not belong to any store"):
        three.resolve("memory://elsewhere/one")


def test_a_uri_without_scheme_is_refused(three):
    with pytest.raises(BadStoreUri, match="not a location URI"):
        three.resolve("/srv/images/one")


def placeless(*stores, default=None):
    return Registry(stores, default)


def test_of_several_stores_that_match_the_one_with_the_image_is_found():
    empty, full = open_store(PlacelessStore, "empty", weight=9), open_store(PlacelessStore, "full")
    added = full.add("one", b"bytes")
    assert placeless(empty, full).resolve(added.uri) is full


def test_of_several_stores_with_the_image_the_default_one_is_found():
    light, heavy = open_store(PlacelessStore, "light"), open_store(PlacelessStore, "heavy", weight=9)
    heavy.add("one", b"bytes")
    added = light.add("one", b"bytes")
    assert placeless(light, heavy, default="light").resolve(added.uri) is light


def test_of_several_stores_with_the_image_the_heaviest_is_found():
    stores = [open_store(PlacelessStore, name, weight=weight) for name, weight in (("d", 0), ("a", 1), ("b", 2))]
    for store in stores[1:]:
        added = store.add("one", b"bytes")
    assert placeless(*stores).resolve(added.uri).name == "b"


def test_of_several_stores_of_equal_weight_the_first_listed_is_found():
    stores = [open_store(PlacelessStore, name) for name in ("d", "z", "a")]
    for store in stores[1:]:
        added = store.add("one", b"bytes")
    assert placeless(*stores).resolve(added.uri).name == "z"


def test_an_image_in_none_of_several_stores_is_not_found():
    with pytest.raises(NotFound, match="no store has an image at memory://x/one"):
        placeless(open_store(PlacelessStore, "a"), open_store(PlacelessStore, "b")).resolve("memory://x/one")


def test_a_store_that_does_not_answer_hides_no_other_one():
    silent, full = open_store(SilentStore, "silent", transfer_retries=0), open_store(PlacelessStore, "full")
    added = full.add("one", b"bytes")
    assert placeless(silent, full).resolve(added.uri) is full


def test_not_found_is_not_guessed_when_a_store_does_not_answer():
    silent, empty = open_store(SilentStore, "silent", transfer_retries=0), open_store(PlacelessStore, "empty")
    with pytest.raises(RemoteServiceUnavailable):
        placeless(silent, empty).resolve("memory://x/one")


# -- Stores that do not work ------------------------------------------------------------------------------------------


@pytest.fixture
def no_client(monkeypatch):
    """Stores with a weight of 5 lack their client library."""

    def configure_get(self):
        if self.conf.weight == 5:
            raise MissingDependency("memory_store_part_size needs a library: pip install storelib[memory]")

    monkeypatch.setattr(MemoryStore, "configure_get", configure_get)


def test_a_store_that_cannot_be_configured_does_not_stop_the_others(no_client, tmp_path):
    stores = Registry.from_file(written(tmp_path, THREE))
    assert [store.name for store in stores] == ["slow", "spare"]


def test_a_disabled_store_tells_why(no_client, tmp_path):
    stores = Registry.from_file(written(tmp_path, THREE))
    assert "pip install storelib[memory]" in stores.disabled["fast"].reason
    with pytest.raises(BadStoreConfiguration, match=r"store fast is disabled: .*pip install storelib\[memory\]"):
        stores["fast"]


def test_the_reason_names_the_option_with_file_and_line(no_client, tmp_path):
    text = THREE + "[fast]\nmemory_store_part_size = 8192\n"
    reason = Registry.from_file(written(tmp_path, text)).disabled["fast"].reason
    assert "[fast] memory_store_part_size = 8192" in reason
    assert "storelib.ini, line 10)" in reason


def test_a_disabled_default_store_is_an_error_only_when_it_is_used(no_client, tmp_path):
    stores = Registry.from_file(written(tmp_path, THREE.replace("default_store = slow", "default_store = fast")))
    with pytest.raises(BadStoreConfiguration, match="store fast is disabled"):
        _ = stores.default


def test_a_misspelled_option_of_a_disabled_store_is_still_an_error(no_client, tmp_path):
    with pytest.raises(BadStoreConfiguration, match="did you mean memory_store_part_size"):
        Registry.from_file(written(tmp_path, THREE + "[fast]\nmemory_store_part_siz = 8192\n"))


# -- Stores of the calling program ------------------------------------------------------------------------------------


@pytest.fixture
def staged(tmp_path):
    conf = load_file(written(tmp_path, "[storelib]\nstores = fast:memory\nmemory_store_concurrency = 9\n"))
    return Registry.from_conf(conf, reserved={"os_glance_staging_store": "memory"})


def test_a_reserved_store_is_found_by_id(staged):
    assert staged["os_glance_staging_store"].name == "os_glance_staging_store"


def test_a_reserved_store_is_not_listed(staged):
    assert [store.name for store in staged] == ["fast"]


def test_a_uri_does_not_lead_to_a_reserved_store(staged):
    added = staged["os_glance_staging_store"].add("one", b"bytes")
    with pytest.raises(BadStoreUri):
        staged.resolve(added.uri)


def test_a_reserved_store_inherits_nothing(staged):
    assert staged["os_glance_staging_store"].conf.memory_store_concurrency == 2


def test_a_reserved_store_has_its_own_directory(tmp_path):
    from storelib.config import Configuration
    from storelib.plugins import driver_class

    conf = load_file(written(tmp_path, "[storelib]\nstores = file\nfilesystem_store_datadir = /srv/images\n"))
    configuration = Configuration(conf, {"os_glance_staging_store": "file"})
    options = configuration.options(configuration.entries[-1], driver_class("file"))
    assert options.filesystem_store_datadir == "/var/lib/storelib/os_glance_staging_store"
    assert conf.os_glance_staging_store.filesystem_store_datadir == options.filesystem_store_datadir


def test_reserved_stores_can_be_made_again(tmp_path):
    conf = load_file(written(tmp_path, "[storelib]\nstores = memory\n"))
    for _ in range(2):
        made = Registry.from_conf(conf, reserved={"os_glance_tasks_store": "memory"})
    assert list(made.reserved) == ["os_glance_tasks_store"]


def test_a_reserved_store_that_is_also_listed_is_an_error(tmp_path):
    conf = load_file(written(tmp_path, "[storelib]\nstores = fast:memory\n"))
    with pytest.raises(BadStoreConfiguration, match="same store id"):
        Registry.from_conf(conf, reserved={"fast": "memory"})


# -- Without a file ---------------------------------------------------------------------------------------------------


def test_a_store_is_opened_without_a_file():
    store = open_store("memory", "scratch", memory_store_part_size=4096)
    assert (store.name, store.conf.memory_store_part_size, store.conf.weight) == ("scratch", 4096, 0)


def test_a_store_is_named_after_its_driver_if_it_has_no_name():
    assert open_store("memory").name == "memory"


def test_a_driver_class_can_be_given():
    assert isinstance(open_store(PlacelessStore, "x"), PlacelessStore)


def test_values_are_converted_like_those_of_a_file():
    assert open_store("memory", read_only="yes", weight="3").conf.weight == 3


def test_a_value_of_none_is_the_default():
    assert open_store("memory", memory_store_part_size=None).conf.memory_store_part_size == 256 * 1024


def test_an_option_that_does_not_exist_is_named_with_the_closest_one():
    with pytest.raises(BadStoreConfiguration, match="no option weigth; did you mean weight"):
        open_store("memory", weigth=1)


def test_a_value_out_of_range_is_refused_with_the_range():
    with pytest.raises(BadStoreConfiguration, match="memory_store_part_size = 1 is not valid: .*at least 4096"):
        open_store("memory", memory_store_part_size=1)


def test_a_secret_value_is_not_shown():
    class Guarded(MemoryStore):
        options = (cfg.StrOpt("memory_key", secret=True, max_length=3), *MemoryStore.options)

    with pytest.raises(BadStoreConfiguration) as caught:
        open_store(Guarded, memory_key="hunter2")
    assert "hunter2" not in str(caught.value)
    assert "abc" not in repr(open_store(Guarded, memory_key="abc").conf)


def test_a_driver_that_does_not_exist_is_refused():
    with pytest.raises(BadStoreConfiguration, match="there is no driver 'floppy'"):
        open_store("floppy")


def test_the_option_read_only_takes_writing_away():
    assert Capability.ADD not in open_store("memory", read_only=True).capabilities


def test_a_uri_is_looked_at_once_among_many_stores(tmp_path, monkeypatch):
    stores = [open_store("file", f"s{number}", filesystem_store_datadir=tmp_path / str(number)) for number in range(30)]
    registry = Registry(stores)
    uri = stores[17].add("image", b"data").uri
    parsed, located = [], []
    plain_parse, plain_locate = FileLocation.parse.__func__, FilesystemStore.locate
    monkeypatch.setattr(FileLocation, "parse", classmethod(lambda *given: parsed.append(1) or plain_parse(*given)))
    monkeypatch.setattr(
        FilesystemStore, "locate", lambda store, place: located.append(store) or plain_locate(store, place)
    )
    assert registry.resolve(uri) is stores[17]
    assert (len(parsed), located) == (1, [stores[17]])
