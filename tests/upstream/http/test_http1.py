"""One GET on one connection, against servers that send exactly the bytes of the test."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import pytest
import trustme
from yarl import URL

from service.model import Reason
from service.upstream.http.fetcher import Fetcher
from service.upstream.http.http1 import MAX_LEFTOVER_BYTES, MAX_NON_BODY_BYTES, encode_request
from service.upstream.http.session import open_session
from service.upstream.rate_limiter import RateLimiter
from service.upstream.retry import AttemptFailed
from service.upstream.url_policy import UrlPolicy

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n"


class Upstream:
    """A server that runs its scripts, one for each request; a connection serves requests until it is closed."""

    def __init__(self, scripts: Sequence[Script]) -> None:
        self._scripts = iter(scripts)
        self.connections = 0
        self.requests: list[bytes] = []
        self.sent_bytes = 0

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


async def stays_silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Send nothing until the client closes the connection."""
    await reader.read()


async def reset(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Begin a body, and break the connection."""
    writer.write(OK + b"Content-Length: 9\r\n\r\nhalf")
    await writer.drain()
    writer.transport.abort()


@asynccontextmanager
async def upstream_of(
    *scripts: Script,
    idle_timeout_seconds: float = 5,
    secured: ssl.SSLContext | None = None,
    trusting: ssl.SSLContext | None = None,
) -> AsyncIterator[tuple[Fetcher, URL, Upstream]]:
    """Start a server, ``secured`` by TLS or not, and a fetcher for it."""
    upstream = Upstream(scripts)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, ssl=secured)
    url = URL(f"http{'s' if secured else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}/image?of=1")
    async with server, open_session(allow_private=True, connect_timeout_seconds=5, tls=trusting) as session:
        fetcher = Fetcher(
            session,
            UrlPolicy(url.origin(), allow_private=True),
            rate_limiter=RateLimiter(1000, clock=asyncio.get_running_loop().time),
            api_headers={"x-api-key": "key"},
            idle_timeout_seconds=idle_timeout_seconds,
        )
        yield fetcher, url, upstream


async def body_of(fetcher: Fetcher, url: URL, into: bytearray | None = None) -> bytes:
    """Return a whole body; its bytes are added ``into`` the given array as they arrive."""
    body = bytearray() if into is None else into
    async with fetcher.get(url, {}) as response:
        while chunk := await response.read():
            body += chunk
    return bytes(body)


RESPONSES = {
    "length": OK + b"Content-Length: 5\r\n\r\nimage",
    "chunks": OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nim\r\n3;x=y\r\nage\r\n0\r\nX-Trailer: 1\r\n\r\n",
    "interim_responses": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    + OK
    + b"Content-Length: 5\r\n\r\nimage",
}


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
        pytest.param(OK.replace(b"1.1", b"1.0") + b"Content-Length: 5\r\n\r\nimage", b"image", id="http_1_0"),
        pytest.param(OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nimage", b"image", id="close"),
        pytest.param(OK + b"Content-Length: 5\r\n\r\nimage and more", b"image", id="more_than_the_length"),
        pytest.param(OK + b"Content-Length: 0\r\n\r\nmore", b"", id="more_than_nothing"),
        pytest.param(
            OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nimage\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            b"image",
            id="an_unrequested_response",
        ),
        pytest.param(
            OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nimage\r\n0\r\n\r\n\0garbage", b"image", id="garbage_behind"
        ),
    ],
)
async def test_connection_out_of_step_is_not_reused(response: bytes, body: bytes) -> None:
    """Bytes beyond the end of a response belong to no response, least of all to the next."""
    async with upstream_of(sends(response, end=True), sends(OK + b"Content-Length: 4\r\n\r\nnext")) as (
        fetcher,
        url,
        at,
    ):
        assert await body_of(fetcher, url) == body
        assert await body_of(fetcher, url) == b"next"
    assert at.connections == 2


SECOND = OK + b"X-Second: 1\r\nContent-Length: 6\r\n\r\nforged"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nimage\r\n0\r\n"


@pytest.mark.parametrize(
    ("response", "body"),
    [
        pytest.param(CHUNKED + b"\r\n" + SECOND, b"image", id="chunks"),
        pytest.param(CHUNKED + b"X-Trailer: 1\r\n\r\n" + SECOND, b"image", id="trailers"),
        pytest.param(CHUNKED + b"\r\n" + CHUNKED + b"\r\n", b"image", id="chunks_twice"),
        pytest.param(CHUNKED + b"\r\nHTT", b"image", id="the_first_bytes_of_a_response"),
        pytest.param(CHUNKED + b"\r\n\r\n", b"image", id="an_empty_line"),
        pytest.param(CHUNKED + b"\r\n\n", b"image", id="a_line_feed"),
        pytest.param(OK + b"Content-Length: 5\r\n\r\nimage" + SECOND, b"image", id="length"),
        pytest.param(OK + b"Content-Length: 0\r\n\r\n" + SECOND, b"", id="no_length"),
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n" + SECOND, b"", id="no_content"),
        pytest.param(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n" + SECOND, b"", id="not_modified"),
        pytest.param(b"HTTP/1.1 103 Early Hints\r\n\r\n" + CHUNKED + b"\r\n" + SECOND, b"image", id="interim"),
    ],
)
async def test_bytes_behind_a_response_are_not_part_of_it(response: bytes, body: bytes) -> None:
    """A second response in the same read is neither header nor body of the first, nor the response to the next."""
    async with upstream_of(sends(response), sends(OK + b"Content-Length: 4\r\n\r\nnext")) as (fetcher, url, upstream):
        async with fetcher.get(url, {}) as first:
            received = b""
            while chunk := await first.read():
                received += chunk
            assert received == body
            assert "X-Second" not in first.headers
            assert "X-Trailer" not in first.headers
        assert await body_of(fetcher, url) == b"next"
    assert upstream.connections == 2


@pytest.mark.parametrize("framing", [b"Content-Length: 5\r\n\r\nthere", b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"])
async def test_bytes_behind_a_redirect_are_not_the_image(framing: bytes) -> None:
    """A second response behind a redirect whose body is discarded is not the response of the redirect's target."""
    redirect = sends(b"HTTP/1.1 302 Found\r\nLocation: /there\r\n" + framing + SECOND)
    async with upstream_of(redirect, sends(OK + b"Content-Length: 5\r\n\r\nimage")) as (fetcher, url, upstream):
        assert await body_of(fetcher, url) == b"image"
    assert upstream.connections == 2


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b"Content-Length: 5 \r\n\r\nimage", id="length"),
        pytest.param(b"Content-Length:\t 5\t \r\n\r\nimage", id="length_and_tabs"),
        pytest.param(b"Transfer-Encoding: chunked \t\r\n\r\n5\r\nimage\r\n0\r\n\r\n", id="coding"),
        pytest.param(b"Transfer-Encoding:chunked\t\r\n\r\n5\r\nimage\r\n0\r\n\r\n", id="coding_and_tab"),
    ],
)
async def test_white_space_around_header_values_is_ignored(header: bytes) -> None:
    """Framing and all other fields are parsed without it (RFC 9112 section 5), and the connection is reused."""
    response = b'HTTP/1.1 200 OK\r\nContent-Type: image/jpeg \r\nETag: \t"tag" \t\r\n' + header
    redirect = sends(b"HTTP/1.1 302 Found\r\nLocation: /there \t\r\nContent-Length: 0 \r\n\r\n")
    async with upstream_of(redirect, sends(response), sends(response)) as (fetcher, url, upstream):
        async with fetcher.get(url, {}) as received:
            assert (received.headers["ETag"], received.content_type) == ('"tag"', "image/jpeg")
            assert await received.read() == b"image"
            assert await received.read() == b""
        assert await body_of(fetcher, url) == b"image"
    assert upstream.requests[1].startswith(b"GET /there HTTP/1.1\r\n")
    assert upstream.connections == 1


async def test_white_space_behind_close_ends_the_connection() -> None:
    """``Connection: close`` with a space behind it is respected too."""
    closing = sends(OK + b"Connection: close \r\nContent-Length: 5\r\n\r\nimage")
    async with upstream_of(closing, sends(RESPONSES["length"])) as (fetcher, url, upstream):
        assert [await body_of(fetcher, url) for _ in range(2)] == [b"image"] * 2
    assert upstream.connections == 2


async def test_number_of_chunks_is_unlimited() -> None:
    """The framing of small chunks exceeds the bound of non-body bytes by far, but does not count as such."""
    chunks = b"1\r\nx\r\n" * MAX_NON_BODY_BYTES
    whole = OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    # A server that sends size, data and line break by themselves.
    pieces = sends(OK + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\n", b"x", b"\r\n"] * 1000, b"0\r\n", b"\r\n")
    async with upstream_of(sends(whole), pieces) as (fetcher, url, upstream):
        assert await body_of(fetcher, url) == b"x" * MAX_NON_BODY_BYTES
        assert await body_of(fetcher, url) == b"x" * 1000
    assert upstream.connections == 1


THIRD = b"X: " + b"x" * (MAX_NON_BODY_BYTES // 3) + b"\r\n"


@pytest.mark.parametrize(
    ("begin", "repeated"),
    [
        pytest.param(b"", b"HTTP/1.1 100 Continue\r\n\r\n", id="interim_responses"),
        pytest.param(b"HTTP/1.1 103 Early Hints\r\n", b"Link: </x>\r\n", id="an_interim_response"),
        pytest.param(OK, b"X: x\r\n", id="header_fields"),
        pytest.param(OK + b"X: ", b"x" * 1000, id="a_header_field"),
        pytest.param(CHUNKED, b"X: x\r\n", id="trailers"),
        pytest.param(CHUNKED + b"X: ", b"x" * 1000, id="a_trailer"),
        pytest.param(OK + b"Transfer-Encoding: chunked\r\n\r\n5;", b"x=y;" * 100, id="a_chunk_extension"),
        pytest.param(
            b"HTTP/1.1 103 Early Hints\r\n" + THIRD + b"\r\n" + OK + THIRD + CHUNKED.removeprefix(OK),
            THIRD,
            id="all_of_them_together",
        ),
    ],
)
async def test_non_body_bytes_are_bounded(begin: bytes, repeated: bytes) -> None:
    """A response whose header or trailers never end fails; all bytes outside the body share one bound."""

    async def endless(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        while True:
            writer.write(repeated)
            await writer.drain()

    async with upstream_of(endless) as (fetcher, url, _):
        with pytest.raises(AttemptFailed) as caught:
            await body_of(fetcher, url)
    assert caught.value.failure.reason is Reason.CONNECTION_LOST


async def test_non_body_bytes_share_one_bound() -> None:
    """Two thirds of the bound are accepted as header and trailers; three thirds and a line are not."""
    interim = b"HTTP/1.1 103 Early Hints\r\n" + THIRD + b"\r\n"
    final = OK + THIRD + CHUNKED.removeprefix(OK)
    async with upstream_of(
        sends(interim, final, b"\r\n"), sends(final, THIRD, b"\r\n"), sends(interim, final, THIRD, b"Y: y\r\n")
    ) as (fetcher, url, _):
        assert await body_of(fetcher, url) == b"image"
        assert await body_of(fetcher, url) == b"image"
        with pytest.raises(AttemptFailed) as caught:
            await body_of(fetcher, url)
    assert caught.value.failure.reason is Reason.CONNECTION_LOST


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
        writer.write(OK + b"Content-Length: 5\r\n\r\nimage")
        idle.append(writer)

    following = sends(OK + b"Content-Length: 4\r\n\r\nnext")
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
        writer.write(OK + b"Content-Length: 5\r\n\r\nimage")
        idle.append(writer)
        upstream.requests.append(await reader.read())

    async with upstream_of(first, sends(OK + b"Content-Length: 4\r\n\r\nnext")) as (fetcher, url, upstream):
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
    async with upstream_of(sends(redirect), ending, sends(RESPONSES["length"])) as (fetcher, url, upstream):
        assert await body_of(fetcher, url) == b"image"
    assert paths_of(upstream) == [b"/image?of=1", b"/there", b"/there"]
    assert upstream.requests[1] == upstream.requests[2]
    assert upstream.connections == 2


async def test_dead_connection_is_replaced_by_a_new_one() -> None:
    """The request is repeated on a new connection: another idle one may be as dead."""
    both = asyncio.Barrier(2)

    async def together(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await both.wait()
        writer.write(RESPONSES["length"])

    async with upstream_of(together, together, close, sends(RESPONSES["length"])) as (fetcher, url, upstream):
        await asyncio.gather(*(body_of(fetcher, url) for _ in range(2)))
        assert upstream.connections == 2
        assert await body_of(fetcher, url) == b"image"
    assert (upstream.connections, len(upstream.requests)) == (3, 4)


@pytest.mark.parametrize(
    ("scripts", "requests"),
    [
        pytest.param([close], 1, id="new_connection"),
        pytest.param([sends(RESPONSES["length"]), close, close], 3, id="twice"),
        pytest.param([sends(RESPONSES["length"]), sends(b"H", end=True)], 2, id="after_the_first_byte"),
        pytest.param(
            [sends(RESPONSES["length"]), sends(b"HTTP/1.1 100 OK\r\n\r\n", end=True)], 2, id="after_an_interim"
        ),
    ],
)
async def test_other_broken_connection_is_a_failure(scripts: Sequence[Script], requests: int) -> None:
    """A request is repeated once, only on a reused connection, and only before the first byte."""
    async with upstream_of(*scripts) as (fetcher, url, upstream):
        for _ in scripts[: requests - 1 if requests < 3 else 1]:
            assert await body_of(fetcher, url) == b"image"
        with pytest.raises(AttemptFailed) as caught:
            await body_of(fetcher, url)
    assert caught.value.failure.reason is Reason.CONNECTION_LOST
    assert len(upstream.requests) == requests


async def test_unrequested_response_is_not_the_next_one() -> None:
    """A connection on which bytes arrived while it was idle is closed, and the request uses another."""
    late, forged = asyncio.Event(), asyncio.Event()

    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"Content-Length: 5\r\n\r\nimage")
        await late.wait()
        writer.write(OK + b"Content-Length: 6\r\n\r\nforged")
        await writer.drain()
        forged.set()
        with suppress(ConnectionError):
            await reader.read()

    async with upstream_of(twice, sends(OK + b"Content-Length: 4\r\n\r\nnext")) as (fetcher, url, upstream):
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
        pytest.param(sends(b"HTTP/1.1 200", end=True), Reason.CONNECTION_LOST, b"", id="closed_in_the_header"),
        pytest.param(sends(b"SSH-2.0-OpenSSH\r\n\r\n"), Reason.CONNECTION_LOST, b"", id="not_http"),
        pytest.param(sends(OK + b"X: " + b"x" * MAX_NON_BODY_BYTES), Reason.CONNECTION_LOST, b"", id="endless_header"),
        pytest.param(
            sends(OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            Reason.CONNECTION_LOST,
            b"",
            id="two_lengths",
        ),
        *(
            pytest.param(
                sends(OK + header + b"\r\n\r\nimage", end=True), Reason.CONNECTION_LOST, b"", id=str(header, "ascii")
            )
            for header in (
                b"Content-Length: 9999999999999999999",
                b"Content-Length: 99999999999999999999",
                b"Content-Length: 5, 5",
                b"Content-Length: 5\r\nContent-Length: 6",
                b"Content-Length: 5\r\nContent-Length: 5",
                b"Content-Length: +5",
                b"Content-Length: -5",
                b"Content-Length: 0x5",
                b"Content-Length: 5 5",
                b"Content-Length:",
                b"Transfer-Encoding:",
                b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
                b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
            )
        ),
        pytest.param(sends(b"\r\n\r\n" + OK + b"\r\n"), Reason.CONNECTION_LOST, b"", id="empty_lines_before"),
        pytest.param(sends(b"HTTP/1.1 000 OK\r\n\r\n"), Reason.CONNECTION_LOST, b"", id="no_status"),
        pytest.param(
            sends(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), Reason.CONNECTION_LOST, b"", id="coding"
        ),
        pytest.param(
            sends(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
            Reason.CONNECTION_LOST,
            b"",
            id="upgrade",
        ),
        pytest.param(sends(OK + b"Content-Length: 9\r\n\r\nhalf", end=True), Reason.TRUNCATED, b"half", id="cut"),
        pytest.param(reset, Reason.TRUNCATED, b"half", id="reset"),
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
        body = bytearray()
        with pytest.raises(AttemptFailed) as caught:
            await body_of(fetcher, url, into=body)
    assert caught.value.failure.reason is reason
    assert body == received


@pytest.mark.parametrize(
    "before", [b"", OK + b"Content-Length: 9\r\n\r\nhalf"], ids=["before_the_header", "in_the_body"]
)
async def test_idle_timeout_ends_the_connection(before: bytes) -> None:
    """An upstream that sends nothing for the idle timeout fails, and its connection is closed."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await sends(before)(reader, writer)
        await stays_silent(reader, writer)

    async with upstream_of(script, idle_timeout_seconds=0.05) as (fetcher, url, _):
        with pytest.raises(AttemptFailed) as caught:
            await body_of(fetcher, url)
    assert caught.value.failure.reason is Reason.TIMEOUT


async def test_paused_reader_is_backpressure_and_no_idle_timeout() -> None:
    """While nothing is read, little is buffered, the upstream waits, and the idle timeout does not run."""
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

    async with (
        upstream_of(large, idle_timeout_seconds=0.02) as (fetcher, url, _),
        fetcher.get(url, {}) as response,
    ):
        await stuck.wait()
        assert sent < size
        received = 0
        while chunk := await response.read():
            received += len(chunk)
        assert received == size


async def test_small_body_of_a_redirect_is_discarded() -> None:
    """A redirect's small body is read to its end, and the connection is reused."""
    redirect = b"HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 5\r\n\r\nthere"
    there = sends(OK + b"Content-Length: 5\r\n\r\nimage")
    async with upstream_of(sends(redirect), there) as (fetcher, url, upstream):
        assert await body_of(fetcher, url) == b"image"
    assert upstream.requests[1].startswith(b"GET /there HTTP/1.1\r\n")
    assert upstream.connections == 1


async def test_large_body_of_a_redirect_aborts_the_connection() -> None:
    """The connection of a redirect with a large body is closed at once."""
    ended = asyncio.Event()

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        header = b"HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: %d\r\n\r\n"
        writer.write(header % (2 * MAX_LEFTOVER_BYTES) + b"there")
        with suppress(ConnectionError):
            await reader.read()
        ended.set()

    there = sends(OK + b"Content-Length: 5\r\n\r\nimage")
    async with upstream_of(redirect, there) as (fetcher, url, upstream):
        assert await body_of(fetcher, url) == b"image"
        await ended.wait()
    assert upstream.connections == 2


async def test_abandoned_response_closes_its_connection() -> None:
    """A reader that leaves in the middle of a response, or is cancelled before it, leaves no connection behind."""
    requested, ended = asyncio.Event(), asyncio.Event()

    async def never(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        requested.set()
        with suppress(ConnectionError):
            await reader.read()
        ended.set()

    async with upstream_of(sends(OK + b"Content-Length: 9\r\n\r\nhalf"), never) as (fetcher, url, upstream):
        async with fetcher.get(url, {}) as response:
            assert await response.read() == b"half"
        waiting = asyncio.create_task(body_of(fetcher, url))
        await requested.wait()
        waiting.cancel()
        await asyncio.wait([waiting])
        await ended.wait()
        assert upstream.connections == 2


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


async def test_abandoned_tls_response_closes_its_connection(secured: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    """Leaving in the middle of a response does not wait for TLS's close_notify."""
    ended = asyncio.Event()

    async def endless(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"\r\n")
        with suppress(ConnectionError):
            while True:
                writer.write(bytes(100_000))
                await writer.drain()
        ended.set()

    async with upstream_of(endless, secured=secured, trusting=trusting) as (fetcher, url, _):
        async with fetcher.get(url, {}) as response:
            assert await response.read()
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

    body = bytearray()
    async with upstream_of(half, secured=secured, trusting=trusting) as (fetcher, url, _):
        with pytest.raises(AttemptFailed) as caught:
            await body_of(fetcher, url, into=body)
    assert (caught.value.failure.reason, bytes(body)) == (Reason.TRUNCATED, b"half")


async def test_untrusted_server_gets_no_request(secured: ssl.SSLContext) -> None:
    """An untrusted certificate ends the connection before the request, which may hold the key."""
    async with upstream_of(sends(RESPONSES["length"]), secured=secured) as (fetcher, url, upstream):
        with pytest.raises(AttemptFailed) as caught:
            await body_of(fetcher, url)
        assert caught.value.failure.reason is Reason.CONNECTION_FAILED
        assert upstream.requests == []


def test_request_is_one_line_and_its_fields() -> None:
    """Illegal characters of the URL are encoded."""
    url = URL("http://storage.example:8080/a%2Fb c\x01d?sig=a%2Bb&n=\u00e9", encoded=True)
    request_line, *fields = (
        encode_request(url, {"Range": "bytes=5-", "If-Range": '"tag"'}).decode("ascii").split("\r\n")
    )
    assert request_line == "GET /a%2Fb%20c%01d?sig=a%2Bb&n=%C3%A9 HTTP/1.1"
    assert fields == ["Host: storage.example:8080", "Range: bytes=5-", 'If-Range: "tag"', "", ""]


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\nX: y", "a\rX: y"])
def test_header_value_with_a_line_break_is_rejected(value: str) -> None:
    """No value can put another field, or another request, behind its own."""
    with pytest.raises(ValueError, match="line break"):
        encode_request(URL("http://api.example/"), {"X-Request-ID": value})
