"""Opens answers of the upstream: redirects by hand, keys only to the API, aiohttp's errors translated.

What is fetched goes through ``exchange.Exchange`` on aiohttp's connections; what is sent, through aiohttp's client.
Every wait for the upstream is timed, and only waits for the upstream are: never one in which a slow client keeps us
from asking for more.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import BinaryIO, TypeVar

import aiohttp
import structlog
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from service.model import Failure, Hop, Reason
from service.monitoring.metrics import Metrics
from service.monitoring.tracing import outgoing_traceparent
from service.upstream.health import UpstreamHealth
from service.upstream.http.connector import GuardedConnector
from service.upstream.http.http1 import Exchange, question
from service.upstream.rate_limiter import RateLimiter
from service.upstream.retry import AttemptFailed, retry_after_seconds
from service.upstream.url_policy import REDIRECT_STATUSES, UrlPolicy, UrlRejected, is_private

# Signed redirect targets with a session token come close to aiohttp's default of 8,190 bytes for a header line.
MAX_HEADER_BYTES = 32 * 1024
# The origins whose connections are asked for by a request made before: the API's, its asset server's, the storage's.
MAX_ORIGINS = 64
COMMON_HEADERS = {"User-Agent": "autoenhance-batch", "Accept-Encoding": "identity"}

log = structlog.get_logger(__name__)

_T = TypeVar("_T")


class AddressRejected(OSError):
    """A host name stands for an address that is not public."""


class PublicResolver(AbstractResolver):
    """Resolves names and refuses those with any address that is not public.

    Checking here, and not before the request, leaves no moment in which the name could change its address. The
    odd spellings of IPv4 (decimal, octal, short) arrive here too, as names that the system's resolver understands.
    """

    def __init__(self, *, allow_private: bool) -> None:
        self._resolver = aiohttp.ThreadedResolver()
        self._allow_private = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the host's addresses.

        Raises:
            OSError: it cannot be resolved, or has an address in a private range.
        """
        results = await self._resolver.resolve(host, port, family)
        if not self._allow_private:
            for result in results:
                if is_private(result["host"]):
                    raise AddressRejected(f"{host} has an address that is not public")
        return results

    async def close(self) -> None:
        """Nothing is held."""
        await self._resolver.close()


class ConnectionBroken(Exception):
    """The connection broke before an answer began."""


async def _break_openly(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Keep aiohttp from repeating a GET whose connection broke (client middleware).

    It would ask a signed target a second time and hide an attempt from the ladder, which does better: it starts
    again at the API. The errors that aiohttp repeats on are turned into one that it lets through.
    """
    try:
        return await handler(request)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise ConnectionBroken(str(error)) from error


def open_session(
    *, allow_private: bool, connect_timeout_seconds: float, tls: ssl.SSLContext | None = None
) -> aiohttp.ClientSession:
    """Return the process's one client session; the caller closes it. ``tls`` is aiohttp's own unless given.

    No total time-out (a large image to a slow client may take hours), no cookies, no proxies from the environment,
    and no decoding: the bytes go into the archive as they are on the wire.
    """
    return aiohttp.ClientSession(
        connector=GuardedConnector(PublicResolver(allow_private=allow_private), tls),
        timeout=aiohttp.ClientTimeout(total=None, connect=connect_timeout_seconds),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        middlewares=(_break_openly,),
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        headers=COMMON_HEADERS,
    )


class Fetcher:
    """Sends GET requests to the API and wherever it redirects to. Shared by the whole process.

    Without ``metrics`` and ``breaker`` it tells its own, which nobody asks.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        rules: UrlPolicy,
        *,
        politeness: RateLimiter,
        api_headers: Mapping[str, str],
        silence_seconds: float,
        metrics: Metrics | None = None,
        breaker: UpstreamHealth | None = None,
    ) -> None:
        self._session = session
        self._rules = rules
        self._politeness = politeness
        self._api_headers = dict(api_headers)
        self._silence_seconds = silence_seconds
        self._metrics = metrics or Metrics()
        self._breaker = breaker or UpstreamHealth(time.monotonic)
        self._loop = asyncio.get_running_loop()
        self._origins: dict[tuple[str, str | None, int | None], aiohttp.ClientRequest] = {}

    def is_api(self, url: URL) -> bool:
        """Whether an answer's address belongs to the API itself, not to its storage."""
        return self._rules.is_api(url)

    @asynccontextmanager
    async def get(
        self, url: URL, headers: Mapping[str, str], granted: Callable[[], None] = lambda: None
    ) -> AsyncIterator[Exchange]:
        """Open the answer at the end of the redirects from an API address; on leaving, let go of the connection.

        ``granted`` is called when the API itself has agreed: with a success, or a redirect to where the thing is.

        Raises:
            AttemptFailed: no connection, no answer in time, or a redirect that is refused.
        """
        answer = await self._follow(url, headers, granted)
        try:
            yield answer
        finally:
            answer.close()

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
        """Send a body to the API, or where the API said, and open the answer; redirects are not followed.

        ``extra_seconds`` is what the body may take besides the silence time-out.

        Raises:
            AttemptFailed: no connection, no answer in time, or an address that is refused.
        """
        try:
            self._rules.check(url)
        except UrlRejected as error:
            raise AttemptFailed(Failure(Reason.REDIRECT_REFUSED, str(error)), retryable=False) from error
        to_api = self._rules.is_api(url)
        if to_api:
            await self._take_turn()
        hop, sent = (Hop.API if to_api else Hop.STORAGE), time.monotonic()
        asked = self._headers_for_api(headers) if to_api else headers
        try:
            response = await self._timed(
                self._session.request(method, url, headers=asked, data=body, allow_redirects=False),
                extra_seconds=extra_seconds,
            )
        except AttemptFailed as error:
            self._metrics.count_no_response(hop)
            if error.failure.reason is not Reason.REDIRECT_REFUSED:  # by us
                self._judge(hop, failed=True)
            raise
        self._metrics.count_response(hop, response.status, time.monotonic() - sent)
        self._judge(hop, failed=response.status >= HTTPStatus.INTERNAL_SERVER_ERROR)
        if to_api and response.status == HTTPStatus.TOO_MANY_REQUESTS:
            self._slow_down(response.headers)
        try:
            yield response
        finally:
            response.release() if response.content.at_eof() else response.close()

    async def read(self, response: aiohttp.ClientResponse) -> bytes:
        """Return the next bytes of the answer to what was sent, or ``b""`` at its clean end.

        Raises:
            AttemptFailed: the upstream was silent for too long, or the connection broke.
        """
        try:
            return await self._timed(response.content.readany())
        except RuntimeError as error:
            # aiohttp 3.14: when a chunk breaks the framing behind delivered data, the connection is closed, but the
            # body gets neither an error nor an end, and a read that comes later fails like this.
            raise AttemptFailed(Failure(Reason.CONNECTION_LOST, "the answer's framing is broken")) from error

    async def _follow(self, url: URL, headers: Mapping[str, str], granted: Callable[[], None]) -> Exchange:
        hops = 0
        try:
            url = self._rules.check(url)
            while True:
                answer = await self._request(url, headers, hops)
                if not hops and answer.status < HTTPStatus.BAD_REQUEST:
                    granted()
                if answer.status not in REDIRECT_STATUSES:
                    return answer
                answer.leave()
                url = self._rules.follow(url, answer.headers.get("Location"), hops)
                hops += 1
        except UrlRejected as error:
            raise AttemptFailed(Failure(Reason.REDIRECT_REFUSED, str(error))) from error

    async def _request(self, url: URL, headers: Mapping[str, str], hops: int) -> Exchange:
        to_api = self._rules.is_api(url)
        if to_api:
            await self._take_turn()
        answer = await self._answer(url, headers, hops, to_api=to_api)
        if to_api and answer.status == HTTPStatus.TOO_MANY_REQUESTS:
            self._slow_down(answer.headers)
        return answer

    async def _answer(self, url: URL, headers: Mapping[str, str], hops: int, *, to_api: bool) -> Exchange:
        """Send one request and count what came of it. A request that is called off is not counted."""
        sent = time.monotonic()
        # The key and what identifies our caller go to the API's origin only; storage gets the bare request.
        asked = self._headers_for_api(headers) if to_api else headers
        try:
            answer = await self._ask(url, asked, to_api=to_api)
        except AttemptFailed as error:
            hop = hop_of(hops, is_api=to_api, status=None)
            self._metrics.count_no_response(hop)
            if error.failure.reason is not Reason.REDIRECT_REFUSED:  # by us
                self._judge(hop, failed=True)
            raise
        hop = hop_of(hops, is_api=to_api, status=answer.status)
        self._metrics.count_response(hop, answer.status, time.monotonic() - sent)
        self._judge(hop, failed=answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR)
        return answer

    async def _ask(self, url: URL, headers: Mapping[str, str], *, to_api: bool) -> Exchange:
        """Send a GET request, a second time if an idle connection was closed on it (RFC 9112 section 9.3.1).

        A server may close an idle connection at any time. That is no failure of the request, so it uses up no try
        and keeps its redirect target. The second time is on a new connection, because others may be as dead.
        """
        request = question(url, {**COMMON_HEADERS, **headers})
        fresh = False
        while True:
            connection, reused = await self._connect(url, fresh=fresh)
            exchange = Exchange(connection, url, silence_seconds=self._silence_seconds, loop=self._loop)
            try:
                await exchange.ask(request)
            except asyncio.CancelledError:
                exchange.close()
                raise
            except AttemptFailed:
                if not (reused and exchange.unanswered):
                    raise
            else:
                return exchange
            log.info("upstream.request_repeated", host=url.host)
            if to_api:
                await self._take_turn()
            fresh = True  # and so not repeated again

    async def _connect(self, url: URL, *, fresh: bool = False) -> tuple[aiohttp.connector.Connection, bool]:
        """Return a connection to the URL's origin, and whether it was used before; the session bounds the time.

        Raises:
            AttemptFailed: there is none, or it is refused.
        """
        connector = self._session.connector
        try:
            if isinstance(connector, GuardedConnector):
                return await connector.acquire(self._wanted(url), self._session.timeout, fresh=fresh)
        except (aiohttp.ClientConnectorError, TimeoutError) as error:
            raise AttemptFailed(_connect_failure(error)) from error
        except aiohttp.InvalidURL as error:
            raise AttemptFailed(Failure(Reason.REDIRECT_REFUSED, "a redirect to an invalid address")) from error
        except (aiohttp.ClientError, OSError) as error:
            raise AttemptFailed(Failure(Reason.CONNECTION_LOST, "the connection broke")) from error
        raise AttemptFailed(Failure(Reason.CONNECTION_FAILED, "the service is stopping"))

    def _wanted(self, url: URL) -> aiohttp.ClientRequest:
        """Return what asks aiohttp's pool for a connection to the URL's origin."""
        origin = url.scheme, url.raw_host, url.port
        wanted = self._origins.get(origin)
        if wanted is None:
            if len(self._origins) >= MAX_ORIGINS:
                self._origins.clear()
            wanted = self._origins[origin] = aiohttp.ClientRequest("GET", url, loop=self._loop, session=self._session)
        return wanted

    async def _take_turn(self) -> None:
        """Wait until the API may be sent another request."""
        if waited_seconds := await self._politeness.turn():
            self._metrics.rate_limit_wait.inc(waited_seconds)

    def _slow_down(self, headers: Mapping[str, str]) -> None:
        pause_seconds = self._politeness.pause(retry_after_seconds(headers))
        self._metrics.upstream_throttled.inc()
        log.warning("upstream.throttled", pause_seconds=pause_seconds)

    def _judge(self, hop: Hop, *, failed: bool) -> None:
        """Tell the breaker of the API's own stations; the storage is another's, and fails image by image."""
        if hop is Hop.STORAGE:
            return
        if failed:
            self._breaker.failed()
        else:
            self._breaker.succeeded()

    def _headers_for_api(self, headers: Mapping[str, str]) -> dict[str, str]:
        request_id = structlog.contextvars.get_contextvars().get("request_id")
        tracing = {"X-Request-ID": str(request_id)} if request_id else {}
        if traceparent := outgoing_traceparent():
            tracing["traceparent"] = traceparent
        return {**headers, **self._api_headers, **tracing}

    async def _timed(self, wait: Awaitable[_T], *, extra_seconds: float = 0.0) -> _T:
        """Await something of the upstream's, with the silence time-out and with aiohttp's errors translated."""
        try:
            async with asyncio.timeout(self._silence_seconds + extra_seconds):
                return await wait
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise AttemptFailed(_connect_failure(error)) from error
        except TimeoutError as error:
            seconds = f"{self._silence_seconds:g}"
            raise AttemptFailed(Failure(Reason.TIMEOUT, f"the upstream was silent for {seconds} s")) from error
        except aiohttp.InvalidURL as error:
            raise AttemptFailed(Failure(Reason.REDIRECT_REFUSED, "a redirect to an invalid address")) from error
        except aiohttp.ClientPayloadError as error:
            raise AttemptFailed(Failure(Reason.TRUNCATED, "the answer ended before its promised end")) from error
        except (ConnectionBroken, aiohttp.ClientError, OSError) as error:
            raise AttemptFailed(Failure(Reason.CONNECTION_LOST, "the connection broke")) from error


def hop_of(hops: int, *, is_api: bool, status: int | None) -> Hop:
    """Return which station answered after ``hops`` redirects, or did not answer.

    The API is asked first. Behind it, what is at its own origin or points elsewhere is an asset server; the end of the
    redirects is the storage.
    """
    if hops == 0:
        return Hop.API
    return Hop.ASSET if is_api or status in REDIRECT_STATUSES else Hop.STORAGE


def _connect_failure(error: aiohttp.ClientConnectorError | TimeoutError) -> Failure:
    if isinstance(error, TimeoutError):
        return Failure(Reason.TIMEOUT, "no connection to the upstream in time")
    if isinstance(error.os_error, AddressRejected):
        return Failure(Reason.REDIRECT_REFUSED, str(error.os_error))
    return Failure(Reason.CONNECTION_FAILED, f"no connection to {error.host}")
