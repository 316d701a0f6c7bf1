# SPDX-License-Identifier: Apache-2.0
"""What the cinder driver makes of its configuration, of answers and of what is in volumes, without any server."""

import datetime
import email.utils
import json
import math
import ssl
import time
import types
import urllib.parse

import keystoneauth1.exceptions
import pytest
import requests
from cinder_user import OTHER, USER, VOLUME
from hypothesis import example, given
from hypothesis import strategies as st
from scripted_server import ScriptedServer
from urllib3.exceptions import MaxRetryError

from storelib.capabilities import Capability
from storelib.drivers.cinder import CinderStore, garbage, publication
from storelib.drivers.cinder.service import Api, Volume
from storelib.exceptions import (
    BadStoreConfiguration,
    BadStoreUri,
    Duplicate,
    Forbidden,
    NotFound,
    OperationNotSupported,
    RemoteServiceUnavailable,
    StorageFull,
    StoreError,
)
from storelib.registry import open_store
from storelib.transfer.contract import Digests
from storelib.transfer.http.keystone import error_of_keystone
from storelib.transfer.retry import mapped

#: How Cinder writes times.
_TIMES = "%Y-%m-%dT%H:%M:%S.%f"
APPLICATION = {
    "cinder_store_auth_address": "https://keystone:5000/v3",
    "cinder_store_application_credential_id": "id",
    "cinder_store_application_credential_secret": "hunter2",
}


def cinder(**options):
    return open_store(CinderStore, "fast", **options)


# -- Configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [USER, APPLICATION])
def test_store_with_a_user_of_its_own_does_everything(options):
    assert cinder(**options).capabilities == CinderStore.capabilities


def test_store_without_a_user_does_what_a_request_can():
    store = cinder()
    lacking = Capability.LIST | Capability.GC | Capability.CHECK
    assert store.capabilities == CinderStore.capabilities & ~lacking
    with pytest.raises(Forbidden, match="cinder_store_user_name"):
        store.add("image", b"data")


@pytest.mark.parametrize("missing", USER)
def test_half_a_user_is_an_error(missing):
    with pytest.raises(BadStoreConfiguration, match=missing) as caught:
        cinder(**{name: value for name, value in USER.items() if name != missing})
    assert "hunter2" not in str(caught.value)


def test_application_credential_without_its_secret_is_an_error():
    with pytest.raises(BadStoreConfiguration, match="cinder_store_application_credential_secret"):
        cinder(**{**APPLICATION, "cinder_store_application_credential_secret": None})


@pytest.mark.parametrize("info", ["volumev3", "volumev3:publicURL", "::publicURL", "volumev3::"])
def test_catalog_info_that_makes_no_sense_is_an_error(info):
    with pytest.raises(BadStoreConfiguration, match="cinder_catalog_info"):
        cinder(**USER, cinder_catalog_info=info)


def test_two_stores_share_nothing():
    one, other = cinder(**USER), cinder(**{**USER, "cinder_store_user_name": "others"})
    ours, theirs = (store.service._sessions.of_service() for store in (one, other))
    assert ours.session is not theirs.session
    assert ours.session.session is not theirs.session.session


CATALOG = [
    {"type": "image", "endpoints": [{"publicURL": "https://glance/"}]},
    "no service",
    {
        "type": "volumev3",
        "name": "cinderv3",
        "endpoints": [
            {"publicURL": "https://north/v3/p", "internalURL": "https://inner/v3/p", "region": "north"},
            {"interface": "public", "url": "https://south/v3/p", "region_id": "south"},
        ],
    },
]


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ({}, "https://north"),
        ({"cinder_os_region_name": "south"}, "https://south"),
        ({"cinder_catalog_info": "volumev3:cinderv3:internalURL"}, "https://inner"),
        ({"cinder_endpoint_template": "https://fixed:8776/v3/%(project_id)s"}, "https://fixed:8776"),
    ],
)
def test_request_is_answered_by_the_cinder_of_its_catalog(options, url):
    context = types.SimpleNamespace(auth_token="token", project_id="p", service_catalog=CATALOG)
    assert cinder(**options).service.user(context).api.endpoint == url


def named(kind, name, url):
    return {"type": kind, "name": name, "endpoints": [{"interface": "public", "url": url}]}


@pytest.mark.parametrize(
    ("catalog", "info", "url"),
    [
        ([named("block-storage", "cinder", "https://new")], "volumev3::publicURL", "https://new"),
        ([named("volumev3", "cinder", "https://old")], "block-storage::public", "https://old"),
        (
            [named("block-storage", "cinder", "https://new"), named("volumev3", "cinder", "https://old")],
            "volumev3::publicURL",
            "https://old",
        ),
        (
            [named("volumev3", "slow", "https://slow"), named("volumev3", "fast", "https://fast")],
            "volumev3:fast:publicURL",
            "https://fast",
        ),
    ],
)
def test_cinder_of_a_request_is_the_one_that_the_option_names(catalog, info, url):
    """As keystoneauth finds it for a user of the store's own, by any of the names that the type has."""
    context = types.SimpleNamespace(auth_token="token", project_id="p", service_catalog=catalog)
    assert cinder(cinder_catalog_info=info).service.user(context).api.endpoint == url


@pytest.mark.parametrize(
    ("catalog", "info"),
    [
        ([named("volumev2", "cinder", "https://v2")], "volumev3::publicURL"),
        ([named("volumev3", "slow", "https://slow")], "volumev3:fast:publicURL"),
    ],
)
def test_other_service_of_the_catalog_is_not_asked(catalog, info):
    context = types.SimpleNamespace(auth_token="token", project_id="p", service_catalog=catalog)
    with pytest.raises(RemoteServiceUnavailable, match="cinder_catalog_info"):
        cinder(cinder_catalog_info=info).get(f"cinder://{VOLUME}", context=context)


def test_request_without_cinder_in_its_catalog_is_told_the_options():
    context = types.SimpleNamespace(auth_token="token", project_id="p", service_catalog=CATALOG[:2])
    with pytest.raises(RemoteServiceUnavailable, match="cinder_catalog_info"):
        cinder().get(f"cinder://{VOLUME}", context=context)


def test_volume_of_another_store_is_refused():
    store = cinder(**USER)
    assert store.locate(f"cinder://fast/{VOLUME}").volume == VOLUME
    assert store.locate(f"cinder://{VOLUME}").volume == VOLUME
    assert store.uri_of(f"cinder://{VOLUME.upper()}") == f"cinder://fast/{VOLUME}"
    with pytest.raises(BadStoreUri):
        store.locate(f"cinder://slow/{VOLUME}")


@pytest.mark.parametrize("kind", ["iscsi", "rbd", "nfs"])
def test_encrypted_volumes_are_refused(kind):
    info = {"driver_volume_type": kind, "encrypted": True}
    with pytest.raises(OperationNotSupported, match="cinder_volume_type"):
        cinder(**USER).service.connectors.connect(info, VOLUME, print)


# -- Keystone and connections ---------------------------------------------------------------------------------------


def answering(status, body=b"", headers=b""):
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n" % (
        status,
        len(body),
        headers,
    )
    return ScriptedServer(lambda request: head + body)


TOKEN = b"X-Subject-Token: token\r\n"
PLACE = b'{"token": {"expires_at": "2099-01-01T00:00:00Z", "catalog": [{"type": "volumev3", "endpoints": %b}]}}'


@pytest.mark.parametrize(
    ("status", "headers", "body", "told"),
    [
        (b"201 Created", b"", b'{"token": {}}', "makes no sense"),
        (b"201 Created", TOKEN, b'{"token": {}}', "makes no sense"),
        (b"201 Created", TOKEN, b'{"token": null}', "makes no sense"),
        (b"201 Created", TOKEN, b'{"token": {"expires_at": "soon"}}', "makes no sense"),
        (b"201 Created", TOKEN, PLACE % b'[{"interface": "public", "region": "r", "url": 7}]', "makes no sense"),
        (b"201 Created", TOKEN, b"[]", "cinder_store_auth_address"),
        (b"200 OK", b"", b"<html>", "cinder_store_auth_address"),
        (b"302 Found", b"Location: http://127.0.0.1:9/\r\n", b"", "cinder_store_auth_address"),
        (b"503 Service Unavailable", b"", b"<html>", "no response from Cinder or Keystone"),
    ],
)
def test_what_is_no_token_is_an_error_of_storelib(status, headers, body, told):
    with answering(status, body, headers) as server:
        store = cinder(**{**USER, "cinder_store_auth_address": server.url}, transfer_retries=0)
        with pytest.raises(RemoteServiceUnavailable, match=told):
            store.get_size(f"cinder://{VOLUME}")


@pytest.mark.parametrize(
    ("cause", "transient"),
    [(ssl.SSLCertVerificationError("self-signed"), False), (ssl.SSLEOFError("EOF occurred"), True)],
)
def test_certificate_that_is_not_trusted_is_told_at_once_with_the_option(cause, transient):
    """keystoneauth has one error for it and for connections that are cut early."""

    def call():
        try:
            raise requests.exceptions.SSLError(MaxRetryError(None, "/", cause))
        except requests.exceptions.SSLError:
            raise keystoneauth1.exceptions.SSLError("SSL exception")

    found = error_of(call)
    assert type(found) is RemoteServiceUnavailable
    assert found.transient is transient
    assert ("cinder_ca_certificates_file" in str(found)) is not transient
    with pytest.raises(keystoneauth1.exceptions.SSLError) as caught:
        call()
    assert error_of_keystone(caught.value, "subject", "swift").transient is transient


@pytest.mark.parametrize("cause", [PermissionError(13, "Permission denied"), OSError(30, "Read-only file system")])
def test_trouble_of_this_host_is_not_put_down_to_cinder(cause):
    def call():
        raise cause

    found = error_of(call)
    assert not isinstance(found, RemoteServiceUnavailable)
    assert "cinder_state_path" in str(found)
    assert cause.strerror in str(found)


@pytest.mark.parametrize("cause", [TimeoutError("slow"), ConnectionResetError()])
def test_trouble_on_the_way_to_cinder_may_pass(cause):
    def call():
        raise cause

    assert error_of(call).transient


def test_requests_share_connections_and_no_token(tmp_path):
    """One for each request stayed open until Python came round to it."""
    with answering(b"200 OK", json.dumps({"volume": FOUND["volume"]}).encode()) as server:
        store = cinder(cinder_endpoint_template=f"{server.url}/v3/%(project_id)s", cinder_state_path=str(tmp_path))
        for number in range(5):
            context = types.SimpleNamespace(auth_token=f"token-{number}", project_id="p")
            with pytest.raises(NotFound):
                store.get_size(f"cinder://{VOLUME}", context=context)
        assert server.connections == 1
        assert [each.headers["x-auth-token"] for each in server.requests] == [f"token-{n}" for n in range(5)]


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: "])
def test_answer_that_comes_byte_by_byte_is_given_up(tmp_path, head):
    """No time limit of a socket ends that."""
    sent = []

    def trickle(request):
        yield head
        for number in range(200):
            sent.append(number)
            time.sleep(0.02)
            yield b" "

    with ScriptedServer(trickle) as server:
        store = cinder(
            cinder_endpoint_template=f"{server.url}/v3/%(project_id)s",
            cinder_state_path=str(tmp_path),
            transfer_timeout=0.2,
            transfer_retries=0,
        )
        context = types.SimpleNamespace(auth_token="token", project_id="p")
        with pytest.raises(StoreError):
            store.get_size(f"cinder://{VOLUME}", context=context)
    assert len(sent) < 200


def test_answer_that_is_cut_in_its_headers_is_none(tmp_path):
    """http.client takes those that came for all there are, and what is missing for an empty body."""

    def cut(request):
        yield b"HTTP/1.1 202 Accepted\r\nContent-Le"
        raise ConnectionError

    with ScriptedServer(cut) as server:
        store = cinder(
            cinder_endpoint_template=f"{server.url}/v3/p", cinder_state_path=str(tmp_path), transfer_retries=0
        )
        user = store.service.user(types.SimpleNamespace(auth_token="token", project_id="p"))
        assert isinstance(error_of(lambda: user.api.delete(VOLUME)), RemoteServiceUnavailable)


@pytest.mark.parametrize(("ahead", "found"), [(-86400.0, False), (86400.0, True), (None, True)])
def test_what_is_old_cinder_s_clock_tells(tmp_path, ahead, found):
    """A host whose clock is wrong must not remove what others are writing; some Cinders tell no time."""
    date = b"" if ahead is None else b"Date: %b\r\n" % email.utils.formatdate(time.time() + ahead, usegmt=True).encode()
    entries = {**publication.id_entries("image"), publication.STORE: "fast", publication.STATE: publication.WRITING}
    written = {
        "id": VOLUME,
        "status": "available",
        "size": 1,
        "metadata": entries,
        # An hour ago by the clock of this host.
        "created_at": datetime.datetime.fromtimestamp(time.time() - 3600, datetime.timezone.utc).strftime(_TIMES),
    }

    def listed(request):
        what = "volumes" if "/volumes/" in request.target else "attachments"
        body = json.dumps({what: [written] if what == "volumes" else []}).encode()
        head = b"HTTP/1.1 200 OK\r\n%bContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        return head % (date, len(body)) + body

    with ScriptedServer(listed) as server:
        store = cinder(cinder_endpoint_template=f"{server.url}/v3/p", cinder_state_path=str(tmp_path))
        user = store.service.user(types.SimpleNamespace(auth_token="token", project_id="p"))
        dead = list(garbage.find(publication.Shelf("fast", "shared"), user, 60, ""))
    assert [each.image_id for each in dead] == ["image"] * found


# -- What is in a volume --------------------------------------------------------------------------------------------


def volume(metadata, status="available", volume_type="shared", size=1, volume_id=VOLUME):
    return Volume(volume_id, status, size, volume_type, metadata, 0.0, 0.0)


@given(st.text(min_size=1, max_size=255))
@example("plain")
@example("ü" * 127)
@example("\U0001f600" * 63)
@example("a b%20?#'\"\\")
def test_any_id_is_written_down_and_read_again(image_id):
    entries = publication.id_entries(image_id)
    assert all(value.isascii() and 0 < len(value) <= 255 for value in entries.values())
    assert publication.image_id_of(volume(entries)) == image_id


def test_volume_of_glance_store_is_an_image():
    found = volume({"glance_image_id": "id", "image_size": "17", "image_owner": "p", "readonly": "True"})
    assert publication.is_image(found)
    assert publication.size_of(found) == 17
    shelf = publication.Shelf("fast", "shared")
    assert shelf.holds(None, found)
    assert not shelf.is_own(found), "gc would take it for its own"
    assert not publication.Shelf("fast", "single").holds(None, found)


@pytest.mark.parametrize("status", ["reserved", "attaching", "detaching", "backing-up", "maintenance", "in-use"])
def test_volume_of_glance_store_is_an_image_whatever_is_done_with_it(status):
    """While one client attaches it, others must not be told that there is none."""
    assert publication.is_image(volume({"glance_image_id": "id", "image_size": "17"}, status=status))


def test_type_may_be_given_by_its_id():
    """Volumes tell the name of their type; those that glance_store made nothing else of their store."""
    found = volume({"glance_image_id": "id", "image_size": "17"})
    shelf = publication.Shelf("fast", OTHER)
    asked = api((200, {"volume_type": {"id": OTHER, "name": "shared"}}))
    assert shelf.holds(asked, found)
    assert not shelf.holds(asked, volume({"glance_image_id": "id"}, volume_type="single"))
    assert asked._client.asked == [("GET", f"/types/{OTHER}")]
    assert not publication.Shelf("fast", OTHER).holds(api((404, NOT_FOUND)), found)


@pytest.mark.parametrize("metadata", [{"image_owner": "p"}, {"image_owner": "p", "glance_image_id": "id"}])
def test_volume_that_cinder_itself_made_an_image_is_one_as_a_whole(metadata):
    """With image_upload_use_cinder_backend: of what glance_store is writing the size is there first."""
    location = publication.CinderLocation.parse(f"cinder://{VOLUME}")
    shelf = publication.Shelf("fast", "shared")

    def look(**more):
        return shelf.image(types.SimpleNamespace(volume=lambda volume_id: volume(metadata, size=3, **more)), location)

    assert publication.size_of(look()) == 3 << 30
    for other in ({"status": "creating"}, {"status": "deleting"}, {"volume_type": "single"}):
        with pytest.raises(NotFound):
            look(**other)


@pytest.mark.parametrize(
    "found",
    [
        volume({}),
        volume({"glance_image_id": "id"}),
        volume({"glance_image_id": "id", "image_size": "1"}, status="error"),
        volume({"glance_image_id": "id", "image_size": "1", "storelib_state": "writing"}),
        volume({"glance_image_id": "id", "image_size": "1", "storelib_state": "pending"}),
        volume({"glance_image_id": "id", "image_size": "1", "storelib_state": "complete"}, status="deleting"),
        volume({"glance_image_id": "id", "image_size": "1", "storelib_state": "complete"}, status="error_deleting"),
    ],
)
def test_what_is_no_image(found):
    assert not publication.is_image(found)


@pytest.mark.parametrize("breaks", [False, True])
def test_add_that_withdraws_keeps_no_other_waiting(breaks):
    """It is detached and deleted only afterwards, for which the other would not have the patience."""
    found = {each: volume(publication.id_entries("image"), volume_id=each) for each in (VOLUME, OTHER)}
    found[VOLUME].metadata[publication.STATE] = publication.PENDING

    def set_metadata(volume_id, metadata):
        if breaks and metadata == {publication.STATE: publication.WRITING}:
            raise RemoteServiceUnavailable("away")
        found[volume_id].metadata.update(metadata)

    asked = types.SimpleNamespace(set_metadata=set_metadata, volumes=lambda metadata: iter(found.values()))
    shelf = publication.Shelf("fast", None)
    with pytest.raises(Duplicate):
        shelf.publish(asked, OTHER, "image", 1, Digests(None, "ab"), again=False)
    if not breaks:
        shelf.publish(asked, VOLUME, "image", 1, Digests(None, "ab"), again=False)
        assert found[VOLUME].metadata[publication.STATE] == publication.COMPLETE


@pytest.mark.parametrize("size", [None, "", "-1", "1.5", "²", "1073741825", "many", "1" * 5000])
def test_size_that_cannot_be_is_an_error(size):
    metadata = {"glance_image_id": "id"} | ({} if size is None else {"image_size": size})
    with pytest.raises(StoreError, match="image_size"):
        publication.size_of(volume(metadata))


# -- Answers --------------------------------------------------------------------------------------------------------

NOT_FOUND = {"itemNotFound": {"message": "Volume could not be found.", "code": 404}}
FOUND = {
    "volume": {
        "id": VOLUME,
        "status": "available",
        "size": 1,
        "metadata": {},
        "created_at": "2026-11-28T14:43:29.713558",
        "updated_at": None,
        "volume_type": "shared",
    }
}


class Client:
    """Answers each request with what it was given."""

    session = types.SimpleNamespace(timeout=5.0)

    def __init__(self, *responses):
        self.answers = list(responses)
        self.asked = []

    def request(self, path, method, **options):
        self.asked.append((method, path))
        status, body = self.answers.pop(0)
        response = types.SimpleNamespace(status_code=status, headers={}, reason="", text="")
        return response, body


def error_of(call):
    """What the store makes of an error."""
    store = cinder(**USER)
    with pytest.raises(StoreError) as caught:
        mapped(call, store.map_error, "subject")
    return caught.value


def api(*responses):
    return Api(Client(*responses), 1.0)


@pytest.mark.parametrize(
    ("answer", "kind", "transient"),
    [
        ((404, NOT_FOUND), NotFound, False),
        ((404, None), RemoteServiceUnavailable, True),
        ((404, {"page": "not found"}), RemoteServiceUnavailable, True),
        ((400, None), RemoteServiceUnavailable, True),
        ((401, None), Forbidden, False),
        ((403, {"forbidden": {"message": "policy"}}), Forbidden, False),
        ((413, {"overLimit": {"message": "quota"}}), StorageFull, False),
        ((400, {"badRequest": {"message": "no"}}), StoreError, False),
        ((409, {"conflictingRequest": {"message": "no"}}), RemoteServiceUnavailable, True),
        ((500, {"computeFault": {"message": "oops"}}), RemoteServiceUnavailable, True),
        ((503, None), RemoteServiceUnavailable, True),
        # As gateways say it.
        ((503, {"error": "upstream"}), RemoteServiceUnavailable, True),
        ((409, ["a"]), RemoteServiceUnavailable, True),
        ((401, {"error": "expired"}), Forbidden, False),
        ((403, {"error": None}), Forbidden, False),
        ((200, None), RemoteServiceUnavailable, True),
        ((200, {"volume": []}), RemoteServiceUnavailable, True),
        ((200, {"volume": {**FOUND["volume"], "id": "../../etc"}}), RemoteServiceUnavailable, True),
        ((200, {"volume": {**FOUND["volume"], "size": "much"}}), RemoteServiceUnavailable, True),
        ((200, {"volume": {**FOUND["volume"], "size": math.inf}}), RemoteServiceUnavailable, True),
        ((406, {"computeFault": {"message": "Version 3.54 is not supported"}}), BadStoreConfiguration, False),
        ((200, {"volume": {**FOUND["volume"], "metadata": None}}), RemoteServiceUnavailable, True),
        ((302, None), RemoteServiceUnavailable, True),
        ((204, None), RemoteServiceUnavailable, True),
    ],
)
def test_answer_is_believed_only_if_it_is_cinders(answer, kind, transient):
    def call():
        found = api(answer).look_at(VOLUME)
        if found is None:
            raise NotFound
        return found

    found = error_of(call)
    assert type(found) is kind
    assert found.transient is transient


def test_volume_is_read():
    found = api((200, FOUND)).volume(VOLUME)
    assert (found.id, found.status, found.size, found.type) == (VOLUME, "available", 1, "shared")
    assert found.created == found.updated == 1795877009.713558


def test_the_type_of_volumes_that_name_none_is_asked_for_by_its_name():
    asked = api((200, {"volume_type": {"id": OTHER, "name": "shared"}}), (200, {"volume_type": {"id": OTHER}}))
    assert asked.default_type() == "shared"
    assert asked.default_type() is None


def test_only_volumes_that_are_no_images_yet_are_asked_for_to_find_leftovers():
    shelf = publication.Shelf("fast", None)
    metadata = {
        **publication.id_entries("image"),
        publication.STORE: "fast",
        publication.STATE: publication.WRITING,
    }
    told = [{**FOUND["volume"], "id": VOLUME, "metadata": metadata}, {**FOUND["volume"], "id": OTHER}]
    # Some Cinders ignore the filter.
    asked = api((200, {"volumes": told}), (200, {"volumes": told}))
    assert [each.id for each in shelf.unfinished(asked)] == [VOLUME]
    filters = [urllib.parse.parse_qs(path.partition("?")[2])["metadata"] for _, path in asked._client.asked]
    assert filters == [[str({publication.STORE: "fast", publication.STATE: state})] for state in ("writing", "pending")]


def test_private_types_are_types():
    """Administrators are shown public ones only, unless they ask otherwise."""
    asked = api((200, {"volume_types": [{"id": OTHER, "name": "images"}]}))
    assert asked.has_type("images")
    assert asked._client.asked == [("GET", "/types?is_public=None")]


def test_missing_type_is_named():
    found = error_of(lambda: api((404, NOT_FOUND)).create(1, "n", {}, "wrong"))
    assert isinstance(found, BadStoreConfiguration)
    assert "'wrong'" in str(found)


@pytest.mark.parametrize(
    ("key", "ask"),
    [
        ("attachment", lambda asked: asked.reserve(VOLUME, "ro")),
        ("attachment", lambda asked: asked.connect(OTHER, {})),
        ("attachment", lambda asked: asked.connection_info(OTHER)),
        ("volume_type", lambda asked: asked.default_type()),
        ("limits", lambda asked: asked.room()),
        ("metadata", lambda asked: asked.set_metadata(VOLUME, {"a": "b"})),
    ],
)
@pytest.mark.parametrize("told", [None, [], ["a"]])
def test_answer_of_another_form_is_no_answer(key, ask, told):
    assert isinstance(error_of(lambda: ask(api((200, {key: told})))), RemoteServiceUnavailable)


def test_limits_of_nothing_are_none():
    assert isinstance(error_of(lambda: api((200, {"limits": {"absolute": None}})).room()), RemoteServiceUnavailable)


def test_success_page_in_place_of_a_deletion_is_no_success():
    assert isinstance(error_of(lambda: api((200, None)).delete(VOLUME)), RemoteServiceUnavailable)


def listed(*ids, more=True):
    page = {"volumes": [{**FOUND["volume"], "id": each} for each in ids]}
    return (200, page | ({"volumes_links": [{"rel": "next"}]} if more else {}))


def test_list_goes_on_after_its_mark_is_gone():
    """The volume that was listed last is deleted before the next page is asked for."""
    third = "91db484c-33c6-4f0f-a2be-a5ffb8c38e7a"
    gone = (404, NOT_FOUND)
    asked = api(listed(VOLUME, OTHER), gone, listed(third, more=False))
    assert [each.id for each in asked.volumes()] == [VOLUME, OTHER, third]
    markers = [path.partition("marker=")[2] for _, path in asked._client.asked]
    assert markers == ["", OTHER, VOLUME]


def test_list_that_does_not_go_on_is_given_up():
    """A proxy drops the query, so that each page is the first one."""
    asked = api(*[listed(VOLUME, OTHER)] * 3)
    assert isinstance(error_of(lambda: list(asked.volumes())), RemoteServiceUnavailable)
    assert len(asked._client.asked) == 2


def test_filter_that_cinder_ignores_is_kept():
    """Who looks for a volume by its token must not be given another one."""
    assert list(api(listed(VOLUME, OTHER, more=False)).volumes({"storelib_token": "t"})) == []


def test_list_begins_again_when_all_marks_are_gone_and_tells_nothing_twice():
    gone = (400, {"badRequest": {"message": "marker"}})
    asked = api(listed(VOLUME, OTHER), gone, gone, listed(OTHER, more=False))
    assert [each.id for each in asked.volumes()] == [VOLUME, OTHER]
