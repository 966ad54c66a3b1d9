"""The response reader against aiohttp's own two parsers: llhttp, and the one in Python."""

import asyncio
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpResponseParser, HttpResponseParserPy
from aiohttp.streams import EMPTY_PAYLOAD
from hypothesis import given, settings
from hypothesis import strategies as st

from service.upstream.http.response_reader import END, ResponseFailed, ResponseReader, ResponseStarted

LINE_BYTES = 65_536
Parser = type[HttpResponseParser] | type[HttpResponseParserPy]


class Response(NamedTuple):
    """A response that was read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes


def read(data: bytes) -> Response | str:
    """Return the response in the bytes of a connection that then ends, or why the reader refuses it."""
    reader = ResponseReader()
    events = [*reader.feed(data), reader.feed_eof()]
    if failed := next((event for event in events if isinstance(event, ResponseFailed)), None):
        return failed.detail
    assert END in events
    started = events[0]
    assert isinstance(started, ResponseStarted)
    body = b"".join(event for event in events if isinstance(event, bytes))
    return Response(started.status, _collapsed(started.headers.items()), body)


def parse(parser_class: Parser, loop: asyncio.AbstractEventLoop, data: bytes) -> Response | None:
    """Return what aiohttp makes of the same bytes, or ``None`` if it refuses them."""
    parser = parser_class(
        BaseProtocol(loop), loop, LINE_BYTES, max_line_size=LINE_BYTES, max_field_size=LINE_BYTES, read_until_eof=True,
        auto_decompress=False,
    )  # fmt: skip
    found = None
    try:
        for at in range(len(data)):  # by single bytes: what follows the response is no part of the comparison
            for message, payload in parser.feed_data(data[at : at + 1])[0]:
                if found is None and message.code >= 200:
                    found = message, payload
            if found and found[1].is_eof():
                break
        else:
            parser.feed_eof()
    except HttpProcessingError:
        return None
    if found is None or not found[1].is_eof() or found[1].exception():
        return None
    message, payload = found
    body = b""
    while payload is not EMPTY_PAYLOAD and (chunk := payload.read_nowait(-1)):
        body += chunk
    return Response(message.code, _collapsed(message.headers.items()), body)


def _collapsed(fields: object) -> dict[str, str]:
    """Return fields with names in lower case, repeated ones joined, and runs of white space as one space."""
    headers: dict[str, str] = {}
    for name, value in fields:  # type: ignore[attr-defined]
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return {name: re.sub(r"[ \t]+", " ", value) for name, value in headers.items()}


FIELDS = [
    b"X-A: 1\r\n", b"x-a:2\r\n", b"X-B: \ta b \t\r\n", b"X-C: \xc3\xa4\xff\r\n", b"X-D:\r\n",
    b"X-E: a\r\n b\r\n\t c\r\n",
    b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Set-Cookie: a=b; c\r\n", b"!#$%&'*+.^_`|~: x:y\r\n",
]  # fmt: skip
EXTENSIONS = [b"", b"", b";a", b";a=b", b';a="b c"', b" ", b"\t"]


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    """Draw a valid response with any framing, and with interim responses before it."""
    body = draw(st.text("abc 0:;", max_size=30)).encode()
    data = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * draw(st.integers(0, 2))
    framing = draw(st.sampled_from(["length", "chunks", "connection"]))
    version = b"1.1" if framing == "chunks" else draw(st.sampled_from([b"1.1", b"1.0"]))
    phrase = draw(st.sampled_from([b" OK", b" Not \xc3\xa4 OK", b" "]))
    data += b"HTTP/%b %d%b\r\n" % (version, draw(st.sampled_from([200, 206, 204, 304, 302, 404, 500, 599])), phrase)
    fields = draw(st.lists(st.sampled_from(FIELDS), max_size=4))
    if framing == "length":
        fields.insert(draw(st.integers(0, len(fields))), b"Content-Length: %d\r\n" % len(body))
    elif framing == "chunks":
        coding = draw(st.sampled_from([b"chunked", b"Chunked"]))
        fields.insert(draw(st.integers(0, len(fields))), b"Transfer-Encoding: %b\r\n" % coding)
    data += b"".join(fields) + b"\r\n"
    if framing != "chunks":
        return data + body
    while body:
        size = draw(st.integers(1, len(body)))
        data += b"%x%b\r\n%b\r\n" % (size, draw(st.sampled_from(EXTENSIONS)), body[:size])
        body = body[size:]
    return data + b"0\r\n" + draw(st.sampled_from([b"", b"X-T: 1\r\n", b"X-T: 1\r\nX-U: 2\r\n"])) + b"\r\n"


INSERTIONS = [
    b"", b"\r", b"\n", b"\r\n", b"\r\n ", b" ", b"\t", b"\0", b"\x01", b"\x7f", b"\xff", b":", b";", b",",
    b"-", b"+", b"0", b"5", b"f", b"x",
    b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"HTTP/1.1 200 OK\r\n\r\n",
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Draw a response with a few bytes removed, inserted or replaced."""
    data = draw(responses())
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.sampled_from(INSERTIONS)) + data[at + draw(st.integers(0, 2)) :]
    return data


_BARE_LINE_BREAK = re.compile(rb"(?<!\r)\n|\r(?!\n)")


_STRICTER = (
    re.compile(rb"(?<!\r)\n|\r(?!\n)"),
    re.compile(rb"(^|\r\n\r\n)\r\n"),
    re.compile(rb"HTTP/1\.[0-9] [0-9]+[^\r]*\r\n[ \t]"),
    re.compile(rb"\r\n0[^\r]*\r\n([^\r]+\r\n)+[ \t]"),
    re.compile(rb"(Content-Length|Transfer-Encoding):[^\r]*\r\n[ \t]"),
    re.compile(rb"HTTP/1\.[0-9] [0-9]+[^\r]*\0"),
    re.compile(rb"HTTP/1\.0 1"),
    re.compile(rb"\r\n[^\r:]*[ \t]:"),
)
_LENIENT = re.compile(rb"\r\n[0-9a-fA-F]+([ \t]+|[ \t]*;[^\r\n]*)\r\n|HTTP/1\.[2-9]")
_STRICTER_THAN_PYTHON = ("is not HTTP/1.1", "malformed chunk size")


def is_stricter(parser: Parser, data: bytes, detail: str) -> bool:
    """Whether the reader refuses a response on purpose that aiohttp accepts."""
    return (
        any(pattern.search(data) for pattern in _STRICTER)
        or any(text in detail for text in ("transfer coding", "repeats", "longer than its size"))
        or ("more than one length" in detail and b"HTTP/1.0" in data)
        or (parser is HttpResponseParserPy and any(text in detail for text in _STRICTER_THAN_PYTHON))
    )


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Return an event loop that never runs: aiohttp's parsers need one."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


PARSERS = pytest.mark.parametrize("parser", [HttpResponseParser, HttpResponseParserPy], ids=["llhttp", "python"])


@PARSERS
@given(data=responses())
def test_valid_response_is_read_as_by_aiohttp(parser: Parser, loop: asyncio.AbstractEventLoop, data: bytes) -> None:
    """Status, headers and body of any valid response are those that aiohttp reads.

    White space where a line was folded is compared as one space: RFC 9112 section 5.2 allows any number.
    """
    found = read(data)
    assert isinstance(found, Response)
    if parser is HttpResponseParser and re.search(rb"\r\n[0-9a-f]+[ \t]\r\n", data):
        return  # llhttp refuses white space behind a chunk size, which real servers send
    assert found == parse(parser, loop, data)


@PARSERS
@settings(max_examples=300, derandomize=True)
@given(data=mutated())
def test_mutated_response_is_read_as_by_aiohttp_or_refused(
    parser: Parser, loop: asyncio.AbstractEventLoop, data: bytes
) -> None:
    """What the reader accepts, aiohttp reads in the same way; what it refuses, aiohttp refuses too, but for these.

    Stricter on purpose, because the bytes have more than one reading:

    - a line that ends in a bare line feed, or has a bare carriage return;
    - an empty line before a response (RFC 9112 section 2.2 lets servers ignore it, not clients);
    - a null character in the status line, which llhttp ignores;
    - an interim response of HTTP/1.0, which the parser in Python takes;
    - white space between a name and its colon (RFC 9112 section 5.1);
    - white space in front of the first field, which continues no line (RFC 9112 section 2.2);
    - a length on a folded line, which llhttp reads as no length;
    - a trailer on a folded line;
    - a transfer coding other than ``chunked``, which aiohttp reads up to the end of the connection;
    - a length given twice, even the same; ``Transfer-Encoding`` from an HTTP/1.0 server (RFC 9112 section 6.1);
    - other bytes than CRLF behind a chunk: llhttp accepts a line feed, the parser in Python any two;
    - white space in the status line and in front of a chunk size, which the parser in Python does not examine.

    More lenient on purpose, because it changes no reading: the syntax of chunk extensions, and white space behind a
    chunk size, are not examined; minor versions above 1, which llhttp refuses, are read as HTTP/1.1 (RFC 9110 section
    6.2).
    """
    found, expected = read(data), parse(parser, loop, data)
    if isinstance(found, str):
        assert expected is None or is_stricter(parser, data, found), found
    elif expected is None:
        assert _LENIENT.search(data), "only chunk lines and minor versions are lenient"
    else:
        assert found == expected
