"""Incremental HTTP/1.1 response reader: bytes in, events out (RFC 9112). Pure, no I/O.

In the style of h11: ``feed`` takes what the socket brought and returns events, ``feed_eof`` takes the end of the
connection. One reader reads one response. Bytes behind the end of the message are never read: they only clear
``keep_alive``, so that the connection is not used again.

Everything that is not body shares one budget of ``MAX_OVERHEAD_BYTES``: status lines, headers, interim responses,
chunk extensions and trailers. A body costs no budget, so no size is too large.

Stricter than RFC 9112 has to be: a message whose length has more than one reading is refused, and so is a line that
does not end in CRLF.
"""

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Final, NamedTuple

# Signed redirect targets with a session token come close to 8 KiB; no honest response has eight of those.
MAX_OVERHEAD_BYTES: Final = 64 * 1024
# More digits than any file has bytes (RFC 9110 section 8.6 sets no limit): refused instead of misread.
MAX_LENGTH_DIGITS: Final = 18
MAX_CHUNK_SIZE_DIGITS: Final = 15

# RFC 9112 section 4. The reason phrase and the space before it are optional in practice.
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([0-9]) ([1-9][0-9]{2})(?: [^\r\n\0]*)?\r\n")
# RFC 9112 section 5: a token, a colon, and a value. No two parts of a pattern match the same white space, here and
# below: 60 KB of it would take a minute of backtracking.
_FIELD: Final = re.compile(r"^([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\r\n\0]*)\r\n", re.MULTILINE)
# RFC 9112 section 5.2: a line that continues the one before.
_OBS_FOLD: Final = re.compile(r"\r\n[ \t]+")
# Parsers disagree whether a length on a continued line counts.
_FOLDED_LENGTH: Final = re.compile(
    r"^(?:content-length|transfer-encoding):[^\r\n]*\r\n[ \t]", re.MULTILINE | re.IGNORECASE
)
# RFC 9112 section 7.1: the size, then extensions.
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]+)[ \t]*(;[^\r\n\0]*)?")
# RFC 9110 section 15. Plain numbers: an enumeration's members take longer to compare than a header section to parse.
_FIRST_FINAL_STATUS: Final = 200
_SWITCHING_PROTOCOLS: Final = 101
_BODILESS_STATUSES: Final = frozenset({204, 304})
# What decides where the body ends must not be said twice (RFC 9112 section 6.3; request smuggling).
_LENGTHS: Final = frozenset({"content-length", "transfer-encoding"})
_SECTION_END: Final = b"\r\n\r\n"
_CRLF: Final = b"\r\n"


class _ResponseError(Exception):
    """The bytes are not a readable HTTP/1.1 response; the message says why."""


class ResponseStarted(NamedTuple):
    """The final response's status and headers, names in lower case, values of repeated headers joined by commas.

    ``has_framing`` is false when only the end of the connection ends the body (RFC 9112 section 6.3, rule 8).
    """

    status: int
    headers: Mapping[str, str]
    has_framing: bool


class ResponseEnded(Enum):
    """The end of the message."""

    END = "end"


END: Final = ResponseEnded.END


class ResponseFailed(NamedTuple):
    """The response is malformed, incomplete, or too large beside its body: no event follows."""

    detail: str
    is_truncated: bool = False


Event = ResponseStarted | bytes | ResponseEnded | ResponseFailed


class _State(Enum):
    HEADERS = "headers"
    FIXED_BODY = "body of known length"
    CLOSE_DELIMITED_BODY = "body up to the end of the connection"
    CHUNK_SIZE = "chunk size"
    CHUNK_DATA = "chunk data"
    CHUNK_END = "end of a chunk"
    TRAILERS = "trailers"
    ENDED = "ended"
    FAILED = "failed"


class ResponseReader:
    """Reads one response.

    ``keep_alive``: another request may follow on the connection, once the response has ended.
    """

    __slots__ = ("_buffer", "_overhead_bytes", "_remaining", "_searched", "_state", "keep_alive")

    def __init__(self) -> None:
        self._state = _State.HEADERS
        self._buffer = b""  # an incomplete line or header section
        self._searched = 0  # bytes of the buffer in which its end has been searched
        self._remaining = 0  # bytes of the body, or of the chunk
        self._overhead_bytes = 0
        self.keep_alive = False

    @property
    def has_ended(self) -> bool:
        """Whether the whole message was read."""
        return self._state is _State.ENDED

    @property
    def is_empty(self) -> bool:
        """Whether no byte of a response has come."""
        return self._state is _State.HEADERS and not self._buffer and not self._overhead_bytes

    @property
    def is_close_delimited(self) -> bool:
        """Whether the end of the connection is the end of the body."""
        return self._state is _State.CLOSE_DELIMITED_BODY

    def feed(self, data: bytes) -> Sequence[Event]:
        """Take bytes of the connection and return what they mean, in order."""
        if self._state is _State.FIXED_BODY and len(data) < self._remaining:
            self._remaining -= len(data)
            return (data,)
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        events: list[Event] = []
        at, end = 0, len(data)
        try:
            while at < end:
                at = self._step(data, at, events)
        except _ResponseError as error:
            self._fail()
            events.append(ResponseFailed(str(error)))
        return events

    def feed_eof(self) -> Event | None:
        """Take the clean end of the connection; return what it means, if the response had not ended before."""
        if self._state is _State.ENDED or self._state is _State.FAILED:
            return None
        if self._state is _State.CLOSE_DELIMITED_BODY:
            self._state = _State.ENDED
            return END
        is_truncated = self._state is not _State.HEADERS
        self._fail()
        return ResponseFailed("the response ended before its body was complete", is_truncated=is_truncated)

    def _fail(self) -> None:
        self._state = _State.FAILED
        self._buffer = b""
        self.keep_alive = False

    def _step(self, data: bytes, at: int, events: list[Event]) -> int:
        """Read the element of the message at an offset of the data; return the offset behind it."""
        state = self._state
        if state is _State.HEADERS:
            return self._read_headers(data, at, events)
        if state is _State.FIXED_BODY or state is _State.CHUNK_DATA:
            return self._read_body(data, at, events)
        if state is _State.CHUNK_SIZE or state is _State.CHUNK_END or state is _State.TRAILERS:
            return self._read_framing(data, at, events)
        if state is _State.CLOSE_DELIMITED_BODY:
            events.append(data[at:])
        else:
            self.keep_alive = False  # bytes that belong to no response
        return len(data)

    def _read_headers(self, data: bytes, at: int, events: list[Event]) -> int:
        end = self._find_end(data, at, _SECTION_END)
        if end is None:
            return len(data)
        self._spend(end - at)
        section = data[at:end]
        status_line = _STATUS_LINE.match(section)
        if status_line is None:
            raise _ResponseError("the response is not HTTP/1.1")
        status, headers = int(status_line[2]), _read_fields(section[status_line.end() : -len(_CRLF)])
        is_http_1_0 = status_line[1] == b"0"
        if status >= _FIRST_FINAL_STATUS:
            self._begin_body(status, headers, is_http_1_0=is_http_1_0, events=events)
        elif is_http_1_0:  # which has none, and ends with its first response
            raise _ResponseError("the response is an interim one of HTTP/1.0")
        elif status == _SWITCHING_PROTOCOLS:
            raise _ResponseError("the response switches to another protocol")
        return end  # behind an interim response (RFC 9110 section 15.2) the final one follows

    def _begin_body(self, status: int, headers: dict[str, str], *, is_http_1_0: bool, events: list[Event]) -> None:
        """Decide how the body ends (RFC 9112 section 6.3)."""
        self.keep_alive = _keeps_alive(headers.get("connection"), is_http_1_0=is_http_1_0)
        coding, length = headers.get("transfer-encoding"), headers.get("content-length")
        if coding is not None:
            if length is not None or is_http_1_0:
                raise _ResponseError("the response has more than one length")
            if coding.lower() != "chunked":
                raise _ResponseError(f"the response has the transfer coding {coding[:40]!r}")
        if length is not None and not (length.isascii() and length.isdigit() and len(length) <= MAX_LENGTH_DIGITS):
            raise _ResponseError(f"the response has the length {length[:40]!r}")
        if status in _BODILESS_STATUSES:
            self._state = _State.ENDED
        elif coding is not None:
            self._state = _State.CHUNK_SIZE
        elif length is not None:
            self._remaining = int(length)
            self._state = _State.FIXED_BODY if self._remaining else _State.ENDED
        else:
            self._state = _State.CLOSE_DELIMITED_BODY
            self.keep_alive = False
        events.append(ResponseStarted(status, headers, self._state is not _State.CLOSE_DELIMITED_BODY))
        if self._state is _State.ENDED:
            events.append(END)

    def _read_body(self, data: bytes, at: int, events: list[Event]) -> int:
        end = min(len(data), at + self._remaining)
        self._remaining -= end - at
        events.append(data[at:end])  # the object itself, if that is all of it
        if not self._remaining:
            if self._state is _State.FIXED_BODY:
                self._state = _State.ENDED
                events.append(END)
            else:
                self._state = _State.CHUNK_END
        return end

    def _read_framing(self, data: bytes, at: int, events: list[Event]) -> int:
        """Read a line between the chunks, or behind them (RFC 9112 section 7.1)."""
        end = self._find_end(data, at, _CRLF)
        if end is None:
            return len(data)
        line = data[at : end - len(_CRLF)]
        if self._state is _State.CHUNK_SIZE:
            self._read_chunk_size(line)
        elif self._state is _State.CHUNK_END:
            if line:
                raise _ResponseError("the response has a chunk that is longer than its size")
            self._state = _State.CHUNK_SIZE
        else:
            self._spend(len(line) + len(_CRLF))
            if line:
                _read_fields(line + _CRLF)
            else:
                self._state = _State.ENDED
                events.append(END)
        return end

    def _read_chunk_size(self, line: bytes) -> None:
        match = _CHUNK_SIZE.fullmatch(line)
        digits = match[1].lstrip(b"0") if match else b""
        if match is None or len(digits) > MAX_CHUNK_SIZE_DIGITS:
            raise _ResponseError("the response has a malformed chunk size")
        # A chunk of any size may stand on a line of a few bytes; what is beyond them is paid from the budget.
        self._spend(len(line) - len(digits))
        self._remaining = int(digits or b"0", 16)
        self._state = _State.CHUNK_DATA if self._remaining else _State.TRAILERS

    def _find_end(self, data: bytes, at: int, terminator: bytes) -> int | None:
        """Return the offset behind the next terminator; without one, keep the data until more comes."""
        # What was kept begins the data, and was searched already but for a terminator's first bytes.
        start, self._searched = at + self._searched, 0
        found = data.find(terminator, start)
        if found >= 0:
            self._require_budget(found - at)
            return found + len(terminator)
        self._require_budget(len(data) - at)
        self._buffer = data[at:]
        self._searched = max(0, len(self._buffer) - len(terminator) + 1)
        return None

    def _require_budget(self, size: int) -> None:
        if self._overhead_bytes + size > MAX_OVERHEAD_BYTES:
            raise _ResponseError(f"the response has more than {MAX_OVERHEAD_BYTES} bytes besides its body")

    def _spend(self, size: int) -> None:
        self._require_budget(size)
        self._overhead_bytes += size


def _keeps_alive(connection: str | None, *, is_http_1_0: bool) -> bool:
    """Return whether the connection persists (RFC 9112 section 9.3)."""
    if connection is None:
        return not is_http_1_0
    options = [option.strip(" \t") for option in connection.lower().split(",")]
    return "close" not in options and (not is_http_1_0 or "keep-alive" in options)


def _read_fields(section: bytes) -> dict[str, str]:
    """Return the header fields of whole lines.

    Raises:
        _ResponseError: a line is not a field, or a length is given more than once.
    """
    text = section.decode("utf-8", "surrogateescape")
    if "\r\n " in text or "\r\n\t" in text:
        if _FOLDED_LENGTH.search(text):
            raise _ResponseError("the response has a length on a folded line")
        text = _OBS_FOLD.sub(" ", text)
    fields = _FIELD.findall(text)
    if len(fields) != text.count("\n"):  # a match takes exactly one line
        raise _ResponseError("the response has a malformed header")
    headers: dict[str, str] = {}
    for name, padded in fields:
        key, value = name.lower(), padded.strip(" \t")
        if key not in headers:
            headers[key] = value
        elif key in _LENGTHS:
            raise _ResponseError(f"the response repeats {key}")
        else:
            headers[key] += f", {value}"
    return headers
