"""Operations endpoints: health, readiness, METRICS_PORT, traces, statistics."""

import asyncio
import io
import json
import os
import shutil
from collections.abc import Sequence
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs
from yarl import URL

from service.errors import SettingsError
from service.monitoring.recent_errors import ERRORS_KEPT, MAX_DETAIL_CHARACTERS, RecentErrors
from service.monitoring.tracing import Trace, outgoing_traceparent, read_traceparent, request_context
from service.sandbox import DEMO_ORDER_ID, Fault, Kind, Sandbox
from service.server.run import serving
from service.settings import load_settings
from service.upstream import health as upstream_health
from service.upstream.health import FAILING_SECONDS, FAILURE_THRESHOLD, UpstreamHealth
from tests.archives import add_order, download, images_url
from tests.conftest import StartService, settings_for
from tests.monitoring.test_metrics import logged, scrape_after

__all__ = ["logged"]  # the fixture

TOKEN = "operators-only-7"
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
FAIL, SUCCEED = "fail", "succeed"
# The probe in deploy/kubernetes.
OF_THE_PROCESS = "/health/ready?upstream=ignore"


async def get(client: aiohttp.ClientSession, url: str, **headers: str) -> tuple[int, Any]:
    """Return status and JSON of a GET."""
    async with client.get(url, headers=headers) as response:
        return response.status, await response.json()


# Health


async def test_configured_service_is_healthy_and_ready(service: str, client: aiohttp.ClientSession) -> None:
    """A service with an API key is healthy, live and ready."""
    assert await get(client, f"{service}/health") == (200, {"status": "ok", "api_key_configured": True})
    assert await get(client, f"{service}/health/live") == (200, {"status": "ok"})
    assert await get(client, f"{service}/health/ready") == (200, {"status": "ok", "reasons": []})


async def test_service_without_api_key_is_unready(start_service: StartService, client: aiohttp.ClientSession) -> None:
    """Without an API key it is live but not ready."""
    service = await start_service(autoenhance_api_key=None)
    assert await get(client, f"{service}/health") == (200, {"status": "ok", "api_key_configured": False})
    assert await get(client, f"{service}/health/live") == (200, {"status": "ok"})
    for path in ("/health/ready", OF_THE_PROCESS):
        assert await get(client, service + path) == (503, {"status": "unready", "reasons": ["no_api_key"]})


@pytest.mark.parametrize(
    ("query", "slug"),
    [
        ("upstream=", "invalid-parameter"),
        ("upstream=Ignore", "invalid-parameter"),
        ("upstream=ignore&upstream=ignore", "repeated-parameter"),
        ("up=ignore", "unknown-parameter"),
        ("upstream=ignore&x", "unknown-parameter"),
    ],
)
async def test_misspelt_readiness_probe_is_rejected(
    query: str, slug: str, service: str, client: aiohttp.ClientSession
) -> None:
    """An unknown or invalid parameter of a probe is an error, rather than ignored."""
    status, problem = await get(client, f"{service}/health/ready?{query}")
    assert (status, problem["type"]) == (400, f"/problems/{slug}")


async def test_health_responds_under_load(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """At capacity and with a hanging upstream, health and metrics respond at once, without upstream requests."""
    service = await start_service(max_archives=1)
    order = add_order(sandbox, [1000])
    pause = sandbox.faults.pause(order.images[0].image_id, origin="api")
    downloading = asyncio.create_task(download(client, images_url(service, order.order_id)))
    await pause.reached.wait()
    sent = len(sandbox.requests)
    for path in ("/health", "/health/live", "/health/ready", "/api/stats"):
        assert (await get(client, service + path))[0] == 200
    assert (await scrape_after(client, service, archives=0))("batch_archives_in_progress") == 1
    assert len(sandbox.requests) == sent
    pause.release()
    await downloading


@pytest.mark.parametrize(
    ("steps", "is_open"),
    [
        pytest.param([], False, id="new"),
        pytest.param([FAIL] * (FAILURE_THRESHOLD - 1), False, id="one too few"),
        pytest.param([FAIL] * FAILURE_THRESHOLD, True, id="enough"),
        pytest.param([FAIL] * (2 * FAILURE_THRESHOLD), True, id="more"),
        pytest.param([FAIL] * FAILURE_THRESHOLD + [SUCCEED], False, id="closed by a success"),
        pytest.param([FAIL] * FAILURE_THRESHOLD + [SUCCEED, FAIL], False, id="counted again"),
        pytest.param(([FAIL] * (FAILURE_THRESHOLD - 1) + [SUCCEED]) * 3, False, id="not in a row"),
        pytest.param([FAIL] * FAILURE_THRESHOLD + [FAILING_SECONDS - 1], True, id="still"),
        pytest.param([FAIL] * FAILURE_THRESHOLD + [FAILING_SECONDS], False, id="over"),
        pytest.param(
            [FAIL] * FAILURE_THRESHOLD + [FAILING_SECONDS - 1, FAIL, FAILING_SECONDS - 1], True, id="from the last"
        ),
        pytest.param([FAIL] * FAILURE_THRESHOLD + [FAILING_SECONDS, FAIL], True, id="again by one more"),
    ],
)
def test_upstream_health_follows_consecutive_failures(steps: Sequence[str | float], is_open: bool) -> None:  # noqa: FBT001
    """Consecutive failures make it failing; a success, or time without failures, makes it healthy."""
    now = [1000.0]
    breaker = UpstreamHealth(lambda: now[0])
    for step in steps:
        if isinstance(step, float):
            now[0] += step
        elif step == FAIL:
            breaker.record_failure()
        else:
            breaker.record_success()
    assert breaker.is_failing is is_open


@pytest.mark.parametrize(
    ("fault", "opens"),
    [
        pytest.param(Fault(Kind.STATUS, status=503), True, id="503"),
        pytest.param(Fault(Kind.RESET), True, id="reset"),
        pytest.param(Fault(Kind.STALL), True, id="no response"),
        pytest.param(Fault(Kind.STATUS, status=404), False, id="404 is a response"),
        pytest.param(Fault(Kind.STATUS, status=429), False, id="429 is a response"),
    ],
)
async def test_readiness_follows_the_upstream(
    fault: Fault,
    opens: bool,  # noqa: FBT001
    sandbox: Sandbox,
    start_service: StartService,
    client: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Consecutive failed look-ups make the service unready; the first successful one makes it ready again."""
    monkeypatch.setattr(upstream_health, "FAILURE_THRESHOLD", 2)
    # The first-byte deadline may be the shorter one.
    service = await start_service(image_attempts=1, image_timeout_seconds=60, first_byte_seconds=0.3)
    order = add_order(sandbox, [1000])
    sandbox.faults.order(order.order_id, [fault] * 2)
    for _ in range(2):
        async with client.get(images_url(service, order.order_id)) as response:
            assert response.status in {404, 502, 504}
    expected = (503, {"status": "unready", "reasons": ["upstream_failing"]})
    found = await get(client, f"{service}/health/ready")
    assert (found == expected) is opens
    assert await get(client, service + OF_THE_PROCESS) == (200, {"status": "ok", "reasons": []})
    scrape = await scrape_after(client, service, archives=2)
    assert scrape("batch_upstream_failing") == opens
    if fault.status != 429:  # which makes the next look-up wait longer than its deadline
        await download(client, images_url(service, order.order_id))
        assert (await get(client, f"{service}/health/ready"))[0] == 200


async def test_storage_failures_do_not_affect_readiness(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failures of the storage, and URLs that our policy rejects, do not count against the API."""
    monkeypatch.setattr(upstream_health, "FAILURE_THRESHOLD", 1)
    service = await start_service(image_attempts=1)
    order = add_order(sandbox, [1000] * 2)
    sandbox.faults.always(order.images[0].image_id, Fault(Kind.STATUS, status=503))
    sandbox.faults.always(
        order.images[1].image_id, Fault(Kind.REDIRECT_TO, location="http://u@127.0.0.1/"), origin="api"
    )
    async with client.get(images_url(service, order.order_id)) as response:
        assert response.status == 422
    assert (await get(client, f"{service}/health/ready"))[0] == 200


# METRICS_PORT


async def test_metrics_port_serves_health_and_metrics(sandbox: Sandbox, client: aiohttp.ClientSession) -> None:
    """METRICS_PORT serves metrics, which PORT then does not, and health, which both do; it closes with the service."""
    with capture_logs() as lines:
        async with serving(settings_for(sandbox, metrics_port=0)) as service:
            (ops,) = (line["url"] for line in lines if line["event"] == "service.metrics_started")
            assert ops != service
            await download(client, images_url(service, DEMO_ORDER_ID))
            scrape = await scrape_after(client, ops)
            assert scrape("batch_archives_total", outcome="complete") == 1
            for path in ("/health", "/health/live", "/health/ready"):
                assert (await get(client, ops + path))[0] == 200
                assert (await get(client, service + path))[0] == 200
            for path in (f"/orders/{DEMO_ORDER_ID}/images", "/api/stats"):
                async with client.get(ops + path) as response:
                    assert response.status == 404
            for method in ("GET", "HEAD"):
                async with client.request(method, f"{service}/metrics") as response:
                    assert (response.status, response.content_type) == (404, "application/problem+json")
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.get(f"{ops}/metrics")


async def test_metrics_are_on_port_without_metrics_port(sandbox: Sandbox, client: aiohttp.ClientSession) -> None:
    """Without the setting there is one port, which serves the metrics."""
    with capture_logs() as lines:
        async with serving(settings_for(sandbox)) as service, client.get(f"{service}/metrics") as response:
            assert response.status == 200
    assert "service.metrics_started" not in {line["event"] for line in lines}


async def test_metrics_port_in_use_fails_the_start(sandbox: Sandbox, service: str) -> None:
    """A port in use fails the start, and leaves no port open."""
    used_port = URL(service).port
    with pytest.raises(OSError, match="in use"):
        async with serving(settings_for(sandbox, metrics_port=used_port)):
            pass


def test_metrics_port_differs_from_port() -> None:
    """The same port twice is an error at the start; 0 is any free one."""
    with pytest.raises(SettingsError, match="METRICS_PORT"):
        load_settings(port=9000, metrics_port=9000)
    assert load_settings(port=0, metrics_port=0).metrics_port == 0


# Traces


@pytest.mark.parametrize(
    ("values", "trace"),
    [
        pytest.param([TRACEPARENT], Trace(TRACE_ID, sampled=True), id="sampled"),
        pytest.param([TRACEPARENT[:-2] + "00"], Trace(TRACE_ID, sampled=False), id="not sampled"),
        pytest.param([TRACEPARENT[:-2] + "ff"], Trace(TRACE_ID, sampled=True), id="unknown flags"),
        pytest.param(["01" + TRACEPARENT[2:]], Trace(TRACE_ID, sampled=True), id="later version"),
        pytest.param(["cc" + TRACEPARENT[2:] + "-what-else"], Trace(TRACE_ID, sampled=True), id="later, longer"),
        pytest.param([], None, id="none"),
        pytest.param([""], None, id="empty"),
        pytest.param([TRACEPARENT] * 2, None, id="twice"),
        pytest.param(["ff" + TRACEPARENT[2:]], None, id="forbidden version"),
        pytest.param([TRACEPARENT + "-x"], None, id="version 0, longer"),
        pytest.param(["cc" + TRACEPARENT[2:] + "x"], None, id="later, no dash"),
        pytest.param([TRACEPARENT.upper()], None, id="capitals"),
        pytest.param([f"00-{'0' * 32}-{PARENT_ID}-01"], None, id="trace of zeros"),
        pytest.param([f"00-{TRACE_ID}-{'0' * 16}-01"], None, id="parent of zeros"),
        pytest.param([f"00-{TRACE_ID[:-1]}g-{PARENT_ID}-01"], None, id="no hex"),
        pytest.param([f"00-{TRACE_ID}-{PARENT_ID}"], None, id="no flags"),
        pytest.param([TRACEPARENT + "\n"], None, id="line feed"),
    ],
)
def test_traceparent_is_parsed(values: list[str], trace: Trace | None) -> None:
    """Exactly one valid header has a trace (W3C Trace Context, section 3.2)."""
    assert read_traceparent(values) == trace


def test_outgoing_traceparent_has_new_spans() -> None:
    """Outgoing headers have the same trace and flag, and a new span each time, until the request ends."""
    assert outgoing_traceparent() is None
    with request_context("r", Trace(TRACE_ID, sampled=False)):
        spans = {outgoing_traceparent() for _ in range(5)}
    assert len(spans) == 5
    assert all(one and read_traceparent([one]) == Trace(TRACE_ID, sampled=False) for one in spans)
    assert outgoing_traceparent() is None


async def test_trace_is_propagated_to_the_api_only(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession, logged: io.StringIO
) -> None:
    """Requests to the API carry the client's trace with new spans, those to the storage none; log lines have its id."""
    url = images_url(service, DEMO_ORDER_ID)
    async with client.get(url, headers={"traceparent": TRACEPARENT, "tracestate": "a=b"}) as response:
        await response.read()
    await scrape_after(client, service)
    at_api = [one.headers["traceparent"] for one in sandbox.requests if one.origin in {"api", "asset"}]
    assert len(set(at_api)) == len(at_api) == 29
    assert all(read_traceparent([one]) == Trace(TRACE_ID, sampled=True) for one in at_api)
    assert PARENT_ID not in "".join(at_api)
    assert not any("traceparent" in one.headers for one in sandbox.requests if one.origin == "storage")
    lines = [json.loads(line) for line in logged.getvalue().splitlines()]
    of_the_archive = [line for line in lines if "archive_id" in line]
    assert len(of_the_archive) == 16, "14 images, the archive, its request"
    assert {line["trace_id"] for line in of_the_archive} == {TRACE_ID}


@pytest.mark.parametrize("given", [None, "00-nonsense", f"ff{TRACEPARENT[2:]}"])
async def test_request_without_a_trace_starts_none(
    given: str | None, sandbox: Sandbox, service: str, client: aiohttp.ClientSession, logged: io.StringIO
) -> None:
    """Without a valid header there is no trace, neither upstream nor in the log."""
    headers = {} if given is None else {"traceparent": given}
    # One connection, on which the previous request had a trace.
    async with client.get(f"{service}/health", headers={"traceparent": TRACEPARENT}):
        pass
    async with client.get(images_url(service, DEMO_ORDER_ID), headers=headers) as response:
        await response.read()
    await scrape_after(client, service)
    assert not any("traceparent" in one.headers for one in sandbox.requests)
    lines = [json.loads(line) for line in logged.getvalue().splitlines()]
    assert [line["event"] for line in lines if "trace_id" in line] == ["http.request"]


# Statistics


async def test_stats_are_public_without_identifiers(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """Counters, limits and load are public; ids, errors and the upstream's address are not."""
    order = add_order(sandbox, [1000] * 3)
    sandbox.faults.always(order.images[1].image_id, Fault(Kind.STATUS, status=404), origin="api")
    async with client.get(images_url(service, order.order_id)) as response:
        data = await response.read()
    await scrape_after(client, service)
    status, found = await get(client, f"{service}/api/stats")
    assert status == 200
    assert found.keys() == {"version", "uptime_seconds", "in_progress", "counters", "limits"}
    assert found["counters"] == {
        "archives": {"complete": 0, "partial": 1, "failed": 0, "aborted": 0, "client_gone": 0, "rejected": 0},
        "archive_bytes": len(data),
        "images": {"downloaded": 2, "failed:not_found": 1},
        "image_bytes": 2000,
        "image_retries": 0,
        "credits_spent": 0,
    }
    assert found["in_progress"] == {
        "archives": 0,
        "read_ahead_bytes": 0,
        "draining": False,
        "upstream_failing": False,
    }
    assert found["limits"]["max_archives"] == 64
    assert found["uptime_seconds"] > 0
    assert found["version"][0].isdigit()


@pytest.mark.parametrize(
    ("headers", "seen"),
    [
        pytest.param({"X-Admin-Token": TOKEN}, True, id="header"),
        pytest.param({"Authorization": f"Bearer {TOKEN}"}, True, id="bearer"),
        pytest.param({"Authorization": f"bearer {TOKEN}"}, True, id="bearer in small letters"),
        pytest.param({"X-Admin-Token": "wrong", "Authorization": f"Bearer {TOKEN}"}, True, id="one of two"),
        pytest.param({}, False, id="none"),
        pytest.param({"X-Admin-Token": ""}, False, id="empty"),
        pytest.param({"X-Admin-Token": TOKEN[:-1]}, False, id="shorter"),
        pytest.param({"X-Admin-Token": TOKEN + "x"}, False, id="longer"),
        pytest.param({"X-Admin-Token": "pässword"}, False, id="not ASCII"),
        pytest.param({"Authorization": f"Basic {TOKEN}"}, False, id="basic"),
        pytest.param({"Authorization": TOKEN}, False, id="no scheme"),
        pytest.param({"X-API-Key": TOKEN}, True, id="as key"),
        pytest.param({"Cookie": f"batch_session={TOKEN}"}, False, id="as cookie"),
    ],
)
async def test_recent_errors_require_admin(
    headers: dict[str, str],
    seen: bool,  # noqa: FBT001
    sandbox: Sandbox,
    start_service: StartService,
    client: aiohttp.ClientSession,
) -> None:
    """With the admin token there is a list of recent errors; without it the response does not mention one."""
    service = await start_service(admin_token=SecretStr(TOKEN), image_attempts=1)
    sandbox.faults.order(DEMO_ORDER_ID, [Fault(Kind.STATUS, status=500)])
    async with client.get(images_url(service, DEMO_ORDER_ID), headers={"X-Request-ID": "call-9"}) as response:
        assert response.status == 502
    status, found = await get(client, f"{service}/api/stats", **headers)
    assert status == 200
    assert ("recent_errors" in found) is seen
    if seen:
        (error,) = found["recent_errors"]
        assert (error["event"], error["request_id"]) == ("request.rejected", "call-9")
        assert error["detail"] == "The order look-up failed: the upstream responded with status 500."
        assert error["time"].endswith("+00:00")


def test_recent_errors_are_bounded_and_redacted() -> None:
    """The newest come first, the oldest are dropped, and each is redacted, then cut."""
    errors = RecentErrors(lambda text: text.replace("hush", "[secret]"))
    for number in range(ERRORS_KEPT + 10):
        errors.note("request.failed", f"{number} hush", "r")
    errors.note("request.failed", "x" * 10_000, "r")
    found = errors.newest_first()
    assert len(found) == ERRORS_KEPT
    assert len(found[0]["detail"]) == MAX_DETAIL_CHARACTERS
    assert found[1]["detail"] == f"{ERRORS_KEPT + 9} [secret]"


# Checked by Prometheus's own tool


async def test_promtool_accepts_the_metrics(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """``promtool check metrics`` reports nothing for a scrape."""
    if shutil.which("promtool") is None:
        if os.environ.get("CI"):
            pytest.fail("promtool is not installed")
        pytest.skip("promtool is not installed")
    order = add_order(sandbox, [1000])
    await download(client, images_url(service, order.order_id))
    scrape = await scrape_after(client, service)
    checking = await asyncio.create_subprocess_exec(
        "promtool", "check", "metrics", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await checking.communicate(scrape.text.encode())
    assert (checking.returncode, output.decode()) == (0, "")
