"""The plan of an archive: names, subsets, and what an order's state means for it."""

from collections.abc import Sequence

import pytest

from service.archive.parameters import ArchiveOptions, OnError
from service.archive.plan import NOT_READY_RETRY_SECONDS, plan_archive
from service.errors import (
    ImageNotInOrder,
    NoImagesAvailable,
    OrderEmpty,
    OrderNotReady,
    TooManyImages,
)
from service.model import Image, Order, Readiness, Reason

ORDER_ID = "3f2b8c1e-5d4a-4e6f-9a7b-0c1d2e3f4a5b"


READY = Readiness.READY


def _order(*images: tuple[str, str] | tuple[str, str, Readiness], busy: bool = False) -> Order:
    return Order(ORDER_ID, "Villa Rosa", busy, [_image(*image) for image in images])


def _image(image_id: str, name: str, readiness: Readiness = READY, reason: str | None = None) -> Image:
    return Image(image_id, name, readiness, status_reason=reason)


def _stems(order: Order, *only: str) -> Sequence[tuple[int, str, str]]:
    plan = plan_archive(order, ArchiveOptions(only=only), max_images=100)
    return [(item.position, item.image.image_id, item.stem) for item in plan.wanted]


SAME_NAMES = _order(("a", "room.jpg"), ("b", "room.jpg"), ("c", "hall.jpg"), ("d", "ROOM.png"))


def test_plan_of_a_whole_order() -> None:
    """Every image gets a name of its own, in the order's order."""
    assert _stems(SAME_NAMES) == [(0, "a", "room"), (1, "b", "room_2"), (2, "c", "hall"), (3, "d", "ROOM_3")]


@pytest.mark.parametrize("only", [["b", "d"], ["d", "b"]], ids=["in_order", "reversed"])
def test_subset_keeps_the_names_of_the_whole(only: list[str]) -> None:
    """Images asked for again land beside those of the first archive under the names they would have had there."""
    assert _stems(SAME_NAMES, *only) == [(1, "b", "room_2"), (3, "d", "ROOM_3")]


def test_image_that_is_not_in_the_order() -> None:
    """The first id of ``only`` that the order does not have is named, also when others are there."""
    with pytest.raises(ImageNotInOrder) as caught:
        _stems(SAME_NAMES, "a", "A", "zzz")

    assert caught.value.extensions == {"parameter": "only", "image_id": "A"}
    assert "'A'" in caught.value.detail


def test_images_without_an_id_cannot_be_chosen() -> None:
    """An image without an id takes part in names and outcomes, but is in no subset."""
    order = _order(("", "room.jpg", Readiness.FAILED), ("b", "room.jpg"))
    plan = plan_archive(order, ArchiveOptions(), max_images=100)

    assert [outcome.position for outcome in plan.unavailable] == [0]
    assert _stems(order, "b") == [(1, "b", "room_2")]


@pytest.mark.parametrize(("max_images", "only", "fits"), [(4, [], True), (3, [], False), (2, ["a", "b"], True)])
def test_how_many_images_fit(max_images: int, only: list[str], *, fits: bool) -> None:
    """What is asked for is counted, not what the order has: a large order can be had in parts."""
    options = ArchiveOptions(only=tuple(only))
    if fits:
        assert plan_archive(SAME_NAMES, options, max_images=max_images).total == (len(only) or 4)
        return
    with pytest.raises(TooManyImages) as caught:
        plan_archive(SAME_NAMES, options, max_images=max_images)
    assert caught.value.extensions == {"images": 4, "max_images": 3}
    assert "only" in caught.value.detail


def test_empty_order() -> None:
    """An order without images is a 404, for nothing will come."""
    with pytest.raises(OrderEmpty) as caught:
        plan_archive(_order(), ArchiveOptions(), max_images=100)
    assert caught.value.status == 404


def test_order_whose_images_are_not_listed_yet() -> None:
    """An order without images that is still at work is a 409 which says when to come back."""
    with pytest.raises(OrderNotReady) as caught:
        plan_archive(_order(busy=True), ArchiveOptions(only=("a",)), max_images=100)
    assert caught.value.status == 409
    assert caught.value.retry_after_seconds == NOT_READY_RETRY_SECONDS


MIXED = Order(
    ORDER_ID,
    "Villa Rosa",
    busy=True,
    images=[
        _image("a", "a.jpg", Readiness.NOT_READY),
        _image("b", "b.jpg"),
        _image("c", "c.jpg", Readiness.FAILED, "too dark"),
        _image("d", "d.jpg", Readiness.EXPIRED),
        _image("e", "e.jpg"),
    ],
)


def test_images_that_cannot_be_had() -> None:
    """They are not asked for but have an outcome from the start: position, reason and the upstream's own words."""
    plan = plan_archive(MIXED, ArchiveOptions(), max_images=100)

    assert [item.image.image_id for item in plan.wanted] == ["b", "e"]
    assert plan.total == 5
    assert [
        (outcome.position, outcome.image.image_id, outcome.failure.reason, outcome.failure.detail)
        for outcome in plan.unavailable
        if outcome.failure
    ] == [
        (0, "a", Reason.NOT_READY, "The image is not processed yet."),
        (2, "c", Reason.PROCESSING_FAILED, "Autoenhance could not process the image: too dark"),
        (3, "d", Reason.EXPIRED, "Autoenhance no longer keeps the image."),
    ]
    assert {(outcome.attempts, outcome.entry) for outcome in plan.unavailable} == {(0, None)}


@pytest.mark.parametrize("readiness", [Readiness.NOT_READY, Readiness.FAILED, Readiness.EXPIRED])
def test_nothing_to_deliver(readiness: Readiness) -> None:
    """Where no image can be had, the answer lists why for each."""
    order = _order(("a", "a.jpg", readiness), ("b", "b.jpg", readiness), busy=True)
    with pytest.raises(NoImagesAvailable) as caught:
        plan_archive(order, ArchiveOptions(), max_images=100)

    assert [failure["image_id"] for failure in caught.value.extensions["failures"]] == ["a", "b"]


def test_subset_without_a_ready_image() -> None:
    """Only what is asked for counts: ready images outside of the subset deliver nothing."""
    with pytest.raises(NoImagesAvailable) as caught:
        plan_archive(MIXED, ArchiveOptions(only=("c",)), max_images=100)

    assert [failure["reason"] for failure in caught.value.extensions["failures"]] == ["processing_failed"]


def test_all_or_nothing() -> None:
    """With ``on_error=abort`` an image known to be missing is an honest status before the first byte."""
    abort = ArchiveOptions(on_error=OnError.ABORT)
    with pytest.raises(NoImagesAvailable) as caught:
        plan_archive(MIXED, abort, max_images=100)
    assert [failure["image_id"] for failure in caught.value.extensions["failures"]] == ["a", "c", "d"]

    whole = plan_archive(MIXED, ArchiveOptions(on_error=OnError.ABORT, only=("b", "e")), max_images=100)
    assert [item.image.image_id for item in whole.wanted] == ["b", "e"]
