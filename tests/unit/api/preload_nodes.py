# SPDX-License-Identifier: Apache-2.0
"""Nodes without files and without peers: they register and send heartbeats, and say what a test has them say."""

from __future__ import annotations

import time
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from deployment import Deployment

from storelib.api.db.preload_schema import node_enrolments, node_groups, nodes, preloads

#: Heartbeats may come as fast as a test sends them.
SECTIONS = """
[preload]
enabled = true
interval = 0.1
ticket_lifetime = 60
"""


class FakeNode:
    """One node; ``heartbeat`` returns what it is told."""

    def __init__(self, api: Deployment, name: str, group: str = "racks", port: int = 6881) -> None:
        self.api, self.name, self.port = api, name, port
        self.address = "192.0.2.7"
        response = api.admin.post(
            "/v2/nodes", {"name": name, "group": group, "address": self.address, "port": port, "version": "1"}
        )
        assert response.status_code == 201, response.text
        self.id, self.secret = response.json["id"], response.json["secret"]

    def send(self, **said: Any) -> Any:
        """The response to one heartbeat."""
        time.sleep(0.011)
        body = {"address": self.address, "port": self.port, "time": time.time(), **said}
        return self.api.nobody.post(f"/v2/nodes/{self.id}/heartbeat", body, X_Node_Secret=self.secret)

    def heartbeat(self, **said: Any) -> dict[str, Any]:
        response = self.send(**said)
        assert response.status_code == 200, response.text
        return response.json

    def says(self, preload: str, state: str, **more: Any) -> dict[str, Any]:
        """A heartbeat that tells of one preload."""
        return self.heartbeat(states=[{"preload": preload, "state": state, **more}])

    def job(self, preload: str) -> dict[str, Any] | None:
        return next((job for job in self.heartbeat()["jobs"] if job["preload"] == preload), None)


def forget_nodes(api: Deployment) -> None:
    """Nothing was ever distributed by this deployment."""
    with api.repository.database.engine.begin() as connection:
        for table in (preloads, nodes, node_groups, node_enrolments):
            connection.execute(table.delete())
    swarms = api.service.preload.agents._swarms
    swarms._counted = None
    del api.events[:]


def preload(api: Deployment, *images: str, **more: Any) -> list[str]:
    """The ids of new preloads, for all nodes of the group ``racks`` if nothing else is said."""
    response = api.admin.post("/v2/preloads", {"images": list(images), **(more or {"group": "racks"})})
    assert response.status_code == 201, response.text
    return [each["id"] for each in response.json["preloads"]]


def request_for(name: str, key: Any = None) -> str:
    """A request for a certificate of this name."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    signed = builder.sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return signed.public_bytes(Encoding.PEM).decode()
