"""Interoperability with unzip programs in both layouts, over real sockets; README has the table."""

import asyncio
import io
import zipfile
from pathlib import Path

import aiohttp
import pytest

from service.archive.report import MANIFEST_NAME, REPORT_NAME
from service.archive.writer import Layout
from service.sandbox import DEMO_ORDER_ID, PARTIAL_ORDER_ID, Fault, Kind, Sandbox
from tests.archives import add_order, entries, failures_in, images_in, images_url, jpeg
from tests.test_docs import API, table
from tests.unzip_tools import (
    MODE_READERS,
    ModeReader,
    UnzipError,
    ZipReader,
    bsdtar,
    bsdtar_stream,
    info_zip,
    java_zip_file,
    java_zip_input_stream,
    listed_modes,
    python_zipfile,
    seven_zip,
)

# By their names in README.
READERS: dict[str, ZipReader] = {
    "Python zipfile": python_zipfile,
    "Info-ZIP unzip": info_zip,
    "7-Zip": seven_zip,
    "bsdtar (libarchive), from a file": bsdtar,
    "bsdtar, from a pipe": bsdtar_stream,
    "Java ZipFile": java_zip_file,
    "Java ZipInputStream": java_zip_input_stream,
}
# Known failures with their messages. When a program learns to read such an archive, README's table changes.
KNOWN_FAILURES: dict[tuple[Layout, ZipReader], str] = {
    (Layout.STORED, java_zip_input_stream): "only DEFLATED entries can have EXT descriptor"
}

SIZE = 300_000
CUT = 120_000

every_layout = pytest.mark.parametrize("layout", list(Layout))
every_reader = pytest.mark.parametrize(
    "reader", [pytest.param(reader, id=reader.__name__) for reader in READERS.values()]
)


async def _archive(client: aiohttp.ClientSession, service: str, order_id: str, layout: Layout) -> bytes:
    async with client.get(images_url(service, order_id, f"?layout={layout}")) as response:
        assert response.status == 200
        return await response.read()


async def _check(reader: ZipReader, layout: Layout, data: bytes, folder: Path) -> None:
    """Check that the program reads what Python's zipfile reads, or fails as it is known to."""
    path = folder / "images.zip"
    path.write_bytes(data)
    if message := KNOWN_FAILURES.get((layout, reader)):
        with pytest.raises(UnzipError, match=message):
            await asyncio.to_thread(reader, path)
        return
    assert await asyncio.to_thread(reader, path) == entries(data)


@every_layout
@every_reader
async def test_complete_order_is_read_by_every_program(
    layout: Layout, reader: ZipReader, sandbox: Sandbox, service: str, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Every program reads an order with awkward names bit for bit."""
    data = await _archive(client, service, DEMO_ORDER_ID, layout)
    served = [sandbox.body(image.image_id) for image in sandbox.orders[DEMO_ORDER_ID].images]
    assert sorted(entries(data).values()) == sorted(served)
    await _check(reader, layout, data, tmp_path)


@every_layout
@every_reader
async def test_partial_order_is_read_by_every_program(
    layout: Layout, reader: ZipReader, sandbox: Sandbox, service: str, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """An archive with report and manifest is read too."""
    data = await _archive(client, service, PARTIAL_ORDER_ID, layout)
    found = entries(data)
    ready = [image for image in sandbox.orders[PARTIAL_ORDER_ID].images if image.status == "processed"]
    assert sorted(images_in(found).values()) == sorted(sandbox.body(image.image_id) for image in ready)
    assert len(failures_in(found)) == 4
    await _check(reader, layout, data, tmp_path)


@every_layout
@every_reader
async def test_rolled_back_entry_is_ignored_by_every_program(
    layout: Layout, reader: ZipReader, sandbox: Sandbox, service: str, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """After the first entry is rolled back, its image is read in the complete version, and so are the next ones."""
    order = add_order(sandbox, [SIZE] * 3)
    sandbox.faults.script(order.images[0].image_id, [Fault(Kind.RESET, after_bytes=CUT), Fault(Kind.CHANGED)])
    gates = [sandbox.faults.pause(image.image_id, origin="api") for image in order.images[1:]]
    async with client.get(images_url(service, order.order_id, f"?layout={layout}")) as response:
        data = await response.content.readexactly(CUT)
        for gate in gates:
            gate.release()
        data += await response.read()
    assert data.count(b"PK\x03\x04") == 4, "three entries, and one that was rolled back"
    found = entries(data)
    assert {name: len(body) for name, body in found.items()} == {"0.jpg": SIZE + 7, "1.jpg": SIZE, "2.jpg": SIZE}
    assert [found["1.jpg"], found["2.jpg"]] == [jpeg(SIZE, 1), jpeg(SIZE, 2)]
    await _check(reader, layout, data, tmp_path)


@every_layout
async def test_directory_records_have_unix_modes(
    layout: Layout, service: str, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Every entry, report and manifest too, is a regular file ``rw-r--r--`` of Unix (APPNOTE 4.4.2, 4.4.15)."""
    data = await _archive(client, service, PARTIAL_ORDER_ID, layout)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {REPORT_NAME, MANIFEST_NAME} < set(archive.namelist())
        assert {(one.create_system, one.external_attr) for one in archive.infolist()} == {(3, 0o100644 << 16)}
    path = tmp_path / "images.zip"
    path.write_bytes(data)
    assert await asyncio.to_thread(listed_modes, path) == dict.fromkeys(entries(data), "-rw-r--r--")


@every_layout
@pytest.mark.parametrize("reader", MODE_READERS)
async def test_extracted_files_are_readable_by_others(
    layout: Layout, reader: ModeReader, service: str, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Extracted files have the mode ``rw-r--r--``."""
    data = await _archive(client, service, PARTIAL_ORDER_ID, layout)
    path = tmp_path / "images.zip"
    path.write_bytes(data)
    assert await asyncio.to_thread(reader, path) == dict.fromkeys(entries(data), 0o100644)


async def test_default_layout_is_streamable(service: str, client: aiohttp.ClientSession) -> None:
    """Without ``layout`` the archive has the layout that every program reads."""
    async with client.get(images_url(service, DEMO_ORDER_ID)) as response:
        data = await response.read()
    assert data[8:10] == bytes([8, 0])  # the first entry's compression method (APPNOTE 4.4.5)


@every_layout
async def test_partial_image_is_streamed(
    layout: Layout, sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """Bytes of an image reach the client while the rest of it has not left the storage; nothing is buffered whole."""
    order = add_order(sandbox, [SIZE])
    gate = sandbox.faults.pause(order.images[0].image_id, after_bytes=CUT)
    async with client.get(images_url(service, order.order_id, f"?layout={layout}")) as response:
        received = await response.content.readexactly(CUT)
        gate.release()
        received += await response.read()
    assert entries(received) == {"0.jpg": jpeg(SIZE)}


def test_readme_table_matches_these_tests() -> None:
    """README's table has the result of every program and layout."""
    stated = {name.replace("`", ""): row[: len(Layout)] for name, row in table("Program", API).items()}
    assert stated == {
        name: ["no" if (layout, reader) in KNOWN_FAILURES else "yes" for layout in Layout]
        for name, reader in READERS.items()
    }
