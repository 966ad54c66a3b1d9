"""The request must change before it can succeed."""

from typing import Any

from service.errors.base import ServiceError


class ClientError(ServiceError):
    """The request must change before it can succeed."""


class BadRequest(ClientError):
    """What came is not an HTTP request, its head is too large, its Host is none, or its Expect is not known."""

    status = 400
    slug = "bad-request"
    title = "The request cannot be read"


class InvalidOrderId(ClientError):
    """The order id in the path is not a UUID; the upstream was not asked."""

    status = 400
    slug = "invalid-order-id"
    title = "The order id is not a UUID"


class InvalidParameter(ClientError):
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


class InvalidBody(ClientError):
    """The request's body is not what this path takes; ``detail`` says why."""

    status = 400
    slug = "invalid-body"
    title = "The body cannot be used"


class AuthenticationRequired(ClientError):
    """The service has keys, and the request carries none of them."""

    status = 401
    slug = "authentication-required"
    title = "A key of the service is needed"


class InvalidCredentials(ClientError):
    """What was given to sign in with opens nothing."""

    status = 401
    slug = "invalid-credentials"
    title = "The key is not known"


class AdminRequired(ClientError):
    """What is asked for is the operator's alone."""

    status = 401
    slug = "admin-required"
    title = "Only the operator may do this"


class AdminNotConfigured(ClientError):
    """The service has no operator's token, so nobody can be the operator."""

    status = 403
    slug = "admin-not-configured"
    title = "The operator's routes are off"


class FullQualityNotAllowed(ClientError):
    """The download would spend credits, and this caller may not."""

    status = 403
    slug = "full-quality-not-allowed"
    title = "This caller may not spend credits"


class LinkInvalid(ClientError):
    """The link was changed, or made for another order or other parameters."""

    status = 403
    slug = "link-invalid"
    title = "The link is not valid"


class LinkExpired(ClientError):
    """The link was valid, and its time is over."""

    status = 403
    slug = "link-expired"
    title = "The link has expired"


class TooManyAuthFailures(ClientError):
    """Too many wrong keys came from this address within a minute."""

    status = 429
    slug = "too-many-auth-failures"
    title = "Too many wrong keys"


class WebhookUnauthorized(ClientError):
    """A notice without the secret that the API was given."""

    status = 401
    slug = "webhook-unauthorized"
    title = "The notice does not have the secret"


class WebhooksNotConfigured(ClientError):
    """The service has no secret by which to know the API's notices."""

    status = 403
    slug = "webhooks-not-configured"
    title = "Notices are not taken"


class NotFound(ClientError):
    """There is no such path."""

    status = 404
    slug = "not-found"
    title = "There is nothing at this path"


class MethodNotAllowed(ClientError):
    """The path exists, but not with this method."""

    status = 405
    slug = "method-not-allowed"
    title = "The method is not allowed here"


class CreditsExceeded(ClientError):
    """More images would have to be bought than ``max_credits`` allows; nothing was bought."""

    status = 402
    slug = "credits-exceeded"
    title = "The download would cost more credits than allowed"


class InvalidArchiveId(ClientError):
    """The archive id in the path is not a UUID."""

    status = 400
    slug = "invalid-archive-id"
    title = "The archive id is not a UUID"


class ArchiveNotFound(ClientError):
    """This process knows no such archive: it never was, was on another replica, or is forgotten.

    ``refused`` is the problem with which it was refused here for want of room: then another replica may have it.
    """

    status = 404
    slug = "archive-not-found"
    title = "The archive is not known here"


class ArchiveIdInUse(ClientError):
    """The archive id that the client chose is taken, but not by a broken-off try of the same request."""

    status = 409
    slug = "archive-id-in-use"
    title = "The archive id is taken"


class ArchiveNotResumable(ClientError):
    """The request goes on with an earlier archive, by ``Range`` or ``If-Match``; every archive is a new one.

    A 412 (RFC 9110 section 15.5.13), because wget appends a 200 to the part that it has and exits 0, and curl, wget and
    lftp take a 416 for the end of a complete file.
    """

    status = 412
    slug = "archive-not-resumable"
    title = "The archive cannot be resumed"


class OrderNotFound(ClientError):
    """The upstream knows no such order."""

    status = 404
    slug = "order-not-found"
    title = "The order does not exist"


class OrderEmpty(ClientError):
    """The order exists and has no images, and none are on their way."""

    status = 404
    slug = "order-empty"
    title = "The order has no images"


class RequestBodyTimeout(ClientError):
    """The request's body did not come in time.

    Of an upload, ``images`` lists each file until then, also the one that did not come whole.
    """

    status = 408
    slug = "request-body-timeout"
    title = "The body did not come in time"


class UnsupportedMediaType(ClientError):
    """The body is not of a type that this path takes."""

    status = 415
    slug = "unsupported-media-type"
    title = "The body's type is not taken here"


class NoFilesUploaded(ClientError):
    """Not one of the files could be taken in; ``failures`` lists each with its reason."""

    status = 422
    slug = "no-files-uploaded"
    title = "None of the files could be uploaded"


class OrderNotReady(ClientError):
    """The order has no images yet because it is being merged or processed."""

    status = 409
    slug = "order-not-ready"
    title = "The order has no images yet"


class TooManyImages(ClientError):
    """The order has more images than one archive may hold."""

    status = 413
    slug = "too-many-images"
    title = "The order has too many images"
