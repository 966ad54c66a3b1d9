"""What is no answer to a request: signals between the parts of the service, and mistakes in its settings."""

from collections.abc import Sequence
from typing import ClassVar

from service.model import Failure


class ImageFailed(Exception):
    """One image could not be had, finally. The archive goes on without it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.reason}: {failure.detail}")
        self.failure = failure


class ArchiveAborted(Exception):
    """The archive cannot be finished truthfully: the connection must be broken, never ended cleanly."""

    slug: ClassVar[str] = "unaccounted-images"


class ClientStalled(ArchiveAborted):
    """The client has not taken a byte for too long."""

    slug = "client-stalled"


class ImageMissing(ArchiveAborted):
    """An image failed after the archive had begun, and the caller wants all or nothing."""

    slug = "image-missing"


class SettingsError(Exception):
    """The environment does not make valid settings; ``problems`` holds one line for each mistake."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)
