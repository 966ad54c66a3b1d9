"""Errors of the upstream: the Autoenhance API, or Sentry, failed."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from service.errors.base import ServiceError, failure_list
from service.errors.examples import FAILED_IMAGE
from service.model import Outcome


class NoImagesAvailable(ServiceError):
    """No image is available, or with `on_error=abort` not every one; `failures` lists each with its reason."""

    status = 422
    slug = "no-images-available"
    title = "No images are available"
    advice = "See `failures`: each reason says whether a retry helps."
    example_detail = "No image of the order is ready."
    example_extensions: ClassVar[Mapping[str, Any]] = {"failures": [FAILED_IMAGE]}

    def __init__(self, detail: str, outcomes: Sequence[Outcome]) -> None:
        super().__init__(detail, failures=failure_list(outcomes))


class UpstreamError(ServiceError):
    """The Autoenhance API failed."""


class UpstreamFailed(UpstreamError):
    """The order look-up failed: no connection, or an unexpected status."""

    status = 502
    slug = "upstream-failed"
    title = "The Autoenhance API failed"
    advice = "Retry later."
    example_detail = "The order look-up failed: the API is unreachable."


class UpstreamInvalidResponse(UpstreamError):
    """The response to the order look-up is not an order."""

    status = 502
    slug = "upstream-invalid-response"
    title = "The Autoenhance API sent an invalid response"
    advice = "Retry later; if it persists, report it to the operator."
    example_detail = "The API's response is not an order."


class UpstreamUnauthorized(UpstreamError):
    """The Autoenhance API rejects the service's own API key. The client cannot correct that."""

    status = 502
    slug = "upstream-unauthorized"
    title = "The Autoenhance API rejects this service's key"
    advice = "The operator must correct `AUTOENHANCE_API_KEY`."
    example_detail = "The Autoenhance API rejects the service's key."


class UpstreamTimeout(UpstreamError):
    """The order look-up timed out."""

    status = 504
    slug = "upstream-timeout"
    title = "The Autoenhance API did not respond in time"
    advice = "Retry later."
    example_detail = "The order look-up timed out."


class ThumbnailUnavailable(ServiceError):
    """The thumbnail of an image is not available; `reason` is one of the reasons of failed images."""

    status = 502
    slug = "thumbnail-unavailable"
    title = "The thumbnail is not available"
    advice = "See `reason`."
    example_detail = "The thumbnail is not available: the API responded with 404."
    example_extensions: ClassVar[Mapping[str, Any]] = {"reason": "not_found", "upstream_status": 404}


class FirstByteTimeout(UpstreamError):
    """No image byte arrived within `FIRST_BYTE_SECONDS`; `failures` lists the images that failed until then."""

    status = 504
    slug = "first-byte-timeout"
    title = "No image arrived in time"
    advice = "Retry later."
    example_detail = "No image byte arrived within 50 s."
    example_extensions: ClassVar[Mapping[str, Any]] = {"failures": [FAILED_IMAGE]}

    def __init__(self, detail: str, outcomes: Sequence[Outcome]) -> None:
        super().__init__(detail, failures=failure_list(outcomes))


class SentryError(ServiceError):
    """The Sentry API failed."""


class SentryUnauthorized(SentryError):
    """Sentry rejects the service's token."""

    status = 502
    slug = "sentry-unauthorized"
    title = "Sentry rejects this service's token"
    advice = "The operator must correct `SENTRY_AUTH_TOKEN`."
    example_detail = "Sentry rejects SENTRY_AUTH_TOKEN, or the token may not read this project."


class SentryUnavailable(SentryError):
    """Sentry is unreachable, did not respond within 10 s, or responded with an error."""

    status = 502
    slug = "sentry-unavailable"
    title = "Sentry is unavailable"
    advice = "Retry later."
    example_detail = "Sentry is unreachable."


class SentryInvalidResponse(SentryError):
    """Sentry's response is not a list of issues."""

    status = 502
    slug = "sentry-invalid-response"
    title = "Sentry sent an invalid response"
    advice = "The operator must check `SENTRY_API_BASE`."
    example_detail = "Sentry's response is not a list of issues."
