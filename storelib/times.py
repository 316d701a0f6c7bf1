# SPDX-License-Identifier: Apache-2.0
"""Times of others: many that name no zone mean UTC, which Python takes for the zone of the process."""

from __future__ import annotations

import datetime


def with_zone(moment: datetime.datetime) -> datetime.datetime:
    """The same time, in UTC unless it names another zone."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.timezone.utc)


def posix_seconds(moment: datetime.datetime) -> float:
    """POSIX seconds of a time that is in UTC unless it names another zone."""
    return with_zone(moment).timestamp()
