"""Resuming a partial image, as tables: what is requested, and what a response is."""

import pytest

from service.model import Reason
from service.upstream.resume import (
    PartialImage,
    PartialImageInvalid,
    ResumeAction,
    classify_response,
    range_headers,
)
from service.upstream.retry import AttemptFailed

NOTHING = PartialImage()
PART = PartialImage(count=400, crc32=0xABC, total=1000, etag='"v1"')
PART_NO_TOTAL = PartialImage(count=400, crc32=0xABC, etag='"v1"')
PART_NO_ETAG = PartialImage(count=400, crc32=0xABC, total=1000)
PART_NO_RANGES = PartialImage(count=400, crc32=0xABC, total=1000, etag='"v1"', resumable=False)


@pytest.mark.parametrize(
    ("partial", "headers"),
    [
        pytest.param(NOTHING, {}, id="nothing"),
        pytest.param(PartialImage(total=1000, etag='"v1"'), {}, id="only_headers"),
        pytest.param(PART, {"Range": "bytes=400-", "If-Range": '"v1"'}, id="part"),
        pytest.param(PART_NO_TOTAL, {"Range": "bytes=400-", "If-Range": '"v1"'}, id="part_of_unknown_total"),
        pytest.param(PART_NO_ETAG, {}, id="no_etag"),
        pytest.param(PART_NO_RANGES, {}, id="ranges_disqualified"),
    ],
)
def test_range_headers_need_a_strong_etag(partial: PartialImage, headers: dict[str, str]) -> None:
    """Only the rest is requested if a strong ETag guarantees that it is the rest of the same copy."""
    assert range_headers(partial) == headers
    assert partial.by_range is bool(headers)


@pytest.mark.parametrize(
    ("partial", "status", "headers", "action"),
    [
        pytest.param(NOTHING, 200, {}, ResumeAction.BEGIN, id="first_attempt"),
        pytest.param(
            NOTHING, 200, {"etag": '"v2"', "content-length": "5"}, ResumeAction.BEGIN, id="first_attempt_with_headers"
        ),
        pytest.param(PART, 200, {}, ResumeAction.REPLAY, id="range_ignored"),
        pytest.param(
            PART, 200, {"etag": '"v1"', "content-length": "1000"}, ResumeAction.REPLAY, id="range_ignored_same"
        ),
        pytest.param(PART, 200, {"etag": '"v2"', "content-length": "1000"}, ResumeAction.BEGIN, id="etag_changed"),
        pytest.param(PART, 200, {"etag": '"v1"', "content-length": "999"}, ResumeAction.BEGIN, id="length_changed"),
        pytest.param(PART, 200, {"etag": 'W/"v2"'}, ResumeAction.REPLAY, id="weak_etag_says_nothing"),
        pytest.param(PART, 200, {"content-length": "many"}, ResumeAction.REPLAY, id="unreadable_length_says_nothing"),
        pytest.param(PART_NO_ETAG, 200, {"etag": '"v2"'}, ResumeAction.REPLAY, id="etag_where_none_was"),
        pytest.param(PART_NO_TOTAL, 200, {"content-length": "5"}, ResumeAction.REPLAY, id="length_where_none_was"),
        pytest.param(PART_NO_RANGES, 200, {"etag": '"v1"'}, ResumeAction.REPLAY, id="ranges_disqualified"),
        pytest.param(PART, 206, {"content-range": "bytes 400-999/1000"}, ResumeAction.CONTINUE, id="exact_rest"),
        pytest.param(
            PART,
            206,
            {"content-range": "bytes 400-999/1000", "etag": '"v1"', "content-length": "600"},
            ResumeAction.CONTINUE,
            id="exact_rest_confirmed",
        ),
        pytest.param(
            PART,
            206,
            {"content-range": "bytes 400-999/1000", "etag": 'W/"v2"'},
            ResumeAction.CONTINUE,
            id="rest_weak_etag",
        ),
        pytest.param(
            PART_NO_TOTAL, 206, {"content-range": "bytes 400-999/1000"}, ResumeAction.CONTINUE, id="new_total"
        ),
    ],
)
def test_successful_response_is_classified(
    partial: PartialImage, status: int, headers: dict[str, str], action: ResumeAction
) -> None:
    """A whole image begins or replays the copy, an exact part continues it."""
    assert classify_response(partial, status, headers) is action


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="no_range"),
        pytest.param({"content-range": "bytes 399-999/1000"}, id="too_early"),
        pytest.param({"content-range": "bytes 401-999/1000"}, id="too_late"),
        pytest.param({"content-range": "bytes 0-999/1000"}, id="from_the_start"),
        pytest.param({"content-range": "bytes 400-998/1000"}, id="not_to_the_end"),
        pytest.param({"content-range": "bytes 400-1000/1000"}, id="beyond_the_end"),
        pytest.param({"content-range": "bytes 400-1000/1001"}, id="other_total"),
        pytest.param({"content-range": "bytes 400-999/*"}, id="no_total"),
        pytest.param({"content-range": "bytes */1000"}, id="no_range_at_all"),
        pytest.param({"content-range": "items 400-999/1000"}, id="other_unit"),
        pytest.param({"content-range": "bytes 400-999/1000, bytes 0-1/1000"}, id="two_ranges"),
        pytest.param({"content-range": "bytes 400-999/" + "9" * 5000}, id="absurd_total"),
        pytest.param({"content-range": "bytes 400-999/1000", "etag": '"v2"'}, id="etag_changed"),
        pytest.param({"content-range": "bytes 400-999/1000", "content-length": "599"}, id="length_disagrees"),
        pytest.param({"content-type": "multipart/byteranges; boundary=x"}, id="multipart"),
    ],
)
def test_part_that_does_not_fit_disqualifies_ranges(headers: dict[str, str]) -> None:
    """Anything but the exact continuation is rejected, and no range is requested again; what was received stays."""
    with pytest.raises(PartialImageInvalid) as caught:
        classify_response(PART, 206, headers)

    assert caught.value.failure.reason is Reason.CONTENT_CHANGED
    assert caught.value.retryable
    assert caught.value.replacement == PART_NO_RANGES


def test_range_not_satisfiable_starts_over() -> None:
    """416 to our Range means that the partial image is void: the next attempt begins a new copy."""
    with pytest.raises(PartialImageInvalid) as caught:
        classify_response(PART, 416, {"content-range": "bytes */300"})

    assert caught.value.failure.reason is Reason.CONTENT_CHANGED
    assert caught.value.failure.upstream_status == 416
    assert caught.value.retryable
    assert caught.value.replacement == NOTHING


@pytest.mark.parametrize(
    ("partial", "status", "reason", "retryable"),
    [
        pytest.param(NOTHING, 206, Reason.UPSTREAM_ERROR, True, id="part_without_range"),
        pytest.param(PART_NO_ETAG, 206, Reason.UPSTREAM_ERROR, True, id="part_without_range_in_the_middle"),
        pytest.param(PART_NO_RANGES, 416, Reason.REJECTED, False, id="range_error_without_range"),
        pytest.param(PART, 503, Reason.UPSTREAM_ERROR, True, id="failure_in_the_middle"),
        pytest.param(PART, 404, Reason.NOT_FOUND, False, id="gone_in_the_middle"),
        pytest.param(NOTHING, 204, Reason.UPSTREAM_ERROR, True, id="no_content"),
    ],
)
def test_other_status_keeps_the_partial_image(
    partial: PartialImage, status: int, reason: Reason, *, retryable: bool
) -> None:
    """Any other response is a failure of the attempt alone; what was received is kept for the next."""
    with pytest.raises(AttemptFailed) as caught:
        classify_response(partial, status, {"content-range": "bytes 400-999/1000", "retry-after": "7"})

    assert (caught.value.failure.reason, caught.value.failure.upstream_status) == (reason, status)
    assert caught.value.retryable is retryable
    assert caught.value.retry_after_seconds == 7
    assert not isinstance(caught.value, PartialImageInvalid)
