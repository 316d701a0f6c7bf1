# SPDX-License-Identifier: Apache-2.0
"""glance_store's functions and classes over stores of storelib: what Glance and drivers of others rely on."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import re
import sys
from pathlib import Path

import pytest
from oslo_config import cfg, types

from storelib import exceptions as ours
from storelib.compat import errors, options
from storelib.compat.glance_store import backend, capabilities, driver, exceptions, location, multi_backend
from storelib.compat.glance_store._drivers import filesystem
from storelib.plugins import driver_class

VOLUME = "12345678-9012-3456-7890-123456789012"
DATA = os.urandom(200_000)


@pytest.fixture
def single(conf, tmp_path):
    """One file store, found by its scheme."""
    backend.register_opts(conf)
    conf.set_override("stores", ["file", "http"], "glance_store")
    conf.set_override("filesystem_store_datadir", str(tmp_path / "images"), "glance_store")
    assert backend.create_stores(conf) == 2
    backend.verify_default_store()
    return conf


@pytest.fixture
def several(conf, tmp_path):
    """Two file stores with names, one of HTTP, and one of the service's own."""
    conf.register_opt(cfg.DictOpt("enabled_backends"))
    conf.set_override("enabled_backends", {"fast": "file", "slow": "file", "web": "http"})
    reserved = {"os_glance_staging_store": "file"}
    multi_backend.register_store_opts(conf, reserved_stores=reserved)
    conf.set_override("default_backend", "fast", "glance_store")
    for name in ("fast", "slow", "os_glance_staging_store"):
        conf.set_override("filesystem_store_datadir", str(tmp_path / name), name)
    conf.set_override("weight", 7, "slow")
    # Each scheme of each store counts.
    assert multi_backend.create_multi_stores(conf, reserved_stores=reserved) == 8
    multi_backend.verify_store()
    return conf


def read(answer):
    chunks, size = answer
    found = b"".join(chunks)
    assert len(found) == size
    return found


class TestStoresWithoutNames:
    def test_an_image_comes_and_goes(self, single):
        uri, size, checksum, multihash, metadata = backend.add_to_backend_with_multihash(
            single, "image", io.BytesIO(DATA), len(DATA), "sha256"
        )
        assert (size, checksum) == (len(DATA), hashlib.md5(DATA).hexdigest())
        assert (multihash, metadata) == (hashlib.sha256(DATA).hexdigest(), {})
        assert read(backend.get_from_backend(uri)) == DATA
        assert read(backend.get_from_backend(uri, offset=100, chunk_size=50)) == DATA[100:150]
        assert read(backend.get_from_backend(uri, offset=100)) == DATA[100:]
        assert backend.get_size_from_backend(uri) == len(DATA)
        backend.delete_from_backend(uri)
        with pytest.raises(exceptions.NotFound):
            backend.get_from_backend(uri)

    @pytest.mark.parametrize("size", [0, None])
    def test_a_size_that_is_not_known_is_0_or_none(self, single, size):
        found = backend.add_to_backend(single, "image", io.BytesIO(DATA), size)
        assert found[1] == len(DATA)
        assert len(found) == 4

    def test_what_glance_passes_has_read_and_nothing_else(self, single):
        class Reader:
            def __init__(self):
                self._file = io.BytesIO(DATA)

            def read(self, length=None):
                return self._file.read(length)

            def __iter__(self):
                return iter(lambda: self.read(65536), b"")

        uri = backend.add_to_backend(single, "image", Reader(), len(DATA))[0]
        assert read(backend.get_from_backend(uri)) == DATA

    def test_a_verifier_sees_every_byte(self, single):
        seen = bytearray()

        class Verifier:
            update = seen.extend

        backend.add_to_backend(single, "image", io.BytesIO(DATA), 0, verifier=Verifier())
        assert seen == DATA

    def test_schemes_and_stores(self, single):
        assert {"file", "filesystem", "http", "https"} == set(backend.get_known_schemes())
        assert backend.get_store_from_uri("file:///x") is backend.get_store_from_scheme("filesystem")
        assert backend.get_store_from_location("file:///x") == "file"
        with pytest.raises(exceptions.UnknownScheme, match="rbd"):
            backend.get_store_from_scheme("rbd")
        with pytest.raises(exceptions.UnknownScheme):
            location.get_location_from_uri("rbd://x", conf=single)
        with pytest.raises(exceptions.BadStoreUri):
            location.get_location_from_uri("file:///a/../b", conf=single)

    def test_errors_are_those_that_glance_catches(self, single, tmp_path):
        backend.add_to_backend(single, "image", io.BytesIO(b"x"), 1)
        with pytest.raises(exceptions.Duplicate):
            backend.add_to_backend(single, "image", io.BytesIO(b"x"), 1)
        for declared, words in ((2, "Size exceeds: expected 2 bytes"), (5, "Size mismatch: expected 5 bytes, got 3 b")):
            with pytest.raises(exceptions.Invalid, match=words):
                backend.add_to_backend(single, "other", io.BytesIO(b"xyz"), declared)
        with pytest.raises(exceptions.UnknownHashingAlgo):
            backend.add_to_backend_with_multihash(single, "other", io.BytesIO(b"x"), 1, "md6")
        with pytest.raises(exceptions.UnknownHashingAlgo):
            backend.add_to_backend_with_multihash(single, "other", io.BytesIO(b"x"), 1, "shake_128")
        with pytest.raises(exceptions.StoreAddDisabled):
            backend.add_to_backend(single, "other", io.BytesIO(b"x"), 1, scheme="http")
        with pytest.raises(exceptions.Invalid):
            backend.add_to_backend(single, "../other", io.BytesIO(b"x"), 1)
        (tmp_path / "elsewhere").write_bytes(b"secret")
        # A file of the host that is not this store's is no image of it.
        with pytest.raises(exceptions.NotFound):
            backend.get_from_backend(f"file://{tmp_path}/elsewhere")

    @pytest.mark.parametrize("place", ["169.254.169.254/latest", "127.0.0.1:1/image"])
    def test_the_size_of_what_nobody_serves_is_that_of_a_wrong_uri(self, single, place):
        """Glance then answers the client, who gave it, that the location is wrong."""
        with pytest.raises(exceptions.BadStoreUri):
            backend.get_size_from_backend(f"http://{place}")

    def test_a_fault_of_the_source_passes_as_it_is(self, single, tmp_path):
        class Broken:
            def read(self, length):
                raise PermissionError(13, "the client's own")

        with pytest.raises(PermissionError, match="own"):
            backend.add_to_backend(single, "image", Broken(), 0)
        assert os.listdir(tmp_path / "images") == []

    def test_a_scheme_may_be_in_capitals(self, single, several, tmp_path):
        uri = backend.add_to_backend(single, "7", io.BytesIO(DATA), len(DATA))[0]
        other = multi_backend.add(several, "8", io.BytesIO(DATA), len(DATA), "slow")[0]
        assert read(backend.get_from_backend(uri.replace("file:", "FILE:"))) == DATA
        assert read(multi_backend.get(other.replace("file:", "FILE:"), None)) == DATA

    def test_a_location_tells_its_scheme(self, single, tmp_path):
        assert location.get_location_from_uri(f"file://{tmp_path}/images/7", single).store_location.scheme == "file"

    def test_no_tenants_may_be_none(self, single, several, tmp_path):
        backend.set_acls(f"file://{tmp_path}/images/7", read_tenants=None, write_tenants=None)
        multi_backend.set_acls_for_multi_store(f"file://{tmp_path}/slow/7", "slow", read_tenants=None)

    def test_lists_that_a_store_has_not_are_no_error(self, single):
        uri = backend.add_to_backend(single, "image", io.BytesIO(b"x"), 1)[0]
        backend.set_acls(uri, public=True)

    def test_loading_a_store_by_hand(self, single, tmp_path):
        store = backend._load_store(single, "file")
        store.configure()
        uri = store.add("by-hand", io.BytesIO(DATA), len(DATA))[0]
        store.delete(location.get_location_from_uri(uri, conf=single))
        assert backend._load_store(single, "glance.store.filesystem.Store", invoke_load=False) is filesystem.Store
        assert backend._load_store(single, "no-such-driver") is None

    def test_a_store_without_a_directory_can_read_nothing_and_says_why(self, single):
        single.set_override("filesystem_store_datadir", None, "glance_store")
        store = filesystem.Store(single)
        store.configure()
        assert not store.is_capable(capabilities.BitMasks.WRITE_ACCESS)
        with pytest.raises(exceptions.BadStoreConfiguration, match="filesystem_store_datadir"):
            store.configure(re_raise_bsc=True)
        with pytest.raises(exceptions.StoreAddDisabled):
            store.add("image", io.BytesIO(b"x"), 1)


class TestStoresWithNames:
    def test_an_image_comes_and_goes(self, several, tmp_path):
        uri, size, _, multihash, metadata = multi_backend.add_with_multihash(
            several, "image", io.BytesIO(DATA), len(DATA), "slow", "sha512"
        )
        assert uri == f"file://{tmp_path}/slow/image"
        assert (size, multihash) == (len(DATA), hashlib.sha512(DATA).hexdigest())
        assert metadata == {"store": "slow"}
        assert read(multi_backend.get(uri, "slow")) == DATA
        assert read(multi_backend.get(uri, None)) == DATA
        assert multi_backend.get_size_from_uri_and_backend(uri, "slow") == len(DATA)
        # It is not in the other one, whose name nothing says of the file.
        with pytest.raises(exceptions.NotFound):
            multi_backend.get(uri, "fast")
        multi_backend.delete(uri, None)
        with pytest.raises(exceptions.NotFound, match="any configured backend"):
            multi_backend.get(uri, None)

    def test_no_name_is_the_default_store(self, several, tmp_path):
        found = multi_backend.add(several, "image", io.BytesIO(DATA), 0, None)
        assert found[0] == f"file://{tmp_path}/fast/image"
        assert found[3] == {"store": "fast"}

    def test_what_glance_reads_directly(self, several, tmp_path):
        known = location.SCHEME_TO_CLS_BACKEND_MAP["file"]["fast"]
        assert known["store"].url_prefix == f"file://{tmp_path}/fast"
        assert known["store"].datadir == str(tmp_path / "fast")
        assert known["store"].thin_provisioning is False
        assert multi_backend.get_store_weight("slow") == 7
        assert multi_backend.get_store_weight("fast") == 0
        assert multi_backend.get_store_from_store_identifier("fast") is known["store"]
        found = location.get_location_from_uri_and_backend(f"file://{tmp_path}/fast/x", "fast", conf=several)
        assert found.get_store_uri() == f"file://{tmp_path}/fast/x"
        assert found.store_location.path == f"{tmp_path}/fast/x"
        assert set(multi_backend.get_known_schemes_for_multi_store()) == {"file", "filesystem", "http", "https"}

    def test_a_name_that_becomes_another_store_s_is_no_longer_that_of_the_first(self, several):
        """What is configured anew may give a name to a store of another driver, as Glance's tests do."""
        backends = {"fast": "file", "slow": "http"}
        several.set_override("enabled_backends", backends)
        multi_backend.create_multi_stores(several)
        assert multi_backend.get_store_from_store_identifier("slow").get_schemes() == ("http", "https")
        assert "slow" not in location.SCHEME_TO_CLS_BACKEND_MAP["file"]

    def test_a_uri_without_a_store_is_not_taken_for_that_of_a_shorter_name(self, several, tmp_path):
        """Glance takes the first store whose prefix it begins with, and writes that into the location."""
        several.set_override("filesystem_store_datadir", f"{tmp_path}/fast2", "slow")
        location.SCHEME_TO_CLS_BACKEND_MAP.clear()
        multi_backend.create_multi_stores(several)
        for name, directory in (("fast", "fast"), ("slow", "fast2")):
            uri = f"file://{tmp_path}/{directory}/7"
            known = location.SCHEME_TO_CLS_BACKEND_MAP["file"]
            assert next(each for each in known if uri.startswith(known[each]["store"].url_prefix)) == name

    def test_two_stores_in_one_place_work_and_are_warned_of(self, several, tmp_path, caplog):
        several.set_override("filesystem_store_datadir", f"{tmp_path}/fast/below", "slow")
        multi_backend.create_multi_stores(several)
        assert multi_backend.add(several, "image", io.BytesIO(DATA), 0, "slow")[1] == len(DATA)
        assert "Stores fast and slow keep images in the same place" in caplog.text

    def test_stores_in_places_of_their_own_are_not_warned_of(self, several, caplog):
        multi_backend.create_multi_stores(several)
        assert "same place" not in caplog.text

    def test_a_store_that_is_not_there(self, several):
        for ask in (multi_backend.get_store_weight, multi_backend.get_store_from_store_identifier):
            with pytest.raises(exceptions.UnknownScheme):
                ask("no-such")
        with pytest.raises(exceptions.UnknownScheme):
            multi_backend.get("file:///x", "no-such")
        several.set_override("default_backend", "no-such", "glance_store")
        with pytest.raises(RuntimeError, match="no-such"):
            multi_backend.verify_store()

    def test_the_service_s_own_store_is_not_among_the_users(self, several, tmp_path):
        staged = multi_backend.add(several, "image", io.BytesIO(DATA), 0, "os_glance_staging_store")
        assert staged[0] == f"file://{tmp_path}/os_glance_staging_store/image"
        assert several.enabled_backends == {"fast": "file", "slow": "file", "web": "http"}
        with pytest.raises(exceptions.NotFound):
            multi_backend.get(staged[0], None)

    def test_its_directory_is_not_that_of_the_images_when_nothing_is_set(self, conf):
        """What glance_store reads as None, and uses as the directory of the images."""
        conf.register_opt(cfg.DictOpt("enabled_backends"))
        conf.set_override("enabled_backends", {"fast": "file"})
        multi_backend.register_store_opts(conf, reserved_stores={"os_glance_tasks_store": "file"})
        store = filesystem.Store(conf, backend="os_glance_tasks_store")
        assert conf.os_glance_tasks_store.filesystem_store_datadir == "/var/lib/glance/os_glance_tasks_store"
        assert store.options.filesystem_store_datadir == "/var/lib/glance/os_glance_tasks_store"
        # Nor when the others have one in common: Glance looks for what it staged where its own group says.
        conf.set_override("filesystem_store_datadir", "/images", "backend_defaults")
        places = {"os_glance_tasks_store": "/var/lib/glance/os_glance_tasks_store", "fast": "/images"}
        for name, where in places.items():
            given = options.Given(conf, (name, "backend_defaults")).values(options.all_options("file"))
            assert given["filesystem_store_datadir"] == where

    def test_what_a_group_does_not_set_comes_from_the_shared_one(self, several, tmp_path):
        several.set_override("filesystem_thin_provisioning", True, "backend_defaults")
        several.set_override("filesystem_thin_provisioning", False, "slow")
        stores = [filesystem.Store(several, backend=name) for name in ("fast", "slow")]
        for store in stores:
            store.configure()
        assert [store.thin_provisioning for store in stores] == [True, False]
        assert [store.native.datadirs.settings.sparse for store in stores] == [True, False]


class TestOptions:
    @pytest.mark.parametrize("name", sorted(options.KNOWN))
    def test_each_is_honoured_or_said_to_mean_nothing(self, name):
        ours_ = {option.dest for option in driver_class(name).options}
        for option in options.known_options(name):
            assert (option.dest in ours_) != (option.dest in options.IGNORED), option.dest
            if option.dest in options.IGNORED:
                assert option.help.startswith("Read and ignored by storelib: ")

    @pytest.mark.parametrize("group", ["one", None])
    @pytest.mark.parametrize("name", sorted(options.KNOWN))
    def test_what_a_file_says_is_what_the_store_gets(self, tmp_path, name, group):
        """Every option of the driver with a value that is not its default, read from a file; some values are cut."""
        text = {}
        for option in options.known_options(name):
            kind, default = option.type, option.default
            if option.dest in options.IGNORED:
                continue
            if isinstance(kind, types.Boolean):
                value = str(not default)
            elif isinstance(kind, types.Number):
                value = str(int(default or 0) + 1)
            elif isinstance(kind, types.Dict):
                value = "http:proxy.example.com"
            else:
                value = next((choice for choice in getattr(kind, "choices", None) or () if choice != default), "/text")
            text[option.dest] = value
        lines = [f"{option} = {value}" for option, value in text.items()]
        config = tmp_path / "glance.conf"
        config.write_text("\n".join([f"[{group or 'glance_store'}]", *lines]))
        conf = cfg.ConfigOpts()
        conf.register_opt(cfg.DictOpt("enabled_backends"))
        conf(args=[], default_config_files=[str(config)], default_config_dirs=[])
        conf.set_override("enabled_backends", {group: name} if group else {})
        multi_backend.register_store_opts(conf) if group else backend.register_opts(conf)
        known = options.all_options(name)
        found = options.Given(conf, (group, "backend_defaults") if group else ("glance_store",)).values(known)
        for option in known:
            if option.dest in text:
                expected = option.type(text[option.dest])
                assert found[option.dest] == ([expected] if option.multi else expected), option.dest
        assert set(found) - set(text) <= set(options.OLD_DEFAULTS)

    def test_lists_for_sample_files_name_no_option_twice(self):
        (_, first), (_, second) = backend._list_opts()
        names = [option.dest for option in (*first, *second)]
        assert len(names) == len(set(names)) == 2 + sum(map(len, options.KNOWN.values()))
        groups = [group for group, _ in multi_backend._list_config_opts()]
        assert len(groups) == len(set(groups))

    def test_a_value_that_cannot_be_is_refused_with_its_name(self, single):
        single.set_override("filesystem_store_file_perm", 7, "glance_store")
        with pytest.raises(exceptions.BadStoreConfiguration, match="filesystem_store_file_perm"):
            filesystem.Store(single).configure_add()

    @pytest.mark.parametrize("group", ["one", None])
    @pytest.mark.parametrize(
        ("name", "option", "value"),
        [
            ("file", "filesystem_store_chunk_size", "0"),
            ("file", "filesystem_thin_provisioning", "perhaps"),
            ("rbd", "rbd_store_chunk_size", "64"),
            ("s3", "s3_store_large_object_chunk_size", "4"),
            ("s3", "s3_store_bucket_url_format", "anyhow"),
            ("swift", "swift_store_auth_version", "2"),
            ("cinder", "cinder_state_transition_timeout", "soon"),
            ("vmware", "transfer_timeout", "-1"),
        ],
    )
    def test_a_value_of_a_file_that_cannot_be_is_refused_with_its_name(self, tmp_path, name, option, value, group):
        """It must not be as if it were not there."""
        conf = self.read(tmp_path, name, group, f"{option} = {value}")
        with pytest.raises(ValueError, match=f"{option} .*is not valid"):
            backend.store_class(name)(conf, **({"backend": group} if group else {})).configure()

    @pytest.mark.parametrize("group", ["one", None])
    def test_an_option_of_a_file_that_refers_to_none_is_refused(self, tmp_path, group):
        conf = self.read(tmp_path, "file", group, "filesystem_store_datadir = $state_dir/images")
        with pytest.raises(cfg.Error, match="state_dir"):
            filesystem.Store(conf, **({"backend": group} if group else {})).configure()

    def test_parts_in_flight_are_cut_to_what_there_may_be(self, tmp_path):
        conf = self.read(tmp_path, "s3", "one", "s3_store_thread_pools = 500")
        assert conf.one.s3_store_thread_pools == 500
        assert options.Given(conf, ["one"]).values(options.all_options("s3")) == {"s3_store_thread_pools": 64}

    def read(self, tmp_path, name, group, line):
        """The configuration of a file in which one store has one option."""
        config = tmp_path / "glance.conf"
        config.write_text(f"[{group or 'glance_store'}]\n{line}\n")
        conf = cfg.ConfigOpts()
        conf.register_opt(cfg.DictOpt("enabled_backends", default={group: name} if group else {}))
        conf(args=[], default_config_files=[str(config)], default_config_dirs=[])
        multi_backend.register_store_opts(conf) if group else backend.register_opts(conf)
        return conf

    def test_what_glance_store_hides_in_logs_is_hidden(self):
        names = {option.dest for name in options.KNOWN for option in options.known_options(name) if option.secret}
        assert names >= {
            *("cinder_store_password", "cinder_store_application_credential_secret", "vmware_server_password"),
            *("s3_store_access_key", "s3_store_secret_key", "swift_store_key"),
            *("swift_store_application_credential_id", "swift_store_application_credential_secret"),
        }

    def test_other_options_of_storelib_work_in_a_group(self, several):
        several.set_override("filesystem_store_shard_levels", 1, "fast")
        several.set_override("transfer_timeout", 12.0, "fast")
        store = filesystem.Store(several, backend="fast")
        store.configure()
        assert store.native.conf.filesystem_store_shard_levels == 1
        assert store.native.retry_policy.timeout == 12

    def test_chunks_of_any_size_are_taken(self, several):
        several.set_override("filesystem_store_chunk_size", 1 << 30, "fast")
        store = filesystem.Store(several, backend="fast")
        store.configure()
        assert store.chunk_size == store.READ_CHUNKSIZE == 1 << 30

    def test_the_old_directory_is_the_default(self, conf):
        backend.register_opts(conf)
        assert conf.glance_store.filesystem_store_datadir == "/var/lib/glance/images"


class TestErrors:
    def test_every_error_of_storelib_has_its_counterpart(self):
        """None reaches Glance as itself, and those that it knows by name keep theirs."""
        kinds = [kind for kind in vars(ours).values() if isinstance(kind, type) and issubclass(kind, ours.StoreError)]
        assert len(kinds) > 20
        for kind in kinds:
            found = errors.translated(kind("why it is so"))
            assert not isinstance(found, ours.StoreError)
            assert str(found) == "why it is so"
            counterpart = getattr(exceptions, kind.__name__, None)
            if counterpart is not None:
                assert type(found) is counterpart

    def test_messages_take_their_arguments(self):
        assert str(exceptions.NotFound(image=7)) == "Image 7 not found"
        assert str(exceptions.NotFound()) == "Image %(image)s not found"
        assert exceptions.Invalid("100% wrong").msg == "100% wrong"
        assert str(exceptions.NotFound("it %(is)s", wrong=1)) == "it %(is)s"
        assert str(exceptions.TimeoutError(timeout=5)).startswith("Operation timed out after 5s")
        assert exceptions.RedirectException("http://host/x").url.path == "/x"

    def test_an_argument_that_cannot_be_shown_is_no_other_error(self):
        class Unshowable:
            def __str__(self):
                raise RuntimeError

        assert exceptions.NotFound(image=Unshowable()).msg == exceptions.NotFound.message
        assert exceptions.TimeoutError(timeout=float("inf")).msg == exceptions.TimeoutError.message


class TestCapabilities:
    class ReadOnly(driver.Store):
        _CAPABILITIES = capabilities.BitMasks.READ_ACCESS

        @capabilities.check
        def get(self, location, offset=0, chunk_size=None, context=None):
            return "bytes"

        @capabilities.check
        def add(self, image_id, image_file, image_size, hashing_algo, context=None, verifier=None):
            """Never called."""

    def test_a_range_is_refused_however_it_is_asked_for(self, conf):
        store = self.ReadOnly(conf)
        assert store.get("x") == "bytes"
        for arguments, named in (((10,), {}), ((0, 5), {}), ((), {"offset": 1}), ((), {"chunk_size": 1})):
            with pytest.raises(exceptions.StoreRandomGetNotSupported):
                store.get("x", *arguments, **named)
        store.unset_capabilities(capabilities.BitMasks.READ_ACCESS)
        with pytest.raises(exceptions.StoreGetNotSupported):
            store.get("x")

    def test_a_range_is_refused_by_a_driver_that_takes_any_arguments_too(self, conf):
        class Wrapping(self.ReadOnly):
            @capabilities.check
            def get(self, location, *args, **kwargs):
                return "bytes"

        store = Wrapping(conf)
        assert store.get("x", offset=0, chunk_size=None, context=None) == "bytes"
        for named in ({"offset": 1}, {"chunk_size": 1}):
            with pytest.raises(exceptions.StoreRandomGetNotSupported):
                store.get("x", **named)

    def test_a_driver_may_tell_its_capabilities_itself(self, conf):
        class Wrapping(self.ReadOnly):
            @property
            def capabilities(self):
                return int(capabilities.BitMasks.READ_RANDOM)

        assert Wrapping(conf).get("x", offset=1) == "bytes"

    def test_what_cannot_be_written_to(self, conf):
        store = self.ReadOnly(conf)
        with pytest.raises(exceptions.StoreAddDisabled):
            store.add("id", b"", 0, "sha256")
        with pytest.raises(exceptions.StoreDeleteNotSupported):
            store.delete("x")


THIRD_PARTY = """
from glance_store import capabilities, driver, exceptions, location


class StoreLocation(location.StoreLocation):
    def parse_uri(self, uri):
        self.validate_schemas(uri, valid_schemas=("tape://",))
        self.name = uri[len("tape://"):]

    def get_uri(self):
        return "tape://" + self.name


class Store(driver.Store):
    _CAPABILITIES = capabilities.BitMasks.RW_ACCESS
    kept = {}

    def get_schemes(self):
        return ("tape",)

    @capabilities.check
    def get(self, location, offset=0, chunk_size=None, context=None):
        try:
            data = self.kept[location.store_location.name]
        except KeyError:
            raise exceptions.NotFound(image=location.store_location.name)
        return iter([data]), len(data)

    @driver.back_compat_add
    @capabilities.check
    def add(self, image_id, image_file, image_size, hashing_algo, context=None, verifier=None):
        self.kept[image_id] = image_file.read()
        return "tape://" + image_id, len(self.kept[image_id]), "md5", hashing_algo, {}
"""


def test_a_driver_that_was_written_for_glance_store_works(conf, tmp_path, monkeypatch):
    """Found by its entry point; it is not reusable, so a store is made for each use, as its author expects."""
    from storelib.compat import finder

    (tmp_path / "tape_driver.py").write_text(THIRD_PARTY)
    info = tmp_path / "tape-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tape\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[glance_store.drivers]\ntape = tape_driver:Store\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [finder.Finder(), *sys.meta_path])
    assert "tape" in backend.third_party_entries()
    backend.register_opts(conf)
    conf.set_override("stores", ["tape"], "glance_store")
    assert backend.create_stores(conf) == 1
    first = location.SCHEME_TO_CLS_MAP["tape"]["store"]
    added = backend.add_to_backend_with_multihash(conf, "one", io.BytesIO(b"bytes"), 5, "sha256", scheme="tape")
    assert added == ("tape://one", 5, "md5", "sha256", {})
    assert read(backend.get_from_backend("tape://one")) == b"bytes"
    assert location.SCHEME_TO_CLS_MAP["tape"]["store"] is not first
    with pytest.raises(exceptions.NotFound, match="two"):
        backend.get_from_backend("tape://two")


class TestOldAdd:
    """Callers who know of no algorithm get four values."""

    class Store:
        @driver.back_compat_add
        def add(self, image_id, image_file, image_size, hashing_algo, context=None, verifier=None):
            return image_id, image_size, "md5", hashing_algo, {"context": context, "verifier": verifier}

    @pytest.mark.parametrize(
        ("arguments", "named", "expected"),
        [
            (("id", b"", 1), {}, ("id", 1, "md5", {"context": None, "verifier": None})),
            (("id", b"", 1, {"c": 1}), {}, ("id", 1, "md5", {"context": {"c": 1}, "verifier": None})),
            (("id", b"", 1, None, 7), {}, ("id", 1, "md5", {"context": None, "verifier": 7})),
            (("id", b"", 1), {"verifier": 7}, ("id", 1, "md5", {"context": None, "verifier": 7})),
            (("id", b"", 1, "sha256"), {}, ("id", 1, "md5", "sha256", {"context": None, "verifier": None})),
            (("id", b"", 1, None, None, None), {}, ("id", 1, "md5", None, {"context": None, "verifier": None})),
            (("id", b"", 1), {"hashing_algo": "x"}, ("id", 1, "md5", "x", {"context": None, "verifier": None})),
        ],
    )
    def test_the_number_of_values_follows_from_the_arguments(self, arguments, named, expected):
        assert self.Store().add(*arguments, **named) == expected

    def test_so_it_does_where_something_stands_around_the_method(self):
        class Wrapping:
            inner = self.Store()

            @driver.back_compat_add
            def add(self, *args, **kwargs):
                return self.inner.add(*args, **kwargs)

        class Named:
            @driver.back_compat_add
            def add(self, image_id, image_file, image_size, algorithm, context=None, verifier=None):
                return image_id, image_size, "md5", algorithm, {}

        assert Wrapping().add("id", b"", 1, verifier=7) == ("id", 1, "md5", {"context": None, "verifier": 7})
        assert Wrapping().add(image_id="id", image_file=b"", image_size=1)[:3] == ("id", 1, "md5")
        assert Wrapping().add("id", b"", 1, "sha256", verifier=7)[3] == "sha256"
        assert Wrapping().add("id", b"", 1, hashing_algo="sha256")[3] == "sha256"
        assert Named().add("id", b"", 1, None, 7) == ("id", 1, "md5", {})
        assert Named().add("id", b"", 1, "sha256") == ("id", 1, "md5", "sha256", {})

    def test_too_few_or_strange_arguments_are_refused(self):
        with pytest.raises(TypeError):
            self.Store().add("id", b"")
        with pytest.raises(TypeError):
            self.Store().add("id", b"", 1, strange=2)


def test_the_guide_tells_the_defaults_that_are_others():
    text = (Path(__file__).parents[3] / "docs" / "from-glance-store.rst").read_text()
    rows = re.findall(r"\* - ``(\w+)``\n +- .*\n +- (\w+)", text)
    known = {option.dest: option for name in options.KNOWN for option in options.known_options(name)}
    assert len(rows) == 6
    for name, default in rows:
        assert str(known[name].default).lower() == default, name


def test_the_guide_names_every_option_that_means_nothing():
    guide = (Path(__file__).parents[3] / "docs" / "from-glance-store.rst").read_text()
    listed = guide.partition("mean nothing here:")[2].partition(".\n")[0]
    assert sorted(re.findall(r"``(\w+)``", listed)) == sorted(options.IGNORED)


SWIFT = {
    "swift_store_auth_address": "http://keystone:5000/v3/",
    "swift_store_user": "ten/ant:us er",
    "swift_store_key": "k@y/",
    "swift_store_container": "glance",
}
VMWARE = {
    "vmware_server_host": "vcenter",
    "vmware_server_username": "user",
    "vmware_server_password": "secret",
    "vmware_datastores": ["dc:ds"],
}


@pytest.fixture
def bindings(monkeypatch):
    """The bindings are not on every machine; nothing here calls into them."""
    plain = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: object() if name in ("rados", "rbd") else plain(name, *rest)
    )


class TestWhatUrisLookLike:
    """As glance_store writes them: Glance tells by how it begins which store a URI without a name is of."""

    def store(self, conf, kind, group="one", **given):
        conf.register_opt(cfg.DictOpt("enabled_backends"))
        conf.set_override("enabled_backends", {"one": kind} if group else {})
        backend.register_opts(conf)
        if group:
            multi_backend.register_store_opts(conf)
        for name, value in given.items():
            conf.set_override(name, value, group or "glance_store")
        found = backend.store_class(kind)(conf, **({"backend": group} if group else {}))
        found.configure()
        return found

    @pytest.mark.parametrize(
        ("host", "expected"),
        [
            ("http://S3.example.com:8080/", "s3://S3.example.com:8080/images"),
            ("https://s3.example.com", "s3+https://s3.example.com/images"),
            ("s3.example.com", "s3://s3.example.com/images"),
        ],
    )
    def test_s3(self, conf, host, expected):
        pytest.importorskip("boto3")
        keys = {"s3_store_access_key": "a", "s3_store_secret_key": "b", "s3_store_bucket": "images"}
        store = self.store(conf, "s3", s3_store_host=host, **keys)
        assert store.url_prefix == expected
        written = store.native.bucket.location("7").uri
        assert store.shown_uri(written) == f"{expected}/7"
        # And it is read again.
        assert store.native.owns(store.native.locate(f"{expected}/7"))

    @pytest.mark.parametrize(
        ("entry", "specs", "uri"),
        [
            ("cinder", {"volume_id": VOLUME}, f"cinder://one/{VOLUME}"),
            ("rbd", {"fsid": "f", "pool": "p", "image": "i j", "snapshot": "s"}, "rbd://f/p/i%20j/s"),
            ("rbd", {"pool": "p", "image": "i", "snapshot": "s"}, "rbd://i"),
            ("file", {"path": "/a/b c"}, "file:///a/b c"),
            (
                "http",
                {"netloc": "h:80", "path": "/x", "query": "a=b", "user": "u", "password": "p"},
                "http://u:p@h:80/x?a=b",
            ),
            ("s3", {"s3serviceurl": "http://h:80/", "bucket": "b", "key": "k"}, "s3://h:80/b/k"),
            ("s3", {"s3serviceurl": "https://h", "bucket": "b", "key": "k"}, "s3+https://h/b/k"),
            (
                "swift",
                {"user": "t:u", "key": "k@", "auth_or_store_url": "https://h/v3/", "container": "c", "obj": "o"},
                "swift+https://t%3Au:k%40@h/v3/c/o",
            ),
            (
                "vmware",
                {
                    "server_host": "h",
                    "image_dir": "/d",
                    "image_id": "i",
                    "datacenter_path": "a/b",
                    "datastore_name": "x y",
                },
                "vsphere://h/folder/d/i?dsName=x+y&dcPath=a%2Fb",
            ),
        ],
    )
    def test_a_location_of_fields_has_the_uri_that_they_make(self, conf, entry, specs, uri):
        kind = sys.modules[backend.store_class(entry).__module__].StoreLocation
        assert kind(specs, conf, backend_group="one").get_uri() == uri
        # And it is a place, as one that was parsed.
        parsed = kind({}, conf, backend_group="one")
        parsed.parse_uri(uri)
        assert kind(specs, conf, backend_group="one").native == parsed.native

    @pytest.mark.parametrize("entry", sorted(options.KNOWN))
    def test_a_location_of_too_few_fields_has_no_uri(self, conf, entry):
        kind = sys.modules[backend.store_class(entry).__module__].StoreLocation
        found = kind({"container": "c"}, conf)
        assert (found.get_uri(), found.native) == ("", None)

    @pytest.mark.parametrize(
        ("host", "scheme"), [("gateway:7480", "s3+http"), ("http://s3", "s3+http"), ("https://s3", "s3+https")]
    )
    def test_s3_is_http_where_nothing_else_is_said(self, conf, host, scheme):
        """As glance_store has it: there are gateways that speak nothing else."""
        pytest.importorskip("boto3")
        keys = {"s3_store_access_key": "a", "s3_store_secret_key": "b", "s3_store_bucket": "images"}
        assert self.store(conf, "s3", s3_store_host=host, **keys).native.bucket.scheme == scheme

    def test_lists_in_s3_stay_what_they_are(self, conf):
        """Glance calls it whenever an image changes; in glance_store only Swift has lists."""
        pytest.importorskip("boto3")
        keys = {"s3_store_access_key": "a", "s3_store_secret_key": "b", "s3_store_bucket": "images"}
        store = self.store(conf, "s3", s3_store_host="http://localhost:1", **keys)
        with pytest.raises(NotImplementedError):
            store.set_acls(None, public=True)

    def test_swift_with_its_credentials_in_the_options(self, conf):
        """glance_store could not read it without them."""
        store = self.store(conf, "swift", **SWIFT)
        begin = "swift+http://ten%2Fant%3Aus%20er:k%40y%2F@keystone:5000/v3/"
        assert store.url_prefix == f"{begin}glance/"
        native = store.native
        written = native.service.location_of(None, "glance", "7").uri
        assert written == "swift+http://keystone:5000/v3/glance/7"
        assert store.shown_uri(written) == f"{begin}glance/7"
        assert native.owns(native.locate(f"{begin}glance/7"))
        with pytest.raises(NotImplementedError):
            store.set_acls(None)

    def test_swift_with_several_containers(self, conf):
        store = self.store(conf, "swift", **SWIFT, swift_store_multiple_containers_seed=2)
        assert store.url_prefix.endswith("/glance_")

    @pytest.mark.parametrize("name", ["my images", "größe+1", "50% of"])
    def test_containers_that_glance_store_does_not_encode(self, conf, name):
        """It would look for another one."""
        swift = self.store(conf, "swift", **{**SWIFT, "swift_store_container": name})
        written = swift.native.service.location_of(None, name, "7").uri
        assert swift.shown_uri(written).endswith(f"/{name}/7")
        assert swift.url_prefix.endswith(f"/{name}/")

    @pytest.mark.parametrize("name", ["my images", "größe+1", "50% of"])
    def test_directories_that_glance_store_does_not_encode(self, conf, name):
        """It would delete no file of this directory."""
        vmware = self.store(conf, "vmware", **{**VMWARE, "vmware_store_image_dir": f"/{name}/"})
        written = vmware.native.datastores.location(vmware.native.datastores.targets[0], "7").uri
        assert vmware.shown_uri(written) == f"vsphere://vcenter/folder/{name}/7?dcPath=dc&dsName=ds"
        assert vmware.url_prefix == f"vsphere://vcenter/folder/{name}"

    @pytest.mark.parametrize("name", ["%41", "a?b", "a#b"])
    def test_names_that_would_be_others_if_they_were_not_encoded(self, conf, name):
        vmware = self.store(conf, "vmware", **{**VMWARE, "vmware_store_image_dir": f"/{name}/"})
        written = vmware.native.datastores.location(vmware.native.datastores.targets[0], "7").uri
        assert vmware.shown_uri(written) == written

    def test_swift_with_a_file_of_accounts(self, conf, tmp_path):
        """No credentials in it; the file is found beside those of the configuration."""
        accounts = tmp_path / "swift.conf"
        accounts.write_text("[one]\nauth_address = http://keystone:5000/v3\nuser = tenant:user\nkey = secret\n")
        (tmp_path / "glance.conf").touch()
        conf(args=[], default_config_files=[str(tmp_path / "glance.conf")], default_config_dirs=[])
        given = {"swift_store_config_file": "swift.conf", "default_swift_reference": "one"}
        store = self.store(conf, "swift", **given)
        assert store.url_prefix == "swift+config://one/glance/"
        assert store.shown_uri("swift+config://one/glance/7") == "swift+config://one/glance/7"

    def test_swift_in_the_accounts_of_its_users(self, conf):
        given = {"swift_store_multi_tenant": True, "swift_store_auth_address": "http://keystone:5000/v3"}
        assert self.store(conf, "swift", **given).url_prefix is None

    @pytest.mark.parametrize(("group", "expected"), [("one", "cinder://one"), (None, "cinder://")])
    def test_cinder(self, conf, group, expected):
        store = self.store(conf, "cinder", group, cinder_endpoint_template="http://localhost:1/v3/%(project_id)s")
        assert store.url_prefix == expected
        volume = "12345678-1234-1234-1234-123456789abc"
        written = store.native.service.location(volume).uri
        assert store.shown_uri(written) == (f"cinder://one/{volume}" if group else f"cinder://{volume}")

    def test_vmware(self, conf):
        assert self.store(conf, "vmware", **VMWARE).url_prefix == "vsphere://vcenter/folder/openstack_glance"

    def test_http(self, conf):
        assert self.store(conf, "http").url_prefix == "http"

    def test_files_in_a_directory_with_a_strange_name(self, conf, tmp_path):
        """glance_store neither encodes a path nor decodes one."""
        place = tmp_path / "my %41 images"
        store = self.store(conf, "file", filesystem_store_datadir=str(place))
        assert store.url_prefix == f"file://{place}"
        uri = store.add("7", io.BytesIO(DATA), len(DATA), "sha256")[0]
        assert uri == f"file://{place}/7"
        found = location.Location("file", filesystem.StoreLocation, conf, uri=uri, backend="one")
        assert found.get_store_uri() == uri
        assert read(store.get(found)) == DATA

    def test_an_option_that_refers_to_none_names_that(self, conf):
        with pytest.raises(cfg.NoSuchOptError) as caught:
            self.store(conf, "file", filesystem_store_datadir="$state_dir/images")
        assert caught.value.opt_name == "state_dir"

    def test_files_in_a_directory_below_the_working_directory(self, conf, tmp_path, monkeypatch):
        """glance_store, and Glance for what is staged, write its path into URIs as it is configured."""
        monkeypatch.chdir(tmp_path)
        store = self.store(conf, "file", filesystem_store_datadir="some/images")
        uri = store.add("7", io.BytesIO(DATA), len(DATA), "sha256")[0]
        for given in (uri, "file://some/images/7", "filesystem://some/images/7"):
            found = location.Location("file", filesystem.StoreLocation, conf, uri=given, backend="one")
            assert found.get_store_uri() == given
            assert read(store.get(found)) == DATA
        for outside in (
            "file://some/images/../../secret",
            "file://other/7",
            f"file://{tmp_path}/some/images/../../7",
        ):
            with pytest.raises(exceptions.BadStoreUri):
                location.Location("file", filesystem.StoreLocation, conf, uri=outside, backend="one")

    @pytest.mark.parametrize("form", ["{0}/a/../images", "{0}//images//", "{0}/./images", "{0}/images/"])
    @pytest.mark.parametrize("option", ["filesystem_store_datadir", "filesystem_store_datadirs"])
    def test_files_in_a_directory_of_any_spelling(self, conf, tmp_path, form, option):
        directory = form.format(tmp_path)
        several = {"filesystem_store_datadir": "", option: [f"{directory}:3"]}
        given = {option: directory} if option == "filesystem_store_datadir" else several
        store = self.store(conf, "file", **given)
        store.add("7", io.BytesIO(DATA), len(DATA), "sha256")
        uri = f"file://{os.path.join(directory, '7')}"
        found = location.Location("file", filesystem.StoreLocation, conf, uri=uri, backend="one")
        assert read(store.get(found)) == DATA
        assert uri.startswith(store.url_prefix)

    @pytest.mark.parametrize("one", [None, ""])
    def test_files_in_several_directories(self, conf, tmp_path, one):
        """Without the empty one, glance_store takes its default for a second way of saying it."""
        places = [f"{tmp_path}/a:1", f"{tmp_path}/b:9"]
        given = {"filesystem_store_datadir": one, "filesystem_store_datadirs": places}
        assert self.store(conf, "file", **given).url_prefix == f"file://{tmp_path}/b"

    def test_an_empty_priority_is_none(self, conf, tmp_path):
        """As a template writes it that has none."""
        store = self.store(conf, "file", filesystem_store_datadirs=[f"{tmp_path}/a:", f"{tmp_path}/b:-1"])
        assert store.url_prefix == f"file://{tmp_path}/a"
        assert store.add("7", io.BytesIO(DATA), 0, "sha256")[0] == f"file://{tmp_path}/a/7"

    def test_rbd_asks_the_cluster_when_glance_does(self, conf, tmp_path, monkeypatch, bindings):
        """A cluster that does not answer keeps no service from starting."""

        def silent(cluster):
            raise ours.RemoteServiceUnavailable("no monitor answers")

        (tmp_path / "ceph.conf").touch()
        given = {"rbd_store_ceph_conf": str(tmp_path / "ceph.conf"), "rbd_store_pool": "po ol"}
        store = self.store(conf, "rbd", **given)
        monkeypatch.setattr(type(store.native.cluster), "fsid", property(silent))
        assert store.url_prefix is None
        monkeypatch.setattr(type(store.native.cluster), "fsid", "f-s-id")
        assert store.url_prefix == "rbd://f-s-id/po%20ol/"
