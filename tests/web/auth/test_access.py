"""Access control over HTTP: API keys, roles, full quality, and that no secret is logged."""

import asyncio
import io
import json
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr

from service.sandbox import DEMO_ORDER_ID, Sandbox
from service.server.run import serving
from tests.archives import download, images_url
from tests.conftest import StartService, settings_for
from tests.web.auth.conftest import (
    ADMIN,
    KEYS,
    NEW,
    OLD,
    PAYING,
    SIGNING,
    link_to,
    status_and_type,
)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({}, 401, id="none"),
        pytest.param({"X-API-Key": OLD}, 200, id="one key"),
        pytest.param({"X-API-Key": NEW}, 200, id="another key"),
        pytest.param({"Authorization": f"Bearer {NEW}"}, 200, id="bearer"),
        pytest.param({"X-Admin-Token": ADMIN}, 200, id="operator"),
        pytest.param({"X-API-Key": PAYING}, 200, id="key with a scope"),
        pytest.param({"X-API-Key": PAYING + ":full"}, 401, id="scope is no part of the key"),
        pytest.param({"X-API-Key": OLD + "x"}, 401, id="longer"),
        pytest.param({"X-API-Key": OLD[:-1]}, 401, id="shorter"),
        pytest.param({"X-API-Key": OLD.upper()}, 401, id="other case"),
        pytest.param({"Authorization": f"Basic {NEW}"}, 401, id="basic"),
        pytest.param({"Cookie": f"batch_session={NEW}"}, 401, id="key as cookie"),
    ],
)
async def test_download_requires_a_key(
    headers: dict[str, str], status: int, locked: str, client: aiohttp.ClientSession
) -> None:
    """With SERVICE_API_KEYS a download requires one of them, in a header."""
    found, slug = await status_and_type(client, images_url(locked, DEMO_ORDER_ID), **headers)
    assert (found, slug) == (status, "authentication-required" if status == 401 else "")


@pytest.mark.parametrize(("scope", "full_quality"), [("", 403), (":full", 200)])
async def test_service_api_key_is_one_more_key(
    scope: str, full_quality: int, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """SERVICE_API_KEY alone requires a key, and beside others is one more; it spends credits only with ``:full``."""
    for others in ((), KEYS):
        service = await start_service(
            service_api_key=SecretStr("original-services-key" + scope),
            service_api_keys=others,
            allow_full_quality=False,
        )
        url, key = images_url(service, DEMO_ORDER_ID), {"X-API-Key": "original-services-key"}
        assert await status_and_type(client, url) == (401, "authentication-required")
        assert await status_and_type(client, url, **key) == (200, "")
        assert (await status_and_type(client, url, **{"X-API-Key": NEW}))[0] == (200 if others else 401)
        assert (await status_and_type(client, url.update_query(preview="false"), **key))[0] == full_quality


async def test_401_names_the_authentication_scheme(locked: str, client: aiohttp.ClientSession) -> None:
    """A 401 has WWW-Authenticate (RFC 9110 section 11.6.1), and precedes the validation of parameters."""
    async with client.get(images_url(locked, "no-uuid", "?quality=x")) as response:
        assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")


async def test_key_in_url_is_ignored_and_not_logged(
    locked: str, client: aiohttp.ClientSession, logged: io.StringIO
) -> None:
    """Keys are not read from the query string, and the query string is not logged."""
    url = images_url(locked, DEMO_ORDER_ID, f"?api_key={NEW}")
    assert await status_and_type(client, url) == (401, "authentication-required")
    assert await status_and_type(client, url, **{"X-API-Key": NEW}) == (400, "unknown-parameter")
    assert NEW not in logged.getvalue()


async def test_open_service_ignores_unknown_keys(start_service: StartService, client: aiohttp.ClientSession) -> None:
    """Without configured keys every client may download, with whatever key."""
    service = await start_service()
    url = images_url(service, DEMO_ORDER_ID)
    assert await status_and_type(client, url, **{"X-API-Key": "whatever"}) == (200, "")


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        pytest.param({"allow_full_quality": False}, "may download previews", id="previews"),
        pytest.param({"allow_full_quality": True}, "may download in full quality and spend credits", id="credits"),
        pytest.param({"admin_token": SecretStr(ADMIN)}, "may download in full quality", id="admin token only"),
        pytest.param({"service_api_keys": KEYS}, None, id="keys"),
        pytest.param({"service_api_key": SecretStr(OLD)}, None, id="the original service's key"),
    ],
)
async def test_open_service_logs_one_warning(
    changes: dict[str, Any], detail: str | None, start_service: StartService, logged: io.StringIO
) -> None:
    """A start without keys logs one warning, on loopback too, with what every client may do."""
    await start_service(**changes)
    events = [json.loads(line) for line in logged.getvalue().splitlines()]
    found = [
        (one["level"], detail is not None and detail in one["detail"])
        for one in events
        if one["event"] == "access.open"
    ]
    assert found == ([("warning", True)] if detail is not None else [])


async def test_open_sandbox_logs_no_warning(sandbox: Sandbox, logged: io.StringIO) -> None:
    """The sandbox has no real images: the warning would only train people to ignore it."""
    async with serving(settings_for(sandbox), demo_order_id=DEMO_ORDER_ID):
        pass
    assert "service.started" in logged.getvalue()
    assert "access.open" not in logged.getvalue()


@pytest.mark.parametrize(
    ("key", "query", "status"),
    [
        pytest.param(OLD, "?preview=false", 403, id="download role"),
        pytest.param(PAYING, "?preview=false", 200, id="full role"),
        pytest.param(ADMIN, "?preview=false", 200, id="operator"),
        pytest.param(OLD, "?preview=false&dev_mode=true", 200, id="dev mode spends nothing"),
    ],
)
async def test_full_quality_requires_the_role(
    key: str, query: str, status: int, locked: str, client: aiohttp.ClientSession, sandbox: Sandbox
) -> None:
    """Credits are spent only with a role that allows it; otherwise no upstream request is sent."""
    found = await status_and_type(client, images_url(locked, DEMO_ORDER_ID, query), **{"X-API-Key": key})
    assert found == (status, "full-quality-not-allowed" if status == 403 else "")
    assert bool(sandbox.requests) == (status == 200)


async def test_allow_full_quality_applies_to_every_client(
    start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """ALLOW_FULL_QUALITY lets every client spend credits; without it no client of an open service may."""
    for allowed, status in ((True, 200), (False, 403)):
        service = await start_service(allow_full_quality=allowed)
        found, _ = await status_and_type(client, images_url(service, DEMO_ORDER_ID, "?preview=false"))
        assert found == status


async def test_admin_endpoints_are_off_without_admin_token(
    start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """Without ADMIN_TOKEN the admin endpoints are off, whatever a request carries."""
    service = await start_service(service_api_keys=KEYS)
    for headers in ({}, {"X-Admin-Token": ""}, {"X-Admin-Token": "None"}, {"X-API-Key": PAYING}):
        assert await status_and_type(client, f"{service}/api/sentry/issues", **headers) == (503, "admin-not-configured")


async def test_service_key_is_not_admin(locked: str, client: aiohttp.ClientSession) -> None:
    """A service key does not grant the admin role."""
    url = f"{locked}/api/sentry/issues"
    assert await status_and_type(client, url, **{"X-API-Key": PAYING}) == (401, "admin-required")
    assert await status_and_type(client, url, **{"X-Admin-Token": ADMIN}) == (503, "sentry-not-configured")


async def test_sandbox_grants_admin_to_every_client(sandbox: Sandbox, client: aiohttp.ClientSession) -> None:
    """The sandbox has no real images, so every client is an admin."""
    async with serving(settings_for(sandbox, allow_full_quality=False), demo_order_id=DEMO_ORDER_ID) as service:
        assert await status_and_type(client, f"{service}/api/sentry/issues") == (503, "sentry-not-configured")
        assert await status_and_type(client, images_url(service, DEMO_ORDER_ID, "?preview=false")) == (200, "")


async def test_no_secret_is_logged(locked: str, client: aiohttp.ClientSession, logged: io.StringIO) -> None:
    """Sign-ins, links, rejected requests and downloads log no key, token, cookie or link."""
    async with client.post(f"{locked}/session", json={"key": ADMIN}) as response:
        cookie = response.cookies["batch_session"].value
    async with client.post(f"{locked}/session", data={"key": "a-wrong-key-to-find"}):
        pass
    link = await link_to(client, locked, PAYING, parameters={"preview": "false"})
    token = link.query["link"]
    await download(client, link)
    await status_and_type(client, f"{link}x")
    await status_and_type(client, images_url(locked, DEMO_ORDER_ID), Authorization="Bearer another-wrong-key")
    await asyncio.sleep(0)
    written = logged.getvalue()
    assert "session.started" in written
    assert "session.rejected" in written
    for secret in (OLD, NEW, PAYING, ADMIN, SIGNING, cookie, token, "a-wrong-key", "another-wrong-key"):
        assert secret not in written
