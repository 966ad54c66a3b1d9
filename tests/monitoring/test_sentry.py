"""Sentry: reported errors, and the issues on the admin page."""

import io
import json
import re
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aioresponses import aioresponses
from pydantic import SecretStr

from service.archive.writer import ArchiveWriter
from service.monitoring.logs import configure_logs
from service.monitoring.sentry import REPORTED_HEADERS
from service.sandbox import DEMO_ORDER_ID, Sandbox
from tests.archives import add_order, download, images_url
from tests.conftest import StartApp, StartService
from tests.fakes.sentry import AUTH_TOKEN, FakeSentry, running_sentry

ADMIN = "the-admin-token-of-16"
AS_ADMIN = {"X-Admin-Token": ADMIN}
ISSUES_URL = re.compile(r"^https://sentry\.example/api/0/projects/our-org/batch/issues/\?")


@pytest.fixture
async def sentry(nothing_left_behind: None) -> AsyncIterator[FakeSentry]:
    """A Sentry server on loopback."""
    del nothing_left_behind
    async with running_sentry() as fake:
        yield fake


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """The service's log."""
    stream = io.StringIO()
    configure_logs(log_format="json", level="info", stream=stream)
    yield stream
    configure_logs(log_format="json", level="info")


def issue_settings(base: str, **changes: object) -> dict[str, object]:
    """Return the settings for listing the issues of a Sentry server."""
    return {
        "admin_token": SecretStr(ADMIN),
        "sentry_api_base": base,
        "sentry_auth_token": SecretStr(AUTH_TOKEN),
        "sentry_org": "our-org",
        "sentry_project": "batch",
        **changes,
    }


async def test_error_is_reported_once_without_secrets(
    sandbox: Sandbox,
    sentry: FakeSentry,
    start_service: StartService,
    client: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error is reported with request id and route, and without any key, token, address or query."""
    service = await start_service(sentry_dsn=sentry.dsn, **issue_settings(sentry.url))
    order = add_order(sandbox, [1000])
    message = f"{sandbox.api_key} {ADMIN} at https://storage.example/a.jpg?X-Amz-Signature=hush"

    def fail(_writer: ArchiveWriter) -> None:
        local = sandbox.api_key + "-in-a-variable"
        raise RuntimeError(message + local)

    monkeypatch.setattr(ArchiveWriter, "finish", fail)
    headers = {
        "X-Request-ID": "find-me",
        "X-API-Key": "the-clients-own",
        "Authorization": "Bearer of-the-client",
        "Cookie": "batch_session=of-the-session",
        "X-Forwarded-For": "203.0.113.7",
        "X-Original-URI": "/orders/x/images?link=of-a-link",
        "Cf-Access-Jwt-Assertion": "who-signed-in",
    }
    with pytest.raises(aiohttp.ClientPayloadError):
        async with client.get(images_url(service, order.order_id), headers=headers) as response:
            await response.read()
    await sentry.envelope_received.wait()
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
    of_the_client = [value for name, value in headers.items() if name != "X-Request-ID"]
    for secret in (sandbox.api_key, ADMIN, AUTH_TOKEN, *of_the_client, "of-a-link", "hush", "in-a-variable"):
        assert secret not in raw


async def test_problems_are_not_reported(
    sandbox: Sandbox,
    sentry: FakeSentry,
    start_service: StartService,
    client: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Problems and complete archives are not reported; only the error after them is."""
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
    await sentry.envelope_received.wait()
    assert [event["exception"]["values"][-1]["value"] for event in sentry.events()] == ["the only one"]
    assert len(sentry.envelopes) == 1


async def test_upstream_requests_have_no_sentry_headers(
    sandbox: Sandbox, sentry: FakeSentry, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """Requests to the upstream have no header of the Sentry SDK."""
    service = await start_service(sentry_dsn=sentry.dsn)
    await download(client, images_url(service, DEMO_ORDER_ID))
    names = {name.lower() for request in sandbox.requests for name in request.headers}
    assert not {name for name in names if "sentry" in name or name == "baggage"}


async def test_service_starts_with_a_bad_dsn(
    start_service: StartService, client: aiohttp.ClientSession, logged: io.StringIO
) -> None:
    """A bad DSN is logged, and orders are served."""
    service = await start_service(sentry_dsn=SecretStr("https://sentry.example/no-key"))
    assert await download(client, images_url(service, DEMO_ORDER_ID))
    assert [json.loads(line)["event"] for line in logged.getvalue().splitlines()].count("sentry.bad_dsn") == 1


async def test_service_starts_without_the_sdk(
    sentry: FakeSentry,
    start_service: StartService,
    client: aiohttp.ClientSession,
    logged: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A missing SDK is logged, and orders are served."""
    monkeypatch.setitem(sys.modules, "sentry_sdk", None)  # importing it fails
    service = await start_service(sentry_dsn=sentry.dsn)
    assert await download(client, images_url(service, DEMO_ORDER_ID))
    assert [json.loads(line)["event"] for line in logged.getvalue().splitlines()].count("sentry.not_installed") == 1


async def test_issues_are_listed(
    sentry: FakeSentry, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """An admin gets the unresolved issues of the project."""
    service = await start_service(**issue_settings(sentry.url))
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
    (request,) = sentry.requests
    assert (request.match_info["org"], request.match_info["project"]) == ("our-org", "batch")
    assert request.query["query"] == "is:unresolved"


async def test_sentry_may_be_in_a_private_network(
    sentry: FakeSentry, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """Sentry may be self-hosted on a private network, which the SSRF policy forbids for the upstream."""
    by_name = sentry.url.replace("127.0.0.1", "localhost")
    service = await start_service(**issue_settings(by_name, allow_private_upstream=False))
    async with client.get(f"{service}/api/sentry/issues", headers=AS_ADMIN) as response:
        assert response.status == 200


async def test_issues_need_the_admin_token(start_app: StartApp, mocked_http: aioresponses) -> None:
    """Without the admin token Sentry gets no request."""
    app = await start_app(**issue_settings("https://sentry.example"))
    async with app.get("/api/sentry/issues") as response:
        assert (response.status, (await response.json())["type"]) == (401, "/problems/admin-required")
    assert mocked_http.requests == {}


@pytest.mark.parametrize(
    ("response_of_sentry", "slug"),
    [
        pytest.param({"status": 401}, "sentry-unauthorized", id="401"),
        pytest.param({"status": 403}, "sentry-unauthorized", id="403"),
        pytest.param({"status": 500}, "sentry-unavailable", id="500"),
        pytest.param(
            {"status": 302, "headers": {"Location": "http://127.0.0.1:1/"}}, "sentry-unavailable", id="redirect"
        ),
        pytest.param({"exception": TimeoutError()}, "sentry-unavailable", id="timeout"),
        pytest.param({"body": "<html>"}, "sentry-invalid-response", id="html"),
        pytest.param({"body": '{"detail": 1}'}, "sentry-invalid-response", id="no list"),
    ],
)
async def test_failures_of_sentry(
    response_of_sentry: dict[str, Any], slug: str, start_app: StartApp, mocked_http: aioresponses
) -> None:
    """Each failure of Sentry is a problem with status 502 that does not contain the token."""
    mocked_http.get(ISSUES_URL, **response_of_sentry)
    app = await start_app(**issue_settings("https://sentry.example"))
    async with app.get("/api/sentry/issues", headers=AS_ADMIN) as response:
        text = await response.text()
    assert (response.status, json.loads(text)["type"]) == (502, f"/problems/{slug}")
    assert AUTH_TOKEN not in text


async def test_list_of_issues_is_bounded(
    sentry: FakeSentry, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """A list of more than 4 MiB is not read to its end."""
    sentry.response = web.Response(body=b"[" + b" " * 5 * 1024 * 1024 + b"]")
    service = await start_service(**issue_settings(sentry.url))
    async with client.get(f"{service}/api/sentry/issues", headers=AS_ADMIN) as response:
        assert (response.status, (await response.json())["type"]) == (502, "/problems/sentry-invalid-response")


async def test_sentry_that_aborts_is_unavailable(
    sentry: FakeSentry, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """A connection that is aborted before the response is a failure of Sentry, not an internal error."""
    sentry.aborts = True
    service = await start_service(**issue_settings(sentry.url))
    async with client.get(f"{service}/api/sentry/issues", headers=AS_ADMIN) as response:
        assert (response.status, (await response.json())["type"]) == (502, "/problems/sentry-unavailable")


async def test_issues_without_a_configured_sentry(
    start_service: StartService, client: aiohttp.ClientSession, closed_port: int
) -> None:
    """The problem lists the missing settings; an unreachable server is another problem."""
    url = await start_service(admin_token=SecretStr(ADMIN), sentry_org="our-org") + "/api/sentry/issues"
    async with client.get(url, headers=AS_ADMIN) as response:
        problem = await response.json()
    assert (response.status, problem["type"]) == (503, "/problems/sentry-not-configured")
    assert problem["missing"] == ["SENTRY_AUTH_TOKEN", "SENTRY_PROJECT"]
    unreachable = issue_settings(f"http://127.0.0.1:{closed_port}")
    async with client.get(await start_service(**unreachable) + "/api/sentry/issues", headers=AS_ADMIN) as response:
        assert (response.status, (await response.json())["type"]) == (502, "/problems/sentry-unavailable")
