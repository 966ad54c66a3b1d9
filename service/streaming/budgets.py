"""What the archives of a process share: memory for prefetched bytes, and downloads at a time. No I/O, no tasks."""

from collections import OrderedDict
from collections.abc import Callable, Sequence


class MemoryBudget:
    """A limit of bytes held at a time. Reservations that do not fit wait, first in, first out."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._waiting: OrderedDict[Reservation, int] = OrderedDict()

    def reserve(self, size: int) -> bool:
        """Take ``size`` bytes if they are free and no reservation waits for them."""
        if self._waiting or self.held_bytes + size > self.limit_bytes:
            return False
        self.held_bytes += size
        return True

    def release(self, size: int) -> None:
        """Return bytes, and grant them to the reservations that wait."""
        self.held_bytes -= size
        while self._waiting:
            reservation, wanted = next(iter(self._waiting.items()))
            if self.held_bytes + wanted > self.limit_bytes:
                return
            del self._waiting[reservation]
            self.held_bytes += wanted
            reservation.grant()

    @property
    def queue_length(self) -> int:
        """Number of reservations that wait."""
        return len(self._waiting)

    def enqueue(self, reservation: "Reservation", size: int) -> None:
        """Let a reservation wait for ``size`` bytes, which must not exceed the limit."""
        self._waiting[reservation] = size

    def dequeue(self, reservation: "Reservation") -> None:
        """Let a reservation wait no longer, which may free the way for those behind it."""
        if self._waiting.pop(reservation, None) is not None:
            self.release(0)


class Reservation:
    """What one download holds of several budgets.

    At most one request waits at a time; ``on_granted`` is called when it is granted. It takes the budgets in their
    order, and keeps what it has while it waits for the next. All do so in the same order, so there is no deadlock.
    """

    def __init__(self, budgets: Sequence[MemoryBudget], on_granted: Callable[[], None]) -> None:
        self._budgets = budgets
        self._on_granted = on_granted
        self._requested_bytes = 0
        self._granted_budgets = 0  # of the request that waits
        self._waiting_in: MemoryBudget | None = None
        self.held_bytes = 0

    def reserve(self, size: int) -> bool:
        """Take ``size`` bytes of every budget if they are free now."""
        for index, budget in enumerate(self._budgets):
            if not budget.reserve(size):
                for reserved in self._budgets[:index]:
                    reserved.release(size)
                return False
        self.held_bytes += size
        return True

    def request(self, size: int) -> None:
        """Take ``size`` bytes as soon as they are free.

        What exceeds the limit of a budget is never granted. It neither waits nor delays others.
        """
        if any(size > budget.limit_bytes for budget in self._budgets):
            return
        self._requested_bytes, self._granted_budgets = size, 0
        if self._take_next():
            self._on_granted()

    def grant(self) -> None:
        """Take what the budget that is waited for has granted; for ``MemoryBudget`` only."""
        self._waiting_in = None
        self._granted_budgets += 1
        if self._take_next():
            self._on_granted()

    def cancel(self) -> None:
        """Withdraw the request that waits."""
        budget, self._waiting_in = self._waiting_in, None
        if budget is not None:
            budget.dequeue(self)
            for granted in self._budgets[: self._granted_budgets]:
                granted.release(self._requested_bytes)

    def release(self, size: int) -> None:
        """Return part of what is held."""
        self.held_bytes -= size
        for budget in self._budgets:
            budget.release(size)

    def close(self) -> None:
        """Return everything."""
        self.cancel()
        if self.held_bytes:
            self.release(self.held_bytes)

    def _take_next(self) -> bool:
        """Take the budgets that are left, or wait in the first that has no room; return whether all are taken."""
        size = self._requested_bytes
        for budget in self._budgets[self._granted_budgets :]:
            if not budget.reserve(size):
                self._waiting_in = budget
                budget.enqueue(self, size)
                return False
            self._granted_budgets += 1
        self.held_bytes += size
        return True


class DownloadShare:
    """Divides a number of downloads at a time evenly among the archives of the process.

    Every archive may always have one, so each moves; the number is exceeded only if there are more archives than
    it. When archives come and go the shares change at once, and the downloads follow as they end.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.archives = 0

    def join(self) -> None:
        """Count one archive more."""
        self.archives += 1

    def leave(self) -> None:
        """Count one archive less."""
        self.archives -= 1

    def per_archive(self) -> int:
        """Return how many downloads one archive may have in flight now."""
        return max(1, self.total // max(1, self.archives))
