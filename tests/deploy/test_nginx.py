"""The service behind the shipped nginx.conf, in a real nginx: of the file only addresses and paths are replaced."""

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
NGINX_SILENCE_SECONDS = 60


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def configured(folder: Path, port: int, replicas: Sequence[str]) -> Path:
    """Write the shipped file with our addresses into a folder of our own."""
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
    """Return when somebody listens; nginx tells nobody."""
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


def test_the_shipped_file_has_no_syntax_error(tmp_path: Path) -> None:
    """The file is taken by nginx itself, as it is but for the addresses."""
    path = configured(tmp_path, 8080, ["http://127.0.0.1:8000"])
    done = subprocess.run(
        [require_tool("nginx"), "-p", str(tmp_path), "-e", "stderr", "-t", "-c", str(path)],
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


async def test_bytes_are_passed_on_as_they_come(sandbox: Sandbox, proxied: str, client: aiohttp.ClientSession) -> None:
    """The caller has the first image in hand while the second has not begun to arrive."""
    order = add_order(sandbox, [100_000, 100_000])
    gate = sandbox.faults.pause(order.images[1].image_id)
    async with client.get(images_url(proxied, order.order_id)) as response:
        first = await response.content.readexactly(100_000)
        gate.release()
        found = entries(first + await response.read())
    assert found == {"0.jpg": jpeg(100_000, 0), "1.jpg": jpeg(100_000, 1)}


async def test_a_large_archive_passes_without_the_proxys_disk(
    sandbox: Sandbox, proxied: str, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Many megabytes come whole; of a caller that takes nothing nginx collects nothing, in memory or on disk."""
    order = sandbox.add_order([SandboxImage(f"{n}.jpg", size_bytes=32 * MIB) for n in range(4)])
    url = images_url(proxied, order.order_id)
    async with client.get(url) as idle:
        total = 0
        async with client.get(url) as response:
            async for chunk in response.content.iter_any():
                total += len(chunk)
        assert total > 128 * MIB
        # In this time a proxy that collects would have had the other one whole. nginx takes its files away at the end.
        assert not [path for path in (tmp_path / "proxy").rglob("*") if path.is_file()]
        receipt = json.loads(await read(client, f"{proxied}/archives/{idle.headers['X-Archive-Id']}"))
        assert receipt["state"] == "streaming"
        assert receipt["bytes"] < 32 * MIB
        idle.close()


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_more_than_four_gigabytes_pass(sandbox: Sandbox, proxied: str, client: aiohttp.ClientSession) -> None:
    """An archive beyond what 32 bits can count comes to its end, Zip64 records and all."""
    order = sandbox.add_order([SandboxImage(f"{n}.jpg", size_bytes=1024 * MIB) for n in range(5)])
    total, end = 0, b""
    timeout = aiohttp.ClientTimeout(total=None, sock_read=60)
    async with client.get(images_url(proxied, order.order_id), timeout=timeout) as response:
        async for chunk in response.content.iter_any():
            total, end = total + len(chunk), (end + chunk)[-1000:]
    assert total > 5 * 1024 * MIB
    assert b"PK\x06\x06" in end, "the Zip64 end of central directory (APPNOTE 4.3.14)"
    assert end[-22:].startswith(b"PK\x05\x06"), "the end of central directory (APPNOTE 4.3.16)"


async def test_a_caller_that_leaves_stops_the_work(
    sandbox: Sandbox, proxied: str, client: aiohttp.ClientSession
) -> None:
    """The end of the caller's connection is passed on, also while nothing comes, and the upstream's work ends."""
    order = add_order(sandbox, [200_000])
    sandbox.faults.pause(order.images[0].image_id, after_bytes=100_000)  # for good: it cannot end by itself
    async with aiohttp.ClientSession() as leaving:
        response = await leaving.get(images_url(proxied, order.order_id))
        await response.content.readexactly(50_000)
        assert sandbox.active_requests
        response.close()
    await sandbox.wait_until(lambda: not sandbox.active_requests)
    receipt = json.loads(await read(client, f"{proxied}/archives/{response.headers['X-Archive-Id']}"))
    assert (receipt["state"], receipt["why"]) == ("client_gone", "client-left")


async def test_errors_keep_their_documents(sandbox: Sandbox, proxied: str, client: aiohttp.ClientSession) -> None:
    """Problems of the service arrive as they are, also those that look like nginx's; the inside is not shown."""
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
    """A caller's request id is the service's too; what is none is replaced by one of nginx's."""
    for given, kept in (("order-4711", True), ("not an id", False)):
        async with client.get(f"{proxied}/health", headers={"X-Request-ID": given}) as response:
            assert (response.headers["X-Request-ID"] == given) is kept


async def test_a_list_that_is_too_long(proxied: str, client: aiohttp.ClientSession) -> None:
    """A body that nginx itself refuses, to spare its disk, gets the document that the service would answer with."""
    body = io.BytesIO(b"0" * (5 * MIB))
    async with client.post(images_url(proxied, DEMO_ORDER_ID), data=body, expect100=True) as response:
        assert (response.status, response.content_type) == (400, "application/problem+json")
        assert (await response.json())["type"] == "/problems/invalid-body"


async def test_a_broken_archive_is_a_broken_transfer(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """What the service breaks off on purpose does not arrive as a whole file."""
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


async def test_a_wait_passes(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """A download that waits for images outlives its silence, and events arrive meanwhile."""
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
async def test_a_long_silence_passes(sandbox: Sandbox, proxied: str, client: aiohttp.ClientSession) -> None:
    """A download that waits for longer than nginx would by itself goes on when the next image is ready."""
    images = [
        SandboxImage(f"{n}.jpg", body=jpeg(1000, n), content_type="image/jpeg", status=status)
        for n, status in enumerate(("processed", "processing"))
    ]
    order = sandbox.add_order(images)
    got = b""
    async with client.get(images_url(proxied, order.order_id, "?wait=180")) as response:
        with suppress(TimeoutError):
            while not response.content.at_eof():
                async with asyncio.timeout(NGINX_SILENCE_SECONDS + 5):
                    got += await response.content.readany()
        assert got
        assert not response.content.at_eof()
        sandbox.set_status(images[1].image_id, "processed")
        found = entries(got + await response.read())
    assert found == {"0.jpg": jpeg(1000, 0), "1.jpg": jpeg(1000, 1)}


async def test_no_replica_answers(closed_port: int, client: aiohttp.ClientSession, tmp_path: Path) -> None:
    """Without a replica the answer is a problem document too."""
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


def asked(folder: Path, request: str) -> list[int]:
    """Return how many replicas nginx has asked for each request that begins like this, from its log."""
    lines = (folder / "nginx.log").read_text("utf-8").splitlines()
    return [line.count("127.0.0.1:") for line in lines if f'"{request}' in line]


async def test_receipts_find_their_archive(sandbox: Sandbox, client: aiohttp.ClientSession, tmp_path: Path) -> None:
    """Whichever replica streams it, an archive's receipt and events are found, also when they are asked for first."""
    async with three_replicas(sandbox, tmp_path) as (url, replicas):
        for _ in range(12):
            archive_id = str(uuid.uuid4())
            events = asyncio.create_task(read(client, f"{url}/archives/{archive_id}/events"))
            assert len(await download(client, images_url(url, DEMO_ORDER_ID, f"?archive_id={archive_id}"))) == 14
            assert b"event: end" in await events
            assert json.loads(await read(client, f"{url}/archives/{archive_id}"))["state"] == "complete"
        assert set(asked(tmp_path, "GET /archives/")) == {1}, "none had to be searched for"
        used = [one for one in replicas if any("archive.finished" in line for line in one.lines)]
        assert len(used) > 1, "the archives are spread"


async def read(client: aiohttp.ClientSession, url: str) -> bytes:
    async with client.get(url) as response:
        assert response.status == 200, await response.text()
        return await response.read()


@dataclass
class Begun:
    """A download in its middle, which replica streams it, and what lets it go on."""

    response: aiohttp.ClientResponse
    first: bytes
    replica: RunningService
    gate: Gate


async def begin(sandbox: Sandbox, client: aiohttp.ClientSession, url: str, replicas: Sequence[RunningService]) -> Begun:
    """Begin a download whose image stops after half of its bytes."""
    order = add_order(sandbox, [200_000])
    gate = sandbox.faults.pause(order.images[0].image_id, after_bytes=100_000)
    response = await client.get(images_url(url, order.order_id))
    first = await response.content.readexactly(50_000)
    receipt = f"/archives/{response.headers['X-Archive-Id']}"
    found = [one for one in replicas if await status_of(client, one.url + receipt) == 200]
    assert len(found) == 1
    return Begun(response, first, found[0], gate)


async def status_of(client: aiohttp.ClientSession, url: str) -> int:
    async with client.get(url) as response:
        return response.status


async def until_draining(client: aiohttp.ClientSession, replica: RunningService) -> None:
    """Return when a replica has noticed that it is to stop."""
    while await status_of(client, f"{replica.url}/health/ready") != 503:
        pass


async def test_full_replicas_still_answer(sandbox: Sandbox, client: aiohttp.ClientSession, tmp_path: Path) -> None:
    """With no place left anywhere, downloads are refused, but receipts, orders and the page are there."""
    async with three_replicas(sandbox, tmp_path, MAX_ARCHIVES="1") as (url, replicas):
        begun = [await begin(sandbox, client, url, replicas) for _ in range(3)]
        for _ in range(9):
            async with client.get(images_url(url, DEMO_ORDER_ID)) as response:
                assert (response.status, response.content_type) == (503, "application/problem+json")
                assert response.headers["Retry-After"] == "10"
        for one in begun:
            assert await status_of(client, f"{url}/archives/{one.response.headers['X-Archive-Id']}") == 200
            one.gate.release()
            assert len(entries(one.first + await one.response.read())) == 1
        for path in ("/", "/health", f"/orders/{DEMO_ORDER_ID}"):
            assert await status_of(client, url + path) == 200


async def test_receipts_are_those_of_the_replica_that_took_it(
    sandbox: Sandbox, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """If an archive's own replica is full, another streams it, and its receipt is found there."""
    async with three_replicas(sandbox, tmp_path, MAX_ARCHIVES="1") as (url, replicas):
        begun = await begin(sandbox, client, url, replicas)
        while max(asked(tmp_path, f"GET /orders/{DEMO_ORDER_ID}/images"), default=0) < 2:
            archive_id = str(uuid.uuid4())
            assert len(await download(client, images_url(url, DEMO_ORDER_ID, f"?archive_id={archive_id}"))) == 14
            assert json.loads(await read(client, f"{url}/archives/{archive_id}"))["state"] == "complete"
        begun.gate.release()
        await begun.response.read()


async def test_a_replica_that_ends_finishes_its_archives(
    sandbox: Sandbox, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """A replica told to stop brings its archive to the end, while the others take what is new."""
    async with three_replicas(sandbox, tmp_path) as (url, replicas):
        begun = await begin(sandbox, client, url, replicas)
        begun.replica.process.send_signal(signal.SIGTERM)
        await until_draining(client, begun.replica)
        only = {"only": [sandbox.orders[DEMO_ORDER_ID].images[0].image_id]}
        path = f"/orders/{DEMO_ORDER_ID}/images"
        while max(asked(tmp_path, f"POST {path}"), default=0) < 2:  # until the one that ends was asked first
            async with client.post(url + path, json=only) as response:
                assert len(entries(await response.read())) == 1
        while max(asked(tmp_path, f"GET {path}"), default=0) < 2:
            assert len(await download(client, images_url(url, DEMO_ORDER_ID))) == 14
        begun.gate.release()
        assert entries(begun.first + await begun.response.read()) == {"0.jpg": jpeg(200_000, 0)}
        assert await begun.replica.process.wait() == 0


async def test_a_replica_that_is_killed_breaks_its_transfers(
    sandbox: Sandbox, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """A replica that dies in the middle gives its caller a broken transfer, never a short file; the others go on."""
    async with three_replicas(sandbox, tmp_path) as (url, replicas):
        begun = await begin(sandbox, client, url, replicas)
        begun.replica.process.kill()
        with pytest.raises(aiohttp.ClientPayloadError):
            await begun.response.read()
        for _ in range(9):
            assert len(await download(client, images_url(url, DEMO_ORDER_ID))) == 14
