# SPDX-License-Identifier: Apache-2.0
"""A third-party driver for glance_store, beside storelib's own, and that what it does wrong stays with it."""

from __future__ import annotations

import hashlib
import io
import os
import sys

import pytest
from oslo_config import cfg

from storelib.compat import finder
from storelib.compat.glance_store import backend, driver, exceptions, location, multi_backend

DATA = os.urandom(200_000)

#: As such drivers are: options of its own, some helpers of glance_store, ranges, errors, a store for one use.
SHELF = '''
import os
import stat

import glance_store
from glance_store import capabilities, exceptions
from glance_store.common import utils
from glance_store.i18n import _
import glance_store.driver
import glance_store.location
from oslo_config import cfg

_OPTIONS = [
    cfg.StrOpt("shelf_directory", help="Where."),
    cfg.IntOpt("shelf_chunk_size", default=7000, min=1, help="How much at a time."),
]


class StoreLocation(glance_store.location.StoreLocation):
    """shelf://directory/id"""

    def process_specs(self):
        self.path = self.specs.get("path")

    def get_uri(self):
        return "shelf://" + self.path

    def parse_uri(self, uri):
        self.validate_schemas(uri, valid_schemas=("shelf://",))
        self.path = uri[len("shelf://"):]
        if not self.path:
            raise exceptions.BadStoreUri(message=_("No path in URI"))


class Store(glance_store.driver.Store):
    _CAPABILITIES = capabilities.BitMasks.READ_RANDOM | capabilities.BitMasks.WRITE_ACCESS
    OPTIONS = _OPTIONS

    def get_schemes(self):
        return ("shelf",)

    def _conf(self):
        if self.backend_group:
            return glance_store.driver.BackendGroupConfiguration(self.OPTIONS, self.backend_group, conf=self.conf)
        return self.conf.glance_store

    def configure_add(self):
        self.directory = self._conf().shelf_directory
        if not self.directory:
            raise exceptions.BadStoreConfiguration(store_name="shelf", reason=_("no shelf_directory"))
        self.WRITE_CHUNKSIZE = self._conf().shelf_chunk_size
        os.makedirs(self.directory, exist_ok=True)
        self._url_prefix = "shelf://" + self.directory

    @capabilities.check
    def get(self, location, offset=0, chunk_size=None, context=None):
        size = self.get_size(location)
        file = open(location.store_location.path, "rb")
        file.seek(offset)
        length = size - offset if chunk_size is None else min(chunk_size, size - offset)

        def chunks():
            with file:
                yield file.read(length)

        return chunks(), length

    def get_size(self, location, context=None):
        try:
            return os.stat(location.store_location.path)[stat.ST_SIZE]
        except FileNotFoundError:
            raise exceptions.NotFound(image=location.store_location.path)

    @glance_store.driver.back_compat_add
    @capabilities.check
    def add(self, image_id, image_file, image_size, hashing_algo, context=None, verifier=None):
        place = StoreLocation({"path": os.path.join(self.directory, image_id)}, self.conf)
        if os.path.exists(place.path):
            raise exceptions.Duplicate(image=image_id)
        md5, other = utils.get_hasher("md5", False), utils.get_hasher(hashing_algo, False)
        written = 0
        with open(place.path, "wb") as file:
            for chunk in utils.chunkreadable(image_file, self.WRITE_CHUNKSIZE):
                assert len(chunk) <= self.WRITE_CHUNKSIZE
                for take in (md5.update, other.update, file.write, *([verifier.update] if verifier else [])):
                    take(chunk)
                written += len(chunk)
        metadata = {"store": self.backend_group} if self.backend_group else {}
        if image_id == "bad-metadata":
            metadata["size"] = written
        return place.get_uri(), written, md5.hexdigest(), other.hexdigest(), metadata

    @capabilities.check
    def delete(self, location, context=None):
        self.get_size(location)
        os.unlink(location.store_location.path)


class Lacking(Store):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        import no_such_client  # as those do that need it only when they are used


class Direct(Store):
    """Reads its options in the configuration itself, and makes sure that they are there."""

    def _conf(self):
        group = self.backend_group or "glance_store"
        self.conf.register_opts(self.OPTIONS, group=group)
        return self.conf[group]


class Strict(Store):
    def configure(self, re_raise_bsc=False):
        raise exceptions.BadStoreConfiguration(store_name="strict", reason="there is no server")
'''


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    """The package of the driver, found by its entry point, where glance_store is storelib."""
    info = tmp_path / "packages" / "shelf-1.dist-info"
    info.mkdir(parents=True)
    (info.parent / "shelf_driver.py").write_text(SHELF)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shelf\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[glance_store.drivers]\nshelf = shelf_driver:Store\nbroken = shelf_driver:NoSuchClass\n"
        "lacking = shelf_driver:Lacking\nstrict = shelf_driver:Strict\n"
        "direct = shelf_driver:Direct\n"
    )
    monkeypatch.syspath_prepend(info.parent)
    monkeypatch.delitem(sys.modules, "shelf_driver", raising=False)
    monkeypatch.setattr(sys, "meta_path", [finder.Finder(), *sys.meta_path])
    for name in [name for name in sys.modules if name == "glance_store" or name.startswith("glance_store.")]:
        monkeypatch.delitem(sys.modules, name)
    yield
    for name in [name for name in sys.modules if name == "glance_store" or name.startswith("glance_store.")]:
        del sys.modules[name]
    sys.modules.pop("shelf_driver", None)


@pytest.fixture
def several(conf, tmp_path):
    """Two of it with names, and one of storelib's."""
    conf.register_opt(cfg.DictOpt("enabled_backends"))
    conf.set_override("enabled_backends", {"top": "shelf", "bottom": "shelf", "files": "file"})
    multi_backend.register_store_opts(conf)
    conf.set_override("default_backend", "top", "glance_store")
    for name in ("top", "bottom"):
        conf.set_override("shelf_directory", str(tmp_path / name), name)
    conf.set_override("shelf_chunk_size", 9000, "bottom")
    conf.set_override("weight", 3, "bottom")
    conf.set_override("filesystem_store_datadir", str(tmp_path / "files"), "files")
    assert multi_backend.create_multi_stores(conf) == 4
    multi_backend.verify_store()
    return conf


def read(answer):
    chunks, size = answer
    found = b"".join(chunks)
    assert len(found) == size
    return found


def test_an_image_comes_and_goes(several, tmp_path):
    found = multi_backend.add_with_multihash(several, "7", io.BytesIO(DATA), len(DATA), "bottom", "sha512")
    uri = f"shelf://{tmp_path}/bottom/7"
    digests = hashlib.md5(DATA).hexdigest(), hashlib.sha512(DATA).hexdigest()
    assert found == (uri, len(DATA), *digests, {"store": "bottom"})
    assert read(multi_backend.get(uri, "bottom")) == DATA
    assert read(multi_backend.get(uri, "bottom", offset=10, chunk_size=100)) == DATA[10:110]
    assert multi_backend.get_size_from_uri_and_backend(uri, "bottom") == len(DATA)
    # Whichever it is in.
    assert read(multi_backend.get(uri, None, offset=5)) == DATA[5:]
    with pytest.raises(exceptions.Duplicate):
        multi_backend.add_with_multihash(several, "7", io.BytesIO(b"x"), 1, "bottom", "sha512")
    multi_backend.set_acls_for_multi_store(uri, "bottom", public=True)
    multi_backend.delete(uri, "bottom")
    with pytest.raises(exceptions.NotFound):
        multi_backend.get(uri, "bottom")


def test_callers_who_know_of_no_algorithm_get_four_values(several):
    assert len(multi_backend.add(several, "7", io.BytesIO(DATA), 0, "top")) == 4


def test_a_verifier_sees_every_byte(several):
    seen = bytearray()

    class Verifier:
        update = seen.extend

    multi_backend.add_with_multihash(several, "7", io.BytesIO(DATA), 0, None, "sha256", verifier=Verifier())
    assert seen == DATA


def test_its_options_are_those_of_its_group(several, tmp_path):
    stores = location.SCHEME_TO_CLS_BACKEND_MAP["shelf"]
    assert [stores[name]["store"].WRITE_CHUNKSIZE for name in ("top", "bottom")] == [7000, 9000]
    assert multi_backend.get_store_weight("bottom") == 3
    assert stores["top"]["store"].url_prefix == f"shelf://{tmp_path}/top"
    # It is for one use, says its author: each time another.
    first = stores["top"]["store"]
    assert multi_backend.get_store_from_store_identifier("top") is not first
    names = {
        option.dest for group, options in multi_backend._list_config_opts() if group == "shelf" for option in options
    }
    assert names == {"shelf_directory", "shelf_chunk_size", "store_description", "weight"}


@pytest.mark.parametrize("registered", [True, False])
def test_one_that_reads_its_group_itself_finds_its_defaults_there(conf, tmp_path, registered):
    conf.register_opt(cfg.DictOpt("enabled_backends"))
    conf.set_override("enabled_backends", {"one": "direct", "other": "direct", "third": "shelf"})
    if registered:
        multi_backend.register_store_opts(conf)
    for name, size in (("one", None), ("other", 9000), ("third", None)):
        store = backend.store_class("direct" if name != "third" else "shelf")(conf, backend=name)
        conf.set_override("shelf_directory", str(tmp_path / name), name)
        if size is not None:
            conf.set_override("shelf_chunk_size", size, name)
        store.configure()
        assert store.WRITE_CHUNKSIZE == (size or 7000)


def test_a_default_of_its_own_stands_behind_what_an_operator_says(several):
    given = [
        driver.BackendGroupConfiguration([cfg.IntOpt("shelf_chunk_size", default=7000, min=1)], name, conf=several)
        for name in ("top", "bottom")
    ]
    given[0].set_default("shelf_chunk_size", 5)
    assert [each.shelf_chunk_size for each in given] == [5, 9000]
    several.set_override("shelf_chunk_size", 6, "backend_defaults")
    assert [each.shelf_chunk_size for each in given] == [6, 9000]


def test_an_old_client_takes_slices_to_the_end(several):
    class Bytes(backend.Indexable):
        def another(self):
            return self.wrapped.read(2)

    data = Bytes(io.BytesIO(b"abcde"), 5)
    assert len(data) == 5
    assert [data[start:] for start in (0, 1, 2, 4, 5)] == [b"ab", b"b", b"cd", b"e", b""]
    assert data.getvalue() == b"abcde"


def test_metadata_that_glance_could_not_keep_is_refused(several):
    with pytest.raises(exceptions.BackendException, match="metadata"):
        multi_backend.add_with_multihash(several, "bad-metadata", io.BytesIO(DATA), 0, "top", "sha256")


def test_one_that_is_configured_wrongly_adds_nothing(several):
    several.set_override("shelf_directory", None, "top")
    with pytest.raises(exceptions.StoreAddDisabled):
        multi_backend.add_with_multihash(several, "7", io.BytesIO(DATA), 0, "top", "sha256")


def test_one_that_cannot_be_loaded_takes_none_along(conf, tmp_path, caplog):
    conf.register_opt(cfg.DictOpt("enabled_backends"))
    kinds = ["broken", "no-such", "lacking", "strict"]
    conf.set_override("enabled_backends", {**{f"a {kind} one": kind for kind in kinds}, "files": "file"})
    multi_backend.register_store_opts(conf)
    conf.set_override("filesystem_store_datadir", str(tmp_path / "files"), "files")
    assert multi_backend.create_multi_stores(conf) == 2
    for kind in kinds:
        assert kind in caplog.text
        with pytest.raises(exceptions.UnknownScheme, match=f"identifier a {kind} one not found"):
            multi_backend.get_store_from_store_identifier(f"a {kind} one")


def test_it_works_without_names_too(conf, tmp_path):
    # The other one of its entry points cannot be loaded, and neither kind hinders.
    backend.register_opts(conf)
    conf.set_override("stores", ["shelf", "file"], "glance_store")
    conf.set_override("shelf_directory", str(tmp_path / "shelf"), "glance_store")
    conf.set_override("filesystem_store_datadir", str(tmp_path / "files"), "glance_store")
    assert backend.create_stores(conf) == 2
    uri = backend.add_to_backend_with_multihash(conf, "7", io.BytesIO(DATA), 0, "sha256", scheme="shelf")[0]
    assert read(backend.get_from_backend(uri, offset=1)) == DATA[1:]
    backend.delete_from_backend(uri)
