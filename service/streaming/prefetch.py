"""Prefetch: downloads that run ahead of the archive, bounded in number and in bytes. Knows asyncio, but no HTTP.

Ownership: a ``Prefetch`` owns one task per download in flight and ends them all when its context ends. A task owns its
download and pushes its events into its ``Slot``; the archive is the only reader.

A slot's life::

    waiting ──first bytes──▶ ready ──claim──▶ claimed (the head of line: it is being written)
       ▲                       │                 │
       └──── interrupted ──────┘                 ▼
                    finished or failed: reaches the reader after all buffered events

Bytes are bounded three times. A task holds one chunk until it may push it. Behind the head, chunks need a reservation
in the archive's budget and in the process's (``MemoryBudget``). The head itself needs none, so an archive always makes
progress, whatever the others hold; it may run ``HEAD_BYTES`` ahead of its reader.
"""

import asyncio
import functools
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from service.model import DownloadEvent, Interrupted, Opened
from service.streaming.budgets import DownloadShare, MemoryBudget, Reservation

# How far the head may run ahead of its reader: with the chunk that goes beyond it, enough that reading and writing
# overlap; little enough not to count.
HEAD_BYTES = 64 * 1024
# What a buffered chunk costs besides its bytes (object, queue slot): so a drip of one-byte chunks is bounded too.
CHUNK_OVERHEAD_BYTES = 128

ItemT = TypeVar("ItemT")


class Download(Protocol):
    """A download as a stream of events, which ends cleanly only when complete. ``attempts`` counts its requests."""

    attempts: int

    def events(self) -> AsyncGenerator[DownloadEvent, None]:
        """Yield the events."""
        ...


class Slot(Generic[ItemT]):
    """Buffers one download's events for the archive. One task pushes, one reader iterates."""

    def __init__(
        self,
        item: ItemT,
        download: Download,
        budgets: Iterable[MemoryBudget],
        on_change: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.item = item
        self.download = download
        self.claimed = False
        self.ready = False
        self.ended = False
        self.task: asyncio.Task[None] | None = None
        self._error: BaseException | None = None
        self._reservations = tuple(Reservation(budget) for budget in budgets)
        self._on_change = on_change
        self._events: deque[tuple[DownloadEvent, int]] = deque()
        self._buffered_bytes = 0
        self._grant: asyncio.Future[bool] | None = None
        self._change: asyncio.Future[None] | None = None
        self._loop = loop
        self._started_at = loop.time()
        self._ended_at: float | None = None

    async def push(self, event: DownloadEvent) -> None:
        """Buffer an event, waiting for a reservation."""
        if isinstance(event, Interrupted):
            self.ready = False
        elif isinstance(event, Opened):
            self.ready = False
            self._clear()
            self._append(event, 0)
        else:
            await self._push_chunk(event)

    def finish(self, error: BaseException | None) -> None:
        """End the slot: the download is complete, or has failed with ``error``."""
        self.ended = True
        self._ended_at = self._loop.time()
        self._error = error
        # Also a copy that was interrupted and then turned out to be complete is ready.
        self.ready = error is None
        if error is not None:
            self._clear()  # the rest of a failed copy need not be written
        self._wake()
        self._on_change()

    def claim(self) -> None:
        """Make this the head: it no longer waits for a reservation."""
        self.claimed = True
        if self._grant is not None and not self._grant.done():
            self._grant.set_result(False)

    def close(self) -> None:
        """Stop the download if it still runs, and drop its buffer."""
        if self.task is not None:
            self.task.cancel()
        self._clear()
        for reservation in self._reservations:
            reservation.close()

    @property
    def seconds(self) -> float:
        """Seconds from the start of the download to its end, or to now; waiting for the reader does not count."""
        return (self._loop.time() if self._ended_at is None else self._ended_at) - self._started_at

    async def events(self) -> AsyncGenerator[DownloadEvent, None]:
        """Yield the events as they arrive; the end means that the download is complete.

        Raises:
            ImageFailed: the download failed for good.
        """
        while True:
            while self._events:
                event, held = self._events.popleft()
                self._release(event, held)
                yield event
            if self.ended:
                break
            await self._wait_for_change()
        if self._error is not None:
            raise self._error

    async def _push_chunk(self, chunk: bytes) -> None:
        # A chunk is available: the slot can be claimed, even while the chunk has no reservation yet.
        self.ready = True
        self._on_change()
        cost = _cost(chunk)
        if not self.claimed and await self._reserve(cost):
            self._append(chunk, cost)
            return
        while self._buffered_bytes >= HEAD_BYTES:
            await self._wait_for_change()
        self._append(chunk, 0)

    async def _reserve(self, cost: int) -> bool:
        """Reserve bytes in every budget; false if the slot was claimed meanwhile and needs none."""
        for index, reservation in enumerate(self._reservations):
            if reservation.try_reserve(cost):
                continue
            self._grant = reservation.reserve(cost)
            if self.claimed and not self._grant.done():
                self._grant.set_result(False)
            if not await self._grant:
                for earlier in self._reservations[:index]:
                    earlier.release(cost)
                return False
        return True

    def _append(self, event: DownloadEvent, held: int) -> None:
        self._events.append((event, held))
        self._buffered_bytes += _cost(event)
        self._wake()

    def _release(self, event: DownloadEvent, held: int) -> None:
        self._buffered_bytes -= _cost(event)
        if held:
            for reservation in self._reservations:
                reservation.release(held)
        self._wake()

    def _clear(self) -> None:
        while self._events:
            self._release(*self._events.popleft())

    async def _wait_for_change(self) -> None:
        # The task waits only while events are buffered, the reader only while none is: never both at once.
        self._change = self._loop.create_future()
        await self._change

    def _wake(self) -> None:
        if self._change is not None and not self._change.done():
            self._change.set_result(None)


class Prefetch(Generic[ItemT]):
    """Starts the downloads of ``items`` in their order and returns the first that is ready.

    At most ``in_flight`` run at a time, and no more than this archive's part of the process's ``share``.

    Use it as an async context manager: its end ends every download.
    """

    def __init__(
        self,
        items: Iterable[ItemT],
        start: Callable[[ItemT], Download],
        *,
        in_flight: int,
        share: DownloadShare,
        budgets: Iterable[MemoryBudget],
    ) -> None:
        self._items = deque(items)
        self._start = start
        self._in_flight = in_flight
        self._share = share
        self._budgets = tuple(budgets)
        self._slots: list[Slot[ItemT]] = []
        self._head: Slot[ItemT] | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._open_ended = False
        self._is_sharing = False
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> Self:
        """Start the first downloads."""
        self._fill()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every download, and wait until each has released its connection."""
        self._items.clear()
        self._set_sharing(busy=False)
        # First what needs no waiting: the bytes are released even if the wait below is cancelled.
        self._drop_head()
        for slot in self._slots:
            slot.close()
        if self._running:
            await asyncio.wait(self._running)

    async def next(self) -> Slot[ItemT] | None:
        """Return the first slot, in the items' order, whose first bytes are buffered or which has failed.

        This ends the previous slot: if it was not read to its end, its download is stopped. ``None`` when there are
        no more.
        """
        while (slot := self._claim_next()) is None:
            # The last one running may be a stopped head that still holds its connection: the next starts after it.
            if not self._slots and not self._items and not self._open_ended:
                return None
            self._changed.clear()
            await self._changed.wait()
        return slot

    def keep_open(self) -> None:
        """Keep ``next`` waiting for items that are added later, until ``finish_adding``."""
        self._open_ended = True

    def add(self, items: Iterable[ItemT]) -> None:
        """Append items, to be started behind those that wait."""
        self._items.extend(items)
        self._fill()

    def finish_adding(self) -> None:
        """Declare the list of items complete."""
        self._open_ended = False
        self._changed.set()

    def give_up(self) -> list[ItemT]:
        """Start no more downloads; return the items that have not been started."""
        rest = list(self._items)
        self._items.clear()
        return rest

    def _claim_next(self) -> Slot[ItemT] | None:
        self._drop_head()
        for index, slot in enumerate(self._slots):
            if slot.ready or slot.ended:
                del self._slots[index]
                slot.claim()
                self._head = slot
                return slot
        return None

    def _drop_head(self) -> None:
        if self._head is not None:
            self._head.close()
            self._head = None

    def _set_sharing(self, *, busy: bool) -> None:
        """Take part in the share while there is something to download, not while further items are waited for."""
        if busy and not self._is_sharing:
            self._share.join()
        elif self._is_sharing and not busy:
            self._share.leave()
        self._is_sharing = busy

    def _fill(self) -> None:
        self._set_sharing(busy=bool(self._items or self._running))
        while self._items and len(self._running) < min(self._in_flight, self._share.per_archive()):
            item = self._items.popleft()
            slot = Slot(item, self._start(item), self._budgets, self._changed.set, self._loop)
            self._slots.append(slot)
            slot.task = task = self._loop.create_task(_pump(slot))
            self._running.add(task)
            task.add_done_callback(functools.partial(self._on_done, slot))

    def _on_done(self, slot: Slot[ItemT], task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        # A bug is passed to the reader like a failed image, and aborts the archive there.
        slot.finish(asyncio.CancelledError() if task.cancelled() else task.exception())
        self._fill()


def _cost(event: DownloadEvent) -> int:
    return len(event) + CHUNK_OVERHEAD_BYTES if isinstance(event, bytes) else 0


async def _pump(slot: Slot[ItemT]) -> None:
    async with aclosing(slot.download.events()) as events:
        async for event in events:
            await slot.push(event)
