"""The retry policy, as tables: whether to try again, and when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.model import Reason
from service.upstream.retry import (
    BACKOFF_BASE_SECONDS,
    BACKOFF_CAP_SECONDS,
    BACKPRESSURE_SECONDS,
    MAX_FREE_RETRIES,
    RETRY_AFTER_CAP_SECONDS,
    backoff_seconds,
    consumes_attempt,
    is_free_retry,
    status_failure,
    storage_failure,
)


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
def test_status_failure_is_retryable_or_final(status: int, reason: Reason, *, retryable: bool) -> None:
    """A client error is final except 408, 425 and 429; anything else may be better next time."""
    failed = status_failure(status, {})

    assert failed.failure.reason is reason
    assert failed.failure.upstream_status == status
    assert str(status) in failed.failure.detail
    assert failed.retryable is retryable
    assert failed.retry_after_seconds is None


@pytest.mark.parametrize(
    ("failed_attempts", "retry_after", "chance", "seconds"),
    [
        pytest.param(1, None, 0.0, 0.0, id="no_wait_by_chance"),
        pytest.param(1, None, 0.5, BACKOFF_BASE_SECONDS / 2, id="first"),
        pytest.param(2, None, 0.5, BACKOFF_BASE_SECONDS, id="doubled"),
        pytest.param(4, None, 0.5, 4 * BACKOFF_BASE_SECONDS, id="doubled_again"),
        pytest.param(20, None, 0.5, BACKOFF_CAP_SECONDS / 2, id="capped"),
        pytest.param(1, 5.0, 0.0, 5.0, id="retry_after"),
        pytest.param(1, 0.0, 0.5, BACKOFF_BASE_SECONDS / 2, id="retry_after_zero"),
        pytest.param(1, 5.0, 0.5, 5.0 + BACKOFF_BASE_SECONDS / 2, id="retry_after_with_jitter"),
        pytest.param(1, 1e9, 0.0, RETRY_AFTER_CAP_SECONDS, id="retry_after_capped"),
    ],
)
def test_backoff_doubles_up_to_a_bound(
    failed_attempts: int, retry_after: float | None, chance: float, seconds: float
) -> None:
    """Pauses double up to a bound; Retry-After is added in front."""
    assert backoff_seconds(failed_attempts, retry_after, chance) == pytest.approx(seconds)


@given(
    st.integers(1, 20),
    st.none() | st.floats(0, 1e9),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1, exclude_max=True),
)
def test_backoff_is_bounded(failed_attempts: int, retry_after: float | None, chance: float, other: float) -> None:
    """No pause is negative or unbounded, none is shorter than the capped Retry-After, and chance spreads them."""
    seconds = backoff_seconds(failed_attempts, retry_after, chance)
    floor = min(retry_after or 0.0, RETRY_AFTER_CAP_SECONDS)

    assert floor <= seconds <= floor + BACKOFF_CAP_SECONDS
    assert (seconds <= backoff_seconds(failed_attempts, retry_after, other)) or chance >= other
    assert backoff_seconds(failed_attempts + 1, retry_after, chance) >= seconds


@pytest.mark.parametrize("status", [200, 206, 301, 404, 405, 408, 410, 416, 422, 429, 500, 501, 503])
def test_storage_failure_leaves_other_statuses(status: int) -> None:
    """These statuses of the storage mean what they mean everywhere."""
    assert storage_failure(status, {}) is None


@pytest.mark.parametrize("status", [400, 401, 402, 403, 409, 412])
def test_storage_failure_is_retryable_and_not_about_our_key(status: int) -> None:
    """A storage that rejects a signed URL says nothing about our key; the next attempt gets a fresh target."""
    failed = storage_failure(status, {"retry-after": "3"})

    assert failed is not None
    assert (failed.failure.reason, failed.failure.upstream_status) == (Reason.UPSTREAM_ERROR, status)
    assert str(status) in failed.failure.detail
    assert failed.retryable
    assert failed.retry_after_seconds == 3
    assert status_failure(status, {}).failure.reason is not Reason.UPSTREAM_ERROR, "the API's own status is about us"


@pytest.mark.parametrize(
    ("progress_bytes", "backpressure_seconds", "consumes"),
    [
        pytest.param(0, 0.0, True, id="no_progress"),
        pytest.param(0, 100.0, True, id="no_progress_under_backpressure"),
        pytest.param(1, 0.0, True, id="progress_without_backpressure"),
        pytest.param(1, BACKPRESSURE_SECONDS - 0.1, True, id="short_backpressure"),
        pytest.param(1, BACKPRESSURE_SECONDS, False, id="progress_under_backpressure"),
    ],
)
def test_backpressure_excuses_attempts_with_progress(
    progress_bytes: int, backpressure_seconds: float, *, consumes: bool
) -> None:
    """A break after backpressure by a slow client uses up no attempt, but only if the image got further."""
    assert consumes_attempt(progress_bytes, backpressure_seconds) is consumes


@pytest.mark.parametrize(
    ("reason", "free_retries", "free"),
    [
        pytest.param(Reason.RATE_LIMITED, 0, True, id="first_429"),
        pytest.param(Reason.RATE_LIMITED, MAX_FREE_RETRIES - 1, True, id="last_free_429"),
        pytest.param(Reason.RATE_LIMITED, MAX_FREE_RETRIES, False, id="too_many"),
        pytest.param(Reason.UPSTREAM_ERROR, 0, False, id="another_reason"),
    ],
)
def test_some_429_responses_use_up_no_attempt(reason: Reason, free_retries: int, *, free: bool) -> None:
    """A rate limit is retried for free up to a bound; no other failure is."""
    assert is_free_retry(reason, free_retries) is free
