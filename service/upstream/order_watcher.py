"""A shared poller: polls each busy order once for all archives that wait for it.

Ownership: each order with a subscription has one task, which lives from the first subscription to the last.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import Context

import structlog

from service.errors import ServiceError
from service.model import Order
from service.watch import ValueWatch

log = structlog.get_logger(__name__)

# Other clients of the API poll every 2 to 10 s; processing takes 5 to 60 s an image. Each poll without a change
# lengthens the pause.
MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS, GROWTH = 2.0, 10.0, 1.5
# From the end of one poll to the next, however often the order is poked: the API sends one webhook for each image, and
# a hundred images that are ready together need a few polls, not a hundred. A quarter of a second goes unnoticed.
MIN_POKED_PAUSE_SECONDS = 0.25
# Fraction of a pause, so that many orders are not polled together.
JITTER = 0.25
# A slower poll is useless: the next one is due.
POLL_TIMEOUT_SECONDS = 30.0
# How long before the end of a subscription: time for the response to arrive.
LAST_POLL_SECONDS = 1.0

FetchOrder = Callable[[str, float], Awaitable[Order]]


def pause_seconds(unchanged_polls: int, chance: float) -> float:
    """Return the pause before the next poll: exponential backoff with jitter; ``chance`` is in 0 to 1."""
    exponent = min(unchanged_polls, 10)  # enough to reach the maximum, and the power does not overflow
    pause = min(MAX_PAUSE_SECONDS, MIN_PAUSE_SECONDS * GROWTH**exponent)
    return pause * (1 - JITTER + 2 * JITTER * chance)


class _PolledOrder:
    """One order with subscriptions: its watch channel and its polling task."""

    def __init__(self, order: Order, requested_at: float) -> None:
        self.watch = ValueWatch(order)
        self.subscriptions = 0
        self.poked = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self._requested_at = requested_at

    def update(self, order: Order, requested_at: float, *, confirms: bool) -> bool:
        """Publish the order as it was at ``requested_at``; return whether it has changed.

        A response to an earlier request than that of the known state is stale, however late it arrives, and is
        ignored. With ``confirms``, subscriptions also get an unchanged order: that it still lacks an image says more
        than that it lacked it once.
        """
        if requested_at < self._requested_at:
            return False
        self._requested_at = requested_at
        changed = order != self.watch.value
        if changed or confirms:
            self.watch.send(order)
        return changed

    def on_task_done(self, task: asyncio.Task[None]) -> None:
        """Pass a bug that ended the polling on to the subscriptions."""
        if not task.cancelled():
            self.watch.close(task.exception())


class Subscription:
    """One archive's view of an order that changes, until a deadline by the event loop's clock."""

    def __init__(self, watch: ValueWatch[Order], order: Order, *, until: float) -> None:
        self._watch = watch
        self._until = until
        # A subscriber with an older order than the known one gets the latter at once.
        self._seen = watch.version if watch.value == order or watch.closed else watch.version - 1

    async def next(self) -> Order | None:
        """Return the order of the next poll, changed or not; ``None`` after the deadline or the end of polling.

        Polls between two calls count as one.

        Raises:
            Exception: the bug that ended the polling.
        """
        try:
            async with asyncio.timeout_at(self._until):
                if not await self._watch.changed(self._seen):
                    return None
        except TimeoutError:
            return None
        self._seen = self._watch.version
        return self._watch.value


class OrderWatcher:
    """Polls orders while archives are subscribed to them.

    ``fetch_order`` takes an order's id and a timeout in seconds.
    """

    def __init__(self, fetch_order: FetchOrder) -> None:
        self._fetch_order = fetch_order
        self._polled: dict[str, _PolledOrder] = {}
        self._stopped = False

    @asynccontextmanager
    async def subscribe(self, order: Order, requested_at: float, *, until: float) -> AsyncIterator[Subscription]:
        """Poll an order while the context is open, starting from its state at ``requested_at``, by the loop's clock.

        A last poll shortly before ``until`` finds what has become ready since the previous one.
        """
        order_id = order.order_id
        polled = self._polled.setdefault(order_id, _PolledOrder(order, requested_at))
        polled.subscriptions += 1
        polled.update(order, requested_at, confirms=False)
        if self._stopped:
            polled.watch.close()
        if polled.task is None:
            # In a context of its own: it belongs to no request, and may outlive the one that started it.
            polled.task = asyncio.create_task(self._poll(order_id, polled), context=Context())
            polled.task.add_done_callback(polled.on_task_done)
        loop = asyncio.get_running_loop()
        last_poll = loop.call_at(max(until - LAST_POLL_SECONDS, (loop.time() + until) / 2), polled.poked.set)
        try:
            yield Subscription(polled.watch, order, until=until)
        finally:
            last_poll.cancel()
            polled.subscriptions -= 1
            if not polled.subscriptions:
                self._polled.pop(order_id, None)
                polled.task.cancel()
                await asyncio.wait([polled.task])

    def stop(self) -> None:
        """End every subscription, because the service is about to stop."""
        self._stopped = True
        for polled in self._polled.values():
            polled.watch.close()

    def poke(self, order_id: str) -> bool:
        """Poll an order soon, because it is said to have changed; return whether it has subscriptions.

        Soon is now, or ``MIN_POKED_PAUSE_SECONDS`` after the last poll; pokes until then are merged.
        """
        polled = self._polled.get(order_id)
        if polled is not None:
            polled.poked.set()
        return polled is not None

    async def _poll(self, order_id: str, polled: _PolledOrder) -> None:
        structlog.contextvars.bind_contextvars(order_id=order_id)
        clock, unchanged_polls, min_pause_seconds = asyncio.get_running_loop().time, 0, 0.0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_seconds(unchanged_polls, random.random())):
                    await asyncio.sleep(min_pause_seconds)  # a poke during the sleep stays set
                    await polled.poked.wait()
            min_pause_seconds = MIN_POKED_PAUSE_SECONDS
            polled.poked.clear()
            requested_at = clock()
            try:
                order = await self._fetch_order(order_id, POLL_TIMEOUT_SECONDS)
                changed = polled.update(order, requested_at, confirms=True)
            except ServiceError as error:
                # Subscriptions stay: the request that began the archive succeeded, and the next poll may.
                log.info("order.poll_failed", problem=error.slug, detail=error.detail)
                changed = False
            unchanged_polls = 0 if changed else unchanged_polls + 1
