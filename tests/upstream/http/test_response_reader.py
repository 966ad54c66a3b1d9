"""The response reader: bytes in, events out, the same wherever the bytes are cut."""

import re
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.upstream.http.response_reader import (
    END,
    MAX_CHUNK_SIZE_DIGITS,
    MAX_LENGTH_DIGITS,
    MAX_OVERHEAD_BYTES,
    Event,
    ResponseFailed,
    ResponseReader,
    ResponseStarted,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n"
CHUNKS = b"Transfer-Encoding: chunked\r\n\r\n"
CHUNKED = OK + CHUNKS + b"5\r\nimage\r\n0\r\n"
SECOND = OK + b"X-Second: 1\r\nContent-Length: 6\r\n\r\nforged"
THIRD = b"X: " + b"x" * (MAX_OVERHEAD_BYTES // 3) + b"\r\n"

RESPONSES = {
    "length": OK + b"Content-Length: 5\r\n\r\nimage",
    "no_reason_phrase": b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nimage",
    "empty_reason_phrase": b"HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\nimage",
    "reason_phrase_in_any_bytes": b"HTTP/1.1 200 \xc3\xa4\xff\t!\r\nContent-Length: 5\r\n\r\nimage",
    "chunks": OK + CHUNKS + b"2\r\nim\r\n3\r\nage\r\n0\r\n\r\n",
    "chunk_extensions": OK + CHUNKS + b'5;a=b;c="d e"\r\nimage\r\n0;last\r\n\r\n',
    "white_space_behind_chunk_sizes": OK + CHUNKS + b"5 \t;a\r\nimage\r\n0 \r\n\r\n",
    "zeros_before_chunk_sizes": OK + CHUNKS + b"000000000000000005\r\nimage\r\n000\r\n\r\n",
    "trailers": CHUNKED + b"X-Trailer: 1\r\nX-Trailer: 2\r\n\r\n",
    "interim_responses": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    + OK
    + b"Content-Length: 5\r\n\r\nimage",
    "coding_in_any_case": OK + b"transfer-ENCODING: Chunked\r\n\r\n5\r\nimage\r\n0\r\n\r\n",
    "zeros_before_the_length": OK + b"Content-Length: 0005\r\n\r\nimage",
    "http_1_0": OK.replace(b"1.1", b"1.0") + b"Content-Length: 5\r\n\r\nimage",
    "http_1_9": OK.replace(b"1.1", b"1.9") + b"Content-Length: 5\r\n\r\nimage",
    "close": OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nimage",
}


def read(*pieces: bytes, end: bool = False) -> tuple[list[Event], ResponseReader]:
    """Feed pieces; return the events, neighbouring parts of the body joined, and the reader."""
    reader = ResponseReader()
    events: list[Event] = []
    for piece in pieces:
        events += reader.feed(piece)
    if end and (event := reader.feed_eof()) is not None:
        events.append(event)
    joined: list[Event] = []
    for event in events:
        if isinstance(event, bytes) and joined and isinstance(joined[-1], bytes):
            joined[-1] += event
        else:
            joined.append(event)
    return joined, reader


def headers_of(response: bytes) -> dict[str, str]:
    """Return the headers of a response."""
    events, _ = read(response)
    assert isinstance(events[0], ResponseStarted)
    return dict(events[0].headers)


def failure_of(*pieces: bytes, end: bool = False) -> ResponseFailed:
    """Return the failure with which a response ends; nothing follows it."""
    events, reader = read(*pieces, end=end)
    failed = events[-1]
    assert isinstance(failed, ResponseFailed)
    assert not any(isinstance(event, ResponseFailed) for event in events[:-1])
    assert not reader.keep_alive
    assert reader.feed(RESPONSES["length"]) == []
    assert reader.feed_eof() is None
    return failed


@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES)
def test_response_is_read_in_any_segments(response: bytes) -> None:
    """Wherever a response is cut, its events are the same."""
    whole, reader = read(response)
    started, *rest = whole
    assert isinstance(started, ResponseStarted)
    assert (started.status, started.has_framing) == (200, True)
    assert rest == [b"image", END]
    assert reader.has_ended
    for cut in range(1, len(response)):
        pieces, other = read(response[:cut], response[cut:])
        assert (pieces, other.keep_alive) == (whole, reader.keep_alive)
    single, other = read(*(response[at : at + 1] for at in range(len(response))))
    assert (single, other.keep_alive) == (whole, reader.keep_alive)


TOKENS = [
    b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 204 No\r\n",
    b"Content-Length: 5\r\n", b"Content-Length: 12\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n",
    b"X: a\r\n b\r\n", b"X:\t c \r\n", b"\r\n", b"\r", b"\n", b" ", b"image", b"5\r\n", b"0\r\n", b"a;b\r\n",
    b"\0", b"\xff",
]  # fmt: skip


@st.composite
def cut_messages(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """Draw a valid, malformed or incomplete message, and pieces of it."""
    valid = st.sampled_from([*RESPONSES.values(), CHUNKED + b"\r\n" + SECOND, OK + b"\r\nimage"])
    message = draw(valid | st.lists(st.sampled_from(TOKENS), max_size=12).map(b"".join))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(message)))
        message = message[:at] + draw(st.sampled_from([b"", *TOKENS])) + message[at + draw(st.integers(0, 3)) :]
    cuts = sorted(draw(st.sets(st.integers(0, len(message)), max_size=8)))
    return message, [message[a:b] for a, b in zip([0, *cuts], [*cuts, len(message)], strict=True) if a < b]


@given(cut_messages(), st.booleans())
def test_any_message_is_read_in_any_segments(cut: tuple[bytes, list[bytes]], end: bool) -> None:  # noqa: FBT001
    """Also a malformed message has the same events wherever it is cut, and none of them twice."""
    message, pieces = cut
    whole, reader = read(*([message] if message else []), end=end)
    cut_up, other = read(*pieces, end=end)
    assert cut_up == whole
    assert (other.keep_alive, other.has_ended, other.is_empty) == (
        reader.keep_alive,
        reader.has_ended,
        reader.is_empty,
    )
    letters = {ResponseStarted: "S", bytes: "B", ResponseFailed: "F"}
    order = "".join(letters.get(type(event), "E") for event in whole)
    assert re.fullmatch("S?B?[EF]?", order)
    assert "S" in order or set(order) <= {"F"}


@given(st.binary(max_size=200))
@example(b"HTTP/1.1 200 OK\r\n\r\n")
def test_any_bytes_are_read(data: bytes) -> None:
    """No bytes make the reader raise, and none are made up."""
    events, reader = read(*([data] if data else []), end=True)
    assert all(event in data for event in events if isinstance(event, bytes))
    assert reader.has_ended or not events or isinstance(events[-1], ResponseFailed) or reader.is_empty


@pytest.mark.parametrize(
    ("response", "keep_alive"),
    [
        pytest.param(RESPONSES["length"], True, id="length"),
        pytest.param(RESPONSES["chunks"], True, id="chunks"),
        pytest.param(OK + b"Content-Length: 0\r\n\r\n", True, id="no_length"),
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", True, id="no_content"),
        pytest.param(OK + b"\r\nimage", False, id="close_delimited"),
        pytest.param(RESPONSES["http_1_0"], False, id="http_1_0"),
        pytest.param(
            OK.replace(b"1.1", b"1.0") + b"Connection: keep-alive\r\nContent-Length: 0\r\n\r\n", True, id="1_0_kept"
        ),
        pytest.param(RESPONSES["close"], False, id="close"),
        pytest.param(OK + b"Connection: close \t\r\nContent-Length: 0\r\n\r\n", False, id="close_and_white_space"),
        pytest.param(OK + b"Connection: x ,\t CLOSE\r\nContent-Length: 0\r\n\r\n", False, id="close_in_a_list"),
        pytest.param(
            OK + b"Connection: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", False, id="close_in_a_second_field"
        ),
        pytest.param(OK + b"Connection: closed\r\nContent-Length: 0\r\n\r\n", True, id="another_option"),
    ],
)
def test_keep_alive_follows_version_and_connection(response: bytes, *, keep_alive: bool) -> None:
    """A connection is used again as RFC 9112 section 9.3 says."""
    assert read(response)[1].keep_alive is keep_alive


@pytest.mark.parametrize(
    ("response", "body"),
    [
        pytest.param(CHUNKED + b"\r\n" + SECOND, b"image", id="chunks"),
        pytest.param(CHUNKED + b"X-Trailer: 1\r\n\r\n" + SECOND, b"image", id="trailers"),
        pytest.param(CHUNKED + b"\r\n" + CHUNKED + b"\r\n", b"image", id="chunks_twice"),
        pytest.param(CHUNKED + b"\r\nHTT", b"image", id="the_first_bytes_of_a_response"),
        pytest.param(CHUNKED + b"\r\n\r\n", b"image", id="an_empty_line"),
        pytest.param(CHUNKED + b"\r\n\n", b"image", id="a_line_feed"),
        pytest.param(CHUNKED + b"\r\n\0garbage", b"image", id="garbage"),
        pytest.param(OK + b"Content-Length: 5\r\n\r\nimage" + SECOND, b"image", id="length"),
        pytest.param(OK + b"Content-Length: 5\r\n\r\nimage and more", b"image", id="more_than_the_length"),
        pytest.param(OK + b"Content-Length: 0\r\n\r\n" + SECOND, b"", id="no_length"),
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n" + SECOND, b"", id="no_content"),
        pytest.param(b"HTTP/1.1 204 No Content\r\n" + CHUNKS + b"0\r\n\r\n", b"", id="no_content_in_chunks"),
        pytest.param(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n" + SECOND, b"", id="not_modified"),
        pytest.param(b"HTTP/1.1 103 Early Hints\r\n\r\n" + CHUNKED + b"\r\n" + SECOND, b"image", id="interim"),
    ],
)
def test_bytes_behind_a_response_are_not_part_of_it(response: bytes, body: bytes) -> None:
    """What follows a response in the same or a later read is not read, and its connection is not used again."""
    for cut in range(1, len(response) + 1):
        (started, *rest), reader = read(response[:cut], response[cut:])
        assert rest == [*([body] if body else []), END]
        assert isinstance(started, ResponseStarted)
        assert {"x-second", "x-trailer"}.isdisjoint(started.headers)
        assert started.has_framing
        assert (reader.has_ended, reader.keep_alive) == (True, False)


def test_close_delimited_body_ends_with_the_connection() -> None:
    """Without length and chunks every byte is the body's (RFC 9112 section 6.3, rule 8)."""
    (started, *rest), reader = read(OK + b"\r\n", b"ima", SECOND)
    assert isinstance(started, ResponseStarted)
    assert not started.has_framing
    assert rest == [b"ima" + SECOND]
    assert not reader.has_ended
    assert reader.feed_eof() is END
    assert reader.feed_eof() is None
    assert (reader.has_ended, reader.keep_alive) == (True, False)


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("header", [b"", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_bodiless_status_has_no_body(status: int, header: bytes) -> None:
    """204 and 304 end with their headers (RFC 9112 section 6.3, rule 1), whatever these announce."""
    events, reader = read(b"HTTP/1.1 %d x\r\n" % status + header + b"\r\n")
    assert isinstance(events[0], ResponseStarted)
    assert (events[0].status, events[0].has_framing, events[1:]) == (status, True, [END])
    assert reader.keep_alive


def test_headers_are_in_lower_case_and_joined() -> None:
    """Values of a repeated field are joined in their order (RFC 9110 section 5.3); bytes above ASCII survive."""
    headers = headers_of(b"HTTP/1.1 200 OK\r\nX-A: 1\r\nx-b:\r\nX-a: 2, 3\r\nX-C: \xc3\xa4\xff\r\nX-D: a:b\r\n\r\n")
    assert headers["x-a"] == "1, 2, 3"
    assert headers["x-b"] == ""
    assert headers["x-c"].encode("utf-8", "surrogateescape") == b"\xc3\xa4\xff"
    assert headers["x-d"] == "a:b"


@pytest.mark.parametrize(
    "padded",
    [b'ETag: "a b" ', b'ETag:\t "a b"\t ', b'ETag:"a b"', b'ETag: "a\r\n b"', b'ETag:\r\n\t"a\r\n \t b" \r\n '],
)
def test_white_space_around_values_is_removed(padded: bytes) -> None:
    """Values are without the white space around them, and folded lines are one (RFC 9112 sections 5.1 and 5.2)."""
    assert headers_of(OK + padded + b"\r\n\r\n")["etag"] == '"a b"'


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b"Content-Length: 5 \r\n\r\nimage", id="length"),
        pytest.param(b"Content-Length:\t 5\t \r\n\r\nimage", id="length_and_tabs"),
        pytest.param(b"Transfer-Encoding: chunked \t\r\n\r\n5\r\nimage\r\n0\r\n\r\n", id="coding"),
        pytest.param(b"Transfer-Encoding:chunked\t\r\n\r\n5\r\nimage\r\n0\r\n\r\n", id="coding_and_tab"),
    ],
)
def test_white_space_around_lengths_is_ignored(header: bytes) -> None:
    """Framing is read without it like all other fields."""
    (_, *rest), reader = read(OK + header)
    assert rest == [b"image", END]
    assert reader.keep_alive


MALFORMED = {
    **{
        f"{header!r}": OK + header + b"\r\n\r\nimage"
        for header in (
            b"Content-Length: " + b"9" * (MAX_LENGTH_DIGITS + 1),
            b"Content-Length: 99999999999999999999",
            b"Content-Length: 5, 5",
            b"Content-Length: 5\r\nContent-Length: 6",
            b"Content-Length: 5\r\nContent-Length: 5",
            b"Content-Length: 5\r\ncontent-length: 5",
            b"Content-Length: +5",
            b"Content-Length: -5",
            b"Content-Length: 0x5",
            b"Content-Length: 5 5",
            b"Content-Length: 5\r\n 5",
            b"Content-Length:\r\n 5",
            b"Content-Length: 5\r\n ",
            b"transfer-encoding: chunked\r\n\t",
            b"Content-Length:",
            b"Content-Length: \xc2\xb2",
            b"Transfer-Encoding:",
            b"Transfer-Encoding: identity",
            b"Transfer-Encoding: gzip, chunked",
            b"Transfer-Encoding: chunked, chunked",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
            b"Content-Length: 5\r\nTransfer-Encoding: chunked",
            b"X : 1",
            b"X",
            b": 1",
            b"X\0: 1",
            b"\xc3\xa4: 1",
            b"X: a\0b",
            b"X: a\rb",
            b"X: a\nY: b",
        )
    },
    "fold_without_a_field": b"HTTP/1.1 200 OK\r\n X: 1\r\n\r\n",
    "empty_lines_before": b"\r\n\r\n" + RESPONSES["length"],
    "empty_line_before": b"\r\n" + RESPONSES["length"],
    "line_feeds_for_lines": RESPONSES["length"].replace(b"\r\n", b"\n") + b"\r\n\r\n",
    "not_http": b"SSH-2.0-OpenSSH\r\n\r\n",
    "http_2": b"HTTP/2.0 200 OK\r\n\r\n",
    "http_1_10": b"HTTP/1.10 200 OK\r\n\r\n",
    "small_letters": b"http/1.1 200 OK\r\n\r\n",
    "no_status": b"HTTP/1.1 000 OK\r\n\r\n",
    "four_digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "two_spaces": b"HTTP/1.1  200 OK\r\n\r\n",
    "tab_before_the_phrase": b"HTTP/1.1 200\tOK\r\n\r\n",
    "upgrade": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "http_1_0_in_chunks": OK.replace(b"1.1", b"1.0") + CHUNKS + b"0\r\n\r\n",
    "chunk_size_of_no_digits": OK + CHUNKS + b"no number\r\n",
    "empty_chunk_size": OK + CHUNKS + b"\r\n",
    "signed_chunk_size": OK + CHUNKS + b"+5\r\nimage\r\n0\r\n\r\n",
    "prefixed_chunk_size": OK + CHUNKS + b"0x5\r\nimage\r\n0\r\n\r\n",
    "chunk_size_behind_a_space": OK + CHUNKS + b" 5\r\nimage\r\n0\r\n\r\n",
    "huge_chunk_size": OK + CHUNKS + b"f" * (MAX_CHUNK_SIZE_DIGITS + 1) + b"\r\n",
    "chunk_lines_of_line_feeds": OK + CHUNKS + b"5\nimage\n0\n\n\r\n",
    "line_feed_in_an_extension": OK + CHUNKS + b"5;a\nb\r\nimage\r\n0\r\n\r\n",
    "long_chunk": OK + CHUNKS + b"4\r\nimage\r\n0\r\n\r\n",
    "malformed_trailer": CHUNKED + b"X\r\n\r\n",
    "line_feed_in_a_trailer": CHUNKED + b"X: a\nY: b\r\n\r\n",
    "folded_trailer": CHUNKED + b"X: a\r\n b\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("response", MALFORMED.values(), ids=MALFORMED)
def test_malformed_response_fails(response: bytes) -> None:
    """A response with more than one reading, or none, fails wherever it is cut."""
    failure = failure_of(response)
    assert not failure.is_truncated
    for cut in range(1, len(response)):
        assert failure_of(response[:cut], response[cut:]) == failure


def test_body_before_a_malformed_chunk_is_delivered() -> None:
    """The bytes before the fault come first."""
    events, _ = read(OK + CHUNKS + b"4\r\nhalf\r\nno number\r\n")
    assert events[1] == b"half"
    assert isinstance(events[2], ResponseFailed)


@pytest.mark.parametrize(
    ("response", "is_truncated"),
    [
        pytest.param(b"HTTP/1.1 200", False, id="in_the_status_line"),
        pytest.param(OK, False, id="in_the_headers"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", False, id="after_an_interim_response"),
        pytest.param(OK + b"Content-Length: 5\r\n\r\n", True, id="before_the_body"),
        pytest.param(OK + b"Content-Length: 5\r\n\r\nhalf", True, id="in_the_body"),
        pytest.param(OK + CHUNKS, True, id="before_the_chunks"),
        pytest.param(OK + CHUNKS + b"5", True, id="in_a_chunk_size"),
        pytest.param(OK + CHUNKS + b"5\r\nhalf", True, id="in_a_chunk"),
        pytest.param(OK + CHUNKS + b"4\r\nhalf", True, id="behind_a_chunk"),
        pytest.param(OK + CHUNKS + b"4\r\nhalf\r\n", True, id="before_the_last_chunk"),
        pytest.param(CHUNKED, True, id="before_the_last_line"),
        pytest.param(CHUNKED + b"X: 1\r\n", True, id="in_the_trailers"),
    ],
)
def test_end_of_the_connection_in_a_response_fails(response: bytes, *, is_truncated: bool) -> None:
    """A response that ends before its promised end has failed; it is truncated if its headers had come."""
    assert failure_of(response, end=True).is_truncated is is_truncated


@pytest.mark.parametrize(
    "framing",
    [b"Content-Length: " + b"9" * MAX_LENGTH_DIGITS + b"\r\n\r\n", CHUNKS + b"f" * MAX_CHUNK_SIZE_DIGITS + b"\r\n"],
    ids=["length", "chunk"],
)
def test_body_may_have_any_size(framing: bytes) -> None:
    """The largest length and the largest chunk are read."""
    (started, *rest), _ = read(OK + framing, b"image")
    assert isinstance(started, ResponseStarted)
    assert rest == [b"image"]


ENDLESS = [
    pytest.param(b"", b"HTTP/1.1 100 Continue\r\n\r\n", id="interim_responses"),
    pytest.param(b"HTTP/1.1 103 Early Hints\r\n", b"Link: </x>\r\n", id="an_interim_response"),
    pytest.param(OK, b"X: x\r\n", id="header_fields"),
    pytest.param(OK + b"X: ", b"x" * 1000, id="a_header_field"),
    pytest.param(OK + b"X:", b" " * 1000, id="white_space"),
    pytest.param(OK + b"X: x", b"\r\n x", id="folds"),
    pytest.param(b"HTTP/1.1 200 ", b"x" * 1000, id="a_reason_phrase"),
    pytest.param(CHUNKED, b"X: x\r\n", id="trailers"),
    pytest.param(CHUNKED + b"X: ", b"x" * 1000, id="a_trailer"),
    pytest.param(OK + CHUNKS + b"5;", b"x=y;" * 100, id="a_chunk_extension"),
    pytest.param(OK + CHUNKS, b"1;xxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\nx\r\n", id="chunk_extensions"),
    pytest.param(OK + CHUNKS, b"0" * 1000, id="zeros_of_a_chunk_size"),
    pytest.param(OK + CHUNKS, b"000000000000000000000000000001\r\nx\r\n", id="zeros_of_chunk_sizes"),
    pytest.param(OK + CHUNKS + b"1\r\nx", b"x" * 1000, id="a_long_chunk"),
    pytest.param(
        b"HTTP/1.1 103 Early Hints\r\n" + THIRD + b"\r\n" + OK + THIRD + CHUNKED.removeprefix(OK),
        THIRD,
        id="all_of_them_together",
    ),
]


@pytest.mark.parametrize(("begin", "repeated"), ENDLESS)
def test_bytes_besides_the_body_are_bounded(begin: bytes, repeated: bytes) -> None:
    """Whatever does not end fails within the budget, which all bytes outside the body share."""
    reader = ResponseReader()
    events = [*reader.feed(begin)] if begin else []
    fed = len(begin)
    while not any(isinstance(event, ResponseFailed) for event in events):
        events += reader.feed(repeated)
        fed += len(repeated)
        assert fed <= 2 * MAX_OVERHEAD_BYTES
    assert not reader.keep_alive


def test_bytes_besides_the_body_share_one_budget() -> None:
    """Two thirds of the budget are accepted as headers and trailers; three thirds and a line are not."""
    interim = b"HTTP/1.1 103 Early Hints\r\n" + THIRD + b"\r\n"
    final = OK + THIRD + CHUNKED.removeprefix(OK)
    assert read(interim, final, b"\r\n")[0][1:] == [b"image", END]
    assert read(final, THIRD, b"\r\n")[0][1:] == [b"image", END]
    failure_of(interim, final, THIRD, b"Y: y\r\n")


def test_budget_is_exact() -> None:
    """A header section of exactly the budget is read; one byte more is not."""
    padding = MAX_OVERHEAD_BYTES - len(OK + b"X: \r\nContent-Length: 0\r\n\r\n")
    fitting = OK + b"X: " + b"x" * padding + b"\r\nContent-Length: 0\r\n\r\n"
    assert read(fitting)[0][1:] == [END]
    failure_of(fitting.replace(b"X: ", b"X: x"))


def test_number_of_chunks_is_unlimited() -> None:
    """Sizes and line ends of small chunks belong to the body: they cost no budget."""
    (_, body, end), _ = read(OK + CHUNKS, b"1\r\nx\r\n" * MAX_OVERHEAD_BYTES, b"0\r\n\r\n")
    assert (body, end) == (b"x" * MAX_OVERHEAD_BYTES, END)
    (_, body, end), _ = read(OK + CHUNKS, *[b"1\r\n", b"x", b"\r\n"] * 1000, b"0\r\n", b"\r\n")
    assert (body, end) == (b"x" * 1000, END)


WHITE_SPACE = b" \t" * (MAX_OVERHEAD_BYTES // 2 - 100)
SLOW: list[Sequence[bytes]] = [
    *[
        [OK + b"X:" + WHITE_SPACE + b"\0\r\n\r\n"],
        [OK + b"X: a\r\n b\r\nY: a" + WHITE_SPACE + b"z\r\n\r\n"],
        [OK + b"X:" + b"\r\n " * (len(WHITE_SPACE) // 3) + b"\r\n\r\n"],
        [OK + CHUNKS + b"5" + WHITE_SPACE + b"z\r\n\r\n"],
    ]
    * 10,
    [OK + CHUNKS + b"1\r\nx\r\n" * 400_000],
    [OK + CHUNKS + b"5;", *[b"x"] * (MAX_OVERHEAD_BYTES // 2)],
    [b"H"] * (MAX_OVERHEAD_BYTES // 2),
]


@pytest.mark.timeout(60)  # linear time takes seconds, quadratic time minutes
def test_reading_takes_linear_time() -> None:
    """No bytes cost more than their number: neither white space, nor small chunks, nor small reads."""
    for pieces in SLOW:
        reader = ResponseReader()
        events = [event for piece in pieces for event in reader.feed(piece)]
        assert events.count(b"x") in {0, 400_000}
