"""Prefetch: what is started when, who may hold how many bytes, and that nothing is lost, kept or left running.

The downloads are fed by hand, so every test decides what happens in which iteration of the event loop.
"""

import asyncio
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import ImageFailed
from service.model import Failure, Opened, Reason
from service.streaming.budgets import DownloadShare, MemoryBudget
from service.streaming.prefetch import CHUNK_OVERHEAD_BYTES, HEAD_BYTES, Download, Prefetch, Slot
from service.streaming.window import DownloadWindow
from tests.fakes.downloads import LOST, CheckedBudget, FedDownload, Interrupted, ScriptedDownload, turns

OPENED = Opened("jpg", None)
CHUNK = b"x" * 1000
COST = len(CHUNK) + CHUNK_OVERHEAD_BYTES
# Failures that say nothing about congestion.
NOT_FOUND = Failure(Reason.NOT_FOUND, "in a test")
BROKEN = Failure(Reason.TRUNCATED, "in a test")


@dataclass
class Archive:
    """The downloads of one prefetch, by item."""

    names: str
    feeds: dict[str, FedDownload] = field(default_factory=dict)
    is_starved: bool = False
    changes: int = 0

    def start(self, slot: Slot[str]) -> Download | Failure:
        """Return an item's download."""
        self.feeds[slot.item] = FedDownload(slot)
        return self.feeds[slot.item]

    def note_change(self) -> None:
        """Count a call of ``on_change``."""
        self.changes += 1

    def new(
        self,
        *budgets: MemoryBudget,
        in_flight: int = 5,
        max_in_flight: int = 0,
        share: DownloadShare | None = None,
        start: Callable[[Slot[str]], Download | Failure] | None = None,
    ) -> Prefetch[str]:
        """Return the prefetch."""
        return Prefetch(
            self.names,
            start or self.start,
            window=DownloadWindow(in_flight, max_in_flight),
            share=share or DownloadShare(64),
            budgets=budgets,
            on_change=self.note_change,
            is_starved=lambda: self.is_starved,
        )

    @contextmanager
    def running(
        self,
        *budgets: MemoryBudget,
        in_flight: int = 5,
        max_in_flight: int = 0,
        share: DownloadShare | None = None,
    ) -> Iterator[Prefetch[str]]:
        """Start the prefetch, and close it in the end."""
        prefetch = self.new(*budgets, in_flight=in_flight, max_in_flight=max_in_flight, share=share)
        prefetch.start()
        try:
            yield prefetch
        finally:
            prefetch.close()


def claim(prefetch: Prefetch[str]) -> Slot[str]:
    """Claim the next slot, which must be ready."""
    slot = prefetch.claim_next()
    assert slot is not None
    return slot


def take(slot: Slot[str]) -> list[Opened | bytes]:
    """Take what a slot has buffered."""
    taken: list[Opened | bytes] = []
    while slot.has_buffered:
        opened = slot.take_opened()
        if opened is not None:
            taken.append(opened)
        piece = slot.take_chunk()
        if piece is not None:
            taken.append(piece[0])
    return taken


async def read(prefetch: Prefetch[str], slot: Slot[str]) -> list[Opened | bytes]:
    """Read a slot to its end, and release it.

    Raises:
        ImageFailed: its download failed.
    """
    taken: list[Opened | bytes] = []
    for _ in range(10_000):
        taken += take(slot)
        if slot.is_ended:
            break
        await asyncio.sleep(0)
    assert slot.is_ended, "stuck"
    prefetch.release(slot)
    if slot.error is not None:
        raise slot.error
    if slot.failure is not None:
        raise ImageFailed(slot.failure)
    return taken


# What is started, and what is offered.


async def test_archive_without_downloads_leaves_its_share_to_others() -> None:
    """An archive that has nothing to fetch has no share of the downloads, until it has something again."""
    share = DownloadShare(4)
    waiting, other = Archive("a"), Archive("abcd")
    with waiting.running(share=share) as idle:
        idle.keep_open()
        assert share.per_archive() == 4
        waiting.feeds["a"].give(OPENED, CHUNK)
        waiting.feeds["a"].end()
        await read(idle, claim(idle))
        assert not idle.is_exhausted
        with other.running(share=share):
            assert list(other.feeds) == ["a", "b", "c", "d"]
            idle.add("b")
            assert share.per_archive() == 2
        assert share.per_archive() == 4
    assert share.archives == 0


async def test_downloads_in_flight_are_bounded() -> None:
    """Downloads start in the items' order, and the next one only when one has ended."""
    archive = Archive("abcde")
    with archive.running(MemoryBudget(0), in_flight=2):
        assert list(archive.feeds) == ["a", "b"]
        archive.feeds["b"].end(NOT_FOUND)
        assert list(archive.feeds) == ["a", "b", "c"]
        for item in "ac":
            archive.feeds[item].give(OPENED, CHUNK)
        await turns()
        assert list(archive.feeds) == ["a", "b", "c"], "a paused download is still in flight"


async def test_nothing_starts_before_start() -> None:
    """Making a prefetch starts no download."""
    archive = Archive("ab")
    archive.new()
    await turns()
    assert archive.feeds == {}


async def test_lowest_ready_first() -> None:
    """Among those whose first bytes are buffered, the first in the items' order is offered, not the fastest."""
    archive = Archive("abcd")
    with archive.running(MemoryBudget(10 * COST)) as prefetch:
        for item in "dcb":
            archive.feeds[item].give(OPENED, CHUNK)
            archive.feeds[item].end()
        assert [claim(prefetch).item for _ in range(2)] == ["b", "c"]
        archive.feeds["a"].give(OPENED, CHUNK)
        assert [claim(prefetch).item for _ in range(2)] == ["a", "d"]
        assert prefetch.claim_next() is None
        assert prefetch.is_exhausted


async def test_slow_image_does_not_delay_the_rest() -> None:
    """While the first gives nothing, all others come through, even if only one download besides it may run."""
    archive = Archive("abcd")
    with archive.running(MemoryBudget(0), in_flight=2) as prefetch:
        for item in "bcd":
            assert prefetch.claim_next() is None
            before = archive.changes
            archive.feeds[item].give(OPENED, CHUNK)
            archive.feeds[item].end()
            assert archive.changes > before
            slot = claim(prefetch)
            assert slot.item == item
            assert await read(prefetch, slot) == [OPENED, CHUNK]
        archive.feeds["a"].give(OPENED, CHUNK)
        archive.feeds["a"].end()
        assert await read(prefetch, claim(prefetch)) == [OPENED, CHUNK]


async def test_opened_alone_is_not_ready() -> None:
    """Without a buffered byte there is nothing to begin with."""
    archive = Archive("a")
    with archive.running() as prefetch:
        archive.feeds["a"].give(OPENED)
        assert prefetch.claim_next() is None
        archive.feeds["a"].give(CHUNK)
        assert claim(prefetch).item == "a"


async def test_failure_is_offered_and_its_bytes_are_dropped() -> None:
    """A failed download takes its turn, and its slot says why; what there was of it is not handed out."""
    archive = Archive("ab")
    budget = CheckedBudget(10 * COST)
    with archive.running(budget) as prefetch:
        archive.feeds["a"].give(OPENED, CHUNK, CHUNK)
        archive.feeds["a"].end(LOST)
        archive.feeds["b"].end(LOST)
        assert budget.held_bytes == 0
        for item in "ab":
            slot = claim(prefetch)
            assert (slot.item, slot.has_buffered) == (item, False)
            with pytest.raises(ImageFailed) as caught:
                await read(prefetch, slot)
            assert caught.value.failure is LOST
        assert prefetch.claim_next() is None
        assert prefetch.is_exhausted
    budget.check()


async def test_head_that_fails_drops_what_was_not_read() -> None:
    """What the reader has is all it gets of a failed copy."""
    archive = Archive("a")
    with archive.running() as prefetch:
        archive.feeds["a"].give(OPENED, CHUNK)
        slot = claim(prefetch)
        assert slot.take_opened() == OPENED
        archive.feeds["a"].give(CHUNK, CHUNK)
        archive.feeds["a"].end(LOST)
        assert not slot.has_buffered
        with pytest.raises(ImageFailed):
            await read(prefetch, slot)


@pytest.mark.parametrize("claimed", [False, True], ids=["waiting", "head"])
async def test_fault_reaches_the_reader(claimed: bool) -> None:  # noqa: FBT001 - a table's column
    """A fault of our own in a download is not a failed image: the reader gets it as it is."""
    archive = Archive("a")
    with archive.running(MemoryBudget(COST)) as prefetch:
        archive.feeds["a"].give(OPENED, CHUNK)
        slot = claim(prefetch) if claimed else None
        archive.feeds["a"].end(RuntimeError("a fault"))
        with pytest.raises(RuntimeError, match="a fault"):
            await read(prefetch, slot or claim(prefetch))


async def test_fault_at_the_end_of_an_image_reaches_the_reader() -> None:
    """A fault after the last byte counts the download's end once: the bound on downloads holds."""
    archive = Archive("abcd")
    with archive.running(in_flight=1) as prefetch:
        archive.feeds["a"].give(OPENED, CHUNK)
        archive.feeds["a"].end()
        archive.feeds["a"].give_together(RuntimeError("a fault"))
        assert list(archive.feeds) == ["a", "b"]
        with pytest.raises(RuntimeError, match="a fault"):
            await read(prefetch, claim(prefetch))


async def test_fault_in_starting_a_download_reaches_the_reader_of_that_item() -> None:
    """A download that cannot be started neither hangs the archive nor breaks the download that made room for it."""
    archive = Archive("abc")

    def start(slot: Slot[str]) -> Download | Failure:
        if slot.item == "b":
            raise RuntimeError("a fault")
        return archive.start(slot)

    prefetch = archive.new(in_flight=1, start=start)
    prefetch.start()
    archive.feeds["a"].give(OPENED, CHUNK)
    archive.feeds["a"].end()
    assert await read(prefetch, claim(prefetch)) == [OPENED, CHUNK]
    with pytest.raises(RuntimeError, match="a fault"):
        await read(prefetch, claim(prefetch))
    prefetch.close()


async def test_item_that_is_known_to_fail_needs_no_download() -> None:
    """The start of an item may return its failure; the others start all the same."""
    archive = Archive("ab")
    prefetch = archive.new(in_flight=1, start=lambda slot: LOST if slot.item == "a" else archive.start(slot))
    prefetch.start()
    assert list(archive.feeds) == ["b"]
    slot = claim(prefetch)
    assert (slot.item, slot.attempts, slot.failure) == ("a", 0, LOST)
    prefetch.close()


# Copies that break off and begin again.


async def test_restart_while_waiting_drops_the_buffer() -> None:
    """A new copy makes the one before it void, also its reservation, and is ready only with bytes of its own."""
    archive = Archive("a")
    budget = CheckedBudget(10 * COST)
    newer = Opened("png", 7)
    with archive.running(budget) as prefetch:
        archive.feeds["a"].give(OPENED, CHUNK, CHUNK, newer)
        assert budget.held_bytes == 0
        assert prefetch.claim_next() is None
        archive.feeds["a"].give(b"new")
        archive.feeds["a"].end()
        assert await read(prefetch, claim(prefetch)) == [newer, b"new"]
    budget.check()


async def test_restart_of_the_head_is_passed_on() -> None:
    """The reader sees a second ``Opened``, and nothing more of the first copy."""
    archive = Archive("a")
    with archive.running() as prefetch:
        archive.feeds["a"].give(OPENED, b"old")
        slot = claim(prefetch)
        assert take(slot) == [OPENED, b"old"]
        archive.feeds["a"].give(b"old, unread", Interrupted(), OPENED, b"new")
        archive.feeds["a"].end()
        assert await read(prefetch, slot) == [OPENED, b"new"]


async def test_interrupted_image_is_not_ready() -> None:
    """While it is being tried again, another goes first; when it continues, nothing is missing."""
    archive = Archive("ab")
    with archive.running(MemoryBudget(10 * COST)) as prefetch:
        archive.feeds["a"].give(OPENED, b"one", Interrupted())
        archive.feeds["b"].give(OPENED, b"other")
        assert claim(prefetch).item == "b"
        assert prefetch.claim_next() is None
        archive.feeds["a"].give(b"two")
        archive.feeds["a"].end()
        assert await read(prefetch, claim(prefetch)) == [OPENED, b"one", b"two"]


async def test_interrupted_head_goes_on() -> None:
    """An interruption of the head shows nothing to the reader, who waits for the rest."""
    archive = Archive("a")
    with archive.running() as prefetch:
        archive.feeds["a"].give(OPENED, b"one")
        slot = claim(prefetch)
        archive.feeds["a"].give(Interrupted(), b"two")
        archive.feeds["a"].end()
        assert await read(prefetch, slot) == [OPENED, b"one", b"two"]


async def test_image_that_turns_out_complete_after_an_interruption_is_ready() -> None:
    """All bytes had come before the break, so the next attempt brings none: the image is offered all the same."""
    archive = Archive("a")
    with archive.running(MemoryBudget(COST)) as prefetch:
        archive.feeds["a"].give(OPENED, CHUNK, Interrupted())
        archive.feeds["a"].end()
        slot = claim(prefetch)
        assert (slot.failure, slot.error) == (None, None)
        assert await read(prefetch, slot) == [OPENED, CHUNK]


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
async def test_buffered_bytes_are_bounded(limit: int, held: int, *, shared: bool) -> None:
    """Only what is reserved is read on; one more chunk pauses the download. It can be claimed whatever the budget."""
    archive = Archive("a")
    budget, other = CheckedBudget(limit), CheckedBudget(1000 * COST)
    chunks = [bytes([number]) * len(CHUNK) for number in range(10)]
    with archive.running(*((other, budget) if shared else (budget, other))) as prefetch:
        feed = archive.feeds["a"]
        feed.give(OPENED, *chunks)
        feed.end()
        await turns(50)
        assert budget.held_bytes == held * COST
        assert feed.pushed == min(1 + held + 1, 12)
        assert await read(prefetch, claim(prefetch)) == [OPENED, *chunks]
    budget.check()
    other.check()


async def test_two_bounds_hold_together() -> None:
    """One archive stays within its own budget, all of them within the total."""
    total = CheckedBudget(5 * COST)
    own = [CheckedBudget(3 * COST), CheckedBudget(4 * COST)]
    archives = [Archive("ab"), Archive("ab")]
    with ExitStack() as stack:
        for archive, budget in zip(archives, own, strict=True):
            stack.enter_context(archive.running(budget, total))
            for feed in archive.feeds.values():
                feed.give(OPENED, *[CHUNK] * 10)
            await turns(50)
        # The second archive's downloads have two chunks, and each has reserved the next in its own budget only.
        assert [budget.held_bytes for budget in own] == [3 * COST, 4 * COST]
        assert total.held_bytes == 5 * COST
    for budget in (total, *own):
        budget.check()


async def test_archive_moves_while_another_holds_everything() -> None:
    """The head needs no reservation: an archive is finished although a stalled one holds the whole total."""
    total = CheckedBudget(2 * COST)
    stalled, lively = Archive("ab"), Archive("abc")
    own = CheckedBudget(10 * COST)
    with stalled.running(CheckedBudget(10 * COST), total), lively.running(own, total) as prefetch:
        stalled.feeds["b"].give(OPENED, *[CHUNK] * 5)
        await turns(50)
        assert total.held_bytes == 2 * COST
        for feed in lively.feeds.values():
            feed.give(OPENED, *[CHUNK] * 5)
            feed.end()
        for item in "abc":
            slot = claim(prefetch)
            assert slot.item == item
            assert await read(prefetch, slot) == [OPENED, *[CHUNK] * 5]
        assert prefetch.is_exhausted
        assert own.held_bytes == 0
        assert total.held_bytes == 2 * COST
    total.check()


async def test_reservations_are_granted_in_order() -> None:
    """Two archives that share the total are granted bytes first in, first out."""
    total = MemoryBudget(2 * COST)
    archives = [Archive("ab"), Archive("ab")]
    with archives[0].running(total) as first, archives[1].running(total):
        feeds = [archives[0].feeds["a"], archives[1].feeds["a"], archives[0].feeds["b"]]
        for feed in feeds:
            feed.give(OPENED, *[CHUNK] * 9)
        assert [feed.pushed for feed in feeds] == [4, 2, 2]
        slot = claim(first)
        assert slot.take_opened() == OPENED
        for expected in ([2, 2], [3, 2], [3, 3]):
            assert [feed.pushed for feed in feeds[1:]] == expected
            slot.take_chunk()
            await turns()


async def test_large_request_is_not_overtaken() -> None:
    """A large chunk is not starved by many small ones: they queue behind."""
    budget = CheckedBudget(10 * COST)
    archive = Archive("abc")
    with archive.running(budget) as prefetch:
        archive.feeds["a"].give(OPENED, *[CHUNK] * 8)
        archive.feeds["b"].give(OPENED, b"x" * 5 * COST, b"more")
        archive.feeds["c"].give(OPENED, CHUNK, b"more")
        await turns()
        assert [archive.feeds[item].pushed for item in "bc"] == [2, 2]
        slot = claim(prefetch)
        for _ in range(4):
            slot.take_chunk()
        await turns()
        assert [archive.feeds[item].pushed for item in "bc"] == [3, 2], "the large one first"
        slot.take_chunk()
        slot.take_chunk()
        await turns()
        assert [archive.feeds[item].pushed for item in "bc"] == [3, 3]
        prefetch.release(slot)
    budget.check()


@pytest.mark.parametrize("how", ["claim", "close", "fail", "restart"])
async def test_withdrawn_request_does_not_delay_others(how: str) -> None:
    """When the first in the queue no longer needs its bytes, those behind it get what is free at once."""
    total = CheckedBudget(3 * COST)
    holder, large, small = Archive("ab"), Archive("a"), Archive("ab")
    with holder.running(total), small.running(total):
        with large.running(total) as prefetch:
            holder.feeds["b"].give(OPENED, CHUNK)
            large.feeds["a"].give(OPENED, b"x" * (3 * COST - CHUNK_OVERHEAD_BYTES))
            small.feeds["b"].give(OPENED, CHUNK, CHUNK)
            await turns()
            assert small.feeds["b"].pushed == 2, "it queues behind the large one"
            if how == "claim":
                claim(prefetch)
            elif how == "fail":
                large.feeds["a"].give_together(LOST)
            elif how == "restart":
                large.feeds["a"].give_together(OPENED)
            await turns()
            assert small.feeds["b"].pushed == (2 if how == "close" else 3)
        await turns()
        assert small.feeds["b"].pushed == 3
        assert total.held_bytes == 3 * COST
    total.check()


async def test_withdrawn_requests_do_not_pile_up() -> None:
    """While the budget is used up for hours, each image that passes leaves nothing in the queue."""
    total = MemoryBudget(COST)
    stalled = Archive("ab")
    with stalled.running(total):
        stalled.feeds["b"].give(OPENED, CHUNK, CHUNK)
        busy = Archive("abcdefgh")
        with busy.running(total, in_flight=8) as prefetch:
            for feed in busy.feeds.values():
                feed.give(OPENED, CHUNK)
                feed.end()
            for _ in busy.names:
                assert await read(prefetch, claim(prefetch)) == [OPENED, CHUNK]
            assert total.queue_length == 1


async def test_new_attempt_stays_paused_while_its_bytes_wait_for_room() -> None:
    """A download that breaks while it is paused reads one chunk of its next attempt, not all of them."""
    archive = Archive("a")
    budget = CheckedBudget(2 * COST)
    with archive.running(budget) as prefetch:
        feed = archive.feeds["a"]
        feed.give(OPENED, *[CHUNK] * 3)
        assert feed.is_paused
        feed.give_together(Interrupted())
        feed.give(*[CHUNK] * 5)
        feed.end()
        feed.reconnect()
        await turns()
        assert feed.is_paused
        assert feed.pushed == 1 + 3 + 1 + 1
        assert await read(prefetch, claim(prefetch)) == [OPENED, *[CHUNK] * 8]
    budget.check()


async def test_chunks_that_were_read_together_all_need_a_reservation() -> None:
    """One read may bring several chunks (chunked coding): the download goes on when all of them are reserved."""
    archive, other = Archive("a"), Archive("a")
    budget = CheckedBudget(4 * COST)
    with other.running(budget) as others, archive.running(budget) as prefetch:
        other.feeds["a"].give(OPENED, *[CHUNK] * 3)
        feed = archive.feeds["a"]
        feed.give_together(OPENED, CHUNK, CHUNK, CHUNK)
        feed.give(CHUNK)
        feed.end()
        slot = claim(others)
        slot.take_chunk()
        await turns()
        assert budget.held_bytes == 4 * COST
        assert feed.is_paused
        slot.take_chunk()
        await turns()
        assert budget.held_bytes == 4 * COST
        others.release(slot)
        assert await read(prefetch, claim(prefetch)) == [OPENED, *[CHUNK] * 4]
    budget.check()


@pytest.mark.parametrize("size", [1, 1000, 65_536, HEAD_BYTES - 1, HEAD_BYTES, 3 * HEAD_BYTES])
async def test_head_runs_a_little_ahead(size: int) -> None:
    """The head needs no reservation but may run only so far ahead of its reader, also in a drip of tiny chunks."""
    archive = Archive("a")
    budget = CheckedBudget(0)
    chunk = b"x" * size
    cost = size + CHUNK_OVERHEAD_BYTES
    number = 2 * HEAD_BYTES // cost + 4
    with archive.running(budget) as prefetch:
        feed = archive.feeds["a"]
        feed.give(OPENED, *[chunk] * number)
        feed.end()
        slot = claim(prefetch)
        assert slot.take_opened() == OPENED
        await turns(2 * number)
        waiting = feed.pushed - 1
        assert HEAD_BYTES <= waiting * cost < HEAD_BYTES + cost
        assert feed.is_running
        assert await read(prefetch, slot) == [chunk] * number
    budget.check()


async def test_head_that_has_much_buffered_reads_no_more() -> None:
    """What was buffered when it was claimed counts: the head does not grow beyond it."""
    archive = Archive("a")
    budget = CheckedBudget(4 * HEAD_BYTES)
    chunk = b"x" * (HEAD_BYTES // 2)
    with archive.running(budget) as prefetch:
        feed = archive.feeds["a"]
        feed.give(OPENED, *[chunk] * 20)
        assert feed.pushed == 1 + 7 + 1
        slot = claim(prefetch)
        await turns(50)
        assert feed.pushed == 1 + 7 + 1
        for _ in range(7):
            slot.take_chunk()
        await turns()
        assert feed.pushed > 1 + 7 + 1
        assert budget.held_bytes == 0
    budget.check()


# Races between claiming, granting and closing.


async def test_claim_while_one_of_two_budgets_is_granted() -> None:
    """The archive's budget was granted, the total not yet: the head returns the bytes and goes on without."""
    own, total = CheckedBudget(10 * COST), CheckedBudget(COST)
    holder, archive = Archive("ab"), Archive("ab")
    with holder.running(total), archive.running(own, total) as prefetch:
        holder.feeds["b"].give(OPENED, CHUNK)
        archive.feeds["a"].give(OPENED, CHUNK, CHUNK)
        archive.feeds["a"].end()
        assert own.held_bytes == COST
        assert await read(prefetch, claim(prefetch)) == [OPENED, CHUNK, CHUNK]
        assert own.held_bytes == 0
    for budget in (own, total):
        budget.check()


@pytest.mark.parametrize("then", ["read", "drop", "close"])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("order", ["grant_first", "claim_first"])
async def test_grant_and_claim_in_one_iteration(number: int, order: str, then: str) -> None:
    """Bytes are granted and the slot claimed before the download runs again: they are counted once or not at all."""
    budgets = [CheckedBudget(COST) for _ in range(number)]
    archive = Archive("ab")
    with archive.running(*budgets) as prefetch:
        assert all(budget.reserve(COST) for budget in budgets)
        archive.feeds["a"].give(OPENED, CHUNK, CHUNK)
        archive.feeds["a"].end()
        if order == "grant_first":
            for budget in budgets:
                budget.release(COST)
        slot = claim(prefetch)
        if order == "claim_first":
            for budget in budgets:
                budget.release(COST)
        if then == "read":
            assert await read(prefetch, slot) == [OPENED, CHUNK, CHUNK]
        elif then == "drop":
            prefetch.release(slot)
            assert archive.feeds["a"].is_aborted
        assert prefetch.claim_next() is None
        if then == "close":
            prefetch.close()
            prefetch.release(slot)
            assert archive.feeds["a"].is_aborted
    for budget in budgets:
        budget.check()


async def test_granted_bytes_of_a_closed_prefetch_are_returned() -> None:
    """The grant and the close meet in one iteration: the bytes are not lost."""
    total = CheckedBudget(COST)
    archive = Archive("a")
    with archive.running(total):
        assert total.reserve(COST)
        archive.feeds["a"].give(OPENED, CHUNK)
        total.release(COST)
        assert total.held_bytes == COST, "granted to a download that has not run since"
    total.check()


async def test_more_than_the_whole_budget_is_never_granted() -> None:
    """A chunk larger than the budget waits until it is claimed, and delays no other."""
    archive = Archive("ab")
    budget = CheckedBudget(3 * COST)
    with archive.running(budget) as prefetch:
        huge = b"x" * 10 * COST
        archive.feeds["a"].give(OPENED, huge)
        archive.feeds["a"].end()
        archive.feeds["b"].give(OPENED, CHUNK, CHUNK)
        await turns()
        assert archive.feeds["a"].is_running
        assert archive.feeds["b"].pushed == 3
        assert await read(prefetch, claim(prefetch)) == [OPENED, huge]
    budget.check()


# The window.


@pytest.mark.parametrize(("is_starved", "in_flight"), [(True, 3), (False, 2)])
async def test_window_grows_while_there_is_nothing_to_write(in_flight: int, *, is_starved: bool) -> None:
    """One download more for each that ends while the reader waits, and none if the reader had enough."""
    archive = Archive("abcdefgh")
    with archive.running(MemoryBudget(10**6), in_flight=2, max_in_flight=8):
        archive.is_starved = is_starved
        archive.feeds["a"].give(OPENED, CHUNK)
        archive.feeds["a"].end()
        assert sum(feed.is_running for feed in archive.feeds.values()) == in_flight


async def test_window_does_not_grow_while_another_image_is_buffered() -> None:
    """A reader that waits for this image only needs no more downloads."""
    archive = Archive("abcdefgh")
    with archive.running(MemoryBudget(10**6), in_flight=2, max_in_flight=8):
        archive.is_starved = True
        archive.feeds["b"].give(OPENED, CHUNK)
        archive.feeds["a"].give(OPENED, CHUNK)
        archive.feeds["a"].end()
        assert sum(feed.is_running for feed in archive.feeds.values()) == 2


@pytest.mark.parametrize("is_final", [False, True])
@pytest.mark.parametrize(
    ("reason", "in_flight"),
    [
        (Reason.RATE_LIMITED, 2),
        (Reason.TIMEOUT, 2),
        (Reason.CONNECTION_LOST, 2),
        (Reason.CONNECTION_FAILED, 2),
        (Reason.UPSTREAM_ERROR, 4),
        (Reason.TRUNCATED, 2),  # what a reset makes of a body of known length
        (Reason.CONTENT_CHANGED, 4),
    ],
)
async def test_window_halves_once_for_downloads_of_one_generation(
    reason: Reason, in_flight: int, *, is_final: bool
) -> None:
    """However many downloads that ran together meet congestion, the window halves once."""
    failure = Failure(reason, "in a test")
    archive = Archive("abcdefgh")
    with archive.running(MemoryBudget(10**6), in_flight=4) as prefetch:
        for feed in list(archive.feeds.values()):
            feed.give(failure if is_final else Interrupted(failure))
        assert prefetch.window.size == in_flight


# The end.


async def test_close_aborts_every_download() -> None:
    """Whatever a download waits for, it is aborted, and nothing more is started."""
    archive = Archive("abcdefg")
    budget = CheckedBudget(2 * COST)
    with archive.running(budget, in_flight=5) as prefetch:
        archive.feeds["a"].give(OPENED, *[CHUNK] * 400)  # a head that is ahead of its reader
        archive.feeds["b"].give(OPENED, *[CHUNK] * 5)  # waits for a reservation
        archive.feeds["c"].give(OPENED, CHUNK, Interrupted(BROKEN))
        archive.feeds["d"].end(NOT_FOUND)
        head = claim(prefetch)
        await turns(50)
        assert budget.held_bytes > 0
        running = [feed for feed in archive.feeds.values() if feed.is_running]
        assert len(running) == 5
        prefetch.close()
        prefetch.release(head)
        assert all(feed.is_aborted for feed in running)
        assert list(archive.feeds) == list("abcdef")
        budget.check()
        await turns()
        assert list(archive.feeds) == list("abcdef")


async def test_close_returns_the_share() -> None:
    """Also if the head is released later, which is not to count it twice."""
    share = DownloadShare(4)
    archive = Archive("abcdefg")
    with archive.running(share=share) as prefetch:
        archive.feeds["a"].give(OPENED, CHUNK)
        head = claim(prefetch)
        prefetch.close()
        prefetch.release(head)
        assert share.archives == 0


async def test_close_before_anything_came() -> None:
    """Closing starts no download."""
    archive = Archive("abc")
    with archive.running(in_flight=2):
        pass
    await turns()
    assert list(archive.feeds) == ["a", "b"]
    assert all(feed.is_aborted for feed in archive.feeds.values())


async def test_release_stops_what_was_not_read_to_its_end() -> None:
    """A released slot ends its download, returns its bytes, and starts the next item."""
    archive = Archive("abc")
    budget = CheckedBudget(3 * COST)
    with archive.running(budget, in_flight=2) as prefetch:
        archive.feeds["a"].give(OPENED, *[CHUNK] * 9)
        archive.feeds["b"].give(OPENED, CHUNK)
        prefetch.release(claim(prefetch))
        assert archive.feeds["a"].is_aborted
        assert list(archive.feeds) == ["a", "b", "c"]
        assert archive.feeds["b"].is_running
        assert budget.held_bytes == COST
    budget.check()


async def test_abandon_starts_nothing_more() -> None:
    """What was not started comes back in order; what runs is read to its end."""
    archive = Archive("abcde")
    with archive.running(in_flight=2) as prefetch:
        assert prefetch.abandon() == ["c", "d", "e"]
        assert prefetch.abandon() == []
        for item in "ab":
            archive.feeds[item].give(OPENED, CHUNK)
            archive.feeds[item].end()
            assert await read(prefetch, claim(prefetch)) == [OPENED, CHUNK]
        assert prefetch.is_exhausted
    assert list(archive.feeds) == ["a", "b"]


async def test_no_items() -> None:
    """Without items there is nothing to wait for."""
    with Archive("").running() as prefetch:
        assert prefetch.claim_next() is None
        assert prefetch.is_exhausted


# Any schedule at all.


@dataclass(frozen=True)
class Script:
    """One download: copies made of chunk sizes (0 is an interruption), each after a pause, and how it ends."""

    copies: Sequence[Sequence[tuple[int, int]]]
    error: Failure | None
    abandoned_after: int | None

    def steps(self) -> Iterator[object]:
        """Yield the pauses and events."""
        for number, copy in enumerate(self.copies):
            yield Opened("jpg", number)
            for index, (size, pause) in enumerate(copy):
                yield pause
                yield bytes([number * 10 + index]) * size if size else Interrupted()
        if self.error is not None:
            yield self.error

    @property
    def whole(self) -> bytes:
        """What must arrive of the last copy."""
        return b"".join(bytes([(len(self.copies) - 1) * 10 + i]) * size for i, (size, _) in enumerate(self.copies[-1]))


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
    close_after: int | None

    async def run(self, total: MemoryBudget, share: DownloadShare) -> None:
        """Read everything, with pauses, and compare it with what was played."""
        running: set[ScriptedDownload] = set()
        own = CheckedBudget(self.limit)
        pauses = iter(self.pauses * 1000)
        waiting = True
        maximum = 2 * self.in_flight

        def start(slot: Slot[int]) -> ScriptedDownload:
            assert len(running) < maximum
            download = ScriptedDownload(slot, self.scripts[slot.item].steps(), lambda: running.discard(download))
            running.add(download)
            return download

        seen: list[int] = []
        prefetch = Prefetch(
            range(len(self.scripts)),
            start,
            window=DownloadWindow(self.in_flight, maximum),
            share=share,
            budgets=(own, total),
            on_change=lambda: None,
            is_starved=lambda: waiting,
        )
        prefetch.start()
        while len(seen) != self.close_after and not prefetch.is_exhausted:
            slot = prefetch.claim_next()
            waiting = slot is None
            if slot is None:
                await asyncio.sleep(0)
                continue
            seen.append(slot.item)
            await self._compare(slot, pauses)
            prefetch.release(slot)
            assert len(running) <= maximum
        prefetch.close()
        assert len(set(seen)) == len(seen)
        assert self.close_after is not None or sorted(seen) == list(range(len(self.scripts)))
        assert running == set()
        own.check()

    async def _compare(self, slot: Slot[int], pauses: Iterator[int]) -> None:
        script = self.scripts[slot.item]
        got, number = b"", 0
        while slot.has_buffered or not slot.is_ended:
            if number == script.abandoned_after:
                return
            await turns(next(pauses))
            if slot.take_opened() is not None:
                got = b""
            piece = slot.take_chunk()
            if piece is None:
                await asyncio.sleep(0)
                continue
            number += 1
            got += piece[0]
            assert piece[1] == zlib.crc32(got)
        assert slot.error is None
        assert slot.failure is script.error
        if slot.failure is None:
            assert got == script.whole
            assert (slot.size, slot.crc32) == (len(got), zlib.crc32(got))


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
        total, share = CheckedBudget(limit), DownloadShare(64)
        tasks = [asyncio.create_task(archive.run(total, share)) for archive in archives]
        for _ in range(20_000):  # far more iterations than any schedule needs: what is not done by then is stuck
            if all(task.done() for task in tasks):
                break
            await asyncio.sleep(0)
        assert all(task.done() for task in tasks), "stuck"
        for task in tasks:
            task.result()
        total.check()
        assert share.archives == 0

    asyncio.run(play())
