"""``GET /`` and its files over HTTP; ``tests/browser`` tests how the page looks and works."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from service.archive.parameters import PARAMETERS
from service.errors import concrete_errors
from service.model import ArchiveOutcome, Reason
from service.sandbox import Sandbox
from service.web.site.page import STATIC
from service.web.uploads.create_order import ENHANCEMENT_OPTIONS
from tests.archives import add_order, entries, images_url
from tests.conftest import StartService

ROOT = Path(__file__).parents[3]


async def test_page_allows_only_its_own_files(service: str, client: aiohttp.ClientSession) -> None:
    """The policy allows the page's own files only, and the page has no inline script, style or handler."""
    async with client.get(service) as response:
        assert response.status == 200
        assert response.content_type == "text/html"
        policy = response.headers["Content-Security-Policy"]
        text = await response.text()
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert not re.search(r"<style|style=|\son[a-z]+=|javascript:|https?://", text)
    assert re.findall(r"<script[^>]*>([^<]*)</script>", text) == [""]


@pytest.mark.parametrize("path", sorted(path.name for path in STATIC.iterdir() if path.is_file()))
async def test_files_are_revalidated(path: str, service: str, client: aiohttp.ClientSession) -> None:
    """A browser may cache each file, and revalidates it by its ETag."""
    async with client.get(f"{service}/static/{path}") as response:
        assert (response.status, response.headers["Cache-Control"]) == (200, "no-cache")
        assert await response.read() == (STATIC / path).read_bytes()
        tag = response.headers["ETag"]
    async with client.get(f"{service}/static/{path}", headers={"If-None-Match": tag}) as response:
        assert response.status == 304


@pytest.mark.parametrize("path", ["../app.py", "%2e%2e/page.py", "..%2fpage.py", "/etc/passwd", "", "no.js"])
async def test_other_paths_are_not_found(path: str, service: str, client: aiohttp.ClientSession) -> None:
    """A path that is not a file of the page is a 404."""
    url = URL(f"{service}/static/{path}", encoded=True)
    async with client.get(url) as response:
        assert response.status in {403, 404}
        assert response.content_type == "application/problem+json"


def test_page_has_advice_for_every_problem() -> None:
    """The page has advice for each problem type."""
    text = (STATIC / "problems.js").read_text(encoding="utf-8")
    advice = re.findall(r'^  "?([a-z-]+)"?: "', text, re.MULTILINE)
    assert sorted(advice) == sorted(error.slug for error in concrete_errors())


def test_page_has_a_title_for_every_outcome() -> None:
    """The page has a title for each outcome of a download."""
    text = (STATIC / "download.js").read_text(encoding="utf-8")
    assert set(re.findall(r"^  ([a-z_]+): \(.*\) =>", text, re.MULTILINE)) == {
        outcome.value for outcome in ArchiveOutcome
    }


def test_page_has_every_parameter() -> None:
    """Every parameter of a download has an input on the page, or is set by the page."""
    names = set(re.findall(r' name="([a-z_]+)"', (STATIC / "index.html").read_text(encoding="utf-8")))
    decided = {"wait", "only", "max_credits", "archive_id"}
    assert set(PARAMETERS) - names == decided
    options = (
        (STATIC / "options.js").read_text() + (STATIC / "download.js").read_text() + (STATIC / "app.js").read_text()
    )
    assert decided <= set(re.findall(r'"([a-z_]+)"', options))


def test_page_has_every_enhancement_option() -> None:
    """The upload form has the options that the service accepts, field by field and value by value."""
    text = (STATIC / "enhancement.js").read_text(encoding="utf-8")
    fields = dict(re.findall(r'^  ([a-z_]+): \["[^"]+", (.+)\],$', text, re.MULTILINE))
    found = {
        name: {"true", "false"} if words == "YES_OR_NO" else set(re.findall(r"(\w+): \"", words))
        for name, words in fields.items()
    }
    assert found == {name: set(values) for name, values in ENHANCEMENT_OPTIONS.items()}


async def test_page_config(service: str, start_service: StartService, client: aiohttp.ClientSession) -> None:
    """The page's configuration has whether there is an API key, the upload limits, and the text of each reason."""
    keyless = await start_service(autoenhance_api_key=None, max_upload_files=7)
    async with client.get(f"{service}/api/page") as response:
        config = await response.json()
    assert (config["api_key_configured"], config["demo_order_id"], config["wait_max_seconds"]) == (True, None, 600)
    assert set(config["reasons"]) == {reason.value for reason in Reason}
    assert config["reasons"]["not_ready"]["text"] == "It was still being enhanced."
    async with client.get(f"{keyless}/api/page") as response:
        config = await response.json()
    assert (config["api_key_configured"], config["max_upload_files"]) == (False, 7)


async def test_form_selects_images(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """A list of images too long for a URL may be sent as a form's fields, as the page does."""
    order = add_order(sandbox, [1000, 2000, 3000])
    fields = [("only", image.image_id) for image in order.images[1:]]
    async with client.post(images_url(service, order.order_id), data=aiohttp.FormData(fields)) as response:
        assert response.status == 200
        assert sorted(entries(await response.read())) == ["1.jpg", "2.jpg"]
        # A frame of the page may load it; browsers check that before they save it.
        assert response.headers["X-Frame-Options"] == "SAMEORIGIN"
        assert response.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'self'"


def test_wheel_contains_the_page(tmp_path: Path) -> None:
    """The wheel contains every file of the page."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if "/static/" in name}
    assert packed == {str(path.relative_to(ROOT)) for path in STATIC.rglob("*") if path.is_file()}
