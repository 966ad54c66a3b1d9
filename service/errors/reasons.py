"""Technical cause of each reason of a failed image, for operators and API clients."""

from collections.abc import Mapping

from service.model import Reason

CAUSES: Mapping[Reason, str] = {
    Reason.NOT_READY: "The API is still processing the image.",
    Reason.PROCESSING_FAILED: "The API could not process the image.",
    Reason.EXPIRED: "The API no longer keeps the image.",
    Reason.NOT_FOUND: "A 404 or 410, or the image was removed from the order.",
    Reason.UNAUTHORIZED: "A 401 or 403 from the API: the service's key is not valid for this image.",
    Reason.NO_CREDITS: "A 402 from the API: not enough credits for full quality.",
    Reason.REJECTED: "Another 4xx from the API: it rejects the image with these parameters.",
    Reason.RATE_LIMITED: "A 429 in every attempt.",
    Reason.UPSTREAM_ERROR: "A 5xx, an unexpected status, or a 403 from the storage.",
    Reason.CONNECTION_FAILED: "No connection to the upstream.",
    Reason.CONNECTION_LOST: "The connection to the upstream broke.",
    Reason.TIMEOUT: "Connect timeout, idle timeout, or a 408 from the upstream.",
    Reason.TRUNCATED: "The body ended before its `Content-Length` or its last chunk.",
    Reason.TOO_LONG: "More bytes than `Content-Length`, or more than 2 GiB without one.",
    Reason.NOT_AN_IMAGE: "The media type or the first bytes are not those of a known image format.",
    Reason.CONTENT_CHANGED: "The image changed during the download.",
    Reason.REDIRECT_REFUSED: "A redirect to an address that is not allowed, or too many redirects.",
    Reason.UPSTREAM_UNAVAILABLE: "Not attempted: `GIVE_UP_AFTER` images in a row had failed because of the upstream.",
}
