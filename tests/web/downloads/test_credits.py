"""Credits: bought only when asked for, never above the caller's bound, never twice, and not for who has gone."""

import asyncio
import json
import uuid

import aiohttp
import pytest
from structlog.testing import capture_logs

from service.archive.report import REPORT_NAME
from service.sandbox import DEMO_ORDER_ID, Fault, Kind, Sandbox
from tests.archives import add_order, download, entries, failures_in, images_url, manifest_in
from tests.conftest import StartService


@pytest.mark.parametrize(
    ("query", "status", "credits_spent"),
    [
        pytest.param("?preview=false&max_credits=2", 402, 0, id="one too few"),
        pytest.param("?preview=false&max_credits=0", 402, 0, id="none"),
        pytest.param("?preview=false&max_credits=3", 200, 3, id="just enough"),
        pytest.param("?preview=false", 200, 3, id="no bound"),
        pytest.param("?max_credits=0", 200, 0, id="previews are free"),
        pytest.param("?preview=false&dev_mode=true&max_credits=0", 200, 0, id="dev mode is free"),
    ],
)
async def test_max_credits(
    query: str, status: int, credits_spent: int, sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """A download that would cost more is refused before anything is bought."""
    order = add_order(sandbox, [100, 200, 300])
    async with client.get(images_url(service, order.order_id, query)) as response:
        body = await response.read()
    assert (response.status, sandbox.credits_spent) == (status, credits_spent)
    if status == 402:
        problem = json.loads(body)
        assert (problem["type"], problem["credits"]) == ("/problems/credits-exceeded", 3)


async def test_what_is_paid_costs_nothing_more(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """The bound counts what must still be bought; all that the service tells of it agrees with the ledger."""
    order = add_order(sandbox, [100, 200, 300])
    query = "?preview=false&manifest=always&max_credits="
    for query_of_one, bought in ((f"{query}1&only={order.images[0].image_id}", 1), (f"{query}2", 2), (f"{query}0", 0)):
        before = sandbox.credits_spent
        with capture_logs() as lines:
            async with client.get(images_url(service, order.order_id, query_of_one)) as response:
                files = entries(await response.read())
        (finished,) = [line for line in lines if line["event"] == "archive.finished"]
        async with client.get(f"{service}/archives/{response.headers['X-Archive-Id']}") as answer:
            receipt = await answer.json()
        told = (manifest_in(files)["credits_spent"], receipt["credits_spent"], finished["credits_spent"])
        assert told == (bought,) * 3 == (sandbox.credits_spent - before,) * 3
        assert (f"full quality for it: {bought}." in files[REPORT_NAME].decode()) is bool(bought)
    async with client.get(f"{service}/metrics") as answer:
        assert "batch_credits_spent_total 3.0" in await answer.text()
    assert sandbox.ledger == {image.image_id: 1 for image in order.images}


async def test_nothing_else_buys(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """HEAD, a look at the order, the page and its pictures, receipts, health and metrics touch no paid image."""
    order = add_order(sandbox, [100])
    async with client.head(images_url(service, order.order_id, "?preview=false")) as response:
        assert response.status == 200
    archive_id = str(uuid.uuid4())
    await download(client, images_url(service, order.order_id, f"?archive_id={archive_id}"))
    for path in (
        f"/orders/{order.order_id}?preview=false",
        "/",
        f"/?order={order.order_id}",
        "/api/page",
        f"/images/{order.images[0].image_id}/preview",
        f"/archives/{archive_id}",
        f"/archives/{archive_id}/events",
        "/docs",
        "/openapi.json",
        "/health",
        "/health/live",
        "/health/ready",
        "/metrics",
        "/api/stats",
    ):
        async with client.get(service + path) as response:
            assert response.status == 200, path
            await response.read()
    asked = sandbox.requests_for(order.images[0].image_id, "api")
    assert [one.query.get("preview") for one in asked] == ["true", "true"], "the download, and the picture"
    assert sandbox.credits_spent == 0


async def test_an_image_is_asked_for_once(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """Without faults each image is asked for once in full quality: if each request cost, no more were paid."""
    sandbox.repeats_cost = True
    order = add_order(sandbox, [100] * 12)
    await download(client, images_url(service, order.order_id, "?preview=false"))
    assert sandbox.ledger == {image.image_id: 1 for image in order.images}


@pytest.mark.parametrize(
    ("kind", "tries"), [(Kind.RESET, 3), (Kind.CLOSE_EARLY, 3), (Kind.CHANGED, 2), (Kind.NO_RANGES, 2)]
)
async def test_an_image_is_bought_once(
    kind: Kind, tries: int, sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """Retries, resumes and replays are one purchase to us, and each try asks once: for a break that it mends.

    That the API does not charge for what is paid is its own rule, so here it does: the ledger counts what is asked for.
    """
    sandbox.repeats_cost = True
    order = add_order(sandbox, [50_000, 60_000])
    for image in order.images:
        sandbox.faults.script(image.image_id, [Fault(Kind.RESET, after_bytes=1000), Fault(kind)])
    async with client.get(images_url(service, order.order_id, "?preview=false")) as response:
        await response.read()
        archive_id = response.headers["X-Archive-Id"]
    async with client.get(f"{service}/archives/{archive_id}") as response:
        receipt = await response.json()
    assert (receipt["credits_spent"], receipt["state"]) == (2, "complete")
    assert sandbox.ledger == {image.image_id: tries for image in order.images}


async def test_an_image_that_is_paid_is_free_by_the_upstreams_rule(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """A second download asks for every image again: the API's flag ``downloaded`` is all that makes it free."""
    order = add_order(sandbox, [100, 200])
    for repeats_cost, spent in ((False, 2), (False, 2), (True, 4)):
        sandbox.repeats_cost = repeats_cost
        await download(client, images_url(service, order.order_id, "?preview=false"))
        assert sandbox.credits_spent == spent
    assert all(image.downloaded for image in order.images)


async def test_what_is_bought_and_then_lost_is_counted(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """An image that the API has granted is bought, also if it never came: manifest, receipt and metric say so."""
    order = add_order(sandbox, [50_000, 60_000])
    sandbox.faults.script(order.images[1].image_id, [Fault(Kind.RESET)] * 10)
    async with client.get(images_url(service, order.order_id, "?preview=false")) as response:
        files = entries(await response.read())
        archive_id = response.headers["X-Archive-Id"]
    assert list(failures_in(files).values()) == ["connection_lost"]
    async with client.get(f"{service}/archives/{archive_id}") as response:
        receipt = await response.json()
    async with client.get(f"{service}/metrics") as response:
        metrics = await response.text()
    assert sandbox.ledger == {image.image_id: 1 for image in order.images}
    assert (manifest_in(files)["credits_spent"], receipt["credits_spent"]) == (2, 2)
    assert "batch_credits_spent_total 2.0" in metrics


async def test_nothing_is_bought_for_who_has_gone(sandbox: Sandbox, start_service: StartService) -> None:
    """When the client leaves, what is in flight is all that was bought."""
    service = await start_service(images_in_flight=2)
    order = add_order(sandbox, [200_000] * 12)
    gates = [sandbox.faults.pause(image.image_id, after_bytes=1000) for image in order.images[:2]]
    async with aiohttp.ClientSession() as leaving:
        asking = asyncio.create_task(leaving.get(images_url(service, order.order_id, "?preview=false")))
        await sandbox.wait_until(lambda: len([one for one in sandbox.requests if one.origin == "storage"]) == 2)
        asking.cancel()
        await asyncio.wait([asking])
    for gate in gates:
        gate.release()
    await sandbox.wait_until(lambda: sandbox.active_requests == 0)
    async with aiohttp.ClientSession() as another:
        await download(another, images_url(service, DEMO_ORDER_ID))
        async with another.get(f"{service}/metrics") as response:
            assert "batch_credits_spent_total 2.0" in await response.text()
    assert sandbox.credits_spent == 2
