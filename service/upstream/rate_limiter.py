"""A rate limiter for requests to the API, which one 429 pauses as a whole. Shared by the whole process.

The API counts 300 requests per second and client address (docs: rate limits), so the limit here is the process's, not
an archive's. Requests to the storage do not count.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from aiolimiter import AsyncLimiter

from service.upstream.retry import RETRY_AFTER_CAP_SECONDS

# The limiter is a leaky bucket that may be emptied at once. In a window this short the burst stays small: any second
# sees at most the rate plus one window's worth.
WINDOW_SECONDS = 0.1
# The pause after a 429 without Retry-After: the API's limit resets "at once".
PAUSE_SECONDS = 1.0


class RateLimiter:
    """Limits requests to the API to a rate, and pauses all of them after a 429."""

    def __init__(
        self,
        requests_per_second: float,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._limiter = AsyncLimiter(max(1.0, requests_per_second * WINDOW_SECONDS), WINDOW_SECONDS)
        self._clock = clock
        self._sleep = sleep
        self._resume_at = 0.0
        self._waiting = 0

    def try_acquire(self) -> bool:
        """Take a turn if there is one now, and no other request waits for one."""
        if self._waiting or self._clock() < self._resume_at or not self._limiter.has_capacity():
            return False
        # With capacity, the coroutine takes its turn without suspending: one step completes it, without a task.
        with suppress(StopIteration):
            self._limiter.acquire().send(None)
        return True

    async def acquire(self) -> float:
        """Wait until the next request may be sent; return the wait in seconds."""
        started = self._clock()
        if self.try_acquire():
            return 0.0
        self._waiting += 1
        try:
            while (pause_seconds := self._resume_at - self._clock()) > 0:
                await self._sleep(pause_seconds)
            await self._limiter.acquire()
        finally:
            self._waiting -= 1
        return self._clock() - started

    def pause(self, retry_after: float | None) -> float:
        """Pause all API requests for the capped ``Retry-After``; return the pause in seconds."""
        pause_seconds = PAUSE_SECONDS if retry_after is None else min(retry_after, RETRY_AFTER_CAP_SECONDS)
        self._resume_at = max(self._resume_at, self._clock() + pause_seconds)
        return pause_seconds
