"""The Autoenhance API, or Sentry, did not do its part."""

from collections.abc import Sequence

from service.errors.base import ServiceError, failure_list
from service.model import Outcome


class NoImagesAvailable(ServiceError):
    """Not one image could be had; ``failures`` lists each with its reason."""

    status = 422
    slug = "no-images-available"
    title = "None of the images could be delivered"

    def __init__(self, detail: str, outcomes: Sequence[Outcome]) -> None:
        super().__init__(detail, failures=failure_list(outcomes))


class UpstreamError(ServiceError):
    """The Autoenhance API did not do its part."""


class UpstreamFailed(UpstreamError):
    """The order look-up failed: no connection, or a status which is not an answer."""

    status = 502
    slug = "upstream-failed"
    title = "The Autoenhance API failed"


class UpstreamInvalidResponse(UpstreamError):
    """The order look-up was answered with something that is not an order."""

    status = 502
    slug = "upstream-invalid-response"
    title = "The Autoenhance API gave an answer that cannot be read"


class UpstreamUnauthorized(UpstreamError):
    """The Autoenhance API refuses the service's own key: the operator must mend it, not the caller."""

    status = 502
    slug = "upstream-unauthorized"
    title = "The Autoenhance API refuses this service's key"


class UpstreamTimeout(UpstreamError):
    """The order look-up took too long."""

    status = 504
    slug = "upstream-timeout"
    title = "The Autoenhance API did not answer in time"


class ThumbnailUnavailable(ServiceError):
    """The small picture of one image cannot be had; ``reason`` is one of the reasons for missing images."""

    status = 502
    slug = "thumbnail-unavailable"
    title = "The picture cannot be had"


class FirstByteTimeout(UpstreamError):
    """No image byte was in hand in time; ``failures`` lists what had failed until then."""

    status = 504
    slug = "first-byte-timeout"
    title = "No image arrived in time"

    def __init__(self, detail: str, outcomes: Sequence[Outcome]) -> None:
        super().__init__(detail, failures=failure_list(outcomes))


class SentryError(ServiceError):
    """Sentry did not answer as it should."""


class SentryUnauthorized(SentryError):
    """Sentry refuses the service's token: the operator must mend it."""

    status = 502
    slug = "sentry-unauthorized"
    title = "Sentry refuses this service's token"


class SentryUnavailable(SentryError):
    """Sentry cannot be reached, took too long, or answered with an error."""

    status = 502
    slug = "sentry-unavailable"
    title = "Sentry did not answer"


class SentryInvalidResponse(SentryError):
    """Sentry answered with something that is not a list of issues."""

    status = 502
    slug = "sentry-invalid-response"
    title = "Sentry gave an answer that cannot be read"
