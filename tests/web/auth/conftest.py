"""Fixtures and helpers of access control: a service with keys, an admin token and links."""

import io
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr
from yarl import URL

from service.monitoring.logs import configure_logs
from service.sandbox import DEMO_ORDER_ID, Sandbox
from tests.conftest import StartService, settings_for

OLD, NEW, PAYING, ADMIN = "old-key-of-clients", "new-key-of-clients", "key-that-may-spend", "token-of-the-operator"
SIGNING, OLD_SIGNING = "s" * 32, "t" * 32
KEYS = (SecretStr(OLD), SecretStr(NEW), SecretStr(PAYING + ":full"))
LOCKED: dict[str, Any] = {
    "service_api_keys": KEYS,
    "admin_token": SecretStr(ADMIN),
    "signing_keys": (SecretStr(SIGNING), SecretStr(OLD_SIGNING)),
    "allow_full_quality": False,
}


@pytest.fixture
async def locked(start_service: StartService) -> str:
    """The URL of a service with API keys, an admin token and links."""
    return await start_service(**LOCKED)


@pytest.fixture
def logged(sandbox: Sandbox) -> Iterator[io.StringIO]:
    """What the service logs."""
    stream = io.StringIO()
    configure_logs(log_format="json", level="debug", secrets=settings_for(sandbox, **LOCKED).secrets(), stream=stream)
    yield stream
    configure_logs(log_format="json", level="info")


async def status_and_type(client: aiohttp.ClientSession, url: str | URL, **headers: str) -> tuple[int, str]:
    """Return the status of a GET, and the problem's slug if there is one."""
    async with client.get(URL(str(url), encoded=True), headers=headers) as response:
        if response.content_type != "application/problem+json":
            await response.read()
            return response.status, ""
        return response.status, (await response.json())["type"].removeprefix("/problems/")


async def link_to(
    client: aiohttp.ClientSession, service: str, key: str, order: str = DEMO_ORDER_ID, **body: object
) -> URL:
    """Create a link."""
    async with client.post(f"{service}/orders/{order}/links", json=body, headers={"X-API-Key": key}) as response:
        assert response.status == 201, await response.text()
        return URL((await response.json())["url"], encoded=True)
