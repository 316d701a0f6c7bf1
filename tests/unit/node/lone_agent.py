# SPDX-License-Identifier: Apache-2.0
"""A node that is enrolled, and whose agent exchanges nothing with others."""

import json
import sys

from storelib.node import agent, options

INI = """
[node]
api_url = http://127.0.0.1:9
name = n1
bind = 127.0.0.1
reserve = 0
state_dir = state
target_dir = images
"""


def enrolled(directory, monkeypatch):
    """Have such a node in a directory; returns what makes its agent."""
    monkeypatch.setitem(sys.modules, "libtorrent", None)
    state = directory / "state"
    state.mkdir(mode=0o700)
    (state / "identity.json").write_text(json.dumps({"id": "1", "name": "n1", "secret": "s"}))
    (directory / "node.ini").write_text(INI)
    return lambda: agent.Agent(*options.load(directory / "node.ini"))
