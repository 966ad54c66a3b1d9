"""Operations beside orders and archives: photos in, sessions, and what operators ask."""

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
from service.web.openapi.operation import KEY, OPERATOR, WEBHOOK, Operation, Success, json_content
from service.web.openapi.parameters import TRACING
from service.web.openapi.schemas import exactly, listed, ref
from service.web.operations.health import IGNORE, UPSTREAM
from service.web.uploads.create_order import ENHANCEMENT_OPTIONS, MAX_ORDER_NAME_CHARACTERS
from service.web.uploads.form_parts import FILES, ORDER_NAME

_OPERATOR_PROBLEMS = (AdminRequired, AdminNotConfigured, TooManyAuthFailures)
_ORDER_CREATED = Success(
    201, "The order, with what became of every file.", json_content(ref("NewOrder")), headers=("Location",)
)
_PLAIN = {"text/plain": {"schema": {"type": "string"}}}


def _choice(values: Any) -> dict[str, Any]:
    words = list(values)
    return {"type": "string", "enum": words} if set(words) != {"true", "false"} else {"type": "boolean"}


_UPLOAD_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": exactly(
                {
                    ORDER_NAME: {
                        "type": "string",
                        "maxLength": MAX_ORDER_NAME_CHARACTERS,
                        "description": "Name of the order.",
                    },
                    **{name: _choice(values) for name, values in ENHANCEMENT_OPTIONS.items()},
                    FILES: {
                        **listed({"type": "string", "format": "binary", "contentMediaType": "image/jpeg"}),
                        "minItems": 1,
                        "description": "The photos. They come behind all other fields.",
                    },
                },
                optional=(ORDER_NAME, *ENHANCEMENT_OPTIONS),
            )
        }
    },
}
_KEY_FIELD = exactly({"key": {"type": "string", "format": "password"}})
_SIGN_IN_BODY = {
    "required": True,
    "content": {**json_content(_KEY_FIELD), "application/x-www-form-urlencoded": {"schema": _KEY_FIELD}},
}

OPERATIONS = (
    Operation(
        "post",
        "/api/create-order",
        "createOrder",
        "Creating orders",
        "Make an order of photos",
        "Each file is looked at and passed on before the next one is read; the API enhances them by itself. The answer "
        "lists every file.\n\n"
        '```sh\ncurl --header "X-Admin-Token: $ADMIN_TOKEN" --form "name=12 High Street" \\\n'
        f"  --form files=@kitchen.jpg --form files=@garden.jpg {HERE}/api/create-order\n```",
        (_ORDER_CREATED,),
        (
            InvalidBody,
            *_OPERATOR_PROBLEMS,
            RequestBodyTimeout,
            UnsupportedMediaType,
            NoFilesUploaded,
            ApiKeyNotConfigured,
            AtCapacity,
            Draining,
        ),
        tuple(TRACING),
        _UPLOAD_BODY,
        security=OPERATOR,
    ),
    Operation(
        "post",
        "/api/create-sample-order",
        "createSampleOrder",
        "Creating orders",
        "Make an order of three photos that come with the service",
        'To try it out.\n\n```sh\ncurl --request POST --header "X-Admin-Token: $ADMIN_TOKEN" \\\n'
        f"  {HERE}/api/create-sample-order\n```",
        (_ORDER_CREATED,),
        (*_OPERATOR_PROBLEMS, NoFilesUploaded, ApiKeyNotConfigured, AtCapacity, Draining),
        tuple(TRACING),
        security=OPERATOR,
    ),
    Operation(
        "get",
        "/session",
        "getSession",
        "Access",
        "Ask what you may do",
        "And what would be needed for more.",
        (Success(200, "What you may do.", json_content(ref("Session"))),),
        (TooManyAuthFailures,),
        security=KEY,
    ),
    Operation(
        "post",
        "/session",
        "startSession",
        "Access",
        "Sign in with a key, in a browser",
        "Sets a signed cookie that is worth as much as the key and does not hold it.",
        (Success(200, "You are signed in.", json_content(ref("StartedSession")), headers=("Set-Cookie",)),),
        (InvalidBody, RequestBodyTimeout, InvalidCredentials, TooManyAuthFailures),
        body=_SIGN_IN_BODY,
    ),
    Operation(
        "delete",
        "/session",
        "endSession",
        "Access",
        "Sign out",
        "Takes the cookie back.",
        (Success(204, "You are signed out.", headers=("Set-Cookie",)),),
    ),
    Operation(
        "post",
        "/webhooks/autoenhance",
        "takeWebhook",
        "Operation",
        "For the Autoenhance API: tell that an image is ready",
        "Downloads with `wait` look at their order at once, or 0.25 s after the last look, instead of after some "
        "seconds. The API sends the secret in the header `Authentication`.",
        (Success(204, "Taken."),),
        (InvalidBody, RequestBodyTimeout, WebhookUnauthorized, WebhooksNotConfigured, TooManyAuthFailures),
        body={"required": False, "content": json_content({"type": "object"})},
        security=WEBHOOK,
    ),
    Operation(
        "get",
        "/health",
        "getHealth",
        "Operation",
        "Whether the service runs, and has an API key",
        "Asks nobody else.",
        (
            Success(
                200,
                "It runs.",
                json_content(exactly({"status": {"const": "ok"}, "api_key_configured": {"type": "boolean"}})),
            ),
        ),
    ),
    Operation(
        "get",
        "/health/live",
        "getLiveness",
        "Operation",
        "Whether the process answers",
        "Asks nobody else.",
        (Success(200, "It does.", json_content(exactly({"status": {"const": "ok"}}))),),
    ),
    Operation(
        "get",
        "/health/ready",
        "getReadiness",
        "Operation",
        "Whether orders can be served",
        "For what decides where requests go. Where that would take every replica away while the API is down, and with "
        "them all that needs no API, `upstream=ignore` asks of the process alone.",
        (
            Success(200, "They can.", json_content(ref("Readiness"))),
            Success(503, "They cannot; `reasons` says why.", json_content(ref("Readiness"))),
        ),
        (InvalidParameter, UnknownParameter, RepeatedParameter),
        (
            {
                "name": UPSTREAM,
                "in": "query",
                "description": "`ignore`: an API that fails is no reason.",
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
        "In the text format, or as OpenMetrics for who asks for it in `Accept`. Not here if `METRICS_PORT` is set.",
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
        "What the process has done since its start",
        "The operator also sees recent errors.",
        (Success(200, "Counts and limits.", json_content(ref("Statistics"))),),
        (TooManyAuthFailures,),
        security=KEY,
    ),
    Operation(
        "get",
        "/api/page",
        "getPageFacts",
        "Operation",
        "What the page for people needs to know",
        "Nothing that a stranger may not know.",
        (Success(200, "The facts.", json_content(ref("PageFacts"))),),
    ),
    Operation(
        "get",
        "/api/sentry/issues",
        "listSentryIssues",
        "Operation",
        "What Sentry knows of this service",
        "The newest unresolved issues of its project.",
        (Success(200, "The issues.", json_content(exactly({"issues": listed(ref("SentryIssue"))}))),),
        (*_OPERATOR_PROBLEMS, SentryUnauthorized, SentryUnavailable, SentryInvalidResponse, SentryNotConfigured),
        security=OPERATOR,
    ),
    Operation(
        "get",
        "/problems/{slug}",
        "explainProblem",
        "Reference",
        "What a type of problem means",
        "The `type` of every problem is such an address.",
        (Success(200, "Its title, status and meaning.", _PLAIN),),
        (NotFound,),
        (
            {
                "name": "slug",
                "in": "path",
                "required": True,
                "description": "The last part of the type.",
                "schema": {"type": "string"},
                "example": "order-not-ready",
            },
        ),
    ),
    Operation(
        "get",
        "/openapi.json",
        "getDescription",
        "Reference",
        "This description",
        "For programs that make clients, tests or pages of it. For people there is `/docs`.",
        (Success(200, "An OpenAPI 3.1 document.", json_content({"type": "object"})),),
    ),
)
