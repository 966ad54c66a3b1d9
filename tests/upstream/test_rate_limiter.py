"""The rate limiter: the rate, and the pause after a 429."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from service.upstream.rate_limiter import PAUSE_SECONDS, WINDOW_SECONDS, RateLimiter
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


async def test_turn_is_taken_without_waiting_within_the_rate() -> None:
    """As many turns as one window has are there at once, whether they are waited for or not; the next is not."""
    limiter = RateLimiter(4 / WINDOW_SECONDS, clock=asyncio.get_running_loop().time)
    assert limiter.try_acquire()
    await limiter.acquire()
    assert [limiter.try_acquire() for _ in range(3)] == [True, True, False]


async def test_no_turn_is_taken_during_a_pause() -> None:
    """A 429 pauses requests that would not wait, too."""
    clock = Clock()
    limiter = RateLimiter(1000, clock=clock, sleep=clock.sleep)
    limiter.pause(2)
    assert not limiter.try_acquire()
    clock.now += 1.9
    assert not limiter.try_acquire()
    clock.now += 0.1
    assert limiter.try_acquire()


async def test_turn_is_not_taken_before_those_that_wait() -> None:
    """While a request waits for its turn no other overtakes it, not even when there is a turn for it."""
    clock = Clock()
    paused, wake = asyncio.Event(), asyncio.Event()

    async def sleep(seconds: float) -> None:
        paused.set()
        await wake.wait()
        clock.now += seconds

    limiter = RateLimiter(1000, clock=clock, sleep=sleep)
    limiter.pause(1)
    waiting = asyncio.create_task(limiter.acquire())
    await paused.wait()
    clock.now += 1  # the pause is over, but the request that waits has not been woken
    assert not limiter.try_acquire()
    wake.set()
    assert await waiting >= 1
    assert limiter.try_acquire()


async def test_turns_are_taken_in_their_order() -> None:
    """Requests that wait for the rate get their turns first come, first served; a cancelled one holds up no other."""
    limiter = RateLimiter(1 / WINDOW_SECONDS, clock=asyncio.get_running_loop().time)
    assert limiter.try_acquire()
    order: list[int] = []

    async def wait(number: int) -> None:
        await limiter.acquire()
        assert not limiter.try_acquire()
        order.append(number)

    tasks = [asyncio.create_task(wait(number)) for number in range(4)]
    await asyncio.sleep(0)
    assert not limiter.try_acquire()
    tasks[1].cancel()
    await asyncio.wait(tasks)
    assert order == [0, 2, 3]
