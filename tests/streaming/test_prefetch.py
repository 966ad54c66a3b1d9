"""Read-ahead: what is started when, who may hold how many bytes, and that nothing is lost, kept or left running.

The downloads are fed by hand, so every test decides what happens in which turn of the event loop.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import ImageFailed
from service.model import DownloadEvent, Failure, Interrupted, Opened, Reason
from service.streaming.budgets import DownloadShare, MemoryBudget, Reservation
from service.streaming.prefetch import CHUNK_OVERHEAD_BYTES, HEAD_BYTES, Prefetch, Slot

OPENED = Opened("jpg", None)
CHUNK = b"x" * 1000
COST = len(CHUNK) + CHUNK_OVERHEAD_BYTES
LOST = ImageFailed(Failure(Reason.CONNECTION_LOST, "the connection broke"))


async def turns(number: int = 20) -> None:
    """Let everything that can go on go on."""
    for _ in range(number):
        await asyncio.sleep(0)


class Feed:
    """A download that yields what the test gives it, and knows how many of those were taken from its hand."""

    def __init__(self) -> None:
        self.attempts = 1
        self.taken = 0
        self.running = False
        self.closed = False
        self.may_close = asyncio.Event()
        self.may_close.set()
        self._given: asyncio.Queue[DownloadEvent | BaseException | None] = asyncio.Queue()

    def give(self, *events: DownloadEvent) -> None:
        """Yield these next."""
        for event in events:
            self._given.put_nowait(event)

    def end(self, error: BaseException | None = None) -> None:
        """End completely, or with an error."""
        self._given.put_nowait(error)

    async def events(self) -> AsyncGenerator[DownloadEvent, None]:
        """Yield the events."""
        self.running = True
        try:
            while (event := await self._given.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
                self.taken += 1
        finally:
            await self.may_close.wait()
            self.running = False
            self.closed = True


class Watched(MemoryBudget):
    """A budget that remembers the extremes of what it held."""

    def __init__(self, limit_bytes: int) -> None:
        self.extremes = {0}
        super().__init__(limit_bytes)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "held_bytes":
            self.extremes |= {value}

    def check(self) -> None:
        """All came back, and there never was too much or less than nothing."""
        assert self.held_bytes == 0
        assert min(self.extremes) == 0
        assert max(self.extremes) <= self.limit_bytes


@dataclass
class Archive:
    """The downloads of one read-ahead, by item."""

    names: str
    feeds: dict[str, Feed] = field(default_factory=dict)

    def start(self, item: str) -> Feed:
        """Start an item's download."""
        self.feeds[item] = Feed()
        return self.feeds[item]

    def ahead(self, *budgets: MemoryBudget, in_flight: int = 5, share: DownloadShare | None = None) -> Prefetch[str]:
        """Return the read-ahead."""
        return Prefetch(self.names, self.start, in_flight=in_flight, share=share or DownloadShare(64), budgets=budgets)


async def read(slot: Slot[str]) -> list[DownloadEvent]:
    """Read a slot to its end."""
    return [event async for event in slot.events()]


async def head_of(ahead: Prefetch[str]) -> Slot[str]:
    """Claim the next slot, which must be there."""
    slot = await ahead.next()
    assert slot is not None
    return slot


@contextmanager
def pending(wait: Coroutine[Any, Any, Any]) -> Iterator[asyncio.Task[Any]]:
    """Run something beside the test, and stop it at the end."""
    task = asyncio.create_task(wait)
    yield task
    task.cancel()


# What is started, and what is offered.


async def test_archive_that_waits_for_images_leaves_its_connections_to_others() -> None:
    """Who has nothing to fetch has no part of the connections, until there is something again."""
    share = DownloadShare(4)
    waiting, other = Archive("a"), Archive("abcd")
    async with waiting.ahead(share=share) as idle:
        idle.keep_open()
        assert share.per_archive() == 4
        waiting.feeds["a"].give(OPENED, CHUNK)
        waiting.feeds["a"].end()
        await read(await head_of(idle))
        async with other.ahead(share=share):
            assert list(other.feeds) == ["a", "b", "c", "d"]
            idle.add("b")
            assert share.per_archive() == 2
        assert share.per_archive() == 4
    assert share.archives == 0


async def test_no_more_than_allowed_are_in_flight() -> None:
    """Downloads start in the items' order, and the next one only when one has ended."""
    archive = Archive("abcde")
    async with archive.ahead(MemoryBudget(0), in_flight=2):
        await turns()
        assert list(archive.feeds) == ["a", "b"]
        archive.feeds["b"].end(LOST)
        await turns()
        assert list(archive.feeds) == ["a", "b", "c"]
        for item in "ac":
            archive.feeds[item].give(OPENED, CHUNK)
        await turns()
        assert list(archive.feeds) == ["a", "b", "c"], "a download in want of room is still in flight"


async def test_nothing_starts_before_the_context() -> None:
    """Making a read-ahead costs nothing."""
    archive = Archive("ab")
    archive.ahead()
    await turns()
    assert archive.feeds == {}


async def test_lowest_ready_first() -> None:
    """Among those whose first bytes are in hand, the first in the items' order is offered, not the fastest."""
    archive = Archive("abcd")
    async with archive.ahead(MemoryBudget(10 * COST)) as ahead:
        await turns()
        for item in "dcb":
            archive.feeds[item].give(OPENED, CHUNK)
            archive.feeds[item].end()
            await turns()
        assert [(await head_of(ahead)).item for _ in range(2)] == ["b", "c"]
        archive.feeds["a"].give(OPENED, CHUNK)
        await turns()
        assert [(await head_of(ahead)).item for _ in range(2)] == ["a", "d"]
        assert await ahead.next() is None


async def test_slow_image_does_not_hold_up_the_rest() -> None:
    """While the first gives nothing, all others come through, even if only one download besides it may run."""
    archive = Archive("abcd")
    async with archive.ahead(MemoryBudget(0), in_flight=2) as ahead:
        for item in "bcd":
            with pending(head_of(ahead)) as claimed:
                await turns()
                archive.feeds[item].give(OPENED, CHUNK)
                archive.feeds[item].end()
                slot = await claimed
            assert slot.item == item
            assert await read(slot) == [OPENED, CHUNK]
        archive.feeds["a"].give(OPENED, CHUNK)
        archive.feeds["a"].end()
        assert await read(await head_of(ahead)) == [OPENED, CHUNK]


async def test_opened_alone_is_not_ready() -> None:
    """Without a byte in hand there is nothing to begin with."""
    archive = Archive("a")
    async with archive.ahead() as ahead:
        with pending(ahead.next()) as claimed:
            await turns()
            archive.feeds["a"].give(OPENED)
            await turns()
            assert not claimed.done()
            archive.feeds["a"].give(CHUNK)
            assert (await claimed).item == "a"


async def test_failure_is_offered_and_raised() -> None:
    """A failed download takes its turn, and its reader is told why; what there was of it is not handed out."""
    archive = Archive("ab")
    budget = Watched(10 * COST)
    async with archive.ahead(budget) as ahead:
        await turns()
        archive.feeds["a"].give(OPENED, CHUNK, CHUNK)
        archive.feeds["a"].end(LOST)
        archive.feeds["b"].end(LOST)
        await turns()
        assert budget.held_bytes == 0
        for item in "ab":
            slot = await head_of(ahead)
            assert (slot.item, slot.ready) == (item, False)
            with pytest.raises(ImageFailed) as caught:
                await read(slot)
            assert caught.value is LOST
        assert await ahead.next() is None
    budget.check()


async def test_head_that_fails_drops_what_was_not_read() -> None:
    """What the reader has is all it gets of a failed copy."""
    archive = Archive("a")
    async with archive.ahead() as ahead:
        await turns()
        archive.feeds["a"].give(OPENED, CHUNK)
        slot = await head_of(ahead)
        async with aclosing(slot.events()) as events:
            assert await anext(events) == OPENED
            archive.feeds["a"].give(CHUNK, CHUNK)
            archive.feeds["a"].end(LOST)
            await turns()
            with pytest.raises(ImageFailed):
                await anext(events)


@pytest.mark.parametrize("claimed", [False, True], ids=["waiting", "head"])
async def test_fault_reaches_the_reader(claimed: bool) -> None:  # noqa: FBT001 - a table's column
    """A fault of our own in a download is not a failed image: the reader gets it as it is."""
    archive = Archive("a")
    async with archive.ahead(MemoryBudget(COST)) as ahead:
        await turns()
        archive.feeds["a"].give(OPENED, CHUNK)
        slot = await head_of(ahead) if claimed else None
        archive.feeds["a"].end(RuntimeError("a fault"))
        await turns()
        with pytest.raises(RuntimeError, match="a fault"):
            await read(slot or await head_of(ahead))


# Copies that break off and begin again.


async def test_restart_while_waiting_drops_the_buffer() -> None:
    """A new copy makes the one before it void, also its room, and it is ready only with bytes of its own."""
    archive = Archive("a")
    budget = Watched(10 * COST)
    newer = Opened("png", 7)
    async with archive.ahead(budget) as ahead:
        await turns()
        archive.feeds["a"].give(OPENED, CHUNK, CHUNK, newer)
        await turns()
        assert budget.held_bytes == 0
        with pending(head_of(ahead)) as claimed:
            await turns()
            assert not claimed.done()
            archive.feeds["a"].give(b"new")
            archive.feeds["a"].end()
            assert await read(await claimed) == [newer, b"new"]
    budget.check()


async def test_restart_of_the_head_is_passed_on() -> None:
    """The reader sees a second ``Opened``, and nothing more of the first copy."""
    archive = Archive("a")
    async with archive.ahead() as ahead:
        await turns()
        archive.feeds["a"].give(OPENED, b"old")
        slot = await head_of(ahead)
        async with aclosing(slot.events()) as events:
            assert [await anext(events), await anext(events)] == [OPENED, b"old"]
            archive.feeds["a"].give(b"old, unread", Interrupted(), OPENED, b"new")
            archive.feeds["a"].end()
            await turns()
            assert [event async for event in events] == [OPENED, b"new"]


async def test_interrupted_image_is_not_ready() -> None:
    """While it is being tried again, another goes first; when it continues, nothing is missing."""
    archive = Archive("ab")
    async with archive.ahead(MemoryBudget(10 * COST)) as ahead:
        await turns()
        archive.feeds["a"].give(OPENED, b"one", Interrupted())
        archive.feeds["b"].give(OPENED, b"other")
        await turns()
        assert (await head_of(ahead)).item == "b"
        archive.feeds["a"].give(b"two")
        archive.feeds["a"].end()
        assert await read(await head_of(ahead)) == [OPENED, b"one", b"two"]


async def test_interrupted_head_goes_on() -> None:
    """An interruption of the head is not an event for the reader, who waits for the rest."""
    archive = Archive("a")
    async with archive.ahead() as ahead:
        await turns()
        archive.feeds["a"].give(OPENED, b"one")
        slot = await head_of(ahead)
        archive.feeds["a"].give(Interrupted(), b"two")
        archive.feeds["a"].end()
        assert await read(slot) == [OPENED, b"one", b"two"]


async def test_image_that_turns_out_complete_after_an_interruption_is_ready() -> None:
    """All bytes had come before the break, so the next try brings none: the image is there all the same."""
    archive = Archive("a")
    async with archive.ahead(MemoryBudget(COST)) as ahead:
        await turns()
        archive.feeds["a"].give(OPENED, CHUNK, Interrupted())
        archive.feeds["a"].end()
        await turns()
        slot = await head_of(ahead)
        assert slot.ready
        assert await read(slot) == [OPENED, CHUNK]


# Bounds on bytes.


@pytest.mark.parametrize(
    ("limit", "held"),
    [
        pytest.param(0, 0, id="none"),
        pytest.param(1, 0, id="tiny"),
        pytest.param(COST - 1, 0, id="one_byte_short"),
        pytest.param(COST, 1, id="one_chunk"),
        pytest.param(3 * COST, 3, id="three_chunks"),
        pytest.param(100 * COST, 10, id="all"),
    ],
)
@pytest.mark.parametrize("shared", [False, True], ids=["per_archive", "in_all"])
async def test_what_waits_is_bounded(limit: int, held: int, *, shared: bool) -> None:
    """Only what has room is taken from the download; one chunk stays in its hand. Any room at all will do to claim."""
    archive = Archive("a")
    budget, other = Watched(limit), Watched(1000 * COST)
    chunks = [bytes([number]) * len(CHUNK) for number in range(10)]
    async with archive.ahead(*((other, budget) if shared else (budget, other))) as ahead:
        await turns()
        archive.feeds["a"].give(OPENED, *chunks)
        archive.feeds["a"].end()
        await turns(50)
        assert budget.held_bytes == held * COST
        assert archive.feeds["a"].taken == 1 + held
        assert await read(await head_of(ahead)) == [OPENED, *chunks]
    budget.check()
    other.check()


async def test_two_bounds_hold_together() -> None:
    """One archive stays within its own share, all of them within the total."""
    total = Watched(5 * COST)
    shares = [Watched(3 * COST), Watched(4 * COST)]
    archives = [Archive("ab"), Archive("ab")]
    async with AsyncExitStack() as stack:
        for archive, share in zip(archives, shares, strict=True):
            await stack.enter_async_context(archive.ahead(share, total))
            await turns()
            for feed in archive.feeds.values():
                feed.give(OPENED, *[CHUNK] * 10)
            await turns(50)
        # The second archive's downloads have two chunks, and their share of the next but not its total.
        assert [share.held_bytes for share in shares] == [3 * COST, 4 * COST]
        assert total.held_bytes == 5 * COST
    for budget in (total, *shares):
        budget.check()


async def test_archive_moves_while_another_holds_everything() -> None:
    """The head needs no room: an archive is finished although the process's room is all taken by a stalled one."""
    total = Watched(2 * COST)
    stalled, lively = Archive("ab"), Archive("abc")
    async with stalled.ahead(Watched(10 * COST), total), lively.ahead(share := Watched(10 * COST), total) as ahead:
        await turns()
        stalled.feeds["b"].give(OPENED, *[CHUNK] * 5)
        await turns(50)
        assert total.held_bytes == 2 * COST
        for feed in lively.feeds.values():
            feed.give(OPENED, *[CHUNK] * 5)
            feed.end()
        for item in "abc":
            slot = await head_of(ahead)
            assert slot.item == item
            assert await read(slot) == [OPENED, *[CHUNK] * 5]
        assert await ahead.next() is None
        assert share.held_bytes == 0
        assert total.held_bytes == 2 * COST
    total.check()


async def test_room_is_given_in_the_order_of_asking() -> None:
    """Two archives that share the total get room by turns, whoever asked first."""
    total = MemoryBudget(2 * COST)
    archives = [Archive("ab"), Archive("ab")]
    async with archives[0].ahead(total) as first, archives[1].ahead(total):
        await turns()
        archives[0].feeds["a"].give(OPENED, *[CHUNK] * 9)
        await turns()
        archives[1].feeds["a"].give(OPENED, *[CHUNK] * 9)
        await turns()
        archives[0].feeds["b"].give(OPENED, *[CHUNK] * 9)
        await turns()
        taken = [archives[0].feeds["a"], archives[1].feeds["a"], archives[0].feeds["b"]]
        assert [feed.taken for feed in taken] == [3, 1, 1]
        slot = await head_of(first)
        async with aclosing(slot.events()) as events:
            assert await anext(events) == OPENED
            for expected in ([1, 1], [2, 1], [2, 2]):
                assert [feed.taken for feed in taken[1:]] == expected
                assert await anext(events) == CHUNK
                await turns()


async def test_large_request_is_not_overtaken_for_ever() -> None:
    """Who asks for much is not starved by many who ask for little: they queue behind."""
    budget = Watched(10 * COST)
    archive = Archive("abc")
    async with archive.ahead(budget) as ahead:
        await turns()
        archive.feeds["a"].give(OPENED, *[CHUNK] * 8)
        await turns(50)
        large = b"x" * 5 * COST
        archive.feeds["b"].give(OPENED, large)
        await turns()
        archive.feeds["c"].give(OPENED, CHUNK)
        await turns()
        assert [archive.feeds[item].taken for item in "bc"] == [1, 1]
        slot = await head_of(ahead)
        async with aclosing(slot.events()) as events:
            for _ in range(5):
                await anext(events)
        await turns()
        assert [archive.feeds[item].taken for item in "bc"] == [2, 1]
    budget.check()


@pytest.mark.parametrize("how", ["claim", "leave"])
async def test_withdrawn_request_does_not_hold_up_others(how: str) -> None:
    """When the first in the queue no longer needs room, those behind it get what is free at once."""
    total = Watched(3 * COST)
    holder, large, small = Archive("ab"), Archive("a"), Archive("ab")
    async with holder.ahead(total), small.ahead(total):
        async with large.ahead(total) as ahead:
            await turns()
            holder.feeds["b"].give(OPENED, CHUNK)
            await turns()
            large.feeds["a"].give(OPENED, b"x" * (3 * COST - CHUNK_OVERHEAD_BYTES))
            await turns()
            small.feeds["b"].give(OPENED, CHUNK, CHUNK)
            await turns()
            assert small.feeds["b"].taken == 1, "it queues behind the large one"
            if how == "claim":
                await head_of(ahead)
                await turns()
                assert small.feeds["b"].taken == 3
        await turns()
        assert small.feeds["b"].taken == 3
    total.check()


async def test_withdrawn_requests_do_not_pile_up() -> None:
    """While the room is taken for hours, each image that passes leaves nothing in the queue."""
    total = MemoryBudget(COST)
    stalled = Archive("ab")
    async with stalled.ahead(total):
        await turns()
        stalled.feeds["b"].give(OPENED, CHUNK, CHUNK)
        await turns()
        busy = Archive("abcdefgh")
        async with busy.ahead(total, in_flight=8) as ahead:
            await turns()
            for feed in busy.feeds.values():
                feed.give(OPENED, CHUNK)
                feed.end()
            await turns()
            for _ in busy.names:
                assert await read(await head_of(ahead)) == [OPENED, CHUNK]
            await turns()
            assert total.queue_length == 1


@pytest.mark.parametrize("size", [1, 1000, 65_536, HEAD_BYTES - 1, HEAD_BYTES, 3 * HEAD_BYTES])
async def test_head_runs_a_little_ahead(size: int) -> None:
    """The head needs no room but may run only so far ahead of its reader, also in a drip of tiny chunks."""
    archive = Archive("a")
    budget = Watched(0)
    chunk = b"x" * size
    cost = size + CHUNK_OVERHEAD_BYTES
    number = 2 * HEAD_BYTES // cost + 4
    async with archive.ahead(budget) as ahead:
        await turns()
        feed = archive.feeds["a"]
        feed.give(OPENED, *[chunk] * number)
        feed.end()
        slot = await head_of(ahead)
        async with aclosing(slot.events()) as events:
            assert await anext(events) == OPENED
            await turns(2 * number)
            waiting = feed.taken - 1
            assert HEAD_BYTES <= waiting * cost < HEAD_BYTES + cost
            assert not feed.closed
            assert [event async for event in events] == [chunk] * number
    budget.check()


async def test_head_that_has_much_waiting_takes_no_more() -> None:
    """What waited when it was claimed counts: the head does not grow beyond it."""
    archive = Archive("a")
    budget = Watched(4 * HEAD_BYTES)
    chunk = b"x" * (HEAD_BYTES // 2)
    async with archive.ahead(budget) as ahead:
        await turns()
        feed = archive.feeds["a"]
        feed.give(OPENED, *[chunk] * 20)
        await turns(50)
        waiting = feed.taken
        assert waiting == 1 + 7
        slot = await head_of(ahead)
        await turns(50)
        assert feed.taken == waiting
        async with aclosing(slot.events()) as events:
            for _ in range(waiting):
                await anext(events)
            await turns()
            assert feed.taken > waiting
            assert budget.held_bytes == 0
    budget.check()


# Races between claiming, granting and stopping.


async def test_claim_while_half_of_the_room_is_had() -> None:
    """The share was granted, the total not yet: the head gives the share back and goes on without."""
    share, total = Watched(10 * COST), Watched(COST)
    holder, archive = Archive("ab"), Archive("ab")
    async with holder.ahead(total), archive.ahead(share, total) as ahead:
        await turns()
        holder.feeds["b"].give(OPENED, CHUNK)
        await turns()
        archive.feeds["a"].give(OPENED, CHUNK, CHUNK)
        await turns()
        assert share.held_bytes == COST
        slot = await head_of(ahead)
        archive.feeds["a"].end()
        assert await read(slot) == [OPENED, CHUNK, CHUNK]
        assert share.held_bytes == 0
    for budget in (share, total):
        budget.check()


@pytest.mark.parametrize("then", ["read", "drop", "leave"])
@pytest.mark.parametrize("shares", [1, 2])
@pytest.mark.parametrize("order", ["grant_first", "claim_first"])
async def test_grant_and_claim_in_one_turn(shares: int, order: str, then: str) -> None:
    """Room is granted and the slot claimed before its task runs again: bytes are counted once or not at all."""
    budgets = [Watched(COST) for _ in range(shares)]
    archive = Archive("ab")
    async with archive.ahead(*budgets) as ahead:
        await turns()
        for budget in budgets:
            assert budget.reserve(outside := Reservation(budget), COST).done()
            assert outside.held_bytes == COST
        archive.feeds["a"].give(OPENED, CHUNK, CHUNK)
        archive.feeds["a"].end()
        await turns()
        if order == "grant_first":
            for budget in budgets:
                budget.release(COST)
        slot = await head_of(ahead)  # returns without letting another task run
        if order == "claim_first":
            for budget in budgets:
                budget.release(COST)
        if then == "read":
            assert await read(slot) == [OPENED, CHUNK, CHUNK]
            assert await _none(ahead)
        elif then == "drop":
            assert await _none(ahead)
            await turns()
            assert archive.feeds["a"].closed
    for budget in budgets:
        budget.check()


async def test_claim_between_two_grants() -> None:
    """Claimed when its share was granted and its total not yet asked for, the head does not wait for the total."""
    share, total = Watched(COST), Watched(COST)
    holder, archive = Archive("ab"), Archive("a")
    async with holder.ahead(total), archive.ahead(share, total) as ahead:
        await turns()
        holder.feeds["b"].give(OPENED, CHUNK)
        await turns()
        assert share.reserve(Reservation(share), COST).done()
        archive.feeds["a"].give(OPENED, CHUNK)
        archive.feeds["a"].end()
        await turns()
        share.release(COST)
        with pending(read(await head_of(ahead))) as reading:
            await turns()
            assert reading.done()
            assert reading.result() == [OPENED, CHUNK]
        assert (share.held_bytes, total.held_bytes) == (0, COST)
    for budget in (share, total):
        budget.check()


async def _none(ahead: Prefetch[str]) -> bool:
    with pending(ahead.next()) as task:
        await turns()
        return not task.done()  # "b" is still to come


async def test_granted_room_of_a_stopped_download_comes_back() -> None:
    """The grant and the end of the context meet in one turn: the room is not lost."""
    total = Watched(COST)
    archive = Archive("a")
    async with archive.ahead(total):
        await turns()
        assert total.reserve(Reservation(total), COST).done()
        archive.feeds["a"].give(OPENED, CHUNK)
        await turns()
        total.release(COST)
        assert total.held_bytes == COST, "granted to a task that has not run since"
    total.check()


async def test_more_than_all_there_is_is_never_granted() -> None:
    """A chunk larger than the budget waits for its claim and blocks nobody."""
    archive = Archive("ab")
    budget = Watched(3 * COST)
    async with archive.ahead(budget) as ahead:
        await turns()
        huge = b"x" * 10 * COST
        archive.feeds["a"].give(OPENED, huge)
        archive.feeds["a"].end()
        await turns()
        archive.feeds["b"].give(OPENED, CHUNK)
        await turns()
        assert archive.feeds["b"].taken == 2
        assert await read(await head_of(ahead)) == [OPENED, huge]
    budget.check()


# The end.


async def test_leaving_ends_every_download() -> None:
    """On leaving, each download's clean-up has run to its end, whatever the download was waiting for."""
    archive = Archive("abcdef")
    budget = Watched(2 * COST)
    async with archive.ahead(budget, in_flight=5) as ahead:
        await turns()
        archive.feeds["a"].give(OPENED, *[CHUNK] * 400)  # a head that is ahead of its reader
        archive.feeds["b"].give(OPENED, *[CHUNK] * 5)  # waits for room
        archive.feeds["c"].give(OPENED, CHUNK, Interrupted())
        archive.feeds["d"].end(LOST)
        await turns(50)
        assert (await head_of(ahead)).item == "a"
        await turns(500)
        assert budget.held_bytes > 0
        running = [feed for feed in archive.feeds.values() if feed.running]
        assert len(running) == 5
    assert all(feed.closed for feed in running)
    assert list(archive.feeds) == list("abcdef")
    budget.check()


async def test_leaving_waits_for_clean_up_and_interrupts_it_not() -> None:
    """A download that takes its time to let go is waited for, also if it was stopped before."""
    archive = Archive("abc")
    ahead = archive.ahead(in_flight=2)
    await ahead.__aenter__()
    await turns()
    for item in "ab":
        archive.feeds[item].may_close.clear()
    archive.feeds["a"].give(OPENED, CHUNK)
    await head_of(ahead)
    with pending(ahead.next()):
        await turns()  # "a" is being stopped
    with pending(ahead.__aexit__(None, None, None)) as leaving:
        await turns()
        assert not leaving.done()
        for item in "ab":
            assert not archive.feeds[item].closed
            archive.feeds[item].may_close.set()
        await leaving
    assert [feed.closed for feed in archive.feeds.values()] == [True, True]


async def test_room_comes_back_even_if_leaving_is_cut_short() -> None:
    """A second cancellation ends the wait for the clean-up, but costs the process no bytes."""
    total = Watched(10 * COST)
    archive = Archive("ab")
    ahead = archive.ahead(total)
    await ahead.__aenter__()
    await turns()
    for item in "ab":
        archive.feeds[item].give(OPENED, CHUNK)
        archive.feeds[item].may_close.clear()
    await turns()
    await head_of(ahead)
    leaving = asyncio.create_task(ahead.__aexit__(None, None, None))
    await turns()
    leaving.cancel()
    await turns()
    assert leaving.cancelled()
    total.check()
    for item in "ab":
        archive.feeds[item].may_close.set()
    await turns()
    assert all(feed.closed for feed in archive.feeds.values())


async def test_leaving_before_anything_ran() -> None:
    """Downloads that never ran are not started by leaving."""
    archive = Archive("abc")
    async with archive.ahead(in_flight=2):
        pass
    await turns()
    assert all(not feed.running for feed in archive.feeds.values())
    assert list(archive.feeds) == ["a", "b"]


async def test_next_stops_what_was_not_read_to_its_end() -> None:
    """Going on to the next slot ends the download before, and gives its room back."""
    archive = Archive("ab")
    budget = Watched(3 * COST)
    async with archive.ahead(budget) as ahead:
        await turns()
        archive.feeds["a"].give(OPENED, *[CHUNK] * 9)
        archive.feeds["b"].give(OPENED, CHUNK)
        await turns(50)
        await head_of(ahead)
        assert (await head_of(ahead)).item == "b"
        await turns()
        assert archive.feeds["a"].closed
        assert not archive.feeds["b"].closed
        assert budget.held_bytes == COST
    budget.check()


async def test_stopped_head_does_not_end_the_archive() -> None:
    """With one download at a time, the next item starts when the stopped one has let go; none is forgotten."""
    archive = Archive("ab")
    async with archive.ahead(in_flight=1) as ahead:
        await turns()
        archive.feeds["a"].give(OPENED, CHUNK)
        archive.feeds["a"].may_close.clear()
        await head_of(ahead)
        with pending(head_of(ahead)) as claimed:
            await turns()
            assert not claimed.done()
            assert list(archive.feeds) == ["a"], "it still holds its connection"
            archive.feeds["a"].may_close.set()
            await turns()
            archive.feeds["b"].give(OPENED, CHUNK)
            assert (await claimed).item == "b"


async def test_giving_up_starts_nothing_more() -> None:
    """What was not started comes back in order; what runs is read to its end."""
    archive = Archive("abcde")
    async with archive.ahead(in_flight=2) as ahead:
        await turns()
        assert ahead.give_up() == ["c", "d", "e"]
        assert ahead.give_up() == []
        for item in "ab":
            archive.feeds[item].give(OPENED, CHUNK)
            archive.feeds[item].end()
            assert await read(await head_of(ahead)) == [OPENED, CHUNK]
        assert await ahead.next() is None
    assert list(archive.feeds) == ["a", "b"]


async def test_no_items() -> None:
    """Without items there is nothing to wait for."""
    async with Archive("").ahead() as ahead:
        assert await ahead.next() is None


# Any schedule at all.


@dataclass(frozen=True)
class Script:
    """One download: copies made of chunk sizes (0 is an interruption), each after a pause, and how it ends."""

    copies: Sequence[Sequence[tuple[int, int]]]
    error: BaseException | None
    abandoned_after: int | None

    def steps(self) -> Iterator[tuple[int, DownloadEvent]]:
        """Yield the pauses and events."""
        for number, copy in enumerate(self.copies):
            yield 0, Opened("jpg", number)
            for index, (size, pause) in enumerate(copy):
                yield pause, bytes([number * 10 + index]) * size if size else Interrupted()

    @property
    def whole(self) -> bytes:
        """What must arrive of the last copy."""
        return b"".join(bytes([(len(self.copies) - 1) * 10 + i]) * size for i, (size, _) in enumerate(self.copies[-1]))


class Played:
    """Plays a script."""

    attempts = 1

    def __init__(self, script: Script, running: set["Played"]) -> None:
        self._script = script
        self._running = running

    async def events(self) -> AsyncGenerator[DownloadEvent, None]:
        """Yield the events."""
        self._running.add(self)
        try:
            for pause, event in self._script.steps():
                await turns(pause)
                yield event
            if self._script.error is not None:
                raise self._script.error
        finally:
            try:
                await asyncio.sleep(0)
            finally:
                self._running.discard(self)


sizes = st.sampled_from([0, 1, 100, 1000, 70_000, HEAD_BYTES + 1])
limits = st.sampled_from([0, 1, 1200, 5000, 100_000, 10**7])
copies = st.lists(st.tuples(sizes, st.integers(0, 3)), max_size=6)
scripts = st.builds(
    Script,
    st.lists(copies, min_size=1, max_size=3),
    st.sampled_from([None, None, None, LOST]),
    st.sampled_from([None, None, None, 0, 2]),
)


@dataclass
class Schedule:
    """One archive of the property below."""

    scripts: list[Script]
    in_flight: int
    limit: int
    pauses: list[int]
    leave_after: int | None

    async def run(self, total: MemoryBudget) -> None:
        """Read everything, with pauses, and compare it with what was played."""
        running: set[Played] = set()
        share = Watched(self.limit)
        pauses = iter(self.pauses * 1000)

        def start(number: int) -> Played:
            assert len(running) < self.in_flight
            return Played(self.scripts[number], running)

        seen: list[int] = []
        items = range(len(self.scripts))
        async with Prefetch(
            items, start, in_flight=self.in_flight, share=DownloadShare(64), budgets=(share, total)
        ) as ahead:
            while len(seen) != self.leave_after and (slot := await ahead.next()) is not None:
                seen.append(slot.item)
                await self._compare(slot, lambda: turns(next(pauses)))
                assert len(running) <= self.in_flight
        assert len(set(seen)) == len(seen)
        assert self.leave_after is not None or sorted(seen) == list(items)
        assert running == set()
        share.check()

    async def _compare(self, slot: Slot[int], pause: Callable[[], Awaitable[None]]) -> None:
        script = self.scripts[slot.item]
        got: list[bytes] = []
        try:
            async with aclosing(slot.events()) as events:
                number = 0
                async for event in events:
                    if isinstance(event, Opened):
                        got.clear()
                    else:
                        assert isinstance(event, bytes)
                        got.append(event)
                    number += 1
                    if number == script.abandoned_after:
                        return
                    await pause()
        except ImageFailed:
            assert script.error is LOST
            return
        assert script.error is None
        assert b"".join(got) == script.whole


schedules = st.builds(
    Schedule,
    st.lists(scripts, max_size=6),
    st.integers(1, 4),
    limits,
    st.lists(st.integers(0, 4), min_size=1, max_size=5),
    st.sampled_from([None, None, None, 0, 1, 3]),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(schedules, min_size=1, max_size=3), limits)
def test_any_schedule_keeps_the_promises(archives: list[Schedule], limit: int) -> None:
    """Whatever happens when, each item arrives exactly or fails, all bounds hold, and nothing is kept or stuck."""

    async def play() -> None:
        total = Watched(limit)
        tasks = [asyncio.create_task(archive.run(total)) for archive in archives]
        for _ in range(20_000):  # far more turns than any schedule needs: what is not done by then is stuck
            if all(task.done() for task in tasks):
                break
            await asyncio.sleep(0)
        assert all(task.done() for task in tasks), "stuck"
        for task in tasks:
            task.result()
        total.check()
        assert total.queue_length == 0

    asyncio.run(play())
