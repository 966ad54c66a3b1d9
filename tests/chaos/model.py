"""What a check compares, and its result: plain data, no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Ending(StrEnum):
    """How a transfer ended, as seen by its client."""

    CLEAN = "clean"
    BROKEN = "broken"
    LEFT = "left"  # by the client
    HUNG = "hung"


@dataclass(slots=True)
class Transfer:
    """A received response: lower-case names of ``headers`` and ``trailers``, the decoded ``body``."""

    ending: Ending = Ending.BROKEN
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    trailers: dict[str, str] = field(default_factory=dict)
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ExpectedImage:
    """A requested image.

    ``stem`` is its entry's name without extension, ``versions`` the SHA-256 of each complete version that the storage
    has offered. ``causes`` are the faults that justify its absence; ``requests`` describes its requests.
    """

    image_id: str
    stem: str
    versions: frozenset[str]
    causes: tuple[str, ...] = ()
    requests: str = ""


@dataclass(frozen=True, slots=True)
class ExpectedArchive:
    """A requested archive; ``order_causes`` are the faults that justify an error instead of an archive."""

    images: tuple[ExpectedImage, ...]
    abort: bool = False
    manifest_always: bool = False
    order_causes: tuple[str, ...] = ()


class Outcome(StrEnum):
    """The outcome of an archive, as printed in the table."""

    COMPLETE = "complete"
    PARTIAL = "partial, the rest reported"
    REFUSED = "problem document"
    ABORTED = "aborted as requested (on_error=abort)"
    LEFT = "the client left"
    FAILED = "wrong"


class Flaw(StrEnum):
    """A violation of what the service guarantees."""

    LOST = "lost"  # neither delivered nor reported
    CORRUPT = "corrupt"  # delivered, but no version of the image
    BROKEN = "broken"  # a transfer aborted without a cause
    HUNG = "hung"
    TWICE = "twice"  # two entries with one name, or of one image
    CONTRADICTION = "contradiction"  # delivered and reported, or reported twice
    MISNAMED = "misnamed"  # under the name of another image, or of none
    UNREADABLE = "unreadable"  # an archive, manifest or problem document that cannot be read
    COUNTS = "counts"  # headers, trailers, manifest or report state other numbers
    CHECKSUM = "checksum"  # the manifest states another size or checksum
    REASON = "reason"  # a reason which is not in the list
    UNJUSTIFIED = "unjustified"  # reported or rejected without a fault
    ABORT_IGNORED = "abort ignored"  # a clean end of an incomplete archive with on_error=abort
    STILL_RUNNING = "still running"  # requests to the storage after the end of their archive
    KEY_LEAKED = "key leaked"
    TARGET_REUSED = "target reused"
    SERVICE = "service"  # it logged an error or a secret, or did not stop in time


@dataclass(frozen=True, slots=True)
class Finding:
    """One flaw, of an image or of the whole archive."""

    flaw: Flaw
    detail: str
    image_id: str = ""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The outcome of one archive, with the reason of each reported image and all findings."""

    outcome: Outcome
    delivered: frozenset[str] = frozenset()
    reported: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
