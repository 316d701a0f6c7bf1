# SPDX-License-Identifier: Apache-2.0
"""Opens the database and holds its tables; what each of them promises is said at its own methods."""

from __future__ import annotations

from oslo_config import cfg

from storelib.api.db.cached import CachedImages
from storelib.api.db.engine import Database, from_conf
from storelib.api.db.images import Images
from storelib.api.db.imported import Imported
from storelib.api.db.jobs import Jobs
from storelib.api.db.locations import Locations
from storelib.api.db.members import Members
from storelib.api.db.metadefs import Metadefs
from storelib.api.db.migrate import prepare
from storelib.api.db.nodes import Nodes
from storelib.api.db.piece_layers import PieceLayers
from storelib.api.db.preloads import Preloads
from storelib.api.db.processes import Processes
from storelib.api.db.rounds import Rounds
from storelib.api.db.tasks import Tasks
from storelib.api.db.uploads import Uploads


def open_repository(conf: cfg.ConfigOpts) -> Repository:
    """The repository that ``[database]`` names, ready to be used: an absent or empty SQLite database is made.

    Raises BadDatabase (SchemaOutOfDate: its tables are not this storelib's), DatabaseUnavailable.
    """
    database = from_conf(conf)
    try:
        prepare(database)
    except BaseException:
        database.close()
        raise
    return Repository(database)


class Repository:
    """The images of one database: ``images``, their ``members``, ``locations`` and ``tasks``, and who writes their
    data (``uploads``, ``processes``); definitions of what properties they may have (``metadefs``); what the caches
    of hosts hold (``cached``); how far work over all images is (``rounds``); and which images the ``nodes`` are to have
    (``preloads``), by what they know their parts (``pieces``).

    Every method of a table is one short transaction, safe from many threads and processes. What must happen exactly
    once among racers (a status, a change of a version that was read, a lease) is compared and set in one statement.
    There is no policy here: every caller may do everything, except that a list shows what its caller may see.

    Every method raises DatabaseUnavailable when the database cannot be reached (after retries), and the writing ones
    OutcomeUnknown when it was lost at the commit. Text that is too long for its column or holds a NUL is BadRequest.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.images = Images(database)
        self.members = Members(database)
        self.locations = Locations(database)
        self.tasks = Tasks(database)
        self.uploads = Uploads(database)
        self.processes = Processes(database)
        self.jobs = Jobs(database)
        self.metadefs = Metadefs(database)
        self.cached = CachedImages(database)
        self.rounds = Rounds(database)
        self.imported = Imported(database)
        self.nodes = Nodes(database)
        self.preloads = Preloads(database)
        self.pieces = PieceLayers(database)

    def close(self) -> None:
        """Close the connections that are in no transaction; the repository stays usable and connects again."""
        self.database.close()
