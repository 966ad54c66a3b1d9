"""Test helpers: download archives and read their entries."""

import io
import json
import zipfile
from typing import Any

import aiohttp
from yarl import URL

from service.archive.report import MANIFEST_NAME, REPORT_NAME
from service.sandbox import Sandbox, SandboxImage, SandboxOrder

# The service accepts this body as a JPEG: one empty segment starts a scan, and the end marker is there.
_JPEG_START, _JPEG_END = b"\xff\xd8\xff\xda\0\x02", b"\xff\xd9"


def jpeg(size: int, seed: int = 0) -> bytes:
    """Return ``size`` bytes that begin and end like a JPEG, different for each seed."""
    filling = (b"%08d" % seed) * (size // 8 + 1)
    return _JPEG_START + filling[: size - len(_JPEG_START) - len(_JPEG_END)] + _JPEG_END


def add_order(sandbox: Sandbox, sizes: list[int], name: str = "Order") -> SandboxOrder:
    """Add an order of images with the given sizes in bytes, named by their position (0.jpg)."""
    images = [SandboxImage(f"{n}.jpg", body=jpeg(size, n), content_type="image/jpeg") for n, size in enumerate(sizes)]
    return sandbox.add_order(images, name)


def images_url(service: str, order_id: str, query: str = "") -> URL:
    """Return the URL of an order's archive."""
    return URL(f"{service}/orders/{order_id}/images{query}", encoded=True)


async def download(client: aiohttp.ClientSession, url: URL) -> dict[str, bytes]:
    """Download an archive and return its entries in order."""
    async with client.get(url) as response:
        assert response.status == 200, await response.text()
        return entries(await response.read())


def entries(data: bytes) -> dict[str, bytes]:
    """Return the entries of an archive; no name may occur twice."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        assert len(names) == len(set(names))
        return {name: archive.read(name) for name in names}


def images_in(found: dict[str, bytes]) -> dict[str, bytes]:
    """Return the entries that are images."""
    return {name: data for name, data in found.items() if name not in {REPORT_NAME, MANIFEST_NAME}}


def manifest_in(found: dict[str, bytes]) -> dict[str, Any]:
    """Return the archive's manifest."""
    parsed: dict[str, Any] = json.loads(found[MANIFEST_NAME])
    return parsed


def failures_in(found: dict[str, bytes]) -> dict[str, str]:
    """Return the reason of each image that is missing by the manifest, by its original name."""
    return {image["name"]: image["reason"] for image in manifest_in(found)["images"] if image["outcome"] == "failed"}
