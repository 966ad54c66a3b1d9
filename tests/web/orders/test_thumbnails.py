"""``GET /images/{image_id}/preview``: thumbnails are small, free, bounded and checked."""

import asyncio

import aiohttp
import pytest
from pydantic import SecretStr
from yarl import URL

from service.sandbox import DEMO_ORDER_ID, PARTIAL_ORDER_ID, Fault, Kind, Sandbox, SandboxImage
from service.web.orders.context import MAX_THUMBNAILS_IN_FLIGHT
from service.web.orders.thumbnails import MAX_THUMBNAIL_BYTES, MAX_WIDTH_PIXELS
from tests.archives import add_order, jpeg
from tests.conftest import StartService


def thumbnail_url(service: str, image_id: str) -> str:
    return f"{service}/images/{image_id}/preview"


async def test_thumbnail_is_small_and_free(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """A thumbnail is a small free picture that the browser may cache privately."""
    image_id = f"{DEMO_ORDER_ID[:9]}d0e0-4001-8000-000000000001"
    async with client.get(thumbnail_url(service, image_id)) as response:
        assert (response.status, response.content_type) == (200, "image/jpeg")
        assert response.headers["Cache-Control"].startswith("private, max-age=")
        assert await response.read() == sandbox.body(image_id, max_width=MAX_WIDTH_PIXELS)
    queries = [record.query for record in sandbox.requests_for(image_id, "api")]
    assert queries == [{"preview": "true", "format": "jpeg", "max_width": str(MAX_WIDTH_PIXELS)}]
    assert sandbox.credits_spent == 0


async def test_thumbnail_requires_a_key(start_service: StartService, client: aiohttp.ClientSession) -> None:
    """With SERVICE_API_KEYS a thumbnail requires a key."""
    service = await start_service(service_api_keys=(SecretStr("key-of-a-customer-0001"),))
    async with client.get(thumbnail_url(service, "x")) as response:
        assert (response.status, (await response.json())["type"]) == (401, "/problems/authentication-required")


async def test_unavailable_thumbnail_is_a_problem(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """A thumbnail that is not a picture, not ready, or too large is a problem with its reason."""
    large = sandbox.add_order([SandboxImage("0.jpg", body=jpeg(MAX_THUMBNAIL_BYTES + 1), content_type="image/jpeg")])
    html = add_order(sandbox, [1000])
    sandbox.faults.always(html.images[0].image_id, Fault(Kind.STATUS, status=404), origin="api")
    not_ready = f"{PARTIAL_ORDER_ID[:9]}9a47-4001-8000-000000000002"
    found = []
    for image_id in (large.images[0].image_id, html.images[0].image_id, not_ready):
        async with client.get(thumbnail_url(service, image_id)) as response:
            problem = await response.json()
            found.append((response.status, problem["type"], problem["reason"]))
    assert found == [
        (502, "/problems/thumbnail-unavailable", reason) for reason in ("rejected", "not_found", "not_found")
    ]


@pytest.mark.parametrize("image_id", ["%2e%2e", "a%2fb", "a.b", "x" * 65, "%00"])
async def test_invalid_image_id_is_not_found(
    image_id: str, sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """An id that could change the upstream URL causes no upstream request."""
    async with client.get(URL(thumbnail_url(service, image_id), encoded=True)) as response:
        assert response.status == 404
    assert sandbox.requests == []


async def test_concurrent_thumbnails_are_limited(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """Of many requested thumbnails a few are fetched at a time, and all arrive."""
    order = add_order(sandbox, [20_000] * 20)
    gates = [sandbox.faults.pause(image.image_id) for image in order.images]

    async def fetch(image_id: str) -> int:
        async with client.get(thumbnail_url(service, image_id)) as response:
            return len(await response.read())

    fetching = asyncio.gather(*(fetch(image.image_id) for image in order.images))
    await sandbox.wait_until(lambda: sandbox.active_requests == MAX_THUMBNAILS_IN_FLIGHT)
    assert len(sandbox.requests) == 3 * MAX_THUMBNAILS_IN_FLIGHT
    for gate in gates:
        gate.release()
    assert await fetching == [20_000] * 20
