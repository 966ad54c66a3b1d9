"""The response an archive streams on: trailers after a truthful end, a broken connection after anything else.

The only file that reaches below aiohttp's public API, because that has none for trailers and none for breaking off.
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

# Above this the transport stops us until its client has taken most of it; asyncio's own limit, and uvloop's.
WRITE_BUFFER_BYTES = 64 * 1024
# SO_LINGER with a time of 0: closing sends RST instead of FIN (socket(7)).
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class StreamingResponse(web.StreamResponse):
    """A chunked ZIP with trailer fields (RFC 9110 section 6.5, RFC 9112 section 7.1.2).

    ``trailers`` is asked once, at the clean end. HTTP/1.0 has no chunks: its callers get no trailers, and the end
    of the connection as the end of the archive. A client that takes no byte for ``stall_seconds`` is given up.
    """

    def __init__(
        self, headers: Mapping[str, str], trailers: Callable[[], Mapping[str, str]], *, stall_seconds: float
    ) -> None:
        super().__init__(headers=headers)
        self.content_type = "application/zip"
        self._trailers = trailers
        self._stall_seconds = stall_seconds
        self._broken = False
        self._stalled = False
        # Seconds in which the archive had bytes to send and the client took none fast enough.
        self.blocked_seconds = 0.0

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send the headers; what follows is written past aiohttp's writer, which would copy every piece once more."""
        writer = await super().prepare(request)
        if writer is not None:
            writer.send_headers()
        return writer

    async def send(self, parts: Sequence[bytes | memoryview]) -> None:
        """Write the parts of a piece as one chunk, and wait until the client has taken enough for the next piece.

        Raises:
            ClientStalled: the client took nothing for too long.
            ConnectionResetError: the client has gone.
        """
        writer, transport = self._payload_writer, self._transport
        if writer is None or transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        size = sum(map(len, parts))
        if not size:
            return  # a chunk of no bytes would be the end of the body
        if _in_chunks(writer):  # RFC 9112 section 7.1
            parts = (b"%x\r\n" % size, *parts, b"\r\n")
        await self._write(writer, transport, parts)

    async def _write(
        self, writer: AbstractStreamWriter, transport: asyncio.Transport, parts: Sequence[bytes | memoryview]
    ) -> None:
        # One write, because ``writelines`` of CPython 3.12.0 to 3.12.8, 3.13.0 and 3.13.1 never pauses the protocol
        # (CVE-2024-12254), so that ``drain`` returns at once. The copy costs no more than ``sendmsg`` of small parts.
        transport.write(b"".join(parts))
        if transport.get_write_buffer_size() > WRITE_BUFFER_BYTES:
            started = time.monotonic()
            try:
                await self._drain(writer, transport)
            finally:
                self.blocked_seconds += time.monotonic() - started

    async def _drain(self, writer: AbstractStreamWriter, transport: asyncio.Transport) -> None:
        """Wait for room. A slow client is not a stalled one: what counts is that something was taken."""
        loop = asyncio.get_running_loop()
        waiting_bytes = _untaken_bytes(transport)
        limit = asyncio.timeout(None)
        timer: asyncio.TimerHandle

        def check() -> None:
            nonlocal waiting_bytes, timer
            left_bytes = _untaken_bytes(transport)
            if left_bytes >= waiting_bytes:
                limit.reschedule(loop.time())
                return
            waiting_bytes = left_bytes
            timer = loop.call_later(self._stall_seconds, check)

        timer = loop.call_later(self._stall_seconds, check)
        # One drain is waited for all the time: aiohttp's can be cancelled only for good (``_drain_helper`` keeps its
        # future, and whoever comes next gets the cancelled one).
        try:
            async with limit:
                await writer.drain()
        except TimeoutError:
            self._stalled = True
            raise ClientStalled(f"the client has taken nothing for {self._stall_seconds:g} s") from None
        finally:
            timer.cancel()

    @property
    def _transport(self) -> asyncio.Transport | None:
        return self._req.transport if self._req is not None else None

    def abort(self, request: web.BaseRequest) -> None:
        """End the connection so that the caller cannot take what it has for a whole archive.

        A chunked body without its last chunk is recognised as cut (curl exits 18). Over HTTP/1.0 a closed
        connection is a clean end, so there the connection is reset. So is that of a client that takes nothing: what
        the kernel still holds for it would keep the end from it, for as long as the kernel has patience.
        """
        self._broken = True
        transport = request.transport
        if transport is None:
            return
        reset = self._stalled or request.version < HttpVersion11
        if reset and (sock := transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()

    async def write_eof(self, data: bytes = b"") -> None:
        """End the body: the last chunk carries the trailers."""
        if self._broken:
            # aiohttp ends every response it is given back; this one must stay open-ended.
            raise ConnectionResetError("the response was broken off")
        writer, transport = self._payload_writer, self._transport
        if writer is not None and transport is not None and _in_chunks(writer) and not self._eof_sent:
            fields = "".join(f"{name}: {value}\r\n" for name, value in self._trailers().items())
            writer.chunked = False  # type: ignore[attr-defined]  # we end the body ourselves: no second last chunk
            await self._write(writer, transport, [f"0\r\n{fields}\r\n".encode("latin-1")])
        await super().write_eof(data)


def _in_chunks(writer: AbstractStreamWriter) -> bool:
    # The concrete writer's, not the abstract base's; HTTP/1.0 has no chunks.
    return bool(getattr(writer, "chunked", False))


def _untaken_bytes(transport: asyncio.Transport) -> int:
    """Return the bytes that the client has not acknowledged: the transport's and the kernel's (tcp(7), SIOCOUTQ).

    The kernel may hold megabytes, and asks the transport for more only when a third of its room is free again: by
    the transport alone, a client that takes 10 kB a second would seem to take nothing for a minute.
    """
    in_kernel = bytes(4)
    if (sock := transport.get_extra_info("socket")) is not None:
        with suppress(OSError, ValueError):  # not known here, or just closed: the transport's must do
            in_kernel = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, in_kernel)
    return transport.get_write_buffer_size() + int.from_bytes(in_kernel, sys.byteorder)
