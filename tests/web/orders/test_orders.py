"""``GET /orders/{id}``: the summary of an order, without fetching an image."""

from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr

from service.sandbox import DEMO_ORDER_ID, EMPTY_ORDER_ID, MERGING_ORDER_ID, PARTIAL_ORDER_ID, Sandbox, SandboxImage
from tests.archives import download, images_url, jpeg
from tests.conftest import StartService


async def look(client: aiohttp.ClientSession, service: str, order_id: str, query: str = "") -> tuple[int, Any]:
    """Return the status and the document."""
    async with client.get(f"{service}/orders/{order_id}{query}") as response:
        return response.status, await response.json()


async def test_summary_has_the_entry_names_of_the_archive(service: str, client: aiohttp.ClientSession) -> None:
    """The summary lists the entries that a download then has."""
    status, found = await look(client, service, DEMO_ORDER_ID)
    assert (status, found["status"], found["counts"]["ready"]) == (200, "ready", 14)
    files = await download(client, images_url(service, DEMO_ORDER_ID))
    assert {one["entry"] for one in found["images"]} == set(files)
    assert found["download"] == f"/orders/{DEMO_ORDER_ID}/images"


async def test_summary_has_the_reason_of_each_missing_image(service: str, client: aiohttp.ClientSession) -> None:
    """Each image that a download would lack has the reason that its report would state."""
    _, found = await look(client, service, PARTIAL_ORDER_ID)
    files = await download(client, images_url(service, PARTIAL_ORDER_ID, "?manifest=always"))
    assert found["counts"] == {"total": 7, "ready": 3, "not_ready": 2, "failed": 1, "expired": 1}
    missing = {one["image_id"]: one["reason"] for one in found["images"] if one["reason"]}
    assert b"processing_failed" in files["_manifest.json"]
    assert sorted(missing.values()) == ["expired", "not_ready", "not_ready", "processing_failed"]


@pytest.mark.parametrize(
    ("order_id", "expected"),
    [(EMPTY_ORDER_ID, "empty"), (MERGING_ORDER_ID, "busy"), (PARTIAL_ORDER_ID, "busy"), (DEMO_ORDER_ID, "ready")],
)
async def test_order_without_images_is_not_a_problem(
    order_id: str, expected: str, service: str, client: aiohttp.ClientSession
) -> None:
    """An order without images is a 200 here: a page shows it and polls."""
    status, found = await look(client, service, order_id)
    assert (status, found["status"]) == (200, expected)


@pytest.mark.timeout(30)  # minutes, were all marks sorted
async def test_long_names_are_cut(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """Overlong names are cut to 1,000 characters, and entry names are short."""
    name = "a" + "\u0301\u0323" * 100_000
    order = sandbox.add_order([SandboxImage(name, body=jpeg(500))], name=name)
    status, found = await look(client, service, order.order_id)
    assert (status, len(found["name"]), len(found["images"][0]["name"])) == (200, 1000, 1000)
    assert list(await download(client, images_url(service, order.order_id))) == [found["images"][0]["entry"]]


async def test_status_of_finished_orders(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """A finished order with some failed images is partial; with only failed ones, failed."""
    bad = SandboxImage("b.jpg", status="error", status_reason="too dark")
    mixed = sandbox.add_order([SandboxImage("a.jpg"), bad])
    lost = sandbox.add_order([SandboxImage("c.jpg", status="expired")])
    assert (await look(client, service, mixed.order_id))[1]["status"] == "partial"
    assert (await look(client, service, lost.order_id))[1]["status"] == "failed"


async def test_summary_has_the_credits_of_full_quality(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """The summary has the cost of full quality without buying; images bought before cost nothing."""
    order = sandbox.add_order([SandboxImage("a.jpg"), SandboxImage("b.jpg")])
    query = "?preview=false"
    _, found = await look(client, service, order.order_id)
    assert found["credits"] == {"to_buy": 0, "full_quality": 2, "paid": 0}
    _, found = await look(client, service, order.order_id, query)
    assert found["credits"] == {"to_buy": 2, "full_quality": 2, "paid": 0}
    assert sandbox.credits_spent == 0
    assert {one.origin for one in sandbox.requests} == {"api"}
    await download(client, images_url(service, order.order_id, f"{query}&only={order.images[0].image_id}"))
    _, found = await look(client, service, order.order_id, query)
    assert found["credits"] == {"to_buy": 1, "full_quality": 1, "paid": 1}


@pytest.mark.parametrize(
    ("path", "status", "slug"),
    [
        pytest.param("no-uuid", 400, "invalid-order-id", id="id"),
        pytest.param(f"{DEMO_ORDER_ID}?qualty=1", 400, "unknown-parameter", id="parameter"),
        pytest.param(f"{DEMO_ORDER_ID}?only=x", 400, "image-not-in-order", id="only"),
        pytest.param("00000000-0000-4000-8000-000000000000", 404, "order-not-found", id="unknown"),
    ],
)
async def test_invalid_requests_are_rejected(
    path: str, status: int, slug: str, service: str, client: aiohttp.ClientSession
) -> None:
    """Requests that a download rejects are rejected here too."""
    found, problem = await look(client, service, path)
    assert (found, problem["type"]) == (status, f"/problems/{slug}")


async def test_summary_requires_a_key(start_service: StartService, client: aiohttp.ClientSession) -> None:
    """With SERVICE_API_KEYS a summary requires a key."""
    service = await start_service(service_api_keys=(SecretStr("a-key-for-clients"),))
    assert (await look(client, service, DEMO_ORDER_ID))[0] == 401
