"""What the judge is shown, and what it says: plain facts, no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Ending(StrEnum):
    """How a transfer ended, as HTTP tells it."""

    CLEAN = "clean"
    BROKEN = "broken"
    LEFT = "left"  # by the caller
    HUNG = "hung"


@dataclass(slots=True)
class Arrived:
    """What the caller received: names of ``headers`` and ``trailers`` in lower case, the ``body`` without chunks."""

    ending: Ending = Ending.BROKEN
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    trailers: dict[str, str] = field(default_factory=dict)
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Expected:
    """An image that was asked for.

    ``stem`` is its entry's name without extension, ``versions`` the SHA-256 of each complete version which the
    storage has offered. ``grounds`` is whatever may excuse its absence; ``seen`` tells a developer of its requests.
    """

    image_id: str
    stem: str
    versions: frozenset[str]
    grounds: tuple[str, ...] = ()
    seen: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the caller asked for; ``order_grounds`` is whatever may excuse that there is no archive at all."""

    images: tuple[Expected, ...]
    abort: bool = False
    manifest_always: bool = False
    order_grounds: tuple[str, ...] = ()


class Outcome(StrEnum):
    """What became of an archive, in the table's words."""

    COMPLETE = "complete"
    PARTIAL = "partial, the rest reported"
    REFUSED = "problem document"
    ABORTED = "broken off as asked (on_error=abort)"
    LEFT = "the caller left"
    FAILED = "not as it must be"


class Flaw(StrEnum):
    """What must never happen."""

    LOST = "lost"  # neither delivered nor reported
    CORRUPT = "corrupt"  # delivered, but no version of the image
    BROKEN = "broken"  # a transfer cut without need
    HUNG = "hung"
    TWICE = "twice"  # two entries with one name, or of one image
    CONTRADICTION = "contradiction"  # delivered and reported, or reported twice
    MISNAMED = "misnamed"  # under the name of another image, or of none
    UNREADABLE = "unreadable"  # an archive, manifest or problem document that cannot be read
    COUNTS = "counts"  # headers, trailers, manifest or report state other numbers
    CHECKSUM = "checksum"  # the manifest states another size or checksum
    REASON = "reason"  # a reason which is not in the list
    GROUNDLESS = "groundless"  # reported or refused though nothing went wrong
    ABORT_IGNORED = "abort ignored"  # a clean end though all or nothing was asked for
    STILL_RUNNING = "still running"  # requests to the storage after the end of their archive
    KEY_LEAKED = "key leaked"
    TARGET_REUSED = "target reused"
    SERVICE = "service"  # it logged an error or a secret, or did not stop properly


@dataclass(frozen=True, slots=True)
class Finding:
    """One flaw, of an image or of the whole archive."""

    flaw: Flaw
    detail: str
    image_id: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one archive: the reason of each image reported, and everything that is wrong."""

    outcome: Outcome
    delivered: frozenset[str] = frozenset()
    reported: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
