"""The API reference in a real browser: complete, working under its CSP, without requests to other origins."""

import re

import pytest

from service.sandbox import DEMO_ORDER_ID
from service.web.openapi.document import OPERATIONS
from tests.browser.conftest import PHONE, OpenPage, Visit
from tests.conftest import StartService

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Swagger UI puts the link to an operation into the button that unfolds it.
SWAGGER_VIOLATIONS = frozenset({"nested-interactive"})


async def wait_ready(visit: Visit) -> Visit:
    """Return the visit once the operations are shown."""
    await visit.page.wait_for_selector(".opblock")
    return visit


async def unfold(visit: Visit, operation_id: str) -> str:
    """Unfold an operation and return its selector."""
    block = f"[id$='-{operation_id}']"
    await visit.page.click(f"{block} .opblock-summary-control")
    await visit.page.wait_for_selector(f"{block} .responses-wrapper")
    return block


@pytest.mark.parametrize("options", [{}, {"viewport": PHONE}], ids=["desktop", "phone"])
async def test_every_operation_is_shown(
    options: dict[str, object], start_sandbox_service: StartService, open_page: OpenPage
) -> None:
    """Every operation can be unfolded, and nothing overflows, on a phone too."""
    visit = await wait_ready(await open_page(await start_sandbox_service(), "/docs", **options))
    shown = await visit.page.locator(".opblock").evaluate_all("blocks => blocks.map(block => block.id)")
    assert [one.rpartition("-")[2] for one in shown] == [one.operation_id for one in OPERATIONS]
    for operation in ("downloadOrder", "createOrder", "watchDownload", "createLink"):
        await unfold(visit, operation)
    wide, window = await visit.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= window


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_reference_is_accessible(scheme: str, start_sandbox_service: StartService, open_page: OpenPage) -> None:
    """Both colour schemes are accessible, unfolded and tried out, and link back to the page."""
    service = await start_sandbox_service()
    visit = await wait_ready(await open_page(service, "/docs", color_scheme=scheme))
    for operation in ("downloadOrder", "createOrder", "createLink"):
        await unfold(visit, operation)
    block = await unfold(visit, "getOrder")
    await visit.page.click(f"{block} .try-out__btn")
    await visit.page.click(f"{block} .execute")
    await visit.page.wait_for_selector(f"{block} .live-responses-table")
    await visit.check_accessibility(ignored=SWAGGER_VIOLATIONS)
    ground = await visit.page.evaluate("getComputedStyle(document.querySelector('.swagger-ui')).backgroundColor")
    assert (ground == "rgb(28, 32, 34)") == (scheme == "dark")
    await visit.page.get_by_role("link", name="Batch image downloader").click()
    assert visit.page.url == f"{service}/"


async def test_operation_can_be_tried(start_sandbox_service: StartService, open_page: OpenPage) -> None:
    """An operation tried with its example values gets a response from the service."""
    service = await start_sandbox_service()
    visit = await wait_ready(await open_page(service, "/docs"))
    block = await unfold(visit, "getOrder")
    await visit.page.click(f"{block} .try-out__btn")
    await visit.page.click(f"{block} .execute")
    response = visit.page.locator(f"{block} .live-responses-table .response")
    assert re.match(r"200\b", await response.locator(".response-col_status").inner_text())
    assert DEMO_ORDER_ID in await response.inner_text()


async def test_entered_key_is_sent(start_sandbox_service: StartService, open_page: OpenPage) -> None:
    """A key that is entered once is sent in its header with every tried operation."""
    visit = await wait_ready(await open_page(await start_sandbox_service(), "/docs"))
    await visit.page.click(".btn.authorize")
    await visit.page.fill("#api_key_value", "the-key-that-was-entered")
    await visit.page.click(".auth-container:has(#api_key_value) .btn.authorize >> nth=0")
    await visit.page.click(".btn-done >> nth=0")
    block = await unfold(visit, "getSession")
    await visit.page.click(f"{block} .try-out__btn")
    async with visit.page.expect_request("**/session") as started:
        await visit.page.click(f"{block} .execute")
    headers = await (await started.value).all_headers()
    assert headers["x-api-key"] == "the-key-that-was-entered"


async def test_url_cannot_load_another_document(start_sandbox_service: StartService, open_page: OpenPage) -> None:
    """Query parameters cannot make the page load another document."""
    service = await start_sandbox_service()
    path = "/docs?url=http://127.0.0.1:9/other.json&configUrl=http://127.0.0.1:9/other.json"
    visit = await wait_ready(await open_page(service, path))
    assert await visit.page.locator(".info .link").first.inner_text() == "openapi.json"
    assert await visit.page.locator(".opblock").count() == len(OPERATIONS)
