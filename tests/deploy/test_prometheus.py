"""A real Prometheus scrapes the real service: its numbers are those of the archives, and every query works."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from service.sandbox import PARTIAL_ORDER_ID, Fault, Kind, Sandbox
from tests.archives import add_order, entries, images_url, manifest_in
from tests.deploy.observer import Observer, observing
from tests.deploy.shipped import dashboard_queries, rules, selectors
from tests.test_process import RunningService, service_process

# The dashboard's marks of restarts: asked for, but there need not be one.
SELDOM = ("annotation / Starts / 0",)
# More than the buffers on the way to the caller hold at once, so that breaks come in the middle of an entry.
SIZE = 300_000


@dataclass(slots=True)
class Truth:
    """What the callers received, from the archives' own manifests and from the refusals."""

    images: Counter[tuple[str, str]] = field(default_factory=Counter)
    image_bytes: int = 0
    archive_bytes: int = 0
    archives: Counter[str] = field(default_factory=Counter)

    def add_archive(self, data: bytes) -> None:
        """Count a delivered archive."""
        manifest = manifest_in(entries(data))
        for image in manifest["images"]:
            self.images[image["outcome"], image.get("reason") or ""] += 1
            self.image_bytes += image.get("size") or 0
        self.archive_bytes += len(data)
        self.archives["partial" if manifest["counts"]["failed"] else "complete"] += 1

    def add_refusal(self, body: bytes) -> None:
        """Count a problem document."""
        failures = json.loads(body).get("failures", [])
        self.images.update(("failed", failure["reason"]) for failure in failures)
        self.archives["none" if failures else "rejected"] += 1


@dataclass(slots=True)
class Caller:
    """Downloads archives of one service, and keeps what came of them."""

    client: aiohttp.ClientSession
    url: str
    truth: Truth = field(default_factory=Truth)

    async def fetch(self, order_id: str, query: str = "?manifest=always") -> int:
        """Ask for an archive; return the status."""
        async with self.client.get(images_url(self.url, order_id, query)) as response:
            body = await response.read()
        if response.status == 200:
            self.truth.add_archive(body)
        else:
            self.truth.add_refusal(body)
        return response.status


def faulty_order(sandbox: Sandbox) -> str:
    """Add an order in which images break, come back in every way, and fail for several reasons."""
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
    """Add an order whose one image is another one after a break, so that its entry is rolled back."""
    order = add_order(sandbox, [SIZE])
    sandbox.faults.script(order.images[0].image_id, [Fault(Kind.RESET, after_bytes=SIZE - 1), Fault(Kind.CHANGED)])
    return order.order_id


def hopeless_order(sandbox: Sandbox) -> str:
    """Add an order of which nothing can be had."""
    order = add_order(sandbox, [SIZE] * 2)
    for image in order.images:
        sandbox.faults.always(image.image_id, Fault(Kind.STATUS, status=404), origin="api")
    return order.order_id


@asynccontextmanager
async def watched_service(
    sandbox: Sandbox, client: aiohttp.ClientSession, folder: Path
) -> AsyncIterator[tuple[RunningService, Observer]]:
    """Start the service, with room for one archive, and a Prometheus that has seen it twice before anything happens."""
    async with (
        service_process(sandbox, MAX_ARCHIVES="1") as service,
        observing(client, service.url, folder) as observer,
    ):
        await observer.scrapes.next()
        await observer.scrapes.next()
        yield service, observer


async def test_numbers_are_those_of_the_archives(
    sandbox: Sandbox, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """What Prometheus says of images, reasons, bytes and outcomes is exactly what the callers received."""
    async with watched_service(sandbox, client, tmp_path) as (service, observer):
        caller = Caller(client, service.url)
        plain, faulty = add_order(sandbox, [SIZE] * 3).order_id, faulty_order(sandbox)
        for order_id in (plain, faulty, plain, PARTIAL_ORDER_ID, changing_order(sandbox), hopeless_order(sandbox)):
            await caller.fetch(order_id)
        assert await caller.fetch("not-an-order") == 400
        truth = caller.truth
        assert len(truth.images) >= 5, truth.images

        async def everything_is_there() -> bool:
            ended = await observer.ask("sum(batch_archives_total)")
            return ended == {(): truth.archives.total()}

        await observer.until(everything_is_there, lambda: f"not all of {truth.archives} are there")
        images = await observer.ask("sum by (outcome, reason) (batch_images_total) > 0")
        assert {_both(key): count for key, count in images.items()} == truth.images
        assert await observer.ask("sum by (outcome) (batch_archives_total) > 0") == {
            (outcome,): count for outcome, count in truth.archives.items()
        }
        assert await observer.ask("sum(batch_image_bytes_total)") == {(): truth.image_bytes}
        assert await observer.ask("sum(batch_archive_bytes_total)") == {(): truth.archive_bytes}
        assert await observer.ask("sum(batch_image_size_bytes_sum)") == {(): truth.image_bytes}
        for recovery in ('resumes_total{method="range"}', 'resumes_total{method="replay"}', "rollbacks_total"):
            (count,) = (await observer.ask(f"batch_image_{recovery}")).values()
            assert count >= 1, recovery


def _both(labels: tuple[str, ...]) -> tuple[str, str]:
    """An empty label is none at all to Prometheus."""
    outcome, reason = (*labels, "")[:2]
    return outcome, reason


async def test_every_query_is_answered(sandbox: Sandbox, client: aiohttp.ClientSession, tmp_path: Path) -> None:
    """Every panel has data after a busy minute, every rule is healthy, and every series that they ask for exists."""
    async with watched_service(sandbox, client, tmp_path) as (service, observer):
        caller = Caller(client, service.url)
        await caller.fetch(faulty_order(sandbox))
        await caller.fetch(changing_order(sandbox))
        await caller.fetch(add_order(sandbox, [SIZE] * 2).order_id, "?manifest=always&preview=false")
        await _hold_one_and_refuse_one(sandbox, caller, observer)

        queries = dashboard_queries() | {name: str(rule["expr"]) for name, rule in rules("record").items()}
        for where in SELDOM:
            await observer.ask(queries.pop(where))
        silent: dict[str, str] = {}

        async def all_queries_have_data() -> bool:
            silent.clear()
            silent.update({where: query for where, query in queries.items() if not await observer.ask(query)})
            return not silent

        await observer.until(all_queries_have_data, lambda: f"no data: {silent}")
        for rule in rules("alert").values():
            await observer.ask(str(rule["expr"]))
            for name, matchers in selectors(str(rule["expr"])):
                assert await observer.ask(f"{name}{matchers}"), (rule["alert"], name, matchers)
        (target,) = (await observer.get("targets"))["activeTargets"]
        assert (target["labels"]["job"], target["health"]) == ("batch-downloader", "up")
        states = {
            rule["name"]: rule["health"] for group in (await observer.get("rules"))["groups"] for rule in group["rules"]
        }
        assert states == dict.fromkeys([*rules("record"), *rules("alert")], "ok")


async def _hold_one_and_refuse_one(sandbox: Sandbox, caller: Caller, observer: Observer) -> None:
    """Keep an archive open over a few scrapes, while the service has no room for another."""
    order = add_order(sandbox, [SIZE] * 2)
    gate = sandbox.faults.pause(order.images[0].image_id, after_bytes=SIZE // 2)
    held = asyncio.create_task(caller.fetch(order.order_id))
    await gate.reached.wait()
    for _ in range(3):
        assert await caller.fetch(order.order_id) == 503
        await observer.scrapes.next()
    gate.release()
    assert await held == 200
