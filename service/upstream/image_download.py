"""Carries out the download of one image: pushes what ``image_transfer`` accepts into a sink.

States, and what is owned meanwhile::

    new ──start──▶ fetching (a Fetch) ──complete──▶ ended
                      │   ▲
                      │   └──────────── pause over
                      └─ failed ─▶ backing off (a timer) ─┘ or, with no attempt left ─▶ ended

There is no task and no buffer: a chunk is handed on in the callback that brings it, and a sink that has enough of them
pauses the download, which stops the upstream by TCP.
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from service.errors import ImageFailed
from service.model import Failure, Opened, ResumeMethod
from service.monitoring.metrics import Metrics
from service.upstream.http.fetch import Fetch, FetchSink
from service.upstream.http.response_reader import ResponseStarted
from service.upstream.image_transfer import DownloadPolicy, ImageTransfer
from service.upstream.retry import AttemptFailed

StartFetch = Callable[[Mapping[str, str], FetchSink, Callable[[], None] | None], Fetch]


class ImageSink(Protocol):
    """Takes one image as it comes. The calls come from the event loop; exactly one of the last three ends it."""

    def image_opened(self, opened: Opened) -> None:
        """Take the start of a copy, its first bytes verified; it makes every byte before it void."""
        ...

    def image_received(self, chunk: bytes, crc32: int) -> None:
        """Take the next bytes of the copy; ``crc32`` is that of the copy up to and including them."""
        ...

    def image_interrupted(self, failure: Failure) -> None:
        """Take the end of an attempt; another follows."""
        ...

    def image_completed(self, size: int, crc32: int) -> None:
        """Take the end of the image: complete, verified, with this size in bytes and CRC-32."""
        ...

    def image_failed(self, failure: Failure) -> None:
        """Take the final failure: what was received is void."""
        ...

    def image_crashed(self, error: BaseException) -> None:
        """Take a fault of the service itself."""
        ...


class ImageDownload:
    """One image of the upstream; ``start`` it once. It is the sink of its fetches."""

    def __init__(
        self,
        start_fetch: StartFetch,
        policy: DownloadPolicy,
        sink: ImageSink,
        *,
        image_id: str,
        granted: Callable[[], None] | None,
        metrics: Metrics,
        log: FilteringBoundLogger,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._start_fetch = start_fetch
        self._transfer = ImageTransfer(policy)
        self._sink = sink
        self._image_id = image_id
        self._granted = granted
        self._metrics = metrics
        self._log = log
        self._loop = loop
        self._fetch: Fetch | None = None
        self._backoff: asyncio.TimerHandle | None = None
        self._started_at = 0.0

    @property
    def attempts(self) -> int:
        """How many requests were made for the image at the API."""
        return self._transfer.attempts

    def start(self) -> None:
        """Begin the first attempt."""
        self._started_at = self._loop.time()
        self._start_attempt()

    def pause(self) -> None:
        """Stop reading until ``resume``. An attempt that begins meanwhile reads until it is paused again."""
        if self._fetch is not None:
            self._fetch.pause()

    def resume(self) -> None:
        """Go on reading."""
        if self._fetch is not None:
            self._fetch.resume()

    def abort(self) -> None:
        """End the download now; the sink hears nothing more."""
        if self._backoff is not None:
            self._backoff.cancel()
            self._backoff = None
        if self._fetch is not None:
            self._fetch.abort()
            self._fetch = None

    def _start_attempt(self) -> None:
        self._backoff = None
        self._fetch = self._start_fetch(self._transfer.start_attempt(), self, self._note_granted)

    def _note_granted(self) -> None:
        granted, self._granted = self._granted, None
        if granted is not None:
            granted()

    # fetch.FetchSink

    def response_started(self, response: ResponseStarted, *, from_api: bool) -> None:
        """Judge status and headers."""
        method = self._transfer.receive_headers(
            response.status, response.headers, from_api=from_api, has_framing=response.has_framing
        )
        if method is not None:
            self._note_resumed(method)

    def body_received(self, chunk: bytes) -> None:
        """Hand on what is accepted."""
        for event in self._transfer.receive_body(chunk):
            self._hand_on(event)

    def response_ended(self) -> None:
        """Verify the image."""
        for event in self._transfer.receive_end():
            self._hand_on(event)
        self._fetch = None
        self._metrics.image_duration.observe(self._loop.time() - self._started_at)
        partial = self._transfer.partial
        self._sink.image_completed(partial.count, partial.crc32)

    def fetch_failed(self, error: AttemptFailed) -> None:
        """Try again after a pause, or fail."""
        paused_seconds = self._fetch.longest_pause_seconds if self._fetch is not None else 0.0
        self._fetch = None
        try:
            pause_seconds = self._transfer.fail_attempt(error, paused_seconds=paused_seconds, chance=random.random())
        except ImageFailed as failed:
            self._sink.image_failed(failed.failure)
            return
        self._metrics.image_retries.labels(error.failure.reason.value).inc()
        self._log.info(
            "image.retried",
            image_id=self._image_id,
            reason=error.failure.reason.value,
            detail=error.failure.detail,
            attempt=self.attempts,
            received_bytes=self._transfer.partial.count,
            pause_seconds=round(pause_seconds, 3),
        )
        self._backoff = self._loop.call_later(pause_seconds, self._start_attempt)
        self._sink.image_interrupted(error.failure)

    def fetch_crashed(self, error: BaseException) -> None:
        """Hand a fault of the service on."""
        self._fetch = None
        self._sink.image_crashed(error)

    def _hand_on(self, event: Opened | bytes) -> None:
        if isinstance(event, bytes):
            self._sink.image_received(event, self._transfer.partial.crc32)
        else:
            self._sink.image_opened(event)

    def _note_resumed(self, method: ResumeMethod) -> None:
        self._metrics.image_resumes.labels(method.value).inc()
        received_bytes = self._transfer.partial.count
        self._log.info("image.resumed", image_id=self._image_id, method=method.value, received_bytes=received_bytes)
