# SPDX-License-Identifier: Apache-2.0
"""What a Swift store makes of its configuration, without any server: accounts, containers, whose URI it is."""

import builtins
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storelib.capabilities import Capability
from storelib.drivers.swift import SwiftLocation, SwiftStore
from storelib.drivers.swift import errors as swift_errors
from storelib.drivers.swift.errors import error_of_status
from storelib.drivers.swift.location import Layout
from storelib.drivers.swift.options import Credentials, from_file
from storelib.drivers.swift.service import Account, Features, ForeignAccount
from storelib.exceptions import (
    BadStoreConfiguration,
    BadStoreUri,
    Duplicate,
    Forbidden,
    ImageChanged,
    IncompleteRead,
    MissingDependency,
    NotFound,
    RemoteServiceUnavailable,
    StorageFull,
    StorageWriteDenied,
)
from storelib.registry import Registry, open_store
from storelib.transfer.http.keystone import Endpoint, RequestIdentity

PASSWORD = {
    "swift_store_auth_address": "https://keystone:5000/v3",
    "swift_store_user": "project:user",
    "swift_store_key": "hunter2",
}
CATALOG = [
    {"type": "image", "endpoints": [{"publicURL": "https://glance/"}]},
    {
        "type": "object-store",
        "endpoints": [
            {"publicURL": "https://north/v1/AUTH_1", "internalURL": "https://inner/v1/AUTH_1", "region": "north"},
            {"interface": "public", "url": "https://south/v1/AUTH_1/", "region_id": "south"},
        ],
    },
]


def swift(**options):
    return open_store(SwiftStore, **PASSWORD | options)


@pytest.fixture
def references(tmp_path):
    """Makes a reference file."""

    def make(text, name="swift.conf"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return make


# -- Whose URI it is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "swift+https://keystone:5000/v3/glance/id",
        "swift://keystone:5000/glance/id",
        "swift+https://keystone:5000/v2.0/glance/id",
        "swift+https://other%3Auser:old-key@keystone:5000/v3/glance/id",
        "swift+https://account:user:old-key@keystone:5000/v3/glance/id",
        "swift+https://keystone:5000/v3/glance_i/id",
    ],
)
def test_uri_of_the_same_service_and_container_is_the_stores(uri):
    assert swift().locate(uri).obj == "id"
    # By what an add writes it is seen that two images have the same data.
    container = uri.split("/")[-2]
    assert swift().uri_of(uri) == f"swift+https://keystone:5000/v3/{container}/id"


@pytest.mark.parametrize(
    "uri",
    [
        "swift+https://keystone:5001/v3/glance/id",
        "swift+https://keystone.example:5000/v3/glance/id",
        "swift+https://keystone:5000/other/v3/glance/id",
        "swift+https://keystone:5000/v3/glance2/id",
        "swift+https://keystone:5000/v3/glance_x/id",
        "swift+https://keystone:5000/v3/glance_/id",
        "swift+config://ref1/glance/id",
        "swift+https://user:hunter2@evil/v3/glance/id",
    ],
)
def test_any_other_uri_is_refused(uri):
    with pytest.raises(BadStoreUri):
        swift().locate(uri)


def test_credentials_of_a_uri_never_replace_the_stores_own():
    store = swift()
    location = store.locate("swift+https://other%3Auser:old-key@keystone:5000/v3/glance/id")
    identity = store.service.account_of(location, None).identity
    assert identity is store.service.own_account().identity
    [method] = identity.plugin.auth_methods
    assert (identity.plugin.project_name, method.username, method.password) == ("project", "user", "hunter2")


def test_uri_of_a_reference_is_the_stores(references):
    store = open_store(SwiftStore, swift_store_config_file=references(REFERENCES))
    assert store.locate("swift+config://ref2/glance/id").place == "ref2"
    assert store.locate("swift+https://u:p@one:5000/v2.0/glance/id").obj == "id"
    assert store.uri_of("swift+https://u:p@one:5000/v2.0/glance/id") == "swift+config://ref1/glance/id"
    assert store.uri_of("swift+config://ref2/glance/id") == "swift+config://ref2/glance/id"
    with pytest.raises(BadStoreUri):
        store.locate("swift+config://ref3/glance/id")


# -- Reference files --------------------------------------------------------------------------------------------------

REFERENCES = """
[ref1]
auth_address = https://one:5000/v3
user = "project:user"
key = 'p%(a)s;s#w'
[ref2]
auth_address = https://two/auth/v1.0
auth_version = 1
user = account:user
key = secret
[ref3x]
auth_address = https://three
application_credential_id = app
application_credential_secret = hidden
"""


def test_reference_file_is_read(references):
    found = from_file(references(REFERENCES), "cold")
    assert found["ref1"].user == "project:user"
    assert found["ref1"].key == "p%(a)s;s#w"
    assert (found["ref1"].user_name, dict(found["ref1"].scope)) == ("user", {"project_name": "project"})
    assert (found["ref2"].auth_version, found["ref2"].user_name) == ("1", "account:user")
    assert found["ref3x"].identity_url == "https://three/v3"


def test_reference_file_is_read_as_glance_store_does(references):
    """A file that works there has percent signs twice, and may share values; https goes without saying."""
    text = "[DEFAULT]\nproject = p\n[a]\nuser = %(project)s:u\nkey = 10%% ä\nauth_address = host:5000/v3\n"
    found = from_file(references(text), "cold")["a"]
    assert (found.user, found.key, found.auth_address) == ("p:u", "10% ä", "https://host:5000/v3")


def test_secrets_are_in_no_repr(references):
    shown = repr(from_file(references(REFERENCES), "cold"))
    assert not [secret for secret in ("p%(a)s", "secret =", "hidden", "'secret'") if secret in shown]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "key = hunter2",
        "[a]\nauth_address = https://x\nuser = p:u\n",
        "[a]\nauth_address = https://x\nkey = hunter2\n",
        "[a]\nuser = p:u\nkey = hunter2\n",
        "[a]\nauth_address = ftp://x\nuser = p:u\nkey = hunter2\n",
        "[a]\nauth_address = https://u:hunter2@x\nuser = p:u\nkey = hunter2\n",
        "[a]\nauth_address = https://x\nuser = u\nkey = hunter2\n",
        "[a]\nauth_address = https://x\nauth_version = 2\nuser = p:u\nkey = hunter2\n",
        "[a]\nauth_address = https://x\napplication_credential_id = hunter2\n",
        "[a]\nauth_address = https://x\nuser = p:u\nkey = hunter2\n hunter2\n=hunter2",
    ],
)
def test_mistake_in_a_reference_file_is_named_without_its_secrets(references, text):
    with pytest.raises(BadStoreConfiguration, match=r"swift\.conf") as caught:
        from_file(references(text), "cold")
    assert "hunter2" not in str(caught.value)


def test_missing_reference_file_is_a_mistake(tmp_path):
    with pytest.raises(BadStoreConfiguration, match="cannot be read"):
        open_store(SwiftStore, swift_store_config_file=str(tmp_path / "gone"))


def test_each_store_has_a_reference_file_of_its_own(references):
    one = open_store(SwiftStore, swift_store_config_file=references(REFERENCES, "one.conf"))
    other = references("[ref1]\nauth_address = https://other\nuser = p:u\nkey = k\n", "other.conf")
    two = open_store(SwiftStore, swift_store_config_file=other)
    assert one.service.own_account().identity.plugin.auth_methods[0].password == "p%(a)s;s#w"
    assert two.service.own_account().identity.plugin.auth_methods[0].password == "k"
    with pytest.raises(BadStoreUri):
        two.locate("swift+config://ref2/glance/id")


def test_default_reference_that_is_missing_leaves_reading(references):
    store = open_store(SwiftStore, swift_store_config_file=references(REFERENCES), default_swift_reference="no")
    assert Capability.ADD not in store.capabilities
    assert "default_swift_reference" in store.add_disabled
    assert store.locate("swift+config://ref1/glance/id")


@pytest.mark.parametrize("name", ["ref 1", "a/b", "a@b", "what?"])
def test_default_reference_that_no_uri_can_name_leaves_reading(references, name):
    file = references(REFERENCES + REFERENCES.replace("[ref1]", f"[{name}]").partition("[ref2]")[0])
    store = open_store(SwiftStore, swift_store_config_file=file, default_swift_reference=name)
    assert Capability.ADD not in store.capabilities
    assert "default_swift_reference" in store.add_disabled


# -- Options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"swift_store_auth_address": None},
        {"swift_store_auth_address": "ftp://keystone:5000"},
        {"swift_store_auth_address": "https://keystone:99999"},
        {"swift_store_auth_address": "https://schl\u00fcssel:5000"},
        {"swift_store_auth_address": "https://keystone/../v3"},
        {"swift_store_auth_address": "https://[::1/v3"},
        {"swift_store_key": None},
        {"swift_store_user": "user"},
        {"swift_store_application_credential_id": "app"},
        {"swift_store_cacert": "/nowhere"},
    ],
)
def test_store_that_cannot_authenticate_is_a_mistake(options):
    with pytest.raises(BadStoreConfiguration, match="swift_store") as caught:
        swift(**options)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("more", ["", "swift_store_multi_tenant = true\n"])
def test_address_that_cannot_be_disables_its_store_alone(tmp_path, more):
    options = "swift_store_auth_address = https://keystone:99999/v3\nswift_store_user = p:u\nswift_store_key = k\n"
    (tmp_path / "storelib.ini").write_text(
        f"[storelib]\nstores = swift, file\nfilesystem_store_datadir = {tmp_path}\n[swift]\n{options}{more}"
    )
    registry = Registry.from_file(tmp_path / "storelib.ini")
    assert list(registry.disabled) == ["swift"]
    assert "swift_store_auth_address" in registry.disabled["swift"].reason
    assert [store.name for store in registry] == ["file"]


@pytest.mark.parametrize("container", ["", "a/b", "..", "x" * 257])
def test_container_that_cannot_be_leaves_reading(container):
    assert Capability.ADD not in swift(swift_store_container=container).capabilities


@pytest.mark.parametrize(
    ("options", "expected", "missing"),
    [
        ({}, Capability.LIST | Capability.GC, Capability.ATOMIC_ADD | Capability.ACLS | Capability.PRESIGN),
        ({"swift_store_container_per_image": True}, Capability.ATOMIC_ADD | Capability.ACLS, Capability.PRESIGN),
        ({"swift_store_temp_url_key": "secret"}, Capability.PRESIGN, Capability.ACLS),
        ({"swift_store_multi_tenant": True}, Capability.ATOMIC_ADD | Capability.ACLS, Capability.LIST | Capability.GC),
    ],
)
def test_capabilities_follow_the_options(options, expected, missing):
    capabilities = swift(**options).capabilities
    assert expected in capabilities
    assert not missing & capabilities


def test_configuring_needs_no_server_and_starts_no_thread(tmp_path):
    config = tmp_path / "storelib.conf"
    options = "\n".join(f"{name} = {value}" for name, value in PASSWORD.items())
    config.write_text(f"[storelib]\nstores = cold:swift\n[cold]\n{options}\n")
    store = Registry.from_file(config)["cold"]
    assert "hunter2" not in repr(store) + repr(vars(store))


def test_missing_client_is_named_with_the_command_that_installs_it(monkeypatch):
    plain = builtins.__import__
    monkeypatch.delitem(sys.modules, "swiftclient.client", raising=False)
    monkeypatch.setitem(sys.modules, "swiftclient", None)
    assert plain
    with pytest.raises(MissingDependency, match=r"pip install 'storelib\[swift\]'"):
        swift()


# -- Containers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "image_id", "container"),
    [
        (0, "fdd3-11", "glance"),
        (1, "FDD3-11", "glance_f"),
        (5, "fdd3-11", "glance_fdd3-1"),
        (12, "b4c9a7e2-1f3d-4c", "glance_b4c9a7e2-1f3d"),
        (32, "short", "glance_short"),
    ],
)
def test_seed_spreads_images_as_before(seed, image_id, container):
    layout = Layout("glance", seed)
    assert layout.container_for(image_id) == container
    assert layout.holds(container, image_id)


@given(st.text(min_size=1, max_size=200), st.integers(0, 32))
def test_layout_holds_what_it_places(image_id, seed):
    for layout in (Layout("glance", seed), Layout("glance", own=True)):
        assert layout.holds(layout.container_for(image_id), image_id)
        try:
            assert len(layout.container_for(image_id).encode()) <= 255 or not layout.own
        except UnicodeEncodeError:
            pass


# -- Requests of tenants ----------------------------------------------------------------------------------------------


def request_of(**more):
    return types.SimpleNamespace(**{"auth_token": "token", "project_id": "1", "service_catalog": CATALOG} | more)


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ({}, "https://north/v1/AUTH_1"),
        ({"swift_store_region": "south"}, "https://south/v1/AUTH_1"),
        ({"swift_store_endpoint_type": "internalURL"}, "https://inner/v1/AUTH_1"),
        ({"swift_store_service_type": "image"}, "https://glance"),
        ({"swift_store_endpoint": "https://other/v1/AUTH_%(tenant_id)s"}, "https://other/v1/AUTH_1"),
    ],
)
def test_catalog_of_a_request_is_read(options, url):
    store = swift(swift_store_multi_tenant=True, **options)
    assert store.service.own_account(request_of()).url == url


@pytest.mark.parametrize("options", [{"swift_store_region": "west"}, {"swift_store_service_type": "no"}])
def test_catalog_without_the_service_is_an_error(options):
    with pytest.raises(RemoteServiceUnavailable, match="swift_store_region"):
        swift(swift_store_multi_tenant=True, **options).service.own_account(request_of())


def test_adding_without_a_request_is_forbidden():
    with pytest.raises(Forbidden, match="multi-tenant"):
        swift(swift_store_multi_tenant=True).add("id", b"data")


def test_token_of_a_request_goes_to_its_own_object_store_only():
    store = swift(swift_store_multi_tenant=True)
    for place in ("evil/v1/AUTH_1", "north.evil/v1/AUTH_1", "north:444/v1/AUTH_1"):
        location = SwiftLocation("swift+https", place, "glance_id", "id")
        with pytest.raises(BadStoreUri):
            store.service.account_of(location, request_of())
    with pytest.raises(BadStoreUri):
        store.service.account_of(SwiftLocation("swift+http", "north/v1/AUTH_1", "glance_id", "id"), request_of())


def test_token_of_a_request_serves_for_another_account_of_the_same_store():
    store = swift(swift_store_multi_tenant=True)
    account = store.service.account_of(SwiftLocation("swift+https", "north/v1/AUTH_2", "glance_id", "id"), request_of())
    assert account.url == "https://north/v1/AUTH_2"
    assert isinstance(account.identity, ForeignAccount)


def test_token_is_in_no_repr():
    identity = RequestIdentity(request_of(auth_token="hunter2"), Endpoint("object-store", "publicURL"))
    assert "hunter2" not in repr(identity) + repr(identity.access())


# -- What answers mean ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "status", "error", "transient"),
    [
        ("GET", 404, NotFound, False),
        ("PUT", 404, swift_errors.ContainerMissing, False),
        ("GET", 401, Forbidden, False),
        ("GET", 403, Forbidden, False),
        ("DELETE", 403, Forbidden, False),
        ("PUT", 403, StorageWriteDenied, False),
        ("GET", 409, IncompleteRead, False),
        ("DELETE", 409, RemoteServiceUnavailable, True),
        ("PUT", 412, Duplicate, False),
        ("GET", 412, ImageChanged, False),
        ("PUT", 413, StorageFull, False),
        ("PUT", 507, StorageFull, False),
        ("GET", 507, RemoteServiceUnavailable, True),
        ("DELETE", 507, RemoteServiceUnavailable, True),
        ("GET", 413, RemoteServiceUnavailable, False),
        ("PUT", 422, RemoteServiceUnavailable, True),
        ("PUT", 408, RemoteServiceUnavailable, True),
        ("PUT", 499, RemoteServiceUnavailable, True),
        ("GET", 429, RemoteServiceUnavailable, True),
        ("GET", 498, RemoteServiceUnavailable, True),
        ("GET", 503, RemoteServiceUnavailable, True),
        ("GET", 501, RemoteServiceUnavailable, False),
        ("GET", 418, RemoteServiceUnavailable, False),
    ],
)
def test_every_status_has_its_error(method, status, error, transient):
    found = error_of_status(method, status, {}, "images/id")
    assert type(found) is error
    assert found.transient is transient


def test_server_says_how_long_to_wait():
    assert error_of_status("PUT", 503, {"Retry-After": "7"}, "x").retry_after == 7.0


# -- What services can do ---------------------------------------------------------------------------------------------


def test_what_a_service_can_do_is_not_that_of_another_with_a_similar_name():
    def account(url, about):
        access = types.SimpleNamespace(url=url)
        found = Account(None, types.SimpleNamespace(access=lambda: access))
        found.about = lambda: about
        return found

    service = swift().service
    assert service.features(account("https://vault/v1/AUTH_1", {"slo": {}, "tempurl": {}})).static
    assert not service.features(account("https://vienna/v1/AUTH_1", {"swift": {}})).static


def test_service_that_tells_nothing_is_expected_to_do_little():
    assert Features.of({}) == Features(static=True, nested=False, conditional=False)


def test_service_without_static_manifests_is_known():
    assert not Features.of({"swift": {"max_object_name_length": 1024}}).fits_static(2)


def test_manifests_of_manifests_hold_more():
    swift_says = {"swift": {"max_object_name_length": 1024}, "slo": {"max_manifest_segments": 10}}
    assert Features.of(swift_says).fits_static(100)
    assert not Features.of(swift_says).fits_static(101)
    assert not Features.of({"swift": {}, "slo": {"max_manifest_segments": 10}}).fits_static(11)


def test_credentials_need_a_project_for_version_3_only():
    assert Credentials("http://swift/auth/v1.0", "1", "tester", "testing").user_name == "tester"
    with pytest.raises(BadStoreConfiguration, match="project"):
        Credentials("http://keystone", "3", "tester", "testing")
