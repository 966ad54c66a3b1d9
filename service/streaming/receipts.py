"""Receipts: the state of each archive, live while it runs, kept for a while after. Knows asyncio, but no HTTP.

A receipt's life::

    preparing ──set_plan──▶ preparing, with its images ──▶ streaming ──▶ ended: complete, partial, aborted, client_gone
        └────────── rejected, or no image available ──────────────────▶ ended: rejected, failed

A download rejected for lack of capacity may run on another replica: its receipt is not found here, and its id is free.
After ``aborted`` or ``client_gone`` the same request may be repeated under the same id; its receipt replaces the
previous one.

Each receipt is a watch channel: a reconnecting reader gets the current state of everything changed since its version.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from service.errors import ArchiveIdInUse, ArchiveNotFound
from service.model import ArchiveOutcome, Image, Outcome
from service.watch import KeyWatch, Watch

# Of all ended archives together; an image takes about 1 KB.
MAX_ENDED_IMAGES = 50_000
PREPARING, STREAMING = "preparing", "streaming"
WAITING, WRITING, DOWNLOADED, FAILED = "waiting", "writing", "downloaded", "failed"
IMAGE, ARCHIVE, END = "image", "archive", "end"
_INTERRUPTED = frozenset({ArchiveOutcome.ABORTED, ArchiveOutcome.CLIENT_GONE})


@dataclass(frozen=True, slots=True)
class Change:
    """A change: ``kind`` is ``image``, ``archive`` or ``end``, ``data`` its state now."""

    version: int
    kind: str
    data: Mapping[str, Any]


class Receipt:
    """The state of one archive.

    ``now`` returns the time of day. ``link`` is the download link that authorised the request, if any. ``request`` is
    an opaque digest of the client and its request, ``body`` one of the body: ``None`` until it is read.
    """

    def __init__(
        self,
        archive_id: str,
        now: Callable[[], datetime],
        on_end: "Callable[[Receipt], None]",
        *,
        link: str | None,
        request: str,
        body: str | None,
    ) -> None:
        self.archive_id = archive_id
        self.link = link
        self.body = body
        self.request = request
        self._on_end = on_end
        self._downloaded = 0
        # The last version of the receipt that this one has replaced.
        self.replaced_version = 0
        self.ended_at: datetime | None = None
        self.retryable_elsewhere = False
        self._now = now
        self._started_at = now()
        self._state = PREPARING
        self._why: str | None = None
        self._problem: Mapping[str, Any] | None = None
        self._order: Mapping[str, Any] = {"order_id": None, "order_name": None, "parameters": {}}
        self._images: dict[int, Image] = {}
        self._outcomes: dict[int, tuple[Outcome, datetime]] = {}
        self._writing: int | None = None
        self._credits_spent = 0
        self._bytes: Callable[[], int] = lambda: 0
        # Keys are positions of images, and the other kinds of changes.
        self._watch = KeyWatch[int | str]()

    @property
    def version(self) -> int:
        """Version of the last change."""
        return self._watch.version

    @property
    def problem(self) -> Mapping[str, Any] | None:
        """The problem document sent instead of the archive."""
        return self._problem

    @property
    def interrupted(self) -> bool:
        """Whether the archive ended early: the same request may be repeated under the same id."""
        return self._state in _INTERRUPTED

    @property
    def image_count(self) -> int:
        """Number of images in the receipt."""
        return len(self._images)

    def may_replace(self, other: "Receipt") -> bool:
        """Return whether this repeats the request of ``other``, which was interrupted."""
        same_body = self.body == other.body or None in {self.body, other.body}
        return other.interrupted and self.request == other.request and same_body

    def replace(self, other: "Receipt") -> None:
        """Continue the versions of ``other``: a reader that has seen any of them gets all of this receipt."""
        self.replaced_version = other.version
        self._watch = KeyWatch(other.version)
        self._watch.mark(ARCHIVE)

    def set_plan(
        self,
        *,
        order_id: str,
        order_name: str,
        parameters: Mapping[str, Any],
        images: Sequence[tuple[int, Image]],
        bytes_out: Callable[[], int],
    ) -> None:
        """Set what the archive is to contain; ``bytes_out`` returns its size so far."""
        self._order = {"order_id": order_id, "order_name": order_name, "parameters": dict(parameters)}
        self._images = dict(sorted(images, key=lambda one: one[0]))
        self._bytes = bytes_out
        self._watch.mark(ARCHIVE)

    def add_images(self, images: Sequence[tuple[int, Image]]) -> None:
        """Add images that the order did not list before."""
        self._images.update(images)
        for position, _ in images:
            self._watch.mark(position)

    def response_started(self) -> None:
        """Record that the first byte is about to be sent."""
        self._state = STREAMING
        self._watch.mark(ARCHIVE)

    def entry_opened(self, position: int) -> None:
        """Record that an image is being written."""
        self._writing = position
        self._watch.mark(position)

    def credit_spent(self) -> None:
        """Record that an image has cost a credit."""
        self._credits_spent += 1
        self._watch.mark(ARCHIVE)

    def image_finished(self, outcome: Outcome) -> None:
        """Record the outcome of an image."""
        self._outcomes[outcome.position] = outcome, self._now()
        self._downloaded += outcome.entry is not None
        if self._writing == outcome.position:
            self._writing = None
        self._watch.mark(outcome.position)

    def end(
        self,
        outcome: ArchiveOutcome,
        why: str | None,
        problem: Mapping[str, Any] | None = None,
        *,
        retryable_elsewhere: bool = False,
    ) -> None:
        """Record the end of the archive; ``retryable_elsewhere``: another replica may serve it."""
        bytes_out = self._bytes()
        self._bytes = lambda: bytes_out  # releases the archive itself
        self._state, self._why, self._problem = outcome.value, why, problem
        self.retryable_elsewhere = retryable_elsewhere
        self.ended_at = self._now()
        if self._writing is not None:
            interrupted, self._writing = self._writing, None
            self._watch.mark(interrupted)
        self._watch.mark(END)
        self._on_end(self)

    def snapshot(self) -> dict[str, Any]:
        """Return the whole receipt."""
        return {**self.summary(), "images": [self._image(position) for position in self._images]}

    def summary(self) -> dict[str, Any]:
        """Return the receipt without its images."""
        return {
            "archive_id": self.archive_id,
            "state": self._state,
            "why": self._why,
            "problem": self._problem,
            **self._order,
            "started_at": _isoformat(self._started_at),
            "ended_at": _isoformat(self.ended_at),
            **self._counts(),
        }

    def since(self, version: int) -> list[Change]:
        """Return the current state of everything changed after a version, the latest change last."""
        return [self._change(key, its_version) for key, its_version in self._watch.since(version)]

    async def changed(self, version: int) -> None:
        """Wait for a version newer than ``version``."""
        await self._watch.changed(version)

    def _counts(self) -> dict[str, int]:
        return {
            "total": len(self._images),
            "downloaded": self._downloaded,
            "failed": len(self._outcomes) - self._downloaded,
            "bytes": self._bytes(),
            "credits_spent": self._credits_spent,
        }

    def _image(self, position: int) -> dict[str, Any]:
        image = self._images[position]
        outcome, moment = self._outcomes.get(position, (None, None))
        entry, failure = (outcome.entry, outcome.failure) if outcome is not None else (None, None)
        state = DOWNLOADED if entry else FAILED if failure else WRITING if position == self._writing else WAITING
        return {
            "position": position,
            "image_id": image.image_id,
            "name": image.name,
            "state": state,
            "attempts": outcome.attempts if outcome is not None else 0,
            "entry": entry.name if entry else None,
            "size": entry.size if entry else None,
            "crc32": f"{entry.crc32:08x}" if entry else None,
            "sha256": outcome.sha256 if outcome is not None else None,
            "reason": failure.reason.value if failure else None,
            "detail": failure.detail if failure else None,
            "finished_at": _isoformat(moment),
        }

    def _change(self, key: int | str, version: int) -> Change:
        if isinstance(key, str):
            return Change(version, key, self.summary())
        return Change(version, IMAGE, {**self._image(key), **self._counts()})


class Receipts:
    """The receipts of one process: all running archives, and the newest of those that have ended.

    Ended ones are evicted after ``ttl_seconds``, above ``limit`` receipts, and above ``MAX_ENDED_IMAGES`` images.
    """

    def __init__(
        self, *, limit: int, ttl_seconds: float, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._limit = limit
        self._ttl_seconds = ttl_seconds
        self._now = now
        self._running: dict[str, Receipt] = {}
        self._ended: OrderedDict[str, Receipt] = OrderedDict()  # in the order of eviction
        self._ended_images = 0
        # One channel for all ids. Every registration wakes every waiter, but admission bounds their number.
        self._registrations = Watch()

    def __len__(self) -> int:
        """Return the number of receipts held."""
        self._evict()
        return len(self._running) + len(self._ended)

    def new(self, archive_id: str, *, link: str | None = None, request: str = "", body: str | None = "") -> Receipt:
        """Return a new receipt, which cannot be found until it is registered."""
        return Receipt(archive_id, self._now, self._on_end, link=link, request=request, body=body)

    def register(self, receipt: Receipt) -> None:
        """Make a receipt available under its archive's id; does nothing if it is registered.

        A receipt which would replace another, and whose body has not been read, must be registered again with the body.

        Raises:
            ArchiveIdInUse: another receipt has the id, and may not be replaced by this one.
        """
        self._evict()
        other = self._get(receipt.archive_id)
        if other is receipt:
            return
        if other is not None and not other.retryable_elsewhere:
            if not receipt.may_replace(other):
                raise ArchiveIdInUse("This archive id is in use; choose a new UUID for each download.")
            if receipt.body is None:
                return
            receipt.replace(other)
        if other is not None:
            del self._ended[receipt.archive_id]
            self._ended_images -= other.image_count
        self._running[receipt.archive_id] = receipt
        self._registrations.notify()

    def find(self, archive_id: str) -> Receipt:
        """Return a receipt.

        Raises:
            ArchiveNotFound: there is none, or no longer.
        """
        self._evict()
        receipt = self._get(archive_id)
        if receipt is None:
            raise ArchiveNotFound("This process has no receipt of this archive, or no longer has it.")
        if receipt.retryable_elsewhere:
            raise ArchiveNotFound(
                "This process rejected the download; another may have accepted it.", refused=receipt.problem
            )
        return receipt

    async def wait_registered(self, archive_id: str, seconds: float) -> Receipt:
        """Return a receipt, waiting up to ``seconds`` for its registration.

        Raises:
            ArchiveNotFound: it was not registered in time.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._get(archive_id) is None:
                    await self._registrations.changed(self._registrations.version)
        return self.find(archive_id)

    def _get(self, archive_id: str) -> Receipt | None:
        return self._running.get(archive_id) or self._ended.get(archive_id)

    def _on_end(self, receipt: Receipt) -> None:
        # One that was never registered is not kept: it was rejected because another one runs under its id.
        if self._running.get(receipt.archive_id) is receipt:
            del self._running[receipt.archive_id]
            self._ended[receipt.archive_id] = receipt
            self._ended_images += receipt.image_count

    def _evict(self) -> None:
        """Drop ended receipts that are too old or too many; running ones are never dropped."""
        now = self._now()
        while self._ended:
            oldest = next(iter(self._ended.values()))
            age_seconds = (now - oldest.ended_at).total_seconds() if oldest.ended_at is not None else 0.0
            if (
                age_seconds <= self._ttl_seconds
                and len(self._ended) <= self._limit
                and self._ended_images <= MAX_ENDED_IMAGES
            ):
                return
            self._ended.popitem(last=False)
            self._ended_images -= oldest.image_count


def _isoformat(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="milliseconds") if moment is not None else None
