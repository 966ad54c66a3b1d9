"""Limits that all archives of a process share: bytes of memory and concurrent downloads. Knows asyncio, but no I/O."""

import asyncio
from collections import OrderedDict


class MemoryBudget:
    """Bounds the bytes held at a time: a FIFO semaphore with sizes.

    Bytes are held through a ``Reservation``, which keeps count of its own part.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._queue: OrderedDict[asyncio.Future[bool], tuple[Reservation, int]] = OrderedDict()

    @property
    def queue_length(self) -> int:
        """Number of requests that wait for bytes."""
        return len(self._queue)

    def fits(self, size: int) -> bool:
        """Return whether ``size`` bytes are free."""
        return self.held_bytes + size <= self.limit_bytes

    def try_reserve(self, size: int) -> bool:
        """Reserve ``size`` bytes at once if they are free and the queue is empty."""
        if self._queue or not self.fits(size):
            return False
        self.held_bytes += size
        return True

    def reserve(self, reservation: "Reservation", size: int) -> asyncio.Future[bool]:
        """Queue for ``size`` bytes; the future becomes true once the reservation holds them.

        Setting it to false withdraws the request. More than the whole budget is never granted.
        """
        granted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if size <= self.limit_bytes:
            self._queue[granted] = reservation, size
            self._grant()
            if not granted.done():
                granted.add_done_callback(self._leave_queue)
        return granted

    def release(self, size: int) -> None:
        """Release bytes and grant them to the queue."""
        self.held_bytes -= size
        self._grant()

    def _grant(self) -> None:
        while self._queue:
            granted, (reservation, size) = next(iter(self._queue.items()))
            if not granted.done():
                if not self.fits(size):
                    return
                self.held_bytes += size
                # At once, not when the waiting task runs: the reservation may be closed before.
                reservation.add(size)
                granted.set_result(True)
            del self._queue[granted]

    def _leave_queue(self, granted: asyncio.Future[bool]) -> None:
        # A withdrawn request must not delay those behind it, nor stay in the queue until its turn.
        self._queue.pop(granted, None)
        self._grant()


class Reservation:
    """Counts what one slot holds of a budget; closing it releases everything."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self.held_bytes = 0

    def try_reserve(self, size: int) -> bool:
        """Reserve bytes at once if they are free and the budget's queue is empty."""
        reserved = self._budget.try_reserve(size)
        if reserved:
            self.add(size)
        return reserved

    def reserve(self, size: int) -> asyncio.Future[bool]:
        """Queue for bytes, see ``MemoryBudget.reserve``."""
        return self._budget.reserve(self, size)

    def add(self, size: int) -> None:
        """Count bytes that the budget has granted."""
        self.held_bytes += size

    def release(self, size: int) -> None:
        """Release part of what is held."""
        self.held_bytes -= size
        self._budget.release(size)

    def close(self) -> None:
        """Release all that is held."""
        self.release(self.held_bytes)


class DownloadShare:
    """Divides the process's concurrent downloads evenly among its archives.

    Every archive may always have one, so each makes progress; the total is exceeded only if there are more archives
    than downloads. When an archive joins or leaves, the shares change at once, and the downloads follow as they end.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._archives = 0

    @property
    def archives(self) -> int:
        """Number of archives that share the downloads now."""
        return self._archives

    def join(self) -> None:
        """Count one more archive."""
        self._archives += 1

    def leave(self) -> None:
        """Count one archive less."""
        self._archives -= 1

    def per_archive(self) -> int:
        """Return how many downloads one archive may have in flight now."""
        return max(1, self.total // max(1, self._archives))
