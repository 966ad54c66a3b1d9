"""Base class of all problem responses, and their RFC 9457 documents."""

import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from service.model import Outcome

# The prefix of every problem's ``type``: a reference relative to the service (RFC 9457 section 3.1.1). The service
# serves an explanation there.
PROBLEM_BASE = "/problems/"


class ServiceError(Exception):
    """An error response: ``detail`` is shown to the client, ``extensions`` are further members of the problem.

    A concrete class sets everything that the OpenAPI document, ``/problems/{slug}`` and the documents say of the
    problem. Its docstring's first paragraph is the meaning.
    """

    status: ClassVar[int]
    slug: ClassVar[str]
    title: ClassVar[str]
    # What the API client, or the operator of the service, can do.
    advice: ClassVar[str]
    example_detail: ClassVar[str]
    example_extensions: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    # Whether the response has the header Retry-After (RFC 9110 section 10.2.3).
    has_retry_after: ClassVar[bool] = False

    def __init__(self, detail: str, *, retry_after_seconds: int | None = None, **extensions: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds
        self.extensions: Mapping[str, Any] = extensions


def failure_list(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return the ``failures`` member: each failed image with its reason, detail and upstream status."""
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


def example_problem(error: type[ServiceError]) -> dict[str, Any]:
    """Return an example of the problem document of an error class, without ``instance``."""
    return {
        "type": PROBLEM_BASE + error.slug,
        "title": error.title,
        "status": error.status,
        "detail": error.example_detail,
        **error.example_extensions,
    }


def problem_meaning(error: type[ServiceError]) -> str:
    """Return the meaning of an error class in one line of Markdown."""
    paragraph, _, _ = (inspect.getdoc(error) or "").partition("\n\n")
    return " ".join(paragraph.split()).replace("``", "`")


def explanation(error: type[ServiceError]) -> str:
    """Return the explanation of a problem type for people (RFC 9457 section 4.1)."""
    return (
        f"{error.title} ({error.status}, {error.slug})\n\n{problem_meaning(error)}\n\nWhat to do: {error.advice}\n\n"
        f"Example: {error.example_detail}\n"
    )


def concrete_errors(root: type[ServiceError] = ServiceError) -> list[type[ServiceError]]:
    """Return every class of the tree that has a problem type, in the order of the file."""
    own = [root] if "slug" in root.__dict__ else []
    return own + [leaf for child in root.__subclasses__() for leaf in concrete_errors(child)]
