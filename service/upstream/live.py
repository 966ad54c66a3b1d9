"""Looks at busy orders again and again, once for all archives that wait for the same one.

Ownership: each order that somebody follows has one task, which lives from the first follower to the last.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import Context

import structlog

from service.errors import ServiceError
from service.model import Order

log = structlog.get_logger(__name__)

# Clients of the API ask every 2 to 10 s; processing takes 5 to 60 s an image. Each look without news waits longer.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, GROWTH = 2.0, 10.0, 1.5
# Of a pause, so that many orders do not ask together.
JITTER = 0.25
# A look that takes longer is worth nothing any more: the next one comes.
LOOK_SECONDS = 30.0

Look = Callable[[str, float], Awaitable[Order]]


class _Followed:
    """One order that is being followed."""

    def __init__(self) -> None:
        self.followers = 0
        self.order: Order | None = None
        self.version = 0
        self.ended = False
        self.woken = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self._waiting: set[asyncio.Future[None]] = set()

    def news(self, order: Order) -> bool:
        """Take the order as it is now; tell whether it has changed."""
        changed = order != self.order
        if changed:
            self.order = order
            self.version += 1
            self._tell()
        return changed

    def _tell(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    def end(self) -> None:
        """No news will come any more."""
        self.ended = True
        self._tell()

    async def after(self, version: int) -> tuple[int, Order | None]:
        """Return the next version of the order, and the order; ``None`` if no news will come."""
        while self.version <= version:
            if self.ended:
                return version, None
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(waiting)
            try:
                await waiting
            finally:
                self._waiting.discard(waiting)
        return self.version, self.order


class Follower:
    """One archive's view of an order that changes."""

    def __init__(self, followed: _Followed) -> None:
        self._followed = followed
        self._seen = followed.version

    async def next(self) -> Order | None:
        """Return the order when it has changed since the last call; ``None`` when nobody looks at it any more."""
        self._seen, order = await self._followed.after(self._seen)
        return order


class LiveOrders:
    """Follows orders for whoever waits. ``look`` is given an order's id and how many seconds it may take."""

    def __init__(self, look: Look, *, first_pause_seconds: float = FIRST_PAUSE_SECONDS) -> None:
        self._look = look
        self._first_pause_seconds = first_pause_seconds
        self._followed: dict[str, _Followed] = {}
        self._stopped = False

    @asynccontextmanager
    async def follow(self, order: Order) -> AsyncIterator[Follower]:
        """Follow an order, from what it was just now, while the context is open."""
        order_id = order.order_id
        followed = self._followed.setdefault(order_id, _Followed())
        followed.followers += 1
        followed.news(order)
        if self._stopped:
            followed.end()
        if followed.task is None:
            # In a context of its own: it belongs to no request, and may outlive the one that began it.
            followed.task = asyncio.create_task(self._poll(order_id, followed), context=Context())
        try:
            yield Follower(followed)
        finally:
            followed.followers -= 1
            if not followed.followers:
                self._followed.pop(order_id, None)
                followed.task.cancel()
                await asyncio.wait([followed.task])

    def stop(self) -> None:
        """Tell every follower that no news will come: the service is about to stop."""
        self._stopped = True
        for followed in self._followed.values():
            followed.end()

    def wake(self, order_id: str) -> bool:
        """Look at an order at once, because it is said to have changed; tell whether anybody follows it."""
        followed = self._followed.get(order_id)
        if followed is not None:
            followed.woken.set()
        return followed is not None

    async def _poll(self, order_id: str, followed: _Followed) -> None:
        structlog.contextvars.bind_contextvars(order_id=order_id)
        pause_seconds = self._first_pause_seconds
        while True:
            try:
                async with asyncio.timeout(pause_seconds * random.uniform(1 - JITTER, 1 + JITTER)):
                    await followed.woken.wait()
            except TimeoutError:
                pass
            followed.woken.clear()
            try:
                changed = followed.news(await self._look(order_id, LOOK_SECONDS))
            except ServiceError as error:
                # Whoever waits goes on: the look-up that began the archive was good, and the next may be.
                log.info("order.poll_failed", problem=error.slug, detail=error.detail)
                changed = False
            longer = min(LONGEST_PAUSE_SECONDS, pause_seconds * GROWTH)
            pause_seconds = self._first_pause_seconds if changed else longer
