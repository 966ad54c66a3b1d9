"""One archive from plan to last byte: what happens while an order streams.

::

    plan ──▶ read-ahead ──first bytes in hand──▶ begin() returns: the status can be sent
                 │
                 └─▶ lowest ready position ──▶ writer ──▶ pieces() ──▶ the caller's connection
                          (again and again)                 │
                                     report, manifest, central directory at the end

States: new, then ``begin`` (nothing was sent yet: every error is still an honest status), then ``pieces`` (bytes
are out: a failed image goes into the report, anything else breaks the connection), then finished.
"""

import asyncio
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

# Small parts that are at hand are sent together until they come to this: each write costs about 20 µs of the process.
PIECE_BYTES = 128 * 1024

PlannedSlot = Slot[PlannedImage]


class ImageSource(Protocol):
    """Where images come from; the upstream client in the service, a list of bytes in a test."""

    def open_image(self, image: Image, options: ImageOptions, granted: Callable[[], None]) -> Download:
        """Return the download of an image; it must not start before it is read.

        ``granted`` is to be called once, when the upstream agrees to deliver it.
        """
        ...


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """The bounds of one archive; the settings of the same names explain them."""

    images_in_flight: int
    read_ahead_bytes: int
    give_up_after: int


class _NoDownload:
    """Stands for an image that is known not to come, so that it is reported like one that failed."""

    attempts = 0

    def __init__(self, failure: Failure) -> None:
        self._failure = failure

    async def events(self) -> AsyncGenerator[DownloadEvent, None]:
        """Fail at once.

        Raises:
            ImageFailed
        """
        raise ImageFailed(self._failure)
        yield  # what makes it a generator


class ArchiveStream:
    """One archive being made. Use it as an async context manager: leaving it ends every download.

    ``count`` is told each image's outcome once, ``writing`` the position of each image whose entry begins, ``granted``
    each image that the upstream agrees to deliver, whatever becomes of it then. ``outcomes``
    holds them in the order in which they became certain. ``rollbacks`` counts the entries that were begun and left out,
    ``upstream_blocked_seconds`` the time in which there was nothing to write.
    """

    def __init__(
        self,
        plan: ArchivePlan,
        source: ImageSource,
        *,
        limits: StreamLimits,
        total_budget: MemoryBudget,
        connections: DownloadShare,
        describe: Callable[[Sequence[Outcome]], ReportContext],
        count: Callable[[Outcome], None],
        writing: Callable[[int], None] = lambda _position: None,
        granted: Callable[[Image], None] = lambda _image: None,
    ) -> None:
        self._plan = plan
        self._limits = limits
        self._describe = describe
        self._count = count
        self._writing = writing
        self._granted = granted
        self._writer = ArchiveWriter(plan.options.layout)
        self._source = source
        self._known_failures: dict[int, Failure] = {}
        self._total = plan.total
        self._given_up: str | None = None
        self._ahead = Prefetch(
            plan.wanted,
            self._open,
            in_flight=limits.images_in_flight,
            connections=connections,
            budgets=(MemoryBudget(limits.read_ahead_bytes), total_budget),
        )
        self._failures_in_row = 0
        self._begun = False
        self._first: PlannedSlot | None = None
        self._waiting_since: float | None = None
        self._unsent: list[bytes | memoryview] = []  # made, and to be handed out with what comes next
        self._unsent_bytes = 0
        self.outcomes: list[Outcome] = []
        self.rollbacks = 0
        self.upstream_blocked_seconds = 0.0

    async def __aenter__(self) -> Self:
        """Start the first downloads."""
        for outcome in self._plan.unavailable:
            self._record(outcome)
        await self._ahead.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every download."""
        self._wait_ends()  # where a wait was broken off
        await self._ahead.__aexit__(kind, error, trace)

    def keep_open(self) -> None:
        """Wait for the images that the plan awaits, and for others, until ``finish_adding``."""
        self._ahead.keep_open()

    def add(
        self, ready: Sequence[PlannedImage], failed: Sequence[tuple[PlannedImage, Failure]], *, appeared: int = 0
    ) -> None:
        """Take images that have become ready, and others that never will; ``appeared`` of them are not in the plan."""
        self._total += appeared
        self._known_failures |= {item.position: failure for item, failure in failed}
        self._ahead.add([*ready, *(item for item, _ in failed)])

    def finish_adding(self) -> None:
        """Every image has been added."""
        self._ahead.finish_adding()

    def _open(self, item: PlannedImage) -> Download:
        failure = self._known_failures.get(item.position)
        if failure is None and self._given_up is not None:
            failure = Failure(Reason.UPSTREAM_UNAVAILABLE, self._given_up)
        if failure is not None:
            return _NoDownload(failure)
        return self._source.open_image(item.image, self._plan.options.image, lambda: self._granted(item.image))

    @property
    def downloaded(self) -> int:
        """Number of images that are complete in the archive."""
        return sum(outcome.entry is not None for outcome in self.outcomes)

    @property
    def failed(self) -> int:
        """Number of images that are not in the archive, and never will be."""
        return len(self.outcomes) - self.downloaded

    @property
    def bytes_out(self) -> int:
        """Bytes of ZIP made so far."""
        return self._writer.bytes_out

    async def begin(self, deadline: float) -> None:
        """Wait until the first bytes of an image are in hand, or ``deadline`` by the event loop's clock.

        Raises:
            NoImagesAvailable: every image has failed, or one has and the caller wants all or nothing.
            FirstByteTimeout: the deadline has passed.
        """
        try:
            async with asyncio.timeout_at(deadline):
                self._first = await self._next_with_bytes()
        except TimeoutError:
            raise FirstByteTimeout("No image byte arrived in time.", self.outcomes) from None
        if self._first is None:
            raise NoImagesAvailable("Not one image of the order could be downloaded.", self.outcomes)
        self._begun = True

    async def pieces(self) -> AsyncGenerator[Parts, None]:
        """Yield the archive's bytes in order, after ``begin``: the parts of each piece want to be sent together.

        Raises:
            ArchiveAborted: an image failed and the caller wants all or nothing.
        """
        slot = self._first
        while slot is not None:
            async with aclosing(self._entry(slot)) as pieces:
                async for piece in pieces:
                    yield piece
            slot = self._ahead.next_nowait()
            if slot is None:
                if self._unsent:  # an image's end does not wait for the next one
                    yield self._piece()
                slot = await self._next()
        for ending in self._ending():
            self._put(ending)
            yield self._piece()

    def _put(self, *parts: bytes | memoryview) -> None:
        self._unsent += parts
        self._unsent_bytes += sum(map(len, parts))

    def _piece(self) -> Parts:
        """Return all that is unsent."""
        parts = tuple(self._unsent)
        self._unsent.clear()
        self._unsent_bytes = 0
        return parts

    async def _next_with_bytes(self) -> PlannedSlot | None:
        """Pass over what failed before its first byte."""
        while (slot := await self._next()) is not None and not slot.ready:
            async with aclosing(self._entry(slot)) as pieces:
                async for _ in pieces:
                    raise AssertionError("a failed image has no bytes")
        return slot

    async def _next(self) -> PlannedSlot | None:
        self._wait_begins()
        try:
            return await self._ahead.next()
        finally:
            self._wait_ends()

    def _wait_begins(self) -> None:
        self._waiting_since = time.monotonic()

    def _wait_ends(self) -> None:
        """Count the time since the wait began, if one has begun and was not counted."""
        if self._waiting_since is not None:
            self.upstream_blocked_seconds += time.monotonic() - self._waiting_since
            self._waiting_since = None

    async def _entry(self, slot: PlannedSlot) -> AsyncGenerator[Parts, None]:
        """Write one image, or roll it back and record why it is missing."""
        digest = None
        opened = False
        try:
            async with aclosing(slot.events()) as events:
                self._wait_begins()
                async for event in events:
                    self._wait_ends()
                    if isinstance(event, bytes):
                        self._write(event, digest)
                    elif isinstance(event, Opened):
                        if opened:
                            self._roll_back(slot, "a new copy begins")
                        opened = True
                        digest = self._open_entry(slot, event)
                    if self._unsent and (self._unsent_bytes >= PIECE_BYTES or not slot.has_buffered):
                        yield self._piece()
                    self._wait_begins()
            entry, end = self._writer.close_entry()
        except ImageFailed as error:
            failure = error.failure
        except EntrySizeMismatch as error:
            failure = Failure(error.reason, str(error))
        else:
            self._wait_ends()
            self._put(end)
            sha256 = digest.hexdigest() if digest is not None else None
            self._record(self._outcome(slot, entry=entry, sha256=sha256), slot.seconds)
            return
        self._wait_ends()
        if opened:
            self._roll_back(slot, failure.detail)
        self._record(self._outcome(slot, failure=failure), slot.seconds)

    def _open_entry(self, slot: PlannedSlot, opened: Opened) -> "hashlib._Hash | None":
        """Begin an entry; return what sums up its data, if that is asked for."""
        self._writing(slot.item.position)
        name = entry_name(slot.item.stem, opened.extension)
        self._put(self._writer.open_entry(name, opened.size))
        return hashlib.sha256() if self._plan.options.manifest is ManifestMode.ALWAYS else None

    def _write(self, chunk: bytes, digest: "hashlib._Hash | None") -> None:
        if digest is not None:
            digest.update(chunk)
        self._put(*self._writer.write(chunk))

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
        """Note one image's outcome, and draw the consequences of a failure; ``seconds`` is how long it was fetched."""
        self.outcomes.append(outcome)
        self._count(outcome)
        _log_outcome(outcome, seconds if outcome.attempts else None)
        if outcome.failure is None:
            self._failures_in_row = 0
            return
        if self._plan.options.on_error is OnError.ABORT:
            self._abort(outcome)
        against_upstream = outcome.failure.reason in UPSTREAM_REASONS
        self._failures_in_row = self._failures_in_row + 1 if against_upstream else 0
        if self._failures_in_row == self._limits.give_up_after:
            self._give_up()

    def _abort(self, outcome: Outcome) -> None:
        if not self._begun:
            raise NoImagesAvailable("An image failed, and on_error=abort asks for all or nothing.", self.outcomes)
        raise ImageMissing(f"image {outcome.image.image_id} failed, and on_error=abort asks for all or nothing")

    def _give_up(self) -> None:
        """Stop asking an upstream that keeps failing; what was not asked for is reported as such."""
        rest = self._ahead.give_up()
        log.warning("archive.upstream_abandoned", failures_in_row=self._failures_in_row, images_not_tried=len(rest))
        detail = f"not tried any more after {self._failures_in_row} failures of the upstream in a row"
        self._given_up = detail  # for those that are added later
        for item in rest:
            failure = self._known_failures.get(item.position) or Failure(Reason.UPSTREAM_UNAVAILABLE, detail)
            self._record(Outcome(item.position, item.image, attempts=0, failure=failure))

    def _ending(self) -> Iterator[bytes]:
        """Make the archive's last entries and its end.

        Raises:
            ArchiveAborted: an image is neither in the archive nor reported, which must never be.
        """
        if len(self.outcomes) != self._total:
            raise ArchiveAborted(f"only {len(self.outcomes)} of {self._total} images are accounted for")
        if self.failed or self._plan.options.manifest is ManifestMode.ALWAYS:
            context = self._describe(self.outcomes)
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
