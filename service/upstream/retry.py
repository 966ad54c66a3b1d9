"""The retry policy: whether to try again, and when. Pure functions, carried out by ``retry_loop``.

One image's way (the steps are those of README's table; 2 to 4 are decided in ``resume``):

1. nothing received yet → request it again at the API URL;
2. part received, a strong ETag known → request the rest with ``Range`` and ``If-Range``;
3. part received, no way to resume → request all of it and skip what was received, if its CRC-32 matches;
4. the content changed → begin a new copy (the archive rolls the entry back);
5. attempts used up, or a response that another attempt cannot change → the image has failed.
"""

from collections.abc import Mapping
from http import HTTPStatus

from service.model import Failure, Reason
from service.upstream.http.headers import retry_after_seconds

# The first pause is short, because most failures are momentary; later ones grow up to a bound.
BACKOFF_BASE_SECONDS = 0.25
BACKOFF_CAP_SECONDS = 8.0
# A longer Retry-After is cut to this: the client's proxy waits no longer.
RETRY_AFTER_CAP_SECONDS = 30.0
# 429 responses for one image that use up no attempt: with the shortest pause of the process some seconds of patience.
MAX_FREE_RETRIES = 7
# Backpressure this long may well have made the storage drop the connection: not the image's fault.
BACKPRESSURE_SECONDS = 5.0

_RETRIED_STATUSES = frozenset({408, 425, 429})
# Statuses of a storage that a fresh target may avoid. None of them is about our key, not even 401 and 402.
_STORAGE_RETRIED = frozenset({400, 401, 402, 403, 409, 412})
_STATUS_REASONS = {
    401: Reason.UNAUTHORIZED,
    402: Reason.NO_CREDITS,
    403: Reason.UNAUTHORIZED,
    404: Reason.NOT_FOUND,
    410: Reason.NOT_FOUND,
    408: Reason.TIMEOUT,
    425: Reason.UPSTREAM_ERROR,
    429: Reason.RATE_LIMITED,
}


class AttemptFailed(Exception):
    """One attempt failed. ``retryable`` says whether another may succeed."""

    def __init__(self, failure: Failure, *, retryable: bool = True, retry_after_seconds: float | None = None) -> None:
        super().__init__(f"{failure.reason}: {failure.detail}")
        self.failure = failure
        self.retryable = retryable
        self.retry_after_seconds = retry_after_seconds


def storage_failure(status: int, headers: Mapping[str, str]) -> AttemptFailed | None:
    """Return the failure of a storage response that rejects its signed URL, or ``None``.

    Redirect targets are signed and expire. S3 responds with 403 to one that is no longer valid, and with 400 and the
    codes ``ExpiredToken`` and ``RequestTimeout``, after which clients are to try again (Amazon S3 API reference, "Error
    responses"). Unlike the API's own, these statuses say nothing about our key; the next attempt gets a fresh target.
    """
    if status not in _STORAGE_RETRIED:
        return None
    failure = Failure(Reason.UPSTREAM_ERROR, f"the storage rejected the URL that the API gave ({status})", status)
    return AttemptFailed(failure, retry_after_seconds=retry_after_seconds(headers))


def status_failure(status: int, headers: Mapping[str, str]) -> AttemptFailed:
    """Return the failure of a status other than success."""
    server_side = not HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
    reason = _STATUS_REASONS.get(status, Reason.UPSTREAM_ERROR if server_side else Reason.REJECTED)
    return AttemptFailed(
        Failure(reason, f"the upstream responded with status {status}", status),
        retryable=server_side or status in _RETRIED_STATUSES,
        retry_after_seconds=retry_after_seconds(headers),
    )


def consumes_attempt(
    progress_bytes: int, backpressure_seconds: float, threshold_seconds: float = BACKPRESSURE_SECONDS
) -> bool:
    """Whether a failed attempt uses up one of the image's attempts.

    It does not if backpressure of a slow client had paused the upstream, and the attempt brought the image further
    than any before: a slow client must never make an image fail. That progress keeps this finite.
    """
    return progress_bytes <= 0 or backpressure_seconds < threshold_seconds


def is_free_retry(reason: Reason, free_retries: int) -> bool:
    """Whether a failure uses up no attempt, after ``free_retries`` that did not.

    A 429 says nothing about the image, only that the API is busy. It is retried up to ``MAX_FREE_RETRIES`` times.
    """
    return reason is Reason.RATE_LIMITED and free_retries < MAX_FREE_RETRIES


def backoff_seconds(failed_attempts: int, retry_after: float | None, chance: float) -> float:
    """Return the pause after so many failed attempts, in seconds; ``chance`` in [0, 1) is the jitter.

    Exponential backoff with full jitter, so that requests that failed together are not repeated together. A
    ``Retry-After`` is respected up to ``RETRY_AFTER_CAP_SECONDS``, with jitter on top for the same reason.
    """
    jittered = chance * min(BACKOFF_CAP_SECONDS, BACKOFF_BASE_SECONDS * 2.0 ** (failed_attempts - 1))
    if retry_after is None:
        return jittered
    return min(retry_after, RETRY_AFTER_CAP_SECONDS) + jittered
