"""One GET on one connection, against servers that send just the bytes that a test gives them."""

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
from service.upstream.http.fetcher import Fetcher, open_session
from service.upstream.http.http1 import MAX_LEFTOVER_BYTES, MAX_NON_BODY_BYTES, question
from service.upstream.rate_limiter import RateLimiter
from service.upstream.retry import AttemptFailed
from service.upstream.url_policy import UrlPolicy

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n"


class Upstream:
    """A server which plays its scripts, one for each question; every connection plays on until it is closed."""

    def __init__(self, scripts: Sequence[Script]) -> None:
        self._scripts = iter(scripts)
        self.connections = 0
        self.asked: list[bytes] = []
        self.sent_bytes = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take one connection."""
        self.connections += 1
        try:
            while not writer.is_closing():
                self.asked.append(await reader.readuntil(b"\r\n\r\n"))
                await next(self._scripts)(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def says(*pieces: bytes, end: bool = False) -> Script:
    """Send pieces, each by itself, and perhaps end the connection."""

    async def script(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)  # so that it travels alone
        if end:
            writer.close()

    return script


async def silence(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Say nothing until the other side goes."""
    await reader.read()


async def reset(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Begin a body, and break the connection."""
    writer.write(OK + b"Content-Length: 9\r\n\r\nhalf")
    await writer.drain()
    writer.transport.abort()


@asynccontextmanager
async def upstream_of(
    *scripts: Script,
    silence_seconds: float = 5,
    secured: ssl.SSLContext | None = None,
    trusting: ssl.SSLContext | None = None,
) -> AsyncIterator[tuple[Fetcher, URL, Upstream]]:
    """Start a server, ``secured`` by TLS or not, and give what asks it."""
    upstream = Upstream(scripts)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, ssl=secured)
    url = URL(f"http{'s' if secured else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}/image?of=1")
    async with server, open_session(allow_private=True, connect_timeout_seconds=5, tls=trusting) as session:
        transport = Fetcher(
            session,
            UrlPolicy(url.origin(), allow_private=True),
            politeness=RateLimiter(1000, clock=asyncio.get_running_loop().time),
            api_headers={"x-api-key": "key"},
            silence_seconds=silence_seconds,
        )
        yield transport, url, upstream


async def body_of(transport: Fetcher, url: URL, into: bytearray | None = None) -> bytes:
    """Return a whole body; what comes of it is put ``into`` the given array."""
    body = bytearray() if into is None else into
    async with transport.get(url, {}) as answer:
        while chunk := await answer.read():
            body += chunk
    return bytes(body)


ANSWERS = {
    "length": OK + b"Content-Length: 5\r\n\r\nimage",
    "chunks": OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nim\r\n3;x=y\r\nage\r\n0\r\nX-Trailer: 1\r\n\r\n",
    "interim_answers": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    + OK
    + b"Content-Length: 5\r\n\r\nimage",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_body_comes_whole_however_it_travels(answer: bytes) -> None:
    """Wherever an answer is cut on its way, its body is the same, and its connection serves for all of them."""
    cuts = [says(answer[:cut], answer[cut:]) for cut in range(1, len(answer))]
    drips = says(*(answer[at : at + 1] for at in range(len(answer))))
    async with upstream_of(*cuts, drips) as (transport, url, upstream):
        for _ in range(len(cuts) + 1):
            assert await body_of(transport, url) == b"image"
    assert upstream.connections == 1


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        pytest.param(OK + b"\r\nimage", b"image", id="until_the_end"),
        pytest.param(OK.replace(b"1.1", b"1.0") + b"Content-Length: 5\r\n\r\nimage", b"image", id="http_1_0"),
        pytest.param(OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nimage", b"image", id="close"),
        pytest.param(OK + b"Content-Length: 5\r\n\r\nimage and more", b"image", id="more_than_the_length"),
        pytest.param(OK + b"Content-Length: 0\r\n\r\nmore", b"", id="more_than_nothing"),
        pytest.param(
            OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nimage\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            b"image",
            id="an_answer_not_asked_for",
        ),
        pytest.param(
            OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nimage\r\n0\r\n\r\n\0garbage", b"image", id="garbage_behind"
        ),
    ],
)
async def test_connection_that_is_out_of_step_is_not_used_again(answer: bytes, body: bytes) -> None:
    """What comes beyond the end of an answer belongs to nobody, least of all to the next question."""
    async with upstream_of(says(answer, end=True), says(OK + b"Content-Length: 4\r\n\r\nnext")) as (transport, url, at):
        assert await body_of(transport, url) == body
        assert await body_of(transport, url) == b"next"
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
    async with upstream_of(says(response), says(OK + b"Content-Length: 4\r\n\r\nnext")) as (transport, url, upstream):
        async with transport.get(url, {}) as first:
            received = b""
            while chunk := await first.read():
                received += chunk
            assert received == body
            assert "X-Second" not in first.headers
            assert "X-Trailer" not in first.headers
        assert await body_of(transport, url) == b"next"
    assert upstream.connections == 2


@pytest.mark.parametrize("framing", [b"Content-Length: 5\r\n\r\nthere", b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"])
async def test_bytes_behind_a_redirect_are_not_the_image(framing: bytes) -> None:
    """A second response behind a redirect whose body is discarded is not the response of the redirect's target."""
    redirect = says(b"HTTP/1.1 302 Found\r\nLocation: /there\r\n" + framing + SECOND)
    async with upstream_of(redirect, says(OK + b"Content-Length: 5\r\n\r\nimage")) as (transport, url, upstream):
        assert await body_of(transport, url) == b"image"
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
async def test_white_space_around_a_header_value_is_not_part_of_it(header: bytes) -> None:
    """The framing and all other fields are read without it (RFC 9112 section 5), and the connection is reused."""
    response = b'HTTP/1.1 200 OK\r\nContent-Type: image/jpeg \r\nETag: \t"tag" \t\r\n' + header
    redirect = says(b"HTTP/1.1 302 Found\r\nLocation: /there \t\r\nContent-Length: 0 \r\n\r\n")
    async with upstream_of(redirect, says(response), says(response)) as (transport, url, upstream):
        async with transport.get(url, {}) as answer:
            assert (answer.headers["ETag"], answer.content_type) == ('"tag"', "image/jpeg")
            assert await answer.read() == b"image"
            assert await answer.read() == b""
        assert await body_of(transport, url) == b"image"
    assert upstream.asked[1].startswith(b"GET /there HTTP/1.1\r\n")
    assert upstream.connections == 1


async def test_white_space_behind_close_ends_the_connection() -> None:
    """``Connection: close`` with a space behind it is respected too."""
    closing = says(OK + b"Connection: close \r\nContent-Length: 5\r\n\r\nimage")
    async with upstream_of(closing, says(ANSWERS["length"])) as (transport, url, upstream):
        assert [await body_of(transport, url) for _ in range(2)] == [b"image"] * 2
    assert upstream.connections == 2


async def test_any_number_of_chunks_is_taken() -> None:
    """The framing of small chunks is far larger than the bound of what is not body, but belongs to the body."""
    chunks = b"1\r\nx\r\n" * MAX_NON_BODY_BYTES
    whole = OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    # A server that sends size, data and line break by themselves.
    pieces = says(OK + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\n", b"x", b"\r\n"] * 1000, b"0\r\n", b"\r\n")
    async with upstream_of(says(whole), pieces) as (transport, url, upstream):
        assert await body_of(transport, url) == b"x" * MAX_NON_BODY_BYTES
        assert await body_of(transport, url) == b"x" * 1000
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
async def test_what_is_not_body_is_bounded(begin: bytes, repeated: bytes) -> None:
    """A response whose header or trailers never end fails; all that is not body shares one bound."""

    async def endless(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        while True:
            writer.write(repeated)
            await writer.drain()

    async with upstream_of(endless) as (transport, url, _):
        with pytest.raises(AttemptFailed) as caught:
            await body_of(transport, url)
    assert caught.value.failure.reason is Reason.CONNECTION_LOST


async def test_bound_is_shared_by_all_that_is_not_body() -> None:
    """Two thirds of the bound are taken as header and trailers; three thirds and a line are not."""
    interim = b"HTTP/1.1 103 Early Hints\r\n" + THIRD + b"\r\n"
    final = OK + THIRD + CHUNKED.removeprefix(OK)
    async with upstream_of(
        says(interim, final, b"\r\n"), says(final, THIRD, b"\r\n"), says(interim, final, THIRD, b"Y: y\r\n")
    ) as (transport, url, _):
        assert await body_of(transport, url) == b"image"
        assert await body_of(transport, url) == b"image"
        with pytest.raises(AttemptFailed) as caught:
            await body_of(transport, url)
    assert caught.value.failure.reason is Reason.CONNECTION_LOST


@pytest.mark.parametrize("forged", [SECOND, b"\r\n", b"x"], ids=["response", "empty_line", "byte"])
@pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_connection_with_unread_bytes_is_not_used(
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

    following = says(OK + b"Content-Length: 4\r\n\r\nnext")
    tls = {"secured": secured, "trusting": trusting} if over_tls else {}
    async with upstream_of(first, following, **tls) as (transport, url, upstream):  # type: ignore[arg-type]
        assert await body_of(transport, url) == b"image"
        idle[0].write(forged)  # goes to the socket at once, and no turn of the loop follows
        if method == "GET":
            assert await body_of(transport, url) == b"next"
        else:
            async with transport.send(method, url, {}, b"") as response:
                assert await response.read() == b"next"
    assert upstream.connections == 2


async def test_idle_connection_that_was_closed_is_not_used() -> None:
    """The end of an idle connection is noticed before a request is written to it."""
    idle: list[asyncio.StreamWriter] = []

    async def first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"Content-Length: 5\r\n\r\nimage")
        idle.append(writer)
        upstream.asked.append(await reader.read())

    async with upstream_of(first, says(OK + b"Content-Length: 4\r\n\r\nnext")) as (transport, url, upstream):
        assert await body_of(transport, url) == b"image"
        idle[0].write_eof()
        assert await body_of(transport, url) == b"next"
    assert upstream.connections == 2
    assert min(map(len, upstream.asked)) == 0, "nothing came on the first connection behind its end"


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
    return [request.split(b" ", 2)[1] for request in upstream.asked]


@pytest.mark.parametrize("ending", [close, abort], ids=["closed", "reset"])
async def test_reused_connection_that_dies_is_replaced(ending: Script) -> None:
    """A request on an idle connection that is closed without a response is sent again, not the one before it."""
    redirect = b"HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n"
    async with upstream_of(says(redirect), ending, says(ANSWERS["length"])) as (transport, url, upstream):
        assert await body_of(transport, url) == b"image"
    assert paths_of(upstream) == [b"/image?of=1", b"/there", b"/there"]
    assert upstream.asked[1] == upstream.asked[2]
    assert upstream.connections == 2


async def test_dead_connection_is_replaced_by_a_new_one() -> None:
    """The request is repeated on a new connection: another idle one may be as dead."""
    both = asyncio.Barrier(2)

    async def together(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await both.wait()
        writer.write(ANSWERS["length"])

    async with upstream_of(together, together, close, says(ANSWERS["length"])) as (transport, url, upstream):
        await asyncio.gather(*(body_of(transport, url) for _ in range(2)))
        assert upstream.connections == 2
        assert await body_of(transport, url) == b"image"
    assert (upstream.connections, len(upstream.asked)) == (3, 4)


@pytest.mark.parametrize(
    ("scripts", "requests"),
    [
        pytest.param([close], 1, id="new_connection"),
        pytest.param([says(ANSWERS["length"]), close, close], 3, id="twice"),
        pytest.param([says(ANSWERS["length"]), says(b"H", end=True)], 2, id="after_the_first_byte"),
        pytest.param([says(ANSWERS["length"]), says(b"HTTP/1.1 100 OK\r\n\r\n", end=True)], 2, id="after_an_interim"),
    ],
)
async def test_connection_that_breaks_otherwise_is_a_failure(scripts: Sequence[Script], requests: int) -> None:
    """A request is repeated once, only on behalf of an idle connection, and only before the first byte."""
    async with upstream_of(*scripts) as (transport, url, upstream):
        for _ in scripts[: requests - 1 if requests < 3 else 1]:
            assert await body_of(transport, url) == b"image"
        with pytest.raises(AttemptFailed) as caught:
            await body_of(transport, url)
    assert caught.value.failure.reason is Reason.CONNECTION_LOST
    assert len(upstream.asked) == requests


async def test_answer_that_nobody_asked_for_is_not_the_next_one() -> None:
    """A connection on which something came while it was idle is closed, and another one asked."""
    late, forged = asyncio.Event(), asyncio.Event()

    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"Content-Length: 5\r\n\r\nimage")
        await late.wait()
        writer.write(OK + b"Content-Length: 6\r\n\r\nforged")
        await writer.drain()
        forged.set()
        with suppress(ConnectionError):
            await reader.read()

    async with upstream_of(twice, says(OK + b"Content-Length: 4\r\n\r\nnext")) as (transport, url, upstream):
        assert await body_of(transport, url) == b"image"
        late.set()
        await forged.wait()
        for _ in range(10):  # turns of the loop in which it arrives
            await asyncio.sleep(0)
        assert await body_of(transport, url) == b"next"
    assert upstream.connections == 2


@pytest.mark.parametrize(
    ("script", "reason", "received"),
    [
        pytest.param(says(end=True), Reason.CONNECTION_LOST, b"", id="closed_at_once"),
        pytest.param(says(b"HTTP/1.1 200", end=True), Reason.CONNECTION_LOST, b"", id="closed_in_the_head"),
        pytest.param(says(b"SSH-2.0-OpenSSH\r\n\r\n"), Reason.CONNECTION_LOST, b"", id="not_http"),
        pytest.param(says(OK + b"X: " + b"x" * MAX_NON_BODY_BYTES), Reason.CONNECTION_LOST, b"", id="endless_head"),
        pytest.param(
            says(OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            Reason.CONNECTION_LOST,
            b"",
            id="two_lengths",
        ),
        *(
            pytest.param(
                says(OK + header + b"\r\n\r\nimage", end=True), Reason.CONNECTION_LOST, b"", id=str(header, "ascii")
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
        pytest.param(says(b"\r\n\r\n" + OK + b"\r\n"), Reason.CONNECTION_LOST, b"", id="empty_lines_before"),
        pytest.param(says(b"HTTP/1.1 000 OK\r\n\r\n"), Reason.CONNECTION_LOST, b"", id="no_status"),
        pytest.param(
            says(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), Reason.CONNECTION_LOST, b"", id="coding"
        ),
        pytest.param(
            says(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
            Reason.CONNECTION_LOST,
            b"",
            id="upgrade",
        ),
        pytest.param(says(OK + b"Content-Length: 9\r\n\r\nhalf", end=True), Reason.TRUNCATED, b"half", id="cut"),
        pytest.param(reset, Reason.TRUNCATED, b"half", id="reset"),
        pytest.param(
            says(OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", end=True),
            Reason.TRUNCATED,
            b"half",
            id="open",
        ),
        pytest.param(
            says(OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nno number\r\n"),
            Reason.CONNECTION_LOST,
            b"half",
            id="broken_chunks",
        ),
    ],
)
async def test_what_is_no_whole_answer_is_a_failure(script: Script, reason: Reason, received: bytes) -> None:
    """An answer that is not whole is never taken for one; what came of it is handed out before."""
    async with upstream_of(script) as (transport, url, _):
        body = bytearray()
        with pytest.raises(AttemptFailed) as caught:
            await body_of(transport, url, into=body)
    assert caught.value.failure.reason is reason
    assert body == received


@pytest.mark.parametrize("before", [b"", OK + b"Content-Length: 9\r\n\r\nhalf"], ids=["no_answer", "in_the_body"])
async def test_silence_is_a_time_out(before: bytes) -> None:
    """An upstream that says nothing for too long is given up, and told so by the end of the connection."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await says(before)(reader, writer)
        await silence(reader, writer)

    async with upstream_of(script, silence_seconds=0.05) as (transport, url, _):
        with pytest.raises(AttemptFailed) as caught:
            await body_of(transport, url)
    assert caught.value.failure.reason is Reason.TIMEOUT


async def test_reader_that_does_not_read_holds_the_upstream_back_and_is_no_silence() -> None:
    """However long nobody reads: little is held, the upstream waits, and it is not blamed for that."""
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
            if not (await asyncio.wait([drained], timeout=0.2))[0]:  # ten periods of silence
                stuck.set()
            await drained
            sent += len(body)

    async with (
        upstream_of(large, silence_seconds=0.02) as (transport, url, _),
        transport.get(url, {}) as answer,
    ):
        await stuck.wait()
        assert sent < size
        received = 0
        while chunk := await answer.read():
            received += len(chunk)
        assert received == size


async def test_body_of_a_redirect_is_read_for_its_connection() -> None:
    """A redirect's body is of no use, but a new connection costs more than a few bytes."""
    redirect = b"HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 5\r\n\r\nthere"
    there = says(OK + b"Content-Length: 5\r\n\r\nimage")
    async with upstream_of(says(redirect), there) as (transport, url, upstream):
        assert await body_of(transport, url) == b"image"
    assert upstream.asked[1].startswith(b"GET /there HTTP/1.1\r\n")
    assert upstream.connections == 1


async def test_large_body_of_a_redirect_is_not_read() -> None:
    """A redirect with more of a body than a new connection costs loses its connection at once."""
    ended = asyncio.Event()

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = b"HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % (2 * MAX_LEFTOVER_BYTES) + b"there")
        with suppress(ConnectionError):
            await reader.read()
        ended.set()

    there = says(OK + b"Content-Length: 5\r\n\r\nimage")
    async with upstream_of(redirect, there) as (transport, url, upstream):
        assert await body_of(transport, url) == b"image"
        await ended.wait()
    assert upstream.connections == 2


async def test_left_answer_ends_its_connection() -> None:
    """Whoever leaves in mid-answer, or is cancelled while it waits for one, leaves no connection behind."""
    asked, ended = asyncio.Event(), asyncio.Event()

    async def never(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        asked.set()
        with suppress(ConnectionError):
            await reader.read()
        ended.set()

    async with upstream_of(says(OK + b"Content-Length: 9\r\n\r\nhalf"), never) as (transport, url, upstream):
        async with transport.get(url, {}) as answer:
            assert await answer.read() == b"half"
        waiting = asyncio.create_task(body_of(transport, url))
        await asked.wait()
        waiting.cancel()
        await asyncio.wait([waiting])
        await ended.wait()
        assert upstream.connections == 2


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Return who signs certificates."""
    return trustme.CA()


@pytest.fixture
def secured(authority: trustme.CA) -> ssl.SSLContext:
    """Return what a server on loopback speaks TLS with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """Return what a client trusts that server with."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_tls_carries_the_same_answers(answer: bytes, secured: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    """Behind TLS bodies come as whole as without it, one after the other on one connection."""
    large = bytes(range(256)) * 16_384
    async with upstream_of(
        says(answer),
        says(OK + b"Content-Length: %d\r\n\r\n" % len(large), large),
        says(answer),
        secured=secured,
        trusting=trusting,
    ) as (transport, url, upstream):
        assert [await body_of(transport, url) for _ in range(3)] == [b"image", large, b"image"]
    assert upstream.connections == 1


async def test_tls_reader_that_leaves_ends_the_connection(secured: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    """Whoever leaves in mid-answer is not waited for by a farewell of TLS's."""
    ended = asyncio.Event()

    async def endless(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"\r\n")
        with suppress(ConnectionError):
            while True:
                writer.write(bytes(100_000))
                await writer.drain()
        ended.set()

    async with upstream_of(endless, secured=secured, trusting=trusting) as (transport, url, _):
        async with transport.get(url, {}) as answer:
            assert await answer.read()
        await ended.wait()


@pytest.mark.parametrize("end", [True, False], ids=["closed", "cut"])
async def test_tls_answer_that_is_cut_is_not_whole(
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
    async with upstream_of(half, secured=secured, trusting=trusting) as (transport, url, _):
        with pytest.raises(AttemptFailed) as caught:
            await body_of(transport, url, into=body)
    assert (caught.value.failure.reason, bytes(body)) == (Reason.TRUNCATED, b"half")


async def test_server_that_is_not_trusted_is_not_asked(secured: ssl.SSLContext) -> None:
    """A certificate of nobody we know ends it before the question, which may hold the key."""
    async with upstream_of(says(ANSWERS["length"]), secured=secured) as (transport, url, upstream):
        with pytest.raises(AttemptFailed) as caught:
            await body_of(transport, url)
        assert caught.value.failure.reason is Reason.CONNECTION_FAILED
        assert upstream.asked == []


def test_question() -> None:
    """The question is one line and its fields, whatever the address holds."""
    url = URL("http://storage.example:8080/a%2Fb c\x01d?sig=a%2Bb&n=\u00e9", encoded=True)
    head, *fields = question(url, {"Range": "bytes=5-", "If-Range": '"tag"'}).decode("ascii").split("\r\n")
    assert head == "GET /a%2Fb%20c%01d?sig=a%2Bb&n=%C3%A9 HTTP/1.1"
    assert fields == ["Host: storage.example:8080", "Range: bytes=5-", 'If-Range: "tag"', "", ""]


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\nX: y", "a\rX: y"])
def test_header_that_would_begin_a_line_is_refused(value: str) -> None:
    """No value can put another field, or another request, behind its own."""
    with pytest.raises(ValueError, match="line break"):
        question(URL("http://api.example/"), {"X-Request-ID": value})
