"""The streamed response on a real connection: how parts are gathered, backpressure, and how a body ends."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from service.web.http.connection import connection_factory
from service.web.http.streaming_response import PIECE_BYTES, StreamingResponse

TRAILERS = {"X-Downloaded": "1"}
Body = Callable[[StreamingResponse], Awaitable[None]]


@asynccontextmanager
async def server_of(app: web.Application) -> AsyncIterator[tuple[str, int]]:
    """Serve with the service's own connections, which report that more may be written; yield the address."""
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    assert runner.server is not None
    factory = connection_factory(runner.server, header_timeout_seconds=10, stall_seconds=10, on_malformed=lambda: None)
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[:2]
    finally:
        server.close()
        await runner.cleanup()


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
    async with server_of(app) as (host, port), asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(host, port)
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


async def test_flush_sends_what_was_gathered_as_one_chunk() -> None:
    """Small parts are gathered until they are flushed."""

    async def body(response: StreamingResponse) -> None:
        assert response.send([b"a", memoryview(b"b")])
        assert response.send([b"c"])
        assert response.send([])
        response.flush()
        response.send([b"d"])

    async with client_of(body) as reader:
        assert [await read_chunk(reader), await read_chunk(reader)] == [b"abc", b"d"]
        assert await reader.readuntil(b"\r\n\r\n") == b"0\r\nX-Downloaded: 1\r\n\r\n"


async def test_flush_does_not_wait_for_the_next_send() -> None:
    """Flushed bytes reach the client while the archive waits for the upstream."""
    received = asyncio.Event()

    async def body(response: StreamingResponse) -> None:
        response.send([b"first"])
        response.flush()
        await received.wait()
        response.send([b"second"])

    async with client_of(body) as reader:
        assert await read_chunk(reader) == b"first"
        received.set()
        assert await read_chunk(reader) == b"second"


async def test_gathered_bytes_are_bounded() -> None:
    """A chunk is sent once it reaches the limit, without a flush; the end sends the rest."""
    part = bytes(PIECE_BYTES // 4)

    async def body(response: StreamingResponse) -> None:
        for _ in range(6):
            response.send([part])

    async with client_of(body) as reader:
        sizes = [len(await read_chunk(reader)), len(await read_chunk(reader))]
    assert sizes == [4 * len(part), 2 * len(part)]


async def test_empty_part_does_not_end_the_body() -> None:
    """A chunk of size 0 would be the last chunk."""

    async def body(response: StreamingResponse) -> None:
        response.send([b""])
        response.flush()
        response.flush()
        response.send([b"more"])

    async with client_of(body) as reader:
        assert await read_chunk(reader) == b"more"


async def test_http_1_0_gets_the_same_bytes_without_framing() -> None:
    """The body ends with the connection, and has neither chunks nor trailers."""

    async def body(response: StreamingResponse) -> None:
        response.send([b"a", b"b"])
        response.flush()
        response.send([b"c"])

    async with client_of(body, "1.0") as reader:
        assert await reader.read() == b"abc"


async def test_client_that_pauses_and_reads_on_is_sent_more() -> None:
    """``send`` returns whether the client keeps up; the callback comes when it has read on. The pause is counted."""
    piece = bytes(PIECE_BYTES)
    paused = asyncio.Event()
    sent, seconds = [0], [0.0]

    async def body(response: StreamingResponse) -> None:
        loop = asyncio.get_running_loop()
        writable = loop.create_future()
        response.attach(lambda: writable.set_result(None), writable.set_exception)
        assert response.blocked_seconds == 0
        while response.send([piece]):
            sent[0] += len(piece)
        sent[0] += len(piece)
        paused.set()
        await writable
        seconds[0] = response.blocked_seconds
        assert response.send([])

    async with client_of(body) as reader:
        await paused.wait()
        received = 0
        while size := int(await reader.readuntil(b"\r\n"), 16):
            await reader.readexactly(size + 2)
            received += size
        assert received == sent[0]
        assert seconds[0] > 0


async def test_send_to_a_client_that_has_gone_raises() -> None:
    """The archive must not be made for it."""
    errors: list[ConnectionResetError] = []
    requests: list[web.Request] = []

    async def body(response: StreamingResponse) -> None:
        transport = requests[0].transport
        assert transport is not None
        transport.abort()
        try:
            response.send([bytes(PIECE_BYTES)])
        except ConnectionResetError as error:
            errors.append(error)
            raise

    async with client_of(body, requests=requests) as reader:
        assert await reader.read() == b""
    assert len(errors) == 1


async def test_end_after_the_client_has_gone_raises() -> None:
    """A body whose last bytes were never written is not reported as complete."""
    errors: list[ConnectionResetError] = []

    async def body(response: StreamingResponse) -> None:
        response.send([b"a"])
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
