"""Uploads: creation, the signed PUT, processing by polls, and the documented limits."""

import asyncio
import io
from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientSession
from PIL import Image

from service.sandbox import DEMO_ORDER_ID, Fault, Kind, Sandbox

OCTETS = {"Content-Type": "application/octet-stream"}


@pytest.fixture
def key(sandbox: Sandbox) -> dict[str, str]:
    return {"x-api-key": sandbox.api_key}


def picture(brightness: int = 100) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (300, 200), (brightness, brightness, brightness)).save(out, "JPEG")
    return out.getvalue()


async def register(
    sandbox: Sandbox, session: ClientSession, name: str = "mine.jpg", **fields: object
) -> dict[str, str]:
    body = {"image_name": name, **fields}
    headers = {"x-api-key": sandbox.api_key}
    async with session.post(f"{sandbox.api_base}/images/", json=body, headers=headers) as response:
        assert response.status == 200
        registered: dict[str, str] = await response.json()
        return registered


async def test_upload_is_enhanced(sandbox: Sandbox, session: ClientSession, key: dict[str, str]) -> None:
    """Order, image, file and polls end in a brighter picture."""
    async with session.post(f"{sandbox.api_base}/orders/", json={"name": "Mine"}, headers=key) as response:
        order = await response.json()
    image = await register(sandbox, session, order_id=order["order_id"], enhance_type="warm")
    assert (image["status"], image["enhance_type"]) == ("waiting", "warm")
    async with session.put(image["upload_url"], data=picture(), headers=OCTETS) as response:
        assert (response.status, await response.read()) == (200, b"")
    statuses = []
    for _ in range(sandbox.processing_polls + 1):
        async with session.get(f"{sandbox.api_base}/orders/{order['order_id']}") as response:
            statuses.append((await response.json())["images"][0]["status"])
    assert statuses == ["processing", "processing", "processed"]
    url = f"{sandbox.api_base}/images/{image['image_id']}/preview?format=png"
    async with session.get(url) as response:
        with Image.open(io.BytesIO(await response.read())) as enhanced:
            assert enhanced.size == (300, 200)
            pixel = enhanced.getpixel((10, 10))
    assert isinstance(pixel, tuple)
    assert pixel[0] > 100
    async with session.get(f"{sandbox.api_base}/images/{image['image_id']}/original?format=png") as response:
        with Image.open(io.BytesIO(await response.read())) as original:
            assert original.getpixel((10, 10)) == (100, 100, 100)


async def test_undecodable_upload_is_drawn(sandbox: Sandbox, session: ClientSession) -> None:
    """A file of an unknown format still becomes a picture."""
    sandbox.processing_polls = 0
    image = await register(sandbox, session, "mine.CR2")
    await session.put(image["upload_url"], data=b"raw" * 1000, headers=OCTETS)
    async with session.get(f"{sandbox.api_base}/images/{image['image_id']}/preview") as response:
        with Image.open(io.BytesIO(await response.read())) as enhanced:
            assert enhanced.width == 640


async def test_duplicate_order_id_is_409(sandbox: Sandbox, session: ClientSession, key: dict[str, str]) -> None:
    """The second order with the same id is a conflict."""
    statuses = []
    for _ in range(2):
        url = f"{sandbox.api_base}/orders"
        async with session.post(url, json={"order_id": "mine-1"}, headers=key) as response:
            statuses.append(response.status)
    assert statuses == [200, 409]
    assert sandbox.orders["mine-1"].name is None


async def test_image_creates_its_order(sandbox: Sandbox, session: ClientSession) -> None:
    """An image without an order id, or with an unknown one, creates the order."""
    unnamed = await register(sandbox, session)
    named = await register(sandbox, session, order_id="new")
    assert unnamed["order_id"] in sandbox.orders
    assert named["order_id"] == "new"


async def test_old_versions_sign_the_declared_type(
    sandbox: Sandbox, session: ClientSession, key: dict[str, str]
) -> None:
    """Before 2025-05-05 the address has another name, and the type is the declared one."""
    headers = {**key, "x-api-version": "2025-01-01"}
    body = {"image_name": "a.png", "content_type": "image/png"}
    async with session.post(f"{sandbox.api_base}/images", json=body, headers=headers) as response:
        image = await response.json()
    assert "upload_url" not in image
    async with session.put(image["s3PutObjectUrl"], data=picture(), headers={"Content-Type": "image/png"}) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Content-Type": "image/jpeg"}, 403, "SignatureDoesNotMatch"),
        ({**OCTETS, "x-api-key": "any"}, 403, "AccessDenied"),
    ],
    ids=["type", "key"],
)
async def test_put_must_match_the_signature(
    sandbox: Sandbox, session: ClientSession, headers: dict[str, str], status: int, code: str
) -> None:
    """A PUT must have the signed type, and no API key."""
    image = await register(sandbox, session)
    async with session.put(image["upload_url"], data=b"1234", headers=headers) as response:
        assert response.status == status
        assert f"<Code>{code}</Code>" in await response.text()
    assert sandbox.image(image["image_id"]).status == "waiting"


async def test_put_without_length_is_rejected(sandbox: Sandbox, session: ClientSession) -> None:
    """Content-Length is required, as at S3."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b"1234"

    image = await register(sandbox, session)
    async with session.put(image["upload_url"], data=chunks(), headers=OCTETS) as response:
        assert response.status == 411
        assert "<Code>MissingContentLength</Code>" in await response.text()


async def test_aborted_upload_leaves_nothing(sandbox: Sandbox, session: ClientSession) -> None:
    """A client that disconnects during the PUT leaves no file, and may retry."""
    first_part_sent = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"1234"
        first_part_sent.set()
        await asyncio.get_running_loop().create_future()

    image = await register(sandbox, session)
    headers = {**OCTETS, "Content-Length": "1000"}
    putting = asyncio.create_task(_put(session, image["upload_url"], chunks(), headers))
    await first_part_sent.wait()
    await sandbox.wait_until(lambda: sandbox.active_requests == 1)
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    await sandbox.wait_until(lambda: sandbox.active_requests == 0)
    assert sandbox.image(image["image_id"]).status == "waiting"
    await _put(session, image["upload_url"], picture(), OCTETS)
    assert sandbox.image(image["image_id"]).status == "processing"


async def _put(session: ClientSession, url: str, data: AsyncIterator[bytes] | bytes, headers: dict[str, str]) -> None:
    async with session.put(url, data=data, headers=headers) as response:
        assert response.status == 200


async def test_unsigned_put_is_rejected(sandbox: Sandbox, session: ClientSession) -> None:
    """An image cannot be replaced without a signed URL."""
    image_id = sandbox.orders[DEMO_ORDER_ID].images[0].image_id
    url = f"{sandbox.storage_origin}/uploads/{image_id}"
    async with session.put(url, data=b"1234", headers=OCTETS) as response:
        assert response.status == 403


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"order_id": "x"}', b'{"image_name": 7}'])
async def test_invalid_image_is_422(sandbox: Sandbox, session: ClientSession, key: dict[str, str], body: bytes) -> None:
    """An invalid JSON body is a 422."""
    async with session.post(f"{sandbox.api_base}/images", data=body, headers=key) as response:
        assert response.status == 422
        assert (await response.json())["message"] == "Validation error"


async def test_same_name_is_limited_per_hour(sandbox: Sandbox, session: ClientSession, key: dict[str, str]) -> None:
    """The thirty-first image of the same name within an hour is a 429."""
    now = 0.0
    sandbox.clock = lambda: now
    sandbox.rate_limit = None
    for _ in range(30):
        await register(sandbox, session, "same.jpg")
    url = f"{sandbox.api_base}/images/"
    async with session.post(url, json={"image_name": "same.jpg"}, headers=key) as response:
        assert response.status == 429
    await register(sandbox, session, "other.jpg")
    now += 3600
    await register(sandbox, session, "same.jpg")


async def test_daily_limit_fails_images(sandbox: Sandbox, session: ClientSession) -> None:
    """Above the limit an image becomes an error with a reason, not a 429."""
    sandbox.daily_enhancements = 1
    images = [await register(sandbox, session, name) for name in ("a.jpg", "b.jpg")]
    for image in images:
        await session.put(image["upload_url"], data=picture(), headers=OCTETS)
    first, second = (sandbox.image(image["image_id"]) for image in images)
    assert first.status == "processing"
    assert (second.status, bool(second.status_reason)) == ("error", True)


async def test_upload_faults_are_scripted(sandbox: Sandbox, session: ClientSession) -> None:
    """A PUT can fail; the next one is received."""
    image = await register(sandbox, session)
    sandbox.faults.script(image["image_id"], [Fault(Kind.STATUS, status=503, json_body=False)], origin="upload")
    for status in (503, 200):
        async with session.put(image["upload_url"], data=picture(), headers=OCTETS) as response:
            assert response.status == status


async def test_close_deletes_uploaded_files(session: ClientSession) -> None:
    """Uploaded files are deleted when the sandbox is closed."""
    async with Sandbox() as sandbox:
        image = await register(sandbox, session)
        await session.put(image["upload_url"], data=picture(), headers=OCTETS)
        path = sandbox.image(image["image_id"]).upload
        assert path is not None
        assert path.exists()
    assert not path.parent.exists()
