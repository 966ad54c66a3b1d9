"""Archive plan: which images of an order to download, their entry names, and which are known to be missing.

Pure functions of the order and the client's options.
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

# The failure of an image that the order no longer lists.
IMAGE_REMOVED = Failure(Reason.NOT_FOUND, "The image was removed from the order.")
# The Retry-After of an order that is still being merged or processed.
NOT_READY_RETRY_SECONDS = 10


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """An image to download and its entry name without extension, both fixed by its position in the order."""

    position: int
    image: Image
    stem: str


@dataclass(frozen=True, slots=True)
class ArchivePlan:
    """The images of one archive, each in exactly one of three groups.

    ``ready`` images can be downloaded. ``pending`` images may become ready while the client waits. ``failures`` are the
    outcomes of images that are known to be missing.
    """

    order: Order
    options: ArchiveOptions
    ready: Sequence[PlannedImage]
    failures: Sequence[Outcome]
    pending: Sequence[PlannedImage] = ()

    @property
    def total(self) -> int:
        """Number of images that the client requested."""
        return len(self.ready) + len(self.failures) + len(self.pending)


def plan_archive(order: Order, options: ArchiveOptions, *, max_images: int) -> ArchivePlan:
    """Plan the archive of an order.

    Raises:
        OrderNotReady, OrderEmpty: the order lists no image (yet).
        ImageNotInOrder: ``only`` names an id that the order does not have, without ``report_unknown``.
        TooManyImages: the client requests more than ``max_images``.
        NoImagesAvailable: no image is available, or one is not and ``on_error`` is ``abort``.
        CreditsExceeded: the download would buy more images than ``max_credits``.
    """
    if not order.images:
        raise _no_images(order)
    removed = _removed_outcomes(order, options.only) if options.report_unknown else []
    removed_ids = {outcome.image.image_id for outcome in removed}
    only = [image_id for image_id in options.only if image_id not in removed_ids]
    # To select_images an empty ``only`` is every image; here it may be what remains of the client's choice.
    selected = select_images(order, only) if only or not removed else []
    total = len(selected) + len(removed)
    if total > max_images:
        raise TooManyImages(
            f"The request is for {total} images; one archive holds at most {max_images}. Request parts with 'only'.",
            images=total,
            max_images=max_images,
        )
    obtainable = {Readiness.READY, Readiness.NOT_READY} if options.wait else {Readiness.READY}
    ready = [item for item in selected if item.image.readiness is Readiness.READY]
    pending = [item for item in selected if item.image.readiness in obtainable - {Readiness.READY}]
    failures = [*(_failed(item) for item in selected if item.image.readiness not in obtainable), *removed]
    if not ready and not pending:
        raise NoImagesAvailable("No image of the order is ready.", failures)
    if failures and options.on_error is OnError.ABORT:
        raise NoImagesAvailable("Not every image is ready, and on_error=abort requires all images.", failures)
    _check_credits([*ready, *pending], options)
    return ArchivePlan(order, options, ready, failures, pending)


def _check_credits(items: Sequence[PlannedImage], options: ArchiveOptions) -> None:
    price = sum(not item.image.paid for item in items) if options.image.spends_credits else 0
    if options.max_credits is not None and price > options.max_credits:
        raise CreditsExceeded(
            f"The download would buy {price} images; max_credits allows {options.max_credits}.",
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
    """Return the images with the ids of ``only``, or all if it is empty, in the order's order.

    Names are assigned over the whole order, so that a subset has the same names as the full archive.

    Raises:
        ImageNotInOrder: the order has no image with one of the ids.
    """
    stems = entry_stems([image.name for image in order.images])
    items = [PlannedImage(*item) for item in zip(range(len(stems)), order.images, stems, strict=True)]
    if not only:
        return items
    known = {item.image.image_id for item in items}
    for image_id in only:
        if image_id not in known:
            raise ImageNotInOrder("only", f"The order has no image {image_id!r}.", image_id=image_id)
    chosen = set(only)
    return [item for item in items if item.image.image_id in chosen]


def _removed_outcomes(order: Order, only: Sequence[str]) -> list[Outcome]:
    """Return the outcomes of requested images that the order does not list. Their positions follow all others."""
    known = {image.image_id for image in order.images}
    images = [Image(image_id, "", Readiness.FAILED) for image_id in only if image_id not in known]
    return [
        Outcome(position, image, attempts=0, failure=IMAGE_REMOVED)
        for position, image in enumerate(images, start=len(order.images))
    ]


_READINESS_FAILURES = {
    Readiness.NOT_READY: (Reason.NOT_READY, "The image is not processed yet"),
    Readiness.FAILED: (Reason.PROCESSING_FAILED, "Autoenhance could not process the image"),
    Readiness.EXPIRED: (Reason.EXPIRED, "Autoenhance no longer keeps the image"),
}


def readiness_failure(image: Image) -> Failure:
    """Return why an image that is not ready cannot be downloaded, with the upstream's own reason if it gives one."""
    reason, detail = _READINESS_FAILURES[image.readiness]
    return Failure(reason, f"{detail}: {image.status_reason}" if image.status_reason else f"{detail}.")


def _failed(item: PlannedImage) -> Outcome:
    return Outcome(item.position, item.image, attempts=0, failure=readiness_failure(item.image))
