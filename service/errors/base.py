"""What every answer other than success is, and the document that says so (RFC 9457)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from service.model import Outcome

# The prefix of every problem's ``type``: a reference relative to the service (RFC 9457 section 3.1.1), served
# by the service itself with the explanation.
PROBLEM_BASE = "/problems/"


class ServiceError(Exception):
    """An answer other than success. ``detail`` is shown to the caller; ``extensions`` are extra members."""

    status: ClassVar[int]
    slug: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, detail: str, *, retry_after_seconds: int | None = None, **extensions: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds
        self.extensions: Mapping[str, Any] = extensions


def failure_list(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return what the ``failures`` member lists: id, name, reason, words and upstream status of each failed image."""
    return [
        {
            "image_id": outcome.image.image_id,
            "name": outcome.image.name,
            "reason": outcome.failure.reason.value,
            "detail": outcome.failure.detail,
            "upstream_status": outcome.failure.upstream_status,
        }
        for outcome in outcomes
        if outcome.failure is not None
    ]


def problem(error: ServiceError) -> dict[str, Any]:
    """Return the RFC 9457 problem document of an error, without ``instance``."""
    return {
        "type": PROBLEM_BASE + error.slug,
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        **error.extensions,
    }


def concrete_errors(root: type[ServiceError] = ServiceError) -> list[type[ServiceError]]:
    """Return every class of the tree that can be an answer, in the order of the file."""
    own = [root] if "slug" in root.__dict__ else []
    return own + [leaf for child in root.__subclasses__() for leaf in concrete_errors(child)]
