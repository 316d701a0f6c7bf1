# SPDX-License-Identifier: Apache-2.0
"""The options of the agent on a node: group ``[node]``, read once when it starts."""

from __future__ import annotations

import os
import socket
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oslo_config import cfg

from storelib.config import OptionReader, did_you_mean, option_names, read_file
from storelib.exceptions import BadStoreConfiguration
from storelib.option_types import Bytes, LocalPath, Names

GROUP = "node"

OPTIONS: Sequence[cfg.Opt] = (
    # -- the image API
    cfg.StrOpt("api_url", help="URL of the image API without its version: https://images.example:9292. Required."),
    cfg.Opt(
        "ca_file",
        type=LocalPath(),
        help="Certificates, in PEM, of the authorities that the API's own must be from; the system's if not set.",
    ),
    cfg.StrOpt("name", help="The node's name, which no other node may have; the host's name if not set."),
    cfg.StrOpt(
        "group", default="", help="The group that the node enrols for; if not set, the one of its enrolment token."
    ),
    cfg.StrOpt(
        "enrolment_token",
        secret=True,
        help="What `storelib preload enrol` printed. Needed once; it may be taken out of the file afterwards.",
    ),
    cfg.Opt("enrolment_token_file", type=LocalPath(), help="A file with the token, instead of enrolment_token."),
    cfg.BoolOpt(
        "enrol_with_keystone",
        default=False,
        help="Enrol as the service user of the section [keystone] (auth_type, auth_url, username and so on).",
    ),
    # -- other nodes
    cfg.StrOpt(
        "bind",
        default="0.0.0.0",  # noqa: S104  (other nodes are to reach it)
        help="Address on which other nodes connect, and from which this one connects to them.",
    ),
    cfg.PortOpt("port", default=9293, min=1, help="Port on which other nodes connect; TLS only."),
    cfg.StrOpt(
        "address",
        help="Address that other nodes are told, or a name of this host, which is looked up here; if not set, bind, or "
        "the one from which the API is reached.",
    ),
    # -- files
    cfg.Opt(
        "state_dir",
        type=LocalPath(),
        default="/var/lib/storelib-node",
        help="Directory of the agent's own: its secret, and images as they come. It has to be in the file system of "
        "target_dir, so that complete images get their place there by a rename.",
    ),
    cfg.Opt(
        "target_dir",
        type=LocalPath(),
        help="Directory in which images appear when they are complete, not in state_dir. Required.",
    ),
    cfg.StrOpt(
        "layout",
        default="directory",
        choices=[
            ("directory", "The file of an image has the image's id as its name"),
            ("nova", "As in the cache of nova's libvirt driver, _base: the SHA-1 of the image's id"),
        ],
        help="How files in target_dir are named.",
    ),
    cfg.BoolOpt(
        "convert_to_raw",
        default=False,
        help="Convert disks to raw by qemu-img, as nova does with force_raw_images, which is its default.",
    ),
    cfg.StrOpt("owner", help="USER or USER:GROUP to whom published files are given; the agent's own if not set."),
    cfg.StrOpt("mode", default="0644", help="Mode of published files, in octal."),
    # -- limits
    cfg.Opt(
        "budget",
        type=Bytes(),
        default=0,
        help="Bytes of disk for images; the least recently used go for new ones. 0: all of the file system.",
    ),
    cfg.Opt("reserve", type=Bytes(), default=1 << 30, help="Bytes of the file system that stay free."),
    cfg.Opt("pinned", type=Names(), default=[], help="Ids of images that are never removed to make room."),
    cfg.Opt("down_limit", type=Bytes(), default=0, help="Bytes per second that are fetched at most; 0: no limit."),
    cfg.Opt("up_limit", type=Bytes(), default=0, help="Bytes per second for other nodes at most; 0: no limit."),
    cfg.IntOpt("max_fetching", default=4, min=1, help="Images that are fetched at a time."),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the options say. Sizes are in bytes, limits in bytes per second, 0 for none."""

    api_url: str
    ca_file: str | None
    name: str
    group: str
    enrolment_token: str | None
    enrol_with_keystone: bool
    bind: str
    port: int
    address: str | None
    state_dir: Path
    target_dir: Path
    layout: str
    convert_to_raw: bool
    owner: str | None
    mode: int
    budget: int
    reserve: int
    pinned: frozenset[str]
    down_limit: int
    up_limit: int
    max_fetching: int

    def __repr__(self) -> str:
        """Without the token."""
        return f"Settings(name={self.name!r}, group={self.group!r})"


def list_opts() -> list[tuple[cfg.OptGroup, list[cfg.Opt]]]:
    """Every option there is, for oslo-config-generator."""
    return [(cfg.OptGroup(GROUP, help="The agent on a node: storelib node."), list(OPTIONS))]


def load(path: str | os.PathLike[str]) -> tuple[Settings, cfg.ConfigOpts]:
    """What an ini file says, and the file itself for ``[keystone]``; raises BadStoreConfiguration."""
    conf = cfg.ConfigOpts()
    conf.register_group(cfg.OptGroup(GROUP))
    conf.register_opts(OPTIONS, GROUP)
    read_file(conf, path)
    reader = OptionReader(conf)
    names = option_names(OPTIONS)
    for setting in reader.settings:
        if setting.group.lower() == GROUP and setting.key not in names:
            hint = did_you_mean(setting.key, names)
            raise BadStoreConfiguration(f"[{GROUP}] {setting.key} ({setting.place}): there is no such option{hint}")
    values = {option.dest: reader.value(GROUP, option) for option in OPTIONS}
    for name in ("api_url", "target_dir"):
        if not values[name]:
            raise BadStoreConfiguration(f"{os.fspath(path)}: [{GROUP}] {name} has to be set")
    return _settings(values), conf


def _settings(values: dict[str, Any]) -> Settings:
    file = values.pop("enrolment_token_file")
    if file and not values["enrolment_token"]:
        values["enrolment_token"] = _token(file)
    values["name"] = values["name"] or socket.gethostname()
    values["api_url"] = values["api_url"].rstrip("/")
    if not values["api_url"].startswith(("http://", "https://")):
        raise BadStoreConfiguration(f"[{GROUP}] api_url has to begin with http:// or https://")
    try:
        parts = urllib.parse.urlsplit(values["api_url"])
        valid = bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise BadStoreConfiguration(f"[{GROUP}] api_url has to name a host, and a port from 1 to 65535 if any")
    values["state_dir"], values["target_dir"] = Path(values["state_dir"]), Path(values["target_dir"])
    if Path(os.path.realpath(values["target_dir"])).is_relative_to(os.path.realpath(values["state_dir"])):
        # It removes there what it does not know.
        raise BadStoreConfiguration(f"[{GROUP}] target_dir cannot be in state_dir, which is the agent's own")
    values["pinned"] = frozenset(values["pinned"])
    try:
        mode = int(values["mode"], 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise BadStoreConfiguration(f"[{GROUP}] mode = {values['mode']} is no mode of a file, such as 0644")
    values["mode"] = mode
    return Settings(**values)


def _token(file: str) -> str | None:
    """The token in a file; None if there is no such file any more, since it is needed only once."""
    try:
        return Path(file).read_text().strip() or None
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BadStoreConfiguration(f"[{GROUP}] enrolment_token_file: it cannot be read") from error
