"""Everything that can go wrong, as one tree, and its RFC 9457 problem document.

One file for each who must act: ``caller``, ``upstream``, ``own``; ``inner`` is what never reaches a caller. Each class
has the HTTP status, the problem's ``type`` and title; what an instance says in ``detail`` is public. Private causes
travel as ``__cause__`` and reach the log only.

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
    │   ├── InvalidArchiveId          400
    │   ├── CreditsExceeded           402
    │   ├── ArchiveNotFound           404
    │   ├── ArchiveIdInUse            409
    │   ├── ArchiveNotResumable       412
    │   ├── KeyRequired               401
    │   ├── SignInRefused             401
    │   ├── AdminRequired             401
    │   ├── AdminDisabled             403
    │   ├── FullQualityNotAllowed     403
    │   ├── LinkInvalid               403
    │   ├── LinkExpired               403
    │   ├── TooManyFailures           429
    │   ├── WebhookRefused            401
    │   ├── WebhookDisabled           403
    │   ├── UploadStalled             408
    │   ├── UnsupportedMediaType      415
    │   ├── NothingUploaded           422
    │   ├── RouteNotFound             404
    │   ├── MethodNotAllowed          405
    │   ├── OrderNotFound             404
    │   ├── OrderEmpty                404
    │   ├── OrderNotReady             409
    │   └── TooManyImages             413
    ├── NothingToDeliver              422  every image failed or is not ready
    ├── PreviewFailed                 502  the page's picture of one image
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

from service.errors.base import (
    PROBLEM_BASE,
    ServiceError,
    concrete_errors,
    failure_list,
    problem,
)
from service.errors.caller import (
    AdminDisabled,
    AdminRequired,
    ArchiveIdInUse,
    ArchiveNotFound,
    ArchiveNotResumable,
    BadRequest,
    CallerError,
    CreditsExceeded,
    FullQualityNotAllowed,
    ImageNotInOrder,
    InvalidArchiveId,
    InvalidBody,
    InvalidOrderId,
    InvalidParameter,
    KeyRequired,
    LinkExpired,
    LinkInvalid,
    MethodNotAllowed,
    NothingUploaded,
    OrderEmpty,
    OrderNotFound,
    OrderNotReady,
    RepeatedParameter,
    RouteNotFound,
    SignInRefused,
    TooManyFailures,
    TooManyImages,
    UnknownParameter,
    UnsupportedMediaType,
    UploadStalled,
    WebhookDisabled,
    WebhookRefused,
)
from service.errors.inner import (
    ArchiveBroken,
    ClientStalled,
    ImageFailed,
    ImageMissing,
    SettingsError,
)
from service.errors.own import (
    AtCapacity,
    Draining,
    InternalError,
    LinksNotConfigured,
    NotConfigured,
    OwnError,
    SentryNotConfigured,
)
from service.errors.upstream import (
    FirstByteTimeout,
    NothingToDeliver,
    PreviewFailed,
    SentryError,
    SentryRefused,
    SentryUnavailable,
    SentryUnreadable,
    UpstreamError,
    UpstreamFailed,
    UpstreamRefusedKey,
    UpstreamTimeout,
    UpstreamUnreadable,
)

__all__ = [
    "PROBLEM_BASE",
    "AdminDisabled",
    "AdminRequired",
    "ArchiveBroken",
    "ArchiveIdInUse",
    "ArchiveNotFound",
    "ArchiveNotResumable",
    "AtCapacity",
    "BadRequest",
    "CallerError",
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
    "InvalidOrderId",
    "InvalidParameter",
    "KeyRequired",
    "LinkExpired",
    "LinkInvalid",
    "LinksNotConfigured",
    "MethodNotAllowed",
    "NotConfigured",
    "NothingToDeliver",
    "NothingUploaded",
    "OrderEmpty",
    "OrderNotFound",
    "OrderNotReady",
    "OwnError",
    "PreviewFailed",
    "RepeatedParameter",
    "RouteNotFound",
    "SentryError",
    "SentryNotConfigured",
    "SentryRefused",
    "SentryUnavailable",
    "SentryUnreadable",
    "ServiceError",
    "SettingsError",
    "SignInRefused",
    "TooManyFailures",
    "TooManyImages",
    "UnknownParameter",
    "UnsupportedMediaType",
    "UploadStalled",
    "UpstreamError",
    "UpstreamFailed",
    "UpstreamRefusedKey",
    "UpstreamTimeout",
    "UpstreamUnreadable",
    "WebhookDisabled",
    "WebhookRefused",
    "concrete_errors",
    "failure_list",
    "problem",
]
