"""Sends requests to the API and to wherever it redirects: rate limit, redirects, API key, metrics, error translation.

GET requests go through ``http1.Response`` on aiohttp's connections, requests with a body through aiohttp's client. The
idle timeout covers every wait for the upstream and nothing else: never the time in which a slow client pauses reading.

Internals of aiohttp that are used: ``ClientRequest`` is constructed here, as the key of the pool's connections
(tests/test_aiohttp_contract.py names each).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import BinaryIO, Protocol, TypeVar

import aiohttp
import structlog
from yarl import URL

from service.model import Failure, Hop, Reason
from service.monitoring.metrics import Metrics
from service.monitoring.tracing import outgoing_traceparent
from service.upstream.health import UpstreamHealth
from service.upstream.http.connector import GuardedConnector
from service.upstream.http.headers import retry_after_seconds
from service.upstream.http.http1 import Response, encode_request
from service.upstream.http.resolver import AddressRejected
from service.upstream.http.session import COMMON_HEADERS, ConnectionBroken
from service.upstream.rate_limiter import RateLimiter
from service.upstream.retry import AttemptFailed
from service.upstream.url_policy import REDIRECT_STATUSES, UrlPolicy, UrlRejected

# The origins whose pool keys are cached: the API's, its asset server's, the storage's.
MAX_ORIGINS = 64

log = structlog.get_logger(__name__)

_T = TypeVar("_T")


class _HasHeader(Protocol):
    """A response whose header has been received, of either client."""

    @property
    def status(self) -> int:
        """Its status code."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Its header fields."""


_ResponseT = TypeVar("_ResponseT", bound=_HasHeader)


class Fetcher:
    """Sends requests to the API and to the targets of its redirects. Shared by the whole process.

    ``metrics`` and ``health`` default to private, unexported instances.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url_policy: UrlPolicy,
        *,
        rate_limiter: RateLimiter,
        api_headers: Mapping[str, str],
        idle_timeout_seconds: float,
        metrics: Metrics | None = None,
        health: UpstreamHealth | None = None,
    ) -> None:
        self._session = session
        self._url_policy = url_policy
        self._rate_limiter = rate_limiter
        self._api_headers = dict(api_headers)
        self._idle_timeout_seconds = idle_timeout_seconds
        self._metrics = metrics or Metrics()
        self._health = health or UpstreamHealth(time.monotonic)
        self._loop = asyncio.get_running_loop()
        self._pool_keys: dict[tuple[str, str | None, int | None], aiohttp.ClientRequest] = {}

    def is_api(self, url: URL) -> bool:
        """Whether a response's URL belongs to the API itself, not to its storage."""
        return self._url_policy.is_api(url)

    @asynccontextmanager
    async def get(
        self, url: URL, headers: Mapping[str, str], granted: Callable[[], None] = lambda: None
    ) -> AsyncIterator[Response]:
        """Open the response at the end of the redirects from an API URL; abort it on leaving, unless it is complete.

        ``granted`` is called when the API itself has agreed: by a success, or a redirect to the image.

        Raises:
            AttemptFailed: no connection, no response in time, or a redirect that is rejected.
        """
        response = await self._follow_redirects(url, headers, granted)
        try:
            yield response
        finally:
            response.abort()

    @asynccontextmanager
    async def send(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        body: bytes | BinaryIO,
        *,
        extra_seconds: float = 0.0,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a body to the API, or to a URL that it gave, and open the response; redirects are not followed.

        ``extra_seconds`` is what the body may take besides the idle timeout.

        Raises:
            AttemptFailed: no connection, no response in time, or a URL that is rejected.
        """
        try:
            self._url_policy.check(url)
        except UrlRejected as error:
            raise AttemptFailed(Failure(Reason.REDIRECT_REFUSED, str(error)), retryable=False) from error

        async def send(request_headers: Mapping[str, str]) -> aiohttp.ClientResponse:
            return await self._with_timeout(
                self._session.request(method, url, headers=request_headers, data=body, allow_redirects=False),
                extra_seconds=extra_seconds,
            )

        hop = Hop.API if self._url_policy.is_api(url) else Hop.STORAGE
        response = await self._request(url, headers, send, lambda _status: hop)
        try:
            yield response
        finally:
            response.release() if response.content.at_eof() else response.close()

    async def read(self, response: aiohttp.ClientResponse) -> bytes:
        """Return the next bytes of the body of a response from ``send``, or ``b""`` at its clean end.

        Raises:
            AttemptFailed: the idle timeout expired, or the connection broke.
        """
        try:
            return await self._with_timeout(response.content.readany())
        except RuntimeError as error:
            # aiohttp 3.14: when a chunk breaks the framing behind delivered data, the connection is closed, but the
            # body gets neither an error nor an end, and a read that comes later fails like this.
            failure = Failure(Reason.CONNECTION_LOST, "the framing of the response is broken")
            raise AttemptFailed(failure) from error

    async def _follow_redirects(self, url: URL, headers: Mapping[str, str], granted: Callable[[], None]) -> Response:
        hops = 0
        try:
            url = self._url_policy.check(url)
            while True:
                response = await self._get(url, headers, hops)
                if not hops and response.status < HTTPStatus.BAD_REQUEST:
                    granted()
                if response.status not in REDIRECT_STATUSES:
                    return response
                response.discard()
                url = self._url_policy.resolve_redirect(url, response.headers.get("Location"), hops)
                hops += 1
        except UrlRejected as error:
            raise AttemptFailed(Failure(Reason.REDIRECT_REFUSED, str(error))) from error

    async def _get(self, url: URL, headers: Mapping[str, str], hops: int) -> Response:
        is_api = self._url_policy.is_api(url)

        async def send(request_headers: Mapping[str, str]) -> Response:
            return await self._get_once(url, request_headers, is_api=is_api)

        return await self._request(url, headers, send, lambda status: hop_of(hops, is_api=is_api, status=status))

    async def _request(
        self,
        url: URL,
        headers: Mapping[str, str],
        send: Callable[[Mapping[str, str]], Awaitable[_ResponseT]],
        hop_of_status: Callable[[int | None], Hop],
    ) -> _ResponseT:
        """Send one request, and account for it: rate limit, metrics, the upstream's health, throttling by 429.

        A cancelled request is not counted. The API key and what identifies the client go to the API's origin only;
        the storage gets the bare request.
        """
        is_api = self._url_policy.is_api(url)
        if is_api:
            await self._acquire_rate_limit()
            headers = self._headers_for_api(headers)
        started = time.monotonic()
        try:
            response = await send(headers)
        except AttemptFailed as error:
            hop = hop_of_status(None)
            self._metrics.count_no_response(hop)
            if error.failure.reason is not Reason.REDIRECT_REFUSED:  # by us
                self._record_health(hop, failed=True)
            raise
        hop = hop_of_status(response.status)
        self._metrics.count_response(hop, response.status, time.monotonic() - started)
        self._record_health(hop, failed=response.status >= HTTPStatus.INTERNAL_SERVER_ERROR)
        if is_api and response.status == HTTPStatus.TOO_MANY_REQUESTS:
            self._throttle(response.headers)
        return response

    async def _get_once(self, url: URL, headers: Mapping[str, str], *, is_api: bool) -> Response:
        """Send a GET request, a second time if an idle connection was closed on it (RFC 9112 section 9.3.1).

        A server may close an idle connection at any time. That is no failure of the request, so it uses up no
        attempt and keeps its redirect target. The second time is on a new connection, because others may be as dead.
        """
        request = encode_request(url, {**COMMON_HEADERS, **headers})
        fresh = False
        while True:
            connection, reused = await self._connect(url, fresh=fresh)
            response = Response(connection, url, idle_timeout_seconds=self._idle_timeout_seconds, loop=self._loop)
            try:
                await response.start(request)
            except asyncio.CancelledError:
                response.abort()
                raise
            except AttemptFailed:
                if not (reused and response.closed_before_response):
                    raise
            else:
                return response
            log.info("upstream.request_repeated", host=url.host)
            if is_api:
                await self._acquire_rate_limit()
            fresh = True  # and so not repeated again

    async def _connect(self, url: URL, *, fresh: bool = False) -> tuple[aiohttp.connector.Connection, bool]:
        """Return a connection to the URL's origin, and whether it is reused; the session bounds the time.

        Raises:
            AttemptFailed: there is none, or it is rejected.
        """
        connector = self._session.connector
        try:
            if isinstance(connector, GuardedConnector):
                return await connector.acquire(self._pool_key(url), self._session.timeout, fresh=fresh)
        except (aiohttp.ClientError, OSError) as error:
            raise AttemptFailed(_failure_of(error, "no connection to the upstream in time")) from error
        raise AttemptFailed(Failure(Reason.CONNECTION_FAILED, "the service is stopping"))

    def _pool_key(self, url: URL) -> aiohttp.ClientRequest:
        """Return the request that stands for the URL's origin in aiohttp's pool."""
        origin = url.scheme, url.raw_host, url.port
        key = self._pool_keys.get(origin)
        if key is None:
            if len(self._pool_keys) >= MAX_ORIGINS:
                self._pool_keys.clear()
            key = self._pool_keys[origin] = aiohttp.ClientRequest("GET", url, loop=self._loop, session=self._session)
        return key

    async def _acquire_rate_limit(self) -> None:
        if waited_seconds := await self._rate_limiter.acquire():
            self._metrics.rate_limit_wait.inc(waited_seconds)

    def _throttle(self, headers: Mapping[str, str]) -> None:
        pause_seconds = self._rate_limiter.pause(retry_after_seconds(headers))
        self._metrics.upstream_throttled.inc()
        log.warning("upstream.throttled", pause_seconds=pause_seconds)

    def _record_health(self, hop: Hop, *, failed: bool) -> None:
        """Record how API and asset server do; the storage is another service, and fails image by image."""
        if hop is Hop.STORAGE:
            return
        if failed:
            self._health.record_failure()
        else:
            self._health.record_success()

    def _headers_for_api(self, headers: Mapping[str, str]) -> dict[str, str]:
        request_id = structlog.contextvars.get_contextvars().get("request_id")
        tracing = {"X-Request-ID": str(request_id)} if request_id else {}
        if traceparent := outgoing_traceparent():
            tracing["traceparent"] = traceparent
        return {**headers, **self._api_headers, **tracing}

    async def _with_timeout(self, wait: Awaitable[_T], *, extra_seconds: float = 0.0) -> _T:
        """Await the upstream within the idle timeout, and translate aiohttp's errors."""
        try:
            async with asyncio.timeout(self._idle_timeout_seconds + extra_seconds):
                return await wait
        except (ConnectionBroken, aiohttp.ClientError, OSError) as error:
            seconds = f"{self._idle_timeout_seconds:g}"
            raise AttemptFailed(_failure_of(error, f"no data from the upstream for {seconds} s")) from error


def hop_of(hops: int, *, is_api: bool, status: int | None) -> Hop:
    """Return which hop a response came from after so many redirects; its ``status`` is ``None`` if there was none.

    The first hop is the API. Behind it, whatever has the API's own origin or redirects is an asset server; the end of
    the redirects is the storage.
    """
    if hops == 0:
        return Hop.API
    return Hop.ASSET if is_api or status in REDIRECT_STATUSES else Hop.STORAGE


def _failure_of(error: Exception, timeout_detail: str) -> Failure:
    """Translate an error of aiohttp or of the socket."""
    reason, detail = Reason.CONNECTION_LOST, "the connection broke"
    match error:
        case aiohttp.ClientConnectorError(os_error=AddressRejected() as rejected):
            reason, detail = Reason.REDIRECT_REFUSED, str(rejected)
        case aiohttp.ClientConnectorError():
            reason, detail = Reason.CONNECTION_FAILED, f"no connection to {error.host}"
        case aiohttp.ConnectionTimeoutError():
            reason, detail = Reason.TIMEOUT, "no connection to the upstream in time"
        case TimeoutError():
            reason, detail = Reason.TIMEOUT, timeout_detail
        case aiohttp.InvalidURL():
            reason, detail = Reason.REDIRECT_REFUSED, "a redirect to an invalid URL"
        case aiohttp.ClientPayloadError():
            reason, detail = Reason.TRUNCATED, "the response ended before its body was complete"
    return Failure(reason, detail)
