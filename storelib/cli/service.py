# SPDX-License-Identifier: Apache-2.0
"""What serve, db and audit share: the extra ``api`` is needed, and its errors are those the exit codes know."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from storelib.exceptions import BadStoreConfiguration, RemoteServiceUnavailable
from storelib.extras import needing

if TYPE_CHECKING:
    from oslo_config import cfg

    from storelib.cli.session import Session


@contextlib.contextmanager
def image_api(command: str) -> Iterator[None]:
    """Around everything that imports or uses ``storelib.api``."""
    with needing(f"storelib {command}", "api"):
        # The first imports that need the extra, and the errors to go by.
        from storelib.api import db, errors

        del db
        try:
            yield
        except errors.BadDatabase as error:
            raise BadStoreConfiguration(str(error)) from error
        except errors.Unavailable as error:
            raise RemoteServiceUnavailable(str(error)) from error


def configuration(session: Session) -> cfg.ConfigOpts:
    """What the configuration file says, with the options of the API and its database registered."""
    from storelib.api import config
    from storelib.api.db import config as database

    conf = session.registry.conf
    if conf is None:
        raise BadStoreConfiguration("there is no configuration file")
    config.register_opts(conf)
    database.register_opts(conf)
    return conf
