"""A real Prometheus scrapes the real service: its numbers are those of the archives, and every query works."""

import asyncio
import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp

from service.model import Reason
from service.sandbox import PARTIAL_ORDER_ID, Fault, Kind, Sandbox
from tests.archives import add_order, entries, images_url, manifest_in
from tests.chaos.evidence import Ending
from tests.chaos.run import SERVICE_SETTINGS, Theatre
from tests.chaos.scenario import Manners, Scenario, make_scenario
from tests.chaos.tally import Tally, events_of
from tests.deploy.observer import Observer, observing
from tests.deploy.shipped import dashboard_queries, rules, selectors
from tests.server.test_process import RunningService, service_process

OPERATOR = "token-of-the-operator"
# The dashboard's marks of restarts: asked for, but there need not be one.
SELDOM = ("annotation / Starts / 0",)
# What a busy minute of healthy archives leaves at 0; every other query must have more to show at some time in it.
QUIET = frozenset(
    {
        "Overview / Breakers open / 0",
        "Upstream / UpstreamHealth / 0",
        "Upstream / Waiting for a turn / 0",  # which the limit of 250 requests a second is far from
        "Clients / Waiting for clients / 0",
        "job:batch_client_blocked:ratio_rate5m",
        "Resources / Read-ahead / 0",  # held for moments only
        "instance:batch_read_ahead:ratio",
        "Resources / Garbage collections / 0",  # of the oldest generation
        "Archives / What archives wait for / 0",
        "Uploads / Watchers / 0",
    }
)
# More than the buffers on the way to the caller hold at once, so that breaks come in the middle of an entry.
SIZE = 300_000
# An order in which every image is one of these is refused as it is.
NOT_ASKED_FOR = frozenset({Reason.NOT_READY, Reason.PROCESSING_FAILED, Reason.EXPIRED})
CHAOS_SEED, CHAOS_ARCHIVES, CHAOS_CALLERS = 11, 24, 8
# What is counted and logged at the same moment: by the log's event and the way of a resume.
COUNTED_AND_LOGGED = {
    ("image.retried", ""): "sum(batch_image_retries_total)",
    ("image.resumed", "range"): 'sum(batch_image_resumes_total{method="range"})',
    ("image.resumed", "replay"): 'sum(batch_image_resumes_total{method="replay"})',
    ("image.rolled_back", ""): "sum(batch_image_rollbacks_total)",
    ("archive.finished", ""): "sum(batch_archives_total)",
}


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
        """Count a problem document: images were asked for only if one of them might have come."""
        document = json.loads(body)
        reasons = [failure["reason"] for failure in document.get("failures", [])]
        if "failures" not in document or (reasons and NOT_ASKED_FOR.issuperset(reasons)):
            self.archives["rejected"] += 1
            return
        self.images.update(("failed", reason) for reason in reasons)
        self.archives["failed"] += 1


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
        service_process(sandbox, MAX_ARCHIVES="1", ALLOW_FULL_QUALITY="true", ADMIN_TOKEN=OPERATOR) as service,
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
        await _prometheus_says(caller.truth, observer)
        assert len(caller.truth.images) >= 5, caller.truth.images
        for recovery in ('resumes_total{method="range"}', 'resumes_total{method="replay"}', "rollbacks_total"):
            (count,) = (await observer.ask(f"batch_image_{recovery}")).values()
            assert count >= 1, recovery


async def test_numbers_are_those_of_a_chaos_run(
    client: aiohttp.ClientSession, tmp_path: Path, nothing_left_behind: None
) -> None:
    """While everything goes wrong for several callers at once, Prometheus's numbers are those of all the manifests."""
    del nothing_left_behind
    truth, tally = Truth(), Tally(CHAOS_SEED)
    async with (
        Sandbox(rate_limit=None) as sandbox,
        service_process(sandbox, **SERVICE_SETTINGS) as service,
        observing(client, service.url, tmp_path) as observer,
    ):
        await observer.scrapes.next()
        theatre, formats = Theatre(sandbox, service.url, tally, None), sorted(sandbox.formats)
        scenarios = (make_scenario(CHAOS_SEED, number, formats) for number in range(1, CHAOS_ARCHIVES + 1))
        async with asyncio.TaskGroup() as callers:
            for _ in range(CHAOS_CALLERS):
                callers.create_task(_play(theatre, scenarios, truth))
        assert tally.flaws == {}, tally.table()
        await _prometheus_says(truth, observer)
        assert len(truth.images) >= 5, truth.images
        assert truth.archives.keys() >= {"complete", "partial", "rejected"}, truth.archives
        told = {event: await observer.ask(query) for event, query in COUNTED_AND_LOGGED.items()}
        assert await service.stop() == 0
    logged = Counter((str(one["event"]), str(one.get("method", ""))) for one in events_of(service.lines))
    assert told == {event: {(): logged[event]} for event in COUNTED_AND_LOGGED}
    assert all(logged[event] for event in COUNTED_AND_LOGGED)


async def _play(theatre: Theatre, scenarios: Iterable[Scenario], truth: Truth) -> None:
    """Make archives one after another, as a caller that stays to the end: so each tells what it holds."""
    for scenario in scenarios:
        stays = scenario.manners if scenario.manners.leave_after_bytes is None else Manners()
        arrived = await theatre.play(replace(scenario, abort=False, manifest_always=True, manners=stays))
        assert arrived.ending is Ending.CLEAN, scenario
        add = truth.add_archive if arrived.status == 200 else truth.add_refusal
        add(bytes(arrived.body))


async def _prometheus_says(truth: Truth, observer: Observer) -> None:
    """Wait until Prometheus knows of every archive; its numbers are then exactly those that the callers received."""

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


def _both(labels: tuple[str, ...]) -> tuple[str, str]:
    """An empty label is none at all to Prometheus."""
    outcome, reason = (*labels, "")[:2]
    return outcome, reason


async def test_every_query_is_answered(sandbox: Sandbox, client: aiohttp.ClientSession, tmp_path: Path) -> None:
    """Every panel has numbers after a busy minute, every rule is healthy, and every series that they ask for exists."""
    queries = dashboard_queries() | {name: str(rule["expr"]) for name, rule in rules("record").items()}
    assert queries.keys() >= QUIET | {*SELDOM}
    seldom = {where: queries.pop(where) for where in SELDOM}
    silent, moved = set(queries), set(QUIET)
    async with watched_service(sandbox, client, tmp_path) as (service, observer):

        async def look() -> bool:
            for where, query in queries.items():
                numbers = [value for value in (await observer.ask(query)).values() if not math.isnan(value)]
                silent.discard(where) if numbers else silent.add(where)
                moved.update([where] if any(numbers) else [])
            return not silent and moved >= queries.keys()

        caller = Caller(client, service.url)
        bought = add_order(sandbox, [SIZE] * 2).order_id
        for order_id, query in ((faulty_order(sandbox), ""), (changing_order(sandbox), ""), (bought, "&preview=false")):
            assert await caller.fetch(order_id, f"?manifest=always{query}") == 200
        sandbox.faults.order(bought, [Fault(Kind.NOT_JSON)])
        assert await caller.fetch(bought) == 502
        headers = {"X-Admin-Token": OPERATOR}
        async with client.post(f"{service.url}/api/create-sample-order", headers=headers) as response:
            assert response.status == 201
        await _hold_one_and_refuse_one(sandbox, caller, observer, look)
        await observer.until(look, lambda: f"no numbers: {silent}; always 0: {queries.keys() - moved}")
        for query in seldom.values():
            await observer.ask(query)
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


async def _hold_one_and_refuse_one(
    sandbox: Sandbox, caller: Caller, observer: Observer, look: Callable[[], Awaitable[object]]
) -> None:
    """Keep an archive open over a few scrapes, while the service has no room for another; look after each."""
    order = add_order(sandbox, [SIZE] * 2)
    gate = sandbox.faults.pause(order.images[0].image_id, after_bytes=SIZE // 2)
    held = asyncio.create_task(caller.fetch(order.order_id))
    await gate.reached.wait()
    for _ in range(3):
        assert await caller.fetch(order.order_id) == 503
        await observer.scrapes.next()
        await look()
    gate.release()
    assert await held == 200
