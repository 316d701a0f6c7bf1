# SPDX-License-Identifier: Apache-2.0
"""The module functions over the default registry."""

from __future__ import annotations

import hashlib

import pytest
from oslo_config import cfg

from storelib import backend
from storelib.exceptions import (
    BadStoreConfiguration,
    BadStoreUri,
    Duplicate,
    Invalid,
    NotFound,
    UnknownHashingAlgo,
    UnknownScheme,
)
from storelib.location import get_location_from_uri
from storelib.testing.memory import MemoryStore

DATA = b"a disk image, for all we know"


@pytest.fixture(autouse=True)
def _no_stores_afterwards():
    yield
    backend.use_registry(None)


@pytest.fixture
def conf(tmp_path):
    """Parsed, with two stores in memory; ``slow`` is the default."""
    path = tmp_path / "program.conf"
    path.write_text("[storelib]\nstores = fast:memory, slow:memory\ndefault_store = slow\n[fast]\nweight = 3\n")
    conf = cfg.ConfigOpts()
    backend.register_opts(conf)
    conf(["--config-file", str(path)], project="test", default_config_dirs=[])
    return conf


@pytest.fixture
def stores(conf):
    backend.create_stores(conf)
    return backend.default_registry()


def test_create_stores_answers_how_many_stores_there_are(conf):
    assert backend.create_stores(conf) == 2


def test_the_groups_of_the_stores_are_registered(conf):
    backend.create_stores(conf)
    assert conf.fast.weight == 3


def test_before_create_stores_every_function_says_what_is_missing():
    with pytest.raises(BadStoreConfiguration, match="call create_stores"):
        backend.get_known_schemes()


def test_create_stores_again_replaces_the_stores(conf):
    backend.create_stores(conf)
    first = backend.default_registry()["fast"]
    backend.create_stores(conf)
    assert backend.default_registry()["fast"] is not first


def test_a_wrong_configuration_leaves_the_earlier_stores(conf):
    backend.create_stores(conf)
    first = backend.default_registry()
    conf.set_override("default_store", "nowhere", group="storelib")
    with pytest.raises(BadStoreConfiguration, match="default_store"):
        backend.create_stores(conf)
    assert backend.default_registry() is first


def test_the_default_store_is_verified(stores):
    backend.verify_default_store()


def test_a_default_store_that_does_not_work_is_told(conf, monkeypatch):
    def configure_get(self):
        raise BadStoreConfiguration("no memory left")

    monkeypatch.setattr(MemoryStore, "configure_get", configure_get)
    assert backend.create_stores(conf) == 0
    with pytest.raises(BadStoreConfiguration, match="store slow is disabled: no memory left"):
        backend.verify_default_store()


def test_known_schemes_are_those_of_the_stores(stores):
    assert backend.get_known_schemes() == ["memory"]


def test_a_store_is_found_by_scheme(stores):
    assert backend.get_store_from_scheme("memory").name == "slow"


def test_an_unknown_scheme_is_refused(stores):
    with pytest.raises(UnknownScheme):
        backend.get_store_from_scheme("ftp")


def test_a_store_is_found_by_uri(stores):
    assert backend.get_store_from_uri("memory://fast/one").name == "fast"


def test_the_scheme_of_a_uri_is_told(stores):
    assert backend.get_store_from_location("memory://fast/one") == "memory"


def test_what_is_added_is_read_back(stores):
    added = backend.store_add_to_backend("one", DATA, len(DATA), stores["fast"])
    data, size = backend.get_from_backend(added.uri)
    with data:
        assert (data.read(), size) == (DATA, len(DATA))


def test_a_range_is_read(stores):
    added = backend.store_add_to_backend("one", DATA, len(DATA), stores["fast"])
    data, size = backend.get_from_backend(added.uri, offset=2, length=4)
    with data:
        assert (data.read(), size) == (DATA[2:6], 4)


def test_a_location_object_does_as_well_as_a_uri(stores):
    added = backend.store_add_to_backend("one", DATA, len(DATA), "fast")
    assert backend.get_size_from_backend(get_location_from_uri(added.uri)) == len(DATA)


def test_an_add_always_answers_five_fields(stores):
    uri, size, checksum, multihash, metadata = backend.store_add_to_backend("one", DATA, len(DATA), "fast")
    assert (uri, size, metadata) == ("memory://fast/one", len(DATA), {"store": "fast"})
    assert (checksum, multihash) == (hashlib.md5(DATA).hexdigest(), hashlib.sha512(DATA).hexdigest())


def test_the_hashing_algorithm_can_be_chosen(stores):
    added = backend.store_add_to_backend("one", DATA, len(DATA), "fast", hashing_algo="sha256")
    assert added.multihash == hashlib.sha256(DATA).hexdigest()


def test_an_algorithm_that_does_not_exist_is_refused(stores):
    with pytest.raises(UnknownHashingAlgo):
        backend.store_add_to_backend("one", DATA, len(DATA), "fast", hashing_algo="crc7")


@pytest.mark.parametrize("size", [0, None])
def test_an_old_callers_size_0_means_unknown(stores, size):
    assert backend.store_add_to_backend("one", iter([DATA]), size, "fast").size == len(DATA)


def test_any_other_size_is_enforced(stores):
    with pytest.raises(Invalid):
        backend.store_add_to_backend("one", iter([DATA]), len(DATA) - 1, "fast")


def test_a_verifier_sees_every_byte(stores):
    verifier = hashlib.sha256()
    backend.store_add_to_backend("one", DATA, len(DATA), "fast", verifier=verifier)
    assert verifier.digest() == hashlib.sha256(DATA).digest()


def test_adding_an_id_twice_is_refused(stores):
    backend.store_add_to_backend("one", DATA, len(DATA), "fast")
    with pytest.raises(Duplicate):
        backend.store_add_to_backend("one", DATA, len(DATA), "fast")


def test_without_store_and_scheme_the_default_store_gets_the_image(conf, stores):
    assert backend.add_to_backend(conf, "one", DATA, len(DATA)).metadata == {"store": "slow"}


def test_a_named_store_gets_the_image(conf, stores):
    assert backend.add_to_backend(conf, "one", DATA, len(DATA), store="fast").metadata == {"store": "fast"}


def test_the_store_for_a_scheme_gets_the_image(conf, stores):
    assert backend.add_to_backend(conf, "one", DATA, len(DATA), "memory").metadata == {"store": "slow"}


def test_another_conf_than_that_of_the_stores_is_refused(conf, stores):
    with pytest.raises(BadStoreConfiguration, match="another conf"):
        backend.add_to_backend(cfg.ConfigOpts(), "one", DATA, len(DATA))


def test_what_is_deleted_is_gone(stores):
    added = backend.store_add_to_backend("one", DATA, len(DATA), "fast")
    backend.delete_from_backend(added.uri)
    with pytest.raises(NotFound):
        backend.get_size_from_backend(added.uri)


def test_a_uri_of_no_store_is_refused(stores):
    with pytest.raises(BadStoreUri):
        backend.delete_from_backend("memory://elsewhere/one")


def test_access_control_lists_are_set(stores, monkeypatch):
    seen = []
    monkeypatch.setattr(MemoryStore, "set_acls", lambda self, *arguments: seen.append((self.name, *arguments)))
    backend.set_acls("memory://fast/one", public=True, read_tenants=["a"], write_tenants=None)
    assert seen == [("fast", "memory://fast/one", True, ["a"], (), None)]


def test_a_store_without_access_control_lists_ignores_them(stores):
    backend.set_acls("memory://fast/one", public=True)


@pytest.mark.parametrize("metadata", [{}, "x", [], {"a": "b"}, {"a": [{"b": ["c"]}]}])
def test_metadata_of_dicts_lists_and_strings_is_fine(metadata):
    backend.check_location_metadata(metadata)


@pytest.mark.parametrize(
    ("metadata", "name"), [(1, ""), ({"a": None}, " a"), ({"a": [{"b": 1.5}]}, " a[0].b"), ({"a": ("b",)}, " a")]
)
def test_other_metadata_is_refused_by_name(metadata, name):
    with pytest.raises(Invalid) as caught:
        backend.check_location_metadata(metadata)
    assert str(caught.value).startswith(f"location metadata{name} must be")
