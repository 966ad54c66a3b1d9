"""Chromium of the distribution, driven by Playwright. Without it the tests are skipped; in CI they fail.

One browser serves the whole session. Playwright belongs to the event loop that started it, so these tests and their
fixtures run in the session's loop: a module of such tests is marked with ``pytest.mark.asyncio(loop_scope="session")``.
Each page has a browser context of its own, which shares neither cookies nor cache with another.
"""

import os
import shutil
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, ConsoleMessage, Page, Request, async_playwright, expect

from service.sandbox import DEMO_ORDER_ID, Sandbox
from service.server.run import serving
from tests.conftest import StartService, leak_check, settings_for

# No requests to its vendor, and no process sandbox, which does not work for root.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Long, because a busy machine is slow; only failing tests take this long.
PAGE_TIMEOUT_MILLISECONDS = 20_000
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
LOCAL = ("blob:", "data:")


@dataclass
class Visit:
    """An open page and the errors on its console.

    ``refusals`` are statuses that the test expects: the console reports each as an error.
    """

    page: Page
    origin: str
    refusals: frozenset[int] = frozenset()
    errors: list[str] = field(default_factory=list)

    def record_message(self, message: ConsoleMessage) -> None:
        """Record errors and warnings of the console, policy violations included."""
        expected = any(f"status of {status} " in message.text for status in self.refusals)
        if message.type in {"error", "warning"} and not expected:
            self.errors.append(message.text)

    def record_request(self, request: Request) -> None:
        """Record a request to another origin as an error."""
        if not request.url.startswith((self.origin + "/", *LOCAL)):
            self.errors.append(f"request to {request.url}")

    async def check_accessibility(self, *, ignored: Collection[str] = ()) -> None:
        """Fail if axe-core finds a serious violation on the page, except of the ignored rules."""
        found: list[dict[str, Any]] = (await Axe().run(self.page)).response["violations"]
        serious = [one for one in found if one["impact"] in {"serious", "critical"} and one["id"] not in ignored]
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in serious] == []


OpenPage = Callable[..., Any]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Headless Chromium."""
    executable = shutil.which("chromium")
    if executable is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is not installed")
        pytest.skip("chromium is not installed")
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield started
        await started.close()


# The shared fixtures of the same names, in the session's loop.


@pytest_asyncio.fixture(loop_scope="session")
async def nothing_left_behind(browser: Browser) -> AsyncIterator[None]:
    """Check after the test that no task and no socket is left but the browser's."""
    del browser
    async with leak_check():
        yield


@pytest_asyncio.fixture(loop_scope="session")
async def sandbox(nothing_left_behind: None) -> AsyncIterator[Sandbox]:
    """The sandbox of the API, with its fixed orders."""
    del nothing_left_behind
    async with Sandbox() as running_sandbox:
        yield running_sandbox


@pytest_asyncio.fixture(loop_scope="session")
async def client(nothing_left_behind: None) -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client of the service."""
    del nothing_left_behind
    async with aiohttp.ClientSession() as session:
        yield session


@pytest_asyncio.fixture(loop_scope="session")
async def start_service(sandbox: Sandbox) -> AsyncIterator[StartService]:
    """Return a function that starts the service with changed settings."""
    async with AsyncExitStack() as stack:

        async def start(**changes: Any) -> str:
            return await stack.enter_async_context(serving(settings_for(sandbox, **changes)))

        yield start


@pytest_asyncio.fixture(loop_scope="session")
async def start_sandbox_service(sandbox: Sandbox) -> AsyncIterator[StartService]:
    """Return a function that starts the service as ``--sandbox`` does, with changed settings."""
    async with AsyncExitStack() as stack:

        async def start(**changes: Any) -> str:
            settings = settings_for(sandbox, **changes)
            return await stack.enter_async_context(serving(settings, demo_order_id=DEMO_ORDER_ID))

        yield start


@pytest_asyncio.fixture(loop_scope="session")
async def open_page(browser: Browser) -> AsyncIterator[OpenPage]:
    """Return a function that opens a path of a service; fail at the end if a page had errors."""
    visits = []
    expect.set_options(timeout=PAGE_TIMEOUT_MILLISECONDS)

    async def visit(service: str, path: str = "/", *, refusals: Collection[int] = (), **options: Any) -> Visit:
        context = await browser.new_context(accept_downloads=True, **{"viewport": DESKTOP, **options})
        opened = Visit(await context.new_page(), service, frozenset(refusals))
        visits.append(opened)
        opened.page.set_default_timeout(PAGE_TIMEOUT_MILLISECONDS)
        opened.page.on("console", opened.record_message)
        opened.page.on("pageerror", lambda error: opened.errors.append(str(error)))
        opened.page.on("request", opened.record_request)
        await opened.page.goto(service + path)
        return opened

    yield visit
    for one in visits:
        await one.page.context.close()
    assert [one.errors for one in visits] == [[]] * len(visits)
