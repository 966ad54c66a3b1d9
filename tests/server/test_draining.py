"""Graceful shutdown: SIGTERM and SIGINT while archives are in progress."""

import asyncio
import json
import shutil
import signal

import aiohttp
import pytest

from service.sandbox import DEMO_ORDER_ID, Gate, Sandbox, SandboxOrder
from tests.archives import add_order, entries, failures_in, images_in, images_url, jpeg
from tests.server.test_process import RunningService, service_process

SIGNALS = [signal.SIGTERM, signal.SIGINT]


def archive_in_mid_stream(sandbox: Sandbox) -> tuple[SandboxOrder, Gate]:
    """Add an order whose first image stops in its middle, until the gate is released."""
    order = add_order(sandbox, [400_000] * 6)
    return order, sandbox.faults.pause(order.images[0].image_id, after_bytes=200_000)


async def draining(service: RunningService, client: aiohttp.ClientSession) -> list[str]:
    """Poll the readiness until it fails, and return the reasons."""
    while True:
        async with client.get(f"{service.url}/health/ready?upstream=ignore") as response:
            if response.status == 503:
                reasons: list[str] = (await response.json())["reasons"]
                return reasons


def logged(service: RunningService) -> list[str]:
    """Return the events of the service's log."""
    return [json.loads(line)["event"] for line in service.lines]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
async def test_drain_finishes_running_archives(
    number: signal.Signals, sandbox: Sandbox, client: aiohttp.ClientSession
) -> None:
    """While draining, new archives get 503, operations endpoints still respond, and running archives finish."""
    order, gate = archive_in_mid_stream(sandbox)
    async with service_process(sandbox) as service:
        async with client.get(images_url(service.url, order.order_id)) as response:
            received = await response.content.readexactly(100_000)
            service.process.send_signal(number)
            assert await draining(service, client) == ["draining"]
            async with client.get(images_url(service.url, DEMO_ORDER_ID)) as rejected:
                assert rejected.status == 503
                assert int(rejected.headers["Retry-After"]) > 0
                problem = await rejected.json(content_type="application/problem+json")
            assert problem["type"] == "/problems/draining"
            assert not [one for one in sandbox.requests if one.order_id == DEMO_ORDER_ID]
            for path in ("/health", "/health/live", "/metrics"):
                async with client.get(service.url + path) as probe:
                    assert probe.status == 200
            gate.release()
            received += await response.read()
        assert entries(received) == {f"{n}.jpg": jpeg(400_000, n) for n in range(6)}
        assert await service.process.wait() == 0
        await service.reading
    assert "service.drain_expired" not in logged(service)
    assert logged(service)[-1] == "service.stopped"


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
async def test_archive_is_aborted_after_drain_seconds(
    number: signal.Signals, sandbox: Sandbox, client: aiohttp.ClientSession
) -> None:
    """After DRAIN_SECONDS an archive is aborted, so that the client cannot take it for a complete one."""
    order, _ = archive_in_mid_stream(sandbox)
    async with service_process(sandbox, DRAIN_SECONDS="0.2") as service:
        async with client.get(images_url(service.url, order.order_id)) as response:
            await response.content.readexactly(100_000)
            service.process.send_signal(number)
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
        assert await service.process.wait() == 0
        await service.reading
    (finished,) = [json.loads(line) for line in service.lines if '"archive.finished"' in line]
    assert finished["outcome"] == "aborted"
    assert logged(service)[-1] == "service.stopped"
    await sandbox.wait_until(lambda: sandbox.active_requests == 0)


@pytest.mark.parametrize("first", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("second", SIGNALS, ids=lambda number: f"then {number.name}")
async def test_second_signal_stops_the_drain(
    first: signal.Signals, second: signal.Signals, sandbox: Sandbox, client: aiohttp.ClientSession
) -> None:
    """A second signal aborts running archives at once; the exit code is still 0."""
    order, _ = archive_in_mid_stream(sandbox)
    async with service_process(sandbox, DRAIN_SECONDS="600") as service:
        async with client.get(images_url(service.url, order.order_id)) as response:
            await response.content.readexactly(100_000)
            service.process.send_signal(first)
            assert await draining(service, client) == ["draining"]
            assert service.process.returncode is None
            async with asyncio.timeout(30):
                service.process.send_signal(second)
                with pytest.raises(aiohttp.ClientPayloadError):
                    await response.read()
                assert await service.process.wait() == 0
        await service.reading
    (finished,) = [json.loads(line) for line in service.lines if '"archive.finished"' in line]
    assert (finished["outcome"], finished["why"]) == ("aborted", "service-stopped")
    assert "service.drain_expired" not in logged(service)
    assert [one for one in logged(service) if one in {"service.drain_aborted", "service.stopped"}] == [
        "service.drain_aborted", "service.stopped",
    ]  # fmt: skip


async def test_aborted_archive_is_an_error_for_curl(sandbox: Sandbox) -> None:
    """The exit code of curl is 18 (partial file)."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    order, _ = archive_in_mid_stream(sandbox)
    async with service_process(sandbox, DRAIN_SECONDS="0") as service:
        url = str(images_url(service.url, order.order_id))
        curl = await asyncio.create_subprocess_exec("curl", "-sSN", url, stdout=asyncio.subprocess.PIPE)
        assert curl.stdout is not None
        await curl.stdout.readexactly(100_000)
        assert await service.stop() == 0
        await curl.communicate()
    assert curl.returncode == 18


async def test_aborted_archive_resets_http_1_0(sandbox: Sandbox) -> None:
    """Without chunks a closed connection would be a clean end, so it is reset."""
    order, _ = archive_in_mid_stream(sandbox)
    async with service_process(sandbox, DRAIN_SECONDS="0") as service:
        host, port = service.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET {images_url(service.url, order.order_id).raw_path} HTTP/1.0\r\n\r\n".encode())
        await reader.readexactly(100_000)
        service.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        assert await service.process.wait() == 0


async def test_stalled_client_does_not_delay_the_shutdown(sandbox: Sandbox) -> None:
    """Buffered data for a client that does not read is discarded with its archive."""
    order = add_order(sandbox, [16 * 1024 * 1024] * 2)
    async with service_process(sandbox, DRAIN_SECONDS="0") as service:
        host, port = service.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(f"GET {images_url(service.url, order.order_id).raw_path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        assert await service.stop() == 0
        writer.transport.abort()


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
async def test_idle_connection_does_not_delay_the_shutdown(number: signal.Signals, sandbox: Sandbox) -> None:
    """An idle kept-alive connection is closed without waiting for its timeout."""
    async with service_process(sandbox) as service:
        host, port = service.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"}")
        _, idle = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(30):  # well below the 60 s of draining and the 75 s of an idle connection
            service.process.send_signal(number)
            assert await reader.read() == b""
            assert await service.process.wait() == 0
        for one in (writer, idle):
            one.close()
        await service.reading
    assert "service.draining" not in logged(service)
    assert logged(service)[-1] == "service.stopped"


async def test_disconnect_ends_the_drain(sandbox: Sandbox, client: aiohttp.ClientSession) -> None:
    """The service stops as soon as the last archive has ended, also by a disconnect."""
    order, _ = archive_in_mid_stream(sandbox)
    async with service_process(sandbox) as service:
        response = await client.get(images_url(service.url, order.order_id))
        await response.content.readexactly(100_000)
        service.process.send_signal(signal.SIGTERM)
        await draining(service, client)
        response.close()
        async with asyncio.timeout(30):  # half of what draining may take
            assert await service.process.wait() == 0
        await service.reading
    assert "service.drain_expired" not in logged(service)


async def test_drain_ends_the_wait_for_images(sandbox: Sandbox, client: aiohttp.ClientSession) -> None:
    """A download that waits for images finishes with those that are ready, and reports the others."""
    order = add_order(sandbox, [1000, 1000])
    sandbox.set_status(order.images[1].image_id, "processing")
    async with service_process(sandbox) as service:
        async with client.get(images_url(service.url, order.order_id, "?wait=600")) as response:
            service.process.send_signal(signal.SIGTERM)
            found = entries(await response.read())
        assert failures_in(found) == {"1.jpg": "not_ready"}
        assert images_in(found) == {"0.jpg": jpeg(1000, 0)}
        assert await service.process.wait() == 0
        await service.reading
    assert "service.drain_expired" not in logged(service)
