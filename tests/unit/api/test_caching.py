# SPDX-License-Identifier: Apache-2.0
"""What is remembered between requests is bounded, and safe from threads and forks."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from oslo_config import cfg

from storelib.api import policy
from storelib.api.caching import BoundedCache
from storelib.api.context import administrator
from storelib.api.policy import Policy


def test_the_oldest_makes_room():
    cache: BoundedCache[int, int] = BoundedCache(3)
    for key in range(3):
        cache.put(key, key)
    cache.put(0, 10)
    cache.put(3, 3)
    assert [cache.get(key) for key in range(4)] == [10, None, 2, 3]
    assert len(cache) == 3


def test_threads_that_read_and_write_never_see_another_keys_value():
    cache: BoundedCache[int, int] = BoundedCache(8)

    def work(_: int) -> list[int]:
        wrong = []
        for key in [*range(16)] * 200:
            if cache.get(key) not in (None, key):
                wrong.append(key)
            cache.put(key, key)
        return wrong

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [[]] * 4
    assert len(cache) == 8


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_forked_while_a_thread_writes_remembers_and_goes_on():
    cache: BoundedCache[str, int] = BoundedCache(2)
    cache.put("before", 1)
    with cache._lock:
        child = os.fork()
        if child == 0:
            cache.put("after", 2)
            os._exit(0 if (cache.get("before"), cache.get("after")) == (1, 2) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_decisions_of_policies_are_bounded(monkeypatch):
    monkeypatch.setattr(policy, "MEMORY", 2)
    conf = cfg.ConfigOpts()
    conf([], project="storelib")
    rules = Policy(conf)
    for number in range(5):
        rules.allows(administrator(), "get_image", {"project_id": str(number)})
    assert len(rules._loaded.decisions) == 2
