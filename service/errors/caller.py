"""The request must change before it can succeed."""

from typing import Any

from service.errors.base import ServiceError


class CallerError(ServiceError):
    """The request must change before it can succeed."""


class BadRequest(CallerError):
    """What came is not an HTTP request, its head is too large, its Host is none, or its Expect is not known."""

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


class WebhookRefused(CallerError):
    """A notice without the secret that the API was given."""

    status = 401
    slug = "webhook-refused"
    title = "The notice does not have the secret"


class WebhookDisabled(CallerError):
    """The service has no secret by which to know the API's notices."""

    status = 403
    slug = "webhook-disabled"
    title = "Notices are not taken"


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


class CreditsExceeded(CallerError):
    """More images would have to be bought than ``max_credits`` allows; nothing was bought."""

    status = 402
    slug = "credits-exceeded"
    title = "The download would cost more credits than allowed"


class InvalidArchiveId(CallerError):
    """The archive id in the path is not a UUID."""

    status = 400
    slug = "invalid-archive-id"
    title = "The archive id is not a UUID"


class ArchiveNotFound(CallerError):
    """This process knows no such archive: it never was, was on another replica, or is forgotten.

    ``refused`` is the problem with which it was refused here for want of room: then another replica may have it.
    """

    status = 404
    slug = "archive-not-found"
    title = "The archive is not known here"


class ArchiveIdInUse(CallerError):
    """The archive id that the client chose is taken, but not by a broken-off try of the same request."""

    status = 409
    slug = "archive-id-in-use"
    title = "The archive id is taken"


class ArchiveNotResumable(CallerError):
    """The request goes on with an earlier archive, by ``Range`` or ``If-Match``; every archive is a new one.

    A 412 (RFC 9110 section 15.5.13), because wget appends a 200 to the part that it has and exits 0, and curl, wget and
    lftp take a 416 for the end of a complete file.
    """

    status = 412
    slug = "archive-not-resumable"
    title = "The archive cannot be resumed"


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


class UploadStalled(CallerError):
    """The request's body did not come in time.

    Of an upload, ``images`` lists each file until then, also the one that did not come whole.
    """

    status = 408
    slug = "upload-stalled"
    title = "The body did not come in time"


class UnsupportedMediaType(CallerError):
    """The body is not of a type that this path takes."""

    status = 415
    slug = "unsupported-media-type"
    title = "The body's type is not taken here"


class NothingUploaded(CallerError):
    """Not one of the files could be taken in; ``failures`` lists each with its reason."""

    status = 422
    slug = "nothing-uploaded"
    title = "None of the files could be uploaded"


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
