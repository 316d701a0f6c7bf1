# SPDX-License-Identifier: Apache-2.0
"""LiveAdds: names of adds under way, which neither keep the adds alive nor outlive them."""

from __future__ import annotations

from storelib.transfer.live import LiveAdds


class Add:
    pass


def test_an_add_is_known_from_its_beginning_to_its_end():
    live, add = LiveAdds(), Add()
    assert "name" not in live
    live.begin("name", add)
    assert "name" in live
    assert list(live) == [add]
    live.end("name")
    live.end("name")
    assert "name" not in live
    assert not list(live)


def test_an_add_that_was_dropped_is_alive_no_more():
    live = LiveAdds()
    add = Add()
    live.begin(("a", 1), add)
    del add
    assert ("a", 1) not in live


def test_an_add_may_begin_while_others_are_looked_at():
    live, adds = LiveAdds(), [Add() for _ in range(4)]
    for number, add in enumerate(adds[:2]):
        live.begin(number, add)
    seen = []
    for add in live:
        live.begin(len(seen) + 2, adds[len(seen) + 2])
        seen.append(add)
    assert seen == adds[:2]
