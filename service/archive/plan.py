"""From query and order to the plan of an archive: what is asked for, under which names, and what cannot be had.

The rule of this folder: no I/O, no async.
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
# Of an image that cannot be asked for, because the order does not list it any more.
TAKEN_OUT = Failure(Reason.NOT_FOUND, "The image was taken out of the order.")
# How long a client should wait before it asks again for an order that is still being merged or processed.
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
