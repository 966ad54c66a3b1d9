"""Prometheus metrics of the service, in one class with its own registry.

Label values come from short fixed lists: never an id, a name, or another value chosen by a client or the upstream.
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
# The service gives up after 50 s (FIRST_BYTE_SECONDS); most first bytes take as long as two upstream requests.
FIRST_BYTE_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 50.0)
# From the demo order to 2,000 images for a slow client.
ARCHIVE_BUCKETS = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
IMAGE_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0)
REQUEST_BUCKETS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
# 30 samples in a scrape interval of 15 s, at a negligible cost.
LAG_INTERVAL_SECONDS = 0.5

# Value of the label ``status`` for upstream requests without a response.
NO_RESPONSE = "error"
# Expected statuses of each hop, exported as 0 from the start so that their rates are complete.
_USUAL_STATUSES: dict[Hop, tuple[int, ...]] = {
    Hop.API: (200, 302, 404, 429, 500, 502, 503),
    Hop.ASSET: (302, 500, 502, 503),
    Hop.STORAGE: (200, 206, 403, 500, 503),
}
# Series used by alerts, exported as 0 from the start: a rate misses the event that creates its series.
ARCHIVE_ROUTE = "/orders/{order_id}/images"
ARCHIVE_STATUSES = (200, 500, 502, 503, 504)


class _LogLines(Collector):
    """Exports the log writer's counter, which exists before the metrics do."""

    def __init__(self) -> None:
        self.dropped: Callable[[], float] = lambda: 0

    def collect(self) -> Iterable[Metric]:
        """Return the current value."""
        meaning = "Log lines that were not written because the stream stalled or failed."
        yield CounterMetricFamily("batch_log_lines_dropped", meaning, value=self.dropped())


class Metrics:
    """The metrics of one app and their registry."""

    def __init__(self, *, version: str = "unknown") -> None:
        # ``_created`` series for every counter and histogram would add a third to a scrape. The library has this switch
        # for the whole process only.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # not annotated
        self.registry = CollectorRegistry(auto_describe=True)
        self._make_archive_metrics()
        self._make_image_metrics()
        self._make_upstream_metrics()
        self._make_process_metrics(version)
        self._start_at_zero()

    def _make_archive_metrics(self) -> None:
        self.archives = self._counter("batch_archives", "Ended archives by outcome.", "outcome")
        self.archives_in_progress = self._gauge("batch_archives_in_progress", "Archives being streamed.")
        self.archive_slots_in_use = self._gauge(
            "batch_archive_slots_in_use",
            "Archive requests that hold one of the MAX_ARCHIVES slots, from the lookup of their order on.",
        )
        self.receipts_held = self._gauge("batch_receipts", "Receipts in memory, of running and ended archives.")
        self.sse_connections = self._gauge("batch_sse_connections", "Open connections for the events of archives.")
        self.archives_limit = self._gauge("batch_archives_limit", "Number of archive slots (MAX_ARCHIVES).")
        self.archive_first_byte = self._histogram(
            "batch_archive_first_byte_seconds",
            "From the arrival of a request to the first byte of its archive, for requests without wait=.",
            FIRST_BYTE_BUCKETS,
        )
        self.archive_duration = self._histogram(
            "batch_archive_duration_seconds",
            "From the arrival of a request to the end of its archive, for archives that started.",
            ARCHIVE_BUCKETS,
        )
        self.archive_bytes = self._counter(
            "batch_archive_bytes", "Bytes of archives produced for clients, ZIP framing included."
        )
        self.client_blocked = self._counter(
            "batch_client_blocked_seconds", "Time that archives were blocked by the backpressure of their clients."
        )
        self.upstream_blocked = self._counter(
            "batch_upstream_blocked_seconds", "Time that archives had nothing to send and waited for the upstream."
        )
        self.credits_spent = self._counter(
            "batch_credits_spent",
            "Images that the API delivered in full quality and had not listed as paid, as counted by the service.",
        )

    def _make_image_metrics(self) -> None:
        self.images = self._counter(
            "batch_images", "Images by outcome; the reason is empty for downloaded images.", "outcome", "reason"
        )
        self.image_bytes = self._counter("batch_image_bytes", "Bytes of downloaded images.")
        self.image_size = self._histogram("batch_image_size_bytes", "Sizes of downloaded images.", SIZE_BUCKETS)
        self.image_duration = self._histogram(
            "batch_image_duration_seconds",
            "From the first request for an image to its last byte, pauses and retries included.",
            IMAGE_BUCKETS,
        )
        self.image_retries = self._counter(
            "batch_image_retries", "Failed attempts that were followed by another.", "reason"
        )
        self.image_resumes = self._counter(
            "batch_image_resumes", "Downloads resumed after an interruption, by method.", "method"
        )
        self.image_rollbacks = self._counter("batch_image_rollbacks", "Entries that were started and rolled back.")

    def _make_upstream_metrics(self) -> None:
        self.upstream_requests = self._counter(
            "batch_upstream_requests", "Upstream requests by hop and status.", "hop", "status"
        )
        self.upstream_request_duration = self._histogram(
            "batch_upstream_request_duration_seconds",
            "From sending an upstream request to the header section of its response.",
            REQUEST_BUCKETS,
            "hop",
        )
        self.rate_limit_wait = self._counter(
            "batch_rate_limit_wait_seconds", "Time that API requests waited for the rate limiter."
        )
        self.upstream_throttled = self._counter(
            "batch_upstream_throttled", "429 responses that paused all API requests of the process."
        )
        self.upstream_failing = self._gauge(
            "batch_upstream_failing", "1 while the upstream is considered failing, else 0."
        )

        # At most one for each hop and status code, as in the registry.
        self._series: dict[tuple[Hop, int], tuple[Counter, Histogram]] = {}

        self.uploads = self._counter("batch_uploads", "Uploaded photos by outcome and reason.", "outcome", "reason")
        self.upload_bytes = self._counter("batch_upload_bytes", "Bytes of photos stored by the upstream.")

    def _make_process_metrics(self, version: str) -> None:
        self.read_ahead_held = self._gauge(
            "batch_read_ahead_bytes", "Bytes buffered ahead of the images being written, all archives together."
        )
        self.read_ahead_limit = self._gauge("batch_read_ahead_limit_bytes", "Limit of the bytes buffered ahead.")
        self.http_requests = self._counter(
            "batch_http_requests", "Requests to the service by route, method and status.", "route", "method", "status"
        )
        # Input that is not HTTP has neither route nor method.
        self.malformed_requests = self.http_requests.labels("unmatched", "other", "400")
        self.event_loop_lag = self._histogram(
            "batch_event_loop_lag_seconds", "Delay of a timer of the event loop.", LAG_BUCKETS
        )
        self.build_info = self._gauge(
            "batch_build_info",
            "Always 1; the labels are the versions of the service and of Python.",
            "version",
            "python",
        )
        self.build_info.labels(version, platform.python_version()).set(1)
        self._log_lines = _LogLines()
        self.registry.register(self._log_lines)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def watch_read_ahead(self, held_bytes: Callable[[], float], limit_bytes: int) -> None:
        """Read the number of buffered bytes at each scrape."""
        self.read_ahead_held.set_function(held_bytes)
        self.read_ahead_limit.set(limit_bytes)

    def watch_log(self, dropped_lines: Callable[[], float]) -> None:
        """Read the number of dropped log lines at each scrape."""
        self._log_lines.dropped = dropped_lines

    def count_image(self, outcome: Outcome) -> None:
        """Count the outcome of one image."""
        if outcome.entry is not None:
            self.images.labels("downloaded", "").inc()
            self.image_bytes.inc(outcome.entry.size)
            self.image_size.observe(outcome.entry.size)
        elif outcome.failure is not None:
            self.images.labels("failed", outcome.failure.reason.value).inc()

    def count_response(self, hop: Hop, status: int, seconds: float) -> None:
        """Count a response of the upstream, received ``seconds`` after its request was sent."""
        series = self._series.get((hop, status))
        if series is None:  # finding the series by its labels takes three times as long as counting
            requests = self.upstream_requests.labels(hop.value, str(status))
            series = self._series[hop, status] = requests, self.upstream_request_duration.labels(hop.value)
        requests, duration = series
        requests.inc()
        duration.observe(seconds)

    def count_no_response(self, hop: Hop) -> None:
        """Count an upstream request without a response."""
        self.upstream_requests.labels(hop.value, NO_RESPONSE).inc()

    def totals(self) -> dict[str, dict[str, int] | int]:
        """Return the main counters since the start, for ``/api/stats``."""
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
        """Export expected series as 0: a rate needs a value before the first event."""
        for outcome in ArchiveOutcome:
            self.archives.labels(outcome.value)
        self.images.labels("downloaded", "")
        self.uploads.labels("uploaded", "")
        for reason in Reason:
            self.images.labels("failed", reason.value)
            self.image_retries.labels(reason.value)
        for method in ResumeMethod:
            self.image_resumes.labels(method.value)
        for archive_status in ARCHIVE_STATUSES:
            self.http_requests.labels(ARCHIVE_ROUTE, "GET", str(archive_status))
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
    """Observe the delay of a short sleep, repeatedly, until cancelled."""
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
