"""Errors that are not responses: signals between parts of the service, and invalid settings."""

from collections.abc import Sequence
from typing import ClassVar

from service.model import Failure


class ImageFailed(Exception):
    """The final failure of one image. The archive continues without it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.reason}: {failure.detail}")
        self.failure = failure


class ArchiveAborted(Exception):
    """The archive cannot be completed truthfully: the connection must be aborted, never closed cleanly."""

    slug: ClassVar[str] = "unaccounted-images"


class ClientStalled(ArchiveAborted):
    """The client has not read from the connection for ``CLIENT_STALL_SECONDS``."""

    slug = "client-stalled"


class ImageMissing(ArchiveAborted):
    """An image failed after the first byte of the archive, and the request has ``on_error=abort``."""

    slug = "image-missing"


class SettingsError(Exception):
    """Invalid settings; ``problems`` has one line for each mistake."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)
