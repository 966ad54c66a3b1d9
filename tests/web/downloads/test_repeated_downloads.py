"""A download that was broken off, and that the same client begins again under the same archive id."""

import asyncio
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr
from yarl import URL

from service.sandbox import DEMO_ORDER_ID, Fault, Kind, Sandbox, SandboxOrder
from tests.archives import add_order, entries, images_url, jpeg
from tests.conftest import StartService
from tests.web.downloads.test_receipts import events_of, receipt_of

SIZES = [400_000, 300, 300]
WHOLE = {f"{n}.jpg": jpeg(size, n) for n, size in enumerate(SIZES)}
CUT = 50_000
KEY, OTHER_KEY = "the-key-of-the-client", "the-key-of-another-one"
AS_CLIENT, AS_OTHER = {"X-API-Key": KEY}, {"X-API-Key": OTHER_KEY}


async def download_cut(
    sandbox: Sandbox, client: aiohttp.ClientSession, service: str, url: URL, **request: Any
) -> list[tuple[str, int | None, dict[str, Any]]]:
    """Begin a download, leave in the middle of its first image, and return the events until its receipt has ended."""
    headers = request.get("headers", {})
    order = sandbox.orders[url.parts[2]]
    gate = sandbox.faults.pause(order.images[0].image_id, after_bytes=2 * CUT)
    response = await client.request(request.pop("method", "GET"), url, **request)
    assert response.status == 200
    await response.content.readexactly(CUT)
    events = f"{service}/archives/{url.query['archive_id']}/events"
    async with client.get(events, headers=headers) as watching:
        response.close()
        seen = [one async for one in events_of(watching)]
    gate.release()
    assert seen[-1][2]["state"] == "client_gone"
    return seen


async def status_of(client: aiohttp.ClientSession, url: URL, method: str = "GET", **request: Any) -> tuple[int, Any]:
    """Return the status of a request, and the entries of the archive or the problem's type."""
    async with client.request(method, url, **request) as response:
        if response.status == 200:
            return 200, entries(await response.read())
        return response.status, (await response.json(content_type=None))["type"]


TAKEN = (409, "/problems/archive-id-in-use")


async def test_after_the_client_has_gone(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """The same request gets a whole archive, as often as it is cut, and its receipt is the new one."""
    order, archive_id = add_order(sandbox, SIZES), str(uuid.uuid4())
    url = images_url(service, order.order_id, f"?quality=50&archive_id={archive_id}")
    for _ in range(2):
        await download_cut(sandbox, client, service, url)
    same = images_url(service, order.order_id, f"?archive_id={archive_id.upper()}&quality=50")
    assert await status_of(client, same) == (200, WHOLE)
    assert (await receipt_of(client, service, archive_id))["state"] == "complete"
    assert await status_of(client, url) == TAKEN, "it has all that there is"


async def test_after_it_was_aborted(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """So does one that the service itself broke off."""
    service = await start_service(image_attempts=1)
    order, archive_id = add_order(sandbox, SIZES), str(uuid.uuid4())
    url = images_url(service, order.order_id, f"?on_error=abort&archive_id={archive_id}")
    gate = sandbox.faults.pause(order.images[0].image_id, after_bytes=2 * CUT)
    sandbox.faults.script(order.images[1].image_id, [Fault(Kind.RESET)])
    asking = asyncio.create_task(client.get(url))
    await sandbox.wait_until(lambda: sum(sandbox.faults.injected.values()) == 2)
    response = await asking
    gate.release()
    with pytest.raises(aiohttp.ClientPayloadError):
        await response.read()
    assert (await receipt_of(client, service, archive_id))["state"] == "aborted"
    assert await status_of(client, url) == (200, WHOLE)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda url, _: (url, AS_OTHER), id="other key"),
        pytest.param(lambda url, _: (url.update_query(quality="51"), AS_CLIENT), id="other parameters"),
        pytest.param(lambda url, only: (url.extend_query(only=only), AS_CLIENT), id="other images"),
        pytest.param(lambda url, _: (url.with_path(f"/orders/{DEMO_ORDER_ID}/images"), AS_CLIENT), id="other order"),
    ],
)
async def test_another_request(
    change: Callable[[URL, str], tuple[URL, Mapping[str, str]]],
    sandbox: Sandbox,
    start_service: StartService,
    client: aiohttp.ClientSession,
) -> None:
    """What differs from the download that was cut is a 409, and leaves the id to that."""
    service = await start_service(service_api_keys=(SecretStr(KEY), SecretStr(OTHER_KEY)))
    order = add_order(sandbox, SIZES)
    url = images_url(service, order.order_id, f"?quality=50&archive_id={uuid.uuid4()}")
    await download_cut(sandbox, client, service, url, headers=AS_CLIENT)
    other, headers = change(url, order.images[0].image_id)
    if other.path != url.path:
        other = other.with_query(url.query)
    assert await status_of(client, other, headers=headers) == TAKEN
    assert await status_of(client, url, "POST", headers=AS_CLIENT, json=body_of(order)) == TAKEN
    assert await status_of(client, url, headers=AS_CLIENT) == (200, WHOLE)


async def test_clients_without_a_key(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """Their address tells them apart."""
    service = await start_service(trusted_proxy_hops=1)
    url = images_url(service, add_order(sandbox, SIZES).order_id, f"?archive_id={uuid.uuid4()}")
    one, another = ({"X-Forwarded-For": address} for address in ("192.0.2.1", "192.0.2.2"))
    await download_cut(sandbox, client, service, url, headers=one)
    assert await status_of(client, url, headers=another) == TAKEN
    assert await status_of(client, url, headers=one) == (200, WHOLE)


async def test_links(sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession) -> None:
    """A link is a client of its own: another link to the same download is not."""
    service = await start_service(signing_keys=(SecretStr("s" * 32),))
    order = add_order(sandbox, SIZES)
    archive_id, urls = str(uuid.uuid4()), []
    for seconds in (100, 200):
        body = {"expires_in_seconds": seconds}
        async with client.post(f"{service}/orders/{order.order_id}/links", json=body) as response:
            urls.append(URL((await response.json())["url"]).update_query(archive_id=archive_id))
    await download_cut(sandbox, client, service, urls[0])
    plain = images_url(service, order.order_id, f"?archive_id={archive_id}")
    assert [await status_of(client, url) for url in (urls[1], plain)] == [TAKEN, TAKEN]
    assert await status_of(client, urls[0]) == (200, WHOLE)


def body_of(order: SandboxOrder, *positions: int) -> dict[str, list[str]]:
    """Return the body that asks for images of an order, all if no positions are given."""
    return {"only": [order.images[n].image_id for n in positions or range(len(order.images))]}


async def test_post(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """The body has to name the same images, in any order."""
    order = add_order(sandbox, SIZES)
    url = images_url(service, order.order_id, f"?archive_id={uuid.uuid4()}")
    await download_cut(sandbox, client, service, url, method="POST", json=body_of(order))
    assert await status_of(client, url, "POST", json=body_of(order, 0, 1)) == TAKEN
    assert await status_of(client, url, "POST", json=body_of(order, 2, 1, 0)) == (200, WHOLE)
    assert await status_of(client, url, "POST", json=body_of(order)) == TAKEN


async def test_while_it_runs(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """An archive that is being sent keeps its id to itself, and so does its repetition."""
    order = add_order(sandbox, SIZES)
    url = images_url(service, order.order_id, f"?archive_id={uuid.uuid4()}")
    await download_cut(sandbox, client, service, url)
    gate = sandbox.faults.pause(order.images[0].image_id, after_bytes=2 * CUT)
    async with client.get(url) as response:
        await response.content.readexactly(CUT)
        assert await status_of(client, url) == TAKEN
        gate.release()
        await response.read()


async def test_a_watcher_of_the_first_try(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """A Last-Event-ID from before the repetition brings the whole new receipt; its ids go on from there."""
    order, archive_id = add_order(sandbox, SIZES), str(uuid.uuid4())
    url = images_url(service, order.order_id, f"?archive_id={archive_id}")
    before = await download_cut(sandbox, client, service, url)
    assert (await status_of(client, url))[0] == 200
    versions = [version for _, version, _ in before if version is not None]
    for last in versions:
        headers = {"Last-Event-ID": str(last)}
        async with client.get(f"{service}/archives/{archive_id}/events", headers=headers) as response:
            assert response.status == 200
            (kind, version, snapshot), *rest = [one async for one in events_of(response)]
        assert (kind, [one[0] for one in rest]) == ("snapshot", ["end"])
        assert [one["state"] for one in snapshot["images"]] == ["downloaded"] * 3
        assert version is not None
        assert version > max(versions)
