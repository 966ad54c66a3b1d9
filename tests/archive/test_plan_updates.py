"""Plan updates: every image of a changing order is accounted for once, under one name."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.archive.parameters import ArchiveOptions
from service.archive.plan import plan_archive
from service.archive.plan_updates import POLLS_UNTIL_REMOVED, PlanUpdater, may_change
from service.model import Image, ImageOptions, Order, Readiness, Reason

READY, NOT_READY, FAILED, EXPIRED = Readiness.READY, Readiness.NOT_READY, Readiness.FAILED, Readiness.EXPIRED
FULL = ImageOptions(preview=False)


def order(*images: Image, busy: bool = True) -> Order:
    """Return an order."""
    return Order("o", "Order", busy, images)


def image(image_id: str, readiness: Readiness = NOT_READY) -> Image:
    """Return an image; all have the same name, so that the number in its entry name shows its turn."""
    return Image(image_id, "a.jpg", readiness)


def updater_for(first: Order, *, max_images: int = 100, **options: object) -> PlanUpdater:
    """Return an updater for the plan of an order."""
    chosen = replace(ArchiveOptions(wait=60), **options)  # type: ignore[arg-type]
    return PlanUpdater(plan_archive(first, chosen, max_images=max_images), max_images=max_images)


STATES = st.lists(
    st.tuples(st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(Readiness), min_size=1), st.integers(0, 2)),
    min_size=2,
    max_size=6,
)


@given(STATES, st.integers(1, 5))
def test_every_image_is_accounted_for_once(states: Sequence[tuple[dict[str, Readiness], int]], bound: int) -> None:
    """Every image that was ever listed becomes ready or fails, once, under a unique name, whatever changes."""
    polls = [
        order(*(image(one, readiness) for one, readiness in found.items()), *[image("", FAILED)] * unnamed)
        for found, unnamed in states
    ]
    if not any(one.readiness in {READY, NOT_READY} for one in polls[0].images):
        polls[0] = order(image("x"), *polls[0].images)
    bound = max(bound, len(polls[0].images))
    plan = plan_archive(polls[0], ArchiveOptions(wait=60), max_images=bound)
    updater = PlanUpdater(plan, max_images=bound)
    settled = [item.position for item in plan.ready] + [outcome.position for outcome in plan.failures]
    stems = {item.position: item.stem for item in (*plan.ready, *plan.pending)}
    total, fetched = plan.total, len(plan.ready)
    for poll in polls[1:]:
        delta = updater.update(poll)
        total += len(delta.added)
        fetched += len(delta.ready)
        for item in (*delta.added, *delta.ready, *(item for item, _ in delta.failed)):
            assert stems.setdefault(item.position, item.stem) == item.stem
        settled += [item.position for item in delta.ready] + [item.position for item, _ in delta.failed]
    settled += [item.position for item, _ in updater.fail_pending()]
    assert sorted(settled) == list(range(total))
    assert len(set(stems.values())) == len(stems)
    assert fetched <= bound
    assert total >= len({one.image_id for poll in polls for one in poll.images if one.image_id})


def test_added_image_without_an_id_is_reported() -> None:
    """It cannot be requested, so it fails; those listed before are not counted again."""
    updater = updater_for(order(image("a"), image("", FAILED)))
    delta = updater.update(order(image("a"), image("", FAILED), image("", FAILED)))
    assert [(item.position, failure.reason) for item, failure in delta.failed] == [(2, Reason.PROCESSING_FAILED)]
    assert not updater.update(order(image("a"), image("", FAILED), image("", FAILED))).failed


def test_failed_image_releases_its_credit() -> None:
    """max_credits limits the images that are bought, not those that were expected."""
    updater = updater_for(order(image("a", READY), image("b")), image=FULL, max_credits=2)
    delta = updater.update(order(image("a", READY), image("b", FAILED), image("c", READY), image("d", READY)))
    assert [item.image.image_id for item in delta.ready] == ["c"]
    assert {item.image.image_id: failure.reason for item, failure in delta.failed} == {
        "b": Reason.PROCESSING_FAILED,
        "d": Reason.NO_CREDITS,
    }


def test_plan_without_pending_images_may_change_only_with_a_busy_order() -> None:
    """No change is possible once no image is pending and the order is not busy, or the client named its images."""
    updater = updater_for(order(image("a")))
    updater.update(order(image("a", READY)))
    assert updater.may_change, "images may still be added"
    updater.update(order(image("a", READY), busy=False))
    assert not updater.may_change
    updater = updater_for(order(image("a"), image("b")), only=("a",))
    updater.update(order(image("a", EXPIRED), image("b")))
    assert not updater.may_change


def test_order_may_change_only_in_requested_images() -> None:
    """Images that the client did not request do not count."""
    mixed = order(image("a", READY), image("b"))
    assert may_change(mixed, ArchiveOptions())
    assert may_change(mixed, ArchiveOptions(only=("b",)))
    assert not may_change(mixed, ArchiveOptions(only=("a",)))
    assert not may_change(order(image("a", READY), busy=False), ArchiveOptions())


def test_order_without_images_may_change_while_busy() -> None:
    """A busy order may come to list any image that the client names; another one none."""
    for options in (ArchiveOptions(), ArchiveOptions(only=("a",))):
        assert may_change(order(), options)
        assert not may_change(order(busy=False), options)


A, B, A_READY, B_READY = image("a"), image("b"), image("a", READY), image("b", READY)
LACKING = [
    pytest.param(order(), id="busy, lists nothing"),
    pytest.param(order(busy=False), id="lists nothing"),
    pytest.param(order(A), id="busy, lacks one"),
    pytest.param(order(A, busy=False), id="lacks one"),
]


@pytest.mark.parametrize("lacking", LACKING)
def test_image_that_a_poll_misses_stays_pending(lacking: Order) -> None:
    """A few polls without an image do not remove it: it keeps its position and name."""
    updater = updater_for(order(A, B))
    for _ in range(POLLS_UNTIL_REMOVED - 1):
        assert not updater.update(lacking)
        assert updater.may_change
    delta = updater.update(order(A, B_READY))
    assert [(item.position, item.stem) for item in delta.ready] == [(1, "a_2")]
    assert not delta.added
    assert not delta.failed
    for _ in range(POLLS_UNTIL_REMOVED - 1):
        assert not updater.update(order(B_READY, busy=False)), "absences count from the last time it was listed"


def test_image_is_removed_after_several_polls_without_it() -> None:
    """They must follow each other, for an order that is not busy and lists other images."""
    updater = updater_for(order(A, B, busy=False))
    for _ in range(POLLS_UNTIL_REMOVED - 1):
        assert not updater.update(order(A, busy=False))
    ((item, failure),) = updater.update(order(A, busy=False)).failed
    assert (item.position, failure.reason) == (1, Reason.NOT_FOUND)
    assert not updater.update(order(A, B_READY, busy=False)), "it has failed already"


@pytest.mark.parametrize("unknown", [order(), order(busy=False), order(A)])
def test_inconclusive_poll_restarts_the_count(unknown: Order) -> None:
    """While an order is busy or lists nothing, an unlisted image is unknown, however long that lasts."""
    updater = updater_for(order(A, B))
    for _ in range(3):
        for _ in range(POLLS_UNTIL_REMOVED - 1):
            assert not updater.update(order(A, busy=False))
        assert not updater.update(unknown)
    for _ in range(10 * POLLS_UNTIL_REMOVED):
        assert not updater.update(unknown)
    assert updater.may_change
    assert [(item.position, failure.reason) for item, failure in updater.fail_pending()] == [
        (0, Reason.NOT_READY),
        (1, Reason.NOT_READY),
    ]


def test_pending_images_fail_with_what_the_last_poll_shows() -> None:
    """A listed image was not processed in time; for an unlisted one that is unknown."""
    updater = updater_for(order(A, B))
    updater.update(order(A))
    first, second = (failure.detail for _, failure in updater.fail_pending())
    assert first != second


def test_unlisted_image_keeps_its_credit_until_removed() -> None:
    """Its credit stays reserved until the image is removed, and is then free for another one."""
    updater = updater_for(order(A, B), image=FULL, max_credits=2)
    new = order(A, image("c", READY), busy=False)
    assert [failure.reason for _, failure in updater.update(new).failed] == [Reason.NO_CREDITS]
    removed = [failure.reason for _ in range(POLLS_UNTIL_REMOVED - 1) for _, failure in updater.update(new).failed]
    assert removed == [Reason.NOT_FOUND]
    assert [item.position for item in updater.update(order(*new.images, image("d", READY))).ready] == [3]


def test_order_may_grow_until_several_empty_polls() -> None:
    """One empty list does not end the wait; a list that stays empty, of an order that is not busy, does."""
    updater = updater_for(order(A_READY))
    for _ in range(POLLS_UNTIL_REMOVED - 1):
        updater.update(order(busy=False))
        assert updater.may_change
    updater.update(order(busy=False))
    assert not updater.may_change
