"""The process's HTTP client: rate limit, redirects, API key, metrics, and the upstream's health.

GET requests run as ``fetch.Fetch`` on connections of our own pool, requests with a body through aiohttp's client. The
idle timeout covers every wait for the upstream and nothing else: never the time in which a slow client pauses reading.
The API key goes to the API's origin only.
"""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import BinaryIO, TypeVar

import aiohttp
import structlog
from yarl import URL

from service.model import Failure, Hop, Reason
from service.monitoring.metrics import Metrics
from service.monitoring.tracing import current_trace, outgoing_traceparent
from service.upstream.health import UpstreamHealth
from service.upstream.http.connection import ConnectionPool, UpstreamConnection
from service.upstream.http.fetch import Fetch, FetchSink
from service.upstream.http.headers import retry_after_seconds
from service.upstream.http.request import RequestTemplate
from service.upstream.http.resolver import AddressRejected
from service.upstream.http.response_reader import ResponseStarted
from service.upstream.http.session import ConnectionBroken
from service.upstream.rate_limiter import RateLimiter
from service.upstream.retry import AttemptFailed
from service.upstream.url_policy import Target, UrlPolicy, UrlRejected

log = structlog.get_logger(__name__)

_T = TypeVar("_T")


class Fetcher:
    """Sends requests to the API and wherever it leads. Shared by the whole process.

    ``metrics`` and ``health`` default to private, unexported instances.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        pool: ConnectionPool,
        url_policy: UrlPolicy,
        *,
        rate_limiter: RateLimiter,
        api_headers: Mapping[str, str],
        idle_timeout_seconds: float,
        metrics: Metrics | None = None,
        health: UpstreamHealth | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.idle_timeout_seconds = idle_timeout_seconds
        self._session = session
        self._pool = pool
        self._url_policy = url_policy
        self._rate_limiter = rate_limiter
        self._api_headers = dict(api_headers)
        self._metrics = metrics or Metrics()
        self._health = health or UpstreamHealth(time.monotonic)

    def target(self, url: URL) -> Target:
        """Return a URL as a target.

        Raises:
            UrlRejected: the policy does not allow it.
        """
        return self._url_policy.target(url)

    def template(self, headers: Mapping[str, str]) -> RequestTemplate:
        """Return a template for requests made on behalf of the current client request."""
        request_id = structlog.contextvars.get_contextvars().get("request_id")
        return RequestTemplate(
            headers, self._api_headers, request_id=str(request_id) if request_id else None, trace=current_trace()
        )

    def start(
        self,
        target: Target,
        template: RequestTemplate,
        sink: FetchSink,
        granted: Callable[[], None] | None = None,
        extra: bytes = b"",
    ) -> Fetch:
        """Start a GET whose response goes to the sink; ``extra`` are further encoded header fields."""
        fetch = Fetch(self, target, functools.partial(template.encode, extra=extra), sink, granted)
        fetch.start()
        return fetch

    async def get(self, url: URL, headers: Mapping[str, str], *, max_bytes: int) -> tuple[ResponseStarted, bytes]:
        """Return a whole response, of whatever status, at the end of the redirects.

        Raises:
            AttemptFailed: no connection, no whole response in time, one above ``max_bytes``, or a URL that is rejected.
        """
        try:
            target = self.target(url)
        except UrlRejected as error:
            raise AttemptFailed(Failure(Reason.REDIRECT_REFUSED, str(error)), retryable=False) from error
        body = _Body(self.loop, max_bytes)
        fetch = self.start(target, self.template(headers), body)
        try:
            return await body.received
        finally:
            fetch.abort()

    # fetch.FetchEnvironment

    def try_acquire_turn(self, target: Target) -> bool:
        """Take a turn at the API's rate limit if there is one now; the storage has no limit."""
        return not target.origin.is_api or self._rate_limiter.try_acquire()

    async def acquire_turn(self, target: Target) -> None:
        """Wait for a turn at the API's rate limit."""
        del target
        self._metrics.rate_limit_wait.inc(await self._rate_limiter.acquire())

    def take_connection(self, target: Target) -> UpstreamConnection | None:
        """Return an idle connection."""
        return self._pool.take(target.origin)

    async def dial(self, target: Target) -> UpstreamConnection:
        """Return a fresh connection.

        Raises:
            AttemptFailed: there is none.
        """
        return await self._pool.dial(target.origin)

    def redirect(self, current: Target, location: str | None, hops: int) -> Target:
        """Return the target of a redirect.

        Raises:
            UrlRejected: the policy does not allow it.
        """
        return self._url_policy.redirect(current, location, hops)

    def record_response(self, hop: Hop, status: int, headers: Mapping[str, str], seconds: float) -> None:
        """Count a response, and pause requests after a 429 of the API."""
        self._metrics.count_response(hop, status, seconds)
        self._record_health(hop, failed=status >= HTTPStatus.INTERNAL_SERVER_ERROR)
        if status == HTTPStatus.TOO_MANY_REQUESTS and hop is not Hop.STORAGE:
            pause_seconds = self._rate_limiter.pause(retry_after_seconds(headers))
            self._metrics.upstream_throttled.inc()
            log.warning("upstream.throttled", pause_seconds=pause_seconds)

    def record_failure(self, hop: Hop, failure: Failure) -> None:
        """Count a request without a response."""
        self._metrics.count_no_response(hop)
        if failure.reason is not Reason.REDIRECT_REFUSED:  # by our own policy
            self._record_health(hop, failed=True)

    def record_repeat(self, target: Target) -> None:
        """Log a request that is sent once more, because its reused connection was closed before a response."""
        log.info("upstream.request_repeated", host=target.origin.host)

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
            target = self.target(url)
        except UrlRejected as error:
            raise AttemptFailed(Failure(Reason.REDIRECT_REFUSED, str(error)), retryable=False) from error
        hop = Hop.API if target.origin.is_api else Hop.STORAGE
        if not self.try_acquire_turn(target):
            await self.acquire_turn(target)
        fields = self._fields_for_api(headers) if target.origin.is_api else headers
        started = self.loop.time()
        try:
            response = await self._with_timeout(
                self._session.request(method, url, headers=fields, data=body, allow_redirects=False),
                extra_seconds=extra_seconds,
            )
        except AttemptFailed as error:
            self.record_failure(hop, error.failure)
            raise
        self.record_response(hop, response.status, response.headers, self.loop.time() - started)
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

    def _record_health(self, hop: Hop, *, failed: bool) -> None:
        """Record how API and asset server do; the storage is another service, and fails image by image."""
        if hop is Hop.STORAGE:
            return
        if failed:
            self._health.record_failure()
        else:
            self._health.record_success()

    def _fields_for_api(self, headers: Mapping[str, str]) -> dict[str, str]:
        fields = {**headers, **self._api_headers}
        if request_id := structlog.contextvars.get_contextvars().get("request_id"):
            fields["X-Request-ID"] = str(request_id)
        if traceparent := outgoing_traceparent():
            fields["traceparent"] = traceparent
        return fields

    async def _with_timeout(self, wait: Awaitable[_T], *, extra_seconds: float = 0.0) -> _T:
        """Await the upstream within the idle timeout, and translate aiohttp's errors."""
        try:
            async with asyncio.timeout(self.idle_timeout_seconds + extra_seconds):
                return await wait
        except (ConnectionBroken, aiohttp.ClientError, OSError) as error:
            seconds = f"{self.idle_timeout_seconds:g}"
            raise AttemptFailed(_failure_of(error, f"no data from the upstream for {seconds} s")) from error


class _Body:
    """Collects a whole response in memory (``fetch.FetchSink``)."""

    def __init__(self, loop: asyncio.AbstractEventLoop, max_bytes: int) -> None:
        self.received: asyncio.Future[tuple[ResponseStarted, bytes]] = loop.create_future()
        self._max_bytes = max_bytes
        self._response: ResponseStarted | None = None
        self._body = bytearray()

    def response_started(self, response: ResponseStarted, *, from_api: bool) -> None:
        """Keep status and headers."""
        del from_api
        self._response = response

    def body_received(self, chunk: bytes) -> None:
        """Collect, within the bound."""
        self._body += chunk
        if len(self._body) > self._max_bytes:
            failure = Failure(Reason.TOO_LONG, f"the response has more than {self._max_bytes} bytes")
            raise AttemptFailed(failure, retryable=False)

    def response_ended(self) -> None:
        """Hand the response over."""
        if self._response is not None and not self.received.done():
            self.received.set_result((self._response, bytes(self._body)))

    def fetch_failed(self, error: AttemptFailed) -> None:
        """Hand the failure over."""
        self.fetch_crashed(error)

    def fetch_crashed(self, error: BaseException) -> None:
        """Hand a fault of the service over."""
        if not self.received.done():
            self.received.set_exception(error)


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
