"""Looks at busy orders again and again, once for all archives that wait for the same one.

Ownership: each order that somebody follows has one task, which lives from the first follower to the last.
"""

import asyncio
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import Context

import structlog

from service.errors import ServiceError
from service.model import Order

log = structlog.get_logger(__name__)

# Clients of the API ask every 2 to 10 s; processing takes 5 to 60 s an image. Each look without news waits longer.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, GROWTH = 2.0, 10.0, 1.5
# Between the end of one look and the next, however many notices come: the API sends one for each image, and a hundred
# that are ready together need a few looks, not a hundred. Nobody notices a quarter of a second.
LEAST_PAUSE_SECONDS = 0.25
# Of a pause, so that many orders do not ask together.
JITTER = 0.25
# A look that takes longer is worth nothing any more: the next one comes.
LOOK_SECONDS = 30.0

# How long before the end of somebody's wait: time for an answer to come.
LAST_LOOK_SECONDS = 1.0

Look = Callable[[str, float], Awaitable[Order]]


def pause_seconds(looks_without_news: int, chance: float) -> float:
    """Return how long to wait before the next look; ``chance``, from 0 to 1, spreads the looks at many orders."""
    steps = min(looks_without_news, 10)  # as many as reach the longest, and no power that overflows
    pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * GROWTH**steps)
    return pause * (1 - JITTER + 2 * JITTER * chance)


class _Followed:
    """One order that is being followed."""

    def __init__(self) -> None:
        self.followers = 0
        self.order: Order | None = None
        self.version = 0
        self.ended = False
        self._fault: BaseException | None = None
        self._asked = -math.inf
        self.woken = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self._waiting: set[asyncio.Future[None]] = set()

    def news(self, order: Order, asked: float, *, confirms: bool) -> bool:
        """Take the order as it was when it was ``asked`` for; tell whether it has changed.

        What was asked for before the order that is known is no news, however late it came. With ``confirms``, followers
        also get an order that has not changed: that it still lacks an image means more than that it lacked it once.
        """
        if asked < self._asked:
            return False
        self._asked = asked
        changed = order != self.order
        if changed or confirms:
            self.order = order
            self.version += 1
            self._tell()
        return changed

    def _tell(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    def end(self, fault: BaseException | None = None) -> None:
        """No news will come any more, by a fault of ours if one is given."""
        self.ended = True
        self._fault = fault
        self._tell()

    def poll_ended(self, task: asyncio.Task[None]) -> None:
        """Let nobody wait for looks that do not come any more."""
        if not task.cancelled():
            self.end(task.exception())

    async def after(self, version: int) -> tuple[int, Order | None]:
        """Return the next version of the order, and the order; ``None`` if no news will come.

        Raises the fault of ours that ended the looks, if one did.
        """
        while self.version <= version:
            if self._fault is not None:
                raise self._fault
            if self.ended:
                return version, None
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(waiting)
            try:
                await waiting
            finally:
                self._waiting.discard(waiting)
        return self.version, self.order


class Subscription:
    """One archive's view of an order that changes."""

    def __init__(self, followed: _Followed, order: Order) -> None:
        self._followed = followed
        # Whoever comes with an older order than is known gets that at once.
        self._seen = followed.version if followed.order == order else followed.version - 1

    async def next(self) -> Order | None:
        """Return the order of the next look-up, changed or not; ``None`` when there are no more look-ups.

        Look-ups that come between two calls are one.
        """
        self._seen, order = await self._followed.after(self._seen)
        return order


class OrderWatcher:
    """Follows orders for whoever waits. ``look`` is given an order's id and how many seconds it may take."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._followed: dict[str, _Followed] = {}
        self._stopped = False

    @asynccontextmanager
    async def follow(self, order: Order, asked: float, *, until: float) -> AsyncIterator[Subscription]:
        """Follow an order while the context is open, from what it was when ``asked`` for, by the loop's clock.

        Shortly before ``until`` there is a last look, so that what has become ready since the one before is not missed.
        """
        order_id = order.order_id
        followed = self._followed.setdefault(order_id, _Followed())
        followed.followers += 1
        followed.news(order, asked, confirms=False)
        if self._stopped:
            followed.end()
        if followed.task is None:
            # In a context of its own: it belongs to no request, and may outlive the one that began it.
            followed.task = asyncio.create_task(self._poll(order_id, followed), context=Context())
            followed.task.add_done_callback(followed.poll_ended)
        loop = asyncio.get_running_loop()
        last_look = loop.call_at(max(until - LAST_LOOK_SECONDS, (loop.time() + until) / 2), followed.woken.set)
        try:
            yield Subscription(followed, order)
        finally:
            last_look.cancel()
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
        """Look at an order soon, because it is said to have changed; tell whether anybody follows it.

        That is at once, or ``LEAST_PAUSE_SECONDS`` after the last look; what is said until then is one reason to look.
        """
        followed = self._followed.get(order_id)
        if followed is not None:
            followed.woken.set()
        return followed is not None

    async def _poll(self, order_id: str, followed: _Followed) -> None:
        structlog.contextvars.bind_contextvars(order_id=order_id)
        clock, looks_without_news, least_pause_seconds = asyncio.get_running_loop().time, 0, 0.0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_seconds(looks_without_news, random.random())):
                    await asyncio.sleep(least_pause_seconds)  # a notice that comes meanwhile is still there behind it
                    await followed.woken.wait()
            least_pause_seconds = LEAST_PAUSE_SECONDS
            followed.woken.clear()
            asked = clock()
            try:
                changed = followed.news(await self._look(order_id, LOOK_SECONDS), asked, confirms=True)
            except ServiceError as error:
                # Whoever waits goes on: the look-up that began the archive was good, and the next may be.
                log.info("order.poll_failed", problem=error.slug, detail=error.detail)
                changed = False
            looks_without_news = 0 if changed else looks_without_news + 1
