"""The ladder's decisions as tables: what an answer is worth, and when to ask again."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.model import Reason
from service.upstream.retry import (
    BACKOFF_BASE_SECONDS,
    BACKOFF_CAP_SECONDS,
    BACKPRESSURE_SECONDS,
    RETRY_AFTER_CAP_SECONDS,
    Answer,
    AttemptFailed,
    PartialImage,
    backoff_seconds,
    consumes_attempt,
    content_length,
    read_answer,
    rejected_target_failure,
    request_headers,
    retry_after_seconds,
    status_failure,
    strong_etag,
)

NOTHING = PartialImage()
PART = PartialImage(count=400, crc32=0xABC, total=1000, etag='"v1"')
PART_NO_TOTAL = PartialImage(count=400, crc32=0xABC, etag='"v1"')
PART_NO_ETAG = PartialImage(count=400, crc32=0xABC, total=1000)
PART_NO_RANGES = PartialImage(count=400, crc32=0xABC, total=1000, etag='"v1"', resumable=False)


@pytest.mark.parametrize(
    ("received", "headers"),
    [
        pytest.param(NOTHING, {}, id="nothing"),
        pytest.param(PartialImage(total=1000, etag='"v1"'), {}, id="only_headers"),
        pytest.param(PART, {"Range": "bytes=400-", "If-Range": '"v1"'}, id="part"),
        pytest.param(PART_NO_TOTAL, {"Range": "bytes=400-", "If-Range": '"v1"'}, id="part_of_unknown_total"),
        pytest.param(PART_NO_ETAG, {}, id="no_etag"),
        pytest.param(PART_NO_RANGES, {}, id="ranges_disqualified"),
    ],
)
def test_what_is_asked_for(received: PartialImage, headers: dict[str, str]) -> None:
    """The rest is asked for only if a strong ETag guards that it is the rest of the same copy."""
    assert request_headers(received) == headers
    assert received.by_range is bool(headers)


@pytest.mark.parametrize(
    ("received", "status", "headers", "answer"),
    [
        pytest.param(NOTHING, 200, {}, Answer.FRESH, id="first_try"),
        pytest.param(NOTHING, 200, {"ETag": '"v2"', "Content-Length": "5"}, Answer.FRESH, id="first_try_with_headers"),
        pytest.param(PART, 200, {}, Answer.REPLAY, id="range_ignored"),
        pytest.param(PART, 200, {"ETag": '"v1"', "Content-Length": "1000"}, Answer.REPLAY, id="range_ignored_same"),
        pytest.param(PART, 200, {"ETag": '"v2"', "Content-Length": "1000"}, Answer.FRESH, id="etag_changed"),
        pytest.param(PART, 200, {"ETag": '"v1"', "Content-Length": "999"}, Answer.FRESH, id="length_changed"),
        pytest.param(PART, 200, {"ETag": 'W/"v2"'}, Answer.REPLAY, id="weak_etag_says_nothing"),
        pytest.param(PART, 200, {"Content-Length": "many"}, Answer.REPLAY, id="unreadable_length_says_nothing"),
        pytest.param(PART_NO_ETAG, 200, {"ETag": '"v2"'}, Answer.REPLAY, id="etag_where_none_was"),
        pytest.param(PART_NO_TOTAL, 200, {"Content-Length": "5"}, Answer.REPLAY, id="length_where_none_was"),
        pytest.param(PART_NO_RANGES, 200, {"ETag": '"v1"'}, Answer.REPLAY, id="ranges_disqualified"),
        pytest.param(PART, 206, {"Content-Range": "bytes 400-999/1000"}, Answer.CONTINUE, id="exact_rest"),
        pytest.param(
            PART,
            206,
            {"Content-Range": "bytes 400-999/1000", "ETag": '"v1"', "Content-Length": "600"},
            Answer.CONTINUE,
            id="exact_rest_confirmed",
        ),
        pytest.param(
            PART, 206, {"Content-Range": "bytes 400-999/1000", "ETag": 'W/"v2"'}, Answer.CONTINUE, id="rest_weak_etag"
        ),
        pytest.param(PART_NO_TOTAL, 206, {"Content-Range": "bytes 400-999/1000"}, Answer.CONTINUE, id="total_learnt"),
    ],
)
def test_answer_that_can_be_used(received: PartialImage, status: int, headers: dict[str, str], answer: Answer) -> None:
    """A whole answer starts or replays the copy, an exact part continues it."""
    assert read_answer(received, status, headers) is answer


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="no_range"),
        pytest.param({"Content-Range": "bytes 399-999/1000"}, id="too_early"),
        pytest.param({"Content-Range": "bytes 401-999/1000"}, id="too_late"),
        pytest.param({"Content-Range": "bytes 0-999/1000"}, id="from_the_start"),
        pytest.param({"Content-Range": "bytes 400-998/1000"}, id="not_to_the_end"),
        pytest.param({"Content-Range": "bytes 400-1000/1000"}, id="beyond_the_end"),
        pytest.param({"Content-Range": "bytes 400-1000/1001"}, id="other_total"),
        pytest.param({"Content-Range": "bytes 400-999/*"}, id="total_untold"),
        pytest.param({"Content-Range": "bytes */1000"}, id="range_untold"),
        pytest.param({"Content-Range": "items 400-999/1000"}, id="other_unit"),
        pytest.param({"Content-Range": "bytes 400-999/1000, bytes 0-1/1000"}, id="two_ranges"),
        pytest.param({"Content-Range": "bytes 400-999/" + "9" * 5000}, id="absurd_total"),
        pytest.param({"Content-Range": "bytes 400-999/1000", "ETag": '"v2"'}, id="etag_changed"),
        pytest.param({"Content-Range": "bytes 400-999/1000", "Content-Length": "599"}, id="length_disagrees"),
        pytest.param({"Content-Type": "multipart/byteranges; boundary=x"}, id="multipart"),
    ],
)
def test_part_that_does_not_fit(headers: dict[str, str]) -> None:
    """Anything but the exact continuation is refused, and ranges are not asked for again; what is in hand stays."""
    with pytest.raises(AttemptFailed) as caught:
        read_answer(PART, 206, headers)

    assert caught.value.failure.reason is Reason.CONTENT_CHANGED
    assert caught.value.retryable
    assert caught.value.received == PART_NO_RANGES


def test_range_that_is_not_satisfiable_starts_over() -> None:
    """416 to our Range means that the copy in hand is void: the next try begins anew."""
    with pytest.raises(AttemptFailed) as caught:
        read_answer(PART, 416, {"Content-Range": "bytes */300"})

    assert caught.value.failure.reason is Reason.CONTENT_CHANGED
    assert caught.value.failure.upstream_status == 416
    assert caught.value.retryable
    assert caught.value.received == NOTHING


@pytest.mark.parametrize(
    ("received", "status", "reason", "retryable"),
    [
        pytest.param(NOTHING, 206, Reason.UPSTREAM_ERROR, True, id="part_not_asked_for"),
        pytest.param(PART_NO_ETAG, 206, Reason.UPSTREAM_ERROR, True, id="part_not_asked_for_in_the_middle"),
        pytest.param(PART_NO_RANGES, 416, Reason.REJECTED, False, id="range_error_without_range"),
        pytest.param(PART, 503, Reason.UPSTREAM_ERROR, True, id="failure_in_the_middle"),
        pytest.param(PART, 404, Reason.NOT_FOUND, False, id="gone_in_the_middle"),
        pytest.param(NOTHING, 204, Reason.UPSTREAM_ERROR, True, id="no_content"),
    ],
)
def test_answer_of_another_status(received: PartialImage, status: int, reason: Reason, *, retryable: bool) -> None:
    """Any other answer is a failure; what is in hand is kept for the next try."""
    with pytest.raises(AttemptFailed) as caught:
        read_answer(received, status, {"Content-Range": "bytes 400-999/1000", "Retry-After": "7"})

    assert (caught.value.failure.reason, caught.value.failure.upstream_status) == (reason, status)
    assert caught.value.retryable is retryable
    assert caught.value.retry_after_seconds == 7
    assert caught.value.received == received


@pytest.mark.parametrize(
    ("status", "reason", "retryable"),
    [
        (100, Reason.UPSTREAM_ERROR, True),
        (202, Reason.UPSTREAM_ERROR, True),
        (304, Reason.UPSTREAM_ERROR, True),
        (400, Reason.REJECTED, False),
        (401, Reason.UNAUTHORIZED, False),
        (402, Reason.NO_CREDITS, False),
        (403, Reason.UNAUTHORIZED, False),
        (404, Reason.NOT_FOUND, False),
        (408, Reason.TIMEOUT, True),
        (409, Reason.REJECTED, False),
        (410, Reason.NOT_FOUND, False),
        (412, Reason.REJECTED, False),
        (422, Reason.REJECTED, False),
        (425, Reason.UPSTREAM_ERROR, True),
        (429, Reason.RATE_LIMITED, True),
        (451, Reason.REJECTED, False),
        (500, Reason.UPSTREAM_ERROR, True),
        (501, Reason.UPSTREAM_ERROR, True),
        (502, Reason.UPSTREAM_ERROR, True),
        (503, Reason.UPSTREAM_ERROR, True),
        (504, Reason.UPSTREAM_ERROR, True),
        (599, Reason.UPSTREAM_ERROR, True),
    ],
)
def test_what_a_status_means(status: int, reason: Reason, *, retryable: bool) -> None:
    """A client error is final except 408, 425 and 429; anything else may be better next time."""
    failed = status_failure(status, {})

    assert failed.failure.reason is reason
    assert failed.failure.upstream_status == status
    assert str(status) in failed.failure.detail
    assert failed.retryable is retryable
    assert failed.retry_after_seconds is None
    assert failed.received is None


@pytest.mark.parametrize(
    ("headers", "etag"),
    [
        pytest.param({"ETag": '"abc"'}, '"abc"', id="strong"),
        pytest.param({"ETag": 'W/"abc"'}, None, id="weak"),
        pytest.param({"ETag": 'w/"abc"'}, None, id="weak_small_letter"),
        pytest.param({}, None, id="missing"),
        pytest.param({"ETag": ""}, None, id="empty"),
        pytest.param({"ETag": '""'}, None, id="empty_tag"),
        pytest.param({"ETag": '"'}, None, id="one_quote"),
        pytest.param({"ETag": "abc"}, None, id="unquoted"),
        pytest.param({"ETag": '"abc'}, None, id="open"),
    ],
)
def test_strong_etag(headers: dict[str, str], etag: str | None) -> None:
    """Only a strong ETag identifies bytes (RFC 9110 section 8.8.3.2)."""
    assert strong_etag(headers) == etag


@pytest.mark.parametrize(
    ("text", "length"),
    [
        pytest.param("0", 0, id="zero"),
        pytest.param("1234", 1234, id="plain"),
        pytest.param("007", 7, id="leading_zeros"),
        pytest.param("9" * 18, 10**18 - 1, id="largest"),
        pytest.param("9" * 19, None, id="huge"),
        pytest.param("9" * 5000, None, id="absurd"),
        pytest.param("-1", None, id="negative"),
        pytest.param("+1", None, id="signed"),
        pytest.param("1.5", None, id="fraction"),
        pytest.param("1e3", None, id="exponent"),
        pytest.param("5, 5", None, id="list"),
        pytest.param("", None, id="empty"),
        pytest.param("garbage", None, id="garbage"),
        pytest.param("\u0661\u0662", None, id="digits_of_another_script"),
        pytest.param("\u00b2", None, id="superscript"),
    ],
)
def test_content_length(text: str, length: int | None) -> None:
    """A length that cannot be read is as good as none."""
    assert content_length({"Content-Length": text}) == length


def test_no_content_length() -> None:
    """Without the header there is no length."""
    assert content_length({}) is None


NOW = datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        pytest.param("0", 0, id="zero"),
        pytest.param("120", 120, id="seconds"),
        pytest.param(" 120 ", 120, id="white_space"),
        pytest.param("Sun, 06 Nov 1994 08:50:07 GMT", 30, id="future"),
        pytest.param("Sun, 06 Nov 1994 08:49:37 GMT", 0, id="now"),
        pytest.param("Sun, 06 Nov 1994 08:00:00 GMT", 0, id="past"),
        pytest.param("Sunday, 06-Nov-94 08:50:07 GMT", 30, id="rfc850"),
        pytest.param("Sun Nov  6 08:50:07 1994", 30, id="asctime"),
        pytest.param("Sun, 06 Nov 1994 08:50:07", 30, id="no_zone"),
        pytest.param("Sun, 06 Nov 1994 08:50:07 -0000", 30, id="unknown_zone"),
        pytest.param("Sun, 06 Nov 1994 09:50:07 +0100", 30, id="other_zone"),
        pytest.param("", None, id="empty"),
        pytest.param("soon", None, id="garbage"),
        pytest.param("-5", None, id="negative"),
        pytest.param("1.5", None, id="fraction"),
        pytest.param("\u0661", None, id="digits_of_another_script"),
        pytest.param("Sun, 06 Nov 99999 08:50:07 GMT", None, id="year_too_large"),
        pytest.param("Sun, 06 Nov 1994 99:99:99 GMT", None, id="no_such_time"),
        pytest.param("Sun, 06 Nov 1994 08:50:07 +9999", None, id="no_such_zone"),
        pytest.param("Sun, 06 Nov 3000000000 08:50:07 GMT", None, id="year_beyond_all_bounds"),
        pytest.param("Sun, 06 Nov 1994 08:50:07 +99999999999999999999", None, id="zone_beyond"),
    ],
)
def test_retry_after(text: str, seconds: float | None) -> None:
    """Seconds and all three forms of a date (RFC 9110 section 5.6.7) are understood; anything else asks nothing."""
    assert retry_after_seconds({"Retry-After": text}, NOW) == seconds


def test_retry_after_by_the_clock() -> None:
    """Without a given time, a date is compared with the clock."""
    past, future = (
        "Sun, 06 Nov 1994 08:49:37 GMT",
        (datetime.now(UTC) + timedelta(days=2)).strftime("%a, %d %b %Y %H:%M:%S GMT"),
    )
    assert retry_after_seconds({"Retry-After": past}) == 0
    assert (retry_after_seconds({"Retry-After": future}) or 0) > 24 * 3600
    assert retry_after_seconds({}) is None


DATE_PARTS = ["Sun,", "06", "Nov", "1994", "99999", "0", "-1", "08:50:07", "1:2", "+0000", "GMT", "EST", "+", "-", ","]


@given(st.one_of(st.text(), st.lists(st.sampled_from(DATE_PARTS), max_size=8).map(" ".join)))
def test_no_retry_after_is_a_fault(text: str) -> None:
    """Whatever an upstream puts into Retry-After is a wait that is not negative, or nothing."""
    seconds = retry_after_seconds({"Retry-After": text}, NOW)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    ("tries", "asked", "chance", "seconds"),
    [
        pytest.param(1, None, 0.0, 0.0, id="no_wait_by_chance"),
        pytest.param(1, None, 0.5, BACKOFF_BASE_SECONDS / 2, id="first"),
        pytest.param(2, None, 0.5, BACKOFF_BASE_SECONDS, id="doubled"),
        pytest.param(4, None, 0.5, 4 * BACKOFF_BASE_SECONDS, id="doubled_again"),
        pytest.param(20, None, 0.5, BACKOFF_CAP_SECONDS / 2, id="capped"),
        pytest.param(1, 5.0, 0.0, 5.0, id="asked"),
        pytest.param(1, 0.0, 0.5, BACKOFF_BASE_SECONDS / 2, id="asked_for_nothing"),
        pytest.param(1, 5.0, 0.5, 5.0 + BACKOFF_BASE_SECONDS / 2, id="asked_with_jitter"),
        pytest.param(1, 1e9, 0.0, RETRY_AFTER_CAP_SECONDS, id="asked_too_much"),
    ],
)
def test_backoff(tries: int, asked: float | None, chance: float, seconds: float) -> None:
    """Waits double up to a bound; a wait that the upstream asks for comes in front."""
    assert backoff_seconds(tries, asked, chance) == pytest.approx(seconds)


@given(
    st.integers(1, 20),
    st.none() | st.floats(0, 1e9),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1, exclude_max=True),
)
def test_backoff_is_bounded(tries: int, asked: float | None, chance: float, other: float) -> None:
    """No wait is negative or endless, none is shorter than asked for within the bound, and chance spreads them."""
    seconds = backoff_seconds(tries, asked, chance)
    floor = min(asked or 0.0, RETRY_AFTER_CAP_SECONDS)

    assert floor <= seconds <= floor + BACKOFF_CAP_SECONDS
    assert (seconds <= backoff_seconds(tries, asked, other)) or chance >= other
    assert backoff_seconds(tries + 1, asked, chance) >= seconds


@pytest.mark.parametrize("status", [200, 206, 301, 400, 401, 404, 410, 500])
def test_storage_answer_that_is_no_refusal(status: int) -> None:
    """Only 403 means that a signed target is no longer good."""
    assert rejected_target_failure(status, {}) is None


def test_storage_that_refuses_its_target() -> None:
    """A 403 of the storage is worth another try, which gets a fresh target; it says nothing about our key."""
    failed = rejected_target_failure(403, {"Retry-After": "3"})

    assert failed is not None
    assert (failed.failure.reason, failed.failure.upstream_status) == (Reason.UPSTREAM_ERROR, 403)
    assert failed.retryable
    assert failed.retry_after_seconds == 3
    assert failed.received is None


@pytest.mark.parametrize(
    ("progress_bytes", "backpressure_seconds", "counts"),
    [
        pytest.param(0, 0.0, True, id="nothing_came"),
        pytest.param(0, 100.0, True, id="nothing_came_while_held_back"),
        pytest.param(1, 0.0, True, id="progress_without_holding_back"),
        pytest.param(1, BACKPRESSURE_SECONDS - 0.1, True, id="held_back_a_little"),
        pytest.param(1, BACKPRESSURE_SECONDS, False, id="held_back_and_progress"),
    ],
)
def test_which_attempts_count(progress_bytes: int, backpressure_seconds: float, *, counts: bool) -> None:
    """A break while our own client was slow is excused, but only if the attempt brought the image forward."""
    assert consumes_attempt(progress_bytes, backpressure_seconds) is counts
