"""An order that changes while its archive streams: which images have become ready, which never will."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.archive.naming import entry_stems
from service.archive.plan import TAKEN_OUT, ArchiveOptions, ArchivePlan, PlannedImage, unavailable
from service.model import Failure, Image, Order, Readiness, Reason


@dataclass(frozen=True, slots=True)
class News:
    """What a later look at the order has brought.

    ``appeared`` were not listed before; ``ready`` can be asked for now; ``failed`` never come, for the given reasons.
    """

    appeared: Sequence[PlannedImage]
    ready: Sequence[PlannedImage]
    failed: Sequence[tuple[PlannedImage, Failure]]


def may_change(order: Order, options: ArchiveOptions) -> bool:
    """Tell whether what the caller asked for may still become ready, or appear.

    As long as a busy order lists nothing, nobody can know whether it will have the images that the caller names.
    """
    if not order.images:
        return order.busy
    if options.only:
        return any(image.readiness is Readiness.NOT_READY and image.image_id in options.only for image in order.images)
    return order.busy or any(image.readiness is Readiness.NOT_READY for image in order.images)


class LivePlan:
    """Follows an order from the plan that its archive began with.

    Positions and names, once given, stay: an image that appears later comes behind all others. ``max_images`` and the
    caller's ``max_credits`` bound what may appear.
    """

    def __init__(self, plan: ArchivePlan, *, max_images: int) -> None:
        self._options = plan.options
        self._max_images = max_images
        self._images: list[Image] = list(plan.order.images)
        self._known = {image.image_id for image in self._images}
        self._unnamed = sum(not image.image_id for image in self._images)
        self._awaited = {item.image.image_id: item for item in plan.awaited}
        self._total = plan.total
        self._may_grow = plan.order.busy and not plan.options.only
        price = [item for item in (*plan.wanted, *plan.awaited) if not item.image.paid]
        bound = plan.options.max_credits
        self._credits_left = bound - len(price) if bound is not None and plan.options.image.spends_credits else None

    @property
    def waiting(self) -> bool:
        """Whether a later look can bring anything."""
        return bool(self._awaited) or self._may_grow

    def update(self, order: Order) -> News:
        """Take in what the order is now."""
        self._may_grow = order.busy and not self._options.only
        listed = {image.image_id: image for image in order.images if image.image_id}
        ready, failed = self._settled(listed)
        appeared, refused = self._appeared(order)
        at_once, never = self._settled(listed)
        return News(appeared, [*ready, *at_once], [*failed, *refused, *never])

    def _settled(self, listed: Mapping[str, Image]) -> tuple[list[PlannedImage], list[tuple[PlannedImage, Failure]]]:
        """Return which of the awaited images have become ready and which never will; these need no credit any more."""
        ready: list[PlannedImage] = []
        failed: list[tuple[PlannedImage, Failure]] = []
        for image_id, item in list(self._awaited.items()):
            image = listed.get(image_id)
            if image is None:
                failed.append((item, TAKEN_OUT))
            elif image.readiness is Readiness.READY:
                ready.append(PlannedImage(item.position, image, item.stem))
            elif image.readiness is not Readiness.NOT_READY:
                failure = unavailable(PlannedImage(item.position, image, item.stem)).failure
                failed.append((item, failure or Failure(Reason.PROCESSING_FAILED, "")))
            else:
                continue
            del self._awaited[image_id]
        if self._credits_left is not None:
            self._credits_left += sum(not item.image.paid for item, _ in failed)
        return ready, failed

    def leftovers(self) -> Sequence[tuple[PlannedImage, Failure]]:
        """Return what is still not ready when the wait is over; nothing is waited for any more."""
        rest, self._awaited = self._awaited, {}
        return [(item, Failure(Reason.NOT_READY, "The image was not processed in time.")) for item in rest.values()]

    def _appeared(self, order: Order) -> tuple[list[PlannedImage], list[tuple[PlannedImage, Failure]]]:
        # Without an id none can be told from another: only how many there are.
        unnamed = [image for image in order.images if not image.image_id][self._unnamed :]
        new = [image for image in order.images if image.image_id and image.image_id not in self._known] + unnamed
        if self._options.only or not new:
            return [], []
        first = len(self._images)
        self._images += new
        self._unnamed += len(unnamed)
        self._known |= {image.image_id for image in new}
        # Names are given one after the other: those that were given before come out the same.
        stems = entry_stems([image.name for image in self._images])[first:]
        appeared = [
            PlannedImage(first + n, image, stem) for n, (image, stem) in enumerate(zip(new, stems, strict=True))
        ]
        refused = []
        for item in appeared:
            failure = self._admit(item)
            if failure is not None:
                refused.append((item, failure))
            else:
                self._awaited[item.image.image_id] = item
        return appeared, refused

    def _admit(self, item: PlannedImage) -> Failure | None:
        image = item.image
        self._total += 1
        if not image.image_id:
            return unavailable(item).failure
        if self._total > self._max_images:
            return Failure(Reason.REJECTED, "The order has more images than one archive may hold.")
        if self._credits_left is not None and not image.paid:
            if self._credits_left <= 0:
                return Failure(Reason.NO_CREDITS, "max_credits allows no more.")
            self._credits_left -= 1
        return None
