"""Receipts: the recorded facts of each archive, their retention, and the changes that a watcher gets."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import ArchiveIdInUse, ArchiveNotFound
from service.model import ArchiveOutcome, Entry, Failure, Image, Outcome, Readiness, Reason
from service.streaming.receipts import MAX_ENDED_IMAGES, Receipt, Receipts

IMAGES = [Image(f"id-{n}", f"{n}.jpg", Readiness.READY) for n in range(3)]


class Clock:
    """A manual clock."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        """Return the time."""
        return self.moment


def registered(receipts: Receipts, archive_id: str, images: Sequence[Image] = ()) -> Receipt:
    """Return the registered receipt of a new archive."""
    receipt = receipts.new(archive_id)
    receipts.register(receipt)
    receipt.set_plan(order_id="o", order_name="n", parameters={}, images=list(enumerate(images)), bytes_out=lambda: 7)
    return receipt


def outcome(position: int, *, good: bool) -> Outcome:
    """Return the outcome of an image."""
    if good:
        return Outcome(position, IMAGES[position % 3], 1, entry=Entry(f"{position}.jpg", 5, 0xAB))
    return Outcome(position, IMAGES[position % 3], 3, failure=Failure(Reason.TIMEOUT, "too slow"))


def test_receipt_follows_each_image() -> None:
    """States, counts and facts follow the events of the archive."""
    receipts = Receipts(limit=10, ttl_seconds=60)
    receipt = registered(receipts, "a", IMAGES)
    receipt.response_started()
    receipt.image_finished(outcome(0, good=True))
    receipt.credit_spent()
    receipt.image_finished(outcome(1, good=False))
    receipt.entry_opened(2)
    found = receipts.find("a").snapshot()
    assert [one["state"] for one in found["images"]] == ["downloaded", "failed", "writing"]
    assert (found["state"], found["total"], found["downloaded"], found["failed"]) == ("streaming", 3, 1, 1)
    assert (found["bytes"], found["credits_spent"], found["ended_at"]) == (7, 1, None)
    assert (found["images"][0]["entry"], found["images"][0]["crc32"]) == ("0.jpg", "000000ab")
    assert (found["images"][1]["reason"], found["images"][1]["attempts"]) == ("timeout", 3)
    receipt.end(ArchiveOutcome.CLIENT_GONE, "client-left")
    found = receipts.find("a").snapshot()
    assert (found["state"], found["why"], found["images"][2]["state"]) == ("client_gone", "client-left", "waiting")
    assert found["ended_at"] is not None


def test_id_is_in_use_until_its_receipt_expires() -> None:
    """The id of an archive can be reused neither while it runs nor while its receipt is kept."""
    clock = Clock()
    receipts = Receipts(limit=10, ttl_seconds=60, now=clock)
    receipt = registered(receipts, "a")
    for _ in range(2):
        with pytest.raises(ArchiveIdInUse):
            receipts.register(receipts.new("a"))
        receipt.end(ArchiveOutcome.COMPLETE, None)
    clock.moment += timedelta(seconds=61)
    receipts.register(receipts.new("a"))


def test_replaced_receipt_does_not_count() -> None:
    """The images of a replaced receipt do not count towards the bound."""
    receipts = Receipts(limit=1000, ttl_seconds=60)
    registered(receipts, "other").end(ArchiveOutcome.COMPLETE, None)
    for _ in range(3):
        registered(receipts, "a", [IMAGES[0]] * (MAX_ENDED_IMAGES // 2)).end(ArchiveOutcome.CLIENT_GONE, "client-left")
    assert len(receipts) == 2


@pytest.mark.parametrize("outcome", list(ArchiveOutcome))
def test_only_aborted_archives_can_be_repeated(outcome: ArchiveOutcome) -> None:
    """After any other outcome the id stays in use."""
    receipts = Receipts(limit=10, ttl_seconds=60)
    registered(receipts, "a").end(outcome, None)
    if outcome in {ArchiveOutcome.ABORTED, ArchiveOutcome.CLIENT_GONE}:
        again = registered(receipts, "a")
        assert receipts.find("a") is again
    else:
        with pytest.raises(ArchiveIdInUse):
            receipts.register(receipts.new("a"))


def test_rejected_request_does_not_end_the_running_archive() -> None:
    """The end of a request for an id in use does not affect the archive that has the id."""
    clock = Clock()
    receipts = Receipts(limit=1, ttl_seconds=60, now=clock)
    running = registered(receipts, "a", IMAGES)
    rejected = receipts.new("a")
    with pytest.raises(ArchiveIdInUse):
        receipts.register(rejected)
    rejected.end(ArchiveOutcome.REJECTED, "archive-id-in-use")
    for name in ("b", "c"):
        registered(receipts, name).end(ArchiveOutcome.COMPLETE, None)
    assert receipts.find("a") is running
    clock.moment += timedelta(seconds=61)
    assert len(receipts) == 1


def test_oldest_receipts_are_evicted() -> None:
    """Number, age and images are bounded; receipts of running archives are never evicted."""
    clock = Clock()
    receipts = Receipts(limit=2, ttl_seconds=60, now=clock)
    running = registered(receipts, "running")
    for name in ("a", "b", "c"):
        registered(receipts, name).end(ArchiveOutcome.COMPLETE, None)
    assert len(receipts) == 3
    with pytest.raises(ArchiveNotFound):
        receipts.find("a")
    clock.moment += timedelta(seconds=61)
    assert len(receipts) == 1
    assert receipts.find("running") is running


def test_total_of_images_is_bounded() -> None:
    """A few large orders fill the bound like many small ones."""
    receipts = Receipts(limit=1000, ttl_seconds=60)
    for name in ("a", "b", "c"):
        registered(receipts, name, [IMAGES[0]] * (MAX_ENDED_IMAGES // 2)).end(ArchiveOutcome.COMPLETE, None)
    assert len(receipts) == 2


EVENTS = st.one_of(
    st.tuples(st.just("writing"), st.integers(0, 5)),
    st.tuples(st.sampled_from(["downloaded", "failed"]), st.integers(0, 5)),
    st.tuples(st.sampled_from(["appeared", "streaming", "end"]), st.just(0)),
)


def apply_event(receipt: Receipt, kind: str, position: int) -> None:
    """Apply one event to a receipt."""
    if kind == "writing":
        if "writing" not in {one["state"] for one in receipt.snapshot()["images"]}:
            receipt.entry_opened(position % receipt.image_count)
    elif kind == "appeared":
        receipt.add_images([(receipt.image_count, IMAGES[0])])
    elif kind == "streaming":
        receipt.response_started()
    elif kind == "end":
        receipt.end(ArchiveOutcome.PARTIAL, "timeout")
    else:
        receipt.image_finished(outcome(position % receipt.image_count, good=kind == "downloaded"))


@given(st.lists(EVENTS, max_size=30), st.lists(EVENTS, max_size=30))
def test_changes_since_a_version_are_complete(before: list[tuple[str, int]], after: list[tuple[str, int]]) -> None:
    """A snapshot plus the changes since its version is the current state; each change occurs once, in order."""
    receipt = registered(Receipts(limit=1, ttl_seconds=1), "a", IMAGES)
    for one in before:
        apply_event(receipt, *one)
    version, then = receipt.version, receipt.snapshot()
    for one in after:
        apply_event(receipt, *one)
    changes = receipt.since(version)
    images = {one["position"]: one for one in then.pop("images")}
    for change in changes:
        data = dict(change.data)
        if change.kind == "image":
            image = {name: data.pop(name) for name in receipt.snapshot()["images"][0]}
            images[image["position"]] = image
        then |= data
    now = receipt.snapshot()
    assert [images[position] for position in sorted(images)] == now["images"]
    assert then == {name: value for name, value in now.items() if name != "images"}
    versions = [change.version for change in changes]
    assert versions == sorted(set(versions))
    assert all(version < one <= receipt.version for one in versions)
    assert receipt.since(receipt.version) == []


async def test_watcher_waits_for_registration_and_changes() -> None:
    """A watcher may start before the archive is registered; it then wakes at the next change."""
    receipts = Receipts(limit=1, ttl_seconds=60)
    with pytest.raises(ArchiveNotFound):
        await receipts.wait_registered("a", 0)
    early = asyncio.create_task(receipts.wait_registered("a", 60))
    await asyncio.sleep(0)
    receipt = registered(receipts, "a", IMAGES)
    assert await early is receipt
    watching = asyncio.create_task(receipt.changed(receipt.version))
    await asyncio.sleep(0)
    assert not watching.done()
    receipt.response_started()
    await watching
