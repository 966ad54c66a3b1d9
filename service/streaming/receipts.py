"""What happened to each archive: live while it runs, remembered for a while after. Knows asyncio, but no HTTP.

A receipt's life::

    preparing ──planned──▶ preparing, with its images ──▶ streaming ──▶ ended: complete, partial, aborted, client_gone
        └────────── refused, or nothing could be had ─────────────────▶ ended: rejected, none

A download that was refused for want of room here may be another replica's: it is not known here, and its id is free.
After ``aborted`` or ``client_gone`` the same request may come again under the same id, and its receipt replaces the one
before.

Who watches does so by version: every change has the next number, and of each image the number of its last change is
kept. Whoever was away is told what is so now of all that has changed since. So a slow watcher costs nothing and holds
nobody up, and there is no queue.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any

from service.errors import ArchiveIdInUse, ArchiveNotFound
from service.model import ArchiveOutcome, Image, Outcome

# Of all ended archives together; an image's facts take about 1 KB.
IMAGES_KEPT = 50_000
PREPARING, STREAMING = "preparing", "streaming"
WAITING, WRITING, DOWNLOADED, FAILED = "waiting", "writing", "downloaded", "failed"
IMAGE, ARCHIVE, END = "image", "archive", "end"
_BROKEN_OFF = frozenset({ArchiveOutcome.ABORTED, ArchiveOutcome.CLIENT_GONE})


@dataclass(frozen=True, slots=True)
class Change:
    """Something that has changed: ``kind`` is ``image``, ``archive`` or ``end``, ``data`` what is so now."""

    version: int
    kind: str
    data: Mapping[str, Any]


class Receipt:
    """One archive, as far as it has come. ``now`` gives the time of day, ``link`` what let its caller in, if any.

    ``request`` is an opaque digest of the client and its request, ``body`` one of the body: ``None`` until it is read.
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
        self.version = 0
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
        # What has changed, by when it last did: the position of an image, or one of the other kinds.
        self._changes: dict[int | str, int] = {}
        self._watchers: set[asyncio.Future[None]] = set()

    @property
    def problem(self) -> Mapping[str, Any] | None:
        """What was answered instead of the archive."""
        return self._problem

    @property
    def broken_off(self) -> bool:
        """Whether the archive ended in its middle: the same request may come again under the same id."""
        return self._state in _BROKEN_OFF

    @property
    def image_count(self) -> int:
        """Number of images whose facts are held."""
        return len(self._images)

    def may_replace(self, other: "Receipt") -> bool:
        """Whether this is another try of the request that led to ``other``, which was broken off."""
        same_body = self.body == other.body or None in {self.body, other.body}
        return other.broken_off and self.request == other.request and same_body

    def replace(self, other: "Receipt") -> None:
        """Go on with the versions of ``other``: a watcher that has seen any of them gets all of this receipt."""
        self.version = self.replaced_version = other.version
        self._changed(ARCHIVE)

    def planned(
        self,
        *,
        order_id: str,
        order_name: str,
        parameters: Mapping[str, Any],
        images: Sequence[tuple[int, Image]],
        bytes_out: Callable[[], int],
    ) -> None:
        """Note what the archive is to hold; ``bytes_out`` is asked how many bytes of it there are."""
        self._order = {"order_id": order_id, "order_name": order_name, "parameters": dict(parameters)}
        self._images = dict(sorted(images, key=lambda one: one[0]))
        self._bytes = bytes_out
        self._changed(ARCHIVE)

    def appeared(self, images: Sequence[tuple[int, Image]]) -> None:
        """Note images that the order did not list before."""
        self._images.update(images)
        for position, _ in images:
            self._changed(position)

    def streaming(self) -> None:
        """Note that the first byte is about to go to the client."""
        self._state = STREAMING
        self._changed(ARCHIVE)

    def writing(self, position: int) -> None:
        """Note that an image is being written."""
        self._writing = position
        self._changed(position)

    def bought(self) -> None:
        """Note that an image has cost a credit."""
        self._credits_spent += 1
        self._changed(ARCHIVE)

    def image_finished(self, outcome: Outcome) -> None:
        """Note what became of an image."""
        self._outcomes[outcome.position] = outcome, self._now()
        self._downloaded += outcome.entry is not None
        if self._writing == outcome.position:
            self._writing = None
        self._changed(outcome.position)

    def end(
        self,
        outcome: ArchiveOutcome,
        why: str | None,
        problem: Mapping[str, Any] | None = None,
        *,
        retryable_elsewhere: bool = False,
    ) -> None:
        """Note how the archive ended; ``retryable_elsewhere``: another replica may serve it."""
        bytes_out = self._bytes()
        self._bytes = lambda: bytes_out  # the archive itself can go
        self._state, self._why, self._problem = outcome.value, why, problem
        self.retryable_elsewhere = retryable_elsewhere
        self.ended_at = self._now()
        if self._writing is not None:
            broken_off, self._writing = self._writing, None
            self._changed(broken_off)
        self._changed(END)
        self._on_end(self)

    def snapshot(self) -> dict[str, Any]:
        """Return everything."""
        return {**self.summary(), "images": [self._image(position) for position in self._images]}

    def summary(self) -> dict[str, Any]:
        """Return everything but the single images."""
        return {
            "archive_id": self.archive_id,
            "state": self._state,
            "why": self._why,
            "problem": self._problem,
            **self._order,
            "started_at": _text(self._started_at),
            "ended_at": _text(self.ended_at),
            **self._counts(),
        }

    def since(self, version: int) -> list[Change]:
        """Return what has changed after a version, as it is now; what changed last comes last."""
        missed = takewhile(lambda change: change[1] > version, reversed(self._changes.items()))
        return [self._change(what, its_version) for what, its_version in missed][::-1]

    async def changed(self, version: int) -> None:
        """Return when there is something newer than a version."""
        if self.version > version:
            return
        watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watchers.add(watcher)
        try:
            await watcher
        finally:
            self._watchers.discard(watcher)

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
            "finished_at": _text(moment),
        }

    def _change(self, what: int | str, version: int) -> Change:
        if isinstance(what, str):
            return Change(version, what, self.summary())
        return Change(version, IMAGE, {**self._image(what), **self._counts()})

    def _changed(self, what: int | str) -> None:
        self.version += 1
        self._changes.pop(what, None)  # so that it comes last
        self._changes[what] = self.version
        for watcher in self._watchers:
            if not watcher.done():
                watcher.set_result(None)


class Receipts:
    """The receipts of one process: all of the archives that run, and the newest of those that have ended.

    Ended ones are forgotten after ``ttl_seconds``, above ``limit`` in number, and above ``IMAGES_KEPT`` images in all.
    """

    def __init__(
        self, *, limit: int, ttl_seconds: float, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._limit = limit
        self._ttl_seconds = ttl_seconds
        self._now = now
        self._running: dict[str, Receipt] = {}
        self._ended: OrderedDict[str, Receipt] = OrderedDict()  # the first to be forgotten comes first
        self._images = 0  # of those that have ended
        self._awaited: dict[str, set[asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        """Return how many are held."""
        self._forget()
        return len(self._running) + len(self._ended)

    def new(self, archive_id: str, *, link: str | None = None, request: str = "", body: str | None = "") -> Receipt:
        """Return a receipt that cannot be found before it is filed."""
        return Receipt(archive_id, self._now, self._has_ended, link=link, request=request, body=body)

    def file(self, receipt: Receipt) -> None:
        """Make a receipt known by its archive's id; does nothing if it is known.

        A receipt which would replace another, and whose body has not been read, has to be filed again with the body.

        Raises:
            ArchiveIdInUse: another one has it, which this one may not replace.
        """
        self._forget()
        other = self._held(receipt.archive_id)
        if other is receipt:
            return
        if other is not None and not other.retryable_elsewhere:
            if not receipt.may_replace(other):
                raise ArchiveIdInUse("This archive id is taken; choose a new UUID for each download.")
            if receipt.body is None:
                return
            receipt.replace(other)
        if other is not None:
            del self._ended[receipt.archive_id]
            self._images -= other.image_count
        self._running[receipt.archive_id] = receipt
        for waiting in self._awaited.pop(receipt.archive_id, ()):
            if not waiting.done():
                waiting.set_result(None)

    def find(self, archive_id: str) -> Receipt:
        """Return a receipt.

        Raises:
            ArchiveNotFound: there is none, or not any more.
        """
        self._forget()
        receipt = self._held(archive_id)
        if receipt is None:
            raise ArchiveNotFound("This process knows no such archive, or has forgotten it.")
        if receipt.retryable_elsewhere:
            raise ArchiveNotFound("This process refused it; another may have taken it.", refused=receipt.problem)
        return receipt

    async def wait_registered(self, archive_id: str, seconds: float) -> Receipt:
        """Return a receipt that may be filed within so many seconds.

        Raises:
            ArchiveNotFound: it was not.
        """
        if self._held(archive_id) is None:
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._awaited.setdefault(archive_id, set()).add(waiting)
            try:
                await asyncio.wait([waiting], timeout=seconds)
            finally:
                others = self._awaited.get(archive_id, set())
                others.discard(waiting)
                if not others:
                    self._awaited.pop(archive_id, None)
        return self.find(archive_id)

    def _held(self, archive_id: str) -> Receipt | None:
        return self._running.get(archive_id) or self._ended.get(archive_id)

    def _has_ended(self, receipt: Receipt) -> None:
        # One that was never filed is nobody's, and another may run under its id: it was refused for that.
        if self._running.get(receipt.archive_id) is receipt:
            del self._running[receipt.archive_id]
            self._ended[receipt.archive_id] = receipt
            self._images += receipt.image_count

    def _forget(self) -> None:
        """Drop what is too old or too much; archives that run are never dropped."""
        now = self._now()
        while self._ended:
            oldest = next(iter(self._ended.values()))
            age_seconds = (now - oldest.ended_at).total_seconds() if oldest.ended_at is not None else 0.0
            if age_seconds <= self._ttl_seconds and len(self._ended) <= self._limit and self._images <= IMAGES_KEPT:
                return
            self._ended.popitem(last=False)
            self._images -= oldest.image_count


def _text(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="milliseconds") if moment is not None else None
