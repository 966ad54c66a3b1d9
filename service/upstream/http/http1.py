"""One HTTP/1.1 GET on a pooled connection (RFC 9112).

aiohttp opens, secures, pools and closes the connections; request and response are written and read here. Every image
needs three requests, and aiohttp's own client takes 66 µs instead of 46 for one that is redirected, 106 instead of 76
for an image of 300 KB, whose body it copies once more. llhttp (by httptools) parses headers and chunks; a body of known
length is only counted.

States: request sent, then reading the header, then the body; then complete, or failed. Ownership: a response owns its
connection until then, and releases it automatically, to be reused only after a clean end. It buffers at most what one
read of the socket brings beyond ``READ_BUFFER_BYTES``. Then it pauses reading: backpressure by TCP.

The idle timeout covers only time spent waiting for the upstream, not time in which nothing is read from here.

Internals of aiohttp that are used: ``connector.Connection.transport`` and ``.protocol``. A response replaces that
protocol on the transport until it ends, and passes ``connection_lost`` on to it (tests/test_aiohttp_contract.py names
each).
"""

import asyncio
import string
from collections import deque
from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import quote

import aiohttp
from httptools import HttpParserError, HttpResponseParser
from multidict import CIMultiDict
from yarl import URL

from service.model import Failure, Reason
from service.upstream.http.headers import content_length
from service.upstream.retry import AttemptFailed

# The bound of all that is not body in one response: interim responses, header, chunk extensions and trailers together.
# Signed redirect targets with a session token come close to 8 KiB; no honest response has eight of those.
MAX_NON_BODY_BYTES = 64 * 1024
# The framing of one chunk (its size and two line breaks) that does not count as such: a body may have any number of
# chunks. Sixteen bytes hold the size of every chunk that fits into memory.
CHUNK_FRAMING_BYTES = 16
# Reading stops above this. What one read of the socket brings (256 KiB) comes on top, so little is enough.
READ_BUFFER_BYTES = 16 * 1024
# The rest of a discarded body is read up to this size, so that its connection can be reused.
MAX_LEFTOVER_BYTES = 64 * 1024

_HEADER_END = b"\r\n\r\n"
_LINE_END = b"\r\n"
_EMPTY_LINES = b"\r\n\r\n\r\n"  # no response ends so: before its last empty line is the last chunk or a trailer
_OPTIONAL_SPACE = b" \t"  # OWS in RFC 9110 section 5.6.3
_LOWEST_STATUS = 100


def _without_trailing_space(header: bytes) -> bytes:
    """Strip the white space behind each header value (RFC 9112 section 5).

    llhttp 9 does not: to it ``Transfer-Encoding: chunked`` with a space behind it is no chunked coding. A line of
    nothing but white space is left for llhttp to reject.
    """
    if b" \r\n" not in header and b"\t\r\n" not in header:
        return header
    return _LINE_END.join(line.rstrip(_OPTIONAL_SPACE) or line for line in header.split(_LINE_END))


def encode_request(url: URL, headers: Mapping[str, str]) -> bytes:
    """Return a GET request as bytes (RFC 9112 section 3).

    Raises:
        ValueError: a header value contains a line break.
    """
    # Illegal characters of a URL are encoded, so that a redirect can neither end the request line nor split it.
    target = quote(url.raw_path_qs, safe=string.punctuation)
    lines = [f"GET {target} HTTP/1.1\r\nHost: {url.host_port_subcomponent}\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
    text = "".join(lines)
    if not len(lines) + 1 == text.count("\n") == text.count("\r"):
        raise ValueError("a header value with a line break")
    return f"{text}\r\n".encode()


class Response(asyncio.Protocol):
    """The response to one GET: ``start`` it, then ``read`` until it returns nothing, or ``discard`` or ``abort`` it."""

    def __init__(
        self,
        connection: aiohttp.connector.Connection,
        url: URL,
        *,
        idle_timeout_seconds: float,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        transport, pooled = connection.transport, connection.protocol
        if transport is None or pooled is None:
            raise AttemptFailed(Failure(Reason.CONNECTION_LOST, "the connection broke"))
        self.url = url
        self.status = 0
        self.headers: CIMultiDict[str] = CIMultiDict()
        self.closed_before_response = False  # the connection, before the first byte of a response
        self._loop = loop
        self._connection = connection
        self._transport: asyncio.Transport = transport
        self._pooled: asyncio.Protocol = pooled  # aiohttp's, which reads the connection before and after
        self._idle_timeout_seconds = idle_timeout_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._waiting_since: float | None = None
        self._header: bytearray | None = bytearray()  # the received part of it; None once it is complete
        self._non_body_bytes = 0
        self._expected_bytes = 0  # of chunks: their bodies and the framing that each may have
        self._last_bytes = b""  # of a chunked response: as many as show whether anything is behind its end
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        self._message_ended = False  # as llhttp reports
        self._chunked = False
        self._remaining_bytes: int | None = None  # of a body of known length
        self._chunks: deque[bytes] = deque()
        self._buffered_bytes = 0
        self._paused = False
        self._reusable = True
        self._discarded_bytes: int | None = None  # set once the body is discarded
        self._ended = False
        self._failure: Failure | None = None

    @property
    def content_type(self) -> str:
        """The media type without its parameters, in lower case (RFC 9110 section 8.3.1)."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    @property
    def is_close_delimited(self) -> bool:
        """Whether the body ends only with the connection (RFC 9112 section 6.3, rule 8)."""
        return not (self._remaining_bytes is not None or self._chunked or self._message_ended)

    async def start(self, request: bytes) -> None:
        """Send the request, and wait for the header of the response.

        Raises:
            AttemptFailed: no response in time, none at all, or none that is HTTP.
        """
        self._transport.set_protocol(self)
        self._transport.write(request)
        self._timer = self._loop.call_later(self._idle_timeout_seconds, self._check_idle_timeout)
        while self._header is not None:
            self._raise_failure()
            await self._wait()

    async def read(self) -> bytes:
        """Return the next bytes of the body, or ``b""`` at its clean end.

        Raises:
            AttemptFailed: the idle timeout expired, or the connection broke; all bytes received before have been
                returned.
        """
        while not self._chunks:
            self._raise_failure()
            if self._ended:
                return b""
            await self._wait()
        chunk = self._chunks.popleft()
        self._buffered_bytes -= len(chunk)
        if self._paused and not self._chunks:
            self._paused = False
            self._transport.resume_reading()
        return chunk

    def discard(self) -> None:
        """Discard the body. A small rest of it is read to its end, so that the connection can be reused."""
        if self._ended or self._failure is not None:
            return
        self._discarded_bytes = self._buffered_bytes
        self._chunks.clear()
        self._waiting_since = self._loop.time()  # the idle timeout covers the rest too
        if (
            self._paused
            or self._discarded_bytes > MAX_LEFTOVER_BYTES
            or (self._remaining_bytes or 0) > MAX_LEFTOVER_BYTES
        ):
            self.abort()

    def abort(self) -> None:
        """Close the connection, unless it is released already."""
        if not self._ended and self._failure is None:
            self._fail(Failure(Reason.CONNECTION_LOST, "the response was aborted"))

    # Events of the connection (asyncio.Protocol).

    def data_received(self, data: bytes) -> None:
        """Read the received bytes."""
        if self._header is not None:
            self._read_header(self._header, data)
        else:
            self._read_body(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle the end of the connection, which may be that of the body."""
        self._pooled.connection_lost(exc)
        if self._ended or self._failure is not None:
            return
        self.closed_before_response = not (self._header is None or self._header or self._non_body_bytes)
        self._reusable = False
        if self._header is not None:
            self._fail(Failure(Reason.CONNECTION_LOST, "the connection broke"))
        elif not self.is_close_delimited:
            self._fail(Failure(Reason.TRUNCATED, "the response ended before its body was complete"))
        elif exc is not None:
            self._fail(Failure(Reason.CONNECTION_LOST, "the connection broke"))
        else:
            self._finish()

    # Callbacks of llhttp.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header field; trailers are dropped (RFC 9110 section 6.5.1)."""
        if self._header is not None:
            self.headers.add(name.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape"))

    def on_headers_complete(self) -> None:
        """Record whether the connection may be reused: after a body of length 0 llhttp has forgotten it."""
        if self._parser is not None:
            self._reusable = self._parser.should_keep_alive()

    def on_chunk_header(self) -> None:
        """Allow for the framing of one more chunk."""
        self._expected_bytes += CHUNK_FRAMING_BYTES

    def on_body(self, body: bytes) -> None:
        """Deliver a piece of a chunked body."""
        self._expected_bytes += len(body)
        self._deliver(body)

    def on_message_begin(self) -> None:
        """Stop llhttp at the first byte behind the end of the response.

        Raises:
            HttpParserError: llhttp goes on parsing in the same read, as if a second response had been requested.
        """
        if self._message_ended:
            raise HttpParserError("bytes behind the end of the response")

    def on_message_complete(self) -> None:
        """Record the end of the response."""
        self._message_ended = True

    def _read_header(self, header: bytearray, data: bytes) -> None:
        """Parse the header once it is complete, and each interim response before it."""
        seen = max(0, len(header) - len(_HEADER_END) + 1)  # each byte is searched once, however the header is cut
        if header:
            header += data
        received = header or data
        start = 0
        while self._parser is not None and (found := received.find(_HEADER_END, seen)) >= 0:
            seen = found + len(_HEADER_END)
            self._non_body_bytes += seen - start
            if self._non_body_bytes > MAX_NON_BODY_BYTES or not self._parse_header(self._parser, received[start:seen]):
                break
            start = seen
            if self.status >= HTTPStatus.OK:
                self._begin_body(bytes(received[start:]))
                return
            # An interim response (RFC 9110 section 15.2): the final one follows it.
            self.headers.clear()
            self._message_ended = False
            self._parser = HttpResponseParser(self)
        if self._failure is None and self._non_body_bytes + len(received) - start > MAX_NON_BODY_BYTES:
            self._fail(Failure(Reason.CONNECTION_LOST, "the header of the response is too large"))
        elif start or not header:
            self._header = bytearray(received[start:])

    def _parse_header(self, parser: HttpResponseParser, header: bytes | bytearray) -> bool:
        """Parse one header; return whether it is one."""
        try:
            parser.feed_data(_without_trailing_space(bytes(header)))
        except HttpParserError:  # also an upgrade that was not requested
            self.status = 0
        else:
            self.status = parser.get_status_code()
        if self.status < _LOWEST_STATUS:
            self._fail(Failure(Reason.CONNECTION_LOST, "the response is not HTTP"))
        return self._failure is None

    def _begin_body(self, rest: bytes) -> None:
        """Decide how the body ends (RFC 9112 section 6.3; llhttp has rejected ambiguous framing)."""
        self._header = None
        # All fields of that name are one list (RFC 9110 section 5.3); llhttp looks at the last coding only.
        coding = ", ".join(self.headers.getall("Transfer-Encoding", ()))
        if self._message_ended:  # no body by definition, or of no length
            self._reusable = self._reusable and not rest
            self._finish()
        elif coding.lower() == "chunked":
            self._chunked = True
        elif "Transfer-Encoding" in self.headers:
            self._fail(Failure(Reason.CONNECTION_LOST, f"the response has a transfer coding of {coding[:40]!r}"))
        elif "Content-Length" in self.headers:
            self._remaining_bytes = content_length(self.headers)
            if self._remaining_bytes is None:  # it must not pass for a body that ends with the connection
                self._fail(Failure(Reason.CONNECTION_LOST, "the response has a length that cannot be"))
        self._wake()
        if rest and not self._ended:
            self._read_body(rest)

    def _read_body(self, data: bytes) -> None:
        if self._ended or self._failure is not None:
            self._reusable = False
        elif self._chunked and self._parser is not None:
            self._read_chunks(self._parser, data)
        elif self._remaining_bytes is None:
            self._deliver(data)
        else:
            if len(data) > self._remaining_bytes:  # bytes beyond the length belong to no response
                data = data[: self._remaining_bytes]
                self._reusable = False
            self._remaining_bytes -= len(data)
            if not self._remaining_bytes:
                self._finish()
            self._deliver(data)

    def _read_chunks(self, parser: HttpResponseParser, data: bytes) -> None:
        try:
            parser.feed_data(data)
        except HttpParserError:
            self._reusable = False
            if not self._message_ended:
                self._fail(Failure(Reason.CONNECTION_LOST, "the framing of the response is broken"))
                return
        left = self._expected_bytes - len(data)
        self._non_body_bytes += max(0, -left)
        # The framing of one chunk may come in several reads; many small chunks must not save up for large trailers.
        self._expected_bytes = min(max(0, left), CHUNK_FRAMING_BYTES)
        self._last_bytes = (self._last_bytes + data[-len(_EMPTY_LINES) :])[-len(_EMPTY_LINES) :]
        if self._failure is not None:
            return
        if self._message_ended:
            # llhttp silently skips line breaks behind the end.
            clean = self._last_bytes.endswith(_HEADER_END) and self._last_bytes != _EMPTY_LINES
            self._reusable = self._reusable and clean
            self._finish()
        elif self._non_body_bytes > MAX_NON_BODY_BYTES:
            self._fail(Failure(Reason.CONNECTION_LOST, "the trailers of the response are too large"))

    def _deliver(self, chunk: bytes) -> None:
        if self._discarded_bytes is not None:
            self._discarded_bytes += len(chunk)
            if self._discarded_bytes > MAX_LEFTOVER_BYTES:
                self.abort()
            return
        self._chunks.append(chunk)
        self._buffered_bytes += len(chunk)
        if self._waiter is not None:
            self._wake()
        elif self._buffered_bytes > READ_BUFFER_BYTES and not self._paused and not self._ended:
            self._paused = True
            self._transport.pause_reading()

    def _finish(self) -> None:
        """Complete the response and release its connection."""
        self._ended = True
        self._release_connection()

    def _fail(self, failure: Failure) -> None:
        self._failure = failure
        self._reusable = False
        self._release_connection()

    def _release_connection(self) -> None:
        self._parser = None  # it refers back to this object, and cycles wait for the garbage collector
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._transport.is_closing():
            self._transport.set_protocol(self._pooled)
            if self._paused:
                self._paused = False
                self._transport.resume_reading()
        if self._reusable and not self._transport.is_closing():
            self._connection.release()
        else:
            # In the middle of a response, TLS needs no close_notify, and the upstream must stop now.
            self._transport.abort()
            self._connection.close()
        self._wake()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise AttemptFailed(self._failure)

    # Waiting: at most one task reads, and one timer checks how long it has been waiting.

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        self._waiting_since = self._loop.time()
        try:
            await self._waiter
        finally:
            self._waiter = self._waiting_since = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _check_idle_timeout(self) -> None:
        """Fail if the idle timeout has expired; check again at the earliest time at which it can."""
        waited_seconds = 0.0 if self._waiting_since is None else self._loop.time() - self._waiting_since
        if waited_seconds >= self._idle_timeout_seconds:
            self._timer = None
            seconds = f"{self._idle_timeout_seconds:g}"
            self._fail(Failure(Reason.TIMEOUT, f"no data from the upstream for {seconds} s"))
        else:
            self._timer = self._loop.call_later(self._idle_timeout_seconds - waited_seconds, self._check_idle_timeout)
