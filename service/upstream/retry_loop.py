"""The retry loop: makes attempts, counts them and waits between them, as ``retry`` decides."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from service.upstream import retry
from service.upstream.retry import AttemptFailed

_T = TypeVar("_T")


class RetryLoop:
    """Up to ``max_attempts`` attempts at one operation, with exponential backoff and full jitter between them.

    ``chance`` returns the jitter in [0, 1).
    """

    def __init__(self, max_attempts: int, *, chance: Callable[[], float] = random.random) -> None:
        self._max_attempts = max_attempts
        self._chance = chance
        self._consumed_attempts = 0

    def pause_seconds(self, error: AttemptFailed, *, consumes_attempt: bool = True) -> float | None:
        """Count a failed attempt; return the pause before the next in seconds, or ``None`` if there is none."""
        self._consumed_attempts += consumes_attempt
        if not error.retryable or self._consumed_attempts >= self._max_attempts:
            return None
        return retry.backoff_seconds(max(1, self._consumed_attempts), error.retry_after_seconds, self._chance())

    async def run(self, attempt: Callable[[], Awaitable[_T]], on_retry: Callable[[AttemptFailed, int], None]) -> _T:
        """Return the result of the first attempt that succeeds.

        ``on_retry`` is called before each pause with the failure and the number of attempts made.

        Raises:
            AttemptFailed: the last attempt's failure.
        """
        while True:
            try:
                return await attempt()
            except AttemptFailed as error:
                pause_seconds = self.pause_seconds(error)
                if pause_seconds is None:
                    raise
                on_retry(error, self._consumed_attempts)
            await asyncio.sleep(pause_seconds)
