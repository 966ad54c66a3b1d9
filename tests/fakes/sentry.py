"""A Sentry server on loopback: receives envelopes and lists issues."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from pydantic import SecretStr

DSN_KEY = "0123456789abcdef0123456789abcdef"
AUTH_TOKEN = "sntrys_read-the-issues"
ISSUE = {
    "id": "7",
    "shortId": "BATCH-7",
    "title": "RuntimeError: a fault",
    "culprit": "service.streaming.archive_stream",
    "level": "error",
    "count": "12",
    "userCount": 0,
    "firstSeen": "2026-01-01T00:00:00Z",
    "lastSeen": "2026-01-02T00:00:00Z",
    "permalink": "https://sentry.example/7",
    "unknown": {"more": 1},
}


@dataclass
class FakeSentry:
    """Records envelopes and requests for issues.

    ``response`` replaces the list of issues; with ``aborts`` the connection is aborted before the response.
    """

    url: str = ""
    envelopes: list[bytes] = field(default_factory=list)
    envelope_received: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[web.Request] = field(default_factory=list)
    response: web.Response | None = None
    aborts: bool = False

    @property
    def dsn(self) -> SecretStr:
        """The DSN of the one project."""
        return SecretStr(self.url.replace("http://", f"http://{DSN_KEY}@") + "/1")

    async def store_envelope(self, request: web.Request) -> web.Response:
        """Store one envelope."""
        body = await request.read()
        self.envelopes.append(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
        self.envelope_received.set()
        return web.json_response({"id": "0"})

    async def list_issues(self, request: web.Request) -> web.Response:
        """List the one issue, for the right token."""
        self.requests.append(request)
        if self.aborts and request.transport is not None:
            request.transport.abort()
        if self.response is not None:
            return self.response
        if request.headers.get("Authorization") != f"Bearer {AUTH_TOKEN}":
            return web.json_response({"detail": "Invalid token"}, status=401)
        return web.json_response([ISSUE])

    def events(self) -> list[dict[str, Any]]:
        """Return the error events of all envelopes."""
        lines = [json.loads(line) for envelope in self.envelopes for line in envelope.splitlines() if line]
        return [line for line in lines if "exception" in line]


@asynccontextmanager
async def running_sentry() -> AsyncIterator[FakeSentry]:
    """Run the server on a free port."""
    fake = FakeSentry()
    app = web.Application()
    app.router.add_post("/api/1/envelope/", fake.store_envelope)
    app.router.add_get("/api/0/projects/{org}/{project}/issues/", fake.list_issues)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield fake
    finally:
        await runner.cleanup()
