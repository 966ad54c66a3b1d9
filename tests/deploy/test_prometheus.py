"""A real Prometheus scrapes the real service: its numbers match the archives, and every query works.

``tests/test_chaos.py`` compares the numbers of a run with many faults.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from service.sandbox import PARTIAL_ORDER_ID, Fault, Kind, Sandbox
from tests.archives import add_order, images_url
from tests.deploy.observer import Observer, observing
from tests.deploy.shipped import dashboard_queries, rules, selectors
from tests.deploy.totals import ReceivedTotals, check_numbers
from tests.server.test_process import RunningService, service_process

ADMIN_TOKEN = "token-of-the-operator"
# The dashboard's annotations of restarts: queried, but there need not be one.
SELDOM = ("annotation / Starts / 0",)
# Queries that may be 0 during a busy minute of healthy archives; every other one must exceed 0 at some time in it.
QUIET = frozenset(
    {
        "Overview / Upstream failing / 0",
        "Upstream / Upstream failing, by replica / 0",
        "Upstream / Waiting for the rate limiter / 0",  # far below the limit of 250 requests a second
        "Clients / Waiting for clients / 0",
        "job:batch_client_blocked:ratio_rate5m",
        "Resources / Read-ahead / 0",  # held for moments only
        "instance:batch_read_ahead:ratio",
        "Resources / Garbage collections / 0",  # of the oldest generation
        "Archives / What archives wait for / 0",
        "Uploads / SSE connections / 0",
        "Resources / Log lines dropped / 0",  # only if the reader of the log stalls
    }
)
# More than the buffers between service and client hold, so that connections break in the middle of an entry.
SIZE = 300_000


@dataclass(slots=True)
class Downloader:
    """Downloads archives of one service, and counts what it has received."""

    client: aiohttp.ClientSession
    url: str
    totals: ReceivedTotals = field(default_factory=ReceivedTotals)

    async def fetch(self, order_id: str, query: str = "?manifest=always") -> int:
        """Download an archive; return the status."""
        async with self.client.get(images_url(self.url, order_id, query)) as response:
            self.totals.add(response.status, await response.read())
        return response.status


def faulty_order(sandbox: Sandbox) -> str:
    """Add an order whose images are interrupted, resumed in every way, and fail for several reasons."""
    order = add_order(sandbox, [SIZE] * 8)
    ids = [image.image_id for image in order.images]
    cut = Fault(Kind.RESET, after_bytes=SIZE // 2)
    sandbox.faults.script(ids[1], [cut])
    sandbox.faults.script(ids[2], [cut, Fault(Kind.NO_RANGES)])
    sandbox.faults.script(ids[3], [Fault(Kind.STATUS, status=429, retry_after=0)], origin="api")
    sandbox.faults.always(ids[4], Fault(Kind.STATUS, status=404), origin="api")
    sandbox.faults.always(ids[5], Fault(Kind.STATUS, status=503))
    sandbox.faults.always(ids[6], Fault(Kind.HTML))
    sandbox.faults.always(ids[7], Fault(Kind.CLOSE_EARLY, after_bytes=1000))
    return order.order_id


def changing_order(sandbox: Sandbox) -> str:
    """Add an order whose image changes after a broken connection, so that its entry is rolled back."""
    order = add_order(sandbox, [SIZE])
    sandbox.faults.script(order.images[0].image_id, [Fault(Kind.RESET, after_bytes=SIZE - 1), Fault(Kind.CHANGED)])
    return order.order_id


def failing_order(sandbox: Sandbox) -> str:
    """Add an order of which no image is available."""
    order = add_order(sandbox, [SIZE] * 2)
    for image in order.images:
        sandbox.faults.always(image.image_id, Fault(Kind.STATUS, status=404), origin="api")
    return order.order_id


@asynccontextmanager
async def scraped_service(
    sandbox: Sandbox, client: aiohttp.ClientSession, folder: Path
) -> AsyncIterator[tuple[RunningService, Observer]]:
    """Start the service with MAX_ARCHIVES=1, and a Prometheus that has scraped it twice before the test."""
    async with (
        service_process(sandbox, MAX_ARCHIVES="1", ALLOW_FULL_QUALITY="true", ADMIN_TOKEN=ADMIN_TOKEN) as service,
        observing(client, service.url, folder) as observer,
    ):
        await observer.scrapes.next()
        await observer.scrapes.next()
        yield service, observer


async def test_numbers_match_the_archives(sandbox: Sandbox, client: aiohttp.ClientSession, tmp_path: Path) -> None:
    """Images, reasons, bytes and outcomes in Prometheus are exactly those that the client has received."""
    async with scraped_service(sandbox, client, tmp_path) as (service, observer):
        downloader = Downloader(client, service.url)
        plain, faulty = add_order(sandbox, [SIZE] * 3).order_id, faulty_order(sandbox)
        for order_id in (plain, faulty, plain, PARTIAL_ORDER_ID, changing_order(sandbox), failing_order(sandbox)):
            await downloader.fetch(order_id)
        assert await downloader.fetch("not-an-order") == 400
        await check_numbers(downloader.totals, observer)
        assert len(downloader.totals.images) >= 5, downloader.totals.images
        for recovery in ('resumes_total{method="range"}', 'resumes_total{method="replay"}', "rollbacks_total"):
            (count,) = (await observer.query(f"batch_image_{recovery}")).values()
            assert count >= 1, recovery


async def test_every_query_has_values(sandbox: Sandbox, client: aiohttp.ClientSession, tmp_path: Path) -> None:
    """After a busy minute every panel has values, every rule is healthy, and every queried series exists."""
    queries = dashboard_queries() | {name: str(rule["expr"]) for name, rule in rules("record").items()}
    assert queries.keys() >= QUIET | {*SELDOM}
    seldom = {where: queries.pop(where) for where in SELDOM}
    empty, nonzero = set(queries), set(QUIET)
    async with scraped_service(sandbox, client, tmp_path) as (service, observer):

        async def collect() -> bool:
            for where, query in queries.items():
                numbers = [value for value in (await observer.query(query)).values() if not math.isnan(value)]
                empty.discard(where) if numbers else empty.add(where)
                nonzero.update([where] if any(numbers) else [])
            return not empty and nonzero >= queries.keys()

        downloader = Downloader(client, service.url)
        bought = add_order(sandbox, [SIZE] * 2).order_id
        for order_id, query in ((faulty_order(sandbox), ""), (changing_order(sandbox), ""), (bought, "&preview=false")):
            assert await downloader.fetch(order_id, f"?manifest=always{query}") == 200
        sandbox.faults.order(bought, [Fault(Kind.NOT_JSON)])
        assert await downloader.fetch(bought) == 502
        headers = {"X-Admin-Token": ADMIN_TOKEN}
        async with client.post(f"{service.url}/api/create-sample-order", headers=headers) as response:
            assert response.status == 201
        await _hold_one_and_reject_one(sandbox, downloader, observer, collect)
        await observer.until(collect, lambda: f"no values: {empty}; always 0: {queries.keys() - nonzero}")
        for query in seldom.values():
            await observer.query(query)
        for rule in rules("alert").values():
            await observer.query(str(rule["expr"]))
            for name, matchers in selectors(str(rule["expr"])):
                assert await observer.query(f"{name}{matchers}"), (rule["alert"], name, matchers)
        (target,) = (await observer.get("targets"))["activeTargets"]
        assert (target["labels"]["job"], target["health"]) == ("batch-downloader", "up")
        states = {
            rule["name"]: rule["health"] for group in (await observer.get("rules"))["groups"] for rule in group["rules"]
        }
        assert states == dict.fromkeys([*rules("record"), *rules("alert")], "ok")


async def _hold_one_and_reject_one(
    sandbox: Sandbox, downloader: Downloader, observer: Observer, collect: Callable[[], Awaitable[object]]
) -> None:
    """Keep an archive open during a few scrapes while others are rejected; collect after each scrape."""
    order = add_order(sandbox, [SIZE] * 2)
    gate = sandbox.faults.pause(order.images[0].image_id, after_bytes=SIZE // 2)
    held = asyncio.create_task(downloader.fetch(order.order_id))
    await gate.reached.wait()
    for _ in range(3):
        assert await downloader.fetch(order.order_id) == 503
        await observer.scrapes.next()
        await collect()
    gate.release()
    assert await held == 200
