"""From query and order to the plan of an archive: what is asked for, under which names, and what cannot be had.

The rule of this folder: no I/O, no async.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from service.archive.naming import entry_stems
from service.archive.parameters import ArchiveOptions, OnError
from service.errors import (
    CreditsExceeded,
    ImageNotInOrder,
    NoImagesAvailable,
    OrderEmpty,
    OrderNotReady,
    TooManyImages,
)
from service.model import Failure, Image, Order, Outcome, Readiness, Reason

# Of an image that cannot be asked for, because the order does not list it any more.
TAKEN_OUT = Failure(Reason.NOT_FOUND, "The image was taken out of the order.")
# How long a client should wait before it asks again for an order that is still being merged or processed.
NOT_READY_RETRY_SECONDS = 10


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """An image that will be asked for, and the stem of its entry's name: fixed by its position in the order."""

    position: int
    image: Image
    stem: str


@dataclass(frozen=True, slots=True)
class ArchivePlan:
    """What one archive will hold: images to ask for, and the outcomes of those that are known not to be there.

    ``awaited`` are images that are not ready, and may become so while the caller waits.
    """

    order: Order
    options: ArchiveOptions
    wanted: Sequence[PlannedImage]
    unavailable: Sequence[Outcome]
    awaited: Sequence[PlannedImage] = ()

    @property
    def total(self) -> int:
        """Number of images the caller asked for."""
        return len(self.wanted) + len(self.unavailable) + len(self.awaited)


def plan_archive(order: Order, options: ArchiveOptions, *, max_images: int) -> ArchivePlan:
    """Decide what the archive of an order will hold.

    Raises:
        OrderNotReady, OrderEmpty: there is no image (yet).
        ImageNotInOrder: ``only`` names an id the order does not have, and it is not to be reported.
        TooManyImages: more than ``max_images`` are asked for.
        NoImagesAvailable: no image can be had, or one cannot and the caller wants all or nothing.
        CreditsExceeded: more images would have to be bought than the caller allows.
    """
    if not order.images:
        raise _no_images(order)
    gone = _gone(order, options.only) if options.report_unknown else []
    there = set(options.only) - {outcome.image.image_id for outcome in gone}
    selected = select_images(order, [one for one in options.only if one in there]) if there or not gone else []
    asked = len(selected) + len(gone)
    if asked > max_images:
        raise TooManyImages(
            f"{asked} images are asked for, at most {max_images} fit one archive; take parts with 'only'.",
            images=asked,
            max_images=max_images,
        )
    wanted = [item for item in selected if item.image.readiness is Readiness.READY]
    may_come = {Readiness.READY, Readiness.NOT_READY} if options.wait else {Readiness.READY}
    awaited = [item for item in selected if item.image.readiness in may_come - {Readiness.READY}]
    missing = [*(unavailable(item) for item in selected if item.image.readiness not in may_come), *gone]
    if not wanted and not awaited:
        raise NoImagesAvailable("No image of the order is ready.", missing)
    if missing and options.on_error is OnError.ABORT:
        raise NoImagesAvailable("Not every image is ready, and on_error=abort asks for all or nothing.", missing)
    _check_credits([*wanted, *awaited], options)
    return ArchivePlan(order, options, wanted, missing, awaited)


def _check_credits(wanted: Sequence[PlannedImage], options: ArchiveOptions) -> None:
    price = sum(not item.image.paid for item in wanted) if options.image.spends_credits else 0
    if options.max_credits is not None and price > options.max_credits:
        raise CreditsExceeded(
            f"{price} images would have to be bought, at most {options.max_credits} may be.",
            credits=price,
            max_credits=options.max_credits,
        )


def _no_images(order: Order) -> Exception:
    if order.busy:
        return OrderNotReady(
            "The order is still being merged or processed; its images are not listed yet.",
            retry_after_seconds=NOT_READY_RETRY_SECONDS,
        )
    return OrderEmpty("The order exists, but it has no images.")


def select_images(order: Order, only: Sequence[str]) -> list[PlannedImage]:
    """Return the images asked for, all if ``only`` is empty.

    Names are given over the whole order, so that a subset gets the same names as the full archive.

    Raises:
        ImageNotInOrder: the order has no image with one of the ids.
    """
    stems = entry_stems([image.name for image in order.images])
    every = [PlannedImage(*item) for item in zip(range(len(stems)), order.images, stems, strict=True)]
    if not only:
        return every
    known = {item.image.image_id for item in every}
    for image_id in only:
        if image_id not in known:
            raise ImageNotInOrder("only", f"The order has no image {image_id!r}.", image_id=image_id)
    chosen = set(only)
    return [item for item in every if item.image.image_id in chosen]


def _gone(order: Order, only: Sequence[str]) -> list[Outcome]:
    """Return the outcomes of images that the order does not have any more; they come behind all others."""
    known = {image.image_id for image in order.images}
    images = [Image(image_id, "", Readiness.FAILED) for image_id in only if image_id not in known]
    return [
        Outcome(position, image, attempts=0, failure=TAKEN_OUT)
        for position, image in enumerate(images, start=len(order.images))
    ]


_UNAVAILABLE = {
    Readiness.NOT_READY: (Reason.NOT_READY, "The image is not processed yet"),
    Readiness.FAILED: (Reason.PROCESSING_FAILED, "Autoenhance could not process the image"),
    Readiness.EXPIRED: (Reason.EXPIRED, "Autoenhance no longer keeps the image"),
}


def unavailable(item: PlannedImage) -> Outcome:
    """Return the outcome of an image that is not ready: it is not asked for."""
    reason, words = _UNAVAILABLE[item.image.readiness]
    detail = f"{words}: {item.image.status_reason}" if item.image.status_reason else f"{words}."
    return Outcome(item.position, item.image, attempts=0, failure=Failure(reason, detail))
