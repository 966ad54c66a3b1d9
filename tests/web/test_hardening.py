"""What browsers are told, which sites may read answers, and that odd input stays data."""

import io
import json
from collections.abc import Iterator

import aiohttp
import pytest
from yarl import URL

from service.logs import configure_logs
from service.sandbox import DEMO_ORDER_ID, Sandbox
from tests.archives import add_order, images_url
from tests.conftest import StartService

OURS, THEIRS = "https://app.example.com", "https://evil.example.com"


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """What the service logs, for people."""
    stream = io.StringIO()
    configure_logs(log_format="console", level="debug", stream=stream)
    yield stream
    configure_logs(log_format="json", level="info")


@pytest.mark.parametrize("path", ["/health", "/nowhere", f"/orders/{DEMO_ORDER_ID}/images", "/metrics", "/session"])
async def test_safety_headers(path: str, service: str, client: aiohttp.ClientSession) -> None:
    """Every answer forbids browsers to run, frame, guess or pass on anything of it."""
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
async def test_cors(origin: str, allowed: bool, start_service: StartService, client: aiohttp.ClientSession) -> None:  # noqa: FBT001
    """Exactly the pages of ALLOWED_ORIGINS may read answers and ask before they send keys; never with cookies."""
    service = await start_service(allowed_origins=(OURS,))
    url = images_url(service, DEMO_ORDER_ID)
    asking = {"Origin": origin, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "x-api-key"}
    async with client.get(url, headers={"Origin": origin}) as got, client.options(url, headers=asking) as preflight:
        await got.read()
        assert (got.status, preflight.status) == (200, 204)
        for response in (got, preflight):
            assert response.headers.get("Access-Control-Allow-Origin") == (origin if allowed else None)
            assert "Origin" in response.headers["Vary"]
            assert "Access-Control-Allow-Credentials" not in response.headers
        assert "X-API-Key" in preflight.headers["Access-Control-Allow-Headers"]


async def test_without_origins_nothing_is_said_of_them(service: str, client: aiohttp.ClientSession) -> None:
    """A service that no other site's page is to use has no word for them."""
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
async def test_tricks_in_ids(
    path: str, service: str, client: aiohttp.ClientSession, sandbox: Sandbox, logged: io.StringIO
) -> None:
    """An id is a UUID and nothing else: no trick in it reaches the upstream, a header or the log's lines."""
    async with client.get(URL(service + path.format(order=DEMO_ORDER_ID), encoded=True)) as response:
        problem = json.loads(await response.read())
    assert (response.status, problem["type"]) == (400, "/problems/invalid-order-id")
    assert "X-Evil" not in response.headers
    assert sandbox.requests == []
    assert all(line[:2] == "20" for line in logged.getvalue().splitlines())


@pytest.mark.parametrize(
    "name", ["a\r\nX-Evil: 1", 'a"; filename=evil.exe; x="', "\x1b[31mred", "\u202efdp.exe", "a\x00b"]
)
async def test_tricks_in_order_names(
    name: str, service: str, client: aiohttp.ClientSession, sandbox: Sandbox, logged: io.StringIO
) -> None:
    """An order's name adds no header, ends no parameter, and commands no terminal."""
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
