"""Repeat an interrupted download under the same archive id."""

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
KEY, OTHER_KEY = "the-key-of-the-client", "the-key-of-a-second-client"
AS_CLIENT, AS_OTHER = {"X-API-Key": KEY}, {"X-API-Key": OTHER_KEY}


async def interrupt_download(
    sandbox: Sandbox, client: aiohttp.ClientSession, service: str, url: URL, **request: Any
) -> list[tuple[str, int | None, dict[str, Any]]]:
    """Start a download, disconnect within its first image, and return the events up to the end of its receipt."""
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


ID_IN_USE = (409, "/problems/archive-id-in-use")


async def test_download_can_be_repeated_after_a_disconnect(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """The same request gets a whole archive after any number of disconnects, and a new receipt."""
    order, archive_id = add_order(sandbox, SIZES), str(uuid.uuid4())
    url = images_url(service, order.order_id, f"?quality=50&archive_id={archive_id}")
    for _ in range(2):
        await interrupt_download(sandbox, client, service, url)
    same = images_url(service, order.order_id, f"?archive_id={archive_id.upper()}&quality=50")
    assert await status_of(client, same) == (200, WHOLE)
    assert (await receipt_of(client, service, archive_id))["state"] == "complete"
    assert await status_of(client, url) == ID_IN_USE, "a complete archive is not repeated"


async def test_download_can_be_repeated_after_an_abort(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """An archive that the service aborted can be repeated too."""
    service = await start_service(image_attempts=1)
    order, archive_id = add_order(sandbox, SIZES), str(uuid.uuid4())
    url = images_url(service, order.order_id, f"?on_error=abort&archive_id={archive_id}")
    gate = sandbox.faults.pause(order.images[0].image_id, after_bytes=2 * CUT)
    sandbox.faults.script(order.images[1].image_id, [Fault(Kind.RESET)])
    download_task = asyncio.create_task(client.get(url))
    await sandbox.wait_until(lambda: sum(sandbox.faults.injected.values()) == 2)
    response = await download_task
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
async def test_other_request_cannot_reuse_the_id(
    change: Callable[[URL, str], tuple[URL, Mapping[str, str]]],
    sandbox: Sandbox,
    start_service: StartService,
    client: aiohttp.ClientSession,
) -> None:
    """A request that differs from the interrupted one is a 409, and leaves the id to the original."""
    service = await start_service(service_api_keys=(SecretStr(KEY), SecretStr(OTHER_KEY)))
    order = add_order(sandbox, SIZES)
    url = images_url(service, order.order_id, f"?quality=50&archive_id={uuid.uuid4()}")
    await interrupt_download(sandbox, client, service, url, headers=AS_CLIENT)
    other, headers = change(url, order.images[0].image_id)
    if other.path != url.path:
        other = other.with_query(url.query)
    assert await status_of(client, other, headers=headers) == ID_IN_USE
    assert await status_of(client, url, "POST", headers=AS_CLIENT, json=body_of(order)) == ID_IN_USE
    assert await status_of(client, url, headers=AS_CLIENT) == (200, WHOLE)


async def test_clients_without_a_key_are_identified_by_address(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """A client with another address cannot reuse the id."""
    service = await start_service(trusted_proxy_hops=1)
    url = images_url(service, add_order(sandbox, SIZES).order_id, f"?archive_id={uuid.uuid4()}")
    first, second = ({"X-Forwarded-For": address} for address in ("192.0.2.1", "192.0.2.2"))
    await interrupt_download(sandbox, client, service, url, headers=first)
    assert await status_of(client, url, headers=second) == ID_IN_USE
    assert await status_of(client, url, headers=first) == (200, WHOLE)


async def test_clients_with_a_link_are_identified_by_the_link(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """Another link to the same download cannot reuse the id, nor can a request without a link."""
    service = await start_service(signing_keys=(SecretStr("s" * 32),))
    order = add_order(sandbox, SIZES)
    archive_id, urls = str(uuid.uuid4()), []
    for seconds in (100, 200):
        body = {"expires_in_seconds": seconds}
        async with client.post(f"{service}/orders/{order.order_id}/links", json=body) as response:
            urls.append(URL((await response.json())["url"]).update_query(archive_id=archive_id))
    await interrupt_download(sandbox, client, service, urls[0])
    plain = images_url(service, order.order_id, f"?archive_id={archive_id}")
    assert [await status_of(client, url) for url in (urls[1], plain)] == [ID_IN_USE, ID_IN_USE]
    assert await status_of(client, urls[0]) == (200, WHOLE)


def body_of(order: SandboxOrder, *positions: int) -> dict[str, list[str]]:
    """Return the body that selects images of an order; all of them without positions."""
    return {"only": [order.images[n].image_id for n in positions or range(len(order.images))]}


async def test_repeated_post_must_select_the_same_images(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """The body must select the same images, in any order."""
    order = add_order(sandbox, SIZES)
    url = images_url(service, order.order_id, f"?archive_id={uuid.uuid4()}")
    await interrupt_download(sandbox, client, service, url, method="POST", json=body_of(order))
    assert await status_of(client, url, "POST", json=body_of(order, 0, 1)) == ID_IN_USE
    assert await status_of(client, url, "POST", json=body_of(order, 2, 1, 0)) == (200, WHOLE)
    assert await status_of(client, url, "POST", json=body_of(order)) == ID_IN_USE


async def test_running_download_cannot_be_repeated(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """The id of a running archive is in use, also while it is a repetition."""
    order = add_order(sandbox, SIZES)
    url = images_url(service, order.order_id, f"?archive_id={uuid.uuid4()}")
    await interrupt_download(sandbox, client, service, url)
    gate = sandbox.faults.pause(order.images[0].image_id, after_bytes=2 * CUT)
    async with client.get(url) as response:
        await response.content.readexactly(CUT)
        assert await status_of(client, url) == ID_IN_USE
        gate.release()
        await response.read()


async def test_watcher_of_the_first_download_gets_the_new_receipt(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """A Last-Event-ID from before the repetition gets the whole new receipt; event ids keep increasing."""
    order, archive_id = add_order(sandbox, SIZES), str(uuid.uuid4())
    url = images_url(service, order.order_id, f"?archive_id={archive_id}")
    before = await interrupt_download(sandbox, client, service, url)
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
