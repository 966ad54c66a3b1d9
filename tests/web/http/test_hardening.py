"""Security headers, CORS, and hostile input."""

import asyncio
import io
import json
from collections.abc import Iterator

import aiohttp
import pytest
from pydantic import SecretStr
from yarl import URL

from service.monitoring.logs import configure_logs
from service.sandbox import DEMO_ORDER_ID, Sandbox
from tests.archives import add_order, images_url
from tests.conftest import StartService

OURS, THEIRS = "https://app.example.com", "https://evil.example.com"


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """The service's log in console format."""
    stream = io.StringIO()
    configure_logs(log_format="console", level="debug", stream=stream)
    yield stream
    configure_logs(log_format="json", level="info")


@pytest.mark.parametrize("path", ["/health", "/nowhere", f"/orders/{DEMO_ORDER_ID}/images", "/metrics", "/session"])
async def test_every_response_has_security_headers(path: str, service: str, client: aiohttp.ClientSession) -> None:
    """Every response forbids scripts, framing, content sniffing and referrers."""
    async with client.get(service + path) as response:
        await response.read()
        assert response.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["X-Frame-Options"] == "DENY"
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [(OURS, True), (THEIRS, False), (OURS + ".evil.com", False), ("http://app.example.com", False), ("null", False)],
)
async def test_cors_allows_configured_origins(
    origin: str,
    allowed: bool,  # noqa: FBT001
    start_service: StartService,
    client: aiohttp.ClientSession,
) -> None:
    """Exactly the pages of ALLOWED_ORIGINS may read responses and send keys after a preflight; never cookies."""
    service = await start_service(allowed_origins=(OURS,))
    url = images_url(service, DEMO_ORDER_ID)
    preflight_headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "x-api-key",
    }
    async with (
        client.get(url, headers={"Origin": origin}) as got,
        client.options(url, headers=preflight_headers) as preflight,
    ):
        await got.read()
        assert (got.status, preflight.status) == (200, 204)
        for response in (got, preflight):
            assert response.headers.get("Access-Control-Allow-Origin") == (origin if allowed else None)
            assert "Origin" in response.headers["Vary"]
            assert "Access-Control-Allow-Credentials" not in response.headers
        assert "X-API-Key" in preflight.headers["Access-Control-Allow-Headers"]


async def test_no_cors_headers_without_allowed_origins(service: str, client: aiohttp.ClientSession) -> None:
    """Without ALLOWED_ORIGINS no response has CORS headers."""
    async with client.get(f"{service}/health", headers={"Origin": THEIRS}) as response:
        assert not [name for name in response.headers if name.startswith("Access-Control")]


@pytest.mark.parametrize(
    "path",
    [
        "/orders/..%2f..%2fimages/images",
        "/orders/..%2F{order}/images",
        "/orders/{order}%00/images",
        "/orders/{order}%0d%0aX-Evil:%201/images",
        "/orders/{order}%2fimages%3fpreview=false/images",
        "/orders/%c3%28/images",
        "/orders/%7B{order}%7D/images",
        "/orders/{order};x/images",
    ],
)
async def test_hostile_ids_are_rejected(
    path: str, service: str, client: aiohttp.ClientSession, sandbox: Sandbox, logged: io.StringIO
) -> None:
    """An id is a UUID: nothing else reaches the upstream, a header or the log."""
    async with client.get(URL(service + path.format(order=DEMO_ORDER_ID), encoded=True)) as response:
        problem = json.loads(await response.read())
    assert (response.status, problem["type"]) == (400, "/problems/invalid-order-id")
    assert "X-Evil" not in response.headers
    assert sandbox.requests == []
    assert all(line[:2] == "20" for line in logged.getvalue().splitlines())


DEEP = b"[" * 4000


@pytest.mark.parametrize(
    ("target", "fields", "body"),
    [
        pytest.param("GET /session", b"Expect: \xff", b"", id="expectation"),
        pytest.param("GET /nowhere", b"Expect: \xff", b"", id="expectation of nothing"),
        pytest.param("GET /health", b"Expect: 200-maybe", b"", id="unknown expectation"),
        pytest.param("GET /nowhere", b"Expect: 100-continue\r\nExpect: tea", b"", id="two expectations"),
        pytest.param("GET /health", b"Host:", b"", id="no host"),
        pytest.param("GET /health", b"Host: \xff", b"", id="host that is no text"),
        pytest.param("GET /health", b"Host: a b", b"", id="two hosts"),
        pytest.param("GET /health", b"Host: me@example.com", b"", id="host with a user"),
        pytest.param("GET /health", b"Host: [::1", b"", id="host with an open bracket"),
        pytest.param("GET /health", b"Host: example.com:99999", b"", id="host with a port that cannot be"),
        pytest.param("GET /orders/\xff", b"Host: x", b"", id="path that is no text"),
        pytest.param("POST /session", b"Host: x\r\nContent-Type: application/json", DEEP, id="deep sign-in"),
        pytest.param(f"POST /orders/{DEMO_ORDER_ID}/links", b"Host: x", DEEP, id="deep link"),
        pytest.param(
            "POST /webhooks/autoenhance", b"Host: x\r\nAuthentication: secret-of-the-webhook", DEEP, id="deep notice"
        ),
        pytest.param(f"POST /orders/{DEMO_ORDER_ID}/images", b"Host: x", DEEP, id="deep list"),
    ],
)
async def test_undecodable_request_is_a_400(
    target: str, fields: bytes, body: bytes, start_service: StartService
) -> None:
    """Undecodable bytes, invalid hosts and deeply nested bodies are a 400 with all security headers."""
    service = await start_service(
        webhook_secret=SecretStr("secret-of-the-webhook"), signing_keys=(SecretStr("s" * 32),)
    )
    host = b"" if fields.startswith(b"Host:") else b"Host: x\r\n"
    headers = target.encode("latin-1") + b" HTTP/1.1\r\n" + host + fields
    response = await _exchange(
        service, headers + b"\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
    )
    lines, _, problem = response.partition(b"\r\n\r\n")
    assert json.loads(problem)["status"] == 400
    assert b"Content-Type: application/problem+json" in lines
    for name in (b"Content-Security-Policy", b"X-Content-Type-Options", b"X-Frame-Options", b"Referrer-Policy"):
        assert name in lines


@pytest.mark.parametrize(
    ("fields", "body", "status"),
    [
        pytest.param(b"Cookie: batch_session=\xff", b"", 401, id="cookie that is no text"),
        pytest.param(b"X-API-Key: \xff", b"", 401, id="key that is no text"),
        pytest.param(b"Content-Type: application/json", rb'{"key": "\ud800"}', 401, id="half a character"),
    ],
)
async def test_undecodable_secret_is_a_wrong_one(
    fields: bytes, body: bytes, status: int, start_service: StartService
) -> None:
    """An undecodable secret is rejected like any wrong one, without an error of the service."""
    service = await start_service(service_api_keys=(SecretStr("a-key-of-the-service"),))
    target = b"POST /session" if body else f"GET /orders/{DEMO_ORDER_ID}".encode()
    headers = target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n" % len(body) + fields
    response = await _exchange(service, headers + b"\r\n\r\n" + body)
    assert response.startswith(b"HTTP/1.1 %d " % status)


async def _exchange(service: str, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", URL(service).port)
    writer.write(sent)
    response = await reader.read()
    writer.close()
    await writer.wait_closed()
    return response


@pytest.mark.parametrize(
    "name", ["a\r\nX-Evil: 1", 'a"; filename=evil.exe; x="', "\x1b[31mred", "\u202efdp.exe", "a\x00b"]
)
async def test_hostile_order_names_are_escaped(
    name: str, service: str, client: aiohttp.ClientSession, sandbox: Sandbox, logged: io.StringIO
) -> None:
    """An order's name cannot inject a header, a header parameter or a terminal escape."""
    order = add_order(sandbox, [1000], name)
    async with client.get(images_url(service, order.order_id)) as response:
        await response.read()
    assert response.status == 200
    assert "X-Evil" not in response.headers
    assert response.content_disposition is not None
    disposition = response.headers["Content-Disposition"]
    assert disposition.isprintable()
    assert disposition.isascii()
    assert disposition.count('"') == 2
    assert response.content_disposition.filename is not None
    assert response.content_disposition.filename.endswith("_images.zip")
    assert "\x1b" not in logged.getvalue()
