# SPDX-License-Identifier: Apache-2.0
"""Who a node is: the id and the secret it got when it enrolled, in a file that only the agent reads."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from oslo_config import cfg

from storelib._version import __version__
from storelib.exceptions import BadStoreConfiguration, Duplicate, Forbidden, RemoteServiceUnavailable
from storelib.extras import needing
from storelib.node.api import READ, Api
from storelib.node.files import rename, write_private
from storelib.node.options import Settings

FILE = "identity.json"
_RESERVED = f"{FILE}.new"
#: Bytes that it has at most: a name of 255, an id and a secret.
_LONGEST = 4096


@dataclass(frozen=True, slots=True)
class Identity:
    """What the API knows a node by."""

    id: str
    name: str
    secret: str

    def __repr__(self) -> str:
        """Without the secret."""
        return f"Identity(id={self.id!r}, name={self.name!r})"


def load(directory: Path) -> Identity | None:
    """Who the node is since it enrolled; None before that.

    Raises BadStoreConfiguration for a file that is damaged, or cannot be read.
    """
    try:
        return _read(json.loads((directory / FILE).read_bytes()))
    except FileNotFoundError:
        return None
    except OSError as error:
        # It may well be whole: as for who may not read it, being another user than the agent.
        raise BadStoreConfiguration(f"{directory / FILE} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise BadStoreConfiguration(
            f"{directory / FILE} is damaged; remove it, have the node removed from the API and enrol it again"
        ) from error


def enrol(settings: Settings, conf: cfg.ConfigOpts, api: Api, address: str, port: int) -> Identity:
    """Register a node that is not known yet; raises Forbidden, BadStoreConfiguration, RemoteServiceUnavailable."""
    document: dict[str, Any] = {
        "name": settings.name,
        "group": settings.group,
        "address": address,
        "port": port,
        "version": __version__,
    }
    headers: Mapping[str, str] = {}
    if settings.enrolment_token:
        document["token"] = settings.enrolment_token
    elif settings.enrol_with_keystone:
        headers = _keystone(conf)
    else:
        raise BadStoreConfiguration(
            "the node is not enrolled: set [node] enrolment_token to what `storelib preload enrol` prints, "
            "or [node] enrol_with_keystone"
        )
    # A token counts once, and a name is never given again: what comes of them is to have its place before.
    try:
        headers = {**headers, "X-Node-Secret": _chosen(settings.state_dir)}
    except OSError as error:
        raise BadStoreConfiguration(f"[node] state_dir: who the node is cannot be kept: {error.strerror}") from error
    try:
        found = api.register(document, headers)
    except Duplicate as error:
        raise Forbidden(
            f"there is a node {settings.name} already, whose name cannot be taken over; remove it from the API first"
        ) from error
    try:
        identity = _read({name: found[name] for name in Identity.__slots__})
    except (KeyError, ValueError) as error:
        # What is kept is never asked for again. With the same secret the API takes it for the same node.
        raise RemoteServiceUnavailable("the image API does not say who the node is") from error
    _keep(settings.state_dir, json.dumps(asdict(identity)).encode())
    return identity


def _read(found: dict[str, Any]) -> Identity:
    """Raises ValueError, TypeError or AttributeError for what is none."""
    if not all(isinstance(value, str) and value.isprintable() for value in found.values()):
        raise ValueError("these are no texts")
    return Identity(**found)


def _chosen(directory: Path) -> str:
    """The secret of the node to be; of an attempt whose response was lost the API may know it already."""
    part = directory / _RESERVED
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError):
        return str(json.loads(part.read_bytes())["secret"])
    chosen = secrets.token_urlsafe(32)
    write_private(part, json.dumps({"secret": chosen}).encode().ljust(_LONGEST))
    return chosen


def _keep(directory: Path, data: bytes) -> None:
    """Write into the room that was reserved, which needs no more: only then the file is made shorter."""
    part = directory / _RESERVED
    with open(part, "r+b") as file:
        file.write(data)
        file.flush()
        file.truncate()
        os.fsync(file.fileno())
    rename(part, directory / FILE)


def _keystone(conf: cfg.ConfigOpts) -> Mapping[str, str]:
    """The token of the service user that ``[keystone]`` describes."""
    with needing("enrol_with_keystone", "node"):
        from keystoneauth1 import exceptions, loading
    loading.register_auth_conf_options(conf, "keystone")
    loading.register_session_conf_options(conf, "keystone")
    try:
        plugin = loading.load_auth_from_conf_options(conf, "keystone")
        session = loading.load_session_from_conf_options(conf, "keystone", auth=plugin)
        # Else it waits for ever.
        session.timeout = session.timeout or READ
        return {"X-Auth-Token": str(session.get_token())}
    except exceptions.Unauthorized as error:
        raise Forbidden("Keystone refuses the user of [keystone]") from error
    except (exceptions.ConnectionError, exceptions.HttpServerError) as error:
        raise RemoteServiceUnavailable(f"[keystone]: Keystone does not answer: {type(error).__name__}") from error
    except (exceptions.ClientException, cfg.Error) as error:
        raise BadStoreConfiguration(f"[keystone]: {type(error).__name__}: no token can be had") from error
