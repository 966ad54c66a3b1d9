"""Catalogue of all log events: level, fields and meaning.

Code logs events by literal names. A test compares every logging call with this catalogue, in both directions; the table
in ``deploy/OBSERVABILITY.md`` is generated from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """A log event. ``levels`` has more than one if the level depends on the case, which ``meaning`` then explains."""

    levels: tuple[str, ...]
    fields: tuple[str, ...]
    meaning: str


def _event(levels: str, fields: str, meaning: str) -> Event:
    return Event(tuple(levels.split()), tuple(fields.split()), meaning)


EVENTS: Mapping[str, Event] = {
    "service.started": _event("info", "url api_key_configured", "The service listens at `url`."),
    "service.metrics_started": _event("info", "url", "Health and metrics listen on their own port (`METRICS_PORT`)."),
    "service.draining": _event(
        "info", "archives drain_seconds", "SIGTERM: running archives have `drain_seconds` to complete."
    ),
    "service.drain_expired": _event("warning", "archives", "`DRAIN_SECONDS` are over; these archives are aborted."),
    "service.drain_aborted": _event(
        "warning", "archives", "A second SIGTERM or SIGINT arrived; these archives are aborted."
    ),
    "service.stopped": _event("info", "", "The service has stopped."),
    "service.not_configured": _event("warning", "detail", "`AUTOENHANCE_API_KEY` is not set."),
    "access.open": _event(
        "warning",
        "detail",
        "At start, not with `--sandbox`: no service key is set, so every client that reaches the port may download "
        "previews, or spend credits with `ALLOW_FULL_QUALITY`. Also on loopback.",
    ),
    "sandbox.started": _event("info", "api_base demo_order", "The sandbox API listens."),
    "sentry.started": _event("info", "release", "Faults are reported to Sentry."),
    "sentry.not_installed": _event("warning", "detail", "`SENTRY_DSN` is set, but the extra `sentry` is missing."),
    "sentry.bad_dsn": _event("warning", "detail", "`SENTRY_DSN` is not a DSN; nothing is reported."),
    "session.started": _event("info", "role", "A browser signed in."),
    "session.rejected": _event("warning", "", "A sign-in with an invalid key. The address is not logged."),
    "proxy.ignored": _event(
        "warning",
        "detail",
        "Once per start: `X-Forwarded-For` arrives, but `TRUSTED_PROXY_HOPS` is 0. Behind a proxy, set it: until then "
        "all clients share one limit of invalid keys. Without a proxy the client sent the header, and nothing needs to "
        "be done.",
    ),
    "order.created": _event("info", "order_id", "An order was created for an upload."),
    "order.retried": _event("info", "reason detail attempt", "An order look-up failed and is retried."),
    "order.poll_failed": _event(
        "info",
        "problem detail",
        "A poll of an order for downloads with `wait` failed. They continue to wait; the next poll follows within 10 "
        "s.",
    ),
    "webhook.received": _event(
        "info", "notice woken", "A webhook request with the valid secret. `woken`: a download here waits for its order."
    ),
    "upload.finished": _event("info", "order_id image_id bytes", "The storage has accepted a photo."),
    "upload.failed": _event("warning", "order_id reason detail", "A photo was not accepted."),
    "upload.retried": _event(
        "info",
        "image_id reason detail attempt",
        "A registration (then `image_id` is null) or an upload to the storage failed and is retried.",
    ),
    "http.request": _event(
        "info debug",
        "method path status seconds",
        "A request has ended; `status` is null if its client had disconnected. Debug for a 200 of `/health*` or "
        "`/metrics`, which machines request every few seconds; info for all others.",
    ),
    "request.rejected": _event("info", "problem status detail", "The response is a problem document."),
    "request.failed": _event("error", "exception", "A fault of the service, with its traceback."),
    "archive.finished": _event(
        "info",
        "outcome why images downloaded failed attempts bytes seconds first_byte_seconds client_blocked_seconds "
        "upstream_blocked_seconds credits_spent",
        "The end of a request for an archive, exactly one for each that `batch_archives_total` counts. `why` is null "
        "for `complete`; the reasons for `partial`; a problem's slug for `failed` and `rejected`; `nothing-missing` "
        "for `rejected` if a manifest had no missing image (204); else `client-left`, `client-stalled`, "
        "`image-missing`, `service-stopped`, `internal-error` or `unaccounted-images`. `first_byte_seconds` is null if "
        "there was none; `attempts` counts the requests for images whose outcome is known.",
    ),
    "archive.aborted": _event("warning", "detail", "A connection was aborted deliberately."),
    "archive.upstream_abandoned": _event(
        "warning",
        "failures_in_row images_not_tried",
        "The upstream keeps failing; the remaining images are not requested.",
    ),
    "image.downloaded": _event(
        "info",
        "image_id position attempts seconds bytes entry",
        "An image is complete in the archive. `seconds` as in `batch_image_duration_seconds`: from the first request "
        "for it to its last byte, which may then have waited for the images before.",
    ),
    "image.failed": _event(
        "warning",
        "image_id position attempts seconds reason detail upstream_status",
        "The final failure of an image. `seconds` from the first request for it to the end of the last attempt; null "
        "if it was never requested.",
    ),
    "image.retried": _event(
        "info",
        "image_id reason detail attempt received_bytes pause_seconds",
        "An attempt failed; another follows after the pause.",
    ),
    "image.resumed": _event(
        "info",
        "image_id method received_bytes",
        "An interrupted image continues: `range` requested the rest, `replay` requests it from the start and skips "
        "what was received.",
    ),
    "image.rolled_back": _event("info", "image_id detail", "An entry was started and left out of the directory."),
    "upstream.request_repeated": _event(
        "info",
        "host",
        "The host closed an idle connection when a request arrived on it. The request is sent once more, on a new "
        "connection; that consumes no attempt and is not counted as a failed request.",
    ),
    "upstream.throttled": _event("warning", "pause_seconds", "The API responded with 429; all requests to it pause."),
    "log.lines_dropped": _event(
        "warning",
        "lines",
        "The log's stream was stalled or failed and works again; so many lines were not written since the last such "
        "line.",
    ),
    "log.record_unreadable": _event(
        "error", "source exception", "A record of a library cannot be formatted; `source` is its logger."
    ),
    "python.unraisable": _event(
        "error",
        "source exception",
        "Python could not raise an error, as in a finalizer. It is logged instead of written to standard error, as "
        "warnings are.",
    ),
}
