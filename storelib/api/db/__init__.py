# SPDX-License-Identifier: Apache-2.0
"""Image metadata in SQLite, PostgreSQL or MySQL: values in records, one module for each table of the repository.

engine opens a database, schema describes its tables, migrate brings it there. No policy and no HTTP in here.
"""

from storelib.api.db.repository import Repository, open_repository

__all__ = ["Repository", "open_repository"]
