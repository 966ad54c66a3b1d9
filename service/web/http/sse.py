"""Server-sent events (WHATWG HTML section 9.2): framing, and a response with a stall timeout.

aiohttp-sse would add a timer of its own for each connection, and waits indefinitely for a client that reads nothing.
"""

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from aiohttp import web

# Proxies must neither cache, nor buffer (nginx: X-Accel-Buffering), nor compress a stream: they would collect it first.
_HEADERS = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}
_MAX_ID_DIGITS = 9


class EventStream:
    """A ``text/event-stream`` response. A client that reads nothing for ``stall_seconds`` is disconnected."""

    def __init__(self, request: web.Request, *, stall_seconds: float) -> None:
        self._request = request
        self._stall_seconds = stall_seconds
        self._response = web.StreamResponse(headers=_HEADERS)
        self._response.content_type = "text/event-stream"
        self._response.charset = "utf-8"

    async def start(self, *, retry_milliseconds: int) -> None:
        """Send the headers, and the time after which a disconnected browser reconnects."""
        await self._response.prepare(self._request)
        await self.send(f"retry: {retry_milliseconds}\n\n")

    async def send(self, text: str) -> None:
        """Write encoded events.

        Raises:
            ConnectionResetError: the client has gone, or read nothing for too long.
        """
        try:
            async with asyncio.timeout(self._stall_seconds):
                await self._response.write(text.encode())
        except TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionResetError("the client reads nothing") from None

    async def finish(self) -> web.StreamResponse:
        """End the body, and return the response for the handler to return."""
        with suppress(ConnectionResetError):
            await self._response.write_eof()
        return self._response


def encode_event(name: str, data: Mapping[str, Any], event_id: int | None = None) -> str:
    """Return one event with JSON data."""
    id_line = f"id: {event_id}\n" if event_id is not None else ""
    return f"{id_line}event: {name}\ndata: {json.dumps(data)}\n\n"


def encode_comment(text: str) -> str:
    """Return a comment, which clients ignore: a heartbeat."""
    return f": {text}\n\n"


def last_event_id(request: web.Request) -> int | None:
    """Return the number in ``Last-Event-ID``: the last event that a reconnecting browser has received."""
    value = request.headers.get("Last-Event-ID", "")
    return int(value) if value.isascii() and value.isdigit() and len(value) <= _MAX_ID_DIGITS else None
