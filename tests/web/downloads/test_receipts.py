"""Receipts and their event streams over real sockets, compared with the archive's manifest."""

import asyncio
import json
import re
import socket
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr
from yarl import URL

from service.sandbox import DEMO_ORDER_ID, PARTIAL_ORDER_ID, Fault, Kind, Sandbox, SandboxImage
from tests.archives import add_order, download, images_url
from tests.conftest import StartService

FACTS = ("position", "image_id", "name", "attempts", "entry", "size", "crc32", "sha256", "reason", "detail")


async def receipt_of(client: aiohttp.ClientSession, service: str, archive_id: str) -> dict[str, Any]:
    """Return the receipt of an archive."""
    async with client.get(f"{service}/archives/{archive_id}") as response:
        assert response.status == 200, await response.text()
        found: dict[str, Any] = await response.json()
        return found


async def events_of(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, int | None, dict[str, Any]]]:
    """Yield the kind, id and data of each event."""
    fields: dict[str, str] = {}
    async for line in response.content:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            fields[name] = value
        elif "event" in fields:
            yield fields["event"], int(fields["id"]) if "id" in fields else None, json.loads(fields["data"])
            fields = {}


@pytest.mark.parametrize("order_id", [DEMO_ORDER_ID, PARTIAL_ORDER_ID])
async def test_receipt_matches_the_manifest(order_id: str, service: str, client: aiohttp.ClientSession) -> None:
    """Names, sizes, checksums, reasons and attempts of receipt and manifest are the same."""
    archive_id = str(uuid.uuid4())
    url = images_url(service, order_id, f"?manifest=always&archive_id={archive_id.upper()}")
    async with client.get(url) as response:
        assert response.headers["X-Archive-Id"] == archive_id
        size = len(await response.read())
    files = await download(client, images_url(service, order_id, "?manifest=always"))
    manifest = json.loads(files["_manifest.json"])
    receipt = await receipt_of(client, service, archive_id)
    assert [{name: one[name] for name in FACTS} for one in receipt["images"]] == [
        {name: one[name] for name in FACTS} for one in manifest["images"]
    ]
    assert receipt["state"] == ("complete" if order_id == DEMO_ORDER_ID else "partial")
    assert receipt["bytes"] == size
    assert receipt["parameters"] == {"manifest": "always"}
    assert (receipt["order_id"], receipt["problem"]) == (order_id, None)


async def test_failed_archives_have_receipts(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """An archive without images, a rejected one and an aborted one have receipts with their state."""
    service = await start_service(image_attempts=1)
    unavailable, rejected, aborted = (str(uuid.uuid4()) for _ in range(3))
    lost = sandbox.add_order([SandboxImage("a.jpg", status="error")])
    async with client.get(images_url(service, lost.order_id, f"?archive_id={unavailable}")) as response:
        assert response.status == 422
    async with client.get(images_url(service, DEMO_ORDER_ID, f"?archive_id={rejected}&quality=x")) as response:
        assert response.status == 400
    order = add_order(sandbox, [100_000, 1000])
    gate = sandbox.faults.pause(order.images[0].image_id, after_bytes=70_000)
    sandbox.faults.always(order.images[1].image_id, Fault(Kind.RESET))
    url = images_url(service, order.order_id, f"?archive_id={aborted}&on_error=abort")
    download_task = asyncio.create_task(client.get(url))
    await sandbox.wait_until(lambda: sum(sandbox.faults.injected.values()) == 2)
    response = await download_task
    gate.release()
    with pytest.raises(aiohttp.ClientPayloadError):
        await response.read()
    found = [await receipt_of(client, service, one) for one in (unavailable, rejected, aborted)]
    assert [one["state"] for one in found] == ["rejected", "rejected", "aborted"]
    assert found[0]["problem"]["type"] == "/problems/no-images-available"
    assert found[0]["problem"]["failures"][0]["reason"] == "processing_failed"
    assert found[1]["problem"]["parameter"] == "quality"
    assert found[2]["why"] == "image-missing"


async def test_download_rejected_at_capacity_has_no_receipt(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """Receipt and events are a 404 with the rejection, since another replica may have it; the id can be reused."""
    service = await start_service(max_archives=1)
    order, archive_id = add_order(sandbox, [100_000]), str(uuid.uuid4())
    gate = sandbox.faults.pause(order.images[0].image_id, after_bytes=70_000)
    url = images_url(service, DEMO_ORDER_ID, f"?archive_id={archive_id}")
    events = asyncio.create_task(client.get(f"{service}/archives/{archive_id}/events"))  # started before the download
    async with client.get(images_url(service, order.order_id)) as running:
        await running.content.readexactly(50_000)
        async with client.get(url) as rejected_response:
            assert rejected_response.status == 503
            problem = await rejected_response.json(content_type=None)
        for request in (events, client.get(f"{service}/archives/{archive_id}")):
            async with await request as response:
                assert response.status == 404
                found = await response.json(content_type=None)
            assert found["type"] == "/problems/archive-not-found"
            assert found["refused"] == {name: value for name, value in problem.items() if name != "instance"}
        gate.release()
        await running.read()
    await download(client, url)
    assert (await receipt_of(client, service, archive_id))["state"] == "complete"


async def test_archive_id_is_used_once(service: str, client: aiohttp.ClientSession) -> None:
    """An id in use is a 409, an invalid one a 400, and an unknown receipt a 404."""
    archive_id = str(uuid.uuid4())
    url = images_url(service, DEMO_ORDER_ID, f"?archive_id={archive_id}")
    await download(client, url)
    for path, status, slug in (
        (url, 409, "archive-id-in-use"),
        (images_url(service, DEMO_ORDER_ID, "?archive_id=mine"), 400, "invalid-parameter"),
        (f"{service}/archives/mine", 400, "invalid-archive-id"),
        (f"{service}/archives/{uuid.uuid4()}", 404, "archive-not-found"),
    ):
        async with client.get(path) as response:
            assert (response.status, (await response.json())["type"]) == (status, f"/problems/{slug}")


async def test_events_add_up_to_the_receipt(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """A watcher that starts before the download gets all of its events; together they are the receipt."""
    order = add_order(sandbox, [100_000, 2000, 300])
    gate = sandbox.faults.pause(order.images[0].image_id, after_bytes=50_000)
    archive_id = str(uuid.uuid4())

    async def watch() -> list[tuple[str, int | None, dict[str, Any]]]:
        async with client.get(f"{service}/archives/{archive_id}/events") as response:
            assert response.content_type == "text/event-stream"
            assert response.headers["X-Accel-Buffering"] == "no"
            seen = []
            async for one in events_of(response):
                seen.append(one)
                if one[0] in {"snapshot", "image"} and one[2].get("state") in {"writing", "streaming"}:
                    gate.release()
            return seen

    watching = asyncio.create_task(watch())
    download_task = asyncio.create_task(client.get(images_url(service, order.order_id, f"?archive_id={archive_id}")))
    async with await download_task as response:
        await response.read()
    seen = await watching
    kinds = [kind for kind, _, _ in seen]
    assert (kinds[0], kinds[-1], kinds.count("end")) == ("snapshot", "end", 1)
    versions = [version for _, version, _ in seen if version is not None]
    assert versions == sorted(versions)
    state = seen[0][2]
    for kind, _, data in seen[1:]:
        if kind == "image":
            image = state["images"][data["position"]]
            image |= {name: value for name, value in data.items() if name in image}
            state |= {name: value for name, value in data.items() if name in {"downloaded", "failed", "bytes"}}
        else:
            state |= data
    assert state == await receipt_of(client, service, archive_id)


async def test_reconnected_watcher_gets_the_changes(service: str, client: aiohttp.ClientSession) -> None:
    """Last-Event-ID gets the changes since then, an unknown id everything, and the id of the end a 204."""
    archive_id = str(uuid.uuid4())
    await download(client, images_url(service, DEMO_ORDER_ID, f"?archive_id={archive_id}"))

    async def watch(last: str | None) -> list[tuple[str, int | None, dict[str, Any]]]:
        headers = {"Last-Event-ID": last} if last is not None else {}
        async with client.get(f"{service}/archives/{archive_id}/events", headers=headers) as response:
            assert response.headers["Cache-Control"] == "no-store, no-transform"
            return [one async for one in events_of(response)]

    everything = await watch(None)
    assert [kind for kind, _, _ in everything] == ["snapshot", "end"]
    changes = [kind for kind, _, _ in await watch("1")]
    assert changes == ["archive", *["image"] * 14, "end"]
    for nonsense in ("x", "-1", "99999", "0"):
        assert await watch(nonsense) == everything
    (_, of_snapshot, _), (_, of_end, _) = everything
    assert await watch(str(of_snapshot)) == everything[1:], "a disconnect between the two loses nothing"
    headers = {"Last-Event-ID": str(of_end)}
    async with client.get(f"{service}/archives/{archive_id}/events", headers=headers) as response:
        assert response.status == 204, "which stops the reconnects of a browser"


async def test_idle_event_stream_has_heartbeats(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While there are no events, comments are sent periodically."""
    monkeypatch.setattr("service.web.downloads.events.PROGRESS_SECONDS", 0.01)
    monkeypatch.setattr("service.web.downloads.events.HEARTBEAT_SECONDS", 0.05)
    order = add_order(sandbox, [400_000])
    gate = sandbox.faults.pause(order.images[0].image_id, after_bytes=100_000)
    archive_id = str(uuid.uuid4())
    async with (
        client.get(images_url(service, order.order_id, f"?archive_id={archive_id}")) as archive,
        client.get(f"{service}/archives/{archive_id}/events") as watching,
    ):
        for _ in range(3):
            await watching.content.readuntil(b"\n: heartbeat\n\n")
        gate.release()
        await archive.read()
        assert b"event: end" in await watching.read()


async def test_progress_events_have_no_id(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The progress of a large image is sent without an id: a reconnect never continues from it."""
    monkeypatch.setattr("service.web.downloads.events.PROGRESS_SECONDS", 0.02)
    order = add_order(sandbox, [50_000])
    sandbox.faults.script(order.images[0].image_id, [Fault(Kind.DRIP)])
    archive_id = str(uuid.uuid4())
    async with (
        client.get(images_url(service, order.order_id, f"?archive_id={archive_id}")) as archive,
        client.get(f"{service}/archives/{archive_id}/events") as watching,
    ):
        reading = asyncio.create_task(archive.read())
        events = [one async for one in events_of(watching)]
        await reading
    sizes = [data["bytes"] for kind, version, data in events if (kind, version) == ("archive", None)]
    assert len(sizes) > 1
    assert sizes == sorted(set(sizes))


async def test_head_starts_no_event_stream(service: str, client: aiohttp.ClientSession) -> None:
    """HEAD has no body: on a kept-alive connection a stream would be read as the next response."""
    archive_id = str(uuid.uuid4())
    await download(client, images_url(service, DEMO_ORDER_ID, f"?archive_id={archive_id}"))
    async with client.head(f"{service}/archives/{archive_id}/events") as response:
        assert response.status == 405
    async with client.head(f"{service}/archives/{archive_id}") as response:
        assert response.status == 200


@asynccontextmanager
async def stalled_watcher(service: str, archive_id: str) -> AsyncIterator[socket.socket]:
    """Request an archive's events and read none of them, with minimal socket buffers on both sides."""
    loop, url = asyncio.get_running_loop(), URL(service)
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        # The peer's kernel sizes its buffer by segments, so these are small.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        await loop.sock_connect(sock, (url.host, url.port))
        request = f"GET /archives/{archive_id}/events HTTP/1.1\r\nHost: {url.host}\r\n\r\n"
        await loop.sock_sendall(sock, request.encode())
        yield sock


async def sse_connections(client: aiohttp.ClientSession, service: str) -> int:
    """Return the number of open event streams."""
    async with client.get(f"{service}/metrics") as response:
        (found,) = re.findall(r"^batch_sse_connections (\S+)$", await response.text(), re.MULTILINE)
    return int(float(found))


async def test_stalled_watcher_does_not_delay_the_archive(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """An archive of 1,000 images completes while a watcher does not read its events."""
    service = await start_service(upstream_requests_per_second=10_000)
    sandbox.rate_limit = None
    order = add_order(sandbox, [100] * 1000)
    archive_id = str(uuid.uuid4())
    async with stalled_watcher(service, archive_id):
        files = await download(client, images_url(service, order.order_id, f"?archive_id={archive_id}"))
        assert len(files) == 1000
        assert await sse_connections(client, service) == 1
        assert (await receipt_of(client, service, archive_id))["state"] == "complete"


async def test_stalled_watcher_is_disconnected(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """After CLIENT_STALL_SECONDS its connection is aborted and its slot is free, while the archive goes on."""
    service = await start_service(client_stall_seconds=0.5, upstream_requests_per_second=10_000)
    sandbox.rate_limit = None
    order = add_order(sandbox, [100] * 1000)
    gate = sandbox.faults.pause(order.images[0].image_id, origin="api")
    archive_id = str(uuid.uuid4())
    download_task = asyncio.create_task(client.get(images_url(service, order.order_id, f"?archive_id={archive_id}")))
    await gate.reached.wait()
    began = time.monotonic()
    async with stalled_watcher(service, archive_id) as sock, asyncio.timeout(30):
        seen = [await sse_connections(client, service)]
        while seen[-1] or not any(seen):
            seen.append(await sse_connections(client, service))
        assert time.monotonic() - began >= 0.5
        assert (await receipt_of(client, service, archive_id))["state"] == "streaming"
        received = b""
        while piece := await asyncio.get_running_loop().sock_recv(sock, 65536):
            received += piece
        assert b"event: snapshot" in received
        assert not received.endswith(b"\r\n0\r\n\r\n"), "an aborted stream must not look complete"
    gate.release()
    async with await download_task as response:
        await response.read()


async def test_receipts_require_a_key(start_service: StartService, client: aiohttp.ClientSession) -> None:
    """With SERVICE_API_KEYS receipts and events require a key."""
    service = await start_service(service_api_keys=(SecretStr("a-key-for-clients"),))
    for path in (f"/archives/{uuid.uuid4()}", f"/archives/{uuid.uuid4()}/events"):
        async with client.get(service + path) as response:
            assert response.status == 401


async def test_receipts_are_counted(service: str, client: aiohttp.ClientSession) -> None:
    """Metrics have the number of receipts and of event streams."""
    await download(client, images_url(service, DEMO_ORDER_ID))
    async with client.get(f"{service}/metrics") as response:
        text = await response.text()
    assert "batch_receipts 1.0" in text
    assert "batch_sse_connections 0.0" in text
