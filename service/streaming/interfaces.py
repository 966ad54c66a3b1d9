"""What an archive stream needs of its surroundings, and its limits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from service.archive.plan import PlannedImage
from service.archive.writer import Parts
from service.model import Image, Outcome
from service.streaming.prefetch import Download, Slot

PlannedSlot = Slot[PlannedImage]


class ImageSource(Protocol):
    """Where images come from: the upstream in the service, a list of bytes in a test."""

    def download(self, image_id: str, sink: PlannedSlot, granted: Callable[[], None] | None = None) -> Download:
        """Return the download of an image into a sink; it must not begin before its ``start``.

        ``granted`` is to be called once, when the upstream agrees to deliver it.
        """
        ...


class ArchiveOutput(Protocol):
    """Where the archive goes: a response in the service."""

    def send(self, parts: Parts) -> bool:
        """Send bytes, or gather them; return whether more may follow now. If not, ``on_writable`` is called later.

        Raises:
            ConnectionResetError: the client has gone.
        """
        ...

    def flush(self) -> None:
        """Send what was gathered.

        Raises:
            ConnectionResetError: the client has gone.
        """
        ...

    def attach(self, on_writable: Callable[[], None], on_failed: Callable[[BaseException], None]) -> None:
        """Set the callbacks: more may be written; nothing can be written any more."""
        ...


class ArchiveObserver(Protocol):
    """Receives the events of one archive, in the order in which they happen."""

    def entry_opened(self, position: int) -> None:
        """Handle that the entry of the image at ``position`` begins; again after a roll-back."""
        ...

    def image_granted(self, image: Image) -> None:
        """Handle that the upstream agrees to deliver an image; it may still fail."""
        ...

    def image_finished(self, outcome: Outcome) -> None:
        """Handle the outcome of an image, once for each image."""
        ...


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """The bounds of one archive; the settings of the same names explain them."""

    images_in_flight: int
    max_images_in_flight: int
    read_ahead_bytes: int
    give_up_after: int
