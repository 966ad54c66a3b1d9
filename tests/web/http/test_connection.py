"""Client connections over raw sockets: slow, malformed and unusual requests."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest

from service.sandbox import DEMO_ORDER_ID, Sandbox
from tests.archives import add_order, download, entries, images_url, jpeg
from tests.conftest import StartService

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connected(service: str) -> AsyncIterator[Streams]:
    """Open a raw connection to the service."""
    host, port = service.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):  # the service may have reset it
            await writer.wait_closed()


async def exchange(service: str, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes; return status, headers and body of the only response, after which the connection closes."""
    async with connected(service) as (reader, writer):
        writer.write(request)
        return _parsed(await reader.read())


def _parsed(response: bytes) -> tuple[int, dict[str, str], bytes]:
    section, _, body = response.partition(b"\r\n\r\n")
    status_line, *lines = section.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return int(status_line.split(" ")[1]), headers, body


async def next_response(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Return the next response of a connection that stays open; it must have a Content-Length."""
    status, headers, _ = _parsed(await reader.readuntil(b"\r\n\r\n"))
    return status, headers, await reader.readexactly(int(headers["Content-Length"]))


# Slow headers.


@pytest.mark.parametrize("begun", [b"", b"G", HEALTH], ids=["nothing", "one byte", "all but the end"])
async def test_idle_connection_is_closed_after_the_header_timeout(begun: bytes, start_service: StartService) -> None:
    """A connection whose headers do not end is closed, without a response."""
    service = await start_service(request_header_timeout_seconds=0.2)
    async with connected(service) as (reader, writer):
        writer.write(begun)
        assert await reader.read() == b""


async def test_trickled_headers_do_not_extend_the_timeout(
    start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """A trickle of bytes does not extend the header timeout."""
    service = await start_service(request_header_timeout_seconds=0.3)
    async with connected(service) as (reader, writer):
        writer.write(HEALTH + b"X-Slow: ")
        while not reader.at_eof() and reader.exception() is None:
            # One byte for each response that another client gets: neither a burst nor a pause.
            async with client.get(f"{service}/health/live") as response:
                assert response.status == 200
            if not writer.is_closing():
                writer.write(b"x")
        with suppress(ConnectionResetError):  # the last byte may cross the end
            assert await reader.read() == b""


async def test_header_timeout_does_not_bound_the_response(sandbox: Sandbox, start_service: StartService) -> None:
    """An archive may take longer than the header timeout: idle connections are closed while it goes on."""
    service = await start_service(request_header_timeout_seconds=0.2)
    order = add_order(sandbox, [3000])
    gate = sandbox.faults.pause(order.images[0].image_id, after_bytes=1000)
    async with connected(service) as (reader, writer):
        writer.write(f"GET {images_url(service, order.order_id).raw_path} HTTP/1.0\r\n\r\n".encode())
        received = await reader.readuntil(b"\r\n\r\n")
        async with connected(service) as (later, _):
            assert await later.read() == b""  # its time began later, and is over
        gate.release()
        received = await reader.read()
    assert entries(received) == {"0.jpg": jpeg(3000)}


@pytest.mark.parametrize("begun", [b"", HEALTH], ids=["idle", "all but the end"])
async def test_next_headers_have_the_keepalive_timeout(
    begun: bytes, start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kept-alive connection is closed if no complete request follows, started or not."""
    monkeypatch.setattr("service.web.http.connection.KEEPALIVE_SECONDS", 0.2)
    service = await start_service()
    async with connected(service) as (reader, writer):
        writer.write(HEALTH + b"\r\n")
        assert (await next_response(reader))[0] == 200
        writer.write(begun)
        assert await reader.read() == b""


# Malformed requests.


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", id="long request line"),
        pytest.param(HEALTH + b"X-Long: " + b"a" * 20_000 + b"\r\n\r\n", id="long header"),
        pytest.param(HEALTH + b"X-" + b"a" * 20_000 + b": 1\r\n\r\n", id="long header name"),
        pytest.param(HEALTH + b"".join(b"X-%d: 1\r\n" % n for n in range(1000)) + b"\r\n", id="many headers"),
        pytest.param(b"hello, who is there?\r\n\r\n", id="garbage"),
        pytest.param(b"\x00" * 100 + b"\r\n\r\n", id="zeros"),
        pytest.param(bytes.fromhex("16030100a5010000a10303") + bytes(range(160)), id="TLS"),
        pytest.param(b"GET /health HTTP/3.7\r\nHost: x\r\n\r\n", id="unknown version"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2 preface"),
        pytest.param(b"GET /health ICY/1.1\r\nHost: x\r\n\r\n", id="another protocol"),
        pytest.param(HEALTH + b"no colon\r\n\r\n", id="header without colon"),
        pytest.param(HEALTH + b"Content-Length: x\r\n\r\n", id="length is no number"),
        pytest.param(HEALTH + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", id="two lengths"),
        pytest.param(HEALTH + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n", id="chunks and a length"),
        pytest.param(HEALTH + b"X-Evil: a\x00b\r\n\r\n", id="zero in a header"),
    ],
)
async def test_malformed_request_gets_a_problem(request_bytes: bytes, service: str, sandbox: Sandbox) -> None:
    """The response is a 400 problem document that reveals nothing of the software, and closes the connection."""
    status, headers, body = await exchange(service, request_bytes)
    assert status == 400
    assert headers["Content-Type"].startswith("application/problem+json")
    assert headers["Server"] == "autoenhance-batch"
    problem = json.loads(body)
    assert (problem["type"], problem["status"]) == ("/problems/bad-request", 400)
    response = (repr(headers) + body.decode()).lower()
    assert not [name for name in ("aiohttp", "python", "llhttp", "traceback") if name in response]
    assert sandbox.requests == []


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        pytest.param(b"BREW /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {400, 405}, id="unknown method"),
        pytest.param(b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {400, 404, 405}, id="asterisk"),
        pytest.param(b"GET http://other/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {200}, id="absolute"),
        pytest.param(HEALTH + b"Expect: 200-maybe\r\nConnection: close\r\n\r\n", {400}, id="unknown expectation"),
        pytest.param(b"GET /orders/%zz/images HTTP/1.0\r\n\r\n", {400}, id="bad escape"),
        pytest.param(b"GET /health HTTP/2.0\r\nHost: x\r\nConnection: close\r\n\r\n", {200, 400}, id="HTTP/2.0 as 1.1"),
        pytest.param(b"GET /health\r\n\r\n", {200, 400}, id="HTTP/0.9"),
        pytest.param(b"GET //health HTTP/1.0\r\n\r\n", {404}, id="two slashes"),
    ],
)
async def test_unusual_requests_get_a_response(request_bytes: bytes, expected: set[int], service: str) -> None:
    """A valid but unusual request gets a response that reveals nothing of the software."""
    status, headers, body = await exchange(service, request_bytes)
    assert status in expected
    assert headers["Server"] == "autoenhance-batch"
    assert b"aiohttp" not in body.lower()


async def test_garbage_after_a_request_gets_a_problem(service: str) -> None:
    """A valid request gets its response; the garbage after it gets a problem, and closes the connection."""
    async with connected(service) as (reader, writer):
        writer.write(HEALTH + b"\r\n")
        first = await next_response(reader)
        writer.write(b"\x00garbage\r\n\r\n")
        status, headers, _ = _parsed(await reader.read())
    assert (first[0], status) == (200, 400)
    assert headers["Server"] == "autoenhance-batch"


async def test_garbage_after_a_request_does_not_enter_the_archive(sandbox: Sandbox, service: str) -> None:
    """Bytes after a request whose archive streams do not enter the archive."""
    order = add_order(sandbox, [3000])
    gate = sandbox.faults.pause(order.images[0].image_id, after_bytes=1000)
    async with connected(service) as (reader, writer):
        writer.write(f"GET {images_url(service, order.order_id).raw_path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"\x00garbage\r\n\r\n")
        gate.release()
        rest = await reader.read()
    archive, trailers, problem = rest.partition(b"\r\n0\r\nX-Downloaded: 1\r\nX-Failed: 0\r\n\r\n")
    assert trailers
    assert jpeg(3000)[-500:] in archive
    assert b"HTTP/1." not in archive
    assert _parsed(problem)[0] == 400


# Valid, but unusual.


async def test_connection_serves_several_requests(service: str) -> None:
    """A kept-alive connection serves one request after another, whatever their status."""
    async with connected(service) as (reader, writer):
        for path, expected in [("/health", 200), ("/nothing", 404), ("/orders/42/images", 400), ("/health/ready", 200)]:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert (await next_response(reader))[0] == expected
        writer.write(HEALTH + b"Connection: close\r\n\r\n")
        status, headers, body = _parsed(await reader.read())
    assert (status, headers["Connection"]) == (200, "close")
    assert json.loads(body)["status"] == "ok"


async def test_connection_serves_several_archives(sandbox: Sandbox, service: str) -> None:
    """After an archive its connection serves the next request."""
    order = add_order(sandbox, [500] * 2)
    opened: list[object] = []

    async def note(_session: object, _context: object, _params: object) -> None:
        opened.append(1)

    watch = aiohttp.TraceConfig()
    watch.on_connection_create_end.append(note)
    async with aiohttp.ClientSession(trace_configs=[watch]) as client:
        for _ in range(3):
            assert len(await download(client, images_url(service, order.order_id))) == 2
    assert len(opened) == 1


async def test_pipelined_requests_get_responses_in_order(service: str) -> None:
    """Pipelined requests get their responses in order (RFC 9112 section 9.3.2)."""
    paths = ["/health", "/nothing", "/health/live", "/orders/42/images", "/problems/bad-request"] * 10
    async with connected(service) as (reader, writer):
        writer.write("".join(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n" for path in paths).encode())
        statuses = [(await next_response(reader))[0] for _ in paths]
    assert statuses == [200, 404, 200, 400, 200] * 10


async def test_pipelined_archives_are_complete(service: str, sandbox: Sandbox) -> None:
    """Two pipelined archives arrive one after the other, both complete."""
    request = f"GET {images_url(service, DEMO_ORDER_ID).raw_path} HTTP/1.1\r\nHost: x\r\n"
    async with connected(service) as (reader, writer):
        writer.write(f"{request}\r\n{request}Connection: close\r\n\r\n".encode())
        responses = await reader.read()
    assert responses.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert responses.count(b"\r\n0\r\nX-Downloaded: 14\r\nX-Failed: 0\r\n\r\n") == 2
    assert responses.endswith(b"X-Failed: 0\r\n\r\n")
    assert len([one for one in sandbox.requests if one.origin == "storage"]) == 28


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"Content-Length: 5\r\n\r\nhello", id="short"),
        pytest.param(b"Content-Length: 1000000\r\n\r\n" + b"x" * 1_000_000, id="long"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", id="chunked"),
        pytest.param(b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello", id="with Expect"),
        pytest.param(b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello", id="not what it says"),
    ],
)
async def test_body_of_a_get_is_ignored(body: bytes, sandbox: Sandbox, service: str) -> None:
    """A GET with a body is served, and the body is not mistaken for the next request."""
    order = add_order(sandbox, [3000])
    path = images_url(service, order.order_id).raw_path
    async with connected(service) as (reader, writer):
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n".encode() + body)
        received = await reader.readuntil(b"\r\n0\r\nX-Downloaded: 1\r\nX-Failed: 0\r\n\r\n")
        writer.write(HEALTH + b"Connection: close\r\n\r\n")
        after = await reader.read()
    assert jpeg(3000)[-500:] in received
    assert b" 200 OK\r\n" in received
    # A connection whose body was malformed may close instead.
    assert after == b"" or _parsed(after)[0] in {200, 400}


async def test_malformed_requests_are_counted(service: str, client: aiohttp.ClientSession) -> None:
    """Malformed requests are in the metrics like other rejected requests."""
    status, _, _ = await exchange(service, b"nonsense\r\n\r\n")
    assert status == 400
    async with client.get(f"{service}/metrics") as response:
        text = await response.text()
    assert 'batch_http_requests_total{method="other",route="unmatched",status="400"} 1.0' in text


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux only")
async def test_tcp_user_timeout_is_set(
    start_service: StartService, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each accepted connection has TCP_USER_TIMEOUT at three times the stall limit, for data in the kernel's buffer."""
    limits = []
    set_option = socket.socket.setsockopt

    def note(sock: socket.socket, *option: Any) -> None:
        set_option(sock, *option)
        if option[:2] == (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT):
            limits.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))

    monkeypatch.setattr(socket.socket, "setsockopt", note)
    service = await start_service(client_stall_seconds=7.5)
    async with client.get(f"{service}/health") as response:
        assert response.status == 200
    assert limits == [22_500]
