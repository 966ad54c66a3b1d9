"""``GET /archives/{archive_id}/events``: server-sent events of a download in progress.

A ``snapshot`` of the receipt comes first, then ``image`` and ``archive`` changes, and ``end``. The version of each is
its event id, so that a browser which reconnects gets what it missed.
"""

import asyncio

from aiohttp import web

from service.archive.parameters import check_archive_id
from service.streaming.receipts import Receipt
from service.web.auth.guards import require_receipt_access, require_receipt_link
from service.web.downloads.context import DOWNLOADS
from service.web.http.sse import EventStream, encode_comment, encode_event, last_event_id

# A page opens the events while its browser starts the download: the first request waits this long for the second.
APPEARANCE_SECONDS = 10.0
# Below the idle timeouts of common proxies, of which the shortest are 30 s.
HEARTBEAT_SECONDS = 15.0
# How often the byte count is sent while no image finishes, and for how long a burst of changes is batched.
PROGRESS_SECONDS = 1.0
BATCH_SECONDS = 0.1
# How long a browser waits before it reconnects.
RETRY_MILLISECONDS = 2000
# Below every version: such a client gets a snapshot.
_NO_VERSION = -1


async def get_events(request: web.Request) -> web.StreamResponse:
    """Stream the receipt, then every change of it, until the archive has ended."""
    context = request.app[DOWNLOADS]
    require_receipt_access(request)
    archive_id = check_archive_id(request.match_info["archive_id"])
    with context.event_admission.admit():
        receipt = await context.receipts.wait_registered(archive_id, APPEARANCE_SECONDS)
        require_receipt_link(request, receipt)
        version = last_event_id(request)
        if receipt.ended_at is not None and version == receipt.version:
            return web.Response(status=204)  # stops the browser from reconnecting
        stream = EventStream(request, stall_seconds=context.client_stall_seconds)
        return await _ReceiptEvents(receipt, stream).run(_NO_VERSION if version is None else version)


class _ReceiptEvents:
    """Sends one receipt to one client. Of the client only the version it has is kept."""

    def __init__(self, receipt: Receipt, stream: EventStream) -> None:
        self._receipt = receipt
        self._stream = stream
        self._sent_bytes = -1
        self._idle_seconds = 0.0

    async def run(self, version: int) -> web.StreamResponse:
        """Send everything after ``version`` until the archive has ended."""
        await self._stream.start(retry_milliseconds=RETRY_MILLISECONDS)
        while True:
            version = await self._send_changes(version)
            if self._receipt.ended_at is not None and version >= self._receipt.version:
                break
            await self._wait_for_change(version)
        return await self._stream.finish()

    async def _send_changes(self, since: int) -> int:
        """Send all changes in one write; return the version that the client has then."""
        version, text = self._receipt.version, ""
        if not self._receipt.replaced_version < since <= version:
            # ``end`` follows the snapshot with an id of its own: a disconnect between the two must not lose it.
            since = version - 1 if self._receipt.ended_at is not None else version
            text = encode_event("snapshot", self._receipt.snapshot(), since)
        text += "".join(encode_event(change.kind, change.data, change.version) for change in self._receipt.since(since))
        if text:
            self._sent_bytes = self._receipt.summary()["bytes"]
            await self._send(text)
        return version

    async def _wait_for_change(self, version: int) -> None:
        """Return when there may be something to send. On a timeout, send the byte count or a heartbeat."""
        try:
            async with asyncio.timeout(PROGRESS_SECONDS):
                await self._receipt.changed(version)
        except TimeoutError:
            self._idle_seconds += PROGRESS_SECONDS
            summary = self._receipt.summary()
            if summary["bytes"] != self._sent_bytes:
                self._sent_bytes = summary["bytes"]
                await self._send(encode_event("archive", summary))
            elif self._idle_seconds >= HEARTBEAT_SECONDS:
                await self._send(encode_comment("heartbeat"))
            return
        await asyncio.sleep(BATCH_SECONDS)  # many small images finish together

    async def _send(self, text: str) -> None:
        self._idle_seconds = 0.0
        await self._stream.send(text)
