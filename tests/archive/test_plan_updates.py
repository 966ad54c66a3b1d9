"""Orders that change while their archive streams: every image is accounted for, once, under the name it was given."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.archive.parameters import ArchiveOptions
from service.archive.plan import plan_archive
from service.archive.plan_updates import LOOK_UPS_UNTIL_GONE, PlanUpdater, may_change
from service.model import Image, ImageOptions, Order, Readiness, Reason

READY, NOT_READY, FAILED, EXPIRED = Readiness.READY, Readiness.NOT_READY, Readiness.FAILED, Readiness.EXPIRED
FULL = ImageOptions(preview=False)


def order(*images: Image, busy: bool = True) -> Order:
    """Return an order."""
    return Order("o", "Order", busy, images)


def image(image_id: str, readiness: Readiness = NOT_READY) -> Image:
    """Return an image; all have the same name, so that its number shows when it was given."""
    return Image(image_id, "a.jpg", readiness)


def live(first: Order, *, max_images: int = 100, **options: object) -> PlanUpdater:
    """Return what follows an order from its first look."""
    chosen = replace(ArchiveOptions(wait=60), **options)  # type: ignore[arg-type]
    return PlanUpdater(plan_archive(first, chosen, max_images=max_images), max_images=max_images)


STATES = st.lists(
    st.tuples(st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(Readiness), min_size=1), st.integers(0, 2)),
    min_size=2,
    max_size=6,
)


@given(STATES, st.integers(1, 5))
def test_every_image_is_accounted_for_once(states: Sequence[tuple[dict[str, Readiness], int]], bound: int) -> None:
    """Whatever comes, goes and changes: what was ever listed becomes ready or fails, once, with a name of its own."""
    looks = [
        order(*(image(one, readiness) for one, readiness in found.items()), *[image("", FAILED)] * unnamed)
        for found, unnamed in states
    ]
    if not any(one.readiness in {READY, NOT_READY} for one in looks[0].images):
        looks[0] = order(image("x"), *looks[0].images)
    bound = max(bound, len(looks[0].images))
    plan = plan_archive(looks[0], ArchiveOptions(wait=60), max_images=bound)
    following = PlanUpdater(plan, max_images=bound)
    settled = [item.position for item in plan.wanted] + [outcome.position for outcome in plan.unavailable]
    stems = {item.position: item.stem for item in (*plan.wanted, *plan.awaited)}
    total, fetched = plan.total, len(plan.wanted)
    for look in looks[1:]:
        news = following.update(look)
        total += len(news.appeared)
        fetched += len(news.ready)
        for item in (*news.appeared, *news.ready, *(item for item, _ in news.failed)):
            assert stems.setdefault(item.position, item.stem) == item.stem
        settled += [item.position for item in news.ready] + [item.position for item, _ in news.failed]
    settled += [item.position for item, _ in following.leftovers()]
    assert sorted(settled) == list(range(total))
    assert len(set(stems.values())) == len(stems)
    assert fetched <= bound
    assert total >= len({one.image_id for look in looks for one in look.images if one.image_id})


def test_an_image_without_an_id_is_not_dropped() -> None:
    """It cannot be asked for, so it is reported; those that were there before are not counted again."""
    following = live(order(image("a"), image("", FAILED)))
    news = following.update(order(image("a"), image("", FAILED), image("", FAILED)))
    assert [(item.position, failure.reason) for item, failure in news.failed] == [(2, Reason.PROCESSING_FAILED)]
    assert not following.update(order(image("a"), image("", FAILED), image("", FAILED))).failed


def test_what_fails_leaves_its_credit_to_others() -> None:
    """max_credits bounds what is bought, not what was once hoped for."""
    following = live(order(image("a", READY), image("b")), image=FULL, max_credits=2)
    news = following.update(order(image("a", READY), image("b", FAILED), image("c", READY), image("d", READY)))
    assert [item.image.image_id for item in news.ready] == ["c"]
    assert {item.image.image_id: failure.reason for item, failure in news.failed} == {
        "b": Reason.PROCESSING_FAILED,
        "d": Reason.NO_CREDITS,
    }


def test_the_end_of_waiting() -> None:
    """Nothing more can come once no image is awaited and the order is not busy, or the caller named its images."""
    following = live(order(image("a")))
    following.update(order(image("a", READY)))
    assert following.waiting, "others may still appear"
    following.update(order(image("a", READY), busy=False))
    assert not following.waiting
    following = live(order(image("a"), image("b")), only=("a",))
    following.update(order(image("a", EXPIRED), image("b")))
    assert not following.waiting


def test_what_is_worth_waiting_for() -> None:
    """Only what the caller asked for counts."""
    mixed = order(image("a", READY), image("b"))
    assert may_change(mixed, ArchiveOptions())
    assert may_change(mixed, ArchiveOptions(only=("b",)))
    assert not may_change(mixed, ArchiveOptions(only=("a",)))
    assert not may_change(order(image("a", READY), busy=False), ArchiveOptions())


def test_an_order_that_lists_nothing_yet() -> None:
    """While it is busy it may come to list whatever the caller names; when it is not, nothing."""
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
def test_an_image_that_comes_back(lacking: Order) -> None:
    """One look-up without an image says nothing about it: it is awaited, and taken up as what it was."""
    following = live(order(A, B))
    for _ in range(LOOK_UPS_UNTIL_GONE - 1):
        assert not following.update(lacking)
        assert following.waiting
    news = following.update(order(A, B_READY))
    assert [(item.position, item.stem) for item in news.ready] == [(1, "a_2")]
    assert not news.appeared
    assert not news.failed
    for _ in range(LOOK_UPS_UNTIL_GONE - 1):
        assert not following.update(order(B_READY, busy=False)), "absences count from the last time it was listed"


def test_an_image_that_is_gone() -> None:
    """It is missing in several look-ups in a row of an order that is not busy and lists others."""
    following = live(order(A, B, busy=False))
    for _ in range(LOOK_UPS_UNTIL_GONE - 1):
        assert not following.update(order(A, busy=False))
    ((item, failure),) = following.update(order(A, busy=False)).failed
    assert (item.position, failure.reason) == (1, Reason.NOT_FOUND)
    assert not following.update(order(A, B_READY, busy=False)), "it is accounted for"


@pytest.mark.parametrize("unknown", [order(), order(busy=False), order(A)])
def test_look_ups_that_say_nothing_interrupt_the_row(unknown: Order) -> None:
    """While an order is busy or lists nothing, an image that is not listed is unknown, for however long."""
    following = live(order(A, B))
    for _ in range(3):
        for _ in range(LOOK_UPS_UNTIL_GONE - 1):
            assert not following.update(order(A, busy=False))
        assert not following.update(unknown)
    for _ in range(10 * LOOK_UPS_UNTIL_GONE):
        assert not following.update(unknown)
    assert following.waiting
    assert [(item.position, failure.reason) for item, failure in following.leftovers()] == [
        (0, Reason.NOT_READY),
        (1, Reason.NOT_READY),
    ]


def test_what_is_not_listed_in_the_end_is_reported_so() -> None:
    """An image that is listed was not processed in time; of another one that is unknown."""
    following = live(order(A, B))
    following.update(order(A))
    first, second = (failure.detail for _, failure in following.leftovers())
    assert first != second


def test_the_credit_of_an_image_that_may_come_back() -> None:
    """It stays reserved until the image is gone, and is free for another one then."""
    following = live(order(A, B), image=FULL, max_credits=2)
    new = order(A, image("c", READY), busy=False)
    assert [failure.reason for _, failure in following.update(new).failed] == [Reason.NO_CREDITS]
    gone = [failure.reason for _ in range(LOOK_UPS_UNTIL_GONE - 1) for _, failure in following.update(new).failed]
    assert gone == [Reason.NOT_FOUND]
    assert [item.position for item in following.update(order(*new.images, image("d", READY))).ready] == [3]


def test_an_order_that_lists_nothing_for_a_moment_may_still_grow() -> None:
    """A list that is empty once ends no waiting; one that stays empty, of an order that is not busy, does."""
    following = live(order(A_READY))
    for _ in range(LOOK_UPS_UNTIL_GONE - 1):
        following.update(order(busy=False))
        assert following.waiting
    following.update(order(busy=False))
    assert not following.waiting
