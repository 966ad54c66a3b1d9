"""Archive plan: which images of an order to download, their entry names, and which are known to be missing.

Pure functions of the order and the client's options.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from service.archive.naming import entry_stems
from service.archive.writer import Layout
from service.errors import (
    CreditsExceeded,
    ImageNotInOrder,
    InvalidArchiveId,
    InvalidOrderId,
    InvalidParameter,
    NoImagesAvailable,
    OrderEmpty,
    OrderNotReady,
    RepeatedParameter,
    TooManyImages,
    UnknownParameter,
)
from service.model import Failure, Image, ImageOptions, Order, Outcome, Readiness, Reason

FORMATS = ("jpeg", "png", "webp", "avif", "jxl")
# Limits as the API documents them: /images/downloading-images/original (quality) and its schema (the others).
MIN_QUALITY, MAX_QUALITY = 1, 90
# The API states no upper bound for max_width; none of its pictures is wider than this.
MAX_WIDTH_PIXELS = 65_535
# No order is larger.
MAX_CREDITS = 1_000_000
# Longer is never meant; WAIT_MAX_SECONDS bounds it further.
MAX_WAIT_SECONDS = 86_400
# The failure of an image that the order no longer lists.
IMAGE_REMOVED = Failure(Reason.NOT_FOUND, "The image was removed from the order.")
# The Retry-After of an order that is still being merged or processed.
NOT_READY_RETRY_SECONDS = 10

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_DECIMAL = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


class OnError(StrEnum):
    """What a final failure of one image does to the archive."""

    REPORT = "report"
    ABORT = "abort"


class ManifestMode(StrEnum):
    """When report and manifest are added: ``auto`` only after a failure, ``always`` also with a SHA-256 of each."""

    AUTO = "auto"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class ArchiveOptions:
    """Everything a caller may choose about one archive.

    What is in ``only`` must be in the order, unless ``report_unknown``: then it is reported like an image that failed.
    """

    image: ImageOptions = field(default_factory=ImageOptions)
    only: tuple[str, ...] = ()
    report_unknown: bool = False
    on_error: OnError = OnError.REPORT
    manifest: ManifestMode = ManifestMode.AUTO
    layout: Layout = Layout.STREAMABLE
    max_credits: int | None = None
    archive_id: str | None = None
    wait: int = 0  # seconds; named as the parameter


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


def check_order_id(text: str) -> str:
    """Return the order id.

    Raises:
        InvalidOrderId: it is not a UUID in its usual form (RFC 9562 section 4).
    """
    if not _UUID.fullmatch(text):
        raise InvalidOrderId("The order id must be a UUID such as 3f2b8c1e-5d4a-4e6f-9a7b-0c1d2e3f4a5b.")
    return text


def check_archive_id(text: str) -> str:
    """Return the archive id in its usual form.

    Raises:
        InvalidArchiveId: it is not a UUID.
    """
    if not _UUID.fullmatch(text):
        raise InvalidArchiveId("The archive id must be a UUID such as 3f2b8c1e-5d4a-4e6f-9a7b-0c1d2e3f4a5b.")
    return text.lower()


def parse_options(query: Iterable[tuple[str, str]]) -> ArchiveOptions:
    """Read the query's (name, value) pairs, in their order.

    Raises:
        InvalidParameter: a value is out of range, or a parameter is unknown or repeated; the error names it.
    """
    values: dict[str, Any] = {}
    only: list[str] = []
    for name, text in query:
        if name == "only":
            only.append(_image_id(name, text))
        elif name not in _PARSERS:
            raise UnknownParameter(name, f"There is no parameter {name!r}; known are {', '.join(PARAMETERS)}.")
        elif name in values:
            raise RepeatedParameter(name, f"The parameter {name!r} is given more than once.")
        else:
            values[name] = _PARSERS[name](name, text)
    of_archive = {name: values.pop(name) for name in _ARCHIVE_PARAMETERS & values.keys()}
    return ArchiveOptions(ImageOptions(**values), tuple(dict.fromkeys(only)), **of_archive)


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


def _uuid(name: str, text: str) -> str:
    if not _UUID.fullmatch(text):
        raise InvalidParameter(name, f"{name!r} must be a UUID.")
    return text.lower()


def _boolean(name: str, text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise InvalidParameter(name, f"{name!r} must be true or false.")
    return text.lower() == "true"


def _integer(low: int, high: int) -> Callable[[str, str], int]:
    def parse(name: str, text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= len(str(high)) and low <= int(text) <= high):
            raise InvalidParameter(name, f"{name!r} must be a whole number from {low} to {high}.")
        return int(text)

    return parse


def _scale(name: str, text: str) -> float:
    if not _DECIMAL.fullmatch(text) or not 0 < float(text) <= 1:
        raise InvalidParameter(name, f"{name!r} must be a number above 0 and up to 1, such as 0.5.")
    return float(text)


def _one_of(choices: Sequence[str], make: Callable[[str], Any]) -> Callable[[str, str], Any]:
    def parse(name: str, text: str) -> Any:
        if text not in choices:
            raise InvalidParameter(name, f"{name!r} must be one of {', '.join(choices)}.")
        return make(text)

    return parse


def _image_id(name: str, text: str) -> str:
    if not text or not text.isprintable():
        raise InvalidParameter(name, f"{name!r} must be the id of an image of the order.")
    return text


_PARSERS: dict[str, Callable[[str, str], Any]] = {
    "format": _one_of(FORMATS, str),
    "quality": _integer(MIN_QUALITY, MAX_QUALITY),
    "preview": _boolean,
    "dev_mode": _boolean,
    "max_width": _integer(1, MAX_WIDTH_PIXELS),
    "scale": _scale,
    "watermark": _boolean,
    "finetune": _boolean,
    "on_error": _one_of(tuple(OnError), OnError),
    "manifest": _one_of(tuple(ManifestMode), ManifestMode),
    "layout": _one_of(tuple(Layout), Layout),
    "max_credits": _integer(0, MAX_CREDITS),
    "archive_id": _uuid,
    "wait": _integer(0, MAX_WAIT_SECONDS),
}
# Those that are not about the single image.
_ARCHIVE_PARAMETERS = {"on_error", "manifest", "layout", "max_credits", "archive_id", "wait"}
# Every query parameter of an archive, by name.
PARAMETERS = (*_PARSERS, "only")
