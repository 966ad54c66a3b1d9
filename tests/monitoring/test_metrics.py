"""Exact counts after archives with scripted faults, over real sockets, and the log lines that say the same."""

import asyncio
import io
import json
import logging
import re
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
import structlog
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from yarl import URL

from service.archive.writer import ArchiveWriter
from service.model import ArchiveOutcome, Reason
from service.monitoring.logs import configure_logs
from service.monitoring.metrics import ARCHIVE_ROUTE, ARCHIVE_STATUSES, LAG_INTERVAL_SECONDS, Metrics, observe_loop_lag
from service.sandbox import DEMO_ORDER_ID, EMPTY_ORDER_ID, PARTIAL_ORDER_ID, Fault, Kind, Sandbox, SandboxImage
from service.server.run import serving
from service.upstream.rate_limiter import RateLimiter
from tests.archives import add_order, download, entries, images_url, jpeg
from tests.conftest import StartService, settings_for

SIZE, CUT = 300_000, 120_000
BROKEN = Fault(Kind.STATUS, status=404)
RESET = Fault(Kind.RESET, after_bytes=CUT)
ADMIN = "operators-only-7"


class Scrape:
    """The values of one scrape, as in ``scrape("batch_images_total", outcome="failed")``."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = [one for family in parse_text(text) for one in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """Return the sum of the series with these labels, of which there must be one."""
        found = [one.value for one in self.samples if one.name == name and labels.items() <= one.labels.items()]
        assert found, f"there is no {name} with {labels}"
        return sum(found)

    def above_zero(self, name: str) -> dict[tuple[str, ...], float]:
        """Return the values that are not 0, by their labels."""
        return {tuple(one.labels.values()): one.value for one in self.samples if one.name == name and one.value}


async def scrape_after(client: aiohttp.ClientSession, service: str, archives: int = 1) -> Scrape:
    """Scrape until so many archives have been accounted for: the last byte reaches its reader before that."""
    while True:
        async with client.get(f"{service}/metrics") as response:
            scrape = Scrape(await response.text())
        if scrape("batch_archives_total") >= archives:
            return scrape


@pytest.fixture
def logged(sandbox: Sandbox) -> Iterator[io.StringIO]:
    """What the service logs, at every level; afterwards the logs are as they were."""
    root, zipstream = logging.getLogger(), logging.getLogger("zipstream.ng")
    before = root.handlers, root.level, zipstream.level
    stream = io.StringIO()
    configure_logs(log_format="json", level="debug", secrets=[sandbox.api_key], stream=stream)
    yield stream
    root.handlers = before[0]
    root.setLevel(before[1])
    zipstream.setLevel(before[2])
    structlog.reset_defaults()


def events(logged: io.StringIO, name: str) -> list[dict[str, Any]]:
    """Return the events of one name."""
    lines = [json.loads(line) for line in logged.getvalue().splitlines()]
    return [line for line in lines if line["event"] == name]


async def test_complete_archive(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """After one whole archive every counter says exactly what happened."""
    order = add_order(sandbox, [1000, 2000, 70_000])
    async with client.get(images_url(service, order.order_id)) as response:
        data = await response.read()
    scrape = await scrape_after(client, service)
    assert scrape.above_zero("batch_archives_total") == {("complete",): 1}
    assert scrape.above_zero("batch_images_total") == {("downloaded", ""): 3}
    assert scrape.above_zero("batch_upstream_requests_total") == {
        ("api", "200"): 1,
        ("api", "302"): 3,
        ("asset", "302"): 3,
        ("storage", "200"): 3,
    }
    assert scrape("batch_image_bytes_total") == scrape("batch_image_size_bytes_sum") == 73_000
    assert scrape("batch_image_size_bytes_bucket", le="65536.0") == 2
    assert scrape("batch_image_size_bytes_bucket", le="6.7108864e+07") == 3
    assert scrape("batch_archive_bytes_total") == len(data)
    for name in ("batch_archive_first_byte_seconds_count", "batch_archive_duration_seconds_count"):
        assert scrape(name) == 1
    assert scrape("batch_image_duration_seconds_count") == 3
    assert [
        scrape("batch_upstream_request_duration_seconds_count", hop=hop) for hop in ("api", "asset", "storage")
    ] == [4, 3, 3]
    assert scrape("batch_http_requests_total", route=ARCHIVE_ROUTE, method="GET", status="200") == 1
    assert scrape("batch_upstream_blocked_seconds_total") > 0, "the first byte was waited for"
    for name in (
        "batch_archives_in_progress",
        "batch_archive_slots_in_use",
        "batch_client_blocked_seconds_total",
        "batch_credits_spent_total",
        "batch_image_resumes_total",
        "batch_image_retries_total",
        "batch_image_rollbacks_total",
        "batch_rate_limit_wait_seconds_total",
        "batch_read_ahead_bytes",
        "batch_upstream_failing",
        "batch_upstream_throttled_total",
    ):
        assert scrape(name) == 0, name
    assert scrape("batch_read_ahead_limit_bytes") == 64 * 1024 * 1024
    assert scrape("batch_build_info") == scrape("python_info") == 1


async def test_partial_archive(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession, logged: io.StringIO
) -> None:
    """A failed image is counted by its reason, and the archive as partial, in the log too."""
    order = add_order(sandbox, [1000] * 3)
    sandbox.faults.always(order.images[1].image_id, BROKEN, origin="api")
    async with client.get(images_url(service, order.order_id), headers={"X-Request-ID": "call-1"}) as response:
        data = await response.read()
        archive_id = response.headers["X-Archive-Id"]
    scrape = await scrape_after(client, service)
    assert scrape.above_zero("batch_archives_total") == {("partial",): 1}
    assert scrape.above_zero("batch_images_total") == {("downloaded", ""): 2, ("failed", "not_found"): 1}
    assert scrape("batch_upstream_requests_total", hop="api", status="404") == 1
    (finished,) = events(logged, "archive.finished")
    times = {name: finished.pop(name) for name in list(finished) if name.endswith("seconds")}
    assert times["client_blocked_seconds"] == 0
    assert times["seconds"] >= times["first_byte_seconds"] >= 0
    assert times["upstream_blocked_seconds"] >= 0
    del finished["timestamp"]
    assert finished == {
        "event": "archive.finished",
        "level": "info",
        "logger": "service.web.downloads.record",
        "request_id": "call-1",
        "archive_id": archive_id,
        "order_id": order.order_id,
        "outcome": "partial",
        "why": "not_found",
        "images": 3,
        "downloaded": 2,
        "failed": 1,
        "attempts": 3,
        "bytes": len(data),
        "credits_spent": 0,
    }
    of_images = events(logged, "image.downloaded") + events(logged, "image.failed")
    assert {line["image_id"] for line in of_images} == {image.image_id for image in order.images}
    assert len(of_images) == 3
    assert all(0 < one["seconds"] <= times["seconds"] for one in of_images)
    assert {(one["request_id"], one["archive_id"], one["order_id"]) for one in of_images} == {
        ("call-1", archive_id, order.order_id)
    }


async def test_no_archive(sandbox: Sandbox, service: str, client: aiohttp.ClientSession, logged: io.StringIO) -> None:
    """An order whose requested images all failed is counted as such."""
    order = add_order(sandbox, [1000] * 2)
    for image in order.images:
        sandbox.faults.always(image.image_id, BROKEN, origin="api")
    async with client.get(images_url(service, order.order_id)) as response:
        assert response.status == 422
    scrape = await scrape_after(client, service)
    assert scrape.above_zero("batch_archives_total") == {("failed",): 1}
    assert scrape.above_zero("batch_images_total") == {("failed", "not_found"): 2}
    assert scrape("batch_archive_first_byte_seconds_count") == scrape("batch_archive_duration_seconds_count") == 0
    (finished,) = events(logged, "archive.finished")
    assert (finished["outcome"], finished["why"]) == ("failed", "no-images-available")
    assert (finished["first_byte_seconds"], finished["bytes"], finished["failed"]) == (None, 0, 2)


@pytest.mark.parametrize(
    ("path", "changes", "status", "why"),
    [
        pytest.param("/orders/42/images", {}, 400, "invalid-order-id", id="id"),
        pytest.param(f"/orders/{'x' * 5000}/images", {}, 400, "invalid-order-id", id="long id"),
        pytest.param(f"/orders/{DEMO_ORDER_ID}/images?a=b", {}, 400, "unknown-parameter", id="parameter"),
        pytest.param(f"/orders/{EMPTY_ORDER_ID}/images", {}, 404, "order-empty", id="empty"),
        pytest.param(f"/orders/{PARTIAL_ORDER_ID}/images?on_error=abort", {}, 422, "no-images-available", id="plan"),
        pytest.param(
            f"/orders/{DEMO_ORDER_ID}/images", {"max_images_per_order": 1}, 413, "too-many-images", id="too many"
        ),
        pytest.param(
            f"/orders/{DEMO_ORDER_ID}/images", {"autoenhance_api_key": None}, 503, "api-key-not-configured", id="no key"
        ),
    ],
)
async def test_rejected(
    path: str,
    changes: dict[str, Any],
    status: int,
    why: str,
    start_service: StartService,
    client: aiohttp.ClientSession,
    logged: io.StringIO,
) -> None:
    """A rejection before any image request is counted once, and not in the histograms of archives."""
    service = await start_service(**changes)
    async with client.get(URL(service + path, encoded=True)) as response:
        assert response.status == status
    scrape = await scrape_after(client, service)
    assert scrape.above_zero("batch_archives_total") == {("rejected",): 1}
    assert scrape.above_zero("batch_images_total") == {}
    assert scrape("batch_http_requests_total", route=ARCHIVE_ROUTE, method="GET", status=str(status)) == 1
    assert scrape("batch_archive_first_byte_seconds_count") == scrape("batch_archive_duration_seconds_count") == 0
    (finished,) = events(logged, "archive.finished")
    assert (finished["outcome"], finished["why"], finished["images"]) == ("rejected", why, 0)
    assert len(finished["order_id"]) <= 36


async def test_rejected_by_the_look_up_and_by_capacity(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession, logged: io.StringIO
) -> None:
    """A look-up that fails, and a full house, are refusals too; the archive that fills the house is one of its own."""
    service = await start_service(max_archives=1, image_attempts=1)
    order = add_order(sandbox, [1000] * 2)
    sandbox.faults.order(order.order_id, [Fault(Kind.STATUS, status=503)])
    async with client.get(images_url(service, order.order_id)) as response:
        assert response.status == 502
    gate = sandbox.faults.pause(order.images[1].image_id)
    async with client.get(images_url(service, order.order_id)) as response:
        async with client.get(images_url(service, order.order_id)) as refused:
            assert refused.status == 503
        running = await scrape_after(client, service, archives=2)
        assert running.above_zero("batch_archives_total") == {("rejected",): 2}
        assert running("batch_archives_in_progress") == 1
        gate.release()
        await response.read()
    scrape = await scrape_after(client, service, archives=3)
    assert scrape.above_zero("batch_archives_total") == {("complete",): 1, ("rejected",): 2}
    whys = [line["why"] for line in events(logged, "archive.finished")]
    assert whys == ["upstream-failed", "at-capacity", None]


async def test_head_is_no_archive(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """A HEAD request is counted as a request only."""
    order = add_order(sandbox, [1000])
    async with client.head(images_url(service, order.order_id)) as response:
        assert response.status == 200
    scrape = await scrape_after(client, service, archives=0)
    assert scrape("batch_archives_total") == 0
    assert scrape("batch_http_requests_total", route=ARCHIVE_ROUTE, method="HEAD", status="200") == 1


async def test_aborted(sandbox: Sandbox, service: str, client: aiohttp.ClientSession, logged: io.StringIO) -> None:
    """An archive aborted by on_error=abort is counted as aborted, with its duration."""
    order = add_order(sandbox, [100_000] * 2)
    first = sandbox.faults.pause(order.images[0].image_id, after_bytes=50_000)
    sandbox.faults.always(order.images[1].image_id, BROKEN)
    async with client.get(images_url(service, order.order_id, "?on_error=abort")) as response:
        await response.content.readexactly(40_000)
        first.release()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    scrape = await scrape_after(client, service)
    assert scrape.above_zero("batch_archives_total") == {("aborted",): 1}
    assert scrape.above_zero("batch_images_total") == {("downloaded", ""): 1, ("failed", "not_found"): 1}
    assert scrape("batch_archive_duration_seconds_count") == 1
    (finished,) = events(logged, "archive.finished")
    assert (finished["outcome"], finished["why"]) == ("aborted", "image-missing")


async def test_fault_of_our_own(
    sandbox: Sandbox,
    service: str,
    client: aiohttp.ClientSession,
    logged: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When the service itself fails in mid-archive, metrics and log say so."""
    order = add_order(sandbox, [1000])

    def fail(_writer: ArchiveWriter) -> None:
        raise RuntimeError("a fault of our own")

    monkeypatch.setattr(ArchiveWriter, "finish", fail)
    with pytest.raises(aiohttp.ClientPayloadError):
        await download(client, images_url(service, order.order_id))
    scrape = await scrape_after(client, service)
    assert scrape.above_zero("batch_archives_total") == {("aborted",): 1}
    (finished,) = events(logged, "archive.finished")
    assert finished["why"] == "internal-error"
    (failed,) = events(logged, "request.failed")
    (ended,) = [one for one in events(logged, "http.request") if one["path"].endswith("/images")]
    names = ("request_id", "archive_id", "order_id")
    assert [failed[name] for name in names] == [ended[name] for name in names] == [finished[name] for name in names]


async def test_probes_that_succeed_are_not_in_the_way(
    start_service: StartService, client: aiohttp.ClientSession, logged: io.StringIO
) -> None:
    """A 200 of health and metrics is logged at debug; what fails there, and every other request, at info."""
    service = await start_service(autoenhance_api_key=None)
    expected = {
        "/health": "debug",
        "/health/live": "debug",
        "/metrics": "debug",
        "/health/ready": "info",
        "/health/none": "info",
        "/api/stats": "info",
    }
    for path in expected:
        async with client.get(service + path) as response:
            assert response.status == {"/health/ready": 503, "/health/none": 404}.get(path, 200)
    async with client.get(f"{service}/health/live?upstream=1", headers={"Host": "no host"}) as response:
        assert response.status == 400
    lines = events(logged, "http.request")
    assert {line["path"]: line["level"] for line in lines[:-1]} == expected
    assert (lines[-1]["path"], lines[-1]["level"]) == ("/health/live", "info")


async def test_lines_of_a_connection_are_kept_apart(sandbox: Sandbox, service: str, logged: io.StringIO) -> None:
    """What is bound to one request is not found in the lines of the next on the same connection."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as one_connection:
        await download(one_connection, images_url(service, add_order(sandbox, [1000]).order_id))
        await scrape_after(one_connection, service)
    first, *others = events(logged, "http.request")
    assert {"request_id", "archive_id", "order_id"} <= first.keys()
    assert others
    for line in others:
        assert line["request_id"] != first["request_id"]
        assert not {"archive_id", "order_id"} & line.keys()


async def test_client_gone_during_the_look_up(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession, logged: io.StringIO
) -> None:
    """A client that leaves before its order is known is counted like any other that leaves."""
    sandbox.faults.order(DEMO_ORDER_ID, [Fault(Kind.STALL)])
    request = asyncio.create_task(client.get(images_url(service, DEMO_ORDER_ID)))
    await sandbox.wait_until(lambda: len(sandbox.requests) == 1)
    looking_up = await scrape_after(client, service, archives=0)
    assert (looking_up("batch_archive_slots_in_use"), looking_up("batch_archives_in_progress")) == (1, 0)
    request.cancel()
    scrape = await scrape_after(client, service)
    assert scrape.above_zero("batch_archives_total") == {("client_gone",): 1}
    assert scrape.above_zero("batch_upstream_requests_total") == {}, "what is called off is not counted"
    (finished,) = events(logged, "archive.finished")
    assert (finished["why"], finished["images"]) == ("client-left", 0)


async def test_client_stalled(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession, logged: io.StringIO
) -> None:
    """A client that takes nothing for too long counts as gone, and the log says why."""
    service = await start_service(client_stall_seconds=0.1)
    order = add_order(sandbox, [6_000_000] * 6)
    async with client.get(images_url(service, order.order_id)) as response:
        assert response.status == 200
        scrape = await scrape_after(client, service)
    assert scrape.above_zero("batch_archives_total") == {("client_gone",): 1}
    assert events(logged, "archive.finished")[0]["why"] == "client-stalled"


async def test_service_stopped(sandbox: Sandbox, client: aiohttp.ClientSession, logged: io.StringIO) -> None:
    """An archive that the end of the service breaks off is aborted, not left by its client."""
    order = add_order(sandbox, [100_000])
    gate = sandbox.faults.pause(order.images[0].image_id, after_bytes=50_000)
    async with AsyncExitStack() as stack:
        async with serving(settings_for(sandbox)) as service:
            response = await stack.enter_async_context(client.get(images_url(service, order.order_id)))
            await gate.reached.wait()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    (finished,) = events(logged, "archive.finished")
    assert (finished["outcome"], finished["why"]) == ("aborted", "service-stopped")


async def test_client_gone(sandbox: Sandbox, service: str, client: aiohttp.ClientSession, logged: io.StringIO) -> None:
    """A client that leaves is counted, and its request has no status."""
    order = add_order(sandbox, [400_000])
    sandbox.faults.pause(order.images[0].image_id, after_bytes=100_000)
    response = await client.get(images_url(service, order.order_id))
    await response.content.readexactly(50_000)
    response.close()
    scrape = await scrape_after(client, service)
    assert scrape.above_zero("batch_archives_total") == {("client_gone",): 1}
    assert scrape("batch_http_requests_total", route=ARCHIVE_ROUTE, method="GET", status="none") == 1
    assert scrape("batch_archives_in_progress") == 0
    (finished,) = events(logged, "archive.finished")
    assert finished["why"] == "client-left"
    assert finished["bytes"] >= 50_000


RETRIES = [
    pytest.param([Fault(Kind.RESET)], "storage", "connection_lost", ("storage", "error"), id="reset"),
    pytest.param([Fault(Kind.STALL)], "storage", "timeout", ("storage", "error"), id="stall"),
    pytest.param([Fault(Kind.REFUSED)], "asset", "connection_failed", ("storage", "error"), id="refused"),
    pytest.param([Fault(Kind.STATUS, status=503)], "storage", "upstream_error", ("storage", "503"), id="503"),
    pytest.param([Fault(Kind.STATUS, status=500)], "asset", "upstream_error", ("asset", "500"), id="500 asset"),
    # The first one is on the connection of the API's own response: that request is sent once more, on a new one.
    pytest.param([Fault(Kind.RESET)] * 2, "asset", "connection_lost", ("asset", "error"), id="reset asset"),
    pytest.param([Fault(Kind.STATUS, status=502)], "api", "upstream_error", ("api", "502"), id="502 api"),
    pytest.param([Fault(Kind.HTML)], "storage", "not_an_image", ("storage", "200"), id="HTML"),
    pytest.param([Fault(Kind.EXPIRED_TARGET)], "storage", "upstream_error", ("storage", "403"), id="expired"),
]


@pytest.mark.parametrize(("script", "origin", "reason", "request_"), RETRIES)
async def test_retries(
    script: list[Fault],
    origin: Any,
    reason: str,
    request_: tuple[str, str],
    sandbox: Sandbox,
    start_service: StartService,
    client: aiohttp.ClientSession,
    logged: io.StringIO,
) -> None:
    """A try that fails is counted by its reason, and its request by station and status."""
    service = await start_service(image_timeout_seconds=0.4)
    order = add_order(sandbox, [1000])
    sandbox.faults.script(order.images[0].image_id, script, origin=origin)
    await download(client, images_url(service, order.order_id))
    scrape = await scrape_after(client, service)
    assert scrape.above_zero("batch_archives_total") == {("complete",): 1}
    assert scrape.above_zero("batch_image_retries_total") == {(reason,): 1}
    hop, status = request_
    assert scrape("batch_upstream_requests_total", hop=hop, status=status) == (2 if status == "200" else 1)
    (retried,) = events(logged, "image.retried")
    assert (retried["reason"], retried["attempt"]) == (reason, 1)
    assert {"request_id", "archive_id", "order_id", "image_id"} <= retried.keys()
    (finished,) = events(logged, "archive.finished")
    assert finished["attempts"] == 2


@pytest.mark.parametrize(
    ("etags", "script", "resumed", "rollbacks"),
    [
        pytest.param(True, [RESET], {("range",): 1}, 0, id="range"),
        pytest.param(False, [RESET], {("replay",): 1}, 0, id="replay"),
        pytest.param(True, [RESET, RESET], {("range",): 2}, 0, id="twice"),
        pytest.param(True, [RESET, Fault(Kind.CHANGED)], {}, 1, id="changed"),
    ],
)
async def test_resumes_and_rollbacks(
    etags: bool,  # noqa: FBT001
    script: list[Fault],
    resumed: dict[tuple[str, ...], float],
    rollbacks: int,
    sandbox: Sandbox,
    service: str,
    client: aiohttp.ClientSession,
    logged: io.StringIO,
) -> None:
    """How an image went on after a break is counted by its way; a new copy rolls the entry back."""
    order = sandbox.add_order([SandboxImage("0.jpg", body=jpeg(SIZE), etags=etags)])
    sandbox.faults.script(order.images[0].image_id, script)
    async with client.get(images_url(service, order.order_id)) as response:
        assert len(entries(await response.read())) == 1
    scrape = await scrape_after(client, service)
    assert scrape.above_zero("batch_image_resumes_total") == resumed
    assert scrape("batch_image_rollbacks_total") == rollbacks
    assert scrape("batch_image_retries_total", reason="truncated") == script.count(RESET)
    assert len(events(logged, "image.resumed")) == sum(resumed.values())
    assert len(events(logged, "image.rolled_back")) == rollbacks
    assert scrape("batch_image_duration_seconds_count") == 1


async def test_429_pauses_the_process(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """Each 429 of the API is counted as a pause of the whole process."""
    order = add_order(sandbox, [1000] * 2)
    for image in order.images:
        sandbox.faults.script(image.image_id, [Fault(Kind.STATUS, status=429, retry_after=0)], origin="api")
    await download(client, images_url(service, order.order_id))
    scrape = await scrape_after(client, service)
    assert scrape("batch_upstream_throttled_total") == 2
    assert scrape.above_zero("batch_image_retries_total") == {("rate_limited",): 2}
    assert scrape("batch_upstream_requests_total", hop="api", status="429") == 2


async def test_rate_limiter_returns_the_wait() -> None:
    """A turn that is free takes no time at all; one behind a pause takes the pause."""
    now = [100.0]

    async def sleep(seconds: float) -> None:
        now[0] += seconds

    limiter = RateLimiter(1000, clock=lambda: now[0], sleep=sleep)
    assert await limiter.acquire() == 0
    limiter.pause(2.5)
    assert await limiter.acquire() == 2.5
    assert await limiter.acquire() == 0


async def test_waiting_for_turns_is_counted(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """The waits for the service's own rate limit are counted; ``tests/upstream`` has the exact times."""
    service = await start_service(upstream_requests_per_second=20)
    await download(client, images_url(service, add_order(sandbox, [1000] * 4).order_id))
    scrape = await scrape_after(client, service)
    assert scrape("batch_rate_limit_wait_seconds_total") > 0


@pytest.mark.parametrize(
    ("query", "spent"),
    [
        pytest.param("", 0, id="preview"),
        pytest.param("?preview=false&dev_mode=true", 0, id="dev mode"),
        pytest.param("?preview=false", 2, id="full quality"),
    ],
)
async def test_credits(
    query: str, spent: int, sandbox: Sandbox, service: str, client: aiohttp.ClientSession, logged: io.StringIO
) -> None:
    """Credits are counted for what is bought and arrives: not for previews, nor for what is paid for already."""
    images = [SandboxImage(f"{n}.jpg", body=jpeg(900), content_type="image/jpeg", downloaded=n == 0) for n in range(3)]
    order = sandbox.add_order(images)
    await download(client, images_url(service, order.order_id, query))
    scrape = await scrape_after(client, service)
    assert scrape("batch_credits_spent_total") == spent == sandbox.credits_spent
    (finished,) = events(logged, "archive.finished")
    assert finished["credits_spent"] == spent


async def test_time_blocked_by_the_upstream(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession, logged: io.StringIO
) -> None:
    """While the storage pauses, the archive's time counts against the upstream, and not against the client."""
    order = add_order(sandbox, [50_000])
    gate = sandbox.faults.pause(order.images[0].image_id, after_bytes=40_000)
    async with client.get(images_url(service, order.order_id)) as response:
        await response.content.readexactly(39_000)
        await gate.reached.wait()
        await scrape_after(client, service, archives=0)
        since = time.monotonic()
        await scrape_after(client, service, archives=0)
        waited_seconds = time.monotonic() - since
        gate.release()
        await response.read()
    scrape = await scrape_after(client, service)
    assert scrape("batch_upstream_blocked_seconds_total") >= waited_seconds > 0
    assert scrape("batch_client_blocked_seconds_total") == 0
    (finished,) = events(logged, "archive.finished")
    assert finished["client_blocked_seconds"] == 0


async def test_time_blocked_by_the_client(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """While the client takes nothing, the archive's time counts against it."""
    order = add_order(sandbox, [6_000_000] * 6)  # more than all buffers on the way take in
    async with client.get(images_url(service, order.order_id)) as response:
        while (await scrape_after(client, service, archives=0))("batch_read_ahead_bytes") < 4_000_000:
            pass
        await response.read()
    scrape = await scrape_after(client, service)
    assert scrape("batch_client_blocked_seconds_total") > 0
    assert scrape.above_zero("batch_archives_total") == {("complete",): 1}
    assert scrape("batch_read_ahead_bytes") == 0


async def test_labels_are_few(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """No id or name from clients or the upstream becomes a label; unknown methods and paths share one."""
    order = sandbox.add_order([SandboxImage("secret villa.jpg", body=jpeg(500))], "Order of Mr Smith")
    sandbox.faults.script(order.images[0].image_id, [Fault(Kind.STATUS, status=503)])
    async with client.get(images_url(service, order.order_id)) as response:
        archive_id = response.headers["X-Archive-Id"]
        await response.read()
    for method in ("PROPFIND", "MKCOL", "DELETE"):
        async with client.request(method, f"{service}/teapot/{order.order_id}") as response:
            assert response.status == 404
    async with client.get(f"{service}/problems/whatever-{order.order_id}") as response:
        assert response.status == 404
    scrape = await scrape_after(client, service)
    for word in (order.order_id, order.images[0].image_id, archive_id, "villa", "Smith", "teapot", "PROPFIND"):
        assert word not in scrape.text
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}", scrape.text)
    assert scrape("batch_http_requests_total", route="unmatched", method="other", status="404") == 2
    assert scrape("batch_http_requests_total", route="unmatched", method="DELETE", status="404") == 1
    assert scrape("batch_http_requests_total", route="/problems/{slug}", method="GET", status="404") == 1


async def test_both_formats(service: str, client: aiohttp.ClientSession) -> None:
    """A scrape has the Prometheus text format, or OpenMetrics if the client accepts it."""
    async with client.get(f"{service}/metrics") as response:
        assert response.content_type == "text/plain"
        assert list(parse_text(await response.text()))
    accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
    async with client.get(f"{service}/metrics", headers={"Accept": accept}) as response:
        assert response.content_type == "application/openmetrics-text"
        text = await response.text()
    names = {family.name for family in parse_openmetrics(text)}  # type: ignore[no-untyped-call]  # not annotated
    assert {"batch_archives", "batch_build_info", "batch_event_loop_lag_seconds", "python_gc_collections"} <= names
    odd = "application/openmetrics-text;version=x.y"
    async with client.get(f"{service}/metrics", headers={"Accept": odd}) as response:
        assert response.status == 200
        assert list(parse_text(await response.text()))


def test_known_labels_start_at_zero() -> None:
    """What has not happened is there as 0, so that its rate is right from the first event on."""
    metrics = Metrics()
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
    }
    for outcome in ArchiveOutcome:
        assert samples["batch_archives_total", outcome.value] == 0
    for reason in Reason:
        assert samples["batch_images_total", "failed", reason.value] == 0
        assert samples["batch_image_retries_total", reason.value] == 0
    assert samples["batch_image_resumes_total", "replay"] == samples["batch_image_resumes_total", "range"] == 0
    assert samples["batch_upstream_requests_total", "storage", "error"] == 0
    for status in ARCHIVE_STATUSES:
        assert samples["batch_http_requests_total", ARCHIVE_ROUTE, "GET", str(status)] == 0
    assert not any(name[0].endswith("_created") for name in samples)


def test_two_apps_have_metrics_of_their_own() -> None:
    """Counting in one does not show in the other."""
    one, other = Metrics(), Metrics()
    one.archives.labels("complete").inc()
    assert one.registry.get_sample_value("batch_archives_total", {"outcome": "complete"}) == 1
    assert other.registry.get_sample_value("batch_archives_total", {"outcome": "complete"}) == 0


async def test_the_event_loop_is_watched(service: str, client: aiohttp.ClientSession) -> None:
    """A running service measures the lag of its event loop."""
    async with asyncio.timeout(20 * LAG_INTERVAL_SECONDS):
        while not (await scrape_after(client, service, archives=0))("batch_event_loop_lag_seconds_count"):
            pass


async def test_event_loop_lag() -> None:
    """The lag is the delay beyond the requested sleep, and never negative."""
    now, late = [0.0], [0.25, 0.0, -0.001]
    observed: list[float] = []

    async def sleep(seconds: float) -> None:
        if not late:
            raise asyncio.CancelledError
        now[0] += seconds + late.pop(0)

    with pytest.raises(asyncio.CancelledError):
        await observe_loop_lag(observed.append, clock=lambda: now[0], sleep=sleep)
    assert [round(one, 6) for one in observed] == [0.25, 0.0, 0.0]
    assert round(now[0], 6) == round(3 * LAG_INTERVAL_SECONDS + 0.249, 6)


async def test_no_secret_in_any_line(
    sandbox: Sandbox,
    start_service: StartService,
    client: aiohttp.ClientSession,
    logged: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through faults of every kind, at every level, no key, token or signed query gets into the log."""
    service = await start_service(image_timeout_seconds=0.3, admin_token=ADMIN)
    order = add_order(sandbox, [SIZE] * 6)
    faults = [RESET, Fault(Kind.EXPIRED_TARGET), Fault(Kind.REDIRECT_LOOP), Fault(Kind.REFUSED), Fault(Kind.STALL)]
    for image, fault in zip(order.images, faults, strict=False):
        sandbox.faults.script(image.image_id, [fault])
    sandbox.faults.always(order.images[5].image_id, Fault(Kind.STATUS, status=401), origin="api")
    async with client.get(f"{service}/api/stats", headers={"X-Admin-Token": ADMIN}) as response:
        assert response.status == 200
    async with client.get(images_url(service, order.order_id), headers={"X-API-Key": "the-clients-own"}) as response:
        await response.read()

    message = f"{sandbox.api_key} at {sandbox.storage_origin}/a.jpg?X-Amz-Signature=hush"

    def fail(_writer: ArchiveWriter) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(ArchiveWriter, "finish", fail)
    with pytest.raises(aiohttp.ClientPayloadError):
        await download(client, images_url(service, order.order_id))
    await scrape_after(client, service, archives=2)
    written = logged.getvalue()
    assert len(events(logged, "archive.finished")) == 2
    assert len(events(logged, "image.retried")) >= 5
    for secret in (sandbox.api_key, ADMIN, "the-clients-own", "X-Amz-", "Signature=", "hush"):
        assert secret not in written
    async with client.get(f"{service}/api/stats", headers={"X-Admin-Token": ADMIN}) as response:
        text = await response.text()
    assert json.loads(text)["recent_errors"][0]["event"] == "request.failed"
    for secret in (sandbox.api_key, ADMIN, "hush"):
        assert secret not in text
