"""The response an archive streams on: trailers after a truthful end, a broken connection after anything else.

The only file that reaches below aiohttp's public API, because that has none for trailers and none for breaking off.
"""

import socket
import struct
from collections.abc import Callable, Mapping

from aiohttp import HttpVersion11, web

# SO_LINGER with a time of 0: closing sends RST instead of FIN (socket(7)).
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class ArchiveResponse(web.StreamResponse):
    """A chunked ZIP with trailer fields (RFC 9110 section 6.5, RFC 9112 section 7.1.2).

    ``trailers`` is asked once, at the clean end. HTTP/1.0 has no chunks: its callers get no trailers, and the end
    of the connection as the end of the archive.
    """

    def __init__(self, headers: Mapping[str, str], trailers: Callable[[], Mapping[str, str]]) -> None:
        super().__init__(headers=headers)
        self.content_type = "application/zip"
        self._trailers = trailers
        self._broken = False

    def break_off(self, request: web.BaseRequest) -> None:
        """End the connection so that the caller cannot take what it has for a whole archive.

        A chunked body without its last chunk is recognised as cut (curl exits 18). Over HTTP/1.0 a closed
        connection is a clean end, so there the connection is reset.
        """
        self._broken = True
        transport = request.transport
        if transport is None:
            return
        if request.version < HttpVersion11 and (sock := transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()

    async def write_eof(self, data: bytes = b"") -> None:
        """End the body: the last chunk carries the trailers."""
        if self._broken:
            # aiohttp ends every response it is given back; this one must stay open-ended.
            raise ConnectionResetError("the response was broken off")
        writer = self._payload_writer
        # ``chunked`` belongs to the concrete writer, not to its abstract base.
        if writer is not None and getattr(writer, "chunked", False) and not self._eof_sent:
            if data:
                await writer.write(data)
            fields = "".join(f"{name}: {value}\r\n" for name, value in self._trailers().items())
            writer.chunked = False  # type: ignore[attr-defined]  # we end the body ourselves: no second last chunk
            await writer.write(f"0\r\n{fields}\r\n".encode("latin-1"))
            data = b""
        await super().write_eof(data)
