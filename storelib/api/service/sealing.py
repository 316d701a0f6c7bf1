# SPDX-License-Identifier: Apache-2.0
"""Who asked for work, as the database keeps it for a worker: the caller's token only in a form that needs a key.

The key is made of ``[DEFAULT] transport_url``, which the API and its workers share and no database holds.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import zlib
from collections.abc import Mapping
from typing import Any

from cryptography.fernet import Fernet, InvalidToken

from storelib.api.context import Context

LOG = logging.getLogger(__name__)

#: What policies and stores see of a context, without its credentials.
_PLAIN = ("user_id", "project_id", "roles", "is_admin", "request_id", "service_roles", "domain_id", "system_scope")


class Sealing:
    """Makes contexts into JSON and back with the key that belongs to ``secret``."""

    def __init__(self, secret: str) -> None:
        digest = hashlib.sha256(b"storelib context of a job\0" + secret.encode()).digest()
        self._fernet = Fernet(base64.urlsafe_b64encode(digest))

    def seal(self, context: Context) -> dict[str, Any]:
        """The context in JSON."""
        document = {name: getattr(context, name) for name in _PLAIN} | {"claims": dict(context.claims)}
        if context.auth_token:
            # A catalogue is long, and says much the same again and again.
            secret = zlib.compress(json.dumps([context.auth_token, context.catalog]).encode())
            document["sealed"] = self._fernet.encrypt(secret).decode()
        return document

    def unseal(self, document: Mapping[str, Any]) -> Context:
        """The context again; without its token if that was sealed with another key."""
        token, catalog = None, None
        if sealed := document.get("sealed"):
            try:
                token, catalog = json.loads(zlib.decompress(self._fernet.decrypt(sealed)))
            except InvalidToken:
                LOG.warning(
                    "a job is done without the token of its caller: [DEFAULT] transport_url has to be written the same "
                    "in the API and its workers"
                )
        plain: dict[str, Any] = {name: document[name] for name in _PLAIN}
        # An older release did not write them.
        return Context(**plain, auth_token=token, catalog=catalog, claims=document.get("claims", {}))
