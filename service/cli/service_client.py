"""The caller's side of the service's own HTTP interface, for the command line."""

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import aiohttp

# An answer that is no archive is read whole; an order of 2,000 images comes to about 1 MB.
MAX_ANSWER_BYTES = 32 * 1024 * 1024
UPLOAD_CHUNK_BYTES = 64 * 1024
# Silence of the service: it sends something at least whenever an image has come, or gives up before this; a download
# that waits for images may be silent for as long as it waits, too.
SILENCE_SECONDS = 300

# What asks for health wants to know soon.
HEALTH_SECONDS = 3

Query = Sequence[tuple[str, str]]


class ProblemResponse(Exception):
    """The service answered with a problem; ``problem`` is its document (RFC 9457)."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(
            f"{problem.get('title', 'The service refused')} ({status}): {problem.get('detail', '')}".strip(": ")
        )
        self.status = status
        self.problem = problem


class TransferBroke(Exception):
    """The service could not be reached, or broke off what it had begun."""


class Service:
    """A running service at ``url``. Use it as an async context manager."""

    def __init__(self, url: str, *, key: str | None = None, admin_token: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._headers = {
            name: value for name, value in (("X-API-Key", key), ("X-Admin-Token", admin_token)) if value is not None
        }
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the connections."""
        timeout = aiohttp.ClientTimeout(total=None, sock_read=SILENCE_SECONDS)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout, auto_decompress=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close them."""
        if self._session is not None:
            await self._session.close()

    async def health(self) -> dict[str, Any]:
        """Return what ``/health/live`` answers.

        Raises:
            ProblemResponse, TransferBroke
        """
        soon = aiohttp.ClientTimeout(total=HEALTH_SECONDS)
        async with self._answer("GET", "/health/live", timeout=soon) as response:
            return await _json(response)

    async def order(self, order_id: str, query: Query = ()) -> dict[str, Any]:
        """Return what ``GET /orders/{id}`` answers.

        Raises:
            ProblemResponse, TransferBroke
        """
        async with self._answer("GET", f"/orders/{order_id}", query) as response:
            return await _json(response)

    async def create_order(
        self, files: Sequence[Path], fields: Mapping[str, str], on_bytes: Callable[[int], None]
    ) -> dict[str, Any]:
        """Send photos in and return what became of them; ``on_bytes`` is told how many bytes were sent.

        Raises:
            ProblemResponse, TransferBroke
        """
        form = aiohttp.FormData(quote_fields=False, default_to_multipart=True)
        for name, value in fields.items():
            form.add_field(name, value)
        for file in files:
            form.add_field("files", _read(file, on_bytes), filename=file.name, content_type="application/octet-stream")
        async with self._answer("POST", "/api/create-order", data=form) as response:
            return await _json(response)

    async def download(
        self,
        order_id: str,
        query: Query,
        sink: BinaryIO,
        on_bytes: Callable[[int], None],
        *,
        on_begin: Callable[[], None] = lambda: None,
        only: Sequence[str] = (),
        missing: Sequence[str] = (),
        wait_seconds: int = 0,
    ) -> int:
        """Write the archive into ``sink``; return the number of images that it was to hold when it began.

        ``on_begin`` is told that the service has begun to answer, ``on_bytes`` how many bytes have come.
        ``only`` are the images to take (all if there are none named), however many; or ``missing`` those that an
        earlier archive lacks, of which the order may have lost some.

        Raises:
            ProblemResponse: before the first byte.
            TransferBroke: after it.
        """
        body = {"missing": list(missing)} if missing else {"only": list(only)} if only else None
        asked: dict[str, Any] = {"method": "POST", "json": body} if body else {"method": "GET"}
        if wait_seconds:
            query = [*query, ("wait", str(wait_seconds))]
        silence = aiohttp.ClientTimeout(total=None, sock_read=SILENCE_SECONDS + wait_seconds)
        async with self._answer(path=f"/orders/{order_id}/images", query=query, timeout=silence, **asked) as response:
            on_begin()
            async for chunk in response.content.iter_any():
                sink.write(chunk)
                on_bytes(len(chunk))
            return int(response.headers.get("X-Total-Images", "0"))

    async def progress(self, archive_id: str) -> AsyncIterator[tuple[int, int]]:
        """Yield how many images of a download are done, and of how many, as its events tell it.

        Ends with the download, or where its events cannot be had (any more): that is no error.
        """
        rest = b""
        try:
            async with self._answer("GET", f"/archives/{archive_id}/events") as response:
                async for chunk in response.content.iter_any():
                    *events, rest = (rest + chunk).split(b"\n\n")
                    for counts in filter(None, map(_counts, events)):
                        yield counts
                    if len(rest) > MAX_ANSWER_BYTES:
                        return
        except (ProblemResponse, TransferBroke):
            return

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, query: Query = (), **body: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            raise RuntimeError("the service is used outside of its context")
        try:
            async with self._session.request(
                method, self._url + path, params=list(query), allow_redirects=False, **body
            ) as response:
                if not 200 <= response.status < 300:  # noqa: PLR2004 - success
                    raise ProblemResponse(response.status, await _problem(response))
                yield response
        except aiohttp.ClientPayloadError as error:
            raise TransferBroke("the transfer was broken off before its end") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TransferBroke(f"no answer from {self._url}: {error}") from error


async def _read(file: Path, on_bytes: Callable[[int], None]) -> AsyncIterator[bytes]:
    with file.open("rb") as content:
        while chunk := content.read(UPLOAD_CHUNK_BYTES):
            yield chunk
            on_bytes(len(chunk))


def _counts(event: bytes) -> tuple[int, int] | None:
    """Return how many images are done, and of how many, if a server-sent event tells it."""
    data = [line.removeprefix(b"data:") for line in event.splitlines() if line.startswith(b"data:")]
    try:
        told = json.loads(b"".join(data))
        done, total = told["downloaded"] + told["failed"], told["total"]
    except (ValueError, KeyError, TypeError):
        return None
    return (done, total) if isinstance(done, int) and isinstance(total, int) else None


async def _json(response: aiohttp.ClientResponse) -> dict[str, Any]:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise TransferBroke("the service's answer is too large")
    try:
        answer = json.loads(body)
    except ValueError as error:
        raise TransferBroke("what answers there is not this service") from error
    if not isinstance(answer, dict):
        raise TransferBroke("what answers there is not this service")
    return answer


async def _problem(response: aiohttp.ClientResponse) -> dict[str, Any]:
    try:
        return await _json(response)
    except TransferBroke:
        return {"title": "No problem document", "detail": f"the answer's type is {response.content_type}"}
