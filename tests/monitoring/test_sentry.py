"""Sentry, played by a server on loopback: what it is told of faults, and what it tells the operator."""

import asyncio
import gzip
import io
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from pydantic import SecretStr

from service.archive.writer import ArchiveWriter
from service.monitoring.logs import configure_logs
from service.monitoring.sentry import REPORTED_HEADERS
from service.sandbox import DEMO_ORDER_ID, Sandbox
from tests.archives import add_order, download, images_url
from tests.conftest import StartService

ADMIN = "the-operators-token"
TOKEN = "sntrys_read-the-issues"
DSN_KEY = "0123456789abcdef0123456789abcdef"
AS_ADMIN = {"X-Admin-Token": ADMIN}
ISSUE = {
    "id": "7",
    "shortId": "BATCH-7",
    "title": "RuntimeError: a fault",
    "culprit": "service.streaming.archive_stream",
    "level": "error",
    "count": "12",
    "userCount": 0,
    "firstSeen": "2026-01-01T00:00:00Z",
    "lastSeen": "2026-01-02T00:00:00Z",
    "permalink": "https://sentry.example/7",
    "unknown": {"more": 1},
}


@dataclass
class SentryStandIn:
    """Takes envelopes in and answers with ``issues``; ``answer`` replaces that, ``hangs_up`` does without one."""

    url: str = ""
    envelopes: list[bytes] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[web.Request] = field(default_factory=list)
    answer: web.Response | None = None
    hangs_up: bool = False

    @property
    def dsn(self) -> SecretStr:
        """The address that the service reports to."""
        return SecretStr(self.url.replace("http://", f"http://{DSN_KEY}@") + "/1")

    async def take(self, request: web.Request) -> web.Response:
        """Take one envelope."""
        body = await request.read()
        self.envelopes.append(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
        self.arrived.set()
        return web.json_response({"id": "0"})

    async def issues(self, request: web.Request) -> web.Response:
        """Answer with the issues."""
        self.asked.append(request)
        if self.hangs_up and request.transport is not None:
            request.transport.abort()
        if self.answer is not None:
            return self.answer
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.json_response({"detail": "Invalid token"}, status=401)
        return web.json_response([ISSUE])

    def events(self) -> list[dict[str, Any]]:
        """Return the events in the envelopes."""
        lines = [json.loads(line) for envelope in self.envelopes for line in envelope.splitlines() if line]
        return [line for line in lines if "exception" in line]


@asynccontextmanager
async def served(stand_in: SentryStandIn) -> AsyncIterator[None]:
    """Serve the stand-in on a free port."""
    app = web.Application()
    app.router.add_post("/api/1/envelope/", stand_in.take)
    app.router.add_get("/api/0/projects/{org}/{project}/issues/", stand_in.issues)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        stand_in.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield
    finally:
        await runner.cleanup()


@pytest.fixture
async def sentry(nothing_left_behind: None) -> AsyncIterator[SentryStandIn]:
    """A Sentry of our own."""
    del nothing_left_behind
    stand_in = SentryStandIn()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(served(stand_in))
        yield stand_in


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """What the service logs."""
    stream = io.StringIO()
    configure_logs(log_format="json", level="info", stream=stream)
    yield stream
    configure_logs(log_format="json", level="info")


def reading(sentry: SentryStandIn, **changes: object) -> dict[str, object]:
    """Return the settings with which the service reads issues."""
    return {
        "admin_token": SecretStr(ADMIN),
        "sentry_api_base": sentry.url,
        "sentry_auth_token": SecretStr(TOKEN),
        "sentry_org": "our-org",
        "sentry_project": "batch",
        **changes,
    }


async def test_a_fault_is_reported_once_and_without_secrets(
    sandbox: Sandbox,
    sentry: SentryStandIn,
    start_service: StartService,
    client: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fault of the service arrives with its request's id and route; no key, token, address or query goes with it."""
    service = await start_service(sentry_dsn=sentry.dsn, **reading(sentry))
    order = add_order(sandbox, [1000])
    message = f"{sandbox.api_key} {ADMIN} at https://storage.example/a.jpg?X-Amz-Signature=hush"

    def fail(_writer: ArchiveWriter) -> None:
        local = sandbox.api_key + "-in-a-variable"
        raise RuntimeError(message + local)

    monkeypatch.setattr(ArchiveWriter, "finish", fail)
    headers = {
        "X-Request-ID": "find-me",
        "X-API-Key": "callers-own",
        "Authorization": "Bearer of-the-caller",
        "Cookie": "batch_session=of-the-session",
        "X-Forwarded-For": "203.0.113.7",
        "X-Original-URI": "/orders/x/images?link=of-a-link",
        "Cf-Access-Jwt-Assertion": "who-signed-in",
    }
    with pytest.raises(aiohttp.ClientPayloadError):
        async with client.get(images_url(service, order.order_id), headers=headers) as response:
            await response.read()
    await sentry.arrived.wait()
    (event,) = sentry.events()
    assert event["exception"]["values"][-1]["type"] == "RuntimeError"
    assert event["tags"]["request_id"] == "find-me"
    assert event["tags"]["order_id"] == order.order_id
    assert event["transaction"].endswith("/images")
    assert event["release"].startswith("autoenhance-batch@")
    assert all("vars" not in frame for frame in event["exception"]["values"][-1]["stacktrace"]["frames"])
    request = event["request"]
    assert request.keys() == {"url", "method", "headers"}
    assert request["url"].endswith(f"/orders/{order.order_id}/images")
    assert {name.lower() for name in request["headers"]} <= REPORTED_HEADERS
    raw = b"\n".join(sentry.envelopes).decode()
    of_the_caller = [value for name, value in headers.items() if name != "X-Request-ID"]
    for secret in (sandbox.api_key, ADMIN, TOKEN, *of_the_caller, "of-a-link", "hush", "in-a-variable"):
        assert secret not in raw


async def test_what_is_not_a_fault_is_not_reported(
    sandbox: Sandbox,
    sentry: SentryStandIn,
    start_service: StartService,
    client: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Problems and finished archives tell Sentry nothing; the fault after them is the first that it hears of."""
    service = await start_service(sentry_dsn=sentry.dsn)
    for path in ("/nowhere", "/orders/no-uuid/images"):
        async with client.get(service + path) as response:
            assert response.status in {400, 404}
    await download(client, images_url(service, DEMO_ORDER_ID))

    def fail(_writer: ArchiveWriter) -> None:
        raise RuntimeError("the only one")

    monkeypatch.setattr(ArchiveWriter, "finish", fail)
    with pytest.raises(aiohttp.ClientPayloadError):
        await download(client, images_url(service, add_order(sandbox, [1000]).order_id))
    await sentry.arrived.wait()
    assert [event["exception"]["values"][-1]["value"] for event in sentry.events()] == ["the only one"]
    assert len(sentry.envelopes) == 1


async def test_the_upstream_learns_nothing_of_sentry(
    sandbox: Sandbox, sentry: SentryStandIn, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """Requests to the upstream carry no header of Sentry's."""
    service = await start_service(sentry_dsn=sentry.dsn)
    await download(client, images_url(service, DEMO_ORDER_ID))
    names = {name.lower() for request in sandbox.requests for name in request.headers}
    assert not {name for name in names if "sentry" in name or name == "baggage"}


async def test_a_bad_dsn_does_not_keep_the_service_from_starting(
    start_service: StartService, client: aiohttp.ClientSession, logged: io.StringIO
) -> None:
    """The log says that the DSN is bad, and orders are served."""
    service = await start_service(sentry_dsn=SecretStr("https://sentry.example/no-key"))
    assert await download(client, images_url(service, DEMO_ORDER_ID))
    assert [json.loads(line)["event"] for line in logged.getvalue().splitlines()].count("sentry.bad_dsn") == 1


async def test_a_missing_sdk_does_not_keep_the_service_from_starting(
    sentry: SentryStandIn,
    start_service: StartService,
    client: aiohttp.ClientSession,
    logged: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the extra the log says what is missing, and orders are served."""
    monkeypatch.setitem(sys.modules, "sentry_sdk", None)  # as if it were not there
    service = await start_service(sentry_dsn=sentry.dsn)
    assert await download(client, images_url(service, DEMO_ORDER_ID))
    assert [json.loads(line)["event"] for line in logged.getvalue().splitlines()].count("sentry.not_installed") == 1


async def test_issues(sentry: SentryStandIn, start_service: StartService, client: aiohttp.ClientSession) -> None:
    """The operator sees the project's unresolved issues."""
    service = await start_service(**reading(sentry))
    async with client.get(f"{service}/api/sentry/issues", headers=AS_ADMIN) as response:
        assert (response.status, await response.json()) == (
            200,
            {
                "issues": [
                    {
                        "id": "7",
                        "short_id": "BATCH-7",
                        "title": "RuntimeError: a fault",
                        "culprit": "service.streaming.archive_stream",
                        "level": "error",
                        "count": 12,
                        "users": 0,
                        "first_seen": "2026-01-01T00:00:00Z",
                        "last_seen": "2026-01-02T00:00:00Z",
                        "permalink": "https://sentry.example/7",
                    }
                ]
            },
        )
    (asked,) = sentry.asked
    assert (asked.match_info["org"], asked.match_info["project"]) == ("our-org", "batch")
    assert asked.query["query"] == "is:unresolved"


async def test_issues_of_a_sentry_in_a_private_network(
    sentry: SentryStandIn, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """Sentry may be where the upstream must not be: only the operator says where it is."""
    by_name = sentry.url.replace("127.0.0.1", "localhost")
    service = await start_service(**reading(sentry, sentry_api_base=by_name, allow_private_upstream=False))
    async with client.get(f"{service}/api/sentry/issues", headers=AS_ADMIN) as response:
        assert response.status == 200


async def test_issues_are_the_operators(
    sentry: SentryStandIn, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """Without the operator's token Sentry is not even asked."""
    service = await start_service(**reading(sentry))
    async with client.get(f"{service}/api/sentry/issues") as response:
        assert (response.status, (await response.json())["type"]) == (401, "/problems/admin-required")
    assert sentry.asked == []


@pytest.mark.parametrize(
    ("answer", "slug"),
    [
        pytest.param(web.Response(status=401), "sentry-unauthorized", id="401"),
        pytest.param(web.Response(status=403), "sentry-unauthorized", id="403"),
        pytest.param(web.Response(status=500), "sentry-unavailable", id="500"),
        pytest.param(
            web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}), "sentry-unavailable", id="redirect"
        ),
        pytest.param(web.Response(text="<html>"), "sentry-invalid-response", id="html"),
        pytest.param(web.Response(text='{"detail": 1}'), "sentry-invalid-response", id="no list"),
        pytest.param(web.Response(body=b"[" + b" " * 5 * 1024 * 1024 + b"]"), "sentry-invalid-response", id="huge"),
    ],
)
async def test_issues_when_sentry_fails(
    sentry: SentryStandIn,
    start_service: StartService,
    client: aiohttp.ClientSession,
    answer: web.Response,
    slug: str,
) -> None:
    """Whatever Sentry answers, the operator gets a problem that says what is wrong, and no token."""
    sentry.answer = answer
    service = await start_service(**reading(sentry))
    async with client.get(f"{service}/api/sentry/issues", headers=AS_ADMIN) as response:
        text = await response.text()
    assert (response.status, json.loads(text)["type"]) == (502, f"/problems/{slug}")
    assert TOKEN not in text


async def test_issues_when_sentry_hangs_up(
    sentry: SentryStandIn, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """A connection that breaks before the answer is Sentry's failure, not a fault of the service."""
    sentry.hangs_up = True
    service = await start_service(**reading(sentry))
    async with client.get(f"{service}/api/sentry/issues", headers=AS_ADMIN) as response:
        assert (response.status, (await response.json())["type"]) == (502, "/problems/sentry-unavailable")


async def test_issues_without_a_sentry(
    sentry: SentryStandIn, start_service: StartService, client: aiohttp.ClientSession, closed_port: int
) -> None:
    """What is not configured, or cannot be reached, is said."""
    url = await start_service(admin_token=SecretStr(ADMIN), sentry_org="our-org") + "/api/sentry/issues"
    async with client.get(url, headers=AS_ADMIN) as response:
        problem = await response.json()
    assert (response.status, problem["type"]) == (503, "/problems/sentry-not-configured")
    assert problem["missing"] == ["SENTRY_AUTH_TOKEN", "SENTRY_PROJECT"]
    nowhere = reading(sentry, sentry_api_base=f"http://127.0.0.1:{closed_port}")
    async with client.get(await start_service(**nowhere) + "/api/sentry/issues", headers=AS_ADMIN) as response:
        assert (response.status, (await response.json())["type"]) == (502, "/problems/sentry-unavailable")
