"""One archive from plan to last byte.

::

    plan ──▶ prefetch ──first bytes buffered──▶ wait_first_byte() returns: the status can be sent
                 │
                 └─▶ lowest ready position ──▶ writer ──▶ chunks() ──▶ the response
                            (repeated)                      │
                                     report, manifest, central directory at the end

States: new, then ``wait_first_byte`` (nothing was sent yet: every error still becomes a status), then ``chunks`` (bytes
are sent: a failed image goes into the report, anything else aborts the response), then finished.
"""

import asyncio
import functools
import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import structlog

from service.archive.naming import entry_name
from service.archive.parameters import ManifestMode, OnError
from service.archive.plan import ArchivePlan, PlannedImage
from service.archive.report import MANIFEST_NAME, REPORT_NAME, ReportContext, manifest_json, report_text
from service.archive.writer import ArchiveWriter, EntrySizeMismatch, Parts
from service.errors import ArchiveAborted, FirstByteTimeout, ImageFailed, ImageMissing, NoImagesAvailable
from service.model import UPSTREAM_REASONS, DownloadEvent, Entry, Failure, Image, ImageOptions, Opened, Outcome, Reason
from service.streaming.budgets import DownloadShare, MemoryBudget
from service.streaming.prefetch import Download, Prefetch, Slot

log = structlog.get_logger(__name__)

PlannedSlot = Slot[PlannedImage]


class ImageSource(Protocol):
    """Opens downloads of images: the upstream client in the service, scripted ones in tests."""

    def open_image(self, image: Image, options: ImageOptions, granted: Callable[[], None]) -> Download:
        """Return the download of an image; it must not start before its events are read.

        It calls ``granted`` once, when the upstream agrees to deliver the image.
        """
        ...


class ArchiveObserver(Protocol):
    """Receives the events of one archive, in the order in which they happen."""

    def image_granted(self, image: Image) -> None:
        """Handle that the upstream agrees to deliver an image; it may still fail."""
        ...

    def entry_opened(self, position: int) -> None:
        """Handle that the entry of the image at ``position`` begins; again after a roll-back."""
        ...

    def image_finished(self, outcome: Outcome) -> None:
        """Handle the outcome of an image, once for each image."""
        ...


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Limits of one archive; the settings of the same names explain them."""

    images_in_flight: int
    read_ahead_bytes: int
    give_up_after: int


class _FailedDownload:
    """A download that fails immediately with a known reason."""

    attempts = 0

    def __init__(self, failure: Failure) -> None:
        self._failure = failure

    async def events(self) -> AsyncGenerator[DownloadEvent, None]:
        """Fail immediately.

        Raises:
            ImageFailed
        """
        raise ImageFailed(self._failure)
        yield  # makes it a generator


class ArchiveStream:
    """Streams one archive. Use it as an async context manager: its end ends every download.

    ``report_context`` returns what report and manifest say besides the outcomes.

    ``outcomes`` lists the images' outcomes in the order in which they became certain. ``rollbacks`` counts the entries
    that were opened and left out, ``upstream_blocked_seconds`` the time in which there was nothing to write.
    """

    def __init__(
        self,
        plan: ArchivePlan,
        source: ImageSource,
        *,
        limits: StreamLimits,
        total_budget: MemoryBudget,
        download_share: DownloadShare,
        observer: ArchiveObserver,
        report_context: Callable[[Sequence[Outcome]], ReportContext],
    ) -> None:
        self._plan = plan
        self._limits = limits
        self._observer = observer
        self._report_context = report_context
        self._writer = ArchiveWriter(plan.options.layout)
        self._source = source
        self._known_failures: dict[int, Failure] = {}
        self._total = plan.total
        self._abandoned_because: str | None = None
        self._prefetch = Prefetch(
            plan.ready,
            self._open,
            in_flight=limits.images_in_flight,
            share=download_share,
            budgets=(MemoryBudget(limits.read_ahead_bytes), total_budget),
        )
        self._failures_in_row = 0
        self._sending = False
        self._first: PlannedSlot | None = None
        self._waiting_since: float | None = None
        self.outcomes: list[Outcome] = []
        self.rollbacks = 0
        self.upstream_blocked_seconds = 0.0

    async def __aenter__(self) -> Self:
        """Start the first downloads."""
        for outcome in self._plan.failures:
            self._record(outcome)
        await self._prefetch.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every download."""
        self._end_wait()  # if a wait was cancelled
        await self._prefetch.__aexit__(kind, error, trace)

    def keep_open(self) -> None:
        """Keep the archive open for further images until ``finish_adding``."""
        self._prefetch.keep_open()

    def add(
        self, ready: Sequence[PlannedImage], failed: Sequence[tuple[PlannedImage, Failure]], *, appeared: int = 0
    ) -> None:
        """Add images that have become ready, and failed ones; ``appeared`` of them are not in the plan."""
        self._total += appeared
        self._known_failures |= {item.position: failure for item, failure in failed}
        self._prefetch.add([*ready, *(item for item, _ in failed)])

    def finish_adding(self) -> None:
        """Declare the list of images complete."""
        self._prefetch.finish_adding()

    def _open(self, item: PlannedImage) -> Download:
        failure = self._known_failures.get(item.position)
        if failure is None and self._abandoned_because is not None:
            failure = Failure(Reason.UPSTREAM_UNAVAILABLE, self._abandoned_because)
        if failure is not None:
            return _FailedDownload(failure)
        granted = functools.partial(self._observer.image_granted, item.image)
        return self._source.open_image(item.image, self._plan.options.image, granted)

    @property
    def downloaded(self) -> int:
        """Number of images that are complete in the archive."""
        return sum(outcome.entry is not None for outcome in self.outcomes)

    @property
    def failed(self) -> int:
        """Number of images that are not in the archive and will not be."""
        return len(self.outcomes) - self.downloaded

    @property
    def bytes_out(self) -> int:
        """Size of the archive so far, in bytes."""
        return self._writer.bytes_out

    async def wait_first_byte(self, deadline: float) -> None:
        """Wait until the first bytes of an image are buffered, or ``deadline`` by the event loop's clock.

        Raises:
            NoImagesAvailable: every image has failed, or one has with ``on_error=abort``.
            FirstByteTimeout: the deadline has passed.
        """
        try:
            async with asyncio.timeout_at(deadline):
                self._first = await self._skip_failed()
        except TimeoutError:
            raise FirstByteTimeout("No image byte arrived in time.", self.outcomes) from None
        if self._first is None:
            raise NoImagesAvailable("Not one image of the order could be downloaded.", self.outcomes)
        self._sending = True

    async def chunks(self) -> AsyncGenerator[Parts, None]:
        """Yield the archive's bytes in order, after ``wait_first_byte``; the parts of a chunk belong together.

        Raises:
            ArchiveAborted: an image failed with ``on_error=abort``.
        """
        slot = self._first
        while slot is not None:
            async with aclosing(self._entry(slot)) as chunks:
                async for chunk in chunks:
                    yield chunk
            slot = await self._next()
        for ending in self._ending():
            yield (ending,)

    async def _skip_failed(self) -> PlannedSlot | None:
        """Return the first slot with bytes; record those that failed before their first byte."""
        while (slot := await self._next()) is not None and not slot.ready:
            async with aclosing(self._entry(slot)) as chunks:
                async for _ in chunks:
                    raise AssertionError("a failed image has no bytes")
        return slot

    async def _next(self) -> PlannedSlot | None:
        self._begin_wait()
        try:
            return await self._prefetch.next()
        finally:
            self._end_wait()

    def _begin_wait(self) -> None:
        self._waiting_since = time.monotonic()

    def _end_wait(self) -> None:
        """Count the time since the wait began, if one has begun and was not counted yet."""
        if self._waiting_since is not None:
            self.upstream_blocked_seconds += time.monotonic() - self._waiting_since
            self._waiting_since = None

    async def _entry(self, slot: PlannedSlot) -> AsyncGenerator[Parts, None]:
        """Write one image, or roll it back and record why it is missing."""
        digest = None
        opened = False
        try:
            async with aclosing(slot.events()) as events:
                self._begin_wait()
                async for event in events:
                    self._end_wait()
                    if isinstance(event, bytes):
                        if digest is not None:
                            digest.update(event)
                        yield self._writer.write(event)
                    elif isinstance(event, Opened):
                        if opened:
                            self._roll_back(slot, "a new copy begins")
                        opened = True
                        digest = self._new_digest()
                        yield (self._open_entry(slot, event),)
                    self._begin_wait()
            entry, end = self._writer.close_entry()
        except ImageFailed as error:
            failure = error.failure
        except EntrySizeMismatch as error:
            failure = Failure(error.reason, str(error))
        else:
            self._end_wait()
            sha256 = digest.hexdigest() if digest is not None else None
            self._record(self._outcome(slot, entry=entry, sha256=sha256), slot.seconds)
            yield (end,)
            return
        self._end_wait()
        if opened:
            self._roll_back(slot, failure.detail)
        self._record(self._outcome(slot, failure=failure), slot.seconds)

    def _new_digest(self) -> "hashlib._Hash | None":
        return hashlib.sha256() if self._plan.options.manifest is ManifestMode.ALWAYS else None

    def _open_entry(self, slot: PlannedSlot, opened: Opened) -> bytes:
        self._observer.entry_opened(slot.item.position)
        return self._writer.open_entry(entry_name(slot.item.stem, opened.extension), opened.size)

    def _roll_back(self, slot: PlannedSlot, why: str) -> None:
        self._writer.roll_back()
        self.rollbacks += 1
        log.info("image.rolled_back", image_id=slot.item.image.image_id, detail=why)

    def _outcome(
        self,
        slot: PlannedSlot,
        *,
        entry: Entry | None = None,
        failure: Failure | None = None,
        sha256: str | None = None,
    ) -> Outcome:
        return Outcome(slot.item.position, slot.item.image, slot.download.attempts, entry, failure, sha256)

    def _record(self, outcome: Outcome, seconds: float | None = None) -> None:
        """Record an image's outcome and react to a failure; ``seconds`` is the duration of its download."""
        self.outcomes.append(outcome)
        self._observer.image_finished(outcome)
        _log_outcome(outcome, seconds if outcome.attempts else None)
        if outcome.failure is None:
            self._failures_in_row = 0
            return
        if self._plan.options.on_error is OnError.ABORT:
            self._abort(outcome)
        is_upstream_failure = outcome.failure.reason in UPSTREAM_REASONS
        self._failures_in_row = self._failures_in_row + 1 if is_upstream_failure else 0
        if self._failures_in_row == self._limits.give_up_after:
            self._abandon_upstream()

    def _abort(self, outcome: Outcome) -> None:
        if not self._sending:
            raise NoImagesAvailable("An image failed, and on_error=abort requires every image.", self.outcomes)
        raise ImageMissing(f"image {outcome.image.image_id} failed, and on_error=abort requires every image")

    def _abandon_upstream(self) -> None:
        """Start no more downloads from an upstream that keeps failing; report their images as not tried."""
        rest = self._prefetch.give_up()
        log.warning("archive.upstream_abandoned", failures_in_row=self._failures_in_row, images_not_tried=len(rest))
        detail = f"not tried after {self._failures_in_row} consecutive upstream failures"
        self._abandoned_because = detail  # for images that are added later
        for item in rest:
            failure = self._known_failures.get(item.position) or Failure(Reason.UPSTREAM_UNAVAILABLE, detail)
            self._record(Outcome(item.position, item.image, attempts=0, failure=failure))

    def _ending(self) -> Iterator[bytes]:
        """Yield the archive's last entries and its central directory.

        Raises:
            ArchiveAborted: an image is neither in the archive nor reported, which is a bug.
        """
        if len(self.outcomes) != self._total:
            raise ArchiveAborted(f"only {len(self.outcomes)} of {self._total} images are accounted for")
        if self.failed or self._plan.options.manifest is ManifestMode.ALWAYS:
            context = self._report_context(self.outcomes)
            yield self._writer.add(REPORT_NAME, report_text(context, self.outcomes).encode())
            yield self._writer.add(MANIFEST_NAME, manifest_json(context, self.outcomes))
        yield from self._writer.finish()


def _log_outcome(outcome: Outcome, seconds: float | None) -> None:
    facts = {
        "image_id": outcome.image.image_id,
        "position": outcome.position,
        "attempts": outcome.attempts,
        "seconds": None if seconds is None else round(seconds, 3),
    }
    if outcome.entry is not None:
        log.info("image.downloaded", **facts, bytes=outcome.entry.size, entry=outcome.entry.name)
    elif outcome.failure is not None:
        failure = outcome.failure
        status = failure.upstream_status
        log.warning("image.failed", **facts, reason=failure.reason.value, detail=failure.detail, upstream_status=status)
