"""Keeps the whole process below the API's request limit, and lets one 429 slow everybody down.

The API counts 300 requests per second and address (docs: rate limits), whoever makes them: so the limit here is
the process's, not an archive's. Requests to the storage do not count.
"""

import asyncio
from collections.abc import Awaitable, Callable

from aiolimiter import AsyncLimiter

from service.upstream.retry import RETRY_AFTER_CAP_SECONDS

# The limiter is a leaky bucket that may be emptied at once. In a window this short the burst stays small: any second
# sees at most the rate plus one window's worth.
WINDOW_SECONDS = 0.1
# How long everybody waits after a 429 that does not say how long: the API's limit resets "at once".
PAUSE_SECONDS = 1.0


class RateLimiter:
    """Gives turns to requests to the API. Shared by the whole process."""

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

    async def turn(self) -> float:
        """Wait until the next request may be sent; return how long that took, in seconds."""
        asked = self._clock()
        if asked >= self._resume_at and self._limiter.has_capacity():
            await self._limiter.acquire()  # at once
            return 0.0
        while (pause_seconds := self._resume_at - self._clock()) > 0:
            await self._sleep(pause_seconds)
        await self._limiter.acquire()
        return self._clock() - asked

    def pause(self, asked_seconds: float | None) -> float:
        """Let nobody send anything for the time a 429 asks for, within bounds; return that time in seconds."""
        pause_seconds = PAUSE_SECONDS if asked_seconds is None else min(asked_seconds, RETRY_AFTER_CAP_SECONDS)
        self._resume_at = max(self._resume_at, self._clock() + pause_seconds)
        return pause_seconds
