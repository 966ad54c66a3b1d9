"""The page in a real browser: what a visitor sees, and the files on the disk afterwards."""

from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from playwright.async_api import Page, expect
from pydantic import SecretStr

from service.sandbox import (
    DEMO_ORDER_ID,
    EMPTY_ORDER_ID,
    LARGE_ORDER_ID,
    MERGING_ORDER_ID,
    PARTIAL_ORDER_ID,
    Fault,
    Kind,
    Sandbox,
    SandboxOrder,
)
from tests.archives import add_order, entries, failures_in, images_in, images_url, jpeg
from tests.browser.conftest import PHONE, OpenPage, Visit
from tests.conftest import StartService

SAMPLES = Path(__file__).parents[2] / "service" / "web" / "uploads" / "samples"
pytestmark = pytest.mark.asyncio(loop_scope="session")

KEY, PAYING, TOKEN = "key-of-a-customer-0001", "key-that-may-pay-0002", "token-of-the-operator-3"


@pytest_asyncio.fixture(loop_scope="session")
async def sandboxed(start_sandbox_service: StartService) -> str:
    """The URL of a service in sandbox mode."""
    return await start_sandbox_service()


async def visit(open_page: OpenPage, service: str, path: str = "/", **options: Any) -> Visit:
    """Open the page and wait until it is ready."""
    opened: Visit = await open_page(service, path, **options)
    await opened.page.wait_for_selector("html[data-ready]")
    return opened


async def save(page: Page, button: str, folder: Path) -> dict[str, bytes]:
    """Press a download button and return the entries of the file on the disk."""
    async with page.expect_download() as started:
        await page.get_by_role("button", name=button).click()
    download = await started.value
    await download.save_as(folder / download.suggested_filename)
    return entries((folder / download.suggested_filename).read_bytes())


async def test_first_visit_downloads_the_demo_order(
    sandbox: Sandbox, sandboxed: str, open_page: OpenPage, tmp_path: Path
) -> None:
    """Two clicks lead from the first visit to the complete archive, and the page shows the result."""
    opened = await visit(open_page, sandboxed)
    page = opened.page
    await expect(page.get_by_text("Sandbox", exact=True)).to_be_visible()
    await expect(page.locator("#order-hint")).to_contain_text("The demo order is filled in.")
    await page.get_by_role("button", name="Show order").click()
    await expect(page.locator("#gallery li")).to_have_count(14)
    await expect(page.locator("#gallery img").first).to_have_js_property("complete", value=True)
    found = await save(page, "Download ZIP", tmp_path)
    rows = await page.locator("#gallery li").all()
    ids = {await row.locator(".name").inner_text(): str(await row.get_attribute("data-image")) for row in rows}
    assert found == {name: sandbox.body(image_id) for name, image_id in ids.items()}
    await expect(page.get_by_role("heading", name="Done: 14 images in the ZIP")).to_be_visible()
    await expect(page.locator("#bar")).to_have_js_property("position", 1)
    await expect(page.locator("#gallery .state", has_text="Downloaded")).to_have_count(14)
    assert sandbox.credits_spent == 0


async def test_progress_is_shown(sandbox: Sandbox, sandboxed: str, open_page: OpenPage) -> None:
    """During a download the bar, the figures and the state of each image show the progress, all of it in view."""
    order = add_order(sandbox, [300_000, 300_000, 300_000])
    sandbox.faults.always(order.images[0].image_id, Fault(Kind.DRIP, chunk_bytes=30_000, delay_seconds=0.3))
    gates = [sandbox.faults.pause(image.image_id) for image in order.images[1:]]
    page = (await visit(open_page, sandboxed, f"/?order={order.order_id}")).page
    for gate in gates:
        gate.release()  # for the thumbnails
    gates = [sandbox.faults.pause(image.image_id) for image in order.images[1:]]
    await page.get_by_role("button", name="Download ZIP").click()
    states = page.locator("#gallery .state")
    await expect(states).to_have_text(["Downloading", "Waiting", "Waiting"])
    await expect(page.locator("#progress-text")).to_contain_text("B/s")
    await expect(states).to_have_text(["Downloaded", "Waiting", "Waiting"])
    await expect(page.locator("#progress-text")).to_contain_text("1 of 3 images · 300 KB")
    assert 0.3 < await page.locator("#bar").evaluate("bar => bar.position") < 0.4
    await expect(page).to_have_title("33 % · Batch image downloader")
    await expect(page.locator("#progress")).to_be_in_viewport(ratio=1)
    await expect(states.first).to_be_in_viewport(ratio=1)
    await page.get_by_label("Format").select_option("png")
    await expect(page.get_by_role("button", name="Download ZIP")).to_be_disabled()
    for gate in gates:
        gate.release()
    await expect(page.get_by_role("heading", name="Done: 3 images in the ZIP")).to_be_visible()
    await expect(page.get_by_role("button", name="Download ZIP")).to_be_enabled()


async def test_page_works_with_the_keyboard(sandboxed: str, open_page: OpenPage, tmp_path: Path) -> None:
    """A download needs no pointer, and the focus moves to new content."""
    page = (await visit(open_page, sandboxed)).page

    async def go_to(name: str) -> None:
        for _ in range(40):
            await page.keyboard.press("Tab")
            if await page.evaluate("document.activeElement.textContent.trim()") == name:
                return
        pytest.fail(f"{name} cannot be reached")

    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    await expect(page.get_by_role("link", name="Skip to the content")).to_be_in_viewport()
    await go_to("Show order")
    await page.keyboard.press("Enter")
    await expect(page.locator("#order-title")).to_be_focused()
    await go_to("Download ZIP")
    async with page.expect_download() as started:
        await page.keyboard.press("Enter")
    await (await started.value).save_as(tmp_path / "images.zip")
    assert len(entries((tmp_path / "images.zip").read_bytes())) == 14
    await expect(page.locator("#progress-title")).to_be_focused()
    await expect(page.locator("#progress-said")).to_contain_text("Done: 14 images")


async def test_missing_images_are_listed_and_fetched_again(
    sandbox: Sandbox, sandboxed: str, open_page: OpenPage, tmp_path: Path
) -> None:
    """Each failed image is listed with its reason; one more click downloads exactly those."""
    order = add_order(sandbox, [1000, 2000, 3000])
    sandbox.faults.always(order.images[1].image_id, Fault(Kind.STATUS, status=404), origin="api")
    # Status 502: the thumbnail of that image fails too.
    page = (await visit(open_page, sandboxed, f"/?order={order.order_id}", refusals={502})).page
    first = await save(page, "Download ZIP", tmp_path)
    assert failures_in(first) == {"1.jpg": "not_found"}
    await expect(page.get_by_role("heading", name="Done, but 1 image of 3 is missing")).to_be_visible()
    await expect(page.locator("#failure-list")).to_contain_text("It could not be found")
    await expect(page.locator("#failure-list")).to_contain_text("Trying again will not help.")
    await expect(page.locator("#gallery .why").nth(1)).to_contain_text("It could not be found")
    sandbox.faults.clear()
    second = await save(page, "Get the missing ones", tmp_path)
    assert second == {"1.jpg": jpeg(2000, 1)}
    await expect(page.get_by_role("heading", name="Done: 1 image in the ZIP")).to_be_visible()


async def test_many_missing_images_are_fetched_with_post(
    sandbox: Sandbox, sandboxed: str, open_page: OpenPage, tmp_path: Path
) -> None:
    """More images than a URL can hold are fetched too."""
    order = add_order(sandbox, [300] * 120)
    for image in order.images[1:]:
        sandbox.faults.always(image.image_id, Fault(Kind.STATUS, status=410), origin="api")
    page = (await visit(open_page, sandboxed, f"/?order={order.order_id}", refusals={502})).page
    await save(page, "Download ZIP", tmp_path)
    await expect(page.get_by_role("button", name="Get the missing ones")).to_be_visible()
    sandbox.faults.clear()
    second = await save(page, "Get the missing ones", tmp_path)
    assert len(images_in(second)) == 119


async def test_rejected_list_of_images_shows_the_problem(sandbox: Sandbox, sandboxed: str, open_page: OpenPage) -> None:
    """When a long list is rejected, the page stays and shows the reason."""
    order = add_order(sandbox, [300] * 102)
    for image in order.images[1:]:
        sandbox.faults.always(image.image_id, Fault(Kind.STATUS, status=410), origin="api")
    opened = await visit(open_page, sandboxed, f"/?order={order.order_id}", refusals={422, 502})
    page = opened.page
    async with page.expect_download():
        await page.get_by_role("button", name="Download ZIP").click()
    await page.get_by_role("button", name="Get the missing ones").click()
    await expect(page.get_by_role("heading", name="Nothing could be downloaded")).to_be_visible()
    await expect(page.locator("#progress-text")).to_contain_text("101 missing")
    await expect(page.locator("#failure-list li")).to_have_count(101)
    assert page.url == f"{sandboxed}/?order={order.order_id}"
    (blocked,) = opened.errors  # the hidden frame does not show the problem
    assert "frame-ancestors" in blocked
    opened.errors.clear()


async def test_missing_images_belong_to_their_order(
    sandbox: Sandbox, sandboxed: str, open_page: OpenPage, tmp_path: Path
) -> None:
    """Missing images are requested from their own order, whichever is shown; a new order shows no old download."""
    order, other = add_order(sandbox, [1000, 2000]), add_order(sandbox, [3000], name="Other")
    fault = Fault(Kind.STATUS, status=404)
    sandbox.faults.always(order.images[1].image_id, fault, origin="api")
    page = (await visit(open_page, sandboxed, f"/?order={order.order_id}", refusals={404, 502})).page
    await save(page, "Download ZIP", tmp_path)
    await page.get_by_label("Order id").fill("5a4d0b0c-0000-4000-8000-000000000bad")
    await page.get_by_role("button", name="Show order").click()
    await expect(page.locator("[data-problem='order-not-found']")).to_be_visible()
    await expect(page.locator("#order")).to_be_hidden()
    sandbox.faults.clear()
    assert await save(page, "Get the missing ones", tmp_path) == {"1.jpg": jpeg(2000, 1)}
    await expect(page.get_by_role("heading", name="Done: 1 image in the ZIP")).to_be_visible()
    await page.get_by_label("Order id").fill(other.order_id)
    await page.get_by_role("button", name="Show order").click()
    await expect(page.get_by_role("heading", name="Other")).to_be_visible()
    await expect(page.locator("#progress")).to_be_hidden()


async def test_upload_creates_an_order(sandbox: Sandbox, sandboxed: str, open_page: OpenPage, tmp_path: Path) -> None:
    """Photos become an order, which can be downloaded once processed; a file that is no photo is named."""
    page = (await visit(open_page, sandboxed)).page
    await page.get_by_text("No order yet?").click()
    await page.get_by_label("Name of the order").fill("My house")
    text = tmp_path / "notes.txt"
    text.write_text("no photo")
    await page.locator("#upload-files").set_input_files([SAMPLES / "garden.jpg", SAMPLES / "kitchen.jpg", text])
    await page.get_by_text("How to enhance them").click()
    await page.get_by_label("Style").select_option("Warm")
    await page.get_by_role("button", name="Upload 3 photos").click()
    await expect(page.locator("#upload-status")).to_contain_text("2 photos uploaded")
    await expect(page.locator("#upload-status")).to_contain_text("notes.txt")
    await expect(page.get_by_role("heading", name="My house")).to_be_visible()
    await expect(page.locator("#order-hint")).not_to_contain_text("demo order")
    found = await save(page, "Download ZIP", tmp_path)
    assert sorted(found) == ["garden.jpg", "kitchen.jpg"]
    await expect(page.get_by_role("heading", name="Done: 2 images in the ZIP")).to_be_visible()
    assert sandbox.credits_spent == 0
    created = next(order for order in sandbox.orders.values() if order.name == "My house")
    assert [image.extra["enhance_type"] for image in created.images] == ["warm", "warm"]


async def test_upload_progress_is_shown(sandboxed: str, open_page: OpenPage, tmp_path: Path) -> None:
    """Each photo has its own progress bar."""
    page = (await visit(open_page, sandboxed)).page
    await page.get_by_text("No order yet?").click()
    photos = [tmp_path / "first.jpg", tmp_path / "second.jpg"]
    for at, photo in enumerate(photos):
        photo.write_bytes(jpeg(400_000, at))
    await page.locator("#upload-files").set_input_files(photos)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 300_000}
    await (await page.context.new_cdp_session(page)).send("Network.emulateNetworkConditions", slow)
    await page.get_by_role("button", name="Upload 2 photos").click()
    rows = page.locator("#upload-list li")
    await expect(rows.nth(0)).to_contain_text("400 KB sent")
    await expect(rows.nth(1)).to_contain_text("KB of 400 KB")
    positions = await page.locator("#upload-list progress").evaluate_all("bars => bars.map(bar => bar.position)")
    assert positions[0] == 1 > positions[1]
    await expect(page.locator("#upload-status")).to_contain_text("2 photos uploaded")


async def test_files_can_be_dropped_and_samples_used(sandboxed: str, open_page: OpenPage) -> None:
    """Files can be dropped and removed; sample photos need one click."""
    page = (await visit(open_page, sandboxed)).page
    await page.get_by_text("No order yet?").click()
    dropped = await page.evaluate_handle(
        "() => { const data = new DataTransfer(); data.items.add(new File(['x'], 'dropped.jpg')); return data; }"
    )
    await page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    await expect(page.locator("#upload-list li")).to_have_count(1)
    await page.get_by_role("button", name="Remove dropped.jpg").click()
    await expect(page.get_by_role("button", name="Upload", exact=True)).to_be_disabled()
    await page.get_by_role("button", name="Use three sample photos").click()
    await expect(page.get_by_role("heading", name="Sample order")).to_be_visible()
    await expect(page.locator("#order-status")).to_have_text("Ready")


async def test_sign_in_is_required_with_keys(start_service: StartService, open_page: OpenPage, tmp_path: Path) -> None:
    """With SERVICE_API_KEYS nothing is shown without a key, and the page offers only what the key permits."""
    keys = (SecretStr(KEY), SecretStr(f"{PAYING}:full"))
    service = await start_service(service_api_keys=keys, admin_token=SecretStr(TOKEN), allow_full_quality=False)
    opened = await visit(open_page, service, f"/?order={DEMO_ORDER_ID}", refusals={401})
    page = opened.page
    await page.get_by_label("Key of the service").fill("wrong-key-of-a-visitor")
    await page.get_by_role("dialog").get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("alert")).to_contain_text("neither a service key")
    await page.get_by_label("Key of the service").fill(KEY)
    await opened.check_accessibility()
    await page.get_by_role("dialog").get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("dialog")).to_be_hidden()
    await expect(page.locator("#gallery li")).to_have_count(14)
    await expect(page.get_by_role("radio", name="Full quality")).to_be_disabled()
    assert len(await save(page, "Download ZIP", tmp_path)) == 14
    await page.get_by_text("No order yet?").click()
    await expect(page.get_by_text("Only the operator of this service")).to_be_visible()
    await expect(page.get_by_role("button", name="Use three sample photos")).to_be_hidden()
    await page.reload()
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("button", name="Sign in").first).to_be_visible()
    await expect(page.locator("#order")).to_be_hidden()
    await page.get_by_role("button", name="Show order").click()
    await expect(page.locator("#notices")).to_contain_text("Sign in with a key")
    assert KEY not in await page.evaluate("() => JSON.stringify([localStorage, sessionStorage, document.cookie])")


async def test_full_quality_needs_confirmation(
    sandbox: Sandbox, sandboxed: str, open_page: OpenPage, tmp_path: Path
) -> None:
    """No credit is spent before the visitor has confirmed the number."""
    order = add_order(sandbox, [1000, 2000])
    page = (await visit(open_page, sandboxed, f"/?order={order.order_id}")).page
    await page.get_by_role("radio", name="Full quality").check()
    await expect(page.locator("#curl")).to_contain_text("preview=false&max_credits=2")
    await page.get_by_role("button", name="Download ZIP").click()
    await expect(page.get_by_role("heading", name="Spend up to 2 credits?")).to_be_visible()
    await page.get_by_role("button", name="Cancel").click()
    await expect(page.get_by_role("dialog")).to_be_hidden()
    assert sandbox.credits_spent == 0
    await page.get_by_role("button", name="Download ZIP").click()
    await save(page, "Spend 2", tmp_path)
    await expect(page.get_by_role("heading", name="Done: 2 images")).to_be_visible()
    await expect(page.locator("#progress-text")).to_contain_text("2 credits spent")
    assert sandbox.credits_spent == 2


async def test_order_in_progress_is_followed(sandbox: Sandbox, sandboxed: str, open_page: OpenPage) -> None:
    """The page follows an order that is being processed, and a download started early has every image."""
    order: SandboxOrder = add_order(sandbox, [1000, 2000])
    sandbox.set_status(order.images[1].image_id, "processing")
    page = (await visit(open_page, sandboxed, f"/?order={order.order_id}")).page
    await expect(page.locator("#order-summary")).to_contain_text("1 of 2 images ready · 1 being processed")
    async with page.expect_download() as started:
        await page.get_by_role("button", name="Download ZIP").click()
    sandbox.set_status(order.images[1].image_id, "processed")
    await expect(page.get_by_role("heading", name="Done: 2 images in the ZIP")).to_be_visible()
    assert await (await started.value).failure() is None
    await expect(page.locator("#order-summary")).to_have_text("2 of 2 images ready")


async def test_options_appear_in_command_and_link(sandboxed: str, open_page: OpenPage) -> None:
    """The command for the terminal and the link have exactly the options of the form."""
    page = (await visit(open_page, sandboxed, f"/?order={DEMO_ORDER_ID}")).page
    await page.get_by_label("Format").select_option("webp")
    await page.get_by_label("Quality, 1 to 90").fill("70")
    await page.get_by_text("More options").click()
    await page.get_by_label("Development mode").check()
    await page.get_by_text("The same from a terminal").click()
    wanted = f"/orders/{DEMO_ORDER_ID}/images?format=webp&quality=70&dev_mode=true"
    await expect(page.locator("#curl")).to_contain_text(wanted + '"')
    await page.get_by_text("A link for someone").click()
    await page.get_by_role("button", name="Make a link").click()
    await expect(page.locator("#link")).to_contain_text(wanted + "&link=")


async def test_orders_without_images_show_no_numbers(sandboxed: str, open_page: OpenPage) -> None:
    """For an order that lists no images yet the page shows neither a number of images nor a price."""
    page = (await visit(open_page, sandboxed, f"/?order={MERGING_ORDER_ID}")).page
    await expect(page.locator("#download-hint")).to_contain_text("Begins when the first image is ready")
    await expect(page.locator("#full-hint")).to_have_text("Spends one credit for each image.")
    await page.get_by_role("radio", name="Full quality").check()
    await expect(page.get_by_role("button", name="Download ZIP")).to_be_disabled()
    await page.get_by_label("Order id").fill(EMPTY_ORDER_ID)
    await page.get_by_role("button", name="Show order").click()
    await expect(page.locator("#order-summary")).to_have_text("There are no images")
    await expect(page.locator("#download-hint")).to_have_text("Nothing is ready to be downloaded.")


async def test_invalid_field_in_a_folded_section_is_focused(sandboxed: str, open_page: OpenPage) -> None:
    """An invalid value in a folded section is shown, instead of a button that does nothing."""
    page = (await visit(open_page, sandboxed, f"/?order={DEMO_ORDER_ID}")).page
    await page.get_by_text("More options").click()
    await page.get_by_label("Scale, up to 1").fill("5")
    await page.get_by_text("More options").click()
    await page.get_by_role("button", name="Download ZIP").click()
    await expect(page.get_by_label("Scale, up to 1")).to_be_focused()


async def test_page_without_admin_token_offers_no_sign_in(start_service: StartService, open_page: OpenPage) -> None:
    """The page requires no sign-in where no token is configured."""
    page = (await visit(open_page, await start_service(allow_full_quality=False), f"/?order={DEMO_ORDER_ID}")).page
    await page.get_by_text("No order yet?").click()
    await expect(page.locator("#upload-denied")).to_contain_text("its operator has not set a token")
    await expect(page.locator("#full-hint")).to_have_text("Spends credits: the operator does not allow it.")


async def test_problems_are_shown(start_service: StartService, open_page: OpenPage) -> None:
    """A problem is shown with title, reason and advice."""
    page = (await visit(open_page, await start_service(), "/?order=5a4d0b0c", refusals={400, 404})).page
    await expect(page.locator("[data-problem='invalid-order-id']")).to_contain_text("Copy the whole id")
    await page.get_by_label("Order id").fill("5a4d0b0c-0000-4000-8000-000000000bad")
    await page.get_by_role("button", name="Show order").click()
    await expect(page.locator("[data-problem='order-not-found']")).to_contain_text("Check the id")
    await expect(page.get_by_label("Order id")).to_be_focused()
    keyless = await visit(open_page, await start_service(autoenhance_api_key=None))
    await expect(keyless.page.get_by_role("status").first).to_contain_text("no API key")


async def test_rejected_download_shows_the_problem(sandbox: Sandbox, sandboxed: str, open_page: OpenPage) -> None:
    """When the archive request is rejected, the page shows the reason and is not replaced by the problem document."""
    order = add_order(sandbox, [1000])
    opened = await visit(open_page, sandboxed, f"/?order={order.order_id}")
    sandbox.faults.always(order.images[0].image_id, Fault(Kind.STATUS, status=404), origin="api")
    await opened.page.get_by_role("button", name="Download ZIP").click()
    await expect(opened.page.get_by_role("heading", name="Nothing could be downloaded")).to_be_visible()
    await expect(opened.page.locator("#rejection")).to_contain_text("No images are available")
    await expect(opened.page.get_by_role("button", name="Try again")).to_be_visible()


async def test_expired_session_requires_sign_in(start_service: StartService, open_page: OpenPage) -> None:
    """After the session has expired, a download opens the sign-in dialog."""
    service = await start_service(service_api_keys=(SecretStr(KEY),))
    page = (await visit(open_page, service, f"/?order={DEMO_ORDER_ID}", refusals={401})).page
    await page.get_by_label("Key of the service").fill(KEY)
    await page.get_by_role("dialog").get_by_role("button", name="Sign in").click()
    await expect(page.locator("#gallery li")).to_have_count(14)
    await page.context.clear_cookies()
    await page.get_by_role("button", name="Download ZIP").click()
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    await expect(page.locator("[data-problem='authentication-required']")).to_be_visible()


async def test_large_order_is_shown_in_part(
    sandbox: Sandbox, start_sandbox_service: StartService, open_page: OpenPage, tmp_path: Path
) -> None:
    """An order of a thousand images is shown in part and downloaded completely."""
    sandbox.rate_limit = None
    service = await start_sandbox_service(upstream_requests_per_second=10_000)
    page = (await visit(open_page, service, f"/?order={LARGE_ORDER_ID}")).page
    await expect(page.locator("#gallery li")).to_have_count(48)
    assert len(await save(page, "Download ZIP", tmp_path)) == 1000
    await expect(page.get_by_role("heading", name="Done: 1,000 images in the ZIP")).to_be_visible()
    await page.get_by_role("button", name="Show 952 more").click()
    await expect(page.locator("#gallery .state", has_text="Downloaded")).to_have_count(1000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_page_is_accessible(scheme: str, sandboxed: str, open_page: OpenPage, tmp_path: Path) -> None:
    """Both colour schemes are accessible in the main states, and nothing overflows on a phone."""
    opened = await visit(open_page, sandboxed, color_scheme=scheme, viewport=PHONE, reduced_motion="reduce")
    page = opened.page

    async def check() -> None:
        await opened.check_accessibility()
        assert await page.evaluate("document.scrollingElement.scrollWidth") <= PHONE["width"]

    await check()
    await page.get_by_text("No order yet?").click()
    await page.locator("#upload-files").set_input_files([SAMPLES / "garden.jpg"])
    await check()
    await page.get_by_label("Order id").fill(PARTIAL_ORDER_ID)
    await page.get_by_role("button", name="Show order").click()
    for words in ("More options", "The same from a terminal", "A link for someone"):
        await page.get_by_text(words).click()
    await page.get_by_label("Wait for images").uncheck()
    await check()
    await save(page, "Download ZIP", tmp_path)
    await expect(page.get_by_role("button", name="Get the missing ones")).to_be_visible()
    await check()
    await page.get_by_role("radio", name="Full quality").check()
    await page.get_by_role("button", name="Download ZIP").click()
    await expect(page.get_by_role("dialog")).to_be_visible()
    await check()


async def test_overload_is_shown(
    sandbox: Sandbox, start_sandbox_service: StartService, open_page: OpenPage, client: aiohttp.ClientSession
) -> None:
    """A download that MAX_ARCHIVES rejects is shown as such, with advice."""
    service = await start_sandbox_service(max_archives=1)
    order = add_order(sandbox, [200_000])
    gate = sandbox.faults.pause(order.images[0].image_id, after_bytes=100_000)
    async with client.get(images_url(service, order.order_id)) as held:
        await held.content.readexactly(50_000)
        opened = await visit(open_page, service, f"/?order={DEMO_ORDER_ID}")
        opened.refusals = frozenset({404, 503})
        await opened.page.get_by_role("button", name="Download ZIP").click()
        await expect(opened.page.get_by_role("heading", name="The download was rejected")).to_be_visible()
        await expect(opened.page.get_by_text("Many downloads are running.")).to_be_visible()
        gate.release()
        await held.read()
