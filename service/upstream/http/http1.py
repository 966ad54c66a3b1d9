"""One GET on one connection: the question goes out, the answer is read as it comes (RFC 9112).

aiohttp opens, secures, pools and closes the connections. What happens on one in between is done here: every image
needs three requests, and aiohttp's own client takes 66 µs instead of 46 for one that is redirected, 106 instead of 76
for an image of 300 KB, whose body it copies once more. llhttp (by httptools) reads heads and chunks; a body of known
length is only counted.

States: asked, then the answer's head is read, then its body; then ended, or failed. Ownership: an exchange owns its
connection until then, and hands it back by itself, to be used again only after a clean end. It holds at most what
one read of the socket brings beyond ``READ_BUFFER_BYTES``: then it stops reading, and TCP holds the upstream back.

Time-outs count only time spent waiting for the upstream: one timer looks whether somebody has waited for too long.
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
from service.upstream.retry import AttemptFailed, content_length

# The bound of all that is not body in one response: interim responses, header, chunk extensions and trailers together.
# Signed redirect targets with a session token come close to 8 KiB; no honest response has eight of those.
MAX_NON_BODY_BYTES = 64 * 1024
# The framing of one chunk (its size and two line breaks) that does not count as such: a body may have any number of
# chunks. Sixteen bytes hold the size of every chunk that fits into memory.
CHUNK_FRAMING_BYTES = 16
# Reading stops above this. What one read of the socket brings (256 KiB) comes on top, so little is enough.
READ_BUFFER_BYTES = 16 * 1024
# What is left of an answer that nobody wants is read up to here, so that its connection can be used again.
MAX_LEFTOVER_BYTES = 64 * 1024

_HEAD_END = b"\r\n\r\n"
_LINE_END = b"\r\n"
_EMPTY_LINES = b"\r\n\r\n\r\n"  # no response ends so: before its last empty line is the last chunk or a trailer
_OPTIONAL_SPACE = b" \t"  # OWS in RFC 9110 section 5.6.3
_LOWEST_STATUS = 100


def _without_trailing_space(header: bytes) -> bytes:
    """Strip the white space behind each header value (RFC 9112 section 5).

    llhttp 9 does not: it takes ``Transfer-Encoding: chunked`` with a space behind it for no chunked coding. A line of
    nothing but white space is left for llhttp to refuse.
    """
    if b" \r\n" not in header and b"\t\r\n" not in header:
        return header
    return _LINE_END.join(line.rstrip(_OPTIONAL_SPACE) or line for line in header.split(_LINE_END))


def question(url: URL, headers: Mapping[str, str]) -> bytes:
    """Return the bytes that ask for a URL (RFC 9112 section 3).

    Raises:
        ValueError: a header would begin another line.
    """
    # What no address may hold is encoded, so that a redirect can neither end the line nor break it in three.
    target = quote(url.raw_path_qs, safe=string.punctuation)
    lines = [f"GET {target} HTTP/1.1\r\nHost: {url.host_port_subcomponent}\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
    text = "".join(lines)
    if not len(lines) + 1 == text.count("\n") == text.count("\r"):
        raise ValueError("a header value with a line break")
    return f"{text}\r\n".encode()


class Exchange(asyncio.Protocol):
    """The answer to one question; ``ask`` first, then ``read`` until it returns nothing, or ``close``."""

    def __init__(
        self,
        connection: aiohttp.connector.Connection,
        url: URL,
        *,
        silence_seconds: float,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        transport, owner = connection.transport, connection.protocol
        if transport is None or owner is None:
            raise AttemptFailed(Failure(Reason.CONNECTION_LOST, "the connection broke"))
        self.url = url
        self.status = 0
        self.headers: CIMultiDict[str] = CIMultiDict()
        self.unanswered = False  # whether the connection was closed before the first byte of a response
        self._loop = loop
        self._connection = connection
        self._transport: asyncio.Transport = transport
        self._pooled: asyncio.Protocol = owner  # aiohttp's, which has the connection before and after
        self._silence_seconds = silence_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._waiting_since: float | None = None
        self._head: bytearray | None = bytearray()  # what has come of it; None once it is complete
        self._non_body_bytes = 0
        self._expected_bytes = 0  # of chunks: their bodies and the framing that each may have
        self._last_bytes = b""  # of a chunked response: as many as show whether anything is behind its end
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        self._message_ended = False  # llhttp says so
        self._chunked = False
        self._left: int | None = None  # bytes of a body of known length
        self._chunks: deque[bytes] = deque()
        self._held_bytes = 0
        self._paused = False
        self._reusable = True
        self._discarded: int | None = None  # bytes read for nobody; None while somebody wants them
        self._ended = False
        self._failure: Failure | None = None

    @property
    def content_type(self) -> str:
        """The media type without its parameters, in lower case (RFC 9110 section 8.3.1)."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    @property
    def framed(self) -> bool:
        """Whether the answer says where its body ends; otherwise that is where the connection does."""
        return self._left is not None or self._chunked or self._message_ended

    async def ask(self, asked: bytes) -> None:
        """Send the question, and wait for the head of the answer.

        Raises:
            AttemptFailed: no answer in time, none at all, or none that is HTTP.
        """
        self._transport.set_protocol(self)
        self._transport.write(asked)
        self._timer = self._loop.call_later(self._silence_seconds, self._check_silence)
        while self._head is not None:
            self._raise_failure()
            await self._wait()

    async def read(self) -> bytes:
        """Return the next bytes of the body, or ``b""`` at its clean end.

        Raises:
            AttemptFailed: the upstream was silent for too long, or the connection broke; all that came before has
                been returned.
        """
        while not self._chunks:
            self._raise_failure()
            if self._ended:
                return b""
            await self._wait()
        chunk = self._chunks.popleft()
        self._held_bytes -= len(chunk)
        if self._paused and not self._chunks:
            self._paused = False
            self._transport.resume_reading()
        return chunk

    def leave(self) -> None:
        """Want no more of the answer. A little left of it is read to its end, for the connection's sake."""
        if self._ended or self._failure is not None:
            return
        self._discarded = self._held_bytes
        self._chunks.clear()
        self._waiting_since = self._loop.time()  # nobody waits any more but the timer
        if self._paused or self._discarded > MAX_LEFTOVER_BYTES or (self._left or 0) > MAX_LEFTOVER_BYTES:
            self.close()

    def close(self) -> None:
        """End the exchange now, and the connection with it unless it is handed back already."""
        if not self._ended and self._failure is None:
            self._fail(Failure(Reason.CONNECTION_LOST, "the exchange was called off"))

    # What the connection tells.

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        if self._head is not None:
            self._read_head(self._head, data)
        else:
            self._take(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Take note of the end of the connection, which may be that of the body."""
        self._pooled.connection_lost(exc)
        if self._ended or self._failure is not None:
            return
        self.unanswered = not (self._head is None or self._head or self._non_body_bytes)
        self._reusable = False
        if self._head is not None:
            self._fail(Failure(Reason.CONNECTION_LOST, "the connection broke"))
        elif self.framed:
            self._fail(Failure(Reason.TRUNCATED, "the answer ended before its promised end"))
        elif exc is not None:
            self._fail(Failure(Reason.CONNECTION_LOST, "the connection broke"))
        else:
            self._end()

    # What llhttp tells.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field; trailers are dropped (RFC 9110 section 6.5.1)."""
        if self._head is not None:
            self.headers.add(name.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape"))

    def on_headers_complete(self) -> None:
        """Take note of what the header says of the connection: behind a body of length 0 llhttp has forgotten it."""
        if self._parser is not None:
            self._reusable = self._parser.should_keep_alive()

    def on_chunk_header(self) -> None:
        """Allow for the framing of one more chunk."""
        self._expected_bytes += CHUNK_FRAMING_BYTES

    def on_body(self, body: bytes) -> None:
        """Take a piece of a chunked body."""
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
        """Take note of the end."""
        self._message_ended = True

    def _read_head(self, head: bytearray, data: bytes) -> None:
        """Parse the header once it is complete, and each interim response before it."""
        seen = max(0, len(head) - len(_HEAD_END) + 1)  # each byte is searched once, however the header is cut
        if head:
            head += data
        received = head or data
        start = 0
        while self._parser is not None and (found := received.find(_HEAD_END, seen)) >= 0:
            seen = found + len(_HEAD_END)
            self._non_body_bytes += seen - start
            if self._non_body_bytes > MAX_NON_BODY_BYTES or not self._parse_header(self._parser, received[start:seen]):
                break
            start = seen
            if self.status >= HTTPStatus.OK:
                self._begin_body(bytes(received[start:]))
                return
            # An interim response (RFC 9110 section 15.2): the final one comes behind it.
            self.headers.clear()
            self._message_ended = False
            self._parser = HttpResponseParser(self)
        if self._failure is None and self._non_body_bytes + len(received) - start > MAX_NON_BODY_BYTES:
            self._fail(Failure(Reason.CONNECTION_LOST, "the header of the response is too large"))
        elif start or not head:
            self._head = bytearray(received[start:])

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
        """Decide how the body ends (RFC 9112 section 6.3; llhttp has refused what is ambiguous)."""
        self._head = None
        # All fields of that name are one list (RFC 9110 section 5.3); llhttp looks at the last coding only.
        coding = ", ".join(self.headers.getall("Transfer-Encoding", ()))
        if self._message_ended:  # no body by definition, or of no length
            self._reusable = self._reusable and not rest
            self._end()
        elif coding.lower() == "chunked":
            self._chunked = True
        elif "Transfer-Encoding" in self.headers:
            self._fail(Failure(Reason.CONNECTION_LOST, f"the response has a transfer coding of {coding[:40]!r}"))
        elif "Content-Length" in self.headers:
            self._left = content_length(self.headers)
            if self._left is None:  # it must not pass for a body that ends with the connection
                self._fail(Failure(Reason.CONNECTION_LOST, "the response has a length that cannot be"))
        self._wake()
        if rest and not self._ended:
            self._take(rest)

    def _take(self, data: bytes) -> None:
        if self._ended or self._failure is not None:
            self._reusable = False
        elif self._chunked and self._parser is not None:
            self._take_chunks(self._parser, data)
        elif self._left is None:
            self._deliver(data)
        else:
            if len(data) > self._left:  # what is beyond the length is not ours, nor an answer to anything
                data = data[: self._left]
                self._reusable = False
            self._left -= len(data)
            if not self._left:
                self._end()
            self._deliver(data)

    def _take_chunks(self, parser: HttpResponseParser, data: bytes) -> None:
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
            # llhttp passes over line breaks behind the end without a word.
            clean = self._last_bytes.endswith(_HEAD_END) and self._last_bytes != _EMPTY_LINES
            self._reusable = self._reusable and clean
            self._end()
        elif self._non_body_bytes > MAX_NON_BODY_BYTES:
            self._fail(Failure(Reason.CONNECTION_LOST, "the trailers of the response are too large"))

    def _deliver(self, chunk: bytes) -> None:
        if self._discarded is not None:
            self._discarded += len(chunk)
            if self._discarded > MAX_LEFTOVER_BYTES:
                self.close()
            return
        self._chunks.append(chunk)
        self._held_bytes += len(chunk)
        if self._waiter is not None:
            self._wake()
        elif self._held_bytes > READ_BUFFER_BYTES and not self._paused and not self._ended:
            self._paused = True
            self._transport.pause_reading()

    def _end(self) -> None:
        """The answer is complete: the connection goes back."""
        self._ended = True
        self._hand_back()

    def _fail(self, failure: Failure) -> None:
        self._failure = failure
        self._reusable = False
        self._hand_back()

    def _hand_back(self) -> None:
        self._parser = None  # it refers back to us, and cycles wait for the garbage collector
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
            # In mid-answer there is nobody to say good-bye to, and the upstream must stop now.
            self._transport.abort()
            self._connection.close()
        self._wake()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise AttemptFailed(self._failure)

    # Waiting: at most one task reads, and at most one timer looks how long it has been waiting.

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

    def _check_silence(self) -> None:
        """Fail if the upstream is being waited for too long; look again when that can next be so."""
        waited_seconds = 0.0 if self._waiting_since is None else self._loop.time() - self._waiting_since
        if waited_seconds >= self._silence_seconds:
            self._timer = None
            seconds = f"{self._silence_seconds:g}"
            self._fail(Failure(Reason.TIMEOUT, f"the upstream was silent for {seconds} s"))
        else:
            self._timer = self._loop.call_later(self._silence_seconds - waited_seconds, self._check_silence)
