"""Domain model: orders, images, archive entries and outcomes.

Frozen dataclasses and enumerations without I/O; their properties only derive from their own fields.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Readiness(StrEnum):
    """Whether an image can be downloaded, derived from the upstream's status."""

    READY = "ready"
    NOT_READY = "not_ready"
    FAILED = "failed"
    EXPIRED = "expired"


class Reason(StrEnum):
    """Why an image is not in the archive. Report, receipt, logs and metrics share these values."""

    NOT_READY = "not_ready"
    PROCESSING_FAILED = "processing_failed"
    EXPIRED = "expired"
    NOT_FOUND = "not_found"
    UNAUTHORIZED = "unauthorized"
    NO_CREDITS = "no_credits"
    REJECTED = "rejected"
    RATE_LIMITED = "rate_limited"
    UPSTREAM_ERROR = "upstream_error"
    CONNECTION_FAILED = "connection_failed"
    CONNECTION_LOST = "connection_lost"
    TIMEOUT = "timeout"
    TRUNCATED = "truncated"
    TOO_LONG = "too_long"
    NOT_AN_IMAGE = "not_an_image"
    CONTENT_CHANGED = "content_changed"
    REDIRECT_REFUSED = "redirect_refused"
    UPSTREAM_UNAVAILABLE = "upstream_unavailable"


class ArchiveOutcome(StrEnum):
    """How a request for an archive ended. Receipt, logs and metrics share these values."""

    COMPLETE = "complete"  # every image is in the archive
    PARTIAL = "partial"  # images are missing, and the archive has a report
    FAILED = "failed"  # images were requested, and the response has an error status
    ABORTED = "aborted"  # by on_error=abort, a shutdown or an internal error
    CLIENT_GONE = "client_gone"  # the client disconnected or stopped reading
    REJECTED = "rejected"  # with an error status, before any image was requested


class Hop(StrEnum):
    """The upstream hops of a download; values of a metric label."""

    API = "api"
    ASSET = "asset"
    STORAGE = "storage"


class ResumeMethod(StrEnum):
    """How a download continues after an interruption: with a Range request, or from the start, skipping sent bytes."""

    RANGE = "range"
    REPLAY = "replay"


# Reasons that indicate a failing upstream, not one bad image. After a run of them the remaining images are given up.
UPSTREAM_REASONS = frozenset(
    {
        Reason.RATE_LIMITED,
        Reason.UPSTREAM_ERROR,
        Reason.CONNECTION_FAILED,
        Reason.CONNECTION_LOST,
        Reason.TIMEOUT,
    }
)


@dataclass(frozen=True, slots=True)
class Image:
    """One image of an order, as listed by the upstream.

    ``name`` is the uploader's: it may be empty, repeated, or have any character.
    """

    image_id: str
    name: str
    readiness: Readiness
    status: str | None = None
    status_reason: str | None = None
    paid: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """An order with its images in the upstream's order, each image id once.

    ``busy`` is true while brackets are being merged or images processed: images may still be added.
    """

    order_id: str
    name: str
    busy: bool
    images: Sequence[Image]


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """Rendering options of every image of an archive; ``None`` is the API's default.

    ``quality`` 1-90, ``max_width`` in pixels, ``scale`` in (0, 1]. Only ``preview=False`` without ``dev_mode`` spends
    credits.
    """

    format: str = "jpeg"
    quality: int | None = None
    preview: bool = True
    dev_mode: bool = False
    max_width: int | None = None
    scale: float | None = None
    watermark: bool | None = None
    finetune: bool | None = None

    @property
    def spends_credits(self) -> bool:
        """Whether a download with these options may buy an image."""
        return not self.preview and not self.dev_mode


@dataclass(frozen=True, slots=True)
class Opened:
    """Start of one copy of an image, its first bytes verified.

    ``extension`` (no dot) follows the real type. ``size`` is in bytes, if the upstream declared one.
    """

    extension: str
    size: int | None


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Interruption of the copy. It is retried, and may continue where it stopped."""


# The events of one image's download, in order: ``Opened``, then bytes and interruptions. Another ``Opened`` starts a
# new copy and invalidates everything before it. The stream ends only when the copy is complete.
DownloadEvent = Opened | Interrupted | bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one image is missing: the reason, a detail for people, and the upstream's status, if any."""

    reason: Reason
    detail: str
    upstream_status: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished entry of the archive, with the size in bytes and CRC-32 of its central directory record."""

    name: str
    size: int
    crc32: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of one image: exactly one of ``entry`` and ``failure`` is set.

    ``position`` counts from 0 in the whole order. ``attempts`` counts requests for the image, 0 if there was none.
    ``sha256`` (lower-case hex) is set only with ``manifest=always``.
    """

    position: int
    image: Image
    attempts: int
    entry: Entry | None = None
    failure: Failure | None = None
    sha256: str | None = None
