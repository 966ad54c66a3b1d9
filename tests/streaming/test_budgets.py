"""Memory budgets and shares of downloads: never above the limit, first in first out, nothing lost, no deadlock."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.streaming.budgets import DownloadShare, MemoryBudget, Reservation
from tests.fakes.downloads import CheckedBudget


class Holder:
    """A reservation, and how often its request was granted."""

    def __init__(self, *budgets: MemoryBudget) -> None:
        self.grants = 0
        self.reservation = Reservation(budgets, self._on_granted)

    def _on_granted(self) -> None:
        self.grants += 1


def test_free_bytes_are_granted_at_once() -> None:
    """A request that fits is granted before it returns."""
    budget = CheckedBudget(10)
    holder = Holder(budget)
    holder.reservation.request(10)
    assert (holder.grants, holder.reservation.held_bytes, budget.held_bytes) == (1, 10, 10)
    holder.reservation.close()
    budget.check()


def test_requests_are_granted_first_in_first_out() -> None:
    """A small request does not overtake a large one, neither queued nor as ``reserve``."""
    budget = CheckedBudget(10)
    first, large, small = (Holder(budget) for _ in range(3))
    first.reservation.request(8)
    large.reservation.request(6)
    small.reservation.request(1)
    assert not small.reservation.reserve(1)
    assert (large.grants, small.grants, budget.queue_length) == (0, 0, 2)
    first.reservation.release(2)
    assert (large.grants, small.grants) == (0, 0)
    first.reservation.release(2)
    assert (large.grants, small.grants) == (1, 0)
    first.reservation.release(4)
    assert (large.grants, small.grants) == (1, 1)
    for holder in (first, large, small):
        holder.reservation.close()
    budget.check()


@pytest.mark.parametrize("close", [False, True])
def test_withdrawn_request_returns_what_it_has_and_lets_others_pass(*, close: bool) -> None:
    """A request that waits in the second budget holds its bytes of the first one only as long as it waits."""
    own, total = CheckedBudget(10), CheckedBudget(10)
    first, waiting, behind = Holder(total), Holder(own, total), Holder(total)
    first.reservation.request(8)
    waiting.reservation.request(5)
    behind.reservation.request(2)
    assert (own.held_bytes, total.held_bytes, behind.grants) == (5, 8, 0)
    if close:
        waiting.reservation.close()
    else:
        waiting.reservation.cancel()
    assert (own.held_bytes, total.held_bytes, behind.grants) == (0, 10, 1)
    first.reservation.close()
    behind.reservation.close()
    assert waiting.grants == 0
    own.check()
    total.check()


@pytest.mark.parametrize("index", [0, 1])
def test_more_than_a_whole_budget_is_never_granted_and_delays_no_other(index: int) -> None:
    """It holds nothing meanwhile, of none of its budgets."""
    budgets = [CheckedBudget(100), CheckedBudget(100)]
    budgets[index].limit_bytes = 10
    huge, other = Holder(*budgets), Holder(*budgets)
    huge.reservation.request(11)
    assert [budget.held_bytes for budget in budgets] == [0, 0]
    other.reservation.request(10)
    assert (huge.grants, other.grants) == (0, 1)
    other.reservation.close()
    huge.reservation.close()
    assert huge.grants == 0
    for budget in budgets:
        budget.check()


class Budgets(RuleBasedStateMachine):
    """Archives with a budget each and a common total; their reservations are requested, withdrawn and returned."""

    @initialize(own=st.lists(st.integers(0, 12), min_size=1, max_size=3), total=st.integers(0, 20))
    def start(self, own: list[int], total: int) -> None:
        """Make the budgets, and two reservations for each archive."""
        self.total = CheckedBudget(total)
        self.own = [CheckedBudget(limit) for limit in own]
        self.holders = [Holder(budget, self.total) for budget in self.own for _ in range(2)]
        self.waiting: list[tuple[Holder, int, int]] = []  # with the size, and the grants before it

    def _idle(self) -> list[Holder]:
        busy = [holder for holder, _, _ in self.waiting]
        return [holder for holder in self.holders if holder not in busy]

    def _settle(self) -> None:
        """Take note of what was granted."""
        for entry in list(self.waiting):
            holder, _, grants = entry
            if holder.grants > grants:
                assert holder.grants == grants + 1
                self.waiting.remove(entry)

    @precondition(lambda self: self._idle())
    @rule(data=st.data(), size=st.integers(1, 25))
    def request(self, data: st.DataObject, size: int) -> None:
        """Request bytes."""
        holder = data.draw(st.sampled_from(self._idle()))
        self.waiting.append((holder, size, holder.grants))
        holder.reservation.request(size)
        self._settle()

    @precondition(lambda self: self._idle())
    @rule(data=st.data(), size=st.integers(1, 25))
    def reserve(self, data: st.DataObject, size: int) -> None:
        """Take bytes if they are free now: all or none."""
        holder = data.draw(st.sampled_from(self._idle()))
        held = holder.reservation.held_bytes
        expected = held + (size if holder.reservation.reserve(size) else 0)
        assert holder.reservation.held_bytes == expected

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """Return a part."""
        holder = data.draw(st.sampled_from(self.holders))
        if holder.reservation.held_bytes:
            holder.reservation.release(data.draw(st.integers(1, holder.reservation.held_bytes)))
        self._settle()

    @rule(data=st.data(), close=st.booleans())
    def withdraw(self, data: st.DataObject, close: bool) -> None:  # noqa: FBT001 - hypothesis
        """Withdraw a request, and with ``close`` return everything."""
        holder = data.draw(st.sampled_from(self.holders))
        self.waiting = [entry for entry in self.waiting if entry[0] is not holder]
        (holder.reservation.close if close else holder.reservation.cancel)()
        assert not close or holder.reservation.held_bytes == 0
        self._settle()

    @invariant()
    def bounds_hold(self) -> None:
        """Never above a limit; what is held is what the reservations hold, and those that wait in the total."""
        if not hasattr(self, "total"):
            return
        for budget in (self.total, *self.own):
            assert 0 <= budget.held_bytes <= budget.limit_bytes
        assert self.total.held_bytes == sum(holder.reservation.held_bytes for holder in self.holders)

    @invariant()
    def no_deadlock(self) -> None:
        """While nothing is held, only what exceeds a budget waits."""
        if not hasattr(self, "total") or self.total.held_bytes:
            return
        for holder, size, _ in self.waiting:
            limit = self.own[self.holders.index(holder) // 2].limit_bytes
            assert size > min(limit, self.total.limit_bytes)

    def teardown(self) -> None:
        """Everything comes back."""
        if hasattr(self, "total"):
            for holder in self.holders:
                holder.reservation.close()
            for budget in (self.total, *self.own):
                budget.check()


TestBudgets = Budgets.TestCase


def test_share_is_even_and_at_least_one() -> None:
    """Each archive has one download at least, however many archives there are."""
    share = DownloadShare(4)
    shares = [share.per_archive()]
    for _ in range(6):
        share.join()
        shares.append(share.per_archive())
    assert shares == [4, 4, 2, 1, 1, 1, 1]
    share.leave()
    for _ in range(4):
        share.leave()
    assert share.per_archive() == 4
