"""What the archives of a process share: bytes of memory, and connections to the upstream. Knows asyncio, but no I/O."""

import asyncio
from collections import OrderedDict


class MemoryBudget:
    """A number of bytes that may be held at a time. Those who wait for room get it in the order of asking."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._waiting: OrderedDict[asyncio.Future[bool], tuple[Reservation, int]] = OrderedDict()

    def fits(self, size: int) -> bool:
        """Whether ``size`` bytes are free."""
        return self.held_bytes + size <= self.limit_bytes

    def try_take(self, size: int) -> bool:
        """Take ``size`` bytes at once if they are free and nobody waits for them."""
        if self._waiting or not self.fits(size):
            return False
        self.held_bytes += size
        return True

    def ask(self, account: "Reservation", size: int) -> asyncio.Future[bool]:
        """Return a future that turns true once ``size`` bytes are taken for the account.

        Setting it to false withdraws the request. More than the whole budget is never granted.
        """
        granted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if size <= self.limit_bytes:
            self._waiting[granted] = account, size
            self._grant()
            if not granted.done():
                granted.add_done_callback(self._leave_queue)
        return granted

    def release(self, size: int) -> None:
        """Return bytes, and hand them to those who wait."""
        self.held_bytes -= size
        self._grant()

    def _grant(self) -> None:
        while self._waiting:
            granted, (account, size) = next(iter(self._waiting.items()))
            if not granted.done():
                if not self.fits(size):
                    return
                self.held_bytes += size
                account.held_bytes += size
                granted.set_result(True)
            del self._waiting[granted]

    def _leave_queue(self, granted: asyncio.Future[bool]) -> None:
        # A withdrawn request must not keep those behind it waiting, nor stay in the queue until its turn.
        self._waiting.pop(granted, None)
        self._grant()


class DownloadShare:
    """Divides a number of downloads at a time evenly among the archives of the process.

    Every archive may always have one, so each moves; the number is exceeded only if there are more archives than
    it. When archives come and go the shares change at once, and the downloads follow as they end.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.archives = 0

    def of_each(self) -> int:
        """Return how many downloads one archive may have in flight now."""
        return max(1, self.total // max(1, self.archives))


class Reservation:
    """What one slot holds of a budget; closing it returns everything."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self.held_bytes = 0

    def try_take(self, size: int) -> bool:
        """Take room if it is free and nobody waits for it."""
        taken = self._budget.try_take(size)
        if taken:
            self.held_bytes += size
        return taken

    def ask(self, size: int) -> asyncio.Future[bool]:
        """Ask for room, see ``MemoryBudget.ask``."""
        return self._budget.ask(self, size)

    def release(self, size: int) -> None:
        """Return part of what is held."""
        self.held_bytes -= size
        self._budget.release(size)

    def close(self) -> None:
        """Return all that is held."""
        self.release(self.held_bytes)
