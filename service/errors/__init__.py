"""All errors as one tree, each with its RFC 9457 problem document.

One file for each party that must act: ``client``, ``upstream``, ``server``; ``internal`` errors are never responses. A
concrete class has the status, the problem's ``type`` and title, its meaning, advice and example. The ``detail`` of an
instance is public. Private causes travel as ``__cause__`` and appear in the log only.

::

    ServiceError
    ├── ClientError                     the request must change
    │   ├── BadRequest                  400
    │   ├── InvalidOrderId              400
    │   ├── InvalidParameter            400
    │   │   ├── UnknownParameter        400
    │   │   ├── RepeatedParameter       400
    │   │   └── ImageNotInOrder         400
    │   ├── InvalidBody                 400
    │   ├── InvalidArchiveId            400
    │   ├── AuthenticationRequired      401
    │   ├── InvalidCredentials          401
    │   ├── AdminRequired               401
    │   ├── WebhookUnauthorized         401
    │   ├── CreditsExceeded             402
    │   ├── FullQualityNotAllowed       403
    │   ├── LinkInvalid                 403
    │   ├── LinkExpired                 403
    │   ├── NotFound                    404
    │   ├── ArchiveNotFound             404
    │   ├── OrderNotFound               404
    │   ├── OrderEmpty                  404
    │   ├── MethodNotAllowed            405
    │   ├── RequestBodyTimeout          408
    │   ├── ArchiveIdInUse              409
    │   ├── OrderNotReady               409
    │   ├── ArchiveNotResumable         412
    │   ├── TooManyImages               413
    │   ├── UnsupportedMediaType        415
    │   ├── NoFilesUploaded             422
    │   └── TooManyAuthFailures         429
    ├── NoImagesAvailable               422  every image failed or is not ready
    ├── ThumbnailUnavailable            502
    ├── UpstreamError                   the Autoenhance API must recover
    │   ├── UpstreamFailed              502
    │   ├── UpstreamInvalidResponse     502
    │   ├── UpstreamUnauthorized        502  the service's own API key is invalid
    │   ├── UpstreamTimeout             504
    │   └── FirstByteTimeout            504
    ├── SentryError                     Sentry, or the service's access to it, must recover
    │   ├── SentryUnauthorized          502
    │   ├── SentryUnavailable           502
    │   └── SentryInvalidResponse       502
    └── ServerError                     the operator must act, or the client must wait
        ├── NotConfigured               a setting is missing
        │   ├── ApiKeyNotConfigured     503
        │   ├── AdminNotConfigured      503
        │   ├── LinksNotConfigured      503
        │   ├── WebhooksNotConfigured   503
        │   └── SentryNotConfigured     503
        ├── AtCapacity                  503
        ├── Draining                    503
        └── InternalError               500

Outside the tree, because they are not responses: ``ImageFailed`` (the final failure of one image; the archive
continues), ``ArchiveAborted`` (the response has begun and must be aborted; ``ClientStalled`` if the client does not
read, ``ImageMissing`` with ``on_error=abort``) and ``SettingsError``.
"""

from service.errors.base import (
    PROBLEM_BASE,
    ServiceError,
    concrete_errors,
    example_problem,
    explanation,
    failure_list,
    problem,
    problem_meaning,
)
from service.errors.client import (
    AdminRequired,
    ArchiveIdInUse,
    ArchiveNotFound,
    ArchiveNotResumable,
    AuthenticationRequired,
    BadRequest,
    ClientError,
    CreditsExceeded,
    FullQualityNotAllowed,
    ImageNotInOrder,
    InvalidArchiveId,
    InvalidBody,
    InvalidCredentials,
    InvalidOrderId,
    InvalidParameter,
    LinkExpired,
    LinkInvalid,
    MethodNotAllowed,
    NoFilesUploaded,
    NotFound,
    OrderEmpty,
    OrderNotFound,
    OrderNotReady,
    RepeatedParameter,
    RequestBodyTimeout,
    TooManyAuthFailures,
    TooManyImages,
    UnknownParameter,
    UnsupportedMediaType,
    WebhookUnauthorized,
)
from service.errors.examples import EXAMPLE_IMAGE_ID, EXAMPLE_ORDER_ID, EXAMPLE_UUID
from service.errors.internal import (
    ArchiveAborted,
    ClientStalled,
    ImageFailed,
    ImageMissing,
    SettingsError,
)
from service.errors.server import (
    AdminNotConfigured,
    ApiKeyNotConfigured,
    AtCapacity,
    Draining,
    InternalError,
    LinksNotConfigured,
    NotConfigured,
    SentryNotConfigured,
    ServerError,
    WebhooksNotConfigured,
)
from service.errors.upstream import (
    FirstByteTimeout,
    NoImagesAvailable,
    SentryError,
    SentryInvalidResponse,
    SentryUnauthorized,
    SentryUnavailable,
    ThumbnailUnavailable,
    UpstreamError,
    UpstreamFailed,
    UpstreamInvalidResponse,
    UpstreamTimeout,
    UpstreamUnauthorized,
)

__all__ = [
    "EXAMPLE_IMAGE_ID",
    "EXAMPLE_ORDER_ID",
    "EXAMPLE_UUID",
    "PROBLEM_BASE",
    "AdminNotConfigured",
    "AdminRequired",
    "ApiKeyNotConfigured",
    "ArchiveAborted",
    "ArchiveIdInUse",
    "ArchiveNotFound",
    "ArchiveNotResumable",
    "AtCapacity",
    "AuthenticationRequired",
    "BadRequest",
    "ClientError",
    "ClientStalled",
    "CreditsExceeded",
    "Draining",
    "FirstByteTimeout",
    "FullQualityNotAllowed",
    "ImageFailed",
    "ImageMissing",
    "ImageNotInOrder",
    "InternalError",
    "InvalidArchiveId",
    "InvalidBody",
    "InvalidCredentials",
    "InvalidOrderId",
    "InvalidParameter",
    "LinkExpired",
    "LinkInvalid",
    "LinksNotConfigured",
    "MethodNotAllowed",
    "NoFilesUploaded",
    "NoImagesAvailable",
    "NotConfigured",
    "NotFound",
    "OrderEmpty",
    "OrderNotFound",
    "OrderNotReady",
    "RepeatedParameter",
    "RequestBodyTimeout",
    "SentryError",
    "SentryInvalidResponse",
    "SentryNotConfigured",
    "SentryUnauthorized",
    "SentryUnavailable",
    "ServerError",
    "ServiceError",
    "SettingsError",
    "ThumbnailUnavailable",
    "TooManyAuthFailures",
    "TooManyImages",
    "UnknownParameter",
    "UnsupportedMediaType",
    "UpstreamError",
    "UpstreamFailed",
    "UpstreamInvalidResponse",
    "UpstreamTimeout",
    "UpstreamUnauthorized",
    "WebhookUnauthorized",
    "WebhooksNotConfigured",
    "concrete_errors",
    "example_problem",
    "explanation",
    "failure_list",
    "problem",
    "problem_meaning",
]
