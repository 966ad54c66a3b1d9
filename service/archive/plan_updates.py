"""Plan updates: the changes of an order while its archive streams."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.archive.naming import entry_stems
from service.archive.parameters import ArchiveOptions
from service.archive.plan import IMAGE_REMOVED, ArchivePlan, PlannedImage, readiness_failure
from service.model import Failure, Image, Order, Readiness, Reason

# An image that this many polls in a row do not list has been removed. A single poll may miss it: an order that is being
# merged lists nothing for a while, and the API may return a list that is just being written.
POLLS_UNTIL_REMOVED = 3

_NOT_IN_TIME = Failure(Reason.NOT_READY, "The image was not processed in time.")
_NOT_LISTED = Failure(Reason.NOT_READY, "The order did not list the image when the wait ended.")

FailedImage = tuple[PlannedImage, Failure]


@dataclass(frozen=True, slots=True)
class PlanDelta:
    """The changes since the previous poll.

    ``added`` images were not listed before. ``ready`` images can be downloaded now. ``failed`` images never will be.
    """

    added: Sequence[PlannedImage]
    ready: Sequence[PlannedImage]
    failed: Sequence[FailedImage]

    def __bool__(self) -> bool:
        """Return whether there is any change."""
        return bool(self.added or self.ready or self.failed)


def may_change(order: Order, options: ArchiveOptions) -> bool:
    """Return whether a requested image may still become ready or be added.

    A busy order that lists nothing yet may come to list any image that the client names.
    """
    if not order.images:
        return order.busy
    if options.only:
        return any(image.readiness is Readiness.NOT_READY and image.image_id in options.only for image in order.images)
    return order.busy or any(image.readiness is Readiness.NOT_READY for image in order.images)


class PlanUpdater:
    """Turns each polled state of an order into changes of its archive's plan.

    Positions and names are final once assigned: an image that is added later comes after all others. ``max_images`` and
    the client's ``max_credits`` limit the images that may be added.

    An image that is not listed is unknown, not removed. It counts as removed after ``POLLS_UNTIL_REMOVED`` polls in a
    row of an order that is not busy and lists others; until then it stays pending.
    """

    def __init__(self, plan: ArchivePlan, *, max_images: int) -> None:
        self._options = plan.options
        self._max_images = max_images
        self._images: list[Image] = list(plan.order.images)
        self._known_ids = {image.image_id for image in self._images}
        self._images_without_id = sum(not image.image_id for image in self._images)
        self._pending = {item.image.image_id: item for item in plan.pending}
        self._absences: dict[str, int] = {}  # polls in a row that do not list a pending image, by its id
        self._listed_ids = set(self._pending)  # of the latest poll
        self._empty_polls = 0  # polls in a row that list no image, of an order that is not busy
        self._total = plan.total
        self._may_grow = plan.order.busy and not plan.options.only
        price = sum(not item.image.paid for item in (*plan.ready, *plan.pending))
        limit = plan.options.max_credits
        self._credits_left = limit - price if limit is not None and plan.options.image.spends_credits else None

    @property
    def may_change(self) -> bool:
        """Whether a later poll can bring a change."""
        return bool(self._pending) or self._may_grow

    def update(self, order: Order) -> PlanDelta:
        """Apply a polled state of the order."""
        self._empty_polls = 0 if order.busy or order.images else self._empty_polls + 1
        if order.busy or order.images or self._empty_polls >= POLLS_UNTIL_REMOVED:
            self._may_grow = order.busy and not self._options.only
        listed = {image.image_id: image for image in order.images if image.image_id}
        self._listed_ids = set(listed)
        removed = self._pop_removed(order, listed)
        ready, failed = self._pop_settled(listed)
        # Before new images are admitted: they may use the credits of those that are not bought.
        self._release_credits([*removed, *failed])
        added, rejected = self._add_new(order)
        ready_at_once, failed_at_once = self._pop_settled(listed)
        self._release_credits(failed_at_once)
        return PlanDelta(added, [*ready, *ready_at_once], [*removed, *failed, *rejected, *failed_at_once])

    def fail_pending(self) -> Sequence[FailedImage]:
        """End the wait: return every image that is still pending as failed."""
        pending, self._pending = self._pending, {}
        return [
            (item, _NOT_IN_TIME if image_id in self._listed_ids else _NOT_LISTED) for image_id, item in pending.items()
        ]

    def _pop_removed(self, order: Order, listed: Mapping[str, Image]) -> list[FailedImage]:
        """Return the pending images that too many polls in a row have not listed."""
        is_complete = not order.busy and bool(order.images)
        absent = [image_id for image_id in self._pending if image_id not in listed] if is_complete else []
        self._absences = {image_id: self._absences.get(image_id, 0) + 1 for image_id in absent}
        removed = [image_id for image_id, polls in self._absences.items() if polls >= POLLS_UNTIL_REMOVED]
        return [(self._pending.pop(image_id), IMAGE_REMOVED) for image_id in removed]

    def _pop_settled(self, listed: Mapping[str, Image]) -> tuple[list[PlannedImage], list[FailedImage]]:
        """Return the pending images that have become ready, and those that have failed."""
        ready: list[PlannedImage] = []
        failed: list[FailedImage] = []
        for image_id, item in list(self._pending.items()):
            image = listed.get(image_id)
            if image is None or image.readiness is Readiness.NOT_READY:
                continue
            if image.readiness is Readiness.READY:
                ready.append(PlannedImage(item.position, image, item.stem))
            else:
                failed.append((item, readiness_failure(image)))
            del self._pending[image_id]
        return ready, failed

    def _release_credits(self, failed: Sequence[FailedImage]) -> None:
        if self._credits_left is not None:
            self._credits_left += sum(not item.image.paid for item, _ in failed)

    def _add_new(self, order: Order) -> tuple[list[PlannedImage], list[FailedImage]]:
        """Return the images that were never listed before, and those of them that are rejected."""
        # Images without an id cannot be distinguished: only their number counts.
        without_id = [image for image in order.images if not image.image_id][self._images_without_id :]
        new = [image for image in order.images if image.image_id and image.image_id not in self._known_ids]
        new += without_id
        if self._options.only or not new:
            return [], []
        first = len(self._images)
        self._images += new
        self._images_without_id += len(without_id)
        self._known_ids |= {image.image_id for image in new}
        # A name depends only on the names before it, so those assigned earlier stay the same.
        stems = entry_stems([image.name for image in self._images])[first:]
        added = [PlannedImage(first + n, image, stem) for n, (image, stem) in enumerate(zip(new, stems, strict=True))]
        rejected = []
        for item in added:
            failure = self._admit(item)
            if failure is not None:
                rejected.append((item, failure))
            else:
                self._pending[item.image.image_id] = item
        return added, rejected

    def _admit(self, item: PlannedImage) -> Failure | None:
        """Count an added image and reserve its credit; return why it is rejected, or None."""
        image = item.image
        self._total += 1
        if not image.image_id:
            return readiness_failure(image)
        if self._total > self._max_images:
            return Failure(Reason.REJECTED, "The order has more images than one archive may hold.")
        if self._credits_left is not None and not image.paid:
            if self._credits_left <= 0:
                return Failure(Reason.NO_CREDITS, "max_credits allows no more.")
            self._credits_left -= 1
        return None
