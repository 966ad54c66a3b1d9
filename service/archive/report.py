"""The archive's last entries: a report for people and a manifest for programs, both from the same outcomes.

Pure functions of what they are given; what is not in ``outcomes`` is not in the archive.
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
    """What the report says beside the outcomes.

    ``parameters`` are the request's own and must fit into JSON; the ``retry_urls`` together ask for exactly the
    missing images (several, where the ids are too many for one URL). ``credits_spent`` counts the images that
    were bought for the archive.
    """

    order_id: str
    order_name: str
    archive_id: str
    parameters: Mapping[str, object]
    created_at: str
    retry_urls: Sequence[str]
    credits_spent: int = 0


class Retry(StrEnum):
    """Whether asking for a missing image again can help; the values are the report's own words."""

    NOW = "Trying again is likely to help."
    LATER = "Trying again helps once this has changed."
    POINTLESS = "Trying again will not help."


# In words for someone who has never heard of this service.
PLAIN_WORDS: Mapping[Reason, tuple[str, Retry]] = {
    Reason.NOT_READY: ("It was still being enhanced.", Retry.LATER),
    Reason.PROCESSING_FAILED: ("Enhancing it failed, so there is no result to download.", Retry.POINTLESS),
    Reason.EXPIRED: ("It has expired: the enhanced image is no longer kept.", Retry.POINTLESS),
    Reason.NOT_FOUND: ("It could not be found; perhaps it was deleted.", Retry.POINTLESS),
    Reason.UNAUTHORIZED: ("The download service's own key was not accepted for it.", Retry.LATER),
    Reason.NO_CREDITS: ("There were not enough credits to buy it in full quality.", Retry.LATER),
    Reason.REJECTED: ("The image service refuses it with these options.", Retry.POINTLESS),
    Reason.RATE_LIMITED: ("The image service was asked for too much at once.", Retry.NOW),
    Reason.UPSTREAM_ERROR: ("The image service had a fault.", Retry.NOW),
    Reason.CONNECTION_FAILED: ("The image service could not be reached.", Retry.NOW),
    Reason.CONNECTION_LOST: ("The connection broke while it was being downloaded.", Retry.NOW),
    Reason.TIMEOUT: ("The image service took too long to send it.", Retry.NOW),
    Reason.TRUNCATED: ("It ended before it was complete.", Retry.NOW),
    Reason.TOO_LONG: ("It was longer than announced, so it could not be trusted.", Retry.NOW),
    Reason.NOT_AN_IMAGE: ("What arrived was not an image.", Retry.NOW),
    Reason.CONTENT_CHANGED: ("It changed while it was being downloaded.", Retry.NOW),
    Reason.REDIRECT_REFUSED: ("It was said to be at an address that is not safe to follow.", Retry.LATER),
    Reason.UPSTREAM_UNAVAILABLE: ("It was not tried: the images before it had failed one after another.", Retry.NOW),
}


def report_text(context: ReportContext, outcomes: Sequence[Outcome]) -> str:
    """Tell a person what the archive holds, what is missing and why, and how to get just that.

    Lines end in LF, which every editor reads by now (Notepad since 2018) and ``grep`` and ``diff`` expect. To be
    written as UTF-8, without a byte order mark.
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
    """Tell a program the same, as JSON values; images stand in the order's own order.

    ``schema`` grows when a reader of the former schema would misread; added keys alone leave it.
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
    """Encode the manifest. ASCII only: an uploader's name may hold halves of characters that UTF-8 cannot."""
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
        "To get the missing images only, run this (with the same key, if the service asked you for one):",
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
