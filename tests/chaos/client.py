"""A caller of the service which sees everything: trailers, and whether the transfer was whole.

By hand on a socket, because aiohttp's client drops trailers, and because it should not share its server's mistakes.
"""

import asyncio
import socket
from collections.abc import Callable

from yarl import URL

from tests.chaos.evidence import Arrived, Ending
from tests.chaos.scenario import Manners

# A transfer longer than this hangs: the slowest scenario takes a third of it.
PATIENCE_SECONDS = 90.0
SEGMENT_BYTES = 1400


class _Leaves(Exception):
    """The caller has had enough."""


async def download(url: URL, manners: Manners, progress: Callable[[int], None]) -> Arrived:
    """Download an archive; ``progress`` is told the number of body bytes so far, 0 when the headers are there."""
    arrived = Arrived()
    transport: asyncio.WriteTransport | None = None
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            reader, writer = await _connect(url, manners)
            transport = writer.transport
            lines = (f"GET {url.raw_path_qs} HTTP/1.1", f"Host: {url.authority}", "Connection: close", "", "")
            writer.write("\r\n".join(lines).encode("ascii"))
            await _Reading(reader, manners, progress, arrived).run()
            arrived.ending = Ending.CLEAN
    except _Leaves:
        arrived.ending = Ending.LEFT
    except TimeoutError:
        arrived.ending = Ending.HUNG
    except (asyncio.IncompleteReadError, ConnectionError, ValueError) as error:
        arrived.ending, arrived.detail = Ending.BROKEN, f"{type(error).__name__}: {error}"
    finally:
        if transport is not None:
            transport.abort()
    return arrived


async def _connect(url: URL, manners: Manners) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    connection = socket.socket()
    connection.setblocking(False)
    if manners.receive_buffer_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, manners.receive_buffer_bytes)
        # Segments of a network's size: those of loopback, 64 KiB, never fit into such a window, and the sender's kernel
        # then sends a window's worth only when its persist timer fires (RFC 9293 section 3.8.6.1), 9 kB a second.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES)
    try:
        await asyncio.get_running_loop().sock_connect(connection, (url.host, url.port))
        return await asyncio.open_connection(sock=connection, limit=max(64 * 1024, manners.read_bytes))
    except BaseException:
        connection.close()
        raise


class _Reading:
    """One response (RFC 9112), read into ``arrived``. ValueError means that it is not HTTP."""

    def __init__(
        self, reader: asyncio.StreamReader, manners: Manners, progress: Callable[[int], None], arrived: Arrived
    ) -> None:
        self._reader = reader
        self._manners = manners
        self._progress = progress
        self._arrived = arrived
        self._paused = False

    async def run(self) -> None:
        status_line, *fields = await self._lines()
        self._arrived.status = int(status_line.split(" ", 2)[1])
        self._arrived.headers.update(map(_field, fields))
        await self._take(b"")
        if self._arrived.headers.get("transfer-encoding") == "chunked":
            await self._chunks()
        else:
            await self._body(int(self._arrived.headers["content-length"]))
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
                raise ValueError("a chunk does not end where it said")
        self._arrived.trailers.update(map(_field, await self._lines()))

    async def _body(self, size: int) -> None:
        while size:
            piece = await self._reader.read(min(size, self._manners.read_bytes))
            if not piece:
                raise asyncio.IncompleteReadError(b"", size)
            size -= len(piece)
            await self._take(piece)

    async def _take(self, piece: bytes) -> None:
        """Keep a piece of the body, and do what the manners say."""
        body, manners = self._arrived.body, self._manners
        body += piece
        self._progress(len(body))
        if manners.leave_after_bytes is not None and len(body) >= manners.leave_after_bytes:
            raise _Leaves
        for _ in range(manners.turns):
            await asyncio.sleep(0)
        pause_after = manners.pause_after_bytes
        if not self._paused and pause_after is not None and len(body) >= pause_after:
            self._paused = True
            await asyncio.sleep(manners.pause_seconds)


def _field(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon:
        raise ValueError(f"not a header field: {line!r}")
    return name.lower(), value.strip()
