"""A real browser: the distribution's Chromium, driven by Playwright. Without it tests are skipped, in CI they fail."""

import os
import shutil
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, ConsoleMessage, Page, Request, async_playwright, expect

from service.sandbox import DEMO_ORDER_ID, Sandbox
from service.server.run import serving
from tests.conftest import StartService, settings_for

# It must not ask its maker for anything, and as root it has no sandbox of its own.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# A busy machine is slow; a test that fails anyway may take this long.
PATIENCE_MILLISECONDS = 20_000
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
LOCAL = ("blob:", "data:")


@dataclass
class Visit:
    """A page, and everything that went wrong while it was open.

    ``refusals`` are statuses that the test expects: the console names each.
    """

    page: Page
    origin: str
    refusals: frozenset[int] = frozenset()
    complaints: list[str] = field(default_factory=list)

    def heard(self, message: ConsoleMessage) -> None:
        """Note what the console says of errors, broken policies included."""
        expected = any(f"status of {status} " in message.text for status in self.refusals)
        if message.type in {"error", "warning"} and not expected:
            self.complaints.append(message.text)

    def asked(self, request: Request) -> None:
        """Note a request that leaves the service."""
        if not request.url.startswith((self.origin + "/", *LOCAL)):
            self.complaints.append(f"asked for {request.url}")

    async def check_accessibility(self, *, but: Collection[str] = ()) -> None:
        """Fail if axe-core finds a serious fault in what is shown now, except against the rules named."""
        found: list[dict[str, Any]] = (await Axe().run(self.page)).response["violations"]
        grave = [one for one in found if one["impact"] in {"serious", "critical"} and one["id"] not in but]
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in grave] == []


OpenPage = Callable[..., Any]


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """Chromium, without a window."""
    executable = shutil.which("chromium")
    if executable is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is not installed")
        pytest.skip("chromium is not installed")
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield started
        await started.close()


@pytest.fixture
async def start_sandbox_service(sandbox: Sandbox) -> AsyncIterator[StartService]:
    """Return a function that starts the service as ``--sandbox`` does, with changed settings."""
    async with AsyncExitStack() as stack:

        async def start(**changes: Any) -> str:
            settings = settings_for(sandbox, **changes)
            return await stack.enter_async_context(serving(settings, demo_order_id=DEMO_ORDER_ID))

        yield start


@pytest.fixture
async def open_page(browser: Browser) -> AsyncIterator[OpenPage]:
    """Return a function that opens a path of a service; at the end nothing may have gone wrong in the pages."""
    visits = []
    expect.set_options(timeout=PATIENCE_MILLISECONDS)

    async def visit(service: str, path: str = "/", *, refusals: Collection[int] = (), **options: Any) -> Visit:
        context = await browser.new_context(accept_downloads=True, **{"viewport": DESKTOP, **options})
        opened = Visit(await context.new_page(), service, frozenset(refusals))
        visits.append(opened)
        opened.page.set_default_timeout(PATIENCE_MILLISECONDS)
        opened.page.on("console", opened.heard)
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.page.on("request", opened.asked)
        await opened.page.goto(service + path)
        return opened

    yield visit
    for one in visits:
        await one.page.context.close()
    assert [one.complaints for one in visits] == [[]] * len(visits)
