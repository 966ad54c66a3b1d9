"""Downloads with ``wait``, whose images stream as they become ready; the webhook; and selection by a request body."""

import asyncio
import io
import json
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr

from service.model import Order
from service.sandbox import DEMO_ORDER_ID, PARTIAL_ORDER_ID, Fault, Kind, Sandbox, SandboxImage
from service.upstream.payloads import read_order
from tests.archives import download, entries, images_url, jpeg
from tests.conftest import StartService

SECRET = "what-the-api-sends"
WEBHOOK_BODY = {"event": "image_processed", "error": False, "order_is_processing": True}


@pytest.fixture
async def live(start_service: StartService) -> str:
    """The URL of a service with a webhook, so that tests need not wait for the next poll."""
    return await start_service(webhook_secret=SecretStr(SECRET))


def image(number: int, **facts: Any) -> SandboxImage:
    """Return an image of a sandbox order."""
    return SandboxImage(f"{number}.jpg", body=jpeg(1000 + number, number), content_type="image/jpeg", **facts)


async def notify(client: aiohttp.ClientSession, service: str, order_id: str) -> None:
    """Send the webhook that the API sends when an image is processed."""
    body = {**WEBHOOK_BODY, "order_id": order_id}
    async with client.post(
        f"{service}/webhooks/autoenhance", json=body, headers={"Authentication": SECRET}
    ) as response:
        assert response.status == 204


async def download_with_webhooks(
    client: aiohttp.ClientSession, service: str, order_id: str, query: str = "?wait=60"
) -> tuple[int, bytes]:
    """Download while webhooks make the service poll; return status and body."""

    async def fetch() -> tuple[int, bytes]:
        async with client.get(images_url(service, order_id, query)) as response:
            return response.status, await response.read()

    fetching = asyncio.create_task(fetch())
    while not fetching.done():
        await notify(client, service, order_id)
    return await fetching


async def test_images_stream_as_they_become_ready(sandbox: Sandbox, live: str, client: aiohttp.ClientSession) -> None:
    """Ready images stream at once, the others when they become ready, with the names of the full archive."""
    order = sandbox.add_order([image(0, ready_after_polls=3), image(1), image(2, ready_after_polls=5)])
    status, body = await download_with_webhooks(client, live, order.order_id)
    assert status == 200
    assert entries(body) == {f"{n}.jpg": jpeg(1000 + n, n) for n in range(3)}
    assert list(entries(body)) == ["1.jpg", "0.jpg", "2.jpg"]


async def test_ready_image_is_sent_before_others_are_ready(
    sandbox: Sandbox, live: str, client: aiohttp.ClientSession
) -> None:
    """The client gets the ready image while the other one is being processed."""
    order = sandbox.add_order([image(0), image(1, status="processing")])
    async with client.get(images_url(live, order.order_id, "?wait=60")) as response:
        first = await response.content.readuntil(b"\xff\xd9")
        assert jpeg(1000, 0)[-100:] in first
        order.images[1].status = "processed"
        rest = asyncio.create_task(response.read())
        while not rest.done():
            await notify(client, live, order.order_id)
        assert len(entries(first + await rest)) == 2


async def test_order_is_polled_without_webhooks(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """Without webhooks the service polls the order automatically."""
    order = sandbox.add_order([image(0, ready_after_polls=1)])
    assert list(await download(client, images_url(service, order.order_id, "?wait=60"))) == ["0.jpg"]


async def test_image_that_fails_during_the_wait_is_reported(
    sandbox: Sandbox, live: str, client: aiohttp.ClientSession
) -> None:
    """An image that fails during the wait is reported as failed, and the wait for it ends."""
    order = sandbox.add_order([image(0), image(1, ready_after_polls=2, ready_status="error")])
    _, body = await download_with_webhooks(client, live, order.order_id)
    manifest = json.loads(entries(body)["_manifest.json"])
    assert [one["reason"] for one in manifest["images"]] == [None, "processing_failed"]


async def test_images_not_ready_in_time_are_reported(service: str, client: aiohttp.ClientSession) -> None:
    """When the wait ends, the remaining images are reported as not ready."""
    files = await download(client, images_url(service, PARTIAL_ORDER_ID, "?wait=1"))
    reasons = sorted(one["reason"] or "" for one in json.loads(files["_manifest.json"])["images"])
    assert reasons == ["", "", "", "expired", "not_ready", "not_ready", "processing_failed"]


async def test_wait_without_a_ready_image_is_a_422(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """If no image becomes ready during the wait, the response is a 422."""
    order = sandbox.add_order([image(0, status="processing")])
    async with client.get(images_url(service, order.order_id, "?wait=1")) as response:
        problem = await response.json()
    assert (response.status, problem["failures"][0]["reason"]) == (422, "not_ready")


async def test_images_may_be_added_and_removed_during_the_wait(
    sandbox: Sandbox, live: str, client: aiohttp.ClientSession
) -> None:
    """An added image follows all others, a removed one is reported, and names do not change."""
    order = sandbox.add_order([image(0), image(1, status="processing")], processing=True)

    def change() -> None:
        sandbox.remove_image(order.images[1].image_id)
        sandbox.add_image(order.order_id, image(0))
        order.is_processing = False

    sandbox.on_poll(order.order_id, 3, change)
    _, body = await download_with_webhooks(client, live, order.order_id)
    files = entries(body)
    assert [name for name in files if name.endswith(".jpg")] == ["0.jpg", "0_2.jpg"]
    manifest = json.loads(files["_manifest.json"])
    assert [(one["position"], one["reason"]) for one in manifest["images"]] == [(0, None), (1, "not_found"), (2, None)]
    assert manifest["retry_urls"] == [], "an id that is not in the order would be rejected"


@pytest.mark.parametrize("processing", [True, False], ids=["busy", "not busy"])
@pytest.mark.parametrize("unlisted", ["no list", "no images", "one image"])
async def test_temporarily_unlisted_images_are_awaited(
    unlisted: str,
    processing: bool,  # noqa: FBT001 - a parameter of the test
    sandbox: Sandbox,
    live: str,
    client: aiohttp.ClientSession,
) -> None:
    """Images that a poll does not list are awaited, and arrive when they are listed again."""
    order = sandbox.add_order([image(0), image(1, ready_after_polls=5), image(2, ready_after_polls=6)])
    order.is_processing = processing
    hidden = {
        "no list": None,
        "no images": [one.image_id for one in order.images],
        "one image": [order.images[1].image_id],
    }
    sandbox.hide_images(order.order_id, [2, 3, 5], hidden[unlisted])
    sandbox.on_poll(order.order_id, 8, lambda: setattr(order, "is_processing", False))
    status, body = await download_with_webhooks(client, live, order.order_id)
    assert (status, entries(body)) == (200, {f"{n}.jpg": jpeg(1000 + n, n) for n in range(3)})


async def test_merging_during_the_wait_loses_no_image(
    sandbox: Sandbox, live: str, client: aiohttp.ClientSession
) -> None:
    """An order being merged lists no images; the awaited ones are still awaited."""
    order = sandbox.add_order([image(0), image(1, status="processing")])
    sandbox.on_poll(order.order_id, 2, lambda: sandbox.set_merging(order.order_id, merging=True))
    sandbox.on_poll(order.order_id, 7, lambda: sandbox.set_merging(order.order_id, merging=False))
    sandbox.on_poll(order.order_id, 8, lambda: sandbox.set_status(order.images[1].image_id, "processed"))
    _, body = await download_with_webhooks(client, live, order.order_id)
    assert sorted(entries(body)) == ["0.jpg", "1.jpg"]


async def test_unlisted_image_of_a_busy_order_is_not_ready(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """An image that a busy order does not list when the wait ends is not ready, and is in the retry URL."""
    order = sandbox.add_order([image(0), image(1, status="processing")], processing=True)
    sandbox.hide_images(order.order_id, range(2, 100), [order.images[1].image_id])
    files = await download(client, images_url(service, order.order_id, "?wait=2"))
    manifest = json.loads(files["_manifest.json"])
    assert [one["reason"] for one in manifest["images"]] == [None, "not_ready"]
    assert order.images[1].image_id in manifest["retry_urls"][0]


async def test_relisted_image_is_bought_once(sandbox: Sandbox, live: str, client: aiohttp.ClientSession) -> None:
    """``max_credits`` counts an image that was temporarily not listed once."""
    order = sandbox.add_order([image(0), image(1, ready_after_polls=5)], processing=True)
    sandbox.hide_images(order.order_id, [2, 4], [order.images[1].image_id])
    sandbox.on_poll(order.order_id, 7, lambda: setattr(order, "is_processing", False))
    _, body = await download_with_webhooks(client, live, order.order_id, "?wait=60&preview=false&max_credits=2")
    assert sorted(entries(body)) == ["0.jpg", "1.jpg"]
    assert sandbox.ledger == {one.image_id: 1 for one in order.images}


async def test_selection_waits_for_its_own_images_only(
    sandbox: Sandbox, live: str, client: aiohttp.ClientSession
) -> None:
    """A download whose selected images are ready does not wait for a busy order."""
    order = sandbox.add_order([image(0), image(1, status="processing")])
    query = f"?wait=60&only={order.images[0].image_id}"
    assert list(await download(client, images_url(live, order.order_id, query))) == ["0.jpg"]
    assert order.polls == 1


async def test_added_images_are_bounded(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """Images added beyond MAX_IMAGES_PER_ORDER are reported as rejected."""
    service = await start_service(webhook_secret=SecretStr(SECRET), max_images_per_order=2)
    order = sandbox.add_order([image(0)], processing=True)

    def change() -> None:
        for number in (1, 2):
            sandbox.add_image(order.order_id, image(number))
        order.is_processing = False

    sandbox.on_poll(order.order_id, 2, change)
    _, body = await download_with_webhooks(client, service, order.order_id)
    manifest = json.loads(entries(body)["_manifest.json"])
    assert [one["reason"] for one in manifest["images"]] == [None, None, "rejected"]


async def test_wait_includes_merging(sandbox: Sandbox, live: str, client: aiohttp.ClientSession) -> None:
    """No image is listed while brackets are merged; a download with ``wait`` gets them afterwards."""
    order = sandbox.add_order([], merging=True)

    def merged() -> None:
        order.is_merging = False
        sandbox.add_image(order.order_id, image(0))
        sandbox.add_image(order.order_id, image(1))

    sandbox.on_poll(order.order_id, 3, merged)
    status, body = await download_with_webhooks(client, live, order.order_id)
    assert (status, sorted(entries(body))) == (200, ["0.jpg", "1.jpg"])


@pytest.mark.parametrize(
    ("selected", "status", "names"),
    [
        pytest.param("id-of-1", 200, ["1.jpg"], id="in the list"),
        pytest.param("id-of-2", 200, ["2.jpg"], id="in the list, and not ready yet"),
        pytest.param("id-of-9", 400, [], id="not in the list"),
    ],
)
async def test_selection_is_validated_after_merging(
    selected: str, status: int, names: list[str], sandbox: Sandbox, live: str, client: aiohttp.ClientSession
) -> None:
    """A selected image cannot be validated while the order is being merged, so it is validated afterwards."""
    order = sandbox.add_order([], merging=True)

    def merged() -> None:
        order.is_merging = False
        for number, polls in ((0, None), (1, None), (2, 2)):
            sandbox.add_image(order.order_id, image(number, image_id=f"id-of-{number}", ready_after_polls=polls))

    sandbox.on_poll(order.order_id, 3, merged)
    found, body = await download_with_webhooks(client, live, order.order_id, f"?wait=60&only={selected}")
    assert found == status, body
    if status == 200:
        assert list(entries(body)) == names
    else:
        problem = json.loads(body)
        assert (problem["type"], problem["image_id"]) == ("/problems/image-not-in-order", selected)


async def test_merging_beyond_the_wait_is_a_409(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """If the order is still being merged when the wait ends, the response is a 409, also with a selection."""
    order = sandbox.add_order([], merging=True)
    async with client.get(images_url(service, order.order_id, "?wait=1&only=x")) as response:
        assert (response.status, (await response.json())["type"]) == (409, "/problems/order-not-ready")
    assert order.polls > 1


async def test_concurrent_waits_share_polls(sandbox: Sandbox, live: str, client: aiohttp.ClientSession) -> None:
    """Downloads that wait for the same order share its polls."""
    order = sandbox.add_order([image(0), image(1, status="processing")])
    urls = [images_url(live, order.order_id, "?wait=60")] * 5
    responses = await asyncio.gather(*(client.get(url) for url in urls))
    before = order.polls
    order.images[1].status = "processed"
    reading = asyncio.gather(*(response.read() for response in responses))
    await notify(client, live, order.order_id)
    assert [len(entries(body)) for body in await reading] == [2] * 5
    assert (before, order.polls) == (5, 6)


async def test_failed_poll_does_not_end_the_wait(sandbox: Sandbox, live: str, client: aiohttp.ClientSession) -> None:
    """The wait continues after temporary upstream failures."""
    order = sandbox.add_order([image(0), image(1, ready_after_polls=2)])
    sandbox.faults.order(order.order_id, [None, *[Fault(Kind.STATUS, status=404)] * 2])
    _, body = await download_with_webhooks(client, live, order.order_id)
    assert sorted(entries(body)) == ["0.jpg", "1.jpg"]


@pytest.mark.parametrize("streaming", [True, False], ids=["after the first byte", "before it"])
async def test_bug_while_polling_fails_the_download(
    sandbox: Sandbox,
    live: str,
    client: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
    streaming: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """An unexpected exception while polling aborts the archive, or is a 500; images are not reported as not ready."""
    payloads: list[bytes] = []

    def fail_later(order_id: str, payload: bytes) -> Order:
        payloads.append(payload)
        if len(payloads) > 1:
            raise ZeroDivisionError
        return read_order(order_id, payload)

    monkeypatch.setattr("service.upstream.api.read_order", fail_later)
    images = [image(0), image(1, status="processing")] if streaming else []
    order = sandbox.add_order(images, merging=not streaming)
    download_task = asyncio.create_task(client.get(images_url(live, order.order_id, "?wait=60")))
    if streaming:
        await asyncio.wait([download_task])
    while len(payloads) < 2:
        await notify(client, live, order.order_id)
    response = await download_task
    assert response.status == (200 if streaming else 500)
    if streaming:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_disconnect_ends_polling(sandbox: Sandbox, live: str) -> None:
    """After the last waiting client disconnects, the order is not polled."""
    order = sandbox.add_order([image(0), image(1, status="processing")])
    async with aiohttp.ClientSession() as leaving:
        response = await leaving.get(images_url(live, order.order_id, "?wait=60"))
        response.close()
    async with aiohttp.ClientSession() as another:
        await download(another, images_url(live, DEMO_ORDER_ID))
        polls = order.polls
        await notify(another, live, order.order_id)
        await download(another, images_url(live, DEMO_ORDER_ID))
    assert order.polls == polls == 1


async def test_disconnect_during_the_wait_buys_nothing_more(sandbox: Sandbox, live: str) -> None:
    """An image that becomes ready after a disconnect is not bought."""
    order = sandbox.add_order([image(0), image(1, status="processing")])
    async with aiohttp.ClientSession() as leaving:
        response = await leaving.get(images_url(live, order.order_id, "?wait=60&preview=false"))
        await response.content.readuntil(b"\xff\xd9")
        response.close()
    async with aiohttp.ClientSession() as another:
        await download(another, images_url(live, DEMO_ORDER_ID))
        order.images[1].status = "processed"
        await notify(another, live, order.order_id)
        await download(another, images_url(live, DEMO_ORDER_ID))
    assert sandbox.ledger == {order.images[0].image_id: 1}


async def test_max_credits_bounds_added_images(sandbox: Sandbox, live: str, client: aiohttp.ClientSession) -> None:
    """Images added during the wait are bought only within ``max_credits``."""
    order = sandbox.add_order([image(0), image(1, status="processing")], processing=True)

    def change() -> None:
        order.images[1].status = "processed"
        sandbox.add_image(order.order_id, image(2))
        sandbox.add_image(order.order_id, image(3))
        order.is_processing = False

    sandbox.on_poll(order.order_id, 3, change)
    _, body = await download_with_webhooks(client, live, order.order_id, "?wait=60&preview=false&max_credits=3")
    manifest = json.loads(entries(body)["_manifest.json"])
    assert [one["reason"] for one in manifest["images"]] == [None, None, None, "no_credits"]
    assert sandbox.credits_spent == 3


@pytest.mark.parametrize("wait", ["-1", "601", "x"])
async def test_invalid_wait_is_rejected(wait: str, service: str, client: aiohttp.ClientSession) -> None:
    """A wait is a number of seconds up to WAIT_MAX_SECONDS."""
    async with client.get(images_url(service, DEMO_ORDER_ID, f"?wait={wait}")) as response:
        assert (response.status, (await response.json())["parameter"]) == (400, "wait")


@pytest.mark.parametrize(
    ("secret", "body", "status"),
    [
        pytest.param(SECRET, json.dumps({"event": "webhook_updated"}).encode(), 204, id="settings saved"),
        pytest.param(SECRET, b"", 204, id="empty"),
        pytest.param(SECRET, b"[1]", 204, id="something else"),
        pytest.param(SECRET, b"{", 400, id="no JSON"),
        pytest.param(SECRET, b"[" * 60_000, 400, id="too deep"),
        pytest.param("wrong", b"{}", 401, id="wrong secret"),
        pytest.param("", b"{}", 401, id="no secret"),
    ],
)
async def test_webhook_requires_its_secret(
    secret: str, body: bytes, status: int, live: str, client: aiohttp.ClientSession
) -> None:
    """Webhooks are accepted only with the secret; unknown JSON is accepted, other bodies are not."""
    headers = {"Authentication": secret}
    async with client.post(f"{live}/webhooks/autoenhance", data=body, headers=headers) as response:
        assert response.status == status


async def test_wrong_webhook_secrets_are_rate_limited(
    start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """After too many wrong secrets an address gets 429, also with the right one or a key; no secret is no failure."""
    keys = {"service_api_keys": (SecretStr("a-key-of-the-service"),), "webhook_secret": SecretStr(SECRET)}
    service = await start_service(**keys, auth_failures_per_minute=2)

    async def webhook_status(secret: str) -> int:
        headers = {"Authentication": secret} if secret else {}
        async with client.post(f"{service}/webhooks/autoenhance", json={}, headers=headers) as response:
            return response.status

    assert [await webhook_status(secret) for secret in ("", "", "", SECRET)] == [401, 401, 401, 204]
    assert [await webhook_status(secret) for secret in ("wrong", "also wrong", SECRET)] == [401, 401, 429]
    async with client.get(
        images_url(service, DEMO_ORDER_ID), headers={"X-API-Key": "a-key-of-the-service"}
    ) as response:
        assert (response.status, int(response.headers["Retry-After"]) > 0) == (429, True)


async def test_webhook_is_off_without_a_secret(service: str, client: aiohttp.ClientSession) -> None:
    """Without WEBHOOK_SECRET every webhook is rejected."""
    async with client.post(f"{service}/webhooks/autoenhance", json={}, headers={"Authentication": ""}) as response:
        assert (response.status, (await response.json())["type"]) == (503, "/problems/webhooks-not-configured")


# Selection by a request body.


async def test_manifest_selects_its_missing_images(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """POST with an archive's manifest downloads exactly the images that it lists as missing."""
    order = sandbox.add_order([image(n) for n in range(4)])
    for failing in (1, 3):
        sandbox.faults.always(order.images[failing].image_id, Fault(Kind.STATUS, status=404), origin="api")
    files = await download(client, images_url(service, order.order_id))
    sandbox.faults.clear()
    url = images_url(service, order.order_id, "?manifest=always")
    async with client.post(url, data=files["_manifest.json"]) as response:
        rest = entries(await response.read())
    assert [name for name in rest if name.endswith(".jpg")] == ["1.jpg", "3.jpg"]
    async with client.post(url, data=rest["_manifest.json"]) as response:
        assert (response.status, await response.read()) == (204, b"")


async def test_manifest_may_list_removed_images(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """Images removed from the order are reported as missing, and the other images are downloaded."""
    order = sandbox.add_order([image(0), image(1, status="processing"), image(2, status="processing")])
    files = await download(client, images_url(service, order.order_id))
    removed, ready = order.images[1], order.images[2]
    sandbox.remove_image(removed.image_id)
    ready.status = "processed"
    async with client.post(images_url(service, order.order_id), data=files["_manifest.json"]) as response:
        assert (response.status, response.headers["X-Total-Images"]) == (200, "2")
        rest = entries(await response.read())
    assert next(iter(rest)) == "2.jpg"
    manifest = json.loads(rest["_manifest.json"])
    assert [(one["image_id"], one["reason"]) for one in manifest["images"]] == [
        (ready.image_id, None),
        (removed.image_id, "not_found"),
    ]
    assert (manifest["missing"], manifest["retry_urls"]) == ([removed.image_id], [])
    async with client.post(images_url(service, order.order_id), data=rest["_manifest.json"]) as response:
        problem = await response.json()
    assert (response.status, [one["reason"] for one in problem["failures"]]) == (422, ["not_found"])


async def test_body_selects_more_images_than_a_url(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """A request body selects more ids than fit in a URL."""
    order = sandbox.add_order([image(n) for n in range(301)])
    only = [one.image_id for one in order.images[1:]]
    async with client.post(images_url(service, order.order_id), json={"only": only}) as response:
        files = entries(await response.read())
    assert len(files) == 300
    assert "0.jpg" not in files


@pytest.mark.parametrize(
    ("query", "body"),
    [
        pytest.param("", b"{", id="no JSON"),
        pytest.param("", b"[]", id="no object"),
        pytest.param("", b"{}", id="nothing selected"),
        pytest.param("", b'{"only": []}', id="empty list"),
        pytest.param("", b'{"only": [1]}', id="no ids"),
        pytest.param("", b'{"missing": ["x"], "order_id": "another"}', id="another order"),
        pytest.param("", b'{"only": ["x"]}', id="unknown id"),
        pytest.param("?only=x", b'{"only": ["x"]}', id="both"),
        pytest.param("", b" " * (2000 * 2048 + 1), id="too large"),
    ],
)
async def test_invalid_selection_is_rejected(
    query: str, body: bytes, service: str, client: aiohttp.ClientSession
) -> None:
    """A body that is neither a manifest of this order nor a list of its images is a 400."""
    async with client.post(images_url(service, DEMO_ORDER_ID, query), data=io.BytesIO(body)) as response:
        assert response.status == 400
