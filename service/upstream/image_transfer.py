"""What each response is to one image: the state machine of a download. Pure, no I/O and no clock.

``image_download`` carries out what is decided here. One attempt::

    start_attempt ─▶ receive_headers ─▶ receive_body … ─▶ receive_end      the image is complete and verified
                            └──────────────┴───────────────┴─▶ AttemptFailed ─▶ fail_attempt ─▶ pause, or ImageFailed

What an attempt is, follows from its response's status and headers (``resume.classify_response``):

- ``BEGIN``: a new copy. Its first bytes are held until they show a known format, then ``Opened`` precedes them.
- ``CONTINUE``: the rest of the copy (206). Every byte is new.
- ``REPLAY``: the copy from its start. As many bytes as are there are compared by their CRC-32 and dropped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from isal import isal_zlib

from service.errors import ImageFailed
from service.model import Failure, Opened, Reason, ResumeMethod
from service.upstream import retry
from service.upstream.image_formats import bytes_to_sniff, sniff
from service.upstream.image_walkers import Walker, new_walker
from service.upstream.resume import PartialImage, PartialImageInvalid, ResumeAction, classify_response, range_headers
from service.upstream.retry import AttemptFailed


@dataclass(frozen=True, slots=True)
class DownloadPolicy:
    """How often one image is tried: ``attempts`` in all, the first included.

    A break after ``backpressure_seconds`` in which reading was paused uses up none of them, see
    ``retry.consumes_attempt``.
    """

    attempts: int
    backpressure_seconds: float = retry.BACKPRESSURE_SECONDS


class ImageTransfer:
    """One image, over all of its attempts.

    ``attempts`` counts the requests at the API; ``partial`` is what has been handed on of the current copy.
    """

    __slots__ = (
        "_consumed_attempts",
        "_first_bytes",
        "_free_retries",
        "_furthest_bytes",
        "_has_framing",
        "_policy",
        "_replayed_bytes",
        "_replayed_crc32",
        "_state",
        "_status",
        "_walker",
        "attempts",
        "partial",
    )

    def __init__(self, policy: DownloadPolicy) -> None:
        self._policy = policy
        self.partial = PartialImage()
        self.attempts = 0
        self._consumed_attempts = 0
        self._free_retries = 0
        self._furthest_bytes = 0  # how far the best attempt has come
        self._state: ResumeAction | None = None  # what the response is; None before its headers
        self._status = 0
        self._has_framing = True
        self._first_bytes: bytes | None = None  # of a fresh copy whose format is not known yet
        self._replayed_bytes = 0
        self._replayed_crc32 = 0
        self._walker = Walker()

    def start_attempt(self) -> Mapping[str, str]:
        """Begin an attempt; return the headers that request only the missing part, if it can."""
        self.attempts += 1
        self._state = None
        self._first_bytes = None
        return range_headers(self.partial)

    def receive_headers(
        self, status: int, headers: Mapping[str, str], *, from_api: bool, has_framing: bool
    ) -> ResumeMethod | None:
        """Judge the response before its body; return how it resumes the copy, if it does.

        Raises:
            AttemptFailed: it is not the image, or not the rest of this copy.
        """
        if not from_api:
            rejected = retry.storage_failure(status, headers)
            if rejected is not None and not (self.partial.by_range and status == HTTPStatus.BAD_REQUEST):
                raise rejected
        action = classify_response(self.partial, status, headers)
        content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        # RFC 9110 section 15.3.7: a 206 to If-Range needs no Content-Type; its range and validator prove it.
        if not content_type.startswith("image/") and (content_type or action is not ResumeAction.CONTINUE):
            raise AttemptFailed(Failure(Reason.NOT_AN_IMAGE, f"the upstream sent {content_type}, not an image", status))
        self._state, self._status, self._has_framing = action, status, has_framing
        if action is ResumeAction.BEGIN:
            self.partial = PartialImage.promised(headers)
            self._first_bytes = b""
            return None
        if action is ResumeAction.CONTINUE:
            return ResumeMethod.RANGE
        self._replayed_bytes = self._replayed_crc32 = 0
        return ResumeMethod.REPLAY

    def receive_body(self, chunk: bytes) -> Sequence[Opened | bytes]:
        """Take bytes of the body; return what is to be handed on: a new copy's start, and new bytes.

        Raises:
            AttemptFailed: they are not those of an image, not those of this copy, or too many.
        """
        if self._first_bytes is not None:
            self._first_bytes += chunk
            if len(self._first_bytes) < bytes_to_sniff(self._first_bytes):
                return ()
            return self._open_copy(self._first_bytes)
        if self._state is ResumeAction.REPLAY:
            chunk = self._skip_replayed(chunk)
            if not chunk:
                return ()
        self._accept(chunk)
        return (chunk,)

    def receive_end(self) -> Sequence[Opened | bytes]:
        """Take the clean end of the body: the image is complete. Return what is still to be handed on.

        Raises:
            AttemptFailed: the body ended, but the image had not.
        """
        events: Sequence[Opened | bytes] = ()
        if self._first_bytes is not None:
            events = self._open_copy(self._first_bytes)
        elif self._state is ResumeAction.REPLAY:
            raise self._changed()
        partial = self.partial
        if partial.total is not None and partial.count != partial.total:
            detail = f"{partial.count} bytes came instead of {partial.total}"
            raise AttemptFailed(Failure(Reason.TRUNCATED, detail))
        # A body whose end is that of the connection proves nothing (RFC 9112 section 6.3, rule 8): then the file itself
        # must show its end. Where it shows that it has none, a length proves nothing either: what is stored is cut off.
        ended = self._walker.has_ended()
        if ended is False or (ended is None and not self._has_framing):
            failure = Failure(Reason.TRUNCATED, "the image is cut off before its end")
            raise PartialImageInvalid(failure, PartialImage())
        return events

    def fail_attempt(self, error: AttemptFailed, *, paused_seconds: float, chance: float) -> float:
        """Take the failure of an attempt; return the pause before the next one, in seconds.

        ``paused_seconds`` is the longest time for which reading was paused, ``chance`` in [0, 1) the jitter.

        Raises:
            ImageFailed: there is no next attempt.
        """
        reached = self.partial.count
        progress_bytes, self._furthest_bytes = reached - self._furthest_bytes, max(reached, self._furthest_bytes)
        if isinstance(error, PartialImageInvalid):
            self.partial = error.replacement
        if retry.is_free_retry(error.failure.reason, self._free_retries):
            self._free_retries += 1
        elif retry.consumes_attempt(progress_bytes, paused_seconds, self._policy.backpressure_seconds):
            self._consumed_attempts += 1
        if not error.retryable or self._consumed_attempts >= self._policy.attempts:
            raise ImageFailed(error.failure) from error
        return retry.backoff_seconds(max(1, self._consumed_attempts), error.retry_after_seconds, chance)

    def _open_copy(self, first_bytes: bytes) -> Sequence[Opened | bytes]:
        """Verify what a fresh copy starts with."""
        image_format = sniff(first_bytes)
        if image_format is None:
            failure = Failure(Reason.NOT_AN_IMAGE, "the first bytes are not those of an image", self._status)
            raise PartialImageInvalid(failure, PartialImage())
        self._first_bytes = None
        self._walker = new_walker(image_format, first_bytes)
        self._accept(first_bytes)
        return Opened(image_format.extension, self.partial.total), first_bytes

    def _skip_replayed(self, chunk: bytes) -> bytes:
        """Compare the copy's bytes that are there already, and return those behind them."""
        partial = self.partial
        replayed = chunk[: partial.count - self._replayed_bytes]
        self._replayed_bytes += len(replayed)
        self._replayed_crc32 = isal_zlib.crc32(replayed, self._replayed_crc32)
        if self._replayed_bytes == partial.count:
            if self._replayed_crc32 != partial.crc32:
                raise self._changed()
            self._state = ResumeAction.CONTINUE
        return chunk[len(replayed) :]

    def _changed(self) -> AttemptFailed:
        failure = Failure(Reason.CONTENT_CHANGED, "the image is not the same as before the break", self._status)
        return PartialImageInvalid(failure, PartialImage())

    def _accept(self, chunk: bytes) -> None:
        partial = self.partial
        count = partial.count + len(chunk)
        if partial.total is not None and count > partial.total:
            failure = Failure(Reason.TOO_LONG, f"more bytes came than the {partial.total} promised")
            raise PartialImageInvalid(failure, PartialImage())
        partial.count = count
        partial.crc32 = isal_zlib.crc32(chunk, partial.crc32)
        self._walker.feed(chunk)
