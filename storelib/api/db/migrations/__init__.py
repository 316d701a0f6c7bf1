# SPDX-License-Identifier: Apache-2.0
"""The migrations, run by ``storelib.api.db.migrate``."""
