"""Accounting of one archive request: receipt, metrics, and one log line at its end."""

import asyncio
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import structlog
from aiohttp import web

from service.archive.plan import ArchivePlan
from service.errors import ArchiveAborted, AtCapacity, ClientStalled, Draining, ServiceError, problem
from service.model import ArchiveOutcome, Image, Outcome
from service.monitoring.metrics import Metrics
from service.streaming.archive_stream import ArchiveStream
from service.streaming.receipts import Receipt
from service.web.http.context import ARRIVED
from service.web.http.streaming_response import StreamingResponse

log = structlog.get_logger(__name__)


class ArchiveRecord:
    """Accounts for one archive request; as a context manager it surrounds the request and concludes it exactly once.

    Implements ``ArchiveObserver``.

    States: rejected unless ``set_plan`` is called, without a response until ``response_started``, then streaming.
    """

    def __init__(self, request: web.Request, receipt: Receipt, metrics: Metrics) -> None:
        self.archive_id = receipt.archive_id
        self.receipt = receipt
        self._request = request
        self._metrics = metrics
        self._plan: ArchivePlan | None = None
        self._stream: ArchiveStream | None = None
        self._response: StreamingResponse | None = None
        self._first_byte_seconds: float | None = None
        self.credits_spent = 0
        # Bytes, roll-backs, and seconds blocked by client and upstream, as far as the metrics include them.
        self._reported = (0, 0, 0.0, 0.0)

    def set_plan(self, plan: ArchivePlan, stream: ArchiveStream, parameters: Mapping[str, str]) -> None:
        """Record the plan before the archive's images are requested."""
        self._plan, self._stream = plan, stream
        missing = [(outcome.position, outcome.image) for outcome in plan.failures]
        self.receipt.set_plan(
            order_id=plan.order.order_id,
            order_name=plan.order.name,
            parameters=parameters,
            images=[*((item.position, item.image) for item in (*plan.ready, *plan.pending)), *missing],
            bytes_out=lambda: stream.bytes_out,
        )

    def response_started(self, response: StreamingResponse) -> None:
        """Record that the first byte is about to be sent."""
        self._response = response
        self.receipt.response_started()
        self._first_byte_seconds = self._seconds()
        if self._plan is not None and not self._plan.options.wait:  # with wait, the delay is on purpose
            self._metrics.archive_first_byte.observe(self._first_byte_seconds)

    def image_granted(self, image: Image) -> None:
        """Count the credit of an image: with full quality it is bought now, whether or not its download succeeds."""
        if self._plan is not None and self._plan.options.image.spends_credits and not image.paid:
            self.credits_spent += 1
            self._metrics.credits_spent.inc()
            self.receipt.credit_spent()

    def entry_opened(self, position: int) -> None:
        """Show the image as being written."""
        self.receipt.entry_opened(position)

    def image_finished(self, outcome: Outcome) -> None:
        """Count an image, and the progress so far: a long archive shows in the metrics while it runs."""
        self._metrics.count_image(outcome)
        self.receipt.image_finished(outcome)
        self._report_progress()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Conclude the request; the error propagates."""
        outcome, why = self._ending(error)
        self._report_progress()
        self._metrics.archives.labels(outcome.value).inc()
        if self._response is not None:
            self._metrics.archive_duration.observe(self._seconds())
        self.receipt.end(
            outcome,
            why,
            problem(error) if isinstance(error, ServiceError) else None,
            retryable_elsewhere=isinstance(error, AtCapacity | Draining),
        )
        self._log(outcome, why)

    def _ending(self, error: BaseException | None) -> tuple[ArchiveOutcome, str | None]:
        """Return the outcome, and in a word why the archive is not complete."""
        if error is None:
            return self._good_ending()
        if isinstance(error, ClientStalled):
            return ArchiveOutcome.CLIENT_GONE, error.slug
        if isinstance(error, ConnectionResetError) or self._client_has_gone(error):
            return ArchiveOutcome.CLIENT_GONE, "client-left"
        if isinstance(error, asyncio.CancelledError):
            return ArchiveOutcome.ABORTED, "service-stopped"
        why = error.slug if isinstance(error, ServiceError | ArchiveAborted) else "internal-error"
        if self._response is not None:
            return ArchiveOutcome.ABORTED, why
        return ArchiveOutcome.REJECTED if self._stream is None else ArchiveOutcome.FAILED, why

    def _good_ending(self) -> tuple[ArchiveOutcome, str | None]:
        if self._stream is None:
            return ArchiveOutcome.REJECTED, "nothing-missing"
        reasons = sorted({one.failure.reason.value for one in self._outcomes() if one.failure is not None})
        return (ArchiveOutcome.PARTIAL, ", ".join(reasons)) if reasons else (ArchiveOutcome.COMPLETE, None)

    def _client_has_gone(self, error: BaseException) -> bool:
        """Return whether the client left; the end of the service cancels the handler too."""
        transport = self._request.transport
        return isinstance(error, asyncio.CancelledError) and (transport is None or transport.is_closing())

    def _progress(self) -> tuple[int, int, float, float]:
        stream, response = self._stream, self._response
        if stream is None:
            return self._reported
        blocked_seconds = response.blocked_seconds if response is not None else 0.0
        return stream.bytes_out, stream.rollbacks, blocked_seconds, stream.upstream_blocked_seconds

    def _report_progress(self) -> None:
        """Add the progress since the last call to the metrics."""
        metrics, now = self._metrics, self._progress()
        counters = (metrics.archive_bytes, metrics.image_rollbacks, metrics.client_blocked, metrics.upstream_blocked)
        for counter, reported, value in zip(counters, self._reported, now, strict=True):
            if value > reported:
                counter.inc(value - reported)
        self._reported = now

    def _log(self, outcome: ArchiveOutcome, why: str | None) -> None:
        outcomes, (bytes_out, _, client_seconds, upstream_seconds) = self._outcomes(), self._reported
        downloaded = sum(one.entry is not None for one in outcomes)
        log.info(
            "archive.finished",
            outcome=outcome.value,
            why=why,
            images=self._plan.total if self._plan is not None else 0,
            downloaded=downloaded,
            failed=len(outcomes) - downloaded,
            attempts=sum(one.attempts for one in outcomes),
            bytes=bytes_out,
            seconds=round(self._seconds(), 3),
            first_byte_seconds=None if self._first_byte_seconds is None else round(self._first_byte_seconds, 3),
            client_blocked_seconds=round(client_seconds, 3),
            upstream_blocked_seconds=round(upstream_seconds, 3),
            credits_spent=self.credits_spent,
        )

    def _outcomes(self) -> list[Outcome]:
        return self._stream.outcomes if self._stream is not None else []

    def _seconds(self) -> float:
        return time.monotonic() - self._request[ARRIVED]
