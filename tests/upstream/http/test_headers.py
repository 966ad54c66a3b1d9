"""Parsing of header fields: well-formed values, and malformed ones, which count as absent."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.upstream.http.headers import content_length, retry_after_seconds, strong_etag


@pytest.mark.parametrize(
    ("headers", "etag"),
    [
        pytest.param({"etag": '"abc"'}, '"abc"', id="strong"),
        pytest.param({"etag": 'W/"abc"'}, None, id="weak"),
        pytest.param({"etag": 'w/"abc"'}, None, id="weak_small_letter"),
        pytest.param({}, None, id="missing"),
        pytest.param({"etag": ""}, None, id="empty"),
        pytest.param({"etag": '""'}, None, id="empty_tag"),
        pytest.param({"etag": '"'}, None, id="one_quote"),
        pytest.param({"etag": "abc"}, None, id="unquoted"),
        pytest.param({"etag": '"abc'}, None, id="open"),
    ],
)
def test_strong_etag_is_parsed(headers: dict[str, str], etag: str | None) -> None:
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
def test_content_length_is_parsed(text: str, length: int | None) -> None:
    """A malformed length counts as absent."""
    assert content_length({"content-length": text}) == length


def test_content_length_may_be_absent() -> None:
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
def test_retry_after_is_parsed(text: str, seconds: float | None) -> None:
    """Seconds and all three forms of a date (RFC 9110 section 5.6.7) are parsed; anything else counts as absent."""
    assert retry_after_seconds({"retry-after": text}, NOW) == seconds


def test_retry_after_date_is_relative_to_the_clock() -> None:
    """Without a given time, a date is compared with the clock."""
    past, future = (
        "Sun, 06 Nov 1994 08:49:37 GMT",
        (datetime.now(UTC) + timedelta(days=2)).strftime("%a, %d %b %Y %H:%M:%S GMT"),
    )
    assert retry_after_seconds({"retry-after": past}) == 0
    assert (retry_after_seconds({"retry-after": future}) or 0) > 24 * 3600
    assert retry_after_seconds({}) is None


DATE_PARTS = ["Sun,", "06", "Nov", "1994", "99999", "0", "-1", "08:50:07", "1:2", "+0000", "GMT", "EST", "+", "-", ","]


@given(st.one_of(st.text(), st.lists(st.sampled_from(DATE_PARTS), max_size=8).map(" ".join)))
def test_retry_after_accepts_any_text(text: str) -> None:
    """Any text in Retry-After is a wait that is not negative, or none."""
    seconds = retry_after_seconds({"retry-after": text}, NOW)
    assert seconds is None or seconds >= 0
