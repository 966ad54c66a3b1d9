"""Requests that want the rest of an earlier archive: an error or a whole new archive, never two parts joined."""

import asyncio
import re
import socket
import struct
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from service.sandbox import DEMO_ORDER_ID, Sandbox, SandboxOrder
from tests.archives import add_order, entries, images_url, jpeg
from tests.unzip_tools import tool

SIZES = [200_000] * 3
CUT = 300_000
_READ_BYTES = 8192
# SO_LINGER with a time of 0: closing sends RST instead of FIN (socket(7)).
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def body_of(order: SandboxOrder, method: str) -> dict[str, Any]:
    """Return the body with which a method downloads all images of an order, as an option of aiohttp."""
    return {"json": {"only": [image.image_id for image in order.images]}} if method == "POST" else {}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Range": "bytes=1-"}, id="from the second byte"),
        pytest.param({"Range": "Bytes=000307184-"}, id="unit in upper case, leading zeros"),
        pytest.param({"Range": "bytes= , 5- ,"}, id="empty list elements"),
        pytest.param({"Range": f"bytes={'9' * 5000}-"}, id="a huge number"),
        pytest.param({"Range": "bytes=5-", "If-Match": "*"}, id="after an If-Match that holds"),
        pytest.param({"If-Match": '"x"'}, id="an entity tag"),
        pytest.param({"If-Match": 'W/"x", "y"'}, id="entity tags"),
        pytest.param({"If-Match": ""}, id="no entity tag"),
        pytest.param({"If-Match": '"x"', "Range": "bytes=0-"}, id="If-Match before Range"),
        pytest.param({"If-Match": '"x"', "If-Range": '"x"', "Range": "bytes=5-"}, id="If-Match before If-Range"),
    ],
)
async def test_the_rest_is_refused(
    method: str, headers: Mapping[str, str], sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """A 412 that says what to do instead, before any request upstream."""
    order = add_order(sandbox, SIZES)
    url = images_url(service, order.order_id)
    async with client.request(method, url, headers=headers, **body_of(order, method)) as response:
        assert response.status == 412
        problem = await response.json(content_type="application/problem+json")
    assert problem["type"] == "/problems/archive-not-resumable"
    assert "curl without '-C -', wget without '-c'" in problem["detail"]
    assert sandbox.requests == []


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Range": "bytes=0-"}, id="from the first byte"),
        pytest.param({"Range": "bytes=00-"}, id="from the first byte, two digits"),
        pytest.param({"Range": "bytes=0-99"}, id="the first bytes"),
        pytest.param({"Range": "bytes=5-9"}, id="bytes in the middle"),
        pytest.param({"Range": "bytes=-5"}, id="the last bytes"),
        pytest.param({"Range": "images=5-"}, id="another unit"),
        pytest.param({"Range": "bytes=5-,9-"}, id="several ranges"),
        pytest.param({"Range": "bytes=x-"}, id="no number"),
        pytest.param({"Range": "5-"}, id="no unit"),
        pytest.param({"Range": "bytes=5-", "If-Range": '"x"'}, id="If-Range with an entity tag"),
        pytest.param({"Range": "bytes=5-", "If-Range": "Sat, 29 Oct 1994 19:43:31 GMT"}, id="If-Range with a date"),
        pytest.param({"If-Range": '"x"'}, id="If-Range alone"),
        pytest.param({"If-Match": "*"}, id="If-Match of anything"),
        pytest.param({"If-Match": "*", "If-Range": '"x"', "Range": "bytes=5-"}, id="all conditions"),
    ],
)
async def test_whole_archive(
    method: str, headers: Mapping[str, str], sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """What is no wish for the rest gets a whole archive with a 200."""
    order = add_order(sandbox, SIZES)
    url = images_url(service, order.order_id)
    async with client.request(method, url, headers=headers, **body_of(order, method)) as response:
        assert (response.status, "Content-Range" in response.headers) == (200, False)
        found = entries(await response.read())
    assert found == {f"{n}.jpg": jpeg(size, n) for n, size in enumerate(SIZES)}


async def test_head(service: str, client: aiohttp.ClientSession) -> None:
    """HEAD ignores Range, because nothing of a body could be joined, and minds If-Match."""
    for headers, status in (({"Range": "bytes=5-"}, 200), ({"If-Match": '"x"'}, 412), ({"If-Match": "*"}, 200)):
        async with client.head(images_url(service, DEMO_ORDER_ID), headers=headers) as response:
            assert response.status == status


async def test_other_problems_come_first(service: str, client: aiohttp.ClientSession) -> None:
    """Conditions are minded only where the request would succeed without them (RFC 9110 section 13.2.1)."""
    headers = {"Range": "bytes=5-", "If-Match": '"x"'}
    async with client.get(images_url(service, DEMO_ORDER_ID, "?quality=x"), headers=headers) as response:
        assert response.status == 400


async def test_it_is_counted_and_takes_no_archive_id(service: str, client: aiohttp.ClientSession) -> None:
    """The outcome is ``rejected``, and the same URL without Range is a download."""
    url = images_url(service, DEMO_ORDER_ID, f"?archive_id={uuid.uuid4()}")
    async with client.get(url, headers={"Range": "bytes=5-"}) as response:
        assert response.status == 412
    async with client.get(f"{service}/metrics") as response:
        assert 'batch_archives_total{outcome="rejected"} 1.0' in await response.text()
    async with client.get(url) as response:
        assert response.status == 200
        assert len(entries(await response.read())) == 14


@asynccontextmanager
async def resetting_proxy(service: str, ranges: list[str | None]) -> AsyncIterator[str]:
    """Forward connections to the service and yield the URL for that; reset the first one after CUT bytes.

    ``ranges`` gets the Range of each request.
    """
    url = URL(service)
    connections: set[asyncio.Task[None]] = set()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        wanted = re.search(rb"^Range: (.*)\r$", head, re.MULTILINE)
        ranges.append(wanted[1].decode() if wanted else None)
        to_send = CUT if len(ranges) == 1 else None
        from_service, to_service = await asyncio.open_connection(url.host, url.port)
        to_service.write(head)
        pouring = [
            asyncio.create_task(_pour(from_service, writer, to_send)),
            asyncio.create_task(_pour(reader, to_service)),
        ]
        await asyncio.wait(pouring, return_when=asyncio.FIRST_COMPLETED)
        for task in pouring:
            task.cancel()
        await asyncio.wait(pouring)
        if to_send is not None:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        for one in (writer, to_service):
            one.transport.abort()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.create_task(forward(reader, writer)))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await asyncio.gather(*connections)


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int | None = None) -> None:
    """Copy until the end, or until so many bytes were copied."""
    copied = 0
    while (size is None or copied < size) and (piece := await reader.read(_READ_BYTES)):
        writer.write(piece)
        await writer.drain()
        copied += len(piece)


async def run(*command: str) -> int:
    """Run a program to its end and return its exit code."""
    process = await asyncio.create_subprocess_exec(*command)
    return await process.wait()


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_wget_over_a_connection_that_is_reset(
    method: str, sandbox: Sandbox, service: str, tmp_path: Path
) -> None:
    """The second try of wget, which has a Range, ends with its code for an error status, and nothing is appended."""
    wget = tool("wget")
    order = add_order(sandbox, SIZES)
    ids = "&".join(f"only={image.image_id}" for image in order.images)
    options = ["--post-data", ids] if method == "POST" else []
    path, ranges = tmp_path / "images.zip", list[str | None]()
    async with resetting_proxy(service, ranges) as proxy:
        url = str(images_url(proxy, order.order_id))
        command = [wget, "--quiet", "--no-config", "--no-proxy", "--waitretry=0", "-O", str(path), *options, url]
        assert await run(*command) == 8
    size = path.stat().st_size
    assert 0 < size <= CUT + _READ_BYTES
    assert ranges == [None, f"bytes={size}-"]


@pytest.mark.parametrize(("options", "code"), [([], 33), (["--fail"], 22)])
async def test_curl_on_a_part_file(
    options: list[str], code: int, sandbox: Sandbox, service: str, tmp_path: Path
) -> None:
    """``curl -C -`` ends with an error and appends nothing to the part that it has."""
    curl = [tool("curl"), "--disable", "--silent", "--noproxy", "*"]
    order = add_order(sandbox, SIZES)
    path, ranges = tmp_path / "images.zip", list[str | None]()
    async with resetting_proxy(service, ranges) as proxy:
        url = str(images_url(proxy, order.order_id))
        assert await run(*curl, "-o", str(path), url) == 56
        part = path.read_bytes()
        assert await run(*curl, *options, "-C", "-", "-o", str(path), url) == code
    assert path.read_bytes() == part
    assert ranges == [None, f"bytes={len(part)}-"]
