"""One caller's connection: aiohttp's own, and a limit on how long it may take to say what it wants."""

import asyncio
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from aiohttp import web

from service.errors import BadRequest, problem

# Which versions of what the service runs on is nobody's business.
SERVER_NAME = "autoenhance-batch"
# https://owasp.org/www-project-secure-headers/: nothing is to be run, framed or guessed at, unless a page says so.
SAFETY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class ClientConnection(web.RequestHandler):
    """A connection which is closed unless the head of its first request is complete within ``head_seconds``.

    aiohttp bounds the size of a head, and the time between requests, but not the time of the first: a client that
    sends a byte now and then would hold its connection for ever. The head of a later request is bounded by the
    keep-alive time-out.
    """

    __slots__ = ("_head_seconds", "_head_timer", "_note_malformed", "_stall_seconds")

    def __init__(
        self,
        manager: web.Server,
        *,
        head_seconds: float,
        stall_seconds: float,
        note_malformed: Callable[[], None],
        **options: Any,
    ) -> None:
        super().__init__(manager, **options)
        self._head_seconds = head_seconds
        self._stall_seconds = stall_seconds
        self._note_malformed = note_malformed
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timer."""
        super().connection_made(transport)
        _bound_silence(transport, self._stall_seconds)
        loop = asyncio.get_running_loop()
        self._head_timer = loop.call_later(self._head_seconds, transport.close)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the timer."""
        self.head_received()
        super().connection_lost(exc)

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 - aiohttp's signature
        """End the connection with the service; drained or not, its time is up.

        The handler is cancelled before aiohttp takes its transport away: an archive must be broken off on it, lest
        the end of the connection pass for the end of the archive (HTTP/1.0).
        """
        if self._task_handler is not None:
            self._task_handler.cancel()
        await super().shutdown(timeout)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP request, or too large a one, with a problem document, and close the connection."""
        refused = HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
        if not refused or request.writer.output_size > 0:
            return super().handle_error(request, status, exc, message)
        self._note_malformed()
        document = problem(BadRequest("The request is malformed, or its head is too large."))
        response = web.json_response(document, status=BadRequest.status, content_type="application/problem+json")
        response.headers.update({**SAFETY_HEADERS, "Cache-Control": "no-store", "Server": SERVER_NAME})
        response.force_close()
        return response

    def head_received(self) -> None:
        """Stop the timer: the first request is complete."""
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _bound_silence(transport: asyncio.BaseTransport, seconds: float) -> None:
    """Let the kernel give a client up that acknowledges nothing (tcp(7), TCP_USER_TIMEOUT; Linux only).

    What a response has left for the kernel to send is out of our sight: without this, a client whose line is dead holds
    its connection for a quarter of an hour. Where we see a stall, within twice the limit, we are to be first: we tell
    the client, and the kernel does not.
    """
    sock = transport.get_extra_info("socket")
    if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, round(3 * seconds * 1000)))
