"""Live orders: ready images stream at once, the others as they become ready, the rest is reported; and the webhook."""

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
NOTICE = {"event": "image_processed", "error": False, "order_is_processing": True}


@pytest.fixture
async def live(start_service: StartService) -> str:
    """The URL of a service that takes notices: so no test waits for the next look."""
    return await start_service(webhook_secret=SecretStr(SECRET))


def image(number: int, **facts: Any) -> SandboxImage:
    """Return an image of a sandbox order."""
    return SandboxImage(f"{number}.jpg", body=jpeg(1000 + number, number), content_type="image/jpeg", **facts)


async def notify(client: aiohttp.ClientSession, service: str, order_id: str) -> None:
    """Send what the API sends when an image is processed."""
    notice = {**NOTICE, "order_id": order_id}
    async with client.post(
        f"{service}/webhooks/autoenhance", json=notice, headers={"Authentication": SECRET}
    ) as answer:
        assert answer.status == 204


async def waited_for(
    client: aiohttp.ClientSession, service: str, order_id: str, query: str = "?wait=60"
) -> tuple[int, bytes]:
    """Download while notices make the service look again; return status and body."""

    async def fetch() -> tuple[int, bytes]:
        async with client.get(images_url(service, order_id, query)) as response:
            return response.status, await response.read()

    fetching = asyncio.create_task(fetch())
    while not fetching.done():
        await notify(client, service, order_id)
    return await fetching


async def test_images_come_as_they_become_ready(sandbox: Sandbox, live: str, client: aiohttp.ClientSession) -> None:
    """What is ready streams before anything else is; what becomes ready joins, under the names of the whole order."""
    order = sandbox.add_order([image(0, ready_after_polls=3), image(1), image(2, ready_after_polls=5)])
    status, body = await waited_for(client, live, order.order_id)
    assert status == 200
    assert entries(body) == {f"{n}.jpg": jpeg(1000 + n, n) for n in range(3)}
    assert list(entries(body)) == ["1.jpg", "0.jpg", "2.jpg"]


async def test_the_first_image_leaves_before_the_last_is_ready(
    sandbox: Sandbox, live: str, client: aiohttp.ClientSession
) -> None:
    """The caller has the ready image in hand while the other is still being processed."""
    order = sandbox.add_order([image(0), image(1, status="processing")])
    async with client.get(images_url(live, order.order_id, "?wait=60")) as response:
        first = await response.content.readuntil(b"\xff\xd9")
        assert jpeg(1000, 0)[-100:] in first
        order.images[1].status = "processed"
        rest = asyncio.create_task(response.read())
        while not rest.done():
            await notify(client, live, order.order_id)
        assert len(entries(first + await rest)) == 2


async def test_without_notices_the_order_is_looked_at_again(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """The service asks by itself."""
    order = sandbox.add_order([image(0, ready_after_polls=1)])
    assert list(await download(client, images_url(service, order.order_id, "?wait=60"))) == ["0.jpg"]


async def test_what_fails_meanwhile_is_final(sandbox: Sandbox, live: str, client: aiohttp.ClientSession) -> None:
    """An image that turns out to have failed is reported as such, and not waited for."""
    order = sandbox.add_order([image(0), image(1, ready_after_polls=2, ready_status="error")])
    _, body = await waited_for(client, live, order.order_id)
    manifest = json.loads(entries(body)["_manifest.json"])
    assert [one["reason"] for one in manifest["images"]] == [None, "processing_failed"]


async def test_what_is_not_ready_in_time_is_reported(service: str, client: aiohttp.ClientSession) -> None:
    """When the wait is over, the rest is in the report as not ready."""
    files = await download(client, images_url(service, PARTIAL_ORDER_ID, "?wait=1"))
    reasons = sorted(one["reason"] or "" for one in json.loads(files["_manifest.json"])["images"])
    assert reasons == ["", "", "", "expired", "not_ready", "not_ready", "processing_failed"]


async def test_nothing_ready_in_time(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """If no image becomes ready while the caller waits, the status says so."""
    order = sandbox.add_order([image(0, status="processing")])
    async with client.get(images_url(service, order.order_id, "?wait=1")) as response:
        problem = await response.json()
    assert (response.status, problem["failures"][0]["reason"]) == (422, "not_ready")


async def test_images_that_appear_and_disappear(sandbox: Sandbox, live: str, client: aiohttp.ClientSession) -> None:
    """An image added meanwhile comes behind all others; one taken out is reported; names that were given stay."""
    order = sandbox.add_order([image(0), image(1, status="processing")], processing=True)

    def change() -> None:
        sandbox.remove_image(order.images[1].image_id)
        sandbox.add_image(order.order_id, image(0))
        order.is_processing = False

    sandbox.on_poll(order.order_id, 3, change)
    _, body = await waited_for(client, live, order.order_id)
    files = entries(body)
    assert [name for name in files if name.endswith(".jpg")] == ["0.jpg", "0_2.jpg"]
    manifest = json.loads(files["_manifest.json"])
    assert [(one["position"], one["reason"]) for one in manifest["images"]] == [(0, None), (1, "not_found"), (2, None)]
    assert manifest["retry_urls"] == [], "an id that is not in the order would be refused"


@pytest.mark.parametrize("processing", [True, False], ids=["busy", "not busy"])
@pytest.mark.parametrize("lacking", ["no list", "no images", "one image"])
async def test_a_look_up_that_lacks_images(
    lacking: str,
    processing: bool,  # noqa: FBT001 - a parameter of the test
    sandbox: Sandbox,
    live: str,
    client: aiohttp.ClientSession,
) -> None:
    """Images that one look-up does not list are awaited, and arrive when they are listed again."""
    order = sandbox.add_order([image(0), image(1, ready_after_polls=5), image(2, ready_after_polls=6)])
    order.is_processing = processing
    hidden = {
        "no list": None,
        "no images": [one.image_id for one in order.images],
        "one image": [order.images[1].image_id],
    }
    sandbox.hide_images(order.order_id, [2, 3, 5], hidden[lacking])
    sandbox.on_poll(order.order_id, 8, lambda: setattr(order, "is_processing", False))
    status, body = await waited_for(client, live, order.order_id)
    assert (status, entries(body)) == (200, {f"{n}.jpg": jpeg(1000 + n, n) for n in range(3)})


async def test_merging_again_during_the_wait(sandbox: Sandbox, live: str, client: aiohttp.ClientSession) -> None:
    """While an order is being merged it lists no images; none of those that are awaited is given up for it."""
    order = sandbox.add_order([image(0), image(1, status="processing")])
    sandbox.on_poll(order.order_id, 2, lambda: sandbox.set_merging(order.order_id, merging=True))
    sandbox.on_poll(order.order_id, 7, lambda: sandbox.set_merging(order.order_id, merging=False))
    sandbox.on_poll(order.order_id, 8, lambda: sandbox.set_status(order.images[1].image_id, "processed"))
    _, body = await waited_for(client, live, order.order_id)
    assert sorted(entries(body)) == ["0.jpg", "1.jpg"]


async def test_an_image_that_is_not_listed_in_the_end(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """What a busy order does not list when the wait ends is not ready, and can be fetched later."""
    order = sandbox.add_order([image(0), image(1, status="processing")], processing=True)
    sandbox.hide_images(order.order_id, range(2, 100), [order.images[1].image_id])
    files = await download(client, images_url(service, order.order_id, "?wait=2"))
    manifest = json.loads(files["_manifest.json"])
    assert [one["reason"] for one in manifest["images"]] == [None, "not_ready"]
    assert order.images[1].image_id in manifest["retry_urls"][0]


async def test_an_image_that_comes_back_is_bought_once(
    sandbox: Sandbox, live: str, client: aiohttp.ClientSession
) -> None:
    """max_credits holds, and suffices, for an image that was not listed for a while."""
    order = sandbox.add_order([image(0), image(1, ready_after_polls=5)], processing=True)
    sandbox.hide_images(order.order_id, [2, 4], [order.images[1].image_id])
    sandbox.on_poll(order.order_id, 7, lambda: setattr(order, "is_processing", False))
    _, body = await waited_for(client, live, order.order_id, "?wait=60&preview=false&max_credits=2")
    assert sorted(entries(body)) == ["0.jpg", "1.jpg"]
    assert sandbox.ledger == {one.image_id: 1 for one in order.images}


async def test_who_names_images_waits_for_these_only(
    sandbox: Sandbox, live: str, client: aiohttp.ClientSession
) -> None:
    """A busy order keeps nobody waiting whose own images are there."""
    order = sandbox.add_order([image(0), image(1, status="processing")])
    query = f"?wait=60&only={order.images[0].image_id}"
    assert list(await download(client, images_url(live, order.order_id, query))) == ["0.jpg"]
    assert order.polls == 1


async def test_what_appears_is_bounded(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """An order that grows beyond MAX_IMAGES_PER_ORDER gives what fits, and names the rest."""
    service = await start_service(webhook_secret=SecretStr(SECRET), max_images_per_order=2)
    order = sandbox.add_order([image(0)], processing=True)

    def change() -> None:
        for number in (1, 2):
            sandbox.add_image(order.order_id, image(number))
        order.is_processing = False

    sandbox.on_poll(order.order_id, 2, change)
    _, body = await waited_for(client, service, order.order_id)
    manifest = json.loads(entries(body)["_manifest.json"])
    assert [one["reason"] for one in manifest["images"]] == [None, None, "rejected"]


async def test_an_order_that_is_still_merging(sandbox: Sandbox, live: str, client: aiohttp.ClientSession) -> None:
    """While brackets are grouped no image is listed; a caller that waits gets them when they are."""
    order = sandbox.add_order([], merging=True)

    def merged() -> None:
        order.is_merging = False
        sandbox.add_image(order.order_id, image(0))
        sandbox.add_image(order.order_id, image(1))

    sandbox.on_poll(order.order_id, 3, merged)
    status, body = await waited_for(client, live, order.order_id)
    assert (status, sorted(entries(body))) == (200, ["0.jpg", "1.jpg"])


@pytest.mark.parametrize(
    ("asked", "status", "names"),
    [
        pytest.param("id-of-1", 200, ["1.jpg"], id="in the list"),
        pytest.param("id-of-2", 200, ["2.jpg"], id="in the list, and not ready yet"),
        pytest.param("id-of-9", 400, [], id="not in the list"),
    ],
)
async def test_who_names_images_waits_for_the_list(
    asked: str, status: int, names: list[str], sandbox: Sandbox, live: str, client: aiohttp.ClientSession
) -> None:
    """Whether an order has an image is not known while it is being merged: nobody is refused for it till then."""
    order = sandbox.add_order([], merging=True)

    def merged() -> None:
        order.is_merging = False
        for number, polls in ((0, None), (1, None), (2, 2)):
            sandbox.add_image(order.order_id, image(number, image_id=f"id-of-{number}", ready_after_polls=polls))

    sandbox.on_poll(order.order_id, 3, merged)
    found, body = await waited_for(client, live, order.order_id, f"?wait=60&only={asked}")
    assert found == status, body
    if status == 200:
        assert list(entries(body)) == names
    else:
        problem = json.loads(body)
        assert (problem["type"], problem["image_id"]) == ("/problems/image-not-in-order", asked)


async def test_a_list_that_does_not_come_in_time(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """If the order is still being merged when the wait is over, that is the answer, also to who names images."""
    order = sandbox.add_order([], merging=True)
    async with client.get(images_url(service, order.order_id, "?wait=1&only=x")) as response:
        assert (response.status, (await response.json())["type"]) == (409, "/problems/order-not-ready")
    assert order.polls > 1


async def test_one_look_serves_all_who_wait(sandbox: Sandbox, live: str, client: aiohttp.ClientSession) -> None:
    """Archives that wait for the same order share the looks at it."""
    order = sandbox.add_order([image(0), image(1, status="processing")])
    urls = [images_url(live, order.order_id, "?wait=60")] * 5
    responses = await asyncio.gather(*(client.get(url) for url in urls))
    before = order.polls
    order.images[1].status = "processed"
    reading = asyncio.gather(*(response.read() for response in responses))
    await notify(client, live, order.order_id)
    assert [len(entries(body)) for body in await reading] == [2] * 5
    assert (before, order.polls) == (5, 6)


async def test_a_look_that_fails_ends_nothing(sandbox: Sandbox, live: str, client: aiohttp.ClientSession) -> None:
    """Whoever waits goes on waiting when the upstream fails for a moment."""
    order = sandbox.add_order([image(0), image(1, ready_after_polls=2)])
    sandbox.faults.order(order.order_id, [None, *[Fault(Kind.STATUS, status=404)] * 2])
    _, body = await waited_for(client, live, order.order_id)
    assert sorted(entries(body)) == ["0.jpg", "1.jpg"]


@pytest.mark.parametrize("streaming", [True, False], ids=["after the first byte", "before it"])
async def test_a_fault_of_ours_while_waiting(
    sandbox: Sandbox,
    live: str,
    client: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
    streaming: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """A mistake in the looks breaks the archive off, or is a 500: it does not pass for images that never got ready."""
    answers: list[bytes] = []

    def fail_later(order_id: str, payload: bytes) -> Order:
        answers.append(payload)
        if len(answers) > 1:
            raise ZeroDivisionError
        return read_order(order_id, payload)

    monkeypatch.setattr("service.upstream.api.read_order", fail_later)
    images = [image(0), image(1, status="processing")] if streaming else []
    order = sandbox.add_order(images, merging=not streaming)
    asking = asyncio.create_task(client.get(images_url(live, order.order_id, "?wait=60")))
    if streaming:
        await asyncio.wait([asking])
    while len(answers) < 2:
        await notify(client, live, order.order_id)
    response = await asking
    assert response.status == (200 if streaming else 500)
    if streaming:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_a_client_that_leaves_ends_the_looks(sandbox: Sandbox, live: str) -> None:
    """Nobody looks at an order that nobody waits for."""
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


async def test_nothing_is_bought_for_who_waits_no_longer(sandbox: Sandbox, live: str) -> None:
    """What becomes ready after the client has left is not bought for it."""
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


async def test_credits_bound_what_appears(sandbox: Sandbox, live: str, client: aiohttp.ClientSession) -> None:
    """An image that appears later is bought only within max_credits."""
    order = sandbox.add_order([image(0), image(1, status="processing")], processing=True)

    def change() -> None:
        order.images[1].status = "processed"
        sandbox.add_image(order.order_id, image(2))
        sandbox.add_image(order.order_id, image(3))
        order.is_processing = False

    sandbox.on_poll(order.order_id, 3, change)
    _, body = await waited_for(client, live, order.order_id, "?wait=60&preview=false&max_credits=3")
    manifest = json.loads(entries(body)["_manifest.json"])
    assert [one["reason"] for one in manifest["images"]] == [None, None, None, "no_credits"]
    assert sandbox.credits_spent == 3


@pytest.mark.parametrize("wait", ["-1", "601", "x"])
async def test_bad_waits(wait: str, service: str, client: aiohttp.ClientSession) -> None:
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
async def test_notices(secret: str, body: bytes, status: int, live: str, client: aiohttp.ClientSession) -> None:
    """Notices are taken with the secret only, whatever they say."""
    headers = {"Authentication": secret}
    async with client.post(f"{live}/webhooks/autoenhance", data=body, headers=headers) as response:
        assert response.status == status


async def test_wrong_secrets_of_notices_count_as_guesses(
    start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """Whoever tries secrets out gets a 429, for the right one and for keys too; a notice without one is no guess."""
    keys = {"service_api_keys": (SecretStr("a-key-of-the-service"),), "webhook_secret": SecretStr(SECRET)}
    service = await start_service(**keys, auth_failures_per_minute=2)

    async def noticed(secret: str) -> int:
        headers = {"Authentication": secret} if secret else {}
        async with client.post(f"{service}/webhooks/autoenhance", json={}, headers=headers) as response:
            return response.status

    assert [await noticed(secret) for secret in ("", "", "", SECRET)] == [401, 401, 401, 204]
    assert [await noticed(secret) for secret in ("wrong", "also wrong", SECRET)] == [401, 401, 429]
    async with client.get(images_url(service, DEMO_ORDER_ID), headers={"X-API-Key": "a-key-of-the-service"}) as refused:
        assert (refused.status, int(refused.headers["Retry-After"]) > 0) == (429, True)


async def test_notices_are_off_without_a_secret(service: str, client: aiohttp.ClientSession) -> None:
    """A service that was given no secret believes nobody."""
    async with client.post(f"{service}/webhooks/autoenhance", json={}, headers={"Authentication": ""}) as response:
        assert (response.status, (await response.json())["type"]) == (503, "/problems/webhooks-not-configured")


# Fetch what is missing.


async def test_a_manifest_brings_what_it_lacks(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """POST with the manifest of an archive gives exactly the images that are missing there."""
    order = sandbox.add_order([image(n) for n in range(4)])
    for lost in (1, 3):
        sandbox.faults.always(order.images[lost].image_id, Fault(Kind.STATUS, status=404), origin="api")
    files = await download(client, images_url(service, order.order_id))
    sandbox.faults.clear()
    url = images_url(service, order.order_id, "?manifest=always")
    async with client.post(url, data=files["_manifest.json"]) as response:
        rest = entries(await response.read())
    assert [name for name in rest if name.endswith(".jpg")] == ["1.jpg", "3.jpg"]
    async with client.post(url, data=rest["_manifest.json"]) as response:
        assert (response.status, await response.read()) == (204, b"")


async def test_a_manifest_may_be_older_than_the_order(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """What was taken out of the order meanwhile is reported, and keeps nothing else back: not by body, nor by URL."""
    order = sandbox.add_order([image(0), image(1, status="processing"), image(2, status="processing")])
    files = await download(client, images_url(service, order.order_id))
    gone, ready = order.images[1], order.images[2]
    sandbox.remove_image(gone.image_id)
    ready.status = "processed"
    async with client.post(images_url(service, order.order_id), data=files["_manifest.json"]) as response:
        assert (response.status, response.headers["X-Total-Images"]) == (200, "2")
        rest = entries(await response.read())
    assert next(iter(rest)) == "2.jpg"
    manifest = json.loads(rest["_manifest.json"])
    assert [(one["image_id"], one["reason"]) for one in manifest["images"]] == [
        (ready.image_id, None),
        (gone.image_id, "not_found"),
    ]
    assert (manifest["missing"], manifest["retry_urls"]) == ([gone.image_id], [])
    async with client.post(images_url(service, order.order_id), data=rest["_manifest.json"]) as response:
        problem = await response.json()
    assert (response.status, [one["reason"] for one in problem["failures"]]) == (422, ["not_found"])


async def test_many_ids_need_no_url(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """Ids that no URL could hold are taken from the body."""
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
        pytest.param("", b"{}", id="nothing asked for"),
        pytest.param("", b'{"only": []}', id="empty list"),
        pytest.param("", b'{"only": [1]}', id="no ids"),
        pytest.param("", b'{"missing": ["x"], "order_id": "another"}', id="another order"),
        pytest.param("", b'{"only": ["x"]}', id="unknown id"),
        pytest.param("?only=x", b'{"only": ["x"]}', id="both"),
        pytest.param("", b" " * (2000 * 2048 + 1), id="too large"),
    ],
)
async def test_bodies_that_ask_for_nothing(
    query: str, body: bytes, service: str, client: aiohttp.ClientSession
) -> None:
    """What is no manifest of this order and no list of its images is refused."""
    async with client.post(images_url(service, DEMO_ORDER_ID, query), data=io.BytesIO(body)) as response:
        assert response.status == 400
