"""One archive from plan to last byte: what happens while an order streams. No tasks, no HTTP.

::

    plan ──▶ prefetch ──first bytes buffered──▶ wait_first_byte returns: the status can be sent
                 │
                 └─▶ lowest ready position ──▶ ZIP writer ──▶ output: the client's connection
                          (again and again)          │
                                     report, manifest, central directory at the end

States::

    new ──start──▶ prefetching ──run──▶ writing ──▶ ending ──▶ done
      nothing was sent: every error         bytes are out: a failed image goes into the report,
      is still an honest status             anything else aborts the connection

The pump moves what is buffered to the output. Whatever changes schedules it, once: bytes, ends, room at the output. It
stops when nothing is buffered, or when the output has enough. Nothing is awaited for a chunk; the client's request
handler awaits the first byte, and then the end.
"""

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from service.archive.naming import entry_name
from service.archive.parameters import ManifestMode, OnError
from service.archive.plan import ArchivePlan, PlannedImage
from service.archive.report import MANIFEST_NAME, REPORT_NAME, ReportContext, manifest_json, report_text
from service.archive.writer import ArchiveWriter, EntrySizeMismatch, Parts
from service.errors import ArchiveAborted, FirstByteTimeout, ImageMissing, NoImagesAvailable
from service.model import UPSTREAM_REASONS, Entry, Failure, Image, Opened, Outcome, Reason
from service.streaming.budgets import DownloadShare, MemoryBudget
from service.streaming.prefetch import Download, Prefetch, Slot
from service.streaming.window import DownloadWindow

log = structlog.get_logger(__name__)

PlannedSlot = Slot[PlannedImage]


class ImageSource(Protocol):
    """Where images come from: the upstream in the service, a list of bytes in a test."""

    def download(self, image_id: str, sink: PlannedSlot, granted: Callable[[], None] | None = None) -> Download:
        """Return the download of an image into a sink; it must not begin before its ``start``.

        ``granted`` is to be called once, when the upstream agrees to deliver it.
        """
        ...


class ArchiveOutput(Protocol):
    """Where the archive goes: a response in the service."""

    def send(self, parts: Parts) -> bool:
        """Send bytes, or gather them; return whether more may follow now. If not, ``on_writable`` is called later.

        Raises:
            ConnectionResetError: the client has gone.
        """
        ...

    def flush(self) -> None:
        """Send what was gathered.

        Raises:
            ConnectionResetError: the client has gone.
        """
        ...

    def attach(self, on_writable: Callable[[], None], on_failed: Callable[[BaseException], None]) -> None:
        """Set the callbacks: more may be written; nothing can be written any more."""
        ...


class ArchiveObserver(Protocol):
    """Receives the events of one archive, in the order in which they happen."""

    def entry_opened(self, position: int) -> None:
        """Handle that the entry of the image at ``position`` begins; again after a roll-back."""
        ...

    def image_granted(self, image: Image) -> None:
        """Handle that the upstream agrees to deliver an image; it may still fail."""
        ...

    def image_finished(self, outcome: Outcome) -> None:
        """Handle the outcome of an image, once for each image."""
        ...


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """The bounds of one archive; the settings of the same names explain them."""

    images_in_flight: int
    max_images_in_flight: int
    read_ahead_bytes: int
    give_up_after: int


class ArchiveStream:
    """One archive being made. ``close`` it, however it ended: that ends every download.

    ``outcomes`` holds the images' outcomes in the order in which they became certain. ``rollbacks`` counts the entries
    that were begun and left out, ``upstream_blocked_seconds`` the time in which there was nothing to write.
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
        self._loop = asyncio.get_running_loop()
        self._plan = plan
        self._source = source
        self._limits = limits
        self._observer = observer
        self._report_context = report_context
        # Callbacks of connections run outside of the request's context: its fields are bound here.
        self._log = log.bind(**structlog.contextvars.get_contextvars())
        self._writer = ArchiveWriter(plan.options.layout)
        self._prefetch: Prefetch[PlannedImage] = Prefetch(
            plan.ready,
            self._start_download,
            window=DownloadWindow(limits.images_in_flight, limits.max_images_in_flight),
            share=download_share,
            budgets=(MemoryBudget(limits.read_ahead_bytes), total_budget),
            on_change=self._schedule_pump,
            is_starved=lambda: self._starved_since is not None,
        )
        self._known_failures: dict[int, Failure] = {}
        self._total = plan.total
        self._abandoned: str | None = None
        self._failures_in_row = 0
        self._output: ArchiveOutput | None = None
        self._head: PlannedSlot | None = None
        self._has_open_entry = False
        self._digest: hashlib._Hash | None = None
        self._ending: Iterator[bytes] | None = None
        self._pump_handle: asyncio.Handle | None = None
        self._is_blocked = False  # the output has enough
        self._is_stopped = False
        self._first_byte: asyncio.Future[None] = self._loop.create_future()
        self._finished: asyncio.Future[None] = self._loop.create_future()
        self._starved_since: float | None = None
        self.outcomes: list[Outcome] = []
        self.downloaded = 0
        self.rollbacks = 0
        self.upstream_blocked_seconds = 0.0

    @property
    def failed(self) -> int:
        """Number of images that are not in the archive, and never will be."""
        return len(self.outcomes) - self.downloaded

    @property
    def _has_begun(self) -> bool:
        """Whether a status can be sent, or has been: no error is one any more."""
        return self._first_byte.done()

    @property
    def bytes_out(self) -> int:
        """Bytes of ZIP made so far."""
        return self._writer.bytes_out

    def start(self) -> None:
        """Start the first downloads.

        Raises:
            NoImagesAvailable: an image is known to fail, and the client requires all or nothing.
        """
        for outcome in self._plan.failures:
            self._record(outcome)
        self._starved_since = self._loop.time()
        self._prefetch.start()
        self._schedule_pump()

    def close(self) -> None:
        """End every download, and return what they hold."""
        self._stop_pump()
        self._set_starved(starved=False)
        self._prefetch.close()  # before the head is released, which would start the next download
        self._release_head()
        for awaited in (self._first_byte, self._finished):
            if not awaited.cancel() and not awaited.cancelled():
                awaited.exception()  # it was raised, or something else was: asyncio need not log it

    def keep_open(self) -> None:
        """Expect the images that the plan awaits, and others, until ``finish_adding``."""
        self._prefetch.keep_open()

    def add(
        self, ready: Sequence[PlannedImage], failed: Sequence[tuple[PlannedImage, Failure]], *, appeared: int = 0
    ) -> None:
        """Add images that have become ready, and others that never will; ``appeared`` of them are not in the plan."""
        self._total += appeared
        self._known_failures |= {item.position: failure for item, failure in failed}
        self._prefetch.add([*ready, *(item for item, _ in failed)])

    def finish_adding(self) -> None:
        """Expect no further images."""
        self._prefetch.finish_adding()

    async def wait_first_byte(self, deadline: float) -> None:
        """Wait until the first bytes of an image are buffered, or ``deadline`` by the event loop's clock.

        Raises:
            NoImagesAvailable: every image has failed, or one has and the client requires all or nothing.
            FirstByteTimeout: the deadline has passed.
        """
        try:
            async with asyncio.timeout_at(deadline):
                await self._first_byte
        except TimeoutError:
            raise FirstByteTimeout("No image byte arrived in time.", self.outcomes) from None

    async def run(self, output: ArchiveOutput) -> None:
        """Write the archive, after ``wait_first_byte``; return when its last byte was written.

        Raises:
            ArchiveAborted: it cannot be finished truthfully, or an image failed and the client requires all or nothing.
            ConnectionResetError: the client has gone.
        """
        self._output = output
        output.attach(self._on_writable, self._fail)
        self._schedule_pump()
        await self._finished

    # The pump

    def _schedule_pump(self) -> None:
        if self._pump_handle is None and not self._is_stopped:
            self._pump_handle = self._loop.call_soon(self._pump)

    def _stop_pump(self) -> None:
        self._is_stopped = True
        if self._pump_handle is not None:
            self._pump_handle.cancel()
            self._pump_handle = None

    def _on_writable(self) -> None:
        self._is_blocked = False
        self._schedule_pump()

    def _pump(self) -> None:
        """Move what is buffered to the output, until nothing is or the output has enough."""
        self._pump_handle = None
        try:
            self._advance()
            if self._output is not None:
                self._output.flush()
        except Exception as error:  # noqa: BLE001 - raised where the archive is awaited
            self._fail(error)
        has_work = self._is_blocked or self._finished.done() or (self._head is not None and self._head.has_buffered)
        self._set_starved(starved=not has_work)

    def _advance(self) -> None:
        """Write as much as can be."""
        while not self._is_blocked:
            head = self._head or self._claim_next()
            if head is None:
                if self._prefetch.is_exhausted:
                    self._end()
                return
            if self._output is None and not self._has_failed(head):
                # The first byte of an image: now a status can be sent, and an output comes.
                if not self._first_byte.done():
                    self._first_byte.set_result(None)
                return
            if not self._write_head(head):
                return

    def _claim_next(self) -> PlannedSlot | None:
        self._head = self._prefetch.claim_next()
        return self._head

    @staticmethod
    def _has_failed(slot: PlannedSlot) -> bool:
        return slot.failure is not None or slot.error is not None

    def _write_head(self, slot: PlannedSlot) -> bool:
        """Write what the head has buffered; return whether it has ended, or the output has enough."""
        try:
            while slot.has_buffered:
                opened = slot.take_opened()
                if opened is not None:
                    self._open_entry(slot, opened)
                taken = slot.take_chunk()
                if taken is not None and not self._write_chunk(*taken):
                    return True
            if not slot.is_ended:
                return False
            if slot.error is not None:
                raise slot.error
            self._close_entry(slot)
        except EntrySizeMismatch as mismatch:
            self._fail_entry(slot, Failure(mismatch.reason, str(mismatch)))
        return True

    def _open_entry(self, slot: PlannedSlot, opened: Opened) -> None:
        """Begin an entry; a new copy of an image begins another one."""
        if self._has_open_entry:
            self._roll_back(slot, "a new copy begins")
        self._observer.entry_opened(slot.item.position)
        name = entry_name(slot.item.stem, opened.extension)
        header = self._writer.open_entry(name, opened.size)
        self._has_open_entry = True
        self._digest = hashlib.sha256() if self._plan.options.manifest is ManifestMode.ALWAYS else None
        self._write((header,))

    def _write_chunk(self, chunk: bytes, crc32: int) -> bool:
        if self._digest is not None:
            self._digest.update(chunk)
        return self._write(self._writer.write(chunk, crc32))

    def _close_entry(self, slot: PlannedSlot) -> None:
        if slot.failure is not None:
            self._fail_entry(slot, slot.failure)
            return
        entry, end = self._writer.close_entry()
        if (entry.size, entry.crc32) != (slot.size, slot.crc32):
            raise ArchiveAborted(f"{entry.name!r} was not written as it was received")
        self._has_open_entry = False
        self._write((end,))
        sha256 = self._digest.hexdigest() if self._digest is not None else None
        self._finish_head(slot, entry=entry, sha256=sha256)

    def _fail_entry(self, slot: PlannedSlot, failure: Failure) -> None:
        if self._has_open_entry:
            self._roll_back(slot, failure.detail)
        self._finish_head(slot, failure=failure)

    def _roll_back(self, slot: PlannedSlot, why: str) -> None:
        self._writer.roll_back()
        self._has_open_entry = False
        self.rollbacks += 1
        self._log.info("image.rolled_back", image_id=slot.item.image.image_id, detail=why)

    def _finish_head(
        self,
        slot: PlannedSlot,
        *,
        entry: Entry | None = None,
        failure: Failure | None = None,
        sha256: str | None = None,
    ) -> None:
        outcome = Outcome(slot.item.position, slot.item.image, slot.attempts, entry, failure, sha256)
        seconds = slot.seconds
        self._release_head()
        self._record(outcome, seconds)

    def _release_head(self) -> None:
        head, self._head = self._head, None
        if head is not None:
            self._prefetch.release(head)

    def _write(self, parts: Parts) -> bool:
        """Send bytes; return whether more may follow now."""
        if self._output is None:
            raise RuntimeError("the archive has no output yet")
        if not self._output.send(parts):
            self._is_blocked = True
        return not self._is_blocked

    # The end

    def _end(self) -> None:
        """Write the archive's last entries and its directory."""
        if not self._has_begun:
            raise NoImagesAvailable("Not one image of the order could be downloaded.", self.outcomes)
        if self._output is None:
            return
        if self._ending is None:
            self._ending = self._last_entries()
        for piece in self._ending:
            if not self._write((piece,)):
                return
        if not self._finished.done():
            self._finished.set_result(None)

    def _last_entries(self) -> Iterator[bytes]:
        """Make the report, the manifest and the central directory.

        Raises:
            ArchiveAborted: an image is neither in the archive nor reported, which must never be.
        """
        if len(self.outcomes) != self._total:
            raise ArchiveAborted(f"only {len(self.outcomes)} of {self._total} images are accounted for")
        if self.failed or self._plan.options.manifest is ManifestMode.ALWAYS:
            context = self._report_context(self.outcomes)
            yield self._writer.add(REPORT_NAME, report_text(context, self.outcomes).encode())
            yield self._writer.add(MANIFEST_NAME, manifest_json(context, self.outcomes))
        yield from self._writer.finish()

    def _fail(self, error: BaseException) -> None:
        """End the archive with an error, raised where it is awaited. Nothing is written after it."""
        self._stop_pump()
        awaited = self._finished if self._has_begun else self._first_byte
        if not awaited.done():
            awaited.set_exception(error)

    # Downloads and their outcomes

    def _start_download(self, slot: PlannedSlot) -> Download | Failure:
        item = slot.item
        failure = self._known_failures.get(item.position)
        if failure is None and self._abandoned is not None:
            failure = Failure(Reason.UPSTREAM_UNAVAILABLE, self._abandoned)
        if failure is not None:
            return failure
        return self._source.download(item.image.image_id, slot, lambda: self._observer.image_granted(item.image))

    def _record(self, outcome: Outcome, seconds: float | None = None) -> None:
        """Note one image's outcome, and draw the consequences of a failure; ``seconds`` is how long it was fetched."""
        self.outcomes.append(outcome)
        self.downloaded += outcome.entry is not None
        self._observer.image_finished(outcome)
        self._log_outcome(outcome, seconds if outcome.attempts else None)
        if outcome.failure is None:
            self._failures_in_row = 0
            return
        if self._plan.options.on_error is OnError.ABORT:
            self._abort(outcome)
        against_upstream = outcome.failure.reason in UPSTREAM_REASONS
        self._failures_in_row = self._failures_in_row + 1 if against_upstream else 0
        if self._failures_in_row == self._limits.give_up_after:
            self._abandon()

    def _abort(self, outcome: Outcome) -> None:
        if not self._has_begun:
            raise NoImagesAvailable("An image failed, and on_error=abort requires all images.", self.outcomes)
        raise ImageMissing(f"image {outcome.image.image_id} failed, and on_error=abort requires all images")

    def _abandon(self) -> None:
        """Request nothing more of an upstream that keeps failing; the rest is reported as such."""
        rest = self._prefetch.abandon()
        self._log.warning(
            "archive.upstream_abandoned", failures_in_row=self._failures_in_row, images_not_tried=len(rest)
        )
        detail = f"not tried any more after {self._failures_in_row} failures of the upstream in a row"
        self._abandoned = detail  # for those that are added later
        for item in rest:
            failure = self._known_failures.get(item.position) or Failure(Reason.UPSTREAM_UNAVAILABLE, detail)
            self._record(Outcome(item.position, item.image, attempts=0, failure=failure))

    def _log_outcome(self, outcome: Outcome, seconds: float | None) -> None:
        facts = {
            "image_id": outcome.image.image_id,
            "position": outcome.position,
            "attempts": outcome.attempts,
            "seconds": None if seconds is None else round(seconds, 3),
        }
        if outcome.entry is not None:
            self._log.info("image.downloaded", **facts, bytes=outcome.entry.size, entry=outcome.entry.name)
        elif outcome.failure is not None:
            reason, detail = outcome.failure.reason.value, outcome.failure.detail
            status = outcome.failure.upstream_status
            self._log.warning("image.failed", **facts, reason=reason, detail=detail, upstream_status=status)

    def _set_starved(self, *, starved: bool) -> None:
        """Count the time in which there was nothing to write and the client would have taken it."""
        if starved:
            if self._starved_since is None:
                self._starved_since = self._loop.time()
        elif self._starved_since is not None:
            self.upstream_blocked_seconds += self._loop.time() - self._starved_since
            self._starved_since = None
