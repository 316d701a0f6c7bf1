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

    from storelib.api.db import Repository
    from storelib.api.service import Service
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


@contextlib.contextmanager
def repository(session: Session) -> Iterator[Repository]:
    """The configured database, whose tables are as this storelib needs them; closed at the end. Raises BadDatabase."""
    from storelib.api.db import Repository
    from storelib.api.db.engine import from_conf
    from storelib.api.db.migrate import check

    found = Repository(from_conf(configuration(session)))
    try:
        check(found.database)
        yield found
    finally:
        found.close()


@contextlib.contextmanager
def service(session: Session) -> Iterator[Service]:
    """The image service of the configuration file, at work beside those of servers; raises BadDatabase."""
    from storelib.api.service import Service

    with repository(session) as tables:
        found = Service(configuration(session), tables, session.registry)
        try:
            yield found
        finally:
            found.stop()


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
