"""``GET /archives/{archive_id}`` and its ``/events``: what a download does, and what it did.

Events are server-sent (WHATWG HTML section 9.2): a ``snapshot``, then ``image`` and ``archive`` changes, and ``end``.
Each has its version as id, so that a browser which lost its connection gets what it missed. aiohttp-sse would add its
own timer for each watcher, and waits without end for one that takes nothing.
"""

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from aiohttp import web

from service.archive.parameters import check_archive_id
from service.streaming.receipts import Receipt
from service.web.auth.guards import require_own_receipt, require_receipt
from service.web.services import SERVICES

# A page opens the events while its browser begins the download: whichever comes first waits for the other.
APPEARANCE_SECONDS = 10.0
# Below the idle time-outs of common proxies, of which the shortest are 30 s.
HEARTBEAT_SECONDS = 15.0
# How often bytes are told while no image is finished; also what a burst of changes is gathered for.
PROGRESS_SECONDS = 1.0
GATHER_SECONDS = 0.1
# How long a browser waits before it comes back.
RETRY_MILLISECONDS = 2000
# Proxies must neither keep, nor hold back (nginx), nor compress what streams: they would collect it first.
_HEADERS = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}


async def get_receipt(request: web.Request) -> web.Response:
    """Answer with the receipt."""
    require_receipt(request)
    archive_id = check_archive_id(request.match_info["archive_id"])
    receipt = request.app[SERVICES].receipts.find(archive_id)
    require_own_receipt(request, receipt)
    return web.json_response(receipt.snapshot())


async def get_events(request: web.Request) -> web.StreamResponse:
    """Send the receipt, then every change of it, until its archive has ended."""
    services = request.app[SERVICES]
    require_receipt(request)
    archive_id = check_archive_id(request.match_info["archive_id"])
    with services.event_admission.admit():
        receipt = await services.receipts.wait_registered(archive_id, APPEARANCE_SECONDS)
        require_own_receipt(request, receipt)
        if receipt.ended_at is not None and _last_seen(request) == receipt.version:
            return web.Response(status=204)  # what tells a browser not to come back
        return await _Events(request, receipt, stall_seconds=services.client_stall_seconds).run()


class _Events:
    """One watcher: the version it has seen is all that is kept for it."""

    def __init__(self, request: web.Request, receipt: Receipt, *, stall_seconds: float) -> None:
        self._request = request
        self._receipt = receipt
        self._stall_seconds = stall_seconds
        self._told_bytes = -1
        self._quiet_seconds = 0.0
        self._response = web.StreamResponse(headers=_HEADERS)
        self._response.content_type = "text/event-stream"
        self._response.charset = "utf-8"

    async def run(self) -> web.StreamResponse:
        await self._response.prepare(self._request)
        seen = _last_seen(self._request)
        await self._send(f"retry: {RETRY_MILLISECONDS}\n\n")
        while True:
            seen = await self._catch_up(seen)
            if self._receipt.ended_at is not None and seen >= self._receipt.version:
                break
            await self._wait(seen)
        with suppress(ConnectionResetError):
            await self._response.write_eof()
        return self._response

    async def _catch_up(self, seen: int) -> int:
        """Send what is new in one piece; return the version that the watcher has then."""
        version, text = self._receipt.version, ""
        if not self._receipt.replaced_version < seen <= version:
            # The end is told by itself, with an id of its own: a break between the two must not lose it.
            seen = version - 1 if self._receipt.ended_at is not None else version
            text = _event("snapshot", self._receipt.snapshot(), seen)
        text += "".join(_event(change.kind, change.data, change.version) for change in self._receipt.since(seen))
        if text:
            self._told_bytes = self._receipt.summary()["bytes"]
            await self._send(text)
        return version

    async def _wait(self, seen: int) -> None:
        """Return when there is something to send; tell bytes, and that the connection lives, meanwhile."""
        try:
            async with asyncio.timeout(PROGRESS_SECONDS):
                await self._receipt.changed(seen)
        except TimeoutError:
            self._quiet_seconds += PROGRESS_SECONDS
            summary = self._receipt.summary()
            if summary["bytes"] != self._told_bytes:
                self._told_bytes = summary["bytes"]
                await self._send(_event("archive", summary, None))
            elif self._quiet_seconds >= HEARTBEAT_SECONDS:
                await self._send(": still here\n\n")
            return
        await asyncio.sleep(GATHER_SECONDS)  # many small images finish together

    async def _send(self, text: str) -> None:
        """Write, and give a watcher up that takes nothing."""
        self._quiet_seconds = 0.0
        try:
            async with asyncio.timeout(self._stall_seconds):
                await self._response.write(text.encode())
        except TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionResetError("the watcher takes nothing") from None


def _last_seen(request: web.Request) -> int:
    last = request.headers.get("Last-Event-ID", "")
    return int(last) if last.isascii() and last.isdigit() and len(last) < 10 else -1  # noqa: PLR2004 - versions


def _event(kind: str, data: Mapping[str, Any], version: int | None) -> str:
    number = f"id: {version}\n" if version is not None else ""
    return f"{number}event: {kind}\ndata: {json.dumps(data)}\n\n"
