"""The internals of aiohttp that the service uses: what each is relied on for, and where they may be used.

aiohttp has no public API for trailers, for aborting a response, for one HTTP exchange on a pooled connection, or for a
limit on the time of a request's header. A row below names each internal that fills the gap; its check fails with the
release of aiohttp that changes it. pyproject.toml pins the minor release for the same reason.
"""

import ast
import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.http_writer import StreamWriter
from aiohttp.tracing import Trace
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from service.upstream.http.session import ConnectionBroken, open_session

SERVICE = Path(__file__).parents[1] / "service"
CLIENT_SIDE, SERVER_SIDE = "upstream/http/", "web/http/"
NO_TIMEOUT = aiohttp.ClientTimeout()
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nimage"


# Servers and clients of the checks


class Origin(NamedTuple):
    """A raw server: its URL, and the writers of its connections."""

    url: URL
    connections: list[asyncio.StreamWriter]


@asynccontextmanager
async def origin_of(*responses: bytes) -> AsyncIterator[Origin]:
    """Serve these responses, one for each request on any connection, and then close the connection."""
    remaining = list(responses)
    connections: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n") and remaining:
                writer.write(remaining.pop(0))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Origin(URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"), connections)


@asynccontextmanager
async def session_to(origin: Origin) -> AsyncIterator[tuple[aiohttp.TCPConnector, aiohttp.ClientRequest]]:
    """Open a session; yield its connector, and a request to the origin."""
    loop = asyncio.get_running_loop()
    connector = aiohttp.TCPConnector()
    async with aiohttp.ClientSession(connector=connector) as session:
        yield connector, aiohttp.ClientRequest("GET", origin.url, loop=loop, session=session)


Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def server_of(
    handler: Handler, connection: type[web.RequestHandler] = web.RequestHandler
) -> AsyncIterator[tuple[web.Server, int]]:
    """Serve with a handler on a port of loopback, each connection by the given class; yield server and port."""
    loop = asyncio.get_running_loop()
    server = web.Server(handler)
    listening = await loop.create_server(lambda: connection(server, loop=loop), "127.0.0.1", 0)
    try:
        yield server, listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        await server.shutdown(1)


async def exchange(port: int, request: bytes = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") -> bytes:
    """Send raw bytes; return all that is received until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    received = await reader.read()
    writer.close()
    await writer.wait_closed()
    return received


# Checks of the client side


async def check_connect() -> None:
    """A request of a session gets its connection from an overridden ``connect``."""
    calls: list[aiohttp.ClientRequest] = []

    class Recording(aiohttp.TCPConnector):
        async def connect(
            self,
            req: aiohttp.ClientRequest,
            traces: list[Trace],
            timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - its name is aiohttp's
        ) -> aiohttp.connector.Connection:
            calls.append(req)
            return await super().connect(req, traces, timeout)

    async with (
        origin_of(OK) as origin,
        aiohttp.ClientSession(connector=Recording()) as session,
        session.get(origin.url) as response,
    ):
        assert await response.read() == b"image"
    assert [one.url for one in calls] == [origin.url]


async def check_connection_protocol() -> None:
    """The connection's protocol is the one of its transport, and may be replaced and restored there."""
    async with origin_of() as origin, session_to(origin) as (connector, request):
        connection = await connector.connect(request, [], NO_TIMEOUT)
        protocol, transport = connection.protocol, connection.transport
        assert protocol is not None
        assert transport is not None
        assert transport.get_protocol() is protocol
        transport.set_protocol(asyncio.Protocol())
        transport.set_protocol(protocol)
        connection.release()
        reused = await connector.connect(request, [], NO_TIMEOUT)
        assert reused.protocol is protocol
        reused.close()


async def check_should_close() -> None:
    """A connection on which bytes arrive while it is idle reports ``should_close``."""
    async with origin_of() as origin, session_to(origin) as (connector, request):
        connection = await connector.connect(request, [], NO_TIMEOUT)
        protocol = connection.protocol
        assert protocol is not None
        assert not protocol.should_close
        protocol.data_received(OK)
        assert protocol.should_close
        connection.close()


async def check_middleware_disables_the_retry() -> None:
    """A GET on a broken connection is not repeated if a client middleware replaces the error."""
    async with (
        origin_of(OK) as origin,
        open_session(allow_private=True, connect_timeout_seconds=5) as session,
    ):
        async with session.get(origin.url) as response:
            assert await response.read() == b"image"
        with pytest.raises(ConnectionBroken):
            await session.get(origin.url)
        assert len(origin.connections) == 1


async def check_readany_after_broken_framing() -> None:
    """A body whose framing breaks behind delivered data ends with a ``RuntimeError``, not cleanly."""
    begun = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"
    async with origin_of(begun) as origin, aiohttp.ClientSession() as session:
        response = await session.get(origin.url)
        origin.connections[0].write(b"no number\r\n")
        await origin.connections[0].wait_closed()  # by the client
        assert await response.content.readany() == b"half"
        with pytest.raises(RuntimeError):
            await response.content.readany()
        response.close()


# Checks of the server side


async def check_request_handler() -> None:
    """``RequestHandler`` can be subclassed with slots, and has the signatures that are overridden."""
    assert list(inspect.signature(web.RequestHandler.handle_error).parameters) == [
        "self", "request", "status", "exc", "message"
    ]  # fmt: skip
    assert list(inspect.signature(web.RequestHandler.shutdown).parameters) == ["self", "timeout"]
    options = inspect.signature(web.RequestHandler).parameters
    assert {"loop", "access_log", "keepalive_timeout", "max_line_size", "max_field_size", "auto_decompress"} <= set(
        options
    )
    calls: list[str] = []

    class Recording(web.RequestHandler):
        __slots__ = ()

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            calls.append("connection_made")
            super().connection_made(transport)

        def handle_error(
            self, request: web.BaseRequest, status: int = 500, exc: Any = None, message: str | None = None
        ) -> web.StreamResponse:
            calls.append(f"handle_error {status}")
            return super().handle_error(request, status, exc, message)

        def connection_lost(self, exc: BaseException | None) -> None:
            calls.append("connection_lost")
            super().connection_lost(exc)

    async def handle(request: web.BaseRequest) -> web.Response:
        raise AssertionError(f"{request} is malformed")

    async with server_of(handle, Recording) as (_, port):
        assert (await exchange(port, b"nonsense\r\n\r\n")).startswith(b"HTTP/1.0 400")
    assert calls == ["connection_made", "handle_error 400", "connection_lost"]


async def check_task_handler() -> None:
    """Cancelling the connection's task cancels the handler, and nothing more is sent."""
    cancelled = asyncio.Event()

    async def handle(request: web.BaseRequest) -> web.Response:
        task = request.protocol._task_handler
        assert task is not None
        task.cancel()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError("the handler was not cancelled")

    async with server_of(handle) as (_, port):
        assert await exchange(port) == b""
    assert cancelled.is_set()


async def check_shutdown() -> None:
    """The server's shutdown calls ``shutdown`` of each connection while handler and transport are still there."""
    handling, states = asyncio.Event(), []

    class Recording(web.RequestHandler):
        __slots__ = ()

        async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 - its name is aiohttp's
            assert self._task_handler is not None
            assert self.transport is not None
            states.append((self._task_handler.done(), self.transport.is_closing()))
            self._task_handler.cancel()
            await super().shutdown(timeout)

    async def handle(request: web.BaseRequest) -> web.Response:
        handling.set()
        await asyncio.Event().wait()
        raise AssertionError(f"{request} was not cancelled")

    async with server_of(handle, Recording) as (server, port):
        client = asyncio.create_task(exchange(port))
        await handling.wait()
        await server.shutdown(1)
        await client
    assert states == [(False, False)]


async def check_request_factory() -> None:
    """The factory may be wrapped; it gets a named tuple first, of which headers can be replaced."""

    async def handle(request: web.BaseRequest) -> web.Response:
        return web.Response(text=f"{request.headers.get('X-Wrapped')} {request.headers.get('Expect')}")

    async with server_of(handle) as (server, port):
        factory = server.request_factory

        def wrapped(message: RawRequestMessage, *others: Any) -> web.BaseRequest:
            assert message.version == aiohttp.HttpVersion11
            headers = CIMultiDict(message.headers)
            headers["X-Wrapped"] = headers.popone("Expect")
            return factory(message._replace(headers=CIMultiDictProxy(headers)), *others)

        server.request_factory = wrapped
        request = b"GET / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
        assert (await exchange(port, request)).endswith(b"\r\n\r\n100-continue None")


async def check_output_size() -> None:
    """The writer counts its bytes, and a reset count makes the next response the first on the connection."""
    sizes: list[int] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        writer = request.writer
        assert isinstance(writer, StreamWriter)
        sizes.append(writer.output_size)
        await writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        sizes.append(writer.output_size)
        writer.output_size = 0
        raise web.HTTPNotFound

    async with server_of(handle) as (_, port):
        received = await exchange(port)
    assert sizes == [0, len(b"HTTP/1.1 100 Continue\r\n\r\n")]
    assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 ")


async def check_response_state() -> None:
    """A prepared response has its request and writer, and says whether it has ended."""
    states: list[tuple[bool, bool, bool]] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        assert (response._req, response._payload_writer) == (None, None)
        writer = await response.prepare(request)
        states.append((response._req is request, response._payload_writer is writer, response._eof_sent))
        await response.write_eof()
        states.append((response._req is request, response._payload_writer is None, response._eof_sent))
        return response

    async with server_of(handle) as (_, port):
        await exchange(port)
    assert states[0] == (True, True, False)
    assert states[1][2]


async def check_send_headers() -> None:
    """``send_headers`` writes the header at once, and only once."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        writer = await response.prepare(request)
        assert isinstance(writer, StreamWriter)
        assert writer.output_size == 0
        writer.send_headers()
        assert writer.output_size > 0
        writer.send_headers()
        return response

    async with server_of(handle) as (_, port):
        received = await exchange(port)
    assert received.count(b"HTTP/1.1 200 OK") == 1


async def check_chunked() -> None:
    """A streamed HTTP/1.1 response is chunked, and its last chunk is left out if the writer no longer is."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        writer = await response.prepare(request)
        assert isinstance(writer, StreamWriter)
        assert writer.chunked is (request.version == aiohttp.HttpVersion11)
        await response.write(b"x")
        writer.chunked = False
        return response

    async with server_of(handle) as (_, port):
        assert (await exchange(port)).endswith(b"\r\n\r\n1\r\nx\r\n")
        assert (await exchange(port, b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")).endswith(b"\r\n\r\nx")


async def check_resume_writing() -> None:
    """A connection's ``resume_writing`` is called when its client has taken most of what was written to it."""
    calls: list[str] = []
    resumed = asyncio.Event()

    class Recording(web.RequestHandler):
        __slots__ = ()

        def pause_writing(self) -> None:
            calls.append("pause_writing")
            super().pause_writing()

        def resume_writing(self) -> None:
            calls.append("resume_writing")
            super().resume_writing()
            resumed.set()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        writer = await response.prepare(request)
        assert isinstance(writer, StreamWriter)
        writer.send_headers()
        assert request.transport is not None
        request.transport.write(bytes(16_000_000))  # past aiohttp's writer
        await resumed.wait()
        writer.chunked = False
        return response

    async with server_of(handle, Recording) as (_, port):
        assert (await exchange(port)).endswith(bytes(16_000_000))
    assert calls == ["pause_writing", "resume_writing"]


class Internal(NamedTuple):
    """One internal of aiohttp: its name, a regular expression of its use, and the check of what is relied on."""

    name: str
    folder: str
    use: str
    check: Callable[[], Awaitable[None]]


INTERNALS = [
    Internal("BaseConnector.connect", CLIENT_SIDE, r"super\(\)\.connect\(", check_connect),
    Internal("Connection.protocol", CLIENT_SIDE, r"connection\.protocol\b", check_connection_protocol),
    Internal("ResponseHandler.should_close", CLIENT_SIDE, r"\.should_close\b", check_should_close),
    Internal("retry of a GET", CLIENT_SIDE, r"middlewares=", check_middleware_disables_the_retry),
    Internal("StreamReader.readany", CLIENT_SIDE, r"except RuntimeError", check_readany_after_broken_framing),
    Internal("RequestHandler", SERVER_SIDE, r"\(web\.RequestHandler\)", check_request_handler),
    Internal("RequestHandler._task_handler", SERVER_SIDE, r"\._task_handler\b", check_task_handler),
    Internal("RequestHandler.shutdown", SERVER_SIDE, r"super\(\)\.shutdown\(", check_shutdown),
    Internal("Server.request_factory", SERVER_SIDE, r"message\._replace\(", check_request_factory),
    Internal("StreamWriter.output_size", SERVER_SIDE, r"\.output_size\b", check_output_size),
    Internal("StreamResponse._payload_writer", SERVER_SIDE, r"\._payload_writer\b", check_response_state),
    Internal("StreamResponse._req", SERVER_SIDE, r"self\._req\b", check_response_state),
    Internal("StreamResponse._eof_sent", SERVER_SIDE, r"self\._eof_sent\b", check_response_state),
    Internal("StreamWriter.send_headers", SERVER_SIDE, r"\.send_headers\(", check_send_headers),
    Internal("StreamWriter.chunked", SERVER_SIDE, r"\.chunked\b", check_chunked),
    Internal("BaseProtocol.resume_writing", SERVER_SIDE, r"super\(\)\.resume_writing\(", check_resume_writing),
]


@pytest.mark.parametrize("internal", INTERNALS, ids=lambda internal: internal.name)
@pytest.mark.usefixtures("nothing_left_behind")
async def test_internal_behaves_as_relied_on(internal: Internal) -> None:
    """Each internal of aiohttp does what the service relies on, in the installed release."""
    await internal.check()


@pytest.mark.parametrize("internal", INTERNALS, ids=lambda internal: internal.name)
def test_internal_is_used_in_its_folder(internal: Internal) -> None:
    """Each row of the table is still needed."""
    sources = "".join(path.read_text("utf-8") for path in sorted((SERVICE / internal.folder).rglob("*.py")))
    assert re.search(internal.use, sources)


# Where internals may be used. The sandbox is no part of the service: it breaks HTTP on purpose.
PUBLIC_MODULES = {"aiohttp", "aiohttp.abc", "aiohttp.hdrs", "aiohttp.typedefs", "aiohttp.web"}
PUBLIC_NAMES = {"aiohttp.http.HttpProcessingError"}  # raised by public readers of request bodies
INTERNAL_ATTRIBUTES = {
    "_drain_helper",
    "_eof_sent",
    "_payload_writer",
    "_replace",
    "_req",
    "_task_handler",
    "keep_alive_timeout",
    "output_size",
    "request_factory",
    "send_headers",
    "set_protocol",
    "should_close",
    "writer",
}
INTERNAL_CLASSES = {
    "BaseConnector",
    "ClientRequest",
    "Connection",
    "RequestHandler",
    "ResponseHandler",
    "StreamWriter",
    "TCPConnector",
}
MODULES = [
    path
    for path in sorted(SERVICE.rglob("*.py"))
    if not path.relative_to(SERVICE).as_posix().startswith(("sandbox/", CLIENT_SIDE, SERVER_SIDE))
]


def imported_internals(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Yield what an import statement imports of aiohttp besides its public API."""
    for alias in node.names:
        module = alias.name if isinstance(node, ast.Import) else node.module or ""
        name = module if isinstance(node, ast.Import) else f"{module}.{alias.name}"
        if module.split(".")[0] != "aiohttp" or name in PUBLIC_NAMES:
            continue
        if PUBLIC_MODULES.isdisjoint({module, name}) or is_internal_name(alias.name):
            yield name


def is_internal_name(name: str) -> bool:
    """Whether a name of aiohttp's public modules is internal."""
    return name in INTERNAL_CLASSES or name.startswith("_")


def is_internal_attribute(node: ast.Attribute) -> bool:
    """Whether an attribute is an internal of aiohttp."""
    match node:
        case ast.Attribute(value=ast.Name(id="aiohttp" | "web"), attr=name):
            return is_internal_name(name) or name == "connector"
        case ast.Attribute(value=ast.Name(id="connector") | ast.Attribute(attr="connector"), attr="connect"):
            return True
        case ast.Attribute(value=ast.Name(id="connection"), attr="protocol"):
            return True
    return node.attr in INTERNAL_ATTRIBUTES


def internals_in(source: str) -> Iterator[str]:
    """Yield each use of an internal of aiohttp, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (f"line {node.lineno}: imports {name}" for name in imported_internals(node))
        elif isinstance(node, ast.Attribute) and is_internal_attribute(node):
            yield f"line {node.lineno}: uses {node.attr}"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(SERVICE).as_posix())
def test_internals_stay_in_their_folders(module: Path) -> None:
    """Outside upstream/http/ and web/http/ the service uses aiohttp's public API only."""
    assert list(internals_in(module.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "from aiohttp.base_protocol import BaseProtocol",
        "from aiohttp.http import RawRequestMessage",
        "from aiohttp.web import RequestHandler",
        "from aiohttp import _websocket",
        "import aiohttp.http_writer",
        "class Connection(web.RequestHandler): ...",
        "aiohttp.TCPConnector()",
        "aiohttp.connector.Connection",
        "await session.connector.connect(request, [], timeout)",
        "connection.protocol.data_received(b'')",
        "response._payload_writer",
        "request.writer.output_size = 0",
        "server.request_factory = factory",
        "message._replace(headers=headers)",
        "transport.set_protocol(protocol)",
    ],
)
def test_use_of_an_internal_is_found(source: str) -> None:
    """The search finds every form in which an internal could be used."""
    assert list(internals_in(source))


def test_release_of_aiohttp_is_pinned() -> None:
    """pyproject.toml allows one minor release of aiohttp, the one that these checks were written for."""
    text = (SERVICE.parent / "pyproject.toml").read_text("utf-8")
    assert '"aiohttp>=3.14.3,<3.15"' in text
    assert aiohttp.__version__.startswith("3.14.")
