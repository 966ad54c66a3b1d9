"""Request and response bodies of orders, downloads, receipts and links as pydantic models; see ``schemas``."""

from typing import Annotated, Any

from pydantic import AnyUrl, AwareDatetime, BaseModel, Field, NonNegativeInt, PositiveInt

from service.archive.summary import OrderStatus
from service.model import ArchiveOutcome, Readiness
from service.streaming.receipts import DOWNLOADED, FAILED, PREPARING, STREAMING, WAITING, WRITING
from service.web.openapi.schemas import ABSENT, Exact, ReasonValue, Uuid, one_of

_ReadinessText = Annotated[str, one_of(one.value for one in Readiness)]
_StatusText = Annotated[str, one_of(one.value for one in OrderStatus)]
_ArchiveState = Annotated[str, one_of([PREPARING, STREAMING, *(one.value for one in ArchiveOutcome)])]
_ImageState = Annotated[str, one_of([WAITING, WRITING, DOWNLOADED, FAILED])]


class OrderImage(Exact):
    """An image of an order before the download."""

    position: NonNegativeInt = Field(description="Position in the order, from 0.")
    image_id: str
    name: str = Field(description="Name chosen by the uploader.")
    entry: str = Field(description="Name in the archive; the extension follows the real type.")
    readiness: _ReadinessText
    reason: ReasonValue | None
    detail: str | None
    status: str | None = Field(description="Status word of the API.")
    paid: bool = Field(description="Whether it has been bought in full quality.")


class OrderCounts(Exact):
    """Number of images by readiness."""

    total: NonNegativeInt
    ready: NonNegativeInt
    not_ready: NonNegativeInt
    failed: NonNegativeInt
    expired: NonNegativeInt


class OrderCredits(Exact):
    """Credits that downloads of the order would spend."""

    to_buy: NonNegativeInt = Field(description="Images that a download with these parameters would buy.")
    full_quality: NonNegativeInt = Field(description="Images that a download in full quality would buy.")
    paid: NonNegativeInt = Field(description="Images that have been bought.")


class Order(Exact):
    """An order before the download."""

    order_id: Uuid
    name: str
    status: _StatusText = Field(
        description="`ready`: every image. `partial`: some, and no more will follow. `busy`: more may follow. "
        "`failed`: none, and none will follow. `empty`: no images."
    )
    busy: bool
    archive_name: str = Field(description="File name of the archive.")
    counts: OrderCounts
    credits: OrderCredits
    images: list[OrderImage]
    download: str = Field(description="URL of the download with these parameters.")


class _ArchiveCounts(Exact):
    total: NonNegativeInt
    downloaded: NonNegativeInt
    failed: NonNegativeInt
    bytes: NonNegativeInt = Field(description="Bytes of the archive so far.")
    credits_spent: NonNegativeInt


class _AnyProblem(BaseModel):
    type: str
    title: str
    status: int
    detail: str


class ReceiptSummary(_ArchiveCounts):
    """A receipt without the single images."""

    archive_id: Uuid
    state: _ArchiveState
    why: str | None = Field(description="Why it ended, unless complete.")
    problem: _AnyProblem | None = Field(description="The problem response, if any.")
    order_id: str | None
    order_name: str | None
    parameters: dict[str, str]
    started_at: AwareDatetime
    ended_at: AwareDatetime | None


class ReceiptImage(Exact):
    """The outcome of one image."""

    position: NonNegativeInt
    image_id: str
    name: str
    state: _ImageState
    attempts: NonNegativeInt
    entry: str | None = Field(description="Name in the archive.")
    size: NonNegativeInt | None
    crc32: Annotated[str, Field(pattern="^[0-9a-f]{8}$")] | None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(description="With `manifest=always`.")
    reason: ReasonValue | None
    detail: str | None
    finished_at: AwareDatetime | None


class Receipt(ReceiptSummary):
    """A download so far."""

    images: list[ReceiptImage]


class FinishedImage(ReceiptImage, _ArchiveCounts):
    """The outcome of one image, with the counts of the archive."""


class LinkRequest(Exact):
    """The parameters and lifetime of a link."""

    parameters: dict[str, Any] = Field(
        ABSENT, description="Query parameters of the download, such as `quality`. Not `archive_id`."
    )
    expires_in_seconds: PositiveInt = Field(ABSENT, description="Default: one day.")


class Link(Exact):
    """A signed link."""

    url: AnyUrl
    expires_at: AwareDatetime


class ImageSelection(Exact):
    """A list of images to download."""

    only: list[str] = Field(min_length=1)


class Manifest(BaseModel):
    """The manifest of an earlier archive; only these members are read."""

    missing: list[str]
    order_id: str = ABSENT


MODELS: tuple[type[BaseModel], ...] = (
    Order, Receipt, ReceiptSummary, ReceiptImage, FinishedImage, LinkRequest, Link, ImageSelection, Manifest,
)  # fmt: skip
