# SPDX-License-Identifier: Apache-2.0
"""What all transfers hold together: a limit, turns, and nobody who waits for ever."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import sys
import threading
import time

import pytest

from storelib.registry import Registry, open_store
from storelib.testing.memory import MemoryStore
from storelib.transfer import memory
from storelib.transfer.contract import MiB
from storelib.transfer.memory import MemoryBudget

PART = MiB


def nothing() -> None:
    """There is no reason to give up."""


@pytest.fixture
def budget():
    return MemoryBudget(10 * PART)


def in_thread(function, *arguments):
    done = threading.Event()

    def run():
        function(*arguments)
        done.set()

    threading.Thread(target=run, daemon=True).start()
    return done


@contextlib.contextmanager
def interrupted_in(kind, number):
    """Ctrl-C comes in the methods of ``kind``, there where Python looks for it: after the call of that number."""
    methods = {each.__code__ for each in vars(kind).values() if hasattr(each, "__code__")}
    called = []

    def look(frame, event, argument):
        if event in ("call", "c_return") and frame.f_code in methods:
            called.append(frame.f_lineno)
            if len(called) == number:
                raise KeyboardInterrupt

    sys.setprofile(look)
    try:
        yield called
    finally:
        sys.setprofile(None)


class Held:
    """A transfer of another thread that holds ``parts`` buffers of one part until ``end``."""

    def __init__(self, budget, parts=1):
        self._ended = threading.Event()
        self._budget, self._parts = budget, parts
        self._over = in_thread(self._run)
        started = time.monotonic()
        while budget.held < parts * PART and time.monotonic() - started < 30:
            time.sleep(0.001)

    def _run(self):
        account = self._budget.account()
        account.take(PART, nothing)
        for _ in range(self._parts - 1):
            assert account.take_more(PART)
        self._ended.wait(60)
        account.give_back(account.held)

    def end(self):
        self._ended.set()
        assert self._over.wait(30)


class TestTurns:
    def test_one_transfer_may_hold_all_there_is_and_no_more(self, budget):
        account = budget.account()
        account.take(PART, nothing)
        while account.take_more(PART):
            pass
        assert account.held == budget.held == budget.limit
        account.give_back(account.held)
        assert budget.held == 0

    def test_one_part_larger_than_the_limit_goes_through_alone(self, budget):
        account = budget.account()
        account.take(20 * PART, nothing)
        assert budget.held == 20 * PART

    def test_who_holds_its_share_gets_no_more_while_others_hold_some(self, budget):
        account, other = budget.account(), Held(budget)
        account.take(PART, nothing)
        while account.take_more(PART):
            pass
        assert account.held == budget.limit // 2
        assert not account.is_short
        other.end()

    def test_who_comes_when_all_is_held_waits_for_the_first_that_is_given_back(self, budget):
        holder = Held(budget, 10)
        account = budget.account()
        began = in_thread(lambda: budget.account().take(PART, nothing))
        assert not began.wait(0.2)
        assert budget.held == budget.limit
        holder.end()
        assert began.wait(30)
        account.give_back(account.held)

    def test_those_who_wait_are_served_in_turn_and_before_those_who_hold_some(self, budget):
        account, holder = budget.account(), Held(budget, 9)
        account.take(PART, nothing)
        order = []

        def wait(name):
            budget.account().take(PART, nothing)
            order.append(name)

        waiting = []
        for name in ("first", "second"):
            waiting.append(in_thread(wait, name))
            while len(budget._waiting) < len(waiting):
                time.sleep(0.001)
        assert account.is_short
        assert not account.take_more(PART)
        holder.end()
        assert all(done.wait(30) for done in waiting)
        assert order == ["first", "second"]

    def test_a_second_stage_of_one_transfer_does_not_wait_for_the_first(self, budget):
        """A copy reads from one store what it adds to another: the reader's memory comes free as the writer goes on."""
        reading, writing, other = budget.account(), budget.account(), Held(budget, 9)
        reading.take(PART, nothing)
        writing.take(PART, nothing)
        assert budget.held == 11 * PART
        other.end()

    def test_where_nothing_moves_the_first_goes_on_all_the_same(self, budget, monkeypatch):
        monkeypatch.setattr(memory, "_FIRST_WAIT", 0.05)
        monkeypatch.setattr(memory, "LOOK", 0.02)
        holder = Held(budget, 10)
        account = budget.account()
        assert in_thread(lambda: account.take(PART, nothing)).wait(30)
        assert budget.held == 11 * PART
        holder.end()

    def test_what_was_let_out_beyond_the_limit_goes_round_while_the_rest_never_comes_back(self, budget, monkeypatch):
        """Clients that read nothing hold all there is; only the first of those who go on waits that long."""
        monkeypatch.setattr(memory, "_FIRST_WAIT", 0.05)
        monkeypatch.setattr(memory, "_LONGEST_WAIT", 60.0)
        monkeypatch.setattr(memory, "LOOK", 0.02)
        stalled = Held(budget, 10)

        def in_turn():
            for _ in range(20):
                account = budget.account()
                account.take(PART, nothing)
                account.give_back(PART)

        # Were each part waited for, twice as long each time, the last would come after days.
        assert all(done.wait(30) for done in [in_thread(in_turn), in_thread(in_turn)])
        assert budget.held == 10 * PART
        stalled.end()
        account = budget.account()
        account.take(PART, nothing)
        assert budget._beyond == 0

    def test_the_next_one_waits_longer_where_the_first_does_not_give_back_either(self, budget, monkeypatch):
        monkeypatch.setattr(memory, "_FIRST_WAIT", 0.1)
        monkeypatch.setattr(memory, "_LONGEST_WAIT", 0.4)
        monkeypatch.setattr(memory, "LOOK", 0.02)
        budget.forget_parent()
        stalled, found = [Held(budget, 10)], []
        for _ in range(4):
            stalled.append(Held(budget, 1))
            account = budget.account()
            assert in_thread(lambda account=account: account.take(PART, nothing)).wait(30)
            found.append(budget._longest_wait)
            account.give_back(PART)
        assert found[-1] == 0.4
        for each in stalled:
            each.end()

    def test_a_thread_that_has_the_number_of_one_that_ended_waits_as_others_do(self, budget, monkeypatch):
        monkeypatch.setattr(memory, "_FIRST_WAIT", 60)
        budget.forget_parent()
        accounts, numbers = [], []

        def take():
            accounts.append(budget.account())
            numbers.append(threading.get_ident())
            accounts[-1].take(10 * PART, nothing)

        first = threading.Thread(target=take)
        first.start()
        first.join(30)
        second = in_thread(take)
        assert not second.wait(0.3)
        accounts[0].give_back(10 * PART)
        assert second.wait(30)

    def test_what_is_dropped_is_given_back(self, budget):
        budget.account().take(PART, nothing)
        assert budget.held == 0

    def test_a_child_that_closes_what_its_parent_opened_holds_not_less_than_nothing(self, budget):
        account = budget.account()
        account.take(PART, nothing)
        budget.forget_parent()
        account.give_back(PART)
        assert (budget.held, budget._holding, account.held) == (0, 0, 0)

    def test_that_nothing_moved_before_somebody_waits_makes_nobody_impatient(self, budget, monkeypatch):
        monkeypatch.setattr(memory, "_FIRST_WAIT", 0.3)
        monkeypatch.setattr(memory, "LOOK", 0.02)
        holder = Held(budget, 10)
        time.sleep(0.4)
        began = in_thread(lambda: budget.account().take(PART, nothing))
        assert not began.wait(0.1)
        holder.end()
        assert began.wait(30)

    def test_what_ends_a_transfer_ends_its_wait(self, budget, monkeypatch):
        monkeypatch.setattr(memory, "LOOK", 0.02)
        monkeypatch.setattr(memory, "_FIRST_WAIT", 60)
        holder = Held(budget, 10)

        def cancelled():
            raise RuntimeError("cancelled")

        with pytest.raises(RuntimeError, match="cancelled"):
            budget.account().take(PART, cancelled)
        assert not budget._waiting
        holder.end()

    @pytest.mark.parametrize("full", [False, True])
    def test_wherever_ctrl_c_comes_nothing_stays_held_and_nobody_waits_in_vain(self, monkeypatch, full):
        monkeypatch.setattr(memory, "LOOK", 0.001)
        number = seen = 0
        while seen == number:
            number += 1
            budget = MemoryBudget(10 * PART)
            others = Held(budget, 10) if full else None
            account = budget.account()
            with contextlib.suppress(KeyboardInterrupt), interrupted_in(MemoryBudget, number) as called:
                # Where all is held, it is until this has waited for one look.
                account.take(PART, others.end if others else nothing)
                account.give_back(PART)
            seen = len(called)
            del account
            if others:
                others.end()
            assert budget.held == 0
            assert not budget._held
            assert in_thread(budget.account().take, PART, nothing).wait(30)
        assert number > 10

    def test_a_forked_child_begins_with_nothing_held(self, budget):
        holder = Held(budget, 10)
        with budget._changed:
            context = multiprocessing.get_context("fork")
            child = context.Process(target=lambda: os._exit(0 if _takes_all(budget) else 1))
            child.start()
        child.join(30)
        assert child.exitcode == 0
        holder.end()


def _takes_all(budget) -> bool:
    account = budget.account()
    account.take(budget.limit, nothing)
    return budget.held == account.held == budget.limit


class TestTransfers:
    """Real adds and reads of stores that share little memory."""

    PART = 256 * 1024

    @pytest.fixture
    def registry(self):
        stores = [open_store("memory", name, memory_store_part_size=self.PART) for name in ("one", "two")]
        return Registry(stores, memory=MemoryBudget(8 * self.PART))

    def run(self, work, count):
        failed = []

        def one(number):
            try:
                work(number)
            except Exception as error:  # noqa: BLE001  (told below)
                failed.append(error)

        threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in range(count)]
        for thread in threads:
            thread.start()
        most = 0
        while any(thread.is_alive() for thread in threads):
            most = max(most, *(store.memory.held for store in self.stores))
            time.sleep(0.001)
        assert not failed
        return most

    @pytest.mark.parametrize("known", [True, False])
    def test_forty_adds_and_reads_at_once_keep_within_it(self, registry, known):
        self.stores = list(registry)
        images = [os.urandom(4096) * 300 for _ in range(4)]

        def add_and_read(number):
            store, data = self.stores[number % 2], images[number % 4]
            added = store.add(f"image-{number}", io.BytesIO(data), len(data) if known else None)
            with store.get(added.uri, verify=f"sha512:{added.multihash}").data as stream:
                assert stream.read() == data

        most = self.run(add_and_read, 40)
        # A stream that is compared has a second stage, whose blocks of one MiB are its thread's own.
        assert most <= 8 * self.PART + 40 * MiB
        assert registry.memory.held == 0

    def test_forty_copies_at_once_wait_for_each_other_and_all_succeed(self, registry):
        self.stores = list(registry)
        data = os.urandom(self.PART) * 5
        source = registry["one"].add("image", io.BytesIO(data))

        def copy(number):
            with registry["one"].get(source.uri).data as stream:
                added = registry["two"].add(f"copy-{number}", stream, stream.size)
            assert added.size == len(data)

        self.run(copy, 40)
        assert registry.memory.held == 0

    def test_a_first_part_held_back_is_written_where_there_is_no_memory_for_the_next(self):
        """Of unknown size, a full first part may be the whole image; nobody gives back what this transfer needs."""
        store = open_store("memory", "one", memory_store_part_size=self.PART)
        store.memory = MemoryBudget(self.PART)
        data = os.urandom(3 * self.PART + 5)
        added = store.add("image", io.BytesIO(data))
        with store.get(added.uri).data as stream:
            assert stream.read() == data
        assert store.memory.held == 0

    def test_an_add_that_fails_gives_everything_back(self, registry):
        class Broken(io.RawIOBase):
            def readinto(self, view):
                raise OSError("no more")

            def readable(self):
                return True

        with pytest.raises(OSError, match="no more"):
            registry["one"].add("image", Broken())
        assert registry.memory.held == 0

    def test_the_stores_of_a_registry_share_one_budget_and_others_have_their_own(self, registry, tmp_path):
        assert registry["one"].memory is registry["two"].memory is registry.memory
        assert MemoryStore is type(registry["one"])
        file = tmp_path / "stores.ini"
        file.write_text(
            f"[storelib]\nstores = a:file, b:file\ntransfer_memory = 64\n"
            f"[a]\nfilesystem_store_datadir = {tmp_path}/a\n[b]\nfilesystem_store_datadir = {tmp_path}/b\n"
        )
        read = Registry.from_file(file)
        assert read["a"].memory is read["b"].memory
        assert read.memory.limit == 64 * MiB


class TestUsableMemory:
    def test_it_is_no_more_than_the_machine_has(self):
        assert 0 < memory.usable_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert MemoryBudget().limit == memory.usable_memory() // 4

    @pytest.mark.parametrize(
        ("line", "files", "limits"),
        [
            ("0::/a/b\n", {"a/memory.max": "1000\n", "a/b/memory.max": "max\n"}, [1000]),
            ("0::/a/b\n", {"a/memory.max": "1000\n", "a/b/memory.max": "500\n"}, [1000, 500]),
            ("0::/\n", {"memory.max": "700\n"}, [700]),
            (
                "4:memory:/a\n",
                {"memory/memory.limit_in_bytes": "900\n", "memory/a/memory.limit_in_bytes": "300"},
                [900, 300],
            ),
            ("4:cpu,memory:/\n2:cpu:/x\n", {"memory/memory.limit_in_bytes": "900\n"}, [900]),
            ("0::/gone\n", {}, [memory._NO_LIMIT]),
            ("rubbish\n\n:\n", {}, [memory._NO_LIMIT]),
        ],
    )
    def test_the_limits_of_a_cgroup_count(self, tmp_path, line, files, limits):
        proc = tmp_path / "cgroup"
        proc.write_text(line)
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        assert memory._cgroup_limits(str(proc), str(tmp_path)) == limits
