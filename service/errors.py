"""Everything that can go wrong, as one tree, and its RFC 9457 problem document.

Split by who must act. Each class has the HTTP status, the problem's ``type`` and title; what an instance
says in ``detail`` is public. Private causes travel as ``__cause__`` and reach the log only.

::

    ServiceError
    ├── CallerError                   the request must change
    │   ├── BadRequest                400
    │   ├── InvalidOrderId            400
    │   ├── InvalidParameter          400
    │   │   ├── UnknownParameter      400
    │   │   ├── RepeatedParameter     400
    │   │   └── ImageNotInOrder       400
    │   ├── InvalidBody               400
    │   ├── KeyRequired               401
    │   ├── SignInRefused             401
    │   ├── AdminRequired             401
    │   ├── AdminDisabled             403
    │   ├── FullQualityNotAllowed     403
    │   ├── LinkInvalid               403
    │   ├── LinkExpired               403
    │   ├── TooManyFailures           429
    │   ├── RouteNotFound             404
    │   ├── MethodNotAllowed          405
    │   ├── OrderNotFound             404
    │   ├── OrderEmpty                404
    │   ├── OrderNotReady             409
    │   └── TooManyImages             413
    ├── NothingToDeliver              422  every image failed or is not ready
    ├── UpstreamError                 the Autoenhance API must recover
    │   ├── UpstreamFailed            502
    │   ├── UpstreamUnreadable        502  an answer we cannot read
    │   ├── UpstreamRefusedKey        502  the service's own key is wrong
    │   ├── UpstreamTimeout           504
    │   └── FirstByteTimeout          504  no image in hand in time
    ├── SentryError                   Sentry, or our access to it, must be mended
    │   ├── SentryRefused             502
    │   ├── SentryUnavailable         502
    │   └── SentryUnreadable          502
    └── OwnError                      the operator must act, or the caller wait
        ├── NotConfigured             503
        ├── LinksNotConfigured        503
        ├── SentryNotConfigured       503
        ├── AtCapacity                503
        ├── Draining                  503
        └── InternalError             500

Not answers to a request, and therefore not in the tree: ``ImageFailed`` (one image could not be had; the
archive goes on), ``ArchiveBroken`` (the response has begun and must be broken off; ``ClientStalled`` when its client
takes nothing, ``ImageMissing`` when its caller wants all or nothing) and ``SettingsError``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from service.model import Failure, Outcome

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


class CallerError(ServiceError):
    """The request must change before it can succeed."""


class BadRequest(CallerError):
    """What came is not an HTTP request, or its head is too large."""

    status = 400
    slug = "bad-request"
    title = "The request cannot be read"


class InvalidOrderId(CallerError):
    """The order id in the path is not a UUID; the upstream was not asked."""

    status = 400
    slug = "invalid-order-id"
    title = "The order id is not a UUID"


class InvalidParameter(CallerError):
    """A query parameter has a value outside its range; ``parameter`` names it."""

    status = 400
    slug = "invalid-parameter"
    title = "A parameter has an invalid value"

    def __init__(self, parameter: str, detail: str, **extensions: Any) -> None:
        super().__init__(detail, parameter=parameter, **extensions)


class UnknownParameter(InvalidParameter):
    """A query parameter does not exist; refused, because a misspelt ``preview`` must never buy images."""

    slug = "unknown-parameter"
    title = "A parameter is unknown"


class RepeatedParameter(InvalidParameter):
    """A query parameter was given more than once; only ``only`` may repeat."""

    slug = "repeated-parameter"
    title = "A parameter is given more than once"


class ImageNotInOrder(InvalidParameter):
    """``only`` names an image id that the order does not contain."""

    slug = "image-not-in-order"
    title = "An image is not in the order"


class InvalidBody(CallerError):
    """The request's body is not what this path takes; ``detail`` says why."""

    status = 400
    slug = "invalid-body"
    title = "The body cannot be used"


class KeyRequired(CallerError):
    """The service has keys, and the request carries none of them."""

    status = 401
    slug = "key-required"
    title = "A key of the service is needed"


class SignInRefused(CallerError):
    """What was given to sign in with opens nothing."""

    status = 401
    slug = "sign-in-refused"
    title = "The key is not known"


class AdminRequired(CallerError):
    """What is asked for is the operator's alone."""

    status = 401
    slug = "admin-required"
    title = "Only the operator may do this"


class AdminDisabled(CallerError):
    """The service has no operator's token, so nobody can be the operator."""

    status = 403
    slug = "admin-disabled"
    title = "The operator's routes are off"


class FullQualityNotAllowed(CallerError):
    """The download would spend credits, and this caller may not."""

    status = 403
    slug = "full-quality-not-allowed"
    title = "This caller may not spend credits"


class LinkInvalid(CallerError):
    """The link was changed, or made for another order or other parameters."""

    status = 403
    slug = "link-invalid"
    title = "The link is not valid"


class LinkExpired(CallerError):
    """The link was valid, and its time is over."""

    status = 403
    slug = "link-expired"
    title = "The link has expired"


class TooManyFailures(CallerError):
    """Too many wrong keys came from this address within a minute."""

    status = 429
    slug = "too-many-failures"
    title = "Too many wrong keys"


class RouteNotFound(CallerError):
    """There is no such path."""

    status = 404
    slug = "route-not-found"
    title = "There is nothing at this path"


class MethodNotAllowed(CallerError):
    """The path exists, but not with this method."""

    status = 405
    slug = "method-not-allowed"
    title = "The method is not allowed here"


class OrderNotFound(CallerError):
    """The upstream knows no such order."""

    status = 404
    slug = "order-not-found"
    title = "The order does not exist"


class OrderEmpty(CallerError):
    """The order exists and has no images, and none are on their way."""

    status = 404
    slug = "order-empty"
    title = "The order has no images"


class OrderNotReady(CallerError):
    """The order has no images yet because it is being merged or processed."""

    status = 409
    slug = "order-not-ready"
    title = "The order has no images yet"


class TooManyImages(CallerError):
    """The order has more images than one archive may hold."""

    status = 413
    slug = "too-many-images"
    title = "The order has too many images"


class NothingToDeliver(ServiceError):
    """Not one image could be had; ``failures`` lists each with its reason."""

    status = 422
    slug = "nothing-to-deliver"
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


class UpstreamUnreadable(UpstreamError):
    """The order look-up was answered with something that is not an order."""

    status = 502
    slug = "upstream-unreadable"
    title = "The Autoenhance API gave an answer that cannot be read"


class UpstreamRefusedKey(UpstreamError):
    """The Autoenhance API refuses the service's own key: the operator must mend it, not the caller."""

    status = 502
    slug = "upstream-refused-key"
    title = "The Autoenhance API refuses this service's key"


class UpstreamTimeout(UpstreamError):
    """The order look-up took too long."""

    status = 504
    slug = "upstream-timeout"
    title = "The Autoenhance API did not answer in time"


class FirstByteTimeout(UpstreamError):
    """No image byte was in hand in time; ``failures`` lists what had failed until then."""

    status = 504
    slug = "first-byte-timeout"
    title = "No image arrived in time"

    def __init__(self, detail: str, outcomes: Sequence[Outcome]) -> None:
        super().__init__(detail, failures=failure_list(outcomes))


class SentryError(ServiceError):
    """Sentry did not answer as it should."""


class SentryRefused(SentryError):
    """Sentry refuses the service's token: the operator must mend it."""

    status = 502
    slug = "sentry-refused"
    title = "Sentry refuses this service's token"


class SentryUnavailable(SentryError):
    """Sentry cannot be reached, took too long, or answered with an error."""

    status = 502
    slug = "sentry-unavailable"
    title = "Sentry did not answer"


class SentryUnreadable(SentryError):
    """Sentry answered with something that is not a list of issues."""

    status = 502
    slug = "sentry-unreadable"
    title = "Sentry gave an answer that cannot be read"


class OwnError(ServiceError):
    """The service itself cannot do it now."""


class NotConfigured(OwnError):
    """The service has no API key, so it can fetch nothing."""

    status = 503
    slug = "not-configured"
    title = "The service has no Autoenhance API key"


class LinksNotConfigured(OwnError):
    """The service has no key to sign links with."""

    status = 503
    slug = "links-not-configured"
    title = "Links are not configured"


class SentryNotConfigured(OwnError):
    """The service does not know which Sentry project is its own; ``missing`` names the settings."""

    status = 503
    slug = "sentry-not-configured"
    title = "Reading from Sentry is not configured"


class AtCapacity(OwnError):
    """As many archives are being served as the operator allows; try again later, or another replica."""

    status = 503
    slug = "at-capacity"
    title = "The service is at capacity"


class Draining(OwnError):
    """The service is about to stop: archives that run are finished, new ones are refused."""

    status = 503
    slug = "draining"
    title = "The service is about to stop"


class InternalError(OwnError):
    """A fault of the service; the request id finds it in the log."""

    status = 500
    slug = "internal-error"
    title = "The service failed"


class ImageFailed(Exception):
    """One image could not be had, finally. The archive goes on without it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.reason}: {failure.detail}")
        self.failure = failure


class ArchiveBroken(Exception):
    """The archive cannot be finished truthfully: the connection must be broken, never ended cleanly."""

    slug: ClassVar[str] = "unaccounted-images"


class ClientStalled(ArchiveBroken):
    """The client has not taken a byte for too long."""

    slug = "client-stalled"


class ImageMissing(ArchiveBroken):
    """An image failed after the archive had begun, and the caller wants all or nothing."""

    slug = "image-missing"


class SettingsError(Exception):
    """The environment does not make valid settings; ``problems`` holds one line for each mistake."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


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
