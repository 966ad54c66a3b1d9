"""The rate limiter: the rate, and the pause after a 429."""

from collections.abc import Awaitable, Callable

import pytest

from service.upstream.rate_limiter import PAUSE_SECONDS, RateLimiter
from service.upstream.retry import RETRY_AFTER_CAP_SECONDS


class Clock:
    """A clock that moves only while something sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:  # noqa: D102
        return self.now

    async def sleep(self, seconds: float) -> None:  # noqa: D102
        self.slept.append(seconds)
        self.now += seconds


@pytest.mark.parametrize(
    ("retry_after", "expected"),
    [
        pytest.param(None, PAUSE_SECONDS, id="no Retry-After"),
        pytest.param(3.5, 3.5, id="Retry-After"),
        pytest.param(1e6, RETRY_AFTER_CAP_SECONDS, id="up to the cap"),
        pytest.param(0.0, 0.0, id="zero"),
    ],
)
async def test_pause_delays_all_requests(retry_after: float | None, expected: float) -> None:
    """After a 429 the next requests wait for the capped Retry-After, and then go on."""
    clock = Clock()
    limiter = RateLimiter(1000, clock=clock, sleep=clock.sleep)
    await limiter.acquire()
    assert clock.slept == []
    assert limiter.pause(retry_after) == expected
    await limiter.acquire()
    await limiter.acquire()
    assert clock.slept == ([expected] if expected else [])


async def test_shorter_pause_does_not_end_a_longer_one() -> None:
    """Of two pauses the later end counts."""
    clock = Clock()
    limiter = RateLimiter(1000, clock=clock, sleep=clock.sleep)
    limiter.pause(10)
    limiter.pause(2)
    await limiter.acquire()
    assert clock.slept == [10]


async def test_pause_can_grow_during_the_wait() -> None:
    """A request that wakes from a pause waits for a later one too."""
    clock = Clock()

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        if len(clock.slept) == 1:
            limiter.pause(5)

    sleeper: Callable[[float], Awaitable[None]] = sleep
    limiter = RateLimiter(1000, clock=clock, sleep=sleeper)
    limiter.pause(1)
    await limiter.acquire()
    assert clock.slept == [1, 5]
