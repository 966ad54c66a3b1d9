"""Fault injection: each kind has its effect on the wire, at the request it was scripted for."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from aiohttp import ClientConnectorError, ClientPayloadError, ClientSession, TooManyRedirects

from service.sandbox import ANY_IMAGE, DEMO_ORDER_ID, Fault, FaultPlan, Kind, Origin, Sandbox, SandboxImage
from tests.sandbox.conftest import RawResponse

StorageUrl = Callable[..., Awaitable[str]]
RawGet = Callable[..., Coroutine[Any, Any, RawResponse]]
SIZE = 300_000


@pytest.fixture
def image_id(sandbox: Sandbox) -> str:
    """The id of an image of SIZE bytes."""
    return sandbox.add_order([SandboxImage("a.jpg", size_bytes=SIZE)]).images[0].image_id


@pytest.fixture
def order_url(sandbox: Sandbox) -> str:
    return f"{sandbox.api_base}/orders/{DEMO_ORDER_ID}"


def enhanced_url(sandbox: Sandbox, image_id: str) -> str:
    return f"{sandbox.api_base}/images/{image_id}/enhanced?preview=true"


@pytest.mark.parametrize("origin", ["api", "asset", "storage"])
@pytest.mark.parametrize(
    ("fault", "status", "content_type", "retry_after"),
    [
        (Fault(Kind.STATUS, status=429), 429, "application/json", None),
        (Fault(Kind.STATUS, status=429, retry_after=2), 429, "application/json", "2"),
        (
            Fault(Kind.STATUS, status=503, retry_after="Sun, 06 Nov 1994 08:49:37 GMT"),
            503,
            "application/json",
            "Sun, 06 Nov 1994 08:49:37 GMT",
        ),
        (Fault(Kind.STATUS, status=500), 500, "application/json", None),
        (Fault(Kind.STATUS, status=502, json_body=False), 502, "text/html", None),
        (Fault(Kind.STATUS, status=504, json_body=False), 504, "text/html", None),
        (Fault(Kind.HTML), 200, "text/html", None),
        (Fault(Kind.JSON), 200, "application/json", None),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else None,
)
async def test_fault_replaces_the_response(
    sandbox: Sandbox,
    session: ClientSession,
    *,
    image_id: str,
    origin: Origin,
    fault: Fault,
    status: int,
    content_type: str,
    retry_after: str | None,
) -> None:
    """Every hop can send a wrong response, and only to the request it was scripted for."""
    sandbox.faults.script(image_id, [fault, None], origin=origin)
    key = {"x-api-key": sandbox.api_key}
    url = await _last_hop_before(sandbox, session, image_id, origin)
    async with session.get(url, headers=key if origin == "api" else {}) as response:
        assert (response.status, response.content_type) == (status, content_type)
        assert response.headers.get("Retry-After") == retry_after
    url = await _last_hop_before(sandbox, session, image_id, origin)
    async with session.get(url, headers=key if origin == "api" else {}, allow_redirects=False) as response:
        assert response.status == (200 if origin == "storage" else 302)
    assert sandbox.faults.injected == {fault.kind: 1}
    assert [record.fault for record in sandbox.requests_for(image_id, origin)] == [fault.kind, None]


async def _last_hop_before(sandbox: Sandbox, session: ClientSession, image_id: str, origin: Origin) -> str:
    url = enhanced_url(sandbox, image_id)
    for hop in ("api", "asset"):
        if hop == origin:
            return url
        async with session.get(url, headers={"x-api-key": sandbox.api_key}, allow_redirects=False) as response:
            url = response.headers["Location"]
        url = sandbox.api_origin + url if url.startswith("/") else url
    return url


@pytest.mark.parametrize("origin", ["api", "asset", "storage"])
async def test_reset_sends_no_byte(
    sandbox: Sandbox, session: ClientSession, raw_get: RawGet, image_id: str, origin: Origin
) -> None:
    """The connection is reset before the first byte."""
    sandbox.faults.script(image_id, [Fault(Kind.RESET)], origin=origin)
    url = await _last_hop_before(sandbox, session, image_id, origin)
    reply = await raw_get(url, {"x-api-key": sandbox.api_key} if origin == "api" else {})
    assert (reply.head, reply.body, reply.ending) == ("", b"", "reset")


@pytest.mark.parametrize(
    ("fault", "ending", "sent"),
    [
        (Fault(Kind.RESET, after_bytes=0), "reset", 0),
        (Fault(Kind.RESET, after_bytes=1000), "reset", 1000),
        (Fault(Kind.RESET, after_bytes=10**9), "reset", -1),
        (Fault(Kind.CLOSE_EARLY), "eof", 0),
        (Fault(Kind.CLOSE_EARLY, after_bytes=1000), "eof", 1000),
        (Fault(Kind.CLOSE_EARLY, after_bytes=10**9), "eof", -1),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else None,
)
@pytest.mark.parametrize("start", [0, 200_000])
async def test_cut_body_ends_early(
    sandbox: Sandbox,
    storage_url: StorageUrl,
    raw_get: RawGet,
    *,
    image_id: str,
    start: int,
    fault: Fault,
    ending: str,
    sent: int,
) -> None:
    """Content-Length is that of the whole body; ``after_bytes`` counts from the start of this response."""
    sandbox.faults.script(image_id, [fault])
    reply = await raw_get(await storage_url(image_id), {"Range": f"bytes={start}-"})
    rest = sandbox.body(image_id)[start:]
    assert reply.ending == ending
    assert reply.header("Content-Length") == str(len(rest))
    assert reply.body == rest[: sent if sent >= 0 else len(rest) - 1]


async def test_chunked_unterminated_omits_the_last_chunk(
    sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl, raw_get: RawGet, image_id: str
) -> None:
    """Chunks, then a clean close without the last chunk."""
    sandbox.faults.always(image_id, Fault(Kind.CHUNKED_UNTERMINATED, after_bytes=1000))
    reply = await raw_get(await storage_url(image_id))
    assert reply.header("Transfer-Encoding") == "chunked"
    assert reply.ending == "eof"
    assert reply.body == b"3e8\r\n" + sandbox.body(image_id)[:1000] + b"\r\n"
    async with session.get(await storage_url(image_id)) as response:
        with pytest.raises(ClientPayloadError):
            await response.read()


@pytest.mark.parametrize(
    ("kind", "chunked"), [(Kind.NO_LENGTH, True), (Kind.CLOSE_DELIMITED, False)], ids=["chunked", "close"]
)
async def test_body_without_length_is_complete(
    sandbox: Sandbox, storage_url: StorageUrl, raw_get: RawGet, image_id: str, kind: Kind, *, chunked: bool
) -> None:
    """The body is complete, its length not announced."""
    sandbox.faults.script(image_id, [Fault(kind)])
    reply = await raw_get(await storage_url(image_id))
    assert reply.header("Content-Length") is None
    assert (reply.header("Transfer-Encoding") == "chunked") is chunked
    assert reply.ending == "eof"
    assert reply.body.endswith(b"\r\n0\r\n\r\n" if chunked else b"\xff\xd9")
    assert chunked or reply.body == sandbox.body(image_id)


async def test_longer_body_exceeds_content_length(
    sandbox: Sandbox, storage_url: StorageUrl, raw_get: RawGet, image_id: str
) -> None:
    """More bytes follow than Content-Length."""
    sandbox.faults.script(image_id, [Fault(Kind.LONGER)])
    reply = await raw_get(await storage_url(image_id))
    assert reply.header("Content-Length") == str(SIZE)
    assert reply.body.startswith(sandbox.body(image_id))
    assert len(reply.body) > SIZE


async def test_second_response_follows_the_last_chunk(
    sandbox: Sandbox, storage_url: StorageUrl, raw_get: RawGet, image_id: str
) -> None:
    """Another response follows the last chunk."""
    sandbox.faults.script(image_id, [Fault(Kind.SECOND_RESPONSE)])
    reply = await raw_get(await storage_url(image_id))
    assert reply.header("Transfer-Encoding") == "chunked"
    assert b"\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n" in reply.body


async def test_endless_trailers_last_until_the_client_closes(
    sandbox: Sandbox, storage_url: StorageUrl, raw_get: RawGet, image_id: str
) -> None:
    """Trailers follow the last chunk until the client closes the connection."""
    sandbox.faults.script(image_id, [Fault(Kind.ENDLESS_TRAILERS)])
    reply = await raw_get(await storage_url(image_id), stop_after=SIZE + 200_000)
    assert reply.body.partition(b"\r\n0\r\n")[2].startswith(b"X-Trailer: ")
    await sandbox.wait_until(lambda: sandbox.active_requests == 0)


async def test_padded_headers_have_white_space(
    sandbox: Sandbox, storage_url: StorageUrl, raw_get: RawGet, image_id: str
) -> None:
    """Every header value has white space around it."""
    sandbox.faults.script(image_id, [Fault(Kind.PADDED_HEADERS)])
    reply = await raw_get(await storage_url(image_id))
    assert reply.header("Content-Length") == f" \t {SIZE} \t "
    assert reply.body == sandbox.body(image_id)


async def test_close_reused_closes_reused_connections(
    sandbox: Sandbox, session: ClientSession, raw_get: RawGet, image_id: str
) -> None:
    """A new connection serves its first request and is closed at the second, which the client may repeat."""
    sandbox.faults.always(image_id, Fault(Kind.CLOSE_REUSED))
    url = await _last_hop_before(sandbox, session, image_id, "storage")
    reply = await raw_get(url)
    assert reply.body == sandbox.body(image_id)
    url = await _last_hop_before(sandbox, session, image_id, "storage")
    async with session.get(await _last_hop_before(sandbox, session, image_id, "storage")) as response:
        await response.read()
    async with session.get(url) as response:  # aiohttp repeats it automatically
        assert await response.read() == sandbox.body(image_id)
    assert [(one.status, one.reused) for one in sandbox.requests_for(image_id, "storage")] == [
        (200, False), (200, False), (0, True), (200, False),
    ]  # fmt: skip
    assert sandbox.reused_targets == 0


@pytest.mark.parametrize("after_bytes", [None, 0, 1000])
async def test_stall_ends_with_the_client(
    sandbox: Sandbox, storage_url: StorageUrl, raw_get: RawGet, image_id: str, after_bytes: int | None
) -> None:
    """A stalled response sends ``after_bytes`` and no more; its handler ends when the client disconnects."""
    sandbox.faults.script(image_id, [Fault(Kind.STALL, after_bytes=after_bytes)])
    url = await storage_url(image_id)
    if after_bytes is None:
        reading = asyncio.create_task(raw_get(url))
        await sandbox.wait_until(lambda: sandbox.active_requests == 1)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    else:
        reply = await raw_get(url, stop_after=after_bytes)
        assert reply.body == sandbox.body(image_id)[:after_bytes]
    await sandbox.wait_until(lambda: sandbox.active_requests == 0)
    assert sandbox.faults.injected[Kind.STALL] == 1


@pytest.mark.parametrize("after_bytes", [None, 0, 1000])
async def test_pause_lasts_until_released(
    sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl, image_id: str, after_bytes: int | None
) -> None:
    """A gate pauses one response at its byte and lets it continue."""
    gate = sandbox.faults.pause(image_id, after_bytes=after_bytes)
    url = await storage_url(image_id)
    reading = asyncio.create_task(_read(session, url))
    await gate.reached.wait()
    assert sandbox.active_requests == 1
    assert sandbox.requests_for(image_id, "storage")[0].bytes_sent == (after_bytes or 0)
    gate.release()
    assert await reading == sandbox.body(image_id)


@pytest.mark.parametrize("origin", ["api", "asset"])
async def test_pause_applies_to_every_hop(
    sandbox: Sandbox, session: ClientSession, image_id: str, origin: Origin
) -> None:
    """The hops before the storage can be paused too."""
    gate = sandbox.faults.pause(image_id, origin=origin)
    url = await _last_hop_before(sandbox, session, image_id, origin)
    reading = asyncio.create_task(session.get(url, headers={"x-api-key": sandbox.api_key}, allow_redirects=False))
    await gate.reached.wait()
    assert sandbox.requests_for(image_id, origin)[0].status == 0
    gate.release()
    assert (await reading).status == 302


async def _read(session: ClientSession, url: str) -> bytes:
    async with session.get(url) as response:
        return await response.read()


async def test_drip_is_complete(
    sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl, image_id: str
) -> None:
    """The slow chunks add up to the body."""
    sandbox.faults.script(image_id, [Fault(Kind.DRIP, chunk_bytes=100_000, delay_seconds=0.001)])
    assert await _read(session, await storage_url(image_id)) == sandbox.body(image_id)


@pytest.mark.parametrize("origin", ["api", "asset", "storage"])
async def test_slow_start_changes_nothing_else(
    sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl, image_id: str, origin: Origin
) -> None:
    """Every hop can delay its response."""
    sandbox.faults.script(image_id, [Fault(Kind.SLOW_START, delay_seconds=0.001)], origin=origin)
    assert await _read(session, await storage_url(image_id)) == sandbox.body(image_id)
    assert sandbox.faults.injected == {Kind.SLOW_START: 1}


async def test_wrong_type_and_magic_change_one_thing(
    sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl, image_id: str
) -> None:
    """First the right bytes with a wrong type, then the right type with as many wrong bytes."""
    sandbox.faults.script(image_id, [Fault(Kind.WRONG_TYPE, content_type="text/plain"), Fault(Kind.WRONG_MAGIC)])
    async with session.get(await storage_url(image_id)) as response:
        assert response.content_type == "text/plain"
        assert await response.read() == sandbox.body(image_id)
    async with session.get(await storage_url(image_id)) as response:
        assert response.content_type == "image/jpeg"
        content = await response.read()
    assert content.startswith(b"not an image")
    assert len(content) == SIZE


async def test_changed_content_cannot_be_resumed(
    sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl, image_id: str
) -> None:
    """Changed content still starts like an image, but its entity tag differs, so If-Range does not match."""
    sandbox.faults.script(image_id, [None, Fault(Kind.CHANGED)])
    async with session.get(await storage_url(image_id)) as response:
        etag, content = response.headers["ETag"], await response.read()
    headers = {"Range": "bytes=1000-", "If-Range": etag}
    async with session.get(await storage_url(image_id), headers=headers) as response:
        assert response.status == 200
        assert response.headers["ETag"] != etag
        changed = await response.read()
    assert len(changed) == SIZE + 7
    assert changed[:4] == content[:4]
    assert changed[100:1000] != content[100:1000]


async def test_silently_changed_content_has_no_etag(
    sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl, image_id: str
) -> None:
    """Only the bytes show that the content is different, from whatever offset they are read."""
    sandbox.faults.always(image_id, Fault(Kind.CHANGED_SILENTLY))
    async with session.get(await storage_url(image_id)) as response:
        assert "ETag" not in response.headers
        changed = await response.read()
    assert len(changed) == SIZE
    assert changed != sandbox.body(image_id)
    async with session.get(await storage_url(image_id), headers={"Range": "bytes=10-"}) as response:
        assert response.status == 206
        assert await response.read() == changed[10:]


@pytest.mark.parametrize(
    ("kind", "status", "content_range", "etag"),
    [
        (Kind.NO_ETAG, 206, f"bytes 1000-{SIZE - 1}/{SIZE}", None),
        (Kind.WEAK_ETAG, 206, f"bytes 1000-{SIZE - 1}/{SIZE}", "W/{}"),
        (Kind.NO_RANGES, 200, None, "{}"),
        (Kind.WRONG_OFFSET, 206, f"bytes 999-{SIZE - 1}/{SIZE}", "{}"),
        (Kind.WRONG_TOTAL, 206, f"bytes 1000-{SIZE - 1}/{SIZE + 1}", "{}"),
        (Kind.WRONG_ETAG, 206, f"bytes 1000-{SIZE - 1}/{SIZE}", '"00000000000000000000000000000000"'),
    ],
)
async def test_range_faults_distort_the_response(
    sandbox: Sandbox,
    session: ClientSession,
    storage_url: StorageUrl,
    *,
    image_id: str,
    kind: Kind,
    status: int,
    content_range: str | None,
    etag: str | None,
) -> None:
    """Each invalid response to a resumed request."""
    sandbox.faults.script(image_id, [None, Fault(kind)])
    async with session.get(await storage_url(image_id)) as response:
        original_etag = response.headers["ETag"]
    async with session.get(await storage_url(image_id), headers={"Range": "bytes=1000-"}) as response:
        content = await response.read()
        assert response.status == status
        assert response.headers.get("Content-Range") == content_range
        assert response.headers.get("ETag") == (etag and etag.format(original_etag))
    start = {Kind.NO_RANGES: 0, Kind.WRONG_OFFSET: 999}.get(kind, 1000)
    assert content == sandbox.body(image_id)[start:]


async def test_expired_target_is_403(
    sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl, image_id: str
) -> None:
    """A redirect target may be expired; the next one is valid."""
    sandbox.faults.script(image_id, [Fault(Kind.EXPIRED_TARGET)])
    async with session.get(await storage_url(image_id)) as response:
        assert (response.status, response.content_type) == (403, "application/xml")
    assert await _read(session, await storage_url(image_id)) == sandbox.body(image_id)


@pytest.mark.parametrize("origin", ["asset", "storage"])
async def test_refused_redirects_to_a_closed_port(
    sandbox: Sandbox, session: ClientSession, image_id: str, origin: Origin
) -> None:
    """The redirect leads to a closed port and counts as the storage request that it replaces."""
    sandbox.faults.script(image_id, [Fault(Kind.REFUSED), None], origin=origin)
    url, key = enhanced_url(sandbox, image_id), {"x-api-key": sandbox.api_key}
    with pytest.raises(ClientConnectorError):
        await session.get(await _last_hop_before(sandbox, session, image_id, "asset"))
    assert sandbox.faults.injected == {Kind.REFUSED: 1}
    async with session.get(url, headers=key, allow_redirects=False) as response:
        storage_url = sandbox.api_origin + response.headers["Location"]
    assert await _read(session, storage_url) == sandbox.body(image_id)


@pytest.mark.parametrize("origin", ["api", "asset", "storage"])
async def test_redirect_loop_never_ends(
    sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl, image_id: str, origin: Origin
) -> None:
    """A loop starts at any hop, and does not count as reuse of a target."""
    sandbox.faults.script(image_id, [Fault(Kind.REDIRECT_LOOP)], origin=origin)
    url = await _last_hop_before(sandbox, session, image_id, origin)
    headers = {"x-api-key": sandbox.api_key} if origin == "api" else {}
    with pytest.raises(TooManyRedirects):
        await session.get(url, headers=headers, max_redirects=30)
    assert sandbox.reused_targets == 0
    assert await _read(session, await storage_url(image_id)) == sandbox.body(image_id)


@pytest.mark.parametrize("origin", ["asset", "storage"])
async def test_redirect_many_ends_at_the_image(
    sandbox: Sandbox, session: ClientSession, image_id: str, origin: Origin
) -> None:
    """A chain ends at the image after exactly ``hops`` more redirects."""
    sandbox.faults.script(image_id, [Fault(Kind.REDIRECT_MANY, hops=8)], origin=origin)
    async with session.get(await _last_hop_before(sandbox, session, image_id, "asset")) as response:
        assert await response.read() == sandbox.body(image_id)
    assert len(response.history) == 1 + 8
    assert sandbox.reused_targets == 0


@pytest.mark.parametrize("origin", ["api", "asset", "storage"])
async def test_redirect_to_any_location(
    sandbox: Sandbox, session: ClientSession, image_id: str, origin: Origin
) -> None:
    """Any hop can redirect to any URL."""
    fault = Fault(Kind.REDIRECT_TO, location="http://other.invalid/a.jpg")
    sandbox.faults.script(image_id, [fault], origin=origin)
    url = await _last_hop_before(sandbox, session, image_id, origin)
    headers = {"x-api-key": sandbox.api_key} if origin == "api" else {}
    async with session.get(url, headers=headers, allow_redirects=False) as response:
        assert response.headers["Location"] == "http://other.invalid/a.jpg"


async def test_order_requests_have_their_own_script(
    sandbox: Sandbox, session: ClientSession, raw_get: RawGet, order_url: str
) -> None:
    """Faults of an order do not affect its images."""
    faults = [Fault(Kind.STATUS, status=401), Fault(Kind.NOT_JSON), Fault(Kind.WRONG_SHAPE), Fault(Kind.RESET), None]
    sandbox.faults.order(DEMO_ORDER_ID, faults)
    async with session.get(order_url) as response:
        assert response.status == 401
    async with session.get(order_url) as response:
        with pytest.raises(json.JSONDecodeError):
            await response.json()
    async with session.get(order_url) as response:
        assert isinstance(await response.json(), list)
    assert (await raw_get(order_url)).ending == "reset"
    async with session.get(order_url) as response:
        assert response.status == 200


async def test_order_request_can_be_paused(sandbox: Sandbox, session: ClientSession, order_url: str) -> None:
    """The response for an order can be paused until it is released."""
    gate = sandbox.faults.pause_order(DEMO_ORDER_ID)
    polling = asyncio.create_task(session.get(order_url))
    await gate.reached.wait()
    gate.release()
    assert (await polling).status == 200


async def test_permanent_fault_lasts_until_removed(
    sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl, image_id: str
) -> None:
    """A permanent fault applies to one image or to all, until it is removed."""
    sandbox.faults.always(ANY_IMAGE, Fault(Kind.STATUS, status=500))
    for _ in range(2):
        assert (await session.get(await storage_url(image_id))).status == 500
    sandbox.faults.always(ANY_IMAGE, None)
    assert (await session.get(await storage_url(image_id))).status == 200


def test_random_faults_do_not_depend_on_the_sequence() -> None:
    """A seed determines the fault of each request for each image, in whatever sequence they arrive."""

    def faults_of(images: list[str], seed: int) -> dict[str, list[Fault | None]]:
        plan = FaultPlan()
        plan.random(0.5, [Kind.RESET, Fault(Kind.STATUS, status=502)], seed=seed)
        return {image: [plan.take(image, "storage") for _ in range(20)] for image in images}

    images = [f"image {number}" for number in range(10)]
    assert faults_of(images, 1) == faults_of(images[::-1], 1)
    assert faults_of(images, 1) != faults_of(images, 2)
    random_faults = [fault for faults in faults_of(images, 1).values() for fault in faults]
    assert {fault.kind for fault in random_faults if fault} == {Kind.RESET, Kind.STATUS}
    assert None in random_faults


def test_random_faults_are_limited_per_image() -> None:
    """An image gets at most ``max_per_image`` random faults; scripts take precedence."""
    plan = FaultPlan()
    plan.random(1, [Kind.HTML], max_per_image=2)
    plan.script("a", [None, Fault(Kind.JSON)])
    faults = [plan.take("a", "storage") for _ in range(6)]
    assert [fault.kind if fault else None for fault in faults] == [None, Kind.JSON, Kind.HTML, Kind.HTML, None, None]
    assert plan.injected == {Kind.JSON: 1, Kind.HTML: 2}
    assert plan.take("a", "api") is None


@pytest.mark.parametrize(
    ("origin", "fault"),
    [
        ("api", Fault(Kind.CLOSE_EARLY)),
        ("api", Fault(Kind.RESET, after_bytes=3)),
        ("asset", Fault(Kind.NO_ETAG)),
        ("storage", Fault(Kind.NOT_JSON)),
        ("storage", Fault(Kind.PAUSE)),
        ("storage", Fault(Kind.WEAK_ETAG, after_bytes=3)),
        ("storage", Fault(Kind.REDIRECT_TO)),
        ("upload", Fault(Kind.REDIRECT_LOOP)),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else value,
)
def test_impossible_faults_raise(origin: Origin, fault: Fault) -> None:
    """A fault that an origin cannot inject raises when it is scripted."""
    with pytest.raises(ValueError, match=r"cannot be injected|after_bytes|gate|location"):
        FaultPlan().script("a", [fault], origin=origin)
