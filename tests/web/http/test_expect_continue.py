"""``Expect: 100-continue`` over raw sockets: 100 is sent only when a handler reads the body."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr
from yarl import URL

from service.sandbox import DEMO_ORDER_ID, Sandbox
from tests.archives import jpeg
from tests.conftest import StartService

ADMIN, KEY, NOTICE = "token-of-the-operator", "a-key-of-the-service", "secret-of-the-webhook"
LOCKED: dict[str, Any] = {
    "service_api_keys": (SecretStr(KEY),),
    "admin_token": SecretStr(ADMIN),
    "webhook_secret": SecretStr(NOTICE),
    "signing_keys": (SecretStr("s" * 32),),
}
GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"
FORM = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n' + jpeg(3000) + b"\r\n--b--\r\n"
AS_CLIENT, SIGN_IN = b"X-API-Key: " + KEY.encode(), b'{"key": "%s"}' % KEY.encode()
UPLOAD = "/api/create-order", b"Content-Type: multipart/form-data; boundary=b", FORM


@asynccontextmanager
async def expecting(
    service: str, path: str, fields: bytes, length: int
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Send the headers of a POST that expects 100 (Continue)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", URL(service).port)
    headers = f"POST {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n"
    writer.write(headers.encode() + fields + b"\r\n\r\n")
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


def parsed(response: bytes) -> tuple[int, bytes, Any]:
    """Return status, headers and JSON body of a response."""
    headers, _, body = response.partition(b"\r\n\r\n")
    return int(headers.split()[1]), headers, json.loads(body) if body else None


@pytest.mark.parametrize(
    ("changes", "fields", "status", "slug"),
    [
        pytest.param({}, b"X-Admin-Token: wrong", 401, "admin-required", id="wrong token"),
        pytest.param({"admin_token": None}, b"", 503, "admin-not-configured", id="no operator"),
        pytest.param(
            {"autoenhance_api_key": None},
            b"X-Admin-Token: " + ADMIN.encode(),
            503,
            "api-key-not-configured",
            id="no API key",
        ),
    ],
)
async def test_rejected_upload_gets_no_100(
    changes: dict[str, Any], fields: bytes, status: int, slug: str, start_service: StartService
) -> None:
    """The first response is the problem, no byte of the photo is needed, and the connection closes."""
    service = await start_service(**{**LOCKED, **changes})
    path, content_type, _ = UPLOAD
    async with expecting(service, path, b"\r\n".join([content_type, *([fields] if fields else [])]), 100_000_000) as (
        reader,
        _,
    ):
        headers = await reader.readuntil(b"\r\n\r\n")
        found, _, _ = parsed(headers)
        assert (found, b"\r\nConnection: close\r\n" in headers) == (status, True)
        length = next(int(one.split()[1]) for one in headers.split(b"\r\n") if one.startswith(b"Content-Length:"))
        assert json.loads(await reader.readexactly(length))["type"] == f"/problems/{slug}"


async def test_upload_at_capacity_gets_no_100(start_service: StartService) -> None:
    """At capacity a 503 precedes the photo; an admitted upload gets 100 once."""
    service = await start_service(**LOCKED, max_concurrent_uploads=1)
    path, content_type, form = UPLOAD
    fields = content_type + b"\r\nX-Admin-Token: " + ADMIN.encode()
    async with expecting(service, path, fields, len(form)) as (reader, writer):
        assert await reader.readexactly(len(GO_ON)) == GO_ON
        async with expecting(service, path, fields, len(form)) as (other, _):
            assert parsed(await other.readuntil(b"\r\n\r\n"))[0] == 503
        writer.write(form)
        assert parsed(await reader.readuntil(b"\r\n\r\n"))[0] == 201


@pytest.mark.parametrize(
    ("path", "fields", "body", "status", "rejected"),
    [
        pytest.param(UPLOAD[0], UPLOAD[1] + b"\r\nX-Admin-Token: " + ADMIN.encode(), FORM, 201, 401, id="upload"),
        pytest.param(f"/orders/{DEMO_ORDER_ID}/links", AS_CLIENT, b"{}", 201, 401, id="link"),
        pytest.param("/session", b"Content-Type: application/json", SIGN_IN, 200, None, id="session"),
        pytest.param("/webhooks/autoenhance", b"Authentication: " + NOTICE.encode(), b"{}", 204, 401, id="notice"),
        pytest.param(f"/orders/{DEMO_ORDER_ID}/images", AS_CLIENT, b'{"missing": []}', 204, 401, id="list"),
        pytest.param("/nowhere", b"", b"{}", None, 404, id="nowhere"),
        pytest.param("/health", b"", b"{}", None, 405, id="not allowed"),
    ],
)
async def test_accepted_request_gets_100(
    path: str, fields: bytes, body: bytes, status: int | None, rejected: int | None, start_service: StartService
) -> None:
    """Each route with a body sends 100 when it reads the body, and not before authorization."""
    service = await start_service(**LOCKED)
    if rejected is not None:
        async with expecting(service, path, b"X-Nothing: 1", len(body)) as (reader, _):
            assert parsed(await reader.readuntil(b"\r\n\r\n"))[0] == rejected
    if status is not None:
        async with expecting(service, path, fields, len(body)) as (reader, writer):
            assert await reader.readexactly(len(GO_ON)) == GO_ON
            writer.write(body)
            assert parsed(await reader.readuntil(b"\r\n\r\n"))[0] == status


async def test_http_1_0_gets_no_100(service: str, sandbox: Sandbox) -> None:
    """Expect is ignored in an HTTP/1.0 request (RFC 9110 section 10.1.1)."""
    assert sandbox.requests == []
    reader, writer = await asyncio.open_connection("127.0.0.1", URL(service).port)
    writer.write(b"POST /session HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}")
    assert (await reader.read()).startswith(b"HTTP/1.0 400 ")
    writer.close()
    await writer.wait_closed()
