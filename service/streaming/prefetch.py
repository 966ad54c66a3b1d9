"""Downloads that run ahead of the archive, bounded in number and in bytes. Knows asyncio, but no HTTP.

Who owns what: a ``Prefetch`` owns one task per download in flight and ends them all when it is left. A task
owns its download and puts what comes into its ``Slot``; the archive, the only reader, takes it out.

A slot's life::

    waiting ──first bytes──▶ ready ──claim──▶ claimed (the head: it is being written)
       ▲                       │                 │
       └──── interrupted ──────┘                 ▼
                    finished or failed: known to the reader once everything before it is taken

Bytes are bounded three times. A task holds one chunk in hand until it may put it. Behind the head, chunks need
room in the archive's share and in the process's total (``MemoryBudget``). The head itself needs no room, so an archive
always moves, whatever the others hold; it may run ``HEAD_BYTES`` ahead of its reader.
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
    """One download: its events in order; it ends cleanly only when complete. ``attempts`` counts its requests."""

    attempts: int

    def events(self) -> AsyncGenerator[DownloadEvent, None]:
        """Yield the events."""
        ...


class Slot(Generic[ItemT]):
    """Where one download's events wait for the archive. One task puts, one reader iterates."""

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
        self._accounts = tuple(Reservation(budget) for budget in budgets)
        self._on_change = on_change
        self._events: deque[tuple[DownloadEvent, int]] = deque()
        self._waiting_bytes = 0
        self._room_asked: asyncio.Future[bool] | None = None
        self._moved: asyncio.Future[None] | None = None
        self._loop = loop
        self._began = loop.time()
        self._ended_at: float | None = None

    async def put(self, event: DownloadEvent) -> None:
        """Take an event in, waiting for room."""
        if isinstance(event, Interrupted):
            self.ready = False
        elif isinstance(event, Opened):
            self.ready = False
            self._clear()
            self._append(event, 0)
        else:
            await self._put_chunk(event)

    def finish(self, error: BaseException | None) -> None:
        """Nothing more will come: the download is complete, or has failed with ``error``."""
        self.ended = True
        self._ended_at = self._loop.time()
        self._error = error
        # Also a copy that broke off and then turned out to be complete is ready.
        self.ready = error is None
        if error is not None:
            self._clear()  # what is left of a failed copy need not be written
        self._wake()
        self._on_change()

    def claim(self) -> None:
        """Make this the head: it no longer waits for room."""
        self.claimed = True
        if self._room_asked is not None and not self._room_asked.done():
            self._room_asked.set_result(False)

    def close(self) -> None:
        """Stop the download if it still runs, and drop what is held."""
        if self.task is not None:
            self.task.cancel()
        self._clear()
        for account in self._accounts:
            account.close()

    @property
    def seconds(self) -> float:
        """How long the download has run, or ran: what waits for the reader when it has ended is not in it."""
        return (self._loop.time() if self._ended_at is None else self._ended_at) - self._began

    @property
    def has_buffered(self) -> bool:
        """Whether the next event need not be waited for."""
        return bool(self._events)

    async def events(self) -> AsyncGenerator[DownloadEvent, None]:
        """Yield the events as they come; the end means that the download is complete.

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
            await self._wait_for_move()
        if self._error is not None:
            raise self._error

    async def _put_chunk(self, chunk: bytes) -> None:
        # The chunk is in hand: the slot can be claimed, even while there is no room for it yet.
        self.ready = True
        self._on_change()
        cost = _cost(chunk)
        if not self.claimed and await self._reserve(cost):
            self._append(chunk, cost)
            return
        while self._waiting_bytes >= HEAD_BYTES:
            await self._wait_for_move()
        self._append(chunk, 0)

    async def _reserve(self, cost: int) -> bool:
        """Take room in every budget; false if the slot was claimed meanwhile and needs none."""
        for index, account in enumerate(self._accounts):
            if account.try_take(cost):
                continue
            self._room_asked = account.ask(cost)
            if self.claimed and not self._room_asked.done():
                self._room_asked.set_result(False)
            if not await self._room_asked:
                for taken in self._accounts[:index]:
                    taken.release(cost)
                return False
        return True

    def _append(self, event: DownloadEvent, held: int) -> None:
        self._events.append((event, held))
        self._waiting_bytes += _cost(event)
        self._wake()

    def _release(self, event: DownloadEvent, held: int) -> None:
        self._waiting_bytes -= _cost(event)
        if held:
            for account in self._accounts:
                account.release(held)
        self._wake()

    def _clear(self) -> None:
        while self._events:
            self._release(*self._events.popleft())

    async def _wait_for_move(self) -> None:
        # The task waits only while events are there, the reader only while none is: never both at once.
        self._moved = self._loop.create_future()
        await self._moved

    def _wake(self) -> None:
        if self._moved is not None and not self._moved.done():
            self._moved.set_result(None)


class Prefetch(Generic[ItemT]):
    """Starts the downloads of ``items`` in their order and offers what has come first.

    At most ``in_flight`` run at a time, and no more than this archive's share of the process's ``connections``.

    Use it as an async context manager: leaving it ends every download.
    """

    def __init__(
        self,
        items: Iterable[ItemT],
        start: Callable[[ItemT], Download],
        *,
        in_flight: int,
        connections: DownloadShare,
        budgets: Iterable[MemoryBudget],
    ) -> None:
        self._items = deque(items)
        self._start = start
        self._in_flight = in_flight
        self._connections = connections
        self._budgets = tuple(budgets)
        self._slots: list[Slot[ItemT]] = []
        self._head: Slot[ItemT] | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._more_may_come = False
        self._takes_part = False
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> Self:
        """Start the first downloads."""
        self._fill()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every download, and wait until each has let go of its connection."""
        self._items.clear()
        self._take_part(busy=False)
        # First what needs no waiting: the bytes come back even if the wait below is cancelled.
        self._drop_head()
        for slot in self._slots:
            slot.close()
        if self._running:
            await asyncio.wait(self._running)

    async def next(self) -> Slot[ItemT] | None:
        """Return the first slot, in the items' order, whose first bytes are in hand or which has failed.

        This is the end of the slot before: if it was not read to its end, its download is stopped. ``None`` when
        there are no more.
        """
        while (slot := self.next_nowait()) is None:
            # The last one running may be a stopped head that has not let go yet: the next starts when it has.
            if not self._slots and not self._items and not self._more_may_come:
                return None
            self._changed.clear()
            await self._changed.wait()
        return slot

    def next_nowait(self) -> Slot[ItemT] | None:
        """Do as ``next`` does, but return ``None`` if there is none at the moment."""
        self._drop_head()
        for index, slot in enumerate(self._slots):
            if slot.ready or slot.ended:
                del self._slots[index]
                slot.claim()
                self._head = slot
                return slot
        return None

    def keep_open(self) -> None:
        """Keep ``next`` waiting for items that are added later, until ``finish_adding``."""
        self._more_may_come = True

    def add(self, items: Iterable[ItemT]) -> None:
        """Take further items, to be started behind those that wait."""
        self._items.extend(items)
        self._fill()

    def finish_adding(self) -> None:
        """Nothing will be added any more."""
        self._more_may_come = False
        self._changed.set()

    def give_up(self) -> list[ItemT]:
        """Start nothing more; return the items whose downloads have not been started."""
        rest = list(self._items)
        self._items.clear()
        return rest

    def _drop_head(self) -> None:
        if self._head is not None:
            self._head.close()
            self._head = None

    def _take_part(self, *, busy: bool) -> None:
        """Count among those who share the connections while there is something to fetch, not while it is waited for."""
        self._connections.archives += busy - self._takes_part
        self._takes_part = busy

    def _fill(self) -> None:
        self._take_part(busy=bool(self._items or self._running))
        while self._items and len(self._running) < min(self._in_flight, self._connections.of_each()):
            item = self._items.popleft()
            slot = Slot(item, self._start(item), self._budgets, self._changed.set, self._loop)
            self._slots.append(slot)
            slot.task = task = self._loop.create_task(_pump(slot))
            self._running.add(task)
            task.add_done_callback(functools.partial(self._on_done, slot))

    def _on_done(self, slot: Slot[ItemT], task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        # A fault of our own is handed to the reader like a failed image, and breaks the archive there.
        slot.finish(asyncio.CancelledError() if task.cancelled() else task.exception())
        self._fill()


def _cost(event: DownloadEvent) -> int:
    return len(event) + CHUNK_OVERHEAD_BYTES if isinstance(event, bytes) else 0


async def _pump(slot: Slot[ItemT]) -> None:
    async with aclosing(slot.download.events()) as events:
        async for event in events:
            await slot.put(event)
