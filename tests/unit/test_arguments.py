# SPDX-License-Identifier: Apache-2.0
"""What a caller gets wrong is said at once, in words, before anything is done; what is likely to be meant works."""

from __future__ import annotations

import copy as copying
import gc
import os
import pickle

import pytest

from storelib import backend
from storelib.driver import Digests
from storelib.exceptions import BadStoreConfiguration, Invalid, StoreError, UnknownScheme
from storelib.registry import Registry, open_store
from storelib.transfer import copy, fan_out

DIGESTS = Digests(None, "0" * 128)
NO_STORES = [None, "fast", b"fast", 7, 0.5]
#: Stores at which nobody listens, and an image of each.
NOBODY = {
    "s3": {
        "s3_store_host": "http://127.0.0.1:1",
        "s3_store_bucket": "images",
        "s3_store_access_key": "access",
        "s3_store_secret_key": "secret",
    },
    "swift": {
        "swift_store_auth_address": "http://127.0.0.1:1/v1.0",
        "swift_store_auth_version": "1",
        "swift_store_user": "user",
        "swift_store_key": "key",
        "swift_store_temp_url_key": "sign",
        "swift_store_container_per_image": True,
    },
}
AT_NOBODY = {
    "s3": "s3+http://127.0.0.1:1/images/id",
    "swift": "swift+http://127.0.0.1:1/v1.0/glance_id/id",
}


class OneOfBytes:
    """A source that notes whether it was asked."""

    def __init__(self):
        self.asked = False

    def __iter__(self):
        self.asked = True
        return iter([b"data"])


@pytest.fixture
def store():
    return open_store("memory", name="fast")


@pytest.fixture
def registry(store):
    registry = Registry([store])
    backend.use_registry(registry)
    yield registry
    backend.use_registry(None)


@pytest.mark.parametrize("older_than", [10**400, float("inf"), 1e300, 2**63], ids=["10**400", "inf", "1e300", "2**63"])
def test_nothing_is_older_than_all_time(store, older_than):
    store.open_writer("image", None, None).reserve(1)
    gc.collect()
    assert store.gc(older_than) == []
    assert len(store.gc(0)) == 1


@pytest.mark.parametrize("older_than", [None, "5", -1, float("nan"), True, [], 1j])
def test_an_age_that_is_none_is_refused_though_there_is_nothing_to_collect(store, older_than):
    for call in (store.gc, store.collect, store.find_garbage):
        with pytest.raises(Invalid, match="older_than must be a number of seconds, 0 or more, not"):
            call(older_than)


def test_a_prefix_that_no_id_begins_with_is_refused(store):
    for call in (store.gc, store.collect, store.find_garbage):
        with pytest.raises(Invalid, match="half a character"):
            call(0, "x\ud800")


def test_a_very_long_argument_is_told_by_its_beginning(store):
    uri, long = store.add("image", b"data").uri, "x" * 100_000
    wrong = [
        lambda: store.add("other", b"data", long),
        lambda: store.add("other", b"data", hashing_algo=long),
        lambda: store.get(uri, offset=long),
        lambda: store.get(uri, verify=long),
        lambda: store.find_image(long),
        lambda: store.gc(long),
    ]
    for call in wrong:
        with pytest.raises(StoreError, match="xxx") as caught:
            call()
        assert len(str(caught.value)) < 1000


SHARING = [
    ("public", "false"),
    ("public", None),
    ("read_tenants", "acme"),
    ("read_tenants", b"acme"),
    ("read_tenants", 7),
    ("read_tenants", [7]),
    ("read_tenants", [""]),
    ("read_tenants", {"acme": True}),
    ("write_tenants", "acme"),
    ("write_tenants", [None]),
]


@pytest.mark.parametrize("driver", ["s3", "swift"])
@pytest.mark.parametrize(("argument", "value"), SHARING)
def test_what_could_share_an_image_with_somebody_else_is_refused(driver, argument, value):
    store = open_store(driver, **NOBODY[driver])
    with pytest.raises(Invalid, match=f"{argument} must be"):
        store.set_acls(AT_NOBODY[driver], **{argument: value})


@pytest.mark.parametrize("driver", ["s3", "swift"])
@pytest.mark.parametrize("expires", [None, "60", True, 0, float("nan"), float("inf"), 1j, []])
def test_a_signed_url_expires_after_a_number_of_seconds(driver, expires):
    with pytest.raises(Invalid, match="expires must be a number of seconds"):
        open_store(driver, **NOBODY[driver]).presign(AT_NOBODY[driver], expires)


@pytest.mark.parametrize("prefix", [b"x", 7, [], os.sep.encode()])
def test_a_prefix_that_is_no_text_is_refused_rather_than_taken_for_none(store, prefix):
    for call in (store.gc, store.collect, store.find_garbage):
        with pytest.raises(Invalid, match="prefix must be the beginning of an id, or None, not"):
            call(0, prefix)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"progress": 5}, "progress must be a function of two numbers, or None, not int"),
        ({"verifier": "sha256:..."}, "verifier must have a method update, which str has not"),
    ],
)
def test_what_cannot_be_called_is_refused_before_the_source_is_asked(store, given, message):
    source = OneOfBytes()
    with pytest.raises(Invalid, match=message):
        store.add("x", source, **given)
    assert not source.asked
    assert list(store.list_images()) == []


@pytest.mark.parametrize("digests", ["sha512:...", (None, "0" * 128), {}, 7])
def test_digests_that_are_none_are_refused(store, digests):
    image = store.add("x", b"data")
    with pytest.raises(Invalid, match="digests must be Digests, or None, not"):
        store.copy(image.uri, "y", digests=digests)
    assert [info.image_id for info in store.list_images()] == ["x"]


@pytest.mark.parametrize("given", NO_STORES)
def test_what_is_no_store_is_refused_as_one(store, given, registry):
    image = store.add("x", b"data")
    for call in (
        lambda: fan_out([store, given], "y", b"data"),
        lambda: copy(given, image.uri, store, "y"),
        lambda: copy(store, image.uri, given, "y"),
    ):
        with pytest.raises(Invalid, match=r"expected a store, such as registry\['fast'\], not"):
            call()
    if not isinstance(given, str):
        with pytest.raises(Invalid, match="expected a store"):
            backend.store_add_to_backend("y", b"data", 4, given)
    assert [info.image_id for info in store.list_images()] == ["x"]


def test_an_image_goes_to_all_stores_of_a_registry_or_of_an_iterator(registry):
    assert [result.size for result in fan_out(registry, "x", b"data")] == [4]
    assert [result.size for result in fan_out(iter(registry), "y", b"data")] == [4]


def test_two_stores_of_one_name_are_refused_rather_than_one_of_them_lost():
    with pytest.raises(BadStoreConfiguration, match=r"two stores are called memory: .*name="):
        Registry([open_store("memory"), open_store("memory")])
    with pytest.raises(BadStoreConfiguration, match="two stores are called memory"):
        Registry([open_store("memory")], reserved=[open_store("memory")])


@pytest.mark.parametrize("name", [None, 7, b"fast", 0.5])
def test_what_is_no_name_is_unknown_to_a_registry(registry, name):
    with pytest.raises(UnknownScheme, match="there is no store .*; known are: fast"):
        registry[name]
    with pytest.raises(UnknownScheme, match="no store serves the scheme .*; known are: memory"):
        registry.store_for_scheme(name)


@pytest.mark.parametrize("driver", [None, 7, b"file", object(), dict])
def test_what_is_no_driver_is_refused(driver):
    with pytest.raises(BadStoreConfiguration, match="a driver is a subclass of Store, or the name of one, not"):
        open_store(driver)


@pytest.mark.parametrize("name", ["", 7, b"fast", []])
def test_what_is_no_id_of_a_store_is_refused(name):
    with pytest.raises(BadStoreConfiguration, match="name must be the id of a store"):
        open_store("memory", name=name)


@pytest.mark.parametrize("option", ["transfer_retries", "transfer_timeout", "weight"])
def test_no_option_can_be_infinite(option):
    with pytest.raises(BadStoreConfiguration, match=f"{option} = inf is not valid"):
        open_store("memory", **{option: float("inf")})


def test_a_stream_says_what_it_is(store):
    with store.get(store.add("x", b"data").uri, 1).data as stream:
        assert repr(stream) == "<ImageStream of 3 bytes of memory://fast/x>"


@pytest.mark.parametrize("size", [1.0, 1.5, "1"])
def test_a_stream_is_read_by_whole_numbers_only(store, size):
    with store.get(store.add("x", b"data").uri).data as stream:
        for _ in range(2):
            with pytest.raises(TypeError):
                stream.read(size)
            stream.seek(0, os.SEEK_END)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("duplicate", [copying.copy, copying.deepcopy, pickle.dumps])
def test_a_stream_is_not_copied_but_by_another_get(store, duplicate):
    data = store.get(store.add("x", b"data").uri)
    for given in (data.data, data):
        if given is data and duplicate is copying.copy:
            continue
        with pytest.raises(TypeError, match="cannot copy or pickle an ImageStream"):
            duplicate(given)
    gc.collect()
    assert data.data.read() == b"data"
    data.data.close()
