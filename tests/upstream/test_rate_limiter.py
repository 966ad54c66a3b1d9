"""Turns of the whole process: the rate, and the pause after a 429."""

from collections.abc import Awaitable, Callable

import pytest

from service.upstream.rate_limiter import PAUSE_SECONDS, RateLimiter
from service.upstream.retry import RETRY_AFTER_CAP_SECONDS


class Clock:
    """A clock that only moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:  # noqa: D102
        return self.now

    async def sleep(self, seconds: float) -> None:  # noqa: D102
        self.slept.append(seconds)
        self.now += seconds


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        pytest.param(None, PAUSE_SECONDS, id="nothing asked"),
        pytest.param(3.5, 3.5, id="as asked"),
        pytest.param(1e6, RETRY_AFTER_CAP_SECONDS, id="up to the cap"),
        pytest.param(0.0, 0.0, id="not at all"),
    ],
)
async def test_one_429_pauses_everybody(asked: float | None, expected: float) -> None:
    """After a 429 the next turns of the process wait as long as it asks, within bounds, and then go on."""
    clock = Clock()
    politeness = RateLimiter(1000, clock=clock, sleep=clock.sleep)
    await politeness.turn()
    assert clock.slept == []
    assert politeness.pause(asked) == expected
    await politeness.turn()
    await politeness.turn()
    assert clock.slept == ([expected] if expected else [])


async def test_shorter_pause_does_not_end_a_longer_one() -> None:
    """Of two pauses the later end counts."""
    clock = Clock()
    politeness = RateLimiter(1000, clock=clock, sleep=clock.sleep)
    politeness.pause(10)
    politeness.pause(2)
    await politeness.turn()
    assert clock.slept == [10]


async def test_pause_that_grows_while_it_is_waited_for() -> None:
    """Who wakes from a pause and finds a new one waits on."""
    clock = Clock()

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        if len(clock.slept) == 1:
            politeness.pause(5)

    sleeper: Callable[[float], Awaitable[None]] = sleep
    politeness = RateLimiter(1000, clock=clock, sleep=sleeper)
    politeness.pause(1)
    await politeness.turn()
    assert clock.slept == [1, 5]
