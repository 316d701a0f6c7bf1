# SPDX-License-Identifier: Apache-2.0
"""What goes wrong with glance_store 5.7.0 does not with storelib in its place: each test is one such thing."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import io
import json
import os
import threading
import uuid

import pytest
from oslo_config import cfg

from storelib.compat.glance_store import exceptions, multi_backend

DATA = os.urandom(300_000)


@pytest.fixture
def make(conf):
    """Stores with names from ``name=(driver, options)``."""

    def make(**stores):
        conf.register_opt(cfg.DictOpt("enabled_backends"))
        conf.set_override("enabled_backends", {name: kind for name, (kind, _) in stores.items()})
        multi_backend.register_store_opts(conf)
        conf.set_override("default_backend", next(iter(stores)), "glance_store")
        for name, (_, options) in stores.items():
            for option, value in options.items():
                conf.set_override(option, value, name)
        multi_backend.create_multi_stores(conf)
        return multi_backend.get_store_from_store_identifier

    return make


@pytest.fixture
def files(make, tmp_path):
    make(files=("file", {"filesystem_store_datadir": str(tmp_path / "images")}))
    return tmp_path / "images"


def add(conf, image_id, data, size=0, store="files", **named):
    return multi_backend.add_with_multihash(conf, image_id, data, size, store, "sha512", **named)


def read(answer):
    chunks, size = answer
    return b"".join(chunks), size


@pytest.fixture
def bindings(monkeypatch):
    """The bindings are not on every machine; nothing here calls into them."""
    plain = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: object() if name in ("rados", "rbd") else plain(name, *rest)
    )


class Slow:
    """Data that comes when it is let."""

    def __init__(self, data):
        self.begun, self.go = threading.Event(), threading.Event()
        self._pieces = [data[:1000], data[1000:], b""]

    def read(self, length=None):
        if len(self._pieces) == 2:
            self.begun.set()
            assert self.go.wait(60)
        return self._pieces.pop(0) if self._pieces else b""


class TestRanges:
    @pytest.mark.parametrize(("offset", "length"), [(0, None), (1000, None), (1000, 5), (299_999, 100), (0, 300_000)])
    def test_the_size_is_what_comes(self, conf, files, offset, length):
        """With an offset alone glance_store announces the whole image."""
        uri = add(conf, "7", io.BytesIO(DATA))[0]
        expected = DATA[offset:][:length]
        assert read(multi_backend.get(uri, "files", offset=offset, chunk_size=length)) == (expected, len(expected))

    @pytest.mark.parametrize("offset", [300_000, 300_001, 1 << 40])
    def test_past_the_end_there_is_nothing(self, conf, files, offset):
        uri = add(conf, "7", io.BytesIO(DATA))[0]
        assert read(multi_backend.get(uri, "files", offset=offset, chunk_size=10)) == (b"", 0)

    def test_an_answer_can_be_closed_half_way(self, conf, files):
        uri = add(conf, "7", io.BytesIO(DATA))[0]
        data, _ = multi_backend.get(uri, "files")
        assert DATA.startswith(next(data))
        data.close()
        assert list(data) == []


class TestDigests:
    @pytest.mark.parametrize("algorithm", ["sha256", "sha512", "sha3_256", "blake2b", "md5"])
    def test_they_are_those_of_the_bytes(self, conf, files, algorithm):
        found = multi_backend.add_with_multihash(conf, algorithm, io.BytesIO(DATA), 0, "files", algorithm)
        assert found[1:4] == (
            len(DATA),
            hashlib.md5(DATA).hexdigest(),
            hashlib.new(algorithm, DATA).hexdigest(),
        )

    def test_the_empty_image_has_some(self, conf, files):
        found = add(conf, "7", io.BytesIO(b""))
        assert found[1:4] == (0, hashlib.md5(b"").hexdigest(), hashlib.sha512(b"").hexdigest())
        assert read(multi_backend.get(found[0], "files")) == (b"", 0)

    def test_the_checksum_can_be_given_up(self, conf, make, tmp_path):
        options = {"filesystem_store_datadir": str(tmp_path / "images"), "md5_checksum": False}
        make(files=("file", options))
        assert add(conf, "7", io.BytesIO(DATA))[2] is None


class TestNoHiddenState:
    def test_adds_of_unknown_size_side_by_side(self, conf, files):
        first, second = Slow(DATA), Slow(DATA[::-1])
        found = {}
        threads = [
            threading.Thread(target=lambda name=name, data=data: found.update({name: add(conf, name, data)}))
            for name, data in (("1", first), ("2", second))
        ]
        for thread in threads:
            thread.start()
        for data in (first, second):
            assert data.begun.wait(60)
        second.go.set()
        first.go.set()
        for thread in threads:
            thread.join(60)
        assert read(multi_backend.get(found["1"][0], "files")) == (DATA, len(DATA))
        assert read(multi_backend.get(found["2"][0], "files")) == (DATA[::-1], len(DATA))

    def test_metadata_is_the_caller_s_own(self, conf, make, tmp_path):
        """glance_store gives the dictionary that it keeps."""
        (tmp_path / "metadata").write_text(f'{{"id": "share", "mountpoint": "{tmp_path}/images"}}')
        options = {"filesystem_store_datadir": str(tmp_path / "images")}
        make(files=("file", {**options, "filesystem_store_metadata_file": str(tmp_path / "metadata")}))
        first = add(conf, "1", io.BytesIO(DATA))[4]
        expected = {"id": "share", "mountpoint": f"{tmp_path}/images", "store": "files"}
        assert first == expected
        first["store"] = first["id"] = "changed"
        assert add(conf, "2", io.BytesIO(DATA))[4] == expected

    @pytest.mark.parametrize("form", ["{0}//", "{0}/../{1}", "{0}/./"])
    def test_a_mount_point_is_known_in_any_form(self, conf, make, tmp_path, form):
        """glance_store compares it with the beginning of the path as text; datadir and it may be written alike."""
        datadir = form.format(tmp_path, tmp_path.name) + "/images"
        (tmp_path / "metadata").write_text(json.dumps({"id": "share", "mountpoint": datadir}))
        options = {"filesystem_store_datadir": datadir, "filesystem_store_metadata_file": str(tmp_path / "metadata")}
        make(files=("file", options))
        assert add(conf, "1", io.BytesIO(DATA))[4] == {"id": "share", "mountpoint": datadir, "store": "files"}

    def test_accounts_of_one_swift_store_are_not_the_other_s(self, make, tmp_path):
        stores = {}
        for name in ("one", "two"):
            accounts = tmp_path / f"{name}.conf"
            accounts.write_text(f"[ref-{name}]\nauth_address = http://127.0.0.1:1/v3\nuser = a:b\nkey = c\n")
            options = {"swift_store_config_file": str(accounts), "default_swift_reference": f"ref-{name}"}
            stores[name] = ("swift", options)
        found = make(**stores)
        assert [list(found(name).native.service.credentials) for name in stores] == [["ref-one"], ["ref-two"]]
        with pytest.raises(exceptions.NotFound):
            multi_backend.get("swift+config://ref-one/glance/7", "two")

    def test_users_of_one_cinder_store_are_not_the_other_s(self, make):
        options = {
            "cinder_store_auth_address": "http://127.0.0.1:1/v3",
            "cinder_store_password": "secret",
            "cinder_store_project_name": "project",
        }
        found = make(**{name: ("cinder", {**options, "cinder_store_user_name": name}) for name in ("one", "two")})
        users = [found(name).native.conf.cinder_store_user_name for name in ("one", "two")]
        assert users == ["one", "two"]
        assert found("one").native.service is not found("two").native.service


class TestStoresOfEveryKindAreFound:
    def test_vmware(self, make):
        """Its scheme is not called like its driver; glance_store finds none with a name."""
        options = {
            "vmware_server_host": "127.0.0.1",
            "vmware_server_username": "user",
            "vmware_server_password": "secret",
            "vmware_datastores": ["dc:ds"],
        }
        found = make(vc=("vmware", options))
        assert found("vc").get_schemes() == ("vsphere",)
        # It has been asked for in that store, and is not its own.
        with pytest.raises(exceptions.NotFound):
            multi_backend.get("vsphere://127.0.0.1/folder/openstack_glance/7?dcPath=other&dsName=ds", None)

    def test_rbd_without_a_user_asks_for_no_user_called_none(self, make, tmp_path, bindings):
        (tmp_path / "ceph.conf").touch()
        store = make(ceph=("rbd", {"rbd_store_ceph_conf": str(tmp_path / "ceph.conf")}))("ceph")
        assert store.native.conf.rbd_store_user is None


class TestFiles:
    def test_an_image_is_not_there_before_it_is_whole(self, conf, files):
        data = Slow(DATA)
        thread = threading.Thread(target=add, args=(conf, "7", data))
        thread.start()
        assert data.begun.wait(60)
        assert not (files / "7").exists()
        with pytest.raises(exceptions.NotFound):
            multi_backend.get(f"file://{files}/7", "files")
        data.go.set()
        thread.join(60)
        assert (files / "7").read_bytes() == DATA

    @pytest.mark.parametrize("image_id", ["../7", "a/b", ".", "..", ""])
    def test_no_id_leads_out_of_the_directory(self, conf, files, image_id):
        with pytest.raises(exceptions.Invalid):
            add(conf, image_id, io.BytesIO(DATA))
        assert os.listdir(files) == []

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
    def test_no_room_of_any_kind(self, conf, files, monkeypatch, number):
        def no_room(*arguments, **named):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("storelib.system_calls.write_all", no_room)
        with pytest.raises(exceptions.StorageFull):
            add(conf, "7", io.BytesIO(DATA))
        assert os.listdir(files) == []

    @pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
    def test_what_may_not_be_written(self, conf, files, monkeypatch, number):
        def denied(*arguments, **named):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("storelib.system_calls.write_all", denied)
        with pytest.raises(exceptions.StorageWriteDenied):
            add(conf, "7", io.BytesIO(DATA))

    def test_a_broken_disk_is_an_error_that_glance_knows(self, conf, files, monkeypatch):
        uri = add(conf, "7", io.BytesIO(DATA))[0]

        def broken(*arguments):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        data, _ = multi_backend.get(uri, "files")
        monkeypatch.setattr(os, "preadv", broken)
        with pytest.raises((exceptions.GlanceStoreException, exceptions.BackendException)):
            list(data)


class TestStart:
    """What one store cannot do keeps no service from starting."""

    @pytest.fixture
    def both(self, make, tmp_path):
        def make_both(**options):
            return make(odd=("file", options), files=("file", {"filesystem_store_datadir": str(tmp_path / "images")}))

        return make_both

    @pytest.mark.parametrize("place", ["/proc/none/images", "/dev/null/images", "/dev/null"])
    def test_a_directory_that_cannot_be_made_only_disables_adding(self, conf, both, place, caplog):
        both(filesystem_store_datadir=place)
        with pytest.raises(exceptions.StoreAddDisabled):
            add(conf, "7", io.BytesIO(DATA), store="odd")
        with pytest.raises(exceptions.NotFound):
            multi_backend.get(f"file://{place}/7", "odd")
        assert "Disabling add method" in caplog.text
        assert add(conf, "7", io.BytesIO(DATA))[1] == len(DATA)

    def test_the_directory_of_somebody_else_stays_as_it_is(self, conf, both, tmp_path, monkeypatch, caplog):
        (tmp_path / "odd").mkdir(mode=0o700)

        def denied(*arguments):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "chmod", denied)
        both(filesystem_store_datadir=str(tmp_path / "odd"), filesystem_store_file_perm=644)
        assert f"{tmp_path}/odd cannot be opened" in caplog.text
        assert add(conf, "7", io.BytesIO(DATA), store="odd")[1] == len(DATA)

    def test_a_directory_may_have_a_colon_in_its_name(self, conf, both, tmp_path):
        places = [f"{tmp_path}/a:b:100", f"{tmp_path}/c"]
        store = both(filesystem_store_datadirs=places, filesystem_store_file_perm=644)("odd")
        assert store.priority_data_map == {100: [f"{tmp_path}/a:b"], 0: [f"{tmp_path}/c"]}
        uri = add(conf, "7", io.BytesIO(DATA), store="odd")[0]
        assert uri == f"{store.url_prefix}/7" == f"file://{tmp_path}/a:b/7"


class TestSizes:
    @pytest.mark.parametrize("wrong", [-1, 1])
    @pytest.mark.parametrize("sized", [True, False])
    def test_one_that_is_not_true_stores_nothing(self, conf, files, wrong, sized):
        data = io.BytesIO(DATA) if sized else iter([DATA[:5], DATA[5:]])
        with pytest.raises(exceptions.Invalid):
            add(conf, "7", data, len(DATA) + wrong)
        assert os.listdir(files) == []

    @pytest.mark.parametrize("unknown", [0, None])
    def test_unknown(self, conf, files, unknown):
        assert add(conf, "7", iter([DATA[:5], b"", DATA[5:]]), unknown)[1] == len(DATA)


def test_the_http_store_does_not_read_where_clouds_keep_secrets(make):
    make(web=("http", {}))
    uri = "http://169.254.169.254/latest/meta-data"
    with pytest.raises((exceptions.Forbidden, exceptions.RemoteServiceUnavailable)):
        multi_backend.get(uri, "web")
    # What glance_store raises where it cannot connect, and Glance refuses the location for.
    with pytest.raises(exceptions.BadStoreUri):
        multi_backend.get_size_from_uri_and_backend(uri, "web")


def test_lists_of_tenants_stay_the_caller_s(conf, files):
    """glance_store puts the administrators into the list that it was given."""
    uri = add(conf, "7", io.BytesIO(DATA))[0]
    tenants = ["a"]
    multi_backend.set_acls_for_multi_store(uri, "files", read_tenants=tenants, write_tenants=tenants)
    assert tenants == ["a"]


def test_data_that_is_a_text_is_no_path(conf, files, tmp_path):
    """It is to storelib, whose own callers mean it so."""
    (tmp_path / "secret").write_bytes(b"secret")
    for data in (str(tmp_path / "secret"), tmp_path / "secret"):
        with pytest.raises(TypeError):
            add(conf, "7", data, 0)
    assert os.listdir(files) == []


def test_an_id_may_be_an_object_with_that_text(conf, files):
    image_id = uuid.uuid4()
    assert add(conf, image_id, io.BytesIO(DATA))[0] == f"file://{files}/{image_id}"


def test_a_store_that_cannot_be_used_does_not_hide_what_is_in_another(conf, make, tmp_path):
    """Of an image whose store is not known; what may be in the store that cannot be asked is not said to be gone."""
    both = {"filesystem_store_datadir": str(tmp_path / "a"), "filesystem_store_datadirs": [str(tmp_path / "b")]}
    make(odd=("file", both), files=("file", {"filesystem_store_datadir": str(tmp_path / "images")}))
    uri = add(conf, "7", io.BytesIO(DATA))[0]
    assert read(multi_backend.get(uri, None)) == (DATA, len(DATA))
    multi_backend.delete(uri, None)
    with pytest.raises(exceptions.BadStoreConfiguration, match="odd"):
        multi_backend.get(uri, None)
    with pytest.raises(exceptions.StoreDeleteNotSupported):
        multi_backend.delete(uri, None)


def test_lists_that_a_store_has_not_are_none_either_where_it_cannot_be_used(make):
    """Glance sets them whenever it saves an image."""
    make(odd=("swift", {}))
    multi_backend.set_acls_for_multi_store("swift+http://keystone/v3/glance/7", "odd", public=True)
