"""Every metric of the service, in one class that holds its own registry.

Labels come from short fixed lists: never an id, a name or anything else that a caller or the upstream chooses.
"""

import asyncio
import platform
from collections.abc import Awaitable, Callable, Iterable

import prometheus_client
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from service.model import ArchiveOutcome, Hop, Outcome, Reason, ResumeMethod

KIB, MIB = 1024, 1024 * 1024
SIZE_BUCKETS = tuple(64 * KIB * 2**power for power in range(11))  # 64 KiB to 64 MiB
# A caller gives up after 50 s (FIRST_BYTE_SECONDS); most first bytes come within the time of two upstream requests.
FIRST_BYTE_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 50.0)
# From the demo order to 2,000 images for a slow client.
ARCHIVE_BUCKETS = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
IMAGE_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0)
REQUEST_BUCKETS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
# Often enough that a scrape every 15 s sees 30 samples, seldom enough that the sampling costs nothing.
LAG_INTERVAL_SECONDS = 0.5

# What an upstream request ended with instead of a status.
NO_RESPONSE = "error"
# The answers that a normal day has at each hop, so that their rates start at 0.
_USUAL_STATUSES: dict[Hop, tuple[int, ...]] = {
    Hop.API: (200, 302, 404, 429, 500, 502, 503),
    Hop.ASSET: (302, 500, 502, 503),
    Hop.STORAGE: (200, 206, 403, 500, 503),
}
# What alerts ask of the requests for archives: a rate does not see the event that makes its series.
ARCHIVE_ROUTE = "/orders/{order_id}/images"
ARCHIVE_STATUSES = (200, 500, 502, 503, 504)


class _LogLines(Collector):
    """Reads a counter of the process at each scrape: the log is older than the metrics."""

    def __init__(self) -> None:
        self.dropped: Callable[[], float] = lambda: 0

    def collect(self) -> Iterable[Metric]:
        """Return the counter."""
        meaning = "Lines of the log that were not written: its stream was stalled or failed."
        yield CounterMetricFamily("batch_log_lines_dropped", meaning, value=self.dropped())


class Metrics:
    """The service's metrics. Two apps in one process have two of these."""

    def __init__(self, *, version: str = "unknown") -> None:
        # A ``_created`` series beside every counter and histogram would add a third to a scrape. The library knows
        # this switch for the process only.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # it is not annotated
        self.registry = CollectorRegistry(auto_describe=True)
        self._make_archive_metrics()
        self._make_image_metrics()
        self._make_upstream_metrics()
        self._make_process_metrics(version)
        self._start_at_zero()

    def _make_archive_metrics(self) -> None:
        self.archives = self._counter("batch_archives", "Archives by how they ended.", "outcome")
        self.archives_in_progress = self._gauge("batch_archives_in_progress", "Archives being streamed now.")
        self.archive_slots_in_use = self._gauge(
            "batch_archive_slots_in_use", "Requests that hold one of the places, from the look-up of their order on."
        )
        self.receipts_held = self._gauge("batch_receipts", "Receipts held, of running and of ended archives.")
        self.sse_connections = self._gauge("batch_sse_connections", "Watchers of archives' events.")
        self.archives_limit = self._gauge("batch_archives_limit", "The most places that there are.")
        self.archive_first_byte = self._histogram(
            "batch_archive_first_byte_seconds",
            "From a request's arrival to the first byte of its archive handed to the client, without wait=.",
            FIRST_BYTE_BUCKETS,
        )
        self.archive_duration = self._histogram(
            "batch_archive_duration_seconds",
            "From a request's arrival to the end of its archive, of archives that have begun.",
            ARCHIVE_BUCKETS,
        )
        self.archive_bytes = self._counter("batch_archive_bytes", "Bytes of ZIP made for clients, framing included.")
        self.client_blocked = self._counter(
            "batch_client_blocked_seconds", "Time in which archives waited for their clients to take bytes."
        )
        self.upstream_blocked = self._counter(
            "batch_upstream_blocked_seconds", "Time in which archives had nothing to send and waited for the upstream."
        )
        self.credits_spent = self._counter(
            "batch_credits_spent",
            "Images that the API agreed to deliver in full quality and had not listed as paid: our own count.",
        )

    def _make_image_metrics(self) -> None:
        self.images = self._counter(
            "batch_images", "Images by outcome; the reason is empty for downloaded ones.", "outcome", "reason"
        )
        self.image_bytes = self._counter("batch_image_bytes", "Bytes of images that are complete in an archive.")
        self.image_size = self._histogram(
            "batch_image_size_bytes", "Sizes of images that are complete in an archive.", SIZE_BUCKETS
        )
        self.image_duration = self._histogram(
            "batch_image_duration_seconds",
            "From the first request for an image to its last byte, pauses and tries included.",
            IMAGE_BUCKETS,
        )
        self.image_retries = self._counter(
            "batch_image_retries", "Tries that failed and were followed by one.", "reason"
        )
        self.image_resumes = self._counter("batch_image_resumes", "Images that went on after a break.", "method")
        self.image_rollbacks = self._counter("batch_image_rollbacks", "Entries that were begun and left out.")

    def _make_upstream_metrics(self) -> None:
        self.upstream_requests = self._counter(
            "batch_upstream_requests", "Requests to the upstream by hop and status.", "hop", "status"
        )
        self.upstream_request_duration = self._histogram(
            "batch_upstream_request_duration_seconds",
            "From sending a request to the head of its answer.",
            REQUEST_BUCKETS,
            "hop",
        )
        self.rate_limit_wait = self._counter(
            "batch_rate_limit_wait_seconds", "Time in which requests to the API waited for their turn."
        )
        self.upstream_throttled = self._counter(
            "batch_upstream_throttled", "Answers of 429 that made the whole process pause."
        )
        self.upstream_failing = self._gauge("batch_upstream_failing", "1 while the upstream counts as failing, else 0.")

        # One for each status code at most, as in the registry.
        self._answers: dict[tuple[Hop, int], tuple[Counter, Histogram]] = {}

        self.uploads = self._counter("batch_uploads", "Photos sent in by outcome and reason.", "outcome", "reason")
        self.upload_bytes = self._counter("batch_upload_bytes", "Bytes of photos that the storage has taken.")

    def _make_process_metrics(self, version: str) -> None:
        self.read_ahead_held = self._gauge(
            "batch_read_ahead_bytes", "Bytes held of images behind those being written, all archives together."
        )
        self.read_ahead_limit = self._gauge("batch_read_ahead_limit_bytes", "The most that may be held.")
        self.http_requests = self._counter(
            "batch_http_requests", "Requests answered by the service.", "route", "method", "status"
        )
        # What is not HTTP has neither route nor method.
        self.malformed_requests = self.http_requests.labels("unmatched", "other", "400")
        self.event_loop_lag = self._histogram(
            "batch_event_loop_lag_seconds", "How much later than asked the event loop came back.", LAG_BUCKETS
        )
        self.build_info = self._gauge("batch_build_info", "Always 1; the labels say what runs.", "version", "python")
        self.build_info.labels(version, platform.python_version()).set(1)
        self._log_lines = _LogLines()
        self.registry.register(self._log_lines)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def watch_read_ahead(self, held_bytes: Callable[[], float], limit_bytes: int) -> None:
        """Ask for the bytes held at every scrape."""
        self.read_ahead_held.set_function(held_bytes)
        self.read_ahead_limit.set(limit_bytes)

    def watch_log(self, dropped_lines: Callable[[], float]) -> None:
        """Ask for the lines dropped at every scrape."""
        self._log_lines.dropped = dropped_lines

    def count_image(self, outcome: Outcome) -> None:
        """Count what became of one image."""
        if outcome.entry is not None:
            self.images.labels("downloaded", "").inc()
            self.image_bytes.inc(outcome.entry.size)
            self.image_size.observe(outcome.entry.size)
        elif outcome.failure is not None:
            self.images.labels("failed", outcome.failure.reason.value).inc()

    def count_response(self, hop: Hop, status: int, seconds: float) -> None:
        """Count an answer of the upstream, ``seconds`` after its request was sent."""
        answers = self._answers.get((hop, status))
        if answers is None:  # finding the series by its labels takes three times as long as counting
            series = self.upstream_requests.labels(hop.value, str(status))
            answers = self._answers[hop, status] = series, self.upstream_request_duration.labels(hop.value)
        number, duration = answers
        number.inc()
        duration.observe(seconds)

    def count_no_response(self, hop: Hop) -> None:
        """Count a request to the upstream that got no answer."""
        self.upstream_requests.labels(hop.value, NO_RESPONSE).inc()

    def totals(self) -> dict[str, dict[str, int] | int]:
        """Return the counts that people ask for first, since the start."""
        return {
            "archives": {key[0]: int(value) for key, value in _values(self.archives)},
            "archive_bytes": _total(self.archive_bytes),
            "images": {":".join(filter(None, key)): int(value) for key, value in _values(self.images) if value},
            "image_bytes": _total(self.image_bytes),
            "image_retries": _total(self.image_retries),
            "credits_spent": _total(self.credits_spent),
        }

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(name, meaning, labels, registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: Iterable[float], *labels: str) -> Histogram:
        return Histogram(name, meaning, labels, buckets=tuple(buckets), registry=self.registry)

    def _start_at_zero(self) -> None:
        """Show what has not happened yet as 0: a rate needs a value before the first event."""
        for ending in ArchiveOutcome:
            self.archives.labels(ending.value)
        self.images.labels("downloaded", "")
        self.uploads.labels("uploaded", "")
        for reason in Reason:
            self.images.labels("failed", reason.value)
            self.image_retries.labels(reason.value)
        for method in ResumeMethod:
            self.image_resumes.labels(method.value)
        for answer in ARCHIVE_STATUSES:
            self.http_requests.labels(ARCHIVE_ROUTE, "GET", str(answer))
        for hop, statuses in _USUAL_STATUSES.items():
            self.upstream_request_duration.labels(hop.value)
            for status in (*statuses, NO_RESPONSE):
                self.upstream_requests.labels(hop.value, str(status))


async def observe_loop_lag(
    observe: Callable[[float], None],
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Tell again and again how late the event loop comes back from a short sleep; runs until it is cancelled."""
    while True:
        due = clock() + LAG_INTERVAL_SECONDS
        await sleep(LAG_INTERVAL_SECONDS)
        observe(max(0.0, clock() - due))


def _values(counter: Counter) -> Iterable[tuple[tuple[str, ...], float]]:
    return [
        (tuple(sample.labels.values()), sample.value)
        for metric in counter.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    ]


def _total(counter: Counter) -> int:
    return int(sum(value for _, value in _values(counter)))
