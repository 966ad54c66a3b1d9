"""Request bodies over raw sockets: each route bounds their time and size."""

import asyncio
import json
from typing import Any, Self

import aiohttp
import pytest
from pydantic import SecretStr
from yarl import URL

from service.sandbox import DEMO_ORDER_ID, Sandbox
from tests.conftest import StartService

KEY, NOTICE = "a-key-of-the-service", "secret-of-the-webhook"
LOCKED: dict[str, Any] = {
    "service_api_keys": (SecretStr(KEY),),
    "webhook_secret": SecretStr(NOTICE),
    "signing_keys": (SecretStr("s" * 32),),
    "max_images_per_order": 10,
}
AS_CLIENT, AS_JSON = b"X-API-Key: " + KEY.encode(), b"Content-Type: application/json"
GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"
# Each route whose handler reads a whole body: path, header fields, and one byte more than its limit.
ROUTES = [
    pytest.param("/session", AS_JSON, 4097, id="session"),
    pytest.param(f"/orders/{DEMO_ORDER_ID}/links", AS_CLIENT, 64 * 1024 + 1, id="link"),
    pytest.param(f"/orders/{DEMO_ORDER_ID}/images", AS_CLIENT, 10 * 2048 + 1, id="list"),
    pytest.param("/webhooks/autoenhance", b"Authentication: " + NOTICE.encode(), 64 * 1024 + 1, id="notice"),
]


class Connection:
    """One connection that sends a POST in pieces."""

    def __init__(self, service: str, path: str, *fields: bytes) -> None:
        self._port = URL(service).port
        self._header = b"\r\n".join([f"POST {path} HTTP/1.1".encode(), b"Host: x", *fields, b"", b""])

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        self.writer.write(self._header)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        await asyncio.gather(self.writer.wait_closed(), return_exceptions=True)  # the service may have reset it

    async def response(self) -> tuple[int, dict[str, str], dict[str, Any]]:
        """Return status, headers and document of the next response."""
        status_line, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        header = dict(line.split(": ", 1) for line in lines if line)
        body = await self.reader.readexactly(int(header["Content-Length"]))
        return int(status_line.split()[1]), header, json.loads(body)


@pytest.mark.parametrize(("path", "fields", "_too_many"), ROUTES)
@pytest.mark.parametrize(
    ("framing", "begun"),
    [
        pytest.param(b"Content-Length: 10", b"", id="no byte"),
        pytest.param(b"Content-Length: 10", b'{"key"', id="a part"),
        pytest.param(b"Transfer-Encoding: chunked", b"2\r\n{}\r\n", id="no last chunk"),
        pytest.param(b"Content-Length: 10\r\nExpect: 100-continue", b"", id="after 100 Continue"),
    ],
)
async def test_late_body_is_a_408(
    framing: bytes, begun: bytes, path: str, fields: bytes, _too_many: int, start_service: StartService,
    sandbox: Sandbox,
) -> None:  # fmt: skip
    """After REQUEST_BODY_TIMEOUT_SECONDS every route responds and closes, without an upstream request."""
    service = await start_service(**LOCKED, request_body_timeout_seconds=0.2)
    async with Connection(service, path, fields, framing) as connection:
        connection.writer.write(begun)
        if b"Expect" in framing:
            assert await connection.reader.readexactly(len(GO_ON)) == GO_ON
        status, header, document = await connection.response()
    assert (status, document["type"]) == (408, "/problems/request-body-timeout")
    assert document["detail"] == "The body did not arrive within 0.2 s."
    assert header["Connection"] == "close"
    assert sandbox.requests == []


async def test_trickled_body_does_not_extend_the_deadline(
    start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """The deadline is for the whole body: a trickle of bytes does not hold a connection."""
    service = await start_service(**LOCKED, request_body_timeout_seconds=0.3)
    async with Connection(service, "/session", AS_JSON, b"Content-Length: 4096") as connection:
        response = asyncio.create_task(connection.response())
        while not response.done():
            # One byte for each response that another client gets: neither a burst nor a pause.
            async with client.get(f"{service}/health/live") as other:
                assert other.status == 200
            connection.writer.write(b" ")
        assert (await response)[0] == 408


@pytest.mark.parametrize(("path", "fields", "too_many"), ROUTES)
async def test_oversized_body_is_rejected_before_it_is_sent(
    path: str, fields: bytes, too_many: int, start_service: StartService
) -> None:
    """A Content-Length above the limit is a 400 at once, without 100 (Continue); one byte less is read."""
    service = await start_service(**LOCKED)
    length = b"Content-Length: %d\r\nExpect: 100-continue"
    async with Connection(service, path, fields, length % too_many) as connection:
        status, _, document = await connection.response()
        assert (status, document["type"]) == (400, "/problems/invalid-body")
        assert f" {too_many - 1} bytes" in document["detail"]
    async with Connection(service, path, fields, length % (too_many - 1)) as connection:
        assert await connection.reader.readexactly(len(GO_ON)) == GO_ON


@pytest.mark.parametrize(("path", "fields", "too_many"), ROUTES)
async def test_oversized_chunked_body_is_rejected(
    path: str, fields: bytes, too_many: int, start_service: StartService
) -> None:
    """A chunked body is rejected at the first byte above the limit, before its last chunk."""
    service = await start_service(**LOCKED)
    async with Connection(service, path, fields, b"Transfer-Encoding: chunked") as connection:
        connection.writer.write(b"%x\r\n%s\r\n" % (too_many, b" " * too_many))
        status, _, document = await connection.response()
    assert (status, document["type"]) == (400, "/problems/invalid-body")
    assert f" {too_many - 1} bytes" in document["detail"]


@pytest.mark.parametrize(("path", "fields", "_too_many"), ROUTES)
async def test_malformed_chunks_do_not_hold_the_connection(
    path: str, fields: bytes, _too_many: int, start_service: StartService
) -> None:
    """Malformed framing after a valid start is the client's error, and does not hold its connection."""
    service = await start_service(**LOCKED, request_body_timeout_seconds=0.2)
    async with Connection(service, path, fields, b"Transfer-Encoding: chunked\r\nExpect: 100-continue") as connection:
        assert await connection.reader.readexactly(len(GO_ON)) == GO_ON
        connection.writer.write(b"2\r\n{}\r\nzz\r\n")
        status, _, document = await connection.response()
    # Whether the broken chunk is reported to the body's reader depends on aiohttp's parser.
    assert (status, document["type"]) in {(400, "/problems/invalid-body"), (408, "/problems/request-body-timeout")}
