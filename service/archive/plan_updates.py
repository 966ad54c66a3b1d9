"""An order that changes while its archive streams: which images have become ready, which never will."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.archive.naming import entry_stems
from service.archive.parameters import ArchiveOptions
from service.archive.plan import TAKEN_OUT, ArchivePlan, PlannedImage, unavailable
from service.model import Failure, Image, Order, Readiness, Reason

# An image that so many look-ups in a row do not list is gone. One may miss it: an order that is being merged lists
# nothing for a while, and lists may be read while they are written.
LOOK_UPS_UNTIL_GONE = 3

_NOT_IN_TIME = Failure(Reason.NOT_READY, "The image was not processed in time.")
_NOT_LISTED = Failure(Reason.NOT_READY, "The order did not list the image when the wait ended.")


@dataclass(frozen=True, slots=True)
class PlanDelta:
    """What a later look at the order has brought.

    ``appeared`` were not listed before; ``ready`` can be asked for now; ``failed`` never come, for the given reasons.
    """

    appeared: Sequence[PlannedImage]
    ready: Sequence[PlannedImage]
    failed: Sequence[tuple[PlannedImage, Failure]]

    def __bool__(self) -> bool:
        """Tell whether there is any."""
        return bool(self.appeared or self.ready or self.failed)


def may_change(order: Order, options: ArchiveOptions) -> bool:
    """Tell whether what the caller asked for may still become ready, or appear.

    As long as a busy order lists nothing, nobody can know whether it will have the images that the caller names.
    """
    if not order.images:
        return order.busy
    if options.only:
        return any(image.readiness is Readiness.NOT_READY and image.image_id in options.only for image in order.images)
    return order.busy or any(image.readiness is Readiness.NOT_READY for image in order.images)


class PlanUpdater:
    """Follows an order from the plan that its archive began with.

    Positions and names, once given, stay: an image that appears later comes behind all others. ``max_images`` and the
    caller's ``max_credits`` bound what may appear.

    An image that is not listed is unknown, not gone. It is gone when ``LOOK_UPS_UNTIL_GONE`` look-ups in a row found an
    order that is not busy and lists others; until then it is awaited, and taken up when it is listed again.
    """

    def __init__(self, plan: ArchivePlan, *, max_images: int) -> None:
        self._options = plan.options
        self._max_images = max_images
        self._images: list[Image] = list(plan.order.images)
        self._known = {image.image_id for image in self._images}
        self._unnamed = sum(not image.image_id for image in self._images)
        self._awaited = {item.image.image_id: item for item in plan.awaited}
        self._absences: dict[str, int] = {}  # look-ups in a row without an awaited image, by its id
        self._listed = set(self._awaited)  # the ids of the latest look-up
        self._empty_lists = 0  # look-ups in a row without any image, of an order that is not busy
        self._total = plan.total
        self._may_grow = plan.order.busy and not plan.options.only
        price = [item for item in (*plan.wanted, *plan.awaited) if not item.image.paid]
        bound = plan.options.max_credits
        self._credits_left = bound - len(price) if bound is not None and plan.options.image.spends_credits else None

    @property
    def waiting(self) -> bool:
        """Whether a later look can bring anything."""
        return bool(self._awaited) or self._may_grow

    def update(self, order: Order) -> PlanDelta:
        """Take in what the order is now."""
        self._empty_lists = 0 if order.busy or order.images else self._empty_lists + 1
        if order.busy or order.images or self._empty_lists >= LOOK_UPS_UNTIL_GONE:
            self._may_grow = order.busy and not self._options.only
        listed = {image.image_id: image for image in order.images if image.image_id}
        self._listed = set(listed)
        gone = self._gone(order, listed)
        ready, failed = self._settled(listed)
        appeared, refused = self._appeared(order)
        at_once, never = self._settled(listed)
        return PlanDelta(appeared, [*ready, *at_once], [*gone, *failed, *refused, *never])

    def _gone(self, order: Order, listed: Mapping[str, Image]) -> list[tuple[PlannedImage, Failure]]:
        """Return which of the awaited images have not been listed for too long; these need no credit any more."""
        is_known = not order.busy and bool(order.images)
        absent = [image_id for image_id in self._awaited if image_id not in listed] if is_known else []
        self._absences = {image_id: self._absences.get(image_id, 0) + 1 for image_id in absent}
        gone = [image_id for image_id, times in self._absences.items() if times >= LOOK_UPS_UNTIL_GONE]
        return self._failed([(self._awaited.pop(image_id), TAKEN_OUT) for image_id in gone])

    def _failed(self, failed: list[tuple[PlannedImage, Failure]]) -> list[tuple[PlannedImage, Failure]]:
        """Leave the credits of images that are not bought to others."""
        if self._credits_left is not None:
            self._credits_left += sum(not item.image.paid for item, _ in failed)
        return failed

    def _settled(self, listed: Mapping[str, Image]) -> tuple[list[PlannedImage], list[tuple[PlannedImage, Failure]]]:
        """Return which of the awaited images have become ready and which never will."""
        ready: list[PlannedImage] = []
        failed: list[tuple[PlannedImage, Failure]] = []
        for image_id, item in list(self._awaited.items()):
            image = listed.get(image_id)
            if image is None or image.readiness is Readiness.NOT_READY:
                continue
            if image.readiness is Readiness.READY:
                ready.append(PlannedImage(item.position, image, item.stem))
            else:
                failure = unavailable(PlannedImage(item.position, image, item.stem)).failure
                failed.append((item, failure or Failure(Reason.PROCESSING_FAILED, "")))
            del self._awaited[image_id]
        return ready, self._failed(failed)

    def leftovers(self) -> Sequence[tuple[PlannedImage, Failure]]:
        """Return what is still not ready when the wait is over; nothing is waited for any more."""
        rest, self._awaited = self._awaited, {}
        return [(item, _NOT_IN_TIME if image_id in self._listed else _NOT_LISTED) for image_id, item in rest.items()]

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
