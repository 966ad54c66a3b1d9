"""The schemas of everything that the service answers with besides archives. All are exact: no other keys."""

from collections.abc import Mapping
from typing import Any

from service.archive.summary import OrderStatus
from service.model import ArchiveOutcome, Readiness, Reason
from service.streaming.receipts import DOWNLOADED, FAILED, PREPARING, STREAMING, WAITING, WRITING
from service.web.auth.credentials import Role
from service.web.openapi.problems import problem_schema
from service.web.uploads.create_order import REJECTION_DETAILS

Schema = Mapping[str, Any]

TEXT: Schema = {"type": "string"}
TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
COUNT: Schema = {"type": "integer", "minimum": 0}
COUNT_OR_NULL: Schema = {"type": ["integer", "null"], "minimum": 0}
TRUTH: Schema = {"type": "boolean"}
UUID: Schema = {"type": "string", "format": "uuid"}
MOMENT: Schema = {"type": "string", "format": "date-time"}
MOMENT_OR_NULL: Schema = {"type": ["string", "null"], "format": "date-time"}
REASON: Schema = {"type": "string", "enum": [reason.value for reason in Reason]}
REASON_OR_NULL: Schema = {"type": ["string", "null"], "enum": [*(reason.value for reason in Reason), None]}


def exactly(properties: Mapping[str, Schema], *, optional: tuple[str, ...] = (), says: str = "") -> dict[str, Any]:
    """Return the schema of an object with these keys and no others."""
    described = {"description": says} if says else {}
    required = [name for name in properties if name not in optional]
    return {
        "type": "object",
        **described,
        "required": required,
        "additionalProperties": False,
        "properties": dict(properties),
    }


def listed(item: Schema) -> dict[str, Any]:
    """Return the schema of a list."""
    return {"type": "array", "items": item}


def ref(name: str) -> dict[str, Any]:
    """Return the reference to a schema of this file."""
    return {"$ref": f"#/components/schemas/{name}"}


def component_schemas() -> dict[str, Any]:
    """Return all schemas by name."""
    return {
        "Problem": problem_schema(),
        "FailedImage": _FAILED_IMAGE,
        "Order": _ORDER,
        "OrderImage": _ORDER_IMAGE,
        "Receipt": exactly(
            {**_SUMMARY, "images": listed(ref("ReceiptImage"))}, says="A download, as far as it has come."
        ),
        "ReceiptSummary": exactly(_SUMMARY, says="A receipt without the single images."),
        "ReceiptImage": exactly(_RECEIPT_IMAGE, says="What became of one image."),
        "ImageChange": exactly(
            {**_RECEIPT_IMAGE, **_COUNTS},
            optional=tuple(_COUNTS),
            says="What is so of one image now; the archive's counts with it, unless it has only begun.",
        ),
        "UploadedFile": _UPLOADED_FILE,
        "NewOrder": _NEW_ORDER,
        "Session": exactly(_SESSION),
        "StartedSession": exactly({**_SESSION, "expires_at": {**COUNT, "description": "Seconds since 1970."}}),
        "Link": exactly({"url": {**TEXT, "format": "uri"}, "expires_at": MOMENT}),
        "Statistics": _STATISTICS,
        "Readiness": exactly(
            {
                "status": {"type": "string", "enum": ["ok", "unready"]},
                "reasons": listed({"type": "string", "enum": ["no_api_key", "draining", "upstream_failing"]}),
            }
        ),
        "PageFacts": exactly(
            {
                "version": TEXT,
                "api_key_configured": TRUTH,
                "demo_order_id": {**TEXT_OR_NULL, "description": "Only the sandbox has one."},
                "wait_max_seconds": COUNT,
                "max_upload_files": COUNT,
                "max_upload_bytes": COUNT,
                "reasons": {
                    "type": "object",
                    "description": "What each reason why an image is missing means, and whether asking again helps.",
                    "additionalProperties": exactly({"words": TEXT, "again": TEXT}),
                },
            }
        ),
        "SentryIssue": _SENTRY_ISSUE,
    }


_FAILED_IMAGE = exactly(
    {
        "image_id": TEXT,
        "name": TEXT,
        "reason": REASON,
        "detail": TEXT,
        "upstream_status": {"type": ["integer", "null"]},
    },
    says="An image that could not be had, and why.",
)
_ORDER_IMAGE = exactly(
    {
        "position": {**COUNT, "description": "Place in the order, from 0."},
        "image_id": TEXT,
        "name": {**TEXT, "description": "As its uploader called it."},
        "entry": {**TEXT, "description": "Its name in the archive; the extension follows the real type."},
        "readiness": {"type": "string", "enum": [one.value for one in Readiness]},
        "reason": REASON_OR_NULL,
        "detail": TEXT_OR_NULL,
        "status": {**TEXT_OR_NULL, "description": "The API's own word."},
        "paid": {**TRUTH, "description": "Whether it was bought in full quality already."},
    }
)
_ORDER = exactly(
    {
        "order_id": UUID,
        "name": TEXT,
        "status": {
            "type": "string",
            "enum": [one.value for one in OrderStatus],
            "description": "`ready`: every image. `partial`: some, and no more to come. `busy`: more may come. "
            "`failed`: none, and none to come. `empty`: no images.",
        },
        "busy": TRUTH,
        "archive_name": {**TEXT, "description": "File name of the archive."},
        "counts": exactly({"total": COUNT, **{one.value: COUNT for one in Readiness}}),
        "credits": exactly(
            {
                "to_buy": {**COUNT, "description": "What a download with these parameters would have to buy."},
                "full_quality": {**COUNT, "description": "What one in full quality would."},
                "paid": {**COUNT, "description": "Images that are paid already."},
            }
        ),
        "images": listed(ref("OrderImage")),
        "download": {**TEXT, "description": "Where to download it with these parameters."},
    },
    says="An order before it is downloaded.",
)
_COUNTS: Mapping[str, Schema] = {
    "total": COUNT,
    "downloaded": COUNT,
    "failed": COUNT,
    "bytes": {**COUNT, "description": "Of the archive so far."},
    "credits_spent": COUNT,
}
_SUMMARY: Mapping[str, Schema] = {
    "archive_id": UUID,
    "state": {"type": "string", "enum": [PREPARING, STREAMING, *(one.value for one in ArchiveOutcome)]},
    "why": {**TEXT_OR_NULL, "description": "Why it ended as it did, if not well."},
    "problem": {
        "description": "The problem that was answered, if any.",
        "anyOf": [{"type": "null"}, {"type": "object", "required": ["type", "title", "status", "detail"]}],
    },
    "order_id": TEXT_OR_NULL,
    "order_name": TEXT_OR_NULL,
    "parameters": {"type": "object", "additionalProperties": TEXT},
    "started_at": MOMENT,
    "ended_at": MOMENT_OR_NULL,
    **_COUNTS,
}
_RECEIPT_IMAGE: Mapping[str, Schema] = {
    "position": COUNT,
    "image_id": TEXT,
    "name": TEXT,
    "state": {"type": "string", "enum": [WAITING, WRITING, DOWNLOADED, FAILED]},
    "attempts": COUNT,
    "entry": {**TEXT_OR_NULL, "description": "Its name in the archive."},
    "size": COUNT_OR_NULL,
    "crc32": {"type": ["string", "null"], "pattern": "^[0-9a-f]{8}$"},
    "sha256": {"type": ["string", "null"], "pattern": "^[0-9a-f]{64}$", "description": "With `manifest=always`."},
    "reason": REASON_OR_NULL,
    "detail": TEXT_OR_NULL,
    "finished_at": MOMENT_OR_NULL,
}
_UPLOADED_FILE = exactly(
    {
        "file": TEXT,
        "image_id": TEXT_OR_NULL,
        "outcome": {"type": "string", "enum": ["uploaded", "failed"]},
        "reason": {
            "type": ["string", "null"],
            "enum": [*REJECTION_DETAILS, *(reason.value for reason in Reason), None],
        },
        "detail": TEXT_OR_NULL,
        "bytes": COUNT,
    },
    says="What became of one file that was sent in.",
)
_NEW_ORDER = exactly(
    {
        "order_id": TEXT,
        "name": TEXT,
        "images": listed(ref("UploadedFile")),
        "uploaded": COUNT,
        "failed": COUNT,
        "download": {**TEXT, "description": "Where the enhanced images can be downloaded once they are ready."},
    }
)
_SESSION: Mapping[str, Schema] = {
    "role": {
        "type": ["string", "null"],
        "enum": [*(role.word for role in Role), None],
        "description": "`download`: previews. `full`: also full quality. `admin`: everything. `null`: nothing.",
    },
    "key_required": TRUTH,
    "admin_enabled": TRUTH,
    "links_enabled": TRUTH,
    "signed_in": {**TRUTH, "description": "Whether the request came with a session."},
}
_STATISTICS = exactly(
    {
        "version": TEXT,
        "uptime_seconds": {"type": "number", "minimum": 0},
        "in_progress": exactly(
            {"archives": COUNT, "read_ahead_bytes": COUNT, "draining": TRUTH, "upstream_failing": TRUTH}
        ),
        "counters": exactly(
            {
                "archives": {"type": "object", "additionalProperties": COUNT},
                "archive_bytes": COUNT,
                "images": {"type": "object", "additionalProperties": COUNT},
                "image_bytes": COUNT,
                "image_retries": COUNT,
                "credits_spent": COUNT,
            },
            says="Since the start; `archives` by outcome, `images` by outcome and reason.",
        ),
        "limits": {"type": "object", "additionalProperties": {"type": "number"}},
        "recent_errors": {
            **listed(exactly({"time": MOMENT, "request_id": TEXT, "event": TEXT, "detail": TEXT})),
            "description": "For the operator only; the newest first.",
        },
    },
    optional=("recent_errors",),
)
_SENTRY_ISSUE = exactly(
    {
        "id": TEXT,
        "short_id": TEXT_OR_NULL,
        "title": TEXT,
        "culprit": TEXT_OR_NULL,
        "level": TEXT_OR_NULL,
        "count": COUNT_OR_NULL,
        "users": COUNT_OR_NULL,
        "first_seen": TEXT_OR_NULL,
        "last_seen": TEXT_OR_NULL,
        "permalink": TEXT_OR_NULL,
    }
)
