# SPDX-License-Identifier: Apache-2.0
"""What ``storelib.testing.live`` lets pytest collect; the bench comes from its plugin. Not for import elsewhere."""

from __future__ import annotations

import pytest

from storelib.testing.conformance import Bench, StoreConformance


class TestLiveStore(StoreConformance):
    """The whole suite, on a store with images of other people."""

    @pytest.fixture(scope="class")
    @classmethod
    def bench(cls, pytestconfig: pytest.Config) -> Bench:
        """The bench that the run was started with, and cleans up itself."""
        [bench] = (plugin.bench for plugin in pytestconfig.pluginmanager.get_plugins() if hasattr(plugin, "bench"))
        assert isinstance(bench, Bench)
        return bench
