# SPDX-License-Identifier: Apache-2.0
"""What an agent makes of responses that are none: whatever they are, it goes on."""

from __future__ import annotations

import pytest
from test_redirects import Server
from web_servers import serving

from storelib.exceptions import RemoteServiceUnavailable
from storelib.node.api import Api

HEARTBEAT = "/v2/nodes/1/heartbeat"


@pytest.mark.parametrize("status", [200, 503])
@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"[" * 60_000, b'{"error":' * 6_000], ids=len)
def test_what_is_no_json_object_is_no_response(status, body):
    with serving(Server()) as server:
        server.answers[HEARTBEAT] = status, {}, body
        client = Api(server.url)
        with pytest.raises(RemoteServiceUnavailable):
            client.heartbeat("1", "secret", {})
        client.close()
