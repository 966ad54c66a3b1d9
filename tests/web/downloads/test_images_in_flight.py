"""How many images of one archive are requested at a time, as the upstream sees it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest

from service.sandbox import ANY_IMAGE, Fault, Kind, Sandbox, SandboxOrder
from service.settings import MIB
from tests.archives import add_order, download, images_url, jpeg
from tests.conftest import StartService


@asynccontextmanager
async def peak_at_storage(sandbox: Sandbox) -> AsyncIterator[Callable[[], int]]:
    """Watch the number of requests that the storage works on at a time; yield a function that returns its peak."""
    peak = 0

    def note() -> bool:
        nonlocal peak
        peak = max(peak, sandbox.log.running["storage"])
        return False

    watching = asyncio.create_task(sandbox.wait_until(note))
    try:
        yield lambda: peak
    finally:
        watching.cancel()
        await asyncio.wait([watching])


def images_requested(sandbox: Sandbox, order: SandboxOrder) -> int:
    """Return how many images of an order were requested."""
    return sum(bool(sandbox.requests_for(image.image_id)) for image in order.images)


@pytest.mark.parametrize(("maximum", "least", "most"), [(16, 12, 16), (1, 5, 5)], ids=["grows", "constant"])
async def test_images_in_flight_grow_while_the_upstream_is_slow_to_respond(
    maximum: int, least: int, most: int, sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """Where each image costs a wait, more are requested at a time, and never more than MAX_IMAGES_IN_FLIGHT."""
    sandbox.rate_limit = None
    sandbox.faults.always(ANY_IMAGE, Fault(Kind.SLOW_START, delay_seconds=0.1))
    service = await start_service(images_in_flight=5, max_images_in_flight=maximum)
    number = 200 if maximum > 1 else 20
    order = add_order(sandbox, [100_000] * number)
    async with peak_at_storage(sandbox) as peak:
        found = await download(client, images_url(service, order.order_id))
    assert found == {f"{n}.jpg": jpeg(100_000, n) for n in range(number)}
    assert least <= peak() <= most


async def test_large_images_do_not_make_it_grow(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """While bytes of other images are buffered, more downloads would only cost memory."""
    sandbox.rate_limit = None
    service = await start_service(images_in_flight=3, max_images_in_flight=16)
    # More than the kernel's buffers hold: the storage works on an image until the service has read most of it.
    order = add_order(sandbox, [16 * MIB] * 10)
    async with peak_at_storage(sandbox) as peak:
        found = await download(client, images_url(service, order.order_id))
    assert len(found) == 10
    assert peak() == 3


async def test_429_halves_the_images_in_flight(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """The next image is requested only when fewer than half of the former number are in flight."""
    service = await start_service(images_in_flight=8, max_images_in_flight=8)
    order = add_order(sandbox, [3000] * 12)
    limited, *others = order.images[:8]
    sandbox.faults.script(limited.image_id, [Fault(Kind.STATUS, status=429)], origin="api")
    sandbox.faults.pause(limited.image_id)
    # Each has bytes that the archive can send: it is never without, so the window does not grow meanwhile.
    gates = [sandbox.faults.pause(image.image_id, after_bytes=1000) for image in others]
    downloading = asyncio.create_task(download(client, images_url(service, order.order_id)))
    for gate in gates:
        await gate.reached.wait()
    await sandbox.wait_until(lambda: len(sandbox.requests_for(limited.image_id, "storage")) == 1)
    assert [one.status for one in sandbox.requests_for(limited.image_id, "api")] == [429, 302]
    for ended, gate in enumerate(gates[:4], start=1):
        gate.release()
        await sandbox.wait_until(
            lambda ended=ended: (
                sum(  # type: ignore[misc]
                    one.finished for image in others for one in sandbox.requests_for(image.image_id, "storage")
                )
                == ended
            )
        )
        async with client.get(f"{service}/health/live") as response:  # by its response, the image's end is known
            assert response.status == 200
        assert images_requested(sandbox, order) == 8
    gates[4].release()
    await sandbox.wait_until(lambda: images_requested(sandbox, order) == 9)
    sandbox.faults.release_all()
    assert await downloading == {f"{n}.jpg": jpeg(3000, n) for n in range(12)}
