"""Downloads one image as a stream of events, as ``retry`` and ``resume`` decide.

Ownership: an ``ImageDownload`` is iterated by one task at a time (the read-ahead's fetch task), which owns its
connection and its timers; both live only inside ``_attempt``. It holds no buffer: a chunk is yielded before the next
one is read, so a consumer that pauses also pauses the upstream (backpressure by TCP). Between two attempts it keeps
nothing but a ``PartialImage``: how much of the copy was yielded, and its CRC-32.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

import structlog
from isal import isal_zlib
from yarl import URL

from service.errors import ImageFailed
from service.model import DownloadEvent, Failure, Interrupted, Opened, Reason, ResumeMethod
from service.monitoring.metrics import Metrics
from service.upstream import retry
from service.upstream.http.fetcher import Fetcher
from service.upstream.http.headers import content_length, strong_etag
from service.upstream.http.http1 import Response
from service.upstream.image_formats import bytes_to_sniff, sniff
from service.upstream.image_walkers import Walker, new_walker
from service.upstream.resume import PartialImage, PartialImageInvalid, ResumeAction, classify_response, range_headers
from service.upstream.retry import AttemptFailed
from service.upstream.retry_loop import RetryLoop

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DownloadPolicy:
    """Limits of one image's download: ``attempts`` in all, the first included.

    A break after ``backpressure_seconds`` of backpressure uses up none of them, see ``retry.consumes_attempt``.
    """

    attempts: int
    backpressure_seconds: float = retry.BACKPRESSURE_SECONDS


class ImageDownload:
    """The download of one image; iterate its ``events`` once. ``attempts`` counts the requests made for it."""

    def __init__(
        self,
        fetcher: Fetcher,
        url: URL,
        headers: Mapping[str, str],
        policy: DownloadPolicy,
        *,
        image_id: str,
        metrics: Metrics,
        granted: Callable[[], None],
    ) -> None:
        self._fetcher = fetcher
        self._url = url
        self._headers = headers
        self._policy = policy
        self._metrics = metrics
        self._image_id = image_id
        self._on_granted: Callable[[], None] | None = granted
        self._partial = PartialImage()
        self._walker = Walker()  # of the copy that was opened last
        self._retries = RetryLoop(policy.attempts)
        self._free_retries = 0
        self._max_bytes_reached = 0  # of the image, by the best attempt so far
        self._backpressure_seconds = 0.0  # the longest pause of the consumer in this attempt
        self.attempts = 0

    async def events(self) -> AsyncGenerator[DownloadEvent, None]:
        """Yield the image's events; the end means that the image is complete and verified.

        Raises:
            ImageFailed: the image cannot be downloaded; what was yielded of it is void.
        """
        started = time.monotonic()
        while True:
            self.attempts += 1
            self._backpressure_seconds = 0.0
            try:
                async with aclosing(self._attempt()) as events:
                    async for event in events:
                        yield event
            except AttemptFailed as error:
                pause_seconds = self._decide(error)
            else:
                self._metrics.image_duration.observe(time.monotonic() - started)
                return
            yield Interrupted()
            await asyncio.sleep(pause_seconds)

    def _decide(self, error: AttemptFailed) -> float:
        """Return the pause before the next attempt in seconds.

        Raises:
            ImageFailed: there is no next attempt.
        """
        reached = self._partial.count
        progress_bytes = reached - self._max_bytes_reached
        self._max_bytes_reached = max(reached, self._max_bytes_reached)
        if isinstance(error, PartialImageInvalid):
            self._partial = error.replacement
        threshold_seconds = self._policy.backpressure_seconds
        free = retry.is_free_retry(error.failure.reason, self._free_retries)
        self._free_retries += free
        consumed = not free and retry.consumes_attempt(progress_bytes, self._backpressure_seconds, threshold_seconds)
        pause_seconds = self._retries.pause_seconds(error, consumes_attempt=consumed)
        if pause_seconds is None:
            raise ImageFailed(error.failure) from error
        self._metrics.image_retries.labels(error.failure.reason.value).inc()
        log.info(
            "image.retried",
            image_id=self._image_id,
            reason=error.failure.reason.value,
            detail=error.failure.detail,
            attempt=self.attempts,
            received_bytes=self._partial.count,
            pause_seconds=round(pause_seconds, 3),
        )
        return pause_seconds

    async def _attempt(self) -> AsyncGenerator[DownloadEvent, None]:
        headers = {**self._headers, **range_headers(self._partial)}
        async with self._fetcher.get(self._url, headers, self._report_granted) as response:
            action = self._classify(response)
            if action is ResumeAction.BEGIN:
                chunk = await self._read_signature(response)
                yield self._open_copy(response, chunk)
            else:
                chunk = await self._skip_replay(response) if action is ResumeAction.REPLAY else b""
                self._record_resume(action)
            while chunk or (chunk := await response.read()):
                self._record_chunk(chunk)
                yielded = time.monotonic()
                yield chunk
                self._backpressure_seconds = max(self._backpressure_seconds, time.monotonic() - yielded)
                chunk = b""
            self._verify_end(response)

    def _report_granted(self) -> None:
        if self._on_granted is not None:
            self._on_granted()
            self._on_granted = None

    def _record_resume(self, action: ResumeAction) -> None:
        method = ResumeMethod.REPLAY if action is ResumeAction.REPLAY else ResumeMethod.RANGE
        self._metrics.image_resumes.labels(method.value).inc()
        log.info(
            "image.resumed",
            image_id=self._image_id,
            method=method.value,
            received_bytes=self._partial.count,
        )

    def _classify(self, response: Response) -> ResumeAction:
        """Decide what to do with the body, by the header alone."""
        status, headers = response.status, response.headers
        if not self._fetcher.is_api(response.url) and (rejected := retry.rejected_target_failure(status, headers)):
            raise rejected
        action = classify_response(self._partial, status, headers)
        if not response.content_type.startswith("image/"):
            detail = f"the upstream sent {response.content_type}, not an image"
            raise AttemptFailed(Failure(Reason.NOT_AN_IMAGE, detail, status))
        return action

    async def _read_signature(self, response: Response) -> bytes:
        """Read until the image format can be sniffed, or the body ends."""
        start = b""
        while len(start) < bytes_to_sniff(start) and (chunk := await response.read()):
            start += chunk
        return start

    def _open_copy(self, response: Response, start: bytes) -> Opened:
        """Verify the first bytes of a new copy, and forget the one before."""
        self._partial = PartialImage()
        image_format = sniff(start)
        if image_format is None:
            detail = "the first bytes are not those of an image"
            raise AttemptFailed(Failure(Reason.NOT_AN_IMAGE, detail, response.status))
        self._walker = new_walker(image_format, start)
        total = content_length(response.headers)
        self._partial = PartialImage(total=total, etag=strong_etag(response.headers))
        return Opened(image_format.extension, total)

    async def _skip_replay(self, response: Response) -> bytes:
        """Skip the bytes received before, and return those that follow in the same read."""
        missing, crc32 = self._partial.count, 0
        while missing and (chunk := await response.read()):
            prefix = chunk[:missing]
            crc32 = isal_zlib.crc32(prefix, crc32)
            missing -= len(prefix)
            if not missing and crc32 == self._partial.crc32:
                return chunk[len(prefix) :]
        failure = Failure(Reason.CONTENT_CHANGED, "the image is not the same as before the break", response.status)
        raise PartialImageInvalid(failure, PartialImage())

    def _record_chunk(self, chunk: bytes) -> None:
        partial = self._partial
        count = partial.count + len(chunk)
        if partial.total is not None and count > partial.total:
            failure = Failure(Reason.TOO_LONG, f"the body is longer than its declared {partial.total} bytes")
            raise PartialImageInvalid(failure, PartialImage())
        crc32 = isal_zlib.crc32(chunk, partial.crc32)
        # Not dataclasses.replace, which is measurably slow here, once for every chunk.
        self._partial = PartialImage(count, crc32, partial.total, partial.etag, partial.resumable)
        self._walker.feed(chunk)

    def _verify_end(self, response: Response) -> None:
        """Verify that a body that has ended without an error is the whole image.

        The end of a close-delimited body (RFC 9112 section 6.3, rule 8) proves nothing: then the file itself must
        show that it is complete. Where it can show that it is not, a length or a last chunk proves nothing either:
        the stored file may be truncated.

        Raises:
            AttemptFailed: it is not.
        """
        count, total = self._partial.count, self._partial.total
        if total is not None and count != total:
            failure = Failure(Reason.TRUNCATED, f"received {count} bytes instead of {total}")
            raise AttemptFailed(failure)
        ended = self._walker.has_ended()
        if ended is False or (ended is None and response.is_close_delimited):
            failure = Failure(Reason.TRUNCATED, "the image ends before its end marker")
            raise PartialImageInvalid(failure, PartialImage())
