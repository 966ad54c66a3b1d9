"""The response that an archive is streamed on: trailers after a complete body, an aborted connection otherwise.

aiohttp has no public API for trailers, for aborting a response, or for writing without a copy. This file therefore
depends on these internals of ``aiohttp.web.StreamResponse`` and ``aiohttp.http_writer.StreamWriter`` (3.14):

- ``StreamResponse._req``: the request, whose ``transport`` is written to past the writer.
- ``StreamResponse._payload_writer``: the writer, once the response is prepared.
- ``StreamResponse._eof_sent``: whether ``write_eof`` has completed.
- ``StreamWriter.send_headers()``: sends the headers at once. The writer would otherwise keep them back to send them
  with the first bytes of a body that it never sees.
- ``StreamWriter.chunked``: whether the body is chunked; set to false so that ``write_eof`` adds no last chunk to ours.
- ``StreamWriter.drain()``: waits while the protocol is paused; it needs no bytes written through the writer.
- ``BaseProtocol._drain_helper``: keeps one future for all waiters, so a cancelled ``drain`` must not be repeated.
- ``StreamResponse.prepare()`` and ``write_eof()`` are overridden; aiohttp calls the latter for every returned response.
"""

import asyncio
import fcntl
import socket
import struct
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter

from service.errors import ClientStalled

# Above this the transport pauses the writer until its client has read most of it; asyncio's own limit, and uvloop's.
WRITE_BUFFER_BYTES = 64 * 1024
# Small writes are coalesced up to this size: each write to the transport costs about 20 µs of the process.
COALESCE_BYTES = 128 * 1024
# SO_LINGER with a time of 0: closing sends RST instead of FIN (socket(7)).
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class StreamingResponse(web.StreamResponse):
    """A chunked ZIP with trailer fields (RFC 9110 section 6.5, RFC 9112 section 7.1.2).

    ``trailers`` is called once, after a complete body. HTTP/1.0 has neither chunks nor trailers: there the end of the
    connection is the end of the archive. A client that reads nothing for ``stall_seconds`` is disconnected.

    Writes are coalesced: what is sent without the event loop running in between leaves as one chunk, of about
    ``COALESCE_BYTES`` at most. So bytes never wait for later ones that have not arrived yet.
    """

    def __init__(
        self, headers: Mapping[str, str], trailers: Callable[[], Mapping[str, str]], *, stall_seconds: float
    ) -> None:
        super().__init__(headers=headers)
        self.content_type = "application/zip"
        self._trailers = trailers
        self._stall_seconds = stall_seconds
        self._aborted = False
        self._stalled = False
        self._unsent: list[bytes | memoryview] = []
        self._unsent_bytes = 0
        self._flush_handle: asyncio.Handle | None = None
        # Seconds for which the archive waited for the client to read.
        self.blocked_seconds = 0.0

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send the headers. The body is written past aiohttp's writer, which would copy every chunk once more."""
        writer = await super().prepare(request)
        if writer is not None:
            writer.send_headers()
        return writer

    async def send(self, parts: Sequence[bytes | memoryview]) -> None:
        """Write the parts of a chunk, and wait while too much is unsent (backpressure).

        Raises:
            ClientStalled: the client has read nothing for too long.
            ConnectionResetError: the client has gone.
        """
        writer, transport = self._require_client()
        await self._wait_for_room(writer, transport)
        self._unsent += parts
        self._unsent_bytes += sum(map(len, parts))
        if self._unsent_bytes >= COALESCE_BYTES:
            self._flush()
            await self._wait_for_room(writer, transport)
        elif self._flush_handle is None:
            self._flush_handle = asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Write everything unsent as one HTTP chunk."""
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        writer, transport = self._payload_writer, self._transport
        # A chunk without bytes would be the last chunk.
        if self._unsent_bytes and writer is not None and transport is not None and not transport.is_closing():
            if _is_chunked(writer):  # RFC 9112 section 7.1
                self._unsent = [b"%x\r\n" % self._unsent_bytes, *self._unsent, b"\r\n"]
            # One write, because ``writelines`` of CPython 3.12.0 to 3.12.8, 3.13.0 and 3.13.1 never pauses the protocol
            # (CVE-2024-12254), so that ``drain`` returns at once. The copy costs no more than ``sendmsg`` of small
            # parts.
            transport.write(b"".join(self._unsent))
        self._unsent = []
        self._unsent_bytes = 0

    def _require_client(self) -> tuple[AbstractStreamWriter, asyncio.Transport]:
        writer, transport = self._payload_writer, self._transport
        if writer is None or transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        return writer, transport

    @property
    def _transport(self) -> asyncio.Transport | None:
        return self._req.transport if self._req is not None else None

    async def _wait_for_room(self, writer: AbstractStreamWriter, transport: asyncio.Transport) -> None:
        if transport.get_write_buffer_size() > WRITE_BUFFER_BYTES:
            started = time.monotonic()
            try:
                await self._drain(writer, transport)
            finally:
                self.blocked_seconds += time.monotonic() - started

    async def _drain(self, writer: AbstractStreamWriter, transport: asyncio.Transport) -> None:
        """Wait until the protocol resumes. A client that reads anything in each period is slow, but not stalled."""
        loop = asyncio.get_running_loop()
        unsent_bytes = _unacknowledged_bytes(transport)
        limit = asyncio.timeout(None)
        timer: asyncio.TimerHandle

        def check() -> None:
            nonlocal unsent_bytes, timer
            remaining_bytes = _unacknowledged_bytes(transport)
            if remaining_bytes >= unsent_bytes:
                limit.reschedule(loop.time())
                return
            unsent_bytes = remaining_bytes
            timer = loop.call_later(self._stall_seconds, check)

        timer = loop.call_later(self._stall_seconds, check)
        # A single drain for the whole wait: ``_drain_helper`` keeps its future, so the next waiter would get a
        # cancelled one.
        try:
            async with limit:
                await writer.drain()
        except TimeoutError:
            self._stalled = True
            raise ClientStalled(f"the client has read nothing for {self._stall_seconds:g} s") from None
        finally:
            timer.cancel()

    def abort(self, request: web.BaseRequest) -> None:
        """Abort the connection, so that the client cannot mistake what it has for a complete archive.

        A chunked body without its last chunk is detected as truncated (curl exits 18). Over HTTP/1.0 a closed
        connection is a clean end, so there the connection is reset. So is that of a stalled client: the bytes that
        the kernel still holds would delay the end, for as long as the kernel retransmits.
        """
        self._aborted = True
        transport = request.transport
        if transport is None:
            return
        reset = self._stalled or request.version < HttpVersion11
        if reset and (sock := transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()

    async def write_eof(self, data: bytes = b"") -> None:
        """End the body; the trailers follow the last chunk.

        Raises:
            ClientStalled: the client has read nothing for too long.
            ConnectionResetError: the client has gone, or the response was aborted.
        """
        if self._aborted:
            # aiohttp ends every response that a handler returns; this one must stay incomplete.
            raise ConnectionResetError("the response was aborted")
        if not self._eof_sent:
            await self._end_body()
        await super().write_eof(data)

    async def _end_body(self) -> None:
        writer, transport = self._require_client()
        self._flush()
        if _is_chunked(writer):
            fields = "".join(f"{name}: {value}\r\n" for name, value in self._trailers().items())
            writer.chunked = False  # type: ignore[attr-defined]  # prevents a second last chunk
            transport.write(f"0\r\n{fields}\r\n".encode("latin-1"))
        await self._wait_for_room(writer, transport)


def _is_chunked(writer: AbstractStreamWriter) -> bool:
    # An attribute of the concrete writer, not of the abstract base; HTTP/1.0 has no chunks.
    return bool(getattr(writer, "chunked", False))


def _unacknowledged_bytes(transport: asyncio.Transport) -> int:
    """Return the bytes that the client has not acknowledged: the transport's and the kernel's (tcp(7), SIOCOUTQ).

    The kernel may hold megabytes, and becomes writable only when a third of its buffer is free again: by the transport
    alone, a client that reads 10 kB a second would seem stalled for a minute.
    """
    in_kernel = bytes(4)
    if (sock := transport.get_extra_info("socket")) is not None:
        with suppress(OSError, ValueError):  # unsupported, or just closed: the transport's must do
            in_kernel = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, in_kernel)
    return transport.get_write_buffer_size() + int.from_bytes(in_kernel, sys.byteorder)
