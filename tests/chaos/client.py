"""A minimal HTTP/1.1 client that reports trailers and how the transfer ended.

It reads the socket itself: aiohttp's client drops trailers, and shares code with the server under test.
"""

import asyncio
import socket
from collections.abc import Callable

from yarl import URL

from tests.chaos.model import Ending, Transfer
from tests.chaos.scenario import ClientBehaviour

# The slowest scenario takes a third of it.
TRANSFER_TIMEOUT_SECONDS = 90.0
SEGMENT_BYTES = 1400


class _ClientLeft(Exception):
    """The client closes the connection on purpose."""


async def download(url: URL, behaviour: ClientBehaviour, progress: Callable[[int], None]) -> Transfer:
    """Download an archive; ``progress`` gets the number of body bytes so far, first 0 after the headers."""
    transfer = Transfer()
    transport: asyncio.WriteTransport | None = None
    try:
        async with asyncio.timeout(TRANSFER_TIMEOUT_SECONDS):
            reader, writer = await _connect(url, behaviour)
            transport = writer.transport
            lines = (f"GET {url.raw_path_qs} HTTP/1.1", f"Host: {url.authority}", "Connection: close", "", "")
            writer.write("\r\n".join(lines).encode("ascii"))
            await _ResponseReader(reader, behaviour, progress, transfer).run()
            transfer.ending = Ending.CLEAN
    except _ClientLeft:
        transfer.ending = Ending.LEFT
    except TimeoutError:
        transfer.ending = Ending.HUNG
    except (asyncio.IncompleteReadError, ConnectionError, ValueError) as error:
        transfer.ending, transfer.detail = Ending.BROKEN, f"{type(error).__name__}: {error}"
    finally:
        if transport is not None:
            transport.abort()
    return transfer


async def _connect(url: URL, behaviour: ClientBehaviour) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    connection = socket.socket()
    connection.setblocking(False)
    if behaviour.receive_buffer_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, behaviour.receive_buffer_bytes)
        # Segments of a network's size: those of loopback, 64 KiB, never fit into such a window, and the sender's kernel
        # then sends a window's worth only when its persist timer fires (RFC 9293 section 3.8.6.1), 9 kB a second.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES)
    try:
        await asyncio.get_running_loop().sock_connect(connection, (url.host, url.port))
        return await asyncio.open_connection(sock=connection, limit=max(64 * 1024, behaviour.read_bytes))
    except BaseException:
        connection.close()
        raise


class _ResponseReader:
    """Reads one response (RFC 9112) into ``transfer``; raises ValueError if it is not HTTP."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        behaviour: ClientBehaviour,
        progress: Callable[[int], None],
        transfer: Transfer,
    ) -> None:
        self._reader = reader
        self._behaviour = behaviour
        self._progress = progress
        self._transfer = transfer
        self._paused = False

    async def run(self) -> None:
        status_line, *fields = await self._lines()
        self._transfer.status = int(status_line.split(" ", 2)[1])
        self._transfer.headers.update(map(_field, fields))
        await self._receive(b"")
        if self._transfer.headers.get("transfer-encoding") == "chunked":
            await self._chunks()
        else:
            await self._body(int(self._transfer.headers["content-length"]))
        if rest := await self._reader.read(64):
            raise ValueError(f"more after the end: {rest!r}")

    async def _lines(self) -> list[str]:
        """Read up to an empty line."""
        lines = []
        while line := (await self._reader.readuntil(b"\r\n")).removesuffix(b"\r\n"):
            lines.append(line.decode("latin-1"))
        return lines

    async def _chunks(self) -> None:
        while size := int((await self._reader.readuntil(b"\r\n")).removesuffix(b"\r\n"), 16):
            await self._body(size)
            if await self._reader.readexactly(2) != b"\r\n":
                raise ValueError("a chunk does not end after its size")
        self._transfer.trailers.update(map(_field, await self._lines()))

    async def _body(self, size: int) -> None:
        while size:
            chunk = await self._reader.read(min(size, self._behaviour.read_bytes))
            if not chunk:
                raise asyncio.IncompleteReadError(b"", size)
            size -= len(chunk)
            await self._receive(chunk)

    async def _receive(self, chunk: bytes) -> None:
        """Append a part of the body, and pause or leave as the behaviour says."""
        body, behaviour = self._transfer.body, self._behaviour
        body += chunk
        self._progress(len(body))
        if behaviour.leave_after_bytes is not None and len(body) >= behaviour.leave_after_bytes:
            raise _ClientLeft
        for _ in range(behaviour.turns):
            await asyncio.sleep(0)
        pause_after = behaviour.pause_after_bytes
        if not self._paused and pause_after is not None and len(body) >= pause_after:
            self._paused = True
            await asyncio.sleep(behaviour.pause_seconds)


def _field(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon:
        raise ValueError(f"not a header field: {line!r}")
    return name.lower(), value.strip()
