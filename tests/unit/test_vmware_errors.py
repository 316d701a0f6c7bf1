# SPDX-License-Identifier: Apache-2.0
"""What faults of vCenter become."""

import pytest
from pyVmomi import vim

from storelib.drivers.vmware.errors import storelib_error
from storelib.exceptions import BadStoreConfiguration, RemoteServiceUnavailable, StorageWriteDenied

FAULTS = [
    # Each of these is an InvalidDatastore to vCenter.
    (vim.fault.InvalidDatastore(), BadStoreConfiguration, False),
    (vim.fault.InvalidDatastorePath(), BadStoreConfiguration, False),
    (vim.fault.InaccessibleDatastore(), RemoteServiceUnavailable, True),
    (vim.fault.DatastoreNotWritableOnHost(), StorageWriteDenied, False),
    (vim.fault.CannotCreateFile(), StorageWriteDenied, False),
    (vim.fault.CannotDeleteFile(), StorageWriteDenied, False),
    (vim.fault.FileNotWritable(), StorageWriteDenied, False),
]


@pytest.mark.parametrize(("fault", "kind", "transient"), FAULTS, ids=lambda value: getattr(value, "__name__", None))
def test_datastore_that_is_away_or_read_only_is_no_mistake_of_the_configuration(fault, kind, transient):
    found = storelib_error(fault, "image 'x'")
    assert (type(found), found.transient) == (kind, transient)
