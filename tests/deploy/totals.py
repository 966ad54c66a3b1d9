"""What clients have received from a service, as numbers to compare with Prometheus."""

import json
from collections import Counter
from dataclasses import dataclass, field

from service.archive.report import MANIFEST_NAME
from service.model import ArchiveOutcome, Reason
from tests.archives import entries, images_in, manifest_in
from tests.deploy.observer import Observer

# When all images of an order have one of these reasons, the service rejects it without a request for an image.
_NOT_REQUESTED = frozenset({Reason.NOT_READY, Reason.PROCESSING_FAILED, Reason.EXPIRED})


@dataclass(slots=True)
class ReceivedTotals:
    """Images, bytes and archives that clients have received. The service's own numbers are not used."""

    images: Counter[tuple[str, str]] = field(default_factory=Counter)
    image_bytes: int = 0
    archive_bytes: int = 0
    archives: Counter[str] = field(default_factory=Counter)

    def add(self, status: int, body: bytes) -> None:
        """Count one complete response."""
        if status == 200:
            self._add_archive(body)
        else:
            self._add_problem(body)

    def _add_archive(self, body: bytes) -> None:
        found = entries(body)
        images = images_in(found)
        listed = manifest_in(found)["images"] if MANIFEST_NAME in found else []
        failed = [image["reason"] for image in listed if image["outcome"] == "failed"]
        self.images.update(("failed", reason) for reason in failed)
        self.images["downloaded", ""] += len(images)
        self.image_bytes += sum(map(len, images.values()))
        self.archive_bytes += len(body)
        self.archives[ArchiveOutcome.PARTIAL if failed else ArchiveOutcome.COMPLETE] += 1

    def _add_problem(self, body: bytes) -> None:
        document = json.loads(body)
        reasons = [failure["reason"] for failure in document.get("failures", [])]
        if "failures" not in document or (reasons and _NOT_REQUESTED.issuperset(reasons)):
            self.archives[ArchiveOutcome.REJECTED] += 1
            return
        self.images.update(("failed", reason) for reason in reasons)
        self.archives[ArchiveOutcome.FAILED] += 1


async def wait_for_archives(observer: Observer, number: int) -> None:
    """Wait until Prometheus has scraped this number of finished archives."""

    async def all_scraped() -> bool:
        return await observer.query("sum(batch_archives_total)") == {(): number}

    await observer.until(all_scraped, lambda: f"Prometheus has not seen {number} archives")


async def check_numbers(totals: ReceivedTotals, observer: Observer) -> None:
    """Check that Prometheus has exactly the numbers that the clients have received."""
    await wait_for_archives(observer, totals.archives.total())
    images = await observer.query("sum by (outcome, reason) (batch_images_total) > 0")
    assert {_outcome_and_reason(key): count for key, count in images.items()} == totals.images
    assert await observer.query("sum by (outcome) (batch_archives_total) > 0") == {
        (outcome,): count for outcome, count in totals.archives.items()
    }
    assert await observer.query("sum(batch_image_bytes_total)") == {(): totals.image_bytes}
    assert await observer.query("sum(batch_archive_bytes_total)") == {(): totals.archive_bytes}
    assert await observer.query("sum(batch_image_size_bytes_sum)") == {(): totals.image_bytes}


def _outcome_and_reason(labels: tuple[str, ...]) -> tuple[str, str]:
    # To Prometheus an empty label is a missing one.
    outcome, reason = (*labels, "")[:2]
    return outcome, reason
