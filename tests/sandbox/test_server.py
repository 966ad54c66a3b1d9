"""Start and close of the sandbox: nothing is left behind, nothing is shared with the service."""

import ast
import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import ClientError, ClientSession

import service.sandbox
from service.sandbox import DEMO_ORDER_ID, Fault, Kind, Sandbox, SandboxImage

StorageUrl = Callable[..., Awaitable[str]]


def test_sandbox_imports_nothing_of_the_service() -> None:
    """The test double must not share code with what it tests."""
    folder = Path(service.sandbox.__file__).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            ours = [name for name in names if name.split(".")[0] == "service"]
            assert all(name.startswith("service.sandbox") for name in ours), path


@pytest.mark.parametrize(
    ("kind", "after_bytes"),
    [
        (Kind.STALL, None),
        (Kind.STALL, 0),
        (Kind.STALL, 1000),
        (Kind.PAUSE, None),
        (Kind.PAUSE, 1000),
        (Kind.DRIP, None),
        (Kind.SLOW_START, None),
    ],
)
async def test_close_ends_all_handlers(kind: Kind, after_bytes: int | None) -> None:
    """Waiting handlers end with the sandbox; no task and no connection is left."""
    before = asyncio.all_tasks()
    sandbox = Sandbox()
    await sandbox.start()
    image_id = sandbox.add_order([SandboxImage(size_bytes=10_000)]).images[0].image_id
    if kind is Kind.PAUSE:
        sandbox.faults.pause(image_id, after_bytes=after_bytes)
    else:
        sandbox.faults.always(image_id, Fault(kind, after_bytes=after_bytes, delay_seconds=3600))
    url = f"{sandbox.api_base}/images/{image_id}/enhanced"
    async with ClientSession() as session:
        reading = asyncio.create_task(_download(session, url, sandbox.api_key))
        await sandbox.wait_until(lambda: sandbox.active_requests == 1)
        await sandbox.close()
        with pytest.raises((ClientError, OSError)):
            await reading
    assert sandbox.active_requests == sandbox.open_connections == 0
    assert asyncio.all_tasks() == before


async def _download(session: ClientSession, url: str, key: str) -> None:
    async with session.get(url, headers={"x-api-key": key}, allow_redirects=False) as response:
        url = str(response.url.join(response.url.with_path(response.headers["Location"])))
    async with session.get(url) as response:
        await response.read()


async def test_close_does_not_wait_for_slow_clients(sandbox: Sandbox, session: ClientSession) -> None:
    """A full socket does not delay the close."""
    image_id = sandbox.add_order([SandboxImage(size_bytes=4 * 1024**3)]).images[0].image_id
    async with session.get(f"{sandbox.api_base}/images/{image_id}/preview") as response:
        assert sandbox.active_requests == 1
        await sandbox.close()
        assert sandbox.active_requests == 0
        assert response.status == 200


async def test_disconnect_ends_the_response(sandbox: Sandbox, session: ClientSession) -> None:
    """The handler ends when its client disconnects."""
    image_id = sandbox.add_order([SandboxImage(size_bytes=4 * 1024**3)]).images[0].image_id
    async with session.get(f"{sandbox.api_base}/images/{image_id}/preview") as response:
        await response.content.readexactly(1000)
        assert sandbox.active_requests == 1
    response.close()
    await sandbox.wait_until(lambda: sandbox.active_requests == 0)
    record = sandbox.requests_for(image_id, "storage")[0]
    assert record.finished
    assert record.bytes_sent < 4 * 1024**3


async def test_ports_can_be_chosen_and_reused(sandbox: Sandbox) -> None:
    """The next sandbox can use the same ports; ports in use are an error that leaves nothing open."""
    api_port, storage_port = (int(origin.rsplit(":")[-1]) for origin in (sandbox.api_origin, sandbox.storage_origin))
    with pytest.raises(OSError, match="address already in use"):
        await Sandbox(0, storage_port).start()
    await sandbox.close()
    async with Sandbox(api_port, storage_port) as next_one:
        assert next_one.api_base == f"http://127.0.0.1:{api_port}/v3"


async def test_seed_determines_the_pictures(sandbox: Sandbox) -> None:
    """The same seed draws the same pictures, another seed others."""
    image_id = sandbox.orders[DEMO_ORDER_ID].images[0].image_id
    assert Sandbox(seed=1).body(image_id) == sandbox.body(image_id)
    assert Sandbox(seed=2).body(image_id) != sandbox.body(image_id)


async def test_latency_changes_no_content(sandbox: Sandbox, session: ClientSession) -> None:
    """``latency_seconds`` does not change the body."""
    sandbox.latency_seconds = 0.001
    image_id = sandbox.orders[DEMO_ORDER_ID].images[0].image_id
    async with session.get(f"{sandbox.api_base}/images/{image_id}/preview") as response:
        assert await response.read() == sandbox.body(image_id)
