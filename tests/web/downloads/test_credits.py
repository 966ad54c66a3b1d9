"""Credits: spent only in full quality, never above ``max_credits``, never twice, and not after a disconnect."""

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
async def test_download_above_max_credits_is_rejected(
    query: str, status: int, credits_spent: int, sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """A download that would cost more is rejected before an image is bought."""
    order = add_order(sandbox, [100, 200, 300])
    async with client.get(images_url(service, order.order_id, query)) as response:
        body = await response.read()
    assert (response.status, sandbox.credits_spent) == (status, credits_spent)
    if status == 402:
        problem = json.loads(body)
        assert (problem["type"], problem["credits"]) == ("/problems/credits-exceeded", 3)


async def test_bought_images_cost_nothing(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """``max_credits`` counts images not bought yet; manifest, receipt, log, report and metrics match the ledger."""
    order = add_order(sandbox, [100, 200, 300])
    query = "?preview=false&manifest=always&max_credits="
    for query_of_one, bought in ((f"{query}1&only={order.images[0].image_id}", 1), (f"{query}2", 2), (f"{query}0", 0)):
        before = sandbox.credits_spent
        with capture_logs() as lines:
            async with client.get(images_url(service, order.order_id, query_of_one)) as response:
                files = entries(await response.read())
        (finished,) = [line for line in lines if line["event"] == "archive.finished"]
        async with client.get(f"{service}/archives/{response.headers['X-Archive-Id']}") as receipt_response:
            receipt = await receipt_response.json()
        reported = (manifest_in(files)["credits_spent"], receipt["credits_spent"], finished["credits_spent"])
        assert reported == (bought,) * 3 == (sandbox.credits_spent - before,) * 3
        assert (f"full quality for it: {bought}." in files[REPORT_NAME].decode()) is bool(bought)
    async with client.get(f"{service}/metrics") as response:
        assert "batch_credits_spent_total 3.0" in await response.text()
    assert sandbox.ledger == {image.image_id: 1 for image in order.images}


async def test_other_requests_buy_nothing(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """HEAD, order summary, page, thumbnails, receipts, health and metrics request no image in full quality."""
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
    requests = sandbox.requests_for(order.images[0].image_id, "api")
    assert [one.query.get("preview") for one in requests] == ["true", "true"], "the download, and the thumbnail"
    assert sandbox.credits_spent == 0


async def test_image_is_requested_once(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """Without faults each image is requested once in full quality: an API that charges repeats charges once."""
    sandbox.repeats_cost = True
    order = add_order(sandbox, [100] * 12)
    await download(client, images_url(service, order.order_id, "?preview=false"))
    assert sandbox.ledger == {image.image_id: 1 for image in order.images}


@pytest.mark.parametrize(
    ("kind", "tries"), [(Kind.RESET, 3), (Kind.CLOSE_EARLY, 3), (Kind.CHANGED, 2), (Kind.NO_RANGES, 2)]
)
async def test_retries_are_one_purchase(
    kind: Kind, tries: int, sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """Retries, resumes and replays count as one purchase, and each attempt sends one request.

    The API does not charge repeats; here the sandbox does, so that its ledger counts requests.
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


async def test_second_download_requests_bought_images_again(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """A second download requests every image again; only the API's flag ``downloaded`` makes it free."""
    order = add_order(sandbox, [100, 200])
    for repeats_cost, spent in ((False, 2), (False, 2), (True, 4)):
        sandbox.repeats_cost = repeats_cost
        await download(client, images_url(service, order.order_id, "?preview=false"))
        assert sandbox.credits_spent == spent
    assert all(image.downloaded for image in order.images)


async def test_lost_image_counts_as_bought(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """Manifest, receipt and metric count an image as bought once the API has granted it, though it never arrived."""
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


async def test_nothing_is_bought_after_a_disconnect(sandbox: Sandbox, start_service: StartService) -> None:
    """After the client disconnects, only the images in flight are bought."""
    service = await start_service(images_in_flight=2)
    order = add_order(sandbox, [200_000] * 12)
    gates = [sandbox.faults.pause(image.image_id, after_bytes=1000) for image in order.images[:2]]
    async with aiohttp.ClientSession() as leaving:
        download_task = asyncio.create_task(leaving.get(images_url(service, order.order_id, "?preview=false")))
        await sandbox.wait_until(lambda: len([one for one in sandbox.requests if one.origin == "storage"]) == 2)
        download_task.cancel()
        await asyncio.wait([download_task])
    for gate in gates:
        gate.release()
    await sandbox.wait_until(lambda: sandbox.active_requests == 0)
    async with aiohttp.ClientSession() as another:
        await download(another, images_url(service, DEMO_ORDER_ID))
        async with another.get(f"{service}/metrics") as response:
            assert "batch_credits_spent_total 2.0" in await response.text()
    assert sandbox.credits_spent == 2
