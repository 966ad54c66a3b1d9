"""Shared fixtures: the sandbox and the service as it runs in production, both on real sockets."""

import asyncio
import gc
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import aiohttp
import aioresponses.core
import pytest
from aiohttp import web, web_app
from aiohttp.test_utils import TestClient
from aioresponses import aioresponses as mocked_responses
from hypothesis import settings as hypothesis_settings
from pydantic import SecretStr

from service.app import create_app
from service.sandbox import Sandbox
from service.server.run import serving
from service.server.runtime import tune_malloc
from service.settings import Settings

# Busy machines stall: a slow example is no failure.
hypothesis_settings.register_profile("no-deadline", deadline=None)
hypothesis_settings.load_profile("no-deadline")

StartService = Callable[..., Awaitable[str]]
App = TestClient[web.Request, web.Application]
StartApp = Callable[..., Awaitable[App]]


def pytest_collection_finish() -> None:
    """Tune malloc as the service does, so that freed bodies and pictures are returned to the kernel.

    Exempt the objects of the collected tests from garbage collection: a full collection then takes milliseconds.
    """
    tune_malloc()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the machine's environment variables and ``.env`` file from the settings."""
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


def free_applications() -> None:
    """Free the applications of finished tests, and with them the pictures and bodies of their sandboxes.

    aiohttp caches the last 1,024 combinations of handler and application in its module, which kept every sandbox and
    every service of the session alive: the test process grew to 3 GB. What remains are reference cycles.
    """
    web_app._cached_build_middleware.cache_clear()  # noqa: SLF001 - aiohttp has no public way
    gc.collect()


@asynccontextmanager
async def leak_check() -> AsyncIterator[None]:
    """Fail if a task or a socket is left that was not there before; free applications."""
    tasks_before = asyncio.all_tasks()
    sockets_before = _open_sockets()
    yield
    for _ in range(50):  # loop turns in which closed transports close their sockets
        await asyncio.sleep(0)
    free_applications()
    assert asyncio.all_tasks() - tasks_before - {asyncio.current_task()} == set()
    assert _open_sockets() - sockets_before == set()


@pytest.fixture
async def nothing_left_behind() -> AsyncIterator[None]:
    """Check after the test that no task and no socket is left. Every fixture that does I/O depends on this one."""
    async with leak_check():
        yield


@pytest.fixture
async def sandbox(nothing_left_behind: None) -> AsyncIterator[Sandbox]:
    """The sandbox of the API, with its fixed orders."""
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
        "drain_seconds": 0,  # the few tests of draining set it
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
    """An HTTP client of the service."""
    del nothing_left_behind
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
def start_app(nothing_left_behind: None, aiohttp_client: Callable[..., Awaitable[App]]) -> StartApp:
    """Return a function that starts the app with changed settings, without a sandbox: for what needs no upstream."""
    del nothing_left_behind

    async def start(**changes: Any) -> App:
        return await aiohttp_client(
            create_app(Settings(**{"autoenhance_api_key": SecretStr("no-upstream"), **changes}))
        )

    return start


class _MockedResponse(aiohttp.ClientResponse):
    """A mocked response. aioresponses 0.7.9 lacks an argument that aiohttp requires since 3.14 (its issue 289)."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        writer: Any = SimpleNamespace(output_size=0)  # the only attribute that is read of a request that was sent
        super().__init__(*arguments, stream_writer=writer, **options)


@pytest.fixture
def mocked_http(monkeypatch: pytest.MonkeyPatch) -> Iterator[mocked_responses]:
    """Mocked responses of other servers; requests to loopback are sent."""
    monkeypatch.setattr(aioresponses.core, "ClientResponse", _MockedResponse)
    with mocked_responses(passthrough=["http://127.0.0.1"]) as mocked:
        yield mocked


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A loopback port that refuses connections; it stays bound, so that no other socket gets it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]
