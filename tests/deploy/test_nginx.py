"""The service behind a real nginx with the shipped nginx.conf, in which only addresses and paths are replaced."""

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from service.sandbox import DEMO_ORDER_ID, MERGING_ORDER_ID, Fault, Kind, Sandbox, SandboxImage
from service.sandbox.faults import Gate
from tests.archives import add_order, download, entries, images_url, jpeg
from tests.conftest import StartService
from tests.deploy.shipped import DEPLOY, require_tool
from tests.server.test_process import RunningService, service_process

CONFIG = DEPLOY / "nginx" / "nginx.conf"
MIB = 1024 * 1024
SHIPPED_SERVERS = "".join(f"        server batch-{n}:8000 max_fails=2 fail_timeout=5s;\n" for n in (1, 2))
# The default of proxy_read_timeout.
NGINX_READ_TIMEOUT_SECONDS = 60


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def configured(folder: Path, port: int, replicas: Sequence[str]) -> Path:
    """Write the shipped file with the test's addresses into a folder."""
    text = CONFIG.read_text(encoding="utf-8")
    servers = "".join(f"server {url.removeprefix('http://')} max_fails=2 fail_timeout=5s;\n" for url in replicas)
    for shipped, ours in (
        ("listen 8080;", f"listen 127.0.0.1:{port};"),
        (SHIPPED_SERVERS, servers),
        ("/tmp/", f"{folder}/"),  # noqa: S108 - a path of the shipped file
        (
            "worker_processes auto;",
            "worker_processes 2;\ndaemon off;\n" + ("user root;\n" if os.geteuid() == 0 else ""),
        ),
    ):
        assert shipped in text
        text = text.replace(shipped, ours)
    path = folder / "nginx.conf"
    path.write_text(text, encoding="utf-8")
    return path


@asynccontextmanager
async def nginx(folder: Path, replicas: Sequence[str]) -> AsyncIterator[str]:
    """Run nginx in front of the replicas; yields its address."""
    program = require_tool("nginx")
    port = free_port()
    command = [program, "-p", str(folder), "-e", "stderr", "-c", str(configured(folder, port, replicas))]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False, timeout=20)  # noqa: ASYNC221
    assert checked.returncode == 0, checked.stderr
    with (folder / "nginx.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    try:
        await listening(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def listening(port: int, process: asyncio.subprocess.Process) -> None:
    """Wait until the port accepts connections; nginx has no signal for it."""
    while process.returncode is None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0)
            continue
        writer.close()
        await writer.wait_closed()
        return
    raise AssertionError("nginx has ended")


@pytest.fixture
async def proxied(service: str, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of nginx in front of one replica."""
    async with nginx(tmp_path, [service]) as url:
        yield url


def test_shipped_file_is_valid(tmp_path: Path) -> None:
    """Nginx accepts the file."""
    path = configured(tmp_path, 8080, ["http://127.0.0.1:8000"])
    done = subprocess.run(
        [require_tool("nginx"), "-p", str(tmp_path), "-e", "stderr", "-t", "-c", str(path)],
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


async def test_bytes_are_streamed(sandbox: Sandbox, proxied: str, client: aiohttp.ClientSession) -> None:
    """The client receives the first image before the second has left the storage."""
    order = add_order(sandbox, [100_000, 100_000])
    gate = sandbox.faults.pause(order.images[1].image_id)
    async with client.get(images_url(proxied, order.order_id)) as response:
        first = await response.content.readexactly(100_000)
        gate.release()
        found = entries(first + await response.read())
    assert found == {"0.jpg": jpeg(100_000, 0), "1.jpg": jpeg(100_000, 1)}


async def test_large_archive_is_not_buffered(
    sandbox: Sandbox, proxied: str, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """A large archive is complete; for a client that does not read nginx buffers nothing, in memory or on disk."""
    order = sandbox.add_order([SandboxImage(f"{n}.jpg", size_bytes=32 * MIB) for n in range(4)])
    url = images_url(proxied, order.order_id)
    async with client.get(url) as idle:
        total = 0
        async with client.get(url) as response:
            async for chunk in response.content.iter_any():
                total += len(chunk)
        assert total > 128 * MIB
        # A buffering proxy would have received the other one completely by now. nginx deletes its files at the end.
        assert not [path for path in (tmp_path / "proxy").rglob("*") if path.is_file()]
        receipt = json.loads(await read(client, f"{proxied}/archives/{idle.headers['X-Archive-Id']}"))
        assert receipt["state"] == "streaming"
        assert receipt["bytes"] < 32 * MIB
        idle.close()


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_archive_of_more_than_4_gib_passes(sandbox: Sandbox, proxied: str, client: aiohttp.ClientSession) -> None:
    """An archive beyond the 32-bit limit is complete, with its Zip64 records."""
    order = sandbox.add_order([SandboxImage(f"{n}.jpg", size_bytes=1024 * MIB) for n in range(5)])
    total, end = 0, b""
    timeout = aiohttp.ClientTimeout(total=None, sock_read=60)
    async with client.get(images_url(proxied, order.order_id), timeout=timeout) as response:
        async for chunk in response.content.iter_any():
            total, end = total + len(chunk), (end + chunk)[-1000:]
    assert total > 5 * 1024 * MIB
    assert b"PK\x06\x06" in end, "the Zip64 end of central directory (APPNOTE 4.3.14)"
    assert end[-22:].startswith(b"PK\x05\x06"), "the end of central directory (APPNOTE 4.3.16)"


async def test_client_disconnect_cancels_the_upstream_requests(
    sandbox: Sandbox, proxied: str, client: aiohttp.ClientSession
) -> None:
    """A closed client connection is passed on, also while the upstream is stalled, and its requests are cancelled."""
    order = add_order(sandbox, [200_000])
    sandbox.faults.pause(order.images[0].image_id, after_bytes=100_000)  # never released: it cannot complete
    async with aiohttp.ClientSession() as leaving:
        response = await leaving.get(images_url(proxied, order.order_id))
        await response.content.readexactly(50_000)
        assert sandbox.active_requests
        response.close()
    await sandbox.wait_until(lambda: not sandbox.active_requests)
    receipt = json.loads(await read(client, f"{proxied}/archives/{response.headers['X-Archive-Id']}"))
    assert (receipt["state"], receipt["why"]) == ("client_gone", "client-left")


async def test_problem_documents_pass(sandbox: Sandbox, proxied: str, client: aiohttp.ClientSession) -> None:
    """Problems of the service pass unchanged, also with statuses that nginx uses; /metrics is not public."""
    broken = add_order(sandbox, [1000]).order_id
    sandbox.faults.order(broken, [Fault(Kind.WRONG_SHAPE)])
    for order_id, status, slug in (
        ("nonsense", 400, "invalid-order-id"),
        (MERGING_ORDER_ID, 409, "order-not-ready"),
        (broken, 502, "upstream-invalid-response"),
    ):
        async with client.get(images_url(proxied, order_id)) as response:
            assert (response.status, response.content_type) == (status, "application/problem+json")
            assert (await response.json())["type"] == f"/problems/{slug}"
    async with client.get(f"{proxied}/metrics") as response:
        assert response.status == 404


async def test_request_ids_pass(proxied: str, client: aiohttp.ClientSession) -> None:
    """A valid request id of the client is kept; an invalid one is replaced by nginx."""
    for given, kept in (("order-4711", True), ("not an id", False)):
        async with client.get(f"{proxied}/health", headers={"X-Request-ID": given}) as response:
            assert (response.headers["X-Request-ID"] == given) is kept


async def test_too_large_body_is_a_problem(proxied: str, client: aiohttp.ClientSession) -> None:
    """A body that nginx rejects, to spare its disk, gets the problem document that the service would send."""
    body = io.BytesIO(b"0" * (5 * MIB))
    async with client.post(images_url(proxied, DEMO_ORDER_ID), data=body, expect100=True) as response:
        assert (response.status, response.content_type) == (400, "application/problem+json")
        assert (await response.json())["type"] == "/problems/invalid-body"


async def test_aborted_archive_is_an_aborted_transfer(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """An archive that the service aborts does not arrive as a complete file."""
    service = await start_service(images_in_flight=1)
    order = add_order(sandbox, [100_000, 1000])
    sandbox.faults.always(order.images[1].image_id, Fault(Kind.STATUS, status=404), origin="api")
    async with (
        nginx(tmp_path, [service]) as url,
        client.get(images_url(url, order.order_id, "?on_error=abort")) as response,
    ):
        assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_wait_and_events_pass(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """A download that waits for images is not timed out, and its events arrive meanwhile."""
    service = await start_service()
    order = sandbox.add_order(
        [SandboxImage(f"{n}.jpg", body=jpeg(1000, n), content_type="image/jpeg", ready_after_polls=n) for n in (1, 2)]
    )
    archive_id = str(uuid.uuid4())
    async with nginx(tmp_path, [service]) as url:
        fetching = asyncio.create_task(
            download(client, images_url(url, order.order_id, f"?wait=60&archive_id={archive_id}"))
        )
        async with client.get(f"{url}/archives/{archive_id}/events") as events:
            assert await events.content.readuntil(b"event: snapshot")
            assert b"event: end" in await events.content.read()
        assert sorted(await fetching) == ["1.jpg", "2.jpg"]


@pytest.mark.soak
@pytest.mark.timeout(200)
async def test_wait_beyond_the_default_read_timeout_passes(
    sandbox: Sandbox, proxied: str, client: aiohttp.ClientSession
) -> None:
    """A download may wait for longer than the default proxy_read_timeout."""
    images = [
        SandboxImage(f"{n}.jpg", body=jpeg(1000, n), content_type="image/jpeg", status=status)
        for n, status in enumerate(("processed", "processing"))
    ]
    order = sandbox.add_order(images)
    received = b""
    async with client.get(images_url(proxied, order.order_id, "?wait=180")) as response:
        with suppress(TimeoutError):
            while not response.content.at_eof():
                async with asyncio.timeout(NGINX_READ_TIMEOUT_SECONDS + 5):
                    received += await response.content.readany()
        assert received
        assert not response.content.at_eof()
        sandbox.set_status(images[1].image_id, "processed")
        found = entries(received + await response.read())
    assert found == {"0.jpg": jpeg(1000, 0), "1.jpg": jpeg(1000, 1)}


async def test_unavailable_replicas_are_a_problem(
    closed_port: int, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Without a replica the response is a problem document too."""
    async with nginx(tmp_path, [f"http://127.0.0.1:{closed_port}"]) as url, client.get(f"{url}/health") as response:
        assert (response.status, response.content_type) == (503, "application/problem+json")
        assert json.loads(await response.read())["status"] == 503


# Three replicas.


@asynccontextmanager
async def three_replicas(
    sandbox: Sandbox, folder: Path, **environment: str
) -> AsyncIterator[tuple[str, list[RunningService]]]:
    """Run three processes behind nginx."""
    given = {"DRAIN_SECONDS": "30", **environment}
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(service_process(sandbox, **given)) for _ in range(3)]
        yield await stack.enter_async_context(nginx(folder, [one.url for one in replicas])), replicas


def tried_replicas(folder: Path, request: str) -> list[int]:
    """Return how many replicas nginx has tried for each request with this prefix, from its log."""
    lines = (folder / "nginx.log").read_text("utf-8").splitlines()
    return [line.count("127.0.0.1:") for line in lines if f'"{request}' in line]


async def test_receipts_find_their_archive(sandbox: Sandbox, client: aiohttp.ClientSession, tmp_path: Path) -> None:
    """Receipt and events of an archive are found on any replica, also if they are requested before the archive."""
    async with three_replicas(sandbox, tmp_path) as (url, replicas):
        for _ in range(12):
            archive_id = str(uuid.uuid4())
            events = asyncio.create_task(read(client, f"{url}/archives/{archive_id}/events"))
            assert len(await download(client, images_url(url, DEMO_ORDER_ID, f"?archive_id={archive_id}"))) == 14
            assert b"event: end" in await events
            assert json.loads(await read(client, f"{url}/archives/{archive_id}"))["state"] == "complete"
        assert set(tried_replicas(tmp_path, "GET /archives/")) == {1}, "each is found on the first replica"
        used = [one for one in replicas if any("archive.finished" in line for line in one.lines)]
        assert len(used) > 1, "the archives are spread"


async def read(client: aiohttp.ClientSession, url: str) -> bytes:
    async with client.get(url) as response:
        assert response.status == 200, await response.text()
        return await response.read()


@dataclass
class StartedDownload:
    """A download in progress, the replica that streams it, and the gate that continues it."""

    response: aiohttp.ClientResponse
    first: bytes
    replica: RunningService
    gate: Gate


async def start_download(
    sandbox: Sandbox, client: aiohttp.ClientSession, url: str, replicas: Sequence[RunningService]
) -> StartedDownload:
    """Start a download whose image stalls after half of its bytes."""
    order = add_order(sandbox, [200_000])
    gate = sandbox.faults.pause(order.images[0].image_id, after_bytes=100_000)
    response = await client.get(images_url(url, order.order_id))
    first = await response.content.readexactly(50_000)
    receipt = f"/archives/{response.headers['X-Archive-Id']}"
    found = [one for one in replicas if await status_of(client, one.url + receipt) == 200]
    assert len(found) == 1
    return StartedDownload(response, first, found[0], gate)


async def status_of(client: aiohttp.ClientSession, url: str) -> int:
    async with client.get(url) as response:
        return response.status


async def until_draining(client: aiohttp.ClientSession, replica: RunningService) -> None:
    """Wait until a replica is draining."""
    while await status_of(client, f"{replica.url}/health/ready") != 503:
        pass


async def test_full_replicas_serve_everything_but_downloads(
    sandbox: Sandbox, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Without a free slot downloads are rejected, but receipts, orders and the page are served."""
    async with three_replicas(sandbox, tmp_path, MAX_ARCHIVES="1") as (url, replicas):
        started = [await start_download(sandbox, client, url, replicas) for _ in range(3)]
        for _ in range(9):
            async with client.get(images_url(url, DEMO_ORDER_ID)) as response:
                assert (response.status, response.content_type) == (503, "application/problem+json")
                assert response.headers["Retry-After"] == "10"
        for one in started:
            assert await status_of(client, f"{url}/archives/{one.response.headers['X-Archive-Id']}") == 200
            one.gate.release()
            assert len(entries(one.first + await one.response.read())) == 1
        for path in ("/", "/health", f"/orders/{DEMO_ORDER_ID}"):
            assert await status_of(client, url + path) == 200


async def test_receipt_is_found_on_a_fallback_replica(
    sandbox: Sandbox, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """If the hashed replica is full, another one streams the archive and has its receipt."""
    async with three_replicas(sandbox, tmp_path, MAX_ARCHIVES="1") as (url, replicas):
        started = await start_download(sandbox, client, url, replicas)
        while max(tried_replicas(tmp_path, f"GET /orders/{DEMO_ORDER_ID}/images"), default=0) < 2:
            archive_id = str(uuid.uuid4())
            assert len(await download(client, images_url(url, DEMO_ORDER_ID, f"?archive_id={archive_id}"))) == 14
            assert json.loads(await read(client, f"{url}/archives/{archive_id}"))["state"] == "complete"
        started.gate.release()
        await started.response.read()


async def test_draining_replica_completes_its_archives(
    sandbox: Sandbox, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """A draining replica completes its archive, while the others serve new requests."""
    async with three_replicas(sandbox, tmp_path) as (url, replicas):
        started = await start_download(sandbox, client, url, replicas)
        started.replica.process.send_signal(signal.SIGTERM)
        await until_draining(client, started.replica)
        only = {"only": [sandbox.orders[DEMO_ORDER_ID].images[0].image_id]}
        path = f"/orders/{DEMO_ORDER_ID}/images"
        while max(tried_replicas(tmp_path, f"POST {path}"), default=0) < 2:  # until the draining one was tried first
            async with client.post(url + path, json=only) as response:
                assert len(entries(await response.read())) == 1
        while max(tried_replicas(tmp_path, f"GET {path}"), default=0) < 2:
            assert len(await download(client, images_url(url, DEMO_ORDER_ID))) == 14
        started.gate.release()
        assert entries(started.first + await started.response.read()) == {"0.jpg": jpeg(200_000, 0)}
        assert await started.replica.process.wait() == 0


async def test_killed_replica_aborts_its_transfers(
    sandbox: Sandbox, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """A killed replica aborts its transfers, never truncates them silently; the others go on."""
    async with three_replicas(sandbox, tmp_path) as (url, replicas):
        started = await start_download(sandbox, client, url, replicas)
        started.replica.process.kill()
        with pytest.raises(aiohttp.ClientPayloadError):
            await started.response.read()
        for _ in range(9):
            assert len(await download(client, images_url(url, DEMO_ORDER_ID))) == 14
