# SPDX-License-Identifier: Apache-2.0
"""What the vmware driver believes of XML that a vCenter, or what stands in for it, answers, without any server."""

import http.client
import io
import types

import pytest
from pyVmomi import vim, vmodl

from storelib.drivers.vmware import VmwareStore
from storelib.drivers.vmware import vcenter as backend
from storelib.drivers.vmware.errors import NothingTold, NotSoap, storelib_error
from storelib.exceptions import RemoteServiceUnavailable
from storelib.registry import open_store

ENVELOPE = (
    '<e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsd="http://www.w3.org/2001/XMLSchema" '
    'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><e:Body>{}</e:Body></e:Envelope>'
)
TIME = '<CurrentTimeResponse xmlns="urn:vim25"><returnval>2026-11-28T14:43:29Z</returnval></CurrentTimeResponse>'
FOUND = '<FindByInventoryPathResponse xmlns="urn:vim25">{}</FindByInventoryPathResponse>'
TOLD = (
    '<RetrievePropertiesResponse xmlns="urn:vim25"><returnval><obj type="Task">t</obj>{}</returnval>'
    "</RetrievePropertiesResponse>"
)
STATE = '<propSet><name>info.state</name><val xsi:type="TaskInfoState">{}</val></propSet>'


class Line:
    """Connections on which every call gets this answer."""

    def __init__(self, inner):
        self.body = ENVELOPE.format(inner).encode()

    def take(self):
        return self

    def give_back(self, connection):
        pass

    drop_idle = close = lambda self: None

    def request(self, *arguments, **options):
        pass

    def getresponse(self):
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n" % len(self.body)
        response = http.client.HTTPResponse(
            types.SimpleNamespace(makefile=lambda *arguments: io.BytesIO(head + self.body))
        )
        response.begin()
        return response


def answered(inner):
    return backend._Stub(Line(inner), {})


def now(stub):
    return vim.ServiceInstance("ServiceInstance", stub).CurrentTime()


def look_up(stub):
    return vim.SearchIndex("SearchIndex", stub).FindByInventoryPath("DC0")


def test_answer_to_a_call_is_believed():
    assert now(answered(TIME)).year == 2026
    assert look_up(answered(FOUND.format('<returnval type="Datacenter">d</returnval>')))._moId == "d"
    assert look_up(answered(FOUND.format(""))) is None


@pytest.mark.parametrize(
    ("ask", "inner"),
    [
        (now, ""),
        (now, "<x/>"),
        (now, TIME.replace("2026-11-28T14:43:29Z", "now")),
        (now, TIME.replace("2026", "99999999999")),
        (now, "<e:Fault><faultcode>c</faultcode><faultstring>s</faultstring></e:Fault>"),
        (
            now,
            "<e:Fault><faultcode>c</faultcode><faultstring>s</faultstring><detail>"
            '<F xmlns="urn:vim25" xsi:type="NoSuchFault"/></detail></e:Fault>',
        ),
        (look_up, FOUND.format("<returnval>d</returnval>")),
        (look_up, FOUND.format('<returnval type="NoSuchType">d</returnval>')),
        (look_up, FOUND.format('<returnval type="Task">d</returnval>')),
    ],
)
def test_xml_that_is_no_answer_to_the_call_is_an_error_of_storelib(ask, inner):
    with pytest.raises(NotSoap) as caught:
        ask(answered(inner))
    assert isinstance(storelib_error(caught.value, "subject"), RemoteServiceUnavailable)


def test_certificate_that_is_not_trusted_is_still_told():
    """To Python it is a value that makes no sense, too."""

    def refuse():
        raise backend.http.client.ssl.SSLCertVerificationError("self-signed")

    stub = answered(TIME)
    stub._own.take = refuse
    with pytest.raises(OSError, match="self-signed"):
        now(stub)


def opened(*datastores):
    return open_store(
        VmwareStore,
        vmware_server_host="host",
        vmware_server_username="u",
        vmware_server_password="p",
        vmware_datastores=[*datastores] or ["DC0:ds"],
    )


def session(inner):
    found = opened().datastores.session
    collector = vmodl.query.PropertyCollector("collector", answered(inner))
    login = types.SimpleNamespace(content=types.SimpleNamespace(propertyCollector=collector))
    found._login = lambda instead_of=None: login
    return found


def test_task_that_failed_without_a_reason_is_an_error_of_storelib():
    asked = session(TOLD.format(STATE.format("error")))
    with pytest.raises(NothingTold, match=r"info\.error"):
        asked.run(lambda login: vim.Task("t", None), "subject")


@pytest.mark.parametrize(
    "told",
    [
        '<propSet><name>info.state</name><val xsi:type="xsd:int">3</val></propSet>',
        STATE.format("success") + '<propSet><name>info.progress</name><val xsi:type="xsd:string">half</val></propSet>',
        STATE.format("success") + '<propSet><name>else</name><val xsi:type="xsd:string">x</val></propSet>',
    ],
)
def test_property_of_another_kind_is_none(told):
    with pytest.raises(NotSoap):
        session(TOLD.format(told)).properties([vim.Task("t", None)], "info.state", "info.progress")


def test_properties_of_nothing_are_none():
    nameless = TOLD.replace('<obj type="Task">t</obj>', "").format(STATE.format("success"))
    with pytest.raises(NothingTold):
        session(nameless).properties([vim.Task("t", None)], "info.state")


@pytest.mark.parametrize("fault", [vmodl.fault.ManagedObjectNotFound, vim.fault.InvalidDatastorePath])
def test_datastore_that_has_gone_or_was_renamed_is_looked_for_again(fault):
    """Another one may have its name now."""
    asked = opened().datastores
    [target] = asked.targets
    asked._handles[target] = backend.Handles(None, None, None)

    def ask():
        raise fault

    with pytest.raises(fault):
        asked._asked(ask, target)
    assert not asked._handles


def test_search_that_found_something_else_than_files_is_none(monkeypatch):
    asked = opened().datastores
    nameless = vim.host.DatastoreBrowser.SearchResults(file=[vim.host.DatastoreBrowser.FileInfo()])
    for found in (None, "text", nameless):
        monkeypatch.setattr(asked, "_run", lambda start, target, found=found: found)
        with pytest.raises(NotSoap):
            asked.files(asked.targets[0], ())


def test_datastore_that_is_away_keeps_none_of_the_others(monkeypatch):
    store = opened("DC0:away", "DC0:ds")

    def files(target, directory):
        if target.name == "away":
            raise vim.fault.InaccessibleDatastore
        temporary = "image.000000000000000000000000"
        return [backend.File(*((temporary, 3) if ".storelib-uploads" in directory else ("image", 7)), 1e9)]

    monkeypatch.setattr(store.datastores, "files", files)
    monkeypatch.setattr(store.datastores.session, "now", lambda: 2e9)
    for items, size in ((store.list_images(), 7), (store.find_garbage(1), 3)):
        assert next(items).size == size
        with pytest.raises(RemoteServiceUnavailable, match="datastore away of DC0: vCenter cannot reach"):
            next(items)
