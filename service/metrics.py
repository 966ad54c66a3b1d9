"""Every metric of the service, in one class that holds its own registry."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from service.model import Outcome


class Metrics:
    """The service's metrics. Two apps in one process have two of these."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.archives = Counter("batch_archives", "Archives by how they ended.", ["outcome"], registry=self.registry)
        self.archives_in_progress = Gauge(
            "batch_archives_in_progress", "Archives being streamed now.", registry=self.registry
        )
        self.archive_bytes = Counter(
            "batch_archive_bytes", "Bytes of ZIP handed to clients, framing included.", registry=self.registry
        )
        self.images = Counter(
            "batch_images",
            "Images by outcome; the reason is empty for downloaded ones.",
            ["outcome", "reason"],
            registry=self.registry,
        )
        self.image_bytes = Counter(
            "batch_image_bytes", "Bytes of images that are complete in an archive.", registry=self.registry
        )

    def count_image(self, outcome: Outcome) -> None:
        """Count what became of one image."""
        if outcome.entry is not None:
            self.images.labels("downloaded", "").inc()
            self.image_bytes.inc(outcome.entry.size)
        elif outcome.failure is not None:
            self.images.labels("failed", outcome.failure.reason.value).inc()
