"""One archive of a chaos run: order, faults, request and client behaviour.

Pure: the same seed, number and formats give the same scenario, in every process.
"""

import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from service.sandbox import Fault
from tests.chaos.faults import hop_faults, look_up_faults, outage_faults, storage_faults

MAX_IMAGES = 40
# With on_error=abort an archive of more images is rarely complete.
MAX_IMAGES_ALL_OR_NOTHING = 8
SMALL_BYTES, USUAL_BYTES, LARGE_BYTES = 300, 600_000, 6_000_000
# Drawn pictures are encoded on request: they are few and small.
DRAWN_WIDTH = 320
_LARGE_SHARE = 0.01
# Archives during which the API goes down permanently; many of them with on_error=abort.
_OUTAGE_SHARE, _OUTAGE_SHARE_ALL_OR_NOTHING = 0.03, 0.3
# Zero bytes after the end of some images: there neither a truncation nor a wrong continuation can be detected.
_PADDED_SHARE, _PADDINGS = 0.05, (1, 65, 1000, 300_000)
# Formats whose files end in a marker.
_MARKED_FORMATS = frozenset({"jpeg", "png"})


class Change(StrEnum):
    """A change of one image while the order is being downloaded."""

    REMOVED = "removed"
    EXPIRED = "expired"
    PROCESSED_AGAIN = "processed again"
    ADDED = "added"


@dataclass(frozen=True, slots=True)
class ImagePart:
    """One image. Without ``size`` it is drawn; None for a switch means the storage's default."""

    image_id: str
    name: str
    size: int | None
    status: str
    etags: bool | None
    ranges: bool | None
    content_lengths: bool | None
    padding_bytes: int
    api: tuple[Fault | None, ...]
    asset: tuple[Fault | None, ...]
    storage: tuple[Fault | None, ...]


@dataclass(frozen=True, slots=True)
class PlannedChange:
    """A change of one image (by its position), at the look-up or at a number of received bytes."""

    change: Change
    position: int
    after_bytes: int | None


@dataclass(frozen=True, slots=True)
class ClientBehaviour:
    """How the client reads: in small reads with loop turns between, with one pause, or only up to a number of bytes."""

    read_bytes: int = 256 * 1024
    turns: int = 0
    receive_buffer_bytes: int | None = None
    pause_after_bytes: int | None = None
    pause_seconds: float = 0.0
    leave_after_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """One archive. ``rate_limit`` applies to the whole sandbox during the download."""

    number: int
    seed: str
    order_id: str
    images: tuple[ImagePart, ...]
    look_ups: tuple[Fault | None, ...]
    changes: tuple[PlannedChange, ...]
    merging: bool
    only: tuple[str, ...]
    abort: bool
    manifest_always: bool
    rendering: Mapping[str, str]
    behaviour: ClientBehaviour
    rate_limit: int | None

    @property
    def query(self) -> list[tuple[str, str]]:
        """The query of the client's request."""
        chosen = [("on_error", "abort")] if self.abort else []
        if self.manifest_always:
            chosen.append(("manifest", "always"))
        return [*chosen, *self.rendering.items(), *(("only", image_id) for image_id in self.only)]


def make_scenario(seed: int, number: int, formats: Sequence[str]) -> Scenario:
    """Draw the scenario of an archive; ``formats`` are those in which pictures can be drawn here."""
    own_seed = f"{seed}/{number}"
    dice = random.Random(own_seed)
    abort = dice.random() < 0.25
    # A few archives have hardly any faults, a few have very many.
    rate = dice.choices((0.05, 0.35, 0.7), (15, 75, 10))[0] * (0.3 if abort else 1)
    draws = dice.random() < 0.25
    rendering = _rendering(dice, formats) if draws else {}
    most = MAX_IMAGES_ALL_OR_NOTHING if abort else MAX_IMAGES
    images = tuple(
        _image(dice, rate, position, drawn_as=rendering.get("format", "jpeg") if draws else None)
        for position in range(dice.randint(1, most))
    )
    if dice.random() < (_OUTAGE_SHARE_ALL_OR_NOTHING if abort else _OUTAGE_SHARE):
        images = _with_outage(dice, images)
    changes = _changes(dice, len(images)) if dice.random() < 0.2 else ()
    return Scenario(
        number=number,
        seed=own_seed,
        order_id=_new_id(dice),
        images=images,
        look_ups=look_up_faults(dice, min(rate, 0.1)),
        changes=changes,
        merging=dice.random() < 0.01,
        only=_only(dice, images, changes) if dice.random() < 0.15 else (),
        abort=abort,
        manifest_always=dice.random() < 0.4,
        rendering=rendering,
        behaviour=_behaviour(dice),
        rate_limit=dice.choice((60, 100, 150)) if dice.random() < 0.04 else None,
    )


def _new_id(dice: random.Random) -> str:
    return str(uuid.UUID(int=dice.getrandbits(128), version=4))


def _rendering(dice: random.Random, formats: Sequence[str]) -> dict[str, str]:
    chosen = {"format": dice.choice(sorted(formats))}
    # Not so small that two pictures could have the same bytes.
    for name, values in {"quality": ("30", "90"), "max_width": ("200", "300"), "scale": ("0.5", "0.9")}.items():
        if dice.random() < 0.3:
            chosen[name] = dice.choice(values)
    return chosen


def _image(dice: random.Random, rate: float, position: int, *, drawn_as: str | None) -> ImagePart:
    size: int | None = None
    # A third of the images of an order with drawn pictures is drawn.
    if drawn_as is None or dice.random() > 0.3:
        size = round(SMALL_BYTES * (USUAL_BYTES / SMALL_BYTES) ** dice.random())
        if dice.random() < _LARGE_SHARE:
            size = dice.randint(USUAL_BYTES, LARGE_BYTES)
    hop_rate = min(rate, 0.1)
    padding = dice.choice(_PADDINGS) if dice.random() < _PADDED_SHARE else 0
    marked = (size is not None or drawn_as in _MARKED_FORMATS) and not padding
    return ImagePart(
        image_id=_new_id(dice),
        name="kitchen.jpg" if dice.random() < 0.1 else f"room {position:02}.jpg",
        size=size,
        status=dice.choices(("processed", "processing", "error", "expired"), (97, 1, 1, 1))[0],
        etags=_switch(dice),
        ranges=_switch(dice),
        content_lengths=_switch(dice),
        padding_bytes=padding,
        api=hop_faults(dice, hop_rate),
        asset=hop_faults(dice, hop_rate),
        # The size of a drawn picture is unknown here; each has some thousand bytes.
        storage=storage_faults(dice, rate, size or 4000, has_end_marker=marked),
    )


def _with_outage(dice: random.Random, images: tuple[ImagePart, ...]) -> tuple[ImagePart, ...]:
    begin = dice.randrange(len(images))
    return images[:begin] + tuple(replace(image, api=outage_faults(dice)) for image in images[begin:])


def _switch(dice: random.Random) -> bool | None:
    return False if dice.random() < 0.15 else None


def _changes(dice: random.Random, images: int) -> tuple[PlannedChange, ...]:
    return tuple(
        PlannedChange(
            dice.choice(tuple(Change)),
            position,
            after_bytes=None if dice.random() < 0.3 else dice.choice((0, 1000, 100_000, 1_000_000)),
        )
        for position in dice.sample(range(images), min(images, dice.randint(1, 4)))
    )


def _only(dice: random.Random, images: Sequence[ImagePart], changes: Sequence[PlannedChange]) -> tuple[str, ...]:
    """Choose some of the images, but none that may be removed before its request: that would be a client error."""
    changing = {planned.position for planned in changes}
    there = [image.image_id for position, image in enumerate(images) if position not in changing]
    return tuple(dice.sample(there, min(len(there), dice.randint(1, 8))))


def _behaviour(dice: random.Random) -> ClientBehaviour:
    somewhere = round(1000 * 1000 ** dice.random())
    match dice.choices(("quick", "slow", "pausing", "leaving"), (50, 20, 15, 15))[0]:
        case "slow":
            # A small socket buffer, so that the service sees backpressure.
            return ClientBehaviour(dice.choice((512, 4096, 16384)), turns=dice.randint(1, 5), receive_buffer_bytes=4096)
        case "pausing":
            # Longer than IMAGE_TIMEOUT_SECONDS: a pause of the client must not fail an image.
            return ClientBehaviour(receive_buffer_bytes=4096, pause_after_bytes=somewhere, pause_seconds=1.5)
        case "leaving":
            return ClientBehaviour(dice.choice((512, 65536)), leave_after_bytes=somewhere)
        case _:
            return ClientBehaviour()
