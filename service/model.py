"""The nouns every part of the service speaks: orders, images and what became of them.

Frozen facts only: no I/O, no behaviour beyond simple questions about themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Readiness(StrEnum):
    """Whether an image can be downloaded, read from the upstream's own status word."""

    READY = "ready"
    NOT_READY = "not_ready"
    FAILED = "failed"
    EXPIRED = "expired"


class Reason(StrEnum):
    """Why an image is not in the archive: one fixed list for report, receipt, logs and metrics."""

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
    """How a request for an archive ended: one fixed list for logs and metrics."""

    COMPLETE = "complete"  # every image is in it
    PARTIAL = "partial"  # it has a report of what is missing
    NONE = "none"  # images were asked for, and an error status was answered
    ABORTED = "aborted"  # broken off, by all or nothing, the end of the service or a fault of ours
    CLIENT_GONE = "client_gone"  # its client left, or took nothing any more
    REJECTED = "rejected"  # refused before any image was asked for


class Hop(StrEnum):
    """The stations of a download, as metrics name them."""

    API = "api"
    ASSET = "asset"
    STORAGE = "storage"


class ResumeMethod(StrEnum):
    """How an image went on after a break: by asking for the rest, or anew with what was there skipped."""

    RANGE = "range"
    REPLAY = "replay"


# Reasons that speak against the upstream as a whole, not against one image: a run of them gives up the rest.
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
    """One image of an order as the upstream lists it.

    ``name`` is whatever the uploader chose: it may be empty, repeat, or hold any character.
    """

    image_id: str
    name: str
    readiness: Readiness
    status: str | None = None
    status_reason: str | None = None
    paid: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """An order with its images, in the upstream's order, each image id once.

    ``busy`` is true while brackets are being merged or images processed: an empty list may still fill.
    """

    order_id: str
    name: str
    busy: bool
    images: Sequence[Image]


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """How the upstream is asked to render every image of an archive; ``None`` leaves a choice to the API.

    ``quality`` 1-90, ``max_width`` in pixels, ``scale`` in (0, 1]. Only ``preview=False`` without ``dev_mode``
    spends credits.
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
        """Whether fetching an image with these options may buy it."""
        return not self.preview and not self.dev_mode


@dataclass(frozen=True, slots=True)
class Opened:
    """The start of one copy of an image, its first bytes verified.

    ``extension`` follows the real type, without a dot; ``size`` in bytes where the upstream promised one.
    """

    extension: str
    size: int | None


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The copy stopped coming and is being tried again: what was sent of it may still be continued."""


# What one image's download is made of, in order: ``Opened``, then bytes and interruptions. Another ``Opened``
# starts a new copy and makes everything before it void. The stream ends only when the copy is complete.
DownloadEvent = Opened | Interrupted | bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one image is missing: a reason from the list, words for people, and the upstream's status if any."""

    reason: Reason
    detail: str
    upstream_status: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished entry of the archive: the size in bytes and CRC-32 that its central directory record states."""

    name: str
    size: int
    crc32: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one image: exactly one of ``entry`` and ``failure`` is set.

    ``position`` counts from 0 in the whole order; ``attempts`` counts requests for the image, 0 if it was never
    asked for; ``sha256`` (lower-case hex) is there only when the caller asked for it.
    """

    position: int
    image: Image
    attempts: int
    entry: Entry | None = None
    failure: Failure | None = None
    sha256: str | None = None
