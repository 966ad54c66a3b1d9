"""A running sandbox, aiohttp's client for it, and a raw-socket client that returns every byte."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest
from aiohttp import ClientSession
from yarl import URL

from service.sandbox import Sandbox

StorageUrl = Callable[..., Awaitable[str]]
RawGet = Callable[..., Awaitable["RawResponse"]]


@dataclass(frozen=True)
class RawResponse:
    """A response as received from a socket, and how it ended: ``eof``, ``reset``, or ``open`` if reading stopped."""

    head: str
    body: bytes
    ending: str

    @property
    def status(self) -> int:
        """The status code."""
        return int(self.head.split(" ", 2)[1])

    def header(self, name: str) -> str | None:
        """Return the value of a header, None if it was not sent."""
        lines = (line.partition(": ") for line in self.head.splitlines()[1:])
        return next((value for key, _, value in lines if key.lower() == name.lower()), None)


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox() as running:
        yield running


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with ClientSession() as open_session:
        yield open_session


@pytest.fixture
def storage_url(sandbox: Sandbox, session: ClientSession) -> StorageUrl:
    """Follow both redirects of a download and return the storage URL."""

    async def follow(image_id: str, query: str = "preview=true") -> str:
        key = {"x-api-key": sandbox.api_key}
        first = f"{sandbox.api_base}/images/{image_id}/enhanced?{query}"
        async with session.get(first, headers=key, allow_redirects=False) as response:
            assert response.status == 302
            second = sandbox.api_origin + response.headers["Location"]
        async with session.get(second, allow_redirects=False) as response:
            assert response.status == 302
            return response.headers["Location"]

    return follow


@pytest.fixture
def raw_get() -> RawGet:
    """Send a GET over a plain socket and read to the end, or ``stop_after`` bytes of the body."""

    async def get(url: str, headers: dict[str, str] | None = None, *, stop_after: int | None = None) -> RawResponse:
        address = URL(url)
        loop = asyncio.get_running_loop()
        lines = [f"GET {address.raw_path_qs} HTTP/1.1", f"Host: {address.authority}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        with socket.socket() as connection:
            connection.setblocking(False)
            await loop.sock_connect(connection, (address.host, address.port))
            await loop.sock_sendall(connection, ("\r\n".join(lines) + "\r\n\r\n").encode())
            received, ending = await _read(connection, stop_after)
        head, _, body = received.partition(b"\r\n\r\n")
        return RawResponse(head.decode(), body, ending)

    return get


async def _read(connection: socket.socket, stop_after: int | None) -> tuple[bytes, str]:
    loop, received = asyncio.get_running_loop(), b""
    while True:
        _, separator, body = received.partition(b"\r\n\r\n")
        if stop_after is not None and separator and len(body) >= stop_after:
            return received, "open"
        try:
            chunk = await loop.sock_recv(connection, 64 * 1024)
        except ConnectionResetError:
            return received, "reset"
        if not chunk:
            return received, "eof"
        received += chunk
