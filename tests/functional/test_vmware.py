# SPDX-License-Identifier: Apache-2.0
"""The vmware driver against the vCenter simulator of govmomi, which is as strict about sessions as a real vCenter."""

import pytest
from servers.vcenter import FIRST, PLAIN, Vcenter

from storelib.capabilities import Capability
from storelib.drivers.vmware import VmwareStore
from storelib.registry import open_store
from storelib.testing.conformance import BackendAccess, StoreConformance

KiB, MiB = 1024, 1024 * 1024
ALL = (
    Capability.READ
    | Capability.RANGE
    | Capability.ADD
    | Capability.DELETE
    | Capability.ATOMIC_ADD
    | Capability.LIST
    | Capability.STAT
    | Capability.GC
    | Capability.CHECK
    | Capability.COPY
)


@pytest.fixture(scope="module")
def vcenter(tmp_path_factory):
    with Vcenter(tmp_path_factory.mktemp("vcenter")) as server:
        yield server


def open_vmware(server, *datastores, port=None, **options):
    settings = {
        "vmware_server_host": "localhost",
        "vmware_server_port": port or server.port,
        "vmware_server_username": server.user,
        "vmware_server_password": server.password,
        "vmware_ca_file": str(server.certificate),
        "vmware_datastores": list(datastores or (f"{PLAIN}:{FIRST}",)),
        "transfer_timeout": 60.0,
    }
    return open_store(VmwareStore, **settings | options)


class Access(BackendAccess):
    """The files of the datastores, behind vCenter's back."""

    def __init__(self, store, directories):
        self.store = store
        self.directories = directories

    def read(self, image_id):
        for directory in self.directories:
            if (directory / image_id).is_file():
                return (directory / image_id).read_bytes()
        return None

    def plant(self, image_id, data):
        self.directories[-1].mkdir(exist_ok=True)
        (self.directories[-1] / image_id).write_bytes(data)
        return self.store.datastores.location(self.store.datastores.targets[-1], image_id).uri

    def residue(self, prefix):
        return {
            str(path.relative_to(directory))
            for directory in self.directories
            for path in directory.rglob("*")
            if path.is_file() and path.name.startswith(prefix)
        }


class TestOneDatastore(StoreConformance):
    """Everything the suite promises."""

    capabilities = ALL

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, vcenter):
        return open_vmware(vcenter)

    @pytest.fixture(scope="class")
    @classmethod
    def backend_access(cls, vcenter, store):
        return Access(store, [vcenter.datastores[PLAIN, FIRST] / "openstack_glance"])
