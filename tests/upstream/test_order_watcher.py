"""Orders that are followed: how often they are looked at, in which order news count, and what ends the looks."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from itertools import pairwise

import pytest

from service.errors import UpstreamFailed
from service.model import Image, Order, Readiness
from service.upstream.order_watcher import (
    FIRST_PAUSE_SECONDS,
    JITTER,
    LEAST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    OrderWatcher,
    Subscription,
    pause_seconds,
)

ORDER = Order("o", "Order", busy=True, images=(Image("a", "a.jpg", Readiness.NOT_READY),))
LATER = replace(ORDER, images=(*ORDER.images, Image("b", "b.jpg", Readiness.NOT_READY)))
LATEST = replace(LATER, busy=False)


class Looks:
    """Answers the looks at an order one by one; each waits until it is let go."""

    def __init__(self, *answers: Order | Exception) -> None:
        self._answers = list(answers)
        self.gate = asyncio.Semaphore(0)
        self.begun = 0
        self.spans: list[tuple[float, float]] = []  # when each that was answered began and ended

    async def __call__(self, order_id: str, seconds: float) -> Order:
        """Look."""
        del order_id, seconds
        self.begun += 1
        began = now()
        await self.gate.acquire()
        self.spans.append((began, now()))
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def until(holds: Callable[[], bool]) -> None:
    """Let the event loop turn until a condition holds."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - what is waited for are turns of the loop
            await asyncio.sleep(0)


def now() -> float:
    """Return the event loop's time."""
    return asyncio.get_running_loop().time()


def following(
    orders: OrderWatcher, order: Order, asked: float | None = None
) -> AbstractAsyncContextManager[Subscription]:
    """Follow an order for long."""
    return orders.follow(order, now() if asked is None else asked, until=now() + 1000)


def test_looks_without_news_become_rarer() -> None:
    """Pauses grow from the first to the longest, and stay there however long nothing happens."""
    pauses = [pause_seconds(looks, 0.5) for looks in range(20)]
    assert (pauses[0], pauses[-1]) == (FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
    assert pauses == sorted(pauses)
    assert 3 <= pauses.index(LONGEST_PAUSE_SECONDS) <= 6
    assert pause_seconds(100_000, 0.5) == LONGEST_PAUSE_SECONDS


def test_looks_are_spread() -> None:
    """Chance moves each pause by as much as a quarter, to both sides."""
    for looks in (0, 3, 50):
        middle = pause_seconds(looks, 0.5)
        assert pause_seconds(looks, 0) == pytest.approx(middle * (1 - JITTER))
        assert pause_seconds(looks, 1) == pytest.approx(middle * (1 + JITTER))


async def test_news_reset_the_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """After news, and only then, the order is looked at often again; a failed look is none."""
    asked: list[int] = []

    def no_pause(looks_without_news: int, _chance: float) -> float:
        asked.append(looks_without_news)
        return 0.0

    monkeypatch.setattr("service.upstream.order_watcher.pause_seconds", no_pause)
    looks = Looks(ORDER, UpstreamFailed("no"), ORDER, LATER, LATER)
    async with following(OrderWatcher(looks), ORDER):
        for _ in range(5):
            looks.gate.release()
        await until(lambda: looks.begun == 6)
    assert asked == [0, 1, 2, 3, 0, 1]


async def test_an_older_look_is_no_news() -> None:
    """An answer that was long on its way makes nobody believe that what is known since then has gone."""
    looks = Looks(LATER, LATEST)
    orders = OrderWatcher(looks)
    before = now()
    async with following(orders, ORDER, before) as first:
        orders.wake("o")
        looks.gate.release()
        assert await first.next() == LATER
        async with following(orders, ORDER, before) as second:
            assert await second.next() == LATER, "who knows less is told at once"
            orders.wake("o")
            looks.gate.release()
            assert [await first.next(), await second.next()] == [LATEST] * 2


async def test_who_comes_later_brings_news() -> None:
    """The look-up that begins an archive counts for those that wait for the same order already."""
    orders = OrderWatcher(Looks())
    async with following(orders, ORDER) as first, following(orders, LATER) as second:
        assert await first.next() == LATER
        waiting = asyncio.create_task(second.next())
        await asyncio.sleep(0)
        assert not waiting.done(), "it has told this itself"
        orders.stop()
        assert await waiting is None


async def test_a_notice_during_a_look_makes_another() -> None:
    """What is said while a look is under way may not be in its answer."""
    looks = Looks(ORDER, LATER)
    orders = OrderWatcher(looks)
    async with following(orders, ORDER) as follower:
        orders.wake("o")
        await until(lambda: looks.begun == 1)
        assert orders.wake("o")
        looks.gate.release()
        looks.gate.release()
        while (order := await follower.next()) == ORDER:
            pass
        assert order == LATER


async def test_a_flood_of_notices_does_not_flood_the_upstream() -> None:
    """However many notices come, a pause lies between two looks; the first is made at once."""
    looks = Looks(ORDER, LATER, LATEST, LATEST)
    orders = OrderWatcher(looks)
    for _ in range(4):
        looks.gate.release()
    async with following(orders, ORDER):
        began = now()
        while len(looks.spans) < 4:
            assert orders.wake("o")
            await asyncio.sleep(0)
    assert looks.spans[0][0] - began < LEAST_PAUSE_SECONDS
    pauses = [after[0] - before[1] for before, after in pairwise(looks.spans)]
    # The loop may be early by the resolution of its clock.
    assert min(pauses) >= LEAST_PAUSE_SECONDS - 0.001


async def test_a_notice_during_the_pause_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single notice that comes right after a look makes another, although nothing else would."""
    monkeypatch.setattr("service.upstream.order_watcher.pause_seconds", lambda _looks, _chance: 1000.0)
    looks = Looks(LATER, LATEST)
    orders = OrderWatcher(looks)
    async with following(orders, ORDER) as follower, asyncio.timeout(10):
        orders.wake("o")
        looks.gate.release()
        assert await follower.next() == LATER
        orders.wake("o")
        looks.gate.release()
        assert looks.begun == 1
        assert await follower.next() == LATEST


async def test_a_look_that_finds_no_change() -> None:
    """It is passed on as well: that an order still lacks an image means more than that it lacked it once."""
    looks = Looks(ORDER, ORDER)
    orders = OrderWatcher(looks)
    async with following(orders, ORDER) as first, following(orders, ORDER) as second:
        for _ in range(2):
            orders.wake("o")
            looks.gate.release()
            assert [await first.next(), await second.next()] == [ORDER] * 2
    assert looks.begun == 2


async def test_one_look_at_a_time_for_all_who_follow() -> None:
    """The looks end with the last follower, not with the first."""
    looks = Looks(LATER)
    orders = OrderWatcher(looks)
    async with following(orders, ORDER) as staying:
        async with following(orders, ORDER):
            orders.wake("o")
            await until(lambda: looks.begun == 1)
        looks.gate.release()
        assert await staying.next() == LATER
    assert looks.begun == 1
    assert not orders.wake("o")


async def test_a_fault_of_ours_is_not_waited_out() -> None:
    """Looks that end by a mistake in the service end the waiting of all, and are not mistaken for no news."""
    looks = Looks(RuntimeError("a mistake"))
    orders = OrderWatcher(looks)
    async with following(orders, ORDER) as first, following(orders, ORDER) as second:
        orders.wake("o")
        looks.gate.release()
        for follower in (first, second):
            with pytest.raises(RuntimeError):
                await follower.next()


async def test_a_last_look_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stops waiting between two looks does not miss what has become ready since the first."""
    monkeypatch.setattr("service.upstream.order_watcher.pause_seconds", lambda _looks, _chance: 1000.0)
    looks = Looks(LATER)
    looks.gate.release()
    orders = OrderWatcher(looks)
    async with following(orders, ORDER), orders.follow(ORDER, now(), until=now() + 0.1) as leaving:
        assert await leaving.next() == LATER
        assert looks.begun == 1
