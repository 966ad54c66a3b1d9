"""State of the sandbox: orders, images, credits and redirect targets. No I/O."""

import hashlib
import random
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from service.sandbox.variants import FULL_WIDTH, Variant

# Redirect targets kept: enough for every image of a few large archives, retries included.
TARGETS_KEPT = 100_000
# Creation time of the fixed orders; constant, so that every response is the same from run to run.
_EPOCH = datetime(2025, 9, 1, 9, 30, 0, 123456, tzinfo=UTC)


class OutOfCreditsError(Exception):
    """The balance does not cover a purchase."""


@dataclass(slots=True)
class SandboxImage:
    """One image and its behaviour.

    Without ``body`` and ``size_bytes`` it is drawn. ``body`` is served unchanged for all parameters; ``size_bytes``
    generates a body of that size, which is not a real image. ``padding_bytes`` zero bytes follow any of them. With
    ``ready_after_polls`` it starts as ``processing`` and becomes ``ready_status`` after that many polls of its order or
    of itself. ``etags``, ``ranges`` and ``content_lengths`` default to the sandbox's configuration. ``extra`` is merged
    into its JSON; a value of ``...`` removes a field.
    """

    name: str = "image.jpg"
    body: bytes | None = None
    content_type: str | None = None
    size_bytes: int | None = None
    padding_bytes: int = 0
    status: str | None = "processed"
    status_reason: str | None = None
    ready_after_polls: int | None = None
    ready_status: str = "processed"
    downloaded: bool = False
    etags: bool | None = None
    ranges: bool | None = None
    content_lengths: bool | None = None
    width: int = FULL_WIDTH
    picture_seed: int | None = None
    extra: dict[str, object] = field(default_factory=dict)
    image_id: str = ""
    order_id: str = ""
    polls: int = 0
    upload: Path | None = None
    upload_version: str = ""

    def __post_init__(self) -> None:
        if self.ready_after_polls is not None and self.status == "processed":
            self.status = "processing"

    def count_poll(self) -> None:
        """Count a poll, and become ready after ``ready_after_polls``."""
        self.polls += 1
        if self.ready_after_polls is not None and self.polls >= self.ready_after_polls:
            self.ready_after_polls = None
            self.status = self.ready_status


@dataclass(slots=True)
class SandboxOrder:
    """One order. ``is_processing`` is derived from its images unless it is set.

    ``hidden`` maps the number of a poll (from 1) to the image ids that it omits, or to None for ``"images": null``.
    """

    order_id: str
    name: str | None = None
    images: list[SandboxImage] = field(default_factory=list)
    is_merging: bool = False
    is_processing: bool | None = None
    is_deleted: bool = False
    created_at: datetime = _EPOCH
    extra: dict[str, object] = field(default_factory=dict)
    hidden: dict[int, frozenset[str] | None] = field(default_factory=dict)
    polls: int = 0


@dataclass(slots=True)
class RedirectTarget:
    """Destination of one redirect of the API, identified by its token and its signature."""

    token: str
    signature: str
    image: SandboxImage
    variant: Variant
    uses: int = 0
    expired: bool = False
    looping: bool = False
    hops: int = 0


class SandboxState:
    """All orders and images by id, the ledger, and the issued redirect targets."""

    def __init__(self, seed: int) -> None:
        self.orders: dict[str, SandboxOrder] = {}
        self.images: dict[str, SandboxImage] = {}
        self.ledger: dict[str, int] = {}
        self.reused_targets = 0
        self._seed = seed
        self._ids = random.Random(f"ids/{seed}")
        self._tokens = random.Random(f"tokens/{seed}")
        self._by_token: OrderedDict[str, RedirectTarget] = OrderedDict()
        self._by_signature: dict[str, RedirectTarget] = {}
        self._hooks: dict[tuple[str, int], list[Callable[[], object]]] = {}

    def new_id(self) -> str:
        """Return a UUID; the same seed gives the same sequence of them."""
        return str(uuid.UUID(int=self._ids.getrandbits(128), version=4))

    def add_order(self, order: SandboxOrder) -> SandboxOrder:
        """Add an order together with its images."""
        if order.order_id in self.orders:
            raise ValueError(f"order {order.order_id} exists already")
        images, order.images = order.images, []
        order.created_at += timedelta(minutes=len(self.orders))
        self.orders[order.order_id] = order
        self.add_images(order, images)
        return order

    def add_images(self, order: SandboxOrder, images: Iterable[SandboxImage]) -> None:
        """Append images to an order; missing ids are generated."""
        for image in images:
            image.image_id = image.image_id or self.new_id()
            image.order_id = order.order_id
            self.images[image.image_id] = image
            order.images.append(image)

    def remove_image(self, image_id: str) -> None:
        """Remove an image from its order and from the sandbox."""
        image = self.images.pop(image_id)
        self.orders[image.order_id].images.remove(image)

    def on_poll(self, order_id: str, number: int, action: Callable[[], object]) -> None:
        """Run an action right before the response to the poll of an order with that number (from 1)."""
        self._hooks.setdefault((order_id, number), []).append(action)

    def before_poll(self, order: SandboxOrder) -> None:
        """Count a poll and run the actions planned for it."""
        order.polls += 1
        for action in self._hooks.pop((order.order_id, order.polls), ()):
            action()

    def after_poll(self, order: SandboxOrder) -> None:
        """Count the poll at every image of the order."""
        for image in order.images:
            image.count_poll()

    @property
    def credits_spent(self) -> int:
        """The credits spent so far."""
        return sum(self.ledger.values())

    def buy(self, image: SandboxImage, balance: int | None, *, again: bool = False) -> None:
        """Spend a credit on an image unless it is paid for already, or ``again``.

        Raises:
            OutOfCreditsError: the credits spent have reached ``balance``.
        """
        if image.downloaded and not again:
            return
        if balance is not None and self.credits_spent >= balance:
            raise OutOfCreditsError
        self.ledger[image.image_id] = self.ledger.get(image.image_id, 0) + 1
        image.downloaded = True

    def create_target(self, image: SandboxImage, variant: Variant) -> RedirectTarget:
        """Issue a new target."""
        token = f"{self._tokens.getrandbits(128):032x}"
        signature = hashlib.sha256(f"{self._seed}/{token}".encode()).hexdigest()
        target = RedirectTarget(token, signature, image, variant)
        self._by_token[token] = self._by_signature[signature] = target
        while len(self._by_token) > TARGETS_KEPT:
            _, oldest = self._by_token.popitem(last=False)
            del self._by_signature[oldest.signature]
        return target

    def target_by_token(self, token: str) -> RedirectTarget | None:
        """Return the target that the asset hop redirects to."""
        return self._by_token.get(token)

    def use_target(self, signature: str) -> RedirectTarget | None:
        """Return the target of a storage URL and count its use."""
        target = self._by_signature.get(signature)
        if target is not None:
            target.uses += 1
            self.reused_targets += target.uses > 1
        return target

    def expire_targets(self) -> None:
        """Expire every storage URL issued so far."""
        for target in self._by_token.values():
            target.expired = True
