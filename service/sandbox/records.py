"""Request log: every request and its outcome, the running ones, and the rate limit per address."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from weakref import WeakSet

from aiohttp import web

# Records kept; the oldest are dropped. A 1,000-image archive with every retry stays well below.
REQUESTS_KEPT = 20_000


@dataclass(slots=True, eq=False)
class RequestRecord:
    """One request and its outcome; ``status`` is 0 as long as no status line was sent.

    ``headers`` is case-insensitive. ``token`` identifies the redirect target it belongs to. ``finished`` is True once
    its handler has ended. ``reused``: its connection carried another request before.
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
    """Keeps the records of requests and wakes waiters when a request starts or ends."""

    def __init__(self) -> None:
        self.records: deque[RequestRecord] = deque(maxlen=REQUESTS_KEPT)
        self.running: Counter[str] = Counter()
        self._connections: WeakSet[asyncio.Transport] = WeakSet()
        self._waiters: list[asyncio.Future[None]] = []

    def begin(self, request: web.Request, origin: str) -> RequestRecord:
        """Record a request and attach the record to it."""
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
        """Mark a request as finished."""
        record.finished = True
        self.running[record.origin] -= 1
        self.notify()

    def notify(self) -> None:
        """Wake all waiters."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds; it is checked whenever a request starts or ends."""
        while not condition():
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter


class RateLimiter:
    """Counts requests per address in windows of one second."""

    def __init__(self) -> None:
        self._second = 0
        self._counts: Counter[str] = Counter()

    def allows(self, address: str, limit: int | None, now: float) -> bool:
        """Count a request and return whether it is within the limit."""
        if int(now) != self._second:
            self._second = int(now)
            self._counts.clear()
        self._counts[address] += 1
        return limit is None or self._counts[address] <= limit
