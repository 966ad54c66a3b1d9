"""The ladder's decisions: what an answer is worth, whether to try again, when, and from where. Pure functions.

``download.py`` carries them out. One image's way (the steps are those of README's table):

1. nothing received yet → ask again at the API URL;
2. part received, a strong ETag known → ask with ``Range`` and ``If-Range``, accept only the exact continuation;
3. part received, no way to resume → ask from the start and skip what is there, if its CRC-32 agrees;
4. the content changed → begin a new copy (the archive rolls the entry back);
5. tries used up, or an answer that another try cannot change → the image has failed.
"""

import email.utils
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum, auto
from http import HTTPStatus

from service.model import Failure, Reason

# The first pause is short, because most breaks are momentary; later ones grow to a bound that keeps the archive going.
BACKOFF_BASE_SECONDS = 0.25
BACKOFF_CAP_SECONDS = 8.0
# An upstream that asks for more patience than this is asked again earlier: the caller's proxy waits no longer.
RETRY_AFTER_CAP_SECONDS = 30.0
# Answers of 429 for one image that use up no try: with the shortest pause of the process some seconds of patience.
FREE_REFUSALS = 7
# A reader that took its time like this may well have made the storage drop the connection: not the image's fault.
BACKPRESSURE_SECONDS = 5.0

_RETRIED_STATUSES = frozenset({408, 425, 429})
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
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


@dataclass(frozen=True, slots=True)
class PartialImage:
    """What is in hand of the current copy: ``count`` bytes with this CRC-32, of ``total`` if that is known.

    ``resumable`` turns false when the upstream has shown that its ranges cannot be used.
    """

    count: int = 0
    crc32: int = 0
    total: int | None = None
    etag: str | None = None
    resumable: bool = True

    @property
    def by_range(self) -> bool:
        """Whether the next request asks only for the rest (RFC 9110 section 14.2 with 13.1.5: strong ETag needed)."""
        return self.count > 0 and self.etag is not None and self.resumable


class AttemptFailed(Exception):
    """One try failed. ``retryable`` says whether another may succeed, ``received`` what it can build on."""

    def __init__(
        self,
        failure: Failure,
        *,
        retryable: bool = True,
        retry_after_seconds: float | None = None,
        received: PartialImage | None = None,
    ) -> None:
        super().__init__(f"{failure.reason}: {failure.detail}")
        self.failure = failure
        self.retryable = retryable
        self.retry_after_seconds = retry_after_seconds
        self.received = received


class Answer(Enum):
    """What the body of a successful answer is to the copy in hand."""

    FRESH = auto()
    CONTINUE = auto()
    REPLAY = auto()


def request_headers(received: PartialImage) -> dict[str, str]:
    """Return the headers that ask for what is still missing (RFC 9110 sections 13.1.5 and 14.2)."""
    if not received.by_range or received.etag is None:
        return {}
    return {"Range": f"bytes={received.count}-", "If-Range": received.etag}


def strong_etag(headers: Mapping[str, str]) -> str | None:
    """Return the answer's ETag if it is a strong one (RFC 9110 section 8.8.3)."""
    etag = headers.get("ETag", "")
    return etag if len(etag) > 2 and etag.isascii() and etag.startswith('"') and etag.endswith('"') else None  # noqa: PLR2004 - quotes


def content_length(headers: Mapping[str, str]) -> int | None:
    """Return the body's length in bytes as announced, if it is announced in a readable way."""
    text = headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None  # noqa: PLR2004 - exabytes


def read_answer(received: PartialImage, status: int, headers: Mapping[str, str]) -> Answer:
    """Decide what an answer is to the copy in hand.

    Raises:
        AttemptFailed: it cannot be used; the exception says what the next try can build on.
    """
    if status == HTTPStatus.OK:
        return _read_whole(received, headers)
    if status == HTTPStatus.PARTIAL_CONTENT and received.by_range:
        return _read_part(received, headers)
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and received.by_range:
        failure = Failure(Reason.CONTENT_CHANGED, "the image no longer has the bytes that are missing", status)
        raise AttemptFailed(failure, received=PartialImage())
    raise status_failure(status, headers, received)


def _read_whole(received: PartialImage, headers: Mapping[str, str]) -> Answer:
    if received.count == 0:
        return Answer.FRESH
    etag, length = strong_etag(headers), content_length(headers)
    changed = etag is not None and received.etag is not None and etag != received.etag
    resized = length is not None and received.total is not None and length != received.total
    return Answer.FRESH if changed or resized else Answer.REPLAY


def _read_part(received: PartialImage, headers: Mapping[str, str]) -> Answer:
    """Accept only the exact continuation (RFC 9110 section 14.4); anything else disqualifies the server's ranges."""
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if match:
        first, last, total = map(int, match.groups())
        fits = first == received.count and last == total - 1 and received.total in {None, total}
        etag, length = strong_etag(headers), content_length(headers)
        if fits and etag in {None, received.etag} and length in {None, total - first}:
            return Answer.CONTINUE
    failure = Failure(Reason.CONTENT_CHANGED, "the upstream resumed at the wrong place", 206)
    raise AttemptFailed(failure, received=replace(received, resumable=False))


def rejected_target_failure(status: int, headers: Mapping[str, str]) -> AttemptFailed | None:
    """Return the failure that a refusal by the storage is, or ``None`` if the answer is none.

    Redirect targets are signed and expire: S3 answers 403 to one that is no longer good. Unlike the API's own 403
    that says nothing about our key, and the next try gets a fresh target.
    """
    if status != HTTPStatus.FORBIDDEN:
        return None
    failure = Failure(Reason.UPSTREAM_ERROR, "the storage refused the address that the API gave (403)", status)
    return AttemptFailed(failure, retry_after_seconds=retry_after_seconds(headers))


def status_failure(status: int, headers: Mapping[str, str], received: PartialImage | None = None) -> AttemptFailed:
    """Return the failure that a status other than success means."""
    server_side = not HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
    reason = _STATUS_REASONS.get(status, Reason.UPSTREAM_ERROR if server_side else Reason.REJECTED)
    failure = Failure(reason, f"the upstream answered {status}", status)
    return AttemptFailed(
        failure,
        retryable=server_side or status in _RETRIED_STATUSES,
        retry_after_seconds=retry_after_seconds(headers),
        received=received,
    )


def retry_after_seconds(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Return the wait that ``Retry-After`` asks for (RFC 9110 section 10.2.3: seconds or a date), never negative."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), 1e9)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())


def consumes_attempt(
    progress_bytes: int, backpressure_seconds: float, threshold_seconds: float = BACKPRESSURE_SECONDS
) -> bool:
    """Whether a failed attempt uses up one of the image's tries.

    It does not when we ourselves kept the upstream waiting, by not reading while our client was slow, and the
    attempt brought the image further than any before: a slow client must never make an image fail. That progress
    keeps this finite.
    """
    return progress_bytes <= 0 or backpressure_seconds < threshold_seconds


def is_free_retry(reason: Reason, refusals: int) -> bool:
    """Whether an attempt that failed so uses up none of the image's tries, after ``refusals`` that did not.

    A 429 says nothing of the image, only that others are busy with the API too: it is waited for, up to
    ``FREE_REFUSALS`` times.
    """
    return reason is Reason.RATE_LIMITED and refusals < FREE_REFUSALS


def backoff_seconds(tries: int, asked_seconds: float | None, chance: float) -> float:
    """Return how long to wait after ``tries`` failed tries; ``chance`` in [0, 1) is the jitter.

    Exponential with full jitter, so that callers who failed together do not come back together. A wait the
    upstream asks for is kept up to ``RETRY_AFTER_CAP_SECONDS``, with jitter on top for the same reason.
    """
    jittered = chance * min(BACKOFF_CAP_SECONDS, BACKOFF_BASE_SECONDS * 2.0 ** (tries - 1))
    if asked_seconds is None:
        return jittered
    return min(asked_seconds, RETRY_AFTER_CAP_SECONDS) + jittered
