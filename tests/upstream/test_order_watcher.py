"""Polling of busy orders: pauses, stale responses, pokes, and what ends a subscription."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from itertools import pairwise

import pytest

from service.errors import UpstreamFailed
from service.model import Image, Order, Readiness
from service.upstream.order_watcher import (
    JITTER,
    MAX_PAUSE_SECONDS,
    MIN_PAUSE_SECONDS,
    MIN_POKED_PAUSE_SECONDS,
    OrderWatcher,
    Subscription,
    pause_seconds,
)

ORDER = Order("o", "Order", busy=True, images=(Image("a", "a.jpg", Readiness.NOT_READY),))
LATER = replace(ORDER, images=(*ORDER.images, Image("b", "b.jpg", Readiness.NOT_READY)))
LATEST = replace(LATER, busy=False)


class Api:
    """Returns the given orders one by one; each poll waits for one permit of ``gate``."""

    def __init__(self, *results: Order | Exception) -> None:
        self._results = list(results)
        self.gate = asyncio.Semaphore(0)
        self.polls = 0
        self.spans: list[tuple[float, float]] = []  # when each finished poll began and ended

    async def __call__(self, order_id: str, seconds: float) -> Order:
        """Fetch the order."""
        del order_id, seconds
        self.polls += 1
        began = now()
        await self.gate.acquire()
        self.spans.append((began, now()))
        result = self._results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result


async def until(holds: Callable[[], bool]) -> None:
    """Let the event loop turn until a condition holds."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - what is waited for are turns of the loop
            await asyncio.sleep(0)


def now() -> float:
    """Return the event loop's time."""
    return asyncio.get_running_loop().time()


def subscribe(
    watcher: OrderWatcher, order: Order, requested_at: float | None = None
) -> AbstractAsyncContextManager[Subscription]:
    """Subscribe to an order for a long time."""
    return watcher.subscribe(order, now() if requested_at is None else requested_at, until=now() + 1000)


def test_pause_grows_while_nothing_changes() -> None:
    """Pauses grow from the minimum to the maximum, and stay there however long nothing happens."""
    pauses = [pause_seconds(unchanged, 0.5) for unchanged in range(20)]
    assert (pauses[0], pauses[-1]) == (MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS)
    assert pauses == sorted(pauses)
    assert 3 <= pauses.index(MAX_PAUSE_SECONDS) <= 6
    assert pause_seconds(100_000, 0.5) == MAX_PAUSE_SECONDS


def test_pause_has_jitter() -> None:
    """Chance moves each pause by up to a quarter, in both directions."""
    for unchanged in (0, 3, 50):
        middle = pause_seconds(unchanged, 0.5)
        assert pause_seconds(unchanged, 0) == pytest.approx(middle * (1 - JITTER))
        assert pause_seconds(unchanged, 1) == pytest.approx(middle * (1 + JITTER))


async def test_change_resets_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a change, and only then, the order is polled often again; a failed poll is no change."""
    counts: list[int] = []

    def no_pause(unchanged_polls: int, _chance: float) -> float:
        counts.append(unchanged_polls)
        return 0.0

    monkeypatch.setattr("service.upstream.order_watcher.pause_seconds", no_pause)
    api = Api(ORDER, UpstreamFailed("no"), ORDER, LATER, LATER)
    async with subscribe(OrderWatcher(api), ORDER):
        for _ in range(5):
            api.gate.release()
        await until(lambda: api.polls == 6)
    assert counts == [0, 1, 2, 3, 0, 1]


async def test_stale_response_is_ignored() -> None:
    """A slow response to an early request does not undo what is known from a later one."""
    api = Api(LATER, LATEST)
    watcher = OrderWatcher(api)
    before = now()
    async with subscribe(watcher, ORDER, before) as first:
        watcher.poke("o")
        api.gate.release()
        assert await first.next() == LATER
        async with subscribe(watcher, ORDER, before) as second:
            assert await second.next() == LATER, "a stale subscriber gets the known state at once"
            watcher.poke("o")
            api.gate.release()
            assert [await first.next(), await second.next()] == [LATEST] * 2


async def test_new_subscriber_updates_the_others() -> None:
    """The request that begins an archive counts as a poll for those that wait for the same order already."""
    watcher = OrderWatcher(Api())
    async with subscribe(watcher, ORDER) as first, subscribe(watcher, LATER) as second:
        assert await first.next() == LATER
        waiting = asyncio.create_task(second.next())
        await asyncio.sleep(0)
        assert not waiting.done(), "it brought this state itself"
        watcher.stop()
        assert await waiting is None


async def test_stop_ends_present_and_later_subscriptions() -> None:
    """A subscriber that arrives after the stop keeps its own order and gets no other."""
    watcher = OrderWatcher(Api())
    async with subscribe(watcher, ORDER) as first:
        watcher.stop()
        async with subscribe(watcher, LATER) as second:
            assert [await first.next(), await second.next()] == [None, None]


async def test_poke_during_a_poll_causes_another() -> None:
    """The response under way may not contain the change yet."""
    api = Api(ORDER, LATER)
    watcher = OrderWatcher(api)
    async with subscribe(watcher, ORDER) as subscription:
        watcher.poke("o")
        await until(lambda: api.polls == 1)
        assert watcher.poke("o")
        api.gate.release()
        api.gate.release()
        while (order := await subscription.next()) == ORDER:
            pass
        assert order == LATER


async def test_many_pokes_do_not_flood_the_upstream() -> None:
    """However many pokes come, a pause lies between two polls; the first is sent at once."""
    api = Api(ORDER, LATER, LATEST, LATEST)
    watcher = OrderWatcher(api)
    for _ in range(4):
        api.gate.release()
    async with subscribe(watcher, ORDER):
        began = now()
        while len(api.spans) < 4:
            assert watcher.poke("o")
            await asyncio.sleep(0)
    assert api.spans[0][0] - began < MIN_POKED_PAUSE_SECONDS
    pauses = [after[0] - before[1] for before, after in pairwise(api.spans)]
    # The loop may be early by the resolution of its clock.
    assert min(pauses) >= MIN_POKED_PAUSE_SECONDS - 0.001


async def test_poke_during_the_pause_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single poke right after a poll causes another, although nothing else would."""
    monkeypatch.setattr("service.upstream.order_watcher.pause_seconds", lambda _unchanged, _chance: 1000.0)
    api = Api(LATER, LATEST)
    watcher = OrderWatcher(api)
    async with subscribe(watcher, ORDER) as subscription, asyncio.timeout(10):
        watcher.poke("o")
        api.gate.release()
        assert await subscription.next() == LATER
        watcher.poke("o")
        api.gate.release()
        assert api.polls == 1
        assert await subscription.next() == LATEST


async def test_unchanged_order_is_delivered() -> None:
    """That an order still lacks an image says more than that it lacked it once."""
    api = Api(ORDER, ORDER)
    watcher = OrderWatcher(api)
    async with subscribe(watcher, ORDER) as first, subscribe(watcher, ORDER) as second:
        for _ in range(2):
            watcher.poke("o")
            api.gate.release()
            assert [await first.next(), await second.next()] == [ORDER] * 2
    assert api.polls == 2


async def test_subscriptions_share_one_poll() -> None:
    """Polling ends with the last subscription, not with the first."""
    api = Api(LATER)
    watcher = OrderWatcher(api)
    async with subscribe(watcher, ORDER) as staying:
        async with subscribe(watcher, ORDER):
            watcher.poke("o")
            await until(lambda: api.polls == 1)
        api.gate.release()
        assert await staying.next() == LATER
    assert api.polls == 1
    assert not watcher.poke("o")


async def test_bug_in_a_poll_reaches_every_subscription() -> None:
    """Polling that ends by a bug ends all subscriptions with its error, not with the regular end."""
    api = Api(RuntimeError("a bug"))
    watcher = OrderWatcher(api)
    async with subscribe(watcher, ORDER) as first, subscribe(watcher, ORDER) as second:
        watcher.poke("o")
        api.gate.release()
        for subscription in (first, second):
            with pytest.raises(RuntimeError):
                await subscription.next()


async def test_last_poll_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscription that ends between two polls does not miss what has become ready since the first."""
    monkeypatch.setattr("service.upstream.order_watcher.pause_seconds", lambda _unchanged, _chance: 1000.0)
    api = Api(LATER)
    api.gate.release()
    watcher = OrderWatcher(api)
    async with subscribe(watcher, ORDER), watcher.subscribe(ORDER, now(), until=now() + 0.1) as leaving:
        assert await leaving.next() == LATER
        assert api.polls == 1
        assert await leaving.next() is None, "the subscription ends at its deadline"
