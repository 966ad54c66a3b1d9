"""HTTP client of the service's own API, for the command line."""

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import aiohttp

# JSON responses are read whole; an order of 2,000 images comes to about 1 MB.
MAX_JSON_BYTES = 32 * 1024 * 1024
UPLOAD_CHUNK_BYTES = 64 * 1024
# The service sends something whenever an image arrives, or aborts the archive before this; a download with wait= may be
# idle for as long as it waits, in addition.
IDLE_TIMEOUT_SECONDS = 300
# Health checks have short timeouts of their own (HEALTHCHECK in the Dockerfile: 3 s).
HEALTH_TIMEOUT_SECONDS = 3

Query = Sequence[tuple[str, str]]


class ProblemResponse(Exception):
    """The service responded with a problem; ``problem`` is its document (RFC 9457)."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(
            f"{problem.get('title', 'The request was rejected')} ({status}): {problem.get('detail', '')}".strip(": ")
        )
        self.status = status
        self.problem = problem


class TransferError(Exception):
    """The service is unreachable, its response is incomplete, or it is not this service."""


class ServiceClient:
    """Client of a running service at ``url``. Use it as an async context manager."""

    def __init__(self, url: str, *, key: str | None = None, admin_token: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._headers = {
            name: value for name, value in (("X-API-Key", key), ("X-Admin-Token", admin_token)) if value is not None
        }
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the client session."""
        timeout = aiohttp.ClientTimeout(total=None, sock_read=IDLE_TIMEOUT_SECONDS)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout, auto_decompress=False)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it with its connections."""
        if self._session is not None:
            await self._session.close()

    async def health(self) -> dict[str, Any]:
        """Return the JSON of ``GET /health/live``.

        Raises:
            ProblemResponse, TransferError
        """
        timeout = aiohttp.ClientTimeout(total=HEALTH_TIMEOUT_SECONDS)
        async with self._request("GET", "/health/live", timeout=timeout) as response:
            return await _read_json(response)

    async def order(self, order_id: str, query: Query = ()) -> dict[str, Any]:
        """Return the JSON of ``GET /orders/{id}``.

        Raises:
            ProblemResponse, TransferError
        """
        async with self._request("GET", f"/orders/{order_id}", query) as response:
            return await _read_json(response)

    async def create_order(
        self, files: Sequence[Path], fields: Mapping[str, str], on_bytes: Callable[[int], object]
    ) -> dict[str, Any]:
        """Upload photos as a new order and return the outcome of each; ``on_bytes`` gets the size of each sent chunk.

        Raises:
            ProblemResponse, TransferError
        """
        form = aiohttp.FormData(quote_fields=False, default_to_multipart=True)
        for name, value in fields.items():
            form.add_field(name, value)
        for file in files:
            form.add_field(
                "files", _read_chunks(file, on_bytes), filename=file.name, content_type="application/octet-stream"
            )
        async with self._request("POST", "/api/create-order", data=form) as response:
            return await _read_json(response)

    async def download(
        self,
        order_id: str,
        query: Query,
        sink: BinaryIO,
        on_bytes: Callable[[int], object],
        *,
        on_response: Callable[[], None] = lambda: None,
        only: Sequence[str] = (),
        missing: Sequence[str] = (),
        wait_seconds: int = 0,
    ) -> int:
        """Write an archive into ``sink``; return the number of images announced for it (``X-Total-Images``).

        ``on_response`` is called when the response has started, ``on_bytes`` with the size of each chunk. ``only``
        selects images, however many (all if empty). ``missing`` selects those that an earlier archive lacks, some of
        which the order may no longer have.

        Raises:
            ProblemResponse: before the first byte.
            TransferError: after it.
        """
        body = {"missing": list(missing)} if missing else {"only": list(only)} if only else None
        request: dict[str, Any] = {"method": "POST", "json": body} if body else {"method": "GET"}
        if wait_seconds:
            query = [*query, ("wait", str(wait_seconds))]
        timeout = aiohttp.ClientTimeout(total=None, sock_read=IDLE_TIMEOUT_SECONDS + wait_seconds)
        async with self._request(
            path=f"/orders/{order_id}/images", query=query, timeout=timeout, **request
        ) as response:
            on_response()
            async for chunk in response.content.iter_any():
                sink.write(chunk)
                on_bytes(len(chunk))
            return int(response.headers.get("X-Total-Images", "0"))

    async def progress(self, archive_id: str) -> AsyncIterator[tuple[int, int]]:
        """Yield the numbers of finished images and of all images of a download, from its server-sent events.

        Ends with the download, or without an error when its events are not available.
        """
        rest = b""
        try:
            async with self._request("GET", f"/archives/{archive_id}/events") as response:
                async for chunk in response.content.iter_any():
                    *events, rest = (rest + chunk).split(b"\n\n")
                    for counts in filter(None, map(_parse_counts, events)):
                        yield counts
                    if len(rest) > MAX_JSON_BYTES:
                        return
        except (ProblemResponse, TransferError):
            return

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, query: Query = (), **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            raise RuntimeError("the client is used outside of its context")
        try:
            async with self._session.request(
                method, self.url + path, params=list(query), allow_redirects=False, **options
            ) as response:
                if not 200 <= response.status < 300:  # noqa: PLR2004 - success
                    raise ProblemResponse(response.status, await _read_problem(response))
                yield response
        except aiohttp.ClientPayloadError as error:
            raise TransferError("the response ended before it was complete") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TransferError(f"no response from {self.url}: {error}") from error


async def _read_chunks(file: Path, on_bytes: Callable[[int], object]) -> AsyncIterator[bytes]:
    with file.open("rb") as content:
        while chunk := content.read(UPLOAD_CHUNK_BYTES):
            yield chunk
            on_bytes(len(chunk))


def _parse_counts(event: bytes) -> tuple[int, int] | None:
    """Return the numbers of finished images and of all images, or None for an event without them."""
    data = [line.removeprefix(b"data:") for line in event.splitlines() if line.startswith(b"data:")]
    try:
        receipt = json.loads(b"".join(data))
        done, total = receipt["downloaded"] + receipt["failed"], receipt["total"]
    except (ValueError, KeyError, TypeError):
        return None
    return (done, total) if isinstance(done, int) and isinstance(total, int) else None


async def _read_json(response: aiohttp.ClientResponse) -> dict[str, Any]:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_JSON_BYTES:
            raise TransferError("the response of the service is too large")
    try:
        document = json.loads(body)
    except ValueError as error:
        raise TransferError("the server at this address is not this service") from error
    if not isinstance(document, dict):
        raise TransferError("the server at this address is not this service")
    return document


async def _read_problem(response: aiohttp.ClientResponse) -> dict[str, Any]:
    try:
        return await _read_json(response)
    except TransferError:
        return {"title": "No problem document", "detail": f"the content type is {response.content_type}"}
