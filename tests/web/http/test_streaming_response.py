"""The streamed response on a real connection: how writes are coalesced, and how a body ends."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.test_utils import TestServer

from service.web.http.streaming_response import COALESCE_BYTES, StreamingResponse

TRAILERS = {"X-Downloaded": "1"}
Body = Callable[[StreamingResponse], Awaitable[None]]


@asynccontextmanager
async def client_of(
    body: Body, version: str = "1.1", *, requests: list[web.Request] | None = None
) -> AsyncIterator[asyncio.StreamReader]:
    """Request a response whose body ``body`` sends; yield the client's reader after the header section."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if requests is not None:
            requests.append(request)
        response = StreamingResponse({}, lambda: TRAILERS, stall_seconds=10)
        await response.prepare(request)
        await body(response)
        return response

    app = web.Application()
    app.router.add_get("/", handle)
    async with TestServer(app) as server, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(server.host, server.port)
        try:
            writer.write(f"GET / HTTP/{version}\r\nHost: x\r\n\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            yield reader
        finally:
            writer.close()


async def read_chunk(reader: asyncio.StreamReader) -> bytes:
    """Read one chunk (RFC 9112 section 7.1)."""
    size = int(await reader.readuntil(b"\r\n"), 16)
    return (await reader.readexactly(size + 2))[:-2]


async def test_writes_of_one_loop_turn_are_one_chunk() -> None:
    """What is sent while the event loop does not run is coalesced."""

    async def body(response: StreamingResponse) -> None:
        await response.send([b"a", memoryview(b"b")])
        await response.send([b"c"])
        await response.send([])
        await asyncio.sleep(0.0)
        await asyncio.sleep(0.0)
        await response.send([b"d"])

    async with client_of(body) as reader:
        assert [await read_chunk(reader), await read_chunk(reader)] == [b"abc", b"d"]
        assert await reader.readuntil(b"\r\n\r\n") == b"0\r\nX-Downloaded: 1\r\n\r\n"


async def test_write_does_not_wait_for_the_next_one() -> None:
    """Coalesced bytes reach the client while the archive waits for the upstream."""
    received = asyncio.Event()

    async def body(response: StreamingResponse) -> None:
        await response.send([b"first"])
        await received.wait()
        await response.send([b"second"])

    async with client_of(body) as reader:
        assert await read_chunk(reader) == b"first"
        received.set()
        assert await read_chunk(reader) == b"second"


async def test_coalescing_is_bounded() -> None:
    """A chunk is complete once it reaches the limit, though the event loop has not run."""
    part = bytes(COALESCE_BYTES // 4)

    async def body(response: StreamingResponse) -> None:
        for _ in range(6):
            await response.send([part])

    async with client_of(body) as reader:
        sizes = [len(await read_chunk(reader)), len(await read_chunk(reader))]
    assert sizes == [4 * len(part), 2 * len(part)]


async def test_empty_write_does_not_end_the_body() -> None:
    """A chunk of size 0 would be the last chunk."""

    async def body(response: StreamingResponse) -> None:
        await response.send([b""])
        await asyncio.sleep(0.0)
        await asyncio.sleep(0.0)
        await response.send([b"more"])

    async with client_of(body) as reader:
        assert await read_chunk(reader) == b"more"


async def test_http_1_0_gets_the_same_bytes_without_framing() -> None:
    """The body ends with the connection, and has neither chunks nor trailers."""

    async def body(response: StreamingResponse) -> None:
        await response.send([b"a", b"b"])
        await response.send([b"c"])

    async with client_of(body, "1.0") as reader:
        assert await reader.read() == b"abc"


async def test_end_after_the_client_has_gone_raises() -> None:
    """A body whose last bytes were never written is not reported as complete."""
    errors: list[ConnectionResetError] = []

    async def body(response: StreamingResponse) -> None:
        await response.send([b"a"])
        client_gone()
        try:
            await response.write_eof()
        except ConnectionResetError as error:
            errors.append(error)
            raise

    def client_gone() -> None:
        transport = requests[0].transport
        assert transport is not None
        transport.abort()

    requests: list[web.Request] = []
    async with client_of(body, requests=requests) as reader:
        assert await reader.read() == b""
    assert len(errors) == 1
