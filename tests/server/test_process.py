"""The service as a process of its own, started from the command line."""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from service.sandbox import DEMO_ORDER_ID, LARGE_ORDER_ID, Sandbox
from tests.archives import add_order, entries, images_url, jpeg


@dataclass
class RunningService:
    """A service process, its URL, and the lines of its standard output and error so far."""

    process: asyncio.subprocess.Process
    url: str
    lines: list[str]
    reading: asyncio.Task[None]

    def peak_memory_bytes(self) -> int:
        """Return the largest resident size the process has had (Linux)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]

    async def stop(self) -> int:
        """Send SIGTERM, read the rest of the log, and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        await self.reading
        return await self.process.wait()


@asynccontextmanager
async def service_process(sandbox: Sandbox, **environment: str) -> AsyncIterator[RunningService]:
    """Start ``python -m service serve`` with the sandbox as its upstream, and wait until it listens."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "service", "serve",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={
            "PATH": os.environ["PATH"],
            "AUTOENHANCE_API_BASE": sandbox.api_base,
            "AUTOENHANCE_API_KEY": sandbox.api_key,
            "ALLOW_PRIVATE_UPSTREAM": "true",
            "HOST": "127.0.0.1",
            "PORT": "0",
            **environment,
        },
    )  # fmt: skip
    assert process.stdout is not None
    lines: list[str] = []
    started: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    # The log is read continuously: a full pipe would block the process.
    reading = asyncio.create_task(_read_log(process.stdout, lines, started))
    try:
        yield RunningService(process, await started, lines, reading)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await reading
        await process.wait()


async def _read_log(stream: asyncio.StreamReader, lines: list[str], started: asyncio.Future[str]) -> None:
    while line := (await stream.readline()).decode():
        lines.append(line)
        if not started.done() and "service.started" in line:
            started.set_result(re.findall(r"http://[\w.:]+", line)[0])
    if not started.done():
        started.set_exception(AssertionError("".join(lines)))


async def test_sigterm_stops_the_process(sandbox: Sandbox, client: aiohttp.ClientSession) -> None:
    """SIGTERM stops the process with exit code 0; every line of its log is JSON with an event."""
    async with service_process(sandbox) as service:
        async with client.get(images_url(service.url, DEMO_ORDER_ID)) as response:
            assert len(entries(await response.read())) == 14
        assert await service.stop() == 0
    assert all(json.loads(line)["event"] for line in service.lines)
    assert [json.loads(line)["event"] for line in service.lines][-1] == "service.stopped"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak memory from /proc")
async def test_memory_does_not_grow_with_the_number_of_images(sandbox: Sandbox, client: aiohttp.ClientSession) -> None:
    """An order of 1,000 images needs no more memory than one of 100, except for the order itself."""
    sandbox.rate_limit = None
    small = add_order(sandbox, [4000] * 100)
    async with service_process(sandbox) as service:
        for _ in range(3):
            async with client.get(images_url(service.url, small.order_id)) as response:
                await response.read()
        before = service.peak_memory_bytes()
        async with client.get(images_url(service.url, LARGE_ORDER_ID)) as response:
            found = entries(await response.read())
        growth = service.peak_memory_bytes() - before
    assert len(found) == 1000
    # Its images are 4 MB in all, its JSON 0.7 MB; 900 more outcomes and names are a few hundred bytes each.
    assert growth < 8 * 1024 * 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak memory from /proc")
async def test_memory_does_not_grow_with_an_upload(
    sandbox: Sandbox, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """A photo of 200 MiB is uploaded byte for byte by way of a temporary file, and is never held in memory."""
    chunk = bytes(range(256)) * 1024
    sent = hashlib.sha256()
    token = "token-of-the-operator"
    headers = {"X-Admin-Token": token, "Content-Type": "multipart/form-data; boundary=b"}

    async def form(chunks: int) -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
        for number in range(chunks):
            content = jpeg(1000, number) + chunk
            sent.update(content)
            yield content
        yield b"\r\n--b--\r\n"

    async def upload(service: RunningService, chunks: int) -> dict[str, Any]:
        url = f"{service.url}/api/create-order"
        async with client.post(url, data=form(chunks), headers=headers) as response:
            document: dict[str, Any] = await response.json()
            assert response.status == 201, document
            return document

    limits = {"ADMIN_TOKEN": token, "MAX_UPLOAD_BYTES": str(256 * 1024**2), "TMPDIR": str(tmp_path)}
    async with service_process(sandbox, **limits) as service:
        await upload(service, 8)
        before, sent = service.peak_memory_bytes(), hashlib.sha256()
        document = await upload(service, 800)
        growth = service.peak_memory_bytes() - before
    assert document["images"][0]["bytes"] > 200 * 1024**2
    (image,) = sandbox.orders[document["order_id"]].images
    assert image.upload is not None
    with image.upload.open("rb") as received:
        assert hashlib.file_digest(received, "sha256").digest() == sent.digest()
    assert os.listdir(tmp_path) == []  # noqa: PTH208
    # One read of the socket, and the send buffer to the storage; measured: 1 to 3 MiB.
    assert growth < 8 * 1024 * 1024


async def test_invalid_settings_exit_with_2() -> None:
    """Every invalid setting is reported at once, without its value, and the process exits with 2."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "service", "serve",
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PORT": "sixty-four", "IMAGES_IN_FLIGHT": "0",
             "AUTOENHANCE_API_BASE": "x:secret"},
    )  # fmt: skip
    _, errors = await process.communicate()
    assert process.returncode == 2
    text = errors.decode()
    assert all(name in text for name in ("PORT", "IMAGES_IN_FLIGHT", "AUTOENHANCE_API_BASE"))
    assert "sixty-four" not in text
    assert "secret" not in text


async def test_demo_downloads_the_sandbox_order(tmp_path: Path) -> None:
    """The demo downloads the sandbox order with curl, verifies it, and exits with 0."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "service", "demo", "--output", str(tmp_path / "images.zip"),
        stdout=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0
    assert "X-Downloaded: 14" in output.decode()
    assert len(entries((tmp_path / "images.zip").read_bytes())) == 14
