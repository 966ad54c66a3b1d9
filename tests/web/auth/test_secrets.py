"""No secret leaks: not in a response of any route, a trailer, an archive, an upstream request or a log line."""

import asyncio
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from service.app import create_app
from service.monitoring.logs import configure_logs
from service.sandbox import DEMO_ORDER_ID, PARTIAL_ORDER_ID, Fault, Kind, Sandbox
from service.settings import Settings
from service.upstream.api import UpstreamClient
from service.web.downloads import events
from tests.archives import jpeg
from tests.conftest import StartService, settings_for

KEY, PAYING, ADMIN = "key-of-a-client-hush", "key-that-may-pay-hush", "token-of-the-operator-hush"
LOCKED: dict[str, Any] = {
    "service_api_keys": (SecretStr(KEY), SecretStr(PAYING + ":full")),
    "admin_token": SecretStr(ADMIN),
    "signing_keys": (SecretStr("signs-the-links-hush" * 2), SecretStr("signed-the-links-hush" * 2)),
    "webhook_secret": SecretStr("secret-of-the-webhook-hush"),
    "sentry_auth_token": SecretStr("sentry-token-hush"),
    "sentry_org": "our-org",
    "sentry_project": "our-project",
    "sentry_api_base": "http://127.0.0.1:9",
    "allow_full_quality": False,
    "image_attempts": 1,
    "auth_failures_per_minute": 1_000_000,
}
ROUTES = sorted(
    {(one.method, one.resource.canonical) for one in create_app(Settings()).router.routes() if one.resource is not None}
)
UNKNOWN, ARCHIVE = "5a4d0b0c-0000-4000-8000-00000000ffff", "5a4d0b0c-0000-4000-8000-00000000a1a1"
PHOTO = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n' + jpeg(900) + b"\r\n--b--\r\n"
BODIES = {
    "/api/create-order": ("multipart/form-data; boundary=b", PHOTO),
    "/orders/{order_id}/links": ("application/json", b'{"parameters": {"preview": "false"}}'),
    "/orders/{order_id}/images": ("application/json", b'{"only": ["5a4d0b0c-9a47-4001-8000-000000000002"]}'),
    "/session": ("application/json", b'{"key": "a-wrong-key"}'),
    "/webhooks/autoenhance": ("application/json", b'{"event": "image_processed"}'),
}


@dataclass
class Overheard:
    """A recorded service: the raw bytes of its responses, and its log."""

    port: int
    secrets: list[str]
    log: io.StringIO
    responses: list[tuple[str, bytes]] = field(default_factory=list)

    async def request(
        self, method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> bytes:
        """Send a raw request; return and record the whole response, trailers included."""
        fields = {"Host": "localhost", "Connection": "close", "Content-Length": str(len(body)), **(headers or {})}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode() + body)
        response = await reader.read()
        writer.close()
        await writer.wait_closed()
        self.responses.append((f"{method} {target} {headers}", response))
        return response

    def found(self) -> list[str]:
        """Return where secrets were found."""
        leaks = [
            f"{source}: {secret}"
            for source, response in self.responses
            for secret in self.secrets
            if secret.encode() in response
        ]
        return leaks + [f"log: {secret}" for secret in self.secrets if secret in self.log.getvalue()]


@pytest.fixture(params=["json", "console"])
def log(request: pytest.FixtureRequest, sandbox: Sandbox) -> Iterator[io.StringIO]:
    """The service's log at debug level."""
    stream = io.StringIO()
    secrets = settings_for(sandbox, **LOCKED).secrets()
    configure_logs(log_format=request.param, level="debug", secrets=secrets, stream=stream)
    yield stream
    configure_logs(log_format="json", level="info")


@pytest.fixture
async def overheard(
    sandbox: Sandbox, start_service: StartService, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> Overheard:
    """A service with every secret configured."""
    monkeypatch.setattr(events, "APPEARANCE_SECONDS", 0.01)
    port = urlsplit(await start_service(**LOCKED)).port
    assert port is not None
    secrets = settings_for(sandbox, **LOCKED).secrets()
    assert len(secrets) == 8, "a new secret has to be among LOCKED"
    return Overheard(port, secrets, log)


def credentials(cookie: str) -> list[dict[str, str]]:
    """Return every way to authenticate, and none."""
    return [
        {},
        {"X-API-Key": KEY},
        {"Authorization": f"Bearer {PAYING}"},
        {"X-Admin-Token": ADMIN},
        {"Cookie": f"batch_session={cookie}", "Sec-Fetch-Site": "same-origin"},
        {"X-API-Key": "a-wrong-key-of-another"},
        {"Authentication": "secret-of-the-webhook-hush"},
    ]


def targets(path: str, sandbox: Sandbox) -> list[str]:
    """Return URLs of a route, of existing and of missing resources."""
    image = sandbox.orders[DEMO_ORDER_ID].images[0].image_id
    values = {
        "{order_id}": [PARTIAL_ORDER_ID, UNKNOWN, "x"], "{archive_id}": [ARCHIVE, UNKNOWN], "{image_id}": [image],
        "{slug}": ["authentication-required"], "{asset}": ["docs.js"], "{name}": ["app.js"],
    }  # fmt: skip
    return next((
        [path.replace(name, value) for value in values[name]] for name in values if name in path
    ), [path])  # fmt: skip


async def signed_in(overheard: Overheard) -> str:
    """Sign in, and return the value of the session cookie."""
    body = json.dumps({"key": ADMIN}).encode()
    response = await overheard.request("POST", "/session", {"Content-Type": "application/json"}, body)
    return response.partition(b"batch_session=")[2].partition(b";")[0].decode()


async def test_no_route_leaks_a_secret(overheard: Overheard, sandbox: Sandbox) -> None:
    """No route leaks a secret, with any or no authentication; nor do the upstream requests that it causes."""
    cookie = await signed_in(overheard)
    assert len(cookie) > 50
    await overheard.request("GET", f"/orders/{DEMO_ORDER_ID}/images?archive_id={ARCHIVE}", {"X-API-Key": KEY})
    for method, path in ROUTES:
        kind, body = BODIES.get(path, ("", b"")) if method == "POST" else ("", b"")
        for target in targets(path, sandbox):
            for known in credentials(cookie):
                await overheard.request(method, target, {**known, **({"Content-Type": kind} if kind else {})}, body)
    assert overheard.found() == []
    # The cookie is in the response that set it, and in no other.
    assert sum(cookie.encode() in response for _, response in overheard.responses) == 1
    assert cookie not in overheard.log.getvalue()
    _judge_requests(sandbox, overheard)


def _judge_requests(sandbox: Sandbox, overheard: Overheard) -> None:
    """Only the API's origin gets the API key; signed URLs of the storage are neither logged nor passed on."""
    assert {one.origin for one in sandbox.requests} == {"api", "asset", "storage"}
    logged = "".join(overheard.log.getvalue())
    for one in sandbox.requests:
        sent = {name.lower(): value for name, value in one.headers.items()}
        assert (sent.pop("x-api-key", None) == sandbox.api_key) == (one.origin != "storage")
        written = f"{sent} {one.path} {one.query}"
        assert not any(secret in written for secret in overheard.secrets)
        assert not {"cookie", "authorization", "x-admin-token"} & set(sent)
        signature = one.query.get("X-Amz-Signature")
        if signature:
            assert signature not in logged
            assert not any(signature.encode() in response for _, response in overheard.responses)


async def test_link_is_only_in_the_response_that_created_it(overheard: Overheard) -> None:
    """A link's token is in the response that created it, and in no archive, report, receipt, problem or log line."""
    path = f"/orders/{PARTIAL_ORDER_ID}"
    created = await overheard.request(
        "POST", f"{path}/links", {"X-API-Key": KEY}, b'{"parameters": {"manifest": "always"}}'
    )
    token = created.partition(b"link=")[2].partition(b'"')[0].decode()
    assert len(token) > 50
    archive = await overheard.request("GET", f"{path}/images?manifest=always&link={token}&archive_id={ARCHIVE}")
    assert b"_manifest.json" in archive
    assert archive.endswith(b"X-Downloaded: 3\r\nX-Failed: 4\r\n\r\n")
    for target in (f"{path}/images?link={token}", f"{path}/images?link={token}&link={token}", f"{path}?link={token}"):
        await overheard.request("GET", target)
    await overheard.request("GET", f"/archives/{ARCHIVE}", {"X-API-Key": KEY})
    assert overheard.found() == []
    assert sum(token.encode() in response for _, response in overheard.responses) == 1
    assert token not in overheard.log.getvalue()


async def test_errors_leak_no_secret(overheard: Overheard, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream errors, and a bug of ours whose message contains a secret, are reported without it."""
    images = f"/orders/{DEMO_ORDER_ID}/images"
    for fault in (
        Fault(Kind.STATUS, status=401), Fault(Kind.STATUS, status=500), Fault(Kind.NOT_JSON), Fault(Kind.RESET)
    ):  # fmt: skip
        sandbox.faults.order(DEMO_ORDER_ID, [fault])
        await overheard.request("GET", images, {"X-API-Key": KEY})
    inside = f"http://user:{sandbox.api_key}@127.0.0.1/?key={sandbox.api_key}"
    for image in sandbox.orders[DEMO_ORDER_ID].images:
        sandbox.faults.script(image.image_id, [Fault(Kind.REDIRECT_TO, location=inside)])
    await overheard.request("GET", images, {"X-API-Key": KEY})

    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError(f"{sandbox.api_key} and {ADMIN} at https://files.example.com/a?X-Amz-Signature=hush")

    monkeypatch.setattr(UpstreamClient, "find_order", fail)
    response = await overheard.request("GET", images, {"X-API-Key": KEY})
    assert response.startswith(b"HTTP/1.1 500 ")
    recent = await overheard.request("GET", "/api/stats", {"X-Admin-Token": ADMIN})
    assert b"RuntimeError: [secret] and [secret] at https://files.example.com/a?[secret]" in recent
    assert overheard.found() == []
    assert "RuntimeError: [secret] and [secret]" in overheard.log.getvalue()
    assert "X-Amz-Signature=hush" not in overheard.log.getvalue()
