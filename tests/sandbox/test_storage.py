"""Storage origin: credentials, ranges, and all kinds of bodies."""

import zlib
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import ClientSession

from service.sandbox import DEMO_ORDER_ID, Sandbox, SandboxImage

StorageUrl = Callable[..., Awaitable[str]]
BODY = b"\xff\xd8\xff\xe0" + bytes(range(96))


@pytest.fixture
def image_id(sandbox: Sandbox) -> str:
    """The id of an image with 100 known bytes."""
    return sandbox.add_order([SandboxImage("a.jpg", body=BODY)]).images[0].image_id


async def test_api_key_is_rejected_and_recorded(
    sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl
) -> None:
    """A request with the API key is 403 and recorded as a leak."""
    url = await storage_url(sandbox.orders[DEMO_ORDER_ID].images[0].image_id)
    async with session.get(url, headers={"X-API-Key": sandbox.api_key}) as response:
        assert response.status == 403
        assert response.content_type == "application/xml"
    assert [leak.headers["x-api-key"] for leak in sandbox.key_leaks] == [sandbox.api_key]
    async with session.get(url) as response:
        assert response.status == 200


async def test_authorization_header_is_rejected(session: ClientSession, storage_url: StorageUrl, image_id: str) -> None:
    """As S3 does, a presigned URL together with an Authorization header is an error."""
    async with session.get(await storage_url(image_id), headers={"Authorization": "Bearer x"}) as response:
        assert response.status == 400


@pytest.mark.parametrize("path", ["/enhanced/x", "/enhanced/x?X-Amz-Signature=0", "/other"])
async def test_unsigned_urls_are_rejected(sandbox: Sandbox, session: ClientSession, path: str) -> None:
    """Nothing is served without a signature."""
    async with session.get(sandbox.storage_origin + path) as response:
        assert response.status in {403, 404}
        assert response.content_type == "application/xml"


async def test_get_signature_is_invalid_for_head(
    session: ClientSession, storage_url: StorageUrl, image_id: str
) -> None:
    """Presigned URLs are signed for one method."""
    async with session.head(await storage_url(image_id)) as response:
        assert response.status == 403


async def test_targets_expire(sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl, image_id: str) -> None:
    """Expired URLs get S3's 403; new ones work."""
    url = await storage_url(image_id)
    sandbox.expire_targets()
    async with session.get(url) as response:
        assert response.status == 403
        assert "Request has expired" in await response.text()
    async with session.get(await storage_url(image_id)) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("range_header", "status", "start", "stop"),
    [
        ("bytes=0-", 206, 0, 100),
        ("bytes=10-", 206, 10, 100),
        ("bytes=10-19", 206, 10, 20),
        ("bytes=99-", 206, 99, 100),
        ("bytes=10-1000", 206, 10, 100),
        ("bytes=-10", 206, 90, 100),
        ("bytes=-1000", 206, 0, 100),
        ("bytes=100-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
        ("bytes=20-10", 200, 0, 100),
        ("bytes=0-1,5-6", 200, 0, 100),
        ("lines=1-2", 200, 0, 100),
        ("bytes=-", 200, 0, 100),
    ],
)
async def test_single_ranges_are_served(
    session: ClientSession,
    storage_url: StorageUrl,
    image_id: str,
    *,
    range_header: str,
    status: int,
    start: int,
    stop: int,
) -> None:
    """Single ranges are served, unsatisfiable ones are 416, all others ignored."""
    async with session.get(await storage_url(image_id), headers={"Range": range_header}) as response:
        content = await response.read()
    assert response.status == status
    if status == 416:
        assert b"<Code>InvalidRange</Code>" in content
        assert b"<ActualObjectSize>100</ActualObjectSize>" in content
        return
    assert content == BODY[start:stop]
    expected = f"bytes {start}-{stop - 1}/100" if status == 206 else None
    assert response.headers.get("Content-Range") == expected
    assert response.headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize(
    ("if_range", "status"),
    [
        ("{etag}", 206),
        ("W/{etag}", 200),
        ('"other"', 200),
        ("{modified}", 206),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 200),
        ("nonsense", 200),
    ],
)
async def test_if_range_compares_strongly(
    session: ClientSession, storage_url: StorageUrl, image_id: str, if_range: str, status: int
) -> None:
    """A part is served only if the strong entity tag or the date matches."""
    async with session.get(await storage_url(image_id)) as response:
        validators = {"etag": response.headers["ETag"], "modified": response.headers["Last-Modified"]}
    headers = {"Range": "bytes=50-", "If-Range": if_range.format_map(validators)}
    async with session.get(await storage_url(image_id), headers=headers) as response:
        assert response.status == status
        assert await response.read() == (BODY[50:] if status == 206 else BODY)


@pytest.mark.parametrize(
    ("field", "missing", "status"),
    [("etags", "ETag", 200), ("ranges", "Accept-Ranges", 200), ("content_lengths", "Content-Length", 206)],
)
@pytest.mark.parametrize("own", [True, False], ids=["of the image", "of the sandbox"])
async def test_headers_can_be_disabled(
    sandbox: Sandbox,
    session: ClientSession,
    storage_url: StorageUrl,
    *,
    image_id: str,
    field: str,
    missing: str,
    status: int,
    own: bool,
) -> None:
    """Entity tags, ranges and lengths can be disabled for one image or for all."""
    setattr(sandbox.image(image_id) if own else sandbox, field, False)
    async with session.get(await storage_url(image_id)) as response:
        assert missing not in response.headers
        etag = response.headers.get("ETag", '"none"')
        assert await response.read() == BODY
    headers = {"Range": "bytes=50-", "If-Range": etag}
    async with session.get(await storage_url(image_id), headers=headers) as response:
        assert response.status == status


async def test_own_body_ignores_parameters(sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl) -> None:
    """A body set by the test is served unchanged, with its own type."""
    image = SandboxImage("a", body=b"\x89PNG not really", content_type="image/x-test")
    image_id = sandbox.add_order([image]).images[0].image_id
    async with session.get(await storage_url(image_id, "format=webp&preview=false&max_width=3")) as response:
        assert await response.read() == b"\x89PNG not really" == sandbox.body(image_id, "webp")
        assert response.content_type == "image/x-test"


@pytest.mark.parametrize("size", [1, 21, 22, 1000, 1_000_003, 3_000_000])
async def test_generated_body_is_consistent(
    sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl, size: int
) -> None:
    """A generated body has its size, a JPEG's start and end, and the same bytes from any offset."""
    image_id = sandbox.add_order([SandboxImage(size_bytes=size)]).images[0].image_id
    whole = sandbox.body(image_id)
    assert len(whole) == size
    assert whole.startswith(b"\xff\xd8\xff"[:size]) or size == 1
    assert size == 1 or whole.endswith(b"\xff\xd9")
    assert sandbox.expected_crc(image_id) == zlib.crc32(whole)
    for start in (0, 5, size // 3, size - 1):
        if start < size:
            async with session.get(await storage_url(image_id), headers={"Range": f"bytes={start}-"}) as response:
                assert await response.read() == whole[start:]


async def test_huge_bodies_are_not_held_in_memory(
    sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl
) -> None:
    """Four gigabytes can be served from any offset, but not returned as bytes."""
    image_id = sandbox.add_order([SandboxImage(size_bytes=4 * 1024**3)]).images[0].image_id
    async with session.get(await storage_url(image_id), headers={"Range": "bytes=-4"}) as response:
        assert response.headers["Content-Range"] == "bytes 4294967292-4294967295/4294967296"
        assert (await response.read()).endswith(b"\xff\xd9")
    with pytest.raises(ValueError, match="expected_crc"):
        sandbox.body(image_id)


async def test_connections_are_reused(sandbox: Sandbox, session: ClientSession, storage_url: StorageUrl) -> None:
    """Responses without a fault keep the connection open for the next request."""
    images = sandbox.orders[DEMO_ORDER_ID].images[:3]
    for image in images:
        await (await session.get(await storage_url(image.image_id))).read()
    assert sandbox.open_connections == 1
