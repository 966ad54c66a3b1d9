"""The log of every request seen, who is still being answered, and the limit per address."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from weakref import WeakSet

from aiohttp import web

# Requests remembered; the oldest are forgotten. A 1,000-image archive with every retry stays well below.
REQUESTS_KEPT = 20_000


@dataclass(slots=True, eq=False)
class RequestRecord:
    """One request and what became of it; ``status`` is 0 while (or if) no status line was sent.

    ``headers`` can be asked in any case. ``token`` names the generation of redirect targets it belongs to;
    ``finished`` is True once nobody works on it. ``reused``: its connection had carried another request before.
    """

    origin: str
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    image_id: str | None = None
    order_id: str | None = None
    token: str | None = None
    fault: str | None = None
    status: int = 0
    bytes_sent: int = 0
    finished: bool = False
    reused: bool = False


RECORD = web.RequestKey("record", RequestRecord)


class RequestLog:
    """Remembers requests and tells those who wait that something began or ended."""

    def __init__(self) -> None:
        self.records: deque[RequestRecord] = deque(maxlen=REQUESTS_KEPT)
        self.running: Counter[str] = Counter()
        self._connections: WeakSet[asyncio.Transport] = WeakSet()
        self._waiters: list[asyncio.Future[None]] = []

    def begin(self, request: web.Request, origin: str) -> RequestRecord:
        """Note a request and attach its record to it."""
        record = RequestRecord(origin, request.method, request.path, dict(request.query), request.headers)
        record.image_id = request.match_info.get("image_id")
        record.order_id = request.match_info.get("order_id")
        if request.transport is not None:
            record.reused = request.transport in self._connections
            self._connections.add(request.transport)
        request[RECORD] = record
        self.records.append(record)
        self.running[origin] += 1
        self.notify()
        return record

    def finish(self, record: RequestRecord) -> None:
        """Note that nobody works on a request any more."""
        record.finished = True
        self.running[record.origin] -= 1
        self.notify()

    def notify(self) -> None:
        """Wake everyone who waits for a change."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait_until(self, holds: Callable[[], bool]) -> None:
        """Return as soon as a condition on the log holds; it is asked whenever a request begins or ends."""
        while not holds():
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter


class Limiter:
    """Counts requests per address in windows of one second."""

    def __init__(self) -> None:
        self._second = 0
        self._counts: Counter[str] = Counter()

    def allows(self, address: str, limit: int | None, now: float) -> bool:
        """Count a request and say whether it is within the limit."""
        if int(now) != self._second:
            self._second = int(now)
            self._counts.clear()
        self._counts[address] += 1
        return limit is None or self._counts[address] <= limit
