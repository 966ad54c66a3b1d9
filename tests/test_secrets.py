"""The output of a process in a run with many faults contains none of the secrets that it was given or received."""

import asyncio

import aiohttp
import pytest
from yarl import URL

from service.sandbox import DEMO_ORDER_ID, Fault, Kind, Sandbox
from tests.archives import add_order, images_url
from tests.server.test_process import service_process

SIZE = 300_000
CLIENT_KEY, FULL_KEY, ADMIN = "key-of-one-client-7", "key-of-full-quality-7", "token-of-the-operator-7"
SIGNING, WEBHOOK, SENTRY = "signs-all-the-links-0123456789-0123", "what-the-api-sends-7", "sntrys_reads-the-issues-7"
DSN_KEY = "0123456789abcdef0123456789abcdef"
WRONG, MALFORMED = "no-key-at-all-but-a-password", "key-in-a-malformed-request"


async def status_of(client: aiohttp.ClientSession, method: str, url: str | URL, **options: object) -> int:
    """Send a request, read the whole response, and return its status."""
    async with client.request(method, url, **options) as response:  # type: ignore[arg-type]  # aiohttp's options
        await response.read()
        return response.status


async def send_raw(service: str, text: str) -> bytes:
    """Send raw bytes; return the response."""
    url = URL(service)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(text.encode())
    response = await reader.read()
    writer.close()
    return response


def add_faulty_order(sandbox: Sandbox) -> str:
    """Add an order whose images fail in many ways, so that much is logged about them."""
    order = add_order(sandbox, [SIZE] * 8)
    ids = [image.image_id for image in order.images]
    faults = [Fault(Kind.RESET, after_bytes=SIZE // 2), Fault(Kind.EXPIRED_TARGET), Fault(Kind.REDIRECT_LOOP)]
    faults += [Fault(Kind.REFUSED), Fault(Kind.STALL), Fault(Kind.HTML), Fault(Kind.STATUS, status=503)]
    for image_id, fault in zip(ids, faults, strict=False):
        sandbox.faults.always(image_id, fault) if fault.kind is Kind.HTML else sandbox.faults.script(image_id, [fault])
    sandbox.faults.always(ids[7], Fault(Kind.STATUS, status=401), origin="api")
    return order.order_id


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_no_secret_in_any_output(
    log_format: str, sandbox: Sandbox, client: aiohttp.ClientSession, closed_port: int
) -> None:
    """No API key, service key, token, cookie, link or signed query is written to standard output or error."""
    environment = {
        "LOG_FORMAT": log_format,
        "LOG_LEVEL": "debug",
        "IMAGE_TIMEOUT_SECONDS": "0.3",
        "SERVICE_API_KEYS": CLIENT_KEY,
        "SERVICE_API_KEY": f"{FULL_KEY}:full",
        "ADMIN_TOKEN": ADMIN,
        "SIGNING_KEYS": SIGNING,
        "WEBHOOK_SECRET": WEBHOOK,
        "SENTRY_DSN": f"http://{DSN_KEY}@127.0.0.1:{closed_port}/1",
        "SENTRY_AUTH_TOKEN": SENTRY,
        "SENTRY_ORG": "o",
        "SENTRY_PROJECT": "p",
        "SENTRY_API_BASE": f"http://127.0.0.1:{closed_port}",
    }
    as_client, as_admin = {"X-API-Key": CLIENT_KEY}, {"Authorization": f"Bearer {ADMIN}"}
    async with service_process(sandbox, **environment) as service:
        here, demo = service.url, images_url(service.url, DEMO_ORDER_ID)
        faulty = images_url(here, add_faulty_order(sandbox), "?manifest=always")
        assert await status_of(client, "GET", faulty, headers=as_client) == 200
        assert await status_of(client, "GET", faulty, headers={"X-API-Key": WRONG}) == 401
        # Misplaced keys: as a parameter's name, as its value, in a path, in an id.
        for misplaced in (
            f"{demo}?{CLIENT_KEY}=1",
            f"{demo}?format={FULL_KEY}",
            f"{here}/{ADMIN}",
            f"{here}/orders/{CLIENT_KEY}",
        ):
            assert await status_of(client, "GET", misplaced, headers=as_client) in {400, 404}
        link_request = {"parameters": {"preview": "false"}}
        async with client.post(
            f"{here}/orders/{DEMO_ORDER_ID}/links", json=link_request, headers={"X-API-Key": FULL_KEY}
        ) as created:
            link = URL((await created.json())["url"])
        assert await status_of(client, "GET", link) == 200
        assert await status_of(client, "GET", f"{link}x") == 403
        async with client.post(f"{here}/session", json={"key": ADMIN}) as response:
            cookie = response.cookies["batch_session"].value
        assert await status_of(client, "POST", f"{here}/session", json={"key": WRONG}) == 401
        assert await status_of(client, "GET", f"{here}/api/stats", headers=as_admin) == 200
        assert await status_of(client, "GET", f"{here}/api/sentry/issues", headers=as_admin) == 502
        webhook = f"{here}/webhooks/autoenhance"
        assert await status_of(client, "POST", webhook, data=b"no JSON", headers={"Authentication": WEBHOOK}) == 400
        malformed = f"GET {link.raw_path_qs} HTTP/1.1\r\nX-API-Key: {MALFORMED}\r\nno header\r\n\r\n"
        assert b" 400 " in await send_raw(here, malformed)
        assert await service.stop() == 0
    written = "".join(service.lines)
    for event in (
        "image.retried",
        "image.resumed",
        "image.failed",
        "archive.finished",
        "http.request",
        "session.rejected",
    ):
        assert event in written, "the output must be the log of such a run"
    assert ('"event":' in written) is (log_format == "json")
    signed = {value for one in sandbox.requests if one.origin == "storage" for value in one.query.values()}
    assert any(len(value) > 20 for value in signed)
    secrets = {
        sandbox.api_key,
        CLIENT_KEY,
        FULL_KEY,
        ADMIN,
        SIGNING,
        WEBHOOK,
        SENTRY,
        DSN_KEY,
        WRONG,
        MALFORMED,
        cookie,
    }
    secrets |= {link.query["link"], "X-Amz-", "Signature"} | {value for value in signed if len(value) > 20}
    assert [secret for secret in secrets if secret in written] == []
