# SPDX-License-Identifier: Apache-2.0
"""Adapting: what the options that say auto become when a server refuses what is optional, or demands what is not.

Some answer 501 to If-None-Match, some 400 to checksums that are not in Content-MD5, some want a checksum on every
upload (object lock). What they say of it is no more than a hint, so the other ways are tried until one is taken.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, TypeVar

from storelib.drivers.s3.checksums import PartChecksums
from storelib.drivers.s3.errors import refuses_extras, speaks_of, status_of

if TYPE_CHECKING:
    from storelib.drivers.s3.store import S3Store

LOG = logging.getLogger(__name__)
T = TypeVar("T")

#: What s3_store_checksum_algorithm = auto is, the first that the server takes.
CHECKSUMS = ("crc32", "md5", "none")

#: Which attribute of the store says whether a request carries If-None-Match.
Condition = Literal["conditional_put", "asks_at_completion"]


def adapting(store: S3Store, send: Callable[[bool, PartChecksums], T], condition: Condition | None = None) -> T:
    """``send(conditional, checksums)`` as the store does now; where the server refuses, as it takes it from now on."""
    usual = bool(condition and getattr(store, condition)), store.checksums
    try:
        return send(*usual)
    except Exception as error:
        if not refuses_extras(error):
            raise
        refusal = error
    for conditional, checksums in _others(store, refusal, *usual):
        try:
            answer = send(conditional, checksums)
        except Exception as error:
            if refuses_extras(error):
                continue
            raise
        store.checksums = checksums
        if conditional != usual[0]:
            # A server that honours it anywhere does so in a PUT.
            store.conditional_put = store.conditional_put and condition != "conditional_put"
            store.asks_at_completion = False
        LOG.warning(
            "store %s: the server refuses what was asked; from now on: checksums %s, If-None-Match %s",
            store.name,
            checksums.algorithm,
            "as before" if conditional == usual[0] else "not in such requests, so adds are not atomic",
        )
        return answer
    raise refusal


def _others(
    store: S3Store, refusal: Exception, conditional: bool, checksums: PartChecksums
) -> Iterator[tuple[bool, PartChecksums]]:
    """The other ways that the options allow, the most likely ones first."""
    about = speaks_of(refusal)
    if about in ("s3_store_storage_class", "s3_store_encryption"):
        return
    algorithms: tuple[str, ...] = ()
    if store.conf.s3_store_checksum_algorithm == "auto":
        algorithms = CHECKSUMS[CHECKSUMS.index(checksums.algorithm) + 1 :]
    may_drop = conditional and store.conf.s3_store_conditional_writes == "auto"
    sums = [PartChecksums(algorithm) for algorithm in algorithms]
    without = [(False, checksums)] if may_drop else []
    changed = [(conditional, other) for other in sums]
    if about == "s3_store_conditional_writes" or (status_of(refusal) == 501 and not about):
        yield from (*without, *changed)
    else:
        yield from (*changed, *without)
    yield from ((False, other) for other in sums if may_drop)
