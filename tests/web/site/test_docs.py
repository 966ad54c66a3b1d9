"""``/docs``: vendored files match their checksums, are packaged, and have a strict Content-Security-Policy."""

import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import aiohttp
from pydantic import SecretStr

from service.web.site.docs import ASSETS, DOCS_POLICY, VENDORED
from tests.conftest import StartService

ROOT = Path(__file__).parents[3]
VENDOR = VENDORED.parent


def test_vendored_files_match_their_checksums() -> None:
    """The README beside them lists every folder, and every file with its SHA-256; each folder has its licence."""
    readme = (VENDOR / "README.md").read_text(encoding="utf-8")
    listed = {name: digest for digest, name in re.findall(r"^([0-9a-f]{64})  (\S+)$", readme, re.MULTILINE)}
    there = {
        path.relative_to(VENDOR).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VENDOR.rglob("*")
        if path.is_file() and path.name != "README.md"
    }
    assert listed == there
    for folder in {name.partition("/")[0] for name in there}:
        assert f"`{folder}`" in readme
        assert f"{folder}/LICENSE" in there


def test_cached_assets_have_a_version_in_their_url() -> None:
    """Assets that browsers cache indefinitely have the version in their URL: an update has another URL."""
    version = VENDORED.name.removeprefix("swagger-ui")
    assert all(version in name for name, path in ASSETS.items() if VENDORED in path.parents)


def test_wheel_contains_the_static_files(tmp_path: Path) -> None:
    """The wheel contains every file below ``static``, licences included."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    static = ROOT / "service" / "web" / "static"
    assert {path.relative_to(ROOT).as_posix() for path in static.rglob("*") if path.is_file()} <= names


async def test_page_has_policy_and_cache_headers(service: str, client: aiohttp.ClientSession) -> None:
    """The page has its own policy, without exceptions; versioned assets are cached, the others revalidated."""
    assert "unsafe" not in DOCS_POLICY
    async with client.get(f"{service}/docs") as response:
        assert (response.status, response.content_type) == (200, "text/html")
        assert response.headers["Content-Security-Policy"] == DOCS_POLICY
        assert response.headers["Cache-Control"] == "no-cache"
        text = await response.text()
    for address in re.findall(r'(?:src|href)="([^"]+)"', text):
        async with client.get(f"{service}/{address}") as response:
            assert response.status == 200
            lasting = "immutable" in response.headers["Cache-Control"]
            assert lasting == ("swagger-ui" in address)


async def test_reference_is_public(start_service: StartService, client: aiohttp.ClientSession) -> None:
    """The reference requires no key, like health: it reveals nothing of this service's settings."""
    locked = await start_service(service_api_keys=(SecretStr("a-key-of-the-service"),))
    bodies = []
    for service in (locked, await start_service(allow_full_quality=False)):
        for path in ("/docs", "/openapi.json"):
            async with client.get(service + path) as response:
                assert response.status == 200
                bodies.append(await response.read())
    assert bodies[:2] == bodies[2:]
