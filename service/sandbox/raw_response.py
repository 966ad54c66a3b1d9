"""Writes HTTP responses byte by byte, so that they can be invalid.

The rule of this file: only this module touches a connection below HTTP. Everything goes through ``request.writer``,
which applies backpressure.
"""

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

# How often the kernel's send queue is checked before a reset, which would discard unsent bytes.
_FLUSH_CHECKS = 200
_FLUSH_CHECK_SECONDS = 0.005
_TRAILERS = b"X-Trailer: and another one\r\n" * 100


class Sent(web.StreamResponse):
    """Marks a response as sent for aiohttp, and says whether its connection may be reused."""

    def __init__(self, status: int, *, reusable: bool) -> None:
        super().__init__(status=status)
        self._reusable = reusable

    @property
    def keep_alive(self) -> bool | None:
        """Whether the connection may be reused."""
        return self._reusable

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Do nothing: the headers are sent already."""
        return request.writer

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing: the body is sent already."""


class RawResponse:
    """One response on the connection of a request."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._writer = request.writer
        self.bytes_sent = 0

    async def send_headers(self, status: int, headers: Mapping[str, str], *, padding: str = "") -> None:
        """Send status line and headers, with ``padding`` around each value."""
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            *(f"{key}: {padding}{value}{padding}" for key, value in headers.items()),
        ]
        await self._writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def send(self, chunk: bytes, *, chunked: bool = False) -> None:
        """Send a part of the body."""
        await self._writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunked else chunk)
        self.bytes_sent += len(chunk)

    async def end_chunks(self, behind: bytes = b"") -> None:
        """Send the last chunk, and the bytes ``behind`` it in the same write."""
        await self._writer.write(b"0\r\n\r\n" + behind)

    async def endless_trailers(self) -> None:
        """Send the last chunk and trailers until the client closes the connection.

        Raises:
            ConnectionError: the client closed the connection.
        """
        await self._writer.write(b"0\r\n")
        while True:
            await self._writer.write(_TRAILERS)

    def done(self, status: int, *, reusable: bool) -> Sent:
        """Return the response object for aiohttp, after everything is sent."""
        return Sent(status, reusable=reusable and bool(self._request.keep_alive))

    async def close(self, status: int = 0) -> Sent:
        """Close the connection cleanly (FIN)."""
        transport = self._request.transport
        if transport is not None:
            transport.close()
        return self.done(status, reusable=False)

    async def reset(self, status: int = 0) -> Sent:
        """Close the connection with a TCP RST, once the client's kernel has acknowledged all sent bytes."""
        transport = self._request.transport
        if transport is None:
            return self.done(status, reusable=False)
        # A high-water mark of 0 makes drain() wait until the transport's buffer is empty.
        transport.set_write_buffer_limits(0)
        await self._writer.drain()
        connection = transport.get_extra_info("socket")
        await _flushed(connection)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
        return self.done(status, reusable=False)


async def _flushed(connection: socket.socket) -> None:
    for _ in range(_FLUSH_CHECKS):
        try:
            unacknowledged = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
        except OSError:
            return
        if not any(unacknowledged):
            return
        await asyncio.sleep(_FLUSH_CHECK_SECONDS)
