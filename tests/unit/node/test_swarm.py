# SPDX-License-Identifier: Apache-2.0
"""What libtorrent does not take as people say it."""

from __future__ import annotations

from types import SimpleNamespace

import libtorrent
import pytest

from storelib.node.swarm import Swarm
from storelib.preload import torrent
from storelib.preload.pieces import PieceHasher


@pytest.fixture
def session():
    """One that listens nowhere, and is there as long as its torrents are used."""
    return libtorrent.session({"listen_interfaces": "", "enable_dht": False})


@pytest.fixture
def handle(session, tmp_path):
    hasher = PieceHasher()
    hasher.update(b"x")
    parameters = libtorrent.load_torrent_buffer(torrent.torrent("image", hasher.finish()))
    parameters.save_path = str(tmp_path)
    return session.add_torrent(parameters)


@pytest.mark.parametrize(("limit", "counted"), [(1000, 1000), (1 << 31, -1), (1 << 70, -1)])
def test_a_limit_that_libtorrent_cannot_count_is_none(handle, limit, counted):
    swarm = Swarm.__new__(Swarm)
    swarm._torrents = {"p1": SimpleNamespace(handle=handle, reading=None)}

    swarm.limit("p1", limit, limit)

    assert (handle.download_limit(), handle.upload_limit()) == (counted, counted)
