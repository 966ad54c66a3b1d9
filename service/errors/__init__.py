"""Everything that can go wrong, as one tree, and its RFC 9457 problem document.

One file for each who must act: ``caller``, ``upstream``, ``own``; ``inner`` is what never reaches a caller. Each class
has the HTTP status, the problem's ``type`` and title; what an instance says in ``detail`` is public. Private causes
travel as ``__cause__`` and reach the log only.

::

    ServiceError
    ├── ClientError                   the request must change
    │   ├── BadRequest                400
    │   ├── InvalidOrderId            400
    │   ├── InvalidParameter          400
    │   │   ├── UnknownParameter      400
    │   │   ├── RepeatedParameter     400
    │   │   └── ImageNotInOrder       400
    │   ├── InvalidBody               400
    │   ├── InvalidArchiveId          400
    │   ├── CreditsExceeded           402
    │   ├── ArchiveNotFound           404
    │   ├── ArchiveIdInUse            409
    │   ├── ArchiveNotResumable       412
    │   ├── AuthenticationRequired               401
    │   ├── InvalidCredentials             401
    │   ├── AdminRequired             401
    │   ├── AdminNotConfigured             403
    │   ├── FullQualityNotAllowed     403
    │   ├── LinkInvalid               403
    │   ├── LinkExpired               403
    │   ├── TooManyAuthFailures           429
    │   ├── WebhookUnauthorized            401
    │   ├── WebhooksNotConfigured           403
    │   ├── RequestBodyTimeout             408
    │   ├── UnsupportedMediaType      415
    │   ├── NoFilesUploaded           422
    │   ├── NotFound             404
    │   ├── MethodNotAllowed          405
    │   ├── OrderNotFound             404
    │   ├── OrderEmpty                404
    │   ├── OrderNotReady             409
    │   └── TooManyImages             413
    ├── NoImagesAvailable              422  every image failed or is not ready
    ├── ThumbnailUnavailable                 502  the page's picture of one image
    ├── UpstreamError                 the Autoenhance API must recover
    │   ├── UpstreamFailed            502
    │   ├── UpstreamInvalidResponse        502  an answer we cannot read
    │   ├── UpstreamUnauthorized        502  the service's own key is wrong
    │   ├── UpstreamTimeout           504
    │   └── FirstByteTimeout          504  no image in hand in time
    ├── SentryError                   Sentry, or our access to it, must be mended
    │   ├── SentryUnauthorized             502
    │   ├── SentryUnavailable         502
    │   └── SentryInvalidResponse          502
    └── ServerError                      the operator must act, or the caller wait
        ├── ApiKeyNotConfigured             503
        ├── LinksNotConfigured        503
        ├── SentryNotConfigured       503
        ├── AtCapacity                503
        ├── Draining                  503
        └── InternalError             500

Not answers to a request, and therefore not in the tree: ``ImageFailed`` (one image could not be had; the
archive goes on), ``ArchiveAborted`` (the response has begun and must be broken off; ``ClientStalled`` when its client
takes nothing, ``ImageMissing`` when its caller wants all or nothing) and ``SettingsError``.
"""

from service.errors.base import (
    PROBLEM_BASE,
    ServiceError,
    concrete_errors,
    failure_list,
    problem,
)
from service.errors.client import (
    AdminNotConfigured,
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
    WebhooksNotConfigured,
    WebhookUnauthorized,
)
from service.errors.internal import (
    ArchiveAborted,
    ClientStalled,
    ImageFailed,
    ImageMissing,
    SettingsError,
)
from service.errors.server import (
    ApiKeyNotConfigured,
    AtCapacity,
    Draining,
    InternalError,
    LinksNotConfigured,
    SentryNotConfigured,
    ServerError,
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
    "failure_list",
    "problem",
]
