"""Download report and manifest: the archive's last entries, for people and for programs.

Both are pure functions of the same outcomes. An image without an outcome appears in neither.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from service.archive.naming import visible
from service.model import Outcome, Reason

REPORT_NAME = "_download_report.txt"
MANIFEST_NAME = "_manifest.json"
MANIFEST_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class ReportContext:
    """The facts of report and manifest besides the outcomes.

    ``parameters`` are those of the request, as JSON values. ``retry_urls`` together request exactly the missing images;
    there are several if the ids do not fit one URL. ``credits_spent`` counts the images bought for the archive.
    """

    order_id: str
    order_name: str
    archive_id: str
    parameters: Mapping[str, object]
    created_at: str
    retry_urls: Sequence[str]
    credits_spent: int = 0


class Retry(StrEnum):
    """Whether a repeated request can help; the values are the sentences of the report."""

    NOW = "Trying again is likely to help."
    LATER = "Trying again helps once this has changed."
    POINTLESS = "Trying again will not help."


# For readers who know neither this service nor HTTP.
PLAIN_WORDS: Mapping[Reason, tuple[str, Retry]] = {
    Reason.NOT_READY: ("It was still being enhanced.", Retry.LATER),
    Reason.PROCESSING_FAILED: ("Enhancing it failed, so there is no result to download.", Retry.POINTLESS),
    Reason.EXPIRED: ("It has expired: the enhanced image is no longer kept.", Retry.POINTLESS),
    Reason.NOT_FOUND: ("It could not be found; perhaps it was deleted.", Retry.POINTLESS),
    Reason.UNAUTHORIZED: ("The download service's own key was not accepted for it.", Retry.LATER),
    Reason.NO_CREDITS: ("There were not enough credits to buy it in full quality.", Retry.LATER),
    Reason.REJECTED: ("The image service rejects it with these options.", Retry.POINTLESS),
    Reason.RATE_LIMITED: ("The image service received too many requests at once.", Retry.NOW),
    Reason.UPSTREAM_ERROR: ("The image service had an error.", Retry.NOW),
    Reason.CONNECTION_FAILED: ("The image service could not be reached.", Retry.NOW),
    Reason.CONNECTION_LOST: ("The connection broke while it was being downloaded.", Retry.NOW),
    Reason.TIMEOUT: ("The image service took too long to send it.", Retry.NOW),
    Reason.TRUNCATED: ("It ended before it was complete.", Retry.NOW),
    Reason.TOO_LONG: ("It was longer than announced, so it could not be trusted.", Retry.NOW),
    Reason.NOT_AN_IMAGE: ("What arrived was not an image.", Retry.NOW),
    Reason.CONTENT_CHANGED: ("It changed while it was being downloaded.", Retry.NOW),
    Reason.REDIRECT_REFUSED: ("Its download address is not safe to follow.", Retry.LATER),
    Reason.UPSTREAM_UNAVAILABLE: ("It was not tried, because several images in a row had failed before it.", Retry.NOW),
}


def report_text(context: ReportContext, outcomes: Sequence[Outcome]) -> str:
    """Write the report for people: what is missing, why, and how to download it.

    Lines end in LF: every editor reads it (Notepad since 2018), and ``grep`` and ``diff`` expect it. Encode the text as
    UTF-8 without a byte order mark.
    """
    missing = [outcome for outcome in _in_order(outcomes) if outcome.failure]
    lines = [
        "Download report",
        "===============",
        "",
        f"Order:   {visible(context.order_name) or '(no name)'} ({visible(context.order_id)})",
        f"Archive: {visible(context.archive_id)}",
        f"Made at: {visible(context.created_at)}",
        "",
        f"{len(outcomes) - len(missing)} of {len(outcomes)} images are in this archive.",
    ]
    if context.credits_spent:
        lines.append(f"Bought in full quality for it: {context.credits_spent}.")
    if missing:
        lines += ["", f"Missing ({len(missing)}):"]
        for outcome in missing:
            lines += ["", *_missing_lines(outcome)]
        lines += ["", *_retry_lines(context, missing)]
    return "\n".join(lines) + "\n"


def manifest(context: ReportContext, outcomes: Sequence[Outcome]) -> dict[str, object]:
    """Build the manifest for programs as JSON values, with the images in the order's own order.

    ``schema`` changes when a reader of the former one would misread the manifest, not for added keys alone.
    """
    ordered = _in_order(outcomes)
    entries = [outcome.entry for outcome in ordered if outcome.entry]
    missing = [outcome.image.image_id for outcome in ordered if outcome.failure and outcome.image.image_id]
    return {
        "schema": MANIFEST_SCHEMA,
        "order_id": context.order_id,
        "order_name": context.order_name,
        "archive_id": context.archive_id,
        "created_at": context.created_at,
        "parameters": dict(context.parameters),
        "counts": {
            "total": len(ordered),
            "downloaded": len(entries),
            "failed": len(ordered) - len(entries),
            "bytes": sum(entry.size for entry in entries),
        },
        "credits_spent": context.credits_spent,
        "missing": missing,
        "retry_urls": list(context.retry_urls) if missing else [],
        "images": [_manifest_image(outcome) for outcome in ordered],
    }


def manifest_json(context: ReportContext, outcomes: Sequence[Outcome]) -> bytes:
    """Encode the manifest in ASCII: an uploader's name may have lone surrogates, which UTF-8 cannot encode."""
    return json.dumps(manifest(context, outcomes), indent=2).encode("ascii") + b"\n"


def _in_order(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return sorted(outcomes, key=lambda outcome: outcome.position)


def _missing_lines(outcome: Outcome) -> list[str]:
    image, failure = outcome.image, outcome.failure
    if failure is None:
        return []
    words, retry = PLAIN_WORDS[failure.reason]
    lines = [
        f"- {visible(image.name) or '(no name)'}",
        f"  id:     {visible(image.image_id)}",
        f"  why:    {words} {retry.value}",
    ]
    if detail := visible(failure.detail).strip():
        lines.append(f"  detail: {detail}")
    return lines


def _retry_lines(context: ReportContext, missing: Sequence[Outcome]) -> list[str]:
    reasons = {outcome.failure.reason for outcome in missing if outcome.failure}
    if all(PLAIN_WORDS[reason][1] is Retry.POINTLESS for reason in reasons):
        return ["Downloading again will not bring the missing images."]
    commands = [
        f"  curl --fail --location --output missing_images_{number}.zip {shlex.quote(visible(url))}"
        for number, url in enumerate(context.retry_urls, start=1)
    ]
    return [
        "To download only the missing images, run this (with the same API key, if the service requires one):",
        "",
        *commands,
    ]


def _manifest_image(outcome: Outcome) -> dict[str, object]:
    entry, failure = outcome.entry, outcome.failure
    return {
        "position": outcome.position,
        "image_id": outcome.image.image_id,
        "name": outcome.image.name,
        "outcome": "downloaded" if entry else "failed",
        "attempts": outcome.attempts,
        "entry": entry.name if entry else None,
        "size": entry.size if entry else None,
        "crc32": f"{entry.crc32:08x}" if entry else None,
        "sha256": outcome.sha256,
        "reason": failure.reason.value if failure else None,
        "detail": failure.detail if failure else None,
        "upstream_status": failure.upstream_status if failure else None,
    }
