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
    return [(item.position, item.image.image_id, item.stem) for item in plan.ready]


SAME_NAMES = _order(("a", "room.jpg"), ("b", "room.jpg"), ("c", "hall.jpg"), ("d", "ROOM.png"))


def test_plan_names_every_image_of_an_order() -> None:
    """Every image gets a unique name, in the order's order."""
    assert _stems(SAME_NAMES) == [(0, "a", "room"), (1, "b", "room_2"), (2, "c", "hall"), (3, "d", "ROOM_3")]


@pytest.mark.parametrize("only", [["b", "d"], ["d", "b"]], ids=["in_order", "reversed"])
def test_subset_has_the_names_of_the_full_archive(only: list[str]) -> None:
    """Images of a repeated request have the names that they would have had in the first archive."""
    assert _stems(SAME_NAMES, *only) == [(1, "b", "room_2"), (3, "d", "ROOM_3")]


def test_unknown_image_id_is_rejected_by_name() -> None:
    """The error names the first id of ``only`` that the order does not have."""
    with pytest.raises(ImageNotInOrder) as caught:
        _stems(SAME_NAMES, "a", "A", "zzz")

    assert caught.value.extensions == {"parameter": "only", "image_id": "A"}
    assert "'A'" in caught.value.detail


def test_image_without_an_id_cannot_be_selected() -> None:
    """An image without an id takes part in names and outcomes, but is in no subset."""
    order = _order(("", "room.jpg", Readiness.FAILED), ("b", "room.jpg"))
    plan = plan_archive(order, ArchiveOptions(), max_images=100)

    assert [outcome.position for outcome in plan.failures] == [0]
    assert _stems(order, "b") == [(1, "b", "room_2")]


@pytest.mark.parametrize(("max_images", "only", "fits"), [(4, [], True), (3, [], False), (2, ["a", "b"], True)])
def test_max_images_limits_the_selection(max_images: int, only: list[str], *, fits: bool) -> None:
    """The limit counts requested images, not those of the order: a large order can be downloaded in parts."""
    options = ArchiveOptions(only=tuple(only))
    if fits:
        assert plan_archive(SAME_NAMES, options, max_images=max_images).total == (len(only) or 4)
        return
    with pytest.raises(TooManyImages) as caught:
        plan_archive(SAME_NAMES, options, max_images=max_images)
    assert caught.value.extensions == {"images": 4, "max_images": 3}
    assert "only" in caught.value.detail


def test_empty_order_is_not_found() -> None:
    """An order without images is a 404: it will not get any."""
    with pytest.raises(OrderEmpty) as caught:
        plan_archive(_order(), ArchiveOptions(), max_images=100)
    assert caught.value.status == 404


def test_busy_order_without_images_is_a_conflict() -> None:
    """An order that is still being merged or processed is a 409 with a time to retry."""
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


def test_unavailable_images_have_an_outcome_from_the_start() -> None:
    """They are not requested; their outcome has the position, the reason and the upstream's own detail."""
    plan = plan_archive(MIXED, ArchiveOptions(), max_images=100)

    assert [item.image.image_id for item in plan.ready] == ["b", "e"]
    assert plan.total == 5
    assert [
        (outcome.position, outcome.image.image_id, outcome.failure.reason, outcome.failure.detail)
        for outcome in plan.failures
        if outcome.failure
    ] == [
        (0, "a", Reason.NOT_READY, "The image is not processed yet."),
        (2, "c", Reason.PROCESSING_FAILED, "Autoenhance could not process the image: too dark"),
        (3, "d", Reason.EXPIRED, "Autoenhance no longer keeps the image."),
    ]
    assert {(outcome.attempts, outcome.entry) for outcome in plan.failures} == {(0, None)}


@pytest.mark.parametrize("readiness", [Readiness.NOT_READY, Readiness.FAILED, Readiness.EXPIRED])
def test_order_without_a_ready_image_lists_every_failure(readiness: Readiness) -> None:
    """Where no image is available, the error lists the reason of each."""
    order = _order(("a", "a.jpg", readiness), ("b", "b.jpg", readiness), busy=True)
    with pytest.raises(NoImagesAvailable) as caught:
        plan_archive(order, ArchiveOptions(), max_images=100)

    assert [failure["image_id"] for failure in caught.value.extensions["failures"]] == ["a", "b"]


def test_subset_without_a_ready_image_is_rejected() -> None:
    """Only requested images count, not ready ones outside of the subset."""
    with pytest.raises(NoImagesAvailable) as caught:
        plan_archive(MIXED, ArchiveOptions(only=("c",)), max_images=100)

    assert [failure["reason"] for failure in caught.value.extensions["failures"]] == ["processing_failed"]


def test_on_error_abort_rejects_a_plan_with_a_missing_image() -> None:
    """With ``on_error=abort`` an image known to be missing is an error status before the first byte."""
    abort = ArchiveOptions(on_error=OnError.ABORT)
    with pytest.raises(NoImagesAvailable) as caught:
        plan_archive(MIXED, abort, max_images=100)
    assert [failure["image_id"] for failure in caught.value.extensions["failures"]] == ["a", "c", "d"]

    whole = plan_archive(MIXED, ArchiveOptions(on_error=OnError.ABORT, only=("b", "e")), max_images=100)
    assert [item.image.image_id for item in whole.ready] == ["b", "e"]
