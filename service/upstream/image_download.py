"""One image as a stream of events: carries out what ``rules`` decides.

Ownership: an ``ImageDownload`` is iterated by one task at a time (the read-ahead's fetch task), which owns its
connection and its timers; both live only inside ``_attempt``. It holds no buffer: a chunk is handed on before the
next one is read, so a reader that stops taking chunks stops the upstream by TCP. Between two attempts it holds
nothing but ``PartialImage``: how much of the copy was handed on, and its CRC-32.
"""

import asyncio
import random
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
from service.upstream.http.http1 import Exchange
from service.upstream.image_formats import bytes_to_sniff, sniff
from service.upstream.image_walkers import Walker, new_walker
from service.upstream.retry import Answer, AttemptFailed, PartialImage

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DownloadPolicy:
    """How hard one image is tried: ``attempts`` in all, the first included.

    A break after ``backpressure_seconds`` without reading uses up none of them, see ``retry.consumes_attempt``.
    """

    attempts: int
    backpressure_seconds: float = retry.BACKPRESSURE_SECONDS


class ImageDownload:
    """One image of the upstream; read its ``events`` once. ``attempts`` counts the requests made for it."""

    def __init__(
        self,
        transport: Fetcher,
        url: URL,
        headers: Mapping[str, str],
        policy: DownloadPolicy,
        *,
        image_id: str,
        metrics: Metrics,
        granted: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._url = url
        self._headers = headers
        self._policy = policy
        self._metrics = metrics
        self._image_id = image_id
        self._tell_granted: Callable[[], None] | None = granted
        self._received = PartialImage()
        self._walker = Walker()  # of the copy that was opened last
        self._tries = 0  # the attempts that count
        self._refusals = 0  # answers of 429 that did not
        self._furthest = 0  # bytes of the image that the best attempt so far has reached
        self._held_back_seconds = 0.0
        self.attempts = 0

    async def events(self) -> AsyncGenerator[DownloadEvent, None]:
        """Yield the image's events; the end means that the image is complete and verified.

        Raises:
            ImageFailed: the image cannot be had; what was yielded of it is void.
        """
        started = time.monotonic()
        while True:
            self.attempts += 1
            self._held_back_seconds = 0.0
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
        """Return how long to wait before the next attempt, or raise that there is none."""
        reached = self._received.count
        progress_bytes, self._furthest = reached - self._furthest, max(reached, self._furthest)
        if error.received is not None:
            self._received = error.received
        threshold_seconds = self._policy.backpressure_seconds
        if retry.is_free_retry(error.failure.reason, self._refusals):
            self._refusals += 1
        elif retry.consumes_attempt(progress_bytes, self._held_back_seconds, threshold_seconds):
            self._tries += 1
        if not error.retryable or self._tries >= self._policy.attempts:
            raise ImageFailed(error.failure) from error
        pause_seconds = retry.backoff_seconds(max(1, self._tries), error.retry_after_seconds, random.random())
        self._metrics.image_retries.labels(error.failure.reason.value).inc()
        log.info(
            "image.retried",
            image_id=self._image_id,
            reason=error.failure.reason.value,
            detail=error.failure.detail,
            attempt=self.attempts,
            received_bytes=self._received.count,
            pause_seconds=round(pause_seconds, 3),
        )
        return pause_seconds

    async def _attempt(self) -> AsyncGenerator[DownloadEvent, None]:
        asked = {**self._headers, **retry.request_headers(self._received)}
        async with self._transport.get(self._url, asked, self._note_granted) as response:
            answer = self._read_answer(response)
            if answer is Answer.FRESH:
                chunk = await self._read_head(response)
                yield self._open_copy(response, chunk)
            else:
                chunk = await self._skip_received(response) if answer is Answer.REPLAY else b""
                self._note_resume(answer)
            while chunk or (chunk := await response.read()):
                self._count(chunk)
                handed_over = time.monotonic()
                yield chunk
                self._held_back_seconds = max(self._held_back_seconds, time.monotonic() - handed_over)
                chunk = b""
            self._verify_end(response)

    def _note_granted(self) -> None:
        if self._tell_granted is not None:
            self._tell_granted()
            self._tell_granted = None

    def _note_resume(self, answer: Answer) -> None:
        method = ResumeMethod.REPLAY if answer is Answer.REPLAY else ResumeMethod.RANGE
        self._metrics.image_resumes.labels(method.value).inc()
        log.info(
            "image.resumed",
            image_id=self._image_id,
            method=method.value,
            received_bytes=self._received.count,
        )

    def _read_answer(self, response: Exchange) -> Answer:
        """Decide what the answer is worth before any of its body is read."""
        status, headers = response.status, response.headers
        if not self._transport.is_api(response.url) and (refused := retry.rejected_target_failure(status, headers)):
            raise refused
        answer = retry.read_answer(self._received, status, headers)
        if not response.content_type.startswith("image/"):
            detail = f"the upstream sent {response.content_type}, not an image"
            raise AttemptFailed(Failure(Reason.NOT_AN_IMAGE, detail, status))
        return answer

    async def _read_head(self, response: Exchange) -> bytes:
        """Read until the format can be told, or the body ends."""
        head = b""
        while len(head) < bytes_to_sniff(head) and (chunk := await response.read()):
            head += chunk
        return head

    def _open_copy(self, response: Exchange, head: bytes) -> Opened:
        """Verify what a new copy starts with and forget the one before."""
        self._received = PartialImage()
        image_format = sniff(head)
        if image_format is None:
            detail = "the first bytes are not those of an image"
            raise AttemptFailed(Failure(Reason.NOT_AN_IMAGE, detail, response.status))
        self._walker = new_walker(image_format, head)
        total = retry.content_length(response.headers)
        self._received = PartialImage(total=total, etag=retry.strong_etag(response.headers))
        return Opened(image_format.extension, total)

    async def _skip_received(self, response: Exchange) -> bytes:
        """Read past what is already in hand, and return what came with its last bytes."""
        missing, crc32 = self._received.count, 0
        while missing and (chunk := await response.read()):
            prefix = chunk[:missing]
            crc32 = isal_zlib.crc32(prefix, crc32)
            missing -= len(prefix)
            if not missing and crc32 == self._received.crc32:
                return chunk[len(prefix) :]
        failure = Failure(Reason.CONTENT_CHANGED, "the image is not the same as before the break", response.status)
        raise AttemptFailed(failure, received=PartialImage())

    def _count(self, chunk: bytes) -> None:
        received = self._received
        count = received.count + len(chunk)
        if received.total is not None and count > received.total:
            failure = Failure(Reason.TOO_LONG, f"more bytes came than the {received.total} promised")
            raise AttemptFailed(failure, received=PartialImage())
        crc32 = isal_zlib.crc32(chunk, received.crc32)
        # Not dataclasses.replace, which is slow enough to be seen here, once for every chunk.
        self._received = PartialImage(count, crc32, received.total, received.etag, received.resumable)
        self._walker.feed(chunk)

    def _verify_end(self, response: Exchange) -> None:
        """The body has ended without an error: it is the whole image only if nothing speaks against it.

        A body with neither length nor chunked coding ends when the connection does (RFC 9112 section 6.3, rule 8),
        which proves nothing: then the file itself must show that it is complete. Where it can show that it is not, a
        length or a last chunk proves nothing either: what is stored may be cut off.
        """
        count, total = self._received.count, self._received.total
        if total is not None and count != total:
            failure = Failure(Reason.TRUNCATED, f"{count} bytes came instead of {total}")
            raise AttemptFailed(failure)
        ended = self._walker.has_ended()
        if ended is False or (ended is None and not response.framed):
            failure = Failure(Reason.TRUNCATED, "the image is cut off before its end")
            raise AttemptFailed(failure, received=PartialImage())
