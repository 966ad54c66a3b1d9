"""Faults: each kind does on the wire what it says, at the request it was scripted for."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from aiohttp import ClientConnectorError, ClientPayloadError, ClientSession, TooManyRedirects

from service.sandbox import ANY_IMAGE, DEMO_ORDER_ID, Fault, FaultPlan, Kind, Origin, Sandbox, SandboxImage
from tests.sandbox.conftest import RawReply

StorageUrl = Callable[..., Awaitable[str]]
RawGet = Callable[..., Coroutine[Any, Any, RawReply]]
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
async def test_whole_responses(
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
    """A wrong response can come from every hop, and only for the request it was scripted for."""
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
async def test_reset_before_headers(
    sandbox: Sandbox, session: ClientSession, raw_get: RawGet, image_id: str, origin: Origin
) -> None:
    """The connection ends with an RST and not a byte."""
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
async def test_cut_bodies(
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
    """The length is promised in full; the bytes end early, counted from the start of this response."""
    sandbox.faults.script(image_id, [fault])
    reply = await raw_get(await storage_url(image_id), {"Range": f"bytes={start}-"})
    rest = sandbox.body(image_id)[start:]
    assert reply.ending == ending
    assert reply.header("Content-Length") == str(len(rest))
    assert reply.body == rest[: sent if sent >= 0 else len(rest) - 1]


async def test_chunked_without_end(
    sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl, raw_get: RawGet, image_id: str
) -> None:
    """Chunks, then a clean end without the last one."""
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
async def test_no_length(
    sandbox: Sandbox, storage_url: StorageUrl, raw_get: RawGet, image_id: str, kind: Kind, *, chunked: bool
) -> None:
    """The body is whole, its length unknown before."""
    sandbox.faults.script(image_id, [Fault(kind)])
    reply = await raw_get(await storage_url(image_id))
    assert reply.header("Content-Length") is None
    assert (reply.header("Transfer-Encoding") == "chunked") is chunked
    assert reply.ending == "eof"
    assert reply.body.endswith(b"\r\n0\r\n\r\n" if chunked else b"\xff\xd9")
    assert chunked or reply.body == sandbox.body(image_id)


async def test_longer_than_promised(sandbox: Sandbox, storage_url: StorageUrl, raw_get: RawGet, image_id: str) -> None:
    """More bytes follow than Content-Length says."""
    sandbox.faults.script(image_id, [Fault(Kind.LONGER)])
    reply = await raw_get(await storage_url(image_id))
    assert reply.header("Content-Length") == str(SIZE)
    assert reply.body.startswith(sandbox.body(image_id))
    assert len(reply.body) > SIZE


async def test_second_response(sandbox: Sandbox, storage_url: StorageUrl, raw_get: RawGet, image_id: str) -> None:
    """Another response follows the last chunk."""
    sandbox.faults.script(image_id, [Fault(Kind.SECOND_RESPONSE)])
    reply = await raw_get(await storage_url(image_id))
    assert reply.header("Transfer-Encoding") == "chunked"
    assert b"\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n" in reply.body


async def test_endless_trailers(sandbox: Sandbox, storage_url: StorageUrl, raw_get: RawGet, image_id: str) -> None:
    """Trailers follow the last chunk until the client closes the connection."""
    sandbox.faults.script(image_id, [Fault(Kind.ENDLESS_TRAILERS)])
    reply = await raw_get(await storage_url(image_id), stop_after=SIZE + 200_000)
    assert reply.body.partition(b"\r\n0\r\n")[2].startswith(b"X-Trailer: ")
    await sandbox.wait_until(lambda: sandbox.active_requests == 0)


async def test_padded_headers(sandbox: Sandbox, storage_url: StorageUrl, raw_get: RawGet, image_id: str) -> None:
    """Every header value has white space around it."""
    sandbox.faults.script(image_id, [Fault(Kind.PADDED_HEADERS)])
    reply = await raw_get(await storage_url(image_id))
    assert reply.header("Content-Length") == f" \t {SIZE} \t "
    assert reply.body == sandbox.body(image_id)


async def test_close_reused(sandbox: Sandbox, session: ClientSession, raw_get: RawGet, image_id: str) -> None:
    """A new connection serves its first request and is closed at the second, which may come again on another."""
    sandbox.faults.always(image_id, Fault(Kind.CLOSE_REUSED))
    url = await _last_hop_before(sandbox, session, image_id, "storage")
    reply = await raw_get(url)
    assert reply.body == sandbox.body(image_id)
    url = await _last_hop_before(sandbox, session, image_id, "storage")
    async with session.get(await _last_hop_before(sandbox, session, image_id, "storage")) as response:
        await response.read()
    async with session.get(url) as response:  # aiohttp repeats it by itself
        assert await response.read() == sandbox.body(image_id)
    assert [(one.status, one.reused) for one in sandbox.requests_for(image_id, "storage")] == [
        (200, False), (200, False), (0, True), (200, False),
    ]  # fmt: skip
    assert sandbox.reused_targets == 0


@pytest.mark.parametrize("after_bytes", [None, 0, 1000])
async def test_silence_ends_with_the_client(
    sandbox: Sandbox, storage_url: StorageUrl, raw_get: RawGet, image_id: str, after_bytes: int | None
) -> None:
    """A silent response sends so much and no more; when the client leaves, nothing goes on."""
    sandbox.faults.script(image_id, [Fault(Kind.SILENCE, after_bytes=after_bytes)])
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
    assert sandbox.faults.injected[Kind.SILENCE] == 1


@pytest.mark.parametrize("after_bytes", [None, 0, 1000])
async def test_pause_until_released(
    sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl, image_id: str, after_bytes: int | None
) -> None:
    """A gate stops one response at its byte and lets it go on."""
    gate = sandbox.faults.pause(image_id, after_bytes=after_bytes)
    url = await storage_url(image_id)
    reading = asyncio.create_task(_read(session, url))
    await gate.reached.wait()
    assert sandbox.active_requests == 1
    assert sandbox.requests_for(image_id, "storage")[0].bytes_sent == (after_bytes or 0)
    gate.release()
    assert await reading == sandbox.body(image_id)


@pytest.mark.parametrize("origin", ["api", "asset"])
async def test_pause_before_a_hop(sandbox: Sandbox, session: ClientSession, image_id: str, origin: Origin) -> None:
    """The hops before the storage can be stopped as well."""
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


async def test_a_drip_is_complete(
    sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl, image_id: str
) -> None:
    """Slow pieces add up to the body."""
    sandbox.faults.script(image_id, [Fault(Kind.DRIP, chunk_bytes=100_000, delay_seconds=0.001)])
    assert await _read(session, await storage_url(image_id)) == sandbox.body(image_id)


@pytest.mark.parametrize("origin", ["api", "asset", "storage"])
async def test_a_slow_start_changes_nothing_else(
    sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl, image_id: str, origin: Origin
) -> None:
    """A response may be late at every hop."""
    sandbox.faults.script(image_id, [Fault(Kind.SLOW_START, delay_seconds=0.001)], origin=origin)
    assert await _read(session, await storage_url(image_id)) == sandbox.body(image_id)
    assert sandbox.faults.injected == {Kind.SLOW_START: 1}


async def test_wrong_type_and_magic(
    sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl, image_id: str
) -> None:
    """The right bytes under a wrong type; then the right type over wrong bytes of the same number."""
    sandbox.faults.script(image_id, [Fault(Kind.WRONG_TYPE, content_type="text/plain"), Fault(Kind.WRONG_MAGIC)])
    async with session.get(await storage_url(image_id)) as response:
        assert response.content_type == "text/plain"
        assert await response.read() == sandbox.body(image_id)
    async with session.get(await storage_url(image_id)) as response:
        assert response.content_type == "image/jpeg"
        content = await response.read()
    assert content.startswith(b"not an image")
    assert len(content) == SIZE


async def test_changed_content(
    sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl, image_id: str
) -> None:
    """Changed content still begins like an image, has another tag, and so refuses to be resumed."""
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


async def test_silently_changed_content(
    sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl, image_id: str
) -> None:
    """Only the bytes themselves tell that the content is another one, wherever they are read from."""
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
async def test_bad_answers_to_ranges(
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
    """Each way of answering a resumed request that a client must not trust."""
    sandbox.faults.script(image_id, [None, Fault(kind)])
    async with session.get(await storage_url(image_id)) as response:
        good = response.headers["ETag"]
    async with session.get(await storage_url(image_id), headers={"Range": "bytes=1000-"}) as response:
        content = await response.read()
        assert response.status == status
        assert response.headers.get("Content-Range") == content_range
        assert response.headers.get("ETag") == (etag and etag.format(good))
    start = {Kind.NO_RANGES: 0, Kind.WRONG_OFFSET: 999}.get(kind, 1000)
    assert content == sandbox.body(image_id)[start:]


async def test_an_expired_target(
    sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl, image_id: str
) -> None:
    """A redirect target may turn out to be expired; the next one is good."""
    sandbox.faults.script(image_id, [Fault(Kind.EXPIRED_TARGET)])
    async with session.get(await storage_url(image_id)) as response:
        assert (response.status, response.content_type) == (403, "application/xml")
    assert await _read(session, await storage_url(image_id)) == sandbox.body(image_id)


@pytest.mark.parametrize("origin", ["asset", "storage"])
async def test_a_refused_connection(sandbox: Sandbox, session: ClientSession, image_id: str, origin: Origin) -> None:
    """The redirect leads to where nobody listens; it counts as the request to the storage it replaces."""
    sandbox.faults.script(image_id, [Fault(Kind.REFUSED), None], origin=origin)
    url, key = enhanced_url(sandbox, image_id), {"x-api-key": sandbox.api_key}
    with pytest.raises(ClientConnectorError):
        await session.get(await _last_hop_before(sandbox, session, image_id, "asset"))
    assert sandbox.faults.injected == {Kind.REFUSED: 1}
    async with session.get(url, headers=key, allow_redirects=False) as response:
        onwards = sandbox.api_origin + response.headers["Location"]
    assert await _read(session, onwards) == sandbox.body(image_id)


@pytest.mark.parametrize("origin", ["api", "asset", "storage"])
async def test_endless_redirects(
    sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl, image_id: str, origin: Origin
) -> None:
    """A loop never ends, whichever hop begins it, and is not taken for a client that reuses targets."""
    sandbox.faults.script(image_id, [Fault(Kind.REDIRECT_LOOP)], origin=origin)
    url = await _last_hop_before(sandbox, session, image_id, origin)
    headers = {"x-api-key": sandbox.api_key} if origin == "api" else {}
    with pytest.raises(TooManyRedirects):
        await session.get(url, headers=headers, max_redirects=30)
    assert sandbox.reused_targets == 0
    assert await _read(session, await storage_url(image_id)) == sandbox.body(image_id)


@pytest.mark.parametrize("origin", ["asset", "storage"])
async def test_many_redirects(sandbox: Sandbox, session: ClientSession, image_id: str, origin: Origin) -> None:
    """A long chain ends at the image after exactly so many more hops."""
    sandbox.faults.script(image_id, [Fault(Kind.REDIRECT_MANY, hops=8)], origin=origin)
    async with session.get(await _last_hop_before(sandbox, session, image_id, "asset")) as response:
        assert await response.read() == sandbox.body(image_id)
    assert len(response.history) == 1 + 8
    assert sandbox.reused_targets == 0


@pytest.mark.parametrize("origin", ["api", "asset", "storage"])
async def test_redirects_elsewhere(sandbox: Sandbox, session: ClientSession, image_id: str, origin: Origin) -> None:
    """Any hop can point to any address."""
    fault = Fault(Kind.REDIRECT_TO, location="http://other.invalid/a.jpg")
    sandbox.faults.script(image_id, [fault], origin=origin)
    url = await _last_hop_before(sandbox, session, image_id, origin)
    headers = {"x-api-key": sandbox.api_key} if origin == "api" else {}
    async with session.get(url, headers=headers, allow_redirects=False) as response:
        assert response.headers["Location"] == "http://other.invalid/a.jpg"


async def test_order_look_ups_go_wrong(
    sandbox: Sandbox, session: ClientSession, raw_get: RawGet, order_url: str
) -> None:
    """Look-ups have their own script, which leaves the images alone."""
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


async def test_a_silent_order_look_up(sandbox: Sandbox, session: ClientSession, order_url: str) -> None:
    """A look-up can be held until it is released."""
    gate = sandbox.faults.pause_order(DEMO_ORDER_ID)
    looking = asyncio.create_task(session.get(order_url))
    await gate.reached.wait()
    gate.release()
    assert (await looking).status == 200


async def test_always_and_its_end(
    sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl, image_id: str
) -> None:
    """A lasting fault holds for one image or for all, until it is taken back."""
    sandbox.faults.always(ANY_IMAGE, Fault(Kind.STATUS, status=500))
    for _ in range(2):
        assert (await session.get(await storage_url(image_id))).status == 500
    sandbox.faults.always(ANY_IMAGE, None)
    assert (await session.get(await storage_url(image_id))).status == 200


def test_chance_is_the_same_in_any_order() -> None:
    """A seed fixes the fault of each request of each image, whoever comes first."""

    def faults_of(images: list[str], seed: int) -> dict[str, list[Fault | None]]:
        plan = FaultPlan()
        plan.random(0.5, [Kind.RESET, Fault(Kind.STATUS, status=502)], seed=seed)
        return {image: [plan.take(image, "storage") for _ in range(20)] for image in images}

    images = [f"image {number}" for number in range(10)]
    assert faults_of(images, 1) == faults_of(images[::-1], 1)
    assert faults_of(images, 1) != faults_of(images, 2)
    thrown = [fault for faults in faults_of(images, 1).values() for fault in faults]
    assert {fault.kind for fault in thrown if fault} == {Kind.RESET, Kind.STATUS}
    assert None in thrown


def test_chance_has_a_limit_per_image() -> None:
    """With a limit, an image gets at most so many faults; a script comes before chance."""
    plan = FaultPlan()
    plan.random(1, [Kind.HTML], max_per_image=2)
    plan.script("a", [None, Fault(Kind.JSON)])
    taken = [plan.take("a", "storage") for _ in range(6)]
    assert [fault.kind if fault else None for fault in taken] == [None, Kind.JSON, Kind.HTML, Kind.HTML, None, None]
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
def test_impossible_faults_are_refused(origin: Origin, fault: Fault) -> None:
    """A fault which an origin cannot commit is an error of the test, said at once."""
    with pytest.raises(ValueError, match=r"cannot misbehave|after_bytes|gate|location"):
        FaultPlan().script("a", [fault], origin=origin)
