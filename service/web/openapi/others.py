"""Operations of uploads, sessions, webhooks and operations."""

from typing import Any

from service.errors import (
    AdminNotConfigured,
    AdminRequired,
    ApiKeyNotConfigured,
    AtCapacity,
    Draining,
    InvalidBody,
    InvalidCredentials,
    InvalidParameter,
    NoFilesUploaded,
    NotFound,
    RepeatedParameter,
    RequestBodyTimeout,
    SentryInvalidResponse,
    SentryNotConfigured,
    SentryUnauthorized,
    SentryUnavailable,
    TooManyAuthFailures,
    UnknownParameter,
    UnsupportedMediaType,
    WebhooksNotConfigured,
    WebhookUnauthorized,
)
from service.web.openapi.downloads import HERE
from service.web.openapi.operation import ADMIN, KEY, WEBHOOK, Operation, Success, json_content
from service.web.openapi.parameters import TRACING, path_parameter
from service.web.openapi.schemas import (
    Credentials,
    Health,
    Liveness,
    NewOrder,
    PageConfig,
    ReadinessCheck,
    SentryIssues,
    Session,
    StartedSession,
    Statistics,
    UploadForm,
    reference,
)
from service.web.operations.health import IGNORE, UPSTREAM

_ADMIN_PROBLEMS = (AdminRequired, AdminNotConfigured, TooManyAuthFailures)
_ORDER_CREATED = Success(
    201, "The order, with the outcome of each file.", json_content(reference(NewOrder)), headers=("Location",)
)
_PLAIN = {"text/plain": {"schema": {"type": "string"}}}
_UPLOAD_BODY: dict[str, Any] = {
    "required": True,
    "content": {"multipart/form-data": {"schema": reference(UploadForm)}},
}
_SIGN_IN_BODY = {
    "required": True,
    "content": {
        **json_content(reference(Credentials)),
        "application/x-www-form-urlencoded": {"schema": reference(Credentials)},
    },
}

OPERATIONS = (
    Operation(
        "post",
        "/api/create-order",
        "createOrder",
        "Creating orders",
        "Create an order from photos",
        "Each file is checked and uploaded before the next one is read; the API enhances the photos automatically. The "
        "response lists every file.\n\n"
        '```sh\ncurl --header "X-Admin-Token: $ADMIN_TOKEN" --form "name=12 High Street" \\\n'
        f"  --form files=@kitchen.jpg --form files=@garden.jpg {HERE}/api/create-order\n```",
        (_ORDER_CREATED,),
        (
            InvalidBody,
            *_ADMIN_PROBLEMS,
            RequestBodyTimeout,
            UnsupportedMediaType,
            NoFilesUploaded,
            ApiKeyNotConfigured,
            AtCapacity,
            Draining,
        ),
        tuple(TRACING),
        _UPLOAD_BODY,
        security=ADMIN,
    ),
    Operation(
        "post",
        "/api/create-sample-order",
        "createSampleOrder",
        "Creating orders",
        "Create an order from three sample photos",
        'For trials.\n\n```sh\ncurl --request POST --header "X-Admin-Token: $ADMIN_TOKEN" \\\n'
        f"  {HERE}/api/create-sample-order\n```",
        (_ORDER_CREATED,),
        (*_ADMIN_PROBLEMS, NoFilesUploaded, ApiKeyNotConfigured, AtCapacity, Draining),
        tuple(TRACING),
        security=ADMIN,
    ),
    Operation(
        "get",
        "/session",
        "getSession",
        "Access",
        "Get the role of the client",
        "And what other roles require.",
        (Success(200, "The role.", json_content(reference(Session))),),
        (TooManyAuthFailures,),
        security=KEY,
    ),
    Operation(
        "post",
        "/session",
        "startSession",
        "Access",
        "Sign in with a key, in a browser",
        "Sets a signed cookie with the role of the key. The cookie does not contain the key.",
        (Success(200, "A new session.", json_content(reference(StartedSession)), headers=("Set-Cookie",)),),
        (InvalidBody, RequestBodyTimeout, InvalidCredentials, TooManyAuthFailures),
        body=_SIGN_IN_BODY,
    ),
    Operation(
        "delete",
        "/session",
        "endSession",
        "Access",
        "Sign out",
        "Deletes the cookie.",
        (Success(204, "The session has ended.", headers=("Set-Cookie",)),),
    ),
    Operation(
        "post",
        "/webhooks/autoenhance",
        "receiveWebhook",
        "Operation",
        "For the Autoenhance API: notify the service that an image is ready",
        "Downloads with `wait` poll their order immediately, or 0.25 s after the last poll, instead of after some "
        "seconds. The API sends the secret in the header `Authentication`.",
        (Success(204, "Received."),),
        (InvalidBody, RequestBodyTimeout, WebhookUnauthorized, WebhooksNotConfigured, TooManyAuthFailures),
        body={"required": False, "content": json_content({"type": "object"})},
        security=WEBHOOK,
    ),
    Operation(
        "get",
        "/health",
        "getHealth",
        "Operation",
        "Whether the service runs and has an API key",
        "Sends no request upstream.",
        (Success(200, "The service runs.", json_content(reference(Health))),),
    ),
    Operation(
        "get",
        "/health/live",
        "getLiveness",
        "Operation",
        "Whether the process responds",
        "Sends no request upstream.",
        (Success(200, "The process responds.", json_content(reference(Liveness))),),
    ),
    Operation(
        "get",
        "/health/ready",
        "getReadiness",
        "Operation",
        "Whether the service accepts downloads",
        "For load balancers. Where that would remove every replica while the API is down, and with them all that needs "
        "no API, `upstream=ignore` checks the process alone.",
        (
            Success(200, "Ready.", json_content(reference(ReadinessCheck))),
            Success(503, "Not ready; `reasons` says why.", json_content(reference(ReadinessCheck))),
        ),
        (InvalidParameter, UnknownParameter, RepeatedParameter),
        (
            {
                "name": UPSTREAM,
                "in": "query",
                "description": "`ignore`: a failing API is no reason.",
                "schema": {"type": "string", "enum": [IGNORE]},
            },
        ),
    ),
    Operation(
        "get",
        "/metrics",
        "getMetrics",
        "Operation",
        "Metrics for Prometheus",
        "In the text format, or in OpenMetrics by `Accept`. Not on this port if `METRICS_PORT` is set.",
        (
            Success(
                200,
                "The metrics.",
                {**_PLAIN, "application/openmetrics-text": {"schema": {"type": "string"}}},
            ),
        ),
        (NotFound,),
    ),
    Operation(
        "get",
        "/api/stats",
        "getStatistics",
        "Operation",
        "Counts of the process since its start",
        "With the admin token also the recent errors.",
        (Success(200, "Counts and limits.", json_content(reference(Statistics))),),
        (TooManyAuthFailures,),
        security=KEY,
    ),
    Operation(
        "get",
        "/api/page",
        "getPageConfig",
        "Operation",
        "Facts for the service's own page",
        "Public facts only.",
        (Success(200, "The configuration.", json_content(reference(PageConfig))),),
    ),
    Operation(
        "get",
        "/api/sentry/issues",
        "listSentryIssues",
        "Operation",
        "Issues of this service in Sentry",
        "The newest unresolved issues of its project.",
        (Success(200, "The issues.", json_content(reference(SentryIssues))),),
        (*_ADMIN_PROBLEMS, SentryUnauthorized, SentryUnavailable, SentryInvalidResponse, SentryNotConfigured),
        security=ADMIN,
    ),
    Operation(
        "get",
        "/problems/{slug}",
        "explainProblem",
        "Reference",
        "Meaning of a problem type",
        "The `type` of every problem is such a path.",
        (Success(200, "Its title, status, meaning and advice.", _PLAIN),),
        (NotFound,),
        (path_parameter("slug", "Last part of the type.", "order-not-ready", {"type": "string"}),),
    ),
    Operation(
        "get",
        "/openapi.json",
        "getDescription",
        "Reference",
        "This document",
        "For client generators and tests. `/docs` is the page for people.",
        (Success(200, "An OpenAPI 3.1 document.", json_content({"type": "object"})),),
    ),
)
