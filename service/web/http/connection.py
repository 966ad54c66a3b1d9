"""Server-side connections: aiohttp's request handler with a header timeout, TCP_USER_TIMEOUT and problem documents.

Uses these internals of aiohttp: the subclass of ``web.RequestHandler`` (its constructor, ``__slots__``,
``connection_made``, ``connection_lost``, ``shutdown``, ``handle_error``), its attribute ``_task_handler``, and
``web.Server.request_factory``.
"""

import asyncio
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from aiohttp import web

from service.errors import BadRequest, problem
from service.web.http.expect_continue import defer_continue
from service.web.http.headers import SECURITY_HEADERS, SERVER_NAME
from service.web.http.problems import PROBLEM_TYPE

# Idle connections of clients and proxies are kept this long; also bounds the header section of their next request.
KEEPALIVE_SECONDS = 75.0
# A URL with some hundred image ids fits; so do the headers that proxies add.
MAX_REQUEST_LINE_BYTES = 16 * 1024
MAX_HEADER_FIELD_BYTES = 16 * 1024


class ClientConnection(web.RequestHandler):
    """A connection that is closed unless its first header section arrives within ``header_timeout_seconds``.

    aiohttp bounds the size of a header section, and the time between requests, but not the time of the first header
    section: a client that sends a byte now and then (Slowloris) would hold its connection indefinitely. Later header
    sections are bounded by the keep-alive timeout. ``on_malformed`` is called for each malformed request.
    """

    __slots__ = ("_header_timeout_seconds", "_header_timer", "_on_malformed", "_stall_seconds", "on_writable")

    def __init__(
        self,
        manager: web.Server,
        *,
        header_timeout_seconds: float,
        stall_seconds: float,
        on_malformed: Callable[[], None],
        **options: Any,
    ) -> None:
        super().__init__(manager, **options)
        self._header_timeout_seconds = header_timeout_seconds
        self._stall_seconds = stall_seconds
        self._on_malformed = on_malformed
        self._header_timer: asyncio.TimerHandle | None = None
        # Called when the transport's buffer has fallen to its low-water mark.
        self.on_writable: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the header timer."""
        super().connection_made(transport)
        _set_tcp_user_timeout(transport, self._stall_seconds)
        loop = asyncio.get_running_loop()
        self._header_timer = loop.call_later(self._header_timeout_seconds, transport.close)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the header timer."""
        self.headers_received()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        """Continue the response."""
        super().resume_writing()
        if self.on_writable is not None:
            self.on_writable()

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 - aiohttp's signature
        """Close the connection when the service stops, whether or not its request was drained.

        The handler is cancelled before aiohttp takes its transport away: an unfinished archive must abort it, lest
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
        """Respond to a malformed or oversized request with a problem document, and close the connection."""
        is_client_error = HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
        if not is_client_error or request.writer.output_size > 0:
            return super().handle_error(request, status, exc, message)
        self._on_malformed()
        document = problem(BadRequest("The request is malformed, or its header section is too large."))
        response = web.json_response(document, status=BadRequest.status, content_type=PROBLEM_TYPE)
        response.headers.update({**SECURITY_HEADERS, "Cache-Control": "no-store", "Server": SERVER_NAME})
        response.force_close()
        return response

    def headers_received(self) -> None:
        """Stop the header timer: the first header section is complete."""
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


def connection_factory(
    server: web.Server, *, header_timeout_seconds: float, stall_seconds: float, on_malformed: Callable[[], None]
) -> Callable[[], ClientConnection]:
    """Return a protocol factory for ``loop.create_server``; aiohttp's sites accept no connection class."""
    server.request_factory = defer_continue(server.request_factory)
    loop = asyncio.get_running_loop()

    def connect() -> ClientConnection:
        return ClientConnection(
            server,
            loop=loop,
            access_log=None,  # middleware.access_log replaces it
            header_timeout_seconds=header_timeout_seconds,
            stall_seconds=stall_seconds,
            on_malformed=on_malformed,
            keepalive_timeout=KEEPALIVE_SECONDS,
            max_line_size=MAX_REQUEST_LINE_BYTES,
            max_field_size=MAX_HEADER_FIELD_BYTES,
            auto_decompress=False,  # no endpoint needs it, and a compressed body may be a decompression bomb
        )

    return connect


def _set_tcp_user_timeout(transport: asyncio.BaseTransport, seconds: float) -> None:
    """Make the kernel drop a client that acknowledges nothing (tcp(7), TCP_USER_TIMEOUT; Linux only).

    What a response has left to the kernel's send buffer is invisible to us: without this, a client with a dead link
    holds its connection for a quarter of an hour. Three times the limit, because our own stall detection needs up to
    twice the limit and must come first: it logs the reason, and the kernel does not.
    """
    sock = transport.get_extra_info("socket")
    if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, round(3 * seconds * 1000)))
