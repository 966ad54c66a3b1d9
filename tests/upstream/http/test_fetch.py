"""One GET through its redirects, against servers that send exactly the bytes of the test."""

import asyncio
import gc
import socket
import ssl
import struct
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import pytest
import trustme
from yarl import URL

from service.model import Failure, Reason
from service.upstream.http.connection import ConnectionPool
from service.upstream.http.dial import Dialer
from service.upstream.http.fetch import MAX_DISCARDED_BYTES, Fetch
from service.upstream.http.fetcher import Fetcher
from service.upstream.http.response_reader import MAX_OVERHEAD_BYTES, ResponseStarted
from service.upstream.http.session import open_session
from service.upstream.rate_limiter import RateLimiter
from service.upstream.retry import AttemptFailed
from service.upstream.url_policy import MAX_REDIRECTS, UrlPolicy

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n"
IMAGE = OK + b"Content-Length: 5\r\n\r\nimage"
NEXT = OK + b"Content-Length: 4\r\n\r\nnext"
MAX_BYTES = 128 * 1024 * 1024


class Upstream:
    """A server that runs its scripts, one for each request; a connection serves requests until it is closed."""

    def __init__(self, scripts: Sequence[Script]) -> None:
        self._scripts = iter(scripts)
        self.connections = 0
        self.requests: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connections += 1
        try:
            while not writer.is_closing():
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                await next(self._scripts)(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def sends(*pieces: bytes, end: bool = False) -> Script:
    """Send pieces, one write each, and optionally close the connection."""

    async def script(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)  # so that it is sent alone
        if end:
            writer.close()

    return script


async def stays_idle(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Send nothing until the client closes the connection."""
    await reader.read()


async def reset(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Begin a body, and break the connection."""
    writer.write(OK + b"Content-Length: 9\r\n\r\nhalf")
    await writer.drain()
    writer.transport.abort()


@asynccontextmanager
async def server_of(*scripts: Script, secured: ssl.SSLContext | None = None) -> AsyncIterator[tuple[URL, Upstream]]:
    """Start a server, ``secured`` by TLS or not."""
    upstream = Upstream(scripts)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, ssl=secured)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield URL(f"http{'s' if secured else ''}://127.0.0.1:{port}/image?of=1"), upstream


@asynccontextmanager
async def fetcher_for(
    url: URL,
    *,
    idle_timeout_seconds: float = 5,
    trusting: ssl.SSLContext | None = None,
    limiter: RateLimiter | None = None,
) -> AsyncIterator[Fetcher]:
    """Open a fetcher whose API is at a URL."""
    pool = ConnectionPool(Dialer(allow_private=True, connect_timeout_seconds=5, tls=trusting))
    async with open_session(allow_private=True, connect_timeout_seconds=5, tls=trusting) as session:
        yield Fetcher(
            session,
            pool,
            UrlPolicy(url.origin(), allow_private=True),
            rate_limiter=limiter or RateLimiter(1000, clock=asyncio.get_running_loop().time),
            api_headers={"x-api-key": "key"},
            idle_timeout_seconds=idle_timeout_seconds,
        )
        pool.close()


@asynccontextmanager
async def upstream_of(
    *scripts: Script,
    idle_timeout_seconds: float = 5,
    secured: ssl.SSLContext | None = None,
    trusting: ssl.SSLContext | None = None,
) -> AsyncIterator[tuple[Fetcher, URL, Upstream]]:
    """Start a server and a fetcher for it."""
    async with (
        server_of(*scripts, secured=secured) as (url, upstream),
        fetcher_for(url, idle_timeout_seconds=idle_timeout_seconds, trusting=trusting) as fetcher,
    ):
        yield fetcher, url, upstream


class Sink:
    """Collects one response; ``on_started`` and ``on_body`` are called first, and may raise."""

    def __init__(
        self,
        on_started: Callable[[ResponseStarted], None] = lambda _: None,
        on_body: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        self.responses: list[tuple[ResponseStarted, bool]] = []
        self.body = bytearray()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.granted = 0
        self._on_started, self._on_body = on_started, on_body

    def grant(self) -> None:
        """Count the grants."""
        self.granted += 1

    def response_started(self, response: ResponseStarted, *, from_api: bool) -> None:
        """Keep status and headers."""
        self.responses.append((response, from_api))
        self._on_started(response)

    def body_received(self, chunk: bytes) -> None:
        """Keep the bytes."""
        self.body += chunk
        self._on_body(chunk)

    def response_ended(self) -> None:
        """Note the end."""
        self.ended.set_result(None)

    def fetch_failed(self, error: AttemptFailed) -> None:
        """Note the failure."""
        self.ended.set_exception(error)

    def fetch_crashed(self, error: BaseException) -> None:
        """Note the fault."""
        self.ended.set_exception(error)


def start(fetcher: Fetcher, url: URL, sink: Sink) -> Fetch:
    """Start a GET into a sink."""
    return fetcher.start(fetcher.target(url), fetcher.template({}), sink, sink.grant)


async def body_of(fetcher: Fetcher, url: URL) -> bytes:
    """Return a whole body."""
    return (await fetcher.get(url, {}, max_bytes=MAX_BYTES))[1]


async def failure_of(fetcher: Fetcher, url: URL, sink: Sink | None = None) -> Failure:
    """Return the failure of a GET; its sink has what came before it."""
    sink = sink or Sink()
    start(fetcher, url, sink)
    with pytest.raises(AttemptFailed) as caught:
        await sink.ended
    return caught.value.failure


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nimage\r\n0\r\n"
SECOND = OK + b"X-Second: 1\r\nContent-Length: 6\r\n\r\nforged"
RESPONSES = {
    "length": IMAGE,
    "chunks": OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nim\r\n3;x=y\r\nage\r\n0\r\nX-Trailer: 1\r\n\r\n",
    "interim_responses": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + IMAGE,
}


def redirect_to(location: str, body: bytes = b"", *, length: int | None = None) -> bytes:
    """Return a redirect with a body, or the start of one of this length."""
    size = len(body) if length is None else length
    return b"HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: %d\r\n\r\n" % (location.encode(), size) + body


@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES)
async def test_body_is_complete_in_any_segments(response: bytes) -> None:
    """Wherever a response is cut in transit, its body is the same, and its connection is reused for all of them."""
    cuts = [sends(response[:cut], response[cut:]) for cut in range(1, len(response))]
    drips = sends(*(response[at : at + 1] for at in range(len(response))))
    async with upstream_of(*cuts, drips) as (fetcher, url, upstream):
        for _ in range(len(cuts) + 1):
            assert await body_of(fetcher, url) == b"image"
    assert upstream.connections == 1


@pytest.mark.parametrize(
    ("response", "body"),
    [
        pytest.param(OK + b"\r\nimage", b"image", id="until_the_end"),
        pytest.param(IMAGE.replace(b"1.1", b"1.0"), b"image", id="http_1_0"),
        pytest.param(OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nimage", b"image", id="close"),
        pytest.param(OK + b"Connection: close \r\nContent-Length: 5\r\n\r\nimage", b"image", id="close_and_a_space"),
        pytest.param(IMAGE + b" and more", b"image", id="more_than_the_length"),
        pytest.param(OK + b"Content-Length: 0\r\n\r\nmore", b"", id="more_than_nothing"),
        pytest.param(CHUNKED + b"\r\n" + SECOND, b"image", id="an_unrequested_response"),
        pytest.param(CHUNKED + b"\r\n\0garbage", b"image", id="garbage_behind"),
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n" + SECOND, b"", id="no_content"),
    ],
)
@pytest.mark.parametrize("end", [True, False], ids=["closed", "open"])
async def test_connection_out_of_step_is_not_reused(response: bytes, body: bytes, end: bool) -> None:  # noqa: FBT001
    """Bytes beyond the end of a response belong to no response, least of all to the next."""
    end = end or response == OK + b"\r\nimage"  # which only the end of the connection ends
    async with upstream_of(sends(response, end=end), sends(NEXT)) as (fetcher, url, upstream):
        started, received = await fetcher.get(url, {}, max_bytes=MAX_BYTES)
        assert received == body
        assert "x-second" not in started.headers
        assert await body_of(fetcher, url) == b"next"
    assert upstream.connections == 2


@pytest.mark.parametrize("framing", [b"Content-Length: 5\r\n\r\nthere", b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"])
async def test_bytes_behind_a_redirect_are_not_the_image(framing: bytes) -> None:
    """A second response behind a redirect whose body is discarded is not the response of the redirect's target."""
    redirect = sends(b"HTTP/1.1 302 Found\r\nLocation: /there\r\n" + framing + SECOND)
    async with upstream_of(redirect, sends(IMAGE)) as (fetcher, url, upstream):
        assert await body_of(fetcher, url) == b"image"
    assert upstream.connections == 2


async def test_white_space_around_header_values_is_ignored() -> None:
    """Framing, location and all other fields are read without it (RFC 9112 section 5)."""
    response = OK + b'ETag: \t"tag" \t\r\nContent-Length:\t 5\t \r\n\r\nimage'
    redirect = sends(b"HTTP/1.1 302 Found\r\nLocation: /there \t\r\nContent-Length: 0 \r\n\r\n")
    async with upstream_of(redirect, sends(response), sends(response)) as (fetcher, url, upstream):
        started, body = await fetcher.get(url, {}, max_bytes=MAX_BYTES)
        assert (started.headers["etag"], body) == ('"tag"', b"image")
        assert await body_of(fetcher, url) == b"image"
    assert upstream.requests[1].startswith(b"GET /there HTTP/1.1\r\n")
    assert upstream.connections == 1


@pytest.mark.parametrize(
    ("begin", "repeated"),
    [
        pytest.param(b"", b"HTTP/1.1 100 Continue\r\n\r\n", id="interim_responses"),
        pytest.param(OK, b"X: x\r\n", id="header_fields"),
        pytest.param(OK + b"X: ", b"x" * 1000, id="a_header_field"),
        pytest.param(CHUNKED, b"X: x\r\n", id="trailers"),
        pytest.param(OK + b"Transfer-Encoding: chunked\r\n\r\n5;", b"x=y;" * 100, id="a_chunk_extension"),
    ],
)
async def test_endless_response_is_a_failure(begin: bytes, repeated: bytes) -> None:
    """A response whose header or trailers never end fails, and its connection is closed."""

    async def endless(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        while True:
            writer.write(repeated)
            await writer.drain()

    async with upstream_of(endless) as (fetcher, url, _):
        assert (await failure_of(fetcher, url)).reason is Reason.CONNECTION_LOST


@pytest.mark.parametrize("forged", [SECOND, b"\r\n", b"x"], ids=["response", "empty_line", "byte"])
@pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_connection_with_unread_bytes_is_not_reused(
    forged: bytes,
    over_tls: bool,  # noqa: FBT001 - a case
    method: str,
    secured: ssl.SSLContext,
    trusting: ssl.SSLContext,
) -> None:
    """An unrequested response on an idle connection is noticed, also if the event loop has not read it yet."""
    idle: list[asyncio.StreamWriter] = []

    async def first(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(IMAGE)
        idle.append(writer)

    following = sends(NEXT)
    tls = {"secured": secured, "trusting": trusting} if over_tls else {}
    async with upstream_of(first, following, **tls) as (fetcher, url, upstream):  # type: ignore[arg-type]
        assert await body_of(fetcher, url) == b"image"
        idle[0].write(forged)  # goes to the socket at once, and no turn of the loop follows
        if method == "GET":
            assert await body_of(fetcher, url) == b"next"
        else:
            async with fetcher.send(method, url, {}, b"") as response:
                assert await response.read() == b"next"
    assert upstream.connections == 2


async def test_closed_idle_connection_is_not_reused() -> None:
    """The end of an idle connection is noticed before a request is written to it."""
    idle: list[asyncio.StreamWriter] = []

    async def first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(IMAGE)
        idle.append(writer)
        upstream.requests.append(await reader.read())

    async with upstream_of(first, sends(NEXT)) as (fetcher, url, upstream):
        assert await body_of(fetcher, url) == b"image"
        idle[0].write_eof()
        assert await body_of(fetcher, url) == b"next"
    assert upstream.connections == 2
    assert min(map(len, upstream.requests)) == 0, "no request was sent on the first connection behind its end"


async def close(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close the connection instead of responding."""
    writer.close()


async def abort(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reset the connection instead of responding."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def paths_of(upstream: Upstream) -> list[bytes]:
    """Return the path of each request."""
    return [request.split(b" ", 2)[1] for request in upstream.requests]


@pytest.mark.parametrize("ending", [close, abort], ids=["closed", "reset"])
async def test_reused_connection_that_dies_is_replaced(ending: Script) -> None:
    """A request on an idle connection that is closed without a response is sent again, not the one before it."""
    redirect = b"HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n"
    async with upstream_of(sends(redirect), ending, sends(IMAGE)) as (fetcher, url, upstream):
        assert await body_of(fetcher, url) == b"image"
    assert paths_of(upstream) == [b"/image?of=1", b"/there", b"/there"]
    assert upstream.requests[1] == upstream.requests[2]
    assert upstream.connections == 2


async def test_dead_connection_is_replaced_by_a_new_one() -> None:
    """The request is repeated on a new connection: another idle one may be as dead."""
    both = asyncio.Barrier(2)

    async def together(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await both.wait()
        writer.write(IMAGE)

    async with upstream_of(together, together, close, sends(IMAGE)) as (fetcher, url, upstream):
        await asyncio.gather(*(body_of(fetcher, url) for _ in range(2)))
        assert upstream.connections == 2
        assert await body_of(fetcher, url) == b"image"
    assert (upstream.connections, len(upstream.requests)) == (3, 4)


@pytest.mark.parametrize(
    ("scripts", "requests"),
    [
        pytest.param([close], 1, id="new_connection"),
        pytest.param([sends(IMAGE), close, close], 3, id="twice"),
        pytest.param([sends(IMAGE), sends(b"H", end=True)], 2, id="after_the_first_byte"),
        pytest.param([sends(IMAGE), sends(b"HTTP/1.1 100 OK\r\n\r\n", end=True)], 2, id="after_an_interim"),
    ],
)
async def test_other_broken_connection_is_a_failure(scripts: Sequence[Script], requests: int) -> None:
    """A request is repeated once, only on a reused connection, and only before the first byte."""
    async with upstream_of(*scripts) as (fetcher, url, upstream):
        for _ in scripts[: requests - 1 if requests < 3 else 1]:
            assert await body_of(fetcher, url) == b"image"
        assert (await failure_of(fetcher, url)).reason is Reason.CONNECTION_LOST
    assert len(upstream.requests) == requests


async def test_unrequested_response_is_not_the_next_one() -> None:
    """A connection on which bytes arrived while it was idle is closed, and the request uses another."""
    late, forged = asyncio.Event(), asyncio.Event()

    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(IMAGE)
        await late.wait()
        writer.write(OK + b"Content-Length: 6\r\n\r\nforged")
        await writer.drain()
        forged.set()
        with suppress(ConnectionError):
            await reader.read()

    async with upstream_of(twice, sends(NEXT)) as (fetcher, url, upstream):
        assert await body_of(fetcher, url) == b"image"
        late.set()
        await forged.wait()
        for _ in range(10):  # turns of the loop in which it arrives
            await asyncio.sleep(0)
        assert await body_of(fetcher, url) == b"next"
    assert upstream.connections == 2


@pytest.mark.parametrize(
    ("script", "reason", "received"),
    [
        pytest.param(sends(end=True), Reason.CONNECTION_LOST, b"", id="closed_at_once"),
        pytest.param(abort, Reason.CONNECTION_LOST, b"", id="reset_at_once"),
        pytest.param(sends(b"HTTP/1.1 200", end=True), Reason.CONNECTION_LOST, b"", id="closed_in_the_header"),
        pytest.param(sends(b"SSH-2.0-OpenSSH\r\n\r\n"), Reason.CONNECTION_LOST, b"", id="not_http"),
        pytest.param(sends(OK + b"X: " + b"x" * MAX_OVERHEAD_BYTES), Reason.CONNECTION_LOST, b"", id="endless_header"),
        pytest.param(
            sends(OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            Reason.CONNECTION_LOST,
            b"",
            id="two_lengths",
        ),
        pytest.param(
            sends(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
            Reason.CONNECTION_LOST,
            b"",
            id="upgrade",
        ),
        pytest.param(sends(OK + b"Content-Length: 9\r\n\r\nhalf", end=True), Reason.TRUNCATED, b"half", id="cut"),
        pytest.param(reset, Reason.TRUNCATED, b"half", id="aborted"),
        pytest.param(
            sends(OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", end=True),
            Reason.TRUNCATED,
            b"half",
            id="open",
        ),
        pytest.param(
            sends(OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nno number\r\n"),
            Reason.CONNECTION_LOST,
            b"half",
            id="broken_chunks",
        ),
    ],
)
async def test_incomplete_response_is_a_failure(script: Script, reason: Reason, received: bytes) -> None:
    """An incomplete response always fails; the bytes before are delivered first."""
    async with upstream_of(script) as (fetcher, url, _):
        sink = Sink()
        assert (await failure_of(fetcher, url, sink)).reason is reason
        assert sink.body == received


@pytest.mark.parametrize(
    ("framing", "reason"), [(b"Content-Length: 9\r\n", Reason.TRUNCATED), (b"", Reason.CONNECTION_LOST)]
)
async def test_reset_in_a_body_is_no_clean_end(framing: bytes, reason: Reason) -> None:
    """The bytes before a reset are delivered, and it does not complete a body, however that is framed."""
    half = asyncio.Event()

    async def reset_later(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + framing + b"\r\nhalf")
        await half.wait()
        await abort(reader, writer)

    async with upstream_of(reset_later) as (fetcher, url, _):
        sink = Sink(on_body=lambda _: half.set())
        assert (await failure_of(fetcher, url, sink)).reason is reason
        assert sink.body == b"half"


async def test_refused_connection_is_a_failure(closed_port: int) -> None:
    """No connection is the failure of the attempt, and may be better next time."""
    url = URL(f"http://127.0.0.1:{closed_port}/")
    async with fetcher_for(url) as fetcher:
        assert (await failure_of(fetcher, url)).reason is Reason.CONNECTION_FAILED


async def test_body_above_the_bound_is_a_failure() -> None:
    """A small response is collected up to its bound; one that is larger fails and its connection is closed."""
    async with upstream_of(sends(IMAGE), sends(OK + b"\r\n", b"image and more")) as (fetcher, url, _):
        assert (await fetcher.get(url, {}, max_bytes=5))[1] == b"image"
        with pytest.raises(AttemptFailed) as caught:
            await fetcher.get(url, {}, max_bytes=5)
    assert (caught.value.failure.reason, caught.value.retryable) == (Reason.TOO_LONG, False)


async def stall_after(before: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send some bytes and then nothing until the client closes the connection."""
    await sends(before)(reader, writer)
    await stays_idle(reader, writer)


@pytest.mark.parametrize(
    "before",
    [b"", b"HTTP/1.1 200 OK\r\nX: ", OK + b"Content-Length: 9\r\n\r\n", OK + b"Content-Length: 9\r\n\r\nhalf"],
    ids=["before_the_header", "in_the_header", "before_the_body", "in_the_body"],
)
async def test_idle_timeout_ends_the_connection(before: bytes) -> None:
    """An upstream that sends nothing for the idle timeout fails, and its connection is closed."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await stall_after(before, reader, writer)

    async with upstream_of(script, idle_timeout_seconds=0.05) as (fetcher, url, _):
        assert (await failure_of(fetcher, url)).reason is Reason.TIMEOUT


async def test_paused_fetch_is_backpressure_and_no_idle_timeout() -> None:
    """While a fetch is paused, little is buffered, the upstream waits, and the idle timeout does not run."""
    size = 64 * 1024 * 1024
    body = bytes(1024 * 1024)
    stuck = asyncio.Event()
    sent = 0

    async def large(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(OK + b"Content-Length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(body)
            drained = asyncio.ensure_future(writer.drain())
            if not (await asyncio.wait([drained], timeout=0.2))[0]:  # ten idle timeouts
                stuck.set()
            await drained
            sent += len(body)

    async with upstream_of(large, idle_timeout_seconds=0.02) as (fetcher, url, _):
        sink = Sink(on_body=lambda _: None if stuck.is_set() else fetch.pause())
        fetch = start(fetcher, url, sink)
        await stuck.wait()
        assert sent < size
        assert len(sink.body) < 1024 * 1024
        fetch.resume()
        await sink.ended
        assert len(sink.body) == size
        assert fetch.longest_pause_seconds >= 0.1


async def test_idle_timeout_runs_again_after_a_pause() -> None:
    """A fetch that is paused and resumed waits for its upstream as long as any other."""

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await stall_after(OK + b"Content-Length: 9\r\n\r\nhalf", reader, writer)

    paused = asyncio.Event()

    def pause(_chunk: bytes) -> None:
        fetch.pause()
        fetch.pause()  # once is enough
        paused.set()

    async with upstream_of(half, idle_timeout_seconds=0.05) as (fetcher, url, _):
        sink = Sink(on_body=pause)
        fetch = start(fetcher, url, sink)
        await paused.wait()
        await asyncio.wait([sink.ended], timeout=0.2)
        assert not sink.ended.done(), "no timeout runs while it is paused"
        fetch.resume()
        fetch.resume()
        with pytest.raises(AttemptFailed) as caught:
            await sink.ended
    assert caught.value.failure.reason is Reason.TIMEOUT


async def test_response_may_end_while_paused() -> None:
    """A fetch that is paused in the last chunk ends with it, and its connection can be read again."""
    async with upstream_of(sends(IMAGE), sends(NEXT)) as (fetcher, url, upstream):
        sink = Sink(on_started=lambda _: fetch.pause())
        fetch = start(fetcher, url, sink)
        await sink.ended
        assert sink.body == b"image"
        assert await body_of(fetcher, url) == b"next"
    assert upstream.connections == 1


# Redirects


async def test_redirects_are_followed_and_only_the_api_gets_the_key() -> None:
    """Each hop is requested once; the key, and what identifies the request, go to the API's origin alone."""
    async with server_of(sends(redirect_to("/last?sig=a%2Bb")), sends(IMAGE)) as (storage, other):
        first = sends(redirect_to("/asset"))
        second = sends(redirect_to(str(storage.with_path("/first"))))
        async with upstream_of(first, second) as (fetcher, url, upstream):
            sink = Sink()
            start(fetcher, url, sink)
            await sink.ended
    assert sink.body == b"image"
    assert [from_api for _, from_api in sink.responses] == [False]
    assert sink.granted == 1
    assert paths_of(upstream) == [b"/image?of=1", b"/asset"]
    assert paths_of(other) == [b"/first", b"/last?sig=a%2Bb"]
    assert all(b"x-api-key: key\r\n" in request for request in upstream.requests)
    assert not any(b"key" in request.lower() for request in other.requests)
    assert (upstream.connections, other.connections) == (1, 1)


async def test_redirects_are_bounded() -> None:
    """A loop ends with the last hop that is allowed."""
    loop = [sends(redirect_to("/image?of=1"))] * (MAX_REDIRECTS + 1)
    async with upstream_of(*loop) as (fetcher, url, upstream):
        assert (await failure_of(fetcher, url)).reason is Reason.REDIRECT_REFUSED
    assert len(upstream.requests) == MAX_REDIRECTS + 1


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/", "http://user@127.0.0.1/", "http://[::1/", ""])
async def test_redirect_that_the_policy_rejects_is_a_failure(location: str) -> None:
    """It is not followed, and its message is fit for a report."""
    async with upstream_of(sends(redirect_to(location))) as (fetcher, url, upstream):
        assert (await failure_of(fetcher, url)).reason is Reason.REDIRECT_REFUSED
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("response", "granted"),
    [
        pytest.param(IMAGE, 1, id="success"),
        pytest.param(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", 0, id="client_error"),
        pytest.param(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", 0, id="server_error"),
    ],
)
async def test_grant_is_the_api_s_success(response: bytes, granted: int) -> None:
    """The API grants an image by a success or a redirect, not by an error."""
    async with upstream_of(sends(response)) as (fetcher, url, _):
        sink = Sink()
        start(fetcher, url, sink)
        await sink.ended
    assert sink.granted == granted


async def test_small_body_of_a_redirect_is_discarded() -> None:
    """A redirect's small body is read to its end, and the connection is reused."""
    async with upstream_of(sends(redirect_to("/there", b"there")), sends(IMAGE)) as (fetcher, url, upstream):
        assert await body_of(fetcher, url) == b"image"
    assert paths_of(upstream) == [b"/image?of=1", b"/there"]
    assert upstream.connections == 1


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(sends(redirect_to("/there", b"the", length=5), end=True), id="cut"),
        pytest.param(sends(redirect_to("/there", bytes(MAX_DISCARDED_BYTES + 1), length=10**9)), id="large"),
        pytest.param(sends(redirect_to("/there", b"the", length=5)), id="idle"),
    ],
)
async def test_redirect_with_a_body_of_no_use_is_followed(script: Script) -> None:
    """A redirect is followed on another connection if its body is cut, large, or does not come in time."""
    async with upstream_of(script, sends(IMAGE), idle_timeout_seconds=0.2) as (fetcher, url, upstream):
        assert await body_of(fetcher, url) == b"image"
    assert upstream.connections == 2


async def test_large_body_of_a_redirect_aborts_the_connection() -> None:
    """The connection of a redirect with a large body is closed at once."""
    ended = asyncio.Event()

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(redirect_to("/there", bytes(2 * MAX_DISCARDED_BYTES), length=10**9))
        with suppress(ConnectionError):
            await reader.read()
        ended.set()

    async with upstream_of(redirect, sends(IMAGE)) as (fetcher, url, upstream):
        assert await body_of(fetcher, url) == b"image"
        await ended.wait()
    assert upstream.connections == 2


# Responses that are of no use, and ends


def reject(_response: ResponseStarted) -> None:
    """Reject a response by its headers."""
    raise AttemptFailed(Failure(Reason.NOT_AN_IMAGE, "not an image"))


async def test_rejected_response_is_discarded() -> None:
    """The small rest of a rejected response is read, and its connection is reused."""
    rest = asyncio.Event()

    async def error(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\n")
        await rest.wait()
        writer.write(b"error")

    async with upstream_of(error, sends(IMAGE), sends(NEXT)) as (fetcher, url, upstream):
        sink = Sink(on_started=reject)
        assert (await failure_of(fetcher, url, sink)).reason is Reason.NOT_AN_IMAGE
        assert await body_of(fetcher, url) == b"image", "the rest is not waited for"
        assert upstream.connections == 2
        rest.set()
        assert sink.body == b""


async def test_rejected_response_without_a_rest_leaves_its_connection() -> None:
    """A response that came whole is discarded at once."""
    error = sends(b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nerror")
    async with upstream_of(error, sends(IMAGE)) as (fetcher, url, upstream):
        await failure_of(fetcher, url, Sink(on_started=reject))
        assert await body_of(fetcher, url) == b"image"
    assert upstream.connections == 1


@pytest.mark.parametrize("rest", [b"", bytes(MAX_DISCARDED_BYTES + 1)], ids=["idle", "large"])
async def test_discarding_is_bounded(rest: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection of a rejected response is closed if its rest is large or does not come."""
    ended = asyncio.Event()
    if not rest:
        monkeypatch.setattr("service.upstream.http.fetch.DISCARD_SECONDS", 0.02)

    async def error(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 1000000\r\n\r\n" + rest)
        with suppress(ConnectionError):
            await reader.read()
        ended.set()

    async with upstream_of(error) as (fetcher, url, _):
        await failure_of(fetcher, url, Sink(on_started=reject))
        await ended.wait()


async def test_rejected_body_closes_its_connection() -> None:
    """A body that the sink rejects in its middle is not read further."""

    def reject_body(_chunk: bytes) -> None:
        raise AttemptFailed(Failure(Reason.TOO_LONG, "too long"))

    async with upstream_of(sends(IMAGE), sends(NEXT)) as (fetcher, url, upstream):
        assert (await failure_of(fetcher, url, Sink(on_body=reject_body))).reason is Reason.TOO_LONG
        assert await body_of(fetcher, url) == b"next"
    assert upstream.connections == 2


@pytest.mark.parametrize("method", ["on_started", "on_body"])
async def test_fault_of_the_sink_ends_the_fetch(method: str) -> None:
    """A fault of the service itself is handed on as it is, and the connection is closed."""

    def fail(_: object) -> None:
        raise RuntimeError("an internal error")

    async with upstream_of(sends(IMAGE), sends(NEXT)) as (fetcher, url, upstream):
        sink = Sink(**{method: fail})
        start(fetcher, url, sink)
        with pytest.raises(RuntimeError, match="an internal error"):
            await sink.ended
        assert await body_of(fetcher, url) == b"next"
    assert upstream.connections == 2


async def test_aborted_fetch_closes_its_connection() -> None:
    """A fetch that is aborted in the middle of a response, or before it, leaves no connection behind."""
    half, requested, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def never(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        requested.set()
        with suppress(ConnectionError):
            await reader.read()
        ended.set()

    async with upstream_of(sends(OK + b"Content-Length: 9\r\n\r\nhalf"), never) as (fetcher, url, upstream):
        sink = Sink(on_body=lambda _: half.set())
        fetch = start(fetcher, url, sink)
        await half.wait()
        fetch.abort()
        waiting = start(fetcher, url, sink)
        await requested.wait()
        waiting.abort()
        await ended.wait()
        assert upstream.connections == 2
    assert not sink.ended.done(), "the sink hears nothing more"


async def test_cancelled_get_closes_its_connection() -> None:
    """A whole GET that is cancelled aborts its fetch."""
    requested, ended = asyncio.Event(), asyncio.Event()

    async def never(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        requested.set()
        with suppress(ConnectionError):
            await reader.read()
        ended.set()

    async with upstream_of(never) as (fetcher, url, _):
        waiting = asyncio.create_task(body_of(fetcher, url))
        await requested.wait()
        waiting.cancel()
        await asyncio.wait([waiting])
        await ended.wait()


async def test_fetch_is_aborted_by_its_sink() -> None:
    """A sink may abort the fetch in any of its calls, and gets no other."""
    async with upstream_of(sends(IMAGE), sends(IMAGE), sends(NEXT)) as (fetcher, url, upstream):
        started = Sink(on_started=lambda _: first.abort())
        first = start(fetcher, url, started)
        received = Sink(on_body=lambda _: second.abort())
        second = start(fetcher, url, received)
        assert await body_of(fetcher, url) == b"next"
    assert (bytes(started.body), bytes(received.body)) == (b"", b"image")
    assert not started.ended.done()
    assert not received.ended.done()
    assert upstream.connections == 3


@pytest.mark.parametrize("state", ["queued", "connecting", "awaiting", "streaming", "paused", "ended"])
async def test_fetch_leaves_no_timer(state: str) -> None:
    """Whatever a fetch was doing when it was aborted, nothing keeps its sink alive."""
    reached = asyncio.Event()

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if state == "awaiting":
            reached.set()
        else:
            writer.write(IMAGE if state == "ended" else OK + b"Content-Length: 9\r\n\r\nhalf")
        await stays_idle(reader, writer)

    limiter = RateLimiter(1000, clock=asyncio.get_running_loop().time)
    if state == "queued":
        limiter.pause(30)
    async with server_of(half) as (url, _), fetcher_for(url, limiter=limiter) as fetcher:
        sink = Sink(on_body=lambda _: reached.set())
        fetch = start(fetcher, url, sink)
        if state in {"awaiting", "streaming", "paused", "ended"}:
            await reached.wait()
        if state == "paused":
            fetch.pause()
        if state == "ended":
            await sink.ended
        else:
            fetch.abort()
        for _ in range(20):  # turns of the loop in which the task and the connection end
            await asyncio.sleep(0)
        found = weakref.ref(sink)
        del sink, fetch
        gc.collect()
        assert found() is None


async def test_idle_connection_is_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is not used for its idle time is closed, and the next request opens another."""
    monkeypatch.setattr("service.upstream.http.connection.IDLE_SECONDS", 0.02)
    ended = asyncio.Event()

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(IMAGE)
        with suppress(ConnectionError):
            await reader.read()
        ended.set()

    async with upstream_of(once, sends(NEXT)) as (fetcher, url, upstream):
        assert await body_of(fetcher, url) == b"image"
        await ended.wait()
        assert await body_of(fetcher, url) == b"next"
    assert upstream.connections == 2


async def test_idle_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than the bound are kept of one origin."""
    monkeypatch.setattr("service.upstream.http.connection.MAX_IDLE_PER_ORIGIN", 1)
    both = asyncio.Barrier(2)

    async def together(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await both.wait()
        writer.write(IMAGE)

    async with upstream_of(*[together] * 4) as (fetcher, url, upstream):
        for _ in range(2):
            assert await asyncio.gather(*(body_of(fetcher, url) for _ in range(2))) == [b"image"] * 2
    assert upstream.connections == 3


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Return a certificate authority."""
    return trustme.CA()


@pytest.fixture
def secured(authority: trustme.CA) -> ssl.SSLContext:
    """Return the TLS context of a server on loopback."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """Return the TLS context of a client that trusts that server."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES)
async def test_tls_carries_the_same_responses(
    response: bytes, secured: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    """Bodies are as complete over TLS as without it, one after the other on one connection."""
    large = bytes(range(256)) * 16_384
    async with upstream_of(
        sends(response),
        sends(OK + b"Content-Length: %d\r\n\r\n" % len(large), large),
        sends(response),
        secured=secured,
        trusting=trusting,
    ) as (fetcher, url, upstream):
        assert [await body_of(fetcher, url) for _ in range(3)] == [b"image", large, b"image"]
    assert upstream.connections == 1


async def test_aborted_tls_response_closes_its_connection(secured: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    """Aborting in the middle of a response does not wait for TLS's close_notify."""
    received, ended = asyncio.Event(), asyncio.Event()

    async def endless(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"\r\n")
        with suppress(ConnectionError):
            while True:
                writer.write(bytes(100_000))
                await writer.drain()
        ended.set()

    async with upstream_of(endless, secured=secured, trusting=trusting) as (fetcher, url, _):
        fetch = start(fetcher, url, Sink(on_body=lambda _: received.set()))
        await received.wait()
        fetch.abort()
        await ended.wait()


@pytest.mark.parametrize("end", [True, False], ids=["closed", "cut"])
async def test_truncated_tls_response_is_a_failure(
    end: bool,  # noqa: FBT001 - a case
    secured: ssl.SSLContext,
    trusting: ssl.SSLContext,
) -> None:
    """A body that ends before its length has failed, whether TLS was closed or its connection cut."""

    async def half(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"Content-Length: 9\r\n\r\nhalf")
        await writer.drain()
        if end:
            writer.close()
        else:
            writer.transport.abort()

    async with upstream_of(half, secured=secured, trusting=trusting) as (fetcher, url, _):
        sink = Sink()
        assert (await failure_of(fetcher, url, sink)).reason is Reason.TRUNCATED
        assert sink.body == b"half"


async def test_untrusted_server_gets_no_request(secured: ssl.SSLContext) -> None:
    """An untrusted certificate ends the connection before the request, which may hold the key."""
    async with upstream_of(sends(IMAGE), secured=secured) as (fetcher, url, upstream):
        assert (await failure_of(fetcher, url)).reason is Reason.CONNECTION_FAILED
        assert upstream.requests == []
