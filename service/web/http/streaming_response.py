"""The response an archive streams on: trailers after a truthful end, an aborted connection after anything else.

Internals of aiohttp that are used, because it has no API for trailers, for aborting, or for writing without a task:
``StreamResponse._payload_writer``, ``_req`` and ``_eof_sent``, ``StreamWriter.chunked`` and ``send_headers``. The
connection's part is in ``connection.ClientConnection``. ``tests/test_aiohttp_contract.py`` checks each of them.

Backpressure::

    send ──▶ gathered ──(PIECE_BYTES, or flush)──▶ transport ──above its high-water mark──▶ paused: send returns False
                                                       └──below its low-water mark──▶ on_writable

The response owns one timer, while it is paused: a client that takes nothing for ``stall_seconds`` is given up.
"""

import asyncio
import fcntl
import socket
import struct
import sys
import termios
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter

from service.errors import ClientStalled
from service.web.http.connection import ClientConnection

# Above this the transport pauses us until its client has taken most of it; asyncio's own limit, and uvloop's.
WRITE_BUFFER_BYTES = 64 * 1024
# Small parts are sent together until they come to this: each write costs about 20 µs of the process.
PIECE_BYTES = 128 * 1024
# SO_LINGER with a time of 0: closing sends RST instead of FIN (socket(7)).
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class StreamingResponse(web.StreamResponse):
    """A chunked ZIP with trailer fields (RFC 9110 section 6.5, RFC 9112 section 7.1.2).

    ``trailers`` is called once, at the clean end. HTTP/1.0 has no chunks: its clients get no trailers, and the end
    of the connection as the end of the archive.
    """

    def __init__(
        self, headers: Mapping[str, str], trailers: Callable[[], Mapping[str, str]], *, stall_seconds: float
    ) -> None:
        super().__init__(headers=headers)
        self.content_type = "application/zip"
        self._trailers = trailers
        self._stall_seconds = stall_seconds
        self._loop = asyncio.get_running_loop()
        self._connection: ClientConnection | None = None
        self._on_writable: Callable[[], None] = lambda: None
        self._on_failed: Callable[[BaseException], None] = lambda _error: None
        self._gathered: list[bytes | memoryview] = []
        self._gathered_bytes = 0
        self._is_aborted = False
        self._is_stalled = False
        self._paused_since: float | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._untaken_bytes = 0  # when the timer was set
        self._blocked_seconds = 0.0

    @property
    def blocked_seconds(self) -> float:
        """Seconds in which the archive had bytes to send and the client did not read fast enough, up to now."""
        paused_seconds = 0.0 if self._paused_since is None else self._loop.time() - self._paused_since
        return self._blocked_seconds + paused_seconds

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send the headers; the body is written past aiohttp's writer, which would copy every piece once more."""
        writer = await super().prepare(request)
        if writer is not None:
            writer.send_headers()
        if isinstance(request.protocol, ClientConnection):
            self._connection = request.protocol
            self._connection.on_writable = self._resume
        return writer

    def attach(self, on_writable: Callable[[], None], on_failed: Callable[[BaseException], None]) -> None:
        """Set what is called when more may be written, and when the client stalls or has gone."""
        self._on_writable, self._on_failed = on_writable, on_failed

    def send(self, parts: Sequence[bytes | memoryview]) -> bool:
        """Send the parts, or gather them if they are small; return whether more may follow now.

        Raises:
            ConnectionResetError: the client has gone.
        """
        self._gathered += parts
        self._gathered_bytes += sum(map(len, parts))
        if self._gathered_bytes >= PIECE_BYTES:
            self.flush()
        return self._paused_since is None

    def flush(self) -> None:
        """Send what was gathered as one chunk.

        Raises:
            ConnectionResetError: the client has gone.
        """
        size = self._gathered_bytes
        if not size:
            return  # a chunk of no bytes would be the end of the body
        parts, self._gathered, self._gathered_bytes = self._gathered, [], 0
        if _in_chunks(self._payload_writer):  # RFC 9112 section 7.1
            parts = [b"%x\r\n" % size, *parts, b"\r\n"]
        self._send(parts)

    def abort(self, request: web.BaseRequest) -> None:
        """End the connection so that the client cannot take what it has for a whole archive.

        A chunked body without its last chunk is recognised as cut (curl exits 18). Over HTTP/1.0 a closed
        connection is a clean end, so there the connection is reset. So is that of a stalled client: what the kernel
        still holds for it would keep the end from it, for as long as the kernel has patience.
        """
        self._is_aborted = True
        self._detach()
        transport = request.transport
        if transport is None:
            return
        reset = self._is_stalled or request.version < HttpVersion11
        if reset and (sock := transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()

    async def write_eof(self, data: bytes = b"") -> None:
        """End the body: the last chunk carries the trailers. Wait until the client has taken most of what is left.

        Raises:
            ClientStalled: the client takes nothing.
            ConnectionResetError: the client has gone, or the response was aborted.
        """
        if self._is_aborted:
            # aiohttp ends every response that a handler returns; this one must stay open-ended.
            raise ConnectionResetError("the response was aborted")
        writer = self._payload_writer
        if writer is not None and not self._eof_sent:
            self.flush()
            if _in_chunks(writer):
                fields = "".join(f"{name}: {value}\r\n" for name, value in self._trailers().items())
                writer.chunked = False  # type: ignore[attr-defined]  # the body is ended here: no second last chunk
                self._send([f"0\r\n{fields}\r\n".encode("latin-1")])
            if self._paused_since is not None:
                await self._wait_writable()
        self._detach()
        await super().write_eof(data)

    def _send(self, parts: Sequence[bytes | memoryview]) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        # One write, because ``writelines`` of CPython 3.12.0 to 3.12.8, 3.13.0 and 3.13.1 never pauses the protocol
        # (CVE-2024-12254). The copy costs no more than ``sendmsg`` of small parts.
        transport.write(b"".join(parts))
        if self._paused_since is None and transport.get_write_buffer_size() > WRITE_BUFFER_BYTES:
            self._paused_since = self._loop.time()
            self._watch_stall(_untaken_bytes(transport))

    async def _wait_writable(self) -> None:
        writable: asyncio.Future[None] = self._loop.create_future()

        def succeed() -> None:
            if not writable.done():
                writable.set_result(None)

        def fail(error: BaseException) -> None:
            if not writable.done():
                writable.set_exception(error)

        self.attach(succeed, fail)
        await writable

    def _resume(self) -> None:
        """Take that the transport's buffer is below its low-water mark."""
        if self._paused_since is not None:
            self._end_pause()
            self._on_writable()

    def _end_pause(self) -> None:
        self._blocked_seconds, self._paused_since = self.blocked_seconds, None
        self._stop_timer()

    def _watch_stall(self, untaken_bytes: int) -> None:
        self._untaken_bytes = untaken_bytes
        self._stall_timer = self._loop.call_later(self._stall_seconds, self._check_stall)

    def _check_stall(self) -> None:
        """Give a client up that has taken nothing. A slow client is not a stalled one."""
        transport = self._transport
        if transport is not None and (untaken_bytes := _untaken_bytes(transport)) < self._untaken_bytes:
            self._watch_stall(untaken_bytes)
            return
        self._is_stalled = True
        self._on_failed(ClientStalled(f"the client has taken nothing for {self._stall_seconds:g} s"))

    def _detach(self) -> None:
        self._end_pause()
        if self._connection is not None:
            self._connection.on_writable = None
            self._connection = None

    def _stop_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    @property
    def _transport(self) -> asyncio.Transport | None:
        return self._req.transport if self._req is not None else None


# Set by a handler when its response has started, so that a later failure aborts that response.
STREAMING = web.RequestKey("streaming", StreamingResponse)


def _in_chunks(writer: AbstractStreamWriter | None) -> bool:
    # The concrete writer's, not the abstract base's; HTTP/1.0 has no chunks.
    return bool(getattr(writer, "chunked", False))


def _untaken_bytes(transport: asyncio.Transport) -> int:
    """Return the bytes that the client has not acknowledged: the transport's and the kernel's (tcp(7), SIOCOUTQ).

    The kernel may hold megabytes, and takes more from the transport only when a third of its room is free again: by
    the transport alone, a client that takes 10 kB a second would seem to take nothing for a minute.
    """
    in_kernel = bytes(4)
    if (sock := transport.get_extra_info("socket")) is not None:
        with suppress(OSError, ValueError):  # not known here, or just closed: the transport's must do
            in_kernel = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, in_kernel)
    return transport.get_write_buffer_size() + int.from_bytes(in_kernel, sys.byteorder)
