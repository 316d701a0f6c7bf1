# SPDX-License-Identifier: Apache-2.0
"""The options of the database: group ``[database]``, with oslo.db's names where the meaning is the same."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Sequence
from types import SimpleNamespace

from oslo_config import cfg

from storelib.config import OptionReader

GROUP = "database"
#: An SQLite file by a relative path; not a database in memory, nor a URI of SQLite's own.
_RELATIVE = re.compile(r"(?P<scheme>sqlite(?:\+[a-z]+)?:///)(?P<path>(?!/|:|file:|\?).+)", re.DOTALL)

OPTIONS: Sequence[cfg.Opt] = (
    cfg.StrOpt(
        "connection",
        default="sqlite:////var/lib/storelib/images.sqlite",
        secret=True,
        help="URL of the database: sqlite:////path, postgresql://user:password@host/name or "
        "mysql://user:password@host/name. An SQLite database is created when it is absent or empty; the others "
        "need 'storelib db sync' first. All processes of the API use the same one.",
    ),
    cfg.IntOpt("max_pool_size", default=16, min=1, help="Connections one process keeps open."),
    cfg.IntOpt("max_overflow", default=16, min=0, help="Connections one process opens beyond those, for a moment."),
    cfg.FloatOpt("pool_timeout", default=30.0, min=0.1, help="Seconds to wait for a free connection."),
    cfg.IntOpt(
        "connection_recycle_time",
        default=3600,
        min=-1,
        help="Seconds after which a connection is made anew, before a firewall forgets it; -1: never.",
    ),
    cfg.BoolOpt(
        "sqlite_synchronous",
        default=True,
        help="Write every commit through to the disk. Off, a power failure may cost the last commits; the database "
        "stays intact.",
    ),
)


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register the options of ``[database]``; nothing happens where they are registered already."""
    conf.register_group(cfg.OptGroup(GROUP, help="Where the image API keeps its metadata."))
    conf.register_opts(OPTIONS, GROUP)


def read_options(conf: cfg.ConfigOpts) -> SimpleNamespace:
    """The values of ``[database]``; a relative path of an SQLite file is of the directory of the file that names it.

    Raises BadStoreConfiguration.
    """
    register_opts(conf)
    reader = OptionReader(conf)
    values = {option.dest: reader.value(GROUP, option) for option in OPTIONS}
    relative = _RELATIVE.fullmatch(values["connection"])
    if relative:
        path = os.path.join(reader.directory(GROUP, OPTIONS[0]), relative["path"])
        values["connection"] = relative["scheme"] + path
    return SimpleNamespace(**values)


def list_opts() -> list[tuple[str, list[cfg.Opt]]]:
    """Every option of the database, for oslo-config-generator."""
    return [(GROUP, [copy.deepcopy(option) for option in OPTIONS])]
