"""Downloads that run ahead of the archive, bounded in number and in bytes. No tasks, no HTTP.

A ``Prefetch`` starts downloads in the order of its items and keeps a ``Slot`` for each. A slot is the sink of its
download; the archive, its only reader, claims one slot after the other.

States of a slot::

    waiting ──first bytes──▶ ready ──claim──▶ claimed (the head: it is being written)
       ▲                       │                 │
       └──── interrupted ──────┘                 ▼
                    ended: complete, failed or crashed; known to the reader once everything before it is taken

Bytes are bounded three times. Behind the head each chunk needs room in the archive's budget and in that of the process:
the chunk that finds none is kept, and pauses its download until there is room. The head needs no room, so an archive
always moves, whatever the others hold; its download is paused while ``HEAD_BYTES`` wait for the reader.

Everything happens in callbacks: of the downloads, and of the reader. ``on_change`` is called when a slot becomes ready,
ends, or has something new for the reader.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from service.model import Failure, Opened, Reason
from service.streaming.budgets import DownloadShare, MemoryBudget, Reservation
from service.streaming.window import DownloadWindow

# How far the head may run ahead of its reader: with the chunk that goes beyond it, enough that reading and writing
# overlap; little enough not to count.
HEAD_BYTES = 64 * 1024
# What a buffered chunk costs besides its bytes (object, queue slot): so a drip of one-byte chunks is bounded too.
CHUNK_OVERHEAD_BYTES = 128
# What says that fewer requests at a time would be better.
_CONGESTION = frozenset(
    {Reason.RATE_LIMITED, Reason.TIMEOUT, Reason.TRUNCATED, Reason.CONNECTION_LOST, Reason.CONNECTION_FAILED}
)

ItemT = TypeVar("ItemT")
# Bytes, and the CRC-32 of the copy up to and including them.
_Chunk = tuple[bytes, int]


class Download(Protocol):
    """One download that pushes into a slot. ``attempts`` counts its requests."""

    @property
    def attempts(self) -> int:
        """How many requests were made."""
        ...

    def start(self) -> None:
        """Begin."""
        ...

    def pause(self) -> None:
        """Stop reading."""
        ...

    def resume(self) -> None:
        """Go on reading."""
        ...

    def abort(self) -> None:
        """End; nothing more is pushed."""
        ...


class Slot(Generic[ItemT]):
    """Buffers what one download pushes, until the reader takes it (``upstream.image_download.ImageSink``).

    ``opened`` is the start of a copy that the reader has not taken yet; taking it makes all bytes before it void.
    """

    def __init__(
        self, item: ItemT, prefetch: "Prefetch[ItemT]", budgets: Sequence[MemoryBudget], now: Callable[[], float]
    ) -> None:
        self.item = item
        self.download: Download | None = None  # None for what is known to fail
        self.is_ready = False
        self.is_ended = False
        self.opened: Opened | None = None
        self.size = 0
        self.crc32 = 0
        self.failure: Failure | None = None
        self.error: BaseException | None = None
        self.generation = 0
        self._prefetch = prefetch
        self._reservation = Reservation(budgets, self._on_reserved)
        self._chunks: deque[_Chunk] = deque()
        self._buffered_bytes = 0
        self._is_claimed = False
        self._is_paused = False  # also: unless claimed, a request for the bytes that are not reserved waits
        self._now = now
        self._started_at = now()
        self._ended_at: float | None = None

    # For the reader

    @property
    def has_buffered(self) -> bool:
        """Whether there is something to take."""
        return bool(self._chunks) or self.opened is not None

    @property
    def has_failed(self) -> bool:
        """Whether the image will never be complete."""
        return self.failure is not None or self.error is not None

    @property
    def attempts(self) -> int:
        """How many requests were made for the item."""
        return self.download.attempts if self.download is not None else 0

    @property
    def seconds(self) -> float:
        """How long the download has run, or ran; the time that its bytes wait for the reader is not in it."""
        return (self._now() if self._ended_at is None else self._ended_at) - self._started_at

    def claim(self) -> None:
        """Make this the head: it needs no reservation any more."""
        self._is_claimed = True
        self._reservation.cancel()
        if self._buffered_bytes < HEAD_BYTES:
            self._resume()

    def take_opened(self) -> Opened | None:
        """Return the start of a new copy, once."""
        opened, self.opened = self.opened, None
        return opened

    def take_chunk(self) -> tuple[bytes, int] | None:
        """Return the next bytes of the copy, if there are any, with the CRC-32 of the copy up to them."""
        if not self._chunks:
            return None
        chunk, crc32 = self._chunks.popleft()
        cost = _cost(chunk)
        self._buffered_bytes -= cost
        if self._reservation.held_bytes:  # the first chunks are the reserved ones
            self._reservation.release(min(cost, self._reservation.held_bytes))
        if self._is_paused and self._buffered_bytes < HEAD_BYTES:
            self._resume()
        return chunk, crc32

    def close(self) -> None:
        """Stop the download if it still runs, and drop what is held."""
        if self.download is not None and not self.is_ended:
            self.download.abort()
        self._clear()

    # For the download: upstream.image_download.ImageSink

    def image_opened(self, opened: Opened) -> None:
        """Take the start of a copy."""
        self._clear()
        self.opened = opened
        if self._is_claimed:
            self._prefetch.on_change()
        else:
            self.is_ready = False

    def image_received(self, chunk: bytes, crc32: int) -> None:
        """Take bytes of the copy; pause the download where that is enough."""
        cost = _cost(chunk)
        self._buffered_bytes += cost
        self._chunks.append((chunk, crc32))
        if self._is_claimed:
            if self._buffered_bytes >= HEAD_BYTES:
                self._pause()
        elif self._is_paused:
            self._pause()  # a new attempt reads until it is paused again
        elif not self._reservation.reserve(cost):
            self._pause()
            self._reservation.request(cost)
        self.is_ready = True
        self._prefetch.on_change()

    def image_interrupted(self, failure: Failure) -> None:
        """Take the end of an attempt: what is buffered may be continued, but not yet."""
        if not self._is_claimed:
            self.is_ready = False
        self._note_congestion(failure)

    def image_completed(self, size: int, crc32: int) -> None:
        """Take the end of the image."""
        self.size, self.crc32 = size, crc32
        self._end()

    def image_failed(self, failure: Failure) -> None:
        """Take the final failure; what is left of the copy need not be written."""
        self.failure = failure
        self._clear()
        self.opened = None
        self._note_congestion(failure)
        self._end()

    def image_crashed(self, error: BaseException) -> None:
        """Take a fault of the service: it breaks the archive where the reader meets it."""
        self.error = error
        self._clear()
        self.opened = None
        if self.is_ended:  # at the end of the image, and nothing has read it yet
            self._prefetch.on_change()
        else:
            self._end()

    def _end(self) -> None:
        self.is_ended = True
        # Also a copy that broke off and then turned out to be complete is ready.
        self.is_ready = True
        self._ended_at = self._now()
        self._prefetch.download_ended(self)

    def _note_congestion(self, failure: Failure) -> None:
        if failure.reason in _CONGESTION:
            self._prefetch.window.congested(self.generation)
            self.generation = self._prefetch.window.generation

    def _clear(self) -> None:
        self._reservation.close()
        self._chunks.clear()
        self._buffered_bytes = 0
        self._is_paused = False

    def _on_reserved(self) -> None:
        """Go on: the chunk that found no room has it now. Others may have been read together with it."""
        if unreserved_bytes := self._buffered_bytes - self._reservation.held_bytes:
            self._reservation.request(unreserved_bytes)
        else:
            self._resume()

    def _pause(self) -> None:
        self._is_paused = True
        if self.download is not None:
            self.download.pause()

    def _resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            if self.download is not None:
                self.download.resume()


class Prefetch(Generic[ItemT]):
    """Starts the downloads of ``items`` in their order and offers what has come first.

    As many run at a time as ``window`` says, and no more than this archive's share of the process's downloads.
    ``start`` returns the download of an item into a slot, or why there is none.
    """

    def __init__(
        self,
        items: Iterable[ItemT],
        start: Callable[[Slot[ItemT]], Download | Failure],
        *,
        window: DownloadWindow,
        share: DownloadShare,
        budgets: Sequence[MemoryBudget],
        on_change: Callable[[], None],
        is_starved: Callable[[], bool],
    ) -> None:
        self.window = window
        self.on_change = on_change
        self._items = deque(items)
        self._start = start
        self._share = share
        self._budgets = tuple(budgets)
        self._is_starved = is_starved
        self._now = asyncio.get_running_loop().time
        self._slots: list[Slot[ItemT]] = []
        self._running = 0
        self._more_may_come = False
        self._has_joined = False
        self._is_filling = False

    @property
    def is_exhausted(self) -> bool:
        """Whether every item has been claimed, and none will be added."""
        return not self._slots and not self._items and not self._more_may_come

    def start(self) -> None:
        """Start the first downloads."""
        self._fill()

    def claim_next(self) -> Slot[ItemT] | None:
        """Return the first slot, in the items' order, that is ready or has ended; ``None`` if there is none now.

        ``release`` it in the end.
        """
        for index, slot in enumerate(self._slots):
            if slot.is_ready:
                del self._slots[index]
                slot.claim()
                return slot
        return None

    def keep_open(self) -> None:
        """Expect items that are added later, until ``finish_adding``."""
        self._more_may_come = True

    def add(self, items: Iterable[ItemT]) -> None:
        """Take further items, to be started behind those that wait."""
        self._items.extend(items)
        self._fill()

    def finish_adding(self) -> None:
        """Expect no further items."""
        self._more_may_come = False
        self.on_change()

    def abandon(self) -> list[ItemT]:
        """Start nothing more; return the items whose downloads have not been started."""
        rest = list(self._items)
        self._items.clear()
        return rest

    def close(self) -> None:
        """Start nothing more, and end every download that is not claimed."""
        self._items.clear()
        slots, self._slots = self._slots, []
        for slot in slots:
            self._close_slot(slot)
        self._update_share()

    def download_ended(self, slot: Slot[ItemT]) -> None:
        """Take the end of a slot's download: the next may start."""
        if slot.download is not None:
            self._running -= 1
            if slot.failure is None:
                has_more = any(other.has_buffered for other in self._slots if other is not slot)
                self.window.image_ended(starved=not has_more and self._is_starved())
        self._fill()
        self.on_change()

    def release(self, slot: Slot[ItemT]) -> None:
        """Close a claimed slot, whose download may still run."""
        self._close_slot(slot)
        self._fill()

    def _close_slot(self, slot: Slot[ItemT]) -> None:
        if slot.download is not None and not slot.is_ended:
            self._running -= 1
        slot.close()

    def _fill(self) -> None:
        if self._is_filling:  # a download that fails at once: the loop below goes on
            return
        self._is_filling = True
        try:
            self._update_share()
            while self._items and self._running < min(self.window.size, self._share.per_archive()):
                self._start_next()
            self._update_share()
        finally:
            self._is_filling = False

    def _start_next(self) -> None:
        slot = Slot(self._items.popleft(), self, self._budgets, self._now)
        slot.generation = self.window.generation
        self._slots.append(slot)
        try:
            download = self._start(slot)
            if isinstance(download, Failure):
                slot.image_failed(download)
                return
            slot.download = download
            self._running += 1
            download.start()
        except Exception as error:  # noqa: BLE001 - the callback that made room for this download is another one's
            slot.image_crashed(error)

    def _update_share(self) -> None:
        """Count among those who share the downloads while there is something to fetch."""
        is_busy = bool(self._items or self._running)
        if is_busy and not self._has_joined:
            self._share.join()
        elif self._has_joined and not is_busy:
            self._share.leave()
        self._has_joined = is_busy


def _cost(chunk: bytes) -> int:
    return len(chunk) + CHUNK_OVERHEAD_BYTES
