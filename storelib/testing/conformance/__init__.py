# SPDX-License-Identifier: Apache-2.0
"""The conformance suite: every promise of the Store contract as a test, for any driver.

A driver is tested by a class with a store and, better, a look at the back end behind the driver's back::

    class TestMyStore(StoreConformance):
        capabilities = Capability.READ | Capability.ADD | Capability.DELETE

        @pytest.fixture(scope="class")
        @classmethod
        def store(cls, tmp_path_factory):
            return open_store(MyStore, my_store_folder=str(tmp_path_factory.mktemp("images")))

        @pytest.fixture(scope="class")
        @classmethod
        def backend_access(cls, store):
            return MyAccess(store.conf.my_store_folder)

What only the author of a driver can set up, a new place, a full one, a broken line to a server, are optional fixtures;
see ``placing`` and ``networking`` beside this. Needs pytest and hypothesis: ``pip install storelib[test]``. The same
suite runs against a store in use by ``storelib.testing.live``.
"""

from storelib.testing.conformance.adding import Adding
from storelib.testing.conformance.backend_access import BackendAccess
from storelib.testing.conformance.bench import Bench
from storelib.testing.conformance.calling import Calling
from storelib.testing.conformance.capable import Capable
from storelib.testing.conformance.collecting import Collecting
from storelib.testing.conformance.copying import Copying
from storelib.testing.conformance.failing import Failing
from storelib.testing.conformance.holding import Holding, HoldingWhenAdding
from storelib.testing.conformance.holes import Holes
from storelib.testing.conformance.keeping import Keeping
from storelib.testing.conformance.model import Modelled
from storelib.testing.conformance.naming import Naming, NamingWhenAdding
from storelib.testing.conformance.networking import FaultyLine, Networking, NetworkingWhenAdding
from storelib.testing.conformance.placing import Placing
from storelib.testing.conformance.racing import Racing
from storelib.testing.conformance.reading import Reading
from storelib.testing.conformance.replacing import Replacing

__all__ = ["BackendAccess", "Bench", "FaultyLine", "ReadOnlyConformance", "StoreConformance"]


# pytest runs the tests of the last base first.
class ReadOnlyConformance(Networking, Capable, Naming, Holding, Holes, Reading):
    """What a store promises that only reads; its images are planted by the back-end access."""


class StoreConformance(
    NetworkingWhenAdding,
    Networking,
    Placing,
    Modelled,
    Capable,
    NamingWhenAdding,
    Naming,
    HoldingWhenAdding,
    Holding,
    Replacing,
    Racing,
    Collecting,
    Copying,
    Keeping,
    Calling,
    Failing,
    Holes,
    Reading,
    Adding,
):
    """Everything a store promises."""
