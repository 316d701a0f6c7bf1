# SPDX-License-Identifier: Apache-2.0
"""The minimal driver beside the complete one keeps every promise that it makes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "examples"))

from minimal_store import MinimalStore

from storelib import open_store
from storelib.testing.conformance import StoreConformance


class TestMinimalStore(StoreConformance):
    """Without a back-end access: the store is asked itself."""

    capabilities = MinimalStore.capabilities

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, tmp_path_factory):
        return open_store(MinimalStore, minimal_store_file=tmp_path_factory.mktemp("minimal") / "images.db")
