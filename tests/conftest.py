"""Fixtures shared by all tests: the sandbox, and the service as it runs in production, both on real sockets."""

import asyncio
import gc
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from hypothesis import settings as hypothesis_settings
from pydantic import SecretStr

from service.sandbox import Sandbox
from service.server.run import serving
from service.settings import Settings

# CI machines stall now and then: no property is judged by the clock.
hypothesis_settings.register_profile("unhurried", deadline=None)
hypothesis_settings.load_profile("unhurried")

StartService = Callable[..., Awaitable[str]]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on what the environment or a ``.env`` file of the machine says."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setitem(Settings.model_config, "env_file", None)


def _open_sockets() -> set[str]:
    found = set()
    for number in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():  # noqa: PTH112, PTH208
        try:
            target = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


@pytest.fixture
async def nothing_left_behind() -> AsyncIterator[None]:
    """After the test, no task and no socket is left that was not there before. Whatever does I/O asks for this."""
    tasks_before = asyncio.all_tasks()
    sockets_before = _open_sockets()
    yield
    for _ in range(50):  # loop turns in which closed transports let go of their sockets
        await asyncio.sleep(0)
    if _open_sockets() - sockets_before:
        gc.collect()  # what is left in cycles only; not after every test, because it takes longer than most of them
    assert asyncio.all_tasks() - tasks_before - {asyncio.current_task()} == set()
    assert _open_sockets() - sockets_before == set()


@pytest.fixture
async def sandbox(nothing_left_behind: None) -> AsyncIterator[Sandbox]:
    """The stand-in of the API, with its fixed orders."""
    del nothing_left_behind
    async with Sandbox() as running_sandbox:
        yield running_sandbox


def settings_for(sandbox: Sandbox, **changes: Any) -> Settings:
    """Return settings that point the service at the sandbox."""
    values: dict[str, Any] = {
        "autoenhance_api_base": sandbox.api_base,
        "autoenhance_api_key": SecretStr(sandbox.api_key),
        "allow_private_upstream": True,
        "host": "127.0.0.1",
        "port": 0,
        "allow_full_quality": True,  # credits of the sandbox are not money
        "drain_seconds": 0,  # a test that wants archives to be finished says so
    }
    return Settings(**{**values, **changes})


@pytest.fixture
async def start_service(sandbox: Sandbox) -> AsyncIterator[StartService]:
    """Return a function that starts the service with changed settings and returns its URL."""
    async with AsyncExitStack() as stack:

        async def start(**changes: Any) -> str:
            return await stack.enter_async_context(serving(settings_for(sandbox, **changes)))

        yield start


@pytest.fixture
async def service(start_service: StartService) -> str:
    """The URL of the service with default settings."""
    return await start_service()


@pytest.fixture
async def client(nothing_left_behind: None) -> AsyncIterator[aiohttp.ClientSession]:
    """A caller of the service."""
    del nothing_left_behind
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A loopback port that refuses connections, and that nobody else can take."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]
