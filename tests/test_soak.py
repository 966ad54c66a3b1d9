"""Archives beyond the 16-bit and 32-bit limits of ZIP, in both layouts. Slow and large: run by ``make soak`` only."""

import asyncio
import logging
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from service.archive.writer import ArchiveWriter, Layout
from service.archive.zipstream_adapter import LARGEST_WITHOUT_ZIP64
from service.sandbox import Sandbox, SandboxImage
from tests.archives import images_url
from tests.conftest import StartService
from tests.test_interop import KNOWN_FAILURES
from tests.unzip_tools import CONTENT_HASHERS, UnzipError, ZipReader, python_zipfile

pytestmark = [pytest.mark.soak, pytest.mark.timeout(280)]

FREE_BYTES = 12 * 1024**3
# More than 16 bits can count (APPNOTE 4.4.21).
ENTRIES = 66_000
# Together more than 32 bits can count (APPNOTE 4.4.24); each small enough to need no Zip64 fields.
IMAGES, IMAGE_BYTES = 23, 200_000_003

every_layout = pytest.mark.parametrize("layout", list(Layout))


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Path]:
    """A path for the archive, deleted after the test: pytest keeps the folders of several runs."""
    if shutil.disk_usage(tmp_path).free < FREE_BYTES:
        pytest.skip(f"less than {FREE_BYTES // 1024**3} GiB of disk are free")
    path = tmp_path / "images.zip"
    yield path
    path.unlink(missing_ok=True)


async def _check_all(archive: Path, layout: Layout) -> None:
    """Check that every program reads the same contents as Python's zipfile, or fails as it is known to."""
    others = dict(CONTENT_HASHERS)
    expected = await asyncio.to_thread(others.pop(python_zipfile), archive)
    for reader, hash_contents in others.items():
        if message := KNOWN_FAILURES.get((layout, reader)):
            with pytest.raises(UnzipError, match=message):
                await asyncio.to_thread(hash_contents, archive)
        else:
            assert await asyncio.to_thread(hash_contents, archive) == expected, _name(reader)


def _name(reader: ZipReader) -> str:
    return getattr(reader, "__name__", repr(reader))


@every_layout
async def test_more_than_65535_entries(layout: Layout, archive: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every program finds every entry in order, although the end record cannot count them all."""
    caplog.set_level(logging.ERROR, "zipstream.ng")  # as in the service
    writer = ArchiveWriter(layout)
    with archive.open("wb") as file:
        for number in range(ENTRIES):
            file.write(writer.add(f"{number:06}.jpg", b"image %d\n" % number))
        file.writelines(writer.finish())
    with zipfile.ZipFile(archive) as opened:
        assert opened.namelist() == [f"{number:06}.jpg" for number in range(ENTRIES)]
        assert opened.read(f"{ENTRIES - 1:06}.jpg") == b"image %d\n" % (ENTRIES - 1)
    await _check_all(archive, layout)


@every_layout
async def test_more_than_4_gib(
    layout: Layout, archive: Path, sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """The service streams an order of more than 4 GiB, and every program reads every byte of it."""
    service = await start_service()
    order = sandbox.add_order([SandboxImage(f"{n}.jpg", size_bytes=IMAGE_BYTES) for n in range(IMAGES)])
    received = 0
    with archive.open("wb") as file:
        async with client.get(
            images_url(service, order.order_id, f"?layout={layout}"), timeout=aiohttp.ClientTimeout(total=None)
        ) as response:
            async for chunk in response.content.iter_any():
                received += file.write(chunk)
    assert received > max(2**32, IMAGES * IMAGE_BYTES)
    with zipfile.ZipFile(archive) as opened:
        found = {info.filename: (info.file_size, info.CRC, len(info.extra)) for info in opened.infolist()}
        offsets = {info.filename: info.header_offset for info in opened.infolist()}
    assert max(offsets.values()) > 2**32
    assert {name: entry[:2] for name, entry in found.items()} == {
        image.name: (IMAGE_BYTES, sandbox.expected_crc(image.image_id)) for image in order.images
    }
    # Only entries beyond the limit have Zip64 fields.
    far = {name for name, offset in offsets.items() if offset > LARGEST_WITHOUT_ZIP64}
    assert {name for name, entry in found.items() if entry[2]} == far
    await _check_all(archive, layout)
