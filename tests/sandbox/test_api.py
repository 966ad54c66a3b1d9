"""API origin: orders, authentication, validation, redirects and the ledger."""

import json
from collections.abc import Awaitable, Callable
from urllib.parse import quote

import pytest
from aiohttp import ClientSession
from yarl import URL

from service.sandbox import (
    DEMO_ORDER_ID,
    EMPTY_ORDER_ID,
    LARGE_ORDER_ID,
    LIVE_ORDER_ID,
    MERGING_ORDER_ID,
    PARTIAL_ORDER_ID,
    Sandbox,
    SandboxImage,
)

StorageUrl = Callable[..., Awaitable[str]]


@pytest.mark.parametrize("slash", ["", "/"])
async def test_order_is_returned_without_key_and_with_any_slash(
    sandbox: Sandbox, session: ClientSession, slash: str
) -> None:
    """An order needs no key and no trailing slash; its times are naive, with microseconds."""
    async with session.get(f"{sandbox.api_base}/orders/{DEMO_ORDER_ID}{slash}") as response:
        order = await response.json()
    assert response.status == 200
    assert order["order_id"] == DEMO_ORDER_ID
    assert order["total_images"] == len(order["images"]) == 14
    assert order["created_at"] == "2025-09-01T09:30:00.123456"
    assert {image["status"] for image in order["images"]} == {"processed"}


@pytest.mark.parametrize(
    ("order_id", "images", "merging", "processing"),
    [
        (EMPTY_ORDER_ID, 0, False, False),
        (MERGING_ORDER_ID, 0, True, True),
        (LARGE_ORDER_ID, 1000, False, False),
        (PARTIAL_ORDER_ID, 7, False, True),
        (LIVE_ORDER_ID, 6, False, True),
    ],
    ids=["empty", "merging", "large", "partial", "live"],
)
async def test_fixed_orders_cover_each_situation(
    sandbox: Sandbox, session: ClientSession, order_id: str, images: int, *, merging: bool, processing: bool
) -> None:
    """Each fixed order is one situation of a download."""
    async with session.get(f"{sandbox.api_base}/orders/{order_id}") as response:
        order = await response.json()
    assert len(order["images"]) == images
    assert (order["is_merging"], order["is_processing"]) == (merging, processing)


async def test_live_order_completes_after_some_polls(sandbox: Sandbox, session: ClientSession) -> None:
    """Images of the live order become processed by the number of polls alone."""
    ready, order = [], {}
    for _ in range(6):
        async with session.get(f"{sandbox.api_base}/orders/{LIVE_ORDER_ID}") as response:
            order = await response.json()
        ready.append(sum(image["status"] == "processed" for image in order["images"]))
    assert ready == [2, 3, 4, 5, 5, 6]
    assert order["is_processing"] is False


async def test_poll_actions_change_an_order(sandbox: Sandbox, session: ClientSession) -> None:
    """Actions run right before the response to their poll."""
    order = sandbox.add_order([SandboxImage("a.jpg"), SandboxImage("b.jpg")])
    first, second = order.images
    sandbox.on_poll(order.order_id, 2, lambda: sandbox.remove_image(first.image_id))
    sandbox.on_poll(order.order_id, 2, lambda: sandbox.set_status(second.image_id, "error", "broken"))
    sandbox.on_poll(order.order_id, 3, lambda: sandbox.add_image(order.order_id, SandboxImage("c.jpg")))
    polls = []
    for _ in range(3):
        async with session.get(f"{sandbox.api_base}/orders/{order.order_id}") as response:
            polls.append([(image["image_name"], image["status"]) for image in (await response.json())["images"]])
    assert polls == [
        [("a.jpg", "processed"), ("b.jpg", "processed")],
        [("b.jpg", "error")],
        [("b.jpg", "error"), ("c.jpg", "processed")],
    ]


async def test_extra_fields_are_added_and_removed(sandbox: Sandbox, session: ClientSession) -> None:
    """Tests can change the JSON of an image."""
    order = sandbox.add_order([SandboxImage("a.jpg", status=None, extra={"new_field": [1], "downloaded": ...})])
    async with session.get(f"{sandbox.api_base}/images/{order.images[0].image_id}/") as response:
        image = await response.json()
    assert image["new_field"] == [1]
    assert image["status"] is None
    assert "downloaded" not in image


async def test_old_api_versions_have_booleans(sandbox: Sandbox, session: ClientSession) -> None:
    """Before 2024-09-30 images had ``enhanced`` and ``error``."""
    url = f"{sandbox.api_base}/orders/{PARTIAL_ORDER_ID}"
    async with session.get(url, headers={"x-api-version": "2024-09-24"}) as response:
        images = (await response.json())["images"]
    assert [image["enhanced"] for image in images] == [image["status"] == "processed" for image in images]
    async with session.get(url, headers={"x-api-version": "2025-05-05"}) as response:
        assert "enhanced" not in (await response.json())["images"][0]


async def test_orders_are_paginated(sandbox: Sandbox, session: ClientSession) -> None:
    """``next_offset`` leads through all orders and is null at the end."""
    key = {"x-api-key": sandbox.api_key}
    async with session.get(f"{sandbox.api_base}/orders/", headers=key) as response:
        first = await response.json()
    assert len(first["orders"]) == first["pagination"]["per_page"] == 5
    query = {"offset": first["pagination"]["next_offset"]}
    async with session.get(f"{sandbox.api_base}/orders", params=query, headers=key) as response:
        second = await response.json()
    assert [order["order_id"] for order in second["orders"]] == [LIVE_ORDER_ID]
    assert second["pagination"]["next_offset"] is None


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/orders/"),
        ("POST", "/orders/"),
        ("POST", "/images/"),
        ("GET", f"/images/{DEMO_ORDER_ID}/enhanced"),
    ],
)
@pytest.mark.parametrize("key", [None, "wrong"])
async def test_missing_or_wrong_key_is_401(
    sandbox: Sandbox, session: ClientSession, method: str, path: str, key: str | None
) -> None:
    """Listing, creating and the enhanced image are 401 without the right key."""
    headers = {} if key is None else {"x-api-key": key}
    async with session.request(method, sandbox.api_base + path, headers=headers) as response:
        assert response.status == 401
        assert await response.json() == {"detail": {}, "message": "Unauthorized"}


@pytest.mark.parametrize("path", ["/orders/unknown", "/images/unknown", "/images/unknown/enhanced", "/nothing"])
async def test_unknown_resources_are_404(sandbox: Sandbox, session: ClientSession, path: str) -> None:
    """Errors have the API's format."""
    async with session.get(sandbox.api_base + path, headers={"x-api-key": sandbox.api_key}) as response:
        assert response.status == 404
        assert await response.json() == {"detail": {}, "message": "Not Found"}


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("quality=0", "quality"),
        ("quality=91", "quality"),
        ("quality=high", "quality"),
        ("format=tiff", "format"),
        ("max_width=0", "max_width"),
        ("scale=1.5", "scale"),
        ("scale=nan", "scale"),
        ("preview=perhaps", "preview"),
        ("watermark=2", "watermark"),
    ],
)
async def test_invalid_parameters_are_422_with_their_names(
    sandbox: Sandbox, session: ClientSession, query: str, field: str
) -> None:
    """A 422 names the invalid field."""
    image_id = sandbox.orders[DEMO_ORDER_ID].images[0].image_id
    url = f"{sandbox.api_base}/images/{image_id}/enhanced?{query}"
    async with session.get(url, headers={"x-api-key": sandbox.api_key}) as response:
        body = await response.json()
    assert response.status == 422
    assert body["message"] == "Validation error"
    assert list(body["detail"]["query"]) == [field]


async def test_download_follows_two_redirects(
    sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl
) -> None:
    """The first redirect is relative, the second leads to the storage, which needs no key."""
    image_id = sandbox.orders[DEMO_ORDER_ID].images[0].image_id
    url = await storage_url(image_id, "preview=true&format=png")
    assert url.startswith(sandbox.storage_origin)
    async with session.get(url) as response:
        assert response.status == 200
        assert response.content_type == "image/png"
        assert await response.read() == sandbox.body(image_id, "png")
    assert [(record.origin, record.status) for record in sandbox.requests_for(image_id)] == [
        ("api", 302),
        ("asset", 302),
        ("storage", 200),
    ]
    assert len({record.token for record in sandbox.requests_for(image_id)}) == 1
    assert sandbox.requests_for(image_id, "storage")[0].bytes_sent == len(sandbox.body(image_id, "png"))


async def test_each_request_gets_a_new_target(
    sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl
) -> None:
    """Two requests lead to two URLs; the second use of a URL is counted."""
    image_id = sandbox.orders[DEMO_ORDER_ID].images[0].image_id
    first, second = await storage_url(image_id), await storage_url(image_id)
    assert first != second
    for url in (first, second):
        await (await session.get(url)).read()
    assert sandbox.reused_targets == 0
    await (await session.get(first)).read()
    assert sandbox.reused_targets == 1


@pytest.mark.parametrize("status", ["waiting", "processing", "error", "expired", None])
async def test_unprocessed_images_cannot_be_downloaded(
    sandbox: Sandbox, session: ClientSession, status: str | None
) -> None:
    """The status code is configurable, as it is not documented."""
    image = sandbox.add_order([SandboxImage(status=status)]).images[0]
    url = f"{sandbox.api_base}/images/{image.image_id}/enhanced?preview=false"
    for code in (404, 409):
        sandbox.not_ready_status = code
        async with session.get(url, headers={"x-api-key": sandbox.api_key}) as response:
            assert response.status == code
    assert sandbox.credits_spent == 0


@pytest.mark.parametrize(
    ("query", "headers", "credits_spent"),
    [
        ("", {}, 0),
        ("preview=true", {}, 0),
        ("preview=false", {}, 1),
        ("preview=FALSE", {}, 1),
        ("preview=false", {"x-dev-mode": "true"}, 0),
        ("preview=false&quality=99", {}, 0),
    ],
)
async def test_only_full_quality_costs(
    sandbox: Sandbox, session: ClientSession, query: str, headers: dict[str, str], credits_spent: int
) -> None:
    """A credit is spent once per image, for full quality outside dev mode, and ``downloaded`` becomes true."""
    image = sandbox.orders[DEMO_ORDER_ID].images[0]
    url = f"{sandbox.api_base}/images/{image.image_id}/enhanced?{query}"
    for _ in range(2):
        await session.get(url, headers={"x-api-key": sandbox.api_key, **headers}, allow_redirects=False)
    assert sandbox.credits_spent == sum(sandbox.ledger.values()) == credits_spent
    assert image.downloaded is bool(credits_spent)


async def test_repeated_purchase_may_cost_again(sandbox: Sandbox, session: ClientSession) -> None:
    """With ``repeats_cost`` every request for full quality costs, also for a paid image."""
    (image,) = sandbox.add_order([SandboxImage("a.jpg")]).images
    for repeats_cost, spent in ((False, 1), (False, 1), (True, 2), (True, 3)):
        sandbox.repeats_cost = repeats_cost
        url = f"{sandbox.api_base}/images/{image.image_id}/enhanced?preview=false"
        async with session.get(url, headers={"x-api-key": sandbox.api_key}, allow_redirects=False) as response:
            assert response.status == 302
        assert sandbox.ledger == {image.image_id: spent}


async def test_head_buys_too(sandbox: Sandbox, session: ClientSession) -> None:
    """The API's framework runs the same code for HEAD as for GET."""
    image = sandbox.orders[DEMO_ORDER_ID].images[0]
    url = f"{sandbox.api_base}/images/{image.image_id}/enhanced?preview=false"
    async with session.head(url, headers={"x-api-key": sandbox.api_key}) as response:
        assert response.status == 302
    assert sandbox.ledger == {image.image_id: 1}


async def test_balance_runs_out(sandbox: Sandbox, session: ClientSession) -> None:
    """Without credits the status is the configured one; paid images stay free."""
    sandbox.credits = 1
    first, second = sandbox.orders[DEMO_ORDER_ID].images[:2]
    statuses = []
    for image in (first, second, first):
        url = f"{sandbox.api_base}/images/{image.image_id}/enhanced?preview=false"
        async with session.get(url, headers={"x-api-key": sandbox.api_key}, allow_redirects=False) as response:
            statuses.append(response.status)
    assert statuses == [302, 402, 302]


async def test_rate_limit_counts_per_second(sandbox: Sandbox, session: ClientSession) -> None:
    """Requests above the limit are 429 until the next second of the clock."""
    now = 100.0
    sandbox.clock = lambda: now
    sandbox.rate_limit = 3
    url = f"{sandbox.api_base}/orders/{EMPTY_ORDER_ID}"
    statuses = [(await session.get(url)).status for _ in range(4)]
    now += 1
    statuses.append((await session.get(url)).status)
    assert statuses == [200, 200, 200, 429, 200]


async def test_old_preview_and_original_need_no_key(sandbox: Sandbox, session: ClientSession) -> None:
    """The two older URLs of a picture are free."""
    image = sandbox.orders[DEMO_ORDER_ID].images[0]
    async with session.get(f"{sandbox.api_base}/images/{image.image_id}/preview") as response:
        assert await response.read() == sandbox.body(image.image_id)
    async with session.get(f"{sandbox.api_base}/images/{image.image_id}/original") as response:
        assert response.status == 200
        assert await response.read() == sandbox.body(image.image_id, preview=False)
    assert sandbox.ledger == {}


async def test_ids_may_contain_any_character(sandbox: Sandbox, session: ClientSession) -> None:
    """An id is any text: percent-encoded in every URL, and decoded again."""
    odd = "a b/ü?#%"
    sandbox.add_order([SandboxImage(image_id=odd)], order_id=odd)
    encoded = quote(odd, safe="")
    async with session.get(URL(f"{sandbox.api_base}/orders/{encoded}", encoded=True)) as response:
        assert (await response.json())["images"][0]["image_id"] == odd
    async with session.get(URL(f"{sandbox.api_base}/images/{encoded}/preview", encoded=True)) as response:
        assert await response.read() == sandbox.body(odd)


async def test_large_order_is_one_response(sandbox: Sandbox, session: ClientSession) -> None:
    """The large order arrives in one response, as the API has no paging for images."""
    async with session.get(f"{sandbox.api_base}/orders/{LARGE_ORDER_ID}") as response:
        images = json.loads(await response.read())["images"]
    assert len({image["image_id"] for image in images}) == 1000
