"""Errors of the client: the request must change before it can succeed."""

from collections.abc import Mapping
from typing import Any, ClassVar

from service.errors.base import ServiceError
from service.errors.examples import EXAMPLE_UUID, FAILED_FILE


class ClientError(ServiceError):
    """The request must change before it can succeed."""


class BadRequest(ClientError):
    """The bytes are not an HTTP request, a header line exceeds 16 KiB, or `Host` or `Expect` is invalid."""

    status = 400
    slug = "bad-request"
    title = "The request is malformed"
    advice = "Correct the client; shorten the URL."
    example_detail = "The request is malformed, or its header section is too large."


class InvalidOrderId(ClientError):
    """The order id in the path is not a UUID. No request was sent to the API."""

    status = 400
    slug = "invalid-order-id"
    title = "The order id is not a UUID"
    advice = "Correct the order id."
    example_detail = f"The order id must be a UUID such as {EXAMPLE_UUID}."


class InvalidParameter(ClientError):
    """A query parameter has a value that is not allowed; `parameter` names it."""

    status = 400
    slug = "invalid-parameter"
    title = "A parameter has an invalid value"
    advice = "Correct the value; `detail` says what is allowed."
    example_detail = "'quality' must be a whole number from 1 to 90."
    example_extensions: ClassVar[Mapping[str, Any]] = {"parameter": "quality"}

    def __init__(self, parameter: str, detail: str, **extensions: Any) -> None:
        super().__init__(detail, parameter=parameter, **extensions)


class UnknownParameter(InvalidParameter):
    """A query parameter does not exist. It is rejected because a misspelt `preview` must never buy images."""

    slug = "unknown-parameter"
    title = "A parameter is unknown"
    advice = "Correct or remove the parameter."
    example_detail = "There is no parameter 'previw'."
    example_extensions: ClassVar[Mapping[str, Any]] = {"parameter": "previw"}


class RepeatedParameter(InvalidParameter):
    """A query parameter other than `only` is given more than once."""

    slug = "repeated-parameter"
    title = "A parameter is given more than once"
    advice = "Send the parameter once."
    example_detail = "The parameter 'quality' is given more than once."
    example_extensions: ClassVar[Mapping[str, Any]] = {"parameter": "quality"}


class ImageNotInOrder(InvalidParameter):
    """`only` names an image id that the order does not contain."""

    slug = "image-not-in-order"
    title = "An image is not in the order"
    advice = "Remove the image id that `image_id` names."
    example_detail = "The order has no image 'x'."
    example_extensions: ClassVar[Mapping[str, Any]] = {"parameter": "only", "image_id": "x"}


class InvalidBody(ClientError):
    """The request body is not valid for this path."""

    status = 400
    slug = "invalid-body"
    title = "The request body is invalid"
    advice = "Correct the body; `detail` says what is wrong."
    example_detail = "The body is not JSON."


class AuthenticationRequired(ClientError):
    """The service requires an API key, and the request has no valid one."""

    status = 401
    slug = "authentication-required"
    title = "An API key is required"
    advice = "Send one of the service's API keys in `X-API-Key` or as a bearer token."
    example_detail = "Send one of the service's API keys in X-API-Key or as a bearer token."


class InvalidCredentials(ClientError):
    """The key sent to sign in is neither an API key of the service nor the admin token."""

    status = 401
    slug = "invalid-credentials"
    title = "The key is not valid"
    advice = "Correct the key."
    example_detail = "The key is neither an API key of the service nor the admin token."


class AdminRequired(ClientError):
    """The route requires the admin token."""

    status = 401
    slug = "admin-required"
    title = "The admin token is required"
    advice = "Send the admin token in `X-Admin-Token` or as a bearer token."
    example_detail = "Send the value of ADMIN_TOKEN in X-Admin-Token or as a bearer token."


class FullQualityNotAllowed(ClientError):
    """`preview=false` would spend credits, and the API key or link does not allow that."""

    status = 403
    slug = "full-quality-not-allowed"
    title = "Full quality is not allowed"
    advice = "Download previews, use a key with `:full`, or add `dev_mode=true`, which spends no credits."
    example_detail = "preview=false spends credits, which this key may not; dev_mode=true spends none."


class LinkInvalid(ClientError):
    """The link was changed, or was created for another order or other parameters."""

    status = 403
    slug = "link-invalid"
    title = "The link is not valid"
    advice = "Use the link exactly as it was created."
    example_detail = "This link was not created for this order with these parameters."


class LinkExpired(ClientError):
    """The link has expired."""

    status = 403
    slug = "link-expired"
    title = "The link has expired"
    advice = "Request a new link from its creator."
    example_detail = "This link has expired."


class TooManyAuthFailures(ClientError):
    """More than `AUTH_FAILURES_PER_MINUTE` requests with invalid keys came from this address within a minute."""

    status = 429
    slug = "too-many-auth-failures"
    title = "Too many invalid keys"
    advice = "Wait for the time in `Retry-After`, then send a valid key."
    example_detail = "Too many invalid keys came from this address."
    has_retry_after = True


class WebhookUnauthorized(ClientError):
    """A webhook request does not carry the configured secret."""

    status = 401
    slug = "webhook-unauthorized"
    title = "The webhook secret is not valid"
    advice = "The operator must set the same secret in the API and in `WEBHOOK_SECRET`."
    example_detail = "The header Authentication does not have the secret."


class NotFound(ClientError):
    """The service has no resource at this path."""

    status = 404
    slug = "not-found"
    title = "There is no such path"
    advice = "Correct the path."
    example_detail = "There is no such path."


class MethodNotAllowed(ClientError):
    """The path exists but does not support the method; `allowed` lists those it supports."""

    status = 405
    slug = "method-not-allowed"
    title = "The method is not allowed"
    advice = "Use one of the methods in `allowed`."
    example_detail = "PUT is not one of GET, HEAD, POST."
    example_extensions: ClassVar[Mapping[str, Any]] = {"allowed": ["GET", "HEAD", "POST"]}


class CreditsExceeded(ClientError):
    """The download would buy more images than `max_credits` allows; nothing was bought."""

    status = 402
    slug = "credits-exceeded"
    title = "The download would cost more credits than allowed"
    advice = "Raise `max_credits` to the number in `credits`, or download fewer images."
    example_detail = "The download would buy 14 images; max_credits allows 5."
    example_extensions: ClassVar[Mapping[str, Any]] = {"credits": 14, "max_credits": 5}


class InvalidArchiveId(ClientError):
    """The archive id in the path is not a UUID."""

    status = 400
    slug = "invalid-archive-id"
    title = "The archive id is not a UUID"
    advice = "Correct the archive id."
    example_detail = f"The archive id must be a UUID such as {EXAMPLE_UUID}."


class ArchiveNotFound(ClientError):
    """This process has no receipt of the archive: it never existed, ran on another replica, or has expired.

    ``refused`` is the problem with which this replica rejected the download at capacity: another replica may have it.
    """

    status = 404
    slug = "archive-not-found"
    title = "The archive is not known"
    advice = "Send the request to the replica that streamed the archive. With `refused`, this replica rejected it."
    example_detail = "This process has no such archive, or no longer keeps its receipt."


class ArchiveIdInUse(ClientError):
    """Another download has this `archive_id`: it is running, has finished, or was a different request."""

    status = 409
    slug = "archive-id-in-use"
    title = "The archive id is in use"
    advice = "Choose a new UUID for each download. The same request may repeat its id after `aborted` or `client_gone`."
    example_detail = "This archive id is in use; choose a new UUID for each download."


class ArchiveNotResumable(ClientError):
    """The request continues an earlier archive, by `Range` or `If-Match`; archives are generated per request.

    A 412 (RFC 9110 section 15.5.13), because wget appends a 200 to its partial file and exits 0, and curl, wget and
    lftp take a 416 as the end of a complete file.
    """

    status = 412
    slug = "archive-not-resumable"
    title = "The archive cannot be resumed"
    advice = (
        "Start over without `Range` and without a partial file: `curl` without `-C -`, `wget` without `-c`. "
        "`only` requests the missing images."
    )
    example_detail = (
        "An archive cannot be sent from its middle. Start over without Range and without a partial file: "
        "curl without '-C -', wget without '-c'."
    )


class OrderNotFound(ClientError):
    """The API has no order with this id."""

    status = 404
    slug = "order-not-found"
    title = "The order does not exist"
    advice = "Check the order id, and that it belongs to the account of the service."
    example_detail = "The API has no such order."


class OrderEmpty(ClientError):
    """The order has no images, and none are being processed."""

    status = 404
    slug = "order-empty"
    title = "The order has no images"
    advice = "Upload images to the order first."
    example_detail = "The order exists, but it has no images."


class RequestBodyTimeout(ClientError):
    """The request body exceeded `REQUEST_BODY_TIMEOUT_SECONDS`, or an upload stalled for `CLIENT_STALL_SECONDS`.

    Of an upload, ``images`` lists every file so far, including the incomplete one.
    """

    status = 408
    slug = "request-body-timeout"
    title = "The request body did not arrive in time"
    advice = "Send the request again. Of an upload, `images` lists what was uploaded: send only the rest."
    example_detail = "No data arrived for 60 s."


class UnsupportedMediaType(ClientError):
    """The body's media type is not supported here, or the body is compressed."""

    status = 415
    slug = "unsupported-media-type"
    title = "The media type is not supported"
    advice = "Send an uncompressed `multipart/form-data` body."
    example_detail = "Send multipart/form-data, not compressed, with the photos in the field 'files'."


class NoFilesUploaded(ClientError):
    """No file of the upload was accepted; `failures` lists each with its reason."""

    status = 422
    slug = "no-files-uploaded"
    title = "No file could be uploaded"
    advice = "See `failures` for the reason of each file."
    example_detail = "No file could be uploaded."
    example_extensions: ClassVar[Mapping[str, Any]] = {"failures": [FAILED_FILE], "order_id": None}


class OrderNotReady(ClientError):
    """The order has no images yet because it is being merged or processed."""

    status = 409
    slug = "order-not-ready"
    title = "The order has no images yet"
    advice = "Repeat the request after the time in `Retry-After`, or add `wait`."
    example_detail = "The order is still being merged or processed; its images are not listed yet."
    has_retry_after = True


class TooManyImages(ClientError):
    """The request selects more images than `MAX_IMAGES_PER_ORDER`."""

    status = 413
    slug = "too-many-images"
    title = "The archive would have too many images"
    advice = "Download parts of the order with `only`."
    example_detail = "The request selects 3000 images; one archive may have 2000. Select parts with 'only'."
    example_extensions: ClassVar[Mapping[str, Any]] = {"images": 3000, "max_images": 2000}
